//! Somebody who claims to be a peer that is connected, without its key: he gets nothing, is told so, and the peer does
//! not notice.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use threadwire::error::{CloseReason, ConnectError, DialCause};
use threadwire::handshake::Identity;
use threadwire::wire::{Confirm, FrameType, HEADER, Hello, VERSION_MAX, decode, put_body};
use threadwire::{Event, Node};

mod common;
use common::ledger::{Ledger, Verdict, numbered};
use common::stranger::{Stranger, listen_in, reason_of};
use common::{PATIENCE, alone, link, nothing_left, plain, start, wait_until};

/// The first frames of a handshake of `from` with `to`, which came to nothing.
fn recorded(from: &Node, to: &Node) -> [Vec<u8>; 2] {
    let between = TcpListener::bind("127.0.0.1:0").unwrap();
    std::thread::scope(|scope| {
        let dial = scope.spawn(|| from.connect(between.local_addr().unwrap()));
        let frames = listen_in(&between, to.local_addr().unwrap());
        assert!(dial.join().unwrap().is_err(), "the connection was hung up on");
        frames
    })
}

/// A hello frame with something else in it.
fn changed(hello: &[u8], change: impl FnOnce(&mut Hello)) -> Vec<u8> {
    let mut body: Hello = decode(&hello[HEADER..]).unwrap();
    change(&mut body);
    let mut frame = Vec::new();
    put_body(&mut frame, FrameType::Hello, &body).unwrap();
    frame
}

fn confirm(signature: [u8; 64]) -> Vec<u8> {
    let mut frame = Vec::new();
    put_body(&mut frame, FrameType::Confirm, &Confirm { signature: signature.to_vec() }).unwrap();
    frame
}

/// While alice and bob exchange messages, `attack` is run with both of them and frames of a handshake of theirs; then
/// their one session must be as good as before.
fn under_traffic(attack: impl FnOnce(&Node, &Node, &[Vec<u8>; 2])) {
    let (alice, bob) = (start(plain()), start(plain()));
    let frames = recorded(&alice, &bob);
    let nodes = [&alice, &bob];
    let to_bob = link(&alice, &bob);
    let to_alice = bob.wait_connected(alice.id(), PATIENCE).unwrap();
    let (stop, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let ledgers: [Ledger; 2] = Default::default();
    std::thread::scope(|scope| {
        let sending = [&to_alice, &to_bob].map(|to| {
            let stop = &stop;
            scope.spawn(move || {
                let mut sent = 0;
                while !stop.load(Ordering::Relaxed) {
                    to.send(numbered(sent, 100)).unwrap();
                    sent += 1;
                    std::thread::sleep(Duration::from_micros(100));
                }
                sent
            })
        });
        for (node, ledger) in nodes.iter().zip(&ledgers) {
            let done = &done;
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    if let Ok(message) = node.recv_timeout(Duration::from_millis(5)) {
                        ledger.enter(message.payload(), message.possible_repeat());
                    }
                }
            });
        }
        wait_until("messages flow", || ledgers.iter().all(|ledger| ledger.came() > 10));
        attack(&alice, &bob, &frames);
        stop.store(true, Ordering::Relaxed);
        let sent = sending.map(|sender| sender.join().unwrap());
        wait_until("all came", || ledgers.each_ref().map(|ledger| ledger.came()) == sent);
        done.store(true, Ordering::Relaxed);
        assert_eq!(ledgers.each_ref().map(|ledger| ledger.verdict()), sent.map(Verdict::perfect));
    });
    for (node, to) in [(&alice, &to_bob), (&bob, &to_alice)] {
        let metrics = node.metrics();
        assert_eq!((to.stats().sessions, metrics.sessions_started, metrics.sessions_ended), (1, 1, 0));
        assert_eq!(metrics.identity_clashes, 0, "nobody has proven to have the key");
        let events: Vec<Event> = node.events().try_iter().collect();
        let of_session = |event: &&Event| !matches!(event, Event::DialFailed { .. });
        assert_eq!(events.iter().filter(of_session).count(), 1, "{events:?}");
        assert_eq!(node.peers().len(), 1, "who claims is no peer");
    }
    assert!(alice.shutdown(PATIENCE).is_clean());
    nothing_left(&bob);
}

#[test]
fn whoever_claims_a_connected_peers_id_without_its_key_gets_nothing() {
    const EACH: u64 = 10;
    let _alone = alone();
    under_traffic(|_, bob, [hello, old_confirm]| {
        let thief = Identity::generate().unwrap();
        let failed = bob.metrics().handshakes_failed;
        let later = changed(hello, |hello| hello.incarnation += 1);
        let fresh = changed(hello, |hello| hello.nonce = [9; 32]);
        let signed = confirm(thief.sign(b"let me in"));
        let attempts = [
            // All of an earlier handshake, as it was.
            [hello.clone(), old_confirm.clone()],
            // In the name of a later life, to supersede the session.
            [later.clone(), old_confirm.clone()],
            [later, signed.clone()],
            [fresh, signed],
            [hello.clone(), confirm([0; 64])],
        ];
        for _ in 0..EACH {
            for attempt in &attempts {
                let mut stranger = Stranger::dial(bob.local_addr().unwrap());
                assert!(stranger.say(&attempt[0]));
                // The node proves itself, and waits for the same.
                assert!(stranger.hear().is_some_and(|hello| reason_of(&hello).is_none()));
                assert!(stranger.say(&attempt[1]));
                assert_eq!(stranger.hear_out(), Some(CloseReason::BadSignature));
            }
        }
        let all = failed + EACH * attempts.len() as u64;
        wait_until("each is counted", || bob.metrics().handshakes_failed == all);
    });
}

#[test]
fn whoever_answers_in_a_connected_peers_name_without_its_key_gets_nothing() {
    let _alone = alone();
    under_traffic(|alice, bob, [hello, _]| {
        // What bob says to that hello.
        let mut stranger = Stranger::dial(bob.local_addr().unwrap());
        assert!(stranger.say(hello));
        let answer = [stranger.hear().unwrap(), stranger.hear().unwrap()].concat();
        drop(stranger);
        let trap = TcpListener::bind("127.0.0.1:0").unwrap();
        for _ in 0..10 {
            std::thread::scope(|scope| {
                let dial = scope.spawn(|| alice.connect(trap.local_addr().unwrap()));
                let mut stranger = Stranger::accept(&trap);
                assert!(stranger.hear().is_some_and(|hello| hello[4] == FrameType::Hello as u8));
                assert!(stranger.say(&answer));
                assert_eq!(stranger.hear_out(), Some(CloseReason::BadSignature), "and no confirm before it");
                let Err(ConnectError::Dial(error)) = dial.join().unwrap() else { panic!("the dial did not fail") };
                let causes: Vec<_> = error.iter().map(|error| &error.cause).collect();
                assert_eq!(causes, [&DialCause::Rejected(CloseReason::BadSignature)]);
            });
        }
        assert_eq!(alice.metrics().dials_failed, 11, "and the one that was listened in on");
    });
}

#[test]
fn versions_that_do_not_overlap_and_other_networks_are_refused_before_anything_is_proven() {
    let _alone = alone();
    under_traffic(|_, bob, [hello, _]| {
        let failed = bob.metrics().handshakes_failed;
        let cases: [(Vec<u8>, CloseReason); 4] = [
            (
                changed(hello, |hello| (hello.version_min, hello.version_max) = (VERSION_MAX + 1, VERSION_MAX + 9)),
                CloseReason::VersionMismatch,
            ),
            (changed(hello, |hello| (hello.version_min, hello.version_max) = (0, 0)), CloseReason::VersionMismatch),
            (changed(hello, |hello| hello.network = "elsewhere".to_owned()), CloseReason::WrongNetwork),
            (changed(hello, |hello| hello.protocol = "threadwire-gossip/1".to_owned()), CloseReason::WrongProtocol),
        ];
        for (hello, reason) in &cases {
            let mut stranger = Stranger::dial(bob.local_addr().unwrap());
            assert!(stranger.say(hello));
            let goodbye = stranger.hear().unwrap();
            assert_eq!(reason_of(&goodbye), Some(*reason), "it is all that the stranger is told");
        }
        wait_until("each is counted", || bob.metrics().handshakes_failed == failed + cases.len() as u64);
    });
}
