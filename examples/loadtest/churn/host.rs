//! The process of the peers: their nodes are started, shut down and started anew elsewhere as the parent says.
//!
//! Owns: the nodes. Threads: the main one, which obeys. Locks: none. Blocks on: orders; a node's shutdown.
//! Upholds: each node's application is a new one with each start, with ledgers of its own; a peer listens at two ports.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use threadwire::{Config, Node, PeerId};

use crate::chaos::control::{Answer, Begin, Neighbour, Order, die_with_parent};
use crate::chaos::recorder::Recorder;
use crate::control::Line;
use crate::failure::{Context, Failure};
use crate::report;

/// The name of the network.
pub const NETWORK: &str = "loadtest-churn";
/// How long a node may take to shut down.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// The peers of a process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cast {
    /// How many; they are numbered from 1.
    pub peers: usize,
    /// The folder of ledgers and identities.
    pub folder: PathBuf,
    /// Who sends.
    pub sender: PeerId,
}

/// A peer, and where it listens.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Place {
    /// Its number.
    pub peer: usize,
    /// Who it is.
    pub id: PeerId,
    /// Where.
    pub addrs: [SocketAddr; 2],
}

/// A peer's node and its application.
struct Hosted {
    node: Node,
    recorder: Arc<Recorder>,
    life: u16,
}

/// The process.
///
/// # Errors
/// Anything that is not the parent's doing.
pub fn run(line: &Line) -> Result<(), Failure> {
    die_with_parent();
    let Some(Order::Host(cast)) = line.receive(None)? else { return Err(Failure::new("no peers to host")) };
    let mut hosted = Vec::new();
    for peer in 1..=cast.peers {
        hosted.push(begin(&cast, peer, 0)?);
    }
    let places = hosted.iter().zip(1..).map(|(hosted, peer)| place(&hosted.node, peer));
    report::json(&Answer::Hosted(places.collect::<Result<_, _>>()?))?;
    while let Some(order) = line.receive(None)? {
        match order {
            Order::Restart { peer } => {
                let old = peer.checked_sub(1).and_then(|at| hosted.get_mut(at));
                let old = old.ok_or_else(|| Failure::new(format!("no peer {peer}")))?;
                end(&old.node)?;
                *old = begin(&cast, peer, old.life + 1)?;
                report::json(&Answer::Hosted(vec![place(&old.node, peer)?]))?;
            }
            Order::Sabotage(sabotage) => {
                let first = hosted.first().ok_or_else(|| Failure::new("nobody to harm"))?;
                first.recorder.sabotage(sabotage);
            }
            Order::Finish => {
                hosted.iter().try_for_each(|hosted| end(&hosted.node))?;
                return report::json(&Answer::AllEnded);
            }
            other => return Err(Failure::new(format!("not for peers: {other:?}"))),
        }
    }
    Ok(())
}

fn begin(cast: &Cast, peer: usize, life: u16) -> Result<Hosted, Failure> {
    let index = u8::try_from(peer).context("the number of a peer")?;
    let folder = cast.folder.join(format!("node-{peer}"));
    std::fs::create_dir_all(&folder).context("a peer's folder")?;
    let begin = Begin { index, life, folder: cast.folder.clone(), seed: 0, no_resume: false, secure: true };
    let recorder = Arc::new(Recorder::new(&begin));
    recorder.open(&[Some(Neighbour { id: cast.sender, dial: None })])?;
    let mut config = Config::loopback();
    config.network = NETWORK.to_owned();
    config.data_dir = Some(folder.join("identity"));
    config.listen.extend(config.listen.first().copied());
    let handler = recorder.clone();
    let node = Node::builder().config(config).handler(move |_, message| handler.take(&message)).start();
    Ok(Hosted { node: node.context("starting a peer")?, recorder, life })
}

fn end(node: &Node) -> Result<(), Failure> {
    let left = node.shutdown(SHUTDOWN);
    if left.finished { Ok(()) } else { Err(Failure::new(format!("a peer's shutdown left something: {left:?}"))) }
}

fn place(node: &Node, peer: usize) -> Result<Place, Failure> {
    let addrs = <[SocketAddr; 2]>::try_from(node.local_addrs()).context("where a peer listens")?;
    Ok(Place { peer, id: node.id(), addrs })
}
