//! A node's process: it links with all others, receives, and sends when it is told to.
//!
//! Owns: the node. Threads: the main one, and the receiver's. Locks: none.
//! Blocks on: orders, events, the node's shutdown.
//! Upholds: it ends only after everything received is written.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver as Channel;
use threadwire::{Config, Event, Node};

use crate::control::{Answer, Order, Place, Tally, orders, say};
use crate::failure::{Context, Failure};
use crate::receiver::Receiver;
use crate::sender::{Peer, Sending};

/// How long linking with all others may take.
const LINK: Duration = Duration::from_secs(40);
/// How long a node may take to shut down.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// The node's process.
pub fn run(plain: bool) -> Result<(), Failure> {
    let orders = orders(|| {})?;
    let config = if plain { Config::loopback().plain() } else { Config::loopback() };
    let node = Node::builder().config(config).start().context(|| "starting the node".to_owned())?;
    let addr = node.local_addr().ok_or_else(|| Failure::new("the node does not listen"))?;
    say(&Answer::Ready(Place { id: node.id(), addr }))?;

    let Order::Link { index, places, folder, sabotage } = next(&orders)? else { return Err(out_of_turn()) };
    let receiver = Receiver::create(&folder, sabotage)?;
    let events = node.events();
    let peers = link(&node, &events, index, &places)?;
    say(&Answer::Linked)?;

    let tally = thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            receiver.run(&node).inspect_err(|failure| {
                // Said here, because the main thread waits for the parent and the parent for this.
                let _ = say(&Answer::Failed(failure.to_string()));
            })
        });
        let obeyed = obey(&orders, &events, &peers, &folder);
        // Also after a failure: the receiver ends only with the node.
        let report = node.shutdown(SHUTDOWN);
        let received = receiving.join().map_err(|_| Failure::new("the receiver panicked"))?;
        obeyed?;
        if !report.threads.is_empty() {
            return Err(Failure::new(format!("the node's shutdown left threads: {}", report.threads.join(", "))));
        }
        let undelivered = report.undelivered.iter().map(|peer| peer.unsent + peer.unknown).sum();
        received.map(|tally| Tally { undelivered, ..tally })
    })?;
    say(&Answer::Received(tally))
}

/// Connects with all other nodes: dials those of a higher number and waits for the others.
fn link(node: &Node, events: &Channel<Event>, index: usize, places: &[Place]) -> Result<Vec<Peer>, Failure> {
    let deadline = Instant::now() + LINK;
    for place in places.iter().skip(index + 1) {
        node.add_peer(place.id, [place.addr]).context(|| format!("adding {}", place.id.short()))?;
    }
    let mut missing: BTreeSet<_> = places.iter().map(|place| place.id).filter(|id| *id != node.id()).collect();
    while !missing.is_empty() {
        let event = events.recv_deadline(deadline);
        match event.context(|| format!("linking; {} of {} links are missing", missing.len(), places.len() - 1))? {
            Event::Connected { peer, .. } => missing.remove(&peer),
            Event::Disconnected { peer, .. } => missing.insert(peer),
            _ => false,
        };
    }
    let others = places.iter().enumerate().filter(|(other, _)| *other != index);
    others
        .map(|(index, place)| {
            let left = deadline.saturating_duration_since(Instant::now());
            let handle = node.wait_connected(place.id, left).context(|| format!("linking with node {index}"))?;
            Ok(Peer { index, id: place.id, handle })
        })
        .collect()
}

/// Does what the parent says until it says that this is the end.
fn obey(orders: &Channel<Order>, events: &Channel<Event>, peers: &[Peer], folder: &PathBuf) -> Result<(), Failure> {
    loop {
        match next(orders)? {
            Order::Send { sources, victim } => {
                let outcome = Sending { peers, sources: &sources, folder, victim }.run(events)?;
                say(&Answer::Sent(outcome))?;
            }
            Order::Finish => return Ok(()),
            _ => return Err(out_of_turn()),
        }
    }
}

fn next(orders: &Channel<Order>) -> Result<Order, Failure> {
    orders.recv().context(|| "waiting for an order".to_owned())
}

fn out_of_turn() -> Failure {
    Failure::new("this order is not for now")
}
