//! The acceptor: accepts, dials and drives all handshakes in one poll, and starts sessions.
//!
//! Owns: the poll, the listeners, every connection that has no session yet. Threads: `acceptor` only.
//! Locks: the registry lock, then (after it) the link lock of one peer at a time. Blocks on: the poll, woken by its
//! waker, by sockets, and by the nearest deadline.
//! Upholds: a slot is reserved before anything is spent on a connection; a connection that says nothing costs its slot
//! until its deadline or until a newcomer needs it, and nobody's time; a flood of connections leaves turns to the rest.

mod changing;
mod ending;
mod establishing;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use mio::{Events, Interest, Poll, Token, Waker};

use crate::connections::admission::{Admission, Caps, EVICTED, Refusal, Verdict};
use crate::connections::listening::{ListenerId, Listeners};
use crate::connections::pending::{Over, Pending, Progress, Stage};
use crate::connections::questions::Questions;
use crate::connections::shared::{Command, DialFailure, DialRequest, Report, Shared, WorkDone};
use crate::connections::work::{Job, Waiting};
use crate::error::{DialCause, DialError, DialStage};
use crate::handshake::{Handshake, random_bytes};
use crate::ident::{ConnectionId, PeerId, SessionKind};
use crate::registry::{SessionInfo, SessionsError};
use crate::transport::{Listener, PendingConnection, Transport};

const WAKE: Token = Token(0);
const CONNECTION: usize = 1;
/// Connections accepted in one turn of the poll: handshakes under way get theirs in a flood of newcomers.
const ACCEPTS_PER_TURN: usize = 32;
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
    listeners: Listeners,
    admission: Admission,
    commands: Receiver<Command>,
    jobs: Sender<Job>,
    pending: HashMap<ConnectionId, Pending>,
    deadlines: BTreeSet<(Instant, ConnectionId)>,
    /// Those of `pending` that are being told why they are refused, in the order they were.
    parting: VecDeque<ConnectionId>,
    /// Sessions that were asked whether their process lives.
    questions: Questions,
    last_conn: u64,
}

/// Runs until it is told to stop; what is under way then is refused.
pub(crate) fn accept_loop(mut acceptor: Acceptor) {
    let mut events = Events::with_capacity(256);
    loop {
        let now = Instant::now();
        let next = acceptor.deadlines.first().map(|(at, _)| *at).into_iter().chain(acceptor.listeners.again());
        let next = next.chain(acceptor.questions.next()).min();
        let timeout = next.map(|at| at.saturating_duration_since(now));
        if let Err(error) = acceptor.poll.poll(&mut events, timeout)
            && error.kind() != ErrorKind::Interrupted
        {
            log::error!(target: "threadwire::accept", "polling: {error}");
        }
        for event in &events {
            match event.token() {
                WAKE => {}
                token => match ListenerId::of(token) {
                    Some(listener) => {
                        acceptor.accept(listener);
                    }
                    None => {
                        let conn = ConnectionId((token.0 - CONNECTION) as u64);
                        acceptor.advance(conn);
                        if event.is_error() {
                            acceptor.broken(conn);
                        }
                    }
                },
            }
        }
        while let Ok(command) = acceptor.commands.try_recv() {
            match command {
                Command::Dial(request) => acceptor.dial(request),
                Command::Worked(conn, done) => {
                    if let Some(pending) = acceptor.pending.get_mut(&conn) {
                        pending.waiting = None;
                    }
                    match (acceptor.pending.get_mut(&conn), done) {
                        (Some(pending), WorkDone::Secure(done)) => pending.stream.worked(done),
                        (Some(Pending { stage: Stage::Shaking(handshake), .. }), WorkDone::Shake(done)) => {
                            handshake.work_done(done);
                        }
                        _ => {}
                    }
                    acceptor.advance(conn);
                }
                Command::Decided(link, decision) => acceptor.carry_out(&link, *decision),
                Command::Listen(listeners, answer) => drop(answer.send(acceptor.listen(listeners))),
                Command::Unlisten(listeners, answer) => {
                    acceptor.unlisten(&listeners);
                    let _ = answer.send(());
                }
                Command::Limit(caps, answer) => drop(answer.send(acceptor.limit(caps))),
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
        listeners: Vec<(ListenerId, Box<dyn Listener>)>,
        caps: Caps,
        commands: Receiver<Command>,
        jobs: Sender<Job>,
    ) -> io::Result<Self> {
        let mut all = Listeners::default();
        listeners.into_iter().try_for_each(|(id, listener)| all.add(&poll, id, listener))?;
        Ok(Self {
            poll,
            shared,
            transport,
            listeners: all,
            admission: Admission::new(caps),
            commands,
            jobs,
            pending: HashMap::new(),
            deadlines: BTreeSet::new(),
            parting: VecDeque::new(),
            questions: Questions::default(),
            last_conn: 0,
        })
    }

    /// Accepts until there is nobody left, or the others' turn comes: whether somebody may be left.
    fn accept(&mut self, listener: ListenerId) -> bool {
        for _ in 0..ACCEPTS_PER_TURN {
            match self.listeners.accept(listener, Instant::now(), &self.shared.metrics) {
                Some(stream) => self.admit(stream),
                None => return false,
            }
        }
        self.listeners.come_back(Instant::now());
        true
    }

    /// A connection came in: it gets a slot, somebody else's if need be, or is refused.
    fn admit(&mut self, stream: Box<dyn PendingConnection>) {
        self.shared.metrics.accepted.add();
        let (conn, now, remote_addr) = (self.next_conn(), Instant::now(), stream.remote_addr());
        let room = self.shared.registry.room_for(remote_addr.ip());
        match self.admission.judge(remote_addr.ip(), room) {
            Verdict::Admit => {}
            Verdict::Evict(victim) => self.evict(victim),
            Verdict::Refuse(cause) => return self.refuse_new(conn, stream, cause),
        }
        let info = SessionInfo::begun(conn, SessionKind::Inbound, stream.local_addr().ok(), remote_addr, now);
        let slot = match self.shared.registry.reserve(info) {
            Ok(slot) => slot,
            Err(error) => return self.refuse_new(conn, stream, Refusal::of(error)),
        };
        let nonce = match random_bytes() {
            Ok(nonce) => nonce,
            Err(error) => {
                log::error!(target: "threadwire::accept", "{conn} {remote_addr}: no randomness: {error}");
                return self.shared.metrics.refused.add(crate::metrics::Refusal::NoRandomness);
            }
        };
        self.admission.admitted(conn, remote_addr.ip());
        let handshake = Handshake::accept(self.shared.handshake(), None, nonce);
        let deadline = now + self.shared.times().handshake;
        let (kind, stage) = (SessionKind::Inbound, Stage::Shaking(handshake));
        self.add(Pending { slot: Some(slot), ..Pending::new(conn, kind, stream, stage, deadline, self.shared.now()) });
    }

    /// Sends an unproven connection away for one that needs its slot.
    fn evict(&mut self, victim: ConnectionId) {
        self.shared.metrics.evicted.add();
        self.turn_away(victim, EVICTED);
    }

    /// Tells a connection that was not let in why, as far as that goes without waiting, and without a slot.
    fn refuse_new(&mut self, conn: ConnectionId, stream: Box<dyn PendingConnection>, cause: Refusal) {
        self.refused(cause, &format_args!("{conn} {}", stream.remote_addr()));
        let (kind, deadline) = (SessionKind::Inbound, Instant::now() + PARTING);
        let mut pending = Pending::new(conn, kind, stream, Stage::Parting, deadline, self.shared.now());
        let (reason, retry_after) = cause.told();
        pending.refuse(reason, retry_after);
        self.add(pending);
    }

    /// Counts a refusal, and logs it unless too many like it were.
    fn refused(&mut self, cause: Refusal, whom: &fmt::Arguments<'_>) {
        cause.count(&self.shared.metrics);
        match self.admission.line(cause, Instant::now()) {
            Some(0) => log::warn!(target: "threadwire::accept", "{whom}: refused: {cause}"),
            Some(unsaid) => {
                log::warn!(target: "threadwire::accept", "{whom}: refused: {cause}; {unsaid} before it too")
            }
            None => log::debug!(target: "threadwire::accept", "{whom}: refused: {cause}"),
        }
    }

    /// Begins a dial.
    fn dial(&mut self, request: DialRequest) {
        let (conn, now) = (self.next_conn(), Instant::now());
        let info = SessionInfo::begun(conn, SessionKind::Outbound, None, request.addr, now);
        let mut reserved = self.shared.registry.reserve(info);
        // What we want ourselves goes before what strangers have not proven yet.
        if matches!(reserved, Err(SessionsError::NoThreads))
            && let Some(victim) = self.admission.victim()
        {
            self.evict(victim);
            reserved = self.shared.registry.reserve(info);
        }
        let slot = match reserved {
            Ok(slot) => slot,
            Err(error) => {
                log::debug!(target: "threadwire::dial", "{}: {error}", request.addr);
                let _ = self.shared.reports.send(Report::NoRoom(request.id));
                return;
            }
        };
        self.shared.metrics.dials.add();
        let begun = self.transport.connect(request.addr).and_then(|stream| Ok((stream, random_bytes()?)));
        match begun {
            Ok((mut stream, nonce)) => {
                if let Some(peer) = request.peer {
                    stream.expect(peer);
                }
                let stage = Stage::Dialling(Handshake::dial(self.shared.handshake(), request.peer, nonce));
                let allowed = self.shared.times().connect;
                let (kind, started) = (SessionKind::Outbound, self.shared.now());
                let pending = Pending::new(conn, kind, stream, stage, now + allowed, started);
                self.add(Pending { slot: Some(slot), request: Some(request), allowed, ..pending });
            }
            Err(error) => self.dial_failed(request, None, DialStage::Connect, DialCause::Io(error.kind()), 0),
        }
    }

    fn next_conn(&mut self) -> ConnectionId {
        self.last_conn += 1;
        ConnectionId(self.last_conn)
    }

    fn add(&mut self, mut pending: Pending) {
        let conn = pending.conn;
        let token = Token(CONNECTION + conn.0 as usize);
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registered = self.poll.registry().register(pending.stream.source(), token, interest);
        let is_parting = matches!(pending.stage, Stage::Parting);
        self.deadlines.insert((pending.deadline, conn));
        self.pending.insert(conn, pending);
        if is_parting {
            self.part(conn);
        }
        match registered {
            Ok(()) => self.advance(conn),
            Err(_) if is_parting => drop(self.take(conn)),
            Err(error) => self.over(conn, Over::Lost(error.kind())),
        }
    }

    /// Lets one connection go as far as it gets.
    fn advance(&mut self, conn: ConnectionId) {
        let Some(pending) = self.pending.get_mut(&conn) else { return };
        let dialling = matches!(pending.stage, Stage::Dialling(_));
        let parting = matches!(pending.stage, Stage::Parting);
        let progress = pending.advance();
        let is_parting = matches!(pending.stage, Stage::Parting);
        if dialling && !matches!(pending.stage, Stage::Dialling(_)) {
            // Connected: from here on the handshake's own deadline counts.
            pending.allowed = self.shared.times().handshake;
            let deadline = Instant::now() + pending.allowed;
            self.move_deadline(conn, deadline);
        }
        match progress {
            Progress::Wait => {}
            Progress::Work(work) => {
                let (waiting, job) = Waiting::new(conn, work);
                if let Some(pending) = self.pending.get_mut(&conn) {
                    pending.waiting = Some(waiting);
                }
                // The workers end after this thread: the channel is open.
                let _ = self.jobs.send(job);
            }
            Progress::Offer => self.offer(conn),
            Progress::Attach(body) => self.attach(conn, &body),
            // How its end was told is nobody's concern any more.
            Progress::Over(_) if parting => drop(self.take(conn)),
            Progress::Over(Over::Rejected(reason)) if !is_parting => {
                self.turn_away(conn, (reason, None));
            }
            Progress::Over(over) => self.over(conn, over),
        }
    }

    fn dial_failed(
        &self,
        request: DialRequest,
        proven: Option<PeerId>,
        stage: DialStage,
        cause: DialCause,
        retry_ms: u64,
    ) {
        let DialRequest { id: dial, peer, addr } = request;
        let error = DialError { addr: addr.into(), stage, cause };
        self.shared.metrics.dial_failed(&error);
        let retry_after = Duration::from_millis(retry_ms);
        let failure = DialFailure { dial, peer, proven, error, retry_after };
        let _ = self.shared.reports.send(Report::DialFailed(failure));
    }
}
