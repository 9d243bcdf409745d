//! Sending by destination: to an identity, to a name, to whoever proves itself at an address, and to nobody else.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use threadwire::config::Peer;
use threadwire::direct::PeersMap;
use threadwire::error::{
    CloseReason, ConnectError, DisconnectError, ReloadError, SendError, SendErrorKind, StartError,
};
use threadwire::handshake::Identity;
use threadwire::{Config, Destination, Event, Node, Outcome, OverflowPolicy, PeerId, ReturnReason, SendOptions, Watch};

mod common;
use common::port::later;
use common::{PATIENCE, addr, alone, quick, start, wait_event, wait_until};

/// A node that listens there, as soon as nobody else does: who was shut down without a wait may still.
fn start_at(addr: SocketAddr) -> Node {
    let mut config = quick();
    config.listen = vec![addr];
    let mut node = None;
    wait_until("nobody else listens there", || {
        match Node::builder().config(config.clone()).start() {
            Ok(started) => node = Some(started),
            Err(StartError::Listen { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        node.is_some()
    });
    node.unwrap()
}

fn named(name: &str, of: &Node) -> Config {
    let mut config = quick();
    config.peers = vec![Peer::new(name, of.id(), [addr(of).into()])];
    config
}

#[track_caller]
fn takes(node: &Node) -> String {
    String::from_utf8(node.recv_timeout(PATIENCE).unwrap().payload().to_vec()).unwrap()
}

/// Whether the node knows of a place at this address.
fn has_place(node: &Node, addr: SocketAddr) -> bool {
    node.peers().iter().any(|peer| peer.id.stands_for() == Some(addr))
}

#[test]
fn a_message_goes_to_an_id_a_name_or_an_address_by_each_verb() {
    let _alone = alone();
    let bob = start(quick());
    let alice = start(named("bob", &bob));
    let [by_id, by_name, by_addr]: [Destination; 3] = [bob.id().into(), "bob".into(), addr(&bob).into()];
    for (to, text) in [(by_id, "id"), (by_name, "name"), (by_addr, "address")] {
        alice.send_to(to.clone(), text).unwrap();
        alice.try_send_to(to.clone(), text).unwrap();
        alice.send_to_timeout(to.clone(), text, PATIENCE).unwrap();
        let receipt = alice.send_to_with(to, text, &SendOptions::new()).unwrap();
        (0..4).for_each(|_| assert_eq!(takes(&bob), text));
        assert!(matches!(receipt.wait(PATIENCE).unwrap(), Outcome::Acknowledged(_)));
    }
    assert_eq!((alice.metrics().dials, alice.sessions().len()), (1, 1), "one session, dialled once");
    for refused in [
        alice.send_to("carol", "back").unwrap_err(),
        alice.try_send_to("carol", "back").unwrap_err(),
        alice.send_to_timeout("carol", "back", PATIENCE).unwrap_err(),
        alice.send_to_with("carol", "back", &SendOptions::new()).unwrap_err(),
    ] {
        assert_eq!((refused.kind, &refused.payload[..]), (SendErrorKind::UnknownName, &b"back"[..]));
    }
    assert_eq!(alice.send_to(alice.id(), "back").unwrap_err().kind, SendErrorKind::UnknownPeer);
}

#[test]
fn what_is_sent_before_anybody_has_proven_itself_waits_and_goes_in_order() {
    let _alone = alone();
    let (alice, port) = (start(quick()), later());
    let place = port.addr;
    let handle = alice.peer_at(place).unwrap();
    let receipt = handle.send_with("0", &SendOptions::new()).unwrap();
    for text in ["1", "2", "3"] {
        alice.send_to(place, text).unwrap();
    }
    // An urgent one has a lane of its own, a big one is not copied.
    let urgent = SendOptions::new().priority(threadwire::Priority::Urgent);
    let first = handle.send_with("urgent", &urgent).unwrap();
    alice.send_to(place, vec![b'x'; 200_000]).unwrap();
    assert!(handle.peer().is_none());
    assert_eq!(handle.wait(Duration::from_millis(1)).unwrap_err(), ConnectError::NobodyThere(place));
    wait_event(&alice, "it was dialled in vain", |event| matches!(event, Event::DialFailed { .. }).then_some(()));
    let bob = start_at(place);
    assert_eq!(handle.wait(PATIENCE).unwrap().id(), bob.id());
    let came: Vec<String> = (0..6).map(|_| takes(&bob)).collect();
    let normal: Vec<&String> = came.iter().filter(|text| *text != "urgent").collect();
    assert_eq!(normal[..4], ["0", "1", "2", "3"]);
    assert_eq!(normal[4].len(), 200_000);
    for receipt in [receipt, first] {
        assert!(matches!(receipt.wait(PATIENCE).unwrap(), Outcome::Acknowledged(_)));
    }
    let stats = handle.peer().unwrap().stats();
    wait_until("all is acknowledged", || handle.peer().unwrap().stats().acked == 6);
    assert_eq!(stats.accepted, 6);
    // Counted once: where they went.
    let traffic = alice.metrics().traffic;
    assert_eq!((traffic.messages_accepted, traffic.messages_returned), (6, 0));
}

#[test]
fn a_message_belongs_to_who_proved_itself_and_never_goes_to_another_one_at_the_same_address() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let bobs = Identity::load_or_create(folder.path()).unwrap().peer_id();
    let bob = |listen: SocketAddr| {
        let mut config = quick();
        (config.data_dir, config.listen) = (Some(folder.path().to_owned()), vec![listen]);
        start(config)
    };
    let (alice, port) = (start(quick()), later());
    let place = port.addr;
    let first = bob(place);
    let taken = alice.send_to_with(place, "taken", &SendOptions::new()).unwrap();
    assert_eq!(takes(&first), "taken");
    assert!(matches!(taken.wait(PATIENCE).unwrap(), Outcome::Acknowledged(_)));
    // Bob's application takes nothing more.
    let receipt = alice.send_to_with(place, "bob's", &SendOptions::new()).unwrap();
    let handle = alice.peer_at(place).unwrap();
    assert_eq!(handle.peer().unwrap().id(), bobs);
    first.shutdown(Duration::ZERO);
    wait_until("he is gone", || handle.peer().is_none());
    let carol = start_at(place);
    alice.send_to(place, "carol's").unwrap();
    assert_eq!(handle.wait(PATIENCE).unwrap().id(), carol.id());
    assert_eq!(takes(&carol), "carol's", "and nothing before it");
    // Bob is somewhere else now.
    let again = bob("127.0.0.1:0".parse().unwrap());
    alice.add_peer(bobs, [addr(&again)]).unwrap();
    assert_eq!(takes(&again), "bob's");
    assert!(matches!(receipt.wait(PATIENCE).unwrap(), Outcome::Acknowledged(_)));
    assert_eq!(carol.peers().iter().map(|peer| peer.stats.received).sum::<u64>(), 1);
}

#[test]
fn what_waits_for_an_address_is_bounded_in_bytes_time_and_number_and_comes_back() {
    let _alone = alone();
    let ports = [later(), later(), later()];
    let [one, other, third] = ports.each_ref().map(|port| port.addr);
    let mut config = quick();
    (config.unknown_bytes, config.unknown_peers) = (1000, 2);
    let fail = SendOptions::new().overflow(OverflowPolicy::Fail);
    {
        // Nothing comes back here before the end.
        config.unknown_timeout = 10 * PATIENCE;
        let alice = start(config.clone());
        let handle = alice.peer_at(one).unwrap();
        let receipt = handle.send_with(vec![1; 600], &fail).unwrap();
        let refused = handle.send_with(vec![2; 600], &fail).unwrap_err();
        assert_eq!((refused.kind, refused.payload), (SendErrorKind::Full, vec![2; 600]));
        alice.shutdown(Duration::ZERO);
        assert_eq!(receipt.wait(PATIENCE).unwrap().into_payload().unwrap(), vec![1; 600]);
    }
    config.unknown_timeout = Duration::from_millis(200);
    let alice = start(config);
    let handle = alice.peer_at(one).unwrap();
    let receipt = handle.send_with(vec![1; 600], &fail).unwrap();
    let Outcome::Returned { payload, reason } = receipt.wait(PATIENCE).unwrap() else { panic!("not returned") };
    assert_eq!((payload, reason), (vec![1; 600], ReturnReason::PeerUnknown));
    // Without a receipt it is told where it was to go.
    alice.send_to(other, "nobody's").unwrap();
    let undelivered = alice.undelivered().recv_timeout(PATIENCE).unwrap();
    assert_eq!(undelivered.peer.stands_for(), Some(other));
    assert_eq!(undelivered.outcome.into_payload().unwrap(), b"nobody's");
    let held = alice.peer_at(other).unwrap();
    assert_eq!(alice.peer_at(third).unwrap_err(), ConnectError::TooManyAddresses(third));
    assert_eq!(alice.send_to(third, "back").unwrap_err().kind, SendErrorKind::TooManyUnknown);
    drop(held);
    wait_until("an address that nobody needs is forgotten", || alice.peer_at(third).is_ok());
    assert!(has_place(&alice, one), "one that is held is not");
    drop(handle);
    wait_until("nor is it then", || !has_place(&alice, one));
    let mut config = quick();
    config.unknown_peers = 0;
    let alice = start(config);
    assert_eq!(alice.peer_at(one).unwrap_err(), ConnectError::NobodyThere(one));
    assert_eq!(alice.send_to(one, "back").unwrap_err().payload, b"back");
}

#[test]
fn an_address_is_dialled_again_while_somebody_needs_it_and_not_after() {
    let _alone = alone();
    let (alice, bob) = (start(quick()), start(quick()));
    let handle = alice.peer_at(addr(&bob)).unwrap();
    let to_bob = handle.wait(PATIENCE).unwrap();
    for count in 2..=3 {
        alice.wait_connected(bob.id(), PATIENCE).unwrap();
        alice.disconnect(bob.id(), CloseReason::Requested).unwrap();
        wait_until("it is back", || to_bob.stats().sessions == count && handle.peer().is_some());
    }
    drop(handle);
    alice.wait_connected(bob.id(), PATIENCE).unwrap();
    assert!(has_place(&alice, addr(&bob)), "as long as somebody is there");
    alice.disconnect(bob.id(), CloseReason::Requested).unwrap();
    wait_until("it is let go", || !has_place(&alice, addr(&bob)));
    assert_eq!((to_bob.stats().sessions, to_bob.is_connected()), (3, false));
    // What was sent to who proved itself there is a reason to look for it again.
    alice.send_to(addr(&bob), "once more").unwrap();
    assert_eq!(takes(&bob), "once more");
}

#[test]
fn who_is_dialled_at_an_address_for_another_reason_is_found_there_without_another_dial() {
    let _alone = alone();
    let (alice, bob) = (start(quick()), start(quick()));
    common::link(&alice, &bob);
    let handle = alice.peer_at(addr(&bob)).unwrap();
    assert_eq!(handle.wait(PATIENCE).unwrap().id(), bob.id());
    handle.send("hello").unwrap();
    assert_eq!(takes(&bob), "hello");
    assert_eq!((alice.metrics().dials, alice.metrics().sessions_started), (1, 1));
}

#[test]
fn of_many_threads_that_send_while_somebody_appears_each_keeps_its_order_and_nothing_is_lost() {
    const EACH: u64 = 2000;
    const THREADS: u64 = 4;
    let _alone = alone();
    for _ in 0..10 {
        let (alice, port) = (start(quick()), later());
        let place = port.addr;
        let came: Arc<Mutex<Vec<(u8, u64)>>> = Arc::default();
        let handle = alice.peer_at(place).unwrap();
        let entered = came.clone();
        let bob = std::thread::scope(|scope| {
            for thread in 0..THREADS as u8 {
                let handle = &handle;
                scope.spawn(move || {
                    for number in 0..EACH {
                        let mut payload = vec![thread];
                        payload.extend(number.to_le_bytes());
                        handle.send_timeout(payload, PATIENCE).unwrap();
                    }
                });
            }
            let mut config = quick();
            config.listen = vec![place];
            Node::builder()
                .config(config)
                .handler(move |_, message| {
                    let (thread, number) = message.payload().split_first().unwrap();
                    entered.lock().push((*thread, u64::from_le_bytes(number.try_into().unwrap())));
                })
                .start()
                .unwrap()
        });
        wait_until("all came", || came.lock().len() as u64 == THREADS * EACH);
        for thread in 0..THREADS as u8 {
            let numbers =
                came.lock().iter().filter(|(of, _)| *of == thread).map(|(_, number)| *number).collect::<Vec<_>>();
            assert_eq!(numbers, (0..EACH).collect::<Vec<_>>(), "of thread {thread}");
        }
        assert_eq!(handle.peer().map(|peer| peer.id()), Some(bob.id()));
    }
}

#[test]
fn inside_a_handler_nothing_waits_and_the_verb_that_does_not_works() {
    let _alone = alone();
    let carol = start(quick());
    let place = addr(&carol);
    let (tell, told) = crossbeam_channel::bounded(1);
    let node: Arc<std::sync::OnceLock<Node>> = Arc::default();
    let me = node.clone();
    let bob = Node::builder().config(quick()).handler(move |_, _| {
        let node = me.get().unwrap();
        let blocked = node.send_to(place, "blocked").unwrap_err();
        let waited = node.peer_at(place).unwrap().wait(PATIENCE).unwrap_err();
        node.try_send_to(place, "works").unwrap();
        tell.send((blocked.kind, blocked.payload, waited)).unwrap();
    });
    node.set(bob.start().unwrap()).unwrap();
    let alice = start(quick());
    alice.send_to(node.get().and_then(Node::local_addr).unwrap(), "go").unwrap();
    let expected = (SendErrorKind::WouldBlock, b"blocked".to_vec(), ConnectError::WouldBlock);
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), expected);
    assert_eq!(takes(&carol), "works");
    // The handler has the node: it ends by its own hand.
    node.get().unwrap().shutdown(PATIENCE);
}

#[test]
fn an_id_that_stands_for_an_address_is_taken_for_nobody_and_the_address_stays_what_it_was() {
    let _alone = alone();
    let mut config = quick();
    config.unknown_timeout = Duration::from_millis(100);
    let (alice, port) = (start(config.clone()), later());
    let place = port.addr;
    alice.send_to(place, "nobody's").unwrap();
    let id = alice.undelivered().recv_timeout(PATIENCE).unwrap().peer;
    assert_eq!(id.stands_for(), Some(place));
    let refuses = |alice: &Node| {
        assert_eq!(alice.peer(id).unwrap_err(), ConnectError::UnknownPeer(id));
        let SendError { kind, payload, .. } = alice.send(id, "back").unwrap_err();
        assert_eq!((kind, &payload[..]), (SendErrorKind::UnknownPeer, &b"back"[..]));
        assert_eq!(alice.send_to(id, "back").unwrap_err().kind, SendErrorKind::UnknownPeer);
        assert_eq!(alice.add_peer(id, [place]).unwrap_err(), ConnectError::UnknownPeer(id));
        assert_eq!(alice.remove_peer(id).unwrap_err(), DisconnectError::UnknownPeer(id));
    };
    let handle = alice.peer_at(place).unwrap();
    refuses(&alice);
    drop(handle);
    wait_until("it is let go", || !has_place(&alice, place));
    refuses(&alice);
    assert!(!has_place(&alice, place));
    // Nor does a configuration take it, or a map.
    let mut with = config.clone();
    with.peers = vec![Peer::new("nobody", id, [place.into()])];
    let error = alice.reload(&with).unwrap_err();
    assert!(matches!(&error, ReloadError::NotAllowed { field, .. } if field == "peer[0].id"), "{error}");
    assert!(Node::builder().config(with).start().is_err());
    let bob = start_at(place);
    let places = |id: PeerId| (id, vec![place.into()]);
    let map = Watch::new(PeersMap::from([places(id), places(bob.id())]));
    let carol = Node::builder().config(config).peers_map(&map).start().unwrap();
    if let Err(error) = carol.wait_connected(bob.id(), PATIENCE) {
        panic!("{error}: {:?}; {:?}", carol.peers(), carol.events().try_iter().take(10).collect::<Vec<_>>());
    }
    assert!(!has_place(&carol, place));
    for node in [&alice, &carol] {
        node.send_to(place, "hello").unwrap();
        assert_eq!(takes(&bob), "hello");
    }
}

#[test]
fn an_id_of_a_peer_stands_for_no_address() {
    let id: PeerId = Identity::generate().unwrap().peer_id();
    assert_eq!(id.stands_for(), None);
}
