//! How the parent and its processes talk: JSON lines, orders on stdin and answers on stdout.
//!
//! Owns: a [`Process`] owns one child; dropping it ends the child.
//! Threads: one reader for each child in the parent, one for the orders in a child. Locks: the one of stdout.
//! Blocks on: pipes.
//! Upholds: a child ends when its orders end, so that none outlives the parent, however the parent ended.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;

use crossbeam_channel::{Receiver, Sender, unbounded};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use threadwire::PeerId;

use crate::checker::{Check, Verdict};
use crate::failure::{Context, Failure};
use crate::files::Source;
use crate::sabotage;

/// Exit status of a child whose parent is gone.
const ORPHANED: i32 = 3;

/// Where a node is reached.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Place {
    /// Who is there.
    pub id: PeerId,
    /// Where it listens; of one link, where the proxy does.
    pub addr: SocketAddr,
}

/// What the parent wants. Each kind of process understands its own.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// To a node: link with all others and receive from now on.
    Link {
        /// Which of the nodes it is.
        index: usize,
        /// All nodes, itself too.
        places: Vec<Place>,
        /// Its own folder.
        folder: PathBuf,
        /// The fault it is to make.
        sabotage: Option<sabotage::Plan>,
    },
    /// To a node: send these files to every other one.
    Send {
        /// The files.
        sources: Vec<Source>,
        /// The receiver whose link will be cut.
        victim: usize,
    },
    /// To the proxy: forward to this address.
    Forward(SocketAddr),
    /// To the proxy: cut the link after so many more bytes towards the target.
    CutAfter(u64),
    /// To the checker.
    Check(Check),
    /// To nodes and the proxy: end.
    Finish,
}

/// What a process has to say.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// A node listens.
    Ready(Place),
    /// The proxy listens.
    Forwarding(SocketAddr),
    /// The proxy will cut.
    Armed,
    /// A node is connected with all others.
    Linked,
    /// Bytes of content accepted for all receivers so far.
    Progress(u64),
    /// A node has sent everything and knows the outcome of every message.
    Sent(Outcome),
    /// A node has shut down.
    Received(Tally),
    /// The proxy has ended.
    Cut(Cuts),
    /// The checker is through.
    Checked(Verdict),
    /// The process gives up.
    Failed(String),
}

/// The sender's outcome, all links together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Messages that `send` accepted.
    pub accepted: u64,
    /// Of these, acknowledged.
    pub acked: u64,
    /// Of these, returned with a reason.
    pub returned: u64,
    /// Of these, returned because nobody can know.
    pub unknown: u64,
    /// Bytes written and not acknowledged when the link to the victim broke.
    pub unacked_bytes_at_cut: u64,
    /// Sessions on that link after the first one.
    pub reconnects: u64,
    /// Milliseconds from the first message to the last outcome.
    pub millis: u64,
}

/// What a receiver did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Messages recorded in the ledger.
    pub messages: u64,
    /// Bytes of content written.
    pub bytes: u64,
    /// Messages that name no file below the folder, or cannot be read.
    pub refused: u64,
    /// Whether the fault asked for has happened.
    pub sabotaged: bool,
    /// What the node's shutdown left unsent, in messages.
    pub undelivered: u64,
}

/// What the proxy did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cuts {
    /// Links it accepted.
    pub links: u64,
    /// Links it cut.
    pub cuts: u64,
    /// Bytes it had read and destroyed instead of delivering them.
    pub destroyed_bytes: u64,
    /// Bytes it delivered towards its target.
    pub forwarded_bytes: u64,
}

/// Says something to the parent. Any thread may.
pub fn say(answer: &Answer) -> Result<(), Failure> {
    let doing = || "answering the parent".to_owned();
    let mut line = serde_json::to_vec(answer).context(doing)?;
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    out.write_all(&line).and_then(|()| out.flush()).context(doing)
}

/// The orders of the parent, read by a thread that calls `woken` after each; ends the process when the parent is gone.
pub fn orders(woken: impl Fn() + Send + 'static) -> Result<Receiver<Order>, Failure> {
    let (tx, rx) = unbounded();
    read_lines(std::io::stdin(), "orders", move |order| {
        let Some(order) = order else { std::process::exit(ORPHANED) };
        let last = matches!(order, Order::Finish);
        let heard = tx.send(order).is_ok();
        woken();
        heard && !last
    })?;
    Ok(rx)
}

/// Starts a thread that hands each line to `each`, then none at the end, until that says false.
#[expect(clippy::disallowed_methods, reason = "the library's own threads are not for its users")]
fn read_lines<T: DeserializeOwned>(
    from: impl std::io::Read + Send + 'static,
    name: &str,
    mut each: impl FnMut(Option<T>) -> bool + Send + 'static,
) -> Result<(), Failure> {
    let body = move || {
        let mut lines = BufReader::new(from).lines();
        loop {
            let line = lines.next().and_then(Result::ok).and_then(|line| serde_json::from_str(&line).ok());
            let end = line.is_none();
            if !each(line) || end {
                return;
            }
        }
    };
    thread::Builder::new().name(name.to_owned()).spawn(body).map(drop).context(|| format!("starting thread {name}"))
}

/// A process of the run. It is killed when this is dropped and it still runs.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    orders: ChildStdin,
}

impl Process {
    /// Starts this program again with these arguments; what it says goes to `answers` under its number.
    /// `None` means that it has ended or talks nonsense.
    pub fn start(
        name: String,
        args: &[&str],
        number: usize,
        answers: Sender<(usize, Option<Answer>)>,
    ) -> Result<Self, Failure> {
        let starting = || format!("starting {name}");
        let program = std::env::current_exe().context(starting)?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context(starting)?;
        log::info!("{name} is process {}", child.id());
        let (Some(orders), Some(said)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Failure::new(format!("starting {name}: no pipes")));
        };
        let process = Self { name, child, orders };
        read_lines(said, &process.name, move |answer| answers.send((number, answer)).is_ok())?;
        Ok(process)
    }

    /// The system's number of the process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What people call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Gives an order.
    pub fn order(&mut self, order: &Order) -> Result<(), Failure> {
        let doing = || format!("giving {} an order", self.name);
        let mut line = serde_json::to_vec(order).context(doing)?;
        line.push(b'\n');
        self.orders.write_all(&line).and_then(|()| self.orders.flush()).context(doing)
    }

    /// Waits for the end of a process that has closed its stdout.
    pub fn wait(mut self) -> Result<(), Failure> {
        let status = self.child.wait().context(|| format!("waiting for {}", self.name))?;
        if status.success() { Ok(()) } else { Err(Failure::new(format!("{} ended with {status}", self.name))) }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // After `wait` the child is gone and both calls do nothing; an error here leaves nothing more to try.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
