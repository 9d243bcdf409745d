//! What protects a node's connections, made of its configuration, and changed while it runs.
//!
//! Owns: the trust and the certificate, through the transport. Threads: the application's. Locks: the transport's, for a
//! clone; its own, a leaf. Blocks on: the disk, for the files of the configuration.
//! Upholds: a reload that fails changes nothing; the identity stays as long as the process.

use std::collections::BTreeSet;
#[cfg(feature = "tls")]
use std::path::PathBuf;
use std::sync::Arc;

use crate::config::{Channel, Config, TrustMode};
use crate::error::{ConfigError, StartError};
use crate::ident::PeerId;
use crate::sync::Mutex;
use crate::transport::tcp::LiveTcp;
#[cfg(feature = "tls")]
use crate::transport::tls::{Setup, Tls};
use crate::transport::{Identity, Transport, Trust, Trusting};

/// What protects a node's connections.
pub(crate) struct Protection {
    identity: Arc<Identity>,
    channel: Protected,
    /// The options of TCP, which hold unless the application brought a transport of its own.
    pub(super) tcp: LiveTcp,
    /// What trust and certificate were made of.
    basis: Mutex<Basis>,
}

/// What trust and certificate are made of: whoever changes none of it changes no trust.
#[derive(Debug, Default, PartialEq, Eq)]
struct Basis {
    /// Everybody is let in; nothing of the rest counts then but the certificate.
    open: bool,
    ids: BTreeSet<PeerId>,
    /// The contents of the files.
    roots: Option<Vec<u8>>,
    certificate: Option<Vec<u8>>,
}

enum Protected {
    Plain(Arc<Trusting>),
    #[cfg(feature = "tls")]
    Tls(Tls),
}

/// Trust and certificate that are ready to be put to use.
pub(super) struct Prepared {
    basis: Basis,
    made: Made,
}

enum Made {
    Trust(Trust),
    #[cfg(feature = "tls")]
    Setup(Box<Setup>),
}

impl Protection {
    /// Puts what the configuration says around a transport: TCP, if the application brings none.
    pub(super) fn new(
        config: &Config,
        identity: &Arc<Identity>,
        protocol: &str,
        inner: Option<Arc<dyn Transport>>,
        tcp: LiveTcp,
    ) -> Result<Self, StartError> {
        let inner = inner.unwrap_or_else(|| Arc::new(tcp.clone()));
        let basis = basis(config, identity)?;
        let trust = trust(config, &basis)?;
        let channel = match config.security.channel {
            #[cfg(feature = "tls")]
            Channel::Tls => {
                Protected::Tls(Tls::over(inner, protocol, files::credential(config, &basis, identity)?, trust)?)
            }
            _ => {
                let _ = protocol;
                Protected::Plain(Arc::new(Trusting::new(inner, trust)))
            }
        };
        Ok(Self { identity: identity.clone(), channel, tcp, basis: Mutex::new(basis) })
    }

    /// The transport.
    pub(crate) fn transport(&self) -> Arc<dyn Transport> {
        match &self.channel {
            Protected::Plain(plain) => plain.clone(),
            #[cfg(feature = "tls")]
            Protected::Tls(tls) => Arc::new(tls.clone()),
        }
    }

    /// Reads the files of a configuration, whose channel and key are the present ones. `None`: it trusts and shows what is
    /// trusted and shown already. Nothing changes yet.
    pub(super) fn prepare(&self, config: &Config) -> Result<Option<Prepared>, ConfigError> {
        let basis = basis(config, &self.identity)?;
        if basis == *self.basis.lock() {
            return Ok(None);
        }
        let trust = trust(config, &basis)?;
        let made = match &self.channel {
            Protected::Plain(_) => Made::Trust(trust),
            #[cfg(feature = "tls")]
            Protected::Tls(tls) => {
                Made::Setup(Box::new(tls.prepare(files::credential(config, &basis, &self.identity)?, trust)?))
            }
        };
        Ok(Some(Prepared { basis, made }))
    }

    /// Puts it to use: the fields whose files have other contents.
    pub(super) fn put(&self, prepared: Prepared) -> Vec<&'static str> {
        let Prepared { basis, made } = prepared;
        match (&self.channel, made) {
            (Protected::Plain(plain), Made::Trust(trust)) => plain.replace(trust),
            #[cfg(feature = "tls")]
            (Protected::Tls(tls), Made::Setup(setup)) => tls.put(*setup),
            // It was made for the channel that there is.
            #[cfg(feature = "tls")]
            _ => {}
        }
        let mut present = self.basis.lock();
        let mut files = Vec::new();
        if present.roots != basis.roots {
            files.push("security.roots");
        }
        if present.certificate != basis.certificate {
            files.push("security.certificate");
        }
        *present = basis;
        files
    }
}

/// What the configuration's trust and certificate are made of.
fn basis(config: &Config, identity: &Identity) -> Result<Basis, ConfigError> {
    let security = &config.security;
    let open = security.trust == TrustMode::Open;
    let mut basis = Basis { open, ..Basis::default() };
    if !open {
        // Ourselves: what it means to meet our own key is the handshake's to say.
        let listed = security.trusted.iter().copied().chain(config.peers.iter().map(|peer| peer.id));
        basis.ids = listed.chain([identity.peer_id()]).collect();
    }
    #[cfg(feature = "tls")]
    {
        let read = |field, path: &Option<PathBuf>| path.as_ref().map(|path| files::read(field, path)).transpose();
        basis.roots = read("security.roots", &security.roots)?;
        basis.certificate = read("security.certificate", &security.certificate)?;
    }
    Ok(basis)
}

/// Whom it trusts.
fn trust(config: &Config, basis: &Basis) -> Result<Trust, ConfigError> {
    if basis.open {
        return Ok(Trust::open());
    }
    let trust = Trust::listed(basis.ids.iter().copied());
    #[cfg(feature = "tls")]
    if let (Some(path), Some(bytes)) = (&config.security.roots, &basis.roots) {
        return Ok(trust.and_roots(files::roots(path, bytes)?));
    }
    let _ = config;
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

    use super::Basis;
    use crate::config::Config;
    use crate::error::ConfigError;
    use crate::transport::Identity;
    use crate::transport::tls::{Credential, Roots};

    pub(super) fn roots(path: &Path, pem: &[u8]) -> Result<Roots, ConfigError> {
        Roots::from_pem(pem).map_err(|what| wrong("security.roots", path, &what))
    }

    pub(super) fn credential(
        config: &Config,
        basis: &Basis,
        identity: &Arc<Identity>,
    ) -> Result<Credential, ConfigError> {
        let (Some(path), Some(pem)) = (&config.security.certificate, &basis.certificate) else {
            return Ok(Credential::bare(identity.clone()));
        };
        Credential::certified(identity.clone(), pem).map_err(|what| wrong("security.certificate", path, &what))
    }

    pub(super) fn read(field: &str, path: &Path) -> Result<Vec<u8>, ConfigError> {
        fs::read(path).map_err(|error| wrong(field, path, &format!("cannot be read: {error}")))
    }

    fn wrong(field: &str, path: &Path, what: &str) -> ConfigError {
        ConfigError { place: field.to_owned(), what: format!("{} {what}", path.display()) }
    }
}
