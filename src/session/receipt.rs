//! Receipts: how whoever sent a message hears what became of it.
//!
//! Owns: the outcome of a message from when it is known until it is taken; the slots that a collector promises.
//! Threads: whoever ends a message tells; the application waits. Locks: one per receipt, a leaf.
//! Blocks on: [`Receipt::wait`], with a deadline; telling blocks on nothing.
//! Upholds: an outcome has a place before its message is accepted: telling never fails and never waits; an outcome that
//! nobody waits for any more goes to `undelivered` if it is bad.
//!
//! ```text
//!  send_with       -> Queued -> Written -> Done(outcome) -> taken by wait() or outcome()
//!  send_collected  -> slot reserved -> (tag, outcome) in a batch -> slot free when the batch is dropped
//! ```

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::ident::PeerId;
use crate::outcome::{Outcome, Stage};
use crate::session::handling;
use crate::session::undelivered::{Label, Undeliverable};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Condvar, Mutex, deadline_in};

/// Who hears of a message.
#[derive(Debug, Default)]
pub(crate) enum Asker {
    /// Nobody, unless it fails.
    #[default]
    Nobody,
    /// Whoever holds the receipt.
    Receipt(Arc<ReceiptState>),
    /// A collector, by the sender's own name for the message.
    Collector(Slot, u64),
    /// Whoever asked the question of this number.
    Question(u64),
}

impl Asker {
    /// Whether it is a question that is asked.
    pub(crate) fn is_question(&self) -> bool {
        matches!(self, Self::Question(_))
    }
}

/// A message that ended, and who hears of it.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) asker: Asker,
    pub(crate) label: Label,
    pub(crate) outcome: Outcome,
}

/// What a receipt and its message share.
#[derive(Debug)]
pub(crate) struct ReceiptState {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug)]
struct Inner {
    stage: Stage,
    /// With whom the message was for in the end: one to an address has moved to whoever proved itself there.
    outcome: Option<(PeerId, Outcome)>,
    /// The receipt was dropped: nobody waits.
    abandoned: bool,
    /// Somebody waits now.
    waited_for: bool,
}

impl ReceiptState {
    pub(crate) fn new() -> Self {
        let inner = Inner { stage: Stage::Queued, outcome: None, abandoned: false, waited_for: false };
        Self { inner: Mutex::new(inner), changed: Condvar::new() }
    }

    /// All of it was written.
    pub(crate) fn written(&self) {
        let mut inner = self.inner.lock();
        inner.stage = inner.stage.max(Stage::Written);
    }

    /// Whether somebody waits now: the acknowledgement should be asked for at once.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.inner.lock().waited_for
    }

    /// The outcome is known, of a message for `peer`. Gives it back if nobody waits any more.
    pub(crate) fn tell(&self, peer: PeerId, outcome: Outcome) -> Option<Outcome> {
        let mut inner = self.inner.lock();
        if inner.abandoned {
            return Some(outcome);
        }
        inner.stage = Stage::Done;
        inner.outcome = Some((peer, outcome));
        drop(inner);
        self.changed.notify_all();
        None
    }
}

/// A claim on the outcome of one message.
///
/// Dropped without being asked, it takes a good outcome along; a bad one goes to
/// [`Node::undelivered`](crate::Node::undelivered).
#[must_use = "a receipt that is dropped tells nothing; use `send` if nobody will ask"]
pub struct Receipt {
    state: Arc<ReceiptState>,
    /// Where a bad outcome goes that came before the receipt was dropped.
    undelivered: Arc<Undeliverable>,
    label: Label,
}

/// Why a receipt gave no outcome. It comes back, to be asked again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// Not known yet. Ask again later.
    #[error("the outcome is not known yet")]
    Pending(Receipt),
    /// A blocking call inside a message handler. Use [`Receipt::outcome`] there, or give the receipt to another thread.
    #[error("a blocking call inside a message handler")]
    WouldBlock(Receipt),
}

impl WaitError {
    /// The receipt.
    pub fn into_receipt(self) -> Receipt {
        match self {
            Self::Pending(receipt) | Self::WouldBlock(receipt) => receipt,
        }
    }
}

impl Receipt {
    pub(crate) fn new(state: Arc<ReceiptState>, undelivered: Arc<Undeliverable>, label: Label) -> Self {
        Self { state, undelivered, label }
    }

    /// How far the message has come.
    pub fn stage(&self) -> Stage {
        self.state.inner.lock().stage
    }

    /// The outcome, if it is known.
    ///
    /// # Errors
    /// [`WaitError::Pending`] with the receipt.
    pub fn outcome(self) -> Result<Outcome, WaitError> {
        let told = self.state.inner.lock().outcome.take();
        told.map(|(_, outcome)| outcome).ok_or(WaitError::Pending(self))
    }

    /// Waits for the outcome.
    ///
    /// # Errors
    /// [`WaitError::Pending`]: it did not come in time. [`WaitError::WouldBlock`]: inside a message handler. The receipt
    /// comes back.
    ///
    /// # Blocking
    /// Until the outcome is known, no longer than `timeout`.
    pub fn wait(self, timeout: Duration) -> Result<Outcome, WaitError> {
        if handling::in_handler() {
            return match self.outcome() {
                Err(WaitError::Pending(receipt)) => Err(WaitError::WouldBlock(receipt)),
                told => told,
            };
        }
        let deadline = deadline_in(timeout);
        let mut inner = self.state.inner.lock();
        inner.waited_for = true;
        while inner.outcome.is_none() && !self.state.changed.wait_until(&mut inner, deadline).timed_out() {}
        inner.waited_for = false;
        let told = inner.outcome.take();
        drop(inner);
        told.map(|(_, outcome)| outcome).ok_or(WaitError::Pending(self))
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        let mut inner = self.state.inner.lock();
        inner.abandoned = true;
        let told = inner.outcome.take();
        drop(inner);
        if let Some((peer, outcome)) = told {
            self.undelivered.put(peer, self.label, outcome);
        }
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receipt").field("stage", &self.stage()).finish_non_exhaustive()
    }
}

/// Hears of many messages: their outcomes come in batches through one channel, which fits a `select!`.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let peer: threadwire::PeerHandle = unimplemented!();
/// use threadwire::{Collector, SendOptions};
///
/// let (collector, batches) = Collector::new(10_000);
/// for tag in 0..100 {
///     peer.send_collected(vec![0; 16], &SendOptions::new(), &collector, tag)?;
/// }
/// for (tag, outcome) in batches.recv()? {
///     println!("{tag}: {outcome:?}");
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Collector {
    shared: Arc<Collecting>,
}

#[derive(Debug)]
struct Collecting {
    /// Outcomes that are still to come, or wait to be taken.
    reserved: AtomicUsize,
    capacity: usize,
    batches: Sender<OutcomeBatch>,
}

/// The place of one outcome; free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Slot(Arc<Collecting>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.reserved.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Collector {
    /// A collector of at most `capacity` outcomes (at least one) that are still to come or wait to be taken, and where
    /// they come: a send that would be one more is refused with
    /// [`SendErrorKind::Uncollected`](crate::error::SendErrorKind::Uncollected).
    pub fn new(capacity: usize) -> (Self, Receiver<OutcomeBatch>) {
        let capacity = capacity.max(1);
        // Bounded by what sends into it: a batch holds an outcome at least, and each has a slot.
        let (batches, receiver) = unbounded();
        let shared = Arc::new(Collecting { reserved: AtomicUsize::new(0), capacity, batches });
        (Self { shared }, receiver)
    }

    /// How many outcomes are still to come or wait to be taken.
    pub fn outstanding(&self) -> usize {
        self.shared.reserved.load(Ordering::Relaxed)
    }

    /// A place for one more outcome, if there is one.
    pub(crate) fn reserve(&self) -> Option<Slot> {
        let reserved = self.shared.reserved.fetch_add(1, Ordering::Relaxed);
        // Dropped, it gives the place back.
        let slot = Slot(self.shared.clone());
        (reserved < self.shared.capacity).then_some(slot)
    }
}

/// Outcomes that became known together, each with the tag that its sender gave.
#[derive(Debug)]
pub struct OutcomeBatch {
    outcomes: std::vec::IntoIter<Collection>,
}

impl OutcomeBatch {
    /// How many are left in it.
    pub fn len(&self) -> usize {
        self.outcomes.len()
    }

    /// Whether all were taken.
    pub fn is_empty(&self) -> bool {
        self.outcomes.len() == 0
    }
}

impl Iterator for OutcomeBatch {
    type Item = (u64, Outcome);

    fn next(&mut self) -> Option<(u64, Outcome)> {
        self.outcomes.next().map(|one| (one.tag, one.outcome))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.outcomes.size_hint()
    }
}

/// One outcome, in its place.
#[derive(Debug)]
struct Collection {
    /// Free when the outcome was taken.
    _slot: Slot,
    tag: u64,
    label: Label,
    outcome: Outcome,
}

/// Outcomes for collectors, put together before they are sent.
#[derive(Debug, Default)]
pub(crate) struct Collected(Vec<(Arc<Collecting>, Vec<Collection>)>);

impl Collected {
    /// One more.
    pub(crate) fn add(&mut self, slot: Slot, tag: u64, label: Label, outcome: Outcome) {
        let batch = match self.0.iter().position(|(to, _)| Arc::ptr_eq(to, &slot.0)) {
            Some(index) => &mut self.0[index].1,
            None => {
                self.0.push((slot.0.clone(), Vec::new()));
                let last = self.0.len() - 1;
                &mut self.0[last].1
            }
        };
        batch.push(Collection { _slot: slot, tag, label, outcome });
    }

    /// Sends each collector its batch. Those that nobody takes any more come back.
    pub(crate) fn send(self) -> Vec<(Label, Outcome)> {
        let mut orphans = Vec::new();
        for (to, outcomes) in self.0 {
            let batch = OutcomeBatch { outcomes: outcomes.into_iter() };
            if let Err(refused) = to.batches.try_send(batch) {
                orphans.extend(refused.into_inner().outcomes.map(|one| (one.label, one.outcome)));
            }
        }
        orphans
    }
}
