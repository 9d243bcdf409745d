//! The metrics endpoint: a parser of OpenMetrics that is not ours reads what the snapshot says, curl gets it, and no client
//! harms another one or the node. The parser is no scraper's own: what Prometheus makes of the text is not shown here.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use openmetrics_parser::openmetrics::parse_openmetrics;
use openmetrics_parser::{MetricNumber, OpenMetricsValue};
use parking_lot::Mutex;
use serde_json::Value;
use threadwire::error::StartError;
use threadwire::metrics::{Histogram, MetricsSnapshot, OPENMETRICS, ScrapeFailure};
use threadwire::{Config, Kind, Node, SendOptions};

mod common;
use common::limits::{descriptors, raise_descriptors};
use common::{PATIENCE, alone, link, node_threads, quick, start, wait_until};

/// Connections the endpoint takes at one time.
const CONNECTIONS: usize = 16;
/// Names of kinds are the application's: this one does its worst.
const NASTY: &str = "a\"b\\c\nd} 1\n# EOF";

fn with_endpoint() -> Config {
    let mut config = quick();
    config.metrics.listen = Some("127.0.0.1:0".parse().unwrap());
    config
}

fn dial(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// An answer.
#[derive(Debug)]
struct Answer {
    status: u16,
    fields: BTreeMap<String, String>,
    body: String,
}

/// What comes until the other side closes, as an answer.
fn answer(mut stream: TcpStream) -> Answer {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {text:?}"));
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().strip_prefix("HTTP/1.1 ").unwrap().split(' ').next().unwrap().parse().unwrap();
    let field =
        |line: &str| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())).unwrap();
    let fields: BTreeMap<String, String> = lines.map(field).collect();
    assert_eq!(fields["connection"], "close");
    Answer { status, fields, body: body.to_owned() }
}

fn ask(addr: SocketAddr, request: &str) -> Answer {
    let mut stream = dial(addr);
    stream.write_all(request.as_bytes()).unwrap();
    answer(stream)
}

/// The metrics as they are served.
fn fetch(addr: SocketAddr) -> String {
    let answer = ask(addr, &format!("GET /metrics HTTP/1.1\r\nHost: {addr}\r\nAccept: {OPENMETRICS}\r\n\r\n"));
    assert_eq!((answer.status, answer.fields["content-type"].as_str()), (200, OPENMETRICS));
    assert_eq!(answer.fields["content-length"], answer.body.len().to_string());
    answer.body
}

fn failed(node: &Node, cause: ScrapeFailure) -> u64 {
    node.metrics().scrapes_failed_by.get(cause)
}

/// A sample's name and labels, as one text.
fn key(name: &str, labels: &[(&str, &str)]) -> String {
    let labels: BTreeMap<_, _> = labels.iter().copied().collect();
    format!("{name} {labels:?}")
}

/// What a scraper's parser makes of a text. Seconds are told as nanoseconds.
fn scraped(text: &str) -> BTreeMap<String, u64> {
    let exposition = parse_openmetrics(text).unwrap_or_else(|error| panic!("{error:?}\n{text}"));
    let mut samples = BTreeMap::new();
    for family in exposition.families.values() {
        assert!(!family.help.is_empty(), "{}", family.family_name);
        let units = ["bytes", "seconds"];
        let unit = units.into_iter().find(|unit| family.family_name.ends_with(&format!("_{unit}"))).unwrap_or_default();
        // The parser takes no histogram with a line of its unit.
        let is_of_times = unit == "seconds" && family.family_name != "threadwire_oldest_queued_seconds";
        assert_eq!(family.unit, if is_of_times { "" } else { unit }, "{}", family.family_name);
        for sample in family.iter_samples() {
            let labels = sample.get_labelset().unwrap();
            let labels: Vec<(&str, &str)> =
                labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let mut insert = |name: &str, more: &[(&str, &str)], number: u64| {
                let before = samples.insert(key(name, &[&labels, more].concat()), number);
                assert_eq!(before, None, "{name} {labels:?} {more:?} twice");
            };
            let name = &family.family_name;
            match &sample.value {
                OpenMetricsValue::Counter(counter) => insert(name, &[], whole(&counter.value)),
                OpenMetricsValue::Gauge(number) if unit == "seconds" => insert(name, &[], nanos(number)),
                OpenMetricsValue::Gauge(number) => insert(name, &[], whole(number)),
                OpenMetricsValue::Histogram(histogram) => {
                    for bucket in &histogram.buckets {
                        let bound = format!("{:.6}", bucket.upper_bound);
                        insert(&format!("{name}_bucket"), &[("le", &bound)], whole(&bucket.count));
                    }
                    insert(&format!("{name}_sum"), &[], nanos(&histogram.sum.unwrap()));
                    insert(&format!("{name}_count"), &[], histogram.count.unwrap());
                }
                other => panic!("{name}: {other:?}"),
            }
        }
    }
    samples
}

fn whole(number: &MetricNumber) -> u64 {
    number.as_i64().unwrap().try_into().unwrap()
}

/// Seconds that were read as a number, as nanoseconds: the text has them exactly.
fn nanos(seconds: &MetricNumber) -> u64 {
    (seconds.as_f64() * 1e9).round() as u64
}

/// What a snapshot says of times, as a scraper should see it.
fn add_histogram(name: &str, labels: &[(&str, &str)], histogram: &Value, samples: &mut BTreeMap<String, u64>) {
    let mut insert = |suffix: &str, more: &[(&str, &str)], number: u64| {
        let before = samples.insert(key(&format!("{name}_{suffix}"), &[labels, more].concat()), number);
        assert_eq!(before, None, "{name} {labels:?} {more:?} twice");
    };
    let bounds = Histogram::bounds().map(|bound| bound.as_secs_f64()).chain([f64::INFINITY]);
    let mut count = 0;
    for (bound, bucket) in bounds.zip(histogram["buckets"].as_array().unwrap()) {
        count += bucket.as_u64().unwrap();
        insert("bucket", &[("le", &format!("{bound:.6}"))], count);
    }
    insert("sum", &[], duration(&histogram["sum"]));
    insert("count", &[], count);
}

fn duration(value: &Value) -> u64 {
    value["secs"].as_u64().unwrap() * 1_000_000_000 + value["nanos"].as_u64().unwrap()
}

/// What a snapshot says of phases, as a scraper should see it.
fn add_phases(phases: &Value, samples: &mut BTreeMap<String, u64>) {
    for (phase, fields) in phases.as_object().unwrap() {
        let open = key("threadwire_phase_open", &[("phase", phase)]);
        samples.insert(open, fields["open"].as_u64().unwrap());
        for row in fields["rows"].as_array().unwrap() {
            let labels = [
                ("phase", &phase[..]),
                ("kind", row["kind"].as_str().unwrap()),
                ("cast", row["cast"].as_str().unwrap_or("any")),
            ];
            for (unit, part) in [("", "messages"), ("_bytes", "bytes")] {
                let mut insert = |name: &str, more: &[(&str, &str)], volume: &str| {
                    let name = format!("threadwire_phase_{name}{unit}");
                    samples.insert(key(&name, &[&labels[..], more].concat()), row[volume][part].as_u64().unwrap());
                };
                insert("begun", &[], "begun");
                insert("ended", &[("result", "ok")], "succeeded");
                insert("ended", &[("result", "failed")], "failed");
            }
            add_histogram("threadwire_phase_seconds", &labels, &row["times"], samples);
        }
    }
}

/// What a snapshot says, from its serialisation, as a scraper should see it.
fn said(snapshot: &MetricsSnapshot) -> BTreeMap<String, u64> {
    let mut samples = BTreeMap::new();
    let json = serde_json::to_value(snapshot).unwrap();
    add(&json, &mut samples);
    add(&json["traffic"], &mut samples);
    samples
}

fn add(fields: &Value, samples: &mut BTreeMap<String, u64>) {
    for (field, value) in fields.as_object().unwrap() {
        let name = format!("threadwire_{}", field.strip_suffix("_by").unwrap_or(field));
        let mut insert = |name: &str, labels: &[(&str, &str)], value: &Value| {
            assert_eq!(samples.insert(key(name, labels), value.as_u64().unwrap()), None, "{name} {labels:?}");
        };
        match (field.as_str(), value) {
            ("traffic", _) => {}
            ("phases", phases) => add_phases(phases, samples),
            ("ack_delay", histogram) => add_histogram("threadwire_ack_delay_seconds", &[], histogram, samples),
            ("oldest_queued", age) => {
                samples.insert(key("threadwire_oldest_queued_seconds", &[]), duration(age));
            }
            ("queued_bytes", bytes) => insert("threadwire_queued_bytes", &[], bytes),
            ("kept_bytes", bytes) => insert("threadwire_kept_bytes", &[], bytes),
            ("memory_used", bytes) => insert("threadwire_memory_used_bytes", &[], bytes),
            ("bytes_sent", bytes) => insert("threadwire_sent_bytes", &[], bytes),
            ("bytes_received", bytes) => insert("threadwire_received_bytes", &[], bytes),
            ("kinds", kinds) => {
                for (kind, counts) in kinds.as_object().unwrap() {
                    insert("threadwire_kind_sent", &[("kind", kind)], &counts["sent"]);
                    insert("threadwire_kind_received", &[("kind", kind)], &counts["received"]);
                }
            }
            ("sessions_started_by", by) => {
                by.as_object().unwrap().iter().for_each(|(who, count)| insert(&name, &[("direction", who)], count));
            }
            ("dials_failed_by", by) => {
                for (cause, count) in by["connect"].as_object().unwrap() {
                    insert(&name, &[("stage", "connect"), ("by", "none"), ("cause", cause)], count);
                }
                for (labels, count) in ends(&by["handshake"]) {
                    insert(&name, &[("stage", "handshake"), ("by", labels.0), ("cause", labels.1)], count);
                }
            }
            (_, by) if by.get("lost").is_some_and(|_| by.get("local").is_some()) => {
                ends(by)
                    .into_iter()
                    .for_each(|((by, cause), count)| insert(&name, &[("by", by), ("cause", cause)], count));
            }
            (_, Value::Object(by)) => by.iter().for_each(|(cause, count)| insert(&name, &[("cause", cause)], count)),
            // The sum of those.
            (sum, _) if fields.get(format!("{sum}_by")).is_some() => {}
            (_, count) => insert(&name, &[], count),
        }
    }
}

/// Who, why, how often.
fn ends(ends: &Value) -> Vec<((&str, &str), &Value)> {
    let mut all = vec![(("none", "lost"), &ends["lost"])];
    for by in ["local", "remote"] {
        all.extend(ends[by].as_object().unwrap().iter().map(|(cause, count)| ((by, cause.as_str()), count)));
    }
    all
}

#[test]
fn every_number_that_a_scrapers_parser_reads_is_the_snapshots_and_every_one_is_there() {
    let _alone = alone();
    let with_kind = |config| Node::builder().config(config).kind(Kind::new(7, NASTY)).start().unwrap();
    let (bob, alice) = (with_kind(with_endpoint()), with_kind(quick()));
    let to_bob = link(&alice, &bob);
    for n in 0..50 {
        let receipt = to_bob.send_with([n; 100], &SendOptions::new().kind(7)).unwrap();
        bob.recv_timeout(PATIENCE).unwrap();
        receipt.wait(PATIENCE).unwrap();
    }
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    bob.connect(nobody).unwrap_err();
    assert!(alice.shutdown(PATIENCE).is_clean());
    wait_until("bob has heard", || bob.metrics().sessions_ended == 1);

    let addr = bob.metrics_addr().unwrap();
    // Twice: the first one must not count itself, the second one sees the first.
    for scrapes in 0..2 {
        wait_until("the last one is counted", || bob.metrics().scrapes == scrapes);
        let snapshot = bob.metrics();
        let text = fetch(addr);
        assert_eq!(scraped(&text), said(&snapshot), "{text}");
        assert_eq!(text, snapshot.to_openmetrics());
    }
    // Counters say so in their names, and nothing else does.
    let text = fetch(addr);
    let counters = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"));
    let counters: Vec<String> = counters.map(|name| format!("{name}_total")).collect();
    let mut samples = 0;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let now = ["memory_used_bytes", "queued_messages", "queued_bytes", "kept_bytes", "peers_connected"];
        let now = [&now[..], &["oldest_queued_seconds", "phase_open"]].concat();
        let is_now = name.strip_prefix("threadwire_").is_some_and(|name| now.contains(&name));
        let of_times = ["_bucket", "_sum", "_count"].iter().any(|suffix| name.ends_with(suffix));
        assert_eq!(counters.iter().any(|counter| counter == name), !is_now && !of_times, "{line}");
        samples += 1;
    }
    assert!(samples > 100 && counters.len() > 30, "{text}");

    // What this shows is not that nothing happened.
    let now = scraped(&text);
    let of = |name: &str, labels: &[(&str, &str)]| now[&key(&format!("threadwire_{name}"), labels)];
    assert_eq!(of("kind_received", &[("kind", NASTY)]), 50);
    let came = [("phase", "incoming_buffer"), ("kind", NASTY), ("cast", "any")];
    assert_eq!((of("phase_begun", &came), of("phase_begun_bytes", &came)), (50, 5_000));
    assert_eq!(of("phase_ended", &[&came[..], &[("result", "ok")]].concat()), 50);
    assert!(of("phase_seconds_count", &came) > 0);
    assert_eq!(of("sessions_started", &[("direction", "inbound")]), 1);
    assert_eq!(of("sessions_ended", &[("by", "remote"), ("cause", "shutdown")]), 1);
    assert_eq!(of("dials_failed", &[("stage", "connect"), ("by", "none"), ("cause", "refused")]), 1);
    assert!(of("received_bytes", &[]) > 5_000);
}

#[test]
fn curl_reads_the_metrics() {
    let _alone = alone();
    let node = start(with_endpoint());
    let url = format!("http://{}/metrics", node.metrics_addr().unwrap());
    let Ok(curl) = Command::new("curl").args(["--silent", "--show-error", "--noproxy", "*", &url]).output() else {
        eprintln!("skipped: there is no curl here");
        return;
    };
    assert!(curl.status.success(), "{curl:?}");
    wait_until("it is counted", || node.metrics().scrapes == 1);
    let mut nothing_yet = node.metrics();
    nothing_yet.scrapes = 0;
    assert_eq!(scraped(&String::from_utf8(curl.stdout).unwrap()), said(&nothing_yet));
}

#[test]
fn whatever_is_no_request_for_the_metrics_is_told_and_counted_by_what_is_wrong() {
    let _alone = alone();
    let node = start(with_endpoint());
    let addr = node.metrics_addr().unwrap();
    let (bad, not_found, not_allowed) = (ScrapeFailure::BadRequest, ScrapeFailure::NotFound, ScrapeFailure::NotAllowed);
    for (request, status, cause) in [
        ("GET /metrics\r\n\r\n", 400, bad),
        ("GET /metrics HTTP/1.1\r\n\r\n", 400, bad),
        ("GET /metrics HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, bad),
        ("GET /metrics HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", 400, bad),
        ("GET metrics HTTP/1.1\r\nHost: a\r\n\r\n", 400, bad),
        ("\u{16}\u{3}\u{1} another protocol", 400, bad),
        ("GET /metrics HTTP/3.0\r\nHost: a\r\n\r\n", 505, bad),
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 404, not_found),
        ("GET /metrics/../etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n", 404, not_found),
        ("POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody", 405, not_allowed),
    ] {
        let before = node.metrics();
        let answer = ask(addr, request);
        assert_eq!((answer.status, answer.body.is_empty()), (status, false), "{request:?}: {answer:?}");
        assert_eq!(answer.fields["content-length"], answer.body.len().to_string());
        assert_eq!(answer.fields.get("allow").map(String::as_str), (status == 405).then_some("GET, HEAD"));
        let counted = node.metrics();
        assert_eq!(counted.scrapes_failed_by.get(cause), before.scrapes_failed_by.get(cause) + 1, "{request:?}");
        assert_eq!(counted.scrapes_failed, before.scrapes_failed + 1, "{request:?}");
    }

    let length = fetch(addr).len();
    let head = ask(addr, "HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert!(head.fields["content-length"].parse::<usize>().unwrap() >= length);
    assert_eq!(ask(addr, "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").body, "");
    wait_until("both are counted", || node.metrics().scrapes == 2);

    // A request that ends before it is whole.
    let mut half = dial(addr);
    half.write_all(b"GET /metr").unwrap();
    half.shutdown(Shutdown::Write).unwrap();
    assert_eq!(half.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(failed(&node, ScrapeFailure::Lost), 1);
}

#[test]
fn a_client_that_drips_holds_nobody_up_and_is_cut_however_it_drips() {
    let _alone = alone();
    let node = start(with_endpoint());
    let addr = node.metrics_addr().unwrap();
    let drippers: Vec<TcpStream> = (1..CONNECTIONS).map(|_| dial(addr)).collect();
    std::thread::scope(|scope| {
        let threads: Vec<_> = drippers.into_iter().map(|stream| scope.spawn(|| drip(stream))).collect();
        // All of them have their places, and one is left.
        for _ in 0..3 {
            fetch(addr);
        }
        assert_eq!(node.metrics().scrapes_failed, 0, "answered while they drip");
        for thread in threads {
            assert!(thread.join().unwrap() > 1, "it dripped");
        }
    });
    assert_eq!(failed(&node, ScrapeFailure::SlowRequest), CONNECTIONS as u64 - 1);
    fetch(addr);
}

/// Sends a request byte by byte until it is cut; returns how many went.
fn drip(mut stream: TcpStream) -> usize {
    stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let begun = b"GET /metrics HTTP/1.1\r\nX-Slow: ";
    for (sent, byte) in begun.iter().chain(std::iter::repeat(&b'x')).enumerate() {
        let written = stream.write_all(&[*byte]);
        match stream.read(&mut [0; 64]) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => written.unwrap(),
            // An end, or the reset that the last byte brought.
            Ok(0) | Err(_) => return sent,
            Ok(_) => panic!("it was answered"),
        }
    }
    unreachable!("it drips for ever")
}

#[test]
fn clients_that_say_nothing_keep_nobody_out_however_often_they_come_back() {
    let _alone = alone();
    let node = start(with_endpoint());
    let addr = node.metrics_addr().unwrap();
    let mut silent = Vec::new();
    for round in 1..=5 {
        while silent.len() < CONNECTIONS {
            silent.push(dial(addr));
        }
        // Whoever asks has the place of the one that was silent for longest.
        fetch(addr);
        wait_until("it is counted", || node.metrics().scrapes == round);
        assert_eq!(failed(&node, ScrapeFailure::TooMany), round);
        let mut first = silent.remove(0);
        assert_eq!(first.read(&mut [0; 1]).unwrap_or(0), 0);
    }
}

#[test]
fn a_huge_request_is_refused_and_cut() {
    let _alone = alone();
    let node = start(with_endpoint());
    let addr = node.metrics_addr().unwrap();
    // As much as is read of it anyway: the answer arrives.
    let mut long = dial(addr);
    write!(long, "GET /metrics HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(20_000)).unwrap();
    assert_eq!(answer(long).status, 431);
    // One that does not end is closed while it still comes.
    let mut endless = dial(addr);
    endless.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nX: ").unwrap();
    let (chunk, mut sent) = ([b'x'; 64 << 10], 0u64);
    while endless.write_all(&chunk).is_ok() {
        sent += chunk.len() as u64;
        assert!(sent < 1 << 30, "it is never cut");
    }
    assert_eq!(failed(&node, ScrapeFailure::TooLarge), 2);
    fetch(addr);
}

#[test]
fn a_thousand_connections_at_once_are_bounded_and_counted_and_later_ones_are_answered() {
    let _alone = alone();
    let wanted = 3_000;
    assert!(raise_descriptors(wanted) >= wanted, "the test needs {wanted} descriptors");
    let node = start(with_endpoint());
    let addr = node.metrics_addr().unwrap();
    let all: Vec<TcpStream> = (0..1_000).map(|_| dial(addr)).collect();
    let refused = || failed(&node, ScrapeFailure::TooMany);
    // How many more get a place depends on how long it took: those of the first ones are free again after a while.
    let seen = || {
        let metrics = node.metrics();
        metrics.scrapes_failed + CONNECTIONS as u64 >= 1_000
    };
    wait_until("all were looked at", seen);
    assert!(refused() >= 900, "{} refused", refused());
    let open = all.iter().filter(|stream| is_open(stream)).count();
    assert!(open <= CONNECTIONS, "{open} are open");
    drop(all);
    wait_until("all are counted", || node.metrics().scrapes_failed == 1_000);
    assert_eq!(refused() + failed(&node, ScrapeFailure::SlowRequest) + failed(&node, ScrapeFailure::Lost), 1_000);
    for _ in 0..20 {
        fetch(addr);
    }
    wait_until("they were answered", || node.metrics().scrapes == 20);
    assert_eq!(node.metrics().scrapes_failed, 1_000);
}

/// Whether the other side has not closed a connection on which nothing comes.
fn is_open(mut stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    matches!(stream.read(&mut [0; 1]), Err(error) if error.kind() == ErrorKind::WouldBlock)
}

#[test]
fn a_shutdown_waits_for_no_client_and_ends_the_endpoint() {
    let _alone = alone();
    let node = start(with_endpoint());
    let addr = node.metrics_addr().unwrap();
    let mut open: Vec<TcpStream> = (0..CONNECTIONS).map(|_| dial(addr)).collect();
    open[0].write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
    // A seventeenth shows that all have their places: that of the first is its own now.
    let seventeenth = dial(addr);
    assert_eq!(open[0].read(&mut [0; 1]).unwrap_or(0), 0);
    assert_eq!(failed(&node, ScrapeFailure::TooMany), 1);
    assert!(node.shutdown(PATIENCE).is_clean());
    // Not one was waited for until its time was up.
    assert_eq!(failed(&node, ScrapeFailure::ShuttingDown), CONNECTIONS as u64);
    assert_eq!(node.metrics().scrapes_failed, CONNECTIONS as u64 + 1);
    for mut stream in open.into_iter().chain([seventeenth]) {
        assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0, "it is closed");
    }
    assert_eq!(TcpStream::connect(addr).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(node.metrics_addr(), Some(addr), "it says where it was");
}

#[test]
fn without_the_field_there_is_no_endpoint_and_no_thread_for_it() {
    let _alone = alone();
    assert_eq!(Config::default().metrics.listen, None);
    let node = start(quick());
    assert_eq!(node.metrics_addr(), None);
    assert!(!node_threads().contains(&"metrics".to_owned()));
    let other = start(with_endpoint());
    // A thread gives itself its name.
    wait_until("its thread has begun", || node_threads().contains(&"metrics".to_owned()));
    assert_ne!(other.metrics_addr().unwrap().port(), 0);
}

#[test]
fn an_address_that_cannot_be_bound_is_an_error_that_names_the_field_and_leaves_nothing() {
    let _alone = alone();
    let before = descriptors();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = quick();
    config.metrics.listen = taken.local_addr().ok();
    let error = Node::builder().config(config.clone()).start().unwrap_err();
    assert!(error.to_string().starts_with("metrics.listen: cannot serve metrics on 127.0.0.1:"), "{error}");
    let StartError::MetricsListen { addr, source } = error else { panic!("{error:?}") };
    assert_eq!((Some(addr), source.kind()), (config.metrics.listen, ErrorKind::AddrInUse));
    drop(taken);
    wait_until("nothing is left", || descriptors() == before && node_threads().is_empty());
    assert_eq!(start(config.clone()).metrics_addr(), config.metrics.listen);
}

/// Warnings about the endpoint.
struct Warnings(Mutex<Vec<String>>);

static WARNINGS: Warnings = Warnings(Mutex::new(Vec::new()));

impl log::Log for Warnings {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn && metadata.target() == "threadwire::node"
    }

    fn log(&self, record: &log::Record<'_>) {
        let text = record.args().to_string();
        if self.enabled(record.metadata()) && text.contains("metrics.listen") {
            self.0.lock().push(text);
        }
    }

    fn flush(&self) {}
}

#[test]
fn an_address_that_other_machines_reach_is_warned_of_and_one_of_loopback_is_not() {
    let _alone = alone();
    log::set_logger(&WARNINGS).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    let mut config = with_endpoint();
    drop(start(config.clone()));
    config.metrics.listen = Some("[::1]:0".parse().unwrap());
    // Not every machine has IPv6.
    drop(Node::builder().config(config.clone()).start());
    assert_eq!(*WARNINGS.0.lock(), [""; 0]);
    config.metrics.listen = Some("0.0.0.0:0".parse().unwrap());
    let node = start(config);
    let warnings = std::mem::take(&mut *WARNINGS.0.lock());
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("whoever reaches it reads the metrics"), "{warnings:?}");
    let port = node.metrics_addr().unwrap().port();
    fetch(([127, 0, 0, 1], port).into());
}
