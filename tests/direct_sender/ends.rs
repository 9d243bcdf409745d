//! How it ends: by its signal, by its handle, in time, and with a result for each message.

use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use threadwire::config::Peer;
use threadwire::direct::{DirectMessage, DirectSender, TransportError, run_direct_sender};
use threadwire::error::SendErrorKind;
use threadwire::{ReturnReason, ShutdownReport};

use crate::common::{PATIENCE, addr, alone, quick, wait_until};
use crate::{inputs, nobody, sink, started};

#[test]
fn the_shutdown_signal_ends_the_run_after_what_is_in_the_channel_and_leaves_nothing() {
    let _alone = alone();
    for fires in [true, false] {
        let bob = sink();
        let (mut inputs, caller) = inputs(quick());
        let (signal, shutdown) = bounded(1);
        (inputs.shutdown, inputs.shutdown_time) = (shutdown, PATIENCE);
        caller.put(bob.id(), &[addr(&bob)]);
        for id in 0..500 {
            caller.send(bob.id(), DirectMessage { id, payload: vec![1; 10], ..DirectMessage::default() });
        }
        thread::scope(|scope| {
            let run = scope.spawn(|| run_direct_sender(inputs).unwrap());
            assert!(caller.result().result.is_ok(), "it runs");
            // Or the one who holds it is gone.
            if fires {
                signal.send(()).unwrap();
            }
            drop(signal);
            let report = run.join().unwrap();
            assert!(report.is_clean(), "{report:?}");
        });
        let mut ids: Vec<_> =
            caller.results.try_iter().map(|result| result.result.map(|_| result.id).unwrap()).collect();
        ids.sort_unstable();
        assert_eq!(ids.len(), 499, "each has one result");
        assert_eq!(bob.metrics().traffic.messages_received, 500);
        let unheard = caller.messages.send((bob.id().into(), "late".into(), Instant::now()));
        assert!(unheard.is_err(), "who sends on hears of the end");
    }
}

#[test]
fn a_shutdown_is_one_whoever_asks_and_what_could_not_be_sent_comes_back() {
    let _alone = alone();
    let (sender, caller) = started(quick());
    caller.put(nobody(), &[]);
    caller.send(nobody(), "kept");
    wait_until("it is queued", || sender.peer_sender(nobody()).unwrap().handle().stats().queued_messages == 1);
    let report = sender.shutdown(Duration::from_secs(3));
    assert!(report.finished && report.undelivered[0].peer == nobody() && report.undelivered[0].unsent == 1);
    let (error, message) = caller.error();
    assert_eq!((error, &message.payload[..]), (TransportError::Returned(ReturnReason::ShutDown), &b"kept"[..]));
    assert_eq!(sender.wait_shutdown(PATIENCE).unwrap(), report);
    assert_eq!(sender.shutdown(PATIENCE), report);
}

#[test]
fn a_shutdown_does_not_wait_beyond_its_deadline_for_results_to_be_taken() {
    let _alone = alone();
    let bob = sink();
    let (mut inputs, caller) = inputs(quick());
    let (to_results, results) = bounded(1);
    inputs.results = Some(to_results);
    let sender = DirectSender::start(inputs).unwrap();
    (0..5).for_each(|_| caller.send("carol", "comes back"));
    wait_until("nothing more is taken", || results.is_full());
    caller.put(bob.id(), &[addr(&bob)]);
    let began = Instant::now();
    let report = sender.shutdown(Duration::from_secs(2));
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    assert!(report.finished && report.undelivered.is_empty(), "{report:?}");
    wait_until("the others are counted", || caller.metrics.snapshot().undelivered_missed == 4);
    assert_eq!(results.len(), 1);
}

#[test]
fn a_shutdown_that_waits_for_results_to_be_taken_keeps_nobody_with_a_nearer_deadline() {
    let _alone = alone();
    let (mut inputs, caller) = inputs(quick());
    let (to_results, results) = bounded(1);
    inputs.results = Some(to_results);
    let sender = DirectSender::start(inputs).unwrap();
    (0..2).for_each(|_| caller.send("carol", "comes back"));
    wait_until("one result waits for the other", || results.is_full() && caller.messages.is_empty());
    thread::scope(|scope| {
        let patient = scope.spawn(|| sender.shutdown(10 * PATIENCE));
        // Only results are left.
        wait_until("it is over but for its thread", || sender.wait_shutdown(Duration::ZERO).is_some());
        let ((tell, told), sender) = (bounded(1), &sender);
        scope.spawn(move || {
            let reports = [(); 20].map(|()| sender.shutdown(Duration::from_millis(1)));
            tell.send(reports).unwrap();
        });
        let reports = told.recv_timeout(PATIENCE);
        // Whatever came of it: nobody waits for ever.
        assert_eq!(results.iter().take(2).count(), 2);
        let held = |report: &ShutdownReport| report.finished && report.threads == ["direct"];
        let reports = reports.expect("those with a nearer deadline wait for the other one");
        assert!(reports.iter().all(held), "{reports:?}");
        assert!(patient.join().unwrap().is_clean());
    });
    assert!(sender.shutdown(PATIENCE).is_clean());
}

#[test]
fn a_shutdown_takes_what_is_in_the_channel_though_some_is_refused_and_little_may_be_under_way() {
    const ALL: u64 = 50;
    let _alone = alone();
    for under_way in [1, 1_000] {
        let bob = sink();
        let mut config = quick();
        config.peers = vec![Peer::new("bob", bob.id(), [addr(&bob).into()])];
        let (mut inputs, caller) = inputs(config);
        // It is over before it begins.
        inputs.shutdown = bounded(0).1;
        (inputs.shutdown_time, inputs.under_way) = (10 * PATIENCE, under_way);
        for id in 0..ALL {
            let to = if id % 5 == 0 { "nobody" } else { "bob" };
            caller.send(to, DirectMessage { id, ..DirectMessage::default() });
        }
        let report = run_direct_sender(inputs).unwrap();
        assert!(report.is_clean(), "{report:?}");
        let (mut arrived, mut refused) = (0, 0);
        for result in caller.results.try_iter() {
            match result.result {
                Ok(_) => arrived += 1,
                Err(error) => {
                    let unknown = TransportError::Refused(SendErrorKind::UnknownName);
                    assert_eq!((error, result.id % 5), (unknown, 0));
                    refused += 1;
                }
            }
        }
        assert_eq!((arrived, refused), (ALL / 5 * 4, ALL / 5), "{under_way} under way at the most");
        assert_eq!(bob.metrics().traffic.messages_received, ALL / 5 * 4);
    }
}

#[test]
fn a_shutdown_by_the_signal_takes_no_more_time_than_the_caller_allows() {
    let _alone = alone();
    let (mut inputs, caller) = inputs(quick());
    inputs.shutdown = bounded(0).1;
    inputs.shutdown_time = Duration::from_millis(200);
    caller.put(nobody(), &[]);
    caller.send(nobody(), "kept");
    let began = Instant::now();
    let report = run_direct_sender(inputs).unwrap();
    // What it may take by default it would have taken: the message goes nowhere.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(report.finished && report.undelivered[0].unsent == 1, "{report:?}");
}
