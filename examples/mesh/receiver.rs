//! A receiver: what comes goes into the ledger and into the folder, until the node has shut down.
//!
//! Owns: its ledger and its folder. Threads: one, in a node's process. Locks: none.
//! Blocks on: `recv_timeout`, the file system.
//! Upholds: each message that the library hands over is recorded once, whatever is in it.

use std::path::Path;
use std::time::Duration;

use threadwire::Node;
use threadwire::error::RecvError;

use crate::control::Tally;
use crate::failure::{Context, Failure};
use crate::files::{Store, safe_path};
use crate::layout;
use crate::ledger::{Delivered, Ledger};
use crate::message::decode;
use crate::sabotage::{Delivery, Plan, Saboteur};

/// Longest single wait; nothing depends on its length, because the node's end ends the wait.
const WAIT: Duration = Duration::from_secs(60);

/// A receiver's ledger, folder and counters.
pub struct Receiver {
    books: Books,
    saboteur: Saboteur,
}

/// What a message is written to.
struct Books {
    ledger: Ledger,
    store: Store,
    tally: Tally,
}

impl Receiver {
    /// Starts the ledger and the folder.
    pub fn create(folder: &Path, sabotage: Option<Plan>) -> Result<Self, Failure> {
        let store = Store::create(layout::files(folder))?;
        let ledger = Ledger::create(layout::received_ledger(folder))?;
        let books = Books { ledger, store, tally: Tally::default() };
        Ok(Self { books, saboteur: Saboteur::new(sabotage) })
    }

    /// Takes messages until the node has shut down and everything it had received is taken.
    pub fn run(mut self, node: &Node) -> Result<Tally, Failure> {
        loop {
            let message = match node.recv_timeout(WAIT) {
                Ok(message) => message,
                Err(RecvError::TimedOut) => continue,
                Err(RecvError::ShutDown) => break,
                Err(error) => return Err(error).context(|| "receiving".to_owned()),
            };
            let delivery = Delivery {
                from: message.from(),
                payload: message.payload(),
                possible_repeat: message.possible_repeat(),
            };
            self.saboteur.pass(delivery, |delivery| self.books.take(delivery))?;
        }
        self.books.ledger.finish()?;
        Ok(Tally { sabotaged: self.saboteur.done(), ..self.books.tally })
    }
}

impl Books {
    fn take(&mut self, delivery: Delivery<'_>) -> Result<(), Failure> {
        let received = decode(delivery.payload);
        self.ledger.append(&Delivered {
            from: delivery.from,
            sequence: received.piece.as_ref().ok().map(|piece| piece.header.sequence),
            digest: received.computed,
            intact: received.intact,
            possible_repeat: delivery.possible_repeat,
        })?;
        self.tally.messages += 1;
        match received.piece {
            Ok(piece) if safe_path(&piece.header.path).is_ok() => {
                self.store.write(&piece)?;
                self.tally.bytes += piece.content.len() as u64;
            }
            refused => {
                log::warn!("a message from {} is refused: {refused:?}", delivery.from.short());
                self.tally.refused += 1;
            }
        }
        Ok(())
    }
}
