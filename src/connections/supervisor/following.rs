//! Where peers are: the live map that the supervisor follows, and addresses at which anybody is wanted.
//!
//! Owns: nothing of its own; the supervisor's. Threads: `supervisor` only. Locks: the registry lock, the link lock, that of
//! a stand-in and the outbox lock of a peer; the leaf of the map; one after the other. Blocks on: nothing.
//! Upholds: an address where somebody is wanted is dialled until somebody proves itself there, and let go when nobody
//! needs it: whoever comes a moment later asks anew.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::never;

use super::Supervisor;
use crate::connections::round::RoundId;
use crate::connections::shared::{Lifecycle, Said};
use crate::ident::PeerId;
use crate::session::PeerLink;

/// Stands for no round: they are numbered from 1.
const NO_ROUND: RoundId = RoundId(0);

impl<F: Fn(Lifecycle)> Supervisor<F> {
    /// The map of peers has changed, or will change no more.
    pub(super) fn map_changed(&mut self, changes: bool) {
        let Some(map) = &mut self.map else { return };
        if changes {
            self.unheard = Some((map.look)());
        } else {
            map.changes = never();
        }
    }

    /// Follows what the map said last. The caller has heard every report that was sent before it said so: a program that
    /// adds a peer and then takes it out of the map wants it all the time.
    pub(super) fn follow_map(&mut self, now: Instant) {
        let said = self.unheard.take();
        self.follow(said, now);
    }

    /// Follows what the map said, unless something later holds already.
    pub(super) fn follow(&mut self, said: Option<Said>, now: Instant) {
        let Some(Said { version, peers }) = said.filter(|said| said.version > self.heard) else { return };
        self.heard = version;
        let mut peers = peers();
        // A map of all peers has this node in it.
        peers.remove(&self.shared.me);
        let mut refused = 0;
        peers.retain(|peer, _| {
            // What stands for an address is nobody.
            let known = peer.stands_for().is_none() && self.shared.peer(*peer).is_ok();
            refused += usize::from(!known);
            known
        });
        if refused > 0 && self.left_out == 0 {
            log::warn!(
                target: "threadwire::dial",
                "{refused} peers of the map are left out: more than the configuration allows, or ids of addresses"
            );
        }
        self.left_out = refused;
        self.outbound.follow(peers, now);
    }

    /// Somebody is wanted at the address that this link stands for.
    pub(super) fn find(&mut self, link: Arc<PeerLink>) {
        if let Some(addr) = link.stands_for() {
            self.places.want(addr, Instant::now());
            self.stand_ins.entry(addr).or_insert((link, None));
        }
    }

    /// Dials addresses that are due and still needed.
    pub(super) fn dial_places(&mut self, now: Instant) {
        if !self.places.due(now).is_empty() {
            self.let_go();
        }
        for addr in self.places.due(now) {
            // Who was dialled there for another reason is found without another dial.
            let there = self.shared.registry.dialled(addr);
            let round = match there {
                Some(_) => NO_ROUND,
                None => self.outbound.connect(addr.into(), now, &mut self.rng),
            };
            self.places.trying(addr, round);
            if there.is_some() {
                self.found(round, there);
            }
        }
    }

    /// A dial of an address where anybody is wanted has ended.
    pub(super) fn found(&mut self, round: RoundId, proven: Option<PeerId>) {
        let link = proven.and_then(|peer| self.shared.registry.link(&peer));
        // The session that it was a duplicate of may be gone.
        let link = link.filter(|link| link.core.lock().attached().is_some());
        let proven = link.as_ref().map(|link| link.id);
        let Some(addr) = self.places.answered(round, proven, Instant::now(), &mut self.rng) else { return };
        let (Some(link), Some((stand_in, last))) = (link, self.stand_ins.get_mut(&addr)) else { return };
        log::debug!(target: "threadwire::dial", "{}: has proven itself at {addr}", link.id.short());
        *last = Some(link.clone());
        stand_in.bind(Some(link));
        (self.on_event)(Lifecycle::Found(addr));
    }

    /// Lets go of addresses where nobody is and that nobody needs: no handle on them is held, and nothing waits for
    /// somebody to prove itself there, or for who did.
    pub(super) fn let_go(&mut self) {
        let stand_ins = &self.stand_ins;
        let gone = self.places.let_go(|addr| {
            let Some((link, last)) = stand_ins.get(addr) else { return false };
            // Whoever comes from here on asks anew; whoever came before is seen.
            link.ask_anew();
            // The registry has one, and this has one.
            let held = Arc::strong_count(link) > 2;
            let undelivered = last.as_ref().is_some_and(|last| !last.is_drained());
            let wanted = held || undelivered || link.outbox.counts().messages > 0;
            if wanted {
                link.ask_once();
            }
            wanted
        });
        gone.iter().for_each(|addr| drop(self.stand_ins.remove(addr)));
    }
}
