//! What lies between the two ends of a connection with faults: a thread that carries the bytes, and may spoil them.
//!
//! Owns: the inner ends of two socket pairs, and what is in flight between them.
//! Threads: one `wire` per connection. Locks: none; asks each direction for its settings.
//! Blocks on: its poll, woken by both sockets, by the next delay that is over, and by every change of a setting.
//! Upholds: order; what is in flight is bounded; the thread ends when both directions have ended, whatever is stalled.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Read};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::UnixStream;
use mio::{Events, Interest, Poll, Token, Waker};

use super::faults::{Direction, Fault, Faults, Settings};
use crate::threads;
use crate::transport::socket;

/// Bytes in flight per direction above which nothing more is taken from the sender.
const IN_FLIGHT: usize = 256 * 1024;
/// Bytes taken from the sender at a time.
const TAKE: usize = 32 * 1024;
/// Stack of the thread.
const STACK: usize = 128 * 1024;

const DIALLER: Token = Token(0);
const LISTENER: Token = Token(1);
const CHANGED: Token = Token(2);

/// Starts the thread of a new connection: the dialler's end, then the listener's.
///
/// # Errors
/// Out of descriptors or threads.
pub(super) fn start(faults: &Faults, dialler_port: u16) -> io::Result<(UnixStream, UnixStream)> {
    let (dialler, mut dialler_side) = UnixStream::pair()?;
    let (listener, mut listener_side) = UnixStream::pair()?;
    let poll = Poll::new()?;
    let both = Interest::READABLE | Interest::WRITABLE;
    poll.registry().register(&mut dialler_side, DIALLER, both)?;
    poll.registry().register(&mut listener_side, LISTENER, both)?;
    let waker = Arc::new(Waker::new(poll.registry(), CHANGED)?);
    faults.attach(&waker);
    let wire = Wire {
        sides: [dialler_side, listener_side],
        gone: [false; 2],
        lanes: [Lane::new(&faults.towards_listener), Lane::new(&faults.towards_dialler)],
    };
    threads::spawn("wire", &dialler_port.to_string(), STACK, move || wire_loop(poll, wire, waker))?;
    Ok((dialler, listener))
}

/// The life of a wire. As long as `_alive` lives, the connection counts as one that is there.
fn wire_loop(mut poll: Poll, mut wire: Wire, _alive: Arc<Waker>) {
    let mut events = Events::with_capacity(8);
    let mut scratch = vec![0; TAKE];
    loop {
        let timeout = match wire.step(Instant::now(), &mut scratch) {
            // Looks at the poll also when bytes flow without end: that is where a side that is gone shows.
            Step::Moved => Some(Duration::ZERO),
            Step::Stuck(due) => due.map(|due| due.saturating_duration_since(Instant::now())),
            Step::Over => break,
        };
        match poll.poll(&mut events, timeout) {
            Err(error) if error.kind() != ErrorKind::Interrupted => {
                log::error!(target: "threadwire::transport", "memory transport: poll: {error}");
                break;
            }
            _ => {}
        }
        for event in events.iter().filter(|event| event.is_write_closed()) {
            match event.token() {
                DIALLER => wire.gone[0] = true,
                LISTENER => wire.gone[1] = true,
                _ => {}
            }
        }
    }
    // Both sides find the end before the connection stops to count as one that is there.
    drop(wire);
}

struct Wire {
    /// The dialler's and the listener's.
    sides: [UnixStream; 2],
    /// Nothing can be handed over to this side any more.
    gone: [bool; 2],
    /// From the dialler, from the listener.
    lanes: [Lane; 2],
}

/// What a step comes to, of a wire or of one direction.
enum Step {
    /// Something went on; there may be more.
    Moved,
    /// Nothing goes on until a socket is ready, a setting changes, or this moment comes.
    Stuck(Option<Instant>),
    /// The whole connection is over.
    Over,
}

impl Wire {
    /// Carries some bytes, in both directions.
    fn step(&mut self, now: Instant, scratch: &mut [u8]) -> Step {
        let (mut moved, mut next) = (false, None);
        for (from, to) in [(0, 1), (1, 0)] {
            match self.lanes[from].step(&self.sides[from], &self.sides[to], self.gone[to], now, scratch) {
                Step::Moved => moved = true,
                Step::Stuck(due) => next = [next, due].into_iter().flatten().min(),
                // A cut: the sockets are closed with the wire, and what they hold is lost.
                Step::Over => return Step::Over,
            }
        }
        if self.lanes.iter().all(|lane| lane.over) {
            Step::Over
        } else if moved {
            Step::Moved
        } else {
            Step::Stuck(next)
        }
    }
}

/// One direction of a wire.
struct Lane {
    direction: Arc<Direction>,
    flight: Flight,
    /// Bytes taken from the sender so far.
    taken: u64,
    /// Bytes handed over so far.
    given: u64,
    /// The `cut_now` that were for earlier connections.
    cuts: u64,
    /// This stall is counted already.
    stalled: bool,
    /// The end was handed over, or there is nobody to hand anything over to.
    over: bool,
}

impl Lane {
    fn new(direction: &Arc<Direction>) -> Self {
        Self {
            direction: Arc::clone(direction),
            flight: Flight::default(),
            taken: 0,
            given: 0,
            cuts: direction.settings().cuts,
            stalled: false,
            over: false,
        }
    }

    /// Takes some and hands over some. Readiness is edge-triggered: it is stuck only after a socket said so, or for a
    /// reason whose end wakes the poll.
    fn step(&mut self, from: &UnixStream, to: &UnixStream, gone: bool, now: Instant, scratch: &mut [u8]) -> Step {
        let settings = self.direction.settings();
        if settings.cuts != self.cuts || settings.cut_after.is_some_and(|bytes| bytes <= self.given) {
            self.direction.count(Fault::Cut);
            return Step::Over;
        }
        if self.over {
            return Step::Stuck(None);
        }
        if gone {
            return self.give_up(from);
        }
        let took = self.take(from, &settings, now, scratch);
        match self.give(from, to, &settings, now) {
            Step::Stuck(_) if took => Step::Moved,
            step => step,
        }
    }

    /// Takes bytes, or the end, from the sender; whether there was something.
    fn take(&mut self, mut from: &UnixStream, settings: &Settings, now: Instant, scratch: &mut [u8]) -> bool {
        let room = IN_FLIGHT.saturating_sub(self.flight.bytes).min(scratch.len());
        if room == 0 || self.flight.ended() {
            return false;
        }
        match socket::retry(|| from.read(&mut scratch[..room])) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            // An error is what a sender leaves behind that closed with unread input.
            Ok(0) | Err(_) => {
                self.flight.push_end(now, settings.delay);
                true
            }
            Ok(n) => {
                let bytes = &mut scratch[..n];
                self.corrupt(bytes, settings);
                self.taken += n as u64;
                self.flight.push(bytes, now, settings.delay);
                true
            }
        }
    }

    fn corrupt(&self, bytes: &mut [u8], settings: &Settings) {
        let at = settings.corrupt_at.and_then(|offset| Some((offset, offset.checked_sub(self.taken)?)));
        if let Some((offset, at)) = at
            && let Some(byte) = usize::try_from(at).ok().and_then(|at| bytes.get_mut(at))
        {
            self.direction.count(Fault::Corrupted);
            *byte ^= 1 << (offset % 8);
        }
    }

    /// Hands over bytes, or the end, to the receiver.
    fn give(&mut self, from: &UnixStream, to: &UnixStream, settings: &Settings, now: Instant) -> Step {
        if settings.stalled {
            if !self.flight.is_empty() && !self.stalled {
                self.stalled = true;
                self.direction.count(Fault::Stalled);
            }
            return Step::Stuck(None);
        }
        self.stalled = false;
        match self.flight.next(now) {
            None => Step::Stuck(None),
            Some(Next::Early(due)) => Step::Stuck(Some(due)),
            Some(Next::End) => {
                self.over = true;
                // It fails when the receiver is gone, and then it knows.
                let _ = to.shutdown(Shutdown::Write);
                Step::Moved
            }
            Some(Next::Bytes { bytes, delayed }) => {
                if delayed {
                    self.direction.count(Fault::Delayed);
                }
                let until_cut = settings.cut_after.map_or(u64::MAX, |at| at - self.given);
                let bytes = &bytes[..bytes.len().min(usize::try_from(until_cut).unwrap_or(usize::MAX))];
                match socket::retry(|| socket::send(to, &[IoSlice::new(bytes)], 0)) {
                    Ok(n) => {
                        self.flight.advance(n);
                        self.given += n as u64;
                        // Reaching the offset of the cut is found at the next step, before anything else.
                        Step::Moved
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => Step::Stuck(None),
                    Err(_) => self.give_up(from),
                }
            }
        }
    }

    /// Nobody is there to hand anything over to: the sender's writes fail from now on.
    fn give_up(&mut self, from: &UnixStream) -> Step {
        self.over = true;
        self.flight = Flight::default();
        // It fails when the sender is gone, and then it does not write.
        let _ = from.shutdown(Shutdown::Read);
        Step::Moved
    }
}

/// What was taken from the sender and not yet handed over, each run of bytes with the moment it is due.
#[derive(Debug, Default)]
struct Flight {
    runs: VecDeque<Run>,
    bytes: usize,
    /// The end follows the last run, and is due then.
    end: Option<Instant>,
}

#[derive(Debug)]
struct Run {
    bytes: Vec<u8>,
    /// Bytes of it handed over.
    given: usize,
    due: Instant,
    /// It has a delay that is not counted yet.
    delayed: bool,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
enum Next<'a> {
    Bytes {
        bytes: &'a [u8],
        /// These were held back; told once per run.
        delayed: bool,
    },
    Early(Instant),
    End,
}

impl Flight {
    fn push(&mut self, bytes: &[u8], now: Instant, delay: Duration) {
        self.bytes += bytes.len();
        self.runs.push_back(Run { bytes: bytes.to_vec(), given: 0, due: now + delay, delayed: !delay.is_zero() });
    }

    fn push_end(&mut self, now: Instant, delay: Duration) {
        self.end = Some(now + delay);
    }

    fn ended(&self) -> bool {
        self.end.is_some()
    }

    /// Nothing in flight, and no end.
    fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.end.is_none()
    }

    /// What comes next, if anything is in flight.
    fn next(&mut self, now: Instant) -> Option<Next<'_>> {
        match self.runs.front_mut() {
            Some(run) if run.due > now => Some(Next::Early(run.due)),
            Some(run) => {
                let delayed = std::mem::take(&mut run.delayed);
                Some(Next::Bytes { bytes: &run.bytes[run.given..], delayed })
            }
            None => self.end.map(|due| if due > now { Next::Early(due) } else { Next::End }),
        }
    }

    /// The first `n` bytes, all of the first run, were handed over.
    fn advance(&mut self, n: usize) {
        self.bytes -= n;
        if let Some(run) = self.runs.front_mut() {
            run.given += n;
            if run.given == run.bytes.len() {
                self.runs.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_flight_comes_in_order_and_never_before_it_is_due() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut flight = Flight::default();
        assert_eq!(flight.next(start), None);
        flight.push(b"late", start, Duration::from_millis(10));
        // The delay is taken away; what follows still waits behind what was delayed.
        flight.push(b"next", at(1), Duration::ZERO);
        flight.push_end(at(2), Duration::from_millis(20));
        assert_eq!(flight.bytes, 8);

        assert_eq!(flight.next(at(9)), Some(Next::Early(at(10))));
        assert_eq!(flight.next(at(10)), Some(Next::Bytes { bytes: b"late", delayed: true }));
        flight.advance(3);
        assert_eq!(flight.next(at(10)), Some(Next::Bytes { bytes: b"e", delayed: false }));
        flight.advance(1);
        assert_eq!(flight.next(at(10)), Some(Next::Bytes { bytes: b"next", delayed: false }));
        flight.advance(4);
        assert_eq!(flight.bytes, 0);
        assert_eq!(flight.next(at(21)), Some(Next::Early(at(22))));
        assert_eq!(flight.next(at(22)), Some(Next::End));
    }
}
