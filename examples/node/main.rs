//! One node from a configuration file, driven by lines: for a terminal, for a script, as a service.
//!
//! ```sh
//! cargo run --release --example node -- [--config FILE] [--listen ADDR].. [--peer ID@ADDR].. [--data-dir DIR] [--json]
//! cargo run --release --example node -- id [--config FILE] [--data-dir DIR]      # prints the node's id
//! ```
//!
//! It reads commands from standard input (`help` lists them) and writes one line to standard output for each thing that
//! happens; `line.rs` says how the lines look, `service.rs` which there are. What the node itself logs goes where the
//! section `[log]` of the file says. At the end of standard input it runs on, as a service, until SIGTERM or Ctrl-C.
//!
//! A file that changes is put to use while the node runs, within seconds, or at once on SIGHUP; one that is wrong is
//! refused, with a line that says what is wrong, and the node goes on as before. What the command line says stays.
//!
//! | exit status | |
//! |---|---|
//! | 0 | stopped by `quit`, SIGTERM or Ctrl-C: the shutdown is over, and the line `stopped` says what it left |
//! | 1 | stopped because nobody reads standard output any more |
//! | 2 | not started, with the reason on standard error; or a second signal ended it at once |
//!
//! Owns: the command line. Threads: the main one. Locks: none. Blocks on: the service.
//! Upholds: a configuration that is wrong starts nothing and leaves nothing.

mod command;
mod input;
mod line;
mod logger;
mod service;
mod settings;
mod tables;
mod watch;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use threadwire::handshake::Identity;

use crate::line::Console;
use crate::service::{End, Service};
use crate::settings::{Settings, settle};

/// Not started.
const NOT_STARTED: u8 = 2;

/// Runs one node from a configuration file; commands are read from standard input.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    settings: Settings,
    /// Write lines of JSON
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print the node's id and end; the key is made in the data folder if there is none
    Id,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.action {
        Some(Action::Id) => print_id(&arguments.settings),
        None => run(&arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::from(NOT_STARTED)
    })
}

fn print_id(settings: &Settings) -> Result<ExitCode, Box<dyn Error>> {
    let config = settle(settings)?;
    let folder = config.data_dir.ok_or("without a data_dir the id is new at each start: set it, or give --data-dir")?;
    writeln!(io::stdout(), "{}", Identity::load_or_create(&folder)?.peer_id())?;
    Ok(ExitCode::SUCCESS)
}

fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let config = settle(&arguments.settings)?;
    logger::set_up(&config.log)?;
    // Before the node, so that no signal finds a node and nobody who listens for it.
    let signals = input::signals()?;
    let service = Service::start(config, arguments.settings.clone(), Console::new(arguments.json), signals)?;
    match service.run() {
        End::Stopped => Ok(ExitCode::SUCCESS),
        End::OutputGone(error) => {
            log::error!("nobody reads standard output: {error}");
            Ok(ExitCode::FAILURE)
        }
    }
}
