//! What a peer's messages take of the node's memory: queued and kept together, beyond the floor that each link has.
//!
//! Owns: nothing of its own; the outbox's account. Threads: callers of send verbs, the holder of the write token, whoever
//! took an acknowledgement. Locks: the outbox lock, not while it waits. Blocks on: memory that others give back, in
//! [`Outbox::wait_for_memory`] with a deadline.
//! Upholds: nothing is sealed or put whole into the queue that the node cannot afford; an open segment is what may come on
//! top, for each lane. What ends is given back, a little late: not for each message.

use std::time::Instant;

use super::{Outbox, State};
use crate::config::LINK_FLOOR;
use crate::session::row::ROW_BYTES;
use crate::sync::MutexGuard;

/// Memory is taken and given back so many bytes at a time.
const UNIT: usize = 64 * 1024;

impl Outbox {
    /// Whether there is memory for `more` bytes; takes it.
    pub(super) fn affords(&self, state: &mut State, more: usize) -> bool {
        Self::pays(state, more, |missing| self.memory.take(missing))
    }

    /// The same for what goes on without: nobody meets a refusal.
    pub(super) fn affords_extra(&self, state: &mut State, more: usize) -> bool {
        Self::pays(state, more, |missing| self.memory.try_take(missing))
    }

    fn pays(state: &mut State, more: usize, take: impl FnOnce(usize) -> bool) -> bool {
        let wanted = state.wanted(more);
        if wanted <= state.charged {
            return true;
        }
        let missing = (wanted - state.charged).next_multiple_of(UNIT);
        let taken = take(missing);
        if taken {
            state.charged += missing;
        }
        taken
    }

    /// Waits for memory without the lock; `None` when the deadline has passed.
    pub(super) fn wait_for_memory<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        more: usize,
        deadline: Instant,
    ) -> Option<MutexGuard<'a, State>> {
        let watching = self.memory.watch();
        // What came back before is seen now, what comes back from now on ends the wait.
        if self.affords(&mut state, more) {
            return Some(state);
        }
        drop(state);
        watching.wait(deadline).then(|| self.state.lock())
    }

    /// The link keeps `kept` bytes now: gives back what is not wanted any more.
    pub(crate) fn settle_account(&self, kept: usize) {
        let mut state = self.state.lock();
        state.kept = kept;
        self.give_back(&mut state);
    }

    pub(super) fn give_back(&self, state: &mut State) {
        let wanted = state.wanted(0).next_multiple_of(UNIT);
        if state.charged > wanted {
            #[cfg(all(test, shuttle))]
            if self.omission == Some(super::Omission::WakeForMemory) {
                self.memory.give_unheard(state.charged - wanted);
                state.charged = wanted;
                return;
            }
            self.memory.give(state.charged - wanted);
            state.charged = wanted;
        }
    }
}

impl State {
    /// What should be charged if there were `more` bytes.
    fn wanted(&self, more: usize) -> usize {
        // A peer that is not known has no floor: floors are for as many links as there may be sessions.
        let floor = if self.awaited.is_some() { 0 } else { LINK_FLOOR };
        let row = if self.joined.is_some() { ROW_BYTES } else { 0 };
        (self.bytes() + row + self.kept + more).saturating_sub(floor)
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let charged = self.state.lock().charged;
        self.memory.give(charged);
    }
}
