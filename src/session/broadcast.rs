//! One message for many peers: how it is offered to each.
//!
//! Owns: nothing. Threads: callers of the broadcast verbs, handlers among them. Locks: the outbox lock, and that of the
//! link after it where the peer is idle. Blocks on: nothing.
//! Upholds: an offer is taken now or refused; bytes are shared wherever the queue keeps a message by itself, and copied
//! where it puts small ones together.

use std::sync::Arc;
use std::time::Duration;

use crate::error::SendErrorKind;
use crate::link::{LARGE, Segment};
use crate::session::handling;
use crate::session::options::{OverflowPolicy, SendOptions};
use crate::session::outbox::{Item, Kick, Wait};
use crate::session::peer_link::PeerLink;
use crate::session::receipt::{Asker, Receipt, ReceiptState};
use crate::session::undelivered::Label;
use crate::sync::atomic::Ordering;
use crate::wire::{Heading, Lane};

impl PeerLink {
    /// Offers a message of a broadcast: as [`PeerLink::offer`] for others too, but that a small one may wait for `company`
    /// where the peer was just written to.
    pub(crate) fn offer_cast(&self, kind: u16, payload: &Arc<Vec<u8>>, company: Duration) -> Result<(), SendErrorKind> {
        match self.push_cast(kind, payload, company) {
            Some(Ok(Kick::No)) => Ok(()),
            Some(kick) => {
                self.act(kick?, false);
                Ok(())
            }
            None => self.offer(kind, payload, false),
        }
    }

    /// Offers a message: it is taken as by a verb that does not wait, or not at all. If it is not for this peer `alone`,
    /// the peer's own thread writes it, also where the peer is idle: a system call for each peer would be the most of what
    /// a broadcast costs, and messages that come fast are then written together.
    pub(crate) fn offer(&self, kind: u16, payload: &Arc<Vec<u8>>, alone: bool) -> Result<(), SendErrorKind> {
        let class = self.class_of(Heading::of_kind(kind), !alone);
        if self.push_fast(Lane::Normal, class, kind, payload) {
            return Ok(());
        }
        let (heading, len) = (Heading::of_kind(kind), payload.len());
        let priority = self.settings.kinds.priority(kind);
        if let Some(defaults) = self.outbox.one_by_one() {
            // It never waits and never drops another, whatever holds for messages that can wait.
            let (policy, shared) = (OverflowPolicy::Fail, payload.clone().into());
            let options = SendOptions { priority: Some(priority), ..SendOptions::default() };
            let pushed = self.push_entry(heading, class, shared, &options, policy, defaults.ttl, Asker::Nobody, alone);
            return pushed.map_err(|refused| refused.kind);
        }
        if len > self.settings.tuned.max_message() || !self.settings.kinds.allows(kind, len) {
            return Err(SendErrorKind::TooLarge);
        }
        let item = match len > LARGE {
            true => Item::Large(Segment::large(priority.lane(), heading, payload.clone())),
            false => Item::Small { heading, payload },
        };
        let reads = self.reads.load(Ordering::Relaxed);
        let draft = self.taps.draft(payload, || Some(payload.clone()));
        let inline = alone && !handling::more_to_come(self.address());
        let kick = self.outbox.push(priority.lane(), class, item, Wait::No, inline, reads).map_err(|(kind, _)| kind)?;
        if !matches!(kick, Kick::No) {
            self.act(kick, false);
        }
        self.by_kind.sent(kind);
        if let Some(draft) = draft {
            self.taps.announce(draft, self.id, priority.lane(), heading, !alone, None);
        }
        Ok(())
    }

    /// Offers a message as [`PeerLink::offer`] does, as its options say, but that it never waits; whoever is given the receipt hears of it.
    pub(crate) fn offer_with(
        &self,
        payload: &Arc<Vec<u8>>,
        options: &SendOptions,
        alone: bool,
    ) -> Result<Receipt, SendErrorKind> {
        let defaults = self.outbox.defaults();
        let policy = match options.overflow.unwrap_or(defaults.overflow) {
            OverflowPolicy::Block => OverflowPolicy::Fail,
            policy => policy,
        };
        let state = Arc::new(ReceiptState::new());
        let (heading, ttl) = (Heading::of_kind(options.kind), options.ttl.or(defaults.ttl));
        let asker = Asker::Receipt(state.clone());
        let class = self.class_of(heading, !alone);
        self.push_entry(heading, class, payload.clone().into(), options, policy, ttl, asker, alone)
            .map_err(|refused| refused.kind)?;
        let lane = options.priority.unwrap_or_else(|| self.settings.kinds.priority(options.kind)).lane();
        let label = Label { kind: options.kind, lane };
        Ok(Receipt::new(state, self.settings.undelivered.clone(), label))
    }
}
