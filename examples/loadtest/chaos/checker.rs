//! The checker: from ledgers alone, what was lost, doubled, exchanged or damaged.
//!
//! Owns: nothing. Threads: the main thread of the checker's process. Locks: none. Blocks on: the file system.
//! Upholds: no number of the library enters but the outcome it gave each message; each kind of fault counts in its own
//! counter only; what a killed process could not write down is counted apart and left out of no sum.
//!
//! A handler writes its line before it returns, and the library acknowledges after that: a message that a sender knows to
//! be acknowledged is in the receiver's ledger, however the receiver ended. Of a message that a sender was killed with,
//! nothing is known: it may have been delivered.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::chaos::ledger::{self, Line, What};
use crate::chaos::payload::{Stamp, Stream};
use crate::failure::Failure;

/// A message ends unknown when its receiver has restarted so often without an answer.
const KILLS_TO_UNKNOWN: usize = 2;

/// What to check.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Check {
    /// The folder of the ledgers.
    pub folder: PathBuf,
    /// How many processes each node had; all but the last of each were killed.
    pub lives: Vec<u16>,
}

/// What the ledgers say. Reliable messages, unless it says otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Accepted by a process that lived to see what became of them, or saw it before it was killed.
    pub accepted: u64,
    /// Of these, acknowledged.
    pub acked: u64,
    /// Of these, returned.
    pub returned: u64,
    /// Of these, ended unknown.
    pub unknown: u64,
    /// Accepted by a process that was killed before it knew what became of them: not among those above.
    pub accepted_by_killed: u64,
    /// Of these, delivered.
    pub delivered_of_killed: u64,
    /// Handed to a receiving application, each time.
    pub delivered: u64,
    /// Not delivered, though acknowledged, unknown without a reason, or without an outcome.
    pub lost: u64,
    /// Delivered again without the announcement, or to the same process, or more often than twice. Best effort too.
    pub duplicated: u64,
    /// Delivered again to the next process, and announced.
    pub repeats_marked: u64,
    /// Delivered behind a later one of the same stream. Best effort too.
    pub reordered: u64,
    /// Delivered with other bytes than were sent. Best effort too.
    pub corrupted: u64,
    /// Delivered, and never sent. Best effort too.
    pub unexpected: u64,
    /// Announced as a possible repeat, the repeats among them.
    pub announced: u64,
    /// Announced by a receiver that never restarted.
    pub announced_without_restart: u64,
    /// Ended unknown though their receiver was not killed twice.
    pub unknown_without_kills: u64,
    /// Returned as not handed over, and yet delivered. Best effort too.
    pub returned_and_delivered: u64,
    /// Outcomes of nothing that was sent, second ones, and ones of the wrong sort. Best effort too.
    pub wrong_outcomes: u64,
    /// Numbers that an application used twice.
    pub resent: u64,
    /// What the library did not take. Best effort too.
    pub refused: u64,
    /// Best effort: accepted by a process that lived, or was told what became of them.
    pub effort_accepted: u64,
    /// Best effort: written.
    pub effort_written: u64,
    /// Best effort: returned before they were written.
    pub effort_returned: u64,
    /// Best effort: handed over.
    pub effort_delivered: u64,
    /// Best effort: accepted by a process that was killed before it was told.
    pub effort_accepted_by_killed: u64,
}

/// Reads the ledgers of a run.
///
/// # Errors
/// One of them cannot be read.
pub fn check(check: &Check) -> Result<Verdict, Failure> {
    let mut verdict = Verdict::default();
    let read_all = |lives: u16, path: &dyn Fn(u16) -> PathBuf| {
        (0..lives).map(|life| ledger::read(&path(life))).collect::<Result<Vec<_>, _>>()
    };
    let folder: &Path = &check.folder;
    for (from, sender_lives) in check.lives.iter().enumerate() {
        for (to, receiver_lives) in check.lives.iter().enumerate().filter(|(to, _)| *to != from) {
            let sent = read_all(*sender_lives, &|life| ledger::sent_by(folder, from, life, to))?;
            let received = read_all(*receiver_lives, &|life| ledger::received_by(folder, to, life, from))?;
            verdict.count(&sent, &received);
        }
    }
    Ok(verdict)
}

/// What is known of one message.
#[derive(Debug)]
struct Fate {
    digest: u64,
    outcome: Option<What>,
    deliveries: u32,
    /// The receiver's process that was handed it last.
    receiver_life: usize,
}

/// Where a message stands in its stream.
type Position = (u16, u32);

impl Verdict {
    /// Compares what the processes of one node sent to another one with what that one's were handed. All processes but
    /// the last of each were killed.
    fn count(&mut self, sent: &[Vec<Line>], received: &[Vec<Line>]) {
        let mut fates = HashMap::new();
        for line in sent.iter().flatten() {
            self.count_sent(line, &mut fates);
        }
        let mut before = HashMap::new();
        for (life, lines) in received.iter().enumerate() {
            before = self.count_received(life, lines, &mut fates, before);
        }
        for (stamp, fate) in &fates {
            let killed = usize::from(stamp.life) + 1 < sent.len();
            if stamp.stream.best_effort {
                self.count_effort(fate, killed);
            } else {
                self.count_fate(fate, killed, received.len() > KILLS_TO_UNKNOWN);
            }
        }
    }

    fn count_sent(&mut self, line: &Line, fates: &mut HashMap<Stamp, Fate>) {
        // The other end's number says nothing here: the file is of one destination.
        let stamp = Stamp { from: 0, ..line.stamp };
        match line.what {
            What::Sent => {
                let fate = Fate { digest: line.digest, outcome: None, deliveries: 0, receiver_life: 0 };
                self.resent += u64::from(fates.insert(stamp, fate).is_some());
            }
            What::Refused => {
                self.refused += 1;
                self.wrong_outcomes += u64::from(fates.remove(&stamp).is_none_or(|fate| fate.outcome.is_some()));
            }
            what => {
                let fits = match what {
                    What::Acked | What::Unknown => !stamp.stream.best_effort,
                    What::Written => stamp.stream.best_effort,
                    What::Returned => true,
                    _ => false,
                };
                let first = match fates.get_mut(&stamp) {
                    Some(fate) => fate.outcome.replace(what).is_none(),
                    None => false,
                };
                self.wrong_outcomes += u64::from(!fits || !first);
            }
        }
    }

    /// One process of the receiver. `before` has the last position of each stream that earlier ones were handed; the
    /// same, this one included, is given back.
    fn count_received(
        &mut self,
        life: usize,
        lines: &[Line],
        fates: &mut HashMap<Stamp, Fate>,
        before: HashMap<Stream, Position>,
    ) -> HashMap<Stream, Position> {
        let mut here = HashMap::new();
        for line in lines {
            let stamp = Stamp { from: 0, ..line.stamp };
            let announced = line.what == What::Repeat;
            if stamp.stream.best_effort {
                self.effort_delivered += 1;
            } else {
                self.delivered += 1;
            }
            self.announced += u64::from(announced);
            self.announced_without_restart += u64::from(announced && life == 0);
            let Some(fate) = fates.get_mut(&stamp) else {
                if line.what == What::Damaged {
                    self.corrupted += 1;
                } else {
                    self.unexpected += 1;
                }
                continue;
            };
            self.corrupted += u64::from(line.what == What::Damaged || fate.digest != line.digest);
            let position = (stamp.life, stamp.sequence);
            let is_behind =
                |last: &HashMap<Stream, Position>| last.get(&stamp.stream).is_some_and(|last| *last > position);
            let again = fate.deliveries > 0;
            if again && announced && fate.receiver_life < life && fate.deliveries == 1 {
                self.repeats_marked += 1;
                self.reordered += u64::from(is_behind(&here));
            } else if again {
                self.duplicated += 1;
            } else {
                // What was announced may have been written to an earlier process, and reached it only in part.
                self.reordered += u64::from(is_behind(&here) || (!announced && is_behind(&before)));
            }
            fate.deliveries += 1;
            fate.receiver_life = life;
            let last = here.entry(stamp.stream).or_insert(position);
            *last = position.max(*last);
        }
        for (stream, position) in before {
            let last = here.entry(stream).or_insert(position);
            *last = position.max(*last);
        }
        here
    }

    fn count_fate(&mut self, fate: &Fate, killed: bool, may_be_unknown: bool) {
        let delivered = fate.deliveries > 0;
        if killed && fate.outcome.is_none() {
            self.accepted_by_killed += 1;
            self.delivered_of_killed += u64::from(delivered);
            return;
        }
        self.accepted += 1;
        let lost = match fate.outcome {
            Some(What::Returned) => {
                self.returned += 1;
                self.returned_and_delivered += u64::from(delivered);
                false
            }
            Some(What::Unknown) => {
                self.unknown += 1;
                self.unknown_without_kills += u64::from(!may_be_unknown);
                !may_be_unknown
            }
            Some(What::Acked) => {
                self.acked += 1;
                true
            }
            _ => true,
        };
        self.lost += u64::from(lost && !delivered);
    }

    fn count_effort(&mut self, fate: &Fate, killed: bool) {
        match fate.outcome {
            None if killed => {
                self.effort_accepted_by_killed += 1;
                return;
            }
            Some(What::Written) => self.effort_written += 1,
            Some(What::Returned) => {
                self.effort_returned += 1;
                self.returned_and_delivered += u64::from(fate.deliveries > 0);
            }
            _ => {}
        }
        self.effort_accepted += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NORMAL: Stream = Stream { lane: 1, best_effort: false };
    const EFFORT: Stream = Stream { lane: 1, best_effort: true };

    fn on(stream: Stream, what: What, life: u16, sequence: u32) -> Line {
        Line { what, stamp: Stamp { from: 3, stream, life, sequence }, digest: u64::from(sequence) << 8 }
    }

    fn lines(what: What, numbers: impl IntoIterator<Item = u32>) -> Vec<Line> {
        numbers.into_iter().map(|number| on(NORMAL, what, 0, number)).collect()
    }

    /// A living sender whose messages 0 to `count` were all acknowledged.
    fn all_acked(count: u32) -> Vec<Vec<Line>> {
        vec![[lines(What::Sent, 0..count), lines(What::Acked, 0..count)].concat()]
    }

    fn verdict(sent: &[Vec<Line>], received: &[Vec<Line>]) -> Verdict {
        let mut verdict = Verdict::default();
        verdict.count(sent, received);
        verdict
    }

    /// The counters that must be zero when nothing went wrong.
    fn faults(verdict: Verdict) -> Vec<(&'static str, u64)> {
        let all = [
            ("lost", verdict.lost),
            ("duplicated", verdict.duplicated),
            ("reordered", verdict.reordered),
            ("corrupted", verdict.corrupted),
            ("unexpected", verdict.unexpected),
            ("announced_without_restart", verdict.announced_without_restart),
            ("unknown_without_kills", verdict.unknown_without_kills),
            ("returned_and_delivered", verdict.returned_and_delivered),
            ("wrong_outcomes", verdict.wrong_outcomes),
            ("resent", verdict.resent),
        ];
        all.into_iter().filter(|(_, count)| *count > 0).collect()
    }

    #[test]
    fn what_arrived_whole_and_in_order_has_no_fault() {
        let verdict = verdict(&all_acked(10), &[lines(What::Taken, 0..10)]);
        assert_eq!(verdict, Verdict { accepted: 10, acked: 10, delivered: 10, ..Verdict::default() });
    }

    #[test]
    fn each_harm_counts_in_its_own_counter_only() {
        let taken = |numbers: &[u32]| lines(What::Taken, numbers.iter().copied());
        let mut other_bytes = taken(&[0, 1, 2, 3]);
        other_bytes[2].digest += 1;
        let mut damaged = taken(&[0, 1, 2, 3]);
        damaged[2].what = What::Damaged;
        for (received, fault) in [
            (taken(&[0, 1, 3]), "lost"),
            (taken(&[0, 1, 1, 2, 3]), "duplicated"),
            (taken(&[0, 1, 2, 3, 1]), "duplicated"),
            (taken(&[0, 2, 1, 3]), "reordered"),
            (taken(&[0, 1, 2, 3, 4]), "unexpected"),
            (other_bytes, "corrupted"),
            (damaged, "corrupted"),
        ] {
            assert_eq!(faults(verdict(&all_acked(4), &[received])), [(fault, 1)], "{fault}");
        }
    }

    #[test]
    fn streams_are_ordered_each_on_its_own() {
        let streams = [0, 1, 2].map(|lane| Stream { lane, best_effort: false });
        let sent = streams
            .iter()
            .flat_map(|stream| (0..3).flat_map(|n| [on(*stream, What::Sent, 0, n), on(*stream, What::Acked, 0, n)]));
        let received = streams.iter().rev().flat_map(|stream| (0..3).map(|n| on(*stream, What::Taken, 0, n)));
        assert_eq!(faults(verdict(&[sent.collect()], &[received.collect()])), []);
    }

    #[test]
    fn a_message_without_an_outcome_is_missing_in_the_sum_and_lost_if_it_did_not_come() {
        let sent = [[lines(What::Sent, 0..4), lines(What::Acked, 0..2)].concat()];
        let verdict = verdict(&sent, &[lines(What::Taken, 0..3)]);
        assert_eq!((verdict.accepted, verdict.acked, verdict.lost), (4, 2, 1));
    }

    #[test]
    fn a_killed_receiver_may_be_handed_a_message_once_more_if_it_is_told_so() {
        let first = lines(What::Taken, 0..3);
        let again = |what| [lines(what, 1..3), lines(What::Taken, 3..5)].concat();
        let good = verdict(&all_acked(5), &[first.clone(), again(What::Repeat)]);
        assert_eq!((faults(good), good.repeats_marked, good.delivered), (vec![], 2, 7));
        let silent = verdict(&all_acked(5), &[first.clone(), again(What::Taken)]);
        assert_eq!((faults(silent), silent.repeats_marked), (vec![("duplicated", 2)], 0));
        let thrice = [first.clone(), again(What::Repeat), lines(What::Repeat, 3..5), lines(What::Repeat, 3..4)];
        assert_eq!(faults(verdict(&all_acked(5), &thrice)), [("duplicated", 1)]);
        let same_process = [first, [lines(What::Repeat, 1..2), lines(What::Repeat, 1..2)].concat()];
        assert_eq!(faults(verdict(&all_acked(3), &same_process)), [("duplicated", 1)]);
    }

    #[test]
    fn an_announcement_without_a_restart_is_a_fault() {
        assert_eq!(faults(verdict(&all_acked(3), &[lines(What::Repeat, 0..3)])), [("announced_without_restart", 3)]);
    }

    #[test]
    fn repeats_are_in_order_and_what_is_no_repeat_is_behind_all_of_the_earlier_process() {
        let exchanged = [lines(What::Taken, 0..3), lines(What::Repeat, [2, 1])];
        assert_eq!(faults(verdict(&all_acked(3), &exchanged)), [("reordered", 1)]);
        let late = [lines(What::Taken, [0, 2]), lines(What::Taken, [1])];
        assert_eq!(faults(verdict(&all_acked(3), &late)), [("reordered", 1)]);
        let written_in_part = [lines(What::Taken, [0, 2]), lines(What::Repeat, [1])];
        assert_eq!(faults(verdict(&all_acked(3), &written_in_part)), []);
    }

    #[test]
    fn unknown_needs_two_kills_of_the_receiver() {
        let sent = [[lines(What::Sent, 0..3), lines(What::Acked, 0..1), lines(What::Unknown, 1..3)].concat()];
        let one = lines(What::Taken, 0..2);
        let calm = verdict(&sent, std::slice::from_ref(&one));
        assert_eq!((faults(calm), calm.unknown), (vec![("lost", 1), ("unknown_without_kills", 2)], 2));
        let killed = verdict(&sent, &[one.clone(), vec![]]);
        assert_eq!(faults(killed), [("lost", 1), ("unknown_without_kills", 2)]);
        let twice = verdict(&sent, &[one, vec![], vec![]]);
        assert_eq!((faults(twice), twice.accepted, twice.acked, twice.unknown), (vec![], 3, 1, 2));
    }

    #[test]
    fn what_was_returned_must_not_have_been_delivered() {
        let sent = [[lines(What::Sent, 0..3), lines(What::Acked, [0, 1]), lines(What::Returned, [2])].concat()];
        let verdict_of = |upto| verdict(&sent, &[lines(What::Taken, 0..upto)]);
        assert_eq!((faults(verdict_of(2)), verdict_of(2).returned), (vec![], 1));
        assert_eq!(faults(verdict_of(3)), [("returned_and_delivered", 1)]);
    }

    #[test]
    fn what_a_killed_sender_did_not_see_the_end_of_is_counted_apart() {
        let killed = [lines(What::Sent, 0..5), lines(What::Acked, 0..2)].concat();
        let next: Vec<Line> =
            [What::Sent, What::Acked].iter().flat_map(|what| (0..2).map(|n| on(NORMAL, *what, 1, n))).collect();
        let mut received = lines(What::Taken, 0..3);
        received.extend((0..2).map(|n| on(NORMAL, What::Taken, 1, n)));
        let verdict = verdict(&[killed, next], &[received]);
        assert_eq!(faults(verdict), []);
        assert_eq!((verdict.accepted, verdict.acked), (4, 4));
        assert_eq!((verdict.accepted_by_killed, verdict.delivered_of_killed), (3, 1));
    }

    #[test]
    fn nothing_of_an_earlier_life_of_the_sender_comes_behind_a_later_one() {
        let received = vec![on(NORMAL, What::Taken, 1, 0), on(NORMAL, What::Taken, 0, 1)];
        let sent = [lines(What::Sent, 0..2), vec![on(NORMAL, What::Sent, 1, 0), on(NORMAL, What::Acked, 1, 0)]];
        assert_eq!(faults(verdict(&sent, &[received])), [("reordered", 1)]);
    }

    #[test]
    fn best_effort_may_get_lost_and_is_counted_apart() {
        let line = |what, n| on(EFFORT, what, 0, n);
        let mut sent: Vec<Line> = (0..4).map(|n| line(What::Sent, n)).collect();
        sent.extend([line(What::Written, 0), line(What::Written, 1), line(What::Returned, 2), line(What::Written, 3)]);
        let good = verdict(std::slice::from_ref(&sent), &[vec![line(What::Taken, 1), line(What::Taken, 3)]]);
        assert_eq!((faults(good), good.accepted, good.delivered, good.effort_delivered), (vec![], 0, 0, 2));
        assert_eq!((good.effort_accepted, good.effort_written, good.effort_returned), (4, 3, 1));
        let bad = verdict(&[sent], &[vec![line(What::Taken, 3), line(What::Taken, 3), line(What::Taken, 1)]]);
        assert_eq!(faults(bad), [("duplicated", 1), ("reordered", 1)]);
    }

    #[test]
    fn wrong_books_are_found() {
        let twice = [[lines(What::Sent, [0, 0]), lines(What::Acked, [0])].concat()];
        assert_eq!(faults(verdict(&twice, &[lines(What::Taken, 0..1)])), [("resent", 1)]);
        let second = [[lines(What::Sent, [0]), lines(What::Acked, [0, 0])].concat()];
        assert_eq!(faults(verdict(&second, &[lines(What::Taken, 0..1)])), [("wrong_outcomes", 1)]);
        let of_nothing = [lines(What::Acked, [7])];
        assert_eq!(faults(verdict(&of_nothing, &[vec![]])), [("wrong_outcomes", 1)]);
        let refused = [[lines(What::Sent, [0]), lines(What::Refused, [0])].concat()];
        let verdict = verdict(&refused, &[vec![]]);
        assert_eq!((faults(verdict), verdict.refused, verdict.accepted), (vec![], 1, 0));
    }

    #[test]
    fn ledgers_are_found_where_they_are_written() {
        let folder = tempfile::tempdir().unwrap();
        (0..2).for_each(|node| std::fs::create_dir(folder.path().join(format!("node-{node}"))).unwrap());
        let write = |path: PathBuf, line: Line| {
            ledger::Ledger::open(path).unwrap().append(&line).unwrap();
        };
        for what in [What::Sent, What::Acked] {
            write(ledger::sent_by(folder.path(), 1, 2, 0), on(NORMAL, what, 2, 9));
        }
        write(ledger::received_by(folder.path(), 0, 1, 1), on(NORMAL, What::Taken, 2, 9));
        let verdict = check(&Check { folder: folder.path().to_owned(), lives: vec![2, 3] }).unwrap();
        assert_eq!(verdict, Verdict { accepted: 1, acked: 1, delivered: 1, ..Verdict::default() });
    }
}
