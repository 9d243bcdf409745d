//! Lifecycle events: what a node tells its application of connections.
//!
//! Owns: the bounded channel to the application, and the count of what did not fit. Threads: `supervisor` tells.
//! Locks: its own, a leaf, in [`Changes`]. Blocks on: nothing to tell; [`Changes::wait`] waits with a deadline.
//! Upholds: telling never blocks; what was missed is counted and said before the next event.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::connections::{Lifecycle, Started};
use crate::error::{DialError, DisconnectReason};
use crate::ident::{ConnectionId, Incarnation, PeerId, SessionKind};
use crate::sync::{Condvar, Mutex};

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
    /// So many events did not fit since the last one that was taken.
    Missed(u64),
}

/// The telling side.
pub(super) struct Events {
    to_application: Sender<Event>,
    missed: AtomicU64,
    changes: Arc<Changes>,
}

impl Events {
    /// A channel of `capacity` events.
    pub(super) fn new(capacity: usize, changes: Arc<Changes>) -> (Self, Receiver<Event>) {
        let (to_application, receiver) = bounded(capacity);
        (Self { to_application, missed: AtomicU64::new(0), changes }, receiver)
    }

    /// Tells the application, and wakes whoever waits for a change.
    pub(super) fn tell(&self, lifecycle: Lifecycle) {
        match lifecycle {
            Lifecycle::Started(started) => {
                let Started { peer, conn, kind, incarnation, restarted, local_addr, remote_addr, advertised, .. } =
                    started;
                if restarted {
                    self.put(Event::IncarnationChanged { peer, incarnation });
                }
                self.put(Event::Connected { peer, conn, kind, incarnation, local_addr, remote_addr, advertised });
            }
            Lifecycle::Ended { peer, conn, kind, reason, unacked_bytes } => {
                self.put(Event::Disconnected { peer, conn, kind, reason, unacked_bytes });
            }
            Lifecycle::DialFailed { peer, error } => self.put(Event::DialFailed { peer, error }),
            Lifecycle::IdentityClash { peer, remote_addr } => self.put(Event::IdentityClash { peer, remote_addr }),
        }
        self.changes.happened();
    }

    fn put(&self, event: Event) {
        let missed = self.missed.swap(0, Ordering::Relaxed);
        if missed > 0 && self.to_application.try_send(Event::Missed(missed)).is_err() {
            self.missed.fetch_add(missed + 1, Ordering::Relaxed);
            return;
        }
        if self.to_application.try_send(event).is_err() {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A count of changes that can be waited for.
#[derive(Debug, Default)]
pub(super) struct Changes {
    count: Mutex<u64>,
    changed: Condvar,
}

impl Changes {
    /// Changes so far.
    pub(super) fn count(&self) -> u64 {
        *self.count.lock()
    }

    /// One more; everybody who waits looks again.
    pub(super) fn happened(&self) {
        *self.count.lock() += 1;
        self.changed.notify_all();
    }

    /// Waits for another count than `seen`; false when the deadline passed first.
    pub(super) fn wait(&self, seen: u64, deadline: Instant) -> bool {
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

    #[test]
    fn what_does_not_fit_is_counted_and_said_before_the_next_event() {
        let (events, receiver) = Events::new(2, Arc::new(Changes::default()));
        let failed = || {
            let addr = SocketAddr::from(([127, 0, 0, 1], 1)).into();
            let error = DialError { addr, stage: DialStage::Connect, cause: DialCause::ShuttingDown };
            Lifecycle::DialFailed { peer: None, error }
        };
        (0..5).for_each(|_| events.tell(failed()));
        assert_eq!(receiver.try_iter().count(), 2);
        events.tell(failed());
        let kinds: Vec<_> = receiver.try_iter().map(|event| matches!(event, Event::Missed(3))).collect();
        assert_eq!(kinds, [true, false]);
    }
}
