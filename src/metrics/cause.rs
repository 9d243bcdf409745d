//! What is counted by: causes, each with a small number and a name.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: a cause is an integer where it is counted, and a text only where somebody reads it.

use crate::error::{CloseReason, DialCause, RejectCause};
use crate::ident::SessionKind;

/// What is counted by: a closed set of causes, each with a small number and a name.
pub trait Cause: Copy + 'static {
    /// All causes that have a name of their own.
    const ALL: &'static [Self];
    /// Every index is below it.
    const LEN: usize;

    /// Its place in a table.
    fn index(self) -> usize;

    /// Its name in a snapshot, as `handshake_timeout`.
    fn name(self) -> String;
}

/// `HandshakeTimeout` as `handshake_timeout`.
fn snake(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for (at, letter) in name.char_indices() {
        if letter.is_ascii_uppercase() && at > 0 {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

/// Reasons that cross the wire: index 0 is for those of newer versions.
macro_rules! wire_causes {
    ($($name:ident)*) => { $(
        impl Cause for $name {
            const ALL: &'static [Self] = Self::ALL;
            const LEN: usize = Self::HIGHEST as usize + 1;

            fn index(self) -> usize {
                if let Self::Other(_) = self { 0 } else { usize::from(self.code()) }
            }

            fn name(self) -> String {
                snake(self.name())
            }
        }
    )* };
}

wire_causes! { CloseReason RejectCause }

/// Enums without fields.
macro_rules! plain_causes {
    ($($name:ident { $($variant:ident)* })*) => { $(
        impl Cause for $name {
            const ALL: &'static [Self] = &[$(Self::$variant,)*];
            const LEN: usize = Self::ALL.len();

            fn index(self) -> usize {
                self as usize
            }

            fn name(self) -> String {
                snake(match self { $(Self::$variant => stringify!($variant),)* })
            }
        }
    )* };
}

/// Why an accepted connection was closed before its handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Refusal {
    /// As many inbound connections as `inbound` allows, and none of them unproven.
    Inbound,
    /// As many unproven connections of one address as `half_open_per_ip` allows.
    HalfOpenPerIp,
    /// As many connections of one address as `inbound_per_ip` allows.
    InboundPerIp,
    /// The thread budget is used up, and by no unproven connection.
    Threads,
    /// The node is shutting down.
    ShuttingDown,
    /// The system gave no randomness.
    NoRandomness,
}

/// Why a connection could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConnectFailure {
    /// Nobody listens there.
    Refused,
    /// There is no way to that machine or network.
    Unreachable,
    /// No answer within `connect_timeout`.
    TimedOut,
    /// The node is shutting down.
    ShuttingDown,
    /// Something else of the system.
    Other,
}

/// Why a connection to the metrics endpoint ended without the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ScrapeFailure {
    /// As many connections as the endpoint takes were open: closed for a newcomer, as the one that had not asked for
    /// longest; or the newcomer, where all had asked.
    TooMany,
    /// It could not be accepted: it was gone, or the system is out of something.
    NotAccepted,
    /// What came is no HTTP request (400), or of a version that is not spoken (505).
    BadRequest,
    /// It asked for something else (404).
    NotFound,
    /// Neither GET nor HEAD (405).
    NotAllowed,
    /// The request's head is longer than 8 KiB (431).
    TooLarge,
    /// The request was not whole within 2 s.
    SlowRequest,
    /// The answer was not taken within 5 s.
    SlowReader,
    /// The other side went away, or the connection failed.
    Lost,
    /// The node was shut down.
    ShuttingDown,
}

plain_causes! {
    Refusal { Inbound HalfOpenPerIp InboundPerIp Threads ShuttingDown NoRandomness }
    ConnectFailure { Refused Unreachable TimedOut ShuttingDown Other }
    SessionKind { Inbound Outbound }
    ScrapeFailure {
        TooMany NotAccepted BadRequest NotFound NotAllowed TooLarge SlowRequest SlowReader Lost ShuttingDown
    }
}

impl ConnectFailure {
    /// What counts for a dial that failed before its handshake.
    pub(super) fn of(cause: &DialCause) -> Self {
        use std::io::ErrorKind;
        match cause {
            DialCause::Io(ErrorKind::ConnectionRefused) => Self::Refused,
            DialCause::Io(ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable) => Self::Unreachable,
            DialCause::Io(ErrorKind::TimedOut) | DialCause::TimedOut(_) => Self::TimedOut,
            DialCause::ShuttingDown => Self::ShuttingDown,
            _ => Self::Other,
        }
    }
}
