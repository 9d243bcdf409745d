//! The parent: starts every process of a run, harms the nodes, and puts the result together.
//!
//! Owns: all child processes and the run's folder. Threads: the main one. Locks: none.
//! Blocks on: what the children say, never without a deadline.
//! Upholds: when it returns, well or not, every child has ended and a temporary folder is gone; a fault counts when it
//! happened, with something under way.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use threadwire::PeerId;

use crate::chaos::Options;
use crate::chaos::checker::{Check, Verdict};
use crate::chaos::control::{
    Answer, Answers, Begin, Neighbour, Order, Part, Passed, PhaseSums, Process, Said, Settled,
};
use crate::chaos::plan::{Kind, NodeFault, Plan};
use crate::failure::{Context, Failure};

/// How long a process may take to start, to probe, to shut down.
const PATIENCE: Duration = Duration::from_secs(40);
/// How long something may take that is under way already.
const SOON: Duration = Duration::from_millis(50);
/// How long the last outcomes may take; the nodes give up themselves before.
const SETTLE: Duration = Duration::from_secs(90);
/// How long the checker may take to read everything.
const CHECK: Duration = Duration::from_secs(300);
/// When no fault has happened for so long, none will.
const STUCK: Duration = Duration::from_secs(30);
/// The most bytes of messages, of all nodes together, and the share of it that is planned for.
const MOST_BYTES: u64 = 8_000_000_000;
const PLANNED_BYTES: u64 = MOST_BYTES / 10 * 9;
/// Faults a second that the pace of the messages is made for.
const CUTS_PER_SECOND: u64 = 3;
/// The most bytes a second from one node to another.
const PACE: u64 = 6_000_000;

/// What a run has seen.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    /// Faults that happened.
    pub faults: BTreeMap<Kind, Tally>,
    /// The library's own counts of the nodes that lived to the end.
    pub settled: Vec<Settled>,
    /// The same, of each phase, at their end.
    pub phases: Vec<PhaseSums>,
    /// Processes of each node.
    pub lives: Vec<u16>,
    /// What the proxy saw.
    pub passed: Passed,
    /// What the checker found.
    pub verdict: Verdict,
    /// Messages that each node's last process was handed, by its ledgers.
    pub handed_over: Vec<u64>,
    /// Sessions that a node ended because what came was not as it must be.
    pub refused_sessions: u64,
    /// Whether the harm that was asked for was done.
    pub sabotaged: bool,
    /// From the first message to the last outcome.
    pub seconds: f64,
}

/// Faults of a kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many happened.
    pub count: u64,
    /// Of these, those with bytes in flight.
    pub in_flight: u64,
}

/// Does a whole run.
///
/// # Errors
/// A process failed, or did not do in time what it was told.
pub fn run(options: &Options, bar: ProgressBar) -> Result<Findings, Failure> {
    let scratch = tempfile::Builder::new().prefix("threadwire-chaos-").tempdir().context("a temporary folder")?;
    let folder = match &options.keep {
        Some(keep) => empty_folder(keep)?,
        None => scratch.path().to_owned(),
    };
    let found = Run::new(options, &folder, bar)?.through();
    let closed = scratch.close().context("removing the temporary folder");
    found.and_then(|found| closed.map(|()| found))
}

/// A folder for what is kept. One with something in it could make a lost message look received.
fn empty_folder(path: &Path) -> Result<PathBuf, Failure> {
    let doing = || format!("the folder to keep ledgers in, {}", path.display());
    fs::create_dir_all(path).context(doing())?;
    if fs::read_dir(path).context(doing())?.next().is_some() {
        return Err(Failure::new(format!("{} is not empty", path.display())));
    }
    path.canonicalize().context(doing())
}

/// Between which nodes a link leads: the first one dials the second one.
fn links(nodes: usize) -> Vec<(usize, usize)> {
    (0..nodes).flat_map(|from| (from + 1..nodes).map(move |to| (from, to))).collect()
}

struct Run<'a> {
    options: &'a Options,
    folder: PathBuf,
    links: Vec<(usize, usize)>,
    /// Where the proxy is dialled for each link.
    doors: Vec<SocketAddr>,
    ids: Vec<PeerId>,
    processes: BTreeMap<usize, Process>,
    /// The number of each node's process.
    nodes: Vec<usize>,
    proxy: usize,
    next: usize,
    answers: Answers,
    /// From now on a process may end.
    ending: bool,
    last_fault: Instant,
    /// No fault is begun after this.
    deadline: Instant,
    found: Findings,
    bar: ProgressBar,
}

impl<'a> Run<'a> {
    fn new(options: &'a Options, folder: &Path, bar: ProgressBar) -> Result<Self, Failure> {
        let now = Instant::now();
        let mut run = Self {
            options,
            folder: folder.to_owned(),
            links: links(options.nodes),
            doors: Vec::new(),
            ids: Vec::new(),
            processes: BTreeMap::new(),
            nodes: Vec::new(),
            proxy: 0,
            next: 0,
            answers: Answers::new(),
            ending: false,
            last_fault: now,
            deadline: now + Duration::from_secs(options.seconds_max),
            found: Findings { lives: vec![0; options.nodes], ..Findings::default() },
            bar,
        };
        run.proxy = run.start(Part::Proxy)?;
        run.order(run.proxy, &Order::Forward { links: run.links.len(), secure: options.secure })?;
        run.doors = run.hear(run.proxy, PATIENCE, |answer| match answer {
            Answer::Forwarding(doors) => Some(doors),
            _ => None,
        })?;
        Ok(run)
    }

    fn through(mut self) -> Result<Findings, Failure> {
        let began = Instant::now();
        let plan =
            Plan::new(self.options.cuts, self.links.len(), self.options.nodes, self.options.seed, self.options.secure);
        let all: Vec<usize> = (0..self.options.nodes).collect();
        let mut addrs = Vec::new();
        for node in &all {
            fs::create_dir_all(self.folder.join(format!("node-{node}"))).context("a node's folder")?;
            let number = self.start(Part::Node)?;
            self.nodes.push(number);
            let (id, addr) = self.begin(*node)?;
            self.ids.push(id);
            addrs.push(addr);
        }
        for node in &all {
            self.link(*node)?;
        }
        for (node, addr) in addrs.into_iter().enumerate() {
            self.aim(node, Some(addr))?;
        }
        self.order(self.proxy, &Order::Harm(plan.links.clone()))?;
        self.last_fault = Instant::now();
        for fault in &plan.nodes {
            let rest = fault.rest.min(self.left());
            self.listen(rest)?;
            if self.left().is_zero() {
                break;
            }
            self.harm_node(fault)?;
        }
        while self.happened() < plan.len() as u64 && !self.left().is_zero() && self.last_fault.elapsed() < STUCK {
            self.listen(Duration::from_millis(100).min(self.left()))?;
        }
        // What has not begun yet does not.
        self.order(self.proxy, &Order::Harm(vec![Vec::new(); self.links.len()]))?;
        self.bar.finish_and_clear();
        if let Some(sabotage) = self.options.sabotage {
            let victim = self.nodes[self.options.nodes - 1];
            self.order(victim, &Order::Sabotage(sabotage))?;
            self.hear(victim, PATIENCE, |answer| matches!(answer, Answer::Sabotaged).then_some(()))?;
            self.found.sabotaged = true;
        }
        for number in self.nodes.clone() {
            self.order(number, &Order::Settle)?;
        }
        for number in self.nodes.clone() {
            let settled = self.hear(number, SETTLE, |answer| match answer {
                Answer::Settled(settled) => Some(settled),
                _ => None,
            })?;
            self.found.settled.push(settled);
        }
        self.found.seconds = began.elapsed().as_secs_f64();
        self.end()
    }

    /// Ends all processes, and has the ledgers checked.
    fn end(mut self) -> Result<Findings, Failure> {
        self.ending = true;
        for number in self.nodes.clone() {
            self.order(number, &Order::Finish)?;
        }
        for number in self.nodes.clone() {
            let phases = self.hear(number, PATIENCE, |answer| match answer {
                Answer::Ended(phases) => Some(*phases),
                _ => None,
            })?;
            self.found.phases.push(phases);
            self.wait(number)?;
        }
        // After the nodes: their goodbyes go through it too.
        self.order(self.proxy, &Order::Finish)?;
        self.found.passed = self.hear(self.proxy, PATIENCE, |answer| match answer {
            Answer::Passed(passed) => Some(passed),
            _ => None,
        })?;
        self.wait(self.proxy)?;
        let checker = self.start(Part::Checker)?;
        let lives = self.found.lives.iter().map(|life| life + 1).collect();
        self.found.lives = lives;
        let check = Check { folder: self.folder.clone(), lives: self.found.lives.clone() };
        self.order(checker, &Order::Check(check))?;
        let checked = self.hear(checker, CHECK, |answer| match answer {
            Answer::Checked(checked) => Some(checked),
            _ => None,
        })?;
        (self.found.verdict, self.found.handed_over) = (checked.verdict, checked.handed_over);
        self.wait(checker)?;
        Ok(self.found)
    }

    /// What is left of the time for faults.
    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    fn happened(&self) -> u64 {
        self.found.faults.values().map(|tally| tally.count).sum()
    }

    /// Starts a process and gives it the next number.
    fn start(&mut self, part: Part) -> Result<usize, Failure> {
        let number = self.next;
        self.next += 1;
        let process = Process::start(part, self.options.log.as_str(), number, &self.answers)?;
        self.processes.insert(number, process);
        Ok(number)
    }

    /// Starts the node of a process; who and where it is.
    fn begin(&mut self, node: usize) -> Result<(PeerId, SocketAddr), Failure> {
        let (number, life) = (self.nodes[node], self.found.lives[node]);
        let Options { seed, no_resume, secure, .. } = *self.options;
        let begin = Begin { index: node as u8, life, folder: self.folder.clone(), seed, no_resume, secure };
        self.order(number, &Order::Begin(begin))?;
        self.hear(number, PATIENCE, |answer| match answer {
            Answer::Ready { id, addr } => Some((id, addr)),
            _ => None,
        })
    }

    /// Has a node dial and send.
    fn link(&mut self, node: usize) -> Result<(), Failure> {
        let mut neighbours = Vec::new();
        for (other, id) in self.ids.iter().enumerate() {
            let link = self.links.iter().position(|link| *link == (node, other));
            let dial = link.map(|link| self.doors[link]);
            neighbours.push((other != node).then_some(Neighbour { id: *id, dial }));
        }
        let streams = 2 * self.links.len() as u64;
        let seconds = (self.options.cuts as u64 / CUTS_PER_SECOND).clamp(1, self.options.seconds_max.max(1));
        let bytes_per_second = (PLANNED_BYTES / streams / seconds).clamp(1, PACE);
        // Each restart could spend it all: only what the earlier processes of all nodes left is there to be spent.
        let lives: u64 = self.found.lives.iter().map(|life| u64::from(*life)).sum();
        let spent = u64::from(lives > 0) * bytes_per_second * streams * self.elapsed();
        let most_bytes = PLANNED_BYTES.saturating_sub(spent) / streams;
        let number = self.nodes[node];
        self.order(number, &Order::Link { neighbours, bytes_per_second, most_bytes })?;
        self.hear(number, PATIENCE, |answer| matches!(answer, Answer::Linked).then_some(()))
    }

    /// Seconds since the run began, rounded up.
    fn elapsed(&self) -> u64 {
        self.options.seconds_max.saturating_sub(self.left().as_secs())
    }

    /// Has all links to a node lead there, or nowhere.
    fn aim(&mut self, node: usize, target: Option<SocketAddr>) -> Result<(), Failure> {
        for link in 0..self.links.len() {
            if self.links[link].1 == node {
                self.order(self.proxy, &Order::Aim { link, target })?;
            }
        }
        Ok(())
    }

    /// Freezes a node, or kills it, while something is under way to it or from it.
    fn harm_node(&mut self, fault: &NodeFault) -> Result<(), Failure> {
        let (node, number) = (fault.node, self.nodes[fault.node]);
        loop {
            // So that it is not harmed while none of its links works.
            self.probe(node, PATIENCE / 2)?;
            // A killed node is stopped first, so that what is under way can be counted: it is killed wherever it was.
            self.process(number)?.freeze(true)?;
            if self.probe(node, SOON)? > 0 {
                break;
            }
            self.thaw(node)?;
        }
        if fault.kind == Kind::Kill {
            let process = self.processes.remove(&number).ok_or_else(|| Failure::new("a node without a process"))?;
            process.kill()?;
            self.aim(node, None)?;
            self.found.lives[node] += 1;
            self.nodes[node] = self.start(Part::Node)?;
            let (id, addr) = self.begin(node)?;
            if id != self.ids[node] {
                return Err(Failure::new("a node came back as somebody else"));
            }
            self.link(node)?;
            self.aim(node, Some(addr))?;
            self.order(self.proxy, &Order::Back { links: self.links_of(node) })?;
        } else {
            self.listen(fault.lasts)?;
            self.thaw(node)?;
        }
        self.count(fault.kind, true);
        Ok(())
    }

    /// Lets a frozen node go on.
    fn thaw(&mut self, node: usize) -> Result<(), Failure> {
        self.process(self.nodes[node])?.freeze(false)?;
        self.order(self.proxy, &Order::Back { links: self.links_of(node) })
    }

    fn links_of(&self, node: usize) -> Vec<usize> {
        let links = self.links.iter().enumerate();
        links.filter(|(_, (from, to))| *from == node || *to == node).map(|(link, _)| link).collect()
    }

    /// How many frames are under way on the links of a node, as soon as there are any, or none after so long.
    fn probe(&mut self, node: usize, patience: Duration) -> Result<u64, Failure> {
        let links = self.links_of(node);
        self.order(self.proxy, &Order::Probe { links, patience })?;
        self.hear(self.proxy, PATIENCE, |answer| match answer {
            Answer::Probed { frames } => Some(frames),
            _ => None,
        })
    }

    fn count(&mut self, kind: Kind, in_flight: bool) {
        let tally = self.found.faults.entry(kind).or_default();
        tally.count += 1;
        tally.in_flight += u64::from(in_flight);
        self.last_fault = Instant::now();
        self.bar.inc(1);
    }

    fn process(&mut self, number: usize) -> Result<&mut Process, Failure> {
        self.processes.get_mut(&number).ok_or_else(|| Failure::new(format!("process {number} has ended")))
    }

    fn order(&mut self, number: usize, order: &Order) -> Result<(), Failure> {
        self.process(number)?.order(order)
    }

    /// Waits for the end of a process that has said its last.
    fn wait(&mut self, number: usize) -> Result<(), Failure> {
        self.processes.remove(&number).map_or(Ok(()), Process::wait)
    }

    /// Waits so long, and takes in what is said meanwhile.
    fn listen(&mut self, time: Duration) -> Result<(), Failure> {
        let until = Instant::now() + time;
        while let Some(said) = self.answers.next(until) {
            if let Some(answer) = self.take_in(said)? {
                return Err(Failure::new(format!("said out of turn: {answer:?}")));
            }
        }
        Ok(())
    }

    /// Waits until a process has said what `pick` looks for.
    fn hear<T>(
        &mut self,
        number: usize,
        patience: Duration,
        pick: impl FnOnce(Answer) -> Option<T>,
    ) -> Result<T, Failure> {
        self.answers.clone().hear(number, patience, |said| self.take_in(said), pick)
    }

    /// Counts faults, and notices the ends of processes; gives back what is an answer to a question.
    fn take_in(&mut self, (number, answer): Said) -> Result<Option<Answer>, Failure> {
        match answer {
            Some(Answer::Harmed { kind, held, frames }) => {
                self.count(kind, held > 0 || frames > 0);
                Ok(None)
            }
            Some(Answer::Refused) => {
                self.found.refused_sessions += 1;
                Ok(None)
            }
            Some(Answer::Failed(why)) => Err(Failure::new(format!("process {number}: {why}"))),
            None if !self.ending && self.processes.contains_key(&number) => {
                Err(Failure::new(format!("process {number} ended too early")))
            }
            answer => Ok(answer),
        }
    }
}
