//! `fanout`: one message to many peers, by broadcast, by single sends, and by raw sockets.
//!
//! Owns: the sending node and the raw writers. Threads: the measuring thread; the node's own. Locks: none.
//! Blocks on: sends, the peers' acknowledgements, answers of the other ends.
//! Upholds: every message reaches every peer, or is counted: whom a broadcast finds full is sent to by a send that waits;
//! a run's time ends when the last peer has everything; a ratio is formed inside its round.
//!
//! ```text
//!   this process:    the node  ----> process 1: all the peers       (one thread, one poll)
//!                        `---------> process 2: one more, stopped   (its socket and its queue are full)
//!   this process:    raw writers --> process 1: the raw readers     (one thread, one poll)
//! ```

mod raw;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use clap::builder::RangedU64ValueParser;
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use threadwire::error::SendErrorKind;
use threadwire::{Config, Message, Node, PeerHandle, PeerId, To};

use crate::baseline::{PATIENCE, Run, expect_ready};
use crate::checker::{NUMBER, number};
use crate::control::{Answer, Ask, Partner, unexpected};
use crate::failure::{Context, Failure};
use crate::peers::{Cast, Census};
use crate::report;
use crate::stats::{Spread, spread};

pub use raw::Readers;
use raw::Writers;

/// The network of the node and its peers.
const NETWORK: &str = "loadtest-fanout";
/// Memory that the configuration wants for each link.
const LINK_FLOOR: usize = 256 << 10;
/// What the raw writer may gather.
const GATHERS: [usize; 4] = [1, 16 << 10, 64 << 10, 256 << 10];
/// How many runs with the peer that is stuck, and without it, a round has for its effect.
const TURNS: u32 = 2;
/// Nobody is cut while this is measured.
const FOR_EVER: Duration = Duration::from_secs(3600);

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
    /// Print one line of JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// The line for programs. Rates are of messages to all peers.
#[derive(Debug, Serialize)]
struct Report {
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
    /// Messages to peers, by broadcasts and single sends; those that did not arrive.
    sent: u64,
    lost: u64,
    /// Of a broadcast by a peer that was full for a moment: sent by a send that waits.
    refused: u64,
    /// By the peer that is stuck: all of them.
    refused_by_stuck: u64,
    pids: Vec<u32>,
    rounds: usize,
    seconds: f64,
}

/// How the node sends to all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Broadcast,
    /// The peer that is stuck is among them.
    AmongStuck,
    Singles,
}

/// The node under test.
struct Sender {
    node: Node,
    peers: HashMap<PeerId, PeerHandle>,
    stuck: PeerHandle,
    /// Messages to each of the peers so far.
    sent: u64,
    refused: u64,
    refused_by_stuck: u64,
}

impl Sender {
    fn start(peers: usize) -> Result<Node, Failure> {
        let mut config = Config::loopback().plain();
        config.network = NETWORK.to_owned();
        (config.idle_timeout, config.write_timeout) = (FOR_EVER, FOR_EVER);
        // The system, too, would give up a peer that takes nothing for so long.
        config.tcp.user_timeout = None;
        config.inbound = peers + 1;
        config.half_open = config.half_open.max(peers);
        config.memory_bytes = config.memory_bytes.max((peers + 1 + config.outbound) * LINK_FLOOR);
        let node = Node::builder().config(config).handler(|peer: &PeerHandle, message: Message<'_>| {
            log::error!("{peer:?} sent {} bytes where none were due", message.payload().len());
        });
        node.start().context("starting the node under test")
    }

    /// Broadcasts for `duration` without the peer that is stuck and as long with it, in runs that take turns, so that
    /// whatever else the machine does meets both alike: by how much of their rate the others are slower with it.
    fn effect(&mut self, size: usize, duration: Duration) -> Result<f64, Failure> {
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for turn in 0..TURNS {
            // Without and with, then with and without: neither is always the first.
            let order = [Way::Broadcast, Way::AmongStuck];
            for way in if turn % 2 == 0 { order } else { [order[1], order[0]] } {
                let rate = self.run(way, size, duration / TURNS)?;
                if way == Way::Broadcast { without.push(rate) } else { with.push(rate) }
            }
        }
        let sum = |rates: &[f64]| rates.iter().sum::<f64>();
        Ok(1.0 - sum(&with) / sum(&without))
    }

    /// Sends messages of `size` bytes to all for `duration`; how many per second, each until the last peer has it.
    fn run(&mut self, way: Way, size: usize, duration: Duration) -> Result<f64, Failure> {
        let to = if way == Way::AmongStuck { To::all() } else { To::all().except(self.stuck.id()) };
        let mut payload = vec![7; size];
        let (began, before) = (Instant::now(), self.sent);
        while self.sent == before || began.elapsed() < duration {
            number(&mut payload, self.sent);
            self.sent += 1;
            if way == Way::Singles {
                self.peers.values().try_for_each(|peer| peer.send(&payload[..])).context("sending")?;
                continue;
            }
            let broadcast = self.node.broadcast(&payload[..], &to);
            for (peer, reason) in broadcast.refusals() {
                match self.peers.get(&peer) {
                    _ if reason != SendErrorKind::Full => return Err(Failure::new(format!("{peer}: {reason}"))),
                    Some(peer) => {
                        self.refused += 1;
                        peer.send(&payload[..]).context("sending to a peer that was full")?;
                    }
                    None => self.refused_by_stuck += 1,
                }
            }
        }
        for peer in self.peers.values() {
            while peer.stats().acked < self.sent {
                if began.elapsed() > duration + PATIENCE {
                    return Err(Failure::new(format!("{peer:?} does not acknowledge: {:?}", peer.stats())));
                }
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        Ok((self.sent - before) as f64 / began.elapsed().as_secs_f64())
    }
}

/// Measures and reports; false when a message did not arrive.
///
/// # Errors
/// One of the ends failed.
pub fn run(options: &Options) -> Result<bool, Failure> {
    let Options { peers, size, rounds, json, .. } = *options;
    let duration = Duration::from_secs_f64(options.seconds);
    let (mut partner, mut stopped) = (Partner::process()?, Partner::process()?);
    let mut raw = open_raw(&mut partner, peers)?;
    let mut node = gather_peers(&mut partner, &mut stopped, peers, size)?;

    let slice = duration / 10;
    raw.gather = best_gather(&mut raw, &mut partner, peers, size, slice)?;
    for way in [Way::Broadcast, Way::Singles, Way::AmongStuck] {
        node.run(way, size, slice)?;
    }
    let mut runs = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let baseline = flood(&mut raw, &mut partner, peers, size, duration)?;
        let gather = std::mem::replace(&mut raw.gather, 1);
        let at_once = flood(&mut raw, &mut partner, peers, size, duration)?;
        raw.gather = gather;
        let broadcast = node.run(Way::Broadcast, size, duration)?;
        let effect = node.effect(size, duration)?;
        let singles = node.run(Way::Singles, size, duration)?;
        runs.push([broadcast, singles, baseline, effect, at_once]);
    }
    let arrived = census(partner.ask(&Ask::CountPeers)?)?.seen.messages;
    let sent = node.sent * peers as u64;
    // What waits for it goes out now, and nothing is left when the node ends.
    kill_process(pid_of(&stopped)?, Signal::CONT).context("letting the peer that was stuck go on")?;
    let end = node.node.shutdown(PATIENCE);
    if !end.is_clean() {
        return Err(Failure::new(format!("the node did not end cleanly: {end:?}")));
    }

    let of =
        |pick: fn(&[f64; 5]) -> f64| spread(runs.iter().map(pick)).ok_or_else(|| Failure::new("no rounds were run"));
    let ratio: Spread = of(|[broadcast, _, baseline, ..]| broadcast / baseline)?;
    let effect: Spread = of(|[_, _, _, effect, _]| *effect)?;
    let mut pids = partner.pids();
    pids.extend(stopped.pids().into_iter().filter(|pid| *pid != std::process::id()));
    let report = Report {
        workload: "fanout",
        peers,
        size,
        broadcasts_per_s: of(|run| run[0])?.median,
        ratio_to_single: of(|[broadcast, singles, ..]| broadcast / singles)?.median,
        ratio_to_baseline: ratio.median,
        ratio_q1: ratio.q1,
        ratio_q3: ratio.q3,
        slow_peer_effect: effect.median,
        slow_peer_effect_q1: effect.q1,
        slow_peer_effect_q3: effect.q3,
        singles_per_s: of(|run| run[1])?.median,
        ratio_to_unbatched: of(|[broadcast, _, _, _, at_once]| broadcast / at_once)?.median,
        unbatched_per_s: of(|run| run[4])?.median,
        baseline_per_s: of(|run| run[2])?.median,
        baseline_write_size: raw.gather.max(size),
        sent,
        lost: sent.saturating_sub(arrived),
        refused: node.refused,
        refused_by_stuck: node.refused_by_stuck,
        pids,
        rounds,
        seconds: duration.as_secs_f64(),
    };
    if json {
        report::json(&report)?;
    } else {
        show(&report)?;
    }
    Ok(arrived == sent)
}

fn census(answer: Answer) -> Result<Census, Failure> {
    match answer {
        Answer::Peers(census) if census.failed == 0 => Ok(census),
        Answer::Peers(census) => Err(Failure::new(census.first_failure.unwrap_or_default())),
        other => Err(unexpected(&other)),
    }
}

/// Starts the node and has all peers dial it; then the one of `stopped` stands still, and what is sent to it stays.
fn gather_peers(partner: &mut Partner, stopped: &mut Partner, peers: usize, size: usize) -> Result<Sender, Failure> {
    let node = Sender::start(peers)?;
    let addr = node.local_addr().ok_or_else(|| Failure::new("the node does not listen"))?;
    let id = node.id().to_string();
    let dial = |partner: &mut Partner, count| {
        let heartbeat_ms = FOR_EVER.as_millis() as u64;
        let cast = Cast { count, network: NETWORK.to_owned(), heartbeat_ms, hidden: 0, mute: 0, prompt: false };
        census(partner.ask(&Ask::MakePeers(cast))?)?;
        let ask = Ask::DialPeers { id: id.clone(), addr, at_once: 64 };
        let attached = census(partner.ask(&ask)?)?.attached;
        if attached == count { Ok(()) } else { Err(Failure::new(format!("{attached} of {count} peers connected"))) }
    };
    let connected = |count| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ids: Vec<PeerId> = node.sessions().iter().filter_map(|session| session.peer).collect();
            match ids.len() {
                _ if ids.len() == count => return Ok(ids),
                found if Instant::now() > deadline => {
                    return Err(Failure::new(format!("{found} of {count} peers are connected")));
                }
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    };
    dial(partner, peers)?;
    let ids = connected(peers)?;
    dial(stopped, 1)?;
    let stuck = connected(peers + 1)?.into_iter().find(|id| !ids.contains(id));
    let stuck = stuck.ok_or_else(|| Failure::new("the peer that is to be stuck is not there"))?;
    let handle = |id| node.wait_connected(id, PATIENCE).context("a handle on a connected peer");
    let (stuck, peers) =
        (handle(stuck)?, ids.into_iter().map(|id| Ok((id, handle(id)?))).collect::<Result<_, Failure>>()?);

    kill_process(pid_of(stopped)?, Signal::STOP).context("stopping the process of the peer that is to be stuck")?;
    let deadline = Instant::now() + PATIENCE;
    let payload = vec![7; size];
    loop {
        let mut more = false;
        while stuck.try_send(&payload[..]).is_ok() {
            more = true;
        }
        std::thread::sleep(Duration::from_millis(50));
        if !more {
            break;
        }
        if Instant::now() > deadline {
            return Err(Failure::new("the queue of the peer that stands still is never full"));
        }
    }
    Ok(Sender { node, peers, stuck, sent: 0, refused: 0, refused_by_stuck: 0 })
}

fn pid_of(partner: &Partner) -> Result<Pid, Failure> {
    let pid = partner.pids().last().and_then(|pid| Pid::from_raw(i32::try_from(*pid).ok()?));
    pid.ok_or_else(|| Failure::new("there is no process to stop"))
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

fn show(report: &Report) -> Result<(), Failure> {
    let line = |name: &str, rate: f64, more: String| format!("  {name:<14}{:>12}/s   {more}", report::scaled(rate));
    let size = report::bytes(report.size);
    report::lines(&[
        format!("fanout, messages of {size} to {} peers, rounds: {}", report.peers, report.rounds),
        line(
            "broadcast",
            report.broadcasts_per_s,
            format!("{} times a peer was full for a moment, {} lost", report.refused, report.lost),
        ),
        line("single sends", report.singles_per_s, format!("broadcast / single {:.2}", report.ratio_to_single)),
        line(
            "raw TCP",
            report.baseline_per_s,
            format!(
                "broadcast / raw {:.2} ({:.2} to {:.2}), writes of {}",
                report.ratio_to_baseline,
                report.ratio_q1,
                report.ratio_q3,
                report::bytes(report.baseline_write_size)
            ),
        ),
        line(
            "raw, at once",
            report.unbatched_per_s,
            format!("broadcast / raw {:.2}, a write for each message", report.ratio_to_unbatched),
        ),
        format!("  one peer stuck: the others are {:.1} % slower", 100.0 * report.slow_peer_effect),
    ])
}
