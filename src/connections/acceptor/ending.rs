//! How a connection ends before it has a session: refused, refused by the other side, lost, too late.
//!
//! Owns: nothing; part of the acceptor. Threads: `acceptor` only. Locks: the registry lock (slots), the link lock of one
//! peer; one after the other. Blocks on: nothing.
//! Upholds: whoever is refused has given its slot back before it is told why; telling takes no longer than a second, and
//! those that are being told are bounded: the longest-told one goes.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use super::{Acceptor, PARTING};
use crate::connections::pending::{Over, Pending, Stage};
use crate::connections::shared::{Command, Report};
use crate::error::{CloseReason, DialCause, DialStage};
use crate::ident::{ConnectionId, SessionKind};

/// Refused connections that may take their goodbye at one time.
const MOST_PARTING: usize = 64;

impl Acceptor {
    /// Ends a pending connection with a reason that the other side is told, and when it may come back.
    pub(super) fn turn_away(&mut self, conn: ConnectionId, told: (CloseReason, Option<Duration>)) {
        let Some(pending) = self.pending.get_mut(&conn) else { return };
        pending.refuse(told.0, told.1);
        self.over(conn, Over::Rejected(told.0));
    }

    /// The system says that a connection is broken. Whoever reads or writes finds out by that; while a worker has its
    /// step nobody does.
    pub(super) fn broken(&mut self, conn: ConnectionId) {
        let waits = |pending: &Pending| pending.waiting.is_some() && !matches!(pending.stage, Stage::Parting);
        if self.pending.get(&conn).is_some_and(waits) {
            self.over(conn, Over::Lost(ErrorKind::ConnectionReset));
        }
    }

    /// A pending connection ends without a session.
    pub(super) fn over(&mut self, conn: ConnectionId, over: Over) {
        let Some(pending) = self.pending.get_mut(&conn) else { return };
        let peer = pending.peer.clone();
        let clash = match over {
            // With ourselves, unless a link refused it for another process of its peer.
            Over::Rejected(CloseReason::IdentityClash) => Some(peer.as_ref().map_or(self.shared.me, |p| p.link.id)),
            Over::Refused(CloseReason::IdentityClash, _) => Some(self.shared.me),
            _ => None,
        };
        if let Some(peer) = clash {
            self.shared.metrics.identity_clashes.add();
            let _ = self.shared.reports.send(Report::IdentityClash(peer, pending.stream.remote_addr()));
        }
        let stage = match (&over, &pending.stage) {
            (Over::NotConnected(_), _) => DialStage::Connect,
            (Over::Lost(_), Stage::Dialling(_)) => DialStage::Connect,
            _ => DialStage::Handshake,
        };
        let (cause, retry_ms) = match over {
            Over::NotConnected(ErrorKind::TimedOut) | Over::Rejected(CloseReason::HandshakeTimeout) => {
                (Some(DialCause::TimedOut(pending.allowed)), 0)
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
            let slot = pending.slot.take();
            drop(slot);
            self.admission.settled(conn);
            self.move_deadline(conn, Instant::now() + PARTING);
            self.part(conn);
        } else {
            drop(self.take(conn));
        }
        if let Some(cause) = cause {
            if inbound {
                self.shared.metrics.handshake_failed(&cause);
                log::debug!(target: "threadwire::accept", "{conn}: {cause}");
            }
            if let Some(request) = request {
                let proven = peer.as_ref().map(|peer| peer.link.id);
                self.dial_failed(request, proven, stage, cause, retry_ms);
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

    /// One more that is being told why it is refused.
    pub(super) fn part(&mut self, conn: ConnectionId) {
        self.parting.push_back(conn);
        if self.parting.len() > MOST_PARTING
            && let Some(longest) = self.parting.pop_front()
        {
            drop(self.take(longest));
        }
    }

    /// Takes a connection out, off the poll.
    pub(super) fn take(&mut self, conn: ConnectionId) -> Option<Pending> {
        let mut pending = self.pending.remove(&conn)?;
        self.deadlines.remove(&(pending.deadline, conn));
        self.admission.settled(conn);
        if matches!(pending.stage, Stage::Parting) {
            self.parting.retain(|parting| *parting != conn);
        }
        if let Err(error) = self.poll.registry().deregister(pending.stream.source()) {
            log::debug!(target: "threadwire::accept", "{conn}: {error}");
        }
        Some(pending)
    }

    pub(super) fn move_deadline(&mut self, conn: ConnectionId, deadline: Instant) {
        let Some(pending) = self.pending.get_mut(&conn) else { return };
        self.deadlines.remove(&(pending.deadline, conn));
        pending.deadline = deadline;
        self.deadlines.insert((deadline, conn));
    }

    /// Ends what has taken too long, and accepts again after a failure.
    pub(super) fn keep_time(&mut self) {
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
                    self.turn_away(conn, (CloseReason::HandshakeTimeout, None));
                }
            }
        }
        for (link, decision) in self.questions.look(&self.shared, now) {
            self.carry_out(&link, decision);
        }
        if self.listeners.take_again(now) {
            for listener in self.listeners.ids() {
                self.accept(listener);
            }
        }
    }

    /// Refuses what is under way, and has every session say goodbye: whoever asked for the end saw only those that had
    /// begun before, and no more can begin now.
    pub(super) fn stop(mut self) {
        let parting = |pending: &Pending| matches!(pending.stage, Stage::Parting);
        let conns: Vec<_> = self.pending.values().filter(|pending| !parting(pending)).map(|p| p.conn).collect();
        for conn in conns {
            self.turn_away(conn, (CloseReason::Shutdown, None));
        }
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Dial(request) = command {
                self.shared.metrics.dials.add();
                self.dial_failed(request, None, DialStage::Connect, DialCause::ShuttingDown, 0);
            }
        }
        for (link, session) in self.shared.registry.sessions(|entry| (entry.link.clone(), entry.session.clone())) {
            session.say_goodbye(&link, CloseReason::Shutdown);
        }
    }
}
