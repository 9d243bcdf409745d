//! What messages are counted by on their way: a class for each, groups of those that travel together, sums by class.
//!
//! Owns: plain numbers. Threads: whoever holds the lock of what these are part of. Locks: none. Blocks on: nothing.
//! Upholds: on the way a kind is a small number; messages of one class in a row cost one group, however many they are, and
//! those of a node that registers no kinds and sends no broadcasts cost no memory of their own.

/// Of which kind a message is, and whether it is a broadcast.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Class(u32);

impl Class {
    /// Of no registered kind, for one peer.
    pub(crate) const PLAIN: Self = Self(0);

    /// Of the kind in this place, if it is registered.
    #[inline]
    pub(crate) const fn new(place: Option<usize>, broadcast: bool) -> Self {
        let kind = match place {
            Some(place) => place as u32 + 1,
            None => 0,
        };
        Self(2 * kind + broadcast as u32)
    }

    /// Its place among all classes.
    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }

    /// Its place among all kinds; 0 is none.
    pub(crate) const fn kind(self) -> usize {
        self.index() / 2
    }
}

/// Messages, and the bytes of their payloads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, serde::Serialize)]
#[non_exhaustive]
pub struct Volume {
    /// How many messages.
    pub messages: u64,
    /// Bytes of their payloads, without what frames add.
    pub bytes: u64,
}

impl Volume {
    /// So many.
    pub(crate) const fn new(messages: u64, bytes: u64) -> Self {
        Self { messages, bytes }
    }

    /// Adds another one.
    pub(crate) const fn add(&mut self, more: Self) {
        self.messages += more.messages;
        self.bytes += more.bytes;
    }
}

/// Messages of one class in a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Group {
    pub(crate) class: Class,
    pub(crate) messages: u32,
    pub(crate) bytes: u64,
}

/// Messages that travel together, in their order. All of one class is what there mostly is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Groups {
    first: Group,
    more: Vec<Group>,
}

impl Groups {
    /// Of one class.
    pub(crate) const fn of(class: Class, messages: u32, bytes: u64) -> Self {
        Self { first: Group { class, messages, bytes }, more: Vec::new() }
    }

    /// Adds messages at the end.
    pub(crate) fn push(&mut self, class: Class, messages: u32, bytes: u64) {
        let last = self.more.last_mut().unwrap_or(&mut self.first);
        if last.messages == 0 {
            *last = Group { class, messages, bytes };
        } else if last.class == class {
            last.messages += messages;
            last.bytes += bytes;
        } else {
            self.more.push(Group { class, messages, bytes });
        }
    }

    /// Adds those of others at the end.
    pub(crate) fn append(&mut self, others: &Self) {
        others.iter().for_each(|group| self.push(group.class, group.messages, group.bytes));
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Group> {
        std::iter::once(&self.first).filter(|group| group.messages > 0).chain(&self.more)
    }

    /// The class of the last message.
    pub(crate) fn last_class(&self) -> Class {
        self.more.last().unwrap_or(&self.first).class
    }

    /// Classes of the messages `from..to`, and how many there are of each in a row.
    pub(crate) fn between(&self, from: u32, to: u32) -> impl Iterator<Item = (Class, u32)> {
        let mut at = 0;
        self.iter().filter_map(move |group| {
            let (begin, end) = (at.max(from), (at + group.messages).min(to));
            at += group.messages;
            (begin < end).then(|| (group.class, end - begin))
        })
    }

    /// One message of this class, of so many bytes, is not among them any more. Their order is not that of the messages from
    /// here on.
    pub(crate) fn leave_out(&mut self, class: Class, bytes: u64) {
        let mut sum = Group { class, ..Group::default() };
        // Together they have it, whichever of them has it.
        for group in std::iter::once(&mut self.first).chain(&mut self.more).filter(|group| group.class == class) {
            sum.messages += std::mem::take(&mut group.messages);
            sum.bytes += std::mem::take(&mut group.bytes);
        }
        debug_assert!(sum.messages > 0 && sum.bytes >= bytes, "it was counted when it came");
        sum.messages = sum.messages.saturating_sub(1);
        sum.bytes = sum.bytes.saturating_sub(bytes);
        if sum.messages > 0 {
            self.push(sum.class, sum.messages, sum.bytes);
        }
    }

    /// Message number `at` ends apart from the others: its bytes are not theirs any more. Its class.
    pub(crate) fn part(&mut self, at: u32, bytes: u64) -> Class {
        let mut before = 0;
        for group in std::iter::once(&mut self.first).chain(&mut self.more) {
            before += group.messages;
            if at < before {
                group.bytes -= bytes.min(group.bytes);
                return group.class;
            }
        }
        self.last_class()
    }
}

/// Sums by class.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Tally {
    plain: Volume,
    /// Of the other classes, by their places less one; as many as there was something of.
    others: Vec<Volume>,
}

impl Tally {
    /// Adds messages of one class.
    pub(crate) fn add(&mut self, class: Class, messages: u64, bytes: u64) {
        self.at(class.index()).add(Volume::new(messages, bytes));
    }

    /// Adds to the sum in this place.
    pub(crate) fn add_at(&mut self, index: usize, more: Volume) {
        self.at(index).add(more);
    }

    /// Adds messages that travelled together.
    pub(crate) fn add_all(&mut self, groups: &Groups) {
        groups.iter().for_each(|group| self.add(group.class, group.messages.into(), group.bytes));
    }

    /// One message of this class is not among them: it counts elsewhere.
    pub(crate) fn leave_out(&mut self, class: Class) {
        let sum = self.at(class.index());
        debug_assert!(sum.messages > 0, "it was counted a moment ago");
        sum.messages = sum.messages.saturating_sub(1);
    }

    /// Adds what another one counted.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.plain.add(other.plain);
        if self.others.len() < other.others.len() {
            self.others.resize(other.others.len(), Volume::default());
        }
        self.others.iter_mut().zip(&other.others).for_each(|(sum, more)| sum.add(*more));
    }

    /// The sum of the class in this place.
    pub(crate) fn get(&self, index: usize) -> Volume {
        match index.checked_sub(1) {
            None => self.plain,
            Some(index) => self.others.get(index).copied().unwrap_or_default(),
        }
    }

    /// The sum of all classes.
    pub(crate) fn total(&self) -> Volume {
        let mut total = self.plain;
        self.others.iter().for_each(|sum| total.add(*sum));
        total
    }

    fn at(&mut self, index: usize) -> &mut Volume {
        let Some(index) = index.checked_sub(1) else { return &mut self.plain };
        if self.others.len() <= index {
            self.others.resize(index + 1, Volume::default());
        }
        &mut self.others[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_small_numbers_of_their_own() {
        let classes = [(None, false), (None, true), (Some(0), false), (Some(0), true), (Some(9), false)];
        let classes = classes.map(|(place, broadcast)| Class::new(place, broadcast));
        assert_eq!(classes.map(Class::index), [0, 1, 2, 3, 20]);
        assert_eq!(classes.map(Class::kind), [0, 0, 1, 1, 10]);
        assert_eq!(classes[0], Class::PLAIN);
    }

    #[test]
    fn messages_of_one_class_in_a_row_are_one_group_and_each_is_found_by_its_place() {
        let [plain, cast, kind] =
            [(None, false), (None, true), (Some(0), false)].map(|(at, cast)| Class::new(at, cast));
        let mut groups = Groups::default();
        assert_eq!(groups.iter().count(), 0);
        groups.push(cast, 2, 20);
        groups.push(cast, 1, 10);
        groups.push(plain, 1, 5);
        groups.append(&Groups::of(plain, 1, 5));
        groups.append(&Groups::default());
        groups.append(&Groups::of(kind, 3, 30));
        assert_eq!((groups.iter().count(), groups.last_class()), (3, kind));
        let between = |from, to| groups.between(from, to).collect::<Vec<_>>();
        assert_eq!(between(0, 8), [(cast, 3), (plain, 2), (kind, 3)]);
        assert_eq!(
            (between(2, 4), between(5, 6), between(8, 9)),
            (vec![(cast, 1), (plain, 1)], vec![(kind, 1)], vec![])
        );
        assert_eq!([0, 2, 3, 4, 5, 7].map(|at| groups.part(at, 1)), [cast, cast, plain, plain, kind, kind]);
        let bytes: Vec<u64> = groups.iter().map(|group| group.bytes).collect();
        assert_eq!(bytes, [28, 8, 28]);
    }

    #[test]
    fn sums_are_kept_apart_by_class_and_plain_ones_take_no_memory() {
        let (mut all, mut more) = (Tally::default(), Tally::default());
        all.add(Class::PLAIN, 1, 10);
        assert_eq!(all.others.capacity(), 0);
        more.add(Class::new(Some(1), true), 2, 20);
        more.add_all(&Groups::of(Class::PLAIN, 3, 30));
        all.merge(&more);
        more.leave_out(Class::new(Some(1), true));
        assert_eq!(
            [0, 1, 5, 99].map(|at| all.get(at)),
            [(4, 40), (0, 0), (2, 20), (0, 0)].map(|(m, b)| Volume::new(m, b))
        );
        assert_eq!(more.get(5), Volume::new(1, 20));
    }
}
