//! A node: one identity, its peers, and the threads that serve them.
//!
//! Owns: an engine, and what its broadcasts leave to the next one. Threads: the application's call it.
//! Locks: the registry lock to find a peer; its own, the caster lock, for broadcasts that flood. Blocks on: what each
//! blocking method says.
//! Upholds: a node that is dropped shuts down; shutdown ends by its deadline and says what it left.

mod broadcast;
mod builder;
mod cast;
mod destination;
mod dial;
mod pace;
mod peers;
mod reload;
mod to;

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crossbeam_channel::Receiver;

use crate::engine::{Engine, Event, Finding, ShutdownReport};
use crate::error::{ConnectError, RecvError, SendError, SendErrorKind};
use crate::ident::PeerId;
use crate::metrics::{Class, MetricsSnapshot};
use crate::registry::SessionInfo;
use crate::session::{self, Batch, Message, OutgoingMessage, PeerHandle, PeerLink, TapOptions, Undelivered};
use crate::sync::{Mutex, deadline_in};
use crate::wire::Lane;

pub use broadcast::Broadcast;
pub use builder::NodeBuilder;
pub use destination::AddrHandle;
pub use peers::PeerInfo;
pub use to::To;

/// A node.
///
/// Dropping it shuts it down, with two seconds to drain.
pub struct Node {
    engine: Engine,
    /// What its broadcasts leave to the next one.
    caster: Mutex<cast::Caster>,
}

impl Node {
    /// Who this node is.
    pub fn id(&self) -> PeerId {
        self.engine.shared.me
    }

    /// Where it listens first, with the port the system chose; `None` if it does not listen.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.engine.local_addrs().first().copied()
    }

    /// Where it listens, in the order of the configuration, with the ports the system chose.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.engine.local_addrs()
    }

    /// A handle on a peer of the configuration, by its name there.
    ///
    /// # Errors
    /// [`ConnectError::UnknownName`].
    pub fn peer_named(&self, name: &str) -> Result<PeerHandle, ConnectError> {
        match self.engine.named(name) {
            Some(id) => self.peer(id),
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
    /// node's own id, or one that stands for an address ([`PeerId::stands_for`]), the peer is not known and
    /// `unknown_peers` is 0, or there are as many peers as the configuration allows; [`ConnectError::ShuttingDown`].
    pub fn peer(&self, id: PeerId) -> Result<PeerHandle, ConnectError> {
        self.engine.peer(id)
    }

    /// Waits until a peer is connected, whoever dialled.
    ///
    /// # Errors
    /// [`ConnectError::TimedOut`], [`ConnectError::ShuttingDown`]; [`ConnectError::WouldBlock`] inside a handler.
    ///
    /// # Blocking
    /// Up to `timeout`.
    pub fn wait_connected(&self, id: PeerId, timeout: Duration) -> Result<PeerHandle, ConnectError> {
        self.engine.wait_connected(id, timeout)
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
        let registry = &self.engine.shared.registry;
        // Most messages need nothing beyond appending: no handle is made for them.
        let bytes = payload.as_ref();
        let append = |link: &PeerLink| link.push_fast(Lane::Normal, Class::PLAIN, 0, bytes);
        if !session::in_handler() && registry.with_link(&id, append) == Some(true) {
            return Ok(());
        }
        let kind = match () {
            () if session::in_handler() => SendErrorKind::WouldBlock,
            () => match self.engine.link_to(id) {
                Some(Ok(link)) => return PeerHandle::new(link).send(payload),
                Some(Err(error)) => error.into(),
                None => SendErrorKind::UnknownPeer,
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
        self.engine.inlet()?.recv(None)
    }

    /// The next message, waiting no longer than `timeout`.
    ///
    /// # Errors
    /// [`RecvError::TimedOut`], or as [`Node::recv`].
    ///
    /// # Blocking
    /// Up to `timeout`.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Message<'static>, RecvError> {
        self.engine.inlet()?.recv(Some(deadline_in(timeout)))
    }

    /// Batches of messages, one peer each, for a `select!` loop. Do not mix with [`Node::recv`]: each message goes to
    /// one of them.
    ///
    /// # Errors
    /// [`RecvError::HasHandler`]: this node hands its messages to a handler.
    pub fn incoming(&self) -> Result<Receiver<Batch>, RecvError> {
        Ok(self.engine.inlet_in_handlers()?.batches())
    }

    /// What happens to connections, for a `select!` loop or a thread of your own. Bounded: what nobody takes is counted
    /// and told as [`Event::Missed`]. Each event goes to one receiver.
    pub fn events(&self) -> Receiver<Event> {
        self.engine.events.clone()
    }

    /// Messages that were accepted, failed, and that nobody waits for: sent without a receipt, or with one that was
    /// dropped. Bounded (4,096 messages, 64 MiB): what nobody takes is counted in
    /// [`MetricsSnapshot::undelivered_missed`] and said in the log. Each goes to one receiver.
    pub fn undelivered(&self) -> Receiver<Undelivered> {
        self.engine.undelivered.clone()
    }

    /// A tap: each message that this node accepts from now on is announced to the receiver, for other parts of the
    /// process: whom it is for, its kind and size, how and when it was sent. What it holds is bounded
    /// ([`TapOptions::new`]: 1,024 announcements, no payloads; [`Node::subscribe_outgoing_with`] for others): a send never
    /// waits for a tap, and what does not fit is counted in the next announcement that does
    /// ([`OutgoingMessage::missed`]) and in [`MetricsSnapshot::outgoing_missed`].
    ///
    /// Announced is what the send verbs take, a broadcast once for each peer that takes it, questions, and
    /// [replies](crate::Message::reply) and answers; a message that its policy drops as it is accepted is among them.
    /// What is refused is not, nor is word that a question has no answer. Each tap is told of all of them. Dropped
    /// receivers are forgotten at the next message; while there is none, a send looks at one flag.
    ///
    /// ```
    /// use threadwire::{Config, Node};
    ///
    /// let node = Node::builder().config(Config::loopback()).start()?;
    /// let tap = node.subscribe_outgoing();
    /// let somebody = threadwire::PeerId::from_bytes([7; 32]);
    /// node.send(somebody, "hello")?; // waits until that peer is known
    /// let sent = tap.recv()?;
    /// assert_eq!((sent.to, sent.bytes, sent.missed), (somebody, 5, 0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn subscribe_outgoing(&self) -> Receiver<OutgoingMessage> {
        self.subscribe_outgoing_with(&TapOptions::new())
    }

    /// [`Node::subscribe_outgoing`] that holds as much as `options` say, payloads among it if they do.
    pub fn subscribe_outgoing_with(&self, options: &TapOptions) -> Receiver<OutgoingMessage> {
        self.engine.shared.settings.taps.subscribe(options)
    }

    /// What the node knows of each peer now, connected or not, in the order of their ids.
    pub fn peers(&self) -> Vec<PeerInfo> {
        peers::all(&self.engine.shared)
    }

    /// Every connection that takes a place now, also those that have not proven whose they are and dials under way, in
    /// the order they were accepted or dialled.
    pub fn sessions(&self) -> Vec<SessionInfo> {
        self.engine.shared.registry.sessions_info()
    }

    /// Counts of what happened to connections and messages so far.
    pub fn metrics(&self) -> MetricsSnapshot {
        self.engine.metrics()
    }

    /// Where the metrics are served, with the port the system chose: `http://ADDRESS/metrics`, OpenMetrics text, until
    /// the node is shut down. `None` unless the configuration says [`metrics.listen`](crate::config::Metrics::listen).
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.engine.metrics_addr()
    }

    /// Limits of the system that were lower, when the node started, than its configuration may come to need: descriptors,
    /// threads, memory maps, the backlog. Each was a warning in the log. What the system does not tell is not judged.
    pub fn self_check(&self) -> &[Finding] {
        &self.engine.findings
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
        self.engine.shut_down(deadline)
    }

    /// Whether a shutdown has begun, whoever asked for it: messages are refused from then on.
    pub fn is_shutting_down(&self) -> bool {
        self.engine.is_shutting_down()
    }

    /// Waits until the node has shut down, whoever asks for it: another thread, a handler, or the signal given to
    /// [`NodeBuilder::shutdown_signal`]. `None`: it has not within `timeout`, or this is a message handler, where nothing
    /// may wait.
    ///
    /// # Blocking
    /// Up to `timeout`.
    pub fn wait_shutdown(&self, timeout: Duration) -> Option<ShutdownReport> {
        self.engine.wait_shutdown(timeout)
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Node({})", self.engine.shared.me.short())
    }
}
