//! Kinds of messages: their names, bounds and default priorities.
//!
//! Owns: what the application registered; it never changes once the node runs. Threads: any. Locks: none.
//! Blocks on: nothing.
//! Upholds: a kind is found by one look into a table; a node that registers none pays nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::metrics::{Counter, KindTraffic};
use crate::session::options::Priority;

/// A kind of message, by the number that its sender gives.
///
/// ```
/// use threadwire::{Kind, Node, Priority};
///
/// const BLOCK: u16 = 7;
/// let builder = Node::builder().kind(Kind::new(BLOCK, "block").max_size(4 << 20).priority(Priority::Bulk));
/// # drop(builder);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    pub(super) number: u16,
    pub(super) name: String,
    pub(super) max_size: usize,
    pub(super) priority: Priority,
}

impl Kind {
    /// A kind with this number; its name labels it in logs and metrics. Messages without a kind have number 0.
    pub fn new(number: u16, name: impl Into<String>) -> Self {
        Self { number, name: name.into(), max_size: usize::MAX, priority: Priority::Normal }
    }

    /// The longest payload, in bytes: longer ones are not sent, and rejected when they come. Default: `max_message`.
    pub fn max_size(mut self, bytes: usize) -> Self {
        self.max_size = bytes;
        self
    }

    /// How urgent such messages are where nothing else is said. Default: [`Priority::Normal`].
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }
}

/// For each lower half of a number the place in the table of kinds; 0 is none.
type Page = Box<[u16; 256]>;

/// The kinds of a node.
#[derive(Default)]
pub(crate) struct Kinds {
    /// By the upper half of the number, then by the lower.
    pages: Option<Box<[Option<Page>; 256]>>,
    kinds: Vec<Kind>,
}

impl Kinds {
    /// Whether nothing is registered.
    pub(crate) fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.kinds.len()
    }

    /// Their names, by their places.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.kinds.iter().map(|kind| kind.name.as_str()).collect()
    }

    /// Its place among the kinds.
    #[inline]
    pub(super) fn place(&self, number: u16) -> Option<usize> {
        let pages = self.pages.as_ref()?;
        let page = pages[usize::from(number >> 8)].as_ref()?;
        usize::from(page[usize::from(number & 0xff)]).checked_sub(1)
    }

    /// What is registered of it.
    fn get(&self, number: u16) -> Option<&Kind> {
        self.kinds.get(self.place(number)?)
    }

    /// Whether a message of this kind may have so many bytes.
    #[inline]
    pub(super) fn allows(&self, number: u16, len: usize) -> bool {
        self.get(number).is_none_or(|kind| len <= kind.max_size)
    }

    /// How urgent such messages are where nothing else is said.
    #[inline]
    pub(super) fn priority(&self, number: u16) -> Priority {
        self.get(number).map_or(Priority::Normal, |kind| kind.priority)
    }

    /// What a line in the log calls it.
    pub(super) fn label(&self, number: u16) -> impl fmt::Display {
        struct Label<'a>(Option<&'a Kind>, u16);
        impl fmt::Display for Label<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0 {
                    Some(kind) => f.write_str(&kind.name),
                    None => write!(f, "kind {}", self.1),
                }
            }
        }
        Label(self.get(number), number)
    }

    /// The longest payload of each, by its place.
    pub(super) fn sizes(&self) -> Box<[usize]> {
        self.kinds.iter().map(|kind| kind.max_size).collect()
    }

    /// Registers one more, whose number is new.
    pub(super) fn add(&mut self, kind: Kind) {
        self.kinds.push(kind);
        let (number, slot) = (self.kinds[self.kinds.len() - 1].number, self.kinds.len() as u16);
        let pages = self.pages.get_or_insert_with(|| Box::new([const { None }; 256]));
        let page = pages[usize::from(number >> 8)].get_or_insert_with(|| Box::new([0; 256]));
        page[usize::from(number & 0xff)] = slot;
    }
}

impl fmt::Debug for Kinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.kinds).finish()
    }
}

/// Messages of one link by kind. Empty without kinds.
#[derive(Debug, Default)]
pub(super) struct KindCounters {
    kinds: Arc<Kinds>,
    sent: Box<[Counter]>,
    received: Box<[Counter]>,
}

impl KindCounters {
    /// None counted yet.
    pub(super) fn new(kinds: Arc<Kinds>) -> Self {
        let counters = || kinds.kinds.iter().map(|_| Counter::default()).collect();
        Self { sent: counters(), received: counters(), kinds }
    }

    #[inline]
    pub(super) fn sent(&self, number: u16) {
        if let Some(place) = self.kinds.place(number) {
            self.sent[place].add();
        }
    }

    #[inline]
    pub(super) fn received(&self, number: u16) {
        if let Some(place) = self.kinds.place(number) {
            self.received[place].add();
        }
    }

    /// What they say, by the kinds' names.
    pub(super) fn snapshot(&self) -> BTreeMap<String, KindTraffic> {
        let counts = self.sent.iter().zip(&self.received);
        let traffic = counts.map(|(sent, received)| KindTraffic { sent: sent.value(), received: received.value() });
        self.kinds.kinds.iter().map(|kind| kind.name.clone()).zip(traffic).collect()
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_found_by_its_number_and_others_are_not() {
        let mut kinds = Kinds::default();
        assert!(kinds.is_empty() && kinds.allows(0, usize::MAX) && kinds.priority(0) == Priority::Normal);
        kinds.add(Kind::new(0, "plain").priority(Priority::Urgent));
        kinds.add(Kind::new(0x1234, "block").max_size(10).priority(Priority::Bulk));
        let priorities = [0, 0x1234, 0x1235].map(|number| kinds.priority(number));
        assert_eq!(priorities, [Priority::Urgent, Priority::Bulk, Priority::Normal]);
        assert!(kinds.allows(0x1234, 10) && !kinds.allows(0x1234, 11) && kinds.allows(0x3412, 11));
        assert_eq!((kinds.label(0x1234).to_string(), kinds.label(9).to_string()), ("block".into(), "kind 9".into()));
    }

    #[test]
    fn messages_are_counted_by_the_names_of_registered_kinds() {
        let mut kinds = Kinds::default();
        kinds.add(Kind::new(1, "one"));
        kinds.add(Kind::new(2, "two"));
        let counters = KindCounters::new(Arc::new(kinds));
        [1, 2, 2, 3].into_iter().for_each(|number| counters.sent(number));
        counters.received(1);
        let counts = counters.snapshot().into_iter().map(|(name, kind)| (name, kind.sent, kind.received));
        assert_eq!(counts.collect::<Vec<_>>(), [("one".to_owned(), 1, 1), ("two".to_owned(), 2, 0)]);
    }
}
