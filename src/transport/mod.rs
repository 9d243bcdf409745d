//! Byte streams between two nodes: the seam between sessions and sockets.
//!
//! Owns: nothing. Threads: `acceptor` until a connection is established, then one reader and one writer at a time.
//! Locks: none here. Blocks on: [`ReadHalf::read`] and [`WriteHalf::write`] only.
//! Upholds: a closed connection wakes both halves; a stream is non-blocking until [`PendingConnection::establish`].
//!
//! | trait | in the seeds |
//! |---|---|
//! | [`Transport`] | `NetTransport` |
//! | [`Listener`] | `NetListener` |
//! | [`PendingConnection`] | `NetIncomingRequest`, and the same for a dial under way |
//! | [`Connection`] | `NetConnection`, split into halves so that two threads can block on it |
//! | [`Identity`], [`Trust`] | `NetCredential`, and whom to trust |

use std::any::Any;
use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::sync::Arc;

use mio::event::Source;

use crate::error::CloseReason;
use crate::ident::PeerId;

/// A way to listen for and to dial connections.
pub trait Transport: Send + Sync + fmt::Debug + 'static {
    /// A short name for logs.
    fn name(&self) -> &'static str;

    /// Binds a non-blocking listener.
    ///
    /// # Errors
    /// The address cannot be bound.
    fn listen(&self, addr: SocketAddr) -> io::Result<Box<dyn Listener>>;

    /// Starts to dial without waiting for the result.
    ///
    /// # Errors
    /// The dial failed at once.
    fn connect(&self, addr: SocketAddr) -> io::Result<Box<dyn PendingConnection>>;

    /// Whether a connection with this proof would still be let in: trust may have changed since it was.
    fn trusts(&self, proof: &Proof) -> bool {
        let _ = proof;
        true
    }
}

/// Where connections come in.
pub trait Listener: Send {
    /// The bound address, with the port the system chose.
    fn local_addr(&self) -> SocketAddr;

    /// The next connection. Readiness is edge-triggered: call until `WouldBlock`.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; anything else is about the connection or the process, never a reason to stop
    /// accepting.
    fn accept(&mut self) -> io::Result<Box<dyn PendingConnection>>;

    /// What to register with a poll for readable events.
    fn source(&mut self) -> &mut dyn Source;
}

/// A connection before its session: accepted or being dialled, non-blocking, in one thread's hands.
pub trait PendingConnection: Send {
    /// Our end.
    ///
    /// # Errors
    /// The connection is gone.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// The other end.
    fn remote_addr(&self) -> SocketAddr;

    /// What to register with a poll for readable and writable events.
    fn source(&mut self) -> &mut dyn Source;

    /// Whether the dial is through: `Ok(false)` while it is under way. Always true of an accepted connection.
    ///
    /// # Errors
    /// The dial failed.
    fn connected(&mut self) -> io::Result<bool>;

    /// Says, before anything else, who must answer a dial.
    fn expect(&mut self, peer: PeerId) {
        let _ = peer;
    }

    /// Goes on towards a connection that carries bytes, as far as that goes without waiting. Call it at each event of
    /// the source and after [`PendingConnection::worked`], until it says [`Security::Open`]; then read and write.
    ///
    /// # Errors
    /// The connection is gone, or the two sides do not come together: [`Fault::of`] says which of them refuses, and why.
    /// What is still to be said of it is sent by [`PendingConnection::flush`].
    fn secure(&mut self) -> io::Result<Security> {
        Ok(Security::Open)
    }

    /// Takes the result of the work that [`PendingConnection::secure`] gave out.
    fn worked(&mut self, done: WorkDone) {
        drop(done);
    }

    /// What the other side has proven to the transport itself, once it is open; nothing over plain TCP. A transport says
    /// so at both ends or at neither: where it does, the handshake asks for no proof of its own, and believes that every
    /// byte comes from whoever has proven it.
    fn proof(&self) -> Option<Arc<Proof>> {
        None
    }

    /// Refuses in the transport's own words, where bytes cannot be said on it yet. False where they can.
    fn refuse(&mut self, reason: CloseReason) -> bool {
        let _ = reason;
        false
    }

    /// Reads what is there; 0 is the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock`, or the connection is gone.
    fn try_read(&mut self, into: &mut [u8]) -> io::Result<usize>;

    /// Writes what fits.
    ///
    /// # Errors
    /// `WouldBlock`, or the connection is gone.
    fn try_write(&mut self, from: &[u8]) -> io::Result<usize>;

    /// Sends on what was taken and is not with the system yet, and what the transport has to say itself; whether that is
    /// all of it.
    ///
    /// # Errors
    /// The connection is gone.
    fn flush(&mut self) -> io::Result<bool> {
        Ok(true)
    }

    /// Ends the stream towards the other side, after what was written.
    ///
    /// # Errors
    /// The connection is gone already.
    fn finish(&mut self) -> io::Result<()>;

    /// Becomes a blocking connection of two halves, once it is open. The caller has deregistered
    /// [`PendingConnection::source`].
    ///
    /// # Errors
    /// The connection is gone, or an option could not be set.
    fn establish(self: Box<Self>) -> io::Result<Connection>;
}

/// An established connection: one reader, one writer at a time, and somebody who may end it.
#[derive(Debug)]
pub struct Connection {
    /// For the receiver thread.
    pub read: Box<dyn ReadHalf>,
    /// For whoever holds the write token.
    pub write: Arc<dyn WriteHalf>,
    /// For anybody.
    pub closer: Arc<dyn Closer>,
    /// Our end.
    pub local_addr: SocketAddr,
    /// The other end.
    pub remote_addr: SocketAddr,
    /// What the other side has proven to the transport itself.
    pub proof: Option<Arc<Proof>>,
}

/// The receiving half.
pub trait ReadHalf: Send + fmt::Debug {
    /// Reads at least one byte; 0 is the end of the stream.
    ///
    /// # Errors
    /// The connection failed. `Interrupted` never comes out.
    ///
    /// # Blocking
    /// Until a byte arrives, the stream ends or [`Closer::close`] is called.
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize>;

    /// Whether the last reads left the transport something to say itself, as an answer to new keys: whoever writes must
    /// write, if only nothing. Told once.
    fn owes(&mut self) -> bool {
        false
    }
}

/// The sending half. Calls come from several threads, never two at a time.
pub trait WriteHalf: Send + Sync + fmt::Debug {
    /// Writes what fits without waiting, from the first slice on; possibly 0 bytes. What it takes may not be with the
    /// system yet: see [`WriteHalf::is_behind`].
    ///
    /// # Errors
    /// The connection failed. `WouldBlock` and `Interrupted` never come out: they are `Ok(0)`.
    fn try_write(&self, from: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Writes some of the bytes, at least one of them; of none, what it is [behind](WriteHalf::is_behind) with.
    ///
    /// # Errors
    /// The connection failed. `Interrupted` never comes out.
    ///
    /// # Blocking
    /// Until some bytes fit, or the connection ends.
    fn write(&self, from: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Whether bytes that were taken, or the transport's own, wait for the next write, if only of nothing.
    fn is_behind(&self) -> bool {
        false
    }

    /// From now on up to so many bytes are written at a time, because the connection takes them quickly, or no longer
    /// does. A transport that bounds what waits unsent lets as much of it wait: less would end each write in a pause.
    fn expect_writes_of(&self, bytes: usize);

    /// Ends the stream towards the other side, after what was written.
    ///
    /// # Errors
    /// The connection is gone already.
    fn finish(&self) -> io::Result<()>;
}

/// Ends a connection from any thread.
pub trait Closer: Send + Sync + fmt::Debug {
    /// Wakes whoever blocks in a read or a write; both fail or end from now on. Idempotent.
    fn close(&self);
}

/// How far a pending connection is.
#[derive(Debug)]
pub enum Security {
    /// The next event of the source brings it on.
    Wait,
    /// Have this run by a thread that serves nobody else, and give the result to [`PendingConnection::worked`].
    Work(Work),
    /// Bytes can be read and written.
    Open,
}

/// A step of a pending connection that costs time: arithmetic, nothing that waits.
#[must_use = "the connection waits for its result"]
pub struct Work(Box<dyn FnOnce() -> WorkDone + Send>);

/// What a [`Work`] came to.
#[must_use = "the connection waits for it"]
pub struct WorkDone(Box<dyn Any + Send>);

impl Work {
    /// A step whose result is a `T`.
    pub fn new<T: Send + 'static>(step: impl FnOnce() -> T + Send + 'static) -> Self {
        Self(Box::new(|| WorkDone(Box::new(step()))))
    }

    /// Does it.
    pub fn run(self) -> WorkDone {
        (self.0)()
    }
}

impl WorkDone {
    /// The result, if it is a `T`.
    pub fn into<T: Send + 'static>(self) -> Option<T> {
        self.0.downcast().ok().map(|result| *result)
    }
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Work")
    }
}

impl fmt::Debug for WorkDone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WorkDone")
    }
}

mod fault;
mod identity;
pub mod memory;
mod pem;
mod proof;
mod socket;
pub mod tcp;
#[cfg(feature = "tls")]
pub mod tls;
mod trust;

pub use fault::Fault;
pub(crate) use identity::sha256;
pub use identity::{Identity, KEY_FILE, peer_id_of, random_bytes, verify};
#[cfg(feature = "tls")]
pub(crate) use identity::{SPKI, spki_of};
pub use proof::Proof;
pub use trust::Trust;
pub(crate) use trust::Trusting;
