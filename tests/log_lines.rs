//! What a node logs: a line for each change, with peer and connection, and nothing louder than debug for each attempt.
//!
//! One test in a file of its own: the logger is the process's.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::path::Path;
use std::time::Duration;

use log::{Level, LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;
use threadwire::{Config, Node};

mod common;
use common::{NOWHERE, PATIENCE, quick, wait_until};

/// A line: how loud, where from, what.
type Line = (Level, String, String);

/// Keeps every line of the library.
struct Capture(Mutex<Vec<Line>>);

static CAPTURE: Capture = Capture(Mutex::new(Vec::new()));

impl Log for Capture {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("threadwire")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.lock().push((record.level(), record.target().to_owned(), record.args().to_string()));
        }
    }

    fn flush(&self) {}
}

/// Lines since the last look, once `count` of them are louder than debug: these, and the others.
#[track_caller]
fn lines(what: &str, count: usize) -> (Vec<Line>, Vec<Line>) {
    let loud = |line: &Line| line.0 <= Level::Info;
    wait_until(&format!("{what}: {count} lines"), || {
        CAPTURE.0.lock().iter().filter(|line| loud(line)).count() >= count
    });
    let lines = std::mem::take(&mut *CAPTURE.0.lock());
    let (louder, quiet): (Vec<_>, Vec<_>) = lines.into_iter().partition(loud);
    assert_eq!(louder.len(), count, "{what}: {louder:#?}");
    (louder, quiet)
}

/// Exactly these lines above debug, in any order: level, target after `threadwire::`, the beginning, and what follows
/// somewhere.
#[track_caller]
fn expect(what: &str, expected: &[(Level, &str, String, &str)]) -> Vec<Line> {
    let (mut louder, quiet) = lines(what, expected.len());
    for (level, target, start, part) in expected {
        let found = louder.iter().position(|(l, t, text)| {
            l == level && *t == format!("threadwire::{target}") && text.starts_with(start) && text.contains(part)
        });
        let Some(found) = found else { panic!("{what}: no {level} {target} {start:?} {part:?} in {louder:#?}") };
        louder.remove(found);
    }
    quiet
}

/// A configuration that every machine's limits are enough for.
fn small(listen: Option<std::net::SocketAddr>) -> Config {
    let mut config = quick();
    (config.inbound, config.outbound, config.half_open) = (8, 8, 8);
    if let Some(addr) = listen {
        config.listen = vec![addr];
    }
    config
}

/// A node whose identity is in this folder.
fn start(folder: &Path, mut config: Config) -> Node {
    config.data_dir = Some(folder.to_owned());
    common::start(config)
}

#[test]
fn a_life_is_told_in_one_line_for_each_change() {
    use Level::{Debug, Info, Warn};
    log::set_logger(&CAPTURE).unwrap();
    log::set_max_level(LevelFilter::Trace);
    let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let [a, b, c] = folders.each_ref().map(tempfile::TempDir::path);
    let (alice, bob) = (start(a, small(None)), start(b, small(None)));
    let (alice_is, bob_is) = (alice.id().short(), bob.id().short());
    expect(
        "two starts",
        &[
            (Info, "node", format!("{alice_is}: started"), "127.0.0.1"),
            (Info, "node", format!("{bob_is}: started"), "127.0.0.1"),
        ],
    );

    let addr = bob.local_addr().unwrap();
    alice.add_peer(bob.id(), [addr]).unwrap();
    expect(
        "a connection",
        &[
            (Info, "session", format!("{bob_is} c1: connected"), "outbound"),
            (Info, "session", format!("{alice_is} c1: connected"), "inbound"),
        ],
    );
    alice.send(bob.id(), "a message").unwrap();
    assert_eq!(bob.recv_timeout(PATIENCE).unwrap().payload(), b"a message");

    let before = alice.metrics().dials_failed;
    assert!(bob.shutdown(PATIENCE).is_clean());
    drop(bob);
    wait_until("ten dials have failed", || alice.metrics().dials_failed >= before + 10);
    let quiet = expect(
        "a loss, and ten dials that fail",
        &[
            (Info, "node", format!("{bob_is}: shutting down"), "within"),
            (Info, "session", format!("{alice_is} c1: disconnected"), "the node shuts down"),
            (Info, "session", format!("{bob_is} c1: disconnected"), "the node shuts down"),
            (Info, "node", format!("{bob_is}: shut down"), "1 peers drained"),
            (Warn, "dial", bob_is.clone(), "connect"),
        ],
    );
    let again = quiet.iter().filter(|(level, target, text)| {
        (*level, target.as_str()) == (Debug, "threadwire::dial") && text.starts_with(&bob_is)
    });
    assert!(again.count() >= 8, "{quiet:#?}");

    let bob = start(b, small(Some(addr)));
    alice.wait_connected(bob.id(), PATIENCE).unwrap();
    let (back, _) = lines("it is back", 3);
    for who in [&alice_is, &bob_is] {
        let one = |(_, target, text): &&Line| {
            target == "threadwire::session" && text.starts_with(&format!("{who} c")) && text.contains(": connected")
        };
        assert_eq!(back.iter().filter(one).count(), 1, "{back:#?}");
    }

    // Another configuration: what has changed, and what is wrong with it.
    let mut config = bob.config();
    config.inbound = 7;
    config.heartbeat /= 2;
    bob.reload(&config).unwrap();
    bob.reload(&config).unwrap();
    config.network = "elsewhere".to_owned();
    let refused = bob.reload(&config).unwrap_err();
    expect(
        "three reloads",
        &[
            (Info, "node", format!("{bob_is}: reloaded: heartbeat, inbound"), "; 0 sessions had to go"),
            (Info, "node", format!("{bob_is}: reloaded: nothing has changed"), "; 0 sessions had to go"),
            (Warn, "node", format!("{bob_is}: another configuration is refused: {refused}"), "network"),
        ],
    );

    // Somebody of another network knocks, often: bob's operator reads nothing of it.
    let stranger = {
        let mut config = small(None);
        config.network = "elsewhere".to_owned();
        start(c, config)
    };
    let stranger_is = stranger.id().short();
    for _ in 0..10 {
        stranger.connect(addr).unwrap_err();
    }
    wait_until("bob has counted it", || bob.metrics().handshakes_failed == 10);
    assert!(stranger.shutdown(PATIENCE).is_clean());
    let quiet = expect(
        "ten refusals",
        &[
            (Info, "node", format!("{stranger_is}: started"), ""),
            (Info, "node", format!("{stranger_is}: shutting down"), ""),
            (Info, "node", format!("{stranger_is}: shut down"), ""),
        ],
    );
    assert!(quiet.iter().filter(|(_, target, _)| target == "threadwire::accept").count() >= 10, "{quiet:#?}");

    // What is left undelivered is worth a look.
    alice.add_peer(stranger.id(), NOWHERE).unwrap().send("never").unwrap();
    assert!(!alice.shutdown(Duration::from_millis(200)).is_clean());
    let (end, _) = lines("the end", 4);
    let is_end = |(level, _, text): &&Line| *level == Warn && text.contains("1 messages to 1 peers undelivered");
    assert_eq!(end.iter().filter(is_end).count(), 1, "{end:#?}");
    assert!(end.iter().all(|(level, ..)| *level >= Warn), "nothing to repair in a healthy life: {end:#?}");
    assert!(bob.shutdown(PATIENCE).is_clean());
}
