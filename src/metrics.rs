//! Counts of what happens to connections and messages, by cause.
//!
//! Owns: atomics. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: a refusal, a failure or an end is counted once, where it is decided, under its cause, which is a small
//! integer there and a name only in a snapshot; a total is the sum of its causes, so that the two cannot disagree.

use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::error::{CloseReason, DialCause, DialError, DialStage, DisconnectReason, RejectCause};
use crate::ident::SessionKind;

/// What is counted by: a closed set of causes, each with a small number and a name.
pub trait Cause: Copy + 'static {
    /// All causes that have a name of their own.
    const ALL: &'static [Self];
    /// Every index is below it.
    const LEN: usize;

    /// Its place in a table.
    fn index(self) -> usize;

    /// Its name in a snapshot, as `handshake_timeout`.
    fn name(self) -> String;
}

/// `HandshakeTimeout` as `handshake_timeout`.
fn snake(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for (at, letter) in name.char_indices() {
        if letter.is_ascii_uppercase() && at > 0 {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

/// Reasons that cross the wire: index 0 is for those of newer versions.
macro_rules! wire_causes {
    ($($name:ident)*) => { $(
        impl Cause for $name {
            const ALL: &'static [Self] = Self::ALL;
            const LEN: usize = Self::HIGHEST as usize + 1;

            fn index(self) -> usize {
                if let Self::Other(_) = self { 0 } else { usize::from(self.code()) }
            }

            fn name(self) -> String {
                snake(self.name())
            }
        }
    )* };
}

wire_causes! { CloseReason RejectCause }

/// Enums without fields.
macro_rules! plain_causes {
    ($($name:ident { $($variant:ident)* })*) => { $(
        impl Cause for $name {
            const ALL: &'static [Self] = &[$(Self::$variant,)*];
            const LEN: usize = Self::ALL.len();

            fn index(self) -> usize {
                self as usize
            }

            fn name(self) -> String {
                snake(match self { $(Self::$variant => stringify!($variant),)* })
            }
        }
    )* };
}

/// Why an accepted connection was closed before its handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Refusal {
    /// As many inbound connections as `inbound` allows, and none of them unproven.
    Inbound,
    /// As many unproven connections of one address as `half_open_per_ip` allows.
    HalfOpenPerIp,
    /// As many connections of one address as `inbound_per_ip` allows.
    InboundPerIp,
    /// The thread budget is used up, and by no unproven connection.
    Threads,
    /// The node is shutting down.
    ShuttingDown,
    /// The system gave no randomness.
    NoRandomness,
}

/// Why a connection could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConnectFailure {
    /// Nobody listens there.
    Refused,
    /// There is no way to that machine or network.
    Unreachable,
    /// No answer within `connect_timeout`.
    TimedOut,
    /// No place was left here: as many sessions as `outbound` allows.
    NoSlot,
    /// The thread budget is used up.
    NoThreads,
    /// The node is shutting down.
    ShuttingDown,
    /// Something else of the system.
    Other,
}

plain_causes! {
    Refusal { Inbound HalfOpenPerIp InboundPerIp Threads ShuttingDown NoRandomness }
    ConnectFailure { Refused Unreachable TimedOut NoSlot NoThreads ShuttingDown Other }
    SessionKind { Inbound Outbound }
}

impl ConnectFailure {
    fn of(cause: &DialCause) -> Self {
        use std::io::ErrorKind;
        match cause {
            DialCause::Io(ErrorKind::ConnectionRefused) => Self::Refused,
            DialCause::Io(ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable) => Self::Unreachable,
            DialCause::Io(ErrorKind::TimedOut) | DialCause::TimedOut(_) => Self::TimedOut,
            DialCause::Rejected(CloseReason::TooMany) => Self::NoSlot,
            DialCause::Rejected(CloseReason::NoResources) => Self::NoThreads,
            DialCause::ShuttingDown => Self::ShuttingDown,
            _ => Self::Other,
        }
    }
}

/// One counter.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub(crate) fn add(&self) {
        self.more(1);
    }

    /// So many more.
    pub(crate) fn more(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// What it says now.
    pub(crate) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A counter for each cause.
#[derive(Debug)]
pub(crate) struct Table<K> {
    counters: Box<[Counter]>,
    of: PhantomData<K>,
}

impl<K: Cause> Default for Table<K> {
    fn default() -> Self {
        Self { counters: (0..K::LEN).map(|_| Counter::default()).collect(), of: PhantomData }
    }
}

impl<K: Cause> Table<K> {
    /// One more of this cause.
    pub(crate) fn add(&self, cause: K) {
        if let Some(counter) = self.counters.get(cause.index()) {
            counter.add();
        }
    }

    /// What they say now.
    pub(crate) fn snapshot(&self) -> ByCause<K> {
        ByCause { counts: self.counters.iter().map(Counter::value).collect(), of: PhantomData }
    }
}

/// Counts by cause at one moment. Serialises as a map from the causes' names; what has no name of its own is `other`.
#[derive(Clone, PartialEq, Eq)]
pub struct ByCause<K> {
    counts: Box<[u64]>,
    of: PhantomData<K>,
}

impl<K: Cause> Default for ByCause<K> {
    fn default() -> Self {
        Self { counts: vec![0; K::LEN].into(), of: PhantomData }
    }
}

impl<K: Cause> ByCause<K> {
    /// The count of one cause.
    pub fn get(&self, cause: K) -> u64 {
        self.counts.get(cause.index()).copied().unwrap_or_default()
    }

    /// The sum of all causes.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Every cause that has a name of its own, and its count.
    pub fn iter(&self) -> impl Iterator<Item = (K, u64)> {
        K::ALL.iter().map(|cause| (*cause, self.get(*cause)))
    }

    /// The count of what has no name of its own: reasons of newer versions.
    pub fn other(&self) -> u64 {
        self.total() - self.iter().map(|(_, count)| count).sum::<u64>()
    }

    /// Adds what others counted.
    pub(crate) fn merge(&mut self, others: &Self) {
        self.counts.iter_mut().zip(&others.counts).for_each(|(count, more)| *count += more);
    }
}

impl<K: Cause> fmt::Debug for ByCause<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = self.iter().map(|(cause, count)| (cause.name(), count)).chain([("other".to_owned(), self.other())]);
        f.debug_map().entries(named.filter(|(_, count)| *count > 0)).finish()
    }
}

impl<K: Cause> Serialize for ByCause<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (cause, count) in self.iter() {
            map.serialize_entry(&cause.name(), &count)?;
        }
        if K::ALL.len() < K::LEN {
            map.serialize_entry("other", &self.other())?;
        }
        map.end()
    }
}

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
    /// No address was found for the name.
    pub resolve: u64,
    /// The connection could not be opened.
    pub connect: ByCause<ConnectFailure>,
    /// The handshake failed.
    pub handshake: Ends,
}

impl DialFailures {
    /// The sum of all causes.
    pub fn total(&self) -> u64 {
        self.resolve + self.connect.total() + self.handshake.total()
    }
}

/// Messages and bytes of all links.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Traffic {
    /// Messages that send verbs took.
    pub messages_accepted: u64,
    /// Of these, handed over at the other side.
    pub messages_acked: u64,
    /// Of these, rejected by the other side.
    pub messages_returned: u64,
    /// Of these, written and never answered.
    pub messages_unknown: u64,
    /// Messages that came in and were claimed.
    pub messages_received: u64,
    /// Bytes written to connections, frames and repeats included; what was written in handshakes is not.
    pub bytes_sent: u64,
    /// Bytes read from connections, in the same sense.
    pub bytes_received: u64,
    /// Messages of ours that other sides rejected.
    pub returned_by: ByCause<RejectCause>,
    /// Messages of others that this node rejected.
    pub rejected_by: ByCause<RejectCause>,
}

impl Traffic {
    /// Adds another link's.
    pub(crate) fn merge(&mut self, link: &Self) {
        self.messages_accepted += link.messages_accepted;
        self.messages_acked += link.messages_acked;
        self.messages_returned += link.messages_returned;
        self.messages_unknown += link.messages_unknown;
        self.messages_received += link.messages_received;
        self.bytes_sent += link.bytes_sent;
        self.bytes_received += link.bytes_received;
        self.returned_by.merge(&link.returned_by);
        self.rejected_by.merge(&link.rejected_by);
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
    dials_unresolved: Counter,
    dials_unconnected: Table<ConnectFailure>,
    dials_unproven: EndCounters,
    handshakes_failed: EndCounters,
    /// Handshakes that took too long.
    pub(crate) handshake_timeouts: Counter,
    /// Connections that were proven and not attached.
    pub(crate) duplicates: Counter,
    /// Sessions attached.
    pub(crate) sessions_started: Table<SessionKind>,
    sessions_ended: EndCounters,
    /// Sessions cut because nothing was heard, or writing stalled.
    pub(crate) sessions_cut: Counter,
    /// Events that did not fit.
    pub(crate) events_missed: Counter,
}

/// The counters of a node at one moment. They only rise.
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
    /// Connections that were proven and not attached: another one of the same peers was.
    pub duplicates: u64,
    /// Sessions attached.
    pub sessions_started: u64,
    /// The same by who dialled.
    pub sessions_started_by: ByCause<SessionKind>,
    /// Sessions ended.
    pub sessions_ended: u64,
    /// The same by who ended them and why.
    pub sessions_ended_by: Ends,
    /// Sessions cut because nothing was heard, or writing stalled.
    pub sessions_cut: u64,
    /// Events that the application did not take in time; see `Event::Missed`.
    pub events_missed: u64,
    /// Messages and bytes.
    pub traffic: Traffic,
}

impl Metrics {
    /// A dial has failed.
    pub(crate) fn dial_failed(&self, error: &DialError) {
        let cause = &error.cause;
        match error.stage {
            DialStage::Resolve => self.dials_unresolved.add(),
            DialStage::Connect => self.dials_unconnected.add(ConnectFailure::of(cause)),
            _ => self.dials_unproven.add(&end_of(cause)),
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

    /// What they say now; `traffic` is the links', and empty here.
    pub(crate) fn snapshot(&self) -> MetricsSnapshot {
        let refused_by = self.refused.snapshot();
        let dials_failed_by = DialFailures {
            resolve: self.dials_unresolved.value(),
            connect: self.dials_unconnected.snapshot(),
            handshake: self.dials_unproven.snapshot(),
        };
        let handshakes_failed_by = self.handshakes_failed.snapshot();
        let sessions_started_by = self.sessions_started.snapshot();
        let sessions_ended_by = self.sessions_ended.snapshot();
        MetricsSnapshot {
            accepted: self.accepted.value(),
            accept_errors: self.accept_errors.value(),
            accepts_starved: self.accepts_starved.value(),
            evicted: self.evicted.value(),
            spawns_failed: self.spawns_failed.value(),
            refused: refused_by.total(),
            refused_by,
            dials: self.dials.value(),
            dials_failed: dials_failed_by.total(),
            dials_failed_by,
            handshakes_failed: handshakes_failed_by.total(),
            handshakes_failed_by,
            handshake_timeouts: self.handshake_timeouts.value(),
            duplicates: self.duplicates.value(),
            sessions_started: sessions_started_by.total(),
            sessions_started_by,
            sessions_ended: sessions_ended_by.total(),
            sessions_ended_by,
            sessions_cut: self.sessions_cut.value(),
            events_missed: self.events_missed.value(),
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
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::ErrorKind;

    use super::*;

    fn names_and_places_differ<K: Cause>() {
        let names: BTreeSet<_> = K::ALL.iter().map(|cause| cause.name()).collect();
        let places: BTreeSet<_> = K::ALL.iter().map(|cause| cause.index()).collect();
        assert_eq!((names.len(), places.len()), (K::ALL.len(), K::ALL.len()));
        assert!(places.iter().all(|place| *place < K::LEN) && K::LEN <= 64, "a table stays small");
    }

    #[test]
    fn every_cause_has_a_place_and_a_name_of_its_own() {
        names_and_places_differ::<CloseReason>();
        names_and_places_differ::<RejectCause>();
        names_and_places_differ::<Refusal>();
        names_and_places_differ::<ConnectFailure>();
        names_and_places_differ::<SessionKind>();
        assert_eq!(Cause::name(CloseReason::HandshakeTimeout), "handshake_timeout");
    }

    #[test]
    fn each_cause_raises_its_own_count_by_one_and_totals_are_their_sums() {
        let metrics = Metrics::default();
        for reason in CloseReason::ALL.iter().copied().chain([CloseReason::Other(60_000)]) {
            let before = metrics.snapshot();
            metrics.session_ended(&DisconnectReason::Local(reason));
            metrics.handshake_failed(&DialCause::Refused(reason));
            let after = metrics.snapshot();
            assert_eq!(after.sessions_ended_by.local.get(reason), before.sessions_ended_by.local.get(reason) + 1);
            assert_eq!(after.handshakes_failed_by.remote.get(reason), 1);
            assert_eq!(after.sessions_ended, before.sessions_ended + 1);
            assert_eq!(after.sessions_ended_by.remote.total() + after.sessions_ended_by.lost, 0);
        }
        let addr = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        for (kind, failure) in [
            (ErrorKind::ConnectionRefused, ConnectFailure::Refused),
            (ErrorKind::HostUnreachable, ConnectFailure::Unreachable),
            (ErrorKind::AddrNotAvailable, ConnectFailure::Other),
        ] {
            metrics.dial_failed(&DialError { addr, stage: DialStage::Connect, cause: DialCause::Io(kind) });
            assert_eq!(metrics.snapshot().dials_failed_by.connect.get(failure), 1);
        }
        assert_eq!(metrics.snapshot().dials_failed, 3);
    }

    #[test]
    fn a_snapshot_serialises_with_names() {
        let metrics = Metrics::default();
        metrics.session_ended(&DisconnectReason::Remote(CloseReason::Shutdown));
        metrics.session_ended(&DisconnectReason::Remote(CloseReason::Other(9_999)));
        metrics.sessions_started.add(SessionKind::Inbound);
        let json = serde_json::to_value(metrics.snapshot()).unwrap();
        assert_eq!(json["sessions_ended_by"]["remote"]["shutdown"], 1);
        assert_eq!(json["sessions_ended_by"]["remote"]["other"], 1);
        assert_eq!(json["sessions_started_by"], serde_json::json!({ "inbound": 1, "outbound": 0 }));
        assert_eq!(json["traffic"]["bytes_sent"], 0);
    }
}
