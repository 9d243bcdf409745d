//! How a message is to be sent.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: a priority is a lane of its own, so that what is urgent waits for nothing else.

use crate::wire::Lane;

/// How urgent a message is. Messages of one priority keep their order; those of a higher one overtake.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Ahead of everything but answers.
    Urgent,
    /// The default.
    #[default]
    Normal,
    /// Behind everything else: big things that can wait.
    Bulk,
}

impl Priority {
    /// The lane it travels on.
    pub(crate) const fn lane(self) -> Lane {
        match self {
            Self::Urgent => Lane::Urgent,
            Self::Normal => Lane::Normal,
            Self::Bulk => Lane::Bulk,
        }
    }
}
