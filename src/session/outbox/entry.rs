//! One message that waits by itself, and how it is encoded when it is taken.
//!
//! Owns: the message. Threads: whoever holds the outbox lock. Locks: none. Blocks on: nothing.
//! Upholds: what it counts in the queue is what it takes on the wire, but for the headers of a big one's pieces.

use std::time::{Duration, Instant};

use crate::link::{LARGE, Payload, Segment, Track};
use crate::metrics::Class;
use crate::wire::{FrameHeader, FrameType, HEADER, Heading, Lane, Prefix, flags, remaining_ms};

/// One message.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) heading: Heading,
    pub(crate) payload: Payload,
    /// What it counts as.
    pub(crate) class: Class,
    /// Its ticket; a message nobody asked about that came among others has none.
    pub(crate) ticket: Option<u64>,
    /// When it is no longer wanted.
    pub(crate) expires: Option<Instant>,
    pub(crate) best_effort: bool,
    /// It agreed to be dropped for a newer one.
    pub(crate) droppable: bool,
    /// The latest of this key is wanted only.
    pub(crate) key: Option<u64>,
    /// When it was appended.
    pub(crate) since: Instant,
    /// How old it was then, in milliseconds: an entry is moved about, and has no room for another time.
    pub(crate) age_ms: u32,
}

impl Entry {
    /// A message that came by a plain verb while others waited one by one.
    pub(super) fn plain(class: Class, heading: Heading, payload: Vec<u8>, since: Instant) -> Self {
        let payload = payload.into();
        Self {
            heading,
            payload,
            class,
            ticket: None,
            expires: None,
            best_effort: false,
            droppable: false,
            key: None,
            since,
            age_ms: 0,
        }
    }

    /// When the application made it: what its timing counts from.
    pub(super) fn created(&self) -> Instant {
        self.since.checked_sub(Duration::from_millis(self.age_ms.into())).unwrap_or(self.since)
    }

    /// Bytes it counts in the queue: what it takes on the wire if it is one frame.
    pub(crate) fn len(&self) -> usize {
        HEADER + Prefix::len(self.flags()) + self.payload.len()
    }

    fn flags(&self) -> u8 {
        let expiry = if self.expires.is_some() { flags::EXPIRY } else { flags::NONE };
        let numbered = if self.best_effort { flags::NONE } else { flags::NUMBERED };
        self.heading.flags | expiry | numbered | flags::WHOLE
    }

    /// Whether it is a segment of its own.
    pub(super) fn is_large(&self) -> bool {
        self.payload.len() > LARGE && !self.best_effort
    }

    /// Appends its frame.
    pub(super) fn put(&self, lane: Lane, now: Instant, out: &mut Vec<u8>) {
        let length = (self.len() - HEADER) as u32;
        out.extend_from_slice(
            &FrameHeader::on_lane(FrameType::Data, lane, self.flags(), self.heading.kind, length).to_bytes(),
        );
        let remaining = self.expires.map(|expires| remaining_ms(expires.saturating_duration_since(now)));
        Prefix { remaining, correlation: self.heading.correlation, total: None }.put(out);
        out.extend_from_slice(&self.payload);
    }

    /// The segment that it is by itself: a big message. It asks for its acknowledgement if `asks` says so of its ticket.
    pub(super) fn into_segment(self, lane: Lane, asks: impl FnOnce(u64) -> bool) -> Segment {
        let mut heading = self.heading;
        if self.expires.is_some() {
            heading.flags |= flags::EXPIRY;
        }
        if self.ticket.is_some_and(asks) {
            heading.flags |= flags::ACK_NOW;
        }
        let segment = Segment::large(lane, heading, self.payload);
        let frame = segment.frames - 1;
        let track = self.ticket.map(|ticket| Track { frame, ticket, expires: self.expires });
        segment.tracked(track.into_iter().collect())
    }
}
