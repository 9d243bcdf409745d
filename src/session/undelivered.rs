//! Messages that failed and that nobody waits for: given back to the application all the same.
//!
//! Owns: the bounded channel they wait in, the bytes it holds, the count of what did not fit. Threads: whoever ends a
//! message puts, the application takes. Locks: none. Blocks on: nothing.
//! Upholds: what fails is never silent: it is in the channel, or counted and said in the log; what waits is bounded in
//! number and bytes.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::ident::PeerId;
use crate::outcome::Outcome;
use crate::session::options::Priority;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::wire::Lane;

/// Messages that wait for the application.
const MOST_MESSAGES: usize = 4096;
/// Their bytes.
const MOST_BYTES: u64 = 64 * 1024 * 1024;

/// A message that was not handed over, or nobody knows whether it was, and that nobody waits for.
#[derive(Debug)]
#[non_exhaustive]
pub struct Undelivered {
    /// Whom it was for. If it was sent to an address, and nobody had proven itself there before it ended, this id stands
    /// for the address, where it can be sent again: [`PeerId::stands_for`].
    pub peer: PeerId,
    /// The application's kind of message.
    pub kind: u16,
    /// The lane it was to travel on; `None` for an answer.
    pub priority: Option<Priority>,
    /// [`Outcome::Returned`] or [`Outcome::Unknown`], with the message.
    pub outcome: Outcome,
    held: Held,
}

/// What the library keeps of a message beside its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) kind: u16,
    pub(crate) lane: Lane,
}

/// The channel's sending end.
#[derive(Debug)]
pub(crate) struct Undeliverable {
    to_application: Sender<Undelivered>,
    held: Arc<AtomicU64>,
    missed: AtomicU64,
}

/// Bytes that count as waiting until they are dropped.
#[derive(Debug)]
struct Held {
    bytes: u64,
    sum: Arc<AtomicU64>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.sum.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Undeliverable {
    /// The channel.
    pub(crate) fn new() -> (Self, Receiver<Undelivered>) {
        let (to_application, receiver) = bounded(MOST_MESSAGES);
        (Self { to_application, held: Arc::default(), missed: AtomicU64::new(0) }, receiver)
    }

    /// Gives a message back, unless its outcome is good.
    pub(crate) fn put(&self, peer: PeerId, label: Label, outcome: Outcome) {
        let bytes = match &outcome {
            Outcome::Acknowledged(_) | Outcome::Written(_) => return,
            Outcome::Returned { payload, reason } => {
                log::debug!(target: "threadwire::link", "{}: a message came back: {reason}", peer.short());
                payload.len() as u64
            }
            Outcome::Unknown { payload } => {
                log::debug!(target: "threadwire::link", "{}: a message ended unknown", peer.short());
                payload.len() as u64
            }
        };
        let before = self.held.fetch_add(bytes, Ordering::Relaxed);
        let held = Held { bytes, sum: self.held.clone() };
        let priority = Priority::of_lane(label.lane);
        let undelivered = Undelivered { peer, kind: label.kind, priority, outcome, held };
        // One alone is taken whatever its size.
        let fits = before == 0 || before + bytes <= MOST_BYTES;
        if !fits || self.to_application.try_send(undelivered).is_err() {
            self.miss(peer);
        }
    }

    /// A message that failed is gone: nobody takes it.
    pub(crate) fn miss(&self, peer: PeerId) {
        if self.missed.fetch_add(1, Ordering::Relaxed).is_power_of_two() {
            let missed = self.missed();
            log::warn!(
                target: "threadwire::link",
                "{missed} messages that failed were not taken from `undelivered` and are gone; the last was for {}",
                peer.short()
            );
        }
    }

    /// Messages that failed and did not fit the channel, because nobody takes them.
    pub(crate) fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }
}

impl Undelivered {
    /// Bytes of the message.
    pub fn len(&self) -> usize {
        self.held.bytes as usize
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.held.bytes == 0
    }
}
