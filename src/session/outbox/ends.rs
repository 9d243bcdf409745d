//! What became of messages that waited, by class: the one place where they are counted.
//!
//! Owns: sums. Threads: whoever holds the outbox lock. Locks: none itself. Blocks on: nothing.
//! Upholds: a message that was appended is in one of the first two sums, or still waits.

use crate::metrics::Tally;

/// What became of messages that waited, by class.
#[derive(Debug, Default)]
pub(super) struct Ends {
    /// Taken for the wire.
    pub(super) taken: Tally,
    /// They came back before.
    pub(super) returned: Tally,
    /// Best effort messages that were written, and those of which that is not known.
    pub(super) written: Tally,
    pub(super) unknown: Tally,
}
