//! The sender: every file to every other node, each message once, until the outcome of each is known.
//!
//! Owns: the sender's ledgers. Threads: one for each receiver, so that a slow link holds up no other one, and the
//! caller's, which watches. Locks: none.
//! Blocks on: `send` while a link is full; channels.
//! Upholds: nothing is sent twice; what a broken link had under way is the library's to deliver.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, never, select, tick};
use threadwire::{Event, PeerHandle, PeerId};

use crate::control::{Answer, Outcome, say};
use crate::failure::{Context, Failure};
use crate::files::{Source, SourceReader, pieces};
use crate::layout;
use crate::ledger::{Ledger, Sent};
use crate::message::{Header, encode};

/// How often progress is looked at.
const TICK: Duration = Duration::from_millis(10);
/// How long nothing may move before the run is given up.
const STALL: Duration = Duration::from_secs(90);

/// Another node, and the way to it.
pub struct Peer {
    /// Which of the nodes it is.
    pub index: usize,
    /// Who it is.
    pub id: PeerId,
    /// The way to it.
    pub handle: PeerHandle,
}

/// What is to be sent, to whom.
pub struct Sending<'a> {
    /// The receivers.
    pub peers: &'a [Peer],
    /// The files, in this order.
    pub sources: &'a [Source],
    /// The sender's folder.
    pub folder: &'a Path,
    /// The receiver whose link is going to be cut.
    pub victim: usize,
}

impl Sending<'_> {
    /// Sends everything and waits for the outcome of every message.
    pub fn run(&self, events: &Receiver<Event>) -> Result<Outcome, Failure> {
        let started = Instant::now();
        let accepted_bytes = AtomicU64::new(0);
        let (done, finished) = bounded(self.peers.len());
        let mut outcome = Outcome::default();
        thread::scope(|scope| {
            for peer in self.peers {
                let (done, accepted_bytes) = (done.clone(), &accepted_bytes);
                scope.spawn(move || {
                    // The channel has room for everybody and outlives the scope.
                    let _ = done.send(self.stream(peer, accepted_bytes));
                });
            }
            self.watch(events, &finished, &accepted_bytes, &mut outcome).inspect_err(|failure| {
                // Said here, because the other senders may block for as long as their sends may take.
                let _ = say(&Answer::Failed(failure.to_string()));
            })
        })?;
        outcome.millis = started.elapsed().as_millis() as u64;
        Ok(outcome)
    }

    /// Sends every file to one receiver.
    fn stream(&self, peer: &Peer, accepted_bytes: &AtomicU64) -> Result<(), Failure> {
        let path: PathBuf = layout::sent_ledger(self.folder, peer.index);
        let mut ledger = Ledger::create(path)?;
        let mut sequence = 0;
        for (file, source) in self.sources.iter().enumerate() {
            let mut reader = SourceReader::open(source)?;
            for (offset, length) in pieces(source.length) {
                let header = Header {
                    sequence,
                    file: file as u32,
                    path: source.name.clone(),
                    offset,
                    length: length as u32,
                    total: source.length,
                };
                let (payload, digest) = encode(&header, reader.next(length)?)?;
                let sent = peer.handle.send(payload);
                sent.context(|| format!("sending message {sequence} to node {}", peer.index))?;
                ledger.append(&Sent { to: peer.id, sequence, digest })?;
                accepted_bytes.fetch_add(length as u64, Ordering::Relaxed);
                sequence += 1;
            }
        }
        ledger.finish()
    }

    /// Follows the senders and the links until every message has an outcome.
    fn watch(
        &self,
        events: &Receiver<Event>,
        finished: &Receiver<Result<(), Failure>>,
        accepted_bytes: &AtomicU64,
        outcome: &mut Outcome,
    ) -> Result<(), Failure> {
        let ticker = tick(TICK);
        let mut events = events.clone();
        let mut running = self.peers.len();
        let mut moved = Instant::now();
        let mut before = (0, 0);
        loop {
            select! {
                recv(finished) -> result => {
                    result.context(|| "a sender ended without a word".to_owned())??;
                    running -= 1;
                }
                recv(events) -> event => match event {
                    Ok(event) => self.note(&event, outcome),
                    Err(_) => events = never(),
                },
                recv(ticker) -> _ => {}
            }
            let open = self.count(outcome);
            let now = (accepted_bytes.load(Ordering::Relaxed), outcome.acked);
            if now != before {
                (before, moved) = (now, Instant::now());
                say(&Answer::Progress(now.0))?;
            }
            if running == 0 && open == 0 {
                // The cut happened before the last outcome, so its event is there.
                events.try_iter().for_each(|event| self.note(&event, outcome));
                return Ok(());
            }
            if moved.elapsed() > STALL {
                return Err(Failure::new(format!(
                    "nothing moved for {} s; {running} senders are not through, {open} messages have no outcome",
                    STALL.as_secs()
                )));
            }
        }
    }

    /// Adds up the links' counters; says how many messages have no outcome yet.
    fn count(&self, outcome: &mut Outcome) -> u64 {
        *outcome = Outcome { unacked_bytes_at_cut: outcome.unacked_bytes_at_cut, ..Outcome::default() };
        for peer in self.peers {
            let stats = peer.handle.stats();
            outcome.accepted += stats.accepted;
            outcome.acked += stats.acked;
            outcome.returned += stats.returned;
            outcome.unknown += stats.unknown;
            if peer.index == self.victim {
                outcome.reconnects = stats.sessions.saturating_sub(1);
            }
        }
        outcome.accepted - (outcome.acked + outcome.returned + outcome.unknown).min(outcome.accepted)
    }

    fn note(&self, event: &Event, outcome: &mut Outcome) {
        let victim = self.peers.iter().find(|peer| peer.index == self.victim).map(|peer| peer.id);
        match event {
            Event::Disconnected { peer, reason, unacked_bytes, .. } => {
                log::info!("disconnected from {}: {reason}; {unacked_bytes} bytes unacknowledged", peer.short());
                if victim == Some(*peer) {
                    outcome.unacked_bytes_at_cut = outcome.unacked_bytes_at_cut.max(*unacked_bytes as u64);
                }
            }
            other => log::info!("{other:?}"),
        }
    }
}
