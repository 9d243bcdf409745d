//! Messages that waited for whoever proves itself at an address, handed to the peer that has.
//!
//! Owns: nothing of its own; the state of two outboxes. Threads: `supervisor`, callers of send verbs. Locks: the outbox
//! lock of one peer, then that of the other one, never both. Blocks on: nothing.
//! Upholds: what waited goes on in its order, each message with whoever asked about it, and is counted in one place: where
//! it goes on, or where it ended before. No count falls.

use super::entry::Entry;
use super::queue::Queue;
use super::tickets::Ticket;
use super::{Kick, Outbox};
use crate::outcome::ReturnReason;
use crate::session::receipt::Ended;
use crate::sync::atomic::Ordering;
use crate::wire::Lane;

/// A message on its way from one outbox to another.
#[derive(Debug)]
pub(crate) struct Moved {
    lane: Lane,
    entry: Entry,
    ticket: Option<Ticket>,
}

impl Outbox {
    /// What waits here waits for somebody else, to whom it goes on. Before anything is appended.
    pub(crate) fn pass_on(&self) {
        self.state.lock().lanes.iter_mut().for_each(Queue::pass_on);
    }

    /// Takes out all that waits one by one: here it was never accepted.
    pub(crate) fn hand_over(&self) -> Vec<Moved> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        debug_assert!(state.awaited.is_some(), "what waits for somebody unproven waits one by one");
        let mut moved = Vec::new();
        for lane in Lane::ALL {
            let (segments, entries) = state.lanes[lane.index()].drain();
            debug_assert!(segments.is_empty(), "nothing is sealed there");
            for mut entry in entries {
                let ticket = entry.ticket.take().and_then(|name| state.tickets.take(name));
                moved.push(Moved { lane, entry, ticket });
            }
        }
        self.give_back(state);
        let wake = state.blocked > 0 && !moved.is_empty();
        drop(guard);
        if wake {
            self.room.notify_all();
        }
        moved
    }

    /// Appends what waited elsewhere, beyond all bounds if need be: it was accepted there, within bounds of its own. What
    /// cannot be taken any more has ended.
    pub(crate) fn adopt(&self, moved: Vec<Moved>) -> (Kick, Vec<Ended>) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        self.take_share(state);
        let (mut kick, mut ended) = (Kick::No, Vec::new());
        for Moved { lane, mut entry, ticket } in moved {
            entry.ticket = ticket.map(|ticket| state.tickets.put(ticket));
            if state.closed {
                state.lanes[lane.index()].begin(&entry);
                ended.push(state.end(lane, entry, ReturnReason::ShutDown));
                continue;
            }
            // What the node cannot afford now is paid for by whoever comes next.
            self.affords_extra(state, entry.len());
            self.waits.store(true, Ordering::Relaxed);
            if entry.expires.is_some() {
                self.expiring.store(true, Ordering::Relaxed);
            }
            state.lanes[lane.index()].put_entry(entry);
            if matches!(kick, Kick::No) {
                kick = state.kick_unless_starved(lane, false, 0);
            }
        }
        (kick, ended)
    }
}
