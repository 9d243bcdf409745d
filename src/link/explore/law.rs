//! What must hold in every state, and at rest.
//!
//! Owns: nothing. Threads: one explorer. Locks: none. Blocks on: nothing.
//! Upholds: each promise of the link that a small case can show has its own name here.

use std::fmt;

use crate::link::explore::world::{Case, Claimed, Content, World};

/// A promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Law {
    NoFault,
    StaleWasTold,
    OneDelivers,
    OnlyOnce,
    InOrder,
    RepeatsAnnounced,
    OnlyRepeatsAnnounced,
    AckedWasHandedOver,
    NothingUnknown,
    OneOutcome,
    EndsOnce,
    Agreement,
    OneStays,
    FirstStays,
    NoFalseAlarm,
    ComesToRest,
    Complete,
}

impl fmt::Display for Law {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoFault => "a correct peer is never at fault",
            Self::StaleWasTold => "a session finds itself stale only after the link gave its connection up",
            Self::OneDelivers => "one session at a time delivers",
            Self::OnlyOnce => "a message is delivered at most once to one life of the receiver",
            Self::InOrder => "messages of a lane are delivered in order",
            Self::RepeatsAnnounced => "a delivery again, after a restart, is announced",
            Self::OnlyRepeatsAnnounced => "nothing is announced as a repeat to a link that never began anew",
            Self::AckedWasHandedOver => "what is acknowledged was handed over",
            Self::NothingUnknown => "nothing ends unknown before it is given up or the peer restarted twice",
            Self::OneOutcome => "no message has two outcomes",
            Self::EndsOnce => "what was numbered is kept, or its transfer has ended once, by every count",
            Self::Agreement => "at rest both sides are attached to the same connection, or both to none",
            Self::OneStays => "of two connections at once one stays, the other is closed as a duplicate",
            Self::FirstStays => "a process that is attached and lives stays, and another one of its name is refused",
            Self::NoFalseAlarm => "nobody is told of a second process of a name where there is none",
            Self::ComesToRest => "without further faults the link comes to rest",
            Self::Complete => "without further faults everything is delivered and acknowledged",
        })
    }
}

/// A promise that was not kept, and how.
#[derive(Debug, Clone)]
pub(super) struct Broken {
    pub(super) law: Law,
    pub(super) detail: String,
}

pub(super) fn broken<T>(law: Law, detail: impl fmt::Display) -> Result<T, Broken> {
    Err(Broken { law, detail: detail.to_string() })
}

impl World {
    /// The application of `side` begins to see the first message of `claimed`.
    pub(super) fn see(&mut self, case: &Case, side: usize, claimed: &Claimed) -> Result<(), Broken> {
        let (ids, last): (Vec<u8>, _) = match &claimed.content {
            Content::Run(run) => (run.iter().map(|(id, _)| *id).collect(), claimed.first),
            Content::Whole { id, .. } => (vec![*id], claimed.first),
            Content::Part(_) => return Ok(()),
        };
        let me = self.sides[side].edit();
        for (number, id) in (last..).zip(ids) {
            let (from, lane) = case.origin(id);
            if from == side || lane != claimed.lane {
                return broken(Law::InOrder, format!("message {id} on {:?}", claimed.lane));
            }
            if me.seen & 1 << id != 0 {
                return broken(Law::OnlyOnce, format!("message {id} at side {side}"));
            }
            let later = case.ids(from, [0; 4]).filter(|other| case.origin(*other).1 == lane && *other > id);
            if let Some(other) = later.into_iter().find(|other| me.seen & 1 << other != 0) {
                return broken(Law::InOrder, format!("message {id} after {other} at side {side}"));
            }
            if me.seen_ever & 1 << id != 0 && number >= claimed.repeat_below {
                return broken(Law::RepeatsAnnounced, format!("message {id} at side {side}"));
            }
            if number < claimed.repeat_below && me.life == 1 && me.give_ups == case.give_ups[side] {
                return broken(Law::OnlyRepeatsAnnounced, format!("message {id} at side {side}"));
            }
            me.seen |= 1 << id;
            me.seen_ever |= 1 << id;
        }
        Ok(())
    }

    /// What must hold in every state.
    pub(super) fn check(&self, case: &Case) -> Result<(), Broken> {
        if let (Some(clone), Some(process)) = (case.clone, &self.clone) {
            let attached = self.sides[usize::from(1 - clone.of)].core.attached();
            if process.core.attached().is_some() || attached.is_none_or(|conn| conn.0 != 1) {
                return broken(Law::FirstStays, format!("{attached:?}, and the clone {:?}", process.core.attached()));
            }
        }
        for (me, side) in self.sides.iter().enumerate() {
            if self.wires.iter().filter(|wire| wire.ends[me].claimed.is_some()).count() > 1 {
                return broken(Law::OneDelivers, format!("two sessions of side {me} deliver"));
            }
            let counts = side.core.counts();
            let other = &self.sides[1 - me];
            let mine = |set: u8| case.ids(me, [0; 4]).filter(|id| set & 1 << id != 0).count() as u64;
            if counts.acked + counts.rejected > mine(other.handed) {
                return broken(Law::AckedWasHandedOver, format!("side {me}: {counts:?}"));
            }
            let gave_up = side.give_ups < case.give_ups[me];
            if counts.unknown > 0 && !gave_up && case.restarts[1 - me] - other.restarts < 2 {
                return broken(Law::NothingUnknown, format!("side {me}: {counts:?}"));
            }
            if counts.acked + counts.rejected + counts.unknown > mine(side.accepted) {
                return broken(Law::OneOutcome, format!("side {me}: {counts:?}"));
            }
            let waits = case.ids(me, side.numbered).fold(0, |set, id| set | 1 << id);
            let numbered = case.ids(me, [0; 4]).filter(|id| (side.accepted & !waits) & 1 << id != 0);
            let (numbered, bytes) = numbered.fold((0, 0), |(count, sum), id| (count + 1, sum + case.len(id) as u64));
            let (tally, kept) = (side.core.tally(), side.core.kept_messages());
            let [ok, failed] = [&tally.succeeded, &tally.failed].map(|tally| tally.total());
            let adds_up = ok.messages == counts.acked
                && failed.messages == counts.rejected + counts.unknown + counts.unwritten
                && numbered == kept + ok.messages + failed.messages
                && (kept > 0 || ok.bytes + failed.bytes == bytes);
            if !adds_up {
                let detail =
                    format!("side {me}: {numbered} of {bytes} bytes numbered, {kept} kept, {tally:?}, {counts:?}");
                return broken(Law::EndsOnce, detail);
            }
        }
        Ok(())
    }

    /// What must hold when nothing happens any more, unless somebody dials or a fault strikes.
    pub(super) fn check_rest(&self, case: &Case) -> Result<(), Broken> {
        let [a, b] = [&self.sides[0].core, &self.sides[1].core].map(|core| core.attached());
        if a != b || self.wires.len() != usize::from(a.is_some()) {
            return broken(Law::Agreement, format!("{a:?}, {b:?}, and {} connections", self.wires.len()));
        }
        if let (Some(clone), Some(process)) = (case.clone, &self.clone)
            && self.clashes != clone.dials - process.dials
        {
            return broken(Law::FirstStays, format!("{} refused of {} dials", self.clashes, clone.dials));
        }
        if case.one_stays && self.connections == 2 {
            let one_ended = match self.superseded {
                0 => self.duplicates == 1,
                // Only a connection that waited in the backlog until the other one was attached comes later than it.
                ended => case.backlog && ended == 1 && self.duplicates == 0,
            };
            if a.is_none() || self.wires.len() != 1 || !one_ended {
                let Self { duplicates, superseded, .. } = self;
                return broken(Law::OneStays, format!("{a:?}; {duplicates} duplicates, {superseded} superseded"));
            }
        }
        Ok(())
    }

    /// What must hold at rest after everything got its chance.
    pub(super) fn check_complete(&self, case: &Case) -> Result<(), Broken> {
        self.check_rest(case)?;
        for (me, side) in self.sides.iter().enumerate() {
            let counts = side.core.counts();
            let accepted = u64::from(side.accepted.count_ones());
            let refused = case.rejects.filter(|id| side.accepted & 1 << id != 0).map_or(0, |_| 1);
            let may_lose =
                side.give_ups < case.give_ups[me] || case.restarts[1 - me] - self.sides[1 - me].restarts >= 2;
            let done = side.core.attached().is_some()
                && side.core.kept_bytes() == 0
                && side.core.unacked_bytes() == 0
                && case.ids(me, side.numbered).next().is_none()
                && counts.acked + counts.rejected + counts.unknown == accepted
                && (may_lose || counts.rejected == refused)
                && (may_lose || side.accepted & !self.sides[1 - me].handed == 0);
            if !done {
                let handed = self.sides[1 - me].handed;
                let kept = side.core.kept_bytes();
                return broken(
                    Law::Complete,
                    format!(
                        "side {me} attached to {:?}: {kept} bytes kept, {counts:?} of {accepted}, handed over {handed:b}",
                        side.core.attached()
                    ),
                );
            }
        }
        Ok(())
    }
}
