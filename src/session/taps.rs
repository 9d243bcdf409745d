//! Taps: other parts of the process hear of each message that this node sends.
//!
//! Owns: per tap the sending end of a bounded channel, and the count of what did not fit; shared by all links of a node.
//! Threads: callers of send verbs announce, handlers among them; any subscribes. Locks: its own, a leaf, for the list.
//! Blocks on: nothing.
//! Upholds: a send looks at one flag while nobody listens; who listens costs it no wait, whatever becomes of what it is
//! told; what a tap missed is counted exactly and said with the next message it takes; a tap that is gone is forgotten.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use crate::ident::PeerId;
use crate::session::options::Priority;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::wire::{Heading, Lane, flags};

/// Announcements that wait in a tap which did not say how many.
const CAPACITY: usize = 1024;

/// How a message was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Manner {
    /// To this peer alone: by the send verbs, or as the one that an [`anycast`](crate::Node::anycast) chose.
    Direct,
    /// To this peer as one of many: there is an announcement for each peer that took it.
    Broadcast,
    /// As a question.
    Request,
    /// As the answer to a message or a question.
    Reply,
}

/// A message that was accepted: what a tap is told. Its outcome is not known yet, nor its number, which it is given when
/// it is taken for the wire.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct OutgoingMessage {
    /// Whom it is for.
    pub to: PeerId,
    /// The application's kind of message; of an answer that of its question.
    pub kind: u16,
    /// How it was sent.
    pub manner: Manner,
    /// The lane it travels on; `None` for an answer.
    pub priority: Option<Priority>,
    /// Bytes of its payload.
    pub bytes: usize,
    /// The payload, if the tap wants those of this size: shared by all taps, and with the message itself where that is
    /// shared ([`Manner::Broadcast`]).
    pub payload: Option<Arc<Vec<u8>>>,
    /// When the application made it, if it said so ([`SendOptions::created_at`](crate::SendOptions::created_at)); else
    /// as `accepted_at`.
    pub created_at: Instant,
    /// When the send verb took it.
    pub accepted_at: Instant,
    /// So many announcements did not fit this tap since the last one that did.
    pub missed: u64,
}

/// How much a tap holds.
///
/// ```
/// use threadwire::TapOptions;
///
/// let sizes_only = TapOptions::new();
/// let with_payloads = TapOptions::new().capacity(256).payloads(64 * 1024); // holds 16 MiB at the most
/// assert_ne!(sizes_only, with_payloads);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TapOptions {
    capacity: usize,
    payloads: Option<usize>,
}

impl Default for TapOptions {
    fn default() -> Self {
        Self { capacity: CAPACITY, payloads: None }
    }
}

impl TapOptions {
    /// 1,024 announcements, without payloads.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many announcements wait in it, at least one. What comes while it is full is not announced there, and counted.
    #[must_use]
    pub fn capacity(mut self, announcements: usize) -> Self {
        self.capacity = announcements.max(1);
        self
    }

    /// Payloads of up to so many bytes are announced too. That costs each send of such a message a copy, unless its bytes
    /// are shared already, and the tap holds up to its capacity of them.
    #[must_use]
    pub fn payloads(mut self, most: usize) -> Self {
        self.payloads = Some(most);
        self
    }
}

/// Where messages are announced that are sent: a node has one
/// ([`Node::subscribe_outgoing`](crate::Node::subscribe_outgoing)). Clones are the same one.
#[derive(Clone, Default)]
pub struct OutgoingTaps {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Somebody listens.
    tapped: AtomicBool,
    taps: Mutex<Arc<Vec<Arc<Tap>>>>,
    /// Announcements that did not fit, over all taps.
    missed: AtomicU64,
}

struct Tap {
    to: Sender<OutgoingMessage>,
    payloads: Option<usize>,
    /// What did not fit since the last announcement that did.
    missed: AtomicU64,
}

/// A message that is about to be offered to the queue: what will be announced of it if it is taken.
pub(super) struct Draft {
    taps: Arc<Vec<Arc<Tap>>>,
    bytes: usize,
    payload: Option<Arc<Vec<u8>>>,
}

impl OutgoingTaps {
    /// Nobody listens yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A tap: each message that is accepted by a send verb called from now on is announced to it, by all whose taps these
    /// are.
    ///
    /// The channel is bounded. A send never waits for it: what does not fit is not announced, and counted in the
    /// [`missed`](OutgoingMessage::missed) of the next announcement that does. Drop the receiver to end it; clones of it
    /// share the announcements. Announcements of one thread are in the order of its sends.
    pub fn subscribe(&self, options: &TapOptions) -> Receiver<OutgoingMessage> {
        let (to, announced) = bounded(options.capacity);
        let mut taps = self.shared.taps.lock();
        let tap = Tap { to, payloads: options.payloads, missed: AtomicU64::new(0) };
        *taps = Arc::new(taps.iter().cloned().chain([Arc::new(tap)]).collect());
        self.shared.tapped.store(true, Ordering::Relaxed);
        announced
    }

    /// How many taps there are. One whose receiver was dropped is forgotten at the next message.
    pub fn count(&self) -> usize {
        self.shared.taps.lock().len()
    }

    /// Announcements that did not fit, over all taps there have been.
    pub fn missed(&self) -> u64 {
        self.shared.missed.load(Ordering::Relaxed)
    }

    /// Whether somebody listens.
    #[inline]
    pub(super) fn are_tapped(&self) -> bool {
        self.shared.tapped.load(Ordering::Relaxed)
    }

    /// Before a message is offered: what will be told of it. `None`: nobody wants to know.
    #[inline]
    pub(super) fn draft(&self, payload: &[u8], shared: impl FnOnce() -> Option<Arc<Vec<u8>>>) -> Option<Draft> {
        self.are_tapped().then(|| self.draft_for_taps(payload, shared))
    }

    fn draft_for_taps(&self, payload: &[u8], shared: impl FnOnce() -> Option<Arc<Vec<u8>>>) -> Draft {
        let taps = self.shared.taps.lock().clone();
        let bytes = payload.len();
        let wanted = taps.iter().filter_map(|tap| tap.payloads).any(|most| bytes <= most);
        let payload = wanted.then(|| shared().unwrap_or_else(|| Arc::new(payload.to_vec())));
        Draft { taps, bytes, payload }
    }

    /// The message was taken.
    pub(super) fn announce(
        &self,
        draft: Draft,
        to: PeerId,
        lane: Lane,
        heading: Heading,
        many: bool,
        created: Option<Instant>,
    ) {
        // Word that there is no answer is no message of the application's.
        if heading.flags & flags::FAILED != 0 {
            return;
        }
        let manner = match lane {
            Lane::Reply => Manner::Reply,
            _ if heading.flags & flags::CORRELATED != 0 => Manner::Request,
            _ if many => Manner::Broadcast,
            _ => Manner::Direct,
        };
        let now = Instant::now();
        let Draft { taps, bytes, payload } = draft;
        let message = OutgoingMessage {
            to,
            kind: heading.kind,
            manner,
            priority: Priority::of_lane(lane),
            bytes,
            payload: None,
            created_at: created.unwrap_or(now),
            accepted_at: now,
            missed: 0,
        };
        for tap in taps.iter() {
            let payload = payload.clone().filter(|_| tap.payloads.is_some_and(|most| bytes <= most));
            self.tell(tap, OutgoingMessage { payload, ..message.clone() });
        }
    }

    fn tell(&self, tap: &Arc<Tap>, mut message: OutgoingMessage) {
        message.missed = tap.missed.swap(0, Ordering::Relaxed);
        match tap.to.try_send(message) {
            Ok(()) => {}
            Err(TrySendError::Full(message)) => {
                tap.missed.fetch_add(message.missed + 1, Ordering::Relaxed);
                self.shared.missed.fetch_add(1, Ordering::Relaxed);
            }
            Err(TrySendError::Disconnected(_)) => self.forget(tap),
        }
    }

    /// Nobody holds the receiver of a tap any more.
    fn forget(&self, gone: &Arc<Tap>) {
        let mut taps = self.shared.taps.lock();
        *taps = Arc::new(taps.iter().filter(|tap| !Arc::ptr_eq(tap, gone)).cloned().collect());
        self.shared.tapped.store(!taps.is_empty(), Ordering::Relaxed);
    }
}

impl fmt::Debug for OutgoingTaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutgoingTaps").field("taps", &self.count()).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    fn send(taps: &OutgoingTaps, payload: &[u8]) {
        if let Some(draft) = taps.draft(payload, || None) {
            taps.announce(draft, PeerId::from_bytes([7; 32]), Lane::Normal, Heading::of_kind(3), false, None);
        }
    }

    #[test]
    fn every_tap_is_told_everything_and_the_payload_where_it_wants_one_of_that_size() {
        let taps = OutgoingTaps::new();
        let sizes = taps.subscribe(&TapOptions::new());
        let [small, large] = [2, 8].map(|most| taps.subscribe(&TapOptions::new().payloads(most)));
        send(&taps, b"ab");
        send(&taps, b"abc");
        let bytes =
            |tap: &Receiver<OutgoingMessage>| tap.try_iter().map(|one| (one.bytes, one.payload)).collect::<Vec<_>>();
        assert_eq!(bytes(&sizes), [(2, None), (3, None)]);
        assert_eq!(bytes(&small), [(2, Some(Arc::new(b"ab".to_vec()))), (3, None)]);
        let told = bytes(&large);
        assert_eq!(told.iter().filter_map(|(_, payload)| Some(payload.as_ref()?.len())).collect::<Vec<_>>(), [2, 3]);
    }

    #[test]
    fn what_a_tap_missed_is_said_once_and_to_that_tap_alone() {
        let taps = OutgoingTaps::new();
        let [narrow, wide] = [1, 100].map(|capacity| taps.subscribe(&TapOptions::new().capacity(capacity)));
        (0..5).for_each(|_| send(&taps, b""));
        assert_eq!(taps.missed(), 4);
        let missed = |tap: &Receiver<OutgoingMessage>| tap.try_iter().map(|one| one.missed).collect::<Vec<_>>();
        assert_eq!(missed(&narrow), [0]);
        send(&taps, b"");
        assert_eq!(missed(&narrow), [4]);
        send(&taps, b"");
        assert_eq!(missed(&narrow), [0], "said once");
        assert_eq!(missed(&wide), [0; 7]);
    }

    #[test]
    fn a_tap_that_is_gone_is_forgotten_at_the_next_message_and_the_last_one_puts_the_flag_down() {
        let taps = OutgoingTaps::new();
        assert!(!taps.are_tapped());
        let [one, other] = [(); 2].map(|()| taps.subscribe(&TapOptions::new()));
        drop(one);
        assert_eq!(taps.count(), 2, "nobody has noticed yet");
        send(&taps, b"");
        assert_eq!((taps.count(), taps.are_tapped(), other.len()), (1, true, 1));
        drop(other);
        send(&taps, b"");
        assert_eq!((taps.count(), taps.are_tapped()), (0, false));
        // Announcements begun before word of the end came do nothing to those that came after.
        let late = taps.subscribe(&TapOptions::new());
        let draft = taps.draft(b"", || None).unwrap();
        let gone = draft.taps[0].clone();
        let after = taps.subscribe(&TapOptions::new());
        drop(late);
        taps.announce(draft, PeerId::from_bytes([7; 32]), Lane::Normal, Heading::of_kind(3), false, None);
        taps.forget(&gone);
        assert_eq!((taps.count(), taps.are_tapped(), after.len()), (1, true, 0));
        assert_eq!(taps.missed(), 0, "what nobody wants is not missed");
    }

    #[test]
    fn one_that_holds_nothing_holds_one() {
        let taps = OutgoingTaps::new();
        let tap = taps.subscribe(&TapOptions::new().capacity(0));
        send(&taps, b"");
        assert_eq!(tap.len(), 1);
    }
}
