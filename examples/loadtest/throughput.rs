//! `throughput`: one sender floods one receiver; messages per second against a raw socket.
//!
//! Owns: the sender's ends of both connections. Threads: the measuring thread. Locks: none.
//! Blocks on: sends, and answers of the other end.
//! Upholds: a run's time ends when the receiver has said that it has everything, by the sender's clock, on both sides.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::Common;
use crate::baseline::{Baseline, PATIENCE, Run, expect_ready};
use crate::control::{Ask, Partner};
use crate::failure::Failure;
use crate::pairs::{self, Pair, Ratios, Side};
use crate::report;
use crate::stats::spread;
use crate::wire::Linked;

/// What `throughput` can be told.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Name the peer anew with each message instead of sending through one handle
    #[arg(long)]
    by_id: bool,
    /// Measure over TLS too
    #[arg(long)]
    secure: bool,
    /// What every workload can be told
    #[command(flatten)]
    pub common: Common,
}

/// The line for programs.
#[derive(Debug, Serialize)]
struct Report {
    workload: &'static str,
    size: usize,
    msgs_per_s: f64,
    bytes_per_s: f64,
    baseline_msgs_per_s: f64,
    baseline_write_size: usize,
    /// Of messages per second.
    #[serde(flatten)]
    to_baseline: Ratios,
    pids: Vec<u32>,
    lost: u64,
    duplicated: u64,
    reordered: u64,
    strange: u64,
    received: u64,
    accepted: u64,
    acked: u64,
    by_id: bool,
    #[serde(flatten)]
    secure: Option<Secure>,
    threads: bool,
    pairs: usize,
    seconds: f64,
    baseline_write: &'static str,
    baseline_read_size: usize,
    ratios: Vec<f64>,
}

/// What TLS makes of it.
#[derive(Debug, Clone, Copy, Serialize)]
struct Secure {
    /// Plain TCP to the baseline: `ratio` once more, beside the other.
    plain_ratio: f64,
    secure_msgs_per_s: f64,
    secure_bytes_per_s: f64,
    /// TLS to the baseline.
    secure_ratio: f64,
    secure_ratio_q1: f64,
    secure_ratio_q3: f64,
    /// TLS to plain TCP.
    secure_to_plain: f64,
    secure_to_plain_q1: f64,
    secure_to_plain_q3: f64,
}

impl Secure {
    /// From pairs with runs over TLS; nothing from others.
    fn of(runs: &[Pair<Run>], size: usize) -> Option<Self> {
        let secure: Vec<_> = runs.iter().filter_map(|pair| Some((pair, pair.secure.as_ref()?.rate()))).collect();
        let rate = spread(secure.iter().map(|(_, rate)| *rate))?.median;
        let plain = spread(secure.iter().map(|(pair, _)| pair.ours.rate() / pair.raw.rate()))?;
        let ratio = spread(secure.iter().map(|(pair, rate)| rate / pair.raw.rate()))?;
        let to_plain = spread(secure.iter().map(|(pair, rate)| rate / pair.ours.rate()))?;
        Some(Self {
            plain_ratio: plain.median,
            secure_msgs_per_s: rate,
            secure_bytes_per_s: rate * size as f64,
            secure_ratio: ratio.median,
            secure_ratio_q1: ratio.q1,
            secure_ratio_q3: ratio.q3,
            secure_to_plain: to_plain.median,
            secure_to_plain_q1: to_plain.q1,
            secure_to_plain_q3: to_plain.q3,
        })
    }
}

/// Measures and reports; false when a message was lost, duplicated or reordered.
///
/// # Errors
/// One of the ends failed.
pub fn run(options: &Options, partner: &mut Partner) -> Result<bool, Failure> {
    let Common { size, pairs, threads, json, .. } = options.common;
    let duration = options.common.duration();
    let mut raw = Baseline::open(partner)?;
    raw.tune(partner, size, options.common.warm_up())?;
    let link = |partner: &mut Partner, secure| Linked::sender(&partner.ask(&Ask::OpenCounter { secure })?, secure);
    let ours = link(partner, false)?;
    let secure = if options.secure { Some(link(partner, true)?) } else { None };
    let flood = |partner: &mut Partner, secure: Option<&Linked>, duration| {
        flood((secure.unwrap_or(&ours), secure.is_some()), partner, size, duration, options.by_id)
    };
    // What goes wrong while warming up is wrong too; only its time does not count.
    let mut total = flood(partner, None, options.common.warm_up())?.tally;
    if secure.is_some() {
        total.add(&flood(partner, secure.as_ref(), options.common.warm_up())?.tally);
    }

    let runs = pairs::run(pairs, options.secure, |side| match side {
        Side::Ours => flood(partner, None, duration),
        Side::Secure => flood(partner, secure.as_ref(), duration),
        Side::Raw | Side::RawAgain => raw.run(partner, size, duration),
    })?;
    let (mut accepted, mut acked) = ours.close()?;
    if let Some(secure) = secure {
        let (more_accepted, more_acked) = secure.close()?;
        (accepted, acked) = (accepted + more_accepted, acked + more_acked);
    }
    expect_ready(partner.ask(&Ask::Close)?)?;

    for pair in &runs {
        [Some(&pair.ours), pair.secure.as_ref()].into_iter().flatten().for_each(|run| total.add(&run.tally));
    }
    let figures = (
        spread(runs.iter().map(|pair| pair.ours.rate())),
        spread(runs.iter().map(|pair| pair.raw.rate())),
        Ratios::of(&runs, Run::rate),
    );
    let (Some(rate), Some(baseline), Some(to_baseline)) = figures else {
        return Err(Failure::new("no pairs were run"));
    };
    let report = Report {
        workload: "throughput",
        size,
        msgs_per_s: rate.median,
        bytes_per_s: rate.median * size as f64,
        baseline_msgs_per_s: baseline.median,
        baseline_write_size: raw.plan.write_size(size),
        to_baseline,
        pids: partner.pids(),
        lost: total.lost,
        duplicated: total.duplicated,
        reordered: total.reordered,
        strange: total.strange,
        received: total.received,
        accepted,
        acked,
        by_id: options.by_id,
        secure: Secure::of(&runs, size),
        threads,
        pairs,
        seconds: duration.as_secs_f64(),
        baseline_write: raw.plan.name(),
        baseline_read_size: raw.read,
        ratios: runs.iter().map(|Pair { ours, raw, .. }| ours.rate() / raw.rate()).collect(),
    };
    if json {
        report::json(&report)?
    } else {
        show(&report, options)?
    }
    Ok(total.is_clean())
}

fn flood(
    (ours, secure): (&Linked, bool),
    partner: &mut Partner,
    size: usize,
    duration: Duration,
    by_id: bool,
) -> Result<Run, Failure> {
    expect_ready(partner.ask(&Ask::Count { size, secure })?)?;
    let start = Instant::now();
    ours.flood(size, duration, by_id)?;
    let tally = partner.tally(duration + PATIENCE)?;
    let time = start.elapsed();
    ours.settle()?;
    Ok(Run { tally, time })
}

fn show(report: &Report, options: &Options) -> Result<(), Failure> {
    let way = if report.by_id { "by id" } else { "through a handle" };
    let size = report.size as f64;
    let mut lines = vec![
        options.common.headline("throughput", &report.pids),
        format!("  {:<14}{:>16}{:>16}", "", "messages/s", "bytes/s"),
        format!(
            "  {:<14}{:>16}{:>16}   {way}",
            "threadwire",
            report::scaled(report.msgs_per_s),
            report::scaled(report.bytes_per_s)
        ),
        format!(
            "  {:<14}{:>16}{:>16}   writes of {} ({}), reads of {}",
            "raw TCP",
            report::scaled(report.baseline_msgs_per_s),
            report::scaled(report.baseline_msgs_per_s * size),
            report::bytes(report.baseline_write_size),
            report.baseline_write,
            report::bytes(report.baseline_read_size),
        ),
        format!("  ratio {}", report.to_baseline.line("raw against raw")),
        format!(
            "  {} messages: {} lost, {} duplicated, {} reordered, {} strange; {} of {} acknowledged",
            report.received,
            report.lost,
            report.duplicated,
            report.reordered,
            report.strange,
            report.acked,
            report.accepted
        ),
    ];
    if let Some(secure) = &report.secure {
        lines.push(format!(
            "  over TLS {:>16}{:>16}   ratio {:.3} ({:.3} to {:.3}), to plain {:.3} ({:.3} to {:.3})",
            report::scaled(secure.secure_msgs_per_s),
            report::scaled(secure.secure_bytes_per_s),
            secure.secure_ratio,
            secure.secure_ratio_q1,
            secure.secure_ratio_q3,
            secure.secure_to_plain,
            secure.secure_to_plain_q1,
            secure.secure_to_plain_q3,
        ));
    }
    report::lines(&lines)
}
