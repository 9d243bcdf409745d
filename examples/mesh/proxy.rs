//! A proxy in the path of one link, which resets it once, while it holds bytes that it has not delivered.
//!
//! Owns: its listener and both sockets of each link. Threads: one, in a process of its own. Locks: none.
//! Blocks on: `poll`.
//! Upholds: a cut destroys bytes that were read and not delivered, and counts them; both sides see a reset, no end of
//! stream; it accepts again at once.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, TryRecvError};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use socket2::SockRef;

use crate::control::{Answer, Cuts, Order, orders, say};
use crate::failure::{Context, Failure};

/// How much is read at once, and so held at most, in each direction.
const HELD: usize = 64 * 1024;
/// How long the target may take to answer a dial; it is on the same machine.
const DIAL: Duration = Duration::from_secs(5);
/// Pause after the system refused a descriptor, which no new event would announce.
const RETRY: Duration = Duration::from_millis(50);

const ORDERS: Token = Token(0);
const LISTENER: Token = Token(1);
const FIRST_LINK: usize = 2;

/// The proxy's process.
pub fn run() -> Result<(), Failure> {
    let proxy = Proxy::bind().context(|| "starting the proxy".to_owned())?;
    let waker = proxy.waker();
    let orders = orders(move || {
        // A poll that cannot be woken would never see the order; the parent's deadline ends that.
        let _ = waker.wake();
    })?;
    say(&Answer::Forwarding(proxy.addr))?;
    let cuts = proxy.serve(&orders, || say(&Answer::Armed))?;
    say(&Answer::Cut(cuts))
}

/// The proxy: a listener, a target, links.
struct Proxy {
    poll: Poll,
    waker: Arc<Waker>,
    listener: TcpListener,
    addr: SocketAddr,
    target: Option<SocketAddr>,
    links: Vec<Option<Link>>,
    scissors: Scissors,
}

/// When to cut, and what was cut.
#[derive(Debug, Default)]
struct Scissors {
    /// Bytes towards the target that may still pass; none when no cut is asked for.
    left: Option<u64>,
    cuts: Cuts,
}

/// Two connections, and what is on its way between them.
struct Link {
    dialler: TcpStream,
    target: TcpStream,
    up: Flow,
    down: Flow,
}

/// One direction of a link: bytes that were read and not yet written.
struct Flow {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Nothing comes any more, and the other side was told.
    over: bool,
}

/// What to do with a link after its sockets were served.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Wait for more events.
    Keep,
    /// Both directions have ended.
    Close,
    /// Reset both sides.
    Cut,
}

impl Proxy {
    fn bind() -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), ORDERS)?);
        let mut listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let addr = listener.local_addr()?;
        let scissors = Scissors::default();
        Ok(Self { poll, waker, listener, addr, target: None, links: Vec::new(), scissors })
    }

    fn waker(&self) -> Arc<Waker> {
        Arc::clone(&self.waker)
    }

    /// Forwards until told to finish; calls `armed` when the order to cut is in force.
    fn serve(
        mut self,
        orders: &Receiver<Order>,
        mut armed: impl FnMut() -> Result<(), Failure>,
    ) -> Result<Cuts, Failure> {
        let forwarding = || "forwarding".to_owned();
        let mut events = Events::with_capacity(64);
        let mut retry = None;
        loop {
            match self.poll.poll(&mut events, retry) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error).context(forwarding),
                _ => {}
            }
            loop {
                match orders.try_recv() {
                    Ok(Order::Forward(target)) => self.target = Some(target),
                    Ok(Order::CutAfter(bytes)) => {
                        self.scissors.left = Some(bytes);
                        armed()?;
                    }
                    Ok(Order::Finish) | Err(TryRecvError::Disconnected) => return Ok(self.scissors.cuts),
                    Ok(_) => {}
                    Err(TryRecvError::Empty) => break,
                }
            }
            for event in &events {
                if let Some(number) = event.token().0.checked_sub(FIRST_LINK) {
                    self.serve_link(number).context(forwarding)?;
                }
            }
            // Also without an event: a target may be known only now, or descriptors be free again.
            retry = self.accept().context(forwarding)?;
        }
    }

    /// Accepts until there is nobody left; says when to look again if the system had no room.
    fn accept(&mut self) -> io::Result<Option<Duration>> {
        let Some(target) = self.target else { return Ok(None) };
        loop {
            let dialler = match self.listener.accept() {
                Ok((dialler, _)) => dialler,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => {
                    log::warn!("the proxy cannot accept: {error}");
                    return Ok(Some(RETRY));
                }
            };
            // Dropping the dialler tells it that the target is not there.
            match Link::open(dialler, target) {
                Ok(link) => self.add(link)?,
                Err(error) => log::warn!("the proxy cannot reach {target}: {error}"),
            }
        }
    }

    fn add(&mut self, mut link: Link) -> io::Result<()> {
        let number = self.links.len();
        let token = Token(FIRST_LINK + number);
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut link.dialler, token, both)?;
        self.poll.registry().register(&mut link.target, token, both)?;
        self.links.push(Some(link));
        self.scissors.cuts.links += 1;
        // No event tells of bytes that were there before the registration on every system.
        self.serve_link(number)
    }

    fn serve_link(&mut self, number: usize) -> io::Result<()> {
        let Some(slot) = self.links.get_mut(number) else { return Ok(()) };
        let Some(link) = slot else { return Ok(()) };
        match link.forward(&mut self.scissors) {
            Ok(Next::Keep) => {}
            Ok(Next::Close) => *slot = None,
            Ok(Next::Cut) => {
                self.scissors.cuts.cuts += 1;
                self.scissors.cuts.destroyed_bytes += (link.up.held() + link.down.held()) as u64;
                link.reset_on_close()?;
                *slot = None;
            }
            Err(error) => {
                // One side broke; the other one has to see the same.
                log::debug!("a link of the proxy broke: {error}");
                link.reset_on_close()?;
                *slot = None;
            }
        }
        Ok(())
    }
}

impl Link {
    fn open(dialler: TcpStream, target: SocketAddr) -> io::Result<Self> {
        let stream = std::net::TcpStream::connect_timeout(&target, DIAL)?;
        stream.set_nonblocking(true)?;
        let target = TcpStream::from_std(stream);
        dialler.set_nodelay(true)?;
        target.set_nodelay(true)?;
        Ok(Self { dialler, target, up: Flow::new(), down: Flow::new() })
    }

    /// Moves bytes both ways until the system has no more, or no more room.
    fn forward(&mut self, scissors: &mut Scissors) -> io::Result<Next> {
        let cuts = &mut scissors.cuts;
        let left = &mut scissors.left;
        let up = self.up.pump(
            &self.dialler,
            &self.target,
            |read| match left {
                Some(bytes) if *bytes < read => {
                    *left = None;
                    true
                }
                Some(bytes) => {
                    *bytes -= read;
                    false
                }
                None => false,
            },
            |written| cuts.forwarded_bytes += written,
        )?;
        if up {
            return Ok(Next::Cut);
        }
        self.down.pump(&self.target, &self.dialler, |_| false, |_| {})?;
        Ok(if self.up.over && self.down.over { Next::Close } else { Next::Keep })
    }

    /// Makes both sockets end with a reset instead of an end of stream.
    fn reset_on_close(&self) -> io::Result<()> {
        for socket in [&self.dialler, &self.target] {
            SockRef::from(socket).set_linger(Some(Duration::ZERO))?;
        }
        Ok(())
    }
}

impl Flow {
    fn new() -> Self {
        Self { buffer: vec![0; HELD].into_boxed_slice(), start: 0, end: 0, over: false }
    }

    fn held(&self) -> usize {
        self.end - self.start
    }

    /// Reads and writes in turn until one of them would block. `true` as soon as `cut`, told how much was just read,
    /// says so: these bytes are then held.
    fn pump(
        &mut self,
        mut from: &TcpStream,
        mut to: &TcpStream,
        mut cut: impl FnMut(u64) -> bool,
        mut wrote: impl FnMut(u64),
    ) -> io::Result<bool> {
        while !self.over {
            while self.start < self.end {
                match to.write(&self.buffer[self.start..self.end]) {
                    Ok(0) => return Err(ErrorKind::WriteZero.into()),
                    Ok(count) => {
                        self.start += count;
                        wrote(count as u64);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            match from.read(&mut self.buffer) {
                Ok(0) => {
                    to.shutdown(Shutdown::Write)?;
                    self.over = true;
                }
                Ok(count) => {
                    (self.start, self.end) = (0, count);
                    if cut(count as u64) {
                        return Ok(true);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the streams of these tests have no read timeout shorter than the test")]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    use crossbeam_channel::{Sender, unbounded};

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    /// Runs `test` with the proxy's address and a way to have it cut after some bytes; returns what the proxy counted.
    fn with_proxy(target: SocketAddr, test: impl FnOnce(SocketAddr, &dyn Fn(u64))) -> Cuts {
        let proxy = Proxy::bind().unwrap();
        let (addr, waker) = (proxy.addr, proxy.waker());
        let (tx, rx): (Sender<Order>, _) = unbounded();
        let (armed, is_armed) = unbounded();
        let order = |order| {
            tx.send(order).unwrap();
            waker.wake().unwrap();
        };
        thread::scope(|scope| {
            let served = scope.spawn(move || {
                proxy.serve(&rx, || {
                    armed.send(()).unwrap();
                    Ok(())
                })
            });
            order(Order::Forward(target));
            test(addr, &|bytes| {
                order(Order::CutAfter(bytes));
                is_armed.recv_timeout(LONG).unwrap();
            });
            order(Order::Finish);
            served.join().unwrap().unwrap()
        })
    }

    fn connect(listener: &TcpListener, proxy: SocketAddr) -> (TcpStream, TcpStream) {
        let near = TcpStream::connect(proxy).unwrap();
        let (far, _) = listener.accept().unwrap();
        for stream in [&near, &far] {
            stream.set_read_timeout(Some(LONG)).unwrap();
            stream.set_write_timeout(Some(LONG)).unwrap();
        }
        (near, far)
    }

    /// Everything until the end of the stream or an error, and that error.
    fn drain(stream: &mut TcpStream) -> (Vec<u8>, io::Result<usize>) {
        let mut bytes = Vec::new();
        let result = stream.read_to_end(&mut bytes);
        (bytes, result)
    }

    #[test]
    fn bytes_pass_both_ways_unchanged_and_each_end_of_stream_too() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
        let cuts = with_proxy(listener.local_addr().unwrap(), |addr, _| {
            let (near, far) = connect(&listener, addr);
            let bytes = &bytes;
            thread::scope(|scope| {
                for stream in [&near, &far] {
                    scope.spawn(move || {
                        let mut writer = stream;
                        writer.write_all(bytes).unwrap();
                        writer.shutdown(Shutdown::Write).unwrap();
                    });
                    scope.spawn(move || {
                        let (read, result) = drain(&mut stream.try_clone().unwrap());
                        assert_eq!(result.unwrap(), bytes.len());
                        assert!(read == *bytes);
                    });
                }
            });
        });
        assert_eq!(cuts, Cuts { links: 1, forwarded_bytes: bytes.len() as u64, ..Cuts::default() });
    }

    #[test]
    fn a_cut_resets_both_sides_destroys_held_bytes_and_the_next_link_lives() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut passed = 0;
        let cuts = with_proxy(listener.local_addr().unwrap(), |addr, cut_after| {
            let (mut near, mut far) = connect(&listener, addr);
            cut_after(200_000);
            let (written, (read, ended)) = thread::scope(|scope| {
                let writer = scope.spawn(|| {
                    let block = vec![7; 1 << 20];
                    loop {
                        if let Err(error) = near.write_all(&block) {
                            return error.kind();
                        }
                    }
                });
                let drained = drain(&mut far);
                (writer.join().unwrap(), drained)
            });
            assert!(matches!(written, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{written}");
            assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
            passed = read.len() as u64;

            let (mut near, mut far) = connect(&listener, addr);
            near.write_all(b"again").unwrap();
            let mut heard = [0; 5];
            far.read_exact(&mut heard).unwrap();
            assert_eq!(&heard, b"again");
        });
        assert_eq!((cuts.links, cuts.cuts), (2, 1));
        assert!(cuts.destroyed_bytes > 0);
        assert!(cuts.forwarded_bytes <= 200_000 + 5 && passed + 5 <= cuts.forwarded_bytes, "{passed} of {cuts:?}");
    }

    #[test]
    fn a_side_that_breaks_breaks_the_other_one() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let cuts = with_proxy(listener.local_addr().unwrap(), |addr, _| {
            let (mut near, mut far) = connect(&listener, addr);
            // A byte that came through: the link is served, not still being opened.
            near.write_all(b"x").unwrap();
            assert_eq!(far.read(&mut [0]).unwrap(), 1);
            SockRef::from(&far).set_linger(Some(Duration::ZERO)).unwrap();
            drop(far);
            assert_eq!(drain(&mut near).1.unwrap_err().kind(), ErrorKind::ConnectionReset);
        });
        assert_eq!((cuts.links, cuts.cuts), (1, 0));
    }
}
