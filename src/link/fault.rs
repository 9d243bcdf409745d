//! What a peer can do wrong on a link, and why nothing is claimed.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: a fault of the peer ends its session, never the process.

/// How the other side broke the protocol of links. Ends the session, never the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's text says it")]
pub(crate) enum Fault {
    #[error("an acknowledgement of what was never sent, or one that takes another back")]
    AckedUnsent,
    #[error("number {came} where {expected} was to come")]
    WrongNumber { expected: u64, came: u64 },
    #[error("a numbered frame before its SEGMENT frame")]
    Unannounced,
    #[error("more bytes than were granted")]
    BeyondCredit,
    #[error("pieces of messages that do not fit together")]
    MixedPieces,
    #[error("an attach out of turn, or with an old epoch")]
    BadAttach,
    #[error("the link token is wrong")]
    BadToken,
}

/// Why nothing was claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoClaim {
    /// The session was replaced: drop what was read, end.
    Stale,
    /// An earlier session still delivers what it claimed: wait for it.
    Busy,
    /// The peer broke the protocol.
    Fault(Fault),
}

impl From<Fault> for NoClaim {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}
