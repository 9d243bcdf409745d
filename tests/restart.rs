//! A receiving process that is killed and started again under its identity: what it was not seen to take comes once
//! more, announced; what it was seen to take does not; and what two lives did not answer ends as unknown.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::io::{BufRead, BufReader, Write, stdin};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use threadwire::error::{DisconnectReason, RequestError};
use threadwire::ident::Incarnation;
use threadwire::{Event, Node, PeerHandle, PeerId};

mod common;
use common::ledger::{number_of, numbered};
use common::proxy::{Fault, Harm, Place, Proxy, Way};
use common::{PATIENCE, alone, ended, quick, start, wait_event, wait_until};

const LIFE: &str = "THREADWIRE_TEST_LIFE";

/// Not a test: the other process of the tests below, which start this executable again for it. It serves one node and
/// does what its standard input says; at the end of that it ends without a word, as when it is killed.
#[test]
fn life() {
    let Some(folder) = std::env::var_os(LIFE) else { return };
    let mut config = quick();
    config.data_dir = Some(folder.into());
    let node = start(config);
    println!("\nat {} {}", node.id(), node.local_addr().unwrap());
    let (mut held, mut asked) = (Vec::new(), None);
    for line in stdin().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["take", count] => {
                for _ in 0..count.parse().unwrap() {
                    let message = node.recv_timeout(PATIENCE).unwrap();
                    let number = number_of(message.payload()).unwrap();
                    assert!(message.payload() == numbered(number, message.payload().len()), "corrupted");
                    println!("\ngot {number} {}", message.possible_repeat());
                }
            }
            ["hold"] => {
                let message = node.recv_timeout(PATIENCE).unwrap();
                println!("\ngot {} {}", number_of(message.payload()).unwrap(), message.possible_repeat());
                held.push(message);
            }
            ["ask", to, number] => {
                let peer = node.wait_connected(to.parse().unwrap(), PATIENCE).unwrap();
                asked = Some((peer.ask(numbered(number.parse().unwrap(), 100), PATIENCE).unwrap(), peer));
            }
            ["answers"] => {
                let (pending, peer) = asked.take().unwrap();
                let answer = pending.wait().unwrap();
                let answer = std::str::from_utf8(answer.payload()).unwrap().to_owned();
                println!("\nanswered {answer}; {} unknown", peer.stats().unknown_answers);
            }
            ["answer"] => held.drain(..).for_each(|message| message.reply(message.payload()).unwrap()),
            ["send", to, count] => {
                let peer = node.wait_connected(to.parse().unwrap(), PATIENCE).unwrap();
                (0..count.parse().unwrap()).for_each(|number| peer.send(numbered(number, 100)).unwrap());
            }
            _ => panic!("{line:?}"),
        }
    }
    std::process::exit(0);
}

/// A process with a node that keeps its identity in a folder.
struct Life {
    process: Child,
    says: BufReader<ChildStdout>,
    id: PeerId,
    addr: SocketAddr,
}

impl Life {
    fn begin(folder: &Path) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["life", "--exact", "--nocapture", "--test-threads=1"])
            .env(LIFE, folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut says = BufReader::new(process.stdout.take().unwrap());
        let at = line(&mut says, "at ");
        let (id, addr) = at.split_once(' ').unwrap();
        Self { id: id.parse().unwrap(), addr: addr.parse().unwrap(), process, says }
    }

    fn order(&mut self, order: &str) {
        writeln!(self.process.stdin.as_mut().unwrap(), "{order}").unwrap();
    }

    /// Has it take so many messages; their numbers, and whether they were announced as possible repeats.
    fn take(&mut self, count: u64) -> Vec<(u64, bool)> {
        self.order(&format!("take {count}"));
        (0..count).map(|_| got(&line(&mut self.says, "got "))).collect()
    }

    /// Has it take one message and keep it; its number, and whether it was announced as a possible repeat.
    fn hold(&mut self) -> (u64, bool) {
        self.order("hold");
        got(&line(&mut self.says, "got "))
    }

    /// Kills it, in the middle of whatever it does.
    fn kill(mut self) {
        self.process.kill().unwrap();
        let status = self.process.wait().unwrap();
        assert!(!status.success(), "it ended by itself");
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        // It fails when the process has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The rest of the next line that begins so; others are the test harness's. The process panics when it waits too long.
fn line(says: &mut BufReader<ChildStdout>, begin: &str) -> String {
    let mut line = String::new();
    loop {
        line.clear();
        assert_ne!(says.read_line(&mut line).unwrap(), 0, "the process has ended");
        if let Some(rest) = line.trim_end().strip_prefix(begin) {
            return rest.to_owned();
        }
    }
}

/// A message's number, and whether it was announced as a possible repeat.
fn got(line: &str) -> (u64, bool) {
    line.split_once(' ').map(|(number, repeat)| (number.parse().unwrap(), repeat == "true")).unwrap()
}

fn numbers(range: std::ops::Range<u64>, repeat: bool) -> Vec<(u64, bool)> {
    range.map(|number| (number, repeat)).collect()
}

fn send(to: &PeerHandle, range: std::ops::Range<u64>) {
    range.for_each(|number| to.send(numbered(number, 100)).unwrap());
}

/// Waits for the next session; the life of the other side, and the one that was announced as changed right before.
fn connected(node: &Node) -> (Incarnation, Option<Incarnation>) {
    let mut changed = None;
    wait_event(node, "a session begins", |event| match event {
        Event::IncarnationChanged { incarnation, .. } => {
            changed = Some(incarnation);
            None
        }
        Event::Connected { incarnation, .. } => Some((incarnation, changed)),
        _ => None,
    })
}

fn lost(node: &Node) {
    let reason = ended(node);
    assert!(matches!(reason, DisconnectReason::Lost(_)), "{reason}");
}

/// Everything that is numbered is written.
fn all_written(to: &PeerHandle) -> bool {
    let stats = to.stats();
    stats.connected && stats.queued_messages == 0 && stats.unacked_bytes == stats.kept_bytes
}

#[test]
fn what_was_not_acknowledged_comes_once_more_and_says_so() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut first = Life::begin(folder.path());
    let alice = start(quick());
    let to_bob = alice.add_peer(first.id, [first.addr]).unwrap();
    let (life, changed) = connected(&alice);
    assert_eq!(changed, None, "the first life is no change");
    send(&to_bob, 0..100);
    assert_eq!(first.take(40), numbers(0..40, false));
    wait_until("what was taken is acknowledged", || to_bob.stats().acked == 40 && all_written(&to_bob));
    let id = first.id;
    first.kill();
    lost(&alice);
    // Never written to the first life: no repeats.
    send(&to_bob, 100..110);
    let mut second = Life::begin(folder.path());
    assert_eq!(second.id, id, "the identity is the folder's");
    alice.add_peer(id, [second.addr]).unwrap();
    let (next_life, changed) = connected(&alice);
    assert!(next_life > life);
    assert_eq!(changed, Some(next_life));
    let expected = [numbers(40..100, true), numbers(100..110, false)].concat();
    assert_eq!(second.take(70), expected);
    send(&to_bob, 110..120);
    assert_eq!(second.take(10), numbers(110..120, false));
    wait_until("all are acknowledged", || to_bob.stats().acked == 120);
    let stats = to_bob.stats();
    assert_eq!((stats.accepted, stats.returned, stats.unknown, stats.sessions), (120, 0, 0, 2));
    assert_eq!(stats.kept_bytes, 0);
}

#[test]
fn what_two_lives_did_not_answer_ends_as_unknown() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let first = Life::begin(folder.path());
    let alice = start(quick());
    let to_bob = alice.add_peer(first.id, [first.addr]).unwrap();
    connected(&alice);
    send(&to_bob, 0..10);
    wait_until("all are written to the first life", || all_written(&to_bob));
    first.kill();
    lost(&alice);
    let second = Life::begin(folder.path());
    alice.add_peer(second.id, [second.addr]).unwrap();
    connected(&alice);
    assert_eq!(to_bob.stats().unknown, 0, "one restart is no answer");
    send(&to_bob, 10..13);
    wait_until("all are written to the second life", || all_written(&to_bob));
    second.kill();
    lost(&alice);
    let mut third = Life::begin(folder.path());
    alice.add_peer(third.id, [third.addr]).unwrap();
    connected(&alice);
    wait_until("what both were given is given up", || to_bob.stats().unknown == 10);
    send(&to_bob, 13..15);
    assert_eq!(third.take(5), [numbers(10..13, true), numbers(13..15, false)].concat());
    wait_until("the rest is acknowledged", || to_bob.stats().acked == 5);
    let stats = to_bob.stats();
    assert_eq!((stats.accepted, stats.returned, stats.unknown, stats.kept_bytes), (15, 0, 10, 0));
    assert!(alice.shutdown(PATIENCE).is_clean());
}

#[test]
fn a_big_message_that_was_half_written_comes_whole_and_is_no_repeat() {
    // More than the window and the buffers of a stalled path take: its end is never written to the first life.
    const BIG: usize = 16 << 20;
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let first = Life::begin(folder.path());
    let proxy = Proxy::to(first.addr);
    proxy.plan([Fault { way: Way::Up, place: Place::After(1 << 20), harm: Harm::Stall }]);
    let alice = start(quick());
    let to_bob = alice.add_peer(first.id, [proxy.addr()]).unwrap();
    connected(&alice);
    to_bob.send(numbered(0, BIG)).unwrap();
    wait_until("half of it has passed", || proxy.counts().stalls == 1);
    first.kill();
    // The stalled path says nothing of it; the next life does.
    let mut second = Life::begin(folder.path());
    proxy.lead_to(second.addr);
    assert_eq!(proxy.cut(), 1);
    lost(&alice);
    let (life, changed) = connected(&alice);
    assert_eq!(changed, Some(life));
    assert_eq!(second.take(1), [(0, false)]);
    wait_until("it is acknowledged", || to_bob.stats().acked == 1);
}

#[test]
fn a_sender_that_restarts_is_met_as_a_new_life_and_what_it_sends_is_new() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let alice = start(quick());
    let mut lives = Vec::new();
    for round in 0..3 {
        let mut life = Life::begin(folder.path());
        alice.add_peer(life.id, [life.addr]).unwrap();
        let (incarnation, changed) = connected(&alice);
        assert_eq!(changed, (round > 0).then_some(incarnation), "round {round}");
        lives.push(incarnation);
        life.order(&format!("send {} 30", alice.id()));
        for number in 0..30 {
            let message = alice.recv_timeout(PATIENCE).unwrap();
            assert!(message.payload() == numbered(number, 100), "round {round}: message {number}");
            assert!(!message.possible_repeat());
        }
        life.kill();
        lost(&alice);
    }
    assert!(lives.is_sorted_by(|before, after| before < after), "{lives:?}");
    assert!(alice.recv_timeout(std::time::Duration::ZERO).is_err());
}

#[test]
fn a_question_that_the_earlier_life_had_ends_and_one_that_it_had_not_taken_is_asked_again() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut first = Life::begin(folder.path());
    let alice = start(quick());
    let to_bob = alice.add_peer(first.id, [first.addr]).unwrap();
    connected(&alice);
    let ask = |number| to_bob.ask(numbered(number, 100), PATIENCE).unwrap();
    let taken = ask(0);
    assert_eq!(first.hold(), (0, false));
    wait_until("it was seen to be taken", || to_bob.stats().acked == 1);
    let waits = ask(1);
    wait_until("the other one is written", || all_written(&to_bob));
    first.kill();
    lost(&alice);
    let unsent = ask(2);
    let mut second = Life::begin(folder.path());
    alice.add_peer(second.id, [second.addr]).unwrap();
    // At once: its time is not up for long.
    assert_eq!(taken.wait().unwrap_err(), RequestError::Restarted);
    assert_eq!([second.hold(), second.hold()], [(1, true), (2, false)]);
    second.order("answer");
    assert!(waits.wait().unwrap().payload() == numbered(1, 100));
    assert!(unsent.wait().unwrap().payload() == numbered(2, 100));
    // What two lives did not answer is given back.
    let asked_twice = ask(3);
    wait_until("it is written to the second life", || all_written(&to_bob));
    second.kill();
    let third = Life::begin(folder.path());
    alice.add_peer(third.id, [third.addr]).unwrap();
    wait_until("there is a third session", || to_bob.stats().sessions == 3 && all_written(&to_bob));
    third.kill();
    let fourth = Life::begin(folder.path());
    alice.add_peer(fourth.id, [fourth.addr]).unwrap();
    assert_eq!(asked_twice.wait().unwrap_err(), RequestError::Unknown { payload: numbered(3, 100) });
    let stats = to_bob.stats();
    assert_eq!((stats.requests, stats.answers, stats.open_requests), (4, 2, 0));
}

#[test]
fn an_answer_to_an_earlier_life_of_the_asker_answers_nothing_of_this_one() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let alice = start(quick());
    let mut first = Life::begin(folder.path());
    alice.add_peer(first.id, [first.addr]).unwrap();
    connected(&alice);
    first.order(&format!("ask {} 0", alice.id()));
    let asked_before = alice.recv_timeout(PATIENCE).unwrap();
    first.kill();
    lost(&alice);
    let mut second = Life::begin(folder.path());
    alice.add_peer(second.id, [second.addr]).unwrap();
    connected(&alice);
    second.order(&format!("ask {} 1", alice.id()));
    let asked_now = alice.recv_timeout(PATIENCE).unwrap();
    asked_before.reply("too late").unwrap();
    asked_now.reply("in time").unwrap();
    second.order("answers");
    assert_eq!(line(&mut second.says, "answered "), "in time; 1 unknown");
}
