//! The example `loadtest` as its users run it. `peers`: a good run, each sabotage, too many. `churn`: a good run, and
//! messages that are harmed. `connect` and `fanout`: a short run each.
//!
//! Owns: nothing. Threads: the test's. Locks: none. Blocks on: processes it started, which have deadlines of their own.
//! Upholds: a run that is ok saw heartbeats of every peer; a run that was harmed is found out; programs find their fields.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::path::PathBuf;
use std::sync::OnceLock;

use serde_json::Value;

#[path = "common/program.rs"]
mod program;

/// The example, built once.
fn example() -> &'static PathBuf {
    static EXAMPLE: OnceLock<PathBuf> = OnceLock::new();
    EXAMPLE.get_or_init(|| program::build("loadtest"))
}

/// Runs a workload; its result, and its exit status.
fn run(workload: &[&str], more: &[&str]) -> (Value, Option<i32>) {
    program::json(program::command(example(), workload).arg("--json").args(more))
}

/// Idle peers with quick heartbeats.
fn peers(more: &[&str]) -> (Value, Option<i32>) {
    run(&["peers", "--heartbeat", "0.9", "--seconds", "6", "--rounds", "3"], more)
}

fn number(result: &Value, field: &str) -> f64 {
    result[field].as_f64().unwrap_or_else(|| panic!("no {field} in {result}"))
}

fn reasons(result: &Value) -> Vec<&str> {
    result["reasons"].as_array().unwrap().iter().filter_map(Value::as_str).collect()
}

/// A short run to five peers and one that is stuck.
fn fanout(more: &[&str]) -> (Value, Option<i32>) {
    run(&["fanout", "--peers", "5", "--rounds", "1", "--seconds", "0.1"], more)
}

/// What the peers' books say: lost, duplicated, reordered, strange.
fn books(result: &Value) -> [f64; 4] {
    ["lost", "duplicated", "reordered", "strange"].map(|field| number(result, field))
}

#[test]
fn a_fanout_loses_nothing_and_meets_the_peer_that_is_stuck() {
    let (result, status) = fanout(&[]);
    assert!(result["ok"] == true && status == Some(0), "{result}");
    assert_eq!((result["workload"].as_str(), books(&result)), (Some("fanout"), [0.0; 4]));
    assert!(number(&result, "sent") > 0.0 && number(&result, "refused_by_stuck") > 0.0, "{result}");
    assert_eq!(number(&result, "refused_by_stuck"), number(&result, "broadcasts_among_stuck"), "{result}");
    for field in ["broadcasts_per_s", "ratio_to_single", "ratio_to_baseline", "ratio_to_unbatched"] {
        assert!(number(&result, field) > 0.0, "{field} in {result}");
    }
    // What they are to be is asked of a release build on a quiet machine; here, that they are told.
    assert!(number(&result, "slow_peer_effect").is_finite(), "{result}");
    let missed = result["targets_missed"].as_array().unwrap();
    assert_eq!(result["targets_met"].as_bool(), Some(missed.is_empty()), "{result}");
    assert_eq!(result["pids"].as_array().unwrap().len(), 3);
}

#[test]
fn a_message_of_a_fanout_that_is_harmed_is_noticed() {
    for (harm, wanted, reason) in [("drop", [1.0, 0.0, 0.0, 0.0], "lost"), ("dup", [0.0, 1.0, 0.0, 0.0], "duplicated")]
    {
        let (result, status) = fanout(&["--sabotage", harm]);
        assert!(result["ok"] == false && status == Some(1), "{harm}: {result}");
        assert_eq!(books(&result), wanted, "{harm}: {result}");
        assert!(
            matches!(reasons(&result)[..], [told] if told.starts_with("1 of ") && told.ends_with(reason)),
            "{result}"
        );
    }
}

#[test]
fn a_peer_that_was_to_be_stuck_and_is_not_is_noticed() {
    let (result, status) = fanout(&["--sabotage", "thaw"]);
    assert!(result["ok"] == false && status == Some(1), "{result}");
    assert_eq!(books(&result), [0.0; 4], "{result}");
    assert!(number(&result, "refused_by_stuck") < number(&result, "broadcasts_among_stuck"), "{result}");
    assert!(reasons(&result)[0].starts_with("the peer that was to be stuck refused "), "{result}");
}

#[test]
// Fewer would have to pay for what the node touches once, and more often for its processor time.
fn many_idle_peers_are_connected_and_heard_of_and_leave_nothing() {
    let (result, status) = peers(&["--count", "200", "--per-process", "80"]);
    assert!(result["ok"] == true && status == Some(0), "{result}");
    assert_eq!((result["workload"].as_str(), number(&result, "count")), (Some("peers"), 200.0));
    for field in ["connects_per_s", "rss_kib_per_peer", "broadcast_ms_p50", "stop_ms"] {
        assert!(number(&result, field) > 0.0, "{field} in {result}");
    }
    // Below the system's resolution it is 0.
    assert!((0.0..3.0).contains(&number(&result, "idle_cpu_percent")), "{result}");
    assert!(number(&result, "threads") >= 400.0, "two for each peer: {result}");
    assert_eq!(number(&result, "processes"), 4.0);
    assert_eq!(number(&result, "peers_beating"), 200.0);
    assert!(number(&result, "heartbeats_heard") >= 200.0 && number(&result, "heartbeats_said") >= 200.0, "{result}");
    assert_eq!((number(&result, "threads_left"), number(&result, "sessions_left")), (0.0, 0.0));
}

#[test]
fn a_peer_that_never_comes_is_missed() {
    let (result, status) = peers(&["--count", "3", "--sabotage", "drop"]);
    assert!(result["ok"] == false && status == Some(1), "{result}");
    assert_eq!(number(&result, "connected"), 2.0);
    assert!(reasons(&result).contains(&"2 of 3 peers connected"), "{result}");
}

#[test]
fn a_peer_that_says_no_heartbeat_is_noticed() {
    let (result, status) = peers(&["--count", "3", "--sabotage", "mute"]);
    assert!(result["ok"] == false && status == Some(1), "{result}");
    assert_eq!((number(&result, "connected"), number(&result, "cut")), (3.0, 1.0));
    assert!(reasons(&result).contains(&"1 peers were cut for silence"), "{result}");
}

#[test]
fn more_peers_than_the_system_allows_are_refused_by_the_limit_s_name() {
    let (result, status) = peers(&["--count", "1000000"]);
    assert!(result["ok"] == false && status == Some(1), "{result}");
    let limit = result["limit"].as_str().unwrap();
    assert!(limit.starts_with("1000000 peers need ") && limit.contains(" allows "), "{limit}");
}

/// Five peers come and go; the result, and the exit status.
#[cfg(feature = "tls")]
fn churn(more: &[&str]) -> (Value, Option<i32>) {
    run(&["churn", "--peers", "5", "--seconds", "4"], more)
}

#[test]
#[cfg(feature = "tls")]
fn peers_that_come_and_go_as_the_map_says_are_found_and_no_message_is_harmed() {
    let (result, status) = churn(&[]);
    assert!(result["ok"] == true && status == Some(0), "{result}");
    assert_eq!(result["workload"].as_str(), Some("churn"));
    for field in ["lost", "duplicated", "reordered", "corrupted"] {
        assert_eq!(number(&result, field), 0.0, "{field} in {result}");
    }
    for field in ["moves", "switched", "restarted", "vanished", "redirect_p99_ms"] {
        assert!(number(&result, field) > 0.0, "{field} in {result}");
    }
    let [accepted, acked, returned] = ["accepted", "acked", "returned"].map(|field| number(&result, field));
    assert!(acked > 0.0 && accepted == acked + returned, "{result}");
}

#[test]
#[cfg(feature = "tls")]
fn a_message_that_is_harmed_among_those_who_come_and_go_is_noticed() {
    let harms = [("drop", "lost"), ("dup", "duplicated"), ("swap", "reordered"), ("corrupt", "corrupted")];
    for (harm, harmed) in harms {
        let (result, status) = churn(&["--sabotage", harm]);
        assert!(result["ok"] == false && status == Some(1), "{harm}: {result}");
        for (_, field) in harms {
            assert_eq!(number(&result, field), f64::from(u8::from(field == harmed)), "{harm}: {field} in {result}");
        }
    }
}

#[test]
#[cfg(feature = "tls")]
fn two_processes_establish_secure_sessions_and_none_fails() {
    let (result, status) = run(&["connect", "--secure", "--pairs", "2", "--seconds", "0.1"], &[]);
    assert_eq!(status, Some(0), "{result}");
    assert_eq!((result["workload"].as_str(), result["secure"].as_bool()), (Some("connect"), Some(true)));
    assert_eq!((number(&result, "failed"), number(&result, "baseline_failed")), (0.0, 0.0), "{result}");
    let figures =
        ["handshakes_per_s", "handshakes_per_core_s", "ratio", "ratio_q1", "ratio_q3", "established", "session_us"];
    let baseline =
        ["baseline_handshakes_per_s", "baseline_handshakes_per_core_s", "baseline_established", "baseline_us"];
    for field in figures.into_iter().chain(baseline) {
        assert!(number(&result, field) > 0.0, "{field} in {result}");
    }
    assert_eq!(number(&result, "pairs"), 2.0);
    assert_eq!(result["pids"].as_array().map(Vec::len), Some(2), "two processes: {result}");
}
