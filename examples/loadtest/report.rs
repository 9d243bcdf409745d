//! Results for people and for programs, on standard output.
//!
//! Owns: nothing. Threads: the measuring thread. Locks: standard output's. Blocks on: writing there.
//! Upholds: one line of JSON and nothing else for programs.

use std::io::Write;

use serde::Serialize;

use crate::failure::{Context, Failure};

/// A report that judges its own run.
pub trait Judged: Serialize {
    /// What did not hold; the run is ok if nothing did not.
    fn reasons(&self) -> &[String];
    /// For people.
    fn lines(&self) -> Vec<String>;
}

/// Ends a workload that judges itself: says what it found, or why it could not, to a program on one line of JSON.
/// True when everything held.
///
/// # Errors
/// `found` is one, or standard output is closed.
pub fn judged<R: Judged>(workload: &str, as_json: bool, found: Result<R, Failure>) -> Result<bool, Failure> {
    match found {
        Ok(report) => {
            report.reasons().iter().for_each(|reason| eprintln!("loadtest: {reason}"));
            if as_json {
                json(&report)?
            } else {
                lines(&report.lines())?
            }
            Ok(report.reasons().is_empty())
        }
        Err(failure) => {
            if as_json {
                json(&serde_json::json!({ "workload": workload, "ok": false, "error": failure.to_string() }))?;
            }
            Err(failure)
        }
    }
}

/// Writes one line of JSON.
///
/// # Errors
/// Standard output is closed.
pub fn json(report: &impl Serialize) -> Result<(), Failure> {
    lines(&[serde_json::to_string(report).context("encoding the report")?])
}

/// Writes lines.
///
/// # Errors
/// Standard output is closed.
pub fn lines(lines: &[String]) -> Result<(), Failure> {
    let mut output = std::io::stdout().lock();
    lines.iter().try_for_each(|line| writeln!(output, "{line}")).context("writing the report")
}

/// A figure with three digits and a decimal prefix.
pub fn scaled(figure: f64) -> String {
    let (figure, unit) = [(1e9, " G"), (1e6, " M"), (1e3, " k")]
        .into_iter()
        .find(|(scale, _)| figure >= *scale)
        .map_or((figure, ""), |(scale, unit)| (figure / scale, unit));
    let digits = if figure < 10.0 { 2 } else { usize::from(figure < 100.0) };
    format!("{figure:.digits$}{unit}")
}

/// A size in bytes, in binary units where it is a whole number of them.
pub fn bytes(size: usize) -> String {
    match size {
        _ if size >= 1 << 20 && size.is_multiple_of(1 << 20) => format!("{} MiB", size >> 20),
        _ if size >= 1 << 10 && size.is_multiple_of(1 << 10) => format!("{} KiB", size >> 10),
        _ => format!("{size} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_keep_three_digits() {
        for (figure, text) in
            [(0.5, "0.50"), (999.0, "999"), (1234.0, "1.23 k"), (33_400_000.0, "33.4 M"), (2.61e9, "2.61 G")]
        {
            assert_eq!(scaled(figure), text);
        }
    }

    #[test]
    fn only_whole_units_are_shortened() {
        for (size, text) in [(64, "64 B"), (1024, "1 KiB"), (65_540, "65540 B"), (1 << 20, "1 MiB")] {
            assert_eq!(bytes(size), text);
        }
    }
}
