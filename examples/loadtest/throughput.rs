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
use crate::pairs::{self, Pair, Side};
use crate::report;
use crate::stats::spread;
use crate::wire::Linked;

/// What `throughput` can be told.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Name the peer anew with each message instead of sending through one handle
    #[arg(long)]
    by_id: bool,
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
    ratio: f64,
    ratio_q1: f64,
    ratio_q3: f64,
    /// Raw against raw.
    noise: f64,
    noise_q1: f64,
    noise_q3: f64,
    pids: Vec<u32>,
    lost: u64,
    duplicated: u64,
    reordered: u64,
    strange: u64,
    received: u64,
    accepted: u64,
    acked: u64,
    by_id: bool,
    threads: bool,
    pairs: usize,
    seconds: f64,
    baseline_write: &'static str,
    baseline_read_size: usize,
    ratios: Vec<f64>,
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
    let ours = Linked::sender(&partner.ask(&Ask::OpenCounter)?)?;
    let flood = |partner: &mut Partner, duration| flood(&ours, partner, size, duration, options.by_id);
    // What goes wrong while warming up is wrong too; only its time does not count.
    let mut total = flood(partner, options.common.warm_up())?.tally;

    let runs = pairs::run(pairs, |side| match side {
        Side::Ours => flood(partner, duration),
        Side::Raw | Side::RawAgain => raw.run(partner, size, duration),
    })?;
    let (accepted, acked) = ours.close()?;
    expect_ready(partner.ask(&Ask::Close)?)?;

    runs.iter().for_each(|pair| total.add(&pair.ours.tally));
    let figures = (
        spread(runs.iter().map(|pair| pair.ours.rate())),
        spread(runs.iter().map(|pair| pair.raw.rate())),
        spread(runs.iter().map(|pair| pair.ours.rate() / pair.raw.rate())),
        spread(runs.iter().map(|pair| pair.again.rate() / pair.raw.rate())),
    );
    let (Some(rate), Some(baseline), Some(ratio), Some(noise)) = figures else {
        return Err(Failure::new("no pairs were run"));
    };
    let report = Report {
        workload: "throughput",
        size,
        msgs_per_s: rate.median,
        bytes_per_s: rate.median * size as f64,
        baseline_msgs_per_s: baseline.median,
        baseline_write_size: raw.plan.write_size(size),
        ratio: ratio.median,
        ratio_q1: ratio.q1,
        ratio_q3: ratio.q3,
        noise: noise.median,
        noise_q1: noise.q1,
        noise_q3: noise.q3,
        pids: partner.pids(),
        lost: total.lost,
        duplicated: total.duplicated,
        reordered: total.reordered,
        strange: total.strange,
        received: total.received,
        accepted,
        acked,
        by_id: options.by_id,
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

fn flood(ours: &Linked, partner: &mut Partner, size: usize, duration: Duration, by_id: bool) -> Result<Run, Failure> {
    expect_ready(partner.ask(&Ask::Count { size })?)?;
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
    report::lines(&[
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
        format!(
            "  ratio {:.3} (quartiles {:.3} to {:.3}); raw against raw {:.3} ({:.3} to {:.3})",
            report.ratio, report.ratio_q1, report.ratio_q3, report.noise, report.noise_q1, report.noise_q3
        ),
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
    ])
}
