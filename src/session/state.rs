//! What threads share about one connection of a peer, and the report of its end.
//!
//! Owns: the close-once gate, counters that show life, the heartbeats' clock. Threads: `tx-<peer>`, `rx-<peer>`, `supervisor`.
//! Locks: the gate's and the heartbeats', leaves; [`Session::leave`] takes the outbox lock and the link lock, one after the other.
//! Blocks on: nothing.
//! Upholds: a session ends once, with one cause, reported by the last of its threads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{CloseReason, DisconnectReason};
use crate::ident::{ConnectionId, PeerId, SessionKind};
use crate::link::{Decision, Sign};
use crate::session::beat::BeatClock;
use crate::session::gate::Gate;
use crate::session::outbox::Goodbye;
use crate::session::peer_link::PeerLink;
use crate::session::presence::Presence;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::transport::{Closer, Proof};
use crate::wire::Beat;

/// What threads share about one connection of a peer.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) conn: ConnectionId,
    pub(crate) peer: PeerId,
    pub(crate) kind: SessionKind,
    /// What the other side has proven to the transport.
    pub(crate) proof: Option<Arc<Proof>>,
    pub(super) gate: Gate,
    /// Reads of this connection so far: signs of life.
    pub(super) reads: AtomicU64,
    /// Of these, the ones that completed a frame or more: bytes that never come to one are no life.
    pub(super) heard: AtomicU64,
    /// Writes that began and that ended: odd while one is under way.
    pub(super) writes: AtomicU64,
    /// Our goodbye is said, or the other side's was heard: nothing is claimed any more.
    pub(super) parting: AtomicBool,
    /// Whether the process at the other end lives.
    pub(super) presence: Presence,
    /// What heartbeats tell of the round trip.
    beats: Mutex<BeatClock>,
    /// The other side asked to be left alone for so many milliseconds; whichever thread is last reports it.
    retry_after_ms: AtomicU64,
}

impl Session {
    /// A session whose two threads are about to start.
    pub(super) fn new(
        conn: ConnectionId,
        peer: PeerId,
        kind: SessionKind,
        closer: Arc<dyn Closer>,
        proof: Option<Arc<Proof>>,
    ) -> Self {
        Self {
            conn,
            peer,
            kind,
            proof,
            gate: Gate::new(closer, 2),
            reads: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            parting: AtomicBool::new(false),
            presence: Presence::default(),
            beats: Mutex::new(BeatClock::new(Instant::now())),
            retry_after_ms: AtomicU64::new(0),
        }
    }
}

/// Told of a session's end, once, by the last of its threads. Must not block.
pub(crate) type OnEnd = Arc<dyn Fn(SessionEnded) + Send + Sync>;

/// Reported once by the last thread of a session.
#[derive(Debug)]
pub(crate) struct SessionEnded {
    pub(crate) session: Arc<Session>,
    pub(crate) reason: DisconnectReason,
    /// Come back no sooner, if the other side said so.
    pub(crate) retry_after: Duration,
    /// Bytes written and not acknowledged when it ended.
    pub(crate) unacked_bytes: usize,
    /// What the link wants done about other connections.
    pub(crate) decision: Box<Decision>,
}

impl Session {
    /// Ends the session at once, with a reason of ours.
    pub(crate) fn close(&self, link: &PeerLink, reason: CloseReason) {
        self.gate.close(DisconnectReason::Local(reason));
        link.outbox.detach(self.conn);
    }

    /// Says goodbye with `reason`, after what is being written; the session ends when the other side has answered.
    pub(crate) fn say_goodbye(&self, link: &PeerLink, reason: CloseReason) {
        link.outbox.ask_goodbye(self.conn, Goodbye::Say(reason)).wake();
    }

    /// Whether it is about to end: it was asked for a goodbye, whoever asked, or it is attached no longer.
    pub(crate) fn is_leaving(&self, link: &PeerLink) -> bool {
        !link.outbox.is_attached(self.conn) || link.outbox.goodbye(self.conn).is_some()
    }

    /// Asks the other side for a sign of life, by the number of the question.
    pub(crate) fn ask(&self, link: &PeerLink, question: u16) {
        self.presence.ask(question);
        link.outbox.kick(false).wake();
    }

    /// Tells the other side whether a handler has been running for a while: it may wait for an answer.
    pub(crate) fn tell_busy(&self, link: &PeerLink, busy: bool) {
        self.presence.tell(busy);
        link.outbox.kick(false).wake();
    }

    /// What has come of a question, if `reads` of the connection were counted when it was asked.
    pub(crate) fn sign_of_life(&self, link: &PeerLink, question: u16, reads: u64) -> Sign {
        if self.presence.has_answered(question) {
            Sign::Answered
        } else if self.parting.load(Ordering::Relaxed) {
            // It said goodbye, or nothing can be written to it any more.
            Sign::Ended
        } else if link.is_busy() || self.presence.peer_is_busy() || self.reads.load(Ordering::Relaxed) != reads {
            // Our own handler keeps the answer from being read, or theirs the question; or the answer waits behind the
            // rest of a long frame, of which something came.
            Sign::Heard
        } else {
            Sign::Nothing
        }
    }

    /// What the supervisor looks at: reads, whole frames, and whether a write is under way.
    pub(crate) fn pulse(&self) -> Pulse {
        Pulse {
            reads: self.reads.load(Ordering::Relaxed),
            heard: self.heard.load(Ordering::Relaxed),
            writes: self.writes.load(Ordering::Relaxed),
            parting: self.parting.load(Ordering::Relaxed),
            peer_busy: self.presence.peer_is_busy(),
        }
    }

    /// What the next heartbeat says.
    pub(super) fn say_beat(&self, now: Instant, busy: bool) -> Beat {
        self.beats.lock().say(now, busy)
    }

    /// A heartbeat came.
    pub(super) fn hear_beat(&self, beat: Beat) {
        self.beats.lock().hear(Instant::now(), beat);
    }

    /// The last round trip measured, from the second heartbeat on.
    pub(crate) fn rtt(&self) -> Option<Duration> {
        self.beats.lock().rtt()
    }

    /// A thread of the session is done; the last one detaches the link and reports.
    pub(super) fn leave(self: &Arc<Self>, link: &Arc<PeerLink>, on_end: &OnEnd, retry_after: Duration) {
        self.retry_after_ms.fetch_max(retry_after.as_millis() as u64, Ordering::Relaxed);
        let Some(reason) = self.gate.leave() else { return };
        let retry_after = Duration::from_millis(self.retry_after_ms.load(Ordering::Relaxed));
        link.outbox.detach(self.conn);
        let (ended, debt) = link.outbox.detached(self.conn);
        link.release(debt);
        link.tell(ended);
        let mut core = link.core.lock();
        let unacked_bytes = core.unacked_bytes();
        let decision = core.gone(self.conn, link.token);
        drop(core);
        link.delivered.notify_all();
        let report =
            SessionEnded { session: self.clone(), reason, retry_after, unacked_bytes, decision: Box::new(decision) };
        on_end(report);
    }
}

/// Signs of life of a session, as counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pulse {
    pub(crate) reads: u64,
    /// Reads that completed a frame or more.
    pub(crate) heard: u64,
    /// Odd while a write is under way.
    pub(crate) writes: u64,
    pub(crate) parting: bool,
    /// A handler of the other side keeps it from reading: it said so.
    pub(crate) peer_busy: bool,
}
