//! One message for many peers: whom it reaches, what each of them says to it, and that nobody is waited for.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};
use threadwire::config::Channel;
use threadwire::error::SendErrorKind;
use threadwire::handshake::Identity;
use threadwire::{Broadcast, Config, Node, Outcome, OverflowPolicy, PeerHandle, PeerId, ReturnReason, SendOptions, To};

mod common;
use common::mute::Mute;
use common::rest::wait_at_rest;
use common::{NOWHERE, PATIENCE, alone, link, loopback, plain, quick, start, wait_until};

const KIB: usize = 1024;

/// A node, and so many that it has dialled.
fn hub<const N: usize>(config: &Config) -> (Node, [Node; N]) {
    let hub = start(config.clone());
    let peers = [(); N].map(|()| start(config.clone()));
    peers.iter().for_each(|peer| drop(link(&hub, peer)));
    (hub, peers)
}

/// The ids of a row of nodes, sorted.
fn ids<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> Vec<PeerId> {
    let mut ids: Vec<_> = nodes.into_iter().map(Node::id).collect();
    ids.sort();
    ids
}

/// Whom a broadcast was offered, all of whom took it.
#[track_caller]
fn taken<T>(broadcast: &Broadcast<T>) -> Vec<PeerId> {
    assert_eq!((broadcast.sent(), broadcast.refusals().count()), (broadcast.outcomes().len(), 0));
    let mut ids: Vec<_> = broadcast.outcomes().iter().map(|(id, _)| *id).collect();
    ids.sort();
    ids
}

/// The next message of a node.
#[track_caller]
fn next(node: &Node) -> Vec<u8> {
    node.recv_timeout(PATIENCE).unwrap().payload().to_vec()
}

/// A peer that never reads, and whose queue here is full.
fn stalled(node: &Node) -> (Mute, PeerHandle) {
    let mute = Mute::connect(Channel::Plain, node.id(), node.local_addr().unwrap(), 64 * KIB as u64);
    let to = node.wait_connected(mute.id, PATIENCE).unwrap();
    wait_at_rest("nothing moves any more", || {
        let mut sent = 0;
        // To the last byte: the empty ones leave no room for any message.
        for payload in [&[7; 100][..], &[]] {
            while to.try_send(payload).is_ok() {
                sent += 1;
            }
        }
        sent == 0
    });
    (mute, to)
}

/// Queues that are full in a moment, and nobody is cut for it.
fn tight() -> Config {
    let mut config = plain();
    (config.queue_bytes, config.window_bytes) = (256 * KIB, 512 * KIB);
    (config.write_timeout, config.idle_timeout) = (3 * PATIENCE, 3 * PATIENCE);
    config
}

#[test]
fn a_broadcast_reaches_every_connected_peer_but_the_excepted_and_says_so_of_each() {
    let _alone = alone();
    let (node, peers) = hub::<4>(&quick());
    // One that is known and not there is not offered anything.
    let absent = Identity::generate().unwrap().peer_id();
    node.add_peer(absent, NOWHERE).unwrap();

    let broadcast = node.broadcast("to three", To::all().except(peers[0].id()));
    assert_eq!(taken(&broadcast), ids(&peers[1..]));
    assert_eq!(broadcast.outcome(peers[1].id()), Some(&Ok(())));
    assert_eq!((broadcast.outcome(peers[0].id()), broadcast.outcome(absent)), (None, None));
    assert_eq!(broadcast.payload(), b"to three");
    let among = To::all().among(ids(&peers[..2]).into_iter().chain([absent]));
    assert_eq!(taken(&node.broadcast("to two", &among)), ids(&peers[..2]));
    assert_eq!(taken(&node.broadcast("to one", among.among([peers[1].id(), peers[2].id()]))), [peers[1].id()]);
    assert_eq!(taken(&node.broadcast(*b"to all", To::all())), ids(&peers));

    let of = |heard: &[&str]| heard.iter().map(|text| text.as_bytes().to_vec()).collect::<Vec<_>>();
    let expected = [
        of(&["to two", "to all"]),
        of(&["to three", "to two", "to one", "to all"]),
        of(&["to three", "to all"]),
        of(&["to three", "to all"]),
    ];
    for (peer, expected) in peers.iter().zip(expected) {
        assert_eq!(expected.iter().map(|_| next(peer)).collect::<Vec<_>>(), expected);
    }
    assert_eq!(node.metrics().traffic.messages_accepted, 3 + 2 + 1 + 4);
}

#[test]
fn a_broadcast_goes_to_those_that_dialled_or_to_those_that_were_dialled() {
    let _alone = alone();
    let (node, dialled) = hub::<2>(&quick());
    let diallers = [(); 3].map(|()| start(quick()));
    for dialler in &diallers {
        link(dialler, &node);
        node.wait_connected(dialler.id(), PATIENCE).unwrap();
    }
    assert_eq!(taken(&node.broadcast("in", To::inbound())), ids(&diallers));
    assert_eq!(taken(&node.broadcast("out", To::outbound())), ids(&dialled));
    assert_eq!(taken(&node.broadcast("all", To::all())), ids(dialled.iter().chain(&diallers)));
    let one = diallers[0].id();
    assert_eq!(taken(&node.broadcast("none", To::inbound().among([one]).except(one))), []);
    assert!(dialled.iter().all(|peer| next(peer) == b"out" && next(peer) == b"all"));
    assert!(diallers.iter().all(|peer| next(peer) == b"in" && next(peer) == b"all"));

    // Who has gone is not offered anything any more.
    dialled[0].shutdown(PATIENCE);
    wait_until("it is gone", || !node.peer(dialled[0].id()).unwrap().is_connected());
    assert_eq!(taken(&node.broadcast("out", To::outbound())), [dialled[1].id()]);
}

#[test]
fn a_peer_that_is_full_refuses_and_is_named_and_the_others_have_the_message() {
    let _alone = alone();
    let node = start(tight());
    let peers = [(); 2].map(|()| start(tight()));
    peers.iter().for_each(|peer| drop(link(&node, peer)));
    let (mute, to_mute) = stalled(&node);
    let before = to_mute.stats();
    for round in 0..200_u32 {
        let broadcast = node.broadcast(round.to_le_bytes().repeat(50), To::all());
        assert_eq!(broadcast.outcomes().len(), 3);
        assert_eq!((broadcast.sent(), broadcast.refused(SendErrorKind::Full)), (2, 1));
        assert_eq!(broadcast.refusals().collect::<Vec<_>>(), [(mute.id, SendErrorKind::Full)]);
        assert_eq!(broadcast.payload(), round.to_le_bytes().repeat(50), "it is there for another try");
        // They hear it while the other one is still stuck.
        assert!(peers.iter().all(|peer| next(peer) == round.to_le_bytes().repeat(50)));
    }
    assert_eq!(to_mute.stats().accepted, before.accepted, "nothing was queued for it");

    // To wait is what a broadcast never does, even where the options or the peer's defaults say so.
    let blocking = SendOptions::new().overflow(OverflowPolicy::Block).timeout(30 * PATIENCE);
    let broadcast = node.broadcast_with("receipts", To::all(), &blocking);
    assert_eq!(broadcast.refusals().collect::<Vec<_>>(), [(mute.id, SendErrorKind::Full)]);
    to_mute.set_ttl(Some(PATIENCE));
    let broadcast = node.broadcast("once more", To::all());
    assert_eq!(broadcast.refusals().collect::<Vec<_>>(), [(mute.id, SendErrorKind::Full)]);

    // What is too long for anybody, everybody refuses.
    let broadcast = node.broadcast(vec![0; tight().max_message + 1], To::all());
    assert_eq!((broadcast.sent(), broadcast.refused(SendErrorKind::TooLarge)), (0, 3));
    drop(mute);
    node.shutdown(Duration::from_millis(100));
}

#[test]
fn each_peer_that_takes_a_broadcast_with_options_gives_a_receipt() {
    let _alone = alone();
    let node = start(tight());
    let rejects = loopback().config(tight()).handler(|_, _| panic!("as it is meant to")).start().unwrap();
    let peers = [start(tight()), start(tight())];
    peers.iter().chain([&rejects]).for_each(|peer| drop(link(&node, peer)));
    let (mute, _) = stalled(&node);
    let options = SendOptions::new().kind(9).overflow(OverflowPolicy::DropNewest);
    let broadcast = node.broadcast_with("hello", To::all(), &options);
    assert_eq!(broadcast.sent(), 4);
    for peer in &peers {
        let message = peer.recv_timeout(PATIENCE).unwrap();
        assert_eq!((message.kind(), message.payload()), (9, &b"hello"[..]));
    }
    let mut outcomes: HashMap<_, _> =
        broadcast.into_iter().map(|(id, receipt)| (id, receipt.unwrap().wait(PATIENCE).unwrap())).collect();
    for peer in &peers {
        assert!(matches!(outcomes[&peer.id()], Outcome::Acknowledged(_)));
    }
    let mut returned = |id| match outcomes.remove(&id) {
        Some(Outcome::Returned { payload, reason }) => (String::from_utf8(payload).unwrap(), reason),
        other => panic!("{other:?}"),
    };
    assert_eq!(returned(mute.id), ("hello".to_owned(), ReturnReason::DroppedNewest));
    let (payload, reason) = returned(rejects.id());
    assert!(payload == "hello" && matches!(reason, ReturnReason::Rejected(_)), "{reason}");
    drop(mute);
    node.shutdown(Duration::from_millis(100));
}

/// Memory of this process that is in use, in bytes; nothing where the system does not say.
fn resident() -> Option<usize> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(statm.split(' ').nth(1)?.parse::<usize>().ok()? * 4 * KIB)
}

#[test]
fn the_bytes_of_a_large_broadcast_are_there_once_for_all_peers() {
    const PEERS: usize = 16;
    const BYTES: usize = 8 << 20;
    let _alone = alone();
    let mut config = tight();
    (config.queue_bytes, config.window_bytes) = (8 << 20, 4 << 20);
    let (node, [good]) = hub::<1>(&config);
    let addr = node.local_addr().unwrap();
    let mutes: Vec<_> = (0..PEERS).map(|_| Mute::connect(Channel::Plain, node.id(), addr, 64 << 20)).collect();
    mutes.iter().for_each(|mute| drop(node.wait_connected(mute.id, PATIENCE).unwrap()));
    let to_mutes = To::all().except(good.id());
    let before = resident();
    for share in [false, true] {
        let broadcast = match share {
            true => node.broadcast_with(vec![5; BYTES], &to_mutes, &SendOptions::new()).sent(),
            false => node.broadcast(vec![6; BYTES], &to_mutes).sent(),
        };
        assert_eq!(broadcast, PEERS);
        // The second one finds no room before the first is taken, and is not taken itself: the window is full.
        let taken = || mutes.iter().all(|mute| node.peer(mute.id).unwrap().stats().kept_bytes > 0);
        wait_until("each peer's thread has taken the first one", taken);
    }
    // Both messages are there, once; copied for each of the peers they would take 256 MiB.
    if let (Some(before), Some(after)) = (before, resident()) {
        let grown = after.saturating_sub(before);
        println!("{} KiB more resident", grown / KIB);
        assert!(grown < 4 * BYTES, "{grown}");
    }
    let held: usize =
        mutes.iter().map(|mute| node.peer(mute.id).unwrap().stats()).map(|s| s.queued_bytes + s.kept_bytes).sum();
    assert!(held >= 2 * PEERS * BYTES, "they count in full for each: {held}");

    // Whoever reads gets all of it.
    let payload: Vec<u8> = (0..BYTES).map(|at| (at >> 8) as u8).collect();
    assert_eq!(node.broadcast(payload.clone(), To::all().among([good.id()])).sent(), 1);
    assert!(next(&good) == payload);
    drop(mutes);
    node.shutdown(Duration::from_millis(100));
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Block {
    height: u64,
    #[serde(with = "serde_bytes")]
    body: Vec<u8>,
}

/// Counts how often it is encoded.
struct Counted(AtomicUsize);

impl Serialize for Counted {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.fetch_add(1, Ordering::Relaxed);
        block(100).serialize(serializer)
    }
}

fn block(size: usize) -> Block {
    Block { height: 7, body: vec![3; size] }
}

#[test]
fn a_typed_broadcast_is_encoded_once_and_decoded_by_each_receiver() {
    let _alone = alone();
    let (node, peers) = hub::<3>(&quick());
    for size in [10, 100 * KIB] {
        assert_eq!(taken(&node.broadcast_msg(&block(size), To::all()).unwrap()), ids(&peers));
        for peer in &peers {
            assert_eq!(peer.recv_timeout(PATIENCE).unwrap().decode::<Block>().unwrap(), block(size));
        }
    }
    // Its size is found out by the same way as its bytes.
    let [one, all] = [(); 2].map(|()| Counted(AtomicUsize::new(0)));
    node.peer(peers[0].id()).unwrap().send_msg(&one).unwrap();
    assert_eq!(peers[0].recv_timeout(PATIENCE).unwrap().decode::<Block>().unwrap(), block(100));
    assert_eq!(taken(&node.broadcast_msg(&all, To::all()).unwrap()), ids(&peers));
    for peer in &peers {
        assert_eq!(peer.recv_timeout(PATIENCE).unwrap().decode::<Block>().unwrap(), block(100));
    }
    assert_eq!(all.0.into_inner(), one.0.into_inner(), "for all as often as for one");
    let took = node.anycast_msg(&block(1), To::all()).unwrap();
    let peer = peers.iter().find(|peer| peer.id() == took).unwrap();
    assert_eq!(peer.recv_timeout(PATIENCE).unwrap().decode::<Block>().unwrap(), block(1));
    let too_long = block(quick().max_message);
    assert_eq!(node.broadcast_msg(&too_long, To::all()).unwrap_err().kind, SendErrorKind::Unencodable);
    assert_eq!(node.anycast_msg(&too_long, To::all()).unwrap_err().kind, SendErrorKind::Unencodable);
}

#[test]
fn a_handler_passes_a_message_on_by_broadcast_and_anycast() {
    let _alone = alone();
    let own: Arc<OnceLock<Weak<Node>>> = Arc::default();
    let handlers = own.clone();
    let node = loopback().config(quick()).handler(move |_, message| {
        let node = handlers.get().and_then(Weak::upgrade).unwrap();
        let others = To::all().except(message.from());
        assert_eq!(node.broadcast_kind(4, message.payload(), &others).sent(), 3);
        node.anycast(message.payload(), &others).unwrap();
    });
    let node = Arc::new(node.start().unwrap());
    own.set(Arc::downgrade(&node)).unwrap();
    let peers = [(); 4].map(|()| start(quick()));
    peers.iter().for_each(|peer| drop(link(&node, peer)));
    let from_first = peers[0].wait_connected(node.id(), PATIENCE).unwrap();
    from_first.send("news").unwrap();
    let mut kinds = Vec::new();
    for peer in &peers[1..] {
        let message = peer.recv_timeout(PATIENCE).unwrap();
        assert_eq!((message.from(), message.payload()), (node.id(), &b"news"[..]));
        kinds.push(message.kind());
    }
    assert_eq!(kinds, [4; 3]);
    wait_until("one of them has it twice", || {
        peers[1..].iter().map(|peer| peer.peer(node.id()).unwrap().stats().received).sum::<u64>() == 4
    });
    assert_eq!(from_first.stats().received, 0, "not back to where it came from");
}

#[test]
fn an_anycast_goes_to_any_connected_peer_of_its_set_and_to_no_other() {
    let _alone = alone();
    let (node, peers) = hub::<5>(&quick());
    let absent = Identity::generate().unwrap().peer_id();
    node.add_peer(absent, NOWHERE).unwrap();
    let trusted = To::all().among(ids(&peers[..3]).into_iter().chain([absent]));
    let mut heard: HashMap<PeerId, u64> = HashMap::new();
    for _ in 0..300 {
        *heard.entry(node.anycast("any", &trusted).unwrap()).or_default() += 1;
    }
    let mut all: Vec<_> = heard.keys().copied().collect();
    all.sort();
    assert_eq!(all, ids(&peers[..3]), "each of the three, and nobody else");
    for peer in &peers {
        let sent = node.peer(peer.id()).unwrap().stats().accepted;
        assert_eq!(sent, heard.get(&peer.id()).copied().unwrap_or_default());
    }
    let (took, receipt) = node.anycast_with("asked", &trusted, &SendOptions::new()).unwrap();
    let peer = peers.iter().find(|peer| peer.id() == took).unwrap();
    while next(peer) != b"asked" {}
    assert!(matches!(receipt.wait(PATIENCE).unwrap(), Outcome::Acknowledged(_)));
}

#[test]
fn an_anycast_that_nobody_can_take_gives_the_message_back() {
    let _alone = alone();
    let (node, [peer]) = hub::<1>(&tight());
    let refused = |to: To| node.anycast("precious", to).map_err(|error| (error.kind, error.payload));
    let because = |kind| Err((kind, b"precious".to_vec()));
    assert_eq!(refused(To::inbound()), because(SendErrorKind::NoPeer));
    assert_eq!(refused(To::all().except(peer.id())), because(SendErrorKind::NoPeer));
    assert_eq!(refused(To::all().among([])), because(SendErrorKind::NoPeer));
    // One that is full is no reason to refuse while another one is not.
    let (mute, _) = stalled(&node);
    let took: Vec<_> = (0..50).map(|_| node.anycast("any", To::all()).unwrap()).collect();
    assert_eq!(took, [peer.id(); 50]);
    assert_eq!(refused(To::inbound()), because(SendErrorKind::Full));
    let error = node.anycast_with("precious", To::inbound(), &SendOptions::new()).unwrap_err();
    assert_eq!((error.kind, &error.payload[..]), (SendErrorKind::Full, &b"precious"[..]));
    let long = vec![1; tight().max_message + 1];
    let error = node.anycast(long.clone(), To::all()).unwrap_err();
    assert!(error.kind == SendErrorKind::TooLarge && error.payload == long);
    drop(mute);
    node.shutdown(Duration::from_millis(100));
    assert_eq!(refused(To::all()), because(SendErrorKind::ShuttingDown));
    assert!(node.broadcast("too late", To::all()).outcomes().is_empty());
}

#[test]
fn a_flood_of_broadcasts_comes_whole_and_in_order_with_what_is_sent_to_one_peer_between() {
    const COUNT: u32 = 20_000;
    let _alone = alone();
    let (node, peers) = hub::<8>(&quick());
    let handles = ids(&peers).into_iter().map(|id| node.peer(id).unwrap()).collect::<Vec<_>>();
    std::thread::scope(|scope| {
        let readers = peers.iter().map(|peer| {
            scope.spawn(move || {
                let mut came = Vec::new();
                while came.last() != Some(&COUNT) {
                    came.push(u32::from_le_bytes(next(peer).try_into().unwrap()));
                }
                came
            })
        });
        let readers: Vec<_> = readers.collect();
        let mut sent: HashMap<PeerId, Vec<u32>> = HashMap::new();
        for number in 0..=COUNT {
            let payload = number.to_le_bytes();
            if number % 1_000 == 999 {
                // To one of them alone: it comes after what all were sent before.
                let only = &handles[number as usize / 1_000 % handles.len()];
                only.send(&payload[..]).unwrap();
                sent.entry(only.id()).or_default().push(number);
                continue;
            }
            let broadcast = node.broadcast(&payload[..], To::all());
            assert_eq!(broadcast.outcomes().len(), handles.len());
            for (peer, outcome) in broadcast {
                match outcome {
                    Ok(()) => {}
                    Err(SendErrorKind::Full) => node.peer(peer).unwrap().send(&payload[..]).unwrap(),
                    Err(other) => panic!("{other}"),
                }
                sent.entry(peer).or_default().push(number);
            }
        }
        for (peer, reader) in peers.iter().zip(readers) {
            assert!(reader.join().unwrap() == sent[&peer.id()], "all that was sent to it, in order");
        }
    });
    for peer in &handles {
        wait_until("everything is acknowledged", || peer.stats().acked == peer.stats().accepted);
    }
}
