//! Ours against raw, and raw against raw, in turns.
//!
//! Owns: the order of the runs and the bar that shows them. Threads: the measuring thread.
//! Locks: none. Blocks on: nothing of its own.
//! Upholds: each pair runs its two sides next to each other, and the order changes from pair to pair.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::failure::{Context, Failure};

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Threadwire.
    Ours,
    /// The baseline that ours is compared with.
    Raw,
    /// The baseline once more: compared with itself it shows the noise of the machine.
    RawAgain,
}

/// The three runs of one pair.
#[derive(Debug)]
pub struct Pair<T> {
    /// Threadwire.
    pub ours: T,
    /// The baseline, next to both others.
    pub raw: T,
    /// The baseline once more.
    pub again: T,
}

/// Runs so many pairs.
///
/// # Errors
/// The first failure of a run.
pub fn run<T>(pairs: usize, mut side: impl FnMut(Side) -> Result<T, Failure>) -> Result<Vec<Pair<T>>, Failure> {
    let bar = bar(3 * pairs as u64)?;
    let mut turn = |which| {
        let result = side(which);
        bar.inc(1);
        result
    };
    let done = (0..pairs)
        .map(|pair| {
            if pair % 2 == 0 {
                let (ours, raw) = (turn(Side::Ours)?, turn(Side::Raw)?);
                Ok(Pair { ours, raw, again: turn(Side::RawAgain)? })
            } else {
                let (again, raw) = (turn(Side::RawAgain)?, turn(Side::Raw)?);
                Ok(Pair { ours: turn(Side::Ours)?, raw, again })
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
        let pairs = run(2, |side| {
            turns.push(side);
            Ok(turns.len())
        });
        assert_eq!(turns, [Side::Ours, Side::Raw, Side::RawAgain, Side::RawAgain, Side::Raw, Side::Ours]);
        let sides: Vec<_> = pairs.unwrap().iter().map(|pair| [pair.ours, pair.raw, pair.again]).collect();
        assert_eq!(sides, [[1, 2, 3], [6, 5, 4]]);
    }

    #[test]
    fn the_first_failure_ends_it() {
        let mut turns = 0;
        let failed = run::<()>(5, |_| {
            turns += 1;
            Err(Failure::new("no"))
        });
        assert_eq!((failed.unwrap_err().to_string().as_str(), turns), ("no", 1));
    }
}
