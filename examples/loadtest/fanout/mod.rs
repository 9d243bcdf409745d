//! `fanout`: one message to many peers, by broadcast, by single sends, and by raw sockets.
//!
//! Owns: the raw writers and the order of the runs. Threads: the measuring thread; the node's own. Locks: none.
//! Blocks on: the runs, answers of the other ends.
//! Upholds: each peer keeps books of what it is handed, and what is not in them as it was sent is counted; a ratio is
//! formed inside its round.
//!
//! ```text
//!   this process:    the node  ----> process 1: all the peers       (one thread, one poll)
//!                        `---------> process 2: one more, stopped   (its socket and its queue are full)
//!   this process:    raw writers --> process 1: the raw readers     (one thread, one poll)
//! ```

mod raw;
mod report;
mod sender;

use std::time::{Duration, Instant};

use clap::ValueEnum;
use clap::builder::RangedU64ValueParser;
use serde::Serialize;

use crate::baseline::{PATIENCE, Run, expect_ready};
use crate::checker::NUMBER;
use crate::control::{Answer, Ask, Partner, unexpected};
use crate::failure::Failure;
use crate::peers::Harm;
use crate::report::judged;
use report::{Found, Report, Round};
use sender::{Way, census, gather_peers};

pub use raw::Readers;
use raw::Writers;

/// What the raw writer may gather.
const GATHERS: [usize; 4] = [1, 16 << 10, 64 << 10, 256 << 10];

/// What `fanout` can be told.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Peers, beside the one that is stuck
    #[arg(long, default_value_t = 100, value_parser = RangedU64ValueParser::<usize>::new().range(1..=400))]
    peers: usize,
    /// Bytes of a message
    #[arg(long, default_value_t = 256, value_parser = RangedU64ValueParser::<usize>::new().range(NUMBER as u64..=16 << 10))]
    size: usize,
    /// Rounds, each of a run of every sort
    #[arg(long, default_value_t = 7, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1000))]
    rounds: usize,
    /// Seconds that each run lasts
    #[arg(long, default_value_t = 1.0, value_parser = crate::seconds)]
    seconds: f64,
    /// Harm one message behind the library, or let the peer that is stuck go on: the result must say so
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
    /// One message is forgotten.
    Drop,
    /// One message is taken twice.
    Dup,
    /// The peer that is to be stuck goes on.
    Thaw,
}

impl Sabotage {
    /// What it does to a message.
    fn harm(self) -> Option<Harm> {
        match self {
            Self::Drop => Some(Harm::Drop),
            Self::Dup => Some(Harm::Dup),
            Self::Thaw => None,
        }
    }
}

/// Measures and reports; false when something did not hold.
///
/// # Errors
/// One of the ends failed.
pub fn run(options: &Options) -> Result<bool, Failure> {
    judged("fanout", options.json, measure(options).and_then(|found| Report::new(options, &found)))
}

fn measure(options: &Options) -> Result<Found, Failure> {
    let Options { peers, size, rounds, sabotage, .. } = *options;
    let duration = Duration::from_secs_f64(options.seconds);
    let (mut partner, mut stopped) = (Partner::process()?, Partner::process()?);
    let mut raw = open_raw(&mut partner, peers)?;
    let mut node = gather_peers(&mut partner, &mut stopped, (peers, size, sabotage.and_then(Sabotage::harm)))?;

    let slice = duration / 10;
    raw.gather = best_gather(&mut raw, &mut partner, peers, size, slice)?;
    for way in [Way::Broadcast, Way::Singles, Way::AmongStuck] {
        node.run(way, size, slice)?;
    }
    if sabotage == Some(Sabotage::Thaw) {
        node.thaw(&stopped, size)?;
    }
    let mut done = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let baseline = flood(&mut raw, &mut partner, peers, size, duration)?;
        let gather = std::mem::replace(&mut raw.gather, 1);
        let unbatched = flood(&mut raw, &mut partner, peers, size, duration)?;
        raw.gather = gather;
        let broadcast = node.run(Way::Broadcast, size, duration)?;
        let effect = node.effect(size, duration)?;
        let singles = node.run(Way::Singles, size, duration)?;
        done.push(Round { broadcast, singles, baseline, unbatched, effect });
    }
    let sent = node.sent;
    let tally = census(partner.ask(&Ask::CountPeers { sent: sent.to_each })?)?.tally;
    node.end(&stopped)?;
    let mut pids = partner.pids();
    pids.extend(stopped.pids().into_iter().filter(|pid| *pid != std::process::id()));
    Ok(Found { rounds: done, sent, tally, baseline_write_size: raw.gather.max(size), pids })
}

fn open_raw(partner: &mut Partner, peers: usize) -> Result<Writers, Failure> {
    let writers = match partner.ask(&Ask::OpenFan { count: peers })? {
        Answer::Listening { addr } => Writers::connect(addr, peers)?,
        other => return Err(unexpected(&other)),
    };
    expect_ready(partner.answer(PATIENCE)?)?;
    Ok(writers)
}

/// One raw run: messages to all per second.
fn flood(
    raw: &mut Writers,
    partner: &mut Partner,
    peers: usize,
    size: usize,
    duration: Duration,
) -> Result<f64, Failure> {
    expect_ready(partner.ask(&Ask::CountFan { size })?)?;
    let began = Instant::now();
    let sent = raw.flood(size, duration)?;
    let run = Run { tally: partner.tally(duration + PATIENCE)?, time: began.elapsed() };
    raw::check(&run, sent, peers)?;
    Ok(sent as f64 / run.time.as_secs_f64())
}

/// How much the raw writer gathers at its best, here and now.
fn best_gather(
    raw: &mut Writers,
    partner: &mut Partner,
    peers: usize,
    size: usize,
    slice: Duration,
) -> Result<usize, Failure> {
    let mut best = (0, 0.0);
    for gather in (0..3).flat_map(|_| GATHERS) {
        raw.gather = gather;
        let rate = flood(raw, partner, peers, size, slice)?;
        if rate > best.1 {
            best = (gather, rate);
        }
    }
    Ok(best.0)
}
