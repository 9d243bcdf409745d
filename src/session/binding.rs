//! A link that stands for an address, and the peer that its messages go to.
//!
//! Owns: nothing. Threads: callers of send verbs, `supervisor`. Locks: that of the stand-in, then the outbox locks of the
//! two links, one after the other: so that messages move in their order. Blocks on: nothing.
//! Upholds: a message moves to one peer, once; from then on it is that peer's, whoever answers at the address later.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::session::PeerHandle;
use crate::session::peer_link::PeerLink;
use crate::session::stand_in::StandIn;
use crate::sync::MutexGuard;

impl PeerLink {
    /// This link stands for an address from now on; once, when it is made.
    pub(crate) fn stand_in_for(&self, addr: SocketAddr) {
        let _ = self.stand_in.set(StandIn::new(addr));
        self.outbox.pass_on();
    }

    /// The address that this link stands for, if it is no peer's.
    pub(crate) fn stands_for(&self) -> Option<SocketAddr> {
        self.stand_in.get().map(|stand_in| stand_in.addr)
    }

    /// Who has proven itself at the address, and is connected.
    pub(crate) fn bound(&self) -> Option<Arc<PeerLink>> {
        self.stand_in.get().and_then(|stand_in| stand_in.bound.lock().clone())
    }

    /// Somebody has proven itself at the address, and what waits goes to it; or it is connected no longer.
    pub(crate) fn bind(&self, peer: Option<Arc<PeerLink>>) {
        let Some(stand_in) = self.stand_in.get() else { return };
        let mut bound = stand_in.bound.lock();
        let before = std::mem::replace(&mut *bound, peer);
        // Under the same lock: whoever sees the peer sends behind what waited.
        self.hand_on(bound);
        drop(before);
    }

    /// Hands what waits to whoever has proven itself at the address: also what came in while that was found out.
    pub(crate) fn move_on(&self) {
        if let Some(stand_in) = self.stand_in.get() {
            self.hand_on(stand_in.bound.lock());
        }
    }

    /// Hands what waits to who has proven itself at the address, or else to this peer, which has as well: it is connected
    /// from there, and nobody was told yet. Whoever sends to it from now on sends behind what waited.
    pub(crate) fn move_to(&self, peer: &PeerHandle) {
        if let Some(stand_in) = self.stand_in.get() {
            let bound = stand_in.bound.lock();
            let peer = bound.clone().unwrap_or_else(|| peer.link.clone());
            self.hand_to(&peer, bound);
        }
    }

    fn hand_on(&self, bound: MutexGuard<'_, Option<Arc<PeerLink>>>) {
        if let Some(peer) = bound.clone() {
            self.hand_to(&peer, bound);
        }
    }

    /// The lock is held until all has moved: two that did it at once could exchange messages.
    fn hand_to(&self, peer: &Arc<PeerLink>, bound: MutexGuard<'_, Option<Arc<PeerLink>>>) {
        let (kick, ended) = peer.outbox.adopt(self.outbox.hand_over());
        drop(bound);
        peer.act(kick, false);
        peer.tell(ended);
    }

    /// Whether the supervisor is to be asked to dial the address: true once, until it lets go.
    pub(crate) fn ask_once(&self) -> bool {
        self.stand_in.get().is_some_and(StandIn::ask_once)
    }

    /// The supervisor lets go of the address.
    pub(crate) fn ask_anew(&self) {
        if let Some(stand_in) = self.stand_in.get() {
            stand_in.ask_anew();
        }
    }
}
