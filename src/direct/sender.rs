//! A direct sender on its own: everything of a node that sends and receives, driven by channels.
//!
//! Owns: an engine, and the thread of its dispatcher. Threads: those of an engine, and `direct` if it was started and not
//! run. Locks: its own, for the thread, at the end. Blocks on: [`run_direct_sender`] until the shutdown;
//! [`DirectSender::shutdown`] up to its deadline.
//! Upholds: a start that fails leaves nothing running; one that is dropped shuts down.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, never};

use super::dispatch::{Dispatcher, dispatch_loop};
use super::incoming::Consumer;
use super::inputs::DirectInputs;
use super::peer_sender::PeerSender;
use super::transfer::Transfers;
use crate::engine::{self, Chosen, Engine, Listener, ShutdownReport};
use crate::error::{ConfigError, ConnectError, StartError};
use crate::ident::PeerId;
use crate::session::{self, KindsBuilder, OutcomeBatch};
use crate::sync::{Mutex, deadline_in};
use crate::threads::{self, Thread};

const STACK: usize = 256 * 1024;
/// The name of its thread.
const THREAD: &str = "direct";

/// A direct sender that runs: it takes messages from a channel and sends each to its destination, and hands on what
/// comes, over any transport, without a [`Node`](crate::Node). Everything it needs and gives is in [`DirectInputs`].
///
/// It is made of the same parts as a node, and other nodes see no difference. Dropping it shuts it down, with two seconds
/// to drain.
///
/// ```
/// use std::time::{Duration, Instant};
/// use crossbeam_channel::bounded;
/// use threadwire::direct::{DirectInputs, DirectSender};
/// use threadwire::{Config, Node, Watch};
///
/// let bob = Node::builder().config(Config::loopback()).start()?;
///
/// let (messages, to_send) = bounded(1024);
/// let (results, sent) = bounded(1024);
/// let config = Watch::new(Config::loopback());
/// let mut inputs = DirectInputs::new(&config, to_send);
/// inputs.results = Some(results);
/// let sender = DirectSender::start(inputs)?;
///
/// messages.send((bob.local_addr().unwrap().into(), "hello".into(), Instant::now()))?;
/// assert_eq!(bob.recv()?.payload(), b"hello");
/// let result = sent.recv()?;
/// assert_eq!((result.to, result.result?.bytes), (bob.local_addr().unwrap().into(), 5));
/// assert!(sender.shutdown(Duration::from_secs(5)).is_clean());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct DirectSender {
    engine: Arc<Engine>,
    transfers: Option<Arc<Transfers>>,
    /// By when it is to end.
    stop: Sender<Instant>,
    thread: Mutex<Option<Thread>>,
}

/// Runs a direct sender on the caller's thread, until its shutdown signal comes and the shutdown is over.
///
/// # Errors
/// [`StartError`]: nothing is left running.
///
/// # Blocking
/// Until the end.
pub fn run_direct_sender(inputs: DirectInputs) -> Result<ShutdownReport, StartError> {
    // Nobody holds a handle.
    let (_stop, stopped) = bounded(1);
    let (engine, transfers, inputs) = begin(inputs)?;
    Ok(dispatch_loop(Dispatcher::new(engine, inputs, transfers, stopped)))
}

/// What is under way, and where its outcomes come.
type Watched = Option<(Arc<Transfers>, Receiver<OutcomeBatch>)>;

fn begin(mut inputs: DirectInputs) -> Result<(Arc<Engine>, Watched, DirectInputs), StartError> {
    let config = inputs.config.get();
    let mut kinds = KindsBuilder::default();
    let mut inbox = None;
    match &inputs.incoming.consumer {
        Consumer::Channel(batches) => inbox = Some(batches.clone()),
        Consumer::Handler(handler) => kinds.rest(handler.clone()),
        Consumer::Nobody => kinds.nobody(),
    }
    let chosen = Chosen {
        config: (*config).clone(),
        kinds,
        policy: inputs.policy.clone(),
        payload: Vec::new(),
        identity: inputs.credential.take(),
        transport: inputs.transport.clone(),
        resolver: inputs.resolver.clone(),
        taps: inputs.outgoing.clone(),
        inbox,
        events: inputs.events.take().map_or(Listener::Nobody, Listener::At),
    };
    let mut engine = engine::start(chosen)?;
    // What fails is a result, or counted.
    engine.undelivered = never();
    let engine = Arc::new(engine);
    for peer in &config.peers {
        engine
            .keep(peer.id, peer.addresses.clone(), false)
            .map_err(|error| ConfigError { place: format!("peer {:?}", peer.name), what: error.to_string() })?;
    }
    if let Some(peers) = inputs.peers.take() {
        engine.follow(super::peer_data::addresses(peers));
    }
    inputs.metrics.begin(&engine.shared);
    let transfers = inputs.results.is_some().then(|| Transfers::new(inputs.under_way));
    let transfers = transfers.map(|(transfers, outcomes)| (Arc::new(transfers), outcomes));
    Ok((engine, transfers, inputs))
}

impl DirectSender {
    /// Starts a direct sender on a thread of its own, beyond those that `max_threads` of the configuration counts.
    ///
    /// # Errors
    /// [`StartError`]: nothing is left running.
    pub fn start(inputs: DirectInputs) -> Result<Self, StartError> {
        let (stop, stopped) = bounded(1);
        let (engine, watched, inputs) = begin(inputs)?;
        let transfers = watched.as_ref().map(|(transfers, _)| transfers.clone());
        let metrics = inputs.metrics.clone();
        let dispatcher = Dispatcher::new(engine.clone(), inputs, watched, stopped);
        let thread = threads::spawn(THREAD, "", STACK, move || drop(dispatch_loop(dispatcher)));
        let thread = thread.inspect_err(|_| metrics.end(&engine.shared))?;
        Ok(Self { engine, transfers, stop, thread: Mutex::new(Some(thread)) })
    }

    /// Who it is.
    pub fn id(&self) -> PeerId {
        self.engine.shared.me
    }

    /// Where it listens, in the order of the configuration, with the ports the system chose.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.engine.local_addrs()
    }

    /// The sender of one peer, known or not.
    ///
    /// # Errors
    /// As of [`Node::peer`](crate::Node::peer).
    pub fn peer_sender(&self, id: PeerId) -> Result<PeerSender, ConnectError> {
        let peer = self.engine.peer(id)?;
        Ok(PeerSender::new(peer, self.engine.shared.clone(), self.transfers.clone()))
    }

    /// Waits until a peer is connected, whoever dialled.
    ///
    /// # Errors
    /// As of [`Node::wait_connected`](crate::Node::wait_connected).
    ///
    /// # Blocking
    /// Up to `timeout`.
    pub fn wait_connected(&self, id: PeerId, timeout: Duration) -> Result<PeerSender, ConnectError> {
        let peer = self.engine.wait_connected(id, timeout)?;
        Ok(PeerSender::new(peer, self.engine.shared.clone(), self.transfers.clone()))
    }

    /// Shuts it down: takes what is in the channel of messages, as before each when its result has a place, for a quarter of
    /// the time at most; waits until what was accepted is acknowledged, says goodbye to every peer, gives out the results
    /// that are left, ends every thread. What is in the channel then, or comes into it, comes back as a result, refused;
    /// what comes after the end is the caller's who still sends: keep a clone of the receiver, and
    /// it stays in the channel.
    ///
    /// It happens once, whoever asks, the shutdown signal included; everybody gets the report. Inside a handler it begins,
    /// and the call returns at once with a report that is not [`finished`](ShutdownReport::finished).
    ///
    /// # Blocking
    /// Up to `deadline` from now.
    pub fn shutdown(&self, deadline: Duration) -> ShutdownReport {
        let (time, deadline) = (deadline, deadline_in(deadline));
        // Full: somebody has asked; gone: it is over.
        let _ = self.stop.try_send(deadline);
        let mut report = self.engine.wait_shutdown(time).unwrap_or_default();
        if !session::in_handler() {
            // Without the lock: others may wait beside, each with a deadline of its own.
            let ended = self.thread.lock().as_ref().map(Thread::ended);
            match ended.map(|ended| ended.recv_deadline(deadline)) {
                Some(Err(RecvTimeoutError::Timeout)) => report.threads.push(THREAD.to_owned()),
                _ => self.clear_up(deadline),
            }
        }
        report
    }

    /// The thread has ended: what is left of it goes.
    fn clear_up(&self, deadline: Instant) {
        let thread = self.thread.lock().take();
        drop(thread.map(|thread| thread.join_until(deadline)));
    }

    /// Waits until it has shut down, whoever asks for it. `None`: it has not within `timeout`, or this is a handler.
    ///
    /// # Blocking
    /// Up to `timeout`.
    pub fn wait_shutdown(&self, timeout: Duration) -> Option<ShutdownReport> {
        self.engine.wait_shutdown(timeout)
    }
}

impl Drop for DirectSender {
    fn drop(&mut self) {
        self.shutdown(engine::DROP_DEADLINE);
    }
}

impl fmt::Debug for DirectSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DirectSender({})", self.id().short())
    }
}
