//! What a lane gives to be written next.
//!
//! Owns: a share of a segment, or bytes of its own. Threads: the holder of the write token. Locks: none. Blocks on: nothing.
//! Upholds: bytes that say how long a message may still take are made anew for each write; all others are written from
//! where they lie.

use std::sync::Arc;
use std::time::Instant;

use crate::link::segment::{Segment, Span};

/// What to write next of a lane.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// The bytes behind the head.
    pub(crate) body: ChunkBody,
    /// Which part of them.
    pub(crate) start: usize,
    /// Its end.
    pub(crate) end: usize,
    /// Tickets of the messages that are written whole when it is.
    pub(crate) tickets: Vec<u64>,
    /// It ends the message whose time is measured.
    pub(crate) probe: bool,
}

impl Chunk {
    /// All of a segment that takes no numbers and is not kept.
    pub(crate) fn unnumbered(segment: Segment, now: Instant) -> Self {
        let tickets = segment.tracks().iter().map(|track| track.ticket).collect();
        let span = Span { frames: segment.frames, wire_bytes: segment.len(), start: 0, end: segment.bytes().len() };
        let (body, start, end) = Self::body(Arc::new(segment), 0, span, now);
        Self { body, start, end, tickets, probe: false }
    }

    pub(super) fn body(segment: Arc<Segment>, frame: u32, span: Span, now: Instant) -> (ChunkBody, usize, usize) {
        match segment.restamped(frame, span, now) {
            Some(bytes) => {
                let end = bytes.len();
                (ChunkBody::Stamped(bytes, segment), 0, end)
            }
            None => (ChunkBody::Kept(segment), span.start, span.end),
        }
    }
}

/// Where the bytes of a chunk lie.
#[derive(Debug)]
pub(crate) enum ChunkBody {
    /// In retention.
    Kept(Arc<Segment>),
    /// In the buffer they were queued in; retention took a copy.
    Own(Vec<u8>),
    /// In a copy of what is in retention that says how long its messages may still take.
    Stamped(Vec<u8>, Arc<Segment>),
}

impl ChunkBody {
    /// The bytes that a chunk's range points into.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Kept(segment) => segment.bytes(),
            Self::Own(bytes) | Self::Stamped(bytes, _) => bytes,
        }
    }

    /// The segment it is of, unless retention has a copy.
    pub(crate) fn segment(&self) -> Option<&Arc<Segment>> {
        match self {
            Self::Kept(segment) | Self::Stamped(_, segment) => Some(segment),
            Self::Own(_) => None,
        }
    }
}
