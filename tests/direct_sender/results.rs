//! What becomes of messages: one result for each, and what happens where nobody takes them.

use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, unbounded};
use log::{Level, LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;
use threadwire::direct::{DirectMessage, DirectSender, TransportError};
use threadwire::error::SendErrorKind;
use threadwire::{OverflowPolicy, SendOptions};

use crate::common::{PATIENCE, addr, alone, quick, wait_until};
use crate::{inputs, nobody, sink, started};

#[test]
fn a_peer_that_is_stuck_holds_up_nobody_and_has_what_does_not_fit_come_back() {
    let _alone = alone();
    let bob = sink();
    let mut config = quick();
    config.queue_messages = 10;
    let (sender, caller) = started(config);
    caller.put(nobody(), &[]);
    caller.put(bob.id(), &[addr(&bob)]);
    sender.wait_connected(bob.id(), PATIENCE).unwrap();
    let stuck = DirectMessage { options: SendOptions::new().overflow(OverflowPolicy::Block), .."stuck".into() };
    let mut refused = 0;
    for _ in 0..100 {
        caller.send(nobody(), stuck.clone());
        caller.send(bob.id(), "goes on");
        loop {
            let result = caller.result();
            match result.result {
                Ok(_) => break,
                Err(TransportError::Refused(SendErrorKind::Full)) => refused += 1,
                Err(other) => panic!("{other}"),
            }
            assert_eq!((result.peer, result.message), (Some(nobody()), Some(stuck.clone())));
        }
    }
    assert_eq!(refused, 90, "ten of a hundred wait");
}

#[test]
fn while_results_are_not_taken_no_further_message_is_and_none_is_lost() {
    let _alone = alone();
    const ALL: u64 = 300;
    let bob = sink();
    let (mut inputs, caller) = inputs(quick());
    let (to_results, results) = bounded(5);
    let (messages, to_send) = unbounded();
    (inputs.results, inputs.messages, inputs.under_way) = (Some(to_results), to_send.clone(), 20);
    let sender = DirectSender::start(inputs).unwrap();
    caller.put(bob.id(), &[addr(&bob)]);
    for id in 0..ALL {
        let message = DirectMessage { id, payload: vec![0; 8], ..DirectMessage::default() };
        messages.send((bob.id().into(), message, Instant::now())).unwrap();
    }
    wait_until("the results are full", || results.is_full());
    let link = sender.peer_sender(bob.id()).unwrap();
    wait_until("what was taken is acknowledged", || link.handle().stats().acked == link.handle().stats().accepted);
    // Five in the channel, twenty under way, one that was taken with them at the most.
    let taken = link.handle().stats().accepted;
    assert!((5..=60).contains(&taken) && to_send.len() as u64 == ALL - taken, "{taken} taken");
    let ids: Vec<_> = (0..ALL).map(|_| results.recv_timeout(PATIENCE).unwrap().id).collect();
    assert_eq!(ids, (0..ALL).collect::<Vec<_>>());
    // Nobody takes them any more: it goes on, and what fails is counted.
    drop(results);
    messages.send(("nobody".into(), "lost".into(), Instant::now())).unwrap();
    messages.send((bob.id().into(), "arrives".into(), Instant::now())).unwrap();
    wait_until("the last one arrives", || link.handle().stats().acked == ALL + 1);
    wait_until("what failed is counted", || caller.metrics.snapshot().undelivered_missed == 1);
}

#[test]
fn without_results_what_fails_is_counted() {
    let _alone = alone();
    let (mut inputs, caller) = inputs(quick());
    inputs.results = None;
    let sender = DirectSender::start(inputs).unwrap();
    caller.send("carol", "refused");
    let expired = DirectMessage { options: SendOptions::new().ttl(Duration::from_millis(1)), .."expires".into() };
    caller.send(nobody(), expired);
    wait_until("both are counted", || caller.metrics.snapshot().undelivered_missed == 2);
    assert!(sender.shutdown(PATIENCE).finished && caller.results.is_empty());
}

#[test]
fn any_number_of_messages_may_be_allowed_under_way() {
    let _alone = alone();
    for under_way in [0, usize::MAX] {
        let bob = sink();
        let (mut inputs, caller) = inputs(quick());
        inputs.under_way = under_way;
        let sender = DirectSender::start(inputs).unwrap();
        caller.put(bob.id(), &[addr(&bob)]);
        (0..10).for_each(|_| caller.send(bob.id(), "hello"));
        assert!((0..10).all(|_| caller.result().result.is_ok()), "{under_way}");
        assert!(sender.shutdown(PATIENCE).is_clean());
    }
}

/// Keeps what direct senders log.
struct Lines(Mutex<Vec<(Level, String)>>);

static LINES: Lines = Lines(Mutex::new(Vec::new()));

impl Log for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "threadwire::direct"
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.lock().push((record.level(), record.args().to_string()));
        }
    }

    fn flush(&self) {}
}

#[test]
fn what_comes_back_is_logged_and_that_nobody_takes_it_any_more_once() {
    let _alone = alone();
    log::set_logger(&LINES).unwrap();
    log::set_max_level(LevelFilter::Debug);
    let (sender, caller) = started(quick());
    caller.send("carol", "comes back");
    caller.error();
    drop(caller.results);
    for _ in 0..2 {
        caller.messages.send(("carol".into(), "comes back".into(), Instant::now())).unwrap();
    }
    wait_until("nobody is told", || caller.metrics.snapshot().undelivered_missed == 2);
    log::set_max_level(LevelFilter::Off);
    let (me, unknown) = (sender.id().short(), SendErrorKind::UnknownName);
    let back = (Level::Debug, format!("{me}: a message for carol came back: not taken: {unknown}"));
    let nobody = (Level::Warn, format!("{me}: nobody takes the results of messages any more"));
    let lines = std::mem::take(&mut *LINES.0.lock());
    assert_eq!(lines, [back.clone(), back.clone(), nobody, back]);
}
