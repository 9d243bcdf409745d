//! The blocking halves of a connection over any stream socket of the system.
//!
//! Owns: the established socket, shared by its two halves. Threads: the halves' and whoever closes. Locks: none.
//! Blocks on: the socket, in `read` and `write`.
//! Upholds: an interrupted call never comes out; a broken pipe is an error and never a signal; the socket is closed
//! when both halves are gone, however long somebody keeps the closer.

use std::fmt;
use std::io::{self, ErrorKind, IoSlice, Read};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};

use socket2::SockRef;

use super::{Closer, Connection, ReadHalf, WriteHalf};

/// The most slices one system call takes (`IOV_MAX` of Linux, macOS and the BSDs); more is an error there.
const MAX_SLICES: usize = 1024;

/// Splits a blocking socket into the halves of a connection.
///
/// `unsent` is how many bytes the system lets wait unsent (`TCP_NOTSENT_LOWAT`), if it was told; more while more are
/// written at a time.
pub(super) fn split<S>(socket: S, unsent: Option<u32>, local_addr: SocketAddr, remote_addr: SocketAddr) -> Connection
where
    S: AsFd + fmt::Debug + Send + Sync + 'static,
    for<'s> &'s S: Read,
{
    let socket = Arc::new(socket);
    Connection {
        read: Box::new(SocketReader { socket: Arc::clone(&socket) }),
        closer: Arc::new(SocketCloser { socket: Arc::downgrade(&socket) }),
        write: Arc::new(SocketWriter { socket, unsent }),
        local_addr,
        remote_addr,
        proof: None,
    }
}

#[derive(Debug)]
struct SocketReader<S> {
    socket: Arc<S>,
}

impl<S> ReadHalf for SocketReader<S>
where
    S: fmt::Debug + Send + Sync,
    for<'s> &'s S: Read,
{
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut socket = &*self.socket;
        retry(|| socket.read(into))
    }
}

#[derive(Debug)]
struct SocketWriter<S> {
    socket: Arc<S>,
    unsent: Option<u32>,
}

impl<S: AsFd + fmt::Debug + Send + Sync> WriteHalf for SocketWriter<S> {
    fn try_write(&self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        match send(&*self.socket, from, libc::MSG_DONTWAIT) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
            result => result,
        }
    }

    fn write(&self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        retry(|| send(&*self.socket, from, 0))
    }

    fn expect_writes_of(&self, bytes: usize) {
        let Some(unsent) = self.unsent else { return };
        #[cfg_attr(
            not(any(target_os = "linux", target_os = "android")),
            expect(unused_variables, reason = "no option")
        )]
        let bytes = unsent.max(u32::try_from(bytes).unwrap_or(u32::MAX));
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if let Err(error) = SockRef::from(&*self.socket).set_tcp_notsent_lowat(bytes) {
            // It stays as it was, which is slower and nothing worse; a connection that is gone says so elsewhere.
            log::debug!(target: "threadwire::transport", "setting TCP_NOTSENT_LOWAT: {error}");
        }
    }

    fn finish(&self) -> io::Result<()> {
        SockRef::from(&*self.socket).shutdown(Shutdown::Write)
    }
}

/// Holds the socket weakly: a closer kept in some table must not keep a connection open whose halves are gone.
#[derive(Debug)]
struct SocketCloser<S> {
    socket: Weak<S>,
}

impl<S: AsFd + fmt::Debug + Send + Sync> Closer for SocketCloser<S> {
    fn close(&self) {
        if let Some(socket) = self.socket.upgrade() {
            // It fails when the connection is gone already, which is what is asked for.
            let _ = SockRef::from(&*socket).shutdown(Shutdown::Both);
        }
    }
}

/// One vectored send. Not `writev`, which in a program that left SIGPIPE at its default would end the process.
pub(super) fn send(socket: &impl AsFd, from: &[IoSlice<'_>], flags: libc::c_int) -> io::Result<usize> {
    // Empty slices at the front could fill the whole call, and its 0 bytes would look like no progress.
    let first = from.iter().position(|slice| !slice.is_empty()).unwrap_or(from.len());
    let from = &from[first..];
    let from = &from[..from.len().min(MAX_SLICES)];
    if let [one] = from {
        // The system checks and copies a list of slices more slowly than one buffer.
        return SockRef::from(socket).send_with_flags(one, flags | libc::MSG_NOSIGNAL);
    }
    SockRef::from(socket).send_vectored_with_flags(from, flags | libc::MSG_NOSIGNAL)
}

/// Calls again when a signal interrupted the call.
pub(super) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
