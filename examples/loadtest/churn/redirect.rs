//! How long it takes until a peer that has moved is reached where it is now. Pure: time is an argument.
//!
//! Owns: the redirects under way and those that are over. Threads: whoever holds its lock. Locks: none itself.
//! Blocks on: nothing.
//! Upholds: the first time that a peer is reached is no redirect; a redirect begins before the map changes; it ends with
//! the acknowledgement of a message that was sent when the session at the new place was known to be there: none of an
//! earlier session's counts.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use threadwire::ident::ConnectionId;

/// All peers.
#[derive(Debug, Default)]
pub struct Redirects {
    under_way: HashMap<usize, UnderWay>,
    sessions: HashMap<usize, (ConnectionId, SocketAddr)>,
    reached: HashSet<usize>,
    connects: Vec<Duration>,
    over: Vec<Duration>,
}

#[derive(Debug)]
struct UnderWay {
    since: Instant,
    to: SocketAddr,
    /// The first message that was sent to the new place.
    first: Option<u32>,
}

impl Redirects {
    /// The map is about to say that a peer is there.
    pub fn begin(&mut self, peer: usize, to: SocketAddr, now: Instant) {
        self.under_way.insert(peer, UnderWay { since: now, to, first: None });
    }

    /// A session with a peer began.
    pub fn connected(&mut self, peer: usize, conn: ConnectionId, at: SocketAddr) {
        self.sessions.insert(peer, (conn, at));
    }

    /// It ended.
    pub fn disconnected(&mut self, peer: usize, conn: ConnectionId) {
        if self.sessions.get(&peer).is_some_and(|(known, _)| *known == conn) {
            self.sessions.remove(&peer);
        }
    }

    /// A message is about to be sent.
    pub fn sending(&mut self, peer: usize, sequence: u32) {
        let Some(redirect) = self.under_way.get_mut(&peer) else { return };
        if self.sessions.get(&peer).is_some_and(|(_, at)| *at == redirect.to) {
            redirect.first.get_or_insert(sequence);
        }
    }

    /// A message was acknowledged.
    pub fn acked(&mut self, peer: usize, sequence: u32, now: Instant) {
        let there = |redirect: &UnderWay| redirect.first.is_some_and(|first| first <= sequence);
        if self.under_way.get(&peer).is_some_and(there)
            && let Some(redirect) = self.under_way.remove(&peer)
        {
            let times = if self.reached.insert(peer) { &mut self.connects } else { &mut self.over };
            times.push(now - redirect.since);
        }
    }

    /// Whether a peer is on its way.
    pub fn is_under_way(&self, peer: usize) -> bool {
        self.under_way.contains_key(&peer)
    }

    /// How many are.
    pub fn unfinished(&self) -> usize {
        self.under_way.len()
    }

    /// How long it took until each peer was reached for the first time.
    pub fn connects(&self) -> &[Duration] {
        &self.connects
    }

    /// How long those took that are over.
    pub fn over(&self) -> &[Duration] {
        &self.over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_sent_to_the_new_place_ends_a_redirect() {
        let (mut redirects, start) = (Redirects::default(), Instant::now());
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        redirects.begin(1, at(1), start);
        redirects.connected(1, ConnectionId(1), at(1));
        redirects.sending(1, 0);
        redirects.acked(1, 0, start + Duration::from_secs(9));
        assert_eq!((redirects.connects(), redirects.over()), (&[Duration::from_secs(9)][..], &[][..]), "no redirect");
        redirects.begin(1, at(2), start);
        redirects.sending(1, 1);
        redirects.connected(1, ConnectionId(2), at(2));
        // Of the one that was replaced.
        redirects.disconnected(1, ConnectionId(1));
        redirects.acked(1, 1, start);
        assert!(redirects.is_under_way(1), "sent to the old place");
        redirects.sending(1, 2);
        redirects.acked(1, 0, start);
        assert_eq!((redirects.unfinished(), redirects.over()), (1, &[][..]));
        redirects.acked(1, 2, start + Duration::from_secs(1));
        assert_eq!((redirects.unfinished(), redirects.over()), (0, &[Duration::from_secs(1)][..]));
        redirects.disconnected(1, ConnectionId(2));
        redirects.begin(1, at(2), start);
        redirects.sending(1, 3);
        redirects.acked(1, 3, start);
        assert_eq!(redirects.unfinished(), 1, "nobody is there");
    }
}
