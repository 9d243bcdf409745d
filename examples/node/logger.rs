//! The logger, as the section `[log]` wants it.
//!
//! Owns: the log file, if there is one. Threads: the main one sets it up, any logs. Locks: the logger's own.
//! Blocks on: opening the file.
//! Upholds: a log that cannot be written is found before the node starts.

use std::error::Error;
use std::fs::OpenOptions;
use std::io::{self, IsTerminal};

use log::LevelFilter;
use simplelog::{ColorChoice, ConfigBuilder, TermLogger, TerminalMode, WriteLogger};
use threadwire::config::Log;

/// Sets the logger up.
pub fn set_up(log: &Log) -> Result<(), Box<dyn Error>> {
    // The target says which part of the node a line is from.
    let config = ConfigBuilder::new().set_time_format_rfc3339().set_target_level(LevelFilter::Error).build();
    match &log.file {
        Some(path) => {
            let file = OpenOptions::new().create(true).append(true).open(path);
            let file = file.map_err(|error| format!("log.file = {}: cannot be opened: {error}", path.display()))?;
            WriteLogger::init(LevelFilter::Trace, config, file)?;
        }
        None => {
            let color = if io::stderr().is_terminal() { ColorChoice::Auto } else { ColorChoice::Never };
            TermLogger::init(LevelFilter::Trace, config, TerminalMode::Stderr, color)?;
        }
    }
    // It takes all that comes, so that the level may change while it runs.
    log::set_max_level(log.level);
    Ok(())
}
