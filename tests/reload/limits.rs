//! Who has to go for a configuration: over lowered limits, and as a peer that is kept no longer.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use threadwire::config::{Closed, Config, Peer, TrustMode};
use threadwire::direct::PeersMap;
use threadwire::error::{CloseReason, ConnectError, DialCause, DisconnectReason, ReloadError};
use threadwire::{Event, Node, PeerEvent, PeerId, Watch};

use crate::common::{
    NOWHERE, PATIENCE, addr, alone, ended, handshaking, link, quick, reaches, start, wait_event, wait_until,
};
use crate::{Change, changed, nobody};

fn went(closed: &[Closed]) -> Vec<(PeerId, CloseReason)> {
    closed.iter().map(|closed| (closed.peer, closed.reason)).collect()
}

#[test]
fn sessions_over_a_lowered_limit_go_with_its_reason_those_that_began_last_first() {
    let _alone = alone();
    let limits: [(Change, CloseReason); 3] = [
        (|config| config.inbound = 1, CloseReason::TooMany),
        (|config| config.inbound_per_ip = Some(1), CloseReason::TooMany),
        (|config| config.max_threads = Some(6), CloseReason::NoResources),
    ];
    for (lower, reason) in limits {
        let config = quick();
        let bob = start(config.clone());
        let others: Vec<Node> = (0..3).map(|_| start(quick())).collect();
        for other in &others {
            other.connect(addr(&bob)).unwrap();
            bob.wait_connected(other.id(), PATIENCE).unwrap();
        }
        let report = bob.reload(&changed(&config, lower)).unwrap();
        assert_eq!(went(&report.closed), [(others[2].id(), reason), (others[1].id(), reason)]);
        for other in &others[1..] {
            assert_eq!(ended(other), DisconnectReason::Remote(reason));
        }
        reaches(&others[0], &bob);
        wait_until("the two have ended", || bob.sessions().len() == 1);
        // And nobody else comes in, until the limit is raised.
        let refused = others[1].connect(addr(&bob));
        let Err(ConnectError::Dial(errors)) = refused else { panic!("{refused:?}") };
        assert_eq!(errors[0].cause, DialCause::Refused(reason));
        assert_eq!(bob.reload(&config).unwrap().closed, []);
        others[1].connect(addr(&bob)).unwrap();
        assert_eq!(bob.metrics().sessions_ended, 2);
    }
}

#[test]
fn whoever_had_to_go_for_a_limit_stays_away_as_long_as_one_that_is_refused_for_it() {
    let _alone = alone();
    let limits: [Change; 2] = [|config| config.inbound = 1, |config| config.max_threads = Some(6)];
    for lower in limits {
        let config = quick();
        let (bob, first, last) = (start(config.clone()), start(quick()), start(quick()));
        for other in [&first, &last] {
            link(other, &bob);
            bob.wait_connected(other.id(), PATIENCE).unwrap();
        }
        let before = Instant::now();
        bob.reload(&changed(&config, lower)).unwrap();
        let next = || last.peers()[0].next_retry;
        wait_until("it is to be dialled again", || next().is_some());
        assert!(next() > Some(before + Duration::from_secs(1)), "{:?}", last.peers());
    }
}

#[test]
fn of_peers_that_are_kept_as_many_stay_as_may_be_dialled_and_the_rest_wait_for_a_place() {
    let _alone = alone();
    let config = quick();
    let (alice, others) = (start(config.clone()), [start(quick()), start(quick()), start(quick())]);
    others.iter().for_each(|other| drop(link(&alice, other)));
    let one = changed(&config, |config| config.outbound = 1);
    let closed = alice.reload(&one).unwrap().closed;
    let too_many = CloseReason::TooMany;
    assert_eq!(went(&closed), [(others[2].id(), too_many), (others[1].id(), too_many)]);
    wait_until("one is left", || alice.sessions().len() == 1);
    assert_eq!(ended(&others[2]), DisconnectReason::Remote(too_many));
    reaches(&alice, &others[0]);
    assert_eq!(alice.metrics().sessions_started, 3);
    // What is sent to the others waits, and goes when there is a place again.
    alice.send(others[1].id(), "late").unwrap();
    alice.reload(&config).unwrap();
    assert_eq!(others[1].recv_timeout(PATIENCE).unwrap().payload(), b"late");
    alice.wait_connected(others[2].id(), PATIENCE).unwrap();
}

#[test]
fn silent_strangers_over_a_lowered_limit_go_and_no_session_does() {
    let _alone = alone();
    for lower in [(|config| config.half_open = 1) as Change, |config| config.half_open_per_ip = Some(1)] {
        let config = quick();
        let (alice, bob) = (start(quick()), start(config.clone()));
        link(&alice, &bob);
        bob.wait_connected(alice.id(), PATIENCE).unwrap();
        let strangers: Vec<TcpStream> = (0..4).map(|_| TcpStream::connect(addr(&bob)).unwrap()).collect();
        wait_until("they are in", || handshaking(&bob) == 4);
        assert_eq!(bob.reload(&changed(&config, lower)).unwrap().closed, []);
        assert_eq!(handshaking(&bob), 1);
        assert_eq!(bob.metrics().evicted, 3);
        reaches(&alice, &bob);
        drop(strangers);
    }
}

#[test]
fn peers_of_the_configuration_come_move_and_go_and_those_of_the_application_stay() {
    let _alone = alone();
    let config = quick();
    let alice = start(config.clone());
    let [bob, carol, dave] = [start(quick()), start(quick()), start(quick())];
    let peer = |name: &str, node: &Node, at: SocketAddr| Peer::new(name, node.id(), [at.into()]);
    let with = |peers: Vec<Peer>| changed(&config, |config| config.peers = peers);
    link(&alice, &carol);
    let nowhere: SocketAddr = "127.0.0.1:1".parse().unwrap();
    // Carol is the application's: what the configuration says of her is nothing to her.
    let report = alice.reload(&with(vec![peer("bob", &bob, nowhere), peer("carol", &carol, nowhere)])).unwrap();
    assert_eq!((report.changed.as_slice(), report.closed.len()), (&["peer"][..], 0));
    assert_eq!(alice.peer_named("bob").unwrap().id(), bob.id());
    wait_event(&alice, "bob is not there", |event| match event {
        Event::DialFailed { peer, .. } => (peer == Some(bob.id())).then_some(()),
        _ => None,
    });
    alice.reload(&with(vec![peer("robert", &bob, addr(&bob))])).unwrap();
    alice.wait_connected(bob.id(), PATIENCE).unwrap();
    assert!(matches!(alice.peer_named("bob"), Err(ConnectError::UnknownName(_))));
    // An address more, and another order: the session stays.
    let both = Peer::new("bob", bob.id(), [nowhere.into(), addr(&bob).into()]);
    alice.reload(&with(vec![both, peer("dave", &dave, addr(&dave))])).unwrap();
    alice.wait_connected(dave.id(), PATIENCE).unwrap();
    reaches(&alice, &bob);
    let report = alice.reload(&with(vec![peer("dave", &dave, addr(&dave))])).unwrap();
    assert_eq!(went(&report.closed), [(bob.id(), CloseReason::Requested)]);
    assert_eq!(ended(&bob), DisconnectReason::Remote(CloseReason::Requested));
    reaches(&alice, &carol);
    reaches(&alice, &dave);
    assert_eq!(bob.metrics().sessions_started, 1);
    // The application takes one over: it is its own from then on.
    alice.add_peer(dave.id(), dave.local_addr()).unwrap();
    assert_eq!(alice.reload(&config).unwrap().closed, []);
    reaches(&alice, &dave);
}

/// Links there may be beyond the connections, and as many peers as fill them up with `more`, which nobody has.
fn crowd(node: &Node, more: usize) {
    for n in 0..1024 + more as u64 {
        let mut id = [7; 32];
        id[..8].copy_from_slice(&n.to_le_bytes());
        node.add_peer(PeerId::from_bytes(id), NOWHERE).unwrap();
    }
}

/// With room for so many peers that are known and away: 1024 beyond its connections.
fn with_room(connections: usize) -> Config {
    changed(&quick(), |config| (config.inbound, config.outbound, config.unknown_peers) = (1, connections - 1, 0))
}

#[test]
fn limits_below_the_peers_that_are_known_are_taken_and_only_more_peers_are_refused() {
    let _alone = alone();
    let (wide, narrow) = (with_room(20), with_room(2));
    let bob = start(wide.clone());
    crowd(&bob, 20);
    assert_eq!(bob.reload(&narrow).unwrap().changed, ["outbound"]);
    // One that is known is no more; one that is not is one too many.
    let mut known = [7; 32];
    known[..8].copy_from_slice(&[0; 8]);
    let with = |id| {
        let peer = Peer::new("north", id, ["127.0.0.1:1".parse().unwrap()]);
        changed(&narrow, |config| config.peers = vec![peer])
    };
    let error = bob.reload(&with(nobody())).unwrap_err();
    assert!(matches!(&error, ReloadError::NotAllowed { field, .. } if field == "peer"), "{error}");
    assert_eq!(bob.reload(&with(PeerId::from_bytes(known))).unwrap().changed, ["peer"]);
    assert_eq!(bob.reload(&wide).unwrap().changed, ["outbound", "peer"]);
}

#[test]
fn a_peer_that_is_neither_trusted_nor_wanted_any_more_is_told_the_first_and_reported_once() {
    let _alone = alone();
    for _ in 0..20 {
        let (bob, mut config) = (start(quick()), quick());
        config.security.trust = TrustMode::Listed;
        let nobody = config.clone();
        config.peers = vec![Peer::new("bob", bob.id(), [addr(&bob).into()])];
        let alice = start(config);
        alice.wait_connected(bob.id(), PATIENCE).unwrap();
        let report = alice.reload(&nobody).unwrap();
        assert_eq!(went(&report.closed), [(bob.id(), CloseReason::Untrusted)]);
        assert_eq!(ended(&bob), DisconnectReason::Remote(CloseReason::Untrusted));
    }
}

#[test]
fn a_raised_limit_brings_in_the_peers_of_the_map_that_were_left_out() {
    let _alone = alone();
    let (carol, map) = (start(quick()), Watch::new(PeersMap::new()));
    let alice = Node::builder().config(with_room(2)).peers_map(&map).start().unwrap();
    crowd(&alice, 2);
    map.update(|peers| drop(peers.insert(carol.id(), vec![addr(&carol).into()])));
    // Whoever takes a peer away has said what the map says before: it is heard then.
    let mut last = [7; 32];
    last[..8].copy_from_slice(&[0; 8]);
    alice.remove_peer(PeerId::from_bytes(last)).unwrap();
    wait_event(&alice, "the map is heard", |event| match event {
        Event::Peer(PeerEvent::SenderStopped { peer, .. }) => (peer == PeerId::from_bytes(last)).then_some(()),
        _ => None,
    });
    assert!(alice.peers().iter().all(|peer| peer.id != carol.id()), "there is no room for her");
    alice.reload(&with_room(3)).unwrap();
    alice.wait_connected(carol.id(), PATIENCE).unwrap();
    reaches(&alice, &carol);
}

#[test]
fn a_session_that_is_leaving_already_makes_room_for_the_rest_and_is_not_reported_again() {
    let _alone = alone();
    let inbound = |most| changed(&quick(), |config| config.inbound = most);
    // Its handler keeps it from answering a goodbye: it is there for a second, or until this test lets it go.
    let (hold, held) = crossbeam_channel::bounded::<()>(0);
    let (tell, runs) = crossbeam_channel::unbounded();
    let busy = Node::builder().config(quick()).handler(move |_, _| {
        tell.send(()).unwrap();
        let _ = held.recv();
    });
    let (busy, idle) = (busy.start().unwrap(), start(quick()));
    let connect = |from: &Node, to: &Node| {
        from.connect(addr(to)).unwrap();
        to.wait_connected(from.id(), PATIENCE).unwrap();
    };
    let occupy = |by: &Node| {
        by.send(busy.id(), "busy").unwrap();
        runs.recv_timeout(PATIENCE).unwrap();
    };
    let bob = start(inbound(9));
    connect(&idle, &bob);
    connect(&busy, &bob);
    occupy(&bob);
    assert_eq!(went(&bob.reload(&inbound(1)).unwrap().closed), [(busy.id(), CloseReason::TooMany)]);
    assert_eq!(bob.reload(&changed(&inbound(1), |config| config.half_open = 9)).unwrap().closed, []);
    // Whoever the application has sent away.
    let carol = start(inbound(9));
    connect(&busy, &carol);
    connect(&idle, &carol);
    occupy(&carol);
    carol.disconnect(busy.id(), CloseReason::Requested).unwrap();
    assert_eq!(carol.reload(&inbound(1)).unwrap().closed, []);
    for node in [&bob, &carol] {
        reaches(&idle, node);
    }
    drop(hold);
}
