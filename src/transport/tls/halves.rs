//! The blocking halves of a TLS connection.
//!
//! Owns: the halves of the transport below. Threads: the reader, whoever holds the write token, whoever closes.
//! Locks: the sealer's, which is held while the socket is written, as the write token is; the reader only ever tries it.
//! Blocks on: the socket below, never under the lock of the secrets.
//! Upholds: the reader never waits for the writer, nor the writer for the reader, beyond making new keys; a half
//! that is dropped says that its stream is at its end, as far as that goes without waiting.

use std::fmt;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::cipher::{Opener, Sealer};
use crate::sync::Mutex;
use crate::transport::{Connection, Fault, Proof, ReadHalf, WriteHalf};

/// Puts TLS around an established connection.
pub(super) fn around(inner: Connection, sealer: Sealer, mut opener: Opener, proof: Arc<Proof>) -> Connection {
    opener.begin_session();
    let behind = AtomicBool::new(sealer.is_behind());
    let line = Arc::new(Line { write: inner.write, sealer: Mutex::new(sealer), behind });
    Connection {
        read: Box::new(TlsReader { read: inner.read, opener, line: line.clone(), owes: false }),
        write: Arc::new(TlsWriter(line)),
        proof: Some(proof),
        ..inner
    }
}

/// The way out.
struct Line {
    write: Arc<dyn WriteHalf>,
    sealer: Mutex<Sealer>,
    /// Somebody must write: sealed bytes wait, or the connection has something to say.
    behind: AtomicBool,
}

impl Line {
    /// Seals and writes.
    fn run(&self, from: &[IoSlice<'_>], send: &mut dyn FnMut(&[u8]) -> io::Result<usize>) -> io::Result<usize> {
        let mut sealer = self.sealer.lock();
        // Before its flag is taken down, or what the reader adds meanwhile would be forgotten.
        if self.behind.swap(false, Ordering::AcqRel) {
            sealer.take_owed();
        }
        let result = sealer.write(from, send);
        if sealer.is_behind() {
            self.behind.store(true, Ordering::Release);
        }
        result
    }

    /// Says what is owed, if nobody writes now and as far as that goes without waiting.
    fn try_say(&self, close: bool) {
        if let Some(mut sealer) = self.sealer.try_lock_until(Instant::now()) {
            if close {
                sealer.close();
            } else {
                sealer.take_owed();
            }
            // The connection is at its end: whether this gets through is all that is to be known.
            let _ = sealer.drain(&mut |bytes| self.write.try_write(&[IoSlice::new(bytes)]));
        }
    }
}

struct TlsReader {
    read: Box<dyn ReadHalf>,
    opener: Opener,
    line: Arc<Line>,
    owes: bool,
}

impl ReadHalf for TlsReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let Self { read, opener, line, owes } = self;
        let result = opener.read(into, &mut |space| read.read(space));
        if opener.owes() {
            line.behind.store(true, Ordering::Release);
            *owes = true;
        }
        if let Err(error) = &result
            && matches!(Fault::of(error), Some(Fault::Rejected(..)))
        {
            // Nobody writes on a connection that failed: the alert that says why is said here or never.
            line.try_say(false);
        }
        result
    }

    fn owes(&mut self) -> bool {
        std::mem::take(&mut self.owes)
    }
}

impl fmt::Debug for TlsReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsReader").field("read", &self.read).finish_non_exhaustive()
    }
}

struct TlsWriter(Arc<Line>);

impl WriteHalf for TlsWriter {
    fn try_write(&self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.run(from, &mut |bytes| self.0.write.try_write(&[IoSlice::new(bytes)]))
    }

    fn write(&self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.run(from, &mut |bytes| self.0.write.write(&[IoSlice::new(bytes)]))
    }

    fn is_behind(&self) -> bool {
        self.0.behind.load(Ordering::Acquire)
    }

    fn expect_writes_of(&self, bytes: usize) {
        self.0.write.expect_writes_of(bytes);
    }

    fn finish(&self) -> io::Result<()> {
        let mut sealer = self.0.sealer.lock();
        sealer.close();
        sealer.drain(&mut |bytes| self.0.write.write(&[IoSlice::new(bytes)]))?;
        self.0.write.finish()
    }
}

impl Drop for TlsWriter {
    fn drop(&mut self) {
        self.0.try_say(true);
    }
}

impl fmt::Debug for TlsWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsWriter").field("write", &self.0.write).finish_non_exhaustive()
    }
}
