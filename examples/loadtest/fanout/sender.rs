//! The node under test: all that the workload `fanout` asks of the library is here.
//!
//! Owns: the node and a handle on each of its peers. Threads: the measuring thread; the node's own. Locks: none.
//! Blocks on: sends, the peers' acknowledgements, what the processes of the peers answer.
//! Upholds: every message reaches every peer, or is counted: whom a broadcast finds full is sent to by a send that waits;
//! a run's time ends when the last peer has everything.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use threadwire::error::SendErrorKind;
use threadwire::wire::HEADER;
use threadwire::{Config, Message, Node, PeerHandle, PeerId, To};

use crate::baseline::PATIENCE;
use crate::checker::number;
use crate::control::{Answer, Ask, Partner, unexpected};
use crate::failure::{Context, Failure};
use crate::peers::{Cast, Census, Harm};

/// The network of the node and its peers.
const NETWORK: &str = "loadtest-fanout";
/// Memory that the configuration wants for each link.
const LINK_FLOOR: usize = 256 << 10;
/// How many runs with the peer that is stuck, and without it, a round has for its effect.
const TURNS: u32 = 2;
/// Bytes that may be under way to the peer that is to be stuck: fewer than the system holds for it while it stands still,
/// so that they are all written, and whatever follows waits for an acknowledgement that does not come.
const STUCK_WINDOW: u64 = 64 << 10;
/// Nobody is cut while this is measured.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// How the node sends to all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Broadcast,
    /// The peer that is stuck is among them.
    AmongStuck,
    Singles,
}

/// The node under test.
pub struct Sender {
    node: Node,
    peers: HashMap<PeerId, PeerHandle>,
    stuck: PeerHandle,
    /// Messages so far.
    pub sent: Sent,
}

/// Messages so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sent {
    /// To each of the peers.
    pub to_each: u64,
    /// Of a broadcast by a peer that was full for a moment.
    pub refused: u64,
    /// Broadcasts that the peer that is stuck was among.
    pub among_stuck: u64,
    /// Of these, refused by it.
    pub refused_by_stuck: u64,
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
    ///
    /// # Errors
    /// As [`Sender::run`].
    pub fn effect(&mut self, size: usize, duration: Duration) -> Result<f64, Failure> {
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
    ///
    /// # Errors
    /// A message was not taken, or is not acknowledged.
    pub fn run(&mut self, way: Way, size: usize, duration: Duration) -> Result<f64, Failure> {
        let to = if way == Way::AmongStuck { To::all() } else { To::all().except(self.stuck.id()) };
        let mut payload = vec![7; size];
        let (began, before) = (Instant::now(), self.sent.to_each);
        while self.sent.to_each == before || began.elapsed() < duration {
            number(&mut payload, self.sent.to_each);
            self.sent.to_each += 1;
            if way == Way::Singles {
                self.peers.values().try_for_each(|peer| peer.send(&payload[..])).context("sending")?;
                continue;
            }
            self.sent.among_stuck += u64::from(way == Way::AmongStuck);
            let broadcast = self.node.broadcast(&payload[..], &to);
            for (peer, reason) in broadcast.refusals() {
                match self.peers.get(&peer) {
                    _ if reason != SendErrorKind::Full => return Err(Failure::new(format!("{peer}: {reason}"))),
                    Some(peer) => {
                        self.sent.refused += 1;
                        peer.send(&payload[..]).context("sending to a peer that was full")?;
                    }
                    None => self.sent.refused_by_stuck += 1,
                }
            }
        }
        for peer in self.peers.values() {
            while peer.stats().acked < self.sent.to_each {
                if began.elapsed() > duration + PATIENCE {
                    return Err(Failure::new(format!("{peer:?} does not acknowledge: {:?}", peer.stats())));
                }
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        Ok((self.sent.to_each - before) as f64 / began.elapsed().as_secs_f64())
    }

    /// Lets the peer that was stuck go on, and waits until it takes messages again.
    ///
    /// # Errors
    /// It does not.
    pub fn thaw(&self, stopped: &Partner, size: usize) -> Result<(), Failure> {
        go_on(stopped)?;
        let sent = self.stuck.send_timeout(vec![7; size], PATIENCE);
        sent.context("sending to the peer that was stuck")
    }

    /// Lets the peer that was stuck go on, so that what waits for it goes out, and ends the node.
    ///
    /// # Errors
    /// The node did not end cleanly.
    pub fn end(self, stopped: &Partner) -> Result<(), Failure> {
        go_on(stopped)?;
        let end = self.node.shutdown(PATIENCE);
        if end.is_clean() { Ok(()) } else { Err(Failure::new(format!("the node did not end cleanly: {end:?}"))) }
    }
}

fn go_on(stopped: &Partner) -> Result<(), Failure> {
    kill_process(pid_of(stopped)?, Signal::CONT).context("letting the peer that was stuck go on")
}

/// What the peers of a process have come to; none of them may have failed.
///
/// # Errors
/// One has, or it is another answer.
pub fn census(answer: Answer) -> Result<Census, Failure> {
    match answer {
        Answer::Peers(census) if census.failed == 0 => Ok(census),
        Answer::Peers(census) => Err(Failure::new(census.first_failure.unwrap_or_default())),
        other => Err(unexpected(&other)),
    }
}

/// Starts the node and has all peers dial it; then the one of `stopped` stands still, and what is sent to it stays.
///
/// # Errors
/// One of them failed.
pub fn gather_peers(
    partner: &mut Partner,
    stopped: &mut Partner,
    (peers, size, harm): (usize, usize, Option<Harm>),
) -> Result<Sender, Failure> {
    let node = Sender::start(peers)?;
    let addr = node.local_addr().ok_or_else(|| Failure::new("the node does not listen"))?;
    let id = node.id().to_string();
    let dial = |partner: &mut Partner, cast: Cast| {
        let count = cast.count;
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
    let cast = |count| Cast::new(count, NETWORK, FOR_EVER);
    dial(partner, Cast { numbered: Some(size), harm, ..cast(peers) })?;
    let ids = connected(peers)?;
    dial(stopped, Cast { window: STUCK_WINDOW, ..cast(1) })?;
    let stuck = connected(peers + 1)?.into_iter().find(|id| !ids.contains(id));
    let stuck = stuck.ok_or_else(|| Failure::new("the peer that is to be stuck is not there"))?;
    let handle = |id| node.wait_connected(id, PATIENCE).context("a handle on a connected peer");
    let (stuck, peers) =
        (handle(stuck)?, ids.into_iter().map(|id| Ok((id, handle(id)?))).collect::<Result<_, Failure>>()?);

    kill_process(pid_of(stopped)?, Signal::STOP).context("stopping the process of the peer that is to be stuck")?;
    fill(&stuck, size)?;
    Ok(Sender { node, peers, stuck, sent: Sent::default() })
}

/// Fills what may be under way to a peer that stands still, and its queue: nothing leaves that any more then.
fn fill(stuck: &PeerHandle, size: usize) -> Result<(), Failure> {
    let (deadline, payload) = (Instant::now() + PATIENCE, vec![7; size]);
    loop {
        // No message more may be written, and one is taken that waits for it: none is taken behind that.
        let stats = stuck.stats();
        let moves_no_more =
            stats.unacked_bytes + HEADER + size > STUCK_WINDOW as usize && stats.kept_bytes > stats.unacked_bytes;
        let full = loop {
            if let Err(error) = stuck.try_send(&payload[..]) {
                break error.kind;
            }
        };
        match full {
            SendErrorKind::Full if moves_no_more => return Ok(()),
            SendErrorKind::Full if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
            SendErrorKind::Full => {
                return Err(Failure::new(format!("the peer that stands still takes more: {stats:?}")));
            }
            other => return Err(Failure::new(format!("filling the queue of the peer that stands still: {other}"))),
        }
    }
}

fn pid_of(partner: &Partner) -> Result<Pid, Failure> {
    let pid = partner.pids().last().and_then(|pid| Pid::from_raw(i32::try_from(*pid).ok()?));
    pid.ok_or_else(|| Failure::new("there is no process to stop"))
}
