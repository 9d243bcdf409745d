//! Connections within one process, with faults on request: the deterministic test kit.
//!
//! Owns: the hub: which address is listened on, and what waits to be accepted there.
//! Threads: any; connections with faults have one thread `wire` each (see [`Faults`]).
//! Locks: the hub's, then released, then one listener's; never two at a time, and never across a system call that
//! waits. Blocks on: nothing here; the halves block on their socket.
//! Upholds: addresses mean something within one hub only; what waits to be accepted is bounded.
//!
//! Bytes travel over a pair of connected sockets, so that readiness, blocking, closing and full buffers are the
//! system's own and not imitated. Nothing leaves the process, and no port of the machine is taken.
//!
//! ```
//! use std::io::IoSlice;
//! use threadwire::transport::memory::{Faults, Memory};
//! use threadwire::transport::Transport;
//!
//! let hub = Memory::new();
//! let faults = Faults::new();
//! faults.towards_listener().set_cut_after(Some(3));
//!
//! let mut listener = hub.listen("127.0.0.1:0".parse()?)?;
//! let dialled = hub.with_faults(&faults).connect(listener.local_addr())?.establish()?;
//! let mut accepted = listener.accept()?.establish()?;
//! dialled.write.write(&[IoSlice::new(b"hello")])?;
//!
//! let (mut received, mut buffer) = (Vec::new(), [0; 16]);
//! while let Ok(n @ 1..) = accepted.read.read(&mut buffer) {
//!     received.extend_from_slice(&buffer[..n]);
//! }
//! assert_eq!(received, b"hel");
//! assert_eq!(faults.towards_listener().counts().cut, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod faults;
mod limits;
mod wire;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};
use std::sync::Arc;

use mio::event::Source;
use mio::net::UnixStream;

use self::limits::Limits;
use super::{Connection, Listener, PendingConnection, Transport, socket};
use crate::sync::Mutex;

pub use self::faults::{Direction, FaultCounts, Faults};

/// Connections that wait for [`Listener::accept`]; one more is refused.
const BACKLOG: usize = 512;

/// Where the ports that [`Memory`] picks start: those that systems leave to applications.
const FIRST_PORT: u16 = 49_152;

/// Connections within one process. A clone is another handle on the same hub.
///
/// An address is any [`SocketAddr`]; a listener on an unspecified address (`0.0.0.0`, `::`) is met under every address
/// of its family and port. What dials has the family's loopback address and a port of its own.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    hub: Arc<Hub>,
    faults: Option<Faults>,
}

impl Memory {
    /// A new hub, without listeners.
    pub fn new() -> Self {
        Self::default()
    }

    /// A handle on the same hub whose dials run through `faults`. What is dialled through other handles does not, also
    /// when it is accepted by a listener of this one.
    pub fn with_faults(&self, faults: &Faults) -> Self {
        Self { hub: Arc::clone(&self.hub), faults: Some(faults.clone()) }
    }
}

impl Transport for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn listen(&self, addr: SocketAddr) -> io::Result<Box<dyn Listener>> {
        let (bell, ring) = UnixStream::pair()?;
        let backlog = Arc::new(Backlog { queue: Mutex::new(Some(VecDeque::new())), ring });
        let addr = self.hub.listeners.lock().register(addr, Arc::clone(&backlog))?;
        Ok(Box::new(MemoryListener { hub: Arc::clone(&self.hub), addr, backlog, bell }))
    }

    fn connect(&self, addr: SocketAddr) -> io::Result<Box<dyn PendingConnection>> {
        let (backlog, local_addr) = self.hub.listeners.lock().find(addr)?;
        let (dialled, accepted, limits) = match &self.faults {
            None => {
                let (dialled, accepted) = UnixStream::pair()?;
                (dialled, accepted, (None, None))
            }
            Some(faults) => {
                let (dialled, accepted) = wire::start(faults, local_addr.port())?;
                (dialled, accepted, (Some(Limits::of_dialler(faults)), Some(Limits::of_listener(faults))))
            }
        };
        backlog.push(MemoryPending {
            stream: accepted,
            local_addr: addr,
            remote_addr: local_addr,
            limits: limits.1,
        })?;
        Ok(Box::new(MemoryPending { stream: dialled, local_addr, remote_addr: addr, limits: limits.0 }))
    }
}

/// What all handles of one address space share.
#[derive(Debug, Default)]
struct Hub {
    listeners: Mutex<Listeners>,
}

#[derive(Debug, Default)]
struct Listeners {
    by_addr: BTreeMap<SocketAddr, Arc<Backlog>>,
    /// Ports picked so far.
    picked: u16,
}

impl Listeners {
    /// The address it got, with a port picked for port 0.
    fn register(&mut self, mut addr: SocketAddr, backlog: Arc<Backlog>) -> io::Result<SocketAddr> {
        if addr.port() == 0 {
            let free = (0..=u16::MAX - FIRST_PORT).find_map(|_| {
                addr.set_port(self.pick_port());
                (!self.by_addr.contains_key(&addr)).then_some(addr)
            });
            addr = free.ok_or(ErrorKind::AddrNotAvailable)?;
        } else if self.by_addr.contains_key(&addr) {
            return Err(ErrorKind::AddrInUse.into());
        }
        self.by_addr.insert(addr, backlog);
        Ok(addr)
    }

    /// Who listens on `addr`, and an address for who dials it.
    fn find(&mut self, addr: SocketAddr) -> io::Result<(Arc<Backlog>, SocketAddr)> {
        let (any, loopback) = match addr.ip() {
            IpAddr::V4(_) => (IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv4Addr::LOCALHOST)),
            IpAddr::V6(_) => (IpAddr::from(Ipv6Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::LOCALHOST)),
        };
        let found = self.by_addr.get(&addr).or_else(|| self.by_addr.get(&SocketAddr::new(any, addr.port())));
        let backlog = Arc::clone(found.ok_or(ErrorKind::ConnectionRefused)?);
        Ok((backlog, SocketAddr::new(loopback, self.pick_port())))
    }

    /// The next port in turn; comes round after 16,384.
    fn pick_port(&mut self) -> u16 {
        let port = FIRST_PORT + self.picked;
        self.picked = (self.picked + 1) % (u16::MAX - FIRST_PORT + 1);
        port
    }
}

/// What waits to be accepted at one address.
struct Backlog {
    /// None once the listener is gone.
    queue: Mutex<Option<VecDeque<MemoryPending>>>,
    /// A byte written here is the listener's readiness.
    ring: UnixStream,
}

impl fmt::Debug for Backlog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Backlog({:?})", self.queue.lock().as_ref().map(VecDeque::len))
    }
}

impl Backlog {
    fn push(&self, pending: MemoryPending) -> io::Result<()> {
        match &mut *self.queue.lock() {
            Some(queue) if queue.len() < BACKLOG => queue.push_back(pending),
            // What was not queued is dropped after the lock, with the arguments.
            _ => return Err(ErrorKind::ConnectionRefused.into()),
        }
        // Fails when so many bytes wait there that the listener is ready anyway, or when it is gone.
        let _ = (&self.ring).write(&[1]);
        Ok(())
    }

    fn pop(&self) -> Option<MemoryPending> {
        self.queue.lock().as_mut()?.pop_front()
    }
}

struct MemoryListener {
    hub: Arc<Hub>,
    addr: SocketAddr,
    backlog: Arc<Backlog>,
    bell: UnixStream,
}

impl Listener for MemoryListener {
    fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    fn accept(&mut self) -> io::Result<Box<dyn PendingConnection>> {
        let next = self.backlog.pop().or_else(|| {
            // Reading the bell until it would block arms the next edge. A connection is queued before it rings: what
            // is not found after that rings later.
            let mut rings = [0; 64];
            while matches!(self.bell.read(&mut rings), Ok(1..)) {}
            self.backlog.pop()
        });
        match next {
            Some(pending) => Ok(Box::new(pending)),
            None => Err(ErrorKind::WouldBlock.into()),
        }
    }

    fn source(&mut self) -> &mut dyn Source {
        &mut self.bell
    }
}

impl Drop for MemoryListener {
    fn drop(&mut self) {
        self.hub.listeners.lock().by_addr.remove(&self.addr);
        // Bound to a name so that closing sockets happens after the lock.
        let unaccepted = self.backlog.queue.lock().take();
        drop(unaccepted);
    }
}

struct MemoryPending {
    stream: UnixStream,
    local_addr: SocketAddr,
    remote_addr: SocketAddr,
    limits: Option<Limits>,
}

impl PendingConnection for MemoryPending {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local_addr)
    }

    fn remote_addr(&self) -> SocketAddr {
        self.remote_addr
    }

    fn source(&mut self) -> &mut dyn Source {
        &mut self.stream
    }

    fn connected(&mut self) -> io::Result<bool> {
        Ok(true)
    }

    fn try_read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut stream = &self.stream;
        let mut read = |into: &mut [u8]| socket::retry(|| stream.read(into));
        match &self.limits {
            None => read(into),
            Some(limits) => limits.incoming.shortened_read(into, read),
        }
    }

    fn try_write(&mut self, from: &[u8]) -> io::Result<usize> {
        let write = |from: &[IoSlice<'_>]| socket::retry(|| socket::send(&self.stream, from, 0));
        let from = [IoSlice::new(from)];
        match &self.limits {
            None => write(&from),
            Some(limits) => limits.outgoing.shortened_write(&from, write),
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    fn establish(self: Box<Self>) -> io::Result<Connection> {
        let stream = std::os::unix::net::UnixStream::from(self.stream);
        stream.set_nonblocking(false)?;
        let connection = socket::split(stream, None, self.local_addr, self.remote_addr);
        Ok(match self.limits {
            None => connection,
            Some(limits) => limits.around(connection),
        })
    }
}
