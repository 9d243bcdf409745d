//! The receiver thread of a session: turns the peer's byte stream into messages, until the stream ends.
//!
//! Owns: the reading half and its decoder. Threads: `rx-<peer>` only. Locks: the link lock, per chunk of messages, never
//! while the handler runs or the socket is read. Blocks on: the socket (woken by the closer), the handler, and an
//! earlier session of the same peer that still delivers what it had claimed.
//! Upholds: what is delivered was claimed first; a stale session claims nothing; a panic of the handler rejects that
//! message and ends that peer's session only; the last thing is the report of the session's end.

mod answers;
mod deliver;

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{CloseReason, DisconnectReason, RequestError};
use crate::link::{LinkCore, NoClaim};
use crate::metrics::Groups;
use crate::session::inbox::{Peer, Sink};
use crate::session::outbox::Goodbye;
use crate::session::peer::PeerHandle;
use crate::session::peer_link::PeerLink;
use crate::session::state::{OnEnd, Session};
use crate::sync::atomic::Ordering;
use crate::transport::ReadHalf;
use crate::wire::{self, Ack, Beat, Decoder, FrameHeader, FrameType, HEADER, Lane, MAX_BODY, WireError};

/// Messages claimed at once: the link lock is taken per run, and a handler's progress is told per run.
const RUN: u32 = 128;

/// Of so many reads one is measured: how long what it brought takes until it is handed over.
const READS_PER_SAMPLE: u32 = 16;

/// The stream ended.
const ENDED: DisconnectReason = DisconnectReason::Lost(std::io::ErrorKind::UnexpectedEof);

/// Runs until the stream ends, the session is replaced, or the peer breaks the protocol.
pub(crate) fn recv_loop(
    peer: &Peer,
    session: &Arc<Session>,
    mut read: Box<dyn ReadHalf>,
    mut decoder: Decoder,
    on_end: &OnEnd,
) {
    decoder.set_limit(MAX_BODY);
    let link = &peer.link;
    // What the handshake's last read brought along is the session's already.
    link.traffic.read.more(decoder.pending().len() as u64);
    let handle = PeerHandle::new(link.clone());
    let mut receiver = Receiver {
        link,
        sink: &peer.sink,
        session,
        handle,
        segment: Cell::new(None),
        spare: Vec::new(),
        arrived: None,
        parted: false,
        retry_after: Duration::ZERO,
    };
    let mut reads = 0u32;
    let cause = loop {
        match receiver.take_all(&mut decoder) {
            Ok(true) => drop(session.heard.fetch_add(1, Ordering::Relaxed)),
            Ok(false) => {}
            Err(End::Cause(cause)) => break Some(cause),
            Err(End::Broken(error)) => {
                log::warn!(target: "threadwire::session", "{} {}: {error}", link.id.short(), session.conn);
                break Some(DisconnectReason::Local(CloseReason::ProtocolError));
            }
            Err(End::Stale) => break None,
        }
        decoder.shrink_if_idle();
        match read.read(decoder.space()) {
            Ok(0) => break Some(ENDED),
            Ok(count) => {
                decoder.filled(count);
                receiver.arrived = reads.is_multiple_of(READS_PER_SAMPLE).then(Instant::now);
                reads = reads.wrapping_add(1);
                link.traffic.read.more(count as u64);
            }
            Err(error) => {
                log::debug!(target: "threadwire::session", "{} {}: {error}", link.id.short(), session.conn);
                break Some(DisconnectReason::Lost(error.kind()));
            }
        }
        if read.owes() {
            link.outbox.kick(false).wake();
        }
        session.reads.fetch_add(1, Ordering::Relaxed);
        link.reads.fetch_add(1, Ordering::Relaxed);
    };
    let retry_after = receiver.retry_after;
    match cause {
        // The end that a goodbye announced: what the other side is owed is still to be written, and then `tx` ends it.
        // If that takes too long, the supervisor does.
        Some(cause) if receiver.parted && cause == ENDED => session.gate.note(cause),
        cause => {
            session.gate.close(cause.unwrap_or(DisconnectReason::Local(CloseReason::Superseded)));
            link.outbox.detach(session.conn);
        }
    }
    session.leave(link, on_end, retry_after);
}

/// Why the loop ends.
enum End {
    Cause(DisconnectReason),
    /// The peer sent what is no frame, or one that has no place here.
    Broken(WireError),
    /// A newer session took over.
    Stale,
}

impl From<WireError> for End {
    fn from(error: WireError) -> Self {
        Self::Broken(error)
    }
}

struct Receiver<'a> {
    link: &'a Arc<PeerLink>,
    sink: &'a Sink,
    session: &'a Arc<Session>,
    handle: PeerHandle,
    /// A SEGMENT frame whose numbered frames are still to come.
    segment: Cell<Option<(Lane, u64, u64)>>,
    /// A reassembly buffer for the next big message.
    spare: Vec<u8>,
    /// When what is being taken was read, if that is measured.
    arrived: Option<Instant>,
    /// The other side said goodbye.
    parted: bool,
    retry_after: Duration,
}

impl Receiver<'_> {
    /// Takes every frame that lies complete in the decoder; whether there was one.
    fn take_all(&mut self, decoder: &mut Decoder) -> Result<bool, End> {
        let mut took = false;
        loop {
            if let Some(run) = decoder.peek_run(RUN)? {
                self.take_run(run, decoder)?;
                took = true;
                continue;
            }
            let more = decoder.pending().len();
            let Some(frame) = decoder.next_frame()? else { return Ok(took) };
            let more = more > HEADER + frame.body.len();
            self.take_frame(frame.header, frame.body, more)?;
            took = true;
        }
    }

    /// Takes one frame that is not a plain whole message.
    fn take_frame(&mut self, header: FrameHeader, body: &[u8], more: bool) -> Result<(), End> {
        let conn = self.session.conn;
        let numbered = header.has(wire::flags::NUMBERED);
        let lane = || header.lane().ok_or(WireError::BadLane(header.tag >> 4));
        match header.frame_type() {
            Some(FrameType::Segment) => {
                let segment = (lane()?, wire::u64_at(body, 0)?, wire::u64_at(body, 8)?);
                // Taken together with the claim that follows, under one lock.
                if self.segment.get().is_some() {
                    self.quick(|_| Ok(()))?;
                }
                self.segment.set(Some(segment));
                Ok(())
            }
            Some(FrameType::Ack) => self.take_ack(body),
            Some(FrameType::Data) if numbered => self.take_piece(lane()?, header, body, more),
            Some(FrameType::Skip) if numbered => {
                let (lane, count) = (lane()?, wire::u64_at(body, 0)?);
                self.quick(|core| core.on_other(conn, lane, |other| other.skip(count, HEADER + body.len())))
            }
            Some(FrameType::Abort) if numbered => {
                let lane = lane()?;
                self.quick(|core| core.on_other(conn, lane, |other| other.abort(HEADER + body.len())))
            }
            Some(FrameType::Beat) => {
                let beat = Beat::from_body(body);
                self.session.presence.heard_busy(beat.busy);
                self.session.hear_beat(beat);
                Ok(())
            }
            Some(FrameType::Alive) => {
                let busy = body.first().is_some_and(|busy| *busy != 0);
                if self.session.presence.heard(header.flags, header.kind, busy) {
                    self.link.outbox.kick(false).wake();
                }
                Ok(())
            }
            Some(FrameType::Goodbye) => self.take_goodbye(body),
            // A piece without a number: best effort is whole. A newer version may know better.
            Some(FrameType::Data) => Ok(()),
            None if numbered => {
                let lane = lane()?;
                self.quick(|core| core.on_other(conn, lane, |other| other.unknown(HEADER + body.len())))
            }
            None => Ok(()),
            Some(FrameType::Hello | FrameType::Confirm | FrameType::Attach | FrameType::Skip | FrameType::Abort) => {
                Err(WireError::Unexpected(header.tag & 0x0f).into())
            }
        }
    }

    fn take_ack(&self, body: &[u8]) -> Result<(), End> {
        let ack: Ack = wire::decode(body)?;
        let acked = self.link.core.lock().on_ack(self.session.conn, &ack).map_err(|fault| self.fault(fault.into()))?;
        self.link.see_to_freed(acked);
        Ok(())
    }

    fn take_goodbye(&mut self, body: &[u8]) -> Result<(), End> {
        let goodbye: wire::Goodbye = wire::decode(body)?;
        let reason = CloseReason::from_code(goodbye.reason);
        self.retry_after = goodbye.retry_after();
        self.session.gate.note(DisconnectReason::Remote(reason));
        if reason == CloseReason::Shutdown {
            // This is the last it says: the questions it has are not answered any more.
            self.link.requests.lose_handed(&RequestError::PeerLost);
        }
        // What was handed over is acknowledged before the stream ends.
        self.parted = true;
        self.session.parting.store(true, Ordering::Relaxed);
        self.link.outbox.ask_goodbye(self.session.conn, Goodbye::Answer).wake();
        Ok(())
    }

    /// What came was handed over to a handler, or to whoever asked.
    fn handed(&self, groups: &Groups) {
        self.link.arrivals.handed(groups);
        if let Some(arrived) = self.arrived
            && let Some(group) = groups.iter().next()
        {
            self.link.settings.times.handed(group.class, arrived.elapsed());
        }
    }

    /// What was claimed is delivered: another session may go on.
    fn delivered(&self) {
        self.link.core.lock().delivered(self.session.conn);
        self.link.delivered.notify_all();
    }

    /// Claims under the link lock, waiting for an earlier session that still delivers.
    fn claim<T>(&self, mut claim: impl FnMut(&mut LinkCore) -> Result<T, NoClaim>) -> Result<(T, u32), End> {
        let mut core = self.link.core.lock();
        if let Some((lane, first, base)) = self.segment.take()
            && let Err(no_claim) = core.on_segment(self.session.conn, lane, first, base)
        {
            drop(core);
            return Err(self.fault(no_claim));
        }
        loop {
            match claim(&mut core) {
                Ok(claimed) => return Ok((claimed, core.generation())),
                Err(NoClaim::Busy) => self.link.delivered.wait(&mut core),
                Err(no_claim) => {
                    drop(core);
                    return Err(self.fault(no_claim));
                }
            }
        }
    }

    fn quick(&self, mut apply: impl FnMut(&mut LinkCore) -> Result<(), NoClaim>) -> Result<(), End> {
        if self.session.parting.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.claim(&mut apply).map(|((), _)| ())
    }

    fn fault(&self, no_claim: NoClaim) -> End {
        match no_claim {
            NoClaim::Fault(fault) => {
                log::warn!(target: "threadwire::session", "{} {}: {fault}", self.link.id.short(), self.session.conn);
                End::Cause(DisconnectReason::Local(CloseReason::ProtocolError))
            }
            NoClaim::Stale | NoClaim::Busy => End::Stale,
        }
    }
}
