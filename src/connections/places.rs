//! Addresses at which somebody is wanted, whoever it is: when each is dialled, and who has proven itself there. Pure.
//!
//! Owns: the state of each address. Threads: `supervisor` only. Locks: none. Blocks on: nothing.
//! Upholds: an address is dialled only while nobody who proved itself there is connected; who does is its peer until
//! that peer has no session any more; after a failure there is a delay.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::config;
use crate::connections::backoff::ReconnectPolicy;
use crate::connections::round::RoundId;
use crate::ident::PeerId;

/// All addresses at which somebody is wanted.
#[derive(Debug)]
pub(crate) struct Places {
    backoff: config::Backoff,
    stable_after: Duration,
    places: BTreeMap<SocketAddr, Place>,
}

#[derive(Debug)]
struct Place {
    policy: ReconnectPolicy,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting(Instant),
    Trying(RoundId),
    Bound(PeerId),
}

impl Places {
    /// None yet.
    pub(crate) fn new(backoff: config::Backoff, stable_after: Duration) -> Self {
        Self { backoff, stable_after, places: BTreeMap::new() }
    }

    /// Other delays from now on. What waits, waits as long as it was to, but not beyond a cap that is lower now.
    pub(crate) fn change(&mut self, backoff: config::Backoff, stable_after: Duration, now: Instant) {
        let latest = (backoff.cap < self.backoff.cap).then(|| now + backoff.cap);
        for place in self.places.values_mut() {
            place.policy.change(&backoff, stable_after);
            if let (State::Waiting(at), Some(latest)) = (&mut place.state, latest) {
                *at = latest.min(*at);
            }
        }
        (self.backoff, self.stable_after) = (backoff, stable_after);
    }

    /// Somebody is wanted there.
    pub(crate) fn want(&mut self, addr: SocketAddr, now: Instant) {
        let policy = || ReconnectPolicy::new(&self.backoff, self.stable_after);
        self.places.entry(addr).or_insert_with(|| Place { policy: policy(), state: State::Waiting(now) });
    }

    /// What is to be dialled now.
    pub(crate) fn due(&self, now: Instant) -> Vec<SocketAddr> {
        let is_due = |place: &Place| matches!(place.state, State::Waiting(at) if at <= now);
        self.places.iter().filter(|(_, place)| is_due(place)).map(|(addr, _)| *addr).collect()
    }

    /// When something is to be dialled.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let due = |place: &Place| if let State::Waiting(at) = place.state { Some(at) } else { None };
        self.places.values().filter_map(due).min()
    }

    /// It is being dialled.
    pub(crate) fn trying(&mut self, addr: SocketAddr, round: RoundId) {
        if let Some(place) = self.places.get_mut(&addr) {
            place.state = State::Trying(round);
        }
    }

    /// A round has ended: of which address, if it was of one.
    pub(crate) fn answered(
        &mut self,
        round: RoundId,
        proven: Option<PeerId>,
        now: Instant,
        rng: &mut fastrand::Rng,
    ) -> Option<SocketAddr> {
        let (addr, place) = self.places.iter_mut().find(|(_, place)| place.state == State::Trying(round))?;
        place.state = match proven {
            Some(peer) => {
                place.policy.connected(now);
                State::Bound(peer)
            }
            None => State::Waiting(now + place.policy.next_delay(rng)),
        };
        Some(*addr)
    }

    /// The address that a round is for.
    pub(crate) fn place_of(&self, round: RoundId) -> Option<SocketAddr> {
        self.places.iter().find(|(_, place)| place.state == State::Trying(round)).map(|(addr, _)| *addr)
    }

    /// A peer has no session any more. The addresses where it had proven itself.
    pub(crate) fn lost(&mut self, peer: PeerId, now: Instant, rng: &mut fastrand::Rng) -> Vec<SocketAddr> {
        let mut lost = Vec::new();
        for (addr, place) in self.places.iter_mut().filter(|(_, place)| place.state == State::Bound(peer)) {
            place.policy.lost(now);
            place.state = State::Waiting(now + place.policy.next_delay(rng));
            lost.push(*addr);
        }
        lost
    }

    /// Lets go of addresses where nobody is, is looked for now, or is wanted any more. Those.
    pub(crate) fn let_go(&mut self, wanted: impl Fn(&SocketAddr) -> bool) -> Vec<SocketAddr> {
        let idle = self.places.iter().filter(|(_, place)| matches!(place.state, State::Waiting(_)));
        let gone: Vec<SocketAddr> = idle.map(|(addr, _)| *addr).filter(|addr| !wanted(addr)).collect();
        gone.iter().for_each(|addr| drop(self.places.remove(addr)));
        gone
    }

    /// Nothing is dialled any more.
    pub(crate) fn stop(&mut self) {
        self.places.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_dialled_until_somebody_proves_itself_and_again_when_that_one_is_lost() {
        let (mut rng, start) = (fastrand::Rng::with_seed(1), Instant::now());
        let mut places = Places::new(config::Backoff::default(), Duration::from_secs(10));
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let peer = |n: u8| PeerId::from_bytes([n; 32]);
        assert_eq!((places.next_due(), places.due(start)), (None, vec![]));
        places.want(at(1), start);
        places.want(at(1), start + Duration::from_secs(1));
        assert_eq!((places.next_due(), places.due(start)), (Some(start), vec![at(1)]));
        places.trying(at(1), RoundId(1));
        assert_eq!((places.next_due(), places.due(start)), (None, vec![]));
        assert_eq!(places.let_go(|_| false), [], "not while it is dialled");
        assert_eq!(places.answered(RoundId(9), None, start, &mut rng), None, "another one's round");
        assert_eq!(places.answered(RoundId(1), None, start, &mut rng), Some(at(1)));
        let again = places.next_due().unwrap();
        assert!(again > start && places.due(start).is_empty());
        places.trying(at(1), RoundId(2));
        assert_eq!(places.answered(RoundId(2), Some(peer(1)), again, &mut rng), Some(at(1)));
        assert_eq!((places.next_due(), places.let_go(|_| false)), (None, vec![]), "somebody is there");
        assert_eq!(places.lost(peer(2), again, &mut rng), []);
        assert_eq!(places.lost(peer(1), again, &mut rng), [at(1)]);
        assert!(places.next_due().unwrap() > again);
        assert_eq!(places.let_go(|addr| *addr == at(1)), []);
        assert_eq!(places.let_go(|_| false), [at(1)]);
        assert_eq!(places.next_due(), None);
    }

    #[test]
    fn a_lowered_cap_reaches_an_address_that_waits_and_a_raised_one_does_not() {
        let (mut rng, start, second) = (fastrand::Rng::with_seed(1), Instant::now(), Duration::from_secs(1));
        let delays =
            |base: u32, cap: u32| config::Backoff { base: second * base, cap: second * cap, ..Default::default() };
        let mut places = Places::new(delays(3600, 3600), second);
        let addr = SocketAddr::from(([127, 0, 0, 1], 1));
        places.want(addr, start);
        places.trying(addr, RoundId(1));
        places.answered(RoundId(1), None, start, &mut rng);
        let waits = places.next_due().unwrap();
        assert!(waits > start + 10 * second);
        places.change(delays(1, 7200), second, start);
        assert_eq!(places.next_due(), Some(waits));
        places.change(delays(1, 10), second, start);
        assert_eq!(places.next_due(), Some(start + 10 * second));
        places.change(delays(1, 9), second, start - 5 * second);
        assert_eq!(places.next_due(), Some(start + 4 * second), "never later than it was");
        places.change(delays(1, 8), second, start);
        assert_eq!(places.next_due(), Some(start + 4 * second));
    }
}
