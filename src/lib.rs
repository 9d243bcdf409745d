//! Peer-to-peer messaging for synchronous Rust: two plain threads per peer, no async runtime.

// In rank order: a file imports only lower ranks (tests/layering.rs).
pub mod ident;
mod sync;
mod threads;

pub mod error;

pub mod config;

#[cfg_attr(not(feature = "internal"), allow(dead_code, reason = "the wire is whole; not every part has a caller yet"))]
pub mod wire;

pub mod transport;

mod connections;
