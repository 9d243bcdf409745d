//! A handle on one peer: the send verbs.
//!
//! Owns: a share of the peer's link. Threads: any. Locks: the outbox lock; with an idle peer also the link lock, one
//! after the other; both at once for the counts. Blocks on: room in the peer's queue, in [`PeerHandle::send`] and
//! [`PeerHandle::send_timeout`].
//! Upholds: `Ok` means accepted: the message's fate is known from then on; `Err` gives it back.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::error::{SendError, SendErrorKind};
use crate::ident::{ConnectionId, PeerId};
use crate::link::LinkCore;
use crate::metrics::{Class, Totals, Traffic};
use crate::session::handling;
use crate::session::options::{OverflowPolicy, SendOptions};
use crate::session::outbox::Wait;
use crate::session::peer_link::PeerLink;
use crate::session::receipt::{Collector, Receipt};
use crate::wire::{self, Heading, Lane};

/// A peer of a node, to send to. Cheap to clone; keep one per peer, it is the fast path.
#[derive(Clone)]
pub struct PeerHandle {
    pub(super) link: Arc<PeerLink>,
}

/// What became of the messages of one peer, and what waits. Counts are exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LinkStats {
    /// Messages that a send verb took.
    pub accepted: u64,
    /// Of these, handed over at the other side.
    pub acked: u64,
    /// Of these, returned: rejected by the other side, or ended before they were written.
    pub returned: u64,
    /// Of these, written and never answered.
    pub unknown: u64,
    /// Of these, best effort ones that were written.
    pub written: u64,
    /// Messages that came from the peer.
    pub received: u64,
    /// Questions that were asked; they are among the messages accepted.
    pub requests: u64,
    /// Of these, answered in time.
    pub answers: u64,
    /// Of these, those that wait for their answer, and those whose end nobody has taken.
    pub open_requests: usize,
    /// Answers that came after their question had ended, and were thrown away.
    pub late_answers: u64,
    /// Answers to no question of this process: thrown away.
    pub unknown_answers: u64,
    /// Bytes written to its connections, frames and repeats included.
    pub bytes_sent: u64,
    /// Bytes read from its connections.
    pub bytes_received: u64,
    /// Messages that wait to be written for the first time.
    pub queued_messages: usize,
    /// Their bytes.
    pub queued_bytes: usize,
    /// How long the oldest of them has waited.
    pub oldest_age: Option<Duration>,
    /// Bytes numbered, written or about to be, and not acknowledged.
    pub kept_bytes: usize,
    /// Bytes written and not acknowledged.
    pub unacked_bytes: usize,
    /// Sessions so far.
    pub sessions: u64,
    /// Whether a session is attached now.
    pub connected: bool,
}

impl PeerHandle {
    pub(crate) fn new(link: Arc<PeerLink>) -> Self {
        Self { link }
    }

    /// Who the peer is.
    pub fn id(&self) -> PeerId {
        self.link.id
    }

    /// Sends a message, waiting for room in the peer's queue up to the send deadline of the configuration.
    ///
    /// Messages to one peer arrive in the order they were sent. A peer that is not connected is sent to as soon as it
    /// is.
    ///
    /// # Errors
    /// [`SendErrorKind::TimedOut`]: the peer is slow or away; [`SendErrorKind::WouldBlock`]: inside a handler, use
    /// [`PeerHandle::try_send`] or [`Message::reply`](crate::Message::reply); [`SendErrorKind::ShuttingDown`];
    /// [`SendErrorKind::TooLarge`]. The message comes back.
    ///
    /// # Blocking
    /// While the queue is full, up to the send deadline.
    pub fn send<P: AsRef<[u8]> + Into<Vec<u8>>>(&self, payload: P) -> Result<(), SendError> {
        self.send_kind(0, payload)
    }

    /// [`PeerHandle::send`] with a kind, which the receiver finds in [`Message::kind`](crate::Message::kind).
    ///
    /// # Errors
    /// As [`PeerHandle::send`].
    ///
    /// # Blocking
    /// As [`PeerHandle::send`].
    pub fn send_kind<P: AsRef<[u8]> + Into<Vec<u8>>>(&self, kind: u16, payload: P) -> Result<(), SendError> {
        if handling::in_handler() {
            return Err(SendError { kind: SendErrorKind::WouldBlock, payload: payload.into() });
        }
        if self.link.push_fast(Lane::Normal, Class::PLAIN, kind, payload.as_ref()) {
            return Ok(());
        }
        self.push(kind, payload, Wait::UpTo(self.link.settings.send_deadline))
    }

    /// Sends a message if there is room now. Works inside a handler.
    ///
    /// # Errors
    /// [`SendErrorKind::Full`], or as [`PeerHandle::send`]. The message comes back.
    pub fn try_send<P: AsRef<[u8]> + Into<Vec<u8>>>(&self, payload: P) -> Result<(), SendError> {
        self.push(0, payload, Wait::No)
    }

    /// Sends a message, waiting for room no longer than `timeout`.
    ///
    /// # Errors
    /// As [`PeerHandle::send`].
    ///
    /// # Blocking
    /// While the queue is full, up to `timeout`.
    pub fn send_timeout<P>(&self, payload: P, timeout: Duration) -> Result<(), SendError>
    where
        P: AsRef<[u8]> + Into<Vec<u8>>,
    {
        if handling::in_handler() {
            return Err(SendError { kind: SendErrorKind::WouldBlock, payload: payload.into() });
        }
        self.push(0, payload, Wait::UpTo(timeout))
    }

    /// Sends a message as `options` say, and gives a receipt for its outcome.
    ///
    /// # Errors
    /// As [`PeerHandle::send`]; [`SendErrorKind::Full`] where the options say to fail, or nothing could be dropped for it;
    /// [`SendErrorKind::Offline`] where the configuration keeps nothing for peers that are away. The message comes back.
    ///
    /// # Blocking
    /// With [`OverflowPolicy::Block`], while the queue is full, up to the options' timeout or the send deadline.
    pub fn send_with(&self, payload: impl Into<Vec<u8>>, options: &SendOptions) -> Result<Receipt, SendError> {
        self.link.send_with(payload.into(), options)
    }

    /// Sends a message as `options` say; its outcome comes to `collector`, under `tag`.
    ///
    /// # Errors
    /// As [`PeerHandle::send_with`]; [`SendErrorKind::Uncollected`]: the collector has no room for one more outcome.
    ///
    /// # Blocking
    /// As [`PeerHandle::send_with`].
    pub fn send_collected(
        &self,
        payload: impl Into<Vec<u8>>,
        options: &SendOptions,
        collector: &Collector,
        tag: u64,
    ) -> Result<(), SendError> {
        self.link.send_collected(payload.into(), options, collector, tag)
    }

    /// What happens from now on when a message for this peer does not fit its queue and does not say so itself; it holds
    /// for `send` and its kin too, but for [`PeerHandle::try_send`], which never waits and never drops.
    pub fn set_overflow(&self, overflow: OverflowPolicy) {
        self.link.outbox.change_defaults(|defaults| defaults.overflow = overflow);
    }

    /// How long a message for this peer is wanted, from now on, if it does not say so itself; `None` is for ever. The
    /// bound on the age of what waits.
    pub fn set_ttl(&self, ttl: Option<Duration>) {
        self.link.outbox.change_defaults(|defaults| defaults.ttl = ttl);
    }

    /// Sends a typed message as its bincode; the receiver calls [`Message::decode`](crate::Message::decode). Byte
    /// fields want `serde_bytes`: it is thirty times faster.
    ///
    /// # Errors
    /// [`SendErrorKind::Unencodable`]: longer than `max_message`, or the type refuses; else as [`PeerHandle::send`].
    ///
    /// # Blocking
    /// As [`PeerHandle::send`].
    pub fn send_msg<T: Serialize>(&self, message: &T) -> Result<(), SendError> {
        match wire::encode_payload(message, self.link.settings.max_message) {
            Ok(payload) => self.send(payload),
            Err(_) => Err(SendError { kind: SendErrorKind::Unencodable, payload: Vec::new() }),
        }
    }

    fn push<P: AsRef<[u8]> + Into<Vec<u8>>>(&self, kind: u16, payload: P, wait: Wait) -> Result<(), SendError> {
        self.link.push(self.link.settings.kinds.priority(kind).lane(), Heading::of_kind(kind), payload, wait)
    }

    /// A message of this kind came.
    pub(super) fn count_received(&self, kind: u16) {
        self.link.by_kind.received(kind);
    }

    /// The connection whose session is attached now.
    pub(crate) fn attached(&self) -> Option<ConnectionId> {
        self.link.core.lock().attached()
    }

    /// Whether a session is attached now.
    pub fn is_connected(&self) -> bool {
        self.attached().is_some()
    }

    /// Counts of this peer's messages.
    pub fn stats(&self) -> LinkStats {
        // Both locks at once: what moves from the queue into the link meanwhile would be counted in neither, or in both.
        self.stats_of(&self.link.core.lock())
    }

    fn stats_of(&self, core: &LinkCore) -> LinkStats {
        let queued = self.link.outbox.counts();
        let counts = core.counts();
        let asked = self.link.requests.counts();
        LinkStats {
            accepted: queued.accepted,
            acked: counts.acked,
            returned: counts.rejected + counts.unwritten + queued.returned,
            unknown: counts.unknown + queued.unknown,
            written: queued.written,
            received: self.link.traffic.received.value(),
            requests: asked.asked,
            answers: asked.answered,
            open_requests: asked.open,
            late_answers: asked.late,
            unknown_answers: asked.unknown,
            bytes_sent: self.link.traffic.sent.value(),
            bytes_received: self.link.traffic.read.value(),
            queued_messages: queued.messages,
            queued_bytes: queued.bytes,
            oldest_age: queued.oldest.map(|since| since.elapsed()),
            kept_bytes: core.kept_bytes(),
            unacked_bytes: core.unacked_bytes(),
            sessions: counts.sessions,
            connected: core.attached().is_some(),
        }
    }

    /// The same for a sum over all peers.
    pub(crate) fn totals(&self) -> Totals {
        let core = self.link.core.lock();
        let (stats, phases) = (self.stats_of(&core), self.link.phases(&core));
        drop(core);
        Totals {
            phases,
            connected: stats.connected.into(),
            queued_messages: stats.queued_messages as u64,
            queued_bytes: stats.queued_bytes as u64,
            kept_bytes: stats.kept_bytes as u64,
            oldest_queued: stats.oldest_age.unwrap_or_default(),
            traffic: self.traffic(&stats),
        }
    }

    fn traffic(&self, stats: &LinkStats) -> Traffic {
        Traffic {
            messages_accepted: stats.accepted,
            messages_acked: stats.acked,
            messages_returned: stats.returned,
            messages_unknown: stats.unknown,
            messages_written: stats.written,
            messages_received: stats.received,
            messages_unread: self.link.traffic.unread.value(),
            requests: stats.requests,
            answers: stats.answers,
            late_answers: stats.late_answers,
            unknown_answers: stats.unknown_answers,
            bytes_sent: stats.bytes_sent,
            bytes_received: stats.bytes_received,
            returned_by: self.link.traffic.returned.snapshot(),
            rejected_by: self.link.traffic.rejected.snapshot(),
            kinds: self.link.by_kind.snapshot(),
        }
    }
}

impl fmt::Debug for PeerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerHandle({})", self.link.id.short())
    }
}
