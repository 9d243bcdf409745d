//! The baseline of the workload `connect`: blocking sockets, a handshake of rustls on each, a byte each way.
//!
//! Owns: a listener and its keys, or where to dial and with what. Threads: `door`, so many that as many handshakes run
//! at once as are dialled; whoever dials brings its own. Locks: none. Blocks on: the sockets, with a deadline where we
//! dial; the other end's threads end when their listener is shut.
//! Upholds: the same keys, cryptography and proofs as ours, on both sides: TLS 1.3, bare ed25519 keys, X25519, AES-128,
//! no tickets; nothing that ours does beyond a handshake, and no system call that can be spared.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ring::rand::SystemRandom;
use ring::signature::Ed25519KeyPair;
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, ring as provider};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, Stream, version};
use socket2::SockRef;

use crate::connect::Entered;
use crate::connect::any_key::AnyKey;
use crate::control::start_thread;
use crate::failure::{Context, Failure};

/// How long the other side may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the door waits for connections that it was told of: its answer shows that it has counted them.
const LATE: Duration = Duration::from_secs(1);
/// What is said each way.
const BYTE: [u8; 1] = [7];

/// The listening end.
pub struct BareDoor {
    listener: TcpListener,
    entered: Arc<AtomicU64>,
}

impl BareDoor {
    /// Listens, with so many threads that each take a connection, answer it and take the next.
    ///
    /// # Errors
    /// No socket, thread or key to be had.
    pub fn open(secure: bool, threads: usize) -> Result<Self, Failure> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening")?;
        let entered = Arc::new(AtomicU64::new(0));
        let config = if secure { Some(server_config()?) } else { None };
        for _ in 0..threads {
            let listener = listener.try_clone().context("sharing the listener")?;
            let (entered, config) = (entered.clone(), config.clone());
            start_thread("door", move || {
                while let Ok((stream, _)) = listener.accept() {
                    match answer(stream, config.as_ref(), &entered) {
                        Ok(()) => {}
                        Err(failure) => log::debug!("the bare door: {failure}"),
                    }
                }
            })?;
        }
        Ok(Self { listener, entered })
    }

    /// Where it waits.
    ///
    /// # Errors
    /// The system does not say.
    pub fn addr(&self) -> Result<SocketAddr, Failure> {
        self.listener.local_addr().context("the bare address")
    }

    /// Whole connections so far, when there are so many, or will not be.
    pub fn entered(&self, at_least: u64) -> Entered {
        let deadline = Instant::now() + LATE;
        loop {
            let count = self.entered.load(Ordering::Acquire);
            if count >= at_least || Instant::now() > deadline {
                return Entered::now(count);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for BareDoor {
    fn drop(&mut self) {
        // Wakes its threads, which find nobody any more. Where the system does not, they end with the process.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
    }
}

/// Answers one connection: a byte came over it, so it counts, and a byte goes back.
fn answer(mut stream: TcpStream, config: Option<&Arc<ServerConfig>>, entered: &AtomicU64) -> Result<(), Failure> {
    stream.set_nodelay(true).context("TCP_NODELAY")?;
    let Some(config) = config else { return answer_over(&mut stream, entered) };
    let mut tls = ServerConnection::new(config.clone()).context("beginning TLS")?;
    answer_over(&mut Stream::new(&mut tls, &mut stream), entered)
}

fn answer_over(stream: &mut (impl Read + Write), entered: &AtomicU64) -> Result<(), Failure> {
    let byte = read_byte(stream).context("waiting for the byte")?;
    entered.fetch_add(1, Ordering::Release);
    stream.write_all(&byte).context("answering the byte")
}

fn read_byte(stream: &mut impl Read) -> io::Result<[u8; 1]> {
    let mut byte = [0];
    if stream.read(&mut byte)? == 1 { Ok(byte) } else { Err(ErrorKind::UnexpectedEof.into()) }
}

/// One who dials, one connection at a time.
pub struct BareCaller {
    door: SocketAddr,
    config: Option<Arc<ClientConfig>>,
}

impl BareCaller {
    /// Makes its key.
    ///
    /// # Errors
    /// No key to be had.
    pub fn new(secure: bool, door: SocketAddr) -> Result<Self, Failure> {
        Ok(Self { door, config: if secure { Some(client_config()?) } else { None } })
    }

    /// Has a connection: a whole handshake, a byte each way, and its end.
    ///
    /// # Errors
    /// One of them failed.
    pub fn call(&mut self) -> Result<(), Failure> {
        let mut stream = TcpStream::connect(self.door).context("dialling")?;
        stream.set_nodelay(true).context("TCP_NODELAY")?;
        stream.set_read_timeout(Some(PATIENCE)).context("setting a deadline")?;
        let byte = match &self.config {
            None => stream.write_all(&BYTE).and_then(|()| read_byte(&mut stream)).context("the bytes")?,
            Some(config) => {
                let mut tls = ClientConnection::new(config.clone(), server_name()).context("beginning TLS")?;
                // It goes out with the last of the handshake.
                tls.writer().write_all(&BYTE).context("the byte")?;
                read_byte(&mut Stream::new(&mut tls, &mut stream)).context("the handshake and the bytes")?
            }
        };
        if byte != BYTE {
            return Err(Failure::new("another byte came back"));
        }
        // A reset leaves no port behind that would have to rest.
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).context("ending a connection")
    }
}

/// Nobody looks at it: the key is who is there.
fn server_name() -> ServerName<'static> {
    ServerName::IpAddress(Ipv4Addr::LOCALHOST.into())
}

fn crypto() -> Arc<CryptoProvider> {
    let mut provider = provider::default_provider();
    provider.cipher_suites = vec![provider::cipher_suite::TLS13_AES_128_GCM_SHA256];
    provider.kx_groups = vec![provider::kx_group::X25519];
    Arc::new(provider)
}

/// A fresh key, shown bare.
fn key() -> Result<Arc<CertifiedKey>, Failure> {
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).context("making a key")?;
    let key = provider::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8.as_ref())).context("reading a key")?;
    let spki = key.public_key().ok_or_else(|| Failure::new("a key without a public one"))?.to_vec();
    Ok(Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], key)))
}

fn server_config() -> Result<Arc<ServerConfig>, Failure> {
    let mut config = ServerConfig::builder_with_provider(crypto())
        .with_protocol_versions(&[&version::TLS13])
        .context("setting TLS up")?
        .with_client_cert_verifier(Arc::new(AnyKey::new(crypto(), true)))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(key()?)));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn client_config() -> Result<Arc<ClientConfig>, Failure> {
    let mut config = ClientConfig::builder_with_provider(crypto())
        .with_protocol_versions(&[&version::TLS13])
        .context("setting TLS up")?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyKey::new(crypto(), true)))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(key()?)));
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(Arc::new(config))
}
