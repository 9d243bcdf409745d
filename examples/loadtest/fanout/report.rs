//! What a run of `fanout` came to: one JSON line for programs, a table for people.
//!
//! Owns: nothing. Threads: the measuring thread's. Locks: none. Blocks on: nothing.
//! Upholds: `ok` and the reasons why not come from one list.

use serde::Serialize;

use super::sender::Sent;
use super::{Options, Sabotage};
use crate::checker::Tally;
use crate::failure::Failure;
use crate::report::{self, Judged};
use crate::stats::{Spread, spread};

/// What a release build on a quiet machine is to reach. A run is not judged by it: it depends on the machine.
const LEAST_RATIO_TO_BASELINE: f64 = 0.4;
const MOST_SLOW_PEER_EFFECT: f64 = 0.1;

/// What a run has seen.
#[derive(Debug, Clone, Default)]
pub struct Found {
    pub rounds: Vec<Round>,
    pub sent: Sent,
    /// What the peers' books say, all together.
    pub tally: Tally,
    pub baseline_write_size: usize,
    pub pids: Vec<u32>,
}

/// The rates of a round, of messages to all peers, and what the peer that is stuck does to them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Round {
    pub broadcast: f64,
    pub singles: f64,
    pub baseline: f64,
    pub unbatched: f64,
    pub effect: f64,
}

/// The line for programs. Rates are of messages to all peers.
#[derive(Debug, Serialize)]
pub struct Report {
    workload: &'static str,
    peers: usize,
    size: usize,
    broadcasts_per_s: f64,
    /// To as many single sends, one after the other.
    ratio_to_single: f64,
    /// To raw sockets that gather: one buffer of `baseline_write_size` is filled and written to each socket, so that every
    /// message waits for all that follow it there. The fastest way we know, whatever it does to a message's latency; a
    /// node gathers for 5 ms at most.
    ratio_to_baseline: f64,
    ratio_q1: f64,
    ratio_q3: f64,
    /// By how much of their rate the others are slower with a peer among them that is stuck; runs with and without it take
    /// turns.
    slow_peer_effect: f64,
    slow_peer_effect_q1: f64,
    slow_peer_effect_q3: f64,
    singles_per_s: f64,
    /// To raw sockets that each message is written to at once, not gathered with others: what a program does that has a
    /// socket for each peer and no queues.
    ratio_to_unbatched: f64,
    unbatched_per_s: f64,
    baseline_per_s: f64,
    baseline_write_size: usize,
    /// Messages to peers, by broadcasts and single sends; those that did not arrive, arrived again, or behind a later one;
    /// and arrivals of another length, or with a number that was not sent.
    sent: u64,
    lost: u64,
    duplicated: u64,
    reordered: u64,
    strange: u64,
    /// Of a broadcast by a peer that was full for a moment: sent by a send that waits.
    refused: u64,
    /// Broadcasts that the peer that is stuck was among; refused by it: all of them.
    broadcasts_among_stuck: u64,
    refused_by_stuck: u64,
    ok: bool,
    /// What did not hold.
    reasons: Vec<String>,
    /// Whether the figures are what a release build on a quiet machine is to reach, which decides nothing about `ok`; and
    /// which are not.
    targets_met: bool,
    targets_missed: Vec<String>,
    sabotage: Option<Sabotage>,
    pids: Vec<u32>,
    rounds: usize,
    seconds: f64,
}

impl Report {
    /// Puts together what was seen, and judges it.
    ///
    /// # Errors
    /// No round was run.
    pub fn new(options: &Options, found: &Found) -> Result<Self, Failure> {
        let of = |pick: fn(&Round) -> f64| {
            spread(found.rounds.iter().map(pick)).ok_or_else(|| Failure::new("no rounds were run"))
        };
        let ratio: Spread = of(|round| round.broadcast / round.baseline)?;
        let effect: Spread = of(|round| round.effect)?;
        let Found { sent, tally, .. } = *found;
        let mut report = Self {
            workload: "fanout",
            peers: options.peers,
            size: options.size,
            broadcasts_per_s: of(|round| round.broadcast)?.median,
            ratio_to_single: of(|round| round.broadcast / round.singles)?.median,
            ratio_to_baseline: ratio.median,
            ratio_q1: ratio.q1,
            ratio_q3: ratio.q3,
            slow_peer_effect: effect.median,
            slow_peer_effect_q1: effect.q1,
            slow_peer_effect_q3: effect.q3,
            singles_per_s: of(|round| round.singles)?.median,
            ratio_to_unbatched: of(|round| round.broadcast / round.unbatched)?.median,
            unbatched_per_s: of(|round| round.unbatched)?.median,
            baseline_per_s: of(|round| round.baseline)?.median,
            baseline_write_size: found.baseline_write_size,
            sent: sent.to_each * options.peers as u64,
            lost: 0,
            duplicated: tally.duplicated,
            reordered: tally.reordered,
            strange: tally.strange,
            refused: sent.refused,
            broadcasts_among_stuck: sent.among_stuck,
            refused_by_stuck: sent.refused_by_stuck,
            ok: false,
            reasons: Vec::new(),
            targets_met: false,
            targets_missed: Vec::new(),
            sabotage: options.sabotage,
            pids: found.pids.clone(),
            rounds: found.rounds.len(),
            seconds: options.seconds,
        };
        // A peer that is gone has no books any more: what was sent to it is lost.
        report.lost = report.sent.saturating_sub(tally.received);
        report.reasons = report.faults();
        report.ok = report.reasons.is_empty();
        report.targets_missed = report.misses();
        report.targets_met = report.targets_missed.is_empty();
        Ok(report)
    }

    /// Figures that are not what they are to be. One that is no number meets no target.
    fn misses(&self) -> Vec<String> {
        let (ratio, effect) = (self.ratio_to_baseline, self.slow_peer_effect);
        let targets = [
            (
                ratio >= LEAST_RATIO_TO_BASELINE,
                format!("ratio_to_baseline {ratio:.3}, at least {LEAST_RATIO_TO_BASELINE}"),
            ),
            (effect < MOST_SLOW_PEER_EFFECT, format!("slow_peer_effect {effect:.3}, below {MOST_SLOW_PEER_EFFECT}")),
        ];
        targets.into_iter().filter(|(met, _)| !met).map(|(_, target)| target).collect()
    }

    /// Everything that must hold and does not.
    fn faults(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        let mut must = |holds: bool, reason: String| {
            if !holds {
                reasons.push(reason);
            }
        };
        must(self.sent > 0, "nothing was sent".to_owned());
        for (count, what) in [
            (self.lost, "lost"),
            (self.duplicated, "duplicated"),
            (self.reordered, "reordered"),
            (self.strange, "not what was sent"),
        ] {
            must(count == 0, format!("{count} of {} messages were {what}", self.sent));
        }
        let (among, refused) = (self.broadcasts_among_stuck, self.refused_by_stuck);
        must(among > 0, "the peer that was to be stuck was among no broadcast".to_owned());
        must(refused == among, format!("the peer that was to be stuck refused {refused} of {among} broadcasts"));
        reasons
    }
}

impl Judged for Report {
    fn reasons(&self) -> &[String] {
        &self.reasons
    }

    fn lines(&self) -> Vec<String> {
        let line = |name: &str, rate: f64, more: String| format!("  {name:<14}{:>12}/s   {more}", report::scaled(rate));
        let size = report::bytes(self.size);
        let mut lines = vec![
            format!("fanout, messages of {size} to {} peers, rounds: {}", self.peers, self.rounds),
            line(
                "broadcast",
                self.broadcasts_per_s,
                format!("{} times a peer was full for a moment, {} lost", self.refused, self.lost),
            ),
            line("single sends", self.singles_per_s, format!("broadcast / single {:.2}", self.ratio_to_single)),
            line(
                "raw TCP",
                self.baseline_per_s,
                format!(
                    "broadcast / raw {:.2} ({:.2} to {:.2}), writes of {}",
                    self.ratio_to_baseline,
                    self.ratio_q1,
                    self.ratio_q3,
                    report::bytes(self.baseline_write_size)
                ),
            ),
            line(
                "raw, at once",
                self.unbatched_per_s,
                format!("broadcast / raw {:.2}, a write for each message", self.ratio_to_unbatched),
            ),
            format!("  one peer stuck: the others are {:.1} % slower", 100.0 * self.slow_peer_effect),
        ];
        lines.extend(self.targets_missed.iter().map(|target| format!("  target missed {target}")));
        lines.push(format!("  ok            {}", self.ok));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options { peers: 5, size: 64, rounds: 1, seconds: 1.0, sabotage: None, json: true }
    }

    fn good() -> Found {
        Found {
            rounds: vec![Round { broadcast: 6.0, singles: 3.0, baseline: 12.0, unbatched: 2.0, effect: 0.01 }],
            sent: Sent { to_each: 10, refused: 3, among_stuck: 4, refused_by_stuck: 4 },
            tally: Tally { received: 50, ..Tally::default() },
            ..Found::default()
        }
    }

    #[test]
    fn a_good_run_is_ok_and_each_single_defect_makes_it_not_ok() {
        let report = |found: &Found| Report::new(&options(), found).unwrap();
        assert_eq!(report(&good()).reasons, Vec::<String>::new());
        let defects: [fn(&mut Found); 7] = [
            |found| (found.sent.to_each, found.tally.received) = (0, 0),
            |found| found.tally.received = 49,
            |found| found.tally.duplicated = 1,
            |found| found.tally.reordered = 1,
            |found| found.tally.strange = 1,
            |found| found.sent.refused_by_stuck = 3,
            |found| (found.sent.among_stuck, found.sent.refused_by_stuck) = (0, 0),
        ];
        for (number, defect) in defects.into_iter().enumerate() {
            let mut found = good();
            defect(&mut found);
            let report = report(&found);
            assert!(!report.ok && report.reasons.len() == 1, "defect {number}: {:?}", report.reasons);
        }
        let none = Report::new(&options(), &Found { rounds: Vec::new(), ..good() });
        assert_eq!(none.unwrap_err().to_string(), "no rounds were run");
    }

    #[test]
    fn a_missed_target_is_named_and_makes_no_run_bad() {
        let missed = |broadcast, effect| {
            let mut found = good();
            (found.rounds[0].broadcast, found.rounds[0].effect) = (broadcast, effect);
            let report = Report::new(&options(), &found).unwrap();
            assert!(report.ok && report.targets_met == report.targets_missed.is_empty());
            report.targets_missed
        };
        // Of 12 raw ones.
        assert_eq!(missed(5.0, 0.099), [""; 0]);
        assert_eq!(missed(4.5, 0.099), ["ratio_to_baseline 0.375, at least 0.4"]);
        assert_eq!(missed(5.0, 0.1), ["slow_peer_effect 0.100, below 0.1"]);
        assert_eq!(missed(f64::NAN, f64::NAN).len(), 2);
    }
}
