//! The right to answer a message, once, from any thread.
//!
//! Owns: the question's credit until it is answered or given up. Threads: any, one at a time. Locks: the outbox lock, and
//! with an idle peer the link lock, one after the other, as every send verb.
//! Blocks on: room in the reply lane, in [`Responder::answer_timeout`] for an answer longer than its question.
//! Upholds: each question is answered once: by the application, or by word that there is no answer, at the latest when
//! this is dropped; that word and an answer up to the question's size always fit, because the question's credit returns
//! only when they are written.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::error::{RejectCause, SendError, SendErrorKind};
use crate::ident::PeerId;
use crate::session::handling;
use crate::session::outbox::Wait;
use crate::session::peer_link::PeerLink;
use crate::wire::{self, Heading, LANES, Lane, failed, flags};

/// What a message holds of its sender's window until it is answered or over, and how long it was.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    pub(super) lane: Lane,
    /// Bytes that return to the sender's window. No measure of the message: one that came in pieces holds no more than a
    /// window, one without a number nothing.
    pub(super) credit: u64,
    /// Bytes of its payload.
    pub(super) size: usize,
}

impl Held {
    /// Of a message whose credit was returned, or that never had any.
    pub(super) fn nothing(lane: Lane) -> Self {
        Self { lane, credit: 0, size: 0 }
    }

    /// Whether it pays for an answer of `len` bytes: one that is no longer than the message, while that holds something.
    pub(super) fn pays_for(&self, len: usize) -> bool {
        self.credit > 0 && len <= self.size
    }

    /// The credit, as what the answer pays back by being written.
    pub(super) fn debt(&self) -> Wait {
        Wait::Paid(self.per_lane())
    }

    fn per_lane(&self) -> [u64; LANES] {
        let mut credit = [0; LANES];
        credit[self.lane.index()] = self.credit;
        credit
    }
}

/// Answers a message later, from any thread: see [`Message::responder`](crate::Message::responder).
///
/// Dropped without an answer, it tells whoever asked at once that there is none
/// ([`RequestError::NoAnswer`](crate::error::RequestError::NoAnswer)). It holds the question's share of the window: a
/// peer whose questions are kept too long has to wait with further ones.
pub struct Responder {
    link: Arc<PeerLink>,
    kind: u16,
    held: Held,
    /// The number of the question; `None` for a message that nobody waits for an answer to.
    question: Option<u64>,
    expires: Option<Instant>,
    done: Cell<bool>,
}

impl Responder {
    /// For a message of `kind` that holds so much of its sender's window.
    pub(super) fn new(
        link: Arc<PeerLink>,
        kind: u16,
        held: Held,
        question: Option<u64>,
        expires: Option<Instant>,
    ) -> Self {
        Self { link, kind, held, question, expires, done: Cell::new(false) }
    }

    /// Of a question that has been answered.
    pub(super) fn answered(link: Arc<PeerLink>, kind: u16) -> Self {
        let done = Cell::new(true);
        Self { link, kind, held: Held::nothing(Lane::Normal), question: None, expires: None, done }
    }

    /// Who asked.
    pub fn peer(&self) -> PeerId {
        self.link.id
    }

    /// How long the answer is still wanted, as the asker said; `None` if it did not say. Nothing is left when it has
    /// given up.
    pub fn time_left(&self) -> Option<Duration> {
        self.expires.map(|expires| expires.saturating_duration_since(Instant::now()))
    }

    /// Answers. Works inside a handler. One up to the question's size is always taken.
    ///
    /// # Errors
    /// [`SendErrorKind::Full`]: longer than the question, and the reply lane is full: try again, or
    /// [`Responder::answer_timeout`]. [`SendErrorKind::Answered`], [`SendErrorKind::TooLarge`],
    /// [`SendErrorKind::ShuttingDown`]. The answer comes back, and the question is still to be answered.
    pub fn answer<P: AsRef<[u8]> + Into<Vec<u8>>>(&self, payload: P) -> Result<(), SendError> {
        self.send(payload, Wait::No)
    }

    /// Answers, waiting for room no longer than `timeout` if the answer is longer than its question.
    ///
    /// # Errors
    /// [`SendErrorKind::TimedOut`], [`SendErrorKind::WouldBlock`] inside a handler; else as [`Responder::answer`].
    ///
    /// # Blocking
    /// Up to `timeout`.
    pub fn answer_timeout<P>(&self, payload: P, timeout: Duration) -> Result<(), SendError>
    where
        P: AsRef<[u8]> + Into<Vec<u8>>,
    {
        if handling::in_handler() {
            return Err(SendError { kind: SendErrorKind::WouldBlock, payload: payload.into() });
        }
        self.send(payload, Wait::UpTo(timeout))
    }

    /// Answers with the bincode of a typed message.
    ///
    /// # Errors
    /// [`SendErrorKind::Unencodable`]: longer than `max_message`, or the type refuses; else as [`Responder::answer`].
    pub fn answer_msg<T: Serialize>(&self, message: &T) -> Result<(), SendError> {
        match wire::encode_payload(message, self.link.settings.max_message) {
            Ok(payload) => self.answer(payload),
            Err(_) => Err(SendError { kind: SendErrorKind::Unencodable, payload: Vec::new() }),
        }
    }

    /// Says that there is no answer, by a code of the application's own: whoever asked gets
    /// [`RequestError::Failed`](crate::error::RequestError::Failed). Does nothing if it was answered.
    pub fn fail(self, code: u16) {
        self.say_none(failed::APPLICATION, &code.to_le_bytes());
    }

    /// Says that the message was not handed over, and why.
    pub(super) fn refuse(&self, cause: RejectCause) {
        self.say_none(cause.code(), &[]);
    }

    /// Whether whoever sent the message waits for the answer.
    pub fn is_question(&self) -> bool {
        self.question.is_some()
    }

    fn heading(&self, kind: u16, flag: u8) -> Heading {
        match self.question {
            Some(_) => Heading { kind, flags: flags::CORRELATED | flag, correlation: self.question },
            None => Heading::of_kind(kind),
        }
    }

    fn send<P: AsRef<[u8]> + Into<Vec<u8>>>(&self, payload: P, wait: Wait) -> Result<(), SendError> {
        if self.done.get() {
            return Err(SendError { kind: SendErrorKind::Answered, payload: payload.into() });
        }
        let heading = self.heading(self.kind, flags::NONE);
        let paid = self.held.pays_for(payload.as_ref().len());
        self.link.push(Lane::Reply, heading, payload, if paid { self.held.debt() } else { wait })?;
        self.done.set(true);
        if !paid {
            self.give_back();
        }
        Ok(())
    }

    fn say_none(&self, code: u16, payload: &[u8]) {
        if self.done.replace(true) {
            return;
        }
        // Shorter than any question, but for two bytes of an application's code: it needs no room of its own.
        if self.question.is_none()
            || self.link.push(Lane::Reply, self.heading(code, flags::FAILED), payload, self.held.debt()).is_err()
        {
            self.give_back();
        }
    }

    fn give_back(&self) {
        if self.held.credit > 0 {
            self.link.release(self.held.per_lane());
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.refuse(RejectCause::HandlerPanicked);
        } else {
            self.say_none(failed::NO_ANSWER, &[]);
        }
    }
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responder")
            .field("peer", &self.peer())
            .field("question", &self.question)
            .finish_non_exhaustive()
    }
}

#[allow(dead_code, reason = "asserts that an answer may be given by any thread")]
const fn may_go_anywhere<T: Send>() {}
const _: () = may_go_anywhere::<Responder>();
