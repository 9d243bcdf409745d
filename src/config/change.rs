//! What a running node makes of another configuration: which fields differ, and whether it can take them. Pure.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: every field is in one class, live or fixed: a new one does not compile until it is; a difference that cannot be
//! taken is refused before anything is done for one that can.

use std::fmt::Debug;

use super::check::{Fault, check};
use super::fields::Config;
use super::sections::{Backoff, Log, Metrics, Peer, Tcp, Threads};
use super::security::Security;
use crate::error::{CloseReason, ReloadError};
use crate::ident::{ConnectionId, PeerId};

/// What became of another configuration that a node has put to use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reload {
    /// The fields that differed, as paths: `idle_timeout`, `backoff.cap`, `peer` for any of the peers. Also
    /// `security.roots` and `security.certificate` where the file has another content. Those of `log` are the program's to
    /// apply.
    pub changed: Vec<&'static str>,
    /// The sessions that had to go.
    pub closed: Vec<Closed>,
}

/// A session that had to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Closed {
    /// With whom.
    pub peer: PeerId,
    /// On which connection.
    pub conn: ConnectionId,
    /// Why: [`CloseReason::TooMany`] or [`CloseReason::NoResources`] over a lowered limit, [`CloseReason::Untrusted`],
    /// [`CloseReason::Requested`] for a peer that is not to be kept any more.
    pub reason: CloseReason,
}

impl Reload {
    /// A report.
    pub(crate) fn new(changed: Vec<&'static str>, closed: Vec<Closed>) -> Self {
        Self { changed, closed }
    }
}

impl Closed {
    /// It is told so.
    pub(crate) fn new(peer: PeerId, conn: ConnectionId, reason: CloseReason) -> Self {
        Self { peer, conn, reason }
    }
}

/// What becomes of another value while a node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// It is taken.
    Live,
    /// It is refused: the value stays as long as the node.
    Fixed,
}

/// The difference between two configurations, of which the second one is allowed.
#[derive(Debug)]
pub(crate) struct Change<'a> {
    pub(crate) old: &'a Config,
    pub(crate) new: &'a Config,
    /// The fields that differ, as paths: `idle_timeout`, `backoff.cap`.
    pub(crate) fields: Vec<&'static str>,
}

/// What differs in the peers to keep.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct PeerChange<'a> {
    /// Those that are new.
    pub(crate) added: Vec<&'a Peer>,
    /// Those that were there, at other addresses.
    pub(crate) moved: Vec<&'a Peer>,
    /// Those that are there no longer.
    pub(crate) removed: Vec<PeerId>,
}

/// What a walk over all fields has found.
#[derive(Default)]
struct Walk {
    fields: Vec<&'static str>,
    refused: Option<ReloadError>,
    /// Every field with its class, for the test that holds them against the file format.
    #[cfg(test)]
    all: Vec<(&'static str, Class)>,
}

impl Walk {
    fn see<T: PartialEq + Debug>(&mut self, field: &'static str, class: Class, old: &T, new: &T) {
        #[cfg(test)]
        self.all.push((field, class));
        if old == new {
            return;
        }
        self.fields.push(field);
        if class == Class::Fixed && self.refused.is_none() {
            self.refused = Some(ReloadError::Fixed { field, value: shown(new), stays: shown(old) });
        }
    }
}

/// A value as the error shows it.
fn shown(value: &impl Debug) -> String {
    let text = format!("{value:?}");
    match text.strip_prefix("Some(").and_then(|text| text.strip_suffix(')')).unwrap_or(&text) {
        "None" => "\"off\"".to_owned(),
        // A name of an enum, which a file writes small and in quotes.
        name if name.bytes().all(|letter| letter.is_ascii_alphabetic()) => format!("\"{}\"", name.to_lowercase()),
        text => text.to_owned(),
    }
}

/// Takes two values of a type apart and looks at each pair of fields; those `apart` are looked at elsewhere. Without `..`:
/// whoever adds a field decides here.
macro_rules! walk {
    ($walk:ident, $type:ident, $prefix:literal, $old:expr, $new:expr;
        $($class:ident { $($field:ident)* })* $(; apart { $($apart:ident)* })?) => {
        let $type { $($($field,)*)* $($($apart: _,)*)? } = $old;
        $($($walk.see(concat!($prefix, stringify!($field)), Class::$class, $field, &$new.$field);)*)*
    };
}

fn walk(old: &Config, new: &Config) -> Walk {
    let mut walk = Walk::default();
    walk! { walk, Config, "", old, new;
        Fixed { network data_dir }
        Live {
            listen advertise
            resolve_timeout connect_timeout handshake_timeout heartbeat idle_timeout write_timeout slow_after
            handler_watchdog stable_after resume_window ack_delay send_deadline
            queue_messages offline message_ttl queue_bytes requests
            unknown_peers unknown_bytes unknown_timeout
            window_bytes max_message memory_bytes
            inbound outbound half_open resolve_threads half_open_per_ip inbound_per_ip max_threads
        };
        apart { security backoff tcp threads metrics log peers }
    }
    walk! { walk, Security, "security.", &old.security, new.security;
        Fixed { channel key }
        Live { trust trusted roots certificate public }
    }
    walk! { walk, Backoff, "backoff.", &old.backoff, new.backoff; Live { policy base cap jitter } }
    walk! { walk, Tcp, "tcp.", &old.tcp, new.tcp; Live { nodelay keepalive user_timeout notsent_low_water_mark } }
    walk! { walk, Threads, "threads.", &old.threads, new.threads; Live { rx_stack rx_handler_stack tx_stack } }
    walk! { walk, Metrics, "metrics.", &old.metrics, new.metrics; Live { listen } }
    // The program's own: told to it, and nothing to the node.
    walk! { walk, Log, "log.", &old.log, new.log; Live { level file } }
    walk.see("peer", Class::Live, &old.peers, &new.peers);
    walk
}

impl<'a> Change<'a> {
    /// From one configuration to another.
    ///
    /// # Errors
    /// The other one is not allowed, or differs in what stays as long as the node.
    pub(crate) fn between(old: &'a Config, new: &'a Config) -> Result<Self, ReloadError> {
        check(new).map_err(|Fault { field, value, allowed, .. }| ReloadError::NotAllowed { field, value, allowed })?;
        let Walk { fields, refused, .. } = walk(old, new);
        refused.map_or(Ok(Self { old, new, fields }), Err)
    }

    /// Whether a field differs, or one of a section (`tcp.`).
    pub(crate) fn has(&self, field: &str) -> bool {
        self.fields.iter().any(|found| *found == field || (field.ends_with('.') && found.starts_with(field)))
    }

    /// What differs in the peers to keep. Their order and their names are no difference.
    pub(crate) fn peers(&self) -> PeerChange<'a> {
        let mut change = PeerChange::default();
        for peer in &self.new.peers {
            match self.old.peers.iter().find(|old| old.id == peer.id) {
                None => change.added.push(peer),
                Some(old) if old.addresses != peer.addresses => change.moved.push(peer),
                Some(_) => {}
            }
        }
        let stays = |id: PeerId| self.new.peers.iter().any(|peer| peer.id == id);
        change.removed = self.old.peers.iter().map(|peer| peer.id).filter(|id| !stays(*id)).collect();
        change
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Channel;

    /// The fields of a section that the file format knows: the refusal of an unknown one lists them.
    fn fields_of_file(section: &str) -> Vec<String> {
        let header = if section.is_empty() { String::new() } else { format!("[{section}]\n") };
        let error = Config::parse(&format!("{header}zzz = 1\n"), "x").unwrap_err();
        error.what.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    #[test]
    fn every_field_of_the_file_format_is_in_one_class() {
        let sections = ["security", "backoff", "tcp", "threads", "metrics", "log"];
        let mut expected: Vec<String> = fields_of_file("");
        assert!(expected.len() > 30, "{expected:?}");
        expected.retain(|field| !sections.contains(&field.as_str()));
        for section in sections {
            expected.extend(fields_of_file(section).into_iter().map(|field| format!("{section}.{field}")));
        }
        expected.sort();
        let (old, new) = (Config::default(), Config::default());
        let mut seen: Vec<_> = walk(&old, &new).all.into_iter().map(|(field, _)| field.to_owned()).collect();
        seen.sort();
        assert_eq!(seen, expected);
        let fixed = walk(&old, &new).all.into_iter().filter(|(_, class)| *class == Class::Fixed);
        let fixed: Vec<_> = fixed.map(|(field, _)| field).collect();
        assert_eq!(fixed, ["network", "data_dir", "security.channel", "security.key"]);
    }

    /// One that is allowed whatever features there are.
    fn base() -> Config {
        Config::loopback().plain()
    }

    #[test]
    fn nothing_differs_from_itself_and_what_differs_is_named() {
        let old = base();
        assert!(Change::between(&old, &old).unwrap().fields.is_empty());
        let mut new = old.clone();
        new.idle_timeout *= 2;
        new.backoff.jitter = 0.25;
        let change = Change::between(&old, &new).unwrap();
        assert_eq!(change.fields, ["idle_timeout", "backoff.jitter"]);
        assert!(
            change.has("idle_timeout") && change.has("backoff.") && !change.has("backoff.cap") && !change.has("tcp.")
        );
    }

    #[test]
    fn what_is_fixed_is_refused_by_name_with_both_values() {
        let old = base();
        let refused = |change: fn(&mut Config)| {
            let mut new = old.clone();
            new.inbound = 7;
            change(&mut new);
            Change::between(&old, &new).unwrap_err()
        };
        let fixed = |field, value: &str, stays: &str| ReloadError::Fixed {
            field,
            value: value.to_owned(),
            stays: stays.to_owned(),
        };
        let error = refused(|new| new.network = "other".to_owned());
        assert_eq!(error, fixed("network", "\"other\"", "\"threadwire\""));
        assert_eq!(error.to_string(), "network = \"other\": stays \"threadwire\" as long as the node: start it anew");
        assert_eq!(refused(|new| new.data_dir = Some("x".into())), fixed("data_dir", "\"x\"", "\"off\""));
        assert_eq!(refused(|new| new.security.key = Some("k".into())), fixed("security.key", "\"k\"", "\"off\""));
        if cfg!(feature = "tls") {
            let error = refused(|new| new.security.channel = Channel::Tls);
            assert_eq!(error, fixed("security.channel", "\"tls\"", "\"plain\""));
        }
    }

    #[test]
    fn what_is_not_allowed_is_refused_before_what_is_fixed_is_looked_at() {
        let old = base();
        let mut new = old.clone();
        (new.network, new.idle_timeout) = ("other".to_owned(), new.heartbeat);
        let Err(ReloadError::NotAllowed { field, value, allowed }) = Change::between(&old, &new) else { panic!() };
        assert_eq!(
            (field.as_str(), value.as_str(), allowed.as_str()),
            ("idle_timeout", "10 s", "longer than heartbeat (10 s)")
        );
    }

    #[test]
    fn peers_are_told_apart_by_their_ids() {
        let peer = |byte: u8, port: u16| {
            let id = PeerId::from_bytes([byte; 32]);
            Peer::new(format!("peer {byte}"), id, [format!("127.0.0.1:{port}").parse().unwrap()])
        };
        let (mut old, mut new) = (base(), base());
        old.peers = vec![peer(1, 1), peer(2, 2), peer(3, 3)];
        new.peers = vec![Peer { name: "another name".to_owned(), ..peer(3, 3) }, peer(2, 9), peer(4, 4)];
        let change = Change::between(&old, &new).unwrap();
        assert_eq!(change.fields, ["peer"]);
        let peers = change.peers();
        assert_eq!((peers.added, peers.moved), (vec![&new.peers[2]], vec![&new.peers[1]]));
        assert_eq!(peers.removed, [old.peers[0].id]);
    }
}
