#![doc = include_str!("../README.md")]
//!
//! # Where the parts come from
//!
//! Threadwire grew from five documents of other systems. What they name, and where it is here:
//!
//! | there | here | deviation, and why |
//! |---|---|---|
//! | `ConnectionsManager`, `InboundTcpConnect`, `OutboundTcpConnect` | [`Node::connect`], [`Node::add_peer`]; the acceptor thread | handles instead of a global registry of actors |
//! | server address `127.0.0.1:50005` | [`Config::default`] | |
//! | session: `local_addr`, `remote_addr`, `session_type`, status | [`PeerInfo`] of [`Node::peers`] | beside it its round trip, its queue and its next dial |
//! | `NetMetrics`, errors and delivery counts | [`metrics::MetricsSnapshot`] | always on, by cause |
//! | `shutdown_rx` of every part | [`NodeBuilder::shutdown_signal`], [`Node::shutdown`] | one shutdown, by a deadline, with a report |
//! | "if an error is returned, do nothing but log it" | [`Event::DialFailed`], [`metrics::MetricsSnapshot`] | a failed dial is an event and a count |
//! | `Session`, `Register`, `Unregister`, `SessionType` | a session is one attachment of a link; [`ident::SessionKind`] | the registry counts from accept to end by a guard |
//! | handshake timeout, `P2PCodec` | [`handshake`], [`wire`] | one deadline for the whole handshake |
//! | `connect_to_peer`, Fibonacci backoff up to an hour | [`config::Backoff`] | cap 30 s by default; a log line per change, not per failure |
//! | `start_transfer_message`: returns at once if not connected | [`PeerHandle::send`] | queued, never dropped |
//! | transfer result `Result<usize, TransportError>` | [`LinkStats`] | acknowledged, rejected or unknown, counted per peer |
//! | `receive_message` ends when decoding fails | [`Message::decode`] | an undecodable body ends nothing; a broken frame ends the session |
//! | `NetTransport`, `NetListener`, `NetIncomingRequest`, `NetConnection` | [`transport::Transport`], [`transport::Listener`], [`transport::PendingConnection`], [`transport::Connection`] | halves, so that two threads can block |
//! | unbounded channels | bounded queues and credit | what is refused comes back |
//! | `PeerId` generic | [`PeerId`]: the digest of a key | identity is proven, not claimed |
//!
//! What must hold inside, and who sees to it, is in [`invariants`].

pub mod invariants;

// In rank order: a file imports only lower ranks (tests/layering.rs).
pub mod address;
pub mod ident;
mod sync;
mod threads;

pub mod config;
pub mod error;
pub mod metrics;

#[cfg_attr(not(feature = "internal"), allow(dead_code, reason = "the wire is whole; not every part has a caller yet"))]
pub mod wire;

pub mod transport;

pub mod handshake;

mod link;

mod session;

mod registry;

mod connections;

mod node;

pub use address::Address;
pub use config::Config;
pub use connections::{Resolver, SystemResolver};
pub use error::SendError;
pub use ident::PeerId;
pub use node::{Event, Finding, Node, NodeBuilder, PeerInfo, PeerReport, ShutdownReport, SystemLimit};
pub use registry::SessionInfo;
pub use session::{Batch, LinkStats, Message, PeerHandle};
