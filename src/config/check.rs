//! What is allowed: ranges, and values that contradict each other.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: every refusal names the field, its value and what would be allowed; no arithmetic here can overflow.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::fields::{Config, LINK_FLOOR, THREADS_PER_SESSION};
use super::sections::{Backoff, Peer, Tcp, Threads};
use super::security::{Channel, Exposure, TrustMode};
use super::units::{GIB, KIB, show_bytes, show_duration};

/// A value that is not allowed.
#[derive(Debug)]
pub(super) struct Fault {
    /// The field, as a path: `backoff.cap`, `peer[1].id`.
    pub(super) field: String,
    /// Its value, as a file would say it.
    pub(super) value: String,
    /// What it may be.
    pub(super) allowed: String,
    /// The field it contradicts.
    pub(super) other: Option<&'static str>,
}

/// The first value that is not allowed, in the order of the fields.
pub(super) fn check(config: &Config) -> Result<(), Fault> {
    let mut listen = HashSet::new();
    for addr in &config.listen {
        let other = addr.port() == 0 || listen.insert(addr);
        require(other, "listen", addr, "each address once")?;
        require(!addr.ip().is_multicast(), "listen", addr, "an address of this machine, or a wildcard")?;
    }
    if let Some(addr) = config.advertise {
        require(is_dialable(addr), "advertise", addr, DIALABLE)?;
    }
    require((1..=64).contains(&config.network.len()), "network", format!("{:?}", config.network), "1 to 64 bytes")?;
    if let Some(dir) = &config.data_dir {
        require(!dir.as_os_str().is_empty(), "data_dir", "\"\"", "a folder; leave the field out for none")?;
    }
    check_times(config)?;
    check_bounds(config)?;
    check_security(config)?;
    check_backoff(&config.backoff)?;
    check_tcp(&config.tcp)?;
    check_threads(&config.threads)?;
    if let Some(addr) = config.metrics.listen {
        let allowed = "an address of this machine, or a wildcard";
        require(!addr.ip().is_multicast(), "metrics.listen", addr, allowed)?;
        if addr.port() != 0 && config.listen.contains(&addr) {
            let allowed = "an address that nodes do not connect to".to_owned();
            return contradiction("metrics.listen", addr.to_string(), allowed, "listen");
        }
    }
    if let Some(file) = &config.log.file {
        require(!file.as_os_str().is_empty(), "log.file", "\"\"", "a file, or \"off\" for standard error")?;
    }
    check_peers(&config.peers)
}

fn check_times(config: &Config) -> Result<(), Fault> {
    within("resolve_timeout", config.resolve_timeout, MS..=10 * MINUTE)?;
    if let Some(ttl) = config.message_ttl {
        within("message_ttl", ttl, MS..=DAY)?;
    }
    within("connect_timeout", config.connect_timeout, MS..=10 * MINUTE)?;
    within("handshake_timeout", config.handshake_timeout, MS..=10 * MINUTE)?;
    within("heartbeat", config.heartbeat, MS..=DAY)?;
    within("idle_timeout", config.idle_timeout, MS..=DAY)?;
    if config.idle_timeout <= config.heartbeat {
        let allowed = format!("longer than heartbeat ({})", show_duration(config.heartbeat));
        return contradiction("idle_timeout", show_duration(config.idle_timeout), allowed, "heartbeat");
    }
    within("write_timeout", config.write_timeout, MS..=DAY)?;
    within("slow_after", config.slow_after, MS..=DAY)?;
    if config.slow_after >= config.write_timeout {
        let allowed = format!("shorter than write_timeout ({})", show_duration(config.write_timeout));
        return contradiction("slow_after", show_duration(config.slow_after), allowed, "write_timeout");
    }
    within("unknown_timeout", config.unknown_timeout, MS..=DAY)?;
    within("handler_watchdog", config.handler_watchdog, MS..=DAY)?;
    within("stable_after", config.stable_after, MS..=DAY)?;
    within("resume_window", config.resume_window, MS..=DAY)?;
    within("ack_delay", config.ack_delay, MS..=1000 * MS)?;
    within("send_deadline", config.send_deadline, MS..=DAY)
}

fn check_bounds(config: &Config) -> Result<(), Fault> {
    require(config.queue_messages > 0, "queue_messages", config.queue_messages, "at least 1")?;
    require(config.queue_bytes > 0, "queue_bytes", show_bytes(config.queue_bytes), "at least 1 B")?;
    require(config.requests > 0, "requests", config.requests, "at least 1")?;
    require(config.unknown_peers <= UNKNOWN_MOST, "unknown_peers", config.unknown_peers, "0 to 65536")?;
    require(config.unknown_bytes > 0, "unknown_bytes", show_bytes(config.unknown_bytes), "at least 1 B")?;
    let window = show_bytes(config.window_bytes);
    require(config.window_bytes >= LINK_FLOOR, "window_bytes", window, format!("at least {}", show_bytes(LINK_FLOOR)))?;
    let allowed = format!("1 B to {}", show_bytes(MESSAGE_MOST));
    require((1..=MESSAGE_MOST).contains(&config.max_message), "max_message", show_bytes(config.max_message), allowed)?;
    let parts = [
        ("queue_bytes", config.queue_bytes),
        ("unknown_bytes", config.unknown_bytes),
        ("window_bytes", config.window_bytes),
        ("max_message", config.max_message),
    ];
    for (field, bytes) in parts {
        if bytes > config.memory_bytes {
            let allowed = format!("at most memory_bytes ({})", show_bytes(config.memory_bytes));
            return contradiction(field, show_bytes(bytes), allowed, "memory_bytes");
        }
    }
    require(config.half_open > 0, "half_open", config.half_open, "at least 1")?;
    require((1..=64).contains(&config.resolve_threads), "resolve_threads", config.resolve_threads, "1 to 64")?;
    for (field, count) in [("half_open_per_ip", config.half_open_per_ip), ("inbound_per_ip", config.inbound_per_ip)] {
        require(count != Some(0), field, 0, "at least 1, or \"off\"")?;
    }
    let own = config.own_threads();
    let fewest = own + THREADS_PER_SESSION;
    if let Some(threads) = config.max_threads {
        let allowed = format!("at least {fewest} ({own} of the node, 2 for one peer), or \"auto\"");
        require(threads >= fewest, "max_threads", threads, allowed)?;
    }
    let links = config.inbound.saturating_add(config.outbound);
    require(links > 0, "inbound", config.inbound, "at least 1, or outbound at least 1")?;
    let floor = links.saturating_mul(LINK_FLOOR);
    if floor > config.memory_bytes {
        let allowed = format!(
            "at least {}: {} for each of inbound ({}) + outbound ({}) links",
            show_bytes(floor),
            show_bytes(LINK_FLOOR),
            config.inbound,
            config.outbound
        );
        let other = if config.inbound >= config.outbound { "inbound" } else { "outbound" };
        return contradiction("memory_bytes", show_bytes(config.memory_bytes), allowed, other);
    }
    Ok(())
}

fn check_security(config: &Config) -> Result<(), Fault> {
    let security = &config.security;
    let (plain, open) = (security.channel == Channel::Plain, security.trust == TrustMode::Open);
    if !plain && !cfg!(feature = "tls") {
        let allowed = "\"plain\": this program was built without the feature `tls` of threadwire";
        return require(false, "security.channel", "\"tls\"", allowed);
    }
    for (field, file) in [("security.roots", &security.roots), ("security.certificate", &security.certificate)] {
        let Some(file) = file else { continue };
        let shown = || format!("{file:?}");
        require(!file.as_os_str().is_empty(), field, shown(), "a file, or \"off\"")?;
        if plain {
            return contradiction(field, shown(), "\"off\" without TLS".to_owned(), "security.channel");
        }
    }
    let allowed = || "nobody with trust = \"open\": set trust = \"listed\" if they are to be told apart".to_owned();
    if open && !security.trusted.is_empty() {
        let shown = format!("{} ids", security.trusted.len());
        return contradiction("security.trusted", shown, allowed(), "security.trust");
    }
    if let (true, Some(roots)) = (open, &security.roots) {
        return contradiction("security.roots", format!("{roots:?}"), allowed(), "security.trust");
    }
    let public = config.listen.iter().any(|addr| !addr.ip().is_loopback());
    for (gives_up, exposure, field, value) in
        [(plain, Exposure::Plain, "security.channel", "plain"), (open, Exposure::Open, "security.trust", "open")]
    {
        if public && gives_up && !security.public.contains(&exposure) {
            let better = if plain && field == "security.channel" { "tls" } else { "listed" };
            let allowed = format!(
                "\"{better}\", where `listen` can be reached from other machines; or acknowledge it: \
                 security.public = [\"{value}\"]"
            );
            return contradiction(field, format!("\"{value}\""), allowed, "listen");
        }
    }
    Ok(())
}

fn check_backoff(backoff: &Backoff) -> Result<(), Fault> {
    within("backoff.base", backoff.base, MS..=DAY)?;
    within("backoff.cap", backoff.cap, MS..=DAY)?;
    if backoff.cap < backoff.base {
        let allowed = format!("at least backoff.base ({})", show_duration(backoff.base));
        return contradiction("backoff.cap", show_duration(backoff.cap), allowed, "backoff.base");
    }
    require((0.0..=1.0).contains(&backoff.jitter), "backoff.jitter", backoff.jitter, "0 to 1")
}

fn check_tcp(tcp: &Tcp) -> Result<(), Fault> {
    if let Some(keepalive) = tcp.keepalive {
        within("tcp.keepalive", keepalive, 1000 * MS..=8 * HOUR)?;
        // The system counts it in seconds; what it would cut off is refused.
        require(keepalive.subsec_nanos() == 0, "tcp.keepalive", show_duration(keepalive), "whole seconds")?;
    }
    if let Some(user_timeout) = tcp.user_timeout {
        within("tcp.user_timeout", user_timeout, MS..=DAY)?;
    }
    let low_water_mark = tcp.notsent_low_water_mark;
    require(low_water_mark != Some(0), "tcp.notsent_low_water_mark", 0, "at least 1 B, or \"off\"")
}

fn check_threads(threads: &Threads) -> Result<(), Fault> {
    stack("threads.rx_stack", threads.rx_stack)?;
    stack("threads.rx_handler_stack", threads.rx_handler_stack)?;
    stack("threads.tx_stack", threads.tx_stack)
}

fn check_peers(peers: &[Peer]) -> Result<(), Fault> {
    let mut names = HashSet::new();
    let mut ids = HashSet::new();
    for (i, peer) in peers.iter().enumerate() {
        let field = |name| format!("peer[{i}].{name}");
        let name = || format!("{:?}", peer.name);
        require(!peer.name.is_empty(), field("name"), name(), "at least one character")?;
        require(names.insert(&peer.name), field("name"), name(), "a name that no peer above has")?;
        require(ids.insert(peer.id), field("id"), peer.id, "an id that no peer above has")?;
        require(
            peer.id.stands_for().is_none(),
            field("id"),
            peer.id,
            "the id of a peer: this one stands for an address",
        )?;
        require(!peer.addresses.is_empty(), field("addresses"), "[]", "at least one address")?;
        for address in &peer.addresses {
            let dialable = address.socket_addr().map_or(address.port() != 0, is_dialable);
            require(dialable, field("addresses"), address, DIALABLE)?;
        }
    }
    Ok(())
}

fn within(field: &str, value: Duration, range: RangeInclusive<Duration>) -> Result<(), Fault> {
    let allowed = || format!("{} to {}", show_duration(*range.start()), show_duration(*range.end()));
    if range.contains(&value) { Ok(()) } else { require(false, field, show_duration(value), allowed()) }
}

fn stack(field: &str, bytes: usize) -> Result<(), Fault> {
    require((STACK_MIN..=GIB).contains(&bytes), field, show_bytes(bytes), "64 KiB to 1 GiB")
}

/// Whether a connection to it can be tried: a certain machine, a certain port.
fn is_dialable(addr: SocketAddr) -> bool {
    addr.port() != 0 && !addr.ip().is_unspecified() && !addr.ip().is_multicast()
}

fn require(ok: bool, field: impl Into<String>, value: impl ToString, allowed: impl Into<String>) -> Result<(), Fault> {
    if ok {
        return Ok(());
    }
    Err(Fault { field: field.into(), value: value.to_string(), allowed: allowed.into(), other: None })
}

fn contradiction(field: &str, value: String, allowed: String, other: &'static str) -> Result<(), Fault> {
    Err(Fault { field: field.to_owned(), value, allowed, other: Some(other) })
}

const DIALABLE: &str = "an address to dial: no wildcard, no multicast, a port above 0";
const MS: Duration = Duration::from_millis(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Each may become known, and then has a place in the channel to the application.
const UNKNOWN_MOST: usize = 65_536;
/// Places in a message are counted in 32 bits.
const MESSAGE_MOST: usize = u32::MAX as usize;
const STACK_MIN: usize = 64 * KIB;
