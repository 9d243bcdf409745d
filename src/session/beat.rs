//! The round trip, learnt from heartbeats that nobody has to answer.
//!
//! Owns: what was last heard of the other side's clock, and the round trip it gave. Threads: `tx-<peer>` says beats,
//! `rx-<peer>` hears them. Locks: none itself; a session keeps it behind a leaf lock. Blocks on: nothing.
//! Upholds: what the wire says is believed only as far as it fits this side's own clock; nothing overflows.
//!
//! Each beat carries the sender's clock, and repeats the clock of the last beat heard with the time since, as the sender
//! reports of RTCP do (RFC 3550, section 6.4.1):
//!
//! ```text
//!   A  clock a ----------------.                        .---> at a'
//!   B             heard a at b1 '-- waits b2 - b1 --> {heard a, delay b2 - b1}
//!
//!   round trip = a' - a - (b2 - b1)
//! ```

use std::time::{Duration, Instant};

use crate::wire::Beat;

/// The clocks of one session: both sides' count microseconds from 1, and 0 is no time at all.
#[derive(Debug)]
pub(super) struct BeatClock {
    start: Instant,
    /// The other side's clock in its last beat, and ours when it came.
    heard: Option<(u64, u64)>,
    /// The last round trip measured, in microseconds.
    rtt: Option<u64>,
}

impl BeatClock {
    /// A clock that starts now.
    pub(super) fn new(now: Instant) -> Self {
        Self { start: now, heard: None, rtt: None }
    }

    fn at(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_micros()).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// What the next beat says.
    pub(super) fn say(&self, now: Instant, busy: bool) -> Beat {
        let clock = self.at(now);
        let (heard, delay) = self.heard.map_or((0, 0), |(heard, came)| (heard, clock.saturating_sub(came)));
        Beat { busy, clock, heard, delay }
    }

    /// A beat came.
    pub(super) fn hear(&mut self, now: Instant, beat: Beat) {
        let clock = self.at(now);
        if beat.clock != 0 {
            self.heard = Some((beat.clock, clock));
        }
        // Ours of a time to come, or a wait longer than all of it: not what we said, or not true.
        if beat.heard != 0
            && let Some(whole) = clock.checked_sub(beat.heard)
            && let Some(rtt) = whole.checked_sub(beat.delay)
        {
            self.rtt = Some(rtt);
        }
    }

    /// The last round trip measured.
    pub(super) fn rtt(&self) -> Option<Duration> {
        self.rtt.map(Duration::from_micros)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn both_sides_learn_the_round_trip_without_an_answer() {
        let start = Instant::now();
        // The sides' clocks began an hour apart; the way there takes 10 ms, the way back 30.
        let (mut a, mut b) = (BeatClock::new(start), BeatClock::new(start + 3_600_000 * MS));
        let at = |ms: u32| start + 3_600_000 * MS + ms * MS;
        b.hear(at(10), a.say(at(0), false));
        assert_eq!((a.rtt(), b.rtt()), (None, None));
        a.hear(at(5_030), b.say(at(5_000), true));
        assert_eq!((a.rtt(), b.rtt()), (Some(40 * MS), None));
        b.hear(at(9_010), a.say(at(9_000), false));
        assert_eq!((a.rtt(), b.rtt()), (Some(40 * MS), Some(40 * MS)));
    }

    #[test]
    fn a_beat_that_cannot_be_true_changes_nothing() {
        let start = Instant::now();
        let mut clock = BeatClock::new(start);
        let now = start + 100 * MS;
        let beat = |heard, delay| Beat { busy: false, clock: 0, heard, delay };
        for lie in [beat(u64::MAX, 0), beat(200_000, 0), beat(1, u64::MAX), beat(50_000, 60_000), beat(0, 7)] {
            clock.hear(now, lie);
            assert_eq!(clock.rtt(), None, "{lie:?}");
        }
        // An old peer's: no clock is said, and none is told back.
        assert_eq!(clock.say(now, false), Beat { busy: false, clock: 100_001, heard: 0, delay: 0 });
        // The extremes that add up are told back without overflow.
        clock.hear(now, Beat { busy: true, clock: u64::MAX, heard: 1, delay: 100_000 });
        assert_eq!(clock.rtt(), Some(Duration::ZERO));
        assert_eq!(clock.say(now + MS, false).heard, u64::MAX);
    }
}
