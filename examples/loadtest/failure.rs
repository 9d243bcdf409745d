//! What went wrong in a measurement, in words that say what was being done.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: no error loses its cause on the way up.

use std::fmt;

/// One failed step: what was tried and what stood in the way.
#[derive(Debug)]
pub struct Failure(String);

impl Failure {
    /// A failure described by `what`.
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

/// Puts in front of an error what was being done.
pub trait Context<T> {
    /// Turns any error into a [`Failure`] that starts with `doing`.
    ///
    /// # Errors
    /// The same as before, described.
    fn context(self, doing: impl fmt::Display) -> Result<T, Failure>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn context(self, doing: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|cause| Failure(format!("{doing}: {cause}")))
    }
}
