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
use crate::engine::{self, Chosen};
use crate::error::{ConfigError, StartError};
use crate::handshake::{AcceptAll, HandshakePolicy, Identity};
use crate::node::Node;
use crate::session::{Kind, KindsBuilder, Message, PeerHandle};
use crate::transport::Transport;

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
    policy: Arc<dyn HandshakePolicy>,
    payload: Vec<u8>,
    identity: Option<Identity>,
    transport: Option<Arc<dyn Transport>>,
    resolver: Arc<dyn Resolver>,
    shutdown_signal: Option<(Receiver<()>, Duration)>,
}

impl NodeBuilder {
    fn new() -> Self {
        Self {
            config: Config::default(),
            kinds: KindsBuilder::default(),
            policy: Arc::new(AcceptAll),
            payload: Vec::new(),
            identity: None,
            transport: None,
            resolver: Arc::new(SystemResolver),
            shutdown_signal: None,
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
        self.policy = Arc::new(policy);
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

    /// Starts the node.
    ///
    /// # Errors
    /// [`StartError`] says what is wrong and where; nothing is left running.
    pub fn start(self) -> Result<Node, StartError> {
        let Self { config, kinds, policy, payload, identity, transport, resolver, shutdown_signal } = self;
        let peers = config.peers.clone();
        let chosen = Chosen { config, kinds, policy, payload, identity, transport, resolver };
        let node = Node { engine: engine::start(chosen)? };
        if let Some((signal, time)) = shutdown_signal {
            node.engine.shut_down_on(signal, time)?;
        }
        for peer in &peers {
            let kept = node.engine.keep(peer.id, peer.addresses.clone(), false);
            kept.map_err(|error| ConfigError { place: format!("peer {:?}", peer.name), what: error.to_string() })?;
        }
        Ok(node)
    }
}

impl fmt::Debug for NodeBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}
