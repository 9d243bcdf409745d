//! What a link is offered, and what it decides: plain data between the link and whoever runs its connections.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: a decision is complete: carrying it out needs no second look at the link.

use std::sync::Arc;
use std::time::Instant;

use crate::error::{CloseReason, RejectCause};
use crate::ident::ConnectionId;
use crate::link::fault::Fault;
use crate::link::segment::{Extract, Segment};
use crate::metrics::Class;
use crate::wire::{Attach, Lane};

/// A proven connection of the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Offer {
    /// The connection.
    pub(crate) conn: ConnectionId,
    /// When it was accepted or dialled, on a clock that only rises.
    pub(crate) started: u64,
    /// The life of the process that proved itself on it; higher is newer.
    pub(crate) incarnation: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Attachment {
    Detached,
    /// The decider said ATTACH and waits for the other side's.
    Attaching {
        offer: Offer,
    },
    Attached {
        offer: Offer,
        since: u64,
    },
}

/// Somebody else came in the name of a peer that has a session: another life of it. Either its process has ended and
/// nobody noticed, or two processes have its key. The session is asked which.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Doubt {
    /// The number of the question.
    pub(super) question: u16,
    pub(super) asked: u64,
    /// The proven connections of other lives, each with the attach it brought if the other side decides.
    pub(super) newcomers: Vec<(Offer, Option<Attach>)>,
}

/// What came of the question to a session whether its process is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sign {
    /// It answered: it was alive after the newcomer came.
    Answered,
    /// Something came that may be older than the question, or there is a reason for it to be late.
    Heard,
    /// Nothing came.
    Nothing,
    /// Its connection has ended.
    Ended,
}

/// What becomes of connections after an event.
#[derive(Debug, Default)]
pub(crate) struct Decision {
    /// Say this attach on this connection (and, if `attached`, start its session).
    pub(crate) say: Option<(ConnectionId, Attach)>,
    /// This connection is attached now: start its session.
    pub(crate) attached: Option<ConnectionId>,
    /// End these connections, with the reason.
    pub(crate) close: Vec<(ConnectionId, CloseReason)>,
    /// Ask the session of this connection for a sign of life, by this number; then see to [`LinkCore::judge`].
    ///
    /// [`LinkCore::judge`]: super::LinkCore::judge
    pub(crate) ask: Option<(ConnectionId, u16)>,
    /// What the other side's positions ended.
    pub(crate) acked: Acked,
    /// The other side's state is a new one (and there was one before).
    pub(crate) restarted: bool,
}

/// The answer to an attach frame.
pub(crate) type Answer = Result<Decision, Fault>;

/// What an acknowledgement led to.
#[derive(Debug, Default)]
pub(crate) struct Acked {
    /// Buffers nobody needs any more.
    pub(crate) segments: Vec<Arc<Segment>>,
    /// Bytes that are still kept, if that has changed.
    pub(crate) kept: Option<usize>,
    /// The writer waited for this.
    pub(crate) wake: bool,
    /// Tickets of messages that were handed over.
    pub(crate) done: Vec<u64>,
    /// Messages that the receiver rejected.
    pub(crate) rejected: Vec<Rejected>,
    /// Messages that nobody will answer for any more.
    pub(crate) lost: Vec<Lost>,
    /// A message whose time was to be measured was answered for.
    pub(crate) probe: Option<(Lane, Probe)>,
}

/// A message whose time is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Probe {
    /// Its number.
    pub(super) number: u64,
    /// What it counts as.
    pub(crate) class: Class,
    /// When it was taken for the wire.
    pub(crate) taken: Instant,
}

/// A message that the receiver took and did not hand over.
#[derive(Debug)]
pub(crate) struct Rejected {
    /// Its lane and number.
    pub(crate) lane: Lane,
    pub(crate) number: u64,
    /// Why.
    pub(crate) cause: RejectCause,
    /// The message.
    pub(crate) extract: Extract,
}

/// A message that is given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lost {
    /// Its lane.
    pub(crate) lane: Lane,
    /// What it counts as.
    pub(crate) class: Class,
    /// The message.
    pub(crate) extract: Extract,
    /// All of it was written: it may have been handed over.
    pub(crate) written: bool,
}
