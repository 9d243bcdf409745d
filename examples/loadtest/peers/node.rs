//! The node under test: all that the workload `peers` asks of the library is here.
//!
//! Owns: the node, and a handle on each of its peers. Threads: the measuring thread; the node's own.
//! Locks: none of its own. Blocks on: the node's events, sends, shutdown.
//! Upholds: only the public API, as an application would use it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use threadwire::{Config, Event, Message, Node, PeerHandle};

use crate::failure::{Context, Failure};

/// The network of the node and its peers.
pub const NETWORK: &str = "loadtest-peers";
/// How long a message may take to be acknowledged, and the node to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes of a message.
const SIZE: usize = 64;
/// Memory that the configuration wants for each link.
const LINK_FLOOR: usize = 256 << 10;

/// A node, alone in this process.
pub struct UnderTest {
    node: Node,
    events: Receiver<Event>,
    peers: Vec<PeerHandle>,
}

impl UnderTest {
    /// A node that lets `count` peers dial it and cuts those that are silent for so long.
    ///
    /// # Errors
    /// The node did not start.
    pub fn start(count: usize, heartbeat: Duration, silence: Duration) -> Result<Self, Failure> {
        let mut config = Config::loopback().plain();
        config.network = NETWORK.to_owned();
        config.heartbeat = heartbeat;
        config.idle_timeout = silence;
        config.inbound = count;
        // They all come at once, and a peer may count itself as attached while its answer waits for the node.
        config.half_open = config.half_open.max(count);
        config.memory_bytes = config.memory_bytes.max((count + config.outbound) * LINK_FLOOR);
        let node = Node::builder().config(config).handler(|peer: &PeerHandle, message: Message<'_>| {
            log::error!("{peer:?} sent {} bytes where none were due", message.payload().len());
        });
        let node = node.start().context("starting the node under test")?;
        let events = node.events();
        Ok(Self { node, events, peers: Vec::with_capacity(count) })
    }

    /// Who it is and where it waits.
    ///
    /// # Errors
    /// It does not listen.
    pub fn place(&self) -> Result<(String, SocketAddr), Failure> {
        let addr = self.node.local_addr().ok_or_else(|| Failure::new("the node does not listen"))?;
        Ok((self.node.id().to_string(), addr))
    }

    /// Waits for `count` peers, until none has come for so long; says when the last one was told of.
    ///
    /// # Errors
    /// The node does not know a peer that it told of.
    pub fn wait_connected(&mut self, count: usize, nobody: Duration) -> Result<Instant, Failure> {
        let mut last = Instant::now();
        while self.peers.len() < count {
            match self.events.recv_deadline(last + nobody) {
                Ok(Event::Connected { peer, .. }) => {
                    last = Instant::now();
                    self.peers.push(self.node.peer(peer).context("a handle on a connected peer")?);
                }
                Ok(Event::Missed(missed)) => {
                    return Err(Failure::new(format!("{missed} events were not taken in time")));
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
        Ok(last)
    }

    /// How many peers have connected.
    pub fn connected(&self) -> usize {
        self.peers.len()
    }

    /// Sends a message to every peer and waits until the last has acknowledged it, `rounds` times; says how long each
    /// round took.
    ///
    /// # Errors
    /// A message was not taken, or is not acknowledged.
    pub fn rounds(&self, rounds: usize) -> Result<Vec<Duration>, Failure> {
        let payload = [7; SIZE];
        let connected: Vec<_> = self.peers.iter().filter(|peer| peer.is_connected()).collect();
        let mut times = Vec::with_capacity(rounds);
        for round in 1..=rounds as u64 {
            let began = Instant::now();
            connected.iter().try_for_each(|peer| peer.send(&payload[..])).context("sending to every peer")?;
            for peer in &connected {
                while peer.stats().acked < round {
                    if began.elapsed() > PATIENCE {
                        return Err(Failure::new(format!("{peer:?} does not acknowledge: {:?}", peer.stats())));
                    }
                    std::thread::sleep(Duration::from_micros(100));
                }
            }
            times.push(began.elapsed());
        }
        Ok(times)
    }

    /// Peers that the node cut for their silence.
    pub fn cut(&self) -> u64 {
        self.node.metrics().sessions_cut
    }

    /// Sessions that have begun and not ended.
    pub fn sessions(&self) -> u64 {
        let metrics = self.node.metrics();
        metrics.sessions_started - metrics.sessions_ended
    }

    /// Shuts the node down; says what that left, if it left something.
    pub fn stop(&self) -> Option<String> {
        let report = self.node.shutdown(PATIENCE);
        (!report.is_clean()).then(|| format!("{report:?}"))
    }
}
