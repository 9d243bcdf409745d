//! rustls configurations, made of a credential and a trust.
//!
//! Owns: both, as they are until they are replaced. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: TLS 1.3 only, mutual; no early data, no tickets, no resumption, no server name on the wire; keys go to no
//! log.

use std::sync::Arc;

use rustls::client::{Resumption, UnbufferedClientConnection};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer};
use rustls::server::{CertificateType, ClientHello, NoServerSessionStorage, ServerConfig};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{ClientConfig, Error, SignatureAlgorithm, SignatureScheme, version};

use super::credential::Credential;
use super::provider::provider;
use super::verify::{Judge, OfDiallers, OfServers};
use crate::error::ConfigError;
use crate::ident::PeerId;
use crate::transport::{Identity, Trust, spki_of};

/// What connections are made with.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(super) me: PeerId,
    /// Counts what has been replaced; whoever replaces says it.
    pub(super) number: u64,
    judge: Judge,
    /// For dials; each gets a judge of its own.
    client: ClientConfig,
    /// For accepted connections: by what we show, then by what the other side shows.
    servers: [[Arc<ServerConfig>; 2]; 2],
}

impl Setup {
    /// # Errors
    /// rustls refuses the configuration.
    pub(super) fn new(protocol: &str, credential: Credential, trust: Trust) -> Result<Self, ConfigError> {
        let provider = provider();
        let me = credential.identity.peer_id();
        let judge = Judge { me, trust: Arc::new(trust), algorithms: provider.signature_verification_algorithms };
        let key = Arc::new(Key { spki: spki_of(&credential.identity.public_key()), identity: credential.identity });
        let bare = Arc::new(CertifiedKey::new(vec![CertificateDer::from(key.spki.to_vec())], key.clone()));
        let bare = Arc::new(Showing { key: bare, bare: true });
        let certified = (!credential.chain.is_empty())
            .then(|| Arc::new(Showing { key: Arc::new(CertifiedKey::new(credential.chain, key)), bare: false }));
        let protocols = vec![protocol.as_bytes().to_vec()];

        let verifier = OfServers { judge: judge.clone(), expected: None, bare: true };
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|error| refused(&error))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(certified.clone().unwrap_or_else(|| bare.clone()));
        client.alpn_protocols.clone_from(&protocols);
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        // The halves of a connection seal and open by themselves.
        client.enable_secret_extraction = true;

        let server = |shows: &Arc<Showing>, bare: bool| {
            let verifier = Arc::new(OfDiallers { judge: judge.clone(), bare });
            let mut server = ServerConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(&[&version::TLS13])
                .map_err(|error| refused(&error))?
                .with_client_cert_verifier(verifier)
                .with_cert_resolver(shows.clone());
            server.alpn_protocols.clone_from(&protocols);
            server.session_storage = Arc::new(NoServerSessionStorage {});
            server.send_tls13_tickets = 0;
            server.max_early_data_size = 0;
            server.enable_secret_extraction = true;
            Ok(Arc::new(server))
        };
        let certified = certified.unwrap_or_else(|| bare.clone());
        let servers =
            [[server(&certified, false)?, server(&certified, true)?], [server(&bare, false)?, server(&bare, true)?]];
        Ok(Self { me, number: 0, judge, client, servers })
    }

    pub(super) fn judge(&self) -> &Judge {
        &self.judge
    }

    /// The side that dials; its hello is ready to be written.
    pub(super) fn dial(&self, expected: Option<PeerId>) -> Result<UnbufferedClientConnection, Error> {
        let trust = &self.judge.trust;
        // Only a certificate can be vouched for. Whoever need not be is asked for its key, which every node can show.
        let listed = trust.is_open() || expected.is_some_and(|peer| peer == self.me || trust.lists(peer));
        let bare = trust.roots().is_none() || listed;
        let mut config = self.client.clone();
        config.dangerous().set_certificate_verifier(Arc::new(OfServers { judge: self.judge.clone(), expected, bare }));
        // It is not sent, and nobody looks at it: peers are named by their keys.
        let name = ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
        UnbufferedClientConnection::new(Arc::new(config), name)
    }

    /// What the side that is dialled answers this hello with.
    pub(super) fn answer(&self, hello: &ClientHello<'_>) -> Arc<ServerConfig> {
        let takes_bare = |kinds: Option<&[CertificateType]>| {
            kinds.is_some_and(|kinds| kinds.contains(&CertificateType::RawPublicKey))
        };
        let (show_bare, shows_bare) = (takes_bare(hello.server_cert_types()), takes_bare(hello.client_cert_types()));
        self.servers[usize::from(show_bare)][usize::from(shows_bare)].clone()
    }
}

fn refused(error: &Error) -> ConfigError {
    ConfigError { place: "TLS".to_owned(), what: error.to_string() }
}

/// The node's key, as rustls signs with it.
#[derive(Debug)]
struct Key {
    identity: Arc<Identity>,
    spki: [u8; 44],
}

impl SigningKey for Key {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let identity = self.identity.clone();
        offered.contains(&SignatureScheme::ED25519).then(|| Box::new(KeySigner(identity)) as Box<dyn Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(SubjectPublicKeyInfoDer::from(&self.spki[..]))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ED25519
    }
}

#[derive(Debug)]
struct KeySigner(Arc<Identity>);

impl Signer for KeySigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(self.0.sign(message).to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

/// Shows one credential to everybody.
#[derive(Debug)]
struct Showing {
    key: Arc<CertifiedKey>,
    bare: bool,
}

impl rustls::client::ResolvesClientCert for Showing {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.key.clone())
    }

    fn only_raw_public_keys(&self) -> bool {
        self.bare
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl rustls::server::ResolvesServerCert for Showing {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.key.clone())
    }

    fn only_raw_public_keys(&self) -> bool {
        self.bare
    }
}
