//! Where messages spend their time: the phases of a delivery, what began and ended in each, and how long it took.
//!
//! Owns: atomics of the incoming phase and of durations; plain sums of the others, which are kept where messages move, under
//! the locks that are held there anyway. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: a message begins and ends each phase once; what is in a phase now is counted where it waits, not computed from
//! what began and ended, so that the three can be reconciled.
//!
//! ```text
//!   accepted ---outgoing buffer---> taken for the wire ---outgoing transfer---> acknowledged; best effort: written
//!                      \-> returned                           \-> rejected, unknown, given up
//!
//!   arrived whole ---incoming buffer---> handed over
//!                          \-> rejected, thrown away
//! ```

use std::time::Duration;

use super::histogram::{Histogram, Timer};
use super::table::Counter;
use super::tally::{Class, Groups, Tally, Volume};

/// What began and ended in one phase.
#[derive(Debug, Clone, Default)]
pub(crate) struct PhaseTally {
    pub(crate) begun: Tally,
    pub(crate) succeeded: Tally,
    pub(crate) failed: Tally,
    /// Messages in it now.
    pub(crate) open: u64,
}

impl PhaseTally {
    fn merge(&mut self, other: &Self) {
        let Self { begun, succeeded, failed, open } = other;
        self.begun.merge(begun);
        self.succeeded.merge(succeeded);
        self.failed.merge(failed);
        self.open += open;
    }
}

/// What began and ended in all phases of a link, or of all links.
#[derive(Debug, Clone, Default)]
pub(crate) struct PhaseTallies {
    pub(crate) outgoing_buffer: PhaseTally,
    pub(crate) outgoing_transfer: PhaseTally,
    pub(crate) incoming_buffer: PhaseTally,
}

impl PhaseTallies {
    /// Adds another link's.
    pub(crate) fn merge(&mut self, link: &Self) {
        self.outgoing_buffer.merge(&link.outgoing_buffer);
        self.outgoing_transfer.merge(&link.outgoing_transfer);
        self.incoming_buffer.merge(&link.incoming_buffer);
    }

    /// With the names of kinds, in the order of their places, and with how long it took.
    pub(crate) fn named(&self, names: &[&str], times: &PhaseTimes) -> Phases {
        let kinds = || std::iter::once("").chain(names.iter().copied()).enumerate();
        let row = |tally: &PhaseTally, timers: &[Timer], index: usize, kind: &str, cast| PhaseRow {
            kind: kind.to_owned(),
            cast,
            counts: PhaseCounts {
                begun: tally.begun.get(index),
                succeeded: tally.succeeded.get(index),
                failed: tally.failed.get(index),
                times: timers.get(index).map(Timer::snapshot).unwrap_or_default(),
            },
        };
        let outgoing = |tally: &PhaseTally, timers: &[Timer]| {
            let casts = [(0, Cast::Direct), (1, Cast::Broadcast)];
            let rows = kinds().flat_map(|(kind, name)| casts.map(|(cast, of)| (2 * kind + cast, name, of)));
            let rows = rows.map(|(index, name, cast)| row(tally, timers, index, name, Some(cast))).collect();
            Phase { open: tally.open, rows }
        };
        // What came does not say whether others were sent it too: there is one class for each kind.
        let incoming = |tally: &PhaseTally, timers: &[Timer]| {
            let rows = kinds().map(|(kind, name)| row(tally, timers, kind, name, None)).collect();
            Phase { open: tally.open, rows }
        };
        Phases {
            outgoing_buffer: outgoing(&self.outgoing_buffer, &times.outgoing_buffer),
            outgoing_transfer: outgoing(&self.outgoing_transfer, &times.outgoing_transfer),
            incoming_buffer: incoming(&self.incoming_buffer, &times.incoming_buffer),
        }
    }
}

/// How long phases took: of samples, of all links of a node.
#[derive(Debug)]
pub(crate) struct PhaseTimes {
    outgoing_buffer: Box<[Timer]>,
    outgoing_transfer: Box<[Timer]>,
    incoming_buffer: Box<[Timer]>,
    ack_delay: Timer,
}

impl PhaseTimes {
    /// For so many registered kinds.
    pub(crate) fn new(kinds: usize) -> Self {
        let timers = |count| (0..count).map(|_| Timer::default()).collect();
        Self {
            outgoing_buffer: timers(2 * (kinds + 1)),
            outgoing_transfer: timers(2 * (kinds + 1)),
            incoming_buffer: timers(kinds + 1),
            ack_delay: Timer::default(),
        }
    }

    /// A message of this class waited so long until it was taken for the wire.
    pub(crate) fn queued(&self, class: Class, took: Duration) {
        record(&self.outgoing_buffer, class.index(), took);
    }

    /// A message of this class was answered for so long after it was taken for the wire.
    pub(crate) fn transferred(&self, class: Class, took: Duration) {
        record(&self.outgoing_transfer, class.index(), took);
    }

    /// A message of this class was handed over so long after it came.
    pub(crate) fn handed(&self, class: Class, took: Duration) {
        record(&self.incoming_buffer, class.kind(), took);
    }

    /// An acknowledgement came so long after what it speaks of was written.
    pub(crate) fn acknowledged(&self, took: Duration) {
        self.ack_delay.record(took);
    }

    /// How long acknowledgements took.
    pub(crate) fn ack_delay(&self) -> Histogram {
        self.ack_delay.snapshot()
    }
}

fn record(timers: &[Timer], index: usize, took: Duration) {
    if let Some(timer) = timers.get(index) {
        timer.record(took);
    }
}

/// What came on one link, by kind.
#[derive(Debug)]
pub(crate) struct Arrivals {
    kinds: Box<[ArrivalCounters]>,
}

/// Messages and bytes, of each what began and how it ended.
#[derive(Debug, Default)]
struct ArrivalCounters {
    begun: [Counter; 2],
    succeeded: [Counter; 2],
    failed: [Counter; 2],
}

impl Arrivals {
    /// For so many registered kinds.
    pub(crate) fn new(kinds: usize) -> Self {
        Self { kinds: (0..=kinds).map(|_| ArrivalCounters::default()).collect() }
    }

    /// Messages came.
    pub(crate) fn came(&self, groups: &Groups) {
        self.add(groups, |counters| &counters.begun);
    }

    /// Messages were handed over.
    pub(crate) fn handed(&self, groups: &Groups) {
        self.add(groups, |counters| &counters.succeeded);
    }

    /// Messages were rejected or thrown away.
    pub(crate) fn failed(&self, groups: &Groups) {
        self.add(groups, |counters| &counters.failed);
    }

    fn add(&self, groups: &Groups, which: impl Fn(&ArrivalCounters) -> &[Counter; 2]) {
        for group in groups.iter() {
            let Some([messages, bytes]) = self.kinds.get(group.class.kind()).map(&which) else { continue };
            messages.more(group.messages.into());
            bytes.more(group.bytes);
        }
    }

    /// What they say now; places are those of the kinds. What ended is read first: it began before.
    pub(crate) fn tally(&self) -> PhaseTally {
        let sum = |which: fn(&ArrivalCounters) -> &[Counter; 2]| {
            let mut tally = Tally::default();
            for (kind, counters) in self.kinds.iter().enumerate() {
                let [messages, bytes] = which(counters).each_ref().map(Counter::value);
                tally.add_at(kind, Volume::new(messages, bytes));
            }
            tally
        };
        let (succeeded, failed) = (sum(|counters| &counters.succeeded), sum(|counters| &counters.failed));
        let begun = sum(|counters| &counters.begun);
        let ended = succeeded.total().messages + failed.total().messages;
        let open = begun.total().messages.saturating_sub(ended);
        PhaseTally { begun, succeeded, failed, open }
    }
}

/// Whom a message was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Cast {
    /// One peer: sent, asked, answered, or given to any one of several.
    Direct,
    /// Each peer of a [broadcast](crate::Node::broadcast); a message for each of them.
    Broadcast,
}

/// Where messages spend their time: what began and ended in each phase, and how long it took.
///
/// Each message that begins a phase ends it once: `begun` is `succeeded` + `failed` + `open`, over all rows. In the two
/// outgoing phases that holds at any moment. What succeeds in the first of them begins the second.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Phases {
    /// From when a send verb accepts a message until it is taken for the wire; one to an address begins when somebody has
    /// proven itself there, or it comes back before. It fails if the message is returned before: expired, dropped, replaced,
    /// peer unknown, offline, shut down.
    pub outgoing_buffer: Phase,
    /// From when a message is taken for the wire until the other side answers for it, also on a later connection; a best
    /// effort one until it is written. It fails if the message is rejected, ends unknown, or is given up.
    pub outgoing_transfer: Phase,
    /// From when a message came whole until it is handed over: the handler returned, or the application took it. It fails
    /// if the message is rejected, or thrown away: best effort beyond what may wait, answers that nobody waits for.
    pub incoming_buffer: Phase,
}

/// One phase.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Phase {
    /// Messages that are in it now. In the outgoing phases they are counted where they wait.
    pub open: u64,
    /// The rest by kind and cast: first those of no registered kind, then kinds in the order they were registered.
    pub rows: Vec<PhaseRow>,
}

impl Phase {
    /// The sum of all rows.
    pub fn total(&self) -> PhaseCounts {
        let mut total = PhaseCounts::default();
        self.rows.iter().for_each(|row| total.merge(&row.counts));
        total
    }

    /// The row of a kind, by its name (empty: of no registered kind), and of a cast: `None` in the incoming phase, where it
    /// is not known.
    pub fn of(&self, kind: &str, cast: Option<Cast>) -> Option<&PhaseCounts> {
        self.rows.iter().find(|row| row.kind == kind && row.cast == cast).map(|row| &row.counts)
    }
}

/// One phase of the messages of one kind.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct PhaseRow {
    /// The kind's name; empty for messages of no registered kind.
    pub kind: String,
    /// Whom they were for; `None` for those that came.
    pub cast: Option<Cast>,
    /// What began and ended.
    #[serde(flatten)]
    pub counts: PhaseCounts,
}

/// What began and ended in a phase. They only rise.
///
/// Messages are exact. Bytes of messages that are acknowledged are counted with the last of those they were written
/// together with (256 KiB at most), so they follow a little later.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct PhaseCounts {
    /// What began it.
    pub begun: Volume,
    /// What ended it well.
    pub succeeded: Volume,
    /// What ended it otherwise.
    pub failed: Volume,
    /// How long it took, of samples. Outgoing buffer: the first message of each turn of writing, the one that waited
    /// longest. Outgoing transfer: one message of each lane at a time. Incoming: what came with each sixteenth read where a
    /// handler runs, or else the first message of each batch.
    pub times: Histogram,
}

impl PhaseCounts {
    fn merge(&mut self, other: &Self) {
        self.begun.add(other.begun);
        self.succeeded.add(other.succeeded);
        self.failed.add(other.failed);
        self.times.merge(&other.times);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_links_counted_adds_up_under_the_names_of_kinds() {
        let (names, times) = (["block"], PhaseTimes::new(1));
        let [plain, block] = [Class::PLAIN, Class::new(Some(0), true)];
        let mut link = PhaseTallies::default();
        link.outgoing_buffer.begun.add(plain, 3, 30);
        link.outgoing_buffer.begun.add(block, 2, 20);
        link.outgoing_buffer.succeeded.add(block, 2, 20);
        link.outgoing_buffer.failed.add(plain, 1, 10);
        link.outgoing_buffer.open = 2;
        let arrivals = Arrivals::new(1);
        arrivals.came(&Groups::of(Class::new(Some(0), false), 5, 50));
        arrivals.handed(&Groups::of(Class::new(Some(0), false), 3, 30));
        arrivals.failed(&Groups::of(Class::new(Some(0), false), 1, 10));
        link.incoming_buffer = arrivals.tally();
        times.queued(block, Duration::from_micros(5));
        times.handed(block, Duration::from_micros(5));
        let mut all = PhaseTallies::default();
        all.merge(&link);
        all.merge(&link);

        let phases = all.named(&names, &times);
        let total = phases.outgoing_buffer.total();
        let messages = [total.begun, total.succeeded, total.failed].map(|volume| volume.messages);
        assert_eq!((messages, phases.outgoing_buffer.open), ([10, 4, 2], 4));
        let blocks = phases.outgoing_buffer.of("block", Some(Cast::Broadcast)).unwrap();
        assert_eq!((blocks.begun, blocks.times.count()), (Volume::new(4, 40), 1));
        assert_eq!(phases.outgoing_buffer.of("block", None), None);
        let came = phases.incoming_buffer.of("block", None).unwrap();
        assert_eq!((came.begun, came.failed, came.times.count()), (Volume::new(10, 100), Volume::new(2, 20), 1));
        assert_eq!(phases.incoming_buffer.open, 2);
        assert_eq!(
            [4, 4, 2],
            [&phases.outgoing_buffer, &phases.outgoing_transfer, &phases.incoming_buffer].map(|phase| phase.rows.len())
        );
    }
}
