//! A flood of broadcasts to the same peers: each message is appended once, to a row that they share.
//!
//! Owns: the pace of the node's broadcasts, whom the last one was for, and the row that is being filled. Threads: callers of the broadcast verbs.
//! Locks: the node's lock around it; under it the outbox lock of each peer in turn, as a row begins, and that of the row.
//! Blocks on: nothing.
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

/// Whom the last broadcast of a flood was for, and the row that is being filled for them.
#[derive(Debug)]
pub(super) struct Current {
    to: To,
    sessions: Arc<[Established]>,
    /// From the second one on.
    row: Option<Filling>,
}

/// The row that is being filled.
#[derive(Debug)]
struct Filling {
    row: Arc<Row>,
    /// For each place in the row, whose it is among the sessions.
    places: Vec<usize>,
}

/// What is to be done without the node's lock.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// Of peers.
    pub(super) kicks: Vec<Kick>,
    /// What is over, to be dropped: a link may go with it.
    pub(super) over: Option<Current>,
}

/// The outcome of a broadcast for each peer.
pub(super) type Outcomes = Vec<(PeerId, Result<(), SendErrorKind>)>;

impl Caster {
    /// How long the messages of a broadcast to these peers of the sessions, which is now, may wait for company.
    pub(super) fn company(&mut self, now: Instant, to: &To, sessions: &[Established]) -> Duration {
        self.pace.next(now, to.most_of(sessions.len()))
    }

    /// There is no flood now: gives back what is kept for one.
    pub(super) fn rest(&mut self, left: &mut Left) {
        left.over = self.current.take();
    }

    /// Appends a message to the row, or to a new one; returns the outcomes of the peers that take part in it, and the places
    /// among the sessions of those that are to be offered it by themselves. `None` has done nothing: the message is not for
    /// a row. A row costs a lock of each peer, as a message by itself does: it is for those who are named twice running.
    pub(super) fn append(
        &mut self,
        kind: u16,
        payload: &[u8],
        flood: &Flood<'_>,
        left: &mut Left,
    ) -> Option<(Outcomes, Vec<usize>)> {
        let Flood { to, sessions, now, .. } = *flood;
        let longest = sessions.first()?.link.longest_plain()?.min(ROW_BYTES / 4);
        if payload.len() > longest {
            return None;
        }
        let same =
            self.current.as_ref().filter(|current| Arc::ptr_eq(&current.sessions, sessions) && current.to == *to);
        let row = same.and_then(|same| same.row.as_ref());
        if let Some(appended) = row.and_then(|row| row.append(kind, payload, sessions, now)) {
            return Some(appended);
        }
        let row = same.map(|_| Filling::begin(flood, &mut left.kicks));
        let appended = row.as_ref().and_then(|row| row.append(kind, payload, sessions, now));
        left.over = self.current.replace(Current { to: to.clone(), sessions: sessions.clone(), row });
        // Those who take part in it share what it has.
        left.over.iter().filter_map(|over| over.row.as_ref()).for_each(|over| over.row.end());
        appended
    }
}

impl Filling {
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
        Self { row, places }
    }

    fn append(
        &self,
        kind: u16,
        payload: &[u8],
        sessions: &[Established],
        now: Instant,
    ) -> Option<(Outcomes, Vec<usize>)> {
        self.row.append(kind, payload, now, |members| {
            let (mut outcomes, mut others) = (Vec::with_capacity(members.len()), Vec::new());
            for (takes_part, at) in members.iter().zip(self.places.iter().copied()) {
                if *takes_part { outcomes.push((sessions[at].peer, Ok(()))) } else { others.push(at) }
            }
            (outcomes, others)
        })
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::{Config, Node};

    const COMPANY: Duration = Duration::from_millis(5);

    /// A node, the sessions it has, and their other ends.
    #[expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]
    fn hub() -> (Node, Arc<[Established]>, Vec<Node>) {
        let start = || Node::builder().config(Config::loopback().plain()).start().unwrap();
        let (hub, peers) = (start(), (0..4).map(|_| start()).collect::<Vec<_>>());
        for peer in &peers {
            hub.add_peer(peer.id(), peer.local_addr()).unwrap();
            hub.wait_connected(peer.id(), Duration::from_secs(20)).unwrap();
        }
        let sessions = hub.engine.shared.registry.established();
        (hub, sessions, peers)
    }

    #[test]
    fn a_row_is_for_those_who_are_named_twice_running_and_ends_for_others() {
        let (_hub, sessions, peers) = hub();
        let mut caster = Caster::default();
        let mut append = |to: &To, left: &mut Left| {
            let flood = Flood { to, sessions: &sessions, company: COMPANY, now: Instant::now() };
            caster.append(0, b"message", &flood, left).map(|(outcomes, others)| outcomes.len() + others.len())
        };
        let mut left = Left::default();
        // As those who pass on what each of them says.
        for peer in peers.iter().cycle().take(40) {
            assert_eq!(append(&To::all().except(peer.id()), &mut left), None, "each to others than the one before");
            assert!(left.kicks.is_empty() && left.over.take().is_none_or(|over| over.row.is_none()));
        }
        let to = To::all();
        assert_eq!((append(&to, &mut left), append(&to, &mut left), append(&to, &mut left)), (None, Some(4), Some(4)));
        assert_eq!(append(&To::outbound(), &mut left), None);
        let row = left.over.and_then(|over| over.row).unwrap();
        assert!(row.row.append(0, b"more", Instant::now(), |_| ()).is_none(), "who takes part shares what it has");
    }

    #[test]
    fn a_flood_is_judged_by_how_many_may_be_named() {
        let (_hub, sessions, peers) = hub();
        let floods = |to: To, micros| {
            let (mut caster, mut now) = (Caster::default(), Instant::now());
            let mut company = || {
                now += Duration::from_micros(micros);
                caster.company(now, &to, &sessions)
            };
            !(0..100).map(|_| company()).last().unwrap_or_default().is_zero()
        };
        let one = || To::all().among([peers[0].id()]);
        assert!(floods(To::all(), 7) && !floods(To::all(), 9), "2 us for each of four");
        assert!(floods(one(), 1) && !floods(one(), 7));
    }
}
