//! Sealing and opening: TLS between plain bytes and records, on memory alone.
//!
//! Owns: the state of one TLS connection, shared by its two directions, and what is sealed and not written, read and
//! not opened. Threads: whoever writes seals, whoever reads opens; the acceptor does both before there are two.
//! Locks: the connection's, a leaf, for cipher work on at most 64 KiB. Blocks on: nothing but that; sockets are given in
//! as functions, called without it.
//! Upholds: what was sealed is written in order and whole; keys change before their use is up; a stream ends by
//! close_notify or was cut.
//!
//! [`SealHalf`] and [`OpenHalf`] are the seam: a TLS library whose connections split goes in behind them and takes the
//! lock away.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::sync::Arc;

use rustls::Connection;

use super::words;
use crate::sync::Mutex;
use crate::transport::Fault;

/// The most bytes that are sealed or opened under one lock.
const LOCKED: usize = 64 * 1024;
/// Sealed bytes that are gathered for one write: each call of the system wakes the other side's reader. Of 64 to 512 KiB
/// a write, this was fastest (64 KiB messages: 2.3 GB/s, against 1.9 with half of it or less).
const BATCH: usize = 512 * 1024;
/// The longest plain text of a record.
const RECORD: usize = 16 * 1024;
/// What a record adds to it: header, kind, tag.
const RECORD_EXTRA: usize = 5 + 1 + 16;
/// Slices looked at in one go.
const SLICES: usize = 32;
/// Buffers of idle peers are this small.
const SMALL: usize = 4 * 1024;
/// Buffers of busy peers grow to this.
const LARGE: usize = 512 * 1024;
/// A direction is idle after so many small turns in a row.
const SMALL_TURNS: u8 = 8;

/// When our keys are changed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rekey {
    pub(super) records: u64,
    pub(super) bytes: u64,
}

impl Default for Rekey {
    fn default() -> Self {
        // AES-GCM bears 2^24 full records (RFC 8446, 5.5).
        Self { records: 1 << 22, bytes: 1 << 36 }
    }
}

/// Seals bytes for the other side.
pub(super) trait SealHalf: Send {
    /// Seals some of the bytes, at least one and at most [`LOCKED`], behind what the connection has to say itself.
    fn seal(&mut self, from: &[IoSlice<'_>], into: &mut Vec<u8>) -> io::Result<usize>;

    /// What the connection has to say itself: answers to new keys, alerts.
    fn owed(&mut self, into: &mut Vec<u8>);

    /// New keys for what is sealed from here on; the other side is asked for the same.
    fn rekey(&mut self) -> io::Result<()>;

    /// The end of the stream.
    fn close(&mut self, into: &mut Vec<u8>);
}

/// Opens bytes of the other side.
pub(super) trait OpenHalf: Send {
    /// Opens some of `sealed`, at most [`LOCKED`], and moves its start; whole records are not needed.
    fn open(&mut self, sealed: &mut &[u8], into: &mut [u8]) -> io::Result<Opened>;
}

/// What came of opening.
#[derive(Debug, Default)]
pub(super) struct Opened {
    /// Plain bytes.
    pub(super) given: usize,
    /// There may be more that is opened and did not fit.
    pub(super) more: bool,
    /// The other side has ended the stream.
    pub(super) ended: bool,
    /// The connection has something to say itself.
    pub(super) owes: bool,
}

/// One connection for both directions, taking turns.
#[derive(Clone)]
pub(super) struct Locked(Arc<Mutex<State>>);

struct State {
    tls: Connection,
    /// We have ended our stream: nothing may follow.
    closed: bool,
    /// What broke it, told when everything before it was given out.
    broken: Option<Fault>,
}

impl Locked {
    /// A connection whose handshake is over.
    pub(super) fn new(mut tls: Connection) -> Self {
        // Bounded by what is sealed at a time.
        tls.set_buffer_limit(None);
        Self(Arc::new(Mutex::new(State { tls, closed: false, broken: None })))
    }
}

/// Takes what a connection has to say.
pub(super) fn take_output(tls: &mut Connection, into: &mut Vec<u8>) {
    while tls.wants_write() {
        // Memory takes everything.
        if !matches!(tls.write_tls(into), Ok(1..)) {
            return;
        }
    }
}

impl SealHalf for Locked {
    fn seal(&mut self, from: &[IoSlice<'_>], into: &mut Vec<u8>) -> io::Result<usize> {
        let mut state = self.0.lock();
        let sealed = state.tls.writer().write_vectored(from)?;
        take_output(&mut state.tls, into);
        Ok(sealed)
    }

    fn owed(&mut self, into: &mut Vec<u8>) {
        take_output(&mut self.0.lock().tls, into);
    }

    fn rekey(&mut self) -> io::Result<()> {
        self.0.lock().tls.refresh_traffic_keys().map_err(io::Error::other)
    }

    fn close(&mut self, into: &mut Vec<u8>) {
        let mut state = self.0.lock();
        if !std::mem::replace(&mut state.closed, true) {
            state.tls.send_close_notify();
        }
        take_output(&mut state.tls, into);
    }
}

impl OpenHalf for Locked {
    fn open(&mut self, sealed: &mut &[u8], into: &mut [u8]) -> io::Result<Opened> {
        let mut state = self.0.lock();
        let State { tls, closed, broken } = &mut *state;
        let mut opened = Opened::default();
        let begin = sealed.len();
        loop {
            match tls.reader().read(&mut into[opened.given..]) {
                Ok(0) => {
                    opened.ended = true;
                    break;
                }
                Ok(count) => {
                    opened.given += count;
                    if opened.given == into.len() {
                        opened.more = true;
                        break;
                    }
                    // Whether that was all, and whether it was the last.
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if let Some(fault) = broken.as_ref() {
                if opened.given == 0 {
                    return Err(fault.clone().into());
                }
                opened.more = true;
                break;
            }
            if sealed.is_empty() || begin - sealed.len() >= LOCKED {
                break;
            }
            tls.read_tls(sealed)?;
            match tls.process_new_packets() {
                // An answer to new keys waits for the next bytes to be sealed; of none, too. One at a time: a writer that
                // is held up would find many of them, and the other side takes no more than a few in a row.
                Ok(_) if !*closed && !tls.wants_write() => drop(tls.writer().write(&[])),
                Ok(_) => {}
                Err(error) => *broken = Some(words::fault(&error)),
            }
        }
        opened.owes = tls.wants_write();
        Ok(opened)
    }
}

/// The sending direction: what is sealed and not written yet.
pub(super) struct Sealer {
    half: Box<dyn SealHalf>,
    out: Vec<u8>,
    sent: usize,
    rekey: Rekey,
    /// Records and bytes under the present keys.
    records: u64,
    bytes: u64,
    small_turns: u8,
    closed: bool,
}

impl Sealer {
    /// `out` is what is to be written first.
    pub(super) fn new(half: Box<dyn SealHalf>, rekey: Rekey, out: Vec<u8>) -> Self {
        Self { half, out, sent: 0, rekey, records: 0, bytes: 0, small_turns: 0, closed: false }
    }

    /// Whether something is sealed and not written.
    pub(super) fn is_behind(&self) -> bool {
        self.sent < self.out.len()
    }

    /// Adds what the connection has to say itself.
    pub(super) fn take_owed(&mut self) {
        self.half.owed(&mut self.out);
    }

    /// What is sealed and not written, and what the connection has to say itself: for a connection that failed.
    pub(super) fn take_output(&mut self) -> Vec<u8> {
        self.take_owed();
        let mut out = std::mem::take(&mut self.out);
        drop(out.drain(..std::mem::take(&mut self.sent)));
        out
    }

    /// Writes what is sealed; whether that is all. `send` says 0 where it would have to wait.
    pub(super) fn drain(&mut self, send: &mut dyn FnMut(&[u8]) -> io::Result<usize>) -> io::Result<bool> {
        while self.sent < self.out.len() {
            match send(&self.out[self.sent..])? {
                0 => return Ok(false),
                count => self.sent += count,
            }
        }
        self.sent = 0;
        self.out.clear();
        Ok(true)
    }

    /// Writes what is sealed, then seals and writes some of `from`; how many bytes of it were sealed.
    pub(super) fn write(
        &mut self,
        from: &[IoSlice<'_>],
        send: &mut dyn FnMut(&[u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        if !self.drain(send)? {
            return Ok(0);
        }
        let mut sealed = 0;
        while sealed < BATCH {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let (count, bytes) = window(from, sealed, &mut slices);
            if count == 0 {
                break;
            }
            if self.closed {
                return Err(ErrorKind::BrokenPipe.into());
            }
            self.out.reserve(bytes + (bytes.div_ceil(RECORD) + 1) * RECORD_EXTRA);
            let took = self.half.seal(&slices[..count], &mut self.out)?;
            if took == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
            sealed += took;
            self.count(took)?;
        }
        self.drain(send)?;
        self.shrink_if_idle(sealed);
        Ok(sealed)
    }

    /// Seals the end of the stream.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.half.close(&mut self.out);
    }

    fn count(&mut self, bytes: usize) -> io::Result<()> {
        self.records += bytes.div_ceil(RECORD) as u64;
        self.bytes += bytes as u64;
        if self.records < self.rekey.records && self.bytes < self.rekey.bytes {
            return Ok(());
        }
        (self.records, self.bytes) = (0, 0);
        self.half.rekey()
    }

    fn shrink_if_idle(&mut self, sealed: usize) {
        self.small_turns = if sealed < SMALL { self.small_turns.saturating_add(1) } else { 0 };
        if self.small_turns >= SMALL_TURNS && self.out.is_empty() && self.out.capacity() > 2 * SMALL {
            self.out = Vec::new();
        }
    }
}

/// The bytes of `from` behind the first `skip`, as slices, at most [`LOCKED`] of them; how many slices and bytes.
fn window<'a>(from: &'a [IoSlice<'_>], mut skip: usize, slices: &mut [IoSlice<'a>; SLICES]) -> (usize, usize) {
    let (mut count, mut bytes) = (0, 0);
    for slice in from {
        if skip >= slice.len() {
            skip -= slice.len();
            continue;
        }
        if count == SLICES || bytes == LOCKED {
            break;
        }
        let end = slice.len().min(skip + LOCKED - bytes);
        slices[count] = IoSlice::new(&slice[skip..end]);
        bytes += end - skip;
        count += 1;
        skip = 0;
    }
    (count, bytes)
}

/// The receiving direction: what is read and not opened yet.
pub(super) struct Opener {
    half: Box<dyn OpenHalf>,
    raw: Vec<u8>,
    start: usize,
    end: usize,
    /// There may be opened bytes that did not fit.
    more: bool,
    ended: bool,
    owes: bool,
    small_turns: u8,
}

impl Opener {
    /// `raw` is what was read already.
    pub(super) fn new(half: Box<dyn OpenHalf>, raw: Vec<u8>) -> Self {
        let end = raw.len();
        Self { half, raw, start: 0, end, more: true, ended: false, owes: false, small_turns: 0 }
    }

    /// Whether the connection has had something to say since this was last asked.
    pub(super) fn owes(&mut self) -> bool {
        std::mem::take(&mut self.owes)
    }

    /// Opens what was read, and reads more while that gives nothing; 0 is the end of the stream.
    ///
    /// # Errors
    /// As `source`; [`Fault::Rejected`] for bytes that are not the other side's, [`Fault::Truncated`] for a cut.
    pub(super) fn read(
        &mut self,
        into: &mut [u8],
        source: &mut dyn FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut given = 0;
        while !self.ended {
            while self.more || self.start < self.end {
                let mut sealed = &self.raw[self.start..self.end];
                let opened = match self.half.open(&mut sealed, &mut into[given..]) {
                    Ok(opened) => opened,
                    Err(_) if given > 0 => {
                        // It will say so again.
                        self.more = true;
                        return Ok(given);
                    }
                    Err(error) => return Err(error),
                };
                self.start = self.end - sealed.len();
                self.more = opened.more;
                self.owes |= opened.owes;
                given += opened.given;
                if opened.ended {
                    self.ended = true;
                    return Ok(given);
                }
                if given == into.len() {
                    return Ok(given);
                }
            }
            if given > 0 {
                break;
            }
            let read = source(self.space())?;
            if read == 0 {
                return Err(Fault::Truncated.into());
            }
            self.small_turns = if read < SMALL / 2 { self.small_turns.saturating_add(1) } else { 0 };
            self.end = read;
        }
        Ok(given)
    }

    /// Room for the next read, when everything before it is opened.
    fn space(&mut self) -> &mut [u8] {
        let filled = self.end == self.raw.len();
        if self.raw.len() < SMALL {
            self.raw.resize(SMALL, 0);
        } else if filled && self.raw.len() < LARGE {
            let grown = (self.raw.len() * 4).min(LARGE);
            self.raw.resize(grown, 0);
        } else if self.small_turns >= SMALL_TURNS && self.raw.len() > SMALL {
            self.raw = vec![0; SMALL];
        }
        (self.start, self.end) = (0, 0);
        &mut self.raw
    }
}
