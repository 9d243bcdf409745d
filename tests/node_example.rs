//! The example `node` as its users run it: by commands, by a script, as a service, and with a wrong configuration.
//!
//! Owns: folders and files it makes. Threads: the test's. Locks: none. Blocks on: processes it started, with a deadline.
//! Upholds: every form of line that `examples/node/line.rs` documents is one that was seen.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};
use tempfile::TempDir;

#[path = "common/program.rs"]
mod program;

use program::{Program, build, command};

/// Nobody listens here: the port is reserved.
const NOWHERE: &str = "127.0.0.1:1";
/// Nobody's id.
const STRANGER: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

fn example() -> &'static PathBuf {
    static EXAMPLE: OnceLock<PathBuf> = OnceLock::new();
    EXAMPLE.get_or_init(|| build("node"))
}

/// A folder with a configuration in it, of seven lines and `more`, where `@DIR` stands for the folder.
struct Place(TempDir);

impl Place {
    fn new(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "listen = \"127.0.0.1:0\"\ndata_dir = \"@DIR/data\"\n\
             [backoff]\nbase = \"5 ms\"\ncap = \"50 ms\"\n[log]\nlevel = \"info\"\n{more}"
        );
        let text = text.replace("@DIR", folder.path().to_str().unwrap());
        fs::write(folder.path().join("node.toml"), text).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = command(example(), words);
        command.arg("--config").arg(self.path("node.toml"));
        command
    }

    /// A node that runs, its id, and where it listens.
    fn start(&self, words: &[&str]) -> (Program, String, String) {
        let mut node = Program::start(&mut self.command(words));
        let line = node.wait_for("started ");
        (node, field(&line, "id").to_owned(), field(&line, "listen").to_owned())
    }

    fn id(&self) -> String {
        let output = self.command(&["id"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }
}

impl Place {
    /// Changes the file as an editor does: another one takes its place.
    fn change(&self, changes: &[(&str, &str)]) {
        let mut text = fs::read_to_string(self.path("node.toml")).unwrap();
        for (from, to) in changes {
            assert!(text.contains(from), "{text}");
            text = text.replace(from, to);
        }
        fs::write(self.path("new.toml"), text).unwrap();
        fs::rename(self.path("new.toml"), self.path("node.toml")).unwrap();
    }
}

/// A value of a line.
#[track_caller]
fn field<'a>(line: &'a str, key: &str) -> &'a str {
    let (_, value) = line.split_once(&format!(" {key}=")).unwrap_or_else(|| panic!("no {key} in {line}"));
    value.split(' ').next().unwrap()
}

#[test]
fn the_id_is_made_once_and_only_its_owner_reads_the_key() {
    let place = Place::new("");
    let id = place.id();
    assert!(id.len() == 64 && id.bytes().all(|digit| digit.is_ascii_hexdigit()), "{id}");
    assert_eq!(place.id(), id);
    let keys: Vec<_> = fs::read_dir(place.path("data")).unwrap().map(Result::unwrap).collect();
    assert!(!keys.is_empty());
    for key in keys {
        assert_eq!(key.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{key:?}");
    }
    // The node that runs is the one that was named.
    let (mut node, running, _) = place.start(&[]);
    assert_eq!(running, id);
    node.say("quit");
    assert_eq!(node.end().0, Some(0));
}

#[test]
fn an_id_that_would_not_last_is_not_printed() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("node.toml");
    fs::write(&config, "").unwrap();
    let output = command(example(), ["id", "--config"]).arg(config).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(2), &b""[..]));
    assert!(String::from_utf8(output.stderr).unwrap().starts_with("error: without a data_dir "));
}

#[test]
fn two_nodes_talk_by_commands_and_a_peer_is_added_and_removed() {
    let (north, south) = (Place::new(""), Place::new(""));
    let (mut north, north_id, north_addr) = north.start(&[]);
    let (mut south, south_id, _) = south.start(&["--peer", &format!("{north_id}@{north_addr}")]);
    let (to_north, to_south) = (&north_id[..8], &south_id[..8]);
    assert_eq!(field(&north.wait_for("connected peer="), "kind"), "inbound");
    let line = south.wait_for("connected peer=");
    assert_eq!(
        (field(&line, "peer"), field(&line, "kind"), field(&line, "addr")),
        (to_north, "outbound", &*north_addr)
    );

    south.say(&format!("send {to_north} hello,  north"));
    south.wait_for(&format!("accepted peer={to_north}"));
    let line = north.wait_for("message ");
    assert_eq!(line, format!("message peer={to_south} number=0 repeat=no text=hello,  north"));
    north.say(&format!("send {south_id} by the whole id"));
    south.wait_for("text=by the whole id");
    north.say("all of you");
    south.wait_for("text=of you");

    // What is wrong is said, and nothing else happens.
    for (wrong, says) in [
        ("send nobody x", "error what=no peer is known as nobody"),
        ("sned", "error what=unknown command \"sned\"; try help"),
        ("send", "error what=usage: send PEER TEXT"),
    ] {
        north.say(wrong);
        assert_eq!(north.wait_for("error "), says);
    }

    south.say(&format!("remove {to_north}"));
    south.wait_for(&format!("removed peer={to_north}"));
    assert!(south.wait_for("disconnected ").ends_with("reason=closed here: closed by the application"));
    north.wait_for("reason=the peer said goodbye: closed by the application");
    north.say("all of you");
    north.wait_for("error what=nobody is connected");
    south.say("peers");
    south.wait_for("peers count=1");
    assert!(south.wait_for("  PEER ").ends_with("NEXT DIAL"));
    assert!(south.wait_for(&format!("  {to_north}")).contains(" away "));

    south.say(&format!("add {north_id} {NOWHERE} {north_addr}"));
    south.wait_for(&format!("added peer={to_north}"));
    assert_eq!(field(&south.wait_for("dial_failed "), "addr"), NOWHERE);
    south.wait_for("connected peer=");
    south.say("metrics");
    south.wait_for("metrics");
    assert!(south.wait_for("  sessions_started ").ends_with(" 2"));

    south.signal("TERM");
    let (status, last) = south.end();
    let last: Vec<&str> = last.iter().map(String::as_str).filter(|line| !line.starts_with(' ')).collect();
    assert_eq!(status, Some(0), "{last:?}");
    assert_eq!(last[0], "stopping deadline_s=5 cause=SIGTERM");
    assert!(last[1].ends_with("reason=closed here: the node shuts down"), "{last:?}");
    assert_eq!(last[2..], ["stopped clean=yes drained=1 undelivered=0 threads=-"]);
    north.wait_for("reason=the peer said goodbye: the node shuts down");
    north.signal("INT");
    north.wait_for("cause=SIGINT");
    assert_eq!(north.end().0, Some(0));
}

#[test]
fn a_script_reads_json_and_peers_of_the_file_have_names() {
    let north = Place::new("");
    let (mut north, north_id, north_addr) = north.start(&[]);
    let peer = format!("[[peer]]\nname = \"north\"\nid = \"{north_id}\"\naddresses = [\"{north_addr}\"]\n");
    let south = Place::new(&peer);
    let mut south = Program::start(&mut south.command(&["--json"]));
    let mut next = |event: &str, say: &str| -> Value {
        if !say.is_empty() {
            south.say(say);
        }
        let line = south.wait_for(&format!("{{\"event\":\"{event}\""));
        serde_json::from_str(&line).expect(&line)
    };
    let south_id = next("started", "")["id"].as_str().unwrap().to_owned();
    let connected = next("connected", "");
    assert_eq!((connected["peer"].as_str(), &connected["name"]), (Some(&*north_id), &Value::from("north")));
    next("accepted", "send north a\u{1b}[31m\"b\"");
    // To a terminal nothing is written that commands it.
    assert!(north.wait_for("message ").ends_with("text=a\\u{1b}[31m\"b\""));
    north.say(&format!("send {} back\\n", &south_id[..4]));
    assert_eq!(next("message", "")["text"], "back\\n");
    let peers = next("peers", "peers");
    assert_eq!((&peers["count"], &peers["peers"][0]["state"]), (&Value::from(1), &Value::from("established")));
    assert_eq!(peers["peers"][0]["received"], 1);
    assert_eq!(next("metrics", "metrics")["metrics"]["sessions_started_by"]["outbound"], 1);
    assert!(next("help", "help")["text"].as_str().unwrap().contains("quit"));
    assert_eq!(next("stopping", "quit")["cause"], "quit");
    assert_eq!(next("stopped", "")["clean"], true);
    assert_eq!(south.end().0, Some(0));
}

#[test]
fn a_service_outlives_its_input_logs_to_its_file_and_stops_on_a_signal() {
    let place = Place::new("file = \"@DIR/node.log\"\n");
    for signal in ["TERM", "INT"] {
        let (mut node, id, addrs) = place.start(&["--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0"]);
        node.say_no_more();
        // Still there, at its second address: another one reaches it.
        let (_, second) = addrs.split_once(',').unwrap();
        let (mut other, ..) = Place::new("").start(&["--peer", &format!("{id}@{second}")]);
        other.wait_for("connected peer=");
        other.say("quit");
        assert_eq!(other.end().0, Some(0));
        node.wait_for("disconnected peer=");
        node.signal(signal);
        let (status, last) = node.end();
        let stopping = format!("stopping deadline_s=5 cause=SIG{signal}");
        assert_eq!((status, last[0].as_str(), last.len()), (Some(0), stopping.as_str(), 2), "{last:?}");
        assert_eq!(last[1], "stopped clean=yes drained=1 undelivered=0 threads=-");
    }
    let log = fs::read_to_string(place.path("node.log")).unwrap();
    assert_eq!(log.matches("[INFO] threadwire::node: ").count(), log.matches("threadwire::node").count(), "{log}");
    for (line, times) in [(": started, listens on ", 2), (": connected (inbound, ", 2), (": shut down: ", 2)] {
        assert_eq!(log.matches(line).count(), times, "{line:?} in\n{log}");
    }
}

#[test]
fn a_configuration_that_changes_is_put_to_use_on_a_signal_and_by_itself() {
    let north = Place::new("");
    let (mut north_node, north_id, north_addr) = north.start(&[]);
    let south = Place::new("");
    let mut south_node = Program::start(&mut south.command(&["--json"]));
    let next = |node: &mut Program, event: &str| -> Value {
        let line = node.wait_for(&format!("{{\"event\":\"{event}\""));
        serde_json::from_str(&line).expect(&line)
    };
    next(&mut south_node, "started");
    let peer = format!("[[peer]]\nname = \"north\"\nid = \"{north_id}\"\naddresses = [\"{north_addr}\"]\n");
    south.change(&[("[log]", &format!("jitter = 0.25\n{peer}[log]"))]);
    let reloaded = next(&mut south_node, "reloaded");
    assert_eq!((&reloaded["fields"], &reloaded["closed"]), (&json!(["backoff.jitter", "peer"]), &json!(0)));
    assert_eq!(next(&mut south_node, "connected")["name"], "north");
    north_node.wait_for("connected peer=");

    // Wrong: told by file and line. Fixed: the node's to refuse.
    south.change(&[("jitter = 0.25", "jitter = 2")]);
    let what = next(&mut south_node, "reload_refused")["what"].as_str().unwrap().to_owned();
    let begins = format!("{}:6: backoff.jitter = 2: allowed: ", south.path("node.toml").display());
    assert!(what.starts_with(&begins), "{what}");
    south.change(&[("jitter = 2", "jitter = 0.25"), ("listen =", "network = \"other\"\nlisten =")]);
    let what = next(&mut south_node, "reload_refused")["what"].as_str().unwrap().to_owned();
    assert!(what.starts_with("network = \"other\": stays \"threadwire\""), "{what}");

    // The peer goes, and the level with it.
    let level = ("level = \"info\"", "level = \"debug\"");
    south.change(&[("network = \"other\"\n", ""), (&peer, ""), level]);
    south_node.signal("HUP");
    let reloaded = next(&mut south_node, "reloaded");
    assert_eq!(reloaded["fields"], json!(["log.level", "peer"]));
    assert_eq!(reloaded["closed_sessions"][0]["reason"], "Requested");
    // Lines of that level are written now: of each attempt after the first.
    south_node.say(&format!("add {STRANGER} {NOWHERE}"));
    south_node.wait_for_log("[DEBUG] ");
    north_node.wait_for("disconnected peer=");
    north_node.signal("HUP");
    assert_eq!(north_node.wait_for("reloaded "), "reloaded fields=- closed=0");
    // Signals that end it end it still.
    south_node.signal("TERM");
    assert_eq!(south_node.end().0, Some(0));
    north_node.signal("TERM");
    assert_eq!(north_node.end().0, Some(0));
}

#[test]
fn what_could_not_be_delivered_is_named_in_the_last_line_and_a_second_signal_does_not_wait_for_it() {
    let (quits, killed) = (Place::new(""), Place::new(""));
    let begin = |place: &Place| {
        let (mut node, ..) = place.start(&["--peer", &format!("{STRANGER}@{NOWHERE}")]);
        let line = node.wait_for("dial_failed ");
        assert_eq!((field(&line, "peer"), field(&line, "stage")), (&STRANGER[..8], "connect"));
        (0..3).for_each(|n| node.say(&format!("send {STRANGER} {n}")));
        (0..3).for_each(|_| drop(node.wait_for("accepted ")));
        node
    };
    let (mut quits, killed) = (begin(&quits), begin(&killed));
    quits.say("quit");
    killed.signal("TERM");
    let mut killed = killed;
    killed.wait_for("stopping ");
    killed.signal("TERM");
    let (status, last) = killed.end();
    assert_eq!((status, last), (Some(2), Vec::new()));
    quits.wait_for("stopping ");
    let (status, last) = quits.end();
    let expected = [
        "stopped clean=no drained=0 undelivered=3 threads=-".to_owned(),
        format!("  {} unsent=3 unknown=0", &STRANGER[..8]),
    ];
    assert_eq!((status, last), (Some(0), expected.to_vec()));
}

/// Runs it to its end: its exit status and its standard error; it must have written nothing to standard output.
fn refused(place: &Place, words: &[&str]) -> (Option<i32>, String) {
    let output = place.command(words).stdin(Stdio::null()).output().unwrap();
    assert!(output.stdout.is_empty(), "{output:?}");
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_wrong_configuration_is_explained_by_file_and_line_and_nothing_is_begun() {
    let place = Place::new("file = \"@DIR/node.log\"\n[tcp]\nnodelay = \"maybe\"\n");
    let config = place.path("node.toml").display().to_string();
    let expected = format!("error: {config}:10: tcp.nodelay = \"maybe\": allowed: a boolean\n");
    for words in [&[][..], &["id"]] {
        assert_eq!(refused(&place, words), (Some(2), expected.clone()));
    }
    let names: Vec<_> = fs::read_dir(place.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["node.toml"], "neither a key nor a log");

    for (more, line, says) in [
        ("colour = \"red\"\n", 8, "log.colour = \"red\": unknown field; allowed: "),
        ("[[peer]]\nname = \"north\"\n", 8, "missing field"),
    ] {
        let place = Place::new(more);
        let (status, error) = refused(&place, &[]);
        let begins = format!("error: {}:{line}: ", place.path("node.toml").display());
        assert!(status == Some(2) && error.starts_with(&begins) && error.contains(says), "{error}");
    }
}

#[test]
fn what_cannot_start_is_explained_and_leaves_nothing() {
    let place = Place::new("");
    let (mut node, _, addr) = place.start(&[]);
    let other = Place::new("");
    let (status, error) = refused(&other, &["--listen", &addr]);
    assert!(status == Some(2) && error.contains(&format!("error: cannot listen on {addr}: ")), "{error}");
    let (status, error) = refused(&other, &["--peer", &format!("{STRANGER}@0.0.0.0:1")]);
    assert!(status == Some(2) && error.contains("peer[0].addresses"), "{error}");
    let (status, error) = refused(&Place::new("file = \"@DIR/none/node.log\"\n"), &[]);
    assert!(status == Some(2) && error.contains("node.log: cannot be opened: "), "{error}");
    node.say("quit");
    assert_eq!(node.end().0, Some(0));
}

#[test]
fn the_shipped_configuration_runs() {
    let folder = tempfile::tempdir().unwrap();
    // Its listen address may be in use on this machine.
    let mut command = command(example(), ["--listen", "127.0.0.1:0", "--data-dir"]);
    command.arg(folder.path().join("data")).current_dir(env!("CARGO_MANIFEST_DIR"));
    let mut node = Program::start(&mut command);
    node.wait_for("started ");
    node.wait_for_log("threadwire::node: ");
    node.say("quit");
    assert_eq!(node.end().0, Some(0));
}

#[test]
fn it_stops_when_nobody_reads_its_lines_any_more() {
    let place = Place::new("");
    let mut node = Program::start_and_read(&mut place.command(&[]), 1);
    node.wait_for("started ");
    node.wait_until_unread();
    node.say("peers");
    node.wait_for_log("nobody reads standard output");
    assert_eq!(node.end().0, Some(1));
}
