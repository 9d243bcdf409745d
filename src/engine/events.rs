//! Lifecycle events: what a node tells its application of connections.
//!
//! Owns: the bounded channel to the application, the count of what did not fit, and what was told of peers that cannot
//! be reached. Threads: `supervisor` tells. Locks: its own, leaves, in [`Events`] and [`Changes`].
//! Blocks on: nothing to tell; [`Changes::wait`] waits with a deadline.
//! Upholds: telling never blocks; what was missed is counted and said before the next event; what goes on failing the
//! same way is told once.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never};

use crate::connections::{Lifecycle, PeerEvent, Started};
use crate::error::{DialError, DisconnectReason};
use crate::ident::{ConnectionId, Incarnation, PeerId, SessionKind};
use crate::metrics::Metrics;
use crate::sync::{Condvar, Mutex};

/// Failures that are told of one peer until it is connected.
const TOLD: usize = 16;

/// Peers that this is kept of.
const FAILING: usize = 4096;

/// Something happened to a connection.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// A session began.
    #[non_exhaustive]
    Connected {
        /// With whom.
        peer: PeerId,
        /// On which connection.
        conn: ConnectionId,
        /// Who dialled.
        kind: SessionKind,
        /// The other side's life.
        incarnation: Incarnation,
        /// Our end.
        local_addr: SocketAddr,
        /// The other end.
        remote_addr: SocketAddr,
        /// Where the peer says it can be dialled.
        advertised: Option<SocketAddr>,
    },
    /// A session ended. What was not acknowledged is kept and sent again on the next one.
    #[non_exhaustive]
    Disconnected {
        /// With whom.
        peer: PeerId,
        /// On which connection.
        conn: ConnectionId,
        /// Who had dialled.
        kind: SessionKind,
        /// Who ended it, and why.
        reason: DisconnectReason,
        /// Bytes that were written and not acknowledged.
        unacked_bytes: usize,
    },
    /// The peer's process is another one than before: what it had not acknowledged is sent once more, announced as
    /// possible repeats. Told right before its `Connected`.
    #[non_exhaustive]
    IncarnationChanged {
        /// Whose.
        peer: PeerId,
        /// Its new life.
        incarnation: Incarnation,
    },
    /// A dial failed. Peers that are kept are dialled again.
    ///
    /// Of a peer that is dialled again and again, each address and cause is told once until the peer is connected, and
    /// sixteen at most: what goes on failing the same way pushes out no other event. Each failure is counted in
    /// [`Node::metrics`](crate::Node::metrics). A dial of [`Node::connect`](crate::Node::connect) is always told.
    #[non_exhaustive]
    DialFailed {
        /// Whom we expected there, if anybody in particular.
        peer: Option<PeerId>,
        /// How far it came, and why not further.
        error: DialError,
    },
    /// Two processes have the key of `peer`, as when a disk was copied: one of them had a session and has just shown that
    /// it lives, so the other one was refused. If `peer` is this node's own id, this is one of the two, and the other one
    /// was first. Stop one of them, and give it a data folder of its own.
    #[non_exhaustive]
    IdentityClash {
        /// Whose key.
        peer: PeerId,
        /// The other end of the connection that was refused.
        remote_addr: SocketAddr,
    },
    /// A message handler of this peer has been running for longer than `handler_watchdog`, and nothing was read
    /// meanwhile. Told once until it ends.
    #[non_exhaustive]
    HandlerSlow {
        /// Whose messages.
        peer: PeerId,
        /// On which connection.
        conn: ConnectionId,
    },
    /// A connected peer is slow: the oldest message that waits for it has waited for `slow_after` since the peer is
    /// connected, its queue has been more than three quarters full for as long, or a write makes no progress for as long.
    ///
    /// Nothing is closed or dropped for it: it is the time to send less, to drop what is old
    /// ([`PeerHandle::set_overflow`](crate::PeerHandle::set_overflow)), or to look at the peer. It is always told before
    /// a session for which something waits is cut with [`Idle`](crate::error::CloseReason::Idle) or
    /// [`WriteStalled`](crate::error::CloseReason::WriteStalled). Told once until [`Event::PeerRecovered`], also if the
    /// session is lost meanwhile. Each lane of the peer has a queue of its own; the fullest counts.
    #[non_exhaustive]
    PeerSlow {
        /// For whom the messages wait.
        peer: PeerId,
        /// How long the oldest of them has waited; if none waits, how long the last write has stood still.
        oldest_age: Duration,
        /// How many wait to be written for the first time.
        queued_messages: usize,
        /// Their bytes.
        queued_bytes: usize,
    },
    /// A peer that was told of as slow keeps up again: its queue is less than half full, and nothing in it has waited for
    /// half of `slow_after`. So it is, too, when what waited has expired or was dropped: the peer need not have moved.
    #[non_exhaustive]
    PeerRecovered {
        /// Which peer.
        peer: PeerId,
    },
    /// Of what dials a kept peer: where it dials, or that it has stopped. Told for each peer that is kept: added,
    /// configured, or in the map of peers ([`NodeBuilder::peers_map`](crate::NodeBuilder::peers_map)).
    Peer(PeerEvent),
    /// So many events did not fit since the last one that was taken.
    Missed(u64),
}

/// Who is told.
#[derive(Debug, Default)]
pub(crate) enum Listener {
    /// Whoever takes the events of the engine.
    #[default]
    Engine,
    /// Whoever takes them here.
    At(Sender<Event>),
    /// Nobody.
    Nobody,
}

/// The telling side.
pub(super) struct Events {
    /// Absent: nobody is told, and nobody misses anything.
    to_application: Option<Sender<Event>>,
    missed: AtomicU64,
    metrics: Arc<Metrics>,
    changes: Arc<Changes>,
    /// What was told of peers that cannot be reached now.
    failing: Mutex<HashMap<PeerId, Vec<DialError>>>,
}

impl Events {
    /// For whoever listens; a channel of the engine's own is one of `capacity` events.
    pub(super) fn new(
        listener: Listener,
        capacity: usize,
        metrics: Arc<Metrics>,
        changes: Arc<Changes>,
    ) -> (Self, Receiver<Event>) {
        let (to_application, receiver) = match listener {
            Listener::Engine => {
                let (sender, receiver) = bounded(capacity);
                (Some(sender), receiver)
            }
            Listener::At(sender) => (Some(sender), never()),
            Listener::Nobody => (None, never()),
        };
        let (missed, failing) = (AtomicU64::new(0), Mutex::default());
        (Self { to_application, missed, metrics, changes, failing }, receiver)
    }

    /// Tells the application, and wakes whoever waits for a change.
    pub(super) fn tell(&self, lifecycle: Lifecycle) {
        match lifecycle {
            Lifecycle::Started(started) => {
                let Started { peer, conn, kind, incarnation, restarted, local_addr, remote_addr, advertised, .. } =
                    started;
                self.failing.lock().remove(&peer);
                if restarted {
                    self.put(Event::IncarnationChanged { peer, incarnation });
                }
                self.put(Event::Connected { peer, conn, kind, incarnation, local_addr, remote_addr, advertised });
            }
            Lifecycle::Ended { peer, conn, kind, reason, unacked_bytes } => {
                self.put(Event::Disconnected { peer, conn, kind, reason, unacked_bytes });
            }
            Lifecycle::DialFailed { peer, place, error } => {
                if peer.or(place.map(PeerId::of_address)).is_none_or(|goal| self.is_news(goal, &error)) {
                    self.put(Event::DialFailed { peer, error });
                }
            }
            // Who it is was told before; those who wait for it look.
            Lifecycle::Found(addr) => drop(self.failing.lock().remove(&PeerId::of_address(addr))),
            Lifecycle::IdentityClash { peer, remote_addr } => self.put(Event::IdentityClash { peer, remote_addr }),
            Lifecycle::HandlerSlow { peer, conn } => self.put(Event::HandlerSlow { peer, conn }),
            Lifecycle::PeerSlow { peer, oldest_age, queued_messages, queued_bytes } => {
                self.put(Event::PeerSlow { peer, oldest_age, queued_messages, queued_bytes });
            }
            Lifecycle::PeerRecovered { peer } => self.put(Event::PeerRecovered { peer }),
            Lifecycle::Sender(event) => self.put(Event::Peer(event)),
        }
        self.changes.happened();
    }

    /// Whether a peer has not failed like this since it was last connected; see [`Event::DialFailed`].
    fn is_news(&self, peer: PeerId, error: &DialError) -> bool {
        let mut failing = self.failing.lock();
        if failing.len() >= FAILING && !failing.contains_key(&peer) {
            // Whoever still fails is told once more.
            failing.clear();
        }
        let told = failing.entry(peer).or_default();
        let news = told.len() < TOLD && !told.contains(error);
        if news {
            told.push(error.clone());
        }
        news
    }

    fn put(&self, event: Event) {
        let Some(to_application) = &self.to_application else { return };
        let missed = self.missed.swap(0, Ordering::Relaxed);
        if missed > 0 && to_application.try_send(Event::Missed(missed)).is_err() {
            self.missed.fetch_add(missed + 1, Ordering::Relaxed);
            self.metrics.events_missed.add();
            return;
        }
        if to_application.try_send(event).is_err() {
            self.missed.fetch_add(1, Ordering::Relaxed);
            self.metrics.events_missed.add();
        }
    }
}

/// A count of changes that can be waited for.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    count: Mutex<u64>,
    changed: Condvar,
}

impl Changes {
    /// Changes so far.
    pub(crate) fn count(&self) -> u64 {
        *self.count.lock()
    }

    /// One more; everybody who waits looks again.
    pub(crate) fn happened(&self) {
        *self.count.lock() += 1;
        self.changed.notify_all();
    }

    /// Waits for another count than `seen`; false when the deadline passed first.
    pub(crate) fn wait(&self, seen: u64, deadline: Instant) -> bool {
        let mut count = self.count.lock();
        while *count == seen {
            if self.changed.wait_until(&mut count, deadline).timed_out() {
                return *count != seen;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{DialCause, DialStage};

    fn events(capacity: usize) -> (Events, Receiver<Event>) {
        Events::new(Listener::Engine, capacity, Arc::default(), Arc::default())
    }

    fn failed(peer: Option<PeerId>, port: u16, cause: DialCause) -> Lifecycle {
        let addr = SocketAddr::from(([127, 0, 0, 1], port)).into();
        Lifecycle::DialFailed { peer, place: None, error: DialError { addr, stage: DialStage::Connect, cause } }
    }

    fn started(peer: PeerId) -> Lifecycle {
        let addr = SocketAddr::from(([127, 0, 0, 1], 1));
        Lifecycle::Started(Started {
            peer,
            conn: ConnectionId(1),
            kind: SessionKind::Outbound,
            incarnation: Incarnation(1),
            dial: None,
            restarted: false,
            local_addr: addr,
            remote_addr: addr,
            advertised: None,
        })
    }

    #[test]
    fn a_peer_that_goes_on_failing_is_told_once_for_each_address_and_cause_until_it_is_connected() {
        let (events, receiver) = events(100);
        let peer = PeerId::from_bytes([7; 32]);
        let told = || receiver.try_iter().filter(|event| matches!(event, Event::DialFailed { .. })).count();
        (0..50).for_each(|_| events.tell(failed(Some(peer), 1, DialCause::ShuttingDown)));
        assert_eq!(told(), 1);
        events.tell(failed(Some(peer), 2, DialCause::ShuttingDown));
        events.tell(failed(Some(peer), 1, DialCause::Io(std::io::ErrorKind::ConnectionRefused)));
        assert_eq!(told(), 2);
        // Others are told of their own; what nobody keeps is always told.
        events.tell(failed(Some(PeerId::from_bytes([8; 32])), 1, DialCause::ShuttingDown));
        (0..3).for_each(|_| events.tell(failed(None, 1, DialCause::ShuttingDown)));
        assert_eq!(told(), 4);
        // Ever new addresses end at the bound.
        (10..200).for_each(|port| events.tell(failed(Some(peer), port, DialCause::ShuttingDown)));
        assert_eq!(told(), TOLD - 3);
        events.tell(started(peer));
        (0..5).for_each(|_| events.tell(failed(Some(peer), 1, DialCause::ShuttingDown)));
        assert_eq!(told(), 1);
    }

    #[test]
    fn what_does_not_fit_is_counted_and_said_before_the_next_event() {
        let (events, receiver) = events(2);
        let failed = || failed(None, 1, DialCause::ShuttingDown);
        (0..5).for_each(|_| events.tell(failed()));
        assert_eq!(receiver.try_iter().count(), 2);
        assert_eq!(events.metrics.events_missed.value(), 3);
        events.tell(failed());
        let kinds: Vec<_> = receiver.try_iter().map(|event| matches!(event, Event::Missed(3))).collect();
        assert_eq!(kinds, [true, false]);
    }
}
