//! What goes over the connections of one peer: bytes, messages, rejections, counted where they pass.
//!
//! Owns: counters of one link, over all its sessions. Threads: whoever holds the write token, `rx-<peer>`, whoever asks.
//! Locks: none. Blocks on: what the connection's own write half blocks on.
//! Upholds: a byte counts when the socket has taken or given it; a message when it was claimed.

use std::io::{self, IoSlice};
use std::sync::Arc;

use crate::error::RejectCause;
use crate::metrics::{Counter, Table};
use crate::transport::WriteHalf;

/// The counters of one link.
#[derive(Debug, Default)]
pub(crate) struct LinkTraffic {
    /// Bytes written to its connections, and read from them.
    pub(super) sent: Counter,
    pub(super) read: Counter,
    /// Messages claimed.
    pub(super) received: Counter,
    /// Best effort messages that came while too many of them waited for the application: thrown away.
    pub(super) unread: Counter,
    /// Messages of ours that the other side rejected.
    pub(super) returned: Table<RejectCause>,
    /// Messages of the other side that were rejected here.
    pub(super) rejected: Table<RejectCause>,
}

/// A write half that counts what it wrote.
#[derive(Debug)]
pub(super) struct Counted {
    half: Arc<dyn WriteHalf>,
    traffic: Arc<LinkTraffic>,
}

impl Counted {
    /// Counts what `half` writes.
    pub(super) fn new(half: Arc<dyn WriteHalf>, traffic: Arc<LinkTraffic>) -> Self {
        Self { half, traffic }
    }

    fn count(&self, wrote: io::Result<usize>) -> io::Result<usize> {
        if let Ok(bytes) = wrote {
            self.traffic.sent.more(bytes as u64);
        }
        wrote
    }
}

impl WriteHalf for Counted {
    fn try_write(&self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        self.count(self.half.try_write(from))
    }

    fn write(&self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        self.count(self.half.write(from))
    }

    fn is_behind(&self) -> bool {
        self.half.is_behind()
    }

    fn expect_writes_of(&self, bytes: usize) {
        self.half.expect_writes_of(bytes);
    }

    fn finish(&self) -> io::Result<()> {
        self.half.finish()
    }
}
