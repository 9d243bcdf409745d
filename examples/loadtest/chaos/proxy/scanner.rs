//! Reads along with one direction of a connection, in the way that the run's connections allow: frame by frame, or by
//! the records of TLS, which hide the frames.
//!
//! Owns: what one direction's reader owns. Threads: the proxy's. Locks: none. Blocks on: nothing.
//! Upholds: it never changes a byte, and takes any bytes without a panic.

use super::frames::Frames;
use super::records::Records;
use crate::chaos::plan::{LinkFault, Way};

/// One direction.
#[derive(Debug)]
pub enum Scanner {
    /// Of a plain connection.
    Frames(Box<Frames>),
    /// Of one over TLS.
    Records(Box<Records>),
}

impl Scanner {
    /// Of a direction of a connection over TLS, or of a plain one.
    pub fn new(secure: bool, way: Way) -> Self {
        if secure { Self::Records(Box::new(Records::new(way))) } else { Self::Frames(Box::default()) }
    }

    /// From now on looks for the place of this fault.
    pub fn look_for(&mut self, fault: &LinkFault) {
        match self {
            Self::Frames(frames) => frames.wish.look_for(fault),
            Self::Records(records) => records.wish.look_for(fault),
        }
    }

    /// The byte, counted from the first one, that is not to pass.
    pub fn cut(&self) -> Option<u64> {
        match self {
            Self::Frames(frames) => frames.wish.cut(),
            Self::Records(records) => records.wish.cut(),
        }
    }

    /// That byte may pass after all.
    pub fn go_on(&mut self) {
        match self {
            Self::Frames(frames) => frames.wish.fulfilled(),
            Self::Records(records) => records.wish.fulfilled(),
        }
    }

    /// Whether this side has attached, as far as can be seen.
    pub fn attached(&self) -> bool {
        match self {
            Self::Frames(frames) => frames.attached(),
            Self::Records(records) => records.attached(),
        }
    }

    /// Messages that were seen here and cannot have been answered: numbered frames, or records of messages.
    pub fn in_flight(&self) -> u64 {
        match self {
            Self::Frames(frames) => frames.in_flight(),
            Self::Records(records) => records.in_flight(),
        }
    }

    /// Takes in what was seen in the other direction.
    pub fn learn(&mut self, other: &Self) {
        match (self, other) {
            (Self::Frames(frames), Self::Frames(other)) => frames.learn(other),
            (Self::Records(records), Self::Records(other)) => records.learn(other),
            // Both directions of a connection are read in one way.
            _ => {}
        }
    }

    /// Takes the next bytes in.
    pub fn scan(&mut self, bytes: &[u8]) {
        match self {
            Self::Frames(frames) => frames.scan(bytes),
            Self::Records(records) => records.scan(bytes),
        }
    }
}
