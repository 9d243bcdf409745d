//! Taking messages for the wire: with the write token and the link lock held, segment by segment.
//!
//! Owns: the outbox lock, from the first take until it is dropped. Threads: the holder of the write token. Locks: the outbox
//! lock, after the link's. Blocks on: nothing.
//! Upholds: what is taken is counted where it ends its wait; whoever waits for room hears of it once there is some.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Outbox, State};
use crate::link::{Segment, Taken};
use crate::metrics::Class;
use crate::outcome::ReturnReason;
use crate::session::receipt::Ended;
use crate::sync::MutexGuard;
use crate::wire::Lane;

impl Outbox {
    /// Locked, to take segments of several lanes.
    pub(crate) fn taking(&self, now: Instant) -> Taking<'_> {
        Taking { outbox: self, state: None, freed: false, now, waited: None, ended: Vec::new() }
    }
}

/// The outbox, locked at the first take and until this is dropped.
pub(crate) struct Taking<'a> {
    outbox: &'a Outbox,
    state: Option<MutexGuard<'a, State>>,
    freed: bool,
    now: Instant,
    /// How long the first message that was taken had waited.
    waited: Option<(Class, Duration)>,
    /// What was found to have expired.
    ended: Vec<Ended>,
}

impl Taking<'_> {
    /// The oldest segment of a lane.
    pub(crate) fn take(&mut self, lane: Lane) -> Option<Taken> {
        let state = &mut **self.state.get_or_insert_with(|| self.outbox.state.lock());
        let tickets = &mut state.tickets;
        let queue = &mut state.lanes[lane.index()];
        let (taken, expired) = queue.take(lane, self.now, |ticket, last| tickets.asks_now(ticket, last));
        if let Some(taken) = &taken {
            tickets.taken(taken.segment.tracks(), self.now);
            state.ends.taken.add_all(&taken.groups);
            if self.waited.is_none() {
                let class = taken.groups.iter().next().map(|group| group.class);
                self.waited = class.map(|class| (class, self.now.saturating_duration_since(taken.since)));
            }
            let limits = state.limits;
            // Low water at three quarters: a waiting sender is not woken for each segment.
            self.freed |= queue.bytes <= limits.bytes / 4 * 3 && queue.messages <= limits.messages / 4 * 3;
        }
        for entry in expired {
            self.ended.push(state.end(lane, entry, ReturnReason::Expired));
        }
        taken
    }

    /// What was taken is best effort, and is being written.
    pub(crate) fn in_flight(&mut self, segments: Vec<Arc<Segment>>) {
        if let Some(state) = &mut self.state {
            state.in_flight.extend(segments);
        }
    }

    /// The link keeps so many bytes now.
    pub(crate) fn settle_account(&mut self, kept: usize) {
        if let Some(state) = &mut self.state {
            state.kept = kept;
            self.outbox.give_back(state);
        }
    }

    /// What the first message that was taken counts as, and how long it had waited.
    pub(crate) fn waited(&self) -> Option<(Class, Duration)> {
        self.waited
    }

    /// What ended meanwhile.
    pub(crate) fn take_ended(&mut self) -> Vec<Ended> {
        std::mem::take(&mut self.ended)
    }
}

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        let wake = self.freed && self.state.as_ref().is_some_and(|state| state.blocked > 0);
        self.state = None;
        #[cfg(all(test, shuttle))]
        if self.outbox.omission == Some(super::Omission::WakeForRoom) {
            return;
        }
        if wake {
            self.outbox.room.notify_all();
        }
    }
}
