//! Bodies of library messages, and the one place that knows bincode.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: decoding is from a slice whose length was checked, with a limit, refusing trailing bytes (except after a
//! hello, where a newer version may add fields); no recursive types. bincode 1.3 is complete and no longer maintained:
//! the way out is `wincode` (the same bytes), in this file alone.

use std::net::SocketAddr;
use std::time::Duration;

use bincode::Options;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{FrameHeader, FrameType, LANES, MAX_BODY, WireError, stay_away};

/// First bytes of every hello.
pub const MAGIC: [u8; 4] = *b"TWIR";
/// The oldest version of the protocol this build speaks.
pub const VERSION_MIN: u16 = 1;
/// The newest version of the protocol this build speaks.
pub const VERSION_MAX: u16 = 1;

/// First frame of each side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`MAGIC`].
    pub magic: [u8; 4],
    /// Oldest version spoken.
    pub version_min: u16,
    /// Newest version spoken; the lower of both sides' newest is used.
    pub version_max: u16,
    /// Capability bits; a bit counts when both sides set it. None is defined in version 1.
    pub capabilities: u64,
    /// Network id: nodes of different networks refuse each other.
    pub network: String,
    /// Protocol id of the role, as `threadwire-direct/1`.
    pub protocol: String,
    /// The ed25519 public key, 32 bytes.
    pub key: [u8; 32],
    /// This process's life.
    pub incarnation: u64,
    /// Fresh randomness that the other side's confirm must cover.
    pub nonce: [u8; 32],
    /// The address the sender wants to be dialled at.
    pub advertised: Option<SocketAddr>,
    /// Bytes of the application, for the other side's policy.
    #[serde(with = "serde_bytes")]
    pub payload: Vec<u8>,
}

/// Proof of the key: a signature over both hellos and the signer's side, or word that the transport has proven it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirm {
    /// 64 bytes of ed25519; none over a transport that has proven the key of the hello.
    #[serde(with = "serde_bytes")]
    pub signature: Vec<u8>,
}

/// One lane's part of an attach.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LaneAttach {
    /// The sender has received all numbers below, from the state named in `knows`.
    pub received: u64,
    /// The sender still keeps its own numbers from here on.
    pub base: u64,
    /// Its own numbers below were written at least once; above `base` they may be repeats to a new state.
    pub sent: u64,
    /// Bytes of this lane the sender of the attach is ready to take from number `received` on.
    pub window: u64,
}

/// Attaches a session to a link.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Attach {
    /// Rises with each session of a link; the decider's choice, repeated by the other side.
    pub epoch: u64,
    /// The link's token: chosen by the decider at the first attach, proven by both at each later one.
    pub token: [u8; 16],
    /// Names the sender's state of this link: a new number whenever it starts from nothing.
    pub state: u64,
    /// The state of the *other* side that `received` and `done` speak of; `None` when there was none.
    pub knows: Option<u64>,
    /// Positions per lane: reply, urgent, normal, bulk.
    pub lanes: [LaneAttach; LANES],
}

/// A message the receiver took and did not hand over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rejection {
    /// Its number (of its last piece).
    pub number: u64,
    /// Why, as `error::RejectCause::code`.
    pub cause: u16,
}

/// Acknowledges one lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// The lane, by its number.
    pub lane: u8,
    /// All numbers below were received: never send them again to this incarnation.
    pub received: u64,
    /// All numbers below were handed over or rejected: stop keeping them.
    pub done: u64,
    /// Bytes of this lane, counted from the attach, that may be sent in all.
    pub window: u64,
    /// Messages below `done` that were rejected and that the sender may not know of yet.
    pub exceptions: Vec<Rejection>,
}

/// The last frame of a session, or a refusal in a handshake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goodbye {
    /// Why, as `error::CloseReason::code`.
    pub reason: u16,
    /// Come back no sooner, in milliseconds; 0 leaves it to the other side.
    pub retry_after_ms: u32,
    /// Numbers received per lane, as in an attach; zeros in a refusal.
    pub received: [u64; LANES],
    /// A sentence for a log.
    pub text: String,
}

impl Goodbye {
    /// How long the other side asks to be left alone: a minute at most, whatever it says.
    pub(crate) fn retry_after(&self) -> Duration {
        Duration::from_millis(self.retry_after_ms.into()).min(stay_away::MOST)
    }
}

/// Encodes a body.
///
/// # Errors
/// [`WireError::BadBody`]: larger than a frame may be.
pub fn encode<T: Serialize>(body: &T) -> Result<Vec<u8>, WireError> {
    options().serialize(body).map_err(bad_body)
}

/// Appends a control frame with a bincode body.
///
/// # Errors
/// The body is larger than its limit.
pub fn put_body<T: Serialize>(out: &mut Vec<u8>, frame: FrameType, body: &T) -> Result<(), WireError> {
    let bytes = encode(body)?;
    out.extend_from_slice(&FrameHeader::control(frame, bytes.len() as u32).to_bytes());
    out.extend_from_slice(&bytes);
    Ok(())
}

/// Decodes a body, all of it.
///
/// # Errors
/// [`WireError::BadBody`]: malformed, or bytes are left over.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    options().reject_trailing_bytes().deserialize(bytes).map_err(bad_body)
}

/// Decodes a body that a newer version may have lengthened.
///
/// # Errors
/// [`WireError::BadBody`]: malformed.
pub fn decode_prefix<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    options().allow_trailing_bytes().deserialize(bytes).map_err(bad_body)
}

/// Encodes an application's typed message.
///
/// # Errors
/// [`WireError::BadBody`]: longer than `limit` bytes, or the type refuses to be serialised.
pub fn encode_payload<T: Serialize>(message: &T, limit: usize) -> Result<Vec<u8>, WireError> {
    bincode::DefaultOptions::new().with_fixint_encoding().with_limit(limit as u64).serialize(message).map_err(bad_body)
}

/// Decodes an application's typed message, all of it.
///
/// # Errors
/// [`WireError::BadBody`]: malformed, or bytes are left over.
pub fn decode_payload<T: DeserializeOwned>(payload: &[u8]) -> Result<T, WireError> {
    let options = bincode::DefaultOptions::new().with_fixint_encoding().with_limit(payload.len() as u64);
    options.reject_trailing_bytes().deserialize(payload).map_err(bad_body)
}

fn options() -> impl Options {
    bincode::DefaultOptions::new().with_fixint_encoding().with_limit(MAX_BODY as u64)
}

fn bad_body(error: bincode::Error) -> WireError {
    WireError::BadBody(error.to_string())
}
