//! Which links and sessions there are, and how many more there may be: the sessions manager.
//!
//! Owns: every link of the node, by peer; every session, by connection, with its threads and its slot.
//! Threads: any. Locks: L1, the one RwLock of the crate; nothing else is locked while it is held.
//! Blocks on: nothing.
//! Upholds: identity is the key; a slot is counted from accept or dial to the session's end and given back by its guard;
//! a destructor of a slot, a session or a thread never runs under the lock.

use std::collections::HashMap;
use std::sync::Arc;

use crate::handshake::Slot;
use crate::ident::{ConnectionId, PeerId, SessionKind};
use crate::session::{Peer, PeerLink, Session};
use crate::sync::RwLock;
use crate::threads::Thread;

/// How many of what there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RegistryLimits {
    /// Sessions that others opened, those under way included.
    pub(crate) inbound: usize,
    /// Sessions that we opened, dials under way included.
    pub(crate) outbound: usize,
    /// Inbound connections without a session yet.
    pub(crate) half_open: usize,
    /// Links, connected or not.
    pub(crate) links: usize,
}

/// Why there is no slot, or no link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SessionsError {
    /// As many sessions of this kind as there may be.
    #[error("as many {0} sessions as the configuration allows")]
    TooMany(SessionKind),
    /// As many unproven connections as there may be.
    #[error("as many unproven connections as the configuration allows")]
    TooManyHalfOpen,
    /// As many links as there may be.
    #[error("as many links as the configuration allows")]
    TooManyLinks,
    /// The node is shutting down.
    #[error("the node is shutting down")]
    Closed,
}

/// The plain structure.
#[derive(Debug)]
struct Registry {
    limits: RegistryLimits,
    peers: HashMap<PeerId, Peer>,
    sessions: HashMap<ConnectionId, Entry>,
    inbound: usize,
    outbound: usize,
    half_open: usize,
    closed: bool,
}

/// A session and what it holds.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) link: Arc<PeerLink>,
    pub(crate) session: Arc<Session>,
    /// Added once they run.
    pub(crate) threads: Vec<Thread>,
    /// Given back when the entry is dropped, outside the lock.
    pub(crate) slot: SessionSlot,
}

impl Registry {
    fn reserve(&mut self, kind: SessionKind) -> Result<(), SessionsError> {
        if self.closed {
            return Err(SessionsError::Closed);
        }
        match kind {
            SessionKind::Inbound if self.half_open >= self.limits.half_open => Err(SessionsError::TooManyHalfOpen),
            SessionKind::Inbound if self.inbound >= self.limits.inbound => Err(SessionsError::TooMany(kind)),
            SessionKind::Outbound if self.outbound >= self.limits.outbound => Err(SessionsError::TooMany(kind)),
            SessionKind::Inbound => {
                self.half_open += 1;
                self.inbound += 1;
                Ok(())
            }
            SessionKind::Outbound => {
                self.outbound += 1;
                Ok(())
            }
        }
    }

    fn release(&mut self, kind: SessionKind, half_open: bool) {
        match kind {
            SessionKind::Inbound => {
                self.inbound -= 1;
                self.half_open -= usize::from(half_open);
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
        Self(Arc::new(RwLock::new(Registry {
            limits,
            peers: HashMap::new(),
            sessions: HashMap::new(),
            inbound: 0,
            outbound: 0,
            half_open: 0,
            closed: false,
        })))
    }

    /// Reserves a place for a connection, before anything is spent on it.
    ///
    /// # Errors
    /// A limit is reached: refuse the connection.
    pub(crate) fn reserve(&self, kind: SessionKind) -> Result<SessionSlot, SessionsError> {
        self.0.write().reserve(kind)?;
        Ok(SessionSlot { registry: self.clone(), kind, half_open: kind == SessionKind::Inbound })
    }

    /// The link of a peer.
    pub(crate) fn link(&self, peer: &PeerId) -> Option<Arc<PeerLink>> {
        self.0.read().peers.get(peer).map(|peer| peer.link.clone())
    }

    /// A peer; a new one, made by `make`, if it is not known.
    ///
    /// # Errors
    /// There are as many links as there may be, or the node is shutting down.
    pub(crate) fn peer_or_insert(&self, id: PeerId, make: impl FnOnce() -> Peer) -> Result<Peer, SessionsError> {
        if let Some(peer) = self.0.read().peers.get(&id) {
            return Ok(peer.clone());
        }
        let made = make();
        let mut registry = self.0.write();
        if registry.closed {
            return Err(SessionsError::Closed);
        }
        if registry.peers.len() >= registry.limits.links && !registry.peers.contains_key(&id) {
            return Err(SessionsError::TooManyLinks);
        }
        Ok(registry.peers.entry(id).or_insert(made).clone())
    }

    /// All links.
    pub(crate) fn links(&self) -> Vec<Arc<PeerLink>> {
        self.0.read().peers.values().map(|peer| peer.link.clone()).collect()
    }

    /// Registers a session that is about to run; it is half open no longer.
    pub(crate) fn register(&self, conn: ConnectionId, mut entry: Entry) {
        let mut registry = self.0.write();
        if std::mem::take(&mut entry.slot.half_open) {
            registry.half_open -= 1;
        }
        let replaced = registry.sessions.insert(conn, entry);
        drop(registry);
        debug_assert!(replaced.is_none(), "connection ids are never given twice");
    }

    /// Adds a session's threads. They come back if the session ended meanwhile.
    pub(crate) fn add_threads(&self, conn: ConnectionId, threads: Vec<Thread>) -> Option<Vec<Thread>> {
        match self.0.write().sessions.get_mut(&conn) {
            Some(entry) => {
                entry.threads = threads;
                None
            }
            None => Some(threads),
        }
    }

    /// Takes a session out; the caller drops the entry, and with it the slot.
    pub(crate) fn unregister(&self, conn: ConnectionId) -> Option<Entry> {
        self.0.write().sessions.remove(&conn)
    }

    /// What `pick` takes from every session.
    pub(crate) fn sessions<T>(&self, pick: impl Fn(&Entry) -> T) -> Vec<T> {
        self.0.read().sessions.values().map(pick).collect()
    }

    /// What `pick` takes from one session.
    pub(crate) fn session<T>(&self, conn: ConnectionId, pick: impl FnOnce(&Entry) -> T) -> Option<T> {
        self.0.read().sessions.get(&conn).map(pick)
    }

    /// Refuses new connections and links from now on.
    pub(crate) fn close(&self) {
        self.0.write().closed = true;
    }

    /// Connections counted now: inbound, outbound, and those of inbound that are half open.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        let registry = self.0.read();
        (registry.inbound, registry.outbound, registry.half_open)
    }
}

/// A place for one connection, from accept or dial to the session's end.
#[derive(Debug)]
pub(crate) struct SessionSlot {
    registry: SharedRegistry,
    kind: SessionKind,
    half_open: bool,
}

impl Slot for SessionSlot {}

impl Drop for SessionSlot {
    fn drop(&mut self) {
        self.registry.0.write().release(self.kind, self.half_open);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: RegistryLimits = RegistryLimits { inbound: 3, outbound: 1, half_open: 2, links: 4 };

    #[test]
    fn slots_are_counted_from_reservation_to_drop() {
        let registry = SharedRegistry::new(LIMITS);
        let first = registry.reserve(SessionKind::Inbound).unwrap();
        let second = registry.reserve(SessionKind::Inbound).unwrap();
        assert_eq!(registry.reserve(SessionKind::Inbound).unwrap_err(), SessionsError::TooManyHalfOpen);
        let dial = registry.reserve(SessionKind::Outbound).unwrap();
        let refused = registry.reserve(SessionKind::Outbound).unwrap_err();
        assert_eq!(refused, SessionsError::TooMany(SessionKind::Outbound));
        assert_eq!(registry.counts(), (2, 1, 2));
        drop((first, dial));
        assert_eq!(registry.counts(), (1, 0, 1));
        drop(second);
        assert_eq!(registry.counts(), (0, 0, 0));
    }

    #[test]
    fn a_closed_registry_gives_no_slots() {
        let registry = SharedRegistry::new(LIMITS);
        registry.close();
        assert_eq!(registry.reserve(SessionKind::Inbound).unwrap_err(), SessionsError::Closed);
    }
}
