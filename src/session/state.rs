//! What threads share about one connection of a peer, and the report of its end.
//!
//! Owns: the close-once gate, counters that show life. Threads: `tx-<peer>`, `rx-<peer>`, `supervisor`.
//! Locks: the gate's, a leaf; [`Session::leave`] takes the outbox lock and the link lock, one after the other.
//! Blocks on: nothing.
//! Upholds: a session ends once, with one cause, reported by the last of its threads.

use std::sync::Arc;
use std::time::Duration;

use crate::error::{CloseReason, DisconnectReason};
use crate::ident::{ConnectionId, PeerId, SessionKind};
use crate::link::Decision;
use crate::session::gate::Gate;
use crate::session::outbox::Goodbye;
use crate::session::peer_link::PeerLink;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::transport::Closer;

/// What threads share about one connection of a peer.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) conn: ConnectionId,
    pub(crate) peer: PeerId,
    pub(crate) kind: SessionKind,
    pub(super) gate: Gate,
    /// Reads of this connection so far: life.
    pub(super) heard: AtomicU64,
    /// Writes that began and that ended: odd while one is under way.
    pub(super) writes: AtomicU64,
    /// Our goodbye is said, or the other side's was heard: nothing is claimed any more.
    pub(super) parting: AtomicBool,
    /// The other side asked to be left alone for so many milliseconds; whichever thread is last reports it.
    retry_after_ms: AtomicU64,
}

impl Session {
    /// A session whose two threads are about to start.
    pub(super) fn new(conn: ConnectionId, peer: PeerId, kind: SessionKind, closer: Arc<dyn Closer>) -> Self {
        Self {
            conn,
            peer,
            kind,
            gate: Gate::new(closer, 2),
            heard: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            parting: AtomicBool::new(false),
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
    pub(crate) decision: Decision,
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

    /// What the supervisor looks at: reads, and whether a write is under way.
    pub(crate) fn pulse(&self) -> Pulse {
        Pulse {
            heard: self.heard.load(Ordering::Relaxed),
            writes: self.writes.load(Ordering::Relaxed),
            parting: self.parting.load(Ordering::Relaxed),
        }
    }

    /// A thread of the session is done; the last one detaches the link and reports.
    pub(super) fn leave(self: &Arc<Self>, link: &Arc<PeerLink>, on_end: &OnEnd, retry_after: Duration) {
        self.retry_after_ms.fetch_max(retry_after.as_millis() as u64, Ordering::Relaxed);
        let Some(reason) = self.gate.leave() else { return };
        let retry_after = Duration::from_millis(self.retry_after_ms.load(Ordering::Relaxed));
        link.outbox.detach(self.conn);
        let mut core = link.core.lock();
        let unacked_bytes = core.unacked_bytes();
        let decision = core.gone(self.conn, link.token);
        drop(core);
        link.delivered.notify_all();
        let report = SessionEnded { session: self.clone(), reason, retry_after, unacked_bytes, decision };
        on_end(report);
    }
}

/// Signs of life of a session, as counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pulse {
    pub(crate) heard: u64,
    /// Odd while a write is under way.
    pub(crate) writes: u64,
    pub(crate) parting: bool,
}
