//! To whom messages go: ids, names, and whoever proves itself at an address.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::unbounded;
use parking_lot::Mutex;
use threadwire::config::Peer;
use threadwire::direct::{DirectMessage, DirectSender, TransportError};
use threadwire::error::SendErrorKind;
use threadwire::{Event, Node, PeerId, ReturnReason, SendOptions};

use crate::common::port::later;
use crate::common::{self, PATIENCE, addr, alone, quick, wait_until};
use crate::{inputs, nobody, sink, started};

#[test]
fn a_message_finds_its_peer_by_id_by_address_and_by_name() {
    let _alone = alone();
    let [bob, carol] = [sink(), sink()];
    let mut config = quick();
    config.peers = vec![Peer::new("carol", carol.id(), [addr(&carol).into()])];
    let (sender, caller) = started(config);
    caller.send("carol", "by name");
    let result = caller.result();
    assert_eq!((result.peer, result.to, result.result.is_ok()), (Some(carol.id()), "carol".into(), true));
    // Many at once wait for the same dial, and keep their order.
    for id in 0..100 {
        caller.send(addr(&bob), DirectMessage { id, payload: vec![0; 100], ..DirectMessage::default() });
    }
    for id in 0..100 {
        let result = caller.result();
        assert_eq!((result.to, result.id, result.result.is_ok()), (addr(&bob).into(), id, true));
    }
    caller.send(addr(&bob), "to who is there now");
    assert_eq!(caller.result().peer, Some(bob.id()));
    assert_eq!(caller.metrics.snapshot().dials, 2, "one for each");
    caller.send(bob.id(), "by id");
    assert_eq!(caller.result().peer, Some(bob.id()));
    // Whoever dialled us is there too.
    let dave = common::start(quick());
    dave.add_peer(sender.id(), sender.local_addrs()).unwrap();
    dave.wait_connected(sender.id(), PATIENCE).unwrap();
    let session = dave.sessions().into_iter().next().unwrap();
    wait_until("both ends have the session", || sender.wait_connected(dave.id(), PATIENCE).is_ok());
    caller.send(session.local_addr.unwrap(), "to an address that nobody can dial");
    assert_eq!(dave.recv_timeout(PATIENCE).unwrap().payload(), b"to an address that nobody can dial");
    assert_eq!(caller.metrics.snapshot().dials, 2);
}

#[test]
fn messages_to_an_address_come_in_their_order_while_whoever_is_there_is_found() {
    let _alone = alone();
    for _ in 0..20 {
        let came: Arc<Mutex<Vec<u64>>> = Arc::default();
        let entered = came.clone();
        let enter = move |message: &[u8]| entered.lock().push(u64::from_le_bytes(message.try_into().unwrap()));
        let bob = Node::builder().config(quick()).handler(move |_, message| enter(message.payload()));
        let bob = bob.start().unwrap();
        let mut config = quick();
        (config.unknown_bytes, config.queue_bytes, config.queue_messages) = (64 << 20, 64 << 20, 1 << 20);
        let (mut inputs, caller) = inputs(config);
        let (to_results, results) = unbounded();
        inputs.results = Some(to_results);
        let _sender = DirectSender::start(inputs).unwrap();
        // Without a pause, until some have arrived, and some more.
        let (mut sent, mut after) = (0_u64, 0);
        while after < 1_000 {
            let message = DirectMessage { id: sent, ..sent.to_le_bytes().to_vec().into() };
            caller.send(addr(&bob), message);
            sent += 1;
            after += usize::from(!results.is_empty());
        }
        for _ in 0..sent {
            assert!(results.recv_timeout(PATIENCE).unwrap().result.is_ok());
        }
        let came = came.lock();
        let inverted = came.windows(2).find(|two| two[0] > two[1]);
        assert_eq!((came.len() as u64, inverted), (sent, None));
    }
}

#[test]
fn what_waits_for_an_address_goes_first_when_somebody_is_found_there_for_another_reason() {
    const HOUR: Duration = Duration::from_secs(3_600);
    let _alone = alone();
    let mut config = quick();
    (config.backoff.base, config.backoff.cap) = (HOUR, HOUR);
    (config.backoff.jitter, config.unknown_timeout) = (0.0, HOUR);
    let (sender, caller) = started(config);
    let place = later();
    caller.send(place.addr, "first");
    caller.event(|event| matches!(event, Event::DialFailed { .. }).then_some(()));
    let mut config = quick();
    config.listen = vec![place.addr];
    let bob = common::start(config);
    // By his id he is dialled at once, and where the first one waits an hour later.
    caller.put(bob.id(), &[place.addr]);
    sender.wait_connected(bob.id(), PATIENCE).unwrap();
    caller.send(place.addr, "second");
    for expected in ["first", "second"] {
        assert_eq!(bob.recv_timeout(PATIENCE).unwrap().payload(), expected.as_bytes());
        assert!(caller.result().result.is_ok());
    }
    assert_eq!(caller.metrics.snapshot().sessions_started, 1);
}

#[test]
fn a_message_for_nobody_comes_back_with_the_reason() {
    let _alone = alone();
    let mut config = quick();
    (config.unknown_peers, config.max_message) = (1, 1_000);
    let (sender, caller) = started(config);
    let message = DirectMessage { id: 7, payload: vec![3; 3], options: SendOptions::new().kind(5) };
    caller.send("carol", message.clone());
    let result = caller.result();
    assert_eq!((result.id, result.message), (7, Some(message)), "as it was given");
    assert_eq!(result.result.unwrap_err(), TransportError::Refused(SendErrorKind::UnknownName));
    caller.send(sender.id(), "to myself");
    assert_eq!(caller.error().0, TransportError::Refused(SendErrorKind::UnknownPeer));
    caller.send(nobody(), vec![0; 1_001]);
    assert_eq!(caller.error().0, TransportError::Refused(SendErrorKind::TooLarge));
    caller.send(nobody(), "waits until it is known");
    caller.send(PeerId::from_bytes([10; 32]), "one unknown peer too many");
    assert_eq!(caller.error().0, TransportError::Refused(SendErrorKind::TooManyUnknown));
}

#[test]
fn a_message_to_an_address_where_nobody_is_comes_back_in_time_and_gives_its_place_back() {
    let _alone = alone();
    let mut config = quick();
    (config.unknown_peers, config.unknown_timeout) = (1, Duration::from_millis(300));
    let (sender, caller) = started(config);
    let nowhere = later();
    (0..3).for_each(|_| caller.send(nowhere.addr, "hello?"));
    for _ in 0..3 {
        let (error, message) = caller.error();
        let unknown = TransportError::Returned(ReturnReason::PeerUnknown);
        assert_eq!((error, &message.payload[..]), (unknown, &b"hello?"[..]));
    }
    wait_until("its place is free again", || sender.peer_sender(nobody()).is_ok());
}
