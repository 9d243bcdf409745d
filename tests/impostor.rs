//! Somebody who claims to be a peer that is connected, without its key: he gets nothing, is told so, and the peer does
//! not notice. Over plain TCP, and through TLS with a key of his own, which is not the one he claims.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use threadwire::config::Channel;
use threadwire::error::{CloseReason, ConnectError, DialCause};
use threadwire::handshake::Identity;
use threadwire::ident::SessionKind;
use threadwire::wire::{Confirm, FrameType, HEADER, Hello, VERSION_MAX, decode, put_body};
use threadwire::{Event, Node};

mod common;
use common::ledger::{Ledger, Verdict, numbered};
use common::stranger::{Stranger, listen_in, machine, reason_of};
use common::{PATIENCE, addr, alone, channels, link, nothing_left, over, start, wait_until};

/// Somebody, and the channel he meets nodes over.
struct Thief {
    channel: Channel,
    identity: Arc<Identity>,
}

impl Thief {
    fn dials(&self, node: &Node) -> Stranger {
        Stranger::dial_over(self.channel, &self.identity, addr(node))
    }

    fn answers(&self, at: &TcpListener) -> Stranger {
        Stranger::accept_over(self.channel, &self.identity, at)
    }

    /// A hello in his own name.
    fn hello(&self, to: &Node) -> Vec<u8> {
        std::mem::take(machine(&self.identity, SessionKind::Outbound, to.id()).output())
    }

    /// What he is told by a node that he has shown the hello of somebody else to. TLS has seen his own key.
    fn told(&self) -> CloseReason {
        if self.channel == Channel::Tls { CloseReason::WrongPeer } else { CloseReason::BadSignature }
    }

    /// The first frames of a handshake of `from` with `to`, which came to nothing. Through TLS he hears only what is said
    /// to him, and what he hands on convinces nobody: he gets a hello, and no confirm.
    fn records(&self, from: &Node, to: &Node) -> [Vec<u8>; 2] {
        let between = TcpListener::bind("127.0.0.1:0").unwrap();
        std::thread::scope(|scope| {
            let dial = scope.spawn(|| from.connect(between.local_addr().unwrap()));
            let frames = match self.channel {
                Channel::Tls => [self.answers(&between).hear().unwrap(), confirm(self.identity.sign(b"let me in"))],
                _ => listen_in(&between, addr(to)),
            };
            assert!(dial.join().unwrap().is_err(), "the connection was hung up on");
            frames
        })
    }
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

/// While alice and bob exchange messages, `attack` is run by a thief with both of them and frames of a handshake of
/// theirs; then their one session must be as good as before. Over each channel.
fn under_traffic(attack: impl Fn(&Thief, &Node, &Node, &[Vec<u8>; 2])) {
    for channel in channels() {
        let thief = Thief { channel, identity: Arc::new(Identity::generate().unwrap()) };
        under_traffic_over(channel, |alice, bob, frames| attack(&thief, alice, bob, frames), &thief);
    }
}

fn under_traffic_over(channel: Channel, attack: impl FnOnce(&Node, &Node, &[Vec<u8>; 2]), thief: &Thief) {
    let (alice, bob) = (start(over(channel)), start(over(channel)));
    let frames = thief.records(&alice, &bob);
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
        let of_session = |event: &&Event| !matches!(event, Event::DialFailed { .. } | Event::Peer(_));
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
    under_traffic(|thief, _, bob, [hello, old_confirm]| {
        let failed = bob.metrics().handshakes_failed;
        let later = changed(hello, |hello| hello.incarnation += 1);
        let fresh = changed(hello, |hello| hello.nonce = [9; 32]);
        let signed = confirm(thief.identity.sign(b"let me in"));
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
                let mut stranger = thief.dials(bob);
                assert!(stranger.say(&attempt[0]));
                if thief.channel == Channel::Plain {
                    // The node proves itself, and waits for the same.
                    assert!(stranger.hear().is_some_and(|hello| reason_of(&hello).is_none()));
                    assert!(stranger.say(&attempt[1]));
                    assert_eq!(stranger.hear_out(), Some(thief.told()));
                } else {
                    // It has said everything before he says that he is somebody else.
                    assert_eq!(stranger.hear().and_then(|frame| reason_of(&frame)), Some(thief.told()));
                    assert_eq!(stranger.hear(), None);
                }
            }
        }
        let all = failed + EACH * attempts.len() as u64;
        wait_until("each is counted", || bob.metrics().handshakes_failed == all);
    });
}

#[test]
fn whoever_answers_in_a_connected_peers_name_without_its_key_gets_nothing() {
    let _alone = alone();
    under_traffic(|thief, alice, bob, [hello, _]| {
        // What bob says to that hello, or to the thief's own where he says nothing to it.
        let mut stranger = thief.dials(bob);
        let own = thief.hello(bob);
        assert!(stranger.say(if thief.channel == Channel::Tls { &own } else { hello }));
        let answer = [stranger.hear().unwrap(), stranger.hear().unwrap()].concat();
        drop(stranger);
        let trap = TcpListener::bind("127.0.0.1:0").unwrap();
        for _ in 0..10 {
            std::thread::scope(|scope| {
                let dial = scope.spawn(|| alice.connect(trap.local_addr().unwrap()));
                let mut stranger = thief.answers(&trap);
                assert!(stranger.hear().is_some_and(|hello| hello[4] == FrameType::Hello as u8));
                assert!(stranger.say(&answer));
                let goodbye = stranger.hear().unwrap();
                assert_eq!(reason_of(&goodbye), Some(thief.told()), "and no confirm before it");
                let Err(ConnectError::Dial(error)) = dial.join().unwrap() else { panic!("the dial did not fail") };
                let causes: Vec<_> = error.iter().map(|error| &error.cause).collect();
                assert_eq!(causes, [&DialCause::Rejected(thief.told())]);
            });
        }
        assert_eq!(alice.metrics().dials_failed, 11, "and the one that was listened in on");
    });
}

#[test]
fn versions_that_do_not_overlap_and_other_networks_are_refused_before_anything_is_proven() {
    let _alone = alone();
    under_traffic(|thief, _, bob, _| {
        let hello = &thief.hello(bob);
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
            let mut stranger = thief.dials(bob);
            assert!(stranger.say(hello));
            let goodbye = stranger.hear().unwrap();
            assert_eq!(reason_of(&goodbye), Some(*reason), "it is all that the stranger is told");
        }
        wait_until("each is counted", || bob.metrics().handshakes_failed == failed + cases.len() as u64);
    });
}
