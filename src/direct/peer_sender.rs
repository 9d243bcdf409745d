//! One peer that is sent to: its connection, and the start of a transfer.
//!
//! Owns: a share of the peer's link. Threads: any. Locks: the link lock, then, without it, the registry lock; what a send
//! verb locks. Blocks on: nothing.
//! Upholds: a message is queued whether the peer is connected or not, or comes back.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::destination::DirectReceiver;
use super::transfer::{self, DirectMessage, TransferResult, Transfers};
use crate::connections::Shared;
use crate::ident::{ConnectionId, PeerId, SessionKind};
use crate::session::PeerHandle;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConnectionRole {
    /// Messages from one peer to another: `threadwire-direct/1`.
    Direct,
}

/// The connection that a peer has now.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// Who is at the other end: the digest of the key that was proven.
    pub host_id: PeerId,
    /// What it is for.
    pub role: ConnectionRole,
    /// Its number.
    pub conn: ConnectionId,
    /// Who dialled.
    pub kind: SessionKind,
    /// The other end.
    pub remote_addr: SocketAddr,
}

/// The sender of one peer: the owner of one outgoing peer, across all its connections.
///
/// It is a handle on the peer's link: the threads `tx-<peer>` and `rx-<peer>` run while the peer is connected, and the
/// thread `supervisor` dials it, again and again, while it is kept. What the document it comes from has as its fields:
///
/// | there | here |
/// |---|---|
/// | `id` | [`PeerSender::id`] |
/// | `addr` | [`PeerSender::addr`]; where the peer is dialled is the map's to say, or the configuration's |
/// | `connection: Option<Arc<ConnectionWrapper>>` | [`PeerSender::connection`], a [`ConnectionInfo`] |
/// | `shutdown_rx` | that of the [`DirectSender`](super::DirectSender); a peer's own end is to be in the map no longer |
/// | `transport`, `credential` | those of the sender: [`DirectInputs::transport`](super::DirectInputs::transport), [`DirectInputs::credential`](super::DirectInputs::credential) |
/// | `metrics: Option<NetMetrics>` | [`NetMetrics`](super::NetMetrics) of the sender, [`PeerHandle::stats`] of the peer |
/// | `peer_events_tx` | [`DirectInputs::events`](super::DirectInputs::events) |
/// | `transfer_result_tx`, `transfer_result_rx` | [`DirectInputs::results`](super::DirectInputs::results) |
/// | `incoming_reply_tx` | [`DirectInputs::incoming`](super::DirectInputs::incoming) |
/// | `run` | the threads of the link; nothing is left to be called |
/// | `connect_to_peer` | [`Config::backoff`](crate::config::Config::backoff) |
/// | `start_transfer_message`, which does nothing if there is no connection | [`PeerSender::start_transfer_message`], which queues |
/// | `handle_transfer_result`, which closes the connection when a transfer failed | [`TransferResult`]: a message fails alone |
/// | `receive_message`, false when it does not decode or the consumer is gone | that message is rejected; [`CloseReason::ConsumerGone`](crate::error::CloseReason::ConsumerGone) |
#[derive(Clone)]
pub struct PeerSender {
    peer: PeerHandle,
    shared: Arc<Shared>,
    transfers: Option<Arc<Transfers>>,
}

impl PeerSender {
    pub(super) fn new(peer: PeerHandle, shared: Arc<Shared>, transfers: Option<Arc<Transfers>>) -> Self {
        Self { peer, shared, transfers }
    }

    /// Whose sender it is.
    pub fn id(&self) -> PeerId {
        self.peer.id()
    }

    /// The other end of its connection, while it has one.
    pub fn addr(&self) -> Option<SocketAddr> {
        Some(self.connection()?.remote_addr)
    }

    /// Its connection, while it has one.
    pub fn connection(&self) -> Option<ConnectionInfo> {
        let conn = self.peer.attached()?;
        let session = self.shared.registry.session_info(conn)?;
        let (kind, remote_addr) = (session.kind, session.remote_addr);
        Some(ConnectionInfo { host_id: self.id(), role: ConnectionRole::Direct, conn, kind, remote_addr })
    }

    /// The peer, with all verbs.
    pub fn handle(&self) -> &PeerHandle {
        &self.peer
    }

    /// Starts the transfer of a message: it is queued, and goes out as soon as the peer is connected and has credit. It
    /// waits for nothing, and works inside a handler. What becomes of the message comes by
    /// [`DirectInputs::results`](super::DirectInputs::results). Its age and its expiry count from `created_at`.
    ///
    /// # Errors
    /// It was not taken, as [`PeerHandle::try_send`] would not: the result says why and has the message; no other one
    /// comes of it.
    pub fn start_transfer_message(
        &self,
        message: impl Into<DirectMessage>,
        created_at: Instant,
    ) -> Result<(), Box<TransferResult>> {
        let to = DirectReceiver::Peer(self.id());
        transfer::offer(&self.peer, &to, message.into(), created_at, self.transfers.as_deref())
    }
}

impl fmt::Debug for PeerSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerSender({})", self.id().short())
    }
}
