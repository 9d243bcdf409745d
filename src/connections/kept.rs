//! One peer that is kept connected: who wants it, at which addresses, and which of them is tried first. Pure.
//!
//! Owns: the addresses of each source, what is known of them, the series of delays. Threads: `supervisor` only.
//! Locks: none. Blocks on: nothing.
//! Upholds: a source speaks for itself alone: what the map says takes nothing from what the application added, and the
//! other way round; each address is there once; the one that answered last is tried first.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use crate::address::Address;
use crate::config;
use crate::connections::backoff::ReconnectPolicy;
use crate::connections::senders::{PeerEvent, StopReason};
use crate::ident::PeerId;

/// How long a peer waits of whose names none was found: instead of the backoff, which is for peers that do not answer.
/// Other addresses, as soon as they are known, end that wait.
pub const RESOLVE_RETRY_TIMEOUT: Duration = Duration::from_secs(1);

/// Who wants a peer to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The application, by a verb or its configuration.
    Added,
    /// The live map of peers.
    Map,
}

/// What dials a kept peer.
#[derive(Debug)]
pub(super) struct Kept {
    added: Option<Vec<Address>>,
    mapped: Option<Vec<Address>>,
    /// Of both, those of the map first.
    addresses: Vec<Address>,
    /// Those that answered at their last dial, the latest first.
    lucky: Vec<Address>,
    /// What names were found to mean.
    found: BTreeMap<Address, Vec<SocketAddr>>,
    /// Where it was dialled with success last.
    pub(super) last: Option<SocketAddr>,
    /// Where it can be dialled, as it was told last.
    told: Vec<SocketAddr>,
    /// Which sender of the peer this is.
    pub(super) generation: u64,
    pub(super) policy: ReconnectPolicy,
    backoff: config::Backoff,
    stable_after: Duration,
    /// The last round failed: only changes are logged.
    pub(super) failing: bool,
}

impl Kept {
    /// Wanted by nobody yet.
    pub(super) fn new(backoff: &config::Backoff, stable_after: Duration) -> Self {
        Self {
            added: None,
            mapped: None,
            addresses: Vec::new(),
            lucky: Vec::new(),
            found: BTreeMap::new(),
            last: None,
            told: Vec::new(),
            generation: 0,
            policy: ReconnectPolicy::new(backoff, stable_after),
            backoff: backoff.clone(),
            stable_after,
            failing: false,
        }
    }

    /// Other delays from now on.
    pub(super) fn change(&mut self, backoff: &config::Backoff, stable_after: Duration) {
        self.policy.change(backoff, stable_after);
        (self.backoff, self.stable_after) = (backoff.clone(), stable_after);
    }

    /// What a source says from now on, or that it wants the peer no more. Whether that changes the addresses.
    pub(super) fn say(&mut self, source: Source, addresses: Option<Vec<Address>>) -> bool {
        match source {
            Source::Added => self.added = addresses,
            Source::Map => self.mapped = addresses,
        }
        let mut all: Vec<Address> = Vec::new();
        for address in self.mapped.iter().chain(&self.added).flatten() {
            if !all.contains(address) {
                all.push(address.clone());
            }
        }
        if all == self.addresses {
            return false;
        }
        if all.iter().any(|address| !self.addresses.contains(address)) {
            // How often the others failed says nothing about a new one.
            self.policy = ReconnectPolicy::new(&self.backoff, self.stable_after);
            self.failing = false;
        }
        self.lucky.retain(|address| all.contains(address));
        self.found.retain(|address, _| all.contains(address));
        self.addresses = all;
        true
    }

    /// Whether a source wants the peer.
    pub(super) fn is_wanted(&self) -> bool {
        self.added.is_some() || self.mapped.is_some()
    }

    /// Whether this source does.
    pub(super) fn is_wanted_by(&self, source: Source) -> bool {
        match source {
            Source::Added => self.added.is_some(),
            Source::Map => self.mapped.is_some(),
        }
    }

    /// Whether this is one of the addresses.
    pub(super) fn has(&self, address: &Address) -> bool {
        self.addresses.contains(address)
    }

    /// Whether there is nowhere to dial.
    pub(super) fn is_nowhere(&self) -> bool {
        self.addresses.is_empty()
    }

    /// The addresses in the order they are tried: those that answered last first, the others as their sources list them.
    pub(super) fn in_order(&self) -> VecDeque<Address> {
        let others = self.addresses.iter().filter(|address| !self.lucky.contains(address));
        self.lucky.iter().chain(others).cloned().collect()
    }

    /// A dial of this address succeeded.
    pub(super) fn answered(&mut self, address: &Address, addr: SocketAddr) {
        self.last = Some(addr);
        self.lucky.retain(|lucky| lucky != address);
        if self.has(address) {
            self.lucky.insert(0, address.clone());
        }
    }

    /// A dial of this address failed: it comes after those that answer.
    pub(super) fn failed(&mut self, address: &Address) {
        self.lucky.retain(|lucky| lucky != address);
    }

    /// A name was found to mean these.
    pub(super) fn found(&mut self, name: &Address, addrs: Vec<SocketAddr>) {
        if self.has(name) {
            self.found.insert(name.clone(), addrs);
        }
    }

    /// Another sender takes over, of this number: it has not told anything.
    pub(super) fn renumber(&mut self, generation: u64) {
        self.generation = generation;
        self.last = None;
        self.told.clear();
    }

    /// Word that this sender of the peer stops.
    pub(super) fn stopped(&self, peer: PeerId, reason: StopReason) -> PeerEvent {
        PeerEvent::SenderStopped { peer, addr: self.last, generation: self.generation, reason }
    }

    /// Where the peer can be dialled, as far as that is known, if it was not told before.
    pub(super) fn news(&mut self) -> Option<Vec<SocketAddr>> {
        let mut addrs = Vec::new();
        for address in &self.addresses {
            let found = self.found.get(address).into_iter().flatten().copied();
            for addr in address.socket_addr().into_iter().chain(found) {
                // Several names may mean one machine.
                if !addrs.contains(&addr) {
                    addrs.push(addr);
                }
            }
        }
        if addrs == self.told {
            return None;
        }
        self.told.clone_from(&addrs);
        Some(addrs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> Kept {
        Kept::new(&config::Backoff::default(), Duration::from_secs(10))
    }

    fn at(places: &[&str]) -> Vec<Address> {
        places.iter().map(|place| place.parse().unwrap()).collect()
    }

    fn socket(n: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, n], 5))
    }

    fn order(kept: &Kept) -> Vec<String> {
        kept.in_order().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_source_speaks_for_itself_and_the_map_comes_first() {
        let mut kept = kept();
        assert!(!kept.is_wanted());
        assert!(kept.say(Source::Added, Some(at(&["a:1", "b:1"]))));
        assert!(kept.say(Source::Map, Some(at(&["b:1", "c:1", "c:1"]))));
        assert_eq!(order(&kept), ["b:1", "c:1", "a:1"]);
        assert!(!kept.say(Source::Map, Some(at(&["b:1", "c:1"]))), "nothing has changed");
        assert!(kept.say(Source::Map, None));
        assert_eq!((order(&kept), kept.is_wanted()), (vec!["a:1".into(), "b:1".into()], true));
        assert!(!kept.say(Source::Map, Some(Vec::new())), "known, and nowhere else to dial");
        assert!(kept.say(Source::Added, None));
        assert!(kept.is_wanted() && kept.is_nowhere() && kept.is_wanted_by(Source::Map));
        assert!(!kept.say(Source::Map, None));
        assert!(!kept.is_wanted());
    }

    #[test]
    fn addresses_are_tried_in_the_order_of_recent_success() {
        let mut kept = kept();
        let all = at(&["a:1", "b:1", "c:1"]);
        kept.say(Source::Map, Some(all.clone()));
        kept.answered(&all[1], socket(1));
        kept.answered(&all[2], socket(2));
        assert_eq!((order(&kept), kept.last), (vec!["c:1".into(), "b:1".into(), "a:1".into()], Some(socket(2))));
        kept.failed(&all[2]);
        assert_eq!(order(&kept), ["b:1", "a:1", "c:1"]);
        kept.say(Source::Map, Some(at(&["c:1", "a:1"])));
        assert_eq!(order(&kept), ["c:1", "a:1"], "what is gone is no good any more");
        kept.answered(&all[1], socket(3));
        assert_eq!(order(&kept), ["c:1", "a:1"]);
    }

    #[test]
    fn where_it_can_be_dialled_is_told_when_it_changes() {
        let mut kept = kept();
        assert_eq!(kept.news(), None, "nothing is no news");
        let all = at(&["192.0.2.1:5", "north:5"]);
        kept.say(Source::Added, Some(all.clone()));
        assert_eq!((kept.news(), kept.news()), (Some(vec![socket(1)]), None));
        kept.found(&all[1], vec![socket(2), socket(3)]);
        assert_eq!((kept.news(), kept.news()), (Some(vec![socket(1), socket(2), socket(3)]), None));
        kept.found(&all[1], vec![socket(2), socket(1), socket(3), socket(2)]);
        assert_eq!(kept.news(), None, "each once");
        kept.found(&at(&["south:5"])[0], vec![socket(9)]);
        assert_eq!(kept.news(), None, "nobody's name");
        kept.renumber(2);
        assert_eq!(kept.news(), Some(vec![socket(1), socket(2), socket(3)]), "another sender tells its own");
        kept.say(Source::Added, Some(Vec::new()));
        assert_eq!(kept.news(), Some(Vec::new()));
    }

    #[test]
    fn a_new_address_starts_the_delays_over_and_one_less_does_not() {
        let mut kept = kept();
        let mut rng = fastrand::Rng::with_seed(1);
        kept.say(Source::Map, Some(at(&["a:1", "b:1"])));
        kept.policy.next_delay(&mut rng);
        kept.say(Source::Map, Some(at(&["a:1"])));
        assert_eq!(kept.policy.attempts(), 1);
        kept.say(Source::Map, Some(at(&["b:1"])));
        assert_eq!(kept.policy.attempts(), 0);
    }
}
