//! What connections, lookups and queues begin with.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use socket2::{SockRef, Socket};
use threadwire::Node;
use threadwire::config::Config;
use threadwire::error::{CloseReason, ConnectError, DialCause, SendErrorKind};

use crate::common::limits::address_space;
use crate::common::names::Names;
use crate::common::{PATIENCE, link, start, wait_until};
use crate::effects::{Effect, SHORT, lasting};
use crate::{Change, changed, nobody};

pub(crate) const EFFECTS: &[Effect] = &[
    (&["resolve_threads"], a_name_that_nobody_has_asked_for_has_a_thread),
    (&["advertise"], peers_are_told_another_address),
    (&["unknown_bytes"], less_may_wait_for_a_peer_that_nobody_knows),
    (&["window_bytes"], more_may_be_on_its_way_from_the_next_connection_on),
    (&["threads.rx_stack", "threads.rx_handler_stack", "threads.tx_stack"], threads_have_other_stacks),
    (&["tcp.nodelay", "tcp.keepalive", "tcp.user_timeout", "tcp.notsent_low_water_mark"], sockets_have_other_options),
];

fn a_name_that_nobody_has_asked_for_has_a_thread() {
    let names = Names::default();
    let _revived = names.until_dropped();
    let config = changed(&lasting(), |config| (config.resolve_threads, config.resolve_timeout) = (1, SHORT));
    let alice = Node::builder().config(config.clone()).resolver(names.clone()).start().unwrap();
    let cause = |at: &str| match alice.connect(at) {
        Err(ConnectError::Dial(mut errors)) => errors.remove(0).cause,
        other => panic!("{other:?}"),
    };
    assert_eq!(cause("dead-1:1"), DialCause::TimedOut(SHORT));
    assert_eq!(cause("dead-2:1"), DialCause::ResolversBusy);
    alice.reload(&changed(&config, |config| config.resolve_threads = 2)).unwrap();
    assert_eq!(cause("dead-2:1"), DialCause::TimedOut(SHORT));
    assert_eq!((names.asked("dead-2"), names.hanging()), (1, 2));
    alice.reload(&config).unwrap();
    assert_eq!(cause("dead-3:1"), DialCause::ResolversBusy);
}

fn peers_are_told_another_address() {
    let (alice, bob) = (start(lasting()), start(lasting()));
    let public = Some("192.0.2.1:5".parse().unwrap());
    bob.reload(&changed(&lasting(), |config| config.advertise = public)).unwrap();
    link(&alice, &bob);
    assert_eq!(alice.peers()[0].advertised, public);
}

fn less_may_wait_for_a_peer_that_nobody_knows() {
    let alice = start(lasting());
    let peer = alice.peer(nobody()).unwrap();
    peer.try_send([1; 1000]).unwrap();
    alice.reload(&changed(&lasting(), |config| config.unknown_bytes = 1500)).unwrap();
    assert_eq!(peer.try_send([2; 1000]).unwrap_err().kind, SendErrorKind::Full);
    alice.reload(&lasting()).unwrap();
    peer.try_send([3; 1000]).unwrap();
    assert_eq!(peer.stats().queued_messages, 2);
}

fn more_may_be_on_its_way_from_the_next_connection_on() {
    const SMALL: usize = 256 << 10;
    let config = changed(&lasting(), |config| (config.window_bytes, config.queue_bytes) = (SMALL, 8 << 20));
    // Nobody takes what comes.
    let (alice, bob) = (start(config.clone()), start(config.clone()));
    let to_bob = link(&alice, &bob);
    bob.wait_connected(alice.id(), PATIENCE).unwrap();
    while to_bob.try_send(vec![7; 16_000]).is_ok() {}
    let large = changed(&config, |config| config.window_bytes = 16 * SMALL);
    [&alice, &bob].into_iter().for_each(|node| drop(node.reload(&large).unwrap()));
    assert!(to_bob.stats().unacked_bytes <= 2 * SMALL, "{:?}", to_bob.stats());
    bob.disconnect(alice.id(), CloseReason::Requested).unwrap();
    wait_until("more is on its way", || to_bob.stats().unacked_bytes > 4 * SMALL);
    alice.shutdown(Duration::ZERO);
}

fn threads_have_other_stacks() {
    // No allocator takes as much for itself.
    const STACK: usize = 1 << 30;
    let stacks: [(bool, Change); 3] = [
        (false, |config| config.threads.rx_stack = STACK),
        (true, |config| config.threads.rx_handler_stack = STACK),
        (false, |config| config.threads.tx_stack = STACK),
    ];
    for (handler, enlarge) in stacks {
        let builder = Node::builder().config(lasting());
        let bob = if handler { builder.handler(|_, _| {}) } else { builder }.start().unwrap();
        let nodes = [start(lasting()), start(lasting())];
        link(&nodes[0], &bob);
        bob.wait_connected(nodes[0].id(), PATIENCE).unwrap();
        let before = address_space();
        bob.reload(&changed(&lasting(), enlarge)).unwrap();
        link(&nodes[1], &bob);
        bob.wait_connected(nodes[1].id(), PATIENCE).unwrap();
        let now = address_space();
        assert!(now >= before + STACK as u64, "{now} bytes after {before}");
    }
}

/// A socket of this process, by its two ends: a descriptor of its own.
fn socket(node: &Node) -> Option<Socket> {
    let [session] = node.sessions()[..] else { panic!("{:?}", node.sessions()) };
    let own = pidfd_open(getpid(), PidfdFlags::empty()).ok()?;
    let all = std::fs::read_dir("/proc/self/fd").unwrap();
    let numbers = all.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let mut copies = numbers.filter_map(|number| pidfd_getfd(&own, number, PidfdGetfdFlags::empty()).ok()).peekable();
    copies.peek()?;
    let is_it = |copy: &OwnedFd| {
        let socket = SockRef::from(copy);
        let ends = [socket.local_addr(), socket.peer_addr()].map(|addr| addr.ok().and_then(|addr| addr.as_socket()));
        ends == [session.local_addr, Some(session.remote_addr)]
    };
    Some(Socket::from(copies.find(is_it).unwrap()))
}

/// The options that the configuration has a say in.
fn options(socket: &Socket) -> (bool, Option<Duration>, Option<Duration>, u32) {
    let keepalive = socket.keepalive().unwrap().then(|| socket.tcp_keepalive_time().unwrap());
    (socket.tcp_nodelay().unwrap(), keepalive, socket.tcp_user_timeout().unwrap(), socket.tcp_notsent_lowat().unwrap())
}

fn sockets_have_other_options() {
    let (alice, bob) = (start(lasting()), start(lasting()));
    let other = changed(&lasting(), |config| {
        (config.tcp.nodelay, config.tcp.keepalive) = (false, Some(Duration::from_secs(77)));
        (config.tcp.user_timeout, config.tcp.notsent_low_water_mark) = (Some(Duration::from_secs(88)), Some(99_000));
    });
    let of = |config: &Config| {
        let tcp = &config.tcp;
        (tcp.nodelay, tcp.keepalive, tcp.user_timeout, tcp.notsent_low_water_mark.unwrap())
    };
    link(&alice, &bob);
    bob.wait_connected(alice.id(), PATIENCE).unwrap();
    if socket(&alice).is_none() {
        return println!("not shown here: the system gives no copy of a descriptor");
    }
    for node in [&alice, &bob] {
        assert_eq!(options(&socket(node).unwrap()), of(&lasting()));
        node.reload(&other).unwrap();
        assert_eq!(options(&socket(node).unwrap()), of(&lasting()), "a connection keeps what it has");
    }
    alice.disconnect(bob.id(), CloseReason::Requested).unwrap();
    wait_until("there is another one", || {
        [&alice, &bob].iter().all(|node| node.metrics().sessions_started == 2 && node.sessions().len() == 1)
    });
    for node in [&alice, &bob] {
        assert_eq!(options(&socket(node).unwrap()), of(&other));
    }
}
