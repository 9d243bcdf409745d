//! The sender thread of a session: writes what the outbox and the link have, and rests.
//!
//! Owns: nothing beyond the write token while it writes. Threads: `tx-<peer>` only. Locks: link, then outbox, while a
//! turn is gathered; none while it writes. Blocks on: its wake channel (with the acknowledgement and heartbeat timers, and
//! how long broadcasts wait for company, as timeout; woken by whoever has something for it, or by the channel's end), and
//! the socket (woken by the closer).
//! Upholds: an owed acknowledgement waits no longer than the ack delay; a silent line carries a heartbeat; the goodbye
//! is the last frame, and what was written before it is not destroyed by closing too early.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::DisconnectReason;
use crate::link::AckDue;
use crate::session::outbox::{Goodbye, Rest, Token};
use crate::session::peer_link::PeerLink;
use crate::session::state::{OnEnd, Session};
use crate::session::writer::Writer;
use crate::sync::atomic::Ordering;
use crate::sync::channel::{Receiver, RecvTimeoutError};
use crate::sync::recv_asleep;
use crate::wire::{self, stay_away};

/// Runs until the session ends: replaced, closed, failed, or said goodbye.
pub(crate) fn send_loop(link: &Arc<PeerLink>, session: &Arc<Session>, wake: &Receiver<()>, on_end: &OnEnd) {
    let mut timer = Timer { acks: None, beat: Instant::now() + link.settings.tuned.heartbeat(), reads: 0 };
    let mut acks = false;
    // Nothing but heartbeats has happened lately.
    let mut quiet = false;
    let mut lingered = false;
    loop {
        // Until when it waits for company; see [`Rest::Lingering`].
        let mut lingers = None;
        match link.outbox.take_token(session.conn, lingered) {
            Token::Gone => break,
            Token::Away => {}
            Token::Here(writer) => match work(link, session, writer, acks, &mut timer) {
                Ok(Next::Rest) => {}
                Ok(Next::Linger(company)) => lingers = Some(Instant::now() + company),
                Ok(Next::End) => break,
                Err(error) => {
                    log::debug!(target: "threadwire::session", "{} {}: writing: {error}", link.id.short(), session.conn);
                    // The reader may still find the other side's goodbye; it ends with the stream.
                    session.gate.note(DisconnectReason::Lost(error.kind()));
                    session.parting.store(true, Ordering::Relaxed);
                    link.outbox.detach(session.conn);
                    break;
                }
            },
        }
        let deadline = timer.acks.map_or(timer.beat, |acks| acks.min(timer.beat));
        let lingers = lingers.filter(|until| *until < deadline);
        let until = lingers.unwrap_or(deadline);
        lingered = false;
        match if quiet || lingers.is_some() { recv_asleep(wake, until) } else { wake.recv_deadline(until) } {
            Ok(()) => (acks, quiet) = (false, false),
            Err(RecvTimeoutError::Timeout) if lingers.is_some() => (acks, quiet, lingered) = (false, false, true),
            Err(RecvTimeoutError::Timeout) => {
                // While something comes in, the timer goes on: whoever owes an acknowledgement then need not wake anybody.
                // Heartbeats alone, which rang now, do not set it going.
                let reads = link.reads.load(Ordering::Relaxed);
                acks = timer.acks.take().is_some();
                quiet = !acks;
                link.ack_timer.store(acks && reads != timer.reads, Ordering::Relaxed);
                timer.reads = reads;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    // It may have put the flag up when the session was replaced already: whoever owes an acknowledgement counts on the
    // timer of the new session's thread now, which must look at the flag again.
    link.outbox.kick(false).wake();
    session.leave(link, on_end, Duration::ZERO);
}

/// When the thread wakes by itself.
struct Timer {
    /// For acknowledgements that could wait until now.
    acks: Option<Instant>,
    /// For a heartbeat.
    beat: Instant,
    /// Reads of the peer's stream when it last rang.
    reads: u64,
}

/// What the thread does after its work.
enum Next {
    Rest,
    Linger(Duration),
    End,
}

/// Writes turn after turn until there is nothing left, then rests.
fn work(
    link: &PeerLink,
    session: &Session,
    mut writer: Box<Writer>,
    mut acks: bool,
    timer: &mut Timer,
) -> io::Result<Next> {
    loop {
        loop {
            if writer.has_residue() {
                write(link, session, &mut writer)?;
            }
            match link.outbox.goodbye(session.conn) {
                None => {}
                Some(goodbye) => return say_goodbye(link, session, writer, goodbye),
            }
            if let Some(frames) = session.presence.take_frames() {
                writer.control(&frames);
                write(link, session, &mut writer)?;
            }
            if !link.gather(&mut writer, std::mem::take(&mut acks)) {
                break;
            }
        }
        let now = Instant::now();
        // It may have become shorter since.
        timer.beat = timer.beat.min(now + link.settings.tuned.heartbeat());
        // On a busy line too: it measures the round trip.
        if now >= timer.beat {
            timer.beat = now + link.settings.tuned.heartbeat();
            let idle = now >= writer.last() + link.settings.tuned.heartbeat();
            writer.beat(&session.say_beat(now, link.busy.load(Ordering::Relaxed)));
            write(link, session, &mut writer)?;
            if idle {
                link.outbox.spares.shrink();
            }
            continue;
        }
        // The flag is up if somebody owes an acknowledgement and counts on the timer, even if it was written meanwhile
        // along with data. Whoever owes one while it is down puts it up, and kicks.
        if timer.acks.is_none() && (link.ack_timer.load(Ordering::Relaxed) || link.core.lock().ack_due() != AckDue::No)
        {
            link.ack_timer.store(true, Ordering::Relaxed);
            timer.acks = Some(now + link.settings.tuned.ack_delay());
        }
        match link.outbox.rest(writer) {
            Rest::Asleep => return Ok(Next::Rest),
            Rest::Lingering(company) => return Ok(Next::Linger(company)),
            Rest::Again(again) => writer = again,
        }
    }
}

fn write(link: &PeerLink, session: &Session, writer: &mut Writer) -> io::Result<()> {
    session.writes.fetch_add(1, Ordering::Relaxed);
    let result = writer.write();
    session.writes.fetch_add(1, Ordering::Relaxed);
    link.note_written(writer);
    result
}

/// The last turn: acknowledgements that are owed, the goodbye, the end of the stream.
fn say_goodbye(link: &PeerLink, session: &Session, mut writer: Box<Writer>, goodbye: Goodbye) -> io::Result<Next> {
    session.parting.store(true, Ordering::Relaxed);
    let mut owed = Vec::new();
    let mut core = link.core.lock();
    core.put_acks(session.conn, true, &mut owed);
    let received = core.received();
    drop(core);
    writer.control(&owed);
    write(link, session, &mut writer)?;
    if let Goodbye::Say(reason) = goodbye {
        session.gate.note(DisconnectReason::Local(reason));
        let (text, retry_after_ms) = (reason.to_string(), stay_away::after(reason).as_millis() as u32);
        writer.goodbye(&wire::Goodbye { reason: reason.code(), retry_after_ms, received, text });
        write(link, session, &mut writer)?;
    }
    writer.finish();
    link.outbox.detach(session.conn);
    Ok(Next::End)
}
