//! `latency`: one message to and fro; round-trip times against a raw socket.
//!
//! Owns: the asking ends of both connections. Threads: the measuring thread; ours runs in handlers at both ends.
//! Locks: none. Blocks on: the end of each block, and answers of the other end.
//! Upholds: both sides take the time from one answer to the next, and alternate in blocks of the same length.

use serde::Serialize;

use crate::Common;
use crate::baseline::{Baseline, expect_ready};
use crate::control::{Ask, Partner};
use crate::failure::Failure;
use crate::histogram::Histogram;
use crate::pairs::{self, Pair, Side};
use crate::report;
use crate::stats::{Spread, spread};
use crate::wire::Pinger;

/// What `latency` can be told.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Answer by `msg.reply` instead of by a message of its own
    #[arg(long)]
    reply: bool,
    /// Measure over TLS too
    #[arg(long)]
    secure: bool,
    /// What every workload can be told
    #[command(flatten)]
    pub common: Common,
}

/// The line for programs; times in microseconds.
#[derive(Debug, Serialize)]
struct Report {
    workload: &'static str,
    size: usize,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    baseline_p50_us: f64,
    baseline_p99_us: f64,
    baseline_p999_us: f64,
    ratio_p50: f64,
    ratio_p50_q1: f64,
    ratio_p50_q3: f64,
    ratio_p99: f64,
    ratio_p99_q1: f64,
    ratio_p99_q3: f64,
    /// Raw against raw.
    noise_p50: f64,
    noise_p50_q1: f64,
    noise_p50_q3: f64,
    noise_p99: f64,
    noise_p99_q1: f64,
    noise_p99_q3: f64,
    pids: Vec<u32>,
    round_trips: u64,
    baseline_round_trips: u64,
    reply: bool,
    #[serde(flatten)]
    secure: Option<Secure>,
    threads: bool,
    pairs: usize,
    seconds: f64,
    ratios_p50: Vec<f64>,
}

/// What TLS makes of the median round trip.
#[derive(Debug, Clone, Copy, Serialize)]
struct Secure {
    secure_p50_us: f64,
    secure_p99_us: f64,
    /// Plain TCP to the baseline: `ratio_p50` once more, beside the others.
    plain_ratio: f64,
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
    fn of(runs: &[Pair<Histogram>]) -> Result<Option<Self>, Failure> {
        let mut all = Histogram::new()?;
        let mut figures = Vec::new();
        for pair in runs {
            if let Some(secure) = &pair.secure {
                all.add(secure)?;
                figures.push([secure, &pair.ours, &pair.raw].map(|times| times.micros(0.5)));
            }
        }
        let plain = spread(figures.iter().map(|[_, ours, raw]| ours / raw));
        let ratio = spread(figures.iter().map(|[secure, _, raw]| secure / raw));
        let to_plain = spread(figures.iter().map(|[secure, ours, _]| secure / ours));
        let (Some(plain), Some(ratio), Some(to_plain)) = (plain, ratio, to_plain) else { return Ok(None) };
        Ok(Some(Self {
            secure_p50_us: all.micros(0.5),
            secure_p99_us: all.micros(0.99),
            plain_ratio: plain.median,
            secure_ratio: ratio.median,
            secure_ratio_q1: ratio.q1,
            secure_ratio_q3: ratio.q3,
            secure_to_plain: to_plain.median,
            secure_to_plain_q1: to_plain.q1,
            secure_to_plain_q3: to_plain.q3,
        }))
    }
}

/// Measures and reports; a message that is lost or comes back wrong is a failure.
///
/// # Errors
/// One of the ends failed, or an answer did not come.
pub fn run(options: &Options, partner: &mut Partner) -> Result<bool, Failure> {
    let Common { size, pairs, threads, json, .. } = options.common;
    let (duration, warm_up) = (options.common.duration(), options.common.warm_up());
    let mut raw = Baseline::open(partner)?;
    let link = |partner: &mut Partner, secure| {
        Pinger::new(&partner.ask(&Ask::OpenEcho { reply: options.reply, secure })?, secure)
    };
    let ours = link(partner, false)?;
    let secure = if options.secure { Some(link(partner, true)?) } else { None };
    raw.ping(partner, size, warm_up)?;
    ours.ping(size, warm_up)?;
    if let Some(secure) = &secure {
        secure.ping(size, warm_up)?;
    }

    let runs = pairs::run(pairs, options.secure, |side| match side {
        Side::Ours => ours.ping(size, duration),
        Side::Secure => secure.as_ref().unwrap_or(&ours).ping(size, duration),
        Side::Raw | Side::RawAgain => raw.ping(partner, size, duration),
    })?;
    ours.close()?;
    if let Some(secure) = secure {
        secure.close()?;
    }
    expect_ready(partner.ask(&Ask::Close)?)?;

    let (mut all, mut baseline) = (Histogram::new()?, Histogram::new()?);
    for Pair { ours, raw, .. } in &runs {
        all.add(ours)?;
        baseline.add(raw)?;
    }
    let ratios = |q: f64| runs.iter().map(move |pair| pair.ours.micros(q) / pair.raw.micros(q));
    let noise = |q: f64| spread(runs.iter().map(|pair| pair.again.micros(q) / pair.raw.micros(q)));
    let (Some(ratio_p50), Some(ratio_p99), Some(noise_p50), Some(noise_p99)) =
        (spread(ratios(0.5)), spread(ratios(0.99)), noise(0.5), noise(0.99))
    else {
        return Err(Failure::new("no pairs were run"));
    };
    let report = Report {
        workload: "latency",
        size,
        p50_us: all.micros(0.5),
        p99_us: all.micros(0.99),
        p999_us: all.micros(0.999),
        baseline_p50_us: baseline.micros(0.5),
        baseline_p99_us: baseline.micros(0.99),
        baseline_p999_us: baseline.micros(0.999),
        ratio_p50: ratio_p50.median,
        ratio_p50_q1: ratio_p50.q1,
        ratio_p50_q3: ratio_p50.q3,
        ratio_p99: ratio_p99.median,
        ratio_p99_q1: ratio_p99.q1,
        ratio_p99_q3: ratio_p99.q3,
        noise_p50: noise_p50.median,
        noise_p50_q1: noise_p50.q1,
        noise_p50_q3: noise_p50.q3,
        noise_p99: noise_p99.median,
        noise_p99_q1: noise_p99.q1,
        noise_p99_q3: noise_p99.q3,
        pids: partner.pids(),
        round_trips: all.len(),
        baseline_round_trips: baseline.len(),
        reply: options.reply,
        secure: Secure::of(&runs)?,
        threads,
        pairs,
        seconds: duration.as_secs_f64(),
        ratios_p50: ratios(0.5).collect(),
    };
    if json {
        report::json(&report)?;
    } else {
        show(&report, options, [ratio_p50, ratio_p99, noise_p50, noise_p99])?;
    }
    Ok(true)
}

fn show(report: &Report, options: &Options, ratios: [Spread; 4]) -> Result<(), Failure> {
    let [ratio_p50, ratio_p99, noise_p50, noise_p99] =
        ratios.map(|Spread { q1, median, q3 }| format!("{median:.3} ({q1:.3} to {q3:.3})"));
    let way = if report.reply { "answers by reply" } else { "answers by try_send" };
    let times = |name: &str, p50: f64, p99: f64, p999: f64| format!("  {name:<14}{p50:>12.1}{p99:>12.1}{p999:>12.1}");
    let mut lines = vec![
        options.common.headline("latency", &report.pids),
        format!("  {:<14}{:>12}{:>12}{:>12}", "us", "p50", "p99", "p99.9"),
        format!("{}   {way}", times("threadwire", report.p50_us, report.p99_us, report.p999_us)),
        times("raw TCP", report.baseline_p50_us, report.baseline_p99_us, report.baseline_p999_us),
        format!("  ratio p50 {ratio_p50}, p99 {ratio_p99}"),
        format!("  raw against raw p50 {noise_p50}, p99 {noise_p99}"),
        format!("  {} round trips, raw {}", report.round_trips, report.baseline_round_trips),
    ];
    if let Some(secure) = &report.secure {
        lines.push(format!(
            "  over TLS      {:>12.1}{:>12.1}   ratio p50 {:.3} ({:.3} to {:.3}), to plain {:.3} ({:.3} to {:.3})",
            secure.secure_p50_us,
            secure.secure_p99_us,
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
