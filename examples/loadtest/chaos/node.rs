//! A node's process: it links with all others, receives, and sends to all others until it is told to stop.
//!
//! Owns: the node. Threads: the main one, which obeys; `events`; those of the senders. Locks: none.
//! Blocks on: orders; at the end, the outcomes and the node's shutdown.
//! Upholds: whatever happens to it, what its application has seen is in its ledgers.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use threadwire::error::{CloseReason, DisconnectReason};
use threadwire::{Config, Event, Node, PeerHandle};

use crate::chaos::control::{Answer, Begin, Neighbour, Order, PhaseSums, Settled, die_with_parent};
use crate::chaos::ledger::{self, Ledger};
use crate::chaos::recorder::Recorder;
use crate::chaos::sender::{Sending, Sent};
use crate::control::{Line, start_thread};
use crate::failure::{Context, Failure};
use crate::report;

/// The longest pause between dials.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// How long a node may take to shut down.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// The node's process.
///
/// # Errors
/// Anything that is not the parent's doing.
pub fn run(line: &Line) -> Result<(), Failure> {
    die_with_parent();
    let Some(Order::Begin(begin)) = line.receive(None)? else { return Err(out_of_turn()) };
    let recorder = Arc::new(Recorder::new(&begin));
    let handler = Arc::clone(&recorder);
    let started = Node::builder().config(config(&begin)).handler(move |_, message| handler.take(&message)).start();
    let node = started.context("starting the node")?;
    let addr = node.local_addr().ok_or_else(|| Failure::new("the node does not listen"))?;
    report::json(&Answer::Ready { id: node.id(), addr })?;
    tell_refusals(&node)?;

    let mut senders = None;
    while let Some(order) = line.receive(None)? {
        match order {
            Order::Link { neighbours, bytes_per_second, most_bytes } => {
                recorder.open(&neighbours)?;
                senders = Some(Senders::start(&node, &begin, &neighbours, bytes_per_second, most_bytes)?);
                report::json(&Answer::Linked)?;
            }
            Order::Sabotage(sabotage) => recorder.sabotage(sabotage),
            Order::Settle => {
                let senders = senders.take().ok_or_else(out_of_turn)?;
                report::json(&Answer::Settled(senders.settle()?))?;
            }
            Order::Finish => {
                let left = node.shutdown(SHUTDOWN);
                if !left.threads.is_empty() {
                    return Err(Failure::new(format!("the node's shutdown left threads: {}", left.threads.join(", "))));
                }
                let phases = PhaseSums::of(&node.metrics().phases);
                return report::json(&Answer::Ended(Box::new(phases)));
            }
            _ => return Err(out_of_turn()),
        }
    }
    Ok(())
}

/// Tells the parent of each session that this node ended because of what came: nothing but altered bytes may do that.
fn tell_refusals(node: &Node) -> Result<(), Failure> {
    let events = node.events();
    start_thread("events", move || {
        // Ends with the node.
        for event in events {
            let Event::Disconnected { reason, .. } = event else { continue };
            let refused = matches!(
                reason,
                DisconnectReason::Local(CloseReason::ProtocolError) | DisconnectReason::Lost(ErrorKind::InvalidData)
            );
            if refused && report::json(&Answer::Refused).is_err() {
                return;
            }
        }
    })
}

fn out_of_turn() -> Failure {
    Failure::new("this order is not for now")
}

fn config(begin: &Begin) -> Config {
    // Over plain connections the proxy cuts inside frames, over TLS inside records.
    let mut config = if begin.secure { Config::loopback() } else { Config::loopback().plain() };
    config.network = "loadtest-chaos".to_owned();
    config.data_dir = Some(begin.folder.join(format!("node-{}", begin.index)).join("identity"));
    config.backoff.base = Duration::from_millis(50);
    config.backoff.cap = LONGEST_PAUSE;
    config.stable_after = Duration::from_millis(200);
    config.heartbeat = Duration::from_millis(500);
    config.idle_timeout = Duration::from_secs(2);
    (config.slow_after, config.write_timeout) = (Duration::from_secs(1), Duration::from_secs(2));
    config.handshake_timeout = Duration::from_secs(2);
    config.connect_timeout = Duration::from_secs(2);
    // Small, so that what waits, what is kept and what is refused all happen.
    config.queue_bytes = 2 << 20;
    config.window_bytes = 1 << 20;
    if begin.no_resume {
        // Over before anybody dials again.
        config.resume_window = Duration::from_millis(1);
        config.backoff.base = LONGEST_PAUSE;
    }
    config
}

/// The threads that send.
struct Senders {
    /// Closed to stop them.
    go_on: Sender<()>,
    ended: Receiver<Result<Sent, Failure>>,
    peers: Vec<PeerHandle>,
}

impl Senders {
    fn start(
        node: &Node,
        begin: &Begin,
        neighbours: &[Option<Neighbour>],
        bytes_per_second: u64,
        most_bytes: u64,
    ) -> Result<Self, Failure> {
        let Begin { index, life, ref folder, seed, .. } = *begin;
        let ((go_on, stop), (tell, ended)) = (unbounded(), unbounded());
        let mut peers = Vec::new();
        for (to, neighbour) in neighbours.iter().enumerate() {
            let Some(Neighbour { id, dial }) = *neighbour else { continue };
            // Without an address it is the other side that dials.
            let peer = node.add_peer(id, dial).context("adding a peer")?;
            peers.push(peer.clone());
            let path = ledger::sent_by(folder, index.into(), life, to);
            let sending = Sending {
                peer,
                to: to as u8,
                me: index,
                life,
                ledgers: (Ledger::open(path.clone())?, Ledger::open(path)?),
                random: fastrand::Rng::with_seed(seed ^ (u64::from(life) << 16 | u64::from(index) << 8 | to as u64)),
                bytes_per_second,
                most_bytes,
            };
            let (stop, tell) = (stop.clone(), tell.clone());
            start_thread("send", move || {
                let sent = sending.run(&stop);
                if let Err(failure) = &sent {
                    // Said here: whoever waits for the result may wait for something else before.
                    let _ = report::json(&Answer::Failed(failure.to_string()));
                }
                let _ = tell.send(sent);
            })?;
        }
        Ok(Self { go_on, ended, peers })
    }

    /// Stops them, and waits until the outcome of everything is known.
    fn settle(self) -> Result<Settled, Failure> {
        let Self { go_on, ended, peers } = self;
        drop(go_on);
        let mut settled = Settled::default();
        for _ in 0..peers.len() {
            let sent = ended.recv().context("a sender ended without a word")??;
            settled.recorded += sent.messages;
            settled.bytes += sent.bytes;
        }
        for peer in peers {
            let stats = peer.stats();
            settled.accepted += stats.accepted;
            settled.known += stats.acked + stats.returned + stats.unknown + stats.written;
        }
        Ok(settled)
    }
}
