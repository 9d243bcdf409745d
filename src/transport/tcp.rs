//! Plain TCP.
//!
//! Owns: listening sockets and sockets under way; established ones belong to their halves.
//! Threads: `acceptor` until [`PendingConnection::establish`], then the halves' own. Locks: that of its options, a leaf.
//! Blocks on: nothing here; the halves block on the socket.
//! Upholds: every accepted and every dialled socket has the options of [`TcpOptions`] before its first byte.
//!
//! A blocking write usually waits until the system has taken all bytes, not only some of them.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mio::event::Source;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::{Connection, Listener, PendingConnection, Transport, socket};
use crate::listener;
use crate::sync::Mutex;

/// Connections the system keeps ready for [`Listener::accept`]; it may keep fewer (`net.core.somaxconn`).
pub(crate) const BACKLOG: libc::c_int = 1024;

/// Unanswered keepalive probes after which a connection is given up.
const KEEPALIVE_RETRIES: u32 = 3;

/// Plain TCP: no encryption, and no proof of who is there beyond the handshake's.
///
/// One handle may listen and dial any number of times.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tcp {
    /// Set on every socket that is accepted or dialled.
    pub options: TcpOptions,
}

impl Tcp {
    /// TCP with these socket options.
    pub const fn new(options: TcpOptions) -> Self {
        Self { options }
    }
}

/// Options of every TCP socket. A platform without one of them goes without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TcpOptions {
    /// Send small segments at once (`TCP_NODELAY`) instead of waiting until earlier ones are acknowledged. Sessions
    /// batch on their own, so that waiting only costs latency. Default: true.
    pub nodelay: bool,
    /// Time without a byte after which the system asks the other side whether it is there (`SO_KEEPALIVE`,
    /// `TCP_KEEPIDLE`); counted in whole seconds, 1 to 32,767. It asks again at a third of this time, and gives the
    /// connection up after three unanswered probes, that is at twice this time. `None`: never asked. Default: 15 s.
    pub keepalive: Option<Duration>,
    /// Time that written bytes may stay unacknowledged before the connection is given up (`TCP_USER_TIMEOUT`); counted
    /// in milliseconds. It also bounds keepalive's. `None` or zero: the system's choice, many minutes. Linux and
    /// Android only. Default: 30 s.
    pub user_timeout: Option<Duration>,
    /// Bytes the system takes ahead of what it has sent (`TCP_NOTSENT_LOWAT`). Small means that a byte written now
    /// waits behind few others; a second of what the connection carries would be a second of waiting. `None`: the
    /// system's choice, often megabytes. While a session finds its connection fast, 1 MiB may wait. Linux and Android only. Default: 131,072 (128 KiB).
    pub notsent_low_water_mark: Option<u32>,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self {
            nodelay: true,
            keepalive: Some(Duration::from_secs(15)),
            user_timeout: Some(Duration::from_secs(30)),
            notsent_low_water_mark: Some(128 * 1024),
        }
    }
}

impl TcpOptions {
    fn set_on(&self, socket: &Socket) -> io::Result<()> {
        socket.set_tcp_nodelay(self.nodelay).map_err(|error| named("TCP_NODELAY", &error))?;
        if let Some(idle) = self.keepalive {
            socket.set_tcp_keepalive(&keepalive(idle)).map_err(|error| named("SO_KEEPALIVE", &error))?;
        }
        #[cfg(any(target_os = "linux", target_os = "android"))]
        {
            if let Some(timeout) = self.user_timeout {
                socket.set_tcp_user_timeout(Some(timeout)).map_err(|error| named("TCP_USER_TIMEOUT", &error))?;
            }
            if let Some(bytes) = self.notsent_low_water_mark {
                socket.set_tcp_notsent_lowat(bytes).map_err(|error| named("TCP_NOTSENT_LOWAT", &error))?;
            }
        }
        Ok(())
    }
}

impl Transport for Tcp {
    fn name(&self) -> &'static str {
        "tcp"
    }

    fn listen(&self, addr: SocketAddr) -> io::Result<Box<dyn Listener>> {
        LiveTcp::new(self.options).listen(addr)
    }

    fn connect(&self, addr: SocketAddr) -> io::Result<Box<dyn PendingConnection>> {
        Ok(Box::new(TcpPending::dial(addr, &self.options)?))
    }
}

/// TCP whose options may change: connections that begin from then on have the new ones. A clone is another handle on the
/// same one.
#[derive(Debug, Clone)]
pub(crate) struct LiveTcp(Arc<Mutex<TcpOptions>>);

impl LiveTcp {
    /// These options, to begin with.
    pub(crate) fn new(options: TcpOptions) -> Self {
        Self(Arc::new(Mutex::new(options)))
    }

    /// These from now on.
    pub(crate) fn set(&self, options: TcpOptions) {
        *self.0.lock() = options;
    }

    fn options(&self) -> TcpOptions {
        *self.0.lock()
    }
}

impl Transport for LiveTcp {
    fn name(&self) -> &'static str {
        "tcp"
    }

    fn listen(&self, addr: SocketAddr) -> io::Result<Box<dyn Listener>> {
        let listener = listener::bind(addr, BACKLOG)?;
        let local_addr = listener.local_addr()?;
        Ok(Box::new(TcpAcceptor { listener, local_addr, options: self.clone() }))
    }

    fn connect(&self, addr: SocketAddr) -> io::Result<Box<dyn PendingConnection>> {
        Ok(Box::new(TcpPending::dial(addr, &self.options())?))
    }
}

struct TcpAcceptor {
    listener: mio::net::TcpListener,
    local_addr: SocketAddr,
    options: LiveTcp,
}

impl TcpAcceptor {
    fn accept_one(&self) -> io::Result<TcpPending> {
        let (stream, remote_addr) = socket::retry(|| self.listener.accept())?;
        // Linux hands the listener's options on, other systems do not.
        let options = self.options.options();
        options.set_on(&SockRef::from(&stream))?;
        Ok(TcpPending { stream, remote_addr, connected: true, unsent: options.notsent_low_water_mark })
    }
}

impl Listener for TcpAcceptor {
    fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    fn accept(&mut self) -> io::Result<Box<dyn PendingConnection>> {
        Ok(Box::new(self.accept_one()?))
    }

    fn source(&mut self) -> &mut dyn Source {
        &mut self.listener
    }
}

struct TcpPending {
    stream: mio::net::TcpStream,
    remote_addr: SocketAddr,
    connected: bool,
    /// Bytes that may wait unsent, if the options say.
    unsent: Option<u32>,
}

impl TcpPending {
    fn dial(addr: SocketAddr, options: &TcpOptions) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        // Before the dial: macOS refuses options on a socket that was reset meanwhile.
        options.set_on(&socket)?;
        match socket.connect(&addr.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
            _ => {
                let stream = mio::net::TcpStream::from_std(socket.into());
                Ok(Self { stream, remote_addr: addr, connected: false, unsent: options.notsent_low_water_mark })
            }
        }
    }

    fn into_blocking(self) -> io::Result<std::net::TcpStream> {
        let stream = std::net::TcpStream::from(self.stream);
        stream.set_nonblocking(false)?;
        Ok(stream)
    }
}

impl PendingConnection for TcpPending {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    fn remote_addr(&self) -> SocketAddr {
        self.remote_addr
    }

    fn source(&mut self) -> &mut dyn Source {
        &mut self.stream
    }

    fn connected(&mut self) -> io::Result<bool> {
        if self.connected {
            return Ok(true);
        }
        if let Some(error) = self.stream.take_error()? {
            return Err(error);
        }
        match self.stream.peer_addr() {
            Ok(peer) if self.stream.local_addr()? == peer => {
                // Dialling a port nobody listens on can meet itself when the system picks that very port for our end.
                // Kept open, it would also keep the port from the process that should listen there.
                Err(io::Error::new(ErrorKind::ConnectionRefused, "the dial met itself: nobody listens there"))
            }
            Ok(_) => {
                self.connected = true;
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::NotConnected => Ok(false),
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn try_read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        socket::retry(|| self.stream.read(into))
    }

    fn try_write(&mut self, from: &[u8]) -> io::Result<usize> {
        socket::retry(|| self.stream.write(from))
    }

    fn finish(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    fn establish(self: Box<Self>) -> io::Result<Connection> {
        let (unsent, local_addr, remote_addr) = (self.unsent, self.stream.local_addr()?, self.remote_addr);
        Ok(socket::split(self.into_blocking()?, unsent, local_addr, remote_addr))
    }
}

fn keepalive(idle: Duration) -> TcpKeepalive {
    // The system counts seconds, and takes 0 for a mistake.
    let second = Duration::from_secs(1);
    TcpKeepalive::new()
        .with_time(idle.max(second))
        .with_interval((idle / KEEPALIVE_RETRIES).max(second))
        .with_retries(KEEPALIVE_RETRIES)
}

/// An option's error says which option it is about.
fn named(option: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("setting {option}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// A dialled and an accepted socket with these options, both after becoming blocking.
    fn established(options: TcpOptions) -> [std::net::TcpStream; 2] {
        let addr = "127.0.0.1:0".parse().unwrap();
        let listener = std::net::TcpListener::bind::<SocketAddr>(addr).unwrap();
        listener.set_nonblocking(true).unwrap();
        let local_addr = listener.local_addr().unwrap();
        let listener = mio::net::TcpListener::from_std(listener);
        let acceptor = TcpAcceptor { listener, local_addr, options: LiveTcp::new(options) };
        let mut dialled = TcpPending::dial(local_addr, &options).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let accepted = loop {
            match acceptor.accept_one() {
                Ok(accepted) => break accepted,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            assert!(Instant::now() < deadline, "the dial did not come in");
        };
        while !dialled.connected().unwrap() {
            assert!(Instant::now() < deadline, "the dial did not get through");
        }
        [dialled.into_blocking().unwrap(), accepted.into_blocking().unwrap()]
    }

    #[test]
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn more_may_wait_unsent_while_more_is_written_at_a_time_if_that_is_bounded_at_all() {
        let addr = SocketAddr::from(([127, 0, 0, 1], 1));
        for (mark, after) in [(Some(54_321), [54_321, 1_000_000, 54_321]), (None, [0; 3])] {
            let options = TcpOptions { notsent_low_water_mark: mark, ..TcpOptions::default() };
            let [socket, _other] = established(options);
            let same = socket.try_clone().unwrap();
            let fresh = SockRef::from(&same).tcp_notsent_lowat().unwrap();
            let write = socket::split(socket, mark, addr, addr).write;
            for (bytes, after) in [1_000, 1_000_000, 1_000].into_iter().zip(after) {
                write.expect_writes_of(bytes);
                let expected = if mark.is_some() { after } else { fresh };
                assert_eq!(SockRef::from(&same).tcp_notsent_lowat().unwrap(), expected);
            }
        }
    }

    #[test]
    fn dialled_and_accepted_sockets_have_every_option() {
        let options = TcpOptions {
            nodelay: true,
            keepalive: Some(Duration::from_secs(21)),
            user_timeout: Some(Duration::from_millis(12_345)),
            notsent_low_water_mark: Some(54_321),
        };
        for stream in established(options) {
            let socket = SockRef::from(&stream);
            assert!(socket.tcp_nodelay().unwrap());
            assert!(socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(21));
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(7));
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
            #[cfg(any(target_os = "linux", target_os = "android"))]
            {
                assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_millis(12_345)));
                assert_eq!(socket.tcp_notsent_lowat().unwrap(), 54_321);
            }
        }
    }

    #[test]
    fn options_that_change_are_those_of_connections_that_begin_then() {
        let live = LiveTcp::new(TcpOptions::default());
        let listener = std::net::TcpListener::bind::<SocketAddr>("127.0.0.1:0".parse().unwrap()).unwrap();
        let local_addr = listener.local_addr().unwrap();
        let listener = mio::net::TcpListener::from_std(listener);
        let acceptor = TcpAcceptor { listener, local_addr, options: live.clone() };
        let keepalives = || {
            let dialled = TcpPending::dial(local_addr, &live.options()).unwrap();
            let accepted = acceptor.accept_one().unwrap();
            [dialled, accepted].map(|pending| (SockRef::from(&pending.stream).keepalive().unwrap(), pending))
        };
        let before = keepalives();
        live.set(TcpOptions { keepalive: None, ..TcpOptions::default() });
        let after = keepalives();
        for ((before, pending), (after, _)) in before.into_iter().zip(after) {
            assert!(before && !after && SockRef::from(&pending.stream).keepalive().unwrap());
        }
    }

    #[test]
    fn the_default_options_are_those_of_the_documentation() {
        for stream in established(TcpOptions::default()) {
            let socket = SockRef::from(&stream);
            assert!(socket.tcp_nodelay().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(15));
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(5));
            #[cfg(any(target_os = "linux", target_os = "android"))]
            {
                assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(30)));
                assert_eq!(socket.tcp_notsent_lowat().unwrap(), 128 * 1024);
            }
        }
    }

    #[test]
    fn options_that_are_none_are_left_to_the_system() {
        let fresh = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        let options = TcpOptions { nodelay: false, keepalive: None, user_timeout: None, notsent_low_water_mark: None };
        for stream in established(options) {
            let socket = SockRef::from(&stream);
            assert!(!socket.tcp_nodelay().unwrap());
            assert!(!socket.keepalive().unwrap());
            #[cfg(any(target_os = "linux", target_os = "android"))]
            {
                assert_eq!(socket.tcp_user_timeout().unwrap(), fresh.tcp_user_timeout().unwrap());
                assert_eq!(socket.tcp_notsent_lowat().unwrap(), fresh.tcp_notsent_lowat().unwrap());
            }
        }
    }

    #[test]
    fn both_wildcards_can_be_listened_to_at_one_port() {
        let v4 = Tcp::default().listen("0.0.0.0:0".parse().unwrap()).unwrap();
        let port = v4.local_addr().port();
        match Tcp::default().listen(SocketAddr::new("::".parse().unwrap(), port)) {
            Ok(v6) => assert_eq!(v6.local_addr().port(), port),
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                println!("skipped: no IPv6 here: {error}")
            }
            Err(error) => panic!("listening to both wildcards: {error}"),
        }
    }

    #[test]
    fn a_keepalive_below_a_second_is_a_second() {
        let options = TcpOptions { keepalive: Some(Duration::from_millis(20)), ..TcpOptions::default() };
        for stream in established(options) {
            let socket = SockRef::from(&stream);
            assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(1));
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(1));
        }
    }

    #[test]
    fn a_dial_that_meets_itself_is_refused() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        let addr = socket.local_addr().unwrap();
        socket.connect(&addr).unwrap();
        let stream = mio::net::TcpStream::from_std(socket.into());
        let mut pending = TcpPending { stream, remote_addr: addr.as_socket().unwrap(), connected: false, unsent: None };
        assert_eq!(pending.connected().unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }

    #[test]
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn an_option_the_system_refuses_is_named() {
        let options = TcpOptions { keepalive: Some(Duration::from_secs(100_000)), ..TcpOptions::default() };
        let error = TcpPending::dial("127.0.0.1:9".parse().unwrap(), &options).err().unwrap();
        assert!(error.to_string().contains("SO_KEEPALIVE"), "{error}");
    }
}
