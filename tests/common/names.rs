//! A resolver whose answers a test gives: addresses, errors, or nothing until the test says so.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use threadwire::Resolver;

/// What is known, and what was asked. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Names(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    known: HashMap<String, Vec<IpAddr>>,
    asked: HashMap<String, u64>,
    hanging: usize,
    revived: bool,
}

impl Names {
    /// From now on a name has these addresses.
    pub fn set(&self, host: &str, addrs: &[&str]) {
        let addrs = addrs.iter().map(|addr| addr.parse().unwrap()).collect();
        self.0.state.lock().known.insert(host.to_owned(), addrs);
    }

    /// How often a name was looked up.
    pub fn asked(&self, host: &str) -> u64 {
        self.0.state.lock().asked.get(host).copied().unwrap_or(0)
    }

    /// Lookups that hang now.
    pub fn hanging(&self) -> usize {
        self.0.state.lock().hanging
    }

    /// When this is dropped, everything that hangs goes on: it has no address.
    pub fn until_dropped(&self) -> Revive {
        Revive(self.0.clone())
    }
}

/// Ends the hanging.
pub struct Revive(Arc<Inner>);

impl Drop for Revive {
    fn drop(&mut self) {
        self.0.state.lock().revived = true;
        self.0.changed.notify_all();
    }
}

impl Resolver for Names {
    /// Names that begin with `dead` hang until they are revived.
    fn resolve(&self, host: &str) -> io::Result<Vec<SocketAddr>> {
        let mut state = self.0.state.lock();
        *state.asked.entry(host.to_owned()).or_default() += 1;
        if host.starts_with("dead") {
            state.hanging += 1;
            self.0.changed.wait_while(&mut state, |state| !state.revived);
            state.hanging -= 1;
        }
        match state.known.get(host) {
            Some(addrs) => Ok(addrs.iter().map(|ip| (*ip, 0).into()).collect()),
            None => Err(io::Error::other("nobody knows it")),
        }
    }
}
