//! What messages of one peer count as on their way, and what all of it says at one moment.
//!
//! Owns: nothing of its own; what of [`PeerLink`] counts. Threads: any. Locks: the outbox lock, for a look at the sums by
//! whoever holds the link lock. Blocks on: nothing.
//! Upholds: a kind is looked up once for a message, where it comes or is sent; a node that registers none looks up nothing.
//! What a message counts as when it comes it counts as when it ends, whatever its sender says of it.

use std::time::Instant;

use crate::link::{LinkCore, Probe};
use crate::metrics::{Class, Groups, PhaseTallies};
use crate::session::peer_link::PeerLink;
use crate::session::requests::is_answer;
use crate::wire::{HEADER, Heading, Lane, Prefix, Run, Whole, flags};

impl PeerLink {
    /// What a message counts as. An answer counts as its question; word that there is none has no kind.
    #[inline]
    pub(super) fn class_of(&self, heading: Heading, broadcast: bool) -> Class {
        let has_kind = heading.flags & flags::FAILED == 0;
        Class::new(if has_kind { self.settings.kinds.place(heading.kind) } else { None }, broadcast)
    }

    /// What a message counts as that came on this lane with these flags. Only an answer can say that there is none: the
    /// flag says nothing of other messages, whoever sends it.
    #[inline]
    pub(super) fn class_of_came(&self, lane: Lane, flag_bits: u8, kind: u16) -> Class {
        let is_none = is_answer(lane, flag_bits) && flag_bits & flags::FAILED != 0;
        Class::new(if is_none { None } else { self.settings.kinds.place(kind) }, false)
    }

    /// What messages that came count as.
    pub(super) fn groups_of(&self, run: &Run, bytes: &[u8]) -> Groups {
        if self.settings.kinds.is_empty() {
            let heads = (HEADER + run.prefix) * run.frames as usize;
            return Groups::of(Class::PLAIN, run.frames, bytes.len().saturating_sub(heads) as u64);
        }
        self.groups_in(run.lane, run.flags, bytes)
    }

    /// What the messages in these frames count as, which came on this lane with these flags.
    pub(super) fn groups_in(&self, lane: Lane, flag_bits: u8, bytes: &[u8]) -> Groups {
        let (mut groups, mut at) = (Groups::default(), 0);
        while let Some(whole) = Whole::at(bytes, at, Prefix::len(flag_bits)) {
            let class = self.class_of_came(lane, flag_bits, whole.header.kind);
            groups.push(class, 1, whole.payload.len() as u64);
            at = whole.end;
        }
        groups
    }

    /// A message that came ends alone.
    pub(super) fn arrival_failed(&self, class: Class, bytes: usize) {
        self.arrivals.failed(&Groups::of(class, 1, bytes as u64));
    }

    /// What is measured was written on the lanes of these bits.
    pub(super) fn probes_written(&self, lanes: u8, at: Instant) {
        self.probes.write(lanes, at);
    }

    /// A message that is measured was answered for.
    pub(super) fn probe_answered(&self, lane: Lane, probe: &Probe, now: Instant) {
        let times = &self.settings.times;
        times.transferred(probe.class, now.saturating_duration_since(probe.taken));
        if let Some(written) = self.probes.written(lane, probe) {
            times.acknowledged(now.saturating_duration_since(written));
        }
    }

    /// What began and ended so far, and what is under way.
    pub(super) fn phases(&self, core: &LinkCore) -> PhaseTallies {
        let (outgoing_buffer, mut outgoing_transfer) = self.outbox.phases();
        let tally = core.tally();
        outgoing_transfer.succeeded.merge(&tally.succeeded);
        outgoing_transfer.failed.merge(&tally.failed);
        outgoing_transfer.open += core.kept_messages();
        PhaseTallies { outgoing_buffer, outgoing_transfer, incoming_buffer: self.arrivals.tally() }
    }
}
