//! Resolver threads: the one place where a lookup may block, and block nobody else.
//!
//! Owns: nothing; the threads belong to whoever joins them. Threads: starts `resolve-n`, as many as are needed, up to
//! its bound. Locks: none. Blocks on: `resolve-n` on the channel of names, and on the resolver, which nothing can
//! interrupt: a thread that hangs there is named in the shutdown report.
//! Upholds: every name that was given to a thread is answered once, also when the resolver panics.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::connections::shared::Report;
use crate::threads::{self, Thread};

/// The system's resolver uses some of it for its buffers.
const STACK: usize = 512 * 1024;
/// How long a shutdown waits for a lookup that nothing can interrupt.
const GRACE: Duration = Duration::from_millis(20);
/// The most addresses of one name that are tried.
const TRIED: usize = 64;

/// Finds the addresses of host names. [`SystemResolver`] is the default; see
/// [`NodeBuilder::resolver`](crate::NodeBuilder::resolver).
pub trait Resolver: Send + Sync + fmt::Debug + 'static {
    /// The addresses of a host, the best one first. Their ports do not matter: the port that is dialled is put in.
    /// At most 64 are tried.
    ///
    /// # Errors
    /// The host has no address, or nobody could say; the text goes into
    /// [`DialCause::Unresolved`](crate::error::DialCause::Unresolved).
    ///
    /// # Blocking
    /// As long as it likes: it runs on a thread of its own, and whoever dials waits no longer than `resolve_timeout`.
    ///
    /// # Panics
    /// A panic counts as a lookup that failed.
    fn resolve(&self, host: &str) -> io::Result<Vec<SocketAddr>>;
}

/// The system's resolver: its hosts file, its name servers, and what else it was set up with.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemResolver;

impl Resolver for SystemResolver {
    fn resolve(&self, host: &str) -> io::Result<Vec<SocketAddr>> {
        Ok((host, 0).to_socket_addrs()?.collect())
    }
}

/// The way to the resolver threads.
pub(super) struct Resolvers {
    resolver: Arc<dyn Resolver>,
    names: Sender<Arc<str>>,
    taken: Receiver<Arc<str>>,
    reports: Sender<Report>,
    /// Where the threads go, to be joined.
    started: Sender<Started>,
    running: usize,
}

/// A resolver thread, and whether it is in a lookup.
pub(super) struct Started {
    thread: Thread,
    held: Arc<AtomicBool>,
}

impl Resolvers {
    /// No threads yet; those that are started go to `started`.
    pub(super) fn new(resolver: Arc<dyn Resolver>, reports: Sender<Report>, started: Sender<Started>) -> Self {
        // Bounded by its use: never more names than threads.
        let (names, taken) = unbounded();
        Self { resolver, names, taken, reports, started, running: 0 }
    }

    /// Gives a name to a thread; with it, `busy` lookups are under way.
    ///
    /// # Errors
    /// The system refused the only thread there would be.
    pub(super) fn look_up(&mut self, host: Arc<str>, busy: usize) -> io::Result<()> {
        if self.running < busy {
            match self.start() {
                Ok(()) => self.running += 1,
                Err(error) if self.running == 0 => return Err(error),
                // Those that run take it when they are through.
                Err(error) => log::warn!(target: "threadwire::dial", "no further resolver thread: {error}"),
            }
        }
        // Both ends are ours.
        let _ = self.names.send(host);
        Ok(())
    }

    fn start(&self) -> io::Result<()> {
        let held = Arc::new(AtomicBool::new(false));
        let (resolver, names, reports) = (self.resolver.clone(), self.taken.clone(), self.reports.clone());
        let thread = {
            let held = held.clone();
            threads::spawn("resolve", &self.running.to_string(), STACK, move || {
                resolve_loop(&*resolver, &names, &held, &reports);
            })?
        };
        // Whoever joins is there as long as this is.
        let _ = self.started.send(Started { thread, held });
        Ok(())
    }
}

impl Started {
    /// Waits for its end, but not for a lookup; the name of a thread that still runs.
    pub(super) fn join(self, deadline: Instant) -> Result<(), String> {
        let held = self.held.load(Ordering::Acquire);
        let deadline = if held { deadline.min(Instant::now() + GRACE) } else { deadline };
        self.thread.join_until(deadline).map_err(|thread| thread.name().to_owned())
    }
}

/// Looks names up until nobody asks any more.
fn resolve_loop(resolver: &dyn Resolver, names: &Receiver<Arc<str>>, held: &AtomicBool, reports: &Sender<Report>) {
    while let Ok(host) = names.recv() {
        held.store(true, Ordering::Release);
        let found = look_up(resolver, &host);
        held.store(false, Ordering::Release);
        if reports.send(Report::Resolved(host, found)).is_err() {
            return;
        }
    }
}

/// The addresses of a host, each once; never none.
fn look_up(resolver: &dyn Resolver, host: &str) -> Result<Vec<SocketAddr>, String> {
    let found = match catch_unwind(AssertUnwindSafe(|| resolver.resolve(host))) {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err("the resolver panicked".to_owned()),
    };
    let mut addrs = Vec::new();
    for mut addr in found {
        addr.set_port(0);
        if addrs.len() < TRIED && !addrs.contains(&addr) {
            addrs.push(addr);
        }
    }
    if addrs.is_empty() { Err("it has no address".to_owned()) } else { Ok(addrs) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Fixed;

    impl Resolver for Fixed {
        fn resolve(&self, host: &str) -> io::Result<Vec<SocketAddr>> {
            let addr = |n: u8| SocketAddr::from(([127, 0, 0, n], 0));
            match host {
                "two" => Ok(vec![addr(1), addr(2), addr(1)]),
                "many" => Ok((0..100).map(addr).collect()),
                "none" => Ok(Vec::new()),
                "panic" => panic!("on purpose"),
                _ => Err(io::Error::other("nobody knows")),
            }
        }
    }

    #[test]
    fn a_lookup_gives_each_address_once_and_never_none() {
        let found = look_up(&Fixed, "two").unwrap();
        assert_eq!(found.iter().map(|addr| addr.to_string()).collect::<Vec<_>>(), ["127.0.0.1:0", "127.0.0.2:0"]);
        assert_eq!(look_up(&Fixed, "many").unwrap().len(), TRIED);
        assert_eq!(look_up(&Fixed, "none").unwrap_err(), "it has no address");
        assert_eq!(look_up(&Fixed, "else").unwrap_err(), "nobody knows");
        assert_eq!(look_up(&Fixed, "panic").unwrap_err(), "the resolver panicked");
    }

    #[test]
    fn the_system_knows_this_machine() {
        let found = look_up(&SystemResolver, "localhost").unwrap();
        assert!(found.iter().all(|addr| addr.ip().is_loopback()), "{found:?}");
    }
}
