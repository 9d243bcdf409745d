//! Why a peer's sender, which dials it and keeps it connected, has stopped.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: a reason for each way in which a sender ends.

use std::fmt;

/// Why a peer's sender has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StopReason {
    /// Nobody wants the peer to be kept connected any longer: the application removed it.
    Removed,
    /// The peer is no longer in the map of peers.
    Vanished,
    /// The address it sent to is no longer one of the peer's: the next sender is at another one.
    Moved,
    /// The node, or the dispatcher of senders, shuts down.
    ShuttingDown,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Removed => "the peer was removed",
            Self::Vanished => "the peer is no longer in the map",
            Self::Moved => "the address is no longer the peer's",
            Self::ShuttingDown => "shutting down",
        })
    }
}
