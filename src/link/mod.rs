//! The link: what two identities share across connections. Pure: no threads, no clock, no sockets.
//!
//! Owns: per lane the numbers, what is kept for repetition, the credit account and both positions; which connection is
//! attached; the epoch and the token. Threads: whoever holds the link lock. Locks: none itself. Blocks on: nothing.
//! Upholds: every message is claimed once and in order by the receiver; nothing is forgotten by the sender before it is
//! done; of two connections of the same two peers, both sides attach the same one; a stale session claims nothing.
//!
//! ```text
//!              offer (decider)                       on_attach (decider)
//!  Detached ------------------> Attaching(conn, epoch) ---------------> Attached(conn, epoch)
//!      ^  \____________________ on_attach (the other side) ________________/      |
//!      |________________________________ gone(conn) _____________________________|
//! ```
//!
//! The peer with the lower id is the **decider** of the link: it alone chooses the connection that is attached, and
//! speaks first. That leaves nothing to agree on when both sides dial at once.
//!
//! A connection of another life of a peer that is attached waits, on either side, until the session has been asked
//! whether its process is alive: if it is, two processes have the same key, and the first one stays (`doubt.rs`).

mod aside;
mod attach;
mod core;
mod doubt;
mod fault;
mod lane_in;
mod lane_out;
mod offer;
mod payload;
mod segment;

#[cfg(test)]
pub(crate) use core::Mutation;
pub(crate) use core::{LinkCore, LinkLimits, Taken};
#[cfg(test)]
pub(crate) use doubt::SIGN_OF_LIFE;
pub(crate) use fault::{Fault, NoClaim};
pub(crate) use lane_in::{AckDue, Claim, Piece, Reassembly};
pub(crate) use lane_out::{Chunk, ChunkBody};
pub(crate) use offer::{Acked, Decision, Offer, Probe, Sign};
pub(crate) use payload::Payload;
pub(crate) use segment::{LARGE, SEGMENT_BYTES, Segment, Track};

#[cfg(test)]
mod explore;
#[cfg(test)]
mod tests;
