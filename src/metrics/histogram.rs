//! How long something takes, as counts in buckets of a logarithmic scale.
//!
//! Owns: atomics. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: a duration counts in exactly one bucket; the number of durations is the sum of all buckets, so that the two
//! cannot disagree.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets with an upper bound: 1 us, 2 us, 4 us and so on to 67 s. One more takes what is longer.
const BOUNDED: usize = 27;

/// Counts durations.
#[derive(Debug, Default)]
pub(crate) struct Timer {
    buckets: [AtomicU64; BOUNDED + 1],
    /// Nanoseconds: they last for 584 years of waiting.
    sum: AtomicU64,
}

impl Timer {
    /// One more that took so long.
    pub(crate) fn record(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        if let Some(bucket) = self.buckets.get(bucket_of(nanos)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum.fetch_add(nanos, Ordering::Relaxed);
    }

    /// What it says now.
    pub(crate) fn snapshot(&self) -> Histogram {
        let buckets = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        Histogram { buckets, sum: Duration::from_nanos(self.sum.load(Ordering::Relaxed)) }
    }
}

/// The first bucket whose bound is not below it.
fn bucket_of(nanos: u64) -> usize {
    let micros = nanos.div_ceil(1_000).max(1);
    (micros.next_power_of_two().trailing_zeros() as usize).min(BOUNDED)
}

/// How often something took how long, of samples: which ones, says whoever has it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Histogram {
    /// How many took up to the bound of each bucket and longer than that of the one before: see [`Histogram::bounds`].
    /// The last has no bound.
    pub buckets: Vec<u64>,
    /// All durations together.
    pub sum: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; BOUNDED + 1], sum: Duration::ZERO }
    }
}

impl Histogram {
    /// The upper bounds of all buckets but the last, which has none: a microsecond, and twice as long each time.
    pub fn bounds() -> impl Iterator<Item = Duration> {
        (0..BOUNDED).map(|bucket| Duration::from_micros(1 << bucket))
    }

    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// A bound that this share of the durations, between 0 and 1, did not exceed: that of a bucket, so at most twice too
    /// long. `None`: nothing was counted, or it lies beyond the last bound.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let wanted = (share.clamp(0.0, 1.0) * self.count() as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        let reached = self.buckets.iter().map(|count| {
            seen += count;
            seen
        });
        reached.zip(Self::bounds()).find(|(seen, _)| *seen >= wanted).map(|(_, bound)| bound)
    }

    /// Adds what another one counted.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.buckets.iter_mut().zip(&other.buckets).for_each(|(count, more)| *count += more);
        self.sum += other.sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_counts_in_the_first_bucket_that_is_not_too_short() {
        let bounds: Vec<Duration> = Histogram::bounds().collect();
        assert_eq!((bounds[0], bounds[26]), (Duration::from_micros(1), Duration::from_micros(67_108_864)));
        assert_eq!((bucket_of(0), bucket_of(1_000), bucket_of(1_001), bucket_of(u64::MAX)), (0, 0, 1, BOUNDED));
        for (bucket, bound) in bounds.into_iter().enumerate() {
            let nanos = bound.as_nanos() as u64;
            assert_eq!((bucket_of(nanos), bucket_of(nanos + 1)), (bucket, bucket + 1));
        }
    }

    #[test]
    fn what_was_recorded_is_all_there_and_shares_lie_below_their_bounds() {
        let timer = Timer::default();
        assert_eq!(timer.snapshot(), Histogram::default());
        assert_eq!(timer.snapshot().quantile(0.5), None);
        for micros in [1, 3, 3, 100] {
            timer.record(Duration::from_micros(micros));
        }
        let mut histogram = timer.snapshot();
        assert_eq!((histogram.count(), histogram.sum), (4, Duration::from_micros(107)));
        let at = |share| histogram.quantile(share).map(|bound| bound.as_micros());
        assert_eq!([at(0.0), at(0.25), at(0.5), at(0.75), at(1.0)], [1, 1, 4, 4, 128].map(Some));
        histogram.merge(&timer.snapshot());
        assert_eq!((histogram.count(), histogram.sum), (8, Duration::from_micros(214)));
        timer.record(Duration::from_secs(1_000));
        assert_eq!((timer.snapshot().quantile(1.0), timer.snapshot().count()), (None, 5));
    }
}
