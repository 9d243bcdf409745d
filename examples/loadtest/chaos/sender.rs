//! The sending application: messages of all sizes and sorts to one other node, at its pace, until it is told to stop.
//!
//! Owns: the sequence numbers and the ledger of one destination. Threads: `send`, one for each destination, and
//! `outcomes`. Locks: none. Blocks on: room in the peer's queue, for a moment; its pace; at the end, the outcomes.
//! Upholds: each message is written down before it is given to the library, and sent once; what the library does not
//! take is written down as refused.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError, unbounded};
use threadwire::{Collector, PeerHandle};

use crate::chaos::choice::choose;
use crate::chaos::ledger::{Ledger, Line, What};
use crate::chaos::outcomes::{Outcomes, tag};
use crate::chaos::payload::{self, SHORTEST, Stamp, Stream};
use crate::control::start_thread;
use crate::failure::{Context, Failure};

/// How much is sent without a pause, in bytes: from, to.
const BURST: std::ops::Range<u64> = 16 << 10..1 << 20;
/// The shortest pause between bursts; and between messages, when no more bytes are left than small ones take.
const PAUSE: Duration = Duration::from_millis(10);
/// Outcomes that may be outstanding for one destination.
const OUTSTANDING: usize = 1 << 17;

/// What is sent to one node.
pub struct Sending {
    /// The node.
    pub peer: PeerHandle,
    /// Its number.
    pub to: u8,
    /// Which node this is.
    pub me: u8,
    /// Which of its processes.
    pub life: u16,
    /// Twice the same: for what is sent, and for what becomes of it.
    pub ledgers: (Ledger, Ledger),
    /// Decides sizes and sorts.
    pub random: fastrand::Rng,
    /// The pace.
    pub bytes_per_second: u64,
    /// When these are sent, only small messages follow, slowly.
    pub most_bytes: u64,
}

/// How many were sent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sent {
    /// Messages that the library took.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Sending {
    /// Sends until `stop` is closed, then waits for the outcome of everything.
    ///
    /// # Errors
    /// A ledger cannot be written, or some outcome does not become known.
    pub fn run(self, stop: &Receiver<()>) -> Result<Sent, Failure> {
        let Self { peer, to, me, life, ledgers: (mut ledger, ledger_of_outcomes), mut random, .. } = self;
        let (collector, batches) = Collector::new(OUTSTANDING);
        let (tell, watched) = unbounded();
        let outcomes = Outcomes { batches, stopped: stop.clone(), ledger: ledger_of_outcomes, me: (me, life), to };
        start_thread("outcomes", move || drop(tell.send(outcomes.watch())))?;
        let mut sent = Sent::default();
        let mut next: BTreeMap<Stream, u32> = BTreeMap::new();
        loop {
            let (burst, began) = (random.u64(BURST), Instant::now());
            let mut bytes = 0;
            while bytes < burst && !is_closed(stop) {
                let last = sent.bytes >= self.most_bytes;
                let length = if last { SHORTEST } else { payload::length(&mut random) };
                let (stream, options, brief) = choose(length, &mut random);
                let number = next.entry(stream).or_default();
                let stamp = Stamp { from: me, stream, life, sequence: *number };
                *number += 1;
                let (payload, digest) = payload::encode(stamp, length, &mut random);
                // In this ledger the node is the one at the other end.
                let what = if brief { What::Brief } else { What::Sent };
                let line = Line { what, stamp: Stamp { from: to, ..stamp }, digest };
                ledger.append(&line)?;
                bytes += length as u64;
                match peer.send_collected(payload, &options, &collector, tag(stamp)) {
                    Ok(()) => {
                        sent.messages += 1;
                        sent.bytes += length as u64;
                    }
                    Err(_) => ledger.append(&Line { what: What::Refused, ..line })?,
                }
                if last {
                    break;
                }
            }
            let due = Duration::from_micros(bytes * 1_000_000 / self.bytes_per_second.max(1)).max(PAUSE);
            match stop.recv_timeout(due.saturating_sub(began.elapsed())) {
                Err(RecvTimeoutError::Timeout) => {}
                _ => break,
            }
        }
        drop(collector);
        watched.recv().context("waiting for outcomes")?.map(|()| sent)
    }
}

/// Whether a channel that carries nothing is closed.
pub fn is_closed(stop: &Receiver<()>) -> bool {
    stop.try_recv() == Err(TryRecvError::Disconnected)
}
