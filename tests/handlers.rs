//! What a message handler may do, what it may not, and what its faults cost: nothing beyond its own peer.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, unbounded};
use parking_lot::Mutex;
use threadwire::error::{CloseReason, ConnectError, DisconnectReason, RecvError, SendError, SendErrorKind};
use threadwire::{Event, Message, Node, PeerHandle, PeerId};

mod common;
use common::ledger::{Ledger, Verdict, number_of, numbered};
use common::proxy::Proxy;
use common::{PATIENCE, alone, ended, ended_with, link, quick, start, wait_event, wait_until};

/// A node whose handler can reach the node itself.
fn reflexive(handler: impl Fn(&Node, &PeerHandle, Message<'_>) + Send + Sync + 'static) -> Arc<Node> {
    let own: Arc<OnceLock<Weak<Node>>> = Arc::default();
    let node = own.clone();
    let handler = move |peer: &PeerHandle, message: Message<'_>| {
        if let Some(node) = node.wait().upgrade() {
            handler(&node, peer, message);
        }
    };
    let node = Arc::new(Node::builder().config(quick()).handler(handler).start().unwrap());
    own.set(Arc::downgrade(&node)).unwrap();
    node
}

fn would_block(result: Result<(), SendError>, payload: &[u8]) -> Result<(), String> {
    match result {
        Err(SendError { kind: SendErrorKind::WouldBlock, payload: back }) if back == payload => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

#[test]
fn blocking_verbs_in_a_handler_give_the_message_back_and_the_others_work() {
    let _alone = alone();
    let (tell, told) = unbounded();
    let bystander = start(quick());
    let elsewhere = bystander.local_addr().unwrap();
    let bob = reflexive(move |node, peer, message| {
        let again = "x".repeat(message.payload().len());
        let payload = again.as_bytes();
        let refused = [
            would_block(peer.send(payload), payload),
            would_block(peer.send(payload.to_vec()), payload),
            would_block(peer.send_kind(7, payload), payload),
            would_block(peer.send_timeout(payload, PATIENCE), payload),
            would_block(peer.send_msg(&7u32), &[7, 0, 0, 0]),
            would_block(node.send(peer.id(), payload), payload),
        ];
        refused.into_iter().for_each(|result| tell.send(result).unwrap());
        let receive = [node.recv().err(), node.recv_timeout(PATIENCE).err(), bystander.recv().err()];
        let expected = [Some(RecvError::WouldBlock); 3];
        tell.send(if receive == expected { Ok(()) } else { Err(format!("{receive:?}")) }).unwrap();
        let connect = [node.wait_connected(peer.id(), PATIENCE).err(), node.connect(elsewhere).err()];
        let expected = [Some(ConnectError::WouldBlock), Some(ConnectError::WouldBlock)];
        tell.send(if connect == expected { Ok(()) } else { Err(format!("{connect:?}")) }).unwrap();
        let waited = [node, &bystander].map(|node| node.wait_shutdown(PATIENCE));
        tell.send(if waited == [None, None] { Ok(()) } else { Err(format!("{waited:?}")) }).unwrap();
        for result in [peer.try_send("tried"), message.reply("replied")] {
            tell.send(result.map_err(|error| error.to_string())).unwrap();
        }
    });
    let alice = start(quick());
    let to_bob = link(&alice, &bob);
    // One that is copied on its way, one that is handed over as it is, one that travels in pieces.
    for len in [10, 40_000, 100_000] {
        to_bob.send(vec![1; len]).unwrap();
        for _ in 0..11 {
            assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Ok(()), "{len} bytes");
        }
        let mut came = [(); 2].map(|()| alice.recv_timeout(PATIENCE).unwrap().payload().to_vec());
        came.sort();
        assert_eq!(came, [&b"replied"[..], b"tried"]);
    }
    assert_eq!(bob.metrics().dials, 0);
    let back = bob.peer(alice.id()).unwrap();
    wait_until("only what was taken is counted", || back.stats().acked == 6);
    assert_eq!(back.stats().accepted, 6);
}

#[test]
fn a_panic_rejects_its_message_and_ends_that_peers_session_only() {
    const COUNT: u64 = 200;
    const PANICS: [u64; 5] = [10, 11, 12, 50, COUNT - 1];
    let _alone = alone();
    let ledgers: [Arc<Ledger>; 2] = Default::default();
    let (at_alice, at_carol) = (ledgers[0].clone(), ledgers[1].clone());
    let carol = start(quick());
    let carols_id = carol.id();
    let panics = Arc::new(Mutex::new(Vec::new()));
    let panicked = panics.clone();
    let bob = Node::builder().config(quick()).handler(move |peer, message| {
        if peer.id() == carols_id {
            return at_carol.enter(message.payload(), message.possible_repeat());
        }
        let number = number_of(message.payload()).unwrap();
        if PANICS.contains(&number) {
            panicked.lock().push(number);
            panic!("a handler that fails on purpose, at message {number}");
        }
        at_alice.enter(message.payload(), message.possible_repeat());
    });
    let bob = bob.start().unwrap();
    let alice = start(quick());
    let from_carol = link(&carol, &bob);
    let from_alice = link(&alice, &bob);
    for number in 0..COUNT {
        from_carol.send(numbered(number, 100)).unwrap();
        // The one at 50 comes in pieces.
        from_alice.send(numbered(number, if number == 50 { 100_000 } else { 100 })).unwrap();
    }
    wait_until("every message has its outcome", || {
        let stats = from_alice.stats();
        stats.acked + stats.returned == COUNT && from_carol.stats().acked == COUNT
    });
    assert_eq!(from_alice.stats().returned, PANICS.len() as u64);
    assert_eq!(*panics.lock(), PANICS, "a rejected message is not sent again");
    // The rest came once and in order.
    let passed = COUNT - PANICS.len() as u64;
    let expected = Verdict { came: passed, lost: PANICS.len() as u64 - 1, ..Verdict::default() };
    assert_eq!(ledgers[0].verdict(), expected, "the last one is not missed by the ledger");
    assert_eq!(ledgers[1].verdict(), Verdict::perfect(COUNT));
    from_alice.send(numbered(COUNT, 100)).unwrap();
    wait_until("it heals", || ledgers[0].came() == passed + 1);
    assert_eq!(ended_with(&bob, alice.id()), DisconnectReason::Local(CloseReason::HandlerPanicked));
    let others: Vec<Event> = bob.events().try_iter().collect();
    let of_carol = |event: &&Event| matches!(event, Event::Disconnected { peer, .. } if *peer == carols_id);
    assert_eq!(others.iter().filter(of_carol).count(), 0);
    assert_eq!(from_carol.stats().sessions, 1);
    assert!((2..=1 + PANICS.len() as u64).contains(&from_alice.stats().sessions), "{:?}", from_alice.stats());
}

#[test]
fn a_message_that_is_kept_stays_what_it_was_and_can_be_answered_later() {
    const COUNT: u64 = 500;
    let _alone = alone();
    let kept: Arc<Mutex<Vec<Message<'static>>>> = Arc::default();
    let keep = kept.clone();
    let bob = Node::builder().config(quick()).handler(move |_, message| keep.lock().push(message.into_owned()));
    let bob = bob.start().unwrap();
    let alice = start(quick());
    let to_bob = link(&alice, &bob);
    let len = |number: u64| if number % 100 == 99 { 70_000 } else { 8 + number as usize % 300 };
    for number in 0..COUNT {
        to_bob.send_kind(number as u16, numbered(number, len(number))).unwrap();
    }
    // Kept is handed over: nothing is owed for it.
    wait_until("all are acknowledged", || to_bob.stats().acked == COUNT);
    let kept = std::mem::take(&mut *kept.lock());
    for (number, message) in (0..).zip(&kept) {
        assert!(message.payload() == numbered(number, len(number)), "message {number}");
        assert_eq!((message.from(), message.kind()), (alice.id(), number as u16));
    }
    // From any thread.
    std::thread::scope(|scope| {
        let seventh = kept.into_iter().nth(7).unwrap();
        scope.spawn(move || seventh.reply("late").unwrap());
    });
    assert_eq!(alice.recv_timeout(PATIENCE).unwrap().payload(), b"late");
}

#[test]
fn a_slow_handler_of_one_peer_delays_no_other_and_is_no_silence() {
    let _alone = alone();
    let mut config = quick();
    config.heartbeat = Duration::from_millis(100);
    config.idle_timeout = Duration::from_secs(2);
    let (go, wait) = bounded::<()>(0);
    let (began, begins) = bounded::<PeerId>(1);
    let ledger = Arc::new(Ledger::default());
    let entered = ledger.clone();
    let bob = Node::builder().config(config.clone()).handler(move |peer, message| {
        if message.payload() == b"slow" {
            began.send(peer.id()).unwrap();
            let _ = wait.recv_timeout(PATIENCE);
        } else {
            entered.enter(message.payload(), message.possible_repeat());
        }
    });
    let bob = bob.start().unwrap();
    let (alice, carol, dave) = (start(config.clone()), start(config.clone()), start(config));
    let from_alice = link(&alice, &bob);
    from_alice.send("slow").unwrap();
    assert_eq!(begins.recv_timeout(PATIENCE).unwrap(), alice.id());
    let from_carol = link(&carol, &bob);
    for number in 0..1_000 {
        from_carol.send(numbered(number, 100)).unwrap();
    }
    wait_until("the other peer's messages are handled", || from_carol.stats().acked == 1_000);
    assert_eq!(ledger.verdict(), Verdict::perfect(1_000));
    // Another path that really is silent shows that the idle time has passed since.
    let proxy = Proxy::to(bob.local_addr().unwrap());
    dave.add_peer(bob.id(), [proxy.addr()]).unwrap();
    bob.wait_connected(dave.id(), PATIENCE).unwrap();
    assert_eq!(proxy.stall(), 1);
    let (peer, reason) = wait_event(&bob, "the silent path is cut", |event| match event {
        Event::Disconnected { peer, reason, .. } => Some((peer, reason)),
        _ => None,
    });
    assert_eq!(peer, dave.id());
    // Unless the other side found out first and dialled again.
    let found_out = [CloseReason::Idle, CloseReason::Superseded].map(DisconnectReason::Local);
    assert!(found_out.contains(&reason), "{reason}");
    assert_eq!((from_alice.stats().acked, from_alice.stats().sessions), (0, 1));
    go.send_timeout((), PATIENCE).unwrap();
    wait_until("the slow message is handled", || from_alice.stats().acked == 1);
    assert_eq!(from_alice.stats().sessions, 1);
}

#[test]
fn handlers_of_both_sides_that_sleep_three_times_the_idle_time_under_flood_cost_no_session() {
    const COUNT: u64 = 30_000;
    const IDLE: Duration = Duration::from_millis(600);
    let _alone = alone();
    let mut config = quick();
    config.heartbeat = Duration::from_millis(100);
    config.idle_timeout = IDLE;
    // Less than the handlers sleep: a peer that is busy does not read, and that is no reason to give it up.
    config.write_timeout = Duration::from_secs(1);
    config.slow_after = Duration::from_millis(500);
    let ledgers: [Arc<Ledger>; 2] = Default::default();
    let slept = Arc::new(AtomicU64::new(0));
    let sleeper = |ledger: &Arc<Ledger>, at: u64| {
        let (ledger, slept) = (ledger.clone(), slept.clone());
        Node::builder().config(config.clone()).handler(move |_, message| {
            ledger.enter(message.payload(), message.possible_repeat());
            if number_of(message.payload()) == Some(at) {
                std::thread::sleep(3 * IDLE);
                slept.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    // One sleeps early, the other one late, so that each is at some time the only one to show life; then both at once.
    for (round, [first, second]) in [[1_000, COUNT - 1_000], [500, 500]].into_iter().enumerate() {
        let (bob, alice) = (sleeper(&ledgers[0], first), sleeper(&ledgers[1], second));
        let (bob, alice) = (bob.start().unwrap(), alice.start().unwrap());
        let to_bob = link(&alice, &bob);
        let to_alice = bob.wait_connected(alice.id(), PATIENCE).unwrap();
        let came = ledgers.each_ref().map(|ledger| ledger.came());
        std::thread::scope(|scope| {
            for to in [&to_bob, &to_alice] {
                scope.spawn(move || (0..COUNT).for_each(|number| to.send(numbered(number, 500)).unwrap()));
            }
        });
        wait_until("all are handled", || [&to_bob, &to_alice].iter().all(|to| to.stats().acked == COUNT));
        assert_eq!(slept.load(Ordering::Relaxed), 2 * (round as u64 + 1));
        for (node, to) in [(&alice, &to_bob), (&bob, &to_alice)] {
            assert_eq!((to.stats().sessions, node.metrics().sessions_cut), (1, 0), "round {round}");
        }
        if round == 0 {
            assert_eq!(came, [0, 0]);
            ledgers.iter().for_each(|ledger| assert_eq!(ledger.verdict(), Verdict::perfect(COUNT)));
        }
    }
    // A path that really is silent is cut after that time.
    let [bob, dave] = [(); 2].map(|()| start(config.clone()));
    let proxy = Proxy::to(bob.local_addr().unwrap());
    dave.add_peer(bob.id(), [proxy.addr()]).unwrap();
    bob.wait_connected(dave.id(), PATIENCE).unwrap();
    let begin = Instant::now();
    assert_eq!(proxy.stall(), 1);
    wait_until("the silent path is cut", || bob.metrics().sessions_cut + dave.metrics().sessions_cut > 0);
    assert!(begin.elapsed() < 3 * IDLE, "{:?}", begin.elapsed());
}

#[test]
fn a_handler_that_runs_long_is_told_once_with_its_peer() {
    let _alone = alone();
    let (go, wait) = bounded::<()>(0);
    let mut config = quick();
    config.handler_watchdog = Duration::from_millis(50);
    let bob = Node::builder().config(config).handler(move |_, message| {
        if message.payload() == b"slow" {
            let _ = wait.recv_timeout(PATIENCE);
        }
    });
    let bob = bob.start().unwrap();
    let alice = start(quick());
    let to_bob = link(&alice, &bob);
    to_bob.send("slow").unwrap();
    let slow = wait_event(&bob, "the handler is slow", |event| match event {
        Event::HandlerSlow { peer, .. } => Some(peer),
        _ => None,
    });
    assert_eq!(slow, alice.id());
    // More messages wait, and the scan looks at it again and again: it is the same slowness.
    (0..10).for_each(|_| to_bob.send("more").unwrap());
    go.send_timeout((), PATIENCE).unwrap();
    wait_until("all are handled", || to_bob.stats().acked == 11);
    assert!(bob.events().try_iter().all(|event| !matches!(event, Event::HandlerSlow { .. })));
    assert!(bob.shutdown(PATIENCE).is_clean());
}

#[test]
fn a_shutdown_in_a_handler_returns_at_once_and_the_node_ends() {
    let _alone = alone();
    let (tell, told) = bounded(1);
    let bob = reflexive(move |node, peer, _| {
        let begin = Instant::now();
        let report = node.shutdown(Duration::from_secs(60));
        let after = peer.try_send("after").unwrap_err();
        let _ = tell.send((begin.elapsed(), report.finished, after.kind, after.payload));
    });
    let (alice, carol) = (start(quick()), start(quick()));
    let to_bob = link(&alice, &bob);
    link(&carol, &bob);
    to_bob.send("end").unwrap();
    let (took, finished, kind, payload) = told.recv_timeout(PATIENCE).unwrap();
    assert!(took < Duration::from_secs(5) && !finished, "{took:?}");
    assert_eq!((kind, payload), (SendErrorKind::ShuttingDown, b"after".to_vec()));
    for node in [&alice, &carol] {
        assert_eq!(ended(node), DisconnectReason::Remote(CloseReason::Shutdown));
    }
    // The goodbye did not wait for the handler: whether its message was handed over, only bob's next life could tell.
    assert_eq!(to_bob.stats().accepted, 1);
    assert_eq!(bob.connect(alice.local_addr().unwrap()).unwrap_err(), ConnectError::ShuttingDown);
    // It goes on without the handler, and everybody who asks gets the same report.
    let report = bob.wait_shutdown(PATIENCE).unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(bob.shutdown(PATIENCE), report);
}

#[test]
fn a_node_that_its_own_handler_drops_ends() {
    let _alone = alone();
    let held: Arc<Mutex<Option<Node>>> = Arc::default();
    let dropped = Arc::new(AtomicBool::new(false));
    let (drops, done) = (held.clone(), dropped.clone());
    let bob = Node::builder().config(quick()).handler(move |_, _| {
        let node = drops.lock().take();
        drop(node);
        done.store(true, Ordering::Relaxed);
    });
    let bob = bob.start().unwrap();
    let alice = start(quick());
    let to_bob = link(&alice, &bob);
    *held.lock() = Some(bob);
    to_bob.send("drop yourself").unwrap();
    wait_until("the node is dropped", || dropped.load(Ordering::Relaxed));
    assert_eq!(ended(&alice), DisconnectReason::Remote(CloseReason::Shutdown));
    alice.shutdown(Duration::ZERO);
}
