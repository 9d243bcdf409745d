//! Times and sizes of sessions that may change while they run.
//!
//! Owns: the present values. Threads: a reload writes, all that serve a peer read. Locks: its own, a leaf, for the values
//! that are not read for each message. Blocks on: nothing.
//! Upholds: what is read for each message is an atomic. What a link has a copy of, under a lock that is taken anyway, is
//! put there by `PeerLink::tune`.

use std::time::Duration;

use crate::config::Config;
use crate::link::LinkLimits;
use crate::session::outbox::QueueLimits;
use crate::session::requests::RequestLimits;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Times and sizes of sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tuning {
    pub(crate) queue: QueueLimits,
    pub(crate) requests: RequestLimits,
    /// Sizes of a link: what is kept and what may come, the longest message.
    pub(crate) link: LinkLimits,
    /// Bytes that may wait for a peer that is not known.
    pub(crate) unknown_bytes: usize,
    pub(crate) send_deadline: Duration,
    pub(crate) ack_delay: Duration,
    pub(crate) heartbeat: Duration,
    /// Stack of a receiver thread, by whether a handler runs on it.
    pub(crate) rx_stack: usize,
    pub(crate) tx_stack: usize,
}

impl Tuning {
    /// From the configuration; whether a handler takes the messages.
    pub(crate) fn of(config: &Config, handler: bool) -> Self {
        Self {
            queue: QueueLimits {
                messages: config.queue_messages,
                bytes: config.queue_bytes,
                offline: config.offline,
                ttl: config.message_ttl,
            },
            requests: RequestLimits { requests: config.requests, bytes: config.queue_bytes },
            link: LinkLimits { window_bytes: config.window_bytes, max_message: config.max_message },
            unknown_bytes: config.unknown_bytes,
            send_deadline: config.send_deadline,
            ack_delay: config.ack_delay,
            heartbeat: config.heartbeat,
            rx_stack: if handler { config.threads.rx_handler_stack } else { config.threads.rx_stack },
            tx_stack: config.threads.tx_stack,
        }
    }
}

/// The present values.
#[derive(Debug)]
pub(crate) struct Tuned {
    all: Mutex<Tuning>,
    /// How often they were changed.
    version: AtomicU64,
    max_message: AtomicUsize,
    /// In nanoseconds.
    send_deadline: AtomicU64,
    ack_delay: AtomicU64,
    heartbeat: AtomicU64,
}

impl Tuned {
    /// These, to begin with.
    pub(crate) fn new(tuning: Tuning) -> Self {
        Self {
            all: Mutex::new(tuning),
            version: AtomicU64::new(0),
            max_message: AtomicUsize::new(tuning.link.max_message),
            send_deadline: AtomicU64::new(nanos(tuning.send_deadline)),
            ack_delay: AtomicU64::new(nanos(tuning.ack_delay)),
            heartbeat: AtomicU64::new(nanos(tuning.heartbeat)),
        }
    }

    /// These from now on; links have theirs once each was tuned.
    pub(crate) fn set(&self, tuning: Tuning) {
        let mut all = self.all.lock();
        *all = tuning;
        self.max_message.store(tuning.link.max_message, Ordering::Relaxed);
        self.send_deadline.store(nanos(tuning.send_deadline), Ordering::Relaxed);
        self.ack_delay.store(nanos(tuning.ack_delay), Ordering::Relaxed);
        self.heartbeat.store(nanos(tuning.heartbeat), Ordering::Relaxed);
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    /// All of them.
    pub(crate) fn all(&self) -> Tuning {
        *self.all.lock()
    }

    /// How often they were changed: whoever made something of them looks whether it is to be tuned again.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    /// The longest message.
    #[inline]
    pub(crate) fn max_message(&self) -> usize {
        self.max_message.load(Ordering::Relaxed)
    }

    /// How long a blocking send waits for room.
    #[inline]
    pub(crate) fn send_deadline(&self) -> Duration {
        Duration::from_nanos(self.send_deadline.load(Ordering::Relaxed))
    }

    /// How long an acknowledgement waits for company.
    pub(crate) fn ack_delay(&self) -> Duration {
        Duration::from_nanos(self.ack_delay.load(Ordering::Relaxed))
    }

    /// How often a heartbeat is sent.
    pub(crate) fn heartbeat(&self) -> Duration {
        Duration::from_nanos(self.heartbeat.load(Ordering::Relaxed))
    }
}

/// The longest that a configuration allows is a day.
fn nanos(time: Duration) -> u64 {
    time.as_nanos().try_into().unwrap_or(u64::MAX)
}
