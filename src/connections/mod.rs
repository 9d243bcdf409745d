//! The connections manager: accepts, dials, shakes hands, watches over sessions, dials again.
//!
//! Owns: no state of any peer beyond where and when to dial it. Threads: `acceptor`, `supervisor`, `work-n`.
//! Locks: none of its own; takes the link lock to offer connections and the registry lock to find sessions, one after
//! the other. Blocks on: see the threads.
//! Upholds: nobody waits for a silent connection; every dial ends in one outcome; every session's end is handled once.
//!
//! ```text
//!            accept, dial                  proven                    attached
//!  acceptor ---------------> handshake -------------> LinkCore::offer --------> session::start -> registry
//!     ^  commands                |  Work                                             |
//!     |                          v                                                   | SessionEnded
//!  supervisor <---- work-n ----- +  <------------------------------------------------+
//! ```

mod acceptor;
mod backoff;
mod pending;
mod supervisor;
mod work;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::config::{self, Config};
use crate::error::{DialError, DisconnectReason};
use crate::handshake::{HandshakeConfig, WorkDone, random_bytes};
use crate::ident::{ConnectionId, Incarnation, PeerId, SessionKind};
use crate::link::{Decision, LinkCore, LinkLimits};
use crate::metrics::Metrics;
use crate::registry::{SessionsError, SharedRegistry};
use crate::session::{Consumer, PeerLink, SessionEnded, SessionSettings};
use crate::threads::{self, Thread};
use crate::transport::{Listener, Transport};

pub(crate) use backoff::ReconnectPolicy;

/// Threads for the CPU steps of handshakes and the application's policy.
const WORKERS: usize = 2;
const STACK: usize = 256 * 1024;

/// What all threads of the connections manager share; nothing in it changes after the start.
pub(crate) struct Shared {
    pub(crate) registry: SharedRegistry,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) handshake: Arc<HandshakeConfig>,
    pub(crate) me: PeerId,
    pub(crate) settings: Arc<SessionSettings>,
    pub(crate) link_limits: LinkLimits,
    pub(crate) consumer: Consumer,
    pub(crate) times: Times,
    /// Where lifecycle reports go.
    pub(crate) reports: Sender<Report>,
    /// Zero of the clock that offers are compared on.
    pub(crate) start: Instant,
}

/// The deadlines of connections.
#[derive(Debug, Clone)]
pub(crate) struct Times {
    pub(crate) connect: Duration,
    pub(crate) handshake: Duration,
    pub(crate) idle: Duration,
    pub(crate) write: Duration,
    pub(crate) resume: Duration,
    pub(crate) stable_after: Duration,
    pub(crate) backoff: config::Backoff,
}

impl Times {
    /// From the configuration.
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            connect: config.connect_timeout,
            handshake: config.handshake_timeout,
            idle: config.idle_timeout,
            write: config.write_timeout,
            resume: config.resume_window,
            stable_after: config.stable_after,
            backoff: config.backoff.clone(),
        }
    }
}

impl Shared {
    /// The link of a peer, made if there is none.
    ///
    /// # Errors
    /// There are as many links as there may be, or the node is shutting down.
    pub(crate) fn link(&self, peer: PeerId) -> Result<Arc<PeerLink>, SessionsError> {
        self.registry.link_or_insert(peer, || {
            // Without randomness there is no identity and no node: it was there at the start, and a state named by
            // the clock and a counter stays distinct even if the system should fail to give more.
            let token = random_bytes().unwrap_or_else(|_| fastrand::u128(..).to_le_bytes());
            let core = LinkCore::new(self.me, peer, self.link_limits, fastrand::u64(1..));
            Arc::new(PeerLink::new(core, peer, token, self.settings.clone(), self.consumer.clone()))
        })
    }

    /// Now, on the clock that offers are compared on.
    pub(crate) fn now(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }
}

/// A dial that somebody waits for, or that the supervisor keeps.
#[derive(Debug, Clone)]
pub(crate) struct DialRequest {
    /// Who must answer; `None` takes whoever proves itself.
    pub(crate) peer: Option<PeerId>,
    pub(crate) addr: SocketAddr,
    /// Told the outcome.
    pub(crate) waiter: Option<Sender<Result<PeerId, DialError>>>,
}

/// What the acceptor thread is asked to do.
pub(crate) enum Command {
    Dial(DialRequest),
    Worked(ConnectionId, WorkDone),
    /// A link has decided about connections.
    Decided(Arc<PeerLink>, Decision),
    Stop,
}

/// What happens to connections; handled by the supervisor, in order.
#[derive(Debug)]
pub(crate) enum Report {
    Started(Started),
    Ended(SessionEnded),
    DialFailed(DialRequestOutcome),
    /// A node asks for a peer to be kept connected.
    Keep(PeerId, Vec<SocketAddr>),
    /// Stop dialling; with `true`, end.
    Stop(bool),
}

/// A session that started.
#[derive(Debug, Clone)]
pub(crate) struct Started {
    pub(crate) peer: PeerId,
    pub(crate) conn: ConnectionId,
    pub(crate) kind: SessionKind,
    pub(crate) incarnation: Incarnation,
    /// The other side's process is another one than before.
    pub(crate) restarted: bool,
    pub(crate) local_addr: SocketAddr,
    pub(crate) remote_addr: SocketAddr,
    pub(crate) advertised: Option<SocketAddr>,
}

/// A dial that failed.
#[derive(Debug)]
pub(crate) struct DialRequestOutcome {
    pub(crate) peer: Option<PeerId>,
    pub(crate) error: DialError,
    pub(crate) retry_after: Duration,
}

/// What a node's application is told; see `node::Event`.
#[derive(Debug, Clone)]
pub(crate) enum Lifecycle {
    Started(Started),
    Ended { peer: PeerId, conn: ConnectionId, kind: SessionKind, reason: DisconnectReason, unacked_bytes: usize },
    DialFailed { peer: Option<PeerId>, error: DialError },
}

/// The threads of the connections manager, and how to reach them.
#[derive(Debug)]
pub(crate) struct Connections {
    commands: acceptor::Commands,
    reports: Sender<Report>,
    acceptor: Option<Thread>,
    rest: Vec<Thread>,
}

impl Connections {
    /// Starts all threads.
    ///
    /// # Errors
    /// The poll or a thread could not be made; nothing keeps running.
    pub(crate) fn start(
        shared: &Arc<Shared>,
        transport: Arc<dyn Transport>,
        listeners: Vec<Box<dyn Listener>>,
        reports: Receiver<Report>,
        on_event: impl Fn(Lifecycle) + Send + 'static,
    ) -> std::io::Result<Self> {
        let poll = mio::Poll::new()?;
        // Bounded by what sends into it: the half-open budget, the links, the application's dials.
        let (sender, receiver) = unbounded();
        let commands = acceptor::Commands::new(sender, &poll)?;
        let (jobs, work) = unbounded();
        let acceptor = acceptor::Acceptor::new(poll, shared.clone(), transport, listeners, receiver, jobs)?;
        let mut connections = Self { commands, reports: shared.reports.clone(), acceptor: None, rest: Vec::new() };
        for n in 0..WORKERS {
            let (work, commands) = (work.clone(), connections.commands.clone());
            connections.rest.push(threads::spawn("work", &n.to_string(), STACK, move || {
                work::work_loop(&work, &commands);
            })?);
        }
        let supervisor = supervisor::Supervisor::new(shared.clone(), connections.commands.clone(), on_event);
        connections.rest.push(threads::spawn("supervisor", "", STACK, move || {
            supervisor::supervisor_loop(supervisor, &reports);
        })?);
        connections.acceptor = Some(threads::spawn("acceptor", "", STACK, move || acceptor::accept_loop(acceptor))?);
        Ok(connections)
    }

    /// Dials once.
    pub(crate) fn dial(&self, request: DialRequest) {
        self.commands.send(Command::Dial(request));
    }

    /// Keeps a peer connected from now on.
    pub(crate) fn keep(&self, peer: PeerId, addrs: Vec<SocketAddr>) {
        // The supervisor is gone only when the node is.
        let _ = self.reports.send(Report::Keep(peer, addrs));
    }

    /// Stops accepting and dialling.
    pub(crate) fn stop(&self) {
        let _ = self.reports.send(Report::Stop(false));
        self.commands.send(Command::Stop);
    }

    /// Ends all threads; returns the names of those that still run at the deadline.
    ///
    /// # Blocking
    /// Until the threads have ended or the deadline has passed.
    pub(crate) fn join(mut self, deadline: Instant) -> Vec<String> {
        let mut late = Vec::new();
        let mut join = |thread: Thread| {
            if let Err(thread) = thread.join_until(deadline) {
                late.push(thread.name().to_owned());
            }
        };
        self.stop();
        if let Some(acceptor) = self.acceptor.take() {
            join(acceptor);
        }
        // The acceptor held the workers' channel; the supervisor ends on request, after the last report before it.
        let _ = self.reports.send(Report::Stop(true));
        std::mem::take(&mut self.rest).into_iter().for_each(join);
        late
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        // A start that failed halfway, or a shutdown that was not waited for: nothing may keep running.
        self.stop();
        let _ = self.reports.send(Report::Stop(true));
    }
}
