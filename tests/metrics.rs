//! Each refusal, failure and end raises exactly the counters that name it, by exactly one, and the sums tally.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use threadwire::error::{CloseReason, RejectCause};
use threadwire::handshake::Identity;
use threadwire::metrics::{MetricsSnapshot, Traffic};
use threadwire::{Config, Node};

mod common;
use common::proxy::Proxy;
use common::stranger::Stranger;
use common::{PATIENCE, addr, alone, channels, identities, link, over, quick, start, wait_until};

/// Every counter by its path, as `sessions_ended_by.local.idle`; without the traffic, and without what is in use.
fn flat(metrics: &MetricsSnapshot) -> BTreeMap<String, u64> {
    fn walk(path: &str, value: &Value, flat: &mut BTreeMap<String, u64>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    walk(&path, value, flat);
                }
            }
            // Rows of phases, which are no counters of connections.
            Value::Array(_) => {}
            count => drop(flat.insert(path.to_owned(), count.as_u64().unwrap())),
        }
    }
    let mut all = BTreeMap::new();
    walk("", &serde_json::to_value(metrics).unwrap(), &mut all);
    // What is in use now is no counter: it falls too.
    let now = ["memory_used", "peers_connected", "queued_messages", "queued_bytes", "kept_bytes"];
    let others = ["traffic.", "oldest_queued.", "phases.", "ack_delay."];
    all.retain(|path, _| !now.contains(&path.as_str()) && !others.iter().any(|other| path.starts_with(other)));
    all
}

/// What rose between two looks, and by how much.
fn risen(before: &MetricsSnapshot, after: &MetricsSnapshot) -> BTreeMap<String, u64> {
    let before = flat(before);
    let risen = flat(after).into_iter().map(|(path, count)| (path.clone(), count - before[&path]));
    risen.filter(|(_, by)| *by > 0).collect()
}

/// Waits until exactly these counters have risen by one since `before`.
#[track_caller]
fn rose(what: &str, node: &Node, before: &MetricsSnapshot, paths: &[&str]) {
    let expected: BTreeMap<String, u64> = paths.iter().map(|path| ((*path).to_owned(), 1)).collect();
    let deadline = Instant::now() + PATIENCE;
    let mut now = risen(before, &node.metrics());
    while now != expected && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
        now = risen(before, &node.metrics());
    }
    assert_eq!(now, expected, "{what}");
}

/// Nothing is under way at `node`, and every connection that began is accounted for.
#[track_caller]
fn tallies(node: &Node) {
    let m = node.metrics();
    assert_eq!(m.accepted, m.refused + m.handshakes_failed + m.sessions_started_by.get(INBOUND), "{m:?}");
    assert_eq!(m.dials, m.dials_failed + m.sessions_started_by.get(OUTBOUND), "{m:?}");
    assert_eq!(m.refused, m.refused_by.total());
    assert_eq!(m.sessions_ended, m.sessions_ended_by.total());
}

const INBOUND: threadwire::ident::SessionKind = threadwire::ident::SessionKind::Inbound;
const OUTBOUND: threadwire::ident::SessionKind = threadwire::ident::SessionKind::Outbound;

/// What a session that began on either side counts as.
const STARTED_IN: [&str; 3] = ["accepted", "sessions_started", "sessions_started_by.inbound"];
const STARTED_OUT: [&str; 3] = ["dials", "sessions_started", "sessions_started_by.outbound"];

fn and<'a>(first: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [first, more].concat()
}

#[test]
fn a_session_and_its_end_by_goodbye_count_once_on_both_sides_by_who_said_it() {
    let _alone = alone();
    let (bob, alice) = (start(quick()), start(quick()));
    let before = bob.metrics();
    alice.connect(bob.local_addr().unwrap()).unwrap();
    bob.wait_connected(alice.id(), PATIENCE).unwrap();
    rose("bob is dialled", &bob, &before, &STARTED_IN);
    assert!(alice.shutdown(PATIENCE).is_clean());
    let ended = ["sessions_ended", "sessions_ended_by.remote.shutdown"];
    rose("bob hears the goodbye", &bob, &before, &and(&STARTED_IN, &ended));
    let ended = ["sessions_ended", "sessions_ended_by.local.shutdown"];
    rose("alice says it", &alice, &MetricsSnapshot::default(), &and(&STARTED_OUT, &ended));
    tallies(&alice);
    tallies(&bob);
}

#[test]
fn a_handshake_that_is_refused_counts_here_and_there_by_its_reason() {
    let _alone = alone();
    let mut elsewhere = quick();
    elsewhere.network = "elsewhere".to_owned();
    let (bob, alice) = (start(quick()), start(elsewhere));
    alice.connect(bob.local_addr().unwrap()).unwrap_err();
    let here = ["accepted", "handshakes_failed", "handshakes_failed_by.local.wrong_network"];
    rose("bob refuses", &bob, &MetricsSnapshot::default(), &here);
    let there = ["dials", "dials_failed", "dials_failed_by.handshake.remote.wrong_network"];
    rose("alice is refused", &alice, &MetricsSnapshot::default(), &there);
    tallies(&alice);
    tallies(&bob);

    let refuses =
        Node::builder().config(quick()).handshake_policy(|_: &threadwire::handshake::Offer<'_>| Err("no".into()));
    let (refuses, carol) = (refuses.start().unwrap(), start(quick()));
    carol.connect(refuses.local_addr().unwrap()).unwrap_err();
    let here = ["accepted", "handshakes_failed", "handshakes_failed_by.local.refused"];
    rose("a policy refuses", &refuses, &MetricsSnapshot::default(), &here);
    let there = ["dials", "dials_failed", "dials_failed_by.handshake.remote.refused"];
    rose("carol is refused", &carol, &MetricsSnapshot::default(), &there);
    tallies(&carol);
    tallies(&refuses);
}

#[test]
fn a_dialler_that_meets_somebody_else_counts_who_refused_whom() {
    let _alone = alone();
    let (bob, alice) = (start(quick()), start(slow_to_retry()));
    alice.add_peer(identities()[0].peer_id(), bob.local_addr()).unwrap();
    let there = ["dials", "dials_failed", "dials_failed_by.handshake.local.wrong_peer"];
    rose("alice refuses", &alice, &MetricsSnapshot::default(), &there);
    let here = ["accepted", "handshakes_failed", "handshakes_failed_by.remote.wrong_peer"];
    rose("bob is refused", &bob, &MetricsSnapshot::default(), &here);
    tallies(&alice);
    tallies(&bob);
}

/// Dials once and again only after the test.
fn slow_to_retry() -> Config {
    let mut config = quick();
    config.backoff.base = Duration::from_secs(60);
    config.backoff.cap = Duration::from_secs(60);
    config.backoff.jitter = 0.0;
    config
}

#[test]
fn strangers_count_by_what_was_wrong_with_them() {
    let _alone = alone();
    let identity = Arc::new(Identity::generate().unwrap());
    for channel in channels() {
        let mut config = over(channel);
        config.handshake_timeout = Duration::from_secs(2);
        let bob = start(config);
        let stranger = || Stranger::dial_over(channel, &identity, addr(&bob));
        let failed = ["accepted", "handshakes_failed"];

        let before = bob.metrics();
        let mut garbage = stranger();
        garbage.say(&[0xff; 64]);
        garbage.hear_out();
        rose("garbage", &bob, &before, &and(&failed, &["handshakes_failed_by.local.protocol_error"]));

        let before = bob.metrics();
        let mut silent = stranger();
        assert_eq!(silent.hear_out(), Some(CloseReason::HandshakeTimeout));
        let late = ["handshakes_failed_by.local.handshake_timeout", "handshake_timeouts"];
        rose("silence", &bob, &before, &and(&failed, &late));

        // A reset in the middle, and while the refusal is being told.
        let before = bob.metrics();
        stranger().hang_up(true);
        wait_until("it is counted", || bob.metrics().handshakes_failed > before.handshakes_failed);
        let mut by = risen(&before, &bob.metrics());
        // Whether a worker still had a step of it to do is a matter of time.
        by.remove("steps_skipped");
        let lost = and(&failed, &["handshakes_failed_by.lost"]);
        assert_eq!(by, lost.iter().map(|path| ((*path).to_owned(), 1)).collect(), "a reset");
        let before = bob.metrics();
        let mut garbage = stranger();
        garbage.say(&[0xff; 64]);
        garbage.hang_up(true);
        wait_until("it is counted", || bob.metrics().handshakes_failed > before.handshakes_failed);
        let by = risen(&before, &bob.metrics());
        assert_eq!((by["accepted"], by["handshakes_failed"]), (1, 1), "{by:?}");
        tallies(&bob);
    }
}

#[test]
fn dials_that_open_no_connection_count_by_why() {
    let _alone = alone();
    let alice = start(quick());
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    alice.connect(nobody).unwrap_err();
    let failed = ["dials", "dials_failed", "dials_failed_by.connect.refused"];
    rose("nobody listens", &alice, &MetricsSnapshot::default(), &failed);
    tallies(&alice);
}

#[test]
fn a_connection_beyond_the_bound_counts_as_refused_by_it() {
    let _alone = alone();
    let mut config = quick();
    config.inbound = 1;
    let (bob, alice, carol) = (start(config), start(quick()), start(quick()));
    link(&alice, &bob);
    bob.wait_connected(alice.id(), PATIENCE).unwrap();
    let before = bob.metrics();
    carol.connect(bob.local_addr().unwrap()).unwrap_err();
    rose("carol is one too many", &bob, &before, &["accepted", "refused", "refused_by.inbound"]);
    tallies(&bob);
    tallies(&carol);
}

#[test]
fn a_session_that_is_cut_counts_by_how() {
    let _alone = alone();
    let mut config = slow_to_retry();
    (config.heartbeat, config.idle_timeout) = (Duration::from_millis(50), Duration::from_millis(600));
    let (bob, alice) = (start(config.clone()), start(config));
    let proxy = Proxy::to(bob.local_addr().unwrap());

    let (at_alice, at_bob) = (alice.metrics(), bob.metrics());
    alice.connect(proxy.addr()).unwrap();
    bob.wait_connected(alice.id(), PATIENCE).unwrap();
    assert_eq!(proxy.stall(), 1);
    let idle = ["sessions_ended", "sessions_ended_by.local.idle", "sessions_cut"];
    rose("alice hears nothing", &alice, &at_alice, &and(&STARTED_OUT, &idle));
    rose("bob hears nothing", &bob, &at_bob, &and(&STARTED_IN, &idle));
    drop(proxy);

    let proxy = Proxy::to(bob.local_addr().unwrap());
    let (at_alice, at_bob) = (alice.metrics(), bob.metrics());
    alice.connect(proxy.addr()).unwrap();
    bob.wait_connected(alice.id(), PATIENCE).unwrap();
    drop(proxy);
    let lost = ["sessions_ended", "sessions_ended_by.lost"];
    rose("alice is cut off", &alice, &at_alice, &and(&STARTED_OUT, &lost));
    rose("bob is cut off", &bob, &at_bob, &and(&STARTED_IN, &lost));
    tallies(&alice);
    tallies(&bob);
}

#[test]
fn messages_and_rejections_count_on_both_sides_and_add_up_to_the_peers_own_counts() {
    let _alone = alone();
    let panics = Node::builder().config(quick()).handler(|_, message| assert!(message.payload() != b"panic"));
    let (bob, alice, carol) = (panics.start().unwrap(), start(quick()), start(quick()));
    let to_bob = link(&alice, &bob);
    let to_carol = link(&alice, &carol);
    (0..100).for_each(|_| to_bob.send("fine").unwrap());
    to_carol.send(vec![7; 500_000]).unwrap();
    assert_eq!(carol.recv_timeout(PATIENCE).unwrap().payload().len(), 500_000);
    wait_until("all is acknowledged", || to_bob.stats().acked + to_carol.stats().acked == 101);
    let before = bob.metrics();
    to_bob.send("panic").unwrap();
    wait_until("it is rejected", || to_bob.stats().returned == 1);
    wait_until("it is counted", || bob.metrics().sessions_ended == before.sessions_ended + 1);

    let traffic: Traffic = alice.metrics().traffic;
    let counts =
        (traffic.messages_accepted, traffic.messages_acked, traffic.messages_returned, traffic.messages_unknown);
    assert_eq!(counts, (102, 101, 1, 0));
    assert_eq!((traffic.returned_by.get(RejectCause::HandlerPanicked), traffic.returned_by.total()), (1, 1));
    assert!(traffic.bytes_sent > 500_000 && traffic.bytes_sent < 600_000, "{traffic:?}");
    let stats = [to_bob.stats(), to_carol.stats()];
    assert_eq!(traffic.bytes_sent, stats.iter().map(|stats| stats.bytes_sent).sum::<u64>());
    let at_bob = bob.metrics();
    assert_eq!((at_bob.traffic.messages_received, at_bob.traffic.rejected_by.total()), (101, 1));
    assert_eq!(at_bob.sessions_ended_by.local.get(CloseReason::HandlerPanicked), 1);
    assert_eq!(carol.metrics().traffic.messages_received, 1);
    assert!(carol.metrics().traffic.bytes_received > 500_000);
}
