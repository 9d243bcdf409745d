//! A mesh of node processes that send each other files through a link that breaks: nothing is lost, doubled or
//! exchanged, and a checker that knows nothing of the library proves it.
//!
//! `cargo run --release --example mesh -- [DIR] [--nodes 5] [--keep OUT] [--json] [--sabotage drop|dup|swap|corrupt]`
//!
//! The first node sends every file of DIR to every other one. Halfway, a proxy in the path of one link resets it with
//! bytes under way. The example sends each message once; acknowledgement, reconnect and resume are the library's.
//!
//! Owns: the command line. Threads: the main one. Locks: none. Blocks on: the run.
//! Upholds: exit status 0 only if everything is as it must be.

mod checker;
mod control;
mod failure;
mod files;
mod layout;
mod ledger;
mod message;
mod node;
mod parent;
mod proxy;
mod receiver;
mod report;
mod sabotage;
mod sender;

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use log::LevelFilter;
use simplelog::{ColorChoice, TermLogger, TerminalMode};

use crate::control::{Answer, Order, orders, say};
use crate::failure::{Context, Failure};
use crate::parent::Wishes;
use crate::sabotage::Sabotage;

/// Sends files through a mesh of node processes, breaks a link on the way, and proves that nothing was harmed.
#[derive(Debug, Parser)]
struct Arguments {
    /// Folder whose files are sent [default: this crate's sources and a seeded file of 64 MiB]
    dir: Option<PathBuf>,
    /// Number of nodes, each a process
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(2..=64))]
    nodes: u16,
    /// Keep received folders and ledgers in this folder, which must be new or empty
    #[arg(long, value_name = "OUT")]
    keep: Option<PathBuf>,
    /// Print the result as one line of JSON
    #[arg(long)]
    json: bool,
    /// Let the last node harm one message after the library delivered it, to see that the checker finds it
    #[arg(long)]
    sabotage: Option<Sabotage>,
    /// Link the nodes over plain TCP instead of TLS
    #[arg(long)]
    plain: bool,
    /// What to log on stderr: off, error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    log: LevelFilter,
    /// What this process is; set by the parent for its children.
    #[arg(long, hide = true)]
    role: Option<Role>,
}

/// What a child process is.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Role {
    Node,
    Proxy,
    Checker,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let color = if std::io::stderr().is_terminal() { ColorChoice::Auto } else { ColorChoice::Never };
    // Without a logger the run is the same, only silent.
    let _ = TermLogger::init(arguments.log, simplelog::Config::default(), TerminalMode::Stderr, color);
    match arguments.role {
        Some(role) => child(role, arguments.plain),
        None => parent(arguments),
    }
}

fn child(role: Role, plain: bool) -> ExitCode {
    let result = match role {
        Role::Node => node::run(plain),
        Role::Proxy => proxy::run(),
        Role::Checker => check(),
    };
    let Err(failure) = result else { return ExitCode::SUCCESS };
    if say(&Answer::Failed(failure.to_string())).is_err() {
        log::error!("{failure}");
    }
    ExitCode::FAILURE
}

/// The checker's process.
fn check() -> Result<(), Failure> {
    match orders(|| {})?.recv().context(|| "waiting for an order".to_owned())? {
        Order::Check(request) => say(&Answer::Checked(checker::check(&request)?)),
        _ => Err(Failure::new("the checker was asked for something else")),
    }
}

fn parent(arguments: Arguments) -> ExitCode {
    let wishes = Wishes {
        dir: arguments.dir,
        nodes: arguments.nodes.into(),
        keep: arguments.keep,
        sabotage: arguments.sabotage,
        child_args: ["--log".to_owned(), arguments.log.to_string()]
            .into_iter()
            .chain(arguments.plain.then(|| "--plain".to_owned()))
            .collect(),
    };
    let (text, ok) = match parent::run(&wishes) {
        Ok(report) if arguments.json => (serde_json::to_string(&report).unwrap_or_else(|e| failed(&e)), report.ok),
        Ok(report) => (report.to_string(), report.ok),
        Err(failure) if arguments.json => (failed(&failure), false),
        Err(failure) => (format!("NOT ok: {failure}"), false),
    };
    // A result that nobody could read is no success.
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) if ok => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// The JSON line of a run that came to no result.
fn failed(failure: &dyn Display) -> String {
    serde_json::json!({ "ok": false, "error": failure.to_string() }).to_string()
}
