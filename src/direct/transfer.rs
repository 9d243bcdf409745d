//! Messages on their way to peers, and what became of each.
//!
//! Owns: what is known of each message under way whose outcome somebody wants. Threads: whoever sends; the one that takes
//! the outcomes. Locks: its own, a leaf. Blocks on: nothing.
//! Upholds: a message that was taken has one result, one that was refused another one, with the message; there are never
//! more under way than the collector has places.

use std::collections::HashMap;
use std::time::Instant;

use crossbeam_channel::Receiver;

use super::destination::DirectReceiver;
use crate::error::{ConnectError, SendErrorKind};
use crate::ident::PeerId;
use crate::outcome::{Outcome, ReturnReason, Timing};
use crate::session::{Collector, OutcomeBatch, OverflowPolicy, PeerHandle, SendOptions};
use crate::sync::Mutex;

/// A message for the direct sender.
///
/// ```
/// use std::time::Duration;
/// use threadwire::SendOptions;
/// use threadwire::direct::DirectMessage;
///
/// let bare: DirectMessage = b"hello".to_vec().into();
/// let full = DirectMessage { id: 17, payload: vec![1, 2, 3], options: SendOptions::new().kind(4).ttl(Duration::from_secs(2)) };
/// assert_ne!(bare, full);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DirectMessage {
    /// The application's own name for it; it comes back in its [`TransferResult`], and does not travel.
    pub id: u64,
    /// Its bytes.
    pub payload: Vec<u8>,
    /// How it is to be sent. [`SendOptions::created_at`] is taken from the timestamp that goes with the message.
    /// [`OverflowPolicy::Block`], the default, is `Fail` here: nobody waits for one peer in front of all others.
    pub options: SendOptions,
}

impl From<Vec<u8>> for DirectMessage {
    fn from(payload: Vec<u8>) -> Self {
        Self { payload, ..Self::default() }
    }
}

impl From<&[u8]> for DirectMessage {
    fn from(payload: &[u8]) -> Self {
        payload.to_vec().into()
    }
}

impl From<&str> for DirectMessage {
    fn from(payload: &str) -> Self {
        payload.as_bytes().into()
    }
}

/// What became of a message that the direct sender was given. Each has one.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TransferResult {
    /// To whom it was to go.
    pub to: DirectReceiver,
    /// Who that was, as far as it came to that.
    pub peer: Option<PeerId>,
    /// The application's own name for it.
    pub id: u64,
    /// The timestamp that came with it.
    pub created_at: Instant,
    /// It was handed over at the other side, or written if it was best effort: its bytes, and how long each phase took,
    /// from `created_at` on. Or why not.
    pub result: Result<Timing, TransportError>,
    /// The message, unless it arrived.
    pub message: Option<DirectMessage>,
}

/// Why a message did not arrive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// It was not taken: nothing was sent.
    #[error("not taken: {0}")]
    Refused(SendErrorKind),
    /// Nobody was found at its destination: a name that the configuration does not have, or an address where nobody
    /// proved itself. Nothing was sent.
    #[error("nobody to send to: {0}")]
    Unreachable(ConnectError),
    /// It was taken, and was not handed over.
    #[error("returned: {0}")]
    Returned(ReturnReason),
    /// It was written, at least in part, and nobody answers for it any more: it may have arrived.
    #[error("written, and not answered for any more")]
    Unknown,
}

/// A message that is about to be offered to a peer, or was.
#[derive(Debug)]
struct Flight {
    to: DirectReceiver,
    peer: PeerId,
    id: u64,
    created_at: Instant,
    options: SendOptions,
}

/// What is under way.
#[derive(Debug)]
pub(super) struct Transfers {
    collector: Collector,
    flights: Mutex<Flights>,
    most: usize,
}

#[derive(Debug, Default)]
struct Flights {
    by_tag: HashMap<u64, Flight>,
    last: u64,
}

impl Transfers {
    /// At most so many messages under way, and where their outcomes come.
    pub(super) fn new(most: usize) -> (Self, Receiver<OutcomeBatch>) {
        let (collector, outcomes) = Collector::new(most);
        (Self { collector, flights: Mutex::default(), most: most.max(1) }, outcomes)
    }

    /// Whether there is a place for one more beside so many that are still to begin.
    pub(super) fn has_room(&self, to_come: usize) -> bool {
        self.collector.outstanding() + to_come < self.most
    }

    /// What became of a message, by its tag.
    pub(super) fn ended(&self, tag: u64, outcome: Outcome) -> Option<TransferResult> {
        let Flight { to, peer, id, created_at, options } = self.flights.lock().by_tag.remove(&tag)?;
        let (result, payload) = match outcome {
            Outcome::Acknowledged(timing) | Outcome::Written(timing) => (Ok(timing), None),
            Outcome::Returned { payload, reason } => (Err(TransportError::Returned(reason)), Some(payload)),
            Outcome::Unknown { payload } => (Err(TransportError::Unknown), Some(payload)),
        };
        let message = payload.map(|payload| DirectMessage { id, payload, options });
        Some(TransferResult { to, peer: Some(peer), id, created_at, result, message })
    }

    fn begin(&self, flight: Flight) -> u64 {
        let mut flights = self.flights.lock();
        flights.last += 1;
        let tag = flights.last;
        flights.by_tag.insert(tag, flight);
        tag
    }

    fn forget(&self, tag: u64) {
        self.flights.lock().by_tag.remove(&tag);
    }
}

/// Offers a message to a peer; it waits for nothing. Its outcome comes by `transfers`, if there are any; else, if it is
/// a bad one, to `undelivered`.
pub(super) fn offer(
    peer: &PeerHandle,
    to: &DirectReceiver,
    message: DirectMessage,
    created_at: Instant,
    transfers: Option<&Transfers>,
) -> Result<(), Box<TransferResult>> {
    let DirectMessage { id, payload, options } = message;
    let overflow = match options.overflow {
        None | Some(OverflowPolicy::Block) => OverflowPolicy::Fail,
        Some(policy) => policy,
    };
    let sent_with = options.clone().created_at(created_at).overflow(overflow);
    let taken = match transfers {
        None => peer.send_with(payload, &sent_with).map(drop),
        Some(transfers) => {
            let tag =
                transfers.begin(Flight { to: to.clone(), peer: peer.id(), id, created_at, options: options.clone() });
            let taken = peer.send_collected(payload, &sent_with, &transfers.collector, tag);
            if taken.is_err() {
                transfers.forget(tag);
            }
            taken
        }
    };
    taken.map_err(|refused| {
        let message = DirectMessage { id, payload: refused.payload, options };
        Box::new(refusal(to.clone(), Some(peer.id()), message, created_at, TransportError::Refused(refused.kind)))
    })
}

/// The result of a message that went nowhere.
pub(super) fn refusal(
    to: DirectReceiver,
    peer: Option<PeerId>,
    message: DirectMessage,
    created_at: Instant,
    error: TransportError,
) -> TransferResult {
    TransferResult { to, peer, id: message.id, created_at, result: Err(error), message: Some(message) }
}
