//! Makes the parts of an engine and starts them.
//!
//! Owns: nothing beyond the start. Threads: the application's. Locks: none. Blocks on: the disk, for the identity.
//! Upholds: a start that fails leaves nothing running.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Sender, unbounded};

use crate::config::{Config, Listening};
use crate::connections::{Caps, Cell, Connections, ListenerId, Report, Resolver, Secrets, Shared, Times};
use crate::error::StartError;
use crate::exposition::Bound;
use crate::handshake::{HandshakeConfig, HandshakePolicy, Identity};
use crate::ident::Incarnation;
use crate::metrics::Metrics;
use crate::registry::SharedRegistry;
use crate::session::{Batch, Consumer, KindsBuilder, OnEnd, OutgoingTaps, Undeliverable};
use crate::sync::Mutex;
use crate::transport::Transport;
use crate::transport::tcp::{BACKLOG, LiveTcp};

use super::events::{Changes, Events, Listener};
use super::inlet::Inlet;
use super::present::Present;
use super::protection::{Protection, warn_of_exposure};
use super::running::{self, Engine, Sites};
use super::selfcheck::{self, Readings};
use super::settings;
use super::shutdown::Ending;

/// The protocol id of links between nodes.
const PROTOCOL: &str = "threadwire-direct/1";
/// Events that wait for the application.
const EVENTS: usize = 1024;

/// What the application chose.
pub(crate) struct Chosen {
    pub(crate) config: Config,
    pub(crate) kinds: KindsBuilder,
    /// None lets everybody in.
    pub(crate) policy: Option<Arc<dyn HandshakePolicy>>,
    pub(crate) payload: Vec<u8>,
    /// Instead of the one in the data folder or a fresh one.
    pub(crate) identity: Option<Identity>,
    /// Instead of TCP.
    pub(crate) transport: Option<Arc<dyn Transport>>,
    pub(crate) resolver: Arc<dyn Resolver>,
    /// Where messages are announced that are sent.
    pub(crate) taps: OutgoingTaps,
    /// Where batches go if there is no handler, instead of the engine's own inlet.
    pub(crate) inbox: Option<Sender<Batch>>,
    pub(crate) events: Listener,
}

/// Starts an engine. The peers of the configuration are the caller's to add.
///
/// # Errors
/// [`StartError`] says what is wrong and where; nothing is left running.
pub(crate) fn start(chosen: Chosen) -> Result<Engine, StartError> {
    let Chosen { config, kinds, policy, payload, identity, transport, resolver, taps, inbox, events } = chosen;
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
    let backlog = if transport.is_none() { BACKLOG.unsigned_abs().into() } else { 0 };
    let protection = Protection::new(&config, &identity, PROTOCOL, transport, LiveTcp::new(settings::tcp(&config)))?;
    let transport = protection.transport();
    warn_of_exposure(&config, &me.short());
    let mut listeners = Vec::new();
    let mut sockets = Vec::new();
    for (n, &addr) in config.listen.iter().enumerate() {
        let listener = transport.listen(addr).map_err(|source| StartError::Listen { addr, source })?;
        sockets.push((ListenerId(n), Listening { asked: addr, bound: listener.local_addr() }));
        listeners.push((ListenerId(n), listener));
    }
    let local_addrs: Vec<SocketAddr> = sockets.iter().map(|(_, socket)| socket.bound).collect();
    let endpoint =
        config.metrics.listen.map(|addr| Bound::to(addr).map_err(|source| StartError::MetricsListen { addr, source }));
    let endpoint = endpoint.transpose()?;
    let metrics_addr = endpoint.as_ref().map(Bound::addr);
    let needs = settings::needs(&config, listeners.len(), endpoint.is_some(), backlog);
    let findings = selfcheck::check(&needs, &Readings::take());
    for finding in &findings {
        log::warn!(target: "threadwire::node", "{}: {finding}", me.short());
    }
    let advertised = settings::advertised(&config, &local_addrs);
    let mut handshake = HandshakeConfig::new(identity, incarnation(), config.network.clone(), PROTOCOL)?
        .advertise(advertised)
        .payload(payload)?;
    if let Some(policy) = policy {
        handshake = handshake.policy(policy);
    }

    let limits = settings::registry(&config);
    let handles = handler.is_some();
    let (consumer, inlet) = match (handler, inbox) {
        (Some(handler), _) => (Consumer::Handler(handler), None),
        (None, Some(inbox)) => (Consumer::Channel(inbox), None),
        (None, None) => {
            // At most one batch of each link is in it.
            let (sender, receiver) = unbounded();
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
    let shared = Arc::new(Shared {
        registry: SharedRegistry::new(limits),
        metrics: Arc::new(Metrics::default()),
        handshake: Cell::new(handshake),
        me,
        settings: Arc::new(settings::session(&config, kinds, handles, undeliverable, taps)),
        outbound: AtomicUsize::new(config.outbound),
        resolve_threads: AtomicUsize::new(config.resolve_threads),
        consumer,
        times: Cell::new(Times::of(&config)),
        secrets: Secrets::new()?,
        reports,
        on_end,
        start: Instant::now(),
    });
    let changes = Arc::new(Changes::default());
    let (events, to_application) = Events::new(events, EVENTS, shared.metrics.clone(), changes.clone());
    let on_event = move |lifecycle| events.tell(lifecycle);
    let caps = Caps::of(&config);
    let connections = Connections::start(&shared, transport, resolver, listeners, caps, to_supervisor, on_event)?;
    let endpoint = endpoint.map(|bound| running::serve(bound, &shared)).transpose()?;
    log::info!(target: "threadwire::node", "{}: started, listens on {local_addrs:?}", me.short());
    if let Some(addr) = metrics_addr {
        log::info!(target: "threadwire::node", "{}: serves metrics at http://{addr}/metrics", me.short());
    }
    let names = config.peers.iter().map(|peer| (peer.name.clone(), peer.id)).collect();
    let present = Present { next_listener: sockets.len(), sockets, backlog, config };
    Ok(Engine {
        shared,
        sites: Mutex::new(Sites { local_addrs, metrics: metrics_addr }),
        names: Mutex::new(names),
        added: Mutex::default(),
        present: Mutex::new(present),
        connections: Arc::new(Mutex::new(Some(connections))),
        endpoint: Arc::new(Mutex::new(endpoint)),
        inlet: inlet.map(Arc::new),
        events: to_application,
        undelivered,
        changes,
        ending: Arc::new(Ending::new()),
        findings,
        protection,
    })
}

/// A number that no earlier life of this identity had: the time of the start, in nanoseconds.
fn incarnation() -> Incarnation {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Incarnation(now.as_nanos() as u64)
}
