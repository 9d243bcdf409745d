//! The live map of peers: who appears is connected, who moves is followed, who vanishes is let go, at once.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use threadwire::direct::{PeerData, PeersMap, RESOLVE_RETRY_TIMEOUT, StopReason};
use threadwire::error::CloseReason;
use threadwire::handshake::Identity;
use threadwire::metrics::Ends;
use threadwire::{Address, Config, Event, Node, Outcome, PeerEvent, PeerId, SendOptions, Watch};

mod common;
use common::ledger::{Ledger, Verdict, numbered};
use common::names::Names;
use common::{PATIENCE, addr, alone, base, identities, quick, reaches, start, wait_event, wait_until};

/// A configuration of a node that dials again only if it has another reason than time.
fn patient() -> Config {
    let mut config = base();
    (config.backoff.base, config.backoff.cap) = (Duration::from_secs(3600), Duration::from_secs(3600));
    config
}

fn following(config: Config, map: &Watch<PeersMap>) -> Node {
    Node::builder().config(config).peers_map(map).start().unwrap()
}

/// The map says from now on that this peer is there.
fn say(map: &Watch<PeersMap>, id: PeerId, addrs: &[SocketAddr]) {
    let places: Vec<PeerData> = addrs.iter().copied().map(PeerData::from).collect();
    map.update(|peers| drop(peers.insert(id, places.clone())));
}

fn unsay(map: &Watch<PeersMap>, id: PeerId) {
    map.update(|peers| drop(peers.remove(&id)));
}

/// A node that listens at two places.
fn at_two_places() -> (Node, [SocketAddr; 2]) {
    let mut config = quick();
    config.listen.push(config.listen[0]);
    let node = start(config);
    let places = [node.local_addrs()[0], node.local_addrs()[1]];
    (node, places)
}

/// The lives of one identity, one after the other.
struct Lives {
    id: PeerId,
    folder: tempfile::TempDir,
}

impl Lives {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { id: Identity::load_or_create(folder.path()).unwrap().peer_id(), folder }
    }

    fn next(&self) -> Node {
        let mut config = quick();
        config.data_dir = Some(self.folder.path().to_owned());
        start(config)
    }
}

/// Where the present session with a peer leads.
fn place_of(node: &Node, id: PeerId) -> Option<SocketAddr> {
    node.peers().iter().find(|peer| peer.id == id).and_then(|peer| peer.remote_addr)
}

fn stopped(node: &Node, id: PeerId) -> (Option<SocketAddr>, u64, StopReason) {
    wait_event(node, "a sender stopped", |event| match event {
        Event::Peer(PeerEvent::SenderStopped { peer, addr, generation, reason, .. }) if peer == id => {
            Some((addr, generation, reason))
        }
        _ => None,
    })
}

fn resolved(node: &Node, id: PeerId) -> (Vec<SocketAddr>, u64) {
    wait_event(node, "addresses are known", |event| match event {
        Event::Peer(PeerEvent::AddrsResolved { peer, addrs, generation, .. }) if peer == id => {
            Some((addrs, generation))
        }
        _ => None,
    })
}

#[test]
fn who_appears_is_connected_and_who_vanishes_is_let_go_and_what_waits_is_kept() {
    let _alone = alone();
    let map = Watch::new(PeersMap::new());
    let (alice, bob) = (following(patient(), &map), start(quick()));
    // Nobody knows it yet: this waits.
    alice.send(bob.id(), "early").unwrap();
    say(&map, bob.id(), &[addr(&bob)]);
    assert_eq!(bob.recv_timeout(PATIENCE).unwrap().payload(), b"early");
    let (addrs, generation) = resolved(&alice, bob.id());
    assert_eq!(addrs, [addr(&bob)]);
    unsay(&map, bob.id());
    assert_eq!(stopped(&alice, bob.id()), (Some(addr(&bob)), generation, StopReason::Vanished));
    let reason = wait_event(&bob, "told why", |event| match event {
        Event::Disconnected { reason, .. } => Some(reason.to_string()),
        _ => None,
    });
    assert!(reason.contains(&CloseReason::Requested.to_string()), "{reason}");
    let to_bob = alice.peer(bob.id()).unwrap();
    wait_until("it is let go", || !to_bob.is_connected());
    to_bob.send("for later").unwrap();
    say(&map, bob.id(), &[addr(&bob)]);
    assert_eq!(bob.recv_timeout(PATIENCE).unwrap().payload(), b"for later");
    let (_, next) = resolved(&alice, bob.id());
    assert!(next > generation, "another sender: word of the first one is no word of it");
}

#[test]
fn a_peer_that_moves_is_followed_and_the_old_session_goes_when_the_new_one_is_there() {
    let _alone = alone();
    let map = Watch::new(PeersMap::new());
    let (bob, [first, second]) = at_two_places();
    say(&map, bob.id(), &[first]);
    let alice = following(patient(), &map);
    let to_bob = alice.wait_connected(bob.id(), PATIENCE).unwrap();
    let (ledger, mut next) = (Ledger::default(), 0);
    for place in [second, first, second, first] {
        assert_ne!(place_of(&alice, bob.id()), Some(place));
        say(&map, bob.id(), &[place]);
        // Messages flow while it moves.
        wait_until("it has moved", || {
            to_bob.send(numbered(next, 100)).unwrap();
            next += 1;
            let came = bob.recv_timeout(PATIENCE).unwrap();
            ledger.enter(came.payload(), came.possible_repeat());
            place_of(&alice, bob.id()) == Some(place)
        });
        let (addr, old, reason) = stopped(&alice, bob.id());
        assert_eq!((addr.is_some(), reason), (true, StopReason::Moved));
        let (addrs, new) = resolved(&alice, bob.id());
        assert_eq!((addrs, new > old), (vec![place], true));
        wait_until("one session is left", || alice.sessions().len() == 1);
    }
    assert_eq!(ledger.verdict(), Verdict::perfect(next));
    let metrics = alice.metrics();
    // One that came while the session before it was still being made was a duplicate, and was dialled again.
    assert_eq!(metrics.dials - metrics.dials_failed, 5);
    let Ends { local, remote, .. } = &metrics.dials_failed_by.handshake;
    let early = local.get(CloseReason::Duplicate) + remote.get(CloseReason::Duplicate);
    assert_eq!(metrics.dials_failed, early, "{:?}", metrics.dials_failed_by);
}

#[test]
fn a_process_that_comes_back_elsewhere_is_found_by_the_map_alone() {
    let _alone = alone();
    let map = Watch::new(PeersMap::new());
    let alice = following(patient(), &map);
    let lives = Lives::new();
    let id = lives.id;
    let mut sent = Vec::new();
    for _ in 0..4 {
        let bob = lives.next();
        say(&map, id, &[addr(&bob)]);
        alice.wait_connected(id, PATIENCE).unwrap();
        if !sent.is_empty() {
            assert_eq!(bob.recv_timeout(PATIENCE).unwrap().payload(), b"in between");
        }
        reaches(&alice, &bob);
        assert!(bob.shutdown(PATIENCE).finished);
        // Lost, and an hour would pass until it is tried again by itself.
        wait_until("it is gone", || !alice.peer(id).unwrap().is_connected());
        sent.push(alice.peer(id).unwrap().send_with("in between", &SendOptions::new()).unwrap());
    }
    let bob = lives.next();
    say(&map, id, &[addr(&bob)]);
    assert_eq!(bob.recv_timeout(PATIENCE).unwrap().payload(), b"in between");
    for receipt in sent {
        assert!(matches!(receipt.wait(PATIENCE).unwrap(), Outcome::Acknowledged(_)));
    }
}

#[test]
fn the_next_address_takes_over_when_one_dies_and_the_one_that_answered_last_is_tried_first() {
    let _alone = alone();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let map = Watch::new(PeersMap::new());
    let lives = Lives::new();
    let bob = lives.next();
    say(&map, bob.id(), &[nobody, addr(&bob)]);
    let alice = following(quick(), &map);
    let to_bob = alice.wait_connected(bob.id(), PATIENCE).unwrap();
    let sessions = || to_bob.stats().sessions;
    assert_eq!((alice.metrics().dials, alice.metrics().dials_failed, sessions()), (2, 1, 1));
    for count in 2..=4 {
        alice.wait_connected(bob.id(), PATIENCE).unwrap();
        alice.disconnect(bob.id(), CloseReason::Requested).unwrap();
        wait_until("it is back", || sessions() == count && to_bob.is_connected());
    }
    assert_eq!(alice.metrics().dials_failed, 1, "where it answered is tried first");
    // That place dies, and another one is known.
    assert!(bob.shutdown(PATIENCE).finished);
    let bob = lives.next();
    say(&map, bob.id(), &[nobody, addr(&bob)]);
    wait_until("the other one is found", || place_of(&alice, bob.id()) == Some(addr(&bob)));
    reaches(&alice, &bob);
}

#[test]
fn what_is_not_about_addresses_changes_nothing() {
    let _alone = alone();
    let map = Watch::new(PeersMap::new());
    let [alices, bobs] = identities();
    let (me, bob) = (alices.peer_id(), Node::builder().config(quick()).identity(bobs).start().unwrap());
    say(&map, bob.id(), &[addr(&bob)]);
    let alice = Node::builder().config(quick()).identity(alices).peers_map(&map).start().unwrap();
    alice.wait_connected(bob.id(), PATIENCE).unwrap();
    say(&map, me, &[addr(&alice)]);
    map.update(|peers| {
        for place in peers.values_mut().flatten() {
            *place = place.clone().with("region", "north");
        }
    });
    // Known, and nowhere to dial: what there is stays.
    say(&map, bob.id(), &[]);
    assert_eq!(resolved(&alice, bob.id()).0, [addr(&bob)]);
    assert_eq!(resolved(&alice, bob.id()).0, []);
    reaches(&alice, &bob);
    // Nobody can change it any more: what it said last holds.
    drop(map);
    reaches(&alice, &bob);
    let metrics = alice.metrics();
    assert_eq!((metrics.dials, metrics.sessions_started, metrics.sessions_ended), (1, 1, 0));
    assert_eq!(alice.peers().len(), 1, "it is no peer of itself");
}

#[test]
fn what_was_added_stays_when_the_map_lets_go_and_what_the_map_has_stays_when_it_is_removed() {
    let _alone = alone();
    let map = Watch::new(PeersMap::new());
    let (bob, [first, second]) = at_two_places();
    let alice = following(patient(), &map);
    alice.add_peer(bob.id(), [first]).unwrap();
    let to_bob = alice.wait_connected(bob.id(), PATIENCE).unwrap();
    // At any moment one of the two wants it, whatever the threads that hear of it do meanwhile.
    for _ in 0..200 {
        say(&map, bob.id(), &[first, second]);
        unsay(&map, bob.id());
        say(&map, bob.id(), &[second, first]);
        alice.remove_peer(bob.id()).unwrap();
        alice.add_peer(bob.id(), [first]).unwrap();
        unsay(&map, bob.id());
    }
    say(&map, bob.id(), &[second, first]);
    alice.remove_peer(bob.id()).unwrap();
    reaches(&alice, &bob);
    assert_eq!((to_bob.stats().sessions, alice.metrics().dials), (1, 1));
    unsay(&map, bob.id());
    assert_eq!(stopped(&alice, bob.id()).2, StopReason::Vanished);
    wait_until("nobody wants it", || !to_bob.is_connected());
}

#[test]
fn a_name_that_nobody_knows_yet_is_looked_up_again_soon() {
    let _alone = alone();
    let (names, map, bob) = (Names::default(), Watch::new(PeersMap::new()), start(quick()));
    let name: Address = format!("north:{}", addr(&bob).port()).parse().unwrap();
    map.set([(bob.id(), vec![PeerData::new(name)])].into());
    let alice = Node::builder().config(patient()).resolver(names.clone()).peers_map(&map).start().unwrap();
    wait_event(&alice, "it is not found", |event| matches!(event, Event::DialFailed { .. }).then_some(()));
    names.set("north", &["127.0.0.1"]);
    // Not after an hour.
    alice.wait_connected(bob.id(), 10 * RESOLVE_RETRY_TIMEOUT).unwrap();
    assert_eq!(resolved(&alice, bob.id()).0, [addr(&bob)]);
}

#[test]
fn peers_that_come_and_go_in_a_storm_are_kept_as_the_map_says_in_the_end() {
    let _alone = alone();
    let map = Watch::new(PeersMap::new());
    let alice = following(quick(), &map);
    let bobs: Vec<Node> = (0..8).map(|_| start(quick())).collect();
    let mut rng = fastrand::Rng::with_seed(7);
    for _ in 0..2_000 {
        let bob = &bobs[rng.usize(..bobs.len())];
        if rng.bool() { say(&map, bob.id(), &[addr(bob)]) } else { unsay(&map, bob.id()) }
    }
    bobs.iter().for_each(|bob| say(&map, bob.id(), &[addr(bob)]));
    for bob in &bobs {
        alice.wait_connected(bob.id(), PATIENCE).unwrap();
    }
    bobs.iter().for_each(|bob| reaches(&alice, bob));
    map.set(PeersMap::new());
    wait_until("all are let go", || alice.peers().iter().all(|peer| !peer.stats.connected));
    let mut generations = std::collections::HashMap::new();
    for event in alice.events().try_iter() {
        if let Event::Peer(event) = event {
            let last = generations.insert(event.peer(), event.generation());
            assert!(last.is_none_or(|last| last <= event.generation()), "{event:?} after {last:?}");
        }
    }
    assert_eq!(generations.len(), bobs.len());
}
