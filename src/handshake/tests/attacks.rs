//! Peers that break the protocol, lie, replay, reflect, hang up or speak of a future version.

use super::*;
use crate::transport::sha256;
use crate::wire::Confirm;

/// The bytes each side wrote in an honest handshake.
fn record(a: &HandshakeConfig, b: &HandshakeConfig) -> [Vec<u8>; 3] {
    let mut flights = Vec::new();
    converse(&mut Side::dial(a, None), &mut Side::accept(b, None), &[], &mut |_, flight| flights.push(flight.clone()));
    flights.try_into().unwrap()
}

/// The confirm frame of somebody who follows the specification by hand.
fn confirm_frame(signer: &Identity, side: u8, dialler_hello: &[u8], acceptor_hello: &[u8]) -> Vec<u8> {
    let hashes = [sha256(dialler_hello), sha256(acceptor_hello)].concat();
    let message = [&b"threadwire confirm v1"[..], &[side], &hashes].concat();
    let confirm = Confirm { signature: signer.sign(&message).to_vec() };
    frame(FrameType::Confirm as u8, &wire::encode(&confirm).unwrap())
}

fn bodies(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut decoder = Decoder::new(MAX_HANDSHAKE_BODY);
    decoder.feed(bytes);
    std::iter::from_fn(|| decoder.next_frame().unwrap().map(|frame| frame.body.to_vec())).collect()
}

#[test]
fn a_byte_changed_in_flight_lets_its_receiver_prove_nobody() {
    let (a, b) = (config("net", 1), config("net", 2).payload(b"pay".to_vec()).unwrap());
    let honest = record(&a, &b);
    let mut changed = 0;
    for (index, flight) in honest.iter().enumerate() {
        let hello_ends = HEADER + bodies(flight)[0].len();
        for at in 0..flight.len() {
            // Flags and kind of a handshake's frame mean nothing and are not signed.
            let in_header = if at < hello_ends { at } else { at - hello_ends };
            if (5..HEADER).contains(&in_header) {
                continue;
            }
            let (mut dialler, mut acceptor) = (Side::dial(&a, None), Side::accept(&b, None));
            let mut flights = 0;
            converse(&mut dialler, &mut acceptor, &[], &mut |_, flight| {
                if flights == index {
                    flight[at] ^= 0x10;
                    changed += 1;
                }
                flights += 1;
            });
            let receiver = if index == 1 { &dialler } else { &acceptor };
            assert!(receiver.proven().is_none(), "flight {index}, byte {at}");
            assert!(index == 2 || dialler.proven().is_none(), "flight {index}, byte {at}");
        }
    }
    let unsigned_parts = 4 * (HEADER - 5);
    assert_eq!(changed, honest.concat().len() - unsigned_parts);
}

#[test]
fn a_hang_up_after_any_byte_proves_nobody_and_breaks_nothing() {
    let (a, b) = (config("net", 1), config("net", 2));
    let [hello, answer, confirm] = record(&a, &b);
    let to_acceptor = [hello, confirm].concat();
    for end in 0..=to_acceptor.len() {
        let mut acceptor = Side::accept(&b, None);
        acceptor.feed(&to_acceptor[..end]);
        assert_eq!(acceptor.end.is_some(), end == to_acceptor.len(), "{end}: {:?}", acceptor.end);
    }
    for end in 0..=answer.len() {
        let mut dialler = Side::dial(&a, None);
        dialler.feed(&answer[..end]);
        assert_eq!(dialler.proven().is_some(), end == answer.len());
    }
}

#[test]
fn an_old_handshake_replayed_to_either_side_proves_nothing() {
    let (a, b) = (config("net", 1), config("net", 2));
    let [hello, answer, confirm] = record(&a, &b);
    let mut dialler = Side::new(Handshake::dial(Arc::new(a.clone()), Some(id(&b)), [3; 32]));
    assert_eq!(goodbye_in(&dialler.feed(&answer)).reason, CloseReason::BadSignature.code());
    assert_eq!(dialler.refused(), Some((true, CloseReason::BadSignature)));
    let mut acceptor = Side::new(Handshake::accept(Arc::new(b), None, [3; 32]));
    acceptor.feed(&hello);
    assert_eq!(goodbye_in(&acceptor.feed(&confirm)).reason, CloseReason::BadSignature.code());
    assert_eq!(acceptor.refused(), Some((true, CloseReason::BadSignature)));
}

#[test]
fn our_own_confirm_handed_back_to_us_proves_nothing() {
    let b = config("net", 2);
    // The attacker has no key: it claims ours, in another life so that it does not look like ourselves.
    let mut acceptor = Side::accept(&b, None);
    let claimed = hello_frame(&b, |hello| hello.incarnation = 77);
    let answer = acceptor.feed(&claimed);
    let own_confirm = &answer[HEADER + bodies(&answer)[0].len()..];
    acceptor.feed(own_confirm);
    assert_eq!(acceptor.refused(), Some((true, CloseReason::BadSignature)));
    // The same as an acceptor: whatever it says, it cannot sign for the acceptor's side.
    let mut dialler = Side::dial(&b, None);
    let hello = dialler.feed(b"");
    let answer = [&claimed[..], &confirm_frame(&b.identity, 0, &hello[HEADER..], &claimed[HEADER..])].concat();
    dialler.feed(&answer);
    assert_eq!(dialler.refused(), Some((true, CloseReason::BadSignature)));
}

#[test]
fn a_claimed_name_without_its_key_asks_no_policy() {
    let asked = Arc::new(Mutex::new(0));
    let count = Arc::clone(&asked);
    let b = config("net", 2).policy(Arc::new(move |_: &Offer<'_>| {
        *count.lock() += 1;
        Ok(())
    }));
    let (victim, thief) = (config("net", 1), Identity::generate().unwrap());
    let hello = hello_frame(&victim, |_| {});
    for (signer, expected) in [(&thief, 0), (&*victim.identity, 1)] {
        let mut acceptor = Side::accept(&b, None);
        let answer = acceptor.feed(&hello);
        acceptor.feed(&confirm_frame(signer, 0, &hello[HEADER..], &bodies(&answer)[0]));
        assert_eq!((acceptor.proven().is_some(), *asked.lock()), (expected == 1, expected));
    }
}

#[test]
fn a_copy_of_our_key_elsewhere_is_only_accused_when_it_has_proven_it() {
    let b = config("net", 2);
    let hello = hello_frame(&b, |hello| hello.incarnation = 77);
    for (signer, reason) in
        [(&*b.identity, CloseReason::IdentityClash), (&Identity::generate().unwrap(), CloseReason::BadSignature)]
    {
        let mut acceptor = Side::accept(&b, None);
        let answer = acceptor.feed(&hello);
        acceptor.feed(&confirm_frame(signer, 0, &hello[HEADER..], &bodies(&answer)[0]));
        assert_eq!(acceptor.refused(), Some((true, reason)));
    }
}

#[test]
fn a_hello_lengthened_by_a_newer_version_is_accepted_and_wholly_signed() {
    let (a, b) = (config("net", 1), config("net", 2));
    let newer = |c: &HandshakeConfig, later: &[u8]| {
        let hello = hello_frame(c, |hello| {
            hello.version_max = 7;
            hello.capabilities = u64::MAX;
        });
        [&hello[HEADER..], later].concat()
    };
    for (signed, sent, proven) in [(b"later field", b"later field", true), (b"later field", b"other field", false)] {
        let (signed, sent) = (newer(&a, signed), newer(&a, sent));
        let mut acceptor = Side::accept(&b, None);
        let answer = acceptor.feed(&frame(FrameType::Hello as u8, &sent));
        acceptor.feed(&confirm_frame(&a.identity, 0, &signed, &bodies(&answer)[0]));
        assert_eq!(acceptor.proven().map(|p| (p.version, p.capabilities)), proven.then_some((1, CAPABILITIES)));

        let mut dialler = Side::dial(&b, None);
        let hello = dialler.feed(b"");
        let confirm = confirm_frame(&a.identity, 1, &hello[HEADER..], &signed);
        dialler.feed(&[frame(FrameType::Hello as u8, &sent), confirm].concat());
        assert_eq!(dialler.proven().map(|p| (p.peer, p.version)), proven.then_some((id(&a), 1)));
    }
}

#[test]
fn what_breaks_the_protocol_is_told_so() {
    let (a, b) = (config("net", 1), config("net", 2));
    let [hello, _, confirm] = record(&a, &b);
    let twice = [&hello[..], &hello].concat();
    let long = |length: usize| "x".repeat(length);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("a web client", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("a confirm before the hello", confirm),
        ("a second hello", twice),
        ("data", frame(0x30, b"data")),
        ("a type nobody knows", frame(13, b"")),
        ("a hello on a lane", frame(0x10 | FrameType::Hello as u8, &hello[HEADER..])),
        ("an attach", frame(FrameType::Attach as u8, b"")),
        ("no body", frame(FrameType::Hello as u8, b"")),
        ("half a body", frame(FrameType::Hello as u8, &hello[HEADER..HEADER + 60])),
        ("magic", hello_frame(&a, |hello| hello.magic = *b"RIWT")),
        ("network", hello_frame(&a, |hello| hello.network = long(MAX_NAME + 1))),
        ("protocol", hello_frame(&a, |hello| hello.protocol = long(MAX_NAME + 1))),
        ("payload", hello_frame(&a, |hello| hello.payload = vec![0; MAX_PAYLOAD + 1])),
        ("frame", hello_frame(&a, |hello| hello.payload = vec![0; MAX_HANDSHAKE_BODY])),
        ("goodbye", frame(FrameType::Goodbye as u8, b"bye")),
        ("a confirm that is none", [&hello[..], &frame(FrameType::Confirm as u8, b"me")].concat()),
    ];
    for (what, bytes) in cases {
        let mut acceptor = Side::accept(&b, None);
        let answer = acceptor.feed(&bytes);
        assert_eq!(acceptor.refused(), Some((true, CloseReason::ProtocolError)), "{what}");
        assert_eq!(goodbye_in(&answer).reason, CloseReason::ProtocolError.code(), "{what}");
    }
}

#[test]
fn a_frame_that_may_not_come_is_refused_by_its_header_alone() {
    let b = config("net", 2);
    for (tag, length) in [(0x30, 100), (FrameType::Hello as u8, MAX_HANDSHAKE_BODY as u32 + 1), (13, 9)] {
        let mut acceptor = Side::accept(&b, None);
        acceptor.feed(&FrameHeader { length, tag, flags: 0, kind: 0 }.to_bytes());
        assert_eq!(acceptor.refused(), Some((true, CloseReason::ProtocolError)));
    }
}

#[test]
fn the_work_of_another_handshake_decides_nothing() {
    let (a, b) = (config("net", 1), config("net", 2));
    let hello = Side::dial(&a, None).feed(b"");
    let mut sides = [[3; 32], [4; 32]].map(|nonce| Side::new(Handshake::accept(Arc::new(b.clone()), None, nonce)));
    let [one, other] = sides.each_mut().map(|side| {
        side.decoder.feed(&hello);
        match side.machine.step(&mut side.decoder) {
            Step::Work(work) => work.run(),
            step => panic!("{step:?}"),
        }
    });
    sides[0].machine.work_done(other);
    assert!(matches!(sides[0].machine.step(&mut sides[0].decoder), Step::Wait));
    assert!(sides[0].machine.output().is_empty());
    sides[0].machine.work_done(one);
    assert!(matches!(sides[0].machine.step(&mut sides[0].decoder), Step::NeedRead));
    assert_eq!(bodies(sides[0].machine.output()).len(), 2);
}

proptest! {
    #[test]
    fn no_bytes_make_a_machine_panic_prove_or_talk_much(
        bytes in prop::collection::vec(any::<u8>(), 0..600),
        tag in prop_oneof![Just(4u8), Just(5), Just(6), any::<u8>()],
        after_hello: bool,
    ) {
        let (a, b) = (config("net", 1), config("net", 2));
        let hello = hello_frame(&a, |_| {});
        for framed in [bytes.clone(), frame(tag, &bytes)] {
            for mut side in [Side::dial(&b, None), Side::accept(&b, None)] {
                let mut written = if after_hello { side.feed(&hello) } else { Vec::new() };
                written.extend(side.feed(&framed));
                prop_assert!(side.proven().is_none());
                prop_assert!(bodies(&written).len() <= 3);
            }
        }
    }
}
