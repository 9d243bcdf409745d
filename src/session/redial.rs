//! A note on when and how often a peer is dialled again, for those who look.
//!
//! Owns: two numbers. Threads: `supervisor` writes, any reads. Locks: none. Blocks on: nothing.
//! Upholds: each number is one that was noted; the two may be of two notes, a moment apart.

use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Stands for no time.
const NEVER: u64 = u64::MAX;

/// The note.
#[derive(Debug)]
pub(crate) struct RedialNote {
    attempts: AtomicU32,
    next: AtomicU64,
}

impl Default for RedialNote {
    fn default() -> Self {
        Self { attempts: AtomicU32::new(0), next: AtomicU64::new(NEVER) }
    }
}

impl RedialNote {
    /// Notes attempts so far, and when the next one comes, in microseconds of the node's clock.
    pub(crate) fn set(&self, attempts: u32, next: Option<u64>) {
        self.attempts.store(attempts, Ordering::Relaxed);
        self.next.store(next.unwrap_or(NEVER), Ordering::Relaxed);
    }

    /// What was noted last.
    pub(crate) fn get(&self) -> (u32, Option<u64>) {
        let next = self.next.load(Ordering::Relaxed);
        (self.attempts.load(Ordering::Relaxed), (next != NEVER).then_some(next))
    }
}
