//! The result of a run: one JSON line for programs, a table for people.
//!
//! Owns: nothing. Threads: the parent's. Locks: none. Blocks on: nothing.
//! Upholds: `ok` and the reasons why not come from one list.

use std::fmt;

use serde::Serialize;

use crate::checker::Verdict;
use crate::control::{Cuts, Outcome, Tally};
use crate::sabotage::Sabotage;

/// What a run was, and how it ended.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Nodes, each a process.
    pub nodes: usize,
    /// The processes of the nodes.
    pub pids: Vec<u32>,
    /// Files sent to each receiver.
    pub files: usize,
    /// Bytes of these files together.
    pub bytes: u64,
    /// Messages that `send` accepted, for all receivers together.
    pub accepted: u64,
    /// Of these, acknowledged.
    pub acked: u64,
    /// Of these, returned with a reason.
    pub returned: u64,
    /// By the ledgers: sent and never delivered.
    pub lost: u64,
    /// By the ledgers: delivered more than once.
    pub duplicated: u64,
    /// By the ledgers: delivered behind a later one.
    pub reordered: u64,
    /// By the ledgers: delivered with other bytes.
    pub corrupted: u64,
    /// Times the proxy cut the link.
    pub cuts: u64,
    /// Bytes written and not acknowledged when it did.
    pub unacked_bytes_at_cut: u64,
    /// Sessions on that link after the first one.
    pub reconnects: u64,
    /// From the first message to the last acknowledgement.
    pub seconds: f64,
    /// Whether everything is as it must be.
    pub ok: bool,

    /// Of the accepted messages, those nobody knows about.
    pub unknown: u64,
    /// Messages delivered, by the ledgers.
    pub delivered: u64,
    /// Bytes of content written, by all receivers together.
    pub bytes_delivered: u64,
    /// Files that differ from their source, in all folders together.
    pub files_differ: u64,
    /// Delivered and never sent.
    pub unexpected: u64,
    /// Sent twice by the example itself.
    pub resent: u64,
    /// Announced by the library as possible repeats.
    pub possible_repeats: u64,
    /// Messages that named no file below the folder.
    pub refused: u64,
    /// Messages left unsent by the nodes' shutdown.
    pub undelivered: u64,
    /// Bytes the proxy had read and destroyed when it cut.
    pub destroyed_bytes_at_cut: u64,
    /// Links and special files that were not sent.
    pub skipped: u64,
    /// The process of the proxy.
    pub proxy_pid: u32,
    /// The process of the checker.
    pub checker_pid: u32,
    /// The fault that was asked for.
    pub sabotage: Option<Sabotage>,
    /// Why `ok` is false.
    pub problems: Vec<String>,
}

/// What the processes of a run said.
pub struct Findings {
    /// The nodes' processes.
    pub pids: Vec<u32>,
    /// Files, bytes and what was skipped.
    pub sources: (usize, u64, u64),
    /// The sender's.
    pub outcome: Outcome,
    /// The receivers', the sender's own included.
    pub tallies: Vec<Tally>,
    /// The proxy's.
    pub cuts: Cuts,
    /// The checker's.
    pub verdict: Verdict,
    /// The processes of the proxy and the checker.
    pub helpers: (u32, u32),
    /// The fault that was asked for.
    pub sabotage: Option<Sabotage>,
}

impl Report {
    /// Puts together what the processes said.
    pub fn new(found: Findings) -> Self {
        let Findings { outcome, cuts, verdict, .. } = found;
        let sum = |field: fn(&Tally) -> u64| found.tallies.iter().map(field).sum();
        let mut report = Self {
            nodes: found.pids.len(),
            pids: found.pids,
            files: found.sources.0,
            bytes: found.sources.1,
            accepted: outcome.accepted,
            acked: outcome.acked,
            returned: outcome.returned,
            lost: verdict.lost,
            duplicated: verdict.duplicated,
            reordered: verdict.reordered,
            corrupted: verdict.corrupted,
            cuts: cuts.cuts,
            unacked_bytes_at_cut: outcome.unacked_bytes_at_cut,
            reconnects: outcome.reconnects,
            seconds: outcome.millis as f64 / 1000.0,
            ok: false,
            unknown: outcome.unknown,
            delivered: verdict.delivered,
            bytes_delivered: sum(|tally| tally.bytes),
            files_differ: verdict.files_differ,
            unexpected: verdict.unexpected,
            resent: verdict.resent,
            possible_repeats: verdict.possible_repeats,
            refused: sum(|tally| tally.refused),
            undelivered: sum(|tally| tally.undelivered),
            destroyed_bytes_at_cut: cuts.destroyed_bytes,
            skipped: found.sources.2,
            proxy_pid: found.helpers.0,
            checker_pid: found.helpers.1,
            sabotage: found.sabotage,
            problems: Vec::new(),
        };
        report.problems = report.judge(verdict.sent, sum(|tally| tally.messages));
        if report.sabotage.is_some() && !found.tallies.iter().any(|tally| tally.sabotaged) {
            report.problems.push("the sabotage asked for did not happen".to_owned());
        }
        report.ok = report.problems.is_empty();
        report
    }

    fn judge(&self, recorded: u64, taken: u64) -> Vec<String> {
        let mut problems = Vec::new();
        let mut must = |holds: bool, what: String| {
            if !holds {
                problems.push(what);
            }
        };
        for (count, what) in [
            (self.lost, "messages lost"),
            (self.duplicated, "messages duplicated"),
            (self.reordered, "messages reordered"),
            (self.corrupted, "messages corrupted"),
            (self.unexpected, "messages that nobody sent"),
            (self.resent, "messages sent twice by the example"),
            (self.files_differ, "files that differ"),
            (self.refused, "messages that name no file"),
            (self.undelivered, "messages left unsent at the end"),
        ] {
            must(count == 0, format!("{what}: {count}"));
        }
        must(self.cuts > 0, "the link was not cut".to_owned());
        must(self.cuts == 0 || self.unacked_bytes_at_cut > 0, "nothing was under way at the cut".to_owned());
        must(self.cuts == 0 || self.reconnects > 0, "the link did not heal".to_owned());
        let known = self.acked + self.returned + self.unknown;
        must(self.accepted == known, format!("{} messages accepted, the outcome of {known} known", self.accepted));
        must(self.accepted == recorded, format!("{} messages accepted, {recorded} recorded as sent", self.accepted));
        must(self.delivered == taken, format!("{taken} messages taken, {} recorded", self.delivered));
        problems
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pids: Vec<String> = self.pids.iter().map(u32::to_string).collect();
        let speed = self.bytes_delivered as f64 / 1e6 / self.seconds.max(0.001);
        let rows = [
            ("nodes", format!("{} processes: {}", self.nodes, pids.join(" "))),
            ("files", format!("{} to each of {} receivers, {} bytes", self.files, self.nodes - 1, self.bytes)),
            ("time", format!("{:.3} s, {speed:.0} MB/s to all receivers together", self.seconds)),
            ("messages accepted", self.accepted.to_string()),
            ("  acknowledged", self.acked.to_string()),
            ("  returned", self.returned.to_string()),
            ("  outcome unknown", self.unknown.to_string()),
            ("links cut", format!("{}, {} bytes destroyed in the proxy", self.cuts, self.destroyed_bytes_at_cut)),
            ("  unacknowledged then", format!("{} bytes", self.unacked_bytes_at_cut)),
            ("  reconnects", self.reconnects.to_string()),
            ("messages delivered", self.delivered.to_string()),
            ("  lost", self.lost.to_string()),
            ("  duplicated", self.duplicated.to_string()),
            ("  reordered", self.reordered.to_string()),
            ("  corrupted", self.corrupted.to_string()),
            ("files that differ", self.files_differ.to_string()),
        ];
        for (name, value) in rows {
            writeln!(f, "{name:<22} {value}")?;
        }
        if self.skipped > 0 {
            writeln!(f, "{:<22} {} links or special files", "not sent", self.skipped)?;
        }
        if self.ok {
            return write!(f, "{:<22} ok: every file is identical everywhere", "result");
        }
        write!(f, "{:<22} NOT ok: {}", "result", self.problems.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Findings {
        Findings {
            pids: vec![1, 2],
            sources: (1, 10, 0),
            outcome: Outcome {
                accepted: 3,
                acked: 3,
                unacked_bytes_at_cut: 9,
                reconnects: 1,
                millis: 5,
                ..Outcome::default()
            },
            tallies: vec![Tally::default(), Tally { messages: 3, bytes: 10, ..Tally::default() }],
            cuts: Cuts { links: 2, cuts: 1, destroyed_bytes: 4, forwarded_bytes: 20 },
            verdict: Verdict { sent: 3, delivered: 3, ..Verdict::default() },
            helpers: (3, 4),
            sabotage: None,
        }
    }

    #[test]
    fn a_good_run_is_ok_and_each_single_defect_makes_it_not_ok() {
        assert!(Report::new(good()).ok);
        let defects: [fn(&mut Findings); 15] = [
            |found| found.verdict.lost = 1,
            |found| found.verdict.duplicated = 1,
            |found| found.verdict.reordered = 1,
            |found| found.verdict.corrupted = 1,
            |found| found.verdict.unexpected = 1,
            |found| found.verdict.resent = 1,
            |found| found.verdict.files_differ = 1,
            |found| found.verdict.sent = 2,
            |found| found.verdict.delivered = 2,
            |found| found.outcome.acked = 2,
            |found| found.outcome.unacked_bytes_at_cut = 0,
            |found| found.outcome.reconnects = 0,
            |found| found.cuts.cuts = 0,
            |found| found.tallies[1].refused = 1,
            |found| found.sabotage = Some(Sabotage::Drop),
        ];
        for (number, defect) in defects.into_iter().enumerate() {
            let mut found = good();
            defect(&mut found);
            let report = Report::new(found);
            assert!(!report.ok && report.problems.len() == 1, "defect {number}: {:?}", report.problems);
        }
    }

    #[test]
    fn the_json_line_has_the_promised_fields_first_and_in_order() {
        let line = serde_json::to_string(&Report::new(good())).unwrap();
        let promised = [
            "nodes",
            "pids",
            "files",
            "bytes",
            "accepted",
            "acked",
            "returned",
            "lost",
            "duplicated",
            "reordered",
            "corrupted",
            "cuts",
            "unacked_bytes_at_cut",
            "reconnects",
            "seconds",
            "ok",
        ];
        let mut rest = line.as_str();
        for name in promised {
            let (_, after) = rest.split_once(&format!("\"{name}\":")).expect(name);
            rest = after;
        }
        assert!(!line.contains('\n'));
    }
}
