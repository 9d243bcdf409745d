//! When those messages were written whose time is measured.
//!
//! Owns: for each lane, when the message that is measured was last written. Threads: the holder of the write token notes it,
//! `rx-<peer>` looks. Locks: none. Blocks on: nothing.
//! Upholds: no clock is read for each message: of those on their way, one of each lane is measured.

use std::time::{Duration, Instant};

use crate::link::Probe;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::wire::{LANES, Lane};

/// When the messages that are measured were written.
#[derive(Debug)]
pub(super) struct ProbeTimes {
    born: Instant,
    /// Nanoseconds since then.
    written: [AtomicU64; LANES],
}

impl ProbeTimes {
    /// Of a link that begins now.
    pub(super) fn new(now: Instant) -> Self {
        Self { born: now, written: Default::default() }
    }

    /// It was written on the lanes of these bits.
    pub(super) fn write(&self, lanes: u8, at: Instant) {
        let nanos = at.saturating_duration_since(self.born).as_nanos() as u64;
        let lanes = self.written.iter().enumerate().filter(|(lane, _)| lanes & (1 << lane) != 0);
        lanes.for_each(|(_, written)| written.store(nanos, Ordering::Relaxed));
    }

    /// When that of this lane was written; `None` if whoever wrote it has not said so yet.
    pub(super) fn written(&self, lane: Lane, probe: &Probe) -> Option<Instant> {
        let nanos = self.written[lane.index()].load(Ordering::Relaxed);
        Some(self.born + Duration::from_nanos(nanos)).filter(|at| *at >= probe.taken)
    }
}
