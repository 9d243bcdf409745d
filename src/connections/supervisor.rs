//! The supervisor: watches over sessions' deadlines, handles their ends, and keeps peers connected.
//!
//! Owns: which peers are to be kept connected, where they are, and when each is dialled next. Threads: `supervisor`
//! only. Locks: the registry lock to find sessions, the link lock to look at one; one after the other.
//! Blocks on: its channel, with the next scan or dial as timeout.
//! Upholds: events come in the order things happened (a session's start before its end); every end is handled once;
//! a peer is dialled only while it has no session; a lost peer is dialled again after a delay of its policy.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use crate::connections::backoff::ReconnectPolicy;
use crate::connections::shared::{Command, Commands, DialFailure, DialRequest, Lifecycle, Report, Shared, Started};
use crate::error::CloseReason;
use crate::ident::{ConnectionId, PeerId};
use crate::session::{Pulse, Session, SessionEnded};

/// How often sessions are looked at.
const SCAN: Duration = Duration::from_millis(100);
/// How long a session that said goodbye may take to end.
const LINGER: Duration = Duration::from_secs(1);

/// What the supervisor thread has.
pub(crate) struct Supervisor<F> {
    shared: Arc<Shared>,
    commands: Commands,
    on_event: F,
    kept: HashMap<PeerId, Kept>,
    watched: HashMap<ConnectionId, Watched>,
    /// Links without a session, and since when.
    detached: BTreeMap<PeerId, Instant>,
    rng: fastrand::Rng,
    stopped: bool,
}

/// A peer to keep connected.
struct Kept {
    addrs: Vec<SocketAddr>,
    /// Which address is next.
    next: usize,
    policy: ReconnectPolicy,
    state: State,
    /// Whether the last attempt failed: only changes are logged.
    failing: bool,
}

/// What a kept peer is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting(Instant),
    Dialling,
    Connected,
}

/// What was last seen of a session, and when it changed.
struct Watched {
    pulse: Pulse,
    heard_at: Instant,
    wrote_at: Instant,
    parting_since: Option<Instant>,
    /// A handler has been running since then, and nothing was read meanwhile.
    busy_since: Option<Instant>,
    /// That was said.
    warned: bool,
}

/// Runs until it is told to end.
pub(crate) fn supervisor_loop<F: Fn(Lifecycle)>(mut supervisor: Supervisor<F>, reports: &Receiver<Report>) {
    let mut next_scan = Instant::now() + SCAN;
    loop {
        let due = supervisor.next_dial().map_or(next_scan, |dial| dial.min(next_scan));
        match reports.recv_deadline(due) {
            Ok(Report::Started(started)) => supervisor.started(started),
            Ok(Report::Ended(ended)) => supervisor.ended(ended),
            Ok(Report::DialFailed(failure)) => supervisor.dial_failed(failure),
            Ok(Report::Keep(peer, addrs)) => supervisor.keep(peer, addrs),
            Ok(Report::Stop(end)) => {
                supervisor.stopped = true;
                if end {
                    return;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let now = Instant::now();
        supervisor.dial_due(now);
        if now >= next_scan {
            supervisor.scan(now);
            next_scan = now + SCAN;
        }
    }
}

impl<F: Fn(Lifecycle)> Supervisor<F> {
    /// Nothing to watch yet.
    pub(crate) fn new(shared: Arc<Shared>, commands: Commands, on_event: F) -> Self {
        Self {
            shared,
            commands,
            on_event,
            kept: HashMap::new(),
            watched: HashMap::new(),
            detached: BTreeMap::new(),
            rng: fastrand::Rng::new(),
            stopped: false,
        }
    }

    fn started(&mut self, started: Started) {
        let now = Instant::now();
        log::info!(
            target: "threadwire::session",
            "{} {}: connected ({}, {})", started.peer.short(), started.conn, started.kind, started.remote_addr
        );
        self.detached.remove(&started.peer);
        if let Some(kept) = self.kept.get_mut(&started.peer) {
            kept.state = State::Connected;
            kept.policy.connected(now);
            kept.failing = false;
        }
        let pulse = Pulse { heard: 0, writes: 0, parting: false };
        self.watched.insert(
            started.conn,
            Watched { pulse, heard_at: now, wrote_at: now, parting_since: None, busy_since: None, warned: false },
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
            self.detached.insert(peer, now);
            if let Some(kept) = self.kept.get_mut(&peer)
                && kept.state == State::Connected
            {
                kept.policy.lost(now);
                let delay = kept.policy.next_delay(&mut self.rng).max(retry_after);
                kept.state = State::Waiting(now + delay);
            }
        }
        (self.on_event)(Lifecycle::Ended { peer, conn, kind, reason, unacked_bytes });
        if let Some(link) = link {
            self.commands.send(Command::Decided(link, decision));
        }
    }

    fn keep(&mut self, peer: PeerId, addrs: Vec<SocketAddr>) {
        let connected = self.shared.registry.link(&peer).is_some_and(|link| link.core.lock().attached().is_some());
        let now = Instant::now();
        let times = &self.shared.times;
        let kept = self.kept.entry(peer).or_insert_with(|| Kept {
            addrs: Vec::new(),
            next: 0,
            policy: ReconnectPolicy::new(&times.backoff, times.stable_after),
            state: if connected { State::Connected } else { State::Waiting(now) },
            failing: false,
        });
        kept.addrs = addrs;
        kept.next = 0;
        if let State::Waiting(_) = kept.state {
            kept.state = State::Waiting(now);
        }
    }

    fn next_dial(&self) -> Option<Instant> {
        if self.stopped {
            return None;
        }
        let waiting = self.kept.values().filter(|kept| !kept.addrs.is_empty());
        waiting.filter_map(|kept| if let State::Waiting(at) = kept.state { Some(at) } else { None }).min()
    }

    fn dial_due(&mut self, now: Instant) {
        if self.stopped {
            return;
        }
        for (peer, kept) in &mut self.kept {
            let State::Waiting(at) = kept.state else { continue };
            let Some(addr) = kept.addrs.get(kept.next % kept.addrs.len().max(1)) else { continue };
            if at <= now {
                kept.state = State::Dialling;
                self.commands.send(Command::Dial(DialRequest { peer: Some(*peer), addr: *addr, waiter: None }));
            }
        }
    }

    fn dial_failed(&mut self, failure: DialFailure) {
        let DialFailure { peer, error, retry_after } = failure;
        if let Some(kept) = peer.and_then(|peer| self.kept.get_mut(&peer))
            && kept.state == State::Dialling
        {
            let who = peer.map(|peer| peer.short()).unwrap_or_default();
            if kept.failing {
                log::debug!(target: "threadwire::dial", "{who}: {error} (attempt {})", kept.policy.attempts());
            } else {
                log::warn!(target: "threadwire::dial", "{who}: {error}; trying again until it answers");
            }
            kept.failing = true;
            kept.next = kept.next.wrapping_add(1);
            // All addresses of a round are tried at once; the delay comes after the round.
            let round_over = kept.next.is_multiple_of(kept.addrs.len().max(1));
            let delay =
                if round_over { kept.policy.next_delay(&mut self.rng).max(retry_after) } else { Duration::ZERO };
            kept.state = State::Waiting(Instant::now() + delay);
            // The other side may have dialled us meanwhile: then this one lost to that.
            let link = peer.and_then(|peer| self.shared.registry.link(&peer));
            if link.is_some_and(|link| link.core.lock().attached().is_some()) {
                kept.state = State::Connected;
            }
        }
        (self.on_event)(Lifecycle::DialFailed { peer, error });
    }

    /// Cuts sessions that show no life, and forgets what a link kept beyond its resume window.
    fn scan(&mut self, now: Instant) {
        let times = self.shared.times.clone();
        for (link, session) in self.shared.registry.sessions(|entry| (entry.link.clone(), entry.session.clone())) {
            let Some(watched) = self.watched.get_mut(&session.conn) else { continue };
            let pulse = session.pulse();
            if pulse.heard != watched.pulse.heard || !link.is_busy() {
                (watched.busy_since, watched.warned) = (None, false);
            }
            if link.is_busy() && now - *watched.busy_since.get_or_insert(now) > times.watchdog && !watched.warned {
                watched.warned = true;
                log::warn!(
                    target: "threadwire::session",
                    "{} {}: a handler has been running for more than {:?}", link.id.short(), session.conn, times.watchdog
                );
                (self.on_event)(Lifecycle::HandlerSlow { peer: link.id, conn: session.conn });
            }
            // A handler that runs keeps its thread from reading: nobody is judged late meanwhile.
            if pulse.heard != watched.pulse.heard || link.is_busy() {
                watched.heard_at = now;
            }
            // Odd: a write is under way, and has been since the count last changed.
            if pulse.writes != watched.pulse.writes || pulse.writes.is_multiple_of(2) {
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
            if let Some(reason) = cut {
                if reason != CloseReason::Requested {
                    self.shared.metrics.sessions_cut.add();
                }
                session.close(&link, reason);
            }
        }
        while let Some((peer, _)) = self.detached.iter().find(|(_, since)| now - **since > times.resume) {
            let peer = *peer;
            self.detached.remove(&peer);
            if let Some(link) = self.shared.registry.link(&peer) {
                let (_, state) = self.shared.secrets.next();
                let unknown = link.core.lock().give_up(state);
                if unknown > 0 {
                    log::warn!(
                        target: "threadwire::link",
                        "{}: the resume window ended: {unknown} messages end unknown", peer.short()
                    );
                }
            }
        }
    }
}
