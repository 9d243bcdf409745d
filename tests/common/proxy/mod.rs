//! A TCP proxy that hurts the connections in its path, on purpose and at an exact byte.
//!
//! Owns: a listening port, kept from others while it does not listen, and every connection through it.
//! Threads: one, `proxy`; the rest talks to it by closures. Locks: none. Blocks on: its poll; callers on its answers.
//! Upholds: a fault strikes exactly where it was planned; each one is counted when it has struck, not when it was asked
//! for; between faults bytes pass unchanged and in order.

mod fault;
mod stream;

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use socket2::{Domain, SockRef, Socket, Type};

pub use fault::{DRIP, Fault, Harm, Place, Way};
use stream::{HELD, Stream};

/// Bytes looked for when a connection is cut: what was under way and never arrives.
const DRAINED: u64 = 8 << 20;
const WAKE: Token = Token(0);
const LISTENER: Token = Token(1);

/// What has happened so far.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Connections accepted and led to the target.
    pub accepted: u64,
    /// Connections accepted and reset at once, as [`Proxy::turn_away`] asks.
    pub turned_away: u64,
    /// Connections whose target did not answer.
    pub unreachable: u64,
    pub cuts: u64,
    pub half_closes: u64,
    pub stalls: u64,
    pub drips: u64,
    /// Bytes that passed one at a time.
    pub dripped: u64,
    /// Bytes that passed, by [`Way`].
    pub passed: [u64; 2],
    /// Bytes that one side had written and the other never got, over all cuts; and the cuts that lost some.
    pub lost_bytes: u64,
    pub cuts_with_loss: u64,
    /// What a planned fault fell into: `header` or `between` frames, or the name of the frame whose body it split. Through
    /// TLS the same of records, and `record`.
    pub struck: BTreeMap<String, u64>,
}

/// A running proxy. It ends when it is dropped.
pub struct Proxy {
    addr: SocketAddr,
    orders: Sender<Order>,
    waker: Arc<Waker>,
    thread: Option<std::thread::JoinHandle<()>>,
}

type Order = Box<dyn FnOnce(&mut Relay) + Send>;

impl Proxy {
    /// In front of `target`, listening.
    pub fn to(target: SocketAddr) -> Self {
        let proxy = Self::away(target);
        proxy.listen();
        proxy
    }

    /// In front of `target`, not listening yet: dials to it are refused by the system.
    #[expect(clippy::disallowed_methods, reason = "the crate's own way to start threads is not public")]
    pub fn away(target: SocketAddr) -> Self {
        let reserved = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        reserved.set_reuse_address(true).unwrap();
        reserved.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let addr = reserved.local_addr().unwrap().as_socket().unwrap();
        let poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), WAKE).unwrap());
        let (orders, taken) = unbounded();
        let relay = Relay {
            poll,
            addr,
            _reserved: reserved,
            listener: None,
            target,
            plan: VecDeque::new(),
            turning_away: false,
            passages: Vec::new(),
            tokens: 2,
            counts: Counts::default(),
            ends: false,
        };
        let thread = std::thread::Builder::new().name("proxy".into()).spawn(move || relay.run(&taken)).unwrap();
        Self { addr, orders, waker, thread: Some(thread) }
    }

    /// Where to dial it.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The next connections suffer these faults, one each, after those planned before. Without a plan they pass.
    pub fn plan(&self, faults: impl IntoIterator<Item = Fault>) {
        let faults: Vec<Fault> = faults.into_iter().collect();
        self.ask(move |relay| relay.plan.extend(faults));
    }

    /// Planned faults that no connection was given yet, or that did not strike yet.
    pub fn left(&self) -> usize {
        self.ask(|relay| relay.plan.len() + relay.passages.iter().filter(|passage| passage.is_threatened()).count())
    }

    /// What has happened so far.
    pub fn counts(&self) -> Counts {
        self.ask(|relay| relay.counts.clone())
    }

    /// Connections that pass now, stalled ones included.
    pub fn open(&self) -> usize {
        self.ask(|relay| relay.passages.len())
    }

    /// Resets all connections; how many there were.
    pub fn cut(&self) -> usize {
        self.ask(|relay| {
            let passages = std::mem::take(&mut relay.passages);
            let cut = passages.len();
            passages.into_iter().for_each(|passage| relay.cut(passage));
            cut
        })
    }

    /// From now on nothing passes through the connections there are, and nobody is told; how many there are.
    pub fn stall(&self) -> usize {
        self.ask(|relay| {
            relay.passages.iter_mut().for_each(|passage| passage.stalled = true);
            relay.counts.stalls += relay.passages.len() as u64;
            relay.passages.len()
        })
    }

    /// Lets stalled connections go on.
    pub fn unstall(&self) {
        self.ask(|relay| relay.passages.iter_mut().for_each(|passage| passage.stalled = false));
    }

    /// Resets new connections at once, or no longer.
    pub fn turn_away(&self, yes: bool) {
        self.ask(move |relay| relay.turning_away = yes);
    }

    /// Accepts (again).
    pub fn listen(&self) {
        self.ask(Relay::listen);
    }

    /// Stops accepting: dials are refused by the system from now on. The connections there are go on.
    pub fn stop_listening(&self) {
        self.ask(|relay| relay.listener = None);
    }

    /// Leads new connections to `target`.
    pub fn lead_to(&self, target: SocketAddr) {
        self.ask(move |relay| relay.target = target);
    }

    fn ask<T: Send + 'static>(&self, order: impl FnOnce(&mut Relay) -> T + Send + 'static) -> T {
        let (answer, answered) = bounded(1);
        self.orders.send(Box::new(move |relay| drop(answer.send(order(relay))))).expect("the proxy runs");
        self.waker.wake().unwrap();
        answered.recv_timeout(super::PATIENCE).expect("the proxy answers")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.orders.send(Box::new(|relay| relay.ends = true));
        let _ = self.waker.wake();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(std::thread::panicking() || ended.is_ok(), "the proxy panicked");
        }
    }
}

/// What the thread has.
struct Relay {
    poll: Poll,
    addr: SocketAddr,
    /// Bound and never listening: the port is nobody else's while `listener` is absent.
    _reserved: Socket,
    listener: Option<TcpListener>,
    target: SocketAddr,
    plan: VecDeque<Fault>,
    turning_away: bool,
    passages: Vec<Passage>,
    tokens: usize,
    counts: Counts,
    ends: bool,
}

impl Relay {
    fn run(mut self, orders: &Receiver<Order>) {
        let mut events = Events::with_capacity(64);
        while !self.ends {
            let next = self.passages.iter().filter_map(Passage::next_drip).min();
            let timeout = next.map(|next| next.saturating_duration_since(Instant::now()));
            if let Err(error) = self.poll.poll(&mut events, timeout) {
                assert_eq!(error.kind(), ErrorKind::Interrupted);
            }
            orders.try_iter().for_each(|order| order(&mut self));
            self.accept();
            // Readiness is edge-triggered; the few connections there are all go as far as they get.
            for mut passage in std::mem::take(&mut self.passages) {
                match passage.advance(&mut self.counts) {
                    After::Open => self.passages.push(passage),
                    After::Closed => {}
                    After::Cut => self.cut(passage),
                }
            }
        }
    }

    fn listen(&mut self) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.bind(&self.addr.into()).unwrap();
        socket.listen(256).unwrap();
        let mut listener = TcpListener::from_std(socket.into());
        self.poll.registry().register(&mut listener, LISTENER, Interest::READABLE).unwrap();
        self.listener = Some(listener);
    }

    fn accept(&mut self) {
        while let Some(Ok((client, _))) = self.listener.as_ref().map(TcpListener::accept) {
            if self.turning_away {
                self.counts.turned_away += 1;
                reset(client);
                continue;
            }
            let Ok(server) = std::net::TcpStream::connect_timeout(&self.target, Duration::from_secs(5)) else {
                self.counts.unreachable += 1;
                reset(client);
                continue;
            };
            server.set_nonblocking(true).unwrap();
            let mut sockets = [client, TcpStream::from_std(server)];
            for socket in &mut sockets {
                socket.set_nodelay(true).unwrap();
                let token = Token(self.tokens);
                self.tokens += 1;
                self.poll.registry().register(socket, token, Interest::READABLE | Interest::WRITABLE).unwrap();
            }
            self.counts.accepted += 1;
            let fault = self.plan.pop_front();
            let streams = [Way::Up, Way::Down].map(|way| Stream::new(fault.filter(|fault| fault.way == way)));
            self.passages.push(Passage { sockets, streams, stalled: false });
        }
    }

    fn cut(&mut self, passage: Passage) {
        let Passage { sockets, streams, .. } = passage;
        let mut lost: u64 = streams.iter().map(|stream| (stream.came.len() + stream.out.len()) as u64).sum();
        for mut socket in sockets {
            let mut buffer = vec![0; HELD];
            while lost < DRAINED
                && let Ok(count @ 1..) = socket.read(&mut buffer)
            {
                lost += count as u64;
            }
            reset(socket);
        }
        self.counts.cuts += 1;
        self.counts.lost_bytes += lost;
        self.counts.cuts_with_loss += u64::from(lost > 0);
    }
}

/// Closes a socket so that the other side is told of a reset, not of an end.
fn reset(socket: TcpStream) {
    // It fails when the other side was first.
    let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
}

/// A connection through the proxy: the side that dialled, and the target.
struct Passage {
    sockets: [TcpStream; 2],
    streams: [Stream; 2],
    stalled: bool,
}

enum After {
    Open,
    Closed,
    Cut,
}

impl Passage {
    fn is_threatened(&self) -> bool {
        self.streams.iter().any(|stream| stream.fault.is_some())
    }

    /// When the next byte of a dripping stream is due.
    fn next_drip(&self) -> Option<Instant> {
        self.streams.iter().filter(|stream| !stream.out.is_empty()).filter_map(|stream| stream.drip).min()
    }

    /// Moves bytes both ways as far as they go.
    fn advance(&mut self, counts: &mut Counts) -> After {
        loop {
            if self.stalled {
                return After::Open;
            }
            let mut moved = false;
            for way in [Way::Up, Way::Down] {
                let [client, server] = &mut self.sockets;
                let (from, to) = if way == Way::Up { (client, server) } else { (server, client) };
                let stream = &mut self.streams[way as usize];
                match stream.advance(from, to, &mut counts.passed[way as usize]) {
                    Ok(more) => moved |= more,
                    // One side is gone without a word: so is the other.
                    Err(_) => {
                        self.sockets
                            .iter()
                            .for_each(|socket| drop(SockRef::from(socket).set_linger(Some(Duration::ZERO))));
                        return After::Closed;
                    }
                }
                counts.dripped += std::mem::take(&mut stream.dripped);
                if let Some((harm, struck)) = stream.struck.take() {
                    *counts.struck.entry(struck).or_default() += 1;
                    match harm {
                        Harm::Cut => return After::Cut,
                        Harm::HalfClose => {
                            counts.half_closes += 1;
                            stream.end(to);
                        }
                        Harm::Drip => {
                            counts.drips += 1;
                            stream.drip = Some(Instant::now());
                        }
                        Harm::Stall => {
                            counts.stalls += 1;
                            self.stalled = true;
                        }
                    }
                }
            }
            if self.streams.iter().all(|stream| stream.ended) {
                return After::Closed;
            }
            if !moved {
                return After::Open;
            }
        }
    }
}
