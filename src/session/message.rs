//! A message as its receiver meets it, and the answer to it.
//!
//! Owns: its payload, or a borrow of the receiver thread's buffer; a question's [`Responder`], until it is answered, given
//! away or dropped. Threads: the handler's, or wherever the application takes it. Locks: the outbox lock in [`Message::reply`].
//! Blocks on: nothing.
//! Upholds: a reply never blocks, and one up to the question's size always fits, because the question's credit is
//! returned only when its reply is written or the message is dropped.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{RejectCause, SendError, SendErrorKind};
use crate::ident::PeerId;
use crate::memory::Charge;
use crate::metrics::Groups;
use crate::session::outbox::Wait;
use crate::session::peer_link::PeerLink;
use crate::session::responder::{Held, Responder};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::wire::{Heading, LANES, Lane};

/// A message that came from a peer.
///
/// In a handler it borrows the receiver's buffer: [`Message::into_owned`] keeps it beyond the call. Messages of
/// [`recv`](crate::Node::recv) and of batches own what they need.
pub struct Message<'a> {
    pub(super) kind: u16,
    pub(super) lane: Lane,
    pub(super) number: u64,
    pub(super) repeat: bool,
    /// Credit its wire bytes hold.
    pub(super) credit: u64,
    /// What few messages have: a message is handed on by value, and each byte of it costs.
    pub(super) extra: Option<Box<Extra>>,
    pub(super) body: Body<'a>,
    pub(super) replied: Cell<bool>,
}

/// What stood in front of the payload.
pub(super) struct Extra {
    /// When the message is no longer wanted.
    expires: Option<Instant>,
    question: Question,
}

/// Whether a message is a question, and who may answer it.
enum Question {
    /// Nobody waits for an answer.
    No,
    /// The responder is here, or was given away. It holds the credit, not the message.
    Yes(Cell<Option<Responder>>),
}

impl Extra {
    /// Of a message that came from `link`, and the credit it is left with: a question's is its responder's.
    pub(super) fn new(
        link: &Arc<PeerLink>,
        kind: u16,
        held: Held,
        question: Option<u64>,
        expires: Option<Instant>,
    ) -> (Option<Box<Self>>, u64) {
        if question.is_none() {
            return (expires.map(|_| Box::new(Self { expires, question: Question::No })), held.credit);
        }
        let responder = Responder::new(link.clone(), kind, held, question, expires);
        (Some(Box::new(Self { expires, question: Question::Yes(Cell::new(Some(responder))) })), 0)
    }
}

/// Where the payload of a message lies, and who returns its credit.
pub(super) enum Body<'a> {
    /// In the receiver thread's buffer; that thread returns the credit of what was not replied to. Atomic so that a kept
    /// message can go to another thread.
    Handler { link: &'a Arc<PeerLink>, payload: &'a [u8], replied: &'a AtomicU64 },
    /// Part of a batch's bytes; the batch returns it when the last of its messages is dropped.
    Batch { credit: Arc<BatchCredit>, part: Arc<Part>, start: u32, end: u32 },
    /// Kept beyond the handler's call; credit was returned already.
    Kept { link: Arc<PeerLink>, payload: Vec<u8> },
}

impl Message<'_> {
    /// The bytes that were sent.
    pub fn payload(&self) -> &[u8] {
        match &self.body {
            Body::Handler { payload, .. } => payload,
            Body::Batch { part, start, end, .. } => {
                part.bytes().get(*start as usize..*end as usize).unwrap_or_default()
            }
            Body::Kept { payload, .. } => payload,
        }
    }

    /// The application's kind of message, as its sender gave it; 0 if it gave none.
    pub fn kind(&self) -> u16 {
        self.kind
    }

    /// Who sent it.
    pub fn from(&self) -> PeerId {
        self.link().id
    }

    /// Its number on the link, counted per lane: with the peer it names the message. For logs. 0 if it was sent as best
    /// effort.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The sender's process cannot know whether an earlier life of this process was handed this message already.
    pub fn possible_repeat(&self) -> bool {
        self.repeat
    }

    /// How long it is still wanted, as its sender said; `None` if for ever. Nothing is left of a message that expired
    /// after it came: one that had expired before is not handed over.
    pub fn time_left(&self) -> Option<Duration> {
        self.extra.as_ref()?.expires.map(|expires| expires.saturating_duration_since(Instant::now()))
    }

    /// Decodes the payload as the bincode of a `T`, as [`PeerHandle::send_msg`](crate::PeerHandle::send_msg) wrote it.
    ///
    /// # Errors
    /// The payload is no `T`: drop the message, or answer what the application defines for that.
    pub fn decode<T: serde::de::DeserializeOwned>(&self) -> Result<T, crate::wire::WireError> {
        crate::wire::decode_payload(self.payload())
    }

    /// Whether whoever sent it waits for an answer: see [`PeerHandle::request`](crate::PeerHandle::request). Dropped
    /// without one, the message tells it at once that there is none.
    pub fn is_question(&self) -> bool {
        self.question().is_some()
    }

    /// Answers on the reply lane, to whoever sent this. Works inside a handler. The answer to a
    /// [question](Message::is_question) goes to whoever asked; any other one is a message, which the other side receives
    /// as such.
    ///
    /// # Errors
    /// [`SendErrorKind::Full`]: longer than the message, or a second reply to it, and the reply lane is full.
    /// [`SendErrorKind::Answered`]: a question, which was answered already, or is to be by a [`Responder`].
    /// [`SendErrorKind::ShuttingDown`], [`SendErrorKind::TooLarge`]. The answer comes back.
    pub fn reply<P: AsRef<[u8]> + Into<Vec<u8>>>(&self, payload: P) -> Result<(), SendError> {
        if let Some(question) = self.question() {
            let Some(responder) = question.take() else {
                return Err(SendError { kind: SendErrorKind::Answered, payload: payload.into() });
            };
            let answered = responder.answer(payload);
            question.set(Some(responder));
            return answered;
        }
        let held = self.held();
        let paid = held.pays_for(payload.as_ref().len());
        let wait = if paid { held.debt() } else { Wait::No };
        self.link().push(Lane::Reply, Heading::of_kind(self.kind), payload, wait)?;
        if paid {
            self.take_credit();
        }
        Ok(())
    }

    /// [`Message::reply`] with the bincode of a typed message.
    ///
    /// # Errors
    /// [`SendErrorKind::Unencodable`]: longer than `max_message`, or the type refuses; else as [`Message::reply`].
    pub fn reply_msg<T: serde::Serialize>(&self, message: &T) -> Result<(), SendError> {
        match crate::wire::encode_payload(message, self.link().settings.tuned.max_message()) {
            Ok(payload) => self.reply(payload),
            Err(_) => Err(SendError { kind: SendErrorKind::Unencodable, payload: Vec::new() }),
        }
    }

    /// The right to answer, for another time and thread: the message itself may be dropped meanwhile. Whoever asks waits
    /// until the [`Responder`] answers or is dropped, or until its own deadline; and the peer's window holds the question
    /// until then.
    ///
    /// One of a question that was answered already, or whose responder was taken, only says so.
    pub fn responder(&self) -> Responder {
        if let Some(question) = self.question() {
            let none = || Responder::answered(self.link().clone(), self.kind);
            return question.take().unwrap_or_else(none);
        }
        let held = self.held();
        if held.credit > 0 {
            self.take_credit();
        }
        let expires = self.extra.as_ref().and_then(|extra| extra.expires);
        Responder::new(self.link().clone(), self.kind, held, None, expires)
    }

    /// What it still holds: nothing once that is up to whoever answers, or was returned when the message was kept.
    fn held(&self) -> Held {
        if self.replied.get() || matches!(self.body, Body::Kept { .. }) {
            return Held::nothing(self.lane);
        }
        Held { lane: self.lane, credit: self.credit, size: self.payload().len() }
    }

    /// Whoever sent it is told why it was not handed over; the cause is given back.
    pub(super) fn reject(self, cause: RejectCause) -> RejectCause {
        if let Some(responder) = self.question().and_then(Cell::take) {
            responder.refuse(cause);
        }
        cause
    }

    fn question(&self) -> Option<&Cell<Option<Responder>>> {
        match &self.extra.as_ref()?.question {
            Question::Yes(responder) => Some(responder),
            Question::No => None,
        }
    }

    /// The credit is returned by whoever answers.
    fn take_credit(&self) {
        self.replied.set(true);
        match &self.body {
            Body::Handler { replied, .. } => {
                replied.fetch_add(self.credit, Ordering::Relaxed);
            }
            Body::Batch { credit, .. } => credit.paid(self.lane, self.credit),
            // It was returned when the message was kept.
            Body::Kept { .. } => {}
        }
    }

    /// Keeps the message beyond the handler's call; copies the payload if it is borrowed.
    pub fn into_owned(self) -> Message<'static> {
        let Self { kind, lane, number, repeat, credit, extra, body, replied } = self;
        let body = match body {
            Body::Handler { link, payload, .. } => Body::Kept { link: link.clone(), payload: payload.to_vec() },
            Body::Batch { credit, part, start, end } => Body::Batch { credit, part, start, end },
            Body::Kept { link, payload } => Body::Kept { link, payload },
        };
        Message { kind, lane, number, repeat, credit, extra, body, replied }
    }

    fn link(&self) -> &Arc<PeerLink> {
        match &self.body {
            Body::Handler { link, .. } => link,
            Body::Batch { credit, .. } => credit.link(),
            Body::Kept { link, .. } => link,
        }
    }
}

impl fmt::Debug for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("from", &self.from())
            .field("kind", &self.kind)
            .field("number", &self.number)
            .field("bytes", &self.payload().len())
            .finish_non_exhaustive()
    }
}

/// Messages that arrived together on one lane.
#[derive(Debug)]
pub(crate) struct Part {
    /// The life of the receiving lanes they belong to.
    pub(crate) generation: u32,
    /// Their lane.
    pub(crate) lane: Lane,
    /// Number of the first.
    pub(crate) first: u64,
    /// Numbers below may be repeats.
    pub(crate) repeat_below: u64,
    /// How many.
    pub(crate) messages: u32,
    /// Credit they hold.
    pub(crate) credit: u64,
    /// When they came.
    pub(crate) arrived: Instant,
    /// The messages.
    pub(crate) content: PartContent,
}

/// How the messages of a part lie in memory.
#[derive(Debug)]
pub(crate) enum PartContent {
    /// Whole frames, as they came, with prefixes of one sort.
    Frames { flags: u8, bytes: Vec<u8> },
    /// One message that came in pieces.
    Whole { kind: u16, expires: Option<Instant>, question: Option<u64>, payload: Vec<u8>, _charge: Charge },
}

impl Part {
    /// Whether its messages are questions, which their responders hold the credit of.
    pub(super) fn is_questions(&self) -> bool {
        match &self.content {
            PartContent::Frames { flags, .. } => flags & crate::wire::flags::CORRELATED != 0,
            PartContent::Whole { question, .. } => question.is_some(),
        }
    }

    /// Whether its messages have numbers; if not, they are best effort.
    pub(super) fn is_numbered(&self) -> bool {
        match &self.content {
            PartContent::Frames { flags, .. } => flags & crate::wire::flags::NUMBERED != 0,
            PartContent::Whole { .. } => true,
        }
    }

    /// Flags of its messages. Those of one that came in pieces are none: it is no answer, which never comes here.
    pub(super) fn flags(&self) -> u8 {
        match &self.content {
            PartContent::Frames { flags, .. } => *flags,
            PartContent::Whole { .. } => crate::wire::flags::NONE,
        }
    }

    /// What its messages from this offset on count as.
    pub(super) fn groups_from(&self, link: &PeerLink, offset: usize) -> Groups {
        match &self.content {
            PartContent::Frames { flags, bytes } => {
                link.groups_in(self.lane, *flags, bytes.get(offset..).unwrap_or_default())
            }
            PartContent::Whole { kind, payload, .. } => {
                let class = link.class_of_came(self.lane, self.flags(), *kind);
                Groups::of(class, 1, payload.len() as u64)
            }
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match &self.content {
            PartContent::Frames { bytes, .. } | PartContent::Whole { payload: bytes, .. } => bytes,
        }
    }
}

/// The credit that the messages of a batch hold; returned when the last of them is dropped.
#[derive(Debug)]
pub(crate) struct BatchCredit {
    link: Arc<PeerLink>,
    held: [AtomicU64; LANES],
}

impl BatchCredit {
    /// What these parts hold.
    pub(super) fn of(link: Arc<PeerLink>, parts: &[Part]) -> Self {
        let mut held = [0; LANES];
        for part in parts {
            held[part.lane.index()] += part.credit;
        }
        Self { link, held: held.map(AtomicU64::new) }
    }

    /// The peer they came from.
    pub(super) fn link(&self) -> &Arc<PeerLink> {
        &self.link
    }

    /// A reply pays `credit` back when it is written.
    pub(super) fn paid(&self, lane: Lane, credit: u64) {
        self.held[lane.index()].fetch_sub(credit, Ordering::Relaxed);
    }
}

impl Drop for BatchCredit {
    fn drop(&mut self) {
        self.link.release(self.held.each_ref().map(|held| held.load(Ordering::Relaxed)));
    }
}
