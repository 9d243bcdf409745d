//! The engine: one identity, its links, and the threads that serve them. What a [`Node`](crate::Node) is
//! made of, and a [`DirectSender`](crate::direct::DirectSender).
//!
//! Owns: everything below it. Threads: the application's call it; it starts the connections manager's, the endpoint's
//! and the one that waits for the application's signal. Locks: see the files. Blocks on: what each function says.
//! Upholds: a start that fails leaves nothing running; an engine that is dropped shuts down.
//!
//! `start` makes the parts, `running` is what it gives, `reload` puts another configuration to use and `sockets` moves it
//! to other addresses; `present` is what holds, `settings` are numbers that follow from the configuration.

mod events;
mod inlet;
mod present;
mod protection;
mod reload;
mod running;
mod selfcheck;
mod settings;
mod shutdown;
mod sockets;
mod start;

pub(crate) use events::Changes;
pub use events::Event;
pub use selfcheck::{Finding, SystemLimit};
pub use shutdown::{PeerReport, ShutdownReport};

pub(crate) use events::Listener;
pub(crate) use running::{DROP_DEADLINE, Engine, snapshot, want};
pub(crate) use start::{Chosen, start};
