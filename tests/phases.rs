//! Each message that begins a phase of its delivery ends it once, whatever becomes of it; and how long it took is measured.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use threadwire::config::{Channel, Offline};
use threadwire::error::{CloseReason, RejectCause};
use threadwire::metrics::{Cast, MetricsSnapshot, Phase, Phases};
use threadwire::wire::{FrameHeader, FrameType, Lane, Prefix, flags, put_segment};
use threadwire::{Delivery, Kind, Node, OverflowPolicy, SendOptions, To};

mod common;
use common::mute::Mute;
use common::{PATIENCE, addr, away, base, link, loopback, outcome, plain, quick, start, wait_until};

const BLOCK: u16 = 7;
const VOTE: u16 = 8;

/// Messages that began a phase, that ended it well and otherwise, and that are in it.
type Counts = [u64; 4];

fn counts(phase: &Phase) -> Counts {
    let total = phase.total();
    [total.begun.messages, total.succeeded.messages, total.failed.messages, phase.open]
}

/// Bytes that began a phase, and that ended it well and otherwise.
fn bytes(phase: &Phase) -> [u64; 3] {
    let total = phase.total();
    [total.begun.bytes, total.succeeded.bytes, total.failed.bytes]
}

/// What began has ended, or is still there.
#[track_caller]
fn adds_up(phase: &Phase) {
    let [begun, succeeded, failed, open] = counts(phase);
    assert_eq!(begun, succeeded + failed + open, "{phase:?}");
    if open == 0 {
        let [begun, succeeded, failed] = bytes(phase);
        assert_eq!(begun, succeeded + failed, "{phase:?}");
    }
}

/// The phases of a node, once nothing is in one.
#[track_caller]
fn over(node: &Node) -> Phases {
    let open =
        |phases: &Phases| phases.outgoing_buffer.open + phases.outgoing_transfer.open + phases.incoming_buffer.open;
    wait_until("nothing is in a phase", || open(&node.metrics().phases) == 0);
    let MetricsSnapshot { phases, traffic, .. } = node.metrics();
    [&phases.outgoing_buffer, &phases.outgoing_transfer, &phases.incoming_buffer].into_iter().for_each(adds_up);
    let (buffer, transfer) = (phases.outgoing_buffer.total(), phases.outgoing_transfer.total());
    assert_eq!(buffer.succeeded, transfer.begun, "what is taken for the wire begins its transfer");
    assert_eq!(buffer.begun.messages, traffic.messages_accepted);
    assert_eq!(transfer.succeeded.messages, traffic.messages_acked + traffic.messages_written);
    let failed = buffer.failed.messages + transfer.failed.messages;
    assert_eq!(failed, traffic.messages_returned + traffic.messages_unknown);
    phases
}

#[test]
fn messages_of_all_sizes_that_are_handed_over_end_all_three_phases_well_with_all_their_bytes() {
    let (a, b) = (start(base()), start(base()));
    let peer = link(&a, &b);
    let sizes = [0, 1, 100, 32 << 10, 40_000, 300_000];
    for size in sizes {
        peer.send(vec![7; size]).unwrap();
        let receipt = peer.send_with(vec![8; size], &SendOptions::new()).unwrap();
        (0..2).for_each(|_| drop(b.recv_timeout(PATIENCE).unwrap()));
        assert!(outcome(receipt).is_success());
    }
    let sum = 2 * sizes.iter().sum::<usize>() as u64;
    let (sent, came) = (over(&a), over(&b));
    for phase in [&sent.outgoing_buffer, &sent.outgoing_transfer, &came.incoming_buffer] {
        assert_eq!((counts(phase), bytes(phase)), ([12, 12, 0, 0], [sum, sum, 0]), "{phase:?}");
        assert!(phase.total().times.count() > 0, "{phase:?}");
    }
    assert_eq!(counts(&sent.incoming_buffer), [0; 4]);
    let delay = a.metrics().ack_delay;
    assert!(delay.count() > 0 && delay.quantile(1.0).is_some_and(|most| most < PATIENCE), "{delay:?}");
    assert!(delay.sum <= sent.outgoing_transfer.total().times.sum, "from the write on, not from when it was taken");
}

#[test]
fn what_the_other_side_rejects_fails_its_transfer_here_and_its_stay_there() {
    let mut small = base();
    small.max_message = 100_000;
    let b = Node::builder().config(small).kind(Kind::new(BLOCK, "block").max_size(10)).on(BLOCK, |_, _| {});
    let b = b.on(VOTE, |_, message| assert_ne!(message.payload(), b"poison", "as it should")).start().unwrap();
    let a = start(quick());
    let peer = link(&a, &b);
    let send = |kind, payload: &[u8]| peer.send_with(payload, &SendOptions::new().kind(kind)).unwrap();
    let receipts = [
        send(BLOCK, b"taken"),
        send(BLOCK, b"longer than blocks are"),
        send(99, b"nobody wants it"),
        send(0, &[1; 200_000]),
        send(VOTE, b"taken"),
        send(VOTE, b"poison"),
    ];
    let good = receipts.map(outcome).map(|outcome| outcome.is_success());
    assert_eq!(good, [true, false, false, false, true, false]);
    let (sent, came) = (over(&a), over(&b));
    assert_eq!(counts(&sent.outgoing_buffer), [6, 6, 0, 0]);
    assert_eq!(counts(&sent.outgoing_transfer), [6, 2, 4, 0]);
    assert_eq!(bytes(&sent.outgoing_transfer)[1..], [10, 22 + 15 + 200_000 + 6]);
    assert_eq!(counts(&came.incoming_buffer), [6, 2, 4, 0]);
    assert_eq!(bytes(&came.incoming_buffer)[1..], [10, 22 + 15 + 200_000 + 6]);
    let of = |kind| {
        let row = came.incoming_buffer.of(kind, None).unwrap();
        [row.begun, row.succeeded, row.failed].map(|volume| volume.messages)
    };
    assert_eq!([of("block"), of("kind_8"), of("")], [[2, 1, 1], [2, 1, 1], [2, 0, 2]]);
    assert_eq!(b.metrics().traffic.rejected_by.get(RejectCause::TooLarge), 2);
}

#[test]
fn what_comes_back_before_it_is_written_fails_the_buffer_alone_for_whatever_reason() {
    let mut config = base();
    config.queue_messages = 2;
    let (node, peer) = away(config);
    let of = |overflow| SendOptions::new().overflow(overflow);
    let brief = SendOptions::new().ttl(Duration::from_millis(5));
    let expired = peer.send_with("expired", &brief).unwrap();
    assert!(!outcome(expired).is_success());
    let replaced = peer.send_with("replaced", &of(OverflowPolicy::Conflate(1))).unwrap();
    let dropped = peer.send_with("dropped", &of(OverflowPolicy::Conflate(1))).unwrap();
    let second = peer.send_with("second", &of(OverflowPolicy::DropOldest)).unwrap();
    let third = peer.send_with("third", &of(OverflowPolicy::DropOldest)).unwrap();
    let newest = peer.send_with("newest", &of(OverflowPolicy::DropNewest)).unwrap();
    for receipt in [replaced, dropped, newest] {
        assert!(!outcome(receipt).is_success());
    }
    let phases = node.metrics().phases;
    [&phases.outgoing_buffer, &phases.outgoing_transfer].into_iter().for_each(adds_up);
    assert_eq!((counts(&phases.outgoing_buffer), counts(&phases.outgoing_transfer)), ([6, 0, 4, 2], [0; 4]));
    let age = node.metrics().oldest_queued;
    assert!(age > Duration::ZERO && age < PATIENCE, "{age:?}");
    assert_eq!((node.metrics().queued_messages, node.metrics().peers_connected), (2, 0));
    node.shutdown(Duration::ZERO);
    for receipt in [second, third] {
        assert!(!outcome(receipt).is_success());
    }
    let phases = over(&node);
    assert_eq!((counts(&phases.outgoing_buffer), bytes(&phases.outgoing_buffer)), ([6, 0, 6, 0], [39, 0, 39]));
    assert_eq!(node.metrics().oldest_queued, Duration::ZERO);
}

#[test]
fn what_waits_in_segments_when_the_node_or_the_session_ends_fails_the_buffer() {
    for offline in [Offline::Keep, Offline::Return] {
        let mut config = quick();
        config.offline = offline;
        let (a, b) = (start(config), start(base()));
        a.add_peer(b.id(), b.local_addr()).unwrap();
        let peer = a.wait_connected(b.id(), PATIENCE).unwrap();
        // More than the window holds: the rest waits, in segments or one by one.
        for n in 0..120u8 {
            peer.send(vec![n; if n % 3 == 0 { 60_000 } else { 20_000 }]).unwrap();
        }
        wait_until("the window is full", || a.metrics().queued_messages > 10 && a.metrics().kept_bytes > 1 << 20);
        let before = a.metrics();
        [&before.phases.outgoing_buffer, &before.phases.outgoing_transfer].into_iter().for_each(adds_up);
        b.shutdown(Duration::ZERO);
        a.shutdown(Duration::ZERO);
        let phases = over(&a);
        let [begun, _, failed, _] = counts(&phases.outgoing_buffer);
        assert!(begun == 120 && failed > 10, "{offline:?}: {phases:?}");
        assert!(counts(&phases.outgoing_transfer)[2] > 0, "what was written and not taken: {phases:?}");
    }
}

#[test]
fn what_is_written_and_never_answered_fails_its_transfer_when_the_resume_window_ends() {
    let mut config = quick();
    config.resume_window = Duration::from_millis(50);
    let a = start(config);
    let (entered, leave) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let (inside, outside) = (entered.clone(), leave.clone());
    let b = loopback().handler(move |_, message| {
        if message.payload() == b"hold" {
            inside.wait();
            outside.wait();
        }
    });
    let b = b.start().unwrap();
    let peer = link(&a, &b);
    // All in one segment of what is kept, with one that is answered for before.
    let done = peer.send_with("done", &SendOptions::new()).unwrap();
    assert!(outcome(done).is_success());
    let hold = peer.send_with("hold", &SendOptions::new()).unwrap();
    entered.wait();
    peer.send("plain").unwrap();
    peer.send(vec![1; 100_000]).unwrap();
    wait_until("all is taken", || peer.stats().queued_messages == 0);
    let held = a.metrics().phases;
    [&held.outgoing_buffer, &held.outgoing_transfer].into_iter().for_each(adds_up);
    assert_eq!(counts(&held.outgoing_transfer), [4, 1, 0, 3]);
    a.remove_peer(b.id()).unwrap();
    assert!(matches!(outcome(hold), threadwire::Outcome::Unknown { .. }));
    let phases = over(&a);
    assert_eq!(counts(&phases.outgoing_transfer), [4, 1, 3, 0]);
    assert_eq!(bytes(&phases.outgoing_transfer)[1..], [4, 100_009]);
    leave.wait();
    drop(a);
    let came = over(&b);
    assert_eq!(counts(&came.incoming_buffer)[2..], [0, 0], "what came whole was handled: {came:?}");
}

#[test]
fn best_effort_ends_its_transfer_when_it_is_written_and_its_stay_where_too_much_waits() {
    let (a, b) = (start(base()), start(base()));
    let peer = link(&a, &b);
    let options = SendOptions::new().delivery(Delivery::BestEffort);
    // Nobody takes them: 256 KiB may wait beside the batch that is out.
    let mut sent = 0;
    wait_until("some are thrown away", || {
        sent += 1;
        assert!(outcome(peer.send_with(vec![1; 10_000], &options).unwrap()).is_success());
        b.metrics().traffic.messages_unread > 0
    });
    // What is on its way meanwhile may be thrown away too.
    let (mut taken, mut unread) = (0, 0);
    wait_until("each is taken or thrown away", || {
        taken += u64::from(b.recv_timeout(Duration::from_millis(1)).is_ok());
        unread = b.metrics().traffic.messages_unread;
        taken + unread == sent
    });
    let (sent_phases, came) = (over(&a), over(&b));
    assert_eq!(counts(&sent_phases.outgoing_transfer), [sent, sent, 0, 0]);
    assert_eq!(a.metrics().traffic.messages_written, sent);
    assert_eq!(counts(&came.incoming_buffer), [sent, sent - unread, unread, 0]);
    assert_eq!(bytes(&came.incoming_buffer)[2], unread * 10_000);
}

#[test]
fn kinds_and_broadcasts_are_counted_apart_on_each_way_a_message_can_take() {
    let hub = |config| {
        let builder = Node::builder().config(config).kind(Kind::new(BLOCK, "block"));
        builder.kind(Kind::new(VOTE, "vote")).start().unwrap()
    };
    let (a, peers) = (hub(base()), [hub(base()), hub(base())]);
    let handles = [0, 1].map(|peer| link(&a, &peers[peer]));
    let plain = SendOptions::new();
    // Alternating, so that one segment holds many of each.
    for _ in 0..20 {
        for handle in &handles {
            handle.send_kind(BLOCK, "direct block").unwrap();
            handle.send("direct").unwrap();
            drop(handle.send_with("vote", &plain.clone().kind(VOTE)).unwrap());
        }
        assert_eq!(a.broadcast_kind(BLOCK, "broadcast block", To::all()).sent(), 2);
        assert_eq!(a.broadcast("broadcast", To::all()).sent(), 2);
        assert_eq!(a.broadcast_kind(BLOCK, vec![1; 40_000], To::all()).sent(), 2);
        assert_eq!(a.broadcast_with("vote", To::all(), &plain.clone().kind(VOTE)).sent(), 2);
    }
    let chosen = a.anycast("any", To::all()).unwrap();
    for peer in &peers {
        let messages = 140 + usize::from(peer.id() == chosen);
        (0..messages).for_each(|_| drop(peer.recv_timeout(PATIENCE).unwrap()));
    }
    let sent = over(&a);
    for phase in [&sent.outgoing_buffer, &sent.outgoing_transfer] {
        let row = |kind, cast| {
            let row = phase.of(kind, Some(cast)).unwrap();
            assert_eq!(row.begun, row.succeeded);
            (row.begun.messages, row.begun.bytes)
        };
        assert_eq!(row("block", Cast::Direct), (40, 40 * 12));
        assert_eq!(row("block", Cast::Broadcast), (80, 40 * (15 + 40_000)));
        assert_eq!(row("vote", Cast::Direct), (40, 40 * 4));
        assert_eq!(row("vote", Cast::Broadcast), (40, 40 * 4));
        assert_eq!(row("", Cast::Direct), (41, 40 * 6 + 3));
        assert_eq!(row("", Cast::Broadcast), (40, 40 * 9));
    }
    for peer in &peers {
        let came = over(peer).incoming_buffer;
        let messages = |kind| came.of(kind, None).unwrap().succeeded.messages;
        assert_eq!((messages("block"), messages("vote")), (60, 40));
    }
    let metrics = a.metrics();
    let broadcasts = (metrics.broadcasts, metrics.broadcast_taken, metrics.broadcast_refused, metrics.anycasts);
    assert_eq!((broadcasts, metrics.peers_connected), ((80, 160, 0, 1), 2));
}

#[test]
fn without_kinds_broadcasts_are_counted_apart_among_messages_that_choose_nothing() {
    let config = base();
    let (a, b) = (start(config), loopback().handler(|_, _| {}).start().unwrap());
    let peer = link(&a, &b);
    let rounds = 5_000;
    for _ in 0..rounds {
        peer.send("direct").unwrap();
        while a.broadcast("all", To::all()).sent() == 0 {}
        peer.send("direct").unwrap();
    }
    let transfer = over(&a).outgoing_transfer;
    let row = |cast| transfer.of("", Some(cast)).unwrap().succeeded;
    assert_eq!((row(Cast::Direct).messages, row(Cast::Direct).bytes), (2 * rounds, 2 * rounds * 6));
    assert_eq!((row(Cast::Broadcast).messages, row(Cast::Broadcast).bytes), (rounds, rounds * 3));
    let came = over(&b).incoming_buffer;
    assert_eq!(counts(&came), [3 * rounds, 3 * rounds, 0, 0]);
}

#[test]
fn questions_and_their_answers_pass_the_phases_as_any_message_and_late_ones_are_thrown_away() {
    let (entered, leave) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let (inside, outside) = (entered.clone(), leave.clone());
    let b = loopback().kind(Kind::new(BLOCK, "block")).on(BLOCK, move |_, message| match message.payload() {
        b"none" => {}
        b"late" => {
            inside.wait();
            outside.wait();
            message.reply("too late").unwrap();
        }
        question => message.reply(question).unwrap(),
    });
    let (a, b) = (start(quick()), b.start().unwrap());
    let peer = link(&a, &b);
    let options = SendOptions::new().kind(BLOCK);
    assert_eq!(peer.request_with("small", PATIENCE, &options).unwrap().payload(), b"small");
    let big = vec![5; 200_000];
    assert_eq!(peer.request_with(&big[..], PATIENCE, &options).unwrap().payload(), big);
    assert!(peer.request_with("none", PATIENCE, &options).is_err(), "there is no answer");
    let late = peer.ask_with("late", PATIENCE, &options).unwrap();
    entered.wait();
    drop(late);
    leave.wait();
    wait_until("it came", || a.metrics().traffic.late_answers == 1);
    let (asker, answerer) = (over(&a), over(&b));
    assert_eq!(counts(&asker.outgoing_transfer), [4, 4, 0, 0]);
    assert_eq!(counts(&asker.incoming_buffer), [4, 3, 1, 0], "three answers, of which one is none, and a late one");
    assert_eq!(bytes(&asker.incoming_buffer), [200_013, 200_005, 8]);
    assert_eq!(counts(&answerer.incoming_buffer), [4, 4, 0, 0]);
    assert_eq!(counts(&answerer.outgoing_transfer), [4, 4, 0, 0]);
    let answers = answerer.outgoing_transfer.of("block", Some(Cast::Direct)).unwrap();
    assert_eq!(
        (answers.succeeded.messages, answers.succeeded.bytes),
        (3, 200_013),
        "word that there is none has no kind"
    );
}

#[test]
fn messages_that_nobody_has_taken_when_their_session_is_lost_stay_until_somebody_does() {
    let (a, b) = (start(quick()), start(quick()));
    let peer = link(&a, &b);
    for n in 0..10u8 {
        peer.send(vec![n; if n == 5 { 100_000 } else { 10 }]).unwrap();
    }
    wait_until("all has come", || b.metrics().traffic.messages_received == 10);
    b.disconnect(a.id(), CloseReason::Requested).unwrap();
    wait_until("the session is over", || b.metrics().sessions_ended > 0);
    let unread = b.metrics().phases;
    assert_eq!(counts(&unread.incoming_buffer), [10, 0, 0, 10]);
    for n in 0..10 {
        assert_eq!(b.recv_timeout(PATIENCE).unwrap().payload()[0], n);
        // `recv` counts one by one.
        assert_eq!(counts(&b.metrics().phases.incoming_buffer)[1], u64::from(n) + 1);
    }
    a.wait_connected(b.id(), PATIENCE).unwrap();
    assert_eq!(counts(&over(&b).incoming_buffer), [10, 10, 0, 0]);
    assert_eq!(counts(&over(&a).outgoing_transfer), [10, 10, 0, 0]);
}

#[test]
fn batches_that_are_dropped_count_as_taken() {
    let (a, b) = (start(base()), start(base()));
    let peer = link(&a, &b);
    let batches = b.incoming().unwrap();
    (0..1_000).for_each(|_| peer.send("x").unwrap());
    let mut taken = 0;
    while taken < 1_000 {
        let mut batch = batches.recv_timeout(PATIENCE).unwrap();
        taken += batch.len();
        // One by hand, the rest with the batch.
        drop(batch.next());
    }
    assert_eq!(counts(&over(&b).incoming_buffer), [1_000, 1_000, 0, 0]);
    over(&a);
}

#[test]
fn at_every_moment_what_began_an_outgoing_phase_has_ended_it_or_is_in_it() {
    let mut config = quick();
    config.queue_bytes = 256 << 10;
    let reject = Arc::new(AtomicBool::new(false));
    let rejects = reject.clone();
    let b = Node::builder().config(quick()).kind(Kind::new(BLOCK, "block").max_size(500));
    let b = b.on(BLOCK, move |_, _| rejects.store(true, Ordering::Relaxed)).start().unwrap();
    let a = Node::builder().config(config).kind(Kind::new(BLOCK, "block")).start().unwrap();
    let peer = link(&a, &b);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            for n in 0..6_000u64 {
                // Every seventh is longer than the other side takes, every eleventh of no kind that it handles.
                let kind = if n % 11 == 0 { 0 } else { BLOCK };
                let size = if n % 7 == 0 { 600 } else { 40 };
                peer.send_kind(kind, vec![1; size]).unwrap();
                if n % 13 == 0 {
                    drop(peer.send_with(vec![2; 100], &SendOptions::new().delivery(Delivery::BestEffort)).unwrap());
                }
                if n % 5 == 0 {
                    let _ = a.broadcast_kind(BLOCK, vec![3; 40], To::all());
                }
                if n % 1_500 == 1_499 {
                    // It may be gone already.
                    let _ = b.disconnect(a.id(), CloseReason::Requested);
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        let mut looks = 0;
        while !stop.load(Ordering::Relaxed) {
            let phases = a.metrics().phases;
            for phase in [&phases.outgoing_buffer, &phases.outgoing_transfer] {
                let [begun, succeeded, failed, open] = counts(phase);
                assert_eq!(begun, succeeded + failed + open);
                for row in &phase.rows {
                    let ended = row.counts.succeeded.messages + row.counts.failed.messages;
                    assert!(row.counts.begun.messages >= ended, "{row:?}");
                    let ended = row.counts.succeeded.bytes + row.counts.failed.bytes;
                    assert!(row.counts.begun.bytes >= ended, "{row:?}");
                }
            }
            assert_eq!(phases.outgoing_buffer.total().succeeded, phases.outgoing_transfer.total().begun);
            looks += 1;
        }
        sender.join().unwrap();
        assert!(looks > 10 && reject.load(Ordering::Relaxed), "{looks}");
    });
    let (sent, came) = (over(&a), over(&b));
    assert!(counts(&sent.outgoing_transfer)[2] > 500, "{sent:?}");
    assert!(counts(&came.incoming_buffer)[2] > 500, "{came:?}");
    for row in &sent.outgoing_transfer.rows {
        assert_eq!(row.counts.begun.messages, row.counts.succeeded.messages + row.counts.failed.messages, "{row:?}");
        assert_eq!(row.counts.begun.bytes, row.counts.succeeded.bytes + row.counts.failed.bytes, "{row:?}");
    }
}

/// A numbered frame of kind `BLOCK` with these flags.
fn block(lane: Lane, more: u8, prefix: Prefix, payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    prefix.put(&mut body);
    body.extend_from_slice(payload);
    let header = FrameHeader::on_lane(FrameType::Data, lane, flags::NUMBERED | more, BLOCK, body.len() as u32);
    [&header.to_bytes()[..], &body[..]].concat()
}

#[test]
fn what_a_peer_says_that_makes_no_sense_is_counted_in_one_row_all_the_same() {
    let of_block = || Node::builder().config(plain()).kind(Kind::new(BLOCK, "block").max_size(10));
    let failed = flags::WHOLE | flags::FAILED;
    // No answers, and yet there is none: one is too long, one is not.
    let nonsense = [&b"longer than blocks are"[..], b"short"]
        .map(|payload| block(Lane::Normal, failed, Prefix::default(), payload))
        .concat();
    // Pieces of an answer to no question, which is none.
    let to_nobody = flags::CORRELATED | flags::FAILED;
    let first = Prefix { correlation: Some(1), total: Some(50_000), ..Prefix::default() };
    let piece = |flag, prefix, payload| block(Lane::Reply, to_nobody | flag, prefix, &vec![1; payload]);
    let pieces = [piece(flags::FIRST, first, 30_000), piece(flags::LAST, Prefix::default(), 20_000)].concat();
    for handles in [true, false] {
        let node = if handles { of_block().on(BLOCK, |_, _| {}) } else { of_block() }.start().unwrap();
        let mut mute = Mute::connect(Channel::Plain, node.id(), addr(&node), 1 << 20);
        node.wait_connected(mute.id, PATIENCE).unwrap();
        let mut heads = [Vec::new(), Vec::new()];
        put_segment(&mut heads[0], Lane::Normal, 0, 0);
        put_segment(&mut heads[1], Lane::Reply, 0, 0);
        assert!(mute.say(&[&heads[0], &nonsense, &heads[1], &pieces].map(Vec::as_slice).concat()));
        if !handles {
            assert_eq!(node.recv_timeout(PATIENCE).unwrap().payload(), b"short");
        }
        wait_until("all came", || {
            assert_eq!(node.metrics().sessions_ended, 0);
            node.metrics().traffic.unknown_answers == 1
        });
        let came = over(&node).incoming_buffer;
        let rows = ["block", ""].map(|kind| came.of(kind, None).unwrap());
        let counts = rows.map(|row| [row.begun, row.succeeded, row.failed].map(|volume| volume.messages));
        assert_eq!(counts, [[2, 1, 1], [1, 0, 1]], "{handles}: word that there is no answer has no kind");
        let bytes = rows.map(|row| row.begun.bytes - row.succeeded.bytes - row.failed.bytes);
        assert_eq!((bytes, node.metrics().sessions_ended), ([0, 0], 0));
    }
}
