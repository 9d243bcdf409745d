//! Whether this thread runs a message handler, and for which link.
//!
//! Owns: a mark per thread. Threads: set by `rx-<peer>`, asked by every verb. Locks: none. Blocks on: nothing.
//! Upholds: nothing blocks inside a handler: a blocking verb asks here first and gives the message back.

use std::cell::Cell;

use crate::sync::thread_local;

thread_local! {
    /// The link whose handler runs on this thread (as an address), and whether more messages wait behind this one.
    static HANDLING: Cell<(usize, bool)> = const { Cell::new((0, false)) };
}

/// Whether this thread runs a handler: nothing may block here.
pub(crate) fn in_handler() -> bool {
    HANDLING.with(Cell::get).0 != 0
}

/// Whether this thread handles a message of the link at this address and more of them wait: answers are then written
/// together.
#[inline]
pub(super) fn more_to_come(link: usize) -> bool {
    HANDLING.with(Cell::get) == (link, true)
}

/// Marks this thread; address 0 is no link.
#[inline]
pub(super) fn mark(link: usize, more: bool) {
    HANDLING.with(|handling| handling.set((link, more)));
}
