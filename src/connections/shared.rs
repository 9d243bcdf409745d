//! What the threads of the connections manager share, and what they say to each other.
//!
//! Owns: what a reload changes of connections. Threads: any. Locks: its own, leaves, for a clone. Blocks on: nothing.
//! Upholds: threads talk by the messages defined here, never by shared state.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use crate::address::Address;
use crate::config::{self, Closed, Config, Reload};
use crate::connections::admission::Caps;
use crate::connections::listening::ListenerId;
use crate::connections::outbound::{DialId, Redial};
use crate::connections::senders::PeerEvent;
use crate::error::{ConnectError, DialError, DisconnectReason, ReloadError};
use crate::handshake::{HandshakeConfig, random_bytes};
use crate::ident::{ConnectionId, Incarnation, PeerId, SessionKind};
use crate::link::{Decision, LinkCore};
use crate::metrics::Metrics;
use crate::registry::{SessionsError, SharedRegistry};
use crate::session::{Consumer, OnEnd, Peer, PeerLink, SessionEnded, SessionSettings};
use crate::sync::Mutex;
use crate::transport::Listener;
use crate::{handshake, transport};

/// What all threads of the connections manager share. What a reload changes of it is in cells.
pub(crate) struct Shared {
    pub(crate) registry: SharedRegistry,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) handshake: Cell<HandshakeConfig>,
    pub(crate) me: PeerId,
    pub(crate) settings: Arc<SessionSettings>,
    /// Most dials and outbound sessions at one time.
    pub(crate) outbound: AtomicUsize,
    /// Most lookups of names at one time.
    pub(crate) resolve_threads: AtomicUsize,
    pub(crate) consumer: Consumer,
    pub(crate) times: Cell<Times>,
    pub(crate) secrets: Secrets,
    /// Where lifecycle reports go.
    pub(crate) reports: Sender<Report>,
    /// Reports a session's end there.
    pub(crate) on_end: OnEnd,
    /// Zero of the clock that offers are compared on.
    pub(crate) start: Instant,
}

/// A value that is replaced as a whole, and not read often.
#[derive(Debug)]
pub(crate) struct Cell<T>(Mutex<Arc<T>>);

impl<T> Cell<T> {
    /// This, to begin with.
    pub(crate) fn new(value: T) -> Self {
        Self(Mutex::new(Arc::new(value)))
    }

    /// What it is now.
    pub(crate) fn get(&self) -> Arc<T> {
        self.0.lock().clone()
    }

    /// This from now on.
    pub(crate) fn set(&self, value: T) {
        let before = std::mem::replace(&mut *self.0.lock(), Arc::new(value));
        drop(before);
    }
}

/// The deadlines of connections.
#[derive(Debug, Clone)]
pub(crate) struct Times {
    pub(crate) lookup: Duration,
    pub(crate) connect: Duration,
    pub(crate) handshake: Duration,
    pub(crate) idle: Duration,
    pub(crate) write: Duration,
    pub(crate) resume: Duration,
    pub(crate) watchdog: Duration,
    pub(crate) slow: Duration,
    pub(crate) unknown: Duration,
    pub(crate) stable_after: Duration,
    pub(crate) backoff: config::Backoff,
}

impl Times {
    /// From the configuration.
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            lookup: config.resolve_timeout,
            connect: config.connect_timeout,
            handshake: config.handshake_timeout,
            idle: config.idle_timeout,
            write: config.write_timeout,
            resume: config.resume_window,
            watchdog: config.handler_watchdog,
            slow: config.slow_after,
            unknown: config.unknown_timeout,
            stable_after: config.stable_after,
            backoff: config.backoff.clone(),
        }
    }
}

impl Shared {
    /// The deadlines of connections.
    pub(crate) fn times(&self) -> Arc<Times> {
        self.times.get()
    }

    /// What our side brings to its handshakes.
    pub(crate) fn handshake(&self) -> Arc<HandshakeConfig> {
        self.handshake.get()
    }

    /// A peer, which is known from now on, with a link made for it if there is none.
    ///
    /// # Errors
    /// There are as many links as there may be, or the node is shutting down.
    pub(crate) fn peer(&self, id: PeerId) -> Result<Peer, SessionsError> {
        let version = self.settings.tuned.version();
        let peer = self.registry.peer_or_insert(id, || self.new_peer(id))?;
        self.retune(&peer.link, version);
        Ok(peer)
    }

    /// The link of a peer, with one made where messages wait for it to become known if there is none.
    ///
    /// # Errors
    /// As many unknown peers wait as may, there are as many links as there may be, or the node is shutting down.
    pub(crate) fn link_or_unknown(&self, id: PeerId) -> Result<Arc<PeerLink>, SessionsError> {
        self.unknown(id, |_| ())
    }

    /// The same, with something done to a link that is made.
    fn unknown(&self, id: PeerId, made: impl FnOnce(&PeerLink)) -> Result<Arc<PeerLink>, SessionsError> {
        let version = self.settings.tuned.version();
        let link = self.registry.link_or_unknown(id, || {
            let peer = self.new_peer(id);
            peer.link.outbox.await_peer(self.settings.tuned.all().unknown_bytes);
            made(&peer.link);
            peer
        });
        if link.as_ref().err() == Some(&SessionsError::TooManyUnknown) {
            self.metrics.unknown_refused.add();
        }
        link.iter().for_each(|link| self.retune(link, version));
        link
    }

    /// The link that stands for an address, where messages wait for whoever proves itself there.
    ///
    /// # Errors
    /// As those of [`Shared::link_or_unknown`]; [`SessionsError::TooManyLinks`] also where nothing may wait.
    pub(crate) fn link_at(&self, addr: SocketAddr) -> Result<Arc<PeerLink>, SessionsError> {
        if !self.takes_unknown() {
            return Err(SessionsError::TooManyLinks);
        }
        self.unknown(PeerId::of_address(addr), |link| link.stand_in_for(addr))
    }

    /// Whether messages may wait for peers that are not known.
    pub(crate) fn takes_unknown(&self) -> bool {
        self.registry.takes_unknown()
    }

    /// A link that was made, and whoever tuned all links may not have seen it yet.
    fn retune(&self, link: &PeerLink, version: u64) {
        if version != self.settings.tuned.version() {
            link.tune();
        }
    }

    fn new_peer(&self, id: PeerId) -> Peer {
        let (token, state) = self.secrets.next();
        let core = LinkCore::new(self.me, id, self.settings.tuned.all().link, state);
        Peer::new(PeerLink::new(core, id, token, self.settings.clone()), self.consumer.clone())
    }

    /// When and how often a kept peer is dialled again, as of now.
    pub(crate) fn redial(&self, link: &PeerLink) -> Redial {
        let (attempts, next) = link.redial.get();
        Redial { attempts, next: next.map(|micros| self.start + Duration::from_micros(micros)) }
    }

    /// Notes what [`Shared::redial`] says.
    pub(crate) fn note_redial(&self, link: &PeerLink, redial: Redial) {
        let next = redial.next.map(|at| at.saturating_duration_since(self.start).as_micros() as u64);
        link.redial.set(redial.attempts, next);
    }

    /// Now, on the clock that offers are compared on.
    pub(crate) fn now(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }
}

/// A dial that the supervisor wants. It has one outcome: [`Report::Started`], [`Report::DialFailed`] or
/// [`Report::NoRoom`], unless the acceptor ends before it.
#[derive(Debug, Clone)]
pub(crate) struct DialRequest {
    pub(crate) id: DialId,
    /// Who must answer; `None` takes whoever proves itself.
    pub(crate) peer: Option<PeerId>,
    pub(crate) addr: SocketAddr,
}

/// What the acceptor thread is asked to do.
pub(crate) enum Command {
    Dial(DialRequest),
    Worked(ConnectionId, WorkDone),
    /// A link has decided about connections.
    Decided(Arc<PeerLink>, Box<Decision>),
    /// Listen there too, all or none.
    Listen(Vec<(ListenerId, Box<dyn Listener>)>, Sender<io::Result<()>>),
    /// Close these.
    Unlisten(Vec<ListenerId>, Sender<()>),
    /// Other bounds; the answer is who had to go.
    Limit(Caps, Sender<Vec<Closed>>),
    Stop,
}

/// A step of a connection on its way to a session.
#[derive(Debug)]
pub(crate) enum Work {
    /// Of its transport.
    Secure(transport::Work),
    /// Of our handshake.
    Shake(handshake::Work),
}

/// What it came to.
#[derive(Debug)]
pub(crate) enum WorkDone {
    Secure(transport::WorkDone),
    Shake(handshake::WorkDone),
}

impl Work {
    /// Does it.
    pub(crate) fn run(self) -> WorkDone {
        match self {
            Self::Secure(work) => WorkDone::Secure(work.run()),
            Self::Shake(work) => WorkDone::Shake(work.run()),
        }
    }
}

/// What happens to connections; handled by the supervisor, in order.
#[derive(Debug)]
pub(crate) enum Report {
    Started(Started),
    Ended(SessionEnded),
    DialFailed(DialFailure),
    /// There was no slot for a dial: it has not begun.
    NoRoom(DialId),
    /// What a name's lookup found, or why nothing.
    Resolved(Arc<str>, Result<Vec<SocketAddr>, String>),
    /// Two processes have the key of this peer, or of this node; the one at the address was refused, or refused us.
    IdentityClash(PeerId, SocketAddr),
    /// A node asks for a peer to be kept connected.
    Keep(PeerId, Vec<Address>),
    /// A node asks for a peer not to be kept any longer, and for its session to end. The map said this before.
    Remove(PeerId, Option<Said>),
    /// The same for several; the answer is which sessions end by it.
    Part(Vec<PeerId>, Option<Said>, Sender<Vec<Closed>>),
    /// Somebody is wanted at the address that this link stands for.
    Find(Arc<PeerLink>),
    /// Peers are where this map says, from now on.
    Follow(PeersMap),
    /// Somebody wants one connection, and waits for its outcome.
    Connect(Address, Sender<Result<PeerId, ConnectError>>),
    /// Deadlines, delays or bounds in [`Shared`] have changed.
    Changed,
    /// An application is to be told this, after what was reported before.
    Tell(Lifecycle),
    /// Stop dialling; with `true`, end.
    Stop(bool),
}

/// A live map of peers: which are kept, and where they are.
#[derive(Clone)]
pub(crate) struct PeersMap {
    /// Word of changes; disconnected when nothing will change any more.
    pub(crate) changes: Receiver<()>,
    /// What it says now. Nothing of the application's runs in it.
    pub(crate) look: Arc<dyn Fn() -> Said + Send + Sync>,
}

/// What a map of peers said at a moment. Whoever asks for a peer to be let go says what the map said before: program
/// order holds between the map and the verbs, though they come to the supervisor by ways of their own.
pub(crate) struct Said {
    /// Rises with each change; from 1.
    pub(crate) version: u64,
    pub(crate) peers: Box<dyn FnOnce() -> BTreeMap<PeerId, Vec<Address>> + Send>,
}

impl fmt::Debug for PeersMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeersMap").finish_non_exhaustive()
    }
}

impl fmt::Debug for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Said").field("version", &self.version).finish_non_exhaustive()
    }
}

/// A session that started.
#[derive(Debug, Clone)]
pub(crate) struct Started {
    pub(crate) peer: PeerId,
    pub(crate) conn: ConnectionId,
    pub(crate) kind: SessionKind,
    pub(crate) incarnation: Incarnation,
    /// Of which of our dials, if it is of one.
    pub(crate) dial: Option<DialId>,
    /// The other side's process is another one than before.
    pub(crate) restarted: bool,
    pub(crate) local_addr: SocketAddr,
    pub(crate) remote_addr: SocketAddr,
    pub(crate) advertised: Option<SocketAddr>,
}

/// A dial that failed.
#[derive(Debug)]
pub(crate) struct DialFailure {
    pub(crate) dial: DialId,
    /// Who should have answered.
    pub(crate) peer: Option<PeerId>,
    /// Who did, if that was proven.
    pub(crate) proven: Option<PeerId>,
    pub(crate) error: DialError,
    pub(crate) retry_after: Duration,
}

/// What a node's application is told; see `engine::Event`.
#[derive(Debug, Clone)]
pub(crate) enum Lifecycle {
    Started(Started),
    Ended {
        peer: PeerId,
        conn: ConnectionId,
        kind: SessionKind,
        reason: DisconnectReason,
        unacked_bytes: usize,
    },
    DialFailed {
        peer: Option<PeerId>,
        /// The address at which anybody is wanted, if it was dialled for that.
        place: Option<SocketAddr>,
        error: DialError,
    },
    /// Somebody has proven itself at an address where anybody was wanted.
    Found(SocketAddr),
    /// Two processes have the key of this peer, or of this node; the one at the address was refused, or refused us.
    IdentityClash {
        peer: PeerId,
        remote_addr: SocketAddr,
    },
    /// A handler has been running for longer than the watchdog allows.
    HandlerSlow {
        peer: PeerId,
        conn: ConnectionId,
    },
    /// What waits for a connected peer is old, or goes on filling its queue.
    PeerSlow {
        peer: PeerId,
        oldest_age: Duration,
        queued_messages: usize,
        queued_bytes: usize,
    },
    /// A peer that was told of as slow is so no longer.
    PeerRecovered {
        peer: PeerId,
    },
    /// Another configuration was put to use.
    Reloaded(Reload),
    /// Another configuration was refused.
    ReloadRefused(ReloadError),
    /// Of a kept peer's sender.
    Sender(PeerEvent),
}

/// Link tokens and the names of link states: secret, never the same twice, and without a failure once there is a seed.
#[derive(Debug)]
pub(crate) struct Secrets {
    seed: [u8; 32],
    count: AtomicU64,
}

impl Secrets {
    /// From randomness of the system.
    ///
    /// # Errors
    /// The system gives none.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { seed: random_bytes()?, count: AtomicU64::new(0) })
    }

    /// A token, and a name.
    pub(crate) fn next(&self) -> ([u8; 16], u64) {
        let mut input = self.seed.to_vec();
        input.extend_from_slice(&self.count.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        let digest = ring::digest::digest(&ring::digest::SHA256, &input);
        let (mut token, mut name) = ([0; 16], [0; 8]);
        token.copy_from_slice(&digest.as_ref()[..16]);
        name.copy_from_slice(&digest.as_ref()[16..24]);
        (token, u64::from_le_bytes(name))
    }
}

/// The way to the acceptor thread: a command, and a wake-up of its poll.
#[derive(Clone)]
pub(crate) struct Commands {
    sender: Sender<Command>,
    waker: Arc<mio::Waker>,
}

impl Commands {
    /// Commands that wake a poll.
    pub(crate) fn new(sender: Sender<Command>, waker: mio::Waker) -> Self {
        Self { sender, waker: Arc::new(waker) }
    }

    /// Sends a command. After the acceptor's end it is dropped, and with it whoever waits for an answer learns of it.
    pub(crate) fn send(&self, command: Command) {
        if self.sender.send(command).is_ok()
            && let Err(error) = self.waker.wake()
        {
            log::error!(target: "threadwire::accept", "waking the acceptor: {error}");
        }
    }
}
