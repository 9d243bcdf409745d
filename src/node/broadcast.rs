//! One message for many peers, or for any one of them.
//!
//! Owns: what became of each offer. Threads: the application's, handlers among them.
//! Locks: the registry lock for a snapshot of the sessions; then, without it, the caster lock for a message that may be
//! for a row, which takes the outbox lock of each peer in turn as a new one begins; then, without both, peer by peer what
//! a send verb locks. Blocks on: nothing: a peer that has no room now refuses, and the next one is asked.
//! Upholds: each established peer of the set is offered the message once, and what it said is told; no guard but the
//! caster's is held from one peer to the next.

use std::borrow::Borrow;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::Node;
use super::cast::{Flood, Left};
use super::to::To;
use crate::error::{SendError, SendErrorKind};
use crate::ident::PeerId;
use crate::registry::Established;
use crate::session::{PeerLink, Receipt, SendOptions};
use crate::wire;

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
    /// While broadcasts of small messages flood, that is more than sixteen follow one another with less than 2 us between
    /// them for each connected peer (that `to` is [among](To::among), if it says so), a message may wait for company: 50 us
    /// for each of these peers, and 5 ms at most. Of broadcasts to the same peers that follow one another all share the
    /// bytes then, which are encoded and copied once; 64 KiB of them go at once. Whatever else is sent to a peer is not held
    /// up, and comes after the broadcasts before it. A broadcast alone never waits.
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
        let (payload, to) = (Arc::new(payload.into()), to.borrow());
        let sessions = self.engine.shared.registry.established();
        let mut left = Left::default();
        let mut caster = self.caster.lock();
        let now = Instant::now();
        let company = caster.company(now, to, &sessions);
        let appended = if company.is_zero() {
            caster.rest(&mut left);
            None
        } else {
            let flood = Flood { to, sessions: &sessions, company, now };
            caster.append(kind, &payload, &flood, &mut left)
        };
        drop(caster);
        drop(left.over);
        left.kicks.into_iter().for_each(|kick| drop(kick.wake()));
        let offer = |session: &Established| (session.peer, session.link.offer_cast(kind, &payload, company));
        let outcomes = match appended {
            Some((mut outcomes, others)) => {
                let others = others.into_iter().map(|at| &sessions[at]).filter(|session| session.is_attached());
                outcomes.extend(others.map(offer));
                outcomes
            }
            None => {
                let mut outcomes = Vec::with_capacity(sessions.len());
                outcomes.extend(sessions.iter().filter(|session| to.names_attached(session)).map(offer));
                outcomes
            }
        };
        self.count_broadcast(Broadcast { payload, outcomes })
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
        let encoded = wire::encode_payload(message, self.engine.shared.settings.tuned.max_message());
        encoded.map_err(|_| SendError { kind: SendErrorKind::Unencodable, payload: Vec::new() })
    }

    fn offer_all<T>(
        &self,
        payload: Vec<u8>,
        to: &To,
        offer: impl Fn(&PeerLink, &Arc<Vec<u8>>) -> Result<T, SendErrorKind>,
    ) -> Broadcast<T> {
        let sessions = self.engine.shared.registry.established();
        let payload = Arc::new(payload);
        let mut outcomes = Vec::with_capacity(sessions.len());
        for session in sessions.iter().filter(|session| to.names_attached(session)) {
            outcomes.push((session.peer, offer(&session.link, &payload)));
        }
        self.count_broadcast(Broadcast { payload, outcomes })
    }

    fn count_broadcast<T>(&self, broadcast: Broadcast<T>) -> Broadcast<T> {
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
        let sessions = self.engine.shared.registry.established();
        let named = sessions.iter().filter(|session| to.names_attached(session));
        let mut links: Vec<&PeerLink> = named.map(|session| &*session.link).collect();
        let payload = Arc::new(payload);
        let mut reason = if self.is_shutting_down() { SendErrorKind::ShuttingDown } else { SendErrorKind::NoPeer };
        while !links.is_empty() {
            let link = links.swap_remove(fastrand::usize(..links.len()));
            match offer(link, &payload) {
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
