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

/// A message ends unknown when its receiver has restarted so often without an answer. One that is wanted for a limited
/// time may come too late to the first process after a kill, and nobody knows whether the one before had it.
const KILLS_TO_UNKNOWN: usize = 2;
const KILLS_TO_UNKNOWN_BRIEF: usize = 1;

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
    /// Ended unknown though their receiver was not killed twice, or once for those wanted for a limited time.
    pub unknown_without_kills: u64,
    /// Returned as not handed over, and yet delivered. Best effort too.
    pub returned_and_delivered: u64,
    /// Given back to their sender with other bytes than it sent. Best effort too.
    pub returned_damaged: u64,
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
    /// Best effort: nobody knows whether they were written.
    pub effort_unknown: u64,
    /// Best effort: handed over.
    pub effort_delivered: u64,
    /// Best effort: accepted by a process that was killed before it was told.
    pub effort_accepted_by_killed: u64,
}

/// What a run's ledgers come to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// All of them, held against each other.
    pub verdict: Verdict,
    /// How many messages the last process of each node was handed, of every sort.
    pub handed_over: Vec<u64>,
}

/// Reads the ledgers of a run.
///
/// # Errors
/// One of them cannot be read.
pub fn check(check: &Check) -> Result<Checked, Failure> {
    let mut verdict = Verdict::default();
    let mut handed_over = vec![0; check.lives.len()];
    let read_all = |lives: u16, path: &dyn Fn(u16) -> PathBuf| {
        (0..lives).map(|life| ledger::read(&path(life))).collect::<Result<Vec<_>, _>>()
    };
    let folder: &Path = &check.folder;
    for (from, sender_lives) in check.lives.iter().enumerate() {
        for (to, receiver_lives) in check.lives.iter().enumerate().filter(|(to, _)| *to != from) {
            let sent = read_all(*sender_lives, &|life| ledger::sent_by(folder, from, life, to))?;
            let received = read_all(*receiver_lives, &|life| ledger::received_by(folder, to, life, from))?;
            verdict.count(&sent, &received);
            handed_over[to] += received.last().map_or(0, |lines| lines.len() as u64);
        }
    }
    Ok(Checked { verdict, handed_over })
}

/// What is known of one message.
#[derive(Debug)]
struct Fate {
    digest: u64,
    brief: bool,
    outcome: Option<What>,
    deliveries: u32,
    /// The receiver's process that was handed it last.
    receiver_life: usize,
}

/// Where a message stands in its stream.
type Position = (u16, u32);

impl Verdict {
    /// What no run may have, and this one has; a sentence for each.
    pub fn harms(&self) -> Vec<String> {
        let counts = [
            (self.lost, "messages lost"),
            (self.duplicated, "messages duplicated"),
            (self.reordered, "messages reordered"),
            (self.corrupted, "messages corrupted"),
            (self.unexpected, "messages that nobody sent"),
            (self.unknown_without_kills, "messages unknown without the kills it takes"),
            (self.announced_without_restart, "messages announced as repeats to a receiver that never restarted"),
            (self.returned_and_delivered, "messages returned as not handed over, and yet delivered"),
            (self.returned_damaged, "messages given back with other bytes"),
            (self.wrong_outcomes, "outcomes that are nobody's, or second ones"),
            (self.resent, "numbers used twice by the application"),
        ];
        let mut harms: Vec<String> =
            counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{what}: {count}")).collect();
        // One that was delivered and has no outcome is in no other count.
        for (accepted, known, what) in [
            (self.accepted, self.acked + self.returned + self.unknown, "messages"),
            (
                self.effort_accepted,
                self.effort_written + self.effort_returned + self.effort_unknown,
                "best effort messages",
            ),
        ] {
            if accepted != known {
                harms.push(format!("{accepted} {what} accepted, the outcome of {known} known"));
            }
        }
        harms
    }

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
            if stamp.stream.is_best_effort() {
                self.count_effort(fate, killed);
            } else {
                self.count_fate(fate, killed, received.len() - 1);
            }
        }
    }

    fn count_sent(&mut self, line: &Line, fates: &mut HashMap<Stamp, Fate>) {
        // The other end's number says nothing here: the file is of one destination.
        let stamp = Stamp { from: 0, ..line.stamp };
        match line.what {
            What::Sent | What::Brief => {
                let (digest, brief) = (line.digest, line.what == What::Brief);
                let fate = Fate { digest, brief, outcome: None, deliveries: 0, receiver_life: 0 };
                self.resent += u64::from(fates.insert(stamp, fate).is_some());
            }
            What::Refused => {
                self.refused += 1;
                self.wrong_outcomes += u64::from(fates.remove(&stamp).is_none_or(|fate| fate.outcome.is_some()));
            }
            what => {
                let fits = match what {
                    What::Acked => !stamp.stream.is_best_effort(),
                    What::Written => stamp.stream.is_best_effort(),
                    What::Returned | What::Unknown => true,
                    _ => false,
                };
                let fate = fates.get_mut(&stamp);
                let is_back = matches!(what, What::Returned | What::Unknown);
                let damaged = |fate: &mut Fate| is_back && fate.digest != line.digest;
                let (first, damaged) = match fate {
                    Some(fate) => (fate.outcome.replace(what).is_none(), damaged(fate)),
                    None => (false, false),
                };
                self.returned_damaged += u64::from(damaged);
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
            if stamp.stream.is_best_effort() {
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

    /// `kills` of the receiver.
    fn count_fate(&mut self, fate: &Fate, killed: bool, kills: usize) {
        let delivered = fate.deliveries > 0;
        if killed && fate.outcome.is_none() {
            self.accepted_by_killed += 1;
            self.delivered_of_killed += u64::from(delivered);
            return;
        }
        self.accepted += 1;
        let may_be_unknown = kills >= if fate.brief { KILLS_TO_UNKNOWN_BRIEF } else { KILLS_TO_UNKNOWN };
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
            Some(What::Unknown) => self.effort_unknown += 1,
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
mod tests;
