//! Dials: by name and by number, that fail in every way there is, and that come and go while messages flow.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use threadwire::config::Peer;
use threadwire::error::{
    CloseReason, ConnectError, DialCause, DialError, DialStage, DisconnectError, DisconnectReason, SendError,
};
use threadwire::{Address, Config, Event, Node, PeerId};

mod common;
use common::ledger::{Ledger, Verdict, numbered};
use common::names::Names;
use common::{NOWHERE, PATIENCE, alone, black_hole, ended, identities, link, quick, start, wait_event, wait_until};

fn start_with(config: Config, names: &Names) -> Node {
    Node::builder().config(config).resolver(names.clone()).start().unwrap()
}

/// The errors of a dial.
#[track_caller]
fn failed(node: &Node, to: &str) -> Vec<DialError> {
    match node.connect(to) {
        Err(ConnectError::Dial(errors)) => errors,
        other => panic!("{other:?}"),
    }
}

/// A name with the port of a node.
fn named(host: &str, node: &Node) -> String {
    format!("{host}:{}", node.local_addr().unwrap().port())
}

/// An address of this machine where nobody listens.
fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

/// The sessions that are there now: begun and not ended.
fn sessions(node: &Node) -> u64 {
    let metrics = node.metrics();
    metrics.sessions_started - metrics.sessions_ended
}

#[test]
fn a_dead_name_server_stops_nobody_but_those_who_need_it() {
    let _alone = alone();
    let names = Names::default();
    let _revived = names.until_dropped();
    names.set("good", &["127.0.0.1"]);
    let mut config = quick();
    config.resolve_timeout = Duration::from_millis(50);
    config.resolve_threads = 2;
    let alice = start_with(config, &names);
    let (bob, carol, dave) = (start(quick()), start(quick()), start(quick()));
    let [ghost, other_ghost] = identities().map(|identity| identity.peer_id());
    alice.add_peer(ghost, ["dead-1:1"]).unwrap();
    wait_until("its lookup hangs", || names.hanging() == 1);
    // By number, and by name as long as a thread is free.
    link(&alice, &bob);
    alice.add_peer(carol.id(), [named("good", &carol)]).unwrap();
    alice.wait_connected(carol.id(), PATIENCE).unwrap();
    let error = wait_event(&alice, "the lookup takes too long", |event| match event {
        Event::DialFailed { peer: Some(peer), error, .. } if peer == ghost => Some(error),
        _ => None,
    });
    assert_eq!((error.addr.to_string(), error.stage), ("dead-1:1".to_owned(), DialStage::Resolve));
    assert_eq!(error.cause, DialCause::TimedOut(Duration::from_millis(50)));
    // It is tried again, and the one lookup that hangs is enough for it.
    wait_until("it fails again", || alice.metrics().lookups_failed >= 3);
    assert_eq!((names.asked("dead-1"), names.hanging()), (1, 1));
    // All threads are held: names fail, with a clear cause, and numbers do not.
    alice.add_peer(other_ghost, ["dead-2:1"]).unwrap();
    wait_until("its lookup hangs too", || names.hanging() == 2);
    let cause = || failed(&alice, &named("good", &dave)).remove(0).cause;
    wait_until("lookups are refused", || cause() == DialCause::ResolversBusy);
    assert!(alice.metrics().lookups_refused > 0);
    assert_eq!(alice.connect(dave.local_addr().unwrap()).unwrap().id(), dave.id());
    assert!([&bob, &carol, &dave].iter().all(|node| alice.peer(node.id()).unwrap().is_connected()));
    // The end does not wait for it, and says what is left.
    let begin = Instant::now();
    let mut report = alice.shutdown(PATIENCE);
    assert!(begin.elapsed() < PATIENCE / 4, "{:?}", begin.elapsed());
    report.threads.sort();
    assert_eq!(report.threads, ["resolve-0", "resolve-1"]);
    assert!(report.undelivered.is_empty());
    assert_eq!(names.hanging(), 2);
}

#[test]
fn a_name_is_looked_up_afresh_at_each_attempt() {
    let _alone = alone();
    let names = Names::default();
    let alice = start_with(quick(), &names);
    let bob = start(quick());
    alice.add_peer(bob.id(), [named("moves", &bob)]).unwrap();
    let error = wait_event(&alice, "the name has no address", |event| match event {
        Event::DialFailed { error, .. } => Some(error),
        _ => None,
    });
    assert_eq!(error.stage, DialStage::Resolve);
    assert_eq!(error.cause, DialCause::Unresolved("nobody knows it".to_owned()));
    names.set("moves", &["127.0.0.2"]);
    let cause = wait_event(&alice, "nobody is there", |event| match event {
        Event::DialFailed { error, .. } if error.stage == DialStage::Connect => Some(error.cause),
        _ => None,
    });
    assert_eq!(cause, DialCause::Io(ErrorKind::ConnectionRefused));
    names.set("moves", &["127.0.0.1"]);
    alice.wait_connected(bob.id(), PATIENCE).unwrap();
    assert!(names.asked("moves") >= 3);
    assert!(alice.shutdown(PATIENCE).is_clean());
}

#[test]
fn every_address_of_a_name_is_tried_in_order() {
    let _alone = alone();
    let names = Names::default();
    let alice = start_with(quick(), &names);
    let bob = start(quick());
    let port = bob.local_addr().unwrap().port();
    names.set("bob", &["::1", "127.0.0.2", "127.0.0.1"]);
    assert_eq!(alice.connect(named("bob", &bob)).unwrap().id(), bob.id());
    assert_eq!(alice.metrics().dials, 3);
    for addr in [format!("[::1]:{port}"), format!("127.0.0.2:{port}")] {
        let error = wait_event(&alice, "one address fails", |event| match event {
            Event::DialFailed { error, .. } => Some(error),
            _ => None,
        });
        assert_eq!((error.addr.to_string(), error.stage), (addr, DialStage::Connect));
    }
    // The caller has the errors of all of them.
    names.set("none", &["127.0.0.2", "127.0.0.3"]);
    let errors = failed(&alice, &named("none", &bob));
    let places: Vec<_> = errors.iter().map(|error| (error.addr.to_string(), error.cause.clone())).collect();
    let refused = || DialCause::Io(ErrorKind::ConnectionRefused);
    let expected = [(format!("127.0.0.2:{port}"), refused()), (format!("127.0.0.3:{port}"), refused())];
    assert_eq!(places, expected);
    assert!(ConnectError::Dial(errors).to_string().contains("; dialling 127.0.0.3"));
}

#[test]
fn the_systems_resolver_finds_this_machine() {
    let _alone = alone();
    let (alice, bob) = (start(quick()), start(quick()));
    assert_eq!(alice.connect(named("localhost", &bob)).unwrap().id(), bob.id());
    assert!(alice.shutdown(PATIENCE).is_clean(), "its thread ends");
}

#[test]
fn a_dial_that_fails_says_where_how_far_it_came_and_why() {
    let _alone = alone();
    let mut config = quick();
    config.connect_timeout = Duration::from_millis(200);
    let alice = start_with(config, &Names::default());
    let begin = Instant::now();
    for (to, kinds) in [
        (nobody().to_string(), &[ErrorKind::ConnectionRefused][..]),
        // No route leads there: the system says so at once.
        (
            "255.255.255.255:1".to_owned(),
            &[ErrorKind::NetworkUnreachable, ErrorKind::PermissionDenied, ErrorKind::HostUnreachable],
        ),
    ] {
        let errors = failed(&alice, &to);
        let [DialError { addr, stage: DialStage::Connect, cause: DialCause::Io(kind) }] = &errors[..] else {
            panic!("{errors:?}")
        };
        assert!(*addr == to.parse::<Address>().unwrap() && kinds.contains(kind), "{errors:?}");
    }
    assert!(begin.elapsed() < PATIENCE / 4);
    let (_listener, _inside, hole) = black_hole();
    let errors = failed(&alice, &hole.to_string());
    let cause = DialCause::TimedOut(Duration::from_millis(200));
    assert_eq!(errors, [DialError { addr: hole.into(), stage: DialStage::Connect, cause }]);
    let errors = failed(&alice, "nowhere:1");
    let cause = DialCause::Unresolved("nobody knows it".to_owned());
    assert_eq!(errors, [DialError { addr: "nowhere:1".parse().unwrap(), stage: DialStage::Resolve, cause }]);
    assert!(matches!(alice.connect("nowhere"), Err(ConnectError::BadAddress(_))));
    assert!(matches!(alice.add_peer(identities()[0].peer_id(), ["a b:1"]), Err(ConnectError::BadAddress(_))));
    let metrics = alice.metrics();
    assert_eq!((metrics.dials, metrics.dials_failed, metrics.lookups, metrics.lookups_failed), (3, 3, 1, 1));
}

#[test]
fn peers_of_the_configuration_are_found_by_name_and_kept() {
    let _alone = alone();
    let bob = start(quick());
    let names = Names::default();
    names.set("plc-7.local", &["127.0.0.1"]);
    let mut config = quick();
    let address: Address = named("plc-7.local", &bob).parse().unwrap();
    config.peers = vec![Peer::new("plc-7", bob.id(), [address])];
    let alice = start_with(config, &names);
    assert_eq!(alice.peer_named("plc-7").unwrap().id(), bob.id());
    alice.wait_connected(bob.id(), PATIENCE).unwrap();
    let unknown = ConnectError::UnknownName("plc-8".to_owned());
    assert_eq!(alice.peer_named("plc-8").unwrap_err(), unknown);
}

#[test]
fn nothing_is_lost_while_a_peer_is_disconnected_removed_and_added_and_a_kept_one_returns() {
    const ROUNDS: u64 = 20;
    let _alone = alone();
    let ledger = Arc::new(Ledger::default());
    let at_bob = ledger.clone();
    let bob = Node::builder()
        .config(quick())
        .handler(move |_, message| at_bob.enter(message.payload(), message.possible_repeat()))
        .start()
        .unwrap();
    let alice = start(quick());
    let to_bob = link(&alice, &bob);
    let enough = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let mut sent = 0;
            while !enough.load(Ordering::Relaxed) {
                if let Err(SendError { kind, .. }) = to_bob.send_timeout(numbered(sent, 300), PATIENCE) {
                    panic!("message {sent}: {kind}")
                }
                sent += 1;
            }
            sent
        });
        for round in 0..ROUNDS {
            let came = ledger.came();
            wait_until("messages flow", || ledger.came() > came + 100);
            let reason = match round % 2 {
                0 => CloseReason::Requested,
                _ => CloseReason::application(0x8000 + round as u16).unwrap(),
            };
            // One side ends it, in turn; the one that keeps the other dials again.
            let (ends, other) = if round % 4 < 2 { (&alice, &bob) } else { (&bob, &alice) };
            let before = to_bob.stats().sessions;
            wait_until("both have it", || ends.disconnect(other.id(), reason) != Err(not_connected(other)));
            assert_eq!(ended(ends), DisconnectReason::Local(reason));
            assert_eq!(ended(other), DisconnectReason::Remote(reason));
            wait_until("it is dialled again", || to_bob.stats().sessions > before && to_bob.is_connected());
        }
        alice.remove_peer(bob.id()).unwrap();
        assert_eq!(ended(&bob), DisconnectReason::Remote(CloseReason::Requested));
        wait_until("it has ended here too", || sessions(&alice) == 0);
        let dials = alice.metrics().dials;
        assert!(alice.peers()[0].next_retry.is_none());
        // The handle takes what its queue has room for. Meanwhile somebody has time to dial.
        wait_until("messages wait", || to_bob.stats().queued_messages > 1000);
        assert_eq!(alice.metrics().dials, dials);
        alice.add_peer(bob.id(), bob.local_addr()).unwrap();
        wait_until("it is dialled again", || to_bob.is_connected());
        let came = ledger.came();
        wait_until("messages flow", || ledger.came() > came + 100);
        enough.store(true, Ordering::Relaxed);
        flood.join().unwrap()
    });
    wait_until("all are acknowledged", || to_bob.stats().acked == sent);
    assert_eq!(ledger.verdict(), Verdict::perfect(sent));
    assert_eq!(to_bob.stats().sessions, ROUNDS + 2);
    assert_eq!((sessions(&alice), sessions(&bob)), (1, 1));
}

fn not_connected(peer: &Node) -> DisconnectError {
    DisconnectError::NotConnected(peer.id())
}

#[test]
fn only_what_can_be_ended_is_ended_and_only_for_a_reason_of_the_applications() {
    let _alone = alone();
    let (alice, bob) = (start(quick()), start(quick()));
    let stranger = bob.id();
    assert_eq!(alice.disconnect(stranger, CloseReason::Requested), Err(DisconnectError::UnknownPeer(stranger)));
    assert_eq!(alice.remove_peer(stranger), Err(DisconnectError::UnknownPeer(stranger)));
    alice.add_peer(bob.id(), NOWHERE).unwrap();
    assert_eq!(alice.disconnect(bob.id(), CloseReason::Requested), Err(not_connected(&bob)));
    link(&alice, &bob);
    for reason in [CloseReason::Shutdown, CloseReason::IdentityClash, CloseReason::Other(0x7fff)] {
        assert_eq!(alice.disconnect(bob.id(), reason), Err(DisconnectError::Reserved(reason)));
    }
    assert!(alice.peer(bob.id()).unwrap().is_connected());
    alice.shutdown(PATIENCE);
    assert_eq!(alice.disconnect(bob.id(), CloseReason::Requested), Err(DisconnectError::ShuttingDown));
    assert_eq!(alice.remove_peer(bob.id()), Err(DisconnectError::ShuttingDown));
}

#[test]
fn peers_beyond_the_outbound_limit_wait_and_have_not_failed() {
    let _alone = alone();
    let mut config = quick();
    config.outbound = 1;
    let alice = start(config);
    let (bob, carol) = (start(quick()), start(quick()));
    link(&alice, &bob);
    alice.add_peer(carol.id(), carol.local_addr()).unwrap();
    assert_eq!(alice.connect(carol.local_addr().unwrap()).unwrap_err(), ConnectError::TooMany);
    // The answer came after the supervisor had the peer.
    let metrics = alice.metrics();
    assert_eq!((metrics.dials, metrics.dials_failed), (1, 0));
    assert!(!alice.peer(carol.id()).unwrap().is_connected());
    alice.remove_peer(bob.id()).unwrap();
    alice.wait_connected(carol.id(), PATIENCE).unwrap();
    assert_eq!(alice.metrics().dials_failed, 0);
}

#[test]
fn a_shutdown_ends_dials_delays_and_lookups_at_once() {
    let _alone = alone();
    let names = Names::default();
    let _revived = names.until_dropped();
    let (_listener, _inside, hole) = black_hole();
    let long = PATIENCE * 3;
    let mut config = quick();
    (config.connect_timeout, config.resolve_timeout) = (long, long);
    (config.backoff.base, config.backoff.cap, config.backoff.jitter) = (long, long, 0.0);
    let alice = start_with(config, &names);
    let ids = [1, 2, 3].map(|n| PeerId::from_bytes([n; 32]));
    alice.add_peer(ids[0], [hole]).unwrap();
    alice.add_peer(ids[1], ["dead-1:1"]).unwrap();
    alice.add_peer(ids[2], [nobody()]).unwrap();
    let waits = || alice.peers().into_iter().find(|peer| peer.id == ids[2]).unwrap();
    wait_until("one waits for its next attempt", || waits().attempts == 1);
    assert!(waits().next_retry.unwrap() > Instant::now());
    std::thread::scope(|scope| {
        let dial = |to: Address| scope.spawn(|| alice.connect(to).unwrap_err());
        let dialling = dial(hole.into());
        let resolving = dial("dead-2:1".parse().unwrap());
        wait_until("all are under way", || alice.metrics().dials == 3 && names.hanging() == 2);
        let begin = Instant::now();
        let mut report = alice.shutdown(PATIENCE);
        for (waiter, stage) in [(dialling, DialStage::Connect), (resolving, DialStage::Resolve)] {
            let ConnectError::Dial(errors) = waiter.join().unwrap() else { panic!("it waited for a dial") };
            let [DialError { stage: at, cause: DialCause::ShuttingDown, .. }] = &errors[..] else {
                panic!("{errors:?}")
            };
            assert_eq!(*at, stage);
        }
        assert!(begin.elapsed() < PATIENCE / 4, "{:?}", begin.elapsed());
        report.threads.sort();
        assert_eq!(report.threads, ["resolve-0", "resolve-1"], "what only the resolver can end");
    });
}

/// Every connection that began has ended or become a session.
fn nothing_under_way(node: &Node) -> bool {
    let metrics = node.metrics();
    let over = metrics.dials_failed + metrics.handshakes_failed + metrics.refused + metrics.sessions_started;
    metrics.dials + metrics.accepted == over
}

#[test]
fn both_sides_dialling_at_once_a_thousand_times_gives_one_session_on_both() {
    const ROUNDS: u32 = 1000;
    let _alone = alone();
    let nodes = [start(quick()), start(quick())];
    let addrs = nodes.each_ref().map(|node| node.local_addr().unwrap());
    let (mut overlapped, barrier) = (0, Barrier::new(2));
    std::thread::scope(|scope| {
        let (other, barrier) = (&nodes[1], &barrier);
        let dials = scope.spawn(move || {
            for _ in 0..ROUNDS {
                barrier.wait();
                let there = other.connect(addrs[0]).map(|peer| peer.id());
                barrier.wait();
                there.unwrap();
            }
        });
        for round in 0..ROUNDS {
            let duplicates = nodes.each_ref().map(|node| node.metrics().duplicates);
            barrier.wait();
            let there = nodes[0].connect(addrs[1]).map(|peer| peer.id());
            barrier.wait();
            assert_eq!(there.unwrap(), nodes[1].id(), "round {round}");
            wait_until("one session on both sides, nothing under way", || {
                nodes.iter().all(|node| nothing_under_way(node) && sessions(node) == 1)
            });
            overlapped += u32::from(nodes.each_ref().map(|node| node.metrics().duplicates) != duplicates);
            let connected = |node: &Node| node.peers().iter().filter(|peer| peer.stats.connected).count();
            assert_eq!(nodes.each_ref().map(connected), [1, 1], "round {round}");
            nodes[round as usize % 2].disconnect(nodes[1 - round as usize % 2].id(), CloseReason::Requested).unwrap();
            wait_until("it has ended", || nodes.iter().all(|node| sessions(node) == 0));
            nodes.iter().for_each(|node| node.events().try_iter().for_each(drop));
        }
        dials.join().unwrap();
    });
    println!("{overlapped} of {ROUNDS} rounds had a duplicate");
    assert!(overlapped > 0, "no two dials ever overlapped");
}
