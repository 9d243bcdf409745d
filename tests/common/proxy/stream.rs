//! One direction of a connection through the proxy: finds the exact byte at which a fault is to strike.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::Instant;

use mio::net::TcpStream;
use threadwire::wire::{FrameHeader, FrameType, HEADER};

use super::fault::{DRIP, Fault, Harm, Place};

/// Bytes of one direction that the proxy holds.
pub(super) const HELD: usize = 64 * 1024;

/// A record's header, through TLS.
const RECORD: usize = 5;

/// One direction: bytes that came, and those of them that are on their way out.
pub(super) struct Stream {
    /// It began with a record of TLS: what it is made of are records, and frames cannot be seen.
    tls: bool,
    pub(super) came: Vec<u8>,
    pub(super) out: Vec<u8>,
    /// Bytes of the present frame still to come, its type, and how many bytes of it have passed.
    left: usize,
    frame: Option<FrameType>,
    into: usize,
    seen: BTreeMap<u8, u32>,
    passed: u64,
    pub(super) fault: Option<Fault>,
    /// The fault's place is reached; it strikes when `out` is empty.
    reached: bool,
    pub(super) struck: Option<(Harm, String)>,
    /// Only one byte passes at a time, the next one then; how many did.
    pub(super) drip: Option<Instant>,
    pub(super) dripped: u64,
    /// The end of the stream came; it was passed on.
    at_end: bool,
    pub(super) ended: bool,
}

impl Stream {
    pub(super) fn new(fault: Option<Fault>) -> Self {
        Self {
            tls: false,
            came: Vec::new(),
            out: Vec::new(),
            left: 0,
            frame: None,
            into: 0,
            seen: BTreeMap::new(),
            passed: 0,
            fault,
            reached: false,
            struck: None,
            drip: None,
            dripped: 0,
            at_end: false,
            ended: false,
        }
    }

    /// Reads, looks for the fault's place, writes; whether anything moved.
    pub(super) fn advance(
        &mut self,
        from: &mut TcpStream,
        to: &mut TcpStream,
        passed: &mut u64,
    ) -> std::io::Result<bool> {
        let mut moved = false;
        let mut buffer = [0; HELD];
        while !self.at_end && self.came.len() + self.out.len() < HELD {
            match from.read(&mut buffer) {
                Ok(0) => self.at_end = true,
                Ok(count) if !self.ended => self.came.extend_from_slice(&buffer[..count]),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
            moved = true;
        }
        if self.ended {
            return Ok(moved);
        }
        self.look();
        while !self.out.is_empty() {
            let now = Instant::now();
            let most = match self.drip {
                Some(next) if now < next => return Ok(moved),
                Some(_) => 1,
                None => self.out.len(),
            };
            match to.write(&self.out[..most]) {
                Ok(count) => {
                    self.out.drain(..count);
                    *passed += count as u64;
                    if let Some(next) = &mut self.drip {
                        *next = now + DRIP;
                        self.dripped += 1;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(moved),
                Err(error) => return Err(error),
            }
            moved = true;
        }
        if self.reached {
            self.reached = false;
            if let Some(fault) = self.fault.take() {
                self.struck = Some((fault.harm, self.place()));
            }
        } else if self.at_end && self.came.len() < HEADER {
            self.out.append(&mut self.came);
            // What is left of a frame that was never finished; it fits.
            let _ = to.write(&self.out);
            self.end(to);
        }
        Ok(moved)
    }

    /// Moves what came to what goes out, frame by frame or record by record, up to the fault's place.
    fn look(&mut self) {
        while !self.reached {
            if self.left == 0 {
                let Some(left) = self.whole() else { break };
                (self.left, self.into) = (left, 0);
            }
            let mut pass = self.left.min(self.came.len());
            if let Some(until) = self.distance()
                && until <= pass
            {
                pass = until;
                self.reached = true;
            }
            if pass == 0 && !self.reached {
                break;
            }
            self.out.extend(self.came.drain(..pass));
            self.left -= pass;
            self.into += pass;
            self.passed += pass as u64;
        }
    }

    /// The length of the next frame or record, when its header is here.
    fn whole(&mut self) -> Option<usize> {
        if self.passed == 0 {
            self.tls = matches!(self.came.first_chunk()?, [20..=23, 3]);
        }
        if self.tls {
            let [_, _, _, high, low] = *self.came.first_chunk::<RECORD>()?;
            return Some(RECORD + usize::from(u16::from_be_bytes([high, low])));
        }
        let header = FrameHeader::from_bytes(*self.came.first_chunk::<HEADER>()?);
        self.frame = header.frame_type();
        *self.seen.entry(header.tag & 0x0f).or_default() += 1;
        Some(HEADER + header.length as usize)
    }

    /// Bytes from here to the fault's place, if that lies in this frame.
    fn distance(&self) -> Option<usize> {
        match self.fault?.place {
            Place::After(bytes) => usize::try_from(bytes - self.passed).ok(),
            Place::Inside(frame, nth, at) => {
                let here = self.frame == Some(frame) && self.seen.get(&(frame as u8)) == Some(&(nth + 1));
                here.then(|| at.checked_sub(self.into)).flatten().filter(|until| *until <= self.left)
            }
        }
    }

    /// Where the stream stands, by the frame or record.
    fn place(&self) -> String {
        match self.frame {
            _ if self.left == 0 || self.into == 0 => "between".into(),
            _ if self.into < if self.tls { RECORD } else { HEADER } => "header".into(),
            None if self.tls => "record".into(),
            Some(frame) => format!("{frame:?}"),
            None => "unknown".into(),
        }
    }

    /// Passes the end of the stream on; what comes from here on is thrown away.
    pub(super) fn end(&mut self, to: &TcpStream) {
        self.ended = true;
        self.came.clear();
        // It fails when that side is gone.
        let _ = to.shutdown(Shutdown::Write);
    }
}
