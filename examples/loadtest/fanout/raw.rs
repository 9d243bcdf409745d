//! The same bytes to many raw sockets: the strongest way we know to write them, and one thread that reads them all.
//!
//! Owns: one end of every connection. Threads: the measuring thread writes; the other end's thread reads. Locks: none.
//! Blocks on: the sockets at the writing end, the poll at the reading end.
//! Upholds: a buffer is filled once for all sockets, which no library with a queue for each peer can do; everything that
//! is read is parsed in place and checked.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::baseline::Run;
use crate::checker::{Checker, END_MARK, Tally, number};
use crate::failure::{Context, Failure};
use crate::raw;

/// Bytes in front of each message.
const PREFIX: usize = 4;
/// Bytes of a read.
const READ: usize = 256 << 10;

/// The reading ends.
pub struct Readers {
    poll: Poll,
    readers: Vec<Reader>,
}

struct Reader {
    stream: TcpStream,
    /// The beginning of a frame whose end has not come.
    rest: Vec<u8>,
}

impl Readers {
    /// Accepts so many connections.
    ///
    /// # Errors
    /// The system said no.
    pub fn accept(listener: &TcpListener, count: usize) -> Result<Self, Failure> {
        let poll = Poll::new().context("making a poll")?;
        let mut readers = Vec::with_capacity(count);
        for n in 0..count {
            let stream = raw::accept(listener)?;
            stream.set_nonblocking(true).context("a socket that does not block")?;
            let mut stream = TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(n), Interest::READABLE).context("polling a raw connection")?;
            readers.push(Reader { stream, rest: Vec::new() });
        }
        Ok(Self { poll, readers })
    }

    /// Reads messages of `size` bytes until every connection has had its end mark.
    ///
    /// # Errors
    /// A connection failed or ended, or said something that is no frame of this program.
    pub fn count(&mut self, size: usize) -> Result<Tally, Failure> {
        let mut events = Events::with_capacity(1024);
        let mut checkers: Vec<Checker> = self.readers.iter().map(|_| Checker::new(size)).collect();
        let (mut buffer, mut total, mut open) = (vec![0; READ], Tally::default(), self.readers.len());
        while open > 0 {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error).context("polling"),
                _ => {}
            }
            for event in &events {
                let n = event.token().0;
                let (Some(reader), Some(checker)) = (self.readers.get_mut(n), checkers.get_mut(n)) else { continue };
                if let Some(sent) = reader.read(checker, &mut buffer).context("reading a raw connection")? {
                    total.add(&checker.tally(sent));
                    open -= 1;
                }
            }
        }
        Ok(total)
    }
}

impl Reader {
    /// Reads what there is; for the end mark, says how many messages were sent.
    fn read(&mut self, checker: &mut Checker, buffer: &mut [u8]) -> io::Result<Option<u64>> {
        loop {
            let kept = self.rest.len();
            buffer[..kept].copy_from_slice(&self.rest);
            let filled = match self.stream.read(&mut buffer[kept..]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => kept + bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let (mut start, mut end) = (0, None);
            while let Some((head, rest)) = buffer[start..filled].split_first_chunk()
                && let Some(payload) = rest.get(..u32::from_le_bytes(*head) as usize)
            {
                end = end.or(checker.take(payload));
                start += PREFIX + payload.len();
            }
            self.rest.clear();
            self.rest.extend_from_slice(&buffer[start..filled]);
            if self.rest.len() > READ / 2 {
                return Err(io::Error::new(ErrorKind::InvalidData, "a frame longer than any that is written"));
            }
            if end.is_some() {
                return Ok(end);
            }
        }
    }
}

/// The writing ends.
pub struct Writers {
    streams: Vec<std::net::TcpStream>,
    /// Bytes that are gathered before they are written to each.
    pub gather: usize,
}

impl Writers {
    /// Connects so many times.
    ///
    /// # Errors
    /// The system said no.
    pub fn connect(addr: SocketAddr, count: usize) -> Result<Self, Failure> {
        let streams = (0..count).map(|_| raw::connect(addr)).collect::<Result<_, _>>()?;
        Ok(Self { streams, gather: 0 })
    }

    /// Writes numbered messages of `size` bytes to all for `duration`, then the end mark; says how many to each.
    ///
    /// # Errors
    /// A connection failed.
    pub fn flood(&mut self, size: usize, duration: Duration) -> Result<u64, Failure> {
        let frame = PREFIX + size;
        let mut buffer = vec![7; frame * (self.gather / frame).max(1)];
        let (deadline, mut sent) = (Instant::now() + duration, 0);
        while sent == 0 || Instant::now() < deadline {
            for place in buffer.chunks_exact_mut(frame) {
                let (head, body) = place.split_at_mut(PREFIX);
                head.copy_from_slice(&(size as u32).to_le_bytes());
                // The whole message, as whoever has one to send would copy it.
                body.fill(7);
                number(body, sent);
                sent += 1;
            }
            for stream in &mut self.streams {
                stream.write_all(&buffer).context("writing to a raw connection")?;
            }
        }
        for stream in &mut self.streams {
            raw::write_end(stream, sent)?;
        }
        Ok(sent)
    }
}

/// One side of a round, all receivers together.
pub fn check(run: &Run, sent: u64, count: usize) -> Result<(), Failure> {
    if run.tally.is_clean() && run.tally.received == sent * count as u64 {
        Ok(())
    } else {
        Err(Failure::new(format!("the raw connections are broken: {:?} of {sent} to {count}", run.tally)))
    }
}

// A frame and the beginning of the next fit a read.
const _: () = assert!(END_MARK < READ / 2);
