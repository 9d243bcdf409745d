//! Counts of what happens to connections and messages, by cause.
//!
//! Owns: atomics. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: a refusal, a failure or an end is counted once, where it is decided, under its cause, which is a small
//! integer there and a name only in a snapshot; a total is the sum of its causes, so that the two cannot disagree.

mod cause;
mod histogram;
mod openmetrics;
mod phases;
mod table;
mod tally;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::time::Duration;

use crate::error::{CloseReason, DialCause, DialError, DialStage, DisconnectReason, RejectCause};
use crate::ident::SessionKind;

pub use cause::{Cause, ConnectFailure, Refusal, ScrapeFailure};
pub use histogram::Histogram;
pub use openmetrics::OPENMETRICS;
pub(crate) use phases::{Arrivals, PhaseTallies, PhaseTally, PhaseTimes};
pub use phases::{Cast, Phase, PhaseCounts, PhaseRow, Phases};
pub use table::ByCause;
pub(crate) use table::{Counter, Table};
pub use tally::Volume;
pub(crate) use tally::{Class, Groups, Tally};

/// Counters of ends, by who ended it and why.
#[derive(Debug, Default)]
pub(crate) struct EndCounters {
    local: Table<CloseReason>,
    remote: Table<CloseReason>,
    lost: Counter,
}

impl EndCounters {
    fn add(&self, reason: &DisconnectReason) {
        match reason {
            DisconnectReason::Local(reason) => self.local.add(*reason),
            DisconnectReason::Remote(reason) => self.remote.add(*reason),
            DisconnectReason::Lost(_) => self.lost.add(),
        }
    }

    fn snapshot(&self) -> Ends {
        Ends { local: self.local.snapshot(), remote: self.remote.snapshot(), lost: self.lost.value() }
    }
}

/// Ends of connections or sessions, by who ended them and why.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Ends {
    /// This node ended them.
    pub local: ByCause<CloseReason>,
    /// The other side did, and said why.
    pub remote: ByCause<CloseReason>,
    /// They failed or ended without a word.
    pub lost: u64,
}

impl Ends {
    /// The sum of all causes.
    pub fn total(&self) -> u64 {
        self.local.total() + self.remote.total() + self.lost
    }
}

/// Dials that failed, by how far they came and why not further.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct DialFailures {
    /// The connection could not be opened.
    pub connect: ByCause<ConnectFailure>,
    /// The handshake failed.
    pub handshake: Ends,
}

impl DialFailures {
    /// The sum of all causes.
    pub fn total(&self) -> u64 {
        self.connect.total() + self.handshake.total()
    }
}

/// Messages and bytes of all links.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Traffic {
    /// Messages that send verbs took. One to an address counts from when somebody has proven itself there, or it has ended:
    /// until then it is among those that wait, and not among these.
    pub messages_accepted: u64,
    /// Of these, handed over at the other side.
    pub messages_acked: u64,
    /// Of these, returned: rejected by the other side, or ended before they were written.
    pub messages_returned: u64,
    /// Of these, written and never answered.
    pub messages_unknown: u64,
    /// Of these, best effort ones that were written. What is left of the accepted ones still waits or is kept.
    pub messages_written: u64,
    /// Messages that came in and were claimed.
    pub messages_received: u64,
    /// Of these, best effort ones that came while too many of them waited for the application: thrown away.
    pub messages_unread: u64,
    /// Questions that were asked; they are among the messages accepted.
    pub requests: u64,
    /// Of these, answered in time.
    pub answers: u64,
    /// Answers that came after their question had ended, and were thrown away.
    pub late_answers: u64,
    /// Answers to no question of this process: thrown away.
    pub unknown_answers: u64,
    /// Bytes written to connections, frames and repeats included; what was written in handshakes is not.
    pub bytes_sent: u64,
    /// Bytes read from connections, in the same sense.
    pub bytes_received: u64,
    /// Messages of ours that other sides rejected.
    pub returned_by: ByCause<RejectCause>,
    /// Messages of others that this node rejected.
    pub rejected_by: ByCause<RejectCause>,
    /// Messages and questions by the names of their kinds, of those that were registered.
    pub kinds: BTreeMap<String, KindTraffic>,
}

/// Messages of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct KindTraffic {
    /// Messages that send verbs took.
    pub sent: u64,
    /// Messages that came.
    pub received: u64,
}

impl Traffic {
    /// Adds another link's.
    pub(crate) fn merge(&mut self, link: &Self) {
        self.messages_accepted += link.messages_accepted;
        self.messages_acked += link.messages_acked;
        self.messages_returned += link.messages_returned;
        self.messages_unknown += link.messages_unknown;
        self.messages_written += link.messages_written;
        self.messages_received += link.messages_received;
        self.messages_unread += link.messages_unread;
        self.requests += link.requests;
        self.answers += link.answers;
        self.late_answers += link.late_answers;
        self.unknown_answers += link.unknown_answers;
        self.bytes_sent += link.bytes_sent;
        self.bytes_received += link.bytes_received;
        self.returned_by.merge(&link.returned_by);
        self.rejected_by.merge(&link.rejected_by);
        for (name, more) in &link.kinds {
            let kind = self.kinds.entry(name.clone()).or_default();
            kind.sent += more.sent;
            kind.received += more.received;
        }
    }
}

/// What one link has counted, and what it holds now; or all links.
#[derive(Debug, Clone, Default)]
pub(crate) struct Totals {
    pub(crate) traffic: Traffic,
    pub(crate) phases: PhaseTallies,
    /// Links with a session.
    pub(crate) connected: u64,
    /// Messages that wait to be written for the first time, and their bytes.
    pub(crate) queued_messages: u64,
    pub(crate) queued_bytes: u64,
    /// Bytes taken for the wire and not acknowledged.
    pub(crate) kept_bytes: u64,
    /// How long the oldest message has waited.
    pub(crate) oldest_queued: Duration,
}

impl Totals {
    /// Adds another link's.
    pub(crate) fn merge(&mut self, link: &Self) {
        let Self { traffic, phases, connected, queued_messages, queued_bytes, kept_bytes, oldest_queued } = link;
        self.traffic.merge(traffic);
        self.phases.merge(phases);
        self.connected += connected;
        self.queued_messages += queued_messages;
        self.queued_bytes += queued_bytes;
        self.kept_bytes += kept_bytes;
        self.oldest_queued = self.oldest_queued.max(*oldest_queued);
    }
}

/// The counters of a node.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// Connections accepted.
    pub(crate) accepted: Counter,
    /// Accepts that failed.
    pub(crate) accept_errors: Counter,
    /// Of these, for want of descriptors or memory.
    pub(crate) accepts_starved: Counter,
    /// Unproven connections sent away to make room for newcomers.
    pub(crate) evicted: Counter,
    /// Sessions that did not start because the system refused a thread.
    pub(crate) spawns_failed: Counter,
    /// Connections closed before their handshake.
    pub(crate) refused: Table<Refusal>,
    /// Dials begun.
    pub(crate) dials: Counter,
    /// Lookups of names begun.
    pub(crate) lookups: Counter,
    /// Lookups that failed.
    pub(crate) lookups_failed: Counter,
    /// Lookups refused.
    pub(crate) lookups_refused: Counter,
    dials_unconnected: Table<ConnectFailure>,
    dials_unproven: EndCounters,
    handshakes_failed: EndCounters,
    /// Handshakes that took too long.
    pub(crate) handshake_timeouts: Counter,
    /// Steps of handshakes that were left behind.
    pub(crate) steps_skipped: Counter,
    /// Connections that were proven and not attached.
    pub(crate) duplicates: Counter,
    /// Connections refused because another process has the same identity.
    pub(crate) identity_clashes: Counter,
    /// Sessions attached.
    pub(crate) sessions_started: Table<SessionKind>,
    sessions_ended: EndCounters,
    /// Sessions cut because no whole frame was heard, or writing stalled.
    pub(crate) sessions_cut: Counter,
    /// Episodes of slow peers.
    pub(crate) slow_peers: Counter,
    /// Unknown peers refused at their bound.
    pub(crate) unknown_refused: Counter,
    /// Events that did not fit.
    pub(crate) events_missed: Counter,
    /// Broadcasts, and how many peers took or refused one.
    pub(crate) broadcasts: Counter,
    pub(crate) broadcast_taken: Counter,
    pub(crate) broadcast_refused: Counter,
    /// Anycasts that a peer took.
    pub(crate) anycasts: Counter,
    /// Scrapes answered.
    pub(crate) scrapes: Counter,
    /// Connections to the metrics endpoint that ended otherwise.
    pub(crate) scrapes_failed: Table<ScrapeFailure>,
}

/// The counters of a node at one moment, which only rise, and what it holds now.
///
/// Each is exact; they are read one after the other, so that sums over several of them hold once nothing is under way:
/// `accepted` is `refused` + `handshakes_failed` + the inbound sessions started + connections in their handshake, and
/// `dials` is `dials_failed` + the outbound sessions started + dials under way.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct MetricsSnapshot {
    /// Connections accepted.
    pub accepted: u64,
    /// Accepts that failed: the connection was gone, or the system is out of something.
    pub accept_errors: u64,
    /// Of these, those for want of descriptors or memory; they are tried again by a timer.
    pub accepts_starved: u64,
    /// Unproven connections sent away to make room for newcomers; they are among `handshakes_failed` as well.
    pub evicted: u64,
    /// Sessions that did not start because the system refused a thread; their handshakes are among those that failed.
    pub spawns_failed: u64,
    /// Connections closed before their handshake, for want of a slot.
    pub refused: u64,
    /// The same by cause.
    pub refused_by: ByCause<Refusal>,
    /// Dials begun.
    pub dials: u64,
    /// Lookups of names begun.
    pub lookups: u64,
    /// Lookups that failed, of those that were begun or refused: the name has no address, or it took too long. A lookup
    /// that takes too long counts once for each dial that waited.
    pub lookups_failed: u64,
    /// Lookups refused because every resolver thread was held.
    pub lookups_refused: u64,
    /// Dials that failed, at any stage.
    pub dials_failed: u64,
    /// The same by stage and cause.
    pub dials_failed_by: DialFailures,
    /// Inbound connections whose handshake failed or was refused.
    pub handshakes_failed: u64,
    /// The same by cause.
    pub handshakes_failed_by: Ends,
    /// Handshakes that took too long, inbound and outbound.
    pub handshake_timeouts: u64,
    /// Steps of handshakes that were not done, because their connection had gone before a worker came to them: many, if
    /// somebody floods the node with handshakes that it leaves.
    pub steps_skipped: u64,
    /// Connections that were proven and not attached: another one of the same peers was.
    pub duplicates: u64,
    /// Connections refused, here or there, because another process has the same identity.
    pub identity_clashes: u64,
    /// Sessions attached.
    pub sessions_started: u64,
    /// The same by who dialled.
    pub sessions_started_by: ByCause<SessionKind>,
    /// Sessions ended.
    pub sessions_ended: u64,
    /// The same by who ended them and why.
    pub sessions_ended_by: Ends,
    /// Sessions cut because no whole frame was heard, or writing stalled.
    pub sessions_cut: u64,
    /// Times that a connected peer became slow; see `Event::PeerSlow`. Each counts once, however long it stays so.
    pub slow_peers: u64,
    /// Times that a message or a handle was refused because as many unknown peers as `unknown_peers` allows were waited
    /// for.
    pub unknown_refused: u64,
    /// Events that the application did not take in time; see `Event::Missed`.
    pub events_missed: u64,
    /// Messages that failed and that nobody took from [`Node::undelivered`](crate::Node::undelivered): they are gone.
    pub undelivered_missed: u64,
    /// Announcements of messages sent that did not fit the taps of
    /// [`Node::subscribe_outgoing`](crate::Node::subscribe_outgoing): each counts once for each tap.
    pub outgoing_missed: u64,
    /// Requests of scrapers that the metrics endpoint answered with the metrics.
    pub scrapes: u64,
    /// Connections to the metrics endpoint that ended without the metrics.
    pub scrapes_failed: u64,
    /// The same by cause.
    pub scrapes_failed_by: ByCause<ScrapeFailure>,
    /// Broadcasts: calls of the verb and its kin.
    pub broadcasts: u64,
    /// How many peers took one, all broadcasts together: each is a message that was accepted.
    pub broadcast_taken: u64,
    /// How many peers refused one, most of them for want of room.
    pub broadcast_refused: u64,
    /// Anycasts that a peer took.
    pub anycasts: u64,
    /// Now: peers with a session.
    pub peers_connected: u64,
    /// Now: messages that wait to be written for the first time, of all peers.
    pub queued_messages: u64,
    /// Now: their bytes, with what frames add.
    pub queued_bytes: u64,
    /// Now: bytes taken for the wire and not acknowledged, of all peers.
    pub kept_bytes: u64,
    /// Now: how long the oldest message that waits to be written has waited, of all peers; zero if none waits.
    pub oldest_queued: Duration,
    /// Where messages spend their time.
    pub phases: Phases,
    /// How long acknowledgements took, of samples: from when all of a message was written until it was acknowledged; one
    /// message of each lane of a peer at a time. It includes what the application there took.
    pub ack_delay: Histogram,
    /// Bytes of `memory_bytes` that are in use beyond the floors of the links.
    pub memory_used: u64,
    /// How often there was no memory for a message, a window or a big message that came.
    pub memory_refused: u64,
    /// Messages and bytes.
    pub traffic: Traffic,
}

impl Metrics {
    /// A dial has failed.
    pub(crate) fn dial_failed(&self, error: &DialError) {
        let cause = &error.cause;
        match error.stage {
            DialStage::Handshake => self.dials_unproven.add(&end_of(cause)),
            // A name without an address is a lookup that failed: it has not come to a dial.
            DialStage::Connect | DialStage::Resolve => self.dials_unconnected.add(ConnectFailure::of(cause)),
        }
    }

    /// An inbound connection's handshake has failed.
    pub(crate) fn handshake_failed(&self, cause: &DialCause) {
        self.handshakes_failed.add(&end_of(cause));
    }

    /// A session has ended.
    pub(crate) fn session_ended(&self, reason: &DisconnectReason) {
        self.sessions_ended.add(reason);
    }

    /// What they say now; what is the links' is empty here.
    pub(crate) fn snapshot(&self) -> MetricsSnapshot {
        let refused_by = self.refused.snapshot();
        let dials_failed_by =
            DialFailures { connect: self.dials_unconnected.snapshot(), handshake: self.dials_unproven.snapshot() };
        let handshakes_failed_by = self.handshakes_failed.snapshot();
        let sessions_started_by = self.sessions_started.snapshot();
        let sessions_ended_by = self.sessions_ended.snapshot();
        let scrapes_failed_by = self.scrapes_failed.snapshot();
        MetricsSnapshot {
            accepted: self.accepted.value(),
            accept_errors: self.accept_errors.value(),
            accepts_starved: self.accepts_starved.value(),
            evicted: self.evicted.value(),
            spawns_failed: self.spawns_failed.value(),
            refused: refused_by.total(),
            refused_by,
            dials: self.dials.value(),
            lookups: self.lookups.value(),
            lookups_failed: self.lookups_failed.value(),
            lookups_refused: self.lookups_refused.value(),
            dials_failed: dials_failed_by.total(),
            dials_failed_by,
            handshakes_failed: handshakes_failed_by.total(),
            handshakes_failed_by,
            handshake_timeouts: self.handshake_timeouts.value(),
            steps_skipped: self.steps_skipped.value(),
            duplicates: self.duplicates.value(),
            identity_clashes: self.identity_clashes.value(),
            sessions_started: sessions_started_by.total(),
            sessions_started_by,
            sessions_ended: sessions_ended_by.total(),
            sessions_ended_by,
            sessions_cut: self.sessions_cut.value(),
            slow_peers: self.slow_peers.value(),
            unknown_refused: self.unknown_refused.value(),
            events_missed: self.events_missed.value(),
            broadcasts: self.broadcasts.value(),
            broadcast_taken: self.broadcast_taken.value(),
            broadcast_refused: self.broadcast_refused.value(),
            anycasts: self.anycasts.value(),
            peers_connected: 0,
            queued_messages: 0,
            queued_bytes: 0,
            kept_bytes: 0,
            oldest_queued: Duration::ZERO,
            phases: Phases::default(),
            ack_delay: Histogram::default(),
            undelivered_missed: 0,
            outgoing_missed: 0,
            scrapes: self.scrapes.value(),
            scrapes_failed: scrapes_failed_by.total(),
            scrapes_failed_by,
            memory_used: 0,
            memory_refused: 0,
            traffic: Traffic::default(),
        }
    }
}

/// How a handshake ended, in the words of a session's end.
fn end_of(cause: &DialCause) -> DisconnectReason {
    match cause {
        DialCause::Refused(reason) => DisconnectReason::Remote(*reason),
        DialCause::Rejected(reason) => DisconnectReason::Local(*reason),
        DialCause::TimedOut(_) => DisconnectReason::Local(CloseReason::HandshakeTimeout),
        DialCause::ShuttingDown => DisconnectReason::Local(CloseReason::Shutdown),
        DialCause::Io(kind) => DisconnectReason::Lost(*kind),
        // Of lookups, which end before there is a handshake.
        DialCause::Unresolved(_) | DialCause::ResolversBusy => DisconnectReason::Lost(ErrorKind::NotFound),
    }
}
