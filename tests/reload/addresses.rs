//! Where a node listens, and where it serves metrics.

use std::net::{SocketAddr, TcpListener, TcpStream};

use threadwire::config::Exposure;
use threadwire::error::ReloadError;

use crate::common::{addr, alone, link, quick, reaches, start};
use crate::{changed, scraped};

#[test]
fn a_node_listens_elsewhere_and_its_sessions_stay() {
    let _alone = alone();
    let config = quick();
    let (alice, bob) = (start(quick()), start(config.clone()));
    link(&alice, &bob);
    let old = addr(&bob);
    // Beside it, then instead of it: port 0 is the socket that there is, and it may be named.
    let two = changed(&config, |config| config.listen = vec!["127.0.0.1:0".parse().unwrap(); 2]);
    bob.reload(&two).unwrap();
    let [first, new] = bob.local_addrs()[..] else { panic!("{:?}", bob.local_addrs()) };
    assert_eq!(first, old);
    bob.reload(&changed(&config, |config| config.listen = vec![new])).unwrap();
    assert_eq!(bob.local_addrs(), [new]);
    assert_eq!(TcpStream::connect(old).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    let carol = start(quick());
    carol.connect(new).unwrap();
    // Peers are told the new address.
    let peers = carol.peers();
    let told = peers.iter().find(|peer| peer.id == bob.id()).unwrap().advertised;
    assert_eq!(told, Some(new));
    // Nowhere, and back.
    bob.reload(&changed(&config, |config| config.listen = vec![])).unwrap();
    assert_eq!((bob.local_addr(), bob.local_addrs().len()), (None, 0));
    assert_eq!(TcpStream::connect(new).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    bob.reload(&changed(&config, |config| config.listen = vec![new])).unwrap();
    start(quick()).connect(new).unwrap();
    reaches(&alice, &bob);
    assert_eq!(alice.metrics().sessions_ended, 0);
}

#[test]
fn an_address_that_overlaps_the_old_one_takes_its_place() {
    let _alone = alone();
    let config = changed(&quick(), |config| config.security.public = vec![Exposure::Open, Exposure::Plain]);
    let (alice, bob) = (start(quick()), start(config.clone()));
    link(&alice, &bob);
    let port = addr(&bob).port();
    let wildcard = SocketAddr::from(([0, 0, 0, 0], port));
    for wanted in [wildcard, addr(&bob)] {
        let report = bob.reload(&changed(&config, |config| config.listen = vec![wanted])).unwrap();
        assert!(report.changed.contains(&"listen"));
        assert_eq!(bob.local_addrs(), [wanted]);
        start(quick()).connect(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
        reaches(&alice, &bob);
    }
    assert_eq!(alice.metrics().sessions_ended, 0);
}

#[test]
fn an_address_that_cannot_be_bound_is_a_refusal_and_the_old_ones_are_served_again() {
    let _alone = alone();
    let config = changed(&quick(), |config| config.security.public = vec![Exposure::Open, Exposure::Plain]);
    let bob = start(config.clone());
    let old = addr(&bob);
    let holds = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holds.local_addr().unwrap();
    let wildcard = SocketAddr::from(([0, 0, 0, 0], old.port()));
    // In the way of the wildcard still when the old address was given up for it.
    let _holds_too = TcpListener::bind(("127.0.0.2", old.port())).unwrap();
    for (wanted, fails) in [(vec![old, taken], taken), (vec![wildcard], wildcard)] {
        let wanted = changed(&config, |config| (config.listen, config.inbound) = (wanted.clone(), 7));
        let error = bob.reload(&wanted).unwrap_err();
        let ReloadError::Bind { field: "listen", addr, kind, lost, .. } = &error else { panic!("{error}") };
        assert_eq!((*addr, *kind, lost.as_slice()), (fails, std::io::ErrorKind::AddrInUse, &[][..]));
        assert_eq!(bob.local_addrs(), [old]);
        let alice = start(quick());
        alice.connect(old).unwrap();
        reaches(&alice, &bob);
    }
    assert_eq!(bob.reload(&config).unwrap().changed, [""; 0]);
}

#[test]
fn metrics_are_served_where_the_configuration_says_now() {
    let _alone = alone();
    let config = quick();
    let bob = start(config.clone());
    let at = |listen: Option<&str>| {
        changed(&config, |config| config.metrics.listen = listen.map(|addr| addr.parse().unwrap()))
    };
    bob.reload(&at(Some("127.0.0.1:0"))).unwrap();
    let first = bob.metrics_addr().unwrap();
    assert!(scraped(first).unwrap().contains("# EOF"));
    // The wildcard has that port: the old endpoint goes first.
    let wildcard = format!("0.0.0.0:{}", first.port());
    bob.reload(&at(Some(&wildcard))).unwrap();
    assert_eq!(bob.metrics_addr().unwrap().to_string(), wildcard);
    assert!(scraped(first).unwrap().contains("# EOF"));
    // One that is taken: nothing changes.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let error = bob.reload(&at(Some(&taken.local_addr().unwrap().to_string()))).unwrap_err();
    assert!(matches!(error, ReloadError::Bind { field: "metrics.listen", .. }), "{error}");
    assert!(scraped(first).unwrap().contains("# EOF"));
    bob.reload(&at(None)).unwrap();
    assert_eq!((bob.metrics_addr(), scraped(first).is_err()), (None, true));
}
