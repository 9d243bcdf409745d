//! Peer-to-peer messaging for synchronous Rust: two plain threads per peer, no async runtime.

// In rank order: a file imports only lower ranks (tests/layering.rs).
pub mod ident;
pub mod metrics;
mod sync;
mod threads;

pub mod config;
pub mod error;

#[cfg_attr(not(feature = "internal"), allow(dead_code, reason = "the wire is whole; not every part has a caller yet"))]
pub mod wire;

pub mod transport;

pub mod handshake;

mod link;

mod session;

mod registry;

mod connections;

mod node;

pub use config::Config;
pub use error::SendError;
pub use ident::PeerId;
pub use node::{Event, Node, NodeBuilder, PeerInfo, ShutdownReport};
pub use session::{Batch, LinkStats, Message, PeerHandle};
