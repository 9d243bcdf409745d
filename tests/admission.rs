//! Where a node listens, whom it lets in, and what it does at its limits: nobody is locked out by who says nothing, and
//! nothing is left behind.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use threadwire::config::Exposure;
use threadwire::error::{CloseReason, ConnectError, DialCause, StartError};
use threadwire::ident::{SessionKind, SessionStatus};
use threadwire::metrics::Refusal;
use threadwire::{Config, Event, Node};

mod common;
use common::limits::{descriptors, raise_descriptors};
use common::stranger::Stranger;
use common::{
    PATIENCE, addr, alone, handshaking, link, node_threads, nothing_left, plain, quick, reaches, refusal, start,
    wait_event, wait_until,
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn two_thousand_silent_connections_do_not_keep_a_good_peer_out() {
    // Both ends of the strangers' connections are in this process, but the node keeps no more than it may.
    const WANTED: u64 = 2_000;
    const OTHERS: u64 = 600;
    let _alone = alone();
    let possible = raise_descriptors(WANTED + OTHERS);
    let count = WANTED.min(possible.saturating_sub(OTHERS)).max(300);
    if count < WANTED {
        println!("scaled down to {count} silent connections: no more than {possible} descriptors here");
    }
    let before = descriptors();
    let mut config = quick();
    // Silence alone does not give a place back while this test runs.
    config.handshake_timeout = Duration::from_secs(300);
    let half_open = config.half_open;
    let bob = start(config);
    let alice = start(quick());
    let strangers: Vec<_> = (0..count).map(|_| TcpStream::connect(addr(&bob)).unwrap()).collect();
    let full = || bob.metrics().accepted == count && handshaking(&bob) == half_open;
    wait_until("all are accepted, and as many of them kept as there may be", full);
    let begin = Instant::now();
    alice.connect(addr(&bob)).unwrap();
    let took = begin.elapsed();
    reaches(&alice, &bob);
    println!("{count} silent connections, a good peer in after {took:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    let metrics = bob.metrics();
    assert_eq!(metrics.evicted, count + 1 - half_open as u64);
    assert_eq!((metrics.refused, metrics.handshake_timeouts), (0, 0));
    assert_eq!(handshaking(&bob), half_open - 1);

    drop(strangers);
    wait_until("only the good peer is left", || bob.sessions().len() == 1);
    assert_eq!(bob.sessions()[0].peer, Some(alice.id()));
    assert_eq!(bob.metrics().handshakes_failed, count);
    assert!(alice.shutdown(PATIENCE).is_clean());
    nothing_left(&bob);
    drop((alice, bob));
    wait_until("no descriptor is left", || descriptors() == before);
}

#[test]
fn a_full_house_gives_no_place_of_a_session_away_but_those_of_the_silent() {
    let _alone = alone();
    let mut config = plain();
    (config.inbound, config.handshake_timeout) = (2, Duration::from_secs(300));
    let bob = start(config);
    let nodes: Vec<Node> = (0..3).map(|_| start(plain())).collect();
    let mut silent: Vec<Stranger> = (0..2).map(|_| Stranger::dial(addr(&bob))).collect();
    wait_until("both strangers have a place", || handshaking(&bob) == 2);
    nodes[0].connect(addr(&bob)).unwrap();
    let goodbye = silent[0].hear_goodbye().unwrap();
    assert_eq!((CloseReason::from_code(goodbye.reason), goodbye.retry_after_ms), (CloseReason::TooMany, 1_000));
    wait_until("the younger one stays", || handshaking(&bob) == 1);
    assert_eq!((bob.metrics().evicted, bob.sessions().len()), (1, 2));
    nodes[1].connect(addr(&bob)).unwrap();
    assert_eq!(silent[1].hear_out(), Some(CloseReason::TooMany));
    // Two sessions, and nobody unproven: the next one has to wait, and is told.
    wait_until("both are established", || handshaking(&bob) == 0);
    assert_eq!(refusal(&nodes[2], addr(&bob)), DialCause::Refused(CloseReason::TooMany));
    let goodbye = Stranger::dial(addr(&bob)).hear_goodbye().unwrap();
    assert_eq!((CloseReason::from_code(goodbye.reason), goodbye.retry_after_ms), (CloseReason::TooMany, 5_000));
    let metrics = bob.metrics();
    assert_eq!((metrics.refused, metrics.refused_by.get(Refusal::Inbound), metrics.evicted), (2, 2, 2));
    reaches(&nodes[0], &bob);
    reaches(&nodes[1], &bob);
    assert!(nodes[0].shutdown(PATIENCE).is_clean());
    wait_until("its place is free", || bob.sessions().len() == 1);
    nodes[2].connect(addr(&bob)).unwrap();
    reaches(&nodes[2], &bob);
    drop((nodes, silent));
    nothing_left(&bob);
}

#[test]
fn one_address_has_no_more_than_its_share_and_others_have_theirs() {
    let _alone = alone();
    let mut config = plain();
    (config.half_open_per_ip, config.inbound_per_ip) = (Some(2), Some(3));
    config.handshake_timeout = Duration::from_secs(300);
    let bob = start(config);
    let nodes: Vec<Node> = (0..4).map(|_| start(plain())).collect();
    let silent: Vec<Stranger> = (0..2).map(|_| Stranger::dial(addr(&bob))).collect();
    wait_until("both strangers have a place", || handshaking(&bob) == 2);
    assert_eq!(refusal(&nodes[0], addr(&bob)), DialCause::Refused(CloseReason::TooMany));
    let goodbye = Stranger::dial(addr(&bob)).hear_goodbye().unwrap();
    assert_eq!((CloseReason::from_code(goodbye.reason), goodbye.retry_after_ms), (CloseReason::TooMany, 1_000));
    let metrics = bob.metrics();
    assert_eq!((metrics.refused, metrics.refused_by.get(Refusal::HalfOpenPerIp)), (2, 2));
    // The next address is another one, in the same neighbourhood or not.
    let elsewhere = Stranger::dial_from(ip("127.0.0.2"), addr(&bob));
    wait_until("somebody from elsewhere has a place", || handshaking(&bob) == 3);
    assert!(bob.sessions().iter().any(|session| session.remote_addr.ip() == ip("127.0.0.2")));
    drop(silent);
    wait_until("the silent ones have gone", || handshaking(&bob) == 1);

    for node in &nodes[..3] {
        node.connect(addr(&bob)).unwrap();
    }
    assert_eq!(refusal(&nodes[3], addr(&bob)), DialCause::Refused(CloseReason::TooMany));
    let metrics = bob.metrics();
    assert_eq!((metrics.refused, metrics.refused_by.get(Refusal::InboundPerIp), metrics.evicted), (3, 1, 0));
    assert!(elsewhere.remains(), "whoever came from elsewhere has nothing to do with it");
    assert!(nodes[0].shutdown(PATIENCE).is_clean());
    wait_until("its place is free", || bob.sessions().len() == 3);
    nodes[3].connect(addr(&bob)).unwrap();
    reaches(&nodes[3], &bob);
    drop((nodes, elsewhere));
    nothing_left(&bob);
}

#[test]
fn dials_under_way_count_as_outbound_and_give_their_place_back() {
    let _alone = alone();
    let mut config = quick();
    (config.outbound, config.handshake_timeout) = (1, Duration::from_secs(300));
    let (alice, bob) = (start(config), start(quick()));
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    std::thread::scope(|scope| {
        let under_way = scope.spawn(|| refusal(&alice, silent.local_addr().unwrap()));
        let stranger = Stranger::accept(&silent);
        let sessions = alice.sessions();
        let kinds: Vec<_> = sessions.iter().map(|session| (session.kind, session.status, session.peer)).collect();
        assert_eq!(kinds, [(SessionKind::Outbound, SessionStatus::Handshaking, None)]);
        assert_eq!(sessions[0].remote_addr, silent.local_addr().unwrap());
        assert_eq!(alice.connect(addr(&bob)).unwrap_err(), ConnectError::TooMany);
        assert_eq!((alice.metrics().dials, alice.metrics().dials_failed), (1, 0), "it was no dial");
        drop(stranger);
        under_way.join().unwrap();
    });
    assert_eq!(alice.sessions(), []);
    alice.connect(addr(&bob)).unwrap();
    reaches(&alice, &bob);
    let [session] = alice.sessions()[..] else { panic!("{:?}", alice.sessions()) };
    assert_eq!((session.status, session.peer), (SessionStatus::Established, Some(bob.id())));
    assert_eq!(session.local_addr.unwrap(), bob.sessions()[0].remote_addr);
    drop(bob);
    nothing_left(&alice);
}

/// Threads of sessions with peers other than `node`: in a test with one node in the middle, that node's own.
fn session_threads_of(node: &Node) -> usize {
    let own = node.id().short();
    let of_sessions = |name: &&String| name.starts_with("tx-") || name.starts_with("rx-");
    node_threads().iter().filter(of_sessions).filter(|name| !name.ends_with(&own)).count()
}

#[test]
fn a_thread_budget_of_eight_is_two_peers_and_the_third_is_refused_and_the_others_untouched() {
    let _alone = alone();
    let mut config = plain();
    (config.max_threads, config.handshake_timeout) = (Some(8), Duration::from_secs(300));
    let bob = start(config);
    let nodes: Vec<Node> = (0..3).map(|_| start(plain())).collect();
    nodes[0].connect(addr(&bob)).unwrap();
    // Who says nothing takes the last two threads of the budget, and gives way.
    let mut silent = Stranger::dial(addr(&bob));
    wait_until("the stranger has a place", || handshaking(&bob) == 1);
    nodes[1].connect(addr(&bob)).unwrap();
    assert_eq!(silent.hear_out(), Some(CloseReason::TooMany));
    wait_until("both are established", || handshaking(&bob) == 0);
    // A thread takes its name when it runs.
    wait_until("four threads serve the two", || session_threads_of(&bob) == 4);
    for _ in 0..5 {
        assert_eq!(refusal(&nodes[2], addr(&bob)), DialCause::Refused(CloseReason::NoResources));
    }
    // Nor does the node dial.
    assert_eq!(bob.connect(addr(&nodes[2])).unwrap_err(), ConnectError::TooMany);
    let metrics = bob.metrics();
    assert_eq!((metrics.refused, metrics.refused_by.get(Refusal::Threads), metrics.dials), (5, 5, 0));
    assert_eq!((metrics.spawns_failed, metrics.sessions_ended), (0, 0));
    assert_eq!(session_threads_of(&bob), 4);
    reaches(&nodes[0], &bob);
    reaches(&nodes[1], &bob);
    assert!(nodes[0].shutdown(PATIENCE).is_clean());
    wait_until("its threads are free", || bob.sessions().len() == 1);
    bob.connect(addr(&nodes[2])).unwrap();
    reaches(&bob, &nodes[2]);
    drop(nodes);
    nothing_left(&bob);
    // A thread is gone a moment after its session.
    wait_until("its threads are gone", || session_threads_of(&bob) == 0);
}

#[test]
fn a_listen_address_in_use_starts_nothing_and_leaves_nothing() {
    let _alone = alone();
    let before = descriptors();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_addr = taken.local_addr().unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut config = quick();
    config.listen = vec![free, taken_addr, "127.0.0.1:0".parse().unwrap()];
    match Node::builder().config(config.clone()).start() {
        Err(StartError::Listen { addr, source }) => {
            assert_eq!((addr, source.kind()), (taken_addr, std::io::ErrorKind::AddrInUse));
        }
        other => panic!("{other:?}"),
    }
    // The listener that was open already is closed again.
    drop(TcpListener::bind(free).unwrap());
    drop(taken);
    wait_until("nothing is left", || descriptors() == before && node_threads().is_empty());
    let node = start(config);
    assert_eq!(node.local_addrs()[..2], [free, taken_addr]);
}

/// Where peers are told to dial a node: what one of them is told.
fn told_by(node: &Node, dial: SocketAddr) -> Option<SocketAddr> {
    let peer = start(quick());
    peer.connect(dial).unwrap();
    wait_event(&peer, "it is connected", |event| match event {
        Event::Connected { peer, advertised, .. } if peer == node.id() => Some(advertised),
        _ => None,
    })
}

#[test]
fn a_node_listens_to_all_its_addresses_of_both_families() {
    let _alone = alone();
    let before = descriptors();
    let v6 = TcpListener::bind("[::1]:0").is_ok();
    let mut listen = vec!["127.0.0.1:0".parse().unwrap(), "127.0.0.2:0".parse().unwrap()];
    match v6 {
        true => listen.push("[::1]:0".parse().unwrap()),
        false => println!("without IPv6: this machine has none"),
    }
    let mut config = quick();
    config.listen = listen.clone();
    let bob = start(config);
    let bound = bob.local_addrs();
    assert_eq!(bob.local_addr(), Some(bound[0]));
    assert!(bound.iter().zip(&listen).all(|(bound, asked)| bound.ip() == asked.ip() && bound.port() > 0), "{bound:?}");
    assert_eq!(bound.len(), listen.len());
    for (n, at) in bound.iter().enumerate() {
        let node = start(quick());
        node.connect(*at).unwrap();
        reaches(&node, &bob);
        let session = bob.sessions().into_iter().find(|session| session.peer == Some(node.id())).unwrap();
        assert_eq!((session.local_addr, session.remote_addr.ip()), (Some(*at), session.remote_addr.ip()));
        assert!(node.shutdown(PATIENCE).is_clean());
        wait_until("it has gone", || bob.metrics().sessions_ended == n as u64 + 1);
    }
    assert_eq!(bob.metrics().accepted, bound.len() as u64);
    drop(bob);
    wait_until("all listeners are closed", || descriptors() == before);
    assert!(bound.iter().all(|at| TcpStream::connect(at).is_err()));
}

#[test]
fn peers_are_told_the_advertised_address_or_the_first_bound_one_that_means_something() {
    let _alone = alone();
    let any: SocketAddr = "0.0.0.0:0".parse().unwrap();
    let local: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let at = |node: &Node| SocketAddr::new(local.ip(), addr(node).port());
    let node = |listen: &[SocketAddr], advertise: Option<SocketAddr>| {
        let mut config = quick();
        (config.listen, config.advertise) = (listen.to_vec(), advertise);
        config.security.public = vec![Exposure::Plain, Exposure::Open];
        start(config)
    };
    let wildcard = node(&[any], None);
    assert_eq!(told_by(&wildcard, at(&wildcard)), None);
    let both = node(&[any, local], None);
    assert_eq!(told_by(&both, at(&both)), Some(both.local_addrs()[1]));
    let public: SocketAddr = "192.0.2.7:4000".parse().unwrap();
    let forwarded = node(&[any, local], Some(public));
    assert_eq!(told_by(&forwarded, at(&forwarded)), Some(public));
}

#[test]
fn both_wildcards_are_listened_to_at_one_port() {
    let _alone = alone();
    if TcpListener::bind("[::1]:0").is_err() {
        return println!("skipped: this machine has no IPv6");
    }
    // A port that is free in both families; another process may be faster, so it is tried again.
    let bob = (0..20).find_map(|_| {
        let port = TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
        let mut config = quick();
        config.listen = vec![(ip("0.0.0.0"), port).into(), (ip("::"), port).into()];
        config.security.public = vec![Exposure::Plain, Exposure::Open];
        Node::builder().config(config).start().ok()
    });
    let bob = bob.expect("both wildcards can be listened to together");
    let port = addr(&bob).port();
    for host in ["127.0.0.1", "::1"] {
        let node = start(quick());
        node.connect(SocketAddr::from((ip(host), port))).unwrap();
        reaches(&node, &bob);
    }
}

#[test]
fn a_configuration_of_a_list_of_addresses_starts_a_node() {
    let _alone = alone();
    let channel = if cfg!(feature = "tls") { "tls" } else { "plain" };
    let text = format!("listen = [\"127.0.0.1:0\", \"127.0.0.1:0\"]\nsecurity.channel = \"{channel}\"\n");
    let config = Config::parse(&text, "x").unwrap();
    let bob = start(config);
    let [first, second] = bob.local_addrs()[..] else { panic!("{:?}", bob.local_addrs()) };
    assert_ne!(first, second);
    let alice = start(quick());
    let to_bob = alice.connect(second).unwrap();
    to_bob.send("by the second").unwrap();
    assert_eq!(bob.recv_timeout(PATIENCE).unwrap().payload(), b"by the second");
    // And a link that is kept goes to the first.
    let carol = start(quick());
    link(&carol, &bob);
}
