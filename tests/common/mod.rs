//! What the integration tests share.

#![allow(dead_code, unused_imports, reason = "each test file uses some of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

#[cfg(feature = "tls")]
pub mod certificates;
pub mod ledger;
pub mod limits;
pub mod mute;
pub mod names;
pub mod port;
pub mod proxy;
pub mod rest;
pub mod stranger;
pub mod wire;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use socket2::{Domain, Socket, Type};
use threadwire::config::Channel;
use threadwire::error::{ConnectError, DialCause, DisconnectReason};
use threadwire::handshake::Identity;
use threadwire::ident::SessionStatus;
use threadwire::{Config, Event, Node, NodeBuilder, Outcome, PeerHandle, PeerId, Receipt};

use limits::descriptors;

/// How long a test waits for a fact that should come at once: liveness, with more than tenfold slack.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Addresses of a peer that is not dialled.
pub const NOWHERE: [std::net::SocketAddr; 0] = [];

/// A builder for a node on a free port of the loopback interface, with a fresh identity.
pub fn loopback() -> NodeBuilder {
    Node::builder().config(base())
}

/// A configuration for loopback over the default channel of this build: TLS, or plain TCP where there is no other.
pub fn base() -> Config {
    let mut config = Config::loopback();
    config.security.channel = CHANNEL;
    config
}

/// A configuration for loopback that dials again within milliseconds.
pub fn quick() -> Config {
    let mut config = base();
    config.backoff.base = Duration::from_millis(2);
    config.backoff.cap = Duration::from_millis(20);
    config.stable_after = Duration::from_millis(1);
    config
}

/// The same over plain TCP: for tests that speak the wire themselves, or look at what is on it.
pub fn plain() -> Config {
    quick().plain()
}

/// The default channel of this build.
pub const CHANNEL: Channel = if cfg!(feature = "tls") { Channel::Tls } else { Channel::Plain };

/// Every channel of this build: plain TCP, and TLS where it is built in.
pub fn channels() -> impl Iterator<Item = Channel> {
    [Channel::Plain, Channel::Tls].into_iter().take(1 + usize::from(cfg!(feature = "tls")))
}

/// A [`quick`] configuration over this channel.
pub fn over(channel: Channel) -> Config {
    let mut config = quick();
    config.security.channel = channel;
    config
}

/// An address of the loopback network that no other process listens at, for ports that are released and bound again, or
/// are to refuse. `n` tells several apart.
pub fn own_ip(n: u8) -> IpAddr {
    let [.., high, low] = std::process::id().to_be_bytes();
    IpAddr::from([127, n.max(1), high, low])
}

/// A node of this configuration.
pub fn start(config: Config) -> Node {
    Node::builder().config(config).start().unwrap()
}

/// Two fresh identities, the one with the lower id first: it decides which connection is attached.
pub fn identities() -> [Identity; 2] {
    let mut identities = [Identity::generate().unwrap(), Identity::generate().unwrap()];
    identities.sort_by_key(Identity::peer_id);
    identities
}

/// Connects `from` to `to` and keeps them connected.
pub fn link(from: &Node, to: &Node) -> PeerHandle {
    from.add_peer(to.id(), to.local_addr()).unwrap();
    from.wait_connected(to.id(), PATIENCE).unwrap()
}

/// Where a node listens.
pub fn addr(node: &Node) -> SocketAddr {
    node.local_addr().unwrap()
}

/// A message of one node to another that it is connected to arrives.
#[track_caller]
pub fn reaches(from: &Node, to: &Node) {
    let text = format!("{} at {:?}", from.id(), Instant::now());
    from.peer(to.id()).unwrap().send(text.as_bytes()).unwrap();
    assert_eq!(to.recv_timeout(PATIENCE).unwrap().payload(), text.as_bytes());
}

/// A node and a handle on a peer that will never be there.
pub fn away(config: Config) -> (Node, PeerHandle) {
    let node = start(config);
    let nobody = identities()[0].peer_id();
    let peer = node.add_peer(nobody, NOWHERE).unwrap();
    (node, peer)
}

/// What became of a message.
#[track_caller]
pub fn outcome(receipt: Receipt) -> Outcome {
    receipt.wait(PATIENCE).unwrap()
}

/// Why a dial of one address failed.
#[track_caller]
pub fn refusal(from: &Node, to: SocketAddr) -> DialCause {
    match from.connect(to) {
        Err(ConnectError::Dial(mut errors)) if errors.len() == 1 => errors.remove(0).cause,
        other => panic!("the dial did not fail: {other:?}"),
    }
}

/// Connections of a node that take a place and have no session yet.
pub fn handshaking(node: &Node) -> usize {
    node.sessions().iter().filter(|session| session.status == SessionStatus::Handshaking).count()
}

/// A listener whose backlog is full: further connections are not answered. Keep all of it.
pub fn black_hole() -> (Socket, Vec<TcpStream>, SocketAddr) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let addr = listener.local_addr().unwrap().as_socket().unwrap();
    let mut inside = Vec::new();
    loop {
        match TcpStream::connect_timeout(&addr, Duration::from_millis(100)) {
            Ok(stream) => inside.push(stream),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::TimedOut);
                return (listener, inside, addr);
            }
        }
        assert!(inside.len() < 100, "the backlog takes everybody");
    }
}

/// Waits for a fact.
#[track_caller]
pub fn wait_until(what: &str, mut fact: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !fact() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        // Somebody else needs the processor for the fact to come true.
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Every connection of a node that began has ended or become a session.
pub fn settled(node: &Node) -> bool {
    let metrics = node.metrics();
    let ended = metrics.dials_failed + metrics.handshakes_failed + metrics.refused;
    metrics.dials + metrics.accepted == ended + metrics.sessions_started
}

/// Every connection of a node has ended and given its place back, with the threads that went with it.
#[track_caller]
pub fn all_over(node: &Node) {
    wait_until("every connection has given its place back", || node.sessions().is_empty() && settled(node));
    wait_until("every session has ended", || node.metrics().sessions_started == node.metrics().sessions_ended);
}

/// What came to a node is [over](all_over) and has left nothing in it: no peer has a byte that is queued or kept. What the
/// process has, threads and descriptors, [`Alone`] looks at when the nodes are gone.
#[track_caller]
pub fn nothing_left(node: &Node) {
    all_over(node);
    for peer in node.peers() {
        let stats = &peer.stats;
        let held = (stats.connected, stats.queued_messages, stats.queued_bytes, stats.kept_bytes, stats.unacked_bytes);
        assert_eq!(held, (false, 0, 0, 0, 0), "{}", peer.id);
    }
}

/// The next event that `pick` wants; others are passed over.
#[track_caller]
pub fn wait_event<T>(node: &Node, what: &str, mut pick: impl FnMut(Event) -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    let mut passed = Vec::new();
    loop {
        let Ok(event) = node.events().recv_deadline(deadline) else {
            panic!("not within {PATIENCE:?}: {what}; instead {passed:?}")
        };
        passed.push(format!("{event:?}"));
        if let Some(picked) = pick(event) {
            return picked;
        }
    }
}

/// Why the next session of a node to end has ended.
#[track_caller]
pub fn ended(node: &Node) -> DisconnectReason {
    wait_event(node, "a session ends", |event| match event {
        Event::Disconnected { reason, .. } => Some(reason),
        _ => None,
    })
}

/// Why the session with this peer ended; events of others are passed over.
#[track_caller]
pub fn ended_with(node: &Node, peer: PeerId) -> DisconnectReason {
    wait_event(node, "the session ends", |event| match event {
        Event::Disconnected { peer: with, reason, .. } if with == peer => Some(reason),
        _ => None,
    })
}

/// Names of the threads that nodes have running in this process.
pub fn node_threads() -> Vec<String> {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return Vec::new() };
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    let of_nodes = |name: &String| {
        ["tx-", "rx-", "work-", "resolve-"].iter().any(|role| name.starts_with(role))
            || ["acceptor", "supervisor", "metrics", "shutdown", "direct"].contains(&name.as_str())
    };
    names.map(|name| name.trim_end().to_owned()).filter(of_nodes).collect()
}

/// Held by a test that wants no other one of its file beside it. Declare it first: when it is dropped, no node may have
/// left a thread or a descriptor behind.
pub struct Alone {
    descriptors: usize,
    _guard: MutexGuard<'static, ()>,
}

/// Waits until no other test of this file runs.
pub fn alone() -> Alone {
    static ONE: Mutex<()> = Mutex::new(());
    let guard = ONE.lock();
    // A test that failed before this one may still be clearing up.
    wait_until("the last test's threads have ended", || node_threads().is_empty());
    Alone { descriptors: descriptors(), _guard: guard }
}

impl Drop for Alone {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // A joined thread is listed for a moment after.
            wait_until(&format!("no threads left behind: {:?}", node_threads()), || node_threads().is_empty());
            let before = self.descriptors;
            wait_until("no descriptors left behind", || descriptors() <= before);
        }
    }
}
