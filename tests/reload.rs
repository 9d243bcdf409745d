//! Another configuration for a node that runs: every field taken or refused, lowered limits, moved addresses, and a storm.
//!
//! Owns: nodes on the loopback interface. Threads: the test's. Locks: none. Blocks on: facts, with a deadline.
//! Upholds: what is refused changes nothing; what is taken cuts nobody who is within it, and loses nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use threadwire::config::{BackoffPolicy, Channel, Closed, Config, Exposure, Offline, Peer, TrustMode};
use threadwire::error::{CloseReason, ConnectError, DialCause, DisconnectReason, ReloadError, SendErrorKind};
use threadwire::handshake::Identity;
use threadwire::{Event, Node, PeerId, SendOptions};

mod common;

use common::{NOWHERE, PATIENCE, addr, alone, link, quick, reaches, start, wait_event, wait_until};

/// A change of a configuration.
type Change = fn(&mut Config);

fn changed(config: &Config, change: impl FnOnce(&mut Config)) -> Config {
    let mut config = config.clone();
    change(&mut config);
    config
}

fn nobody() -> PeerId {
    Identity::generate().unwrap().peer_id()
}

/// The fields of a section that the file format knows: the refusal of an unknown one lists them.
fn fields_of_file(section: &str) -> Vec<String> {
    let header = if section.is_empty() { String::new() } else { format!("[{section}]\n") };
    let error = Config::parse(&format!("{header}zzz = 1\n"), "x").unwrap_err();
    error.what.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Every field there is, as a path.
fn all_fields() -> Vec<String> {
    let sections = ["security", "backoff", "tcp", "threads", "metrics", "log"];
    let mut all = fields_of_file("");
    all.retain(|field| !sections.contains(&field.as_str()));
    for section in sections {
        all.extend(fields_of_file(section).into_iter().map(|field| format!("{section}.{field}")));
    }
    all.sort();
    all
}

const FIXED: [&str; 4] = ["data_dir", "network", "security.channel", "security.key"];

/// For each live field another value that is allowed.
const LIVE: &[(&str, Change)] = &[
    ("listen", |config| config.listen = vec!["127.0.0.1:0".parse().unwrap(); 2]),
    ("advertise", |config| config.advertise = Some("192.0.2.1:5".parse().unwrap())),
    ("resolve_timeout", |config| config.resolve_timeout *= 2),
    ("connect_timeout", |config| config.connect_timeout *= 2),
    ("handshake_timeout", |config| config.handshake_timeout *= 2),
    ("heartbeat", |config| config.heartbeat /= 2),
    ("idle_timeout", |config| config.idle_timeout *= 2),
    ("write_timeout", |config| config.write_timeout *= 2),
    ("slow_after", |config| config.slow_after *= 2),
    ("handler_watchdog", |config| config.handler_watchdog *= 2),
    ("stable_after", |config| config.stable_after *= 2),
    ("resume_window", |config| config.resume_window *= 2),
    ("ack_delay", |config| config.ack_delay *= 2),
    ("send_deadline", |config| config.send_deadline *= 2),
    ("queue_messages", |config| config.queue_messages = 10),
    ("offline", |config| config.offline = Offline::Return),
    ("message_ttl", |config| config.message_ttl = Some(Duration::from_secs(60))),
    ("queue_bytes", |config| config.queue_bytes /= 2),
    ("requests", |config| config.requests = 7),
    ("unknown_peers", |config| config.unknown_peers = 7),
    ("unknown_bytes", |config| config.unknown_bytes /= 2),
    ("unknown_timeout", |config| config.unknown_timeout *= 2),
    ("window_bytes", |config| config.window_bytes *= 2),
    ("max_message", |config| config.max_message /= 2),
    ("memory_bytes", |config| config.memory_bytes /= 2),
    ("inbound", |config| config.inbound = 7),
    ("outbound", |config| config.outbound = 7),
    ("half_open", |config| config.half_open = 7),
    ("resolve_threads", |config| config.resolve_threads = 7),
    ("half_open_per_ip", |config| config.half_open_per_ip = Some(7)),
    ("inbound_per_ip", |config| config.inbound_per_ip = Some(7)),
    ("max_threads", |config| config.max_threads = Some(17)),
    ("peer", |config| config.peers = vec![Peer::new("absent", nobody(), ["127.0.0.1:1".parse().unwrap()])]),
    ("security.trust", |config| config.security.trust = TrustMode::Listed),
    ("security.trusted", |config| config.security.trusted.push(nobody())),
    ("security.roots", |_| ()),
    ("security.certificate", |_| ()),
    ("security.public", |config| config.security.public = vec![Exposure::Open]),
    ("backoff.policy", |config| config.backoff.policy = BackoffPolicy::Exponential),
    ("backoff.base", |config| config.backoff.base *= 2),
    ("backoff.cap", |config| config.backoff.cap *= 2),
    ("backoff.jitter", |config| config.backoff.jitter = 0.1),
    ("tcp.nodelay", |config| config.tcp.nodelay = false),
    ("tcp.keepalive", |config| config.tcp.keepalive = None),
    ("tcp.user_timeout", |config| config.tcp.user_timeout = None),
    ("tcp.notsent_low_water_mark", |config| config.tcp.notsent_low_water_mark = None),
    ("threads.rx_stack", |config| config.threads.rx_stack *= 2),
    ("threads.rx_handler_stack", |config| config.threads.rx_handler_stack *= 2),
    ("threads.tx_stack", |config| config.threads.tx_stack *= 2),
    ("metrics.listen", |config| config.metrics.listen = Some("127.0.0.1:0".parse().unwrap())),
    ("log.level", |config| config.log.level = log::LevelFilter::Trace),
    ("log.file", |config| config.log.file = Some("node.log".into())),
];

#[test]
fn every_live_field_is_taken_alone_and_given_back_and_nobody_is_cut_for_it() {
    let _alone = alone();
    let mut tables: Vec<_> = LIVE.iter().map(|(field, _)| *field).chain(FIXED).collect();
    tables.sort_unstable();
    assert_eq!(tables, all_fields(), "every field is in one of the two tables");

    let identity = Identity::generate().unwrap();
    // Listed, so that a change of whom it lists is one; it lists who is there.
    let mut listed = quick();
    listed.security.trust = TrustMode::Listed;
    listed.security.trusted = vec![identity.peer_id()];
    let open = changed(&listed, |config| (config.security.trust, config.security.trusted) = (TrustMode::Open, vec![]));
    let bob = start(listed.clone());
    let alice = Node::builder().config(quick()).identity(identity).start().unwrap();
    link(&alice, &bob);
    bob.wait_connected(alice.id(), PATIENCE).unwrap();
    for (field, change) in LIVE {
        if ["security.roots", "security.certificate"].contains(field) {
            // Files: in `tests/trust.rs`.
            continue;
        }
        let config = if *field == "security.trust" { open.clone() } else { changed(&listed, change) };
        let expected: &[&str] =
            if *field == "security.trust" { &["security.trust", "security.trusted"] } else { &[field] };
        for config in [&config, &listed] {
            let report = bob.reload(config).unwrap_or_else(|error| panic!("{field}: {error}"));
            assert_eq!((report.changed.as_slice(), report.closed.as_slice()), (expected, &[][..]), "{field}");
            let told = wait_event(&bob, "it is told", |event| match event {
                Event::ConfigReloaded { report, .. } => Some(report),
                _ => None,
            });
            assert_eq!(told, report);
            reaches(&alice, &bob);
            reaches(&bob, &alice);
        }
    }
    assert_eq!(bob.reload(&listed).unwrap().changed, [""; 0], "nothing is left of it");
    for node in [&alice, &bob] {
        assert_eq!((node.metrics().sessions_started, node.metrics().sessions_ended), (1, 0));
    }
}

#[test]
fn every_fixed_field_and_every_value_that_is_not_allowed_is_refused_by_name_and_changes_nothing() {
    let _alone = alone();
    let config = quick();
    let (alice, bob) = (start(quick()), start(config.clone()));
    link(&alice, &bob);
    let other = if config.security.channel == Channel::Plain { None } else { Some(Channel::Plain) };
    let mut fixed: Vec<(&str, Config)> = vec![
        ("network", changed(&config, |config| config.network = "other".to_owned())),
        ("data_dir", changed(&config, |config| config.data_dir = Some("elsewhere".into()))),
        ("security.key", changed(&config, |config| config.security.key = Some("key.pem".into()))),
    ];
    fixed.extend(other.map(|other| ("security.channel", changed(&config, |config| config.security.channel = other))));
    for (field, config) in fixed {
        // Nothing of the rest is taken either.
        let config = changed(&config, |config| config.inbound = 7);
        let error = bob.reload(&config).unwrap_err();
        assert!(matches!(&error, ReloadError::Fixed { field: named, .. } if *named == field), "{field}: {error}");
        assert!(error.to_string().contains("start it anew"), "{error}");
    }
    let wrong: &[(&str, Change)] = &[
        ("listen", |config| config.listen = vec!["127.0.0.1:7".parse().unwrap(); 2]),
        ("advertise", |config| config.advertise = Some("0.0.0.0:5".parse().unwrap())),
        ("network", |config| config.network = String::new()),
        ("data_dir", |config| config.data_dir = Some("".into())),
        ("resolve_timeout", |config| config.resolve_timeout = Duration::ZERO),
        ("connect_timeout", |config| config.connect_timeout = Duration::ZERO),
        ("handshake_timeout", |config| config.handshake_timeout = Duration::ZERO),
        ("heartbeat", |config| config.heartbeat = Duration::ZERO),
        ("idle_timeout", |config| config.idle_timeout = config.heartbeat),
        ("write_timeout", |config| config.write_timeout = Duration::ZERO),
        ("slow_after", |config| config.slow_after = config.write_timeout),
        ("handler_watchdog", |config| config.handler_watchdog = Duration::ZERO),
        ("stable_after", |config| config.stable_after = Duration::ZERO),
        ("resume_window", |config| config.resume_window = Duration::ZERO),
        ("ack_delay", |config| config.ack_delay = Duration::from_secs(2)),
        ("send_deadline", |config| config.send_deadline = Duration::ZERO),
        ("queue_messages", |config| config.queue_messages = 0),
        ("message_ttl", |config| config.message_ttl = Some(Duration::ZERO)),
        ("queue_bytes", |config| config.queue_bytes = usize::MAX),
        ("requests", |config| config.requests = 0),
        ("unknown_peers", |config| config.unknown_peers = usize::MAX),
        ("unknown_bytes", |config| config.unknown_bytes = 0),
        ("unknown_timeout", |config| config.unknown_timeout = Duration::ZERO),
        ("window_bytes", |config| config.window_bytes = 1),
        ("max_message", |config| config.max_message = 0),
        ("memory_bytes", |config| config.inbound = 1 << 30),
        ("inbound", |config| (config.inbound, config.outbound) = (0, 0)),
        ("half_open", |config| config.half_open = 0),
        ("resolve_threads", |config| config.resolve_threads = 65),
        ("half_open_per_ip", |config| config.half_open_per_ip = Some(0)),
        ("inbound_per_ip", |config| config.inbound_per_ip = Some(0)),
        ("max_threads", |config| config.max_threads = Some(5)),
        ("security.trusted", |config| config.security.trusted = vec![PeerId::from_bytes([1; 32])]),
        ("security.trust", |config| config.listen = vec!["0.0.0.0:0".parse().unwrap()]),
        ("security.certificate", |config| config.security.certificate = Some("".into())),
        ("backoff.base", |config| config.backoff.base = Duration::ZERO),
        ("backoff.cap", |config| config.backoff.cap = Duration::from_millis(1)),
        ("backoff.jitter", |config| config.backoff.jitter = 1.5),
        ("tcp.keepalive", |config| config.tcp.keepalive = Some(Duration::from_millis(1500))),
        ("tcp.user_timeout", |config| config.tcp.user_timeout = Some(Duration::ZERO)),
        ("tcp.notsent_low_water_mark", |config| config.tcp.notsent_low_water_mark = Some(0)),
        ("threads.rx_stack", |config| config.threads.rx_stack = 1),
        ("threads.rx_handler_stack", |config| config.threads.rx_handler_stack = 1),
        ("threads.tx_stack", |config| config.threads.tx_stack = 1),
        ("metrics.listen", |config| config.metrics.listen = Some("224.0.0.1:1".parse().unwrap())),
        ("log.file", |config| config.log.file = Some("".into())),
        ("peer[0].name", |config| config.peers = vec![Peer::new("", PeerId::from_bytes([1; 32]), [])]),
    ];
    // The rest cannot be wrong once it is of its type, or is refused above.
    let never =
        ["offline", "outbound", "peer", "security.channel", "security.key", "security.public", "security.roots"];
    let never = never.into_iter().chain(["backoff.policy", "tcp.nodelay", "log.level"]);
    let mut tables: Vec<_> = wrong.iter().map(|(field, _)| *field).filter(|field| *field != "peer[0].name").collect();
    tables.extend(never);
    tables.sort_unstable();
    assert_eq!(tables, all_fields());
    for (field, change) in wrong {
        let mut config = changed(&config, change);
        config.resume_window = if *field == "resume_window" { config.resume_window } else { config.resume_window * 2 };
        let error = bob.reload(&config).unwrap_err();
        assert!(matches!(&error, ReloadError::NotAllowed { field: named, .. } if named == field), "{field}: {error}");
        wait_event(&bob, "it is told", |event| match event {
            Event::ConfigRefused { error: told, .. } => (told == error).then_some(()),
            _ => None,
        });
    }
    let own = changed(&config, |config| {
        config.peers = vec![Peer::new("me", bob.id(), ["127.0.0.1:1".parse().unwrap()])];
    });
    let error = bob.reload(&own).unwrap_err();
    assert!(matches!(&error, ReloadError::NotAllowed { field, .. } if field == "peer[0].id"), "{error}");
    let missing = changed(&config, |config| {
        config.security.trust = TrustMode::Listed;
        config.security.certificate = Some("/nowhere/north.pem".into());
    });
    if config.security.channel == Channel::Tls {
        let error = bob.reload(&missing).unwrap_err();
        assert!(matches!(&error, ReloadError::File(what) if what.place == "security.certificate"), "{error}");
    }
    // As it was.
    assert_eq!(bob.reload(&config).unwrap().changed, [""; 0]);
    reaches(&alice, &bob);
    assert_eq!((bob.metrics().sessions_started, bob.metrics().sessions_ended), (1, 0));
}

/// Why each of these nodes lost its session with another one.
fn told(node: &Node) -> DisconnectReason {
    wait_event(node, "its session ends", |event| match event {
        Event::Disconnected { reason, .. } => Some(reason),
        _ => None,
    })
}

fn went(closed: &[Closed]) -> Vec<(PeerId, CloseReason)> {
    closed.iter().map(|closed| (closed.peer, closed.reason)).collect()
}

#[test]
fn sessions_over_a_lowered_limit_go_with_its_reason_those_that_began_last_first() {
    let _alone = alone();
    let limits: [(Change, CloseReason); 3] = [
        (|config| config.inbound = 1, CloseReason::TooMany),
        (|config| config.inbound_per_ip = Some(1), CloseReason::TooMany),
        (|config| config.max_threads = Some(6), CloseReason::NoResources),
    ];
    for (lower, reason) in limits {
        let config = quick();
        let bob = start(config.clone());
        let others: Vec<Node> = (0..3).map(|_| start(quick())).collect();
        for other in &others {
            other.connect(addr(&bob)).unwrap();
            bob.wait_connected(other.id(), PATIENCE).unwrap();
        }
        let report = bob.reload(&changed(&config, lower)).unwrap();
        assert_eq!(went(&report.closed), [(others[2].id(), reason), (others[1].id(), reason)]);
        for other in &others[1..] {
            assert_eq!(told(other), DisconnectReason::Remote(reason));
        }
        reaches(&others[0], &bob);
        wait_until("the two have ended", || bob.sessions().len() == 1);
        // And nobody else comes in, until the limit is raised.
        let refused = others[1].connect(addr(&bob));
        let Err(ConnectError::Dial(errors)) = refused else { panic!("{refused:?}") };
        assert_eq!(errors[0].cause, DialCause::Refused(reason));
        assert_eq!(bob.reload(&config).unwrap().closed, []);
        others[1].connect(addr(&bob)).unwrap();
        assert_eq!(bob.metrics().sessions_ended, 2);
    }
}

#[test]
fn of_peers_that_are_kept_as_many_stay_as_may_be_dialled_and_the_rest_wait_for_a_place() {
    let _alone = alone();
    let config = quick();
    let (alice, others) = (start(config.clone()), [start(quick()), start(quick()), start(quick())]);
    others.iter().for_each(|other| drop(link(&alice, other)));
    let one = changed(&config, |config| config.outbound = 1);
    let closed = alice.reload(&one).unwrap().closed;
    let too_many = CloseReason::TooMany;
    assert_eq!(went(&closed), [(others[2].id(), too_many), (others[1].id(), too_many)]);
    wait_until("one is left", || alice.sessions().len() == 1);
    assert_eq!(told(&others[2]), DisconnectReason::Remote(too_many));
    reaches(&alice, &others[0]);
    assert_eq!(alice.metrics().sessions_started, 3);
    // What is sent to the others waits, and goes when there is a place again.
    alice.send(others[1].id(), "late").unwrap();
    alice.reload(&config).unwrap();
    assert_eq!(others[1].recv_timeout(PATIENCE).unwrap().payload(), b"late");
    alice.wait_connected(others[2].id(), PATIENCE).unwrap();
}

#[test]
fn silent_strangers_over_a_lowered_limit_go_and_no_session_does() {
    let _alone = alone();
    for lower in [(|config| config.half_open = 1) as Change, |config| config.half_open_per_ip = Some(1)] {
        let config = quick();
        let (alice, bob) = (start(quick()), start(config.clone()));
        link(&alice, &bob);
        bob.wait_connected(alice.id(), PATIENCE).unwrap();
        let strangers: Vec<TcpStream> = (0..4).map(|_| TcpStream::connect(addr(&bob)).unwrap()).collect();
        wait_until("they are in", || common::handshaking(&bob) == 4);
        assert_eq!(bob.reload(&changed(&config, lower)).unwrap().closed, []);
        assert_eq!(common::handshaking(&bob), 1);
        assert_eq!(bob.metrics().evicted, 3);
        reaches(&alice, &bob);
        drop(strangers);
    }
}

#[test]
fn a_node_listens_elsewhere_and_its_sessions_stay() {
    let _alone = alone();
    let config = quick();
    let (alice, bob) = (start(quick()), start(config.clone()));
    link(&alice, &bob);
    let old = addr(&bob);
    // Beside it, then instead of it: port 0 is the socket that there is, and it may be named.
    let two = changed(&config, |config| config.listen = vec!["127.0.0.1:0".parse().unwrap(); 2]);
    bob.reload(&two).unwrap();
    let [first, new] = bob.local_addrs()[..] else { panic!("{:?}", bob.local_addrs()) };
    assert_eq!(first, old);
    bob.reload(&changed(&config, |config| config.listen = vec![new])).unwrap();
    assert_eq!(bob.local_addrs(), [new]);
    assert_eq!(TcpStream::connect(old).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    let carol = start(quick());
    carol.connect(new).unwrap();
    // Peers are told the new address.
    let peers = carol.peers();
    let told = peers.iter().find(|peer| peer.id == bob.id()).unwrap().advertised;
    assert_eq!(told, Some(new));
    // Nowhere, and back.
    bob.reload(&changed(&config, |config| config.listen = vec![])).unwrap();
    assert_eq!((bob.local_addr(), bob.local_addrs().len()), (None, 0));
    assert_eq!(TcpStream::connect(new).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    bob.reload(&changed(&config, |config| config.listen = vec![new])).unwrap();
    start(quick()).connect(new).unwrap();
    reaches(&alice, &bob);
    assert_eq!(alice.metrics().sessions_ended, 0);
}

#[test]
fn an_address_that_overlaps_the_old_one_takes_its_place() {
    let _alone = alone();
    let config = changed(&quick(), |config| config.security.public = vec![Exposure::Open, Exposure::Plain]);
    let (alice, bob) = (start(quick()), start(config.clone()));
    link(&alice, &bob);
    let port = addr(&bob).port();
    let wildcard = SocketAddr::from(([0, 0, 0, 0], port));
    for wanted in [wildcard, addr(&bob)] {
        let report = bob.reload(&changed(&config, |config| config.listen = vec![wanted])).unwrap();
        assert!(report.changed.contains(&"listen"));
        assert_eq!(bob.local_addrs(), [wanted]);
        start(quick()).connect(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
        reaches(&alice, &bob);
    }
    assert_eq!(alice.metrics().sessions_ended, 0);
}

#[test]
fn an_address_that_cannot_be_bound_is_a_refusal_and_the_old_ones_are_served_again() {
    let _alone = alone();
    let config = changed(&quick(), |config| config.security.public = vec![Exposure::Open, Exposure::Plain]);
    let bob = start(config.clone());
    let old = addr(&bob);
    let holds = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holds.local_addr().unwrap();
    let wildcard = SocketAddr::from(([0, 0, 0, 0], old.port()));
    // In the way of the wildcard still when the old address was given up for it.
    let _holds_too = TcpListener::bind(("127.0.0.2", old.port())).unwrap();
    for (wanted, fails) in [(vec![old, taken], taken), (vec![wildcard], wildcard)] {
        let wanted = changed(&config, |config| (config.listen, config.inbound) = (wanted.clone(), 7));
        let error = bob.reload(&wanted).unwrap_err();
        let ReloadError::Bind { field: "listen", addr, kind, lost, .. } = &error else { panic!("{error}") };
        assert_eq!((*addr, *kind, lost.as_slice()), (fails, std::io::ErrorKind::AddrInUse, &[][..]));
        assert_eq!(bob.local_addrs(), [old]);
        let alice = start(quick());
        alice.connect(old).unwrap();
        reaches(&alice, &bob);
    }
    assert_eq!(bob.reload(&config).unwrap().changed, [""; 0]);
}

/// What a scraper gets.
fn scraped(addr: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(addr)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn metrics_are_served_where_the_configuration_says_now() {
    let _alone = alone();
    let config = quick();
    let bob = start(config.clone());
    let at = |listen: Option<&str>| {
        changed(&config, |config| config.metrics.listen = listen.map(|addr| addr.parse().unwrap()))
    };
    bob.reload(&at(Some("127.0.0.1:0"))).unwrap();
    let first = bob.metrics_addr().unwrap();
    assert!(scraped(first).unwrap().contains("# EOF"));
    // The wildcard has that port: the old endpoint goes first.
    let wildcard = format!("0.0.0.0:{}", first.port());
    bob.reload(&at(Some(&wildcard))).unwrap();
    assert_eq!(bob.metrics_addr().unwrap().to_string(), wildcard);
    assert!(scraped(first).unwrap().contains("# EOF"));
    // One that is taken: nothing changes.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let error = bob.reload(&at(Some(&taken.local_addr().unwrap().to_string()))).unwrap_err();
    assert!(matches!(error, ReloadError::Bind { field: "metrics.listen", .. }), "{error}");
    assert!(scraped(first).unwrap().contains("# EOF"));
    bob.reload(&at(None)).unwrap();
    assert_eq!((bob.metrics_addr(), scraped(first).is_err()), (None, true));
}

#[test]
fn lowered_queue_bounds_drop_nothing_and_whoever_comes_waits_for_room() {
    let _alone = alone();
    let config = quick();
    let (alice, bob) = (start(config.clone()), start(quick()));
    let to_bob = alice.add_peer(bob.id(), NOWHERE).unwrap();
    (0..100u32).for_each(|n| to_bob.try_send(n.to_le_bytes()).unwrap());
    for lower in [(|config| config.queue_messages = 10) as Change, |config| config.queue_bytes = 100] {
        alice.reload(&changed(&config, lower)).unwrap();
        assert_eq!(to_bob.try_send("too many").unwrap_err().kind, SendErrorKind::Full);
        assert_eq!(to_bob.stats().queued_messages, 100);
    }
    // Somebody waits for room, and has it when the bound is raised.
    std::thread::scope(|scope| {
        #[expect(clippy::disallowed_methods, reason = "the library's own threads are not for its tests")]
        let waits = scope.spawn(|| to_bob.send_timeout(100u32.to_le_bytes(), PATIENCE));
        alice.reload(&config).unwrap();
        waits.join().unwrap().unwrap();
    });
    alice.add_peer(bob.id(), bob.local_addr()).unwrap();
    for n in 0..=100u32 {
        assert_eq!(bob.recv_timeout(PATIENCE).unwrap().payload(), n.to_le_bytes());
    }
}

#[test]
fn sizes_and_times_of_messages_hold_for_what_is_sent_from_then_on() {
    let _alone = alone();
    let config = quick();
    let (alice, bob) = (start(config.clone()), start(quick()));
    let to_bob = link(&alice, &bob);
    let long = vec![7; 100_000];
    alice.reload(&changed(&config, |config| config.max_message = 99_999)).unwrap();
    assert_eq!(to_bob.send(long.as_slice()).unwrap_err().kind, SendErrorKind::TooLarge);
    alice.reload(&changed(&config, |config| config.max_message = 9)).unwrap();
    // Also on the shortest path.
    assert_eq!(to_bob.send("0123456789").unwrap_err().kind, SendErrorKind::TooLarge);
    to_bob.send("012345678").unwrap();
    alice.reload(&config).unwrap();
    to_bob.send(long.as_slice()).unwrap();
    assert_eq!(bob.recv_timeout(PATIENCE).unwrap().payload().len(), 9);
    assert_eq!(bob.recv_timeout(PATIENCE).unwrap().payload(), long);
    // The other side takes no more than it says now.
    bob.reload(&changed(&config, |config| config.max_message = 99_999)).unwrap();
    let receipt = to_bob.send_with(long, &SendOptions::new()).unwrap();
    let outcome = receipt.wait(PATIENCE).unwrap();
    assert!(format!("{outcome:?}").contains("TooLarge"), "{outcome:?}");

    // Messages to a peer that is away: for how long, whether at all, and how long a sender waits for room.
    let absent = alice.add_peer(nobody(), NOWHERE).unwrap();
    absent.send("before").unwrap();
    alice.reload(&changed(&config, |config| config.message_ttl = Some(Duration::from_millis(1)))).unwrap();
    let receipt = absent.send_with("after", &SendOptions::new()).unwrap();
    let outcome = receipt.wait(PATIENCE).unwrap();
    assert!(format!("{outcome:?}").contains("Expired"), "{outcome:?}");
    alice.reload(&changed(&config, |config| config.offline = Offline::Return)).unwrap();
    assert_eq!(absent.send("x").unwrap_err().kind, SendErrorKind::Offline);
    let short = Duration::from_millis(1);
    let full = changed(&config, |config| (config.queue_messages, config.send_deadline) = (1, short));
    alice.reload(&full).unwrap();
    assert_eq!(absent.send("x").unwrap_err().kind, SendErrorKind::TimedOut);
    assert_eq!(absent.stats().queued_messages, 1, "what was sent before is there");

    // Questions, and peers that nobody knows.
    alice.reload(&changed(&config, |config| (config.requests, config.unknown_peers) = (1, 0))).unwrap();
    let _first = to_bob.ask("?", PATIENCE).unwrap();
    let refused = to_bob.ask("?", PATIENCE).unwrap_err();
    assert!(refused.to_string().contains("questions"), "{refused}");
    assert!(matches!(alice.peer(nobody()), Err(ConnectError::UnknownPeer(_))));
    alice.reload(&config).unwrap();
    alice.peer(nobody()).unwrap();
}

#[test]
fn memory_that_is_lowered_refuses_and_memory_that_is_raised_lets_who_waits_go_on() {
    let _alone = alone();
    let config = changed(&quick(), |config| {
        (config.inbound, config.outbound) = (4, 4);
        (config.max_message, config.window_bytes, config.queue_bytes) = (1 << 20, 1 << 20, 4 << 20);
        config.memory_bytes = 64 << 20;
    });
    let alice = start(config.clone());
    let absent = alice.add_peer(nobody(), NOWHERE).unwrap();
    (0..2).for_each(|_| absent.try_send(vec![7; 1 << 20]).unwrap());
    // As much as the floors, and the two that wait.
    let low = changed(&config, |config| (config.queue_bytes, config.memory_bytes) = (4 << 20, 4 << 20));
    alice.reload(&low).unwrap();
    assert_eq!(absent.try_send(vec![7; 1 << 20]).unwrap_err().kind, SendErrorKind::Full);
    assert_eq!(absent.stats().queued_messages, 2);
    std::thread::scope(|scope| {
        #[expect(clippy::disallowed_methods, reason = "the library's own threads are not for its tests")]
        let waits = scope.spawn(|| absent.send_timeout(vec![7; 1 << 20], PATIENCE));
        alice.reload(&config).unwrap();
        waits.join().unwrap().unwrap();
    });
    assert_eq!(absent.stats().queued_messages, 3);
}

#[test]
fn a_heartbeat_that_is_shortened_comes_at_once_though_the_sender_sleeps() {
    let _alone = alone();
    let config = changed(&quick(), |config| {
        (config.heartbeat, config.idle_timeout) = (Duration::from_secs(3600), Duration::from_secs(7200));
    });
    let (alice, bob) = (start(config.clone()), start(config.clone()));
    link(&alice, &bob);
    let round_trip = || alice.peers().into_iter().find(|peer| peer.id == bob.id()).unwrap().rtt;
    assert_eq!(round_trip(), None, "no heartbeat was answered yet");
    let often = changed(&config, |config| config.heartbeat = Duration::from_millis(5));
    // Each answers in its own heartbeats.
    [&alice, &bob].into_iter().for_each(|node| drop(node.reload(&often).unwrap()));
    wait_until("a heartbeat has measured the round trip", || round_trip().is_some());
    // And whoever says nothing for longer than is allowed now is cut.
    alice.reload(&config).unwrap();
    bob.reload(&changed(&often, |config| config.idle_timeout = Duration::from_millis(6))).unwrap();
    assert_eq!(told(&bob), DisconnectReason::Local(CloseReason::Idle));
}

#[test]
fn peers_of_the_configuration_come_move_and_go_and_those_of_the_application_stay() {
    let _alone = alone();
    let config = quick();
    let alice = start(config.clone());
    let [bob, carol, dave] = [start(quick()), start(quick()), start(quick())];
    let peer = |name: &str, node: &Node, at: SocketAddr| Peer::new(name, node.id(), [at.into()]);
    let with = |peers: Vec<Peer>| changed(&config, |config| config.peers = peers);
    link(&alice, &carol);
    let nowhere: SocketAddr = "127.0.0.1:1".parse().unwrap();
    // Carol is the application's: what the configuration says of her is nothing to her.
    let report = alice.reload(&with(vec![peer("bob", &bob, nowhere), peer("carol", &carol, nowhere)])).unwrap();
    assert_eq!((report.changed.as_slice(), report.closed.len()), (&["peer"][..], 0));
    assert_eq!(alice.peer_named("bob").unwrap().id(), bob.id());
    wait_event(&alice, "bob is not there", |event| match event {
        Event::DialFailed { peer, .. } => (peer == Some(bob.id())).then_some(()),
        _ => None,
    });
    alice.reload(&with(vec![peer("robert", &bob, addr(&bob))])).unwrap();
    alice.wait_connected(bob.id(), PATIENCE).unwrap();
    assert!(matches!(alice.peer_named("bob"), Err(ConnectError::UnknownName(_))));
    // An address more, and another order: the session stays.
    let both = Peer::new("bob", bob.id(), [nowhere.into(), addr(&bob).into()]);
    alice.reload(&with(vec![both, peer("dave", &dave, addr(&dave))])).unwrap();
    alice.wait_connected(dave.id(), PATIENCE).unwrap();
    reaches(&alice, &bob);
    let report = alice.reload(&with(vec![peer("dave", &dave, addr(&dave))])).unwrap();
    assert_eq!(went(&report.closed), [(bob.id(), CloseReason::Requested)]);
    assert_eq!(told(&bob), DisconnectReason::Remote(CloseReason::Requested));
    reaches(&alice, &carol);
    reaches(&alice, &dave);
    assert_eq!(bob.metrics().sessions_started, 1);
    // The application takes one over: it is its own from then on.
    alice.add_peer(dave.id(), dave.local_addr()).unwrap();
    assert_eq!(alice.reload(&config).unwrap().closed, []);
    reaches(&alice, &dave);
}

#[test]
fn reloads_take_turns_and_one_in_a_handler_or_during_a_shutdown_is_refused() {
    let _alone = alone();
    let config = quick();
    let (said, heard) = crossbeam_channel::bounded(1);
    let node: &'static std::sync::OnceLock<Node> = Box::leak(Box::default());
    let (inside, other) = (config.clone(), start(quick()));
    let started = Node::builder()
        .config(config.clone())
        .handler(move |_, _| said.send(node.get().unwrap().reload(&inside)).unwrap())
        .start()
        .unwrap();
    let bob = node.get_or_init(|| started);
    link(&other, bob).send("reload").unwrap();
    assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), Err(ReloadError::WouldBlock));
    // Many at once: each is whole, and the last one holds.
    std::thread::scope(|scope| {
        for n in 1..=8 {
            let config = changed(&config, |config| {
                (config.inbound, config.outbound, config.peers) = (n, n, Vec::new());
                config.listen = vec!["127.0.0.1:0".parse().unwrap(); n];
            });
            #[expect(clippy::disallowed_methods, reason = "the library's own threads are not for its tests")]
            scope.spawn(move || bob.reload(&config).unwrap());
        }
    });
    assert!((1..=8).contains(&bob.local_addrs().len()));
    bob.reload(&changed(&config, |config| config.listen = vec![])).unwrap();
    assert!(bob.shutdown(PATIENCE).is_clean());
    assert_eq!(bob.reload(&config), Err(ReloadError::ShuttingDown));
}

#[test]
fn a_thousand_reloads_under_traffic_lose_repeat_and_reorder_nothing_and_cut_nobody() {
    let _alone = alone();
    const RELOADS: usize = 1_000;
    let config = quick();
    let (alice, bob) = (start(config.clone()), start(config.clone()));
    link(&alice, &bob);
    bob.wait_connected(alice.id(), PATIENCE).unwrap();
    let changes: Vec<_> =
        LIVE.iter().filter(|(field, _)| !["offline", "security.trust", "security.trusted"].contains(field)).collect();
    let over = AtomicBool::new(false);
    let mut taken: BTreeMap<&str, usize> = BTreeMap::new();
    #[expect(clippy::disallowed_methods, reason = "the library's own threads are not for its tests")]
    std::thread::scope(|scope| {
        let flow = |node: &Node, to: PeerId, over: &AtomicBool| {
            let peer = node.peer(to).unwrap();
            let (mut sent, long) = (0u64, vec![0; 70_000]);
            while !over.load(Ordering::Relaxed) {
                let mut message = sent.to_le_bytes().to_vec();
                // Now and then one that is large.
                message.extend_from_slice(if sent.is_multiple_of(1000) { &long } else { &[] });
                peer.send(message).unwrap();
                sent += 1;
            }
            peer.send(u64::MAX.to_le_bytes()).unwrap();
            sent
        };
        let drain = |node: &Node| {
            let mut expected = 0u64;
            loop {
                let message = node.recv_timeout(PATIENCE).unwrap();
                assert!(!message.possible_repeat());
                let number = u64::from_le_bytes(message.payload()[..8].try_into().unwrap());
                if number == u64::MAX {
                    return expected;
                }
                assert_eq!(number, expected);
                expected += 1;
            }
        };
        let (alice, bob, over) = (&alice, &bob, &over);
        let sent = [scope.spawn(move || flow(alice, bob.id(), over)), scope.spawn(move || flow(bob, alice.id(), over))];
        let received = [scope.spawn(move || drain(bob)), scope.spawn(move || drain(alice))];
        for n in 0..RELOADS {
            let (node, (field, change)) = (if n % 2 == 0 { alice } else { bob }, changes[n / 2 % changes.len()]);
            let report = node.reload(&changed(&config, change)).unwrap_or_else(|error| panic!("{field}: {error}"));
            assert_eq!(report.closed, [], "{field}");
            *taken.entry(field).or_default() += usize::from(!report.changed.is_empty());
        }
        over.store(true, Ordering::Relaxed);
        let sent = sent.map(|thread| thread.join().unwrap());
        assert_eq!(received.map(|thread| thread.join().unwrap()), sent);
        assert!(sent.iter().all(|sent| *sent > 1_000), "{sent:?}");
    });
    assert!(taken.values().sum::<usize>() > RELOADS * 9 / 10, "they did change something: {taken:?}");
    for node in [&alice, &bob] {
        let metrics = node.metrics();
        assert_eq!((metrics.sessions_started, metrics.sessions_ended, metrics.duplicates), (1, 0, 0));
    }
}
