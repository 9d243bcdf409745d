//! What a node knows of its peers, put together from where each part is kept.
//!
//! Owns: nothing. Threads: the application's. Locks: the registry lock, then, peer by peer and without it, the link lock
//! and the outbox lock; leaves of sessions. Blocks on: nothing.
//! Upholds: of several connections with one peer the one that is attached is told.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::connections::{Redial, Shared};
use crate::ident::{ConnectionId, PeerId, SessionKind, SessionStatus};
use crate::registry::SessionInfo;
use crate::session::{LinkStats, PeerHandle, PeerLink, Session};

/// What a node knows of a peer now. What belongs to a connection is `None` while there is none that has proven to be the
/// peer's.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PeerInfo {
    /// Who it is; or what stands for an address where somebody is wanted, and is nobody's id ([`PeerId::stands_for`]).
    pub id: PeerId,
    /// Whether it was ever configured, added or connected; else messages wait, or handles are held, and it is
    /// forgotten after them; see [`Node::peer`](crate::Node::peer).
    pub known: bool,
    /// On which connection: the attached one, else one that is about to be.
    pub conn: Option<ConnectionId>,
    /// Who dialled.
    pub kind: Option<SessionKind>,
    /// How far the connection is.
    pub status: Option<SessionStatus>,
    /// Our end of it.
    pub local_addr: Option<SocketAddr>,
    /// The other end. If the peer dialled, nobody can dial it there.
    pub remote_addr: Option<SocketAddr>,
    /// Where the peer says it can be dialled, on its present or last connection.
    pub advertised: Option<SocketAddr>,
    /// Since when the connection is established; before that, when it was accepted or dialled.
    pub since: Option<Instant>,
    /// The last round trip measured: known from about the second heartbeat on, and measured with each. It includes what
    /// the other side needs to read, and so how long a handler there keeps it from reading.
    pub rtt: Option<Duration>,
    /// Messages that wait to be written for the first time.
    pub queued: usize,
    /// How long the oldest of them has waited.
    pub oldest_age: Option<Duration>,
    /// How often in a row the node has planned to dial it again, if it is kept and not connected; else 0.
    pub attempts: u32,
    /// When it is dialled next; `None` while it is connected or being dialled, or is not kept.
    pub next_retry: Option<Instant>,
    /// Counts of its messages, and whether it is connected.
    pub stats: LinkStats,
}

/// All peers, in the order of their ids.
pub(super) fn all(shared: &Shared) -> Vec<PeerInfo> {
    let registry = &shared.registry;
    let proven = registry.sessions_info().into_iter().filter_map(|info| Some((info.peer?, info)));
    let mut connections: HashMap<PeerId, Vec<SessionInfo>> = HashMap::new();
    proven.for_each(|(peer, info)| connections.entry(peer).or_default().push(info));
    let sessions: HashMap<ConnectionId, Arc<Session>> =
        registry.sessions(|entry| (entry.session.conn, entry.session.clone())).into_iter().collect();
    let unknown: HashSet<PeerId> = registry.unknown_links().iter().map(|link| link.id).collect();
    let mut links = registry.links();
    links.sort_by_key(|link| link.id);
    let of = |link: Arc<PeerLink>| {
        let attached = link.core.lock().attached();
        let connections = connections.get(&link.id).map(Vec::as_slice).unwrap_or_default();
        let connection = connections.iter().find(|info| Some(info.conn) == attached).or(connections.last());
        let session = connection.and_then(|info| sessions.get(&info.conn));
        let redial = shared.redial(&link);
        let known = !unknown.contains(&link.id);
        info(link, known, connection, session.and_then(|session| session.rtt()), redial)
    };
    links.into_iter().map(of).collect()
}

fn info(
    link: Arc<PeerLink>,
    known: bool,
    connection: Option<&SessionInfo>,
    rtt: Option<Duration>,
    redial: Redial,
) -> PeerInfo {
    let (id, advertised) = (link.id, link.advertised());
    let stats = PeerHandle::new(link).stats();
    PeerInfo {
        id,
        known,
        conn: connection.map(|info| info.conn),
        kind: connection.map(|info| info.kind),
        status: connection.map(|info| info.status),
        local_addr: connection.and_then(|info| info.local_addr),
        remote_addr: connection.map(|info| info.remote_addr),
        advertised,
        since: connection.map(|info| info.since),
        rtt,
        queued: stats.queued_messages,
        oldest_age: stats.oldest_age,
        attempts: redial.attempts,
        next_retry: redial.next,
        stats,
    }
}
