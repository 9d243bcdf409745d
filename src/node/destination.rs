//! Sending by destination: to an identity, to whoever proves itself at an address, to a name of the configuration.
//!
//! Owns: nothing. Threads: the application's. Locks: the registry lock to find a link, the lock of the node's connections
//! manager to ask for a dial, the lock of a stand-in; one after the other. Blocks on: room in a queue, as the verbs of
//! [`PeerHandle`] do; [`AddrHandle::wait`] on whoever proves itself.
//! Upholds: what was sent to an address belongs to the one identity that proved itself there first after it was sent.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::connections::Connections;
use crate::direct::Destination;
use crate::engine::{self, Changes};
use crate::error::{ConnectError, SendError, SendErrorKind};
use crate::node::Node;
use crate::registry::SessionsError;
use crate::session::{self, PeerHandle, PeerLink, Receipt, SendOptions};
use crate::sync::{Mutex, deadline_in};

/// Whoever proves itself at an address of a node's: to send to, without knowing who it is.
///
/// The node dials the address, and takes whoever proves itself there; two that are connected already keep the session
/// they have. What is sent before anybody has waits, within the bounds of peers that are not known
/// ([`Node::peer`]): `unknown_bytes`, `unknown_timeout`, and each address counts as one of `unknown_peers`. Then it
/// belongs to that identity, in the order it was sent, and follows it wherever it is: it is never sent to another one that
/// answers at the address later. As long as that peer is connected, what is sent to the address goes to it at once.
///
/// When its session is lost, the address is dialled again, with growing delays, while this handle or a clone is held, or
/// something waits: for somebody to prove itself, or for the one who did. Whoever proves itself next is the peer of what
/// is sent from then on. Dropping the handle ends no session: [`Node::disconnect`] does.
#[derive(Clone)]
pub struct AddrHandle {
    addr: SocketAddr,
    link: Arc<PeerLink>,
    connections: Arc<Mutex<Option<Connections>>>,
    changes: Arc<Changes>,
}

/// Where a message goes.
enum Target {
    Peer(PeerHandle),
    Addr(AddrHandle),
}

impl AddrHandle {
    /// The address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Who has proven itself there and is connected.
    pub fn peer(&self) -> Option<PeerHandle> {
        self.link.bound().map(PeerHandle::new)
    }

    /// Waits until somebody has proven itself there.
    ///
    /// # Errors
    /// [`ConnectError::NobodyThere`]: not in time; what went wrong is told by
    /// [`Event::DialFailed`](crate::Event::DialFailed); [`ConnectError::ShuttingDown`]; [`ConnectError::WouldBlock`]
    /// inside a handler.
    ///
    /// # Blocking
    /// Up to `timeout`.
    pub fn wait(&self, timeout: Duration) -> Result<PeerHandle, ConnectError> {
        if session::in_handler() {
            return Err(ConnectError::WouldBlock);
        }
        let deadline = deadline_in(timeout);
        loop {
            let seen = self.changes.count();
            if let Some(peer) = self.peer() {
                return Ok(peer);
            }
            if self.connections.lock().is_none() {
                return Err(ConnectError::ShuttingDown);
            }
            if !self.changes.wait(seen, deadline) {
                return Err(ConnectError::NobodyThere(self.addr));
            }
        }
    }

    /// Sends a message, waiting for room up to the send deadline of the configuration.
    ///
    /// # Errors
    /// As [`PeerHandle::send`]. The message comes back.
    ///
    /// # Blocking
    /// As [`PeerHandle::send`].
    pub fn send<P: AsRef<[u8]> + Into<Vec<u8>>>(&self, payload: P) -> Result<(), SendError> {
        self.through(|peer| peer.send(payload))
    }

    /// Sends a message if there is room now. Works inside a handler.
    ///
    /// # Errors
    /// As [`PeerHandle::try_send`]. The message comes back.
    pub fn try_send<P: AsRef<[u8]> + Into<Vec<u8>>>(&self, payload: P) -> Result<(), SendError> {
        self.through(|peer| peer.try_send(payload))
    }

    /// Sends a message, waiting for room no longer than `timeout`.
    ///
    /// # Errors
    /// As [`PeerHandle::send`]. The message comes back.
    ///
    /// # Blocking
    /// While the queue is full, up to `timeout`.
    pub fn send_timeout<P>(&self, payload: P, timeout: Duration) -> Result<(), SendError>
    where
        P: AsRef<[u8]> + Into<Vec<u8>>,
    {
        self.through(|peer| peer.send_timeout(payload, timeout))
    }

    /// Sends a message as `options` say, and gives a receipt for its outcome.
    ///
    /// # Errors
    /// As [`PeerHandle::send_with`]. The message comes back.
    ///
    /// # Blocking
    /// As [`PeerHandle::send_with`].
    pub fn send_with(&self, payload: impl Into<Vec<u8>>, options: &SendOptions) -> Result<Receipt, SendError> {
        self.through(|peer| peer.send_with(payload, options))
    }

    /// Sends to whoever is there, or to where messages wait for somebody.
    fn through<T>(&self, send: impl FnOnce(PeerHandle) -> Result<T, SendError>) -> Result<T, SendError> {
        if let Some(peer) = self.peer() {
            return send(peer);
        }
        let sent = send(PeerHandle::new(self.link.clone()));
        self.want();
        sent
    }

    /// Has the address dialled, if it is not already.
    fn want(&self) {
        engine::want(&self.link, &self.connections);
    }
}

impl fmt::Debug for AddrHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AddrHandle({})", self.addr)
    }
}

impl Node {
    /// A handle on whoever proves itself at an address, which is dialled from now on.
    ///
    /// # Errors
    /// [`ConnectError::TooManyAddresses`]; [`ConnectError::NobodyThere`]: `unknown_peers` is 0, or there are as many peers
    /// as the configuration allows; [`ConnectError::ShuttingDown`].
    pub fn peer_at(&self, addr: SocketAddr) -> Result<AddrHandle, ConnectError> {
        self.place(addr).map_err(|refusal| match refusal {
            SessionsError::TooManyUnknown => ConnectError::TooManyAddresses(addr),
            SessionsError::Closed => ConnectError::ShuttingDown,
            _ => ConnectError::NobodyThere(addr),
        })
    }

    /// Sends to a destination: [`PeerHandle::send`] after a look-up. A destination is a [`PeerId`](crate::PeerId), a
    /// [`SocketAddr`], or a name of the configuration. For addresses see [`AddrHandle`], for peers that are not known
    /// [`Node::peer`].
    ///
    /// # Errors
    /// [`SendErrorKind::UnknownName`]; [`SendErrorKind::TooManyUnknown`] and [`SendErrorKind::UnknownPeer`] as those of
    /// [`Node::peer`], for addresses too; or as [`PeerHandle::send`]. The message comes back.
    ///
    /// # Blocking
    /// As [`PeerHandle::send`].
    pub fn send_to<P>(&self, to: impl Into<Destination>, payload: P) -> Result<(), SendError>
    where
        P: AsRef<[u8]> + Into<Vec<u8>>,
    {
        match self.target(&to.into()) {
            Ok(Target::Peer(peer)) => peer.send(payload),
            Ok(Target::Addr(addr)) => addr.send(payload),
            Err(kind) => Err(SendError { kind, payload: payload.into() }),
        }
    }

    /// Sends to a destination if there is room now. Works inside a handler.
    ///
    /// # Errors
    /// [`SendErrorKind::Full`], or as [`Node::send_to`]. The message comes back.
    pub fn try_send_to<P>(&self, to: impl Into<Destination>, payload: P) -> Result<(), SendError>
    where
        P: AsRef<[u8]> + Into<Vec<u8>>,
    {
        match self.target(&to.into()) {
            Ok(Target::Peer(peer)) => peer.try_send(payload),
            Ok(Target::Addr(addr)) => addr.try_send(payload),
            Err(kind) => Err(SendError { kind, payload: payload.into() }),
        }
    }

    /// Sends to a destination, waiting for room no longer than `timeout`.
    ///
    /// # Errors
    /// As [`Node::send_to`]. The message comes back.
    ///
    /// # Blocking
    /// While the queue is full, up to `timeout`.
    pub fn send_to_timeout<P>(&self, to: impl Into<Destination>, payload: P, timeout: Duration) -> Result<(), SendError>
    where
        P: AsRef<[u8]> + Into<Vec<u8>>,
    {
        match self.target(&to.into()) {
            Ok(Target::Peer(peer)) => peer.send_timeout(payload, timeout),
            Ok(Target::Addr(addr)) => addr.send_timeout(payload, timeout),
            Err(kind) => Err(SendError { kind, payload: payload.into() }),
        }
    }

    /// Sends to a destination as `options` say, and gives a receipt for the message's outcome.
    ///
    /// # Errors
    /// As [`Node::send_to`] and [`PeerHandle::send_with`]. The message comes back.
    ///
    /// # Blocking
    /// As [`PeerHandle::send_with`].
    pub fn send_to_with(
        &self,
        to: impl Into<Destination>,
        payload: impl Into<Vec<u8>>,
        options: &SendOptions,
    ) -> Result<Receipt, SendError> {
        match self.target(&to.into()) {
            Ok(Target::Peer(peer)) => peer.send_with(payload, options),
            Ok(Target::Addr(addr)) => addr.send_with(payload, options),
            Err(kind) => Err(SendError { kind, payload: payload.into() }),
        }
    }

    fn target(&self, to: &Destination) -> Result<Target, SendErrorKind> {
        let id = match to {
            Destination::Peer(id) => *id,
            Destination::Name(name) => self.engine.named(name).ok_or(SendErrorKind::UnknownName)?,
            Destination::Addr(addr) => return Ok(Target::Addr(self.place(*addr)?)),
        };
        let link = self.engine.link_to(id).ok_or(SendErrorKind::UnknownPeer)??;
        Ok(Target::Peer(PeerHandle::new(link)))
    }

    fn place(&self, addr: SocketAddr) -> Result<AddrHandle, SessionsError> {
        let link = self.engine.place(addr)?;
        let (connections, changes) = (self.engine.connections.clone(), self.engine.changes.clone());
        let handle = AddrHandle { addr, link, connections, changes };
        handle.want();
        Ok(handle)
    }
}
