//! What a reader does with the next frame: as the receiver thread of a session, and before that as the handshake.
//!
//! Owns: nothing. Threads: one explorer. Locks: none. Blocks on: nothing.
//! Upholds: a reader whose connection was closed still reads what had arrived; only the link keeps it from harm.

use std::collections::VecDeque;

use crate::error::RejectCause;
use crate::ident::ConnectionId;
use crate::link::explore::law::{Broken, Law, broken};
use crate::link::explore::world::{Case, Claimed, Consume, Content, NOW, Packet, World, id_of};
use crate::link::{Fault, NoClaim, Offer, Piece, Sign};
use crate::memory::Charge;
use crate::wire::{
    Ack, Attach, Decoder, Frame, FrameHeader, FrameType, HEADER, MAX_BODY, Run, decode, flags, put_alive, u64_at,
};

/// The most frames a reader claims at once.
const RUN: u32 = 8;

/// What became of a frame.
enum Taken {
    /// It is consumed.
    Yes,
    /// It is consumed, and these messages are being delivered now.
    Claimed(Box<Claimed>),
    /// It waits for another session's delivery.
    Busy,
    /// The session was replaced.
    Stale,
    /// The other side said goodbye.
    Over,
}

impl World {
    /// Reads the next frame, or a run of whole messages; false if it has to wait.
    pub(super) fn read(&mut self, case: &Case, side: u8, conn: u8, all: bool) -> Result<bool, Broken> {
        let mut moved = false;
        loop {
            let Some(at) = self.wire(conn) else { return Ok(moved) };
            let bytes = match self.wires[at].ends[usize::from(side)].inbox.front() {
                None => return Ok(moved),
                Some(Packet::Proof(life)) => {
                    let life = *life;
                    self.prove(case, side, conn, life)?;
                    return Ok(true);
                }
                Some(Packet::Frame(bytes)) => bytes.clone(),
            };
            let mut decoder = Decoder::new(MAX_BODY);
            decoder.feed(&bytes);
            if all {
                self.feed_run(at, side, &mut decoder);
            }
            let (taken, frames, announced) = match decoder.peek_run(RUN) {
                Ok(Some(run)) => (self.take_run(case, side, conn, run, &mut decoder)?, run.frames, false),
                _ => match decoder.next_frame() {
                    Ok(Some(frame)) => {
                        let announced = frame.header.frame_type() == Some(FrameType::Segment);
                        (self.take_frame(case, side, conn, frame)?, 1, announced)
                    }
                    other => return broken(Law::NoFault, format!("{other:?}")),
                },
            };
            let consumed = !matches!(taken, Taken::Busy);
            if consumed {
                // The decision about an attach may have ended the connection.
                let Some(at) = self.wire(conn) else { return Ok(true) };
                let end = &mut self.wires[at].ends[usize::from(side)];
                end.inbox.drain(..end.inbox.len().min(frames as usize));
                match taken {
                    Taken::Claimed(claimed) => {
                        end.claimed = Some(claimed.clone());
                        if case.consume == Consume::Handler {
                            self.see(case, side.into(), &claimed)?;
                        }
                        return Ok(true);
                    }
                    Taken::Stale => {
                        let told = end.closing || end.gone;
                        end.deaf = true;
                        end.inbox.clear();
                        return if told { Ok(true) } else { broken(Law::StaleWasTold, format!("c{conn} at {side}")) };
                    }
                    Taken::Over => {
                        end.deaf = true;
                        end.inbox.clear();
                        if !std::mem::replace(&mut end.gone, true) {
                            let decision = self.tell_gone(side, conn);
                            self.carry_out(case, side, decision)?;
                        }
                        return Ok(true);
                    }
                    Taken::Yes | Taken::Busy => {}
                }
            }
            moved |= consumed;
            if !consumed || !announced || case.fine {
                return Ok(moved);
            }
        }
    }

    /// Adds the whole messages that lie behind the first frame.
    fn feed_run(&self, at: usize, side: u8, decoder: &mut Decoder) {
        for packet in self.wires[at].ends[usize::from(side)].inbox.iter().skip(1) {
            let Packet::Frame(bytes) = packet else { return };
            let header = bytes.first_chunk().map(|bytes| FrameHeader::from_bytes(*bytes));
            if header.and_then(FrameHeader::frame_type) != Some(FrameType::Data) {
                return;
            }
            decoder.feed(bytes);
        }
    }

    /// The connection is the peer's, in this life of it.
    fn prove(&mut self, case: &Case, side: u8, conn: u8, life: u64) -> Result<(), Broken> {
        let Some(at) = self.wire(conn) else { return Ok(()) };
        let end = &mut self.wires[at].ends[usize::from(side)];
        end.inbox.pop_front();
        if end.gone {
            // A handshake that was given up is not offered.
            end.deaf = true;
            end.inbox.clear();
            return Ok(());
        }
        let offer = Offer { conn: id_of(conn), started: end.started, incarnation: life };
        let nonce = self.nonce(side);
        let decision = self.process(side, conn).core.offer(offer, nonce, NOW);
        self.carry_out(case, side, decision)
    }

    /// Claims a run of whole messages.
    fn take_run(&mut self, case: &Case, side: u8, conn: u8, run: Run, from: &mut Decoder) -> Result<Taken, Broken> {
        let core = &mut self.sides[usize::from(side)].edit().core;
        let claim = match core.claim(id_of(conn), run.lane, run.frames, run.bytes, run.ack_now) {
            Ok(claim) => claim,
            Err(no_claim) => return refuse(no_claim, side, conn),
        };
        let generation = core.generation();
        let mut messages = VecDeque::new();
        let mut frames = Decoder::new(MAX_BODY);
        frames.feed(from.take_run(run));
        while let Ok(Some(frame)) = frames.next_frame() {
            let id = *frame.body.first().unwrap_or(&u8::MAX);
            let (from, lane) = case.origin(id);
            if frame.body.iter().skip(1).any(|byte| *byte != 0x5a) || usize::from(side) == from || lane != run.lane {
                return broken(Law::InOrder, format!("message {id} came mangled"));
            }
            messages.push_back((id, (HEADER + frame.body.len()) as u64));
        }
        let (lane, content) = (run.lane, Content::Run(messages));
        let (first, repeat_below) = (claim.first, claim.repeat_below);
        Ok(Taken::Claimed(Box::new(Claimed { generation, lane, first, repeat_below, content })))
    }

    /// Takes any other frame.
    fn take_frame(&mut self, case: &Case, side: u8, conn: u8, frame: Frame<'_>) -> Result<Taken, Broken> {
        let Frame { header, body } = frame;
        let name = id_of(conn);
        if header.frame_type() == Some(FrameType::Alive) {
            return self.take_alive(case, side, conn, header);
        }
        let core = &mut self.process(side, conn).core;
        let mangled = || Broken { law: Law::NoFault, detail: format!("a frame that does not decode: {header:?}") };
        let no_claim = match (header.frame_type().ok_or_else(mangled)?, header.lane()) {
            (FrameType::Attach, _) => {
                let told: Attach = decode(body).map_err(|_| mangled())?;
                let decision = match core.on_attach(name, &told, NOW) {
                    Ok(decision) => decision,
                    Err(fault) => return at_fault(fault, side, conn),
                };
                self.carry_out(case, side, decision)?;
                return Ok(Taken::Yes);
            }
            (FrameType::Ack, _) => {
                let ack: Ack = decode(body).map_err(|_| mangled())?;
                let acked = match core.on_ack(name, &ack) {
                    Ok(acked) => acked,
                    Err(fault) => return at_fault(fault, side, conn),
                };
                self.sides[usize::from(side)].edit().asleep &= !acked.wake;
                return Ok(Taken::Yes);
            }
            (FrameType::Goodbye, _) => return Ok(Taken::Over),
            (FrameType::Segment, Some(lane)) => {
                let at = |at| u64_at(body, at).map_err(|_| mangled());
                core.on_segment(name, lane, at(0)?, at(8)?)
            }
            (FrameType::Skip, Some(lane)) => {
                let count = u64_at(body, 0).map_err(|_| mangled())?;
                core.on_other(name, lane, |other| other.skip(count, HEADER + body.len()))
            }
            (FrameType::Data, Some(_)) => return self.take_piece(side, name, header, body),
            _ => return Err(mangled()),
        };
        match no_claim {
            Ok(()) => Ok(Taken::Yes),
            Err(no_claim) => refuse(no_claim, side, conn),
        }
    }

    /// Answers a question, or takes the answer to one.
    fn take_alive(&mut self, case: &Case, side: u8, conn: u8, header: FrameHeader) -> Result<Taken, Broken> {
        if header.has(flags::ASK) {
            let mut answer = Vec::new();
            put_alive(&mut answer, false, 0, header.kind);
            self.send_on(side, conn, &answer);
        }
        if !header.has(flags::ASK) {
            let nonce = self.nonce(side);
            let decision = self.process(side, conn).core.judge(header.kind, Sign::Answered, nonce, NOW);
            self.carry_out(case, side, decision)?;
        }
        Ok(Taken::Yes)
    }

    /// Claims a piece of a big message.
    fn take_piece(&mut self, side: u8, name: ConnectionId, header: FrameHeader, body: &[u8]) -> Result<Taken, Broken> {
        let core = &mut self.sides[usize::from(side)].edit().core;
        let Some(lane) = header.lane() else { return broken(Law::NoFault, "data without a lane") };
        let (claim, piece, big) = match core.claim_piece(name, lane, header, body, |_| Some(Charge::default())) {
            Ok(claimed) => claimed,
            Err(no_claim) => return refuse(no_claim, side, name.0 as u8),
        };
        let generation = core.generation();
        let (Some(mut big), Piece::More(offset) | Piece::Whole(offset)) = (big, piece) else {
            core.delivered(name);
            if piece == Piece::Rejected(RejectCause::TooLarge) {
                // It is the first message of its case. The application never sees it; for the account that ends it.
                self.sides[usize::from(side)].edit().handed |= 1;
            }
            return Ok(Taken::Yes);
        };
        big.bytes.extend_from_slice(&body[offset..]);
        let content = match piece {
            Piece::Whole(_) if big.bytes.iter().skip(1).any(|byte| *byte != 0x5a) => {
                return broken(Law::InOrder, "a big message came mangled");
            }
            Piece::Whole(_) => Content::Whole { id: big.bytes[0], bytes: big.bytes.len() },
            _ => Content::Part(big),
        };
        let (first, repeat_below) = (claim.first, claim.repeat_below);
        Ok(Taken::Claimed(Box::new(Claimed { generation, lane, first, repeat_below, content })))
    }
}

fn refuse(no_claim: NoClaim, side: u8, conn: u8) -> Result<Taken, Broken> {
    match no_claim {
        NoClaim::Busy => Ok(Taken::Busy),
        NoClaim::Stale => Ok(Taken::Stale),
        NoClaim::Fault(fault) => at_fault(fault, side, conn),
    }
}

fn at_fault(fault: Fault, side: u8, conn: u8) -> Result<Taken, Broken> {
    broken(Law::NoFault, format!("side {side} on c{conn}: {fault}"))
}
