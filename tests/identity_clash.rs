//! Two processes with one key, as when a disk was copied: the one that was there first stays, the other one is told, and
//! nothing flaps; but a process whose earlier life has ended is let in.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use threadwire::error::{CloseReason, ConnectError, DialCause};
use threadwire::handshake::Identity;
use threadwire::{Config, Event, Node, PeerHandle};

mod common;
use common::ledger::{Ledger, Verdict, numbered};
use common::proxy::Proxy;
use common::{PATIENCE, alone, link, quick, start, wait_event, wait_until};

/// A node whose identity is in a folder.
fn of_folder(folder: &Path) -> Config {
    let mut config = quick();
    config.data_dir = Some(folder.to_owned());
    config
}

/// An identity that decides about its links to the one in `folder`, or one that does not.
fn other_than(folder: &Path, decides: bool) -> Identity {
    let other = Identity::load_or_create(folder).unwrap().peer_id();
    let mut identities = std::iter::repeat_with(|| Identity::generate().unwrap());
    identities.find(|identity| (identity.peer_id() < other) == decides).unwrap()
}

/// A node of such an identity.
fn bystander(folder: &Path, decides: bool) -> Node {
    Node::builder().config(quick()).identity(other_than(folder, decides)).start().unwrap()
}

fn cause_of(result: Result<PeerHandle, ConnectError>) -> DialCause {
    match result {
        Err(ConnectError::Dial(mut errors)) if errors.len() == 1 => errors.remove(0).cause,
        other => panic!("{other:?}"),
    }
}

/// The events so far that tell of a session's begin or end, as text.
fn sessions_of(node: &Node) -> Vec<String> {
    let events = node.events();
    let session = |event: &Event| matches!(event, Event::Connected { .. } | Event::Disconnected { .. });
    events.try_iter().filter(session).map(|event| format!("{event:?}")).collect()
}

/// Sends numbered messages until it is told to stop; how many.
fn flood(to: &PeerHandle, stop: &AtomicBool) -> u64 {
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        to.send(numbered(sent, 200)).unwrap();
        sent += 1;
        std::thread::sleep(Duration::from_micros(100));
    }
    sent
}

fn take_until(node: &Node, ledger: &Ledger, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        if let Ok(message) = node.recv_timeout(Duration::from_millis(5)) {
            ledger.enter(message.payload(), message.possible_repeat());
        }
    }
}

#[test]
fn the_first_of_two_processes_stays_and_its_messages_flow_on_while_the_second_is_refused() {
    const DIALS: u64 = 5;
    let _alone = alone();
    for decides in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let bob = bystander(folder.path(), decides);
        let first = start(of_folder(folder.path()));
        let to_bob = link(&first, &bob);
        let to_first = bob.wait_connected(first.id(), PATIENCE).unwrap();
        let second = start(of_folder(folder.path()));
        assert_eq!(second.id(), first.id());
        let (stop, done) = (AtomicBool::new(false), AtomicBool::new(false));
        let ledgers: [Ledger; 2] = Default::default();
        std::thread::scope(|scope| {
            let up = scope.spawn(|| flood(&to_bob, &stop));
            let down = scope.spawn(|| flood(&to_first, &stop));
            scope.spawn(|| take_until(&bob, &ledgers[0], &done));
            scope.spawn(|| take_until(&first, &ledgers[1], &done));
            // It dials, and it is dialled: refused by the one side that has the session.
            for _ in 0..DIALS {
                let cause = cause_of(second.connect(bob.local_addr().unwrap()));
                assert_eq!(cause, DialCause::Refused(CloseReason::IdentityClash));
            }
            let cause = cause_of(bob.connect(second.local_addr().unwrap()));
            assert_eq!(cause, DialCause::Rejected(CloseReason::IdentityClash));
            stop.store(true, Ordering::Relaxed);
            let sent = [up, down].map(|sender| sender.join().unwrap());
            wait_until("all came", || [0, 1].map(|at| ledgers[at].came()) == sent);
            done.store(true, Ordering::Relaxed);
            let verdicts = [0, 1].map(|at| ledgers[at].verdict());
            assert_eq!(verdicts, sent.map(Verdict::perfect), "the first one has lost nothing");
            assert!(sent.iter().all(|sent| *sent > 100), "{sent:?}");
        });
        // Both are told, each in its own terms.
        for (node, what) in [(&bob, "of a peer"), (&second, "of itself")] {
            let peer = wait_event(node, what, |event| match event {
                Event::IdentityClash { peer, .. } => Some(peer),
                _ => None,
            });
            assert_eq!(peer, first.id());
            assert_eq!(node.metrics().identity_clashes, DIALS + 1);
        }
        assert_eq!((first.metrics().identity_clashes, sessions_of(&first).len()), (0, 1));
        assert_eq!((to_bob.stats().sessions, to_first.stats().sessions), (1, 1));
        assert_eq!(second.metrics().sessions_started, 0);
        // Kept connected, it stays away for as long as it was told to.
        let dials = second.metrics().dials;
        second.add_peer(bob.id(), bob.local_addr()).unwrap();
        wait_until("it is refused", || bob.metrics().identity_clashes == DIALS + 2);
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(second.metrics().dials, dials + 1, "a back-off of milliseconds is not what it was asked for");
        // When the first one ends, there is room.
        drop((to_bob, first));
        second.connect(bob.local_addr().unwrap()).unwrap().send("now me").unwrap();
        assert_eq!(bob.recv_timeout(PATIENCE).unwrap().payload(), b"now me");
        let incarnation = wait_event(&bob, "another life", |event| match event {
            Event::IncarnationChanged { peer, .. } => Some(peer),
            _ => None,
        });
        assert_eq!((incarnation, to_first.stats().sessions), (second.id(), 2));
    }
}

#[test]
fn two_processes_that_compete_for_a_peer_do_not_take_turns() {
    let _alone = alone();
    for decides in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let bob = bystander(folder.path(), decides);
        let both = [(); 2].map(|()| start(of_folder(folder.path())));
        let at = bob.local_addr().unwrap();
        both.iter().for_each(|node| drop(node.add_peer(bob.id(), [at]).unwrap()));
        let to_them = bob.wait_connected(both[0].id(), PATIENCE).unwrap();
        wait_until("the other one is refused", || bob.metrics().identity_clashes > 0);
        let settled = to_them.stats().sessions;
        let has_it = |node: &&Node| node.peer(bob.id()).is_ok_and(|peer| peer.stats().connected);
        assert_eq!(both.iter().filter(has_it).count(), 1);
        let without = both.iter().find(|node| !has_it(node)).unwrap();
        for _ in 0..50 {
            assert_eq!(cause_of(without.connect(at)), DialCause::Refused(CloseReason::IdentityClash));
        }
        assert_eq!(to_them.stats().sessions, settled, "whoever has it keeps it");
        // Whoever is refused hears it before it is counted.
        wait_until("all are counted", || bob.metrics().identity_clashes > 50);
        assert!(to_them.stats().connected && !has_it(&without));
    }
}

#[test]
fn a_process_whose_earlier_life_died_without_a_word_is_let_in_within_seconds() {
    let _alone = alone();
    for decides in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let bob = bystander(folder.path(), decides);
        let proxy = Proxy::to(bob.local_addr().unwrap());
        let first = start(of_folder(folder.path()));
        first.add_peer(bob.id(), [proxy.addr()]).unwrap();
        let to_them = bob.wait_connected(first.id(), PATIENCE).unwrap();
        // Its machine is gone: nothing comes any more, and nobody says so.
        assert_eq!(proxy.stall(), 1);
        proxy.stop_listening();
        let second = start(of_folder(folder.path()));
        let begin = Instant::now();
        second.connect(bob.local_addr().unwrap()).unwrap().send("restarted").unwrap();
        let took = begin.elapsed();
        assert_eq!(bob.recv_timeout(PATIENCE).unwrap().payload(), b"restarted");
        // The first one was waited for; far less than the idle time.
        assert!((Duration::from_millis(900)..Duration::from_secs(5)).contains(&took), "{took:?}");
        assert_eq!((bob.metrics().identity_clashes, to_them.stats().sessions), (0, 2));
        assert_eq!(proxy.counts().stalls, 1);
    }
}

#[test]
fn a_process_that_is_busy_with_a_message_is_not_taken_for_dead() {
    let _alone = alone();
    for (decides, at_bob) in [(true, false), (false, false), (true, true)] {
        let folder = tempfile::tempdir().unwrap();
        let (go, wait) = bounded::<()>(0);
        let (began, begins) = bounded::<()>(1);
        let handler = move |_: &PeerHandle, _: threadwire::Message<'_>| {
            began.send(()).unwrap();
            let _ = wait.recv_timeout(PATIENCE);
        };
        let bob = Node::builder().config(quick()).identity(other_than(folder.path(), decides));
        let first = Node::builder().config(of_folder(folder.path()));
        let (bob, first) = if at_bob { (bob.handler(handler), first) } else { (bob, first.handler(handler)) };
        let (bob, first) = (bob.start().unwrap(), first.start().unwrap());
        let to_bob = link(&first, &bob);
        let to_first = bob.wait_connected(first.id(), PATIENCE).unwrap();
        if at_bob { &to_bob } else { &to_first }.send("keep busy").unwrap();
        begins.recv_timeout(PATIENCE).unwrap();
        // Nobody can answer, or hear an answer: the second one is sent away, and nobody is accused.
        let second = start(of_folder(folder.path()));
        // The first time counts only once the one who is busy has had the time to say so.
        std::thread::sleep(Duration::from_millis(600));
        for _ in 0..2 {
            let cause = cause_of(second.connect(bob.local_addr().unwrap()));
            assert_eq!(cause, DialCause::Refused(CloseReason::Undecided));
        }
        assert_eq!((bob.metrics().identity_clashes, to_bob.stats().sessions, to_first.stats().sessions), (0, 1, 1));
        go.send_timeout((), PATIENCE).unwrap();
        let asked = if at_bob { &to_bob } else { &to_first };
        wait_until("the message is handled", || asked.stats().acked == 1);
        let cause = cause_of(second.connect(bob.local_addr().unwrap()));
        assert_eq!(cause, DialCause::Refused(CloseReason::IdentityClash));
    }
}

#[test]
fn two_processes_of_one_identity_that_dial_each_other_are_both_told() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let [one, other] = [(); 2].map(|()| start(of_folder(folder.path())));
    let cause = cause_of(one.connect(other.local_addr().unwrap()));
    assert!(matches!(
        cause,
        DialCause::Rejected(CloseReason::IdentityClash) | DialCause::Refused(CloseReason::IdentityClash)
    ));
    for node in [&one, &other] {
        let peer = wait_event(node, "a clash", |event| match event {
            Event::IdentityClash { peer, .. } => Some(peer),
            _ => None,
        });
        assert_eq!((peer, node.metrics().identity_clashes, node.metrics().sessions_started), (node.id(), 1, 0));
    }
}
