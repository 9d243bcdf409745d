//! What strangers and men in the middle can do to TLS itself: fill the places of handshakes, drip, replay, ask for
//! something older or for none, hand on what others say, and break the records of a session. Each is told where there is
//! somebody to tell, and counted by its reason; nobody else notices.

#![cfg(feature = "tls")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use threadwire::config::Channel;
use threadwire::error::{CloseReason, DialCause, DisconnectReason};
use threadwire::handshake::Identity;
use threadwire::{Event, Node};

mod common;
use common::limits::raise_descriptors;
use common::mute::Mute;
use common::stranger::Stranger;
use common::{
    PATIENCE, addr, alone, ended_with, handshaking, link, nothing_left, plain, quick, reaches, refusal, settled, start,
    wait_event, wait_until,
};

/// Bytes of a hello of TLS, as a stranger finds them on the way.
#[expect(clippy::disallowed_methods, reason = "there is no timeout, and a record is no frame")]
fn client_hello() -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let node = start(quick());
    std::thread::scope(|scope| {
        let at = listener.local_addr().unwrap();
        let node = &node;
        let dial = scope.spawn(move || node.connect(at));
        let (mut stream, _) = listener.accept().unwrap();
        let mut header = [0; 5];
        stream.read_exact(&mut header).unwrap();
        let mut body = vec![0; usize::from(u16::from_be_bytes([header[3], header[4]]))];
        stream.read_exact(&mut body).unwrap();
        drop(stream);
        assert!(dial.join().unwrap().is_err());
        [&header[..], &body].concat()
    })
}

#[test]
fn hundreds_of_silent_and_dripping_strangers_cost_places_until_the_deadline_and_a_good_peer_comes_in_meanwhile() {
    const STRANGERS: usize = 400;
    let _alone = alone();
    raise_descriptors(2_000);
    let hello = client_hello();
    let mut config = quick();
    config.handshake_timeout = Duration::from_secs(5);
    let half_open = config.half_open;
    assert!(STRANGERS > half_open + 100);
    let (bob, alice) = (start(config), start(quick()));
    // Of nothing, of half a hello, of a whole one and then nothing, of a byte now and then.
    let mut strangers: Vec<TcpStream> = (0..STRANGERS).map(|_| TcpStream::connect(addr(&bob)).unwrap()).collect();
    for (n, stranger) in strangers.iter_mut().enumerate() {
        // Whoever has lost his place already is not heard.
        let _ = stranger.write_all(&hello[..[0, hello.len() / 2, hello.len(), 1][n % 4]]);
    }
    wait_until("all have come, and take all the places", || {
        bob.metrics().accepted == STRANGERS as u64 && handshaking(&bob) == half_open
    });
    alice.connect(addr(&bob)).unwrap();
    reaches(&alice, &bob);
    let metrics = bob.metrics();
    assert_eq!(metrics.evicted, (STRANGERS + 1 - half_open) as u64, "{metrics:?}");
    let mut dripped = 1;
    let dripping = Instant::now();
    while handshaking(&bob) > 0 {
        assert!(dripping.elapsed() < PATIENCE);
        for stranger in strangers.iter_mut().skip(3).step_by(4) {
            // Whoever is cut has said enough.
            let _ = stranger.write_all(&hello[dripped..=dripped]);
        }
        dripped += 1;
        assert!(dripped < hello.len(), "a drip is no hello: {dripped} bytes");
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("{dripped} bytes of {} dripped", hello.len());
    reaches(&alice, &bob);
    let metrics = bob.metrics();
    let timeouts = (half_open - 1) as u64;
    assert_eq!((metrics.handshakes_failed, metrics.handshake_timeouts), (STRANGERS as u64, timeouts), "{metrics:?}");
    let by = metrics.handshakes_failed_by;
    let told = [CloseReason::HandshakeTimeout, CloseReason::TooMany].map(|reason| by.local.get(reason));
    assert_eq!(told, [timeouts, metrics.evicted], "{by:?}");
    assert_eq!((metrics.sessions_started, metrics.sessions_ended), (1, 0));
    drop((alice, strangers));
    nothing_left(&bob);
}

#[test]
fn a_recorded_handshake_proves_nothing_and_garbage_ends_it() {
    let _alone = alone();
    let (alice, bob) = (start(quick()), start(quick()));
    let recorded = recorded_dialler(&alice, &bob);
    let before = bob.metrics();
    // All that alice said, once more: the node answers with a key of its own, and what follows fits no more.
    let mut replay = TcpStream::connect(addr(&bob)).unwrap();
    replay.write_all(&recorded).unwrap();
    let mut answer = Vec::new();
    let _ = replay.read_to_end(&mut answer);
    wait_until("it is refused", || bob.metrics().handshakes_failed > before.handshakes_failed);
    // Its hello, and then garbage, as records and as none.
    let hello_len = 5 + usize::from(u16::from_be_bytes([recorded[3], recorded[4]]));
    for garbage in [&[0xff; 64][..], &[23, 3, 3, 0, 40], &[23, 3, 3, 255, 255, 0]] {
        let before = bob.metrics().handshakes_failed;
        let mut stranger = TcpStream::connect(addr(&bob)).unwrap();
        stranger.write_all(&recorded[..hello_len]).unwrap();
        stranger.write_all(garbage).unwrap();
        stranger.write_all(&[0; 64]).unwrap();
        let _ = stranger.read_to_end(&mut answer);
        wait_until("it is refused", || bob.metrics().handshakes_failed > before);
    }
    assert_eq!(bob.metrics().sessions_started, 1);
    alice.connect(addr(&bob)).unwrap();
    reaches(&alice, &bob);
}

/// What alice says when she dials bob: a whole handshake, and a session that was cut short.
fn recorded_dialler(alice: &Node, bob: &Node) -> Vec<u8> {
    let between = TcpListener::bind("127.0.0.1:0").unwrap();
    std::thread::scope(|scope| {
        let at = between.local_addr().unwrap();
        let dial = scope.spawn(move || alice.connect(at));
        let (mut from, _) = between.accept().unwrap();
        let mut to = TcpStream::connect(addr(bob)).unwrap();
        let (mut back_from, mut back_to) = (to.try_clone().unwrap(), from.try_clone().unwrap());
        let back = scope.spawn(move || std::io::copy(&mut back_from, &mut back_to));
        let copy = scope.spawn(move || {
            let (mut said, mut bytes) = (Vec::new(), [0; 4096]);
            while let Ok(count @ 1..) = from.read(&mut bytes) {
                said.extend_from_slice(&bytes[..count]);
                if to.write_all(&bytes[..count]).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Both);
            said
        });
        dial.join().unwrap().unwrap();
        alice.disconnect(bob.id(), CloseReason::Requested).unwrap();
        let said = copy.join().unwrap();
        let _ = back.join().unwrap();
        said
    })
}

/// A hello that offers what is older than TLS 1.3 only: the same without the extension that names versions.
fn older(hello: &[u8]) -> Vec<u8> {
    const VERSIONS: u16 = 43;
    let number = |at: usize| usize::from(u16::from_be_bytes([hello[at], hello[at + 1]]));
    // Headers of the record and the message, the version and the nonce; the session, the suites, the compressions.
    let session = 5 + 4 + 2 + 32;
    let suites = session + 1 + usize::from(hello[session]);
    let compressions = suites + 2 + number(suites);
    let extensions = compressions + 1 + usize::from(hello[compressions]);
    let mut at = extensions + 2;
    while number(at) != usize::from(VERSIONS) {
        at += 4 + number(at + 2);
    }
    let gone = 4 + number(at + 2);
    let mut older = [&hello[..at], &hello[at + gone..]].concat();
    let mut shorten = |at: usize, length: usize| {
        older[at..at + 2].copy_from_slice(&u16::try_from(length - gone).unwrap().to_be_bytes());
    };
    shorten(3, number(3));
    shorten(7, number(7));
    shorten(extensions, number(extensions));
    older
}

/// What answers in an older version: TLS 1.2, with a suite of that.
fn older_answer() -> Vec<u8> {
    let body = [&[3, 3][..], &[7; 32], &[0, 0xc0, 0x2b, 0]].concat();
    let message = [&[2, 0, 0, u8::try_from(body.len()).unwrap()], &body[..]].concat();
    [&[22, 3, 3, 0, u8::try_from(message.len()).unwrap()], &message[..]].concat()
}

/// Alerts that say "protocol version".
const VERSION: [u8; 2] = [2, 70];

#[test]
fn whoever_offers_or_answers_with_something_older_than_tls_1_3_is_refused_and_told_so() {
    let _alone = alone();
    let hello = client_hello();
    let bob = start(quick());
    let mut stranger = TcpStream::connect(addr(&bob)).unwrap();
    stranger.write_all(&older(&hello)).unwrap();
    let mut answer = Vec::new();
    stranger.read_to_end(&mut answer).unwrap();
    assert!(answer.len() == 7 && answer[0] == 21 && answer.ends_with(&VERSION), "{answer:?}");
    wait_until("it is counted", || bob.metrics().handshakes_failed == 1);
    assert_eq!(bob.metrics().handshakes_failed_by.local.get(CloseReason::VersionMismatch), 1);

    let older = TcpListener::bind("127.0.0.1:0").unwrap();
    std::thread::scope(|scope| {
        let dial = scope.spawn(|| refusal(&bob, older.local_addr().unwrap()));
        let (mut stream, _) = older.accept().unwrap();
        stream.write_all(&older_answer()).unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        assert!(heard.ends_with(&VERSION), "behind its hello, an alert");
        assert_eq!(dial.join().unwrap(), DialCause::Rejected(CloseReason::VersionMismatch));
    });
    let by = bob.metrics().dials_failed_by.handshake;
    assert_eq!((by.total(), by.local.get(CloseReason::VersionMismatch)), (1, 1));
    nothing_left(&bob);
    let alice = start(quick());
    alice.connect(addr(&bob)).unwrap();
    reaches(&alice, &bob);
}

#[test]
fn one_side_over_tls_and_one_over_plain_tcp_do_not_meet_whoever_dials_and_both_count_why() {
    let _alone = alone();
    let (secure, open) = (start(quick()), start(plain()));
    for (dials, n) in [(&open, &secure), (&secure, &open)].into_iter().zip(1..) {
        // The node over TLS hears what is no TLS, and the other one what is no hello: neither knows what the other says.
        assert_eq!(refusal(dials.0, addr(dials.1)), DialCause::Rejected(CloseReason::ProtocolError));
        wait_until("it is counted", || secure.metrics().handshakes_failed + open.metrics().handshakes_failed == n);
    }
    for node in [&secure, &open] {
        nothing_left(node);
        let metrics = node.metrics();
        assert_eq!((metrics.handshakes_failed, metrics.dials_failed, metrics.sessions_started), (1, 1, 0));
        let local = CloseReason::ProtocolError;
        assert_eq!(metrics.handshakes_failed_by.local.get(local), 1, "{:?}", metrics.handshakes_failed_by);
        assert_eq!(metrics.dials_failed_by.handshake.local.get(local), 1, "{:?}", metrics.dials_failed_by);
    }
    let good = start(quick());
    good.connect(addr(&secure)).unwrap();
    reaches(&good, &secure);
}

#[test]
fn whoever_hands_on_what_two_nodes_say_to_each_other_through_tls_of_his_own_is_neither_of_them() {
    let _alone = alone();
    let (alice, bob) = (start(quick()), start(quick()));
    let thief = Arc::new(Identity::generate().unwrap());
    let between = TcpListener::bind("127.0.0.1:0").unwrap();
    std::thread::scope(|scope| {
        let dial = scope.spawn(|| refusal(&alice, between.local_addr().unwrap()));
        let mut to_alice = Stranger::accept_over(Channel::Tls, &thief, &between);
        let mut to_bob = Stranger::dial_over(Channel::Tls, &thief, addr(&bob));
        let hello = to_alice.hear().unwrap();
        // Bob is told another name than the key that was shown to him.
        assert!(to_bob.say(&hello));
        assert_eq!(to_bob.hear_out(), Some(CloseReason::WrongPeer));
        // And so is alice: bob's hello, of a handshake with the thief under his own name.
        let mut to_bob = Stranger::dial_over(Channel::Tls, &thief, addr(&bob));
        let own =
            common::stranger::machine(&thief, threadwire::ident::SessionKind::Outbound, bob.id()).output().clone();
        assert!(to_bob.say(&own));
        let answer = [to_bob.hear().unwrap(), to_bob.hear().unwrap()].concat();
        assert!(to_alice.say(&answer));
        assert_eq!(to_alice.hear_out(), Some(CloseReason::WrongPeer));
        assert_eq!(dial.join().unwrap(), DialCause::Rejected(CloseReason::WrongPeer));
    });
    wait_until("everything is over", || settled(&alice) && settled(&bob));
    let (at_alice, at_bob) = (alice.metrics(), bob.metrics());
    assert_eq!(at_alice.dials_failed_by.handshake.local.get(CloseReason::WrongPeer), 1);
    assert_eq!(at_bob.handshakes_failed_by.local.get(CloseReason::WrongPeer), 1);
    assert_eq!((at_alice.sessions_started, at_bob.sessions_started), (0, 0));
    link(&alice, &bob);
    reaches(&alice, &bob);
}

/// What a peer grants to a node.
const MUTE_WINDOW: u64 = 4 << 20;

/// A peer in a session with a node, through TLS.
fn established(node: &Node) -> Mute {
    let mute = Mute::connect(Channel::Tls, node.id(), addr(node), MUTE_WINDOW);
    node.wait_connected(mute.id, PATIENCE).unwrap();
    mute
}

#[test]
fn what_is_no_record_of_the_peer_ends_its_session_only() {
    let _alone = alone();
    let hello = client_hello();
    let (bob, alice) = (start(quick()), start(quick()));
    link(&alice, &bob);
    let cases: [(&str, &[u8]); 7] = [
        ("a record that nobody sealed", &[&[23, 3, 3, 0, 40][..], &[7; 40]].concat()),
        ("a record too short to be sealed", &[23, 3, 3, 0, 1, 0]),
        ("a record longer than any", &[&[23, 3, 3, 0xff, 0xff][..], &[7; 1000]].concat()),
        ("no record", &[0xff; 64]),
        ("a frame that is not sealed", &[25, 0, 0, 0, 8, 0, 0, 0]),
        ("another hello", &hello),
        ("an end that is not sealed", &[21, 3, 3, 0, 2, 1, 0]),
    ];
    for (what, bytes) in cases {
        let mute = established(&bob);
        assert!(mute.say_beneath(bytes));
        // Whoever said it has not proven to be the peer: it is the connection that is broken.
        assert_eq!(ended_with(&bob, mute.id), DisconnectReason::Lost(ErrorKind::InvalidData), "{what}");
    }
    assert_eq!(bob.metrics().sessions_ended_by.lost, cases.len() as u64);
    reaches(&alice, &bob);
    assert_eq!((bob.metrics().sessions_ended, alice.metrics().sessions_started), (cases.len() as u64, 1));
    assert!(alice.shutdown(PATIENCE).is_clean());
    nothing_left(&bob);
}

#[test]
fn a_stream_that_is_cut_between_records_or_inside_one_is_lost_and_half_a_record_does_not_hold_it() {
    const IDLE: Duration = Duration::from_secs(2);
    let _alone = alone();
    let mut config = quick();
    (config.heartbeat, config.idle_timeout) = (Duration::from_millis(50), IDLE);
    let bob = start(config);
    let half = [&[23, 3, 3, 1, 0][..], &[7; 100]].concat();
    let cases = [("between", &[][..]), ("in a header", &half[..3]), ("in a body", &half[..])];
    for (what, bytes) in cases {
        let mute = established(&bob);
        let id = mute.id;
        assert!(mute.say_beneath(bytes));
        mute.hang_up(false);
        assert_eq!(ended_with(&bob, id), DisconnectReason::Lost(ErrorKind::ConnectionAborted), "{what}");
    }
    let mute = established(&bob);
    assert!(mute.say_beneath(&half));
    let begin = Instant::now();
    assert_eq!(ended_with(&bob, mute.id), DisconnectReason::Local(CloseReason::Idle));
    let took = begin.elapsed();
    assert!(took > IDLE / 2 && took < 10 * IDLE, "{took:?}");
    let metrics = bob.metrics();
    assert_eq!((metrics.sessions_ended_by.lost, metrics.sessions_cut), (cases.len() as u64, 1));
    drop(mute);
    nothing_left(&bob);
}

#[test]
fn a_writer_that_waits_for_room_ends_when_the_other_side_says_its_end_an_alert_or_nothing_and_keeps_its_messages() {
    const LEN: usize = 64 * 1024;
    /// The system tells of a reset once: whoever of the two threads looks later finds a stream that is over, or broken.
    const RESET: &[ErrorKind] = &[ErrorKind::ConnectionReset, ErrorKind::BrokenPipe, ErrorKind::ConnectionAborted];
    /// What the other side does while a writer waits for it.
    type Ends = fn(Mute) -> Option<Mute>;
    let cases: [(&str, Ends, &[ErrorKind]); 4] = [
        (
            "its end",
            |mut mute| {
                mute.finish();
                Some(mute)
            },
            &[ErrorKind::UnexpectedEof],
        ),
        (
            "an alert",
            |mut mute| {
                mute.take_alarm();
                Some(mute)
            },
            &[ErrorKind::ConnectionRefused],
        ),
        // With input that it has not read, closing is a reset.
        (
            "nothing",
            |mute| {
                mute.hang_up(false);
                None
            },
            RESET,
        ),
        (
            "a reset",
            |mute| {
                mute.hang_up(true);
                None
            },
            RESET,
        ),
    ];
    let _alone = alone();
    let mut config = quick();
    config.slow_after = Duration::from_millis(500);
    let bob = start(config);
    for (what, ends, expected) in cases {
        let mute = established(&bob);
        // Whatever the system gives to others: what is written soon finds no room.
        mute.narrow(64 * 1024);
        let (id, peer) = (mute.id, bob.peer(mute.id).unwrap());
        let mut sent = 0;
        while peer.try_send(vec![7; LEN]).is_ok() {
            sent += 1;
        }
        // Its queue is full and stays so, or a write is under way, and it has granted more than is written: it is the
        // sockets that take no more.
        wait_event(&bob, "nothing moves", |event| match event {
            Event::PeerSlow { peer, .. } => (peer == id).then_some(()),
            _ => None,
        });
        let kept = peer.stats().kept_bytes;
        assert!(kept > 0 && kept < MUTE_WINDOW as usize / 2, "{what}: {:?}", peer.stats());
        let still_open = ends(mute);
        let DisconnectReason::Lost(kind) = ended_with(&bob, id) else { panic!("{what}: it is lost") };
        assert!(expected.contains(&kind), "{what}: {kind:?}");
        wait_until("its threads are gone", || bob.sessions().is_empty());
        let stats = peer.stats();
        assert_eq!((stats.acked, stats.returned, stats.unknown, stats.accepted), (0, 0, 0, sent), "{what}");
        assert!(
            stats.kept_bytes + stats.queued_bytes >= usize::try_from(sent).unwrap() * LEN,
            "{what}: kept for its next session"
        );
        drop(still_open);
    }
    assert_eq!(bob.metrics().sessions_ended_by.lost, cases.len() as u64);
}
