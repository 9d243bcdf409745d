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
    /// Connections refused before their handshake, for want of a slot.
    refused,
    /// Dials begun.
    dials,
    /// Dials that failed, at any stage after the lookup of a name.
    dials_failed,
    /// Lookups of names begun.
    lookups,
    /// Lookups that failed, of those that were begun or refused: the name has no address, or it took too long. A lookup
    /// that takes too long counts once for each dial that waited.
    lookups_failed,
    /// Lookups refused because every resolver thread was held.
    lookups_refused,
    /// Inbound connections whose handshake failed or was refused.
    handshakes_failed,
    /// Handshakes that took too long.
    handshake_timeouts,
    /// Connections that were proven and not attached: another one of the same peers was.
    duplicates,
    /// Connections refused, here or there, because another process has the same identity.
    identity_clashes,
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
