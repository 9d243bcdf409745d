//! What an action does: everything but reading.
//!
//! Owns: nothing. Threads: one explorer. Locks: none. Blocks on: nothing.
//! Upholds: an action does what the threads of a node do between two points where another thread may come in between;
//! whatever can be delayed is an action of its own.

use std::sync::Arc;
use std::time::Instant;

use crate::error::{CloseReason, RejectCause};
use crate::link::explore::action::Action;
use crate::link::explore::law::{Broken, Law, broken};
use crate::link::explore::world::{
    Case, Claimed, Consume, Content, End, NOW, Packet, Wire, World, fresh_core, id_of, state_of,
};
use crate::link::{Chunk, Decision, LARGE, SEGMENT_BYTES, SIGN_OF_LIFE, Segment, Sign, Taken};
use crate::wire::{
    Decoder, FrameHeader, FrameType, Goodbye, HEADER, Heading, LANES, Lane, MAX_BODY, flags, put_alive, put_body,
};

impl World {
    /// Does it; false if it changed nothing.
    pub(super) fn apply(&mut self, case: &Case, action: Action) -> Result<bool, Broken> {
        match action {
            Action::Dial(side) => {
                self.sides[usize::from(side)].edit().dials -= 1;
                self.dial(case, side, false);
            }
            Action::DialClone => {
                let (Some(clone), Some(process)) = (case.clone, &mut self.clone) else { return Ok(false) };
                process.edit().dials -= 1;
                self.dial(case, clone.of, true);
            }
            Action::Silent(side) => self.judge(case, side, Sign::Nothing)?,
            Action::Unsure(side) => self.judge(case, side, Sign::Heard)?,
            Action::Accept(conn) => self.accept(conn),
            Action::Read { side, conn, all } => return self.read(case, side, conn, all),
            Action::Deliver { side, conn } => self.deliver(case, side, conn),
            Action::Take(side) => self.take(case, side)?,
            Action::Acks(side) => self.write_acks(side),
            Action::Chunk(side) => self.write_chunk(case, side),
            Action::Gone { side, conn, early } => self.over(case, side, conn, early)?,
            Action::Lose(conn) => self.lose(case, conn),
            Action::Restart(side) => self.restart(case, side),
            Action::GiveUp(side) => {
                let me = self.sides[usize::from(side)].edit();
                me.give_ups -= 1;
                me.core.give_up(state_of(usize::from(side), me.life) + 1 + u64::from(me.give_ups));
            }
            Action::Freeze(side) => {
                self.freezes -= 1;
                self.frozen = Some(side);
            }
            Action::Thaw => self.frozen = None,
        }
        Ok(true)
    }

    fn dial(&mut self, case: &Case, side: u8, cloned: bool) {
        self.connections += 1;
        let (conn, ends) = (self.connections, Default::default());
        let mut wire = Wire { conn, dialler: side, cloned, accepted: false, lost: false, ends };
        wire.ends[usize::from(side)].started = NOW;
        self.wires.push(wire);
        if !case.backlog && self.frozen.is_none() {
            self.accept(self.connections);
        }
    }

    fn accept(&mut self, conn: u8) {
        let lives = [0, 1].map(|side| self.process(side, conn).life);
        let Some(wire) = self.wires.iter_mut().find(|wire| wire.conn == conn) else { return };
        wire.accepted = true;
        wire.ends[usize::from(1 - wire.dialler)].started = NOW;
        for side in 0..2 {
            wire.ends[side].inbox.push_back(Packet::Proof(lives[1 - side]));
        }
    }

    fn lose(&mut self, case: &Case, conn: u8) {
        if self.frozen.is_none() {
            self.losses -= 1;
        }
        for wire in self.wires.iter_mut().filter(|wire| wire.conn == conn) {
            wire.lost = true;
            if !case.buffered {
                wire.ends.iter_mut().for_each(|end| end.inbox.clear());
            }
        }
    }

    fn restart(&mut self, case: &Case, side: u8) {
        let at = usize::from(side);
        let me = self.sides[at].edit();
        me.restarts -= 1;
        me.life += 1;
        me.core = fresh_core(case, at, me.life, me.core.mutation);
        me.accepted = case.ids(at, me.numbered).fold(0, |set, id| set | 1 << id);
        me.asleep = false;
        me.seen = 0;
        me.waiting.clear();
        self.wires.retain(|wire| wire.accepted);
        for wire in &mut self.wires {
            wire.lost = true;
            if !case.buffered {
                wire.ends[1 - at].inbox.clear();
            }
            wire.ends[at] = End::dead();
        }
    }

    /// A side notices the end of a connection. Unless `early`, its reader has met the end of the stream: what lay in
    /// between was lost.
    fn over(&mut self, case: &Case, side: u8, conn: u8, early: bool) -> Result<(), Broken> {
        let Some(wire) = self.wires.iter_mut().find(|wire| wire.conn == conn) else { return Ok(()) };
        let end = &mut wire.ends[usize::from(side)];
        end.gone = true;
        if !early {
            end.deaf = true;
            end.inbox.clear();
        }
        let decision = self.tell_gone(side, conn);
        self.carry_out(case, side, decision)
    }

    /// Tells the link of `side` that a connection is over.
    pub(super) fn tell_gone(&mut self, side: u8, conn: u8) -> Decision {
        let nonce = self.nonce(side);
        self.process(side, conn).core.gone(id_of(conn), nonce)
    }

    /// The deadline of a side's question has passed.
    fn judge(&mut self, case: &Case, side: u8, sign: Sign) -> Result<(), Broken> {
        let nonce = self.nonce(side);
        let core = &mut self.sides[usize::from(side)].edit().core;
        let question = core.questions;
        let decision = core.judge(question, sign, nonce, NOW + SIGN_OF_LIFE);
        self.carry_out(case, side, decision)
    }

    pub(super) fn nonce(&self, side: u8) -> [u8; 16] {
        [side * 16 + self.sides[usize::from(side)].life as u8; 16]
    }

    /// What the threads around a link do about its decision.
    pub(super) fn carry_out(&mut self, case: &Case, side: u8, decision: Decision) -> Result<(), Broken> {
        let me = usize::from(side);
        for (conn, reason) in decision.close {
            let Some(wire) = self.wires.iter_mut().find(|wire| id_of(wire.conn) == conn) else { continue };
            let end = &mut wire.ends[me];
            // The session ends, and says so to the link, which has nothing to say to that.
            (end.closing, end.gone) = (true, true);
            let goodbye =
                Goodbye { reason: reason.code(), retry_after_ms: 0, received: [0; LANES], text: String::new() };
            let mut bytes = Vec::new();
            if put_body(&mut bytes, FrameType::Goodbye, &goodbye).is_ok() {
                send(wire, 1 - me, &bytes);
            }
            if reason == CloseReason::IdentityClash {
                self.clashes += 1;
                if !wire.cloned {
                    return broken(Law::NoFalseAlarm, format!("side {side} refuses {conn}"));
                }
            }
            if case.one_stays {
                match reason {
                    CloseReason::Duplicate => self.duplicates += 1,
                    // Each side that had it attached says so.
                    _ => self.superseded = 1,
                }
            }
        }
        if let Some((holder, question)) = decision.ask {
            let mut bytes = Vec::new();
            put_alive(&mut bytes, false, flags::ASK, question);
            self.send_on(side, holder.0 as u8, &bytes);
        }
        if let Some((conn, attach)) = decision.say {
            let mut bytes = Vec::new();
            if put_body(&mut bytes, FrameType::Attach, &attach).is_ok() {
                self.send_on(side, conn.0 as u8, &bytes);
            }
        }
        if let Some(conn) = decision.attached {
            let process = self.process(side, conn.0 as u8);
            process.asleep = false;
            if process.core.attached() != Some(conn) {
                return broken(Law::Agreement, format!("side {side} says it attached {conn} and did not"));
            }
        }
        let peer = &self.sides[1 - me];
        if decision.restarted && peer.life == 1 && peer.give_ups == case.give_ups[1 - me] {
            return broken(Law::NoFault, format!("side {side} saw a restart that never was"));
        }
        Ok(())
    }

    /// Puts whole frames on the way.
    pub(super) fn send_on(&mut self, side: u8, conn: u8, bytes: &[u8]) {
        if let Some(at) = self.wire(conn) {
            send(&mut self.wires[at], 1 - usize::from(side), bytes);
        }
    }

    fn write_acks(&mut self, side: u8) {
        let core = &mut self.sides[usize::from(side)].edit().core;
        let Some(conn) = core.attached() else { return };
        let mut bytes = Vec::new();
        core.put_acks(conn, true, &mut bytes);
        self.send_on(side, conn.0 as u8, &bytes);
    }

    fn write_chunk(&mut self, case: &Case, side: u8) {
        let me = self.sides[usize::from(side)].edit();
        let Some(conn) = me.core.attached() else { return };
        // Worlds share what is kept: make its room for more a matter of the case.
        me.core.outgoing.iter_mut().for_each(|lane| lane.remake_tail(if case.room { LARGE } else { 0 }));
        let numbered = &mut me.numbered;
        let mut bytes = Vec::new();
        let chunk = me.core.next_chunk(conn, Instant::now(), &mut bytes, |lane| {
            let at = &mut numbered[lane.index()];
            let (load, id) = case.load(usize::from(side), lane, *at)?;
            *at += 1;
            let segment = encode(load.lane, id, load.messages, load.len);
            Some(Taken::plain(segment))
        });
        me.core.outgoing.iter_mut().for_each(|lane| lane.remake_tail(0));
        let Some((_, Chunk { body, start, end, .. })) = chunk else {
            me.asleep = true;
            return;
        };
        bytes.extend_from_slice(&body.bytes()[start..end]);
        self.send_on(side, conn.0 as u8, &bytes);
    }

    pub(super) fn has_to_write(&self, case: &Case, side: u8) -> bool {
        let me = &self.sides[usize::from(side)];
        case.ids(usize::from(side), me.numbered).next().is_some()
            || me.core.outgoing.iter().any(|lane| lane.has_unwritten())
    }

    /// The end of a delivery by a receiver thread.
    fn deliver(&mut self, case: &Case, side: u8, conn: u8) {
        let Some(at) = self.wire(conn) else { return };
        let Some(claimed) = self.wires[at].ends[usize::from(side)].claimed.take() else { return };
        let mut claimed = *claimed;
        if let Content::Part(big) = claimed.content {
            self.sides[usize::from(side)].edit().core.put_big(claimed.generation, claimed.lane, big);
        } else if case.consume == Consume::Queue {
            self.sides[usize::from(side)].edit().waiting.push_back(claimed);
        } else {
            let messages = match &claimed.content {
                Content::Run(run) => run.len(),
                _ => 1,
            };
            (0..messages).for_each(|_| self.hand_over(case, side, &mut claimed));
        }
        self.sides[usize::from(side)].edit().core.delivered(id_of(conn));
    }

    /// The application takes the oldest message that waits.
    fn take(&mut self, case: &Case, side: u8) -> Result<(), Broken> {
        let Some(mut claimed) = self.sides[usize::from(side)].edit().waiting.pop_front() else { return Ok(()) };
        let mut one = claimed.clone();
        if let Content::Run(run) = &mut one.content {
            run.truncate(1);
        }
        self.see(case, usize::from(side), &one)?;
        self.hand_over(case, side, &mut claimed);
        if matches!(&claimed.content, Content::Run(run) if !run.is_empty()) {
            self.sides[usize::from(side)].edit().waiting.push_front(claimed);
        }
        Ok(())
    }

    /// The application is through with the first message of `claimed`.
    fn hand_over(&mut self, case: &Case, side: u8, claimed: &mut Claimed) {
        let me = self.sides[usize::from(side)].edit();
        let (id, credit) = match &mut claimed.content {
            Content::Run(run) => match run.pop_front() {
                Some(first) => first,
                None => return,
            },
            Content::Whole { id, bytes } => (*id, me.core.big_credit(claimed.lane, *bytes)),
            Content::Part(_) => return,
        };
        let number = claimed.first;
        claimed.first += 1;
        me.handed |= 1 << id;
        let rejected = (case.rejects == Some(id)).then_some((number, RejectCause::HandlerPanicked));
        me.core.finish(claimed.generation, claimed.lane, number + 1, credit, rejected);
    }
}

/// Puts whole frames on the way to the end `to`, if anything gets there.
fn send(wire: &mut Wire, to: usize, bytes: &[u8]) {
    let end = &mut wire.ends[to];
    if wire.lost || end.deaf || end.gone {
        return;
    }
    let mut decoder = Decoder::new(MAX_BODY);
    decoder.feed(bytes);
    let mut left = decoder.pending().len();
    while let Ok(Some(frame)) = decoder.next_frame() {
        left -= HEADER + frame.body.len();
        let bytes = [&frame.header.to_bytes()[..], frame.body].concat();
        end.inbox.push_back(Packet::Frame(Arc::from(bytes)));
    }
    assert_eq!(left, 0, "a writer writes whole frames");
}

/// Messages `id`, `id + 1`, ... as their sender queues them: each payload is the id, then filling.
fn encode(lane: Lane, id: u8, messages: u8, len: usize) -> Segment {
    let payload = |id: u8| {
        let mut payload = vec![0x5a; len];
        payload[0] = id;
        payload
    };
    if len > LARGE {
        assert_eq!(messages, 1, "a large message is alone in its segment");
        return Segment::large(lane, Heading::of_kind(5), payload(id));
    }
    let mut bytes = Vec::with_capacity(SEGMENT_BYTES.min(usize::from(messages) * (HEADER + len)));
    for id in id..id + messages {
        let flags = flags::NUMBERED | flags::WHOLE;
        bytes.extend_from_slice(&FrameHeader::on_lane(FrameType::Data, lane, flags, 5, len as u32).to_bytes());
        bytes.extend_from_slice(&payload(id));
    }
    Segment::plain(bytes, messages.into())
}
