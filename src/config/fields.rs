//! The fields of a configuration: meaning, unit, default, and what to raise or lower each for.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: the defaults pass their own check.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::sections::{Backoff, Log, Metrics, Offline, Peer, Tcp, Threads};
use super::security::{Channel, Security};
use super::units::{self, GIB, KIB, MIB};

/// All settings of a node.
///
/// Start from [`Config::default`] or [`Config::loopback`] and set fields, or read a file with [`Config::from_file`].
/// In a file, durations are texts with a unit (`"100 ms"`, `"5 s"`, `"5 min"`, `"1 h"`), byte sizes are whole numbers
/// or texts with a unit (`"256 KiB"`, `"8 MiB"`, `"1 GiB"`), and `"off"` stands for `None`. A field that a file leaves
/// out keeps its default; a field that nobody knows is an error.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Config {
    /// Where other nodes can connect, any number of addresses; in a file one text, or a list. Port 0 lets the system
    /// choose. Empty (`[]` or `"off"`): this node only dials.
    ///
    /// Default `127.0.0.1:50005`, which no other machine reaches. Set `0.0.0.0:50005` to be reached from the network,
    /// and say in `security` whom you trust; beside it `[::]:50005` to be reached over IPv6 as well: an IPv6 address
    /// takes IPv6 alone.
    #[serde(deserialize_with = "units::addrs_or_off")]
    pub listen: Vec<SocketAddr>,

    /// The address that peers are told to dial this node at, when it knows better than they can see: behind a port
    /// forwarding, or when `listen` is a wildcard. `None` (`"off"`, the default) tells them the first address of
    /// `listen` that is no wildcard, with the port the system chose; nothing if there is none.
    #[serde(deserialize_with = "units::addr_or_off")]
    pub advertise: Option<SocketAddr>,

    /// The network's name, 1 to 64 bytes. Nodes of different networks refuse each other in the handshake.
    ///
    /// Default `threadwire`. Give every deployment its own, so that a test node never joins production.
    pub network: String,

    /// Folder of what must survive a restart: the identity key. Relative to the working directory; made if missing.
    ///
    /// Default `None` (leave it out of the file): the key, and so the node's `PeerId`, is new at each start.
    pub data_dir: Option<PathBuf>,

    /// Longest wait for the addresses of a host name that is dialled. Default 5 s.
    ///
    /// The system's own lookup may take longer, and nothing can stop it: its thread stays held until it ends, see
    /// `resolve_threads`. Raise it where the name servers are slow; lower it to try a peer's next address sooner.
    #[serde(deserialize_with = "units::duration")]
    pub resolve_timeout: Duration,

    /// Longest wait for a dialled connection to open. Default 5 s.
    ///
    /// Raise it for slow or lossy paths; lower it to try a peer's next address sooner.
    #[serde(deserialize_with = "units::duration")]
    pub connect_timeout: Duration,

    /// Longest time for a whole handshake, on either side, however its bytes trickle. Default 5 s.
    ///
    /// Raise it for high latency; lower it to shed silent strangers sooner.
    #[serde(deserialize_with = "units::duration")]
    pub handshake_timeout: Duration,

    /// How often a heartbeat is sent: a silent connection shows life by it, and both sides learn the round trip. Default
    /// 10 s.
    ///
    /// Lower it to keep narrow NAT entries alive or to notice dead peers sooner; shorter than `idle_timeout`.
    #[serde(deserialize_with = "units::duration")]
    pub heartbeat: Duration,

    /// After this long without a whole frame from the peer, its session is closed. Default 30 s.
    ///
    /// At least two or three heartbeats *of the other side*. Lower it to reconnect sooner; raise it for paths that
    /// stall. It is the deadline of each frame too, however its bytes trickle: a frame has at most 64 KiB, so that the
    /// slowest path that can carry big messages is 64 KiB in this time (2.2 KiB/s by default).
    #[serde(deserialize_with = "units::duration")]
    pub idle_timeout: Duration,

    /// A write that makes no progress for this long ends the session. Default 20 s.
    ///
    /// Credit keeps a slow *application* out of this: only a dead path or a frozen process gets here.
    #[serde(deserialize_with = "units::duration")]
    pub write_timeout: Duration,

    /// A connected peer is told of as slow ([`Event::PeerSlow`](crate::Event::PeerSlow)) when the oldest message that
    /// waits for it has waited this long, or its queue has been more than three quarters full for as long. Default 5 s,
    /// less than `write_timeout`. Nothing is closed or dropped for it.
    ///
    /// Lower it to hear of slow peers sooner; raise it where bursts may take that long.
    #[serde(deserialize_with = "units::duration")]
    pub slow_after: Duration,

    /// A message handler that runs longer than this is reported by name. Default 30 s. Nothing is closed for it.
    ///
    /// Lower it to find slow handlers; raise it when long work in a handler is meant.
    #[serde(deserialize_with = "units::duration")]
    pub handler_watchdog: Duration,

    /// A connection must have held this long before the delays between reconnects start over. Default 10 s.
    ///
    /// Raise it for peers that accept and drop at once.
    #[serde(deserialize_with = "units::duration")]
    pub stable_after: Duration,

    /// How long a link without a connection keeps what it has sent and not seen acknowledged. Default 5 min.
    ///
    /// A message that was written and not acknowledged when it ends is returned as *unknown*. Raise it to survive
    /// longer cuts; lower it to learn sooner.
    #[serde(deserialize_with = "units::duration")]
    pub resume_window: Duration,

    /// Longest wait for company before an acknowledgement travels alone. Default 5 ms, at most 1 s.
    ///
    /// Lower it for faster receipts on quiet links; raise it for fewer small packets. Whoever waits on a receipt asks
    /// for it at once, whatever this says.
    #[serde(deserialize_with = "units::duration")]
    pub ack_delay: Duration,

    /// How long a blocking send waits for room before it gives the message back. Default 30 s.
    #[serde(deserialize_with = "units::duration")]
    pub send_deadline: Duration,

    /// Messages that may wait for one peer, not yet numbered for the wire. Default 65,536.
    ///
    /// Bounds the bookkeeping of many small messages; `queue_bytes` bounds the rest.
    #[serde(deserialize_with = "units::count")]
    pub queue_messages: usize,

    /// What becomes of messages for a peer that is not connected: [`Offline::Keep`] or [`Offline::Return`]. Default keep.
    ///
    /// Return them where a late message is worth less than an early error.
    pub offline: Offline,

    /// How long a message is wanted that does not say so itself, or off: the bound on the age of what waits. Default
    /// off.
    ///
    /// Set it where old messages are worth nothing: they come back instead of waiting for a peer that is away.
    #[serde(deserialize_with = "units::duration_or_off")]
    pub message_ttl: Option<Duration>,

    /// Bytes that may wait for one peer, not yet numbered for the wire. Default 8 MiB.
    ///
    /// Raise it to ride out longer bursts and cuts; lower it to feel a slow peer sooner. A single larger message is
    /// taken when its lane is empty.
    #[serde(deserialize_with = "units::bytes")]
    pub queue_bytes: usize,

    /// Questions to one peer that wait for their answers, or whose answers nobody has taken. Default 65,536.
    ///
    /// Raise it for many questions in flight over long paths. Answers that nobody takes count up to `queue_bytes`; beyond
    /// that they keep further answers of that peer from coming.
    #[serde(deserialize_with = "units::count")]
    pub requests: usize,

    /// Most peers that messages wait for and that the node does not know yet: never added, never connected. Default 64;
    /// 0: none, an unknown id is refused at once.
    ///
    /// Handles on such peers count too, as long as they are held. A newcomer beyond it is refused. Raise it where ids
    /// are learnt long before addresses.
    #[serde(deserialize_with = "units::count")]
    pub unknown_peers: usize,

    /// Bytes that may wait for one such peer, over all lanes, within `queue_bytes` and `queue_messages`. Default 1 MiB.
    ///
    /// A message that does not fit is refused, or follows its policy. `unknown_peers` times this is what ids that
    /// nobody answers to can make the node hold.
    #[serde(deserialize_with = "units::bytes")]
    pub unknown_bytes: usize,

    /// How long a message waits for such a peer to become known, before it comes back. Default 30 s.
    ///
    /// Raise it where peers are added or dial long after they are first sent to; lower it to learn sooner of ids that
    /// do not exist.
    #[serde(deserialize_with = "units::duration")]
    pub unknown_timeout: Duration,

    /// Bytes of one link that may be sent and not acknowledged, kept to be sent again. Default 4 MiB, at least 256 KiB.
    ///
    /// Raise it above bandwidth times round trip for long fast paths (1 Gbit/s at 40 ms: 5 MB).
    #[serde(deserialize_with = "units::bytes")]
    pub window_bytes: usize,

    /// Longest message this node sends or takes, in bytes; less than 4 GiB. Default 64 MiB.
    ///
    /// Lower it to what the application really sends: it bounds what one peer can make this node hold.
    #[serde(deserialize_with = "units::bytes")]
    pub max_message: usize,

    /// The memory that all links share: what waits, what is kept, what is being put together, and without a handler what
    /// may come and wait; the shipped `config.toml` has the formula. Default 1 GiB.
    ///
    /// Raise it for many peers with much to say. When it is used up, senders wait or are refused as if the peer's queue
    /// were full. Must cover `max_message`, `queue_bytes`, `window_bytes`, and 256 KiB for each of `inbound` + `outbound` links.
    #[serde(deserialize_with = "units::bytes")]
    pub memory_bytes: usize,

    /// Most peers that dialled us at one time. Default 512. Each costs two threads.
    #[serde(deserialize_with = "units::count")]
    pub inbound: usize,

    /// Most peers that we dialled at one time, dials under way included. Default 64. Each costs two threads. Further
    /// peers that are to be kept wait for a place.
    #[serde(deserialize_with = "units::count")]
    pub outbound: usize,

    /// Most connections that others opened and have not proven yet. Default 256. They cost no thread.
    ///
    /// At the bound a newcomer is let in, and the oldest of the most crowded neighbourhood (IPv4 /24, IPv6 /48) is
    /// sent away. Raise it for nodes that many peers reach at once, as after a restart.
    #[serde(deserialize_with = "units::count")]
    pub half_open: usize,

    /// Most host names that are looked up at one time. Default 4. Each costs a thread, started when it is needed.
    ///
    /// When all are held by lookups that do not end, dials of other names fail at once. Raise it for many peers with
    /// names.
    #[serde(deserialize_with = "units::count")]
    pub resolve_threads: usize,

    /// Most unproven connections from one IP address. Default `None` (`"off"`): bounded by `half_open` alone.
    ///
    /// Set it (4 is plenty for one node) where strangers can reach this node; leave it off where many nodes share an
    /// address: one machine, one NAT.
    #[serde(deserialize_with = "units::count_or_off")]
    pub half_open_per_ip: Option<usize>,

    /// Most connections that one IP address has with us in both states, unproven and proven, not counting those we
    /// opened. Default `None` (`"off"`): bounded by `inbound` alone.
    ///
    /// Set it where strangers can reach this node, so that no single machine takes all places; leave it off where many
    /// nodes share an address.
    #[serde(deserialize_with = "units::count_or_off")]
    pub inbound_per_ip: Option<usize>,

    /// Most threads of this node: four of its own (five with a metrics endpoint), and two for each connection, dials under way included. Default
    /// `None` (`"auto"`): as many as `inbound` and `outbound` ask for.
    ///
    /// Never more than three quarters of what the system's memory maps allow (Linux: `vm.max_map_count`, four maps for
    /// each thread): beyond that it would end the process. Whoever comes when it is used up is refused and told so.
    #[serde(deserialize_with = "units::count_or_auto")]
    pub max_threads: Option<usize>,

    /// What protects connections, and whom this node trusts.
    pub security: Security,

    /// Delays between reconnects.
    pub backoff: Backoff,

    /// Options of TCP sockets.
    pub tcp: Tcp,

    /// Stacks of the threads of each peer.
    pub threads: Threads,

    /// Where metrics are served to scrapers. Default nowhere.
    pub metrics: Metrics,

    /// What the program logs, and where to: for programs that ask for it, not for the node.
    pub log: Log,

    /// Peers to dial from the start and to keep; `[[peer]]` in a file. Default none.
    #[serde(rename = "peer")]
    pub peers: Vec<Peer>,
}

impl Config {
    /// The defaults, listening on a port of 127.0.0.1 that the system chooses: for tests, examples, first steps.
    pub fn loopback() -> Self {
        Self { listen: vec![(Ipv4Addr::LOCALHOST, 0).into()], ..Self::default() }
    }

    /// The same over plain TCP, where messages can be read and changed on the way: see
    /// [the threat model](crate::threats).
    #[must_use]
    pub fn plain(mut self) -> Self {
        self.security.channel = Channel::Plain;
        self
    }

    /// Threads of the node without any peer.
    pub(crate) fn own_threads(&self) -> usize {
        OWN_THREADS + usize::from(self.metrics.listen.is_some())
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![(Ipv4Addr::LOCALHOST, 50005).into()],
            advertise: None,
            network: "threadwire".to_owned(),
            data_dir: None,
            resolve_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(5),
            heartbeat: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(20),
            slow_after: Duration::from_secs(5),
            handler_watchdog: Duration::from_secs(30),
            stable_after: Duration::from_secs(10),
            resume_window: Duration::from_secs(5 * 60),
            ack_delay: Duration::from_millis(5),
            send_deadline: Duration::from_secs(30),
            queue_messages: 65_536,
            offline: Offline::Keep,
            message_ttl: None,
            queue_bytes: 8 * MIB,
            requests: 65_536,
            unknown_peers: 64,
            unknown_bytes: MIB,
            unknown_timeout: Duration::from_secs(30),
            window_bytes: 4 * MIB,
            max_message: 64 * MIB,
            memory_bytes: GIB,
            inbound: 512,
            outbound: 64,
            half_open: 256,
            resolve_threads: 4,
            half_open_per_ip: None,
            inbound_per_ip: None,
            max_threads: None,
            security: Security::default(),
            backoff: Backoff::default(),
            tcp: Tcp::default(),
            threads: Threads::default(),
            metrics: Metrics::default(),
            log: Log::default(),
            peers: Vec::new(),
        }
    }
}

/// Memory that each link may count on: the least `window_bytes`, and each link's share of `memory_bytes`.
pub(crate) const LINK_FLOOR: usize = 256 * KIB;

/// Threads of a node without any peer and without a metrics endpoint: one that accepts, one that supervises, two workers.
const OWN_THREADS: usize = 4;
/// Threads of a session.
pub(crate) const THREADS_PER_SESSION: usize = 2;
