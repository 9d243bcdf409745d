//! The workload `chaos` of the example `loadtest` as its users run it: a good run, each sabotage, nodes that forget;
//! over plain TCP, where the proxy reads frames, and over TLS.
//!
//! Owns: nothing. Threads: the test's. Locks: none. Blocks on: processes it started, which have deadlines of their own.
//! Upholds: a run that is ok suffered every kind of fault with bytes in flight; a run that was harmed is found out.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;

#[path = "common/program.rs"]
mod program;

const KINDS: [&str; 10] = [
    "reset",
    "half_close",
    "stall_reset",
    "cut_header",
    "cut_body",
    "cut_ack",
    "cut_handshake",
    "listener",
    "freeze",
    "kill",
];

/// The example, built once.
fn example() -> &'static PathBuf {
    static EXAMPLE: OnceLock<PathBuf> = OnceLock::new();
    EXAMPLE.get_or_init(|| program::build("loadtest"))
}

/// Runs the workload over plain TCP; its result, and its exit status.
fn run(more: &[&str]) -> (Value, Option<i32>) {
    run_over("--plain", more)
}

/// The same, over what this says.
fn run_over(channel: &str, more: &[&str]) -> (Value, Option<i32>) {
    program::json(program::command(example(), ["chaos", "--json", channel]).args(more))
}

fn number(result: &Value, field: &str) -> u64 {
    result[field].as_u64().unwrap_or_else(|| panic!("no {field} in {result}"))
}

/// The checker's counters: lost, duplicated, reordered, corrupted.
fn harms(result: &Value) -> [u64; 4] {
    ["lost", "duplicated", "reordered", "corrupted"].map(|field| number(result, field))
}

/// What must hold of a run of twenty faults.
fn assert_all_is_known(result: &Value, kinds: &[&str]) {
    assert!(result["ok"] == true, "{result}");
    assert_eq!((result["workload"].as_str(), number(result, "cuts")), (Some("chaos"), 20));
    for kind in kinds {
        assert!(number(&result["faults"], kind) > 0, "{kind} in {result}");
        assert_eq!(result["faults"][*kind], result["in_flight"][*kind], "{kind} in {result}");
    }
    assert_eq!(harms(result), [0; 4]);
    let known = number(result, "acked") + number(result, "returned") + number(result, "unknown");
    assert_eq!(number(result, "accepted"), known, "{result}");
    assert!(number(result, "acked") > 0 && number(result, "reconnects") > 0, "{result}");
}

#[test]
fn the_fate_of_every_message_is_known_while_everything_around_is_harmed() {
    let keep = tempfile::tempdir().unwrap();
    let (result, status) = run(&["--cuts", "20", "--seed", "3", "--keep", keep.path().to_str().unwrap()]);
    assert_eq!((result["secure"].as_bool(), status), (Some(false), Some(0)), "{result}");
    assert_all_is_known(&result, &KINDS);
    // The checker's word is checked too: nobody received more than was sent.
    let (mut sent, mut received) = (0, 0);
    for entry in walk(keep.path()) {
        let text = std::fs::read_to_string(&entry).unwrap();
        let count =
            |words: &[&str]| text.lines().filter(|line| words.iter().any(|word| line.starts_with(word))).count() as u64;
        sent += count(&["sent ", "brief "]) - count(&["refused "]);
        received += count(&["taken ", "repeat "]);
    }
    let best_effort = ["best_effort_accepted", "best_effort_accepted_by_killed"].map(|field| number(&result, field));
    let accepted = number(&result, "accepted") + number(&result, "accepted_by_killed");
    assert_eq!(sent, accepted + best_effort.iter().sum::<u64>());
    assert_eq!(received, number(&result, "delivered") + number(&result, "best_effort_delivered"));
}

#[test]
#[cfg(feature = "tls")]
fn over_tls_the_same_holds_and_an_altered_byte_ends_its_session() {
    let (result, status) = run_over("--secure", &["--cuts", "20", "--seed", "3"]);
    assert_eq!((result["secure"].as_bool(), status), (Some(true), Some(0)), "{result}");
    assert_all_is_known(&result, &[&KINDS[..], &["flip"]].concat());
}

#[test]
#[cfg(feature = "tls")]
fn over_tls_too_a_forgotten_message_is_found() {
    let (result, status) = run_over("--secure", &["--cuts", "11", "--seed", "8", "--sabotage", "drop"]);
    assert!(result["ok"] == false && status == Some(1), "{result}");
    assert_eq!(harms(&result), [1, 0, 0, 0], "{result}");
}

/// All ledgers below a folder.
fn walk(folder: &Path) -> Vec<PathBuf> {
    let nodes = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let entries = nodes.flat_map(|node| std::fs::read_dir(node).unwrap().map(|entry| entry.unwrap().path()));
    entries.filter(|path| path.is_file()).collect()
}

#[test]
fn each_sabotage_is_found_in_its_counter_only() {
    let cases = [("drop", [1, 0, 0, 0]), ("dup", [0, 1, 0, 0]), ("swap", [0, 0, 1, 0]), ("corrupt", [0, 0, 0, 1])];
    // Side by side: most of each run is waiting.
    std::thread::scope(|scope| {
        for (sabotage, wanted) in cases {
            scope.spawn(move || {
                let (result, status) = run(&["--cuts", "10", "--seed", "8", "--sabotage", sabotage]);
                assert!(result["ok"] == false && status == Some(1), "{sabotage}: {result}");
                assert_eq!(harms(&result), wanted, "{sabotage}: {result}");
                // What the library says of its phases is held against the same ledgers.
                let told = result["reasons"].as_array().unwrap().iter().filter_map(Value::as_str);
                let differ = told.filter(|reason| reason.contains(" messages over, its application wrote ")).count();
                assert_eq!(differ as u64, wanted[0] + wanted[1], "{sabotage}: {result}");
                assert_eq!(number(&result, "cuts"), 10, "{sabotage}: {result}");
            });
        }
    });
}

#[test]
fn nodes_that_forget_what_was_unanswered_lose_messages() {
    let (result, status) = run(&["--cuts", "20", "--seed", "3", "--no-resume"]);
    assert!(result["ok"] == false && status == Some(1), "{result}");
    assert!(number(&result, "lost") > 0, "{result}");
    let known = number(&result, "acked") + number(&result, "returned") + number(&result, "unknown");
    assert_eq!(number(&result, "accepted"), known, "{result}");
}

#[test]
fn a_run_that_is_cut_short_is_not_ok() {
    let (result, status) = run(&["--cuts", "1000", "--seconds-max", "1"]);
    assert!(result["ok"] == false && status == Some(1), "{result}");
    assert!(number(&result, "cuts") < 1000 && harms(&result) == [0; 4], "{result}");
}
