//! Puts together what a node is started with.
//!
//! Owns: what the application chose. Threads: the application's. Locks: none. Blocks on: the disk, for the identity.
//! Upholds: a start that fails leaves nothing running.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;
use serde::de::DeserializeOwned;

use crate::config::Config;
use crate::connections::{Resolver, SystemResolver};
use crate::direct::PeersMap;
use crate::engine::{self, Chosen, Listener};
use crate::error::{ConfigError, StartError};
use crate::handshake::{HandshakePolicy, Identity};
use crate::node::Node;
use crate::session::{Kind, KindsBuilder, Message, OutgoingTaps, PeerHandle};
use crate::sync::Mutex;
use crate::transport::Transport;
use crate::watch::Watcher;

impl Node {
    /// A builder: configuration, handler, start.
    pub fn builder() -> NodeBuilder {
        NodeBuilder::new()
    }
}

/// Builds a [`Node`].
#[must_use = "a builder starts nothing until `start`"]
pub struct NodeBuilder {
    config: Config,
    kinds: KindsBuilder,
    policy: Option<Arc<dyn HandshakePolicy>>,
    payload: Vec<u8>,
    identity: Option<Identity>,
    transport: Option<Arc<dyn Transport>>,
    resolver: Arc<dyn Resolver>,
    shutdown_signal: Option<(Receiver<()>, Duration)>,
    peers_map: Option<Watcher<PeersMap>>,
}

impl NodeBuilder {
    fn new() -> Self {
        Self {
            config: Config::default(),
            kinds: KindsBuilder::default(),
            policy: None,
            payload: Vec::new(),
            identity: None,
            transport: None,
            resolver: Arc::new(SystemResolver),
            shutdown_signal: None,
            peers_map: None,
        }
    }

    /// The configuration; [`Config::default`] if this is not called.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Handles every message on the receiver thread of its peer: the fastest way, with the payload borrowed. It may not
    /// block; blocking verbs inside it return an error. Without a handler the application takes messages by
    /// [`Node::recv`] or [`Node::incoming`].
    ///
    /// # Panics
    /// A panic of the handler rejects that message to its sender and closes that peer's session; nothing else.
    pub fn handler(mut self, handler: impl Fn(&PeerHandle, Message<'_>) + Send + Sync + 'static) -> Self {
        self.kinds.rest(Arc::new(handler));
        self
    }

    /// Registers a kind of message: its name in logs and metrics, the longest payload, and how urgent it is. Nodes need
    /// not know the same kinds.
    pub fn kind(mut self, kind: Kind) -> Self {
        self.kinds.kind(kind);
        self
    }

    /// Handles the messages of one kind, as [`NodeBuilder::handler`] does the rest. Messages of a kind that neither has a
    /// handler for are rejected to their sender with [`RejectCause::NoHandler`](crate::error::RejectCause::NoHandler).
    ///
    /// # Panics
    /// As of [`NodeBuilder::handler`].
    pub fn on(mut self, kind: u16, handler: impl Fn(&PeerHandle, Message<'_>) + Send + Sync + 'static) -> Self {
        self.kinds.on(kind, handler);
        self
    }

    /// Handles the messages of one kind, decoded from bincode. A message that is no `T` is rejected to its sender with
    /// [`RejectCause::Undecodable`](crate::error::RejectCause::Undecodable).
    ///
    /// # Panics
    /// As of [`NodeBuilder::handler`].
    pub fn on_msg<T: DeserializeOwned>(
        mut self,
        kind: u16,
        handler: impl Fn(&PeerHandle, T, Message<'_>) + Send + Sync + 'static,
    ) -> Self {
        self.kinds.on_msg(kind, handler);
        self
    }

    /// Judges proven peers by who they are, who dialled, and the bytes they added to their hello. Runs on a worker
    /// thread.
    pub fn handshake_policy(mut self, policy: impl HandshakePolicy + 'static) -> Self {
        self.policy = Some(Arc::new(policy));
        self
    }

    /// Bytes for the policies of other nodes, at most 8 KiB.
    pub fn handshake_payload(mut self, payload: impl Into<Vec<u8>>) -> Self {
        self.payload = payload.into();
        self
    }

    /// The identity, instead of the one in the data folder or a fresh one.
    pub fn identity(mut self, identity: Identity) -> Self {
        self.identity = Some(identity);
        self
    }

    /// The transport, instead of TCP: for tests, and for streams of your own. TLS goes around it unless the
    /// configuration's `security.channel` is plain.
    pub fn transport(mut self, transport: impl Transport) -> Self {
        self.transport = Some(Arc::new(transport));
        self
    }

    /// The resolver of host names, instead of the system's.
    pub fn resolver(mut self, resolver: impl Resolver) -> Self {
        self.resolver = Arc::new(resolver);
        self
    }

    /// Shuts the node down when a channel of the application's fires or disconnects, as [`Node::shutdown`] with
    /// `deadline` would: the flag that ends the program ends the node too. A thread of the node waits for it. What the
    /// shutdown left is in the log, and [`Node::wait_shutdown`] returns it.
    pub fn shutdown_signal(mut self, signal: Receiver<()>, deadline: Duration) -> Self {
        self.shutdown_signal = Some((signal, deadline));
        self
    }

    /// Keeps the peers of a live map connected, at the addresses it has for them, as it changes.
    ///
    /// - A peer that appears is kept as by [`Node::add_peer`]; new addresses are tried at once. They are dialled in the
    ///   order of recent success, then in that of the map, one after the other until one answers: one session for each
    ///   peer, and the next address when it is lost.
    /// - An address that is gone is let go: a session that was dialled there stays until one at another address of the
    ///   peer takes over, so that a wrong entry cuts nobody off.
    /// - A peer without addresses is known, and nowhere to dial: it may come by itself, and a session that there is
    ///   stays.
    /// - A peer that is gone is let go as by [`Node::remove_peer`]: its session says goodbye, whoever dialled, and what
    ///   waits is kept for when it comes back.
    /// - Metadata changes nothing, nor does an entry for this node itself, or for an id that is nobody's
    ///   ([`PeerId::stands_for`](crate::PeerId::stands_for)).
    ///
    /// Each source speaks for itself. A peer that was also added or configured stays until it is removed as well, with
    /// those addresses behind those of the map; and [`Node::remove_peer`] takes away what was added, not what the map
    /// says. When nobody can change the map any more, what it said last holds.
    ///
    /// Changes are heard of by word from the [`Watch`](crate::Watch), not by looking. Only where none of a peer's names
    /// was found is it tried again after a fixed time, [`RESOLVE_RETRY_TIMEOUT`](crate::direct::RESOLVE_RETRY_TIMEOUT).
    /// Peers beyond the number the configuration allows are left out, with a warning in the log, until a
    /// [reload](Node::reload) makes room for them.
    ///
    /// ```
    /// use std::time::Duration;
    /// use threadwire::{Config, Node, Watch, direct::PeersMap};
    ///
    /// let patience = Duration::from_secs(5);
    /// let bob = Node::builder().config(Config::loopback()).start()?;
    /// let map = Watch::new(PeersMap::new());
    /// let alice = Node::builder().config(Config::loopback()).peers_map(&map).start()?;
    /// map.update(|peers| {
    ///     peers.insert(bob.id(), bob.local_addr().into_iter().map(Into::into).collect());
    /// });
    /// alice.wait_connected(bob.id(), patience)?.send("found you")?;
    /// assert_eq!(bob.recv_timeout(patience)?.payload(), b"found you");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn peers_map(mut self, map: impl Into<Watcher<PeersMap>>) -> Self {
        self.peers_map = Some(map.into());
        self
    }

    /// Starts the node.
    ///
    /// # Errors
    /// [`StartError`] says what is wrong and where; nothing is left running.
    pub fn start(self) -> Result<Node, StartError> {
        let Self { config, kinds, policy, payload, identity, transport, resolver, shutdown_signal, peers_map } = self;
        let peers = config.peers.clone();
        let taps = OutgoingTaps::new();
        let chosen = Chosen {
            config,
            kinds,
            policy,
            payload,
            identity,
            transport,
            resolver,
            taps,
            inbox: None,
            events: Listener::Engine,
        };
        let node = Node { engine: engine::start(chosen)?, caster: Mutex::default() };
        if let Some((signal, time)) = shutdown_signal {
            node.engine.shut_down_on(signal, time)?;
        }
        for peer in &peers {
            let kept = node.engine.keep(peer.id, peer.addresses.clone(), false);
            kept.map_err(|error| ConfigError { place: format!("peer {:?}", peer.name), what: error.to_string() })?;
        }
        if let Some(map) = peers_map {
            node.follow(map);
        }
        Ok(node)
    }
}

impl fmt::Debug for NodeBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}
