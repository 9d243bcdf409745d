//! Shutting down: what was accepted is delivered or counted, everybody who waits is told, and every thread ends.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use threadwire::error::{CloseReason, ConnectError, DisconnectReason, RecvError, SendError, SendErrorKind};
use threadwire::{Config, Node, PeerHandle};

mod common;
use common::ledger::{Ledger, Verdict, fill, numbered};
use common::proxy::Proxy;
use common::{NOWHERE, PATIENCE, alone, ended, identities, link, node_threads, quick, start, wait_until};

/// A configuration with a small queue.
fn small_queue() -> Config {
    let mut config = quick();
    config.queue_bytes = 64 * 1024;
    config
}

#[test]
fn what_was_accepted_is_delivered_to_a_slow_receiver_before_the_end() {
    const LEN: usize = 4096;
    let _alone = alone();
    let (bob, alice) = (start(quick()), start(quick()));
    let to_bob = link(&alice, &bob);
    // Queue and window are full: bob takes nothing yet.
    let mut sent = fill(&to_bob, LEN);
    assert!(to_bob.stats().queued_messages > 1_000, "{:?}", to_bob.stats());
    let report = std::thread::scope(|scope| {
        let shutdown = scope.spawn(|| alice.shutdown(PATIENCE));
        wait_until("the shutdown has begun", || match to_bob.try_send(numbered(sent, LEN)) {
            Ok(()) => {
                sent += 1;
                false
            }
            Err(error) => error.kind == SendErrorKind::ShuttingDown,
        });
        for number in 0..sent {
            assert!(bob.recv_timeout(PATIENCE).unwrap().payload() == numbered(number, LEN), "message {number}");
        }
        shutdown.join().unwrap()
    });
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((to_bob.stats().accepted, to_bob.stats().acked), (sent, sent));
    assert_eq!(ended(&bob), DisconnectReason::Remote(CloseReason::Shutdown));
    assert_eq!(ended(&alice), DisconnectReason::Local(CloseReason::Shutdown));
}

#[test]
fn a_stalled_peer_does_not_hold_a_shutdown_beyond_its_deadline_and_is_counted_to_the_message() {
    const LEN: usize = 2000;
    let _alone = alone();
    let ledger = Arc::new(Ledger::default());
    let entered = ledger.clone();
    let bob = Node::builder().config(quick()).handler(move |_, message| entered.enter(message.payload(), false));
    let bob = bob.start().unwrap();
    let (tell, told) = bounded(1);
    let well =
        Node::builder().config(quick()).handler(move |_, message| tell.send(message.payload().to_vec()).unwrap());
    let well = well.start().unwrap();
    let alice = start(small_queue());
    let proxy = Proxy::to(bob.local_addr().unwrap());
    let to_bob = alice.add_peer(bob.id(), [proxy.addr()]).unwrap();
    let to_well = link(&alice, &well);
    // Some arrive before the path stalls, some after.
    (0..10).for_each(|number| to_bob.send(numbered(number, LEN)).unwrap());
    wait_until("the first are acknowledged", || to_bob.stats().acked == 10);
    assert_eq!(proxy.stall(), 1);
    let sent = fill(&to_bob, LEN);
    to_well.send("while the other stalls").unwrap();
    let begin = Instant::now();
    let report = alice.shutdown(Duration::from_millis(500));
    let took = begin.elapsed();
    assert!((Duration::from_millis(250)..Duration::from_secs(5)).contains(&took), "{took:?}");
    assert_eq!(report.threads, Vec::<String>::new());
    let stats = to_bob.stats();
    assert_eq!((stats.accepted, stats.acked), (10 + sent, 10));
    let [left] = &report.undelivered[..] else { panic!("{report:?}") };
    assert_eq!((left.peer, left.unsent + left.unknown), (bob.id(), sent));
    // Neither all nor nothing had been written.
    assert!(left.unsent > 0 && left.unknown > 0, "{left:?}");
    // Each has ended, and its sender could hear of it.
    assert_eq!((left.unsent, left.unknown, stats.queued_messages), (stats.returned, stats.unknown, 0));
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), b"while the other stalls");
    assert_eq!(ended(&well), DisconnectReason::Remote(CloseReason::Shutdown));
    assert_eq!(ledger.verdict(), Verdict::perfect(10));
}

#[test]
fn messages_to_a_peer_that_never_came_are_reported_as_unsent() {
    let _alone = alone();
    let alice = start(quick());
    let nobody = identities()[0].peer_id();
    let to_nobody = alice.add_peer(nobody, NOWHERE).unwrap();
    (0..7).for_each(|number| to_nobody.send(numbered(number, 100)).unwrap());
    let report = alice.shutdown(Duration::from_millis(100));
    assert_eq!(report.undelivered.len(), 1);
    let left = &report.undelivered[0];
    assert_eq!((left.peer, left.unsent, left.unknown), (nobody, 7, 0));
    assert!(!report.is_clean());
    // It happened once; whoever asks again is told the same.
    assert_eq!(alice.shutdown(PATIENCE), report);
}

#[test]
fn a_thread_that_the_application_holds_is_named_and_does_not_hold_the_shutdown() {
    let _alone = alone();
    let (go, wait) = bounded::<()>(0);
    let (began, begins) = bounded(1);
    let bob = Node::builder().config(quick()).handler(move |_, _| {
        began.send(()).unwrap();
        let _ = wait.recv_timeout(PATIENCE);
    });
    let bob = bob.start().unwrap();
    let alice = start(quick());
    link(&alice, &bob).send("hold it").unwrap();
    begins.recv_timeout(PATIENCE).unwrap();
    let begin = Instant::now();
    let report = bob.shutdown(Duration::from_millis(500));
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert_eq!(report.threads, [format!("rx-{}", alice.id().short())]);
    assert_eq!(node_threads().iter().filter(|name| **name == report.threads[0]).count(), 1);
    go.send_timeout((), PATIENCE).unwrap();
    alice.shutdown(Duration::ZERO);
}

#[test]
fn a_dropped_node_ends_all_its_threads_and_says_goodbye() {
    /// Acceptor, supervisor, two workers; sender and receiver of a session.
    const NODE: usize = 4;
    const SESSION: usize = 2;
    let _alone = alone();
    let others: Vec<Node> = (0..5).map(|_| start(quick())).collect();
    let hub = start(quick());
    // Some dial the hub and keep it, some are dialled.
    others[..2].iter().for_each(|other| drop(link(other, &hub)));
    others[2..].iter().for_each(|other| drop(link(&hub, other)));
    wait_until("all sessions run at both ends", || node_threads().len() == 6 * NODE + 2 * 5 * SESSION);
    drop(hub);
    for other in &others {
        assert_eq!(ended(other), DisconnectReason::Remote(CloseReason::Shutdown));
    }
    wait_until("its threads and those of its sessions have ended", || node_threads().len() == 5 * NODE);
}

#[test]
fn a_node_that_was_shut_down_gives_messages_back_and_takes_no_peers() {
    let _alone = alone();
    let (bob, alice) = (start(quick()), start(quick()));
    let to_bob = link(&alice, &bob);
    assert!(alice.shutdown(PATIENCE).is_clean());
    for len in [10, 100_000] {
        let payload = numbered(1, len);
        let refused = SendError { kind: SendErrorKind::ShuttingDown, payload: payload.clone() };
        assert_eq!(to_bob.send(&payload[..]), Err(refused.clone()));
        assert_eq!(to_bob.try_send(payload.clone()), Err(refused.clone()));
        assert_eq!(to_bob.send_timeout(payload.clone(), PATIENCE), Err(refused.clone()));
        assert_eq!(alice.send(bob.id(), payload), Err(refused));
    }
    let addr = bob.local_addr().unwrap();
    assert_eq!(alice.add_peer(bob.id(), [addr]).unwrap_err(), ConnectError::ShuttingDown);
    assert_eq!(alice.connect(addr).unwrap_err(), ConnectError::ShuttingDown);
    assert_eq!(alice.wait_connected(bob.id(), PATIENCE).unwrap_err(), ConnectError::ShuttingDown);
    assert_eq!(alice.recv().unwrap_err(), RecvError::ShutDown);
    assert_eq!(to_bob.stats().accepted, 0);
}

#[test]
fn what_had_come_before_a_shutdown_can_still_be_received() {
    const COUNT: u64 = 100;
    let _alone = alone();
    let (bob, alice) = (start(quick()), start(quick()));
    let to_bob = link(&alice, &bob);
    (0..COUNT).for_each(|number| to_bob.send(numbered(number, 100)).unwrap());
    assert_eq!(bob.recv_timeout(PATIENCE).unwrap().payload(), numbered(0, 100));
    wait_until("one of them is acknowledged", || to_bob.stats().acked == 1);
    assert!(bob.shutdown(PATIENCE).is_clean());
    let mut received = 1;
    while let Ok(message) = bob.recv() {
        assert_eq!(message.payload(), numbered(received, 100));
        received += 1;
    }
    assert_eq!(bob.recv().unwrap_err(), RecvError::ShutDown);
    // What bob's application takes now nobody is told of any more.
    assert!((1..=COUNT).contains(&received));
    assert_eq!(to_bob.stats().acked, 1);
    assert_eq!(ended(&alice), DisconnectReason::Remote(CloseReason::Shutdown));
    let report = alice.shutdown(Duration::from_millis(50));
    assert_eq!(report.undelivered[0].unsent + report.undelivered[0].unknown, COUNT - 1);
}

#[test]
fn everybody_who_waits_is_told_of_the_shutdown() {
    let _alone = alone();
    let alice = start(small_queue());
    let ids = identities().map(|identity| identity.peer_id());
    let to_nobody = alice.add_peer(ids[0], NOWHERE).unwrap();
    fill(&to_nobody, 1000);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (ready, waiting) = bounded(8);
    std::thread::scope(|scope| {
        let run = |wait: Box<dyn FnOnce() -> String + Send>| {
            let ready = ready.clone();
            scope.spawn(move || {
                ready.send(()).unwrap();
                wait()
            })
        };
        // Longer than the patience of the test.
        let long = PATIENCE * 10;
        let alice = &alice;
        let to_nobody = &to_nobody;
        let addr = nobody.local_addr().unwrap();
        let waits: [(_, Box<dyn FnOnce() -> String + Send>); 6] = [
            ("ShutDown", Box::new(move || format!("{:?}", alice.recv().unwrap_err()))),
            ("ShutDown", Box::new(move || format!("{:?}", alice.recv_timeout(long).unwrap_err()))),
            ("ShuttingDown", Box::new(move || format!("{:?}", alice.wait_connected(ids[1], long).unwrap_err()))),
            (
                "ShuttingDown",
                Box::new(move || format!("{:?}", to_nobody.send_timeout([0; 1000], long).unwrap_err().kind)),
            ),
            ("ShuttingDown", Box::new(move || format!("{:?}", to_nobody.send([0; 1000]).unwrap_err().kind))),
            ("Dial(", Box::new(move || format!("{:?}", alice.connect(addr).unwrap_err()))),
        ];
        let waits = waits.map(|(expected, wait)| (expected, run(wait)));
        (0..waits.len()).for_each(|_| waiting.recv_timeout(PATIENCE).unwrap());
        wait_until("the dial is under way", || alice.metrics().dials == 1);
        let begin = Instant::now();
        let report = alice.shutdown(Duration::from_millis(200));
        assert_eq!(report.undelivered.len(), 1);
        for (expected, wait) in waits {
            let ended = wait.join().unwrap();
            assert!(ended.starts_with(expected), "{ended} where {expected} was expected");
        }
        // A dial that nobody answers takes five seconds, a send thirty.
        assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    });
}

#[test]
fn two_nodes_that_shut_down_at_once_while_they_flood_each_other_end_and_lose_no_count() {
    let _alone = alone();
    for round in 0..20 {
        let ledgers: [Arc<Ledger>; 2] = Default::default();
        let nodes = ledgers.each_ref().map(|ledger| {
            let ledger = ledger.clone();
            let enter = move |_: &PeerHandle, message: threadwire::Message<'_>| ledger.enter(message.payload(), false);
            Node::builder().config(small_queue()).handler(enter).start().unwrap()
        });
        let handles = [link(&nodes[0], &nodes[1]), nodes[1].wait_connected(nodes[0].id(), PATIENCE).unwrap()];
        let reports = std::thread::scope(|scope| {
            let floods = handles.each_ref().map(|handle| {
                scope.spawn(move || {
                    let mut sent = 0;
                    while handle.send(numbered(sent, 200)).is_ok() {
                        sent += 1;
                    }
                    sent
                })
            });
            wait_until("both floods run", || ledgers.iter().all(|ledger| ledger.came() > 100));
            let reports = nodes.each_ref().map(|node| scope.spawn(|| node.shutdown(Duration::from_millis(600))));
            let sent = floods.map(|flood| flood.join().unwrap());
            let reports = reports.map(|report| report.join().unwrap());
            assert_eq!(sent, handles.each_ref().map(|handle| handle.stats().accepted), "round {round}");
            reports
        });
        for ((handle, report), ledger) in handles.iter().zip(&reports).zip([&ledgers[1], &ledgers[0]]) {
            let stats = handle.stats();
            let left: u64 = report.undelivered.iter().map(|left| left.unsent + left.unknown).sum();
            assert_eq!(stats.accepted, stats.acked + left, "round {round}: {report:?}");
            assert!(report.threads.is_empty(), "{report:?}");
            let verdict = ledger.verdict();
            assert_eq!(Verdict::perfect(verdict.came), verdict);
            assert!((stats.acked..=stats.accepted).contains(&verdict.came), "round {round}: {verdict:?} {stats:?}");
        }
    }
}
