//! How much waits in an outbox, for whoever watches: a hint that locks nothing, and the exact state.
//!
//! Owns: nothing of its own. Threads: whoever appends raises the hint; `supervisor` looks, and lowers it. Locks: the
//! outbox lock, in [`Outbox::backlog`]. Blocks on: nothing.
//! Upholds: while something waits, the hint is up: it is raised and lowered under the lock. The shortest path of a message
//! need not raise it: the first message of an empty lane never takes that path, which wants an open buffer.

use std::time::Instant;

use super::queue::{Queue, QueueLimits};
use super::{Outbox, State};
use crate::ident::ConnectionId;
use crate::sync::atomic::Ordering;

/// What waits for a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Backlog {
    /// The session that writes, if there is one.
    pub(crate) conn: Option<ConnectionId>,
    /// Messages, of all lanes.
    pub(crate) messages: usize,
    /// Their bytes.
    pub(crate) bytes: usize,
    /// When the oldest of them was appended.
    pub(crate) oldest: Option<Instant>,
    /// How full the fullest lane is.
    pub(crate) level: Level,
}

/// How full a queue is, in messages or in bytes, whichever is more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Less than one half.
    Low,
    Middle,
    /// More than three quarters.
    High,
}

impl Level {
    fn of(queue: &Queue, limits: QueueLimits) -> Self {
        let of = |used: usize, limit: usize| {
            let (used, limit) = (used as u128, limit as u128);
            match () {
                () if 4 * used > 3 * limit => Self::High,
                () if 2 * used >= limit => Self::Middle,
                () => Self::Low,
            }
        };
        of(queue.messages, limits.messages).max(of(queue.bytes, limits.bytes))
    }
}

impl Outbox {
    /// Whether something may wait; if not, nothing does.
    pub(crate) fn may_wait(&self) -> bool {
        self.waits.load(Ordering::Relaxed)
    }

    /// What waits now.
    pub(crate) fn backlog(&self) -> Backlog {
        let mut state = self.state.lock();
        self.take_share(&mut state);
        let backlog = state.backlog();
        if backlog.messages == 0 {
            self.waits.store(false, Ordering::Relaxed);
        }
        backlog
    }
}

impl State {
    /// Messages that wait, on all lanes.
    pub(super) fn messages(&self) -> usize {
        self.lanes.iter().map(|lane| lane.messages).sum()
    }

    /// Their bytes.
    pub(super) fn bytes(&self) -> usize {
        self.lanes.iter().map(|lane| lane.bytes).sum()
    }

    /// When the oldest of them was appended.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.lanes.iter().filter_map(Queue::oldest).min()
    }

    fn backlog(&self) -> Backlog {
        Backlog {
            conn: self.tx.as_ref().map(|tx| tx.conn),
            messages: self.messages(),
            bytes: self.bytes(),
            oldest: self.oldest(),
            level: self.lanes.iter().map(|lane| Level::of(lane, self.limits)).max().unwrap_or(Level::Low),
        }
    }
}
