//! The state of one link, and what its session's threads do with it.
//!
//! Owns: the lanes, who is attached, whose messages are being delivered. Threads: whoever holds the link lock.
//! Locks: none itself. Blocks on: nothing.
//! Upholds: every message is claimed once and in order; a stale session claims and writes nothing; what the other side
//! says is checked against what was sent before it is believed.

use std::collections::HashSet;
use std::time::Instant;

use crate::error::RejectCause;
use crate::ident::{ConnectionId, PeerId};
use crate::link::aside::Aside;
use crate::link::fault::{Fault, NoClaim};
use crate::link::lane_in::{AckDue, Claim, LaneIn, Piece, Reassembly};
use crate::link::lane_out::{Chunk, LaneOut, SKIP};
use crate::link::offer::{Acked, Attachment, Doubt, Lost, Offer, Rejected};
use crate::link::segment::{SEGMENT_BYTES, Segment};
use crate::memory::Charge;
use crate::metrics::{Groups, Tally};
use crate::wire::{Ack, FrameHeader, LANES, Lane};

/// The smallest window of a lane: one frame of the largest size must fit, and a SKIP in front of it.
pub(super) const SMALLEST_WINDOW: usize = crate::wire::HEADER + crate::wire::MAX_BODY + SKIP;

/// Sizes of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct LinkLimits {
    /// Bytes numbered and not done, and bytes granted to the other side, over all lanes.
    pub(crate) window_bytes: usize,
    /// Longest message taken.
    pub(crate) max_message: usize,
}

impl LinkLimits {
    /// A lane's share of the window: half for normal traffic, the rest split among reply, urgent and bulk.
    pub(super) fn lane(self, lane: Lane) -> usize {
        let share = match lane {
            Lane::Normal => self.window_bytes / 2,
            Lane::Reply => self.window_bytes / 4,
            Lane::Urgent | Lane::Bulk => self.window_bytes / 8,
        };
        share.max(SMALLEST_WINDOW)
    }
}

/// The state of one link.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct LinkCore {
    pub(super) me: PeerId,
    pub(super) peer: PeerId,
    pub(super) limits: LinkLimits,
    /// Names this state: a new number whenever it starts from nothing.
    pub(super) state_id: u64,
    /// The other side's state that the receiving lanes speak of.
    pub(super) peer_state: Option<u64>,
    /// The resume window ended while an attach was under way: the state to begin if it fails.
    pub(super) giving_up: Option<u64>,
    pub(super) token: Option<[u8; 16]>,
    pub(super) epoch: u64,
    pub(super) attachment: Attachment,
    /// Which life of the peer was attached last, and when.
    pub(super) latest: Option<(u64, u64)>,
    /// Proven connections that wait: for the decider's word, or for the outcome of an attach under way.
    pub(super) held: Vec<Offer>,
    /// Whether the peer that is attached is the only process of its name.
    pub(super) doubt: Option<Doubt>,
    /// Questions asked so far.
    pub(super) questions: u16,
    pub(super) outgoing: [LaneOut; LANES],
    pub(super) incoming: [LaneIn; LANES],
    /// The session whose claimed messages are being delivered.
    pub(super) delivering: Option<ConnectionId>,
    /// Rises whenever the receiving lanes start anew: what was claimed before ends without a number.
    pub(super) generation: u32,
    pub(super) counts: LinkCounts,
    pub(super) tally: Aside<LinkTally>,
    #[cfg(test)]
    pub(crate) mutation: Option<Mutation>,
}

/// What became of messages, exactly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct LinkCounts {
    /// Handed over at the other side.
    pub(crate) acked: u64,
    /// Rejected by the other side.
    pub(crate) rejected: u64,
    /// Written, and never answered.
    pub(crate) unknown: u64,
    /// Numbered, and given up before they were written.
    pub(crate) unwritten: u64,
    /// Sessions attached so far.
    pub(crate) sessions: u64,
    /// Changes of the other side's state after the first.
    pub(crate) restarts: u64,
}

/// What became of messages that were numbered, by class.
#[derive(Debug, Clone, Default)]
pub(crate) struct LinkTally {
    /// Handed over at the other side.
    pub(crate) succeeded: Tally,
    /// Rejected, unknown, or given up.
    pub(crate) failed: Tally,
}

/// Deliberate violations of the rules, to prove that the exploration finds them.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Mutation {
    /// A stale session may still claim.
    NoFence,
    /// A session claims while an earlier one still delivers.
    NoDeliveryGate,
    /// Retention ends at `received`, not at `done`.
    FreeAtReceived,
    /// A new session starts after what was written, not after what was received.
    ResumeAtSent,
    /// Repeats to a new state are not announced.
    RepeatsUnmarked,
    /// More credit is said at an attach than is counted.
    CreditKept,
    /// Acknowledgements of a replaced session count.
    StaleAck,
    /// Another process of the same name supersedes the one that is attached, without a question.
    NoDoubt,
    /// Messages that are given up end no phase.
    LossUncounted,
}

impl LinkCore {
    /// A link that has never been attached. `state_id` must differ from that of any earlier state of this link.
    pub(crate) fn new(me: PeerId, peer: PeerId, limits: LinkLimits, state_id: u64) -> Self {
        Self {
            me,
            peer,
            limits,
            state_id,
            peer_state: None,
            giving_up: None,
            token: None,
            epoch: 0,
            attachment: Attachment::Detached,
            latest: None,
            held: Vec::new(),
            doubt: None,
            questions: 0,
            outgoing: Lane::ALL.map(|lane| LaneOut::new(lane, limits.lane(lane))),
            incoming: Lane::ALL.map(|lane| LaneIn::new(lane, limits.lane(lane) as u64, limits.max_message as u64)),
            delivering: None,
            generation: 0,
            counts: LinkCounts::default(),
            tally: Aside::default(),
            #[cfg(test)]
            mutation: None,
        }
    }

    #[cfg(test)]
    pub(crate) fn mutated(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// The connection whose session is attached.
    pub(crate) fn attached(&self) -> Option<ConnectionId> {
        match self.attachment {
            Attachment::Attached { offer, .. } => Some(offer.conn),
            Attachment::Detached | Attachment::Attaching { .. } => None,
        }
    }

    fn is_stale(&self, conn: ConnectionId) -> bool {
        #[cfg(test)]
        if self.mutated(Mutation::NoFence) {
            return false;
        }
        self.attached() != Some(conn)
    }

    fn ignores_ack(&self, conn: ConnectionId) -> bool {
        #[cfg(test)]
        if self.mutated(Mutation::StaleAck) {
            return false;
        }
        self.attached() != Some(conn)
    }

    // ---- sending: the holder of the write token of `conn`

    /// The next thing to write on `conn`, most urgent lane first: what is numbered and unwritten, else what `take` hands
    /// out of the queue of a lane that may number more. The chunk's head is appended to `head`.
    pub(crate) fn next_chunk(
        &mut self,
        conn: ConnectionId,
        now: Instant,
        head: &mut Vec<u8>,
        mut take: impl FnMut(Lane) -> Option<Taken>,
    ) -> Option<(Lane, Chunk)> {
        if self.attached() != Some(conn) {
            return None;
        }
        for lane in Lane::ALL {
            let turn = if lane == Lane::Bulk { crate::wire::MAX_PIECE } else { SEGMENT_BYTES };
            let out = &mut self.outgoing[lane.index()];
            let chunk = if out.has_unwritten() {
                out.next_chunk(turn, now, head)
            } else if out.can_number()
                && let Some(taken) = take(lane)
            {
                let chunk = if taken.segment.numbered {
                    out.number(taken.segment, taken.groups, turn, now, head)
                } else {
                    Some(Chunk::unnumbered(taken.segment, now))
                };
                for (lane, debt) in self.incoming.iter_mut().zip(taken.debt) {
                    lane.release(debt);
                }
                chunk
            } else {
                None
            };
            if let Some(chunk) = chunk {
                return Some((lane, chunk));
            }
        }
        None
    }

    /// Whether something is numbered and not written yet in this session.
    pub(crate) fn has_unwritten(&self) -> bool {
        self.outgoing.iter().any(LaneOut::has_unwritten)
    }

    /// Appends the acknowledgements that are due; `all` includes those that could wait.
    pub(crate) fn put_acks(&mut self, conn: ConnectionId, all: bool, out: &mut Vec<u8>) {
        if self.attached() != Some(conn) {
            return;
        }
        for lane in &mut self.incoming {
            let due = lane.ack_due();
            if due == AckDue::Now || (all && due == AckDue::Later) {
                let ack = lane.take_ack();
                put_ack(out, &ack);
            }
        }
    }

    /// The most urgent acknowledgement that is due.
    pub(crate) fn ack_due(&self) -> AckDue {
        self.incoming.iter().map(LaneIn::ack_due).max().unwrap_or(AckDue::No)
    }

    // ---- receiving: the receiver thread of `conn`

    /// Takes an acknowledgement. Stale ones are ignored.
    pub(crate) fn on_ack(&mut self, conn: ConnectionId, ack: &Ack) -> Result<Acked, Fault> {
        let mut acked = Acked::default();
        if self.ignores_ack(conn) {
            return Ok(acked);
        }
        let Some(lane) = Lane::from_bits(ack.lane) else { return Ok(acked) };
        #[cfg(test)]
        let done = if self.mutated(Mutation::FreeAtReceived) { ack.received } else { ack.done };
        #[cfg(not(test))]
        let done = ack.done;
        let out = &mut self.outgoing[lane.index()];
        let before = out.done();
        if ack.received > out.sent() || done > ack.received {
            return Err(Fault::AckedUnsent);
        }
        // A new session repeats the exceptions that the receiver does not know we know; ours are those that end now.
        let (mut numbers, mut failed) = (HashSet::new(), Vec::new());
        for exception in ack.exceptions.iter().filter(|e| e.number >= before && e.number < done) {
            if numbers.insert(exception.number)
                && let Some((class, extract)) = out.take(exception.number)
            {
                failed.push((class, extract.payload.len() as u64));
                let (number, cause) = (exception.number, RejectCause::from_code(exception.cause));
                if number < out.replayed() && cause != RejectCause::HandlerPanicked {
                    // This life did not hand it over; an earlier one, which was given all of it, may have.
                    acked.lost.push(Lost { lane, class, extract, written: true });
                } else {
                    acked.rejected.push(Rejected { lane, number, cause, extract });
                }
            }
        }
        let mut freed = out.acknowledge(ack.received, done, ack.window)?;
        for (class, bytes) in failed {
            freed.ended.leave_out(class);
            self.tally.failed.add(class, 1, bytes);
        }
        self.tally.succeeded.merge(&freed.ended);
        acked.probe = freed.probe.map(|probe| (lane, probe));
        let (rejected, unknown) = (acked.rejected.len() as u64, acked.lost.len() as u64);
        acked
            .done
            .extend(freed.tickets.iter().filter(|(number, _)| !numbers.contains(number)).map(|(_, ticket)| *ticket));
        self.counts.rejected += rejected;
        self.counts.unknown += unknown;
        self.counts.acked += freed.messages - rejected - unknown;
        if !freed.segments.is_empty() {
            acked.kept = Some(self.kept_bytes());
        }
        acked.segments = freed.segments;
        acked.wake = freed.wake;
        Ok(acked)
    }

    /// Takes a SEGMENT frame.
    pub(crate) fn on_segment(&mut self, conn: ConnectionId, lane: Lane, first: u64, base: u64) -> Result<(), NoClaim> {
        if self.is_stale(conn) {
            return Err(NoClaim::Stale);
        }
        Ok(self.incoming[lane.index()].announce(first, base)?)
    }

    /// Claims whole messages for delivery by the receiver thread of `conn`, which then calls [`LinkCore::delivered`].
    pub(crate) fn claim(
        &mut self,
        conn: ConnectionId,
        lane: Lane,
        frames: u32,
        bytes: usize,
        ack_now: bool,
    ) -> Result<Claim, NoClaim> {
        self.may_deliver(conn)?;
        let claim = self.incoming[lane.index()].claim(frames, bytes, ack_now)?;
        self.delivering = Some(conn);
        Ok(claim)
    }

    /// Claims messages without numbers, which were not promised: see [`LinkCore::claim`].
    pub(crate) fn claim_unnumbered(&mut self, conn: ConnectionId) -> Result<(), NoClaim> {
        self.may_deliver(conn)?;
        self.delivering = Some(conn);
        Ok(())
    }

    /// Claims one frame that is not a plain whole message; see [`LinkCore::claim`]. With `Piece::More` and
    /// `Piece::Whole` the message under way comes along, to be put back by [`LinkCore::put_big`] in the first case.
    pub(crate) fn claim_piece(
        &mut self,
        conn: ConnectionId,
        lane: Lane,
        header: FrameHeader,
        body: &[u8],
        afford: impl FnOnce(u64) -> Option<Charge>,
    ) -> Result<(Claim, Piece, Option<Reassembly>), NoClaim> {
        self.may_deliver(conn)?;
        let incoming = &mut self.incoming[lane.index()];
        let (claim, piece) = incoming.claim_piece(header, body, afford)?;
        let big = match piece {
            Piece::More(_) | Piece::Whole(_) | Piece::Rejected(_) => incoming.take_big(),
            Piece::Discard => None,
        };
        self.delivering = Some(conn);
        Ok((claim, piece, big))
    }

    /// Takes a numbered frame without a message: SKIP, ABORT, or one of a newer version.
    pub(crate) fn on_other(
        &mut self,
        conn: ConnectionId,
        lane: Lane,
        apply: impl FnOnce(&mut Other<'_>) -> Result<(), Fault>,
    ) -> Result<(), NoClaim> {
        self.may_deliver(conn)?;
        Ok(apply(&mut Other(&mut self.incoming[lane.index()]))?)
    }

    fn may_deliver(&self, conn: ConnectionId) -> Result<(), NoClaim> {
        if self.is_stale(conn) {
            return Err(NoClaim::Stale);
        }
        #[cfg(test)]
        if self.mutated(Mutation::NoDeliveryGate) {
            return Ok(());
        }
        match self.delivering {
            Some(other) if other != conn => Err(NoClaim::Busy),
            _ => Ok(()),
        }
    }

    /// Which life of the receiving lanes a claim belongs to; give it back to [`LinkCore::finish`].
    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    /// Puts back a message that is still under way.
    pub(crate) fn put_big(&mut self, generation: u32, lane: Lane, big: Reassembly) {
        if generation == self.generation {
            self.incoming[lane.index()].put_big(big);
        }
    }

    /// The receiver thread of `conn` has delivered what it claimed: another session may go on.
    pub(crate) fn delivered(&mut self, conn: ConnectionId) {
        if self.delivering == Some(conn) {
            self.delivering = None;
        }
    }

    /// Messages were handed over, or one of them rejected: all numbers of the lane below `upto` are over, and `credit`
    /// bytes may come again.
    pub(crate) fn finish(
        &mut self,
        generation: u32,
        lane: Lane,
        upto: u64,
        credit: u64,
        rejected: Option<(u64, RejectCause)>,
    ) {
        let incoming = &mut self.incoming[lane.index()];
        if generation == self.generation {
            incoming.finish(upto, credit, rejected);
        } else {
            incoming.release(credit);
        }
    }

    /// Credit that a big message of `len` bytes holds: as [`Reassembly::credit`].
    #[cfg(test)]
    pub(crate) fn big_credit(&self, lane: Lane, len: usize) -> u64 {
        (len as u64).min(self.limits.lane(lane) as u64)
    }

    /// From the next attach on, `window_bytes` may be outstanding over all lanes, as far as they go below the least.
    pub(crate) fn set_inbound_window(&mut self, window_bytes: usize) {
        let limits = LinkLimits { window_bytes: window_bytes.min(self.limits.window_bytes), ..self.limits };
        for lane in Lane::ALL {
            self.incoming[lane.index()].set_window(limits.lane(lane) as u64);
        }
    }

    /// `credit` bytes of a lane may come again.
    pub(crate) fn release(&mut self, lane: Lane, credit: u64) {
        self.incoming[lane.index()].release(credit);
    }

    // ---- looking

    /// What became of messages so far.
    pub(crate) fn counts(&self) -> LinkCounts {
        self.counts
    }

    /// What names this state of the link: random, and another one whenever it starts from nothing.
    pub(crate) fn state_id(&self) -> u64 {
        self.state_id
    }

    /// Bytes numbered and not done, over all lanes.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.outgoing.iter().map(LaneOut::kept_bytes).sum()
    }

    /// What became of messages so far, by class.
    pub(crate) fn tally(&self) -> &LinkTally {
        &self.tally
    }

    /// Messages numbered and not done, over all lanes.
    pub(crate) fn kept_messages(&self) -> u64 {
        self.outgoing.iter().map(LaneOut::kept_messages).sum()
    }

    /// Bytes written and not done, over all lanes.
    pub(crate) fn unacked_bytes(&self) -> usize {
        self.outgoing.iter().map(LaneOut::unacked_bytes).sum()
    }

    /// Numbers received per lane: for a goodbye.
    pub(crate) fn received(&self) -> [u64; LANES] {
        std::array::from_fn(|lane| self.incoming[lane].positions().0)
    }

    /// Forgets what is kept: the resume window ended. Returns the messages that this ends. A link that is attached
    /// forgets nothing; one whose attach is under way does so if that attach fails.
    pub(crate) fn give_up(&mut self, state_id: u64) -> Vec<Lost> {
        match self.attachment {
            Attachment::Detached => self.forget(state_id),
            Attachment::Attaching { .. } => {
                self.giving_up = Some(state_id);
                Vec::new()
            }
            Attachment::Attached { .. } => Vec::new(),
        }
    }

    pub(super) fn forget(&mut self, state_id: u64) -> Vec<Lost> {
        let mut lost = Vec::new();
        for lane in &mut self.outgoing {
            let (given_up, ended) = lane.give_up();
            lost.extend(given_up);
            self.tally.succeeded.merge(&ended);
        }
        self.count_lost(&lost);
        self.state_id = state_id;
        lost
    }

    /// Ends all that is kept: the node has ended. A session that is still attached, because its thread is held, says and
    /// hears nothing of it.
    pub(crate) fn end(&mut self, state_id: u64) -> Vec<Lost> {
        self.attachment = Attachment::Detached;
        self.forget(state_id)
    }

    pub(super) fn count_lost(&mut self, lost: &[Lost]) {
        let unknown = lost.iter().filter(|lost| lost.written).count() as u64;
        self.counts.unknown += unknown;
        self.counts.unwritten += lost.len() as u64 - unknown;
        #[cfg(test)]
        if self.mutated(Mutation::LossUncounted) {
            return;
        }
        for Lost { class, extract, .. } in lost {
            self.tally.failed.add(*class, 1, extract.payload.len() as u64);
        }
    }
}

/// A segment out of a queue, and the credit of questions (per lane) that it pays back by being written.
#[derive(Debug)]
pub(crate) struct Taken {
    /// The frames.
    pub(crate) segment: Segment,
    /// Bytes per lane of the questions it answers.
    pub(crate) debt: [u64; LANES],
    /// What its messages count as.
    pub(crate) groups: Groups,
    /// When the first of its messages was appended.
    pub(crate) since: Instant,
}

#[cfg(test)]
impl Taken {
    /// That pays nothing back and counts as nothing special.
    pub(crate) fn plain(segment: Segment) -> Self {
        let bytes = segment.extract(0..segment.frames).iter().map(|extract| extract.payload.len() as u64).sum();
        let groups = Groups::of(crate::metrics::Class::PLAIN, segment.messages, bytes);
        Self { segment, debt: [0; LANES], groups, since: Instant::now() }
    }
}

/// What numbered frames without a message may do to a lane.
pub(crate) struct Other<'a>(&'a mut LaneIn);

impl Other<'_> {
    /// ABORT.
    pub(crate) fn abort(&mut self, bytes: usize) -> Result<(), Fault> {
        self.0.abort(bytes)
    }

    /// SKIP.
    pub(crate) fn skip(&mut self, count: u64, bytes: usize) -> Result<(), Fault> {
        self.0.skip(count, bytes)
    }

    /// A type of a newer version.
    pub(crate) fn unknown(&mut self, bytes: usize) -> Result<(), Fault> {
        self.0.unknown(bytes)
    }
}

/// Appends an ACK frame.
fn put_ack(out: &mut Vec<u8>, ack: &Ack) {
    if let Err(error) = crate::wire::put_body(out, crate::wire::FrameType::Ack, ack) {
        // An acknowledgement always fits a frame, see [`LaneIn::take_ack`]; say so loudly if that ever changes.
        debug_assert!(false, "{error}");
    }
}
