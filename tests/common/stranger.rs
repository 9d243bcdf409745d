//! Raw streams that speak to a node without being one: frames by hand, and a handshake that is listened in on.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use socket2::{Domain, Socket, Type};
use threadwire::config::Channel;
use threadwire::error::CloseReason;
use threadwire::handshake::{Handshake, HandshakeConfig, Identity, Step, random_bytes};
use threadwire::ident::{Incarnation, SessionKind};
use threadwire::wire::{Decoder, FrameHeader, FrameType, Goodbye, HEADER, MAX_HANDSHAKE_BODY, decode_prefix};
use threadwire::{Config, PeerId};

use super::wire::Wire;

/// A connection on which nobody has proven anything to a node, or to its TLS a key that the test has made.
pub struct Stranger(Wire);

impl Stranger {
    /// Dials a node.
    pub fn dial(addr: SocketAddr) -> Self {
        Self::of(TcpStream::connect(addr).unwrap())
    }

    /// Dials a node over this channel; through TLS, it shows this key.
    pub fn dial_over(channel: Channel, identity: &Arc<Identity>, addr: SocketAddr) -> Self {
        Self(Wire::over(channel, identity, SessionKind::Outbound, TcpStream::connect(addr).unwrap()))
    }

    /// Dials a node from this address of the machine.
    pub fn dial_from(ip: IpAddr, addr: SocketAddr) -> Self {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(ip, 0).into()).unwrap();
        socket.connect(&addr.into()).unwrap();
        Self::of(socket.into())
    }

    /// Takes the next connection of a listener.
    pub fn accept(listener: &TcpListener) -> Self {
        Self::of(listener.accept().unwrap().0)
    }

    /// Takes the next connection of a listener over this channel; through TLS, it shows this key.
    pub fn accept_over(channel: Channel, identity: &Arc<Identity>, listener: &TcpListener) -> Self {
        Self(Wire::over(channel, identity, SessionKind::Inbound, listener.accept().unwrap().0))
    }

    fn of(stream: TcpStream) -> Self {
        // Nobody looks at a key over plain TCP.
        let nobody = Arc::new(Identity::generate().unwrap());
        Self(Wire::over(Channel::Plain, &nobody, SessionKind::Outbound, stream))
    }

    /// Shakes hands as it should, until both sides are proven. `kind` says who dialled.
    pub fn prove(&mut self, identity: &Arc<Identity>, kind: SessionKind, with: PeerId) {
        let mut machine = machine(identity, kind, with);
        if self.0.is_secure() {
            machine.expect(with);
        }
        let mut decoder = Decoder::new(MAX_HANDSHAKE_BODY);
        loop {
            let step = machine.step(&mut decoder);
            assert!(self.say(&std::mem::take(machine.output())));
            match step {
                Step::NeedRead => {
                    // Frame by frame: what follows the handshake is heard by who asks for it.
                    let frame = self.hear().unwrap();
                    decoder.space()[..frame.len()].copy_from_slice(&frame);
                    decoder.filled(frame.len());
                }
                Step::Work(work) => machine.work_done(work.run()),
                Step::Proven(_) => return,
                step => panic!("{step:?}"),
            }
        }
    }

    /// Its connection, where it needs no stranger's words.
    pub fn wire(&mut self) -> &mut Wire {
        &mut self.0
    }

    /// Writes; false when the other side has closed.
    pub fn say(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).is_ok()
    }

    /// Ends the stream towards the node, or resets it.
    pub fn hang_up(self, reset: bool) {
        self.0.hang_up(reset);
    }

    /// Ends the stream towards the node and listens on.
    pub fn finish(&mut self) {
        self.0.finish();
    }

    /// The next frame as it lies on the wire; nothing at the end of the stream.
    pub fn hear(&mut self) -> Option<Vec<u8>> {
        let mut frame = self.exactly(HEADER)?;
        let header = FrameHeader::from_bytes(*frame.first_chunk::<HEADER>().unwrap());
        frame.extend(self.exactly(header.length as usize)?);
        Some(frame)
    }

    /// What the other side says last: the reason of its goodbye, if it says one before the end of the stream.
    pub fn hear_out(&mut self) -> Option<CloseReason> {
        let mut reason = None;
        while let Some(frame) = self.hear() {
            reason = reason_of(&frame);
        }
        reason
    }

    /// The goodbye that is the last thing the other side says, whole.
    pub fn hear_goodbye(&mut self) -> Option<Goodbye> {
        let mut last = None;
        while let Some(frame) = self.hear() {
            last = reason_of(&frame).map(|_| decode_prefix::<Goodbye>(&frame[HEADER..]).unwrap());
        }
        last
    }

    /// Whether the other side still has the connection open and has said nothing.
    pub fn remains(&self) -> bool {
        let stream = self.0.beneath();
        stream.set_nonblocking(true).unwrap();
        let peeked = stream.peek(&mut [0]);
        stream.set_nonblocking(false).unwrap();
        matches!(peeked, Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    fn exactly(&mut self, count: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; count];
        let mut have = 0;
        while have < count {
            match self.0.read(&mut bytes[have..]) {
                Ok(0) => return None,
                Ok(more) => have += more,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("listening to a node: {error}"),
            }
        }
        Some(bytes)
    }
}

/// One side of a handshake with this key, in the network of the tests.
pub fn machine(identity: &Arc<Identity>, kind: SessionKind, with: PeerId) -> Handshake {
    let network = Config::loopback().network;
    let config = HandshakeConfig::new(identity.clone(), Incarnation(1), network, "threadwire-direct/1").unwrap();
    let (config, nonce) = (Arc::new(config), random_bytes().unwrap());
    match kind {
        SessionKind::Inbound => Handshake::accept(config, Some(with), nonce),
        _ => Handshake::dial(config, Some(with), nonce),
    }
}

/// The reason in a goodbye frame.
pub fn reason_of(frame: &[u8]) -> Option<CloseReason> {
    let header = FrameHeader::from_bytes(*frame.first_chunk::<HEADER>()?);
    let goodbye = header.frame_type() == Some(FrameType::Goodbye);
    goodbye.then(|| CloseReason::from_code(decode_prefix::<Goodbye>(&frame[HEADER..]).unwrap().reason))
}

/// Stands between a node that dials and one that listens, hands their whole handshake on, and returns both ends, the
/// dialler's first: what either says next is heard here.
pub fn hand_on(between: &TcpListener, listening: SocketAddr) -> [Stranger; 2] {
    let (mut dialler, mut listener) = (Stranger::accept(between), Stranger::dial(listening));
    assert!(listener.say(&dialler.hear().unwrap()));
    for _ in 0..2 {
        assert!(dialler.say(&listener.hear().unwrap()));
    }
    assert!(listener.say(&dialler.hear().unwrap()));
    [dialler, listener]
}

/// Stands between a node that dials and one that listens, hands their handshake on, and returns the dialler's two
/// frames: its hello and its confirm. Then hangs up on both.
pub fn listen_in(between: &TcpListener, listening: SocketAddr) -> [Vec<u8>; 2] {
    let mut dialler = Stranger::accept(between);
    let mut listener = Stranger::dial(listening);
    let hello = dialler.hear().unwrap();
    assert!(listener.say(&hello));
    for _ in 0..2 {
        assert!(dialler.say(&listener.hear().unwrap()));
    }
    let confirm = dialler.hear().unwrap();
    assert_eq!(FrameHeader::from_bytes(*confirm.first_chunk().unwrap()).frame_type(), Some(FrameType::Confirm));
    [hello, confirm]
}
