//! Counts of what happens to connections.
//!
//! Owns: atomics. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: a refusal, a failure or an end is counted once, where it is decided.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The counters.
        #[derive(Debug, Default)]
        pub(crate) struct Metrics {
            $($(#[$doc])* pub(crate) $name: Counter,)*
        }

        /// The counters at one moment. They only rise.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct MetricsSnapshot {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Metrics {
            /// What they say now.
            pub(crate) fn snapshot(&self) -> MetricsSnapshot {
                MetricsSnapshot { $($name: self.$name.value(),)* }
            }
        }
    };
}

counters! {
    /// Connections accepted.
    accepted,
    /// Accepts that failed, as for want of descriptors.
    accept_errors,
    /// Accepts that failed for want of descriptors or memory, and were tried again by a timer; part of
    /// `accept_errors`.
    accepts_starved,
    /// Connections refused before their handshake, for any of the causes that follow.
    refused,
    /// Refused: as many inbound connections as `inbound` allows, and none of them unproven.
    refused_inbound,
    /// Refused: as many unproven connections of one address as `half_open_per_ip` allows.
    refused_half_open_per_ip,
    /// Refused: as many connections of one address as `inbound_per_ip` allows.
    refused_inbound_per_ip,
    /// Refused: the thread budget is used up, and by no unproven connection.
    refused_threads,
    /// Refused: the node was shutting down.
    refused_closed,
    /// Unproven connections sent away to make room for newcomers.
    evicted,
    /// Dials refused here: as many outbound connections as `outbound` allows, or no threads left.
    dials_refused,
    /// Sessions that did not start because the system refused a thread.
    spawns_failed,
    /// Dials begun.
    dials,
    /// Dials that failed, at any stage.
    dials_failed,
    /// Inbound connections whose handshake failed or was refused.
    handshakes_failed,
    /// Handshakes that took too long.
    handshake_timeouts,
    /// Connections that were proven and not attached: another one of the same peers was.
    duplicates,
    /// Sessions attached.
    sessions_started,
    /// Sessions ended.
    sessions_ended,
    /// Sessions cut because nothing was heard, or writing stalled.
    sessions_cut,
}

/// One counter.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
