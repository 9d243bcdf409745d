//! `churn`: peers that appear, move to other ports, vanish and return, as a live map of them says, while messages flow to
//! each by its id; and a checker that reconciles what the applications wrote down.
//!
//! Owns: the processes of a run. Threads: see its modules. Locks: none. Blocks on: the run.
//! Upholds: nothing that proves the result comes from the library but each message's outcome; the time of a redirect ends
//! with a message that was sent when the session at the new place was there, and was acknowledged.
//!
//! ```text
//!   this process: map -> node, by id -> ledger          another: peers' nodes, started and shut down -> ledgers
//!   one more, when both have ended: the checker of `chaos`, over these ledgers
//! ```

mod flow;
pub mod host;
mod parent;
mod redirect;

use std::time::Duration;

use clap::builder::RangedU64ValueParser;
use serde::Serialize;

use crate::chaos::sabotage::Sabotage;
use crate::failure::Failure;
use crate::report::{self, Judged};
use parent::Found;

/// What `ok` allows.
const MOST_REDIRECT_MS: f64 = 1500.0;

/// What `churn` can be told.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Peers
    #[arg(long, default_value_t = 50, value_parser = RangedU64ValueParser::<usize>::new().range(1..=200))]
    peers: usize,
    /// Seconds of coming and going
    #[arg(long, default_value_t = 60.0, value_parser = crate::seconds)]
    seconds: f64,
    /// Decides who moves when, and what is sent
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Harm one message behind the library: the result must say so
    #[arg(long)]
    sabotage: Option<Sabotage>,
    /// Print one line of JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// The line for programs.
#[derive(Debug, Serialize)]
struct Report {
    workload: &'static str,
    /// Changes of the map after which a peer was somewhere else, or there again. Each is a redirect.
    moves: usize,
    accepted: u64,
    acked: u64,
    returned: u64,
    lost: u64,
    duplicated: u64,
    reordered: u64,
    redirect_p50_ms: f64,
    redirect_p99_ms: f64,
    redirect_max_ms: f64,
    /// Until a peer that was not reached before was reached: not among the redirects.
    connect_p99_ms: f64,
    ok: bool,
    /// What did not hold.
    reasons: Vec<String>,
    peers: usize,
    /// Of the moves: to another port of the same process; with a new process; back after a time out of the map.
    switched: usize,
    restarted: usize,
    vanished: usize,
    /// Delivered again to the peer's next process, and announced.
    repeats_marked: u64,
    corrupted: u64,
    sabotage: Option<Sabotage>,
    seconds: f64,
}

/// Runs and reports; false when something did not hold.
///
/// # Errors
/// A process failed.
pub fn run(options: &Options) -> Result<bool, Failure> {
    report::judged("churn", options.json, parent::run(options).map(|found| judge(options, &found)))
}

/// Milliseconds, in order.
struct Times(Vec<f64>);

impl Times {
    fn of(times: &[Duration]) -> Self {
        let mut sorted: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
        sorted.sort_by(f64::total_cmp);
        Self(sorted)
    }

    /// So many of a hundred took no longer; 0 of none.
    fn of_hundred(&self, share: usize) -> f64 {
        let place = (self.0.len() * share).div_ceil(100).saturating_sub(1);
        self.0.get(place).copied().unwrap_or_default()
    }
}

fn judge(options: &Options, found: &Found) -> Report {
    let Found { verdict, switched, restarted, vanished, seconds, .. } = *found;
    let redirects = Times::of(&found.redirects);
    let (moves, p99) = (switched + restarted + vanished, redirects.of_hundred(99));
    let mut reasons = verdict.harms();
    let mut must = |holds: bool, what: String| {
        if !holds {
            reasons.push(what);
        }
    };
    must(verdict.acked > 0, "nothing was acknowledged".to_owned());
    must(verdict.refused == 0, format!("messages refused: {}", verdict.refused));
    // Nobody was killed: each process said goodbye, and what it had.
    must(verdict.unknown == 0, format!("messages of unknown fate: {}", verdict.unknown));
    must(
        [switched, restarted, vanished].iter().all(|count| *count > 0),
        format!("not every kind of move happened: {switched} switched, {restarted} restarted, {vanished} vanished"),
    );
    must(found.unfinished == 0, format!("{} peers were not reached where they had moved to", found.unfinished));
    let (begun, ended) = (options.peers + moves, found.connects.len() + found.redirects.len() + found.unfinished);
    must(begun == ended, format!("of {begun} changes of the map it is known of {ended} whether the peer was reached"));
    must(p99 < MOST_REDIRECT_MS, format!("a redirect took {p99:.0} ms (p99), {MOST_REDIRECT_MS} are allowed"));
    must(found.left.is_empty(), format!("the sender's shutdown left {}", found.left));
    Report {
        workload: "churn",
        moves,
        accepted: verdict.accepted,
        acked: verdict.acked,
        returned: verdict.returned,
        lost: verdict.lost,
        duplicated: verdict.duplicated,
        reordered: verdict.reordered,
        redirect_p50_ms: redirects.of_hundred(50),
        redirect_p99_ms: p99,
        redirect_max_ms: redirects.of_hundred(100),
        connect_p99_ms: Times::of(&found.connects).of_hundred(99),
        ok: reasons.is_empty(),
        reasons,
        peers: options.peers,
        switched,
        restarted,
        vanished,
        repeats_marked: verdict.repeats_marked,
        corrupted: verdict.corrupted,
        sabotage: options.sabotage,
        seconds,
    }
}

impl Judged for Report {
    fn reasons(&self) -> &[String] {
        &self.reasons
    }

    fn lines(&self) -> Vec<String> {
        let line = |name: &str, figure: String| format!("  {name:<12}{figure}");
        vec![
            format!("churn, {} peers, {:.1} s", self.peers, self.seconds),
            line(
                "moves",
                format!(
                    "{}: {} to another port, {} with a new process, {} out of the map and back",
                    self.moves, self.switched, self.restarted, self.vanished
                ),
            ),
            line(
                "messages",
                format!("{} accepted, {} acknowledged, {} returned", self.accepted, self.acked, self.returned),
            ),
            line("harm", format!("{} lost, {} duplicated, {} reordered", self.lost, self.duplicated, self.reordered)),
            line(
                "redirect",
                format!(
                    "{:.0} ms, p99 {:.0} ms, at most {:.0} ms",
                    self.redirect_p50_ms, self.redirect_p99_ms, self.redirect_max_ms
                ),
            ),
            line("ok", self.ok.to_string()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::checker::Verdict;

    fn options() -> Options {
        Options { peers: 2, seconds: 1.0, seed: 1, sabotage: None, json: true }
    }

    fn good() -> Found {
        Found {
            switched: 2,
            restarted: 1,
            vanished: 1,
            connects: vec![Duration::from_secs(2); 2],
            redirects: vec![Duration::from_millis(20); 4],
            verdict: Verdict { accepted: 7, acked: 5, returned: 2, delivered: 5, ..Verdict::default() },
            ..Found::default()
        }
    }

    #[test]
    fn a_good_run_is_ok_and_each_single_defect_makes_it_not_ok() {
        let report = judge(&options(), &good());
        assert_eq!(report.reasons, Vec::<String>::new());
        // The first connections, which took longer than a redirect may, are none.
        assert_eq!((report.moves, report.redirect_p99_ms, report.connect_p99_ms), (4, 20.0, 2000.0));
        let defects: [fn(&mut Found); 24] = [
            |found| found.verdict.lost = 1,
            |found| found.verdict.duplicated = 1,
            |found| found.verdict.reordered = 1,
            |found| found.verdict.corrupted = 1,
            |found| found.verdict.unexpected = 1,
            |found| found.verdict.unknown_without_kills = 1,
            |found| found.verdict.announced_without_restart = 1,
            |found| found.verdict.returned_and_delivered = 1,
            |found| found.verdict.returned_damaged = 1,
            |found| found.verdict.wrong_outcomes = 1,
            |found| found.verdict.resent = 1,
            |found| found.verdict.refused = 1,
            |found| (found.verdict.acked, found.verdict.unknown) = (4, 1),
            // It arrived, and nobody told its sender.
            |found| found.verdict.acked = 4,
            |found| (found.verdict.acked, found.verdict.returned) = (0, 7),
            |found| (found.switched, found.vanished) = (0, 3),
            |found| (found.restarted, found.vanished) = (0, 2),
            |found| (found.vanished, found.switched) = (0, 3),
            |found| (found.unfinished, found.redirects) = (1, vec![Duration::ZERO; 3]),
            |found| found.redirects.clear(),
            |found| found.redirects.truncate(3),
            |found| found.connects.truncate(1),
            |found| found.redirects[3] = Duration::from_millis(1500),
            |found| found.left.push_str("a thread"),
        ];
        for (number, defect) in defects.into_iter().enumerate() {
            let mut found = good();
            defect(&mut found);
            let report = judge(&options(), &found);
            assert!(!report.ok && report.reasons.len() == 1, "defect {number}: {:?}", report.reasons);
        }
    }

    #[test]
    fn one_of_a_hundred_may_take_longer_than_the_p99() {
        let mut found = good();
        let slow = [Duration::from_secs(9)];
        (found.switched, found.redirects) = (98, [&[Duration::from_millis(20); 99][..], &slow].concat());
        let report = judge(&options(), &found);
        assert!(report.ok, "{:?}", report.reasons);
        assert_eq!((report.redirect_p50_ms, report.redirect_p99_ms, report.redirect_max_ms), (20.0, 20.0, 9000.0));
    }
}
