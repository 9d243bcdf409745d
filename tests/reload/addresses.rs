//! Where a node listens, and where it serves metrics.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use parking_lot::Mutex;
use threadwire::Node;
use threadwire::config::{Config, Exposure, Reload};
use threadwire::error::ReloadError;
use threadwire::transport::tcp::Tcp;
use threadwire::transport::{Listener, PendingConnection, Transport};

use crate::common::{addr, alone, link, own_ip, quick, reaches, start};
use crate::{changed, refused, scraped};

/// A node's configuration at an address where no other process takes a port that is released.
fn aside() -> Config {
    changed(&quick(), |config| config.listen = vec![(own_ip(1), 0).into()])
}

/// The same, where others may connect.
fn public() -> Config {
    changed(&aside(), |config| config.security.public = vec![Exposure::Open, Exposure::Plain])
}

/// Everywhere at this port, where somebody else may be.
fn everywhere(port: u16) -> SocketAddr {
    (Ipv4Addr::UNSPECIFIED, port).into()
}

/// Nothing where another process was in the way.
#[track_caller]
fn unless_taken(result: Result<Reload, ReloadError>) -> Option<Reload> {
    match result {
        Err(ReloadError::Bind { kind: ErrorKind::AddrInUse, .. }) => None,
        result => Some(result.unwrap()),
    }
}

/// Does it with another port where another process was in the way.
fn some_port_is_free(mut attempt: impl FnMut() -> Option<()>) {
    assert!((0..20).any(|_| attempt().is_some()), "others are everywhere");
}

#[test]
fn a_node_listens_elsewhere_and_its_sessions_stay() {
    let _alone = alone();
    let config = aside();
    let (alice, bob) = (start(quick()), start(config.clone()));
    link(&alice, &bob);
    let old = addr(&bob);
    // Beside it, then instead of it: port 0 is the socket that there is, and it may be named.
    let two = changed(&config, |config| config.listen = vec![(own_ip(1), 0).into(); 2]);
    bob.reload(&two).unwrap();
    let [first, new] = bob.local_addrs()[..] else { panic!("{:?}", bob.local_addrs()) };
    assert_eq!(first, old);
    bob.reload(&changed(&config, |config| config.listen = vec![new])).unwrap();
    assert_eq!(bob.local_addrs(), [new]);
    assert_eq!(TcpStream::connect(old).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let carol = start(quick());
    carol.connect(new).unwrap();
    // Peers are told the new address.
    let peers = carol.peers();
    let told = peers.iter().find(|peer| peer.id == bob.id()).unwrap().advertised;
    assert_eq!(told, Some(new));
    // Nowhere, and back.
    bob.reload(&changed(&config, |config| config.listen = vec![])).unwrap();
    assert_eq!((bob.local_addr(), bob.local_addrs().len()), (None, 0));
    assert_eq!(TcpStream::connect(new).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    bob.reload(&changed(&config, |config| config.listen = vec![new])).unwrap();
    start(quick()).connect(new).unwrap();
    reaches(&alice, &bob);
    assert_eq!(alice.metrics().sessions_ended, 0);
}

#[test]
fn an_address_that_overlaps_the_old_one_takes_its_place() {
    let _alone = alone();
    some_port_is_free(|| {
        let config = public();
        let (alice, bob) = (start(quick()), start(config.clone()));
        link(&alice, &bob);
        let narrow = addr(&bob);
        for wanted in [everywhere(narrow.port()), narrow] {
            let report = unless_taken(bob.reload(&changed(&config, |config| config.listen = vec![wanted])))?;
            assert!(report.changed.contains(&"listen"));
            assert_eq!(bob.local_addrs(), [wanted]);
            start(quick()).connect(narrow).unwrap();
            reaches(&alice, &bob);
        }
        assert_eq!(alice.metrics().sessions_ended, 0);
        Some(())
    });
}

#[test]
fn an_address_that_cannot_be_bound_is_a_refusal_and_the_old_ones_are_served_again() {
    let _alone = alone();
    let config = public();
    let bob = start(config.clone());
    let old = addr(&bob);
    let holds = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holds.local_addr().unwrap();
    let wildcard = everywhere(old.port());
    // In the way of the wildcard still when the old address was given up for it.
    let _holds_too = TcpListener::bind((own_ip(2), old.port())).unwrap();
    for (wanted, fails) in [(vec![old, taken], taken), (vec![wildcard], wildcard)] {
        let wanted = changed(&config, |config| (config.listen, config.inbound) = (wanted.clone(), 7));
        let error = refused(&bob, &wanted);
        let ReloadError::Bind { field: "listen", addr, kind, lost, .. } = &error else { panic!("{error}") };
        assert_eq!((*addr, *kind, lost.as_slice()), (fails, ErrorKind::AddrInUse, &[][..]));
        assert_eq!(bob.local_addrs(), [old]);
        let alice = start(quick());
        alice.connect(old).unwrap();
        reaches(&alice, &bob);
    }
    assert_eq!(bob.reload(&config).unwrap().changed, [""; 0]);
}

/// TCP, and somebody who waits for addresses to be released, and takes them before anything else is bound.
#[derive(Debug, Clone, Default)]
struct Snatched {
    tcp: Tcp,
    /// What is waited for, once a socket for everywhere is asked for.
    wants: Arc<Mutex<Vec<SocketAddr>>>,
    has: Arc<Mutex<Vec<TcpListener>>>,
}

impl Transport for Snatched {
    fn name(&self) -> &'static str {
        "snatched"
    }

    fn listen(&self, addr: SocketAddr) -> std::io::Result<Box<dyn Listener>> {
        if addr.ip().is_unspecified() {
            for addr in self.wants.lock().drain(..) {
                self.has.lock().push(TcpListener::bind(addr)?);
            }
        }
        self.tcp.listen(addr)
    }

    fn connect(&self, addr: SocketAddr) -> std::io::Result<Box<dyn PendingConnection>> {
        self.tcp.connect(addr)
    }
}

#[test]
fn what_cannot_be_bound_again_after_a_refusal_is_said_to_be_lost_and_can_be_had_again_later() {
    let _alone = alone();
    let snatched = Snatched::default();
    let config = changed(&public(), |config| {
        config.listen.push((own_ip(2), 0).into());
        config.metrics.listen = Some((own_ip(1), 0).into());
    });
    let bob = Node::builder().config(config.clone()).transport(snatched.clone()).start().unwrap();
    let alice = start(quick());
    link(&alice, &bob);
    let [old, other] = bob.local_addrs()[..] else { panic!("{:?}", bob.local_addrs()) };
    let metrics = bob.metrics_addr().unwrap();
    // All three have to go for what is wanted.
    let wanted = |listen: &[SocketAddr], metrics: SocketAddr| {
        changed(&config, |config| {
            (config.listen, config.inbound) = (listen.to_vec(), 7);
            config.metrics.listen = Some(metrics);
        })
    };
    let all = [everywhere(old.port()), everywhere(other.port())];
    *snatched.wants.lock() = vec![old, metrics];
    let error = refused(&bob, &wanted(&all, everywhere(metrics.port())));
    let ReloadError::Bind { field: "listen", addr: failed, kind: ErrorKind::AddrInUse, lost, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!((*failed, lost.as_slice()), (all[0], &[old, metrics][..]));
    assert!([old, metrics].iter().all(|lost| error.to_string().contains(&lost.to_string())), "{error}");
    // The rest is as it was, and the configuration that holds says what is left.
    assert_eq!((bob.local_addrs(), bob.metrics_addr()), (vec![other], None));
    let mut left = config.clone();
    (left.listen, left.metrics.listen) = (vec![config.listen[1]], None);
    assert_eq!(bob.config(), left);
    start(quick()).connect(other).unwrap();
    reaches(&alice, &bob);
    // Once they are free, what there was can be had again.
    snatched.has.lock().clear();
    let report = bob.reload(&changed(&config, |config| {
        (config.listen, config.metrics.listen) = (vec![old, other], Some(metrics));
    }));
    assert_eq!(report.unwrap().changed, ["listen", "metrics.listen"]);
    assert_eq!((bob.local_addrs(), bob.metrics_addr()), (vec![old, other], Some(metrics)));
    start(quick()).connect(old).unwrap();
    assert!(scraped(metrics).unwrap().contains("# EOF"));
    reaches(&alice, &bob);
    assert_eq!(alice.metrics().sessions_ended, 0);
}

#[test]
fn metrics_are_served_where_the_configuration_says_now() {
    let _alone = alone();
    some_port_is_free(|| {
        let config = quick();
        let bob = start(config.clone());
        let at = |listen: Option<SocketAddr>| changed(&config, |config| config.metrics.listen = listen);
        bob.reload(&at(Some((own_ip(1), 0).into()))).unwrap();
        let first = bob.metrics_addr().unwrap();
        assert!(scraped(first).unwrap().contains("# EOF"));
        // The wildcard has that port: the old endpoint goes first.
        let wildcard = everywhere(first.port());
        unless_taken(bob.reload(&at(Some(wildcard))))?;
        assert_eq!(bob.metrics_addr(), Some(wildcard));
        assert!(scraped(first).unwrap().contains("# EOF"));
        // One that is taken: nothing changes.
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let error = refused(&bob, &at(Some(taken.local_addr().unwrap())));
        assert!(matches!(error, ReloadError::Bind { field: "metrics.listen", .. }), "{error}");
        assert!(scraped(first).unwrap().contains("# EOF"));
        // Nor where the old one had to go for it first.
        bob.reload(&at(Some(first))).unwrap();
        let holds = TcpListener::bind((own_ip(2), first.port())).ok()?;
        let error = refused(&bob, &at(Some(wildcard)));
        assert!(matches!(&error, ReloadError::Bind { lost, .. } if lost.is_empty()), "{error}");
        assert_eq!(bob.metrics_addr(), Some(first));
        assert!(scraped(first).unwrap().contains("# EOF"));
        drop(holds);
        bob.reload(&at(None)).unwrap();
        assert_eq!((bob.metrics_addr(), scraped(first).is_err()), (None, true));
        Some(())
    });
}
