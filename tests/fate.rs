//! Each accepted message ends in exactly one outcome: the table of the design, row by row.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use common::{NOWHERE, PATIENCE, away, base, identities, link, loopback, outcome, quick, start, wait_until};
use crossbeam_channel::Receiver;
use threadwire::config::Offline;
use threadwire::error::{RejectCause, SendErrorKind};
use threadwire::{
    BEST_EFFORT_MOST, Collector, Delivery, Node, Outcome, OverflowPolicy, PeerHandle, Priority, ReturnReason,
    SendOptions, Stage, Undelivered, WaitError,
};

fn returned(outcome: Outcome) -> (Vec<u8>, ReturnReason) {
    match outcome {
        Outcome::Returned { payload, reason } => (payload, reason),
        other => panic!("{other:?}"),
    }
}

fn next(undelivered: &Receiver<Undelivered>) -> (Vec<u8>, Option<ReturnReason>) {
    match undelivered.recv_timeout(PATIENCE).unwrap().outcome {
        Outcome::Returned { payload, reason } => (payload, Some(reason)),
        Outcome::Unknown { payload } => (payload, None),
        other => panic!("{other:?}"),
    }
}

/// Accepted is the sum of all that a message can become, and nothing waits.
fn balances(peer: &PeerHandle) {
    let stats = peer.stats();
    let ended = stats.acked + stats.returned + stats.unknown + stats.written;
    assert_eq!((stats.accepted, stats.queued_messages, stats.kept_bytes), (ended, 0, 0), "{stats:?}");
}

#[test]
fn a_message_that_was_handed_over_is_acknowledged_with_its_times() {
    let (a, b) = (start(base()), start(base()));
    let peer = link(&a, &b);
    for size in [0, 100, 40_000, 300_000] {
        let receipt = peer.send_with(vec![7; size], &SendOptions::new().kind(3)).unwrap();
        let message = b.recv_timeout(PATIENCE).unwrap();
        assert_eq!((message.payload().len(), message.kind(), message.time_left()), (size, 3, None));
        match outcome(receipt) {
            Outcome::Acknowledged(timing) => {
                assert_eq!(timing.bytes, size);
                assert!(timing.queued_for <= timing.written_after && timing.written_after <= timing.done_after);
            }
            other => panic!("{other:?}"),
        }
    }
    balances(&peer);
}

#[test]
fn a_receipt_tells_the_stages_and_comes_back_while_the_outcome_is_open() {
    let (node, peer) = away(base());
    let receipt = peer.send_with("x", &SendOptions::new()).unwrap();
    assert_eq!(receipt.stage(), Stage::Queued);
    let Err(WaitError::Pending(receipt)) = receipt.outcome() else { panic!("nobody has it") };
    let Err(WaitError::Pending(receipt)) = receipt.wait(Duration::from_millis(1)) else { panic!("nobody has it") };
    node.shutdown(Duration::ZERO);
    assert_eq!(receipt.stage(), Stage::Done);
    assert_eq!(returned(outcome(receipt)), (b"x".to_vec(), ReturnReason::ShutDown));
    balances(&peer);
}

#[test]
fn a_handler_that_panics_rejects_that_message_alone_and_it_is_never_sent_again() {
    let calls = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let seen = calls.clone();
    let b = loopback()
        .handler(move |_, message| {
            seen.lock().push(message.payload().to_vec());
            assert_ne!(message.payload(), b"poison", "as it should");
        })
        .start()
        .unwrap();
    let a = start(quick());
    let peer = link(&a, &b);
    let [before, poison, after] = ["before", "poison", "after"].map(|text| {
        let receipt = peer.send_with(text, &SendOptions::new()).unwrap();
        (text, receipt)
    });
    assert!(outcome(before.1).is_success());
    let (payload, reason) = returned(outcome(poison.1));
    assert_eq!((&payload[..], reason), (&b"poison"[..], ReturnReason::Rejected(RejectCause::HandlerPanicked)));
    assert!(outcome(after.1).is_success(), "on the next session");
    assert_eq!(*calls.lock(), [b"before".to_vec(), b"poison".to_vec(), b"after".to_vec()]);
    balances(&peer);
}

#[test]
fn what_is_too_large_for_the_receiver_comes_back() {
    let mut small = base();
    small.max_message = 100_000;
    let (a, b) = (start(base()), start(small));
    let peer = link(&a, &b);
    let receipt = peer.send_with(vec![1; 200_000], &SendOptions::new()).unwrap();
    let (payload, reason) = returned(outcome(receipt));
    assert_eq!((payload.len(), reason), (200_000, ReturnReason::Rejected(RejectCause::TooLarge)));
    balances(&peer);
}

#[test]
fn a_message_expires_while_it_waits_for_a_peer_that_is_away() {
    let (_node, peer) = away(base());
    let ttl = Duration::from_millis(50);
    let options = SendOptions::new().ttl(ttl);
    let began = Instant::now();
    let receipts = [Priority::Urgent, Priority::Normal, Priority::Bulk]
        .map(|priority| peer.send_with("late", &options.clone().priority(priority)).unwrap());
    let lasting = peer.send_with("lasting", &SendOptions::new()).unwrap();
    for receipt in receipts {
        assert_eq!(returned(outcome(receipt)), (b"late".to_vec(), ReturnReason::Expired));
    }
    assert!(began.elapsed() >= ttl, "not before its time");
    let old = options.created_at(began.checked_sub(ttl).unwrap());
    assert_eq!(returned(outcome(peer.send_with("old", &old).unwrap())), (b"old".to_vec(), ReturnReason::Expired));
    assert_eq!((lasting.stage(), peer.stats().queued_messages), (Stage::Queued, 1));
}

#[test]
fn a_message_that_was_written_and_expires_on_the_way_is_rejected_on_arrival() {
    // The handler is held, so that what comes meanwhile waits in the socket, unread, until its time is up.
    let (entered, leave) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let (hold, held) = ((entered.clone(), leave.clone()), Arc::new(AtomicBool::new(false)));
    let handled = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let seen = handled.clone();
    let b = loopback()
        .handler(move |_, message| {
            seen.lock().push((message.payload().to_vec(), message.time_left().is_some()));
            if !held.swap(true, Ordering::Relaxed) {
                hold.0.wait();
                hold.1.wait();
            }
        })
        .start()
        .unwrap();
    let a = start(base());
    let peer = link(&a, &b);
    let first = peer.send_with("first", &SendOptions::new()).unwrap();
    entered.wait();
    // A cut makes the sender write them again, with what is left of their time then: nothing.
    let options = SendOptions::new().ttl(Duration::from_millis(30));
    let small = peer.send_with("small", &options).unwrap();
    let large = peer.send_with(vec![1; 200_000], &options).unwrap();
    let lasting = peer.send_with("lasting", &SendOptions::new().ttl(PATIENCE * 2)).unwrap();
    wait_until("all is written", || [&small, &large, &lasting].iter().all(|r| r.stage() == Stage::Written));
    let written = Instant::now();
    wait_until("their time is up", || written.elapsed() > Duration::from_millis(40));
    b.disconnect(a.id(), threadwire::error::CloseReason::Requested).unwrap();
    leave.wait();
    assert!(outcome(first).is_success());
    assert!(outcome(lasting).is_success());
    let expired = ReturnReason::Rejected(RejectCause::Expired);
    // What the first session had read already was in time: its frame said so.
    for (receipt, size) in [(small, 5), (large, 200_000)] {
        match outcome(receipt) {
            Outcome::Returned { payload, reason } => assert_eq!((payload.len(), reason), (size, expired)),
            Outcome::Acknowledged(_) => assert!(handled.lock().iter().any(|(payload, _)| payload.len() == size)),
            other => panic!("{other:?}"),
        }
    }
    assert!(handled.lock().iter().any(|(payload, limited)| payload == b"lasting" && *limited));
    balances(&peer);
}

#[test]
fn a_full_queue_does_what_each_message_asked_for() {
    let mut config = base();
    config.queue_messages = 4;
    let (node, peer) = away(config);
    let undelivered = node.undelivered();
    let of = |overflow| SendOptions::new().overflow(overflow);
    let kept = peer.send_with("kept", &SendOptions::new()).unwrap();
    peer.send("plain").unwrap();
    let oldest = peer.send_with("oldest", &of(OverflowPolicy::DropOldest)).unwrap();
    drop(peer.send_with("second", &of(OverflowPolicy::DropNewest)).unwrap());
    assert_eq!(peer.stats().queued_messages, 4);

    let refused = peer.send_with("refused", &of(OverflowPolicy::Fail)).unwrap_err();
    assert_eq!((refused.kind, &refused.payload[..]), (SendErrorKind::Full, &b"refused"[..]));
    let brief = SendOptions::new().timeout(Duration::from_millis(20));
    assert_eq!(peer.send_with("brief", &brief).unwrap_err().kind, SendErrorKind::TimedOut);
    let newest = peer.send_with("newest", &of(OverflowPolicy::DropNewest)).unwrap();
    assert_eq!(returned(outcome(newest)), (b"newest".to_vec(), ReturnReason::DroppedNewest));

    let third = peer.send_with("third", &of(OverflowPolicy::DropOldest)).unwrap();
    assert_eq!(returned(outcome(oldest)), (b"oldest".to_vec(), ReturnReason::DroppedOldest));
    drop(peer.send_with("fourth", &of(OverflowPolicy::DropOldest)).unwrap());
    // Its receipt was dropped: it comes back all the same.
    assert_eq!(next(&undelivered), (b"second".to_vec(), Some(ReturnReason::DroppedOldest)));
    assert_eq!((peer.stats().queued_messages, kept.stage(), third.stage()), (4, Stage::Queued, Stage::Queued));

    // Other lanes have queues of their own.
    peer.send_with("urgent", &of(OverflowPolicy::Fail).priority(Priority::Urgent)).map(drop).unwrap();
    // Nothing that agreed to be dropped is left but these two; then what nobody may drop stands in the way.
    let fill = of(OverflowPolicy::Fail);
    for _ in 0..2 {
        let dropped = peer.send_with("fill", &of(OverflowPolicy::DropOldest)).unwrap();
        assert_eq!(dropped.stage(), Stage::Queued);
        drop(dropped);
    }
    assert_eq!(peer.send_with("full", &fill).unwrap_err().kind, SendErrorKind::Full);
}

#[test]
fn only_the_latest_of_a_key_is_sent_in_the_place_of_the_first() {
    let (a, b) = (start(base()), start(base()));
    a.add_peer(b.id(), NOWHERE).unwrap();
    let peer = a.peer(b.id()).unwrap();
    let of = |key| SendOptions::new().overflow(OverflowPolicy::Conflate(key));
    let mut old = Vec::new();
    let mut send = |text: String, key| {
        let receipt = peer.send_with(text, &of(key)).unwrap();
        old.push((key, receipt));
    };
    for round in 0..5 {
        send(format!("one {round}"), 1);
        send(format!("two {round} {}", "x".repeat(round)), 2);
    }
    peer.send("after").unwrap();
    assert_eq!(peer.stats().queued_messages, 3);
    a.add_peer(b.id(), b.local_addr()).unwrap();
    let got: Vec<_> = (0..3).map(|_| b.recv_timeout(PATIENCE).unwrap().payload().to_vec()).collect();
    assert_eq!(got, [b"one 4".to_vec(), b"two 4 xxxx".to_vec(), b"after".to_vec()]);
    let latest = old.split_off(8);
    for (key, receipt) in old {
        let (payload, reason) = returned(outcome(receipt));
        assert!(payload.starts_with(if key == 1 { b"one " } else { b"two " }));
        assert_eq!(reason, ReturnReason::Replaced);
    }
    latest.into_iter().for_each(|(_, receipt)| assert!(outcome(receipt).is_success()));
    wait_until("all has ended", || peer.stats().kept_bytes == 0);
    balances(&peer);
}

#[test]
fn best_effort_is_written_and_no_more_and_comes_back_if_it_is_not() {
    let (a, b) = (start(base()), start(base()));
    let peer = link(&a, &b);
    let options = SendOptions::new().delivery(Delivery::BestEffort).kind(9);
    let too_long = peer.send_with(vec![0; BEST_EFFORT_MOST + 1], &options).unwrap_err();
    assert_eq!((too_long.kind, too_long.payload.len()), (SendErrorKind::TooLarge, BEST_EFFORT_MOST + 1));
    for size in [0, 10, 40_000, BEST_EFFORT_MOST] {
        let receipt = peer.send_with(vec![1; size], &options).unwrap();
        let message = b.recv_timeout(PATIENCE).unwrap();
        assert_eq!((message.payload().len(), message.kind()), (size, 9));
        assert!(matches!(outcome(receipt), Outcome::Written(timing) if timing.bytes == size));
    }
    let reliable = peer.send_with("reliable", &SendOptions::new()).unwrap();
    assert_eq!(b.recv_timeout(PATIENCE).unwrap().payload(), b"reliable");
    assert!(matches!(outcome(reliable), Outcome::Acknowledged(_)));
    assert_eq!((peer.stats().written, peer.stats().acked), (4, 1));
    assert_eq!(a.metrics().traffic.messages_written, 4);

    let (_node, nobody) = away(base());
    let expiring = options.ttl(Duration::from_millis(10));
    assert_eq!(returned(outcome(nobody.send_with("y", &expiring).unwrap())), (b"y".to_vec(), ReturnReason::Expired));
}

#[test]
fn a_collector_hears_of_all_in_batches_and_refuses_more_than_it_holds() {
    let (a, b) = (start(base()), loopback().handler(|_, _| {}).start().unwrap());
    let peer = link(&a, &b);
    let (collector, batches) = Collector::new(1000);
    let mut refused = 0;
    let mut tags = std::collections::HashSet::new();
    let mut most = 0;
    let mut take = |batch: threadwire::OutcomeBatch| {
        most = most.max(batch.len());
        for (tag, outcome) in batch {
            assert!(outcome.is_success() && tags.insert(tag), "{tag}: {outcome:?}");
        }
    };
    for tag in 0..20_000u64 {
        while let Err(error) = peer.send_collected(vec![2; 16], &SendOptions::new(), &collector, tag) {
            assert_eq!((error.kind, error.payload.len()), (SendErrorKind::Uncollected, 16));
            refused += 1;
            take(batches.recv_timeout(PATIENCE).unwrap());
        }
    }
    while collector.outstanding() > 0 {
        take(batches.recv_timeout(PATIENCE).unwrap());
    }
    assert_eq!(tags.len(), 20_000);
    assert!(refused > 0 && most > 1, "{refused} {most}");
    wait_until("all has ended", || peer.stats().kept_bytes == 0);
    balances(&peer);
}

#[test]
fn nothing_is_kept_for_a_peer_that_is_away_if_the_configuration_says_so() {
    let mut config = quick();
    config.offline = Offline::Return;
    let (a, b) = (start(config), start(base()));
    a.add_peer(b.id(), NOWHERE).unwrap();
    let peer = a.peer(b.id()).unwrap();
    assert_eq!(peer.send("nobody there").unwrap_err().kind, SendErrorKind::Offline);
    let refused = peer.send_with("nobody there", &SendOptions::new()).unwrap_err();
    assert_eq!((refused.kind, &refused.payload[..]), (SendErrorKind::Offline, &b"nobody there"[..]));
    a.add_peer(b.id(), b.local_addr()).unwrap();
    a.wait_connected(b.id(), PATIENCE).unwrap();
    peer.send("here").unwrap();
    assert_eq!(b.recv_timeout(PATIENCE).unwrap().payload(), b"here");
    // More than the window holds: what is left in the queue when the peer goes comes back.
    let (collector, batches) = Collector::new(1000);
    let big = vec![3; 60_000];
    for tag in 0..100 {
        peer.send_collected(&big[..], &SendOptions::new(), &collector, tag).unwrap();
    }
    assert!(peer.stats().queued_messages > 10, "{:?}", peer.stats());
    b.shutdown(Duration::ZERO);
    let mut offline = 0;
    while peer.stats().queued_messages > 0 || offline == 0 {
        for (_, outcome) in batches.recv_timeout(PATIENCE).unwrap() {
            offline += usize::from(matches!(outcome, Outcome::Returned { reason: ReturnReason::Offline, .. }));
        }
    }
    assert!(offline > 10, "{offline}");
}

#[test]
fn what_was_written_and_never_answered_ends_unknown_and_the_rest_returned_when_the_resume_window_ends() {
    let mut config = quick();
    config.resume_window = Duration::from_millis(50);
    config.queue_bytes = 64 << 20;
    let a = start(config);
    let (entered, leave) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let (inside, outside) = (entered.clone(), leave.clone());
    let b = loopback()
        .handler(move |_, message| {
            if message.payload() == b"hold" {
                inside.wait();
                outside.wait();
            }
        })
        .start()
        .unwrap();
    let peer = link(&a, &b);
    let undelivered = a.undelivered();
    let hold = peer.send_with("hold", &SendOptions::new()).unwrap();
    entered.wait();
    peer.send("plain").unwrap();
    wait_until("it is written", || peer.stats().queued_messages == 0);
    a.remove_peer(b.id()).unwrap();
    assert!(matches!(outcome(hold), Outcome::Unknown { payload } if payload == b"hold"));
    assert_eq!(next(&undelivered), (b"plain".to_vec(), None));
    assert_eq!(peer.stats().unknown, 2);
    leave.wait();
}

#[test]
fn a_failed_message_that_nobody_asked_about_is_undelivered_and_what_nobody_takes_is_counted() {
    let (node, peer) = away(base());
    let undelivered = node.undelivered();
    peer.set_ttl(Some(Duration::from_millis(5)));
    for _ in 0..5000 {
        peer.send("short-lived").unwrap();
    }
    wait_until("all have expired", || peer.stats().returned == 5000);
    wait_until("what did not fit is counted", || node.metrics().undelivered_missed == 5000 - 4096);
    let first = undelivered.recv_timeout(PATIENCE).unwrap();
    assert_eq!((first.peer, first.kind, first.priority, first.len()), (peer_id(&node), 0, Some(Priority::Normal), 11));
    assert_eq!(undelivered.try_iter().count(), 4095);
    peer.set_ttl(None);
    peer.send("for ever").unwrap();
    assert_eq!(peer.stats().queued_messages, 1);
    node.shutdown(Duration::ZERO);
    assert_eq!(next(&undelivered), (b"for ever".to_vec(), Some(ReturnReason::ShutDown)));
    balances(&peer);
}

fn peer_id(node: &Node) -> threadwire::PeerId {
    node.peers()[0].id
}

#[test]
fn a_policy_of_the_peer_holds_for_plain_sends_too() {
    let mut config = base();
    config.queue_messages = 2;
    let (node, peer) = away(config);
    peer.set_overflow(OverflowPolicy::DropOldest);
    let undelivered = node.undelivered();
    for text in ["1", "2", "3", "4"] {
        peer.send(text).unwrap();
    }
    assert_eq!(next(&undelivered).0, b"1");
    assert_eq!(next(&undelivered), (b"2".to_vec(), Some(ReturnReason::DroppedOldest)));
    assert_eq!(peer.try_send("5").unwrap_err().kind, SendErrorKind::Full);
}

#[test]
fn urgent_messages_pass_bulk_that_waits() {
    let (a, b) = (start(base()), start(base()));
    a.add_peer(b.id(), NOWHERE).unwrap();
    let peer = a.peer(b.id()).unwrap();
    for (text, priority) in [("c", Priority::Bulk), ("b", Priority::Normal), ("a", Priority::Urgent)] {
        drop(peer.send_with(text, &SendOptions::new().priority(priority)).unwrap());
    }
    a.add_peer(b.id(), b.local_addr()).unwrap();
    let got: Vec<_> = (0..3).map(|_| b.recv_timeout(PATIENCE).unwrap().payload().to_vec()).collect();
    assert_eq!(got, [b"a".to_vec(), b"b".to_vec(), b"c".to_vec()]);
}

#[test]
fn plain_and_asked_messages_of_all_sizes_keep_their_order() {
    let (a, b) = (start(base()), start(base()));
    let peer = link(&a, &b);
    let (collector, _batches) = Collector::new(10_000);
    let sizes = [3, 40_000, 100, 200_000, 12, 64, 33_000, 5];
    let sent: Vec<Vec<u8>> = (0..400u32)
        .map(|n| {
            let mut payload = vec![n as u8; sizes[n as usize % sizes.len()].max(4)];
            payload[..4].copy_from_slice(&n.to_le_bytes());
            payload
        })
        .collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for (n, payload) in sent.iter().enumerate() {
                match n % 5 {
                    0 | 1 => peer.send(&payload[..]).unwrap(),
                    2 => peer.send_collected(&payload[..], &SendOptions::new(), &collector, n as u64).unwrap(),
                    3 => drop(peer.send_with(&payload[..], &SendOptions::new().ttl(PATIENCE)).unwrap()),
                    _ => peer.send_collected(&payload[..], &SendOptions::new().ttl(PATIENCE), &collector, 0).unwrap(),
                }
            }
        });
        for payload in &sent {
            let message = b.recv_timeout(PATIENCE).unwrap();
            assert!(message.payload() == payload, "{} bytes", message.payload().len());
        }
    });
    wait_until("all has ended", || peer.stats().kept_bytes == 0);
    balances(&peer);
}

#[test]
fn the_memory_of_a_node_is_one_number_for_all_its_peers() {
    let mut config = base();
    (config.inbound, config.outbound) = (1, 3);
    config.memory_bytes = 9 << 20;
    config.queue_bytes = 8 << 20;
    config.max_message = 4 << 20;
    // 256 KiB of four links are the links' own: 8 MiB are left for all.
    let node = start(config);
    let peers: Vec<_> = (0..3)
        .map(|_| {
            let id = identities()[0].peer_id();
            node.add_peer(id, NOWHERE).unwrap();
            node.peer(id).unwrap()
        })
        .collect();
    let fail = SendOptions::new().overflow(OverflowPolicy::Fail);
    let message = vec![1; 50_000];
    let (collector, batches) = Collector::new(10_000);
    let mut bytes = 0;
    for (tag, peer) in peers.iter().cycle().enumerate() {
        match peer.send_collected(&message[..], &fail, &collector, tag as u64) {
            Ok(()) => bytes += message.len(),
            Err(error) => {
                assert_eq!((error.kind, error.payload.len()), (SendErrorKind::Full, message.len()));
                break;
            }
        }
    }
    let metrics = node.metrics();
    assert!((7 << 20..(9 << 20)).contains(&bytes), "{bytes}");
    assert!((7 << 20..=8 << 20).contains(&metrics.memory_used), "{}", metrics.memory_used);
    assert!(metrics.memory_refused > 0);
    // None of the queues is full: it is the node.
    assert!(peers.iter().all(|peer| peer.stats().queued_bytes < 4 << 20));
    // Plain messages meet it too, and one that waits goes on when another peer's messages end.
    assert_eq!(
        peers[0].send_timeout(vec![2; 100_000], Duration::from_millis(20)).unwrap_err().kind,
        SendErrorKind::TimedOut
    );
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| peers[0].send_timeout(vec![2; 300_000], PATIENCE));
        wait_until("it waits for memory", || node.metrics().memory_refused > metrics.memory_refused + 1);
        peers[1].set_ttl(None);
        node.shutdown(Duration::ZERO);
        assert_eq!(waiter.join().unwrap().unwrap_err().kind, SendErrorKind::ShuttingDown);
    });
    let ended: usize = batches.try_iter().flatten().map(|(_, outcome)| outcome.into_payload().unwrap().len()).sum();
    assert_eq!(ended, bytes);
    assert_eq!(node.metrics().memory_used, 0);
}

#[test]
fn a_sender_that_waits_for_memory_goes_on_when_another_peers_messages_are_acknowledged() {
    let mut config = quick();
    (config.inbound, config.outbound) = (1, 2);
    config.memory_bytes = 2 << 20;
    (config.queue_bytes, config.window_bytes, config.max_message) = (1 << 20, 1 << 20, 1 << 20);
    let a = start(config);
    let b = loopback().handler(|_, _| {}).start().unwrap();
    a.add_peer(b.id(), NOWHERE).unwrap();
    let (nobody, here) = (away_from(&a), a.peer(b.id()).unwrap());
    while here.send_timeout(vec![1; 40_000], Duration::ZERO).is_ok() {}
    while nobody.send_timeout(vec![1; 40_000], Duration::ZERO).is_ok() {}
    let refused = a.metrics().memory_refused;
    assert!(refused > 0);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| nobody.send_timeout(vec![2; 200_000], PATIENCE));
        wait_until("it waits for memory", || a.metrics().memory_refused > refused);
        a.add_peer(b.id(), b.local_addr()).unwrap();
        waiter.join().unwrap().unwrap();
    });
}

fn away_from(node: &Node) -> PeerHandle {
    let nobody = identities()[0].peer_id();
    node.add_peer(nobody, NOWHERE).unwrap();
    node.peer(nobody).unwrap()
}

#[test]
fn a_big_message_for_which_there_is_no_memory_comes_back() {
    let mut small = base();
    (small.inbound, small.outbound) = (2, 2);
    (small.memory_bytes, small.window_bytes) = (4 << 20, 256 << 10);
    (small.queue_bytes, small.max_message) = (1 << 20, 2 << 20);
    let (a, b) = (start(base()), start(small));
    let peer = link(&a, &b);
    // The first is kept by the application: two of them are more than there is. Each on a lane of its own, for on one the
    // second would wait for the first.
    let lanes = [(1, Priority::Normal), (2, Priority::Urgent)];
    let [first, second] =
        lanes.map(|(byte, lane)| peer.send_with(vec![byte; 2 << 20], &SendOptions::new().priority(lane)).unwrap());
    let held = b.recv_timeout(PATIENCE).unwrap();
    let (handed, refused) = if held.payload()[0] == 1 { (first, second) } else { (second, first) };
    assert!(outcome(handed).is_success());
    assert_eq!(returned(outcome(refused)).1, ReturnReason::Rejected(RejectCause::NoMemory));
    drop(held);
    let third = peer.send_with(vec![1; 2 << 20], &SendOptions::new()).unwrap();
    assert_eq!(b.recv_timeout(PATIENCE).unwrap().payload().len(), 2 << 20);
    assert!(outcome(third).is_success());
    wait_until("the memory is free", || b.metrics().memory_used == 0);
}
