//! The receiving application: it writes down each message it is handed, in the handler, before the handler returns.
//!
//! Owns: one ledger for each other node. Threads: the handlers', one for each peer at a time. Locks: one for each
//! ledger, one for the sabotage; neither inside the other. Blocks on: the file system.
//! Upholds: when the library acknowledges a message, its line is with the system; a message that was not written down
//! ends the process, and is not acknowledged.

use std::path::PathBuf;
use std::sync::OnceLock;

use parking_lot::Mutex;
use threadwire::{Message, PeerId};

use crate::chaos::control::{Answer, Begin, Neighbour};
use crate::chaos::ledger::{self, Ledger, Line, What};
use crate::chaos::payload::{self, Found, Mode, Stamp, Stream};
use crate::chaos::sabotage::Sabotage;
use crate::failure::Failure;
use crate::report;

/// What stands for a stamp that cannot be read; no process gets that far.
const UNREADABLE: Stamp =
    Stamp { from: 0, stream: Stream { lane: 0, mode: Mode::Reliable }, life: u16::MAX, sequence: u32::MAX };

/// The receiving half of a node's application.
#[derive(Debug)]
pub struct Recorder {
    folder: PathBuf,
    index: u8,
    life: u16,
    inbound: OnceLock<Vec<(PeerId, Inbound)>>,
    sabotage: Mutex<Option<Sabotage>>,
}

/// What comes from one node.
#[derive(Debug)]
struct Inbound {
    from: u8,
    ledger: Mutex<(Ledger, Option<Line>)>,
}

impl Recorder {
    /// Of one process of a node.
    pub fn new(begin: &Begin) -> Self {
        let Begin { index, life, ref folder, .. } = *begin;
        Self { folder: folder.clone(), index, life, inbound: OnceLock::new(), sabotage: Mutex::default() }
    }

    /// Takes messages of these nodes from now on.
    ///
    /// # Errors
    /// A ledger cannot be opened.
    pub fn open(&self, neighbours: &[Option<Neighbour>]) -> Result<(), Failure> {
        let mut inbound = Vec::new();
        for (from, neighbour) in neighbours.iter().enumerate() {
            let Some(neighbour) = neighbour else { continue };
            let path = ledger::received_by(&self.folder, self.index.into(), self.life, from);
            let ledger = Mutex::new((Ledger::open(path)?, None));
            inbound.push((neighbour.id, Inbound { from: from as u8, ledger }));
        }
        self.inbound.set(inbound).map_err(|_| Failure::new("this node has its neighbours already"))
    }

    /// Harms the next reliable message, and says so to the parent.
    pub fn sabotage(&self, sabotage: Sabotage) {
        *self.sabotage.lock() = Some(sabotage);
    }

    /// Takes one message; the handler.
    pub fn take(&self, message: &Message<'_>) {
        if let Err(failure) = self.record(message) {
            // Returning would acknowledge it, and a panic would reject it: neither is true.
            let _ = report::json(&Answer::Failed(failure.to_string()));
            std::process::exit(1);
        }
    }

    fn record(&self, message: &Message<'_>) -> Result<(), Failure> {
        let known = self.inbound.get().into_iter().flatten().find(|(id, _)| *id == message.from());
        let Some((_, inbound)) = known else { return Err(Failure::new("a message of nobody's")) };
        let line = |payload: &[u8]| inbound.line(payload, message.possible_repeat());
        let honest = line(message.payload());
        let wish = if honest.stamp.stream.mode != Mode::Reliable || message.possible_repeat() {
            None
        } else {
            self.sabotage.lock().take()
        };
        let mut guard = inbound.ledger.lock();
        let (ledger, held) = &mut *guard;
        match wish {
            Some(Sabotage::Drop) => {}
            Some(Sabotage::Dup) => {
                ledger.append(&honest)?;
                ledger.append(&honest)?;
            }
            Some(Sabotage::Swap) => {
                *held = Some(honest);
                return Ok(());
            }
            Some(Sabotage::Corrupt) => {
                let mut payload = message.payload().to_vec();
                if let Some(last) = payload.last_mut() {
                    *last ^= 1;
                }
                ledger.append(&line(&payload))?;
            }
            None => {
                ledger.append(&honest)?;
                let Some(first) = held.take_if(|held| held.stamp.stream == honest.stamp.stream) else { return Ok(()) };
                ledger.append(&first)?;
            }
        }
        report::json(&Answer::Sabotaged)
    }
}

impl Inbound {
    /// What is to be written down of a message.
    fn line(&self, payload: &[u8], possible_repeat: bool) -> Line {
        let Found { stamp, digest, intact } = payload::decode(payload);
        // Whose message it is, the library has said too.
        let stamp = stamp.filter(|stamp| stamp.from == self.from);
        let what = match stamp {
            Some(_) if !intact => What::Damaged,
            Some(_) if possible_repeat => What::Repeat,
            Some(_) => What::Taken,
            None => What::Damaged,
        };
        Line { what, stamp: stamp.unwrap_or(UNREADABLE), digest }
    }
}
