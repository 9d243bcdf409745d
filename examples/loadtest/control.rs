//! The two ends of a measurement talk about it: one JSON line per question and answer, beside what is measured.
//!
//! Owns: the other end (a process, or a thread with `--threads`).
//! Threads: `control` reads lines, so that an answer can be waited for with a deadline; the caller writes.
//! Locks: none. Blocks on: [`Line::receive`], until its deadline; a write to the pipe.
//! Upholds: the other process never outlives this one: it ends when its standard input does, and is killed on drop.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, unbounded};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::checker::Tally;
use crate::connect::Entered;
use crate::failure::{Context, Failure};
use crate::peers::{Cast, Census};

/// How long an answer may take that needs no more than a few system calls.
const SOON: Duration = Duration::from_secs(30);
/// The hidden subcommand of the other process.
pub const ROLE: &str = "receiver";

/// What the measuring end asks of the other end.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Ask {
    /// Listen for the one raw connection and, having told where, accept it.
    OpenRaw,
    /// Read raw messages of `size` bytes, at most `read` bytes at a time, until the end mark; then tell the result.
    CountRaw { size: usize, read: usize },
    /// Send every raw message of `size` bytes back until the end mark.
    EchoRaw { size: usize },
    /// Listen for so many raw connections and, having told where, accept them.
    OpenFan { count: usize },
    /// Read raw messages of `size` bytes from all of them until the end marks; then tell the sum.
    CountFan { size: usize },
    /// Start a node that counts what arrives.
    OpenCounter { secure: bool },
    /// Count messages of `size` bytes until the end mark, by that node; then tell the result.
    Count { size: usize, secure: bool },
    /// Start a node that sends every message back, by `msg.reply` or by a send of its own.
    OpenEcho { reply: bool, secure: bool },
    /// Start a node that others dial.
    OpenDoor { secure: bool },
    /// Listen for bare connections, so many at one time.
    OpenBareDoor { secure: bool, threads: usize },
    /// Tell how many have come in over one of the two, when there are so many.
    Entered { bare: bool, at_least: u64 },
    /// Be many peers, and make their identities.
    MakePeers(Cast),
    /// Have them all dial the node of this name, so many at a time, until each is attached or has failed.
    DialPeers { id: String, addr: SocketAddr, at_once: usize },
    /// Tell what they have seen since the last time; and, if their messages carry numbers, what came of the numbers below
    /// `sent`, of which each was sent all.
    CountPeers { sent: u64 },
    /// Shut the nodes down and tell how that went.
    Close,
}

/// What it answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Answer {
    /// Done; or ready, where another answer follows at the end.
    Ready,
    /// Waiting at this address.
    Listening { addr: SocketAddr },
    /// A node of this name waits at this address.
    Node { id: String, addr: SocketAddr },
    /// A run has ended.
    Counted(Tally),
    /// So many have come in.
    Entered(Entered),
    /// What has become of many peers.
    Peers(Census),
    /// The other end cannot go on.
    Failed { what: String },
}

/// Lines in both directions.
pub struct Line {
    output: Box<dyn Write + Send>,
    input: Receiver<io::Result<String>>,
}

impl Line {
    /// A line over two pipes; `at_end` runs when the other side has closed its end.
    ///
    /// # Errors
    /// No thread to read with.
    pub fn new(
        input: impl Read + Send + 'static,
        output: impl Write + Send + 'static,
        at_end: impl FnOnce() + Send + 'static,
    ) -> Result<Self, Failure> {
        let (lines, receiver) = unbounded();
        start_thread("control", move || {
            for line in BufReader::new(input).lines() {
                if lines.send(line).is_err() {
                    break;
                }
            }
            at_end();
        })?;
        Ok(Self { output: Box::new(output), input: receiver })
    }

    /// Sends one message.
    ///
    /// # Errors
    /// The other side is gone.
    pub fn send(&mut self, message: &impl Serialize) -> Result<(), Failure> {
        let mut line = serde_json::to_vec(message).context("encoding a control message")?;
        line.push(b'\n');
        self.output.write_all(&line).and_then(|()| self.output.flush()).context("writing to the other end")
    }

    /// The next message, or `None` when the other side has closed the line; waits at most `patience`, if given.
    ///
    /// # Errors
    /// Nothing came in time, or what came is no such message.
    pub fn receive<T: DeserializeOwned>(&self, patience: Option<Duration>) -> Result<Option<T>, Failure> {
        let line = match patience {
            None => self.input.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(patience) => self.input.recv_timeout(patience),
        };
        match line {
            Ok(line) => {
                let line = line.context("reading from the other end")?;
                serde_json::from_str(&line).context(format_args!("the other end said {line:?}")).map(Some)
            }
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => Err(Failure::new("the other end does not answer")),
        }
    }
}

/// The other end, as the measuring end holds it.
pub struct Partner {
    line: Line,
    process: Option<Child>,
}

impl Partner {
    /// This program again as a process of its own, in the hidden role.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn process() -> Result<Self, Failure> {
        let program = std::env::current_exe().context("finding this program")?;
        let mut process = Command::new(&program)
            .arg(ROLE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context(format_args!("starting {}", program.display()))?;
        match (process.stdin.take(), process.stdout.take()) {
            (Some(stdin), Some(stdout)) => Ok(Self { line: Line::new(stdout, stdin, || {})?, process: Some(process) }),
            _ => Err(Failure::new("the other process has no pipes")),
        }
    }

    /// A thread of this process that runs `serve`.
    ///
    /// # Errors
    /// No pipes or no thread to be had.
    pub fn thread(serve: fn(Line) -> Result<(), Failure>) -> Result<Self, Failure> {
        let (questions, ask) = io::pipe().context("making a pipe")?;
        let (answers, answer) = io::pipe().context("making a pipe")?;
        let theirs = Line::new(questions, answer, || {})?;
        start_thread("receiver", move || {
            if let Err(failure) = serve(theirs) {
                log::error!("the other end: {failure}");
            }
        })?;
        Ok(Self { line: Line::new(answers, ask, || {})?, process: None })
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// The other end failed, is gone or stays silent.
    pub fn ask(&mut self, ask: &Ask) -> Result<Answer, Failure> {
        self.tell(ask)?;
        self.answer(SOON).context(format_args!("{ask:?}"))
    }

    /// Asks, and leaves the answer to [`Partner::answer`].
    ///
    /// # Errors
    /// The other end is gone.
    pub fn tell(&mut self, ask: &Ask) -> Result<(), Failure> {
        self.line.send(ask)
    }

    /// Waits for an answer that was not waited for yet, or the second one to a question.
    ///
    /// # Errors
    /// The other end failed, is gone or stays silent for longer than `patience`.
    pub fn answer(&mut self, patience: Duration) -> Result<Answer, Failure> {
        match self.line.receive(Some(patience))? {
            Some(Answer::Failed { what }) => Err(Failure::new(what)),
            Some(answer) => Ok(answer),
            None => Err(Failure::new("the other end is gone")),
        }
    }

    /// Waits for the result of a run.
    ///
    /// # Errors
    /// As [`Partner::answer`].
    pub fn tally(&mut self, patience: Duration) -> Result<Tally, Failure> {
        match self.answer(patience)? {
            Answer::Counted(tally) => Ok(tally),
            other => Err(unexpected(&other)),
        }
    }

    /// The processes that take part: this one first.
    pub fn pids(&self) -> Vec<u32> {
        std::iter::once(std::process::id()).chain(self.process.iter().map(Child::id)).collect()
    }
}

impl Drop for Partner {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process
            && let Err(error) = process.kill().and_then(|()| process.wait())
        {
            log::warn!("ending process {}: {error}", process.id());
        }
    }
}

/// The failure of an answer that does not belong to its question.
pub fn unexpected(answer: &Answer) -> Failure {
    Failure::new(format!("unexpected answer {answer:?}"))
}

/// The line of the hidden role: standard input and output. The process ends when the input does.
///
/// # Errors
/// No thread to read with.
pub fn line_of_role() -> Result<Line, Failure> {
    Line::new(io::stdin(), io::stdout(), || std::process::exit(0))
}

/// Starts a thread of this program.
///
/// # Errors
/// The system refused one.
#[expect(clippy::disallowed_methods, reason = "a program starts its own threads; the library's have their one place")]
pub fn start_thread(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(body);
    started.map(drop).context(format_args!("starting thread {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers_everything(mut line: Line) -> Result<(), Failure> {
        while let Some(ask) = line.receive::<Ask>(None)? {
            match ask {
                Ask::Close => line.send(&Answer::Ready)?,
                Ask::OpenRaw => line.send(&Answer::Failed { what: "no socket".to_owned() })?,
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    #[test]
    fn a_question_gets_its_answer() {
        let mut partner = Partner::thread(answers_everything).unwrap();
        assert!(matches!(partner.ask(&Ask::Close), Ok(Answer::Ready)));
        assert_eq!(partner.pids(), [std::process::id()]);
    }

    #[test]
    fn a_failure_of_the_other_end_names_the_question_and_the_cause() {
        let mut partner = Partner::thread(answers_everything).unwrap();
        let failure = partner.ask(&Ask::OpenRaw).unwrap_err().to_string();
        assert_eq!(failure, "OpenRaw: no socket");
    }

    #[test]
    fn an_end_that_has_gone_is_an_error_not_a_wait() {
        let mut partner = Partner::thread(answers_everything).unwrap();
        let failure = partner.ask(&Ask::CountPeers { sent: 0 }).unwrap_err().to_string();
        assert_eq!(failure, "CountPeers { sent: 0 }: the other end is gone");
    }

    #[test]
    fn silence_ends_at_the_deadline() {
        let mut partner = Partner::thread(answers_everything).unwrap();
        let failure = partner.answer(Duration::from_millis(20)).unwrap_err().to_string();
        assert_eq!(failure, "the other end does not answer");
    }

    #[test]
    fn every_question_and_answer_survives_its_line() {
        let asks = [
            Ask::OpenRaw,
            Ask::CountRaw { size: 64, read: 1 << 18 },
            Ask::EchoRaw { size: 64 },
            Ask::OpenFan { count: 9 },
            Ask::CountFan { size: 64 },
            Ask::OpenCounter { secure: true },
            Ask::Count { size: 64, secure: false },
            Ask::OpenEcho { reply: true, secure: false },
            Ask::OpenDoor { secure: true },
            Ask::OpenBareDoor { secure: true, threads: 4 },
            Ask::Entered { bare: false, at_least: 7 },
            Ask::MakePeers(Cast { hidden: 1, numbered: Some(64), ..Cast::new(3, "n", Duration::from_millis(10)) }),
            Ask::DialPeers { id: "00".to_owned(), addr: ([127, 0, 0, 1], 1).into(), at_once: 2 },
            Ask::CountPeers { sent: 9 },
            Ask::Close,
        ];
        for ask in asks {
            let line = serde_json::to_string(&ask).unwrap();
            assert_eq!(format!("{:?}", serde_json::from_str::<Ask>(&line).unwrap()), format!("{ask:?}"));
        }
    }
}
