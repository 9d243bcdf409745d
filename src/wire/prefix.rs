//! What stands in front of the payload of a DATA body: how long it may still take, which question it belongs to, how
//! long the whole is.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: the header's flags say how long the prefix is, so that a body too short for it is found before it is read.

use std::time::Duration;

use super::{FrameHeader, HEADER, WireError, flags};

/// The prefix of a DATA body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Prefix {
    /// Milliseconds until the message is no longer wanted.
    pub remaining: Option<u32>,
    /// Names a question: in the question itself, and in its answer.
    pub correlation: Option<u64>,
    /// Bytes of the whole message, in its first piece of several.
    pub total: Option<u64>,
}

impl Prefix {
    /// How many bytes the prefix of a frame with these flags takes.
    #[inline]
    pub const fn len(flag_bits: u8) -> usize {
        let several = flag_bits & flags::WHOLE == flags::FIRST;
        let remaining = if flag_bits & flags::EXPIRY != 0 { 4 } else { 0 };
        let correlation = if flag_bits & flags::CORRELATED != 0 { 8 } else { 0 };
        remaining + correlation + if several { 8 } else { 0 }
    }

    /// Reads the prefix of a body whose header has these flags; the payload follows after [`Prefix::len`] bytes.
    ///
    /// # Errors
    /// [`WireError::TooShort`]: the body ends before.
    pub fn read(flag_bits: u8, body: &[u8]) -> Result<Self, WireError> {
        let mut at = 0;
        let mut prefix = Self::default();
        if flag_bits & flags::EXPIRY != 0 {
            prefix.remaining = Some(super::u32_at(body, at)?);
            at += 4;
        }
        if flag_bits & flags::CORRELATED != 0 {
            prefix.correlation = Some(super::u64_at(body, at)?);
            at += 8;
        }
        if flag_bits & flags::WHOLE == flags::FIRST {
            prefix.total = Some(super::u64_at(body, at)?);
        }
        Ok(prefix)
    }

    /// Appends it; the frame's flags must say the same.
    pub fn put(&self, out: &mut Vec<u8>) {
        if let Some(remaining) = self.remaining {
            out.extend_from_slice(&remaining.to_le_bytes());
        }
        if let Some(correlation) = self.correlation {
            out.extend_from_slice(&correlation.to_le_bytes());
        }
        if let Some(total) = self.total {
            out.extend_from_slice(&total.to_le_bytes());
        }
    }
}

/// What a sender says of a message beside its bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Heading {
    /// The application's kind.
    pub kind: u16,
    /// Flags beside NUMBERED, FIRST and LAST.
    pub flags: u8,
    /// Names the question it is or answers; goes with [`flags::CORRELATED`].
    pub correlation: Option<u64>,
}

impl Heading {
    /// Of a message that is no question and no answer.
    pub const fn of_kind(kind: u16) -> Self {
        Self { kind, flags: 0, correlation: None }
    }

    /// Bytes in front of the payload of the frame, if it is one.
    pub const fn prefix_len(self) -> usize {
        Prefix::len(self.flags | flags::WHOLE)
    }
}

/// Remaining time as a frame says it: milliseconds, upwards, so that only what has expired says none.
pub fn remaining_ms(left: Duration) -> u32 {
    u32::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX)
}

/// A whole message in one frame, as it lies on the wire.
#[derive(Debug, Clone, Copy)]
pub struct Whole<'a> {
    /// Its header.
    pub header: FrameHeader,
    /// What its sender gave.
    pub payload: &'a [u8],
    /// Where its frame ends.
    pub end: usize,
}

impl<'a> Whole<'a> {
    /// The message whose frame begins at `at`, after a prefix of `prefix` bytes.
    #[inline]
    pub fn at(bytes: &'a [u8], at: usize, prefix: usize) -> Option<Self> {
        let rest = bytes.get(at..)?;
        let (header, rest) = rest.split_first_chunk::<HEADER>()?;
        let header = FrameHeader::from_bytes(*header);
        let length = header.length as usize;
        Some(Self { header, payload: rest.get(prefix..length)?, end: at + HEADER + length })
    }
}
