//! The verbs that open and end connections.
//!
//! Owns: nothing. Threads: the application's call them. Locks: to keep a peer or to let it go, see `engine::running`; else
//! the lock of the node's connections manager, the registry lock, a link lock and an outbox lock, one after the other.
//! Blocks on: [`Node::connect`] on the outcome of its dial.
//! Upholds: what is asked for is done by the supervisor in the order it was asked; a dial has one outcome.

use crossbeam_channel::bounded;

use crate::address::Address;
use crate::direct::{self, PeersMap};
use crate::error::{CloseReason, ConnectError, DisconnectError};
use crate::ident::PeerId;
use crate::node::Node;
use crate::session::{self, PeerHandle};
use crate::watch::Watcher;

impl Node {
    /// Keeps a peer connected from now on: dials it, and dials again whenever it is lost, with growing delays
    /// ([`Backoff`](crate::config::Backoff)) that start over after a connection that held. Messages may be sent to the
    /// handle at once; they wait for the connection.
    ///
    /// Addresses are [`SocketAddr`](std::net::SocketAddr)s, [`Address`]es or texts such as `"plc-7.local:50005"`. They
    /// are tried one after the other, those that answered last first and the others in order; a name is looked up afresh
    /// each time, and all addresses it has then are tried. Without any, the node waits for the peer to dial. Called again
    /// with other addresses, it replaces them and tries the new ones at once; a session that there is stays.
    ///
    /// # Errors
    /// [`ConnectError::BadAddress`]; [`ConnectError::ShuttingDown`]; [`ConnectError::UnknownPeer`] for the node's own
    /// id, for one that stands for an address ([`PeerId::stands_for`]), or when there are as many peers as the
    /// configuration allows.
    pub fn add_peer<I>(&self, id: PeerId, addresses: I) -> Result<PeerHandle, ConnectError>
    where
        I: IntoIterator<Item: TryInto<Address>>,
        ConnectError: From<<I::Item as TryInto<Address>>::Error>,
    {
        let addresses = addresses.into_iter().map(TryInto::try_into).collect::<Result<Vec<_>, _>>()?;
        self.engine.keep(id, addresses, true)
    }

    /// Keeps a peer connected no longer: it is not dialled again, and its session, if there is one, says goodbye with
    /// [`CloseReason::Requested`]. Returns at once; [`Event::Disconnected`](crate::Event::Disconnected) tells when the
    /// session has ended.
    ///
    /// Nothing that was sent is lost by it. The peer stays known, and the bounds of unknown peers ([`Node::peer`]) do not
    /// hold for it; its handles stay usable: what is queued or sent
    /// afterwards waits within the bounds of its queue and is sent when the peer dials this node, or when it is added
    /// again; what was written and not acknowledged ends unknown when the resume window ends. To keep a peer from
    /// coming back by itself, refuse it in a [`HandshakePolicy`](crate::handshake::HandshakePolicy).
    ///
    /// A peer that the live map of peers holds ([`NodeBuilder::peers_map`](crate::NodeBuilder::peers_map)) stays kept, with
    /// its session, at the addresses of the map: take it out of the map.
    ///
    /// # Errors
    /// [`DisconnectError::UnknownPeer`], [`DisconnectError::ShuttingDown`].
    pub fn remove_peer(&self, id: PeerId) -> Result<(), DisconnectError> {
        self.engine.remove(id)
    }

    /// Ends a peer's session with a goodbye that says `reason`: [`CloseReason::Requested`], or a reason of the
    /// application's own ([`CloseReason::application`]), which the peer's application finds in its
    /// [`Event::Disconnected`](crate::Event::Disconnected). What is being written is finished before; everything else
    /// is kept for the next session. Returns at once; the event tells when the session has ended.
    ///
    /// A peer that is kept ([`Node::add_peer`]) is dialled again after the delay of the backoff, or later if the peer's
    /// own goodbye asked for that; so does the other side, if it keeps this node. [`Node::remove_peer`] is for good.
    ///
    /// # Errors
    /// [`DisconnectError::NotConnected`], [`DisconnectError::UnknownPeer`], [`DisconnectError::Reserved`],
    /// [`DisconnectError::ShuttingDown`].
    pub fn disconnect(&self, id: PeerId, reason: CloseReason) -> Result<(), DisconnectError> {
        if !reason.is_applications() {
            return Err(DisconnectError::Reserved(reason));
        }
        if self.engine.connections.lock().is_none() {
            return Err(DisconnectError::ShuttingDown);
        }
        let registry = &self.engine.shared.registry;
        let link = registry.known_link(&id).ok_or(DisconnectError::UnknownPeer(id))?;
        let attached = link.core.lock().attached().ok_or(DisconnectError::NotConnected(id))?;
        let session = registry.session(attached, |entry| entry.session.clone());
        session.ok_or(DisconnectError::NotConnected(id))?.say_goodbye(&link, reason);
        Ok(())
    }

    /// Keeps the peers of a map connected.
    pub(super) fn follow(&self, map: Watcher<PeersMap>) {
        self.engine.follow(direct::addresses(map));
    }

    /// Dials an address once and waits for whoever proves itself there: one session, which is not dialled again when it
    /// ends. A name is looked up first, and the addresses it has are tried one after the other. If the two are
    /// connected already, or become so from the other side meanwhile, that session stays, and this is a success.
    ///
    /// The address is a [`SocketAddr`](std::net::SocketAddr), an [`Address`] or a text such as `"plc-7.local:50005"`.
    ///
    /// # Errors
    /// [`ConnectError::Dial`] says for each address how far it came and why not further; [`ConnectError::BadAddress`];
    /// [`ConnectError::TooMany`]; [`ConnectError::ShuttingDown`]; [`ConnectError::WouldBlock`] inside a handler.
    ///
    /// # Blocking
    /// Up to `resolve_timeout` for a name, and for each of its addresses up to `connect_timeout` and
    /// `handshake_timeout` of the configuration.
    pub fn connect<A>(&self, to: A) -> Result<PeerHandle, ConnectError>
    where
        A: TryInto<Address>,
        ConnectError: From<A::Error>,
    {
        let address = to.try_into()?;
        if session::in_handler() {
            return Err(ConnectError::WouldBlock);
        }
        let (waiter, outcome) = bounded(1);
        {
            let connections = self.engine.connections.lock();
            let connections = connections.as_ref().ok_or(ConnectError::ShuttingDown)?;
            connections.connect(address, waiter);
        }
        // Every dial has one outcome, by its deadlines; a node that ends meanwhile drops the other end.
        let id = outcome.recv().map_err(|_| ConnectError::ShuttingDown)??;
        self.peer(id)
    }
}
