//! What a peer was handed of numbered messages, held against what was sent to it.
//!
//! Owns: the books of one peer. Threads: the host's. Locks: none. Blocks on: nothing.
//! Upholds: a message counts by the number and the length that it came with; harm that was asked for is done once.

use serde::{Deserialize, Serialize};

use crate::checker::{Checker, Tally};

/// Harm to a message on purpose, behind everything that is measured: the proof that the books would show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Harm {
    /// One message is forgotten.
    Drop,
    /// One message is taken twice.
    Dup,
}

/// The books of one peer.
#[derive(Debug)]
pub struct Books {
    checker: Checker,
    harm: Option<Harm>,
}

impl Books {
    /// For messages of `size` bytes, of which one is to be harmed.
    pub fn new(size: usize, harm: Option<Harm>) -> Self {
        Self { checker: Checker::new(size), harm }
    }

    /// Takes what came.
    pub fn take(&mut self, payload: &[u8]) {
        match self.harm.take() {
            None => {}
            Some(Harm::Drop) => return,
            Some(Harm::Dup) => drop(self.checker.take(payload)),
        }
        self.checker.take(payload);
    }

    /// The result, given that the numbers below `sent` were sent.
    pub fn tally(&self, sent: u64) -> Tally {
        self.checker.tally(sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::number;

    #[test]
    fn harm_is_done_to_one_message_and_shows() {
        let tally = |harm| {
            let mut books = Books::new(64, harm);
            for sequence in 0..3 {
                let mut message = [7; 64];
                number(&mut message, sequence);
                books.take(&message);
            }
            books.tally(3)
        };
        assert_eq!(tally(None), Tally { received: 3, ..Tally::default() });
        assert_eq!(tally(Some(Harm::Drop)), Tally { received: 2, lost: 1, ..Tally::default() });
        assert_eq!(tally(Some(Harm::Dup)), Tally { received: 3, duplicated: 1, ..Tally::default() });
    }
}
