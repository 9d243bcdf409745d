//! The dispatcher: takes messages, finds out whom each is for, and offers it.
//!
//! Owns: what waits for an address to be dialled; results that are still to be taken. Threads: `direct`, or the caller's.
//! Locks: what a send verb locks; one after the other, never while it waits. Blocks on: all its channels at once.
//! Upholds: no peer holds up another; what was taken from the channel has one result; messages to one destination are
//! offered in their order; a message for an address goes to whoever proves itself there, and to nobody else after.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Select, Sender, bounded, never};

use super::destination::DirectReceiver;
use super::inputs::DirectInputs;
use super::metrics::NetMetrics;
use super::transfer::{self, DirectMessage, TransferResult, Transfers, TransportError, refusal};
use crate::config::Config;
use crate::engine::{Engine, ShutdownReport};
use crate::error::{ConnectError, SendErrorKind};
use crate::ident::{ConnectionId, PeerId};
use crate::registry::SessionsError;
use crate::session::{OutcomeBatch, PeerHandle};
use crate::sync::deadline_in;
use crate::watch::Watcher;

/// Messages taken in a row before the other channels are looked at.
const IN_A_ROW: usize = 256;
/// Addresses that are remembered with who is there.
const SEEN: usize = 4096;

type Given = (DirectReceiver, DirectMessage, Instant);
type Found = Result<PeerId, ConnectError>;

/// What the loop owns.
pub(super) struct Dispatcher {
    engine: Arc<Engine>,
    metrics: NetMetrics,
    shutdown: Receiver<()>,
    shutdown_time: Duration,
    /// The handle asks for the end, by this time.
    stop: Receiver<Instant>,
    config: Watcher<Config>,
    config_changes: Receiver<()>,
    messages: Receiver<Given>,
    results: Option<Sender<TransferResult>>,
    transfers: Option<Arc<Transfers>>,
    outcomes: Receiver<OutcomeBatch>,
    /// Results that nobody has taken yet.
    ready: VecDeque<TransferResult>,
    /// Addresses that are being dialled, and what waits for them.
    dials: HashMap<SocketAddr, Dialling>,
    /// Who was found at an address, and on which connection: it is theirs while that lasts.
    seen: HashMap<SocketAddr, (PeerHandle, ConnectionId)>,
    handles: HashMap<PeerId, PeerHandle>,
    /// Messages that wait for one.
    waiting: usize,
    bounds: Bounds,
}

/// How much may wait for addresses: as for peers that are not known.
struct Bounds {
    addresses: usize,
    /// For each of them.
    messages: usize,
    bytes: usize,
}

impl Bounds {
    fn of(config: &Config) -> Self {
        let Config { unknown_peers, queue_messages, unknown_bytes, .. } = *config;
        Self { addresses: unknown_peers.max(1), messages: queue_messages, bytes: unknown_bytes }
    }
}

/// An address that is being dialled.
struct Dialling {
    outcome: Receiver<Found>,
    waiting: Vec<Given>,
    bytes: usize,
}

/// What woke the loop.
enum Woken {
    Signal,
    Stop(Option<Instant>),
    Config(bool),
    Outcomes(Option<OutcomeBatch>),
    Message(Option<Given>),
    Taken(bool),
    Dialled(SocketAddr, Found),
}

impl Dispatcher {
    /// For an engine that runs; `stop` is the handle's.
    pub(super) fn new(
        engine: Arc<Engine>,
        inputs: DirectInputs,
        transfers: Option<(Arc<Transfers>, Receiver<OutcomeBatch>)>,
        stop: Receiver<Instant>,
    ) -> Self {
        let config = inputs.config.get();
        let (transfers, outcomes) =
            transfers.map_or((None, never()), |(transfers, outcomes)| (Some(transfers), outcomes));
        Self {
            engine,
            metrics: inputs.metrics,
            shutdown: inputs.shutdown,
            shutdown_time: inputs.shutdown_time,
            stop,
            config_changes: inputs.config.changes().clone(),
            config: inputs.config,
            messages: inputs.messages,
            results: inputs.results,
            transfers,
            outcomes,
            ready: VecDeque::new(),
            dials: HashMap::new(),
            seen: HashMap::new(),
            handles: HashMap::new(),
            waiting: 0,
            bounds: Bounds::of(&config),
        }
    }
}

/// Runs until the shutdown, and through it.
pub(super) fn dispatch_loop(mut dispatcher: Dispatcher) -> ShutdownReport {
    let deadline = loop {
        match dispatcher.next() {
            Woken::Signal => break deadline_in(dispatcher.shutdown_time),
            Woken::Stop(Some(deadline)) => break deadline,
            // The handle is gone: it has asked before.
            Woken::Stop(None) => dispatcher.stop = never(),
            Woken::Config(true) => dispatcher.reconfigure(),
            Woken::Config(false) => dispatcher.config_changes = never(),
            Woken::Outcomes(Some(batch)) => dispatcher.ended(batch),
            Woken::Outcomes(None) => dispatcher.outcomes = never(),
            Woken::Message(Some(given)) => dispatcher.take(given),
            Woken::Message(None) => dispatcher.messages = never(),
            Woken::Taken(true) => {}
            Woken::Taken(false) => dispatcher.nobody_wants_results(),
            Woken::Dialled(addr, found) => dispatcher.dialled(addr, found),
        }
    };
    dispatcher.end(deadline)
}

impl Dispatcher {
    /// Whether another message may be taken: its result has a place.
    fn has_room(&self) -> bool {
        self.ready.is_empty() && self.transfers.as_ref().is_none_or(|transfers| transfers.has_room(self.waiting))
    }

    /// Waits for the next thing to do.
    fn next(&mut self) -> Woken {
        let mut select = Select::new_biased();
        let signal = select.recv(&self.shutdown);
        let stop = select.recv(&self.stop);
        let config = select.recv(&self.config_changes);
        if let Some(results) = self.results.as_ref().filter(|_| !self.ready.is_empty()) {
            select.send(results);
        }
        // Those that came before are taken first: what is not, keeps its place.
        let outcomes = self.ready.is_empty().then(|| select.recv(&self.outcomes));
        let dials: Vec<_> = self.dials.iter().map(|(addr, dial)| (select.recv(&dial.outcome), *addr)).collect();
        let messages = self.has_room().then(|| select.recv(&self.messages));
        let ready = select.select();
        match ready.index() {
            index if index == signal => {
                let _ = ready.recv(&self.shutdown);
                Woken::Signal
            }
            index if index == stop => Woken::Stop(ready.recv(&self.stop).ok()),
            index if index == config => Woken::Config(ready.recv(&self.config_changes).is_ok()),
            index if Some(index) == outcomes => Woken::Outcomes(ready.recv(&self.outcomes).ok()),
            index if Some(index) == messages => Woken::Message(ready.recv(&self.messages).ok()),
            index => {
                if let Some((_, addr)) = dials.iter().find(|(dial, _)| *dial == index)
                    && let Some(dial) = self.dials.get(addr)
                {
                    // A dial without an outcome: the engine is ending.
                    let found = ready.recv(&dial.outcome).unwrap_or(Err(ConnectError::ShuttingDown));
                    return Woken::Dialled(*addr, found);
                }
                // The oldest result has found its taker, or there is none any more.
                match (&self.results, self.ready.pop_front()) {
                    (Some(results), Some(oldest)) => match ready.send(results, oldest) {
                        Ok(()) => Woken::Taken(true),
                        Err(refused) => {
                            self.ready.push_front(refused.into_inner());
                            Woken::Taken(false)
                        }
                    },
                    // No operation is left that it could be.
                    _ => Woken::Taken(false),
                }
            }
        }
    }

    /// Takes a message, and those right behind it.
    fn take(&mut self, given: Given) {
        self.dispatch(given);
        for _ in 0..IN_A_ROW {
            if !self.has_room() {
                return;
            }
            match self.messages.try_recv() {
                Ok(given) => self.dispatch(given),
                Err(_) => return,
            }
        }
    }

    fn dispatch(&mut self, (to, message, created_at): Given) {
        let peer = match &to {
            DirectReceiver::Peer(id) => self.handle(*id).map_err(TransportError::Refused),
            DirectReceiver::Name(name) => match self.engine.named(name) {
                Some(id) => self.handle(id).map_err(TransportError::Refused),
                None => Err(TransportError::Unreachable(ConnectError::UnknownName(name.to_string()))),
            },
            DirectReceiver::Addr(addr) => match self.at(*addr) {
                Some(peer) => Ok(peer),
                None => return self.wait_for(*addr, (to, message, created_at)),
            },
        };
        match peer {
            Ok(peer) => self.offer(&peer, to, message, created_at),
            Err(error) => {
                let peer = if let DirectReceiver::Peer(id) = &to { Some(*id) } else { None };
                self.failed(refusal(to, peer, message, created_at, error));
            }
        }
    }

    fn offer(&mut self, peer: &PeerHandle, to: DirectReceiver, message: DirectMessage, created_at: Instant) {
        if let Err(refused) = transfer::offer(peer, &to, message, created_at, self.transfers.as_deref()) {
            self.failed(*refused);
        }
    }

    /// A peer, known or not.
    fn handle(&mut self, id: PeerId) -> Result<PeerHandle, SendErrorKind> {
        if let Some(handle) = self.handles.get(&id) {
            return Ok(handle.clone());
        }
        let link = match self.engine.link_to(id) {
            Some(Ok(link)) => link,
            Some(Err(SessionsError::TooManyUnknown)) => return Err(SendErrorKind::TooManyUnknown),
            Some(Err(SessionsError::Closed)) => return Err(SendErrorKind::ShuttingDown),
            Some(Err(_)) | None => return Err(SendErrorKind::UnknownPeer),
        };
        let handle = PeerHandle::new(link);
        // One that is not known is held by what waits for it alone: a handle would keep its place.
        if self.engine.shared.registry.known_link(&id).is_some() {
            self.handles.insert(id, handle.clone());
        }
        Ok(handle)
    }

    // ---- addresses

    /// Who is connected at this address, if anybody is and nothing waits for it.
    fn at(&mut self, addr: SocketAddr) -> Option<PeerHandle> {
        if self.dials.contains_key(&addr) {
            return None;
        }
        if let Some((peer, conn)) = self.seen.get(&addr)
            && peer.attached() == Some(*conn)
        {
            return Some(peer.clone());
        }
        self.seen.remove(&addr);
        let session = self.engine.shared.registry.session_at(addr)?;
        let peer = self.handle(session.peer?).ok()?;
        if self.seen.len() >= SEEN {
            // Whoever is still there is found again.
            self.seen.clear();
        }
        self.seen.insert(addr, (peer.clone(), session.conn));
        Some(peer)
    }

    /// A message waits until somebody has proven itself at its address.
    fn wait_for(&mut self, addr: SocketAddr, (to, message, created_at): Given) {
        let len = message.payload.len();
        let refuse = |error| refusal(to.clone(), None, message.clone(), created_at, error);
        if !self.dials.contains_key(&addr) {
            if self.dials.len() >= self.bounds.addresses {
                let refused = refuse(TransportError::Unreachable(ConnectError::TooMany));
                return self.failed(refused);
            }
            let (waiter, outcome) = bounded(1);
            if !self.engine.dial(addr.into(), waiter) {
                let refused = refuse(TransportError::Refused(SendErrorKind::ShuttingDown));
                return self.failed(refused);
            }
            self.dials.insert(addr, Dialling { outcome, waiting: Vec::new(), bytes: 0 });
        }
        let Some(dial) = self.dials.get_mut(&addr) else { return };
        let Bounds { messages, bytes, .. } = self.bounds;
        let fits = dial.waiting.len() < messages && dial.bytes + len <= bytes;
        if !fits && !dial.waiting.is_empty() {
            let refused = refuse(TransportError::Refused(SendErrorKind::Full));
            return self.failed(refused);
        }
        dial.bytes += len;
        self.waiting += 1;
        dial.waiting.push((to, message, created_at));
    }

    /// A dial has ended: what waited for it goes to whoever is there, or comes back.
    fn dialled(&mut self, addr: SocketAddr, found: Found) {
        let Some(dial) = self.dials.remove(&addr) else { return };
        self.waiting -= dial.waiting.len();
        let peer = found.and_then(|id| self.handle(id).map_err(|_| ConnectError::UnknownPeer(id)));
        for (to, message, created_at) in dial.waiting {
            match &peer {
                Ok(peer) => self.offer(peer, to, message, created_at),
                Err(error) => {
                    let error = TransportError::Unreachable(error.clone());
                    self.failed(refusal(to, None, message, created_at, error));
                }
            }
        }
    }

    // ---- results

    fn ended(&mut self, batch: OutcomeBatch) {
        let Some(transfers) = self.transfers.clone() else { return };
        let results = batch.filter_map(|(tag, outcome)| transfers.ended(tag, outcome));
        if self.results.is_some() {
            self.ready.extend(results);
        } else {
            results.for_each(|result| self.lost(&result));
        }
    }

    /// A message was not taken.
    fn failed(&mut self, refused: TransferResult) {
        let TransferResult { to, result, .. } = &refused;
        if let Err(error) = result {
            log::debug!(target: "threadwire::direct", "a message for {to} came back: {error}");
        }
        if self.results.is_some() {
            self.ready.push_back(refused);
        } else {
            self.lost(&refused);
        }
    }

    /// Nobody hears of it but the counter.
    fn lost(&self, result: &TransferResult) {
        if result.result.is_err() {
            let shared = &self.engine.shared;
            shared.settings.undelivered.miss(result.peer.unwrap_or(shared.me));
        }
    }

    /// The receiver of results was dropped.
    fn nobody_wants_results(&mut self) {
        log::warn!(target: "threadwire::direct", "nobody takes the results of messages any more");
        self.results = None;
        let ready = std::mem::take(&mut self.ready);
        ready.iter().for_each(|result| self.lost(result));
    }

    // ---- configuration and end

    fn reconfigure(&mut self) {
        let config = self.config.get();
        // What is refused is an event, and a line in the log.
        if self.engine.protection.replace(&config).is_ok() {
            self.bounds = Bounds::of(&config);
        }
    }

    /// Takes what is in the channel, and shuts down.
    fn end(mut self, deadline: Instant) -> ShutdownReport {
        let time = deadline.saturating_duration_since(Instant::now());
        for _ in 0..self.messages.len() {
            if !self.has_room() {
                break;
            }
            let Ok(given) = self.messages.try_recv() else { break };
            self.dispatch(given);
        }
        // An eighth is kept for the results, and of that a half for whoever waits for this thread.
        let report = self.engine.shut_down(time - time / 8);
        let results_by = deadline.checked_sub(time / 16).unwrap_or(deadline);
        let given_up = TransportError::Refused(SendErrorKind::ShuttingDown);
        let waiting: Vec<Given> = self.dials.drain().flat_map(|(_, dial)| dial.waiting).collect();
        for (to, message, created_at) in waiting {
            self.failed(refusal(to, None, message, created_at, given_up.clone()));
        }
        loop {
            self.give_results(results_by);
            if let Ok(batch) = self.outcomes.try_recv() {
                self.ended(batch);
            } else if let Ok((to, message, created_at)) = self.messages.try_recv() {
                self.failed(refusal(to, None, message, created_at, given_up.clone()));
            } else {
                break;
            }
        }
        self.metrics.end(&self.engine.shared);
        report
    }

    /// Gives results until the deadline; what is not taken then is counted.
    fn give_results(&mut self, deadline: Instant) {
        while let Some(result) = self.ready.pop_front() {
            let Some(results) = &self.results else {
                self.lost(&result);
                continue;
            };
            if let Err(refused) = results.send_deadline(result, deadline) {
                self.ready.push_front(refused.into_inner());
                self.nobody_wants_results();
            }
        }
    }
}
