//! What became of each message, from the counts of a link: one lane ends its messages in the order they were taken.
//!
//! Owns: the messages of one link that have no outcome yet. Threads: the one that watches. Locks: none.
//! Blocks on: nothing. Upholds: every count is an outcome of one message, written down once.

use std::collections::VecDeque;

use crossbeam_channel::Receiver;
use threadwire::PeerHandle;

use crate::chaos::ledger::{Ledger, Line, What};
use crate::failure::Failure;

/// The messages of one link.
pub struct Outcomes {
    peer: PeerHandle,
    ledger: Ledger,
    taken: Receiver<Line>,
    pending: VecDeque<Line>,
    /// Outcomes counted by the library, in the order they happened, and not written down yet.
    owed: VecDeque<(What, u64)>,
    seen: [u64; 3],
}

impl Outcomes {
    /// Of the messages that are told through `taken`, each once the library has taken it.
    pub fn new(peer: PeerHandle, ledger: Ledger, taken: Receiver<Line>) -> Self {
        Self { peer, ledger, taken, pending: VecDeque::new(), owed: VecDeque::new(), seen: [0; 3] }
    }

    /// Writes down what has become known.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn look(&mut self) -> Result<(), Failure> {
        let stats = self.peer.stats();
        // What a restart ends as unknown is older than what is acknowledged after it.
        let now = [(What::Unknown, stats.unknown), (What::Returned, stats.returned), (What::Acked, stats.acked)];
        for ((what, count), seen) in now.into_iter().zip(&mut self.seen) {
            self.owed.push_back((what, count - *seen));
            *seen = count;
        }
        self.pending.extend(self.taken.try_iter());
        while let Some((what, count)) = self.owed.front_mut() {
            if *count == 0 {
                self.owed.pop_front();
                continue;
            }
            let Some(line) = self.pending.pop_front() else { break };
            *count -= 1;
            self.ledger.append(&Line { what: *what, ..line })?;
        }
        Ok(())
    }

    /// Whether every message that was taken has an outcome; for when no more are sent.
    pub fn is_settled(&self) -> bool {
        self.pending.is_empty() && self.taken.is_empty()
    }
}
