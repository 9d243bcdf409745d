//! An address where nobody listens until the test has somebody listen there.

use std::net::SocketAddr;

use socket2::{Domain, SockAddr, Socket, Type};

/// Its port, which the system gives to nobody else as long as this is there.
pub struct Port {
    pub addr: SocketAddr,
    /// Bound, and it does not listen: whoever dials is refused, and a listener may be bound beside it.
    _held: Option<Socket>,
}

/// Where somebody listens later.
pub fn later() -> Port {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SockAddr::from(SocketAddr::from(([127, 0, 0, 1], 0)))).unwrap();
    let addr = socket.local_addr().unwrap().as_socket().unwrap();
    // Elsewhere a listener may not be bound beside it.
    Port { addr, _held: cfg!(target_os = "linux").then_some(socket) }
}
