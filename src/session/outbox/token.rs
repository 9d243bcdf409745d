//! Who may write on a session, and who is to be woken: the words of the token's protocol.
//!
//! Owns: nothing. Threads: whoever holds the outbox lock; what a [`Kick`] asks for is done without it. Locks: none.
//! Blocks on: nothing. Upholds: a wake-up asked for is one channel token, never lost and never waited for.

use std::time::Duration;

use crate::error::CloseReason;
use crate::ident::ConnectionId;
use crate::session::writer::Writer;
use crate::sync::channel::Sender;

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
