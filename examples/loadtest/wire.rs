//! Threadwire's side of every measurement: all that touches the library is here.
//!
//! Owns: the nodes of both ends.
//! Threads: the measuring thread sends; the library's `rx-..` threads run the handlers.
//! Locks: the pinger's run, in its handler only while a run is on. Blocks on: sends, the end of a run, shutdown.
//! Upholds: only the public API, as an application would use it: a handle, borrowed payloads, a handler,
//! acknowledgements on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use threadwire::{Config, LinkStats, Message, Node, PeerHandle, PeerId};

use crate::checker::{NUMBER, SharedChecker, Tally, end_mark, number, number_of};
use crate::control::Answer;
use crate::failure::{Context, Failure};
use crate::histogram::Histogram;
use crate::raw::clock_every;

/// How long two nodes on one machine may take to find each other, or to part.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the receiver waits for messages that the end mark has overtaken, before it counts them as lost.
const LATE: Duration = Duration::from_secs(5);

/// A node on loopback, over TLS or plain TCP.
fn config(secure: bool) -> Config {
    if secure { Config::loopback() } else { Config::loopback().plain() }
}

/// The measuring end's node, linked to the other end's.
pub struct Linked {
    node: Node,
    peer: PeerHandle,
    id: PeerId,
}

impl Linked {
    /// A node that only sends.
    ///
    /// # Errors
    /// The node did not start or found no link.
    pub fn sender(there: &Answer, secure: bool) -> Result<Self, Failure> {
        Self::to(Node::builder().config(config(secure)).start().context("starting the sender's node")?, there)
    }

    fn to(node: Node, there: &Answer) -> Result<Self, Failure> {
        let Answer::Node { id, addr } = there else { return Err(crate::control::unexpected(there)) };
        let id: PeerId = id.parse().context("the other end's peer id")?;
        node.add_peer(id, [*addr]).context("adding the other end")?;
        let peer = node.wait_connected(id, PATIENCE).context("waiting for the link")?;
        Ok(Self { node, peer, id })
    }

    /// Sends numbered messages of `size` bytes for `duration`, then the end mark; says how many. With `by_id` each
    /// message names its peer anew, else all go through one handle.
    ///
    /// # Errors
    /// The library did not take a message.
    pub fn flood(&self, size: usize, duration: Duration, by_id: bool) -> Result<u64, Failure> {
        let sent = if by_id {
            numbered(size, duration, |message| self.node.send(self.id, message))
        } else {
            numbered(size, duration, |message| self.peer.send(message))
        };
        let sent = sent.context("sending")?;
        self.peer.send(end_mark(sent)).context("sending the end mark")?;
        Ok(sent)
    }

    /// Waits until everything sent is answered for, so that the next measurement has the machine for itself.
    ///
    /// # Errors
    /// It takes too long.
    pub fn settle(&self) -> Result<LinkStats, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let stats = self.peer.stats();
            if stats.accepted == stats.acked + stats.returned + stats.unknown {
                return Ok(stats);
            }
            if Instant::now() > deadline {
                return Err(Failure::new(format!("messages stay without an acknowledgement: {stats:?}")));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends the node; says what became of all messages of its life: accepted and acknowledged.
    ///
    /// # Errors
    /// A message was returned or its fate is unknown.
    pub fn close(self) -> Result<(u64, u64), Failure> {
        let stats = self.settle()?;
        if stats.returned + stats.unknown > 0 {
            return Err(Failure::new(format!("{} messages returned, {} unknown", stats.returned, stats.unknown)));
        }
        end(&self.node)?;
        Ok((stats.accepted, stats.acked))
    }
}

fn numbered<E>(size: usize, duration: Duration, mut send: impl FnMut(&[u8]) -> Result<(), E>) -> Result<u64, E> {
    let every = clock_every(size);
    let deadline = Instant::now() + duration;
    let mut message = vec![7; size];
    let mut sent = 0;
    while Instant::now() < deadline {
        for _ in 0..every {
            number(&mut message, sent);
            send(&message[..])?;
            sent += 1;
        }
    }
    Ok(sent)
}

/// A round-trip run under way.
struct Run {
    times: Histogram,
    message: Vec<u8>,
    sequence: u64,
    asked: Instant,
    deadline: Instant,
    done: Sender<Result<Histogram, Failure>>,
}

impl Run {
    /// Takes an echo and asks again; `Some` at the end of the run.
    fn echo(&mut self, peer: &PeerHandle, payload: &[u8]) -> Option<Result<(), Failure>> {
        let now = Instant::now();
        if payload.len() != self.message.len() || number_of(payload) != self.sequence {
            return Some(Err(Failure::new("another message came back")));
        }
        self.times.record(now - self.asked);
        if now >= self.deadline {
            return Some(Ok(()));
        }
        self.sequence += 1;
        self.asked = now;
        number(&mut self.message, self.sequence);
        peer.try_send(&self.message[..]).context("asking").err().map(Err)
    }
}

/// The measuring end of round trips: its handler takes the time of an echo and asks again.
pub struct Pinger {
    linked: Linked,
    run: Arc<Mutex<Option<Run>>>,
}

impl Pinger {
    /// A node whose handler drives the round trips.
    ///
    /// # Errors
    /// The node did not start or found no link.
    pub fn new(there: &Answer, secure: bool) -> Result<Self, Failure> {
        let run: Arc<Mutex<Option<Run>>> = Arc::default();
        let in_handler = Arc::clone(&run);
        let node = Node::builder()
            .config(config(secure))
            .handler(move |peer: &PeerHandle, message: Message<'_>| {
                let mut slot = in_handler.lock();
                let Some(run) = slot.as_mut() else { return };
                if let Some(result) = run.echo(peer, message.payload())
                    && let Some(Run { times, done, .. }) = slot.take()
                {
                    // Nobody waits any more when the measuring thread has given up: then it has said so.
                    let _ = done.send(result.map(|()| times));
                }
            })
            .start()
            .context("starting the asking node")?;
        Ok(Self { linked: Linked::to(node, there)?, run })
    }

    /// Round trips of `size` bytes for `duration`, one at a time.
    ///
    /// # Errors
    /// An answer did not come, or another came.
    pub fn ping(&self, size: usize, duration: Duration) -> Result<Histogram, Failure> {
        let (done, ended) = bounded(1);
        let mut message = vec![7; size];
        number(&mut message, 0);
        let first = message.clone();
        let times = Histogram::new()?;
        let asked = Instant::now();
        *self.run.lock() = Some(Run { times, message, sequence: 0, asked, deadline: asked + duration, done });
        self.linked.peer.send(first).context("asking")?;
        let times = ended.recv_timeout(duration + PATIENCE).context("waiting for the last answer")??;
        self.linked.settle()?;
        Ok(times)
    }

    /// Ends the node.
    ///
    /// # Errors
    /// As [`Linked::close`].
    pub fn close(self) -> Result<(u64, u64), Failure> {
        self.linked.close()
    }
}

/// The other end's node.
pub struct Responder {
    node: Node,
    checker: Arc<SharedChecker>,
    ended: Receiver<u64>,
}

impl Responder {
    /// A node that counts what arrives.
    ///
    /// # Errors
    /// The node did not start.
    pub fn counter(secure: bool) -> Result<Self, Failure> {
        let checker = Arc::new(SharedChecker::new(NUMBER));
        let (end, ended) = bounded(1);
        let books = Arc::clone(&checker);
        let node = Node::builder()
            .config(config(secure))
            .handler(move |_: &PeerHandle, message: Message<'_>| {
                if let Some(sent) = books.take(message.payload()) {
                    // A second end mark finds the first still there: then the books show a duplicate anyway.
                    let _ = end.try_send(sent);
                }
            })
            .start()
            .context("starting the receiver's node")?;
        Ok(Self { node, checker, ended })
    }

    /// A node that sends every message back, by `reply` or as a message of its own.
    ///
    /// # Errors
    /// The node did not start.
    pub fn echo(reply: bool, secure: bool) -> Result<Self, Failure> {
        let (_, ended) = bounded(1);
        let node = Node::builder()
            .config(config(secure))
            .handler(move |peer: &PeerHandle, message: Message<'_>| {
                let answered = if reply { message.reply(message.payload()) } else { peer.try_send(message.payload()) };
                if let Err(error) = answered {
                    log::error!("answering: {error}");
                }
            })
            .start()
            .context("starting the answering node")?;
        Ok(Self { node, checker: Arc::new(SharedChecker::new(NUMBER)), ended })
    }

    /// Who this node is and where it waits.
    ///
    /// # Errors
    /// It does not listen.
    pub fn place(&self) -> Result<(String, SocketAddr), Failure> {
        let addr = self.node.local_addr().ok_or_else(|| Failure::new("the node does not listen"))?;
        Ok((self.node.id().to_string(), addr))
    }

    /// Starts the books of a run.
    pub fn restart(&self, size: usize) {
        self.ended.try_iter().for_each(drop);
        self.checker.restart(size);
    }

    /// Waits for the end mark, for at most `patience`, and closes the books.
    ///
    /// # Errors
    /// There was no end mark.
    pub fn finish(&self, patience: Duration) -> Result<Tally, Failure> {
        let sent = self.ended.recv_timeout(patience).context("waiting for the end mark")?;
        let deadline = Instant::now() + LATE;
        loop {
            let tally = self.checker.tally(sent);
            if tally.lost == 0 || Instant::now() > deadline {
                return Ok(tally);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends the node.
    ///
    /// # Errors
    /// It left something behind.
    pub fn close(self) -> Result<(), Failure> {
        end(&self.node)
    }
}

fn end(node: &Node) -> Result<(), Failure> {
    let report = node.shutdown(PATIENCE);
    if report.is_clean() { Ok(()) } else { Err(Failure::new(format!("the node did not end cleanly: {report:?}"))) }
}
