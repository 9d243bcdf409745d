//! What waits to be written to one peer, and who may write: the outbox and its write token.
//!
//! Owns: per lane one open segment, the sealed ones before it (in a crossbeam channel) and the messages that wait one by one,
//! all not numbered yet; the peer's part in a row of broadcasts; the writer of the attached session while nobody writes.
//! It outlives sessions: what waits survives a lost connection.
//! Threads: callers of send verbs append; the holder of the write token takes. Locks: its own, L3 (after the link's).
//! Blocks on: room in a lane and the node's memory, in [`Outbox::push`] and [`Outbox::push_entry`] with a deadline; woken
//! when a segment is taken, something expires or is given back, bounds change, answers crowd, or the outbox closes.
//! Upholds: messages leave a lane in the order they were appended; at most one thread holds the token of a session;
//! whoever gives the token back, or finds it away, leaves nobody asleep while there is something to write.
//!
//! ```text
//!   send -> open segment -> sealed channel -> taken by the token's holder -> numbered, kept, written (link)
//!
//!   token:  here --take--> away --put--> here        (the session's tx, an idle peer's caller, or rx for an ack)
//!   tx:     working --rest--> waiting --kick--> working
//!              `----rest----> lingering --kick, or its time has come--> working          (see `cast`)
//! ```

mod account;
mod asked;
mod backlog;
mod cast;
mod ends;
mod entries;
mod entry;
mod moving;
mod phases;
mod pushing;
mod queue;
mod spares;
mod taking;
mod tickets;
mod token;
mod unknown;

use std::sync::Arc;
use std::time::Instant;

use crate::config::Offline;
use crate::error::SendErrorKind;
use crate::link::Segment;
use crate::memory::Budget;
use crate::session::options::{Defaults, OverflowPolicy};
use crate::session::row::Joined;
use crate::session::writer::Writer;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use crate::sync::{Condvar, Mutex};
use crate::wire::LANES;

pub(crate) use asked::Refused;
pub(crate) use backlog::{Backlog, Level};
pub(crate) use entry::Entry;
pub(crate) use pushing::Wait;
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
}
