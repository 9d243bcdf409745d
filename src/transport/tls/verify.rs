//! The judge of what the other side shows: whose key it is, and whether trust covers it.
//!
//! Owns: nothing. Threads: `work-n`, and whoever replaces trust. Locks: none. Blocks on: nothing.
//! Upholds: only ed25519 keys are names; who was dialled by name is that peer or nobody; the proof of possession is
//! checked by the signature of TLS itself, always.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerIncompatible, SignatureScheme,
};

use crate::ident::{PeerId, SessionKind};
use crate::transport::{Proof, SPKI, Trust, sha256};

/// Another peer answered than the one that was dialled.
#[derive(Debug)]
pub(super) struct WrongPeer(PeerId);

impl fmt::Display for WrongPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} answered", self.0.short())
    }
}

impl std::error::Error for WrongPeer {}

/// Judges what others show.
#[derive(Debug, Clone)]
pub(super) struct Judge {
    pub(super) me: PeerId,
    pub(super) trust: Arc<Trust>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl Judge {
    /// Whether a connection with this proof would be let in now.
    pub(super) fn trusts(&self, proof: &Proof) -> bool {
        let chain: Vec<_> = proof.chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        self.covers(proof.peer, chain.split_first(), proof.kind, UnixTime::now()).is_ok()
    }

    /// Whether trust covers a peer that shows these certificates, its own and the rest; `kind` says who dialled.
    fn covers(
        &self,
        peer: PeerId,
        chain: Option<(&CertificateDer<'_>, &[CertificateDer<'_>])>,
        kind: SessionKind,
        now: UnixTime,
    ) -> Result<(), Error> {
        // Ourselves: what that means is the handshake's to say, which knows whether it is this very process.
        if peer == self.me || self.trust.lists(peer) {
            return Ok(());
        }
        let (Some((own, rest)), Some(roots)) = (chain, self.trust.roots()) else {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        };
        match kind {
            SessionKind::Inbound => roots.of_diallers.verify_client_cert(own, rest, now).map(drop),
            SessionKind::Outbound => verify_server_cert_signed_by_trust_anchor(
                &ParsedCertificate::try_from(own)?,
                &roots.store,
                rest,
                now,
                self.algorithms.all,
            ),
        }
    }

    /// Judges what is shown in a handshake.
    fn judge(
        &self,
        shown: &Shown<'_>,
        expected: Option<PeerId>,
        kind: SessionKind,
        now: UnixTime,
    ) -> Result<(), Error> {
        let peer = shown.peer()?;
        if expected.is_some_and(|expected| expected != peer) {
            return Err(CertificateError::Other(OtherError(Arc::new(WrongPeer(peer)))).into());
        }
        self.covers(peer, (!shown.bare).then_some((shown.own, shown.rest)), kind, now)
    }

    fn verify(
        &self,
        bare: bool,
        message: &[u8],
        own: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if signed.scheme != SignatureScheme::ED25519 {
            return Err(PeerIncompatible::NoSignatureSchemesInCommon.into());
        }
        if bare {
            let key = SubjectPublicKeyInfoDer::from(own.as_ref());
            return verify_tls13_signature_with_raw_key(message, &key, signed, &self.algorithms);
        }
        verify_tls13_signature(message, own, signed, &self.algorithms)
    }
}

/// What a side shows.
pub(super) struct Shown<'a> {
    /// A bare key, as SubjectPublicKeyInfo, in the place of the certificate.
    pub(super) bare: bool,
    pub(super) own: &'a CertificateDer<'a>,
    pub(super) rest: &'a [CertificateDer<'a>],
}

impl Shown<'_> {
    /// Whose it is.
    pub(super) fn peer(&self) -> Result<PeerId, Error> {
        if self.bare {
            return name(self.own.as_ref());
        }
        name(&ParsedCertificate::try_from(self.own)?.subject_public_key_info())
    }
}

/// The name of the peer with this key.
fn name(spki: &[u8]) -> Result<PeerId, Error> {
    match is_bare(spki) {
        true => Ok(PeerId::from_bytes(sha256(spki))),
        // A key of another kind proves nothing here, whoever vouches for it.
        false => Err(CertificateError::BadEncoding.into()),
    }
}

/// Whether this is a key of the kind that names peers, and no certificate.
pub(super) fn is_bare(shown: &[u8]) -> bool {
    shown.strip_prefix(&SPKI).is_some_and(|key| key.len() == 32)
}

/// What rustls wants to be told twice, of those who answer and of those who dial: how they prove that the key is theirs.
macro_rules! proofs_of_possession {
    ($older:ident) => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(PeerIncompatible::$older.into())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            own: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            self.judge.verify(self.bare, message, own, signed)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }

        fn requires_raw_public_keys(&self) -> bool {
            self.bare
        }
    };
}

/// Judges whoever answers our dial.
#[derive(Debug)]
pub(super) struct OfServers {
    pub(super) judge: Judge,
    pub(super) expected: Option<PeerId>,
    /// It has to show its bare key.
    pub(super) bare: bool,
}

impl ServerCertVerifier for OfServers {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let shown = Shown { bare: self.bare, own, rest };
        self.judge.judge(&shown, self.expected, SessionKind::Outbound, now)?;
        Ok(ServerCertVerified::assertion())
    }

    proofs_of_possession!(ServerDoesNotSupportTls12Or13);
}

/// Judges whoever dials us.
#[derive(Debug)]
pub(super) struct OfDiallers {
    pub(super) judge: Judge,
    /// It has to show its bare key.
    pub(super) bare: bool,
}

impl ClientCertVerifier for OfDiallers {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        own: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge.judge(&Shown { bare: self.bare, own, rest }, None, SessionKind::Inbound, now)?;
        Ok(ClientCertVerified::assertion())
    }

    proofs_of_possession!(Tls12NotOffered);
}
