//! What can be set, with units, defaults and ranges: one type, one file format, one check.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: [`Config::from_file`] reads a file.
//! Upholds: a value out of range or in contradiction to another is refused by name before anything starts; the
//! `config.toml` beside the crate's manifest says what [`Config::default`] says (tests/config_file.rs).
//!
//! ```
//! use threadwire::config::Config;
//!
//! let mut config = Config::loopback();
//! config.idle_timeout = std::time::Duration::from_secs(60);
//! config.validate()?;
//! # Ok::<(), threadwire::error::ConfigError>(())
//! ```

mod change;
mod check;
mod fields;
mod load;
mod place;
mod sections;
mod security;
mod sockets;
mod units;

pub(crate) use change::Change;
pub use change::{Closed, Reload};
pub use fields::Config;
pub(crate) use fields::{LINK_FLOOR, THREADS_PER_SESSION};
pub use sections::{Backoff, BackoffPolicy, Log, Metrics, Offline, Peer, Tcp, Threads};
pub use security::{Channel, Exposure, Security, TrustMode};
pub(crate) use sockets::{Listening, SocketPlan, Source, overlap};
