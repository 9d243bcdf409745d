//! Harm on purpose, in a receiving application behind the library: the proof that the checker would see it.
//!
//! Owns: the wish, until it is fulfilled. Threads: any handler's. Locks: none itself. Blocks on: nothing.
//! Upholds: exactly one reliable message is harmed, or two neighbours of one stream are exchanged.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A kind of harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Sabotage {
    /// One message is forgotten.
    Drop,
    /// One message is taken twice.
    Dup,
    /// Two neighbouring messages of a stream are exchanged.
    Swap,
    /// One bit of one message is flipped.
    Corrupt,
}
