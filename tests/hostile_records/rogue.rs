//! A side of TLS that has proven its key, and then seals what the test says, whatever that is.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use parking_lot::Mutex;
use rcgen::{KeyPair, PKCS_ED25519};
use ring::aead::{AES_128_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Prk};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, ResolvesClientCert};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, HandshakeKind, KeyLog, ServerConfig, ServerConnection,
    SignatureScheme, version,
};
use threadwire::handshake::Identity;

use crate::common::PATIENCE;
use crate::common::wire::tls::{AnyKey, provider};

/// Kinds of records, and messages of the handshake.
pub const ALERT: u8 = 21;
pub const HANDSHAKE: u8 = 22;
pub const DATA: u8 = 23;
pub const KEY_UPDATE: u8 = 24;
pub const TICKET: u8 = 4;

/// What it shows of itself, and names.
pub struct Shows {
    pub identity: Arc<Identity>,
    pem: String,
    /// The protocols that it names.
    pub protocols: Vec<Vec<u8>>,
    /// It says that it will show its bare key, and shows nothing.
    pub nothing: bool,
}

impl Shows {
    /// A fresh key, for this protocol.
    pub fn new(protocol: &str) -> Self {
        let pem = KeyPair::generate_for(&PKCS_ED25519).unwrap().serialize_pem();
        let identity = Arc::new(Identity::from_pem(&pem).unwrap());
        Self { identity, pem, protocols: vec![protocol.as_bytes().to_vec()], nothing: false }
    }

    fn key(&self) -> Arc<CertifiedKey> {
        let key = PrivateKeyDer::from_pem_slice(self.pem.as_bytes()).unwrap();
        let key = provider().key_provider.load_private_key(key).unwrap();
        let info = CertificateDer::from(key.public_key().unwrap().to_vec());
        Arc::new(CertifiedKey::new(vec![info], key))
    }
}

/// Promises a bare key, and has none.
#[derive(Debug)]
struct Nothing;

impl ResolvesClientCert for Nothing {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn only_raw_public_keys(&self) -> bool {
        true
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// One suite, whose keys are made below.
fn one_suite() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider { cipher_suites: vec![TLS13_AES_128_GCM_SHA256], ..(*provider()).clone() })
}

/// The secret that the rogue's own keys are made of, as rustls tells it.
#[derive(Debug)]
struct Overheard {
    label: &'static str,
    secret: Mutex<Vec<u8>>,
}

impl KeyLog for Overheard {
    fn log(&self, label: &str, _: &[u8], secret: &[u8]) {
        if label == self.label {
            *self.secret.lock() = secret.to_vec();
        }
    }
}

/// A connection whose records the test writes.
pub struct Rogue {
    tls: rustls::Connection,
    stream: TcpStream,
    keys: Keys,
    /// Records that it has heard behind the handshake.
    pub records_heard: usize,
}

impl Rogue {
    /// Dials, and shakes hands as it should, or shows nothing.
    ///
    /// # Errors
    /// The other side has said no.
    pub fn dial(shows: &Shows, addr: SocketAddr) -> io::Result<Self> {
        let log = Arc::new(Overheard { label: "CLIENT_TRAFFIC_SECRET_0", secret: Mutex::default() });
        let mut config = ClientConfig::builder_with_provider(one_suite())
            .with_protocol_versions(&[&version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyKey::new(provider(), true)))
            .with_client_cert_resolver(match shows.nothing {
                true => Arc::new(Nothing),
                false => Arc::new(AlwaysResolvesClientRawPublicKeys::new(shows.key())),
            });
        config.alpn_protocols.clone_from(&shows.protocols);
        config.key_log = log.clone();
        let tls = ClientConnection::new(Arc::new(config), "node".try_into().unwrap()).unwrap();
        Self::shake_hands(tls.into(), TcpStream::connect(addr).unwrap(), &log)
    }

    /// Takes the next connection of a listener, and shakes hands as it should.
    ///
    /// # Errors
    /// The two have not come together.
    pub fn accept(shows: &Shows, listener: &TcpListener) -> io::Result<Self> {
        let log = Arc::new(Overheard { label: "SERVER_TRAFFIC_SECRET_0", secret: Mutex::default() });
        let mut config = ServerConfig::builder_with_provider(one_suite())
            .with_protocol_versions(&[&version::TLS13])
            .unwrap()
            .with_client_cert_verifier(Arc::new(AnyKey::new(provider(), true)))
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(shows.key())));
        config.alpn_protocols.clone_from(&shows.protocols);
        config.send_tls13_tickets = 0;
        config.key_log = log.clone();
        let tls = ServerConnection::new(Arc::new(config)).unwrap();
        Self::shake_hands(tls.into(), listener.accept().unwrap().0, &log)
    }

    fn shake_hands(mut tls: rustls::Connection, mut stream: TcpStream, log: &Overheard) -> io::Result<Self> {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        while tls.is_handshaking() {
            tls.complete_io(&mut stream)?;
        }
        while tls.wants_write() {
            tls.write_tls(&mut stream)?;
        }
        Ok(Self { tls, stream, keys: Keys::of(log.secret.lock().clone()), records_heard: 0 })
    }

    /// One record of this kind, with so many bytes of padding.
    pub fn sealed(&mut self, kind: u8, body: &[u8], padding: usize) -> Vec<u8> {
        let inner = [body, &[kind], &vec![0; padding]].concat();
        self.keys.seal(inner)
    }

    /// One record without even a kind.
    pub fn sealed_padding(&mut self, len: usize) -> Vec<u8> {
        self.keys.seal(vec![0; len])
    }

    /// New keys, announced in due form; `ask` wants the same of the other side.
    pub fn update(&mut self, ask: bool) -> Vec<u8> {
        let record = self.sealed(HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, u8::from(ask)], 0);
        self.renew();
        record
    }

    /// New keys, without a word.
    pub fn renew(&mut self) {
        self.keys = Keys::of(expand(&self.keys.secret, b"traffic upd", 32));
    }

    /// Writes; false when the other side has closed.
    pub fn say(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Seals bytes of the stream, in one record.
    pub fn say_data(&mut self, bytes: &[u8]) -> bool {
        let record = self.sealed(DATA, bytes, 0);
        self.say(&record)
    }

    /// Listens to the end: the alert that the other side ends by, if it says one.
    pub fn hear_alert(&mut self) -> Option<AlertDescription> {
        let mut bytes = [0; 4096];
        loop {
            match self.tls.reader().read(&mut bytes) {
                Ok(0) => return None,
                Ok(_) => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return None,
            }
            match self.tls.read_tls(&mut self.stream) {
                Ok(0) => return None,
                Ok(_) => {}
                // Whatever it said before is lost.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("listening: {error}"),
            }
            match self.tls.process_new_packets() {
                Ok(_) => {}
                Err(rustls::Error::AlertReceived(alert)) => return Some(alert),
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Whether its handshake resumed nothing.
    pub fn began_anew(&self) -> bool {
        self.tls.handshake_kind() == Some(HandshakeKind::Full)
    }

    /// Reads bytes of the stream, and answers nothing.
    #[expect(clippy::disallowed_methods, reason = "its reads have a timeout, and a record is no frame")]
    pub fn hear(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let mut have = 0;
        while have < len {
            match self.tls.reader().read(&mut bytes[have..]) {
                Ok(0) => panic!("the stream ended"),
                Ok(count) => have += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    // One record at a time.
                    let mut record = vec![0; 5];
                    self.stream.read_exact(&mut record).unwrap();
                    record.resize(5 + usize::from(u16::from_be_bytes([record[3], record[4]])), 0);
                    self.stream.read_exact(&mut record[5..]).unwrap();
                    self.records_heard += 1;
                    let mut rest = &record[..];
                    while !rest.is_empty() {
                        self.tls.read_tls(&mut rest).unwrap();
                        self.tls.process_new_packets().unwrap();
                    }
                }
                Err(error) => panic!("{error}"),
            }
        }
        bytes
    }
}

/// Keys of AES-128-GCM, made as RFC 8446 says (7.1, 7.3).
struct Keys {
    secret: Vec<u8>,
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    number: u64,
}

impl Keys {
    fn of(secret: Vec<u8>) -> Self {
        let key = UnboundKey::new(&AES_128_GCM, &expand(&secret, b"key", 16)).unwrap();
        let iv = expand(&secret, b"iv", NONCE_LEN).try_into().unwrap();
        Self { secret, key: LessSafeKey::new(key), iv, number: 0 }
    }

    fn seal(&mut self, mut inner: Vec<u8>) -> Vec<u8> {
        let [high, low] = u16::try_from(inner.len() + 16).unwrap().to_be_bytes();
        let header = [DATA, 3, 3, high, low];
        let mut nonce = self.iv;
        nonce[4..].iter_mut().zip(self.number.to_be_bytes()).for_each(|(byte, of_number)| *byte ^= of_number);
        self.number += 1;
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.key.seal_in_place_append_tag(nonce, Aad::from(header), &mut inner).unwrap();
        [&header[..], &inner].concat()
    }
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// HKDF-Expand-Label, with an empty context.
fn expand(secret: &[u8], label: &[u8], len: usize) -> Vec<u8> {
    let [high, low] = u16::try_from(len).unwrap().to_be_bytes();
    let label_len = u8::try_from(b"tls13 ".len() + label.len()).unwrap();
    let (head, prk) = ([high, low, label_len], Prk::new_less_safe(HKDF_SHA256, secret));
    let info = [&head[..], b"tls13 ", label, &[0]];
    let mut bytes = vec![0; len];
    prk.expand(&info, Length(len)).unwrap().fill(&mut bytes).unwrap();
    bytes
}
