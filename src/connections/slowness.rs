//! Which connected peers are slow: what waits for them is old, or goes on filling their queue. Pure: what was seen and the
//! time are arguments, what is to be told is returned.
//!
//! Owns: for each peer for which something waits, or that was told of as slow, since when and whether. Threads:
//! `supervisor` only. Locks: none. Blocks on: nothing.
//! Upholds: an episode is told once, and its end once; it outlasts a lost session; nothing is cut for being slow before
//! that was told; a peer for which nothing waits costs nothing here.
//!
//! ```text
//!                oldest >= after, or above 3/4 for that long; or cut while something waits
//!   well, nothing told -----------------------------------------------------------------> slow, told
//!          ^________________________ below 1/2, and oldest < after/2 _______________________|
//! ```

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::ident::PeerId;
use crate::session::{Backlog, Level};

/// What the supervisor saw of a peer's session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    pub(crate) backlog: Backlog,
    /// When the session began: what had waited before is not its fault.
    pub(crate) began: Instant,
    /// Since when a write makes no progress, if one is under way.
    pub(crate) stalled: Option<Instant>,
    /// The session is about to be cut for its silence, or for a write that makes no progress.
    pub(crate) cut: bool,
}

/// What is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// The peer is slow: the oldest message has waited so long.
    Slow(Duration),
    Recovered,
}

/// The peers for which something waits.
#[derive(Debug, Default)]
pub(crate) struct SlowPeers(HashMap<PeerId, Slowness>);

#[derive(Debug, Default)]
struct Slowness {
    told: bool,
    /// Since when its queue has been more than three quarters full.
    high_since: Option<Instant>,
}

impl SlowPeers {
    /// Whether there is something to look for though nothing waits.
    pub(crate) fn has(&self, peer: &PeerId) -> bool {
        self.0.contains_key(peer)
    }

    /// Looks at a peer; `after` is `slow_after`.
    pub(crate) fn look(&mut self, peer: PeerId, look: &Look, now: Instant, after: Duration) -> Option<Turn> {
        let slowness = self.0.entry(peer).or_default();
        let turn = slowness.look(look, now, after);
        if !slowness.told && slowness.high_since.is_none() {
            self.0.remove(&peer);
        }
        turn
    }

    /// The peer has no session any more: nobody judges it until it has one, but what was told stays told.
    pub(crate) fn away(&mut self, peer: &PeerId) {
        if let Some(slowness) = self.0.get_mut(peer) {
            slowness.high_since = None;
            if !slowness.told {
                self.0.remove(peer);
            }
        }
    }
}

impl Slowness {
    fn look(&mut self, look: &Look, now: Instant, after: Duration) -> Option<Turn> {
        let Look { backlog, began, stalled, cut } = *look;
        let age = |since: Option<Instant>| since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let oldest = backlog.oldest.into_iter().chain(stalled).min();
        let waits = backlog.oldest.map(|oldest| oldest.max(began)).into_iter().chain(stalled).min();
        if backlog.level == Level::High {
            self.high_since.get_or_insert(now);
        } else {
            self.high_since = None;
        }
        let high = self.high_since.is_some_and(|since| now.saturating_duration_since(since) >= after);
        if !self.told && (age(waits) >= after || high || (cut && waits.is_some())) {
            self.told = true;
            return Some(Turn::Slow(age(oldest)));
        }
        // Half as old: what waits just about as long as it may is told of once, and not again and again.
        if self.told && !cut && backlog.level == Level::Low && age(oldest) < after / 2 {
            self.told = false;
            return Some(Turn::Recovered);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(5);
    const MS: Duration = Duration::from_millis(1);

    /// A peer of which something is seen every 100 ms.
    struct Rig {
        peers: SlowPeers,
        began: Instant,
        now: Instant,
    }

    impl Rig {
        fn new() -> Self {
            let began = Instant::now();
            Self { peers: SlowPeers::default(), began, now: began }
        }

        fn peer() -> PeerId {
            PeerId::from_bytes([7; 32])
        }

        fn seen(&self, oldest: Option<Instant>, level: Level) -> Look {
            let messages = usize::from(oldest.is_some());
            let backlog = Backlog { conn: None, messages, bytes: 100 * messages, oldest, level };
            Look { backlog, began: self.began, stalled: None, cut: false }
        }

        fn look(&mut self, look: &Look) -> Option<Turn> {
            self.peers.look(Self::peer(), look, self.now, AFTER)
        }

        /// What was told over so many looks at a queue whose oldest message is always so old.
        fn over(&mut self, looks: u32, age: Duration, level: Level) -> Vec<Turn> {
            let mut told = Vec::new();
            for _ in 0..looks {
                self.now += 100 * MS;
                let look = self.seen(Some(self.now - age), level);
                told.extend(self.look(&look));
            }
            told
        }
    }

    #[test]
    fn a_message_that_waits_too_long_is_told_once_and_the_end_once() {
        let mut rig = Rig::new();
        let first = rig.now;
        let mut told = Vec::new();
        for _ in 0..100 {
            rig.now += 100 * MS;
            let look = rig.seen(Some(first), Level::Low);
            told.extend(rig.look(&look).map(|turn| (rig.now - first, turn)));
        }
        assert_eq!(told, [(AFTER, Turn::Slow(AFTER))]);
        // It keeps up again, but only just: nothing is told, however long it goes on.
        assert_eq!(rig.over(100, AFTER - MS, Level::Low), []);
        assert_eq!(rig.over(100, AFTER + MS, Level::Low), []);
        assert_eq!(rig.over(100, AFTER / 4, Level::Low), [Turn::Recovered]);
        assert!(!rig.peers.has(&Rig::peer()), "nothing is kept of one that is well");
    }

    #[test]
    fn a_queue_that_stays_full_is_told_and_is_over_below_one_half() {
        let mut rig = Rig::new();
        assert_eq!(rig.over(50, MS, Level::High), []);
        // A moment below: it starts over.
        assert_eq!(rig.over(1, MS, Level::Middle), []);
        assert_eq!(rig.over(50, MS, Level::High), []);
        assert_eq!(rig.over(1, MS, Level::High), [Turn::Slow(MS)]);
        assert_eq!(rig.over(100, MS, Level::High), []);
        assert_eq!(rig.over(100, MS, Level::Middle), []);
        assert_eq!(rig.over(1, MS, Level::Low), [Turn::Recovered]);
        assert_eq!(rig.over(51, MS, Level::High), [Turn::Slow(MS)], "the next episode");
    }

    #[test]
    fn what_waited_for_the_connection_is_not_the_sessions_fault() {
        let mut rig = Rig::new();
        let long_ago = rig.now;
        rig.now += 100 * AFTER;
        rig.began = rig.now;
        let look = rig.seen(Some(long_ago), Level::High);
        assert_eq!(rig.look(&look), None);
        rig.now += AFTER;
        assert_eq!(rig.look(&look), Some(Turn::Slow(101 * AFTER)), "its whole age is told all the same");
    }

    #[test]
    fn an_episode_outlasts_the_session_and_is_over_on_the_next_one() {
        let mut rig = Rig::new();
        let look = Look { cut: true, ..rig.seen(Some(rig.now), Level::Low) };
        assert_eq!(rig.look(&look), Some(Turn::Slow(Duration::ZERO)), "before it is cut");
        rig.peers.away(&Rig::peer());
        rig.began = rig.now;
        assert_eq!(rig.over(100, 2 * AFTER, Level::Low), [], "told already, and they still wait");
        let empty = rig.seen(None, Level::Low);
        assert_eq!(rig.look(&empty), Some(Turn::Recovered));
        // One that was not told of leaves nothing behind.
        assert_eq!(rig.over(2, MS, Level::High), []);
        assert!(rig.peers.has(&Rig::peer()));
        rig.peers.away(&Rig::peer());
        assert!(!rig.peers.has(&Rig::peer()));
    }

    #[test]
    fn a_write_that_stands_still_is_slow_though_nothing_waits_behind_it_and_silence_alone_is_not() {
        let mut rig = Rig::new();
        let quiet = Look { cut: true, ..rig.seen(None, Level::Low) };
        assert_eq!(rig.look(&quiet), None, "nothing waits: it is only silent");
        let stalled = Look { stalled: Some(rig.now), ..rig.seen(None, Level::Low) };
        rig.now += AFTER - MS;
        assert_eq!(rig.look(&stalled), None);
        rig.now += MS;
        assert_eq!(rig.look(&stalled), Some(Turn::Slow(AFTER)));
        let empty = rig.seen(None, Level::Low);
        assert_eq!(rig.look(&empty), Some(Turn::Recovered));
    }
}
