//! A peer that shakes hands as it should, at least for a while, and then never reads again: what it says after that, the
//! test says for it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use threadwire::handshake::{Handshake, HandshakeConfig, Identity, Step, random_bytes};
use threadwire::ident::{Incarnation, SessionKind};
use threadwire::wire::{Attach, Decoder, FrameType, LaneAttach, MAX_HANDSHAKE_BODY, decode, put_body};
use threadwire::{Config, PeerId};

/// Its connection stays open until it is dropped.
pub struct Mute {
    pub id: PeerId,
    stream: TcpStream,
    decoder: Decoder,
    /// How many more bytes of a handshake it says.
    left: usize,
}

impl Mute {
    /// Connects to the node `to`, grants it `window` bytes on each lane, and reads nothing more.
    pub fn connect(to: PeerId, addr: SocketAddr, window: u64) -> Self {
        let identity = Arc::new(Identity::generate().unwrap());
        let stream = TcpStream::connect(addr).unwrap();
        Self::shake_hands(&identity, stream, SessionKind::Outbound, to, window, usize::MAX).unwrap()
    }

    /// Dials a node, and breaks off when it has said so many bytes: then there is nobody, and the connection is closed.
    pub fn dial_and_say(identity: &Arc<Identity>, to: PeerId, addr: SocketAddr, bytes: usize) -> Option<Self> {
        let stream = TcpStream::connect(addr).unwrap();
        Self::shake_hands(identity, stream, SessionKind::Outbound, to, 0, bytes)
    }

    /// The same as the side that is dialled: takes the next connection.
    pub fn accept_and_say(identity: &Arc<Identity>, by: PeerId, at: &TcpListener, bytes: usize) -> Option<Self> {
        let stream = at.accept().unwrap().0;
        Self::shake_hands(identity, stream, SessionKind::Inbound, by, 0, bytes)
    }

    fn shake_hands(
        identity: &Arc<Identity>,
        stream: TcpStream,
        kind: SessionKind,
        with: PeerId,
        window: u64,
        left: usize,
    ) -> Option<Self> {
        let id = identity.peer_id();
        let network = Config::loopback().network;
        let config = HandshakeConfig::new(identity.clone(), Incarnation(1), network, "threadwire-direct/1").unwrap();
        let (config, nonce) = (Arc::new(config), random_bytes().unwrap());
        let mut machine = match kind {
            SessionKind::Inbound => Handshake::accept(config, Some(with), nonce),
            _ => Handshake::dial(config, Some(with), nonce),
        };
        stream.set_read_timeout(Some(super::PATIENCE)).unwrap();
        let mut mute = Self { id, stream, decoder: Decoder::new(MAX_HANDSHAKE_BODY), left };
        loop {
            let step = machine.step(&mut mute.decoder);
            let output = std::mem::take(machine.output());
            mute.say_of_handshake(&output)?;
            match step {
                Step::NeedRead => mute.fill(),
                Step::Work(work) => machine.work_done(work.run()),
                Step::Proven(_) => break,
                step => panic!("{step:?}"),
            }
        }
        let lanes = [LaneAttach { window, ..LaneAttach::default() }; 4];
        let mut ours = Attach { epoch: 1, token: [7; 16], state: 1, knows: None, lanes };
        if id < with {
            // It decides, and speaks first.
            mute.attach(&ours)?;
            mute.hear();
        } else {
            let theirs = mute.hear();
            (ours.epoch, ours.token, ours.knows) = (theirs.epoch, theirs.token, Some(theirs.state));
            mute.attach(&ours)?;
        }
        Some(mute)
    }

    /// Says something in the session; false when the node has hung up.
    pub fn say(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    fn attach(&mut self, attach: &Attach) -> Option<()> {
        let mut bytes = Vec::new();
        put_body(&mut bytes, FrameType::Attach, attach).unwrap();
        self.say_of_handshake(&bytes)
    }

    /// Says it, or as much of it as it may.
    fn say_of_handshake(&mut self, bytes: &[u8]) -> Option<()> {
        let some = bytes.len().min(self.left);
        self.left -= some;
        self.stream.write_all(&bytes[..some]).unwrap();
        (some == bytes.len()).then_some(())
    }

    fn hear(&mut self) -> Attach {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                assert_eq!(frame.header.frame_type(), Some(FrameType::Attach));
                return decode(frame.body).unwrap();
            }
            self.fill();
        }
    }

    fn fill(&mut self) {
        let count = self.stream.read(self.decoder.space()).unwrap();
        assert_ne!(count, 0, "the node hung up");
        self.decoder.filled(count);
    }
}
