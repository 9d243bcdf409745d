//! The memory of a node: one number that all its links share.
//!
//! Owns: the count of bytes that are taken, and who waits for some. Threads: callers of send verbs, threads of sessions.
//! Locks: its own, a leaf, only while somebody waits. Blocks on: [`Watching::wait`], with a deadline; woken by whoever
//! gives bytes back.
//! Upholds: nothing is taken beyond the limit, but one message that is alone in it; what is refused is counted. A limit that
//! is lowered takes nothing back.

use std::sync::Arc;
use std::time::Instant;

use crate::metrics::Counter;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Condvar, Mutex};

/// Bytes that links may take beyond the floor that each has for itself.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: AtomicUsize,
    used: AtomicUsize,
    waiting: AtomicUsize,
    /// How often bytes came back while somebody waited.
    given: Mutex<u64>,
    changed: Condvar,
    refused: Counter,
}

impl Budget {
    /// None of `limit` bytes is taken.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit: AtomicUsize::new(limit),
            used: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            given: Mutex::new(0),
            changed: Condvar::new(),
            refused: Counter::default(),
        }
    }

    /// Takes bytes, if there are so many; whatever there is, if nobody else has any.
    pub(crate) fn take(&self, bytes: usize) -> bool {
        let fits = self.try_take(bytes);
        if !fits {
            self.refused.add();
        }
        fits
    }

    /// The same for somebody who goes on without them: no refusal is counted.
    pub(crate) fn try_take(&self, bytes: usize) -> bool {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed);
        let fits = used == 0 || used.saturating_add(bytes) <= self.limit.load(Ordering::Relaxed);
        if !fits {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
        }
        fits
    }

    /// Changes how many there are. Whoever waits looks again.
    pub(crate) fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::SeqCst);
        self.wake();
    }

    /// Gives bytes back.
    pub(crate) fn give(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        if bytes > 0 && self.waiting.load(Ordering::SeqCst) > 0 {
            self.wake();
        }
    }

    /// As [`Budget::give`], and nobody hears of it: for a model check, to prove that it would be missed.
    #[cfg(all(test, shuttle))]
    pub(crate) fn give_unheard(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Has whoever waits look again.
    pub(crate) fn wake(&self) {
        *self.given.lock() += 1;
        self.changed.notify_all();
    }

    /// To be asked before a look that ends in [`Watching::wait`].
    pub(crate) fn watch(&self) -> Watching<'_> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        Watching { budget: self, seen: *self.given.lock() }
    }

    /// Bytes that are taken.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// How often there were not enough.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.value()
    }
}

/// Somebody who is about to wait for bytes: none that come back from now on are missed.
pub(crate) struct Watching<'a> {
    budget: &'a Budget,
    seen: u64,
}

impl Watching<'_> {
    /// Waits until bytes came back.
    ///
    /// # Blocking
    /// As it says; false when the deadline has passed first.
    pub(crate) fn wait(self, deadline: Instant) -> bool {
        let mut given = self.budget.given.lock();
        while *given == self.seen {
            if self.budget.changed.wait_until(&mut given, deadline).timed_out() {
                return *given != self.seen;
            }
        }
        true
    }
}

impl Drop for Watching<'_> {
    fn drop(&mut self) {
        self.budget.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Bytes that were taken, given back when this is dropped. A copy holds none.
#[derive(Debug, Default)]
pub(crate) struct Charge(Option<(Arc<Budget>, usize)>);

impl Charge {
    /// Takes bytes, if there are so many.
    pub(crate) fn take(budget: &Arc<Budget>, bytes: usize) -> Option<Self> {
        budget.take(bytes).then(|| Self(Some((budget.clone(), bytes))))
    }

    /// How many they are.
    pub(crate) fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |(_, bytes)| *bytes)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if let Some((budget, bytes)) = self.0.take() {
            budget.give(bytes);
        }
    }
}

impl Clone for Charge {
    fn clone(&self) -> Self {
        Self(None)
    }
}

/// A charge is no part of what its owner is.
impl PartialEq for Charge {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Charge {}

impl std::hash::Hash for Charge {
    fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_taken_never_exceeds_the_limit_but_for_one_alone() {
        let budget = Arc::new(Budget::new(100));
        assert!(budget.take(60) && !budget.take(41) && budget.take(40));
        assert_eq!((budget.used(), budget.refused()), (100, 1));
        budget.give(100);
        let alone = Charge::take(&budget, 1000).unwrap();
        assert!(Charge::take(&budget, 1).is_none());
        assert_eq!(alone.clone(), Charge::default());
        drop(alone);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_limit_that_is_lowered_takes_nothing_back_and_one_that_is_raised_wakes_whoever_waits() {
        let budget = Budget::new(100);
        assert!(budget.take(80));
        budget.set_limit(50);
        assert!(!budget.take(1) && budget.used() == 80);
        budget.give(40);
        assert!(budget.take(10) && !budget.take(1));
        let watching = budget.watch();
        budget.set_limit(60);
        assert!(watching.wait(Instant::now() + Duration::from_secs(20)) && budget.take(10));
    }

    #[test]
    fn whoever_waits_hears_of_bytes_that_come_back_after_the_look() {
        let budget = Budget::new(10);
        assert!(budget.take(10));
        let watching = budget.watch();
        assert!(!budget.take(1));
        budget.give(5);
        assert!(watching.wait(Instant::now() + Duration::from_secs(20)));
        assert!(!budget.watch().wait(Instant::now()), "nothing came since");
    }
}
