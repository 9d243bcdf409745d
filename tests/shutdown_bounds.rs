//! Who may ask for a shutdown, that it happens once, and that nothing of the application's or a peer's holds it beyond
//! its deadline.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use threadwire::error::{CloseReason, DisconnectReason, SendErrorKind};
use threadwire::handshake::Offer;
use threadwire::{Event, Node};

mod common;
use common::ledger::{fill, numbered};
use common::proxy::Proxy;
use common::{NOWHERE, PATIENCE, alone, identities, link, node_threads, quick, start, wait_event, wait_until};

/// Long enough to be seen, far below what a broken bound would take.
const DEADLINE: Duration = Duration::from_millis(500);
/// What a shutdown with that deadline may take on a loaded machine.
const AT_MOST: Duration = Duration::from_secs(5);

/// A node that shuts down on a signal.
fn on_signal(deadline: Duration) -> (Node, Sender<()>) {
    let (signal, signalled) = bounded(1);
    (Node::builder().config(quick()).shutdown_signal(signalled, deadline).start().unwrap(), signal)
}

fn hears_goodbye(node: &Node) {
    let reason = wait_event(node, "a session ends", |event| match event {
        Event::Disconnected { reason, .. } => Some(reason),
        _ => None,
    });
    assert_eq!(reason, DisconnectReason::Remote(CloseReason::Shutdown));
}

#[test]
fn a_signal_of_the_application_drains_and_ends_the_node_whether_it_fires_or_is_dropped() {
    type Give = fn(Sender<()>);
    let ways: [Give; 2] = [|signal| signal.send(()).unwrap(), drop];
    for give in ways {
        let _alone = alone();
        let bob = start(quick());
        let (alice, signal) = on_signal(PATIENCE);
        let to_bob = link(&alice, &bob);
        (0..100).for_each(|number| to_bob.send(numbered(number, 100)).unwrap());
        assert_eq!((alice.is_shutting_down(), alice.wait_shutdown(Duration::ZERO)), (false, None));
        give(signal);
        // It waits for the messages: bob has not taken them yet.
        wait_until("messages are refused", || alice.is_shutting_down());
        (0..100).for_each(|number| assert!(bob.recv_timeout(PATIENCE).unwrap().payload() == numbered(number, 100)));
        let report = alice.wait_shutdown(PATIENCE).unwrap();
        assert!(report.is_clean() && report.drained == [bob.id()], "{report:?}");
        assert_eq!(to_bob.try_send("late").unwrap_err().kind, SendErrorKind::ShuttingDown);
        hears_goodbye(&bob);
    }
}

#[test]
fn a_node_that_ends_otherwise_stops_waiting_for_its_signal() {
    let _alone = alone();
    let (alice, signal) = on_signal(PATIENCE);
    wait_until("a thread waits", || node_threads().iter().any(|name| name == "shutdown"));
    assert!(alice.shutdown(PATIENCE).is_clean());
    wait_until("its thread has ended", || node_threads().is_empty());
    drop(signal);
}

#[test]
fn whoever_asks_while_a_shutdown_goes_on_gets_its_report_or_none_by_the_own_deadline() {
    let _alone = alone();
    let alice = start(quick());
    let to_nobody = alice.add_peer(identities()[0].peer_id(), NOWHERE).unwrap();
    to_nobody.send("never written").unwrap();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| alice.shutdown(Duration::from_secs(2)));
        wait_until("it has begun", || alice.is_shutting_down());
        // It waits for the message for three quarters of its time.
        let begin = Instant::now();
        let impatient = alice.shutdown(Duration::from_millis(50));
        assert!(!impatient.finished && !impatient.is_clean(), "{impatient:?}");
        assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
        assert_eq!(alice.wait_shutdown(Duration::ZERO), None);
        let others = [(); 3].map(|()| scope.spawn(|| alice.shutdown(PATIENCE)));
        let report = first.join().unwrap();
        assert_eq!((report.finished, report.undelivered.len(), report.undelivered[0].unsent), (true, 1, 1));
        for other in others {
            assert_eq!(other.join().unwrap(), report);
        }
        assert_eq!(alice.wait_shutdown(Duration::ZERO), Some(report));
    });
}

/// Holds whatever calls it, once, until the other end is dropped.
fn holder() -> (impl Fn() + Send + Sync + 'static, Receiver<()>, Sender<()>) {
    let (tell, held) = bounded(1);
    let (release, wait) = bounded::<()>(0);
    let hold = move || {
        let _ = tell.send(());
        let _ = wait.recv_timeout(PATIENCE * 2);
    };
    (hold, held, release)
}

#[test]
fn a_policy_that_blocks_is_named_and_does_not_hold_the_shutdown() {
    let _alone = alone();
    let (hold, held, release) = holder();
    let policy = move |_: &Offer<'_>| {
        hold();
        Ok(())
    };
    let bob = Node::builder().config(quick()).handshake_policy(policy).start().unwrap();
    let alice = start(quick());
    alice.add_peer(bob.id(), bob.local_addr()).unwrap();
    held.recv_timeout(PATIENCE).unwrap();
    let begin = Instant::now();
    let report = bob.shutdown(DEADLINE);
    assert!(begin.elapsed() < AT_MOST, "{:?}", begin.elapsed());
    assert!(report.finished && report.undelivered.is_empty(), "{report:?}");
    let [name] = &report.threads[..] else { panic!("{report:?}") };
    assert!(name.starts_with("work-") && node_threads().contains(name), "{report:?}");
    drop(release);
    alice.shutdown(Duration::ZERO);
}

#[test]
fn a_handler_that_sleeps_and_a_peer_that_never_reads_together_hold_nothing_beyond_the_deadline() {
    const LEN: usize = 2000;
    let _alone = alone();
    let (hold, held, release) = holder();
    let mut config = quick();
    config.queue_bytes = 64 * 1024;
    let hub = Node::builder().config(config).handler(move |_, _| hold()).start().unwrap();
    let (sleeper, deaf, well) = (start(quick()), start(quick()), start(quick()));
    link(&sleeper, &hub).send("sleep").unwrap();
    held.recv_timeout(PATIENCE).unwrap();
    let proxy = Proxy::to(deaf.local_addr().unwrap());
    let to_deaf = hub.add_peer(deaf.id(), [proxy.addr()]).unwrap();
    hub.wait_connected(deaf.id(), PATIENCE).unwrap();
    assert_eq!(proxy.stall(), 1);
    let sent = fill(&to_deaf, LEN);
    link(&hub, &well).send("heard").unwrap();
    assert_eq!(well.recv_timeout(PATIENCE).unwrap().payload(), b"heard");
    let begin = Instant::now();
    let report = hub.shutdown(DEADLINE);
    assert!(begin.elapsed() < AT_MOST, "{:?}", begin.elapsed());
    assert_eq!(report.threads, [format!("rx-{}", sleeper.id().short())]);
    let [left] = &report.undelivered[..] else { panic!("{report:?}") };
    assert_eq!((left.peer, left.unsent + left.unknown), (deaf.id(), sent));
    let mut drained = [sleeper.id(), well.id()];
    drained.sort();
    assert_eq!(report.drained, drained);
    drop(release);
    for node in [sleeper, deaf, well] {
        node.shutdown(Duration::ZERO);
    }
}

#[test]
fn any_deadline_can_be_given() {
    let _alone = alone();
    for deadline in [Duration::ZERO, Duration::MAX] {
        let (bob, alice) = (start(quick()), start(quick()));
        link(&alice, &bob);
        let report = alice.shutdown(deadline);
        assert!(report.finished && report.undelivered.is_empty(), "{report:?}");
        bob.shutdown(PATIENCE);
    }
}
