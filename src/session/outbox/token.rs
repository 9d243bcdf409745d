//! Who may write on a session, and who is to be woken: the token's protocol and its words.
//!
//! Owns: nothing of its own; the outbox's state. Threads: any; what a [`Kick`] asks for is done without the lock. Locks: the
//! outbox lock. Blocks on: nothing.
//! Upholds: at most one thread holds the token of a session; whoever gives it back, or finds it away, leaves nobody asleep
//! while there is something to write; a wake-up asked for is one channel token, never lost and never waited for.

use std::time::{Duration, Instant};

use super::{Outbox, State};
use crate::error::CloseReason;
use crate::ident::ConnectionId;
use crate::session::receipt::Ended;
use crate::session::writer::Writer;
use crate::sync::atomic::Ordering;
use crate::sync::channel::{Receiver, Sender, bounded};
use crate::wire::Lane;

/// A step without which somebody sleeps on.
#[cfg(all(test, shuttle))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::session) enum Omission {
    /// The short path does not tell the sender thread to look again.
    FastKick,
    /// An acknowledgement does not tell it.
    Kick,
    /// An inline writer gives the token back and leaves the sender thread asleep.
    WakeAtPutBack,
    /// The token of a replaced session takes the place of the present one's.
    FenceAtPutBack,
    /// The sender thread sleeps while it takes part in a row, to which nobody wakes it.
    Linger,
    /// Nobody who waits for room hears that there is some.
    WakeForRoom,
    /// Nobody who waits for memory hears of some.
    WakeForMemory,
    /// Nobody who waits for room hears of the end.
    WakeAtClose,
    /// Nobody who waits for room hears that the bounds are wider.
    WakeAtLimits,
}

/// The sender thread of the attached session.
#[derive(Debug)]
pub(super) struct Tx {
    pub(super) conn: ConnectionId,
    pub(super) wake: Sender<()>,
    /// It sleeps: whoever has something for it must wake it.
    pub(super) waits: bool,
    /// Somebody wanted it to look again since it last looked.
    pub(super) kicked: bool,
    /// It sleeps, but looks again by itself soon: what may wait for company need not wake it.
    pub(super) lingers: bool,
    /// How long the last message of a broadcast may wait for company that came since it last rested.
    pub(super) company: Duration,
    pub(super) goodbye: Option<Goodbye>,
}

impl Tx {
    /// That of a session which is attached now: it looks for the first time.
    pub(super) fn new(conn: ConnectionId, wake: Sender<()>) -> Self {
        Self { conn, wake, waits: false, kicked: false, lingers: false, company: Duration::ZERO, goodbye: None }
    }
}

/// How the session is to end its sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goodbye {
    /// Say goodbye with this reason.
    Say(CloseReason),
    /// The other side said it: send what acknowledgements are owed, end.
    Answer,
}

/// What whoever changed the outbox has to do, without the lock.
#[derive(Debug)]
pub(crate) enum Kick {
    /// Nothing.
    No,
    /// Wake the sender thread.
    Wake(Sender<()>),
    /// Write what there is, without waiting, and give the token back.
    Inline(Box<Writer>),
}

impl Kick {
    /// Wakes the sender thread, if that is what to do; the token otherwise.
    pub(crate) fn wake(self) -> Option<Box<Writer>> {
        match self {
            Self::No => None,
            Self::Wake(wake) => {
                // A full channel holds a token already.
                let _ = wake.try_send(());
                None
            }
            Self::Inline(writer) => Some(writer),
        }
    }
}

/// What the sender thread does when it gives the token back.
#[derive(Debug)]
pub(crate) enum Rest {
    /// Nothing of that: something came meanwhile, here is the token.
    Again(Box<Writer>),
    /// It sleeps until somebody wakes it.
    Asleep,
    /// The same for so long; then it looks again.
    Lingering(Duration),
}

/// What the sender thread finds when it wants the token.
#[derive(Debug)]
pub(crate) enum Token {
    /// The token.
    Here(Box<Writer>),
    /// Somebody else writes; wait to be woken.
    Away,
    /// The session was replaced: end.
    Gone,
}

impl Outbox {
    /// Attaches a session: its writer is the token from now on. Returns what wakes its sender thread, and what the end
    /// of the one before it ended.
    pub(crate) fn attach(&self, writer: Box<Writer>) -> (Receiver<()>, Vec<Ended>) {
        let (wake, woken) = bounded(1);
        let mut state = self.state.lock();
        // What waited for company goes with what the new session writes first.
        self.take_share(&mut state);
        let tx = Tx::new(writer.conn(), wake);
        self.attached.store(tx.conn.0, Ordering::Relaxed);
        state.tx = Some(tx);
        let before = state.writer.replace(writer);
        drop(before);
        state.lanes.iter_mut().for_each(|lane| lane.starved = false);
        (woken, Self::lose_in_flight(&mut state))
    }

    /// Ends what a session does here, if it still is the attached one.
    pub(crate) fn detach(&self, conn: ConnectionId) {
        let mut state = self.state.lock();
        if state.tx.as_ref().is_some_and(|tx| tx.conn == conn) {
            state.tx = None;
            self.attached.store(0, Ordering::Relaxed);
            let writer = state.writer.take();
            drop(state);
            drop(writer);
        }
    }

    /// Whether a session is the attached one, or was a moment ago: a look that locks nothing.
    #[inline]
    pub(crate) fn is_attached(&self, conn: ConnectionId) -> bool {
        self.attached.load(Ordering::Relaxed) == conn.0
    }

    /// The sender thread of `conn` takes the token; if it `lingered`, what waited for company goes now.
    pub(crate) fn take_token(&self, conn: ConnectionId, lingered: bool) -> Token {
        let mut state = self.state.lock();
        let state = &mut *state;
        if lingered {
            self.take_share(state);
        }
        let Some(tx) = state.tx.as_mut().filter(|tx| tx.conn == conn) else { return Token::Gone };
        // It wants the token for something: if it is away, whoever gives it back wakes the thread again.
        tx.kicked = state.writer.is_none();
        tx.waits = tx.kicked;
        tx.lingers = false;
        match state.writer.take() {
            Some(writer) => Token::Here(writer),
            None => Token::Away,
        }
    }

    /// The sender thread has nothing more to write: it gives the token back and sleeps, unless something came
    /// meanwhile; then it gets the token again.
    pub(crate) fn rest(&self, writer: Box<Writer>) -> Rest {
        let mut state = self.state.lock();
        let state = &mut *state;
        let Some(tx) = state.tx.as_mut().filter(|tx| tx.conn == writer.conn()) else { return Rest::Asleep };
        if std::mem::take(&mut tx.kicked) {
            return Rest::Again(writer);
        }
        let company = match &state.joined {
            Some(joined) => joined.row.time_left(Instant::now()),
            None => Some(std::mem::take(&mut tx.company)),
        };
        let Some(company) = company else {
            self.take_share(state);
            if let Some(tx) = &mut state.tx {
                // This is the look that the share asks for.
                tx.kicked = false;
            }
            return Rest::Again(writer);
        };
        #[cfg(all(test, shuttle))]
        let company = if self.omission == Some(Omission::Linger) { Duration::ZERO } else { company };
        if !company.is_zero() {
            (tx.waits, tx.lingers) = (true, true);
            state.writer = Some(writer);
            return Rest::Lingering(company);
        }
        // What is queued here and was not taken has no credit: an acknowledgement will kick.
        state.lanes.iter_mut().for_each(|lane| lane.starved = lane.messages > 0);
        tx.waits = true;
        state.writer = Some(writer);
        Rest::Asleep
    }

    /// An inline writer gives the token back; the sender thread goes on where it stopped.
    pub(crate) fn put_back(&self, writer: Box<Writer>) -> Kick {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        #[cfg(all(test, shuttle))]
        if self.omission == Some(Omission::FenceAtPutBack) {
            state.writer = Some(writer);
            return Kick::No;
        }
        let Some(tx) = state.tx.as_mut().filter(|tx| tx.conn == writer.conn()) else { return Kick::No };
        let joined = state.joined.is_some() && !tx.lingers;
        let waits = joined || state.lanes.iter().any(|lane| lane.messages > 0 && !lane.starved);
        let more = tx.kicked || writer.has_more() || waits;
        state.writer = Some(writer);
        if !more || !tx.waits {
            return Kick::No;
        }
        #[cfg(all(test, shuttle))]
        if self.omission == Some(Omission::WakeAtPutBack) {
            return Kick::No;
        }
        tx.waits = false;
        Kick::Wake(tx.wake.clone())
    }

    /// Something changed that the writer should look at: an acknowledgement is owed or came. With `inline` the token
    /// is handed out if it is here.
    pub(crate) fn kick(&self, inline: bool) -> Kick {
        let mut state = self.state.lock();
        state.lanes.iter_mut().for_each(|lane| lane.starved = false);
        let state = &mut *state;
        let Some(tx) = state.tx.as_mut() else { return Kick::No };
        if inline
            && tx.waits
            && let Some(writer) = state.writer.take()
        {
            return Kick::Inline(writer);
        }
        tx.kicked = true;
        #[cfg(all(test, shuttle))]
        if self.omission == Some(Omission::Kick) {
            tx.kicked = false;
        }
        if !tx.waits || state.writer.is_none() {
            return Kick::No;
        }
        tx.waits = false;
        Kick::Wake(tx.wake.clone())
    }

    /// Asks the session `conn` to end its sending; the first ask counts.
    pub(crate) fn ask_goodbye(&self, conn: ConnectionId, goodbye: Goodbye) -> Kick {
        let mut state = self.state.lock();
        let Some(tx) = state.tx.as_mut().filter(|tx| tx.conn == conn) else { return Kick::No };
        tx.goodbye.get_or_insert(goodbye);
        drop(state);
        self.kick(false)
    }

    /// Whether and how the session `conn` was asked to end its sending.
    pub(crate) fn goodbye(&self, conn: ConnectionId) -> Option<Goodbye> {
        let state = self.state.lock();
        state.tx.as_ref().filter(|tx| tx.conn == conn).and_then(|tx| tx.goodbye)
    }
}

impl State {
    /// Decides who writes what was just appended to a lane, unless its credit is waited for.
    pub(super) fn kick_unless_starved(&mut self, lane: Lane, inline: bool, reads: u64) -> Kick {
        if self.lanes[lane.index()].starved { Kick::No } else { self.kick(inline, reads) }
    }

    /// Decides who writes what was just appended.
    pub(super) fn kick(&mut self, inline: bool, reads: u64) -> Kick {
        let Some(tx) = &mut self.tx else { return Kick::No };
        if !tx.waits {
            // It may have looked at this lane already: it looks again before it sleeps.
            tx.kicked = true;
            return Kick::No;
        }
        let Some(writer) = self.writer.as_mut() else {
            // Whoever writes now finds it when giving the token back.
            return Kick::No;
        };
        if inline
            && writer.may_inline(reads)
            && let Some(writer) = self.writer.take()
        {
            return Kick::Inline(writer);
        }
        tx.waits = false;
        Kick::Wake(tx.wake.clone())
    }
}
