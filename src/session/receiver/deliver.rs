//! Handing over what came: to the handler on this thread, or to the application's inbox.
//!
//! Owns: nothing beyond its borrow of the receiver. Threads: `rx-<peer>` only. Locks: the link lock, per run of messages,
//! never while the handler runs. Blocks on: the handler.
//! Upholds: each message ends here exactly once: handed over, or rejected with a cause that its sender hears of; what had
//! expired when it came is not handed over; a panic rejects that message and ends this session only.

use std::borrow::Cow;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::answers::prefix_at;
use super::{End, Receiver};
use crate::error::{CloseReason, DisconnectReason, RejectCause};
use crate::link::{Claim, Piece, Reassembly};
use crate::memory::Charge;
use crate::metrics::{Class, Groups};
use crate::session::handling;
use crate::session::inbox::{Handler, Put, Sink};
use crate::session::message::{Body, Extra, Message, Part, PartContent};
use crate::session::requests::{Came, is_answer};
use crate::session::responder::{Held, Responder};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::wire::{Decoder, FrameHeader, Lane, Prefix, Run, Whole, flags};

/// A reassembly buffer up to this size is kept for the next big message.
const KEPT_BUFFER: usize = 4 * 1024 * 1024;

/// A run of messages that is this thread's to deliver.
struct Claimed {
    run: Run,
    generation: u32,
    claim: Claim,
    /// What its messages count as.
    groups: Groups,
}

/// Credit that a frame of so many bytes in this run holds: what has no number holds none.
#[inline]
fn credit_of(run: Run, bytes: usize) -> u64 {
    if run.is_numbered() { bytes as u64 } else { 0 }
}

impl Receiver<'_> {
    /// Claims a run of whole messages and delivers it.
    pub(super) fn take_run(&mut self, run: Run, decoder: &mut Decoder) -> Result<(), End> {
        let conn = self.session.conn;
        if self.session.parting.load(Ordering::Relaxed) {
            decoder.take_run(run);
            return Ok(());
        }
        let (claim, generation) = if run.is_numbered() {
            self.claim(|core| core.claim(conn, run.lane, run.frames, run.bytes, run.ack_now))?
        } else {
            self.claim(|core| core.claim_unnumbered(conn).map(|()| Claim::UNNUMBERED))?
        };
        let more = decoder.pending().len() > run.bytes;
        let bytes = decoder.take_run(run);
        let groups = self.link.groups_of(&run, bytes);
        self.link.arrivals.came(&groups);
        let claimed = Claimed { run, generation, claim, groups };
        if run.expired {
            return self.reject_run(&claimed, bytes, RejectCause::Expired);
        }
        self.link.traffic.received.more(run.frames.into());
        if is_answer(run.lane, run.flags) {
            return self.take_answers(run, generation, claim, (bytes, claimed.groups));
        }
        match self.sink {
            Sink::Handler(handler) => self.handle_run(handler, claimed, bytes, more),
            Sink::Inbox(inbox) => {
                let Claim { first, repeat_below } = claim;
                let part = Part {
                    generation,
                    lane: run.lane,
                    first,
                    repeat_below,
                    messages: run.frames,
                    credit: credit_of(run, run.bytes),
                    arrived: Instant::now(),
                    content: PartContent::Frames { flags: run.flags, bytes: bytes.to_vec() },
                };
                match inbox.put(self.link, part) {
                    Put::Taken => {}
                    Put::Unread => {
                        self.link.traffic.unread.more(run.frames.into());
                        self.link.arrivals.failed(&claimed.groups);
                    }
                    Put::Gone => self.nobody_there(),
                }
                self.delivered();
                Ok(())
            }
        }
    }

    /// Calls the handler for each message of a claimed run.
    fn handle_run(&self, handler: &Handler, claimed: Claimed, bytes: &[u8], more: bool) -> Result<(), End> {
        let Claimed { run, generation, claim, mut groups } = claimed;
        let Run { lane, frames, prefix, .. } = run;
        let arrived = if run.flags & flags::EXPIRY != 0 { Some(Instant::now()) } else { None };
        let replied = AtomicU64::new(0);
        // Position of the message being handled: offset in `bytes`, index in the run; and its kind.
        let at = Cell::new((0usize, 0u32, 0u16));
        let mut panicked = false;
        self.link.busy.store(true, Ordering::Relaxed);
        handling::mark(self.link.address(), true);
        while at.get().1 < frames {
            let verdict = catch_unwind(AssertUnwindSafe(|| {
                while at.get().1 < frames {
                    let (offset, index, _) = at.get();
                    let Some(whole) = Whole::at(bytes, offset, prefix) else { break };
                    let kind = whole.header.kind;
                    at.set((whole.end, index + 1, kind));
                    if index + 1 == frames {
                        handling::mark(self.link.address(), more);
                    }
                    let number = claim.first + u64::from(index);
                    let credit = credit_of(run, whole.end - offset);
                    let (extra, credit) = if prefix > 0 {
                        let held = Held { lane, credit, size: whole.payload.len() };
                        self.extra_of(run.flags, bytes, offset, kind, held, arrived)
                    } else {
                        (None, credit)
                    };
                    let message = Message {
                        kind,
                        lane,
                        number,
                        repeat: number < claim.repeat_below,
                        credit,
                        extra,
                        body: Body::Handler { link: self.link, payload: whole.payload, replied: &replied },
                        replied: Cell::new(false),
                    };
                    handler.handle(&self.handle, message)?;
                }
                Ok(())
            }));
            let cause = match verdict {
                Ok(Ok(())) => break,
                Ok(Err(cause)) => cause,
                Err(_) => {
                    panicked = true;
                    RejectCause::HandlerPanicked
                }
            };
            let (end, handled, kind) = at.get();
            let number = claim.first + u64::from(handled) - 1;
            let class = self.link.class_of_came(lane, run.flags, kind);
            self.leave_out(&mut groups, class, length_before(bytes, end, prefix));
            self.reject(run.is_numbered(), generation, (lane, kind, number), 0, cause);
        }
        handling::mark(0, false);
        self.link.busy.store(false, Ordering::Relaxed);
        self.handed(&groups);
        if run.is_numbered() {
            // That of questions returns by their responders.
            let held = if run.flags & flags::CORRELATED != 0 { 0 } else { bytes.len() as u64 };
            let credit = held.saturating_sub(replied.into_inner());
            let upto = claim.first + u64::from(frames);
            self.link.finish_delivery(self.session.conn, generation, lane, upto, credit);
        } else {
            self.delivered();
        }
        if panicked { Err(End::Cause(DisconnectReason::Local(CloseReason::HandlerPanicked))) } else { Ok(()) }
    }

    /// One of these messages was not handed over.
    #[cold]
    fn leave_out(&self, groups: &mut Groups, class: Class, bytes: usize) {
        groups.leave_out(class, bytes as u64);
        self.link.arrival_failed(class, bytes);
    }

    /// What few messages have, and the credit that the message is left with.
    #[cold]
    fn extra_of(
        &self,
        flag_bits: u8,
        bytes: &[u8],
        offset: usize,
        kind: u16,
        held: Held,
        arrived: Option<Instant>,
    ) -> (Option<Box<Extra>>, u64) {
        let told = prefix_at(flag_bits, bytes, offset);
        let expires = arrived.zip(told.remaining).map(|(from, left)| from + ms(left));
        Extra::new(self.link, kind, held, told.correlation, expires)
    }

    /// Rejects all messages of a claimed run.
    fn reject_run(&self, claimed: &Claimed, bytes: &[u8], cause: RejectCause) -> Result<(), End> {
        let Run { frames, prefix, lane, .. } = claimed.run;
        self.link.arrivals.failed(&claimed.groups);
        let mut offset = 0;
        for number in (claimed.claim.first..).take(frames as usize) {
            let Some(whole) = Whole::at(bytes, offset, prefix) else { break };
            let (kind, credit) = (whole.header.kind, credit_of(claimed.run, whole.end - offset));
            let told = prefix_at(claimed.run.flags, bytes, offset);
            let question = told.correlation.filter(|_| !is_answer(lane, claimed.run.flags));
            let credit = self.refuse((kind, lane, credit), question, cause);
            offset = whole.end;
            self.reject(claimed.run.is_numbered(), claimed.generation, (lane, kind, number), credit, cause);
        }
        self.delivered();
        Ok(())
    }

    /// Takes one piece of a big message; the last one delivers it.
    pub(super) fn take_piece(&mut self, lane: Lane, header: FrameHeader, body: &[u8], more: bool) -> Result<(), End> {
        let conn = self.session.conn;
        if self.session.parting.load(Ordering::Relaxed) {
            return Ok(());
        }
        let memory = &self.link.settings.memory;
        let afford = |total| Charge::take(memory, usize::try_from(total).ok()?);
        let ((claim, piece, big), generation) =
            self.claim(|core| core.claim_piece(conn, lane, header, body, afford))?;
        let (Piece::More(offset) | Piece::Whole(offset)) = piece else {
            if let Piece::Rejected(cause) = piece {
                self.link.traffic.rejected.add(cause);
                // Its credit has returned.
                if let Some(big) = big {
                    let groups = self.count_big(lane, &big);
                    self.link.arrivals.failed(&groups);
                    self.refuse_big(lane, &big, cause);
                }
            }
            let due = self.link.core.lock().ack_due();
            self.delivered();
            self.link.see_to_acks(due);
            return Ok(());
        };
        let Some(mut big) = big else { return Ok(()) };
        if big.bytes.capacity() == 0 {
            big.bytes = std::mem::take(&mut self.spare);
        }
        if header.has(flags::FIRST | flags::EXPIRY) {
            // From its first piece on: a message that is long under way may expire on the way.
            big.expires = Prefix::read(header.flags, body)?.remaining.map(|left| Instant::now() + ms(left));
        }
        big.bytes.extend_from_slice(body.get(offset..).unwrap_or_default());
        if let Piece::More(_) = piece {
            let mut core = self.link.core.lock();
            core.put_big(generation, lane, big);
            core.delivered(conn);
            let due = core.ack_due();
            drop(core);
            self.link.delivered.notify_all();
            self.link.see_to_acks(due);
            return Ok(());
        }
        self.deliver_whole(generation, lane, claim, big, more)
    }

    fn deliver_whole(
        &mut self,
        generation: u32,
        lane: Lane,
        claim: Claim,
        big: Reassembly,
        more: bool,
    ) -> Result<(), End> {
        let groups = self.count_big(lane, &big);
        let Reassembly {
            kind, bytes: payload, expires, correlation: question, credit, flags: flag_bits, charge, ..
        } = big;
        let Claim { first: number, repeat_below } = claim;
        if is_answer(lane, flag_bits) {
            self.link.traffic.received.add();
            let came = Came {
                number: question.unwrap_or_default(),
                kind,
                failed: flag_bits & flags::FAILED != 0,
                payload: Cow::Owned(payload),
                credit,
                charge: Some(charge),
            };
            let kept = self.answer(lane, flag_bits, std::iter::once(came), groups);
            self.link.finish_delivery(self.session.conn, generation, lane, number + 1, credit - kept);
            return Ok(());
        }
        if expires.is_some_and(|expires| expires <= Instant::now()) {
            let credit = self.refuse((kind, lane, credit), question, RejectCause::Expired);
            self.link.arrivals.failed(&groups);
            self.reject(true, generation, (lane, kind, number), credit, RejectCause::Expired);
            self.delivered();
            return Ok(());
        }
        self.link.traffic.received.add();
        let handler = match self.sink {
            Sink::Handler(handler) => handler,
            Sink::Inbox(inbox) => {
                let content = PartContent::Whole { kind, expires, question, payload, _charge: charge };
                let (first, messages, arrived) = (number, 1, Instant::now());
                let part = Part { generation, lane, first, repeat_below, messages, credit, arrived, content };
                if inbox.put(self.link, part) == Put::Gone {
                    self.nobody_there();
                }
                self.delivered();
                return Ok(());
            }
        };
        let held = Held { lane, credit, size: payload.len() };
        let (extra, credit) = Extra::new(self.link, kind, held, question, expires);
        let replied = AtomicU64::new(0);
        self.link.busy.store(true, Ordering::Relaxed);
        handling::mark(self.link.address(), more);
        let verdict = catch_unwind(AssertUnwindSafe(|| {
            let message = Message {
                kind,
                lane,
                number,
                repeat: number < repeat_below,
                credit,
                extra,
                body: Body::Handler { link: self.link, payload: &payload, replied: &replied },
                replied: Cell::new(false),
            };
            handler.handle(&self.handle, message)
        }));
        handling::mark(0, false);
        self.link.busy.store(false, Ordering::Relaxed);
        let credit = credit - replied.into_inner();
        match &verdict {
            Ok(Ok(())) => self.handed(&groups),
            _ => self.link.arrivals.failed(&groups),
        }
        match &verdict {
            Ok(Ok(())) => self.link.finish_delivery(self.session.conn, generation, lane, number + 1, credit),
            Ok(Err(cause)) => self.reject(true, generation, (lane, kind, number), credit, *cause),
            Err(_) => self.reject(true, generation, (lane, kind, number), credit, RejectCause::HandlerPanicked),
        }
        self.delivered();
        if payload.capacity() <= KEPT_BUFFER {
            self.spare = payload;
            self.spare.clear();
        }
        match verdict {
            Ok(_) => Ok(()),
            Err(_) => Err(End::Cause(DisconnectReason::Local(CloseReason::HandlerPanicked))),
        }
    }

    /// Nobody takes messages any more: the other side hears it, after the rejections.
    fn nobody_there(&self) {
        log::debug!(
            target: "threadwire::session",
            "{} {}: nobody takes the messages any more", self.link.id.short(), self.session.conn
        );
        self.session.say_goodbye(self.link, CloseReason::ConsumerGone);
    }

    /// A message came whole that came in pieces. What it counts as.
    fn count_big(&self, lane: Lane, big: &Reassembly) -> Groups {
        let class = self.link.class_of_came(lane, big.flags, big.kind);
        let groups = Groups::of(class, 1, big.arrived());
        self.link.arrivals.came(&groups);
        groups
    }

    /// Whoever asked the question, if it is one, is told why it was not handed over. Returns what is left of its credit.
    fn refuse(&self, (kind, lane, credit): (u16, Lane, u64), question: Option<u64>, cause: RejectCause) -> u64 {
        if question.is_none() {
            return credit;
        }
        Responder::new(self.link.clone(), kind, Held { lane, credit, size: 0 }, question, None).refuse(cause);
        0
    }

    /// Message `number`, and with it all before it, is over; its sender hears of the cause if it has a number.
    fn reject(
        &self,
        numbered: bool,
        generation: u32,
        (lane, kind, number): (Lane, u16, u64),
        credit: u64,
        cause: RejectCause,
    ) {
        let level = if cause == RejectCause::HandlerPanicked { log::Level::Error } else { log::Level::Debug };
        log::log!(
            target: "threadwire::session", level,
            "{} {}: message {number} of lane {lane:?} ({}): {cause}",
            self.link.id.short(), self.session.conn, self.link.settings.kinds.label(kind)
        );
        self.link.traffic.rejected.add(cause);
        if numbered {
            self.link.finish(generation, lane, number + 1, credit, Some((number, cause)));
        }
    }
}

/// Bytes of the payload of the message whose frame ends at `end`.
fn length_before(bytes: &[u8], end: usize, prefix: usize) -> usize {
    let mut at = 0;
    while let Some(whole) = Whole::at(bytes, at, prefix) {
        if whole.end >= end {
            return whole.payload.len();
        }
        at = whole.end;
    }
    0
}

fn ms(left: u32) -> Duration {
    Duration::from_millis(left.into())
}
