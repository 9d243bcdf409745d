//! The fields that belong together: reconnect delays, socket options, stacks, the metrics endpoint, the program's log,
//! known peers.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: the defaults pass their own check.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;
use serde::Deserialize;

use super::units::{self, KIB, MIB};
use crate::address::Address;
use crate::ident::PeerId;

/// How long to wait between attempts to reach a peer; `[backoff]` in a file. Attempts never end by themselves.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a section [backoff]")]
#[non_exhaustive]
pub struct Backoff {
    /// How the delays grow. Default Fibonacci.
    pub policy: BackoffPolicy,

    /// The first delay; the first retry comes at a random moment of it. Default 100 ms.
    ///
    /// Raise it when many nodes lose the same peer at once.
    #[serde(deserialize_with = "units::duration")]
    pub base: Duration,

    /// No delay is longer than this. Default 30 s.
    ///
    /// Raise it (up to hours) for peers that stay away for long; lower it to find them sooner when they are back.
    #[serde(deserialize_with = "units::duration")]
    pub cap: Duration,

    /// The share of each delay that is random: with 0.5, a delay of 8 s becomes 4 to 8 s. From 0 to 1; default 0.5.
    ///
    /// Lower it for predictable delays; at 0 nodes that were cut together come back together.
    #[serde(deserialize_with = "units::fraction")]
    pub jitter: f64,
}

/// How the delays between reconnects grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum BackoffPolicy {
    /// Each delay is the sum of the two before: 1, 1, 2, 3, 5, 8 times `base`. Gentle: more attempts early.
    Fibonacci,
    /// Each delay is twice the one before: 1, 2, 4, 8 times `base`.
    Exponential,
}

/// What becomes of messages for a peer that is not connected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Offline {
    /// They wait, within the bounds of the peer's queue.
    #[default]
    Keep,
    /// They come back: what waits when the peer's session ends, and what is sent while there is none. What was numbered
    /// for the wire before is kept, until the peer answers or the resume window ends.
    Return,
}

/// Options of TCP sockets; `[tcp]` in a file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a section [tcp]")]
#[non_exhaustive]
pub struct Tcp {
    /// Send small packets at once instead of collecting them (TCP_NODELAY). Default true.
    ///
    /// The node collects messages by itself: switching it off only adds delay.
    pub nodelay: bool,

    /// Probe a silent connection after this long (SO_KEEPALIVE, whole seconds). Default 15 s; `None` (`"off"`): never.
    ///
    /// Heartbeats find dead peers already; probes also end connections of a process that is stopped, not dead.
    #[serde(deserialize_with = "units::duration_or_off")]
    pub keepalive: Option<Duration>,

    /// Close a connection whose bytes were not acknowledged by the other *system* for this long (TCP_USER_TIMEOUT,
    /// where the system has it). Default 30 s; `None` (`"off"`): the system's own patience, often a quarter of an hour.
    #[serde(deserialize_with = "units::duration_or_off")]
    pub user_timeout: Option<Duration>,

    /// Bytes that may wait unsent in the system's buffer before a write waits (TCP_NOTSENT_LOWAT, where the system has
    /// it). Default 128 KiB; `None` (`"off"`): the whole buffer.
    ///
    /// Lower it so that urgent messages overtake sooner on slow paths. While a connection takes more than
    /// 192 KiB in half a millisecond, 1 MiB may wait: a fast path is let have more, as long as it is fast.
    #[serde(deserialize_with = "units::bytes_or_off")]
    pub notsent_low_water_mark: Option<u32>,
}

/// Stacks of the threads of each peer, in bytes; `[threads]` in a file. The system commits a stack as it is used.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a section [threads]")]
#[non_exhaustive]
pub struct Threads {
    /// Stack of a receiver without a handler. Default 256 KiB.
    #[serde(deserialize_with = "units::bytes")]
    pub rx_stack: usize,

    /// Stack of a receiver that runs the application's handler. Default 2 MiB.
    ///
    /// Raise it for handlers that recurse or hold large values: overflowing a stack ends the process.
    #[serde(deserialize_with = "units::bytes")]
    pub rx_handler_stack: usize,

    /// Stack of a sender. Default 128 KiB.
    #[serde(deserialize_with = "units::bytes")]
    pub tx_stack: usize,
}

/// What a program logs, and where to; `[log]` in a file.
///
/// For programs that read their logger's settings here, as the example `node` does. The library logs through the [`log`]
/// crate and sets up no logger: nothing in it reads this.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a section [log]")]
#[non_exhaustive]
pub struct Log {
    /// The least important lines that are written: `off`, `error`, `warn`, `info`, `debug` or `trace`. Default `info`.
    ///
    /// Raise it to `warn` to hear of trouble alone; lower it to `debug` to find the cause of some.
    #[serde(deserialize_with = "units::level")]
    pub level: LevelFilter,

    /// The file that lines are appended to. Default `None` (`"off"`): they go to standard error.
    #[serde(deserialize_with = "units::path_or_off")]
    pub file: Option<PathBuf>,
}

/// Where metrics are served to scrapers; `[metrics]` in a file.
///
/// The endpoint is plain HTTP, and tells whoever reaches it: addresses, ids and payloads are not among what it tells,
/// counts are. See [`Node::metrics_addr`](crate::Node::metrics_addr).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a section [metrics]")]
#[non_exhaustive]
pub struct Metrics {
    /// The address of the endpoint, `http://ADDRESS/metrics`, such as `127.0.0.1:9100`. Port 0 lets the system choose.
    /// Default `None` (`"off"`): there is none, and no thread for it.
    ///
    /// Set it to a loopback address for a scraper on this machine. One that other machines reach needs nothing more and
    /// is a warning in the log: let a firewall or a proxy see to who may read.
    #[serde(deserialize_with = "units::addr_or_off")]
    pub listen: Option<SocketAddr>,
}

/// A peer to dial from the start and to keep; a `[[peer]]` in a file. All three fields are needed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a section [[peer]]")]
#[non_exhaustive]
pub struct Peer {
    /// A name for people, and for `Node::peer_named`; each name once.
    pub name: String,

    /// Who it must prove to be: 64 hexadecimal digits; each id once.
    pub id: PeerId,

    /// Where it may be, tried in this order, but first where it answered last: IP addresses or host names, with ports. At
    /// least one. A name is looked up afresh each time the peer is dialled, and all addresses it has then are tried.
    #[serde(deserialize_with = "units::addresses")]
    pub addresses: Vec<Address>,
}

impl Peer {
    /// A peer to dial from the start and to keep.
    pub fn new(name: impl Into<String>, id: PeerId, addresses: impl Into<Vec<Address>>) -> Self {
        Self { name: name.into(), id, addresses: addresses.into() }
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            policy: BackoffPolicy::Fibonacci,
            base: Duration::from_millis(100),
            cap: Duration::from_secs(30),
            jitter: 0.5,
        }
    }
}

impl Default for Tcp {
    fn default() -> Self {
        Self {
            nodelay: true,
            keepalive: Some(Duration::from_secs(15)),
            user_timeout: Some(Duration::from_secs(30)),
            notsent_low_water_mark: Some(128 * KIB as u32),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: LevelFilter::Info, file: None }
    }
}

impl Default for Threads {
    fn default() -> Self {
        Self { rx_stack: 256 * KIB, rx_handler_stack: 2 * MIB, tx_stack: 128 * KIB }
    }
}
