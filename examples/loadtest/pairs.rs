//! Ours against raw, over TLS too if that is asked for, and raw against raw, in turns.
//!
//! Owns: the order of the runs and the bar that shows them. Threads: the measuring thread.
//! Locks: none. Blocks on: nothing of its own.
//! Upholds: each pair runs its two sides next to each other, and the order changes from pair to pair.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::failure::{Context, Failure};
use crate::stats::spread;

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Threadwire over plain TCP.
    Ours,
    /// Threadwire over TLS.
    Secure,
    /// The baseline that ours is compared with.
    Raw,
    /// The baseline once more: compared with itself it shows the noise of the machine.
    RawAgain,
}

/// The runs of one pair.
#[derive(Debug)]
pub struct Pair<T> {
    /// Threadwire over plain TCP.
    pub ours: T,
    /// Threadwire over TLS, if that is measured.
    pub secure: Option<T>,
    /// The baseline, next to both others.
    pub raw: T,
    /// The baseline once more.
    pub again: T,
}

/// For the report: ours to the baseline, and the baseline to itself.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ratios {
    ratio: f64,
    ratio_q1: f64,
    ratio_q3: f64,
    noise: f64,
    noise_q1: f64,
    noise_q3: f64,
}

impl Ratios {
    /// Of a figure of each run; `None` of no pairs.
    pub fn of<T>(pairs: &[Pair<T>], figure: impl Fn(&T) -> f64) -> Option<Self> {
        let to_raw = |pick: fn(&Pair<T>) -> &T| spread(pairs.iter().map(|pair| figure(pick(pair)) / figure(&pair.raw)));
        let (ratio, noise) = (to_raw(|pair| &pair.ours)?, to_raw(|pair| &pair.again)?);
        Some(Self {
            ratio: ratio.median,
            ratio_q1: ratio.q1,
            ratio_q3: ratio.q3,
            noise: noise.median,
            noise_q1: noise.q1,
            noise_q3: noise.q3,
        })
    }

    /// For people; `raw` is what the baseline is called.
    pub fn line(&self, raw: &str) -> String {
        let Self { ratio, ratio_q1, ratio_q3, noise, noise_q1, noise_q3 } = self;
        format!(
            "{ratio:.3} (quartiles {ratio_q1:.3} to {ratio_q3:.3}); {raw} {noise:.3} ({noise_q1:.3} to {noise_q3:.3})"
        )
    }
}

/// Runs so many pairs.
///
/// # Errors
/// The first failure of a run.
pub fn run<T>(
    pairs: usize,
    secure: bool,
    mut side: impl FnMut(Side) -> Result<T, Failure>,
) -> Result<Vec<Pair<T>>, Failure> {
    let bar = bar((3 + u64::from(secure)) * pairs as u64)?;
    let mut turn = |which| {
        let result = side(which);
        bar.inc(1);
        result
    };
    let done = (0..pairs)
        .map(|pair| {
            if pair % 2 == 0 {
                let (ours, raw) = (turn(Side::Ours)?, turn(Side::Raw)?);
                let secure = secure.then(|| turn(Side::Secure)).transpose()?;
                Ok(Pair { ours, secure, raw, again: turn(Side::RawAgain)? })
            } else {
                let again = turn(Side::RawAgain)?;
                let secure = secure.then(|| turn(Side::Secure)).transpose()?;
                let (raw, ours) = (turn(Side::Raw)?, turn(Side::Ours)?);
                Ok(Pair { ours, secure, raw, again })
            }
        })
        .collect();
    bar.finish_and_clear();
    done
}

/// A progress bar on a terminal; nothing when the error output is piped.
fn bar(length: u64) -> Result<ProgressBar, Failure> {
    let target =
        if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} runs, {eta} left").context("the progress bar")?;
    Ok(ProgressBar::with_draw_target(Some(length), target).with_style(style))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_lies_between_the_others_and_the_order_turns_around() {
        let mut turns = Vec::new();
        let pairs = run(2, false, |side| {
            turns.push(side);
            Ok(turns.len())
        });
        assert_eq!(turns, [Side::Ours, Side::Raw, Side::RawAgain, Side::RawAgain, Side::Raw, Side::Ours]);
        turns.clear();
        run(2, true, |side| {
            turns.push(side);
            Ok(())
        })
        .unwrap();
        let there = [Side::Ours, Side::Raw, Side::Secure, Side::RawAgain];
        let back = [Side::RawAgain, Side::Secure, Side::Raw, Side::Ours];
        assert_eq!(turns, [there, back].concat());
        let sides: Vec<_> = pairs.unwrap().iter().map(|pair| [pair.ours, pair.raw, pair.again]).collect();
        assert_eq!(sides, [[1, 2, 3], [6, 5, 4]]);
    }

    #[test]
    fn the_first_failure_ends_it() {
        let mut turns = 0;
        let failed = run::<()>(5, false, |_| {
            turns += 1;
            Err(Failure::new("no"))
        });
        assert_eq!((failed.unwrap_err().to_string().as_str(), turns), ("no", 1));
    }
}
