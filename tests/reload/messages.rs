//! Sizes and times of messages, and what waits in queues.

use std::thread::{Builder, Scope, ScopedJoinHandle};
use std::time::Duration;

use threadwire::SendOptions;
use threadwire::config::Offline;
use threadwire::error::{CloseReason, ConnectError, DisconnectReason, SendErrorKind};

use crate::common::limits::sleeps;
use crate::common::{NOWHERE, PATIENCE, alone, ended, link, quick, start, wait_until};
use crate::{Change, changed, nobody};

/// Has a thread do what waits; returns once it does.
fn waiting<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    what: impl FnOnce() -> T + Send + 'scope,
) -> ScopedJoinHandle<'scope, T> {
    let thread = Builder::new().name("waits".to_owned()).spawn_scoped(scope, what).unwrap();
    wait_until("the thread waits", || sleeps("waits"));
    thread
}

#[test]
fn lowered_queue_bounds_drop_nothing_and_whoever_comes_waits_for_room() {
    const ALL: u32 = 130;
    let _alone = alone();
    let config = quick();
    let (alice, bob) = (start(config.clone()), start(quick()));
    let to_bob = alice.add_peer(bob.id(), NOWHERE).unwrap();
    (0..100u32).for_each(|n| to_bob.try_send(n.to_le_bytes()).unwrap());
    for lower in [(|config| config.queue_messages = 10) as Change, |config| config.queue_bytes = 100] {
        alice.reload(&changed(&config, lower)).unwrap();
        assert_eq!(to_bob.try_send("too many").unwrap_err().kind, SendErrorKind::Full);
        assert_eq!(to_bob.stats().queued_messages, 100);
    }
    // Somebody waits for room, and has it when the bound is raised.
    for n in 100..ALL {
        let lower: Change =
            if n % 2 == 0 { |config| config.queue_messages = 10 } else { |config| config.queue_bytes = 100 };
        alice.reload(&changed(&config, lower)).unwrap();
        std::thread::scope(|scope| {
            let waits = waiting(scope, || to_bob.send_timeout(n.to_le_bytes(), PATIENCE));
            alice.reload(&config).unwrap();
            waits.join().unwrap().unwrap();
        });
    }
    alice.add_peer(bob.id(), bob.local_addr()).unwrap();
    for n in 0..ALL {
        assert_eq!(bob.recv_timeout(PATIENCE).unwrap().payload(), n.to_le_bytes());
    }
}

#[test]
fn sizes_and_times_of_messages_hold_for_what_is_sent_from_then_on() {
    let _alone = alone();
    let config = quick();
    let (alice, bob) = (start(config.clone()), start(quick()));
    let to_bob = link(&alice, &bob);
    let long = vec![7; 100_000];
    alice.reload(&changed(&config, |config| config.max_message = 99_999)).unwrap();
    assert_eq!(to_bob.send(long.as_slice()).unwrap_err().kind, SendErrorKind::TooLarge);
    alice.reload(&changed(&config, |config| config.max_message = 9)).unwrap();
    // Also on the shortest path.
    assert_eq!(to_bob.send("0123456789").unwrap_err().kind, SendErrorKind::TooLarge);
    to_bob.send("012345678").unwrap();
    alice.reload(&config).unwrap();
    to_bob.send(long.as_slice()).unwrap();
    assert_eq!(bob.recv_timeout(PATIENCE).unwrap().payload().len(), 9);
    assert_eq!(bob.recv_timeout(PATIENCE).unwrap().payload(), long);
    // The other side takes no more than it says now.
    bob.reload(&changed(&config, |config| config.max_message = 99_999)).unwrap();
    let receipt = to_bob.send_with(long, &SendOptions::new()).unwrap();
    let outcome = receipt.wait(PATIENCE).unwrap();
    assert!(format!("{outcome:?}").contains("TooLarge"), "{outcome:?}");

    // Messages to a peer that is away: for how long, whether at all, and how long a sender waits for room.
    let absent = alice.add_peer(nobody(), NOWHERE).unwrap();
    absent.send("before").unwrap();
    alice.reload(&changed(&config, |config| config.message_ttl = Some(Duration::from_millis(1)))).unwrap();
    let receipt = absent.send_with("after", &SendOptions::new()).unwrap();
    let outcome = receipt.wait(PATIENCE).unwrap();
    assert!(format!("{outcome:?}").contains("Expired"), "{outcome:?}");
    alice.reload(&changed(&config, |config| config.offline = Offline::Return)).unwrap();
    assert_eq!(absent.send("x").unwrap_err().kind, SendErrorKind::Offline);
    let short = Duration::from_millis(1);
    let full = changed(&config, |config| (config.queue_messages, config.send_deadline) = (1, short));
    alice.reload(&full).unwrap();
    assert_eq!(absent.send("x").unwrap_err().kind, SendErrorKind::TimedOut);
    assert_eq!(absent.stats().queued_messages, 1, "what was sent before is there");

    // Questions, and peers that nobody knows.
    alice.reload(&changed(&config, |config| (config.requests, config.unknown_peers) = (1, 0))).unwrap();
    let _first = to_bob.ask("?", PATIENCE).unwrap();
    let refused = to_bob.ask("?", PATIENCE).unwrap_err();
    assert!(refused.to_string().contains("questions"), "{refused}");
    assert!(matches!(alice.peer(nobody()), Err(ConnectError::UnknownPeer(_))));
    alice.reload(&config).unwrap();
    alice.peer(nobody()).unwrap();
}

#[test]
fn memory_that_is_lowered_refuses_and_memory_that_is_raised_lets_who_waits_go_on() {
    let _alone = alone();
    let config = changed(&quick(), |config| {
        (config.inbound, config.outbound) = (4, 4);
        (config.max_message, config.window_bytes, config.queue_bytes) = (1 << 20, 1 << 20, 4 << 20);
        config.memory_bytes = 64 << 20;
    });
    let alice = start(config.clone());
    let absent = alice.add_peer(nobody(), NOWHERE).unwrap();
    (0..2).for_each(|_| absent.try_send(vec![7; 1 << 20]).unwrap());
    // As much as the floors, and the two that wait.
    let low = changed(&config, |config| (config.queue_bytes, config.memory_bytes) = (4 << 20, 4 << 20));
    alice.reload(&low).unwrap();
    assert_eq!(absent.try_send(vec![7; 1 << 20]).unwrap_err().kind, SendErrorKind::Full);
    assert_eq!(absent.stats().queued_messages, 2);
    std::thread::scope(|scope| {
        let waits = waiting(scope, || absent.send_timeout(vec![7; 1 << 20], PATIENCE));
        alice.reload(&config).unwrap();
        waits.join().unwrap().unwrap();
    });
    assert_eq!(absent.stats().queued_messages, 3);
}

#[test]
fn a_heartbeat_that_is_shortened_comes_at_once_though_the_sender_sleeps() {
    let _alone = alone();
    let config = changed(&quick(), |config| {
        (config.heartbeat, config.idle_timeout) = (Duration::from_secs(3600), Duration::from_secs(7200));
    });
    let (alice, bob) = (start(config.clone()), start(config.clone()));
    link(&alice, &bob);
    let round_trip = || alice.peers().into_iter().find(|peer| peer.id == bob.id()).unwrap().rtt;
    assert_eq!(round_trip(), None, "no heartbeat was answered yet");
    let often = changed(&config, |config| config.heartbeat = Duration::from_millis(5));
    // Each answers in its own heartbeats.
    [&alice, &bob].into_iter().for_each(|node| drop(node.reload(&often).unwrap()));
    wait_until("a heartbeat has measured the round trip", || round_trip().is_some());
    // And whoever says nothing for longer than is allowed now is cut.
    alice.reload(&config).unwrap();
    bob.reload(&changed(&often, |config| config.idle_timeout = Duration::from_millis(6))).unwrap();
    assert_eq!(ended(&bob), DisconnectReason::Local(CloseReason::Idle));
}
