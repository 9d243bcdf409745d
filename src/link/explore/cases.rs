//! The small cases: which messages, which faults, how many of each.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: each fault of the design's list has a case with three messages; each case is small enough to be exhausted.

use crate::link::explore::world::{Case, Clone, Consume, Load};
use crate::wire::{Lane, MAX_PIECE};

const fn one(from: usize, lane: Lane) -> Load {
    Load { from, lane, messages: 1, len: 4 }
}

/// Wire bytes of a short message: a lane with such a window has one on its way.
const ONE: Option<usize> = Some(12);
const TWO: Option<usize> = Some(24);
/// Room for the SKIP of what two restarts left unanswered, and a message.
const SKIPPING: Option<usize> = Some(28);

/// Messages of side 1, which does not decide.
const BACK: &[Load] = &[one(1, Lane::Normal), one(1, Lane::Normal), one(1, Lane::Normal)];
const BOTH: &[Load] = &[one(0, Lane::Normal), one(1, Lane::Normal), one(0, Lane::Normal)];
const BACK_BOTH: &[Load] = &[one(1, Lane::Normal), one(0, Lane::Normal), one(1, Lane::Normal)];
const LANES: &[Load] = &[one(0, Lane::Normal), one(0, Lane::Urgent), one(0, Lane::Normal)];
const LANES_BOTH: &[Load] = &[one(1, Lane::Normal), one(1, Lane::Reply), one(0, Lane::Bulk)];
/// Two messages in one segment, and a third.
const SEGMENT: &[Load] = &[Load { from: 1, lane: Lane::Normal, messages: 2, len: 4 }, one(1, Lane::Normal)];
/// Two pieces, and a short message behind them.
const PIECES: &[Load] = &[Load { from: 0, lane: Lane::Normal, messages: 1, len: MAX_PIECE + 1 }, one(0, Lane::Normal)];
/// The same, behind the short one.
const PIECES_LAST: &[Load] =
    &[one(0, Lane::Normal), Load { from: 0, lane: Lane::Normal, messages: 1, len: MAX_PIECE + 1 }];
const PIECES_BACK: &[Load] =
    &[Load { from: 1, lane: Lane::Normal, messages: 1, len: MAX_PIECE + 1 }, one(1, Lane::Normal)];
const SINGLE: &[Load] = &[one(0, Lane::Normal)];
const SINGLE_BACK: &[Load] = &[one(1, Lane::Normal)];

const PLAIN: Case = Case::PLAIN;
/// No connection yet, both sides dial, one connection has to stay.
const DIALS: Case = Case { dials: [1, 1], connected: false, one_stays: true, ..PLAIN };
/// One connection fails; either side, or both, dial again.
const LOSS: Case = Case { losses: 1, dials: [2, 1], ..PLAIN };
/// The same, and only the side that does not decide dials again.
const LOSS_1: Case = Case { losses: 1, dials: [1, 1], ..PLAIN };
/// Three connections fail, and what is on its way with them.
const LOSSES: Case = Case { losses: 3, dials: [1, 3], buffered: false, ..PLAIN };
const FREEZE: Case = Case { freezes: 1, dials: [1, 1], ..PLAIN };
const RESTART: Case = Case { dials: [1, 1], ..PLAIN };
/// A second process has the identity of a side that is connected; it is older or newer than that.
const CLONE: Case = Case { dials: [1, 1], loads: BOTH, ..PLAIN };

const fn cloned(of: u8, life: u64, dials: u8) -> Option<Clone> {
    Some(Clone { of, life, dials })
}

const GIVE_UP: Case = Case { losses: 1, dials: [1, 2], window: ONE, ..PLAIN };

/// Explored whenever the tests run.
pub(super) const CASES: &[Case] = &[
    Case { name: "a newer clone of the follower", clone: cloned(1, 3, 2), ..CLONE },
    Case { name: "an older clone of the follower", clone: cloned(1, 1, 2), loads: SINGLE_BACK, ..CLONE },
    Case { name: "a newer clone of the decider", clone: cloned(0, 3, 2), ..CLONE },
    Case { name: "an older clone of the decider", clone: cloned(0, 1, 2), loads: SINGLE_BACK, ..CLONE },
    Case { name: "no fault", fine: true, ..PLAIN },
    Case { name: "no fault, both ways, from a queue", fine: true, loads: BOTH, consume: Consume::Queue, ..PLAIN },
    Case { name: "two dials at once", fine: true, ..DIALS },
    Case { name: "two dials at once, both ways", loads: BACK_BOTH, ..DIALS },
    Case { name: "two dials, one waits in the backlog", backlog: true, window: ONE, ..DIALS },
    Case { name: "a loss, two dials", window: ONE, ..LOSS },
    Case { name: "a loss", fine: true, ..LOSS_1 },
    Case { name: "a loss, from the other side", room: false, loads: BACK, ..LOSS_1 },
    Case { name: "a loss, both ways", loads: BOTH, ..LOSS_1 },
    Case { name: "a loss, from a queue", consume: Consume::Queue, ..LOSS_1 },
    Case { name: "a loss, two lanes", loads: LANES, ..LOSS_1 },
    Case { name: "a loss, two messages in a segment", loads: SEGMENT, fine: true, ..LOSS_1 },
    Case { name: "a loss, a message in pieces", loads: PIECES, fine: true, ..LOSS },
    Case { name: "a loss, a message too large", loads: PIECES, max_message: MAX_PIECE, rejects: Some(0), ..LOSS },
    Case { name: "a loss, a message that is rejected", rejects: Some(1), ..LOSS_1 },
    Case { name: "two losses, a window of two", losses: 2, dials: [1, 2], window: TWO, ..PLAIN },
    Case { name: "three losses", ..LOSSES },
    Case { name: "three losses, from the other side", loads: BACK, ..LOSSES },
    Case { name: "three losses, one message, late readers", loads: SINGLE_BACK, buffered: true, ..LOSSES },
    Case { name: "a freeze", ..FREEZE },
    Case { name: "a freeze, both ways, from a queue", loads: BOTH, consume: Consume::Queue, ..FREEZE },
    Case { name: "a restart of the receiver", restarts: [0, 1], ..RESTART },
    Case { name: "a restart of the sender", restarts: [1, 0], ..RESTART },
    Case { name: "a restart of the receiver that decides", restarts: [1, 0], loads: BACK, ..RESTART },
    Case { name: "a restart of the sender that follows", restarts: [0, 1], loads: BACK, ..RESTART },
    Case { name: "a restart, a message in pieces", restarts: [0, 1], loads: PIECES, ..RESTART },
    Case { name: "a restart, a message that is rejected", restarts: [0, 1], rejects: Some(0), window: ONE, ..RESTART },
    Case { name: "a restart and a loss", restarts: [1, 0], losses: 1, dials: [2, 1], loads: SINGLE_BACK, ..PLAIN },
    Case { name: "a restart and a loss", restarts: [0, 1], losses: 1, dials: [2, 1], loads: SINGLE, ..PLAIN },
    Case { name: "both restart", restarts: [1, 1], loads: BOTH, window: ONE, ..RESTART },
    Case { name: "two restarts of the receiver", restarts: [0, 2], buffered: false, window: SKIPPING, ..RESTART },
    Case { name: "two restarts, a message in pieces", restarts: [0, 2], loads: PIECES_LAST, ..RESTART },
    Case { name: "the resume window ends", give_ups: [1, 0], loads: BOTH, ..GIVE_UP },
    Case { name: "the resume window ends at the other side", give_ups: [0, 1], loads: BOTH, ..GIVE_UP },
];

/// Explored on demand: hours of one core at most, little memory but for the set of states.
pub(super) const DEEP: &[Case] = &[
    Case { name: "a newer clone of the follower", clone: cloned(1, 3, 3), fine: true, ..CLONE },
    Case { name: "a newer clone of the decider, backlog", clone: cloned(0, 3, 3), backlog: true, ..CLONE },
    Case { name: "two dials, one waits in the backlog, both ways", backlog: true, loads: BOTH, ..DIALS },
    Case { name: "a loss, two dials", fine: true, ..LOSS },
    Case { name: "a loss, two dials, backlog, both ways", backlog: true, loads: BOTH, ..LOSS },
    Case { name: "a loss, two dials, from a queue", consume: Consume::Queue, ..LOSS },
    Case { name: "two losses, two dials", losses: 2, dials: [2, 2], window: TWO, ..PLAIN },
    Case { name: "three losses, two dials", dials: [2, 2], window: ONE, ..LOSSES },
    Case { name: "three losses, both ways", loads: BOTH, ..LOSSES },
    Case { name: "three losses, late readers", buffered: true, window: ONE, ..LOSSES },
    Case { name: "three losses, late readers, two lanes", buffered: true, loads: LANES_BOTH, window: ONE, ..LOSSES },
    Case { name: "a freeze, two dials", dials: [2, 1], loads: BOTH, window: ONE, ..FREEZE },
    Case { name: "a freeze and a loss", losses: 1, dials: [1, 2], window: TWO, loads: BOTH, ..FREEZE },
    Case { name: "a restart of the receiver, two dials", restarts: [0, 1], dials: [2, 1], ..PLAIN },
    Case { name: "a restart of the receiver, two dials", restarts: [1, 0], dials: [2, 1], loads: BACK, ..PLAIN },
    Case { name: "a restart and a loss", restarts: [0, 1], losses: 1, dials: [1, 2], window: ONE, ..PLAIN },
    Case {
        name: "a restart and a loss",
        restarts: [1, 0],
        losses: 1,
        dials: [1, 2],
        window: ONE,
        loads: BACK,
        ..PLAIN
    },
    Case { name: "a restart and a loss, pieces", restarts: [0, 1], losses: 1, dials: [3, 1], loads: PIECES, ..PLAIN },
    Case { name: "a restart and a loss, pieces", restarts: [1, 0], dials: [3, 1], loads: PIECES_BACK, ..LOSS },
    Case { name: "both restart", restarts: [1, 1], dials: [2, 1], loads: BOTH, window: TWO, ..PLAIN },
    Case { name: "three restarts", restarts: [3, 0], dials: [2, 2], loads: BACK, window: SKIPPING, ..PLAIN },
    Case { name: "the resume window ends twice", losses: 2, give_ups: [1, 1], loads: BOTH, ..GIVE_UP },
    Case { name: "the resume window ends, a restart", give_ups: [1, 0], restarts: [0, 1], loads: BOTH, ..GIVE_UP },
];
