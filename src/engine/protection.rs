//! What protects a node's connections, made of its configuration, and changed while it runs.
//!
//! Owns: the trust and the certificate, through the transport. Threads: the application's. Locks: the transport's, for a
//! clone. Blocks on: the disk, for the files of the configuration.
//! Upholds: a reload that fails changes nothing; the identity stays as long as the process.

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::{Channel, Config, Exposure, Security, TrustMode};
use crate::error::{ConfigError, StartError};
use crate::transport::tcp::Tcp;
#[cfg(feature = "tls")]
use crate::transport::tls::Tls;
use crate::transport::{Identity, Transport, Trust, Trusting};

/// What protects a node's connections.
pub(crate) struct Protection {
    identity: Arc<Identity>,
    /// As the node was started with.
    fixed: Fixed,
    channel: Protected,
}

/// What a reload may not change.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fixed {
    channel: Channel,
    key: Option<PathBuf>,
    public: Vec<Exposure>,
}

impl Fixed {
    fn of(security: &Security) -> Self {
        Self { channel: security.channel, key: security.key.clone(), public: security.public.clone() }
    }
}

enum Protected {
    Plain(Arc<Trusting>),
    #[cfg(feature = "tls")]
    Tls(Tls),
}

impl Protection {
    /// Puts what the configuration says around a transport.
    pub(super) fn new(
        config: &Config,
        identity: &Arc<Identity>,
        protocol: &str,
        inner: Option<Arc<dyn Transport>>,
        tcp: Tcp,
    ) -> Result<Self, StartError> {
        let inner = inner.unwrap_or_else(|| Arc::new(tcp));
        let trust = trust(config, identity)?;
        let channel = match config.security.channel {
            #[cfg(feature = "tls")]
            Channel::Tls => Protected::Tls(Tls::over(inner, protocol, files::credential(config, identity)?, trust)?),
            _ => {
                let _ = protocol;
                Protected::Plain(Arc::new(Trusting::new(inner, trust)))
            }
        };
        Ok(Self { identity: identity.clone(), fixed: Fixed::of(&config.security), channel })
    }

    /// The transport.
    pub(crate) fn transport(&self) -> Arc<dyn Transport> {
        match &self.channel {
            Protected::Plain(plain) => plain.clone(),
            #[cfg(feature = "tls")]
            Protected::Tls(tls) => Arc::new(tls.clone()),
        }
    }

    /// Takes trust and certificate anew.
    pub(crate) fn replace(&self, config: &Config) -> Result<(), ConfigError> {
        config.validate()?;
        if Fixed::of(&config.security) != self.fixed {
            let what = "channel, key and public stay as long as the node: start it anew".to_owned();
            return Err(ConfigError { place: "security".to_owned(), what });
        }
        let trust = trust(config, &self.identity)?;
        match &self.channel {
            Protected::Plain(plain) => plain.replace(trust),
            #[cfg(feature = "tls")]
            Protected::Tls(tls) => tls.replace(files::credential(config, &self.identity)?, trust)?,
        }
        Ok(())
    }
}

/// Whom the configuration trusts.
fn trust(config: &Config, identity: &Identity) -> Result<Trust, ConfigError> {
    let security = &config.security;
    if security.trust == TrustMode::Open {
        return Ok(Trust::open());
    }
    // Ourselves: what it means to meet our own key is the handshake's to say.
    let listed = security.trusted.iter().copied().chain(config.peers.iter().map(|peer| peer.id));
    let trust = Trust::listed(listed.chain([identity.peer_id()]));
    #[cfg(feature = "tls")]
    if let Some(path) = &security.roots {
        return Ok(trust.and_roots(files::roots(path)?));
    }
    Ok(trust)
}

/// Says once more what was given up and acknowledged.
pub(super) fn warn_of_exposure(config: &Config, me: &str) {
    if let Some(addr) = config.metrics.listen.filter(|addr| !addr.ip().is_loopback()) {
        log::warn!(
            target: "threadwire::node",
            "{me}: metrics.listen = {addr}: whoever reaches it reads the metrics, and so does whoever is on the way"
        );
    }
    if config.listen.iter().all(|addr| addr.ip().is_loopback()) {
        return;
    }
    if config.security.channel == Channel::Plain {
        log::warn!(
            target: "threadwire::node",
            "{me}: plain TCP where other machines reach it: whoever is on the way can read and change every message"
        );
    }
    if config.security.trust == TrustMode::Open {
        log::warn!(target: "threadwire::node", "{me}: open to whoever reaches it: any key is let in");
    }
}

/// The files of TLS.
#[cfg(feature = "tls")]
mod files {
    use std::fs;
    use std::path::Path;
    use std::sync::Arc;

    use crate::config::Config;
    use crate::error::ConfigError;
    use crate::transport::Identity;
    use crate::transport::tls::{Credential, Roots};

    pub(super) fn roots(path: &Path) -> Result<Roots, ConfigError> {
        let field = "security.roots";
        Roots::from_pem(&read(field, path)?).map_err(|what| wrong(field, path, &what))
    }

    pub(super) fn credential(config: &Config, identity: &Arc<Identity>) -> Result<Credential, ConfigError> {
        let Some(path) = &config.security.certificate else { return Ok(Credential::bare(identity.clone())) };
        let field = "security.certificate";
        Credential::certified(identity.clone(), &read(field, path)?).map_err(|what| wrong(field, path, &what))
    }

    fn read(field: &str, path: &Path) -> Result<Vec<u8>, ConfigError> {
        fs::read(path).map_err(|error| wrong(field, path, &format!("cannot be read: {error}")))
    }

    fn wrong(field: &str, path: &Path, what: &str) -> ConfigError {
        ConfigError { place: field.to_owned(), what: format!("{} {what}", path.display()) }
    }
}
