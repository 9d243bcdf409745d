//! Whether broadcasts follow one another so quickly that their messages should wait for company.
//!
//! Owns: when the last broadcasts were, as a plain value; time is an argument. Threads: whoever holds the caster lock
//! around it. Locks: none itself. Blocks on: nothing.
//! Upholds: a broadcast alone, or with few others, waits for nothing; in a flood a message waits no longer than [`MOST`].

use std::time::{Duration, Instant};

/// Broadcasts that follow one another more quickly than in this time for each peer are a flood: to write one message to
/// one peer takes several times as long, so that its writes could not keep up.
const QUICK: Duration = Duration::from_micros(2);
/// So many quick broadcasts in a row are not a flood yet.
const ROW: u32 = 16;
/// How long a message waits in a flood, for each peer of the broadcast: a write, the wake-ups of both its ends, and an
/// acknowledgement.
const COMPANY: Duration = Duration::from_micros(50);
/// How long at most, however many there are: no longer than an acknowledgement waits by default.
const MOST: Duration = Duration::from_millis(5);

/// The pace of a node's broadcasts.
#[derive(Debug, Default)]
pub(super) struct Pace {
    last: Option<Instant>,
    row: u32,
}

impl Pace {
    /// There is a broadcast now, to so many peers at most: how long its messages may wait for company.
    pub(super) fn next(&mut self, now: Instant, peers: usize) -> Duration {
        let peers = u32::try_from(peers).unwrap_or(u32::MAX);
        let gap = self.last.map(|last| now.saturating_duration_since(last));
        self.last = Some(now);
        let quick = gap.is_some_and(|gap| gap < QUICK.saturating_mul(peers));
        self.row = if quick { self.row.saturating_add(1) } else { 0 };
        if self.row > ROW { COMPANY.saturating_mul(peers).min(MOST) } else { Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_wait_for_company_in_a_flood_only_and_not_long() {
        let mut pace = Pace::default();
        let mut now = Instant::now();
        let mut after = |micros, peers| {
            now += Duration::from_micros(micros);
            pace.next(now, peers)
        };
        let waits: Vec<Duration> = (0..20).map(|_| after(20, 40)).collect();
        assert!(waits[..17].iter().all(Duration::is_zero) && waits[17..].iter().all(|wait| *wait == 40 * COMPANY));
        assert_eq!(after(20, 4_000), MOST);
        assert_eq!(after(80, 40), Duration::ZERO, "not quick for 40 peers");
        assert!((0..20).all(|_| after(1_000, 40).is_zero()), "a thousand a second are no flood");
        assert!((0..20).all(|_| after(3, 1).is_zero()), "one peer keeps up by itself");
    }
}
