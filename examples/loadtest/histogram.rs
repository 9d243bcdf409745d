//! Round-trip times, three digits exact.
//!
//! Owns: the counts. Threads: one at a time. Locks: none. Blocks on: nothing.
//! Upholds: every round trip is in it; one that took longer than the scale counts as its end.

use std::time::Duration;

use crate::failure::{Context, Failure};

/// The longest time told apart.
const LONGEST: Duration = Duration::from_secs(60);

/// How often each time occurred.
#[derive(Debug, Clone)]
pub struct Histogram(hdrhistogram::Histogram<u64>);

impl Histogram {
    /// An empty one.
    ///
    /// # Errors
    /// None in practice; the underlying crate checks the bounds.
    pub fn new() -> Result<Self, Failure> {
        hdrhistogram::Histogram::new_with_bounds(1, LONGEST.as_nanos() as u64, 3)
            .context("making a histogram")
            .map(Self)
    }

    /// Counts one round trip.
    #[inline]
    pub fn record(&mut self, time: Duration) {
        self.0.saturating_record(time.as_nanos() as u64);
    }

    /// Adds the counts of another.
    ///
    /// # Errors
    /// None in practice: all have the same bounds.
    pub fn add(&mut self, other: &Self) -> Result<(), Failure> {
        self.0.add(&other.0).context("adding histograms")
    }

    /// Round trips counted.
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// The time, in microseconds, that the share `q` of all round trips did not exceed.
    pub fn micros(&self, q: f64) -> f64 {
        self.0.value_at_quantile(q) as f64 / 1e3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_three_digits() {
        let mut times = Histogram::new().unwrap();
        (1..=1000).for_each(|micros| times.record(Duration::from_micros(micros)));
        assert_eq!(times.len(), 1000);
        for (q, exact) in [(0.5, 500.0), (0.99, 990.0), (0.999, 999.0)] {
            assert!((times.micros(q) / exact - 1.0).abs() < 2e-3, "{q}: {}", times.micros(q));
        }
    }

    #[test]
    fn a_time_beyond_the_scale_is_not_dropped() {
        let mut times = Histogram::new().unwrap();
        times.record(2 * LONGEST);
        assert_eq!(times.len(), 1);
    }

    #[test]
    fn sums_hold_the_round_trips_of_both() {
        let (mut a, mut b) = (Histogram::new().unwrap(), Histogram::new().unwrap());
        a.record(Duration::from_micros(10));
        b.record(Duration::from_micros(30));
        a.add(&b).unwrap();
        assert_eq!(a.len(), 2);
        assert!(a.micros(1.0) > 29.0);
    }
}
