//! Messages of which somebody wants to hear, or that may end before they are written: how they come in, and how they end.
//!
//! Owns: nothing of its own; the outbox's state. Threads: callers of send verbs, the holder of the write token, whoever
//! took an acknowledgement, `supervisor` for what expires. Locks: the outbox lock, never while somebody is told.
//! Blocks on: room in a lane and the node's memory, with a deadline, if the policy is to wait.
//! Upholds: what was accepted ends exactly once: its ticket is taken out by whoever ends it; what ended is given back by
//! value, to be told without a lock.

use std::time::{Duration, Instant};

use super::entry::Entry;
use super::tickets::Ticket;
use super::{Kick, Outbox, State};
use crate::config::Offline;
use crate::error::{SendError, SendErrorKind};
use crate::ident::ConnectionId;
use crate::link::{Acked, Payload, Taken};
use crate::outcome::{Outcome, ReturnReason, Timing};
use crate::session::options::{Defaults, OverflowPolicy};
use crate::session::receipt::{Asker, Ended};
use crate::session::undelivered::Label;
use crate::sync::atomic::Ordering;
use crate::sync::deadline_in;
use crate::wire::{LANES, Lane};

/// A message that was not taken.
pub(crate) struct Refused {
    pub(crate) kind: SendErrorKind,
    pub(crate) payload: Payload,
}

impl From<Refused> for SendError {
    fn from(refused: Refused) -> Self {
        Self { kind: refused.kind, payload: refused.payload.into_vec() }
    }
}

impl Outbox {
    /// What holds for messages that do not choose for themselves.
    pub(crate) fn defaults(&self) -> Defaults {
        if self.has_defaults.load(Ordering::Relaxed) { self.state.lock().defaults } else { Defaults::default() }
    }

    /// Changes it, for messages that come from now on.
    pub(crate) fn change_defaults(&self, change: impl FnOnce(&mut Defaults)) {
        let mut state = self.state.lock();
        self.take_share(&mut state);
        change(&mut state.defaults);
        self.note_special(&mut state);
    }

    /// How long messages are wanted that do not say so, from now on and whatever the configuration says.
    pub(crate) fn choose_ttl(&self, ttl: Option<Duration>) {
        let mut state = self.state.lock();
        self.take_share(&mut state);
        (state.defaults.ttl, state.ttl_chosen) = (ttl, true);
        self.note_special(&mut state);
    }

    /// Appends a message that waits by itself, as its policy says. What that ends is added to `ended`, accepted or not.
    ///
    /// # Blocking
    /// Until there is room or `longest` has passed, if the policy is to wait.
    #[expect(clippy::too_many_arguments, reason = "each is a choice of the sender's; there is one caller")]
    pub(crate) fn push_entry(
        &self,
        lane: Lane,
        mut entry: Entry,
        asker: Asker,
        policy: OverflowPolicy,
        longest: Duration,
        inline: bool,
        reads: u64,
        ended: &mut Vec<Ended>,
    ) -> Result<Kick, Refused> {
        let len = entry.len();
        let mut deadline = None;
        let mut state = self.state.lock();
        loop {
            self.take_share(&mut state);
            let refuse = |kind, entry: Entry| Err(Refused { kind, payload: entry.payload });
            if let Some(refusal) = state.refusal() {
                return refuse(refusal, entry);
            }
            let queue = &state.lanes[lane.index()];
            if let Some(old) = entry.key.and_then(|key| queue.entries().of_key(key)).map(Entry::len)
                && state.has_room_instead(lane, len, old)
                && self.affords(&mut state, len.saturating_sub(old))
            {
                break;
            }
            let has_room = state.has_room(lane, len);
            if has_room && self.affords(&mut state, len) {
                break;
            }
            let never_fits = state.never_fits(len);
            let queue = &mut state.lanes[lane.index()];
            match policy {
                OverflowPolicy::Fail => return refuse(SendErrorKind::Full, entry),
                OverflowPolicy::DropNewest => {
                    queue.begin(&entry);
                    entry.ticket = Some(state.tickets.put(Ticket::of(lane, &entry, asker)));
                    ended.push(state.end(lane, entry, ReturnReason::DroppedNewest));
                    return Ok(Kick::No);
                }
                // Nothing is dropped for what does not fit all the same.
                OverflowPolicy::DropOldest | OverflowPolicy::Conflate(_) if never_fits => {
                    return refuse(SendErrorKind::Full, entry);
                }
                OverflowPolicy::DropOldest | OverflowPolicy::Conflate(_) => match queue.drop_oldest() {
                    Some(oldest) => ended.push(state.end(lane, oldest, ReturnReason::DroppedOldest)),
                    None => return refuse(SendErrorKind::Full, entry),
                },
                OverflowPolicy::Block if asker.is_question() && self.crowded.load(Ordering::Relaxed) > 0 => {
                    return refuse(SendErrorKind::TooManyRequests, entry);
                }
                OverflowPolicy::Block if has_room => {
                    let deadline = *deadline.get_or_insert_with(|| deadline_in(longest));
                    match self.wait_for_memory(state, len, deadline) {
                        Some(again) => state = again,
                        None => return refuse(SendErrorKind::TimedOut, entry),
                    }
                }
                OverflowPolicy::Block => {
                    let deadline = *deadline.get_or_insert_with(|| deadline_in(longest));
                    state.blocked += 1;
                    let late = self.room.wait_until(&mut state, deadline).timed_out();
                    state.blocked -= 1;
                    if late && !state.closed && !state.has_room(lane, len) {
                        return refuse(SendErrorKind::TimedOut, entry);
                    }
                }
            }
        }
        self.waits.store(true, Ordering::Relaxed);
        let state = &mut *state;
        entry.ticket = Some(state.tickets.put(Ticket::of(lane, &entry, asker)));
        if entry.expires.is_some() {
            self.expiring.store(true, Ordering::Relaxed);
        }
        if let Some(before) = state.lanes[lane.index()].put_by_key(entry) {
            ended.push(state.end(lane, before, ReturnReason::Replaced));
        }
        Ok(state.kick_unless_starved(lane, inline, reads))
    }

    /// One more answer waits to be taken and keeps its credit, or one less.
    pub(crate) fn crowd(&self, more: bool) {
        let state = self.state.lock();
        if more {
            self.crowded.fetch_add(1, Ordering::Relaxed)
        } else {
            self.crowded.fetch_sub(1, Ordering::Relaxed)
        };
        let wake = more && state.blocked > 0;
        drop(state);
        if wake {
            self.room.notify_all();
        }
    }

    /// Messages were written whole, for the first time or again.
    pub(crate) fn written(&self, tickets: &[u64], now: Instant) -> Vec<Ended> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let mut best_effort = Vec::new();
        for &name in tickets {
            let Some(ticket) = state.tickets.get_mut(name) else { continue };
            ticket.written.get_or_insert(now);
            if let Asker::Receipt(receipt) = &ticket.asker {
                receipt.written();
            }
            if ticket.best_effort {
                best_effort.push(name);
            }
        }
        if best_effort.is_empty() {
            return Vec::new();
        }
        let ended: Vec<_> = best_effort
            .into_iter()
            .filter_map(|name| state.tickets.take(name))
            .map(|ticket| {
                state.ends.written.add(ticket.class, 1, ticket.bytes as u64);
                let timing = ticket.timing(now);
                Ended { asker: ticket.asker, label: ticket.label, outcome: Outcome::Written(timing) }
            })
            .collect();
        let State { in_flight, tickets, .. } = state;
        in_flight.retain(|segment| segment.tracks().iter().any(|track| tickets.get_mut(track.ticket).is_some()));
        ended
    }

    /// Ends what is being written: whoever writes it comes too late.
    pub(crate) fn end_in_flight(&self) -> Vec<Ended> {
        Self::lose_in_flight(&mut self.state.lock())
    }

    /// The writer of these is gone: whether they were written is not known.
    pub(super) fn lose_in_flight(state: &mut State) -> Vec<Ended> {
        let mut ended = Vec::new();
        for segment in std::mem::take(&mut state.in_flight) {
            for extract in segment.extract(0..segment.frames) {
                let Some(ticket) = extract.ticket.and_then(|name| state.tickets.take(name)) else { continue };
                state.ends.unknown.add(ticket.class, 1, ticket.bytes as u64);
                let outcome = Outcome::Unknown { payload: extract.payload };
                ended.push(Ended { asker: ticket.asker, label: ticket.label, outcome });
            }
        }
        ended
    }

    /// What the link says of its messages.
    pub(crate) fn settle(&self, acked: &mut Acked, now: Instant) -> Vec<Ended> {
        if acked.done.is_empty() && acked.rejected.is_empty() && acked.lost.is_empty() {
            return Vec::new();
        }
        let mut ended = Vec::with_capacity(acked.done.len() + acked.rejected.len() + acked.lost.len());
        let mut state = self.state.lock();
        for ticket in acked.done.drain(..).filter_map(|name| state.tickets.take(name)) {
            let timing = ticket.timing(now);
            ended.push(Ended { asker: ticket.asker, label: ticket.label, outcome: Outcome::Acknowledged(timing) });
        }
        let rejected = acked.rejected.drain(..).map(|rejected| {
            let reason = Some(ReturnReason::Rejected(rejected.cause));
            (rejected.lane, rejected.extract, reason)
        });
        let lost = acked.lost.drain(..).map(|lost| {
            let reason = if lost.written { None } else { Some(ReturnReason::GivenUp) };
            (lost.lane, lost.extract, reason)
        });
        for (lane, extract, reason) in rejected.chain(lost) {
            let asker = extract.ticket.and_then(|name| state.tickets.take(name)).map(|ticket| ticket.asker);
            let (payload, label) = (extract.payload, Label { kind: extract.kind, lane });
            let outcome = match reason {
                Some(reason) => Outcome::Returned { payload, reason },
                None => Outcome::Unknown { payload },
            };
            ended.push(Ended { asker: asker.unwrap_or_default(), label, outcome });
        }
        ended
    }

    /// Whether some of what waits expires.
    pub(crate) fn may_expire(&self) -> bool {
        self.expiring.load(Ordering::Relaxed)
    }

    /// Ends what has expired.
    pub(crate) fn expire(&self, now: Instant) -> Vec<Ended> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let mut ended = Vec::new();
        for lane in Lane::ALL {
            for entry in state.lanes[lane.index()].expire(now) {
                ended.push(state.end(lane, entry, ReturnReason::Expired));
            }
        }
        let more = state.lanes.iter().any(|queue| queue.entries().next_expiry().is_some());
        self.expiring.store(more, Ordering::Relaxed);
        // Of a peer that is away nobody else gives it back.
        self.give_back(state);
        let wake = state.blocked > 0 && !ended.is_empty();
        drop(guard);
        if wake {
            self.room.notify_all();
        }
        ended
    }

    /// Ends all that waits here. Returns with it the credit that the replies among it would have paid back.
    pub(crate) fn return_all(&self, reason: ReturnReason) -> (Vec<Ended>, [u64; LANES]) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        self.take_share(state);
        let (mut ended, mut debt) = (Vec::new(), [0; LANES]);
        for lane in Lane::ALL {
            let (segments, entries) = state.lanes[lane.index()].drain();
            for Taken { segment, debt: owed, groups, .. } in segments {
                debt.iter_mut().zip(owed).for_each(|(debt, owed)| *debt += owed);
                state.ends.returned.add_all(&groups);
                for extract in segment.extract(0..segment.frames) {
                    let outcome = Outcome::Returned { payload: extract.payload, reason };
                    ended.push(Ended { asker: Asker::Nobody, label: Label { kind: extract.kind, lane }, outcome });
                }
            }
            for entry in entries {
                ended.push(state.end(lane, entry, reason));
            }
        }
        self.give_back(state);
        let wake = state.blocked > 0;
        drop(guard);
        if wake {
            self.room.notify_all();
        }
        (ended, debt)
    }

    /// The session `conn` writes no more: what that ends, and the credit that is to be returned for it. With `offline =
    /// return` that is all that waits.
    pub(crate) fn detached(&self, conn: ConnectionId) -> (Vec<Ended>, [u64; LANES]) {
        let mut state = self.state.lock();
        if state.tx.as_ref().is_some_and(|tx| tx.conn != conn) {
            return (Vec::new(), [0; LANES]);
        }
        let mut ended = Self::lose_in_flight(&mut state);
        let returns = state.limits.offline == Offline::Return;
        drop(state);
        let mut debt = [0; LANES];
        if returns {
            let (returned, owed) = self.return_all(ReturnReason::Offline);
            ended.extend(returned);
            debt = owed;
        }
        (ended, debt)
    }
}

impl State {
    /// A message that waited by itself has ended.
    pub(super) fn end(&mut self, lane: Lane, entry: Entry, reason: ReturnReason) -> Ended {
        self.lanes[lane.index()].end(&entry);
        self.ends.returned.add(entry.class, 1, entry.payload.len() as u64);
        let asker = entry.ticket.and_then(|name| self.tickets.take(name)).map(|ticket| ticket.asker);
        let label = Label { kind: entry.heading.kind, lane };
        let outcome = Outcome::Returned { payload: entry.payload.into_vec(), reason };
        Ended { asker: asker.unwrap_or_default(), label, outcome }
    }
}

impl Ticket {
    fn of(lane: Lane, entry: &Entry, asker: Asker) -> Self {
        Self {
            asker,
            label: Label { kind: entry.heading.kind, lane },
            class: entry.class,
            bytes: entry.payload.len(),
            created: entry.created(),
            taken: None,
            written: None,
            best_effort: entry.best_effort,
        }
    }

    fn timing(&self, now: Instant) -> Timing {
        let after = |when: Option<Instant>| when.unwrap_or(now).saturating_duration_since(self.created);
        Timing {
            bytes: self.bytes,
            queued_for: after(self.taken),
            written_after: after(self.written),
            done_after: after(None),
        }
    }
}
