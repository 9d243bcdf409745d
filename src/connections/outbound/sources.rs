//! Who wants peers to be kept, and where each of them is: the application's verbs and the live map.
//!
//! Owns: nothing of its own; the plan's state. Threads: `supervisor` only. Locks: none. Blocks on: nothing.
//! Upholds: a peer is kept while a source wants it; a session at an address that the map took away stays until one at
//! another address takes over, unless the next dial has no other place; a sender is told of when it stops, and the next one has a higher number.

use std::collections::BTreeMap;
use std::time::Instant;

use super::{Action, Outbound, State};
use crate::address::Address;
use crate::connections::kept::{Kept, Source};
use crate::connections::senders::{PeerEvent, StopReason};
use crate::ident::{PeerId, SessionKind};

impl Outbound {
    /// The application keeps a peer connected from now on, at these addresses. New ones are tried at once.
    pub(crate) fn keep(&mut self, peer: PeerId, addresses: Vec<Address>, now: Instant) {
        self.say(peer, Source::Added, addresses, now);
    }

    /// The application keeps a peer no longer. Whether nobody does now.
    pub(crate) fn remove(&mut self, peer: PeerId, now: Instant) -> bool {
        self.unsay(peer, Source::Added, now)
    }

    /// What the map says from now on: of these peers, where they are; of all others, that they are gone.
    pub(crate) fn follow(&mut self, map: BTreeMap<PeerId, Vec<Address>>, now: Instant) {
        let mapped =
            self.kept.iter().filter(|(peer, (kept, _))| kept.is_wanted_by(Source::Map) && !map.contains_key(peer));
        let gone: Vec<PeerId> = mapped.map(|(peer, _)| *peer).collect();
        for peer in gone {
            if self.unsay(peer, Source::Map, now) {
                self.actions.push(Action::Vanished { peer });
            }
        }
        for (peer, addresses) in map {
            self.say(peer, Source::Map, addresses, now);
        }
    }

    /// A source says where a peer is.
    fn say(&mut self, peer: PeerId, source: Source, addresses: Vec<Address>, now: Instant) {
        let connected = self.live.contains_key(&peer);
        let (kept, _) = self.kept.entry(peer).or_insert_with(|| {
            self.senders += 1;
            let mut kept = Kept::new(&self.backoff, self.stable_after);
            kept.renumber(self.senders);
            (kept, if connected { State::Connected } else { State::Waiting(now) })
        });
        let changed = kept.say(source, Some(addresses));
        self.dials.values_mut().filter(|dial| dial.peer == Some(peer)).for_each(|dial| dial.unwanted = false);
        if changed {
            self.go_where(peer, source, now);
        }
    }

    /// A source wants a peer no more. Whether nobody does now.
    fn unsay(&mut self, peer: PeerId, source: Source, now: Instant) -> bool {
        let Some((kept, state)) = self.kept.get_mut(&peer) else {
            self.let_leave(&peer);
            return true;
        };
        let changed = kept.say(source, None);
        if kept.is_wanted() {
            if changed {
                self.go_where(peer, source, now);
            }
            return false;
        }
        match *state {
            State::Waiting(at) => drop(self.waiting.remove(&(at, peer))),
            State::Trying(round) => self.end_round(round),
            State::Connected => {}
        }
        let reason = if source == Source::Map { StopReason::Vanished } else { StopReason::Removed };
        if let Some((kept, _)) = self.kept.remove(&peer) {
            self.actions.push(Action::Tell(kept.stopped(peer, reason)));
        }
        self.dials.values_mut().filter(|dial| dial.peer == Some(peer)).for_each(|dial| dial.unwanted = true);
        self.let_leave(&peer);
        self.actions.push(Action::Changed { peer });
        true
    }

    /// Nobody wants the sessions of a peer: they are asked to end. If somebody wants it again before they have, it is
    /// dialled as soon as they have.
    pub(super) fn let_leave(&mut self, peer: &PeerId) {
        let sessions = self.live.get_mut(peer).into_iter().flat_map(BTreeMap::values_mut);
        sessions.for_each(|live| live.leaving = true);
    }

    /// The addresses of a kept peer have changed.
    fn go_where(&mut self, peer: PeerId, source: Source, now: Instant) {
        let stays = self.stays(&peer);
        let Some((_, state)) = self.kept.get_mut(&peer) else { return };
        match *state {
            // An address that the application replaces ends no session; one that the map takes away does.
            State::Connected if source == Source::Map => self.move_on(peer, now),
            State::Connected => {}
            before => {
                if stays {
                    *state = State::Connected;
                    self.actions.push(Action::Changed { peer });
                }
                match before {
                    State::Trying(round) => self.end_round(round),
                    State::Waiting(at) if stays => drop(self.waiting.remove(&(at, peer))),
                    _ => {}
                }
                if !stays {
                    self.wait(peer, now);
                }
            }
        }
        self.tell_addresses(peer);
    }

    /// Whether a kept peer has a session that is as good as any: at an address that is still its own, or opened by the
    /// other side or for somebody else; or whether there is no address to look for it at.
    pub(super) fn stays(&self, peer: &PeerId) -> bool {
        let (Some((kept, _)), Some(sessions)) = (self.kept.get(peer), self.live.get(peer)) else { return false };
        kept.is_nowhere() || sessions.values().any(|live| live.of.as_ref().is_none_or(|of| kept.has(of)))
    }

    /// Looks for a connected peer at its other addresses if none of its sessions is at one that it still has. The session
    /// stays until another takes over: it is better than none.
    pub(super) fn move_on(&mut self, peer: PeerId, now: Instant) {
        if self.stays(&peer) {
            return;
        }
        let Some((kept, _)) = self.kept.get_mut(&peer) else { return };
        self.actions.push(Action::Tell(kept.stopped(peer, StopReason::Moved)));
        self.senders += 1;
        kept.renumber(self.senders);
        self.wait(peer, now);
    }

    /// There is no place for a dial: a peer that is to be looked for at another address gives up the one that it has.
    pub(super) fn make_room(&mut self, now: Instant) {
        let due = self.waiting.iter().take_while(|(at, _)| *at <= now).map(|(_, peer)| *peer);
        let trying = self.ready.iter().filter_map(|round| self.rounds.get(round)?.peer);
        for peer in due.chain(trying) {
            for (conn, live) in self.live.get_mut(&peer).into_iter().flatten() {
                if live.kind == SessionKind::Outbound && !std::mem::replace(&mut live.leaving, true) {
                    self.actions.push(Action::Unwanted { conn: *conn });
                }
            }
        }
    }

    /// Tells where a kept peer can be dialled, if that is news.
    pub(super) fn tell_addresses(&mut self, peer: PeerId) {
        let Some((kept, _)) = self.kept.get_mut(&peer) else { return };
        if let Some(addrs) = kept.news() {
            let generation = kept.generation;
            self.actions.push(Action::Tell(PeerEvent::AddrsResolved { peer, addrs, generation }));
        }
    }
}
