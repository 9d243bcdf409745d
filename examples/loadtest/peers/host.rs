//! A process full of peers: dials them, keeps their heartbeats going, counts what they see.
//!
//! Owns: the poll, its peers and their identities. Threads: `host` drives everything; who asks is the process's main
//! thread. Locks: none. Blocks on: the poll, woken by sockets, by questions, and each [`TICK`].
//! Upholds: a peer that fails is counted with its reason and never silently replaced.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use mio::{Events, Interest, Poll, Token, Waker};
use serde::{Deserialize, Serialize};
use threadwire::PeerId;

use crate::checker::Tally;
use crate::control::start_thread;
use crate::failure::{Context, Failure};
use crate::peers::books::{Books, Harm};
use crate::peers::light::{LightPeer, Manner, Persona, Seen};

/// How exact heartbeats are.
const TICK: Duration = Duration::from_millis(20);
/// How long an acknowledgement may wait, as at a node.
const ACK_DELAY: Duration = Duration::from_millis(5);
/// The waker's token; those of peers follow.
const WAKE: Token = Token(0);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the peers of a process have to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cast {
    /// How many.
    pub count: usize,
    /// The network they belong to.
    pub network: String,
    /// Milliseconds of silence before a heartbeat.
    pub heartbeat_ms: u64,
    /// So many of them never dial.
    pub hidden: usize,
    /// So many of them never say a heartbeat.
    pub mute: usize,
    /// They acknowledge at once what they read, so that whoever waits for that learns when it came; else as a node does.
    pub prompt: bool,
    /// Bytes of each lane that may be under way to each.
    pub window: u64,
    /// They are sent messages of so many bytes, which carry their numbers, and keep books of them.
    pub numbered: Option<usize>,
    /// Harm to one message of one of them, in its books.
    pub harm: Option<Harm>,
}

impl Cast {
    /// So many who do all that peers have to do, and keep no books.
    pub fn new(count: usize, network: &str, heartbeat: Duration) -> Self {
        let heartbeat_ms = heartbeat.as_millis() as u64;
        let network = network.to_owned();
        let window = 256 << 10;
        Self { count, network, heartbeat_ms, hidden: 0, mute: 0, prompt: false, window, numbered: None, harm: None }
    }
}

/// What the peers of a process have come to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Census {
    /// Attached now.
    pub attached: usize,
    /// Failed, ever.
    pub failed: usize,
    /// Why, of the first.
    pub first_failure: Option<String>,
    /// Attached, and heard at least one heartbeat since the last census.
    pub beating: usize,
    /// Seen since the last census, by all of them.
    pub seen: Seen,
    /// What those that are attached have ever been handed of numbered messages.
    pub tally: Tally,
}

impl Census {
    /// Adds the peers of another process.
    pub fn add(&mut self, other: Self) {
        self.attached += other.attached;
        self.failed += other.failed;
        self.first_failure = self.first_failure.take().or(other.first_failure);
        self.beating += other.beating;
        self.seen.add(other.seen);
        self.tally.add(&other.tally);
    }
}

enum Command {
    Dial { node: PeerId, addr: SocketAddr, at_once: usize },
    Count { sent: u64 },
}

/// The peers of this process, and how to ask for them.
pub struct Host {
    commands: Sender<Command>,
    waker: Waker,
    answers: Receiver<Result<Census, Failure>>,
}

impl Host {
    /// Makes identities and starts the thread; dials nobody yet.
    ///
    /// # Errors
    /// The system gives no randomness, no poll or no thread.
    pub fn new(cast: &Cast) -> Result<Self, Failure> {
        let poll = Poll::new().context("making a poll")?;
        let waker = Waker::new(poll.registry(), WAKE).context("making a waker")?;
        let dialling = cast.count.saturating_sub(cast.hidden);
        let personas = (0..dialling).map(|_| Persona::new(&cast.network)).collect::<Result<Vec<_>, _>>()?;
        let (commands, receiver) = unbounded();
        let (sender, answers) = bounded(1);
        let mut run = Run {
            poll,
            personas,
            peers: Vec::with_capacity(dialling),
            heartbeat: Duration::from_millis(cast.heartbeat_ms),
            cast: cast.clone(),
            dial: None,
            under_way: 0,
            census: Census::default(),
            owing: Vec::new(),
            commands: receiver,
            answers: sender,
        };
        start_thread("host", move || {
            if let Err(failure) = run.run() {
                // Nobody asks any more when the measuring end has given up: then it has said so.
                let _ = run.answers.send(Err(failure));
            }
        })?;
        Ok(Self { commands, waker, answers })
    }

    /// Dials with every peer, at most `at_once` at a time; says what came of it when every dial has ended.
    ///
    /// # Errors
    /// The host's thread failed, or the dials do not end.
    pub fn dial(&self, node: PeerId, addr: SocketAddr, at_once: usize) -> Result<Census, Failure> {
        self.ask(Command::Dial { node, addr, at_once })
    }

    /// What happened since the last question; and what came of numbered messages, given that each was sent so many.
    ///
    /// # Errors
    /// The host's thread failed.
    pub fn count(&self, sent: u64) -> Result<Census, Failure> {
        self.ask(Command::Count { sent })
    }

    fn ask(&self, command: Command) -> Result<Census, Failure> {
        let gone = "the thread of the peers is gone";
        self.commands.send(command).context(gone)?;
        self.waker.wake().context("waking the thread of the peers")?;
        self.answers.recv_timeout(PATIENCE).context("waiting for the peers")?
    }
}

struct Run {
    poll: Poll,
    /// Of peers that have not dialled yet.
    personas: Vec<Persona>,
    /// In the order they dialled; gone ones leave a gap.
    peers: Vec<Option<LightPeer>>,
    heartbeat: Duration,
    /// What is left to do of it: harm is done once.
    cast: Cast,
    /// Where to dial, and how many at once, while there is somebody who has to.
    dial: Option<(PeerId, SocketAddr, usize)>,
    /// Dials that are neither attached nor failed.
    under_way: usize,
    census: Census,
    /// Those that owe an acknowledgement.
    owing: Vec<usize>,
    commands: Receiver<Command>,
    answers: Sender<Result<Census, Failure>>,
}

impl Run {
    fn run(&mut self) -> Result<(), Failure> {
        let mut events = Events::with_capacity(1024);
        let (mut tick, mut acks) = (Instant::now(), None::<Instant>);
        loop {
            let wait = acks.map_or(TICK, |acks| acks.saturating_duration_since(Instant::now()));
            match self.poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() != std::io::ErrorKind::Interrupted => return Err(error).context("polling"),
                _ => {}
            }
            for event in &events {
                if event.token() != WAKE {
                    self.advance(event.token().0 - 1);
                }
            }
            if acks.is_none() && !self.owing.is_empty() {
                acks = Some(Instant::now() + ACK_DELAY);
            }
            if acks.is_some_and(|acks| Instant::now() >= acks) {
                acks = None;
                self.acknowledge();
            }
            while let Ok(command) = self.commands.try_recv() {
                match command {
                    Command::Dial { node, addr, at_once } => self.dial = Some((node, addr, at_once)),
                    Command::Count { sent } => self.answer(sent),
                }
            }
            self.dial_more()?;
            if tick.elapsed() >= TICK {
                tick = Instant::now();
                self.beat(tick);
            }
        }
    }

    /// Dials as many as may be under way; answers when the last has ended.
    fn dial_more(&mut self) -> Result<(), Failure> {
        let Some((node, addr, at_once)) = self.dial else { return Ok(()) };
        while self.under_way < at_once
            && let Some(persona) = self.personas.pop()
        {
            let Cast { prompt, window, numbered, ref mut harm, .. } = self.cast;
            let books = numbered.map(|size| Books::new(size, harm.take()));
            let mut peer = LightPeer::dial(persona, node, addr, Manner { prompt, window, books })?;
            let token = Token(self.peers.len() + 1);
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(peer.stream(), token, interest).context("polling a peer")?;
            self.peers.push(Some(peer));
            self.under_way += 1;
        }
        if self.under_way == 0 && self.personas.is_empty() {
            self.dial = None;
            self.answer(0);
        }
        Ok(())
    }

    /// Lets one peer go on.
    fn advance(&mut self, index: usize) {
        let Some(slot) = self.peers.get_mut(index) else { return };
        let Some(peer) = slot else { return };
        let was_attached = peer.is_attached();
        let outcome = peer.advance();
        let is_attached = peer.is_attached();
        let goes_on = matches!(outcome, Ok(true));
        if peer.tells_of_debt() {
            self.owing.push(index);
        }
        if !was_attached && (is_attached || !goes_on) {
            self.under_way -= 1;
        }
        if let Err(failure) = outcome {
            self.census.failed += 1;
            self.census.first_failure.get_or_insert_with(|| failure.to_string());
        }
        if !goes_on {
            // Closing takes it off the poll.
            *slot = None;
        }
    }

    /// Says the heartbeats that are due.
    fn beat(&mut self, now: Instant) {
        for index in self.cast.mute..self.peers.len() {
            let Some(peer) = &mut self.peers[index] else { continue };
            if peer.is_attached()
                && now.saturating_duration_since(peer.said) >= self.heartbeat
                && let Err(failure) = peer.beat(now)
            {
                self.census.failed += 1;
                self.census.first_failure.get_or_insert_with(|| failure.to_string());
                self.peers[index] = None;
            }
        }
    }

    /// Acknowledges what came and is not acknowledged.
    fn acknowledge(&mut self) {
        for index in self.owing.drain(..) {
            let Some(peer) = &mut self.peers[index] else { continue };
            if let Err(failure) = peer.acknowledge() {
                self.census.failed += 1;
                self.census.first_failure.get_or_insert_with(|| failure.to_string());
                self.peers[index] = None;
            }
        }
    }

    fn answer(&mut self, sent: u64) {
        let mut census = self.census.clone();
        for peer in self.peers.iter_mut().flatten().filter(|peer| peer.is_attached()) {
            let seen = std::mem::take(&mut peer.seen);
            census.attached += 1;
            census.beating += usize::from(seen.beats_heard > 0);
            census.seen.add(seen);
            census.tally.add(&peer.tally(sent));
        }
        // The one who asked may have given up.
        let _ = self.answers.send(Ok(census));
    }
}
