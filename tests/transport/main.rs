//! What every transport must do, and what the faults of the memory transport do.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[cfg(feature = "tls")]
mod chains;
mod contract;
mod faults;
mod memory;
#[cfg(feature = "tls")]
mod narrow;
#[cfg(feature = "tls")]
mod openssl;
mod support;
#[cfg(feature = "tls")]
mod tls;
