//! Messages that wait one by one, because they may still be dropped, replaced or expire, or somebody asked about them.
//!
//! Owns: the payloads of one lane's such messages, in order, and who of them may be dropped, has a key, or expires.
//! Threads: whoever holds the outbox lock. Locks: none itself. Blocks on: nothing.
//! Upholds: a message that ends here leaves no trace on the wire: numbers are given later; the order of the others
//! stays; what replaces a message takes its place; places of messages that ended, and notes of them, are never many more
//! than messages that wait.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::Instant;

use super::entry::Entry;
use crate::link::{SEGMENT_BYTES, Segment, Track};
use crate::metrics::Groups;
use crate::wire::{FrameHeader, Lane, flags};

/// What is noted of a message beside its place.
#[derive(Debug, Clone, Copy, Default)]
struct Noted {
    key: Option<u64>,
    droppable: bool,
    expires: Option<Instant>,
}

impl Noted {
    fn of(entry: &Entry) -> Self {
        Self { key: entry.key, droppable: entry.droppable, expires: entry.expires }
    }
}

/// So many places or notes whose messages have ended are no matter.
const FEW: usize = 64;

/// The messages of one lane, by the order of their coming.
#[derive(Debug, Default)]
pub(super) struct Entries {
    /// By their numbers, which rise; `None` where a message has ended.
    places: VecDeque<(u64, Option<Entry>)>,
    /// The number of the next place.
    end: u64,
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
        self.end
    }

    /// Whether there is a place before this one.
    pub(super) fn starts_before(&self, place: u64) -> bool {
        self.places.front().is_some_and(|(first, _)| *first < place)
    }

    /// When the oldest came.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.places.iter().find_map(|(_, entry)| entry.as_ref()).map(|entry| entry.since)
    }

    /// When the next one expires, at the earliest.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.expiring.peek().map(|Reverse((when, _))| *when)
    }

    /// Adds one at the end.
    pub(super) fn append(&mut self, entry: Entry) {
        let place = self.end;
        self.end += 1;
        self.note(place, Noted::of(&entry), Noted::default());
        self.places.push_back((place, Some(entry)));
        self.live += 1;
    }

    /// Notes what holds for the message of a place, unless it was noted for the one before in that place.
    fn note(&mut self, place: u64, new: Noted, before: Noted) {
        if let Some(key) = new.key {
            self.keys.insert(key, place);
        }
        if new.droppable && !before.droppable {
            if self.is_many(self.droppable.len()) {
                let mut droppable = std::mem::take(&mut self.droppable);
                droppable.retain(|place| self.at(*place).is_some_and(|entry| entry.droppable));
                self.droppable = droppable;
            }
            self.droppable.push_back(place);
        }
        if let Some(expires) = new.expires
            && before.expires != Some(expires)
        {
            if self.is_many(self.expiring.len()) {
                let mut expiring = std::mem::take(&mut self.expiring).into_vec();
                expiring
                    .retain(|Reverse((when, place))| self.at(*place).is_some_and(|entry| entry.expires == Some(*when)));
                // Of one that was replaced to and fro there may be several.
                expiring.sort_unstable();
                expiring.dedup();
                self.expiring = expiring.into();
            }
            self.expiring.push(Reverse((expires, place)));
        }
    }

    /// Whether most of so many notes must be of messages that have gone.
    fn is_many(&self, notes: usize) -> bool {
        notes > FEW && notes > 2 * self.live
    }

    /// The message with this key that waits.
    pub(super) fn of_key(&self, key: u64) -> Option<&Entry> {
        self.keys.get(&key).and_then(|place| self.at(*place))
    }

    /// Puts a message in the place of the one with its key, which comes back; behind all others if there is none.
    pub(super) fn put(&mut self, entry: Entry) -> Option<Entry> {
        let place = entry.key.and_then(|key| self.keys.get(&key)).copied();
        let at = place.and_then(|place| self.index_of(place));
        let Some((place, Some(present))) = at.and_then(|at| self.places.get_mut(at)) else {
            self.append(entry);
            return None;
        };
        let (place, new) = (*place, Noted::of(&entry));
        let before = std::mem::replace(present, entry);
        self.note(place, new, Noted::of(&before));
        Some(before)
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
        let older = self.places.iter().filter(|(_, entry)| is_older(entry));
        let older: Vec<u64> = older.map(|(place, _)| *place).collect();
        let taken = older.into_iter().filter_map(|place| self.remove(place)).collect();
        self.trim();
        taken
    }

    /// Forgets places whose messages have ended: those at the front, and all of them if they are many. For a peer that is
    /// away nobody else does.
    fn trim(&mut self) {
        while let Some((_, None)) = self.places.front() {
            self.pop();
        }
        let dead = self.places.len() - self.live;
        if dead > FEW && dead > self.live {
            self.places.retain(|(_, entry)| entry.is_some());
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
        let end = self.end;
        let drained = std::mem::take(self).places.into_iter().filter_map(|(_, entry)| entry).collect();
        self.end = end;
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
        while let Some((place, front)) = self.places.front()
            && *place < upto
        {
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
                    made.segment = Some(entry.into_segment(lane, |ticket| asks(ticket, last)));
                    return made;
                }
                break;
            }
            let Some(entry) = self.pop() else { break };
            best_effort = Some(entry.best_effort);
            last = entry.ticket.map(|ticket| (bytes.len(), ticket));
            entry.put(lane, now, &mut bytes);
            tracks.extend(entry.ticket.map(|ticket| Track { frame: frames, ticket, expires: entry.expires }));
            frames += 1;
            made.count(&entry);
        }
        if frames > 0 {
            if best_effort == Some(false)
                && let Some((at, ticket)) = last
                && asks(ticket, !self.starts_before(upto))
                && let Some(header) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut)
            {
                let asked = FrameHeader::from_bytes(*header);
                *header = FrameHeader { flags: asked.flags | flags::ACK_NOW, ..asked }.to_bytes();
            }
            let segment = Segment::plain(bytes, frames).tracked(tracks);
            made.segment = Some(if best_effort == Some(true) { segment.unnumbered() } else { segment });
        }
        made
    }

    /// Where a place is, if it is there still.
    fn index_of(&self, place: u64) -> Option<usize> {
        self.places.binary_search_by_key(&place, |(number, _)| *number).ok()
    }

    fn at(&self, place: u64) -> Option<&Entry> {
        self.places.get(self.index_of(place)?)?.1.as_ref()
    }

    /// Takes the message of a place out; the place stays.
    fn remove(&mut self, place: u64) -> Option<Entry> {
        let at = self.index_of(place)?;
        let entry = self.places.get_mut(at)?.1.take()?;
        self.forget(&entry, place);
        Some(entry)
    }

    /// Takes the first place away, with its message if it has one.
    fn pop(&mut self) -> Option<Entry> {
        let (place, entry) = self.places.pop_front()?;
        if let Some(entry) = &entry {
            self.forget(entry, place);
        }
        while self.droppable.front().is_some_and(|droppable| *droppable <= place) {
            self.droppable.pop_front();
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::Class;
    use crate::wire::Heading;

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

    /// A message that expires never, is not dropped and has no key.
    fn lasting() -> Entry {
        Entry::plain(Class::PLAIN, Heading::of_kind(0), b"x".to_vec(), Instant::now())
    }

    /// Places without a message, and notes of places.
    fn dead(entries: &Entries) -> (usize, usize) {
        (entries.places.len() - entries.live, entries.droppable.len() + entries.expiring.len())
    }

    #[test]
    fn messages_that_end_behind_one_that_stays_leave_a_bounded_number_of_places() {
        let (mut entries, mut now) = (Entries::default(), Instant::now());
        entries.append(lasting());
        for round in 0..10_000 {
            now += Duration::from_millis(1);
            let expires = Some(now + Duration::from_millis(5));
            entries.append(Entry { expires, droppable: true, ..lasting() });
            entries.expire(now);
            assert!(dead(&entries).0 <= 80 && dead(&entries).1 <= 200, "{round}: {:?}", dead(&entries));
        }
        assert_eq!((entries.live, entries.end()), (1 + 5, 10_001));
        // The places that are left are those of the messages that are left.
        assert_eq!(entries.expire(now + Duration::from_secs(1)).len(), 5);
        assert_eq!(entries.make(Lane::Normal, entries.end(), now, |_, _| false).messages, 1);
    }

    #[test]
    fn a_message_that_is_replaced_again_and_again_is_noted_once() {
        let (mut entries, now) = (Entries::default(), Instant::now());
        let keyed = |expires| Entry { expires, droppable: true, key: Some(1), ..lasting() };
        let turns = [now + Duration::from_secs(1), now + Duration::from_secs(2)].map(Some);
        entries.append(keyed(None));
        (0..10_000).for_each(|round| assert!(entries.put(keyed(turns[round % 2])).is_some()));
        assert!(dead(&entries).1 <= 80, "{:?}", dead(&entries));
        assert!(entries.drop_oldest().is_some() && entries.drop_oldest().is_none());
    }

    #[test]
    fn messages_that_are_taken_from_a_queue_that_is_never_empty_leave_no_notes_behind() {
        let mut entries = Entries::default();
        entries.append(lasting());
        for _ in 0..1_000 {
            entries.append(Entry { droppable: true, ..lasting() });
            let upto = entries.end() - 1;
            assert_eq!(entries.make(Lane::Normal, upto, Instant::now(), |_, _| false).messages, 1);
        }
        assert_eq!(dead(&entries), (0, 1));
    }
}
