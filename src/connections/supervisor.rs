//! The supervisor: watches over sessions' deadlines, handles their ends, and keeps peers connected.
//!
//! Owns: the plan of outbound connections ([`Outbound`]), the addresses where anybody is wanted ([`Places`]), the lookups
//! it needs ([`Lookups`]), what was last seen of each session, which peers are slow. Threads: `supervisor` only. Locks: the
//! registry lock to find sessions, the link lock to look at one, the outbox lock of a peer for which something waits, or
//! that leaves; one after the other; the leaf of a map of peers.
//! Blocks on: its channel and word of changes of that map, with the next scan, dial or deadline of a lookup as timeout.
//! Upholds: events come in the order things happened (a session's start before its end); every end is handled once;
//! a peer is dialled only while it has no session, or one at an address that the map has taken away; a lost peer is
//! dialled again after a delay of its policy.

mod following;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, never, select_biased};

use crate::config::Closed;
use crate::connections::lookups::{Asked, Lookups};
use crate::connections::outbound::{Action, Outbound};
use crate::connections::places::Places;
use crate::connections::resolver::Resolvers;
use crate::connections::round::RoundId;
use crate::connections::shared::{
    Command, Commands, DialFailure, DialRequest, Lifecycle, PeersMap, Report, Said, Shared, Started,
};
use crate::connections::slowness::{Look, SlowPeers, Turn};
use crate::error::{CloseReason, ConnectError, DialCause, RequestError, joined};
use crate::ident::{ConnectionId, PeerId};
use crate::metrics::Metrics;
use crate::session::{Backlog, PeerLink, Pulse, Session, SessionEnded};

/// How often sessions are looked at.
const SCAN: Duration = Duration::from_millis(100);
/// How many are looked at each time, on average: with more of them, each has its turn less often.
const LOOKS: usize = 500;
/// Each has its turn at least with every so many scans.
const TURNS: usize = 10;
/// How long a handler runs, without anything read meanwhile, until the other side is told that this one is busy.
const TELL_BUSY: Duration = Duration::from_millis(300);
/// How long a session that said goodbye may take to end.
const LINGER: Duration = Duration::from_secs(1);

/// What the supervisor thread has.
pub(crate) struct Supervisor<F> {
    shared: Arc<Shared>,
    commands: Commands,
    on_event: F,
    outbound: Outbound,
    lookups: Lookups,
    resolvers: Resolvers,
    places: Places,
    /// The links that stand for them, and who was there last.
    stand_ins: BTreeMap<SocketAddr, (Arc<PeerLink>, Option<Arc<PeerLink>>)>,
    /// Where peers are, if somebody keeps a map of them.
    map: Option<PeersMap>,
    /// What it said last, until every report that came before is heard.
    unheard: Option<Said>,
    /// Which of what it said holds.
    heard: u64,
    /// How many peers of that there was no room for.
    left_out: usize,
    /// Who waits for the end of a round.
    waiters: HashMap<RoundId, Sender<Result<PeerId, ConnectError>>>,
    watched: HashMap<ConnectionId, Watched>,
    slow: SlowPeers,
    /// Links without a session, and since when.
    detached: BTreeMap<PeerId, Instant>,
    rng: fastrand::Rng,
    /// Scans so far.
    scans: usize,
}

/// What was last seen of a session, and when it changed.
struct Watched {
    began: Instant,
    pulse: Pulse,
    heard_at: Instant,
    wrote_at: Instant,
    parting_since: Option<Instant>,
    /// A handler has been running since then, and nothing was read meanwhile.
    busy_since: Option<Instant>,
    /// That was said in the log.
    warned: bool,
    /// The other side was told so.
    told: bool,
}

/// Runs until it is told to end.
pub(crate) fn supervisor_loop<F: Fn(Lifecycle)>(mut supervisor: Supervisor<F>, reports: &Receiver<Report>) {
    let mut next_scan = Instant::now() + SCAN;
    let nothing = never();
    loop {
        let due = supervisor.next_due().map_or(next_scan, |due| due.min(next_scan));
        let map = supervisor.map.as_ref().map_or(&nothing, |map| &map.changes).clone();
        // What has happened comes before where to go next.
        select_biased! {
            recv(reports) -> report => match report {
                Ok(report) => {
                    if supervisor.hear(report) {
                        return;
                    }
                }
                Err(_) => return,
            },
            recv(map) -> word => supervisor.map_changed(word.is_ok()),
            default(due.saturating_duration_since(Instant::now())) => {}
        }
        let now = Instant::now();
        if reports.is_empty() {
            supervisor.follow_map(now);
        }
        supervisor.see_to_outbound(now);
        if now >= next_scan {
            supervisor.scan(now);
            next_scan = now + SCAN;
        }
    }
}

impl<F: Fn(Lifecycle)> Supervisor<F> {
    /// Nothing to watch yet.
    pub(crate) fn new(shared: Arc<Shared>, commands: Commands, resolvers: Resolvers, on_event: F) -> Self {
        let times = shared.times();
        let (limit, threads) = (&shared.outbound, &shared.resolve_threads);
        let outbound = Outbound::new(limit.load(Ordering::Relaxed), times.backoff.clone(), times.stable_after);
        let places = Places::new(times.backoff.clone(), times.stable_after);
        let lookups = Lookups::new(threads.load(Ordering::Relaxed), times.lookup);
        Self {
            shared,
            commands,
            on_event,
            outbound,
            lookups,
            resolvers,
            places,
            stand_ins: BTreeMap::new(),
            map: None,
            unheard: None,
            heard: 0,
            left_out: 0,
            waiters: HashMap::new(),
            watched: HashMap::new(),
            slow: SlowPeers::default(),
            detached: BTreeMap::new(),
            rng: fastrand::Rng::new(),
            scans: 0,
        }
    }

    /// Does what a report asks for. Whether that is to end.
    fn hear(&mut self, report: Report) -> bool {
        match report {
            Report::Started(started) => self.started(started),
            Report::Ended(ended) => self.ended(ended),
            Report::DialFailed(failure) => self.dial_failed(failure),
            Report::NoRoom(dial) => self.outbound.no_room(dial, Instant::now() + SCAN),
            Report::Resolved(host, found) => self.lookup_ended(&host, found),
            Report::Keep(peer, addresses) => self.outbound.keep(peer, addresses, Instant::now()),
            Report::Remove(peer, said) => {
                self.follow(said, Instant::now());
                if self.outbound.remove(peer, Instant::now()) {
                    self.leave(peer);
                }
            }
            Report::Find(link) => self.find(link),
            Report::Follow(map) => {
                (self.map, self.heard, self.left_out) = (Some(map), 0, 0);
                self.map_changed(true);
                self.follow_map(Instant::now());
            }
            Report::Connect(address, waiter) => {
                let round = self.outbound.connect(address, Instant::now(), &mut self.rng);
                self.waiters.insert(round, waiter);
            }
            Report::IdentityClash(peer, remote_addr) => {
                log::warn!(
                    target: "threadwire::session",
                    "{}: two processes have this identity: the one that was here first stays ({remote_addr})",
                    peer.short()
                );
                (self.on_event)(Lifecycle::IdentityClash { peer, remote_addr });
            }
            Report::Part(peers, said, answer) => {
                self.follow(said, Instant::now());
                let gone = peers.into_iter().filter(|peer| self.outbound.remove(*peer, Instant::now())).collect();
                self.part(gone, &answer);
            }
            Report::Changed => self.changed(Instant::now()),
            Report::Tell(lifecycle) => (self.on_event)(lifecycle),
            Report::Stop(end) => {
                (self.map, self.unheard) = (None, None);
                self.places.stop();
                self.stand_ins.clear();
                self.outbound.stop();
                self.lookups.stop();
                if end {
                    // Nobody waits for an answer that does not come.
                    self.see_to_outbound(Instant::now());
                }
                return end;
            }
        }
        false
    }

    /// When something is to be done that no report asks for.
    fn next_due(&self) -> Option<Instant> {
        self.outbound.next_due().into_iter().chain(self.lookups.next_deadline()).chain(self.places.next_due()).min()
    }

    /// Lets peers go that nobody wants any more, and says which sessions that ends: those that leave already are told
    /// why by somebody else.
    fn part(&mut self, gone: Vec<PeerId>, answer: &Sender<Vec<Closed>>) {
        let mut closed = Vec::new();
        for peer in gone {
            if let Some(link) = self.shared.registry.link(&peer) {
                let attached = link.core.lock().attached();
                let session = |conn| self.shared.registry.session(conn, |entry| entry.session.clone());
                let stays = attached.filter(|conn| session(*conn).is_none_or(|session| !session.is_leaving(&link)));
                closed.extend(stays.map(|conn| Closed::new(peer, conn, CloseReason::Requested)));
            }
            self.leave(peer);
        }
        // Whoever asked may have given up.
        let _ = answer.send(closed);
    }

    /// Deadlines, delays or bounds have changed.
    fn changed(&mut self, now: Instant) {
        let times = self.shared.times();
        let (limit, threads) = (&self.shared.outbound, &self.shared.resolve_threads);
        self.outbound.change(limit.load(Ordering::Relaxed), times.backoff.clone(), times.stable_after, now);
        self.places.change(times.backoff.clone(), times.stable_after, now);
        for host in self.lookups.change(threads.load(Ordering::Relaxed), times.lookup, now) {
            self.begin_lookup(host);
        }
        if self.left_out > 0 {
            // There may be room now: what the map said last is followed once more.
            self.heard = self.heard.saturating_sub(1);
            self.map_changed(true);
        }
    }

    fn started(&mut self, started: Started) {
        let now = Instant::now();
        log::info!(
            target: "threadwire::session",
            "{} {}: connected ({}, {})", started.peer.short(), started.conn, started.kind, started.remote_addr
        );
        self.detached.remove(&started.peer);
        self.outbound.started(started.peer, started.conn, started.kind, started.dial, now);
        let pulse = Pulse { reads: 0, heard: 0, writes: 0, parting: false, peer_busy: false };
        self.watched.insert(
            started.conn,
            Watched {
                began: now,
                pulse,
                heard_at: now,
                wrote_at: now,
                parting_since: None,
                busy_since: None,
                warned: false,
                told: false,
            },
        );
        (self.on_event)(Lifecycle::Started(started));
    }

    fn ended(&mut self, ended: SessionEnded) {
        let SessionEnded { session, reason, retry_after, unacked_bytes, decision } = ended;
        let Session { conn, peer, kind, .. } = *session;
        log::info!(target: "threadwire::session", "{} {conn}: disconnected: {reason}", peer.short());
        self.shared.metrics.session_ended(&reason);
        self.watched.remove(&conn);
        let entry = self.shared.registry.unregister(conn);
        let link = self.shared.registry.link(&peer);
        // The slot is given back here, without the registry lock.
        drop(entry);
        let connected = link.as_ref().is_some_and(|link| link.core.lock().attached().is_some());
        let now = Instant::now();
        if !connected {
            self.slow.away(&peer);
            if let Some(link) = &link {
                link.close_window();
            }
            self.detached.insert(peer, now);
            for addr in self.places.lost(peer, now, &mut self.rng) {
                if let Some((stand_in, _)) = self.stand_ins.get(&addr) {
                    stand_in.bind(None);
                }
            }
        }
        self.outbound.ended(peer, conn, retry_after, now, &mut self.rng);
        (self.on_event)(Lifecycle::Ended { peer, conn, kind, reason, unacked_bytes });
        if let Some(link) = link {
            self.commands.send(Command::Decided(link, decision));
        }
    }

    fn dial_failed(&mut self, failure: DialFailure) {
        let DialFailure { dial, peer, proven, error, retry_after } = failure;
        let place = self.outbound.round_of(dial).and_then(|round| self.places.place_of(round));
        self.outbound.dial_failed(dial, error.clone(), proven, retry_after, Instant::now(), &mut self.rng);
        (self.on_event)(Lifecycle::DialFailed { peer, place, error });
    }

    /// A round has the answer of its lookup.
    fn resolved(&mut self, round: RoundId, found: Result<&[SocketAddr], DialCause>) {
        let peer = self.outbound.peer_of(round);
        if found == Err(DialCause::ResolversBusy) {
            self.shared.metrics.lookups_refused.add();
        }
        if let Some(error) = self.outbound.resolved(round, found, Instant::now(), &mut self.rng) {
            self.shared.metrics.lookups_failed.add();
            (self.on_event)(Lifecycle::DialFailed { peer, place: None, error });
        }
    }

    /// Nobody wants a peer to be kept any longer: its session ends, whoever dialled.
    fn leave(&self, peer: PeerId) {
        let link = self.shared.registry.link(&peer);
        if let Some(link) = &link {
            link.requests.lose_all(&RequestError::Removed);
        }
        let attached = link.and_then(|link| link.core.lock().attached());
        if let Some(conn) = attached {
            self.part_with(conn);
        }
    }

    /// Has a session say goodbye that nobody wants any more.
    fn part_with(&self, conn: ConnectionId) {
        let session = self.shared.registry.session(conn, |entry| (entry.link.clone(), entry.session.clone()));
        if let Some((link, session)) = session {
            session.say_goodbye(&link, CloseReason::Requested);
        }
    }

    fn look_up(&mut self, round: RoundId, host: &str) {
        match self.lookups.ask(round, host, Instant::now()) {
            Asked::Waits => {}
            Asked::Begin(host) => self.begin_lookup(host),
            Asked::Refused => self.resolved(round, Err(DialCause::ResolversBusy)),
        }
    }

    fn begin_lookup(&mut self, host: Arc<str>) {
        self.shared.metrics.lookups.add();
        if let Err(error) = self.resolvers.look_up(host.clone(), self.lookups.running()) {
            log::error!(target: "threadwire::dial", "no resolver thread: {error}");
            self.lookup_ended(&host, Err(error.to_string()));
        }
    }

    fn lookup_ended(&mut self, host: &str, found: Result<Vec<SocketAddr>, String>) {
        let (rounds, next) = self.lookups.ended(host, Instant::now());
        for round in rounds {
            let found = found.as_deref().map_err(|text| DialCause::Unresolved(text.clone()));
            self.resolved(round, found);
        }
        if let Some(next) = next {
            self.begin_lookup(next);
        }
    }

    /// Does all that is to be done about outbound connections now.
    fn see_to_outbound(&mut self, now: Instant) {
        for (round, cause) in self.lookups.expired(now) {
            self.resolved(round, Err(cause));
        }
        self.dial_places(now);
        loop {
            let actions = self.outbound.due(now, &mut self.rng);
            if actions.is_empty() {
                return;
            }
            actions.into_iter().for_each(|action| self.act(action));
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Resolve { round, host } => self.look_up(round, &host),
            Action::Dial { dial, peer, addr } => {
                self.commands.send(Command::Dial(DialRequest { id: dial, peer, addr }))
            }
            Action::Answer { round, outcome } => {
                if let Some(waiter) = self.waiters.remove(&round) {
                    // Whoever waited may have given up.
                    let _ = waiter.try_send(outcome);
                } else {
                    self.found(round, outcome.ok());
                }
            }
            Action::Unwanted { conn } => self.part_with(conn),
            Action::Failed { peer, errors, first, attempts } => {
                let (who, errors) = (peer.short(), joined(&errors));
                if first {
                    log::warn!(target: "threadwire::dial", "{who}: {errors}; trying again until it answers");
                } else {
                    log::debug!(target: "threadwire::dial", "{who}: {errors} (attempt {attempts})");
                }
            }
            Action::Changed { peer } => {
                if let Some(link) = self.shared.registry.link(&peer) {
                    self.shared.note_redial(&link, self.outbound.redial(&peer));
                }
            }
            Action::Vanished { peer } => self.leave(peer),
            Action::Tell(event) => {
                log::debug!(target: "threadwire::dial", "{}: {event:?}", event.peer().short());
                (self.on_event)(Lifecycle::Sender(event));
            }
            Action::Full => log::warn!(
                target: "threadwire::dial",
                "as many outbound connections as the configuration allows ({}): further peers wait",
                self.shared.outbound.load(Ordering::Relaxed)
            ),
        }
    }

    /// Tells of slow peers, cuts sessions that show no life, and ends what waited too long: messages that expired, that
    /// an unknown peer did not come for, that a link kept beyond its resume window; questions that nobody answered in
    /// time.
    fn scan(&mut self, now: Instant) {
        let times = self.shared.times();
        let turns = self.watched.len().div_ceil(LOOKS).clamp(1, TURNS);
        self.scans = self.scans.wrapping_add(1);
        for (conn, watched) in &mut self.watched {
            if conn.0 as usize % turns != self.scans % turns {
                continue;
            }
            let found = self.shared.registry.session(*conn, |entry| (entry.link.clone(), entry.session.clone()));
            let Some((link, session)) = found else { continue };
            let pulse = session.pulse();
            if pulse.reads != watched.pulse.reads || !link.is_busy() {
                (watched.busy_since, watched.warned) = (None, false);
            }
            // Before the other side asks for a sign of life and gives us up.
            let busy = link.is_busy() && now - *watched.busy_since.get_or_insert(now) > TELL_BUSY;
            if std::mem::replace(&mut watched.told, busy) != busy {
                session.tell_busy(&link, busy);
            }
            if link.is_busy() && now - *watched.busy_since.get_or_insert(now) > times.watchdog && !watched.warned {
                watched.warned = true;
                log::warn!(
                    target: "threadwire::session",
                    "{} {}: a handler has been running for more than {:?}", link.id.short(), session.conn, times.watchdog
                );
                (self.on_event)(Lifecycle::HandlerSlow { peer: link.id, conn: session.conn });
            }
            // A handler that runs keeps its thread from reading: nobody is judged late meanwhile. Bytes that come to no
            // whole frame do not count, or a peer that drips them would be here for ever.
            if pulse.heard != watched.pulse.heard || link.is_busy() {
                watched.heard_at = now;
            }
            // Odd: a write is under way, and has been since the count last changed. A peer whose handler runs does not
            // read: that is no stall if it has said so, or if ours keeps us from reading that.
            let writes = pulse.writes != watched.pulse.writes || pulse.writes.is_multiple_of(2);
            if writes || pulse.peer_busy || link.is_busy() {
                watched.wrote_at = now;
            }
            if pulse.parting {
                watched.parting_since.get_or_insert(now);
            }
            watched.pulse = pulse;
            let cut = if watched.parting_since.is_some_and(|since| now - since > LINGER) {
                Some(CloseReason::Requested)
            } else if now - watched.heard_at > times.idle {
                Some(CloseReason::Idle)
            } else if now - watched.wrote_at > times.write {
                Some(CloseReason::WriteStalled)
            } else {
                None
            };
            let stalled = (watched.wrote_at < now).then_some(watched.wrote_at);
            // Thousands of idle peers cost a look at an atomic each.
            if link.outbox.may_wait() || stalled.is_some() || self.slow.has(&link.id) {
                let silent = cut.is_some_and(|reason| reason != CloseReason::Requested);
                let look = Look { backlog: link.outbox.backlog(), began: watched.began, stalled, cut: silent };
                // What waits is judged by the session that writes it.
                if look.backlog.conn == Some(*conn)
                    && let Some(turn) = self.slow.look(link.id, &look, now, times.slow)
                {
                    (self.on_event)(told(&self.shared.metrics, link.id, *conn, look.backlog, turn));
                }
            }
            if let Some(reason) = cut {
                if reason != CloseReason::Requested {
                    self.shared.metrics.sessions_cut.add();
                }
                session.close(&link, reason);
            }
        }
        if let Some(limit) = now.checked_sub(times.unknown) {
            self.shared.registry.unknown_links().iter().for_each(|link| link.end_unknown(limit));
        }
        self.let_go();
        self.shared.registry.forget_unknown();
        for link in self.shared.registry.links_where(|link| link.outbox.may_expire()) {
            link.expire(now);
        }
        // After those that come back unsent, with their payloads.
        self.shared.settings.askers.expire(now);
        while let Some((peer, _)) = self.detached.iter().find(|(_, since)| now - **since > times.resume) {
            let peer = *peer;
            self.detached.remove(&peer);
            if let Some(link) = self.shared.registry.link(&peer) {
                let (_, state) = self.shared.secrets.next();
                let ended = link.give_up(state);
                if link.core.lock().attached().is_none() {
                    link.requests.lose_handed(&RequestError::PeerLost);
                }
                if ended > 0 {
                    log::warn!(
                        target: "threadwire::link",
                        "{}: the resume window ended, and with it {ended} messages", peer.short()
                    );
                }
            }
        }
    }
}

/// What is told of a peer that has become slow, or has recovered.
fn told(metrics: &Metrics, peer: PeerId, conn: ConnectionId, backlog: Backlog, turn: Turn) -> Lifecycle {
    let Backlog { messages, bytes, .. } = backlog;
    match turn {
        Turn::Slow(oldest_age) => {
            metrics.slow_peers.add();
            log::info!(
                target: "threadwire::session",
                "{} {conn}: slow: {messages} messages ({bytes} bytes) wait, the oldest for {oldest_age:?}", peer.short()
            );
            Lifecycle::PeerSlow { peer, oldest_age, queued_messages: messages, queued_bytes: bytes }
        }
        Turn::Recovered => {
            log::info!(target: "threadwire::session", "{} {conn}: no longer slow", peer.short());
            Lifecycle::PeerRecovered { peer }
        }
    }
}
