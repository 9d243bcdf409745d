//! One handshake as a state machine: bytes in, bytes out, no socket, no clock, no randomness of its own.
//!
//! Owns: what both sides said so far and what is to be written. Threads: `acceptor`. Locks: none.
//! Blocks on: nothing; what costs time leaves it as a [`Work`].
//! Upholds: [`Proven`] is made here and nowhere else; from the decoder it takes the handshake's frames and not a byte
//! more; each side sends at most two frames and a goodbye.

use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::config::HandshakeConfig;
use super::hello::{self, Claim, Hellos, Refusal, put_frame, put_refusal};
use super::work::{Done, Task, Work, WorkDone};
use crate::error::CloseReason;
use crate::ident::{Incarnation, PeerId, SessionKind};
use crate::wire::{self, Confirm, Decoder, FrameType, Goodbye, MAX_BODY, MAX_HANDSHAKE_BODY};

/// Proof that the other side holds the key of `peer`, and what it says of itself. Only a finished handshake makes one.
#[derive(Debug, PartialEq, Eq)]
#[expect(clippy::manual_non_exhaustive, reason = "the rest of this crate may not build one either")]
pub struct Proven {
    /// Who is there.
    pub peer: PeerId,
    /// Who opened the connection.
    pub kind: SessionKind,
    /// The other side's life.
    pub incarnation: Incarnation,
    /// The version both speak.
    pub version: u16,
    /// The capability bits both set.
    pub capabilities: u64,
    /// Where the other side wants to be dialled: signed by it, not checked by anybody.
    pub advertised: Option<SocketAddr>,
    /// Its bytes for us.
    pub payload: Vec<u8>,
    /// Makes the fields above no way to build one.
    _only_from_a_handshake: (),
}

/// What a handshake needs next. After `Proven`, `Refuse` or `RefusedByPeer` it is over and only ever says `Wait`.
#[derive(Debug)]
pub enum Step {
    /// Read more into the decoder, then step again.
    NeedRead,
    /// Run this on another thread and give the result to [`Handshake::work_done`]. Until then do not read: what arrives
    /// is safe in the system's buffers.
    Work(Work),
    /// The work is not back, or all is over: reading on changes nothing.
    Wait,
    /// The other side is proven; the rest of the stream, and what the decoder still holds, is the session's, whose limit
    /// the decoder has from now on. Write [`Handshake::output`] out first. The other side may still refuse us, by a
    /// goodbye where its attach was expected.
    Proven(Proven),
    /// We refuse. The goodbye is in [`Handshake::output`]: write it, end the stream, discard what comes, close.
    Refuse {
        /// Why, as the other side is told.
        reason: CloseReason,
        /// In words, as the other side is told.
        text: String,
    },
    /// The other side refuses us: close. Its identity is not proven, so hold `retry_after` against the address at most.
    RefusedByPeer {
        /// Why.
        reason: CloseReason,
        /// In its words, made fit for a log by [`super::printable`].
        text: String,
        /// It asks us not to come back earlier.
        retry_after: Option<Duration>,
    },
}

/// One side of one handshake.
#[derive(Debug)]
pub struct Handshake {
    config: Arc<HandshakeConfig>,
    kind: SessionKind,
    expected: Option<PeerId>,
    /// The transport has proven both sides to each other.
    bound: bool,
    nonce: [u8; 32],
    output: Vec<u8>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Ours is written (dialler) or waits for theirs (acceptor).
    AwaitHello {
        ours: Vec<u8>,
    },
    /// The acceptor signs.
    Signing(Talk),
    AwaitConfirm(Talk),
    /// Their signature and the policy are looked at.
    Checking(Talk),
    /// Decided; the step to tell, until it was told.
    Over(Option<Step>),
}

/// Both hellos are known.
#[derive(Debug)]
struct Talk {
    hellos: Arc<Hellos>,
    claim: Arc<Claim>,
}

impl Handshake {
    /// The dialler's side; its hello is in [`Handshake::output`] at once. `expected` is who must answer, if that is
    /// known. `nonce` must be fresh ([`super::random_bytes`]): it is what makes an old answer worthless.
    pub fn dial(config: Arc<HandshakeConfig>, expected: Option<PeerId>, nonce: [u8; 32]) -> Self {
        let mut machine = Self::new(config, SessionKind::Outbound, expected, nonce);
        if let State::AwaitHello { ours } = &machine.state {
            put_frame(&mut machine.output, FrameType::Hello, ours);
        }
        machine
    }

    /// The acceptor's side; it says nothing before it has seen the dialler's hello. `expected` is who must be there, if
    /// that is known without a proof ([`Handshake::expect`] is for one). `nonce` must be fresh.
    pub fn accept(config: Arc<HandshakeConfig>, expected: Option<PeerId>, nonce: [u8; 32]) -> Self {
        Self::new(config, SessionKind::Inbound, expected, nonce)
    }

    fn new(config: Arc<HandshakeConfig>, kind: SessionKind, expected: Option<PeerId>, nonce: [u8; 32]) -> Self {
        let ours = hello::make(&config, nonce);
        let state = State::AwaitHello { ours };
        Self { config, kind, expected, bound: false, nonce, output: Vec::new(), state }
    }

    /// Who must be there, as the transport has proven it, which has proven to the other side who we are: the key of the
    /// hello must be that peer's, and a confirm needs no signature. One that has a signature must be signed rightly. Say
    /// it before the first step. Where another peer was dialled, this one is refused, whoever has proven it.
    pub fn expect(&mut self, peer: PeerId) {
        self.bound = true;
        if self.expected.is_some_and(|dialled| dialled != peer) {
            let text = format!("the transport has proven {}, who is not who must be here", peer.short());
            return self.end(Refusal::new(CloseReason::WrongPeer, text));
        }
        self.expected = Some(peer);
    }

    /// Bytes to write, in order; the caller removes what it has written. Look after each call of anything else here.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Goes on as far as the bytes in `decoder` allow. They must be all of the stream, from its start.
    pub fn step(&mut self, decoder: &mut Decoder) -> Step {
        loop {
            let wanted = match &mut self.state {
                State::AwaitHello { .. } => FrameType::Hello,
                State::AwaitConfirm(_) => FrameType::Confirm,
                State::Signing(_) | State::Checking(_) => return Step::Wait,
                State::Over(told) => {
                    let step = told.take().unwrap_or(Step::Wait);
                    if matches!(step, Step::Proven(_)) {
                        decoder.set_limit(MAX_BODY);
                    }
                    return step;
                }
            };
            match read_body(decoder, wanted) {
                Ok(None) => return Step::NeedRead,
                Ok(Some(Body::Wanted(body))) => {
                    if let Some(work) = self.take_body(body) {
                        return Step::Work(work);
                    }
                }
                Ok(Some(Body::Goodbye(step))) => self.state = State::Over(Some(step)),
                Err(refusal) => self.end(refusal),
            }
        }
    }

    /// Takes the result of the work that [`Handshake::step`] gave out; step again afterwards. A result that this
    /// handshake does not wait for (it was refused meanwhile, or it is another's) is ignored.
    pub fn work_done(&mut self, done: WorkDone) {
        if done.nonce != self.nonce {
            return;
        }
        self.state = match (mem::replace(&mut self.state, State::Over(None)), done.result) {
            (State::Signing(talk), Done::Signed(signature)) => {
                put_frame(&mut self.output, FrameType::Hello, &talk.hellos.acceptor);
                self.put_confirm(signature);
                State::AwaitConfirm(talk)
            }
            (State::Checking(talk), Done::Checked(Ok(signature))) => {
                if let Some(signature) = signature {
                    self.put_confirm(signature);
                }
                State::Over(Some(Step::Proven(self.proven(talk))))
            }
            (State::Checking(_), Done::Checked(Err(refusal))) => return self.end(refusal),
            (state, _) => state,
        };
    }

    /// Ends the handshake from outside (too late, too many, shutting down): the next step is `Refuse`. Also right after
    /// `Proven`, as long as the stream is not in a session's hands.
    pub fn refuse(&mut self, reason: CloseReason, text: &str, retry_after: Option<Duration>) {
        let text = hello::printable(text);
        put_refusal(&mut self.output, reason, &text, retry_after);
        self.state = State::Over(Some(Step::Refuse { reason, text }));
    }

    fn end(&mut self, refusal: Refusal) {
        self.refuse(refusal.reason, &refusal.text, None);
    }

    /// The body of the frame this state waits for has arrived.
    fn take_body(&mut self, body: Vec<u8>) -> Option<Work> {
        match mem::replace(&mut self.state, State::Over(None)) {
            State::AwaitHello { ours } => match hello::judge(&self.config, self.expected, &body) {
                Ok(claim) => self.take_hello(ours, body, claim),
                Err(refusal) => {
                    self.end(refusal);
                    None
                }
            },
            State::AwaitConfirm(talk) => match wire::decode::<Confirm>(&body) {
                Ok(confirm) => {
                    let task = Task::Check { claim: Arc::clone(&talk.claim), signature: confirm.signature };
                    let work = self.work(&talk, task);
                    self.state = State::Checking(talk);
                    self.give_out(work)
                }
                Err(error) => {
                    self.end(Refusal::new(CloseReason::ProtocolError, error.to_string()));
                    None
                }
            },
            state => {
                self.state = state;
                None
            }
        }
    }

    fn take_hello(&mut self, ours: Vec<u8>, theirs: Vec<u8>, claim: Claim) -> Option<Work> {
        let dialled = self.kind == SessionKind::Outbound;
        let (dialler, acceptor) = if dialled { (ours, theirs) } else { (theirs, ours) };
        let talk = Talk { hellos: Arc::new(Hellos { dialler, acceptor }), claim: Arc::new(claim) };
        if dialled {
            self.state = State::AwaitConfirm(talk);
            return None;
        }
        let work = self.work(&talk, Task::Sign);
        self.state = State::Signing(talk);
        self.give_out(work)
    }

    /// Work that takes time is another thread's; the rest is done before anybody would have woken.
    fn give_out(&mut self, work: Work) -> Option<Work> {
        if !work.is_light() {
            return Some(work);
        }
        self.work_done(work.run());
        None
    }

    fn work(&self, talk: &Talk, task: Task) -> Work {
        let (config, hellos) = (Arc::clone(&self.config), Arc::clone(&talk.hellos));
        Work { config, kind: self.kind, nonce: self.nonce, hellos, bound: self.bound, task }
    }

    fn proven(&self, talk: Talk) -> Proven {
        let claim = talk.claim;
        Proven {
            peer: claim.peer,
            kind: self.kind,
            incarnation: claim.incarnation,
            version: claim.version,
            capabilities: claim.capabilities,
            advertised: claim.advertised,
            payload: claim.payload.clone(),
            _only_from_a_handshake: (),
        }
    }

    fn put_confirm(&mut self, signature: Vec<u8>) {
        #[expect(clippy::expect_used, reason = "at most 64 bytes and their length, where 64 KiB may be")]
        let body = wire::encode(&Confirm { signature }).expect("a confirm of 72 bytes");
        put_frame(&mut self.output, FrameType::Confirm, &body);
    }
}

enum Body {
    Wanted(Vec<u8>),
    Goodbye(Step),
}

/// The next frame's body, if it is whole. What may not come now is refused by its header, before its body arrives.
fn read_body(decoder: &mut Decoder, wanted: FrameType) -> Result<Option<Body>, Refusal> {
    let protocol_error = |text: String| Refusal::new(CloseReason::ProtocolError, text);
    decoder.set_limit(MAX_HANDSHAKE_BODY);
    let Some(header) = decoder.peek_header().map_err(|error| protocol_error(error.to_string()))? else {
        return Ok(None);
    };
    // The whole byte: frames of a handshake travel on no application lane.
    let goodbye = header.tag == FrameType::Goodbye as u8;
    if !goodbye && header.tag != wanted as u8 {
        return Err(protocol_error(format!("{} where a {wanted:?} was expected", named(header.tag))));
    }
    let Some(frame) = decoder.next_frame().map_err(|error| protocol_error(error.to_string()))? else {
        return Ok(None);
    };
    if !goodbye {
        return Ok(Some(Body::Wanted(frame.body.to_vec())));
    }
    // A newer version may have lengthened it, and this is how it says that it does not speak ours.
    let goodbye: Goodbye = wire::decode_prefix(frame.body).map_err(|error| protocol_error(error.to_string()))?;
    Ok(Some(Body::Goodbye(Step::RefusedByPeer {
        reason: CloseReason::from_code(goodbye.reason),
        text: hello::printable(&goodbye.text),
        retry_after: (goodbye.retry_after_ms > 0).then(|| goodbye.retry_after()),
    })))
}

fn named(tag: u8) -> String {
    match FrameType::from_bits(tag & 0x0f) {
        Some(frame) if tag >> 4 == 0 => format!("a {frame:?}"),
        _ => format!("a frame {tag:#04x}"),
    }
}
