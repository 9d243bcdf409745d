//! Sockets that had to go for a configuration that then failed, and whoever waited at one that goes for good.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mio::event::Source;
use mio::{Interest, Registry, Token};
use parking_lot::Mutex;
use threadwire::config::{Config, Exposure};
use threadwire::error::ReloadError;
use threadwire::transport::tcp::{Tcp, TcpOptions};
use threadwire::transport::{Listener, PendingConnection, Transport};
use threadwire::{Event, Node};

use crate::common::{PATIENCE, addr, alone, own_ip, quick, reaches, start, wait_event};
use crate::{changed, scraped};

/// What goes wrong with listeners.
#[derive(Debug, Default)]
struct Faults {
    /// The next one is bound, and cannot be served.
    unserved: AtomicBool,
    /// None can be bound.
    unbound: AtomicBool,
    /// Nobody is accepted.
    shut: AtomicBool,
    /// Before the next one is bound, somebody else takes this address.
    takes: Mutex<Option<SocketAddr>>,
    taken: Mutex<Vec<TcpListener>>,
}

/// TCP with these faults.
#[derive(Debug, Clone)]
struct Faulty {
    faults: Arc<Faults>,
    tcp: Tcp,
}

struct FaultyListener {
    inner: Box<dyn Listener>,
    faults: Arc<Faults>,
    unserved: Unserved,
    is_unserved: bool,
}

struct Unserved;

impl Faulty {
    fn new() -> Self {
        Self { faults: Arc::default(), tcp: Tcp::new(TcpOptions::default()) }
    }

    fn start(&self, config: &Config) -> Node {
        Node::builder().config(config.clone()).transport(self.clone()).start().unwrap()
    }
}

impl Transport for Faulty {
    fn name(&self) -> &'static str {
        "faulty"
    }

    fn listen(&self, addr: SocketAddr) -> io::Result<Box<dyn Listener>> {
        if self.faults.unbound.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let takes = self.faults.takes.lock().take();
        if let Some(takes) = takes {
            self.faults.taken.lock().push(TcpListener::bind(takes)?);
        }
        let is_unserved = self.faults.unserved.swap(false, Ordering::SeqCst);
        // Beside what was taken there is another port.
        let inner = self.tcp.listen(takes.map_or(addr, |takes| (takes.ip(), 0).into()))?;
        Ok(Box::new(FaultyListener { inner, faults: self.faults.clone(), unserved: Unserved, is_unserved }))
    }

    fn connect(&self, addr: SocketAddr) -> io::Result<Box<dyn PendingConnection>> {
        self.tcp.connect(addr)
    }
}

impl Listener for FaultyListener {
    fn local_addr(&self) -> SocketAddr {
        self.inner.local_addr()
    }

    fn accept(&mut self) -> io::Result<Box<dyn PendingConnection>> {
        if self.faults.shut.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.inner.accept()
    }

    fn source(&mut self) -> &mut dyn Source {
        if self.is_unserved { &mut self.unserved } else { self.inner.source() }
    }
}

impl Source for Unserved {
    fn register(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
        Err(io::ErrorKind::OutOfMemory.into())
    }

    fn reregister(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
        Err(io::ErrorKind::OutOfMemory.into())
    }

    fn deregister(&mut self, _: &Registry) -> io::Result<()> {
        Ok(())
    }
}

/// With an endpoint for metrics at a port that was free a moment ago, where no other process takes it, and whatever may be public.
fn measured() -> Config {
    changed(&quick(), |config| {
        config.security.public = vec![Exposure::Open, Exposure::Plain];
        config.metrics.listen = Some(TcpListener::bind((own_ip(1), 0)).unwrap().local_addr().unwrap());
    })
}

fn wildcard(of: SocketAddr) -> SocketAddr {
    (std::net::Ipv4Addr::UNSPECIFIED, of.port()).into()
}

/// The same, with another listener, and the endpoint at the wildcard of its port: the old one has to go first.
fn moved(config: &Config) -> Config {
    changed(config, |config| {
        config.listen.push("127.0.0.1:0".parse().unwrap());
        config.metrics.listen = config.metrics.listen.map(wildcard);
    })
}

#[test]
fn an_endpoint_that_went_for_listeners_that_cannot_be_served_is_there_again() {
    let _alone = alone();
    let (transport, config) = (Faulty::new(), measured());
    let bob = transport.start(&config);
    let served = bob.metrics_addr().unwrap();
    transport.faults.unserved.store(true, Ordering::SeqCst);
    let error = bob.reload(&moved(&config)).unwrap_err();
    let ReloadError::System { kind: io::ErrorKind::OutOfMemory, lost, .. } = &error else { panic!("{error}") };
    assert_eq!(lost.as_slice(), []);
    assert_eq!(bob.metrics_addr(), Some(served));
    assert!(scraped(served).unwrap().contains("# EOF"));
    assert!(!transport.faults.unserved.load(Ordering::SeqCst), "it was tried");
    assert_eq!(bob.reload(&config).unwrap().changed, [""; 0]);
}

#[test]
fn an_address_that_is_lost_is_named_whatever_failed() {
    let _alone = alone();
    let (transport, config) = (Faulty::new(), measured());
    let bob = transport.start(&config);
    let (served, listens) = (bob.metrics_addr().unwrap(), addr(&bob));
    // Another listener in the endpoint's place, which is bound and cannot be served; the second time somebody else has
    // the endpoint's address then.
    let wanted = changed(&config, |config| {
        config.listen = vec!["127.0.0.1:0".parse().unwrap(), wildcard(served)];
        config.metrics.listen = None;
    });
    transport.faults.unserved.store(true, Ordering::SeqCst);
    let error = bob.reload(&wanted).unwrap_err();
    let ReloadError::System { lost, .. } = &error else { panic!("{error}") };
    assert_eq!(lost.as_slice(), []);
    transport.faults.unserved.store(true, Ordering::SeqCst);
    *transport.faults.takes.lock() = Some(served);
    let error = bob.reload(&wanted).unwrap_err();
    let ReloadError::System { lost, .. } = &error else { panic!("{error}") };
    assert_eq!(lost.as_slice(), [served]);
    assert!(error.to_string().contains(&format!("no longer listens on [{served}]")), "{error}");
    assert_eq!((bob.metrics_addr(), bob.config().metrics.listen), (None, None));
    assert_eq!(bob.local_addrs(), [listens]);
}

#[test]
fn a_listener_that_is_lost_is_advertised_no_longer() {
    let _alone = alone();
    let (transport, config, carol) = (Faulty::new(), measured(), start(quick()));
    let bob = transport.start(&config);
    let listens = addr(&bob);
    let told = || {
        bob.connect(addr(&carol)).unwrap();
        carol.wait_connected(bob.id(), PATIENCE).unwrap();
        let told = wait_event(&carol, "bob is there", |event| match event {
            Event::Connected { advertised, .. } => Some(advertised),
            _ => None,
        });
        carol.disconnect(bob.id(), threadwire::error::CloseReason::Requested).unwrap();
        wait_event(&bob, "it is over", |event| matches!(event, Event::Disconnected { .. }).then_some(()));
        told
    };
    assert_eq!(told(), Some(listens));
    transport.faults.unbound.store(true, Ordering::SeqCst);
    let error = bob.reload(&changed(&config, |config| config.listen = vec![wildcard(listens)])).unwrap_err();
    let ReloadError::Bind { lost, .. } = &error else { panic!("{error}") };
    assert_eq!(lost.as_slice(), [listens]);
    assert_eq!((bob.local_addrs(), told()), (vec![], None));
    transport.faults.unbound.store(false, Ordering::SeqCst);
    bob.reload(&config).unwrap();
    assert_eq!(told(), bob.local_addr());
}

#[test]
fn everybody_who_waits_at_a_listener_that_goes_is_let_in() {
    const WAITING: u64 = 100;
    let _alone = alone();
    let (transport, config) = (Faulty::new(), quick());
    let bob = transport.start(&config);
    transport.faults.shut.store(true, Ordering::SeqCst);
    let waiting: Vec<TcpStream> = (0..WAITING).map(|_| TcpStream::connect(addr(&bob)).unwrap()).collect();
    transport.faults.shut.store(false, Ordering::SeqCst);
    bob.reload(&changed(&config, |config| config.listen = vec![])).unwrap();
    assert_eq!(bob.metrics().accepted, WAITING);
    drop(waiting);
    let alice = start(quick());
    bob.connect(addr(&alice)).unwrap();
    reaches(&bob, &alice);
}
