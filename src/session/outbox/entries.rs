//! Messages that wait one by one, because they may still be dropped, replaced or expire, or somebody asked about them.
//!
//! Owns: the payloads of one lane's such messages, in order, and who of them may be dropped, has a key, or expires.
//! Threads: whoever holds the outbox lock. Locks: none itself. Blocks on: nothing.
//! Upholds: a message that ends here leaves no trace on the wire: numbers are given later; the order of the others
//! stays; what replaces a message takes its place.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::link::{LARGE, Payload, SEGMENT_BYTES, Segment, Track};
use crate::metrics::{Class, Groups};
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

    fn is_large(&self) -> bool {
        self.payload.len() > LARGE && !self.best_effort
    }

    fn put(&self, lane: Lane, now: Instant, ack_now: bool, out: &mut Vec<u8>) {
        let flags = self.flags() | if ack_now { flags::ACK_NOW } else { flags::NONE };
        let length = (self.len() - HEADER) as u32;
        out.extend_from_slice(
            &FrameHeader::on_lane(FrameType::Data, lane, flags, self.heading.kind, length).to_bytes(),
        );
        let remaining = self.expires.map(|expires| remaining_ms(expires.saturating_duration_since(now)));
        Prefix { remaining, correlation: self.heading.correlation, total: None }.put(out);
        out.extend_from_slice(&self.payload);
    }
}

/// The messages of one lane, by the order of their coming.
#[derive(Debug, Default)]
pub(super) struct Entries {
    /// `None` where one has ended.
    places: VecDeque<Option<Entry>>,
    /// The place number of the first.
    first: u64,
    live: usize,
    keys: HashMap<u64, u64>,
    /// Places whose messages may be dropped, oldest first; some may have gone.
    droppable: VecDeque<u64>,
    /// When messages expire, earliest first; some may have gone.
    expiring: BinaryHeap<Reverse<(Instant, u64)>>,
}

/// A segment made of messages, and what ended on the way.
#[derive(Debug, Default)]
pub(super) struct Made {
    pub(super) segment: Option<Segment>,
    /// Messages and bytes that left the queue in it.
    pub(super) messages: usize,
    pub(super) bytes: usize,
    pub(super) expired: Vec<Entry>,
    /// What the segment's messages count as, and when the first of them came.
    pub(super) groups: Groups,
    pub(super) since: Option<Instant>,
}

impl Made {
    /// One more message is in the segment.
    fn count(&mut self, entry: &Entry) {
        self.messages += 1;
        self.bytes += entry.len();
        self.groups.push(entry.class, 1, entry.payload.len() as u64);
        self.since.get_or_insert(entry.since);
    }
}

impl Entries {
    /// The number of the place after the last.
    pub(super) fn end(&self) -> u64 {
        self.first + self.places.len() as u64
    }

    /// Whether there is a place before this one.
    pub(super) fn starts_before(&self, place: u64) -> bool {
        self.first < place
    }

    /// When the oldest came.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.places.iter().flatten().map(|entry| entry.since).next()
    }

    /// When the next one expires, at the earliest.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.expiring.peek().map(|Reverse((when, _))| *when)
    }

    /// Adds one at the end.
    pub(super) fn append(&mut self, entry: Entry) {
        let place = self.end();
        self.note(&entry, place);
        self.places.push_back(Some(entry));
        self.live += 1;
    }

    fn note(&mut self, entry: &Entry, place: u64) {
        if let Some(key) = entry.key {
            self.keys.insert(key, place);
        }
        if entry.droppable {
            self.droppable.push_back(place);
        }
        if let Some(expires) = entry.expires {
            if self.expiring.len() > 64 && self.expiring.len() > 2 * self.live {
                // Most have gone by now.
                let (first, places) = (self.first, &self.places);
                self.expiring.retain(|Reverse((when, place))| {
                    let entry = place.checked_sub(first).and_then(|at| places.get(at as usize));
                    entry.and_then(Option::as_ref).is_some_and(|entry| entry.expires == Some(*when))
                });
            }
            self.expiring.push(Reverse((expires, place)));
        }
    }

    /// The message with this key that waits.
    pub(super) fn of_key(&self, key: u64) -> Option<&Entry> {
        self.keys.get(&key).and_then(|place| self.at(*place))
    }

    /// Puts a message in the place of the one with its key, which comes back; the new one does if there is none.
    pub(super) fn replace(&mut self, entry: Entry) -> Result<Entry, Entry> {
        let place = entry.key.and_then(|key| self.keys.get(&key)).copied();
        let Some(place) = place.filter(|place| self.at(*place).is_some()) else { return Err(entry) };
        let old = self.remove(place);
        self.note(&entry, place);
        let at = (place - self.first) as usize;
        match (old, self.places.get_mut(at)) {
            (Some(old), Some(slot)) => {
                *slot = Some(entry);
                self.live += 1;
                Ok(old)
            }
            // It was there a moment ago, under the same lock.
            _ => Err(entry),
        }
    }

    /// Takes the oldest message out that may be dropped.
    pub(super) fn drop_oldest(&mut self) -> Option<Entry> {
        while let Some(place) = self.droppable.pop_front() {
            if self.at(place).is_some_and(|entry| entry.droppable) {
                let dropped = self.remove(place);
                self.trim();
                return dropped;
            }
        }
        None
    }

    /// Takes the messages out that came by `limit`.
    pub(super) fn take_older(&mut self, limit: Instant) -> Vec<Entry> {
        // One that took another's place is younger than those behind it.
        let is_older = |entry: &Option<Entry>| entry.as_ref().is_some_and(|entry| entry.since <= limit);
        let older = (self.first..).zip(&self.places).filter(|(_, entry)| is_older(entry));
        let older: Vec<u64> = older.map(|(place, _)| place).collect();
        let taken = older.into_iter().filter_map(|place| self.remove(place)).collect();
        self.trim();
        taken
    }

    /// Forgets places at the front whose messages have ended: for a peer that is away nobody else does.
    fn trim(&mut self) {
        while let Some(None) = self.places.front() {
            self.pop();
        }
    }

    /// Takes the messages out that have expired.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Entry> {
        let mut expired = Vec::new();
        while let Some(Reverse((when, place))) = self.expiring.peek().copied()
            && when <= now
        {
            self.expiring.pop();
            if self.at(place).is_some_and(|entry| entry.expires == Some(when)) {
                expired.extend(self.remove(place));
            }
        }
        self.trim();
        expired
    }

    /// Takes all messages out.
    pub(super) fn drain(&mut self) -> Vec<Entry> {
        let first = self.end();
        let drained = std::mem::take(self).places.into_iter().flatten().collect();
        self.first = first;
        drained
    }

    /// Makes a segment of the messages at the front, before place `upto`: a big one alone, or as many small ones of the
    /// same delivery as a segment holds. The last of them asks for its acknowledgement if `asks` says so, which hears its
    /// ticket and whether it is the last before `upto`.
    pub(super) fn make(&mut self, lane: Lane, upto: u64, now: Instant, asks: impl FnOnce(u64, bool) -> bool) -> Made {
        let mut made = Made::default();
        let (mut bytes, mut tracks, mut frames) = (Vec::new(), Vec::new(), 0u32);
        let mut best_effort = None;
        let mut last: Option<(usize, u64)> = None;
        while self.first < upto {
            let Some(front) = self.places.front() else { break };
            let Some(entry) = front else {
                self.pop();
                continue;
            };
            if entry.expires.is_some_and(|expires| expires <= now) {
                made.expired.extend(self.pop());
                continue;
            }
            let fits = bytes.is_empty() || bytes.len() + entry.len() <= SEGMENT_BYTES;
            if !fits || best_effort.is_some_and(|so_far| so_far != entry.best_effort) {
                break;
            }
            if entry.is_large() {
                if frames == 0
                    && let Some(entry) = self.pop()
                {
                    made.count(&entry);
                    let last = !self.starts_before(upto);
                    made.segment = Some(large(lane, entry, |ticket| asks(ticket, last)));
                    return made;
                }
                break;
            }
            let Some(entry) = self.pop() else { break };
            best_effort = Some(entry.best_effort);
            last = entry.ticket.map(|ticket| (bytes.len(), ticket));
            entry.put(lane, now, false, &mut bytes);
            tracks.extend(entry.ticket.map(|ticket| Track { frame: frames, ticket, expires: entry.expires }));
            frames += 1;
            made.count(&entry);
        }
        if frames > 0 {
            if best_effort == Some(false)
                && let Some((at, ticket)) = last
                && asks(ticket, !self.starts_before(upto))
                && let Some(flag_bits) = bytes.get_mut(at + 5)
            {
                *flag_bits |= flags::ACK_NOW;
            }
            let segment = Segment::plain(bytes, frames).tracked(tracks);
            made.segment = Some(if best_effort == Some(true) { segment.unnumbered() } else { segment });
        }
        made
    }

    fn at(&self, place: u64) -> Option<&Entry> {
        self.places.get(place.checked_sub(self.first)? as usize)?.as_ref()
    }

    /// Takes the message of a place out; the place stays.
    fn remove(&mut self, place: u64) -> Option<Entry> {
        let entry = self.places.get_mut(place.checked_sub(self.first)? as usize)?.take()?;
        self.forget(&entry, place);
        Some(entry)
    }

    /// Takes the first place away, with its message if it has one.
    fn pop(&mut self) -> Option<Entry> {
        let place = self.first;
        let entry = self.places.pop_front()?;
        self.first += 1;
        if let Some(entry) = &entry {
            self.forget(entry, place);
        }
        if self.places.is_empty() {
            self.droppable.clear();
            self.expiring.clear();
        }
        entry
    }

    fn forget(&mut self, entry: &Entry, place: u64) {
        self.live -= 1;
        if let Some(key) = entry.key
            && self.keys.get(&key) == Some(&place)
        {
            self.keys.remove(&key);
        }
    }
}

fn large(lane: Lane, entry: Entry, asks: impl FnOnce(u64) -> bool) -> Segment {
    let mut heading = entry.heading;
    if entry.expires.is_some() {
        heading.flags |= flags::EXPIRY;
    }
    if entry.ticket.is_some_and(asks) {
        heading.flags |= flags::ACK_NOW;
    }
    let segment = Segment::large(lane, heading, entry.payload);
    let frame = segment.frames - 1;
    let track = entry.ticket.map(|ticket| Track { frame, ticket, expires: entry.expires });
    segment.tracked(track.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_that_end_while_nobody_takes_any_leave_no_places_behind() {
        let (mut entries, began) = (Entries::default(), Instant::now());
        let payload = || b"x".to_vec();
        for round in 0..1_000 {
            let since = began + Duration::from_secs(round);
            let expires = Some(since);
            let plain = |_| Entry::plain(Class::PLAIN, Heading::of_kind(0), payload(), since);
            (0..3).map(plain).for_each(|entry| entries.append(entry));
            entries.append(Entry { expires, droppable: true, ..plain(0) });
            assert_eq!(entries.expire(since).len(), 1);
            entries.append(Entry { droppable: true, ..plain(0) });
            assert!(entries.drop_oldest().is_some());
            assert_eq!(entries.take_older(since).len(), 3);
            assert_eq!((entries.places.len(), entries.droppable.len(), entries.end()), (0, 0, 5 * (round + 1)));
        }
    }
}
