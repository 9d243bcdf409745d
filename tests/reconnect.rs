//! Connections that break anywhere: nothing is lost, repeated or reordered, and the link heals by itself.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::sync::Arc;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use threadwire::config::Channel;
use threadwire::error::{CloseReason, DialCause, DisconnectReason, SendError};
use threadwire::ident::SessionKind;
use threadwire::wire::FrameType;
use threadwire::{Config, Event, Node, PeerHandle};

mod common;
use common::ledger::{Ledger, SHORTEST, Verdict, numbered};
use common::proxy::{Counts, Fault, Harm, Place, Proxy, Way};
use common::{
    NOWHERE, PATIENCE, alone, channels, ended, identities, link, over, plain, quick, start, wait_event, wait_until,
};

/// Two nodes whose messages are entered into ledgers, linked through a proxy.
struct Pair {
    dialler: Node,
    listener: Node,
    /// From the dialler to the listener, and back.
    handles: [PeerHandle; 2],
    /// Of what the listener got, and of what the dialler got.
    ledgers: [Arc<Ledger>; 2],
    proxy: Proxy,
}

impl Pair {
    /// With the dialler's id the lower one or not: it decides which connection is attached. The first connections, from
    /// the very first on, suffer these faults.
    fn new(config: &Config, dialler_decides: bool, faults: impl IntoIterator<Item = Fault>) -> Self {
        let [lower, higher] = identities();
        let (of_dialler, of_listener) = if dialler_decides { (lower, higher) } else { (higher, lower) };
        let ledgers: [Arc<Ledger>; 2] = Default::default();
        let [at_listener, at_dialler] = ledgers.clone();
        let enter = |ledger: Arc<Ledger>| {
            move |_: &PeerHandle, message: threadwire::Message<'_>| {
                ledger.enter(message.payload(), message.possible_repeat());
            }
        };
        let builder = || Node::builder().config(config.clone());
        let listener = builder().identity(of_listener).handler(enter(at_listener)).start().unwrap();
        let dialler = builder().identity(of_dialler).handler(enter(at_dialler)).start().unwrap();
        let proxy = Proxy::to(listener.local_addr().unwrap());
        proxy.plan(faults);
        let there = dialler.add_peer(listener.id(), [proxy.addr()]).unwrap();
        // Not before the first connection that comes through, which the first faults may prevent.
        let back = listener.add_peer(dialler.id(), NOWHERE).unwrap();
        Self { dialler, listener, handles: [there, back], ledgers, proxy }
    }

    /// Floods both ways with messages of these sizes, in turn, until every planned fault has struck.
    fn flood(&self, sizes: &[usize]) -> [u64; 2] {
        let enough = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let floods = self.handles.each_ref().map(|handle| {
                let enough = &enough;
                scope.spawn(move || {
                    let mut sent = 0;
                    while !enough.load(Ordering::Relaxed) {
                        let payload = numbered(sent, sizes[sent as usize % sizes.len()]);
                        if let Err(SendError { kind, .. }) = handle.send_timeout(payload, PATIENCE) {
                            panic!("message {sent}: {kind}")
                        }
                        sent += 1;
                    }
                    sent
                })
            });
            let mut struck = self.proxy.left();
            let mut since = Instant::now();
            while struck > 0 && since.elapsed() < PATIENCE {
                std::thread::sleep(Duration::from_millis(1));
                let left = self.proxy.left();
                if left != struck {
                    (struck, since) = (left, Instant::now());
                }
            }
            enough.store(true, Ordering::Relaxed);
            let sent = floods.map(|flood| flood.join().unwrap());
            assert_eq!(struck, 0, "faults that did not strike; {:?}", self.proxy.counts());
            sent
        })
    }

    /// Everything sent came once and in order, and both sides know.
    fn settle(&self, sent: [u64; 2]) -> Counts {
        wait_until("everything is acknowledged", || {
            self.handles.iter().zip(sent).all(|(handle, sent)| handle.stats().acked == sent)
        });
        for ((ledger, handle), sent) in self.ledgers.iter().zip(&self.handles).zip(sent) {
            assert_eq!(ledger.verdict(), Verdict::perfect(sent));
            let stats = handle.stats();
            assert_eq!((stats.accepted, stats.returned, stats.unknown), (sent, 0, 0));
            assert_eq!((stats.queued_messages, stats.queued_bytes, stats.kept_bytes), (0, 0, 0));
        }
        self.proxy.counts()
    }
}

/// Cuts in every kind of frame, then anywhere.
fn cuts(anywhere: usize, seed: u64) -> Vec<Fault> {
    use FrameType::{Ack, Attach, Confirm, Data, Hello, Segment};
    let mut faults = Vec::new();
    for way in [Way::Up, Way::Down] {
        let cut = |place| Fault::cut(way, place);
        faults.extend([0, 1, 5, 8, 9].map(|bytes| cut(Place::After(bytes))));
        faults.extend([50, 100].map(|at| cut(Place::Inside(Hello, 0, at))));
        for frame in [Confirm, Attach] {
            faults.extend([0, 3, 8, 40].map(|at| cut(Place::Inside(frame, 0, at))));
        }
        for (frame, at) in [(Segment, 8), (Segment, 15), (Ack, 8), (Ack, 20), (Data, 4), (Data, 8), (Data, 12)] {
            faults.extend([0, 2].map(|nth| cut(Place::Inside(frame, nth, at))));
        }
    }
    let mut random = fastrand::Rng::with_seed(seed);
    faults.extend((0..anywhere).map(|_| {
        let way = if random.bool() { Way::Up } else { Way::Down };
        // As many small offsets as large ones.
        let digits = random.u32(8..=20);
        Fault::cut(way, Place::After(random.u64(1..1 << digits)))
    }));
    random.shuffle(&mut faults);
    faults
}

/// Cuts through TLS: at the start of its handshake, in each side's part of it, soon after it, then anywhere.
#[cfg(feature = "tls")]
fn cuts_of_records(anywhere: usize, seed: u64) -> Vec<Fault> {
    let mut faults = Vec::new();
    for way in [Way::Up, Way::Down] {
        let places = [0, 1, 4, 5, 6, 50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 800, 1_000];
        faults.extend(places.map(|bytes| Fault::cut(way, Place::After(bytes))));
    }
    let mut random = fastrand::Rng::with_seed(seed);
    faults.extend((0..anywhere).map(|_| {
        let way = if random.bool() { Way::Up } else { Way::Down };
        let digits = random.u32(11..=20);
        Fault::cut(way, Place::After(random.u64(1..1 << digits)))
    }));
    random.shuffle(&mut faults);
    faults
}

fn a_flood_survives_cuts(dialler_decides: bool, config: Config, faults: Vec<Fault>, places: &[&str], least: u64) {
    let _alone = alone();
    let mut config = config;
    config.queue_bytes = 1 << 20;
    let planned = faults.len() as u64;
    let pair = Pair::new(&config, dialler_decides, faults);
    let sent = pair.flood(&[SHORTEST, 64, 700, 64, 9, 3000]);
    let counts = pair.settle(sent);
    println!("{sent:?} messages, {counts:?}");
    assert_eq!(counts.cuts, planned);
    assert!(planned >= 50, "{planned}");
    assert!(counts.cuts_with_loss >= 20, "{counts:?}");
    for place in places {
        assert!(counts.struck.get(*place).is_some_and(|cuts| *cuts >= 2), "{place}: {counts:?}");
    }
    // Each cut behind the handshake ended a session, and one more is there now.
    let sessions = pair.handles.each_ref().map(|handle| handle.stats().sessions);
    assert!(sessions.iter().all(|sessions| *sessions > least), "{sessions:?}");
    assert!(pair.dialler.shutdown(PATIENCE).is_clean());
    assert!(pair.listener.shutdown(PATIENCE).is_clean());
}

/// What a cut may fall into over plain TCP.
const FRAMES: [&str; 8] = ["between", "header", "Hello", "Confirm", "Attach", "Segment", "Data", "Ack"];

#[test]
fn a_flood_both_ways_survives_cuts_in_every_kind_of_frame_when_the_dialler_decides() {
    a_flood_survives_cuts(true, plain(), cuts(24, 7), &FRAMES, 40);
}

#[test]
fn a_flood_both_ways_survives_cuts_in_every_kind_of_frame_when_the_listener_decides() {
    a_flood_survives_cuts(false, plain(), cuts(24, 7), &FRAMES, 40);
}

#[test]
#[cfg(feature = "tls")]
fn a_flood_both_ways_through_tls_survives_cuts_anywhere_in_its_handshake_and_its_records() {
    for dialler_decides in [true, false] {
        a_flood_survives_cuts(dialler_decides, quick(), cuts_of_records(40, 7), &["between", "header", "record"], 30);
    }
}

#[test]
fn big_messages_go_on_where_they_were_cut() {
    const BIG: usize = 1 << 20;
    let _alone = alone();
    for channel in channels() {
        // No connection lives long enough for a message each way: only pieces that are kept bring it to its end.
        let faults = (0..40).map(|n| {
            let way = if n % 2 == 0 { Way::Up } else { Way::Down };
            Fault::cut(way, Place::After(200_000 + n * 17_001))
        });
        let pair = Pair::new(&over(channel), true, faults);
        let sent = pair.flood(&[BIG]);
        let counts = pair.settle(sent);
        println!("{sent:?} messages, {counts:?}");
        assert_eq!(counts.cuts, 40);
        let inside = if channel == Channel::Tls { "record" } else { "Data" };
        assert!(counts.struck[inside] > 30, "{counts:?}");
        assert!(sent.iter().all(|sent| *sent >= 3), "{sent:?}");
        // What came twice over the wire is a small part: a message is not sent anew from its start.
        let payload = sent.iter().sum::<u64>() * BIG as u64;
        let passed: u64 = counts.passed.iter().sum();
        assert!(passed < payload * 2, "{passed} bytes for {payload}");
    }
}

#[test]
fn a_stream_that_ends_in_one_direction_only_heals() {
    let _alone = alone();
    for channel in channels() {
        let ends = |way, bytes| Fault { way, place: Place::After(bytes), harm: Harm::HalfClose };
        let faults = [Way::Up, Way::Down].into_iter().flat_map(|way| [3, 300, 20_000, 300_000].map(|at| ends(way, at)));
        let pair = Pair::new(&over(channel), false, faults);
        let sent = pair.flood(&[64, 1000]);
        let counts = pair.settle(sent);
        assert_eq!(counts.half_closes, 8);
    }
}

#[test]
fn what_was_handed_over_is_acknowledged_before_a_goodbye_ends_the_session() {
    const ROUNDS: u64 = 100;
    let _alone = alone();
    for channel in channels() {
        let mut config = over(channel);
        // By itself an acknowledgement takes longer than any of this.
        config.ack_delay = Duration::from_secs(1);
        let (alice, bob) = (start(config.clone()), start(config));
        let to_bob = link(&alice, &bob);
        let mut late = 0;
        for round in 0..ROUNDS {
            alice.wait_connected(bob.id(), PATIENCE).unwrap();
            to_bob.send(round.to_le_bytes()).unwrap();
            assert_eq!(bob.recv_timeout(PATIENCE).unwrap().payload(), round.to_le_bytes(), "{channel:?}");
            alice.disconnect(bob.id(), CloseReason::Requested).unwrap();
            late += wait_event(&alice, "the session ends", |event| match event {
                Event::Disconnected { unacked_bytes, .. } => Some(u64::from(unacked_bytes > 0)),
                _ => None,
            });
        }
        // A thread that is kept from the processor for the second that a goodbye may take is no defect.
        assert!(late <= ROUNDS / 20, "{channel:?}: after {late} of {ROUNDS} goodbyes something was not acknowledged");
    }
}

#[test]
fn a_path_that_stalls_is_cut_by_the_idle_time_and_heals() {
    let _alone = alone();
    let mut config = quick();
    config.heartbeat = Duration::from_millis(100);
    config.idle_timeout = Duration::from_secs(2);
    let stall = Fault { way: Way::Up, place: Place::After(100_000), harm: Harm::Stall };
    let pair = Pair::new(&config, true, [stall]);
    let sent = pair.flood(&[64, 1000]);
    let counts = pair.settle(sent);
    assert_eq!(counts.stalls, 1);
    assert!(counts.accepted >= 2, "{counts:?}");
    for node in [&pair.dialler, &pair.listener] {
        let reason = ended(node);
        // Both sides find out by themselves, unless the other one was faster with the next connection.
        let by_itself = DisconnectReason::Local(CloseReason::Idle);
        assert!(reason == by_itself || reason == DisconnectReason::Local(CloseReason::Superseded), "{reason}");
    }
    assert!(pair.dialler.metrics().sessions_cut >= 1, "{:?}", pair.dialler.metrics());
}

#[test]
fn what_is_sent_to_a_peer_that_is_away_comes_when_it_does() {
    const COUNT: u64 = 5_000;
    let _alone = alone();
    let ledger = Arc::new(Ledger::default());
    let at_bob = ledger.clone();
    let bob = Node::builder()
        .config(quick())
        .handler(move |_, message| at_bob.enter(message.payload(), message.possible_repeat()));
    let bob = bob.start().unwrap();
    let proxy = Proxy::away(bob.local_addr().unwrap());
    let alice = start(quick());
    let to_bob = alice.add_peer(bob.id(), [proxy.addr()]).unwrap();
    for number in 0..COUNT {
        to_bob.send(numbered(number, 100)).unwrap();
    }
    let cause = wait_event(&alice, "a dial fails", |event| match event {
        Event::DialFailed { error, .. } => Some(error.cause),
        _ => None,
    });
    assert_eq!(cause, DialCause::Io(std::io::ErrorKind::ConnectionRefused));
    wait_until("it is dialled again and again", || alice.metrics().dials_failed >= 3);
    let stats = to_bob.stats();
    assert_eq!((stats.accepted, stats.queued_messages as u64, stats.sessions), (COUNT, COUNT, 0));
    proxy.listen();
    wait_until("all are acknowledged", || to_bob.stats().acked == COUNT);
    assert_eq!(ledger.verdict(), Verdict::perfect(COUNT));
    // It goes away again, and comes again.
    proxy.stop_listening();
    assert_eq!(proxy.cut(), 1);
    wait_until("the session has ended", || !to_bob.is_connected());
    for number in COUNT..2 * COUNT {
        to_bob.send(numbered(number, 100)).unwrap();
    }
    let failed = alice.metrics().dials_failed;
    wait_until("it is dialled again and again", || alice.metrics().dials_failed >= failed + 3);
    proxy.listen();
    wait_until("all are acknowledged", || to_bob.stats().acked == 2 * COUNT);
    assert_eq!(ledger.verdict(), Verdict::perfect(2 * COUNT));
    assert_eq!(to_bob.stats().sessions, 2);
}

#[test]
fn dials_follow_the_backoff_and_stop_at_shutdown() {
    let _alone = alone();
    let mut config = quick();
    config.backoff.base = Duration::from_millis(40);
    config.backoff.cap = Duration::from_millis(160);
    config.backoff.jitter = 0.0;
    let alice = start(config);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    alice.add_peer(identities()[0].peer_id(), nobody.local_addr()).unwrap();
    let mut dialled = Vec::new();
    for _ in 0..7 {
        let (stream, _) = nobody.accept().unwrap();
        dialled.push(Instant::now());
        // The delay begins when the dial has failed.
        drop(stream);
    }
    let gaps: Vec<u128> = dialled.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
    // The first is a random part of the base; timers are late at times, never early by more than their grain.
    for (gap, least) in gaps.iter().zip([0, 38, 78, 118, 158, 158]) {
        assert!((least..least + 1_000).contains(gap), "{gaps:?}");
    }
    assert!(alice.shutdown(PATIENCE).is_clean());
    // It had two seconds and more for the next dial if a thread for it were left.
    nobody.set_nonblocking(true).unwrap();
    while nobody.accept().is_ok() {}
    assert!(common::node_threads().is_empty());
    assert!(nobody.accept().is_err());
    assert_eq!(alice.metrics().dials, alice.metrics().dials_failed);
}

/// The sessions that are there now: begun and not ended.
fn sessions(node: &Node) -> u64 {
    let metrics = node.metrics();
    metrics.sessions_started - metrics.sessions_ended
}

#[test]
fn two_nodes_that_dial_each_other_at_once_end_with_one_session() {
    const ROUNDS: usize = 50;
    let _alone = alone();
    let nobody = Proxy::away("127.0.0.1:9".parse().unwrap());
    let (mut overlapped, mut replaced) = (0, 0);
    for round in 0..ROUNDS {
        let nodes = [start(quick()), start(quick())];
        let barrier = Barrier::new(2);
        let handles = std::thread::scope(|scope| {
            let dial = |from: usize| {
                let (nodes, barrier) = (&nodes, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    link(&nodes[from], &nodes[1 - from])
                })
            };
            [dial(0), dial(1)].map(|dial| dial.join().unwrap())
        });
        // A dial that was asked for counts when it begins, which may be after the other one's session: it has begun when one
        // that was asked for later is over.
        for node in &nodes {
            assert!(node.connect(nobody.addr()).is_err());
        }
        // Nothing is under way any more: what is there now stays.
        wait_until("one session, and nothing under way", || {
            nodes.iter().all(|node| {
                let metrics = node.metrics();
                let begun = metrics.dials + metrics.accepted;
                let over =
                    metrics.dials_failed + metrics.handshakes_failed + metrics.refused + metrics.sessions_started;
                sessions(node) == 1 && begun == over
            })
        });
        let before = handles.each_ref().map(|handle| handle.stats().sessions);
        for number in 0..200 {
            for handle in &handles {
                handle.send(numbered(number, 50)).unwrap();
            }
            for node in &nodes {
                assert_eq!(node.recv_timeout(PATIENCE).unwrap().payload(), numbered(number, 50), "round {round}");
            }
        }
        assert_eq!(
            handles.each_ref().map(|handle| handle.stats().sessions),
            before,
            "round {round}: a session flapped"
        );
        assert_eq!(nodes.each_ref().map(sessions), [1, 1]);
        overlapped += u32::from(nodes.iter().any(|node| node.metrics().duplicates > 0));
        replaced += u32::from(before.iter().any(|sessions| *sessions > 1));
        for node in &nodes {
            assert!(node.shutdown(PATIENCE).is_clean());
        }
    }
    println!("{overlapped} of {ROUNDS} rounds had a duplicate, {replaced} replaced a session");
    assert!(overlapped > 0, "no two dials ever overlapped");
}

fn a_new_connection_supersedes_a_silent_one(dialler_decides: bool) {
    const COUNT: u64 = 2_000;
    let _alone = alone();
    let pair = Pair::new(&quick(), dialler_decides, []);
    let Pair { dialler, listener, handles, ledgers, proxy } = &pair;
    dialler.wait_connected(listener.id(), PATIENCE).unwrap();
    listener.wait_connected(dialler.id(), PATIENCE).unwrap();
    assert_eq!(proxy.stall(), 1);
    // Both believe in the connection: nothing is said on it for ten seconds when all is well.
    for handle in handles {
        (0..COUNT).for_each(|number| handle.send(numbered(number, 100)).unwrap());
    }
    assert!(handles.iter().all(|handle| handle.is_connected() && handle.stats().acked == 0));
    let back = listener.connect(dialler.local_addr().unwrap()).unwrap();
    assert_eq!(back.id(), dialler.id());
    wait_until("all are acknowledged", || handles.iter().all(|handle| handle.stats().acked == COUNT));
    assert_eq!(ledgers.each_ref().map(|ledger| ledger.verdict()), [(); 2].map(|()| Verdict::perfect(COUNT)));
    for node in [dialler, listener] {
        let (kind, reason) = wait_event(node, "the silent session ends", |event| match event {
            Event::Disconnected { kind, reason, .. } => Some((kind, reason)),
            _ => None,
        });
        assert_eq!(reason, DisconnectReason::Local(CloseReason::Superseded));
        let dialled = if node.id() == dialler.id() { SessionKind::Outbound } else { SessionKind::Inbound };
        assert_eq!(kind, dialled, "the wrong one ended");
        assert_eq!(sessions(node), 1);
    }
    // What was buffered on the way comes now, and means nothing to anybody.
    proxy.unstall();
    wait_until("the silent connection is gone", || proxy.open() == 0);
    assert_eq!(handles.each_ref().map(|handle| handle.stats().sessions), [2, 2]);
    assert_eq!(ledgers.each_ref().map(|ledger| ledger.verdict()), [(); 2].map(|()| Verdict::perfect(COUNT)));
}

#[test]
fn a_new_connection_supersedes_a_silent_one_when_the_dialler_of_the_silent_one_decides() {
    a_new_connection_supersedes_a_silent_one(true);
}

#[test]
fn a_new_connection_supersedes_a_silent_one_when_the_listener_of_the_silent_one_decides() {
    a_new_connection_supersedes_a_silent_one(false);
}

#[test]
fn the_ledger_tells_loss_repetition_disorder_and_corruption_apart() {
    let enter = |numbers: &[u64]| {
        let ledger = Ledger::default();
        numbers.iter().for_each(|number| ledger.enter(&numbered(*number, 20), false));
        ledger.verdict()
    };
    assert_eq!(enter(&[0, 1, 2]), Verdict::perfect(3));
    assert_eq!(enter(&[0, 2]), Verdict { came: 2, lost: 1, ..Verdict::default() });
    assert_eq!(enter(&[0, 1, 1]), Verdict { came: 2, duplicated: 1, ..Verdict::default() });
    assert_eq!(enter(&[0, 2, 1]), Verdict { came: 3, reordered: 1, ..Verdict::default() });
    let ledger = Ledger::default();
    let mut payload = numbered(0, 20);
    payload[15] ^= 1;
    ledger.enter(&payload, false);
    assert_eq!(ledger.verdict(), Verdict { corrupted: 1, ..Verdict::default() });
}
