//! The sending application: messages of all sizes to one other node, as fast as it is told to, until it is told to stop.
//!
//! Owns: the sequence numbers and the ledger of one destination. Threads: two for each destination, `send` and
//! `outcomes`. Locks: none. Blocks on: room in the peer's queue, for a moment; its pace.
//! Upholds: each message is written down before it is given to the library, and sent once; what the library does not
//! take is written down as refused.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use threadwire::PeerHandle;

use crate::chaos::ledger::{Ledger, Line, What};
use crate::chaos::outcomes::Outcomes;
use crate::chaos::payload::{self, Stamp, Stream};
use crate::failure::Failure;

/// How long a message waits for room before the application gives up on it.
const ROOM: Duration = Duration::from_millis(200);
/// How much is sent without a pause, in bytes: from, to.
const BURST: std::ops::Range<u64> = 16 << 10..1 << 20;
/// Between messages, when no more bytes are left to be sent than small ones take.
const SLOWLY: Duration = Duration::from_millis(10);
/// The longest of these.
const SMALL: usize = 64;
/// How often outcomes are looked at.
const LOOK: Duration = Duration::from_millis(4);
/// How long the last outcomes may take.
const SETTLE: Duration = Duration::from_secs(60);

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
    /// What is sent, and what becomes of it.
    pub ledgers: (Ledger, Ledger),
    /// Decides sizes and streams.
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
        let Self { peer, to, me, life, ledgers: (mut ledger, outcomes), mut random, bytes_per_second, most_bytes } =
            self;
        let (tell, taken) = unbounded();
        let mut outcomes = Outcomes::new(peer.clone(), outcomes, taken);
        let (ended, is_ended) = unbounded::<()>();
        let (failed, failure) = unbounded();
        crate::control::start_thread("outcomes", move || {
            if let Err(error) = watch(&mut outcomes, &is_ended) {
                let _ = failed.send(error);
            }
        })?;
        let mut sent = Sent::default();
        let mut next = [0u32; Stream::LANES as usize];
        loop {
            let (burst, began) = (random.u64(BURST), Instant::now());
            let mut bytes = 0;
            while bytes < burst && stop.is_empty() && !is_closed(stop) {
                let last = sent.bytes >= most_bytes;
                let length = if last { SMALL } else { payload::length(&mut random) };
                let stream = Stream { lane: 1, best_effort: false };
                let number = &mut next[usize::from(stream.lane)];
                let stamp = Stamp { from: me, stream, life, sequence: *number };
                *number += 1;
                let (payload, digest) = payload::encode(stamp, length, &mut random);
                // In this ledger the node is the one at the other end.
                let line = Line { what: What::Sent, stamp: Stamp { from: to, ..stamp }, digest };
                ledger.append(&line)?;
                bytes += payload.len() as u64;
                match give(&peer, payload, line, &tell) {
                    true => {
                        sent.messages += 1;
                        sent.bytes += length as u64;
                    }
                    false => ledger.append(&Line { what: What::Refused, ..line })?,
                }
                if last {
                    break;
                }
            }
            let due = Duration::from_micros(bytes * 1_000_000 / bytes_per_second.max(1)).max(SLOWLY);
            match stop.recv_timeout(due.saturating_sub(began.elapsed())) {
                Err(RecvTimeoutError::Timeout) => {}
                _ => break,
            }
        }
        drop((ended, tell));
        // Closed by the end of the thread.
        match failure.recv() {
            Ok(failure) => Err(failure),
            Err(_) => Ok(sent),
        }
    }
}

fn is_closed(stop: &Receiver<()>) -> bool {
    matches!(stop.try_recv(), Err(crossbeam_channel::TryRecvError::Disconnected))
}

/// Gives a message to the library; whether that took it.
fn give(peer: &PeerHandle, payload: Vec<u8>, line: Line, tell: &Sender<Line>) -> bool {
    peer.send_timeout(payload, ROOM).is_ok() && tell.send(line).is_ok()
}

/// Looks at outcomes until nothing is sent any more and all are known.
fn watch(outcomes: &mut Outcomes, ended: &Receiver<()>) -> Result<(), Failure> {
    let mut deadline = None;
    loop {
        outcomes.look()?;
        match ended.recv_timeout(LOOK) {
            Err(RecvTimeoutError::Disconnected) => {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + SETTLE);
                if outcomes.is_settled() {
                    return Ok(());
                }
                if Instant::now() > deadline {
                    return Err(Failure::new("the outcome of some messages does not become known"));
                }
                std::thread::sleep(LOOK);
            }
            _ => continue,
        }
    }
}
