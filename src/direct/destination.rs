//! To whom a message goes.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: no text is taken for an address or an id: what is written is a name.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::ident::PeerId;

/// To whom a message goes.
///
/// ```
/// use std::net::SocketAddr;
/// use threadwire::{Destination, PeerId};
///
/// let by_id: Destination = PeerId::from_bytes([0xab; 32]).into();
/// assert_eq!(by_id.to_string(), "ab".repeat(32));
/// let by_address: Destination = SocketAddr::from(([192, 0, 2, 1], 50005)).into();
/// assert_eq!(by_address.to_string(), "192.0.2.1:50005");
/// let by_name: Destination = "north".into();
/// assert_eq!(by_name.to_string(), "north");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DirectReceiver {
    /// The peer with this identity, wherever it is.
    Peer(PeerId),
    /// Whoever proves itself at this address; once somebody has, that identity.
    Addr(SocketAddr),
    /// The peer that the configuration gives this name.
    Name(Arc<str>),
}

/// To whom a message goes: another name of [`DirectReceiver`].
pub type Destination = DirectReceiver;

impl fmt::Display for DirectReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(id) => id.fmt(f),
            Self::Addr(addr) => addr.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl From<PeerId> for DirectReceiver {
    fn from(id: PeerId) -> Self {
        Self::Peer(id)
    }
}

impl From<SocketAddr> for DirectReceiver {
    fn from(addr: SocketAddr) -> Self {
        Self::Addr(addr)
    }
}

impl From<&str> for DirectReceiver {
    fn from(name: &str) -> Self {
        Self::Name(name.into())
    }
}

impl From<String> for DirectReceiver {
    fn from(name: String) -> Self {
        Self::Name(name.into())
    }
}

impl From<Arc<str>> for DirectReceiver {
    fn from(name: Arc<str>) -> Self {
        Self::Name(name)
    }
}

/// A peer and where it is, for a line in the log: `{id} ({addr})`.
///
/// ```
/// use std::net::SocketAddr;
///
/// let addr = SocketAddr::from(([192, 168, 1, 5], 8080));
/// assert_eq!(threadwire::direct::peer_info(&"peer123", addr), "peer123 (192.168.1.5:8080)");
/// ```
pub fn peer_info(id: &impl fmt::Display, addr: SocketAddr) -> String {
    format!("{id} ({addr})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_shown_as_what_it_holds() {
        let (id, addr) = (PeerId::from_bytes([7; 32]), SocketAddr::from(([127, 0, 0, 1], 5)));
        assert_eq!(DirectReceiver::from(id).to_string(), id.to_string());
        assert_eq!(DirectReceiver::from(addr).to_string(), "127.0.0.1:5");
        assert_eq!(format!("{:>7}", DirectReceiver::from("north")), "  north", "padding is handed on");
    }

    #[test]
    fn what_converts_says_what_is_meant() {
        let id = PeerId::from_bytes([7; 32]);
        assert_eq!(DirectReceiver::from(id), DirectReceiver::Peer(id));
        let name = DirectReceiver::Name("127.0.0.1:5".into());
        assert_eq!(DirectReceiver::from("127.0.0.1:5"), name, "a text is a name whatever it looks like");
        assert_eq!(DirectReceiver::from(String::from("127.0.0.1:5")), name);
        assert_eq!(DirectReceiver::from(Arc::from("127.0.0.1:5")), name);
    }

    #[test]
    fn a_peer_and_its_address_are_written_as_in_the_document_it_comes_from() {
        let addr = "192.168.1.5:8080".parse().unwrap();
        assert_eq!(peer_info(&"peer123", addr), "peer123 (192.168.1.5:8080)");
        let id = PeerId::from_bytes([0x9f; 32]);
        assert_eq!(peer_info(&id, addr), format!("{id} (192.168.1.5:8080)"));
    }
}
