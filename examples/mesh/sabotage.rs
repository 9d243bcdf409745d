//! Faults on purpose, in a receiver's own path behind the library: the proof that the checker would see them.
//!
//! Owns: at most one held message. Threads: the receiver's. Locks: none. Blocks on: nothing itself.
//! Upholds: exactly one fault happens, and whether it happened is known.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use threadwire::PeerId;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Sabotage {
    /// One message is forgotten.
    Drop,
    /// One message is taken twice.
    Dup,
    /// Two neighbouring messages are exchanged.
    Swap,
    /// One bit of one message is flipped.
    Corrupt,
}

/// One fault, and the place in the stream where it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// What is done.
    pub kind: Sabotage,
    /// To which message, counted from 0.
    pub at: u64,
}

impl Plan {
    /// The fault in the middle of a stream of so many messages; none if the stream is too short for it.
    pub fn in_the_middle(kind: Sabotage, messages: u64) -> Option<Self> {
        let needed = if kind == Sabotage::Swap { 2 } else { 1 };
        Some(Self { kind, at: (messages / 2).min(messages.checked_sub(needed)?) })
    }
}

/// A message on its way from the library to the ledger and the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery<'a> {
    /// The sender.
    pub from: PeerId,
    /// The bytes.
    pub payload: &'a [u8],
    /// Whether the library announced a possible repeat.
    pub possible_repeat: bool,
}

/// Stands in the path and does what its plan says.
#[derive(Debug, Default)]
pub struct Saboteur {
    plan: Option<Plan>,
    seen: u64,
    held: Option<(PeerId, Vec<u8>, bool)>,
    done: bool,
}

impl Saboteur {
    /// With a plan, or without one, when everything passes.
    pub fn new(plan: Option<Plan>) -> Self {
        Self { plan, ..Self::default() }
    }

    /// Whether the fault has happened.
    pub fn done(&self) -> bool {
        self.done
    }

    /// Hands a delivery on to `take`, unless this is the one to be tampered with.
    pub fn pass<E>(
        &mut self,
        delivery: Delivery<'_>,
        mut take: impl FnMut(Delivery<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let turn = self.seen;
        self.seen += 1;
        match self.plan {
            Some(plan) if plan.at == turn => self.tamper(plan.kind, delivery, take),
            _ => {
                take(delivery)?;
                if let Some((from, payload, possible_repeat)) = self.held.take() {
                    self.done = true;
                    take(Delivery { from, payload: &payload, possible_repeat })?;
                }
                Ok(())
            }
        }
    }

    fn tamper<E>(
        &mut self,
        kind: Sabotage,
        delivery: Delivery<'_>,
        mut take: impl FnMut(Delivery<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.done = kind != Sabotage::Swap;
        match kind {
            Sabotage::Drop => Ok(()),
            Sabotage::Dup => {
                take(delivery)?;
                take(delivery)
            }
            Sabotage::Swap => {
                self.held = Some((delivery.from, delivery.payload.to_vec(), delivery.possible_repeat));
                Ok(())
            }
            Sabotage::Corrupt => {
                // The last byte is content; in a message without content it is the end of the path.
                let mut payload = delivery.payload.to_vec();
                if let Some(last) = payload.last_mut() {
                    *last ^= 1;
                }
                take(Delivery { payload: &payload, ..delivery })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(kind: Option<Sabotage>, messages: u64) -> (Vec<Vec<u8>>, bool) {
        let plan = kind.and_then(|kind| Plan::in_the_middle(kind, messages));
        let mut saboteur = Saboteur::new(plan);
        let mut taken = Vec::new();
        for n in 0..messages {
            let payload = [n as u8 * 2];
            let delivery = Delivery { from: PeerId::from_bytes([1; 32]), payload: &payload, possible_repeat: false };
            let took = saboteur.pass(delivery, |delivery| {
                taken.push(delivery.payload.to_vec());
                Ok::<(), ()>(())
            });
            assert_eq!(took, Ok(()));
        }
        (taken, saboteur.done())
    }

    fn bytes(values: &[u8]) -> Vec<Vec<u8>> {
        values.iter().map(|value| vec![*value]).collect()
    }

    #[test]
    fn each_fault_happens_once_in_the_middle() {
        assert_eq!(run(None, 4), (bytes(&[0, 2, 4, 6]), false));
        assert_eq!(run(Some(Sabotage::Drop), 4), (bytes(&[0, 2, 6]), true));
        assert_eq!(run(Some(Sabotage::Dup), 4), (bytes(&[0, 2, 4, 4, 6]), true));
        assert_eq!(run(Some(Sabotage::Swap), 4), (bytes(&[0, 2, 6, 4]), true));
        assert_eq!(run(Some(Sabotage::Corrupt), 4), (bytes(&[0, 2, 5, 6]), true));
    }

    #[test]
    fn the_shortest_streams_have_room_for_their_fault() {
        assert_eq!(run(Some(Sabotage::Drop), 1), (bytes(&[]), true));
        assert_eq!(run(Some(Sabotage::Swap), 2), (bytes(&[2, 0]), true));
        assert_eq!(Plan::in_the_middle(Sabotage::Swap, 1), None);
        assert_eq!(Plan::in_the_middle(Sabotage::Dup, 0), None);
    }
}
