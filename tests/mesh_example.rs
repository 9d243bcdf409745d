//! The example `mesh` as its users run it: a good run, each sabotage, and what happens when it is killed.
//!
//! Owns: the folder it has the example send. Threads: the test's. Locks: none.
//! Blocks on: processes it started, which have deadlines of their own.
//! Upholds: a run that is ok had its link cut with bytes under way; a run that was harmed is found out.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use serde_json::Value;
use tempfile::TempDir;

#[path = "common/program.rs"]
mod program;

/// The files that are sent, with their sizes.
const FILES: [(&str, usize); 5] =
    [("tiny", 1), ("empty", 0), ("a/text.rs", 5_000), ("a/b/70k", 70_000), ("big", 8_400_001)];

/// The example, built once.
fn example() -> &'static PathBuf {
    static EXAMPLE: OnceLock<PathBuf> = OnceLock::new();
    EXAMPLE.get_or_init(|| program::build("mesh"))
}

/// A folder to send, the same each time.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(2);
    for (name, length) in FILES {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut bytes = vec![0; length];
        random.fill(&mut bytes);
        fs::write(path, bytes).unwrap();
    }
    folder
}

/// Runs the example with three nodes; its result, and its exit status.
fn run(more: &[&str]) -> (Value, Option<i32>) {
    let folder = folder();
    program::json(program::command(example(), [folder.path()]).args(["--nodes", "3", "--json"]).args(more))
}

fn number(result: &Value, field: &str) -> u64 {
    result[field].as_u64().unwrap_or_else(|| panic!("no {field} in {result}"))
}

/// The checker's counters: lost, duplicated, reordered, corrupted.
fn faults(result: &Value) -> [u64; 4] {
    ["lost", "duplicated", "reordered", "corrupted"].map(|field| number(result, field))
}

/// The link was cut with bytes under way, it healed, and the outcome of every message is known.
fn assert_cut_and_healed(result: &Value) {
    assert_eq!(number(result, "cuts"), 1, "{result}");
    assert!(number(result, "unacked_bytes_at_cut") > 0, "{result}");
    assert!(number(result, "reconnects") >= 1, "{result}");
    let known = number(result, "acked") + number(result, "returned") + number(result, "unknown");
    assert_eq!(number(result, "accepted"), known, "{result}");
}

#[test]
fn every_file_arrives_everywhere_through_a_link_that_is_cut() {
    let keep = tempfile::tempdir().unwrap();
    let (result, status) = run(&["--keep", keep.path().to_str().unwrap()]);
    assert!(status == Some(0) && result["ok"] == true, "{result}");
    assert_cut_and_healed(&result);
    assert_eq!(faults(&result), [0; 4]);
    assert_eq!((number(&result, "nodes"), number(&result, "files")), (3, FILES.len() as u64));
    assert_eq!(number(&result, "bytes_delivered"), 2 * number(&result, "bytes"));
    let mut pids: Vec<_> = result["pids"].as_array().unwrap().iter().map(Value::as_u64).collect();
    pids.sort_unstable();
    pids.dedup();
    assert_eq!(pids.len(), 3, "each node is a process");
    // The checker's word is checked too.
    let source = folder();
    for node in ["node-1", "node-2"] {
        for (name, _) in FILES {
            let received = fs::read(keep.path().join(node).join("files").join(name)).unwrap();
            assert!(received == fs::read(source.path().join(name)).unwrap(), "{node} {name}");
        }
    }
}

#[test]
fn each_sabotage_is_found_in_its_counter_only() {
    for (sabotage, wanted, differ) in
        [("drop", [1, 0, 0, 0], 1), ("dup", [0, 1, 0, 0], 0), ("swap", [0, 0, 1, 0], 0), ("corrupt", [0, 0, 0, 1], 1)]
    {
        let (result, status) = run(&["--sabotage", sabotage]);
        assert!(status == Some(1) && result["ok"] == false, "{sabotage}: {result}");
        assert_eq!(faults(&result), wanted, "{sabotage}: {result}");
        assert_eq!(number(&result, "files_differ"), differ, "{sabotage}: {result}");
        assert_cut_and_healed(&result);
    }
}

#[test]
fn a_folder_that_is_not_there_is_an_error_with_its_name() {
    let (result, status) = program::json(&mut program::command(example(), ["/no/such/folder", "--json"]));
    assert_eq!((status, &result["ok"]), (Some(1), &Value::Bool(false)));
    assert!(result["error"].as_str().unwrap().contains("/no/such/folder"), "{result}");
}

#[cfg(target_os = "linux")]
#[test]
fn no_child_outlives_a_parent_that_was_killed() {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;
    use std::time::{Duration, Instant};

    /// Whether a process runs; one that has ended and waits to be collected does not.
    fn is_running(pid: u32) -> bool {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|state| !state.is_empty() && !state.starts_with(['Z', 'X']))
    }

    // What a killed parent leaves behind lies in here and goes with it.
    let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // Too much to be sent before the parent is killed; it takes no room.
    fs::File::create(folder.path().join("huge")).unwrap().set_len(4 << 30).unwrap();
    let mut command = program::command(example(), [folder.path()]);
    command.args(["--nodes", "3", "--log", "info"]).env("TMPDIR", scratch.path());
    let mut parent = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(parent.stderr.take().unwrap()).lines();
    let pid = |line: String| Some(line.split_once(" is process ")?.1.trim().parse().unwrap());
    let children: Vec<u32> = log.by_ref().filter_map(|line| pid(line.unwrap())).take(4).collect();
    assert_eq!(children.len(), 4, "three nodes and the proxy were started");
    assert_eq!(parent.try_wait().unwrap(), None, "the run is not over");
    parent.kill().unwrap();
    parent.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    // The children share the parent's stderr: its end is the end of the last one.
    while log.next().is_some_and(|line| line.is_ok()) {
        assert!(Instant::now() < deadline, "of {children:?} some still log");
    }
    while children.iter().any(|pid| is_running(*pid)) {
        assert!(Instant::now() < deadline, "of {children:?} some still run");
        std::thread::yield_now();
    }
}
