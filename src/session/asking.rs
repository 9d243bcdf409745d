//! Questions, as whoever asks meets them: one at a time, many in flight, or all through one channel.
//!
//! Owns: the channel that an answer comes through. Threads: any. Locks: the table of questions, a leaf, then what every
//! send verb locks; one after the other. Blocks on: room in the peer's queue; the answer, with the question's deadline.
//! Upholds: what was taken ends in its channel by the deadline at the latest; nobody who gave up is told later.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded, unbounded};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{RecvError, RequestError, SendError, SendErrorKind};
use crate::session::handling;
use crate::session::outbox::Wait;
use crate::session::peer::PeerHandle;
use crate::session::requests::{Answer, Answered, NoPlace, Requests};
use crate::wire::{self, Heading, flags};

/// A deadline that is never.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

impl PeerHandle {
    /// Asks, and waits for the answer: the other side [replies](crate::Message::reply) to the message, or answers later
    /// through a [`Responder`](crate::Responder).
    ///
    /// # Errors
    /// [`RequestError`] says whether the question was sent, and who did not answer it.
    ///
    /// # Blocking
    /// Up to `timeout`. Inside a handler: [`RequestError::NotSent`], use [`PeerHandle::ask`] there.
    pub fn request<P: AsRef<[u8]> + Into<Vec<u8>>>(
        &self,
        payload: P,
        timeout: Duration,
    ) -> Result<Answer, RequestError> {
        self.request_kind(0, payload, timeout)
    }

    /// [`PeerHandle::request`] with a kind.
    ///
    /// # Errors
    /// As [`PeerHandle::request`].
    ///
    /// # Blocking
    /// As [`PeerHandle::request`].
    pub fn request_kind<P>(&self, kind: u16, payload: P, timeout: Duration) -> Result<Answer, RequestError>
    where
        P: AsRef<[u8]> + Into<Vec<u8>>,
    {
        if handling::in_handler() {
            return Err(SendError { kind: SendErrorKind::WouldBlock, payload: payload.into() }.into());
        }
        self.ask_kind(kind, payload, timeout)?.wait()
    }

    /// Asks with the bincode of one type, and decodes the answer as another.
    ///
    /// # Errors
    /// [`RequestError::Undecodable`]: the answer is no `R`; [`RequestError::NotSent`] with
    /// [`SendErrorKind::Unencodable`]; else as [`PeerHandle::request`].
    ///
    /// # Blocking
    /// As [`PeerHandle::request`].
    pub fn request_msg<Q: Serialize, R: DeserializeOwned>(
        &self,
        kind: u16,
        question: &Q,
        timeout: Duration,
    ) -> Result<R, RequestError> {
        match wire::encode_payload(question, self.link.settings.max_message) {
            Ok(payload) => self.request_kind(kind, payload, timeout)?.decode(),
            Err(_) => Err(SendError { kind: SendErrorKind::Unencodable, payload: Vec::new() }.into()),
        }
    }

    /// Asks, and goes on: the answer is taken later, from the [`Pending`]. Works inside a handler, where it does not wait
    /// for room.
    ///
    /// # Errors
    /// [`SendErrorKind::TooManyRequests`], or as [`PeerHandle::send_timeout`]. The question comes back.
    ///
    /// # Blocking
    /// While the peer's queue is full, up to `timeout` or the send deadline of the configuration, whichever is shorter;
    /// never inside a handler.
    pub fn ask<P>(&self, payload: P, timeout: Duration) -> Result<Pending, SendError>
    where
        P: AsRef<[u8]> + Into<Vec<u8>>,
    {
        self.ask_kind(0, payload, timeout)
    }

    /// [`PeerHandle::ask`] with a kind.
    ///
    /// # Errors
    /// As [`PeerHandle::ask`].
    ///
    /// # Blocking
    /// As [`PeerHandle::ask`].
    pub fn ask_kind<P>(&self, kind: u16, payload: P, timeout: Duration) -> Result<Pending, SendError>
    where
        P: AsRef<[u8]> + Into<Vec<u8>>,
    {
        let (to, ended) = bounded(1);
        let deadline = deadline_in(timeout);
        let number = self.put_question(kind, payload, deadline, (to, 0))?;
        Ok(Pending { requests: self.link.requests.clone(), number, deadline, ended })
    }

    /// Asks, and has the answer come through a channel that many questions share, to any peers: `tag` tells it apart.
    ///
    /// # Errors
    /// As [`PeerHandle::ask`].
    ///
    /// # Blocking
    /// As [`PeerHandle::ask`].
    pub fn ask_into<P>(&self, answers: &Answers, tag: u64, payload: P, timeout: Duration) -> Result<(), SendError>
    where
        P: AsRef<[u8]> + Into<Vec<u8>>,
    {
        self.ask_kind_into(answers, tag, 0, payload, timeout)
    }

    /// [`PeerHandle::ask_into`] with a kind.
    ///
    /// # Errors
    /// As [`PeerHandle::ask`].
    ///
    /// # Blocking
    /// As [`PeerHandle::ask`].
    pub fn ask_kind_into<P>(
        &self,
        answers: &Answers,
        tag: u64,
        kind: u16,
        payload: P,
        timeout: Duration,
    ) -> Result<(), SendError>
    where
        P: AsRef<[u8]> + Into<Vec<u8>>,
    {
        self.put_question(kind, payload, deadline_in(timeout), (answers.to.clone(), tag)).map(drop)
    }

    /// Enters a question in the table, then in the queue: its answer may be here before this returns.
    fn put_question<P>(
        &self,
        kind: u16,
        payload: P,
        deadline: Instant,
        (to, tag): (Sender<Answered>, u64),
    ) -> Result<u64, SendError>
    where
        P: AsRef<[u8]> + Into<Vec<u8>>,
    {
        let requests = &self.link.requests;
        let number = match requests.ask(to, tag, deadline) {
            Ok(number) => number,
            Err(no_place) => {
                let kind = match no_place {
                    NoPlace::Full => SendErrorKind::TooManyRequests,
                    NoPlace::Closed => SendErrorKind::ShuttingDown,
                };
                return Err(SendError { kind, payload: payload.into() });
            }
        };
        let wait = if handling::in_handler() {
            Wait::No
        } else {
            Wait::UpTo(deadline.saturating_duration_since(Instant::now()).min(self.link.settings.send_deadline))
        };
        let heading = Heading { kind, flags: flags::CORRELATED, correlation: Some(number) };
        match self.link.push(self.link.settings.kinds.lane(kind), heading, payload, wait) {
            Ok(()) => {
                requests.handed(number);
                requests.sent();
                Ok(number)
            }
            Err(error) => {
                requests.forget(number);
                Err(error)
            }
        }
    }
}

fn deadline_in(timeout: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(timeout).unwrap_or_else(|| now + FOREVER)
}

/// A question that was asked. Dropped, its answer is not wanted any more, and counted as late if it comes.
#[must_use = "dropped, the answer is not wanted any more"]
pub struct Pending {
    requests: Arc<Requests>,
    number: u64,
    deadline: Instant,
    ended: Receiver<Answered>,
}

impl Pending {
    /// Waits for the answer, until the question's deadline at the latest.
    ///
    /// # Errors
    /// Why there is none. [`RequestError::WouldBlock`] inside a handler: use [`Pending::try_wait`] there.
    ///
    /// # Blocking
    /// Up to the timeout that the question was asked with.
    pub fn wait(self) -> Result<Answer, RequestError> {
        if handling::in_handler() {
            return Err(RequestError::WouldBlock);
        }
        match self.ended.recv_deadline(self.deadline) {
            Ok(answered) => answered.outcome,
            Err(RecvTimeoutError::Timeout) if self.requests.forget(self.number) => Err(RequestError::TimedOut),
            // Somebody is just about to say how it ended.
            Err(_) => self.ended.recv().map_or(Err(RequestError::TimedOut), |answered| answered.outcome),
        }
    }

    /// Waits no longer than `timeout`; gives itself back if the question has not ended by then.
    ///
    /// # Errors
    /// The question itself: it still waits. Inside a handler it is given back at once if it has not ended.
    ///
    /// # Blocking
    /// Up to `timeout`, and never beyond the timeout that the question was asked with.
    pub fn wait_timeout(self, timeout: Duration) -> Result<Result<Answer, RequestError>, Self> {
        let deadline = deadline_in(if handling::in_handler() { Duration::ZERO } else { timeout });
        if deadline >= self.deadline {
            return Ok(self.wait());
        }
        match self.ended.recv_deadline(deadline) {
            Ok(answered) => Ok(answered.outcome),
            Err(_) => Err(self),
        }
    }

    /// How it ended, if it has; gives itself back if not.
    ///
    /// # Errors
    /// The question itself: it still waits.
    pub fn try_wait(self) -> Result<Result<Answer, RequestError>, Self> {
        match self.ended.try_recv() {
            Ok(answered) => Ok(answered.outcome),
            Err(TryRecvError::Empty) => Err(self),
            Err(TryRecvError::Disconnected) => Ok(Err(RequestError::TimedOut)),
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.requests.forget(self.number);
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

/// Where the answers of many questions come together, of any peers of any node: see [`PeerHandle::ask_into`].
///
/// Every question asked into it ends in it, by its deadline and a tenth of a second at the latest. What is not taken
/// counts against the `requests` of the peer that was asked.
#[derive(Debug)]
pub struct Answers {
    to: Sender<Answered>,
    ended: Receiver<Answered>,
}

impl Answers {
    /// An empty one.
    pub fn new() -> Self {
        // As long as there are questions that were not taken; each link bounds its own.
        let (to, ended) = unbounded();
        Self { to, ended }
    }

    /// The end of the next question, waiting for it no longer than `timeout`.
    ///
    /// # Errors
    /// [`RecvError::TimedOut`]; [`RecvError::WouldBlock`] inside a handler.
    ///
    /// # Blocking
    /// Up to `timeout`.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Answered, RecvError> {
        if handling::in_handler() {
            return self.try_recv().ok_or(RecvError::WouldBlock);
        }
        self.ended.recv_deadline(deadline_in(timeout)).map_err(|_| RecvError::TimedOut)
    }

    /// The end of a question, if one has ended.
    pub fn try_recv(&self) -> Option<Answered> {
        self.ended.try_recv().ok()
    }

    /// The channel itself, for a `select!` loop.
    pub fn receiver(&self) -> Receiver<Answered> {
        self.ended.clone()
    }
}

impl Default for Answers {
    fn default() -> Self {
        Self::new()
    }
}
