//! A raw stream to a node, over plain TCP or through TLS with a key of the test's own: what it carries, and what lies
//! beneath it, the test says by hand.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use socket2::SockRef;
use threadwire::config::Channel;
use threadwire::handshake::Identity;
use threadwire::ident::SessionKind;

use super::PATIENCE;

#[path = "../../examples/loadtest/connect/any_key.rs"]
mod any_key;

/// A connection. Its reads give up after [`PATIENCE`].
pub struct Wire {
    socket: Socket,
    tls: Option<Box<rustls::Connection>>,
}

/// A stream that breaks off after so many bytes that were written.
struct Socket {
    stream: TcpStream,
    left: usize,
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.left == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let some = bytes.len().min(self.left);
        let count = self.stream.write(&bytes[..some])?;
        self.left -= count;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Wire {
    /// Over a connected stream; through TLS, both sides have shown their keys and are through when this returns.
    /// `kind` says who dialled.
    pub fn over(channel: Channel, identity: &Arc<Identity>, kind: SessionKind, stream: TcpStream) -> Self {
        Self::breaking_off(channel, identity, kind, stream, usize::MAX).unwrap()
    }

    /// The same, but it breaks off when so many bytes are written.
    ///
    /// # Errors
    /// It broke off already, or the node has said no.
    pub fn breaking_off(
        channel: Channel,
        identity: &Arc<Identity>,
        kind: SessionKind,
        stream: TcpStream,
        bytes: usize,
    ) -> io::Result<Self> {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut wire = Self { socket: Socket { stream, left: bytes }, tls: None };
        if channel == Channel::Tls {
            let tls = match kind {
                SessionKind::Inbound => tls::server(identity).into(),
                _ => tls::client(identity).into(),
            };
            wire.tls = Some(Box::new(tls));
            wire.shake_hands()?;
        }
        Ok(wire)
    }

    fn shake_hands(&mut self) -> io::Result<()> {
        while self.tls.as_ref().is_some_and(|tls| tls.is_handshaking()) {
            self.put()?;
            if self.tls.as_ref().is_some_and(|tls| tls.is_handshaking()) {
                self.fill()?;
            }
        }
        self.put()
    }

    /// Whether TLS has proven who is at both ends.
    pub fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// What lies beneath: bytes said here belong to no record.
    pub fn beneath(&self) -> &TcpStream {
        &self.socket.stream
    }

    /// Ends the stream towards the node in due form.
    pub fn finish(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
        }
        self.put().unwrap();
        self.socket.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Closes, in due form or none, or resets.
    pub fn hang_up(self, reset: bool) {
        if reset {
            SockRef::from(&self.socket.stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        }
    }

    /// Has its TLS hear what nobody sealed, and say to the node what it thinks of that: an alert.
    pub fn take_alarm(&mut self) {
        let Some(tls) = &mut self.tls else { return };
        // It may be within a record of the node's: more than one of garbage.
        let mut garbage = &[0xff; 64 * 1024][..];
        loop {
            tls.read_tls(&mut garbage).unwrap();
            if tls.process_new_packets().is_err() {
                break;
            }
        }
        self.put().unwrap();
    }

    /// Writes what TLS has to say.
    fn put(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        while tls.wants_write() {
            tls.write_tls(&mut self.socket)?;
        }
        Ok(())
    }

    /// Reads something for TLS. What it says of it that is bad is told to the node.
    fn fill(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        let ended = tls.read_tls(&mut self.socket.stream)? == 0;
        if let Err(error) = tls.process_new_packets() {
            let _ = self.put();
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        if ended && tls.is_handshaking() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

impl Read for Wire {
    /// An end without a word of TLS is an error.
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(tls) = &mut self.tls else { return self.socket.stream.read(into) };
            match tls.reader().read(into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.fill()?,
                result => return result,
            }
            self.put()?;
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.socket.write(bytes) };
        let count = tls.writer().write(bytes)?;
        self.put()?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.put()
    }
}

/// The alert in an error of a wire, by its name.
pub fn alert(error: &io::Error) -> Option<String> {
    match error.get_ref()?.downcast_ref()? {
        rustls::Error::AlertReceived(alert) => Some(format!("{alert:?}")),
        _ => None,
    }
}

pub mod tls {
    //! TLS of a program that is no node: it shows what it is told to, and takes whatever key is shown.

    use std::sync::Arc;

    use rustls::client::AlwaysResolvesClientRawPublicKeys;
    use rustls::crypto::CryptoProvider;
    use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
    use rustls::server::AlwaysResolvesServerRawPublicKeys;
    use rustls::sign::{CertifiedKey, Signer, SigningKey};
    use rustls::{
        ClientConfig, ClientConnection, Error, ServerConfig, ServerConnection, SignatureAlgorithm, SignatureScheme,
        version,
    };
    use threadwire::handshake::Identity;

    pub use super::any_key::AnyKey;

    const PROTOCOL: &[u8] = b"threadwire-direct/1";
    /// What precedes an ed25519 key in its SubjectPublicKeyInfo.
    const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

    /// Dials with this key.
    pub fn client(identity: &Arc<Identity>) -> ClientConnection {
        let shows = Arc::new(AlwaysResolvesClientRawPublicKeys::new(bare(identity)));
        client_that_shows(shows, true)
    }

    /// Dials, and shows this; `bare` asks for bare keys.
    pub fn client_that_shows(shows: Arc<dyn rustls::client::ResolvesClientCert>, bare: bool) -> ClientConnection {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyKey::new(provider(), bare)))
            .with_client_cert_resolver(shows);
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        ClientConnection::new(Arc::new(config), "node".try_into().unwrap()).unwrap()
    }

    /// Answers with this key.
    pub fn server(identity: &Arc<Identity>) -> ServerConnection {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS13])
            .unwrap()
            .with_client_cert_verifier(Arc::new(AnyKey::new(provider(), true)))
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(bare(identity))));
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config.send_tls13_tickets = 0;
        ServerConnection::new(Arc::new(config)).unwrap()
    }

    pub fn provider() -> Arc<CryptoProvider> {
        Arc::new(rustls::crypto::ring::default_provider())
    }

    fn bare(identity: &Arc<Identity>) -> Arc<CertifiedKey> {
        let spki = [&SPKI[..], &identity.public_key()].concat();
        let key = Key { spki: spki.clone(), identity: identity.clone() };
        Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], Arc::new(key)))
    }

    #[derive(Debug, Clone)]
    struct Key {
        spki: Vec<u8>,
        identity: Arc<Identity>,
    }

    impl SigningKey for Key {
        fn choose_scheme(&self, _: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
            Some(Box::new(self.clone()))
        }

        fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
            Some(SubjectPublicKeyInfoDer::from(&self.spki[..]))
        }

        fn algorithm(&self) -> SignatureAlgorithm {
            SignatureAlgorithm::ED25519
        }
    }

    impl Signer for Key {
        fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
            Ok(self.identity.sign(message).to_vec())
        }

        fn scheme(&self) -> SignatureScheme {
            SignatureScheme::ED25519
        }
    }
}
