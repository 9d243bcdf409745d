//! The first frame of each side: making ours, judging theirs, and what a signature over both covers.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: magic and versions are judged before anything whose form a newer version may have changed; our own names
//! are never told to a side that did not name them first.

use std::net::SocketAddr;
use std::time::Duration;

use super::config::{HandshakeConfig, MAX_NAME, MAX_PAYLOAD};
use crate::error::CloseReason;
use crate::ident::{Incarnation, PeerId, SessionKind};
use crate::transport::{peer_id_of, sha256};
use crate::wire::{self, FrameHeader, FrameType, Goodbye, HEADER, Hello, LANES};

/// Capability bits this build sets; version 1 defines none.
pub const CAPABILITIES: u64 = 0;

/// Bytes of text a goodbye carries, of those we write and of those we read.
const MAX_TEXT: usize = 255;
/// Magic, oldest and newest version: the part of a hello that no version changes.
const PRELUDE: usize = 8;

/// Why a side does not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub reason: CloseReason,
    pub text: String,
}

impl Refusal {
    pub(super) fn new(reason: CloseReason, text: impl Into<String>) -> Self {
        Self { reason, text: text.into() }
    }
}

/// What a hello says of its sender: nothing of it is proven.
#[derive(Debug)]
pub(super) struct Claim {
    pub peer: PeerId,
    pub key: [u8; 32],
    pub incarnation: Incarnation,
    pub version: u16,
    pub capabilities: u64,
    pub advertised: Option<SocketAddr>,
    pub payload: Vec<u8>,
}

/// The bodies of both hellos, as they travelled.
#[derive(Debug)]
pub(super) struct Hellos {
    pub dialler: Vec<u8>,
    pub acceptor: Vec<u8>,
}

impl Hellos {
    /// What the side that is `signer` signs. Both nonces are in it, so it is fresh; the side is in it, so that nobody
    /// passes by handing our own signature back.
    pub(super) fn transcript(&self, signer: SessionKind) -> Vec<u8> {
        let side = match signer {
            SessionKind::Outbound => 0,
            SessionKind::Inbound => 1,
        };
        let mut text = b"threadwire confirm v1".to_vec();
        text.push(side);
        text.extend_from_slice(&sha256(&self.dialler));
        text.extend_from_slice(&sha256(&self.acceptor));
        text
    }
}

/// The body of our hello.
pub(super) fn make(config: &HandshakeConfig, nonce: [u8; 32]) -> Vec<u8> {
    let hello = Hello {
        magic: wire::MAGIC,
        version_min: wire::VERSION_MIN,
        version_max: wire::VERSION_MAX,
        capabilities: CAPABILITIES,
        network: config.network.clone(),
        protocol: config.protocol.clone(),
        key: config.identity.public_key(),
        incarnation: config.incarnation.0,
        nonce,
        advertised: config.advertised,
        payload: config.payload.clone(),
    };
    #[expect(clippy::expect_used, reason = "HandshakeConfig bounds names and payload: below 9 KiB, and 64 KiB may be")]
    wire::encode(&hello).expect("a hello within its bounds")
}

/// Judges the other side's hello. `expected` is who must be there: the peer that was dialled, or whom TLS has proven.
pub(super) fn judge(config: &HandshakeConfig, expected: Option<PeerId>, body: &[u8]) -> Result<Claim, Refusal> {
    use CloseReason::{ProtocolError, SelfConnection, VersionMismatch, WrongNetwork, WrongPeer, WrongProtocol};
    let Some(&[m0, m1, m2, m3, min0, min1, max0, max1]) = body.first_chunk::<PRELUDE>() else {
        return Err(Refusal::new(ProtocolError, "the hello is too short"));
    };
    if [m0, m1, m2, m3] != wire::MAGIC {
        return Err(Refusal::new(ProtocolError, "the hello has another magic"));
    }
    let theirs = (u16::from_le_bytes([min0, min1]), u16::from_le_bytes([max0, max1]));
    let Some(version) = negotiate((wire::VERSION_MIN, wire::VERSION_MAX), theirs) else {
        let ours = (wire::VERSION_MIN, wire::VERSION_MAX);
        let text = format!("versions {} to {} meet {} to {}", theirs.0, theirs.1, ours.0, ours.1);
        return Err(Refusal::new(VersionMismatch, text));
    };
    let hello: Hello = wire::decode_prefix(body).map_err(|error| Refusal::new(ProtocolError, error.to_string()))?;
    for (what, length, most) in [
        ("network id", hello.network.len(), MAX_NAME),
        ("protocol id", hello.protocol.len(), MAX_NAME),
        ("payload", hello.payload.len(), MAX_PAYLOAD),
    ] {
        if length > most {
            return Err(Refusal::new(ProtocolError, format!("a {what} of {length} bytes where {most} are allowed")));
        }
    }
    if hello.network != config.network {
        return Err(Refusal::new(WrongNetwork, format!("network {:?} is not ours", hello.network)));
    }
    if hello.protocol != config.protocol {
        return Err(Refusal::new(WrongProtocol, format!("protocol {:?} is not ours", hello.protocol)));
    }
    let incarnation = Incarnation(hello.incarnation);
    // The same key in another life is another process with a copy of it: that accusation needs proof first.
    if hello.key == config.identity.public_key() && incarnation == config.incarnation {
        return Err(Refusal::new(SelfConnection, "the key and the incarnation are our own"));
    }
    let peer = peer_id_of(&hello.key);
    if expected.is_some_and(|expected| expected != peer) {
        return Err(Refusal::new(WrongPeer, format!("{} is not who must be here", peer.short())));
    }
    Ok(Claim {
        peer,
        key: hello.key,
        incarnation,
        version,
        capabilities: hello.capabilities & CAPABILITIES,
        advertised: hello.advertised,
        payload: hello.payload,
    })
}

/// The newest version in both ranges of (oldest, newest).
pub(super) fn negotiate(ours: (u16, u16), theirs: (u16, u16)) -> Option<u16> {
    let (oldest, newest) = (ours.0.max(theirs.0), ours.1.min(theirs.1));
    (oldest <= newest).then_some(newest)
}

/// Appends a frame of the handshake.
pub(super) fn put_frame(out: &mut Vec<u8>, frame: FrameType, body: &[u8]) {
    debug_assert!(body.len() <= wire::MAX_HANDSHAKE_BODY);
    out.reserve(HEADER + body.len());
    out.extend_from_slice(&FrameHeader::control(frame, body.len() as u32).to_bytes());
    out.extend_from_slice(body);
}

/// Appends the GOODBYE frame that refuses a connection, in a handshake or instead of one. The text is cut to 255 bytes.
/// `retry_after` is rounded to milliseconds; `None` leaves it to the other side.
pub fn put_refusal(out: &mut Vec<u8>, reason: CloseReason, text: &str, retry_after: Option<Duration>) {
    let retry_after_ms = retry_after.map_or(0, |wait| u32::try_from(wait.as_millis()).unwrap_or(u32::MAX).max(1));
    let goodbye = Goodbye { reason: reason.code(), retry_after_ms, received: [0; LANES], text: printable(text) };
    #[expect(clippy::expect_used, reason = "a goodbye of 255 bytes of text is below 350 bytes, and 64 KiB may be")]
    let body = wire::encode(&goodbye).expect("a goodbye within its bounds");
    put_frame(out, FrameType::Goodbye, &body);
}

/// A text of the other side as a log may show it: at most 255 bytes, in one line, nothing that controls a terminal or
/// turns the direction of what follows.
pub fn printable(text: &str) -> String {
    let misleads = |c: char| c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let kept = &text[..text.floor_char_boundary(MAX_TEXT)];
    kept.chars().map(|c| if misleads(c) { ' ' } else { c }).collect()
}
