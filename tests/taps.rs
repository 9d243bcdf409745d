//! Taps: other parts of the process hear of each message that is accepted, and no send waits for them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use threadwire::config::Peer;
use threadwire::error::SendErrorKind;
use threadwire::{
    Answers, Collector, Config, Delivery, Kind, Manner, Message, Node, OutgoingMessage, OverflowPolicy, PeerHandle,
    Priority, SendOptions, TapOptions, To,
};

mod common;
use common::port::later;
use common::{PATIENCE, addr, base, link, start, wait_until};

fn next(tap: &Receiver<OutgoingMessage>) -> OutgoingMessage {
    tap.recv_timeout(PATIENCE).unwrap()
}

/// A node that answers each question, and replies to each message of kind 1, with its payload.
fn echo() -> Node {
    let echo = |_: &PeerHandle, message: Message<'_>| {
        if message.kind() != 9 {
            message.reply(message.payload()).unwrap();
        }
    };
    Node::builder().config(base()).handler(echo).start().unwrap()
}

/// Sends these bytes, or a message in which they are the end.
type Verb<'a> = Box<dyn Fn(Vec<u8>) + 'a>;

fn verb<'a>(send: impl Fn(Vec<u8>) + 'a) -> Verb<'a> {
    Box::new(send)
}

#[test]
fn a_tap_is_told_once_of_each_message_by_whatever_verb_it_was_sent() {
    let (bob, nobody) = (echo(), later());
    let mut config = base();
    config.peers = vec![Peer::new("bob", bob.id(), [addr(&bob).into()])];
    let alice = start(config);
    let peer = alice.wait_connected(bob.id(), PATIENCE).unwrap();
    let [at, nowhere] = [addr(&bob), nobody.addr].map(|addr| alice.peer_at(addr).unwrap());
    at.wait(PATIENCE).unwrap();
    let ((collector, _outcomes), answers) = (Collector::new(10), Answers::new());
    let (plain, waits) = (SendOptions::new(), PATIENCE);
    let best_effort = plain.clone().delivery(Delivery::BestEffort);
    let tap = alice.subscribe_outgoing_with(&TapOptions::new().payloads(1_000));
    let to_bob = [
        verb(|bytes| peer.send(bytes).unwrap()),
        verb(|bytes| peer.send_kind(9, bytes).unwrap()),
        verb(|bytes| peer.try_send(bytes).unwrap()),
        verb(|bytes| peer.send_timeout(bytes, waits).unwrap()),
        verb(|bytes| drop(peer.send_with(bytes, &plain).unwrap())),
        verb(|bytes| drop(peer.send_with(bytes, &best_effort).unwrap())),
        verb(|bytes| peer.send_collected(bytes, &plain, &collector, 1).unwrap()),
        verb(|bytes| peer.send_msg(&bytes).unwrap()),
        verb(|bytes| alice.send(bob.id(), bytes).unwrap()),
        verb(|bytes| alice.send_to(bob.id(), bytes).unwrap()),
        verb(|bytes| alice.send_to("bob", bytes).unwrap()),
        verb(|bytes| alice.send_to(addr(&bob), bytes).unwrap()),
        verb(|bytes| alice.try_send_to("bob", bytes).unwrap()),
        verb(|bytes| alice.send_to_timeout("bob", bytes, waits).unwrap()),
        verb(|bytes| drop(alice.send_to_with("bob", bytes, &plain).unwrap())),
        verb(|bytes| at.send(bytes).unwrap()),
        verb(|bytes| at.try_send(bytes).unwrap()),
        verb(|bytes| at.send_timeout(bytes, waits).unwrap()),
        verb(|bytes| drop(at.send_with(bytes, &plain).unwrap())),
        verb(|bytes| assert_eq!(alice.anycast(bytes, To::all()), Ok(bob.id()))),
        verb(|bytes| assert_eq!(alice.anycast_msg(&bytes, To::all()), Ok(bob.id()))),
        verb(|bytes| drop(alice.anycast_with(bytes, To::all(), &plain).unwrap())),
    ];
    let to_all = [
        verb(|bytes| assert_eq!(alice.broadcast(bytes, To::all()).sent(), 1)),
        verb(|bytes| assert_eq!(alice.broadcast_kind(9, bytes, To::all()).sent(), 1)),
        verb(|bytes| assert_eq!(alice.broadcast_msg(&bytes, To::all()).unwrap().sent(), 1)),
        verb(|bytes| assert_eq!(alice.broadcast_with(bytes, To::all(), &plain).sent(), 1)),
    ];
    let questions = [
        verb(|bytes| drop(peer.request(bytes, waits).unwrap())),
        verb(|bytes| drop(peer.request_with(bytes, waits, &plain).unwrap())),
        verb(|bytes| drop(peer.request_msg::<_, Vec<u8>>(&bytes, waits).unwrap())),
        verb(|bytes| drop(peer.request_msg_with::<_, Vec<u8>>(&bytes, waits, &plain).unwrap())),
        verb(|bytes| drop(peer.ask(bytes, waits).unwrap())),
        verb(|bytes| drop(peer.ask_with(bytes, waits, &plain).unwrap())),
        verb(|bytes| peer.ask_into(bytes, waits, &plain, &answers, 1).unwrap()),
    ];
    // Where nobody has proven itself.
    let to_nobody = [
        verb(|bytes| alice.send_to(nobody.addr, bytes).unwrap()),
        verb(|bytes| nowhere.send(bytes).unwrap()),
        verb(|bytes| drop(nowhere.send_with(bytes, &plain).unwrap())),
    ];
    let mut number = 0_u32;
    for (manner, verbs, is_known) in [
        (Manner::Direct, &to_bob[..], true),
        (Manner::Broadcast, &to_all, true),
        (Manner::Request, &questions, true),
        (Manner::Direct, &to_nobody, false),
    ] {
        for (at, verb) in verbs.iter().enumerate() {
            number += 1;
            verb(number.to_be_bytes().to_vec());
            let told = next(&tap);
            assert_eq!((told.manner, told.missed), (manner, 0), "{manner:?}, verb {at}");
            assert!(told.payload.unwrap().ends_with(&number.to_be_bytes()), "{manner:?}, verb {at}");
            assert_eq!((told.to == bob.id(), told.to.stands_for().is_none()), (is_known, is_known));
            assert!(tap.is_empty(), "{manner:?}, verb {at}: told twice");
        }
    }
}

#[test]
fn what_a_tap_is_told_of_a_message_and_its_payload_if_it_wants_that() {
    let (alice, bob) = (start(base()), echo());
    let to_bob = link(&alice, &bob);
    let tap = alice.subscribe_outgoing();
    let wants = TapOptions::new().payloads(64);
    let with_payloads = alice.subscribe_outgoing_with(&wants);
    let options = SendOptions::new().kind(9);
    let made = Instant::now().checked_sub(Duration::from_secs(5)).unwrap();

    to_bob.send_kind(9, b"send").unwrap();
    alice.send(bob.id(), b"by id").unwrap();
    to_bob.try_send(vec![1; 100_000]).unwrap();
    let urgent = options.clone().priority(Priority::Urgent).created_at(made);
    assert!(to_bob.send_with("urgent", &urgent).unwrap().wait(PATIENCE).unwrap().is_success());
    assert_eq!(alice.broadcast_kind(9, "to all", To::all()).sent(), 1);
    assert_eq!(alice.broadcast_with("all, with receipts", To::all(), &options).sent(), 1);
    alice.anycast("to any", To::all()).unwrap();
    to_bob.request("question", PATIENCE).unwrap();

    let told: Vec<_> = tap.try_iter().collect();
    let of = |one: &OutgoingMessage| (one.kind, one.manner, one.priority, one.bytes);
    let normal = Some(Priority::Normal);
    let expected = [
        (9, Manner::Direct, normal, 4),
        (0, Manner::Direct, normal, 5),
        (0, Manner::Direct, normal, 100_000),
        (9, Manner::Direct, Some(Priority::Urgent), 6),
        (9, Manner::Broadcast, normal, 6),
        (9, Manner::Broadcast, normal, 18),
        (0, Manner::Direct, normal, 6),
        (0, Manner::Request, normal, 8),
    ];
    assert_eq!(told.iter().map(of).collect::<Vec<_>>(), expected);
    assert!(told.iter().all(|one| one.to == bob.id() && one.missed == 0 && one.payload.is_none()));
    assert_eq!(told[3].created_at, made, "the application's own time");
    assert!(told.iter().all(|one| one.created_at == made || one.created_at <= one.accepted_at));

    let told: Vec<_> = with_payloads.try_iter().collect();
    assert_eq!(told.iter().map(of).collect::<Vec<_>>(), expected, "each tap is told of everything");
    let texts = told.iter().map(|one| one.payload.as_deref().map(|text| String::from_utf8(text.clone()).unwrap()));
    let texts: Vec<_> = texts.collect();
    let text = |text: &str| Some(text.to_owned());
    let small = [text("send"), text("by id"), None, text("urgent"), text("to all"), text("all, with receipts")];
    assert_eq!(texts, [&small[..], &[text("to any"), text("question")]].concat(), "up to its size");
    assert_eq!(alice.metrics().traffic.messages_accepted, 8, "nothing else was accepted");
}

#[test]
fn replies_and_answers_are_announced_where_they_are_sent_and_word_of_no_answer_is_not() {
    const SILENT: u16 = 5;
    let bob = Node::builder().config(base()).kind(Kind::new(SILENT, "silent")).start().unwrap();
    let (alice, tap) = (start(base()), bob.subscribe_outgoing());
    let to_bob = link(&alice, &bob);
    to_bob.send_kind(3, b"message").unwrap();
    bob.recv_timeout(PATIENCE).unwrap().reply("a reply").unwrap();
    let reply = next(&tap);
    assert_eq!((reply.to, reply.manner, reply.priority, reply.kind), (alice.id(), Manner::Reply, None, 3));

    let questions =
        [3, SILENT].map(|kind| to_bob.ask_with("question", PATIENCE, &SendOptions::new().kind(kind)).unwrap());
    bob.recv_timeout(PATIENCE).unwrap().responder().answer("an answer").unwrap();
    drop(bob.recv_timeout(PATIENCE).unwrap().responder());
    let ends = questions.map(|question| question.wait().is_ok());
    assert_eq!(ends, [true, false]);
    let answer = next(&tap);
    assert_eq!((answer.manner, answer.kind, answer.bytes), (Manner::Reply, 3, 9));
    assert!(tap.try_recv().is_err(), "one of them had no answer");
}

#[test]
fn a_broadcast_is_announced_for_each_peer_and_its_bytes_are_shared() {
    let alice = start(base());
    let others = [start(base()), start(base()), start(base())];
    others.iter().for_each(|other| drop(link(&alice, other)));
    let taps = [(); 2].map(|()| alice.subscribe_outgoing_with(&TapOptions::new().payloads(usize::MAX)));
    assert_eq!(alice.broadcast(vec![7; 100_000], To::all()).sent(), 3);
    let told = taps.map(|tap| tap.try_iter().collect::<Vec<_>>());
    let payloads: Vec<_> = told.iter().flatten().map(|one| one.payload.clone().unwrap()).collect();
    assert!(payloads.len() == 6 && payloads.iter().all(|one| Arc::ptr_eq(one, &payloads[0])), "one copy for all");
    let mut peers: Vec<_> = told[0].iter().map(|one| one.to).collect();
    let mut all: Vec<_> = others.iter().map(Node::id).collect();
    peers.sort_unstable();
    all.sort_unstable();
    assert_eq!(peers, all);
}

#[test]
fn what_is_refused_is_not_announced_and_what_is_taken_only_to_be_dropped_is() {
    let mut config = base();
    (config.queue_messages, config.max_message) = (2, 1_000);
    let alice = start(config);
    let away = alice.add_peer(start(Config::loopback()).id(), common::NOWHERE).unwrap();
    let tap = alice.subscribe_outgoing();
    assert_eq!(away.try_send(vec![0; 1_001]).unwrap_err().kind, SendErrorKind::TooLarge);
    away.try_send("one").unwrap();
    away.try_send("two").unwrap();
    assert_eq!(away.try_send("three").unwrap_err().kind, SendErrorKind::Full);
    let newest = SendOptions::new().overflow(OverflowPolicy::DropNewest);
    assert!(!away.send_with("dropped", &newest).unwrap().outcome().unwrap().is_success());
    assert_eq!(tap.try_iter().map(|one| one.bytes).collect::<Vec<_>>(), [3, 3, 7]);
    assert_eq!(away.stats().accepted, 3);
}

#[test]
fn sends_go_on_beside_a_tap_that_nobody_reads_and_what_it_missed_is_counted_exactly() {
    const THREADS: usize = 4;
    const EACH: usize = 2_000;
    const HELD: usize = 10;
    let bob = Node::builder().config(base()).handler(|_, _| {}).start().unwrap();
    let alice = start(base());
    let to_bob = link(&alice, &bob);
    let stuck = alice.subscribe_outgoing_with(&TapOptions::new().capacity(HELD).payloads(1 << 20));
    // One that keeps up beside it.
    let wide = alice.subscribe_outgoing_with(&TapOptions::new().capacity(THREADS * EACH + 1));
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| (0..EACH).for_each(|_| to_bob.send([7; 64]).unwrap()));
        }
    });
    wait_until("all of it has arrived", || to_bob.stats().acked == (THREADS * EACH) as u64);
    let missed = (THREADS * EACH - HELD) as u64;
    assert_eq!(alice.metrics().outgoing_missed, missed);
    assert_eq!(stuck.try_iter().map(|one| one.missed).sum::<u64>(), 0, "it missed what came after these");
    to_bob.send("one more").unwrap();
    let told: Vec<_> = stuck.try_iter().map(|one| (one.bytes, one.missed)).collect();
    assert_eq!(told, [(8, missed)], "and is told with the next one");
    let told: Vec<_> = wide.try_iter().map(|one| one.missed).collect();
    assert!(told.len() == THREADS * EACH + 1 && told.iter().all(|missed| *missed == 0), "nobody else missed any");
}

#[test]
fn a_tap_that_reads_slowly_adds_up_to_what_was_accepted() {
    const MESSAGES: u64 = 20_000;
    let bob = Node::builder().config(base()).handler(|_, _| {}).start().unwrap();
    let alice = start(base());
    let to_bob = link(&alice, &bob);
    let tap = alice.subscribe_outgoing_with(&TapOptions::new().capacity(3));
    let (mut told, mut missed) = (0, 0);
    let mut count = |one: OutgoingMessage| {
        told += 1;
        missed += one.missed;
    };
    thread::scope(|scope| {
        let sender = scope.spawn(|| (0..MESSAGES).for_each(|n| to_bob.send(n.to_le_bytes()).unwrap()));
        while !sender.is_finished() {
            tap.try_iter().for_each(&mut count);
        }
    });
    tap.try_iter().for_each(&mut count);
    to_bob.send("the last one").unwrap();
    tap.try_iter().for_each(&mut count);
    assert_eq!(told + missed, MESSAGES + 1);
    assert_eq!(alice.metrics().outgoing_missed, missed);
}

#[test]
fn a_subscriber_that_vanishes_among_sends_costs_nobody_a_message() {
    let bob = Node::builder().config(base()).handler(|_, _| {}).start().unwrap();
    let alice = start(base());
    let to_bob = link(&alice, &bob);
    let stays = alice.subscribe_outgoing_with(&TapOptions::new().capacity(10_000));
    thread::scope(|scope| {
        scope.spawn(|| (0..5_000u32).for_each(|n| to_bob.send(n.to_le_bytes()).unwrap()));
        // Each is there for some of the messages, or for none.
        (0..200).for_each(|_| drop(alice.subscribe_outgoing().try_recv()));
    });
    assert_eq!(stays.try_iter().count(), 5_000);
    drop(stays);
    to_bob.send("noticed").unwrap();
    assert_eq!(alice.metrics().outgoing_missed, 0, "what nobody wants is not missed");
    wait_until("all of it has arrived", || to_bob.stats().acked == 5_001);
}
