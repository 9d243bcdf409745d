//! Puts a node together and starts it.
//!
//! Owns: what the application chose. Threads: the application's. Locks: none. Blocks on: the disk, for the identity.
//! Upholds: a start that fails leaves nothing running.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, bounded, unbounded};
use serde::de::DeserializeOwned;

use crate::config::{self, Config, LINK_FLOOR, THREADS_PER_SESSION};
use crate::connections::{Caps, Connections, Report, Resolver, Secrets, Shared, SystemResolver, Times};
use crate::error::{ConfigError, StartError};
use crate::exposition::{self, Bound};
use crate::handshake::{AcceptAll, HandshakeConfig, HandshakePolicy, Identity};
use crate::ident::Incarnation;
use crate::memory::Budget;
use crate::metrics::Metrics;
use crate::node::events::{Changes, Events};
use crate::node::protection::{Protection, warn_of_exposure};
use crate::node::receive::Inlet;
use crate::node::selfcheck::{self, Needs, Readings};
use crate::node::shutdown::{self, Ending};
use crate::node::{self, Node};
use crate::registry::{RegistryLimits, SharedRegistry};
use crate::session::{
    Askers, Consumer, Kind, Kinds, KindsBuilder, Message, OnEnd, PeerHandle, SessionSettings, Tuned, Tuning,
    Undeliverable,
};
use crate::sync::Mutex;
use crate::threads;
use crate::transport::Transport;
use crate::transport::tcp::{BACKLOG, Tcp, TcpOptions};

/// The protocol id of links between nodes.
const PROTOCOL: &str = "threadwire-direct/1";
/// Links beyond the sessions there may be: peers that are known and away.
const LINKS_AWAY: usize = 1024;
/// Events that wait for the application.
const EVENTS: usize = 1024;

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
        config.validate()?;
        let (kinds, handler) = kinds.build().map_err(|(kind, what)| StartError::Kind { kind, what })?;
        let identity = match (identity, &config.security.key, &config.data_dir) {
            (Some(identity), ..) => identity,
            (None, Some(file), _) => Identity::from_file(file)?,
            (None, None, Some(folder)) => Identity::load_or_create(folder)?,
            (None, None, None) => {
                log::info!(target: "threadwire::node", "no data_dir: the identity lasts as long as this process");
                Identity::generate()?
            }
        };
        let (me, identity) = (identity.peer_id(), Arc::new(identity));
        let backlog = if transport.is_none() && !config.listen.is_empty() { BACKLOG.unsigned_abs().into() } else { 0 };
        let protection = Protection::new(&config, &identity, PROTOCOL, transport, Tcp::new(tcp_options(&config)))?;
        let transport = protection.transport();
        warn_of_exposure(&config, &me.short());
        let mut listeners = Vec::new();
        let mut local_addrs: Vec<SocketAddr> = Vec::new();
        for &addr in &config.listen {
            let listener = transport.listen(addr).map_err(|source| StartError::Listen { addr, source })?;
            local_addrs.push(listener.local_addr());
            listeners.push(listener);
        }
        let endpoint = config
            .metrics
            .listen
            .map(|addr| Bound::to(addr).map_err(|source| StartError::MetricsListen { addr, source }));
        let endpoint = endpoint.transpose()?;
        let metrics_addr = endpoint.as_ref().map(Bound::addr);
        let needs = Needs {
            sessions: sessions(&config) as u64,
            half_open: config.half_open as u64,
            listeners: listeners.len() as u64,
            scrapers: endpoint.as_ref().map_or(0, |_| exposition::CONNECTIONS as u64 + 1),
            backlog,
        };
        let findings = selfcheck::check(&needs, &Readings::take());
        for finding in &findings {
            log::warn!(target: "threadwire::node", "{}: {finding}", me.short());
        }
        let bound = local_addrs.iter().copied().find(|addr| !addr.ip().is_unspecified());
        let advertised = config.advertise.or(bound);
        let handshake = HandshakeConfig::new(identity, incarnation(), config.network.clone(), PROTOCOL)?
            .advertise(advertised)
            .payload(payload)?
            .policy(policy);

        // Unknown peers keep no known one out.
        let unknown = config.unknown_peers;
        let links = config.inbound.saturating_add(config.outbound).saturating_add(LINKS_AWAY).saturating_add(unknown);
        let (consumer, inlet) = match handler {
            Some(handler) => (Consumer::Handler(handler), None),
            None => {
                // At most one batch of each link is in it.
                let (sender, receiver) = bounded(links);
                (Consumer::Channel(sender), Some(Inlet::new(receiver)))
            }
        };
        let (undeliverable, undelivered) = Undeliverable::new();
        let (reports, to_supervisor) = unbounded();
        let on_end: OnEnd = {
            let reports = reports.clone();
            // The supervisor is gone only when the node is past the point where it waits for sessions.
            Arc::new(move |ended| drop(reports.send(Report::Ended(ended))))
        };
        let (inbound, outbound, threads) = (config.inbound, config.outbound, session_threads(&config));
        let shared = Arc::new(Shared {
            registry: SharedRegistry::new(RegistryLimits { inbound, outbound, links, unknown, threads }),
            metrics: Arc::new(Metrics::default()),
            handshake: Arc::new(handshake),
            me,
            settings: Arc::new(settings(&config, kinds, inlet.is_none(), undeliverable)),
            outbound,
            resolve_threads: config.resolve_threads,
            consumer,
            times: Times::of(&config),
            secrets: Secrets::new()?,
            reports,
            on_end,
            start: Instant::now(),
        });
        let changes = Arc::new(Changes::default());
        let (events, to_application) = Events::new(EVENTS, shared.metrics.clone(), changes.clone());
        let on_event = move |lifecycle| events.tell(lifecycle);
        let caps = Caps::of(&config);
        let connections = Connections::start(&shared, transport, resolver, listeners, caps, to_supervisor, on_event)?;
        let endpoint = endpoint.map(|bound| {
            let node = shared.clone();
            bound.serve(shared.metrics.clone(), move || node::snapshot(&node).to_openmetrics())
        });
        let endpoint = endpoint.transpose()?;
        log::info!(target: "threadwire::node", "{}: started, listens on {local_addrs:?}", me.short());
        if let Some(addr) = metrics_addr {
            log::info!(target: "threadwire::node", "{}: serves metrics at http://{addr}/metrics", me.short());
        }
        let node = Node {
            shared,
            local_addrs,
            connections: Arc::new(Mutex::new(Some(connections))),
            metrics_addr,
            endpoint: Arc::new(Mutex::new(endpoint)),
            inlet: inlet.map(Arc::new),
            events: to_application,
            undelivered,
            changes,
            names: config.peers.iter().map(|peer| (peer.name.clone(), peer.id)).collect(),
            ending: Arc::new(Ending::new()),
            findings,
            protection,
        };
        if let Some((signal, time)) = shutdown_signal {
            shutdown::shut_down_on(node.closing(), signal, time)?;
        }
        for peer in &config.peers {
            node.add_peer(peer.id, peer.addresses.iter().cloned())
                .map_err(|error| ConfigError { place: format!("peer {:?}", peer.name), what: error.to_string() })?;
        }
        Ok(node)
    }
}

impl fmt::Debug for NodeBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}

/// A number that no earlier life of this identity had: the time of the start, in nanoseconds.
fn incarnation() -> Incarnation {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Incarnation(now.as_nanos() as u64)
}

/// Sessions that the configuration allows at one time.
fn sessions(config: &Config) -> usize {
    let threads = config.max_threads.map_or(usize::MAX, |threads| threads.saturating_sub(config.own_threads()));
    config.inbound.saturating_add(config.outbound).min(threads / THREADS_PER_SESSION)
}

/// The thread budget, less the node's own threads.
fn session_threads(config: &Config) -> usize {
    let sessions = config.inbound.saturating_add(config.outbound).saturating_mul(THREADS_PER_SESSION);
    let asked = config.max_threads.unwrap_or(sessions.saturating_add(config.own_threads()));
    asked.min(threads::most().unwrap_or(usize::MAX)).saturating_sub(config.own_threads())
}

fn settings(config: &Config, kinds: Arc<Kinds>, handler: bool, undeliverable: Undeliverable) -> SessionSettings {
    // Each link has its floor whatever the others do.
    let floors = config.inbound.saturating_add(config.outbound).saturating_mul(LINK_FLOOR);
    SessionSettings {
        memory: Arc::new(Budget::new(config.memory_bytes.saturating_sub(floors))),
        tuned: Tuned::new(Tuning::of(config, handler)),
        holds_inbound: !handler,
        undelivered: Arc::new(undeliverable),
        kinds,
        askers: Arc::new(Askers::default()),
    }
}

fn tcp_options(config: &Config) -> TcpOptions {
    let config::Tcp { nodelay, keepalive, user_timeout, notsent_low_water_mark, .. } = config.tcp;
    TcpOptions { nodelay, keepalive, user_timeout, notsent_low_water_mark }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thread_budget_is_what_the_limits_ask_for_or_less_if_the_configuration_or_the_system_says_so() {
        let mut config = Config::default();
        assert_eq!(session_threads(&config), 2 * (512 + 64));
        config.max_threads = Some(8);
        assert_eq!(session_threads(&config), 4);
        (config.max_threads, config.inbound) = (None, usize::MAX);
        let most = threads::most().unwrap_or(usize::MAX);
        assert_eq!(session_threads(&config), most.saturating_sub(4));
        (config.max_threads, config.metrics.listen) = (Some(8), "127.0.0.1:0".parse().ok());
        assert_eq!(session_threads(&config), 3, "the endpoint has a thread of its own");
    }
}
