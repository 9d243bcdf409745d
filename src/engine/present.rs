//! What holds in a running engine: its configuration, and which sockets listen for it.
//!
//! Owns: both. Threads: whoever reloads, one after the other. Locks: none itself; it is behind one of the engine's.
//! Blocks on: nothing.
//! Upholds: a listener's number is never given twice.

use std::net::SocketAddr;

use crate::config::{Config, Listening};
use crate::connections::ListenerId;

/// What holds now.
pub(super) struct Present {
    pub(super) config: Config,
    pub(super) sockets: Vec<(ListenerId, Listening)>,
    /// The next listener's number.
    pub(super) next_listener: usize,
    /// Connections that the system is asked to keep ready for each listener that there is or will be, for the self-check.
    pub(super) backlog: u64,
}

impl Present {
    /// A number for another listener.
    pub(super) fn next_id(&mut self) -> ListenerId {
        self.next_listener += 1;
        ListenerId(self.next_listener - 1)
    }

    /// Where it listens, in the order of the configuration.
    pub(super) fn local_addrs(&self) -> Vec<SocketAddr> {
        self.sockets.iter().map(|(_, socket)| socket.bound).collect()
    }
}
