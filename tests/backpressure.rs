//! An application that does not receive: its peers are told to wait, memory stays bounded, nothing is lost, and nobody
//! else notices.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use threadwire::error::{SendError, SendErrorKind};
use threadwire::{Batch, Config, LinkStats, Node};

mod common;
use common::ledger::{Ledger, Verdict, fill, numbered};
use common::{NOWHERE, PATIENCE, alone, identities, link, quick, start, wait_until};

const KIB: usize = 1024;

/// A configuration with bounds that are soon reached.
fn tight() -> Config {
    let mut config = quick();
    config.queue_bytes = 256 * KIB;
    config.window_bytes = 512 * KIB;
    config
}

/// What the sender holds is within its configuration's bounds: the queue, the window, and one segment or message that
/// was on its way from one to the other.
#[track_caller]
fn bounded(stats: LinkStats, config: &Config, len: usize) {
    assert!(stats.queued_bytes <= config.queue_bytes.max(len + 8 * KIB), "{stats:?}");
    assert!(stats.kept_bytes <= config.window_bytes + config.queue_bytes.max(len) + 8 * KIB, "{stats:?}");
    assert!(stats.unacked_bytes <= config.window_bytes.max(len) + 8 * KIB, "{stats:?}");
}

/// Takes `count` messages of a node, all of one peer.
fn take(node: &Node, count: u64) -> Verdict {
    let ledger = Ledger::default();
    for _ in 0..count {
        let message = node.recv_timeout(PATIENCE).unwrap();
        ledger.enter(message.payload(), message.possible_repeat());
    }
    ledger.verdict()
}

#[test]
fn a_sender_to_an_application_that_does_not_receive_is_told_that_the_queue_is_full() {
    let _alone = alone();
    for len in [8, 64, 4 * KIB, 40 * KIB, 300 * KIB] {
        let config = tight();
        let (bob, alice) = (start(quick()), start(config.clone()));
        let to_bob = link(&alice, &bob);
        let sent = fill(&to_bob, len);
        let stats = to_bob.stats();
        bounded(stats, &config, len);
        assert_eq!((stats.accepted, stats.acked), (sent, 0), "{len} bytes");
        assert!(stats.queued_messages > 0 && stats.unacked_bytes > 0, "{len} bytes: {stats:?}");
        // The refused one was not sent: what comes is what was taken.
        assert_eq!(take(&bob, sent), Verdict::perfect(sent), "{len} bytes");
        wait_until("all are acknowledged", || to_bob.stats().acked == sent);
        assert!(bob.recv_timeout(Duration::ZERO).is_err());
        assert_eq!((to_bob.stats().queued_bytes, to_bob.stats().kept_bytes), (0, 0));
        assert!(alice.shutdown(PATIENCE).is_clean());
    }
}

#[test]
fn a_blocked_send_goes_on_when_the_application_receives_and_memory_is_bounded_all_the_while() {
    const COUNT: u64 = 20_000;
    const LEN: usize = 1000;
    let _alone = alone();
    let config = tight();
    let (bob, alice) = (start(quick()), start(config.clone()));
    let to_bob = link(&alice, &bob);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..COUNT {
                to_bob.send(numbered(number, LEN)).unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        wait_until("the sender is stuck", || to_bob.stats().queued_bytes + LEN + 8 > config.queue_bytes);
        let verdict = Ledger::default();
        let mut stuck = 0;
        while verdict.came() < COUNT {
            // In gulps: after each of them the sender gets stuck again.
            for _ in 0..500.min(COUNT - verdict.came()) {
                let message = bob.recv_timeout(PATIENCE).unwrap();
                verdict.enter(message.payload(), message.possible_repeat());
            }
            bounded(to_bob.stats(), &config, LEN);
            stuck += u32::from(!done.load(Ordering::Relaxed));
        }
        assert_eq!(verdict.verdict(), Verdict::perfect(COUNT));
        assert!(stuck > 20, "the sender waited for the receiver: {stuck}");
    });
    wait_until("all are acknowledged", || to_bob.stats().acked == COUNT);
}

#[test]
fn a_blocked_send_gives_the_message_back_at_its_deadline() {
    let _alone = alone();
    let mut config = tight();
    config.send_deadline = Duration::from_millis(100);
    let alice = start(config);
    let to_nobody = alice.add_peer(identities()[0].peer_id(), NOWHERE).unwrap();
    let sent = fill(&to_nobody, 10 * KIB);
    for len in [10 * KIB, 100 * KIB] {
        let payload = numbered(sent, len);
        let late = SendError { kind: SendErrorKind::TimedOut, payload: payload.clone() };
        let begin = Instant::now();
        assert_eq!(to_nobody.send(&payload[..]), Err(late.clone()));
        assert_eq!(to_nobody.send_timeout(payload, Duration::from_millis(50)), Err(late));
        let took = begin.elapsed();
        assert!((Duration::from_millis(150)..Duration::from_secs(5)).contains(&took), "{took:?}");
    }
    assert_eq!(to_nobody.stats().accepted, sent);
    assert_eq!(alice.shutdown(Duration::ZERO).undelivered[0].unsent, sent);
}

#[test]
fn a_queue_is_bounded_by_its_messages_too_and_takes_one_that_is_larger_than_it_when_empty() {
    let _alone = alone();
    let mut config = tight();
    config.queue_messages = 10;
    let alice = start(config);
    let bob = start(quick());
    let ids = identities().map(|identity| identity.peer_id());
    let few = alice.add_peer(ids[0], NOWHERE).unwrap();
    assert_eq!(fill(&few, 8), 10);
    let large = alice.add_peer(bob.id(), NOWHERE).unwrap();
    let huge = numbered(0, 3 << 20);
    large.try_send(huge.clone()).unwrap();
    for next in [numbered(1, 8), huge.clone()] {
        assert_eq!(large.try_send(next.clone()), Err(SendError { kind: SendErrorKind::Full, payload: next }));
    }
    assert_eq!(large.stats().queued_messages, 1);
    link(&alice, &bob);
    assert!(bob.recv_timeout(PATIENCE).unwrap().payload() == huge);
    wait_until("it is acknowledged", || large.stats().acked == 1);
    alice.shutdown(Duration::ZERO);
}

#[test]
fn a_batch_that_is_kept_stops_its_own_peer_and_no_other() {
    const COUNT: u64 = 5_000;
    let _alone = alone();
    let (bob, alice, carol) = (start(quick()), start(tight()), start(tight()));
    let from_alice = link(&alice, &bob);
    let of_alice = fill(&from_alice, 500);
    let incoming = bob.incoming().unwrap();
    let kept = incoming.recv_timeout(PATIENCE).unwrap();
    assert_eq!(kept.peer(), alice.id());
    // While alice's batch is kept there is no other of hers, and carol's come, more than any window holds.
    let from_carol = link(&carol, &bob);
    let ledger = Ledger::default();
    std::thread::scope(|scope| {
        scope.spawn(|| (0..COUNT).for_each(|number| from_carol.send(numbered(number, 500)).unwrap()));
        while ledger.came() < COUNT {
            let batch = incoming.recv_timeout(PATIENCE).unwrap();
            assert_eq!(batch.peer(), carol.id());
            batch.for_each(|message| ledger.enter(message.payload(), message.possible_repeat()));
        }
    });
    assert_eq!(ledger.verdict(), Verdict::perfect(COUNT));
    wait_until("all of carol's are acknowledged", || from_carol.stats().acked == COUNT);
    assert_eq!(from_alice.stats().acked, 0);
    // Then alice's go on, in order.
    let ledger = Ledger::default();
    let enter = |batch: Batch| batch.for_each(|message| ledger.enter(message.payload(), message.possible_repeat()));
    enter(kept);
    while ledger.came() < of_alice {
        enter(incoming.recv_timeout(PATIENCE).unwrap());
    }
    assert_eq!(ledger.verdict(), Verdict::perfect(of_alice));
    wait_until("all of alice's are acknowledged", || from_alice.stats().acked == of_alice);
}

#[test]
fn a_message_of_a_quiet_peer_does_not_wait_for_the_end_of_a_flood() {
    let _alone = alone();
    let (bob, alice, carol) = (start(quick()), start(quick()), start(quick()));
    let from_alice = link(&alice, &bob);
    let flood = fill(&from_alice, 1000);
    let from_carol = link(&carol, &bob);
    from_carol.send("quiet").unwrap();
    wait_until("both have a batch waiting", || bob.incoming().unwrap().len() == 2);
    let mut before = 0;
    while bob.recv_timeout(PATIENCE).unwrap().from() != carol.id() {
        before += 1;
    }
    // At most what one link may hold comes first: its window.
    assert!(before * 1000 <= 4 << 20, "{before} of {flood}");
    assert!(before < flood / 2, "{before} of {flood}");
    alice.shutdown(Duration::ZERO);
}

#[test]
fn a_reply_finds_room_when_everything_else_is_full() {
    const COUNT: u64 = 1_000;
    let _alone = alone();
    let (bob, alice) = (start(tight()), start(tight()));
    let to_bob = link(&alice, &bob);
    let to_alice = bob.wait_connected(alice.id(), PATIENCE).unwrap();
    let full = fill(&to_bob, 500);
    (0..COUNT).for_each(|number| to_alice.send(numbered(number, 100)).unwrap());
    // Alice cannot send to bob, and answers him.
    for number in 0..COUNT {
        let question = alice.recv_timeout(PATIENCE).unwrap();
        assert_eq!(question.payload(), numbered(number, 100));
        question.reply(question.payload()).unwrap();
    }
    assert_eq!((to_bob.stats().accepted, to_bob.stats().acked), (full + COUNT, 0), "bob has taken nothing meanwhile");
    let ledgers: [Ledger; 2] = Default::default();
    for _ in 0..full + COUNT {
        let message = bob.recv_timeout(PATIENCE).unwrap();
        ledgers[usize::from(message.payload().len() == 100)].enter(message.payload(), message.possible_repeat());
    }
    assert_eq!(ledgers.map(|ledger| ledger.verdict()), [Verdict::perfect(full), Verdict::perfect(COUNT)]);
}

#[test]
fn counts_are_of_one_moment() {
    const COUNT: u64 = 100_000;
    let _alone = alone();
    let bob = Node::builder().config(quick()).handler(|_, _| {}).start().unwrap();
    let alice = start(quick());
    let to_bob = link(&alice, &bob);
    std::thread::scope(|scope| {
        scope.spawn(|| (0..COUNT).for_each(|number| to_bob.send(numbered(number, 50)).unwrap()));
        let mut idle = 0;
        loop {
            let stats = to_bob.stats();
            assert!(stats.acked <= stats.accepted, "{stats:?}");
            if stats.acked == stats.accepted {
                assert_eq!((stats.queued_messages, stats.queued_bytes, stats.unacked_bytes), (0, 0, 0), "{stats:?}");
                idle += 1;
            }
            if stats.acked == COUNT {
                break println!("{idle} idle moments were seen");
            }
        }
    });
}
