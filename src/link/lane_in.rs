//! The receiving side of one lane: what has come, what was handed over, what may still come.
//!
//! Owns: two positions, the credit account, rejections the sender may not know of, and the big message under way.
//! Threads: whoever holds the link lock. Locks: none itself. Blocks on: nothing.
//! Upholds: every number is claimed exactly once and in order; bytes beyond the granted credit are a fault; a big
//! message is bounded by its declared total, and its memory grows only with bytes that came.
//!
//! ```text
//!        done                 received
//!  --------|---------------------|--------->  numbers
//!   over   |  claimed, held      |  to come, as far as credit goes
//! ```

use std::collections::VecDeque;
use std::time::Instant;

use crate::error::RejectCause;
use crate::link::fault::Fault;
use crate::memory::Charge;
use crate::wire::{Ack, FrameHeader, Lane, LaneAttach, Prefix, Rejection, flags};

/// The most rejections in one acknowledgement: forty bytes and ten for each always fit a frame.
const MOST_EXCEPTIONS: usize = 4096;

/// Positions and credit of one lane.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct LaneIn {
    lane: Lane,
    window: u64,
    /// What it is from the next attach on.
    next_window: u64,
    largest_message: u64,
    received: u64,
    done: u64,
    /// Numbers below may have been seen by an earlier incarnation of this process.
    repeat_below: u64,
    /// Bytes that came since the attach, and how many may come in all.
    came: u64,
    granted: u64,
    /// Bytes claimed whose credit did not return yet.
    held: u64,
    /// A SEGMENT frame announced the number of the next frame in this session.
    announced: bool,
    rejections: VecDeque<Rejection>,
    /// How many of them this session's acknowledgements have said.
    rejections_told: usize,
    /// Numbers without a message, from..to, that are over as soon as all before them are.
    empty: VecDeque<(u64, u64)>,
    big: Option<Reassembly>,
    /// What the last acknowledgement said.
    told: Told,
    ack_now: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Told {
    received: u64,
    done: u64,
    granted: u64,
}

/// A message that arrives in pieces.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Reassembly {
    /// The application's kind.
    pub(crate) kind: u16,
    total: u64,
    /// Why its pieces are counted and thrown away.
    refused: Option<RejectCause>,
    /// The memory it takes.
    pub(crate) charge: Charge,
    /// Credit it holds once it is whole, until it was handed over.
    pub(crate) credit: u64,
    arrived: u64,
    /// When it expires, noted by the thread that took its first piece.
    pub(crate) expires: Option<Instant>,
    /// The question it is, or answers.
    pub(crate) correlation: Option<u64>,
    /// The flags of its first piece.
    pub(crate) flags: u8,
    /// The bytes so far; taken out by the thread that appends to them.
    pub(crate) bytes: Vec<u8>,
}

impl Reassembly {
    /// Bytes of it that came.
    pub(crate) fn arrived(&self) -> u64 {
        self.arrived
    }
}

/// Messages that were claimed and are to be delivered now, by this thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Claim {
    /// Number of the first.
    pub(crate) first: u64,
    /// Numbers below may be repeats.
    pub(crate) repeat_below: u64,
}

impl Claim {
    /// Of messages without numbers.
    pub(crate) const UNNUMBERED: Self = Self { first: 0, repeat_below: 0 };
}

/// What a piece of a big message led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Append the payload that starts at this offset of the body; more is to come.
    More(usize),
    /// Append it; the message is whole.
    Whole(usize),
    /// Thrown away: the message is too large, or there is no memory for it.
    Discard,
    /// Thrown away, and it was the last of them: rejected.
    Rejected(RejectCause),
}

/// How soon the sender wants to hear of what changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum AckDue {
    /// Nothing changed.
    No,
    /// With the next data, or after the ack delay.
    Later,
    /// Now: a quarter of the window, or somebody waits.
    Now,
}

impl LaneIn {
    /// An empty lane that lets `window` bytes be outstanding and takes messages up to `largest_message` bytes.
    pub(crate) fn new(lane: Lane, window: u64, largest_message: u64) -> Self {
        Self {
            lane,
            window,
            next_window: window,
            largest_message,
            received: 0,
            done: 0,
            repeat_below: 0,
            came: 0,
            granted: 0,
            held: 0,
            announced: false,
            rejections: VecDeque::new(),
            rejections_told: 0,
            empty: VecDeque::new(),
            big: None,
            told: Told::default(),
            ack_now: false,
        }
    }

    /// Takes a SEGMENT frame: the next frame's number, and the first number the sender still keeps.
    pub(crate) fn announce(&mut self, first: u64, base: u64) -> Result<(), Fault> {
        if first != self.received || base > first {
            return Err(Fault::WrongNumber { expected: self.received, came: first });
        }
        self.announced = true;
        while self.rejections.front().is_some_and(|rejection| rejection.number < base) {
            self.rejections.pop_front();
            self.rejections_told = self.rejections_told.saturating_sub(1);
        }
        Ok(())
    }

    /// Claims `frames` whole messages of `bytes` wire bytes in all.
    pub(crate) fn claim(&mut self, frames: u32, bytes: usize, ack_now: bool) -> Result<Claim, Fault> {
        if self.big.is_some() {
            return Err(Fault::MixedPieces);
        }
        let first = self.take_numbers(u64::from(frames), bytes)?;
        self.held += bytes as u64;
        self.ack_now |= ack_now;
        Ok(Claim { first, repeat_below: self.repeat_below })
    }

    /// Claims one piece of a big message, or one whole message with a prefix.
    /// `afford` takes the memory of a whole message.
    pub(crate) fn claim_piece(
        &mut self,
        header: FrameHeader,
        body: &[u8],
        afford: impl FnOnce(u64) -> Option<Charge>,
    ) -> Result<(Claim, Piece), Fault> {
        let (first, last) = (header.has(flags::FIRST), header.has(flags::LAST));
        if first != self.big.is_none() {
            return Err(Fault::MixedPieces);
        }
        let bytes = crate::wire::HEADER + body.len();
        let (prefix, offset) = match first {
            true => (Prefix::read(header.flags, body).map_err(|_| Fault::MixedPieces)?, Prefix::len(header.flags)),
            false => (Prefix::default(), 0),
        };
        let payload = body.len().checked_sub(offset).ok_or(Fault::MixedPieces)? as u64;
        let number = self.take_numbers(1, bytes)?;
        let claim = Claim { first: number, repeat_below: self.repeat_below };
        let big = self.big.get_or_insert_with(|| {
            let total = prefix.total.unwrap_or(payload);
            let (refused, charge) = match total <= self.largest_message {
                false => (Some(RejectCause::TooLarge), None),
                true => match afford(total) {
                    None => (Some(RejectCause::NoMemory), None),
                    charge => (None, charge),
                },
            };
            let charge = charge.unwrap_or_default();
            let Prefix { correlation, .. } = prefix;
            let flags = header.flags;
            Reassembly {
                kind: header.kind,
                total,
                refused,
                charge,
                credit: 0,
                arrived: 0,
                expires: None,
                correlation,
                flags,
                bytes: Vec::new(),
            }
        });
        big.arrived += payload;
        if big.arrived > big.total || (last && big.arrived < big.total) {
            return Err(Fault::MixedPieces);
        }
        if last {
            self.ack_now |= header.has(flags::ACK_NOW);
            // From now until it was handed over, the message holds as much credit as a window has: nothing more of this
            // lane piles up behind it. While it was coming, its pieces were credited as they came.
            big.credit = big.total.min(self.window);
            self.held += big.credit;
        }
        Ok(match (last, big.refused) {
            (false, None) => (claim, Piece::More(offset)),
            (true, None) => (claim, Piece::Whole(offset)),
            (false, Some(_)) => (claim, Piece::Discard),
            (true, Some(cause)) => {
                let credit = big.credit;
                self.finish(number + 1, credit, Some((number, cause)));
                (claim, Piece::Rejected(cause))
            }
        })
    }

    /// The message under way, for the thread that appends to it.
    pub(crate) fn take_big(&mut self) -> Option<Reassembly> {
        self.big.take()
    }

    /// Puts it back.
    pub(crate) fn put_big(&mut self, big: Reassembly) {
        self.big = Some(big);
    }

    /// Takes an ABORT frame: the message under way ends, unfinished.
    pub(crate) fn abort(&mut self, bytes: usize) -> Result<(), Fault> {
        self.skip(1, bytes)?;
        self.big = None;
        Ok(())
    }

    /// Takes a SKIP frame: `count` numbers will never come.
    pub(crate) fn skip(&mut self, count: u64, bytes: usize) -> Result<(), Fault> {
        let number = self.take_numbers(count, bytes)?;
        self.empty.push_back((number, number + count));
        self.pass_empty();
        Ok(())
    }

    fn pass_empty(&mut self) {
        while let Some((_, to)) = self.empty.front().copied().filter(|(from, _)| *from <= self.done) {
            self.done = self.done.max(to);
            self.empty.pop_front();
        }
    }

    /// Takes a numbered frame of a type this version does not know: it counts as received and done.
    pub(crate) fn unknown(&mut self, bytes: usize) -> Result<(), Fault> {
        self.skip(1, bytes)
    }

    fn take_numbers(&mut self, count: u64, bytes: usize) -> Result<u64, Fault> {
        if !self.announced {
            return Err(Fault::Unannounced);
        }
        if self.came + bytes as u64 > self.granted {
            return Err(Fault::BeyondCredit);
        }
        let first = self.received;
        self.received = first.checked_add(count).ok_or(Fault::MixedPieces)?;
        self.came += bytes as u64;
        Ok(first)
    }

    /// All numbers below `upto` are over; `credit` bytes may come again; one of them may have been rejected.
    pub(crate) fn finish(&mut self, upto: u64, credit: u64, rejected: Option<(u64, RejectCause)>) {
        debug_assert!(upto <= self.received && credit <= self.held);
        self.done = self.done.max(upto.min(self.received));
        self.pass_empty();
        self.release(credit);
        if let Some((number, cause)) = rejected {
            self.rejections.push_back(Rejection { number, cause: cause.code() });
        }
    }

    /// `credit` bytes may come again.
    pub(crate) fn release(&mut self, credit: u64) {
        self.held -= credit.min(self.held);
    }

    /// Bytes that may come in all, counted from the attach.
    fn credit(&self) -> u64 {
        self.granted.max((self.came + self.window).saturating_sub(self.held))
    }

    /// How soon an acknowledgement is due.
    pub(crate) fn ack_due(&self) -> AckDue {
        let credit = self.credit();
        let waited_for = self.ack_now && self.done > self.told.done;
        if waited_for || credit - self.told.granted >= self.window / 4 {
            AckDue::Now
        } else if credit > self.told.granted || self.received > self.told.received || self.done > self.told.done {
            AckDue::Later
        } else {
            AckDue::No
        }
    }

    /// The acknowledgement that is due. One says each rejection once; what one frame does not hold the next says, and
    /// until then nothing from there on is done.
    pub(crate) fn take_ack(&mut self) -> Ack {
        let exceptions: Vec<_> =
            self.rejections.iter().skip(self.rejections_told).take(MOST_EXCEPTIONS).copied().collect();
        self.rejections_told += exceptions.len();
        let done = match self.rejections.get(self.rejections_told) {
            Some(next) => next.number,
            None => self.done,
        };
        self.granted = self.credit();
        self.told = Told { received: self.received, done, granted: self.granted };
        self.ack_now &= self.done < self.received;
        Ack { lane: self.lane as u8, received: self.received, done, window: self.granted, exceptions }
    }

    /// From the next attach on, so many bytes may be outstanding.
    pub(crate) fn set_window(&mut self, window: u64) {
        self.next_window = window;
    }

    /// This lane's receiving half of an attach frame; from here on, bytes are counted anew.
    pub(crate) fn describe(&mut self, into: &mut LaneAttach) {
        into.received = self.received;
        self.announced = false;
        self.came = 0;
        self.window = self.next_window;
        self.granted = self.window.saturating_sub(self.held);
        into.window = self.granted;
        // What is done, and rejections, travel in acknowledgements only: one is owed anew.
        self.told = Told { received: self.received, done: 0, granted: self.granted };
        self.rejections_told = 0;
    }

    /// The other side's state is one we never met: start where it starts, and expect repeats of what it sent before.
    pub(crate) fn start_anew(&mut self, told: &LaneAttach) {
        self.received = told.base;
        self.done = told.base;
        self.repeat_below = told.sent;
        self.rejections.clear();
        self.rejections_told = 0;
        self.empty.clear();
        self.big = None;
        self.ack_now = false;
        self.told = Told { received: told.base, done: told.base, granted: self.granted };
    }

    /// The other side's state is the one we know: what it says must fit.
    pub(crate) fn check_resume(&self, told: &LaneAttach) -> Result<(), Fault> {
        // A base beyond what was received is what the sender gave up: a SKIP will say so.
        let fits = self.received <= told.sent;
        if fits { Ok(()) } else { Err(Fault::WrongNumber { expected: self.received, came: told.sent }) }
    }

    #[cfg(test)]
    pub(crate) fn unmark_repeats(&mut self) {
        self.repeat_below = 0;
    }

    /// Received and done.
    pub(crate) fn positions(&self) -> (u64, u64) {
        (self.received, self.done)
    }
}
