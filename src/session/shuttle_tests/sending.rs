//! Model checks of sending: no message and no acknowledgement stays behind, whoever holds the write token.
//!
//! Owns: nothing beyond one execution. Threads: appending ones, sender threads, one that plays the far side.
//! Locks: as in what is checked. Blocks on: what the far side waits for: bytes on the line.
//! Upholds: everything comes out once, in order per appending thread; nobody sleeps on while there is something to do.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use shuttle::thread;

use super::rig::{Far, LONG, SMALL, append, assert_in_order, attach, attached, away, check, link_with, run, session};
use crate::error::SendErrorKind;
use crate::ident::ConnectionId;
use crate::link::LARGE;
use crate::outcome::ReturnReason;
use crate::session::options::SendOptions;
use crate::session::outbox::{Omission, QueueLimits, Wait};
use crate::session::peer_link::PeerLink;
use crate::session::receipt::Asker;
use crate::wire::{Heading, Lane};

const WIDE: usize = 8 << 20;

/// Threads append small and large messages while the sender thread and inline writers take turns.
fn appending(omission: Option<Omission>) {
    let (near, mut far, running) = session(true, 100, WIDE, omission);
    let threads = [(Lane::Normal, 1, 3), (Lane::Normal, 2, 3), (Lane::Urgent, 3, 2)].map(|(lane, kind, count)| {
        let near = near.clone();
        let len = move |number| if (kind, number) == (2, 1) { LARGE + 1 } else { 5 };
        thread::spawn(move || append(&near, lane, kind, count, len))
    });
    while far.got.len() < 8 {
        far.take(&running.line.written());
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_in_order(&far.got, &[(1, 3), (2, 3), (3, 2)]);
    let counts = near.outbox.counts();
    assert_eq!((counts.messages, counts.bytes, counts.accepted), (0, 0, 8));
    running.leave(&near);
    assert_eq!(running.close(&near).seen().len(), 1);
}

#[test]
fn shuttle_what_threads_append_is_written_once_and_in_order() {
    check(20_000, || appending(None));
}

#[test]
#[should_panic(expected = "deadlock")]
fn shuttle_finds_a_short_path_that_tells_nobody() {
    check(20_000, || appending(Some(Omission::FastKick)));
}

#[test]
#[should_panic(expected = "deadlock")]
fn shuttle_finds_an_inline_writer_that_wakes_nobody() {
    check(20_000, || appending(Some(Omission::WakeAtPutBack)));
}

/// More threads than the queue has room for, and a sender thread that makes room.
fn crowding(omission: Option<Omission>) {
    let (near, mut far, running) = session(true, 1, WIDE, omission);
    let threads = [1, 2, 3].map(|kind| {
        let near = near.clone();
        thread::spawn(move || append(&near, Lane::Normal, kind, 2, |_| 5))
    });
    while far.got.len() < 6 {
        far.take(&running.line.written());
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_in_order(&far.got, &[(1, 2), (2, 2), (3, 2)]);
    running.leave(&near);
    running.close(&near);
}

#[test]
fn shuttle_room_wakes_who_waits_for_it() {
    check(20_000, || crowding(None));
}

#[test]
#[should_panic(expected = "deadlock")]
fn shuttle_finds_room_that_nobody_hears_of() {
    check(20_000, || crowding(Some(Omission::WakeForRoom)));
}

/// Two messages of which the node has memory for one; the first ends, and its memory comes back.
fn sharing(omission: Option<Omission>, asked: bool) {
    let near = away(10, WIDE, omission);
    let big = |kind: u8| vec![kind; crate::config::LINK_FLOOR + 1];
    near.push(Lane::Normal, Heading::of_kind(1), big(1), Wait::No).unwrap();
    let second = {
        let near = near.clone();
        thread::spawn(move || match asked {
            true => near.send_asked(big(2), &SendOptions::new().kind(2), Asker::Nobody).unwrap(),
            false => near.push(Lane::Normal, Heading::of_kind(2), big(2), Wait::UpTo(LONG)).unwrap(),
        })
    };
    let mut ended = near.outbox.return_all(ReturnReason::ShutDown).0.len();
    near.outbox.settle_account(0);
    second.join().unwrap();
    ended += near.outbox.return_all(ReturnReason::ShutDown).0.len();
    near.outbox.settle_account(0);
    assert_eq!((ended, near.outbox.counts().accepted, near.settings.memory.used()), (2, 2, 0));
}

#[test]
fn shuttle_memory_that_comes_back_wakes_who_waits_for_it() {
    check(10_000, || sharing(None, false));
    check(10_000, || sharing(None, true));
}

#[test]
#[should_panic(expected = "deadlock")]
fn shuttle_finds_memory_that_nobody_hears_of() {
    check(20_000, || sharing(Some(Omission::WakeForMemory), false));
}

/// A full queue of a peer that is away; the outbox closes while threads wait for room in it.
fn closing(omission: Option<Omission>, refused: &AtomicUsize) {
    let near = away(1, WIDE, omission);
    let threads = [(1, 5), (2, 5), (3, LARGE + 1)].map(|(kind, len)| {
        let near = near.clone();
        thread::spawn(move || {
            let payload = vec![kind as u8; len];
            match near.push(Lane::Normal, Heading::of_kind(kind), payload.clone(), Wait::UpTo(LONG)) {
                Ok(()) => 1,
                Err(error) => {
                    assert_eq!((error.kind, error.payload == payload), (SendErrorKind::ShuttingDown, true));
                    0
                }
            }
        })
    });
    near.outbox.close();
    let accepted: u64 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    let counts = near.outbox.counts();
    assert_eq!((counts.accepted, counts.messages as u64), (accepted, accepted));
    refused.fetch_add(3 - accepted as usize, Ordering::Relaxed);
}

#[test]
fn shuttle_closing_gives_back_what_waits_for_room() {
    let refused = Arc::new(AtomicUsize::new(0));
    let counter = refused.clone();
    check(20_000, move || closing(None, &counter));
    assert!(refused.load(Ordering::Relaxed) > 10_000);
}

#[test]
#[should_panic(expected = "deadlock")]
fn shuttle_finds_an_end_that_nobody_hears_of() {
    check(20_000, || closing(Some(Omission::WakeAtClose), &AtomicUsize::new(0)));
}

/// A full queue of a peer that is away; its bounds become wider while threads wait for room in it.
fn widening(omission: Option<Omission>) {
    let near = away(1, WIDE, omission);
    let threads = [(1, 5), (2, 5), (3, LARGE + 1)].map(|(kind, len)| {
        let near = near.clone();
        thread::spawn(move || {
            near.push(Lane::Normal, Heading::of_kind(kind), vec![7; len], Wait::UpTo(LONG)).unwrap();
        })
    });
    near.outbox.set_limits(QueueLimits::bounds(3, 1 << 20), 1 << 20);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(near.outbox.counts().messages, 3);
}

#[test]
fn shuttle_wider_bounds_wake_who_waits_for_room() {
    check(20_000, || widening(None));
}

#[test]
#[should_panic(expected = "deadlock")]
fn shuttle_finds_wider_bounds_that_nobody_hears_of() {
    check(20_000, || widening(Some(Omission::WakeAtLimits)));
}

/// More bytes than the far side grants; its acknowledgements let the writer go on.
fn starving(omission: Option<Omission>, starved: &AtomicUsize) {
    let (near, mut far, running) = session(true, 100, 1, omission);
    let threads = [1, 2].map(|kind| {
        let near = near.clone();
        thread::spawn(move || append(&near, Lane::Normal, kind, 2, |_| LARGE - 100))
    });
    while far.got.len() < 4 {
        far.take(&running.line.written());
        for ack in far.acks() {
            let acked = near.core.lock().on_ack(ConnectionId(1), &ack).unwrap();
            starved.fetch_add(usize::from(acked.wake), Ordering::Relaxed);
            near.see_to_freed(acked);
        }
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_in_order(&far.got, &[(1, 2), (2, 2)]);
    running.leave(&near);
    running.close(&near);
}

#[test]
fn shuttle_credit_lets_a_starved_writer_go_on() {
    let starved = Arc::new(AtomicUsize::new(0));
    let counter = starved.clone();
    check(10_000, move || starving(None, &counter));
    assert!(starved.load(Ordering::Relaxed) > 5_000);
}

#[test]
#[should_panic(expected = "deadlock")]
fn shuttle_finds_credit_that_nobody_hears_of() {
    check(20_000, || starving(Some(Omission::Kick), &AtomicUsize::new(0)));
}

/// The far side writes three messages, the near side claims them; whether somebody waits for their acknowledgement.
fn claim_three(near: &PeerLink, far: &mut Far, ack_now: bool) -> u32 {
    far.write(&[&[0, 1, 2]]);
    let mut core = near.core.lock();
    core.on_segment(ConnectionId(1), Lane::Normal, 0, 0).unwrap();
    core.claim(ConnectionId(1), Lane::Normal, 3, 3 * SMALL as usize, ack_now).unwrap();
    core.delivered(ConnectionId(1));
    core.generation()
}

/// Application threads finish messages somebody waits for, while another appends and writes inline.
fn acknowledging(omission: Option<Omission>) {
    let (near, mut far) = attached(true, 100, WIDE, omission);
    let generation = claim_three(&near, &mut far, true);
    let running = run(&near, 1);
    let mut threads = Vec::from([1..3, 3..4].map(|numbers| {
        let near = near.clone();
        thread::spawn(move || numbers.for_each(|upto| near.finish(generation, Lane::Normal, upto, SMALL, None)))
    }));
    let appending = near.clone();
    threads.push(thread::spawn(move || append(&appending, Lane::Normal, 1, 2, |_| 5)));
    while far.done < 3 || far.got.len() < 2 {
        far.take(&running.line.written());
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    running.leave(&near);
    running.close(&near);
}

#[test]
fn shuttle_an_acknowledgement_somebody_waits_for_is_written() {
    check(20_000, || acknowledging(None));
}

#[test]
#[should_panic(expected = "deadlock")]
fn shuttle_finds_an_acknowledgement_that_nobody_writes() {
    check(20_000, || acknowledging(Some(Omission::Kick)));
}

/// Acknowledgements that can wait, of messages that are finished on two threads, across two sessions or in one.
fn delaying(replaced: bool) {
    let (near, mut far) = link_with(crate::sync::either(), 100, WIDE, Duration::ZERO);
    let near = Arc::new(near);
    attach(&near, &mut far, 1);
    let generation = claim_three(&near, &mut far, false);
    let mut running = run(&near, 1);
    let threads = [1..3, 3..4].map(|numbers| {
        let near = near.clone();
        thread::spawn(move || numbers.for_each(|upto| near.finish(generation, Lane::Normal, upto, SMALL, None)))
    });
    if replaced {
        attach(&near, &mut far, 2);
        let old = std::mem::replace(&mut running, run(&near, 2));
        old.leave(&near);
        old.close(&near);
    }
    while far.done < 3 {
        far.take(&running.line.written());
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    running.leave(&near);
    running.close(&near);
}

#[test]
fn shuttle_an_acknowledgement_that_can_wait_is_written_when_the_timer_rings() {
    check(20_000, || delaying(false));
}

#[test]
fn shuttle_a_new_session_writes_acknowledgements_the_old_one_was_to_write() {
    check(20_000, || delaying(true));
}

/// A new session takes over while threads append and may write inline on the old one.
fn replacing(omission: Option<Omission>) {
    let (near, mut far, old) = session(crate::sync::either(), 100, WIDE, omission);
    let threads = [1, 2].map(|kind| {
        let near = near.clone();
        thread::spawn(move || append(&near, Lane::Normal, kind, 3, |_| 5))
    });
    far.take(&old.line.written_so_far());
    attach(&near, &mut far, 2);
    let new = run(&near, 2);
    old.leave(&near);
    assert_eq!(old.close(&near).seen().len(), 1);
    while far.got.len() < 6 {
        far.take(&new.line.written());
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_in_order(&far.got, &[(1, 3), (2, 3)]);
    new.leave(&near);
    new.close(&near);
}

#[test]
fn shuttle_a_new_session_writes_what_the_old_one_left() {
    check(20_000, || replacing(None));
}

#[test]
#[should_panic(expected = "deadlock")]
fn shuttle_finds_the_token_of_a_replaced_session_in_the_place_of_the_new_one() {
    check(20_000, || replacing(Some(Omission::FenceAtPutBack)));
}
