//! How each message is sent: which lane, what is promised, what happens when there is no room, how long it is wanted.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: messages of one stream are sent in ways that promise their order.

use std::time::Duration;

use threadwire::{BEST_EFFORT_MOST, Delivery, OverflowPolicy, Priority, SendOptions};

use crate::chaos::payload::{Mode, Stream};

/// How long a message waits for room before the application gives up on it.
const ROOM: Duration = Duration::from_millis(200);

/// The stream and the options of the next message, which has so many bytes, and whether it is wanted for a limited time.
pub fn choose(length: usize, random: &mut fastrand::Rng) -> (Stream, SendOptions, bool) {
    let lane = match random.u8(0..10) {
        0..2 => 0,
        2..8 => 1,
        _ => 2,
    };
    let mode = match random.u8(0..100) {
        0..12 if length <= BEST_EFFORT_MOST => Mode::BestEffort,
        12..20 => Mode::Latest,
        _ => Mode::Reliable,
    };
    let overflow = match (mode, random.u8(0..10)) {
        // One key for a stream: with several, a later message could take a place ahead of an earlier one of another key.
        (Mode::Latest, _) => OverflowPolicy::Conflate(u64::from(lane)),
        (_, 0) => OverflowPolicy::Fail,
        (_, 1) => OverflowPolicy::DropOldest,
        (_, 2) => OverflowPolicy::DropNewest,
        _ => OverflowPolicy::Block,
    };
    let delivery = if mode == Mode::BestEffort { Delivery::BestEffort } else { Delivery::Reliable };
    let priority = Priority::ALL[usize::from(lane)];
    let mut options = SendOptions::new().priority(priority).delivery(delivery).overflow(overflow).timeout(ROOM);
    let brief = random.u8(0..10) == 0;
    if brief {
        // From less than a lost connection takes to more than that.
        options = options.ttl(Duration::from_millis(random.u64(1..1000)));
    }
    (Stream { lane, mode }, options, brief)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn all_streams_are_used_and_what_is_too_long_for_best_effort_is_not_sent_so() {
        let mut random = fastrand::Rng::with_seed(6);
        let mut streams = |length| (0..1000).map(|_| choose(length, &mut random).0).collect::<BTreeSet<_>>();
        assert_eq!(streams(BEST_EFFORT_MOST).len(), 9);
        let long = streams(BEST_EFFORT_MOST + 1);
        assert!(long.len() == 6 && long.iter().all(|stream| !stream.is_best_effort()));
    }
}
