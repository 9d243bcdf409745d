//! Peers that are who they say and break the protocol once their session stands: their session ends with a reason, their
//! link is none the worse for it, and nobody else notices.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::time::{Duration, Instant};

use threadwire::Node;
use threadwire::config::Channel;
use threadwire::error::{CloseReason, DisconnectReason};
use threadwire::wire::{self, FrameHeader, FrameType, Goodbye, LANES, Lane, MAX_BODY, flags};

mod common;
use common::ledger::{Ledger, Verdict, numbered};
use common::mute::Mute;
use common::proxy::{DRIP, Fault, Harm, Place, Proxy, Way};
use common::{
    PATIENCE, addr, alone, channels, ended, ended_with, link, nothing_left, over, plain, quick, reaches, start,
    wait_until,
};

/// A peer in a session with `node`, which grants it a window and gets one of as much.
fn established(channel: Channel, node: &Node) -> Mute {
    let mute = Mute::connect(channel, node.id(), addr(node), 1 << 20);
    node.wait_connected(mute.id, PATIENCE).unwrap();
    mute
}

fn header(frame: FrameType, length: u32) -> Vec<u8> {
    FrameHeader::control(frame, length).to_bytes().to_vec()
}

/// A header of a numbered frame of the normal lane.
fn numbered_header(frame: FrameType, more: u8, length: u32) -> Vec<u8> {
    FrameHeader::on_lane(frame, Lane::Normal, flags::NUMBERED | more, 0, length).to_bytes().to_vec()
}

const ALL: [FrameType; 11] = [
    FrameType::Data,
    FrameType::Segment,
    FrameType::Ack,
    FrameType::Attach,
    FrameType::Hello,
    FrameType::Confirm,
    FrameType::Goodbye,
    FrameType::Beat,
    FrameType::Skip,
    FrameType::Abort,
    FrameType::Alive,
];

#[test]
fn what_breaks_the_protocol_in_a_session_ends_that_session_only() {
    let _alone = alone();
    let mut cases: Vec<(String, Vec<u8>)> = Vec::new();
    for frame in ALL {
        for length in [MAX_BODY as u32 + 1, u32::MAX] {
            cases.push((format!("{frame:?} of {length} bytes"), header(frame, length)));
        }
    }
    for frame in [FrameType::Ack, FrameType::Goodbye, FrameType::Attach, FrameType::Hello, FrameType::Confirm] {
        cases.push((format!("an empty {frame:?}"), header(frame, 0)));
    }
    cases.push(("an empty segment".to_owned(), numbered_header(FrameType::Segment, 0, 0)));
    cases.push(("an empty skip".to_owned(), numbered_header(FrameType::Skip, 0, 0)));
    cases.push(("a first piece without its total".to_owned(), numbered_header(FrameType::Data, flags::FIRST, 0)));
    cases.push(("a last piece without a first".to_owned(), numbered_header(FrameType::Data, flags::LAST, 0)));
    let lane = FrameHeader { length: 0, tag: 0xf0, flags: flags::NUMBERED | flags::WHOLE, kind: 0 };
    cases.push(("a lane that is none".to_owned(), lane.to_bytes().to_vec()));
    let text = b"GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n";
    cases.push(("another protocol".to_owned(), text.to_vec()));
    for channel in channels() {
        let (bob, alice) = (start(over(channel)), start(over(channel)));
        link(&alice, &bob);
        for (what, bytes) in &cases {
            let mut mute = established(channel, &bob);
            assert!(mute.say(bytes));
            let reason = DisconnectReason::Local(CloseReason::ProtocolError);
            assert_eq!(ended_with(&bob, mute.id), reason, "{channel:?}: {what}");
        }
        let ends = bob.metrics().sessions_ended_by;
        assert_eq!(ends.local.get(CloseReason::ProtocolError), cases.len() as u64);
        reaches(&alice, &bob);
        assert_eq!(bob.metrics().sessions_ended, cases.len() as u64, "alice has the session she had");
        assert_eq!(alice.metrics().sessions_started, 1);
        assert!(alice.shutdown(PATIENCE).is_clean());
        nothing_left(&bob);
    }
}

#[test]
fn a_goodbye_keeps_nobody_away_for_longer_than_a_minute() {
    let _alone = alone();
    let bob = start(plain());
    let mut mute = established(Channel::Plain, &bob);
    bob.add_peer(mute.id, ["127.0.0.1:1"]).unwrap();
    let goodbye = Goodbye {
        reason: CloseReason::Requested.code(),
        retry_after_ms: u32::MAX,
        received: [0; LANES],
        text: "see you in seven weeks".to_owned(),
    };
    let body = wire::encode(&goodbye).unwrap();
    assert!(mute.say(&[header(FrameType::Goodbye, body.len() as u32), body].concat()));
    assert_eq!(ended_with(&bob, mute.id), DisconnectReason::Remote(CloseReason::Requested));
    let next = || bob.peers().iter().find(|peer| peer.id == mute.id).and_then(|peer| peer.next_retry);
    wait_until("it is to be dialled", || next().is_some());
    let next = next().unwrap();
    assert!(next <= Instant::now() + Duration::from_secs(60), "{:?}", next - Instant::now());
    assert!(next > Instant::now() + Duration::from_secs(20), "it is heard, too");
}

#[test]
fn garbage_in_a_session_ends_it_one_way_or_the_other() {
    const ROUNDS: u64 = 60;
    let _alone = alone();
    for channel in channels() {
        let mut config = over(channel);
        // What looks like the beginning of a long frame is waited for as long as this.
        (config.heartbeat, config.idle_timeout) = (Duration::from_millis(50), Duration::from_millis(300));
        let bob = start(config.clone());
        let mut random = fastrand::Rng::with_seed(7);
        for round in 0..ROUNDS {
            let mut mute = established(channel, &bob);
            let mut garbage: Vec<u8> = (0..random.usize(1..2_000)).map(|_| random.u8(..)).collect();
            if round % 2 == 0 {
                // Frames by their headers, of all types, known or not, with garbage in them.
                let frames = |len: usize| [[len as u8, 0, 0, 0].to_vec(), vec![7; 4 + len]].concat();
                garbage = (0..20).flat_map(|_| frames(random.usize(0..100))).collect();
                garbage.chunks_mut(8).for_each(|chunk| chunk.iter_mut().skip(4).for_each(|byte| *byte = random.u8(..)));
            }
            // The node may have hung up by then.
            mute.say(&garbage);
            let reason = ended_with(&bob, mute.id);
            let expected = matches!(reason, DisconnectReason::Local(CloseReason::ProtocolError | CloseReason::Idle))
                || matches!(reason, DisconnectReason::Remote(_) | DisconnectReason::Lost(_));
            assert!(expected, "{reason}");
        }
        let ends = bob.metrics().sessions_ended_by;
        assert!(ends.local.get(CloseReason::ProtocolError) > ROUNDS / 4, "{ends:?}");
        let alice = start(config);
        link(&alice, &bob);
        reaches(&alice, &bob);
        assert!(alice.shutdown(PATIENCE).is_clean());
        nothing_left(&bob);
    }
}

#[test]
fn a_frame_that_breaks_off_into_silence_in_a_session_is_cut_by_the_idle_time() {
    const IDLE: Duration = Duration::from_millis(400);
    let _alone = alone();
    for channel in channels() {
        let mut config = over(channel);
        (config.heartbeat, config.idle_timeout) = (Duration::from_millis(50), IDLE);
        let bob = start(config);
        let cases = [
            header(FrameType::Beat, 25)[..5].to_vec(),
            [header(FrameType::Ack, 100), vec![0; 10]].concat(),
            [numbered_header(FrameType::Data, flags::WHOLE, MAX_BODY as u32), vec![0; 60_000]].concat(),
            // An unknown frame, which would be skipped.
            [vec![100, 0, 0, 0, 0x0f, 0, 0, 0], vec![0; 99]].concat(),
        ];
        for bytes in &cases {
            let mut mute = established(channel, &bob);
            let begin = Instant::now();
            assert!(mute.say(bytes));
            assert_eq!(ended_with(&bob, mute.id), DisconnectReason::Local(CloseReason::Idle));
            let took = begin.elapsed();
            assert!(took > IDLE / 2 && took < 20 * IDLE, "{took:?}");
        }
        assert_eq!(bob.metrics().sessions_cut, cases.len() as u64);
        nothing_left(&bob);
    }
}

#[test]
fn a_byte_each_hundred_milliseconds_does_not_outlive_the_deadline_of_a_whole_frame() {
    const IDLE: Duration = Duration::from_secs(1);
    const BIG: u64 = 3;
    const COUNT: u64 = 8;
    let _alone = alone();
    let mut config = plain();
    config.heartbeat = Duration::from_millis(100);
    let alice = start(config.clone());
    config.idle_timeout = IDLE;
    let bob = start(config);
    let proxy = Proxy::to(addr(&bob));
    // In the third piece of the big message.
    let place = Place::Inside(FrameType::Data, BIG as u32 + 2, 1_000);
    proxy.plan([Fault { way: Way::Up, place, harm: Harm::Drip }]);
    let to_bob = alice.add_peer(bob.id(), [proxy.addr()]).unwrap();
    for number in 0..COUNT {
        let len = if number == BIG { 1 << 20 } else { 100 };
        to_bob.send(numbered(number, len)).unwrap();
    }
    wait_until("it drips", || proxy.counts().drips == 1);
    let begin = Instant::now();
    let of_alice = bob.peer(alice.id()).unwrap();
    let read = of_alice.stats().bytes_received;
    let reason = ended(&bob);
    let (took, counts) = (begin.elapsed(), proxy.counts());
    assert_eq!(reason, DisconnectReason::Local(CloseReason::Idle));
    assert!(took < 10 * IDLE, "{took:?}");
    println!("cut after {took:?}, while a byte came each {DRIP:?}: {} of them", counts.dripped);
    assert!((5..500).contains(&counts.dripped), "{counts:?}");
    assert_eq!(counts.struck.get("Data"), Some(&1), "{counts:?}");

    let ledger = Ledger::default();
    while ledger.came() < COUNT {
        let message = bob.recv_timeout(PATIENCE).unwrap();
        ledger.enter(message.payload(), message.possible_repeat());
    }
    assert_eq!(ledger.verdict(), Verdict::perfect(COUNT));
    wait_until("all are acknowledged", || to_bob.stats().acked == COUNT);
    assert!(of_alice.stats().bytes_received > read + 5, "what dripped was read");
    assert_eq!((to_bob.stats().sessions, proxy.counts().accepted, bob.metrics().sessions_cut), (2, 2, 1));
    reaches(&alice, &bob);
    assert!(alice.shutdown(PATIENCE).is_clean());
    nothing_left(&bob);
}

#[test]
fn a_handler_that_runs_while_a_frame_drips_is_not_taken_for_the_peers_silence() {
    const IDLE: Duration = Duration::from_secs(1);
    let _alone = alone();
    let mut config = quick();
    (config.heartbeat, config.idle_timeout) = (Duration::from_millis(50), IDLE);
    let (started, starts) = crossbeam_channel::bounded(1);
    let bob = Node::builder().config(config.clone()).handler(move |_, message| {
        if message.payload() == b"slow" {
            started.send(()).unwrap();
            std::thread::sleep(3 * IDLE);
        }
    });
    let bob = bob.start().unwrap();
    let alice = start(config);
    let to_bob = link(&alice, &bob);
    to_bob.send("slow").unwrap();
    // Behind it lies the beginning of a frame whose end comes while the handler runs.
    to_bob.send(vec![1; 3 << 20]).unwrap();
    starts.recv_timeout(PATIENCE).unwrap();
    wait_until("both are handled", || to_bob.stats().acked == 2);
    assert_eq!((bob.metrics().sessions_started, bob.metrics().sessions_ended), (1, 0));
    assert!(alice.shutdown(PATIENCE).is_clean());
    nothing_left(&bob);
}
