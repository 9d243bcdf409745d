//! Whom a node lets in over TLS, and lets itself be answered by: each kind of trust, each way to fall short of it, and
//! trust that is taken back.

#![cfg(feature = "tls")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::io::Read;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use threadwire::config::{Config, Exposure, TrustMode};
use threadwire::error::{CloseReason, DialCause, DisconnectReason, StartError};
use threadwire::handshake::Identity;
use threadwire::transport::tcp::Tcp;
use threadwire::transport::tls::{Credential, Tls};
use threadwire::transport::{Fault, Security, Transport, Trust};
use threadwire::{Event, Node};

mod common;
use common::certificates::{NOW, Office, certified, listing, with_key};
use common::wire::tls;
use common::{PATIENCE, addr, alone, ended, link, plain, quick, reaches, start, wait_event, wait_until};

/// Why a dial of `from` to `to` came to nothing; both sides have counted it.
fn refusal(from: &Node, to: &Node) -> DialCause {
    let before = to.metrics();
    let cause = common::refusal(from, addr(to));
    wait_until("the other side has counted it", || {
        to.metrics().handshakes_failed + to.metrics().refused > before.handshakes_failed + before.refused
    });
    cause
}

const UNTRUSTED_HERE: DialCause = DialCause::Rejected(CloseReason::Untrusted);
const UNTRUSTED_THERE: DialCause = DialCause::Refused(CloseReason::Untrusted);

fn talk(from: &Node, to: &Node) {
    from.connect(addr(to)).unwrap();
    to.wait_connected(from.id(), PATIENCE).unwrap();
    reaches(from, to);
    reaches(to, from);
}

#[test]
fn open_trust_lets_in_whoever_proves_a_key_and_the_ids_are_those_of_the_keys() {
    let _alone = alone();
    let (office, config) = (Office::new(), quick());
    let [a, b] = [office.key("a"), office.key("b")];
    let (alice, bob) = (start(with_key(config.clone(), &a)), start(with_key(config, &b)));
    assert_eq!((alice.id(), bob.id()), (a.id, b.id));
    talk(&alice, &bob);
}

#[test]
fn who_is_listed_comes_in_and_who_is_not_is_refused_whoever_dials_and_over_plain_tcp_too() {
    let _alone = alone();
    for config in [quick(), plain()] {
        let office = Office::new();
        let [a, b, c] = [office.key("a"), office.key("b"), office.key("c")];
        let alice = start(listing(with_key(config.clone(), &a), [b.id]));
        let bob = start(listing(with_key(config.clone(), &b), [a.id]));
        let carol = start(with_key(config, &c));
        talk(&alice, &bob);
        assert_eq!(refusal(&carol, &bob), UNTRUSTED_THERE);
        assert_eq!(refusal(&bob, &carol), UNTRUSTED_HERE);
        let metrics = bob.metrics();
        assert_eq!((metrics.sessions_started, metrics.handshakes_failed), (1, 1));
        reaches(&alice, &bob);
    }
}

#[test]
fn the_peers_of_the_configuration_are_listed() {
    let _alone = alone();
    let office = Office::new();
    let [a, b] = [office.key("a"), office.key("b")];
    let bob = start(with_key(quick(), &b));
    let mut config = listing(with_key(quick(), &a), []);
    config.peers.push(threadwire::config::Peer::new("bob", b.id, [addr(&bob).into()]));
    let alice = start(config);
    alice.wait_connected(bob.id(), PATIENCE).unwrap();
}

#[test]
fn whom_the_authority_vouches_for_comes_in_and_nobody_else() {
    let _alone = alone();
    let office = Office::new();
    let [a, b, c, d, e] = ["a", "b", "c", "d", "e"].map(|name| office.key(name));
    let (ours, other) = (office.authority("ours"), office.authority("other"));
    let good = |key| certified(with_key(quick(), key), &office.certificate(key, &ours, NOW), &ours.file);
    let (alice, bob) = (start(good(&a)), start(good(&b)));
    talk(&alice, &bob);
    for (what, certificate) in [
        ("expired", office.certificate(&c, &ours, 2001..2020)),
        ("not valid yet", office.certificate(&c, &ours, 2085..2090)),
        ("of another authority", office.certificate(&c, &other, NOW)),
    ] {
        let mut config = certified(with_key(quick(), &c), &certificate, &ours.file);
        config.security.roots = Some(ours.file.clone());
        let carol = start(config);
        assert_eq!(refusal(&carol, &bob), UNTRUSTED_THERE, "{what}");
        assert_eq!(refusal(&bob, &carol), UNTRUSTED_HERE, "{what}");
    }
    // Without any certificate: the other side has nothing to be vouched for by.
    let dave = start(with_key(quick(), &d));
    assert_eq!(refusal(&dave, &bob), UNTRUSTED_THERE);
    assert!(matches!(refusal(&bob, &dave), DialCause::Rejected(_) | DialCause::Refused(_)));
    // One that trusts by name alone takes a certificate for the key that it is of.
    let mut config = listing(with_key(quick(), &e), [a.id]);
    config.security.certificate = Some(office.certificate(&e, &ours, NOW));
    let erin = start(config);
    talk(&alice, &erin);
    assert_eq!(refusal(&bob, &erin), UNTRUSTED_THERE);
    assert_eq!(bob.metrics().sessions_started, 1);
}

#[test]
fn either_a_listed_name_or_a_certificate_suffices() {
    let _alone = alone();
    let office = Office::new();
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| office.key(name));
    let ours = office.authority("ours");
    let mut config = certified(with_key(quick(), &b), &office.certificate(&b, &ours, NOW), &ours.file);
    config.security.trusted = vec![a.id];
    let bob = start(config);
    let listed = start(with_key(quick(), &a));
    talk(&listed, &bob);
    let vouched = start(certified(with_key(quick(), &c), &office.certificate(&c, &ours, NOW), &ours.file));
    talk(&vouched, &bob);
    // By name it is dialled for its bare key.
    assert!(bob.disconnect(listed.id(), CloseReason::Requested).is_ok());
    wait_until("it has gone", || listed.sessions().is_empty());
    link(&bob, &listed);
    reaches(&bob, &listed);
    assert_eq!(refusal(&start(with_key(quick(), &d)), &bob), UNTRUSTED_THERE);
}

#[test]
fn a_dial_by_name_reaches_that_peer_or_nobody() {
    let _alone = alone();
    let (alice, bob, carol) = (start(quick()), start(quick()), start(quick()));
    alice.add_peer(carol.id(), [addr(&bob)]).unwrap();
    let cause = wait_event(&alice, "the dial fails", |event| match event {
        Event::DialFailed { peer, error, .. } if peer == Some(carol.id()) => Some(error.cause),
        _ => None,
    });
    assert_eq!(cause, DialCause::Rejected(CloseReason::WrongPeer));
    wait_until("bob was told so", || bob.metrics().handshakes_failed_by.remote.get(CloseReason::WrongPeer) > 0);
    assert_eq!((alice.metrics().sessions_started, bob.metrics().sessions_started), (0, 0));
}

#[test]
fn a_certificate_for_another_key_does_not_start_and_a_stolen_one_proves_nothing() {
    let _alone = alone();
    let office = Office::new();
    let [a, b, thief] = ["a", "b", "thief"].map(|name| office.key(name));
    let ours = office.authority("ours");
    let stolen = office.certificate(&a, &ours, NOW);
    let config = certified(with_key(quick(), &thief), &stolen, &ours.file);
    let Err(StartError::Config(error)) = Node::builder().config(config).start() else { panic!("it started") };
    assert!(error.to_string().contains("another key") && error.place == "security.certificate", "{error}");
    // So the thief writes a program of its own: with the certificate of one key and the signature of another.
    let bob = start(certified(with_key(quick(), &b), &office.certificate(&b, &ours, NOW), &ours.file));
    let alert = thief_dials(&stolen, &thief.file, &bob);
    assert!(alert.contains("DecryptError") || alert.contains("BadCertificate"), "{alert}");
    wait_until("it is counted", || bob.metrics().handshakes_failed == 1);
    assert_eq!(bob.metrics().sessions_started, 0);
}

/// Dials with a certificate and a key that is not its own; what the node says of it.
fn thief_dials(certificate: &std::path::Path, key: &std::path::Path, node: &Node) -> String {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::sign::{CertifiedKey, SingleCertAndKey};

    let chain: Vec<_> = CertificateDer::pem_file_iter(certificate).unwrap().map(Result::unwrap).collect();
    let key = tls::provider().key_provider.load_private_key(PrivateKeyDer::from_pem_file(key).unwrap()).unwrap();
    let shows = Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key)));
    let mut tls = tls::client_that_shows(shows, false);
    let mut stream = TcpStream::connect(addr(node)).unwrap();
    let error = rustls::Stream::new(&mut tls, &mut stream).read(&mut [0; 64]).unwrap_err();
    error.to_string()
}

#[test]
fn a_peer_that_is_no_longer_trusted_is_told_so_and_stays_out_and_the_others_do_not_notice() {
    let _alone = alone();
    for base in [quick(), plain()] {
        let office = Office::new();
        let [a, b, c] = ["a", "b", "c"].map(|name| office.key(name));
        let bob_config = listing(with_key(base.clone(), &b), [a.id, c.id]);
        let bob = start(bob_config.clone());
        let (alice, carol) = (start(with_key(base.clone(), &a)), start(with_key(base.clone(), &c)));
        link(&alice, &bob);
        link(&carol, &bob);
        bob.wait_connected(carol.id(), PATIENCE).unwrap();
        bob.wait_connected(alice.id(), PATIENCE).unwrap();
        assert_eq!(bob.reload(&bob_config).unwrap().closed.len(), 0, "nothing has changed");
        assert_eq!(bob.reload(&listing(bob_config.clone(), [a.id])).unwrap().closed.len(), 1);
        assert_eq!(ended(&carol), DisconnectReason::Remote(CloseReason::Untrusted));
        // She dials again, by herself, and stays out.
        wait_event(&carol, "she is refused", |event| match event {
            Event::DialFailed { error, .. } => (error.cause == UNTRUSTED_THERE).then_some(()),
            _ => None,
        });
        reaches(&alice, &bob);
        reaches(&bob, &alice);
        assert_eq!(bob.metrics().sessions_ended, 1);
        // Back in favour.
        assert_eq!(bob.reload(&bob_config).unwrap().closed.len(), 0);
        wait_until("she is back", || carol.wait_connected(bob.id(), Duration::from_millis(100)).is_ok());
        reaches(&carol, &bob);
    }
}

#[test]
fn new_certificates_and_authorities_are_taken_up_without_a_restart() {
    let _alone = alone();
    let office = Office::new();
    let [a, b] = ["a", "b"].map(|name| office.key(name));
    let (old, new) = (office.authority("old"), office.authority("new"));
    let with =
        |key, by, roots: &std::path::Path| certified(with_key(quick(), key), &office.certificate(key, by, NOW), roots);
    let alice = start(with(&a, &old, &old.file));
    let bob_old = with(&b, &old, &old.file);
    let bob = start(bob_old.clone());
    link(&alice, &bob);
    bob.wait_connected(alice.id(), PATIENCE).unwrap();
    // Bob believes the new authority alone: alice, who shows the old one's certificate, goes.
    assert_eq!(bob.reload(&with(&b, &new, &new.file)).unwrap().closed.len(), 1);
    wait_until("the session is over", || alice.sessions().is_empty() || bob.sessions().is_empty());
    // She follows, and is let in again.
    alice.reload(&with(&a, &new, &new.file)).unwrap();
    wait_until("she is back", || alice.wait_connected(bob.id(), Duration::from_millis(100)).is_ok());
    reaches(&alice, &bob);
}

#[test]
fn a_reload_that_is_wrong_changes_nothing() {
    let _alone = alone();
    let office = Office::new();
    let [a, b] = ["a", "b"].map(|name| office.key(name));
    let ours = office.authority("ours");
    let config = with_key(quick(), &a);
    let (alice, bob) = (start(config.clone()), start(with_key(quick(), &b)));
    link(&alice, &bob);
    let missing = certified(config.clone(), &office.folder.path().join("nowhere.pem"), &ours.file);
    let of_bob = certified(config.clone(), &office.certificate(&b, &ours, NOW), &ours.file);
    let no_certificate = certified(config.clone(), &a.file, &ours.file);
    for (config, says) in [
        (missing, "nowhere.pem cannot be read"),
        (of_bob, "another key"),
        (no_certificate, "no PEM block"),
        (config.clone().plain(), "start it anew"),
        (with_key(config.clone(), &b), "start it anew"),
    ] {
        let error = alice.reload(&config).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    reaches(&alice, &bob);
    assert_eq!(alice.metrics().sessions_ended, 0);
}

#[test]
fn what_gives_protection_up_where_others_can_connect_has_to_be_acknowledged() {
    let any = "0.0.0.0:0".parse().unwrap();
    let mut config = Config::loopback();
    config.listen = vec![any];
    let error = |config: &Config| config.validate().unwrap_err().to_string();
    assert!(error(&config).contains("security.trust") && error(&config).contains("security.public = [\"open\"]"));
    let mut plain = config.clone().plain();
    plain.security.trust = TrustMode::Listed;
    assert!(error(&plain).contains("security.channel") && error(&plain).contains("security.public = [\"plain\"]"));
    plain.security.public = vec![Exposure::Plain];
    plain.validate().unwrap();
    config.security.public = vec![Exposure::Open];
    config.validate().unwrap();
    config.security.public = Vec::new();
    config.security.trust = TrustMode::Listed;
    config.validate().unwrap();
    config.security.trust = TrustMode::Open;
    config.listen = vec!["127.0.0.1:0".parse().unwrap(), "[::1]:0".parse().unwrap()];
    config.validate().unwrap();
    config.security.trusted = vec![Identity::generate().unwrap().peer_id()];
    assert!(error(&config).contains("security.trusted"));
}

#[test]
fn a_key_that_others_can_read_does_not_start_a_node_and_the_error_says_what_to_do() {
    use std::os::unix::fs::PermissionsExt;
    let office = Office::new();
    let key = office.key("a");
    std::fs::set_permissions(&key.file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let Err(error) = Node::builder().config(with_key(quick(), &key)).start() else { panic!("it started") };
    assert!(error.to_string().contains(&format!("chmod 600 {}", key.file.display())), "{error}");
    std::fs::remove_file(&key.file).unwrap();
    let Err(error) = Node::builder().config(with_key(quick(), &key)).start() else { panic!("it started") };
    assert!(error.to_string().contains("openssl genpkey"), "{error}");
}

#[test]
fn whoever_needs_a_certificate_to_be_trusted_and_has_none_is_told_so_by_both_sides() {
    let _alone = alone();
    let office = Office::new();
    let [a, b] = ["a", "b"].map(|name| office.key(name));
    let ours = office.authority("ours");
    let mut config = certified(with_key(quick(), &b), &office.certificate(&b, &ours, NOW), &ours.file);
    config.security.trusted = vec![a.id];
    let (alice, bob) = (start(with_key(quick(), &a)), start(config));
    // Who is at an address is not known before it has shown something: a certificate is asked for, which alice has not.
    assert_eq!(refusal(&bob, &alice), UNTRUSTED_THERE);
    assert_eq!(alice.metrics().handshakes_failed_by.local.get(CloseReason::Untrusted), 1);
    // By her name she is asked for her key.
    link(&bob, &alice);
    reaches(&bob, &alice);
}

#[test]
fn another_role_is_refused_by_both_sides() {
    let identity = Arc::new(Identity::generate().unwrap());
    let node = start(quick());
    let other = Tls::new(Tcp::default(), "threadwire-other/1", Credential::bare(identity), Trust::open()).unwrap();
    let mut dialled = other.connect(addr(&node)).unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    let fault = loop {
        assert!(std::time::Instant::now() < deadline);
        if !dialled.connected().unwrap() {
            continue;
        }
        match dialled.secure() {
            Ok(Security::Work(work)) => dialled.worked(work.run()),
            Ok(Security::Wait) => std::thread::yield_now(),
            Ok(Security::Open) => panic!("it is open"),
            Err(error) => break Fault::of(&error).cloned(),
        }
    };
    assert!(matches!(fault, Some(Fault::Refused(CloseReason::WrongProtocol, _))), "{fault:?}");
    wait_until("it is counted", || node.metrics().handshakes_failed == 1);
}
