//! A flood of broadcasts to the same peers: each message is appended once, to a row that they share.
//!
//! Owns: the pace of the node's broadcasts, and the row that is being filled. Threads: callers of the broadcast verbs.
//! Locks: the node's lock around it, which comes before those of outboxes. Blocks on: nothing.
//! Upholds: each peer of the set is offered a message once: with the row, if it takes part in that, or by itself; a row is
//! for one set of peers and for the sessions there were when it began.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::pace::Pace;
use super::to::To;
use crate::error::SendErrorKind;
use crate::ident::PeerId;
use crate::registry::Established;
use crate::session::{Kick, ROW_BYTES, Row};

/// What the broadcasts of a node leave to the next one.
#[derive(Debug, Default)]
pub(super) struct Caster {
    pace: Pace,
    current: Option<Current>,
}

/// A broadcast of a flood: for whom, of which sessions, and how long it may wait from when.
pub(super) struct Flood<'a> {
    pub(super) to: &'a To,
    pub(super) sessions: &'a Arc<[Established]>,
    pub(super) company: Duration,
    pub(super) now: Instant,
}

/// The row that is being filled, and for whom.
#[derive(Debug)]
pub(super) struct Current {
    row: Arc<Row>,
    to: To,
    sessions: Arc<[Established]>,
    /// For each place in the row, whose it is among the sessions.
    places: Vec<usize>,
}

/// The outcome of a broadcast for each peer.
pub(super) type Outcomes = Vec<(PeerId, Result<(), SendErrorKind>)>;

impl Caster {
    /// How long the messages of a broadcast to so many peers may wait for company, which is now.
    pub(super) fn company(&mut self, now: Instant, peers: usize) -> Duration {
        self.pace.next(now, peers)
    }

    /// There is no flood now: gives back what is kept for one, to be dropped without the lock.
    pub(super) fn rest(&mut self) -> Option<Current> {
        self.current.take()
    }

    /// Appends a message to the row, or to a new one; returns the outcomes of the peers that take part in it, and the places
    /// among the sessions of those that are to be offered it by themselves. What is to be done for peers is added to `kicks`.
    /// `None` has done nothing: the message is not for a row.
    pub(super) fn append(
        &mut self,
        kind: u16,
        payload: &[u8],
        flood: &Flood<'_>,
        kicks: &mut Vec<Kick>,
    ) -> Option<(Outcomes, Vec<usize>)> {
        let Flood { to, sessions, now, .. } = *flood;
        let longest = sessions.first()?.link.longest_plain()?.min(ROW_BYTES / 4);
        if payload.len() > longest {
            return None;
        }
        let is_same = |current: &Current| Arc::ptr_eq(&current.sessions, sessions) && current.to == *to;
        if let Some(current) = self.current.as_ref().filter(|current| is_same(current))
            && let Some(appended) = current.append(kind, payload, now)
        {
            return Some(appended);
        }
        let current = Current::begin(flood, kicks);
        let appended = current.append(kind, payload, now);
        self.current = Some(current);
        appended
    }
}

impl Current {
    /// A new row, in which all take part that can.
    fn begin(flood: &Flood<'_>, kicks: &mut Vec<Kick>) -> Self {
        let Flood { to, sessions, company, now } = *flood;
        let named = |(at, session): (usize, &Established)| to.names_attached(session).then_some(at);
        let places: Vec<usize> = sessions.iter().enumerate().filter_map(named).collect();
        let row = Arc::new(Row::new(places.len(), company, now));
        for (place, at) in places.iter().copied().enumerate() {
            match sessions[at].link.outbox.join(&row, place) {
                Kick::No => {}
                kick => kicks.push(kick),
            }
        }
        Self { row, to: to.clone(), sessions: sessions.clone(), places }
    }

    fn append(&self, kind: u16, payload: &[u8], now: Instant) -> Option<(Outcomes, Vec<usize>)> {
        self.row.append(kind, payload, now, |members| {
            let (mut outcomes, mut others) = (Vec::with_capacity(members.len()), Vec::new());
            for (takes_part, at) in members.iter().zip(self.places.iter().copied()) {
                if *takes_part { outcomes.push((self.sessions[at].peer, Ok(()))) } else { others.push(at) }
            }
            (outcomes, others)
        })
    }
}
