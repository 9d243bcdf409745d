//! The wire: how frames lie in a byte stream. This table is the specification.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: a length is checked against the limit of the state it arrives in before anything is reserved for it.
//!
//! ```text
//!  byte 0        4          5       6          8
//!       +--------+----+-----+-------+----------+------------------ - -
//!       | length |lane|frame| flags | kind     | body, `length` bytes
//!       | u32    | hi | lo  | u8    | u16      |
//!       +--------+----+-----+-------+----------+------------------ - -
//!       all integers little endian; lane and frame are the high and low four bits of byte 4
//!
//!  frame      body                                                  travels
//!  0 DATA     [remaining ms u32, if EXPIRY] [question u64, if       numbered, or best effort; kind is the
//!             CORRELATED] [total u64, if FIRST and not LAST]        application's
//!             payload
//!  1 SEGMENT  first u64, base u64                                   before each run of numbered frames of a lane
//!  2 ACK      bincode Ack                                           control
//!  3 ATTACH   bincode Attach                                        control, once per session and side
//!  4 HELLO    bincode Hello, later fields may follow                handshake
//!  5 CONFIRM  bincode Confirm (over TLS without a signature)        handshake
//!  6 GOODBYE  bincode Goodbye                                       handshake (a refusal) or control, last frame
//!  7 BEAT     busy u8 [clock u64, heard u64, delay u64]             control
//!  8 SKIP     count u64: so many numbers will never be sent         numbered (it stands for all of them)
//!  9 ABORT    empty: the big message under way on this lane ends    numbered
//! 10 ALIVE    busy u8; kind is the number of a question, or 0       control
//!
//!  flag 0x01 NUMBERED   takes the next number of its lane
//!       0x02 FIRST      first piece of a message        (a whole message is FIRST and LAST)
//!       0x04 LAST       last piece of a message
//!       0x08 EXPIRY     the body starts with the remaining time
//!       0x10 ACK_NOW    somebody waits for this acknowledgement
//!       0x20 ASK        of an ALIVE: a question; answer at once by an ALIVE of the same kind without this flag
//!       0x40 CORRELATED on the reply lane the answer to a question of that number, on any other lane the question
//!       0x80 FAILED     of an answer: there is none, and kind says why: 0 nobody answered, 0xffff the application, by
//!                       the u16 in the payload; else the cause that an acknowledgement would give
//!
//!  lane 0 control  1 reply  2 urgent  3 normal  4 bulk
//! ```
//!
//! A payload of more than [`MAX_PIECE`] bytes travels in pieces of that size. Whoever has not sent a whole frame within the
//! receiver's `idle_timeout` is cut, however many bytes of one came: that is the least rate of a session, [`HEADER`] +
//! [`MAX_BODY`] bytes in that time while a longest frame is under way. A control frame of an unknown type is
//! skipped; an unknown frame that is NUMBERED counts as received. Bodies other than DATA, SEGMENT, BEAT, SKIP, ABORT
//! and ALIVE are bincode 1.3 (fixed-width integers, limited, trailing bytes refused except after a hello).

mod body;
mod decoder;
mod prefix;
pub(crate) mod stay_away;

pub use body::{
    Ack, Attach, Confirm, Goodbye, Hello, LaneAttach, MAGIC, Rejection, VERSION_MAX, VERSION_MIN, decode,
    decode_payload, decode_prefix, encode, encode_payload, put_body,
};
pub use decoder::{Decoder, Frame, Run};
pub use prefix::{Heading, Prefix, Whole, remaining_ms};

/// Bytes of a frame header.
pub const HEADER: usize = 8;
/// The most payload bytes one DATA frame carries.
pub const MAX_PIECE: usize = 64 * 1024;
/// The most bytes in front of the payload in a DATA body: remaining time, question and total.
pub const MAX_PREFIX: usize = 20;
/// The longest body after the handshake.
pub const MAX_BODY: usize = MAX_PIECE + MAX_PREFIX;
/// The longest body during the handshake.
pub const MAX_HANDSHAKE_BODY: usize = 16 * 1024;
/// Lanes that carry application frames.
pub const LANES: usize = 4;

/// What a frame is: the low four bits of byte 4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "the table at the top of this module says what each is")]
pub enum FrameType {
    Data = 0,
    Segment = 1,
    Ack = 2,
    Attach = 3,
    Hello = 4,
    Confirm = 5,
    Goodbye = 6,
    Beat = 7,
    Skip = 8,
    Abort = 9,
    Alive = 10,
}

impl FrameType {
    /// The type with this number, if this version knows it.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Data,
            1 => Self::Segment,
            2 => Self::Ack,
            3 => Self::Attach,
            4 => Self::Hello,
            5 => Self::Confirm,
            6 => Self::Goodbye,
            7 => Self::Beat,
            8 => Self::Skip,
            9 => Self::Abort,
            10 => Self::Alive,
            _ => return None,
        })
    }
}

/// A number space of a link; the high four bits of byte 4. Written in this order when several have something to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Lane {
    /// Answers; never blocks, because the question's credit pays for it.
    Reply = 1,
    /// Ahead of what is not urgent.
    Urgent = 2,
    /// The default.
    Normal = 3,
    /// Behind everything else.
    Bulk = 4,
}

impl Lane {
    /// All application lanes, most urgent first.
    pub const ALL: [Lane; LANES] = [Lane::Reply, Lane::Urgent, Lane::Normal, Lane::Bulk];

    /// Position in tables with a row for each application lane.
    pub const fn index(self) -> usize {
        self as usize - 1
    }

    /// The application lane with this number.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            1 => Self::Reply,
            2 => Self::Urgent,
            3 => Self::Normal,
            4 => Self::Bulk,
            _ => return None,
        })
    }
}

/// Flag bits; see the table at the top of this module.
pub mod flags {
    /// No flag.
    pub const NONE: u8 = 0;
    /// Takes the next number of its lane.
    pub const NUMBERED: u8 = 0x01;
    /// First piece of a message.
    pub const FIRST: u8 = 0x02;
    /// Last piece of a message.
    pub const LAST: u8 = 0x04;
    /// The body starts with the remaining time in milliseconds.
    pub const EXPIRY: u8 = 0x08;
    /// Somebody waits for this acknowledgement.
    pub const ACK_NOW: u8 = 0x10;
    /// Of an ALIVE: a question.
    pub const ASK: u8 = 0x20;
    /// A question, or the answer to one: its number follows the remaining time.
    pub const CORRELATED: u8 = 0x40;
    /// Of an answer: there is none.
    pub const FAILED: u8 = 0x80;
    /// A whole message in one frame.
    pub const WHOLE: u8 = FIRST | LAST;
}

/// What the kind of a FAILED answer says, beside the codes of `error::RejectCause`.
pub mod failed {
    /// The question was dropped without an answer.
    pub const NO_ANSWER: u16 = 0;
    /// The application says so; its code is the payload, a u16.
    pub const APPLICATION: u16 = 0xffff;
}

/// The eight bytes in front of every body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Bytes of the body.
    pub length: u32,
    /// Lane in the high four bits, frame type in the low four.
    pub tag: u8,
    /// Flag bits.
    pub flags: u8,
    /// The application's kind of message; 0 in library frames.
    pub kind: u16,
}

impl FrameHeader {
    /// A header for a frame of an application lane.
    pub const fn on_lane(frame: FrameType, lane: Lane, flags: u8, kind: u16, length: u32) -> Self {
        Self { length, tag: (lane as u8) << 4 | frame as u8, flags, kind }
    }

    /// A header for a control frame.
    pub const fn control(frame: FrameType, length: u32) -> Self {
        Self { length, tag: frame as u8, flags: 0, kind: 0 }
    }

    /// The frame type, if this version knows it.
    pub const fn frame_type(self) -> Option<FrameType> {
        FrameType::from_bits(self.tag & 0x0f)
    }

    /// The application lane, if it is one.
    pub const fn lane(self) -> Option<Lane> {
        Lane::from_bits(self.tag >> 4)
    }

    /// Whether all bits of `flag` are set.
    pub const fn has(self, flag: u8) -> bool {
        self.flags & flag == flag
    }

    /// The bytes on the wire.
    #[inline]
    pub const fn to_bytes(self) -> [u8; HEADER] {
        let length = self.length.to_le_bytes();
        let kind = self.kind.to_le_bytes();
        [length[0], length[1], length[2], length[3], self.tag, self.flags, kind[0], kind[1]]
    }

    /// Reads the bytes of [`FrameHeader::to_bytes`].
    #[inline]
    pub const fn from_bytes(b: [u8; HEADER]) -> Self {
        Self {
            length: u32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            tag: b[4],
            flags: b[5],
            kind: u16::from_le_bytes([b[6], b[7]]),
        }
    }
}

/// What is wrong with the bytes of a peer. Every one of them ends the session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// A frame declares a longer body than this state allows.
    #[error("a frame of {length} bytes where {limit} are allowed")]
    TooLong {
        /// Bytes declared.
        length: u32,
        /// Bytes allowed.
        limit: usize,
    },
    /// A frame's body is shorter than its type needs.
    #[error("a body of {length} bytes is too short for its frame")]
    TooShort {
        /// Bytes declared.
        length: u32,
    },
    /// A numbered frame names no application lane.
    #[error("no such lane: {0}")]
    BadLane(u8),
    /// The body of a library message does not decode.
    #[error("the body of a library message does not decode: {0}")]
    BadBody(String),
    /// A frame that has no place in this state.
    #[error("a frame of type {0} where none is expected")]
    Unexpected(u8),
}

/// Appends a SEGMENT frame: the next numbered frame of `lane` is number `first`, the sender keeps all from `base` on.
#[inline]
pub fn put_segment(out: &mut Vec<u8>, lane: Lane, first: u64, base: u64) {
    out.extend_from_slice(&FrameHeader::on_lane(FrameType::Segment, lane, 0, 0, 16).to_bytes());
    out.extend_from_slice(&first.to_le_bytes());
    out.extend_from_slice(&base.to_le_bytes());
}

/// Sign of life, with what the other side needs to learn the round trip. Clocks count microseconds, each side's from a
/// moment of its own; 0 is no time. An old peer's body ends before the clocks, a newer one's may go on after them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Beat {
    /// The sender runs a message handler.
    pub busy: bool,
    /// The sender's clock.
    pub clock: u64,
    /// The receiver's clock, as its last beat said it.
    pub heard: u64,
    /// Microseconds since that beat came.
    pub delay: u64,
}

impl Beat {
    /// From the body of a BEAT frame; what it does not say is 0.
    pub fn from_body(body: &[u8]) -> Self {
        let clock = |at| u64_at(body, at).unwrap_or_default();
        Self { busy: body.first().is_some_and(|busy| *busy != 0), clock: clock(1), heard: clock(9), delay: clock(17) }
    }
}

/// Appends a BEAT frame.
pub fn put_beat(out: &mut Vec<u8>, beat: &Beat) {
    out.extend_from_slice(&FrameHeader::control(FrameType::Beat, 25).to_bytes());
    out.push(u8::from(beat.busy));
    for clock in [beat.clock, beat.heard, beat.delay] {
        out.extend_from_slice(&clock.to_le_bytes());
    }
}

/// Appends an ALIVE frame: with [`flags::ASK`] question number `question`, else its answer; 0 says only whether a handler
/// is running.
pub fn put_alive(out: &mut Vec<u8>, busy: bool, flags: u8, question: u16) {
    let header = FrameHeader { flags, kind: question, ..FrameHeader::control(FrameType::Alive, 1) };
    out.extend_from_slice(&header.to_bytes());
    out.push(u8::from(busy));
}

/// Reads a little-endian u64 at `at`.
///
/// # Errors
/// [`WireError::TooShort`]: the body ends before.
#[inline]
pub fn u64_at(body: &[u8], at: usize) -> Result<u64, WireError> {
    match body.get(at..at + 8).and_then(|bytes| <[u8; 8]>::try_from(bytes).ok()) {
        Some(bytes) => Ok(u64::from_le_bytes(bytes)),
        None => Err(WireError::TooShort { length: body.len() as u32 }),
    }
}

/// Reads a little-endian u32 at `at`.
///
/// # Errors
/// [`WireError::TooShort`]: the body ends before.
#[inline]
pub fn u32_at(body: &[u8], at: usize) -> Result<u32, WireError> {
    match body.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()) {
        Some(bytes) => Ok(u32::from_le_bytes(bytes)),
        None => Err(WireError::TooShort { length: body.len() as u32 }),
    }
}

#[cfg(test)]
mod tests;
