//! Which questions of one link wait for an answer: the decisions, without a clock, a lock or a thread.
//!
//! Owns: an entry for each question that waits. Threads: whoever holds the table's lock. Locks: none itself.
//! Blocks on: nothing.
//! Upholds: each question leaves the table once, with whoever waits for it; numbers are never given twice, nor are those
//! of an earlier life of this process.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::time::Instant;

use crate::error::RequestError;

/// Spreads numbers that follow each other.
#[derive(Debug, Default)]
pub(super) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte) ^ self.0);
        }
    }

    fn write_u64(&mut self, number: u64) {
        // The golden ratio: neighbours end far apart, in the bits that a hash map looks at first too.
        self.0 = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// Questions that wait. `W` is whoever waits.
#[derive(Debug)]
pub(super) struct Table<W> {
    waiting: HashMap<u64, Entry<W>, BuildHasherDefault<NumberHasher>>,
    first: u64,
    next: u64,
    /// No deadline of an entry is before it.
    earliest: Option<Instant>,
    /// Nobody may ask any more.
    closed: bool,
}

#[derive(Debug)]
struct Entry<W> {
    waiter: W,
    deadline: Instant,
    /// The other side's application has the question: it will not come there again.
    handed: bool,
}

/// Whose answer came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found<W> {
    /// Of somebody who waits.
    Waiting(W),
    /// Of a question that has ended.
    Late,
    /// Of no question of this table.
    Unknown,
}

impl<W> Table<W> {
    /// No questions; the first one's number is `first`.
    pub(super) fn new(first: u64) -> Self {
        Self { waiting: HashMap::default(), first, next: first, earliest: None, closed: false }
    }

    /// A question; its number, or whoever waits again if nobody may ask any more.
    pub(super) fn ask(&mut self, waiter: W, deadline: Instant) -> Result<u64, W> {
        if self.closed {
            return Err(waiter);
        }
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.earliest = Some(self.earliest.map_or(deadline, |earliest| earliest.min(deadline)));
        self.waiting.insert(number, Entry { waiter, deadline, handed: false });
        Ok(number)
    }

    /// An answer, or another end of a question.
    pub(super) fn take(&mut self, number: u64) -> Found<W> {
        match self.waiting.remove(&number) {
            Some(entry) => Found::Waiting(entry.waiter),
            None if number.wrapping_sub(self.first) < self.next.wrapping_sub(self.first) => Found::Late,
            None => Found::Unknown,
        }
    }

    /// The other side's application has the question.
    pub(super) fn handed(&mut self, number: u64) {
        if let Some(entry) = self.waiting.get_mut(&number) {
            entry.handed = true;
        }
    }

    /// Whoever waited until `now`.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<W> {
        if self.earliest.is_none_or(|earliest| earliest > now) {
            return Vec::new();
        }
        let expired = self.take_all(|entry| entry.deadline <= now);
        self.earliest = self.waiting.values().map(|entry| entry.deadline).min();
        expired
    }

    /// Whoever waits for the answer to a question that the other side's application has: that life of it is over.
    pub(super) fn lose_handed(&mut self) -> Vec<W> {
        self.take_all(|entry| entry.handed)
    }

    /// Whoever waits at all.
    pub(super) fn lose_all(&mut self) -> Vec<W> {
        self.take_all(|_| true)
    }

    /// Refuses all further questions.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    fn take_all(&mut self, over: impl Fn(&Entry<W>) -> bool) -> Vec<W> {
        self.waiting.extract_if(|_, entry| over(entry)).map(|(_, entry)| entry.waiter).collect()
    }
}

/// What an answer that is none says.
pub(super) fn failure(code: u16, payload: &[u8]) -> RequestError {
    match code {
        crate::wire::failed::NO_ANSWER => RequestError::NoAnswer,
        crate::wire::failed::APPLICATION => {
            RequestError::Failed(payload.first_chunk().map_or(0, |code| u16::from_le_bytes(*code)))
        }
        cause => RequestError::Rejected(crate::error::RejectCause::from_code(cause)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_question_ends_once_and_what_comes_after_is_late() {
        let now = Instant::now();
        let mut table = Table::new(u64::MAX);
        let numbers = ["a", "b", "c"].map(|who| table.ask(who, now + 10 * MS).unwrap());
        assert_eq!(numbers, [u64::MAX, 0, 1]);
        assert_eq!(table.take(0), Found::Waiting("b"));
        assert_eq!(table.take(0), Found::Late);
        assert_eq!((table.take(2), table.take(u64::MAX - 1)), (Found::Unknown, Found::Unknown));
        let mut rest = table.lose_all();
        rest.sort_unstable();
        assert_eq!((rest, table.len()), (vec!["a", "c"], 0));
        assert_eq!(table.take(u64::MAX), Found::Late);
    }

    #[test]
    fn deadlines_end_questions_in_any_order() {
        let now = Instant::now();
        let mut table = Table::new(7);
        for (who, after) in [("late", 30), ("early", 10), ("middle", 20)] {
            table.ask(who, now + after * MS).unwrap();
        }
        assert_eq!(table.expire(now + 9 * MS), [""; 0]);
        assert_eq!(table.expire(now + 10 * MS), ["early"]);
        assert_eq!(table.expire(now + 19 * MS), [""; 0]);
        table.ask("new", now + 5 * MS).unwrap();
        let mut expired = table.expire(now + 20 * MS);
        expired.sort_unstable();
        assert_eq!(expired, ["middle", "new"]);
        assert_eq!(table.take(7), Found::Waiting("late"));
        assert_eq!(table.expire(now + 3600 * 1000 * MS), [""; 0]);
    }

    #[test]
    fn a_life_that_is_over_ends_the_questions_it_had_and_no_others() {
        let now = Instant::now();
        let mut table = Table::new(0);
        let [had, waits] = ["had", "waits"].map(|who| table.ask(who, now).unwrap());
        table.handed(had);
        table.handed(99);
        assert_eq!(table.lose_handed(), ["had"]);
        assert_eq!(table.take(waits), Found::Waiting("waits"));
        table.close();
        assert_eq!(table.ask("nobody", now), Err("nobody"));
    }

    #[test]
    fn an_answer_that_is_none_says_why() {
        assert_eq!(failure(0, b"whatever"), RequestError::NoAnswer);
        assert_eq!(failure(u16::MAX, &[1, 2, 3]), RequestError::Failed(0x201));
        assert_eq!(failure(u16::MAX, &[1]), RequestError::Failed(0));
        assert_eq!(failure(2, &[]), RequestError::Rejected(crate::error::RejectCause::Undecodable));
        assert_eq!(failure(999, &[]), RequestError::Rejected(crate::error::RejectCause::Other(999)));
    }
}
