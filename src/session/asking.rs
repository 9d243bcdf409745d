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
use crate::session::options::SendOptions;
use crate::session::peer::PeerHandle;
use crate::session::peer_link::PeerLink;
use crate::session::requests::{Answer, Answered, NoPlace};
use crate::sync::{deadline_after, deadline_in};
use crate::wire;

impl PeerHandle {
    /// Asks, and waits for the answer: the other side [replies](crate::Message::reply) to the message, or answers later
    /// through a [`Responder`](crate::Responder).
    ///
    /// # Errors
    /// [`RequestError`] says whether the question was sent, and who did not answer it.
    ///
    /// # Blocking
    /// Up to `timeout`. Inside a handler: [`RequestError::NotSent`], use [`PeerHandle::ask`] there.
    pub fn request(&self, payload: impl Into<Vec<u8>>, timeout: Duration) -> Result<Answer, RequestError> {
        self.request_with(payload, timeout, &SendOptions::default())
    }

    /// [`PeerHandle::request`], with the question sent as `options` say.
    ///
    /// # Errors
    /// As [`PeerHandle::request`].
    ///
    /// # Blocking
    /// As [`PeerHandle::request`].
    pub fn request_with(
        &self,
        payload: impl Into<Vec<u8>>,
        timeout: Duration,
        options: &SendOptions,
    ) -> Result<Answer, RequestError> {
        if handling::in_handler() {
            return Err(SendError { kind: SendErrorKind::WouldBlock, payload: payload.into() }.into());
        }
        self.ask_with(payload, timeout, options)?.wait()
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
        question: &Q,
        timeout: Duration,
    ) -> Result<R, RequestError> {
        self.request_msg_with(question, timeout, &SendOptions::default())
    }

    /// [`PeerHandle::request_msg`], with the question sent as `options` say.
    ///
    /// # Errors
    /// As [`PeerHandle::request_msg`].
    ///
    /// # Blocking
    /// As [`PeerHandle::request`].
    pub fn request_msg_with<Q: Serialize, R: DeserializeOwned>(
        &self,
        question: &Q,
        timeout: Duration,
        options: &SendOptions,
    ) -> Result<R, RequestError> {
        match wire::encode_payload(question, self.link.settings.max_message) {
            Ok(payload) => self.request_with(payload, timeout, options)?.decode(),
            Err(_) => Err(SendError { kind: SendErrorKind::Unencodable, payload: Vec::new() }.into()),
        }
    }

    /// Asks, and goes on: the answer is taken later, from the [`Pending`]. Works inside a handler, where it does not wait
    /// for room.
    ///
    /// # Errors
    /// [`SendErrorKind::TooManyRequests`], or as [`PeerHandle::send`]. The question comes back.
    ///
    /// # Blocking
    /// While the peer's queue is full, up to `timeout` or the send deadline of the configuration, whichever is shorter;
    /// never inside a handler.
    pub fn ask(&self, payload: impl Into<Vec<u8>>, timeout: Duration) -> Result<Pending, SendError> {
        self.ask_with(payload, timeout, &SendOptions::default())
    }

    /// [`PeerHandle::ask`], with the question sent as `options` say.
    ///
    /// # Errors
    /// As [`PeerHandle::ask`], and [`PeerHandle::send_with`].
    ///
    /// # Blocking
    /// As [`PeerHandle::ask`], with the options' timeout for the send deadline.
    pub fn ask_with(
        &self,
        payload: impl Into<Vec<u8>>,
        timeout: Duration,
        options: &SendOptions,
    ) -> Result<Pending, SendError> {
        let (to, ended) = bounded(1);
        let (number, deadline) = self.put_question(payload.into(), timeout, options, (to, 0))?;
        Ok(Pending { link: self.link.clone(), number, deadline, ended })
    }

    /// Asks, with the question sent as `options` say, and has its end come through a channel that many questions share,
    /// to any peers: `tag` tells it apart.
    ///
    /// # Errors
    /// As [`PeerHandle::ask_with`].
    ///
    /// # Blocking
    /// As [`PeerHandle::ask_with`].
    pub fn ask_into(
        &self,
        payload: impl Into<Vec<u8>>,
        timeout: Duration,
        options: &SendOptions,
        answers: &Answers,
        tag: u64,
    ) -> Result<(), SendError> {
        self.put_question(payload.into(), timeout, options, (answers.to.clone(), tag)).map(drop)
    }

    /// Enters a question in the table, then in the queue: its answer may be here before this returns.
    fn put_question(
        &self,
        payload: Vec<u8>,
        timeout: Duration,
        options: &SendOptions,
        (to, tag): (Sender<Answered>, u64),
    ) -> Result<(u64, Instant), SendError> {
        let (now, requests) = (Instant::now(), &self.link.requests);
        let deadline = deadline_after(now, timeout);
        let number = match requests.ask(to, tag, deadline) {
            Ok(number) => number,
            Err(NoPlace::Full) => return Err(SendError { kind: SendErrorKind::TooManyRequests, payload }),
            Err(NoPlace::Closed) => return Err(SendError { kind: SendErrorKind::ShuttingDown, payload }),
        };
        match self.link.push_question(number, payload, (now, deadline), options) {
            Ok(()) => {
                requests.sent();
                Ok((number, deadline))
            }
            Err(error) => {
                requests.forget(number);
                Err(error)
            }
        }
    }
}

/// A question that was asked. Dropped, its answer is not wanted any more, and counted as late if it comes.
#[must_use = "dropped, the answer is not wanted any more"]
pub struct Pending {
    link: Arc<PeerLink>,
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
            Ok(answered) => return answered.outcome,
            // If it is still in the queue, it comes back from there.
            Err(RecvTimeoutError::Timeout) => self.link.expire(Instant::now()),
            Err(RecvTimeoutError::Disconnected) => {}
        }
        match self.link.requests.forget(self.number) {
            true => Err(RequestError::TimedOut),
            // Somebody has just said, or is about to say, how it ended.
            false => self.ended.recv().map_or(Err(RequestError::TimedOut), |answered| answered.outcome),
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
        if handling::in_handler() {
            return self.try_wait();
        }
        let deadline = deadline_in(timeout);
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
        self.link.requests.forget(self.number);
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
