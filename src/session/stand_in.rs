//! What a link has that stands for an address: where messages wait for whoever proves itself there.
//!
//! Owns: who has, as long as that holds. Threads: callers of send verbs, `supervisor`. Locks: its own, held by
//! `session::binding` alone. Blocks on: nothing.
//! Upholds: of those who find that somebody should dial, one asks.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};

/// An address, and the link of who has proven itself there.
#[derive(Debug)]
pub(crate) struct StandIn<L> {
    pub(super) addr: SocketAddr,
    /// While it is connected.
    pub(super) bound: Mutex<Option<Arc<L>>>,
    /// The supervisor was asked to dial, and has not let go.
    asked: AtomicBool,
}

impl<L> StandIn<L> {
    /// For an address where nobody has proven itself.
    pub(super) fn new(addr: SocketAddr) -> Self {
        Self { addr, bound: Mutex::new(None), asked: AtomicBool::new(false) }
    }

    /// Whether the supervisor is to be asked to dial: the first one who asks does.
    pub(super) fn ask_once(&self) -> bool {
        !self.asked.swap(true, Ordering::SeqCst)
    }

    /// The supervisor lets go: the next one asks again.
    pub(super) fn ask_anew(&self) {
        self.asked.store(false, Ordering::SeqCst);
    }
}
