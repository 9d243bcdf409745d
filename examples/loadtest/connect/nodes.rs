//! Our side of the workload `connect`: a node that lets others in, and nodes that dial it again and again.
//!
//! Owns: the nodes. Threads: one for each node that dials, the measuring process's; the nodes' own. Locks: none.
//! Blocks on: a dial, the end of a session, shutdown.
//! Upholds: only the public API, as an application would use it; a session counts for whoever let it in by what its
//! node counts, and for whoever dialled by the dial's own outcome; the next one begins when the last one has ended.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use threadwire::error::{CloseReason, DisconnectReason};
use threadwire::{Config, Event, Message, Node, PeerHandle};

use crate::connect::Entered;
use crate::failure::{Context, Failure};

/// How long a session may take to end, and a node.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the node that is dialled waits for sessions that it was told of.
const LATE: Duration = Duration::from_secs(5);

fn start(config: Config) -> Result<Node, Failure> {
    let node = Node::builder().config(config).handler(|peer: &PeerHandle, message: Message<'_>| {
        log::error!("{peer:?} sent {} bytes where none were due", message.payload().len());
    });
    node.start().context("starting a node")
}

fn config(secure: bool) -> Config {
    if secure { Config::loopback() } else { Config::loopback().plain() }
}

/// The node that is dialled.
pub struct Door(Node);

impl Door {
    /// A node that lets everybody in.
    ///
    /// # Errors
    /// It did not start.
    pub fn open(secure: bool) -> Result<Self, Failure> {
        start(config(secure)).map(Self)
    }

    /// Who it is and where it waits.
    ///
    /// # Errors
    /// It does not listen.
    pub fn place(&self) -> Result<(String, SocketAddr), Failure> {
        let addr = self.0.local_addr().ok_or_else(|| Failure::new("the node does not listen"))?;
        Ok((self.0.id().to_string(), addr))
    }

    /// Sessions so far, when there are so many and all have ended, or will not.
    pub fn entered(&self, at_least: u64) -> Entered {
        let deadline = Instant::now() + LATE;
        loop {
            let metrics = self.0.metrics();
            let count = metrics.sessions_started;
            if count >= at_least && metrics.sessions_ended == count || Instant::now() > deadline {
                return Entered::now(count);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends the node.
    ///
    /// # Errors
    /// It left something behind.
    pub fn close(self) -> Result<(), Failure> {
        end(&self.0)
    }
}

/// A node that dials, and has one session at a time.
pub struct Caller {
    node: Node,
    events: Receiver<Event>,
    door: SocketAddr,
}

impl Caller {
    /// A node that only dials, and nobody yet.
    ///
    /// # Errors
    /// It did not start.
    pub fn new(secure: bool, door: SocketAddr) -> Result<Self, Failure> {
        let mut config = config(secure);
        config.listen.clear();
        let node = start(config)?;
        let events = node.events();
        Ok(Self { node, events, door })
    }

    /// Has a session, from its dial to its end.
    ///
    /// # Errors
    /// The dial failed, or the session ended in another way than by our goodbye.
    pub fn call(&mut self) -> Result<(), Failure> {
        let peer = self.node.connect(self.door).context("dialling")?;
        self.node.disconnect(peer.id(), CloseReason::Requested).context("saying goodbye")?;
        loop {
            match self.events.recv_timeout(PATIENCE).context("waiting for the end of a session")? {
                Event::Disconnected { reason: DisconnectReason::Local(CloseReason::Requested), .. } => return Ok(()),
                Event::Connected { .. } => {}
                other => return Err(Failure::new(format!("where a session was to end: {other:?}"))),
            }
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
