//! Where the proxy is dialled for one link: an address that stays its own while nobody listens there.
//!
//! Owns: the listener, and a socket that keeps the address. Threads: the proxy's. Locks: none. Blocks on: nothing.
//! Upholds: whoever dials a closed door is refused by the system.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;

/// A door, open or closed.
pub struct Door {
    addr: SocketAddr,
    /// Never listens: the system gives the address to nobody else meanwhile.
    _keeps_address: Socket,
    listener: Option<TcpListener>,
}

impl Door {
    /// A closed door, at an address that the system chooses.
    pub fn new() -> io::Result<Self> {
        let keeps = bound(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        let addr = keeps.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { addr, _keeps_address: keeps, listener: None })
    }

    /// Where it is.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Listens from now on.
    pub fn open(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let socket = bound(self.addr.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        let mut listener = TcpListener::from_std(socket.into());
        registry.register(&mut listener, token, Interest::READABLE)?;
        self.listener = Some(listener);
        Ok(())
    }

    /// Listens no more; whoever waits to be accepted is reset.
    pub fn close(&mut self) {
        self.listener = None;
    }

    /// The next one who dialled, if anybody has.
    pub fn accept(&self) -> io::Result<Option<TcpStream>> {
        let Some(listener) = &self.listener else { return Ok(None) };
        match listener.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn bound(addr: SockAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&addr)?;
    Ok(socket)
}
