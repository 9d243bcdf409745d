//! The write token: the right, held by one thread at a time, to number, seal and write on a session.
//!
//! Owns: the sending half of the session's connection and what of the present turn is not written yet.
//! Threads: `tx-<peer>` normally; a caller that finds the peer idle; `rx-<peer>` for acknowledgements.
//! Locks: none itself; whoever gathers holds the link lock, nobody holds one while it writes.
//! Blocks on: [`Writer::write`] waits for the socket; [`Writer::try_write`] never.
//! Upholds: bytes of one session leave in the order they were numbered; a turn that was begun is finished before the
//! next is gathered, whoever holds the token then.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::ident::ConnectionId;
use crate::link::{Chunk, ChunkBody, LinkCore, Taken};
use crate::transport::WriteHalf;
use crate::wire::{FrameType, Goodbye, Lane, put_beat, put_body};

/// A caller that wrote by itself less than this ago, and heard nothing since, is probably in a loop: the sender thread
/// batches better.
const LOOP: Duration = Duration::from_micros(20);

/// The token.
#[derive(Debug)]
pub(crate) struct Writer {
    conn: ConnectionId,
    half: Arc<dyn WriteHalf>,
    /// Control frames of this turn, then the head of its chunk.
    control: Vec<u8>,
    head: Vec<u8>,
    chunk: Option<Chunk>,
    /// A buffer of an earlier turn, for reuse.
    spare: Option<Vec<u8>>,
    /// How much of control, head and chunk is written.
    written: usize,
    /// When something was last written, and the reads of the stream at the last inline write.
    last: Instant,
    reads: u64,
}

impl Writer {
    /// The token of a new session.
    pub(crate) fn new(conn: ConnectionId, half: Arc<dyn WriteHalf>, now: Instant) -> Self {
        let (control, head) = (Vec::with_capacity(256), Vec::with_capacity(64));
        Self { conn, half, control, head, chunk: None, spare: None, written: 0, last: now, reads: 0 }
    }

    /// The connection it writes on.
    pub(crate) fn conn(&self) -> ConnectionId {
        self.conn
    }

    /// When something was last written.
    pub(crate) fn last(&self) -> Instant {
        self.last
    }

    /// Whether a turn was begun and is not written to its end.
    pub(crate) fn has_residue(&self) -> bool {
        self.written < self.len()
    }

    /// Whether a caller should write by itself: something came from the peer since the last such write, or it was a
    /// while ago. The clock is read only when the peer is idle.
    pub(crate) fn may_inline(&mut self, reads: u64) -> bool {
        if self.reads != reads {
            self.reads = reads;
            return true;
        }
        self.last.elapsed() > LOOP
    }

    /// Gathers the next turn: acknowledgements that are due (all of them along with data, or with `acks`), and the next
    /// chunk, which may come out of a queue through `take`. False when there is nothing to write.
    pub(crate) fn gather(&mut self, core: &mut LinkCore, take: impl FnMut(Lane) -> Option<Taken>, acks: bool) -> bool {
        self.begin();
        self.chunk = core.next_chunk(self.conn, &mut self.head, take);
        core.put_acks(self.conn, acks || self.chunk.is_some(), &mut self.control);
        self.has_residue()
    }

    /// A buffer that may be used again.
    pub(crate) fn take_spare(&mut self) -> Option<Vec<u8>> {
        self.spare.take()
    }

    fn begin(&mut self) {
        debug_assert!(!self.has_residue());
        self.written = 0;
        self.control.clear();
        self.head.clear();
        // Retention may be the last owner from here on; a buffer of our own is used again.
        if let Some(Chunk { body: ChunkBody::Own(buffer), .. }) = self.chunk.take() {
            self.spare = Some(buffer);
        }
    }

    /// Begins a turn that says the peer is still there.
    pub(crate) fn beat(&mut self, busy: bool) {
        self.begin();
        put_beat(&mut self.control, busy);
    }

    /// Begins a turn of control frames that are encoded already.
    pub(crate) fn control(&mut self, frames: &[u8]) {
        self.begin();
        self.control.extend_from_slice(frames);
    }

    /// Begins a turn that says goodbye.
    pub(crate) fn goodbye(&mut self, goodbye: &Goodbye) {
        self.begin();
        if let Err(error) = put_body(&mut self.control, FrameType::Goodbye, goodbye) {
            log::debug!(target: "threadwire::session", "{}: goodbye without words: {error}", self.conn);
        }
    }

    /// Writes the turn to its end.
    ///
    /// # Errors
    /// The connection failed.
    ///
    /// # Blocking
    /// Until the socket took everything, or the connection ended.
    pub(crate) fn write(&mut self) -> io::Result<()> {
        while self.has_residue() {
            match self.half.write(&self.rest())? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                wrote => self.written += wrote,
            }
        }
        self.begin();
        self.last = Instant::now();
        Ok(())
    }

    /// Writes what fits now; the rest stays for the next holder of the token.
    ///
    /// # Errors
    /// The connection failed: the next blocking write will say so to the session's own thread.
    pub(crate) fn try_write(&mut self) -> io::Result<()> {
        let wrote = self.half.try_write(&self.rest())?;
        self.written += wrote;
        if !self.has_residue() {
            self.begin();
        }
        self.last = Instant::now();
        Ok(())
    }

    /// Ends the stream towards the other side.
    pub(crate) fn finish(&self) {
        if let Err(error) = self.half.finish() {
            log::debug!(target: "threadwire::session", "{}: {error}", self.conn);
        }
    }

    fn body(&self) -> &[u8] {
        match &self.chunk {
            Some(chunk) => &chunk.body.bytes()[chunk.start..chunk.end],
            None => &[],
        }
    }

    fn len(&self) -> usize {
        self.control.len() + self.head.len() + self.chunk.as_ref().map_or(0, |chunk| chunk.end - chunk.start)
    }

    /// What is not written yet.
    fn rest(&self) -> [IoSlice<'_>; 3] {
        let mut skip = self.written;
        [&self.control[..], &self.head, self.body()].map(|part| {
            let skipped = skip.min(part.len());
            skip -= skipped;
            IoSlice::new(&part[skipped..])
        })
    }
}
