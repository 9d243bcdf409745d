//! Sessions: one temporary attachment of a link to a connection, run by two threads.
//!
//! Owns: [`PeerLink`], what threads share about one peer: the link's core, its outbox and inbox; [`Session`], what they
//! share about one connection. Threads: `tx-<peer>` runs [`sender::send_loop`], `rx-<peer>` runs
//! [`receiver::recv_loop`]. Locks: the link lock (L2, around [`LinkCore`]), then the outbox lock (L3); the inbox's and
//! the gate's are leaves. Blocks on: nothing here; the loops do, and say where.
//! Upholds: a session claims and writes only while it is the one attached; it ends once, with one cause, reported by the
//! last of its threads.
//!
//! ```text
//!  send verbs -> outbox -> [write token] -> link core (numbers, keeps) -> socket        tx-<peer>
//!  socket -> decoder -> link core (claims) -> handler, or inbox -> channel -> recv      rx-<peer>
//! ```

mod gate;
mod inbox;
mod message;
mod outbox;
mod peer;
mod receiver;
mod sender;
mod writer;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{CloseReason, DisconnectReason, RejectCause, SendError, SendErrorKind};
use crate::ident::{ConnectionId, PeerId, SessionKind};
use crate::link::{AckDue, Acked, Decision, LARGE, LinkCore, Segment};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::channel::{Receiver, Sender};
use crate::sync::{Condvar, Mutex};
use crate::threads::{self, Thread};
use crate::transport::{Connection, ReadHalf};
use crate::wire::{Decoder, LANES, Lane};

pub use inbox::Batch;
pub use message::Message;
pub(crate) use outbox::{Goodbye, QueueLimits};
pub use peer::{LinkStats, PeerHandle};

use gate::Gate;
use inbox::Inbox;
use outbox::{Item, Kick, Outbox, Wait};
use writer::Writer;

/// Takes the messages of all peers, on each peer's receiver thread.
pub(crate) type Handler = dyn Fn(&PeerHandle, Message<'_>) + Send + Sync;

/// Times and sizes of sessions.
#[derive(Debug, Clone)]
pub(crate) struct SessionSettings {
    pub(crate) queue: QueueLimits,
    pub(crate) max_message: usize,
    pub(crate) send_deadline: Duration,
    pub(crate) ack_delay: Duration,
    pub(crate) heartbeat: Duration,
    /// Stack of a receiver thread, by whether a handler runs on it.
    pub(crate) rx_stack: usize,
    pub(crate) tx_stack: usize,
}

/// Where received messages go.
#[derive(Clone)]
pub(crate) enum Consumer {
    /// The application's handler, on the receiver thread.
    Handler(Arc<Handler>),
    /// The application takes them from a channel.
    Channel(Sender<Batch>),
}

/// What threads share about one peer.
pub(crate) struct PeerLink {
    pub(crate) id: PeerId,
    /// The link lock.
    pub(crate) core: Mutex<LinkCore>,
    /// Something was delivered: another session may go on. Waits with `core`.
    delivered: Condvar,
    pub(crate) outbox: Outbox,
    /// Where messages wait for an application that takes them itself.
    pub(crate) inbox: Option<Inbox>,
    handler: Option<Arc<Handler>>,
    pub(crate) settings: Arc<SessionSettings>,
    /// Reads of the peer's stream so far, over all sessions.
    reads: AtomicU64,
    /// The sender thread will look at owed acknowledgements within the ack delay.
    ack_timer: AtomicBool,
    /// A handler is running.
    busy: AtomicBool,
    /// The token this side proposes if it decides the first attach.
    pub(crate) token: [u8; 16],
}

impl std::fmt::Debug for PeerLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerLink").field("id", &self.id).finish_non_exhaustive()
    }
}

impl PeerLink {
    /// A link that has never been attached.
    pub(crate) fn new(
        core: LinkCore,
        id: PeerId,
        token: [u8; 16],
        settings: Arc<SessionSettings>,
        consumer: Consumer,
    ) -> Self {
        let (handler, inbox) = match consumer {
            Consumer::Handler(handler) => (Some(handler), None),
            Consumer::Channel(channel) => (None, Some(Inbox::new(channel))),
        };
        Self {
            id,
            core: Mutex::new(core),
            delivered: Condvar::new(),
            outbox: Outbox::new(settings.queue),
            inbox,
            handler,
            settings,
            reads: AtomicU64::new(0),
            ack_timer: AtomicBool::new(false),
            busy: AtomicBool::new(false),
            token,
        }
    }

    /// Appends a message and sees to it that somebody writes it.
    pub(crate) fn push<P>(self: &Arc<Self>, lane: Lane, kind: u16, payload: P, wait: Wait) -> Result<(), SendError>
    where
        P: AsRef<[u8]> + Into<Vec<u8>>,
    {
        let len = payload.as_ref().len();
        if len > self.settings.max_message {
            return Err(SendError { kind: SendErrorKind::TooLarge, payload: payload.into() });
        }
        let reads = self.reads.load(Ordering::Relaxed);
        let inline = !receiver::more_to_come(self);
        let kick = if len > LARGE {
            let item = Item::Large(Segment::large(lane, kind, 0, payload.into()));
            self.outbox.push(lane, item, wait, inline, reads).map_err(|(kind, item)| match item {
                Item::Large(segment) => SendError { kind, payload: segment.into_payload() },
                Item::Small { payload, .. } => SendError { kind, payload: payload.to_vec() },
            })?
        } else {
            let item = Item::Small { kind, flags: 0, payload: payload.as_ref() };
            match self.outbox.push(lane, item, wait, inline, reads) {
                Ok(kick) => kick,
                Err((kind, _)) => return Err(SendError { kind, payload: payload.into() }),
            }
        };
        match kick {
            Kick::No => {}
            kick => self.act(kick, false),
        }
        Ok(())
    }

    /// Does what a change of the outbox asks for: wakes the sender thread, or writes one turn without waiting.
    fn act(&self, kick: Kick, acks: bool) {
        let Some(mut writer) = kick.wake() else { return };
        // A failed write stays a residue: the sender thread meets the error and ends the session.
        let wrote = writer.has_residue() || !writer.gather(self, acks) || writer.try_write().is_ok();
        if !wrote {
            log::trace!(target: "threadwire::session", "{}: inline write failed", writer.conn());
        }
        self.outbox.put_back(writer).wake();
    }

    /// Messages were handed over or rejected; see [`LinkCore::finish`].
    pub(crate) fn finish(
        &self,
        generation: u32,
        lane: Lane,
        upto: u64,
        credit: u64,
        rejected: Option<(u64, RejectCause)>,
    ) {
        let mut core = self.core.lock();
        core.finish(generation, lane, upto, credit, rejected);
        let due = core.ack_due();
        drop(core);
        self.see_to_acks(due);
    }

    /// Returns credit.
    fn release(&self, credit: [u64; LANES]) {
        let mut core = self.core.lock();
        for (lane, credit) in Lane::ALL.into_iter().zip(credit) {
            core.release(lane, credit);
        }
        let due = core.ack_due();
        drop(core);
        self.see_to_acks(due);
    }

    /// Writes acknowledgements that are due now, and sees to it that a timer runs for those that can wait.
    fn see_to_acks(&self, due: AckDue) {
        match due {
            AckDue::No => {}
            AckDue::Now => self.act(self.outbox.kick(true), true),
            AckDue::Later => {
                if !self.ack_timer.swap(true, Ordering::Relaxed) {
                    self.outbox.kick(false).wake();
                }
            }
        }
    }

    /// Reuses the buffers an acknowledgement freed, and wakes a writer that waited for it.
    fn see_to_freed(&self, acked: Acked) {
        for segment in acked.segments {
            if let Some(buffer) = Arc::into_inner(segment).and_then(Segment::into_buffer) {
                self.outbox.recycle(buffer);
            }
        }
        if acked.wake {
            self.outbox.kick(false).wake();
        }
    }

    /// Whether everything accepted has ended at the other side.
    pub(crate) fn is_drained(&self) -> bool {
        self.core.lock().kept_bytes() == 0 && self.outbox.counts().messages == 0
    }
}

/// What threads share about one connection of a peer.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) conn: ConnectionId,
    pub(crate) peer: PeerId,
    pub(crate) kind: SessionKind,
    gate: Gate,
    /// Reads of this connection so far: life.
    heard: AtomicU64,
    /// Writes that began and that ended: odd while one is under way.
    writes: AtomicU64,
    /// Our goodbye is said, or the other side's was heard: nothing is claimed any more.
    parting: AtomicBool,
}

/// Reported once by the last thread of a session.
#[derive(Debug)]
pub(crate) struct SessionEnded {
    pub(crate) session: Arc<Session>,
    pub(crate) reason: DisconnectReason,
    /// Come back no sooner, if the other side said so.
    pub(crate) retry_after: Duration,
    /// Bytes written and not acknowledged when it ended.
    pub(crate) unacked_bytes: usize,
    /// What the link wants done about other connections.
    pub(crate) decision: Decision,
}

/// A session's threads, for whoever waits for their end.
#[derive(Debug)]
pub(crate) struct SessionThreads {
    pub(crate) session: Arc<Session>,
    pub(crate) threads: Vec<Thread>,
}

/// Attaches an established connection to its link and starts its two threads. `decoder` holds what was read beyond the
/// handshake.
///
/// # Errors
/// A thread could not be started; the connection is closed and nothing runs. The caller tells the link.
pub(crate) fn start(
    link: &Arc<PeerLink>,
    conn: ConnectionId,
    kind: SessionKind,
    connection: Connection,
    decoder: Decoder,
    ended: &Sender<SessionEnded>,
) -> io::Result<SessionThreads> {
    let Connection { read, write, closer, .. } = connection;
    let session = Arc::new(Session {
        conn,
        peer: link.id,
        kind,
        gate: Gate::new(closer, 2),
        heard: AtomicU64::new(0),
        writes: AtomicU64::new(0),
        parting: AtomicBool::new(false),
    });
    let wake = link.outbox.attach(Box::new(Writer::new(conn, write, Instant::now())));
    let name = link.id.short();
    let rx = start_rx(link, &session, read, decoder, ended, &name);
    let tx = rx.and_then(|rx| Ok((rx, start_tx(link, &session, wake, ended, &name)?)));
    match tx {
        Ok((rx, tx)) => Ok(SessionThreads { session, threads: vec![tx, rx] }),
        Err(error) => {
            link.outbox.detach(conn);
            session.gate.close(DisconnectReason::Local(CloseReason::NoResources));
            // Stands in for the sender thread; a receiver thread that did start reports the end itself.
            session.leave(link, ended, Duration::ZERO);
            Err(error)
        }
    }
}

fn start_rx(
    link: &Arc<PeerLink>,
    session: &Arc<Session>,
    read: Box<dyn ReadHalf>,
    decoder: Decoder,
    ended: &Sender<SessionEnded>,
    name: &str,
) -> io::Result<Thread> {
    let (link, session, ended) = (link.clone(), session.clone(), ended.clone());
    threads::spawn("rx", name, link.settings.rx_stack, move || {
        receiver::recv_loop(&link, &session, read, decoder, &ended);
    })
}

fn start_tx(
    link: &Arc<PeerLink>,
    session: &Arc<Session>,
    wake: Receiver<()>,
    ended: &Sender<SessionEnded>,
    name: &str,
) -> io::Result<Thread> {
    let (link, session, ended) = (link.clone(), session.clone(), ended.clone());
    threads::spawn("tx", name, link.settings.tx_stack, move || {
        sender::send_loop(&link, &session, &wake, &ended);
    })
}

impl Session {
    /// Ends the session at once, with a reason of ours.
    pub(crate) fn close(&self, link: &PeerLink, reason: CloseReason) {
        self.gate.close(DisconnectReason::Local(reason));
        link.outbox.detach(self.conn);
    }

    /// Says goodbye with `reason`, after what is being written; the session ends when the other side has answered.
    pub(crate) fn say_goodbye(&self, link: &PeerLink, reason: CloseReason) {
        link.outbox.ask_goodbye(self.conn, Goodbye::Say(reason)).wake();
    }

    /// What the supervisor looks at: reads, and whether a write is under way.
    pub(crate) fn pulse(&self) -> Pulse {
        Pulse {
            heard: self.heard.load(Ordering::Relaxed),
            writes: self.writes.load(Ordering::Relaxed),
            parting: self.parting.load(Ordering::Relaxed),
        }
    }

    /// A thread of the session is done; the last one detaches the link and reports.
    fn leave(self: &Arc<Self>, link: &Arc<PeerLink>, ended: &Sender<SessionEnded>, retry_after: Duration) {
        let Some(reason) = self.gate.leave() else { return };
        link.outbox.detach(self.conn);
        let mut core = link.core.lock();
        let unacked_bytes = core.unacked_bytes();
        let decision = core.gone(self.conn, link.token);
        drop(core);
        link.delivered.notify_all();
        let report = SessionEnded { session: self.clone(), reason, retry_after, unacked_bytes, decision };
        // Nobody listens any more: the node is past the point where it waits for sessions.
        let _ = ended.send(report);
    }
}

/// Signs of life of a session, as counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pulse {
    pub(crate) heard: u64,
    /// Odd while a write is under way.
    pub(crate) writes: u64,
    pub(crate) parting: bool,
}
