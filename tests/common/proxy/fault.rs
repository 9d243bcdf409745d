//! What may be planned to happen to a connection.

use std::time::Duration;

use threadwire::wire::FrameType;

/// One way through a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the side that dialled the proxy to its target.
    Up = 0,
    /// From the target.
    Down = 1,
}

/// From a dripping stream, one byte passes in this time.
pub const DRIP: Duration = Duration::from_millis(100);

/// Where in one direction a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// When exactly so many bytes have passed.
    After(u64),
    /// When so many bytes of the `nth` frame of this type (from 0; header included) have passed.
    Inside(FrameType, u32, usize),
}

/// What strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// Both sockets are reset: what is under way in either direction is gone.
    Cut,
    /// The stream ends in this direction, the other one goes on.
    HalfClose,
    /// Nothing passes any more in either direction, and nobody is told.
    Stall,
    /// A byte each [`DRIP`] passes in this direction, the other one goes on.
    Drip,
}

/// What happens to one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    pub way: Way,
    pub place: Place,
    pub harm: Harm,
}

impl Fault {
    /// A cut.
    pub fn cut(way: Way, place: Place) -> Self {
        Self { way, place, harm: Harm::Cut }
    }
}
