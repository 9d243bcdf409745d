//! What may happen next, in any state.
//!
//! Owns: nothing. Threads: one explorer. Locks: none. Blocks on: nothing.
//! Upholds: whatever can be delayed is an action of its own; what must happen sooner or later is told from faults.

use crate::link::AckDue;
use crate::link::explore::world::{Case, End, Packet, Wire, World, id_of};
use crate::wire::{FrameHeader, FrameType};

/// Connections are named by their number, sides by 0 (the decider) and 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// A side opens a connection.
    Dial(u8),
    /// The other process of a side's name opens a connection.
    DialClone,
    /// The other side's listener takes it; the handshake happens.
    Accept(u8),
    /// A reader takes the next frame, or with `all` as many whole messages as lie there.
    Read { side: u8, conn: u8, all: bool },
    /// A reader delivers what it claimed: its handler returns, or the application's queue has it.
    Deliver { side: u8, conn: u8 },
    /// The application takes a message from its queue.
    Take(u8),
    /// A writer says what acknowledgements are due.
    Acks(u8),
    /// A writer writes the next chunk.
    Chunk(u8),
    /// A side notices that a connection is over; `early` while its reader still has something.
    Gone { side: u8, conn: u8, early: bool },
    /// A connection fails; neither side knows yet.
    Lose(u8),
    /// A process ends and starts again.
    Restart(u8),
    /// A side has waited for the other long enough.
    GiveUp(u8),
    /// A side has waited for a sign of life long enough, of a session that cannot give one ...
    Silent(u8),
    /// ... or has heard something that may be old.
    Unsure(u8),
    /// A process stands still.
    Freeze(u8),
    /// It goes on.
    Thaw,
}

impl Action {
    /// Whether it happens by itself sooner or later.
    pub(super) fn is_fair(self) -> bool {
        !matches!(
            self,
            Self::Dial(_)
                | Self::DialClone
                | Self::Lose(_)
                | Self::Restart(_)
                | Self::GiveUp(_)
                | Self::Unsure(_)
                | Self::Freeze(_)
        )
    }
}

impl End {
    /// Whether a reader may claim more than one message at once.
    fn has_run(&self, case: &Case) -> bool {
        let types = self.inbox.iter().map_while(|packet| match packet {
            Packet::Frame(bytes) => FrameHeader::from_bytes(*bytes.first_chunk()?).frame_type(),
            Packet::Proof(_) => None,
        });
        let announced = |frame: &FrameType| !case.fine && *frame == FrameType::Segment;
        types.skip_while(announced).take(2).filter(|frame| *frame == FrameType::Data).count() == 2
    }
}

impl World {
    /// Everything that may happen now; some of it may turn out to change nothing.
    pub(super) fn actions(&self, case: &Case, into: &mut Vec<Action>) {
        into.clear();
        for side in (0..2u8).filter(|side| self.awake(*side)) {
            let me = &self.sides[usize::from(side)];
            let dialling = |wire: &Wire| wire.dialler == side && !wire.cloned && !wire.ends[usize::from(side)].gone;
            if me.dials > 0 && me.core.attached().is_none() && !self.wires.iter().any(dialling) {
                into.push(Action::Dial(side));
            }
            if !me.waiting.is_empty() {
                into.push(Action::Take(side));
            }
            if me.core.attached().is_some() {
                if me.core.ack_due() != AckDue::No {
                    into.push(Action::Acks(side));
                }
                if !me.asleep && self.has_to_write(case, side) {
                    into.push(Action::Chunk(side));
                }
            }
            if me.restarts > 0 {
                into.push(Action::Restart(side));
            }
            if me.give_ups > 0 && me.core.attached().is_none() {
                into.push(Action::GiveUp(side));
            }
            if self.freezes > 0 && self.frozen.is_none() {
                into.push(Action::Freeze(side));
            }
            if me.core.doubt.is_some() {
                if self.is_mute(side) {
                    into.push(Action::Silent(side));
                }
                if case.clone.is_none() {
                    into.push(Action::Unsure(side));
                }
            }
        }
        if self.clone.as_ref().is_some_and(|clone| clone.dials > 0) && !self.wires.iter().any(|wire| wire.cloned) {
            into.push(Action::DialClone);
        }
        for wire in &self.wires {
            self.wire_actions(case, wire, into);
        }
        if self.frozen.is_some() {
            into.push(Action::Thaw);
        }
    }

    /// Whether the session of `side` gets no answer, because nobody is there to give one.
    fn is_mute(&self, side: u8) -> bool {
        let Some(conn) = self.sides[usize::from(side)].core.attached() else { return true };
        let holder = self.wires.iter().find(|wire| id_of(wire.conn) == conn);
        holder.is_none_or(|wire| {
            let far = &wire.ends[usize::from(1 - side)];
            wire.lost || far.gone || far.closing || self.frozen == Some(1 - side)
        })
    }

    fn wire_actions(&self, case: &Case, wire: &Wire, into: &mut Vec<Action>) {
        let conn = wire.conn;
        if !wire.accepted {
            if self.frozen.is_none() {
                into.push(Action::Accept(conn));
            }
            return;
        }
        for side in (0..2u8).filter(|side| self.awake(*side)) {
            let [end, far] = [side, 1 - side].map(|side| &wire.ends[usize::from(side)]);
            if end.claimed.is_some() {
                into.push(Action::Deliver { side, conn });
            } else if !end.deaf && !end.inbox.is_empty() {
                into.push(Action::Read { side, conn, all: false });
                if end.has_run(case) {
                    into.push(Action::Read { side, conn, all: true });
                }
            }
            if !end.gone && (wire.lost || far.gone || far.closing) {
                if end.claimed.is_none() {
                    into.push(Action::Gone { side, conn, early: false });
                }
                if end.claimed.is_some() || !end.inbox.is_empty() {
                    into.push(Action::Gone { side, conn, early: true });
                }
            }
        }
        // Whoever waits for a frozen peer gives the connection up for idle.
        if !wire.lost && (self.losses > 0 || self.frozen.is_some()) {
            into.push(Action::Lose(conn));
        }
    }
}
