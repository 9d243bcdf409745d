//! Who is there: the handshake that turns a fresh connection into one with a proven peer.
//!
//! Owns: one machine per connection that has no session yet.
//! Threads: `acceptor` drives the machines, `work-n` run their [`Work`]. Locks: none.
//! Blocks on: nothing.
//! Upholds: nobody is a peer who has not signed, with the key the name is made of, over both sides' fresh hellos or over
//! the transport's own handshake, through whose connection the hellos came.
//!
//! ```text
//!  dialler                                   acceptor
//!    HELLO  ------------------------------->  judges it            (versions, network, protocol, own key, expected peer)
//!                                             signs                (work)
//!    judges it   <--------------------------  HELLO, CONFIRM
//!    verifies, asks its policy, signs (work)
//!    proven, CONFIRM  --------------------->  verifies, asks its policy (work)
//!                                             proven
//!  and at any point, instead of what was due: GOODBYE with the reason, then the end of the stream
//! ```
//!
//! The signature of a CONFIRM is ed25519 over `threadwire confirm v1`, a byte for the signer's side (0 dialler, 1
//! acceptor), the SHA-256 of the dialler's HELLO body and the SHA-256 of the acceptor's. It therefore covers both
//! nonces (no replay), the side (no reflection), and everything both sides said, the version ranges included (no
//! downgrade). Over plain TCP it proves who took part, not who sends the bytes after it: that takes TLS, whose proven
//! peer is given to the machine as the expected one so that a handshake cannot be relayed through somebody else's
//! connection.
//!
//! Over TLS a CONFIRM is without a signature. Both sides have signed TLS's own transcript with the keys of their names,
//! fresh keys of the connection are in it, and every byte of the hellos comes through that connection, unaltered, from
//! whoever has signed. A hello must name the key that was proven, so whoever stands between two TLS connections, each
//! with a key of his own, is `WRONG_PEER` at the first hello he hands on. Each side decides by what its own transport
//! has proven to it, and by nothing that is said, whether it needs a signature; one that comes nevertheless must be right.
//! It would prove nothing more, and costs as much arithmetic as TLS's own proofs.
//!
//! The dialler is done one flight before the acceptor, so the acceptor's refusal may reach it as the first frame of the
//! session: a dial has succeeded when the other side's ATTACH is there.

mod config;
mod hello;
mod machine;
mod work;

pub use crate::transport::{Identity, KEY_FILE, peer_id_of, random_bytes, verify};
pub use config::{AcceptAll, HandshakeConfig, HandshakePolicy, MAX_NAME, MAX_PAYLOAD, Offer};
pub use hello::{CAPABILITIES, printable, put_refusal};
pub use machine::{Handshake, Proven, Step};
pub use work::{Work, WorkDone};

/// A place that was reserved for a connection before anything was spent on it, and is free again when this is dropped.
///
/// Whoever admits connections makes one when a socket is accepted or a dial begins; it stays with the connection,
/// through the handshake into the session, and holds everything that was counted for it (the place in a limit, the
/// prefix of the address, a thread of the budget) so that no way out of a connection can forget to give a part back.
/// Dropping it must not block, and it must not be dropped under a lock that its `Drop` takes.
pub trait Slot: Send {}

#[cfg(test)]
mod tests;
