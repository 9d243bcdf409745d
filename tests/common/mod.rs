//! What the integration tests share.

#![allow(dead_code, reason = "each test file uses some of it")]

use std::time::{Duration, Instant};

use threadwire::{Config, Node, NodeBuilder, PeerHandle};

/// How long a test waits for a fact that should come at once: liveness, with more than tenfold slack.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A builder for a node on a free port of the loopback interface, with a fresh identity.
pub fn loopback() -> NodeBuilder {
    Node::builder().config(Config::loopback())
}

/// Connects `from` to `to` and keeps them connected.
pub fn link(from: &Node, to: &Node) -> PeerHandle {
    from.add_peer(to.id(), to.local_addr()).unwrap();
    from.wait_connected(to.id(), PATIENCE).unwrap()
}

/// Waits for a fact.
#[track_caller]
pub fn wait_until(what: &str, mut fact: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !fact() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::yield_now();
    }
}
