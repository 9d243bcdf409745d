//! What follows from the configuration: settings of sessions, limits of the registry, needs of the process.
//!
//! Owns: nothing. Threads: the application's, at the start and at each reload. Locks: none. Blocks on: nothing.
//! Upholds: the threads and the memory of all sessions stay within what the configuration gives them.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::config::{self, Config, LINK_FLOOR, THREADS_PER_SESSION};
use crate::exposition;
use crate::memory::Budget;
use crate::metrics::PhaseTimes;
use crate::registry::RegistryLimits;
use crate::session::{Askers, Kinds, OutgoingTaps, SessionSettings, Tuned, Tuning, Undeliverable};
use crate::threads;
use crate::transport::tcp::TcpOptions;

use super::selfcheck::Needs;

/// Links beyond the sessions there may be: peers that are known and away.
const LINKS_AWAY: usize = 1024;

/// What the process may come to need of the system; each of its listeners a backlog of so many connections.
pub(super) fn needs(config: &Config, listeners: usize, endpoint: bool, backlog: u64) -> Needs {
    Needs {
        sessions: sessions(config) as u64,
        half_open: config.half_open as u64,
        listeners: listeners as u64,
        scrapers: if endpoint { exposition::CONNECTIONS as u64 + 1 } else { 0 },
        backlog: if listeners > 0 { backlog } else { 0 },
    }
}

/// Sessions that the configuration allows at one time.
fn sessions(config: &Config) -> usize {
    let threads = config.max_threads.map_or(usize::MAX, |threads| threads.saturating_sub(config.own_threads()));
    config.inbound.saturating_add(config.outbound).min(threads / THREADS_PER_SESSION)
}

/// The limits of the registry.
pub(super) fn registry(config: &Config) -> RegistryLimits {
    let (inbound, outbound, threads) = (config.inbound, config.outbound, session_threads(config));
    // Unknown peers keep no known one out.
    let unknown = config.unknown_peers;
    let links = config.inbound.saturating_add(config.outbound).saturating_add(LINKS_AWAY).saturating_add(unknown);
    RegistryLimits { inbound, outbound, links, unknown, threads }
}

/// The thread budget, less the node's own threads.
fn session_threads(config: &Config) -> usize {
    let sessions = config.inbound.saturating_add(config.outbound).saturating_mul(THREADS_PER_SESSION);
    let asked = config.max_threads.unwrap_or(sessions.saturating_add(config.own_threads()));
    asked.min(threads::most().unwrap_or(usize::MAX)).saturating_sub(config.own_threads())
}

/// The memory that links share beyond their floors: each has its own whatever the others do.
pub(super) fn shared_memory(config: &Config) -> usize {
    let floors = config.inbound.saturating_add(config.outbound).saturating_mul(LINK_FLOOR);
    config.memory_bytes.saturating_sub(floors)
}

/// The settings of sessions.
pub(super) fn session(
    config: &Config,
    kinds: Arc<Kinds>,
    handler: bool,
    undeliverable: Undeliverable,
    taps: OutgoingTaps,
) -> SessionSettings {
    SessionSettings {
        memory: Arc::new(Budget::new(shared_memory(config))),
        tuned: Tuned::new(Tuning::of(config, handler)),
        holds_inbound: !handler,
        undelivered: Arc::new(undeliverable),
        times: Arc::new(PhaseTimes::new(kinds.len())),
        kinds,
        askers: Arc::new(Askers::default()),
        taps,
    }
}

/// Where peers are told that this node can be dialled.
pub(super) fn advertised(config: &Config, local_addrs: &[SocketAddr]) -> Option<SocketAddr> {
    let bound = local_addrs.iter().copied().find(|addr| !addr.ip().is_unspecified());
    config.advertise.or(bound)
}

/// The options of TCP sockets.
pub(super) fn tcp(config: &Config) -> TcpOptions {
    let config::Tcp { nodelay, keepalive, user_timeout, notsent_low_water_mark, .. } = config.tcp;
    TcpOptions { nodelay, keepalive, user_timeout, notsent_low_water_mark }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_is_needed_by_whoever_listens() {
        let backlog = |listeners| needs(&Config::default(), listeners, true, 1024).backlog;
        assert_eq!([0, 1, 2].map(backlog), [0, 1024, 1024]);
    }

    #[test]
    fn the_thread_budget_is_what_the_limits_ask_for_or_less_if_the_configuration_or_the_system_says_so() {
        let mut config = Config::default();
        assert_eq!(session_threads(&config), 2 * (512 + 64));
        config.max_threads = Some(8);
        assert_eq!(session_threads(&config), 4);
        (config.max_threads, config.inbound) = (None, usize::MAX);
        let most = threads::most().unwrap_or(usize::MAX);
        assert_eq!(session_threads(&config), most.saturating_sub(4));
        (config.max_threads, config.metrics.listen) = (Some(8), "127.0.0.1:0".parse().ok());
        assert_eq!(session_threads(&config), 3, "the endpoint has a thread of its own");
    }
}
