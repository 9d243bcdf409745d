//! Processes that are frozen under traffic: cut in time by whoever waits for them, and after the thaw one session again,
//! nothing lost, nothing twice.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]
#![cfg(unix)]

use std::io::{BufRead, BufReader, Write, stdin};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};
use threadwire::error::{CloseReason, DisconnectReason};
use threadwire::{Event, Node};

mod common;
use common::ledger::{Ledger, Verdict, numbered};
use common::{PATIENCE, alone, quick, start, wait_until};

const ROLE: &str = "THREADWIRE_TEST_FROZEN";
const IDLE: Duration = Duration::from_secs(2);

/// Not a test: the processes of the tests below, which start this executable again for them. Each serves one node and
/// does what its standard input says; at the end of that it ends.
#[test]
fn process() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    let mut config = quick();
    (config.heartbeat, config.idle_timeout) = (Duration::from_millis(200), IDLE);
    config.handshake_timeout = Duration::from_secs(1);
    let node = start(config);
    println!("\nat {} {}", node.id(), node.local_addr().unwrap());
    let (stop, ledger) = (AtomicBool::new(false), Arc::new(Ledger::default()));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while let Ok(message) = node.recv() {
                ledger.enter(message.payload(), message.possible_repeat());
            }
        });
        scope.spawn(|| node.events().iter().for_each(tell));
        let mut flood = None;
        for line in stdin().lines() {
            let line = line.unwrap();
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["flood", id, addr] => {
                    let addr: SocketAddr = addr.parse().unwrap();
                    let peer = node.add_peer(id.parse().unwrap(), [addr]).unwrap();
                    let stop = &stop;
                    flood = Some(scope.spawn(move || {
                        let mut sent = 0;
                        while !stop.load(Ordering::Relaxed) {
                            peer.send(numbered(sent, 200)).unwrap();
                            sent += 1;
                            std::thread::sleep(Duration::from_micros(200));
                        }
                        sent
                    }));
                }
                ["came"] => println!("\ncame {}", ledger.came()),
                ["stop"] => {
                    stop.store(true, Ordering::Relaxed);
                    println!("\nsent {}", flood.take().unwrap().join().unwrap());
                }
                ["report", expected] => {
                    let expected: u64 = expected.parse().unwrap();
                    wait_until("all came and is acknowledged", || {
                        let stats = node.peers()[0].stats;
                        ledger.came() == expected && stats.acked == stats.accepted && open(&node) == 1
                    });
                    let verdict = ledger.verdict();
                    assert_eq!(verdict, Verdict::perfect(expected));
                    println!("\nreport {} {}", open(&node), node.peers()[0].stats.sessions);
                }
                _ => panic!("{line:?}"),
            }
        }
        std::process::exit(0);
    });
}

/// Sessions that run now.
fn open(node: &Node) -> u64 {
    let metrics = node.metrics();
    metrics.sessions_started - metrics.sessions_ended
}

fn tell(event: Event) {
    match event {
        Event::Connected { .. } => println!("\nconnected"),
        Event::Disconnected { reason, unacked_bytes, .. } => {
            let idle = reason == DisconnectReason::Local(CloseReason::Idle);
            println!("\nended {idle} {unacked_bytes} {reason}");
        }
        _ => {}
    }
}

/// A process with a node. It is killed when this is dropped, frozen or not.
struct Process {
    child: Child,
    says: Receiver<String>,
    id: String,
    addr: String,
}

impl Process {
    #[expect(clippy::disallowed_methods, reason = "the crate's own way to start threads is not public")]
    fn begin() -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["process", "--exact", "--nocapture", "--test-threads=1"])
            .env(ROLE, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (say, says) = unbounded();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // It ends with the process.
        drop(std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| say.send(line))));
        let mut process = Self { child, says, id: String::new(), addr: String::new() };
        let at = process.hear("at ");
        let (id, addr) = at.split_once(' ').unwrap();
        (process.id, process.addr) = (id.to_owned(), addr.to_owned());
        process
    }

    fn order(&mut self, order: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{order}").unwrap();
    }

    /// The rest of the next line that begins so.
    #[track_caller]
    fn hear(&mut self, begin: &str) -> String {
        let deadline = Instant::now() + 2 * PATIENCE;
        loop {
            let line = self.says.recv_deadline(deadline).unwrap_or_else(|_| panic!("no line that begins {begin:?}"));
            if let Some(rest) = line.strip_prefix(begin) {
                return rest.to_owned();
            }
        }
    }

    fn came(&mut self) -> u64 {
        self.order("came");
        self.hear("came ").parse().unwrap()
    }

    /// Waits until messages flow in.
    fn flows(&mut self) {
        let before = self.came();
        wait_until("messages flow", || self.came() > before + 200);
    }

    fn signal(&self, name: &str) {
        let done = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(done.success());
    }

    /// Whether the system says that it stands still.
    fn is_frozen(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        // Where there is no such file, the cut that follows is the proof.
        stat.map_or(true, |stat| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T')))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // They fail when the process has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two processes that flood each other.
fn pair() -> [Process; 2] {
    let mut both = [Process::begin(), Process::begin()];
    for at in 0..2 {
        let order = format!("flood {} {}", both[1 - at].id, both[1 - at].addr);
        both[at].order(&order);
    }
    both.iter_mut().for_each(Process::flows);
    both
}

/// Freezes one of them until the other one has cut it; that one's count of bytes it had written by then and not seen
/// acknowledged.
fn freeze(both: &mut [Process; 2], frozen: usize) -> usize {
    both[frozen].signal("-STOP");
    wait_until("it stands still", || both[frozen].is_frozen());
    // What was said before, as of two dials at once, is no cut.
    while both[1 - frozen].says.try_recv().is_ok() {}
    let begin = Instant::now();
    let ended = both[1 - frozen].hear("ended ");
    let took = begin.elapsed();
    let words: Vec<&str> = ended.splitn(3, ' ').collect();
    assert_eq!(words[0], "true", "{ended}");
    assert!((IDLE / 2..5 * IDLE).contains(&took), "cut after {took:?}");
    words[1].parse().unwrap()
}

fn settle(both: &mut [Process; 2]) {
    both.iter_mut().for_each(Process::flows);
    both.iter_mut().for_each(|process| process.order("stop"));
    let sent = both.each_mut().map(|process| process.hear("sent "));
    for (at, process) in both.iter_mut().enumerate() {
        process.order(&format!("report {}", sent[1 - at]));
    }
    for process in both {
        let report = process.hear("report ");
        let (open, sessions) = report.split_once(' ').unwrap();
        assert_eq!(open, "1", "one session");
        assert!(sessions.parse::<u64>().unwrap() >= 2, "{sessions}");
    }
}

#[test]
fn a_frozen_process_is_cut_in_time_and_has_one_session_and_all_messages_after_the_thaw() {
    let _alone = alone();
    let mut both = pair();
    // Whichever of the two decides about the link.
    for frozen in 0..2 {
        let unacked = freeze(&mut both, frozen);
        assert!(unacked > 0, "its socket holds what it has not read");
        both[frozen].signal("-CONT");
        both.iter_mut().for_each(Process::flows);
    }
    settle(&mut both);
}

#[test]
fn processes_that_are_frozen_after_each_other_find_together_again() {
    let _alone = alone();
    let mut both = pair();
    freeze(&mut both, 0);
    // The other one is dialling a process that cannot answer, and is frozen over that.
    both[1].signal("-STOP");
    wait_until("both stand still", || both.iter().all(Process::is_frozen));
    both[0].signal("-CONT");
    // The first one reads what was buffered, and finds the other one silent in turn.
    let ended = both[0].hear("ended ");
    assert!(!ended.is_empty());
    std::thread::sleep(IDLE);
    both[1].signal("-CONT");
    settle(&mut both);
}
