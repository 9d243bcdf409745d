//! Which connections this node has to open: the peers to keep, the dials somebody asked for, and what comes next. Pure:
//! time and randomness are arguments, what is to be done is returned.
//!
//! Owns: which peers are kept, where they may be, when each is tried next; every round of attempts and every dial under
//! way; which peers have sessions. Threads: `supervisor` only. Locks: none. Blocks on: nothing.
//! Upholds: a peer is dialled only while it has no session, or one at an address that the map has taken away; a kept
//! peer without one has a next attempt; a dial has one
//! outcome, and a round one end; never more than `limit` dials and sessions of ours at once, and what waits for room
//! waits in order and has not failed; after the stop nothing begins.
//!
//! ```text
//!            due, room                   a name: Resolve
//!  Waiting -----------> a round: addresses ------------> the addresses it has -> Dial -> Started: Connected
//!     ^                     ^____________________________________________________| failed: the next address
//!     |__________ none is left: backoff, the other side's retry-after ____________|
//! ```

mod sources;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::address::Address;
use crate::config;
use crate::connections::kept::{Kept, RESOLVE_RETRY_TIMEOUT};
use crate::connections::round::{Round, RoundId, Step, is_duplicate};
use crate::connections::senders::{PeerEvent, StopReason};
use crate::error::{ConnectError, DialCause, DialError, DialStage};
use crate::ident::{ConnectionId, PeerId, SessionKind};

/// How long a dial waits that came while the session at an address that is gone was still being made: the other side has
/// both by then, and the later one takes over.
const EARLY_RETRY: Duration = Duration::from_millis(100);

/// One dial of one socket address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct DialId(pub(crate) u64);

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Find the addresses of a name; the answer goes to [`Outbound::resolved`].
    Resolve { round: RoundId, host: Arc<str> },
    /// Dial; the outcome goes to [`Outbound::started`], [`Outbound::dial_failed`] or [`Outbound::no_room`].
    Dial { dial: DialId, peer: Option<PeerId>, addr: SocketAddr },
    /// Tell whoever asked for this connection.
    Answer { round: RoundId, outcome: Result<PeerId, ConnectError> },
    /// End this session: nobody wants it any more.
    Unwanted { conn: ConnectionId },
    /// A kept peer's attempts have begun to fail, or failed once more.
    Failed { peer: PeerId, errors: Vec<DialError>, first: bool, attempts: u32 },
    /// What [`Outbound::redial`] says of this peer has changed.
    Changed { peer: PeerId },
    /// Peers wait for room, and none did before.
    Full,
    /// A peer is in the map no longer, and nobody else keeps it.
    Vanished { peer: PeerId },
    /// Tell the application.
    Tell(PeerEvent),
}

/// What can be seen of a kept peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Redial {
    /// Delays since the series of delays started over; 0 while it is connected.
    pub(crate) attempts: u32,
    /// When the next round begins; `None` while there is a session or a round, or without addresses.
    pub(crate) next: Option<Instant>,
}

/// The plan of a node's outbound connections.
#[derive(Debug)]
pub(crate) struct Outbound {
    limit: usize,
    backoff: config::Backoff,
    stable_after: Duration,
    kept: BTreeMap<PeerId, (Kept, State)>,
    /// The number of the last sender that started.
    senders: u64,
    /// The kept peers that wait, by when.
    waiting: BTreeSet<(Instant, PeerId)>,
    rounds: BTreeMap<RoundId, Round>,
    /// Rounds that have a socket address to dial, in order.
    ready: VecDeque<RoundId>,
    dials: BTreeMap<DialId, Dial>,
    /// Sessions, whoever dialled and whether the peer is kept or not.
    live: BTreeMap<PeerId, BTreeMap<ConnectionId, Live>>,
    outbound_sessions: usize,
    last_id: u64,
    /// No dials before: somebody else holds places that we do not see.
    hold_until: Option<Instant>,
    /// Peers wait for room, and that was said.
    full: bool,
    stopped: bool,
    actions: Vec<Action>,
}

/// A session.
#[derive(Debug)]
struct Live {
    kind: SessionKind,
    /// The address of the kept peer that was dialled for it, if one was.
    of: Option<Address>,
    /// This node asks it to end: nobody wanted it, or to make room.
    leaving: bool,
}

/// What a kept peer is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting(Instant),
    Trying(RoundId),
    Connected,
}

/// A dial under way. Its round may have ended: nothing takes a dial back whose hello may be sent.
#[derive(Debug)]
struct Dial {
    round: RoundId,
    peer: Option<PeerId>,
    addr: SocketAddr,
    /// Which address of the peer it is, as a source gave it.
    of: Address,
    unwanted: bool,
}

impl Outbound {
    /// Nothing to keep yet; at most `limit` dials and outbound sessions at once.
    pub(crate) fn new(limit: usize, backoff: config::Backoff, stable_after: Duration) -> Self {
        Self {
            limit,
            backoff,
            stable_after,
            kept: BTreeMap::new(),
            senders: 0,
            waiting: BTreeSet::new(),
            rounds: BTreeMap::new(),
            ready: VecDeque::new(),
            dials: BTreeMap::new(),
            live: BTreeMap::new(),
            outbound_sessions: 0,
            last_id: 0,
            hold_until: None,
            full: false,
            stopped: false,
            actions: Vec::new(),
        }
    }

    /// Other bounds and delays from now on. Dials and sessions beyond the bound go on; who waits, waits as long as it was
    /// told, but not beyond the new cap.
    pub(crate) fn change(&mut self, limit: usize, backoff: config::Backoff, stable_after: Duration, now: Instant) {
        let capped = backoff.cap < self.backoff.cap;
        self.limit = limit;
        self.kept.values_mut().for_each(|(kept, _)| kept.change(&backoff, stable_after));
        let latest = now + backoff.cap;
        (self.backoff, self.stable_after) = (backoff, stable_after);
        let late: Vec<_> =
            self.waiting.iter().filter(|(at, _)| capped && *at > latest).map(|(_, peer)| *peer).collect();
        late.into_iter().for_each(|peer| self.wait(peer, latest));
    }

    /// Somebody wants one connection, and waits for [`Action::Answer`].
    pub(crate) fn connect(&mut self, address: Address, now: Instant, rng: &mut fastrand::Rng) -> RoundId {
        // Somebody asks now: whether there is room after all is worth another look.
        self.hold_until = None;
        let round = self.begin(None, [address].into(), None);
        if self.stopped {
            self.give_up(round);
        } else {
            self.go_on(round, now, rng);
        }
        round
    }

    /// What is to be done: dials that are due, as far as there is room, and what came up since.
    pub(crate) fn due(&mut self, now: Instant, rng: &mut fastrand::Rng) -> Vec<Action> {
        if self.hold_until.is_some_and(|until| until <= now) {
            self.hold_until = None;
        }
        while self.room() > self.ready.len()
            && let Some((at, peer)) = self.waiting.first().copied()
            && at <= now
        {
            self.waiting.pop_first();
            let Some((kept, _)) = self.kept.get(&peer) else { continue };
            let (addresses, last) = (kept.in_order(), kept.last);
            let round = self.begin(Some(peer), addresses, last);
            if let Some((_, state)) = self.kept.get_mut(&peer) {
                *state = State::Trying(round);
            }
            self.actions.push(Action::Changed { peer });
            self.go_on(round, now, rng);
        }
        while self.room() > 0
            && let Some(round) = self.ready.pop_front()
        {
            self.dial(round);
        }
        if self.room() == 0 && !self.stopped && self.hold_until.is_none() {
            self.make_room(now);
        }
        // Somebody who waits for an answer is told; a kept peer waits in order.
        while let Some(at) =
            self.ready.iter().position(|id| self.rounds.get(id).is_none_or(|round| round.peer.is_none()))
        {
            if let Some(round) = self.ready.remove(at)
                && self.rounds.contains_key(&round)
            {
                self.end_round(round);
                self.actions.push(Action::Answer { round, outcome: Err(ConnectError::TooMany) });
            }
        }
        // Dials alone are soon over: that is not worth a word.
        let wanting = !self.ready.is_empty() || self.waiting.first().is_some_and(|(at, _)| *at <= now);
        let full = wanting && self.outbound_sessions >= self.limit;
        if full && !self.full {
            self.actions.push(Action::Full);
        }
        self.full = full;
        std::mem::take(&mut self.actions)
    }

    /// When [`Outbound::due`] has something to do by itself.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        if self.stopped {
            return None;
        }
        let next = self.waiting.first().map(|(at, _)| *at).filter(|_| self.room() > 0);
        next.into_iter().chain(self.hold_until).min()
    }

    /// The addresses of the name that a round asked for.
    pub(crate) fn resolved(
        &mut self,
        round: RoundId,
        found: Result<&[SocketAddr], DialCause>,
        now: Instant,
        rng: &mut fastrand::Rng,
    ) -> Option<DialError> {
        let walk = self.rounds.get_mut(&round)?;
        let error = walk.resolved(found)?.err();
        if error.is_none()
            && let Some((name, addrs)) = walk.found()
            && let Some((kept, _)) = walk.peer.and_then(|peer| self.kept.get_mut(&peer))
        {
            kept.found(name, addrs);
        }
        let peer = walk.peer;
        peer.into_iter().for_each(|peer| self.tell_addresses(peer));
        self.go_on(round, now, rng);
        error
    }

    /// A session began: of the dial `dial`, or one that the other side opened.
    pub(crate) fn started(
        &mut self,
        peer: PeerId,
        conn: ConnectionId,
        kind: SessionKind,
        dial: Option<DialId>,
        now: Instant,
    ) {
        self.outbound_sessions += usize::from(kind == SessionKind::Outbound);
        let dial = dial.and_then(|dial| self.dials.remove(&dial));
        let of = dial.as_ref().filter(|dial| dial.peer.is_some()).map(|dial| dial.of.clone());
        self.live.entry(peer).or_default().insert(conn, Live { kind, of: of.clone(), leaving: false });
        if let Some(dial) = &dial {
            if self.rounds.get(&dial.round).is_some_and(|round| round.peer.is_none()) {
                self.end_round(dial.round);
                self.actions.push(Action::Answer { round: dial.round, outcome: Ok(peer) });
            } else if dial.unwanted {
                self.let_leave(&peer);
                self.actions.push(Action::Unwanted { conn });
            }
        }
        let Some((kept, state)) = self.kept.get_mut(&peer) else { return };
        kept.policy.connected(now);
        kept.failing = false;
        if let (Some(of), Some(dial)) = (&of, &dial) {
            kept.answered(of, dial.addr);
        }
        let before = std::mem::replace(state, State::Connected);
        match before {
            State::Waiting(at) => drop(self.waiting.remove(&(at, peer))),
            State::Trying(round) => self.end_round(round),
            State::Connected => {}
        }
        self.actions.push(Action::Changed { peer });
        // The map took the address away while this dial was under way.
        self.move_on(peer, now);
        self.tell_addresses(peer);
    }

    /// A session ended.
    pub(crate) fn ended(
        &mut self,
        peer: PeerId,
        conn: ConnectionId,
        retry_after: Duration,
        now: Instant,
        rng: &mut fastrand::Rng,
    ) {
        let Some(sessions) = self.live.get_mut(&peer) else { return };
        let Some(ended) = sessions.remove(&conn) else { return };
        self.outbound_sessions -= usize::from(ended.kind == SessionKind::Outbound);
        if !sessions.is_empty() {
            return;
        }
        self.live.remove(&peer);
        let Some((kept, state)) = self.kept.get_mut(&peer) else { return };
        kept.policy.lost(now);
        match *state {
            // Let go by this node, and wanted again meanwhile: nothing has failed.
            State::Connected if ended.leaving => self.wait(peer, now + retry_after),
            State::Connected => {
                let delay = kept.policy.next_delay(rng).max(retry_after);
                self.wait(peer, now + delay);
            }
            // It was at an address that is no longer the peer's, and may have stood in the way of the others.
            State::Waiting(_) => self.wait(peer, now),
            State::Trying(_) => {}
        }
    }

    /// A dial failed. `proven` is who proved itself there, if it came that far.
    pub(crate) fn dial_failed(
        &mut self,
        dial: DialId,
        error: DialError,
        proven: Option<PeerId>,
        retry_after: Duration,
        now: Instant,
        rng: &mut fastrand::Rng,
    ) {
        let Some(Dial { round, peer, of, .. }) = self.dials.remove(&dial) else { return };
        let duplicate = is_duplicate(&error.cause);
        if !duplicate && let Some((kept, _)) = peer.and_then(|peer| self.kept.get_mut(&peer)) {
            kept.failed(&of);
        }
        let Some(walk) = self.rounds.get_mut(&round) else { return };
        walk.errors.push(error);
        walk.retry_after = walk.retry_after.max(retry_after);
        if !duplicate {
            return self.go_on(round, now, rng);
        }
        // Another connection of the same two stays: there is nothing to look for at the other addresses.
        match proven {
            Some(peer) if walk.peer.is_none() => {
                self.end_round(round);
                self.actions.push(Action::Answer { round, outcome: Ok(peer) });
            }
            _ => self.fail(round, now, rng),
        }
    }

    /// There was no place for a dial, though by what we know there is room: it has not begun, and not failed.
    pub(crate) fn no_room(&mut self, dial: DialId, again: Instant) {
        let Some(Dial { round, addr, .. }) = self.dials.remove(&dial) else { return };
        self.hold_until = Some(again);
        if let Some(walk) = self.rounds.get_mut(&round) {
            walk.put_back(addr);
            self.ready.push_front(round);
        }
    }

    /// Nothing begins any more, and whoever waits is told.
    pub(crate) fn stop(&mut self) {
        if std::mem::replace(&mut self.stopped, true) {
            return;
        }
        self.waiting.clear();
        for (peer, (kept, _)) in &self.kept {
            self.actions.push(Action::Tell(kept.stopped(*peer, StopReason::ShuttingDown)));
        }
        let rounds: Vec<_> = self.rounds.keys().copied().collect();
        rounds.into_iter().for_each(|round| self.give_up(round));
    }

    /// The round of a dial.
    pub(crate) fn round_of(&self, dial: DialId) -> Option<RoundId> {
        self.dials.get(&dial).map(|dial| dial.round)
    }

    /// The kept peer that a round is for.
    pub(crate) fn peer_of(&self, round: RoundId) -> Option<PeerId> {
        self.rounds.get(&round).and_then(|round| round.peer)
    }

    /// What can be seen of a peer.
    pub(crate) fn redial(&self, peer: &PeerId) -> Redial {
        let Some((kept, state)) = self.kept.get(peer) else { return Redial::default() };
        match *state {
            State::Connected => Redial::default(),
            State::Trying(_) => Redial { attempts: kept.policy.attempts(), next: None },
            State::Waiting(at) => {
                Redial { attempts: kept.policy.attempts(), next: Some(at).filter(|_| !kept.is_nowhere()) }
            }
        }
    }

    // ---- steps

    /// How many more dials may begin.
    fn room(&self) -> usize {
        if self.stopped || self.hold_until.is_some() {
            return 0;
        }
        self.limit.saturating_sub(self.outbound_sessions + self.dials.len())
    }

    /// A kept peer waits until then. One without addresses waits for the other side.
    fn wait(&mut self, peer: PeerId, until: Instant) {
        let Some((kept, state)) = self.kept.get_mut(&peer) else { return };
        if let State::Waiting(before) = *state {
            self.waiting.remove(&(before, peer));
        }
        *state = State::Waiting(until);
        if !kept.is_nowhere() && !self.stopped {
            self.waiting.insert((until, peer));
        }
        self.actions.push(Action::Changed { peer });
    }

    fn begin(&mut self, peer: Option<PeerId>, addresses: VecDeque<Address>, last: Option<SocketAddr>) -> RoundId {
        self.last_id += 1;
        let id = RoundId(self.last_id);
        self.rounds.insert(id, Round::new(peer, addresses, last));
        id
    }

    /// The next step of a round that has no lookup and no dial under way.
    fn go_on(&mut self, id: RoundId, now: Instant, rng: &mut fastrand::Rng) {
        let Some(round) = self.rounds.get_mut(&id) else { return };
        match round.next() {
            Step::Dial => self.ready.push_back(id),
            Step::LookUp(host) => self.actions.push(Action::Resolve { round: id, host }),
            Step::Over => self.fail(id, now, rng),
        }
    }

    fn dial(&mut self, id: RoundId) {
        let Some(round) = self.rounds.get_mut(&id) else { return };
        let Some((addr, of)) = round.take() else { return };
        self.last_id += 1;
        let (dial, peer) = (DialId(self.last_id), round.peer);
        self.dials.insert(dial, Dial { round: id, peer, addr, of, unwanted: false });
        self.actions.push(Action::Dial { dial, peer, addr });
    }

    /// No address is left.
    fn fail(&mut self, id: RoundId, now: Instant, rng: &mut fastrand::Rng) {
        let Some(Round { peer, errors, retry_after, .. }) = self.rounds.remove(&id) else { return };
        let Some(peer) = peer else {
            self.actions.push(Action::Answer { round: id, outcome: Err(ConnectError::Dial(errors)) });
            return;
        };
        // It came while the session that it is to replace was still being made: it has not failed, it was early.
        let early = errors.last().is_some_and(|error| is_duplicate(&error.cause))
            && self.live.contains_key(&peer)
            && !self.stays(&peer);
        let Some((kept, _)) = self.kept.get_mut(&peer) else { return };
        if early {
            return self.wait(peer, now + retry_after.max(EARLY_RETRY));
        }
        let nowhere = !errors.is_empty() && errors.iter().all(|error| error.stage == DialStage::Resolve);
        let delay = kept.policy.next_delay(rng).max(retry_after);
        let delay = if nowhere { RESOLVE_RETRY_TIMEOUT } else { delay };
        let duplicate = errors.last().is_some_and(|error| is_duplicate(&error.cause));
        let first = !duplicate && !std::mem::replace(&mut kept.failing, true);
        let attempts = kept.policy.attempts();
        self.actions.push(Action::Failed { peer, errors, first, attempts });
        self.wait(peer, now + delay);
    }

    /// Forgets a round; its dial, if there is one, goes on by itself.
    fn end_round(&mut self, id: RoundId) {
        self.rounds.remove(&id);
        self.ready.retain(|ready| *ready != id);
    }

    /// Ends a round because the node ends.
    fn give_up(&mut self, id: RoundId) {
        let Some(round) = self.rounds.remove(&id) else { return };
        self.ready.retain(|ready| *ready != id);
        if round.peer.is_none() {
            let under_way = self.dials.values().find(|dial| dial.round == id).map(|dial| dial.addr);
            let errors = round.cut_short(under_way);
            self.actions.push(Action::Answer { round: id, outcome: Err(ConnectError::Dial(errors)) });
        }
    }
}

#[cfg(test)]
mod tests;
