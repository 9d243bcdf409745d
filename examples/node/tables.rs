//! Peers and counters as tables for a person, and as JSON.
//!
//! Owns: nothing. Threads: the main one. Locks: none. Blocks on: nothing.
//! Upholds: both forms say the same of a peer that matters: who, where, how it goes.

use std::fmt::Display;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use threadwire::PeerInfo;
use threadwire::metrics::MetricsSnapshot;

use crate::line::Label;

/// The heads of the columns.
const HEADS: [&str; 12] = [
    "PEER",
    "STATE",
    "KIND",
    "ADDRESS",
    "SINCE",
    "RTT",
    "QUEUED",
    "OLDEST",
    "ACCEPTED",
    "ACKED",
    "RECEIVED",
    "NEXT DIAL",
];

/// Peers for a person: a head, then a row for each.
pub fn peers_text(peers: &[(Label, PeerInfo)]) -> String {
    let now = Instant::now();
    let rows = peers.iter().map(|(label, peer)| {
        [
            label.to_string(),
            state(peer),
            or_dash(peer.kind),
            or_dash(peer.remote_addr),
            or_dash(peer.since.map(|since| short(now - since))),
            or_dash(peer.rtt.map(short)),
            peer.queued.to_string(),
            or_dash(peer.oldest_age.map(short)),
            peer.stats.accepted.to_string(),
            peer.stats.acked.to_string(),
            peer.stats.received.to_string(),
            or_dash(peer.next_retry.map(|next| format!("in {}", short(next.saturating_duration_since(now))))),
        ]
    });
    let rows: Vec<[String; 12]> = std::iter::once(HEADS.map(str::to_owned)).chain(rows).collect();
    let widths: [usize; 12] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default());
    let line = |row: &[String; 12]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ")
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Peers for a script.
pub fn peers_json(peers: &[(Label, PeerInfo)]) -> Value {
    let now = Instant::now();
    let text = |value: Option<&dyn Display>| value.map(ToString::to_string);
    let peer = |(label, peer): &(Label, PeerInfo)| {
        json!({
            "peer": label.id.to_string(),
            "name": label.name,
            "state": state(peer),
            "conn": text(peer.conn.as_ref().map(|conn| conn as _)),
            "kind": text(peer.kind.as_ref().map(|kind| kind as _)),
            "local_addr": peer.local_addr,
            "remote_addr": peer.remote_addr,
            "advertised": peer.advertised,
            "since_ms": peer.since.map(|since| millis(now - since)),
            "rtt_us": peer.rtt.map(|rtt| rtt.as_micros() as u64),
            "queued": peer.queued,
            "oldest_ms": peer.oldest_age.map(millis),
            "accepted": peer.stats.accepted,
            "acked": peer.stats.acked,
            "returned": peer.stats.returned,
            "unknown": peer.stats.unknown,
            "received": peer.stats.received,
            "bytes_sent": peer.stats.bytes_sent,
            "bytes_received": peer.stats.bytes_received,
            "attempts": peer.attempts,
            "next_dial_ms": peer.next_retry.map(|next| millis(next.saturating_duration_since(now))),
        })
    };
    peers.iter().map(peer).collect()
}

/// Counters for a script.
pub fn metrics_json(metrics: &MetricsSnapshot) -> Value {
    // Numbers and maps by name: there is nothing in it that has no JSON.
    serde_json::to_value(metrics).unwrap_or_default()
}

/// Counters for a person: a row for each, those by cause only where there is one.
pub fn metrics_text(metrics: &MetricsSnapshot) -> String {
    let mut rows = Vec::new();
    flatten("", &metrics_json(metrics), &mut rows);
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    let row = |(name, value): &(String, Value)| format!("{name:width$}  {value}");
    rows.iter().map(row).collect::<Vec<_>>().join("\n")
}

/// `{"a": {"b": 1}}` as `a.b` and 1.
fn flatten(name: &str, value: &Value, rows: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            flatten(&if name.is_empty() { key.clone() } else { format!("{name}.{key}") }, value, rows);
        }),
        value if name.contains('.') && value.as_u64() == Some(0) => {}
        value => rows.push((name.to_owned(), value.clone())),
    }
}

fn state(peer: &PeerInfo) -> String {
    peer.status.map_or_else(|| "away".to_owned(), |status| status.to_string())
}

fn or_dash(value: Option<impl Display>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

fn short(time: Duration) -> String {
    format!("{time:.1?}")
}

fn millis(time: Duration) -> u64 {
    time.as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_without_a_count_are_left_out_for_a_person() {
        let mut rows = Vec::new();
        flatten("", &json!({"dials": 0, "ends": {"local": {"idle": 2, "shutdown": 0}}}), &mut rows);
        assert_eq!(rows, [("dials".to_owned(), json!(0)), ("ends.local.idle".to_owned(), json!(2))]);
    }
}
