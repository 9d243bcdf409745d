//! Names of things: peers, connections, lives of a process.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: identity is the key everywhere; a socket address never names a peer.

use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How an id begins that stands for an address.
const ADDRESS: &[u8; 10] = b"@@address@";

/// Who a peer is: the SHA-256 digest of its public key (as SubjectPublicKeyInfo, DER).
///
/// `Display` writes 64 hexadecimal digits, `FromStr` reads them back; [`PeerId::short`] is the first eight,
/// as log lines and thread names show it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerId([u8; 32]);

impl Hash for PeerId {
    /// Eight bytes of a digest are as good as all of them, and a lookup for each message counts its nanoseconds.
    fn hash<H: Hasher>(&self, state: &mut H) {
        if let Some(bytes) = self.0.first_chunk::<8>() {
            state.write_u64(u64::from_le_bytes(*bytes));
        }
    }
}

/// Spreads peer ids over a table. Each table has a seed of its own, so that nobody can choose ids that share its places.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerIdHasher(u64);

impl Default for PeerIdHasher {
    fn default() -> Self {
        Self(std::hash::RandomState::new().hash_one(0_u8))
    }
}

impl BuildHasher for PeerIdHasher {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        *self
    }
}

impl Hasher for PeerIdHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    #[inline]
    fn write_u64(&mut self, word: u64) {
        // Both halves of a product depend on all bits of the word; the constant is the golden ratio's.
        let product = u128::from(self.0 ^ word) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product as u64) ^ (product >> 64) as u64;
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

impl PeerId {
    /// A peer id from the 32 bytes of a digest.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes of the digest.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The id that stands for an address where nobody has proven itself yet. No key has it: to find one whose digest is
    /// this is to break the digest.
    pub(crate) fn of_address(addr: SocketAddr) -> Self {
        let mut bytes = [0; 32];
        let (mark, rest) = bytes.split_at_mut(ADDRESS.len());
        mark.copy_from_slice(ADDRESS);
        let (ip, scope) = match addr {
            SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), u32::MAX),
            SocketAddr::V6(v6) => (*v6.ip(), v6.scope_id()),
        };
        rest[..16].copy_from_slice(&ip.octets());
        rest[16..18].copy_from_slice(&addr.port().to_be_bytes());
        rest[18..].copy_from_slice(&scope.to_be_bytes());
        Self(bytes)
    }

    /// The address that this id stands for, if it is nobody's: of messages that were sent to an address
    /// ([`Node::peer_at`](crate::Node::peer_at)) and ended before anybody had proven itself there. No verb takes it for
    /// a peer: send to the address again.
    pub fn stands_for(&self) -> Option<SocketAddr> {
        let (ip, rest) = self.0.strip_prefix(ADDRESS)?.split_first_chunk::<16>()?;
        let (port, scope) = rest.split_first_chunk::<2>()?;
        let (ip, port) = (Ipv6Addr::from(*ip), u16::from_be_bytes(*port));
        match (ip.to_ipv4_mapped(), u32::from_be_bytes(scope.try_into().ok()?)) {
            (Some(v4), u32::MAX) => Some((v4, port).into()),
            (_, scope) => Some(SocketAddrV6::new(ip, port, 0, scope).into()),
        }
    }

    /// The first eight hexadecimal digits: enough for a person to tell peers apart, never a key.
    pub fn short(&self) -> String {
        self.0[..4].iter().map(|b| format!("{b:02x}")).collect()
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerId({})", self.short())
    }
}

/// The text was not 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a peer id is 64 hexadecimal digits")]
pub struct ParsePeerIdError;

impl FromStr for PeerId {
    type Err = ParsePeerIdError;

    fn from_str(text: &str) -> Result<Self, ParsePeerIdError> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(ParsePeerIdError);
        }
        let mut bytes = [0u8; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = hex_digit(pair[0])? << 4 | hex_digit(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for PeerId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for PeerId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            text.parse().map_err(serde::de::Error::custom)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Self)
        }
    }
}

/// One connection of this process, numbered from 1 in the order they were accepted or dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}", self.0)
    }
}

/// One life of a process: a new number at each start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Who opened the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SessionKind {
    /// The other side dialled us.
    Inbound,
    /// We dialled the other side.
    Outbound,
}

impl fmt::Display for SessionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        })
    }
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SessionStatus {
    /// Being dialled, unproven, or proven and waiting for the attach.
    Handshaking,
    /// A session runs on it.
    Established,
}

impl fmt::Display for SessionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Handshaking => "handshaking",
            Self::Established => "established",
        })
    }
}

fn hex_digit(digit: u8) -> Result<u8, ParsePeerIdError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(ParsePeerIdError),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_id_survives_its_text() {
        let id = PeerId::from_bytes(std::array::from_fn(|i| (i * 7) as u8));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().len(), 64);
        assert!(id.to_string().starts_with(&id.short()));
    }

    #[test]
    fn an_id_may_stand_for_an_address_and_gives_it_back() {
        for text in ["192.0.2.1:5", "[2001:db8::1]:50005", "[::ffff:192.0.2.1]:5", "0.0.0.0:0"] {
            let addr: SocketAddr = text.parse().unwrap();
            assert_eq!(PeerId::of_address(addr).stands_for(), Some(addr), "{text}");
        }
        let scoped = SocketAddrV6::new("fe80::1".parse().unwrap(), 5, 0, 3).into();
        assert_eq!(PeerId::of_address(scoped).stands_for(), Some(scoped));
        assert_eq!(PeerId::from_bytes([7; 32]).stands_for(), None);
    }

    #[test]
    fn what_is_not_64_hex_digits_is_no_peer_id() {
        for bad in ["", "00", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64), &"é".repeat(32)] {
            assert_eq!(bad.parse::<PeerId>(), Err(ParsePeerIdError), "{bad:?}");
        }
    }

    #[test]
    fn ids_that_differ_in_one_byte_spread_over_a_table() {
        for byte in 0..8 {
            let id = |value: u8| {
                let mut bytes = [7; 32];
                bytes[byte] = value;
                PeerId::from_bytes(bytes)
            };
            let table = PeerIdHasher::default();
            let places: std::collections::HashSet<u64> =
                (0..=255).map(|value| table.hash_one(id(value)) >> 52).collect();
            // 256 balls thrown into 4,096 boxes at random hit about 248 of them.
            assert!(places.len() > 200, "byte {byte}: {} places", places.len());
            let low: std::collections::HashSet<u64> =
                (0..=255).map(|value| table.hash_one(id(value)) & 0xfff).collect();
            assert!(low.len() > 200, "byte {byte}: {} places", low.len());
        }
    }
}
