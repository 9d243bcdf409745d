//! What the other side of a connection has proven to the transport.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: it is made by a transport that has seen the proof, and by nothing else.

use crate::ident::{PeerId, SessionKind};

/// What the other side has proven to the transport: it holds the key that `peer` is the name of. Kept as long as the
/// connection, so that it can be judged again when trust changes.
#[derive(Debug)]
pub struct Proof {
    /// Who is there.
    pub peer: PeerId,
    /// Who dialled.
    pub kind: SessionKind,
    /// The certificates it showed, its own first (DER); none where it showed its bare key.
    #[cfg(feature = "tls")]
    pub(crate) chain: Vec<Vec<u8>>,
    /// Which trust it was held against when the connection opened, if that has a number.
    #[cfg(feature = "tls")]
    pub(crate) judged_by: Option<u64>,
}

impl Proof {
    /// Of a transport of your own, which has made sure of it: on this very connection, afresh, and for every byte that it
    /// gives out. Nobody asks for more.
    pub fn new(peer: PeerId, kind: SessionKind) -> Self {
        Self {
            peer,
            kind,
            #[cfg(feature = "tls")]
            chain: Vec::new(),
            #[cfg(feature = "tls")]
            judged_by: None,
        }
    }
}
