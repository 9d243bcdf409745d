//! An engine that runs: who it knows, what it counts, how it ends.
//!
//! Owns: the parts of an engine. Threads: the application's. Locks: the registry lock to find a peer; that of the
//! connections manager, for whether there still is one; to keep a peer or to let it go, that of who was added, then that of
//! the connections manager, then the registry's; that of what holds, for a copy; those of the addresses and of the names,
//! leaves. Blocks on: what each function says.
//! Upholds: an engine that is dropped shuts down.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;

use crate::address::Address;
use crate::config::Config;
use crate::connections::{Connections, PeersMap, Shared};
use crate::error::{ConnectError, DisconnectError, RecvError};
use crate::exposition::{Bound, Exposition};
use crate::ident::PeerId;
use crate::metrics::MetricsSnapshot;
use crate::registry::SessionsError;
use crate::session::{self, PeerHandle, PeerLink, Undelivered};
use crate::sync::{Mutex, deadline_in};

use super::events::{Changes, Event};
use super::inlet::Inlet;
use super::present::Present;
use super::protection::Protection;
use super::selfcheck::Finding;
use super::shutdown::{self, Closing, Ending, ShutdownReport};

/// How long a dropped engine, and what was made around it, may take to shut down.
pub(crate) const DROP_DEADLINE: Duration = Duration::from_secs(2);

/// One identity, its peers, and the threads that serve them. Dropped, it shuts down, with two seconds to drain.
pub(crate) struct Engine {
    pub(crate) shared: Arc<Shared>,
    pub(super) sites: Mutex<Sites>,
    /// The peers of the configuration, by name.
    pub(super) names: Mutex<HashMap<String, PeerId>>,
    /// Peers that the application has added itself: no configuration takes them away.
    pub(super) added: Mutex<BTreeSet<PeerId>>,
    /// What holds now; held by whoever changes it.
    pub(super) present: Mutex<Present>,
    /// Absent once its shutdown has begun.
    pub(crate) connections: Arc<Mutex<Option<Connections>>>,
    /// Absent if there is none, or its end has begun.
    pub(super) endpoint: Arc<Mutex<Option<Exposition>>>,
    pub(super) inlet: Option<Arc<Inlet>>,
    pub(crate) events: Receiver<Event>,
    pub(crate) undelivered: Receiver<Undelivered>,
    pub(crate) changes: Arc<Changes>,
    pub(super) ending: Arc<Ending>,
    pub(crate) findings: Vec<Finding>,
    pub(crate) protection: Protection,
}

/// Where it can be reached.
#[derive(Debug)]
pub(super) struct Sites {
    pub(super) local_addrs: Vec<SocketAddr>,
    pub(super) metrics: Option<SocketAddr>,
}

impl Engine {
    /// Where it listens, in the order of the configuration.
    pub(crate) fn local_addrs(&self) -> Vec<SocketAddr> {
        self.sites.lock().local_addrs.clone()
    }

    /// Where metrics are served.
    pub(crate) fn metrics_addr(&self) -> Option<SocketAddr> {
        self.sites.lock().metrics
    }

    /// The configuration that holds.
    ///
    /// # Blocking
    /// While another one is being put to use.
    pub(crate) fn config(&self) -> Config {
        self.present.lock().config.clone()
    }

    /// Who has this name in the configuration.
    pub(crate) fn named(&self, name: &str) -> Option<PeerId> {
        self.names.lock().get(name).copied()
    }

    /// Keeps a peer connected from now on. `added`: because the application says so, whatever a configuration says.
    ///
    /// # Errors
    /// It is ourselves or an address, there are as many links as there may be, or the engine shuts down.
    pub(crate) fn keep(&self, id: PeerId, addresses: Vec<Address>, added: bool) -> Result<PeerHandle, ConnectError> {
        if id == self.shared.me || id.stands_for().is_some() {
            return Err(ConnectError::UnknownPeer(id));
        }
        // First: whoever takes the peers of a configuration away looks who was added.
        let mut all_added = self.added.lock();
        let connections = self.connections.lock();
        let connections = connections.as_ref().ok_or(ConnectError::ShuttingDown)?;
        let peer = self.shared.peer(id).map_err(|_| ConnectError::UnknownPeer(id))?;
        connections.keep(id, addresses);
        if added {
            all_added.insert(id);
        }
        Ok(PeerHandle::new(peer.link))
    }

    /// Keeps a peer connected no longer.
    ///
    /// # Errors
    /// It is not known, or the engine shuts down.
    pub(crate) fn remove(&self, id: PeerId) -> Result<(), DisconnectError> {
        let mut all_added = self.added.lock();
        let connections = self.connections.lock();
        let connections = connections.as_ref().ok_or(DisconnectError::ShuttingDown)?;
        if self.shared.registry.known_link(&id).is_none() {
            return Err(DisconnectError::UnknownPeer(id));
        }
        connections.remove(id);
        all_added.remove(&id);
        Ok(())
    }

    /// Where messages wait for whoever proves itself at an address.
    ///
    /// # Errors
    /// There is none, and there can be none.
    pub(crate) fn place(&self, addr: SocketAddr) -> Result<Arc<PeerLink>, SessionsError> {
        if self.connections.lock().is_none() {
            return Err(SessionsError::Closed);
        }
        self.shared.link_at(addr)
    }

    /// Something was sent to such a place: whoever is there meanwhile has it, or the address is dialled.
    pub(crate) fn want(&self, place: &Arc<PeerLink>) {
        want(place, &self.connections);
    }

    /// Keeps the peers of a map connected, as it changes.
    pub(crate) fn follow(&self, map: PeersMap) {
        if let Some(connections) = self.connections.lock().as_mut() {
            connections.follow(map);
        }
    }

    /// A handle on a peer, known or not.
    ///
    /// # Errors
    /// There is none, and there can be none.
    pub(crate) fn peer(&self, id: PeerId) -> Result<PeerHandle, ConnectError> {
        match self.link_to(id) {
            Some(link) => link.map(PeerHandle::new).map_err(|error| error.of_peer(id)),
            None => Err(ConnectError::UnknownPeer(id)),
        }
    }

    /// The link of a peer, known or not. `None`: there is none, and there can be none. So it is of what stands for an
    /// address: what waits there moves to whoever proves itself, and a handle on it would not know of that.
    pub(crate) fn link_to(&self, id: PeerId) -> Option<Result<Arc<PeerLink>, SessionsError>> {
        if id.stands_for().is_some() {
            return None;
        }
        if let Some(link) = self.shared.registry.link(&id) {
            return Some(Ok(link));
        }
        if id == self.shared.me || !self.shared.takes_unknown() {
            return None;
        }
        if self.connections.lock().is_none() {
            return Some(Err(SessionsError::Closed));
        }
        Some(self.shared.link_or_unknown(id))
    }

    /// Waits until a peer is connected, whoever dialled.
    ///
    /// # Errors
    /// The time is over, the engine shuts down, or this is a handler.
    ///
    /// # Blocking
    /// Up to `timeout`.
    pub(crate) fn wait_connected(&self, id: PeerId, timeout: Duration) -> Result<PeerHandle, ConnectError> {
        if session::in_handler() {
            return Err(ConnectError::WouldBlock);
        }
        let deadline = deadline_in(timeout);
        loop {
            let seen = self.changes.count();
            // The link attaches a moment before the session is registered: afterwards every view of the node shows it.
            if let Some(link) = self.shared.registry.link(&id) {
                let attached = link.core.lock().attached();
                if attached.is_some_and(|conn| self.shared.registry.session(conn, |_| ()).is_some()) {
                    return Ok(PeerHandle::new(link));
                }
            }
            if self.connections.lock().is_none() {
                return Err(ConnectError::ShuttingDown);
            }
            if !self.changes.wait(seen, deadline) {
                return Err(ConnectError::TimedOut(id));
            }
        }
    }

    /// Where single messages and batches are taken from.
    ///
    /// # Errors
    /// There is a handler, or this is one.
    pub(crate) fn inlet(&self) -> Result<&Inlet, RecvError> {
        if session::in_handler() {
            return Err(RecvError::WouldBlock);
        }
        self.inlet_in_handlers()
    }

    /// As [`Engine::inlet`], inside handlers too: nothing may wait there.
    ///
    /// # Errors
    /// There is a handler.
    pub(crate) fn inlet_in_handlers(&self) -> Result<&Inlet, RecvError> {
        self.inlet.as_deref().ok_or(RecvError::HasHandler)
    }

    /// All counts so far.
    pub(crate) fn metrics(&self) -> MetricsSnapshot {
        snapshot(&self.shared)
    }

    /// Shuts down; see [`Node::shutdown`](crate::Node::shutdown).
    ///
    /// # Blocking
    /// Up to `deadline` from now.
    pub(crate) fn shut_down(&self, deadline: Duration) -> ShutdownReport {
        shutdown::shut_down(&self.closing(), deadline_in(deadline))
    }

    /// Shuts down when `signal` fires or disconnects; `time` is what it may take from then on.
    ///
    /// # Errors
    /// The system refused a thread.
    pub(crate) fn shut_down_on(&self, signal: Receiver<()>, time: Duration) -> std::io::Result<()> {
        shutdown::shut_down_on(self.closing(), signal, time)
    }

    /// Whether a shutdown has begun, whoever asked for it.
    pub(crate) fn is_shutting_down(&self) -> bool {
        self.ending.has_begun()
    }

    /// Waits until it has shut down, whoever asks for it; in a handler it does not wait.
    ///
    /// # Blocking
    /// Up to `timeout`.
    pub(crate) fn wait_shutdown(&self, timeout: Duration) -> Option<ShutdownReport> {
        if session::in_handler() {
            return self.ending.report();
        }
        self.ending.wait(deadline_in(timeout))
    }

    fn closing(&self) -> Closing {
        Closing {
            shared: self.shared.clone(),
            connections: self.connections.clone(),
            endpoint: self.endpoint.clone(),
            inlet: self.inlet.clone(),
            changes: self.changes.clone(),
            ending: self.ending.clone(),
        }
    }
}

/// See [`Engine::want`].
pub(crate) fn want(place: &Arc<PeerLink>, connections: &Mutex<Option<Connections>>) {
    // Somebody may have proven itself meanwhile, and what waited has gone on without this.
    place.move_on();
    if place.ask_once()
        && let Some(connections) = connections.lock().as_ref()
    {
        connections.find(place.clone());
    }
}

/// Serves the counts of a node.
///
/// # Errors
/// The poll or the thread could not be made.
pub(super) fn serve(bound: Bound, shared: &Arc<Shared>) -> std::io::Result<Exposition> {
    let node = shared.clone();
    bound.serve(shared.metrics.clone(), move || snapshot(&node).to_openmetrics())
}

/// The counts of a node, with those of its links.
pub(crate) fn snapshot(shared: &Shared) -> MetricsSnapshot {
    let mut metrics = shared.metrics.snapshot();
    let (links, mut totals) = shared.registry.links_and_forgotten();
    for link in links {
        totals.merge(&PeerHandle::new(link).totals());
    }
    let times = &shared.settings.times;
    metrics.phases = totals.phases.named(&shared.settings.kinds.names(), times);
    metrics.ack_delay = times.ack_delay();
    metrics.traffic = totals.traffic;
    metrics.peers_connected = totals.connected;
    metrics.queued_messages = totals.queued_messages;
    metrics.queued_bytes = totals.queued_bytes;
    metrics.kept_bytes = totals.kept_bytes;
    metrics.oldest_queued = totals.oldest_queued;
    metrics.memory_used = shared.settings.memory.used() as u64;
    metrics.memory_refused = shared.settings.memory.refused();
    metrics.undelivered_missed = shared.settings.undelivered.missed();
    metrics.outgoing_missed = shared.settings.taps.missed();
    metrics
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shut_down(DROP_DEADLINE);
    }
}
