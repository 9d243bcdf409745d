//! Messages for peers that the node does not know yet: they wait, within bounds, go out in order once the peer is known,
//! and come back if it never is.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::time::{Duration, Instant};

use threadwire::config::Offline;
use threadwire::error::{CloseReason, ConnectError, DisconnectError, SendErrorKind};
use threadwire::{
    Collector, Node, Outcome, OverflowPolicy, PeerId, Priority, Receipt, ReturnReason, SendOptions, Stage,
};

mod common;
use common::ledger::{number_of, numbered};
use common::{NOWHERE, PATIENCE, base, quick, start, wait_until};

const MS: Duration = Duration::from_millis(1);

/// An id that nobody has.
fn nobody(at: u8) -> PeerId {
    PeerId::from_bytes([at; 32])
}

/// A node that waits so long for peers it does not know.
fn waiting(unknown_timeout: Duration) -> Node {
    let mut config = quick();
    config.unknown_timeout = unknown_timeout;
    start(config)
}

fn returned(receipt: Receipt) -> (Vec<u8>, ReturnReason) {
    match receipt.wait(PATIENCE).unwrap() {
        Outcome::Returned { payload, reason } => (payload, reason),
        other => panic!("{other:?}"),
    }
}

/// Sends by every verb; how many there are, and the receipts.
fn send_by_all(node: &Node, to: PeerId) -> (u64, Vec<Receipt>) {
    let peer = node.peer(to).unwrap();
    assert!(!peer.is_connected());
    let mut receipts = Vec::new();
    for number in 0..60 {
        let payload = numbered(number, [8, 100, 40_000][number as usize % 3]);
        match number % 5 {
            0 => node.send(to, payload).unwrap(),
            1 => peer.send(&payload[..]).unwrap(),
            2 => peer.try_send(payload).unwrap(),
            3 => receipts.push(peer.send_with(payload, &SendOptions::new()).unwrap()),
            _ => receipts.push(peer.send_with(payload, &SendOptions::new().ttl(PATIENCE)).unwrap()),
        }
    }
    (60, receipts)
}

fn come_in_order(at: &Node, count: u64) {
    for expected in 0..count {
        let message = at.recv_timeout(PATIENCE).unwrap();
        let number = number_of(message.payload()).unwrap();
        assert_eq!(number, expected);
        assert!(message.payload() == numbered(number, message.payload().len()), "message {number} is another one");
    }
}

#[test]
fn messages_wait_for_a_peer_that_is_added_later_and_go_out_in_order() {
    let (a, b) = (start(quick()), start(quick()));
    let (sent, receipts) = send_by_all(&a, b.id());
    assert_eq!((a.peers()[0].known, a.peers()[0].queued), (false, sent as usize));
    let peer = a.add_peer(b.id(), b.local_addr()).unwrap();
    assert!(a.peers()[0].known);
    peer.send(numbered(sent, 8)).unwrap();
    come_in_order(&b, sent + 1);
    for receipt in receipts {
        assert!(matches!(receipt.wait(PATIENCE).unwrap(), Outcome::Acknowledged(_)));
    }
    wait_until("all is acknowledged", || peer.stats().acked == sent + 1);
    assert_eq!((peer.stats().accepted, peer.stats().returned), (sent + 1, 0));
}

#[test]
fn messages_wait_for_a_peer_that_dials_later_and_go_out_in_order() {
    let (a, b) = (start(quick()), start(quick()));
    let (sent, receipts) = send_by_all(&a, b.id());
    b.add_peer(a.id(), a.local_addr()).unwrap();
    come_in_order(&b, sent);
    receipts.into_iter().for_each(|receipt| assert!(receipt.wait(PATIENCE).unwrap().is_success()));
    assert!(a.peers()[0].known);
}

#[test]
fn messages_for_a_peer_that_never_comes_come_back_and_it_is_forgotten() {
    let timeout = 300 * MS;
    let node = waiting(timeout);
    let undelivered = node.undelivered();
    let (collector, batches) = Collector::new(10);
    let began = Instant::now();
    let peer = node.peer(nobody(1)).unwrap();
    let receipt = peer.send_with("with a receipt", &SendOptions::new().priority(Priority::Urgent)).unwrap();
    peer.send_collected("collected", &SendOptions::new(), &collector, 7).unwrap();
    let brief = peer.send_with("brief", &SendOptions::new().ttl(timeout / 10)).unwrap();
    peer.send("plain").unwrap();
    node.send(nobody(2), "by id").unwrap();
    assert_eq!(node.peers().len(), 2);

    assert_eq!(returned(brief), (b"brief".to_vec(), ReturnReason::Expired));
    assert_eq!(returned(receipt), (b"with a receipt".to_vec(), ReturnReason::PeerUnknown));
    assert!(began.elapsed() >= timeout, "not before its time");
    let (tag, outcome) = batches.recv_timeout(PATIENCE).unwrap().next().unwrap();
    let reason = ReturnReason::PeerUnknown;
    assert_eq!((tag, outcome), (7, Outcome::Returned { payload: b"collected".to_vec(), reason }));
    let mut back: Vec<_> = (0..2).map(|_| undelivered.recv_timeout(PATIENCE).unwrap()).collect();
    back.sort_by_key(|undelivered| undelivered.peer);
    for (undelivered, (peer, payload)) in back.into_iter().zip([(nobody(1), "plain"), (nobody(2), "by id")]) {
        assert_eq!(undelivered.peer, peer);
        assert_eq!(undelivered.outcome, Outcome::Returned { payload: payload.into(), reason });
    }

    // Somebody has a handle on the one; nobody has anything of the other.
    wait_until("the other is forgotten", || node.peers().len() == 1);
    assert_eq!((node.peers()[0].id, peer.stats().returned), (nobody(1), 4));
    drop(peer);
    wait_until("it is forgotten", || node.peers().is_empty());
    let traffic = node.metrics().traffic;
    assert_eq!((traffic.messages_accepted, traffic.messages_returned), (5, 5), "what was counted still counts");
    // And may be sent to again.
    node.send(nobody(1), "again").unwrap();
    assert_eq!(undelivered.recv_timeout(PATIENCE).unwrap().len(), 5);
}

#[test]
fn each_message_waits_for_its_own_time() {
    let node = waiting(400 * MS);
    let peer = node.peer(nobody(1)).unwrap();
    let first = peer.send_with("first", &SendOptions::new()).unwrap();
    let sent = Instant::now();
    wait_until("half of its time is over", || sent.elapsed() > 200 * MS);
    let second = Instant::now();
    let receipt = peer.send_with("second", &SendOptions::new()).unwrap();
    assert_eq!(returned(first).1, ReturnReason::PeerUnknown);
    assert_eq!(returned(receipt).1, ReturnReason::PeerUnknown);
    assert!(second.elapsed() >= 400 * MS);
}

#[test]
fn what_does_not_fit_is_refused_or_follows_its_policy() {
    let mut config = quick();
    config.unknown_bytes = 10_000;
    let (node, b) = (start(config), start(quick()));
    let peer = node.peer(b.id()).unwrap();
    let of = |overflow| SendOptions::new().overflow(overflow);
    let drops = peer.send_with(vec![1; 4_000], &of(OverflowPolicy::DropOldest).priority(Priority::Bulk)).unwrap();
    peer.send(vec![2; 4_000]).unwrap();
    // The bound is over all lanes.
    let error = peer.send_with(vec![3; 4_000], &of(OverflowPolicy::Fail).priority(Priority::Urgent)).unwrap_err();
    assert_eq!((error.kind, error.payload), (SendErrorKind::Full, vec![3; 4_000]));
    assert_eq!(peer.try_send(vec![3; 4_000]).unwrap_err().kind, SendErrorKind::Full);
    assert_eq!(peer.send_timeout(vec![3; 4_000], 20 * MS).unwrap_err().kind, SendErrorKind::TimedOut);
    let newest = peer.send_with(vec![4; 4_000], &of(OverflowPolicy::DropNewest)).unwrap();
    assert_eq!(returned(newest), (vec![4; 4_000], ReturnReason::DroppedNewest));
    // Nothing is dropped for one that does not fit all the same, and no such message is taken because nothing waits.
    let bulk = of(OverflowPolicy::DropOldest).priority(Priority::Bulk);
    assert_eq!(peer.send_with(vec![5; 10_000], &bulk).unwrap_err().kind, SendErrorKind::Full);
    assert_eq!(drops.stage(), Stage::Queued);
    let larger = node.peer(nobody(1)).unwrap().try_send(vec![5; 10_000]);
    assert_eq!(larger.unwrap_err().kind, SendErrorKind::Full);
    let latest = peer.send_with(vec![6; 5_000], &bulk).unwrap();
    assert_eq!(returned(drops), (vec![1; 4_000], ReturnReason::DroppedOldest));
    assert!(peer.stats().queued_bytes <= 10_000);

    // Whoever waits for room has it as soon as the peer is known.
    std::thread::scope(|scope| {
        let blocked = scope.spawn(|| peer.send_timeout(vec![7; 20_000], PATIENCE));
        node.add_peer(b.id(), b.local_addr()).unwrap();
        blocked.join().unwrap().unwrap();
    });
    let mut came: Vec<_> = (0..3).map(|_| b.recv_timeout(PATIENCE).unwrap().payload().len()).collect();
    came.sort_unstable();
    assert_eq!(came, [4_000, 5_000, 20_000]);
    assert!(latest.wait(PATIENCE).unwrap().is_success());
}

#[test]
fn no_more_unknown_peers_are_waited_for_than_the_configuration_says() {
    let mut config = quick();
    config.unknown_peers = 3;
    let (node, b) = (start(config), start(quick()));
    let handle = node.peer(nobody(1)).unwrap();
    node.send(nobody(2), "x").unwrap();
    node.send(b.id(), "y").unwrap();
    let error = node.send(nobody(4), "refused").unwrap_err();
    assert_eq!((error.kind, &error.payload[..]), (SendErrorKind::TooManyUnknown, &b"refused"[..]));
    assert_eq!(node.peer(nobody(4)).unwrap_err(), ConnectError::TooManyUnknown(nobody(4)));
    assert_eq!((node.metrics().unknown_refused, node.peers().len()), (2, 3));
    // Those that are there go on; a known one takes no such place.
    node.send(nobody(2), "x").unwrap();
    node.add_peer(nobody(9), NOWHERE).unwrap();
    // One that becomes known gives its place free, and so does a handle that nobody holds any more.
    node.add_peer(b.id(), b.local_addr()).unwrap();
    node.send(nobody(4), "taken").unwrap();
    assert_eq!(node.peer(nobody(5)).unwrap_err(), ConnectError::TooManyUnknown(nobody(5)));
    drop(handle);
    let fifth = node.peer(nobody(5)).unwrap();
    assert_eq!(b.recv_timeout(PATIENCE).unwrap().payload(), b"y");
    assert_eq!(fifth.stats().queued_messages, 0);
}

#[test]
fn a_flood_of_unknown_ids_leaves_nothing_behind() {
    let mut config = quick();
    (config.unknown_peers, config.unknown_timeout) = (8, 5 * MS);
    let node = start(config);
    let mut taken = 0;
    for at in 0..5_000u32 {
        let mut id = [7; 32];
        id[..4].copy_from_slice(&at.to_le_bytes());
        taken += u64::from(node.send(PeerId::from_bytes(id), "x").is_ok());
        assert!(node.peers().len() <= 8);
    }
    wait_until("all are forgotten", || node.peers().is_empty());
    let metrics = node.metrics();
    assert_eq!((metrics.unknown_refused, metrics.traffic.messages_accepted), (5_000 - taken, taken));
    assert_eq!((metrics.traffic.messages_returned, node.undelivered().len() as u64), (taken, taken));
}

#[test]
fn nobody_is_waited_for_if_the_configuration_says_so() {
    let mut config = quick();
    config.unknown_peers = 0;
    let node = start(config);
    let error = node.send(nobody(1), "x").unwrap_err();
    assert_eq!((error.kind, &error.payload[..]), (SendErrorKind::UnknownPeer, &b"x"[..]));
    assert_eq!(node.peer(nobody(1)).unwrap_err(), ConnectError::UnknownPeer(nobody(1)));

    let mut config = quick();
    config.offline = Offline::Return;
    let node = start(config);
    assert_eq!(node.send(nobody(1), "x").unwrap_err().kind, SendErrorKind::Offline);
    assert_eq!(node.peer(nobody(1)).unwrap().try_send("x").unwrap_err().kind, SendErrorKind::Offline);
}

#[test]
fn the_nodes_own_id_is_no_peer_and_an_unknown_one_can_be_neither_removed_nor_disconnected() {
    let node = start(quick());
    assert_eq!(node.peer(node.id()).unwrap_err(), ConnectError::UnknownPeer(node.id()));
    assert_eq!(node.send(node.id(), "x").unwrap_err().kind, SendErrorKind::UnknownPeer);
    let (peer, id) = (node.peer(nobody(1)).unwrap(), nobody(1));
    peer.send("x").unwrap();
    assert_eq!(node.remove_peer(id), Err(DisconnectError::UnknownPeer(id)));
    assert_eq!(node.disconnect(id, CloseReason::Requested), Err(DisconnectError::UnknownPeer(id)));
    assert_eq!(node.wait_connected(id, MS).unwrap_err(), ConnectError::TimedOut(id));
}

#[test]
fn a_peer_that_was_removed_stays_known_and_its_messages_wait_as_long_as_they_want() {
    let (a, b) = (waiting(50 * MS), start(quick()));
    let peer = a.add_peer(b.id(), b.local_addr()).unwrap();
    a.wait_connected(b.id(), PATIENCE).unwrap();
    a.remove_peer(b.id()).unwrap();
    wait_until("it is gone", || !peer.is_connected());
    let receipt = peer.send_with("later", &SendOptions::new()).unwrap();
    a.send(b.id(), "and later").unwrap();
    // One that is not known shows that the time is up.
    let unknown = a.peer(nobody(1)).unwrap().send_with("never", &SendOptions::new()).unwrap();
    assert_eq!(returned(unknown).1, ReturnReason::PeerUnknown);
    assert_eq!((receipt.stage(), peer.stats().queued_messages), (Stage::Queued, 2));
    assert!(a.peers().iter().any(|info| info.id == b.id() && info.known));
    a.add_peer(b.id(), b.local_addr()).unwrap();
    assert_eq!(b.recv_timeout(PATIENCE).unwrap().payload(), b"later");
    assert_eq!(b.recv_timeout(PATIENCE).unwrap().payload(), b"and later");
}

#[test]
fn a_shutdown_gives_back_what_waits_for_unknown_peers_and_takes_no_more() {
    let node = start(base());
    let receipt = node.peer(nobody(1)).unwrap().send_with("x", &SendOptions::new()).unwrap();
    let report = node.shutdown(Duration::ZERO);
    assert_eq!((report.undelivered.len(), report.undelivered[0].unsent), (1, 1));
    assert_eq!(returned(receipt), (b"x".to_vec(), ReturnReason::ShutDown));
    assert_eq!(node.peer(nobody(2)).unwrap_err(), ConnectError::ShuttingDown);
    assert_eq!(node.send(nobody(2), "x").unwrap_err().kind, SendErrorKind::ShuttingDown);
}
