//! Questions that wait for answers, per link, and what they end with.
//!
//! Owns: the [`Table`] of one link behind a lock; counts of what waits and of what came for nobody; for a node, the list
//! of links with questions. Threads: callers of `ask` and `request` enter, `rx-<peer>` brings answers, `supervisor` ends
//! what waited too long, `acceptor` what a restart has lost.
//! Locks: the table's and the list's, leaves: nothing is sent, called or dropped that could lock while they are held.
//! Blocks on: nothing; whoever waits does so on a channel of its own.
//! Upholds: every question that `ask` took ends exactly once, with an answer or a [`RequestError`]; there are never more
//! than `requests` of a link that wait or whose end was not taken; answers that nobody takes count as memory of the node,
//! and keep the reply lane's credit when that or a bound of their own is reached.
//!
//! ```text
//!            ask                      rx: answer, "there is none"
//!  (free) --------> waiting ----------------------------------------> ended, in the asker's channel --taken--> (free)
//!                    |   ^              deadline (whoever waits, or the supervisor's scan)
//!    receipt: handed |   |              restart, resume window, goodbye: those that were handed
//!                    v   |              removed, shutdown: all
//!                   (marked)            receipt: returned, rejected or unknown, with its payload
//! ```

mod table;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Sender;

use crate::error::RequestError;
use crate::ident::PeerId;
use crate::memory::{Budget, Charge};
use crate::metrics::Counter;
use crate::outcome::{Outcome, ReturnReason};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::wire::{Lane, flags};

use table::{Found, Table};

/// What was answered to a question.
pub struct Answer {
    pub(super) from: PeerId,
    pub(super) kind: u16,
    pub(super) payload: Vec<u8>,
}

impl Answer {
    /// The bytes of the answer.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// The same, taken out.
    pub fn into_payload(self) -> Vec<u8> {
        self.payload
    }

    /// The application's kind: the question's.
    pub fn kind(&self) -> u16 {
        self.kind
    }

    /// Who answered.
    pub fn from(&self) -> PeerId {
        self.from
    }

    /// Decodes the payload as the bincode of a `T`, as `answer_msg` or `reply_msg` wrote it.
    ///
    /// # Errors
    /// [`RequestError::Undecodable`]: the payload is no `T`.
    pub fn decode<T: serde::de::DeserializeOwned>(&self) -> Result<T, RequestError> {
        crate::wire::decode_payload(&self.payload).map_err(|_| RequestError::Undecodable)
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("from", &self.from)
            .field("kind", &self.kind)
            .field("bytes", &self.payload.len())
            .finish()
    }
}

/// How one question ended. It counts among the link's questions until it is dropped.
#[derive(Debug)]
#[non_exhaustive]
pub struct Answered {
    /// What the question was asked with: see [`PeerHandle::ask_into`](crate::PeerHandle::ask_into).
    pub tag: u64,
    /// The answer, or why there is none.
    pub outcome: Result<Answer, RequestError>,
    _place: Place,
}

/// Keeps credit and gives it back; in truth the link.
pub(super) trait Creditor: Send + Sync {
    /// An answer waits that keeps its credit: whoever waits to ask more is let go.
    fn keep(&self);
    /// It was taken: so many bytes of the reply lane may come again.
    fn give_back(&self, credit: u64);
}

/// How many questions and bytes of answers there are.
#[derive(Debug, Default)]
struct Places {
    taken: AtomicUsize,
    bytes: AtomicUsize,
}

/// A question's place, from `ask` until its end is taken by the application.
struct Place {
    places: Arc<Places>,
    bytes: usize,
    /// The memory that its answer takes.
    charge: Charge,
    /// Credit that its answer holds, because too much waits to be taken.
    held: Option<(Arc<dyn Creditor>, u64)>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken.fetch_sub(1, Ordering::Relaxed);
        self.places.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        if let Some((creditor, credit)) = self.held.take() {
            creditor.give_back(credit);
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Place")
    }
}

/// Who waits for the end of a question.
#[derive(Debug)]
pub(super) struct Waiter {
    to: Sender<Answered>,
    tag: u64,
    place: Place,
}

impl Waiter {
    /// Tells the end. The channel has room: it is the question's own, or unbounded and bounded by the places.
    fn end(self, outcome: Result<Answer, RequestError>) {
        let Self { to, tag, place } = self;
        // Nobody may be there any more.
        let _ = to.try_send(Answered { tag, outcome, _place: place });
    }
}

/// Bounds of a link's questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestLimits {
    /// Questions that wait, or whose end was not taken.
    pub(crate) requests: usize,
    /// Bytes of answers that were not taken, before they hold credit.
    pub(crate) bytes: usize,
}

/// Why a question was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoPlace {
    /// As many as there may be.
    Full,
    /// The node is shutting down.
    Closed,
}

/// The questions of one link.
#[derive(Debug)]
pub(crate) struct Requests {
    table: Mutex<Table<Waiter>>,
    places: Arc<Places>,
    most: AtomicUsize,
    most_bytes: AtomicUsize,
    memory: Arc<Budget>,
    counts: RequestCounters,
    askers: Arc<Askers>,
    /// Whether it is in the list of [`Askers`].
    listed: AtomicBool,
}

#[derive(Debug, Default)]
struct RequestCounters {
    asked: Counter,
    answered: Counter,
    late: Counter,
    unknown: Counter,
}

/// What became of a link's questions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RequestCounts {
    /// Questions taken.
    pub(crate) asked: u64,
    /// Of these, answered.
    pub(crate) answered: u64,
    /// Of these, those that wait, or whose end was not taken.
    pub(crate) open: usize,
    /// Answers that came after their question had ended.
    pub(crate) late: u64,
    /// Answers to no question of this process.
    pub(crate) unknown: u64,
}

impl Requests {
    /// No questions; the first one's number is `first`: one that no earlier life of this process gave.
    pub(super) fn new(first: u64, limits: RequestLimits, memory: Arc<Budget>, askers: Arc<Askers>) -> Arc<Self> {
        Arc::new(Self {
            table: Mutex::new(Table::new(first)),
            places: Arc::default(),
            most: AtomicUsize::new(limits.requests),
            most_bytes: AtomicUsize::new(limits.bytes),
            memory,
            counts: RequestCounters::default(),
            askers,
            listed: AtomicBool::new(false),
        })
    }

    /// Other bounds from now on: questions and answers that there are stay.
    pub(super) fn set_limits(&self, limits: RequestLimits) {
        self.most.store(limits.requests, Ordering::Relaxed);
        self.most_bytes.store(limits.bytes, Ordering::Relaxed);
    }

    /// Takes a question; its number.
    pub(super) fn ask(self: &Arc<Self>, to: Sender<Answered>, tag: u64, deadline: Instant) -> Result<u64, NoPlace> {
        let place = Place { places: self.places.clone(), bytes: 0, charge: Charge::default(), held: None };
        // Its own place counts from here on; dropped, it is given back.
        if self.places.taken.fetch_add(1, Ordering::Relaxed) >= self.most.load(Ordering::Relaxed) {
            return Err(NoPlace::Full);
        }
        let asked = self.table.lock().ask(Waiter { to, tag, place }, deadline);
        let number = asked.map_err(|_| NoPlace::Closed)?;
        if !self.listed.load(Ordering::Relaxed) && !self.listed.swap(true, Ordering::AcqRel) {
            self.askers.list.lock().push(self.clone());
        }
        Ok(number)
    }

    /// Nobody waits any more; false if the question has ended already.
    pub(super) fn forget(&self, number: u64) -> bool {
        let found = self.table.lock().take(number);
        matches!(found, Found::Waiting(_))
    }

    /// A question was taken for the wire's queue.
    pub(super) fn sent(&self) {
        self.counts.asked.add();
    }

    /// What became of the question itself.
    pub(super) fn told(&self, number: u64, outcome: Outcome) {
        let error = match outcome {
            // Of best effort nothing more is heard.
            Outcome::Acknowledged(_) | Outcome::Written(_) => return self.table.lock().handed(number),
            Outcome::Returned { reason: ReturnReason::Rejected(cause), .. } => RequestError::Rejected(cause),
            Outcome::Returned { payload, reason } => RequestError::Returned { payload, reason },
            Outcome::Unknown { payload } => RequestError::Unknown { payload },
        };
        self.end(number, error);
    }

    /// Ends one question, if it waits.
    pub(super) fn end(&self, number: u64, error: RequestError) {
        let found = self.table.lock().take(number);
        if let Found::Waiting(waiter) = found {
            waiter.end(Err(error));
        }
    }

    /// Answers came. Returns how much of their credit they keep; `lost` hears of those that nobody waits for, by their
    /// kind and how long they are.
    pub(super) fn answered<'a>(
        &self,
        from: PeerId,
        came: impl Iterator<Item = Came<'a>>,
        creditor: impl Fn() -> Arc<dyn Creditor>,
        mut lost: impl FnMut(u16, usize),
    ) -> u64 {
        // Looked up together and told one by one: nothing is sent under the lock.
        let mut found = Vec::with_capacity(came.size_hint().0);
        let mut table = self.table.lock();
        found.extend(came.map(|came| (table.take(came.number), came)));
        drop(table);
        let mut kept = 0;
        for (found, Came { kind, failed, payload, credit, charge, .. }) in found {
            if !matches!(found, Found::Waiting(_)) {
                lost(kind, payload.len());
            }
            match found {
                Found::Waiting(waiter) if failed => waiter.end(Err(table::failure(kind, &payload))),
                Found::Waiting(mut waiter) => {
                    self.counts.answered.add();
                    let charge = charge.or_else(|| Charge::take(&self.memory, payload.len()));
                    kept += self.hold(&mut waiter.place, payload.len(), charge, credit, &creditor);
                    waiter.end(Ok(Answer { from, kind, payload: payload.into_owned() }));
                }
                // That there is no answer is no news then.
                Found::Late if failed => {}
                Found::Late => self.counts.late.add(),
                Found::Unknown => self.counts.unknown.add(),
            }
        }
        kept
    }

    /// Counts the bytes of an answer until it is taken; returns the credit it keeps until then.
    fn hold(
        &self,
        place: &mut Place,
        bytes: usize,
        charge: Option<Charge>,
        credit: u64,
        creditor: impl Fn() -> Arc<dyn Creditor>,
    ) -> u64 {
        let before = self.places.bytes.fetch_add(bytes, Ordering::Relaxed);
        place.bytes = bytes;
        let fits = charge.is_some() && (before == 0 || before + bytes <= self.most_bytes.load(Ordering::Relaxed));
        place.charge = charge.unwrap_or_default();
        if fits {
            return 0;
        }
        let creditor = creditor();
        creditor.keep();
        place.held = Some((creditor, credit));
        credit
    }

    /// The life of the other side that had questions is over: those end.
    pub(crate) fn lose_handed(&self, error: &RequestError) {
        let lost = self.table.lock().lose_handed();
        lost.into_iter().for_each(|waiter| waiter.end(Err(error.clone())));
    }

    /// All questions end.
    pub(crate) fn lose_all(&self, error: &RequestError) {
        let lost = self.table.lock().lose_all();
        lost.into_iter().for_each(|waiter| waiter.end(Err(error.clone())));
    }

    /// No more are taken: the node is shutting down. Those end that the other side has.
    pub(crate) fn close(&self) {
        self.table.lock().close();
        self.lose_handed(&RequestError::ShuttingDown);
    }

    /// What became of them.
    pub(crate) fn counts(&self) -> RequestCounts {
        let RequestCounters { asked, answered, late, unknown } = &self.counts;
        RequestCounts {
            asked: asked.value(),
            answered: answered.value(),
            open: self.places.taken.load(Ordering::Relaxed),
            late: late.value(),
            unknown: unknown.value(),
        }
    }

    /// Ends what waited until `now`; whether any question still waits.
    fn expire(&self, now: Instant) -> bool {
        let mut table = self.table.lock();
        let expired = table.expire(now);
        let more = table.len() > 0;
        drop(table);
        expired.into_iter().for_each(|waiter| waiter.end(Err(RequestError::TimedOut)));
        more
    }
}

/// Whether what travels with these flags on this lane is an answer to a question.
pub(super) const fn is_answer(lane: Lane, flag_bits: u8) -> bool {
    matches!(lane, Lane::Reply) && flag_bits & flags::CORRELATED != 0
}

/// An answer that came, or word that there is none.
#[derive(Debug)]
pub(super) struct Came<'a> {
    /// The question's number.
    pub(super) number: u64,
    pub(super) kind: u16,
    /// There is none: the kind says why.
    pub(super) failed: bool,
    pub(super) payload: Cow<'a, [u8]>,
    /// Credit that it holds.
    pub(super) credit: u64,
    /// The memory it takes, if it has been counted.
    pub(super) charge: Option<Charge>,
}

/// The links of a node that have questions waiting: what the supervisor looks at.
#[derive(Debug, Default)]
pub(crate) struct Askers {
    list: Mutex<Vec<Arc<Requests>>>,
}

impl Askers {
    /// Ends questions whose deadline has passed; nobody else may be looking at them.
    pub(crate) fn expire(&self, now: Instant) {
        let mut listed = std::mem::take(&mut *self.list.lock());
        listed.retain(|requests| {
            if requests.expire(now) {
                return true;
            }
            // Whoever asks from here on lists it again; whoever asked just before did not.
            requests.listed.store(false, Ordering::Release);
            requests.expire(now) && !requests.listed.swap(true, Ordering::AcqRel)
        });
        if !listed.is_empty() {
            self.list.lock().append(&mut listed);
        }
    }
}

/// Numbers of questions begin at random, so that no answer to an earlier life of this process fits one of this: from
/// what names the state of a link, which is random.
pub(super) const fn first_number(state: u64) -> u64 {
    state.rotate_left(32) ^ 0x5157_4153_4b45_4431
}

#[allow(dead_code, reason = "asserts that what the application gets may go to any thread")]
const fn may_go_anywhere<T: Send + Sync>() {}
const _: () = may_go_anywhere::<Answered>();
