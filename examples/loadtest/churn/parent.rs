//! The parent: the sender's node, the map it follows, who moves when, and the result.
//!
//! Owns: the node, the map, the processes and the run's folder. Threads: the main one; those of `flow`. Locks: that of the
//! redirects, a leaf. Blocks on: what the children say, never without a deadline.
//! Upholds: when it returns, well or not, every child has ended and the folder is gone; a peer is where the map says
//! before the map says so, and moves again only once it was reached.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use threadwire::direct::{PeerData, PeersMap};
use threadwire::{Config, Node, Watch};

use super::Options;
use super::flow::Flow;
use super::host::{self, Cast, Place};
use super::redirect::Redirects;
use crate::chaos::checker::{Check, Verdict};
use crate::chaos::control::{Answer, Answers, Order, Part, Process};
use crate::failure::{Context, Failure};

/// How long a process may take to start, to end, to restart a peer.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the checker may take to read everything.
const CHECK: Duration = Duration::from_secs(300);
/// Between two changes of the map.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a peer is out of the map.
const ABSENCE: std::ops::Range<u64> = 50..1000;
/// How long the last redirects may take.
const ARRIVE: Duration = Duration::from_secs(20);

/// What a run has seen.
#[derive(Debug, Clone, Default)]
pub struct Found {
    pub switched: usize,
    pub restarted: usize,
    pub vanished: usize,
    /// How long it took until each peer was reached for the first time, and where it had moved to.
    pub connects: Vec<Duration>,
    pub redirects: Vec<Duration>,
    /// Of both, those that did not end.
    pub unfinished: usize,
    pub verdict: Verdict,
    /// What the sender's shutdown left; empty if nothing.
    pub left: String,
    pub seconds: f64,
}

/// A peer, as the map has it.
#[derive(Debug)]
struct Peer {
    place: Place,
    /// Which of its ports the map says.
    port: usize,
    lives: u16,
    /// When it comes back into the map.
    back: Option<Instant>,
}

/// Does a whole run.
///
/// # Errors
/// A process failed, or did not do in time what it was told.
pub fn run(options: &Options) -> Result<Found, Failure> {
    let scratch = tempfile::Builder::new().prefix("threadwire-churn-").tempdir().context("a temporary folder")?;
    let found = Run::new(options, scratch.path().to_owned())?.through();
    let closed = scratch.close().context("removing the temporary folder");
    found.and_then(|found| closed.map(|()| found))
}

struct Run<'a> {
    options: &'a Options,
    folder: std::path::PathBuf,
    node: Arc<Node>,
    map: Watch<PeersMap>,
    peers: Vec<Peer>,
    redirects: Arc<Mutex<Redirects>>,
    random: fastrand::Rng,
    host: Process,
    answers: Answers,
    /// Where nobody listens.
    nobody: SocketAddr,
    found: Found,
}

impl<'a> Run<'a> {
    fn new(options: &'a Options, folder: std::path::PathBuf) -> Result<Self, Failure> {
        let map = Watch::new(PeersMap::new());
        let mut config = Config::loopback();
        config.network = host::NETWORK.to_owned();
        // A session that is about to be replaced has its place beside the next.
        config.outbound = 2 * options.peers + 8;
        let node = Node::builder().config(config).peers_map(&map).start().context("starting the sender")?;
        let answers = Answers::new();
        let mut host = Process::start(Part::Host, "error", 0, &answers)?;
        host.order(&Order::Host(Cast { peers: options.peers, folder: folder.clone(), sender: node.id() }))?;
        let nobody = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let mut run = Self {
            options,
            folder,
            node: Arc::new(node),
            map,
            peers: Vec::new(),
            redirects: Arc::default(),
            random: fastrand::Rng::with_seed(options.seed),
            host,
            answers,
            nobody: nobody.context("an address of nobody's")?,
            found: Found::default(),
        };
        let places = run.places()?;
        run.peers = places.into_iter().map(|place| Peer { place, port: 0, lives: 1, back: None }).collect();
        Ok(run)
    }

    fn through(mut self) -> Result<Found, Failure> {
        let began = Instant::now();
        let ids: Vec<_> = self.peers.iter().map(|peer| peer.place.id).collect();
        let flow = Flow::start(&self.node, &ids, &self.folder, self.options.seed, &self.redirects)?;
        for index in 0..self.peers.len() {
            self.publish(index);
        }
        let until = began + Duration::from_secs_f64(self.options.seconds);
        while Instant::now() < until {
            flow.check()?;
            self.change()?;
            self.come_back(false);
            std::thread::sleep(PAUSE);
        }
        self.come_back(true);
        let arrive = Instant::now() + ARRIVE;
        while self.redirects.lock().unfinished() > 0 && Instant::now() < arrive {
            flow.check()?;
            std::thread::sleep(PAUSE);
        }
        if let Some(sabotage) = self.options.sabotage {
            self.host.order(&Order::Sabotage(sabotage))?;
            self.hear(0, PATIENCE, |answer| matches!(answer, Answer::Sabotaged).then_some(()))?;
        }
        flow.settle()?;
        self.found.seconds = began.elapsed().as_secs_f64();
        {
            let redirects = self.redirects.lock();
            self.found.connects = redirects.connects().to_vec();
            self.found.redirects = redirects.over().to_vec();
            self.found.unfinished = redirects.unfinished();
        }
        let report = self.node.shutdown(PATIENCE);
        if !report.finished {
            self.found.left = format!("{report:?}");
        }
        self.end()
    }

    /// Ends the peers, and has the ledgers checked.
    fn end(mut self) -> Result<Found, Failure> {
        self.host.order(&Order::Finish)?;
        self.hear(0, PATIENCE, |answer| matches!(answer, Answer::AllEnded).then_some(()))?;
        let mut checker = Process::start(Part::Checker, "error", 1, &self.answers)?;
        let lives = std::iter::once(1).chain(self.peers.iter().map(|peer| peer.lives)).collect();
        checker.order(&Order::Check(Check { folder: self.folder.clone(), lives }))?;
        self.found.verdict = self.hear(1, CHECK, |answer| match answer {
            Answer::Checked(checked) => Some(checked.verdict),
            _ => None,
        })?;
        checker.wait()?;
        self.host.wait()?;
        Ok(self.found)
    }

    /// One peer moves, or is taken out of the map.
    fn change(&mut self) -> Result<(), Failure> {
        let index = self.random.usize(..self.peers.len());
        // Whoever is on its way, or away, is left alone.
        if self.peers[index].back.is_some() || self.redirects.lock().is_under_way(index + 1) {
            return Ok(());
        }
        match self.random.u8(..10) {
            0..4 => {
                self.peers[index].port ^= 1;
                self.found.switched += 1;
                self.publish(index);
            }
            4..7 => {
                self.restart(index)?;
                self.found.restarted += 1;
                self.publish(index);
            }
            kind => {
                let id = self.peers[index].place.id;
                self.map.update(|peers| drop(peers.remove(&id)));
                if kind == 9 {
                    self.restart(index)?;
                }
                let absence = Duration::from_millis(self.random.u64(ABSENCE));
                self.peers[index].back = Some(Instant::now() + absence);
            }
        }
        Ok(())
    }

    /// Puts peers back into the map whose time it is, or all.
    fn come_back(&mut self, all: bool) {
        let now = Instant::now();
        for index in 0..self.peers.len() {
            if self.peers[index].back.is_some_and(|back| all || back <= now) {
                self.peers[index].back = None;
                self.found.vanished += 1;
                self.publish(index);
            }
        }
    }

    /// Ends a peer's node, and starts it anew somewhere else.
    fn restart(&mut self, index: usize) -> Result<(), Failure> {
        self.host.order(&Order::Restart { peer: index + 1 })?;
        let places = self.places()?;
        let [place] = places[..] else { return Err(Failure::new("not one peer was restarted")) };
        let peer = &mut self.peers[index];
        if place.id != peer.place.id {
            return Err(Failure::new("a peer came back as somebody else"));
        }
        (peer.place, peer.port, peer.lives) = (place, 0, peer.lives + 1);
        Ok(())
    }

    /// The map says where a peer is, now and then beside an address where nobody is.
    fn publish(&mut self, index: usize) {
        let Peer { place, port, .. } = &self.peers[index];
        let (place, port) = (*place, *port);
        let addr = place.addrs[port];
        let mut places = vec![PeerData::from(addr)];
        if self.random.u8(..4) == 0 {
            places.insert(0, self.nobody.into());
        }
        self.redirects.lock().begin(index + 1, addr, Instant::now());
        self.map.update(|peers| drop(peers.insert(place.id, places.clone())));
    }

    fn places(&mut self) -> Result<Vec<Place>, Failure> {
        self.hear(0, PATIENCE, |answer| match answer {
            Answer::Hosted(places) => Some(places),
            _ => None,
        })
    }

    /// Waits until a process has said what `pick` looks for.
    fn hear<T>(&self, number: usize, patience: Duration, pick: impl FnOnce(Answer) -> Option<T>) -> Result<T, Failure> {
        let take_in = |said| match said {
            (from, Some(Answer::Failed(why))) => Err(Failure::new(format!("process {from}: {why}"))),
            (from, None) if from == number => Err(Failure::new(format!("process {number} ended too early"))),
            (_, answer) => Ok(answer),
        };
        self.answers.hear(number, patience, take_in, pick)
    }
}
