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

use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::sync::Arc;

use mio::event::Source;

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

    /// Ends the stream towards the other side, after what was written.
    ///
    /// # Errors
    /// The connection is gone already.
    fn finish(&mut self) -> io::Result<()>;

    /// Becomes a blocking connection of two halves. The caller has deregistered [`PendingConnection::source`].
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
}

/// The sending half. Calls come from several threads, never two at a time.
pub trait WriteHalf: Send + Sync + fmt::Debug {
    /// Writes what fits without waiting, from the first slice on; possibly 0 bytes.
    ///
    /// # Errors
    /// The connection failed. `WouldBlock` and `Interrupted` never come out: they are `Ok(0)`.
    fn try_write(&self, from: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Writes some of the bytes, at least one of them.
    ///
    /// # Errors
    /// The connection failed. `Interrupted` never comes out.
    ///
    /// # Blocking
    /// Until some bytes fit, or the connection ends.
    fn write(&self, from: &[IoSlice<'_>]) -> io::Result<usize>;

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

pub mod memory;
mod socket;
pub mod tcp;
