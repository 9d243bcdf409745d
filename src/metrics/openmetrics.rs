//! A snapshot as OpenMetrics text: what scrapers read.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: every field of a snapshot is in the text, once, under its own name: the fields are the only list of names,
//! and one that has no row here does not compile. No label is a peer's id: anybody can make ids, and a scraper keeps
//! each as a time series of its own; what is counted per peer is in the text as a sum over all of them.

use std::fmt::{Display, Write};
use std::time::Duration;

use super::cause::Cause;
use super::histogram::Histogram;
use super::phases::{Cast, Phase, PhaseRow, Phases};
use super::table::ByCause;
use super::tally::Volume;
use super::{DialFailures, Ends, KindTraffic, MetricsSnapshot, Traffic};

/// The `Content-Type` of what [`MetricsSnapshot::to_openmetrics`] returns.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Before every name.
const PREFIX: &str = "threadwire_";

/// Writes each field of a struct as its row says: the family's name is the field's.
macro_rules! rows {
    ($text:ident, $type:ident of $from:expr; $($field:ident: $write:ident($($more:expr),*);)*) => {
        // Without `..`: a field without a row does not compile.
        let $type { $($field),* } = $from;
        $($text.$write(stringify!($field), $field, $($more),*);)*
    };
}

impl MetricsSnapshot {
    /// These counts as [OpenMetrics 1.0](https://prometheus.io/docs/specs/om/open_metrics_spec/) text, to be served as
    /// [`OPENMETRICS`].
    ///
    /// Names are `threadwire_` and the field's. Counters end with `_total`; those by cause (`refused_by`) have the name of
    /// their sum (`threadwire_refused_total`) and a label `cause`, or `direction` for who dialled; ends have a label `by`
    /// beside it: `local`, `remote`, or `none` for what was lost. Sizes end with their unit, `_bytes`. Kinds of messages
    /// are a label `kind`. Peers are none: their ids would be time series without a bound.
    #[must_use]
    pub fn to_openmetrics(&self) -> String {
        let mut text = Text(String::with_capacity(32 * 1024));
        rows! { text, MetricsSnapshot of self;
            accepted: counter("Connections accepted.");
            accept_errors: counter("Accepts that failed.");
            accepts_starved: counter("Accepts that failed for want of descriptors or memory.");
            evicted: counter("Unproven connections sent away to make room for newcomers.");
            spawns_failed: counter("Sessions that did not start because the system refused a thread.");
            refused: is_a_sum();
            refused_by: by("cause", "Connections closed before their handshake, for want of a slot.");
            dials: counter("Dials begun.");
            lookups: counter("Lookups of names begun.");
            lookups_failed: counter("Lookups that failed or were refused.");
            lookups_refused: counter("Lookups refused because every resolver thread was held.");
            dials_failed: is_a_sum();
            dials_failed_by: dials("Dials that failed, by how far they came.");
            handshakes_failed: is_a_sum();
            handshakes_failed_by: ends("Inbound connections whose handshake failed or was refused.");
            handshake_timeouts: counter("Handshakes that took too long, inbound and outbound.");
            steps_skipped: counter("Steps of handshakes not done, because their connection had gone before.");
            duplicates: counter("Connections proven and not attached: another one of the same peers was.");
            identity_clashes: counter("Connections refused because another process has the same identity.");
            sessions_started: is_a_sum();
            sessions_started_by: by("direction", "Sessions attached.");
            sessions_ended: is_a_sum();
            sessions_ended_by: ends("Sessions ended, by who ended them and why.");
            sessions_cut: counter("Sessions cut because no whole frame was heard, or writing stalled.");
            slow_peers: counter("Times that a connected peer became slow.");
            unknown_refused: counter("Messages and handles refused: too many unknown peers are waited for.");
            events_missed: counter("Events that the application did not take in time.");
            undelivered_missed: counter("Messages that failed and that nobody took: they are gone.");
            outgoing_missed: counter("Announcements of messages sent that did not fit a tap.");
            scrapes: counter("Requests for these metrics that were answered, this one not counted.");
            scrapes_failed: is_a_sum();
            scrapes_failed_by: by("cause", "Connections to the metrics endpoint that ended without the metrics.");
            broadcasts: counter("Broadcasts.");
            broadcast_taken: counter("Peers that took a broadcast, of all broadcasts.");
            broadcast_refused: counter("Peers that refused a broadcast, of all broadcasts.");
            anycasts: counter("Anycasts that a peer took.");
            peers_connected: gauge("Peers with a session.");
            queued_messages: gauge("Messages that wait to be written for the first time.");
            queued_bytes: gauge_of_bytes("Bytes of messages that wait to be written for the first time.");
            kept_bytes: gauge_of_bytes("Bytes taken for the wire and not acknowledged.");
            oldest_queued: gauge_of_seconds("How long the oldest message that waits to be written has waited.");
            phases: phases();
            ack_delay: histogram("How long acknowledgements took, of samples, from when a message was written.");
            memory_used: gauge_of_bytes("Memory of memory_bytes in use beyond the floors of the links.");
            memory_refused: counter("Times that there was no memory for a message or a window.");
            traffic: traffic();
        }
        text.0.push_str("# EOF\n");
        text.0
    }
}

/// What is written so far.
struct Text(String);

impl Text {
    fn counter(&mut self, field: &str, value: &u64, help: &str) {
        self.family(field, "counter", "", help).sample(&[], *value);
    }

    fn counter_of_bytes(&mut self, field: &str, value: &u64, help: &str) {
        self.family(field, "counter", "bytes", help).sample(&[], *value);
    }

    fn gauge_of_bytes(&mut self, field: &str, value: &u64, help: &str) {
        self.family(field, "gauge", "bytes", help).sample(&[], *value);
    }

    fn gauge(&mut self, field: &str, value: &u64, help: &str) {
        self.family(field, "gauge", "", help).sample(&[], *value);
    }

    fn gauge_of_seconds(&mut self, field: &str, value: &Duration, help: &str) {
        self.family(field, "gauge", "seconds", help).sample(&[], Seconds(*value));
    }

    fn histogram(&mut self, field: &str, histogram: &Histogram, help: &str) {
        self.family(field, "histogram", "seconds", help).histogram(&[], histogram);
    }

    fn phases(&mut self, _field: &str, phases: &Phases) {
        let Phases { outgoing_buffer, outgoing_transfer, incoming_buffer } = phases;
        let phases = [
            ("outgoing_buffer", outgoing_buffer),
            ("outgoing_transfer", outgoing_transfer),
            ("incoming_buffer", incoming_buffer),
        ];
        let mut open = self.family("phase_open", "gauge", "", "Messages that are in a phase of their delivery.");
        phases.iter().for_each(|(name, phase)| open.sample(&[("phase", name)], phase.open));
        if phases.iter().all(|(_, phase)| phase.rows.is_empty()) {
            // Of no node: some parsers take the lines of a family without samples for a mistake.
            return;
        }
        type Part = fn(&Volume) -> u64;
        let parts: [(Part, &str, &str); 2] =
            [(|volume| volume.messages, "", "Messages"), (|volume| volume.bytes, "bytes", "Bytes of messages")];
        for (part, unit, what) in parts {
            let help = format!("{what} that began a phase of their delivery.");
            self.family("phase_begun", "counter", unit, &help).of_phases(&phases, |family, labels, row| {
                family.sample(labels, part(&row.counts.begun));
            });
            let help = format!("{what} that ended a phase of their delivery, well or not.");
            self.family("phase_ended", "counter", unit, &help).of_phases(&phases, |family, labels, row| {
                for (result, volume) in [("ok", &row.counts.succeeded), ("failed", &row.counts.failed)] {
                    family.sample(&[labels, &[("result", result)]].concat(), part(volume));
                }
            });
        }
        let help = "How long a phase of a delivery took, of samples.";
        let mut family = self.family("phase", "histogram", "seconds", help);
        family.of_phases(&phases, |family, labels, row| family.histogram(labels, &row.counts.times));
    }

    /// A sum has no sample of its own: whoever reads adds its causes, and would count it twice.
    fn is_a_sum(&mut self, _field: &str, _sum: &u64) {}

    fn by<K: Cause>(&mut self, field: &str, counts: &ByCause<K>, label: &str, help: &str) {
        let mut family = self.family(field, "counter", "", help);
        counts.named().for_each(|(cause, count)| family.sample(&[(label, &cause)], count));
    }

    fn ends(&mut self, field: &str, ends: &Ends, help: &str) {
        self.family(field, "counter", "", help).ends(&[], ends);
    }

    fn dials(&mut self, field: &str, failures: &DialFailures, help: &str) {
        let DialFailures { connect, handshake } = failures;
        let mut family = self.family(field, "counter", "", help);
        for (cause, count) in connect.named() {
            family.sample(&[("stage", "connect"), ("by", "none"), ("cause", &cause)], count);
        }
        family.ends(&[("stage", "handshake")], handshake);
    }

    fn traffic(&mut self, _field: &str, traffic: &Traffic) {
        rows! { self, Traffic of traffic;
            messages_accepted: counter("Messages that send verbs took.");
            messages_acked: counter("Messages accepted that were handed over at the other side.");
            messages_returned: counter("Messages accepted that were returned: rejected, or ended before they were written.");
            messages_unknown: counter("Messages accepted that were written and never answered.");
            messages_written: counter("Best effort messages that were written.");
            messages_received: counter("Messages that came in and were claimed.");
            messages_unread: counter("Best effort messages that came while too many waited for the application: thrown away.");
            requests: counter("Questions asked; they are among the messages accepted.");
            answers: counter("Questions that were answered in time.");
            late_answers: counter("Answers that came after their question had ended.");
            unknown_answers: counter("Answers to no question of this process.");
            bytes_sent: counter_of_bytes("Bytes written to connections after their handshakes, frames and repeats included.");
            bytes_received: counter_of_bytes("Bytes read from connections after their handshakes.");
            returned_by: by("cause", "Messages of this node that other sides rejected.");
            rejected_by: by("cause", "Messages of others that this node rejected.");
            kinds: kinds();
        }
    }

    fn kinds(&mut self, _field: &str, kinds: &std::collections::BTreeMap<String, KindTraffic>) {
        if kinds.is_empty() {
            // Some parsers take the lines of a family without samples for a mistake.
            return;
        }
        // A family's samples stand together.
        let (mut all_sent, mut all_received) = (Vec::new(), Vec::new());
        for (name, KindTraffic { sent, received }) in kinds {
            all_sent.push((name, *sent));
            all_received.push((name, *received));
        }
        for (field, help, counts) in [
            ("kind_sent", "Messages of registered kinds that send verbs took.", all_sent),
            ("kind_received", "Messages of registered kinds that came.", all_received),
        ] {
            let mut family = self.family(field, "counter", "", help);
            counts.into_iter().for_each(|(name, count)| family.sample(&[("kind", name)], count));
        }
    }

    /// The lines before a family's samples.
    fn family(&mut self, field: &str, kind: &'static str, unit: &str, help: &str) -> Family<'_> {
        let name = family_name(field, unit);
        self.line(format_args!("# TYPE {name} {kind}"));
        // Its unit is the last word of its name in any case, and some parsers refuse the line of a histogram's.
        if !unit.is_empty() && kind != "histogram" {
            self.line(format_args!("# UNIT {name} {unit}"));
        }
        self.line(format_args!("# HELP {name} {}", escaped(help)));
        Family { text: self, name, kind }
    }

    fn line(&mut self, line: impl Display) {
        // Writing to a text does not fail.
        let _ = writeln!(self.0, "{line}");
    }
}

/// The samples of one name.
struct Family<'a> {
    text: &'a mut Text,
    name: String,
    kind: &'static str,
}

impl Family<'_> {
    fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        let suffix = if self.kind == "counter" { "_total" } else { "" };
        self.named_sample(suffix, labels, value);
    }

    fn named_sample(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        self.text.line(format_args!("{}{suffix}{labels} {value}", self.name));
    }

    fn histogram(&mut self, labels: &[(&str, &str)], histogram: &Histogram) {
        let bounds = Histogram::bounds().map(|bound| Seconds(bound).to_string()).chain(["+Inf".to_owned()]);
        // Each bucket of the text holds all that took no longer, also what the buckets before it hold.
        let mut count = 0;
        for (bound, bucket) in bounds.zip(&histogram.buckets) {
            count += bucket;
            self.named_sample("_bucket", &[labels, &[("le", &bound)]].concat(), count);
        }
        self.named_sample("_sum", labels, Seconds(histogram.sum));
        self.named_sample("_count", labels, count);
    }

    /// What `put` writes of each row of each phase.
    fn of_phases(&mut self, phases: &[(&str, &Phase)], put: impl Fn(&mut Self, &[(&str, &str)], &PhaseRow)) {
        for (name, phase) in phases {
            for row in &phase.rows {
                // Every sample of a family has the same labels.
                let cast = match row.cast {
                    Some(Cast::Direct) => "direct",
                    Some(Cast::Broadcast) => "broadcast",
                    None => "any",
                };
                put(self, &[("phase", name), ("kind", &row.kind), ("cast", cast)], row);
            }
        }
    }

    fn ends(&mut self, labels: &[(&str, &str)], ends: &Ends) {
        let Ends { local, remote, lost } = ends;
        for (by, counts) in [("local", local), ("remote", remote)] {
            for (cause, count) in counts.named() {
                self.sample(&[labels, &[("by", by), ("cause", &cause)]].concat(), count);
            }
        }
        // Every sample of a family has the same labels.
        self.sample(&[labels, &[("by", "none"), ("cause", "lost")]].concat(), *lost);
    }
}

/// Seconds and their parts, exactly.
struct Seconds(Duration);

impl Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = format!("{}.{:09}", self.0.as_secs(), self.0.subsec_nanos());
        let text = text.trim_end_matches('0');
        // A whole number has a digit behind its point: some compare bounds as texts.
        write!(f, "{text}{}", if text.ends_with('.') { "0" } else { "" })
    }
}

/// `refused_by` as `threadwire_refused`, `bytes_sent` as `threadwire_sent_bytes`: a unit is the last word of a name.
fn family_name(field: &str, unit: &str) -> String {
    let field = field.strip_suffix("_by").unwrap_or(field);
    if unit.is_empty() || field.ends_with(&format!("_{unit}")) {
        return format!("{PREFIX}{field}");
    }
    let rest = field.strip_prefix(unit).map_or(field, |rest| rest.trim_start_matches('_'));
    format!("{PREFIX}{rest}_{unit}")
}

/// What would end a text within quotes, escaped.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\\' => escaped.push_str("\\\\"),
            '"' => escaped.push_str("\\\""),
            '\n' => escaped.push_str("\\n"),
            letter => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_fields_with_the_unit_last() {
        assert_eq!(family_name("accepted", ""), "threadwire_accepted");
        assert_eq!(family_name("refused_by", ""), "threadwire_refused");
        assert_eq!(family_name("bytes_sent", "bytes"), "threadwire_sent_bytes");
        assert_eq!(family_name("queued_bytes", "bytes"), "threadwire_queued_bytes");
        assert_eq!(family_name("memory_used", "bytes"), "threadwire_memory_used_bytes");
    }

    #[test]
    fn names_of_kinds_cannot_end_their_quotes() {
        let mut snapshot = MetricsSnapshot::default();
        let name = "a\"} 1\n# EOF\n\\";
        snapshot.traffic.kinds.insert(name.to_owned(), KindTraffic { sent: 7, received: 8 });
        let text = snapshot.to_openmetrics();
        assert!(text.contains("threadwire_kind_sent_total{kind=\"a\\\"} 1\\n# EOF\\n\\\\\"} 7\n"), "{text}");
        assert_eq!(text.matches("\n# EOF\n").count(), 1, "{text}");
    }

    #[test]
    fn every_family_has_a_type_and_a_help_of_its_own_and_the_end_is_marked() {
        let text = MetricsSnapshot::default().to_openmetrics();
        let families = |what| text.lines().filter(move |line: &&str| line.starts_with(what)).count();
        assert!(families("# TYPE ") > 30, "{text}");
        assert_eq!(families("# TYPE "), families("# HELP "));
        assert_eq!(families("# UNIT "), 6);
        assert!(text.ends_with("\n# EOF\n"));
    }
}
