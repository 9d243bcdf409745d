//! Why two sides do not come together, for those who only see an [`io::Error`].
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: whoever refused, and why, survives the way through `io::Result`.

use std::fmt;
use std::io;

use crate::error::CloseReason;

/// A refusal in a transport's own words, inside an [`io::Error`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// We refuse the other side.
    Rejected(CloseReason, String),
    /// The other side refuses us. Not proven: anybody on the way could say so, or cut the connection.
    Refused(CloseReason, String),
    /// The stream was cut: it ended without the other side's word that this is its end.
    Truncated,
}

impl Fault {
    /// The refusal in an error, if it is one.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected(reason, text) => write!(f, "refused here: {reason}: {text}"),
            Self::Refused(reason, text) => write!(f, "refused by the other side: {reason}: {text}"),
            Self::Truncated => f.write_str("the stream was cut before its end"),
        }
    }
}

impl std::error::Error for Fault {}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        let kind = match fault {
            Fault::Rejected(..) => io::ErrorKind::InvalidData,
            Fault::Refused(..) => io::ErrorKind::ConnectionRefused,
            Fault::Truncated => io::ErrorKind::ConnectionAborted,
        };
        Self::new(kind, fault)
    }
}
