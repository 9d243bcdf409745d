//! Who has to go when limits are lowered. Pure: nobody goes by it.
//!
//! Owns: nothing. Threads: any. Locks: the registry's is held by the caller. Blocks on: nothing.
//! Upholds: as many go as are too many, and no more; unproven connections before sessions, those that began last first.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use super::{Registry, SessionInfo};
use crate::config::THREADS_PER_SESSION;
use crate::error::CloseReason;
use crate::ident::{ConnectionId, SessionKind, SessionStatus};

impl Registry {
    /// Who is beyond the limits, and why each has to go: of an address, inbound, outbound, of the threads. Unproven ones go
    /// before sessions, and those that began last before those that have held. `leaving` are gone already.
    pub(super) fn surplus(
        &self,
        inbound_per_ip: usize,
        leaving: &BTreeSet<ConnectionId>,
    ) -> Vec<(ConnectionId, CloseReason)> {
        let mut there: Vec<&SessionInfo> =
            self.connections.values().filter(|info| !leaving.contains(&info.conn)).collect();
        // Connections are numbered as they begin.
        there.sort_by_key(|info| (info.status == SessionStatus::Established, Reverse(info.conn)));
        let ip = |info: &SessionInfo| info.remote_addr.ip().to_canonical();
        let (mut from_ip, mut inbound, mut outbound) = (HashMap::<IpAddr, usize>::new(), 0, 0);
        for info in &there {
            match info.kind {
                SessionKind::Inbound => {
                    inbound += 1;
                    *from_ip.entry(ip(info)).or_default() += 1;
                }
                SessionKind::Outbound => outbound += 1,
            }
        }
        let mut over = Vec::new();
        let mut goes = |info: &SessionInfo, count: &mut usize, limit: usize, reason| {
            let goes = *count > limit;
            if goes {
                *count -= 1;
                over.push((info.conn, reason));
            }
            goes
        };
        there.retain(|info| {
            let count = from_ip.get_mut(&ip(info)).filter(|_| info.kind == SessionKind::Inbound);
            let goes = count.is_some_and(|count| goes(info, count, inbound_per_ip, CloseReason::TooMany));
            inbound -= usize::from(goes);
            !goes
        });
        there.retain(|info| match info.kind {
            SessionKind::Inbound => !goes(info, &mut inbound, self.limits.inbound, CloseReason::TooMany),
            SessionKind::Outbound => !goes(info, &mut outbound, self.limits.outbound, CloseReason::TooMany),
        });
        let mut all = inbound + outbound;
        there.retain(|info| !goes(info, &mut all, self.limits.threads / THREADS_PER_SESSION, CloseReason::NoResources));
        over
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{LIMITS, begun};
    use super::super::{RegistryLimits, SharedRegistry};
    use super::*;

    #[test]
    fn over_lowered_limits_the_unproven_go_first_and_then_who_came_last() {
        let registry = SharedRegistry::new(RegistryLimits { inbound: 9, outbound: 9, threads: 99, ..LIMITS });
        let kinds = [SessionKind::Inbound, SessionKind::Outbound];
        // Inbound 1, 3, 5, 7, of which 7 is from elsewhere; outbound 2, 4, 6. Unproven are 1 and 2.
        let host = |conn| if conn == 7 { 7 } else { 1 };
        let begin = |conn: u64| registry.reserve(begun(conn, kinds[(conn as usize % 2) ^ 1], host(conn))).unwrap();
        let slots: Vec<_> = (1..=7).map(begin).collect();
        for info in registry.0.write().connections.values_mut().filter(|info| info.conn.0 > 2) {
            info.status = SessionStatus::Established;
        }
        let surplus = |limits: RegistryLimits, per_ip: usize, leaving: &[u64]| {
            registry.set_limits(limits);
            let leaving = leaving.iter().map(|conn| ConnectionId(*conn)).collect();
            let over = registry.surplus(per_ip, &leaving);
            over.into_iter().map(|(conn, reason)| (conn.0, reason)).collect::<Vec<_>>()
        };
        let wide = RegistryLimits { inbound: 9, outbound: 9, threads: 99, ..LIMITS };
        let (most, full) = (usize::MAX, CloseReason::TooMany);
        assert_eq!(surplus(wide, most, &[]), []);
        assert_eq!(surplus(RegistryLimits { inbound: 2, ..wide }, most, &[]), [(1, full), (7, full)]);
        assert_eq!(surplus(RegistryLimits { inbound: 2, ..wide }, most, &[3]), [(1, full)]);
        assert_eq!(surplus(RegistryLimits { outbound: 1, ..wide }, most, &[]), [(2, full), (6, full)]);
        assert_eq!(surplus(wide, 1, &[]), [(1, full), (5, full)]);
        let threads = CloseReason::NoResources;
        let two = RegistryLimits { threads: 5, ..wide };
        assert_eq!(surplus(two, most, &[]), [2, 1, 7, 6, 5].map(|conn| (conn, threads)));
        // Who has gone for one limit is not counted for the next.
        let all = surplus(RegistryLimits { inbound: 2, outbound: 1, threads: 5, ..wide }, 1, &[]);
        assert_eq!(all, [(1, full), (5, full), (2, full), (6, full), (7, threads)]);
        drop(slots);
    }
}
