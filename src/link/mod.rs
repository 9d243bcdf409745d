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

mod attach;
mod core;
mod fault;
mod lane_in;
mod lane_out;
mod offer;
mod segment;

#[cfg(all(test, shuttle))]
pub(crate) use core::Mutation;
pub(crate) use core::{LinkCore, LinkLimits, Taken};
pub(crate) use fault::{Fault, NoClaim};
pub(crate) use lane_in::{AckDue, Claim, Piece, Reassembly};
pub(crate) use lane_out::{Chunk, ChunkBody};
pub(crate) use offer::{Acked, Decision, Offer};
pub(crate) use segment::{LARGE, SEGMENT_BYTES, Segment};

#[cfg(test)]
mod explore;
#[cfg(test)]
mod tests;
