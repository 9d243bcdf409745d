//! The parent: starts every process of a run, tells each what to do, and puts the result together.
//!
//! Owns: all child processes and the run's folders. Threads: the main one. Locks: none.
//! Blocks on: what the children say, never without a deadline.
//! Upholds: when it returns, well or not, every child has ended and temporary folders are gone.

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::checker::Check;
use crate::control::{Answer, Order, Place, Process};
use crate::failure::{Context, Failure};
use crate::files::Sources;
use crate::layout;
use crate::report::{Findings, Report};
use crate::sabotage::{Plan, Sabotage};

/// How long a process may take to start, to link, to shut down.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the sender may be silent; it gives up itself before that.
const SILENCE: Duration = Duration::from_secs(120);
/// How long the checker may take to read everything.
const CHECK: Duration = Duration::from_secs(900);
/// The receiver whose link from the sender goes through the proxy.
const VICTIM: usize = 1;

/// What the user asked for.
pub struct Wishes {
    /// The folder to send; none for the default set.
    pub dir: Option<PathBuf>,
    /// How many nodes.
    pub nodes: usize,
    /// Where to keep folders and ledgers.
    pub keep: Option<PathBuf>,
    /// The fault to make, by the last node.
    pub sabotage: Option<Sabotage>,
    /// Arguments for every child.
    pub child_args: Vec<String>,
}

/// Does a whole run.
pub fn run(wishes: &Wishes) -> Result<Report, Failure> {
    let scratch = tempfile::Builder::new().prefix("threadwire-mesh-").tempdir();
    let scratch = scratch.context(|| "making a temporary folder".to_owned())?;
    let out = match &wishes.keep {
        Some(keep) => empty_folder(keep)?,
        None => scratch.path().join("out"),
    };
    let sources = match &wishes.dir {
        Some(dir) => Sources::below(dir)?,
        None => Sources::default_set(scratch.path())?,
    };
    if sources.files.is_empty() {
        return Err(Failure::new("there is no file to send"));
    }
    let result = mesh(wishes, &out, &sources);
    let closed = scratch.close().context(|| "removing the temporary folder".to_owned());
    result.and_then(|report| closed.map(|()| report))
}

/// A folder for what is kept. One with something in it could make a lost file look received.
fn empty_folder(path: &Path) -> Result<PathBuf, Failure> {
    let doing = || format!("the folder to keep results in, {}", path.display());
    fs::create_dir_all(path).context(doing)?;
    if fs::read_dir(path).context(doing)?.next().is_some() {
        return Err(Failure::new(format!("{} is not empty", path.display())));
    }
    path.canonicalize().context(doing)
}

fn mesh(wishes: &Wishes, out: &Path, sources: &Sources) -> Result<Report, Failure> {
    let sabotage = match wishes.sabotage {
        Some(kind) => Some(
            Plan::in_the_middle(kind, sources.messages())
                .ok_or_else(|| Failure::new("these files make too few messages for this sabotage"))?,
        ),
        None => None,
    };
    let mut run = Run::new(progress_bar(sources.bytes() * (wishes.nodes as u64 - 1)), wishes.child_args.clone());
    let all: Vec<usize> = (0..wishes.nodes).collect();
    for index in &all {
        run.start(format!("node {index}"), "node")?;
    }
    let places = run.hear(&all, PATIENCE, |answer| match answer {
        Answer::Ready(place) => Some(place),
        _ => None,
    })?;

    let proxy = run.start("the proxy".to_owned(), "proxy")?;
    run.order(proxy, &Order::Forward(places[VICTIM].addr))?;
    let detour = run.hear(&[proxy], PATIENCE, |answer| match answer {
        Answer::Forwarding(addr) => Some(addr),
        _ => None,
    })?;

    for index in &all {
        let mut places = places.clone();
        if *index == 0 {
            places[VICTIM].addr = detour[0];
        }
        let folder = layout::node(out, *index);
        let sabotage = sabotage.filter(|_| index + 1 == wishes.nodes);
        run.order(*index, &Order::Link { index: *index, places, folder, sabotage })?;
    }
    run.hear(&all, PATIENCE, |answer| matches!(answer, Answer::Linked).then_some(()))?;

    run.order(proxy, &Order::CutAfter(sources.bytes() / 2))?;
    run.hear(&[proxy], PATIENCE, |answer| matches!(answer, Answer::Armed).then_some(()))?;
    run.order(0, &Order::Send { sources: sources.files.clone(), victim: VICTIM })?;
    let outcomes = run.hear(&[0], SILENCE, |answer| match answer {
        Answer::Sent(outcome) => Some(outcome),
        _ => None,
    })?;

    run.ending = true;
    for index in &all {
        run.order(*index, &Order::Finish)?;
    }
    let tallies = run.hear(&all, PATIENCE, |answer| match answer {
        Answer::Received(tally) => Some(tally),
        _ => None,
    })?;
    // After the nodes: their goodbyes go through it too.
    run.order(proxy, &Order::Finish)?;
    let cuts = run.hear(&[proxy], PATIENCE, |answer| match answer {
        Answer::Cut(cuts) => Some(cuts),
        _ => None,
    })?;

    let checker = run.start("the checker".to_owned(), "checker")?;
    let ids = places.iter().map(|place: &Place| place.id).collect();
    run.order(checker, &Order::Check(Check { out: out.to_owned(), ids, sources: sources.files.clone() }))?;
    let verdicts = run.hear(&[checker], CHECK, |answer| match answer {
        Answer::Checked(verdict) => Some(verdict),
        _ => None,
    })?;

    let mut pids = run.end()?;
    let helpers = (pids[proxy], pids[checker]);
    pids.truncate(wishes.nodes);
    Ok(Report::new(Findings {
        pids,
        sources: (sources.files.len(), sources.bytes(), sources.skipped),
        outcome: outcomes[0],
        tallies,
        cuts: cuts[0],
        verdict: verdicts[0],
        helpers,
        sabotage: wishes.sabotage,
    }))
}

fn progress_bar(bytes: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr());
    let template = "{bar:40} {bytes}/{total_bytes} {bytes_per_sec}";
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// The processes of a run, and what they say.
struct Run {
    processes: Vec<Process>,
    answers: Receiver<(usize, Option<Answer>)>,
    voice: Sender<(usize, Option<Answer>)>,
    /// Processes that have closed their stdout.
    gone: Vec<usize>,
    /// From now on a process may end.
    ending: bool,
    bar: ProgressBar,
    child_args: Vec<String>,
}

impl Run {
    fn new(bar: ProgressBar, child_args: Vec<String>) -> Self {
        let (voice, answers) = unbounded();
        Self { processes: Vec::new(), answers, voice, gone: Vec::new(), ending: false, bar, child_args }
    }

    /// Starts a process and gives it the next number.
    fn start(&mut self, name: String, role: &str) -> Result<usize, Failure> {
        let number = self.processes.len();
        let mut args = vec!["--role", role];
        args.extend(self.child_args.iter().map(String::as_str));
        self.processes.push(Process::start(name, &args, number, self.voice.clone())?);
        Ok(number)
    }

    fn order(&mut self, number: usize, order: &Order) -> Result<(), Failure> {
        self.processes[number].order(order)
    }

    /// Waits until each of these processes has said what `pick` looks for; in the order of `from`.
    fn hear<T>(
        &mut self,
        from: &[usize],
        patience: Duration,
        mut pick: impl FnMut(Answer) -> Option<T>,
    ) -> Result<Vec<T>, Failure> {
        let mut heard: Vec<Option<T>> = from.iter().map(|_| None).collect();
        while let Some(waiting) = heard.iter().position(Option::is_none) {
            let answer = self.answers.recv_timeout(patience);
            let (number, answer) =
                answer.context(|| format!("waiting for {}", self.processes[from[waiting]].name()))?;
            let name = self.processes[number].name();
            let slot = from.iter().position(|wanted| *wanted == number).map(|at| &mut heard[at]);
            match (answer, slot) {
                (Some(Answer::Failed(why)), _) => return Err(Failure::new(format!("{name}: {why}"))),
                (Some(Answer::Progress(bytes)), _) => self.bar.set_position(bytes),
                (Some(answer), Some(slot)) if slot.is_none() => *slot = pick(answer),
                (Some(answer), _) => return Err(Failure::new(format!("{name} said out of turn: {answer:?}"))),
                (None, Some(None)) => return Err(Failure::new(format!("{name} ended before it was through"))),
                (None, _) if self.ending => self.gone.push(number),
                (None, _) => return Err(Failure::new(format!("{name} ended too early"))),
            }
        }
        Ok(heard.into_iter().flatten().collect())
    }

    /// Waits for the end of every process; says which they were.
    fn end(mut self) -> Result<Vec<u32>, Failure> {
        self.bar.finish_and_clear();
        while self.gone.len() < self.processes.len() {
            let answer =
                self.answers.recv_timeout(PATIENCE).context(|| "waiting for the end of a process".to_owned())?;
            if let (number, None) = answer {
                self.gone.push(number);
            }
        }
        let pids = self.processes.iter().map(Process::pid).collect();
        self.processes.drain(..).try_for_each(Process::wait)?;
        Ok(pids)
    }
}
