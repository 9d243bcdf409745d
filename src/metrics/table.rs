//! Counters by cause, and what they say at one moment.
//!
//! Owns: atomics. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: a total is the sum of its causes.

use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::cause::Cause;

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

    /// Every cause by its name, and its count; what has no name of its own is `other`.
    pub(crate) fn named(&self) -> impl Iterator<Item = (String, u64)> {
        let other = (K::ALL.len() < K::LEN).then(|| ("other".to_owned(), self.other()));
        self.iter().map(|(cause, count)| (cause.name(), count)).chain(other)
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
        for (name, count) in self.named() {
            map.serialize_entry(&name, &count)?;
        }
        map.end()
    }
}
