//! What became of a message: the one outcome that each accepted message has.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: a message that was not handed over comes back with its payload and the reason.

use std::time::Duration;

pub use crate::error::ReturnReason;

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

/// How long a message took, from the send verb on; from its [`SendOptions::created_at`](crate::SendOptions::created_at)
/// on, if it has one.
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
