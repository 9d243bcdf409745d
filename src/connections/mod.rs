//! The connections manager: accepts, dials, shakes hands, watches over sessions, dials again.
//!
//! Owns: no state of any peer beyond where and when to dial it. Threads: `acceptor`, `supervisor`,
//! `work-n`, `resolve-n`.
//! Locks: none of its own; takes the link lock to offer connections and the registry lock to find sessions, one after
//! the other. Blocks on: see the threads.
//! Upholds: nobody waits for a silent connection; every dial ends in one outcome; every session's end is handled once.
//!
//! ```text
//!            accept, dial                  proven                    attached
//!  acceptor ---------------> handshake -------------> LinkCore::offer --------> session::start -> registry
//!     ^  commands                |  Work                                             |
//!     |                          v                                                   | SessionEnded
//!  supervisor <---- work-n ----- +  <------------------------------------------------+
//! ```

mod acceptor;
mod admission;
mod backoff;
mod kept;
mod listening;
mod lookups;
mod outbound;
mod pending;
mod places;
mod questions;
mod resolver;
mod round;
mod senders;
mod shared;
mod slowness;
mod supervisor;
mod work;

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use crate::address::Address;
use crate::config::Closed;
use crate::error::ConnectError;
use crate::ident::PeerId;
use crate::session::PeerLink;
use crate::threads::{self, Thread};
use crate::transport::{Listener, Transport};

pub(crate) use admission::Caps;
pub use kept::RESOLVE_RETRY_TIMEOUT;
pub(crate) use listening::ListenerId;
pub(crate) use outbound::Redial;
pub use resolver::{Resolver, SystemResolver};
pub use senders::{PeerEvent, StopReason};
pub(crate) use shared::{Cell, Command, Commands, Lifecycle, PeersMap, Report, Said, Secrets, Shared, Started, Times};

use resolver::{Resolvers, Started as Resolving};

/// Threads for the CPU steps of handshakes and the application's policy.
const WORKERS: usize = 2;
const STACK: usize = 256 * 1024;

/// The threads of the connections manager, and how to reach them.
pub(crate) struct Connections {
    commands: Commands,
    reports: Sender<Report>,
    acceptor: Option<Thread>,
    rest: Vec<Thread>,
    /// Resolver threads that were started.
    resolvers: Receiver<Resolving>,
    /// Where peers are, if somebody keeps a map of them.
    map: Option<PeersMap>,
}

impl Connections {
    /// Starts all threads.
    ///
    /// # Errors
    /// The poll or a thread could not be made; nothing keeps running.
    pub(crate) fn start(
        shared: &Arc<Shared>,
        transport: Arc<dyn Transport>,
        resolver: Arc<dyn Resolver>,
        listeners: Vec<(ListenerId, Box<dyn Listener>)>,
        caps: Caps,
        reports: Receiver<Report>,
        on_event: impl Fn(Lifecycle) + Send + 'static,
    ) -> std::io::Result<Self> {
        let poll = mio::Poll::new()?;
        // Bounded by what sends into it: the workers, the links, the application's dials.
        let (sender, receiver) = unbounded();
        let commands = Commands::new(sender, acceptor::waker(&poll)?);
        // A step is held by its connection, of which there are as many as places; here is only a sign that it waits, and
        // a worker throws away at once what it finds left behind.
        let (jobs, work) = unbounded();
        let acceptor = acceptor::Acceptor::new(poll, shared.clone(), transport, listeners, caps, receiver, jobs)?;
        let (started, resolvers) = unbounded();
        let (acceptor_thread, rest) = (None, Vec::new());
        let mut connections =
            Self { commands, reports: shared.reports.clone(), acceptor: acceptor_thread, rest, resolvers, map: None };
        for n in 0..WORKERS {
            let (work, commands, metrics) = (work.clone(), connections.commands.clone(), shared.metrics.clone());
            connections.rest.push(threads::spawn("work", &n.to_string(), STACK, move || {
                work::work_loop(&work, &commands, &metrics);
            })?);
        }
        let resolvers = Resolvers::new(resolver, shared.reports.clone(), started);
        let supervisor = supervisor::Supervisor::new(shared.clone(), connections.commands.clone(), resolvers, on_event);
        connections.rest.push(threads::spawn("supervisor", "", STACK, move || {
            supervisor::supervisor_loop(supervisor, &reports);
        })?);
        connections.acceptor = Some(threads::spawn("acceptor", "", STACK, move || acceptor::accept_loop(acceptor))?);
        Ok(connections)
    }

    /// Opens one connection; the outcome is told, or the waiter dropped if the node ends.
    pub(crate) fn connect(&self, address: Address, waiter: Sender<Result<PeerId, ConnectError>>) {
        // The supervisor is gone only when the node is.
        let _ = self.reports.send(Report::Connect(address, waiter));
    }

    /// Keeps a peer connected from now on.
    pub(crate) fn keep(&self, peer: PeerId, addresses: Vec<Address>) {
        let _ = self.reports.send(Report::Keep(peer, addresses));
    }

    /// Keeps a peer connected no longer, and ends its session.
    pub(crate) fn remove(&self, peer: PeerId) {
        let _ = self.reports.send(Report::Remove(peer, self.said()));
    }

    /// The way to the acceptor.
    pub(crate) fn commands(&self) -> Commands {
        self.commands.clone()
    }

    /// Keeps these connected no longer, and ends their sessions; the answer is which.
    pub(crate) fn part(&self, peers: Vec<PeerId>) -> Receiver<Vec<Closed>> {
        let (answer, answered) = bounded(1);
        let _ = self.reports.send(Report::Part(peers, self.said(), answer));
        answered
    }

    /// Dials the address that a link stands for, until somebody proves itself there.
    pub(crate) fn find(&self, link: Arc<PeerLink>) {
        let _ = self.reports.send(Report::Find(link));
    }

    /// Keeps the peers of a map connected, as it changes, instead of those of an earlier one.
    pub(crate) fn follow(&mut self, map: PeersMap) {
        self.map = Some(map.clone());
        let _ = self.reports.send(Report::Follow(map));
    }

    /// What the map of peers says now.
    fn said(&self) -> Option<Said> {
        self.map.as_ref().map(|map| (map.look)())
    }

    /// Stops accepting and dialling.
    pub(crate) fn stop(&self) {
        let _ = self.reports.send(Report::Stop(false));
        self.commands.send(Command::Stop);
    }

    /// Ends all threads; returns the names of those that still run at the deadline.
    ///
    /// # Blocking
    /// Until the threads have ended or the deadline has passed.
    pub(crate) fn join(mut self, deadline: Instant) -> Vec<String> {
        let mut late = Vec::new();
        let mut join = |thread: Thread| {
            if let Err(thread) = thread.join_until(deadline) {
                late.push(thread.name().to_owned());
            }
        };
        self.stop();
        if let Some(acceptor) = self.acceptor.take() {
            join(acceptor);
        }
        // The acceptor held the workers' channel; the supervisor ends on request, after the last report before it.
        let _ = self.reports.send(Report::Stop(true));
        std::mem::take(&mut self.rest).into_iter().for_each(join);
        // The supervisor held the channel of names: those that are in no lookup end by themselves.
        late.extend(self.resolvers.try_iter().filter_map(|resolver| resolver.join(deadline).err()));
        late
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        // A start that failed halfway, or a shutdown that was not waited for: nothing may keep running.
        self.stop();
        let _ = self.reports.send(Report::Stop(true));
    }
}
