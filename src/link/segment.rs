//! Segments: encoded frames as they are queued, numbered, written and kept.
//!
//! Owns: bytes. Threads: any, one owner at a time; shared read-only once numbered. Locks: none. Blocks on: nothing.
//! Upholds: a segment's frames never change once numbered; a big message is alone in its segment and is written from
//! where the application's bytes lie.

use std::ops::Range;
use std::time::Instant;

use crate::link::payload::Payload;
use crate::wire::{FrameHeader, FrameType, HEADER, Heading, Lane, MAX_PIECE, Prefix, flags, remaining_ms};

/// An open segment is sealed when it would grow beyond this many bytes.
pub(crate) const SEGMENT_BYTES: usize = 256 * 1024 + 2 * HEADER * 4;
/// Payloads above this are a segment of their own, not copied among small ones.
pub(crate) const LARGE: usize = 32 * 1024;

/// A row of encoded frames of one lane.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Segment {
    /// How many numbers its frames take.
    pub(crate) frames: u32,
    /// How many application messages these are.
    pub(crate) messages: u32,
    /// Its frames take numbers and are kept; if not, they are best effort.
    pub(crate) numbered: bool,
    /// The messages of which somebody wants to hear, or that expire; in order.
    tracks: Vec<Track>,
    content: Content,
}

/// A message that somebody wants to hear of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Track {
    /// Its last frame, counted from the segment's first.
    pub(crate) frame: u32,
    /// Names it to whoever queued it.
    pub(crate) ticket: u64,
    /// When it is no longer wanted: its frame says how long that is, whenever it is written.
    pub(crate) expires: Option<Instant>,
}

/// One message of a segment, taken out to be given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Extract {
    /// The application's kind.
    pub(crate) kind: u16,
    /// What it gave.
    pub(crate) payload: Vec<u8>,
    /// Who is to hear of it.
    pub(crate) ticket: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Content {
    /// Whole messages, back to back, encoded.
    Plain(Payload),
    /// One message; its frames are cut from the payload as they are written.
    Large { lane: Lane, heading: Heading, payload: Payload },
}

/// Part of a segment: what one turn writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// Frames it holds.
    pub(crate) frames: u32,
    /// Bytes it takes on the wire, headers included: what credit counts.
    pub(crate) wire_bytes: usize,
    /// Where its bytes lie in [`Segment::bytes`].
    pub(crate) start: usize,
    /// Their end.
    pub(crate) end: usize,
}

impl Segment {
    /// Whole messages, already encoded.
    pub(crate) fn plain(bytes: impl Into<Payload>, frames: u32) -> Self {
        let bytes = bytes.into();
        Self { frames, messages: frames, numbered: true, tracks: Vec::new(), content: Content::Plain(bytes) }
    }

    /// One message of its own.
    pub(crate) fn large(lane: Lane, heading: Heading, payload: impl Into<Payload>) -> Self {
        let payload = payload.into();
        let frames = payload.len().div_ceil(MAX_PIECE).max(1) as u32;
        let content = Content::Large { lane, heading, payload };
        Self { frames, messages: 1, numbered: true, tracks: Vec::new(), content }
    }

    /// With messages that somebody wants to hear of.
    pub(crate) fn tracked(mut self, tracks: Vec<Track>) -> Self {
        self.tracks = tracks;
        self
    }

    /// Without numbers; its frames are encoded so.
    pub(crate) fn unnumbered(mut self) -> Self {
        self.numbered = false;
        self
    }

    /// The messages that somebody wants to hear of.
    pub(crate) fn tracks(&self) -> &[Track] {
        &self.tracks
    }

    /// Those that end within `frames`.
    pub(crate) fn tracks_in(&self, frames: Range<u32>) -> &[Track] {
        let from = self.tracks.partition_point(|track| track.frame < frames.start);
        let to = self.tracks.partition_point(|track| track.frame < frames.end);
        self.tracks.get(from..to).unwrap_or_default()
    }

    /// The messages that end within `frames`, copied out.
    pub(crate) fn extract(&self, frames: Range<u32>) -> Vec<Extract> {
        let ticket = |frame| self.tracks_in(frame..frame + 1).first().map(|track| track.ticket);
        match &self.content {
            Content::Plain(bytes) => {
                let mut at = self.offset_of(frames.start);
                let mut extracts = Vec::new();
                for frame in frames.start..frames.end.min(self.frames) {
                    let Some(header) = bytes.get(at..).and_then(|rest| rest.first_chunk::<HEADER>()) else { break };
                    let header = FrameHeader::from_bytes(*header);
                    let next = at + HEADER + header.length as usize;
                    let payload = bytes.get(at + HEADER + Prefix::len(header.flags)..next).unwrap_or_default().to_vec();
                    extracts.push(Extract { kind: header.kind, payload, ticket: ticket(frame) });
                    at = next;
                }
                extracts
            }
            Content::Large { heading, payload, .. } => {
                let last = self.frames - 1;
                let extract = || Extract { kind: heading.kind, payload: payload.to_vec(), ticket: ticket(last) };
                frames.contains(&last).then(extract).into_iter().collect()
            }
        }
    }

    /// The bytes of a span, if some of its frames say how long they may still take: that changes with `now`. `None` if
    /// they can be written from where they lie.
    pub(crate) fn restamped(&self, frame: u32, span: Span, now: Instant) -> Option<Vec<u8>> {
        let Content::Plain(bytes) = &self.content else { return None };
        let tracks = self.tracks_in(frame..frame + span.frames);
        if tracks.iter().all(|track| track.expires.is_none()) {
            return None;
        }
        let mut copy = bytes.get(span.start..span.end).unwrap_or_default().to_vec();
        let (mut at, mut in_order) = (0, tracks.iter().peekable());
        for index in frame..frame + span.frames {
            let len = frame_len(&copy[at..]);
            if let Some(track) = in_order.next_if(|track| track.frame == index)
                && let Some(expires) = track.expires
                && let Some(place) = copy.get_mut(at + HEADER..at + HEADER + 4)
            {
                place.copy_from_slice(&remaining_ms(expires.saturating_duration_since(now)).to_le_bytes());
            }
            at += len;
        }
        Some(copy)
    }

    /// The bytes that spans point into: encoded frames, or the payload of one message.
    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.content {
            Content::Plain(bytes) => bytes,
            Content::Large { payload, .. } => payload,
        }
    }

    /// Bytes of memory the segment answers for.
    pub(crate) fn len(&self) -> usize {
        self.bytes().len() + if self.is_large() { self.frames as usize * HEADER + 8 } else { 0 }
    }

    /// Whether it is one message of its own.
    pub(crate) fn is_large(&self) -> bool {
        matches!(self.content, Content::Large { .. })
    }

    /// The bytes, as [`Segment::bytes`] shows them; copied if a message to somebody else shares them.
    pub(crate) fn into_payload(self) -> Vec<u8> {
        match self.content {
            Content::Plain(bytes) => bytes.into_vec(),
            Content::Large { payload, .. } => payload.into_vec(),
        }
    }

    /// The buffer of the bytes, to be used again, unless a message to somebody else shares it.
    pub(crate) fn into_buffer(self) -> Option<Vec<u8>> {
        match self.content {
            Content::Plain(payload) | Content::Large { payload, .. } => payload.into_buffer(),
        }
    }

    /// Appends encoded whole messages to a plain segment with room for them; false leaves it as it was.
    pub(crate) fn append(&mut self, more: &[u8], frames: u32) -> bool {
        match &mut self.content {
            Content::Plain(Payload::Own(bytes)) if bytes.capacity() - bytes.len() >= more.len() => {
                bytes.extend_from_slice(more);
                self.frames += frames;
                self.messages += frames;
                true
            }
            _ => false,
        }
    }

    /// Where frame number `frame` of this segment begins in [`Segment::bytes`].
    pub(crate) fn offset_of(&self, frame: u32) -> usize {
        match &self.content {
            Content::Plain(bytes) => {
                if frame >= self.frames {
                    return bytes.len();
                }
                (0..frame).fold(0, |at, _| at + frame_len(&bytes[at..]))
            }
            Content::Large { payload, .. } => (frame as usize * MAX_PIECE).min(payload.len()),
        }
    }

    /// The next span from frame `frame` at offset `start`: as many frames as `credit` and `turn` bytes allow, one piece
    /// of a big message at a time. `None` when not even one frame has credit.
    pub(crate) fn span(&self, frame: u32, start: usize, credit: u64, turn: usize) -> Option<Span> {
        match &self.content {
            Content::Plain(bytes) => {
                let rest = bytes.len() - start;
                if rest as u64 <= credit && rest <= turn {
                    return Some(Span { frames: self.frames - frame, wire_bytes: rest, start, end: bytes.len() });
                }
                let (mut end, mut frames) = (start, 0);
                while end < bytes.len() {
                    let next = end + frame_len(&bytes[end..]);
                    if (next - start) as u64 > credit || (frames > 0 && next - start > turn) {
                        break;
                    }
                    end = next;
                    frames += 1;
                }
                (frames > 0).then_some(Span { frames, wire_bytes: end - start, start, end })
            }
            Content::Large { heading, payload, .. } => {
                let end = (start + MAX_PIECE).min(payload.len());
                let prefix = if frame == 0 { Prefix::len(self.flags_of(*heading, frame)) } else { 0 };
                let wire_bytes = HEADER + prefix + (end - start);
                (wire_bytes as u64 <= credit).then_some(Span { frames: 1, wire_bytes, start, end })
            }
        }
    }

    /// Appends what goes in front of a span on the wire: the frame header of a piece, nothing for encoded frames.
    pub(crate) fn put_header(&self, frame: u32, span: Span, now: Instant, out: &mut Vec<u8>) {
        let Content::Large { lane, heading, payload } = &self.content else { return };
        let flags = self.flags_of(*heading, frame);
        let length = (span.wire_bytes - HEADER) as u32;
        out.extend_from_slice(&FrameHeader::on_lane(FrameType::Data, *lane, flags, heading.kind, length).to_bytes());
        if frame == 0 {
            let total = (self.frames > 1).then_some(payload.len() as u64);
            let expires = self.tracks.first().and_then(|track| track.expires);
            let remaining = expires.map(|expires| remaining_ms(expires.saturating_duration_since(now)));
            Prefix { remaining, correlation: heading.correlation, total }.put(out);
        }
    }

    /// The flags of piece `frame` of a message.
    fn flags_of(&self, heading: Heading, frame: u32) -> u8 {
        let first = if frame == 0 { flags::FIRST } else { flags::NONE };
        // Only the last piece ends a message that somebody may wait for.
        let (last, not) =
            if frame + 1 == self.frames { (flags::LAST, flags::NONE) } else { (flags::NONE, flags::ACK_NOW) };
        (heading.flags | flags::NUMBERED | first | last) & !not
    }

    /// How many messages end below frame `frame`.
    pub(crate) fn messages_below(&self, frame: u32) -> u32 {
        if self.is_large() { u32::from(frame >= self.frames) } else { frame.min(self.frames) }
    }
}

/// Length of the encoded frame at the start of `bytes`, header included.
fn frame_len(bytes: &[u8]) -> usize {
    match bytes.first_chunk::<HEADER>() {
        Some(header) => HEADER + FrameHeader::from_bytes(*header).length as usize,
        // Our own encoder wrote these bytes; a remainder shorter than a header would be our bug, and ends the walk.
        None => bytes.len().max(1),
    }
}
