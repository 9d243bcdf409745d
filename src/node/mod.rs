//! A node: one identity, its peers, and the threads that serve them.
//!
//! Owns: everything below it. Threads: the application's call it; it starts the connections manager's.
//! Locks: the registry lock to find a peer; one lock of its own for the batch that [`Node::recv`] is taking from.
//! Blocks on: what each blocking method says.
//! Upholds: a node that is dropped shuts down; shutdown ends by its deadline and says what it left.

mod broadcast;
mod builder;
mod cast;
mod dial;
mod events;
mod pace;
mod peers;
mod protection;
mod receive;
mod reload;
mod selfcheck;
mod shutdown;

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use crate::connections::{Connections, Shared};
use crate::error::{ConnectError, RecvError, SendError, SendErrorKind};
use crate::exposition::Exposition;
use crate::ident::PeerId;
use crate::metrics::MetricsSnapshot;
use crate::registry::{SessionInfo, SessionsError};
use crate::session::{self, Batch, Message, PeerHandle, PeerLink, Undelivered};
use crate::sync::Mutex;
use crate::wire::Lane;

pub use broadcast::{Broadcast, To};
pub use builder::NodeBuilder;
pub use events::Event;
pub use peers::PeerInfo;
pub use selfcheck::{Finding, SystemLimit};
pub use shutdown::{PeerReport, ShutdownReport};

use events::Changes;
use receive::Inlet;
use shutdown::{Closing, Ending};

/// How long a dropped node may take to shut down.
const DROP_DEADLINE: Duration = Duration::from_secs(2);

/// A node.
///
/// Dropping it shuts it down, with two seconds to drain.
pub struct Node {
    shared: Arc<Shared>,
    local_addrs: Vec<SocketAddr>,
    /// Absent once its shutdown has begun.
    connections: Arc<Mutex<Option<Connections>>>,
    metrics_addr: Option<SocketAddr>,
    /// Absent if there is none, or its end has begun.
    endpoint: Arc<Mutex<Option<Exposition>>>,
    inlet: Option<Arc<Inlet>>,
    events: Receiver<Event>,
    undelivered: Receiver<Undelivered>,
    changes: Arc<Changes>,
    /// The peers of the configuration, by name.
    names: HashMap<String, PeerId>,
    ending: Arc<Ending>,
    findings: Vec<Finding>,
    protection: protection::Protection,
    /// What its broadcasts leave to the next one.
    caster: Mutex<cast::Caster>,
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

    /// A handle on a peer of the configuration, by its name there.
    ///
    /// # Errors
    /// [`ConnectError::UnknownName`].
    pub fn peer_named(&self, name: &str) -> Result<PeerHandle, ConnectError> {
        match self.names.get(name) {
            Some(id) => self.peer(*id),
            None => Err(ConnectError::UnknownName(name.to_owned())),
        }
    }

    /// A handle on a peer, to send to, whether the node knows it or not.
    ///
    /// A peer is known once it was configured, added, or connected, whoever dialled, and stays so; also when it is
    /// removed. Messages for one that is not known yet wait: at most `unknown_bytes` for each such peer over all lanes,
    /// each message for `unknown_timeout`, and `unknown_peers` such peers at one time, with messages or with handles that
    /// are held. What does not fit is refused or follows its [`OverflowPolicy`](crate::OverflowPolicy). As soon as the
    /// peer becomes known, what waits is an ordinary queue, and goes out in the order it was sent; what waited too long
    /// comes back as [`ReturnReason::PeerUnknown`](crate::ReturnReason::PeerUnknown). Nobody is dialled for it: add the
    /// peer, or wait for it to dial. With `offline = "return"` nothing waits, for peers known or not.
    ///
    /// # Errors
    /// [`ConnectError::TooManyUnknown`]: add the peer, or let go of handles; [`ConnectError::UnknownPeer`]: it is the
    /// node's own id, the peer is not known and `unknown_peers` is 0, or there are as many peers as the configuration
    /// allows; [`ConnectError::ShuttingDown`].
    pub fn peer(&self, id: PeerId) -> Result<PeerHandle, ConnectError> {
        let refused = |refusal| match refusal {
            SessionsError::TooManyUnknown => ConnectError::TooManyUnknown(id),
            SessionsError::Closed => ConnectError::ShuttingDown,
            _ => ConnectError::UnknownPeer(id),
        };
        match self.link_to(id) {
            Some(link) => link.map(PeerHandle::new).map_err(refused),
            None => Err(ConnectError::UnknownPeer(id)),
        }
    }

    /// The link of a peer, known or not. `None`: there is none, and there can be none.
    fn link_to(&self, id: PeerId) -> Option<Result<Arc<PeerLink>, SessionsError>> {
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

    /// Sends by id: [`PeerHandle::send`] after a look-up. Keep a handle where speed matters. For peers that are not known
    /// see [`Node::peer`].
    ///
    /// # Errors
    /// [`SendErrorKind::TooManyUnknown`] and [`SendErrorKind::UnknownPeer`] as those of [`Node::peer`], or as
    /// [`PeerHandle::send`]. The message comes back.
    ///
    /// # Blocking
    /// As [`PeerHandle::send`].
    pub fn send<P: AsRef<[u8]> + Into<Vec<u8>>>(&self, id: PeerId, payload: P) -> Result<(), SendError> {
        let registry = &self.shared.registry;
        // Most messages need nothing beyond appending: no handle is made for them.
        let bytes = payload.as_ref();
        let append = |link: &PeerLink| link.push_fast(Lane::Normal, 0, bytes);
        if !session::in_handler() && registry.with_link(&id, append) == Some(true) {
            return Ok(());
        }
        let kind = match () {
            () if session::in_handler() => SendErrorKind::WouldBlock,
            () => match self.link_to(id) {
                Some(Ok(link)) => return PeerHandle::new(link).send(payload),
                Some(Err(SessionsError::TooManyUnknown)) => SendErrorKind::TooManyUnknown,
                Some(Err(SessionsError::Closed)) => SendErrorKind::ShuttingDown,
                Some(Err(_)) | None => SendErrorKind::UnknownPeer,
            },
        };
        Err(SendError { kind, payload: payload.into() })
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
        self.inlet.as_deref().ok_or(RecvError::HasHandler)
    }

    /// What happens to connections, for a `select!` loop or a thread of your own. Bounded: what nobody takes is counted
    /// and told as [`Event::Missed`]. Each event goes to one receiver.
    pub fn events(&self) -> Receiver<Event> {
        self.events.clone()
    }

    /// Messages that were accepted, failed, and that nobody waits for: sent without a receipt, or with one that was
    /// dropped. Bounded (4,096 messages, 64 MiB): what nobody takes is counted in
    /// [`MetricsSnapshot::undelivered_missed`] and said in the log. Each goes to one receiver.
    pub fn undelivered(&self) -> Receiver<Undelivered> {
        self.undelivered.clone()
    }

    /// What the node knows of each peer now, connected or not, in the order of their ids.
    pub fn peers(&self) -> Vec<PeerInfo> {
        peers::all(&self.shared)
    }

    /// Every connection that takes a place now, also those that have not proven whose they are and dials under way, in
    /// the order they were accepted or dialled.
    pub fn sessions(&self) -> Vec<SessionInfo> {
        self.shared.registry.sessions_info()
    }

    /// Counts of what happened to connections and messages so far.
    pub fn metrics(&self) -> MetricsSnapshot {
        snapshot(&self.shared)
    }

    /// Where the metrics are served, with the port the system chose: `http://ADDRESS/metrics`, OpenMetrics text, until
    /// the node is shut down. `None` unless the configuration says [`metrics.listen`](crate::config::Metrics::listen).
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics_addr
    }

    /// Limits of the system that were lower, when the node started, than its configuration may come to need: descriptors,
    /// threads, memory maps, the backlog. Each was a warning in the log. What the system does not tell is not judged.
    pub fn self_check(&self) -> &[Finding] {
        &self.findings
    }

    /// Shuts the node down: refuses new messages, waits until those accepted are acknowledged, says goodbye to every
    /// peer, ends every thread.
    ///
    /// It happens once. Whoever calls while it goes on, or after it, gets the same report when it is over; a caller whose
    /// own deadline comes first gets one that is not [`finished`](ShutdownReport::finished). Inside a message handler the
    /// shutdown begins, with this deadline, and the call returns at once with such a report.
    ///
    /// # Blocking
    /// Up to `deadline` from now; less if everything is drained before.
    pub fn shutdown(&self, deadline: Duration) -> ShutdownReport {
        shutdown::shut_down(&self.closing(), shutdown::deadline_in(deadline))
    }

    /// Whether a shutdown has begun, whoever asked for it: messages are refused from then on.
    pub fn is_shutting_down(&self) -> bool {
        self.ending.has_begun()
    }

    /// Waits until the node has shut down, whoever asks for it: another thread, a handler, or the signal given to
    /// [`NodeBuilder::shutdown_signal`]. `None`: it has not within `timeout`, or this is a message handler, where nothing
    /// may wait.
    ///
    /// # Blocking
    /// Up to `timeout`.
    pub fn wait_shutdown(&self, timeout: Duration) -> Option<ShutdownReport> {
        if session::in_handler() {
            return self.ending.report();
        }
        self.ending.wait(shutdown::deadline_in(timeout))
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

/// The counts of a node, with those of its links.
fn snapshot(shared: &Shared) -> MetricsSnapshot {
    let mut metrics = shared.metrics.snapshot();
    let (links, forgotten) = shared.registry.links_and_forgotten();
    metrics.traffic = forgotten;
    for link in links {
        metrics.traffic.merge(&PeerHandle::new(link).traffic());
    }
    metrics.memory_used = shared.settings.memory.used() as u64;
    metrics.memory_refused = shared.settings.memory.refused();
    metrics.undelivered_missed = shared.settings.undelivered.missed();
    metrics
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shutdown(DROP_DEADLINE);
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Node({})", self.shared.me.short())
    }
}
