//! Which peers a message to many is for.
//!
//! Owns: a value. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: it names peers as they are when it is asked: with an established session, now.

use std::collections::BTreeSet;

use crate::ident::{PeerId, SessionKind};
use crate::registry::Established;

/// Which peers a [broadcast](crate::Node::broadcast) or an [anycast](crate::Node::anycast) is for: peers with an established session,
/// now, of those that are named here.
///
/// ```
/// use threadwire::{PeerId, To};
///
/// let [from, one, other] = [1, 2, 3].map(|byte| PeerId::from_bytes([byte; 32]));
/// let forwarded = To::all().except(from);
/// let validators = To::outbound().among([one, other]).except(one);
/// assert_ne!(forwarded, validators);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "it only names peers"]
pub struct To {
    kind: Option<SessionKind>,
    /// Only these.
    among: Option<BTreeSet<PeerId>>,
    /// Not these.
    except: BTreeSet<PeerId>,
}

impl To {
    const fn of(kind: Option<SessionKind>) -> Self {
        Self { kind, among: None, except: BTreeSet::new() }
    }

    /// Everybody.
    pub fn all() -> Self {
        Self::of(None)
    }

    /// Those that dialled this node.
    pub fn inbound() -> Self {
        Self::of(Some(SessionKind::Inbound))
    }

    /// Those that this node dialled.
    pub fn outbound() -> Self {
        Self::of(Some(SessionKind::Outbound))
    }

    /// Not this one: whoever a message came from, as a rule. May be said of several.
    pub fn except(mut self, peer: PeerId) -> Self {
        self.except.insert(peer);
        self
    }

    /// Only these, as far as they are connected. Said twice: only those that are named both times.
    pub fn among(mut self, peers: impl IntoIterator<Item = PeerId>) -> Self {
        let mut peers: BTreeSet<PeerId> = peers.into_iter().collect();
        if let Some(before) = &self.among {
            peers.retain(|peer| before.contains(peer));
        }
        self.among = Some(peers);
        self
    }

    /// How many it names at most, of so many sessions.
    pub(super) fn most_of(&self, sessions: usize) -> usize {
        self.among.as_ref().map_or(sessions, |among| among.len().min(sessions))
    }

    /// Whether it names the peer of a session, which is attached.
    pub(super) fn names_attached(&self, session: &Established) -> bool {
        self.names(&session.peer, session.kind) && session.is_attached()
    }

    /// Whether it names a peer with such a session.
    fn names(&self, peer: &PeerId, kind: SessionKind) -> bool {
        self.kind.is_none_or(|wanted| wanted == kind)
            && !self.except.contains(peer)
            && self.among.as_ref().is_none_or(|among| among.contains(peer))
    }
}
