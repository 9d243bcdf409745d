//! Keys and certificates of every kind, good and bad.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, PKCS_ED25519, date_time_ymd,
};
use tempfile::TempDir;
use threadwire::PeerId;
use threadwire::config::{Config, TrustMode};
use threadwire::handshake::Identity;

/// A folder with files of keys and certificates.
pub struct Office {
    pub folder: TempDir,
}

/// A certificate authority and its file.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub file: PathBuf,
}

/// A node's key and its file.
pub struct Key {
    pair: KeyPair,
    pub id: PeerId,
    pub file: PathBuf,
}

/// When a certificate is valid, in years.
pub type Years = std::ops::Range<i32>;

/// A certificate of now.
pub const NOW: Years = 2020..2090;

impl Office {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    pub fn authority(&self, name: &str) -> Authority {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let file = self.write(&format!("{name}.pem"), &params.self_signed(&pair).unwrap().pem());
        Authority { issuer: Issuer::new(params, pair), file }
    }

    pub fn key(&self, name: &str) -> Key {
        let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let id = Identity::from_pem(&pair.serialize_pem()).unwrap().peer_id();
        let file = self.write(&format!("{name}.key"), &pair.serialize_pem());
        Key { pair, id, file }
    }

    /// A certificate for a key.
    pub fn certificate(&self, key: &Key, by: &Authority, valid: Years) -> PathBuf {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "a node");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = (date_time_ymd(valid.start, 1, 1), date_time_ymd(valid.end, 1, 1));
        let certificate = params.signed_by(&key.pair, &by.issuer).unwrap();
        self.write(&format!("{}-{}.pem", key.id.short(), valid.start), &certificate.pem())
    }
}

/// A configuration with this key.
pub fn with_key(mut config: Config, key: &Key) -> Config {
    config.security.key = Some(key.file.clone());
    config
}

/// A configuration that trusts these peers and no others.
pub fn listing(mut config: Config, ids: impl IntoIterator<Item = PeerId>) -> Config {
    config.security.trust = TrustMode::Listed;
    config.security.trusted = ids.into_iter().collect();
    config
}

/// A configuration that shows this certificate, and trusts whom this authority vouches for.
pub fn certified(mut config: Config, certificate: &Path, roots: &Path) -> Config {
    config.security.trust = TrustMode::Listed;
    config.security.certificate = Some(certificate.to_owned());
    config.security.roots = Some(roots.to_owned());
    config
}
