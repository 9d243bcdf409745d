//! Who is not let in, who is told what about it, and that it costs the node nothing that stays.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use threadwire::config::Channel;
use threadwire::error::{CloseReason, ConnectError, DialCause, DialError, DialStage, StartError};
use threadwire::handshake::{Identity, Offer};
use threadwire::ident::SessionKind;
use threadwire::{Config, Event, Node, PeerId};

mod common;
use common::ledger::numbered;
use common::proxy::Proxy;
use common::stranger::{Stranger, listen_in};
use common::{
    PATIENCE, alone, channels, identities, link, nothing_left, over, plain, quick, settled, start, wait_event,
    wait_until,
};

/// Why a dial failed, as its caller and its node's events tell it.
fn refused(node: &Node, addr: std::net::SocketAddr) -> DialCause {
    let Err(ConnectError::Dial(errors)) = node.connect(addr) else { panic!("the dial did not fail") };
    let [DialError { addr: at, stage, cause }] = &errors[..] else { panic!("{errors:?}") };
    assert_eq!((at, *stage), (&addr.into(), DialStage::Handshake));
    let told = wait_event(node, "the dial fails", |event| match event {
        Event::DialFailed { peer: None, error, .. } => Some(error),
        _ => None,
    });
    assert_eq!((&told.addr, &told.cause), (at, cause));
    cause.clone()
}

/// Nothing came of it: no session, and no connection under way.
fn nothing_came_of_it(node: &Node) {
    nothing_left(node);
    // A dialler has met whoever refuses it after that side was proven.
    assert!(node.peers().iter().all(|peer| peer.stats.sessions == 0), "{:?}", node.peers());
    assert_eq!(node.metrics().sessions_started, 0);
}

#[test]
fn a_node_that_dials_itself_is_told_so() {
    let _alone = alone();
    for channel in channels() {
        let node = start(over(channel));
        let own = node.local_addr().unwrap();
        assert_eq!(refused(&node, own), DialCause::Refused(CloseReason::SelfConnection));
        // The same through an address that is meant to be somebody else's.
        let other = identities()[0].peer_id();
        node.add_peer(other, [own]).unwrap();
        let (peer, cause) = wait_event(&node, "the dial fails", |event| match event {
            Event::DialFailed { peer, error, .. } => Some((peer, error.cause)),
            _ => None,
        });
        // TLS knows by the key alone that it is not the one that was dialled.
        let expected = match channel {
            Channel::Tls => DialCause::Rejected(CloseReason::WrongPeer),
            _ => DialCause::Refused(CloseReason::SelfConnection),
        };
        assert_eq!((peer, cause), (Some(other), expected));
        assert_eq!(node.add_peer(node.id(), [own]).unwrap_err(), ConnectError::UnknownPeer(node.id()));
        wait_until("both ends have counted it", || node.metrics().handshakes_failed >= 2);
        assert_eq!(node.metrics().sessions_started, 0);
    }
}

#[test]
fn a_node_of_another_network_is_refused_and_told_why() {
    let _alone = alone();
    let mut config = quick();
    config.network = "elsewhere".to_owned();
    let (bob, alice) = (start(quick()), start(config));
    assert_eq!(refused(&alice, bob.local_addr().unwrap()), DialCause::Refused(CloseReason::WrongNetwork));
    assert_eq!(refused(&bob, alice.local_addr().unwrap()), DialCause::Refused(CloseReason::WrongNetwork));
    for node in [&alice, &bob] {
        nothing_came_of_it(node);
        let metrics = node.metrics();
        assert_eq!((metrics.dials_failed, metrics.handshakes_failed), (1, 1));
    }
}

#[test]
fn two_nodes_with_one_key_are_told_that_they_clash() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut config = quick();
    config.data_dir = Some(folder.path().to_owned());
    let (bob, alice) = (start(config.clone()), start(config));
    assert_eq!(bob.id(), alice.id());
    let cause = refused(&alice, bob.local_addr().unwrap());
    assert_eq!(cause, DialCause::Rejected(CloseReason::IdentityClash));
    nothing_came_of_it(&alice);
    nothing_came_of_it(&bob);
    assert_eq!(bob.metrics().handshakes_failed, 1);
}

/// What policies saw: who dialled, and what the other side brought.
type Seen = Arc<Mutex<Vec<(SessionKind, PeerId, Vec<u8>)>>>;

/// A node that says it has `height`, and lets in whom `lets_in` wants: by who dialled, own height and theirs.
fn node_at(height: u8, seen: &Seen, lets_in: fn(SessionKind, u8, u8) -> bool) -> Node {
    let seen = seen.clone();
    let policy = move |offer: &Offer<'_>| {
        seen.lock().push((offer.kind, offer.peer, offer.payload.to_vec()));
        let ok = lets_in(offer.kind, height, offer.payload[0]);
        if ok { Ok(()) } else { Err(format!("not at height {}", offer.payload[0])) }
    };
    Node::builder().config(quick()).handshake_payload([height]).handshake_policy(policy).start().unwrap()
}

#[test]
fn a_policy_refuses_by_payload_and_by_direction_and_the_other_side_learns_it() {
    let _alone = alone();
    let seen = Seen::default();
    // Whoever is dialled must be ahead; whoever dials may be anywhere below a hundred.
    let rule = |kind, own, theirs| if kind == SessionKind::Outbound { theirs > own } else { theirs < 100 };
    let (low, high, lofty) = (node_at(1, &seen, rule), node_at(9, &seen, rule), node_at(100, &seen, rule));
    let addr = |node: &Node| node.local_addr().unwrap();

    // By the dialler's own policy, of the one it dialled.
    assert_eq!(refused(&high, addr(&low)), DialCause::Rejected(CloseReason::Refused));
    let of_high = (SessionKind::Outbound, low.id(), vec![1]);
    assert_eq!(*seen.lock(), [of_high], "the acceptor is not asked when the dialler has refused");
    wait_until("the acceptor has counted it", || low.metrics().handshakes_failed == 1);
    seen.lock().clear();

    // By the acceptor's: the dialler's own policy said yes before.
    assert_eq!(refused(&lofty, addr(&high)), DialCause::Rejected(CloseReason::Refused));
    let top = node_at(200, &seen, |_, _, _| true);
    seen.lock().clear();
    assert_eq!(refused(&top, addr(&high)), DialCause::Refused(CloseReason::Refused));
    let of_both = [(SessionKind::Outbound, high.id(), vec![9]), (SessionKind::Inbound, top.id(), vec![200])];
    assert_eq!(*seen.lock(), of_both);
    for node in [&low, &high, &lofty, &top] {
        nothing_came_of_it(node);
    }

    // The other way round, it is fine.
    let to_high = low.connect(addr(&high)).unwrap();
    to_high.send("from below").unwrap();
    assert_eq!(high.recv_timeout(PATIENCE).unwrap().payload(), b"from below");
}

#[test]
fn a_refusal_of_the_acceptor_reaches_the_dialler_however_often_it_dials() {
    let _alone = alone();
    let identities = identities();
    let [lower, higher] = identities;
    // The decider speaks right after its confirm, while the other side is about to refuse it.
    let refuses =
        Node::builder().config(quick()).identity(higher).handshake_policy(|_: &Offer<'_>| Err("no".to_owned()));
    let refuses = refuses.start().unwrap();
    let dialler = Node::builder().config(quick()).identity(lower).start().unwrap();
    for _ in 0..50 {
        assert_eq!(refused(&dialler, refuses.local_addr().unwrap()), DialCause::Refused(CloseReason::Refused));
    }
    wait_until("each is counted", || refuses.metrics().handshakes_failed == 50);
}

#[test]
fn whoever_else_answers_at_a_peers_address_gets_none_of_its_messages() {
    const COUNT: u64 = 20;
    let _alone = alone();
    let [expected, other] = identities();
    let expected_id = expected.peer_id();
    let bob = Node::builder().config(quick()).identity(other).start().unwrap();
    let proxy = Proxy::to(bob.local_addr().unwrap());
    let alice = start(quick());
    let to_expected = alice.add_peer(expected_id, [proxy.addr()]).unwrap();
    (0..COUNT).for_each(|number| to_expected.send(numbered(number, 50)).unwrap());
    let (peer, error) = wait_event(&alice, "the dial fails", |event| match event {
        Event::DialFailed { peer, error, .. } => Some((peer, error)),
        _ => None,
    });
    assert_eq!(peer, Some(expected_id));
    assert_eq!((error.stage, error.cause), (DialStage::Handshake, DialCause::Rejected(CloseReason::WrongPeer)));
    wait_until("it is dialled again", || alice.metrics().dials_failed >= 3);
    assert!(alice.events().try_iter().all(|event| !matches!(event, Event::DialFailed { .. })), "the same is told once");
    assert_eq!((to_expected.stats().queued_messages as u64, to_expected.stats().sessions), (COUNT, 0));
    let known: Vec<PeerId> = alice.peers().iter().map(|peer| peer.id).collect();
    assert_eq!(known, [expected_id], "who answered is no peer");
    // The right one moves in at that address.
    let carol = Node::builder().config(quick()).identity(expected).start().unwrap();
    proxy.lead_to(carol.local_addr().unwrap());
    for number in 0..COUNT {
        assert_eq!(carol.recv_timeout(PATIENCE).unwrap().payload(), numbered(number, 50));
    }
    wait_until("all are acknowledged", || to_expected.stats().acked == COUNT);
    assert_eq!(bob.metrics().sessions_started, 0);
    assert!(bob.metrics().handshakes_failed >= 3);
    assert!(bob.peers().is_empty());
}

/// A configuration in which a handful of slots that are not given back would lock everybody out.
fn narrow() -> Config {
    let mut config = plain();
    (config.inbound, config.half_open) = (4, 4);
    config
}

/// The first frames of a handshake of a node with a node like `bob`.
fn recorded(bob: &Node) -> [Vec<u8>; 2] {
    let between = TcpListener::bind("127.0.0.1:0").unwrap();
    let alice = start(plain());
    std::thread::scope(|scope| {
        let dial = scope.spawn(|| alice.connect(between.local_addr().unwrap()));
        let frames = listen_in(&between, bob.local_addr().unwrap());
        assert!(dial.join().unwrap().is_err(), "the connection was hung up on");
        frames
    })
}

/// The node has all its slots: as many peers as there may be get in, their messages arrive, and they leave nothing.
fn has_all_its_slots(bob: &Node) {
    let diallers: Vec<Node> = (0..4).map(|_| start(plain())).collect();
    for dialler in &diallers {
        link(dialler, bob).send(dialler.id().as_bytes()).unwrap();
    }
    for _ in &diallers {
        let message = bob.recv_timeout(PATIENCE).unwrap();
        assert_eq!(message.payload(), message.from().as_bytes());
    }
    for dialler in diallers {
        assert!(dialler.shutdown(PATIENCE).is_clean());
    }
    nothing_left(bob);
}

#[test]
fn strangers_that_hang_up_at_every_byte_of_a_hello_leave_nothing_behind() {
    let _alone = alone();
    let bob = start(narrow());
    let [hello, confirm] = recorded(&bob);
    wait_until("the recorded connection is over", || settled(&bob));
    let whole = [&hello[..], &confirm].concat();
    let before = bob.metrics();
    let alice = start(plain());
    for said in 0..=whole.len() {
        for reset in [false, true] {
            let mut stranger = Stranger::dial(bob.local_addr().unwrap());
            // A node that is full hangs up first.
            stranger.say(&whole[..said]);
            stranger.hang_up(reset);
        }
        if said == whole.len() / 2 {
            let to_bob = link(&alice, &bob);
            to_bob.send("meanwhile").unwrap();
            assert_eq!(bob.recv_timeout(PATIENCE).unwrap().payload(), b"meanwhile");
            assert!(alice.shutdown(PATIENCE).is_clean());
        }
    }
    wait_until("every connection has ended", || settled(&bob) && bob.metrics().sessions_ended == 1);
    let metrics = bob.metrics();
    let strangers = 2 * (whole.len() as u64 + 1);
    // Some were reset before they were accepted, some refused because the slots were taken just then.
    assert!(metrics.accepted - before.accepted > strangers / 2, "{metrics:?}");
    assert!(metrics.handshakes_failed - before.handshakes_failed > strangers / 4, "{metrics:?}");
    assert_eq!(metrics.sessions_started, 1 + before.sessions_started);
    has_all_its_slots(&bob);
}

#[test]
fn a_hello_and_a_confirm_of_an_earlier_handshake_prove_nothing() {
    let _alone = alone();
    let bob = start(narrow());
    let frames = recorded(&bob);
    wait_until("the recorded connection is over", || settled(&bob));
    let before = bob.metrics();
    let begin = Instant::now();
    for _ in 0..20 {
        let mut stranger = Stranger::dial(bob.local_addr().unwrap());
        assert!(stranger.say(&frames.concat()));
        assert_eq!(stranger.hear_out(), Some(CloseReason::BadSignature));
    }
    assert!(begin.elapsed() < Duration::from_secs(10), "whoever was refused and hangs up is let go at once");
    wait_until("each is counted", || bob.metrics().handshakes_failed == before.handshakes_failed + 20);
    assert_eq!(bob.metrics().sessions_started, before.sessions_started);
    has_all_its_slots(&bob);
}

#[test]
fn garbage_is_refused_and_leaves_nothing_behind() {
    const ROUNDS: u64 = 300;
    let _alone = alone();
    let bob = start(narrow());
    let mut random = fastrand::Rng::with_seed(11);
    let mut said_why = 0;
    for round in 0..ROUNDS {
        let mut stranger = Stranger::dial(bob.local_addr().unwrap());
        let mut garbage: Vec<u8> = (0..random.usize(0..2_000)).map(|_| random.u8(..)).collect();
        match round % 4 {
            0 => garbage.splice(0..0, *b"GET / HTTP/1.1\r\n\r\n").for_each(drop),
            // A hello by its header, with garbage in it.
            1 => garbage.splice(0..0, [0xff, 0x07, 0, 0, 4, 0, 0, 0]).for_each(drop),
            _ => {}
        }
        stranger.say(&garbage);
        stranger.finish();
        said_why += u64::from(stranger.hear_out() == Some(CloseReason::ProtocolError));
    }
    wait_until("each is counted", || bob.metrics().handshakes_failed + bob.metrics().refused == ROUNDS);
    assert!(said_why > ROUNDS / 2, "{said_why} of {ROUNDS} heard why");
    nothing_came_of_it(&bob);
    has_all_its_slots(&bob);
}

#[test]
fn silent_and_dripping_strangers_are_cut_by_the_deadline_and_good_peers_come_in_meanwhile() {
    let _alone = alone();
    let mut config = narrow();
    config.handshake_timeout = Duration::from_millis(400);
    let bob = start(config);
    let [hello, _] = recorded(&bob);
    wait_until("the recorded connection is over", || settled(&bob));
    let addr = bob.local_addr().unwrap();
    let mut silent = [Stranger::dial(addr), Stranger::dial(addr)];
    let mut dripping = Stranger::dial(addr);
    wait_until("all three are accepted", || bob.metrics().accepted == 4);
    let alice = start(plain());
    link(&alice, &bob).send("meanwhile").unwrap();
    assert_eq!(bob.recv_timeout(PATIENCE).unwrap().payload(), b"meanwhile");
    // A byte now and then does not buy time: the deadline is the whole handshake's.
    let mut dripped = hello.iter().cycle().take_while(|byte| {
        std::thread::sleep(Duration::from_millis(10));
        dripping.say(&[**byte])
    });
    dripped.by_ref().take(hello.len() - 1).for_each(drop);
    for stranger in silent.iter_mut().chain([&mut dripping]) {
        // The dripping one may have been reset: it said something after the goodbye.
        let reason = stranger.hear_out();
        assert!(matches!(reason, None | Some(CloseReason::HandshakeTimeout)), "{reason:?}");
    }
    wait_until("all three are counted", || bob.metrics().handshake_timeouts == 3);
    assert!(alice.shutdown(PATIENCE).is_clean());
    wait_until("the session has ended", || bob.metrics().sessions_ended == 1);
    has_all_its_slots(&bob);
}

#[test]
fn whoever_accepts_and_says_nothing_is_given_up_after_the_handshake_timeout() {
    let _alone = alone();
    let mut config = plain();
    config.handshake_timeout = Duration::from_millis(100);
    let alice = start(config);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let cause = refused(&alice, silent.local_addr().unwrap());
    assert_eq!(cause, DialCause::TimedOut(Duration::from_millis(100)));
    assert_eq!(alice.metrics().handshake_timeouts, 1);
    // It was told before it was hung up on.
    let mut stranger = Stranger::accept(&silent);
    assert!(stranger.hear().is_some_and(|hello| hello[4] == 4));
    assert_eq!(stranger.hear_out(), Some(CloseReason::HandshakeTimeout));
    nothing_came_of_it(&alice);
}

#[test]
#[cfg(unix)]
fn the_identity_is_in_the_data_folder_for_its_owner_alone_and_is_the_same_after_a_restart() {
    use std::os::unix::fs::PermissionsExt;
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("not/there/yet");
    let mut config = quick();
    config.data_dir = Some(data_dir.clone());
    let node = start(config.clone());
    let key = data_dir.join("identity.key");
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&key), mode(&data_dir)), (0o600, 0o700));
    let id = node.id();
    assert_eq!(Identity::from_pem(&std::fs::read_to_string(&key).unwrap()).unwrap().peer_id(), id);
    drop(node);
    assert_eq!(start(config.clone()).id(), id);
    // A key that others can read is not used, and nothing is left running.
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let Err(StartError::Identity { path, what }) = Node::builder().config(config).start() else { panic!("it started") };
    assert!(path.ends_with("identity.key") && what.contains("chmod 600"), "{path}: {what}");
}
