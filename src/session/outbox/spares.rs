//! Buffers that come back after their messages are acknowledged, for the next ones.
//!
//! Owns: at most [`SPARES`] buffers of each sort. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: what is kept is bounded in number and size; an idle peer keeps none.

use crate::link::SEGMENT_BYTES;
use crate::sync::channel::{Receiver, Sender, bounded};

/// Spare buffers kept for reuse.
const SPARES: usize = 16;
/// Buffers start with this and grow under load; smaller ones are not worth keeping.
const SPARE_BYTES: usize = 4 * 1024;
/// Buffers of big messages above this are freed.
const LARGEST_SPARE: usize = 2 * 1024 * 1024;

/// The buffers.
#[derive(Debug)]
pub(crate) struct Spares {
    small: (Sender<Vec<u8>>, Receiver<Vec<u8>>),
    /// Buffers of big messages.
    large: (Sender<Vec<u8>>, Receiver<Vec<u8>>),
}

impl Spares {
    /// None yet.
    pub(super) fn new() -> Self {
        Self { small: bounded(SPARES), large: bounded(SPARES) }
    }

    /// Gives a buffer back for reuse.
    pub(crate) fn recycle(&self, mut buffer: Vec<u8>) {
        if buffer.capacity() >= SPARE_BYTES && buffer.capacity() <= 2 * SEGMENT_BYTES {
            buffer.clear();
            // Full: there are spares enough, this one is freed.
            let _ = self.small.0.try_send(buffer);
        }
    }

    /// Gives the buffer of a big message back for reuse.
    pub(crate) fn recycle_large(&self, buffer: Vec<u8>) {
        if buffer.capacity() <= LARGEST_SPARE {
            let _ = self.large.0.try_send(buffer);
        }
    }

    /// A copy of a big message, in a buffer that was used before if there is one: memory that was just freed and
    /// allocated again costs more than the copy.
    pub(crate) fn copy_large(&self, payload: &[u8]) -> Vec<u8> {
        let mut buffer = self.large.1.try_recv().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(payload);
        buffer
    }

    /// An empty buffer for small messages.
    pub(super) fn small(&self) -> Vec<u8> {
        self.small.1.try_recv().unwrap_or_else(|_| Vec::with_capacity(SPARE_BYTES))
    }

    /// Frees the spare buffers of an idle peer.
    pub(crate) fn shrink(&self) {
        while self.small.1.try_recv().is_ok() || self.large.1.try_recv().is_ok() {}
    }
}
