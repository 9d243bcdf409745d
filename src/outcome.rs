//! What became of a message: the one outcome that each accepted message has.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: a message that was not handed over comes back with its payload and the reason.

use std::fmt;
use std::time::Duration;

use crate::error::RejectCause;

/// What became of an accepted message. Each has exactly one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// Handed over: the receiver's handler returned, or its application took it from the queue.
    Acknowledged(Timing),
    /// Best effort, by choice: written to the connection; nothing more will be known.
    Written(Timing),
    /// It was not handed over, and never will be. Send it again if it is still wanted.
    Returned {
        /// The message, as it was given.
        payload: Vec<u8>,
        /// Why.
        reason: ReturnReason,
    },
    /// It was written, at least in part, and nobody will answer for it any more: the resume window ended, the peer's
    /// process restarted twice, or it restarted once and rejected the repeat, or the connection of a best effort message
    /// failed. It may have been handed over.
    Unknown {
        /// The message, as it was given.
        payload: Vec<u8>,
    },
}

impl Outcome {
    /// Whether the message arrived, or was written where that was all that was asked for.
    pub fn is_success(&self) -> bool {
        matches!(self, Self::Acknowledged(_) | Self::Written(_))
    }

    /// The message, if it did not arrive.
    pub fn into_payload(self) -> Option<Vec<u8>> {
        match self {
            Self::Acknowledged(_) | Self::Written(_) => None,
            Self::Returned { payload, .. } | Self::Unknown { payload } => Some(payload),
        }
    }
}

/// How long a message took, from the send verb on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timing {
    /// Bytes of its payload.
    pub bytes: usize,
    /// It waited so long in the queue, until it was taken for the wire.
    pub queued_for: Duration,
    /// After so long all of it was written for the first time.
    pub written_after: Duration,
    /// After so long its acknowledgement came; of a best effort message as `written_after`.
    pub done_after: Duration,
}

/// Why a message came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReturnReason {
    /// The receiver took it and did not hand it over.
    Rejected(RejectCause),
    /// Its time was up before it was written.
    Expired,
    /// A newer message needed its place, and it had agreed to be dropped.
    DroppedOldest,
    /// There was no place for it, and it had agreed to be dropped.
    DroppedNewest,
    /// A newer message with the same key took its place.
    Replaced,
    /// The peer was not connected, and messages are not kept for peers that are away.
    Offline,
    /// It waited for a peer that did not become known in time, or others waited for more peers than may be.
    PeerUnknown,
    /// The peer was given up before it was written.
    GivenUp,
    /// The node shut down before it was written.
    ShutDown,
}

impl fmt::Display for ReturnReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rejected(cause) => return write!(f, "rejected by the receiver: {cause}"),
            Self::Expired => "expired before it was written",
            Self::DroppedOldest => "dropped for a newer message",
            Self::DroppedNewest => "dropped: the queue was full",
            Self::Replaced => "replaced by a newer message with the same key",
            Self::Offline => "the peer was not connected",
            Self::PeerUnknown => "the peer did not become known",
            Self::GivenUp => "the peer was given up",
            Self::ShutDown => "the node shut down",
        })
    }
}

/// How far a message has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// It waits to be written.
    Queued,
    /// All of it was written at least once.
    Written,
    /// Its outcome is there.
    Done,
}
