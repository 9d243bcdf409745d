use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::options::{Delivery, OverflowPolicy, SendOptions};
use super::outbox::{Item, Outbox, QueueLimits, Rest, Token, Wait};
use super::peer::PeerHandle;
use super::peer_link::{PeerLink, SessionSettings};
use super::requests::RequestLimits;
use super::row::{ROW_BYTES, Row};
use super::taps::OutgoingTaps;
use super::tuning::{Tuned, Tuning};
use super::undelivered::{Undeliverable, Undelivered};
use super::writer::Writer;
use crate::config::LINK_FLOOR;
use crate::error::SendErrorKind;
use crate::ident::{ConnectionId, PeerId};
use crate::link::{LinkCore, LinkLimits, Offer, Segment};
use crate::memory::Budget;
use crate::metrics::{Class, PhaseTally, PhaseTimes};
use crate::outcome::{Outcome, ReturnReason};
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

/// Takes nothing.
#[derive(Debug)]
struct Stuck;

impl WriteHalf for Stuck {
    fn try_write(&self, _from: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(0)
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
    link_of(settings())
}

/// Settings with room for everything.
fn settings() -> SessionSettings {
    const LONG: Duration = Duration::from_secs(3600);
    SessionSettings {
        tuned: Tuned::new(Tuning {
            queue: QueueLimits::bounds(100, 64 << 20),
            requests: RequestLimits { requests: 100, bytes: 1 << 20 },
            link: LinkLimits { window_bytes: 4 << 20, max_message: 16 << 20 },
            unknown_bytes: 1 << 20,
            send_deadline: LONG,
            ack_delay: LONG,
            heartbeat: LONG,
            rx_stack: 0,
            tx_stack: 0,
        }),
        memory: Arc::new(Budget::new(1 << 30)),
        holds_inbound: false,
        undelivered: Arc::new(Undeliverable::new().0),
        kinds: Arc::default(),
        askers: Arc::default(),
        times: Arc::new(PhaseTimes::new(0)),
        taps: OutgoingTaps::default(),
    }
}

/// A link with these settings, attached to connection 1.
fn link_of(settings: SessionSettings) -> Arc<PeerLink> {
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
    let Token::Here(writer) = link.outbox.take_token(conn, false) else { panic!("no token") };
    assert!(matches!(link.outbox.rest(writer), Rest::Asleep), "the sender thread sleeps");
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

#[test]
fn a_share_of_a_row_is_counted_and_paid_for_and_comes_before_what_is_sent_after_it() {
    const COMPANY: Duration = Duration::from_secs(3600);
    let (limits, memory) = (QueueLimits::bounds(2_000, 1 << 20), Arc::new(Budget::new(1 << 30)));
    let outbox = Outbox::new(limits, memory.clone());
    let conn = ConnectionId(1);
    let (_wake, _) = outbox.attach(Box::new(Writer::new(conn, Arc::new(Wide::default()), Instant::now())));
    let small = |payload| Item::Small { heading: Heading::default(), payload };
    let push = |payload| outbox.push(Lane::Normal, Class::PLAIN, small(payload), Wait::No, false, 0).is_ok();
    assert!(push(b"before"));
    let row = Arc::new(Row::new(1, COMPANY, Instant::now()));
    let cast = |payload: &[u8]| row.append(0, payload, Instant::now(), |members| members[0]);
    outbox.join(&row, 0);
    assert_eq!((cast(b"first"), cast(b"second")), (Some(true), Some(true)));
    let counts = outbox.counts();
    assert_eq!((counts.messages, counts.accepted), (3, 3));
    assert_eq!(cast(b"third"), Some(false), "whoever was counted takes part no more");
    assert!(push(b"after"));
    let taken = outbox.taking(Instant::now()).take(Lane::Normal).unwrap().segment;
    let payloads: Vec<Vec<u8>> = taken.extract(0..4).into_iter().map(|extract| extract.payload).collect();
    assert_eq!(payloads, [&b"before"[..], b"first", b"second", b"after"]);
    let (buffer, _) = outbox.phases();
    let begun = [Class::PLAIN, Class::new(None, true)].map(|class| buffer.begun.get(class.index()));
    assert_eq!(begun.map(|volume| (volume.messages, volume.bytes)), [(2, 11), (2, 11)]);

    // A row for which there is not room to its end is not joined, and neither is one that memory does not pay for.
    let full = vec![7; (1 << 20) - ROW_BYTES];
    assert!(
        outbox
            .push(
                Lane::Normal,
                Class::PLAIN,
                Item::Large(Segment::large(Lane::Normal, Heading::default(), full)),
                Wait::No,
                false,
                0
            )
            .is_ok()
    );
    let next = Arc::new(Row::new(1, COMPANY, Instant::now()));
    outbox.join(&next, 0);
    assert_eq!(next.append(0, b"", Instant::now(), |members| members[0]), Some(false));
    drop(outbox);
    assert_eq!(memory.used(), 0);

    let (poor, next) = (Arc::new(Budget::new(1)), Arc::new(Row::new(1, COMPANY, Instant::now())));
    assert!(poor.take(1));
    let outbox = Outbox::new(QueueLimits::bounds(2_000, 1 << 20), poor.clone());
    outbox.await_peer(1 << 20);
    outbox.peer_known();
    let (_wake, _) = outbox.attach(Box::new(Writer::new(conn, Arc::new(Wide::default()), Instant::now())));
    let filled = vec![7; LINK_FLOOR - ROW_BYTES / 2];
    let filled = Item::Large(Segment::large(Lane::Bulk, Heading::default(), filled));
    assert!(outbox.push(Lane::Bulk, Class::PLAIN, filled, Wait::No, false, 0).is_ok());
    outbox.join(&next, 0);
    assert_eq!(next.append(0, b"", Instant::now(), |members| members[0]), Some(false), "no memory for a row");
    assert_eq!(poor.refused(), 0, "nobody met a refusal");
}

#[test]
fn while_broadcasts_flood_a_peer_that_was_written_to_waits_for_company_and_for_a_send_it_does_not() {
    const COMPANY: Duration = Duration::from_secs(3600);
    let (link, conn, wide) = (attached_link(), ConnectionId(1), Arc::new(Wide::default()));
    let (wake, _) = link.outbox.attach(Box::new(Writer::new(conn, wide.clone(), Instant::now())));
    let cast = |company| link.offer_cast(0, &Arc::new(b"message".to_vec()), company).unwrap();
    let rest = || {
        let Token::Here(writer) = link.outbox.take_token(conn, false) else { panic!("no token") };
        link.outbox.rest(writer)
    };
    assert!(matches!(rest(), Rest::Asleep));
    cast(COMPANY);
    assert!(wake.try_recv().is_ok(), "the first one wakes it");
    assert!(matches!(rest(), Rest::Lingering(COMPANY)), "and more are to come");
    cast(COMPANY);
    assert!(wake.try_recv().is_err(), "the next one waits for company");
    link.reads.store(1, Ordering::Relaxed);
    link.push(Lane::Normal, Heading::default(), b"send".to_vec(), Wait::No).unwrap();
    assert_eq!(link.outbox.counts().messages, 0, "all are written by whoever sends");
    assert!(wide.0.load(Ordering::Relaxed) > 0);
    cast(COMPANY);
    assert!(wake.try_recv().is_err());
    cast(Duration::ZERO);
    assert!(wake.try_recv().is_ok(), "a broadcast that may not wait");
}

#[test]
fn a_share_that_a_look_takes_while_the_sender_thread_works_is_not_slept_over() {
    const COMPANY: Duration = Duration::from_secs(3600);
    let outbox = Outbox::new(QueueLimits::bounds(2_000, 1 << 20), Arc::new(Budget::new(1 << 30)));
    let writer = |conn| Box::new(Writer::new(ConnectionId(conn), Arc::new(Wide::default()), Instant::now()));
    let joined = |conn| {
        let Token::Here(working) = outbox.take_token(ConnectionId(conn), false) else { panic!("no token") };
        let row = Arc::new(Row::new(1, COMPANY, Instant::now()));
        outbox.join(&row, 0);
        assert_eq!(row.append(0, b"cast", Instant::now(), |members| members[0]), Some(true));
        (working, row)
    };
    let (_wake, _) = outbox.attach(writer(1));
    let (working, row) = joined(1);
    // It is over: nothing waits for company any more.
    assert!(row.append(0, b"late", Instant::now() + COMPANY, |_| ()).is_none());
    assert_eq!(outbox.counts().messages, 1);
    assert!(matches!(outbox.rest(working), Rest::Again(_)), "one was appended since it looked");

    let (_wake, _) = outbox.attach(writer(2));
    let (_, row) = joined(2);
    assert!(row.append(0, b"late", Instant::now() + COMPANY, |_| ()).is_none());
    let (_wake, _) = outbox.attach(writer(3));
    assert!(outbox.taking(Instant::now()).take(Lane::Normal).is_some(), "a new session begins with what there is");
}

#[test]
fn best_effort_that_is_being_written_when_the_node_ends_is_told_unknown() {
    let (link, conn) = (attached_link(), ConnectionId(1));
    let (_wake, _) = link.outbox.attach(Box::new(Writer::new(conn, Arc::new(Stuck), Instant::now())));
    let Token::Here(mut writer) = link.outbox.take_token(conn, false) else { panic!("no token") };
    let options = SendOptions::new().delivery(Delivery::BestEffort);
    let receipt = link.send_with(b"message".to_vec(), &options).unwrap();
    assert!(link.gather(&mut writer, false) && writer.has_residue(), "it is being written");
    // A handler holds the other thread of the session: nobody says that it is over.
    assert_eq!(link.end(7), (0, 1));
    assert!(matches!(receipt.outcome(), Ok(Outcome::Unknown { .. })));
    let (_, transfer) = link.outbox.phases();
    assert_eq!((transfer.begun, transfer.open), (transfer.failed, 0));
}

#[test]
fn a_message_that_replaces_one_pays_for_what_it_is_longer() {
    const KIB: usize = 1024;
    let memory = Arc::new(Budget::new(512 * KIB));
    let settings = SessionSettings { memory: memory.clone(), ..settings() };
    let link = link_of(settings);
    let options = SendOptions::new().overflow(OverflowPolicy::Conflate(1));
    let first = link.send_with(vec![1; KIB], &options).unwrap();
    // Others of the node have all that is beyond the floor of this link.
    assert!(memory.take(512 * KIB));
    let refused = link.send_with(vec![2; LINK_FLOOR + KIB], &options).unwrap_err();
    assert_eq!((refused.kind, refused.payload.len()), (SendErrorKind::Full, LINK_FLOOR + KIB));
    assert!(matches!(first.outcome(), Ok(Outcome::Returned { reason: ReturnReason::DroppedOldest, .. })));
    memory.give(512 * KIB);
    let second = link.send_with(vec![3; KIB], &options).unwrap();
    let third = link.send_with(vec![4; LINK_FLOOR + KIB], &options).unwrap();
    assert!(memory.used() >= KIB);
    assert!(matches!(second.outcome(), Ok(Outcome::Returned { reason: ReturnReason::Replaced, .. })));
    drop((third, link));
    assert_eq!(memory.used(), 0);
}

#[test]
fn a_window_is_not_given_back_under_a_session_that_was_attached_meanwhile() {
    let memory = Arc::new(Budget::new(1 << 30));
    let link = link_of(SessionSettings { memory: memory.clone(), holds_inbound: true, ..settings() });
    link.open_window();
    let held = memory.used();
    assert!(held > 0);
    // Of the session before, by whoever saw it end before this one was attached.
    link.close_window();
    assert_eq!(memory.used(), held);
}

/// Settings, and where messages go that failed and that nobody waits for.
fn told() -> (SessionSettings, crossbeam_channel::Receiver<Undelivered>) {
    let (undelivered, failed) = Undeliverable::new();
    (SessionSettings { undelivered: Arc::new(undelivered), ..settings() }, failed)
}

/// A link that stands for an address.
fn stand_in() -> (Arc<PeerLink>, crossbeam_channel::Receiver<Undelivered>) {
    let (settings, failed) = told();
    let addr = "127.0.0.1:9".parse().unwrap();
    let ids = [PeerId::from_bytes([1; 32]), PeerId::of_address(addr)];
    let core = LinkCore::new(ids[0], ids[1], LinkLimits { window_bytes: 1 << 20, max_message: 1 << 20 }, 1);
    let link = PeerLink::new(core, ids[1], [1; 16], Arc::new(settings));
    link.outbox.await_peer(1 << 20);
    link.stand_in_for(addr);
    (Arc::new(link), failed)
}

#[test]
fn a_message_that_moved_to_a_peer_and_failed_there_was_for_that_peer() {
    let ((address, failed), peer) = (stand_in(), attached_link());
    let receipt = address.send_with(b"message".to_vec(), &SendOptions::new()).unwrap();
    let before = address.send_with(b"too late".to_vec(), &SendOptions::new().ttl(Duration::ZERO)).unwrap();
    address.expire(Instant::now());
    address.bind(Some(peer.clone()));
    peer.end(7);
    drop((receipt, before));
    let told: Vec<PeerId> = failed.try_iter().map(|failed| failed.peer).collect();
    assert_eq!(told, [peer.id, address.id]);
}

#[test]
fn what_an_address_and_the_peer_there_have_counted_never_falls() {
    let ((address, _failed), peer) = (stand_in(), attached_link());
    let counts = || {
        let totals = [&address, &peer].map(|link| PeerHandle::new(link.clone()).totals());
        let accepted: u64 = totals.iter().map(|totals| totals.traffic.messages_accepted).sum();
        let phases = totals.map(|totals| totals.phases.outgoing_buffer);
        let begun: u64 = phases.iter().map(|phase| phase.begun.total().messages).sum();
        let of = |phase: &PhaseTally| phase.succeeded.total().messages + phase.failed.total().messages + phase.open;
        assert_eq!(begun, phases.iter().map(of).sum::<u64>());
        [accepted, begun]
    };
    let brief = SendOptions::new().ttl(Duration::ZERO);
    let mut before = counts();
    let mut rises = |what: &str, to: [u64; 2]| {
        let now = counts();
        assert!(now >= before, "{what}: {before:?} to {now:?}");
        assert_eq!(now, to, "{what}");
        before = now;
    };
    let receipts = [SendOptions::new(), brief].map(|options| address.send_with(vec![1; 10], &options).unwrap());
    rises("two wait", [0; 2]);
    address.expire(Instant::now());
    rises("one has ended", [1; 2]);
    // Taken out, and not there yet.
    let moved = address.outbox.hand_over();
    rises("one is on its way", [1; 2]);
    drop(peer.outbox.adopt(moved));
    rises("it has a peer", [2; 2]);
    peer.end(7);
    rises("all have ended", [2; 2]);
    drop(receipts);
}
