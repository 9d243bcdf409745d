//! What a node tells of its peers.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::time::{Duration, Instant};

use threadwire::ident::{ConnectionId, SessionKind, SessionStatus};
use threadwire::{Config, Node, PeerId, PeerInfo};

mod common;
use common::proxy::Proxy;
use common::{NOWHERE, PATIENCE, alone, identities, link, quick, start, wait_until};

fn of(node: &Node, peer: PeerId) -> PeerInfo {
    node.peers().into_iter().find(|info| info.id == peer).unwrap()
}

fn beating(every: Duration) -> Config {
    let mut config = quick();
    config.heartbeat = every;
    config
}

#[test]
fn both_ends_of_a_connection_tell_the_same_of_it_from_their_side() {
    let _alone = alone();
    let mut config = quick();
    config.advertise = Some("192.0.2.7:50005".parse().unwrap());
    let (bob, alice) = (start(quick()), start(config));
    let begin = Instant::now();
    link(&alice, &bob);
    bob.wait_connected(alice.id(), PATIENCE).unwrap();
    let (there, here) = (of(&alice, bob.id()), of(&bob, alice.id()));
    for (info, kind) in [(&there, SessionKind::Outbound), (&here, SessionKind::Inbound)] {
        assert_eq!((info.conn, info.kind), (Some(ConnectionId(1)), Some(kind)));
        assert_eq!(info.status, Some(SessionStatus::Established));
        assert!(info.stats.connected && info.queued == 0);
        let since = info.since.unwrap();
        assert!(since >= begin && since <= Instant::now());
    }
    assert_eq!(there.remote_addr, bob.local_addr());
    assert_eq!((there.local_addr, there.remote_addr), (here.remote_addr, here.local_addr));
    assert_eq!((there.advertised, here.advertised), (bob.local_addr(), Some("192.0.2.7:50005".parse().unwrap())));
    assert!(alice.shutdown(PATIENCE).is_clean());
    wait_until("the connection is gone", || of(&bob, alice.id()).conn.is_none());
    let gone = of(&bob, alice.id());
    assert_eq!((gone.kind, gone.status, gone.remote_addr, gone.since, gone.rtt), (None, None, None, None, None));
    assert_eq!(gone.advertised, here.advertised, "where it was last");
}

#[test]
fn what_waits_for_a_peer_that_is_away_is_told() {
    let _alone = alone();
    let alice = start(quick());
    let mut ids = identities().map(|identity| identity.peer_id());
    for (n, id) in ids.iter().enumerate() {
        let away = alice.add_peer(*id, NOWHERE).unwrap();
        (0..=n).for_each(|_| away.send("later").unwrap());
    }
    assert!(alice.peers().iter().all(|info| info.oldest_age.is_some()));
    let told: Vec<_> = alice.peers().into_iter().map(|info| (info.id, info.queued, info.conn)).collect();
    ids.sort();
    assert_eq!(told, [(ids[0], 1, None), (ids[1], 2, None)]);
    alice.shutdown(Duration::ZERO);
}

#[test]
fn both_sides_learn_the_round_trip_on_an_idle_and_on_a_busy_connection() {
    const EVERY: Duration = Duration::from_millis(50);
    let _alone = alone();
    let (bob, alice) = (start(beating(EVERY)), start(beating(EVERY)));
    let to_bob = link(&alice, &bob);
    bob.wait_connected(alice.id(), PATIENCE).unwrap();
    let rtts = || [of(&alice, bob.id()).rtt, of(&bob, alice.id()).rtt];
    wait_until("both know it", || rtts().iter().all(Option::is_some));
    // Loopback, on a machine that may be busy: far below the heartbeat's own rhythm is enough to see that waits between
    // heartbeats do not count.
    wait_until("it is short", || rtts().into_iter().flatten().all(|rtt| rtt < EVERY / 5));
    // While messages flow all the time, heartbeats come too.
    let before = alice.metrics().traffic.bytes_received;
    let first = rtts();
    let deadline = Instant::now() + PATIENCE;
    while rtts().iter().zip(&first).any(|(now, first)| now == first) {
        assert!(Instant::now() < deadline, "not measured again: {first:?}");
        to_bob.send("busy").unwrap();
        while bob.recv_timeout(Duration::ZERO).is_ok() {}
    }
    assert!(alice.metrics().traffic.bytes_received > before);
}

#[test]
fn a_connection_through_a_proxy_is_told_as_the_proxys() {
    let _alone = alone();
    let (bob, alice) = (start(quick()), start(quick()));
    let proxy = Proxy::to(bob.local_addr().unwrap());
    alice.add_peer(bob.id(), [proxy.addr()]).unwrap();
    alice.wait_connected(bob.id(), PATIENCE).unwrap();
    let info = of(&alice, bob.id());
    assert_eq!((info.remote_addr, info.advertised), (Some(proxy.addr()), bob.local_addr()));
}
