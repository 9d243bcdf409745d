//! The result of a run: one JSON line for programs, a table for people.
//!
//! Owns: nothing. Threads: the parent's. Locks: none. Blocks on: nothing.
//! Upholds: `ok` and the reasons why not come from one list.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::chaos::Options;
use crate::chaos::parent::{Findings, Tally};
use crate::chaos::plan::Kind;
use crate::chaos::sabotage::Sabotage;
use crate::report::Judged;

/// What a run was, and how it ended. The checker's figures are explained there.
#[derive(Debug, Serialize)]
pub struct Summary {
    workload: &'static str,
    /// Faults that happened.
    cuts: u64,
    faults: BTreeMap<Kind, u64>,
    accepted: u64,
    acked: u64,
    returned: u64,
    unknown: u64,
    delivered: u64,
    lost: u64,
    duplicated: u64,
    repeats_marked: u64,
    reordered: u64,
    corrupted: u64,
    reconnects: u64,
    reconnect_p99_ms: f64,
    seconds: f64,
    /// Whether everything is as it must be.
    ok: bool,
    /// Why it is not.
    reasons: Vec<String>,
    /// Of the faults, those with bytes in flight.
    in_flight: BTreeMap<Kind, u64>,
    cuts_per_s: f64,
    /// Sessions that a node ended because what came was not as it must be: bytes had been altered.
    refused_sessions: u64,
    accepted_by_killed: u64,
    delivered_of_killed: u64,
    announced: u64,
    unexpected: u64,
    unknown_without_kills: u64,
    announced_without_restart: u64,
    returned_and_delivered: u64,
    returned_damaged: u64,
    wrong_outcomes: u64,
    resent: u64,
    refused: u64,
    best_effort_accepted: u64,
    best_effort_written: u64,
    best_effort_returned: u64,
    best_effort_unknown: u64,
    best_effort_delivered: u64,
    best_effort_accepted_by_killed: u64,
    /// Sent by the nodes' last processes.
    bytes: u64,
    reconnect_p50_ms: f64,
    reconnect_max_ms: f64,
    nodes: usize,
    /// Processes that the nodes were, one after the other.
    processes: u64,
    seed: u64,
    resume: bool,
    /// Over TLS.
    secure: bool,
    sabotage: Option<Sabotage>,
}

impl Summary {
    /// Puts together what was seen.
    pub fn new(options: &Options, found: &Findings) -> Self {
        let Findings { verdict, passed, .. } = found;
        let of_each =
            |field: fn(&Tally) -> u64| found.faults.iter().map(|(kind, tally)| (*kind, field(tally))).collect();
        let cuts = found.faults.values().map(|tally| tally.count).sum();
        let mut summary = Self {
            workload: "chaos",
            cuts,
            faults: of_each(|tally| tally.count),
            accepted: verdict.accepted,
            acked: verdict.acked,
            returned: verdict.returned,
            unknown: verdict.unknown,
            delivered: verdict.delivered,
            lost: verdict.lost,
            duplicated: verdict.duplicated,
            repeats_marked: verdict.repeats_marked,
            reordered: verdict.reordered,
            corrupted: verdict.corrupted,
            reconnects: passed.reconnects,
            reconnect_p99_ms: passed.reconnect_p99_ms,
            seconds: found.seconds,
            ok: false,
            reasons: Vec::new(),
            in_flight: of_each(|tally| tally.in_flight),
            cuts_per_s: cuts as f64 / found.seconds.max(0.001),
            refused_sessions: found.refused_sessions,
            accepted_by_killed: verdict.accepted_by_killed,
            delivered_of_killed: verdict.delivered_of_killed,
            announced: verdict.announced,
            unexpected: verdict.unexpected,
            unknown_without_kills: verdict.unknown_without_kills,
            announced_without_restart: verdict.announced_without_restart,
            returned_and_delivered: verdict.returned_and_delivered,
            returned_damaged: verdict.returned_damaged,
            wrong_outcomes: verdict.wrong_outcomes,
            resent: verdict.resent,
            refused: verdict.refused,
            best_effort_accepted: verdict.effort_accepted,
            best_effort_written: verdict.effort_written,
            best_effort_returned: verdict.effort_returned,
            best_effort_unknown: verdict.effort_unknown,
            best_effort_delivered: verdict.effort_delivered,
            best_effort_accepted_by_killed: verdict.effort_accepted_by_killed,
            bytes: found.settled.iter().map(|settled| settled.bytes).sum(),
            reconnect_p50_ms: passed.reconnect_p50_ms,
            reconnect_max_ms: passed.reconnect_max_ms,
            nodes: options.nodes,
            processes: found.lives.iter().map(|lives| u64::from(*lives)).sum(),
            seed: options.seed,
            resume: !options.no_resume,
            secure: options.secure,
            sabotage: options.sabotage,
        };
        summary.reasons = summary.faults_of(options, found);
        summary.ok = summary.reasons.is_empty();
        summary
    }

    /// Everything that must hold and does not.
    fn faults_of(&self, options: &Options, found: &Findings) -> Vec<String> {
        let mut reasons = found.verdict.harms();
        let mut must = |holds: bool, reason: String| {
            if !holds {
                reasons.push(reason);
            }
        };
        for settled in &found.settled {
            let (accepted, known) = (settled.accepted, settled.known);
            must(accepted == known, format!("a node accepted {accepted} messages and knows the outcome of {known}"));
            let recorded = settled.recorded;
            must(accepted == recorded, format!("a node accepted {accepted} messages, its application {recorded}"));
        }
        for (settled, phases) in found.settled.iter().zip(&found.phases) {
            for (name, sum) in phases.each() {
                must(sum.is_over(), format!("not all that began the {name} ended it once: {sum:?}"));
            }
            let (accepted, begun) = (settled.accepted, phases.outgoing_buffer.begun.0);
            must(accepted == begun, format!("a node accepted {accepted} messages, and {begun} began a phase"));
            let (taken, begun) = (phases.outgoing_buffer.succeeded, phases.outgoing_transfer.begun);
            must(taken == begun, format!("{taken:?} were taken for the wire, and {begun:?} began the transfer"));
        }
        for (phases, written_down) in found.phases.iter().zip(&found.handed_over) {
            let handed = phases.incoming_buffer.succeeded.0;
            must(
                handed == *written_down,
                format!("a node handed {handed} messages over, its application wrote {written_down} down"),
            );
        }
        must(found.phases.len() == found.settled.len(), "a node told nothing of its phases".to_owned());
        must(found.handed_over.len() == found.settled.len(), "the ledgers of a node were not counted".to_owned());
        let asked = options.cuts as u64;
        must(self.cuts == asked, format!("{} of {asked} faults happened", self.cuts));
        for kind in Kind::all(options.secure) {
            let tally = found.faults.get(kind).copied().unwrap_or_default();
            must(tally.count > 0, format!("no {kind:?} happened"));
            let Tally { count, in_flight } = tally;
            must(in_flight == count, format!("{kind:?}: {in_flight} of {count} with bytes in flight"));
        }
        let of_kind = |kind| found.faults.get(&kind).map_or(0, |tally: &Tally| tally.count);
        // A node may be killed before it has told. The other side may say the same, when it was writing as it was told.
        let (flips, kills, refused) = (of_kind(Kind::Flip), of_kind(Kind::Kill), self.refused_sessions);
        let told = refused <= 2 * flips && flips <= refused + kills;
        must(told, format!("sessions ended for what came over them: {refused}, where bytes were altered: {flips}"));
        must(self.delivered > 0, "nothing was delivered".to_owned());
        must(self.reconnects > 0, "nothing was connected again".to_owned());
        must(self.sabotage.is_none() || found.sabotaged, "the sabotage asked for was not done".to_owned());
        reasons
    }
}

impl Judged for Summary {
    fn reasons(&self) -> &[String] {
        &self.reasons
    }

    fn lines(&self) -> Vec<String> {
        let line = |name: &str, figure: String| format!("  {name:<22}{figure}");
        let faults: Vec<String> = self.faults.iter().map(|(kind, count)| format!("{kind:?} {count}")).collect();
        let mut lines = vec![
            format!(
                "chaos over {}, {} nodes that were {} processes, {} faults in {:.1} s, seed {}",
                if self.secure { "TLS" } else { "plain TCP" },
                self.nodes,
                self.processes,
                self.cuts,
                self.seconds,
                self.seed
            ),
            line("faults", faults.join(", ")),
            line("accepted", self.accepted.to_string()),
            line("  acknowledged", self.acked.to_string()),
            line("  returned", self.returned.to_string()),
            line("  outcome unknown", self.unknown.to_string()),
            line(
                "  by killed processes",
                format!("{} more, {} delivered", self.accepted_by_killed, self.delivered_of_killed),
            ),
            line("delivered", self.delivered.to_string()),
            line("  lost", self.lost.to_string()),
            line("  duplicated", self.duplicated.to_string()),
            line("  marked repeats", self.repeats_marked.to_string()),
            line("  reordered", self.reordered.to_string()),
            line("  corrupted", self.corrupted.to_string()),
            line(
                "best effort",
                format!("{} accepted, {} delivered", self.best_effort_accepted, self.best_effort_delivered),
            ),
            line(
                "reconnects",
                format!(
                    "{}, p50 {:.0} ms, p99 {:.0} ms, at most {:.0} ms",
                    self.reconnects, self.reconnect_p50_ms, self.reconnect_p99_ms, self.reconnect_max_ms
                ),
            ),
        ];
        lines.push(line("ok", self.ok.to_string()));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::checker::Verdict;
    use crate::chaos::control::{Passed, PhaseSum, PhaseSums, Settled};

    fn options() -> Options {
        Options { cuts: 10, ..Options::default() }
    }

    fn good() -> Findings {
        Findings {
            faults: Kind::all(false).iter().map(|kind| (*kind, Tally { count: 1, in_flight: 1 })).collect(),
            settled: vec![Settled { accepted: 5, known: 5, recorded: 5, bytes: 9 }],
            phases: vec![PhaseSums {
                outgoing_buffer: PhaseSum { begun: (5, 9), succeeded: (4, 7), failed: (1, 2), open: 0 },
                outgoing_transfer: PhaseSum { begun: (4, 7), succeeded: (3, 6), failed: (1, 1), open: 0 },
                incoming_buffer: PhaseSum { begun: (6, 8), succeeded: (5, 7), failed: (1, 1), open: 0 },
            }],
            handed_over: vec![5],
            lives: vec![1, 2],
            passed: Passed { reconnects: 9, ..Passed::default() },
            verdict: Verdict { accepted: 7, acked: 4, returned: 2, unknown: 1, delivered: 5, ..Verdict::default() },
            refused_sessions: 0,
            sabotaged: false,
            seconds: 2.0,
        }
    }

    #[test]
    fn a_good_run_is_ok_and_each_single_defect_makes_it_not_ok() {
        assert_eq!(Summary::new(&options(), &good()).reasons, Vec::<String>::new());
        let defects: [fn(&mut Findings); 29] = [
            |found| found.verdict.lost = 1,
            |found| found.verdict.duplicated = 1,
            |found| found.verdict.reordered = 1,
            |found| found.verdict.corrupted = 1,
            |found| found.verdict.unexpected = 1,
            |found| found.verdict.unknown_without_kills = 1,
            |found| found.verdict.announced_without_restart = 1,
            |found| found.verdict.returned_and_delivered = 1,
            |found| found.verdict.returned_damaged = 1,
            |found| found.verdict.effort_accepted = 1,
            |found| found.verdict.wrong_outcomes = 1,
            |found| found.verdict.resent = 1,
            |found| found.verdict.acked = 3,
            |found| found.verdict.delivered = 0,
            |found| found.settled[0].known = 4,
            |found| found.settled[0].recorded = 4,
            |found| found.phases[0].outgoing_buffer.failed.0 = 0,
            |found| found.phases[0].outgoing_transfer.succeeded.1 = 5,
            |found| found.phases[0].outgoing_transfer.failed.0 = 2,
            |found| found.phases[0].incoming_buffer.open = 1,
            |found| found.phases[0].incoming_buffer = PhaseSum::default(),
            |found| found.handed_over[0] = 4,
            |found| found.handed_over[0] = 6,
            |found| found.handed_over.clear(),
            |found| {
                let sum = &mut found.phases[0].outgoing_transfer;
                (sum.begun.0, sum.failed.0) = (3, 0);
            },
            |found| found.phases.clear(),
            |found| found.passed.reconnects = 0,
            |found| found.refused_sessions = 1,
            |found| found.faults.entry(Kind::Kill).or_default().in_flight = 0,
        ];
        for (number, defect) in defects.into_iter().enumerate() {
            let mut found = good();
            defect(&mut found);
            let summary = Summary::new(&options(), &found);
            assert!(!summary.ok && summary.reasons.len() == 1, "defect {number}: {:?}", summary.reasons);
        }
        let undone = Options { sabotage: Some(Sabotage::Swap), ..options() };
        assert_eq!(Summary::new(&undone, &good()).reasons, ["the sabotage asked for was not done"]);
        let secure = Options { secure: true, cuts: 13, ..Options::default() };
        let mut found = good();
        let reasons = Summary::new(&secure, &found).reasons;
        assert_eq!(reasons, ["10 of 13 faults happened", "no Flip happened"]);
        found.faults.insert(Kind::Flip, Tally { count: 3, in_flight: 3 });
        for (refused, ok) in [(1, false), (2, true), (6, true), (7, false)] {
            found.refused_sessions = refused;
            assert_eq!(Summary::new(&secure, &found).ok, ok, "one kill, three altered bytes, {refused} refused");
        }
        let mut found = good();
        found.faults.remove(&Kind::Freeze);
        assert_eq!(Summary::new(&options(), &found).reasons, ["9 of 10 faults happened", "no Freeze happened"]);
    }

    #[test]
    fn the_json_line_has_the_promised_fields_first_and_in_order() {
        let line = serde_json::to_string(&Summary::new(&options(), &good())).unwrap();
        let promised = [
            "workload",
            "cuts",
            "faults",
            "accepted",
            "acked",
            "returned",
            "unknown",
            "delivered",
            "lost",
            "duplicated",
            "repeats_marked",
            "reordered",
            "corrupted",
            "reconnects",
            "reconnect_p99_ms",
            "seconds",
            "ok",
        ];
        let mut rest = line.as_str();
        for name in promised {
            rest = rest.split_once(&format!("\"{name}\":")).expect(name).1;
        }
        assert!(line.contains("\"faults\":{\"reset\":1,\"half_close\":1,"), "{line}");
    }
}
