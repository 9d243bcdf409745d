//! Transports of the application's own that prove who is there, or say whom they trust: the node believes them, and no
//! further.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use mio::event::Source;
use parking_lot::Mutex;
use threadwire::config::TrustMode;
use threadwire::error::{CloseReason, ConnectError, DialCause};
use threadwire::ident::SessionKind;
use threadwire::transport::tcp::Tcp;
use threadwire::transport::{Connection, Listener, PendingConnection, Proof, Transport};
use threadwire::{Config, Event, Node, PeerId};

mod common;
use common::{addr, alone, nothing_left, plain, reaches, wait_event, wait_until};

/// TCP that says whatever it is told to.
#[derive(Debug, Clone)]
struct Believer {
    tcp: Tcp,
    says: Arc<Says>,
}

#[derive(Debug, Default)]
struct Says {
    /// Who has proven a key to it.
    proven: Mutex<Option<PeerId>>,
    /// Whom it does not trust.
    distrusted: Mutex<Option<PeerId>>,
    /// Whom it was asked about.
    asked: Mutex<Vec<PeerId>>,
}

impl Believer {
    fn new() -> Self {
        Self { tcp: Tcp::default(), says: Arc::default() }
    }

    fn start(&self, config: Config) -> Node {
        Node::builder().config(config).transport(self.clone()).start().unwrap()
    }
}

impl Transport for Believer {
    fn name(&self) -> &'static str {
        "believer"
    }

    fn listen(&self, addr: SocketAddr) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(Listening { inner: self.tcp.listen(addr)?, says: self.says.clone() }))
    }

    fn connect(&self, addr: SocketAddr) -> io::Result<Box<dyn PendingConnection>> {
        let (inner, says) = (self.tcp.connect(addr)?, self.says.clone());
        Ok(Box::new(Proving { inner, says, kind: SessionKind::Outbound }))
    }

    fn trusts(&self, proof: &Proof) -> bool {
        self.says.asked.lock().push(proof.peer);
        *self.says.distrusted.lock() != Some(proof.peer)
    }
}

struct Listening {
    inner: Box<dyn Listener>,
    says: Arc<Says>,
}

impl Listener for Listening {
    fn local_addr(&self) -> SocketAddr {
        self.inner.local_addr()
    }

    fn accept(&mut self) -> io::Result<Box<dyn PendingConnection>> {
        let (inner, says) = (self.inner.accept()?, self.says.clone());
        Ok(Box::new(Proving { inner, says, kind: SessionKind::Inbound }))
    }

    fn source(&mut self) -> &mut dyn Source {
        self.inner.source()
    }
}

struct Proving {
    inner: Box<dyn PendingConnection>,
    says: Arc<Says>,
    kind: SessionKind,
}

impl PendingConnection for Proving {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn remote_addr(&self) -> SocketAddr {
        self.inner.remote_addr()
    }

    fn source(&mut self) -> &mut dyn Source {
        self.inner.source()
    }

    fn connected(&mut self) -> io::Result<bool> {
        self.inner.connected()
    }

    fn proof(&self) -> Option<Arc<Proof>> {
        self.says.proven.lock().map(|peer| Arc::new(Proof::new(peer, self.kind)))
    }

    fn try_read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.inner.try_read(into)
    }

    fn try_write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.inner.try_write(from)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.inner.finish()
    }

    fn establish(self: Box<Self>) -> io::Result<Connection> {
        self.inner.establish()
    }
}

/// Two nodes, each over a transport of its own.
fn two(config: &Config) -> [(Node, Believer); 2] {
    [0, 1].map(|_| {
        let believer = Believer::new();
        (believer.start(config.clone()), believer)
    })
}

/// Each transport says that the other node has proven its key.
fn prove_each_other([(alice, of_alice), (bob, of_bob)]: &[(Node, Believer); 2]) {
    *of_alice.says.proven.lock() = Some(bob.id());
    *of_bob.says.proven.lock() = Some(alice.id());
}

#[test]
fn whoever_was_dialled_by_name_is_that_peer_or_nobody_whatever_the_transport_has_proven() {
    let _alone = alone();
    let nodes = two(&plain());
    prove_each_other(&nodes);
    let [(alice, _), (bob, _)] = &nodes;
    // At carol's address is bob, who proves to the transport and says of himself that he is bob.
    let carol = common::identities()[0].peer_id();
    alice.add_peer(carol, [addr(bob)]).unwrap();
    let cause = wait_event(alice, "the dial fails", |event| match event {
        Event::DialFailed { peer, error, .. } if peer == Some(carol) => Some(error.cause),
        _ => None,
    });
    assert_eq!(cause, DialCause::Rejected(CloseReason::WrongPeer));
    wait_until("bob was told so", || bob.metrics().handshakes_failed_by.remote.get(CloseReason::WrongPeer) > 0);
    alice.remove_peer(carol).unwrap();
    assert_eq!((alice.metrics().sessions_started, bob.metrics().sessions_started), (0, 0));
    // By his own name he is reached, and without any.
    alice.add_peer(bob.id(), [addr(bob)]).unwrap();
    alice.wait_connected(bob.id(), common::PATIENCE).unwrap();
    reaches(alice, bob);
}

#[test]
fn a_transport_that_distrusts_a_peer_keeps_it_out_whoever_is_listed_and_before_a_session() {
    let _alone = alone();
    for proves in [false, true] {
        let mut config = plain();
        config.security.trust = TrustMode::Open;
        let nodes = two(&config);
        if proves {
            prove_each_other(&nodes);
        }
        let [(alice, _), (bob, of_bob)] = &nodes;
        *of_bob.says.distrusted.lock() = Some(alice.id());
        let Err(ConnectError::Dial(mut errors)) = alice.connect(addr(bob)) else { panic!("she came in") };
        assert_eq!(errors.remove(0).cause, DialCause::Refused(CloseReason::Untrusted), "proves: {proves}");
        assert_eq!(of_bob.says.asked.lock().as_slice(), [alice.id()]);
        wait_until("it is counted", || bob.metrics().handshakes_failed_by.local.get(CloseReason::Untrusted) == 1);
        assert_eq!(bob.metrics().sessions_started, 0, "proves: {proves}");
        nothing_left(bob);
        *of_bob.says.distrusted.lock() = None;
        alice.connect(addr(bob)).unwrap();
        reaches(alice, bob);
    }
}

#[test]
fn a_list_keeps_out_whom_a_transport_has_proven_and_trusts() {
    let _alone = alone();
    let mut config = plain();
    (config.security.trust, config.security.trusted) = (TrustMode::Listed, vec![common::identities()[0].peer_id()]);
    let nodes = two(&config);
    prove_each_other(&nodes);
    let [(alice, _), (bob, _)] = &nodes;
    let Err(ConnectError::Dial(errors)) = alice.connect(addr(bob)) else { panic!("she came in") };
    let cause = &errors[0].cause;
    let either = [DialCause::Refused(CloseReason::Untrusted), DialCause::Rejected(CloseReason::Untrusted)];
    assert!(either.contains(cause), "{cause:?}");
    wait_until("both have ended it", || common::settled(alice) && common::settled(bob));
    assert_eq!((alice.metrics().sessions_started, bob.metrics().sessions_started), (0, 0));
}
