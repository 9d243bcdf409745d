//! What each live field does from the reload on that changes it, field by field.
//!
//! Everything begins with times that no test waits for: what happens within its patience is the reload's doing.

use std::collections::BTreeSet;
use std::time::Duration;

use threadwire::config::Config;

use crate::common::{PATIENCE, alone, quick};
use crate::{LIVE, begins, deadlines};

/// What shows that these fields hold since the reload.
pub(crate) type Effect = (&'static [&'static str], fn());

/// Fields whose effect other tests show.
const ELSEWHERE: &[&str] = &[
    // addresses.rs
    "listen",
    "metrics.listen",
    "security.public",
    // messages.rs
    "heartbeat",
    "idle_timeout",
    "send_deadline",
    "queue_messages",
    "queue_bytes",
    "offline",
    "message_ttl",
    "requests",
    "unknown_peers",
    "max_message",
    "memory_bytes",
    // limits.rs
    "inbound",
    "outbound",
    "half_open",
    "half_open_per_ip",
    "inbound_per_ip",
    "max_threads",
    "peer",
    // tests/trust.rs
    "security.trust",
    "security.trusted",
    "security.roots",
    "security.certificate",
    // The program's own: tests/node_example.rs.
    "log.level",
    "log.file",
];

pub(crate) const HOUR: Duration = Duration::from_secs(3600);
/// As short as a deadline may be set here.
pub(crate) const SHORT: Duration = Duration::from_millis(5);

/// A node's configuration whose deadlines outlast every test.
pub(crate) fn lasting() -> Config {
    let mut config = quick();
    // So that a test fails, and does not hang.
    let dial = 3 * PATIENCE;
    (config.resolve_timeout, config.connect_timeout, config.handshake_timeout) = (dial, dial, dial);
    (config.heartbeat, config.idle_timeout) = (HOUR, 2 * HOUR);
    (config.slow_after, config.write_timeout) = (HOUR, 2 * HOUR);
    (config.handler_watchdog, config.stable_after, config.resume_window) = (HOUR, HOUR, HOUR);
    (config.send_deadline, config.unknown_timeout) = (HOUR, HOUR);
    config
}

#[test]
fn every_live_field_is_shown_to_have_its_effect() {
    let shown: Vec<&str> =
        [deadlines::EFFECTS, begins::EFFECTS].into_iter().flatten().flat_map(|row| row.0).copied().collect();
    let all: BTreeSet<&str> = shown.iter().chain(ELSEWHERE).copied().collect();
    assert_eq!(all.len(), shown.len() + ELSEWHERE.len(), "each is in one place");
    assert_eq!(all, LIVE.iter().map(|(field, _)| *field).collect());
}

#[test]
fn every_deadline_that_is_shortened_ends_what_waits_and_what_begins() {
    each_of(deadlines::EFFECTS);
}

#[test]
fn every_other_setting_holds_for_what_begins_after_the_reload() {
    each_of(begins::EFFECTS);
}

fn each_of(effects: &[Effect]) {
    for (fields, shows) in effects {
        let _alone = alone();
        println!("{}", fields.join(", "));
        shows();
    }
}
