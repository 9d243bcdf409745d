//! Messages on their way to an application that takes them itself: batches, one per link at a time.
//!
//! Owns: per link the messages that came and wait, bounded by the link's credit. Threads: `rx-<peer>` puts, the
//! application takes. Locks: its own, a leaf (never held together with the link lock).
//! Blocks on: nothing: the channel has room for one batch of every link there may be.
//! Upholds: order per lane; at most one batch per link is in the channel or in the application's hands, so that one
//! flood cannot fill it for all; credit returns when the last message of a batch is dropped.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;

use crate::error::RejectCause;
use crate::ident::PeerId;
use crate::metrics::Groups;
use crate::session::message::{BatchCredit, Body, Extra, Message, Part, PartContent};
use crate::session::peer::PeerHandle;
use crate::session::peer_link::PeerLink;
use crate::session::responder::Held;
use crate::sync::Mutex;
use crate::wire::{HEADER, Prefix, Whole};

/// Bytes of best effort messages that wait for the application, per link.
const MOST_UNNUMBERED: usize = 256 * 1024;

/// Takes the messages of all peers, on each peer's receiver thread.
#[derive(Clone)]
pub(crate) enum Handler {
    /// All of them. Called as the application gave it: anything around it would move each message once more.
    All(Arc<AllHandler>),
    /// Those it wants; it says why it did not take one.
    Choosy(Arc<ChoosyHandler>),
}

pub(crate) type AllHandler = dyn Fn(&PeerHandle, Message<'_>) + Send + Sync;
pub(crate) type ChoosyHandler = dyn Fn(&PeerHandle, Message<'_>) -> Result<(), RejectCause> + Send + Sync;

impl Handler {
    #[inline]
    pub(super) fn handle(&self, peer: &PeerHandle, message: Message<'_>) -> Result<(), RejectCause> {
        match self {
            Self::All(handler) => {
                handler(peer, message);
                Ok(())
            }
            Self::Choosy(handler) => handler(peer, message),
        }
    }
}

/// Where a node's messages go.
#[derive(Clone)]
pub(crate) enum Consumer {
    /// The application's handler, on the receiver thread.
    Handler(Handler),
    /// The application takes them from a channel.
    Channel(Sender<Batch>),
}

/// Where one peer's messages go.
#[derive(Clone)]
pub(crate) enum Sink {
    /// The application's handler.
    Handler(Handler),
    /// Waiting for the application to take them.
    Inbox(Arc<Inbox>),
}

/// A link, and where its messages go.
#[derive(Clone)]
pub(crate) struct Peer {
    pub(crate) link: Arc<PeerLink>,
    pub(crate) sink: Sink,
}

impl Peer {
    /// A peer of a node.
    pub(crate) fn new(link: PeerLink, consumer: Consumer) -> Self {
        let sink = match consumer {
            Consumer::Handler(handler) => Sink::Handler(handler),
            Consumer::Channel(channel) => Sink::Inbox(Arc::new(Inbox::new(channel))),
        };
        Self { link: Arc::new(link), sink }
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("link", &self.link).finish_non_exhaustive()
    }
}

/// What one link holds back until the application has taken its last batch.
#[derive(Debug)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    to_application: Sender<Batch>,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<Part>,
    /// Bytes of them that are best effort.
    unnumbered: usize,
    /// A batch is in the channel or in the application's hands.
    out: bool,
    /// The application has dropped the receiver of the channel.
    gone: bool,
}

/// What became of messages that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Put {
    /// They are with the application, or wait for it.
    Taken,
    /// They are best effort, and too many of these wait: nothing else bounds them, since they hold no credit.
    Unread,
    /// Nobody takes messages any more: they were rejected.
    Gone,
}

impl State {
    fn take(&mut self) -> Vec<Part> {
        self.unnumbered = 0;
        std::mem::take(&mut self.waiting)
    }
}

impl Inbox {
    /// An inbox that feeds `to_application`.
    pub(crate) fn new(to_application: Sender<Batch>) -> Self {
        Self { state: Mutex::new(State::default()), to_application }
    }

    /// Adds messages; hands a batch over if none is out.
    pub(super) fn put(self: &Arc<Self>, link: &Arc<PeerLink>, part: Part) -> Put {
        let mut state = self.state.lock();
        if !part.is_numbered() {
            let bytes = part.bytes().len();
            if state.unnumbered + bytes > MOST_UNNUMBERED {
                return Put::Unread;
            }
            state.unnumbered += bytes;
        }
        state.waiting.push(part);
        if !state.out {
            state.out = true;
            let parts = state.take();
            drop(state);
            self.hand_over(link, parts);
            state = self.state.lock();
        }
        if state.gone { Put::Gone } else { Put::Taken }
    }

    /// The last batch was taken: hands the next over, if there is one.
    fn next(self: &Arc<Self>, link: &Arc<PeerLink>) {
        let mut state = self.state.lock();
        let parts = state.take();
        state.out = !parts.is_empty();
        drop(state);
        if !parts.is_empty() {
            self.hand_over(link, parts);
        }
    }

    fn hand_over(self: &Arc<Self>, link: &Arc<PeerLink>, parts: Vec<Part>) {
        let batch = Batch::new(self.clone(), link.clone(), parts);
        // One batch per link and a channel for all links there may be: it is not full.
        if let Err(refused) = self.to_application.try_send(batch) {
            self.state.lock().gone = true;
            refused.into_inner().reject();
        }
    }
}

/// Messages of one peer, in order. Iterate over it; what is not iterated counts as taken when it is dropped.
///
/// The peer may send more as the messages of a batch are dropped: an application that keeps them slows that peer down,
/// and no other.
pub struct Batch {
    inbox: Arc<Inbox>,
    credit: Arc<BatchCredit>,
    parts: VecDeque<Arc<Part>>,
    /// Position in the first part: messages taken, offset of the next.
    taken: u32,
    offset: usize,
    per_message: bool,
    /// Nobody takes it.
    orphaned: bool,
    /// Messages taken that are not counted as handed over yet.
    passed: Groups,
    /// How long its first message waited is not measured yet.
    unmeasured: bool,
}

impl Batch {
    fn new(inbox: Arc<Inbox>, link: Arc<PeerLink>, parts: Vec<Part>) -> Self {
        let credit = Arc::new(BatchCredit::of(link, &parts));
        Self {
            inbox,
            credit,
            parts: parts.into_iter().map(Arc::new).collect(),
            taken: 0,
            offset: 0,
            per_message: false,
            orphaned: false,
            passed: Groups::default(),
            unmeasured: true,
        }
    }

    /// Whose messages these are.
    pub fn peer(&self) -> PeerId {
        self.credit.link().id
    }

    /// How many messages are left in it.
    pub fn len(&self) -> usize {
        self.parts.iter().map(|part| part.messages as usize).sum::<usize>() - self.taken as usize
    }

    /// Whether all messages were taken.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// From now on each message counts as handed over when it is taken, not when the batch is over.
    pub(crate) fn per_message(mut self) -> Self {
        self.per_message = true;
        self
    }

    /// Rejects what is in it.
    fn reject(mut self) {
        self.orphaned = true;
        self.by_ref().for_each(drop);
    }

    fn finish(&mut self, part: &Part, taken: u32, rejected: Option<(u64, RejectCause)>) {
        self.credit.link().arrivals.handed(&std::mem::take(&mut self.passed));
        if !part.is_numbered() {
            return;
        }
        self.credit.link().finish(part.generation, part.lane, part.first + u64::from(taken), 0, rejected);
    }
}

impl Iterator for Batch {
    type Item = Message<'static>;

    fn next(&mut self) -> Option<Message<'static>> {
        loop {
            match self.take()? {
                (message, None) => return Some(message),
                (message, Some(cause)) => drop(message.reject(cause)),
            }
        }
    }
}

impl Batch {
    /// The next message, and why it is not handed over if it is not.
    fn take(&mut self) -> Option<(Message<'static>, Option<RejectCause>)> {
        let part = self.parts.front()?.clone();
        let number = part.first + u64::from(self.taken);
        let (kind, start, end, credit, question, expires) = match &part.content {
            PartContent::Frames { flags, bytes } => {
                let whole = Whole::at(bytes, self.offset, Prefix::len(*flags))?;
                let start = whole.end - whole.payload.len();
                let prefix = bytes.get(self.offset + HEADER..).unwrap_or_default();
                let prefix = Prefix::read(*flags, prefix).unwrap_or_default();
                let expires = prefix.remaining.map(|left| part.arrived + Duration::from_millis(left.into()));
                let credit = (whole.end - self.offset) as u64;
                (whole.header.kind, start, whole.end, credit, prefix.correlation, expires)
            }
            PartContent::Whole { kind, expires, question, payload, .. } => {
                (*kind, 0, payload.len(), part.credit, *question, *expires)
            }
        };
        let credit = if part.is_numbered() { credit } else { 0 };
        if question.is_some() {
            self.credit.paid(part.lane, credit);
        }
        let held = Held { lane: part.lane, credit, size: end - start };
        let (extra, credit) = Extra::new(self.credit.link(), kind, held, question, expires);
        self.taken += 1;
        self.offset = end;
        let refused = self.refusal(kind, end - start).map(|cause| (number, cause));
        let class = self.credit.link().class_of_came(part.lane, part.flags(), kind);
        if refused.is_some() {
            self.credit.link().arrival_failed(class, end - start);
        } else {
            self.passed.push(class, 1, (end - start) as u64);
            if std::mem::take(&mut self.unmeasured) {
                self.credit.link().settings.times.handed(class, part.arrived.elapsed());
            }
        }
        let last = self.taken == part.messages;
        if self.per_message || last || refused.is_some() {
            self.finish(&part, self.taken, refused);
        }
        if last {
            self.parts.pop_front();
            (self.taken, self.offset) = (0, 0);
        }
        let message = Message {
            kind,
            lane: part.lane,
            number,
            repeat: number < part.repeat_below,
            credit,
            extra,
            // Both fit: a part holds one read's frames, or one message.
            body: Body::Batch { credit: self.credit.clone(), part, start: start as u32, end: end as u32 },
            replied: Cell::new(false),
        };
        Some((message, refused.map(|(_, cause)| cause)))
    }

    /// Why the next message, of this kind and so many bytes, is not handed over; counts it by its kind.
    #[inline]
    fn refusal(&self, kind: u16, len: usize) -> Option<RejectCause> {
        let link = self.credit.link();
        if self.orphaned {
            link.traffic.rejected.add(RejectCause::NoHandler);
            return Some(RejectCause::NoHandler);
        }
        if link.settings.kinds.is_empty() {
            return None;
        }
        link.by_kind.received(kind);
        if link.settings.kinds.allows(kind, len) {
            return None;
        }
        link.traffic.rejected.add(RejectCause::TooLarge);
        Some(RejectCause::TooLarge)
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        loop {
            // Whoever asked is told that there is no answer.
            while self.parts.front().is_some_and(|part| part.is_questions()) && self.take().is_some() {}
            let Some(part) = self.parts.pop_front() else { break };
            let rest = part.groups_from(self.credit.link(), self.offset);
            self.passed.append(&rest);
            (self.taken, self.offset) = (0, 0);
            self.finish(&part, part.messages, None);
        }
        self.inbox.next(self.credit.link());
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("peer", &self.peer()).field("messages", &self.len()).finish_non_exhaustive()
    }
}
