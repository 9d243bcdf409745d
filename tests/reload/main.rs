//! Another configuration for a node that runs: every field taken or refused, lowered limits, moved addresses, and a storm.
//!
//! Owns: nodes on the loopback interface. Threads: the test's. Locks: none. Blocks on: facts, with a deadline.
//! Upholds: what is refused changes nothing; what is taken cuts nobody who is within it, and loses nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use threadwire::config::{BackoffPolicy, Config, Exposure, Offline, Peer, TrustMode};
use threadwire::error::ReloadError;
use threadwire::handshake::Identity;
use threadwire::{Event, Node, PeerId};

#[path = "../common/mod.rs"]
mod common;

mod addresses;
mod begins;
mod deadlines;
mod effects;
mod fields;
mod limits;
mod lost;
mod messages;
mod turns;

use common::wait_event;

/// A change of a configuration.
type Change = fn(&mut Config);

fn changed(config: &Config, change: impl FnOnce(&mut Config)) -> Config {
    let mut config = config.clone();
    change(&mut config);
    config
}

fn nobody() -> PeerId {
    Identity::generate().unwrap().peer_id()
}

/// Why another configuration is refused, as its caller is told, and whoever listens.
#[track_caller]
fn refused(node: &Node, config: &Config) -> ReloadError {
    let error = node.reload(config).unwrap_err();
    wait_event(node, "it is told", |event| match event {
        Event::ConfigRefused { error: told, .. } => (told == error).then_some(()),
        _ => None,
    });
    error
}

/// What a scraper gets.
fn scraped(addr: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(addr)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// For each live field another value that is allowed.
const LIVE: &[(&str, Change)] = &[
    ("listen", |config| config.listen = vec!["127.0.0.1:0".parse().unwrap(); 2]),
    ("advertise", |config| config.advertise = Some("192.0.2.1:5".parse().unwrap())),
    ("resolve_timeout", |config| config.resolve_timeout *= 2),
    ("connect_timeout", |config| config.connect_timeout *= 2),
    ("handshake_timeout", |config| config.handshake_timeout *= 2),
    ("heartbeat", |config| config.heartbeat /= 2),
    ("idle_timeout", |config| config.idle_timeout *= 2),
    ("write_timeout", |config| config.write_timeout *= 2),
    ("slow_after", |config| config.slow_after *= 2),
    ("handler_watchdog", |config| config.handler_watchdog *= 2),
    ("stable_after", |config| config.stable_after *= 2),
    ("resume_window", |config| config.resume_window *= 2),
    ("ack_delay", |config| config.ack_delay *= 2),
    ("send_deadline", |config| config.send_deadline *= 2),
    ("queue_messages", |config| config.queue_messages = 10),
    ("offline", |config| config.offline = Offline::Return),
    ("message_ttl", |config| config.message_ttl = Some(Duration::from_secs(60))),
    ("queue_bytes", |config| config.queue_bytes /= 2),
    ("requests", |config| config.requests = 7),
    ("unknown_peers", |config| config.unknown_peers = 7),
    ("unknown_bytes", |config| config.unknown_bytes /= 2),
    ("unknown_timeout", |config| config.unknown_timeout *= 2),
    ("window_bytes", |config| config.window_bytes *= 2),
    ("max_message", |config| config.max_message /= 2),
    ("memory_bytes", |config| config.memory_bytes /= 2),
    ("inbound", |config| config.inbound = 7),
    ("outbound", |config| config.outbound = 7),
    ("half_open", |config| config.half_open = 7),
    ("resolve_threads", |config| config.resolve_threads = 7),
    ("half_open_per_ip", |config| config.half_open_per_ip = Some(7)),
    ("inbound_per_ip", |config| config.inbound_per_ip = Some(7)),
    ("max_threads", |config| config.max_threads = Some(17)),
    ("peer", |config| config.peers = vec![Peer::new("absent", nobody(), ["127.0.0.1:1".parse().unwrap()])]),
    ("security.trust", |config| config.security.trust = TrustMode::Listed),
    ("security.trusted", |config| config.security.trusted.push(nobody())),
    ("security.roots", |_| ()),
    ("security.certificate", |_| ()),
    ("security.public", |config| config.security.public = vec![Exposure::Open]),
    ("backoff.policy", |config| config.backoff.policy = BackoffPolicy::Exponential),
    ("backoff.base", |config| config.backoff.base *= 2),
    ("backoff.cap", |config| config.backoff.cap *= 2),
    ("backoff.jitter", |config| config.backoff.jitter = 0.1),
    ("tcp.nodelay", |config| config.tcp.nodelay = false),
    ("tcp.keepalive", |config| config.tcp.keepalive = None),
    ("tcp.user_timeout", |config| config.tcp.user_timeout = None),
    ("tcp.notsent_low_water_mark", |config| config.tcp.notsent_low_water_mark = None),
    ("threads.rx_stack", |config| config.threads.rx_stack *= 2),
    ("threads.rx_handler_stack", |config| config.threads.rx_handler_stack *= 2),
    ("threads.tx_stack", |config| config.threads.tx_stack *= 2),
    ("metrics.listen", |config| config.metrics.listen = Some("127.0.0.1:0".parse().unwrap())),
    ("log.level", |config| config.log.level = log::LevelFilter::Trace),
    ("log.file", |config| config.log.file = Some("node.log".into())),
];
