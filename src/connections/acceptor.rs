//! The acceptor: accepts, dials and drives all handshakes in one poll, and starts sessions.
//!
//! Owns: the poll, the listeners, every connection that has no session yet. Threads: `acceptor` only.
//! Locks: the registry lock, then (after it) the link lock of one peer at a time. Blocks on: the poll, woken by its
//! waker, by sockets, and by the nearest deadline.
//! Upholds: a slot is reserved before anything is spent on a connection; a connection that says nothing costs its slot
//! until its deadline and nobody's time; after an accept failed for want of descriptors a timer tries again (readiness
//! is edge-triggered: no event would).

use std::collections::{BTreeSet, HashMap};
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use mio::{Events, Interest, Poll, Token, Waker};

use crate::connections::pending::{Over, Pending, Progress, Stage};
use crate::connections::shared::{Command, DialFailure, DialRequest, Report, Shared, Started};
use crate::error::{CloseReason, DialCause, DialError, DialStage};
use crate::handshake::{Handshake, Work, random_bytes};
use crate::ident::{ConnectionId, SessionKind};
use crate::link::{Decision, Offer};
use crate::metrics::Refusal;
use crate::registry::{Entry, SessionSlot, SessionsError};
use crate::session::{self, PeerLink};
use crate::transport::{Listener, PendingConnection, Transport};
use crate::wire::{self, Attach, Decoder, FrameType, MAX_HANDSHAKE_BODY};

const WAKE: Token = Token(0);
const LISTENER: usize = 1;
/// How long after a failed accept the next one is tried.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// How long a refused connection may take to take its goodbye.
const PARTING: Duration = Duration::from_secs(1);

/// The waker of the poll.
///
/// # Errors
/// The system refused it.
pub(crate) fn waker(poll: &Poll) -> io::Result<Waker> {
    Waker::new(poll.registry(), WAKE)
}

/// Everything the acceptor thread has.
pub(crate) struct Acceptor {
    poll: Poll,
    shared: Arc<Shared>,
    transport: Arc<dyn Transport>,
    listeners: Vec<Box<dyn Listener>>,
    commands: Receiver<Command>,
    jobs: Sender<(ConnectionId, Work)>,
    pending: HashMap<ConnectionId, Pending>,
    deadlines: BTreeSet<(Instant, ConnectionId)>,
    /// When to try accepting again without an event.
    accept_again: Option<Instant>,
    last_conn: u64,
}

/// Runs until it is told to stop; what is under way then is refused.
pub(crate) fn accept_loop(mut acceptor: Acceptor) {
    let mut events = Events::with_capacity(256);
    loop {
        let now = Instant::now();
        let next = acceptor.deadlines.first().map(|(at, _)| *at).into_iter().chain(acceptor.accept_again).min();
        let timeout = next.map(|at| at.saturating_duration_since(now));
        if let Err(error) = acceptor.poll.poll(&mut events, timeout)
            && error.kind() != ErrorKind::Interrupted
        {
            log::error!(target: "threadwire::accept", "polling: {error}");
        }
        for event in &events {
            match event.token() {
                WAKE => {}
                Token(token) if token < LISTENER + acceptor.listeners.len() => acceptor.accept(token - LISTENER),
                Token(token) => acceptor.advance(ConnectionId((token - LISTENER - acceptor.listeners.len()) as u64)),
            }
        }
        while let Ok(command) = acceptor.commands.try_recv() {
            match command {
                Command::Dial(request) => acceptor.dial(request),
                Command::Worked(conn, done) => {
                    if let Some(Pending { stage: Stage::Shaking(handshake), .. }) = acceptor.pending.get_mut(&conn) {
                        handshake.work_done(done);
                    }
                    acceptor.advance(conn);
                }
                Command::Decided(link, decision) => acceptor.carry_out(&link, decision),
                Command::Stop => return acceptor.stop(),
            }
        }
        acceptor.keep_time();
    }
}

impl Acceptor {
    /// Registers the listeners.
    ///
    /// # Errors
    /// The system refused.
    pub(crate) fn new(
        poll: Poll,
        shared: Arc<Shared>,
        transport: Arc<dyn Transport>,
        mut listeners: Vec<Box<dyn Listener>>,
        commands: Receiver<Command>,
        jobs: Sender<(ConnectionId, Work)>,
    ) -> io::Result<Self> {
        for (n, listener) in listeners.iter_mut().enumerate() {
            poll.registry().register(listener.source(), Token(LISTENER + n), Interest::READABLE)?;
        }
        Ok(Self {
            poll,
            shared,
            transport,
            listeners,
            commands,
            jobs,
            pending: HashMap::new(),
            deadlines: BTreeSet::new(),
            accept_again: None,
            last_conn: 0,
        })
    }

    /// Accepts until there is nobody left.
    fn accept(&mut self, listener: usize) {
        loop {
            let Some(listener) = self.listeners.get_mut(listener) else { return };
            let stream = match listener.accept() {
                Ok(stream) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if is_about_one_connection(&error) => continue,
                Err(error) => {
                    self.shared.metrics.accept_errors.add();
                    if self.accept_again.is_none() {
                        log::warn!(target: "threadwire::accept", "accepting: {error}; trying again every {ACCEPT_AGAIN:?}");
                    }
                    self.accept_again = Some(Instant::now() + ACCEPT_AGAIN);
                    return;
                }
            };
            self.shared.metrics.accepted.add();
            match self.shared.registry.reserve(SessionKind::Inbound) {
                Ok(slot) => {
                    let nonce = random_bytes();
                    let Ok(nonce) = nonce else {
                        self.shared.metrics.refused.add(Refusal::NoResources);
                        continue;
                    };
                    let handshake = Handshake::accept(self.shared.handshake.clone(), None, nonce);
                    let deadline = Instant::now() + self.shared.times.handshake;
                    self.add(stream, slot, SessionKind::Inbound, Stage::Shaking(handshake), deadline, None);
                }
                Err(error) => {
                    self.shared.metrics.refused.add(refusal(error));
                    log::debug!(target: "threadwire::accept", "{}: {error}", stream.remote_addr());
                }
            }
        }
    }

    /// Begins a dial.
    fn dial(&mut self, request: DialRequest) {
        self.shared.metrics.dials.add();
        let slot = match self.shared.registry.reserve(SessionKind::Outbound) {
            Ok(slot) => slot,
            Err(error) => {
                log::debug!(target: "threadwire::dial", "{}: {error}", request.addr);
                let cause = DialCause::Rejected(CloseReason::TooMany);
                return self.dial_failed(request, DialStage::Connect, cause, 0);
            }
        };
        let begun = self.transport.connect(request.addr).and_then(|stream| Ok((stream, random_bytes()?)));
        match begun {
            Ok((stream, nonce)) => {
                let handshake = Handshake::dial(self.shared.handshake.clone(), request.peer, nonce);
                let deadline = Instant::now() + self.shared.times.connect;
                self.add(stream, slot, SessionKind::Outbound, Stage::Dialling(handshake), deadline, Some(request));
            }
            Err(error) => self.dial_failed(request, DialStage::Connect, DialCause::Io(error.kind()), 0),
        }
    }

    fn add(
        &mut self,
        mut stream: Box<dyn PendingConnection>,
        slot: SessionSlot,
        kind: SessionKind,
        stage: Stage,
        deadline: Instant,
        request: Option<DialRequest>,
    ) {
        self.last_conn += 1;
        let conn = ConnectionId(self.last_conn);
        let token = Token(LISTENER + self.listeners.len() + conn.0 as usize);
        let registered = self.poll.registry().register(stream.source(), token, Interest::READABLE | Interest::WRITABLE);
        let started = self.shared.now();
        let (decoder, out, peer, unheard) = (Decoder::new(MAX_HANDSHAKE_BODY), Vec::new(), None, None);
        let pending =
            Pending { conn, kind, stream, slot, decoder, out, stage, deadline, started, peer, request, unheard };
        self.deadlines.insert((deadline, conn));
        self.pending.insert(conn, pending);
        match registered {
            Ok(()) => self.advance(conn),
            Err(error) => self.over(conn, Over::Lost(error.kind())),
        }
    }

    /// Lets one connection go as far as it gets.
    fn advance(&mut self, conn: ConnectionId) {
        let Some(pending) = self.pending.get_mut(&conn) else { return };
        let dialling = matches!(pending.stage, Stage::Dialling(_));
        let progress = pending.advance();
        if dialling && !matches!(pending.stage, Stage::Dialling(_)) {
            // Connected: from here on the handshake's own deadline counts.
            let deadline = Instant::now() + self.shared.times.handshake;
            self.move_deadline(conn, deadline);
        }
        match progress {
            Progress::Wait => {}
            Progress::Work(work) => {
                // The workers end after this thread: the channel is open.
                let _ = self.jobs.send((conn, work));
            }
            Progress::Offer => self.offer(conn),
            Progress::Attach(body) => self.attach(conn, &body),
            Progress::Over(over) => self.over(conn, over),
        }
    }

    /// Offers a proven connection to its link.
    fn offer(&mut self, conn: ConnectionId) {
        let Some(pending) = self.pending.get_mut(&conn) else { return };
        let Stage::Proven(proven) = &pending.stage else { return };
        let peer = match self.shared.peer(proven.peer) {
            Ok(peer) => peer,
            Err(error) => {
                log::debug!(target: "threadwire::accept", "{conn}: {error}");
                return self.refuse(conn, CloseReason::TooMany);
            }
        };
        let offer = Offer { conn, started: pending.started, incarnation: proven.incarnation.0 };
        pending.peer = Some(peer.clone());
        let decision = peer.link.core.lock().offer(offer, peer.link.token);
        self.carry_out(&peer.link, decision);
        // The other side's attach may be here already.
        self.advance(conn);
    }

    /// The other side's attach came.
    fn attach(&mut self, conn: ConnectionId, body: &[u8]) {
        let Some(peer) = self.pending.get(&conn).and_then(|pending| pending.peer.clone()) else { return };
        let attach: Attach = match wire::decode(body) {
            Ok(attach) => attach,
            Err(error) => {
                log::debug!(target: "threadwire::accept", "{} {conn}: {error}", peer.link.id.short());
                return self.refuse(conn, CloseReason::ProtocolError);
            }
        };
        let answer = peer.link.core.lock().on_attach(conn, &attach, self.shared.now());
        match answer {
            Ok(decision) => self.carry_out(&peer.link, decision),
            Err(fault) => {
                log::debug!(target: "threadwire::accept", "{} {conn}: {fault}", peer.link.id.short());
                let reason = match fault {
                    crate::link::Fault::BadToken => CloseReason::BadToken,
                    _ => CloseReason::ProtocolError,
                };
                self.refuse(conn, reason);
            }
        }
    }

    /// Does what a link has decided about its connections.
    fn carry_out(&mut self, link: &Arc<PeerLink>, decision: Decision) {
        let Decision { say, attached, close, acked, restarted } = decision;
        link.see_to_freed(acked);
        for (conn, reason) in close {
            if self.pending.contains_key(&conn) {
                self.shared.metrics.duplicates.add();
                self.refuse(conn, reason);
            } else if let Some(session) = self.shared.registry.session(conn, |entry| entry.session.clone()) {
                session.close(link, reason);
            }
        }
        if let Some((conn, attach)) = say
            && let Some(pending) = self.pending.get_mut(&conn)
        {
            if let Err(error) = wire::put_body(&mut pending.out, FrameType::Attach, &attach) {
                log::error!(target: "threadwire::accept", "{conn}: {error}");
            }
            if attached != Some(conn)
                && let Err(error) = pending.flush()
            {
                self.over(conn, Over::Lost(error.kind()));
            }
        }
        if let Some(conn) = attached {
            self.establish(conn, restarted);
        }
    }

    /// Hands an attached connection to its session.
    fn establish(&mut self, conn: ConnectionId, restarted: bool) {
        let Some(pending) = self.take(conn) else { return };
        let Pending { kind, stream, slot, decoder, out, request, stage, peer, .. } = pending;
        let (Stage::Proven(proven), Some(peer)) = (stage, peer) else { return };
        let id = peer.link.id;
        let connection = match stream.establish() {
            Ok(connection) => connection,
            Err(error) => {
                log::warn!(target: "threadwire::accept", "{} {conn}: {error}", id.short());
                let decision = peer.link.core.lock().gone(conn, peer.link.token);
                let cause = DialCause::Io(error.kind());
                match request {
                    Some(request) => self.dial_failed(request, DialStage::Handshake, cause, 0),
                    None => self.shared.metrics.handshake_failed(&cause),
                }
                return self.carry_out(&peer.link, decision);
            }
        };
        let started = Started {
            peer: id,
            conn,
            kind,
            incarnation: proven.incarnation,
            restarted,
            local_addr: connection.local_addr,
            remote_addr: connection.remote_addr,
            advertised: proven.advertised,
        };
        self.shared.metrics.sessions_started.add(kind);
        let prepared = session::prepare(&peer, conn, kind, connection, &out);
        let session = prepared.session.clone();
        self.shared.registry.register(conn, Entry { link: peer.link, session, threads: Vec::new(), slot });
        // Before the first message can be delivered, and before the end can be reported.
        let _ = self.shared.reports.send(Report::Started(started));
        match prepared.run(decoder, &self.shared.on_end) {
            // If they come back, the session has ended, and they with it.
            Ok(threads) => drop(self.shared.registry.add_threads(conn, threads)),
            Err(error) => log::error!(target: "threadwire::accept", "{} {conn}: no threads: {error}", id.short()),
        }
        if let Some(waiter) = request.and_then(|request| request.waiter) {
            // Whoever waited may have given up.
            let _ = waiter.try_send(Ok(id));
        }
    }

    /// Ends a pending connection with a reason that the other side is told.
    fn refuse(&mut self, conn: ConnectionId, reason: CloseReason) {
        let Some(pending) = self.pending.get_mut(&conn) else { return };
        pending.refuse(reason);
        self.over(conn, Over::Rejected(reason));
    }

    /// A pending connection ends without a session.
    fn over(&mut self, conn: ConnectionId, over: Over) {
        let Some(pending) = self.pending.get_mut(&conn) else { return };
        let peer = pending.peer.clone();
        let stage = match (&over, &pending.stage) {
            (Over::NotConnected(_), _) => DialStage::Connect,
            (Over::Lost(_), Stage::Dialling(_)) => DialStage::Connect,
            _ => DialStage::Handshake,
        };
        let (cause, retry_ms) = match over {
            Over::NotConnected(ErrorKind::TimedOut) => (Some(DialCause::TimedOut(self.shared.times.connect)), 0),
            Over::Rejected(CloseReason::HandshakeTimeout) => {
                (Some(DialCause::TimedOut(self.shared.times.handshake)), 0)
            }
            Over::NotConnected(kind) | Over::Lost(kind) => (Some(DialCause::Io(kind)), 0),
            Over::Rejected(reason) => (Some(DialCause::Rejected(reason)), 0),
            Over::Refused(reason, retry_ms) => (Some(DialCause::Refused(reason)), retry_ms),
            Over::Parted => (None, 0),
        };
        let request = pending.request.take();
        let inbound = pending.kind == SessionKind::Inbound;
        // Whoever refuses stays for a moment, until the other side has heard why: closing destroys what was written.
        let parting = matches!(pending.stage, Stage::Parting) && cause.is_some();
        if parting {
            let deadline = Instant::now() + PARTING;
            self.move_deadline(conn, deadline);
        } else {
            drop(self.take(conn));
        }
        if let Some(cause) = cause {
            if inbound {
                self.shared.metrics.handshake_failed(&cause);
                log::debug!(target: "threadwire::accept", "{conn}: {cause}");
            }
            if let Some(request) = request {
                self.dial_failed(request, stage, cause, retry_ms);
            }
        }
        if let Some(peer) = peer {
            let decision = peer.link.core.lock().gone(conn, peer.link.token);
            self.carry_out(&peer.link, decision);
        }
        if parting {
            // The other side may have ended its stream already: no event would say so again.
            self.advance(conn);
        }
    }

    fn dial_failed(&self, request: DialRequest, stage: DialStage, cause: DialCause, retry_ms: u64) {
        let error = DialError { addr: request.addr, stage, cause };
        self.shared.metrics.dial_failed(&error);
        if let Some(waiter) = request.waiter {
            let _ = waiter.try_send(Err(error.clone()));
        }
        let retry_after = Duration::from_millis(retry_ms);
        let _ = self.shared.reports.send(Report::DialFailed(DialFailure { peer: request.peer, error, retry_after }));
    }

    /// Takes a connection out, off the poll.
    fn take(&mut self, conn: ConnectionId) -> Option<Pending> {
        let mut pending = self.pending.remove(&conn)?;
        self.deadlines.remove(&(pending.deadline, conn));
        if let Err(error) = self.poll.registry().deregister(pending.stream.source()) {
            log::debug!(target: "threadwire::accept", "{conn}: {error}");
        }
        Some(pending)
    }

    fn move_deadline(&mut self, conn: ConnectionId, deadline: Instant) {
        let Some(pending) = self.pending.get_mut(&conn) else { return };
        self.deadlines.remove(&(pending.deadline, conn));
        pending.deadline = deadline;
        self.deadlines.insert((deadline, conn));
    }

    /// Ends what has taken too long, and accepts again after a failure.
    fn keep_time(&mut self) {
        let now = Instant::now();
        while let Some((at, conn)) = self.deadlines.first().copied()
            && at <= now
        {
            match self.pending.get(&conn).map(|pending| &pending.stage) {
                Some(Stage::Parting) | None => {
                    self.deadlines.remove(&(at, conn));
                    drop(self.take(conn));
                }
                Some(Stage::Dialling(_)) => self.over(conn, Over::NotConnected(ErrorKind::TimedOut)),
                Some(_) => {
                    self.shared.metrics.handshake_timeouts.add();
                    self.refuse(conn, CloseReason::HandshakeTimeout);
                }
            }
        }
        if self.accept_again.is_some_and(|at| at <= now) {
            self.accept_again = None;
            (0..self.listeners.len()).for_each(|listener| self.accept(listener));
        }
    }

    /// Refuses what is under way, and has every session say goodbye: whoever asked for the end saw only those that had
    /// begun before, and no more can begin now.
    fn stop(mut self) {
        let parting = |pending: &Pending| matches!(pending.stage, Stage::Parting);
        let conns: Vec<_> = self.pending.values().filter(|pending| !parting(pending)).map(|p| p.conn).collect();
        for conn in conns {
            self.refuse(conn, CloseReason::Shutdown);
        }
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Dial(request) = command {
                self.shared.metrics.dials.add();
                self.dial_failed(request, DialStage::Connect, DialCause::ShuttingDown, 0);
            }
        }
        for (link, session) in self.shared.registry.sessions(|entry| (entry.link.clone(), entry.session.clone())) {
            session.say_goodbye(&link, CloseReason::Shutdown);
        }
    }
}

/// What a refusal for want of a slot counts as.
fn refusal(error: SessionsError) -> Refusal {
    match error {
        SessionsError::TooManyHalfOpen => Refusal::TooManyHalfOpen,
        SessionsError::Closed => Refusal::ShuttingDown,
        SessionsError::TooMany(_) | SessionsError::TooManyLinks => Refusal::TooManyInbound,
    }
}

/// The connection was gone before it was accepted: the next one may be fine.
fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted)
}
