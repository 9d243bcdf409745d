//! Where a peer is, and what is known of it there.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: the data is the application's: nothing here looks at it.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::address::Address;
use crate::connections;
use crate::ident::PeerId;
use crate::watch::Watcher;

/// A map of peers: which are to be kept connected, and where each is.
pub type PeersMap = HashMap<PeerId, Vec<PeerData>>;

/// One address of a peer, and the application's data about it: what a [`PeersMap`] holds.
///
/// ```
/// use threadwire::direct::PeerData;
///
/// let here = PeerData::new("plc-7.local:50005".parse()?).with("region", "north");
/// assert_eq!(here.data["region"], "north");
/// # Ok::<(), threadwire::address::ParseAddressError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeerData {
    /// Where it can be dialled.
    pub addr: Address,
    /// What the application knows of it there. Nothing is dialled or let go because it changes.
    #[serde(default)]
    pub data: BTreeMap<String, String>,
}

impl PeerData {
    /// An address of which nothing else is known.
    pub fn new(addr: Address) -> Self {
        Self { addr, data: BTreeMap::new() }
    }

    /// The same, with one thing more known.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.data.insert(key.into(), value.into());
        self
    }
}

impl From<SocketAddr> for PeerData {
    fn from(addr: SocketAddr) -> Self {
        Self::new(addr.into())
    }
}

impl From<Address> for PeerData {
    fn from(addr: Address) -> Self {
        Self::new(addr)
    }
}

/// What the connections manager follows of a map of peers: their addresses.
pub(crate) fn addresses(map: Watcher<PeersMap>) -> connections::PeersMap {
    let changes = map.changes().clone();
    let of = |places: &Vec<PeerData>| places.iter().map(|place| place.addr.clone()).collect();
    let look = move || {
        let (version, map) = map.numbered();
        let peers = Box::new(move || map.iter().map(|(id, places)| (*id, of(places))).collect());
        connections::Said { version, peers }
    };
    connections::PeersMap { changes, look: Arc::new(look) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_and_its_data_are_read_and_written_together_and_the_data_may_be_absent() {
        let here = PeerData::from(SocketAddr::from(([192, 0, 2, 1], 5))).with("region", "north");
        let text = serde_json::to_string(&here).unwrap();
        assert_eq!(text, r#"{"addr":"192.0.2.1:5","data":{"region":"north"}}"#);
        assert_eq!(serde_json::from_str::<PeerData>(&text).unwrap(), here);
        let bare: PeerData = serde_json::from_str(r#"{"addr":"plc-7:5"}"#).unwrap();
        assert_eq!(bare, PeerData::new("plc-7:5".parse().unwrap()));
    }
}
