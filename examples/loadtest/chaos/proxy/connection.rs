//! One connection through the proxy: two sockets, and what is on its way between them.
//!
//! Owns: both sockets and what was read and not yet written. Threads: the proxy's. Locks: none. Blocks on: nothing.
//! Upholds: bytes pass unchanged and in order up to the byte that a fault is put at; that byte is held when the fault
//! happens, and is the only one ever altered.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use socket2::SockRef;

use super::scanner::Scanner;
use crate::chaos::plan::{LinkFault, Way};

/// How much is read at once, and so held at most, in each direction.
const HELD: usize = 64 * 1024;

/// Two sockets of one link.
pub struct Connection {
    /// Which link it belongs to.
    pub link: usize,
    /// A fault was begun on it: it is to have no other one.
    pub spent: bool,
    dialler: TcpStream,
    target: TcpStream,
    up: Flow,
    down: Flow,
    /// The target has answered.
    open: bool,
    stalled: bool,
    told_attached: bool,
}

/// What has come of serving a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing: wait for more events.
    Keep,
    /// Both sides have attached just now.
    Attached,
    /// The byte is held that the planned fault is put at.
    Due(Way),
    /// Both directions have ended.
    Over,
}

/// What a fault found under way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InFlight {
    /// Bytes the proxy had read and not written.
    pub held: u64,
    /// Numbered frames that it had seen, and no acknowledgement for; under TLS records of messages, and none back.
    pub frames: u64,
}

impl Connection {
    /// Dials the target, and registers both sockets under this token. `secure`: they will speak TLS.
    pub fn open(
        link: usize,
        mut dialler: TcpStream,
        target: SocketAddr,
        secure: bool,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Self> {
        let mut target = TcpStream::connect(target)?;
        dialler.set_nodelay(true)?;
        let both = Interest::READABLE | Interest::WRITABLE;
        registry.register(&mut dialler, token, both)?;
        registry.register(&mut target, token, both)?;
        let (up, down) = (Flow::new(secure, Way::Up), Flow::new(secure, Way::Down));
        Ok(Self { link, spent: false, dialler, target, up, down, open: false, stalled: false, told_attached: false })
    }

    /// Plans a fault for it.
    pub fn look_for(&mut self, fault: &LinkFault) {
        self.spent = true;
        match fault.way {
            Way::Up => self.up.scanner.look_for(fault),
            Way::Down => self.down.scanner.look_for(fault),
        }
    }

    /// Whether both sides have attached.
    pub fn is_attached(&self) -> bool {
        self.up.scanner.attached() && self.down.scanner.attached()
    }

    /// What is under way now.
    pub fn in_flight(&self) -> InFlight {
        InFlight {
            held: (self.up.held() + self.down.held()) as u64,
            frames: self.up.scanner.in_flight() + self.down.scanner.in_flight(),
        }
    }

    /// Nothing passes any more.
    pub fn stall(&mut self) {
        self.stalled = true;
    }

    /// Destroys what is held in this direction, tells the side it was for that nothing more comes, and lets nothing pass
    /// any more; the other direction goes on.
    pub fn half_close(&mut self, way: Way) -> io::Result<()> {
        let (flow, to) = match way {
            Way::Up => (&mut self.up, &self.target),
            Way::Down => (&mut self.down, &self.dialler),
        };
        flow.deaf = true;
        (flow.start, flow.end) = (0, 0);
        to.shutdown(Shutdown::Write)
    }

    /// Alters the byte that is held, in this direction, and lets it pass.
    pub fn flip(&mut self, way: Way) {
        let flow = match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        };
        // It is the first one that is held: all before it are written.
        if let Some(byte) = flow.buffer[flow.start..flow.end].first_mut() {
            *byte ^= 1;
        }
        flow.scanner.go_on();
    }

    /// Makes both sockets end with a reset instead of an end of stream.
    pub fn reset(self) {
        for socket in [&self.dialler, &self.target] {
            // One that is reset already cannot be set any more.
            let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
        }
    }

    /// Moves bytes both ways until the system has no more, or no more room.
    ///
    /// # Errors
    /// One side broke: the other one has to see the same.
    pub fn serve(&mut self) -> io::Result<Next> {
        if self.stalled || !self.is_open()? {
            return Ok(Next::Keep);
        }
        if self.up.pump(&self.dialler, &self.target)? {
            self.learn();
            return Ok(Next::Due(Way::Up));
        }
        let due = self.down.pump(&self.target, &self.dialler)?;
        self.learn();
        if due {
            return Ok(Next::Due(Way::Down));
        }
        if self.up.over && self.down.over {
            return Ok(Next::Over);
        }
        if self.is_attached() && !self.told_attached {
            self.told_attached = true;
            return Ok(Next::Attached);
        }
        Ok(Next::Keep)
    }

    fn learn(&mut self) {
        self.up.scanner.learn(&self.down.scanner);
        self.down.scanner.learn(&self.up.scanner);
    }

    /// Whether the target has answered.
    fn is_open(&mut self) -> io::Result<bool> {
        if !self.open {
            if let Some(error) = self.target.take_error()? {
                return Err(error);
            }
            match self.target.peer_addr() {
                Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(false),
                answered => answered?,
            };
            self.target.set_nodelay(true)?;
            self.open = true;
        }
        Ok(true)
    }
}

/// One direction: bytes that were read and not yet written.
struct Flow {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Bytes written before those in the buffer.
    before: u64,
    scanner: Scanner,
    /// Nothing passes any more; what is read is thrown away.
    deaf: bool,
    /// Nothing comes any more, and the other side was told.
    over: bool,
}

impl Flow {
    fn new(secure: bool, way: Way) -> Self {
        let buffer = vec![0; HELD].into_boxed_slice();
        Self { buffer, start: 0, end: 0, before: 0, scanner: Scanner::new(secure, way), deaf: false, over: false }
    }

    fn held(&self) -> usize {
        self.end - self.start
    }

    /// Where in the buffer the byte is that is not to pass.
    fn limit(&self) -> usize {
        let ahead = self.scanner.cut().map(|cut| cut.saturating_sub(self.before));
        ahead.and_then(|ahead| usize::try_from(ahead).ok()).map_or(self.end, |at| at.clamp(self.start, self.end))
    }

    /// Reads and writes in turn until one of them would block. True when all bytes before the one that is not to pass
    /// are written, and that one is held.
    fn pump(&mut self, mut from: &TcpStream, mut to: &TcpStream) -> io::Result<bool> {
        while !self.over {
            let limit = self.limit();
            while self.start < limit {
                match to.write(&self.buffer[self.start..limit]) {
                    Ok(0) => return Err(ErrorKind::WriteZero.into()),
                    Ok(count) => self.start += count,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            if limit < self.end {
                return Ok(true);
            }
            match from.read(&mut self.buffer) {
                Ok(0) => {
                    if !self.deaf {
                        to.shutdown(Shutdown::Write)?;
                    }
                    self.over = true;
                }
                Ok(_) if self.deaf => {}
                Ok(count) => {
                    self.before += self.end as u64;
                    (self.start, self.end) = (0, count);
                    self.scanner.scan(&self.buffer[..count]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}
