//! Handshakes over a transport that has proven both sides to each other: nobody signs, and nobody gets away with less.

use super::*;
use crate::wire::Confirm;

/// A side whose transport has proven that `who` is there.
fn bound(mut side: Side, who: &HandshakeConfig) -> Side {
    side.machine.expect(id(who));
    side
}

/// The confirm frame with this for a signature.
fn confirm(signature: &[u8]) -> Vec<u8> {
    frame(FrameType::Confirm as u8, &wire::encode(&Confirm { signature: signature.to_vec() }).unwrap())
}

#[test]
fn both_sides_are_proven_without_a_signature_and_without_work() {
    let (a, b) = (config("net", 1), config("net", 2));
    let mut sides = [bound(Side::dial(&a, None), &b), bound(Side::accept(&b, None), &a)];
    let mut flight = mem::take(sides[0].machine.output());
    for at in [1, 0, 1] {
        let side = &mut sides[at];
        assert!(at == 1 || flight.ends_with(&confirm(b"")), "the last that the acceptor says");
        side.decoder.feed(&flight);
        let step = side.machine.step(&mut side.decoder);
        assert!(matches!(step, Step::NeedRead | Step::Proven(_)), "no work: {step:?}");
        if let Step::Proven(proven) = step {
            assert_eq!(proven.peer, id(if at == 0 { &b } else { &a }));
            side.end = Some(Step::Proven(proven));
        }
        flight = mem::take(side.machine.output());
    }
    assert!(sides.iter().all(|side| side.proven().is_some()));
}

#[test]
fn a_confirm_without_a_signature_proves_nothing_to_who_has_no_proof_of_the_transports() {
    let (a, b) = (config("net", 1), config("net", 2));
    let mut dialler = bound(Side::dial(&a, None), &b);
    let mut acceptor = Side::accept(&b, None);
    talk(&mut dialler, &mut acceptor);
    assert_eq!(acceptor.refused(), Some((true, CloseReason::BadSignature)));
    let mut dialler = Side::dial(&a, Some(id(&b)));
    let mut acceptor = bound(Side::accept(&b, None), &a);
    talk(&mut dialler, &mut acceptor);
    assert_eq!(dialler.refused(), Some((true, CloseReason::BadSignature)));
    assert_eq!(acceptor.refused(), Some((false, CloseReason::BadSignature)));
}

#[test]
fn a_hello_with_another_key_than_the_transport_has_seen_is_refused_before_anything_is_said() {
    let (a, b, thief) = (config("net", 1), config("net", 2), config("net", 3));
    let mut acceptor = bound(Side::accept(&b, None), &thief);
    let said = acceptor.feed(&hello_frame(&a, |_| {}));
    assert_eq!(acceptor.refused(), Some((true, CloseReason::WrongPeer)));
    assert_eq!(goodbye_in(&said).reason, CloseReason::WrongPeer.code());
    let mut dialler = bound(Side::dial(&a, None), &thief);
    dialler.feed(b"");
    dialler.feed(&[hello_frame(&b, |_| {}), confirm(b"")].concat());
    assert_eq!(dialler.refused(), Some((true, CloseReason::WrongPeer)));
}

#[test]
fn a_signature_that_comes_nevertheless_must_be_right() {
    let (a, b) = (config("net", 1), config("net", 2));
    // Somebody who always signs.
    let mut acceptor = bound(Side::accept(&b, None), &a);
    let hello = hello_frame(&a, |_| {});
    let answer = acceptor.feed(&hello);
    let theirs = &answer[HEADER..answer.len() - confirm(b"").len()];
    let hellos = hello::Hellos { dialler: hello[HEADER..].to_vec(), acceptor: theirs.to_vec() };
    let signature = a.identity.sign(&hellos.transcript(SessionKind::Outbound));
    acceptor.feed(&confirm(&signature));
    assert!(acceptor.proven().is_some());
    for wrong in [&[0; 64][..], &signature[..63], b"x"] {
        let mut acceptor = bound(Side::accept(&b, None), &a);
        acceptor.feed(&hello);
        acceptor.feed(&confirm(wrong));
        assert_eq!(acceptor.refused(), Some((true, CloseReason::BadSignature)));
    }
}

#[test]
fn policies_are_asked_and_copies_of_our_key_accused_all_the_same() {
    let a = config("net", 1);
    let b = config("net", 2).policy(Arc::new(|_: &Offer<'_>| Err("no".to_owned())));
    let (mut dialler, mut acceptor) = (bound(Side::dial(&a, None), &b), bound(Side::accept(&b, None), &a));
    talk(&mut dialler, &mut acceptor);
    assert_eq!(acceptor.refused(), Some((true, CloseReason::Refused)));
    let b = config("net", 2);
    let mut acceptor = bound(Side::accept(&b, None), &b);
    acceptor.feed(&hello_frame(&b, |hello| hello.incarnation = 77));
    acceptor.feed(&confirm(b""));
    assert_eq!(acceptor.refused(), Some((true, CloseReason::IdentityClash)));
}
