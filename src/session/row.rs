//! A row of messages that many peers get alike: while broadcasts flood, each is encoded and appended once, for all of them.
//!
//! Owns: the encoded frames, and who of the peers still takes part. Threads: the broadcasting one appends; whoever holds
//! the outbox lock of a peer takes that peer's share. Locks: its own, a leaf, after an outbox lock or that of the node's
//! caster.
//! Blocks on: nothing.
//! Upholds: a peer that takes part has all that is in the row, up to the moment it leaves, and nothing after it; the
//! frames of a row that ended never change, and those who stayed to the end share them.
//!
//! ```text
//!   row:    [frame][frame][frame]...      appended to once for each broadcast
//!   peer A: ......................|       stays to the end: shares the frames
//!   peer B: .........|                    left, for something else to send or a write: has a copy so far
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::link::Payload;
use crate::sync::Mutex;
use crate::wire::{FrameHeader, FrameType, HEADER, Heading, Lane, Prefix, flags};

/// A row ends when it would grow beyond so many bytes: one write of it costs little more for each byte than a larger one,
/// and all peers together wait for it no longer than a flood takes to fill it.
pub(crate) const ROW_BYTES: usize = 64 * 1024;
/// It ends at so many messages, too.
pub(crate) const ROW_MESSAGES: usize = 1024;
/// A row that few take part in ends at so many: whoever does not may have a part in the next one.
const WORTH: u32 = 16;

/// A row.
#[derive(Debug)]
pub(crate) struct Row {
    /// How long what is in it may wait.
    pub(super) company: Duration,
    /// When it began.
    pub(super) since: Instant,
    state: Mutex<RowState>,
}

#[derive(Debug)]
struct RowState {
    /// Nobody else has it until the row has ended.
    frames: Arc<Vec<u8>>,
    messages: u32,
    ended: bool,
    /// By their places, who takes part.
    members: Vec<bool>,
    /// How many these are.
    part: usize,
}

/// The part of a peer in a row.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) row: Arc<Row>,
    pub(super) place: usize,
}

/// What a peer takes of a row.
pub(super) struct Share {
    pub(super) frames: Payload,
    pub(super) messages: u32,
    /// It left before the end.
    pub(super) early: bool,
}

impl Row {
    /// An empty row for up to so many peers, whose messages may wait for `company`.
    pub(crate) fn new(places: usize, company: Duration, now: Instant) -> Self {
        let state = RowState {
            frames: Arc::new(Vec::with_capacity(ROW_BYTES)),
            messages: 0,
            ended: false,
            members: vec![false; places],
            part: 0,
        };
        Self { company, since: now, state: Mutex::new(state) }
    }

    /// How long what is in it may still wait; `None` when that is over.
    pub(super) fn time_left(&self, now: Instant) -> Option<Duration> {
        self.company.checked_sub(now.saturating_duration_since(self.since)).filter(|left| !left.is_zero())
    }

    /// Appends a message for all that take part, and says of each place whether it does. `None` has done nothing: the row
    /// is full or old, or so few take part that another one is worth it. It has ended then.
    pub(crate) fn append<T>(
        &self,
        kind: u16,
        payload: &[u8],
        now: Instant,
        with: impl FnOnce(&[bool]) -> T,
    ) -> Option<T> {
        // Before the first of those who take part leaves because it is.
        let old = now.saturating_duration_since(self.since) > self.company / 4 * 3;
        let mut state = self.state.lock();
        let state = &mut *state;
        let full = state.frames.len() + HEADER + payload.len() > ROW_BYTES || state.messages as usize >= ROW_MESSAGES;
        let deserted = state.messages >= WORTH && state.part * 4 < state.members.len() * 3;
        match Arc::get_mut(&mut state.frames) {
            Some(frames) if !full && !old && !deserted && !state.ended => {
                put_frame(frames, Lane::Normal, Heading::of_kind(kind), payload);
                state.messages += 1;
                Some(with(&state.members))
            }
            _ => {
                state.ended = true;
                None
            }
        }
    }

    /// Nothing more comes into it.
    pub(crate) fn end(&self) {
        self.state.lock().ended = true;
    }

    /// The peer of this place takes part, from the beginning. Before anything is appended.
    pub(super) fn join(&self, place: usize) {
        let mut state = self.state.lock();
        let state = &mut *state;
        debug_assert!(state.messages == 0, "who takes part has all of it");
        if let Some(member) = state.members.get_mut(place) {
            *member = true;
            state.part += 1;
        }
    }

    /// The peer of this place takes its share, and no part any more.
    pub(super) fn leave(&self, place: usize) -> Share {
        let mut state = self.state.lock();
        let state = &mut *state;
        if let Some(member) = state.members.get_mut(place) {
            *member = false;
            state.part -= 1;
        }
        let messages = state.messages;
        if state.ended {
            return Share { frames: state.frames.clone().into(), messages, early: false };
        }
        Share { frames: state.frames.to_vec().into(), messages, early: true }
    }
}

/// Appends a whole message, encoded.
#[inline]
pub(super) fn put_frame(into: &mut Vec<u8>, lane: Lane, heading: Heading, payload: &[u8]) {
    let flags = heading.flags | flags::NUMBERED | flags::WHOLE;
    let length = heading.prefix_len() + payload.len();
    let header = FrameHeader::on_lane(FrameType::Data, lane, flags, heading.kind, length as u32);
    into.extend_from_slice(&header.to_bytes());
    if heading.correlation.is_some() {
        Prefix { correlation: heading.correlation, ..Prefix::default() }.put(into);
    }
    into.extend_from_slice(payload);
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    const COMPANY: Duration = Duration::from_millis(4);

    /// A row of two peers with so many messages.
    fn row(messages: usize, now: Instant) -> Row {
        let row = Row::new(2, COMPANY, now);
        (0..2).for_each(|place| row.join(place));
        (0..messages).for_each(|_| assert_eq!(row.append(0, b"four", now, <[bool]>::to_vec), Some(vec![true; 2])));
        row
    }

    fn address(share: &Share) -> *const u8 {
        share.frames.as_ptr()
    }

    #[test]
    fn those_who_stay_share_the_frames_and_those_who_leave_have_a_copy_so_far() {
        let now = Instant::now();
        let early = row(3, now);
        let share = early.leave(0);
        assert!(share.early && (share.messages, share.frames.len()) == (3, 3 * (HEADER + 4)));
        assert_eq!(early.append(0, b"more", now, <[bool]>::to_vec), Some(vec![false, true]), "the other one goes on");
        assert_eq!(early.leave(1).messages, 4);

        let whole = row(3, now);
        assert!(whole.append(0, b"late", now + COMPANY, |_| ()).is_none(), "it is over before anybody's patience");
        let shares = [whole.leave(0), whole.leave(1)];
        assert!(shares.iter().all(|share| !share.early && share.messages == 3));
        assert_eq!(address(&shares[0]), address(&shares[1]));
        assert_ne!(address(&share), address(&shares[0]));
    }

    #[test]
    fn a_row_ends_when_it_is_full_of_bytes_or_messages_and_when_few_take_part() {
        let now = Instant::now();
        let most = |len: usize| {
            let row = row(0, now);
            (0..).take_while(|_| row.append(0, &vec![7; len], now, |_| ()).is_some()).count()
        };
        assert_eq!((most(0), most(1_000)), (ROW_MESSAGES, ROW_BYTES / (HEADER + 1_000)));
        let deserted = row(WORTH as usize - 1, now);
        deserted.leave(0);
        assert!(deserted.append(0, b"", now, |_| ()).is_some(), "not worth another one yet");
        assert!(deserted.append(0, b"", now, |_| ()).is_none());
        assert_eq!(row(1, now).time_left(now + COMPANY / 4), Some(COMPANY / 4 * 3));
        assert_eq!(row(1, now).time_left(now + COMPANY), None);
    }
}
