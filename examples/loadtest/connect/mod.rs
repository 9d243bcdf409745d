//! `connect`: how many sessions a second two processes establish, and what they cost, against bare handshakes.
//!
//! Owns: the dialling ends of both arrangements. Threads: the measuring thread; one for each who dials during a run.
//! Locks: none. Blocks on: dials, and answers of the other end.
//! Upholds: what a run has used is the time on processors of both its processes; a session counts when both sides have
//! it; what failed on either side is counted, and one failure makes the result a bad one.

mod any_key;
mod bare;
mod nodes;

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use clap::builder::RangedU64ValueParser;
use serde::{Deserialize, Serialize};

use crate::control::{Answer, Ask, Partner, unexpected};
use crate::failure::Failure;
use crate::pairs::{self, Pair, Ratios, Side};
use crate::stats::spread;
use crate::{baseline, report, usage};
use bare::BareCaller;
use nodes::Caller;

pub use bare::BareDoor;
pub use nodes::Door;

/// What `connect` can be told.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Over TLS, against bare TLS handshakes; else plain, against bare TCP
    #[arg(long)]
    secure: bool,
    /// Dialled at one time: so many nodes, and as many threads of the baseline
    #[arg(long, default_value_t = 4, value_parser = RangedU64ValueParser::<usize>::new().range(1..=64))]
    at_once: usize,
    /// Pairs of runs
    #[arg(long, default_value_t = 9, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1000))]
    pairs: usize,
    /// Seconds that each side of a pair runs
    #[arg(long, default_value_t = 1.0, value_parser = crate::seconds)]
    seconds: f64,
    /// Print one line of JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// What the end that is dialled has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entered {
    /// Established, since it began.
    pub count: u64,
    /// Its process's time on processors.
    pub cpu: Duration,
    /// Of that, of the threads that shake hands, if the system says so.
    pub shaking: Option<Duration>,
}

/// Threads of a node that accept, dial and shake hands; what a session has of its own are others.
const SHAKING: [&str; 2] = ["acceptor", "work-"];

impl Entered {
    /// So many, by now.
    fn now(count: u64) -> Self {
        Self { count, cpu: usage::cpu_time(), shaking: usage::cpu_time_of(&SHAKING) }
    }
}

/// What the diallers of a run have counted.
#[derive(Debug, Default)]
struct Dialled {
    established: u64,
    failed: u64,
    first_failure: Option<String>,
}

/// One side of a pair.
#[derive(Debug)]
struct Run {
    /// By both ends.
    established: u64,
    failed: u64,
    first_failure: Option<String>,
    time: Duration,
    /// Of both processes.
    cpu: Duration,
    /// Of that, of the threads that shake hands.
    shaking: Option<Duration>,
}

impl Run {
    fn rate(&self) -> f64 {
        self.established as f64 / self.time.as_secs_f64()
    }

    fn rate_per_core(&self) -> f64 {
        self.established as f64 / self.cpu.as_secs_f64()
    }

    /// Microseconds on processors for each session.
    fn micros(&self, cpu: Duration) -> f64 {
        cpu.as_secs_f64() * 1e6 / self.established as f64
    }

    /// Processors that were busy.
    fn cores(&self) -> f64 {
        self.cpu.as_secs_f64() / self.time.as_secs_f64()
    }
}

/// The line for programs.
#[derive(Debug, Serialize)]
struct Report {
    workload: &'static str,
    secure: bool,
    handshakes_per_s: f64,
    /// For each second of a processor's time, those of both processes added up.
    handshakes_per_core_s: f64,
    baseline_handshakes_per_s: f64,
    baseline_handshakes_per_core_s: f64,
    /// Of those per core.
    #[serde(flatten)]
    to_baseline: Ratios,
    /// Microseconds on processors of both processes for each session, from its dial to its end; for each of the
    /// baseline's; and of ours without the session's own threads, the supervisor and the program: accepting, dialling, the
    /// handshake and starting those threads, on the threads `acceptor` and `work-n`.
    session_us: f64,
    baseline_us: f64,
    shaking_us: Option<f64>,
    /// The baseline to that.
    shaking_ratio: Option<f64>,
    shaking_ratio_q1: Option<f64>,
    shaking_ratio_q3: Option<f64>,
    pairs: usize,
    pids: Vec<u32>,
    failed: u64,
    baseline_failed: u64,
    established: u64,
    baseline_established: u64,
    /// Processors that were busy while sessions were established.
    cores_busy: f64,
    baseline_cores_busy: f64,
    at_once: usize,
    seconds: f64,
    ratios: Vec<f64>,
}

/// Measures and reports; false when a handshake failed.
///
/// # Errors
/// One of the ends failed, or nothing was established at all.
pub fn run(options: &Options, partner: &mut Partner) -> Result<bool, Failure> {
    let Options { secure, at_once, pairs, seconds, json } = *options;
    let duration = Duration::from_secs_f64(seconds);
    let door = address(partner.ask(&Ask::OpenDoor { secure })?)?;
    let mut callers = (0..at_once).map(|_| Caller::new(secure, door)).collect::<Result<Vec<_>, _>>()?;
    let door = address(partner.ask(&Ask::OpenBareDoor { secure, threads: at_once })?)?;
    let mut bare = (0..at_once).map(|_| BareCaller::new(secure, door)).collect::<Result<Vec<_>, _>>()?;
    let mut side = |side, duration| match side {
        Side::Ours | Side::Secure => measure(partner, false, &mut callers, duration, Caller::call),
        Side::Raw | Side::RawAgain => measure(partner, true, &mut bare, duration, BareCaller::call),
    };
    // What fails while warming up has failed too; only its time does not count.
    let warm_up = duration / 5;
    let (mut ours, mut baseline) = (vec![side(Side::Ours, warm_up)?], vec![side(Side::Raw, warm_up)?]);
    let runs = pairs::run(pairs, false, |which| side(which, duration))?;
    callers.into_iter().try_for_each(Caller::close)?;
    baseline::expect_ready(partner.ask(&Ask::Close)?)?;

    let to_baseline = Ratios::of(&runs, Run::rate_per_core).ok_or_else(|| Failure::new("no pairs were run"))?;
    let median = |figure: &dyn Fn(&Pair<Run>) -> f64| spread(runs.iter().map(figure)).map_or(0.0, |all| all.median);
    let shaking = spread(runs.iter().filter_map(|pair| Some(pair.ours.micros(pair.ours.shaking?))));
    let alone = |pair: &Pair<Run>| Some(pair.raw.micros(pair.raw.cpu) / pair.ours.micros(pair.ours.shaking?));
    let shaking_ratio = spread(runs.iter().filter_map(alone));
    let mut report = Report {
        workload: "connect",
        secure,
        handshakes_per_s: median(&|pair| pair.ours.rate()),
        handshakes_per_core_s: median(&|pair| pair.ours.rate_per_core()),
        baseline_handshakes_per_s: median(&|pair| pair.raw.rate()),
        baseline_handshakes_per_core_s: median(&|pair| pair.raw.rate_per_core()),
        to_baseline,
        session_us: median(&|pair| pair.ours.micros(pair.ours.cpu)),
        baseline_us: median(&|pair| pair.raw.micros(pair.raw.cpu)),
        shaking_us: shaking.map(|all| all.median),
        shaking_ratio: shaking_ratio.map(|all| all.median),
        shaking_ratio_q1: shaking_ratio.map(|all| all.q1),
        shaking_ratio_q3: shaking_ratio.map(|all| all.q3),
        pairs,
        pids: partner.pids(),
        failed: 0,
        baseline_failed: 0,
        established: 0,
        baseline_established: 0,
        cores_busy: median(&|pair| pair.ours.cores()),
        baseline_cores_busy: median(&|pair| pair.raw.cores()),
        at_once,
        seconds,
        ratios: runs.iter().map(|pair| pair.ours.rate_per_core() / pair.raw.rate_per_core()).collect(),
    };
    for Pair { ours: our_run, raw, again, .. } in runs {
        ours.push(our_run);
        baseline.extend([raw, again]);
    }
    (report.established, report.failed) = total(&ours);
    (report.baseline_established, report.baseline_failed) = total(&baseline);
    for run in ours.iter().chain(&baseline).filter(|run| run.failed > 0) {
        eprintln!("loadtest: {} handshakes failed: {}", run.failed, run.first_failure.as_deref().unwrap_or_default());
    }
    if json {
        report::json(&report)?
    } else {
        show(&report)?
    }
    Ok(report.failed + report.baseline_failed == 0)
}

fn address(answer: Answer) -> Result<SocketAddr, Failure> {
    match answer {
        Answer::Listening { addr } | Answer::Node { addr, .. } => Ok(addr),
        other => Err(unexpected(&other)),
    }
}

/// What was established, and what failed.
fn total(runs: &[Run]) -> (u64, u64) {
    (runs.iter().map(|run| run.established).sum(), runs.iter().map(|run| run.failed).sum())
}

/// One run: every dialler has one session after the other until the time is up, and the other end says what it saw.
fn measure<D: Send>(
    partner: &mut Partner,
    bare: bool,
    diallers: &mut [D],
    duration: Duration,
    dial: impl Fn(&mut D) -> Result<(), Failure> + Sync,
) -> Result<Run, Failure> {
    let mut entered = |at_least| match partner.ask(&Ask::Entered { bare, at_least })? {
        Answer::Entered(entered) => Ok(entered),
        other => Err(unexpected(&other)),
    };
    let before = entered(0)?;
    let (own, began) = (Entered::now(0), Instant::now());
    let Dialled { established, failed, first_failure } = keep_dialling(diallers, began + duration, dial)?;
    let after = entered(before.count + established)?;
    let (time, own_after) = (began.elapsed(), Entered::now(0));
    let cpu = own_after.cpu - own.cpu + (after.cpu - before.cpu);
    let shaking = |before: Entered, after: Entered| Some(after.shaking?.saturating_sub(before.shaking?));
    let shaking = shaking(own, own_after).zip(shaking(before, after)).map(|(own, other)| own + other);
    let there = after.count - before.count;
    let unseen = established.saturating_sub(there);
    let first_failure = first_failure.or((unseen > 0).then(|| "the other end did not see it".to_owned()));
    if established == unseen {
        return Err(Failure::new(format!("nothing was established: {}", first_failure.unwrap_or_default())));
    }
    Ok(Run { established: established - unseen, failed: failed + unseen, first_failure, time, cpu, shaking })
}

/// Dials until the time is up, each dialler in a thread of its own, at least once.
fn keep_dialling<D: Send>(
    diallers: &mut [D],
    until: Instant,
    dial: impl Fn(&mut D) -> Result<(), Failure> + Sync,
) -> Result<Dialled, Failure> {
    let keep = |dialler: &mut D| {
        let mut dialled = Dialled::default();
        loop {
            match dial(dialler) {
                Ok(()) => dialled.established += 1,
                Err(failure) => {
                    dialled.failed += 1;
                    dialled.first_failure.get_or_insert_with(|| failure.to_string());
                }
            }
            if Instant::now() >= until {
                return dialled;
            }
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = diallers.iter_mut().map(|dialler| scope.spawn(|| keep(dialler))).collect();
        threads.into_iter().try_fold(Dialled::default(), |mut all, thread| {
            let one = thread.join().map_err(|_| Failure::new("a thread that dials has panicked"))?;
            all.established += one.established;
            all.failed += one.failed;
            all.first_failure = all.first_failure.or(one.first_failure);
            Ok(all)
        })
    })
}

fn show(report: &Report) -> Result<(), Failure> {
    let pids: Vec<_> = report.pids.iter().map(u32::to_string).collect();
    let line = |name: &str, rate: f64, per_core: f64, cores: f64| {
        format!("  {name:<14}{:>16}{:>16}{cores:>16.2}", report::scaled(rate), report::scaled(per_core))
    };
    let (ours, bare) = if report.secure { ("over TLS", "rustls") } else { ("plain", "bare TCP") };
    report::lines(&[
        format!(
            "connect, {ours}, {} at once, two processes ({}), pairs: {}, {} s a side",
            report.at_once,
            pids.join(", "),
            report.pairs,
            report.seconds
        ),
        format!("  {:<14}{:>16}{:>16}{:>16}", "", "sessions/s", "per core", "cores busy"),
        line("threadwire", report.handshakes_per_s, report.handshakes_per_core_s, report.cores_busy),
        line(bare, report.baseline_handshakes_per_s, report.baseline_handshakes_per_core_s, report.baseline_cores_busy),
        format!("  ratio per core {}", report.to_baseline.line(&format!("{bare} against itself"))),
        format!(
            "  a session {:.0} us of a processor, the threads that shake hands {}; {bare} {:.0} us",
            report.session_us,
            report.shaking_us.map_or("unknown".to_owned(), |us| format!("{us:.0} us")),
            report.baseline_us
        ),
        format!(
            "  {} sessions, {} failed; {bare} {}, {} failed",
            report.established, report.failed, report.baseline_established, report.baseline_failed
        ),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::receiver;

    fn options(secure: bool) -> Options {
        Options { secure, at_once: 2, pairs: 1, seconds: 0.02, json: true }
    }

    #[test]
    fn both_sides_count_the_same_sessions() {
        for secure in [false, cfg!(feature = "tls")] {
            let mut partner = Partner::thread(receiver::serve).unwrap();
            assert!(run(&options(secure), &mut partner).unwrap());
        }
    }

    #[test]
    fn what_fails_is_counted_with_its_reason() {
        let mut turns = [0, 10];
        let dialled = keep_dialling(&mut turns, Instant::now(), |turn: &mut i32| {
            *turn += 1;
            if *turn > 10 { Ok(()) } else { Err(Failure::new("no")) }
        });
        let Dialled { established, failed, first_failure } = dialled.unwrap();
        assert_eq!((established, failed, first_failure.as_deref()), (1, 1, Some("no")));
    }

    #[test]
    fn what_the_other_end_does_not_see_has_failed() {
        let mut partner = Partner::thread(receiver::serve).unwrap();
        let door = address(partner.ask(&Ask::OpenBareDoor { secure: false, threads: 1 }).unwrap()).unwrap();
        let mut callers = [BareCaller::new(false, door).unwrap()];
        let mut calls = 0;
        let run = measure(
            &mut partner,
            true,
            &mut [(&mut callers[0], &mut calls)],
            Duration::from_millis(20),
            |(caller, calls)| {
                **calls += 1;
                // Every second one says that it had a connection and had none.
                if **calls % 2 == 0 { Ok(()) } else { caller.call() }
            },
        );
        let run = run.unwrap();
        assert_eq!(run.established + run.failed, calls);
        assert!(run.established.abs_diff(run.failed) <= 1 && run.first_failure.is_some(), "{run:?}");
    }
}
