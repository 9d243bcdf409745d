//! Whom a node lets in: a set of names, certificate authorities, or everybody who proves a key.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: nobody is trusted by omission: [`Trust::open`] is said, or nobody gets in who is not named or vouched for.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use super::{Listener, PendingConnection, Proof, Transport};
use crate::ident::PeerId;
use crate::sync::RwLock;

/// Whom a node lets in, and lets itself be answered by. Whoever it is has proven the key that is its name.
///
/// Names and authorities together mean that either suffices.
#[derive(Clone, Default)]
pub struct Trust {
    open: bool,
    ids: HashSet<PeerId>,
    #[cfg(feature = "tls")]
    roots: Option<super::tls::Roots>,
}

impl Trust {
    /// Everybody who proves a key: fit for one machine, or for a network that is guarded otherwise.
    pub fn open() -> Self {
        Self { open: true, ..Self::default() }
    }

    /// These peers and no others; without any, nobody.
    pub fn listed(ids: impl IntoIterator<Item = PeerId>) -> Self {
        Self { ids: ids.into_iter().collect(), ..Self::default() }
    }

    /// Also whoever shows a certificate that one of these authorities vouches for, while it is valid.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn and_roots(mut self, roots: super::tls::Roots) -> Self {
        self.roots = Some(roots);
        self
    }

    /// Whether everybody is let in.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Whether this peer is let in for its name alone.
    pub fn lists(&self, peer: PeerId) -> bool {
        self.open || self.ids.contains(&peer)
    }

    /// The authorities.
    #[cfg(feature = "tls")]
    pub(super) fn roots(&self) -> Option<&super::tls::Roots> {
        self.roots.as_ref()
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut trust = f.debug_struct("Trust");
        trust.field("open", &self.open).field("ids", &self.ids.len());
        #[cfg(feature = "tls")]
        trust.field("roots", &self.roots);
        trust.finish()
    }
}

/// A transport without a trust of the configuration's, and the trust that its connections are held against once they are
/// proven, by itself or by the handshake. Both have to agree.
#[derive(Debug)]
pub(crate) struct Trusting {
    inner: Arc<dyn Transport>,
    trust: RwLock<Arc<Trust>>,
}

impl Trusting {
    /// Holds the connections of `inner` against this trust.
    pub(crate) fn new(inner: Arc<dyn Transport>, trust: Trust) -> Self {
        Self { inner, trust: RwLock::new(Arc::new(trust)) }
    }

    /// Trusts these peers from now on.
    pub(crate) fn replace(&self, trust: Trust) {
        *self.trust.write() = Arc::new(trust);
    }
}

impl Transport for Trusting {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn listen(&self, addr: SocketAddr) -> io::Result<Box<dyn Listener>> {
        self.inner.listen(addr)
    }

    fn connect(&self, addr: SocketAddr) -> io::Result<Box<dyn PendingConnection>> {
        self.inner.connect(addr)
    }

    fn trusts(&self, proof: &Proof) -> bool {
        let trust = self.trust.read().clone();
        trust.lists(proof.peer) && self.inner.trusts(proof)
    }
}
