//! Which host names are being looked up, for whom, and how long each may still wait. Pure: no threads, no clock.
//!
//! Owns: the lookups that run, those that wait for a thread, and who asked for each. Threads: `supervisor` only.
//! Locks: none. Blocks on: nothing.
//! Upholds: one lookup in flight per name, never more than there are threads; whoever asks has an answer by its
//! deadline, also while the lookup goes on; a lookup that does not end holds one thread and nobody else.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::connections::round::RoundId;
use crate::error::DialCause;

/// The lookups of a node.
#[derive(Debug)]
pub(crate) struct Lookups {
    /// How many may run.
    threads: usize,
    timeout: Duration,
    running: usize,
    names: HashMap<Arc<str>, Lookup>,
    /// Names that wait for a thread, in order.
    queue: VecDeque<Arc<str>>,
    /// Who asked, in the order of the deadlines. What was answered already stays until it comes to the front.
    asked: VecDeque<Asker>,
}

/// Somebody who asked.
#[derive(Debug)]
struct Asker {
    deadline: Instant,
    /// The timeout that it follows from.
    timeout: Duration,
    round: RoundId,
    host: Arc<str>,
}

/// The lookup of one name.
#[derive(Debug)]
struct Lookup {
    /// Since when a thread has it.
    begun: Option<Instant>,
    rounds: Vec<RoundId>,
}

/// What becomes of a question.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Give this name to a thread; there is one that is free, or one can be started.
    Begin(Arc<str>),
    /// The answer comes.
    Waits,
    /// All threads are held by lookups that do not end.
    Refused,
}

impl Lookups {
    /// Lookups on so many threads, each answered within `timeout`.
    pub(crate) fn new(threads: usize, timeout: Duration) -> Self {
        let (names, queue, asked) = (HashMap::new(), VecDeque::new(), VecDeque::new());
        Self { threads, timeout, running: 0, names, queue, asked }
    }

    /// A round wants the addresses of a name.
    pub(crate) fn ask(&mut self, round: RoundId, host: &str, now: Instant) -> Asked {
        let name: Arc<str> = host.into();
        let verdict = if let Some(lookup) = self.names.get_mut(host) {
            lookup.rounds.push(round);
            Asked::Waits
        } else {
            let free = self.running < self.threads;
            if !free && self.is_stuck(now) {
                return Asked::Refused;
            }
            let begun = free.then_some(now);
            self.names.insert(name.clone(), Lookup { begun, rounds: vec![round] });
            if free {
                self.running += 1;
                Asked::Begin(name.clone())
            } else {
                self.queue.push_back(name.clone());
                Asked::Waits
            }
        };
        // In order also where the timeout has become shorter.
        let asker = Asker { deadline: now + self.timeout, timeout: self.timeout, round, host: name };
        let at = self.asked.partition_point(|other| other.deadline <= asker.deadline);
        self.asked.insert(at, asker);
        verdict
    }

    /// So many threads, and this timeout for who asks, from now on: names to give to threads that there are more.
    pub(crate) fn change(&mut self, threads: usize, timeout: Duration, now: Instant) -> Vec<Arc<str>> {
        (self.threads, self.timeout) = (threads, timeout);
        std::iter::from_fn(|| self.next(now)).collect()
    }

    /// The next name that waits, if there is a thread for it.
    fn next(&mut self, now: Instant) -> Option<Arc<str>> {
        if self.running >= self.threads {
            return None;
        }
        let next = self.queue.pop_front()?;
        if let Some(lookup) = self.names.get_mut(&next) {
            lookup.begun = Some(now);
            self.running += 1;
        }
        Some(next)
    }

    /// Whether every lookup that runs is past its time.
    fn is_stuck(&self, now: Instant) -> bool {
        self.names.values().filter_map(|lookup| lookup.begun).all(|begun| now - begun >= self.timeout)
    }

    /// A lookup has ended, or could not begin: who still waits for it, and the name to give to its thread next.
    pub(crate) fn ended(&mut self, host: &str, now: Instant) -> (Vec<RoundId>, Option<Arc<str>>) {
        let Some(lookup) = self.names.remove(host) else { return (Vec::new(), None) };
        self.running -= 1;
        (lookup.rounds, self.next(now))
    }

    /// Who has waited long enough, and what to tell it. A lookup that runs goes on.
    pub(crate) fn expired(&mut self, now: Instant) -> Vec<(RoundId, DialCause)> {
        let mut expired = Vec::new();
        while let Some(Asker { timeout, round, host, .. }) = self.asked.pop_front_if(|asker| asker.deadline <= now) {
            let Some(lookup) = self.names.get_mut(&host) else { continue };
            let Some(at) = lookup.rounds.iter().position(|waits| *waits == round) else { continue };
            lookup.rounds.swap_remove(at);
            if lookup.begun.is_some() {
                expired.push((round, DialCause::TimedOut(timeout)));
                continue;
            }
            expired.push((round, DialCause::ResolversBusy));
            if lookup.rounds.is_empty() {
                self.names.remove(&host);
                self.queue.retain(|waits| *waits != host);
            }
        }
        expired
    }

    /// Nobody waits any more, and no lookup begins.
    pub(crate) fn stop(&mut self) {
        self.asked.clear();
        self.queue.clear();
        self.names.retain(|_, lookup| {
            lookup.rounds.clear();
            lookup.begun.is_some()
        });
    }

    /// How many lookups are under way.
    pub(crate) fn running(&self) -> usize {
        self.running
    }

    /// When to look for [`Lookups::expired`] next.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.asked.front().map(|asker| asker.deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(5);

    fn begin(host: &str) -> Asked {
        Asked::Begin(host.into())
    }

    fn round(n: u64) -> RoundId {
        RoundId(n)
    }

    #[test]
    fn one_lookup_of_a_name_answers_everybody_who_asked() {
        let (mut lookups, now) = (Lookups::new(2, TIMEOUT), Instant::now());
        assert_eq!(lookups.ask(round(1), "a", now), begin("a"));
        assert_eq!(lookups.ask(round(2), "a", now), Asked::Waits);
        assert_eq!(lookups.ask(round(3), "b", now), begin("b"));
        assert_eq!(lookups.ended("a", now), (vec![round(1), round(2)], None));
        assert_eq!(lookups.ask(round(4), "a", now), begin("a"), "looked up afresh");
        assert_eq!(lookups.ended("b", now), (vec![round(3)], None));
    }

    #[test]
    fn names_wait_for_a_thread_in_order() {
        let (mut lookups, now) = (Lookups::new(1, TIMEOUT), Instant::now());
        assert_eq!(lookups.ask(round(1), "a", now), begin("a"));
        assert_eq!(lookups.ask(round(2), "b", now), Asked::Waits);
        assert_eq!(lookups.ask(round(3), "c", now), Asked::Waits);
        assert_eq!(lookups.ended("a", now), (vec![round(1)], Some("b".into())));
        assert_eq!(lookups.ended("b", now), (vec![round(2)], Some("c".into())));
        assert_eq!(lookups.ended("c", now), (vec![round(3)], None));
        assert_eq!(lookups.ask(round(4), "d", now), begin("d"));
    }

    #[test]
    fn whoever_asks_is_answered_in_time_and_the_thread_stays_held() {
        let (mut lookups, start) = (Lookups::new(1, TIMEOUT), Instant::now());
        let second = Duration::from_secs(1);
        assert_eq!(lookups.ask(round(1), "dead", start), begin("dead"));
        assert_eq!(lookups.ask(round(2), "good", start + second), Asked::Waits);
        assert_eq!(lookups.next_deadline(), Some(start + TIMEOUT));
        assert_eq!(lookups.expired(start + TIMEOUT - second), []);
        assert_eq!(lookups.expired(start + TIMEOUT), [(round(1), DialCause::TimedOut(TIMEOUT))]);
        // The thread is held: another name is refused, the same one waits for the one lookup that there is.
        assert_eq!(lookups.ask(round(3), "other", start + TIMEOUT), Asked::Refused);
        assert_eq!(lookups.ask(round(4), "dead", start + TIMEOUT), Asked::Waits);
        let later = start + TIMEOUT + second;
        assert_eq!(lookups.expired(later), [(round(2), DialCause::ResolversBusy)]);
        // It ends after all: whoever still waits has the answer, whoever gave up does not.
        assert_eq!(lookups.ended("dead", later), (vec![round(4)], None));
        assert_eq!(lookups.ask(round(5), "good", later), begin("good"));
        assert_eq!(lookups.ended("good", later), (vec![round(5)], None));
        assert_eq!(lookups.expired(later + TIMEOUT), []);
        assert_eq!(lookups.next_deadline(), None);
    }

    #[test]
    fn more_threads_begin_what_waits_and_fewer_let_those_that_run_end() {
        let (mut lookups, now) = (Lookups::new(1, TIMEOUT), Instant::now());
        assert_eq!(lookups.ask(round(1), "a", now), begin("a"));
        for (n, host) in [(2, "b"), (3, "c"), (4, "d")] {
            assert_eq!(lookups.ask(round(n), host, now), Asked::Waits);
        }
        assert_eq!(lookups.change(3, TIMEOUT, now), ["b".into(), "c".into()]);
        assert_eq!(lookups.change(1, TIMEOUT, now), []);
        assert_eq!(lookups.ended("a", now), (vec![round(1)], None));
        assert_eq!(lookups.ended("b", now), (vec![round(2)], None));
        assert_eq!(lookups.ended("c", now), (vec![round(3)], Some("d".into())));
    }

    #[test]
    fn a_shorter_timeout_holds_for_who_asks_from_then_on() {
        let (mut lookups, now) = (Lookups::new(2, TIMEOUT), Instant::now());
        assert_eq!(lookups.ask(round(1), "a", now), begin("a"));
        let short = Duration::from_secs(1);
        assert_eq!(lookups.change(2, short, now), []);
        assert_eq!(lookups.ask(round(2), "b", now), begin("b"));
        assert_eq!(lookups.next_deadline(), Some(now + short));
        assert_eq!(lookups.expired(now + short), [(round(2), DialCause::TimedOut(short))]);
        assert_eq!(lookups.next_deadline(), Some(now + TIMEOUT));
        assert_eq!(lookups.expired(now + TIMEOUT), [(round(1), DialCause::TimedOut(TIMEOUT))], "as it was told");
    }

    #[test]
    fn after_the_stop_nothing_begins() {
        let (mut lookups, now) = (Lookups::new(1, TIMEOUT), Instant::now());
        assert_eq!(lookups.ask(round(1), "a", now), begin("a"));
        assert_eq!(lookups.ask(round(2), "b", now), Asked::Waits);
        lookups.stop();
        assert_eq!((lookups.next_deadline(), lookups.running()), (None, 1));
        assert_eq!(lookups.ended("a", now), (Vec::new(), None));
    }

    #[test]
    fn a_thread_that_is_not_late_yet_is_waited_for() {
        let (mut lookups, start) = (Lookups::new(2, TIMEOUT), Instant::now());
        assert_eq!(lookups.ask(round(1), "dead", start), begin("dead"));
        assert_eq!(lookups.ask(round(2), "slow", start + TIMEOUT), begin("slow"));
        assert_eq!(lookups.ask(round(3), "good", start + TIMEOUT), Asked::Waits, "one thread may still end in time");
        assert_eq!(lookups.ended("slow", start + TIMEOUT), (vec![round(2)], Some("good".into())));
    }
}
