//! TCP whose sockets buffer next to nothing, so that whoever writes waits for whoever reads.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;

use mio::event::Source;
use mio::net::{TcpListener, TcpStream};
use socket2::{Domain, SockRef, Socket, Type};
use threadwire::transport::{Closer, Connection, Listener, PendingConnection, ReadHalf, Transport, WriteHalf};

/// What each socket is asked to buffer, in each direction; the system doubles it for its own books.
pub const BUFFER: usize = 8 * 1024;

#[derive(Debug)]
pub struct Narrow;

fn socket() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_send_buffer_size(BUFFER)?;
    socket.set_recv_buffer_size(BUFFER)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

impl Transport for Narrow {
    fn name(&self) -> &'static str {
        "narrow"
    }

    fn listen(&self, addr: SocketAddr) -> io::Result<Box<dyn Listener>> {
        let socket = socket()?;
        socket.bind(&addr.into())?;
        socket.listen(8)?;
        Ok(Box::new(NarrowListener(TcpListener::from_std(socket.into()))))
    }

    fn connect(&self, addr: SocketAddr) -> io::Result<Box<dyn PendingConnection>> {
        let socket = socket()?;
        match socket.connect(&addr.into()) {
            Err(error) if error.kind() != ErrorKind::WouldBlock && error.raw_os_error() != Some(libc::EINPROGRESS) => {
                Err(error)
            }
            _ => Ok(Box::new(NarrowPending(TcpStream::from_std(socket.into()), addr))),
        }
    }
}

struct NarrowListener(TcpListener);

impl Listener for NarrowListener {
    fn local_addr(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    fn accept(&mut self) -> io::Result<Box<dyn PendingConnection>> {
        let (stream, addr) = self.0.accept()?;
        Ok(Box::new(NarrowPending(stream, addr)))
    }

    fn source(&mut self) -> &mut dyn Source {
        &mut self.0
    }
}

struct NarrowPending(TcpStream, SocketAddr);

impl PendingConnection for NarrowPending {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn remote_addr(&self) -> SocketAddr {
        self.1
    }

    fn source(&mut self) -> &mut dyn Source {
        &mut self.0
    }

    fn connected(&mut self) -> io::Result<bool> {
        Ok(self.0.peer_addr().is_ok())
    }

    fn try_read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }

    fn try_write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.0.write(from)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.0.shutdown(Shutdown::Write)
    }

    fn establish(self: Box<Self>) -> io::Result<Connection> {
        let stream = std::net::TcpStream::from(self.0);
        stream.set_nonblocking(false)?;
        // It doubles what was asked for; more would be another test.
        assert!(SockRef::from(&stream).send_buffer_size()? <= 2 * BUFFER);
        let (local_addr, stream) = (stream.local_addr()?, Arc::new(stream));
        Ok(Connection {
            read: Box::new(Half(stream.clone())),
            write: Arc::new(Half(stream.clone())),
            closer: Arc::new(Half(stream)),
            local_addr,
            remote_addr: self.1,
            proof: None,
        })
    }
}

#[derive(Debug)]
struct Half(Arc<std::net::TcpStream>);

impl ReadHalf for Half {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        (&*self.0).read(into)
    }
}

impl WriteHalf for Half {
    fn try_write(&self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        match SockRef::from(&*self.0).send_vectored_with_flags(from, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            result => result,
        }
    }

    fn write(&self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        SockRef::from(&*self.0).send_vectored_with_flags(from, libc::MSG_NOSIGNAL)
    }

    fn expect_writes_of(&self, _: usize) {}

    fn finish(&self) -> io::Result<()> {
        self.0.shutdown(Shutdown::Write)
    }
}

impl Closer for Half {
    fn close(&self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}
