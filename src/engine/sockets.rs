//! The listening sockets of a running engine, as another configuration wants them.
//!
//! Owns: sockets that are bound and not in use yet, until they are or are given up. Threads: whoever reloads. Locks: the
//! endpoint's, and under it how far a shutdown is; that of the addresses, a leaf; one after the other. Blocks on: the
//! acceptor's answers; the end of the metrics thread, with a deadline.
//! Upholds: new sockets are bound before old ones go, unless the two cannot be there together; what fails is undone, and
//! what cannot be undone is said.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use super::present::Present;
use super::running::{self, Engine};
use crate::config::{Config, Listening, SocketPlan, Source, overlap};
use crate::connections::{Command, Commands, ListenerId};
use crate::error::ReloadError;
use crate::exposition::{Bound, Exposition};
use crate::transport::Listener;

/// How long the thread of an endpoint that ends may take.
const ENDPOINT_END: Duration = Duration::from_secs(5);

/// Sockets on their way to what a configuration wants.
pub(super) struct Moving<'a> {
    engine: &'a Engine,
    commands: &'a Commands,
    /// What there will be, in the order of the configuration.
    pub(super) sockets: Vec<(ListenerId, Listening)>,
    /// Those of them that are bound for it.
    new: Vec<(ListenerId, Box<dyn Listener>)>,
    /// What goes in the end.
    retired: Vec<ListenerId>,
    /// What had to go before.
    gone: Vec<Listening>,
    endpoint: Endpoint,
    /// Where the endpoint was that had to go before.
    endpoint_gone: Option<SocketAddr>,
}

/// What becomes of the endpoint.
enum Endpoint {
    Stays,
    /// Another one, or none, takes its place.
    Becomes(Option<(Bound, SocketAddr)>),
}

impl<'a> Moving<'a> {
    /// Binds what a configuration wants and is not there. Fails without a trace, or says what is lost.
    ///
    /// # Errors
    /// An address cannot be bound; the engine shuts down.
    pub(super) fn begin(
        engine: &'a Engine,
        commands: &'a Commands,
        present: &mut Present,
        config: &Config,
    ) -> Result<Self, ReloadError> {
        let there: Vec<Listening> = present.sockets.iter().map(|(_, socket)| *socket).collect();
        let plan = SocketPlan::between(&there, &config.listen);
        let served = engine.sites.lock().metrics;
        let stays = match (present.config.metrics.listen, config.metrics.listen) {
            (old, new) if old == new => true,
            (_, new) => new.is_some() && new == served,
        };
        let leaves = |n: &usize| present.sockets.get(*n).copied();
        let retired: Vec<(ListenerId, Listening)> = plan.retired.iter().filter_map(leaves).collect();
        let mut leaving: Vec<SocketAddr> = retired.iter().map(|(_, socket)| socket.bound).collect();
        leaving.extend(served.filter(|_| !stays));
        let in_the_way = |addr: SocketAddr| leaving.iter().any(|old| overlap(*old, addr));

        let mut moving = Self {
            engine,
            commands,
            sockets: Vec::new(),
            new: Vec::new(),
            retired: Vec::new(),
            gone: Vec::new(),
            endpoint: if stays { Endpoint::Stays } else { Endpoint::Becomes(None) },
            endpoint_gone: None,
        };
        let metrics = config.metrics.listen.filter(|_| !stays);
        // Those that can be there beside what goes.
        let mut bound: Vec<Option<Box<dyn Listener>>> = Vec::new();
        for (addr, source) in config.listen.iter().zip(&plan.wanted) {
            let now = *source == Source::New && !in_the_way(*addr);
            bound.push(now.then(|| moving.listen(*addr)).transpose()?);
        }
        if let Some(addr) = metrics.filter(|addr| !in_the_way(*addr)) {
            moving.endpoint = Endpoint::Becomes(Some(serve_at(addr)?));
        }
        // The others, once those have gone that are in their way.
        let late = |addr: &SocketAddr| in_the_way(*addr);
        let news = config.listen.iter().zip(&plan.wanted).filter(|(_, source)| **source == Source::New);
        let wants: Vec<SocketAddr> = news.map(|(addr, _)| *addr).chain(metrics).filter(late).collect();
        let blocks = |old: SocketAddr| wants.iter().any(|addr| overlap(old, *addr));
        let (first, later): (Vec<_>, Vec<_>) = retired.into_iter().partition(|(_, socket)| blocks(socket.bound));
        moving.retired = later.into_iter().map(|(id, _)| id).collect();
        moving.unlisten(first.iter().map(|(id, _)| *id).collect())?;
        moving.gone = first.into_iter().map(|(_, socket)| socket).collect();
        if let Some(addr) = served.filter(|addr| !stays && blocks(*addr)) {
            moving.end_endpoint();
            moving.endpoint_gone = Some(addr);
        }
        for ((addr, source), bound) in config.listen.iter().zip(&plan.wanted).zip(bound) {
            if let Source::Stays(n) = source {
                let socket = present.sockets.get(*n).map(|(id, old)| (*id, Listening { asked: *addr, ..*old }));
                moving.sockets.extend(socket);
                continue;
            }
            let listener = match bound.map_or_else(|| moving.listen(*addr), Ok) {
                Ok(listener) => listener,
                Err(error) => return Err(moving.undo(present, error)),
            };
            let id = present.next_id();
            moving.sockets.push((id, Listening { asked: *addr, bound: listener.local_addr() }));
            moving.new.push((id, listener));
        }
        if let Some(addr) = metrics.filter(late) {
            match serve_at(addr) {
                Ok(served) => moving.endpoint = Endpoint::Becomes(Some(served)),
                Err(error) => return Err(moving.undo(present, error)),
            }
        }
        Ok(moving)
    }

    /// Puts the sockets to use: the new ones are served before the old ones go.
    ///
    /// # Errors
    /// The system refuses; the engine shuts down. What was there before is there again, or the error says what is not.
    pub(super) fn finish(mut self, present: &mut Present) -> Result<(), ReloadError> {
        let endpoint = match std::mem::replace(&mut self.endpoint, Endpoint::Stays) {
            Endpoint::Stays => None,
            Endpoint::Becomes(None) => Some(None),
            Endpoint::Becomes(Some((bound, addr))) => match running::serve(bound, &self.engine.shared) {
                Ok(exposition) => Some(Some((exposition, addr))),
                Err(error) => return Err(self.undo(present, system(&error))),
            },
        };
        let new = std::mem::take(&mut self.new);
        if let Err(error) = self.hand_over(new) {
            // It may be in the way of the one that has to come back.
            if let Some((exposition, _)) = endpoint.flatten() {
                end(exposition);
            }
            return Err(self.undo(present, error));
        }
        if let Some(endpoint) = endpoint {
            self.replace_endpoint(endpoint)?;
        }
        let retired = std::mem::take(&mut self.retired);
        self.unlisten(retired)?;
        present.sockets = std::mem::take(&mut self.sockets);
        self.engine.sites.lock().local_addrs = present.local_addrs();
        Ok(())
    }

    fn listen(&self, addr: SocketAddr) -> Result<Box<dyn Listener>, ReloadError> {
        let transport = self.engine.protection.transport();
        transport.listen(addr).map_err(|error| bind_error("listen", addr, &error))
    }

    /// Gives listeners to the acceptor.
    fn hand_over(&self, listeners: Vec<(ListenerId, Box<dyn Listener>)>) -> Result<(), ReloadError> {
        if listeners.is_empty() {
            return Ok(());
        }
        let (answer, answered) = bounded(1);
        self.commands.send(Command::Listen(listeners, answer));
        answered.recv().map_err(|_| ReloadError::ShuttingDown)?.map_err(|error| system(&error))
    }

    /// Takes them from it.
    fn unlisten(&self, listeners: Vec<ListenerId>) -> Result<(), ReloadError> {
        if listeners.is_empty() {
            return Ok(());
        }
        let (answer, answered) = bounded(1);
        self.commands.send(Command::Unlisten(listeners, answer));
        answered.recv().map_err(|_| ReloadError::ShuttingDown)
    }

    /// Ends the endpoint that there is, and waits until its socket is closed.
    fn end_endpoint(&self) {
        let endpoint = self.engine.endpoint.lock().take();
        self.engine.sites.lock().metrics = None;
        endpoint.into_iter().for_each(end);
    }

    fn replace_endpoint(&self, new: Option<(Exposition, SocketAddr)>) -> Result<(), ReloadError> {
        let (exposition, addr) = new.unzip();
        let mut endpoint = self.engine.endpoint.lock();
        // Whoever shuts down ends the one that is here once it has begun.
        if self.engine.ending.has_begun() {
            return Err(ReloadError::ShuttingDown);
        }
        let old = std::mem::replace(&mut *endpoint, exposition);
        drop(endpoint);
        self.engine.sites.lock().metrics = addr;
        old.into_iter().for_each(end);
        Ok(())
    }

    /// Takes again what had to go. Returns the error, with what is lost.
    fn undo(mut self, present: &mut Present, error: ReloadError) -> ReloadError {
        // What was bound for the new configuration may be in the way.
        self.new.clear();
        self.endpoint = Endpoint::Stays;
        let mut gone = Vec::new();
        for socket in std::mem::take(&mut self.gone) {
            let id = present.next_id();
            let again = self.listen(socket.bound).and_then(|listener| self.hand_over(vec![(id, listener)]));
            if let Err(again) = again {
                log::error!(target: "threadwire::node", "{again}; it was given up for another configuration");
                present.sockets.retain(|(_, old)| *old != socket);
                gone.push(socket.bound);
            } else if let Some((old, _)) = present.sockets.iter_mut().find(|(_, old)| *old == socket) {
                *old = id;
            }
        }
        if let Some(addr) = self.endpoint_gone {
            let again = serve_at(addr).and_then(|(bound, addr)| {
                let exposition = running::serve(bound, &self.engine.shared).map_err(|error| system(&error))?;
                self.replace_endpoint(Some((exposition, addr)))
            });
            if let Err(again) = again {
                log::error!(target: "threadwire::node", "{again}; it was given up for another configuration");
                present.config.metrics.listen = None;
                gone.push(addr);
            }
        }
        present.config.listen = present.sockets.iter().map(|(_, socket)| socket.asked).collect();
        let local_addrs = present.local_addrs();
        // Nobody is told to dial what is lost.
        self.engine.advertise(&present.config, &local_addrs);
        self.engine.sites.lock().local_addrs = local_addrs;
        match error {
            ReloadError::Bind { field, addr, what, kind, .. } => {
                ReloadError::Bind { field, addr, what, kind, lost: gone }
            }
            ReloadError::System { what, kind, .. } => ReloadError::System { what, kind, lost: gone },
            other => other,
        }
    }
}

/// Ends an endpoint, and waits until its socket is closed.
fn end(endpoint: Exposition) {
    if let Some(name) = endpoint.join(Instant::now() + ENDPOINT_END) {
        log::warn!(target: "threadwire::node", "the thread {name} of the former endpoint still runs");
    }
}

fn serve_at(addr: SocketAddr) -> Result<(Bound, SocketAddr), ReloadError> {
    let bound = Bound::to(addr).map_err(|error| bind_error("metrics.listen", addr, &error))?;
    let at = bound.addr();
    Ok((bound, at))
}

fn bind_error(field: &'static str, addr: SocketAddr, error: &io::Error) -> ReloadError {
    ReloadError::Bind { field, addr, what: error.to_string(), kind: error.kind(), lost: Vec::new() }
}

fn system(error: &io::Error) -> ReloadError {
    ReloadError::System { what: error.to_string(), kind: error.kind(), lost: Vec::new() }
}
