//! The application's own count of what it got: numbers and fillers inside payloads, never the library's numbers.

use std::collections::BTreeSet;

use parking_lot::Mutex;

use threadwire::error::{SendError, SendErrorKind};
use threadwire::{LinkStats, PeerHandle};

use super::rest::wait_at_rest;

/// The shortest numbered payload.
pub const SHORTEST: usize = 8;

/// Payload number `number` of `len` bytes, at least [`SHORTEST`]. Every byte depends on the number.
pub fn numbered(number: u64, len: usize) -> Vec<u8> {
    let mut payload = number.to_le_bytes().to_vec();
    let step = (number as usize * 2 + 1) as u8;
    payload.extend((SHORTEST..len).map(|at| (at as u8).wrapping_mul(step).wrapping_add((at >> 8) as u8)));
    payload
}

/// The number in such a payload.
pub fn number_of(payload: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(*payload.first_chunk::<8>()?))
}

/// Sends numbered messages until the queue is full and nothing moves any more; how many were taken.
pub fn fill(to: &PeerHandle, len: usize) -> u64 {
    let mut sent = 0;
    wait_at_rest("nothing moves any more", || {
        let before = sent;
        loop {
            let payload = numbered(sent, len);
            match to.try_send(&payload[..]) {
                Ok(()) => sent += 1,
                Err(SendError { kind: SendErrorKind::Full, payload: back }) => {
                    assert!(back == payload, "another message came back");
                    return sent == before;
                }
                Err(error) => panic!("{error}"),
            }
        }
    });
    sent
}

/// What was wrong with the messages that came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Numbers that came.
    pub came: u64,
    /// Numbers that were passed over and never came.
    pub lost: u64,
    pub duplicated: u64,
    pub reordered: u64,
    /// Payloads that are not what their number says.
    pub corrupted: u64,
    /// Messages announced as possible repeats.
    pub repeats: u64,
}

impl Verdict {
    /// Of `count` messages that came as they should.
    pub fn perfect(count: u64) -> Self {
        Self { came: count, ..Self::default() }
    }
}

/// Counts the numbered messages of one sender.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    next: u64,
    missing: BTreeSet<u64>,
    verdict: Verdict,
}

impl Ledger {
    /// Enters one message.
    pub fn enter(&self, payload: &[u8], repeat: bool) {
        let mut state = self.0.lock();
        state.verdict.repeats += u64::from(repeat);
        let Some(number) = number_of(payload).filter(|number| numbered(*number, payload.len()) == payload) else {
            state.verdict.corrupted += 1;
            return;
        };
        if number >= state.next {
            let missing = state.next..number;
            state.missing.extend(missing);
            state.next = number + 1;
        } else if state.missing.remove(&number) {
            state.verdict.reordered += 1;
        } else {
            state.verdict.duplicated += 1;
            return;
        }
        state.verdict.came += 1;
    }

    /// How many numbers came.
    pub fn came(&self) -> u64 {
        self.0.lock().verdict.came
    }

    /// What is wrong so far.
    pub fn verdict(&self) -> Verdict {
        let state = self.0.lock();
        Verdict { lost: state.missing.len() as u64, ..state.verdict.clone() }
    }
}
