//! What becomes of a peer's sender, which dials it and keeps it connected, told to whoever looks after senders.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: an event names the sender it is of, so that one which comes late is known for what it is.

use std::fmt;
use std::net::SocketAddr;

use crate::ident::PeerId;

/// Something happened to a peer's sender: to what dials the peer and keeps it connected.
///
/// A peer has one sender at a time, and each has a number that no earlier one of that peer had, and that is higher. Who
/// keeps a table of senders removes an entry only for an event with the generation of that entry: word of a sender that
/// stopped long ago says nothing about the one that has taken its place.
///
/// ```
/// use std::collections::HashMap;
/// use threadwire::PeerId;
/// use threadwire::direct::PeerEvent;
///
/// fn note(senders: &mut HashMap<PeerId, u64>, event: &PeerEvent) {
///     let (peer, generation) = (event.peer(), event.generation());
///     match event {
///         PeerEvent::SenderStopped { .. } if senders.get(&peer).is_some_and(|known| *known > generation) => {}
///         PeerEvent::SenderStopped { .. } => drop(senders.remove(&peer)),
///         _ => drop(senders.insert(peer, generation)),
///     }
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerEvent {
    /// The sender knows where to dial: its addresses, with names looked up, each once, those of the map first, as they are
    /// listed there. They are tried in another order: that of recent success comes first.
    AddrsResolved {
        /// Whose sender.
        peer: PeerId,
        /// Where the peer is dialled.
        addrs: Vec<SocketAddr>,
        /// Which sender of this peer.
        generation: u64,
    },
    /// The sender has stopped: nothing is dialled for it any more. What waits for the peer is kept for its next sender,
    /// or until the peer dials.
    SenderStopped {
        /// Whose sender.
        peer: PeerId,
        /// Where it sent to last; `None` if it never got anywhere, or the peer had dialled.
        addr: Option<SocketAddr>,
        /// Which sender of this peer.
        generation: u64,
        /// Why.
        reason: StopReason,
    },
}

impl PeerEvent {
    /// Whose sender.
    pub fn peer(&self) -> PeerId {
        match self {
            Self::AddrsResolved { peer, .. } | Self::SenderStopped { peer, .. } => *peer,
        }
    }

    /// Which sender of that peer.
    pub fn generation(&self) -> u64 {
        match self {
            Self::AddrsResolved { generation, .. } | Self::SenderStopped { generation, .. } => *generation,
        }
    }
}

/// Why a peer's sender has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StopReason {
    /// Nobody wants the peer to be kept connected any longer: the application removed it.
    Removed,
    /// The peer is no longer in the map of peers.
    Vanished,
    /// The address it sent to is no longer one of the peer's: the next sender is at another one.
    Moved,
    /// The node, or the dispatcher of senders, shuts down.
    ShuttingDown,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Removed => "the peer was removed",
            Self::Vanished => "the peer is no longer in the map",
            Self::Moved => "the address is no longer the peer's",
            Self::ShuttingDown => "shutting down",
        })
    }
}
