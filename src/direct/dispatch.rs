//! The dispatcher: takes messages, finds out whom each is for, and offers it.
//!
//! Owns: results that are still to be taken; who was found where. Threads: `direct`, or the caller's.
//! Locks: what a send verb locks; one after the other, never while it waits. Blocks on: all its channels at once.
//! Upholds: no peer holds up another; what was taken from the channel has one result; messages to one destination are
//! offered in their order, also while it is found out who is at an address.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Select, Sender, after, never};

use super::destination::DirectReceiver;
use super::inputs::DirectInputs;
use super::metrics::NetMetrics;
use super::transfer::{self, DirectMessage, TransferResult, Transfers, refusal};
use crate::config::Config;
use crate::engine::{Engine, ShutdownReport};
use crate::error::SendErrorKind;
use crate::ident::{ConnectionId, PeerId};
use crate::session::{OutcomeBatch, PeerHandle};
use crate::sync::deadline_in;
use crate::watch::Watcher;

/// Messages taken in a row before the other channels are looked at.
const IN_A_ROW: usize = 256;
/// Addresses that are remembered with who is there.
const SEEN: usize = 4096;
/// Of the time that a shutdown has, a quarter at most goes by until what is in the channel has been taken.
const TAKING_SHARE: u32 = 4;
/// An eighth of it is kept for results that nobody has taken yet,
const RESULTS_SHARE: u32 = 8;
/// or as much as this, if that is not more than half of it: a thread that is woken may wait for a processor.
const RESULTS_TIME: Duration = Duration::from_millis(200);

type Given = (DirectReceiver, DirectMessage, Instant);

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
    /// Who was found at an address, and on which connection: it is theirs while that lasts.
    seen: HashMap<SocketAddr, (PeerHandle, ConnectionId)>,
    handles: HashMap<PeerId, PeerHandle>,
}

/// What woke the loop.
enum Woken {
    Signal,
    Stop(Option<Instant>),
    Config(bool),
    Outcomes(Option<OutcomeBatch>),
    Message(Option<Given>),
    Taken(bool),
}

impl Dispatcher {
    /// For an engine that runs; `stop` is the handle's.
    pub(super) fn new(
        engine: Arc<Engine>,
        inputs: DirectInputs,
        transfers: Option<(Arc<Transfers>, Receiver<OutcomeBatch>)>,
        stop: Receiver<Instant>,
    ) -> Self {
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
            seen: HashMap::new(),
            handles: HashMap::new(),
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
        }
    };
    dispatcher.end(deadline)
}

impl Dispatcher {
    /// Whether another message may be taken: its result has a place.
    fn has_room(&self) -> bool {
        self.ready.is_empty() && self.transfers.as_ref().is_none_or(|transfers| transfers.has_room())
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
            // The oldest result has found its taker, or there is none any more.
            _ => match (&self.results, self.ready.pop_front()) {
                (Some(results), Some(oldest)) => match ready.send(results, oldest) {
                    Ok(()) => Woken::Taken(true),
                    Err(refused) => {
                        self.ready.push_front(refused.into_inner());
                        Woken::Taken(false)
                    }
                },
                // No operation is left that it could be.
                _ => Woken::Taken(false),
            },
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
            DirectReceiver::Peer(id) => self.handle(*id),
            DirectReceiver::Name(name) => match self.engine.named(name) {
                Some(id) => self.handle(id),
                None => Err(SendErrorKind::UnknownName),
            },
            DirectReceiver::Addr(addr) => match self.at(*addr) {
                Some(peer) => Ok(peer),
                None => return self.offer_at(*addr, to, message, created_at),
            },
        };
        match peer {
            Ok(peer) => self.offer(&peer, to, message, created_at),
            Err(kind) => {
                let peer = if let DirectReceiver::Peer(id) = &to { Some(*id) } else { None };
                self.failed(refusal(to, peer, message, created_at, kind));
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
        let link = self.engine.link_to(id).ok_or(SendErrorKind::UnknownPeer)??;
        let handle = PeerHandle::new(link);
        // One that is not known is held by what waits for it alone: a handle would keep its place.
        if self.engine.shared.registry.known_link(&id).is_some() {
            self.handles.insert(id, handle.clone());
        }
        Ok(handle)
    }

    // ---- addresses

    /// Who is connected with this address at the other end, whoever dialled: also where nobody could.
    fn at(&mut self, addr: SocketAddr) -> Option<PeerHandle> {
        if let Some((peer, conn)) = self.seen.get(&addr)
            && peer.attached() == Some(*conn)
        {
            return Some(peer.clone());
        }
        self.seen.remove(&addr);
        let session = self.engine.shared.registry.session_at(addr)?;
        let peer = self.handle(session.peer?).ok()?;
        // What waits for somebody to prove itself there was sent before, and whoever did is not bound yet.
        if let Some(place) = self.engine.shared.registry.link(&PeerId::of_address(addr)) {
            place.move_to(&peer);
        }
        if self.seen.len() >= SEEN {
            // Whoever is still there is found again.
            self.seen.clear();
        }
        self.seen.insert(addr, (peer.clone(), session.conn));
        Some(peer)
    }

    /// Offers a message to whoever proves itself at an address, which is dialled.
    fn offer_at(&mut self, addr: SocketAddr, to: DirectReceiver, message: DirectMessage, created_at: Instant) {
        let place = match self.engine.place(addr) {
            Ok(place) => place,
            Err(error) => return self.failed(refusal(to, None, message, created_at, error.into())),
        };
        let peer = PeerHandle::new(place.bound().unwrap_or_else(|| place.clone()));
        self.offer(&peer, to, message, created_at);
        self.engine.want(&place);
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
            let me = self.engine.shared.me.short();
            log::debug!(target: "threadwire::direct", "{me}: a message for {to} came back: {error}");
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
        let me = self.engine.shared.me.short();
        log::warn!(target: "threadwire::direct", "{me}: nobody takes the results of messages any more");
        self.results = None;
        let ready = std::mem::take(&mut self.ready);
        ready.iter().for_each(|result| self.lost(result));
    }

    // ---- configuration and end

    fn reconfigure(&mut self) {
        let config = self.config.get();
        // What is refused is an event, and a line in the log.
        drop(self.engine.reload(&config));
    }

    /// Takes what is in the channel, and shuts down.
    fn end(mut self, deadline: Instant) -> ShutdownReport {
        let time = deadline.saturating_duration_since(Instant::now());
        self.take_the_rest(time / TAKING_SHARE);
        // This is kept for the results, and of it a half for whoever waits for this thread.
        let kept = (time / RESULTS_SHARE).max(RESULTS_TIME.min(time / 2));
        let drained_by = deadline.checked_sub(kept).unwrap_or(deadline);
        let report = self.engine.shut_down(drained_by.saturating_duration_since(Instant::now()));
        let results_by = deadline.checked_sub(kept / 2).unwrap_or(deadline);
        loop {
            self.give_results(results_by);
            if let Ok(batch) = self.outcomes.try_recv() {
                self.ended(batch);
            } else if let Ok((to, message, created_at)) = self.messages.try_recv() {
                self.failed(refusal(to, None, message, created_at, SendErrorKind::ShuttingDown));
            } else {
                break;
            }
        }
        self.metrics.end(&self.engine.shared);
        report
    }

    /// Takes what is in the channel now, each as soon as its result has a place, for as long as this.
    fn take_the_rest(&mut self, time: Duration) {
        (self.shutdown, self.config_changes, self.stop) = (never(), never(), after(time));
        let mut left = self.messages.len();
        while left > 0 {
            match self.next() {
                Woken::Message(Some(given)) => {
                    self.dispatch(given);
                    left -= 1;
                }
                Woken::Outcomes(Some(batch)) => self.ended(batch),
                Woken::Outcomes(None) => self.outcomes = never(),
                Woken::Taken(true) => {}
                Woken::Taken(false) => self.nobody_wants_results(),
                Woken::Message(None) | Woken::Stop(_) | Woken::Signal | Woken::Config(_) => return,
            }
        }
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
