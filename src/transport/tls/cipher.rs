//! What is sealed and not written, read and not opened: the buffers between two halves of a connection and its records.
//!
//! Owns: the sealed bytes of one direction each. Threads: whoever writes seals, whoever reads opens; the acceptor does
//! both before there are two. Locks: none here. Blocks on: nothing; sockets are given in as functions.
//! Upholds: what was sealed is written in order and whole; keys change before their use is up; a stream ends by
//! close_notify or was cut.
//!
//! [`SealHalf`] and [`OpenHalf`] are the seam to what seals and opens: the two share no lock that is held over a record.

use std::io::{self, ErrorKind, IoSlice};
use std::ops::Range;

use crate::transport::Fault;

/// The most bytes that are sealed at a time: keys change between two of these.
const STEP: usize = 64 * 1024;
/// Sealed bytes that are gathered for one write. While they are sealed the other side's reader runs out of bytes and
/// falls asleep, and each waking of it costs as much as sealing some tens of KiB: the fewer the better. 1 MiB leaves the
/// processor's cache before it is written, and gains nothing more.
const BATCH: usize = 512 * 1024;
/// The longest plain text of a record.
pub(super) const RECORD: usize = 16 * 1024;
/// What a record adds to it: header, kind, tag.
pub(super) const RECORD_EXTRA: usize = 5 + 1 + 16;
/// Slices looked at in one go.
const SLICES: usize = 32;
/// Buffers of idle peers are this small.
const SMALL: usize = 4 * 1024;
/// Buffers of busy peers grow to this; the longest record fits.
const LARGE: usize = 64 * 1024;
/// Bytes are read to where they are asked for, and opened there, if there is room for so many: several records.
const DIRECT: usize = 96 * 1024;
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
    /// Seals all of these bytes, behind what the connection has to say itself; how many that were.
    fn seal(&mut self, from: &[IoSlice<'_>], into: &mut Vec<u8>) -> io::Result<usize>;

    /// What the connection has to say itself: answers to new keys, alerts.
    fn owed(&mut self, into: &mut Vec<u8>);

    /// New keys for what is sealed from here on; the other side is asked for the same.
    fn rekey(&mut self, into: &mut Vec<u8>) -> io::Result<()>;

    /// The end of the stream.
    fn close(&mut self, into: &mut Vec<u8>);
}

/// Opens bytes of the other side.
pub(super) trait OpenHalf: Send {
    /// Opens the record at this place in `raw`; none while it is not whole. What was sealed in it is moved to the front
    /// of `raw`, which costs nothing while it is opened.
    ///
    /// # Errors
    /// [`Fault::Rejected`] for what is none, [`Fault::Refused`] for the other side's alert; nothing may follow either.
    fn open(&mut self, raw: &mut [u8], at: usize) -> io::Result<Option<Opened>>;

    /// From now on a thread of its own reads: what costs time costs nobody else's.
    fn begin_session(&mut self);
}

/// What came of opening a record.
#[derive(Debug, Default)]
pub(super) struct Opened {
    /// The record's length.
    pub(super) used: usize,
    /// How many bytes of the stream it had.
    pub(super) plain: usize,
    /// The other side has ended the stream.
    pub(super) ended: bool,
    /// The connection has something to say itself.
    pub(super) owes: bool,
    /// It brings new keys that we asked for.
    pub(super) answers: bool,
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
            self.rekey_if_due()?;
            let took = self.half.seal(&slices[..count], &mut self.out)?;
            if took == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
            sealed += took;
            self.records += took.div_ceil(RECORD) as u64;
            self.bytes += took as u64;
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

    /// New keys, once there is something to seal by them.
    fn rekey_if_due(&mut self) -> io::Result<()> {
        if self.records < self.rekey.records && self.bytes < self.rekey.bytes {
            return Ok(());
        }
        (self.records, self.bytes) = (0, 0);
        self.half.rekey(&mut self.out)
    }

    fn shrink_if_idle(&mut self, sealed: usize) {
        self.small_turns = if sealed < SMALL { self.small_turns.saturating_add(1) } else { 0 };
        if self.small_turns >= SMALL_TURNS && self.out.is_empty() && self.out.capacity() > 2 * SMALL {
            self.out = Vec::new();
        }
    }
}

/// The bytes of `from` behind the first `skip`, as slices, at most [`STEP`] of them; how many slices and bytes.
fn window<'a>(from: &'a [IoSlice<'_>], mut skip: usize, slices: &mut [IoSlice<'a>; SLICES]) -> (usize, usize) {
    let (mut count, mut bytes) = (0, 0);
    for slice in from {
        if skip >= slice.len() {
            skip -= slice.len();
            continue;
        }
        if count == SLICES || bytes == STEP {
            break;
        }
        let end = slice.len().min(skip + STEP - bytes);
        slices[count] = IoSlice::new(&slice[skip..end]);
        bytes += end - skip;
        count += 1;
        skip = 0;
    }
    (count, bytes)
}

/// The receiving direction: what is read and not given out yet.
pub(super) struct Opener {
    half: Box<dyn OpenHalf>,
    raw: Vec<u8>,
    /// Opened bytes of `raw` that are not given out.
    plain: Range<usize>,
    /// Bytes of `raw` that are read and not opened.
    sealed: Range<usize>,
    ended: bool,
    /// What broke the connection, told when everything before it is given out, and from then on.
    broken: Option<Fault>,
    owes: bool,
    small_turns: u8,
}

impl Opener {
    /// `raw` is what was read already.
    pub(super) fn new(half: Box<dyn OpenHalf>, raw: Vec<u8>) -> Self {
        let sealed = 0..raw.len();
        Self { half, raw, plain: 0..0, sealed, ended: false, broken: None, owes: false, small_turns: 0 }
    }

    /// Whether the connection has had something to say since this was last asked.
    pub(super) fn owes(&mut self) -> bool {
        std::mem::take(&mut self.owes)
    }

    /// From now on a thread of its own reads.
    pub(super) fn begin_session(&mut self) {
        self.half.begin_session();
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
        loop {
            let count = self.plain.len().min(into.len() - given);
            into[given..given + count].copy_from_slice(&self.raw[self.plain.start..self.plain.start + count]);
            self.plain.start += count;
            given += count;
            if given == into.len() || self.ended {
                return Ok(given);
            }
            if self.open()? {
                continue;
            }
            if given > 0 {
                return Ok(given);
            }
            if let Some(fault) = &self.broken {
                return Err(fault.clone().into());
            }
            if into.len() >= DIRECT {
                given = self.read_direct(into, source)?;
                if given > 0 {
                    return Ok(given);
                }
            } else {
                self.fill(source)?;
            }
        }
    }

    /// Reads behind the begin of a record, and opens where it was read to: of what was sealed nothing is left between the
    /// plain bytes. How many these are; none, if no record with some was whole.
    fn read_direct(
        &mut self,
        into: &mut [u8],
        source: &mut dyn FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let begun = self.sealed.len();
        into[..begun].copy_from_slice(&self.raw[self.sealed.clone()]);
        let read = source(&mut into[begun..])?;
        if read == 0 {
            return Err(Fault::Truncated.into());
        }
        self.note_read(read);
        let (mut plain, mut at, end) = (0, 0, begun + read);
        while let Some(opened) = self.open_in(&mut into[plain..end], at - plain)? {
            plain += opened.plain;
            at += opened.used;
            if self.ended {
                break;
            }
        }
        // The begin of a record waits for the rest of it.
        let rest = if self.ended || self.broken.is_some() { 0 } else { end - at };
        if self.raw.len() < rest {
            self.raw.resize(rest.next_power_of_two().max(SMALL), 0);
        }
        self.raw[..rest].copy_from_slice(&into[at..at + rest]);
        (self.plain, self.sealed) = (0..0, 0..rest);
        Ok(plain)
    }

    /// Opens the next record; false where none is whole.
    fn open(&mut self) -> io::Result<bool> {
        let mut raw = std::mem::take(&mut self.raw);
        let opened = self.open_in(&mut raw[self.sealed.clone()], 0);
        self.raw = raw;
        let Some(opened) = opened? else { return Ok(false) };
        let begin = self.sealed.start;
        self.plain = begin..begin + opened.plain;
        self.sealed.start += opened.used;
        Ok(true)
    }

    fn open_in(&mut self, raw: &mut [u8], at: usize) -> io::Result<Option<Opened>> {
        if self.broken.is_some() {
            return Ok(None);
        }
        match self.half.open(raw, at) {
            Ok(opened) => {
                self.ended |= opened.as_ref().is_some_and(|opened| opened.ended);
                self.owes |= opened.as_ref().is_some_and(|opened| opened.owes);
                Ok(opened)
            }
            Err(error) => {
                self.broken = Some(Fault::of(&error).ok_or(ErrorKind::InvalidData)?.clone());
                Ok(None)
            }
        }
    }

    /// Reads more behind the begin of a record.
    fn fill(&mut self, source: &mut dyn FnMut(&mut [u8]) -> io::Result<usize>) -> io::Result<()> {
        let begun = self.sealed.len();
        self.raw.copy_within(self.sealed.clone(), 0);
        (self.plain, self.sealed) = (0..0, 0..begun);
        if self.raw.len() < SMALL {
            self.raw.resize(SMALL, 0);
        } else if begun == self.raw.len() {
            // A record that does not fit: grown as its bytes come, whatever length it names.
            self.raw.resize(begun * 4, 0);
        } else if self.small_turns >= SMALL_TURNS && self.raw.len() > SMALL && begun == 0 {
            self.raw = vec![0; SMALL];
        }
        let read = source(&mut self.raw[begun..])?;
        if read == 0 {
            return Err(Fault::Truncated.into());
        }
        self.sealed.end += read;
        self.note_read(read);
        if self.sealed.end == self.raw.len() && self.raw.len() < LARGE {
            let grown = (self.raw.len() * 4).min(LARGE);
            self.raw.resize(grown, 0);
        }
        Ok(())
    }

    fn note_read(&mut self, bytes: usize) {
        self.small_turns = if bytes < SMALL / 2 { self.small_turns.saturating_add(1) } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// Seals nothing, and counts.
    #[derive(Default)]
    struct Counting {
        rekeys: Arc<AtomicU64>,
    }

    impl SealHalf for Counting {
        fn seal(&mut self, from: &[IoSlice<'_>], _: &mut Vec<u8>) -> io::Result<usize> {
            Ok(from.iter().map(|slice| slice.len()).sum())
        }

        fn owed(&mut self, _: &mut Vec<u8>) {}

        fn rekey(&mut self, _: &mut Vec<u8>) -> io::Result<()> {
            self.rekeys.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }

        fn close(&mut self, _: &mut Vec<u8>) {}
    }

    /// How often keys change while so many writes of so many bytes are sealed.
    fn rekeys(rekey: Rekey, writes: u64, len: usize) -> u64 {
        let half = Counting::default();
        let rekeys = half.rekeys.clone();
        let mut sealer = Sealer::new(Box::new(half), rekey, Vec::new());
        let bytes = vec![0; len];
        for _ in 0..writes {
            assert_eq!(sealer.write(&[IoSlice::new(&bytes)], &mut |bytes| Ok(bytes.len())).unwrap(), len);
        }
        rekeys.load(Ordering::Relaxed)
    }

    #[test]
    fn keys_change_before_their_use_is_up_by_records_and_by_bytes() {
        let by = |records, bytes| Rekey { records, bytes };
        // Each write is one record here; the change comes with the first record that would be one too many.
        assert_eq!(rekeys(by(10, u64::MAX), 10, 100), 0);
        assert_eq!(rekeys(by(10, u64::MAX), 11, 100), 1);
        assert_eq!(rekeys(by(10, u64::MAX), 101, 100), 10);
        assert_eq!(rekeys(by(u64::MAX, 1000), 101, 100), 10);
        // Long writes change them between two steps, so that the bound is passed by one step at most.
        assert_eq!(rekeys(by(u64::MAX, STEP as u64), 4, 2 * STEP), 7);
    }

    #[test]
    fn the_default_stays_below_what_aes_gcm_bears() {
        // RFC 8446, 5.5: 2^24.5 full records; each is counted, and one step may come on top.
        let Rekey { records, bytes } = Rekey::default();
        let most = 1 << 24;
        assert!(records + (STEP / RECORD) as u64 <= most / 2);
        assert!(bytes.div_ceil(RECORD as u64) <= most / 2);
    }
}
