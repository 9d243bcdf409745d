//! Peers that do not read: told of before they are cut, once; and what was cut goes on or comes back, each message once.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use parking_lot::Mutex;
use threadwire::config::Offline;
use threadwire::error::{CloseReason, DisconnectReason, RejectCause, SendErrorKind};
use threadwire::{
    Collector, Config, Event, Node, Outcome, OutcomeBatch, OverflowPolicy, PeerHandle, ReturnReason, SendOptions,
};

mod common;
use common::ledger::{Ledger, number_of, numbered};
use common::mute::Mute;
use common::proxy::Proxy;
use common::{CHANNEL, PATIENCE, alone, quick, start, wait_until};

const MS: Duration = Duration::from_millis(1);
const KIB: usize = 1024;

/// A node that tells of slow peers soon, and cuts them a little later.
fn watchful() -> Config {
    let mut config = quick();
    config.slow_after = 200 * MS;
    (config.heartbeat, config.idle_timeout) = (100 * MS, 1000 * MS);
    config
}

/// Events up to the first that `last` wants, in their order.
fn events_until(node: &Node, what: &str, last: impl Fn(&Event) -> bool) -> Vec<Event> {
    let deadline = Instant::now() + PATIENCE;
    let mut events = Vec::new();
    loop {
        let Ok(event) = node.events().recv_deadline(deadline) else { panic!("no {what} after {events:?}") };
        let over = last(&event);
        events.push(event);
        if over {
            return events;
        }
    }
}

fn cut_with(reason: CloseReason) -> impl Fn(&Event) -> bool {
    move |event| matches!(event, Event::Disconnected { reason: DisconnectReason::Local(why), .. } if *why == reason)
}

fn slow(events: &[Event]) -> Vec<(Duration, usize, usize)> {
    let slow = |event: &Event| match *event {
        Event::PeerSlow { oldest_age, queued_messages, queued_bytes, .. } => {
            Some((oldest_age, queued_messages, queued_bytes))
        }
        _ => None,
    };
    events.iter().filter_map(slow).collect()
}

/// The outcome of each of so many messages.
fn outcomes(batches: &Receiver<OutcomeBatch>, count: u64) -> BTreeMap<u64, Outcome> {
    let mut outcomes = BTreeMap::new();
    while outcomes.len() < count as usize {
        for (tag, outcome) in batches.recv_timeout(PATIENCE).unwrap() {
            assert!(outcomes.insert(tag, outcome).is_none(), "message {tag} ended twice");
        }
    }
    outcomes
}

/// Sends until nothing more is taken and the node has told that the peer is slow; how many were taken.
fn fill(node: &Node, peer: &PeerHandle, collector: &Collector) -> u64 {
    let options = SendOptions::new().overflow(OverflowPolicy::Fail);
    let mut sent = 0;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match peer.send_collected(numbered(sent, 30 * KIB), &options, collector, sent) {
            Ok(()) => sent += 1,
            Err(error) => {
                assert_eq!(error.kind, SendErrorKind::Full);
                if node.metrics().slow_peers > 0 {
                    return sent;
                }
                assert!(Instant::now() < deadline, "nobody says that it is slow");
                std::thread::sleep(MS);
            }
        }
    }
}

/// A peer that never reads, and is cut for this reason: it was told of as slow before, and every message comes back.
fn never_reads(reason: CloseReason, mut config: Config) {
    let _alone = alone();
    (config.queue_bytes, config.window_bytes) = (1024 * KIB, 32 * 1024 * KIB);
    (config.offline, config.resume_window) = (Offline::Return, 50 * MS);
    let node = start(config);
    let mute = Mute::connect(CHANNEL, node.id(), node.local_addr().unwrap(), 64 << 20);
    let peer = node.wait_connected(mute.id, PATIENCE).unwrap();
    let (collector, batches) = Collector::new(10_000);
    let sent = fill(&node, &peer, &collector);
    let events = events_until(&node, "cut", cut_with(reason));
    let told = slow(&events);
    assert_eq!(told.len(), 1, "{events:?}");
    assert!(told[0].0 >= 200 * MS && told[0].1 > 0 && told[0].2 > 1024 * KIB / 2, "{told:?}");
    let (mut unknown, mut offline) = (0, 0);
    for (tag, outcome) in outcomes(&batches, sent) {
        let (payload, reason) = match outcome {
            Outcome::Unknown { payload } => (payload, None),
            Outcome::Returned { payload, reason } => (payload, Some(reason)),
            other => panic!("{other:?}"),
        };
        assert!(payload == numbered(tag, 30 * KIB), "it comes back as it was");
        match reason {
            None => unknown += 1,
            Some(ReturnReason::Offline) => offline += 1,
            // It had a number already, and was not written.
            Some(ReturnReason::GivenUp) => {}
            Some(other) => panic!("{other:?}"),
        }
    }
    assert!(unknown > 0 && offline > 10, "{unknown} {offline} of {sent}");
    let stats = peer.stats();
    assert_eq!((stats.accepted, stats.queued_messages, stats.kept_bytes), (sent, 0, 0));
    assert_eq!(stats.accepted, stats.returned + stats.unknown);
    assert_eq!((node.metrics().slow_peers, node.metrics().sessions_cut), (1, 1));
}

#[test]
fn a_peer_that_never_reads_is_slow_before_it_is_cut_for_a_stalled_write() {
    let mut config = watchful();
    (config.write_timeout, config.idle_timeout) = (1000 * MS, 3 * PATIENCE);
    never_reads(CloseReason::WriteStalled, config);
}

#[test]
fn a_peer_that_never_reads_is_slow_before_it_is_cut_for_its_silence() {
    never_reads(CloseReason::Idle, watchful());
}

#[test]
fn a_peer_that_is_cut_sooner_than_it_is_slow_is_told_of_before_all_the_same() {
    let _alone = alone();
    let mut config = watchful();
    (config.slow_after, config.window_bytes) = (10_000 * MS, 256 * KIB);
    let node = start(config);
    let mute = Mute::connect(CHANNEL, node.id(), node.local_addr().unwrap(), 64 << 20);
    let peer = node.wait_connected(mute.id, PATIENCE).unwrap();
    (0..40).for_each(|number| peer.send(numbered(number, 30 * KIB)).unwrap());
    let events = events_until(&node, "cut", cut_with(CloseReason::Idle));
    assert_eq!(slow(&events).len(), 1, "{events:?}");
    assert_eq!(node.metrics().slow_peers, 1);
    node.shutdown(Duration::ZERO);
}

#[test]
fn a_peer_that_is_only_silent_is_not_slow() {
    let _alone = alone();
    let node = start(watchful());
    let mute = Mute::connect(CHANNEL, node.id(), node.local_addr().unwrap(), 64 << 20);
    node.wait_connected(mute.id, PATIENCE).unwrap();
    let events = events_until(&node, "cut", cut_with(CloseReason::Idle));
    assert_eq!((slow(&events).len(), node.metrics().slow_peers), (0, 0));
}

/// What became of messages to a peer whose path stood still until the session was cut, and that was there again then.
struct Stalled {
    outcomes: BTreeMap<u64, Outcome>,
    came: BTreeSet<u64>,
}

/// Sends so many messages into a path that stands still, until the session is cut, and on over the next one.
fn stalled(config: Config, options: &SendOptions, count: u64) -> Stalled {
    // The far side takes what comes at once, and shows life.
    let mut far = quick();
    far.heartbeat = config.heartbeat;
    let (node, far) = (start(config), start(far));
    let proxy = Proxy::to(far.local_addr().unwrap());
    node.add_peer(far.id(), [proxy.addr()]).unwrap();
    let peer = node.wait_connected(far.id(), PATIENCE).unwrap();
    assert_eq!(proxy.stall(), 1);
    let (collector, batches) = Collector::new(10_000);
    for tag in 0..count {
        peer.send_collected(numbered(tag, 10 * KIB), options, &collector, tag).unwrap();
    }
    assert!(peer.stats().queued_messages > 0, "more than the window holds");
    let (over, ledger, came) = (AtomicBool::new(false), Ledger::default(), Mutex::new(BTreeSet::new()));
    let outcomes = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                if let Ok(message) = far.recv_timeout(20 * MS) {
                    ledger.enter(message.payload(), message.possible_repeat());
                    came.lock().insert(number_of(message.payload()).unwrap());
                }
            }
        });
        let over = Raise(&over);
        let events = events_until(&node, "cut", cut_with(CloseReason::Idle));
        assert_eq!(slow(&events).len(), 1, "{events:?}");
        let is_recovery = |event: &Event| matches!(event, Event::PeerRecovered { .. });
        // What expires may leave nothing behind that waits, while the path still stands still: the episode is over then.
        if !events.iter().any(is_recovery) {
            let events = events_until(&node, "recovery", is_recovery);
            assert!(slow(&events).is_empty(), "told once: {events:?}");
        }
        let outcomes = outcomes(&batches, count);
        wait_until("nothing is kept", || peer.stats().kept_bytes == 0);
        drop(over);
        outcomes
    });
    let stats = peer.stats();
    assert_eq!(stats.accepted, stats.acked + stats.returned, "{stats:?}");
    assert_eq!((proxy.counts().stalls, node.metrics().slow_peers, node.metrics().sessions_cut), (1, 1, 1));
    // Not one more than was acknowledged, none of them twice, all as they were.
    let verdict = ledger.verdict();
    assert_eq!((verdict.came, verdict.duplicated, verdict.reordered), (stats.acked, 0, 0), "{verdict:?}");
    assert_eq!((verdict.corrupted, verdict.repeats), (0, 0), "{verdict:?}");
    Stalled { outcomes, came: came.into_inner() }
}

/// Puts a flag up when it is dropped, also by a test that fails.
struct Raise<'a>(&'a AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A small window, so that most of it waits.
fn narrow() -> Config {
    let mut config = watchful();
    config.window_bytes = 256 * KIB;
    config
}

impl Stalled {
    /// Those that came are those that were acknowledged; how many others came back, for one of these reasons.
    fn reconcile(self, reasons: &[ReturnReason]) -> usize {
        let mut returned = 0;
        for (tag, outcome) in self.outcomes {
            match outcome {
                Outcome::Acknowledged(_) => assert!(self.came.contains(&tag), "{tag} never came"),
                Outcome::Returned { payload, reason } => {
                    assert!(payload == numbered(tag, 10 * KIB) && !self.came.contains(&tag), "{tag} came all the same");
                    assert!(reasons.contains(&reason), "{reason:?}");
                    returned += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        returned
    }
}

#[test]
fn what_waited_for_a_slow_peer_goes_out_on_the_next_session_once_and_in_order() {
    let _alone = alone();
    let returned = stalled(narrow(), &SendOptions::new(), 300).reconcile(&[]);
    assert_eq!(returned, 0, "nothing is lost by a cut");
}

#[test]
fn what_waited_for_a_slow_peer_comes_back_at_the_cut_if_nothing_is_kept_and_what_was_written_goes_on() {
    let _alone = alone();
    let mut config = narrow();
    config.offline = Offline::Return;
    let returned = stalled(config, &SendOptions::new(), 300).reconcile(&[ReturnReason::Offline]);
    assert!((10..300).contains(&returned), "{returned}");
}

#[test]
fn what_waited_for_a_slow_peer_and_expired_comes_back_and_never_arrives() {
    let _alone = alone();
    let options = SendOptions::new().ttl(500 * MS);
    let expired = [ReturnReason::Expired, ReturnReason::Rejected(RejectCause::Expired)];
    let returned = stalled(narrow(), &options, 300).reconcile(&expired);
    assert!(returned > 10, "{returned}");
}
