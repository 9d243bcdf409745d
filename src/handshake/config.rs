//! What one side brings to its handshakes: its key, what it says of itself, and whom it lets in.
//!
//! Owns: the texts of our hello. Threads: any; the policy runs on the threads that run [`super::Work`].
//! Locks: none. Blocks on: nothing itself; the policy may block, and the handshake's deadline runs meanwhile.
//! Upholds: our own hello keeps the bounds we demand of others.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::error::ConfigError;
use crate::ident::{Incarnation, PeerId, SessionKind};
use crate::transport::Identity;

/// The longest network id or protocol id, in bytes.
pub const MAX_NAME: usize = 255;
/// The longest payload of a hello, in bytes.
pub const MAX_PAYLOAD: usize = 8 * 1024;

/// What one side brings to its handshakes. Cheap to clone and change when the payload must be fresh.
#[derive(Clone)]
pub struct HandshakeConfig {
    pub(super) identity: Arc<Identity>,
    pub(super) incarnation: Incarnation,
    pub(super) network: String,
    pub(super) protocol: String,
    pub(super) advertised: Option<SocketAddr>,
    pub(super) payload: Vec<u8>,
    /// None lets everybody in, and takes no time.
    pub(super) policy: Option<Arc<dyn HandshakePolicy>>,
}

impl HandshakeConfig {
    /// A side of `network` that speaks `protocol` (as `threadwire-direct/1`), advertises no address, has no payload and
    /// lets everybody in who proves a key.
    ///
    /// # Errors
    /// `network` or `protocol` is longer than [`MAX_NAME`]: choose a shorter one.
    pub fn new(
        identity: Arc<Identity>,
        incarnation: Incarnation,
        network: impl Into<String>,
        protocol: impl Into<String>,
    ) -> Result<Self, ConfigError> {
        let (network, protocol) = (network.into(), protocol.into());
        within("network", network.len(), MAX_NAME)?;
        within("protocol", protocol.len(), MAX_NAME)?;
        Ok(Self { identity, incarnation, network, protocol, advertised: None, payload: Vec::new(), policy: None })
    }

    /// Says where we want to be dialled.
    #[must_use]
    pub fn advertise(mut self, addr: Option<SocketAddr>) -> Self {
        self.advertised = addr;
        self
    }

    /// Gives the other side's policy something to judge us by.
    ///
    /// # Errors
    /// Longer than [`MAX_PAYLOAD`]: send it as a message instead.
    pub fn payload(mut self, payload: Vec<u8>) -> Result<Self, ConfigError> {
        within("handshake payload", payload.len(), MAX_PAYLOAD)?;
        self.payload = payload;
        Ok(self)
    }

    /// Judges the other sides.
    #[must_use]
    pub fn policy(mut self, policy: Arc<dyn HandshakePolicy>) -> Self {
        self.policy = Some(policy);
        self
    }
}

impl fmt::Debug for HandshakeConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandshakeConfig")
            .field("identity", &self.identity)
            .field("incarnation", &self.incarnation)
            .field("network", &self.network)
            .field("protocol", &self.protocol)
            .field("advertised", &self.advertised)
            .field("payload", &self.payload.len())
            .finish_non_exhaustive()
    }
}

/// What a policy judges. The key is proven; everything else is what the other side says of itself.
#[derive(Debug, Clone, Copy)]
pub struct Offer<'a> {
    /// Who opened the connection: [`SessionKind::Inbound`] when the other side dialled us.
    pub kind: SessionKind,
    /// Who is there: proven.
    pub peer: PeerId,
    /// The other side's life.
    pub incarnation: Incarnation,
    /// Where it wants to be dialled: unproven, and possibly nonsense (port 0, an address of nobody).
    pub advertised: Option<SocketAddr>,
    /// Its bytes for us.
    pub payload: &'a [u8],
}

/// Decides who may have a session, besides what the handshake itself demands. Closures are policies.
///
/// Both sides ask theirs, each knowing by [`Offer::kind`] who dialled, so that rules may differ by direction ("dial
/// those who are ahead of us, not those behind"). It runs after the other side's key was proven, by its signature or by
/// the transport, on a thread of the pool, possibly several at once.
pub trait HandshakePolicy: Send + Sync {
    /// Says yes, or no and why.
    ///
    /// # Errors
    /// The refusal, in words for the *other* side's log: it travels in the goodbye, cut to 255 bytes.
    ///
    /// # Blocking
    /// It may, until the handshake's deadline.
    ///
    /// # Panics
    /// A panic is a refusal.
    fn check(&self, offer: &Offer<'_>) -> Result<(), String>;
}

/// Lets everybody in who proves a key.
#[derive(Debug, Clone, Copy, Default)]
pub struct AcceptAll;

impl HandshakePolicy for AcceptAll {
    fn check(&self, _: &Offer<'_>) -> Result<(), String> {
        Ok(())
    }
}

impl<F: Fn(&Offer<'_>) -> Result<(), String> + Send + Sync> HandshakePolicy for F {
    fn check(&self, offer: &Offer<'_>) -> Result<(), String> {
        self(offer)
    }
}

fn within(place: &str, length: usize, most: usize) -> Result<(), ConfigError> {
    match length <= most {
        true => Ok(()),
        false => Err(ConfigError { place: place.to_owned(), what: format!("{length} bytes; {most} are allowed") }),
    }
}
