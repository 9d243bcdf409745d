//! Another configuration, while a node runs.
//!
//! Owns: nothing. Threads: the application's. Locks: see `engine::reload`. Blocks on: the disk, for the files of the
//! configuration; short answers of the node's own threads; the end of a former endpoint's thread, with a deadline.
//! Upholds: a configuration is put to use whole, or refused whole.

use crate::config::{Config, Reload};
#[cfg(doc)]
use crate::error::CloseReason;
use crate::error::ReloadError;
use crate::node::Node;

impl Node {
    /// Puts another configuration to use, whole or not at all, without cutting a session that is within it. When it
    /// returns, it holds for all that begins. Told as [`Event::ConfigReloaded`](crate::Event::ConfigReloaded) or
    /// [`Event::ConfigRefused`](crate::Event::ConfigRefused), and in the log. Concurrent calls take turns.
    ///
    /// | fields | what happens |
    /// |---|---|
    /// | `listen`, `metrics.listen` | what is wanted as before stays; new sockets are bound before old ones go. Where the two cannot be there together (a wildcard and an address at one port) the old one goes first; if the new one then cannot be bound, the old one is bound again, and it is a refusal |
    /// | `advertise`, `resolve_timeout`, `connect_timeout`, `handshake_timeout`, `tcp`, `threads`, `ack_delay`, `heartbeat`, `send_deadline` | for whatever begins from then on: a lookup, a dial, a handshake, a session, a wait |
    /// | `peer` | new ones are dialled, those at other addresses there from now on (a session that there is stays), missing ones are let go as by [`Node::remove_peer`]. Those that the application added itself stay as it added them |
    /// | `inbound`, `outbound`, `inbound_per_ip`, `max_threads` | lowered, whoever is too many is told [`CloseReason::TooMany`] ([`CloseReason::NoResources`] for `max_threads`): unproven connections first, then those that began last |
    /// | `half_open`, `half_open_per_ip` | lowered, the unproven connections that are too many go, as for newcomers |
    /// | `queue_messages`, `queue_bytes`, `unknown_*`, `requests`, `memory_bytes` | lowered, nothing that waits is dropped: who sends waits for room. `message_ttl` holds for messages from then on, `offline = "return"` for what waits when a session ends next |
    /// | `window_bytes`, `max_message` | for what is sent from then on, and for messages that begin to come; of `window_bytes`, how much may come counts from each peer's next connection on |
    /// | `backoff`, `stable_after`, `resolve_threads`, `unknown_timeout`, `resume_window` and the rest of the deadlines | at once |
    /// | `security.trust`, `trusted`, `roots`, `certificate`, `public` | the files are read again, also where their names are the same; new handshakes use them, and sessions that no longer qualify are told [`CloseReason::Untrusted`] |
    /// | `log` | nothing: the program applies it, if [`Reload::changed`] names it |
    /// | `network`, `data_dir`, `security.channel`, `security.key` | refused: fixed for the node's life |
    ///
    /// Nothing that was sent is lost by it: what a session that had to go has not delivered goes with the next one.
    /// A transport that the application brought has options of its own: `tcp` is nothing to it.
    ///
    /// # Errors
    /// [`ReloadError`] names the field and its value, and says what is allowed, or that it is fixed. Nothing has changed
    /// then: correct it and try again. Two exceptions: [`ReloadError::Bind`] and [`ReloadError::System`] may name an
    /// address that is lost, and [`ReloadError::ShuttingDown`] may come halfway.
    ///
    /// # Blocking
    /// For the disk, and for milliseconds on threads of the node; where the metrics endpoint moves, up to 5 s for a thread
    /// that does not end; while another reload is under way.
    pub fn reload(&self, config: &Config) -> Result<Reload, ReloadError> {
        self.engine.reload(config)
    }

    /// The configuration that holds: the one that the node was started with, or the last one that it was reloaded with.
    ///
    /// # Blocking
    /// While a reload is under way.
    pub fn config(&self) -> Config {
        self.engine.config()
    }
}
