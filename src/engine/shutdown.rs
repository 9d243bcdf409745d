//! Shutting down: drain, say goodbye, end every thread, by a deadline.
//!
//! Owns: how far the shutdown is, and what it left. Threads: the application's, or `shutdown` when a handler or the
//! application's own signal asked. Locks: the registry lock, the link lock and the outbox lock, one at a time; its own, a
//! leaf. Blocks on: changes (acknowledgements are looked for every few milliseconds, ends of sessions wake), never beyond
//! the deadline; the application's signal, until the node ends.
//! Upholds: shutdown happens once and ends; everybody who asks gets its one report; what it left is named: messages per
//! peer, threads that something still holds.
//!
//! Order: refuse messages -> wait until drained -> stop accepting, dialling and serving metrics -> goodbye to each session -> wait for
//! their ends -> close those that are late -> join all threads.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};

use crate::connections::{Connections, Shared};
use crate::engine::events::Changes;
use crate::engine::inlet::Inlet;
use crate::error::{CloseReason, RequestError};
use crate::exposition::Exposition;
use crate::ident::{ConnectionId, PeerId};
use crate::registry::Entry;
use crate::session;
use crate::sync::{Mutex, deadline_in};
use crate::threads;

/// How often a draining link is looked at: acknowledgements come within the ack delay, five milliseconds.
const LOOK: Duration = Duration::from_millis(2);
/// Kept back from the deadline for goodbyes and joins, as a share of it.
const GOODBYE_SHARE: u32 = 4;

/// Stack of the thread that shuts down for others.
const STACK: usize = 256 * 1024;

/// What a shutdown left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Whether the shutdown is over. If not, it goes on without whoever asked (a handler, or a second caller whose own
    /// deadline came first), and the rest of this report is empty; see [`Node::wait_shutdown`](crate::Node::wait_shutdown).
    pub finished: bool,
    /// Peers that acknowledged every message that was accepted for them, and those that were sent none.
    pub drained: Vec<PeerId>,
    /// Peers with messages that were accepted and not acknowledged.
    pub undelivered: Vec<PeerReport>,
    /// Threads that still run, by name: a handler holds `rx-<peer>`, a handshake policy `work-<n>`, the system's resolver
    /// `resolve-<n>`. They end when what holds them returns.
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
    /// Whether the shutdown is over, everything was delivered and every thread has ended.
    pub fn is_clean(&self) -> bool {
        self.finished && self.undelivered.is_empty() && self.threads.is_empty()
    }
}

/// How far the shutdown of a node is.
#[derive(Debug)]
pub(crate) struct Ending {
    phase: Mutex<Phase>,
    /// Disconnects when the shutdown is over.
    over: Mutex<Option<Sender<()>>>,
    ended: Receiver<()>,
}

#[derive(Debug)]
enum Phase {
    Running,
    Begun,
    Over(ShutdownReport),
}

impl Ending {
    /// Nobody has asked yet.
    pub(super) fn new() -> Self {
        let (over, ended) = bounded(0);
        Self { phase: Mutex::new(Phase::Running), over: Mutex::new(Some(over)), ended }
    }

    /// Whether somebody has asked.
    pub(crate) fn has_begun(&self) -> bool {
        !matches!(*self.phase.lock(), Phase::Running)
    }

    /// True for the first who asks.
    fn begin(&self) -> bool {
        let mut phase = self.phase.lock();
        let first = matches!(*phase, Phase::Running);
        if first {
            *phase = Phase::Begun;
        }
        first
    }

    fn end(&self, report: ShutdownReport) {
        *self.phase.lock() = Phase::Over(report);
        self.over.lock().take();
    }

    /// What it left, once it is over.
    pub(crate) fn report(&self) -> Option<ShutdownReport> {
        if let Phase::Over(report) = &*self.phase.lock() { Some(report.clone()) } else { None }
    }

    /// Waits until it is over.
    pub(crate) fn wait(&self, deadline: Instant) -> Option<ShutdownReport> {
        // Nothing is ever sent: it disconnects.
        let _ = self.ended.recv_deadline(deadline);
        self.report()
    }
}

/// The parts of a node that a shutdown ends.
#[derive(Clone)]
pub(crate) struct Closing {
    pub(crate) shared: Arc<Shared>,
    pub(crate) connections: Arc<Mutex<Option<Connections>>>,
    pub(crate) endpoint: Arc<Mutex<Option<Exposition>>>,
    pub(crate) inlet: Option<Arc<Inlet>>,
    pub(crate) changes: Arc<Changes>,
    pub(crate) ending: Arc<Ending>,
}

/// Shuts the node down when `signal` fires or disconnects; `time` is what it may take from then on.
///
/// # Errors
/// The system refused a thread.
pub(crate) fn shut_down_on(node: Closing, signal: Receiver<()>, time: Duration) -> io::Result<()> {
    let wait = move || {
        let ended = node.ending.ended.clone();
        select! {
            recv(signal) -> _ => drop(shut_down(&node, deadline_in(time))),
            recv(ended) -> _ => {}
        }
    };
    // It ends with the node.
    threads::spawn("shutdown", "", STACK, wait).map(drop)
}

/// Shuts a node down.
pub(crate) fn shut_down(node: &Closing, deadline: Instant) -> ShutdownReport {
    if node.ending.begin() {
        let time = deadline.saturating_duration_since(Instant::now());
        log::info!(target: "threadwire::node", "{}: shutting down within {time:?}", node.shared.me.short());
    }
    node.shared.registry.links().iter().for_each(|link| link.outbox.close());
    node.changes.happened();
    if session::in_handler() {
        // The handler's own thread is among those that have to end: another one sees to it.
        let others = node.clone();
        let begun = threads::spawn("shutdown", "", STACK, move || drop(shut_down(&others, deadline)));
        if let Err(error) = begun {
            log::warn!(target: "threadwire::node", "{}: shutting down without a drain: {error}", node.shared.me.short());
            part(node);
        }
        return node.ending.report().unwrap_or_default();
    }
    let Some(connections) = node.connections.lock().take() else {
        return node.ending.wait(deadline).unwrap_or_default();
    };
    let report = run(node, connections, deadline);
    tell(node, &report);
    node.ending.end(report.clone());
    node.changes.happened();
    report
}

/// Stops accepting and dialling, and asks every session to say goodbye.
fn part(node: &Closing) {
    if let Some(connections) = node.connections.lock().as_ref() {
        connections.stop();
    }
    say_goodbye(node);
}

/// Asks every session to say goodbye. Asked again, a session stays with the first ask.
fn say_goodbye(node: &Closing) -> usize {
    let sessions = node.shared.registry.sessions(|entry| (entry.link.clone(), entry.session.clone()));
    sessions.iter().for_each(|(link, session)| session.say_goodbye(link, CloseReason::Shutdown));
    sessions.len()
}

/// The shutdown itself.
fn run(node: &Closing, connections: Connections, deadline: Instant) -> ShutdownReport {
    let registry = &node.shared.registry;
    node.changes.happened();
    let share = deadline.saturating_duration_since(Instant::now()) / GOODBYE_SHARE;
    let drained_by = deadline - share;
    let links = registry.links();
    while Instant::now() < drained_by && links.iter().any(|link| !link.is_drained()) {
        node.changes.wait(node.changes.count(), (Instant::now() + LOOK).min(drained_by));
    }

    registry.close();
    connections.stop();
    // Until here whoever drains can be watched. It waits for no client, so that the wait for its thread is none.
    let endpoint = node.endpoint.lock().take();
    let held = endpoint.and_then(|endpoint| endpoint.join(deadline - share / 2));
    // With those of peers that came meanwhile.
    let mut links = registry.links();
    for link in &links {
        link.outbox.close();
        link.requests.close();
    }
    let goodbye_by = deadline - share / 2;
    loop {
        let seen = node.changes.count();
        // One that began meanwhile is asked now.
        if say_goodbye(node) == 0 || Instant::now() >= goodbye_by {
            break;
        }
        node.changes.wait(seen, goodbye_by.min(Instant::now() + LOOK * 25));
    }
    // All are closed before one is waited for: a thread that is held takes no time from the others.
    let late = registry.sessions(|entry| (entry.link.clone(), entry.session.clone()));
    late.iter().for_each(|(link, session)| session.close(link, CloseReason::Shutdown));
    let mut threads: Vec<String> = held.into_iter().collect();
    for (_, session) in late {
        let Some(entry) = wait_for_end(node, session.conn, deadline - share / 4) else { continue };
        for thread in entry.threads {
            if let Err(thread) = thread.join_until(deadline - share / 8) {
                threads.push(thread.name().to_owned());
            }
        }
    }
    threads.extend(connections.join(deadline));
    if let Some(inlet) = &node.inlet {
        inlet.end();
    }
    let mut left = Vec::new();
    links.sort_by_key(|link| link.id);
    // What is left ends here, and its senders hear of it.
    for link in &links {
        let (_, state) = node.shared.secrets.next();
        left.push(link.end(state));
        link.requests.lose_all(&RequestError::ShuttingDown);
    }
    let mut report = ShutdownReport { finished: true, threads, ..ShutdownReport::default() };
    for (link, (unsent, unknown)) in links.into_iter().zip(left) {
        if unsent + unknown > 0 {
            report.undelivered.push(PeerReport { peer: link.id, unsent, unknown });
        } else {
            report.drained.push(link.id);
        }
    }
    report
}

/// One line about what a shutdown left.
fn tell(node: &Closing, report: &ShutdownReport) {
    let me = node.shared.me.short();
    if report.is_clean() {
        log::info!(target: "threadwire::node", "{me}: shut down: {} peers drained", report.drained.len());
        return;
    }
    let messages: u64 = report.undelivered.iter().map(|peer| peer.unsent + peer.unknown).sum();
    log::warn!(
        target: "threadwire::node",
        "{me}: shut down: {} peers drained, {messages} messages to {} peers undelivered, threads still held: {:?}",
        report.drained.len(), report.undelivered.len(), report.threads
    );
}

/// Waits for a closed session's end; one that does not end is taken out, with its threads.
fn wait_for_end(node: &Closing, conn: ConnectionId, deadline: Instant) -> Option<Entry> {
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
