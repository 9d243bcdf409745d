use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::outbox::{Item, Outbox, QueueLimits, Token, Wait};
use super::peer_link::{PeerLink, SessionSettings};
use super::requests::RequestLimits;
use super::taps::OutgoingTaps;
use super::undelivered::Undeliverable;
use super::writer::Writer;
use crate::ident::{ConnectionId, PeerId};
use crate::link::{LinkCore, LinkLimits, Offer, Segment};
use crate::memory::Budget;
use crate::metrics::{Class, PhaseTimes};
use crate::transport::WriteHalf;
use crate::wire::{Heading, Lane};

/// Takes everything at once, and counts.
#[derive(Debug, Default)]
struct Wide(AtomicUsize);

impl WriteHalf for Wide {
    fn try_write(&self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        let bytes = from.iter().map(|slice| slice.len()).sum();
        self.0.fetch_add(bytes, Ordering::Relaxed);
        Ok(bytes)
    }

    fn write(&self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        self.try_write(from)
    }

    fn expect_writes_of(&self, _bytes: usize) {}

    fn finish(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A link attached to connection 1, with room for everything.
fn attached_link() -> Arc<PeerLink> {
    const LONG: Duration = Duration::from_secs(3600);
    let settings = SessionSettings {
        queue: QueueLimits::bounds(100, 64 << 20),
        memory: Arc::new(Budget::new(1 << 30)),
        max_message: 16 << 20,
        window_bytes: 4 << 20,
        holds_inbound: false,
        send_deadline: LONG,
        ack_delay: LONG,
        undelivered: Arc::new(Undeliverable::new().0),
        heartbeat: LONG,
        rx_stack: 0,
        tx_stack: 0,
        requests: RequestLimits { requests: 100, bytes: 1 << 20 },
        kinds: Arc::default(),
        askers: Arc::default(),
        times: Arc::new(PhaseTimes::new(0)),
        taps: OutgoingTaps::default(),
    };
    let ids = [1, 2].map(|id| PeerId::from_bytes([id; 32]));
    let limits = LinkLimits { window_bytes: 64 << 20, max_message: 16 << 20 };
    let mut other = LinkCore::new(ids[1], ids[0], limits, 2);
    let mut core = LinkCore::new(ids[0], ids[1], limits, 1);
    let offer = Offer { conn: ConnectionId(1), started: 1, incarnation: 1 };
    other.offer(offer, [2; 16], 1);
    let (conn, attach) = core.offer(offer, [1; 16], 1).say.unwrap();
    let (_, answer) = other.on_attach(conn, &attach, 1).unwrap().say.unwrap();
    assert_eq!(core.on_attach(conn, &answer, 1).unwrap().attached, Some(conn));
    Arc::new(PeerLink::new(core, ids[1], [1; 16], Arc::new(settings)))
}

/// An idle peer, something of which was just read, is sent `len` bytes: how many the caller wrote by itself, and whether
/// it woke the sender thread for more.
fn push_to_idle_peer(lane: Lane, len: usize) -> (usize, bool) {
    let (link, conn, wide) = (attached_link(), ConnectionId(1), Arc::new(Wide::default()));
    let wake = link.outbox.attach(Box::new(Writer::new(conn, wide.clone(), Instant::now())));
    let Token::Here(writer) = link.outbox.take_token(conn) else { panic!("no token") };
    assert!(link.outbox.rest(writer).is_none(), "the sender thread sleeps");
    link.reads.store(1, Ordering::Relaxed);
    link.push(lane, Heading::default(), vec![7; len], Wait::No).unwrap();
    (wide.0.load(Ordering::Relaxed), wake.0.try_recv().is_ok())
}

#[test]
fn a_caller_that_writes_the_beginning_of_a_big_message_wakes_the_sender_thread_for_the_rest() {
    for (lane, len) in [(Lane::Normal, 1 << 20), (Lane::Bulk, 70 * 1024)] {
        let (written, woken) = push_to_idle_peer(lane, len);
        assert!(written > 0 && written < len, "a turn is written");
        assert!(woken, "{written} of {len} bytes are written, and the sender thread sleeps");
    }
}

#[test]
fn a_caller_that_writes_all_there_is_wakes_nobody() {
    for (lane, len) in [(Lane::Normal, 100), (Lane::Normal, 100 * 1024), (Lane::Bulk, 60 * 1024)] {
        let (written, woken) = push_to_idle_peer(lane, len);
        assert!(written > len && !woken, "{written} of {len} bytes");
    }
}

#[test]
fn the_oldest_message_that_waits_gives_the_queue_its_age() {
    let settings = QueueLimits::bounds(100, 1 << 20);
    let outbox = Outbox::new(settings, Arc::new(Budget::new(1 << 30)));
    let small = |payload| Item::Small { heading: Heading::default(), payload };
    assert_eq!(outbox.counts().oldest, None);
    let before = Instant::now();
    assert!(outbox.push(Lane::Normal, Class::PLAIN, small(b"first"), Wait::No, false, 0).is_ok());
    let after = Instant::now();
    let large = Segment::large(Lane::Bulk, Heading::default(), vec![7; 100_000]);
    assert!(outbox.push(Lane::Bulk, Class::PLAIN, Item::Large(large), Wait::No, false, 0).is_ok());
    let oldest = outbox.counts().oldest.unwrap();
    assert!(before <= oldest && oldest <= after);

    let mut taking = outbox.taking(Instant::now());
    assert!(taking.take(Lane::Normal).is_some());
    drop(taking);
    assert!(outbox.counts().oldest.unwrap() >= after, "the first is gone, the second is younger");
    assert!(outbox.taking(Instant::now()).take(Lane::Bulk).is_some());
    assert_eq!(outbox.counts().oldest, None);
}
