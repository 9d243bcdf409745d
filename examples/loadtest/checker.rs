//! What arrived, against what was sent: lost, duplicated, reordered, by the application's own numbers.
//!
//! Owns: the receiver's books of one run. Threads: the one that receives; the owner of the run reads at its end.
//! Locks: [`SharedChecker`] has one, taken only when the stream deviates. Blocks on: nothing.
//! Upholds: exact at any length: one counter while the stream is as it should be, ranges only where it is not.
//!
//! A message carries its number, a `u64` counted from 0, in its first eight bytes. A run ends with the [`end_mark`].

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Bytes of a number: the smallest message.
pub const NUMBER: usize = 8;
/// The number no message has; it makes the end mark.
const END: u64 = u64::MAX;
/// Bytes of the end mark.
pub const END_MARK: usize = 16;

/// What follows the last message of a run: so many were sent.
pub fn end_mark(sent: u64) -> [u8; END_MARK] {
    let mut mark = [0xff; END_MARK];
    mark[NUMBER..].copy_from_slice(&sent.to_le_bytes());
    mark
}

/// Writes a message's number into its first eight bytes.
#[inline]
pub fn number(message: &mut [u8], sequence: u64) {
    if let Some(head) = message.first_chunk_mut() {
        *head = sequence.to_le_bytes();
    }
}

/// A message's number, or [`END`] for what is too short to have one (the caller has checked the length by then).
#[inline]
pub fn number_of(message: &[u8]) -> u64 {
    message.first_chunk().map_or(END, |head| u64::from_le_bytes(*head))
}

/// The result of one run, as the receiver's application saw it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Different messages that arrived.
    pub received: u64,
    /// Sent and never arrived.
    pub lost: u64,
    /// Arrivals of a message that had already arrived.
    pub duplicated: u64,
    /// Arrivals after a message with a higher number.
    pub reordered: u64,
    /// Arrivals of another length, or with a number nobody sent.
    pub strange: u64,
}

impl Tally {
    /// Whether every message arrived once, in order and as sent.
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.duplicated == 0 && self.reordered == 0 && self.strange == 0
    }

    /// Adds another run.
    pub fn add(&mut self, other: &Self) {
        self.received += other.received;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.strange += other.strange;
    }
}

/// The books of one stream of equal messages.
#[derive(Debug, Default)]
pub struct Checker {
    size: usize,
    /// One more than the highest number that arrived.
    expected: u64,
    /// Numbers below `expected` that have not arrived: disjoint ranges, first number to one past the last.
    missing: BTreeMap<u64, u64>,
    duplicated: u64,
    reordered: u64,
    strange: u64,
}

impl Checker {
    /// Books for messages of `size` bytes, at least [`NUMBER`].
    pub fn new(size: usize) -> Self {
        Self { size, ..Self::default() }
    }

    /// Takes what arrived; for the end mark, says how many messages were sent.
    #[inline]
    pub fn take(&mut self, payload: &[u8]) -> Option<u64> {
        if payload.len() == self.size && number_of(payload) == self.expected {
            self.expected += 1;
            return None;
        }
        self.deviation(payload)
    }

    /// Whatever is not the next message.
    #[cold]
    fn deviation(&mut self, payload: &[u8]) -> Option<u64> {
        if let Some((head, sent)) = payload.split_first_chunk::<NUMBER>()
            && let Ok(sent) = <[u8; NUMBER]>::try_from(sent)
            && u64::from_le_bytes(*head) == END
        {
            return Some(u64::from_le_bytes(sent));
        }
        let sequence = number_of(payload);
        if payload.len() != self.size || sequence == END {
            self.strange += 1;
        } else if sequence >= self.expected {
            if sequence > self.expected {
                self.missing.insert(self.expected, sequence);
            }
            self.expected = sequence + 1;
        } else if self.remove_missing(sequence) {
            self.reordered += 1;
        } else {
            self.duplicated += 1;
        }
        None
    }

    /// Takes `sequence` out of the missing ranges; false when it is in none.
    fn remove_missing(&mut self, sequence: u64) -> bool {
        let Some((&first, &end)) = self.missing.range(..=sequence).next_back() else { return false };
        if sequence >= end {
            return false;
        }
        self.missing.remove(&first);
        if first < sequence {
            self.missing.insert(first, sequence);
        }
        if sequence + 1 < end {
            self.missing.insert(sequence + 1, end);
        }
        true
    }

    /// The result, given that the numbers below `sent` were sent.
    pub fn tally(&self, sent: u64) -> Tally {
        let (mut gaps_below, mut gaps_above) = (0, 0);
        for (&first, &end) in &self.missing {
            gaps_below += end.min(sent).saturating_sub(first);
            gaps_above += end.saturating_sub(first.max(sent));
        }
        let received = self.expected.min(sent) - gaps_below;
        let unsent = self.expected.saturating_sub(sent) - gaps_above;
        Tally {
            received,
            lost: sent - received,
            duplicated: self.duplicated,
            reordered: self.reordered,
            strange: self.strange + unsent,
        }
    }
}

/// The same books for a handler, which has only `&self`.
///
/// The calls for one peer never overlap and each sees what the one before did: the library promises that to every
/// handler. The two atomics are therefore as cheap as plain fields; only a deviating stream pays for the lock.
#[derive(Debug)]
pub struct SharedChecker {
    size: AtomicUsize,
    expected: AtomicU64,
    books: Mutex<Checker>,
}

impl SharedChecker {
    /// Books for messages of `size` bytes, at least [`NUMBER`].
    pub fn new(size: usize) -> Self {
        Self { size: AtomicUsize::new(size), expected: AtomicU64::new(0), books: Mutex::new(Checker::new(size)) }
    }

    /// Starts a new run. Nothing of the old one may still be under way.
    pub fn restart(&self, size: usize) {
        let mut books = self.books.lock();
        *books = Checker::new(size);
        self.size.store(size, Ordering::Relaxed);
        self.expected.store(0, Ordering::Relaxed);
    }

    /// Takes what arrived; for the end mark, says how many messages were sent.
    #[inline]
    pub fn take(&self, payload: &[u8]) -> Option<u64> {
        let expected = self.expected.load(Ordering::Relaxed);
        if payload.len() == self.size.load(Ordering::Relaxed) && number_of(payload) == expected {
            self.expected.store(expected + 1, Ordering::Relaxed);
            return None;
        }
        let mut books = self.books.lock();
        books.expected = expected;
        let end = books.deviation(payload);
        self.expected.store(books.expected, Ordering::Relaxed);
        end
    }

    /// The result so far, given that the numbers below `sent` were sent. Exact once the end mark was taken.
    pub fn tally(&self, sent: u64) -> Tally {
        let mut books = self.books.lock();
        books.expected = books.expected.max(self.expected.load(Ordering::Relaxed));
        books.tally(sent)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: usize = 64;

    fn message(sequence: u64) -> Vec<u8> {
        let mut message = vec![7; SIZE];
        number(&mut message, sequence);
        message
    }

    /// Both checkers on the same arrivals; they must agree.
    fn check(sent: u64, arrivals: &[u64]) -> Tally {
        let (mut plain, shared) = (Checker::new(SIZE), SharedChecker::new(SIZE));
        for &sequence in arrivals {
            assert_eq!(plain.take(&message(sequence)), None);
            assert_eq!(shared.take(&message(sequence)), None);
        }
        assert_eq!(plain.take(&end_mark(sent)), Some(sent));
        assert_eq!(shared.take(&end_mark(sent)), Some(sent));
        assert_eq!(plain.tally(sent), shared.tally(sent));
        plain.tally(sent)
    }

    #[test]
    fn a_stream_as_sent_is_clean() {
        let tally = check(1000, &(0..1000).collect::<Vec<_>>());
        assert_eq!(tally, Tally { received: 1000, ..Tally::default() });
        assert!(tally.is_clean());
    }

    #[test]
    fn a_deliberately_wrong_stream_is_counted_exactly() {
        // 3 and 4 never come, 7 comes after 9, 5 comes three times, 11 (the last) never comes.
        let tally = check(12, &[0, 1, 2, 5, 6, 8, 9, 7, 5, 10, 5]);
        assert_eq!(tally, Tally { received: 9, lost: 3, duplicated: 2, reordered: 1, strange: 0 });
        assert!(!tally.is_clean());
    }

    #[test]
    fn a_lost_tail_is_lost() {
        assert_eq!(check(10, &[0, 1, 2]), Tally { received: 3, lost: 7, ..Tally::default() });
        assert_eq!(check(10, &[]), Tally { received: 0, lost: 10, ..Tally::default() });
    }

    #[test]
    fn the_first_message_may_be_the_late_one() {
        assert_eq!(check(3, &[1, 2, 0]), Tally { received: 3, reordered: 1, ..Tally::default() });
    }

    #[test]
    fn the_copy_of_a_late_message_is_a_duplicate() {
        assert_eq!(check(3, &[2, 0, 1, 0]), Tally { received: 3, reordered: 2, duplicated: 1, ..Tally::default() });
    }

    #[test]
    fn a_number_nobody_sent_is_strange_and_hides_no_loss() {
        let tally = check(5, &[0, 1, 900_000_000_000, 3, 4]);
        assert_eq!(tally, Tally { received: 4, lost: 1, reordered: 2, strange: 1, ..Tally::default() });
    }

    #[test]
    fn another_length_is_strange() {
        let mut checker = Checker::new(SIZE);
        for bad in [&[][..], &[0; 3], &[0; SIZE - 1], &[0; SIZE + 1], &[0xff; SIZE]] {
            assert_eq!(checker.take(bad), None);
        }
        checker.take(&message(0));
        assert_eq!(checker.tally(1), Tally { received: 1, strange: 5, ..Tally::default() });
    }

    #[test]
    fn a_message_as_long_as_the_end_mark_is_no_end_mark() {
        let mut checker = Checker::new(END_MARK);
        let mut message = [0xff; END_MARK];
        number(&mut message, 0);
        assert_eq!(checker.take(&message), None);
        assert_eq!(checker.take(&end_mark(1)), Some(1));
        assert!(checker.tally(1).is_clean());
    }

    #[test]
    fn a_new_run_forgets_the_old_one() {
        let shared = SharedChecker::new(SIZE);
        shared.take(&message(5));
        shared.restart(SIZE);
        shared.take(&message(0));
        assert_eq!(shared.tally(1), Tally { received: 1, ..Tally::default() });
    }

    proptest! {
        #[test]
        fn any_stream_is_counted_as_by_a_set(arrivals in prop::collection::vec(0u64..24, 0..60), sent in 0u64..24) {
            let mut seen = std::collections::BTreeSet::new();
            let mut model = Tally::default();
            for &sequence in &arrivals {
                let late = seen.last().is_some_and(|&highest| highest > sequence);
                if !seen.insert(sequence) {
                    model.duplicated += 1;
                } else if late {
                    model.reordered += 1;
                }
            }
            model.received = seen.iter().filter(|&&sequence| sequence < sent).count() as u64;
            model.strange = seen.len() as u64 - model.received;
            model.lost = sent - model.received;
            prop_assert_eq!(check(sent, &arrivals), model);
        }
    }
}
