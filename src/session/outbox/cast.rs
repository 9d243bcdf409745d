//! Small messages of broadcasts, while these follow one another quickly: a peer that was just written to waits a moment for
//! company, and what comes meanwhile may be in a row that it shares with others.
//!
//! Owns: nothing of its own; the outbox's state. Threads: callers of the broadcast verbs append; `tx-<peer>` lingers.
//! Locks: the outbox lock, then that of a row. Blocks on: nothing.
//! Upholds: a message waits for company no longer than its broadcast allows; whatever else is to be written goes at once,
//! and what waits goes before it. While the peer takes part in a row, all of the row up to now is the end of its queue,
//! with room and memory set aside for all that may come; whoever looks at the queue, or changes it, takes the share first.
//!
//! ```text
//!   tx:  working --rest--> waiting         a broadcast wakes it, as everybody does
//!           `----rest----> lingering       a broadcast appends, and wakes it only for much; everybody else wakes it
//!        lingering --its time has come--> working
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Kick, Outbox, State};
use crate::error::SendErrorKind;
use crate::link::{LARGE, SEGMENT_BYTES};
use crate::metrics::Class;
use crate::session::row::{Joined, ROW_BYTES, ROW_MESSAGES, Row, Share};
use crate::sync::atomic::Ordering;
use crate::wire::{HEADER, Heading, Lane};

/// So many bytes are company enough.
const ENOUGH: usize = ROW_BYTES / 4 * 3;

/// What the messages of a row count as: only a node that registers no kinds has rows.
const IN_A_ROW: Class = Class::new(None, true);

impl Outbox {
    /// Appends a small message of a broadcast, if it is to be copied behind others or to be the first; `None` has done
    /// nothing: [`Outbox::push`] does it all. It may wait for `company` where the peer was just written to.
    ///
    /// # Errors
    /// Full.
    pub(crate) fn push_cast(
        &self,
        lane: Lane,
        class: Class,
        kind: u16,
        payload: &[u8],
        company: Duration,
    ) -> Option<Result<Kick, SendErrorKind>> {
        let len = HEADER + payload.len();
        let mut state = self.state.lock();
        let state = &mut *state;
        self.take_share(state);
        let queue = &mut state.lanes[lane.index()];
        let fits = queue.open.len() + len <= SEGMENT_BYTES && !queue.ends_in_entries();
        if state.special || !fits {
            return None;
        }
        if !queue.has_room(len, state.limits) {
            return Some(Err(SendErrorKind::Full));
        }
        if queue.open.capacity() == 0 {
            queue.open(self.spares.small(), Instant::now());
        }
        if queue.messages == 0 {
            self.waits.store(true, Ordering::Relaxed);
        }
        queue.append(lane, class, Heading::of_kind(kind), payload);
        queue.messages += 1;
        queue.bytes += len;
        let enough = queue.bytes >= ENOUGH.min(state.limits.bytes / 4) || queue.messages >= state.limits.messages / 4;
        Some(Ok(state.kick_soon(lane, company, enough)))
    }

    /// From now on the peer takes part in a row, in which there is nothing yet, if that may wait for company here and all
    /// of it would fit; what it has of the row before is to be written.
    pub(crate) fn join(&self, row: &Arc<Row>, place: usize) -> Kick {
        let mut state = self.state.lock();
        let state = &mut *state;
        let before = self.take_share(state);
        let (lane, limits) = (Lane::Normal, state.limits);
        let queue = &state.lanes[lane.index()];
        let starved = queue.starved;
        let fits = queue.messages + ROW_MESSAGES <= limits.messages && queue.bytes + ROW_BYTES <= limits.bytes;
        let looks_again = starved || state.tx.as_ref().is_some_and(|tx| tx.lingers || !tx.waits);
        if fits && looks_again && !state.special && !queue.ends_in_entries() && self.affords_extra(state, ROW_BYTES) {
            row.join(place);
            state.joined = Some(Joined { row: row.clone(), place });
            self.waits.store(true, Ordering::Relaxed);
            if let Some(tx) = &mut state.tx {
                tx.company = row.company;
            }
        }
        if before && !starved { state.kick(false, 0) } else { Kick::No }
    }

    /// Puts what the peer has of a row at the end of its queue; it takes part no more. Whether there was something: a sender
    /// thread that is at work may have looked already, and looks again then.
    pub(super) fn take_share(&self, state: &mut State) -> bool {
        let Some(Joined { row, place }) = state.joined.take() else { return false };
        let Share { frames, messages, early } = row.leave(place);
        if early && let Some(tx) = &mut state.tx {
            // The flood goes on.
            tx.company = row.company;
        }
        if messages == 0 {
            return false;
        }
        debug_assert!(!state.lanes[Lane::Normal.index()].ends_in_entries(), "whoever put one took the share first");
        let queue = &mut state.lanes[Lane::Normal.index()];
        queue.messages += messages as usize;
        queue.bytes += frames.len();
        if frames.len() >= LARGE {
            queue.put_frames(IN_A_ROW, frames, messages, row.since);
        } else {
            if queue.open.len() + frames.len() > SEGMENT_BYTES {
                queue.seal();
            }
            if queue.open.capacity() == 0 {
                queue.open(self.spares.small(), row.since);
            }
            queue.append_frames(IN_A_ROW, &frames, messages);
        }
        if let Some(tx) = state.tx.as_mut().filter(|tx| !tx.waits) {
            tx.kicked = true;
        }
        true
    }
}

impl State {
    /// Decides who writes what was just appended and may wait for `company`, unless there is `enough` of it.
    fn kick_soon(&mut self, lane: Lane, company: Duration, enough: bool) -> Kick {
        if self.lanes[lane.index()].starved {
            return Kick::No;
        }
        let Some(tx) = &mut self.tx else { return Kick::No };
        tx.company = company;
        // At work it looks again when it has written, and lingers then.
        let waits_on = !company.is_zero() && !enough && (tx.lingers || !tx.waits);
        if waits_on { Kick::No } else { self.kick(false, 0) }
    }
}
