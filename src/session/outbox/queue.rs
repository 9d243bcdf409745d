//! What waits on one lane of a peer: the open segment, the sealed ones before it, and messages that wait one by one.
//!
//! Owns: encoded messages that are not numbered yet. Threads: whoever holds the outbox lock. Locks: none itself.
//! Blocks on: nothing: the channel of sealed segments is bounded by the counts here, not by itself.
//! Upholds: messages leave in the order they were appended, of whichever sort; the counts say exactly what is there.
//!
//! ```text
//!   front -> sealed channel: Segment | Entries(upto) | Segment ... -> the open end: a segment or entries, never both
//! ```

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::entries::Entries;
use super::entry::Entry;
use crate::config::Offline;
use crate::link::{Payload, Segment, Taken};
use crate::metrics::{Class, Groups, Tally};
use crate::session::row::put_frame;
use crate::sync::channel::{Receiver, Sender, unbounded};
use crate::wire::{HEADER, Heading, LANES, Lane};

/// Bounds of a peer's queue, per lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QueueLimits {
    /// Messages.
    pub(crate) messages: usize,
    /// Bytes of frames.
    pub(crate) bytes: usize,
    /// What becomes of messages while the peer is away.
    pub(crate) offline: Offline,
    /// How long messages are wanted that do not say so.
    pub(crate) ttl: Option<Duration>,
}

/// One lane: the open segment, and how much there is in all.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) open: Vec<u8>,
    pub(super) open_frames: u32,
    /// When its first message was appended.
    open_since: Instant,
    /// What its messages count as, but for those since the class last changed.
    open_groups: Groups,
    /// That class, where its messages begin in the open segment, and what stands in front of their payloads there.
    class: Class,
    class_frames: u32,
    class_bytes: usize,
    prefixes: usize,
    /// Messages appended, but for those of the open segment.
    begun: Tally,
    /// What waits here goes on elsewhere: it begins there, or where it ends here.
    passes_on: bool,
    debt: [u64; LANES],
    sealed: (Sender<Sealed>, Receiver<Sealed>),
    /// What was received from that channel and not taken to its end.
    front: Option<Sealed>,
    /// Messages that wait one by one, wherever they are in the order; those from `entries_sealed` on are the open end.
    entries: Entries,
    entries_sealed: u64,
    /// When the first message of each sealed segment was appended; as many as there are of them.
    sealed_since: VecDeque<Instant>,
    pub(super) messages: usize,
    pub(super) bytes: usize,
    /// The token's holder found no credit for this lane: appending need not wake anybody.
    pub(super) starved: bool,
}

/// A part of the order whose place is fixed.
#[derive(Debug)]
enum Sealed {
    /// Apart: a channel takes room for 31 at a time, and most peers never have more than one.
    Segment(Box<Taken>),
    /// The entries before this place.
    Entries(u64),
}

/// What a push appends.
pub(crate) enum Item<'a> {
    /// A message that is copied into the open segment.
    Small {
        /// What its frame says of it.
        heading: Heading,
        /// The message.
        payload: &'a [u8],
    },
    /// A message that is a segment of its own.
    Large(Segment),
}

#[cfg(test)]
impl QueueLimits {
    /// Bounds alone: messages are kept, for ever.
    pub(crate) fn bounds(messages: usize, bytes: usize) -> Self {
        Self { messages, bytes, offline: Offline::Keep, ttl: None }
    }
}

impl Item<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Small { heading, payload } => HEADER + heading.prefix_len() + payload.len(),
            Self::Large(segment) => segment.len(),
        }
    }
}

impl Queue {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            open: Vec::new(),
            open_frames: 0,
            open_since: now,
            open_groups: Groups::default(),
            class: Class::PLAIN,
            class_frames: 0,
            class_bytes: 0,
            prefixes: 0,
            begun: Tally::default(),
            passes_on: false,
            debt: [0; LANES],
            // Its length is bounded by the lane's bytes and messages, counted below.
            sealed: unbounded(),
            front: None,
            entries: Entries::default(),
            entries_sealed: 0,
            sealed_since: VecDeque::new(),
            messages: 0,
            bytes: 0,
            starved: false,
        }
    }

    /// One message larger than the bound is accepted when the lane is empty.
    #[inline]
    pub(super) fn has_room(&self, len: usize, limits: QueueLimits) -> bool {
        self.messages == 0 || (self.messages < limits.messages && self.bytes + len <= limits.bytes)
    }

    /// Whether a message fits that takes the place of one of `old` bytes.
    pub(super) fn has_room_instead(&self, len: usize, old: usize, limits: QueueLimits) -> bool {
        self.messages == 1 || self.bytes - old + len <= limits.bytes
    }

    #[inline]
    pub(super) fn append(&mut self, lane: Lane, class: Class, heading: Heading, payload: &[u8]) {
        if self.class != class {
            self.end_group();
            self.class = class;
        }
        put_frame(&mut self.open, lane, heading, payload);
        self.prefixes += heading.prefix_len();
        self.open_frames += 1;
    }

    /// Appends encoded messages without prefixes to the open segment, where there is room for them.
    pub(super) fn append_frames(&mut self, class: Class, frames: &[u8], messages: u32) {
        if self.class != class {
            self.end_group();
            self.class = class;
        }
        self.open.extend_from_slice(frames);
        self.open_frames += messages;
    }

    /// Messages of the open segment that are in none of its groups yet, and the bytes of their payloads.
    fn ungrouped(&self) -> (u32, u64) {
        let messages = self.open_frames - self.class_frames;
        let bytes = self.open.len() - self.class_bytes - self.prefixes - messages as usize * HEADER;
        (messages, bytes as u64)
    }

    /// The class changes, or the segment is over.
    #[cold]
    #[inline(never)]
    fn end_group(&mut self) {
        let (messages, bytes) = self.ungrouped();
        if messages > 0 {
            self.open_groups.push(self.class, messages, bytes);
        }
        (self.class_frames, self.class_bytes, self.prefixes) = (self.open_frames, self.open.len(), 0);
    }

    /// Messages appended so far, by class.
    pub(super) fn begun(&self) -> Tally {
        let mut begun = self.begun.clone();
        begun.add_all(&self.open_groups);
        let (messages, bytes) = self.ungrouped();
        begun.add(self.class, messages.into(), bytes);
        begun
    }

    /// From now on what waits here goes on elsewhere, but what ends before that.
    pub(super) fn pass_on(&mut self) {
        self.passes_on = true;
    }

    /// Messages that wait and are not counted as appended yet.
    pub(super) fn uncounted(&self) -> usize {
        if self.passes_on { self.messages } else { 0 }
    }

    /// A message is accepted.
    pub(super) fn begin(&mut self, entry: &Entry) {
        if !self.passes_on {
            self.begun.add(entry.class, 1, entry.payload.len() as u64);
        }
    }

    /// A message ends here.
    pub(super) fn end(&mut self, entry: &Entry) {
        if self.passes_on {
            self.begun.add(entry.class, 1, entry.payload.len() as u64);
        }
    }

    #[inline]
    pub(super) fn owe(&mut self, debt: [u64; LANES]) {
        for (owed, more) in self.debt.iter_mut().zip(debt) {
            *owed += more;
        }
    }

    /// Gives the open segment, which is empty, a buffer. What is appended to it counts as queued from now on.
    pub(super) fn open(&mut self, buffer: Vec<u8>, now: Instant) {
        debug_assert!(self.open_frames == 0);
        self.open = buffer;
        self.open_since = now;
    }

    /// A segment of its own, behind all that was appended before.
    pub(super) fn put_large(&mut self, class: Class, segment: Segment, debt: [u64; LANES], now: Instant) {
        self.seal_end();
        let groups = Groups::of(class, 1, segment.bytes().len() as u64);
        self.begun.add_all(&groups);
        self.put_sealed(Taken { segment, debt, groups, since: now });
    }

    /// A segment of encoded messages without prefixes, behind all that was appended before.
    pub(super) fn put_frames(&mut self, class: Class, frames: Payload, messages: u32, since: Instant) {
        self.seal_end();
        let groups = Groups::of(class, messages, (frames.len() - messages as usize * HEADER) as u64);
        self.begun.add_all(&groups);
        self.put_sealed(Taken { segment: Segment::plain(frames, messages), debt: [0; LANES], groups, since });
    }

    /// A message that waits by itself, behind all that was appended before.
    pub(super) fn put_entry(&mut self, entry: Entry) {
        if self.open_frames > 0 {
            self.seal();
        }
        self.messages += 1;
        self.bytes += entry.len();
        self.begin(&entry);
        self.entries.append(entry);
    }

    /// Whether the open end is messages that wait one by one.
    pub(super) fn ends_in_entries(&self) -> bool {
        self.entries.end() > self.entries_sealed
    }

    /// The messages that wait one by one.
    pub(super) fn entries(&self) -> &Entries {
        &self.entries
    }

    /// Puts a message in the place of the one with its key, which comes back; behind all that was appended before, by itself,
    /// if there is none.
    pub(super) fn put_by_key(&mut self, entry: Entry) -> Option<Entry> {
        let replaces = entry.key.is_some_and(|key| self.entries.of_key(key).is_some());
        if !replaces && self.open_frames > 0 {
            self.seal();
        }
        self.begin(&entry);
        self.messages += 1;
        self.bytes += entry.len();
        let before = self.entries.put(entry);
        if let Some(before) = &before {
            self.left(before);
        }
        before
    }

    /// Takes the oldest message out that may be dropped.
    pub(super) fn drop_oldest(&mut self) -> Option<Entry> {
        let entry = self.entries.drop_oldest()?;
        self.left(&entry);
        Some(entry)
    }

    /// Takes the messages out that have expired.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Entry> {
        let expired = self.entries.expire(now);
        expired.iter().for_each(|entry| self.left(entry));
        expired
    }

    /// Takes the messages out that wait one by one and came by `limit`.
    pub(super) fn take_older(&mut self, limit: Instant) -> Vec<Entry> {
        let older = self.entries.take_older(limit);
        older.iter().for_each(|entry| self.left(entry));
        older
    }

    /// Takes everything out.
    pub(super) fn drain(&mut self) -> (Vec<Taken>, Vec<Entry>) {
        self.seal_end();
        let rest = std::iter::from_fn(|| self.sealed.1.try_recv().ok());
        let sealed = self.front.take().into_iter().chain(rest);
        let segments = sealed.filter_map(|sealed| match sealed {
            Sealed::Segment(taken) => Some(*taken),
            Sealed::Entries(_) => None,
        });
        let segments = segments.collect();
        self.sealed_since.clear();
        (self.messages, self.bytes) = (0, 0);
        (segments, self.entries.drain())
    }

    fn left(&mut self, entry: &Entry) {
        self.messages -= 1;
        self.bytes -= entry.len();
    }

    /// Fixes the place of what was appended so far; whether there was something.
    fn seal_end(&mut self) -> bool {
        let open = self.open_frames > 0;
        if open {
            self.seal();
        }
        let entries = self.ends_in_entries();
        if entries {
            self.entries_sealed = self.entries.end();
            // The receiver lives beside the sender: it is never disconnected.
            let _ = self.sealed.0.send(Sealed::Entries(self.entries_sealed));
        }
        open || entries
    }

    /// When the oldest message that waits was appended (at the earliest: the first of its segment).
    pub(super) fn oldest(&self) -> Option<Instant> {
        let open = (self.open_frames > 0).then_some(self.open_since);
        [self.sealed_since.front().copied(), self.entries.oldest(), open].into_iter().flatten().min()
    }

    pub(super) fn seal(&mut self) {
        self.end_group();
        let groups = std::mem::take(&mut self.open_groups);
        self.begun.add_all(&groups);
        let open = std::mem::take(&mut self.open);
        let segment = Segment::plain(open, std::mem::take(&mut self.open_frames));
        (self.class_frames, self.class_bytes) = (0, 0);
        let debt = std::mem::take(&mut self.debt);
        self.put_sealed(Taken { segment, debt, groups, since: self.open_since });
    }

    fn put_sealed(&mut self, taken: Taken) {
        let since = taken.since;
        // The receiver lives beside the sender: it is never disconnected.
        if self.sealed.0.send(Sealed::Segment(Box::new(taken))).is_ok() {
            self.sealed_since.push_back(since);
        }
    }

    /// The next segment, and the messages that are found to have expired. `asks` says whether the last message of a
    /// segment, by its ticket, is to ask for its acknowledgement at once; it hears whether nothing follows on this lane.
    pub(super) fn take(
        &mut self,
        lane: Lane,
        now: Instant,
        asks: impl Fn(u64, bool) -> bool,
    ) -> (Option<Taken>, Vec<Entry>) {
        let mut expired = Vec::new();
        while self.messages > 0 {
            let upto = match self.front.take().or_else(|| self.sealed.1.try_recv().ok()) {
                Some(Sealed::Segment(taken)) => {
                    self.sealed_since.pop_front();
                    self.messages -= taken.segment.messages as usize;
                    self.bytes -= taken.segment.len().min(self.bytes);
                    return (Some(*taken), expired);
                }
                Some(Sealed::Entries(upto)) => upto,
                None if self.seal_end() => continue,
                None => break,
            };
            let end = self.entries.end() == upto && self.sealed.1.is_empty() && self.open_frames == 0;
            let made = self.entries.make(lane, upto, now, |ticket, last| asks(ticket, last && end));
            self.messages -= made.messages;
            self.bytes -= made.bytes;
            made.expired.iter().for_each(|entry| self.left(entry));
            expired.extend(made.expired);
            if self.entries.starts_before(upto) {
                self.front = Some(Sealed::Entries(upto));
            }
            if let Some(segment) = made.segment {
                let since = made.since.unwrap_or(now);
                return (Some(Taken { segment, debt: [0; LANES], groups: made.groups, since }), expired);
            }
        }
        (None, expired)
    }
}
