//! What threadwire costs against a raw socket, measured in turns on the same machine in the same minute.
//!
//! Owns: the workloads, one file each. Threads: see `baseline` and `wire`; a second process unless `--threads`.
//! Locks: none. Blocks on: what it measures.
//! Upholds: the baseline is the strongest we can write, noise is measured beside the result, and nothing is left out of
//! the result: every pair counts.
//!
//! ```text
//! cargo run --release --example loadtest -- throughput --size 64
//! cargo run --release --example loadtest -- latency --size 64
//! cargo run --release --example loadtest -- peers --count 1000
//! cargo run --release --example loadtest -- connect --secure
//! cargo run --release --example loadtest -- fanout --peers 100 --size 256
//! cargo run --release --example loadtest -- churn --peers 50 --seconds 60
//! cargo run --release --example loadtest -- chaos --cuts 500 --nodes 3
//! ```
//!
//! The exit status is 1 when a message was lost, duplicated or reordered, when many peers cost more than they may, a
//! handshake failed, a peer that moved was not found in time, or when the measurement failed.

mod baseline;
mod chaos;
mod checker;
mod churn;
mod connect;
mod control;
mod failure;
mod fanout;
mod histogram;
mod latency;
mod pairs;
mod peers;
mod raw;
mod receiver;
mod report;
mod stats;
mod throughput;
mod usage;
mod wire;

use std::process::ExitCode;
use std::time::Duration;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand};
use simplelog::{ColorChoice, LevelFilter, TermLogger, TerminalMode};

use control::Partner;
use failure::{Context, Failure};

/// The library's largest message.
const LARGEST: u64 = 64 << 20;

/// Measures threadwire against raw blocking TCP, in turns.
#[derive(Debug, Parser)]
#[command(name = "loadtest", version)]
struct Cli {
    #[command(subcommand)]
    workload: Workload,
}

#[derive(Debug, Subcommand)]
enum Workload {
    /// Messages per second from one node to another
    Throughput(throughput::Options),
    /// Round-trip times of one message at a time
    Latency(latency::Options),
    /// Sessions per second that two processes establish, and what they cost
    Connect(connect::Options),
    /// What many idle peers cost a node that is alone in its process
    Peers(peers::Options),
    /// Messages to many peers: broadcast, single sends, raw sockets, and what a peer that is stuck does to the others
    Fanout(fanout::Options),
    /// Peers that move, vanish and return as a live map of them says, while messages flow to each by its id
    Churn(churn::Options),
    /// Whether every message's fate is known while links, listeners and processes are harmed
    Chaos(chaos::Options),
    /// The other process (started by the first)
    #[command(name = control::ROLE, hide = true)]
    Receiver,
    /// Another process of `chaos`
    #[command(name = chaos::PART, hide = true)]
    ChaosPart(chaos::PartOptions),
}

/// What every workload can be told.
#[derive(Debug, Args)]
struct Common {
    /// Bytes of a message
    #[arg(long, default_value_t = 64,
        value_parser = RangedU64ValueParser::<usize>::new().range(checker::NUMBER as u64..=LARGEST))]
    size: usize,
    /// Run both ends in one process
    #[arg(long)]
    threads: bool,
    /// Pairs of runs
    #[arg(long, default_value_t = 9, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1000))]
    pairs: usize,
    /// Seconds that each side of a pair runs
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Print one line of JSON instead of a table
    #[arg(long)]
    json: bool,
}

impl Common {
    /// How long each side of a pair runs.
    fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// How long one try of the warm-up runs.
    fn warm_up(&self) -> Duration {
        (self.duration() / 10).clamp(Duration::from_millis(20), Duration::from_millis(200))
    }

    /// What was measured, and how.
    fn headline(&self, workload: &str, pids: &[u32]) -> String {
        let arrangement = if self.threads { "one process" } else { "two processes" };
        let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
        format!(
            "{workload}, messages of {}, {arrangement} ({}), pairs: {}, {} s a side",
            report::bytes(self.size),
            pids.join(", "),
            self.pairs,
            self.seconds
        )
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.01..=300.0).contains(&seconds) { Ok(seconds) } else { Err("from 0.01 to 300".to_owned()) }
}

fn main() -> ExitCode {
    let workload = Cli::parse().workload;
    match run(&workload) {
        Ok(true) => ExitCode::SUCCESS,
        // It has said itself what did not hold.
        Ok(false)
            if matches!(
                workload,
                Workload::Connect(_)
                    | Workload::Peers(_)
                    | Workload::Fanout(_)
                    | Workload::Chaos(_)
                    | Workload::Churn(_)
            ) =>
        {
            ExitCode::FAILURE
        }
        Ok(false) => {
            eprintln!("loadtest: messages were lost, duplicated or reordered");
            ExitCode::FAILURE
        }
        Err(failure) => {
            eprintln!("loadtest: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(workload: &Workload) -> Result<bool, Failure> {
    let level = match workload {
        Workload::Chaos(options) => options.log(),
        Workload::ChaosPart(options) => options.log(),
        _ => LevelFilter::Warn,
    };
    TermLogger::init(level, simplelog::Config::default(), TerminalMode::Stderr, ColorChoice::Auto)
        .context("starting the log")?;
    let partner = |common: &Common| {
        if common.threads { Partner::thread(receiver::serve) } else { Partner::process() }
    };
    match workload {
        Workload::Throughput(options) => throughput::run(options, &mut partner(&options.common)?),
        Workload::Latency(options) => latency::run(options, &mut partner(&options.common)?),
        Workload::Connect(options) => connect::run(options, &mut Partner::process()?),
        Workload::Peers(options) => peers::run(options),
        Workload::Fanout(options) => fanout::run(options),
        Workload::Churn(options) => churn::run(options),
        Workload::Chaos(options) => chaos::run(options),
        Workload::ChaosPart(options) => chaos::run_part(options),
        Workload::Receiver => receiver::serve(control::line_of_role()?).map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_message_too_small_for_its_number_is_refused() {
        assert!(Cli::try_parse_from(["loadtest", "throughput", "--size", "7"]).is_err());
        assert!(Cli::try_parse_from(["loadtest", "throughput", "--size", "8"]).is_ok());
        assert!(Cli::try_parse_from(["loadtest", "latency", "--seconds", "0"]).is_err());
    }
}
