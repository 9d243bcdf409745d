//! `chaos`: nodes that send each other messages while their links, listeners and processes are harmed, and a checker that
//! reconciles what their applications wrote down.
//!
//! Owns: the processes of a run. Threads: see its modules; each process has its own. Locks: none.
//! Blocks on: the run. Upholds: nothing that proves the result comes from the library but each message's outcome.
//!
//! ```text
//!   node 0 ----\                 /---- node 1        each a process, killed and started again now and then
//!     ledgers   >---- proxy ----<        ledgers     one more process, in the path of every link
//!   node 2 ----/                 \---- ...
//!   checker: reads the ledgers when all have ended
//! ```
//!
//! Over plain connections the proxy reads frames and harms these; over TLS (`--secure`) it sees records only. The
//! faults and their names are the same, each of the record that stands for its frame (`proxy::records`); beside them it
//! alters bytes there (`flip`), which must end the session and nothing more.

pub mod checker;
mod choice;
pub mod control;
pub mod ledger;
mod node;
pub mod outcomes;
mod parent;
pub mod payload;
mod plan;
mod proxy;
pub mod recorder;
pub mod sabotage;
pub mod sender;
mod summary;

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use simplelog::LevelFilter;

use crate::control::line_of_role;
use crate::failure::Failure;
use crate::report;
use control::{Answer, Order, Part};
use plan::Kind;
use sabotage::Sabotage;
use summary::Summary;

pub use control::PART;

/// What `chaos` can be told.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Faults, all kinds together
    #[arg(long, default_value_t = 500,
        value_parser = RangedU64ValueParser::<usize>::new().range(plan::FEWEST as u64..=1_000_000))]
    cuts: usize,
    /// Nodes, each a process
    #[arg(long, default_value_t = 3, value_parser = RangedU64ValueParser::<usize>::new().range(2..=16))]
    nodes: usize,
    /// Decides which faults happen where, and what is sent
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Begin no fault after so many seconds; the run is not ok if some are left
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds_max: u64,
    /// Print one line of JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Harm one message behind the library: the result must say so
    #[arg(long)]
    sabotage: Option<Sabotage>,
    /// Let nodes forget what a lost connection left unanswered: the result must say that messages were lost
    #[arg(long)]
    no_resume: bool,
    /// TLS; one kind of fault more, so 11 faults at least
    #[arg(long)]
    secure: bool,
    /// Plain TCP, as without --secure
    #[arg(long, conflicts_with = "secure")]
    plain: bool,
    /// Keep the ledgers in this folder, which must be new or empty
    #[arg(long, value_name = "OUT")]
    keep: Option<PathBuf>,
    /// What to log on stderr: off, error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", default_value = "error")]
    log: LevelFilter,
}

/// A process of a run, started by its parent.
#[derive(Debug, clap::Args)]
pub struct PartOptions {
    part: Part,
    #[arg(long, default_value = "error")]
    log: LevelFilter,
}

impl Options {
    /// What is logged.
    pub fn log(&self) -> LevelFilter {
        self.log
    }
}

impl PartOptions {
    /// What is logged.
    pub fn log(&self) -> LevelFilter {
        self.log
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cuts: 500,
            nodes: 3,
            seed: 1,
            seconds_max: 600,
            json: false,
            sabotage: None,
            no_resume: false,
            secure: false,
            plain: false,
            keep: None,
            log: LevelFilter::Error,
        }
    }
}

/// Harms and reports; false when something did not hold.
///
/// # Errors
/// A process failed.
pub fn run(options: &Options) -> Result<bool, Failure> {
    let found = match Kind::all(options.secure).len() {
        fewest if options.cuts < fewest => Err(Failure::new(format!("--cuts: at least {fewest}, one of each kind"))),
        _ => parent::run(options, progress_bar(options.cuts)),
    };
    report::judged("chaos", options.json, found.map(|found| Summary::new(options, &found)))
}

/// The body of a process that a parent started.
///
/// # Errors
/// What it could not go on with; the parent is told.
pub fn run_part(options: &PartOptions) -> Result<bool, Failure> {
    let line = line_of_role()?;
    let result = match options.part {
        Part::Node => node::run(&line),
        Part::Proxy => proxy::run(line),
        Part::Host => crate::churn::host::run(&line),
        Part::Checker => match line.receive(None)? {
            Some(Order::Check(check)) => checker::check(&check).and_then(|all| report::json(&Answer::Checked(all))),
            _ => Err(Failure::new("the checker was asked for something else")),
        },
    };
    if let Err(failure) = &result {
        report::json(&Answer::Failed(failure.to_string()))?;
    }
    result.map(|()| true)
}

fn progress_bar(cuts: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(cuts as u64), ProgressDrawTarget::stderr());
    match ProgressStyle::with_template("{bar:40} {pos}/{len} faults, {elapsed}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
