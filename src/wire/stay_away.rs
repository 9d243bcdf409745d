//! How long the other side of a goodbye is asked to stay away, and how long it may ask us.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: what keeps one out keeps every other one out as long, at whichever stage of a connection it is told.

use std::time::Duration;

use crate::error::CloseReason;

/// Where handshakes are in the way: they last seconds.
pub(crate) const SOON: Duration = Duration::from_secs(1);
/// Where sessions are in the way: they last.
pub(crate) const LATER: Duration = Duration::from_secs(5);
/// The longest that another side can keep us away.
pub(super) const MOST: Duration = Duration::from_secs(60);

/// What the goodbye of a session asks for.
pub(crate) fn after(reason: CloseReason) -> Duration {
    match reason {
        // Whoever had to go for a limit is refused until somebody else goes.
        CloseReason::TooMany | CloseReason::NoResources => LATER,
        _ => Duration::ZERO,
    }
}
