//! The listeners: what waits is taken, and a want of descriptors is sat out.
//!
//! Owns: the listening sockets, and when to try them without an event. Threads: `acceptor` only. Locks: none.
//! Blocks on: nothing.
//! Upholds: readiness is edge-triggered, so whoever stops before the last connection is taken comes back by a timer;
//! trouble is one line in the log, and its end another.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use mio::{Interest, Poll, Token};

use crate::metrics::Metrics;
use crate::transport::{Listener, PendingConnection};

/// How long after a failed accept the next one is tried.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// So many connections in a row that were gone before they were taken are trouble of the listener's own.
const GONE_IN_A_ROW: u32 = 64;

/// Tokens from here on are those of listeners.
const FIRST: usize = usize::MAX / 2;

/// Names a listener: a number that is never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ListenerId(pub(crate) usize);

impl ListenerId {
    fn token(self) -> Token {
        Token(FIRST + self.0)
    }

    /// The listener that a token is of, if it is of one.
    pub(super) fn of(token: Token) -> Option<Self> {
        token.0.checked_sub(FIRST).map(Self)
    }
}

/// All listeners of a node.
#[derive(Default)]
pub(super) struct Listeners {
    all: BTreeMap<ListenerId, Box<dyn Listener>>,
    /// When to try all of them without an event.
    again: Option<Instant>,
    trouble: Option<Trouble>,
}

/// Accepting fails, since then and so often.
struct Trouble {
    since: Instant,
    failures: u64,
}

impl Listeners {
    /// Adds a listener. Whoever waits there already is taken at once.
    ///
    /// # Errors
    /// The system refused.
    pub(super) fn add(&mut self, poll: &Poll, id: ListenerId, mut listener: Box<dyn Listener>) -> io::Result<()> {
        poll.registry().register(listener.source(), id.token(), Interest::READABLE)?;
        self.all.insert(id, listener);
        Ok(())
    }

    /// Closes a listener, and with it whoever waits there.
    pub(super) fn remove(&mut self, poll: &Poll, id: ListenerId) {
        let Some(mut listener) = self.all.remove(&id) else { return };
        if let Err(error) = poll.registry().deregister(listener.source()) {
            log::debug!(target: "threadwire::accept", "a listener is closed: {error}");
        }
    }

    /// Their names.
    pub(super) fn ids(&self) -> Vec<ListenerId> {
        self.all.keys().copied().collect()
    }

    /// When to try all of them without an event.
    pub(super) fn again(&self) -> Option<Instant> {
        self.again
    }

    /// Whether that time has come; it is up to the caller then.
    pub(super) fn take_again(&mut self, now: Instant) -> bool {
        self.again.take_if(|at| *at <= now).is_some()
    }

    /// There may be more; the caller has something else to do first.
    pub(super) fn come_back(&mut self, now: Instant) {
        self.again = Some(self.again.map_or(now, |at| at.min(now)));
    }

    /// The next connection of a listener; nothing when there is none, or none can be taken.
    pub(super) fn accept(
        &mut self,
        listener: ListenerId,
        now: Instant,
        metrics: &Metrics,
    ) -> Option<Box<dyn PendingConnection>> {
        let listener = self.all.get_mut(&listener)?;
        let mut gone = 0;
        loop {
            let error = match listener.accept() {
                Ok(stream) => {
                    self.works_again(now);
                    return Some(stream);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.works_again(now);
                    return None;
                }
                Err(error) => error,
            };
            metrics.accept_errors.add();
            let starved = is_want(&error);
            if starved {
                metrics.accepts_starved.add();
            }
            gone += 1;
            if !starved && gone < GONE_IN_A_ROW {
                log::debug!(target: "threadwire::accept", "a connection was gone before it was accepted: {error}");
                continue;
            }
            let trouble = self.trouble.get_or_insert_with(|| {
                log::warn!(target: "threadwire::accept", "accepting: {error}; trying again every {ACCEPT_AGAIN:?}");
                Trouble { since: now, failures: 0 }
            });
            trouble.failures += 1;
            self.again = Some(now + ACCEPT_AGAIN);
            return None;
        }
    }

    fn works_again(&mut self, now: Instant) {
        if let Some(Trouble { since, failures }) = self.trouble.take() {
            let lasted = now - since;
            log::info!(target: "threadwire::accept", "accepting again, after {failures} failures in {lasted:?}");
        }
    }
}

/// The process or the system is out of something. Everything else is about the connection that was to be accepted:
/// Linux also reports here what happened to it on the network.
fn is_want(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use std::net::SocketAddr;

    use mio::event::Source;

    use crate::transport::Transport;
    use crate::transport::memory::Memory;

    /// Accepts what a listener in memory has, after these errors.
    struct Failing {
        inner: Box<dyn Listener>,
        errors: VecDeque<io::Error>,
    }

    impl Listener for Failing {
        fn local_addr(&self) -> SocketAddr {
            self.inner.local_addr()
        }

        fn accept(&mut self) -> io::Result<Box<dyn PendingConnection>> {
            match self.errors.pop_front() {
                Some(error) => Err(error),
                None => self.inner.accept(),
            }
        }

        fn source(&mut self) -> &mut dyn Source {
            self.inner.source()
        }
    }

    /// A listener that fails with these errors, and then accepts one connection.
    fn failing(errors: impl IntoIterator<Item = io::Error>) -> (Listeners, Box<dyn PendingConnection>) {
        let hub = Memory::new();
        let inner = hub.listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let dialled = hub.connect(inner.local_addr()).unwrap();
        let failing: Box<dyn Listener> = Box::new(Failing { inner, errors: errors.into_iter().collect() });
        (Listeners { all: BTreeMap::from([(ListenerId(0), failing)]), again: None, trouble: None }, dialled)
    }

    #[test]
    fn a_want_of_descriptors_ends_by_a_timer_and_is_counted() {
        for code in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM] {
            let (mut listeners, _dialled) = failing((0..3).map(|_| io::Error::from_raw_os_error(code)));
            let (metrics, mut now) = (Metrics::default(), Instant::now());
            for _ in 0..3 {
                assert!(listeners.accept(ListenerId(0), now, &metrics).is_none());
                assert_eq!(listeners.again(), Some(now + ACCEPT_AGAIN));
                assert!(!listeners.take_again(now), "not before its time");
                now += ACCEPT_AGAIN;
                assert!(listeners.take_again(now) && listeners.again().is_none());
            }
            assert_eq!(listeners.trouble.as_ref().map(|trouble| trouble.failures), Some(3));
            assert!(listeners.accept(ListenerId(0), now, &metrics).is_some());
            assert!(listeners.trouble.is_none() && listeners.again().is_none());
            let counted = metrics.snapshot();
            assert_eq!((counted.accept_errors, counted.accepts_starved), (3, 3));
        }
    }

    #[test]
    fn connections_that_are_gone_already_hold_up_nobody() {
        let errors = [libc::ECONNABORTED, libc::EPROTO, libc::ENETUNREACH].map(io::Error::from_raw_os_error);
        let (mut listeners, _dialled) = failing(errors);
        let metrics = Metrics::default();
        assert!(listeners.accept(ListenerId(0), Instant::now(), &metrics).is_some());
        assert_eq!((metrics.snapshot().accept_errors, metrics.snapshot().accepts_starved), (3, 0));
        assert!(listeners.again().is_none());
    }

    #[test]
    fn a_listener_that_only_fails_does_not_keep_the_thread() {
        let (mut listeners, _dialled) = failing((0..1_000).map(|_| io::Error::from_raw_os_error(libc::EINVAL)));
        let (metrics, now) = (Metrics::default(), Instant::now());
        assert!(listeners.accept(ListenerId(0), now, &metrics).is_none());
        assert_eq!(metrics.snapshot().accept_errors, u64::from(GONE_IN_A_ROW));
        assert_eq!(listeners.again(), Some(now + ACCEPT_AGAIN));
    }
}
