//! Trust and certificates, changed while a node runs.
//!
//! Owns: nothing. Threads: the application's. Locks: the registry lock, then the outbox lock of one peer; one after the
//! other. Blocks on: the disk, for the files of the configuration.
//! Upholds: from the moment it returns nobody has a session, or gets one, whom the new trust does not cover.

use crate::config::Config;
#[cfg(doc)]
use crate::config::Security;
use crate::error::{CloseReason, ConfigError};
use crate::node::Node;

impl Node {
    /// Takes trust and certificate anew from a configuration: `trust`, `trusted`, `roots` and `certificate` of
    /// [`Security`], and the ids of [`Config::peers`]; the files are read again. New handshakes use them. Sessions that
    /// no longer qualify are closed with [`CloseReason::Untrusted`]; how many is returned. The rest of the configuration
    /// is not looked at.
    ///
    /// # Errors
    /// The configuration is not allowed, a file cannot be read or is wrong, or what is fixed for the node's life would
    /// change (`channel`, `key`, `public`). Nothing has changed then.
    ///
    /// # Blocking
    /// For the disk.
    pub fn reload_trust(&self, config: &Config) -> Result<usize, ConfigError> {
        self.engine.protection.replace(config)?;
        let transport = self.engine.protection.transport();
        let sessions = self.engine.shared.registry.sessions(|entry| (entry.link.clone(), entry.session.clone()));
        let mut closed = 0;
        for (link, session) in sessions {
            if session.proof.as_ref().is_some_and(|proof| !transport.trusts(proof)) {
                log::warn!(target: "threadwire::session", "{} {}: no longer trusted", link.id.short(), session.conn);
                session.say_goodbye(&link, CloseReason::Untrusted);
                closed += 1;
            }
        }
        Ok(closed)
    }
}
