//! Deadlines and delays: what waits under a long one, or begins after it was shortened, ends by the short one.

use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use threadwire::config::{Backoff, BackoffPolicy, Config};
use threadwire::error::{CloseReason, ConnectError, DialCause, DialStage, DisconnectReason};
use threadwire::{Address, Event, Node, Outcome, PeerId, PeerInfo, ReturnReason, SendOptions};

use crate::common::mute::Mute;
use crate::common::names::Names;
use crate::common::stranger::Stranger;
use crate::common::{CHANNEL, PATIENCE, addr, alone, black_hole, ended, link, start, wait_event, wait_until};
use crate::effects::{Effect, HOUR, SHORT, lasting};
use crate::{changed, nobody};

pub(crate) const EFFECTS: &[Effect] = &[
    (&["resolve_timeout"], a_lookup_ends),
    (&["connect_timeout"], a_dial_that_nobody_answers_ends),
    (&["handshake_timeout"], a_handshake_that_nobody_answers_ends),
    (&["slow_after", "write_timeout"], a_peer_that_never_reads_is_slow_and_then_cut),
    (&["handler_watchdog"], a_handler_that_runs_is_told_of),
    (&["stable_after"], a_connection_has_held),
    (&["resume_window"], a_link_gives_up_what_it_kept),
    (&["ack_delay"], an_acknowledgement_goes_alone),
    (&["unknown_timeout"], a_message_waits_no_longer_for_a_peer_that_nobody_knows),
    (&["backoff.policy", "backoff.base", "backoff.cap", "backoff.jitter"], delays_are_those_of_another_policy),
];

fn with_names(config: &Config, names: &Names) -> Node {
    Node::builder().config(config.clone()).resolver(names.clone()).start().unwrap()
}

/// How far a dial came, and why no further.
#[track_caller]
fn failed(dialled: Result<threadwire::PeerHandle, ConnectError>) -> (DialStage, DialCause) {
    match dialled {
        Err(ConnectError::Dial(mut errors)) if errors.len() == 1 => {
            let error = errors.remove(0);
            (error.stage, error.cause)
        }
        other => panic!("{other:?}"),
    }
}

fn a_lookup_ends() {
    let names = Names::default();
    let _revived = names.until_dropped();
    let alice = with_names(&lasting(), &names);
    alice.reload(&changed(&lasting(), |config| config.resolve_timeout = SHORT)).unwrap();
    assert_eq!(failed(alice.connect("dead-1:1")), (DialStage::Resolve, DialCause::TimedOut(SHORT)));
}

fn a_dial_that_nobody_answers_ends() {
    let (_listener, _inside, hole) = black_hole();
    let alice = start(lasting());
    alice.reload(&changed(&lasting(), |config| config.connect_timeout = SHORT)).unwrap();
    assert_eq!(failed(alice.connect(hole)), (DialStage::Connect, DialCause::TimedOut(SHORT)));
}

fn a_handshake_that_nobody_answers_ends() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let bob = start(lasting());
    bob.reload(&changed(&lasting(), |config| config.handshake_timeout = SHORT)).unwrap();
    let cause = DialCause::TimedOut(SHORT);
    assert_eq!(failed(bob.connect(silent.local_addr().unwrap())), (DialStage::Handshake, cause));
    let mut stranger = Stranger::dial(addr(&bob));
    wait_until("the stranger is cut too", || bob.metrics().handshake_timeouts == 2);
    stranger.hear_out();
}

fn a_peer_that_never_reads_is_slow_and_then_cut() {
    let config = changed(&lasting(), |config| (config.queue_bytes, config.window_bytes) = (16 << 20, 32 << 20));
    let bob = start(config.clone());
    let mute = Mute::connect(CHANNEL, bob.id(), addr(&bob), 64 << 20);
    let to_mute = bob.wait_connected(mute.id, PATIENCE).unwrap();
    // More than the system's buffers hold: the rest waits, and a write with it.
    while to_mute.try_send(vec![7; 60_000]).is_ok() {}
    let soon = changed(&config, |config| config.slow_after = SHORT);
    bob.reload(&soon).unwrap();
    wait_event(&bob, "it is slow", |event| match event {
        Event::PeerSlow { peer, .. } => (peer == mute.id).then_some(()),
        _ => None,
    });
    assert_eq!(bob.metrics().sessions_ended, 0);
    bob.reload(&changed(&soon, |config| config.write_timeout = 2 * SHORT)).unwrap();
    assert_eq!(ended(&bob), DisconnectReason::Local(CloseReason::WriteStalled));
    bob.shutdown(Duration::ZERO);
}

fn a_handler_that_runs_is_told_of() {
    let (entered, leave) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let (inside, outside) = (entered.clone(), leave.clone());
    let bob = Node::builder().config(lasting()).handler(move |_, _| {
        inside.wait();
        outside.wait();
    });
    let (alice, bob) = (start(lasting()), bob.start().unwrap());
    link(&alice, &bob).send("x").unwrap();
    entered.wait();
    bob.reload(&changed(&lasting(), |config| config.handler_watchdog = SHORT)).unwrap();
    wait_event(&bob, "its handler runs long", |event| match event {
        Event::HandlerSlow { peer, .. } => (peer == alice.id()).then_some(()),
        _ => None,
    });
    leave.wait();
}

/// What a node knows of a peer that it keeps, if its next dial is planned.
fn planned(node: &Node, peer: PeerId) -> Option<(PeerInfo, Duration)> {
    let info = node.peers().into_iter().find(|info| info.id == peer)?;
    let left = info.next_retry?.saturating_duration_since(Instant::now());
    Some((info, left))
}

fn a_connection_has_held() {
    let names = Names::default();
    let (alice, bob) = (with_names(&lasting(), &names), start(lasting()));
    let times = || planned(&alice, bob.id()).map_or(0, |(info, _)| info.attempts);
    let connects = |config: &Config| {
        // Nobody listens at that port of another address.
        names.set("bob", &["127.0.0.2"]);
        alice.add_peer(bob.id(), [format!("bob:{}", addr(&bob).port())]).unwrap();
        wait_until("many dials have failed", || times() >= 10);
        names.set("bob", &["127.0.0.1"]);
        alice.wait_connected(bob.id(), PATIENCE).unwrap();
        alice.reload(config).unwrap();
        names.set("bob", &["127.0.0.2"]);
        let connected = |event| matches!(event, Event::Connected { .. }).then(Instant::now);
        let since = wait_event(&alice, "it is connected", connected);
        wait_until("it is as old as a stable one", || since.elapsed() > SHORT);
        alice.disconnect(bob.id(), CloseReason::Requested).unwrap();
        wait_until("it is to be dialled again", || times() > 0);
        times()
    };
    // One at a time: when it is dialled again is not before the test is over.
    let slowly = changed(&lasting(), |config| (config.backoff.base, config.backoff.cap) = (HOUR, HOUR));
    let attempts = connects(&slowly);
    assert!(attempts > 10, "it has not held for an hour: {attempts}");
    alice.reload(&lasting()).unwrap();
    let attempts = connects(&changed(&slowly, |config| config.stable_after = SHORT));
    // The first delay is any part of the hour.
    assert!(attempts < 10, "{attempts}");
}

fn a_link_gives_up_what_it_kept() {
    let (entered, leave) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let (inside, outside) = (entered.clone(), leave.clone());
    let bob = Node::builder().config(lasting()).handler(move |_, _| {
        inside.wait();
        outside.wait();
    });
    let (alice, bob) = (start(lasting()), bob.start().unwrap());
    let receipt = link(&alice, &bob).send_with("held", &SendOptions::new()).unwrap();
    entered.wait();
    alice.remove_peer(bob.id()).unwrap();
    wait_until("its session is over", || alice.sessions().is_empty());
    alice.reload(&changed(&lasting(), |config| config.resume_window = SHORT)).unwrap();
    assert_eq!(receipt.wait(PATIENCE).unwrap(), Outcome::Unknown { payload: b"held".to_vec() });
    leave.wait();
}

fn an_acknowledgement_goes_alone() {
    const EACH: Duration = Duration::from_secs(1);
    let config = changed(&lasting(), |config| config.ack_delay = EACH);
    let handler = Node::builder().config(config.clone()).handler(|_, _| {});
    let (alice, bob) = (start(config.clone()), handler.start().unwrap());
    let to_bob = link(&alice, &bob);
    bob.reload(&changed(&config, |config| config.ack_delay = Duration::from_millis(1))).unwrap();
    let begin = Instant::now();
    // One after the other, and nobody asks for a word at once: twice as long as the patience, if each took its second.
    for sent in 1..=2 * PATIENCE.as_secs() / EACH.as_secs() {
        to_bob.send("x").unwrap();
        wait_until("it is acknowledged", || to_bob.stats().acked == sent);
        assert!(begin.elapsed() < PATIENCE, "{sent} in {:?}", begin.elapsed());
    }
}

fn a_message_waits_no_longer_for_a_peer_that_nobody_knows() {
    let alice = start(lasting());
    let receipt = alice.peer(nobody()).unwrap().send_with("x", &SendOptions::new()).unwrap();
    alice.reload(&changed(&lasting(), |config| config.unknown_timeout = SHORT)).unwrap();
    let reason = ReturnReason::PeerUnknown;
    assert_eq!(receipt.wait(PATIENCE).unwrap(), Outcome::Returned { payload: b"x".to_vec(), reason });
}

/// The delay before this attempt, of a policy without jitter.
fn delay(backoff: &Backoff, attempt: u32) -> Duration {
    let (mut now, mut next) = (backoff.base, backoff.base);
    for _ in 1..attempt {
        (now, next) = match backoff.policy {
            BackoffPolicy::Fibonacci => (next, (now + next).min(backoff.cap)),
            _ => ((now * 2).min(backoff.cap), next),
        };
    }
    now.min(backoff.cap)
}

fn delays_are_those_of_another_policy() {
    let often = changed(&lasting(), |config| {
        (config.backoff.base, config.backoff.cap, config.backoff.jitter) =
            (Duration::from_millis(50), Duration::from_millis(50), 0.5);
    });
    let (alice, peer) = (start(often.clone()), nobody());
    alice.add_peer(peer, ["127.0.0.1:1"]).unwrap();
    let attempts = || planned(&alice, peer).map_or(0, |(info, _)| info.attempts);
    for policy in [BackoffPolicy::Exponential, BackoffPolicy::Fibonacci] {
        // So that the two differ, and neither has come to its cap.
        let far = match policy {
            BackoffPolicy::Fibonacci => 30,
            _ => 24,
        };
        wait_until("many dials have failed", || attempts() >= far);
        let rarely = changed(&often, |config| {
            (config.backoff.policy, config.backoff.jitter) = (policy, 0.0);
            (config.backoff.base, config.backoff.cap) = (Duration::from_millis(1), 24 * HOUR);
        });
        alice.reload(&rarely).unwrap();
        let mut seen = None;
        wait_until("the next dial is far", || {
            seen = planned(&alice, peer).filter(|(_, left)| *left > PATIENCE);
            seen.is_some()
        });
        let (info, left) = seen.unwrap();
        let expected = delay(&rarely.backoff, info.attempts);
        assert!(
            left <= expected && left + PATIENCE > expected,
            "{policy:?} {}: {left:?}, not {expected:?}",
            info.attempts
        );
        // Who waits, waits no longer than the cap that is lowered.
        alice.reload(&often).unwrap();
        wait_until("it is dialled again", || attempts() > info.attempts);
    }
}

#[test]
fn a_dial_that_is_under_way_keeps_its_deadline_and_its_error_says_how_long_that_was() {
    let _alone = alone();
    let brief = Duration::from_millis(500);
    let names = Names::default();
    let _revived = names.until_dropped();
    let (_listener, _inside, hole) = black_hole();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let config = changed(&lasting(), |config| {
        (config.resolve_timeout, config.connect_timeout, config.handshake_timeout) = (brief, brief, brief);
    });
    let cases: [(Address, DialStage); 3] = [
        ("dead-1:1".parse().unwrap(), DialStage::Resolve),
        (hole.into(), DialStage::Connect),
        (silent.local_addr().unwrap().into(), DialStage::Handshake),
    ];
    for (to, stage) in cases {
        let alice = with_names(&config, &names);
        std::thread::scope(|scope| {
            let dial = scope.spawn(|| alice.connect(to));
            let under_way = match stage {
                DialStage::Resolve => {
                    wait_until("its lookup has begun", || alice.metrics().lookups == 1);
                    None
                }
                DialStage::Connect => {
                    wait_until("it has begun", || alice.metrics().dials == 1);
                    None
                }
                // It says hello as soon as it is connected.
                _ => silent.accept().ok().filter(|(stream, _)| stream.peek(&mut [0]).is_ok_and(|count| count > 0)),
            };
            // The thread that dials has gone on to something else since.
            let knocks = TcpStream::connect(addr(&alice)).unwrap();
            wait_until("somebody is let in", || alice.metrics().accepted == 1);
            alice.reload(&lasting()).unwrap();
            assert_eq!(failed(dial.join().unwrap()), (stage, DialCause::TimedOut(brief)));
            drop((under_way, knocks));
        });
    }
}
