//! One message for many peers, or for any one of them.
//!
//! Owns: which peers, as a value; what became of each offer. Threads: the application's, handlers among them.
//! Locks: the registry lock for a snapshot of the links, then, peer by peer and without it, what a send verb locks.
//! Blocks on: nothing: a peer that has no room now refuses, and the next one is asked.
//! Upholds: each established peer of the set is offered the message once, and what it said is told; no guard is held
//! from one peer to the next.

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::sync::Arc;

use serde::Serialize;

use super::Node;
use crate::error::{SendError, SendErrorKind};
use crate::ident::{PeerId, SessionKind};
use crate::session::{PeerLink, Receipt, SendOptions};
use crate::wire;

/// Which peers a [broadcast](Node::broadcast) or an [anycast](Node::anycast) is for: peers with an established session,
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

    /// Whether it names a peer with such a session.
    fn names(&self, peer: &PeerId, kind: SessionKind) -> bool {
        self.kind.is_none_or(|wanted| wanted == kind)
            && !self.except.contains(peer)
            && self.among.as_ref().is_none_or(|among| among.contains(peer))
    }
}

/// What became of a broadcast: what each peer said to it. `T` is what a peer that took it gives, a [`Receipt`] or
/// nothing.
///
/// That a peer took it means what `Ok` of [`PeerHandle::try_send`](crate::PeerHandle::try_send) means: its fate is known from then on.
#[derive(Debug)]
#[must_use = "some peers may have refused it"]
pub struct Broadcast<T = ()> {
    payload: Arc<Vec<u8>>,
    outcomes: Vec<(PeerId, Result<T, SendErrorKind>)>,
}

impl<T> Broadcast<T> {
    /// How many peers took it.
    pub fn sent(&self) -> usize {
        self.outcomes.iter().filter(|(_, outcome)| outcome.is_ok()).count()
    }

    /// How many peers refused it for this reason.
    pub fn refused(&self, reason: SendErrorKind) -> usize {
        self.refusals().filter(|(_, refused)| *refused == reason).count()
    }

    /// Who refused it, and why: mostly [`SendErrorKind::Full`], by a peer that is slow.
    pub fn refusals(&self) -> impl Iterator<Item = (PeerId, SendErrorKind)> {
        self.outcomes.iter().filter_map(|(peer, outcome)| Some((*peer, *outcome.as_ref().err()?)))
    }

    /// What each peer said, in no order. Empty: no peer of the set was connected.
    pub fn outcomes(&self) -> &[(PeerId, Result<T, SendErrorKind>)] {
        &self.outcomes
    }

    /// What this peer said; `None` if it was not offered the message.
    pub fn outcome(&self, peer: PeerId) -> Option<&Result<T, SendErrorKind>> {
        self.outcomes.iter().find(|(id, _)| *id == peer).map(|(_, outcome)| outcome)
    }

    /// The message, to send it in another way to those that refused it.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }
}

impl<T> IntoIterator for Broadcast<T> {
    type Item = (PeerId, Result<T, SendErrorKind>);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.outcomes.into_iter()
    }
}

impl Node {
    /// Offers a message to every peer of a set that has an established session now, and says what each of them said. It
    /// waits for nobody, so it works inside a handler: a peer whose queue is full refuses
    /// ([`SendErrorKind::Full`]), and the others have the message all the same.
    ///
    /// The message is encoded once. Above 32 KiB all peers share its bytes until the last of them has acknowledged it,
    /// and they are written from where they lie; a smaller one is copied into each peer's queue, which is cheaper than
    /// sharing. Either way the message counts in full in the bounds of each peer's queue and in `memory_bytes`.
    ///
    /// It is written by the peers' own threads, never by the caller's: a broadcast costs the caller no write for each
    /// peer, and many in a row are written together. For one peer a send is sooner there.
    ///
    /// A peer that is not connected is not offered the message; one whose connection is lost later gets it as any other
    /// message, when it is back. For the rest see [`PeerHandle::try_send`](crate::PeerHandle::try_send), which this is for many.
    ///
    /// ```
    /// use threadwire::{Config, Node, PeerId, To};
    ///
    /// fn pass_on(node: &Node, block: &[u8], from: PeerId) {
    ///     for (peer, refused) in node.broadcast(block, To::all().except(from)).refusals() {
    ///         eprintln!("{} does not hear of it: {refused}", peer.short());
    ///     }
    /// }
    /// # let node = Node::builder().config(Config::loopback()).start()?;
    /// # pass_on(&node, b"block", node.id());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn broadcast(&self, payload: impl Into<Vec<u8>>, to: impl Borrow<To>) -> Broadcast {
        self.broadcast_kind(0, payload, to)
    }

    /// [`Node::broadcast`] with a kind, which the receivers find in [`Message::kind`](crate::Message::kind).
    pub fn broadcast_kind(&self, kind: u16, payload: impl Into<Vec<u8>>, to: impl Borrow<To>) -> Broadcast {
        self.offer_all(payload.into(), to.borrow(), |link, payload| link.offer(kind, payload, false))
    }

    /// [`Node::broadcast`] of a typed message, encoded once; the receivers call
    /// [`Message::decode`](crate::Message::decode).
    ///
    /// # Errors
    /// [`SendErrorKind::Unencodable`]: longer than `max_message`, or the type refuses. Nobody was offered it.
    pub fn broadcast_msg<T: Serialize>(&self, message: &T, to: impl Borrow<To>) -> Result<Broadcast, SendError> {
        Ok(self.broadcast(self.encoded(message)?, to))
    }

    /// [`Node::broadcast`] as `options` say, with a receipt of each peer that takes the message. It waits for nobody
    /// either: [`OverflowPolicy::Block`](crate::OverflowPolicy::Block) is `Fail` here, and
    /// [`SendOptions::timeout`] says nothing. The bytes are shared until they are written, whatever their size.
    pub fn broadcast_with(
        &self,
        payload: impl Into<Vec<u8>>,
        to: impl Borrow<To>,
        options: &SendOptions,
    ) -> Broadcast<Receipt> {
        self.offer_all(payload.into(), to.borrow(), |link, payload| link.offer_with(payload, options, false))
    }

    /// Sends a message to one peer of a set, any that has an established session now, and says to whom. It waits for
    /// nobody, so it works inside a handler.
    ///
    /// The peers of the set are asked in an order drawn anew each time, each as likely to be the first as any other; the
    /// first one with room in its queue has the message. So a peer that is slow is passed over while another one is not.
    ///
    /// ```
    /// use threadwire::{Config, Node, To, error::SendErrorKind};
    ///
    /// let node = Node::builder().config(Config::loopback()).start()?;
    /// let lonely = node.anycast("who knows block 7?", To::outbound()).unwrap_err();
    /// assert_eq!((lonely.kind, &lonely.payload[..]), (SendErrorKind::NoPeer, &b"who knows block 7?"[..]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`SendErrorKind::NoPeer`]: none of the set is connected; [`SendErrorKind::Full`]: those that are have no room;
    /// [`SendErrorKind::TooLarge`], [`SendErrorKind::ShuttingDown`]. The message comes back.
    pub fn anycast(&self, payload: impl Into<Vec<u8>>, to: impl Borrow<To>) -> Result<PeerId, SendError> {
        let offered = self.offer_any(payload.into(), to.borrow(), |link, payload| link.offer(0, payload, true));
        offered.map(|(peer, ())| peer)
    }

    /// [`Node::anycast`] of a typed message; the receiver calls [`Message::decode`](crate::Message::decode).
    ///
    /// # Errors
    /// [`SendErrorKind::Unencodable`]: longer than `max_message`, or the type refuses; else as [`Node::anycast`].
    pub fn anycast_msg<T: Serialize>(&self, message: &T, to: impl Borrow<To>) -> Result<PeerId, SendError> {
        self.anycast(self.encoded(message)?, to)
    }

    /// [`Node::anycast`] as `options` say, with a receipt. It waits for nobody either, as [`Node::broadcast_with`].
    ///
    /// # Errors
    /// As [`Node::anycast`].
    pub fn anycast_with(
        &self,
        payload: impl Into<Vec<u8>>,
        to: impl Borrow<To>,
        options: &SendOptions,
    ) -> Result<(PeerId, Receipt), SendError> {
        self.offer_any(payload.into(), to.borrow(), |link, payload| link.offer_with(payload, options, true))
    }

    fn encoded<T: Serialize>(&self, message: &T) -> Result<Vec<u8>, SendError> {
        let encoded = wire::encode_payload(message, self.engine.shared.settings.max_message);
        encoded.map_err(|_| SendError { kind: SendErrorKind::Unencodable, payload: Vec::new() })
    }

    fn offer_all<T>(
        &self,
        payload: Vec<u8>,
        to: &To,
        offer: impl Fn(&PeerLink, &Arc<Vec<u8>>) -> Result<T, SendErrorKind>,
    ) -> Broadcast<T> {
        let links = self.engine.shared.registry.established(|peer, kind| to.names(peer, kind));
        let payload = Arc::new(payload);
        let outcomes = links.iter().map(|link| (link.id, offer(link, &payload))).collect();
        let broadcast = Broadcast { payload, outcomes };
        let (metrics, sent) = (&self.engine.shared.metrics, broadcast.sent());
        metrics.broadcasts.add();
        metrics.broadcast_taken.more(sent as u64);
        metrics.broadcast_refused.more((broadcast.outcomes.len() - sent) as u64);
        broadcast
    }

    fn offer_any<T>(
        &self,
        payload: Vec<u8>,
        to: &To,
        offer: impl Fn(&PeerLink, &Arc<Vec<u8>>) -> Result<T, SendErrorKind>,
    ) -> Result<(PeerId, T), SendError> {
        let mut links = self.engine.shared.registry.established(|peer, kind| to.names(peer, kind));
        let payload = Arc::new(payload);
        let mut reason = if self.is_shutting_down() { SendErrorKind::ShuttingDown } else { SendErrorKind::NoPeer };
        while !links.is_empty() {
            let link = links.swap_remove(fastrand::usize(..links.len()));
            match offer(&link, &payload) {
                Ok(taken) => {
                    self.engine.shared.metrics.anycasts.add();
                    return Ok((link.id, taken));
                }
                // It went away a moment ago.
                Err(SendErrorKind::Offline) => {}
                Err(SendErrorKind::Full) => reason = SendErrorKind::Full,
                // The others would say the same.
                Err(refused) => {
                    reason = refused;
                    break;
                }
            }
        }
        Err(SendError { kind: reason, payload: Arc::unwrap_or_clone(payload) })
    }
}
