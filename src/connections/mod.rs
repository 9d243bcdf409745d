//! The connections manager: accepts, dials, shakes hands, watches over sessions, dials again.
//!
//! Owns: no state of any peer beyond where and when to dial it. Threads: `acceptor`, `supervisor`, `work-n`.
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
mod listening;
mod pending;
mod shared;
mod supervisor;
mod work;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::ident::PeerId;
use crate::threads::{self, Thread};
use crate::transport::{Listener, Transport};

pub(crate) use admission::Caps;
pub(crate) use shared::{Commands, DialRequest, Lifecycle, Report, Secrets, Shared, Started, Times};

use shared::Command;

/// Threads for the CPU steps of handshakes and the application's policy.
const WORKERS: usize = 2;
const STACK: usize = 256 * 1024;

/// The threads of the connections manager, and how to reach them.
pub(crate) struct Connections {
    commands: Commands,
    reports: Sender<Report>,
    acceptor: Option<Thread>,
    rest: Vec<Thread>,
}

impl Connections {
    /// Starts all threads.
    ///
    /// # Errors
    /// The poll or a thread could not be made; nothing keeps running.
    pub(crate) fn start(
        shared: &Arc<Shared>,
        transport: Arc<dyn Transport>,
        listeners: Vec<Box<dyn Listener>>,
        caps: Caps,
        reports: Receiver<Report>,
        on_event: impl Fn(Lifecycle) + Send + 'static,
    ) -> std::io::Result<Self> {
        let poll = mio::Poll::new()?;
        // Bounded by what sends into it: the half-open budget, the links, the application's dials.
        let (sender, receiver) = unbounded();
        let commands = Commands::new(sender, acceptor::waker(&poll)?);
        let (jobs, work) = unbounded();
        let acceptor = acceptor::Acceptor::new(poll, shared.clone(), transport, listeners, caps, receiver, jobs)?;
        let mut connections = Self { commands, reports: shared.reports.clone(), acceptor: None, rest: Vec::new() };
        for n in 0..WORKERS {
            let (work, commands) = (work.clone(), connections.commands.clone());
            connections.rest.push(threads::spawn("work", &n.to_string(), STACK, move || {
                work::work_loop(&work, &commands);
            })?);
        }
        let supervisor = supervisor::Supervisor::new(shared.clone(), connections.commands.clone(), on_event);
        connections.rest.push(threads::spawn("supervisor", "", STACK, move || {
            supervisor::supervisor_loop(supervisor, &reports);
        })?);
        connections.acceptor = Some(threads::spawn("acceptor", "", STACK, move || acceptor::accept_loop(acceptor))?);
        Ok(connections)
    }

    /// Dials once.
    pub(crate) fn dial(&self, request: DialRequest) {
        self.commands.send(Command::Dial(request));
    }

    /// Keeps a peer connected from now on.
    pub(crate) fn keep(&self, peer: PeerId, addrs: Vec<SocketAddr>) {
        // The supervisor is gone only when the node is.
        let _ = self.reports.send(Report::Keep(peer, addrs));
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
