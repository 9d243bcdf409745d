//! Connected pairs, and waiting for facts.

use std::io::{self, ErrorKind, IoSlice};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use mio::{Events, Interest, Poll, Token};
use threadwire::transport::{Connection, Listener, PendingConnection, ReadHalf, Security, Transport, WriteHalf};

/// How long a fact may take to come true: far above what it takes on a busy machine.
pub const LONG: Duration = Duration::from_secs(30);

/// How long something is watched that must not happen.
pub const MOMENT: Duration = Duration::from_millis(30);

const LISTENER: Token = Token(0);
const DIALLED: Token = Token(1);

pub fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// A dialled and an accepted connection, as a handshake finds them.
pub fn pending(
    transport: &dyn Transport,
    listener: &mut dyn Listener,
) -> (Box<dyn PendingConnection>, Box<dyn PendingConnection>) {
    let mut poll = Poll::new().unwrap();
    let mut dialled = transport.connect(listener.local_addr()).unwrap();
    poll.registry().register(listener.source(), LISTENER, Interest::READABLE).unwrap();
    poll.registry().register(dialled.source(), DIALLED, Interest::WRITABLE).unwrap();
    let (mut accepted, mut connected) = (None, false);
    while accepted.is_none() || !connected {
        wait_for_events(&mut poll);
        connected = connected || dialled.connected().unwrap();
        match listener.accept() {
            Ok(connection) => assert!(accepted.replace(connection).is_none(), "one dial, one connection"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    poll.registry().deregister(listener.source()).unwrap();
    poll.registry().deregister(dialled.source()).unwrap();
    let mut accepted = accepted.unwrap();
    secure(&mut *dialled, &mut *accepted);
    (dialled, accepted)
}

/// Brings both sides to where they carry bytes.
#[track_caller]
pub fn secure(dialled: &mut dyn PendingConnection, accepted: &mut dyn PendingConnection) {
    let (mut dialled_open, mut accepted_open) = (false, false);
    eventually("both sides are open", || {
        dialled_open = dialled_open || step(dialled).unwrap();
        accepted_open = accepted_open || step(accepted).unwrap();
        dialled_open && accepted_open && dialled.flush().unwrap() && accepted.flush().unwrap()
    });
}

/// Lets one side go on; whether it carries bytes.
pub fn step(side: &mut dyn PendingConnection) -> io::Result<bool> {
    loop {
        match side.secure() {
            Ok(Security::Open) => return Ok(true),
            Ok(Security::Wait) => return Ok(false),
            Ok(Security::Work(work)) => side.worked(work.run()),
            Err(error) => {
                // What it says of its failure is the other side's to hear.
                let _ = side.flush();
                return Err(error);
            }
        }
    }
}

/// Writes what a side is behind with, without waiting.
#[track_caller]
pub fn catch_up(write: &dyn WriteHalf) {
    eventually("what was taken is written", || {
        write.try_write(&[]).unwrap();
        !write.is_behind()
    });
}

/// A dialled and an accepted connection, established.
pub fn pair(transport: &dyn Transport) -> (Connection, Connection) {
    let mut listener = transport.listen(loopback()).unwrap();
    let (dialled, accepted) = pending(transport, &mut *listener);
    (dialled.establish().unwrap(), accepted.establish().unwrap())
}

/// Waits until the poll has something.
#[track_caller]
pub fn wait_for_events(poll: &mut Poll) -> Events {
    let mut events = Events::with_capacity(16);
    poll.poll(&mut events, Some(LONG)).unwrap();
    assert!(!events.is_empty(), "no readiness");
    events
}

/// Something that runs in a thread of its own, because it may block.
pub struct Running<T> {
    result: Receiver<T>,
}

#[expect(clippy::disallowed_methods, reason = "threads::spawn is not public; a test ends with its threads")]
pub fn run<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> Running<T> {
    let (done, result) = bounded(1);
    std::thread::spawn(move || {
        let _ = done.send(what());
    });
    Running { result }
}

impl<T> Running<T> {
    #[track_caller]
    pub fn end(self) -> T {
        match self.result.recv_timeout(LONG) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => panic!("it blocks for ever"),
            Err(RecvTimeoutError::Disconnected) => panic!("it panicked"),
        }
    }

    /// It blocks, as far as one can see.
    #[track_caller]
    pub fn assert_blocked(&self) {
        assert!(matches!(self.result.recv_timeout(MOMENT), Err(RecvTimeoutError::Timeout)), "it did not block");
    }
}

/// Makes a test of each function, that fails when it blocks for ever.
macro_rules! tests_that_end {
    ($($behaviour:ident)*) => {
        mod ends {
            $(#[test] fn $behaviour() { crate::support::run(super::$behaviour).end() })*
        }
    };
}
pub(crate) use tests_that_end;

/// Waits until `fact` holds.
#[track_caller]
pub fn eventually(what: &str, mut fact: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !fact() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::yield_now();
    }
}

/// Bytes that look random and are the same in every run.
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    bytes
}

pub fn write_all(write: &dyn WriteHalf, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = write.write(&[IoSlice::new(bytes)])?;
        assert!(n > 0, "a blocking write takes at least one byte");
        bytes = &bytes[n..];
    }
    Ok(())
}

/// Fills whatever lies between the two ends; how many bytes that took. Byte number i is `i % 251`.
pub fn fill(write: &dyn WriteHalf) -> usize {
    let pattern: Vec<u8> = (0..251 * 261).map(|i| (i % 251) as u8).collect();
    let mut taken = 0;
    loop {
        match write.try_write(&[IoSlice::new(&pattern[taken % 251..])]).unwrap() {
            0 => return taken,
            n => taken += n,
        }
        assert!(taken < 1 << 30, "it never fills");
    }
}

/// Exactly `len` bytes.
#[track_caller]
pub fn read_some(read: &mut dyn ReadHalf, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut filled = 0;
    while filled < len {
        match read.read(&mut bytes[filled..]).unwrap() {
            0 => panic!("the stream ended after {filled} of {len} bytes"),
            n => filled += n,
        }
    }
    bytes
}

/// Everything until the end, and the error if that was the end.
pub fn read_to_end(read: &mut dyn ReadHalf) -> (Vec<u8>, Option<io::Error>) {
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        match read.read(&mut buffer) {
            Ok(0) => return (bytes, None),
            Ok(n) => bytes.extend_from_slice(&buffer[..n]),
            Err(error) => return (bytes, Some(error)),
        }
    }
}
