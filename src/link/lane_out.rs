//! The sending side of one lane: numbers, retention, acknowledgements, credit.
//!
//! Owns: the numbered segments until they are done at the receiver, and the position of the next frame to write.
//! Threads: whoever holds the link lock. Locks: none itself. Blocks on: nothing.
//! Upholds: numbers are given once and in order; nothing below `done` is ever written again, nothing at or above it is
//! forgotten; no frame is written beyond the receiver's credit.
//!
//! ```text
//!        base = done            cursor                 next
//!  ---------|---------------------|----------------------|------->  numbers
//!   freed   |  written, kept      |  numbered, unwritten |  not numbered yet: the outbox
//! ```

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use crate::link::aside::Aside;
use crate::link::chunk::{Chunk, ChunkBody};
use crate::link::fault::Fault;
use crate::link::offer::{Lost, Probe};
use crate::link::segment::{Extract, LARGE, SEGMENT_BYTES, Segment, Span};
use crate::metrics::{Class, Groups, Tally};
use crate::wire::{FrameHeader, FrameType, HEADER, Lane, LaneAttach, flags, put_segment};

/// Retention of one lane.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct LaneOut {
    lane: Lane,
    /// Bytes that may be numbered and not done.
    window: usize,
    kept: VecDeque<Kept>,
    kept_bytes: usize,
    /// All numbers below are done at the receiver.
    done: u64,
    /// The next number to give.
    next: u64,
    cursor: Cursor,
    /// All numbers below were written at least once.
    sent: u64,
    /// Numbers below were already repeated to one new incarnation.
    replayed: u64,
    /// The receiver expects this number, and it was given up: say SKIP before anything else.
    skip_from: Option<u64>,
    /// The number our attach frame told as `base`: where a receiver without a state starts.
    described: u64,
    /// Bytes written since the attach, and bytes the receiver allows since then.
    sent_bytes: u64,
    credit_bytes: u64,
    /// The writer found something to write and no credit, or no window: tell it when that changes.
    starved: bool,
    /// A message that is on its way, and whose time is measured.
    probe: Aside<Option<Probe>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Kept {
    first: u64,
    segment: Arc<Segment>,
    /// What its messages count as, and the bytes of those that were not rejected or lost.
    groups: Groups,
}

/// The next frame to write: in which kept segment, which of its frames, at which offset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Cursor {
    segment: usize,
    frame: u32,
    offset: usize,
}

/// What an acknowledgement changed.
#[derive(Debug, Default)]
pub(crate) struct Freed {
    /// Messages that ended.
    pub(crate) messages: u64,
    /// The same by class. Bytes are those of segments that are freed, and are not among those of [`LaneOut::take`].
    pub(crate) ended: Tally,
    /// The message whose time was measured is one of them.
    pub(crate) probe: Option<Probe>,
    /// The numbers of those that somebody wants to hear of, and their tickets.
    pub(crate) tickets: Vec<(u64, u64)>,
    /// Segments that nobody needs any more.
    pub(crate) segments: Vec<Arc<Segment>>,
    /// The writer waited for this.
    pub(crate) wake: bool,
}

impl LaneOut {
    /// Keeps up to so many bytes from now on; what is kept stays.
    pub(crate) fn set_window(&mut self, window: usize) {
        self.window = window;
    }

    /// An empty lane that keeps up to `window` bytes.
    pub(crate) fn new(lane: Lane, window: usize) -> Self {
        Self {
            lane,
            window,
            kept: VecDeque::new(),
            kept_bytes: 0,
            done: 0,
            next: 0,
            cursor: Cursor::default(),
            sent: 0,
            replayed: 0,
            skip_from: None,
            described: 0,
            sent_bytes: 0,
            credit_bytes: 0,
            starved: false,
            probe: Aside::default(),
        }
    }

    /// Whether another segment may be numbered now: all before are written, there is credit for a frame at least, and
    /// the window has room (a message larger than the window is taken when the lane is empty).
    pub(crate) fn can_number(&mut self) -> bool {
        let open = self.sent_bytes < self.credit_bytes && (self.kept_bytes < self.window || self.kept.is_empty());
        self.starved |= !open;
        open && !self.has_unwritten()
    }

    /// Numbered and not written yet in this session.
    pub(crate) fn has_unwritten(&self) -> bool {
        self.cursor.segment < self.kept.len()
    }

    /// Numbers a segment and keeps it; nothing may be unwritten. A short plain segment that has credit is copied to
    /// the end of retention and given back as the chunk to write, so that a buffer is not kept for a few bytes.
    pub(crate) fn number(
        &mut self,
        segment: Segment,
        groups: Groups,
        turn: usize,
        now: Instant,
        head: &mut Vec<u8>,
    ) -> Option<Chunk> {
        debug_assert!(!self.has_unwritten());
        let (first, frames, len) = (self.next, segment.frames, segment.len());
        self.next += u64::from(frames);
        let probe = self.probe.is_none();
        if probe {
            *self.probe = Some(Probe { number: self.next - 1, class: groups.last_class(), taken: now });
        }
        self.kept_bytes += len;
        let small = !segment.is_large() && len < LARGE && len <= turn && segment.tracks().is_empty();
        if small && len as u64 <= self.credit_left() {
            let appended = self.kept.back_mut().is_some_and(|kept| {
                let appended = Arc::get_mut(&mut kept.segment).is_some_and(|tail| tail.append(segment.bytes(), frames));
                if appended {
                    kept.groups.append(&groups);
                }
                appended
            });
            if !appended {
                // The first after everything was answered for is most often the only one for a while: no room for more.
                let room = if self.kept.is_empty() { len } else { len.max(2 * LARGE) };
                let mut bytes = Vec::with_capacity(room);
                bytes.extend_from_slice(segment.bytes());
                self.kept.push_back(Kept { first, segment: Arc::new(Segment::plain(bytes, frames)), groups });
            }
            self.cursor = Cursor { segment: self.kept.len(), frame: 0, offset: 0 };
            self.sent = self.next;
            self.sent_bytes += len as u64;
            if let Some(from) = self.skip_from.take() {
                self.sent_bytes += put_skip(head, self.lane, from, self.done);
            }
            put_segment(head, self.lane, first, self.done);
            let bytes = segment.into_payload();
            let (start, end, tickets) = (0, bytes.len(), Vec::new());
            return Some(Chunk { body: ChunkBody::Own(bytes), start, end, tickets, probe });
        }
        self.kept.push_back(Kept { first, segment: Arc::new(segment), groups });
        self.cursor = Cursor { segment: self.kept.len() - 1, frame: 0, offset: 0 };
        self.next_chunk(turn, now, head)
    }

    /// The next chunk of what is numbered and unwritten, as far as credit goes; its head is appended to `head`.
    pub(crate) fn next_chunk(&mut self, turn: usize, now: Instant, head: &mut Vec<u8>) -> Option<Chunk> {
        let kept = self.kept.get(self.cursor.segment)?;
        let credit = self.credit_left();
        let Some(span) = kept.segment.span(self.cursor.frame, self.cursor.offset, credit, turn) else {
            self.starved = true;
            return None;
        };
        let number = kept.first + u64::from(self.cursor.frame);
        if let Some(from) = self.skip_from.take() {
            self.sent_bytes += put_skip(head, self.lane, from, self.done);
        }
        put_segment(head, self.lane, number, self.done);
        let frame = self.cursor.frame;
        kept.segment.put_header(frame, span, now, head);
        let tickets = kept.segment.tracks_in(frame..frame + span.frames).iter().map(|track| track.ticket).collect();
        let (body, start, end) = Chunk::body(kept.segment.clone(), frame, span, now);
        let numbers = number..number + u64::from(span.frames);
        let probe = self.probe.is_some_and(|probe| numbers.contains(&probe.number));
        let chunk = Chunk { body, start, end, tickets, probe };
        self.advance(span);
        self.sent = self.sent.max(number + u64::from(span.frames));
        Some(chunk)
    }

    /// Bytes that may still be written, less what an owed SKIP takes.
    fn credit_left(&self) -> u64 {
        let owed = if self.skip_from.is_some() { SKIP } else { 0 };
        self.credit_bytes.saturating_sub(self.sent_bytes + owed as u64)
    }

    fn advance(&mut self, span: Span) {
        self.sent_bytes += span.wire_bytes as u64;
        self.cursor.frame += span.frames;
        self.cursor.offset = span.end;
        if self.kept.get(self.cursor.segment).is_some_and(|kept| self.cursor.frame >= kept.segment.frames) {
            self.cursor = Cursor { segment: self.cursor.segment + 1, frame: 0, offset: 0 };
        }
    }

    /// Takes an acknowledgement.
    pub(crate) fn acknowledge(&mut self, received: u64, done: u64, credit: u64) -> Result<Freed, Fault> {
        if received > self.sent || done > received {
            return Err(Fault::AckedUnsent);
        }
        self.credit_bytes = self.credit_bytes.max(credit);
        let mut freed = self.free_below(done);
        freed.wake = std::mem::take(&mut self.starved);
        Ok(freed)
    }

    /// Ends all messages below `done`.
    fn free_below(&mut self, done: u64) -> Freed {
        let mut freed = Freed::default();
        if done <= self.done {
            return freed;
        }
        for kept in &self.kept {
            if kept.first >= done {
                break;
            }
            let frame = |number: u64| number.saturating_sub(kept.first).min(u64::from(u32::MAX)) as u32;
            let [from, to] = [self.done, done].map(|number| kept.segment.messages_below(frame(number)));
            freed.messages += u64::from(to - from);
            kept.groups.between(from, to).for_each(|(class, messages)| freed.ended.add(class, messages.into(), 0));
            let tracks = kept.segment.tracks_in(frame(self.done)..frame(done));
            freed.tickets.extend(tracks.iter().map(|track| (kept.first + u64::from(track.frame), track.ticket)));
        }
        self.done = done;
        while let Some(front) = self.kept.front()
            && front.first + u64::from(front.segment.frames) <= done
        {
            self.kept_bytes -= front.segment.len();
            if self.cursor.segment > 0 {
                self.cursor.segment -= 1;
            } else {
                self.cursor = Cursor::default();
            }
            if let Some(Kept { segment, groups, .. }) = self.kept.pop_front() {
                groups.iter().for_each(|group| freed.ended.add(group.class, 0, group.bytes));
                freed.segments.push(segment);
            }
        }
        if self.probe.is_some_and(|probe| probe.number < done) {
            freed.probe = self.probe.take();
        }
        freed
    }

    /// This lane's half of an attach frame (the receiving half is the other side's business).
    pub(crate) fn describe(&mut self, into: &mut LaneAttach) {
        self.described = self.done;
        into.base = self.done;
        into.sent = self.sent;
    }

    /// Message number `number` (by its last frame), which was rejected or is lost, copied out; `None` if it is not kept.
    pub(crate) fn take(&mut self, number: u64) -> Option<(Class, Extract)> {
        self.take_all(number..number + 1).pop()
    }

    /// The messages of these numbers that are kept, copied out: their bytes are not those of the others any more. What is
    /// kept beside them is not walked through: the other side chooses how often this is asked for.
    fn take_all(&mut self, numbers: Range<u64>) -> Vec<(Class, Extract)> {
        let mut extracts = Vec::new();
        let begin = self.kept.partition_point(|kept| kept.first + u64::from(kept.segment.frames) <= numbers.start);
        let end = self.kept.partition_point(|kept| kept.first < numbers.end);
        for kept in self.kept.range_mut(begin..end.max(begin)) {
            let frame = |number: u64| number.saturating_sub(kept.first).min(kept.segment.frames.into()) as u32;
            let frames = frame(numbers.start)..frame(numbers.end);
            if !frames.is_empty() {
                let first = kept.segment.messages_below(frames.start);
                for (at, extract) in (first..).zip(kept.segment.extract(frames)) {
                    extracts.push((kept.groups.part(at, extract.payload.len() as u64), extract));
                }
            }
        }
        extracts
    }

    fn lose(&mut self, numbers: Range<u64>) -> Vec<Lost> {
        let (lane, split) = (self.lane, self.whole_below(self.sent).clamp(numbers.start, numbers.end));
        let mut lost = Vec::new();
        for (numbers, written) in [(numbers.start..split, true), (split..numbers.end, false)] {
            let taken = self.take_all(numbers).into_iter();
            lost.extend(taken.map(|(class, extract)| Lost { lane, class, extract, written }));
        }
        lost
    }

    /// Ends all messages below `upto`, of which these are lost and others may have been answered for before.
    fn free_lost(&mut self, upto: u64, lost: &[Lost]) -> Freed {
        let mut freed = self.free_below(upto);
        lost.iter().for_each(|lost| freed.ended.leave_out(lost.class));
        freed.probe = None;
        freed
    }

    /// Whether what the other side says it has was ever written.
    pub(crate) fn check_attach(&self, told: &LaneAttach, resumed: bool) -> Result<(), Fault> {
        if resumed && told.received > self.sent { Err(Fault::AckedUnsent) } else { Ok(()) }
    }

    /// Begins a session, after [`LaneOut::check_attach`]: the other side has `told.received` of what this link state sent (`resumed`), or it never met
    /// this state and starts where our attach said. With `starts_anew`, what was written so far was not written to it.
    /// Returns the buffers this frees, and the messages that end unknown: repeated to one new state already and never
    /// answered.
    pub(crate) fn attach(&mut self, told: &LaneAttach, resumed: bool, starts_anew: bool) -> (Freed, Vec<Lost>) {
        let mut unknown = Vec::new();
        let mut freed = Freed::default();
        if starts_anew {
            // Not whenever it never met us: the attach in which it would have may have been lost, any number of times.
            let upto = self.replayed.max(self.done);
            unknown = self.lose(self.done..upto);
            freed = self.free_lost(upto, &unknown);
            self.replayed = self.whole_below(self.sent);
        }
        // What is done is told by the acknowledgement that follows, together with its exceptions.
        let expected = if resumed { told.received } else { self.described };
        self.skip_from = (expected < self.done).then_some(expected);
        let from = expected.max(self.done);
        self.sent_bytes = 0;
        self.credit_bytes = told.window;
        self.starved = false;
        self.seek(from);
        (freed, unknown)
    }

    /// The start of the big message that `number` falls into, else `number`: a message of which the last piece was never
    /// written cannot have been handed over.
    fn whole_below(&self, number: u64) -> u64 {
        let inside = |kept: &&Kept| kept.first < number && number < kept.first + u64::from(kept.segment.frames);
        match self.kept.iter().rev().find(inside) {
            Some(kept) if kept.segment.is_large() => kept.first,
            _ => number,
        }
    }

    /// Puts the cursor on number `number`.
    fn seek(&mut self, number: u64) {
        let segment = self.kept.partition_point(|kept| kept.first + u64::from(kept.segment.frames) <= number);
        self.cursor = match self.kept.get(segment) {
            Some(kept) => {
                let frame = number.saturating_sub(kept.first) as u32;
                Cursor { segment, frame, offset: kept.segment.offset_of(frame) }
            }
            None => Cursor { segment, frame: 0, offset: 0 },
        };
    }

    /// Forgets everything that is kept; returns the messages that were, and what was answered for and not counted yet.
    pub(crate) fn give_up(&mut self) -> (Vec<Lost>, Tally) {
        let lost = self.lose(self.done..self.next);
        let Freed { ended, .. } = self.free_lost(self.next, &lost);
        *self = Self::new(self.lane, self.window);
        (lost, ended)
    }

    /// All numbers below are done.
    pub(crate) fn done(&self) -> u64 {
        self.done
    }

    /// All numbers below were written at least once.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// All numbers below were written before the other side's present state was met.
    pub(crate) fn replayed(&self) -> u64 {
        self.replayed
    }

    /// Bytes numbered and not done.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    /// Messages numbered and not done.
    pub(crate) fn kept_messages(&self) -> u64 {
        let of = |kept: &Kept| {
            let done = self.done.saturating_sub(kept.first).min(kept.segment.frames.into()) as u32;
            u64::from(kept.segment.messages - kept.segment.messages_below(done))
        };
        self.kept.iter().map(of).sum()
    }

    /// Bytes written and not done: what a cut puts in doubt.
    pub(crate) fn unacked_bytes(&self) -> usize {
        let ahead: usize = self.kept.iter().skip(self.cursor.segment).map(|kept| kept.segment.len()).sum();
        // The segment that is being written counts as far as it is written.
        let unwritten = ahead.saturating_sub(self.cursor.offset);
        self.kept_bytes - unwritten.min(self.kept_bytes)
    }

    /// Gives the last kept segment a buffer of its own with `room` spare bytes, so that what is appended to it depends on
    /// this state alone, and not on which copies of the state share the segment.
    #[cfg(test)]
    pub(crate) fn remake_tail(&mut self, room: usize) {
        let Some(tail) = self.kept.back_mut().filter(|kept| !kept.segment.is_large()) else { return };
        let mut bytes = Vec::with_capacity(tail.segment.len() + room);
        bytes.extend_from_slice(tail.segment.bytes());
        tail.segment = Arc::new(Segment::plain(bytes, tail.segment.frames));
    }

    /// First number still kept, next number to write for the first time, next number to give.
    #[cfg(test)]
    pub(crate) fn positions(&self) -> (u64, u64, u64) {
        (self.done, self.sent, self.next)
    }
}

/// Appends a SKIP over the numbers `from..to`; returns the credit it takes.
fn put_skip(head: &mut Vec<u8>, lane: Lane, from: u64, to: u64) -> u64 {
    put_segment(head, lane, from, from);
    let header = FrameHeader::on_lane(FrameType::Skip, lane, flags::NUMBERED, 0, SKIP_BODY as u32);
    head.extend_from_slice(&header.to_bytes());
    head.extend_from_slice(&(to - from).to_le_bytes());
    SKIP as u64
}

const SKIP_BODY: usize = 8;
/// Bytes of a SKIP frame.
pub(super) const SKIP: usize = HEADER + SKIP_BODY;

const _: () = assert!(LARGE * 2 <= SEGMENT_BYTES);
