//! Who hears of which message: a numbered place for each that somebody asked about.
//!
//! Owns: the askers of messages that are queued or kept. Threads: whoever holds the outbox lock. Locks: none itself.
//! Blocks on: nothing.
//! Upholds: a ticket is given once and taken once; there are never more than messages that wait or are kept.

use std::time::Instant;

use crate::link::Track;
use crate::metrics::Class;
use crate::session::receipt::Asker;
use crate::session::undelivered::Label;

/// What is known of one message.
#[derive(Debug)]
pub(crate) struct Ticket {
    /// Who hears of it.
    pub(crate) asker: Asker,
    pub(crate) label: Label,
    /// What it counts as.
    pub(crate) class: Class,
    /// Bytes of its payload.
    pub(crate) bytes: usize,
    /// When the application made it; without its word, when the send verb took it.
    pub(crate) created: Instant,
    /// When it was taken for the wire.
    pub(crate) taken: Option<Instant>,
    /// When all of it was written for the first time.
    pub(crate) written: Option<Instant>,
    /// Nothing is heard of it after it was written.
    pub(crate) best_effort: bool,
}

/// The tickets of one peer. A name is a place and how often it was used before: a name that is late meets nobody else.
#[derive(Debug, Default)]
pub(super) struct Tickets {
    places: Vec<Place>,
    free: Vec<u32>,
    /// How many are out.
    live: usize,
    /// Where uses begin to be counted: beyond what any place had before the memory of a burst was given back.
    uses: u32,
}

#[derive(Debug)]
struct Place {
    uses: u32,
    ticket: Option<Ticket>,
}

impl Tickets {
    /// A name for a ticket.
    pub(super) fn put(&mut self, ticket: Ticket) -> u64 {
        self.live += 1;
        let at = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place { uses: self.uses, ticket: None });
            self.places.len() as u32 - 1
        });
        let place = &mut self.places[at as usize];
        place.ticket = Some(ticket);
        u64::from(place.uses) << 32 | u64::from(at)
    }

    /// Takes it out.
    pub(super) fn take(&mut self, name: u64) -> Option<Ticket> {
        let (at, uses) = (name as u32, (name >> 32) as u32);
        let place = self.places.get_mut(at as usize).filter(|place| place.uses == uses)?;
        let ticket = place.ticket.take()?;
        place.uses = uses.wrapping_add(1);
        self.uses = self.uses.max(place.uses);
        self.live -= 1;
        if self.live == 0 && self.places.len() > 1024 {
            // Nobody asks any more: the memory of a burst goes.
            (self.places, self.free) = (Vec::new(), Vec::new());
        } else {
            self.free.push(at);
        }
        Some(ticket)
    }

    /// Messages were taken for the wire.
    pub(super) fn taken(&mut self, tracks: &[Track], now: Instant) {
        for track in tracks {
            if let Some(ticket) = self.get_mut(track.ticket) {
                ticket.taken = Some(now);
            }
        }
    }

    /// Whether this message is to ask for its acknowledgement at once: somebody waits for it, or holds a receipt and
    /// nothing follows that would bring one along.
    pub(super) fn asks_now(&self, name: u64, last: bool) -> bool {
        let place = self.places.get(name as u32 as usize);
        match place.and_then(|place| place.ticket.as_ref()).map(|ticket| &ticket.asker) {
            Some(Asker::Receipt(state)) => last || state.is_waited_for(),
            _ => false,
        }
    }

    /// Looks at it.
    pub(super) fn get_mut(&mut self, name: u64) -> Option<&mut Ticket> {
        let place = self.places.get_mut(name as u32 as usize).filter(|place| place.uses == (name >> 32) as u32)?;
        place.ticket.as_mut()
    }
}
