//! Questions and their answers: every question ends once, with an answer or with the reason why there is none, and soon.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, unbounded};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use threadwire::config::Offline;
use threadwire::error::{CloseReason, RejectCause, RequestError, SendError, SendErrorKind};
use threadwire::{
    Answers, Kind, LinkStats, Message, Node, OverflowPolicy, PeerHandle, Priority, Responder, ReturnReason, SendOptions,
};

mod common;
use common::ledger::numbered;
use common::proxy::Proxy;
use common::{NOWHERE, PATIENCE, alone, link, loopback, quick, start, wait_until};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Sum {
    of: Vec<u32>,
}

fn not_sent(kind: SendErrorKind, payload: &[u8]) -> RequestError {
    RequestError::NotSent(SendError { kind, payload: payload.to_vec() })
}

fn plain() -> SendOptions {
    SendOptions::new()
}

fn kind(kind: u16) -> SendOptions {
    plain().kind(kind)
}

fn returned(payload: &str, reason: ReturnReason) -> RequestError {
    RequestError::Returned { payload: payload.into(), reason }
}

/// A node that keeps the right to answer every question it gets.
fn keeper() -> (Node, Arc<Mutex<Vec<Responder>>>) {
    let kept: Arc<Mutex<Vec<Responder>>> = Arc::default();
    let keep = kept.clone();
    let node = Node::builder().config(quick()).handler(move |_, message| keep.lock().push(message.responder()));
    (node.start().unwrap(), kept)
}

#[test]
fn a_question_gets_its_answer_from_a_handler_and_from_a_receive_loop() {
    let _alone = alone();
    let answerer = |_: &PeerHandle, message: Message<'_>| {
        assert!(message.is_question());
        message.reply([b"re: ", message.payload()].concat()).unwrap();
        let again = message.reply("again").unwrap_err();
        assert_eq!((again.kind, again.payload), (SendErrorKind::Answered, b"again".to_vec()));
        assert_eq!(message.responder().answer("again").unwrap_err().kind, SendErrorKind::Answered);
    };
    let bob = Node::builder().config(quick()).handler(answerer).start().unwrap();
    let alice = start(quick());
    let (to_bob, bobs) = (link(&alice, &bob), bob.wait_connected(alice.id(), PATIENCE).unwrap());
    for len in [0, 1, 100, 40_000, 100_000, 3 << 20] {
        let answer = to_bob.request_with(numbered(1, len), PATIENCE, &kind(7)).unwrap();
        assert!(answer.payload() == [b"re: ", &numbered(1, len)[..]].concat(), "{len} bytes");
        assert_eq!((answer.from(), answer.kind()), (bob.id(), 7));
    }
    // The other way, where the application takes messages itself.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..2 {
                let message = alice.recv_timeout(PATIENCE).unwrap();
                message.reply(message.payload()).unwrap();
            }
        });
        assert_eq!(bobs.request("one", PATIENCE).unwrap().payload(), b"one");
        assert!(bobs.request(vec![9; 200_000], PATIENCE).unwrap().into_payload() == vec![9; 200_000]);
    });
    let stats = to_bob.stats();
    assert_eq!((stats.requests, stats.answers, stats.open_requests), (6, 6, 0));
    assert_eq!((stats.late_answers, stats.unknown_answers), (0, 0));
    assert_eq!(alice.metrics().traffic.answers, 6);
    assert!(alice.recv_timeout(Duration::ZERO).is_err(), "an answer is no message");
}

#[test]
fn many_questions_are_in_flight_and_end_in_one_channel_in_any_order() {
    const COUNT: u64 = 5_000;
    let _alone = alone();
    let (bob, kept) = keeper();
    let alice = start(quick());
    let to_bob = link(&alice, &bob);
    let answers = Answers::new();
    (0..COUNT).for_each(|tag| to_bob.ask_into(tag.to_le_bytes(), PATIENCE, &plain(), &answers, tag).unwrap());
    let pending: Vec<_> = (0..10).map(|_| to_bob.ask("x", PATIENCE).unwrap()).collect();
    wait_until("all have come", || kept.lock().len() as u64 == COUNT + 10);
    assert_eq!(to_bob.stats().open_requests as u64, COUNT + 10);
    // From another thread, the last one first.
    let responders = std::mem::take(&mut *kept.lock());
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for (nth, responder) in responders.into_iter().enumerate().rev() {
                assert!(responder.is_question());
                responder.answer((nth as u64).to_le_bytes()).unwrap();
            }
        });
        for (nth, pending) in pending.into_iter().enumerate() {
            assert_eq!(pending.wait().unwrap().payload(), (COUNT + nth as u64).to_le_bytes());
        }
    });
    let mut tags: Vec<u64> = (0..COUNT)
        .map(|_| {
            let answered = answers.recv_timeout(PATIENCE).unwrap();
            assert_eq!(answered.outcome.unwrap().payload(), answered.tag.to_le_bytes());
            answered.tag
        })
        .collect();
    tags.sort_unstable();
    assert!(tags.into_iter().eq(0..COUNT));
    assert_eq!((to_bob.stats().open_requests, answers.try_recv().is_none()), (0, true));
}

#[test]
fn whoever_drops_a_question_says_so_at_once_and_a_failure_has_the_applications_code() {
    let _alone = alone();
    let kept: Arc<Mutex<Vec<Message<'static>>>> = Arc::default();
    let keep = kept.clone();
    let bob = Node::builder().config(quick()).handler(move |_, message| match message.payload() {
        b"drop" => {}
        b"drop the responder" => drop(message.responder()),
        b"fail" => message.responder().fail(4711),
        b"panic" => panic!("a handler that fails on purpose"),
        _ => keep.lock().push(message.into_owned()),
    });
    let bob = bob.start().unwrap();
    let alice = start(quick());
    let to_bob = link(&alice, &bob);
    let ask = |text: &str| to_bob.request(text, PATIENCE).unwrap_err();
    assert_eq!(ask("drop"), RequestError::NoAnswer);
    assert_eq!(ask("drop the responder"), RequestError::NoAnswer);
    assert_eq!(ask("fail"), RequestError::Failed(4711));
    assert_eq!(ask("panic"), RequestError::Rejected(RejectCause::HandlerPanicked));
    let pending = to_bob.ask("keep", PATIENCE).unwrap();
    wait_until("it is kept", || kept.lock().len() == 1);
    let pending = pending.try_wait().unwrap_err();
    let pending = pending.wait_timeout(Duration::from_millis(1)).unwrap_err();
    kept.lock().clear();
    assert_eq!(pending.wait().unwrap_err(), RequestError::NoAnswer);
    // What an application that receives itself drops, message by message or in a batch.
    let to_alice = bob.wait_connected(alice.id(), PATIENCE).unwrap();
    let pending = to_alice.ask("x", PATIENCE).unwrap();
    drop(alice.recv_timeout(PATIENCE).unwrap());
    assert_eq!(pending.wait().unwrap_err(), RequestError::NoAnswer);
    let carol = start(quick());
    let to_carol = link(&alice, &carol);
    let pending = [(); 3].map(|()| to_carol.ask("x", PATIENCE).unwrap());
    let incoming = carol.incoming().unwrap();
    let mut left = 3;
    while left > 0 {
        left -= incoming.recv_timeout(PATIENCE).unwrap().len();
    }
    for pending in pending {
        assert_eq!(pending.wait().unwrap_err(), RequestError::NoAnswer);
    }
    // All credit has returned: more than a window of questions fits through.
    for _ in 0..100 {
        let error = to_bob.request(vec![0; 100_000], Duration::from_millis(1)).unwrap_err();
        // On a busy machine it may not even have been written in that time.
        let unsent = matches!(error, RequestError::Returned { reason: ReturnReason::Expired, .. });
        assert!(unsent || error == RequestError::TimedOut, "neither late nor unsent");
        kept.lock().clear();
    }
    wait_until("all came", || to_bob.stats().acked + to_bob.stats().returned == to_bob.stats().accepted);
}

#[test]
fn a_question_ends_by_its_deadline_whoever_waits_and_a_late_answer_is_counted() {
    let _alone = alone();
    let (bob, kept) = keeper();
    let alice = start(quick());
    let to_bob = link(&alice, &bob);
    let short = Duration::from_millis(20);
    assert_eq!(to_bob.request("one", short).unwrap_err(), RequestError::TimedOut);
    let waits = to_bob.ask("two", short).unwrap();
    let answers = Answers::new();
    to_bob.ask_into("three", short, &plain(), &answers, 3).unwrap();
    drop(to_bob.ask("four", PATIENCE).unwrap());
    // Nobody waits for this one: the supervisor ends it.
    let answered = answers.recv_timeout(PATIENCE).unwrap();
    assert_eq!((answered.tag, answered.outcome.as_ref().unwrap_err()), (3, &RequestError::TimedOut));
    assert_eq!(to_bob.stats().open_requests, 2, "what was taken counts until it is dropped");
    drop(answered);
    assert_eq!(waits.wait().unwrap_err(), RequestError::TimedOut);
    wait_until("all came", || kept.lock().len() == 4);
    kept.lock().drain(..).for_each(|responder| responder.answer("late").unwrap());
    wait_until("all are late", || to_bob.stats().late_answers == 4);
    let traffic = alice.metrics().traffic;
    assert_eq!((traffic.requests, traffic.answers, traffic.late_answers, traffic.unknown_answers), (4, 0, 4, 0));
    assert_eq!(to_bob.stats().open_requests, 0);
}

#[test]
fn no_more_questions_wait_than_the_configuration_allows_and_an_answer_counts_until_it_is_taken() {
    let _alone = alone();
    let bob = loopback().handler(|_, message| message.reply("y").unwrap()).start().unwrap();
    let mut config = quick();
    config.requests = 3;
    let alice = start(config);
    let to_bob = link(&alice, &bob);
    let answers = Answers::new();
    (0..3).for_each(|tag| to_bob.ask_into("x", PATIENCE, &plain(), &answers, tag).unwrap());
    wait_until("all are answered", || to_bob.stats().answers == 3);
    for _ in 0..2 {
        let refused = to_bob.ask_into("x", PATIENCE, &plain(), &answers, 4).unwrap_err();
        assert_eq!((refused.kind, refused.payload), (SendErrorKind::TooManyRequests, b"x".to_vec()));
    }
    let refused = to_bob.request("x", PATIENCE).unwrap_err();
    assert_eq!(refused, not_sent(SendErrorKind::TooManyRequests, b"x"));
    drop(answers.recv_timeout(PATIENCE).unwrap());
    assert_eq!(to_bob.request("x", PATIENCE).unwrap().payload(), b"y");
    drop(answers);
    assert_eq!((to_bob.stats().open_requests, to_bob.stats().requests), (0, 4));
}

#[test]
fn an_answer_as_long_as_its_question_is_taken_however_full_the_reply_lane_is() {
    // Sent whole, in pieces, and longer than the window: such a question holds no more credit than the window has.
    const SIZES: [usize; 4] = [0, 64, 100_000, 700_000];
    let _alone = alone();
    let (tell, told) = unbounded();
    let filler = Mutex::new(None);
    let mut config = quick();
    (config.queue_bytes, config.window_bytes) = (64 * 1024, 256 * 1024);
    let bob = Node::builder().config(config).handler(move |_, message| {
        if !message.is_question() {
            *filler.lock() = Some(message.into_owned());
            return;
        }
        // Messages to alice, who takes none, until no further one fits.
        let filler = filler.lock();
        let fills = (0..).take_while(|_| filler.as_ref().unwrap().reply([7; 1000]).is_ok()).count();
        let answered = message.reply(message.payload()).map_err(|refused| refused.kind);
        tell.send((fills, answered)).unwrap();
    });
    let bob = bob.start().unwrap();
    let alice = start(quick());
    let to_bob = link(&alice, &bob);
    to_bob.send("to be replied to").unwrap();
    let asked = SIZES.map(|size| to_bob.ask(vec![9; size], PATIENCE).unwrap());
    let mut to_take = 0;
    for size in SIZES {
        let (fills, answered) = told.recv_timeout(PATIENCE).unwrap();
        assert_eq!(answered, Ok(()), "{size} bytes");
        to_take += fills;
    }
    assert!(to_take > 64, "the lane was full");
    // The lane moves on as alice takes what fills it.
    (0..to_take).for_each(|_| assert_eq!(alice.recv_timeout(PATIENCE).unwrap().payload(), [7; 1000]));
    for (pending, size) in asked.into_iter().zip(SIZES) {
        assert!(pending.wait().unwrap().payload() == vec![9; size], "{size} bytes");
    }
}

#[test]
fn an_answer_that_comes_back_offline_gives_its_questions_share_of_the_window_back() {
    const SIZE: usize = 100_000;
    const WINDOW: usize = 256 * 1024;
    let _alone = alone();
    let (tell, told) = unbounded();
    let filler = Mutex::new(None);
    let mut config = quick();
    (config.queue_bytes, config.window_bytes, config.offline) = (64 * 1024, WINDOW, Offline::Return);
    let bob = Node::builder().config(config).handler(move |peer, message| {
        if !message.is_question() {
            *filler.lock() = Some(message.into_owned());
            return;
        }
        // Messages to alice, who takes none, until her reply lane's share of the window is used up, a segment is numbered
        // ahead of that, and something waits before the answer.
        let stuck = |stats: LinkStats| {
            let LinkStats { unacked_bytes, kept_bytes, queued_messages, .. } = stats;
            unacked_bytes + 2_000 >= WINDOW / 4 && kept_bytes > unacked_bytes && queued_messages > 0
        };
        while !stuck(peer.stats()) {
            let _ = filler.lock().as_ref().unwrap().reply([7; 1000]);
        }
        message.reply(message.payload()).unwrap();
        tell.send(()).unwrap();
    });
    let bob = bob.start().unwrap();
    let mut config = quick();
    config.window_bytes = WINDOW;
    let alice = start(config);
    let to_bob = link(&alice, &bob);
    to_bob.send("to be replied to").unwrap();
    // More than the window has, in all.
    for round in 0..5 {
        let _unanswered = to_bob.ask(vec![9; SIZE], PATIENCE).unwrap();
        told.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("question {round} did not come"));
        let sessions = to_bob.stats().sessions;
        bob.disconnect(alice.id(), CloseReason::Requested).unwrap();
        while bob.undelivered().recv_timeout(PATIENCE).unwrap().outcome.into_payload().unwrap().len() < SIZE {}
        wait_until("they are connected again", || to_bob.stats().sessions > sessions);
    }
}

#[test]
fn answers_that_nobody_takes_hold_back_further_ones_and_questions_and_lose_none() {
    const BIG: usize = 100_000;
    let _alone = alone();
    let bob = loopback().handler(|_, message| message.reply(message.payload()).unwrap()).start().unwrap();
    let mut config = quick();
    config.queue_bytes = 3 * BIG;
    let alice = start(config);
    let to_bob = link(&alice, &bob);
    let answers = Answers::new();
    let ask = |tag| to_bob.ask_into(numbered(tag, BIG), PATIENCE, &plain(), &answers, tag);
    // Whoever waits for room while answers are held is let go: it is the one to take them.
    let mut asked = 0;
    let mut ask_on = || loop {
        match ask(asked) {
            Ok(()) => asked += 1,
            Err(refused) => {
                assert_eq!(refused.kind, SendErrorKind::TooManyRequests);
                assert!(refused.payload == numbered(asked, BIG));
                return asked;
            }
        }
    };
    // Three count as they are, and the reply lane's quarter of the window holds ten or eleven. Where all answers came
    // before the last question was refused, there is room for more.
    let mut all = ask_on();
    let settled = || {
        let before = to_bob.stats().answers;
        std::thread::sleep(Duration::from_millis(100));
        if to_bob.stats().answers != before || before == 0 {
            return false;
        }
        if before == all {
            all = ask_on();
            return false;
        }
        true
    };
    wait_until("no more come, and no more are asked", settled);
    let held = to_bob.stats().answers;
    assert!((4..=16).contains(&held) && held < asked, "{held} answers of {asked} are held");
    assert!(alice.metrics().memory_used >= held * BIG as u64);
    for _ in 0..asked {
        let answered = answers.recv_timeout(PATIENCE).unwrap();
        assert!(answered.outcome.unwrap().payload() == numbered(answered.tag, BIG));
    }
    assert_eq!(to_bob.stats().open_requests, 0);
    ask(asked).unwrap();
    assert!(answers.recv_timeout(PATIENCE).unwrap().outcome.is_ok());
}

#[test]
fn a_request_in_a_handler_would_block_and_a_question_there_does_not() {
    let _alone = alone();
    let (tell, told) = unbounded();
    let (hand, handed) = bounded(1);
    let bob = Node::builder().config(quick()).handler(move |peer, message| {
        tell.send(peer.request("x", PATIENCE).unwrap_err()).unwrap();
        let _ = hand.send(peer.ask("how much?", PATIENCE).unwrap());
        let (later, answers) = (peer.ask("again?", PATIENCE).unwrap(), Answers::new());
        tell.send(later.wait().unwrap_err()).unwrap();
        assert!(answers.recv_timeout(PATIENCE).is_err());
        drop(message);
    });
    let bob = bob.start().unwrap();
    let alice = start(quick());
    link(&alice, &bob).send("go").unwrap();
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), not_sent(SendErrorKind::WouldBlock, b"x"));
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), RequestError::WouldBlock);
    let question = alice.recv_timeout(PATIENCE).unwrap();
    assert_eq!(question.payload(), b"how much?");
    question.reply("much").unwrap();
    assert_eq!(handed.recv_timeout(PATIENCE).unwrap().wait().unwrap().payload(), b"much");
}

#[test]
fn a_reconnect_ends_no_question() {
    let _alone = alone();
    let (bob, kept) = keeper();
    let proxy = Proxy::to(bob.local_addr().unwrap());
    let alice = start(quick());
    let to_bob = alice.add_peer(bob.id(), [proxy.addr()]).unwrap();
    alice.wait_connected(bob.id(), PATIENCE).unwrap();
    let (before, after) = (to_bob.ask("before", PATIENCE).unwrap(), to_bob.ask("after", PATIENCE).unwrap());
    wait_until("both came", || kept.lock().len() == 2);
    assert_eq!(proxy.cut(), 1);
    kept.lock().remove(0).answer("1").unwrap();
    wait_until("there is another session", || to_bob.stats().sessions == 2);
    kept.lock().remove(0).answer("2").unwrap();
    assert_eq!(before.wait().unwrap().payload(), b"1");
    assert_eq!(after.wait().unwrap().payload(), b"2");
}

#[test]
fn questions_end_when_the_peer_is_removed_gives_up_or_says_goodbye_and_when_the_node_shuts_down() {
    let _alone = alone();
    let (bob, kept) = keeper();
    let alice = start(quick());
    let to_bob = link(&alice, &bob);
    let removed = to_bob.ask("x", PATIENCE).unwrap();
    wait_until("it came", || kept.lock().len() == 1);
    alice.remove_peer(bob.id()).unwrap();
    assert_eq!(removed.wait().unwrap_err(), RequestError::Removed);
    link(&alice, &bob);
    let lost = to_bob.ask("x", PATIENCE).unwrap();
    wait_until("it came too", || kept.lock().len() == 2);
    assert!(bob.shutdown(PATIENCE).finished);
    assert_eq!(lost.wait().unwrap_err(), RequestError::PeerLost);
    kept.lock().clear();
    // One that the other side has, one that is still here.
    let carol = start(quick());
    let asked = link(&alice, &carol).ask("x", PATIENCE).unwrap();
    let question = carol.recv_timeout(PATIENCE).unwrap();
    let unsent = to_bob.ask("unsent", PATIENCE).unwrap();
    wait_until("carol has it", || alice.peer(carol.id()).unwrap().stats().acked == 1);
    alice.shutdown(Duration::from_millis(10));
    assert_eq!(asked.wait().unwrap_err(), RequestError::ShuttingDown);
    assert_eq!(unsent.wait().unwrap_err(), returned("unsent", ReturnReason::ShutDown));
    drop(question);
    assert_eq!(to_bob.request("x", PATIENCE).unwrap_err(), not_sent(SendErrorKind::ShuttingDown, b"x"));
    assert_eq!(to_bob.stats().open_requests, 0);
}

#[test]
fn questions_end_with_the_resume_window() {
    let _alone = alone();
    let bob = start(quick());
    let mut config = quick();
    config.resume_window = Duration::from_millis(300);
    let alice = start(config);
    let proxy = Proxy::to(bob.local_addr().unwrap());
    let to_bob = alice.add_peer(bob.id(), [proxy.addr()]).unwrap();
    alice.wait_connected(bob.id(), PATIENCE).unwrap();
    // One is taken by the application and seen to be; the other one waits there, and nobody knows.
    let taken = to_bob.ask("taken", PATIENCE).unwrap();
    let waits = to_bob.ask("waits", PATIENCE).unwrap();
    let question = bob.recv_timeout(PATIENCE).unwrap();
    wait_until("it was seen to be taken", || to_bob.stats().acked == 1);
    let begin = Instant::now();
    drop(proxy);
    assert_eq!(taken.wait().unwrap_err(), RequestError::PeerLost);
    assert_eq!(waits.wait().unwrap_err(), RequestError::Unknown { payload: b"waits".to_vec() });
    assert!(begin.elapsed() >= Duration::from_millis(300), "before the resume window ended");
    drop(question);
}

#[test]
fn a_question_that_is_not_sent_in_time_comes_back_and_one_that_comes_too_late_is_not_handed_over() {
    let _alone = alone();
    let asked = Arc::new(AtomicU64::new(0));
    let (seen, (tell, told), (go, wait)) = (asked.clone(), unbounded(), bounded::<()>(0));
    let bob = Node::builder().config(quick()).handler(move |_, message| {
        if message.payload() == b"hold" {
            let _ = wait.recv_timeout(PATIENCE);
        } else {
            seen.fetch_add(1, Ordering::Relaxed);
            tell.send((message.time_left(), message.responder().time_left())).unwrap();
            message.reply("here").unwrap_err();
        }
    });
    let bob = bob.start().unwrap();
    let alice = start(quick());
    let to_bob = alice.add_peer(bob.id(), NOWHERE).unwrap();
    let short = Duration::from_millis(30);
    // It waits for a peer that does not come.
    assert_eq!(to_bob.request("unsent", short).unwrap_err(), returned("unsent", ReturnReason::Expired));
    let answers = Answers::new();
    to_bob.ask_into("unsent too", short, &plain(), &answers, 7).unwrap();
    let answered = answers.recv_timeout(PATIENCE).unwrap();
    assert_eq!((answered.tag, answered.outcome.unwrap_err()), (7, returned("unsent too", ReturnReason::Expired)));
    let dropped = plain().overflow(OverflowPolicy::Conflate(1));
    let first = to_bob.ask_with("first", PATIENCE, &dropped).unwrap();
    drop(to_bob.ask_with("second", PATIENCE, &dropped).unwrap());
    assert_eq!(first.wait().unwrap_err(), returned("first", ReturnReason::Replaced));
    link(&alice, &bob);
    wait_until("only the last was handed over", || asked.load(Ordering::Relaxed) == 1);
    let (message, responder) = told.recv_timeout(PATIENCE).unwrap();
    let most = PATIENCE + Duration::from_millis(1);
    assert!(message.is_some_and(|left| left > short && left <= most) && responder <= message, "{message:?}");
    // This one is written at once, and read when its time is up.
    to_bob.send("hold").unwrap();
    assert_eq!(to_bob.request("late", short).unwrap_err(), RequestError::TimedOut);
    std::thread::sleep(short);
    go.send_timeout((), PATIENCE).unwrap();
    wait_until("all have ended", || to_bob.stats().queued_messages == 0 && to_bob.stats().kept_bytes == 0);
    assert_eq!(to_bob.request("now", PATIENCE).unwrap_err(), RequestError::NoAnswer);
}

#[test]
fn kinds_have_handlers_names_bounds_and_priorities() {
    const SUM: u16 = 7;
    const BLOCK: u16 = 0x1234;
    const OTHER: u16 = 9;
    let _alone = alone();
    let blocks = Arc::new(AtomicU64::new(0));
    let seen = blocks.clone();
    let block = || Kind::new(BLOCK, "block").max_size(1000).priority(Priority::Bulk);
    let bob = Node::builder()
        .config(quick())
        .kind(block())
        .kind(Kind::new(SUM, "sum"))
        .on(BLOCK, move |_, message| seen.store(message.payload().len() as u64, Ordering::Relaxed))
        .on_msg(SUM, |_, Sum { of }, message| message.reply_msg(&of.iter().sum::<u32>()).unwrap())
        .start()
        .unwrap();
    let alice = Node::builder().config(quick()).kind(block()).start().unwrap();
    let carol = start(quick());
    let (from_alice, from_carol) = (link(&alice, &bob), link(&carol, &bob));
    assert_eq!(from_alice.request_msg_with::<_, u32>(&Sum { of: vec![1, 2, 39] }, PATIENCE, &kind(SUM)), Ok(42));
    assert_eq!(
        from_alice.request_msg_with::<_, Sum>(&Sum { of: vec![1] }, PATIENCE, &kind(SUM)),
        Err(RequestError::Undecodable),
        "four bytes are no list"
    );
    let refused = from_alice.request_with(vec![0; 3], PATIENCE, &kind(SUM)).unwrap_err();
    assert_eq!(refused, RequestError::Rejected(RejectCause::Undecodable));
    for number in [0, OTHER] {
        let refused = from_alice.request_with("x", PATIENCE, &kind(number)).unwrap_err();
        assert_eq!(refused, RequestError::Rejected(RejectCause::NoHandler), "kind {number}");
    }
    // Too long for the sender that knows it, and for the receiver of one that does not.
    let refused = from_alice.send_kind(BLOCK, vec![1; 1001]).unwrap_err();
    assert_eq!((refused.kind, refused.payload), (SendErrorKind::TooLarge, vec![1; 1001]));
    assert_eq!(
        from_alice.request_with(vec![1; 1001], PATIENCE, &kind(BLOCK)).unwrap_err(),
        not_sent(SendErrorKind::TooLarge, &[1; 1001])
    );
    for len in [1001, 100_000] {
        let refused = from_carol.request_with(vec![1; len], PATIENCE, &kind(BLOCK)).unwrap_err();
        assert_eq!(refused, RequestError::Rejected(RejectCause::TooLarge), "{len} bytes");
    }
    from_carol.send_kind(OTHER, "x").unwrap();
    from_alice.send_kind(BLOCK, vec![1; 1000]).unwrap();
    wait_until("a block came", || blocks.load(Ordering::Relaxed) == 1000);
    wait_until("the rest was rejected", || from_carol.stats().returned == 3 && from_alice.stats().returned == 3);
    let rejected = bob.metrics().traffic.rejected_by;
    let count = |cause| rejected.get(cause);
    assert_eq!(
        (count(RejectCause::Undecodable), count(RejectCause::NoHandler), count(RejectCause::TooLarge)),
        (1, 3, 2)
    );
    let kinds = |node: &Node| {
        let kinds = node.metrics().traffic.kinds;
        kinds.into_iter().map(|(name, kind)| (name, kind.sent, kind.received)).collect::<Vec<_>>()
    };
    assert_eq!(kinds(&bob), [("block".to_owned(), 0, 3), ("sum".to_owned(), 0, 3)]);
    assert_eq!(kinds(&alice), [("block".to_owned(), 1, 0)]);
    assert_eq!(kinds(&carol), []);
}

#[test]
fn a_receive_loop_gets_what_its_kinds_allow_and_the_rest_is_rejected() {
    let _alone = alone();
    let bob = Node::builder().config(quick()).kind(Kind::new(7, "short").max_size(10)).start().unwrap();
    let alice = start(quick());
    let to_bob = link(&alice, &bob);
    for len in [10, 11, 5, 100_000, 7] {
        to_bob.send_kind(7, vec![1; len]).unwrap();
    }
    let too_long = to_bob.ask_with(vec![1; 12], PATIENCE, &kind(7)).unwrap();
    to_bob.send(vec![1; 12]).unwrap();
    for len in [10, 5, 7, 12] {
        assert_eq!(bob.recv_timeout(PATIENCE).unwrap().payload().len(), len);
    }
    assert_eq!(too_long.wait().unwrap_err(), RequestError::Rejected(RejectCause::TooLarge));
    wait_until("all have ended", || to_bob.stats().acked + to_bob.stats().returned == 7);
    assert_eq!((to_bob.stats().acked, to_bob.stats().returned), (4, 3));
    assert_eq!(bob.metrics().traffic.kinds["short"].received, 6);
}

#[test]
fn a_question_too_large_for_the_receiver_ends_at_once() {
    let _alone = alone();
    let mut config = quick();
    config.max_message = 100_000;
    let bob = start(config);
    let alice = start(quick());
    let to_bob = link(&alice, &bob);
    let refused = to_bob.request(vec![1; 200_000], PATIENCE).unwrap_err();
    assert_eq!(refused, RequestError::Rejected(RejectCause::TooLarge));
    wait_until("it ended here as well", || to_bob.stats().returned == 1);
    // And so does one whose answer is too large for who asked.
    let to_alice = bob.wait_connected(alice.id(), PATIENCE).unwrap();
    let asked = to_alice.ask("how much?", PATIENCE).unwrap();
    alice.recv_timeout(PATIENCE).unwrap().reply(vec![1; 200_000]).unwrap();
    assert_eq!(asked.wait().unwrap_err(), RequestError::AnswerRefused(RejectCause::TooLarge));
}

#[test]
fn a_plain_message_is_answered_by_a_responder_as_by_reply() {
    let _alone = alone();
    let (bob, kept) = keeper();
    let alice = start(quick());
    let to_bob = link(&alice, &bob);
    (0..3).for_each(|_| to_bob.send("hello").unwrap());
    wait_until("all came", || kept.lock().len() == 3);
    let mut responders = std::mem::take(&mut *kept.lock()).into_iter();
    let (first, dropped, failed) = (responders.next().unwrap(), responders.next().unwrap(), responders.next().unwrap());
    assert!(!first.is_question() && first.time_left().is_none() && first.peer() == alice.id());
    first.answer_timeout("hi", PATIENCE).unwrap();
    drop(dropped);
    failed.fail(1);
    assert_eq!(alice.recv_timeout(PATIENCE).unwrap().payload(), b"hi");
    // Nobody asked: nobody is told.
    to_bob.send("bye").unwrap();
    wait_until("the last came", || kept.lock().len() == 1);
    assert_eq!(bob.peer(alice.id()).unwrap().stats().accepted, 1);
}
