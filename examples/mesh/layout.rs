//! Where a run keeps what it writes.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: each file has one writer; the checker finds everything by these names alone.
//!
//! ```text
//! OUT/node-0/sent-to-1.ledger ..   what the sender's application sent, a ledger for each receiver
//! OUT/node-1/received.ledger       what was delivered to a receiver's application
//! OUT/node-1/files/                the files it wrote
//! ```

use std::path::{Path, PathBuf};

/// A node's folder.
pub fn node(out: &Path, index: usize) -> PathBuf {
    out.join(format!("node-{index}"))
}

/// The ledger of what a node sent to another one.
pub fn sent_ledger(node: &Path, to: usize) -> PathBuf {
    node.join(format!("sent-to-{to}.ledger"))
}

/// The ledger of what was delivered to a node.
pub fn received_ledger(node: &Path) -> PathBuf {
    node.join("received.ledger")
}

/// The files a node received.
pub fn files(node: &Path) -> PathBuf {
    node.join("files")
}
