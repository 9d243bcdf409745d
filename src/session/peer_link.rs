//! What all threads share about one peer: the link's core, its outbox, and who looks after both.
//!
//! Owns: the link core behind the link lock (L2), the outbox (L3 inside). It outlives sessions.
//! Threads: callers of send verbs, `tx-<peer>`, `rx-<peer>`, the application as it drops messages.
//! Locks: the link lock, then the outbox lock; never while writing to a socket or calling a handler.
//! Blocks on: room in the outbox, in [`PeerLink::push`] with a deadline.
//! Upholds: what is appended is written by somebody; what is owed is acknowledged within the ack delay.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::config::LINK_FLOOR;
use crate::error::{RejectCause, SendError, SendErrorKind};
use crate::ident::{ConnectionId, PeerId};
use crate::link::{AckDue, Acked, LARGE, LinkCore, Segment};
use crate::memory::{Budget, Charge};
use crate::metrics::{Arrivals, Class, PhaseTimes};
use crate::session::handling;
use crate::session::kinds::{KindCounters, Kinds};
use crate::session::outbox::{Item, Kick, Outbox, Wait};
use crate::session::probes::ProbeTimes;
use crate::session::redial::RedialNote;
use crate::session::requests::{self, Askers, Creditor, Requests};
use crate::session::stand_in::StandIn;
use crate::session::taps::OutgoingTaps;
use crate::session::traffic::LinkTraffic;
use crate::session::tuning::Tuned;
use crate::session::undelivered::Undeliverable;
use crate::session::writer::Writer;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Condvar, Mutex};
use crate::wire::{Heading, LANES, Lane};

/// What all links of a node share.
#[derive(Debug)]
pub(crate) struct SessionSettings {
    /// What may change while they run.
    pub(crate) tuned: Tuned,
    /// The node's memory beyond the floors of its links.
    pub(crate) memory: Arc<Budget>,
    /// Whether what comes waits for the application: without a handler.
    pub(crate) holds_inbound: bool,
    /// Where messages go that failed and that nobody waits for.
    pub(crate) undelivered: Arc<Undeliverable>,
    /// What the application registered.
    pub(crate) kinds: Arc<Kinds>,
    /// Links of the node that have questions.
    pub(crate) askers: Arc<Askers>,
    /// How long messages of all peers take.
    pub(crate) times: Arc<PhaseTimes>,
    /// Where messages are announced that are accepted.
    pub(crate) taps: OutgoingTaps,
}

/// What threads share about one peer.
pub(crate) struct PeerLink {
    pub(crate) id: PeerId,
    /// The link lock.
    pub(crate) core: Mutex<LinkCore>,
    /// Something was delivered: another session may go on. Waits with `core`.
    pub(super) delivered: Condvar,
    pub(crate) outbox: Outbox,
    pub(crate) settings: Arc<SessionSettings>,
    /// Reads of the peer's stream so far, over all sessions.
    pub(super) reads: AtomicU64,
    /// The sender thread will look at owed acknowledgements within the ack delay.
    pub(super) ack_timer: AtomicBool,
    /// A handler is running.
    pub(super) busy: AtomicBool,
    /// What went over its connections.
    pub(crate) traffic: Arc<LinkTraffic>,
    /// Where the peer said it can be dialled.
    advertised: Mutex<Option<SocketAddr>>,
    /// The token this side proposes if it decides the first attach.
    pub(crate) token: [u8; 16],
    /// What the window of what comes takes of the node's memory, while a session is attached.
    inbound: Mutex<Vec<Charge>>,
    /// When the peer is dialled again: noted here for those who look.
    pub(crate) redial: RedialNote,
    /// Questions of ours that wait for answers.
    pub(crate) requests: Arc<Requests>,
    /// Messages by kind.
    pub(super) by_kind: KindCounters,
    /// What came and how it ended, by kind.
    pub(super) arrivals: Arrivals,
    /// When what is measured was written.
    pub(super) probes: ProbeTimes,
    /// As in the settings: one step nearer for the shortest path.
    pub(super) taps: OutgoingTaps,
    /// Messages shorter than this need nothing beyond appending; none if kinds are to be looked up.
    fast_below: AtomicUsize,
    /// Set if this is no peer's: it stands for an address.
    pub(super) stand_in: OnceLock<StandIn<PeerLink>>,
}

impl std::fmt::Debug for PeerLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerLink").field("id", &self.id).finish_non_exhaustive()
    }
}

impl PeerLink {
    /// A link that has never been attached.
    pub(crate) fn new(core: LinkCore, id: PeerId, token: [u8; 16], settings: Arc<SessionSettings>) -> Self {
        let first = requests::first_number(core.state_id());
        let tuning = settings.tuned.all();
        let requests = Requests::new(first, tuning.requests, settings.memory.clone(), settings.askers.clone());
        Self {
            id,
            requests,
            arrivals: Arrivals::new(settings.kinds.len()),
            probes: ProbeTimes::new(Instant::now()),
            by_kind: KindCounters::new(settings.kinds.clone()),
            taps: settings.taps.clone(),
            fast_below: AtomicUsize::new(fast_below(&settings, tuning.link.max_message)),
            core: Mutex::new(core),
            delivered: Condvar::new(),
            outbox: Outbox::new(tuning.queue, settings.memory.clone()),
            settings,
            reads: AtomicU64::new(0),
            ack_timer: AtomicBool::new(false),
            busy: AtomicBool::new(false),
            traffic: Arc::default(),
            advertised: Mutex::new(None),
            token,
            inbound: Mutex::default(),
            redial: RedialNote::default(),
            stand_in: OnceLock::new(),
        }
    }

    /// Puts the present times and sizes to use. What the link holds stays, also beyond them.
    pub(crate) fn tune(&self) {
        let tuned = &self.settings.tuned;
        loop {
            let (version, tuning) = (tuned.version(), tuned.all());
            let mut core = self.core.lock();
            core.set_limits(tuning.link);
            if !self.settings.holds_inbound {
                core.set_inbound_window(tuning.link.window_bytes);
            }
            drop(core);
            self.requests.set_limits(tuning.requests);
            self.outbox.set_limits(tuning.queue, tuning.unknown_bytes);
            self.fast_below.store(fast_below(&self.settings, tuning.link.max_message), Ordering::Relaxed);
            // Whoever waits for a timer or a window of before looks again.
            self.outbox.kick(false).wake();
            // Changed again meanwhile: the other one may have been here first.
            if version == tuned.version() {
                return;
            }
        }
    }

    /// Appends a small message to a busy peer; false has done nothing.
    #[inline]
    pub(crate) fn push_fast(&self, lane: Lane, class: Class, kind: u16, payload: &[u8]) -> bool {
        payload.len() < self.fast_below.load(Ordering::Relaxed)
            && !self.taps.are_tapped()
            && self.outbox.push_fast(lane, class, kind, payload)
    }

    /// The longest message that needs nothing beyond appending, if there are such: no kinds, and nobody who listens.
    pub(crate) fn longest_plain(&self) -> Option<usize> {
        self.fast_below.load(Ordering::Relaxed).checked_sub(1).filter(|_| !self.taps.are_tapped())
    }

    /// Appends a small message of a broadcast, which may wait for `company`; `None` has done nothing.
    pub(super) fn push_cast(
        &self,
        kind: u16,
        payload: &[u8],
        company: Duration,
    ) -> Option<Result<Kick, SendErrorKind>> {
        let is_plain = self.longest_plain().is_some_and(|most| payload.len() <= most);
        let class = self.class_of(Heading::of_kind(kind), true);
        if is_plain { self.outbox.push_cast(Lane::Normal, class, kind, payload, company) } else { None }
    }

    /// Appends a message and sees to it that somebody writes it.
    pub(crate) fn push<P>(
        self: &Arc<Self>,
        lane: Lane,
        heading: Heading,
        payload: P,
        wait: Wait,
    ) -> Result<(), SendError>
    where
        P: AsRef<[u8]> + Into<Vec<u8>>,
    {
        let len = payload.as_ref().len();
        // An answer has the kind of its question, and no bound of it.
        let is_answer = requests::is_answer(lane, heading.flags);
        if len > self.settings.tuned.max_message() || !(is_answer || self.settings.kinds.allows(heading.kind, len)) {
            return Err(SendError { kind: SendErrorKind::TooLarge, payload: payload.into() });
        }
        if lane != Lane::Reply
            && let Some(defaults) = self.outbox.one_by_one()
        {
            return self.push_by_defaults(lane, heading, payload.into(), wait, defaults);
        }
        let class = self.class_of(heading, false);
        let reads = self.reads.load(Ordering::Relaxed);
        let inline = !handling::more_to_come(self.address());
        let draft = self.taps.draft(payload.as_ref(), || None);
        let kick = if len > LARGE {
            // What needs no drop is borrowed (or an array): it is copied once, into memory that is at hand.
            let owned = if std::mem::needs_drop::<P>() {
                payload.into()
            } else {
                self.outbox.spares.copy_large(payload.as_ref())
            };
            let item = Item::Large(Segment::large(lane, heading, owned));
            self.outbox.push(lane, class, item, wait, inline, reads).map_err(|(kind, item)| match item {
                Item::Large(segment) => SendError { kind, payload: segment.into_payload() },
                Item::Small { payload, .. } => SendError { kind, payload: payload.to_vec() },
            })?
        } else {
            let item = Item::Small { heading, payload: payload.as_ref() };
            match self.outbox.push(lane, class, item, wait, inline, reads) {
                Ok(kick) => kick,
                Err((kind, _)) => return Err(SendError { kind, payload: payload.into() }),
            }
        };
        match kick {
            Kick::No => {}
            kick => self.act(kick, false),
        }
        if !is_answer {
            self.by_kind.sent(heading.kind);
        }
        if let Some(draft) = draft {
            self.taps.announce(draft, self.id, lane, heading, false, None);
        }
        Ok(())
    }

    /// Gathers the next turn into the write token: acknowledgements that are due (all of them along with data, or with
    /// `acks`), and the next chunk. False when there is nothing to write.
    pub(super) fn gather(&self, writer: &mut Writer, acks: bool) -> bool {
        let mut core = self.core.lock();
        let mut taking = self.outbox.taking(Instant::now());
        let more = writer.gather(&mut core, |lane| taking.take(lane), acks);
        taking.in_flight(writer.take_best_effort());
        taking.settle_account(core.kept_bytes());
        let (waited, ended) = (taking.waited(), taking.take_ended());
        drop((core, taking));
        if let Some((class, waited)) = waited {
            self.settings.times.queued(class, waited);
        }
        self.tell(ended);
        if let Some(buffer) = writer.take_spare() {
            self.outbox.spares.recycle(buffer);
        }
        more
    }

    /// Names the link to [`handling`].
    pub(super) fn address(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }

    /// Does what a change of the outbox asks for: wakes the sender thread, or writes one turn without waiting.
    pub(super) fn act(&self, kick: Kick, acks: bool) {
        let Some(mut writer) = kick.wake() else { return };
        // A failed write stays a residue: the sender thread meets the error and ends the session.
        let wrote = writer.has_residue() || !self.gather(&mut writer, acks) || writer.try_write().is_ok();
        if !wrote {
            log::trace!(target: "threadwire::session", "{}: inline write failed", writer.conn());
        }
        self.note_written(&mut writer);
        self.outbox.put_back(writer).wake();
    }

    /// Messages were handed over or rejected; see [`LinkCore::finish`].
    pub(crate) fn finish(
        &self,
        generation: u32,
        lane: Lane,
        upto: u64,
        credit: u64,
        rejected: Option<(u64, RejectCause)>,
    ) {
        let mut core = self.core.lock();
        core.finish(generation, lane, upto, credit, rejected);
        let due = core.ack_due();
        drop(core);
        self.see_to_acks(due);
    }

    /// The receiver thread of `conn` has delivered all it had claimed, up to `upto`: [`PeerLink::finish`], and another
    /// session may go on.
    pub(super) fn finish_delivery(&self, conn: ConnectionId, generation: u32, lane: Lane, upto: u64, credit: u64) {
        let mut core = self.core.lock();
        core.finish(generation, lane, upto, credit, None);
        core.delivered(conn);
        let due = core.ack_due();
        drop(core);
        self.delivered.notify_all();
        self.see_to_acks(due);
    }

    /// Returns credit.
    pub(super) fn release(&self, credit: [u64; LANES]) {
        let mut core = self.core.lock();
        for (lane, credit) in Lane::ALL.into_iter().zip(credit) {
            core.release(lane, credit);
        }
        let due = core.ack_due();
        drop(core);
        self.see_to_acks(due);
    }

    /// Writes acknowledgements that are due now, and sees to it that a timer runs for those that can wait.
    pub(super) fn see_to_acks(&self, due: AckDue) {
        match due {
            AckDue::No => {}
            AckDue::Now => self.act(self.outbox.kick(true), true),
            AckDue::Later => {
                if !self.ack_timer.load(Ordering::Relaxed) && !self.ack_timer.swap(true, Ordering::Relaxed) {
                    self.outbox.kick(false).wake();
                }
            }
        }
    }

    /// Reuses the buffers an acknowledgement freed, and wakes a writer that waited for it.
    pub(crate) fn see_to_freed(&self, mut acked: Acked) {
        self.settle(&mut acked);
        for segment in acked.segments {
            match Arc::into_inner(segment) {
                Some(segment) if segment.is_large() => {
                    if let Some(buffer) = segment.into_buffer() {
                        self.outbox.spares.recycle_large(buffer);
                    }
                }
                Some(segment) => {
                    if let Some(buffer) = segment.into_buffer() {
                        self.outbox.spares.recycle(buffer);
                    }
                }
                // Still being written: the writer frees it.
                None => {}
            }
        }
        if acked.wake {
            self.outbox.kick(false).wake();
        }
    }

    /// A session is about to be attached: takes the memory that what comes may hold, or makes do with the floor. What a
    /// handler takes at once is held nowhere.
    pub(crate) fn open_window(&self) {
        if !self.settings.holds_inbound {
            return;
        }
        let window = self.hold_window();
        self.core.lock().set_inbound_window(window);
    }

    /// Takes the memory for what comes beyond the floor, as far as it is not taken: how much may come with what there is.
    pub(super) fn hold_window(&self) -> usize {
        let window = self.settings.tuned.all().link.window_bytes;
        if !self.settings.holds_inbound {
            return window;
        }
        let mut inbound = self.inbound.lock();
        let held = |inbound: &[Charge]| inbound.iter().map(Charge::bytes).sum::<usize>();
        let missing = window.saturating_sub(LINK_FLOOR + held(&inbound));
        // A window that became smaller gives nothing back: what came before may fill the larger one still.
        if missing > 0 {
            inbound.extend(Charge::take(&self.settings.memory, missing));
        }
        window.min(LINK_FLOOR + held(&inbound))
    }

    /// No session was attached any more, a moment ago.
    pub(crate) fn close_window(&self) {
        let held = std::mem::take(&mut *self.inbound.lock());
        drop(held);
        // One that was attached since holds what it was told it may; one that is to be takes it by itself.
        if self.core.lock().attached().is_some() {
            self.hold_window();
        }
    }

    /// Where the peer said it can be dialled, in the handshake of its last connection.
    pub(crate) fn advertised(&self) -> Option<SocketAddr> {
        *self.advertised.lock()
    }

    /// The peer has said where it can be dialled.
    pub(crate) fn note_advertised(&self, addr: Option<SocketAddr>) {
        *self.advertised.lock() = addr;
    }

    /// Whether a handler runs now.
    pub(crate) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }

    /// Whether everything accepted has ended at the other side.
    pub(crate) fn is_drained(&self) -> bool {
        self.core.lock().kept_bytes() == 0 && self.outbox.counts().messages == 0
    }
}

/// Messages shorter than this need no look at their kind, and are not large.
fn fast_below(settings: &SessionSettings, max_message: usize) -> usize {
    if settings.kinds.is_empty() { LARGE.min(max_message).saturating_add(1) } else { 0 }
}

impl Creditor for PeerLink {
    fn keep(&self) {
        self.outbox.crowd(true);
    }

    fn give_back(&self, credit: u64) {
        self.outbox.crowd(false);
        let mut all = [0; LANES];
        all[Lane::Reply.index()] = credit;
        self.release(all);
    }
}
