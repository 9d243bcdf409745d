//! Which listening sockets stay, which come and which go when addresses change. Pure: nothing is bound here.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: a socket whose address is still wanted stays, with whoever waits in its queue; a new one is bound before an
//! old one goes, unless the two cannot be there together.

use std::net::SocketAddr;

/// A listening socket that there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listening {
    /// What the configuration said: its port may be 0.
    pub(crate) asked: SocketAddr,
    /// Where it is.
    pub(crate) bound: SocketAddr,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SocketPlan {
    /// For each wanted address, in order, the socket that stays for it, or how to come by one.
    pub(crate) wanted: Vec<Source>,
    /// The sockets that go.
    pub(crate) retired: Vec<usize>,
}

/// Where the socket of a wanted address comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// It is there.
    Stays(usize),
    /// It is to be bound.
    New,
}

impl SocketPlan {
    /// From sockets that there are to addresses that are wanted.
    pub(crate) fn between(present: &[Listening], wanted: &[SocketAddr]) -> Self {
        let mut free: Vec<usize> = (0..present.len()).collect();
        let mut take = |fits: &dyn Fn(&Listening) -> bool| {
            let at = free.iter().position(|n| present.get(*n).is_some_and(fits))?;
            Some(free.remove(at))
        };
        // By where it is: one that the system chose a port for may be named now. Then by what was asked for: port 0
        // means any, and the one that there is will do.
        let mut sources: Vec<Option<usize>> = wanted.iter().map(|addr| take(&|old| old.bound == *addr)).collect();
        for (source, addr) in sources.iter_mut().zip(wanted) {
            if source.is_none() {
                *source = take(&|old| old.asked == *addr);
            }
        }
        let wanted = sources.into_iter().map(|source| source.map_or(Source::New, Source::Stays)).collect();
        Self { wanted, retired: free }
    }
}

/// Whether two listening sockets cannot be there at one time: the same port, and one address covers the other.
pub(crate) fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let covers = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    // An IPv6 address takes IPv6 alone.
    a.port() == b.port() && a.port() != 0 && a.is_ipv4() == b.is_ipv4() && covers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn plan(present: &[(&str, &str)], wanted: &[&str]) -> SocketPlan {
        let present: Vec<_> =
            present.iter().map(|(asked, bound)| Listening { asked: addr(asked), bound: addr(bound) }).collect();
        SocketPlan::between(&present, &wanted.iter().map(|text| addr(text)).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_still_wanted_stays_in_whatever_order() {
        let present = [("127.0.0.1:1", "127.0.0.1:1"), ("127.0.0.1:2", "127.0.0.1:2")];
        let found = plan(&present, &["127.0.0.1:2", "127.0.0.1:3"]);
        assert_eq!(found, SocketPlan { wanted: vec![Source::Stays(1), Source::New], retired: vec![0] });
        assert_eq!(plan(&present, &[]).retired, [0, 1]);
    }

    #[test]
    fn any_port_is_the_one_that_the_system_chose_and_that_one_may_be_named() {
        let present = [("127.0.0.1:0", "127.0.0.1:41000")];
        assert_eq!(plan(&present, &["127.0.0.1:0"]).wanted, [Source::Stays(0)]);
        assert_eq!(plan(&present, &["127.0.0.1:41000"]).wanted, [Source::Stays(0)]);
        // Both are wanted now: the one that there is has the port.
        let found = plan(&present, &["127.0.0.1:0", "127.0.0.1:41000"]);
        assert_eq!(found, SocketPlan { wanted: vec![Source::New, Source::Stays(0)], retired: vec![] });
        // A second one of the kind is another socket.
        assert_eq!(plan(&present, &["127.0.0.1:0", "127.0.0.1:0"]).wanted, [Source::Stays(0), Source::New]);
    }

    #[test]
    fn a_wildcard_and_an_address_of_its_family_overlap_at_one_port() {
        for (a, b, expected) in [
            ("0.0.0.0:5", "127.0.0.1:5", true),
            ("127.0.0.1:5", "0.0.0.0:5", true),
            ("127.0.0.1:5", "127.0.0.2:5", false),
            ("0.0.0.0:5", "127.0.0.1:6", false),
            ("[::]:5", "127.0.0.1:5", false),
            ("[::]:5", "[::1]:5", true),
            ("0.0.0.0:0", "0.0.0.0:0", false),
        ] {
            assert_eq!(overlap(addr(a), addr(b)), expected, "{a} {b}");
        }
    }
}
