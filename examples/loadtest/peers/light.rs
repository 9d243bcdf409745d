//! One peer that costs little: the protocol of a node without threads, queues or a supervisor of its own.
//!
//! Owns: one connection and what it has read and not yet written. Threads: the host's. Locks: none.
//! Blocks on: nothing: the socket is non-blocking.
//! Upholds: the handshake, the frames and the identity are the library's own; what the node says is checked (numbers,
//! order, attach) as a node would check it; what is read is acknowledged when a node would
//! do so, or at once.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use mio::net::TcpStream;
use serde::{Deserialize, Serialize};
use threadwire::PeerId;
use threadwire::handshake::{Handshake, HandshakeConfig, Identity, Step, random_bytes};
use threadwire::ident::Incarnation;
use threadwire::wire::{
    self, Ack, Attach, Beat, Decoder, Frame, FrameType, Goodbye, HEADER, LANES, Lane, LaneAttach, MAX_HANDSHAKE_BODY,
    Prefix, decode_prefix, flags, put_body,
};

use crate::checker::Tally;
use crate::failure::{Context, Failure};
use crate::peers::books::Books;

/// The protocol id of links between nodes.
const PROTOCOL: &str = "threadwire-direct/1";
/// What came is acknowledged at once from this part of the window on, and else soon: as a node does.
const ACK_PART: u64 = 4;

/// What a peer says of itself; made before anything is timed.
pub struct Persona {
    id: PeerId,
    hello: Arc<HandshakeConfig>,
}

impl Persona {
    /// A fresh identity.
    ///
    /// # Errors
    /// The system gives no randomness, or `network` is too long.
    pub fn new(network: &str) -> Result<Self, Failure> {
        let identity = Identity::generate().context("making a peer's identity")?;
        let id = identity.peer_id();
        let hello = HandshakeConfig::new(Arc::new(identity), Incarnation(1), network, PROTOCOL);
        Ok(Self { id, hello: Arc::new(hello.context("making a peer's hello")?) })
    }
}

/// What one peer has seen and done since it was last asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Heartbeats of the node.
    pub beats_heard: u64,
    /// Heartbeats of its own.
    pub beats_said: u64,
    /// Messages of the node.
    pub messages: u64,
}

impl Seen {
    /// Adds what another peer has seen.
    pub fn add(&mut self, other: Self) {
        self.beats_heard += other.beats_heard;
        self.beats_said += other.beats_said;
        self.messages += other.messages;
    }
}

enum Stage {
    /// Dialling, then hello and confirm.
    Shaking(Box<Handshake>),
    /// Proven; one side's attach is missing.
    Attaching,
    Attached,
    /// The node said goodbye; ours is said.
    Parting,
}

/// How a peer takes what it is sent.
#[derive(Debug)]
pub struct Manner {
    /// It acknowledges whatever it reads at once.
    pub prompt: bool,
    /// Bytes of each lane that may be under way to it.
    pub window: u64,
    /// Of numbered messages, if it is sent such.
    pub books: Option<Books>,
}

/// One peer and its connection.
pub struct LightPeer {
    persona: Persona,
    node: PeerId,
    stream: TcpStream,
    decoder: Decoder,
    out: Vec<u8>,
    stage: Stage,
    connected: bool,
    attach: Attach,
    /// Per lane: the number of the next message, and the bytes that came.
    lanes: [(u64, u64); LANES],
    /// The same when they were last acknowledged.
    acked: [(u64, u64); LANES],
    manner: Manner,
    /// Somebody sees to it that this is done soon.
    noted: bool,
    /// When it last said something.
    pub said: Instant,
    /// Since it was last asked.
    pub seen: Seen,
}

impl LightPeer {
    /// Begins to dial `node`.
    ///
    /// # Errors
    /// The system has no socket or no randomness.
    pub fn dial(persona: Persona, node: PeerId, addr: SocketAddr, manner: Manner) -> Result<Self, Failure> {
        let stream = TcpStream::connect(addr).context(format_args!("dialling {addr}"))?;
        let nonce = random_bytes().context("a nonce")?;
        let handshake = Handshake::dial(Arc::clone(&persona.hello), Some(node), nonce);
        let token = random_bytes().context("a link token")?;
        let state = u64::from_le_bytes(random_bytes().context("a state's name")?);
        let lanes = [LaneAttach { received: 0, base: 0, sent: 0, window: manner.window }; LANES];
        Ok(Self {
            persona,
            node,
            stream,
            decoder: Decoder::new(MAX_HANDSHAKE_BODY),
            out: Vec::new(),
            stage: Stage::Shaking(Box::new(handshake)),
            connected: false,
            attach: Attach { epoch: 1, token, state, knows: None, lanes },
            lanes: [(0, 0); LANES],
            acked: [(0, 0); LANES],
            manner,
            noted: false,
            said: Instant::now(),
            seen: Seen::default(),
        })
    }

    /// For the poll.
    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// What it was handed of numbered messages, if it is sent such, given that the numbers below `sent` were sent.
    pub fn tally(&self, sent: u64) -> Tally {
        self.manner.books.as_ref().map(|books| books.tally(sent)).unwrap_or_default()
    }

    /// Whether a session is attached.
    pub fn is_attached(&self) -> bool {
        matches!(self.stage, Stage::Attached)
    }

    /// Says that it is still there.
    ///
    /// # Errors
    /// The connection failed.
    pub fn beat(&mut self, now: Instant) -> Result<(), Failure> {
        wire::put_beat(&mut self.out, &Beat::default());
        self.seen.beats_said += 1;
        self.said = now;
        self.flush().context("writing a heartbeat")
    }

    /// Goes as far as it gets without waiting; false when the node has ended the session as it should.
    ///
    /// # Errors
    /// The connection failed, or the node refused, or it broke the protocol.
    pub fn advance(&mut self) -> Result<bool, Failure> {
        if !self.connected {
            if let Some(error) = self.stream.take_error().context("asking for a dial's outcome")? {
                return Err(error).context("dialling");
            }
            match self.stream.peer_addr() {
                Ok(_) => self.connected = true,
                Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(true),
                Err(error) => return Err(error).context("dialling"),
            }
        }
        loop {
            let wants_more = if matches!(self.stage, Stage::Shaking(_)) { self.shake()? } else { self.take_frames()? };
            self.flush().context("writing")?;
            if matches!(self.stage, Stage::Parting) {
                self.stream.shutdown(Shutdown::Write).context("ending the stream")?;
                return Ok(false);
            }
            if !wants_more {
                continue;
            }
            match self.stream.read(self.decoder.space()) {
                Ok(0) => return Err(Failure::new("the node closed the connection without a goodbye")),
                Ok(count) => self.decoder.filled(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("reading"),
            }
        }
    }

    /// A step of the handshake; true when it needs more bytes.
    fn shake(&mut self) -> Result<bool, Failure> {
        let Stage::Shaking(handshake) = &mut self.stage else { return Ok(false) };
        let step = handshake.step(&mut self.decoder);
        self.out.append(handshake.output());
        match step {
            Step::NeedRead => Ok(true),
            Step::Work(work) => {
                handshake.work_done(work.run());
                self.out.append(handshake.output());
                Ok(false)
            }
            Step::Proven(_) => {
                self.out.append(handshake.output());
                self.stage = Stage::Attaching;
                // The lower id decides which connection is attached, and speaks first.
                if self.persona.id < self.node {
                    put_body(&mut self.out, FrameType::Attach, &self.attach).context("an attach")?;
                }
                Ok(false)
            }
            Step::Wait => Err(Failure::new("a handshake that goes no further")),
            Step::Refuse { reason, text } => Err(Failure::new(format!("the peer refuses the node: {reason}: {text}"))),
            Step::RefusedByPeer { reason, text, .. } => {
                Err(Failure::new(format!("the node refuses a peer: {reason}: {text}")))
            }
        }
    }

    /// Takes every frame that lies complete in the decoder; true when more bytes are needed.
    fn take_frames(&mut self) -> Result<bool, Failure> {
        let mut now = false;
        let Self { decoder, lanes, seen, manner, .. } = self;
        while let Some(frame) = decoder.next_frame().context("a frame of the node")? {
            match frame.header.frame_type() {
                Some(FrameType::Beat) => seen.beats_heard += 1,
                Some(FrameType::Segment) => check_segment(&frame, lanes)?,
                Some(FrameType::Data) if frame.header.has(flags::NUMBERED) => {
                    let lane = frame.header.lane().ok_or_else(|| Failure::new("a message without a lane"))?;
                    let (next, came) = &mut lanes[lane.index()];
                    *next += 1;
                    *came += (HEADER + frame.body.len()) as u64;
                    seen.messages += u64::from(frame.header.has(flags::LAST));
                    if let Some(books) = &mut manner.books {
                        // Numbered messages are not so long that they come in pieces: a piece is none.
                        let prefix =
                            if frame.header.has(flags::WHOLE) { Prefix::len(frame.header.flags) } else { usize::MAX };
                        books.take(frame.body.get(prefix..).unwrap_or_default());
                    }
                    now |= frame.header.has(flags::ACK_NOW);
                }
                // Unknown control frames are skipped.
                Some(FrameType::Ack) | None => {}
                Some(FrameType::Attach) if matches!(self.stage, Stage::Attaching) => {
                    let told: Attach = wire::decode(frame.body).context("the node's attach")?;
                    if self.persona.id < self.node {
                        if (told.epoch, told.token) != (self.attach.epoch, self.attach.token) {
                            return Err(Failure::new("the node answers another attach"));
                        }
                    } else {
                        (self.attach.epoch, self.attach.token) = (told.epoch, told.token);
                        put_body(&mut self.out, FrameType::Attach, &self.attach).context("an attach")?;
                    }
                    self.stage = Stage::Attached;
                }
                Some(FrameType::Goodbye) => {
                    let goodbye: Goodbye = decode_prefix(frame.body).context("the node's goodbye")?;
                    if matches!(self.stage, Stage::Attaching) {
                        return Err(Failure::new(format!("the node refuses a peer: {}", goodbye.text)));
                    }
                    self.stage = Stage::Parting;
                    break;
                }
                other => return Err(Failure::new(format!("the node says {other:?} where it has no place"))),
            }
        }
        let came = self.lanes.iter().zip(&self.acked).map(|((_, came), (_, acked))| came - acked).max();
        if now || self.manner.prompt || came >= Some(self.manner.window / ACK_PART) {
            self.put_acks()?;
        }
        Ok(!matches!(self.stage, Stage::Parting))
    }

    /// Whether something came that is not acknowledged, and nobody was told: [`LightPeer::acknowledge`] is to be called
    /// soon.
    pub fn tells_of_debt(&mut self) -> bool {
        let tells = !self.noted && self.is_attached() && self.lanes != self.acked;
        self.noted |= tells;
        tells
    }

    /// Acknowledges what came.
    ///
    /// # Errors
    /// The connection failed.
    pub fn acknowledge(&mut self) -> Result<(), Failure> {
        self.noted = false;
        self.put_acks()?;
        self.flush().context("writing")
    }

    fn put_acks(&mut self) -> Result<(), Failure> {
        for lane in Lane::ALL {
            let (next, came) = self.lanes[lane.index()];
            if (next, came) != self.acked[lane.index()] {
                let window = came + self.manner.window;
                let ack = Ack { lane: lane as u8, received: next, done: next, window, exceptions: Vec::new() };
                put_body(&mut self.out, FrameType::Ack, &ack).context("an acknowledgement")?;
                self.said = Instant::now();
            }
        }
        self.acked = self.lanes;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.out.is_empty() {
            match self.stream.write(&self.out) {
                Ok(wrote) => drop(self.out.drain(..wrote)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Messages are numbered without a gap.
fn check_segment(frame: &Frame<'_>, lanes: &[(u64, u64); LANES]) -> Result<(), Failure> {
    let lane = frame.header.lane().ok_or_else(|| Failure::new("a segment without a lane"))?;
    let first = wire::u64_at(frame.body, 0).context("a segment")?;
    let (next, _) = lanes[lane.index()];
    if first == next { Ok(()) } else { Err(Failure::new(format!("message {first} where {next} was due"))) }
}
