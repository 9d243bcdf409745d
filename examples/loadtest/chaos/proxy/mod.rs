//! The proxy in the path of every link, which carries out the faults of links and counts what was under way.
//!
//! Owns: a door for each link, and the connections. Threads: one, in a process of its own, and one that reads orders.
//! Locks: none. Blocks on: `poll`.
//! Upholds: a link has one fault at a time, and left alone it forwards; a fault that found no place on a connection that
//! ended is looked for on the next one; each is told when it happened, with what was under way. An altered byte has
//! happened when the connection has ended of it, which is not the proxy's doing.

mod connection;
mod door;
mod frames;
mod records;
mod scanner;
mod wish;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError, unbounded};
use mio::{Events, Poll, Token, Waker};

use crate::chaos::control::{Answer, Order, Passed};
use crate::chaos::plan::{Kind, LinkFault, Way};
use crate::control::{Line, start_thread};
use crate::failure::{Context, Failure};
use crate::histogram::Histogram;
use crate::report;
use connection::{Connection, InFlight, Next};
use door::Door;

const ORDERS: Token = Token(0);
const FIRST_DOOR: usize = 1;
/// How long a session may take to end of an altered byte; its receiver may be frozen meanwhile.
const NOTICED: Duration = Duration::from_secs(15);

/// The proxy's process.
///
/// # Errors
/// The system refused something, or the parent asked for what is not the proxy's to do.
pub fn run(line: Line) -> Result<(), Failure> {
    let Some(Order::Forward { links, secure }) = line.receive(None)? else {
        return Err(Failure::new("how many links?"));
    };
    let proxy = Proxy::new(links, secure, report::json).context("starting the proxy")?;
    report::json(&Answer::Forwarding(proxy.links.iter().map(|link| link.door.addr()).collect()))?;
    let waker = Arc::clone(&proxy.waker);
    let (tx, orders) = unbounded();
    start_thread("orders", move || {
        // An order that is none ends the proxy: its channel closes.
        while let Ok(Some(order)) = line.receive(None)
            && tx.send(order).is_ok()
            && waker.wake().is_ok()
        {}
        drop(tx);
        let _ = waker.wake();
    })?;
    let passed = proxy.serve(&orders)?;
    report::json(&Answer::Passed(passed))
}

/// Says something to the parent.
type Tell = dyn Fn(&Answer) -> Result<(), Failure> + Send;

struct Proxy {
    /// What passes is TLS.
    secure: bool,
    poll: Poll,
    waker: Arc<Waker>,
    links: Vec<Link>,
    connections: BTreeMap<usize, Connection>,
    /// The token of the next connection.
    next: usize,
    /// Links of which somebody wants to know when something is under way, and until when.
    probe: Option<(Vec<usize>, Instant)>,
    gaps: Histogram,
    attached: u64,
    /// Tells the parent.
    tell: Box<Tell>,
}

/// One link: where it is dialled, where it leads, what is to happen to it.
struct Link {
    door: Door,
    target: Option<SocketAddr>,
    plan: VecDeque<LinkFault>,
    phase: Phase,
    /// Since when it has had no connection that both sides had attached; not before the first one.
    down_since: Option<Instant>,
}

/// What the present fault of a link is at.
enum Phase {
    /// The next one waits for this moment.
    Rest(Instant),
    /// Its place is looked for.
    Armed(LinkFault),
    /// The connection of this token is stalled, until it is reset.
    Stalled(Instant, usize),
    /// A byte was altered on the connection of this token, which is to end by then; what was under way.
    Flipped(Instant, usize, InFlight),
    /// The door is closed until then.
    Closed(Instant),
    /// There is none.
    Over,
}

impl Proxy {
    fn new(
        links: usize,
        secure: bool,
        tell: impl Fn(&Answer) -> Result<(), Failure> + Send + 'static,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), ORDERS)?);
        let mut all = Vec::new();
        for number in 0..links {
            let mut door = Door::new()?;
            door.open(poll.registry(), Token(FIRST_DOOR + number))?;
            all.push(Link { door, target: None, plan: VecDeque::new(), phase: Phase::Over, down_since: None });
        }
        let gaps = Histogram::new().map_err(|failure| io::Error::other(failure.to_string()))?;
        let next = FIRST_DOOR + links;
        let (connections, tell) = (BTreeMap::new(), Box::new(tell));
        Ok(Self { secure, poll, waker, links: all, connections, next, probe: None, gaps, attached: 0, tell })
    }

    /// Forwards and harms until told to finish.
    fn serve(mut self, orders: &Receiver<Order>) -> Result<Passed, Failure> {
        let mut events = Events::with_capacity(256);
        loop {
            match self.poll.poll(&mut events, self.until_next(Instant::now())) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error).context("forwarding"),
                _ => {}
            }
            loop {
                match orders.try_recv() {
                    Ok(Order::Finish) => return Ok(self.passed()),
                    Ok(order) => self.obey(order)?,
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return Err(Failure::new("the orders have ended")),
                }
            }
            for event in &events {
                let token = event.token().0;
                if self.connections.contains_key(&token) {
                    self.serve_connection(token)?;
                } else if let Some(link) = token.checked_sub(FIRST_DOOR)
                    && link < self.links.len()
                {
                    self.accept(link)?;
                }
            }
            for link in 0..self.links.len() {
                self.advance(link, Instant::now())?;
            }
            self.answer_probe()?;
        }
    }

    fn obey(&mut self, order: Order) -> Result<(), Failure> {
        match order {
            Order::Aim { link, target } => self.link(link)?.target = target,
            Order::Harm(plans) => {
                for (number, plan) in plans.into_iter().enumerate() {
                    let link = self.link(number)?;
                    link.plan = plan.into();
                    // A fault under way comes to its end first.
                    if matches!(link.phase, Phase::Over) {
                        link.rest();
                    }
                }
            }
            Order::Back { links } => links.into_iter().try_for_each(|link| self.link(link).map(Link::is_back))?,
            Order::Probe { links, patience } => self.probe = Some((links, Instant::now() + patience)),
            _ => return Err(Failure::new("this order is not for a proxy")),
        }
        Ok(())
    }

    fn link(&mut self, number: usize) -> Result<&mut Link, Failure> {
        self.links.get_mut(number).ok_or_else(|| Failure::new(format!("there is no link {number}")))
    }

    /// How long nothing is to be done without an event.
    fn until_next(&self, now: Instant) -> Option<Duration> {
        let times = self.links.iter().filter_map(|link| match link.phase {
            // One that has come waits for a connection.
            Phase::Rest(at) => Some(at).filter(|at| *at > now),
            Phase::Stalled(at, _) | Phase::Flipped(at, ..) | Phase::Closed(at) => Some(at),
            Phase::Armed(_) | Phase::Over => None,
        });
        let probe = self.probe.as_ref().map(|(_, until)| *until);
        times.chain(probe).min().map(|at| at.saturating_duration_since(now))
    }

    fn accept(&mut self, number: usize) -> Result<(), Failure> {
        while let Some(dialler) = self.links[number].door.accept().context("accepting")? {
            // Dropping the dialler tells it that the target is not there.
            let Some(target) = self.links[number].target else { continue };
            let token = self.next;
            self.next += 1;
            match Connection::open(number, dialler, target, self.secure, self.poll.registry(), Token(token)) {
                Ok(mut connection) => {
                    if let Phase::Armed(fault) = &self.links[number].phase
                        && fault.kind == Kind::CutHandshake
                    {
                        connection.look_for(fault);
                    }
                    self.connections.insert(token, connection);
                    self.serve_connection(token)?;
                }
                Err(error) => log::debug!("the proxy cannot reach {target}: {error}"),
            }
        }
        Ok(())
    }

    fn serve_connection(&mut self, token: usize) -> Result<(), Failure> {
        while let Some(connection) = self.connections.get_mut(&token) {
            match connection.serve() {
                Ok(Next::Keep) => break,
                Ok(Next::Attached) => self.attached(token),
                Ok(Next::Due(way)) => self.harm(token, way)?,
                Ok(Next::Over) => {
                    if let Some(connection) = self.remove(token) {
                        self.ended(connection.link, token)?;
                    }
                }
                Err(error) => {
                    log::debug!("a connection of the proxy broke: {error}");
                    if let Some(connection) = self.remove(token) {
                        let link = connection.link;
                        connection.reset();
                        self.ended(link, token)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Both sides of a connection have attached: the link works.
    fn attached(&mut self, token: usize) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let link = &mut self.links[connection.link];
        if let Some(since) = link.down_since.take() {
            let gap = since.elapsed();
            log::info!("link {} was lost for {gap:?}", connection.link);
            self.gaps.record(gap);
            self.attached += 1;
        }
        match &link.phase {
            // It was under way when the fault was begun: the next handshake is the one to be cut.
            Phase::Armed(fault) if fault.kind == Kind::CutHandshake => {
                if let Some(connection) = self.remove(token) {
                    connection.reset();
                }
            }
            Phase::Armed(fault) => connection.look_for(fault),
            _ => {}
        }
    }

    /// Takes a connection out; notes when its link is without one.
    fn remove(&mut self, token: usize) -> Option<Connection> {
        let connection = self.connections.remove(&token)?;
        let others = self.connections.values().any(|other| other.link == connection.link && other.is_attached());
        if connection.is_attached() && !others {
            self.links[connection.link].down_since.get_or_insert_with(Instant::now);
        }
        Some(connection)
    }

    /// A connection has ended by itself: of the byte that was altered on it, if one was.
    fn ended(&mut self, number: usize, token: usize) -> Result<(), Failure> {
        let link = &mut self.links[number];
        let Phase::Flipped(_, flipped, InFlight { held, frames }) = link.phase else { return Ok(()) };
        if flipped != token {
            return Ok(());
        }
        link.rest();
        (self.tell)(&Answer::Harmed { kind: Kind::Flip, held, frames })
    }

    /// The byte is held that a fault is put at.
    fn harm(&mut self, token: usize, way: Way) -> Result<(), Failure> {
        let Some(connection) = self.connections.get_mut(&token) else { return Ok(()) };
        let number = connection.link;
        let Phase::Armed(fault) = self.links[number].phase else {
            return Err(Failure::new("a fault that nobody planned"));
        };
        let under_way = connection.in_flight();
        let now = Instant::now();
        let mut phase = None;
        match fault.kind {
            Kind::HalfClose => {
                // A side that is gone already ends the connection by itself.
                let _ = connection.half_close(way);
            }
            Kind::StallReset => {
                connection.stall();
                phase = Some(Phase::Stalled(now + fault.lasts, token));
            }
            Kind::Flip => {
                connection.flip(way);
                self.links[number].phase = Phase::Flipped(now + NOTICED, token, under_way);
                return Ok(());
            }
            kind => {
                if kind == Kind::Listener {
                    self.links[number].door.close();
                    phase = Some(Phase::Closed(now + fault.lasts));
                }
                if let Some(connection) = self.remove(token) {
                    connection.reset();
                }
            }
        }
        let link = &mut self.links[number];
        match phase {
            Some(phase) => link.phase = phase,
            None => link.rest(),
        }
        let InFlight { held, frames } = under_way;
        (self.tell)(&Answer::Harmed { kind: fault.kind, held, frames })
    }

    /// Does what is due on a link at this time.
    fn advance(&mut self, number: usize, now: Instant) -> Result<(), Failure> {
        let link = &mut self.links[number];
        match link.phase {
            Phase::Rest(at) if at <= now => {
                let newest =
                    self.connections.iter_mut().rev().find(|(_, connection)| {
                        connection.link == number && connection.is_attached() && !connection.spent
                    });
                let Some((token, connection)) = newest else { return Ok(()) };
                let token = *token;
                let Some(fault) = link.plan.pop_front() else {
                    link.phase = Phase::Over;
                    return Ok(());
                };
                link.phase = Phase::Armed(fault);
                if fault.kind == Kind::CutHandshake {
                    // So that there is a handshake.
                    if let Some(connection) = self.remove(token) {
                        connection.reset();
                    }
                } else {
                    connection.look_for(&fault);
                }
            }
            Phase::Stalled(at, token) if at <= now => {
                link.rest();
                if let Some(connection) = self.remove(token) {
                    connection.reset();
                }
            }
            Phase::Flipped(at, ..) if at <= now => {
                return Err(Failure::new(format!("a session on link {number} lives on with an altered byte")));
            }
            Phase::Closed(at) if at <= now => {
                link.is_back();
                link.rest();
                let opened = link.door.open(self.poll.registry(), Token(FIRST_DOOR + number));
                opened.context("opening a listener again")?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Tells that something is under way on the links that were asked about, once it is, or that nothing is.
    fn answer_probe(&mut self) -> Result<(), Failure> {
        let Some((links, until)) = &self.probe else { return Ok(()) };
        let of_links = self.connections.values().filter(|connection| links.contains(&connection.link));
        let frames = of_links.map(|connection| connection.in_flight().frames).sum();
        if frames > 0 || *until <= Instant::now() {
            self.probe = None;
            (self.tell)(&Answer::Probed { frames })?;
        }
        Ok(())
    }

    fn passed(&self) -> Passed {
        Passed {
            reconnects: self.attached,
            reconnect_p50_ms: self.gaps.micros(0.5) / 1e3,
            reconnect_p99_ms: self.gaps.micros(0.99) / 1e3,
            reconnect_max_ms: self.gaps.micros(1.0) / 1e3,
        }
    }
}

impl Link {
    /// What kept it from being attached is over.
    fn is_back(&mut self) {
        if let Some(since) = &mut self.down_since {
            *since = Instant::now();
        }
    }

    /// Leaves it alone until the next fault is due.
    fn rest(&mut self) {
        self.phase = match self.plan.front() {
            Some(fault) => Phase::Rest(Instant::now() + fault.rest),
            None => Phase::Over,
        };
    }
}

#[cfg(test)]
mod tests;
