//! A socket that listens: what peers connect to, and what scrapers do.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing: the socket is non-blocking.
//! Upholds: whatever listens for this library can be bound again at once after a restart, and an address of IPv6 takes
//! IPv6 alone: which addresses can be listened to together is the same for all of it (`config::overlap`).

use std::io;
use std::net::SocketAddr;

use mio::net::TcpListener;
use socket2::{Domain, Protocol, Socket, Type};

/// Binds a socket, for which the system keeps at most `backlog` connections ready; port 0 lets the system choose.
///
/// # Errors
/// The address is in use or not of this machine: choose another one.
pub(crate) fn bind(addr: SocketAddr, backlog: i32) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    // Without it a restarted process waits for the minutes its old connections spend in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        // Else `[::]` would take the port of `0.0.0.0` along, on systems that say so, and the two could not be listened to
        // together.
        let named = |error: io::Error| io::Error::new(error.kind(), format!("setting IPV6_V6ONLY: {error}"));
        socket.set_only_v6(true).map_err(named)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(backlog)?;
    Ok(TcpListener::from_std(socket.into()))
}
