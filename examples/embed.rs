//! A program that was there before the library: the doors of a building count who comes and goes, and each of them shows
//! how many people are inside, without a server.
//!
//! ```sh
//! cargo run --example embed -- --listen 127.0.0.1:0
//! cargo run --example embed -- --peer ID@ADDR      # the id and the address that the first one printed
//! ```
//!
//! On standard input `in` and `out` are what a door's sensor would say; `show` prints the count, `quit` ends it. At the
//! end of standard input a door goes on showing. SIGTERM and Ctrl-C end it; a second one at once.
//!
//! It stands for a synchronous program of your own. It has its loop over a timer and its input, its logger, and a flag
//! that ends it. What came with the library: the field `node`, two arms of the `select!`, and the shutdown signal.
//!
//! Why nothing here waits for the network, or asks whether a message has arrived: doors tell each other all they know,
//! and of two counts of one door the higher is the newer one. What is told twice or late does no harm, so a door that was
//! away or was started again has only to be told the present state.
//!
//! Owns: the counts. Threads: the main one, and one that reads standard input. Locks: none.
//! Blocks on: the `select!`, a quarter of a second at the longest.
//! Upholds: the counts of a door only rise; a stranger cannot make the table grow beyond its bound.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::io::{self, BufRead, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use clap::Parser;
use crossbeam_channel::{Receiver, Sender, bounded, never, select, tick};
use log::{LevelFilter, Log, Metadata, Record};
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use threadwire::{Address, Config, Event, Message, Node, PeerId};

/// How often the flag is looked at, and doors that missed something are told.
const TICK: Duration = Duration::from_millis(250);
/// What the node may take to deliver what is under way and say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);
/// Doors of one building.
const MOST_DOORS: usize = 256;
/// A table of so many doors, with room to spare.
const LONGEST_TABLE: usize = 64 * 1024;
/// Exit status after a second signal.
const AT_ONCE: i32 = 2;

/// Counts people through the doors of a building.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where other doors reach this one; port 0 is any free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Another door, by what it printed at its start; one is enough, if it reaches the others
    #[arg(long = "peer", value_name = "ID@ADDR", value_parser = door_at)]
    peers: Vec<(PeerId, Address)>,
    /// Keep this door's key here, so that it is the same door after a restart, and learns from others what it had counted
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

fn door_at(text: &str) -> Result<(PeerId, Address), String> {
    let (id, address) = text.split_once('@').ok_or("ID@ADDR: the @ is missing")?;
    Ok((id.parse().map_err(|error| format!("{error}"))?, address.parse().map_err(|error| format!("{error}"))?))
}

/// People who went through one door since it was built.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Count {
    came: u64,
    went: u64,
}

/// What doors tell each other: all they know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Table(BTreeMap<PeerId, Count>);

impl Table {
    /// Takes what is newer in another door's table; whether anything was.
    fn merge(&mut self, others: &Self) -> bool {
        let before = self.clone();
        for (door, theirs) in &others.0 {
            if self.0.len() < MOST_DOORS || self.0.contains_key(door) {
                let ours = self.0.entry(*door).or_default();
                *ours = Count { came: ours.came.max(theirs.came), went: ours.went.max(theirs.went) };
            }
        }
        *self != before
    }

    /// People inside. Negative when somebody's coming was not seen.
    fn inside(&self) -> i128 {
        self.0.values().map(|count| i128::from(count.came) - i128::from(count.went)).sum()
    }
}

/// The program's logger, as it had it before.
struct Prefixed;

impl Log for Prefixed {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            eprintln!("door: {:5} {}: {}", record.level(), record.target(), record.args());
        }
    }

    fn flush(&self) {}
}

/// A door, and what it knows of the others.
struct Door {
    table: Table,
    /// Counts the changes of the table.
    edition: u64,
    /// The last edition that each door was told.
    told: HashMap<PeerId, u64>,
    node: Node,
    /// The program's own end: everybody who holds the other half sees it go. The node is one of them.
    running: Sender<()>,
    /// Set by the signals that end a program.
    ended: Arc<AtomicBool>,
}

impl Door {
    fn open(arguments: Arguments, ended: Arc<AtomicBool>) -> Result<Self, Box<dyn Error>> {
        let mut config = Config::default();
        config.listen = vec![arguments.listen];
        config.data_dir = arguments.data_dir;
        config.network = "doors".to_owned();
        config.max_message = LONGEST_TABLE;
        let (running, end) = bounded(0);
        let node = Node::builder().config(config).shutdown_signal(end, GOODBYE).start()?;
        for (id, address) in arguments.peers {
            node.add_peer(id, [address])?;
        }
        let table = Table(BTreeMap::from([(node.id(), Count::default())]));
        Ok(Self { table, edition: 1, told: HashMap::new(), node, running, ended })
    }

    /// The loop, which ends when the flag is set or somebody says so. What the node left behind, if anything, in words.
    fn run(mut self) -> Result<Option<String>, Box<dyn Error>> {
        for addr in self.node.local_addrs() {
            writeln!(io::stdout(), "door {}@{addr}", self.node.id())?;
        }
        self.show()?;
        let timer = tick(TICK);
        let mut lines = lines()?;
        let incoming = self.node.incoming()?;
        let events = self.node.events();
        while !self.ended.load(Ordering::Relaxed) {
            select! {
                recv(timer) -> _ => self.tell_whoever_is_behind(),
                recv(lines) -> line => match line.as_deref() {
                    Ok("in") => self.count(|count| &mut count.came)?,
                    Ok("out") => self.count(|count| &mut count.went)?,
                    Ok("show") => self.show()?,
                    Ok("quit") => break,
                    Ok(other) => log::warn!("{other:?} is none of in, out, show, quit"),
                    Err(_) => lines = never(),
                },
                recv(incoming) -> batch => for message in batch? {
                    self.hear(&message)?;
                },
                recv(events) -> event => self.note(event?),
            }
        }
        let Self { node, running, .. } = self;
        drop(running);
        // The signal is out; the report comes within the time that the node was given for it, and a little.
        let report = node.wait_shutdown(GOODBYE * 2).ok_or("the node does not end")?;
        Ok((!report.is_clean()).then(|| format!("left behind: {report:?}")))
    }

    /// Somebody went through this door.
    fn count(&mut self, which: impl FnOnce(&mut Count) -> &mut u64) -> io::Result<()> {
        let count = which(self.table.0.entry(self.node.id()).or_default());
        // Whoever lies about this door must not end it.
        *count = count.saturating_add(1);
        self.changed()
    }

    /// The table is another one than before.
    fn changed(&mut self) -> io::Result<()> {
        self.edition += 1;
        self.tell_whoever_is_behind();
        self.show()
    }

    /// Tells the table to every door that is there and has not been told this edition. One that has not taken the last
    /// one yet is left for a later tick: so it is told the newest only, and no `send` here waits for room.
    fn tell_whoever_is_behind(&mut self) {
        for peer in self.node.peers() {
            let is_behind = self.told.get(&peer.id) != Some(&self.edition);
            if !(is_behind && peer.stats.connected && peer.queued == 0) {
                continue;
            }
            match self.node.peer(peer.id).map(|handle| handle.send_msg(&self.table)) {
                Ok(Ok(())) => drop(self.told.insert(peer.id, self.edition)),
                Ok(Err(error)) => log::warn!("telling door {}: {error}", peer.id.short()),
                Err(error) => log::warn!("{error}"),
            }
        }
    }

    fn show(&self) -> io::Result<()> {
        writeln!(io::stdout(), "inside {} doors {}", self.table.inside(), self.table.0.len())
    }

    /// Another door's table.
    fn hear(&mut self, message: &Message<'_>) -> io::Result<()> {
        match message.decode::<Table>() {
            Ok(theirs) => {
                if self.table.merge(&theirs) {
                    self.changed()?;
                }
            }
            Err(error) => log::warn!("{} does not speak of doors: {error}", message.from().short()),
        }
        Ok(())
    }

    /// What happened to a connection.
    fn note(&mut self, event: Event) {
        match event {
            Event::Connected { peer, .. } => {
                log::info!("door {} is there", peer.short());
                // It may be another process than before, which knows nothing.
                self.told.remove(&peer);
                self.tell_whoever_is_behind();
            }
            Event::Disconnected { peer, reason, .. } => log::info!("door {} is gone: {reason}", peer.short()),
            other => log::debug!("{other:?}"),
        }
    }
}

/// The lines of standard input; disconnects at its end.
fn lines() -> io::Result<Receiver<String>> {
    let (tell, told) = bounded(0);
    let read = move || io::stdin().lock().lines().map_while(Result::ok).try_for_each(|line| tell.send(line));
    #[expect(clippy::disallowed_methods, reason = "the library's own threads are not for its users")]
    thread::Builder::new().name("stdin".to_owned()).spawn(read)?;
    Ok(told)
}

/// The flag that ends the program. A second signal does not wait for it.
fn flag_of_signals() -> io::Result<Arc<AtomicBool>> {
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_shutdown(signal, AT_ONCE, ended.clone())?;
        flag::register(signal, ended.clone())?;
    }
    Ok(ended)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if log::set_logger(&Prefixed).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
    let opened = flag_of_signals().map_err(Into::into).and_then(|ended| Door::open(arguments, ended));
    match opened.and_then(Door::run) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(left)) => {
            log::warn!("{left}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(doors: impl IntoIterator<Item = (u16, u64, u64)>) -> Table {
        let id = |door: u16| PeerId::from_bytes(std::array::from_fn(|at| door.to_be_bytes()[at % 2]));
        Table(doors.into_iter().map(|(door, came, went)| (id(door), Count { came, went })).collect())
    }

    #[test]
    fn of_two_counts_of_a_door_the_newer_stays_whatever_comes_last() {
        let mut ours = table([(1, 5, 2), (2, 1, 0)]);
        assert!(!ours.merge(&table([(1, 4, 2), (2, 0, 0)])));
        assert!(ours.merge(&table([(2, 3, 1), (3, 10, 0)])));
        assert_eq!((ours.inside(), ours.0.len()), (15, 3));
    }

    #[test]
    fn ever_new_doors_end_at_the_bound_and_the_known_ones_are_still_heard_of() {
        let mut ours = table([(0, 0, 0)]);
        ours.merge(&table((0..1000).map(|door| (door, u64::MAX, 0))));
        assert_eq!(ours.0.len(), MOST_DOORS);
        assert_eq!(ours.inside(), i128::from(u64::MAX) * MOST_DOORS as i128);
    }
}
