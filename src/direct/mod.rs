//! Sending to peers directly: to whom, where they are, and what becomes of those who send.
//!
//! Owns: nothing that changes. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: a destination says what it means: an identity, or whoever proves itself at an address, or a name that the
//! configuration gives to an identity.

mod destination;
mod peer_data;

pub use crate::connections::{PeerEvent, RESOLVE_RETRY_TIMEOUT, StopReason};
pub use destination::{Destination, DirectReceiver, peer_info};
pub(crate) use peer_data::addresses;
pub use peer_data::{PeerData, PeersMap};
