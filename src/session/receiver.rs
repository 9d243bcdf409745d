//! The receiver thread of a session: turns the peer's byte stream into messages, until the stream ends.
//!
//! Owns: the reading half and its decoder. Threads: `rx-<peer>` only. Locks: the link lock, per chunk of messages, never
//! while the handler runs or the socket is read. Blocks on: the socket (woken by the closer), the handler, and an
//! earlier session of the same peer that still delivers what it had claimed.
//! Upholds: what is delivered was claimed first; a stale session claims nothing; a panic of the handler rejects that
//! message and ends that peer's session only; the last thing is the report of the session's end.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::error::{CloseReason, DisconnectReason, RejectCause};
use crate::link::{Claim, LinkCore, NoClaim, Piece, Reassembly};
use crate::session::handling;
use crate::session::inbox::{Handler, Peer, Sink};
use crate::session::message::{Message, Part, PartContent, Payload, Source};
use crate::session::outbox::Goodbye;
use crate::session::peer::PeerHandle;
use crate::session::peer_link::PeerLink;
use crate::session::state::{OnEnd, Session};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::transport::ReadHalf;
use crate::wire::{self, Ack, Beat, Decoder, FrameHeader, FrameType, HEADER, Lane, MAX_BODY, Run, WireError};

/// Messages claimed at once: the link lock is taken per run, and a handler's progress is told per run.
const RUN: u32 = 128;
/// A reassembly buffer up to this size is kept for the next big message.
const KEPT_BUFFER: usize = 4 * 1024 * 1024;

/// Runs until the stream ends, the session is replaced, or the peer breaks the protocol.
pub(crate) fn recv_loop(
    peer: &Peer,
    session: &Arc<Session>,
    mut read: Box<dyn ReadHalf>,
    mut decoder: Decoder,
    on_end: &OnEnd,
) {
    decoder.set_limit(MAX_BODY);
    let link = &peer.link;
    // What the handshake's last read brought along is the session's already.
    link.traffic.read.more(decoder.pending().len() as u64);
    let handle = PeerHandle::new(link.clone());
    let mut receiver = Receiver {
        link,
        sink: &peer.sink,
        session,
        handle,
        segment: Cell::new(None),
        spare: Vec::new(),
        retry_after: Duration::ZERO,
    };
    let cause = loop {
        match receiver.take_all(&mut decoder) {
            Ok(true) => drop(session.heard.fetch_add(1, Ordering::Relaxed)),
            Ok(false) => {}
            Err(End::Cause(cause)) => break Some(cause),
            Err(End::Broken(error)) => {
                log::warn!(target: "threadwire::session", "{} {}: {error}", link.id.short(), session.conn);
                break Some(DisconnectReason::Local(CloseReason::ProtocolError));
            }
            Err(End::Stale) => break None,
        }
        decoder.shrink_if_idle();
        match read.read(decoder.space()) {
            Ok(0) => break Some(DisconnectReason::Lost(std::io::ErrorKind::UnexpectedEof)),
            Ok(count) => {
                decoder.filled(count);
                link.traffic.read.more(count as u64);
            }
            Err(error) => break Some(DisconnectReason::Lost(error.kind())),
        }
        session.reads.fetch_add(1, Ordering::Relaxed);
        link.reads.fetch_add(1, Ordering::Relaxed);
    };
    let retry_after = receiver.retry_after;
    match cause {
        Some(cause) => session.gate.close(cause),
        None => session.gate.close(DisconnectReason::Local(CloseReason::Superseded)),
    }
    link.outbox.detach(session.conn);
    session.leave(link, on_end, retry_after);
}

/// Why the loop ends.
enum End {
    Cause(DisconnectReason),
    /// The peer sent what is no frame, or one that has no place here.
    Broken(WireError),
    /// A newer session took over.
    Stale,
}

/// A run of messages that is this thread's to deliver.
struct Claimed {
    generation: u32,
    lane: Lane,
    claim: Claim,
    frames: u32,
}

impl From<WireError> for End {
    fn from(error: WireError) -> Self {
        Self::Broken(error)
    }
}

struct Receiver<'a> {
    link: &'a Arc<PeerLink>,
    sink: &'a Sink,
    session: &'a Arc<Session>,
    handle: PeerHandle,
    /// A SEGMENT frame whose numbered frames are still to come.
    segment: Cell<Option<(Lane, u64, u64)>>,
    /// A reassembly buffer for the next big message.
    spare: Vec<u8>,
    retry_after: Duration,
}

impl Receiver<'_> {
    /// Takes every frame that lies complete in the decoder; whether there was one.
    fn take_all(&mut self, decoder: &mut Decoder) -> Result<bool, End> {
        let mut took = false;
        loop {
            if let Some(run) = decoder.peek_run(RUN)? {
                self.take_run(run, decoder)?;
                took = true;
                continue;
            }
            let more = decoder.pending().len();
            let Some(frame) = decoder.next_frame()? else { return Ok(took) };
            let more = more > HEADER + frame.body.len();
            self.take_frame(frame.header, frame.body, more)?;
            took = true;
        }
    }

    /// Claims a run of whole messages and delivers it.
    fn take_run(&mut self, run: Run, decoder: &mut Decoder) -> Result<(), End> {
        let conn = self.session.conn;
        if self.session.parting.load(Ordering::Relaxed) {
            decoder.take_run(run);
            return Ok(());
        }
        let (claim, generation) = self.claim(|core| core.claim(conn, run.lane, run.frames, run.bytes, run.ack_now))?;
        self.link.traffic.received.more(run.frames.into());
        let more = decoder.pending().len() > run.bytes;
        let bytes = decoder.take_run(run);
        let Run { lane, frames, .. } = run;
        match self.sink {
            Sink::Handler(handler) => {
                let claimed = Claimed { generation, lane, claim, frames };
                self.handle_run(handler.as_ref(), claimed, bytes, more)
            }
            Sink::Inbox(inbox) => {
                let content = PartContent::Frames(bytes.to_vec());
                let part = Part {
                    generation,
                    lane,
                    first: claim.first,
                    repeat_below: claim.repeat_below,
                    messages: frames,
                    credit: run.bytes as u64,
                    content,
                };
                inbox.put(self.link, part);
                self.delivered();
                Ok(())
            }
        }
    }

    /// Calls the handler for each message of a claimed run.
    fn handle_run(&self, handler: &Handler, claimed: Claimed, bytes: &[u8], more: bool) -> Result<(), End> {
        let Claimed { generation, lane, claim, frames } = claimed;
        let replied = AtomicU64::new(0);
        // Position of the message being handled: offset in `bytes`, index in the run.
        let at = Cell::new((0usize, 0u32));
        let mut panicked = false;
        self.link.busy.store(true, Ordering::Relaxed);
        while at.get().1 < frames {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                while at.get().1 < frames {
                    let (offset, index) = at.get();
                    let Some((header, payload)) = message_at(bytes, offset) else { return };
                    handling::mark(self.link.address(), more || index + 1 < frames);
                    at.set((offset + HEADER + payload.len(), index + 1));
                    let number = claim.first + u64::from(index);
                    let message = Message {
                        kind: header.kind,
                        lane,
                        number,
                        repeat: number < claim.repeat_below,
                        credit: (HEADER + payload.len()) as u64,
                        payload: Payload::Borrowed(payload),
                        source: Source::Handler { link: self.link, replied: &replied },
                        replied: Cell::new(false),
                    };
                    handler(&self.handle, message);
                }
            }));
            handling::mark(0, false);
            if outcome.is_err() {
                panicked = true;
                let number = claim.first + u64::from(at.get().1) - 1;
                self.reject(generation, lane, number, 0, RejectCause::HandlerPanicked);
            } else {
                break;
            }
        }
        self.link.busy.store(false, Ordering::Relaxed);
        let credit = (bytes.len() as u64).saturating_sub(replied.into_inner());
        let (conn, upto) = (self.session.conn, claim.first + u64::from(frames));
        self.link.finish_delivery(conn, generation, lane, upto, credit);
        if panicked { Err(End::Cause(DisconnectReason::Local(CloseReason::HandlerPanicked))) } else { Ok(()) }
    }

    /// Takes one frame that is not a plain whole message.
    fn take_frame(&mut self, header: FrameHeader, body: &[u8], more: bool) -> Result<(), End> {
        let conn = self.session.conn;
        let numbered = header.has(wire::flags::NUMBERED);
        let lane = || header.lane().ok_or(WireError::BadLane(header.tag >> 4));
        match header.frame_type() {
            Some(FrameType::Segment) => {
                let segment = (lane()?, wire::u64_at(body, 0)?, wire::u64_at(body, 8)?);
                // Taken together with the claim that follows, under one lock.
                if self.segment.get().is_some() {
                    self.quick(|_| Ok(()))?;
                }
                self.segment.set(Some(segment));
                Ok(())
            }
            Some(FrameType::Ack) => self.take_ack(body),
            Some(FrameType::Data) if numbered => self.take_piece(lane()?, header, body, more),
            Some(FrameType::Skip) if numbered => {
                let (lane, count) = (lane()?, wire::u64_at(body, 0)?);
                self.quick(|core| core.on_other(conn, lane, |other| other.skip(count, HEADER + body.len())))
            }
            Some(FrameType::Abort) if numbered => {
                let lane = lane()?;
                self.quick(|core| core.on_other(conn, lane, |other| other.abort(HEADER + body.len())))
            }
            Some(FrameType::Beat) => {
                let beat = Beat::from_body(body);
                self.session.presence.heard_busy(beat.busy);
                self.session.hear_beat(beat);
                Ok(())
            }
            Some(FrameType::Alive) => {
                let busy = body.first().is_some_and(|busy| *busy != 0);
                if self.session.presence.heard(header.flags, header.kind, busy) {
                    self.link.outbox.kick(false).wake();
                }
                Ok(())
            }
            Some(FrameType::Goodbye) => self.take_goodbye(body),
            // Unnumbered data is best effort; this version has nobody who takes it.
            Some(FrameType::Data) => Ok(()),
            None if numbered => {
                let lane = lane()?;
                self.quick(|core| core.on_other(conn, lane, |other| other.unknown(HEADER + body.len())))
            }
            None => Ok(()),
            Some(FrameType::Hello | FrameType::Confirm | FrameType::Attach | FrameType::Skip | FrameType::Abort) => {
                Err(WireError::Unexpected(header.tag & 0x0f).into())
            }
        }
    }

    fn take_ack(&self, body: &[u8]) -> Result<(), End> {
        let ack: Ack = wire::decode(body)?;
        let acked = self.link.core.lock().on_ack(self.session.conn, &ack).map_err(|fault| self.fault(fault.into()))?;
        self.link.see_to_freed(acked);
        Ok(())
    }

    fn take_goodbye(&mut self, body: &[u8]) -> Result<(), End> {
        let goodbye: wire::Goodbye = wire::decode(body)?;
        let reason = CloseReason::from_code(goodbye.reason);
        self.retry_after = Duration::from_millis(goodbye.retry_after_ms.into());
        self.session.gate.note(DisconnectReason::Remote(reason));
        // What was handed over is acknowledged before the stream ends; then the other side's end of stream comes.
        self.session.parting.store(true, Ordering::Relaxed);
        self.link.outbox.ask_goodbye(self.session.conn, Goodbye::Answer).wake();
        Ok(())
    }

    /// Takes one piece of a big message; the last one delivers it.
    fn take_piece(&mut self, lane: Lane, header: FrameHeader, body: &[u8], more: bool) -> Result<(), End> {
        let conn = self.session.conn;
        if self.session.parting.load(Ordering::Relaxed) {
            return Ok(());
        }
        let ((claim, piece, big), generation) = self.claim(|core| core.claim_piece(conn, lane, header, body))?;
        let (Piece::More(offset) | Piece::Whole(offset)) = piece else {
            if piece == Piece::Rejected {
                self.link.traffic.rejected.add(RejectCause::TooLarge);
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
        let Reassembly { kind, bytes: payload, .. } = big;
        self.link.traffic.received.add();
        let credit = self.link.core.lock().big_credit(lane, payload.len());
        let number = claim.first;
        let handler = match self.sink {
            Sink::Handler(handler) => handler,
            Sink::Inbox(inbox) => {
                let content = PartContent::Whole { kind, payload };
                let (first, repeat_below) = (number, claim.repeat_below);
                inbox.put(self.link, Part { generation, lane, first, repeat_below, messages: 1, credit, content });
                self.delivered();
                return Ok(());
            }
        };
        let replied = AtomicU64::new(0);
        self.link.busy.store(true, Ordering::Relaxed);
        handling::mark(self.link.address(), more);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let message = Message {
                kind,
                lane,
                number,
                repeat: number < claim.repeat_below,
                credit,
                payload: Payload::Borrowed(&payload),
                source: Source::Handler { link: self.link, replied: &replied },
                replied: Cell::new(false),
            };
            handler(&self.handle, message);
        }));
        handling::mark(0, false);
        self.link.busy.store(false, Ordering::Relaxed);
        let credit = credit - replied.into_inner();
        if outcome.is_ok() {
            self.link.finish_delivery(self.session.conn, generation, lane, number + 1, credit);
        } else {
            self.reject(generation, lane, number, credit, RejectCause::HandlerPanicked);
            self.delivered();
        }
        if payload.capacity() <= KEPT_BUFFER {
            self.spare = payload;
            self.spare.clear();
        }
        match outcome {
            Ok(()) => Ok(()),
            Err(_) => Err(End::Cause(DisconnectReason::Local(CloseReason::HandlerPanicked))),
        }
    }

    fn reject(&self, generation: u32, lane: Lane, number: u64, credit: u64, cause: RejectCause) {
        log::error!(
            target: "threadwire::session",
            "{} {}: message {number} of lane {lane:?}: {cause}", self.link.id.short(), self.session.conn
        );
        self.link.traffic.rejected.add(cause);
        self.link.finish(generation, lane, number + 1, credit, Some((number, cause)));
    }

    /// What was claimed is delivered: another session may go on.
    fn delivered(&self) {
        self.link.core.lock().delivered(self.session.conn);
        self.link.delivered.notify_all();
    }

    /// Claims under the link lock, waiting for an earlier session that still delivers.
    fn claim<T>(&self, mut claim: impl FnMut(&mut LinkCore) -> Result<T, NoClaim>) -> Result<(T, u32), End> {
        let mut core = self.link.core.lock();
        if let Some((lane, first, base)) = self.segment.take()
            && let Err(no_claim) = core.on_segment(self.session.conn, lane, first, base)
        {
            drop(core);
            return Err(self.fault(no_claim));
        }
        loop {
            match claim(&mut core) {
                Ok(claimed) => return Ok((claimed, core.generation())),
                Err(NoClaim::Busy) => self.link.delivered.wait(&mut core),
                Err(no_claim) => {
                    drop(core);
                    return Err(self.fault(no_claim));
                }
            }
        }
    }

    fn quick(&self, mut apply: impl FnMut(&mut LinkCore) -> Result<(), NoClaim>) -> Result<(), End> {
        if self.session.parting.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.claim(&mut apply).map(|((), _)| ())
    }

    fn fault(&self, no_claim: NoClaim) -> End {
        match no_claim {
            NoClaim::Fault(fault) => {
                log::warn!(target: "threadwire::session", "{} {}: {fault}", self.link.id.short(), self.session.conn);
                End::Cause(DisconnectReason::Local(CloseReason::ProtocolError))
            }
            NoClaim::Stale | NoClaim::Busy => End::Stale,
        }
    }
}

/// The whole message whose frame begins at `offset`.
#[inline]
fn message_at(bytes: &[u8], offset: usize) -> Option<(FrameHeader, &[u8])> {
    let header = FrameHeader::from_bytes(*bytes.get(offset..)?.first_chunk::<HEADER>()?);
    let start = offset + HEADER;
    Some((header, bytes.get(start..start + header.length as usize)?))
}
