//! `peers`: one node alone in this process, and many peers in others; what an idle peer costs.
//!
//! Owns: the node under test. Threads: the measuring thread, which sleeps while the node is idle. Locks: none.
//! Blocks on: the node's events, the processes of the peers, the idle window.
//! Upholds: every figure is the difference of two readings of the system; what must hold for `ok` is checked one by one
//! and named where it does not hold.
//!
//! ```text
//!   node, alone:  before | connect ... | sends to all, in rounds | idle window | shut down | after
//!   others:       make   | dial .......| acknowledge             | heartbeats  | part
//! ```

mod books;
mod host;
mod light;
mod limits;
mod node;

use std::time::{Duration, Instant};

use clap::ValueEnum;
use clap::builder::RangedU64ValueParser;
use serde::Serialize;

use crate::control::{Answer, Ask, Partner, unexpected};
use crate::failure::Failure;
use crate::{report, usage};
use node::UnderTest;

pub use books::Harm;
pub use host::{Cast, Census, Host};

/// What `ok` allows.
const MOST_KIB_PER_PEER: f64 = 64.0;
const MOST_IDLE_CPU: f64 = 3.0;
const MOST_STOP: Duration = Duration::from_secs(2);

/// A peer that says nothing is cut so long after its heartbeat was due.
const LATE: Duration = Duration::from_secs(5);
/// Handshakes under way at one time, over all processes: fewer than a node lets be half open by default.
const AT_ONCE: usize = 192;
/// When nobody has connected for so long, whoever is missing will not come.
const NOBODY: Duration = Duration::from_secs(3);
/// How long the processes of the peers may take for a question.
const SOON: Duration = Duration::from_secs(30);

/// What `peers` can be told.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Peers
    #[arg(long, default_value_t = 1000, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1_000_000))]
    count: usize,
    /// Seconds of the idle window: longer than a silent peer stays (heartbeat + 5 s)
    #[arg(long, default_value_t = 20.0, value_parser = crate::seconds)]
    seconds: f64,
    /// Seconds between heartbeats, on both sides
    #[arg(long, default_value_t = 10.0, value_parser = crate::seconds)]
    heartbeat: f64,
    /// Rounds of one message to each peer
    #[arg(long, default_value_t = 15, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1000))]
    rounds: usize,
    /// Peers in one process
    #[arg(long, default_value_t = 500, value_parser = RangedU64ValueParser::<usize>::new().range(1..=10_000))]
    per_process: usize,
    /// Do harm to one peer: the result must say so
    #[arg(long)]
    sabotage: Option<Sabotage>,
    /// Print one line of JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// Harm that must be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Sabotage {
    /// One peer never connects.
    Drop,
    /// One peer never says a heartbeat.
    Mute,
}

/// The line for programs.
#[derive(Debug, Serialize)]
struct Report {
    workload: &'static str,
    count: usize,
    connects_per_s: f64,
    /// Of the node's process, while idle.
    threads: u64,
    rss_kib_per_peer: f64,
    /// Of one core.
    idle_cpu_percent: f64,
    broadcast_ms_p50: f64,
    /// Until `shutdown` had returned and the threads were gone.
    stop_ms: f64,
    ok: bool,
    /// What did not hold.
    reasons: Vec<String>,
    connected: usize,
    connect_s: f64,
    idle_s: f64,
    idle_cpu_ms: f64,
    heartbeat_s: f64,
    /// In the idle window: heartbeats of the node that its peers heard, how many peers heard one, and theirs.
    heartbeats_heard: u64,
    peers_beating: usize,
    heartbeats_said: u64,
    /// Sessions the node cut for silence.
    cut: u64,
    rss_kib_before: u64,
    rss_kib_idle: u64,
    /// Before the first message; and after the last, before anything had the time to shrink.
    rss_kib_per_peer_fresh: f64,
    rss_kib_per_peer_busy: f64,
    broadcast_ms_max: f64,
    rounds: usize,
    threads_before: u64,
    threads_left: u64,
    sessions_left: u64,
    sabotage: Option<Sabotage>,
    processes: usize,
    cores: usize,
    kernel: String,
}

/// When there is nothing to measure.
#[derive(Debug, Serialize)]
struct Stopped {
    workload: &'static str,
    count: usize,
    ok: bool,
    /// The limit that is too low, in a sentence.
    limit: Option<String>,
    error: Option<String>,
}

/// Measures and reports; false when something did not hold.
///
/// # Errors
/// A limit is too low, or one of the processes failed.
pub fn run(options: &Options) -> Result<bool, Failure> {
    let Options { count, per_process, json, .. } = *options;
    let limit = limits::first_too_low(count, per_process);
    let outcome = match &limit {
        Some(limit) => Err(Failure::new(limit.clone())),
        None => measure(options),
    };
    match outcome {
        Ok(report) => {
            report.reasons.iter().for_each(|reason| eprintln!("loadtest: {reason}"));
            if json {
                report::json(&report)?
            } else {
                show(&report)?
            }
            Ok(report.ok)
        }
        Err(failure) => {
            if json {
                let error = limit.is_none().then(|| failure.to_string());
                report::json(&Stopped { workload: "peers", count, ok: false, limit, error })?;
            }
            Err(failure)
        }
    }
}

fn measure(options: &Options) -> Result<Report, Failure> {
    let Options { count, rounds, sabotage, .. } = *options;
    let (window, heartbeat) = (Duration::from_secs_f64(options.seconds), Duration::from_secs_f64(options.heartbeat));
    let silence = heartbeat + LATE;
    if window <= silence {
        return Err(Failure::new(format!(
            "--seconds {} ends before a silent peer is cut, {silence:?} after its last byte",
            options.seconds
        )));
    }
    let mut partners = cast(options, heartbeat)?;

    let threads_before = usage::threads()?;
    let mut node = UnderTest::start(count, heartbeat, silence)?;
    let rss_kib_before = usage::resident_kib()?;
    let (id, addr) = node.place()?;

    let began = Instant::now();
    let at_once = (AT_ONCE / partners.len()).max(1);
    tell(&mut partners, &Ask::DialPeers { id, addr, at_once })?;
    let connected_at = node.wait_connected(count, NOBODY)?;
    hear_all(&mut partners)?;
    let connect_time = connected_at - began;
    let connected = node.connected();
    let rss_kib_fresh = usage::resident_kib()?;
    let mut times = node.rounds(rounds)?;
    let rss_kib_busy = usage::resident_kib()?;
    let messages = count_peers(&mut partners)?.seen.messages;

    // What the last messages left to do is not idle; what they left in memory counts.
    std::thread::sleep(Duration::from_secs(1));
    let threads = usage::threads()?;
    count_peers(&mut partners)?;
    let (cpu, idle_since) = (usage::cpu_time(), Instant::now());
    std::thread::sleep(window);
    let idle_cpu = usage::cpu_time() - cpu;
    let idle = idle_since.elapsed();
    let beats = count_peers(&mut partners)?;
    let rss_kib_idle = usage::resident_kib()?;
    let cut = node.cut();

    let stopping = Instant::now();
    let unclean = node.stop();
    let mut threads_left = usage::threads()?.saturating_sub(threads_before);
    while threads_left > 0 && stopping.elapsed() < 2 * MOST_STOP {
        std::thread::sleep(Duration::from_millis(1));
        threads_left = usage::threads()?.saturating_sub(threads_before);
    }
    let stop = stopping.elapsed();
    let sessions_left = node.sessions();
    let parted = count_peers(&mut partners)?;

    times.sort_unstable();
    let per_peer = |kib: u64| kib.saturating_sub(rss_kib_before) as f64 / connected.max(1) as f64;
    let mut report = Report {
        workload: "peers",
        count,
        connects_per_s: connected as f64 / connect_time.as_secs_f64(),
        threads,
        rss_kib_per_peer: per_peer(rss_kib_idle),
        idle_cpu_percent: 100.0 * idle_cpu.as_secs_f64() / idle.as_secs_f64(),
        broadcast_ms_p50: millis(times.get(times.len() / 2).copied()),
        stop_ms: millis(Some(stop)),
        ok: false,
        reasons: Vec::new(),
        connected,
        connect_s: connect_time.as_secs_f64(),
        idle_s: idle.as_secs_f64(),
        idle_cpu_ms: millis(Some(idle_cpu)),
        heartbeat_s: options.heartbeat,
        heartbeats_heard: beats.seen.beats_heard,
        peers_beating: beats.beating,
        heartbeats_said: beats.seen.beats_said,
        cut,
        rss_kib_before,
        rss_kib_idle,
        rss_kib_per_peer_fresh: per_peer(rss_kib_fresh),
        rss_kib_per_peer_busy: per_peer(rss_kib_busy),
        broadcast_ms_max: millis(times.last().copied()),
        rounds,
        threads_before,
        threads_left,
        sessions_left,
        sabotage,
        processes: partners.len() + 1,
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
    };
    report.reasons = faults(&report, &parted, messages, unclean);
    report.ok = report.reasons.is_empty();
    Ok(report)
}

/// Everything that must hold and does not.
fn faults(report: &Report, parted: &Census, messages: u64, unclean: Option<String>) -> Vec<String> {
    let Report { count, connected, peers_beating, cut, threads_left, sessions_left, .. } = *report;
    let (kib, cpu, stop) = (report.rss_kib_per_peer, report.idle_cpu_percent, report.stop_ms);
    let sent = (connected * report.rounds) as u64;
    let mut faults = Vec::new();
    let mut must = |holds: bool, fault: String| {
        if !holds {
            faults.push(fault);
        }
    };
    must(connected == count, format!("{connected} of {count} peers connected"));
    must(peers_beating == count, format!("{peers_beating} of {count} peers heard a heartbeat in the idle window"));
    must(cut == 0, format!("{cut} peers were cut for silence"));
    must(
        parted.failed == 0,
        format!("{} peers failed: {}", parted.failed, parted.first_failure.as_deref().unwrap_or("")),
    );
    must(kib <= MOST_KIB_PER_PEER, format!("{kib:.1} KiB a peer where {MOST_KIB_PER_PEER} are allowed"));
    must(cpu < MOST_IDLE_CPU, format!("{cpu:.2} % of a core while idle where {MOST_IDLE_CPU} are allowed"));
    must(messages == sent, format!("{messages} of {sent} messages arrived"));
    must(stop <= millis(Some(MOST_STOP)), format!("the end took {stop:.0} ms where {MOST_STOP:?} are allowed"));
    must(unclean.is_none(), format!("the node did not end cleanly: {}", unclean.unwrap_or_default()));
    must(threads_left == 0, format!("{threads_left} threads are left"));
    must(sessions_left == 0, format!("{sessions_left} sessions are left"));
    must(parted.attached == 0, format!("{} peers were not told of the end", parted.attached));
    faults
}

/// Starts the processes of the peers, and has them make their identities.
fn cast(options: &Options, heartbeat: Duration) -> Result<Vec<Partner>, Failure> {
    let Options { count, per_process, sabotage, .. } = *options;
    let processes = count.div_ceil(per_process);
    let mut partners = (0..processes).map(|_| Partner::process()).collect::<Result<Vec<_>, _>>()?;
    let harmed = |harm| usize::from(sabotage == Some(harm));
    for (n, partner) in partners.iter_mut().enumerate() {
        let first = usize::from(n == 0);
        let count = count / processes + usize::from(n < count % processes);
        partner.tell(&Ask::MakePeers(Cast {
            hidden: first * harmed(Sabotage::Drop),
            mute: first * harmed(Sabotage::Mute),
            prompt: true,
            ..Cast::new(count, node::NETWORK, heartbeat)
        }))?;
    }
    hear_all(&mut partners)?;
    Ok(partners)
}

fn tell(partners: &mut [Partner], ask: &Ask) -> Result<(), Failure> {
    partners.iter_mut().try_for_each(|partner| partner.tell(ask))
}

fn count_peers(partners: &mut [Partner]) -> Result<Census, Failure> {
    tell(partners, &Ask::CountPeers { sent: 0 })?;
    hear_all(partners)
}

/// Adds up what the processes answer.
fn hear_all(partners: &mut [Partner]) -> Result<Census, Failure> {
    let mut all = Census::default();
    for partner in partners {
        match partner.answer(SOON)? {
            Answer::Peers(census) => all.add(census),
            other => return Err(unexpected(&other)),
        }
    }
    Ok(all)
}

fn millis(time: Option<Duration>) -> f64 {
    time.unwrap_or_default().as_secs_f64() * 1e3
}

fn show(report: &Report) -> Result<(), Failure> {
    let line = |name: &str, figure: String| format!("  {name:<14}{figure}");
    report::lines(&[
        format!("peers, {} connected to one node, in {} processes", report.connected, report.processes),
        line("connects", format!("{:.0} per second ({:.2} s)", report.connects_per_s, report.connect_s)),
        line("threads", report.threads.to_string()),
        line(
            "memory",
            format!(
                "{:.1} KiB a peer while idle; {:.1} before the first message, {:.1} after {} to each",
                report.rss_kib_per_peer, report.rss_kib_per_peer_fresh, report.rss_kib_per_peer_busy, report.rounds
            ),
        ),
        line("idle", format!("{:.2} % of a core, in {:.1} s", report.idle_cpu_percent, report.idle_s)),
        line(
            "heartbeats",
            format!(
                "every {} s: {} heard, {} said",
                report.heartbeat_s, report.heartbeats_heard, report.heartbeats_said
            ),
        ),
        line("to all", format!("{:.1} ms, at most {:.1}", report.broadcast_ms_p50, report.broadcast_ms_max)),
        line("end", format!("{:.0} ms", report.stop_ms)),
        line("ok", report.ok.to_string()),
    ])
}
