//! Short reads and short writes, at the two ends of a connection with faults.
//!
//! Owns: nothing. Threads: the halves'. Locks: none; asks a direction for its settings.
//! Blocks on: what the half inside blocks on. Upholds: limits change how many calls it takes, never the bytes.

use std::io::{self, IoSlice};
use std::sync::Arc;

use super::faults::{Direction, Fault, Faults};
use crate::transport::{Connection, ReadHalf, WriteHalf};

/// The two directions as one end sees them.
#[derive(Debug)]
pub(super) struct Limits {
    pub(super) incoming: Arc<Direction>,
    pub(super) outgoing: Arc<Direction>,
}

impl Limits {
    pub(super) fn of_dialler(faults: &Faults) -> Self {
        Self { incoming: Arc::clone(&faults.towards_dialler), outgoing: Arc::clone(&faults.towards_listener) }
    }

    pub(super) fn of_listener(faults: &Faults) -> Self {
        Self { incoming: Arc::clone(&faults.towards_listener), outgoing: Arc::clone(&faults.towards_dialler) }
    }

    /// The connection with these limits on its halves.
    pub(super) fn around(self, connection: Connection) -> Connection {
        Connection {
            read: Box::new(LimitedReader { inner: connection.read, direction: self.incoming }),
            write: Arc::new(LimitedWriter { inner: connection.write, direction: self.outgoing }),
            ..connection
        }
    }
}

impl Direction {
    /// Reads no more than the limit.
    pub(super) fn shortened_read(
        &self,
        into: &mut [u8],
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        match self.settings().short_reads {
            Some(limit) if limit < into.len() => {
                let n = read(&mut into[..limit])?;
                if n == limit {
                    self.count(Fault::ShortRead);
                }
                Ok(n)
            }
            _ => read(into),
        }
    }

    /// Writes no more than the limit.
    pub(super) fn shortened_write(
        &self,
        from: &[IoSlice<'_>],
        write: impl FnOnce(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let offered: usize = from.iter().map(|slice| slice.len()).sum();
        match self.settings().short_writes {
            Some(limit) if limit < offered => {
                let n = write(&first_bytes(from, limit))?;
                if n == limit {
                    self.count(Fault::ShortWrite);
                }
                Ok(n)
            }
            _ => write(from),
        }
    }
}

#[derive(Debug)]
struct LimitedReader {
    inner: Box<dyn ReadHalf>,
    direction: Arc<Direction>,
}

impl ReadHalf for LimitedReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.direction.shortened_read(into, |into| self.inner.read(into))
    }
}

#[derive(Debug)]
struct LimitedWriter {
    inner: Arc<dyn WriteHalf>,
    direction: Arc<Direction>,
}

impl WriteHalf for LimitedWriter {
    fn try_write(&self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        self.direction.shortened_write(from, |from| self.inner.try_write(from))
    }

    fn write(&self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        self.direction.shortened_write(from, |from| self.inner.write(from))
    }

    fn expect_writes_of(&self, bytes: usize) {
        self.inner.expect_writes_of(bytes);
    }

    fn finish(&self) -> io::Result<()> {
        self.inner.finish()
    }
}

/// The first `limit` bytes of these slices.
fn first_bytes<'a>(from: &'a [IoSlice<'_>], limit: usize) -> Vec<IoSlice<'a>> {
    let mut left = limit;
    let mut first = Vec::new();
    for slice in from {
        if left == 0 {
            break;
        }
        let taken = &slice[..slice.len().min(left)];
        left -= taken.len();
        if !taken.is_empty() {
            first.push(IoSlice::new(taken));
        }
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_of_slices_end_inside_one_or_between_two() {
        let slices = [IoSlice::new(b"ab"), IoSlice::new(b""), IoSlice::new(b"cde")];
        for (limit, expected) in [(1, "a"), (2, "ab"), (3, "abc"), (5, "abcde"), (9, "abcde")] {
            let first = first_bytes(&slices, limit);
            assert!(first.iter().all(|slice| !slice.is_empty()));
            assert_eq!(first.iter().flat_map(|slice| slice.to_vec()).collect::<Vec<_>>(), expected.as_bytes());
        }
    }
}
