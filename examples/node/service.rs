//! The node at work: a loop over commands, messages, events and signals, and the lines it writes.
//!
//! | line | when |
//! |---|---|
//! | `started id= listen=` | the node runs; the whole id, the addresses with the ports the system chose |
//! | `message peer= number= repeat= text=` | a message came; `hex=` instead of `text=` if it is no text |
//! | `connected peer= conn= kind= addr=` | a session began; who dialled, the other end |
//! | `disconnected peer= conn= kind= unacked_bytes= reason=` | it ended; what is kept for the next one |
//! | `restarted peer= incarnation=` | the peer's process is another one than before |
//! | `dials peer= addrs=` | where a peer that is kept is dialled, names looked up |
//! | `dials_no_more peer= reason=` | it is kept no longer, or at other addresses |
//! | `dial_failed peer= addr= stage= cause=` | one address, one attempt |
//! | `identity_clash peer= addr=` | another process shows the same identity as this peer |
//! | `handler_slow peer= conn=` | for completeness: this program sets no handler |
//! | `reloaded fields= closed=` | a changed configuration was put to use: the fields that differ, sessions that had to go |
//! | `reload_refused what=` | it was not, and the one before holds on |
//! | `missed events=` | so many of the lines above are missing |
//! | `accepted peer=` | answer to `send` and `all`: the node has taken it and sees to it |
//! | `added peer=`, `removed peer=` | answers |
//! | `peers count=`, `metrics`, `help` | answers, each with a table |
//! | `error what=` | a command was not obeyed |
//! | `stopping cause= deadline_s=` | the shutdown began |
//! | `stopped clean= drained= undelivered= threads=` | it is over: peers that have everything, messages that were left (below, by peer), threads that something still holds |
//!
//! Owns: the node. Threads: the main one. Locks: none. Blocks on: whatever comes next; standard output.
//! Upholds: every message is written before its sender sees it acknowledged; whatever ends the loop, the node is shut
//! down.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use crossbeam_channel::{never, select, tick};
use serde_json::{Value, json};
use threadwire::config::Log;
use threadwire::direct::StopReason;
use threadwire::error::StartError;
use threadwire::{Config, Event, Message, Node, PeerEvent, PeerHandle, PeerId, Reload, SendError, ShutdownReport};

use crate::command::{Command, HELP, parse};
use crate::input::{self, Heard};
use crate::line::{Console, Label, Line};
use crate::settings::{Settings, settle};
use crate::tables;
use crate::watch::{LOOK, Watched};

/// How long a shutdown may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// The shortest beginning of an id that stands for a peer.
const BEGINNING: usize = 4;

/// How it ended.
#[derive(Debug)]
pub enum End {
    /// It was told to.
    Stopped,
    /// Nobody reads the lines.
    OutputGone(io::Error),
}

/// A node, and the names and channels around it.
pub struct Service {
    node: Node,
    names: HashMap<PeerId, String>,
    console: Console,
    signals: Heard,
    /// Where the configuration comes from, and its file.
    settings: Settings,
    file: Watched,
    log: Log,
}

impl Service {
    /// Starts the node.
    pub fn start(config: Config, settings: Settings, console: Console, signals: Heard) -> Result<Self, StartError> {
        let (names, file, log) = (names(&config), Watched::new(&settings.config), config.log.clone());
        let node = Node::builder().config(config).start()?;
        Ok(Self { node, names, console, signals, settings, file, log })
    }

    /// Serves until something ends it, and shuts the node down.
    pub fn run(mut self) -> End {
        let stopped = self.serve().and_then(|cause| {
            let deadline = DEADLINE.as_secs();
            self.console.say(&Line::new("stopping").with("deadline_s", deadline).with("cause", cause))
        });
        let report = self.node.shutdown(DEADLINE);
        let last_lines = || {
            self.node.events().try_iter().try_for_each(|event| self.tell(event))?;
            self.say_report(&report)
        };
        match stopped.and_then(|()| last_lines()) {
            Ok(()) => End::Stopped,
            Err(error) => End::OutputGone(error),
        }
    }

    /// Until something ends it: what did.
    fn serve(&mut self) -> io::Result<&'static str> {
        let listen: Value = self.node.local_addrs().iter().map(ToString::to_string).collect();
        self.console.say(&Line::new("started").with_text("id", self.node.id()).with("listen", listen))?;
        let mut lines = input::lines()?;
        let incoming = self.node.incoming().map_err(io::Error::other)?;
        let (events, looks) = (self.node.events(), tick(LOOK));
        loop {
            select! {
                recv(self.signals.end) -> signal => return Ok(signal.unwrap_or("signals are not heard any more")),
                recv(self.signals.reload) -> _ => {
                    self.file.asked();
                    self.reload()?;
                }
                recv(looks) -> _ => if self.file.look() {
                    self.reload()?;
                },
                recv(lines) -> line => match line {
                    Ok(Ok(line)) => match parse(&line) {
                        Ok(Some(Command::Quit)) => return Ok("quit"),
                        Ok(Some(command)) => self.obey(command)?,
                        Ok(None) => {}
                        Err(what) => self.refuse(what)?,
                    },
                    Ok(Err(error)) => self.refuse(format!("standard input: {error}"))?,
                    // The end of standard input is not the end of the service.
                    Err(_) => lines = never(),
                },
                recv(incoming) -> batch => match batch {
                    Ok(batch) => batch.into_iter().try_for_each(|message| self.receive(&message))?,
                    Err(_) => return Ok("the node has ended"),
                },
                recv(events) -> event => match event {
                    Ok(event) => self.tell(event)?,
                    Err(_) => return Ok("the node has ended"),
                },
            }
        }
    }

    /// Reads the configuration again, and puts it to use or says why not.
    fn reload(&mut self) -> io::Result<()> {
        let config = match settle(&self.settings) {
            Ok(config) if config.log.file == self.log.file => config,
            Ok(_) => return self.refuse_reload("log.file stays as long as this program: start it anew".to_owned()),
            Err(error) => return self.refuse_reload(error.to_string()),
        };
        // The line is the event's.
        if self.node.reload(&config).is_ok() {
            self.names = names(&config);
            self.log = config.log;
            log::set_max_level(self.log.level);
        }
        Ok(())
    }

    fn refuse_reload(&self, what: String) -> io::Result<()> {
        log::warn!("the configuration is refused: {what}");
        self.console.say(&Line::new("reload_refused").with("what", what))
    }

    fn say_reloaded(&self, report: &Reload) -> Line {
        let closed = report.closed.iter().map(|closed| {
            let label = self.label(closed.peer);
            json!({"peer": label.id.to_string(), "name": label.name, "reason": closed.reason.name()})
        });
        let line = Line::new("reloaded").with("fields", report.changed.clone()).with("closed", report.closed.len());
        line.json("closed_sessions", closed.collect::<Value>())
    }

    fn obey(&self, command: Command<'_>) -> io::Result<()> {
        match command {
            Command::Peers => {
                let peers: Vec<_> = self.node.peers().into_iter().map(|peer| (self.label(peer.id), peer)).collect();
                let line = Line::new("peers").with("count", peers.len()).json("peers", tables::peers_json(&peers));
                self.console.say_with(&line, &tables::peers_text(&peers))
            }
            Command::Metrics => {
                let metrics = self.node.metrics();
                let line = Line::new("metrics").json("metrics", tables::metrics_json(&metrics));
                self.console.say_with(&line, &tables::metrics_text(&metrics))
            }
            Command::Help => self.console.say_with(&Line::new("help").json("text", HELP), HELP),
            Command::Add { id, addresses } => match self.node.add_peer(id, addresses) {
                Ok(_) => self.console.say(&Line::new("added").peer(&self.label(id))),
                Err(error) => self.refuse(error.to_string()),
            },
            Command::Remove { peer } => {
                let removed = self.find(peer).and_then(|peer| {
                    self.node.remove_peer(peer.id()).map_err(|error| error.to_string())?;
                    Ok(peer.id())
                });
                match removed {
                    Ok(id) => self.console.say(&Line::new("removed").peer(&self.label(id))),
                    Err(what) => self.refuse(what),
                }
            }
            Command::Send { peer, text } => match self.find(peer) {
                Ok(peer) => self.send(&peer, text),
                Err(what) => self.refuse(what),
            },
            Command::All { text } => {
                let connected = self.node.peers().into_iter().filter(|peer| peer.stats.connected);
                let mut handles = connected.filter_map(|peer| self.node.peer(peer.id).ok()).peekable();
                if handles.peek().is_none() {
                    return self.refuse("nobody is connected".to_owned());
                }
                handles.try_for_each(|peer| self.send(&peer, text))
            }
            // The loop has seen to it.
            Command::Quit => Ok(()),
        }
    }

    fn send(&self, peer: &PeerHandle, text: &str) -> io::Result<()> {
        let label = self.label(peer.id());
        // Waiting for room would hold up everybody's messages: a full queue is an error of this one.
        match peer.try_send(text) {
            Ok(()) => self.console.say(&Line::new("accepted").peer(&label)),
            Err(SendError { kind, .. }) => self.refuse(format!("{label}: {kind}")),
        }
    }

    /// The peer that is meant.
    fn find(&self, peer: &str) -> Result<PeerHandle, String> {
        let name = self.names.iter().find(|(_, name)| name.as_str() == peer);
        if let Some(id) = name.map(|(id, _)| *id).or_else(|| peer.parse().ok()) {
            return self.node.peer(id).map_err(|error| error.to_string());
        }
        let begins = |id: &PeerId| peer.len() >= BEGINNING && id.to_string().starts_with(peer);
        let mut found = self.node.peers().into_iter().map(|peer| peer.id).filter(begins);
        match (found.next(), found.next()) {
            (Some(id), None) => self.node.peer(id).map_err(|error| error.to_string()),
            (Some(_), Some(_)) => Err(format!("several peers begin with {peer}")),
            (None, _) => Err(format!("no peer is known as {peer}")),
        }
    }

    fn receive(&self, message: &Message<'_>) -> io::Result<()> {
        let line = Line::new("message").peer(&self.label(message.from())).with("number", message.number());
        self.console.say(&line.with("repeat", message.possible_repeat()).payload(message.payload()))
    }

    fn tell(&self, event: Event) -> io::Result<()> {
        self.console.say(&match event {
            Event::Peer(PeerEvent::AddrsResolved { peer, addrs, .. }) => {
                let addrs: Value = addrs.iter().map(ToString::to_string).collect();
                Line::new("dials").peer(&self.label(peer)).with("addrs", addrs)
            }
            // The line `stopping` has said so.
            Event::Peer(PeerEvent::SenderStopped { reason: StopReason::ShuttingDown, .. }) => return Ok(()),
            Event::Peer(PeerEvent::SenderStopped { peer, reason, .. }) => {
                Line::new("dials_no_more").peer(&self.label(peer)).with_text("reason", reason)
            }
            Event::Connected { peer, conn, kind, remote_addr, .. } => {
                let line = Line::new("connected").peer(&self.label(peer)).with_text("conn", conn);
                line.with_text("kind", kind).with_text("addr", remote_addr)
            }
            Event::Disconnected { peer, conn, kind, reason, unacked_bytes, .. } => {
                let line = Line::new("disconnected").peer(&self.label(peer)).with_text("conn", conn);
                line.with_text("kind", kind).with("unacked_bytes", unacked_bytes).with_text("reason", reason)
            }
            Event::IncarnationChanged { peer, incarnation, .. } => {
                Line::new("restarted").peer(&self.label(peer)).with_text("incarnation", incarnation)
            }
            Event::DialFailed { peer, error, .. } => {
                let line = match peer {
                    Some(peer) => Line::new("dial_failed").peer(&self.label(peer)),
                    None => Line::new("dial_failed").with("peer", Value::Null).json("name", Value::Null),
                };
                line.with_text("addr", error.addr).with_text("stage", error.stage).with_text("cause", error.cause)
            }
            Event::IdentityClash { peer, remote_addr, .. } => {
                Line::new("identity_clash").peer(&self.label(peer)).with_text("addr", remote_addr)
            }
            Event::HandlerSlow { peer, conn, .. } => {
                Line::new("handler_slow").peer(&self.label(peer)).with_text("conn", conn)
            }
            Event::PeerSlow { peer, oldest_age, queued_messages, queued_bytes, .. } => {
                let line =
                    Line::new("peer_slow").peer(&self.label(peer)).with("oldest_ms", oldest_age.as_millis() as u64);
                line.with("queued", queued_messages).with("queued_bytes", queued_bytes)
            }
            Event::PeerRecovered { peer, .. } => Line::new("peer_recovered").peer(&self.label(peer)),
            Event::ConfigReloaded { report, .. } => self.say_reloaded(&report),
            Event::ConfigRefused { error, .. } => Line::new("reload_refused").with_text("what", error),
            Event::Missed(events) => Line::new("missed").with("events", events),
            other => Line::new("event").with("what", format!("{other:?}")),
        })
    }

    fn say_report(&self, report: &ShutdownReport) -> io::Result<()> {
        let left: u64 = report.undelivered.iter().map(|peer| peer.unsent + peer.unknown).sum();
        let by_peer = report.undelivered.iter().map(|peer| {
            let label = self.label(peer.peer);
            json!({"peer": label.id.to_string(), "name": label.name, "unsent": peer.unsent, "unknown": peer.unknown})
        });
        let line = Line::new("stopped")
            .with("clean", report.is_clean())
            .with("drained", report.drained.len())
            .with("undelivered", left)
            .json("undelivered_to", by_peer.collect::<Value>())
            .with("threads", report.threads.clone());
        let row = |peer: &threadwire::PeerReport| {
            format!("{} unsent={} unknown={}\n", self.label(peer.peer), peer.unsent, peer.unknown)
        };
        self.console.say_with(&line, &report.undelivered.iter().map(row).collect::<String>())
    }

    /// A command was not obeyed.
    fn refuse(&self, what: String) -> io::Result<()> {
        self.console.say(&Line::new("error").with("what", what))
    }

    fn label(&self, id: PeerId) -> Label {
        Label { id, name: self.names.get(&id).cloned() }
    }
}

/// The names of peers. One of the command line is called by its id anyway.
fn names(config: &Config) -> HashMap<PeerId, String> {
    let named = config.peers.iter().filter(|peer| peer.name != peer.id.short());
    named.map(|peer| (peer.id, peer.name.clone())).collect()
}
