//! What a direct sender is given, and what it gives out through.
//!
//! Owns: the caller's ends of its channels. Threads: the caller's. Locks: none. Blocks on: nothing.
//! Upholds: everything but the messages and the configuration can be left out.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, never};

use super::destination::DirectReceiver;
use super::incoming::IncomingSender;
use super::metrics::NetMetrics;
use super::peer_data::PeersMap;
use super::transfer::{DirectMessage, TransferResult};
use crate::config::Config;
use crate::connections::{Resolver, SystemResolver};
use crate::engine::Event;
use crate::handshake::{HandshakePolicy, Identity};
use crate::session::OutgoingTaps;
use crate::transport::Transport;
use crate::watch::Watcher;

/// Messages under way whose results somebody wants.
const UNDER_WAY: usize = 65_536;
/// What a shutdown by the signal may take.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// The inputs and outputs of a [`DirectSender`](super::DirectSender). [`DirectInputs::new`] takes the two that it cannot
/// do without; the others are fields to be set.
///
/// | parameter of `run_direct_sender` there | here | when a channel is full |
/// |---|---|---|
/// | `shutdown_rx` | [`shutdown`](Self::shutdown), [`shutdown_time`](Self::shutdown_time) | |
/// | `network_config_rx` | [`config`](Self::config) | the latest counts; what was not looked at is replaced |
/// | `transport`, and the credential in the configuration | [`transport`](Self::transport), [`credential`](Self::credential) | |
/// | `metrics` | [`metrics`](Self::metrics) | |
/// | `messages_rx` | [`messages`](Self::messages) | its senders wait: it is the caller's to bound |
/// | `outgoing_reply_tx` | [`outgoing`](Self::outgoing) | what does not fit a tap is not announced there, and counted |
/// | `incoming_reply_tx` | [`incoming`](Self::incoming) | what comes waits as credit, and then at the other side |
/// | `peers_rx` | [`peers`](Self::peers) | the latest counts |
/// | the peer events inside | [`events`](Self::events) | counted, and told as [`Event::Missed`] with the next one |
/// | the transfer results inside | [`results`](Self::results) | no more messages are taken until some are |
#[non_exhaustive]
pub struct DirectInputs {
    /// The shutdown signal: when it fires or disconnects, what is in the channel of messages is taken, everything is
    /// drained for up to [`DirectInputs::shutdown_time`], every peer is told goodbye, every thread ends. By default it
    /// never comes: see [`DirectSender::shutdown`](super::DirectSender::shutdown).
    pub shutdown: Receiver<()>,

    /// How long a shutdown by that signal may take. Default 10 s.
    pub shutdown_time: Duration,

    /// The configuration, and each change of it: what it says at the start must be allowed; a later one that is not is
    /// refused whole, with a line in the log, and the one before holds.
    pub config: Watcher<Config>,

    /// Who this is: the identity that every handshake proves. Default: as the configuration says (`security.key`,
    /// `data_dir`), or one for this life of the process.
    pub credential: Option<Identity>,

    /// The transport. Default TCP; TLS goes around either, unless the configuration says plain.
    pub transport: Option<Arc<dyn Transport>>,

    /// Where names are looked up. Default the system's.
    pub resolver: Arc<dyn Resolver>,

    /// Who is let in of those that the configuration trusts. Default everybody.
    pub policy: Option<Arc<dyn HandshakePolicy>>,

    /// Where everything is counted.
    pub metrics: NetMetrics,

    /// The messages to be sent: to whom, what, and when the caller made it. Age and expiry count from that time, however
    /// long the message waited in the channel.
    ///
    /// They are taken in order and offered to their peers without a wait. A peer that is not connected has its messages
    /// queued, one that is not known too, within their bounds; what does not fit comes back as a result.
    /// Give the channel a bound: while results wait to be taken, and nothing more is taken for it, that bound is what
    /// holds. When all its senders are gone the sender goes on, for what comes in.
    pub messages: Receiver<(DirectReceiver, DirectMessage, Instant)>,

    /// Where each message that is accepted is announced to other parts of the process: subscribe as often as wanted.
    pub outgoing: OutgoingTaps,

    /// Where the messages go that come in, answers and others. Default nobody: they are rejected.
    pub incoming: IncomingSender,

    /// Which peers are to be kept connected, and where they are, beside those of the configuration. A peer with an empty
    /// list is known, and nowhere to be dialled. Default none.
    pub peers: Option<Watcher<PeersMap>>,

    /// What happens to connections and to the senders of peers, [`PeerEvent`](super::PeerEvent)s among it. Default
    /// nobody is told.
    pub events: Option<Sender<Event>>,

    /// What became of each message. By default nobody is told: what fails is counted
    /// ([`MetricsSnapshot::undelivered_missed`](crate::metrics::MetricsSnapshot::undelivered_missed)) and in the log.
    pub results: Option<Sender<TransferResult>>,

    /// Most messages whose results are still to come or wait to be taken: no further message is taken then. At least 1,
    /// default 65,536.
    pub under_way: usize,
}

impl DirectInputs {
    /// Inputs with everything else at its default.
    pub fn new(
        config: impl Into<Watcher<Config>>,
        messages: Receiver<(DirectReceiver, DirectMessage, Instant)>,
    ) -> Self {
        Self {
            shutdown: never(),
            shutdown_time: SHUTDOWN,
            config: config.into(),
            credential: None,
            transport: None,
            resolver: Arc::new(SystemResolver),
            policy: None,
            metrics: NetMetrics::new(),
            messages,
            outgoing: OutgoingTaps::new(),
            incoming: IncomingSender::nobody(),
            peers: None,
            events: None,
            results: None,
            under_way: UNDER_WAY,
        }
    }
}

impl fmt::Debug for DirectInputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectInputs")
            .field("config", &self.config)
            .field("incoming", &self.incoming)
            .finish_non_exhaustive()
    }
}
