//! Model checks of broadcasts that flood: nothing that waits for company, or lies in a row, stays behind.
//!
//! Owns: nothing beyond one execution. Threads: one that broadcasts, one that sends, a sender thread, one that plays the far
//! side. Locks: as in what is checked. Blocks on: what the far side waits for: bytes on the line.
//! Upholds: everything comes out once, in order per appending thread; nobody sleeps on while there is something to do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use shuttle::thread;

use super::rig::{append, assert_in_order, check, session};
use crate::session::outbox::Omission;
use crate::session::peer_link::PeerLink;
use crate::session::row::Row;
use crate::wire::Lane;

/// Near enough to come at any time, and longer than an execution takes.
const COMPANY: Duration = Duration::from_secs(30);
const WIDE: usize = 8 << 20;

/// Broadcasts `count` messages of kind 1, three to a row; what the peer has no part in is offered to it alone.
fn cast(link: &PeerLink, count: u8) {
    let mut row: Option<Arc<Row>> = None;
    for number in 0..count {
        let payload = Arc::new(vec![number; 3]);
        let now = Instant::now();
        if number % 3 == 0 {
            if let Some(old) = row.take() {
                assert!(old.append(1, &payload, now + COMPANY, |_| ()).is_none(), "it ends");
            }
            let next = Arc::new(Row::new(1, COMPANY, now));
            link.outbox.join(&next, 0).wake();
            row = Some(next);
        }
        if row.as_ref().unwrap().append(1, &payload, now, |members| members[0]) != Some(true) {
            link.offer_cast(1, &payload, COMPANY).unwrap();
        }
    }
}

fn casting(omission: Option<Omission>) {
    let (near, mut far, running) = session(true, 5_000, WIDE, omission);
    let threads = [true, false].map(|casts| {
        let near = near.clone();
        thread::spawn(move || if casts { cast(&near, 7) } else { append(&near, Lane::Normal, 2, 2, |_| 5) })
    });
    while far.got.len() < 9 {
        far.take(&running.line.written());
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_in_order(&far.got, &[(1, 7), (2, 2)]);
    let counts = near.outbox.counts();
    assert_eq!((counts.messages, counts.bytes, counts.accepted), (0, 0, 9));
    running.leave(&near);
    assert_eq!(running.close(&near).seen().len(), 1);
}

#[test]
fn shuttle_what_lies_in_a_row_is_written_once_and_in_order_with_what_is_sent() {
    check(20_000, || casting(None));
}

#[test]
#[should_panic(expected = "deadlock")]
fn shuttle_finds_a_sender_thread_that_sleeps_while_it_takes_part_in_a_row() {
    check(20_000, || casting(Some(Omission::Linger)));
}
