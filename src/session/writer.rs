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
use crate::link::{Chunk, ChunkBody, LinkCore, Segment, Taken};
use crate::transport::WriteHalf;
use crate::wire::{Beat, FrameType, Goodbye, Lane, put_beat, put_body};

/// A caller that wrote by itself less than this ago, and heard nothing since, is probably in a loop: the sender thread
/// batches better.
#[cfg(not(shuttle))]
const LOOP: Duration = Duration::from_micros(20);

/// A turn is gathered until it holds so many bytes, at least and at most: one call of the system writes all of it.
///
/// Each call wakes the other side's reader, which costs more than the bytes of a short turn: a long one is worth it
/// (64 KiB at a time 2.1 GB/s, 1 MiB at a time 5.0 GB/s over loopback). But what is more urgent waits for its end. So a
/// turn is as long as the connection takes in [`TURN_TIME`].
const TURN: std::ops::RangeInclusive<usize> = 64 * 1024..=1024 * 1024;
/// How long the turns of a new session are.
const FIRST_TURN: usize = 192 * 1024;
/// How long a turn should take.
const TURN_TIME: Duration = Duration::from_micros(500);
/// Turns shorter than this say nothing about longer ones.
const TELLING: usize = 64 * 1024;
/// The most chunks in a turn.
const CHUNKS: usize = 32;

/// A turn of at most this many bytes is copied into one buffer.
const FOLDED: usize = 2 * 1024;
/// Acknowledgements that can wait go along with every eighth turn of data.
const TURNS_BETWEEN_ACKS: u32 = 8;

/// The token.
#[derive(Debug)]
pub(crate) struct Writer {
    conn: ConnectionId,
    half: Arc<dyn WriteHalf>,
    /// Control frames of this turn.
    control: Vec<u8>,
    /// The heads of its chunks, back to back.
    heads: Vec<u8>,
    /// Its chunks, each with the end of its head.
    chunks: Vec<(usize, Chunk)>,
    /// Bytes of the turn, and how many of them are written.
    len: usize,
    written: usize,
    /// How many bytes a turn is gathered to.
    turn: usize,
    /// The turn was full before everything was gathered that is numbered already.
    full: bool,
    /// Turns with data since acknowledgements went along with one.
    turns: u32,
    /// Messages of this turn that somebody wants to hear of, and those of turns that are written.
    tickets: Vec<u64>,
    told: Vec<u64>,
    /// Lanes, as bits, of which this turn ends the message that is measured, and those of turns that are written.
    probes: u8,
    told_probes: u8,
    /// Segments of the last turn gathered that are best effort.
    best_effort: Vec<Arc<Segment>>,
    /// A buffer of an earlier turn, for reuse.
    spare: Option<Vec<u8>>,
    /// When something was last written, and the reads of the stream at the last inline write.
    last: Instant,
    reads: u64,
}

impl Writer {
    /// The token of a new session.
    pub(crate) fn new(conn: ConnectionId, half: Arc<dyn WriteHalf>, now: Instant) -> Self {
        Self {
            conn,
            half,
            control: Vec::with_capacity(256),
            heads: Vec::with_capacity(64),
            chunks: Vec::with_capacity(CHUNKS),
            len: 0,
            written: 0,
            turn: FIRST_TURN,
            full: false,
            turns: 0,
            tickets: Vec::new(),
            told: Vec::new(),
            probes: 0,
            told_probes: 0,
            best_effort: Vec::new(),
            spare: None,
            last: now,
            reads: 0,
        }
    }

    /// The connection it writes on.
    pub(crate) fn conn(&self) -> ConnectionId {
        self.conn
    }

    /// When something was last written.
    pub(crate) fn last(&self) -> Instant {
        self.last
    }

    /// Whether a turn was begun and is not written to its end, or the connection has something of its own to write.
    pub(crate) fn has_residue(&self) -> bool {
        self.is_mid_turn() || self.half.is_behind()
    }

    fn is_mid_turn(&self) -> bool {
        self.written < self.len
    }

    /// Whether another turn must follow: this one is not written to its end, or did not hold all that is numbered.
    pub(crate) fn has_more(&self) -> bool {
        self.has_residue() || self.full
    }

    /// Whether a caller should write by itself: something came from the peer since the last such write, or it was a
    /// while ago. The clock is read only when the peer is idle.
    pub(crate) fn may_inline(&mut self, reads: u64) -> bool {
        if self.reads != reads {
            self.reads = reads;
            return true;
        }
        #[cfg(shuttle)]
        return crate::sync::either();
        #[cfg(not(shuttle))]
        return self.last.elapsed() > LOOP;
    }

    /// Gathers the next turn: acknowledgements that are due (all of them along with data, or with `acks`), and chunks,
    /// which may come out of a queue through `take`. False when there is nothing to write.
    pub(crate) fn gather(
        &mut self,
        core: &mut LinkCore,
        mut take: impl FnMut(Lane) -> Option<Taken>,
        acks: bool,
    ) -> bool {
        self.begin();
        let mut full = true;
        let now = Instant::now();
        while self.len < self.turn && self.chunks.len() < CHUNKS {
            let before = self.heads.len();
            let Some((lane, chunk)) = core.next_chunk(self.conn, now, &mut self.heads, &mut take) else {
                full = false;
                break;
            };
            self.len += self.heads.len() - before + (chunk.end - chunk.start);
            self.tickets.extend_from_slice(&chunk.tickets);
            self.probes |= u8::from(chunk.probe) << lane.index();
            self.best_effort.extend(chunk.body.segment().filter(|segment| !segment.numbered).cloned());
            self.chunks.push((self.heads.len(), chunk));
            if lane == Lane::Bulk {
                // One piece, then another look at what is more urgent.
                break;
            }
        }
        self.full = full && core.has_unwritten();
        // Acknowledgements that can wait travel along with data now and then; the timer sees to the rest.
        self.turns += u32::from(!self.chunks.is_empty());
        let along = self.turns >= TURNS_BETWEEN_ACKS;
        if along {
            self.turns = 0;
        }
        core.put_acks(self.conn, acks || along, &mut self.control);
        self.len += self.control.len();
        if self.len <= FOLDED {
            self.fold();
        }
        self.is_mid_turn()
    }

    /// Copies a short turn into one buffer: cheaper than a list of slices.
    fn fold(&mut self) {
        let mut head = 0;
        for (head_end, chunk) in self.chunks.drain(..) {
            self.control.extend_from_slice(&self.heads[head..head_end]);
            self.control.extend_from_slice(&chunk.body.bytes()[chunk.start..chunk.end]);
            head = head_end;
            if let ChunkBody::Own(buffer) = chunk.body {
                self.spare = Some(buffer);
            }
        }
        self.heads.clear();
    }

    /// The messages that were written since this was last asked, by their tickets.
    pub(crate) fn take_written(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.told)
    }

    /// Lanes, as bits, of which the message that is measured was written since this was last asked.
    pub(crate) fn take_probes(&mut self) -> u8 {
        std::mem::take(&mut self.told_probes)
    }

    /// Segments of the turn that was just gathered that are best effort.
    pub(crate) fn take_best_effort(&mut self) -> Vec<Arc<Segment>> {
        std::mem::take(&mut self.best_effort)
    }

    /// A buffer that may be used again.
    pub(crate) fn take_spare(&mut self) -> Option<Vec<u8>> {
        self.spare.take()
    }

    fn begin(&mut self) {
        debug_assert!(!self.is_mid_turn());
        self.told.append(&mut self.tickets);
        self.told_probes |= std::mem::take(&mut self.probes);
        self.written = 0;
        self.len = 0;
        self.control.clear();
        self.heads.clear();
        // Retention may be the last owner from here on; a buffer of our own is used again.
        for (_, chunk) in self.chunks.drain(..) {
            if let ChunkBody::Own(buffer) = chunk.body {
                self.spare = Some(buffer);
            }
        }
    }

    /// Begins a turn that says the peer is still there.
    pub(crate) fn beat(&mut self, beat: &Beat) {
        self.begin();
        put_beat(&mut self.control, beat);
        self.len = self.control.len();
    }

    /// Begins a turn of control frames that are encoded already.
    pub(crate) fn control(&mut self, frames: &[u8]) {
        self.begin();
        self.control.extend_from_slice(frames);
        self.len = self.control.len();
    }

    /// Begins a turn that says goodbye.
    pub(crate) fn goodbye(&mut self, goodbye: &Goodbye) {
        self.begin();
        if let Err(error) = put_body(&mut self.control, FrameType::Goodbye, goodbye) {
            log::debug!(target: "threadwire::session", "{}: goodbye without words: {error}", self.conn);
        }
        self.len = self.control.len();
    }

    /// Writes the turn to its end.
    ///
    /// # Errors
    /// The connection failed.
    ///
    /// # Blocking
    /// Until the socket took everything, or the connection ended.
    pub(crate) fn write(&mut self) -> io::Result<()> {
        let (began, len) = (Instant::now(), self.len - self.written);
        while self.has_residue() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = self.rest(&mut slices);
            match self.half.write(&slices[..count])? {
                0 if count > 0 => return Err(io::ErrorKind::WriteZero.into()),
                wrote => self.written += wrote,
            }
        }
        self.begin();
        self.last = Instant::now();
        let turn = next_turn(self.turn, len, self.last - began);
        let (fast, was_fast) = (turn > FIRST_TURN, self.turn > FIRST_TURN);
        self.turn = turn;
        if fast != was_fast {
            self.half.expect_writes_of(if fast { *TURN.end() } else { turn });
        }
        Ok(())
    }

    /// Writes what fits now; the rest stays for the next holder of the token.
    ///
    /// # Errors
    /// The connection failed: the next blocking write will say so to the session's own thread.
    pub(crate) fn try_write(&mut self) -> io::Result<()> {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let count = self.rest(&mut slices);
        let wrote = self.half.try_write(&slices[..count])?;
        self.written += wrote;
        if !self.is_mid_turn() {
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

    /// What is not written yet, in order; returns how many slices that are.
    fn rest<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES]) -> usize {
        let mut skip = self.written;
        let mut count = 0;
        let mut add = |part: &'a [u8]| {
            let skipped = skip.min(part.len());
            skip -= skipped;
            if skipped < part.len()
                && let Some(slice) = slices.get_mut(count)
            {
                *slice = IoSlice::new(&part[skipped..]);
                count += 1;
            }
        };
        add(&self.control);
        let mut head = 0;
        for (head_end, chunk) in &self.chunks {
            add(&self.heads[head..*head_end]);
            add(&chunk.body.bytes()[chunk.start..chunk.end]);
            head = *head_end;
        }
        count
    }
}

/// The most slices of a turn: the control frames, a head and a body for each chunk.
const SLICES: usize = 1 + 2 * CHUNKS;

/// How long turns are to be after one of `len` bytes took `time`, if they were to be `turn` long so far. One step at a time:
/// a thread that loses the processor while it writes has not met a slow connection.
fn next_turn(turn: usize, len: usize, time: Duration) -> usize {
    if len < TELLING {
        return turn;
    }
    // Bytes below 2^21, nanoseconds below 2^20: no overflow.
    let right = (len as u128 * TURN_TIME.as_nanos() / time.as_nanos().max(1)) as usize;
    if right >= turn * 2 {
        (turn * 2).min(*TURN.end())
    } else if right < turn / 2 {
        (turn / 2).max(*TURN.start())
    } else {
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_grow_while_they_are_taken_quickly_and_shrink_while_the_connection_is_slow() {
        let grown = |bytes: usize, micros| {
            let mut turn = FIRST_TURN;
            (0..9).for_each(|_| turn = next_turn(turn, bytes, Duration::from_micros(micros)));
            turn
        };
        assert_eq!(grown(512 << 10, 150), *TURN.end(), "3.5 GB/s, though the turns are not full");
        assert_eq!(grown(192 << 10, 20_000), *TURN.start(), "10 MB/s");
        assert_eq!(grown(192 << 10, 500), FIRST_TURN, "as it should be");
        assert_eq!(grown(1 << 10, 1_000_000), FIRST_TURN, "says nothing");
        assert_eq!(next_turn(*TURN.end(), 1 << 20, Duration::from_secs(1)), TURN.end() / 2, "one step");
    }
}
