//! Cuts a byte stream into frames, fed by any split of it.
//!
//! Owns: the bytes read and not yet consumed. Threads: whichever owns it (`rx-<peer>`, `acceptor`). Locks: none.
//! Blocks on: nothing; it does no I/O.
//! Upholds: a length is checked before anything is reserved for it; the buffer grows only after it was filled with
//! bytes that arrived, never beyond one read's worth above the longest allowed frame.

use super::{FrameHeader, FrameType, HEADER, Lane, MAX_BODY, Prefix, WireError, flags};

/// A stream is idle after so many small reads in a row.
const SMALL_READS: u8 = 8;

/// One frame, borrowed from the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its header.
    pub header: FrameHeader,
    /// Its body.
    pub body: &'a [u8],
}

/// Consecutive whole messages of one lane that lie complete in the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The lane all of them travel on.
    pub lane: Lane,
    /// The flags all of them have, but for ACK_NOW.
    pub flags: u8,
    /// Bytes in front of each payload.
    pub prefix: usize,
    /// How many frames.
    pub frames: u32,
    /// How many bytes, headers included.
    pub bytes: usize,
    /// The last one asks for its acknowledgement at once (a run ends with such a frame).
    pub ack_now: bool,
    /// Nothing is left of their time.
    pub expired: bool,
}

impl Run {
    /// Whether they have numbers; if not, they are best effort.
    #[inline]
    pub fn is_numbered(&self) -> bool {
        self.flags & flags::NUMBERED != 0
    }
}

/// A resumable decoder that owns its bytes.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    limit: usize,
    /// How many of the last reads, in a row, would have fitted a small buffer.
    small_reads: u8,
}

impl Decoder {
    /// Buffers start this small: most peers are idle.
    pub const INITIAL: usize = 4 * 1024;
    /// Buffers of busy peers grow to this.
    pub const LARGEST: usize = 256 * 1024;

    /// A decoder that refuses bodies longer than `limit`.
    pub fn new(limit: usize) -> Self {
        debug_assert!(limit <= MAX_BODY);
        Self { buffer: Vec::new(), start: 0, end: 0, limit, small_reads: 0 }
    }

    /// Changes the limit, at the change of state that permits it.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Room for the next read: at least one byte, more for a stream that fills it.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start == self.end && self.end < self.buffer.len() {
            self.start = 0;
            self.end = 0;
        }
        if self.buffer.is_empty() {
            self.buffer.resize(Self::INITIAL, 0);
        }
        let was_filled = self.end == self.buffer.len();
        // A short rest would mean a short read: bring what is pending to the front.
        if self.start > 0 && self.buffer.len() - self.end < self.buffer.len() / 2 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if was_filled && self.buffer.len() < Self::LARGEST {
            // Every byte up to here arrived: the stream has more than this buffer takes at once.
            let grown = (self.buffer.len() * 4).min(Self::LARGEST);
            self.buffer.resize(grown, 0);
        }
        &mut self.buffer[self.end..]
    }

    /// Tells that `count` bytes of [`Decoder::space`] were filled.
    pub fn filled(&mut self, count: usize) {
        debug_assert!(self.end + count <= self.buffer.len());
        self.small_reads = if count < Self::INITIAL / 2 { self.small_reads.saturating_add(1) } else { 0 };
        self.end = (self.end + count).min(self.buffer.len());
    }

    /// Copies bytes in: for tests, replays and leftovers of another decoder.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let space = self.space();
            if space.is_empty() {
                // Only a caller that feeds without consuming gets here; a reader cannot.
                self.buffer.extend_from_slice(bytes);
                self.end = self.buffer.len();
                return;
            }
            let count = space.len().min(bytes.len());
            space[..count].copy_from_slice(&bytes[..count]);
            self.filled(count);
            bytes = &bytes[count..];
        }
    }

    /// Bytes reserved for what arrives.
    pub fn capacity(&self) -> usize {
        self.buffer.len()
    }

    /// Bytes that arrived and were not consumed.
    pub fn pending(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Whether the buffer ends inside a frame.
    pub fn is_mid_frame(&self) -> bool {
        self.start != self.end
    }

    /// Gives the memory of a big buffer back when nothing is pending and the last reads would all have fitted a small
    /// one: a peer that has become idle sends no more than heartbeats.
    pub fn shrink_if_idle(&mut self) {
        if self.start == self.end && self.buffer.len() > Self::INITIAL && self.small_reads >= SMALL_READS {
            *self = Self::new(self.limit);
        }
    }

    /// The header of the next frame, once its eight bytes are here; its length is held against the limit as soon as that
    /// is here.
    ///
    /// # Errors
    /// [`WireError::TooLong`], [`WireError::BadLane`]: the stream is beyond repair, end the session.
    #[inline]
    pub fn peek_header(&self) -> Result<Option<FrameHeader>, WireError> {
        self.header_at(self.start)
    }

    /// The next whole frame; consumes it.
    ///
    /// # Errors
    /// As [`Decoder::peek_header`].
    #[inline]
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, WireError> {
        let Some(header) = self.peek_header()? else { return Ok(None) };
        let body = self.start + HEADER;
        let after = body + header.length as usize;
        if after > self.end {
            return Ok(None);
        }
        self.start = after;
        Ok(Some(Frame { header, body: &self.buffer[body..after] }))
    }

    /// Looks ahead: the run of whole single-frame messages at the front, all of one lane, with the same sort of prefix,
    /// all expired or none, at most `most` of them, ending after one that asks for its acknowledgement. `None` when the next frame is
    /// no such message or is not complete yet.
    ///
    /// This is where a small message's nanoseconds go: one load, two comparisons, one sum for each.
    ///
    /// # Errors
    /// As [`Decoder::peek_header`]; [`WireError::TooShort`] for a body without room for its prefix.
    pub fn peek_run(&self, most: u32) -> Result<Option<Run>, WireError> {
        // A header read as one number; what all frames of a run have in common is the tag and the other flags.
        const ACK_NOW: u64 = (flags::ACK_NOW as u64) << 40;
        const SAME: u64 = 0x0000_ffff_0000_0000 & !ACK_NOW;
        let Some(first) = self.header_at(self.start)? else { return Ok(None) };
        if !first.has(flags::WHOLE) || first.has(flags::ASK) || first.tag & 0x0f != FrameType::Data as u8 {
            return Ok(None);
        }
        let Some(lane) = first.lane() else { return Err(WireError::BadLane(first.tag >> 4)) };
        let flag_bits = first.flags & !flags::ACK_NOW;
        let prefix = Prefix::len(flag_bits);
        let mut run = Run { lane, flags: flag_bits, prefix, frames: 0, bytes: 0, ack_now: false, expired: false };
        let same = u64::from_le_bytes(first.to_bytes()) & SAME;
        let bytes = self.pending();
        while let Some(header) = bytes.get(run.bytes..).and_then(|rest| rest.first_chunk::<HEADER>()) {
            let header = u64::from_le_bytes(*header);
            let length = header as u32 as usize;
            if header & SAME != same {
                break;
            }
            if length > self.limit {
                return Err(WireError::TooLong { length: length as u32, limit: self.limit });
            }
            if length < prefix {
                return Err(WireError::TooShort { length: length as u32 });
            }
            let after = run.bytes + HEADER + length;
            if after > bytes.len() {
                break;
            }
            if flag_bits & flags::EXPIRY != 0 {
                let expired = super::u32_at(bytes, run.bytes + HEADER)? == 0;
                if run.frames > 0 && run.expired != expired {
                    break;
                }
                run.expired = expired;
            }
            run.frames += 1;
            run.bytes = after;
            run.ack_now = header & ACK_NOW != 0;
            if run.frames == most || run.ack_now {
                break;
            }
        }
        Ok((run.frames > 0).then_some(run))
    }

    /// Consumes the bytes of a run and gives them back as they lay on the wire.
    pub fn take_run(&mut self, run: Run) -> &[u8] {
        let at = self.start;
        self.start = (self.start + run.bytes).min(self.end);
        &self.buffer[at..self.start]
    }

    #[inline]
    fn header_at(&self, at: usize) -> Result<Option<FrameHeader>, WireError> {
        let Some(bytes) = self.buffer[at..self.end].first_chunk::<HEADER>() else { return self.length_at(at) };
        let header = FrameHeader::from_bytes(*bytes);
        if header.length as usize > self.limit {
            return Err(WireError::TooLong { length: header.length, limit: self.limit });
        }
        Ok(Some(header))
    }

    /// There is no whole header yet; is there a length, and is it allowed? What another protocol says last may be
    /// shorter than a header: an alert of TLS is.
    #[cold]
    fn length_at(&self, at: usize) -> Result<Option<FrameHeader>, WireError> {
        match self.buffer[at..self.end].first_chunk().map(|bytes| u32::from_le_bytes(*bytes)) {
            Some(length) if length as usize > self.limit => Err(WireError::TooLong { length, limit: self.limit }),
            _ => Ok(None),
        }
    }
}
