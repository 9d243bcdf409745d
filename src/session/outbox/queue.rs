//! What waits on one lane of a peer: the open segment, and the sealed ones behind it.
//!
//! Owns: encoded messages that are not numbered yet. Threads: whoever holds the outbox lock. Locks: none itself.
//! Blocks on: nothing: the channel of sealed segments is bounded by the counts here, not by itself.
//! Upholds: messages leave in the order they were appended; the counts say exactly what is there.

use std::collections::VecDeque;
use std::time::Instant;

use crate::link::{Segment, Taken};
use crate::sync::channel::{Receiver, Sender, unbounded};
use crate::wire::{FrameHeader, FrameType, HEADER, Heading, LANES, Lane, Prefix, flags};

/// Bounds of a peer's queue, per lane.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueueLimits {
    /// Messages.
    pub(crate) messages: usize,
    /// Bytes of frames.
    pub(crate) bytes: usize,
}

/// One lane: the open segment, and how much there is in all.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) open: Vec<u8>,
    pub(super) open_frames: u32,
    /// When its first message was appended.
    open_since: Instant,
    debt: [u64; LANES],
    sealed: (Sender<Taken>, Receiver<Taken>),
    /// When the first message of each sealed segment was appended; as many as there are of them.
    sealed_since: VecDeque<Instant>,
    pub(super) messages: usize,
    pub(super) bytes: usize,
    /// The token's holder found no credit for this lane: appending need not wake anybody.
    pub(super) starved: bool,
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
            debt: [0; LANES],
            // Its length is bounded by the lane's bytes and messages, counted below.
            sealed: unbounded(),
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

    #[inline]
    pub(super) fn append(&mut self, lane: Lane, heading: Heading, payload: &[u8]) {
        let flags = heading.flags | flags::NUMBERED | flags::WHOLE;
        let length = heading.prefix_len() + payload.len();
        let header = FrameHeader::on_lane(FrameType::Data, lane, flags, heading.kind, length as u32);
        self.open.extend_from_slice(&header.to_bytes());
        if heading.correlation.is_some() {
            Prefix { correlation: heading.correlation, ..Prefix::default() }.put(&mut self.open);
        }
        self.open.extend_from_slice(payload);
        self.open_frames += 1;
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
    pub(super) fn put_large(&mut self, taken: Taken, now: Instant) {
        if self.open_frames > 0 {
            self.seal();
        }
        self.put_sealed(taken, now);
    }

    /// When the oldest message that waits was appended (at the earliest: the first of its segment).
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.sealed_since.front().copied().or((self.open_frames > 0).then_some(self.open_since))
    }

    pub(super) fn seal(&mut self) {
        let open = std::mem::take(&mut self.open);
        let segment = Segment::plain(open, std::mem::take(&mut self.open_frames));
        let debt = std::mem::take(&mut self.debt);
        self.put_sealed(Taken { segment, debt }, self.open_since);
    }

    fn put_sealed(&mut self, taken: Taken, since: Instant) {
        // The receiver lives beside the sender: it is never disconnected.
        if self.sealed.0.send(taken).is_ok() {
            self.sealed_since.push_back(since);
        }
    }

    pub(super) fn take(&mut self) -> Option<Taken> {
        if self.messages == 0 {
            return None;
        }
        if self.sealed_since.is_empty() {
            self.seal();
        }
        let taken = self.sealed.1.try_recv().ok()?;
        self.sealed_since.pop_front();
        self.messages -= taken.segment.messages as usize;
        self.bytes -= taken.segment.len().min(self.bytes);
        Some(taken)
    }
}
