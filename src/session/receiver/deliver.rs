//! Handing over what came: to the handler on this thread, or to the application's inbox.
//!
//! Owns: nothing beyond its borrow of the receiver. Threads: `rx-<peer>` only. Locks: the link lock, per run of messages,
//! never while the handler runs. Blocks on: the handler.
//! Upholds: each message ends here exactly once: handed over, or rejected with a cause that its sender hears of; what had
//! expired when it came is not handed over; a panic rejects that message and ends this session only.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::{End, Receiver};
use crate::error::{CloseReason, DisconnectReason, RejectCause};
use crate::link::{Claim, Piece, Reassembly};
use crate::memory::Charge;
use crate::session::handling;
use crate::session::inbox::{Handler, Sink};
use crate::session::message::{Body, Extra, Message, Part, PartContent};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::wire::{Decoder, FrameHeader, HEADER, Lane, Prefix, Run, Whole, flags};

/// A reassembly buffer up to this size is kept for the next big message.
const KEPT_BUFFER: usize = 4 * 1024 * 1024;

/// A run of messages that is this thread's to deliver.
struct Claimed {
    run: Run,
    generation: u32,
    claim: Claim,
}

impl Claimed {
    /// Credit that a frame of so many bytes holds: what has no number holds none.
    fn credit(&self, bytes: usize) -> u64 {
        if self.run.is_numbered() { bytes as u64 } else { 0 }
    }
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
        let claimed = Claimed { run, generation, claim };
        if run.expired {
            return self.reject_run(&claimed, bytes, RejectCause::Expired);
        }
        self.link.traffic.received.more(run.frames.into());
        match self.sink {
            Sink::Handler(handler) => self.handle_run(handler, &claimed, bytes, more),
            Sink::Inbox(inbox) => {
                let Claim { first, repeat_below } = claim;
                let part = Part {
                    generation,
                    lane: run.lane,
                    first,
                    repeat_below,
                    messages: run.frames,
                    credit: claimed.credit(run.bytes),
                    arrived: Instant::now(),
                    content: PartContent::Frames { flags: run.flags, bytes: bytes.to_vec() },
                };
                if !inbox.put(self.link, part) {
                    self.link.traffic.unread.more(run.frames.into());
                }
                self.delivered();
                Ok(())
            }
        }
    }

    /// Calls the handler for each message of a claimed run.
    fn handle_run(&self, handler: &Handler, claimed: &Claimed, bytes: &[u8], more: bool) -> Result<(), End> {
        let &Claimed { run, generation, claim } = claimed;
        let Run { lane, frames, prefix, .. } = run;
        let arrived = if run.flags & flags::EXPIRY != 0 { Some(Instant::now()) } else { None };
        let replied = AtomicU64::new(0);
        // Position of the message being handled: offset in `bytes`, index in the run.
        let at = Cell::new((0usize, 0u32));
        let mut panicked = false;
        self.link.busy.store(true, Ordering::Relaxed);
        handling::mark(self.link.address(), true);
        while at.get().1 < frames {
            let verdict = catch_unwind(AssertUnwindSafe(|| {
                while at.get().1 < frames {
                    let (offset, index) = at.get();
                    let Some(whole) = Whole::at(bytes, offset, prefix) else { break };
                    at.set((whole.end, index + 1));
                    if index + 1 == frames {
                        handling::mark(self.link.address(), more);
                    }
                    let number = claim.first + u64::from(index);
                    let extra = if prefix > 0 { extra_of(run.flags, bytes, offset, arrived) } else { None };
                    let message = Message {
                        kind: whole.header.kind,
                        lane,
                        number,
                        repeat: number < claim.repeat_below,
                        credit: claimed.credit(whole.end - offset),
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
            self.reject(run.is_numbered(), generation, lane, claim.first + u64::from(at.get().1) - 1, 0, cause);
        }
        handling::mark(0, false);
        self.link.busy.store(false, Ordering::Relaxed);
        if run.is_numbered() {
            let credit = (bytes.len() as u64).saturating_sub(replied.into_inner());
            let upto = claim.first + u64::from(frames);
            self.link.finish_delivery(self.session.conn, generation, lane, upto, credit);
        } else {
            self.delivered();
        }
        if panicked { Err(End::Cause(DisconnectReason::Local(CloseReason::HandlerPanicked))) } else { Ok(()) }
    }

    /// Rejects all messages of a claimed run.
    fn reject_run(&self, claimed: &Claimed, bytes: &[u8], cause: RejectCause) -> Result<(), End> {
        let Run { frames, prefix, lane, .. } = claimed.run;
        let mut offset = 0;
        for number in (claimed.claim.first..).take(frames as usize) {
            let Some(whole) = Whole::at(bytes, offset, prefix) else { break };
            let credit = claimed.credit(whole.end - offset);
            offset = whole.end;
            self.reject(claimed.run.is_numbered(), claimed.generation, lane, number, credit, cause);
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
        let Reassembly { kind, bytes: payload, expires, correlation: question, credit, charge, .. } = big;
        let Claim { first: number, repeat_below } = claim;
        if expires.is_some_and(|expires| expires <= Instant::now()) {
            self.reject(true, generation, lane, number, credit, RejectCause::Expired);
            self.delivered();
            return Ok(());
        }
        self.link.traffic.received.add();
        let handler = match self.sink {
            Sink::Handler(handler) => handler,
            Sink::Inbox(inbox) => {
                let content = PartContent::Whole { kind, expires, question, payload, _charge: charge };
                let (first, messages, arrived) = (number, 1, Instant::now());
                inbox
                    .put(self.link, Part { generation, lane, first, repeat_below, messages, credit, arrived, content });
                self.delivered();
                return Ok(());
            }
        };
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
                extra: Extra { expires, question }.boxed(),
                body: Body::Handler { link: self.link, payload: &payload, replied: &replied },
                replied: Cell::new(false),
            };
            handler.handle(&self.handle, message)
        }));
        handling::mark(0, false);
        self.link.busy.store(false, Ordering::Relaxed);
        let credit = credit - replied.into_inner();
        match &verdict {
            Ok(Ok(())) => self.link.finish_delivery(self.session.conn, generation, lane, number + 1, credit),
            Ok(Err(cause)) => self.reject(true, generation, lane, number, credit, *cause),
            Err(_) => self.reject(true, generation, lane, number, credit, RejectCause::HandlerPanicked),
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

    /// Message `number`, and with it all before it, is over; its sender hears of the cause if it has a number.
    fn reject(&self, numbered: bool, generation: u32, lane: Lane, number: u64, credit: u64, cause: RejectCause) {
        let level = if cause == RejectCause::HandlerPanicked { log::Level::Error } else { log::Level::Debug };
        log::log!(
            target: "threadwire::session", level,
            "{} {}: message {number} of lane {lane:?}: {cause}", self.link.id.short(), self.session.conn
        );
        self.link.traffic.rejected.add(cause);
        if numbered {
            self.link.finish(generation, lane, number + 1, credit, Some((number, cause)));
        }
    }
}

/// What stands in front of the payload of the frame that begins at `offset`: the decoder has seen that it is there.
#[cold]
fn extra_of(flag_bits: u8, bytes: &[u8], offset: usize, arrived: Option<Instant>) -> Option<Box<Extra>> {
    let told = Prefix::read(flag_bits, bytes.get(offset + HEADER..).unwrap_or_default()).unwrap_or_default();
    let expires = arrived.zip(told.remaining).map(|(from, left)| from + ms(left));
    Extra { expires, question: told.correlation }.boxed()
}

fn ms(left: u32) -> Duration {
    Duration::from_millis(left.into())
}
