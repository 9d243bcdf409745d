//! What waits to be written to one peer, and who may write: the outbox and its write token.
//!
//! Owns: per lane one open segment and the sealed ones behind it (in a crossbeam channel), all not numbered yet; the
//! writer of the attached session while nobody writes. It outlives sessions: what waits survives a lost connection.
//! Threads: callers of send verbs append; the holder of the write token takes. Locks: its own, L3 (after the link's).
//! Blocks on: room in a lane, in [`Outbox::push`] with a deadline; woken when a segment is taken or the outbox closes.
//! Upholds: messages leave a lane in the order they were appended; at most one thread holds the token of a session;
//! whoever gives the token back, or finds it away, leaves nobody asleep while there is something to write.
//!
//! ```text
//!   send -> open segment -> sealed channel -> taken by the token's holder -> numbered, kept, written (link)
//!
//!   token:  here --take--> away --put--> here        (the session's tx, an idle peer's caller, or rx for an ack)
//!   tx:     working --rest--> waiting --kick--> working
//! ```

mod account;
mod asked;
mod backlog;
mod cast;
mod ends;
mod entries;
mod moving;
mod phases;
mod queue;
mod spares;
mod tickets;
mod token;
mod unknown;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::Offline;
use crate::error::SendErrorKind;
use crate::ident::ConnectionId;
use crate::link::{SEGMENT_BYTES, Segment, Taken};
use crate::memory::Budget;
use crate::metrics::Class;
use crate::outcome::ReturnReason;
use crate::session::options::{Defaults, OverflowPolicy};
use crate::session::receipt::Ended;
use crate::session::row::Joined;
use crate::session::writer::Writer;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::channel::{Receiver, bounded};
use crate::sync::{Condvar, Mutex, MutexGuard, deadline_in};
use crate::wire::{HEADER, Heading, LANES, Lane};

pub(crate) use asked::Refused;
pub(crate) use backlog::{Backlog, Level};
pub(crate) use entries::Entry;
pub(crate) use queue::{Item, QueueLimits};
#[cfg(all(test, shuttle))]
pub(super) use token::Omission;
pub(crate) use token::{Goodbye, Kick, Rest, Token};

use ends::Ends;
use queue::Queue;
use spares::Spares;
use tickets::Tickets;
use token::Tx;

/// The queue of one peer.
#[derive(Debug)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    room: Condvar,
    memory: Arc<Budget>,
    /// Some of what waits expires.
    expiring: AtomicBool,
    /// Messages that choose nothing are not sent as `send` alone would: they wait one by one.
    has_defaults: AtomicBool,
    /// Answers that nobody has taken, and that keep further ones from coming: a question that waited for room here could
    /// wait for them.
    crowded: AtomicUsize,
    /// Something may wait; see [`Outbox::may_wait`].
    waits: AtomicBool,
    /// The number of the session that is attached, 0 if none is: changed under the lock, for those who look without it.
    attached: AtomicU64,
    pub(crate) spares: Spares,
    /// What a model check leaves out, to prove that it would be missed.
    #[cfg(all(test, shuttle))]
    pub(super) omission: Option<Omission>,
}

#[derive(Debug)]
struct State {
    lanes: [Queue; LANES],
    /// The session that writes, if one is attached.
    tx: Option<Tx>,
    /// The write token, while nobody holds it.
    writer: Option<Box<Writer>>,
    /// Threads waiting for room.
    blocked: u32,
    closed: bool,
    /// Plain messages do not take the short path: they wait one by one, or are refused.
    special: bool,
    limits: QueueLimits,
    /// The peer is not known yet: so many bytes may wait for it, over all lanes.
    awaited: Option<usize>,
    defaults: Defaults,
    /// The application has said how long messages of this peer are wanted.
    ttl_chosen: bool,
    /// What became of messages that waited.
    ends: Ends,
    tickets: Tickets,
    /// The row that is the end of the normal lane's queue, if there is one.
    joined: Option<Joined>,
    /// Best effort segments that are being written.
    in_flight: Vec<Arc<Segment>>,
    /// Bytes the link keeps, and those taken of the node's memory.
    kept: usize,
    charged: usize,
}

/// How long a push may wait for room.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wait {
    /// Not at all.
    No,
    /// So long; the clock is read only if there is no room.
    UpTo(Duration),
    /// It needs no room: the question's credit pays (bytes per lane that return when the reply is written).
    Paid([u64; LANES]),
}

impl Outbox {
    /// An empty outbox without a session.
    pub(crate) fn new(limits: QueueLimits, memory: Arc<Budget>) -> Self {
        let lanes = [(); LANES].map(|()| Queue::new(Instant::now()));
        let state = State {
            lanes,
            tx: None,
            writer: None,
            blocked: 0,
            closed: false,
            special: false,
            limits,
            awaited: None,
            defaults: Defaults { overflow: OverflowPolicy::Block, ttl: limits.ttl },
            ttl_chosen: false,
            ends: Ends::default(),
            tickets: Tickets::default(),
            joined: None,
            in_flight: Vec::new(),
            kept: 0,
            charged: 0,
        };
        let outbox = Self {
            state: Mutex::new(state),
            room: Condvar::new(),
            memory,
            expiring: AtomicBool::new(false),
            has_defaults: AtomicBool::new(false),
            crowded: AtomicUsize::new(0),
            waits: AtomicBool::new(false),
            attached: AtomicU64::new(0),
            spares: Spares::new(),
            #[cfg(all(test, shuttle))]
            omission: None,
        };
        outbox.note_special(&mut outbox.state.lock());
        outbox
    }

    // ---- appending

    /// Appends a small message, if nothing beyond appending is to be done: there is room in the queue and in the open
    /// segment's buffer, and the sender thread is at work. False has done nothing: [`Outbox::push`] does it all.
    ///
    /// This is where a small message's nanoseconds go: one uncontended lock, two copies, four counters.
    #[inline]
    pub(crate) fn push_fast(&self, lane: Lane, class: Class, kind: u16, payload: &[u8]) -> bool {
        let len = HEADER + payload.len();
        let mut state = self.state.lock();
        let state = &mut *state;
        let queue = &mut state.lanes[lane.index()];
        let fits = queue.open.len() + len <= queue.open.capacity().min(SEGMENT_BYTES);
        if !fits || !queue.has_room(len, state.limits) || state.special || state.joined.is_some() {
            return false;
        }
        match &mut state.tx {
            // It may have looked at this lane already: it looks again before it sleeps.
            Some(tx) if !tx.waits => {
                tx.kicked = true;
                #[cfg(all(test, shuttle))]
                if self.omission == Some(Omission::FastKick) {
                    tx.kicked = false;
                }
            }
            _ if queue.starved => {}
            _ => return false,
        }
        debug_assert!(queue.messages > 0, "an open buffer has messages in it: the hint that something waits is up");
        queue.append(lane, class, Heading::of_kind(kind), payload);
        queue.messages += 1;
        queue.bytes += len;
        true
    }

    /// Appends a message, waiting for room if it may. `reads` is the number of reads of the peer's stream so far: a
    /// caller that answers what just came may write at once; `inline` is false where more is to follow at once.
    ///
    /// # Errors
    /// Full, timed out or closed; nothing was appended, and a large item is given back.
    ///
    /// # Blocking
    /// Until there is room or the deadline has passed.
    pub(crate) fn push<'a>(
        &self,
        lane: Lane,
        class: Class,
        item: Item<'a>,
        wait: Wait,
        inline: bool,
        reads: u64,
    ) -> Result<Kick, (SendErrorKind, Item<'a>)> {
        let len = item.len();
        let mut deadline = None;
        let mut state = self.state.lock();
        loop {
            self.take_share(&mut state);
            if let Some(refusal) = state.refusal() {
                return Err((refusal, item));
            }
            let queue = &state.lanes[lane.index()];
            let has_room = queue.has_room(len, state.limits);
            // What fits the open segment takes no more memory: its buffer is there.
            let small = matches!(item, Item::Small { .. }) && queue.open.len() + len <= SEGMENT_BYTES;
            if has_room && (small || self.affords(&mut state, len)) {
                break;
            }
            match wait {
                Wait::No => return Err((SendErrorKind::Full, item)),
                Wait::Paid(_) => break,
                Wait::UpTo(longest) if has_room => {
                    let deadline = *deadline.get_or_insert_with(|| deadline_in(longest));
                    let Some(again) = self.wait_for_memory(state, len, deadline) else {
                        return Err((SendErrorKind::TimedOut, item));
                    };
                    state = again;
                }
                Wait::UpTo(longest) => {
                    let deadline = *deadline.get_or_insert_with(|| deadline_in(longest));
                    state.blocked += 1;
                    let late = self.room.wait_until(&mut state, deadline).timed_out();
                    state.blocked -= 1;
                    if late && !state.closed && !state.lanes[lane.index()].has_room(len, state.limits) {
                        return Err((SendErrorKind::TimedOut, item));
                    }
                }
            }
        }
        self.waits.store(true, Ordering::Relaxed);
        let debt = if let Wait::Paid(debt) = wait { debt } else { [0; LANES] };
        let queue = &mut state.lanes[lane.index()];
        match item {
            Item::Small { heading, payload } if queue.ends_in_entries() => {
                // Another buffer for one message would be the greater cost, if both sorts alternate.
                queue.put_entry(Entry::plain(class, heading, payload.to_vec(), Instant::now()));
                return Ok(state.kick_unless_starved(lane, inline, reads));
            }
            Item::Small { heading, payload } => {
                if queue.open.len() + len > SEGMENT_BYTES {
                    queue.seal();
                }
                if queue.open.capacity() == 0 {
                    queue.open(self.spares.small(), Instant::now());
                }
                queue.append(lane, class, heading, payload);
                queue.owe(debt);
            }
            Item::Large(segment) => {
                queue.put_large(class, segment, debt, Instant::now());
            }
        }
        queue.messages += 1;
        queue.bytes += len;
        Ok(state.kick_unless_starved(lane, inline, reads))
    }

    // ---- the token

    /// Attaches a session: its writer is the token from now on. Returns what wakes its sender thread, and what the end
    /// of the one before it ended.
    pub(crate) fn attach(&self, writer: Box<Writer>) -> (Receiver<()>, Vec<Ended>) {
        let (wake, woken) = bounded(1);
        let mut state = self.state.lock();
        // What waited for company goes with what the new session writes first.
        self.take_share(&mut state);
        let tx = Tx::new(writer.conn(), wake);
        self.attached.store(tx.conn.0, Ordering::Relaxed);
        state.tx = Some(tx);
        let before = state.writer.replace(writer);
        drop(before);
        state.lanes.iter_mut().for_each(|lane| lane.starved = false);
        (woken, Self::lose_in_flight(&mut state))
    }

    /// Ends what a session does here, if it still is the attached one.
    pub(crate) fn detach(&self, conn: ConnectionId) {
        let mut state = self.state.lock();
        if state.tx.as_ref().is_some_and(|tx| tx.conn == conn) {
            state.tx = None;
            self.attached.store(0, Ordering::Relaxed);
            let writer = state.writer.take();
            drop(state);
            drop(writer);
        }
    }

    /// Whether a session is the attached one, or was a moment ago: a look that locks nothing.
    #[inline]
    pub(crate) fn is_attached(&self, conn: ConnectionId) -> bool {
        self.attached.load(Ordering::Relaxed) == conn.0
    }

    /// The sender thread of `conn` takes the token; if it `lingered`, what waited for company goes now.
    pub(crate) fn take_token(&self, conn: ConnectionId, lingered: bool) -> Token {
        let mut state = self.state.lock();
        let state = &mut *state;
        if lingered {
            self.take_share(state);
        }
        let Some(tx) = state.tx.as_mut().filter(|tx| tx.conn == conn) else { return Token::Gone };
        // It wants the token for something: if it is away, whoever gives it back wakes the thread again.
        tx.kicked = state.writer.is_none();
        tx.waits = tx.kicked;
        tx.lingers = false;
        match state.writer.take() {
            Some(writer) => Token::Here(writer),
            None => Token::Away,
        }
    }

    /// The sender thread has nothing more to write: it gives the token back and sleeps, unless something came
    /// meanwhile; then it gets the token again.
    pub(crate) fn rest(&self, writer: Box<Writer>) -> Rest {
        let mut state = self.state.lock();
        let state = &mut *state;
        let Some(tx) = state.tx.as_mut().filter(|tx| tx.conn == writer.conn()) else { return Rest::Asleep };
        if std::mem::take(&mut tx.kicked) {
            return Rest::Again(writer);
        }
        let company = match &state.joined {
            Some(joined) => joined.row.time_left(Instant::now()),
            None => Some(std::mem::take(&mut tx.company)),
        };
        let Some(company) = company else {
            self.take_share(state);
            if let Some(tx) = &mut state.tx {
                // This is the look that the share asks for.
                tx.kicked = false;
            }
            return Rest::Again(writer);
        };
        #[cfg(all(test, shuttle))]
        let company = if self.omission == Some(Omission::Linger) { Duration::ZERO } else { company };
        if !company.is_zero() {
            (tx.waits, tx.lingers) = (true, true);
            state.writer = Some(writer);
            return Rest::Lingering(company);
        }
        // What is queued here and was not taken has no credit: an acknowledgement will kick.
        state.lanes.iter_mut().for_each(|lane| lane.starved = lane.messages > 0);
        tx.waits = true;
        state.writer = Some(writer);
        Rest::Asleep
    }

    /// An inline writer gives the token back; the sender thread goes on where it stopped.
    pub(crate) fn put_back(&self, writer: Box<Writer>) -> Kick {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        #[cfg(all(test, shuttle))]
        if self.omission == Some(Omission::FenceAtPutBack) {
            state.writer = Some(writer);
            return Kick::No;
        }
        let Some(tx) = state.tx.as_mut().filter(|tx| tx.conn == writer.conn()) else { return Kick::No };
        let joined = state.joined.is_some() && !tx.lingers;
        let waits = joined || state.lanes.iter().any(|lane| lane.messages > 0 && !lane.starved);
        let more = tx.kicked || writer.has_more() || waits;
        state.writer = Some(writer);
        if !more || !tx.waits {
            return Kick::No;
        }
        #[cfg(all(test, shuttle))]
        if self.omission == Some(Omission::WakeAtPutBack) {
            return Kick::No;
        }
        tx.waits = false;
        Kick::Wake(tx.wake.clone())
    }

    /// Something changed that the writer should look at: an acknowledgement is owed or came. With `inline` the token
    /// is handed out if it is here.
    pub(crate) fn kick(&self, inline: bool) -> Kick {
        let mut state = self.state.lock();
        state.lanes.iter_mut().for_each(|lane| lane.starved = false);
        let state = &mut *state;
        let Some(tx) = state.tx.as_mut() else { return Kick::No };
        if inline
            && tx.waits
            && let Some(writer) = state.writer.take()
        {
            return Kick::Inline(writer);
        }
        tx.kicked = true;
        #[cfg(all(test, shuttle))]
        if self.omission == Some(Omission::Kick) {
            tx.kicked = false;
        }
        if !tx.waits || state.writer.is_none() {
            return Kick::No;
        }
        tx.waits = false;
        Kick::Wake(tx.wake.clone())
    }

    /// Asks the session `conn` to end its sending; the first ask counts.
    pub(crate) fn ask_goodbye(&self, conn: ConnectionId, goodbye: Goodbye) -> Kick {
        let mut state = self.state.lock();
        let Some(tx) = state.tx.as_mut().filter(|tx| tx.conn == conn) else { return Kick::No };
        tx.goodbye.get_or_insert(goodbye);
        drop(state);
        self.kick(false)
    }

    /// Whether and how the session `conn` was asked to end its sending.
    pub(crate) fn goodbye(&self, conn: ConnectionId) -> Option<Goodbye> {
        let state = self.state.lock();
        state.tx.as_ref().filter(|tx| tx.conn == conn).and_then(|tx| tx.goodbye)
    }

    // ---- taking, with the token and the link lock held

    /// Locked, to take segments of several lanes.
    pub(crate) fn taking(&self, now: Instant) -> Taking<'_> {
        Taking { outbox: self, state: None, freed: false, now, waited: None, ended: Vec::new() }
    }

    // ---- the rest

    /// Other bounds from now on. What waits stays, also beyond them: whoever comes waits for room then. Whoever waits
    /// looks again. For a peer that is not known, `unknown_bytes` may wait.
    pub(crate) fn set_limits(&self, limits: QueueLimits, unknown_bytes: usize) {
        let mut state = self.state.lock();
        self.take_share(&mut state);
        state.limits = limits;
        state.awaited = state.awaited.map(|_| unknown_bytes);
        if !state.ttl_chosen {
            state.defaults.ttl = limits.ttl;
        }
        self.note_special(&mut state);
        let wake = state.blocked > 0;
        drop(state);
        #[cfg(all(test, shuttle))]
        if self.omission == Some(Omission::WakeAtLimits) {
            return;
        }
        if wake {
            self.room.notify_all();
        }
    }

    /// Refuses all further messages and wakes whoever waits for room.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        self.take_share(&mut state);
        state.closed = true;
        self.note_special(&mut state);
        drop(state);
        self.memory.wake();
        #[cfg(all(test, shuttle))]
        if self.omission == Some(Omission::WakeAtClose) {
            return;
        }
        self.room.notify_all();
    }

    /// Messages and bytes that wait, and messages accepted so far.
    pub(crate) fn counts(&self) -> OutboxCounts {
        let mut state = self.state.lock();
        self.take_share(&mut state);
        OutboxCounts {
            messages: state.messages(),
            bytes: state.bytes(),
            accepted: state.begun().total().messages,
            oldest: state.oldest(),
            returned: state.ends.returned.total().messages,
            written: state.ends.written.total().messages,
            unknown: state.ends.unknown.total().messages,
        }
    }
}

/// How much an outbox holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OutboxCounts {
    /// Messages that wait.
    pub(crate) messages: usize,
    /// Bytes that wait.
    pub(crate) bytes: usize,
    /// Messages taken in so far.
    pub(crate) accepted: u64,
    /// When the oldest message that waits was appended.
    pub(crate) oldest: Option<Instant>,
    /// Messages that came back from here, before they had a number.
    pub(crate) returned: u64,
    /// Best effort messages that were written, and those of which that is not known.
    pub(crate) written: u64,
    pub(crate) unknown: u64,
}

impl State {
    /// Why nothing is taken now, if so.
    fn refusal(&self) -> Option<SendErrorKind> {
        if self.closed {
            Some(SendErrorKind::ShuttingDown)
        } else if self.limits.offline == Offline::Return && self.tx.is_none() {
            Some(SendErrorKind::Offline)
        } else {
            None
        }
    }

    fn kick_unless_starved(&mut self, lane: Lane, inline: bool, reads: u64) -> Kick {
        if self.lanes[lane.index()].starved { Kick::No } else { self.kick(inline, reads) }
    }

    /// Decides who writes what was just appended.
    fn kick(&mut self, inline: bool, reads: u64) -> Kick {
        let Some(tx) = &mut self.tx else { return Kick::No };
        if !tx.waits {
            // It may have looked at this lane already: it looks again before it sleeps.
            tx.kicked = true;
            return Kick::No;
        }
        let Some(writer) = self.writer.as_mut() else {
            // Whoever writes now finds it when giving the token back.
            return Kick::No;
        };
        if inline
            && writer.may_inline(reads)
            && let Some(writer) = self.writer.take()
        {
            return Kick::Inline(writer);
        }
        tx.waits = false;
        Kick::Wake(tx.wake.clone())
    }
}

/// The outbox, locked at the first take and until this is dropped.
pub(crate) struct Taking<'a> {
    outbox: &'a Outbox,
    state: Option<MutexGuard<'a, State>>,
    freed: bool,
    now: Instant,
    /// How long the first message that was taken had waited.
    waited: Option<(Class, Duration)>,
    /// What was found to have expired.
    ended: Vec<Ended>,
}

impl Taking<'_> {
    /// The oldest segment of a lane.
    pub(crate) fn take(&mut self, lane: Lane) -> Option<Taken> {
        let state = &mut **self.state.get_or_insert_with(|| self.outbox.state.lock());
        let tickets = &mut state.tickets;
        let queue = &mut state.lanes[lane.index()];
        let (taken, expired) = queue.take(lane, self.now, |ticket, last| tickets.asks_now(ticket, last));
        if let Some(taken) = &taken {
            tickets.taken(taken.segment.tracks(), self.now);
            state.ends.taken.add_all(&taken.groups);
            if self.waited.is_none() {
                let class = taken.groups.iter().next().map(|group| group.class);
                self.waited = class.map(|class| (class, self.now.saturating_duration_since(taken.since)));
            }
            let limits = state.limits;
            // Low water at three quarters: a waiting sender is not woken for each segment.
            self.freed |= queue.bytes <= limits.bytes / 4 * 3 && queue.messages <= limits.messages / 4 * 3;
        }
        for entry in expired {
            self.ended.push(state.end(lane, entry, ReturnReason::Expired));
        }
        taken
    }

    /// What was taken is best effort, and is being written.
    pub(crate) fn in_flight(&mut self, segments: Vec<Arc<Segment>>) {
        if let Some(state) = &mut self.state {
            state.in_flight.extend(segments);
        }
    }

    /// The link keeps so many bytes now.
    pub(crate) fn settle_account(&mut self, kept: usize) {
        if let Some(state) = &mut self.state {
            state.kept = kept;
            self.outbox.give_back(state);
        }
    }

    /// What the first message that was taken counts as, and how long it had waited.
    pub(crate) fn waited(&self) -> Option<(Class, Duration)> {
        self.waited
    }

    /// What ended meanwhile.
    pub(crate) fn take_ended(&mut self) -> Vec<Ended> {
        std::mem::take(&mut self.ended)
    }
}

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        let wake = self.freed && self.state.as_ref().is_some_and(|state| state.blocked > 0);
        self.state = None;
        #[cfg(all(test, shuttle))]
        if self.outbox.omission == Some(Omission::WakeForRoom) {
            return;
        }
        if wake {
            self.outbox.room.notify_all();
        }
    }
}
