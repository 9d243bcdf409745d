//! A direct sender on its own: each input and each output, over every transport; to whom messages go, what becomes of
//! them, how it ends.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use threadwire::config::{Channel, Peer, TrustMode};
use threadwire::direct::{
    ConnectionRole, DirectInputs, DirectMessage, DirectReceiver, DirectSender, IncomingSender, NetMetrics, PeerData,
    PeerEvent, PeersMap, StopReason, TransferResult, TransportError, run_direct_sender,
};
use threadwire::error::{CloseReason, ConnectError, DialCause, DisconnectReason, RejectCause, SendErrorKind};
use threadwire::handshake::{Identity, Offer};
use threadwire::ident::SessionKind;
use threadwire::transport::memory::Memory;
use threadwire::{Batch, Config, Event, Manner, Node, PeerId, Priority, ReturnReason, SendOptions, TapOptions, Watch};

#[path = "../common/mod.rs"]
mod common;

mod destinations;
mod ends;
mod results;

use common::names::Names;
use common::{PATIENCE, addr, alone, channels, over, quick, wait_until};

/// What a caller of a direct sender holds.
struct Caller {
    config: Watch<Config>,
    peers: Watch<PeersMap>,
    messages: Sender<(DirectReceiver, DirectMessage, Instant)>,
    results: Receiver<TransferResult>,
    events: Receiver<Event>,
    incoming: Receiver<Batch>,
    metrics: NetMetrics,
}

/// Inputs with every channel of them in use.
fn inputs(config: Config) -> (DirectInputs, Caller) {
    let (config, peers) = (Watch::new(config), Watch::new(PeersMap::new()));
    let (messages, to_send) = bounded(1_000);
    let (to_results, results) = bounded(1_000);
    let (to_events, events) = bounded(1_000);
    let (to_incoming, incoming) = IncomingSender::channel();
    let mut inputs = DirectInputs::new(&config, to_send);
    (inputs.peers, inputs.results, inputs.events) = (Some(peers.subscribe()), Some(to_results), Some(to_events));
    inputs.incoming = to_incoming;
    let metrics = inputs.metrics.clone();
    (inputs, Caller { config, peers, messages, results, events, incoming, metrics })
}

impl Caller {
    fn send(&self, to: impl Into<DirectReceiver>, message: impl Into<DirectMessage>) {
        self.messages.send((to.into(), message.into(), Instant::now())).unwrap();
    }

    fn result(&self) -> TransferResult {
        self.results.recv_timeout(PATIENCE).unwrap()
    }

    /// What became of the next message, which did not arrive.
    fn error(&self) -> (TransportError, DirectMessage) {
        let result = self.result();
        (result.result.unwrap_err(), result.message.unwrap())
    }

    fn put(&self, id: PeerId, addrs: &[std::net::SocketAddr]) {
        self.peers.update(|map| drop(map.insert(id, addrs.iter().copied().map(PeerData::from).collect())));
    }

    /// The next event that `pick` wants.
    fn event<T>(&self, pick: impl Fn(Event) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(picked) = pick(self.events.recv_deadline(deadline).unwrap()) {
                return picked;
            }
        }
    }
}

fn started(config: Config) -> (DirectSender, Caller) {
    let (inputs, caller) = inputs(config);
    (DirectSender::start(inputs).unwrap(), caller)
}

/// A node that counts what comes.
fn sink() -> Node {
    Node::builder().config(quick()).handler(|_, _| {}).start().unwrap()
}

fn nobody() -> PeerId {
    PeerId::from_bytes([9; 32])
}

#[test]
fn messages_go_and_replies_come_over_every_transport_under_the_credential_that_was_given() {
    let _alone = alone();
    let hub = Memory::new();
    for memory in [false, true] {
        for channel in channels() {
            let mut builder = Node::builder().config(over(channel));
            let (mut inputs, caller) = inputs(over(channel));
            if memory {
                builder = builder.transport(hub.clone());
                inputs.transport = Some(Arc::new(hub.clone()));
            }
            let identity = Identity::generate().unwrap();
            let id = identity.peer_id();
            inputs.credential = Some(identity);
            let (bob, sender) = (builder.start().unwrap(), DirectSender::start(inputs).unwrap());
            assert_eq!(sender.id(), id);
            caller.put(bob.id(), &[addr(&bob)]);
            caller.send(bob.id(), "question");
            let message = bob.recv_timeout(PATIENCE).unwrap();
            assert_eq!((message.payload(), message.from()), (&b"question"[..], id), "{channel:?}, in memory: {memory}");
            message.reply("answer").unwrap();
            drop(message);
            let batch: Vec<_> = caller.incoming.recv_timeout(PATIENCE).unwrap().collect();
            assert_eq!((batch[0].payload(), batch[0].from()), (&b"answer"[..], bob.id()));
            drop(batch);
            assert_eq!(caller.result().result.unwrap().bytes, 8);
            // It listens as well.
            drop(dialled_by(&sender, memory, &hub, channel));
            assert!(sender.shutdown(PATIENCE).is_clean());
        }
    }
}

/// Another node that has a session with the sender, which it dialled.
fn dialled_by(sender: &DirectSender, memory: bool, hub: &Memory, channel: Channel) -> Node {
    let mut builder = Node::builder().config(over(channel));
    if memory {
        builder = builder.transport(hub.clone());
    }
    let carol = builder.start().unwrap();
    carol.add_peer(sender.id(), sender.local_addrs()).unwrap();
    carol.wait_connected(sender.id(), PATIENCE).unwrap();
    carol
}

#[test]
fn a_configuration_that_is_wrong_starts_nothing() {
    let _alone = alone();
    let mut config = quick();
    config.idle_timeout = Duration::ZERO;
    assert!(DirectSender::start(inputs(config.clone()).0).is_err());
    assert!(run_direct_sender(inputs(config).0).is_err());
}

#[test]
fn a_change_of_the_configuration_is_put_to_use_and_a_wrong_one_is_not() {
    let _alone = alone();
    let mut config = quick();
    (config.security.trust, config.security.trusted) = (TrustMode::Listed, Vec::new());
    let (sender, caller) = started(config);
    let bob = common::start(quick());
    let dial = || bob.connect(sender.local_addrs()[0]);
    let refused = |dialled: Result<_, ConnectError>| {
        let Err(ConnectError::Dial(errors)) = dialled else { panic!("{dialled:?}") };
        assert_eq!(errors[0].cause, DialCause::Refused(CloseReason::Untrusted));
    };
    refused(dial());
    // Refused whole: what is right in it is not put to use either.
    caller.config.update(|config| {
        config.idle_timeout = Duration::ZERO;
        config.security.trusted.push(bob.id());
    });
    caller.send("nobody", "the change was looked at before this");
    caller.error();
    refused(dial());
    caller.config.update(|config| config.idle_timeout = quick().idle_timeout);
    caller.send("nobody", "the change was looked at before this");
    caller.error();
    assert_eq!(dial().unwrap().id(), sender.id());
    // Not trust alone.
    caller.config.update(|config| {
        config.peers = vec![Peer::new("bob", bob.id(), [addr(&bob).into()])];
        config.max_message = 10;
    });
    caller.send("bob", "ten bytes.");
    assert_eq!(bob.recv_timeout(PATIENCE).unwrap().payload(), b"ten bytes.");
    assert!(caller.result().result.is_ok());
    caller.send("bob", "eleven byte");
    assert_eq!(caller.error().0, TransportError::Refused(SendErrorKind::TooLarge));
}

#[test]
fn counts_are_there_before_during_and_after() {
    let _alone = alone();
    let bob = sink();
    let (inputs, caller) = inputs(quick());
    assert_eq!(caller.metrics.snapshot(), NetMetrics::new().snapshot());
    let sender = DirectSender::start(inputs).unwrap();
    caller.put(bob.id(), &[addr(&bob)]);
    caller.send(bob.id(), "counted");
    assert!(caller.result().result.is_ok());
    let running = caller.metrics.snapshot();
    assert_eq!((running.traffic.messages_accepted, running.traffic.messages_acked, running.dials), (1, 1, 1));
    assert!(sender.shutdown(PATIENCE).is_clean());
    drop(sender);
    let after = caller.metrics.snapshot();
    assert_eq!((after.traffic.messages_acked, after.sessions_started, after.sessions_ended), (1, 1, 1));
}

#[test]
fn age_and_expiry_count_from_the_timestamp_that_came_with_the_message() {
    let _alone = alone();
    let bob = sink();
    let (sender, caller) = started(quick());
    let made = Instant::now().checked_sub(Duration::from_secs(10)).unwrap();
    let send = |id, ttl| {
        let options = SendOptions::new().ttl(Duration::from_secs(ttl));
        let message = DirectMessage { id, payload: vec![1], options };
        caller.messages.send((bob.id().into(), message, made)).unwrap();
    };
    send(1, 5);
    send(2, 3_600);
    let result = caller.result();
    assert_eq!((result.id, result.created_at), (1, made));
    assert_eq!(result.result.unwrap_err(), TransportError::Returned(ReturnReason::Expired), "though it never was sent");
    caller.put(bob.id(), &[addr(&bob)]);
    let timing = caller.result().result.unwrap();
    let old = Duration::from_secs(10);
    assert!(timing.queued_for >= old && timing.written_after >= timing.queued_for, "{timing:?}");
    assert!(timing.done_after >= timing.written_after && sender.id() != bob.id());
}

#[test]
fn outgoing_messages_are_announced_to_the_taps_that_the_caller_brought() {
    let _alone = alone();
    let bob = sink();
    let (inputs, caller) = inputs(quick());
    let tap = inputs.outgoing.subscribe(&TapOptions::new().payloads(100));
    let sender = DirectSender::start(inputs).unwrap();
    caller.put(bob.id(), &[addr(&bob)]);
    let urgent = SendOptions::new().priority(Priority::Urgent).kind(4);
    let made = Instant::now();
    caller.messages.send((bob.id().into(), DirectMessage { options: urgent, .."hello".into() }, made)).unwrap();
    let told = tap.recv_timeout(PATIENCE).unwrap();
    assert_eq!((told.to, told.kind, told.manner, told.priority), (bob.id(), 4, Manner::Direct, Some(Priority::Urgent)));
    assert_eq!((told.created_at, told.payload.as_deref()), (made, Some(&b"hello".to_vec())));
    assert!(caller.result().result.is_ok() && sender.id() != bob.id());
}

#[test]
fn what_comes_goes_to_a_handler_or_is_rejected_if_there_is_nobody() {
    let _alone = alone();
    let (seen, heard) = unbounded();
    let handler = IncomingSender::handler(move |peer, message| {
        message.reply("seen").unwrap();
        seen.send((peer.id(), message.payload().to_vec())).unwrap();
    });
    let (mut handles, _caller) = inputs(quick());
    handles.incoming = handler;
    let (mut refuses, _other) = inputs(quick());
    refuses.incoming = IncomingSender::nobody();
    let [handles, refuses] = [handles, refuses].map(|inputs| DirectSender::start(inputs).unwrap());
    let bob = common::start(quick());
    for sender in [&handles, &refuses] {
        bob.add_peer(sender.id(), sender.local_addrs()).unwrap();
    }
    let to_handler = bob.wait_connected(handles.id(), PATIENCE).unwrap();
    to_handler.send("hello").unwrap();
    assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), (bob.id(), b"hello".to_vec()));
    assert_eq!(bob.recv_timeout(PATIENCE).unwrap().payload(), b"seen");
    let to_nobody = bob.wait_connected(refuses.id(), PATIENCE).unwrap();
    let outcome = to_nobody.send_with("hello", &SendOptions::new()).unwrap().wait(PATIENCE).unwrap();
    let rejected = ReturnReason::Rejected(RejectCause::NoHandler);
    assert_eq!(outcome, threadwire::Outcome::Returned { payload: b"hello".to_vec(), reason: rejected });
}

#[test]
fn when_the_consumer_is_gone_messages_come_back_and_their_session_says_so() {
    let _alone = alone();
    for bytes in [10, 200_000] {
        let (sender, caller) = started(quick());
        let bob = common::start(quick());
        bob.add_peer(sender.id(), sender.local_addrs()).unwrap();
        let to_sender = bob.wait_connected(sender.id(), PATIENCE).unwrap();
        to_sender.send("taken").unwrap();
        assert_eq!(caller.incoming.recv_timeout(PATIENCE).unwrap().count(), 1);
        drop(caller.incoming);
        let receipt = to_sender.send_with(vec![0; bytes], &SendOptions::new()).unwrap();
        let outcome = receipt.wait(PATIENCE).unwrap();
        let rejected = ReturnReason::Rejected(RejectCause::NoHandler);
        assert!(matches!(outcome, threadwire::Outcome::Returned { reason, .. } if reason == rejected), "{outcome:?}");
        let why = common::wait_event(&bob, "the session ends", |event| match event {
            Event::Disconnected { reason, .. } => Some(reason),
            _ => None,
        });
        assert_eq!(why, DisconnectReason::Remote(CloseReason::ConsumerGone));
        // A question too, and what it still sends arrives.
        bob.wait_connected(sender.id(), PATIENCE).unwrap();
        assert!(to_sender.request("anybody?", PATIENCE).is_err());
        bob.wait_connected(sender.id(), PATIENCE).unwrap();
        caller.messages.send((bob.id().into(), "still sends".into(), Instant::now())).unwrap();
        assert_eq!(bob.recv_timeout(PATIENCE).unwrap().payload(), b"still sends");
    }
}

#[test]
fn the_map_of_peers_is_followed_and_what_becomes_of_their_senders_is_told() {
    let _alone = alone();
    let bob = sink();
    let (sender, caller) = started(quick());
    caller.put(bob.id(), &[addr(&bob)]);
    let resolved = caller.event(|event| match event {
        Event::Peer(PeerEvent::AddrsResolved { peer, addrs, .. }) => Some((peer, addrs)),
        _ => None,
    });
    assert_eq!(resolved, (bob.id(), vec![addr(&bob)]));
    sender.wait_connected(bob.id(), PATIENCE).unwrap();
    caller.peers.set(PeersMap::new());
    let stopped = caller.event(|event| match event {
        Event::Peer(PeerEvent::SenderStopped { peer, addr, reason, .. }) => Some((peer, addr, reason)),
        _ => None,
    });
    assert_eq!(stopped, (bob.id(), Some(addr(&bob)), StopReason::Vanished));
}

#[test]
fn events_that_nobody_takes_are_counted_and_told_with_the_next_one() {
    let _alone = alone();
    let (mut inputs, caller) = inputs(quick());
    let (to_events, events) = bounded(2);
    inputs.events = Some(to_events);
    let sender = DirectSender::start(inputs).unwrap();
    let bob = common::start(quick());
    // Two events each.
    let round = |missed| {
        bob.connect(sender.local_addrs()[0]).unwrap();
        bob.wait_connected(sender.id(), PATIENCE).unwrap();
        sender.wait_connected(bob.id(), PATIENCE).unwrap();
        bob.disconnect(sender.id(), CloseReason::Requested).unwrap();
        wait_until("both were told, or missed", || {
            let ends = caller.metrics.snapshot();
            ends.sessions_started == ends.sessions_ended && ends.events_missed == missed
        });
        wait_until("it is over there too", || bob.sessions().is_empty());
    };
    [0, 2, 4].into_iter().for_each(round);
    assert_eq!(events.try_iter().count(), 2);
    round(5);
    let told: Vec<_> = events.try_iter().collect();
    assert!(matches!(told[..], [Event::Missed(4), Event::Connected { .. }]), "{told:?}");
}

#[test]
fn the_sender_of_a_peer_knows_its_connection_and_starts_transfers() {
    let _alone = alone();
    let bob = sink();
    let (sender, caller) = started(quick());
    caller.put(bob.id(), &[]);
    let to_bob = sender.peer_sender(bob.id()).unwrap();
    assert_eq!((to_bob.id(), to_bob.addr(), to_bob.connection()), (bob.id(), None, None));
    to_bob.start_transfer_message("queued, not dropped", Instant::now()).unwrap();
    caller.put(bob.id(), &[addr(&bob)]);
    let result = caller.result();
    assert_eq!((result.peer, result.result.unwrap().bytes), (Some(bob.id()), 19));
    let connection = to_bob.connection().unwrap();
    assert_eq!((connection.host_id, connection.role), (bob.id(), ConnectionRole::Direct));
    assert_eq!((connection.kind, connection.remote_addr), (SessionKind::Outbound, addr(&bob)));
    assert_eq!(to_bob.addr(), Some(addr(&bob)));
    let refused = to_bob.start_transfer_message(vec![0; 100 << 20], Instant::now()).unwrap_err();
    assert_eq!(refused.result.unwrap_err(), TransportError::Refused(SendErrorKind::TooLarge));
    assert_eq!(refused.message.unwrap().payload.len(), 100 << 20);
}

#[test]
fn names_of_the_map_are_looked_up_where_the_caller_says() {
    let _alone = alone();
    let (bob, names) = (sink(), Names::default());
    names.set("north.test", &["127.0.0.1"]);
    let (mut inputs, caller) = inputs(quick());
    inputs.resolver = Arc::new(names.clone());
    let sender = DirectSender::start(inputs).unwrap();
    let place = PeerData::new(format!("north.test:{}", addr(&bob).port()).parse().unwrap());
    caller.peers.set(PeersMap::from([(bob.id(), vec![place])]));
    assert_eq!(sender.wait_connected(bob.id(), PATIENCE).unwrap().addr(), Some(addr(&bob)));
    assert!(names.asked("north.test") > 0);
}

#[test]
fn whom_the_callers_policy_refuses_has_no_session_and_all_others_do() {
    let _alone = alone();
    let [bob, carol] = [(); 2].map(|()| common::start(quick()));
    let (mut inputs, caller) = inputs(quick());
    let unwanted = bob.id();
    let wanted = move |offer: &Offer<'_>| if offer.peer == unwanted { Err("not you".to_owned()) } else { Ok(()) };
    inputs.policy = Some(Arc::new(wanted));
    let sender = DirectSender::start(inputs).unwrap();
    let refused = bob.connect(sender.local_addrs()[0]);
    let Err(ConnectError::Dial(errors)) = refused else { panic!("{refused:?}") };
    assert_eq!(errors[0].cause, DialCause::Refused(CloseReason::Refused));
    assert_eq!(carol.connect(sender.local_addrs()[0]).unwrap().id(), sender.id());
    sender.wait_connected(carol.id(), PATIENCE).unwrap();
    assert_eq!(caller.metrics.snapshot().sessions_started, 1);
}
