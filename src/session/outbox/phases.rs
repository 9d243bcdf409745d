//! What the phases of a peer's messages count: what waits here, and what became of best effort messages.
//!
//! Owns: nothing of its own; sums in the outbox's state. Threads: whoever asks. Locks: the outbox lock. Blocks on: nothing.
//! Upholds: a message that waits here began its phase when it was accepted, and ends it when it is taken or comes back. One
//! that waits for whoever proves itself at an address begins it there, or where it comes back.

use super::ends::Ends;
use super::queue::Queue;
use super::{Outbox, State};
use crate::metrics::{PhaseTally, Tally};

impl Outbox {
    /// The phase that messages are in while they wait here; and the next one of those taken, as far as it ends here: that of
    /// best effort messages. The link knows the rest of it: whoever adds the two holds the link lock.
    pub(crate) fn phases(&self) -> (PhaseTally, PhaseTally) {
        let state = &mut *self.state.lock();
        self.take_share(state);
        let uncounted: usize = state.lanes.iter().map(Queue::uncounted).sum();
        let (begun, open) = (state.begun(), (state.messages() - uncounted) as u64);
        let in_flight = state.in_flight();
        let Ends { taken, returned, written, unknown } = &state.ends;
        let buffer = PhaseTally { begun, succeeded: taken.clone(), failed: returned.clone(), open };
        let (begun, succeeded, failed) = (taken.clone(), written.clone(), unknown.clone());
        (buffer, PhaseTally { begun, succeeded, failed, open: in_flight })
    }
}

impl State {
    /// Messages that were accepted so far.
    pub(super) fn begun(&self) -> Tally {
        let mut begun = Tally::default();
        self.lanes.iter().for_each(|lane| begun.merge(&lane.begun()));
        begun
    }

    /// Best effort messages that are being written.
    fn in_flight(&mut self) -> u64 {
        let tracks = self.in_flight.iter().flat_map(|segment| segment.tracks());
        tracks.filter(|track| self.tickets.get_mut(track.ticket).is_some()).count() as u64
    }
}
