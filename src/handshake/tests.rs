use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;
use crate::error::CloseReason;
use crate::ident::{Incarnation, PeerId, SessionKind};
use crate::wire::{self, Decoder, FrameHeader, FrameType, Goodbye, HEADER, Hello, LANES, MAX_BODY, MAX_HANDSHAKE_BODY};

mod attacks;
mod bound;

const DIALLER_NONCE: [u8; 32] = [1; 32];
const ACCEPTOR_NONCE: [u8; 32] = [2; 32];

fn config(network: &str, incarnation: u64) -> HandshakeConfig {
    let identity = Arc::new(Identity::generate().unwrap());
    HandshakeConfig::new(identity, Incarnation(incarnation), network, "threadwire-direct/1").unwrap()
}

fn id(config: &HandshakeConfig) -> PeerId {
    config.identity.peer_id()
}

/// A machine, what it has read, and how it ended.
struct Side {
    machine: Handshake,
    decoder: Decoder,
    end: Option<Step>,
}

impl Side {
    fn new(machine: Handshake) -> Self {
        Self { machine, decoder: Decoder::new(MAX_HANDSHAKE_BODY), end: None }
    }

    fn dial(config: &HandshakeConfig, expected: Option<PeerId>) -> Self {
        Self::new(Handshake::dial(Arc::new(config.clone()), expected, DIALLER_NONCE))
    }

    fn accept(config: &HandshakeConfig, expected: Option<PeerId>) -> Self {
        Self::new(Handshake::accept(Arc::new(config.clone()), expected, ACCEPTOR_NONCE))
    }

    /// Takes these bytes, does the work, gives back what is to be written.
    fn feed(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.decoder.feed(bytes);
        loop {
            match self.machine.step(&mut self.decoder) {
                Step::NeedRead | Step::Wait => return mem::take(self.machine.output()),
                Step::Work(work) => {
                    assert!(matches!(self.machine.step(&mut self.decoder), Step::Wait), "nothing goes on without it");
                    self.machine.work_done(work.run());
                }
                end => assert!(self.end.replace(end).is_none(), "one end"),
            }
        }
    }

    fn proven(&self) -> Option<&Proven> {
        match &self.end {
            Some(Step::Proven(proven)) => Some(proven),
            _ => None,
        }
    }

    /// Who refused (`true`: this side), and why.
    fn refused(&self) -> Option<(bool, CloseReason)> {
        match &self.end {
            Some(Step::Refuse { reason, .. }) => Some((true, *reason)),
            Some(Step::RefusedByPeer { reason, .. }) => Some((false, *reason)),
            _ => None,
        }
    }
}

/// Carries bytes between both until nobody has anything to say. Each flight passes through `tap`, then in cuts.
fn converse(dialler: &mut Side, acceptor: &mut Side, cuts: &[usize], tap: &mut dyn FnMut(SessionKind, &mut Vec<u8>)) {
    let mut cuts = cuts.iter().copied().cycle();
    let mut flight = dialler.feed(b"");
    let mut from = SessionKind::Outbound;
    while !flight.is_empty() {
        tap(from, &mut flight);
        let (to, back) = match from {
            SessionKind::Outbound => (&mut *acceptor, SessionKind::Inbound),
            SessionKind::Inbound => (&mut *dialler, SessionKind::Outbound),
        };
        let mut answer = Vec::new();
        let mut rest = &flight[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(cuts.next().unwrap_or(usize::MAX).min(rest.len()));
            answer.extend(to.feed(now));
            rest = later;
        }
        (flight, from) = (answer, back);
    }
}

fn talk(dialler: &mut Side, acceptor: &mut Side) {
    converse(dialler, acceptor, &[], &mut |_, _| {});
}

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let header = FrameHeader { length: body.len() as u32, tag, flags: 0, kind: 0 };
    [&header.to_bytes()[..], body].concat()
}

fn hello_frame(config: &HandshakeConfig, change: impl FnOnce(&mut Hello)) -> Vec<u8> {
    let mut hello: Hello = wire::decode(&hello::make(config, DIALLER_NONCE)).unwrap();
    change(&mut hello);
    frame(FrameType::Hello as u8, &wire::encode(&hello).unwrap())
}

/// The first goodbye in these bytes.
fn goodbye_in(bytes: &[u8]) -> Goodbye {
    let mut decoder = Decoder::new(MAX_HANDSHAKE_BODY);
    decoder.feed(bytes);
    while let Some(frame) = decoder.next_frame().unwrap() {
        if frame.header.frame_type() == Some(FrameType::Goodbye) {
            return wire::decode(frame.body).unwrap();
        }
    }
    panic!("no goodbye in {bytes:?}");
}

#[test]
fn both_sides_learn_what_the_other_says_of_itself() {
    let addr: SocketAddr = "192.0.2.7:9".parse().unwrap();
    let (a, b) = (config("net", 10).advertise(Some(addr)), config("net", 20).payload(b"hi".to_vec()).unwrap());
    let (mut dialler, mut acceptor) = (Side::dial(&a, Some(id(&b))), Side::accept(&b, Some(id(&a))));
    talk(&mut dialler, &mut acceptor);
    let (at_dialler, at_acceptor) = (dialler.proven().unwrap(), acceptor.proven().unwrap());
    assert_eq!((at_dialler.peer, at_acceptor.peer), (id(&b), id(&a)));
    assert_eq!((at_dialler.kind, at_acceptor.kind), (SessionKind::Outbound, SessionKind::Inbound));
    assert_eq!((at_dialler.incarnation, at_acceptor.incarnation), (Incarnation(20), Incarnation(10)));
    assert_eq!((at_dialler.advertised, at_acceptor.advertised), (None, Some(addr)));
    assert_eq!((&at_dialler.payload[..], &at_acceptor.payload[..]), (&b"hi"[..], &b""[..]));
    assert_eq!((at_dialler.version, at_acceptor.version), (1, 1));
    assert!(!dialler.decoder.is_mid_frame() && !acceptor.decoder.is_mid_frame());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_split_of_the_stream_proves_both_sides(
        cuts in prop::collection::vec(1usize..400, 1..20),
        payload in prop::collection::vec(any::<u8>(), 0..MAX_PAYLOAD),
    ) {
        let (a, b) = (config("net", 1).payload(payload.clone()).unwrap(), config("net", 2));
        let (mut dialler, mut acceptor) = (Side::dial(&a, None), Side::accept(&b, None));
        converse(&mut dialler, &mut acceptor, &cuts, &mut |_, _| {});
        prop_assert_eq!(dialler.proven().map(|p| p.peer), Some(id(&b)));
        prop_assert_eq!(acceptor.proven().map(|p| (p.peer, p.payload.clone())), Some((id(&a), payload)));
    }
}

#[test]
fn what_follows_the_handshake_stays_in_the_decoder_under_the_limit_of_a_session() {
    let (a, b) = (config("net", 1), config("net", 2));
    let (mut dialler, mut acceptor) = (Side::dial(&a, None), Side::accept(&b, None));
    let mut session = frame(FrameType::Attach as u8, b"not ours to read");
    session.extend(frame(0x30, &vec![7; MAX_BODY]));
    session.extend(b"a part of a");
    let mut flights = 0;
    converse(&mut dialler, &mut acceptor, &[], &mut |from, flight| {
        flights += 1;
        if from == SessionKind::Outbound && flights == 3 {
            flight.extend(&session);
        }
    });
    assert_eq!(flights, 3);
    assert!(acceptor.proven().is_some());
    assert_eq!(acceptor.decoder.pending(), session);
    assert_eq!(acceptor.decoder.next_frame().unwrap().unwrap().body, b"not ours to read");
    assert_eq!(acceptor.decoder.next_frame().unwrap().unwrap().body.len(), MAX_BODY);
}

#[test]
fn what_the_dialler_finds_wrong_reaches_the_acceptor_and_the_other_way_round() {
    use CloseReason::*;
    let (a, b) = (config("net", 1), config("net", 2));
    let no = |c: HandshakeConfig| c.policy(Arc::new(|_: &Offer<'_>| Err("no".to_owned())));
    let role = |c: &HandshakeConfig| HandshakeConfig { protocol: "threadwire-gossip/1".to_owned(), ..c.clone() };
    let clone = HandshakeConfig { incarnation: Incarnation(3), ..a.clone() };
    let stranger = Some(PeerId::from_bytes([9; 32]));
    // Dialler, whom it expects, acceptor, whom that expects, who refuses, why.
    let cases = [
        (
            a.clone(),
            None,
            HandshakeConfig { network: "x".to_owned(), ..b.clone() },
            None,
            SessionKind::Inbound,
            WrongNetwork,
        ),
        (a.clone(), None, role(&b), None, SessionKind::Inbound, WrongProtocol),
        (a.clone(), None, a.clone(), None, SessionKind::Inbound, SelfConnection),
        (a.clone(), None, b.clone(), stranger, SessionKind::Inbound, WrongPeer),
        (a.clone(), stranger, b.clone(), None, SessionKind::Outbound, WrongPeer),
        (a.clone(), None, clone, None, SessionKind::Outbound, IdentityClash),
        (no(a.clone()), None, b.clone(), None, SessionKind::Outbound, Refused),
    ];
    for (a, expected, b, expected_by_acceptor, refuses, reason) in cases {
        let (mut dialler, mut acceptor) = (Side::dial(&a, expected), Side::accept(&b, expected_by_acceptor));
        talk(&mut dialler, &mut acceptor);
        let (here, there) = match refuses {
            SessionKind::Outbound => (&dialler, &acceptor),
            SessionKind::Inbound => (&acceptor, &dialler),
        };
        assert_eq!(here.refused(), Some((true, reason)));
        assert_eq!(there.refused(), Some((false, reason)));
    }
}

#[test]
fn a_refusal_by_the_acceptors_policy_is_the_first_frame_of_the_diallers_session() {
    let (a, b) =
        (config("net", 1), config("net", 2).policy(Arc::new(|_: &Offer<'_>| Err("too far\nbehind".to_owned()))));
    let (mut dialler, mut acceptor) = (Side::dial(&a, None), Side::accept(&b, None));
    talk(&mut dialler, &mut acceptor);
    assert_eq!(acceptor.refused(), Some((true, CloseReason::Refused)));
    assert!(dialler.proven().is_some());
    let goodbye = goodbye_in(dialler.decoder.pending());
    assert_eq!((goodbye.reason, goodbye.text.as_str()), (CloseReason::Refused.code(), "too far behind"));
}

#[test]
fn each_policy_sees_the_direction_and_what_the_other_side_offers() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let watched = |c: HandshakeConfig| {
        let seen = Arc::clone(&seen);
        c.policy(Arc::new(move |offer: &Offer<'_>| {
            seen.lock().push((offer.kind, offer.peer, offer.incarnation, offer.advertised, offer.payload.to_vec()));
            Ok(())
        }))
    };
    let addr: SocketAddr = "[2001:db8::1]:50005".parse().unwrap();
    let a = watched(config("net", 1).payload(b"from a".to_vec()).unwrap().advertise(Some(addr)));
    let b = watched(config("net", 2).payload(b"from b".to_vec()).unwrap());
    talk(&mut Side::dial(&a, None), &mut Side::accept(&b, None));
    let expected = [
        (SessionKind::Outbound, id(&b), Incarnation(2), None, b"from b".to_vec()),
        (SessionKind::Inbound, id(&a), Incarnation(1), Some(addr), b"from a".to_vec()),
    ];
    assert_eq!(*seen.lock(), expected);
}

#[test]
fn a_policy_that_panics_refuses() {
    let a =
        config("net", 1).policy(Arc::new(|_: &Offer<'_>| -> Result<(), String> { panic!("a bug of the application") }));
    let (mut dialler, mut acceptor) = (Side::dial(&a, None), Side::accept(&config("net", 2), None));
    talk(&mut dialler, &mut acceptor);
    assert_eq!(dialler.refused(), Some((true, CloseReason::Refused)));
    assert_eq!(acceptor.refused(), Some((false, CloseReason::Refused)));
}

#[test]
fn the_newest_common_version_is_chosen() {
    let cases = [
        ((1, 1), (1, 1), Some(1)),
        ((1, 3), (2, 9), Some(3)),
        ((2, 9), (1, 3), Some(3)),
        ((1, 2), (3, 4), None),
        ((3, 4), (1, 2), None),
        ((1, 4), (3, 2), None),
        ((0, u16::MAX), (7, 7), Some(7)),
    ];
    for (ours, theirs, version) in cases {
        assert_eq!(hello::negotiate(ours, theirs), version, "{ours:?} {theirs:?}");
    }
}

#[test]
fn a_version_that_is_too_new_is_named_even_if_the_rest_of_its_hello_cannot_be_read() {
    let b = config("net", 2);
    for body in [&[&wire::MAGIC[..], &[2, 0, 9, 0]].concat()[..], &[&wire::MAGIC[..], &[2, 0, 9, 0, 255, 255]].concat()]
    {
        let mut acceptor = Side::accept(&b, None);
        let answer = acceptor.feed(&frame(FrameType::Hello as u8, body));
        assert_eq!(acceptor.refused(), Some((true, CloseReason::VersionMismatch)));
        assert_eq!(goodbye_in(&answer).reason, CloseReason::VersionMismatch.code());
    }
}

#[test]
fn names_and_payloads_beyond_their_bounds_are_refused_in_our_own_configuration() {
    let identity = Arc::new(Identity::generate().unwrap());
    let new = |network: usize, protocol: usize| {
        HandshakeConfig::new(Arc::clone(&identity), Incarnation(1), "n".repeat(network), "p".repeat(protocol))
    };
    assert!(new(MAX_NAME + 1, 1).unwrap_err().to_string().starts_with("network"));
    assert!(new(1, MAX_NAME + 1).unwrap_err().to_string().starts_with("protocol"));
    let largest = new(MAX_NAME, MAX_NAME).unwrap().advertise(Some("[::1]:65535".parse().unwrap()));
    assert!(largest.clone().payload(vec![0; MAX_PAYLOAD + 1]).unwrap_err().to_string().contains("8193"));
    let largest = largest.payload(vec![0; MAX_PAYLOAD]).unwrap();
    assert!(hello::make(&largest, [0; 32]).len() <= MAX_HANDSHAKE_BODY);
    let other = HandshakeConfig { identity: Arc::new(Identity::generate().unwrap()), ..largest.clone() };
    let (mut dialler, mut acceptor) = (Side::dial(&largest, None), Side::accept(&other, None));
    talk(&mut dialler, &mut acceptor);
    assert!(dialler.proven().is_some() && acceptor.proven().is_some());
}

#[test]
fn a_handshake_can_be_ended_from_outside_while_its_work_is_out() {
    let (a, b) = (config("net", 1), config("net", 2));
    let (mut dialler, mut acceptor) = (Side::dial(&a, None), Side::accept(&b, None));
    acceptor.decoder.feed(&dialler.feed(b""));
    let Step::Work(work) = acceptor.machine.step(&mut acceptor.decoder) else { panic!("work is due") };
    acceptor.machine.refuse(CloseReason::HandshakeTimeout, "5 s are over", Some(Duration::from_millis(1500)));
    acceptor.machine.work_done(work.run());
    let goodbye = acceptor.feed(b"");
    assert_eq!(acceptor.refused(), Some((true, CloseReason::HandshakeTimeout)));
    assert!(dialler.feed(&goodbye).is_empty());
    let Some(Step::RefusedByPeer { reason, text, retry_after }) = dialler.end else { panic!("{:?}", dialler.end) };
    assert_eq!((reason, text.as_str()), (CloseReason::HandshakeTimeout, "5 s are over"));
    assert_eq!(retry_after, Some(Duration::from_millis(1500)));
}

#[test]
fn a_refusal_needs_no_handshake_and_its_text_is_made_fit_for_a_log() {
    let mut bytes = Vec::new();
    put_refusal(&mut bytes, CloseReason::TooMany, &"\u{1b}[2Jé\u{202e}".repeat(99), None);
    let mut dialler = Side::dial(&config("net", 1), None);
    dialler.feed(&bytes);
    let Some(Step::RefusedByPeer { reason, text, retry_after }) = dialler.end else { panic!("{:?}", dialler.end) };
    assert_eq!((reason, retry_after), (CloseReason::TooMany, None));
    assert!(text.len() <= 255 && text.starts_with(" [2Jé  [2J"), "{text:?}");
}

#[test]
fn a_goodbye_of_a_newer_version_is_understood() {
    let goodbye = Goodbye { reason: 999, retry_after_ms: 0, received: [0; LANES], text: String::new() };
    let body = [&wire::encode(&goodbye).unwrap()[..], b"later fields"].concat();
    let mut dialler = Side::dial(&config("net", 1), None);
    dialler.feed(&frame(FrameType::Goodbye as u8, &body));
    assert_eq!(dialler.refused(), Some((false, CloseReason::Other(999))));
}
