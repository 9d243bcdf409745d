//! The checker: computes from ledgers and folders alone what was lost, duplicated, reordered or damaged.
//!
//! Owns: nothing. Threads: the main thread of the checker's process. Locks: none. Blocks on: the file system.
//! Upholds: no number of the library enters; each kind of fault counts in its own counter only.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use threadwire::PeerId;

use crate::failure::Failure;
use crate::files::{Source, Sources, digest_of, safe_path};
use crate::ledger::{self, Delivered, Sent};
use crate::{layout, message::Digest};

/// What to check.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Check {
    /// The folder of the run.
    pub out: PathBuf,
    /// The nodes; the first one sent.
    pub ids: Vec<PeerId>,
    /// What it sent.
    pub sources: Vec<Source>,
}

/// What the ledgers and the folders say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Messages that sending applications recorded.
    pub sent: u64,
    /// Messages that receiving applications recorded.
    pub delivered: u64,
    /// Sent, and in no receiver's ledger.
    pub lost: u64,
    /// Delivered once more than once, each time.
    pub duplicated: u64,
    /// Delivered after a message that was sent later.
    pub reordered: u64,
    /// Delivered with other bytes than were sent.
    pub corrupted: u64,
    /// Delivered, and never sent by the node it is said to be from.
    pub unexpected: u64,
    /// Sent again by the application, which it must not do.
    pub resent: u64,
    /// Announced by the library as a possible repeat.
    pub possible_repeats: u64,
    /// Files that are missing, different or too many, in all receivers' folders together.
    pub files_differ: u64,
}

/// Reads the ledgers and folders of a run.
pub fn check(check: &Check) -> Result<Verdict, Failure> {
    let mut verdict = Verdict::default();
    let Some(sender) = check.ids.first() else { return Ok(verdict) };
    let mut digests = Vec::new();
    for source in &check.sources {
        digests.push((source.name.as_str(), digest_of(&source.path)?));
    }
    let sender_folder = layout::node(&check.out, 0);
    for (index, id) in check.ids.iter().enumerate() {
        let folder = layout::node(&check.out, index);
        let delivered = ledger::read(&layout::received_ledger(&folder))?;
        // Nobody sends to the sender: whatever is in its ledger is unexpected.
        let sent = if index == 0 { Vec::new() } else { ledger::read(&layout::sent_ledger(&sender_folder, index))? };
        verdict.count(sender, id, &sent, &delivered);
        verdict.files_differ += files_differ(if index == 0 { &[] } else { &digests }, &layout::files(&folder))?;
    }
    Ok(verdict)
}

impl Verdict {
    /// Compares what `sender` sent to one receiver with what was delivered there.
    fn count(&mut self, sender: &PeerId, receiver: &PeerId, sent: &[Sent], delivered: &[Delivered]) {
        let mut missing = BTreeMap::new();
        for line in sent {
            if line.to != *receiver || missing.insert(line.sequence, line.digest).is_some() {
                self.resent += 1;
            }
        }
        let sent_digests = missing.clone();
        let mut highest = None;
        for line in delivered {
            self.possible_repeats += u64::from(line.possible_repeat);
            let Some(sequence) = line.sequence else {
                self.corrupted += 1;
                continue;
            };
            let Some(digest) = sent_digests.get(&sequence).filter(|_| line.from == *sender) else {
                self.unexpected += 1;
                continue;
            };
            if !line.intact || line.digest != *digest {
                self.corrupted += 1;
            }
            if missing.remove(&sequence).is_none() {
                self.duplicated += 1;
            } else if highest > Some(sequence) {
                self.reordered += 1;
            }
            highest = highest.max(Some(sequence));
        }
        self.lost += missing.len() as u64;
        self.sent += sent.len() as u64;
        self.delivered += delivered.len() as u64;
    }
}

/// How many files below `folder` are missing, different or too many.
fn files_differ(wanted: &[(&str, Digest)], folder: &Path) -> Result<u64, Failure> {
    let found = Sources::below(folder)?;
    let mut extra: BTreeSet<&str> = found.files.iter().map(|file| file.name.as_str()).collect();
    let mut differ = found.skipped;
    for (name, digest) in wanted {
        let same = extra.remove(name) && digest_of(&folder.join(safe_path(name)?))? == *digest;
        differ += u64::from(!same);
    }
    Ok(differ + extra.len() as u64)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::sabotage::{Delivery, Plan, Sabotage, Saboteur};

    const SENDER: PeerId = PeerId::from_bytes([1; 32]);
    const RECEIVER: PeerId = PeerId::from_bytes([2; 32]);

    fn sent(messages: u64) -> Vec<Sent> {
        (0..messages).map(|n| Sent { to: RECEIVER, sequence: n, digest: Digest::of(&n.to_le_bytes()) }).collect()
    }

    fn delivered(messages: impl IntoIterator<Item = u64>) -> Vec<Delivered> {
        let line = |n: u64| Delivered {
            from: SENDER,
            sequence: Some(n),
            digest: Digest::of(&n.to_le_bytes()),
            intact: true,
            possible_repeat: false,
        };
        messages.into_iter().map(line).collect()
    }

    fn verdict(sent: &[Sent], delivered: &[Delivered]) -> Verdict {
        let mut verdict = Verdict::default();
        verdict.count(&SENDER, &RECEIVER, sent, delivered);
        verdict
    }

    /// The counters that must be zero when nothing went wrong, in the order of their declaration.
    fn faults(verdict: Verdict) -> [u64; 6] {
        let Verdict { lost, duplicated, reordered, corrupted, unexpected, resent, .. } = verdict;
        [lost, duplicated, reordered, corrupted, unexpected, resent]
    }

    #[test]
    fn what_arrived_whole_and_in_order_has_no_fault() {
        let verdict = verdict(&sent(10), &delivered(0..10));
        assert_eq!(verdict, Verdict { sent: 10, delivered: 10, ..Verdict::default() });
    }

    #[test]
    fn a_missing_message_is_lost_and_nothing_else() {
        assert_eq!(faults(verdict(&sent(5), &delivered([0, 1, 3, 4]))), [1, 0, 0, 0, 0, 0]);
        assert_eq!(faults(verdict(&sent(5), &delivered([]))), [5, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_repeated_message_is_duplicated_and_nothing_else() {
        assert_eq!(faults(verdict(&sent(5), &delivered([0, 1, 1, 2, 3, 4]))), [0, 1, 0, 0, 0, 0]);
        assert_eq!(faults(verdict(&sent(5), &delivered([0, 1, 2, 3, 4, 1, 1]))), [0, 2, 0, 0, 0, 0]);
    }

    #[test]
    fn exchanged_neighbours_are_reordered_and_nothing_else() {
        assert_eq!(faults(verdict(&sent(5), &delivered([0, 2, 1, 3, 4]))), [0, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn other_bytes_are_corrupted_and_nothing_else() {
        let mut lines = delivered(0..5);
        lines[2].digest = Digest::of(b"else");
        assert_eq!(faults(verdict(&sent(5), &lines)), [0, 0, 0, 1, 0, 0]);
        let mut lines = delivered(0..5);
        lines[2].intact = false;
        assert_eq!(faults(verdict(&sent(5), &lines)), [0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn an_unreadable_message_is_corrupted_and_the_one_it_was_is_lost() {
        let mut lines = delivered(0..5);
        lines[2].sequence = None;
        assert_eq!(faults(verdict(&sent(5), &lines)), [1, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn a_message_that_was_never_sent_is_unexpected() {
        assert_eq!(faults(verdict(&sent(5), &delivered([0, 1, 2, 3, 4, 5]))), [0, 0, 0, 0, 1, 0]);
        let mut lines = delivered(0..5);
        lines[4].from = RECEIVER;
        assert_eq!(faults(verdict(&sent(5), &lines)), [1, 0, 0, 0, 1, 0]);
    }

    #[test]
    fn an_application_that_sends_a_number_twice_is_found_out() {
        let mut lines = sent(5);
        lines.push(lines[0].clone());
        assert_eq!(faults(verdict(&lines, &delivered(0..5))), [0, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn an_announced_repeat_is_counted_apart() {
        let mut lines = delivered(0..5);
        lines[3].possible_repeat = true;
        let verdict = verdict(&sent(5), &lines);
        assert_eq!((faults(verdict), verdict.possible_repeats), ([0; 6], 1));
    }

    #[test]
    fn each_sabotage_shows_in_its_counter_only() {
        for (kind, faults_wanted) in [
            (Sabotage::Drop, [1, 0, 0, 0, 0, 0]),
            (Sabotage::Dup, [0, 1, 0, 0, 0, 0]),
            (Sabotage::Swap, [0, 0, 1, 0, 0, 0]),
            (Sabotage::Corrupt, [0, 0, 0, 1, 0, 0]),
        ] {
            let mut saboteur = Saboteur::new(Plan::in_the_middle(kind, 9));
            let mut lines = Vec::new();
            for n in 0..9u64 {
                let payload = n.to_le_bytes();
                let delivery = Delivery { from: SENDER, payload: &payload, possible_repeat: false };
                let passed = saboteur.pass(delivery, |delivery| {
                    let mut line = delivered([u64::from(delivery.payload[0])]).remove(0);
                    line.digest = Digest::of(delivery.payload);
                    lines.push(line);
                    Ok::<(), ()>(())
                });
                assert_eq!(passed, Ok(()));
            }
            assert!(saboteur.done(), "{kind:?}");
            assert_eq!(faults(verdict(&sent(9), &lines)), faults_wanted, "{kind:?}");
        }
    }

    #[test]
    fn a_file_that_is_missing_different_or_too_many_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["same", "different", "extra"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        let wanted =
            [("same", Digest::of(b"same")), ("different", Digest::of(b"Different")), ("missing/file", Digest::of(b""))];
        assert_eq!(files_differ(&wanted, folder.path()).unwrap(), 3);
        assert_eq!(files_differ(&wanted[..1], folder.path()).unwrap(), 2);
    }

    #[test]
    fn a_run_is_checked_from_its_folder_alone() {
        let out = tempfile::tempdir().unwrap();
        let source = out.path().join("source");
        fs::write(&source, "content").unwrap();
        let [sender, receiver] = [0, 1].map(|index| layout::node(out.path(), index));
        for node in [&sender, &receiver] {
            fs::create_dir_all(layout::files(node)).unwrap();
            fs::write(layout::received_ledger(node), "").unwrap();
        }
        fs::write(layout::files(&receiver).join("name"), "content").unwrap();
        fs::write(layout::sent_ledger(&sender, 1), format!("{}\n", sent(1)[0])).unwrap();
        let sources = vec![Source { name: "name".into(), path: source, length: 7 }];
        let request = Check { out: out.path().to_owned(), ids: vec![SENDER, RECEIVER], sources };
        assert_eq!(check(&request).unwrap(), Verdict { sent: 1, lost: 1, ..Verdict::default() });
        fs::write(layout::received_ledger(&receiver), format!("{}\n", delivered([0])[0])).unwrap();
        assert_eq!(check(&request).unwrap(), Verdict { sent: 1, delivered: 1, ..Verdict::default() });
    }
}
