//! What waits for a peer that the node does not know yet.
//!
//! Owns: nothing of its own; the outbox's state. Threads: callers of send verbs, `supervisor` for what waited too long,
//! whoever makes the peer known. Locks: the outbox lock, never while somebody is told. Blocks on: nothing.
//! Upholds: until the peer is known its messages wait one by one, within one bound of bytes over all lanes, each no
//! longer than it may; from then on what waits is what any queue holds, in the same order.

use std::time::Instant;

use super::{Outbox, State};
use crate::config::Offline;
use crate::outcome::ReturnReason;
use crate::session::options::Defaults;
use crate::session::receipt::Ended;
use crate::sync::atomic::Ordering;
use crate::wire::Lane;

impl Outbox {
    /// The peer is not known: until it is, no more than `bytes` wait for it. Before anything is appended.
    pub(crate) fn await_peer(&self, bytes: usize) {
        let mut state = self.state.lock();
        state.awaited = Some(bytes);
        self.note_special(&mut state);
    }

    /// The peer has become known: what waits goes on as in any queue, and whoever waits for room looks again.
    pub(crate) fn peer_known(&self) {
        let mut state = self.state.lock();
        state.awaited = None;
        self.note_special(&mut state);
        self.give_back(&mut state);
        let wake = state.blocked > 0;
        drop(state);
        if wake {
            self.room.notify_all();
        }
    }

    /// Ends what was appended by `limit` and waits for a peer that is still not known.
    pub(crate) fn end_unknown(&self, limit: Instant) -> Vec<Ended> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        if state.awaited.is_none() {
            return Vec::new();
        }
        let mut ended = Vec::new();
        for lane in Lane::ALL {
            for entry in state.lanes[lane.index()].take_older(limit) {
                ended.push(state.end(lane, entry, ReturnReason::PeerUnknown));
            }
        }
        self.give_back(state);
        let wake = state.blocked > 0 && !ended.is_empty();
        drop(guard);
        if wake {
            self.room.notify_all();
        }
        ended
    }

    /// What holds for messages that choose nothing, if they are to wait one by one all the same.
    pub(crate) fn one_by_one(&self) -> Option<Defaults> {
        self.has_defaults.load(Ordering::Relaxed).then(|| self.defaults())
    }

    /// Notes whether plain messages take another than the short path.
    pub(super) fn note_special(&self, state: &mut State) {
        let one_by_one = state.awaited.is_some() || state.defaults != Defaults::default();
        state.special = state.closed || state.limits.offline == Offline::Return || one_by_one;
        self.has_defaults.store(one_by_one, Ordering::Relaxed);
    }
}

impl State {
    /// Whether a message fits.
    pub(super) fn has_room(&self, lane: Lane, len: usize) -> bool {
        self.lanes[lane.index()].has_room(len, self.limits) && self.fits_unknown(len, 0)
    }

    /// Whether a message fits that takes the place of one of `old` bytes.
    pub(super) fn has_room_instead(&self, lane: Lane, len: usize, old: usize) -> bool {
        self.lanes[lane.index()].has_room_instead(len, old, self.limits) && self.fits_unknown(len, old)
    }

    /// Whether it never fits, whatever else goes.
    pub(super) fn never_fits(&self, len: usize) -> bool {
        self.awaited.is_some_and(|bound| len > bound)
    }

    /// Here a message alone is not taken whatever its size: nobody may ever come for it.
    fn fits_unknown(&self, len: usize, old: usize) -> bool {
        self.awaited.is_none_or(|bound| self.bytes() - old + len <= bound)
    }
}
