//! What a node shows of itself, and the authorities it believes.
//!
//! Owns: certificates. Threads: any. Locks: none. Blocks on: nothing; files are read by whoever has their names.
//! Upholds: a certificate is shown only beside the key it is for.

use std::fmt;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};

use super::provider::provider;
use crate::transport::{Identity, spki_of};

/// What a node shows: its bare key (RFC 7250), or a certificate for that key.
#[derive(Clone)]
pub struct Credential {
    pub(super) identity: Arc<Identity>,
    /// The node's own certificate first; empty for the bare key.
    pub(super) chain: Vec<CertificateDer<'static>>,
}

impl Credential {
    /// The bare key.
    pub fn bare(identity: Arc<Identity>) -> Self {
        Self { identity, chain: Vec::new() }
    }

    /// A certificate for the key, as PEM blocks `CERTIFICATE`: the node's own first, then those that lead to an
    /// authority, without the authority itself.
    ///
    /// # Errors
    /// What is wrong with the text, in words: no certificate, a damaged one, or one for another key.
    pub fn certified(identity: Arc<Identity>, pem: &[u8]) -> Result<Self, String> {
        let chain = certificates(pem)?;
        let own = chain.first().ok_or("holds no PEM block \"CERTIFICATE\"")?;
        let parsed = ParsedCertificate::try_from(own).map_err(|error| format!("its first certificate: {error}"))?;
        if *parsed.subject_public_key_info() != spki_of(&identity.public_key()) {
            return Err(format!(
                "its first certificate is for another key than the one of {}: make it with \
                 `openssl req -new -key <the key file>`",
                identity.peer_id().short()
            ));
        }
        Ok(Self { identity, chain })
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("identity", &self.identity).field("certificates", &self.chain.len()).finish()
    }
}

/// Certificate authorities: whoever shows a certificate that leads to one of them is vouched for.
#[derive(Clone)]
pub struct Roots {
    pub(super) store: Arc<RootCertStore>,
    /// Judges what those who dial us show.
    pub(super) of_diallers: Arc<dyn ClientCertVerifier>,
}

impl Roots {
    /// From PEM blocks `CERTIFICATE`.
    ///
    /// # Errors
    /// What is wrong with the text, in words.
    pub fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let mut store = RootCertStore::empty();
        for (n, certificate) in certificates(pem)?.into_iter().enumerate() {
            store.add(certificate).map_err(|error| format!("its certificate {}: {error}", n + 1))?;
        }
        if store.is_empty() {
            return Err("holds no PEM block \"CERTIFICATE\"".to_owned());
        }
        let store = Arc::new(store);
        let of_diallers = WebPkiClientVerifier::builder_with_provider(store.clone(), provider())
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self { store, of_diallers })
    }
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Roots({})", self.store.len())
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_slice_iter(pem).map(|found| found.map_err(|error| format!("is damaged: {error}"))).collect()
}
