//! Appending messages that nobody asks about: the shortest path, and the one that waits for room and memory.
//!
//! Owns: nothing of its own; the outbox's state. Threads: callers of send verbs. Locks: the outbox lock, not while it waits.
//! Blocks on: room in a lane and the node's memory, in [`Outbox::push`] with a deadline.
//! Upholds: what is refused is given back, and nothing was appended; what is appended has somebody who writes it, or is told
//! to.

use std::time::{Duration, Instant};

use super::entry::Entry;
use super::queue::Item;
use super::{Kick, Outbox};
use crate::error::SendErrorKind;
use crate::link::SEGMENT_BYTES;
use crate::metrics::Class;
use crate::sync::atomic::Ordering;
use crate::sync::deadline_in;
use crate::wire::{HEADER, Heading, LANES, Lane};

/// How long a push may wait for room.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wait {
    /// Not at all.
    No,
    /// So long; the clock is read only if there is no room.
    UpTo(Duration),
    /// It needs no room: the question's credit pays (bytes per lane that return when the reply is written).
    Paid([u64; LANES]),
}

impl Outbox {
    /// Appends a small message, if nothing beyond appending is to be done: there is room in the queue and in the open
    /// segment's buffer, and the sender thread is at work. False has done nothing: [`Outbox::push`] does it all.
    ///
    /// This is where a small message's nanoseconds go: one uncontended lock, two copies, three counters.
    #[inline]
    pub(crate) fn push_fast(&self, lane: Lane, class: Class, kind: u16, payload: &[u8]) -> bool {
        let len = HEADER + payload.len();
        let mut state = self.state.lock();
        let state = &mut *state;
        let queue = &mut state.lanes[lane.index()];
        let fits = queue.open.len() + len <= queue.open.capacity().min(SEGMENT_BYTES);
        if !fits || !queue.has_room(len, state.limits) || state.special || state.joined.is_some() {
            return false;
        }
        match &mut state.tx {
            // It may have looked at this lane already: it looks again before it sleeps.
            Some(tx) if !tx.waits => {
                tx.kicked = true;
                #[cfg(all(test, shuttle))]
                if self.omission == Some(super::Omission::FastKick) {
                    tx.kicked = false;
                }
            }
            _ if queue.starved => {}
            _ => return false,
        }
        debug_assert!(queue.messages > 0, "an open buffer has messages in it: the hint that something waits is up");
        queue.append(lane, class, Heading::of_kind(kind), payload);
        queue.messages += 1;
        queue.bytes += len;
        true
    }

    /// Appends a message, waiting for room if it may. `reads` is the number of reads of the peer's stream so far: a
    /// caller that answers what just came may write at once; `inline` is false where more is to follow at once.
    ///
    /// # Errors
    /// Full, timed out or closed; nothing was appended, and a large item is given back.
    ///
    /// # Blocking
    /// Until there is room or the deadline has passed.
    pub(crate) fn push<'a>(
        &self,
        lane: Lane,
        class: Class,
        item: Item<'a>,
        wait: Wait,
        inline: bool,
        reads: u64,
    ) -> Result<Kick, (SendErrorKind, Item<'a>)> {
        let len = item.len();
        let mut deadline = None;
        let mut state = self.state.lock();
        loop {
            self.take_share(&mut state);
            if let Some(refusal) = state.refusal() {
                return Err((refusal, item));
            }
            let queue = &state.lanes[lane.index()];
            let has_room = queue.has_room(len, state.limits);
            // What fits the open segment takes no more memory: its buffer is there.
            let small = matches!(item, Item::Small { .. }) && queue.open.len() + len <= SEGMENT_BYTES;
            if has_room && (small || self.affords(&mut state, len)) {
                break;
            }
            match wait {
                Wait::No => return Err((SendErrorKind::Full, item)),
                Wait::Paid(_) => break,
                Wait::UpTo(longest) if has_room => {
                    let deadline = *deadline.get_or_insert_with(|| deadline_in(longest));
                    let Some(again) = self.wait_for_memory(state, len, deadline) else {
                        return Err((SendErrorKind::TimedOut, item));
                    };
                    state = again;
                }
                Wait::UpTo(longest) => {
                    let deadline = *deadline.get_or_insert_with(|| deadline_in(longest));
                    state.blocked += 1;
                    let late = self.room.wait_until(&mut state, deadline).timed_out();
                    state.blocked -= 1;
                    if late && !state.closed && !state.lanes[lane.index()].has_room(len, state.limits) {
                        return Err((SendErrorKind::TimedOut, item));
                    }
                }
            }
        }
        self.waits.store(true, Ordering::Relaxed);
        let debt = if let Wait::Paid(debt) = wait { debt } else { [0; LANES] };
        let queue = &mut state.lanes[lane.index()];
        match item {
            Item::Small { heading, payload } if queue.ends_in_entries() => {
                // Another buffer for one message would be the greater cost, if both sorts alternate.
                queue.put_entry(Entry::plain(class, heading, payload.to_vec(), Instant::now()));
                return Ok(state.kick_unless_starved(lane, inline, reads));
            }
            Item::Small { heading, payload } => {
                if queue.open.len() + len > SEGMENT_BYTES {
                    queue.seal();
                }
                if queue.open.capacity() == 0 {
                    queue.open(self.spares.small(), Instant::now());
                }
                queue.append(lane, class, heading, payload);
                queue.owe(debt);
            }
            Item::Large(segment) => {
                queue.put_large(class, segment, debt, Instant::now());
            }
        }
        queue.messages += 1;
        queue.bytes += len;
        Ok(state.kick_unless_starved(lane, inline, reads))
    }
}
