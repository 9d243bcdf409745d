//! Messages with a fate of their own: how they are sent, and how whoever asked hears what became of them.
//!
//! Owns: nothing. Threads: callers of send verbs; whoever ends a message (the holder of the write token, `rx-<peer>` with
//! an acknowledgement, `supervisor`, the thread that shuts down) tells. Locks: the link lock or the outbox lock, one
//! after the other; none while somebody is told. Blocks on: room in the queue, if the policy is to wait.
//! Upholds: each accepted message is told of once; what nobody waits for and has failed goes to `undelivered`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{SendError, SendErrorKind};
use crate::link::{Acked, Payload};
use crate::metrics::Class;
use crate::outcome::ReturnReason;
use crate::session::handling;
use crate::session::options::{BEST_EFFORT_MOST, Defaults, Delivery, OverflowPolicy, Priority, SendOptions};
use crate::session::outbox::{Entry, Kick, Refused, Wait};
use crate::session::peer_link::PeerLink;
use crate::session::receipt::{Asker, Collected, Collector, Ended, Receipt, ReceiptState};
use crate::session::undelivered::Label;
use crate::session::writer::Writer;
use crate::sync::atomic::Ordering;
use crate::wire::{Heading, Lane, flags};

impl PeerLink {
    /// Sends a message as its options say; whoever is given the receipt hears of it.
    pub(super) fn send_with(&self, payload: Vec<u8>, options: &SendOptions) -> Result<Receipt, SendError> {
        let state = Arc::new(ReceiptState::new());
        let label = Label { kind: options.kind, lane: self.priority_of(options).lane() };
        self.send_asked(payload, options, Asker::Receipt(state.clone()))?;
        Ok(Receipt::new(state, self.settings.undelivered.clone(), label))
    }

    /// Sends a message as its options say; the collector hears of it.
    pub(super) fn send_collected(
        &self,
        payload: Vec<u8>,
        options: &SendOptions,
        collector: &Collector,
        tag: u64,
    ) -> Result<(), SendError> {
        match collector.reserve() {
            Some(slot) => self.send_asked(payload, options, Asker::Collector(slot, tag)),
            None => Err(SendError { kind: SendErrorKind::Uncollected, payload }),
        }
    }

    /// Sends a message as its options say.
    pub(super) fn send_asked(&self, payload: Vec<u8>, options: &SendOptions, asker: Asker) -> Result<(), SendError> {
        let defaults = self.outbox.defaults();
        let policy = options.overflow.unwrap_or(defaults.overflow);
        if policy == OverflowPolicy::Block && handling::in_handler() {
            return Err(SendError { kind: SendErrorKind::WouldBlock, payload });
        }
        let heading = Heading::of_kind(options.kind);
        let (class, ttl) = (self.class_of(heading, false), options.ttl.or(defaults.ttl));
        Ok(self.push_entry(heading, class, payload.into(), options, policy, ttl, asker, true)?)
    }

    /// Sends question `number`, which is wanted from its first time to its second one. Inside a handler it does not wait
    /// for room.
    pub(super) fn push_question(
        &self,
        number: u64,
        payload: Vec<u8>,
        (now, deadline): (Instant, Instant),
        options: &SendOptions,
    ) -> Result<(), SendError> {
        let heading = Heading { kind: options.kind, flags: flags::CORRELATED, correlation: Some(number) };
        let left = deadline.saturating_duration_since(now);
        let longest = options.timeout.unwrap_or(self.settings.tuned.send_deadline()).min(left);
        let policy = match options.overflow.unwrap_or(self.outbox.defaults().overflow) {
            OverflowPolicy::Block if handling::in_handler() => OverflowPolicy::Fail,
            policy => policy,
        };
        // Its own time may be shorter than that of its answer.
        let expires = options.ttl.and_then(|ttl| options.created_at.unwrap_or(now).checked_add(ttl));
        let ttl = expires.map_or(left, |expires| expires.saturating_duration_since(now).min(left));
        let options = SendOptions { timeout: Some(longest), created_at: Some(now), ..options.clone() };
        let (class, asker) = (self.class_of(heading, false), Asker::Question(number));
        Ok(self.push_entry(heading, class, payload.into(), &options, policy, Some(ttl), asker, true)?)
    }

    /// Sends a message that chose nothing, as the peer's defaults say.
    pub(super) fn push_by_defaults(
        &self,
        lane: Lane,
        heading: Heading,
        payload: Vec<u8>,
        wait: Wait,
        defaults: Defaults,
    ) -> Result<(), SendError> {
        let mut options = SendOptions { priority: Priority::of_lane(lane), ..SendOptions::default() };
        let policy = match wait {
            Wait::UpTo(longest) => {
                options.timeout = Some(longest);
                defaults.overflow
            }
            Wait::No | Wait::Paid(_) => OverflowPolicy::Fail,
        };
        let class = self.class_of(heading, false);
        Ok(self.push_entry(heading, class, payload.into(), &options, policy, defaults.ttl, Asker::Nobody, true)?)
    }

    /// How urgent a message is that is sent so.
    fn priority_of(&self, options: &SendOptions) -> Priority {
        options.priority.unwrap_or_else(|| self.settings.kinds.priority(options.kind))
    }

    /// Appends a message that waits by itself. `inline`: this thread may write it where the peer is idle; it may not where
    /// the message is for many.
    #[expect(clippy::too_many_arguments, reason = "each is a choice of the verb's")]
    pub(super) fn push_entry(
        &self,
        heading: Heading,
        class: Class,
        payload: Payload,
        options: &SendOptions,
        policy: OverflowPolicy,
        ttl: Option<Duration>,
        asker: Asker,
        inline: bool,
    ) -> Result<(), Refused> {
        let best_effort = options.delivery == Delivery::BestEffort;
        let longest = if best_effort { BEST_EFFORT_MOST } else { usize::MAX }.min(self.settings.tuned.max_message());
        if payload.len() > longest || !self.settings.kinds.allows(heading.kind, payload.len()) {
            return Err(Refused { kind: SendErrorKind::TooLarge, payload });
        }
        let draft = self.taps.draft(&payload, || payload.shared());
        let now = Instant::now();
        let entry = Entry {
            heading,
            payload,
            class,
            ticket: None,
            expires: ttl.and_then(|ttl| options.created_at.unwrap_or(now).checked_add(ttl)),
            best_effort,
            droppable: policy.may_drop(),
            key: if let OverflowPolicy::Conflate(key) = policy { Some(key) } else { None },
            since: now,
            age_ms: options.created_at.map_or(0, |created| {
                u32::try_from(now.saturating_duration_since(created).as_millis()).unwrap_or(u32::MAX)
            }),
        };
        debug_assert!(heading.correlation.is_some() == (heading.flags & flags::CORRELATED != 0));
        let lane = self.priority_of(options).lane();
        let wait = options.timeout.unwrap_or(self.settings.tuned.send_deadline());
        let many = !inline;
        let inline = inline && !handling::more_to_come(self.address());
        let reads = self.reads.load(Ordering::Relaxed);
        let mut ended = Vec::new();
        let pushed = self.outbox.push_entry(lane, entry, asker, policy, wait, inline, reads, &mut ended);
        let sent = match pushed {
            Ok(kick) => {
                if !matches!(kick, Kick::No) {
                    self.act(kick, false);
                }
                self.by_kind.sent(heading.kind);
                if let Some(draft) = draft {
                    self.taps.announce(draft, self.id, lane, heading, many, options.created_at);
                }
                Ok(())
            }
            Err(refused) => Err(refused),
        };
        self.tell(ended);
        sent
    }

    /// Tells whoever asked what became of their messages. No lock may be held.
    pub(crate) fn tell(&self, ended: Vec<Ended>) {
        let undelivered = &self.settings.undelivered;
        let mut collected = Collected::default();
        for Ended { asker, label, outcome } in ended {
            match asker {
                Asker::Nobody => undelivered.put(self.id, label, outcome),
                Asker::Receipt(state) => {
                    if let Some(outcome) = state.tell(self.id, outcome) {
                        undelivered.put(self.id, label, outcome);
                    }
                }
                Asker::Collector(slot, tag) => collected.add(slot, tag, label, outcome),
                Asker::Question(number) => self.requests.told(number, outcome),
            }
        }
        for (label, outcome) in collected.send() {
            undelivered.put(self.id, label, outcome);
        }
    }

    /// The write token's holder has written something.
    pub(super) fn note_written(&self, writer: &mut Writer) {
        let probes = writer.take_probes();
        if probes != 0 {
            self.probes_written(probes, writer.last());
        }
        let tickets = writer.take_written();
        if !tickets.is_empty() {
            self.tell(self.outbox.written(&tickets, Instant::now()));
        }
    }

    /// Tells what the link says of messages.
    pub(super) fn settle(&self, acked: &mut Acked) {
        for rejected in &acked.rejected {
            self.traffic.returned.add(rejected.cause);
            let (number, cause) = (rejected.number, rejected.cause);
            log::debug!(target: "threadwire::link", "{}: message {number} was rejected: {cause}", self.id.short());
        }
        if let Some(kept) = acked.kept {
            self.outbox.settle_account(kept);
        }
        let now = Instant::now();
        if let Some((lane, probe)) = &acked.probe {
            self.probe_answered(*lane, probe, now);
        }
        let ended = self.outbox.settle(acked, now);
        self.tell(ended);
    }

    /// Ends messages that waited until they expired.
    pub(crate) fn expire(&self, now: Instant) {
        self.tell(self.outbox.expire(now));
    }

    /// Ends messages that came by `limit` and wait for a peer that is still not known.
    pub(crate) fn end_unknown(&self, limit: Instant) {
        self.tell(self.outbox.end_unknown(limit));
    }

    /// The resume window ended; `state_id` as in [`LinkCore::give_up`]. Returns how many messages ended.
    ///
    /// [`LinkCore::give_up`]: crate::link::LinkCore::give_up
    pub(crate) fn give_up(&self, state_id: u64) -> usize {
        let mut core = self.core.lock();
        let (lost, kept) = (core.give_up(state_id), Some(core.kept_bytes()));
        drop(core);
        let count = lost.len();
        self.settle(&mut Acked { lost, kept, ..Acked::default() });
        count
    }

    /// Ends all messages: the node has shut down. Returns how many of them were never written, and how many were.
    pub(crate) fn end(&self, state_id: u64) -> (u64, u64) {
        self.outbox.close();
        let (returned, _) = self.outbox.return_all(ReturnReason::ShutDown);
        // Of a session whose end nobody reports: a handler holds the other one of its threads.
        let in_flight = self.outbox.end_in_flight();
        let lost = self.core.lock().end(state_id);
        let unsent = lost.iter().filter(|lost| !lost.written).count() + returned.len();
        let unknown = lost.iter().filter(|lost| lost.written).count() + in_flight.len();
        self.tell(returned);
        self.tell(in_flight);
        self.settle(&mut Acked { lost, kept: Some(0), ..Acked::default() });
        (unsent as u64, unknown as u64)
    }
}
