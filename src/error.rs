//! One error per operation, sorted by whose fault it is; what carried a message gives it back.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: `Ok` never means dropped; a reason that crosses the wire is the same enum in events, logs and counters.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::address::{Address, ParseAddressError};
use crate::ident::PeerId;

/// Declares an enum whose variants have a number on the wire and a sentence.
macro_rules! wire_reasons {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $code:literal, $text:literal;)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$doc])* #[doc = concat!("\n\n(", stringify!($code), " on the wire.)")] $variant,)*
            /// A reason that this version has no name for, by its number.
            Other(u16),
        }

        impl $name {
            /// All reasons this version knows.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The highest number this version knows.
            pub(crate) const HIGHEST: u16 = {
                let mut highest = 0;
                $(if $code > highest { highest = $code; })*
                highest
            };

            /// Its name here, as `Shutdown`; of reasons of newer versions `Other`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant),)* Self::Other(_) => "Other" }
            }

            /// The number on the wire.
            pub const fn code(self) -> u16 {
                match self { $(Self::$variant => $code,)* Self::Other(code) => code }
            }

            /// The reason with this number.
            pub const fn from_code(code: u16) -> Self {
                match code { $($code => Self::$variant,)* other => Self::Other(other) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self { $(Self::$variant => f.write_str($text),)* Self::Other(code) => write!(f, "reason {code}") }
            }
        }
    };
}

wire_reasons! {
    /// Why a session ended or a connection was refused. Crosses the wire in a goodbye.
    CloseReason {
        /// The node shuts down.
        Shutdown = 1, "the node shuts down";
        /// The application asked for it.
        Requested = 2, "closed by the application";
        /// Two connections of the same two peers overlapped; the other one stays.
        Duplicate = 3, "another connection of the same peers stays";
        /// A newer connection of the same peer took over.
        Superseded = 4, "a newer connection took over";
        /// A node dialled itself.
        SelfConnection = 5, "this is the node itself";
        /// The network ids differ.
        WrongNetwork = 6, "the other side is of another network";
        /// No common version of the protocol.
        VersionMismatch = 7, "no common version of the protocol";
        /// The protocol id of the role differs.
        WrongProtocol = 8, "the other side speaks the protocol of another role";
        /// The signature of the confirm does not fit the key of the hello.
        BadSignature = 9, "the proof of identity is wrong";
        /// Somebody else answered than the peer that was dialled.
        WrongPeer = 10, "another peer answered than the one that was dialled";
        /// The application's handshake policy said no.
        Refused = 11, "refused by the handshake policy";
        /// The other side broke the protocol.
        ProtocolError = 12, "the other side broke the protocol";
        /// The handshake took too long.
        HandshakeTimeout = 13, "the handshake took too long";
        /// No whole frame for the idle time: nothing came, or a frame that did not come to its end.
        Idle = 14, "nothing whole was heard for too long";
        /// A write made no progress for too long.
        WriteStalled = 15, "writing made no progress for too long";
        /// The handler panicked.
        HandlerPanicked = 16, "the message handler panicked";
        /// A limit on sessions is reached.
        TooMany = 17, "too many connections";
        /// The link token is wrong: the id is claimed, the link is somebody else's.
        BadToken = 18, "the link token is wrong";
        /// The same identity runs elsewhere.
        IdentityClash = 19, "the same identity runs elsewhere";
        /// A thread could not be started.
        NoResources = 20, "out of threads or descriptors";
        /// Another process with this identity has the session, and it could not be told whether it lives. Come back.
        Undecided = 21, "another process with this identity may still be connected";
        /// The trust of a node does not cover the other side's key: not listed, no certificate that a root vouches for,
        /// or no longer.
        Untrusted = 22, "the other side is not trusted";
        /// Whoever took the messages of this side is gone: nobody would have the next ones.
        ConsumerGone = 23, "nobody takes the messages any more";
    }
}

impl CloseReason {
    /// The least code of an application's own: the library never uses this one or a higher one.
    pub const APPLICATION: u16 = 0x8000;

    /// A reason of the application's own, by a code from [`CloseReason::APPLICATION`] up: `None` for the library's. The
    /// other side sees it as [`CloseReason::Other`].
    pub const fn application(code: u16) -> Option<Self> {
        if code >= Self::APPLICATION { Some(Self::Other(code)) } else { None }
    }

    /// Whether an application may end a session with it.
    pub(crate) const fn is_applications(self) -> bool {
        matches!(self, Self::Requested) || matches!(self, Self::Other(code) if code >= Self::APPLICATION)
    }
}

wire_reasons! {
    /// Why a receiver did not hand a message over. Crosses the wire in an acknowledgement.
    RejectCause {
        /// The handler panicked while it had this message.
        HandlerPanicked = 1, "the handler panicked";
        /// The body did not decode as its kind's type.
        Undecodable = 2, "the body does not decode";
        /// It had expired when it arrived.
        Expired = 3, "expired on arrival";
        /// Nobody handles this kind.
        NoHandler = 4, "no handler for this kind";
        /// Longer than the receiver takes.
        TooLarge = 5, "too large for the receiver";
        /// Put together it would take more memory than the receiver has left.
        NoMemory = 6, "the receiver had no memory for it";
    }
}

/// Why a message came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReturnReason {
    /// The receiver took it and did not hand it over.
    Rejected(RejectCause),
    /// Its time was up before it was written.
    Expired,
    /// A newer message needed its place, and it had agreed to be dropped.
    DroppedOldest,
    /// There was no place for it, and it had agreed to be dropped.
    DroppedNewest,
    /// A newer message with the same key took its place.
    Replaced,
    /// The peer was not connected, and messages are not kept for peers that are away.
    Offline,
    /// It waited for a peer that did not become known in time, or others waited for more peers than may be.
    PeerUnknown,
    /// The peer was given up before it was written.
    GivenUp,
    /// The node shut down before it was written.
    ShutDown,
}

impl fmt::Display for ReturnReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rejected(cause) => return write!(f, "rejected by the receiver: {cause}"),
            Self::Expired => "expired before it was written",
            Self::DroppedOldest => "dropped for a newer message",
            Self::DroppedNewest => "dropped: the queue was full",
            Self::Replaced => "replaced by a newer message with the same key",
            Self::Offline => "the peer was not connected",
            Self::PeerUnknown => "the peer did not become known",
            Self::GivenUp => "the peer was given up",
            Self::ShutDown => "the node shut down",
        })
    }
}

/// How a session ended: who ended it, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DisconnectReason {
    /// The other side said goodbye.
    Remote(CloseReason),
    /// We ended it.
    Local(CloseReason),
    /// The connection failed or ended without a goodbye. Over TLS, `ConnectionAborted` says that the stream was cut
    /// instead of ended, and `InvalidData` that what came was not what was sent: somebody on the way may have done it.
    Lost(io::ErrorKind),
}

impl fmt::Display for DisconnectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remote(reason) => write!(f, "the peer said goodbye: {reason}"),
            Self::Local(reason) => write!(f, "closed here: {reason}"),
            Self::Lost(kind) => write!(f, "connection lost: {kind}"),
        }
    }
}

/// Why a send did not take the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum SendErrorKind {
    /// The peer's queue is full. Send less, wait, or use a blocking verb.
    #[error("the peer's queue is full")]
    Full,
    /// The queue stayed full until the deadline. The peer is slow or away.
    #[error("the peer's queue stayed full until the deadline")]
    TimedOut,
    /// A blocking verb inside a message handler. Use `try_send` or `reply` there.
    #[error("a blocking call inside a message handler")]
    WouldBlock,
    /// The node is shutting down.
    #[error("the node is shutting down")]
    ShuttingDown,
    /// The message is longer than `max_message`.
    #[error("the message is longer than max_message")]
    TooLarge,
    /// The id is this node's own, or stands for an address ([`PeerId::stands_for`]: send to that), or the node does not
    /// know this peer and `unknown_peers` is 0. Add it.
    #[error("the node does not know this peer")]
    UnknownPeer,
    /// The node does not know this peer, and messages wait for, or handles are held on, as many such peers as
    /// `unknown_peers` allows. Add it, raise that, or wait.
    #[error("messages wait for as many unknown peers as the configuration allows")]
    TooManyUnknown,
    /// No peer of the configuration has this name.
    #[error("no peer has this name")]
    UnknownName,
    /// Nobody of those that it may go to is connected. Wait for one.
    #[error("none of the peers it may go to is connected")]
    NoPeer,
    /// The peer is not connected, and the configuration says that messages are not kept for it then. Wait for it.
    #[error("the peer is not connected")]
    Offline,
    /// As many outcomes as the collector holds are still to come or were not taken. Take some.
    #[error("the collector has no room for one more outcome")]
    Uncollected,
    /// The typed message could not be encoded; the payload is empty.
    #[error("the message could not be encoded")]
    Unencodable,
    /// As many questions of this peer as `requests` allows wait for their answers, or have answers that nobody took.
    #[error("as many questions wait for answers as the configuration allows")]
    TooManyRequests,
    /// The question has been answered already.
    #[error("the question has been answered already")]
    Answered,
}

/// A message that was not taken, and why. Nothing was sent.
#[derive(Clone, PartialEq, Eq)]
pub struct SendError {
    /// Why.
    pub kind: SendErrorKind,
    /// The message, as it was given.
    pub payload: Vec<u8>,
}

impl fmt::Debug for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SendError({:?}, {} bytes)", self.kind, self.payload.len())
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.kind, f)
    }
}

impl std::error::Error for SendError {}

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The question was not sent; it is given back.
    #[error("the question was not sent: {0}")]
    NotSent(#[from] SendError),
    /// The question came back before it was written: the other side has not had it.
    #[error("the question came back unsent: {reason}")]
    Returned {
        /// The question, as it was given.
        payload: Vec<u8>,
        /// Why.
        reason: ReturnReason,
    },
    /// The question was written, and nobody will say any more whether the other side had it: the peer was away for the
    /// whole resume window, or was started anew twice.
    #[error("the peer is gone, and may have had the question")]
    Unknown {
        /// The question, as it was given.
        payload: Vec<u8>,
    },
    /// No answer came until the deadline. Whether the other side had the question is not known.
    #[error("no answer until the deadline")]
    TimedOut,
    /// The other side's application had the question and dropped it without an answer.
    #[error("the question was dropped without an answer")]
    NoAnswer,
    /// The other side's application says that it has no answer, by a code of its own.
    #[error("the other application has no answer: code {0}")]
    Failed(u16),
    /// The other side did not hand the question over, or its handler panicked.
    #[error("the question was rejected: {0}")]
    Rejected(RejectCause),
    /// An answer came, and this node did not take it: it is larger than `max_message`, or there is no memory for it.
    #[error("the answer was not taken: {0}")]
    AnswerRefused(RejectCause),
    /// The life of the peer's process that had the question is over.
    #[error("the peer was started anew")]
    Restarted,
    /// The peer was away for the whole resume window, or said that it is shutting down.
    #[error("the peer is gone")]
    PeerLost,
    /// The peer was removed here.
    #[error("the peer was removed")]
    Removed,
    /// This node is shutting down.
    #[error("the node is shutting down")]
    ShuttingDown,
    /// An answer came, and does not decode as the type it was asked for.
    #[error("the answer does not decode")]
    Undecodable,
    /// Waiting inside a message handler. Take the answer elsewhere.
    #[error("a blocking call inside a message handler")]
    WouldBlock,
}

/// Why nothing was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecvError {
    /// Nothing came until the deadline.
    #[error("no message until the deadline")]
    TimedOut,
    /// The node has shut down and everything was received.
    #[error("the node has shut down")]
    ShutDown,
    /// A handler takes the messages of this node.
    #[error("this node hands its messages to a handler")]
    HasHandler,
    /// A blocking call inside a message handler.
    #[error("a blocking call inside a message handler")]
    WouldBlock,
}

/// Where a dial failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DialStage {
    /// Finding the address of a name.
    Resolve,
    /// Opening the connection.
    Connect,
    /// Proving who is there.
    Handshake,
}

impl fmt::Display for DialStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolve => "resolve",
            Self::Connect => "connect",
            Self::Handshake => "handshake",
        })
    }
}

/// Why a dial failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DialCause {
    /// The system said no.
    #[error("{0}")]
    Io(io::ErrorKind),
    /// It took longer than this.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The other side refused, with this reason.
    #[error("refused by the other side: {0}")]
    Refused(CloseReason),
    /// We refused the other side, for this reason.
    #[error("refused here: {0}")]
    Rejected(CloseReason),
    /// The name has no address, says the resolver.
    #[error("the name does not resolve: {0}")]
    Unresolved(String),
    /// Every resolver thread is held by a lookup that does not end. The lookup of this name did not begin.
    #[error("every resolver thread is held by another name")]
    ResolversBusy,
    /// The node is shutting down.
    #[error("the node is shutting down")]
    ShuttingDown,
}

/// A dial that failed, at one address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("dialling {addr}: {stage}: {cause}")]
pub struct DialError {
    /// The address that was tried. At [`DialStage::Resolve`] it is the name; later it is one of the addresses that the
    /// name has.
    pub addr: Address,
    /// How far it came.
    pub stage: DialStage,
    /// What went wrong.
    pub cause: DialCause,
}

/// Why waiting for a connection ended without one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The peer was not connected until the deadline.
    #[error("{} was not connected until the deadline", .0.short())]
    TimedOut(PeerId),
    /// The dial failed: one error for each address that was tried, in order, never none.
    #[error("{}", joined(.0))]
    Dial(Vec<DialError>),
    /// The text is no address. Nothing was dialled.
    #[error(transparent)]
    BadAddress(#[from] ParseAddressError),
    /// As many connections are dialled or were dialled by this node as the configuration allows, or its thread budget is
    /// used up: raise `outbound` or `max_threads`, or disconnect a peer.
    #[error("as many outbound connections as the configuration allows")]
    TooMany,
    /// The node does not know this peer.
    #[error("{} is not known", .0.short())]
    UnknownPeer(PeerId),
    /// The node does not know this peer, and messages wait for, or handles are held on, as many such peers as
    /// `unknown_peers` allows: add it, raise that, or wait.
    #[error("{} is not known, and messages wait for as many unknown peers as the configuration allows", .0.short())]
    TooManyUnknown(PeerId),
    /// No peer of the configuration has this name.
    #[error("no peer is named {0:?}")]
    UnknownName(String),
    /// Nobody has proven itself at this address in time; or nobody can, because nothing may wait there
    /// (`unknown_peers` is 0), or there are as many peers as the configuration allows.
    #[error("nobody has proven itself at {0}")]
    NobodyThere(SocketAddr),
    /// Messages wait for, or handles are held on, as many unknown peers and addresses as `unknown_peers` allows: raise
    /// that, or wait.
    #[error("{0}: messages wait for as many unknown peers and addresses as the configuration allows")]
    TooManyAddresses(SocketAddr),
    /// The node is shutting down.
    #[error("the node is shutting down")]
    ShuttingDown,
    /// A blocking call inside a message handler.
    #[error("a blocking call inside a message handler")]
    WouldBlock,
}

impl From<Infallible> for ConnectError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// Errors of several addresses, in one line.
pub(crate) fn joined(errors: &[DialError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Why a session was not ended, or a peer not removed. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DisconnectError {
    /// The node does not know this peer.
    #[error("{} is not known", .0.short())]
    UnknownPeer(PeerId),
    /// The peer has no session now.
    #[error("{} is not connected", .0.short())]
    NotConnected(PeerId),
    /// The reason is one that only the library gives: use [`CloseReason::Requested`] or [`CloseReason::application`].
    #[error("not a reason for an application to give: {0}")]
    Reserved(CloseReason),
    /// The node is shutting down.
    #[error("the node is shutting down")]
    ShuttingDown,
}

/// Why a node did not start. Nothing was left running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A value of the configuration is out of range or contradicts another.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The listen address cannot be bound: in use, or not of this machine.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The address of the metrics endpoint, the field `metrics.listen`, cannot be bound: in use, or not of this machine.
    #[error("metrics.listen: cannot serve metrics on {addr}: {source}")]
    MetricsListen {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The identity key cannot be read, made or is no key.
    #[error("the identity key {path}: {what}")]
    Identity {
        /// The file, or what stands for it.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// A kind of message cannot be registered as it was.
    #[error("kind {kind}: {what}")]
    Kind {
        /// Its number.
        kind: u16,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A thread or poll could not be made.
    #[error("starting: {0}")]
    System(#[from] io::Error),
}

/// Why another configuration was not put to use. Nothing has changed, except where [`ReloadError::Bind`] or
/// [`ReloadError::System`] says so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReloadError {
    /// A value is out of range, or contradicts another one.
    #[error("{field} = {value}: allowed: {allowed}")]
    NotAllowed {
        /// The field, as a path: `backoff.cap`, `peer[1].id`.
        field: String,
        /// Its value, as a file would say it.
        value: String,
        /// What it may be.
        allowed: String,
    },
    /// The field is fixed for the node's life. Give it the value that it has, or start the node anew.
    #[error("{field} = {value}: stays {stays} as long as the node: start it anew")]
    Fixed {
        /// The field.
        field: &'static str,
        /// The value that was refused.
        value: String,
        /// The value that it has.
        stays: String,
    },
    /// A file that the configuration names cannot be read, or is not what it should be.
    #[error(transparent)]
    File(ConfigError),
    /// An address of `listen`, or `metrics.listen`, cannot be bound: in use, or not of this machine.
    #[error("{field}: cannot listen on {addr}: {what}{}", lost_text(.lost))]
    Bind {
        /// The field.
        field: &'static str,
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        what: String,
        /// What sort of error that is.
        kind: io::ErrorKind,
        /// Addresses that had to be given up for it and could not be taken again: the node does not listen there any more.
        /// Empty, unless somebody else took one in that moment.
        lost: Vec<SocketAddr>,
    },
    /// A thread or poll could not be made, or a socket not be watched.
    #[error("{what}{}", lost_text(.lost))]
    System {
        /// What the system said.
        what: String,
        /// What sort of error that is.
        kind: io::ErrorKind,
        /// As in [`ReloadError::Bind`].
        lost: Vec<SocketAddr>,
    },
    /// The node is shutting down.
    #[error("the node is shutting down")]
    ShuttingDown,
    /// A blocking call inside a message handler.
    #[error("a blocking call inside a message handler")]
    WouldBlock,
}

fn lost_text(lost: &[SocketAddr]) -> String {
    if lost.is_empty() { String::new() } else { format!("; the node no longer listens on {lost:?}") }
}

/// What is wrong with a configuration, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {what}")]
pub struct ConfigError {
    /// File and line, or the field's name.
    pub place: String,
    /// The value, and what is allowed.
    pub what: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_survives_its_number() {
        for reason in CloseReason::ALL {
            assert_eq!(CloseReason::from_code(reason.code()), *reason);
        }
        for cause in RejectCause::ALL {
            assert_eq!(RejectCause::from_code(cause.code()), *cause);
        }
        assert_eq!(CloseReason::from_code(60_000), CloseReason::Other(60_000));
    }

    #[test]
    fn the_upper_half_of_the_codes_is_the_applications() {
        assert_eq!(CloseReason::application(0x8000), Some(CloseReason::Other(0x8000)));
        assert_eq!(CloseReason::application(0x7fff), None);
        let allowed: Vec<_> = CloseReason::ALL.iter().filter(|reason| reason.is_applications()).collect();
        assert_eq!(allowed, [&CloseReason::Requested]);
        assert!(CloseReason::Other(u16::MAX).is_applications() && !CloseReason::Other(21).is_applications());
    }

    #[test]
    fn an_error_passes_through_a_question_mark_without_its_payload_in_the_text() {
        fn send() -> Result<(), Box<dyn std::error::Error>> {
            Err(SendError { kind: SendErrorKind::Full, payload: vec![1, 2, 3] })?
        }
        assert_eq!(send().unwrap_err().to_string(), "the peer's queue is full");
    }
}
