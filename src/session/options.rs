//! How a message is to be sent: what a sender may choose for each.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: nothing chosen is what `send` does: reliable, normal, blocking while the queue is full, for ever wanted.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::wire::Lane;

/// Which lane a message travels on. Order holds within a lane only: a lane is its own queue, window and retention, so
/// that urgent messages never wait behind bulk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Priority {
    /// Ahead of everything that is not urgent.
    Urgent,
    /// The default.
    #[default]
    Normal,
    /// Behind everything else.
    Bulk,
}

impl Priority {
    /// The lane on the wire.
    pub(crate) const fn lane(self) -> Lane {
        match self {
            Self::Urgent => Lane::Urgent,
            Self::Normal => Lane::Normal,
            Self::Bulk => Lane::Bulk,
        }
    }

    /// The priority whose messages travel on this lane; answers have none.
    pub(crate) const fn of_lane(lane: Lane) -> Option<Self> {
        match lane {
            Lane::Reply => None,
            Lane::Urgent => Some(Self::Urgent),
            Lane::Normal => Some(Self::Normal),
            Lane::Bulk => Some(Self::Bulk),
        }
    }

    /// All priorities, most urgent first.
    pub const ALL: [Self; 3] = [Self::Urgent, Self::Normal, Self::Bulk];
}

/// What happens when a message does not fit the peer's queue.
///
/// Only messages that agreed to it are dropped for others: those that were sent with `DropOldest`, `DropNewest` or
/// `Conflate` themselves. What is dropped is returned, with its payload, to whoever waits for its outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OverflowPolicy {
    /// Wait for room, up to the deadline.
    #[default]
    Block,
    /// Refuse it: the send verb gives it back.
    Fail,
    /// Drop the oldest messages of its lane that agreed to be dropped. If that makes no room: refuse it.
    DropOldest,
    /// Drop this message: it is accepted, and returned as its outcome.
    DropNewest,
    /// Take the place of a message with the same key that waits on its lane, full or not: only the latest is wanted. If
    /// there is none: as `DropOldest`.
    Conflate(u64),
}

impl OverflowPolicy {
    /// Whether a message sent with it may be dropped for another.
    pub(crate) const fn may_drop(self) -> bool {
        matches!(self, Self::DropOldest | Self::DropNewest | Self::Conflate(_))
    }
}

/// What holds for messages that do not choose for themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Defaults {
    pub(crate) overflow: OverflowPolicy,
    pub(crate) ttl: Option<Duration>,
}

/// What is promised of a message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// Kept until it is acknowledged, and sent again after a lost connection.
    #[default]
    Reliable,
    /// Written once, at most [`BEST_EFFORT_MOST`] bytes; nothing is kept, and nothing heard.
    BestEffort,
}

/// The longest best effort message, in bytes.
pub const BEST_EFFORT_MOST: usize = crate::wire::MAX_PIECE;

/// How one message is to be sent.
///
/// ```
/// use std::time::Duration;
/// use threadwire::{OverflowPolicy, Priority, SendOptions};
///
/// let options = SendOptions::new().priority(Priority::Urgent).ttl(Duration::from_secs(2));
/// let ticker = SendOptions::new().kind(7).overflow(OverflowPolicy::Conflate(42));
/// assert_ne!(options, ticker);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SendOptions {
    pub(crate) kind: u16,
    pub(crate) priority: Option<Priority>,
    pub(crate) overflow: Option<OverflowPolicy>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) ttl: Option<Duration>,
    pub(crate) created_at: Option<Instant>,
    pub(crate) delivery: Delivery,
}

impl SendOptions {
    /// As [`PeerHandle::send`](crate::PeerHandle::send) sends.
    pub fn new() -> Self {
        Self::default()
    }

    /// The application's kind of message.
    #[must_use]
    pub fn kind(mut self, kind: u16) -> Self {
        self.kind = kind;
        self
    }

    /// Which lane it travels on.
    #[must_use]
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = Some(priority);
        self
    }

    /// What happens when the queue is full, instead of what the peer's policy says.
    #[must_use]
    pub fn overflow(mut self, overflow: OverflowPolicy) -> Self {
        self.overflow = Some(overflow);
        self
    }

    /// How long [`OverflowPolicy::Block`] waits for room, instead of `send_deadline`.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How long it is wanted, from [`SendOptions::created_at`] on, in whole milliseconds (rounded up on the wire): it
    /// expires while it waits, while the peer is away, at the wire, and on arrival. What was written before is decided
    /// by the receiver's answer.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// When the application made it; now, if this is not called. Its expiry counts from then, and its
    /// [`Timing`](crate::Timing).
    #[must_use]
    pub fn created_at(mut self, created_at: Instant) -> Self {
        self.created_at = Some(created_at);
        self
    }

    /// What is promised of it.
    #[must_use]
    pub fn delivery(mut self, delivery: Delivery) -> Self {
        self.delivery = delivery;
        self
    }
}
