#![doc = include_str!("../README.md")]
//!
//! # A tour of the interface
//!
//! **Start.** [`Node::builder`] takes a [`Config`] ([`Config::from_file`], [`Config::default`], [`Config::loopback`]),
//! and what only code can give: a message handler ([`NodeBuilder::handler`]), who may connect
//! ([`NodeBuilder::handshake_policy`], [`NodeBuilder::handshake_payload`]), an identity ([`NodeBuilder::identity`]), a
//! transport, a resolver, the program's own shutdown signal ([`NodeBuilder::shutdown_signal`]). [`NodeBuilder::start`]
//! gives the [`Node`], or says what is wrong ([`error::StartError`]); [`Node::self_check`] what the system may fall
//! short of.
//!
//! **Connect.** [`Node::add_peer`] keeps a peer connected, [`Node::remove_peer`] ends that; [`Node::connect`] dials an
//! [`Address`] once; [`Node::disconnect`] ends one session. [`Node::wait_connected`] waits. A [`PeerId`] names a peer
//! wherever it is; [`Node::peer`] and [`Node::peer_named`] give its [`PeerHandle`]. [`NodeBuilder::peers_map`] keeps the
//! peers of a map connected that changes while the node runs ([`Watch`]).
//!
//! **Send.** [`PeerHandle::send`] waits for room, [`PeerHandle::try_send`] does not, [`PeerHandle::send_timeout`] as
//! long as you say; [`PeerHandle::send_kind`] adds a number for the receiver, [`PeerHandle::send_msg`] encodes a type.
//! [`Node::send`] looks the peer up first, [`Node::send_to`] and its kin take a [`Destination`]: an id, a name, or an
//! address; [`Node::peer_at`] gives an [`AddrHandle`] on whoever proves itself there. A [`SendError`] gives the message
//! back.
//!
//! **Send to many.** [`Node::broadcast`] offers a message to every connected peer of a set ([`To`]) and says what each
//! answered ([`Broadcast`]); [`Node::anycast`] gives it to any one of them. Neither waits for anybody.
//! [`Node::broadcast_with`] takes [`SendOptions`] and gives a [`Receipt`] for each peer.
//!
//! **Ask.** [`PeerHandle::request`] waits for the answer, [`PeerHandle::ask`] gives a [`Pending`] to wait for later,
//! [`PeerHandle::ask_into`] has the answers of many questions come through one channel ([`Answers`]);
//! [`PeerHandle::request_msg`] encodes and decodes types. The other side answers by [`Message::reply`], or later and from
//! any thread by [`Message::responder`]. A question ends once, with an [`Answer`] or with a [`error::RequestError`]:
//!
//! ```
//! use std::time::Duration;
//! use threadwire::{Config, Node, SendOptions, error::RequestError};
//!
//! const DOUBLE: u16 = 1;
//! let patience = Duration::from_secs(5);
//! let bob = Node::builder().config(Config::loopback()).on_msg(DOUBLE, |_, number: u32, message| {
//!     match number.checked_mul(2) {
//!         Some(double) => drop(message.reply_msg(&double)), // never refused: no longer than its question
//!         None => message.responder().fail(7),              // or answers from another thread
//!     }
//! });
//! let bob = bob.start()?;
//! let alice = Node::builder().config(Config::loopback()).start()?;
//! alice.add_peer(bob.id(), bob.local_addr())?;
//! let to_bob = alice.wait_connected(bob.id(), patience)?;
//!
//! let options = SendOptions::new().kind(DOUBLE);
//! assert_eq!(to_bob.request_msg_with::<_, u32>(&21u32, patience, &options)?, 42);
//! let (one, other) = (u32::MAX.to_le_bytes(), 4u32.to_le_bytes());
//! let pending = [to_bob.ask_with(one, patience, &options)?, to_bob.ask_with(other, patience, &options)?];
//! let [failed, answered] = pending.map(|pending| pending.wait());
//! assert_eq!(failed.unwrap_err(), RequestError::Failed(7));
//! assert_eq!(answered?.decode::<u32>()?, 8);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **Kinds.** [`NodeBuilder::kind`] gives a number a name, a bound and a [`Priority`] ([`Kind`]), [`NodeBuilder::on`] and
//! [`NodeBuilder::on_msg`] a handler of its own; what nobody handles is rejected to its sender.
//!
//! **Receive.** A handler gets each [`Message`] where it arrives. Without one, [`Node::recv`] and
//! [`Node::recv_timeout`] give single messages, [`Node::incoming`] a channel of [`Batch`]es. [`Message::payload`],
//! [`Message::decode`], [`Message::from`], [`Message::possible_repeat`]; [`Message::reply`] answers,
//! [`Message::into_owned`] keeps.
//!
//! **Watch.** [`Node::events`] tells each [`Event`], [`Node::peers`] what is known of each peer ([`PeerInfo`]),
//! [`Node::sessions`] every connection ([`SessionInfo`]), [`PeerHandle::stats`] what became of a peer's messages
//! ([`LinkStats`]), [`Node::metrics`] all counts by cause ([`metrics::MetricsSnapshot`]); a scraper reads them at
//! [`Node::metrics_addr`]. [`Node::subscribe_outgoing`] tells other parts of the process of each message that is sent.
//!
//! **Without a node.** A [`DirectSender`](direct::DirectSender) is driven by channels alone: messages go in, results and
//! what comes go out; [`direct::DirectInputs`] lists them.
//!
//! **Change.** [`Node::reload`] puts another configuration to use while the node runs, whole or not at all, and says what
//! has changed ([`Reload`]) or what is wrong with it ([`error::ReloadError`]); [`Node::config`] is the one that holds.
//!
//! **End.** [`Node::shutdown`] drains, says goodbye and ends every thread by a deadline; its [`ShutdownReport`] says
//! what it left. [`Node::wait_shutdown`] waits for a shutdown that somebody else asked for.
//!
//! # Where the parts come from
//!
//! Threadwire grew from five documents of other systems: a connections manager, a session, a peer sender, a direct
//! sender and a transport layer. What they name, and where it is here:
//!
//! | there | here | deviation, and why |
//! |---|---|---|
//! | `ConnectionsManager`, which "has no proper state" | [`Node::add_peer`], [`Node::connect`] and their kin | it owns no state of a peer here either; see [`invariants`] |
//! | "registered into the system registry", `do_send`, `try_send`, `send` | [`Node`], [`PeerHandle`]; [`PeerHandle::try_send`], [`PeerHandle::send`] | handles instead of a global registry; nothing is sent and forgotten |
//! | server address `127.0.0.1:50005` | [`Config::listen`](config::Config::listen) by default | any number of addresses |
//! | `InboundTcpConnect(TcpStream)` | the `acceptor` thread | a place is reserved before anything is spent on it |
//! | `OutboundTcpConnect(SocketAddr)`, "as many TCP clients as requested" | [`Node::connect`], [`Node::add_peer`], [`Node::remove_peer`], [`Node::disconnect`] | dialled once, or kept; as many as [`Config::outbound`](config::Config::outbound) allows |
//! | `GetConfig -> Result<Config, io::Error>` | [`Config::from_file`], [`error::ConfigError`] | the error names file, line, field, value and what is allowed |
//! | `ConnectAddr(SocketAddr) -> Result<TcpStream, ResolverError>` | [`Resolver`], [`error::DialError`], [`error::DialStage`], [`error::DialCause`] | an error for each address that was tried |
//! | "If an error is returned, do nothing but log it" | [`Event::DialFailed`], [`metrics::DialFailures`] | a failed dial is an event and a count |
//! | `Create(TcpStream, SessionType)` | a connection and its place go to the registry together | the place is given back by its guard |
//! | Witnet's `Broadcast` to consolidated sessions, `Anycast` to a random one | [`Node::broadcast`], [`Node::anycast`] | an outcome for each peer, an error where there is none; a peer without room is passed over |
//! | session: `local_addr`, `remote_addr`, `session_type`, status | [`PeerInfo`], [`SessionInfo`], [`ident::SessionKind`], [`ident::SessionStatus`] | beside them round trip, queue, next dial |
//! | `handshake_timeout` | [`Config::handshake_timeout`](config::Config::handshake_timeout) | one deadline for the whole handshake |
//! | `P2PCodec`, `FramedRead`, `FramedWrite` | [`wire`] | lengths are checked before anything is reserved |
//! | `Register`, `Unregister`, `SessionsResult` | a place from accept or dial to the end, counted and released by a guard | a session that dies cannot forget to unregister |
//! | `PeerSender`: its eleven fields, each with its counterpart there | [`direct::PeerSender`] | a handle on the link of one peer, which outlives its connections; [`PeerHandle`] and [`PeerInfo`] of a node say the same |
//! | `ConnectionWrapper`: remote host id, connection role | [`direct::ConnectionInfo`], [`direct::ConnectionRole`] | the host id is the digest of the key that was proven |
//! | `run`: connect, then serve shutdown, outgoing and incoming at once | the threads `tx-<peer>` and `rx-<peer>` | two blocking threads instead of a poll over futures |
//! | `connect_to_peer`: Fibonacci backoff to an hour, "retries indefinitely", a warning for each failure | [`config::Backoff`], [`error::ConnectError`] | 30 s by default, an hour possible; a line in the log for each change, not for each failure; typed errors |
//! | `start_transfer_message`: returns at once if it is not connected | [`direct::PeerSender::start_transfer_message`], [`PeerHandle::send`] | queued, never dropped |
//! | transfer result `(Result<usize, TransportError>, NetMessage, Instant)`, `handle_transfer_result` | [`direct::TransferResult`], [`direct::TransportError`], [`Timing`] | handed over, not only written: bytes, queued for, written after, done after; the message comes back if it did not arrive; a transfer that failed ends no connection |
//! | `receive_message` is false when decoding fails or the consumer is gone | [`Message::decode`], [`WireError`](wire::WireError), [`error::CloseReason::ConsumerGone`] | a body that does not decode ends nothing; a broken frame ends the session; without a consumer messages come back, and the session ends |
//! | `NetMessage` (id, label, data) | [`Message::number`], [`Message::kind`], [`Message::payload`]; [`direct::DirectMessage`] | numbers are given for the wire, per lane; the application's own id does not travel |
//! | `NetMetrics`: sent, received, errors; optional | [`direct::NetMetrics`], [`metrics::MetricsSnapshot`], [`metrics::Traffic`] | always on, by cause |
//! | its delivery phases: outgoing buffer, outgoing transfer, incoming buffer; by message type, direct or broadcast | [`metrics::Phases`], [`metrics::MetricsSnapshot::ack_delay`] | counts exact, times from samples; of messages that come it is not known whether others were sent them too |
//! | `run_direct_sender` and its eight parameters | [`direct::run_direct_sender`], [`direct::DirectSender`]; a row for each at [`direct::DirectInputs`] | every channel bounded, with what happens when it is full; results of messages are an output |
//! | `messages_rx`: `(DirectReceiver, NetMessage, Instant)`, unbounded | [`direct::DirectInputs::messages`], [`SendOptions::created_at`] | the caller bounds it; expiry and timing count from the caller's timestamp |
//! | `incoming_reply_tx: IncomingSender` | [`direct::IncomingSender`] | a channel of batches, bounded by credit, or a handler |
//! | `network_config_rx`, `peers_rx` | [`direct::DirectInputs::config`], [`direct::DirectInputs::peers`], [`Watch`] | the synchronous kind |
//! | `NetTransport`, `NetListener`, `NetIncomingRequest`, `NetConnection` | [`transport::Transport`], [`transport::Listener`], [`transport::PendingConnection`], [`transport::Connection`] | halves, so that two threads can block |
//! | `NetCredential` | [`handshake::Identity`], `transport::tls::Credential`, [`transport::Trust`] | possession of the key is proven in every handshake |
//! | tracing "with contextual information such as peer ID, message IDs" | log targets and levels: [`invariants`] | the `log` crate; a meaning for each level |
//! | `shutdown_rx` of every part | [`direct::DirectInputs::shutdown`], [`NodeBuilder::shutdown_signal`], [`Node::shutdown`] | one shutdown, by a deadline, with a report |
//! | `ConfigManager`, `network_config_rx`: the live configuration | [`Node::reload`], [`Node::config`] | validated whole, refused whole; says what changed and who had to go |
//! | `PeerEvent::{AddrsResolved, SenderStopped}`, by id and address | [`PeerEvent`], as [`Event::Peer`] | with the sender's generation and the reason: a late event removes no newer sender |
//! | `peers_rx: watch<HashMap<PeerId, Vec<PeerData>>>` | [`NodeBuilder::peers_map`], [`direct::PeersMap`], [`PeerData`], [`Watch`] | one session for each peer, not one for each address |
//! | `RESOLVE_RETRY_TIMEOUT`, the poll for addresses | [`direct::RESOLVE_RETRY_TIMEOUT`] | a fallback for names that are not found; changes come by word |
//! | `peer_info` | [`direct::peer_info`] | |
//! | `DirectReceiver<PeerId>::{Peer, Addr}` | [`direct::DirectReceiver`], by its other name [`Destination`]; [`Node::send_to`], [`Node::peer_at`] | not generic over the id; `Name` beside the two; to an address: to the one identity that proves itself there |
//! | `PeerId` generic | [`PeerId`]: the digest of a key | identity is proven, not claimed |
//! | Witnet's beacons | [`handshake::HandshakePolicy`] | bytes of the application's own, judged by it |
//! | protocol id per role (`ACKI_NACKI_DIRECT_PROTOCOL`) | [`error::CloseReason::WrongProtocol`] | in the hello: `threadwire-direct/1` |
//! | `outgoing_reply_tx`, a broadcast channel "to announce outgoing messages to other system components" | [`Node::subscribe_outgoing`], [`OutgoingMessage`], [`OutgoingTaps`] | bounded for each subscriber: what does not fit is not announced, and counted ([`OutgoingMessage::missed`]); each gets everything, payloads if it asks for them |
//! | unbounded channels for messages and events | bounded queues and credit; [`Event::Missed`] | what is refused comes back, what is missed is counted |
//!
//! Named there and not built yet: the role `ConnectionRole::Gossip` and its protocol; `GetPeers`, `AnnounceItems`, `RequestBlock`, `SendInventoryItem`;
//! `TransportLayerTransport`, `TransportLayerSocket` and the rest of the gossip transport.
//!
//! What must hold inside, and who sees to it, is in [`invariants`]; what is promised against whom, in [`threats`].

pub mod invariants;
pub mod threats;

// In rank order: a file imports only lower ranks (tests/layering.rs).
pub mod address;
pub mod ident;
mod listener;
mod sync;
mod threads;
pub mod watch;

pub mod config;
pub mod error;
mod exposition;
mod memory;
pub mod metrics;
pub mod outcome;

#[cfg_attr(not(feature = "internal"), allow(dead_code, reason = "the wire is whole; not every part has a caller yet"))]
pub mod wire;

pub mod transport;

pub mod handshake;

mod link;

mod session;

mod registry;

mod connections;

mod engine;

pub mod direct;

mod node;

pub use address::Address;
pub use config::{Config, Reload};
pub use connections::{Resolver, SystemResolver};
pub use engine::{Event, Finding, PeerReport, ShutdownReport, SystemLimit};

pub use direct::{Destination, PeerData, PeerEvent};
pub use error::SendError;
pub use ident::PeerId;
pub use node::{AddrHandle, Broadcast, Node, NodeBuilder, PeerInfo, To};
pub use outcome::{Outcome, ReturnReason, Stage, Timing};
pub use registry::SessionInfo;
pub use session::{
    Answer, Answered, Answers, BEST_EFFORT_MOST, Batch, Collector, Delivery, Kind, LinkStats, Manner, Message,
    OutcomeBatch, OutgoingMessage, OutgoingTaps, OverflowPolicy, PeerHandle, Pending, Priority, Receipt, Responder,
    SendOptions, TapOptions, Undelivered, WaitError,
};
pub use watch::{Watch, Watcher};
