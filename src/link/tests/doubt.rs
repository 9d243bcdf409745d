//! Another process in the name of a peer that is attached.

use super::*;

/// A connection of another life of `side`'s peer, begun now; with the attach it brings if that peer decides.
fn newcomer(pair: &mut Pair, side: usize, incarnation: u64) -> (ConnectionId, Decision) {
    pair.clock += 10;
    let conn = ConnectionId(90 + pair.clock);
    let offer = Offer { conn, started: pair.clock, incarnation };
    let mut decision = pair.cores[side].offer(offer, [5; 16], pair.clock);
    if side == 1 {
        assert!(decision.ask.is_none(), "the other side has not chosen yet");
        let mut other = LinkCore::new(peer(1), peer(2), LIMITS, 500 + incarnation);
        let (_, attach) = other.offer(Offer { conn, started: 1, incarnation: 1 }, [6; 16], 1).say.unwrap();
        decision = pair.cores[1].on_attach(conn, &attach, pair.clock).unwrap();
    }
    (conn, decision)
}

/// Each side in turn, with a session of life 5 of its peer and a newcomer of another life.
fn clashes(mut then: impl FnMut(&mut Pair, usize, ConnectionId, u16)) {
    for (side, incarnation) in [(0, 4), (0, 6), (1, 4), (1, 6)] {
        let mut pair = Pair::new(LIMITS);
        pair.lives = [5, 5];
        pair.connect();
        let (conn, decision) = newcomer(&mut pair, side, incarnation);
        let Decision { say: None, attached: None, close, ask: Some((holder, question)), .. } = decision else {
            panic!("{decision:?}")
        };
        assert_eq!((holder, close), (pair.conn, Vec::new()), "nothing is decided yet");
        assert_eq!(pair.cores[side].attached(), Some(pair.conn));
        then(&mut pair, side, conn, question);
        assert!(!pair.cores[side].waits_for(question));
    }
}

#[test]
fn a_session_that_answers_stays_and_the_other_process_of_its_name_is_refused() {
    use crate::error::CloseReason::{IdentityClash, Undecided};
    clashes(|pair, side, conn, question| {
        let (second, decision) = newcomer(pair, side, 9);
        assert!(decision.ask.is_none(), "one question at a time");
        let core = &mut pair.cores[side];
        let close = core.judge(question, Sign::Answered, [5; 16], pair.clock).close;
        assert_eq!(close, [(conn, IdentityClash), (second, IdentityClash)]);
        assert_eq!(core.attached(), Some(pair.conn));
        // The next one is asked about anew; an answer to the old question is none.
        let (third, decision) = newcomer(pair, side, 6);
        let next = decision.ask.unwrap().1;
        assert_ne!(next, question);
        let core = &mut pair.cores[side];
        let late = pair.clock + SIGN_OF_LIFE;
        assert!(core.judge(question, Sign::Answered, [5; 16], late).close.is_empty());
        assert!(core.judge(next, Sign::Heard, [5; 16], late - 1).close.is_empty());
        assert!(core.waits_for(next));
        // Something came that may be old: nobody is accused, and nobody let in.
        assert_eq!(core.judge(next, Sign::Heard, [5; 16], late).close, [(third, Undecided)]);
        assert_eq!(core.attached(), Some(pair.conn));
        pair.settle(&mut queue_of(&[10]));
        assert_eq!((pair.cores[0].counts().acked, pair.cores[0].counts().sessions), (1, 1));
    });
}

#[test]
fn a_session_that_is_silent_or_over_makes_room_for_the_next_life() {
    use crate::error::CloseReason::Superseded;
    for over in [false, true] {
        clashes(|pair, side, conn, question| {
            let core = &mut pair.cores[side];
            let late = pair.clock + SIGN_OF_LIFE;
            assert!(core.judge(question, Sign::Nothing, [5; 16], late - 1).close.is_empty());
            let (sign, now) = if over { (Sign::Ended, pair.clock) } else { (Sign::Nothing, late) };
            let decision = core.judge(question, sign, [5; 16], now);
            assert_eq!(decision.close, [(pair.conn, Superseded)]);
            assert_eq!(decision.say.map(|(said, _)| said), Some(conn));
            assert_eq!(decision.attached, (side == 1).then_some(conn));
        });
    }
}

#[test]
fn a_newcomer_takes_the_place_of_a_session_that_ends_before_it_answers() {
    clashes(|pair, side, conn, question| {
        let decision = pair.cores[side].gone(pair.conn, [5; 16]);
        assert_eq!((decision.close.len(), decision.say.map(|(said, _)| said)), (0, Some(conn)));
        assert_eq!(decision.attached, (side == 1).then_some(conn));
        assert!(!pair.cores[side].waits_for(question));
    });
}

#[test]
fn a_newcomer_that_goes_away_takes_its_question_along() {
    clashes(|pair, side, conn, question| {
        assert!(pair.cores[side].gone(conn, [5; 16]).say.is_none());
        let decision = pair.cores[side].judge(question, Sign::Ended, [5; 16], u64::MAX);
        assert!(decision.close.is_empty() && decision.say.is_none());
        assert_eq!(pair.cores[side].attached(), Some(pair.conn));
    });
}

#[test]
fn a_new_session_of_the_process_in_doubt_sends_the_newcomer_away() {
    use crate::error::CloseReason::{Superseded, Undecided};
    clashes(|pair, side, conn, _| {
        let holder = pair.conn;
        pair.clock += 100;
        let attach = pair.propose(5);
        let answer = pair.cores[1].on_attach(pair.conn, &attach, pair.clock).unwrap();
        let last = pair.cores[0].on_attach(pair.conn, &answer.say.as_ref().unwrap().1, pair.clock).unwrap();
        let closed = [last, answer].into_iter().nth(side).unwrap().close;
        assert!(closed.contains(&(conn, Undecided)), "{closed:?}");
        assert!(side == 0 || closed.contains(&(holder, Superseded)), "{closed:?}");
        assert_eq!(pair.cores[side].attached(), Some(pair.conn));
    });
}
