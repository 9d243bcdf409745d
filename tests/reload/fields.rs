//! Every field: taken alone, or refused by name.

use std::time::Duration;

use threadwire::config::{Channel, Config, Peer, TrustMode};
use threadwire::error::ReloadError;
use threadwire::handshake::Identity;
use threadwire::{Event, Node, PeerId};

use crate::common::{PATIENCE, alone, link, quick, reaches, start, wait_event};
use crate::{Change, LIVE, changed, refused};

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
        let error = refused(&bob, &config);
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
        let error = refused(&bob, &config);
        assert!(matches!(&error, ReloadError::NotAllowed { field: named, .. } if named == field), "{field}: {error}");
    }
    let own = changed(&config, |config| {
        config.peers = vec![Peer::new("me", bob.id(), ["127.0.0.1:1".parse().unwrap()])];
    });
    let error = refused(&bob, &own);
    assert!(matches!(&error, ReloadError::NotAllowed { field, .. } if field == "peer[0].id"), "{error}");
    let missing = changed(&config, |config| {
        config.security.trust = TrustMode::Listed;
        config.security.certificate = Some("/nowhere/north.pem".into());
    });
    if config.security.channel == Channel::Tls {
        let error = refused(&bob, &missing);
        assert!(matches!(&error, ReloadError::File(what) if what.place == "security.certificate"), "{error}");
    }
    // As it was.
    assert_eq!(bob.reload(&config).unwrap().changed, [""; 0]);
    reaches(&alice, &bob);
    assert_eq!((bob.metrics().sessions_started, bob.metrics().sessions_ended), (1, 0));
}
