//! A node: one identity, its peers, and the threads that serve them.
//!
//! Owns: everything below it. Threads: the application's call it; it starts the connections manager's.
//! Locks: the registry lock to find a peer; one lock of its own for the batch that [`Node::recv`] is taking from.
//! Blocks on: what each blocking method says.
//! Upholds: a node that is dropped shuts down; shutdown ends by its deadline and says what it left.

mod builder;
mod events;
mod receive;
mod shutdown;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};

use crate::connections::{Connections, DialRequest, Shared};
use crate::error::{ConnectError, DialCause, DialError, DialStage, RecvError, SendError, SendErrorKind};
use crate::ident::PeerId;
use crate::metrics::MetricsSnapshot;
use crate::registry::SessionInfo;
use crate::session::{self, Batch, LinkStats, Message, PeerHandle};
use crate::sync::Mutex;

pub use builder::NodeBuilder;
pub use events::Event;
pub use shutdown::{PeerReport, ShutdownReport};

use events::Changes;
use receive::Inlet;
use shutdown::Closing;

/// How long a dropped node may take to shut down.
const DROP_DEADLINE: Duration = Duration::from_secs(2);

/// A node.
///
/// Dropping it shuts it down, with two seconds to drain.
pub struct Node {
    shared: Arc<Shared>,
    local_addrs: Vec<SocketAddr>,
    /// Absent once it was shut down.
    connections: Mutex<Option<Connections>>,
    inlet: Option<Inlet>,
    events: Receiver<Event>,
    changes: Arc<Changes>,
}

/// What a node knows of a peer now.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PeerInfo {
    /// Who it is.
    pub id: PeerId,
    /// Counts of its messages, and whether it is connected.
    pub stats: LinkStats,
}

impl Node {
    /// Who this node is.
    pub fn id(&self) -> PeerId {
        self.shared.me
    }

    /// Where it listens first, with the port the system chose; `None` if it does not listen.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.local_addrs.first().copied()
    }

    /// Where it listens, in the order of the configuration, with the ports the system chose.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.local_addrs
    }

    /// Keeps a peer connected from now on: dials it, and dials again whenever it is lost. Called again, it replaces the
    /// addresses. Messages may be sent to the handle at once; they wait for the connection.
    ///
    /// # Errors
    /// [`ConnectError::ShuttingDown`]; [`ConnectError::UnknownPeer`] for the node's own id, or when there are as many
    /// peers as the configuration allows.
    pub fn add_peer(
        &self,
        id: PeerId,
        addrs: impl IntoIterator<Item = SocketAddr>,
    ) -> Result<PeerHandle, ConnectError> {
        if id == self.shared.me {
            return Err(ConnectError::UnknownPeer(id));
        }
        let connections = self.connections.lock();
        let connections = connections.as_ref().ok_or(ConnectError::ShuttingDown)?;
        let peer = self.shared.peer(id).map_err(|_| ConnectError::UnknownPeer(id))?;
        connections.keep(id, addrs.into_iter().collect());
        Ok(PeerHandle::new(peer.link))
    }

    /// Dials an address once and waits for whoever proves itself there.
    ///
    /// # Errors
    /// [`ConnectError::Dial`] says how far it came and why not further; [`ConnectError::WouldBlock`] inside a handler.
    ///
    /// # Blocking
    /// Up to `connect_timeout` and `handshake_timeout` of the configuration.
    pub fn connect(&self, addr: SocketAddr) -> Result<PeerHandle, ConnectError> {
        if session::in_handler() {
            return Err(ConnectError::WouldBlock);
        }
        let (waiter, outcome) = bounded(1);
        {
            let connections = self.connections.lock();
            let connections = connections.as_ref().ok_or(ConnectError::ShuttingDown)?;
            connections.dial(DialRequest { peer: None, addr, waiter: Some(waiter) });
        }
        // Every dial has one outcome, by its deadlines; a node that ends meanwhile drops the other end.
        let ended = DialError { addr, stage: DialStage::Connect, cause: DialCause::ShuttingDown };
        let id = outcome.recv().unwrap_or(Err(ended))?;
        self.peer(id)
    }

    /// A handle on a peer that is known: added, or connected at least once.
    ///
    /// # Errors
    /// [`ConnectError::UnknownPeer`]: add it first.
    pub fn peer(&self, id: PeerId) -> Result<PeerHandle, ConnectError> {
        self.shared.registry.link(&id).map(PeerHandle::new).ok_or(ConnectError::UnknownPeer(id))
    }

    /// Waits until a peer is connected, whoever dialled.
    ///
    /// # Errors
    /// [`ConnectError::TimedOut`], [`ConnectError::ShuttingDown`]; [`ConnectError::WouldBlock`] inside a handler.
    ///
    /// # Blocking
    /// Up to `timeout`.
    pub fn wait_connected(&self, id: PeerId, timeout: Duration) -> Result<PeerHandle, ConnectError> {
        if session::in_handler() {
            return Err(ConnectError::WouldBlock);
        }
        let deadline = Instant::now() + timeout;
        loop {
            let seen = self.changes.count();
            if let Some(link) = self.shared.registry.link(&id)
                && link.core.lock().attached().is_some()
            {
                return Ok(PeerHandle::new(link));
            }
            if self.connections.lock().is_none() {
                return Err(ConnectError::ShuttingDown);
            }
            if !self.changes.wait(seen, deadline) {
                return Err(ConnectError::TimedOut(id));
            }
        }
    }

    /// Sends by id: [`PeerHandle::send`] after a look-up. Keep a handle where speed matters.
    ///
    /// # Errors
    /// [`SendErrorKind::UnknownPeer`], or as [`PeerHandle::send`]. The message comes back.
    ///
    /// # Blocking
    /// As [`PeerHandle::send`].
    pub fn send<P: AsRef<[u8]> + Into<Vec<u8>>>(&self, id: PeerId, payload: P) -> Result<(), SendError> {
        match self.shared.registry.link(&id) {
            Some(link) => PeerHandle::new(link).send(payload),
            None => Err(SendError { kind: SendErrorKind::UnknownPeer, payload: payload.into() }),
        }
    }

    /// The next message, from any peer, waiting for it.
    ///
    /// # Errors
    /// [`RecvError::HasHandler`]: this node hands its messages to a handler; [`RecvError::ShutDown`];
    /// [`RecvError::WouldBlock`] inside a handler of another node.
    ///
    /// # Blocking
    /// Until a message comes or the node is shut down.
    pub fn recv(&self) -> Result<Message<'static>, RecvError> {
        self.inlet()?.recv(None)
    }

    /// The next message, waiting no longer than `timeout`.
    ///
    /// # Errors
    /// [`RecvError::TimedOut`], or as [`Node::recv`].
    ///
    /// # Blocking
    /// Up to `timeout`.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Message<'static>, RecvError> {
        self.inlet()?.recv(Some(Instant::now() + timeout))
    }

    /// Batches of messages, one peer each, for a `select!` loop. Do not mix with [`Node::recv`]: each message goes to
    /// one of them.
    ///
    /// # Errors
    /// [`RecvError::HasHandler`]: this node hands its messages to a handler.
    pub fn incoming(&self) -> Result<Receiver<Batch>, RecvError> {
        Ok(self.inlet.as_ref().ok_or(RecvError::HasHandler)?.batches())
    }

    fn inlet(&self) -> Result<&Inlet, RecvError> {
        if session::in_handler() {
            return Err(RecvError::WouldBlock);
        }
        self.inlet.as_ref().ok_or(RecvError::HasHandler)
    }

    /// What happens to connections, for a `select!` loop or a thread of your own. Bounded: what nobody takes is counted
    /// and told as [`Event::Missed`]. Each event goes to one receiver.
    pub fn events(&self) -> Receiver<Event> {
        self.events.clone()
    }

    /// The peers the node knows, connected or not.
    pub fn peers(&self) -> Vec<PeerInfo> {
        let links = self.shared.registry.links();
        links.into_iter().map(|link| PeerInfo { id: link.id, stats: PeerHandle::new(link).stats() }).collect()
    }

    /// Every connection that takes a place now, also those that have not proven whose they are and dials under way, in
    /// the order they were accepted or dialled.
    pub fn sessions(&self) -> Vec<SessionInfo> {
        self.shared.registry.sessions_info()
    }

    /// Counts of what happened to connections so far.
    pub fn metrics(&self) -> MetricsSnapshot {
        self.shared.metrics.snapshot()
    }

    /// Shuts the node down: refuses new messages, waits until those accepted are acknowledged, says goodbye to every
    /// peer, ends every thread. Inside a handler it only begins to, and returns at once. Later calls report nothing.
    ///
    /// # Blocking
    /// Up to `deadline` from now; less if everything is drained before.
    pub fn shutdown(&self, deadline: Duration) -> ShutdownReport {
        let closing = Closing {
            shared: &self.shared,
            connections: &self.connections,
            inlet: self.inlet.as_ref(),
            changes: &self.changes,
        };
        shutdown::shut_down(&closing, Instant::now() + deadline)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let report = self.shutdown(DROP_DEADLINE);
        if !report.is_clean() {
            log::warn!(target: "threadwire::link", "a dropped node left something behind: {report:?}");
        }
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Node({})", self.shared.me.short())
    }
}
