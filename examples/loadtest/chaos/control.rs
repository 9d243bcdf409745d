//! How the parent and its processes talk: JSON lines, orders on standard input and answers on standard output.
//!
//! Owns: a [`Process`] owns one child; dropping it ends the child. Threads: one reader for each child.
//! Locks: none. Blocks on: writes to the pipe.
//! Upholds: a child ends when its orders end, or its parent does, so that none outlives the parent, not even one that is
//! stopped.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use crossbeam_channel::{Receiver, Sender, unbounded};
use serde::{Deserialize, Serialize};
use threadwire::PeerId;
use threadwire::metrics::{Phase, Phases};

use crate::chaos::checker::{Check, Checked};
use crate::chaos::plan::{Kind, LinkFault};
use crate::chaos::sabotage::Sabotage;
use crate::churn::host::{Cast, Place};
use crate::control::start_thread;
use crate::failure::{Context, Failure};

/// The hidden subcommand of the other processes.
pub const PART: &str = "chaos-part";

/// What a process is.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Part {
    /// A node and its application.
    Node,
    /// The proxy of all links.
    Proxy,
    /// The checker.
    Checker,
    /// The peers of `churn`.
    Host,
}

/// How a node's process is to begin.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Begin {
    /// Which node.
    pub index: u8,
    /// Which of its processes, counted from 0.
    pub life: u16,
    /// Its folder, of ledgers and identity.
    pub folder: PathBuf,
    /// For what it sends.
    pub seed: u64,
    /// Forget what a lost connection left unanswered.
    pub no_resume: bool,
    /// TLS, as by default; else plain TCP.
    pub secure: bool,
}

/// Another node, as a node sees it.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Neighbour {
    /// Who it is.
    pub id: PeerId,
    /// Where to dial it, if it is this node that dials.
    pub dial: Option<SocketAddr>,
}

/// What the parent wants. Each kind of process understands its own.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// To a node: start.
    Begin(Begin),
    /// To a node: link with all of these (`None` stands for itself), and send them so many bytes a second each, and no
    /// more than so many in all.
    Link { neighbours: Vec<Option<Neighbour>>, bytes_per_second: u64, most_bytes: u64 },
    /// To a node: harm a message, behind the library.
    Sabotage(Sabotage),
    /// To a node: send no more, and tell when the outcome of everything is known.
    Settle,
    /// To the proxy: so many links, over TLS or plain.
    Forward { links: usize, secure: bool },
    /// To the proxy: this link leads there; or nowhere.
    Aim { link: usize, target: Option<SocketAddr> },
    /// To the proxy: both ends of these links are there again; what was lost meanwhile could not be attached before.
    Back { links: Vec<usize> },
    /// To the proxy: these faults, link by link.
    Harm(Vec<Vec<LinkFault>>),
    /// To the proxy: tell when something is under way on one of these links, or that nothing is after so long.
    Probe { links: Vec<usize>, patience: Duration },
    /// To the checker.
    Check(Check),
    /// To a host: these peers.
    Host(Cast),
    /// To a host: end this peer's node, and start it anew somewhere else.
    Restart { peer: usize },
    /// To nodes, hosts and the proxy: end.
    Finish,
}

/// What a process has to say.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// A node listens.
    Ready { id: PeerId, addr: SocketAddr },
    /// A node dials and sends.
    Linked,
    /// A node did the harm it was told to.
    Sabotaged,
    /// A node ended a session because what came was not as it must be.
    Refused,
    /// A node knows the outcome of everything it sent.
    Settled(Settled),
    /// A node has shut down.
    Ended(Box<PhaseSums>),
    /// Every node of a process of many has shut down.
    AllEnded,
    /// Where the proxy is dialled, link by link.
    Forwarding(Vec<SocketAddr>),
    /// A fault has happened to a link: so many bytes were held, so many frames not acknowledged.
    Harmed { kind: Kind, held: u64, frames: u64 },
    /// So many frames are not acknowledged.
    Probed { frames: u64 },
    /// The proxy has ended.
    Passed(Passed),
    /// The checker is through.
    Checked(Checked),
    /// Peers listen.
    Hosted(Vec<Place>),
    /// The process gives up.
    Failed(String),
}

/// The library's own counts, of all links of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// Messages that it took.
    pub accepted: u64,
    /// Of these, those whose outcome it knows.
    pub known: u64,
    /// Messages in the ledgers of this process that the library took.
    pub recorded: u64,
    /// Bytes sent to all nodes together.
    pub bytes: u64,
}

/// The library's own sums of what began and ended in each phase of a delivery, of all links of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseSums {
    /// From accepted to taken for the wire.
    pub outgoing_buffer: PhaseSum,
    /// From taken for the wire to answered for.
    pub outgoing_transfer: PhaseSum,
    /// From arrived to handed over.
    pub incoming_buffer: PhaseSum,
}

/// Messages and bytes that began a phase, that ended it well and otherwise, and messages that are in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseSum {
    pub begun: (u64, u64),
    pub succeeded: (u64, u64),
    pub failed: (u64, u64),
    pub open: u64,
}

impl PhaseSum {
    /// What the library says.
    fn of(phase: &Phase) -> Self {
        let total = phase.total();
        let [begun, succeeded, failed] =
            [total.begun, total.succeeded, total.failed].map(|volume| (volume.messages, volume.bytes));
        Self { begun, succeeded, failed, open: phase.open }
    }

    /// Whether everything that began has ended once.
    pub fn is_over(&self) -> bool {
        let Self { begun, succeeded, failed, open } = *self;
        open == 0 && begun == (succeeded.0 + failed.0, succeeded.1 + failed.1)
    }
}

impl PhaseSums {
    /// What the library says.
    pub fn of(phases: &Phases) -> Self {
        Self {
            outgoing_buffer: PhaseSum::of(&phases.outgoing_buffer),
            outgoing_transfer: PhaseSum::of(&phases.outgoing_transfer),
            incoming_buffer: PhaseSum::of(&phases.incoming_buffer),
        }
    }

    /// Each phase by its name.
    pub fn each(&self) -> [(&'static str, PhaseSum); 3] {
        [
            ("outgoing buffer", self.outgoing_buffer),
            ("outgoing transfer", self.outgoing_transfer),
            ("incoming buffer", self.incoming_buffer),
        ]
    }
}

/// What the proxy saw of connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Passed {
    /// How often a link that had been lost was attached again.
    pub reconnects: u64,
    /// From the loss, or from when both ends and the listener between them were there again, to the attach.
    pub reconnect_p50_ms: f64,
    /// The same.
    pub reconnect_p99_ms: f64,
    /// The same.
    pub reconnect_max_ms: f64,
}

/// The number of a process and what it has said; `None` for its end or nonsense.
pub type Said = (usize, Option<Answer>);

/// What the processes of a run say.
#[derive(Debug, Clone)]
pub struct Answers {
    voice: Sender<Said>,
    said: Receiver<Said>,
}

impl Answers {
    /// Of no process yet.
    pub fn new() -> Self {
        let (voice, said) = unbounded();
        Self { voice, said }
    }

    /// The next that is said by then.
    pub fn next(&self, until: Instant) -> Option<Said> {
        self.said.recv_deadline(until).ok()
    }

    /// Waits until a process has said what `pick` looks for. `take_in` sees everything first, and gives back what is an
    /// answer; another process's is kept for whoever asks for it later.
    ///
    /// # Errors
    /// One of `take_in`, nothing in time, or another answer.
    pub fn hear<T>(
        &self,
        number: usize,
        patience: Duration,
        mut take_in: impl FnMut(Said) -> Result<Option<Answer>, Failure>,
        pick: impl FnOnce(Answer) -> Option<T>,
    ) -> Result<T, Failure> {
        let (until, mut others) = (Instant::now() + patience, Vec::new());
        let answer = loop {
            let said = self.said.recv_deadline(until).context(format_args!("waiting for process {number}"))?;
            let from = said.0;
            match take_in(said)? {
                Some(answer) if from == number => break answer,
                Some(answer) => others.push((from, Some(answer))),
                None => {}
            }
        };
        for said in others {
            self.voice.send(said).context("keeping an answer")?;
        }
        let text = format!("{answer:?}");
        pick(answer).ok_or_else(|| Failure::new(format!("said out of turn: {text}")))
    }
}

/// A process of the run. It is killed when this is dropped and it still runs.
#[derive(Debug)]
pub struct Process {
    child: Child,
    orders: ChildStdin,
}

impl Process {
    /// Starts this program again as a part of the run; what it says goes to `answers` under its number.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(part: Part, log: &str, number: usize, answers: &Answers) -> Result<Self, Failure> {
        let doing = format!("starting process {number}");
        let name = part.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        let program = std::env::current_exe().context(&doing)?;
        let mut command = Command::new(program);
        command.args([PART, &name, "--log", log]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context(&doing)?;
        log::info!("the {name} {number} is process {}", child.id());
        let (Some(orders), Some(said)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Failure::new(format!("{doing}: no pipes")));
        };
        let (process, voice) = (Self { child, orders }, answers.voice.clone());
        start_thread("answers", move || {
            let lines = BufReader::new(said).lines().map_while(Result::ok);
            let answers_of = lines.map_while(|line| serde_json::from_str(&line).ok());
            if answers_of.map(Some).all(|answer| voice.send((number, answer)).is_ok()) {
                let _ = voice.send((number, None));
            }
        })?;
        Ok(process)
    }

    /// Gives an order.
    ///
    /// # Errors
    /// The process is gone.
    pub fn order(&mut self, order: &Order) -> Result<(), Failure> {
        let mut line = serde_json::to_vec(order).context("encoding an order")?;
        line.push(b'\n');
        self.orders.write_all(&line).and_then(|()| self.orders.flush()).context("giving an order")
    }

    /// Stops it, or lets a stopped one go on.
    ///
    /// # Errors
    /// The system refused.
    pub fn freeze(&self, frozen: bool) -> Result<(), Failure> {
        let signal = if frozen { rustix::process::Signal::STOP } else { rustix::process::Signal::CONT };
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let pid = pid.ok_or_else(|| Failure::new("a process without a number"))?;
        rustix::process::kill_process(pid, signal).context("signalling a node")
    }

    /// Kills it, stopped or not, and waits for its end.
    ///
    /// # Errors
    /// The system refused.
    pub fn kill(mut self) -> Result<(), Failure> {
        self.child.kill().and_then(|()| self.child.wait()).map(drop).context("killing a node")
    }

    /// Waits for the end of a process that has closed its standard output.
    ///
    /// # Errors
    /// It failed.
    pub fn wait(mut self) -> Result<(), Failure> {
        let status = self.child.wait().context("waiting for a process")?;
        if status.success() { Ok(()) } else { Err(Failure::new(format!("a process ended with {status}"))) }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // After `wait` the child is gone and both calls do nothing; an error here leaves nothing more to try.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In a child: it dies with its parent, also while it is stopped and cannot see that its orders have ended.
pub fn die_with_parent() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)) {
        log::warn!("this process may outlive its parent: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_another_process_waits_for_whoever_asks_for_it() {
        let answers = Answers::new();
        let say = |number, answer| answers.voice.send((number, Some(answer))).unwrap();
        let hear = |number| {
            let pick = |answer| matches!(answer, Answer::Probed { .. }).then_some(());
            answers.hear(number, Duration::from_secs(30), |said| Ok(said.1), pick)
        };
        say(2, Answer::Probed { frames: 2 });
        say(1, Answer::Probed { frames: 1 });
        say(1, Answer::Linked);
        hear(1).unwrap();
        assert_eq!(hear(1).unwrap_err().to_string(), "said out of turn: Linked");
        hear(2).unwrap();
        assert!(answers.next(Instant::now()).is_none());
    }
}
