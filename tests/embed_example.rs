//! The example `embed` as its users run it: doors that count together, one that is started again, a stranger's words, and
//! the ways it ends.
//!
//! Owns: nothing. Threads: the test's. Locks: none. Blocks on: processes it started, with a deadline.
//! Upholds: what a door shows is what all doors counted.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::OnceLock;

use threadwire::{Config, Node, PeerId};

#[path = "common/program.rs"]
mod program;

use program::{PATIENCE, Program, build, command};

fn door(words: &[&str]) -> (Program, String) {
    static EXAMPLE: OnceLock<PathBuf> = OnceLock::new();
    let mut door = Program::start(&mut command(EXAMPLE.get_or_init(|| build("embed")), words));
    let place = door.wait_for("door ")["door ".len()..].to_owned();
    (door, place)
}

/// The table of the example, by its shape alone.
fn table(door: PeerId, came: u64, went: u64) -> BTreeMap<PeerId, (u64, u64)> {
    BTreeMap::from([(door, (came, went))])
}

#[test]
fn two_doors_count_together_and_end_by_the_signal() {
    let (mut north, place) = door(&[]);
    let (mut south, _) = door(&["--peer", &place]);
    north.wait_for("inside 0 doors 2");
    south.wait_for("inside 0 doors 2");
    ["in", "in", "in"].iter().for_each(|word| north.say(word));
    south.wait_for("inside 3 doors 2");
    south.say("in");
    north.wait_for("inside 4 doors 2");
    // Its own logger writes what the library logs.
    assert!(north.wait_for_log("connected").starts_with("door: INFO  threadwire::session: "));
    south.signal("TERM");
    south.wait_for_log("shutting down");
    assert_eq!(south.end(), (Some(0), vec!["inside 4 doors 2".to_owned()]));
    north.wait_for_log("is gone");
    north.signal("INT");
    assert_eq!(north.end().0, Some(0));
}

#[test]
fn a_door_that_died_learns_what_it_had_counted_from_another() {
    let folder = tempfile::tempdir().unwrap();
    let key = ["--data-dir", folder.path().to_str().unwrap()];
    let (mut south, place) = door(&[]);
    let words = [&key[..], &["--peer", &place]].concat();
    let (mut north, _) = door(&words);
    ["in", "in", "in"].iter().for_each(|word| north.say(word));
    south.wait_for("inside 3 doors 2");
    drop(north);
    let (mut north, _) = door(&words);
    north.wait_for("inside 3 doors 2");
    north.say("out");
    south.wait_for("inside 2 doors 2");
}

#[test]
fn another_node_tells_it_a_table_and_what_is_none_is_passed_over() {
    let (mut north, place) = door(&[]);
    let (id, addr) = place.split_once('@').unwrap();
    let mut config = Config::loopback();
    config.network = "doors".to_owned();
    let node = Node::builder().config(config).start().unwrap();
    node.add_peer(id.parse().unwrap(), [addr]).unwrap();
    let peer = node.wait_connected(id.parse().unwrap(), PATIENCE).unwrap();
    peer.send("what is a door?").unwrap();
    north.wait_for_log("does not speak of doors");
    peer.send_msg(&table(node.id(), 41, 1)).unwrap();
    north.wait_for("inside 40 doors 2");
    // It is told in return, and what is told is the same form.
    let told = node.recv_timeout(PATIENCE).unwrap().decode::<BTreeMap<PeerId, (u64, u64)>>().unwrap();
    assert_eq!(told.get(&id.parse().unwrap()), Some(&(0, 0)));
    // Not even a count that cannot rise any more ends it.
    peer.send_msg(&table(id.parse().unwrap(), u64::MAX, u64::MAX)).unwrap();
    north.wait_for("inside 40 doors 2");
    north.say("in");
    north.wait_for("inside 40 doors 2");
    north.say("quit");
    assert_eq!(north.end().0, Some(0));
}

#[test]
fn it_goes_on_at_the_end_of_its_input() {
    let (mut north, place) = door(&[]);
    north.say_no_more();
    let (mut south, _) = door(&["--peer", &place]);
    south.say("in");
    north.wait_for("inside 1 doors 2");
    north.signal("TERM");
    assert_eq!(north.end().0, Some(0));
}
