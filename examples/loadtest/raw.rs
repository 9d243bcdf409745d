//! The baseline: the strongest plain blocking TCP we know how to write.
//!
//! Owns: one connection of its own, beside the library's.
//! Threads: the measuring thread writes, the other end's main thread reads. Locks: none.
//! Blocks on: socket reads and writes, without a deadline: the other process ends them by ending.
//! Upholds: what the library's receiver does with a message is done here too, by the same [`Checker`]; nothing else is.
//!
//! A frame is a length (`u32`, little endian) and that many bytes. The writer gathers frames in one buffer and writes
//! it when it is full, or writes each big frame from where it lies; the reader reads large and parses in place.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::checker::{Checker, END_MARK, Tally, end_mark, number, number_of};
use crate::failure::{Context, Failure};
use crate::histogram::Histogram;

/// Bytes in front of each message.
const PREFIX: usize = 4;
/// So many bytes may pass between two looks at the clock, and at most [`CLOCK_MESSAGES`] messages.
const CLOCK_BYTES: usize = 4 << 20;
const CLOCK_MESSAGES: usize = 512;

/// How the writer brings frames to the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Copies frames into a buffer of so many bytes and writes it when the next does not fit.
    Gather(usize),
    /// Writes each frame from the one buffer that it stays in, at most so many bytes per call.
    InPlace(usize),
    /// Writes length and message as two parts of one call.
    Vectored,
}

impl Plan {
    /// The bytes of one write of messages of `size` bytes.
    pub fn write_size(self, size: usize) -> usize {
        match self {
            Self::Gather(bytes) => bytes,
            Self::InPlace(bytes) => bytes.min(size + PREFIX),
            Self::Vectored => size + PREFIX,
        }
    }

    /// A word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gather(_) => "gather",
            Self::InPlace(_) => "in place",
            Self::Vectored => "vectored",
        }
    }
}

/// How many messages of `size` bytes may pass between two looks at the clock.
pub fn clock_every(size: usize) -> usize {
    (CLOCK_BYTES / size.max(1)).clamp(1, CLOCK_MESSAGES)
}

/// Waits for the one connection of the measuring end.
///
/// # Errors
/// The system said no.
pub fn accept(listener: &TcpListener) -> Result<TcpStream, Failure> {
    let (stream, _) = listener.accept().context("accepting the raw connection")?;
    stream.set_nodelay(true).context("TCP_NODELAY")?;
    Ok(stream)
}

/// Connects to the other end.
///
/// # Errors
/// The system said no.
pub fn connect(addr: SocketAddr) -> Result<TcpStream, Failure> {
    let stream = TcpStream::connect(addr).context(format_args!("connecting to {addr}"))?;
    stream.set_nodelay(true).context("TCP_NODELAY")?;
    Ok(stream)
}

/// Writes numbered messages of `size` bytes for `duration`, some at least, then the end mark; says how many.
///
/// # Errors
/// The connection failed.
pub fn flood(stream: &mut TcpStream, plan: Plan, size: usize, duration: Duration) -> Result<u64, Failure> {
    let prefix = u32::try_from(size).context("the size of a message")?.to_le_bytes();
    let deadline = Instant::now() + duration;
    let sent = match plan {
        Plan::Gather(bytes) => gather(stream, prefix, size, bytes, deadline),
        Plan::InPlace(bytes) => in_place(stream, prefix, size, bytes, deadline),
        Plan::Vectored => vectored(stream, prefix, size, deadline),
    };
    let sent = sent.context("writing to the raw connection")?;
    write_end(stream, sent)?;
    Ok(sent)
}

fn gather(stream: &mut TcpStream, prefix: [u8; PREFIX], size: usize, bytes: usize, until: Instant) -> io::Result<u64> {
    let (frame, every) = (PREFIX + size, clock_every(size));
    let message = vec![7; size];
    let mut buffer = vec![0; bytes.max(frame)];
    let (mut filled, mut sent) = (0, 0);
    while sent == 0 || Instant::now() < until {
        for _ in 0..every {
            if buffer.len() - filled < frame {
                stream.write_all(&buffer[..filled])?;
                filled = 0;
            }
            let (head, body) = buffer[filled..filled + frame].split_at_mut(PREFIX);
            head.copy_from_slice(&prefix);
            body.copy_from_slice(&message);
            number(body, sent);
            filled += frame;
            sent += 1;
        }
    }
    stream.write_all(&buffer[..filled])?;
    Ok(sent)
}

fn in_place(
    stream: &mut TcpStream,
    prefix: [u8; PREFIX],
    size: usize,
    bytes: usize,
    until: Instant,
) -> io::Result<u64> {
    let every = clock_every(size);
    let mut frame = vec![7; PREFIX + size];
    frame[..PREFIX].copy_from_slice(&prefix);
    let mut sent = 0;
    while sent == 0 || Instant::now() < until {
        for _ in 0..every {
            number(&mut frame[PREFIX..], sent);
            for piece in frame.chunks(bytes) {
                stream.write_all(piece)?;
            }
            sent += 1;
        }
    }
    Ok(sent)
}

fn vectored(stream: &mut TcpStream, prefix: [u8; PREFIX], size: usize, until: Instant) -> io::Result<u64> {
    let every = clock_every(size);
    let mut message = vec![7; size];
    let mut sent = 0;
    while sent == 0 || Instant::now() < until {
        for _ in 0..every {
            number(&mut message, sent);
            let mut parts: &mut [IoSlice<'_>] = &mut [IoSlice::new(&prefix), IoSlice::new(&message)];
            while !parts.is_empty() {
                match stream.write_vectored(parts) {
                    Ok(0) => return Err(ErrorKind::WriteZero.into()),
                    Ok(written) => IoSlice::advance_slices(&mut parts, written),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            sent += 1;
        }
    }
    Ok(sent)
}

/// Writes the end mark after `sent` messages.
///
/// # Errors
/// The connection failed.
pub fn write_end(stream: &mut TcpStream, sent: u64) -> Result<(), Failure> {
    let mut frame = [0; PREFIX + END_MARK];
    frame[..PREFIX].copy_from_slice(&(END_MARK as u32).to_le_bytes());
    frame[PREFIX..].copy_from_slice(&end_mark(sent));
    stream.write_all(&frame).context("writing to the raw connection")
}

/// The reading end and its buffer. Nothing is left in the buffer between two runs.
pub struct Reader {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Reader {
    /// Reads from `stream`.
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// Counts messages of `size` bytes until the end mark, asking for at most `read` bytes at a time.
    ///
    /// # Errors
    /// The connection failed or ended, or a frame is longer than any this program writes.
    pub fn count(&mut self, size: usize, read: usize) -> Result<Tally, Failure> {
        let mut checker = Checker::new(size);
        let sent = self.each_until_end(size, read, |payload, _| Ok(checker.take(payload)))?;
        Ok(checker.tally(sent))
    }

    /// Sends every message of `size` bytes back until the end mark.
    ///
    /// # Errors
    /// As [`Reader::count`].
    pub fn echo(&mut self, size: usize) -> Result<(), Failure> {
        let mut frame = vec![0; PREFIX + size];
        frame[..PREFIX].copy_from_slice(&u32::try_from(size).context("the size of a message")?.to_le_bytes());
        let mut checker = Checker::new(size);
        let sent = self.each_until_end(size, PREFIX + size, |payload, stream| {
            if let Some(sent) = checker.take(payload) {
                return Ok(Some(sent));
            }
            frame[PREFIX..].copy_from_slice(payload);
            stream.write_all(&frame).map(|()| None)
        })?;
        match checker.tally(sent) {
            tally if tally.is_clean() => Ok(()),
            tally => Err(Failure::new(format!("the raw connection is broken: {tally:?}"))),
        }
    }

    /// Hands each payload to `take` until that says how many were sent.
    fn each_until_end(
        &mut self,
        size: usize,
        read: usize,
        mut take: impl FnMut(&[u8], &mut TcpStream) -> io::Result<Option<u64>>,
    ) -> Result<u64, Failure> {
        let longest = size.max(END_MARK);
        // A frame and the length of the next: reading no further moves four bytes to the front, not half a frame.
        let whole = PREFIX + longest + PREFIX;
        let big = 2 * whole > read;
        let Self { stream, buffer } = self;
        buffer.resize(whole.max(read), 0);
        let (mut start, mut end) = (0, 0);
        loop {
            while let Some((head, rest)) = buffer[start..end].split_first_chunk() {
                let length = u32::from_le_bytes(*head) as usize;
                if length > longest {
                    return Err(Failure::new(format!("a frame of {length} bytes on the raw connection")));
                }
                let Some(payload) = rest.get(..length) else { break };
                start += PREFIX + length;
                if let Some(sent) = take(payload, stream).context("answering on the raw connection")? {
                    return if start == end { Ok(sent) } else { Err(Failure::new("bytes follow the raw end mark")) };
                }
            }
            buffer.copy_within(start..end, 0);
            (start, end) = (0, end - start);
            let until = if big { whole.min(end + read) } else { buffer.len() };
            match stream.read(&mut buffer[end..until]) {
                Ok(0) => return Err(Failure::new("the raw connection ended")),
                Ok(bytes) => end += bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("reading from the raw connection"),
            }
        }
    }
}

/// Asks and waits for the echo for `duration`, one message of `size` bytes at a time; says how long each took.
///
/// # Errors
/// The connection failed, or another message came back.
pub fn ping(stream: &mut TcpStream, size: usize, duration: Duration) -> Result<Histogram, Failure> {
    let mut times = Histogram::new()?;
    let mut frame = vec![7; PREFIX + size];
    frame[..PREFIX].copy_from_slice(&u32::try_from(size).context("the size of a message")?.to_le_bytes());
    let mut answer = vec![0; PREFIX + size];
    let mut sequence = 0;
    let mut asked = Instant::now();
    let deadline = asked + duration;
    while asked < deadline {
        number(&mut frame[PREFIX..], sequence);
        stream.write_all(&frame).context("writing to the raw connection")?;
        let mut filled = 0;
        while filled < answer.len() {
            match stream.read(&mut answer[filled..]) {
                Ok(0) => return Err(Failure::new("the raw connection ended")),
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("reading from the raw connection"),
            }
        }
        let answered = Instant::now();
        if number_of(&answer[PREFIX..]) != sequence {
            return Err(Failure::new("another message came back on the raw connection"));
        }
        times.record(answered - asked);
        sequence += 1;
        asked = answered;
    }
    write_end(stream, sequence)?;
    Ok(times)
}
