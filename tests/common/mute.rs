//! A peer that shakes hands as it should, at least for a while, and then never reads again: what it says after that, the
//! test says for it.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use threadwire::PeerId;
use threadwire::config::Channel;
use threadwire::handshake::{Identity, Step};
use threadwire::ident::SessionKind;
use threadwire::wire::{Attach, Decoder, FrameType, LaneAttach, MAX_HANDSHAKE_BODY, decode, put_body};

use super::stranger::machine;
use super::wire::Wire;

/// Its connection stays open until it is dropped.
pub struct Mute {
    pub id: PeerId,
    wire: Wire,
    decoder: Decoder,
}

impl Mute {
    /// Connects to the node `to` over this channel, grants it `window` bytes on each lane, and reads nothing more.
    pub fn connect(channel: Channel, to: PeerId, addr: SocketAddr, window: u64) -> Self {
        let identity = Arc::new(Identity::generate().unwrap());
        let stream = TcpStream::connect(addr).unwrap();
        let wire = Wire::over(channel, &identity, SessionKind::Outbound, stream);
        Self::shake_hands(&identity, wire, SessionKind::Outbound, to, window).unwrap()
    }

    /// Dials a node, and breaks off when so many bytes are on the wire: then there is nobody, and the connection is
    /// closed.
    pub fn dial_and_say(
        channel: Channel,
        identity: &Arc<Identity>,
        to: PeerId,
        addr: SocketAddr,
        bytes: usize,
    ) -> Option<Self> {
        let stream = TcpStream::connect(addr).unwrap();
        Self::break_off(channel, identity, stream, SessionKind::Outbound, to, bytes)
    }

    /// The same as the side that is dialled: takes the next connection.
    pub fn accept_and_say(
        channel: Channel,
        identity: &Arc<Identity>,
        by: PeerId,
        at: &TcpListener,
        bytes: usize,
    ) -> Option<Self> {
        let stream = at.accept().unwrap().0;
        Self::break_off(channel, identity, stream, SessionKind::Inbound, by, bytes)
    }

    fn break_off(
        channel: Channel,
        identity: &Arc<Identity>,
        stream: TcpStream,
        kind: SessionKind,
        with: PeerId,
        bytes: usize,
    ) -> Option<Self> {
        let broke_off = |error: &std::io::Error| assert_eq!(error.kind(), ErrorKind::BrokenPipe, "{error}");
        let wire = Wire::breaking_off(channel, identity, kind, stream, bytes).inspect_err(broke_off).ok()?;
        Self::shake_hands(identity, wire, kind, with, 0)
    }

    fn shake_hands(identity: &Arc<Identity>, wire: Wire, kind: SessionKind, with: PeerId, window: u64) -> Option<Self> {
        let id = identity.peer_id();
        let mut machine = machine(identity, kind, with);
        if wire.is_secure() {
            machine.expect(with);
        }
        let mut mute = Self { id, wire, decoder: Decoder::new(MAX_HANDSHAKE_BODY) };
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

    /// Lets its system take no more than about so many bytes that it does not read.
    pub fn narrow(&self, bytes: usize) {
        socket2::SockRef::from(self.wire.beneath()).set_recv_buffer_size(bytes).unwrap();
    }

    /// Says something in the session; false when the node has hung up.
    pub fn say(&mut self, bytes: &[u8]) -> bool {
        self.wire.write_all(bytes).is_ok()
    }

    /// Says something beneath its channel: through TLS, what is no record of it.
    pub fn say_beneath(&self, bytes: &[u8]) -> bool {
        self.wire.beneath().write_all(bytes).is_ok()
    }

    /// Has its TLS raise an alarm, and say so.
    pub fn take_alarm(&mut self) {
        self.wire.take_alarm();
    }

    /// Ends its stream in due form, and listens on or not.
    pub fn finish(&mut self) {
        self.wire.finish();
    }

    /// Ends its stream in due form, and listens to the end of the node's.
    pub fn leave(mut self) {
        self.wire.finish();
        while self.wire.read(self.decoder.space()).is_ok_and(|count| count > 0) {}
    }

    /// Closes its connection without a word, or resets it.
    pub fn hang_up(self, reset: bool) {
        self.wire.hang_up(reset);
    }

    fn attach(&mut self, attach: &Attach) -> Option<()> {
        let mut bytes = Vec::new();
        put_body(&mut bytes, FrameType::Attach, attach).unwrap();
        self.say_of_handshake(&bytes)
    }

    /// Says it, or as much of it as it may.
    fn say_of_handshake(&mut self, bytes: &[u8]) -> Option<()> {
        match self.wire.write_all(bytes) {
            Ok(()) => Some(()),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::BrokenPipe, "{error}");
                None
            }
        }
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
        let count = self.wire.read(self.decoder.space()).unwrap();
        assert_ne!(count, 0, "the node hung up");
        self.decoder.filled(count);
    }
}
