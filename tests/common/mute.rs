//! A peer that shakes hands as it should and then never reads again.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use threadwire::handshake::{Handshake, HandshakeConfig, Identity, Step, random_bytes};
use threadwire::ident::Incarnation;
use threadwire::wire::{Attach, Decoder, FrameType, LaneAttach, MAX_HANDSHAKE_BODY, decode, put_body};
use threadwire::{Config, PeerId};

/// Its connection stays open until it is dropped.
pub struct Mute {
    pub id: PeerId,
    stream: TcpStream,
    decoder: Decoder,
}

impl Mute {
    /// Connects to the node `to`, grants it `window` bytes on each lane, and reads nothing more.
    pub fn connect(to: PeerId, addr: SocketAddr, window: u64) -> Self {
        let identity = Arc::new(Identity::generate().unwrap());
        let id = identity.peer_id();
        let config = HandshakeConfig::new(identity, Incarnation(1), Config::loopback().network, "threadwire-direct/1");
        let mut machine = Handshake::dial(Arc::new(config.unwrap()), Some(to), random_bytes().unwrap());
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(super::PATIENCE)).unwrap();
        let mut mute = Self { id, stream, decoder: Decoder::new(MAX_HANDSHAKE_BODY) };
        loop {
            let step = machine.step(&mut mute.decoder);
            let output = std::mem::take(machine.output());
            mute.stream.write_all(&output).unwrap();
            match step {
                Step::NeedRead => mute.fill(),
                Step::Work(work) => machine.work_done(work.run()),
                Step::Proven(_) => break,
                step => panic!("{step:?}"),
            }
        }
        let lanes = [LaneAttach { window, ..LaneAttach::default() }; 4];
        let mut ours = Attach { epoch: 1, token: [7; 16], state: 1, knows: None, lanes };
        if id < to {
            // It decides, and speaks first.
            mute.say(&ours);
            mute.hear();
        } else {
            let theirs = mute.hear();
            (ours.epoch, ours.token, ours.knows) = (theirs.epoch, theirs.token, Some(theirs.state));
            mute.say(&ours);
        }
        mute
    }

    fn say(&mut self, attach: &Attach) {
        let mut bytes = Vec::new();
        put_body(&mut bytes, FrameType::Attach, attach).unwrap();
        self.stream.write_all(&bytes).unwrap();
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
