//! The shipped `config.toml` says what the code says, and a wrong file is explained: file, line, field, value, allowed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use threadwire::config::{BackoffPolicy, Config, Peer};
use threadwire::ident::PeerId;

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config.toml");

#[test]
fn the_shipped_file_is_the_default_except_for_the_data_folder() {
    let mut config = Config::from_file(SHIPPED).unwrap();
    assert_eq!(config.data_dir, Some(PathBuf::from("./threadwire-data")));
    config.data_dir = None;
    assert_eq!(config, Config::default());
}

#[test]
fn the_shipped_file_names_every_field_with_a_comment_before_it() {
    let text = std::fs::read_to_string(SHIPPED).unwrap();
    // The refusal of an unknown field lists the known ones: no list to keep here.
    for (section, end) in [
        ("", "\n["),
        ("[security]\n", "\n["),
        ("[backoff]\n", "\n["),
        ("[tcp]\n", "\n["),
        ("[threads]\n", "\n# ---"),
        ("[metrics]\n", "\n# ---"),
        ("[log]\n", "\n# ---"),
    ] {
        let error = Config::parse(&format!("{section}zzz = 1\n"), "x").unwrap_err();
        let fields: Vec<&str> = error.what.split('`').skip(1).step_by(2).collect();
        assert!(!fields.is_empty(), "{error}");
        let part = &text[text.find(section).unwrap()..];
        let part = &part[..part.find(end).unwrap()];
        let lines: Vec<&str> = part.lines().collect();
        let sections = ["security", "backoff", "tcp", "threads", "metrics", "log", "peer"];
        for field in fields.into_iter().filter(|field| !sections.contains(field)) {
            let at = lines.iter().position(|line| line.starts_with(&format!("{field} = ")));
            let at = at.unwrap_or_else(|| panic!("config.toml does not name {section}{field}"));
            assert!(lines[at - 1].starts_with("# "), "config.toml does not explain {section}{field}");
        }
    }
    assert!(text.contains("# [[peer]]"));
}

#[test]
fn the_peer_in_the_shipped_file_works_once_the_comment_signs_are_gone() {
    let text = std::fs::read_to_string(SHIPPED).unwrap();
    let (before, example) = text.split_once("# [[peer]]").unwrap();
    let text = format!("{before}[[peer]]{}", example.replace("\n# ", "\n"));
    let config = Config::parse(&text, "config.toml").unwrap();
    assert_eq!(config.peers.len(), 1);
    assert_eq!((config.peers[0].name.as_str(), config.peers[0].addresses.len()), ("north", 3));
}

#[test]
fn every_unit_and_every_off_is_read() {
    let text = r#"
        listen = "off"
        advertise = "192.0.2.7:4000"
        resume_window = "1 h"
        handler_watchdog = "2 min"
        slow_after = "900 ms"
        unknown_peers = 0
        unknown_bytes = "64 KiB"
        unknown_timeout = "3 s"
        ack_delay = "1 ms"
        queue_bytes = 4096
        window_bytes = "1 MiB"
        max_message = "65536 B"
        memory_bytes = "2 GiB"
        backoff = { policy = "exponential", base = "1 s", cap = "1 h", jitter = 0 }
        tcp = { nodelay = false, keepalive = "off", user_timeout = "off", notsent_low_water_mark = "off" }
        metrics = { listen = "127.0.0.1:9100" }
        log = { level = "trace", file = "node.log" }
    "#;
    let config = Config::parse(text, "x").unwrap();
    assert_eq!((config.listen, config.advertise), (vec![], "192.0.2.7:4000".parse().ok()));
    assert_eq!([config.resume_window, config.handler_watchdog], [Duration::from_secs(3600), Duration::from_secs(120)]);
    assert_eq!([config.slow_after, config.unknown_timeout], [900, 3000].map(Duration::from_millis));
    assert_eq!((config.unknown_peers, config.unknown_bytes), (0, 64 << 10));
    assert_eq!(config.ack_delay, Duration::from_millis(1));
    assert_eq!([config.queue_bytes, config.window_bytes, config.max_message], [4096, 1 << 20, 65536]);
    assert_eq!(config.memory_bytes, 2 << 30);
    assert_eq!((config.backoff.policy, config.backoff.jitter), (BackoffPolicy::Exponential, 0.0));
    assert_eq!((config.log.level, config.log.file), (log::LevelFilter::Trace, Some(PathBuf::from("node.log"))));
    assert_eq!(config.metrics.listen, "127.0.0.1:9100".parse().ok());
    assert_eq!((config.tcp.keepalive, config.tcp.user_timeout, config.tcp.notsent_low_water_mark), (None, None, None));
}

#[test]
fn listen_addresses_are_one_or_a_list_or_none() {
    let listen = |value: &str| {
        Config::parse(&format!("listen = {value}\nsecurity = {{ public = [\"open\"] }}\n"), "x").unwrap().listen
    };
    let addrs = |addrs: &[&str]| addrs.iter().map(|addr| addr.parse().unwrap()).collect::<Vec<SocketAddr>>();
    assert_eq!(listen("\"127.0.0.1:1\""), addrs(&["127.0.0.1:1"]));
    assert_eq!(listen("[\"0.0.0.0:1\", \"[::]:1\"]"), addrs(&["0.0.0.0:1", "[::]:1"]));
    assert_eq!(listen("[\"127.0.0.1:0\", \"127.0.0.1:0\"]"), addrs(&["127.0.0.1:0"; 2]), "two ports of its choice");
    assert_eq!(listen("[]"), addrs(&[]));
    assert_eq!(listen("\"off\""), addrs(&[]));
}

#[test]
fn limits_per_address_and_the_thread_budget_can_be_set_or_left_to_the_rest() {
    let text = "half_open_per_ip = 4\ninbound_per_ip = 8\nmax_threads = 6\n";
    let config = Config::parse(text, "x").unwrap();
    assert_eq!((config.half_open_per_ip, config.inbound_per_ip, config.max_threads), (Some(4), Some(8), Some(6)));
    let text = "half_open_per_ip = \"off\"\ninbound_per_ip = \"off\"\nmax_threads = \"auto\"\n";
    assert_eq!(Config::parse(text, "x").unwrap(), Config::default());
}

/// A wrong text, the line that is to blame, and what the error must say beside it: field, value, what is allowed.
struct Wrong {
    text: &'static str,
    line: usize,
    says: &'static [&'static str],
}

const fn wrong(text: &'static str, line: usize, says: &'static [&'static str]) -> Wrong {
    Wrong { text, line, says }
}

const ID: &str = "id = \"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\"";

/// `@ID` stands for a whole `id` field.
#[rustfmt::skip]
const WRONG: &[Wrong] = &[
    // Not TOML.
    wrong("\nheartbeat = \n", 2, &["heartbeat =: not TOML: "]),
    wrong("network = \"a\"\nheartbeat 10 s\n", 2, &["heartbeat 10 s: not TOML: "]),
    wrong("heartbeat = \"1 s\"\nheartbeat = \"2 s\"\n", 2, &["heartbeat", "duplicate"]),
    // Fields that do not exist.
    wrong("\n\nhartbeat = \"10 s\"\n", 3, &["hartbeat = \"10 s\"", "unknown field", "`heartbeat`"]),
    wrong("[backoff]\n# c\nbases = \"1 s\"\n", 3, &["backoff.bases = \"1 s\"", "unknown field", "`base`"]),
    wrong("[udp]\nx = 1\n", 1, &["[udp]: unknown field", "`tcp`"]),
    wrong("[[peer]]\nname = \"a\"\n@ID\nadresses = []\n", 4, &["peer[0].adresses = []", "unknown field", "`addresses`"]),
    // Fields that are missing.
    wrong("\n[[peer]]\nname = \"a\"\n@ID\n", 2, &["[[peer]]: missing field `addresses`"]),
    // Values of another type.
    wrong("network = 5\n", 1, &["network = 5", "allowed: a string"]),
    wrong("inbound = \"many\"\n", 1, &["inbound = \"many\"", "allowed: a whole number"]),
    wrong("inbound = -1\n", 1, &["inbound = -1", "allowed: a whole number"]),
    wrong("inbound = 1.5\n", 1, &["inbound = 1.5", "allowed: a whole number"]),
    wrong("\n[tcp]\nnodelay = \"yes\"\n", 3, &["tcp.nodelay = \"yes\"", "allowed: a boolean"]),
    wrong("[backoff]\njitter = \"half\"\n", 2, &["backoff.jitter = \"half\"", "allowed: a number from 0 to 1"]),
    wrong("backoff = 3\n", 1, &["backoff = 3", "allowed: a section [backoff]"]),
    wrong("peer = \"a\"\n", 1, &["peer = \"a\"", "allowed: a sequence"]),
    // Values that cannot be read.
    wrong("heartbeat = 10\n", 1, &["heartbeat = 10", "allowed: a whole number with a unit", "\"5 s\""]),
    wrong("heartbeat = \"10 parsecs\"\n", 1, &["heartbeat = \"10 parsecs\"", "(ms, s, min or h)"]),
    wrong("heartbeat = \"off\"\n", 1, &["heartbeat = \"off\"", "(ms, s, min or h)"]),
    wrong("[tcp]\nkeepalive = true\n", 2, &["tcp.keepalive = true", "or \"off\""]),
    wrong("queue_bytes = \"8 MB\"\n", 1, &["queue_bytes = \"8 MB\"", "(B, KiB, MiB or GiB)"]),
    wrong("[tcp]\nnotsent_low_water_mark = \"4 GiB\"\n", 2, &["tcp.notsent_low_water_mark", "below 4 GiB"]),
    wrong("listen = \"localhost:1\"\n", 1, &["listen = \"localhost:1\"", "an IP address and a port", "or \"off\""]),
    wrong("listen = 50005\n", 1, &["listen = 50005", "a list of them, or \"off\""]),
    wrong("listen = [\n  \"[::]:1\",\n  \"north\",\n]\n", 3, &["listen[1] = \"north\"", "an IP address and a port"]),
    wrong("inbound_per_ip = \"auto\"\n", 1, &["inbound_per_ip = \"auto\"", "a whole number, or \"off\""]),
    wrong("max_threads = \"off\"\n", 1, &["max_threads = \"off\"", "a whole number, or \"auto\""]),
    wrong("[backoff]\npolicy = \"linear\"\n", 2, &["backoff.policy = \"linear\"", "`fibonacci` or `exponential`"]),
    wrong("[[peer]]\nname = \"a\"\nid = \"12\"\naddresses = []\n", 3, &["peer[0].id = \"12\"", "64 hexadecimal digits"]),
    wrong("[[peer]]\nname = \"a\"\n@ID\naddresses = [\n  \"192.0.2.1:1\",\n  \"north\",\n]\n", 6,
        &["peer[0].addresses[1] = \"north\"", "an IP address or a host name, and a port"]),
    wrong("[[peer]]\nname = \"a\"\n@ID\naddresses = [\"10.0.0.256:1\"]\n", 4,
        &["peer[0].addresses[0] = \"10.0.0.256:1\"", "an IP address or a host name, and a port"]),
    // Values out of range.
    wrong("\nadvertise = \"0.0.0.0:1\"\n", 2, &["advertise = \"0.0.0.0:1\"", "no wildcard"]),
    wrong("advertise = \"192.0.2.1:0\"\n", 1, &["advertise = \"192.0.2.1:0\"", "a port above 0"]),
    wrong("network = \"\"\n", 1, &["network = \"\"", "1 to 64 bytes"]),
    wrong("data_dir = \"\"\n", 1, &["data_dir = \"\"", "allowed: a folder"]),
    wrong("resolve_timeout = \"0 s\"\n", 1, &["resolve_timeout = \"0 s\"", "allowed: 1 ms to 10 min"]),
    wrong("resolve_threads = 0\n", 1, &["resolve_threads = 0", "allowed: 1 to 64"]),
    wrong("connect_timeout = \"0 s\"\n", 1, &["connect_timeout = \"0 s\"", "allowed: 1 ms to 10 min"]),
    wrong("handshake_timeout = \"11 min\"\n", 1, &["handshake_timeout = \"11 min\"", "allowed: 1 ms to 10 min"]),
    wrong("heartbeat = \"0 s\"\n", 1, &["heartbeat = \"0 s\"", "allowed: 1 ms to 24 h"]),
    wrong("idle_timeout = \"0 ms\"\n", 1, &["idle_timeout = \"0 ms\"", "allowed: 1 ms to 24 h"]),
    wrong("write_timeout = \"0 h\"\n", 1, &["write_timeout = \"0 h\"", "allowed: 1 ms to 24 h"]),
    wrong("slow_after = \"0 s\"\n", 1, &["slow_after = \"0 s\"", "allowed: 1 ms to 24 h"]),
    wrong("unknown_timeout = \"0 s\"\n", 1, &["unknown_timeout = \"0 s\"", "allowed: 1 ms to 24 h"]),
    wrong("unknown_bytes = 0\n", 1, &["unknown_bytes = 0", "at least 1 B"]),
    wrong("unknown_peers = 65537\n", 1, &["unknown_peers = 65537", "allowed: 0 to 65536"]),
    wrong("unknown_peers = -1\n", 1, &["unknown_peers = -1", "allowed: a whole number"]),
    wrong("handler_watchdog = \"25 h\"\n", 1, &["handler_watchdog = \"25 h\"", "allowed: 1 ms to 24 h"]),
    wrong("stable_after = \"0 s\"\n", 1, &["stable_after = \"0 s\"", "allowed: 1 ms to 24 h"]),
    wrong("resume_window = \"0 s\"\n", 1, &["resume_window = \"0 s\"", "allowed: 1 ms to 24 h"]),
    wrong("ack_delay = \"2 s\"\n", 1, &["ack_delay = \"2 s\"", "allowed: 1 ms to 1 s"]),
    wrong("send_deadline = \"0 s\"\n", 1, &["send_deadline = \"0 s\"", "allowed: 1 ms to 24 h"]),
    wrong("queue_messages = 0\n", 1, &["queue_messages = 0", "at least 1"]),
    wrong("queue_bytes = 0\n", 1, &["queue_bytes = 0", "at least 1 B"]),
    wrong("requests = 0\n", 1, &["requests = 0", "at least 1"]),
    wrong("window_bytes = \"255 KiB\"\n", 1, &["window_bytes = \"255 KiB\"", "at least 256 KiB"]),
    wrong("max_message = 0\n", 1, &["max_message = 0", "1 B to 4294967295 B"]),
    wrong("memory_bytes = \"8 GiB\"\nmax_message = \"4 GiB\"\n", 2, &["max_message = \"4 GiB\"", "1 B to 4294967295 B"]),
    wrong("half_open_per_ip = 0\n", 1, &["half_open_per_ip = 0", "at least 1, or \"off\""]),
    wrong("inbound_per_ip = 0\n", 1, &["inbound_per_ip = 0", "at least 1, or \"off\""]),
    wrong("max_threads = 5\n", 1, &["max_threads = 5", "at least 6", "or \"auto\""]),
    wrong("listen = [\"[::]:7\", \"[::]:7\"]\n", 1, &["listen = ", "each address once"]),
    wrong("listen = [\"0.0.0.0:7\", \"224.0.0.1:7\"]\n", 1, &["listen = ", "an address of this machine"]),
    wrong("half_open = 0\n", 1, &["half_open = 0", "at least 1"]),
    wrong("inbound = 0\noutbound = 0\n", 1, &["inbound = 0", "or outbound at least 1"]),
    wrong("[backoff]\nbase = \"0 ms\"\n", 2, &["backoff.base = \"0 ms\"", "allowed: 1 ms to 24 h"]),
    wrong("[backoff]\ncap = \"2 min\"\njitter = 1.5\n", 3, &["backoff.jitter = 1.5", "allowed: 0 to 1"]),
    wrong("[backoff]\njitter = nan\n", 2, &["backoff.jitter = nan", "allowed: 0 to 1"]),
    wrong("[tcp]\nkeepalive = \"10 ms\"\n", 2, &["tcp.keepalive = \"10 ms\"", "allowed: 1 s to 8 h"]),
    wrong("[tcp]\nkeepalive = \"1500 ms\"\n", 2, &["tcp.keepalive = \"1500 ms\"", "whole seconds"]),
    wrong("[tcp]\nuser_timeout = \"0 s\"\n", 2, &["tcp.user_timeout = \"0 s\"", "allowed: 1 ms to 24 h"]),
    wrong("[tcp]\nnotsent_low_water_mark = 0\n", 2, &["tcp.notsent_low_water_mark = 0", "at least 1 B, or \"off\""]),
    wrong("[threads]\nrx_stack = 1\n", 2, &["threads.rx_stack = 1", "64 KiB to 1 GiB"]),
    wrong("[threads]\nrx_handler_stack = \"2 GiB\"\n", 2, &["threads.rx_handler_stack = \"2 GiB\"", "64 KiB to 1 GiB"]),
    wrong("[threads]\ntx_stack = \"4 KiB\"\n", 2, &["threads.tx_stack = \"4 KiB\"", "64 KiB to 1 GiB"]),
    wrong("[metrics]\nlisten = \"here\"\n", 2, &["metrics.listen = \"here\"", "an IP address and a port", "or \"off\""]),
    wrong("[metrics]\n\nlisten = \"224.0.0.1:9100\"\n", 3, &["metrics.listen = ", "an address of this machine"]),
    wrong("[metrics]\nlisten = \"127.0.0.1:50005\"\n", 2,
        &["metrics.listen = \"127.0.0.1:50005\"", "an address that nodes do not connect to"]),
    wrong("max_threads = 6\nmetrics = { listen = \"127.0.0.1:0\" }\n", 1, &["max_threads = 6", "at least 7 (5 of the node"]),
    wrong("[log]\nlevel = \"loud\"\n", 2, &["log.level = \"loud\"", "allowed: \"off\", \"error\", \"warn\""]),
    wrong("[log]\nlevel = 3\n", 2, &["log.level = 3", "\"debug\" or \"trace\""]),
    wrong("[log]\n\nfile = \"\"\n", 3, &["log.file = \"\"", "a file, or \"off\" for standard error"]),
    wrong("[log]\nfile = 1\n", 2, &["log.file = 1", "the path of a file, or \"off\""]),
    wrong("[[peer]]\nname = \"\"\n@ID\naddresses = [\"192.0.2.1:1\"]\n", 2, &["peer[0].name = \"\"", "at least one"]),
    wrong("[[peer]]\nname = \"a\"\n@ID\naddresses = []\n", 4, &["peer[0].addresses = []", "at least one address"]),
    wrong("[[peer]]\nname = \"a\"\n@ID\naddresses = [\"[::]:1\"]\n", 4, &["peer[0].addresses", "[::]:1", "no wildcard"]),
    wrong("[[peer]]\nname = \"a\"\n@ID\naddresses = [\"north:0\"]\n", 4, &["peer[0].addresses", "north:0", "a port above 0"]),
    // Values that contradict each other; the file may say only one of them.
    wrong("heartbeat = \"40 s\"\n", 1, &["idle_timeout = 30 s (default)", "longer than heartbeat (40 s)"]),
    wrong("idle_timeout = \"10 s\"\n", 1, &["idle_timeout = \"10 s\"", "longer than heartbeat (10 s)"]),
    wrong("\nmax_message = \"2 GiB\"\n", 2, &["max_message = \"2 GiB\"", "at most memory_bytes (1 GiB)"]),
    wrong("write_timeout = \"5 s\"\n", 1, &["slow_after = 5 s (default)", "shorter than write_timeout (5 s)"]),
    wrong("\nslow_after = \"20 s\"\n", 2, &["slow_after = \"20 s\"", "shorter than write_timeout (20 s)"]),
    wrong("unknown_bytes = \"2 GiB\"\n", 1, &["unknown_bytes = \"2 GiB\"", "at most memory_bytes (1 GiB)"]),
    wrong("queue_bytes = \"2 GiB\"\n", 1, &["queue_bytes = \"2 GiB\"", "at most memory_bytes (1 GiB)"]),
    wrong("window_bytes = \"2 GiB\"\n", 1, &["window_bytes = \"2 GiB\"", "at most memory_bytes (1 GiB)"]),
    wrong("\n\nmemory_bytes = \"32 MiB\"\n", 3, &["max_message = 64 MiB (default)", "at most memory_bytes (32 MiB)"]),
    wrong("memory_bytes = \"128 MiB\"\n", 1, &["memory_bytes = \"128 MiB\"", "at least 144 MiB: 256 KiB for each of"]),
    wrong("\ninbound = 9000\n", 2, &["memory_bytes = 1 GiB (default)", "at least 2266 MiB", "inbound (9000)"]),
    wrong("inbound = 9223372036854775807\n", 1, &["memory_bytes = 1 GiB (default)", "inbound (9223372036854775807)"]),
    wrong("[backoff]\nbase = \"1 min\"\n", 2, &["backoff.cap = 30 s (default)", "at least backoff.base (1 min)"]),
    wrong("[backoff]\nbase = \"3 s\"\ncap = \"2 s\"\n", 3, &["backoff.cap = \"2 s\"", "at least backoff.base (3 s)"]),
    wrong("[[peer]]\nname = \"a\"\n@ID\naddresses = [\"192.0.2.1:1\"]\n\
           [[peer]]\nname = \"b\"\n@ID\naddresses = [\"192.0.2.1:1\"]\n", 7, &["peer[1].id = ", "no peer above has"]),
    wrong("[[peer]]\nname = \"a\"\n@ID\naddresses = [\"192.0.2.1:1\"]\n\
           [[peer]]\nname = \"a\"\n@ID\naddresses = [\"192.0.2.1:1\"]\n", 6, &["peer[1].name = \"a\"", "no peer above has"]),
];

#[test]
fn a_wrong_file_is_explained_by_file_line_field_value_and_what_is_allowed() {
    for Wrong { text, line, says } in WRONG {
        let text = text.replace("@ID", ID);
        let error = Config::parse(&text, "some/node.toml").expect_err(&text);
        assert_eq!(error.place, format!("some/node.toml:{line}"), "{text}\n{error}");
        for part in *says {
            assert!(error.what.contains(part), "{text}\n{error}\ndoes not say: {part}");
        }
        assert!(!error.to_string().contains('\n'), "one line for a log: {error}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none.toml");
    let error = Config::from_file(&path).unwrap_err();
    assert_eq!(error.place, path.display().to_string());
    assert!(error.what.starts_with("cannot be read: "), "{error}");
}

#[test]
fn a_configuration_made_in_code_passes_the_same_check() {
    Config::default().validate().unwrap();
    Config::loopback().validate().unwrap();
    assert_eq!(Config::loopback().listen, ["127.0.0.1:0".parse::<SocketAddr>().unwrap()]);

    let mut config = Config::loopback();
    config.backoff.cap = Duration::from_micros(1_500);
    let error = config.validate().unwrap_err();
    assert_eq!(error.to_string(), "backoff.cap: 1.5ms is not allowed; allowed: at least backoff.base (100 ms)");

    let mut config = Config::loopback();
    let peer = Peer::new("south", PeerId::from_bytes([7; 32]), ["192.0.2.1:50005".parse().unwrap()]);
    config.peers = vec![peer.clone(), peer];
    let error = config.validate().unwrap_err();
    assert_eq!(error.place, "peer[1].name");
    config.peers.pop();
    config.validate().unwrap();
}
