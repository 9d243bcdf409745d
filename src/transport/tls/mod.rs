//! TLS 1.3 over any other transport: private, unaltered, and both sides proven before a byte of the stream.
//!
//! Owns: what both sides of every connection are judged by, replaced as a whole. Threads: `acceptor` until a connection
//! is established, `work-n` for the steps of its handshake, then the halves' own; any may replace the trust.
//! Locks: the setup's, for a clone; a connection's secrets', for a key update. No socket is read or written under
//! either. Blocks on: the halves on their socket.
//! Upholds: TLS 1.3 and nothing older; no early data, no tickets, no resumption; both sides show an ed25519 key, whose
//! name is their [`PeerId`]; a stream that is cut is an error and no end.
//!
//! | file | what |
//! |---|---|
//! | `credential` | what we show, and the authorities we believe |
//! | `provider` | the cryptography |
//! | `setup` | rustls configurations made of both |
//! | `verify` | the judge of what the other side shows |
//! | `words` | what went wrong, as both sides say it |
//! | `machine` | the handshake, one step at a time |
//! | `pending` | the connection that shakes hands, driven without waiting |
//! | `records` | seal and open, each direction by its own keys |
//! | `cipher` | what is sealed and not written, read and not opened |
//! | `halves` | the blocking halves |

mod cipher;
mod credential;
mod halves;
mod machine;
mod pending;
mod provider;
mod records;
mod setup;
mod verify;
mod words;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use mio::event::Source;

pub use credential::{Credential, Roots};

use self::cipher::Rekey;
use self::pending::TlsPending;
pub(crate) use self::setup::Setup;
use super::{Listener, PendingConnection, Proof, Transport, Trust};
use crate::error::ConfigError;
use crate::ident::PeerId;
use crate::sync::RwLock;

/// TLS 1.3 over another transport. A clone is another handle on the same one: trust that is replaced through one is
/// replaced for all. What [`Tls::rekey_after`] gives is another one, with the same trust to begin with.
#[derive(Clone)]
pub struct Tls {
    inner: Arc<dyn Transport>,
    shared: Arc<Shared>,
}

struct Shared {
    /// What both sides must speak.
    protocol: String,
    setup: RwLock<Arc<Setup>>,
    rekey: Rekey,
}

impl Tls {
    /// TLS over `inner`, for connections whose role is `protocol` (as `threadwire-direct/1`): the other side must name
    /// the same.
    ///
    /// # Errors
    /// The cryptography cannot be set up, which is a fault of the build.
    pub fn new(
        inner: impl Transport,
        protocol: &str,
        credential: Credential,
        trust: Trust,
    ) -> Result<Self, ConfigError> {
        Self::over(Arc::new(inner), protocol, credential, trust)
    }

    /// The same over a transport that is shared.
    ///
    /// # Errors
    /// As [`Tls::new`].
    pub fn over(
        inner: Arc<dyn Transport>,
        protocol: &str,
        credential: Credential,
        trust: Trust,
    ) -> Result<Self, ConfigError> {
        let setup = RwLock::new(Arc::new(Setup::new(protocol, credential, trust)?));
        let rekey = Rekey::default();
        Ok(Self { inner, shared: Arc::new(Shared { protocol: protocol.to_owned(), setup, rekey }) })
    }

    /// Changes our keys after so many records or bytes of a connection, whichever comes first: at most 4,194,304 records
    /// and 64 GiB, the default, which is a quarter of what AES-GCM bears.
    #[must_use]
    pub fn rekey_after(self, records: u64, bytes: u64) -> Self {
        let most = Rekey::default();
        let rekey = Rekey { records: records.clamp(1, most.records), bytes: bytes.clamp(1, most.bytes) };
        let Shared { protocol, setup, .. } = &*self.shared;
        let setup = RwLock::new(setup.read().clone());
        Self { inner: self.inner, shared: Arc::new(Shared { protocol: protocol.clone(), setup, rekey }) }
    }

    /// Shows this credential and trusts these peers from now on; connections that are open stay so.
    ///
    /// # Errors
    /// The credential has another key: a node's identity stays as long as its process.
    pub fn replace(&self, credential: Credential, trust: Trust) -> Result<(), ConfigError> {
        self.put(self.prepare(credential, trust)?);
        Ok(())
    }

    /// What [`Tls::replace`] would put in place; nothing changes yet.
    ///
    /// # Errors
    /// As of [`Tls::replace`].
    pub(crate) fn prepare(&self, credential: Credential, trust: Trust) -> Result<Setup, ConfigError> {
        let (setup, me) = (Setup::new(&self.shared.protocol, credential, trust)?, self.id());
        if me != setup.me {
            let what = format!("{} where {} is needed: the identity stays", setup.me.short(), me.short());
            return Err(ConfigError { place: "the key".to_owned(), what });
        }
        Ok(setup)
    }

    /// Puts it in place.
    pub(crate) fn put(&self, mut setup: Setup) {
        let mut present = self.shared.setup.write();
        setup.number = present.number + 1;
        let before = std::mem::replace(&mut *present, Arc::new(setup));
        drop(present);
        drop(before);
    }

    /// Who this side is.
    pub fn id(&self) -> PeerId {
        self.shared.setup.read().me
    }

    fn setup(&self) -> Arc<Setup> {
        self.shared.setup.read().clone()
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("inner", &self.inner)
            .field("protocol", &self.shared.protocol)
            .finish_non_exhaustive()
    }
}

impl Transport for Tls {
    fn name(&self) -> &'static str {
        "tls"
    }

    fn listen(&self, addr: SocketAddr) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(TlsListener { inner: self.inner.listen(addr)?, tls: self.clone() }))
    }

    fn connect(&self, addr: SocketAddr) -> io::Result<Box<dyn PendingConnection>> {
        Ok(Box::new(TlsPending::dial(self.inner.connect(addr)?, self.setup(), self.shared.rekey)))
    }

    fn trusts(&self, proof: &Proof) -> bool {
        let setup = self.setup();
        // Certificates cost time: once is enough for each trust, as long as a certificate that ends is no reason.
        proof.judged_by == Some(setup.number) || setup.judge().trusts(proof)
    }
}

struct TlsListener {
    inner: Box<dyn Listener>,
    tls: Tls,
}

impl Listener for TlsListener {
    fn local_addr(&self) -> SocketAddr {
        self.inner.local_addr()
    }

    fn accept(&mut self) -> io::Result<Box<dyn PendingConnection>> {
        Ok(Box::new(TlsPending::accept(self.inner.accept()?, self.tls.setup(), self.tls.shared.rekey)))
    }

    fn source(&mut self) -> &mut dyn Source {
        self.inner.source()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Identity;
    use crate::transport::memory::Memory;

    #[test]
    fn keys_change_earlier_if_one_says_so_and_never_later() {
        let identity = Arc::new(Identity::generate().unwrap());
        let tls = Tls::new(Memory::new(), "a/1", Credential::bare(identity), Trust::open()).unwrap();
        let rekey = |tls: &Tls| (tls.shared.rekey.records, tls.shared.rekey.bytes);
        let most = rekey(&tls);
        assert_eq!(rekey(&tls.clone().rekey_after(u64::MAX, u64::MAX)), most);
        assert_eq!(rekey(&tls.clone().rekey_after(0, 0)), (1, 1));
        assert_eq!(rekey(&tls.rekey_after(7, 8)), (7, 8));
    }
}
