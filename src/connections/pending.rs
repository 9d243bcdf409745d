//! One connection on its way to a session: dialled or accepted, unproven, proven, waiting for its attach.
//!
//! Owns: the connection, its handshake, its slot, and what is read and not yet written. Threads: `acceptor` only.
//! Locks: none. Blocks on: nothing: everything is non-blocking.
//! Upholds: bytes are read only when the handshake can use them; what is to be said is written before the end.
//!
//! ```text
//!  Dialling -> Shaking <-> (work) -> Proven (waits for ATTACH) -> the session
//!      \__________\____________________\____-> Parting (a goodbye to flush) -> closed
//! ```

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::connections::shared::{DialRequest, Work};
use crate::connections::work::Waiting;
use crate::error::CloseReason;
use crate::handshake::{Handshake, Proven, Step, put_refusal};
use crate::ident::{ConnectionId, SessionKind};
use crate::registry::SessionSlot;
use crate::session::Peer;
use crate::transport::{Fault, PendingConnection, Security};
use crate::wire::{Decoder, MAX_HANDSHAKE_BODY, stay_away};

/// The most bytes listened to, and thrown away, after a goodbye.
const UNHEARD: usize = 64 * 1024;

/// A connection before its session.
pub(crate) struct Pending {
    pub(crate) conn: ConnectionId,
    pub(crate) kind: SessionKind,
    pub(crate) stream: Box<dyn PendingConnection>,
    /// Given back when it is refused; what is told after that costs no place.
    pub(crate) slot: Option<SessionSlot>,
    pub(crate) decoder: Decoder,
    /// Bytes to write beyond the handshake's own: attach frames, refusals.
    pub(crate) out: Vec<u8>,
    pub(crate) stage: Stage,
    pub(crate) deadline: Instant,
    /// How long the dial may take, or the handshake once that has begun, if we dialled.
    pub(crate) allowed: Duration,
    /// When it was accepted or dialled, on the clock of offers.
    pub(crate) started: u64,
    /// Whose connection it is, once that is proven.
    pub(crate) peer: Option<Peer>,
    /// What was asked for, if we dialled.
    pub(crate) request: Option<DialRequest>,
    /// Its transport carries bytes; until then nothing is read or said.
    pub(crate) open: bool,
    /// The step that a worker was asked for and has not done. It ends with the connection.
    pub(crate) waiting: Option<Arc<Waiting>>,
    /// Bytes thrown away since our stream was ended.
    pub(crate) unheard: Option<usize>,
}

/// How far it is.
pub(crate) enum Stage {
    /// The dial is under way.
    Dialling(Handshake),
    /// Hello and confirm.
    Shaking(Handshake),
    /// Proven; the link has been offered the connection, or is about to.
    Proven(Box<Proven>),
    /// The goodbye is being written, then the stream ends; closed when the other side has ended its own.
    Parting,
}

/// What the acceptor has to do about it.
pub(crate) enum Progress {
    /// Wait for the next event.
    Wait,
    /// Have this done by a worker.
    Work(Work),
    /// It has just been proven: offer it to its link.
    Offer,
    /// An attach frame came.
    Attach(Vec<u8>),
    /// It is over; tell whoever dialled.
    Over(Over),
}

/// Why a connection ends before its session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Over {
    /// The dial failed.
    NotConnected(ErrorKind),
    /// The stream failed or ended.
    Lost(ErrorKind),
    /// We refuse.
    Rejected(CloseReason),
    /// The other side refuses; not before so many milliseconds.
    Refused(CloseReason, u64),
    /// Said goodbye and flushed.
    Parted,
}

impl Pending {
    /// A connection that was just accepted or is being dialled; without a slot and without anybody who asked for it.
    pub(crate) fn new(
        conn: ConnectionId,
        kind: SessionKind,
        stream: Box<dyn PendingConnection>,
        stage: Stage,
        deadline: Instant,
        started: u64,
    ) -> Self {
        Self {
            conn,
            kind,
            stream,
            slot: None,
            decoder: Decoder::new(MAX_HANDSHAKE_BODY),
            out: Vec::new(),
            stage,
            deadline,
            allowed: Duration::ZERO,
            started,
            peer: None,
            request: None,
            open: false,
            waiting: None,
            unheard: None,
        }
    }

    /// Goes as far as it gets without waiting.
    pub(crate) fn advance(&mut self) -> Progress {
        let parting = matches!(self.stage, Stage::Parting);
        match self.try_advance() {
            Ok(progress) => progress,
            // Why it ended was told and counted when the parting began.
            Err(_) if parting => Progress::Over(Over::Parted),
            Err(error) => Progress::Over(self.over(&error)),
        }
    }

    /// What an error of the stream means for the connection.
    fn over(&self, error: &io::Error) -> Over {
        match Fault::of(error) {
            Some(Fault::Rejected(reason, text)) => {
                log::debug!(target: "threadwire::accept", "{} {}: refused: {text}", self.conn, self.stream.remote_addr());
                Over::Rejected(*reason)
            }
            Some(Fault::Refused(reason, text)) => {
                log::debug!(target: "threadwire::accept", "{} {}: {text}", self.conn, self.stream.remote_addr());
                Over::Refused(*reason, retry_after(*reason))
            }
            Some(Fault::Truncated) | None => Over::Lost(error.kind()),
        }
    }

    /// Brings the transport to where it carries bytes; what is to be done first, if it does not yet.
    fn secure(&mut self) -> io::Result<Option<Progress>> {
        match self.stream.secure()? {
            Security::Wait => return Ok(Some(Progress::Wait)),
            Security::Work(work) => return Ok(Some(Progress::Work(Work::Secure(work)))),
            Security::Open => self.open = true,
        }
        // The key of the hello has to be the key that the transport has seen proven, or somebody is handing on the
        // handshake of another.
        if let (Some(proof), Stage::Shaking(handshake)) = (self.stream.proof(), &mut self.stage) {
            handshake.expect(proof.peer);
        }
        Ok(None)
    }

    fn try_advance(&mut self) -> io::Result<Progress> {
        if let Stage::Dialling(_) = self.stage {
            match self.stream.connected() {
                Ok(true) => {}
                Ok(false) => return Ok(Progress::Wait),
                Err(error) => return Ok(Progress::Over(Over::NotConnected(error.kind()))),
            }
            if let Stage::Dialling(handshake) = std::mem::replace(&mut self.stage, Stage::Parting) {
                self.stage = Stage::Shaking(handshake);
            }
        }
        if !self.open
            && let Stage::Shaking(_) = self.stage
            && let Some(progress) = self.secure()?
        {
            return Ok(progress);
        }
        loop {
            let step = match &mut self.stage {
                Stage::Shaking(handshake) => handshake.step(&mut self.decoder),
                Stage::Proven(_) => return self.wait_for_attach(),
                Stage::Parting => return self.part(),
                Stage::Dialling(_) => return Ok(Progress::Wait),
            };
            self.flush()?;
            match step {
                Step::NeedRead => {
                    if !self.fill()? {
                        return Ok(Progress::Wait);
                    }
                }
                Step::Wait => return Ok(Progress::Wait),
                Step::Work(work) => return Ok(Progress::Work(Work::Shake(work))),
                Step::Proven(proven) => {
                    if let Stage::Shaking(handshake) = &mut self.stage {
                        self.out.append(handshake.output());
                    }
                    self.stage = Stage::Proven(Box::new(proven));
                    return Ok(Progress::Offer);
                }
                Step::Refuse { reason, text } => {
                    log::debug!(target: "threadwire::accept", "{} {}: refused: {text}", self.conn, self.stream.remote_addr());
                    if let Stage::Shaking(handshake) = &mut self.stage {
                        self.out.append(handshake.output());
                    }
                    self.stage = Stage::Parting;
                    self.flush()?;
                    return Ok(Progress::Over(Over::Rejected(reason)));
                }
                Step::RefusedByPeer { reason, text, retry_after } => {
                    log::debug!(target: "threadwire::accept", "{} {}: {text}", self.conn, self.stream.remote_addr());
                    let millis = retry_after.map_or(0, |after| after.as_millis() as u64);
                    return Ok(Progress::Over(Over::Refused(reason, millis)));
                }
            }
        }
    }

    /// A proven connection: the next frame is the other side's attach, or its goodbye.
    fn wait_for_attach(&mut self) -> io::Result<Progress> {
        use crate::wire::{FrameType, Goodbye, decode_prefix};
        self.flush()?;
        loop {
            match self.decoder.next_frame() {
                Ok(None) => {}
                Ok(Some(frame)) if frame.header.frame_type() == Some(FrameType::Attach) => {
                    return Ok(Progress::Attach(frame.body.to_vec()));
                }
                Ok(Some(frame)) if frame.header.frame_type() == Some(FrameType::Goodbye) => {
                    let Ok(goodbye) = decode_prefix::<Goodbye>(frame.body) else {
                        return Ok(Progress::Over(Over::Rejected(CloseReason::ProtocolError)));
                    };
                    let millis = goodbye.retry_after().as_millis() as u64;
                    return Ok(Progress::Over(Over::Refused(CloseReason::from_code(goodbye.reason), millis)));
                }
                Ok(Some(_)) | Err(_) => return Ok(Progress::Over(Over::Rejected(CloseReason::ProtocolError))),
            }
            if !self.fill()? {
                return Ok(Progress::Wait);
            }
        }
    }

    /// Says the goodbye to its end, ends the stream, and throws away what the other side still says until it does the
    /// same: closing with unread input would destroy what was written.
    fn part(&mut self) -> io::Result<Progress> {
        if !self.flush()? {
            return Ok(Progress::Wait);
        }
        let mut unheard = match self.unheard {
            Some(bytes) => bytes,
            None => self.stream.finish().map(|()| 0)?,
        };
        let mut bytes = [0; 4096];
        while unheard < UNHEARD {
            match self.stream.try_read(&mut bytes) {
                Ok(0) => break,
                Ok(count) => unheard += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.unheard = Some(unheard);
                    return Ok(Progress::Wait);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Progress::Over(Over::Parted))
    }

    /// Says why, as far as that goes without waiting, and parts.
    pub(crate) fn refuse(&mut self, reason: CloseReason, retry_after: Option<Duration>) {
        if self.stream.refuse(reason) {
            // In few words: the other side has to know by itself how long to stay away.
            self.out.clear();
        } else {
            if let Stage::Shaking(handshake) = &mut self.stage {
                // What is already said in part must be said to its end.
                self.out.append(handshake.output());
            }
            put_refusal(&mut self.out, reason, &reason.to_string(), retry_after);
        }
        self.open = true;
        self.waiting = None;
        self.stage = Stage::Parting;
        // Sixty bytes into a socket that took at most a few hundred before: they fit, or it is broken.
        let _ = self.flush();
    }

    /// Writes what is there to be written; true when nothing is left.
    pub(crate) fn flush(&mut self) -> io::Result<bool> {
        loop {
            if !self.open {
                return self.stream.flush();
            }
            let out = match &mut self.stage {
                Stage::Shaking(handshake) if self.out.is_empty() => handshake.output(),
                _ => &mut self.out,
            };
            if out.is_empty() {
                return self.stream.flush();
            }
            match self.stream.try_write(out) {
                Ok(wrote) => {
                    out.drain(..wrote);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads once; false when nothing is there.
    fn fill(&mut self) -> io::Result<bool> {
        debug_assert!(self.decoder.capacity() <= 8 * MAX_HANDSHAKE_BODY + Decoder::LARGEST);
        match self.stream.try_read(self.decoder.space()) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                self.decoder.filled(count);
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// How long to stay away from a side that refused where it could not say for how long, in milliseconds: what is in the
/// way that early may be handshakes.
fn retry_after(reason: CloseReason) -> u64 {
    match reason {
        CloseReason::TooMany | CloseReason::NoResources => stay_away::SOON.as_millis() as u64,
        _ => 0,
    }
}
