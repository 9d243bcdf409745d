//! The metrics endpoint: one resource over plain HTTP, for scrapers.
//!
//! Owns: a listening socket, at most [`CONNECTIONS`] connections. Threads: `metrics`, which serves all of them in one
//! poll. Locks: none of its own; making the text takes what `Node::metrics` takes. Blocks on: the poll.
//! Upholds: nobody waits for a slow client: no socket blocks, each stage of a connection has a deadline for the whole of
//! it, and what does not fit is closed at once; each connection is counted once, under how it ended; the end of the
//! thread waits for no client.

mod exchange;
mod http;
#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};

use crate::listener;
use crate::metrics::{Metrics, ScrapeFailure};
use crate::threads::{self, Thread};
use exchange::{Exchange, Outcome, Turn};

/// Connections at one time.
pub(crate) const CONNECTIONS: usize = 16;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
/// Connections taken before others are looked at.
const ACCEPTS: usize = 64;
/// How long after a failed accept the next one is tried.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
const STACK: usize = 256 * 1024;
const READ_BYTES: usize = 4 * 1024;

const LISTENER: Token = Token(usize::MAX);
const END: Token = Token(usize::MAX - 1);

/// A bound socket that nobody serves yet.
pub(crate) struct Bound {
    listener: TcpListener,
    addr: SocketAddr,
}

impl Bound {
    /// Binds the endpoint's socket; port 0 lets the system choose.
    ///
    /// # Errors
    /// The address is in use or not of this machine.
    pub(crate) fn to(addr: SocketAddr) -> io::Result<Self> {
        let listener = listener::bind(addr, BACKLOG)?;
        Ok(Self { addr: listener.local_addr()?, listener })
    }

    /// Where it is, with the port the system chose.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves what `text` returns, made anew for each turn in which somebody asks.
    ///
    /// # Errors
    /// The poll or the thread could not be made; nothing keeps running.
    pub(crate) fn serve(
        self,
        metrics: Arc<Metrics>,
        text: impl Fn() -> String + Send + 'static,
    ) -> io::Result<Exposition> {
        let (poll, mut listener) = (Poll::new()?, self.listener);
        let end = Arc::new(Waker::new(poll.registry(), END)?);
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let places = (0..CONNECTIONS).map(|_| None).collect();
        let server = Server { poll, _end: end.clone(), listener, places, again: None, failing: false, metrics, text };
        let thread = threads::spawn("metrics", "", STACK, move || serve_loop(server))?;
        Ok(Exposition { end, thread: Some(thread) })
    }
}

/// The endpoint while it serves. Dropping it ends it.
pub(crate) struct Exposition {
    end: Arc<Waker>,
    thread: Option<Thread>,
}

impl Exposition {
    /// Ends it at once, without a word to those who are connected.
    pub(crate) fn stop(&self) {
        if let Err(error) = self.end.wake() {
            log::error!(target: "threadwire::node", "the metrics endpoint cannot be ended: {error}");
        }
    }

    /// Ends its thread; returns its name if it still runs at the deadline.
    ///
    /// # Blocking
    /// Until the thread has ended or the deadline has passed.
    pub(crate) fn join(mut self, deadline: Instant) -> Option<String> {
        self.stop();
        self.thread.take()?.join_until(deadline).err().map(|thread| thread.name().to_owned())
    }
}

impl Drop for Exposition {
    fn drop(&mut self) {
        // A start that failed halfway: nothing may keep running.
        if self.thread.is_some() {
            self.stop();
        }
    }
}

/// What the thread has.
struct Server<T> {
    poll: Poll,
    /// Held, since a waker that is gone takes along what it said and was not heard yet.
    _end: Arc<Waker>,
    listener: TcpListener,
    places: Vec<Option<(TcpStream, Exchange)>>,
    /// When to accept without an event.
    again: Option<Instant>,
    /// Accepting fails, and that was said.
    failing: bool,
    metrics: Arc<Metrics>,
    text: T,
}

/// The thread `metrics`.
fn serve_loop<T: Fn() -> String>(mut server: Server<T>) {
    let mut events = Events::with_capacity(2 * CONNECTIONS);
    loop {
        let wait = server.next().map(|at| at.saturating_duration_since(Instant::now()));
        match server.poll.poll(&mut events, wait) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => {
                log::error!(target: "threadwire::node", "the metrics endpoint has ended: its poll fails: {error}");
                break;
            }
        }
        if events.iter().any(|event| event.token() == END) {
            break;
        }
        let now = Instant::now();
        // Those who ask in one turn share one text: a crowd costs one look at the node.
        let mut text = None;
        for event in &events {
            server.drive(event.token(), now, &mut text);
        }
        server.cut(now);
        // Last: those who have just gone make room.
        if server.again.take_if(|at| *at <= now).is_some() || events.iter().any(|event| event.token() == LISTENER) {
            server.accept(now);
        }
    }
    for (_, mut exchange) in server.places.drain(..).flatten() {
        exchange.end(ScrapeFailure::ShuttingDown);
        count(&server.metrics, &mut exchange);
    }
}

impl<T: Fn() -> String> Server<T> {
    /// When there is something to do without an event.
    fn next(&self) -> Option<Instant> {
        self.places.iter().flatten().map(|(_, exchange)| exchange.deadline()).chain(self.again).min()
    }

    fn accept(&mut self, now: Instant) {
        for _ in 0..ACCEPTS {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    self.failing = false;
                    self.place(stream, now);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.metrics.scrapes_failed.add(ScrapeFailure::NotAccepted);
                    if !std::mem::replace(&mut self.failing, true) {
                        log::warn!(target: "threadwire::node", "the metrics endpoint accepts nobody now: {error}");
                    }
                    self.again = Some(now + ACCEPT_AGAIN);
                    return;
                }
            }
        }
        // Readiness is told once: whoever stops before the last one comes back by itself.
        self.again = Some(now);
    }

    fn place(&mut self, mut stream: TcpStream, now: Instant) {
        // A free place; else that of the one who has had an answer, and time to close, for longest; else that of the one
        // who has had time to ask for longest: whoever says nothing keeps nobody out.
        let places = self.places.iter_mut().enumerate();
        let yields = |(_, place): &(usize, &mut Option<(_, Exchange)>)| match place {
            None => true,
            Some((_, exchange)) => exchange.is_parting() || exchange.is_asking(),
        };
        let first = |(_, place): &(usize, &mut Option<(_, Exchange)>)| {
            place.as_ref().map(|(_, exchange)| (exchange.is_asking(), exchange.deadline()))
        };
        let Some((at, place)) = places.filter(yields).min_by_key(first) else {
            self.metrics.scrapes_failed.add(ScrapeFailure::TooMany);
            return;
        };
        if let Some((_, exchange)) = place {
            exchange.end(ScrapeFailure::TooMany);
            count(&self.metrics, exchange);
        }
        // Both, once: a connection waits for the one or the other, and finds out by trying.
        let both = Interest::READABLE | Interest::WRITABLE;
        if self.poll.registry().register(&mut stream, Token(at), both).is_err() {
            self.metrics.scrapes_failed.add(ScrapeFailure::NotAccepted);
            return;
        }
        *place = Some((stream, Exchange::new(now)));
    }

    /// Does what one connection is ready for.
    fn drive(&mut self, token: Token, now: Instant, text: &mut Option<String>) {
        let Some(place) = self.places.get_mut(token.0) else { return };
        let Some((stream, exchange)) = place else { return };
        // Bounded: a request, an answer and what is thrown away are.
        loop {
            // Before the answer goes: whoever has read it finds it counted.
            count(&self.metrics, exchange);
            let moved = match exchange.turn() {
                Turn::Close => break,
                Turn::Text => {
                    exchange.give(text.get_or_insert_with(&self.text), now);
                    continue;
                }
                Turn::Read => {
                    let mut bytes = [0; READ_BYTES];
                    stream.read(&mut bytes).map(|len| exchange.came(bytes.get(..len).unwrap_or_default(), now))
                }
                Turn::Write(bytes) => match stream.write(bytes) {
                    Ok(0) => Err(ErrorKind::WriteZero.into()),
                    Ok(len) => {
                        if exchange.went(len, now) {
                            // One that is gone already is found out by reading.
                            let _ = stream.shutdown(Shutdown::Write);
                        }
                        Ok(())
                    }
                    Err(error) => Err(error),
                },
            };
            match moved {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => exchange.end(ScrapeFailure::Lost),
            }
        }
        count(&self.metrics, exchange);
        if exchange.turn() == Turn::Close {
            *place = None;
        }
    }

    /// Cuts those whose time is up.
    fn cut(&mut self, now: Instant) {
        for place in &mut self.places {
            if let Some((_, exchange)) = place.as_mut().filter(|(_, exchange)| exchange.deadline() <= now) {
                exchange.late();
                count(&self.metrics, exchange);
                *place = None;
            }
        }
    }
}

/// Counts how a connection ended, once that is decided.
fn count(metrics: &Metrics, exchange: &mut Exchange) {
    match exchange.take_outcome() {
        Some(Outcome::Answered) => metrics.scrapes.add(),
        Some(Outcome::Failed(cause)) => metrics.scrapes_failed.add(cause),
        None => {}
    }
}
