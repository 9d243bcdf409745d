//! When to try an unreachable peer again.
//!
//! Owns: the state of one peer's series of delays. Threads: whichever owns it (`supervisor`). Locks: none.
//! Blocks on: nothing; whoever waits does so on a channel that ends the wait at shutdown.
//! Upholds: there is always a next delay, never longer than the cap; the series starts over only after a connection
//! that held; time and randomness are arguments.
//!
//! The series implement the `Backoff` trait of the `backoff` crate. Its retry loop sleeps where nothing can wake it,
//! and its own exponential series reads the clock, draws its own random numbers and by default stops after 15 minutes:
//! neither is used.

use std::fmt;
use std::time::{Duration, Instant};

use ::backoff::backoff::Backoff;

use crate::config::{self, BackoffPolicy};

/// No series is still below its cap after so many steps.
const SERIES_MOST: u32 = 64;

/// The delays between attempts to reach one peer.
pub(crate) struct ReconnectPolicy {
    series: Box<dyn Backoff + Send>,
    base: Duration,
    cap: Duration,
    /// The share of each delay that is random, 0 to 1.
    jitter: f64,
    stable_after: Duration,
    /// Attempts since the series started.
    attempts: u32,
    connected_at: Option<Instant>,
}

impl ReconnectPolicy {
    /// The policy that the configuration asks for.
    pub(crate) fn new(settings: &config::Backoff, stable_after: Duration) -> Self {
        let (base, cap) = (settings.base, settings.cap);
        let series: Box<dyn Backoff + Send> = match settings.policy {
            BackoffPolicy::Fibonacci => Box::new(Fibonacci::new(base, cap)),
            BackoffPolicy::Exponential => Box::new(Exponential::new(base, cap)),
        };
        Self::with_series(series, settings, stable_after)
    }

    /// A policy of any series; where the series stops, the cap goes on.
    fn with_series(series: Box<dyn Backoff + Send>, settings: &config::Backoff, stable_after: Duration) -> Self {
        let config::Backoff { base, cap, jitter, .. } = *settings;
        Self { series, base, cap, jitter, stable_after, attempts: 0, connected_at: None }
    }

    /// What the configuration asks for now. The series goes on where it is: after as many attempts.
    pub(crate) fn change(&mut self, settings: &config::Backoff, stable_after: Duration) {
        let mut new = Self::new(settings, stable_after);
        // Beyond this the delay is the cap of either series, whose base is a millisecond and whose cap a day at the most.
        for _ in 0..self.attempts.min(SERIES_MOST) {
            let _ = new.series.next_backoff();
        }
        (new.attempts, new.connected_at) = (self.attempts, self.connected_at);
        *self = new;
    }

    /// How long to wait before the next attempt.
    ///
    /// The first one of a series comes at a random moment of `base`, so that nodes which lost the same peer together
    /// do not come back together. Of the later ones the share `jitter` is random, downward: the cap is never exceeded.
    pub(crate) fn next_delay(&mut self, rng: &mut fastrand::Rng) -> Duration {
        let step = self.series.next_backoff().unwrap_or(self.cap).min(self.cap);
        let delay = match self.attempts {
            0 => self.base.min(self.cap).mul_f64(rng.f64()),
            _ => step.mul_f64(1.0 - self.jitter * rng.f64()),
        };
        self.attempts = self.attempts.saturating_add(1);
        delay
    }

    /// A session with the peer began.
    pub(crate) fn connected(&mut self, now: Instant) {
        self.connected_at = Some(now);
    }

    /// The session ended: the series starts over if it had held, else it goes on where it was.
    pub(crate) fn lost(&mut self, now: Instant) {
        let held = self.connected_at.take().map(|since| now.saturating_duration_since(since));
        if held.is_some_and(|held| held >= self.stable_after) {
            self.series.reset();
            self.attempts = 0;
        }
    }

    /// Attempts since the series started.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }
}

impl fmt::Debug for ReconnectPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReconnectPolicy")
            .field("base", &self.base)
            .field("cap", &self.cap)
            .field("attempts", &self.attempts)
            .field("connected_at", &self.connected_at)
            .finish_non_exhaustive()
    }
}

/// 1, 1, 2, 3, 5, 8 .. times `base`, at most `cap`.
#[derive(Debug)]
struct Fibonacci {
    base: Duration,
    cap: Duration,
    current: Duration,
    next: Duration,
}

impl Fibonacci {
    fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, current: base, next: base }
    }
}

impl Backoff for Fibonacci {
    fn reset(&mut self) {
        (self.current, self.next) = (self.base, self.base);
    }

    fn next_backoff(&mut self) -> Option<Duration> {
        let delay = self.current.min(self.cap);
        // Capped before they are added, so that the sum stays small however often this is called.
        (self.current, self.next) = (self.next, delay.saturating_add(self.next.min(self.cap)));
        Some(delay)
    }
}

/// 1, 2, 4, 8 .. times `base`, at most `cap`.
#[derive(Debug)]
struct Exponential {
    base: Duration,
    cap: Duration,
    current: Duration,
}

impl Exponential {
    fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, current: base }
    }
}

impl Backoff for Exponential {
    fn reset(&mut self) {
        self.current = self.base;
    }

    fn next_backoff(&mut self) -> Option<Duration> {
        let delay = self.current.min(self.cap);
        self.current = delay.saturating_mul(2);
        Some(delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::backoff::ExponentialBackoff;

    const STABLE: Duration = Duration::from_secs(10);

    fn settings(policy: BackoffPolicy) -> config::Backoff {
        let mut settings = config::Backoff::default();
        (settings.policy, settings.base, settings.cap) = (policy, ms(100), ms(2_000));
        settings
    }

    fn policy() -> ReconnectPolicy {
        ReconnectPolicy::new(&settings(BackoffPolicy::Fibonacci), STABLE)
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn take(series: &mut dyn Backoff, n: usize) -> Vec<u128> {
        (0..n).map(|_| series.next_backoff().unwrap().as_millis()).collect()
    }

    #[test]
    fn each_delay_of_the_fibonacci_series_is_the_sum_of_the_two_before_up_to_the_cap() {
        let mut series = Fibonacci::new(ms(100), ms(2_000));
        assert_eq!(take(&mut series, 9), [100, 100, 200, 300, 500, 800, 1_300, 2_000, 2_000]);
        series.reset();
        assert_eq!(take(&mut series, 3), [100, 100, 200]);
    }

    #[test]
    fn each_delay_of_the_exponential_series_is_twice_the_one_before_up_to_the_cap() {
        let mut series = Exponential::new(ms(100), ms(3_000));
        assert_eq!(take(&mut series, 7), [100, 200, 400, 800, 1_600, 3_000, 3_000]);
        series.reset();
        assert_eq!(take(&mut series, 2), [100, 200]);
    }

    #[test]
    fn no_series_overflows_however_large_its_cap_and_however_long_it_runs() {
        for mut series in [
            Box::new(Fibonacci::new(ms(100), Duration::MAX)) as Box<dyn Backoff>,
            Box::new(Exponential::new(ms(100), Duration::MAX)),
        ] {
            let last = (0..10_000).filter_map(|_| series.next_backoff()).last();
            assert_eq!(last, Some(Duration::MAX));
        }
    }

    #[test]
    fn the_first_retry_is_spread_over_the_base_delay() {
        let mut rng = fastrand::Rng::with_seed(1);
        let first: Vec<_> = (0..1_000).map(|_| policy().next_delay(&mut rng)).collect();
        assert!(first.iter().all(|delay| *delay <= ms(100)));
        for part in 0..10 {
            let here = first.iter().filter(|delay| (ms(part * 10)..ms(part * 10 + 10)).contains(*delay)).count();
            assert!((50..=200).contains(&here), "{here} of 1000 in tenth {part}");
        }
    }

    #[test]
    fn jitter_takes_away_up_to_its_share_of_a_delay_and_never_adds() {
        let mut rng = fastrand::Rng::with_seed(2);
        let (mut shortest, mut longest) = (f64::MAX, 0.0f64);
        for _ in 0..500 {
            let mut policy = policy();
            policy.next_delay(&mut rng);
            for step in [100, 200, 300, 500, 800, 1_300, 2_000, 2_000] {
                let share = policy.next_delay(&mut rng).div_duration_f64(ms(step));
                assert!((0.5..=1.0).contains(&share), "{share} of {step} ms");
                (shortest, longest) = (shortest.min(share), longest.max(share));
            }
        }
        assert!(shortest < 0.51 && longest > 0.99, "the whole range is used: {shortest} to {longest}");
    }

    #[test]
    fn without_jitter_the_delays_after_the_first_are_the_series() {
        let mut settings = settings(BackoffPolicy::Exponential);
        settings.jitter = 0.0;
        let mut policy = ReconnectPolicy::new(&settings, STABLE);
        let mut rng = fastrand::Rng::with_seed(3);
        policy.next_delay(&mut rng);
        let delays: Vec<_> = (0..5).map(|_| policy.next_delay(&mut rng)).collect();
        assert_eq!(delays, [ms(200), ms(400), ms(800), ms(1_600), ms(2_000)]);
    }

    #[test]
    fn two_nodes_with_different_randomness_do_not_retry_together() {
        let delays = |seed| {
            let (mut policy, mut rng) = (policy(), fastrand::Rng::with_seed(seed));
            (0..20).map(|_| policy.next_delay(&mut rng)).collect::<Vec<_>>()
        };
        assert!(delays(4).iter().zip(delays(5)).all(|(a, b)| *a != b));
        assert_eq!(delays(4), delays(4), "the randomness is an argument");
    }

    #[test]
    fn a_changed_policy_goes_on_where_the_series_is() {
        let (mut policy, mut rng) = (policy(), fastrand::Rng::with_seed(7));
        (0..4).for_each(|_| assert!(policy.next_delay(&mut rng) <= ms(2_000)));
        let mut doubled = settings(BackoffPolicy::Fibonacci);
        (doubled.base, doubled.jitter) = (ms(200), 0.0);
        policy.change(&doubled, STABLE);
        assert_eq!((policy.attempts(), policy.next_delay(&mut rng)), (4, ms(1_000)), "the fifth: five times the base");
        doubled.cap = ms(700);
        policy.change(&doubled, STABLE);
        assert_eq!(policy.next_delay(&mut rng), ms(700));
        // After ever so many attempts it is at its cap.
        (0..100_000).for_each(|_| assert!(policy.next_delay(&mut rng) <= ms(2_000)));
        (doubled.base, doubled.cap) = (ms(1), Duration::from_secs(24 * 3600));
        policy.change(&doubled, STABLE);
        assert_eq!(policy.next_delay(&mut rng), doubled.cap);
    }

    #[test]
    fn the_series_starts_over_only_after_a_connection_that_held() {
        let mut rng = fastrand::Rng::with_seed(6);
        let mut policy = policy();
        let start = Instant::now();
        for _ in 0..8 {
            policy.next_delay(&mut rng);
        }
        assert_eq!(policy.attempts(), 8);

        policy.lost(start);
        assert_eq!(policy.attempts(), 8, "it never was connected");

        policy.connected(start);
        policy.lost(start + STABLE - ms(1));
        assert_eq!(policy.attempts(), 8, "it did not hold");
        assert!(policy.next_delay(&mut rng) >= ms(1_000), "the delay goes on where it was");

        policy.connected(start);
        policy.lost(start + STABLE);
        assert_eq!(policy.attempts(), 0);
        assert!(policy.next_delay(&mut rng) <= ms(100), "the delay starts over");

        policy.lost(start + 10 * STABLE);
        assert_eq!(policy.attempts(), 1, "one connection counts once");
    }

    #[test]
    fn attempts_go_on_after_the_quarter_of_an_hour_at_which_the_crate_stops() {
        for kind in [BackoffPolicy::Fibonacci, BackoffPolicy::Exponential] {
            let (mut policy, mut rng) = (ReconnectPolicy::new(&settings(kind), STABLE), fastrand::Rng::with_seed(7));
            let mut waited = Duration::ZERO;
            let mut attempts = 0;
            while waited < Duration::from_secs(24 * 60 * 60) {
                waited += policy.next_delay(&mut rng);
                attempts += 1;
            }
            // A day of delays of 1 to 2 s.
            assert!((43_200..=86_500).contains(&attempts), "{attempts} attempts");
        }
    }

    #[test]
    fn where_a_series_stops_the_cap_goes_on() {
        let ended = ExponentialBackoff { max_elapsed_time: Some(Duration::ZERO), ..Default::default() };
        let began = ended.start_time;
        while began.elapsed().is_zero() {
            std::hint::spin_loop();
        }
        let mut policy = ReconnectPolicy::with_series(Box::new(ended), &settings(BackoffPolicy::Exponential), STABLE);
        assert_eq!(policy.series.next_backoff(), None, "the crate's series has stopped");
        let mut rng = fastrand::Rng::with_seed(8);
        policy.next_delay(&mut rng);
        for _ in 0..100 {
            assert!((ms(1_000)..=ms(2_000)).contains(&policy.next_delay(&mut rng)));
        }
    }
}
