//! Shutting down: drain, say goodbye, end every thread, by a deadline.
//!
//! Owns: nothing. Threads: the application's. Locks: the registry lock, the link lock and the outbox lock, one at a time.
//! Blocks on: changes (acknowledgements are looked for every few milliseconds, ends of sessions wake), never beyond the
//! deadline.
//! Upholds: shutdown ends; what it left is named: messages per peer, threads that something still holds.
//!
//! Order: refuse messages -> wait until drained -> stop accepting and dialling -> goodbye to each session -> wait for
//! their ends -> close those that are late -> join all threads.

use std::time::{Duration, Instant};

use crate::error::CloseReason;
use crate::ident::PeerId;
use crate::node::Node;
use crate::session::{self, PeerHandle};

/// How often a draining link is looked at: acknowledgements come within the ack delay, five milliseconds.
const LOOK: Duration = Duration::from_millis(2);
/// Kept back from the deadline for goodbyes and joins, as a share of it.
const GOODBYE_SHARE: u32 = 4;

/// What a shutdown left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Peers with messages that were accepted and not acknowledged.
    pub undelivered: Vec<PeerReport>,
    /// Threads that still run: a handler, a policy or the system holds them.
    pub threads: Vec<String>,
}

/// What a shutdown left of one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerReport {
    /// The peer.
    pub peer: PeerId,
    /// Messages never written.
    pub unsent: u64,
    /// Messages written, and not acknowledged: the peer may have them or not.
    pub unknown: u64,
}

impl ShutdownReport {
    /// Whether everything was delivered and every thread has ended.
    pub fn is_clean(&self) -> bool {
        self.undelivered.is_empty() && self.threads.is_empty()
    }
}

/// Shuts `node` down.
pub(super) fn shut_down(node: &Node, deadline: Instant) -> ShutdownReport {
    let registry = &node.shared.registry;
    let links = registry.links();
    links.iter().for_each(|link| link.outbox.close());
    if session::in_handler() {
        // The handler's own thread is among those that would have to end.
        if let Some(connections) = node.connections.lock().as_ref() {
            connections.stop();
        }
        let sessions = registry.sessions(|entry| (entry.link.clone(), entry.session.clone()));
        sessions.iter().for_each(|(link, session)| session.say_goodbye(link, CloseReason::Shutdown));
        return ShutdownReport::default();
    }
    let Some(connections) = node.connections.lock().take() else { return ShutdownReport::default() };
    node.changes.happened();

    let share = deadline.saturating_duration_since(Instant::now()) / GOODBYE_SHARE;
    let drained_by = deadline - share;
    while Instant::now() < drained_by && links.iter().any(|link| !link.is_drained()) {
        node.changes.wait(node.changes.count(), (Instant::now() + LOOK).min(drained_by));
    }

    registry.close();
    connections.stop();
    let goodbye_by = deadline - share / 2;
    loop {
        let seen = node.changes.count();
        let sessions = registry.sessions(|entry| (entry.link.clone(), entry.session.clone()));
        if sessions.is_empty() || Instant::now() >= goodbye_by {
            break;
        }
        // Asked again, a session stays with the first ask; one that began meanwhile is asked now.
        sessions.iter().for_each(|(link, session)| session.say_goodbye(link, CloseReason::Shutdown));
        node.changes.wait(seen, goodbye_by.min(Instant::now() + LOOK * 25));
    }
    let mut threads = Vec::new();
    for (link, session) in registry.sessions(|entry| (entry.link.clone(), entry.session.clone())) {
        session.close(&link, CloseReason::Shutdown);
        if let Some(entry) = wait_for_end(node, session.conn, deadline - share / 4) {
            for thread in entry.threads {
                if let Err(thread) = thread.join_until(Instant::now()) {
                    threads.push(thread.name().to_owned());
                }
            }
        }
    }
    threads.extend(connections.join(deadline));
    if let Some(inlet) = &node.inlet {
        inlet.end();
    }
    node.changes.happened();
    let undelivered = links.into_iter().filter_map(|link| {
        let stats = PeerHandle::new(link.clone()).stats();
        let left = stats.accepted - stats.acked - stats.returned - stats.unknown;
        let unsent = (stats.queued_messages as u64).min(left);
        (left > 0).then(|| PeerReport { peer: link.id, unsent, unknown: left - unsent })
    });
    ShutdownReport { undelivered: undelivered.collect(), threads }
}

/// Waits for a closed session's end; one that does not end is taken out, with its threads.
fn wait_for_end(node: &Node, conn: crate::ident::ConnectionId, deadline: Instant) -> Option<crate::registry::Entry> {
    let registry = &node.shared.registry;
    loop {
        let seen = node.changes.count();
        registry.session(conn, |_| ())?;
        if Instant::now() >= deadline {
            return registry.unregister(conn);
        }
        node.changes.wait(seen, deadline);
    }
}
