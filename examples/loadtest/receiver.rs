//! The other end: does what it is asked until it is asked no more.
//!
//! Owns: the other end's raw connection, nodes and doors, or its many peers. Threads: one, a process's main thread or
//! `receiver`. Locks: none. Blocks on: the next question; within a question, on the run it is about.
//! Upholds: every failure is answered, so that the measuring end shows it with what it was doing.

use std::net::TcpListener;
use std::time::Duration;

use crate::connect::{BareDoor, Door};
use crate::control::{Answer, Ask, Line};
use crate::failure::{Context, Failure};
use crate::fanout::Readers;
use crate::peers::{Census, Host};
use crate::raw;
use crate::wire::Responder;

/// How long a run may take.
const RUN: Duration = Duration::from_secs(600);

/// Answers until the line ends.
///
/// # Errors
/// The line is broken; a failure of what was asked is an answer.
pub fn serve(mut line: Line) -> Result<(), Failure> {
    let mut end = OtherEnd::default();
    while let Some(ask) = line.receive(None)? {
        let answer = end.answer(&ask, &mut line).unwrap_or_else(|what| Answer::Failed { what: what.to_string() });
        line.send(&answer)?;
    }
    Ok(())
}

#[derive(Default)]
struct OtherEnd {
    raw: Option<raw::Reader>,
    fan: Option<Readers>,
    /// Over plain TCP, and over TLS.
    nodes: [Option<Responder>; 2],
    door: Option<Door>,
    bare_door: Option<BareDoor>,
    peers: Option<Host>,
}

impl OtherEnd {
    /// The last answer to a question; an earlier one is sent from here.
    fn answer(&mut self, ask: &Ask, line: &mut Line) -> Result<Answer, Failure> {
        match *ask {
            Ask::OpenRaw => {
                let listener = TcpListener::bind("127.0.0.1:0").context("listening for the raw connection")?;
                line.send(&Answer::Listening { addr: listener.local_addr().context("the raw address")? })?;
                self.raw = Some(raw::Reader::new(raw::accept(&listener)?));
                Ok(Answer::Ready)
            }
            Ask::CountRaw { size, read } => {
                line.send(&Answer::Ready)?;
                self.raw()?.count(size, read).map(Answer::Counted)
            }
            Ask::EchoRaw { size } => {
                line.send(&Answer::Ready)?;
                self.raw()?.echo(size).map(|()| Answer::Ready)
            }
            Ask::OpenFan { count } => {
                let listener = TcpListener::bind("127.0.0.1:0").context("listening for raw connections")?;
                line.send(&Answer::Listening { addr: listener.local_addr().context("the raw address")? })?;
                self.fan = Some(Readers::accept(&listener, count)?);
                Ok(Answer::Ready)
            }
            Ask::CountFan { size } => {
                let fan = self.fan.as_mut().ok_or_else(|| Failure::new("there are no raw connections yet"))?;
                line.send(&Answer::Ready)?;
                fan.count(size).map(Answer::Counted)
            }
            Ask::OpenCounter { secure } => self.open(secure, Responder::counter(secure)?),
            Ask::OpenEcho { reply, secure } => self.open(secure, Responder::echo(reply, secure)?),
            Ask::Count { size, secure } => {
                let node =
                    self.nodes[usize::from(secure)].as_ref().ok_or_else(|| Failure::new("there is no node yet"))?;
                node.restart(size);
                line.send(&Answer::Ready)?;
                node.finish(RUN).map(Answer::Counted)
            }
            Ask::OpenDoor { secure } => {
                let (id, addr) = self.door.insert(Door::open(secure)?).place()?;
                Ok(Answer::Node { id, addr })
            }
            Ask::OpenBareDoor { secure, threads } => {
                let addr = self.bare_door.insert(BareDoor::open(secure, threads)?).addr()?;
                Ok(Answer::Listening { addr })
            }
            Ask::Entered { bare, at_least } => {
                let entered = match (bare, &self.door, &self.bare_door) {
                    (true, _, Some(door)) => door.entered(at_least),
                    (false, Some(door), _) => door.entered(at_least),
                    _ => return Err(Failure::new("there is no door yet")),
                };
                Ok(Answer::Entered(entered))
            }
            Ask::MakePeers(ref cast) => {
                self.peers = Some(Host::new(cast)?);
                Ok(Answer::Peers(Census::default()))
            }
            Ask::DialPeers { ref id, addr, at_once } => {
                let id = id.parse().context("the node's peer id")?;
                self.peers()?.dial(id, addr, at_once).map(Answer::Peers)
            }
            Ask::CountPeers { sent } => self.peers()?.count(sent).map(Answer::Peers),
            Ask::Close => {
                for node in self.nodes.iter_mut().filter_map(Option::take) {
                    node.close()?;
                }
                if let Some(door) = self.door.take() {
                    door.close()?;
                }
                Ok(Answer::Ready)
            }
        }
    }

    fn raw(&mut self) -> Result<&mut raw::Reader, Failure> {
        self.raw.as_mut().ok_or_else(|| Failure::new("there is no raw connection yet"))
    }

    fn peers(&self) -> Result<&Host, Failure> {
        self.peers.as_ref().ok_or_else(|| Failure::new("there are no peers yet"))
    }

    fn open(&mut self, secure: bool, node: Responder) -> Result<Answer, Failure> {
        let (id, addr) = node.place()?;
        self.nodes[usize::from(secure)] = Some(node);
        Ok(Answer::Node { id, addr })
    }
}
