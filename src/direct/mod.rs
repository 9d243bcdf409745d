//! Sending to peers directly: to whom, where they are, and what becomes of those who send.
//!
//! Owns: nothing itself; see the files. Threads: `direct`, of a sender that runs by itself; else any. Locks: see the files.
//! Blocks on: what each function says.
//! Upholds: a destination says what it means: an identity, or whoever proves itself at an address, or a name that the
//! configuration gives to an identity.

mod destination;
mod dispatch;
mod incoming;
mod inputs;
mod metrics;
mod peer_data;
mod peer_sender;
mod sender;
mod transfer;

pub use crate::connections::{PeerEvent, RESOLVE_RETRY_TIMEOUT, StopReason};
pub use destination::{Destination, DirectReceiver, peer_info};
pub use incoming::IncomingSender;
pub use inputs::DirectInputs;
pub use metrics::NetMetrics;
pub(crate) use peer_data::addresses;
pub use peer_data::{PeerData, PeersMap};
pub use peer_sender::{ConnectionInfo, ConnectionRole, PeerSender};
pub use sender::{DirectSender, run_direct_sender};
pub use transfer::{DirectMessage, TransferResult, TransportError};
