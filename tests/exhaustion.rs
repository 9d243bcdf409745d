//! A node whose process is out of descriptors or threads: it goes on with what it has, says why to whom it turns away,
//! and is as before when there are some again.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::net::TcpStream;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::Resource;
use socket2::{Domain, Socket, Type};
use threadwire::error::{CloseReason, DialCause, DisconnectReason};
use threadwire::{Event, PeerId};

mod common;
use common::limits::{address_space, descriptors, in_a_process_of_its_own, is_child, limit, threads};
use common::{PATIENCE, addr, handshaking, quick, reaches, start, wait_event, wait_until};

/// Lines that a node logged in this process.
struct Lines(Mutex<Vec<String>>);

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().push(format!("{} {}", record.level(), record.args()));
    }

    fn flush(&self) {}
}

static LINES: Lines = Lines(Mutex::new(Vec::new()));

fn lines_with(part: &str) -> usize {
    LINES.0.lock().iter().filter(|line| line.contains(part)).count()
}

#[test]
fn a_node_without_descriptors_waits_for_some_and_accepts_again() {
    in_a_process_of_its_own("out_of_descriptors");
}

#[test]
#[ignore = "sets a limit of its process: started by a_node_without_descriptors_waits_for_some_and_accepts_again"]
fn out_of_descriptors() {
    assert!(is_child(), "in a process of its own only");
    log::set_logger(&LINES).map(|()| log::set_max_level(log::LevelFilter::Info)).unwrap();
    let mut config = quick();
    config.handshake_timeout = Duration::from_secs(300);
    let (bob, alice, carol) = (start(config), start(quick()), start(quick()));
    alice.connect(addr(&bob)).unwrap();
    let before = descriptors();
    // Both ends are in this process. These have their descriptor already, and dial when there are no more.
    let late: Vec<_> = (0..3).map(|_| Socket::new(Domain::IPV4, Type::STREAM, None).unwrap()).collect();
    limit(Resource::Nofile, Some(before as u64 + 20));
    let mut strangers = Vec::new();
    while let Ok(stranger) = TcpStream::connect(addr(&bob)) {
        strangers.push(stranger);
        assert!(strangers.len() < 40, "the limit does nothing");
    }
    late.iter().for_each(|socket| socket.connect(&addr(&bob).into()).unwrap());
    let all = (1 + strangers.len() + late.len()) as u64;
    wait_until("it was tried again by the timer", || bob.metrics().accepts_starved >= 4);
    assert!(bob.metrics().accepted <= all - late.len() as u64, "{:?}", bob.metrics());
    reaches(&alice, &bob);
    assert_eq!((lines_with("trying again every"), lines_with("accepting again")), (1, 0));

    // All at once: accepted one after the other, they must not run out of them again.
    limit(Resource::Nofile, None);
    wait_until("those that waited are accepted, without another event", || bob.metrics().accepted == all);
    drop((late, strangers));
    carol.connect(addr(&bob)).unwrap();
    reaches(&carol, &bob);
    wait_until("the strangers have gone", || bob.sessions().len() == 2);
    assert_eq!((lines_with("trying again every"), lines_with("accepting again")), (1, 1));
    assert_eq!(bob.metrics().accept_errors, bob.metrics().accepts_starved);
    assert!(carol.shutdown(PATIENCE).is_clean());
    wait_until("nothing but the first session is left", || bob.sessions().len() == 1 && descriptors() <= before);
}

#[test]
fn a_thread_that_the_system_refuses_costs_one_session_and_is_told() {
    in_a_process_of_its_own("out_of_threads");
}

#[test]
#[ignore = "sets a limit of its process: started by a_thread_that_the_system_refuses_costs_one_session_and_is_told"]
fn out_of_threads() {
    assert!(is_child(), "in a process of its own only");
    log::set_logger(&LINES).map(|()| log::set_max_level(log::LevelFilter::Warn)).unwrap();
    let mut config = quick();
    // A stack that does not fit into what is left of the address space.
    config.threads.rx_stack = 1 << 30;
    let (bob, carol, alice) = (start(config), start(quick()), start(quick()));
    carol.connect(addr(&bob)).unwrap();
    wait_until("the first session stands", || bob.sessions().len() == 1 && handshaking(&bob) == 0);
    let before = (descriptors(), threads());
    limit(Resource::As, Some(address_space() + (256 << 20)));
    let to_bob = alice.add_peer(bob.id(), bob.local_addr()).unwrap();
    to_bob.send("kept").unwrap();
    wait_event(&alice, "it is told why", |event| match event {
        Event::Disconnected { reason: DisconnectReason::Remote(CloseReason::NoResources), .. } => Some(()),
        Event::DialFailed { error, .. } if error.cause == DialCause::Refused(CloseReason::NoResources) => Some(()),
        _ => None,
    });
    let told = Instant::now();
    let metrics = bob.metrics();
    assert_eq!((metrics.spawns_failed, metrics.sessions_started, metrics.sessions_ended), (1, 1, 0));
    assert_eq!(lines_with("the system refused a thread"), 1, "{:?}", LINES.0.lock());
    reaches(&carol, &bob);

    limit(Resource::As, None);
    let connected = |event| matches!(event, Event::Connected { .. }).then_some(());
    wait_event(&alice, "it comes back", connected);
    assert!(told.elapsed() > Duration::from_secs(4), "it was asked to stay away for five: {:?}", told.elapsed());
    assert_eq!(bob.recv_timeout(PATIENCE).unwrap().payload(), b"kept");
    wait_until("it is acknowledged", || to_bob.stats().acked == 1);
    reaches(&alice, &bob);
    let peers: Vec<Option<PeerId>> = bob.sessions().iter().map(|session| session.peer).collect();
    assert_eq!(peers, [Some(carol.id()), Some(alice.id())]);
    assert!(alice.shutdown(PATIENCE).is_clean());
    wait_until("it has gone", || bob.sessions().len() == 1);
    drop(alice);
    wait_until("no thread and no descriptor is left", || {
        let now = (descriptors(), threads());
        now.0 <= before.0 && now.1 <= before.1
    });
}
