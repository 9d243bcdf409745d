//! Which links and sessions there are, and how many more there may be: the sessions manager.
//!
//! Owns: every link of the node, by peer; every connection from accept or dial to the end, by its number; every
//! session, with its threads and its slot.
//! Threads: any. Locks: L1, the one RwLock of the crate; while it is held nothing else is locked but an outbox, to append a
//! message by the shortest path or as its peer becomes known, and the link and the outbox of a peer that is forgotten, which
//! nobody else has.
//! Blocks on: nothing.
//! Upholds: identity is the key; a slot is counted from accept or dial to the session's end and given back by its guard;
//! a destructor of a slot, a session or a thread never runs under the lock; what a forgotten link has counted still counts.

mod surplus;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use crate::config::THREADS_PER_SESSION;
use crate::error::{CloseReason, ConnectError, SendErrorKind};
use crate::handshake::Slot;
use crate::ident::{ConnectionId, PeerId, PeerIdHasher, SessionKind, SessionStatus};
use crate::metrics::Totals;
use crate::session::{Peer, PeerHandle, PeerLink, Session};
use crate::sync::RwLock;
use crate::threads::Thread;

/// How many of what there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RegistryLimits {
    /// Connections that others opened, unproven ones included.
    pub(crate) inbound: usize,
    /// Connections that we opened, dials under way included.
    pub(crate) outbound: usize,
    /// Links, connected or not.
    pub(crate) links: usize,
    /// Links of peers that are not known, among them.
    pub(crate) unknown: usize,
    /// Threads for sessions; a connection counts with its two from the beginning.
    pub(crate) threads: usize,
}

/// Why there is no slot, or no link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub(crate) enum SessionsError {
    /// As many connections of this kind as there may be.
    #[error("as many {0} connections as the configuration allows")]
    TooMany(SessionKind),
    /// The thread budget is used up.
    #[error("as many threads as the configuration or the system allows")]
    NoThreads,
    /// As many links as there may be.
    #[error("as many links as the configuration allows")]
    TooManyLinks,
    /// As many unknown peers as there may be.
    #[error("as many unknown peers as the configuration allows")]
    TooManyUnknown,
    /// The node is shutting down.
    #[error("the node is shutting down")]
    Closed,
}

impl SessionsError {
    /// What whoever asks for a handle on this peer is told.
    pub(crate) fn of_peer(self, id: PeerId) -> ConnectError {
        match self {
            Self::TooManyUnknown => ConnectError::TooManyUnknown(id),
            Self::Closed => ConnectError::ShuttingDown,
            Self::TooMany(_) | Self::NoThreads | Self::TooManyLinks => ConnectError::UnknownPeer(id),
        }
    }
}

/// What whoever sends is told, where there is no link to send to.
impl From<SessionsError> for SendErrorKind {
    fn from(error: SessionsError) -> Self {
        match error {
            SessionsError::TooManyUnknown => Self::TooManyUnknown,
            SessionsError::Closed => Self::ShuttingDown,
            SessionsError::TooMany(_) | SessionsError::NoThreads | SessionsError::TooManyLinks => Self::UnknownPeer,
        }
    }
}

/// What is known of one connection, from accept or dial to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionInfo {
    /// Which connection.
    pub conn: ConnectionId,
    /// Who opened it.
    pub kind: SessionKind,
    /// How far it is.
    pub status: SessionStatus,
    /// Whose it is, once that is proven.
    pub peer: Option<PeerId>,
    /// Our end, once there is one.
    pub local_addr: Option<SocketAddr>,
    /// The other end.
    pub remote_addr: SocketAddr,
    /// When it was accepted or dialled; when it was established, once it is.
    pub since: Instant,
}

impl SessionInfo {
    /// A connection that was accepted or is being dialled.
    pub(crate) fn begun(
        conn: ConnectionId,
        kind: SessionKind,
        local_addr: Option<SocketAddr>,
        remote_addr: SocketAddr,
        now: Instant,
    ) -> Self {
        Self { conn, kind, status: SessionStatus::Handshaking, peer: None, local_addr, remote_addr, since: now }
    }
}

/// What one more inbound connection would meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    /// Whether there is a slot.
    pub(crate) slot: Result<(), SessionsError>,
    /// Inbound connections of that address.
    pub(crate) from_ip: usize,
}

/// The plain structure.
#[derive(Debug)]
struct Registry {
    limits: RegistryLimits,
    peers: HashMap<PeerId, Peer, PeerIdHasher>,
    /// Those of them that were never added and never connected.
    unknown: BTreeSet<PeerId>,
    /// What the links counted that were forgotten.
    forgotten: Totals,
    /// Everything that holds a slot.
    connections: BTreeMap<ConnectionId, SessionInfo>,
    sessions: HashMap<ConnectionId, Entry>,
    /// What [`SharedRegistry::established`] made of them last, until they change.
    established: Option<Arc<[Established]>>,
    inbound: usize,
    outbound: usize,
    /// Inbound connections by address; none with zero.
    from_ip: HashMap<IpAddr, usize>,
    closed: bool,
}

/// A session and what it holds.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) link: Arc<PeerLink>,
    pub(crate) session: Arc<Session>,
    pub(crate) threads: Vec<Thread>,
    /// Given back when the entry is dropped, outside the lock.
    pub(crate) slot: SessionSlot,
}

/// A session, as much of it as is to be known to send to its peer.
#[derive(Debug)]
pub(crate) struct Established {
    /// Whose it is.
    pub(crate) peer: PeerId,
    /// Who dialled.
    pub(crate) kind: SessionKind,
    /// Where to send to.
    pub(crate) link: Arc<PeerLink>,
    conn: ConnectionId,
}

impl Established {
    /// Whether it still is the one that is attached to its link: a look that locks nothing. Of several sessions of one peer
    /// at most one is.
    #[inline]
    pub(crate) fn is_attached(&self) -> bool {
        self.link.outbox.is_attached(self.conn)
    }
}

impl Registry {
    fn new(limits: RegistryLimits) -> Self {
        Self {
            limits,
            peers: HashMap::default(),
            unknown: BTreeSet::new(),
            forgotten: Totals::default(),
            connections: BTreeMap::new(),
            sessions: HashMap::new(),
            established: None,
            inbound: 0,
            outbound: 0,
            from_ip: HashMap::new(),
            closed: false,
        }
    }

    fn room(&self, kind: SessionKind) -> Result<(), SessionsError> {
        let (count, limit) = match kind {
            SessionKind::Inbound => (self.inbound, self.limits.inbound),
            SessionKind::Outbound => (self.outbound, self.limits.outbound),
        };
        let threads = (self.inbound + self.outbound + 1) * THREADS_PER_SESSION;
        match () {
            () if self.closed => Err(SessionsError::Closed),
            () if count >= limit => Err(SessionsError::TooMany(kind)),
            () if threads > self.limits.threads => Err(SessionsError::NoThreads),
            () => Ok(()),
        }
    }

    fn reserve(&mut self, info: SessionInfo) -> Result<(), SessionsError> {
        self.room(info.kind)?;
        match info.kind {
            SessionKind::Inbound => {
                self.inbound += 1;
                *self.from_ip.entry(info.remote_addr.ip().to_canonical()).or_default() += 1;
            }
            SessionKind::Outbound => self.outbound += 1,
        }
        let replaced = self.connections.insert(info.conn, info);
        debug_assert!(replaced.is_none(), "connection ids are never given twice");
        Ok(())
    }

    /// Whether nothing waits for an unknown peer, and nobody holds it. Nobody can come to it while the registry is locked.
    fn is_forgettable(&self, id: &PeerId) -> bool {
        let Some(Peer { link, .. }) = self.peers.get(id) else { return true };
        Arc::strong_count(link) == 1 && link.outbox.counts().messages == 0
    }

    /// Takes out the unknown peers that may be forgotten; to be dropped without the lock.
    fn forget(&mut self) -> Vec<Peer> {
        let ids: Vec<PeerId> = self.unknown.iter().filter(|id| self.is_forgettable(id)).copied().collect();
        self.unknown.retain(|id| !ids.contains(id));
        let peers: Vec<Peer> = ids.iter().filter_map(|id| self.peers.remove(id)).collect();
        peers.iter().for_each(|peer| self.forgotten.merge(&PeerHandle::new(peer.link.clone()).totals()));
        peers
    }

    fn release(&mut self, conn: ConnectionId) {
        let Some(info) = self.connections.remove(&conn) else { return };
        match info.kind {
            SessionKind::Inbound => {
                self.inbound -= 1;
                let ip = info.remote_addr.ip().to_canonical();
                if let Some(count) = self.from_ip.get_mut(&ip) {
                    *count -= 1;
                    if *count == 0 {
                        self.from_ip.remove(&ip);
                    }
                }
            }
            SessionKind::Outbound => self.outbound -= 1,
        }
    }
}

/// The registry behind its lock.
#[derive(Debug, Clone)]
pub(crate) struct SharedRegistry(Arc<RwLock<Registry>>);

impl SharedRegistry {
    /// An empty registry.
    pub(crate) fn new(limits: RegistryLimits) -> Self {
        Self(Arc::new(RwLock::new(Registry::new(limits))))
    }

    /// What one more inbound connection of this address would meet now.
    pub(crate) fn room_for(&self, ip: IpAddr) -> Room {
        let registry = self.0.read();
        let from_ip = registry.from_ip.get(&ip.to_canonical()).copied().unwrap_or_default();
        Room { slot: registry.room(SessionKind::Inbound), from_ip }
    }

    /// Reserves a place for a connection, before anything is spent on it.
    ///
    /// # Errors
    /// A limit is reached: refuse the connection.
    pub(crate) fn reserve(&self, info: SessionInfo) -> Result<SessionSlot, SessionsError> {
        self.0.write().reserve(info)?;
        Ok(SessionSlot { registry: self.clone(), conn: info.conn })
    }

    /// Notes whose connection it is.
    pub(crate) fn proven(&self, conn: ConnectionId, peer: PeerId) {
        if let Some(info) = self.0.write().connections.get_mut(&conn) {
            info.peer = Some(peer);
        }
    }

    /// The link of a peer.
    pub(crate) fn link(&self, peer: &PeerId) -> Option<Arc<PeerLink>> {
        self.0.read().peers.get(peer).map(|peer| peer.link.clone())
    }

    /// What `with` makes of a peer's link, without another handle on it. It may lock the outbox, and must not block.
    #[inline]
    pub(crate) fn with_link<T>(&self, peer: &PeerId, with: impl FnOnce(&PeerLink) -> T) -> Option<T> {
        self.0.read().peers.get(peer).map(|peer| with(&peer.link))
    }

    /// A peer, which is known from now on; a new one, made by `make`, if there is none.
    ///
    /// # Errors
    /// There are as many links as there may be, or the node is shutting down.
    pub(crate) fn peer_or_insert(&self, id: PeerId, make: impl FnOnce() -> Peer) -> Result<Peer, SessionsError> {
        if let Some(peer) = self.known(&id) {
            return Ok(peer);
        }
        let made = make();
        let mut registry = self.0.write();
        if registry.closed {
            return Err(SessionsError::Closed);
        }
        if registry.peers.len() >= registry.limits.links && !registry.peers.contains_key(&id) {
            return Err(SessionsError::TooManyLinks);
        }
        let was_unknown = registry.unknown.remove(&id);
        let peer = registry.peers.entry(id).or_insert(made).clone();
        if was_unknown {
            peer.link.outbox.peer_known();
        }
        Ok(peer)
    }

    /// The link of a peer, known or not; that of a new one that is not, made by `make`, if there is none.
    ///
    /// # Errors
    /// As many unknown peers wait as may, there are as many links as there may be, or the node is shutting down.
    pub(crate) fn link_or_unknown(
        &self,
        id: PeerId,
        make: impl FnOnce() -> Peer,
    ) -> Result<Arc<PeerLink>, SessionsError> {
        if let Some(link) = self.link(&id) {
            return Ok(link);
        }
        let made = make();
        let mut registry = self.0.write();
        if let Some(peer) = registry.peers.get(&id) {
            return Ok(peer.link.clone());
        }
        let full = registry.unknown.len() >= registry.limits.unknown;
        let forgotten = if full { registry.forget() } else { Vec::new() };
        let refusal = match () {
            () if registry.closed => Some(SessionsError::Closed),
            () if registry.unknown.len() >= registry.limits.unknown => Some(SessionsError::TooManyUnknown),
            () if registry.peers.len() >= registry.limits.links => Some(SessionsError::TooManyLinks),
            () => None,
        };
        let link = made.link.clone();
        if refusal.is_none() {
            registry.unknown.insert(id);
            registry.peers.insert(id, made);
        }
        drop(registry);
        drop(forgotten);
        refusal.map_or(Ok(link), Err)
    }

    /// A peer, if it is known.
    fn known(&self, id: &PeerId) -> Option<Peer> {
        let registry = self.0.read();
        registry.peers.get(id).filter(|_| !registry.unknown.contains(id)).cloned()
    }

    /// The link of a peer, if that is known.
    pub(crate) fn known_link(&self, id: &PeerId) -> Option<Arc<PeerLink>> {
        self.known(id).map(|peer| peer.link)
    }

    /// Whether there may be unknown peers.
    pub(crate) fn takes_unknown(&self) -> bool {
        self.0.read().limits.unknown > 0
    }

    /// The links of peers that are not known.
    pub(crate) fn unknown_links(&self) -> Vec<Arc<PeerLink>> {
        let registry = self.0.read();
        registry.unknown.iter().filter_map(|id| registry.peers.get(id)).map(|peer| peer.link.clone()).collect()
    }

    /// Forgets unknown peers for whom nothing waits and whom nobody holds.
    pub(crate) fn forget_unknown(&self) {
        let any = {
            let registry = self.0.read();
            registry.unknown.iter().any(|id| registry.is_forgettable(id))
        };
        if any {
            let forgotten = self.0.write().forget();
            drop(forgotten);
        }
    }

    /// All links, and what those counted that were forgotten.
    pub(crate) fn links_and_forgotten(&self) -> (Vec<Arc<PeerLink>>, Totals) {
        let registry = self.0.read();
        (registry.peers.values().map(|peer| peer.link.clone()).collect(), registry.forgotten.clone())
    }

    /// All links.
    pub(crate) fn links(&self) -> Vec<Arc<PeerLink>> {
        self.0.read().peers.values().map(|peer| peer.link.clone()).collect()
    }

    /// The links that `wants` picks, by a look that locks nothing.
    pub(crate) fn links_where(&self, wants: impl Fn(&PeerLink) -> bool) -> Vec<Arc<PeerLink>> {
        self.0.read().peers.values().filter(|peer| wants(&peer.link)).map(|peer| peer.link.clone()).collect()
    }

    /// Every session, in no order. The list is made once and shared until a session comes or goes: a walk through the
    /// table, and a count up and down for each link, would cost a broadcast as much as all it appends.
    pub(crate) fn established(&self) -> Arc<[Established]> {
        if let Some(list) = &self.0.read().established {
            return list.clone();
        }
        let mut registry = self.0.write();
        let established = |entry: &Entry| Established {
            peer: entry.link.id,
            kind: entry.session.kind,
            link: entry.link.clone(),
            conn: entry.session.conn,
        };
        let list: Arc<[_]> = registry.sessions.values().map(established).collect();
        registry.established.insert(list).clone()
    }

    /// Registers a session that is about to run: its connection is established from `now` on.
    pub(crate) fn register(&self, entry: Entry, local_addr: SocketAddr, now: Instant) {
        let conn = entry.slot.conn;
        let mut registry = self.0.write();
        if let Some(info) = registry.connections.get_mut(&conn) {
            info.status = SessionStatus::Established;
            info.peer = Some(entry.link.id);
            info.local_addr = Some(local_addr);
            info.since = now;
        }
        let replaced = registry.sessions.insert(conn, entry);
        let before = registry.established.take();
        drop(registry);
        // Without the lock: a link may go with it.
        drop(before);
        debug_assert!(replaced.is_none(), "connection ids are never given twice");
    }

    /// Takes a session out; the caller drops the entry, and with it the slot.
    pub(crate) fn unregister(&self, conn: ConnectionId) -> Option<Entry> {
        let mut registry = self.0.write();
        let (entry, before) = (registry.sessions.remove(&conn), registry.established.take());
        drop(registry);
        drop(before);
        entry
    }

    /// Who is connected by a dial of this address.
    pub(crate) fn dialled(&self, addr: SocketAddr) -> Option<PeerId> {
        self.newest_at(addr, |info| info.kind == SessionKind::Outbound).and_then(|info| info.peer)
    }

    /// Every connection that holds a slot, in the order they were accepted or dialled.
    pub(crate) fn sessions_info(&self) -> Vec<SessionInfo> {
        self.0.read().connections.values().copied().collect()
    }

    /// This connection, while it takes a place.
    pub(crate) fn session_info(&self, conn: ConnectionId) -> Option<SessionInfo> {
        self.0.read().connections.get(&conn).copied()
    }

    /// The newest session with somebody at this address.
    pub(crate) fn session_at(&self, addr: SocketAddr) -> Option<SessionInfo> {
        self.newest_at(addr, |_| true)
    }

    fn newest_at(&self, addr: SocketAddr, wants: impl Fn(&SessionInfo) -> bool) -> Option<SessionInfo> {
        let registry = self.0.read();
        let is_there = |info: &SessionInfo| info.remote_addr == addr && info.status == SessionStatus::Established;
        registry.connections.values().rev().find(|info| is_there(info) && wants(info)).copied()
    }

    /// What `pick` takes from every session.
    pub(crate) fn sessions<T>(&self, pick: impl Fn(&Entry) -> T) -> Vec<T> {
        self.0.read().sessions.values().map(pick).collect()
    }

    /// What `pick` takes from one session.
    pub(crate) fn session<T>(&self, conn: ConnectionId, pick: impl FnOnce(&Entry) -> T) -> Option<T> {
        self.0.read().sessions.get(&conn).map(pick)
    }

    /// Other limits from now on. Nobody goes for them by this; see [`SharedRegistry::surplus`].
    pub(crate) fn set_limits(&self, limits: RegistryLimits) {
        self.0.write().limits = limits;
    }

    /// Who is beyond the limits, and why each has to go. `leaving` are gone already.
    pub(crate) fn surplus(
        &self,
        inbound_per_ip: usize,
        leaving: &BTreeSet<ConnectionId>,
    ) -> Vec<(ConnectionId, CloseReason)> {
        self.0.read().surplus(inbound_per_ip, leaving)
    }

    /// Whether there is room for these peers among `most` links. Those that have one stay, also where there are more.
    pub(crate) fn takes_peers(&self, peers: impl Iterator<Item = PeerId>, most: usize) -> bool {
        let registry = self.0.read();
        let new = peers.filter(|id| !registry.peers.contains_key(id)).count();
        new == 0 || registry.peers.len() + new <= most
    }

    /// Refuses new connections and links from now on.
    pub(crate) fn close(&self) {
        self.0.write().closed = true;
    }
}

/// A place for one connection, from accept or dial to the session's end.
#[derive(Debug)]
pub(crate) struct SessionSlot {
    registry: SharedRegistry,
    conn: ConnectionId,
}

impl Slot for SessionSlot {}

impl Drop for SessionSlot {
    fn drop(&mut self) {
        self.registry.0.write().release(self.conn);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    pub(super) const LIMITS: RegistryLimits =
        RegistryLimits { inbound: 3, outbound: 2, links: 4, unknown: 2, threads: 8 };

    /// A connection with a number of its own, from or to an address that ends in `host`.
    pub(super) fn begun(conn: u64, kind: SessionKind, host: u8) -> SessionInfo {
        let remote_addr = (Ipv4Addr::new(192, 0, 2, host), 50_000).into();
        SessionInfo::begun(ConnectionId(conn), kind, None, remote_addr, Instant::now())
    }

    fn inbound(conn: u64) -> SessionInfo {
        begun(conn, SessionKind::Inbound, 1)
    }

    fn outbound(conn: u64) -> SessionInfo {
        begun(conn, SessionKind::Outbound, 1)
    }

    fn counts(registry: &SharedRegistry) -> (usize, usize) {
        let registry = registry.0.read();
        assert_eq!(registry.connections.len(), registry.inbound + registry.outbound);
        assert_eq!(registry.from_ip.values().sum::<usize>(), registry.inbound);
        (registry.inbound, registry.outbound)
    }

    #[test]
    fn slots_are_counted_from_reservation_to_drop() {
        let registry = SharedRegistry::new(LIMITS);
        let first = registry.reserve(inbound(1)).unwrap();
        let dials = [registry.reserve(outbound(2)).unwrap(), registry.reserve(outbound(3)).unwrap()];
        let refused = registry.reserve(outbound(4)).unwrap_err();
        assert_eq!(refused, SessionsError::TooMany(SessionKind::Outbound));
        assert_eq!(counts(&registry), (1, 2));
        drop((first, dials));
        assert_eq!(counts(&registry), (0, 0));
        let all = [5, 6, 7].map(|conn| registry.reserve(inbound(conn)).unwrap());
        assert_eq!(registry.reserve(inbound(8)).unwrap_err(), SessionsError::TooMany(SessionKind::Inbound));
        drop(all);
        assert_eq!(counts(&registry), (0, 0));
    }

    #[test]
    fn two_threads_are_counted_for_each_connection_of_either_kind() {
        let registry = SharedRegistry::new(RegistryLimits { threads: 5, ..LIMITS });
        let slots = [registry.reserve(inbound(1)).unwrap(), registry.reserve(outbound(2)).unwrap()];
        assert_eq!(registry.reserve(inbound(3)).unwrap_err(), SessionsError::NoThreads);
        assert_eq!(registry.reserve(outbound(3)).unwrap_err(), SessionsError::NoThreads);
        assert_eq!(counts(&registry), (1, 1), "a refusal counts nothing");
        drop(slots);
        drop(registry.reserve(outbound(3)).unwrap());
    }

    #[test]
    fn connections_are_counted_by_address_whichever_way_it_is_written() {
        let registry = SharedRegistry::new(LIMITS);
        let v4: SocketAddr = "192.0.2.1:1".parse().unwrap();
        let mapped: SocketAddr = "[::ffff:192.0.2.1]:2".parse().unwrap();
        let slots = [(1, v4), (2, mapped)]
            .map(|(conn, remote_addr)| registry.reserve(SessionInfo { remote_addr, ..inbound(conn) }).unwrap());
        let dial = registry.reserve(outbound(3)).unwrap();
        assert_eq!(registry.room_for(v4.ip()), Room { slot: Ok(()), from_ip: 2 });
        assert_eq!(registry.room_for("192.0.2.2".parse().unwrap()).from_ip, 0);
        drop((slots, dial));
        assert_eq!(registry.room_for(mapped.ip()).from_ip, 0);
    }

    #[test]
    fn connections_are_listed_while_they_hold_a_slot() {
        let registry = SharedRegistry::new(LIMITS);
        let (peer, dial) = (PeerId::from_bytes([7; 32]), outbound(2));
        let slots = [inbound(1), dial].map(|info| registry.reserve(info).unwrap());
        registry.proven(ConnectionId(2), peer);
        assert_eq!(
            registry.sessions_info(),
            [inbound(1), dial].map(|info| SessionInfo {
                since: registry.0.read().connections[&info.conn].since,
                peer: (info.conn == dial.conn).then_some(peer),
                ..info
            })
        );
        drop(slots);
        assert_eq!(registry.sessions_info(), []);
    }

    #[test]
    fn a_closed_registry_gives_no_slots() {
        let registry = SharedRegistry::new(LIMITS);
        let slot = registry.reserve(inbound(1)).unwrap();
        registry.close();
        assert_eq!(registry.reserve(inbound(2)).unwrap_err(), SessionsError::Closed);
        assert_eq!(registry.room_for(Ipv4Addr::LOCALHOST.into()).slot, Err(SessionsError::Closed));
        drop(slot);
        assert_eq!(counts(&registry), (0, 0));
    }
}
