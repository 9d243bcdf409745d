//! Who is let in: one pipeline that every accepted connection passes, before anything is spent on it.
//!
//! Owns: which inbound connections are unproven, by age and neighbourhood. Threads: `acceptor` only. Locks: none.
//! Blocks on: nothing; time is an argument.
//! Upholds: a refusal has one cause; at a bound that unproven connections fill, the oldest of the most crowded
//! neighbourhood goes and the newcomer stays, so that silent strangers cannot lock anybody out; a proven connection never
//! goes for a newcomer.
//!
//! ```text
//!  accepted -> shutting down? -> half_open_per_ip -> inbound_per_ip -> half_open, inbound, threads -> a slot
//!                   |                  |                  |                    | full
//!                refused            refused            refused      an unproven one goes; refused if there is none
//! ```
//!
//! A neighbourhood is what one party usually has to itself: the /24 of an IPv4 address, the /48 of an IPv6 address.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::error::CloseReason;
use crate::ident::{ConnectionId, SessionKind};
use crate::metrics::Metrics;
use crate::registry::{Room, SessionsError};
use crate::wire::stay_away::{LATER, SOON};

/// Of refusals for one cause, one line is logged in this time.
const QUIET: Duration = Duration::from_secs(60);

/// The bounds of [`Admission`]; those of the registry are beside them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caps {
    /// Unproven inbound connections.
    pub(crate) half_open: usize,
    /// The same from one address.
    pub(crate) half_open_per_ip: usize,
    /// Inbound connections from one address.
    pub(crate) inbound_per_ip: usize,
}

impl Caps {
    /// From the configuration.
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            half_open: config.half_open,
            half_open_per_ip: config.half_open_per_ip.unwrap_or(usize::MAX),
            inbound_per_ip: config.inbound_per_ip.unwrap_or(usize::MAX),
        }
    }
}

/// Why a connection is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Refusal {
    Closed,
    HalfOpenPerIp,
    InboundPerIp,
    Inbound,
    Threads,
    /// It was let in and proven, and then the system refused a thread.
    Spawn,
}

impl Refusal {
    /// The registry gives no slot.
    pub(crate) fn of(error: SessionsError) -> Self {
        match error {
            SessionsError::Closed => Self::Closed,
            SessionsError::NoThreads => Self::Threads,
            SessionsError::TooMany(SessionKind::Inbound | SessionKind::Outbound)
            | SessionsError::TooManyLinks
            | SessionsError::TooManyUnknown => Self::Inbound,
        }
    }

    /// What the other side is told, and when it may come back.
    pub(crate) fn told(self) -> (CloseReason, Option<Duration>) {
        match self {
            Self::Closed => (CloseReason::Shutdown, None),
            Self::HalfOpenPerIp => (CloseReason::TooMany, Some(SOON)),
            Self::InboundPerIp | Self::Inbound => (CloseReason::TooMany, Some(LATER)),
            Self::Threads | Self::Spawn => (CloseReason::NoResources, Some(LATER)),
        }
    }

    /// Counts it.
    pub(crate) fn count(self, metrics: &Metrics) {
        use crate::metrics::Refusal as Cause;
        let cause = match self {
            Self::Closed => Cause::ShuttingDown,
            Self::HalfOpenPerIp => Cause::HalfOpenPerIp,
            Self::InboundPerIp => Cause::InboundPerIp,
            Self::Inbound => Cause::Inbound,
            Self::Threads => Cause::Threads,
            // Its handshake had come to its end: it is counted among those that failed.
            Self::Spawn => return metrics.spawns_failed.add(),
        };
        metrics.refused.add(cause);
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "the node is shutting down",
            Self::HalfOpenPerIp => "as many unproven connections of one address as half_open_per_ip allows",
            Self::InboundPerIp => "as many connections of one address as inbound_per_ip allows",
            Self::Inbound => "as many inbound connections as the configuration allows",
            Self::Threads => "the thread budget is used up",
            Self::Spawn => "the system refused a thread",
        })
    }
}

/// What an evicted connection is told, and when it may come back.
pub(crate) const EVICTED: (CloseReason, Option<Duration>) = (CloseReason::TooMany, Some(SOON));

/// What happens to a connection that was just accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It gets a slot.
    Admit,
    /// This one has to go first; then the newcomer gets a slot.
    Evict(ConnectionId),
    /// It is not let in.
    Refuse(Refusal),
}

/// The neighbourhood of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Prefix {
    V4([u8; 3]),
    V6([u16; 3]),
}

impl Prefix {
    fn of(ip: IpAddr) -> Self {
        let v4 = |ip: Ipv4Addr| Self::V4([ip.octets()[0], ip.octets()[1], ip.octets()[2]]);
        let v6 = |ip: Ipv6Addr| Self::V6([ip.segments()[0], ip.segments()[1], ip.segments()[2]]);
        match ip.to_canonical() {
            IpAddr::V4(ip) => v4(ip),
            IpAddr::V6(ip) => v6(ip),
        }
    }
}

/// Lines about refusals for one cause.
#[derive(Debug, Clone, Copy)]
struct Lines {
    next: Instant,
    unsaid: u64,
}

/// The unproven inbound connections, and the pipeline.
#[derive(Debug)]
pub(crate) struct Admission {
    caps: Caps,
    half_open: HashMap<ConnectionId, IpAddr>,
    /// Unproven connections by address; none with zero.
    by_ip: HashMap<IpAddr, usize>,
    /// Unproven connections by neighbourhood, the oldest first: numbers are given in the order of accepts.
    by_prefix: BTreeMap<Prefix, BTreeSet<ConnectionId>>,
    /// The neighbourhoods by how crowded they are; among equals the one with the oldest connection is last.
    crowds: BTreeSet<(usize, Reverse<ConnectionId>, Prefix)>,
    lines: BTreeMap<Refusal, Lines>,
}

impl Admission {
    /// Nobody there yet.
    pub(crate) fn new(caps: Caps) -> Self {
        Self {
            caps,
            half_open: HashMap::new(),
            by_ip: HashMap::new(),
            by_prefix: BTreeMap::new(),
            crowds: BTreeSet::new(),
            lines: BTreeMap::new(),
        }
    }

    /// Other bounds from now on: which unproven connections have to go for them. Of an address with too many those that
    /// are there longest, then as for a newcomer.
    pub(crate) fn set_caps(&mut self, caps: Caps) -> Vec<ConnectionId> {
        self.caps = caps;
        let mut over: Vec<ConnectionId> = Vec::new();
        for (ip, count) in &self.by_ip {
            let surplus = count.saturating_sub(caps.half_open_per_ip);
            let mut of_ip: Vec<_> = self.half_open.iter().filter(|(_, of)| *of == ip).map(|(conn, _)| *conn).collect();
            of_ip.sort_unstable();
            over.extend(of_ip.into_iter().take(surplus));
        }
        // Settled for the count of the rest; whoever turns them away does so again, to no effect.
        over.iter().for_each(|conn| self.settled(*conn));
        while self.half_open.len() > caps.half_open
            && let Some(victim) = self.victim()
        {
            self.settled(victim);
            over.push(victim);
        }
        over
    }

    /// Judges a connection of `ip` that was just accepted and would meet `room`.
    pub(crate) fn judge(&self, ip: IpAddr, room: Room) -> Verdict {
        if room.slot == Err(SessionsError::Closed) {
            return Verdict::Refuse(Refusal::Closed);
        }
        if self.by_ip.get(&ip.to_canonical()).copied().unwrap_or_default() >= self.caps.half_open_per_ip {
            return Verdict::Refuse(Refusal::HalfOpenPerIp);
        }
        if room.from_ip >= self.caps.inbound_per_ip {
            return Verdict::Refuse(Refusal::InboundPerIp);
        }
        match (room.slot, self.victim()) {
            (Ok(()), None) => Verdict::Admit,
            (Ok(()), Some(_)) if self.half_open.len() < self.caps.half_open => Verdict::Admit,
            (_, Some(victim)) => Verdict::Evict(victim),
            (Err(error), None) => Verdict::Refuse(Refusal::of(error)),
        }
    }

    /// Who would have to go for a newcomer: the oldest unproven connection of the most crowded neighbourhood.
    pub(crate) fn victim(&self) -> Option<ConnectionId> {
        self.crowds.last().map(|(_, Reverse(oldest), _)| *oldest)
    }

    /// A connection was let in. Connections come in the order of their numbers.
    pub(crate) fn admitted(&mut self, conn: ConnectionId, ip: IpAddr) {
        let ip = ip.to_canonical();
        if self.half_open.insert(conn, ip).is_none() {
            *self.by_ip.entry(ip).or_default() += 1;
            self.change_crowd(Prefix::of(ip), |members| members.insert(conn));
        }
    }

    /// A connection is unproven no longer: proven, refused or gone. Of those that are none, nothing is changed.
    pub(crate) fn settled(&mut self, conn: ConnectionId) {
        let Some(ip) = self.half_open.remove(&conn) else { return };
        if let Some(count) = self.by_ip.get_mut(&ip) {
            *count -= 1;
            if *count == 0 {
                self.by_ip.remove(&ip);
            }
        }
        self.change_crowd(Prefix::of(ip), |members| members.remove(&conn));
    }

    fn change_crowd(&mut self, prefix: Prefix, change: impl FnOnce(&mut BTreeSet<ConnectionId>) -> bool) {
        let members = self.by_prefix.entry(prefix).or_default();
        let key =
            |members: &BTreeSet<ConnectionId>| members.first().map(|oldest| (members.len(), Reverse(*oldest), prefix));
        if let Some(before) = key(members) {
            self.crowds.remove(&before);
        }
        change(members);
        match key(members) {
            Some(after) => drop(self.crowds.insert(after)),
            None => drop(self.by_prefix.remove(&prefix)),
        }
    }

    /// Whether a refusal is worth a line in the log, and for how many before it none was written: a flood of
    /// connections must not become a flood of lines.
    pub(crate) fn line(&mut self, cause: Refusal, now: Instant) -> Option<u64> {
        match self.lines.get_mut(&cause) {
            Some(lines) if now < lines.next => {
                lines.unsaid += 1;
                None
            }
            lines => {
                let unsaid = lines.map_or(0, |lines| lines.unsaid);
                self.lines.insert(cause, Lines { next: now + QUIET, unsaid: 0 });
                Some(unsaid)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPS: Caps = Caps { half_open: 4, half_open_per_ip: usize::MAX, inbound_per_ip: usize::MAX };
    const FREE: Room = Room { slot: Ok(()), from_ip: 0 };

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Admission with unproven connections of these addresses, numbered from 1.
    fn with(caps: Caps, ips: &[&str]) -> Admission {
        let mut admission = Admission::new(caps);
        for (n, text) in ips.iter().enumerate() {
            admission.admitted(ConnectionId(n as u64 + 1), ip(text));
        }
        admission
    }

    fn is_empty(admission: &Admission) -> bool {
        let Admission { half_open, by_ip, by_prefix, crowds, .. } = admission;
        half_open.is_empty() && by_ip.is_empty() && by_prefix.is_empty() && crowds.is_empty()
    }

    #[test]
    fn at_the_cap_the_oldest_of_the_most_crowded_neighbourhood_goes() {
        let crowd = ["198.51.100.1", "192.0.2.1", "192.0.2.2", "2001:db8::1"];
        let mut admission = with(CAPS, &crowd);
        assert_eq!(admission.judge(ip("203.0.113.1"), FREE), Verdict::Evict(ConnectionId(2)));
        admission.settled(ConnectionId(2));
        assert_eq!(admission.judge(ip("203.0.113.1"), FREE), Verdict::Admit);
        admission.admitted(ConnectionId(5), ip("203.0.113.1"));
        // All alike: the oldest of all.
        assert_eq!(admission.judge(ip("203.0.113.2"), FREE), Verdict::Evict(ConnectionId(1)));
        (1..=5).for_each(|conn| admission.settled(ConnectionId(conn)));
        assert!(is_empty(&admission));
    }

    #[test]
    fn a_neighbourhood_is_a_v4_24_or_a_v6_48_and_a_mapped_address_is_v4() {
        for (a, b, same) in [
            ("192.0.2.1", "192.0.2.255", true),
            ("192.0.2.1", "192.0.3.1", false),
            ("192.0.2.1", "::ffff:192.0.2.9", true),
            ("2001:db8:1:1::1", "2001:db8:1:2::1", true),
            ("2001:db8:1::1", "2001:db8:2::1", false),
        ] {
            assert_eq!(Prefix::of(ip(a)) == Prefix::of(ip(b)), same, "{a} {b}");
        }
    }

    #[test]
    fn silent_strangers_cannot_keep_a_newcomer_out_and_leave_nothing_behind() {
        let mut admission = with(CAPS, &[]);
        let mut inside = BTreeSet::new();
        for n in 1..=2_000 {
            let conn = ConnectionId(n);
            match admission.judge(ip("192.0.2.7"), FREE) {
                Verdict::Admit => {}
                Verdict::Evict(victim) => {
                    assert_eq!(inside.first(), Some(&victim), "the oldest");
                    inside.remove(&victim);
                    admission.settled(victim);
                }
                Verdict::Refuse(cause) => panic!("{cause}"),
            }
            admission.admitted(conn, ip("192.0.2.7"));
            inside.insert(conn);
            assert!(inside.len() <= CAPS.half_open);
        }
        // Somebody from elsewhere stays while the crowd goes on.
        let good = ConnectionId(2_001);
        let Verdict::Evict(victim) = admission.judge(ip("203.0.113.1"), FREE) else { panic!("there is no room") };
        admission.settled(victim);
        admission.admitted(good, ip("203.0.113.1"));
        for n in 2_002..2_100 {
            let Verdict::Evict(victim) = admission.judge(ip("192.0.2.7"), FREE) else { panic!("there is no room") };
            assert_ne!(victim, good);
            admission.settled(victim);
            admission.admitted(ConnectionId(n), ip("192.0.2.7"));
        }
        (1..=2_100).for_each(|conn| admission.settled(ConnectionId(conn)));
        assert!(is_empty(&admission));
    }

    #[test]
    fn a_full_house_sends_an_unproven_one_away_but_never_a_session() {
        let full = |error| Room { slot: Err(error), from_ip: 0 };
        let mut admission = with(CAPS, &["192.0.2.1"]);
        for error in [SessionsError::TooMany(SessionKind::Inbound), SessionsError::NoThreads] {
            assert_eq!(admission.judge(ip("192.0.2.2"), full(error)), Verdict::Evict(ConnectionId(1)));
        }
        // It has proven itself: nobody is left to go.
        admission.settled(ConnectionId(1));
        for (error, cause) in [
            (SessionsError::TooMany(SessionKind::Inbound), Refusal::Inbound),
            (SessionsError::NoThreads, Refusal::Threads),
        ] {
            assert_eq!(admission.judge(ip("192.0.2.2"), full(error)), Verdict::Refuse(cause));
        }
    }

    #[test]
    fn nobody_goes_for_a_newcomer_that_a_node_in_shutdown_would_refuse() {
        let admission = with(CAPS, &["192.0.2.1"]);
        let room = Room { slot: Err(SessionsError::Closed), from_ip: 0 };
        assert_eq!(admission.judge(ip("192.0.2.2"), room), Verdict::Refuse(Refusal::Closed));
    }

    #[test]
    fn each_cap_per_address_refuses_that_address_alone() {
        let caps = Caps { half_open_per_ip: 2, inbound_per_ip: 3, ..CAPS };
        let mut admission = with(caps, &["192.0.2.1", "::ffff:192.0.2.1"]);
        assert_eq!(admission.judge(ip("192.0.2.1"), FREE), Verdict::Refuse(Refusal::HalfOpenPerIp));
        assert_eq!(admission.judge(ip("192.0.2.2"), FREE), Verdict::Admit);
        admission.settled(ConnectionId(1));
        assert_eq!(admission.judge(ip("192.0.2.1"), Room { from_ip: 2, ..FREE }), Verdict::Admit);
        let room = Room { from_ip: 3, ..FREE };
        assert_eq!(admission.judge(ip("192.0.2.1"), room), Verdict::Refuse(Refusal::InboundPerIp));
    }

    #[test]
    fn lowered_caps_send_away_who_is_too_many_and_nobody_else() {
        let crowd = ["192.0.2.1", "192.0.2.1", "192.0.2.1", "203.0.113.1"];
        let mut admission = with(CAPS, &crowd);
        assert_eq!(admission.set_caps(CAPS), []);
        let over = admission.set_caps(Caps { half_open_per_ip: 2, ..CAPS });
        assert_eq!(over, [ConnectionId(1)], "the oldest of the address");
        let over = admission.set_caps(Caps { half_open: 1, ..CAPS });
        assert_eq!(over, [ConnectionId(2), ConnectionId(3)], "as for newcomers");
        over.into_iter().for_each(|conn| admission.settled(conn));
        assert_eq!(
            admission.judge(ip("192.0.2.9"), FREE),
            Verdict::Evict(ConnectionId(4)),
            "and they hold from now on"
        );
    }

    #[test]
    fn what_is_settled_twice_or_was_never_let_in_changes_nothing() {
        let mut admission = with(CAPS, &["192.0.2.1", "192.0.2.1"]);
        (0..3).for_each(|_| admission.settled(ConnectionId(1)));
        admission.settled(ConnectionId(9));
        assert_eq!(admission.victim(), Some(ConnectionId(2)));
        assert_eq!(admission.by_ip[&ip("192.0.2.1")], 1);
    }

    #[test]
    fn a_flood_of_refusals_is_one_line_a_minute_for_each_cause() {
        let (mut admission, start) = (with(CAPS, &[]), Instant::now());
        assert_eq!(admission.line(Refusal::Inbound, start), Some(0));
        for _ in 0..1_000 {
            assert_eq!(admission.line(Refusal::Inbound, start + QUIET / 2), None);
        }
        assert_eq!(admission.line(Refusal::Threads, start), Some(0));
        assert_eq!(admission.line(Refusal::Inbound, start + QUIET), Some(1_000));
        assert_eq!(admission.line(Refusal::Inbound, start + QUIET), None);
    }

    #[test]
    fn every_refusal_is_told_and_all_but_the_last_one_with_a_time_to_come_back() {
        for cause in [Refusal::HalfOpenPerIp, Refusal::InboundPerIp, Refusal::Inbound] {
            let (reason, retry_after) = cause.told();
            assert_eq!(reason, CloseReason::TooMany);
            assert!(retry_after.is_some());
        }
        assert_eq!(Refusal::Threads.told(), (CloseReason::NoResources, Some(LATER)));
        assert_eq!(Refusal::Closed.told(), (CloseReason::Shutdown, None));
    }
}
