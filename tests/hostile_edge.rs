//! Strangers that break the protocol in each state of a handshake, on either side of it, over plain TCP and through TLS
//! that is as it should be: each is told, or cut by the deadline of the whole handshake, and leaves nothing behind.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use threadwire::Node;
use threadwire::config::Channel;
use threadwire::error::{CloseReason, ConnectError, DialCause};
use threadwire::handshake::{Identity, Step};
use threadwire::ident::SessionKind;
use threadwire::wire::{
    Decoder, FrameHeader, FrameType, HEADER, Hello, MAX_BODY, MAX_HANDSHAKE_BODY, decode, put_body,
};

mod common;
use common::mute::Mute;
use common::stranger::{Stranger, machine};
use common::{PATIENCE, addr, alone, channels, identities, nothing_left, over, reaches, settled, start, wait_until};

/// What a node waits for when the stranger begins, and who dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    DialledAwaitsHello,
    DialledAwaitsConfirm,
    DialledAwaitsAttach,
    DiallerAwaitsHello,
    DiallerAwaitsConfirm,
    DiallerAwaitsAttach,
}

impl State {
    const ALL: [Self; 6] = [
        Self::DialledAwaitsHello,
        Self::DialledAwaitsConfirm,
        Self::DialledAwaitsAttach,
        Self::DiallerAwaitsHello,
        Self::DiallerAwaitsConfirm,
        Self::DiallerAwaitsAttach,
    ];

    /// The frame that is due.
    fn due(self) -> FrameType {
        match self {
            Self::DialledAwaitsHello | Self::DiallerAwaitsHello => FrameType::Hello,
            Self::DialledAwaitsConfirm | Self::DiallerAwaitsConfirm => FrameType::Confirm,
            Self::DialledAwaitsAttach | Self::DiallerAwaitsAttach => FrameType::Attach,
        }
    }

    /// The longest body it may have.
    fn longest(self) -> usize {
        if self.due() == FrameType::Attach { MAX_BODY } else { MAX_HANDSHAKE_BODY }
    }

    fn bob_dials(self) -> bool {
        matches!(self, Self::DiallerAwaitsHello | Self::DiallerAwaitsConfirm | Self::DiallerAwaitsAttach)
    }
}

/// A node under attack, and what its attacker shows to its TLS.
struct Scene {
    channel: Channel,
    bob: Node,
    thief: Arc<Identity>,
}

impl Scene {
    fn new(channel: Channel) -> Self {
        Self::with_timeout(channel, PATIENCE)
    }

    /// The node gives handshakes so much time.
    fn with_timeout(channel: Channel, timeout: Duration) -> Self {
        let mut config = over(channel);
        config.handshake_timeout = timeout;
        Self { channel, bob: start(config), thief: Arc::new(Identity::generate().unwrap()) }
    }

    /// An honest hello of the attacker.
    fn hello(&self) -> Vec<u8> {
        std::mem::take(machine(&self.thief, SessionKind::Outbound, self.bob.id()).output())
    }

    /// Has a stranger meet bob in this state; returns what it returns, and why bob's dial failed if bob dialled.
    fn meet<T>(&self, state: State, attack: impl FnOnce(Stranger) -> T) -> (T, Option<DialCause>) {
        let between = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = between.local_addr().unwrap();
        let (channel, thief) = (self.channel, &self.thief);
        std::thread::scope(|scope| {
            let dial = state.bob_dials().then(|| scope.spawn(move || self.bob.connect(at)));
            let mut stranger = match state.bob_dials() {
                true => Stranger::accept_over(channel, thief, &between),
                false => Stranger::dial_over(channel, thief, addr(&self.bob)),
            };
            match state {
                State::DialledAwaitsHello => {}
                State::DialledAwaitsConfirm => {
                    assert!(stranger.say(&self.hello()));
                    assert!(stranger.hear().is_some() && stranger.hear().is_some(), "its hello and its confirm");
                }
                State::DiallerAwaitsHello => assert!(stranger.hear().is_some(), "its hello"),
                State::DiallerAwaitsConfirm => {
                    assert!(stranger.hear().is_some(), "its hello");
                    assert!(stranger.say(&self.hello()));
                }
                State::DialledAwaitsAttach => stranger.prove(thief, SessionKind::Outbound, self.bob.id()),
                State::DiallerAwaitsAttach => stranger.prove(thief, SessionKind::Inbound, self.bob.id()),
            }
            let result = attack(stranger);
            let cause = match dial.map(|dial| dial.join().unwrap()) {
                Some(Err(ConnectError::Dial(mut errors))) if errors.len() == 1 => Some(errors.remove(0).cause),
                Some(other) => panic!("{state:?}: the dial did not fail: {other:?}"),
                None => None,
            };
            (result, cause)
        })
    }

    /// Everything is given back, the node was never fooled, and a good peer is served.
    fn end(self) {
        let Self { channel, bob, .. } = self;
        nothing_left(&bob);
        let metrics = bob.metrics();
        assert_eq!(metrics.sessions_started, 0);
        assert_eq!(metrics.accepted + metrics.dials, metrics.handshakes_failed + metrics.dials_failed, "{metrics:?}");
        let alice = start(over(channel));
        alice.connect(addr(&bob)).unwrap();
        reaches(&alice, &bob);
    }
}

/// A header of the frame that is due, with this length.
fn header(state: State, length: u32) -> Vec<u8> {
    FrameHeader::control(state.due(), length).to_bytes().to_vec()
}

#[test]
fn what_is_no_hello_is_refused_by_its_first_bytes_by_who_was_dialled_and_by_who_dials() {
    let _alone = alone();
    for channel in channels() {
        let scene = Scene::new(channel);
        for state in [State::DialledAwaitsHello, State::DiallerAwaitsHello] {
            let hello = scene.hello();
            // Honest up to its magic.
            let mut body: Hello = decode(&hello[HEADER..]).unwrap();
            body.magic = *b"TWIS";
            let mut wrong_magic = Vec::new();
            put_body(&mut wrong_magic, FrameType::Hello, &body).unwrap();
            let cases: [(&str, &[u8]); 7] = [
                ("another magic", &wrong_magic),
                ("a web browser", b"GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n"),
                ("TLS", &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]),
                ("SSH", b"SSH-2.0-OpenSSH_9.6\r\n"),
                ("ones", &[0xff; 64]),
                ("another frame than is due", &FrameHeader::control(FrameType::Beat, 25).to_bytes()),
                (
                    "a hello of random bytes",
                    &[&[32, 0, 0, 0, 4, 0, 0, 0][..], &hello[HEADER + 40..HEADER + 72]].concat(),
                ),
            ];
            for (what, bytes) in cases {
                let (told, cause) = scene.meet(state, |mut stranger| {
                    assert!(stranger.say(bytes));
                    stranger.finish();
                    stranger.hear_out()
                });
                assert_eq!(told, Some(CloseReason::ProtocolError), "{channel:?} {state:?}: {what}");
                let expected = state.bob_dials().then_some(DialCause::Rejected(CloseReason::ProtocolError));
                assert_eq!(cause, expected, "{channel:?} {state:?}: {what}");
            }
        }
        scene.end();
    }
}

#[test]
fn a_length_beyond_the_limit_of_its_state_is_refused_by_the_header_alone() {
    let _alone = alone();
    for channel in channels() {
        let scene = Scene::new(channel);
        for state in State::ALL {
            for length in [state.longest() as u32 + 1, u32::MAX] {
                let (told, cause) = scene.meet(state, |mut stranger| {
                    assert!(stranger.say(&header(state, length)));
                    stranger.hear_out()
                });
                assert_eq!(told, Some(CloseReason::ProtocolError), "{channel:?} {state:?}: {length} bytes");
                let expected = state.bob_dials().then_some(DialCause::Rejected(CloseReason::ProtocolError));
                assert_eq!(cause, expected, "{channel:?} {state:?}");
            }
        }
        scene.end();
    }
}

#[test]
fn an_empty_frame_is_refused_in_every_state() {
    let _alone = alone();
    for channel in channels() {
        let scene = Scene::new(channel);
        for state in State::ALL {
            let (told, cause) = scene.meet(state, |mut stranger| {
                assert!(stranger.say(&header(state, 0)));
                stranger.hear_out()
            });
            assert_eq!(told, Some(CloseReason::ProtocolError), "{channel:?} {state:?}");
            let expected = state.bob_dials().then_some(DialCause::Rejected(CloseReason::ProtocolError));
            assert_eq!(cause, expected, "{channel:?} {state:?}");
        }
        scene.end();
    }
}

#[test]
fn a_frame_that_breaks_off_into_silence_is_cut_by_the_deadline_in_every_state() {
    // What precedes the attack takes some of it.
    const TIMEOUT: Duration = Duration::from_secs(2);
    let _alone = alone();
    let is_cut = |channel, state: State| {
        let scene = Scene::with_timeout(channel, TIMEOUT);
        let ((told, took), cause) = scene.meet(state, |mut stranger| {
            let begin = Instant::now();
            assert!(stranger.say(&[header(state, 100), vec![0; 10]].concat()));
            (stranger.hear_out(), begin.elapsed())
        });
        assert_eq!(told, Some(CloseReason::HandshakeTimeout), "{channel:?} {state:?}");
        assert!(took < 10 * TIMEOUT, "{channel:?} {state:?}: {took:?}");
        let expected = state.bob_dials().then_some(DialCause::TimedOut(TIMEOUT));
        assert_eq!(cause, expected, "{channel:?} {state:?}");
        assert_eq!(scene.bob.metrics().handshake_timeouts, 1);
        scene.end();
    };
    // All at once: each has nodes of its own, and most of it is waiting.
    std::thread::scope(|scope| {
        for (channel, state) in channels().flat_map(|channel| State::ALL.map(|state| (channel, state))) {
            scope.spawn(move || is_cut(channel, state));
        }
    });
}

#[test]
fn a_byte_each_hundred_milliseconds_does_not_outlive_the_deadline_of_the_whole_handshake() {
    const TIMEOUT: Duration = Duration::from_secs(1);
    let _alone = alone();
    for channel in channels() {
        let scene = Scene::with_timeout(channel, TIMEOUT);
        for state in [State::DialledAwaitsHello, State::DiallerAwaitsHello] {
            // An honest hello, which would take twenty times as long.
            let hello = scene.hello();
            let ((dripped, took), _) = scene.meet(state, |mut stranger| {
                let begin = Instant::now();
                let mut dripped = 0;
                for byte in &hello {
                    if !stranger.remains() || !stranger.say(&[*byte]) {
                        break;
                    }
                    dripped += 1;
                    std::thread::sleep(Duration::from_millis(100));
                }
                (dripped, begin.elapsed())
            });
            assert!((3..hello.len()).contains(&dripped), "{channel:?} {state:?}: {dripped} bytes of {}", hello.len());
            assert!(took >= TIMEOUT / 2 && took < 10 * TIMEOUT, "{channel:?} {state:?}: {took:?}");
        }
        assert_eq!(scene.bob.metrics().handshake_timeouts, 2);
        scene.end();
    }
}

/// What the attacker has answered somebody else's hello with: a hello and a confirm.
fn old_answer(thief: &Arc<Identity>) -> Vec<u8> {
    let other = Arc::new(Identity::generate().unwrap());
    let hello = std::mem::take(machine(&other, SessionKind::Outbound, thief.peer_id()).output());
    let mut decoder = Decoder::new(MAX_HANDSHAKE_BODY);
    decoder.space()[..hello.len()].copy_from_slice(&hello);
    decoder.filled(hello.len());
    let mut answers = machine(thief, SessionKind::Inbound, other.peer_id());
    let Step::Work(work) = answers.step(&mut decoder) else { panic!("it does not answer") };
    answers.work_done(work.run());
    std::mem::take(answers.output())
}

#[test]
fn a_node_that_dials_survives_a_hang_up_at_every_byte_of_the_answer() {
    let _alone = alone();
    for channel in channels() {
        let scene = Scene::new(channel);
        let answer = old_answer(&scene.thief);
        for said in 0..=answer.len() {
            let reset = said % 2 == 0;
            let (_, cause) = scene.meet(State::DiallerAwaitsHello, |mut stranger| {
                assert!(stranger.say(&answer[..said]));
                // Whole, it is an old answer to another's question: refused before anybody hangs up.
                let told = (said == answer.len()).then(|| stranger.hear_out());
                assert_eq!(told.flatten(), (said == answer.len()).then_some(CloseReason::BadSignature));
                stranger.hang_up(reset);
            });
            let lost = matches!(cause, Some(DialCause::Io(_)));
            let refused = cause == Some(DialCause::Rejected(CloseReason::BadSignature));
            assert_eq!((lost, refused), (said < answer.len(), said == answer.len()), "{said} bytes: {cause:?}");
        }
        assert_eq!(scene.bob.metrics().dials_failed, answer.len() as u64 + 1);
        scene.end();
    }
}

#[test]
fn a_hang_up_between_proof_and_attach_leaves_both_sides_free() {
    let _alone = alone();
    for channel in channels() {
        let scene = Scene::new(channel);
        for state in [State::DialledAwaitsAttach, State::DiallerAwaitsAttach] {
            for reset in [false, true] {
                let ((), cause) = scene.meet(state, |stranger| stranger.hang_up(reset));
                assert_eq!(cause.is_some(), state.bob_dials(), "{cause:?}");
            }
        }
        scene.end();
    }
}

/// Both roles of the node, and both orders of the ids: who speaks first once both are proven.
#[test]
fn an_honest_handshake_that_breaks_off_at_any_byte_leaves_nothing_in_a_node_that_was_dialled_or_dials() {
    let _alone = alone();
    let roles = [(false, false), (false, true), (true, false), (true, true)];
    for (channel, (dials, decides)) in channels().flat_map(|channel| roles.map(|roles| (channel, roles))) {
        // The handshake of TLS is long, and takes its time.
        let step = if channel == Channel::Tls { 7 } else { 1 };
        let mut identities = identities();
        if decides {
            identities.reverse();
        }
        let [of_bob, other] = identities;
        let other = Arc::new(other);
        let bob = Node::builder().config(over(channel)).identity(of_bob).start().unwrap();
        let at = TcpListener::bind("127.0.0.1:0").unwrap();
        let at_addr = at.local_addr().unwrap();
        let meet = |bytes| match dials {
            false => Mute::dial_and_say(channel, &other, bob.id(), addr(&bob), bytes),
            true => std::thread::scope(|scope| {
                let dial = scope.spawn(|| bob.connect(at_addr));
                let whole = Mute::accept_and_say(channel, &other, bob.id(), &at, bytes);
                assert_eq!(dial.join().unwrap().is_ok(), whole.is_some(), "{bytes} bytes");
                whole
            }),
        };
        let mut bytes = 0;
        let whole = loop {
            match meet(bytes) {
                Some(whole) => break whole,
                None => bytes += step,
            }
            // Or the next one would meet what is left of this one.
            wait_until("it is over", || bob.sessions().is_empty() && settled(&bob));
        };
        bob.wait_connected(other.peer_id(), PATIENCE).unwrap();
        drop(whole);
        nothing_left(&bob);
        let metrics = bob.metrics();
        let failed = if dials { metrics.dials_failed } else { metrics.handshakes_failed };
        println!(
            "{channel:?}, dials: {dials}, speaks first: {decides}: broken off at {step}, {}, .. {bytes}",
            2 * step
        );
        assert!(bytes > 200, "{bytes}");
        assert_eq!((failed, metrics.sessions_started), ((bytes / step) as u64, 1), "{metrics:?}");
        let alice = start(over(channel));
        alice.connect(addr(&bob)).unwrap();
        reaches(&alice, &bob);
    }
}
