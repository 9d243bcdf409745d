//! Faults on request: what is asked for, and how often it really happened.
//!
//! Owns: the settings and counters of each direction. Threads: any; the `wire` threads read the settings.
//! Locks: one per direction, over plain memory only. Blocks on: nothing.
//! Upholds: a counter moves when its fault has happened to somebody's bytes, before anybody can see its effect.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use mio::Waker;

use crate::sync::Mutex;

/// Keeps `Instant + delay` from overflowing.
const MAX_DELAY: Duration = Duration::from_secs(60 * 60);

/// Faults of the connections that are dialled through [`Memory::with_faults`](super::Memory::with_faults), for each
/// direction on its own. A clone is another handle on the same faults.
///
/// Settings may change at any time and apply at once to all these connections, each for itself: offsets count from the
/// start of each connection, counters count all of them together. Each such connection has a thread of its own, named
/// `wire-` and the dialler's port, that carries its bytes and ends with it; it holds up to 256 KiB per direction, on
/// top of what the system's socket buffers hold.
#[derive(Clone, Default)]
pub struct Faults {
    pub(super) towards_listener: Arc<Direction>,
    pub(super) towards_dialler: Arc<Direction>,
}

impl Faults {
    /// No faults yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the dialler writes and the listener's side reads.
    pub fn towards_listener(&self) -> &Direction {
        &self.towards_listener
    }

    /// What the listener's side writes and the dialler reads.
    pub fn towards_dialler(&self) -> &Direction {
        &self.towards_dialler
    }

    /// Connections whose thread runs: those that are not yet closed by both sides, or still deliver what was written.
    pub fn connections(&self) -> usize {
        self.towards_listener.state.lock().wires.iter().filter(|wire| wire.strong_count() > 0).count()
    }

    /// From now on `wire` is woken by every change.
    pub(super) fn attach(&self, wire: &Arc<Waker>) {
        for direction in [&self.towards_listener, &self.towards_dialler] {
            let wires = &mut direction.state.lock().wires;
            wires.retain(|wire| wire.strong_count() > 0);
            wires.push(Arc::downgrade(wire));
        }
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults")
            .field("towards_listener", &self.towards_listener)
            .field("towards_dialler", &self.towards_dialler)
            .finish()
    }
}

/// The faults of one direction: switches, and a counter for each.
#[derive(Default)]
pub struct Direction {
    state: Mutex<State>,
    delayed: AtomicU64,
    cut: AtomicU64,
    stalled: AtomicU64,
    short_reads: AtomicU64,
    short_writes: AtomicU64,
    corrupted: AtomicU64,
}

/// How often each fault happened in a direction, all connections together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FaultCounts {
    /// Runs of bytes that were handed over only after their delay. How bytes fall into runs is up to the system.
    pub delayed: u64,
    /// Connections cut.
    pub cut: u64,
    /// Times that a stall held bytes, or the end of the stream, back: once per connection and stall.
    pub stalled: u64,
    /// Reads that got less than they asked for because of the limit.
    pub short_reads: u64,
    /// Writes of which less was taken than they offered because of the limit.
    pub short_writes: u64,
    /// Bits flipped.
    pub corrupted: u64,
}

#[derive(Default)]
struct State {
    settings: Settings,
    wires: Vec<Weak<Waker>>,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) delay: Duration,
    pub(super) cut_after: Option<u64>,
    /// Calls of [`Direction::cut_now`].
    pub(super) cuts: u64,
    pub(super) stalled: bool,
    pub(super) short_reads: Option<usize>,
    pub(super) short_writes: Option<usize>,
    pub(super) corrupt_at: Option<u64>,
}

/// A fault that happened, for its counter.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    Delayed,
    Cut,
    Stalled,
    ShortRead,
    ShortWrite,
    Corrupted,
}

impl Direction {
    /// Bytes written from now on can be read only `delay` later; so does the end of the stream. Zero: at once. More than
    /// an hour counts as an hour. At most 256 KiB are under way, which bounds what a delayed connection carries.
    pub fn set_delay(&self, delay: Duration) {
        self.change(|settings| settings.delay = delay.min(MAX_DELAY));
    }

    /// Cuts each connection when it has handed over `bytes` in this direction (at once where it already has; 0 cuts
    /// also those dialled later). The reader gets that many bytes; everything else under way is lost, in both
    /// directions, and both sides find the end of the stream or an error. `None`: no cut.
    pub fn set_cut_after(&self, bytes: Option<u64>) {
        self.change(|settings| settings.cut_after = bytes);
    }

    /// Cuts every connection that is there now, as [`Direction::set_cut_after`] does, and none that is dialled later.
    pub fn cut_now(&self) {
        self.change(|settings| settings.cuts += 1);
    }

    /// Hands over nothing, not even the end of the stream, until [`Direction::unstall`]. Writers go on until all
    /// buffers are full. Nobody is told: this is what a network does that swallows packets.
    pub fn stall(&self) {
        self.change(|settings| settings.stalled = true);
    }

    /// Hands over what was stalled, and goes on.
    pub fn unstall(&self) {
        self.change(|settings| settings.stalled = false);
    }

    /// No read returns more than this many bytes (at least 1). `None`: no limit.
    pub fn set_short_reads(&self, bytes: Option<usize>) {
        self.change(|settings| settings.short_reads = bytes.map(|bytes| bytes.max(1)));
    }

    /// No write takes more than this many bytes (at least 1). `None`: no limit.
    pub fn set_short_writes(&self, bytes: Option<usize>) {
        self.change(|settings| settings.short_writes = bytes.map(|bytes| bytes.max(1)));
    }

    /// Flips one bit in the byte at this offset of each connection: bit `offset % 8`. Nothing happens to connections
    /// that have carried that byte already. `None`: all bytes as they were written.
    pub fn set_corrupt_at(&self, offset: Option<u64>) {
        self.change(|settings| settings.corrupt_at = offset);
    }

    /// How often each fault has happened so far.
    pub fn counts(&self) -> FaultCounts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FaultCounts {
            delayed: of(&self.delayed),
            cut: of(&self.cut),
            stalled: of(&self.stalled),
            short_reads: of(&self.short_reads),
            short_writes: of(&self.short_writes),
            corrupted: of(&self.corrupted),
        }
    }

    pub(super) fn settings(&self) -> Settings {
        self.state.lock().settings
    }

    pub(super) fn count(&self, fault: Fault) {
        let counter = match fault {
            Fault::Delayed => &self.delayed,
            Fault::Cut => &self.cut,
            Fault::Stalled => &self.stalled,
            Fault::ShortRead => &self.short_reads,
            Fault::ShortWrite => &self.short_writes,
            Fault::Corrupted => &self.corrupted,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn change(&self, change: impl FnOnce(&mut Settings)) {
        let wires: Vec<_> = {
            let mut state = self.state.lock();
            change(&mut state.settings);
            state.wires.iter().filter_map(Weak::upgrade).collect()
        };
        for wire in wires {
            // It fails only when the wire's poll is gone, and then there is nobody to tell.
            let _ = wire.wake();
        }
    }
}

impl fmt::Debug for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Direction").field("settings", &self.settings()).field("counts", &self.counts()).finish()
    }
}
