//! The sending application: a message to each peer in turn, by its id, and what becomes of each.
//!
//! Owns: the sequences and the ledgers. Threads: `send`, `outcomes`, `events`. Locks: that of the redirects, a leaf.
//! Blocks on: its pace; outcomes; events.
//! Upholds: each message is written down before it is given to the library, and sent once; each outcome is one line.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use parking_lot::Mutex;
use threadwire::{Collector, Event, Node, OutcomeBatch, OverflowPolicy, PeerId, SendOptions};

use super::redirect::Redirects;
use crate::chaos::ledger::{self, Ledger, Line, What};
use crate::chaos::outcomes;
use crate::chaos::payload::{self, Mode, SHORTEST, Stamp, Stream};
use crate::control::start_thread;
use crate::failure::{Context, Failure};

/// Between two messages to the same peer.
const PACE: Duration = Duration::from_millis(10);
/// The longest message.
const LONGEST: usize = 2048;
/// Outcomes that may be outstanding.
const OUTSTANDING: usize = 1 << 20;
/// The one stream: normal, reliable.
const STREAM: Stream = Stream { lane: 1, mode: Mode::Reliable };

/// What flows.
pub struct Flow {
    /// Closed to stop it.
    stop: Option<Sender<()>>,
    ended: Receiver<Result<(), Failure>>,
}

impl Flow {
    /// Begins to send to all of these, who are numbered from 1.
    ///
    /// # Errors
    /// A ledger cannot be opened, or a thread not started.
    pub fn start(
        node: &Arc<Node>,
        peers: &[PeerId],
        folder: &Path,
        seed: u64,
        redirects: &Arc<Mutex<Redirects>>,
    ) -> Result<Self, Failure> {
        std::fs::create_dir_all(folder.join("node-0")).context("the sender's folder")?;
        let open = |peer: usize| Ledger::open(ledger::sent_by(folder, 0, 0, peer));
        let all = || (1..=peers.len()).map(open).collect::<Result<Vec<_>, _>>();
        let (collector, batches) = Collector::new(OUTSTANDING);
        let (stop, stopped) = bounded(0);
        let (end, ended) = unbounded();
        let mut sending = Sending {
            node: node.clone(),
            peers: peers.to_vec(),
            ledgers: all()?,
            collector,
            redirects: redirects.clone(),
            random: fastrand::Rng::with_seed(seed),
        };
        let tell = end.clone();
        let until = stopped.clone();
        start_thread("send", move || drop(tell.send(sending.run(&until))))?;
        let mut outcomes = Outcomes { batches, stopped, ledgers: all()?, redirects: redirects.clone() };
        let tell = end.clone();
        start_thread("outcomes", move || drop(tell.send(outcomes.run())))?;
        let (events, peers, redirects) = (node.events(), peers.to_vec(), redirects.clone());
        start_thread("events", move || {
            if let Err(failure) = watch(&events, &peers, &redirects) {
                let _ = end.send(Err(failure));
            }
        })?;
        Ok(Self { stop: Some(stop), ended })
    }

    /// Whether something went wrong so far.
    ///
    /// # Errors
    /// That.
    pub fn check(&self) -> Result<(), Failure> {
        self.ended.try_recv().unwrap_or(Ok(()))
    }

    /// Sends no more, and waits until the outcome of everything is known.
    ///
    /// # Errors
    /// It is not in time, or something went wrong before.
    pub fn settle(mut self) -> Result<(), Failure> {
        drop(self.stop.take());
        for _ in ["send", "outcomes"] {
            self.ended.recv_timeout(2 * outcomes::SETTLE).context("waiting for the last outcomes")??;
        }
        Ok(())
    }
}

struct Sending {
    node: Arc<Node>,
    peers: Vec<PeerId>,
    ledgers: Vec<Ledger>,
    collector: Collector,
    redirects: Arc<Mutex<Redirects>>,
    random: fastrand::Rng,
}

impl Sending {
    /// A message to each peer, again and again, until `stop` is closed.
    fn run(&mut self, stop: &Receiver<()>) -> Result<(), Failure> {
        // What a peer's queue does not take is written down as refused: it must not come to that.
        let options = SendOptions::new().overflow(OverflowPolicy::Fail);
        let handles: Vec<_> =
            self.peers.iter().map(|id| self.node.peer(*id)).collect::<Result<_, _>>().context("a peer")?;
        for sequence in 0.. {
            let began = Instant::now();
            for (index, handle) in handles.iter().enumerate() {
                let stamp = Stamp { from: 0, stream: STREAM, life: 0, sequence };
                let (payload, digest) = payload::encode(stamp, self.random.usize(SHORTEST..=LONGEST), &mut self.random);
                let peer = index + 1;
                let line = Line { what: What::Sent, stamp: Stamp { from: peer as u8, ..stamp }, digest };
                self.ledgers[index].append(&line)?;
                self.redirects.lock().sending(peer, sequence);
                let tag = (peer as u64) << 32 | u64::from(sequence);
                if handle.send_collected(payload, &options, &self.collector, tag).is_err() {
                    self.ledgers[index].append(&Line { what: What::Refused, ..line })?;
                }
            }
            match stop.recv_timeout(PACE.saturating_sub(began.elapsed())) {
                Err(RecvTimeoutError::Timeout) => {}
                _ => break,
            }
        }
        // The channel of outcomes closes with the last of them.
        self.collector = Collector::new(1).0;
        Ok(())
    }
}

struct Outcomes {
    batches: Receiver<OutcomeBatch>,
    stopped: Receiver<()>,
    ledgers: Vec<Ledger>,
    redirects: Arc<Mutex<Redirects>>,
}

impl Outcomes {
    fn run(&mut self) -> Result<(), Failure> {
        let Self { batches, stopped, ledgers, redirects } = self;
        outcomes::take_all(batches, stopped, |tag, outcome| {
            let (peer, sequence) = ((tag >> 32) as usize, tag as u32);
            let line = outcomes::line(Stamp { from: 0, stream: STREAM, life: 0, sequence }, peer as u8, outcome)?;
            if line.what == What::Acked {
                redirects.lock().acked(peer, sequence, Instant::now());
            }
            let ledger = peer.checked_sub(1).and_then(|at| ledgers.get_mut(at));
            ledger.ok_or_else(|| Failure::new("an outcome of nothing that was sent"))?.append(&line)
        })
    }
}

/// Notes where sessions lead, until the node has ended.
fn watch(events: &Receiver<Event>, peers: &[PeerId], redirects: &Mutex<Redirects>) -> Result<(), Failure> {
    let number = |id: &PeerId| peers.iter().position(|peer| peer == id).map(|index| index + 1);
    for event in events {
        match event {
            Event::Connected { peer, conn, remote_addr, .. } => {
                if let Some(peer) = number(&peer) {
                    redirects.lock().connected(peer, conn, remote_addr);
                }
            }
            Event::Disconnected { peer, conn, .. } => {
                if let Some(peer) = number(&peer) {
                    redirects.lock().disconnected(peer, conn);
                }
            }
            Event::Missed(count) => return Err(Failure::new(format!("{count} events were missed"))),
            _ => {}
        }
    }
    Ok(())
}
