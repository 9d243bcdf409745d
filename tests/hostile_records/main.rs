//! Records that the other side has sealed as it should and that are nothing a peer would say: empty ones, floods of new
//! keys, messages of no use here. Each costs its sender the connection, and nobody else anything.

#![cfg(feature = "tls")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use rustls::AlertDescription;
use threadwire::error::CloseReason;
use threadwire::handshake::Identity;
use threadwire::ident::SessionKind;
use threadwire::transport::tcp::Tcp;
use threadwire::transport::tls::{Credential, Tls};
use threadwire::transport::{Connection, Fault, PendingConnection, Security, Transport, Trust};

#[path = "../common/mod.rs"]
mod common;
mod rogue;

use common::stranger::machine;
use common::wire::alert;
use common::{PATIENCE, addr, alone, nothing_left, quick, reaches, start, wait_until};
use rogue::{ALERT, DATA, HANDSHAKE, KEY_UPDATE, Rogue, Shows, TICKET};

const PROTOCOL: &str = "threadwire-test/1";

/// Records without bytes of the stream that are borne in a row, or before a session at all.
const EMPTY: usize = 32;
/// What records may have beyond the stream's bytes before a session.
const EARLY: usize = 64 * 1024;

/// Who dialled whom.
const SIDES: [SessionKind; 2] = [SessionKind::Inbound, SessionKind::Outbound];

fn tls() -> Tls {
    let identity = Arc::new(Identity::generate().unwrap());
    Tls::new(Tcp::default(), PROTOCOL, Credential::bare(identity), Trust::open()).unwrap()
}

/// Lets our side go as far as it gets now; whether it carries bytes.
fn turn(side: &mut dyn PendingConnection) -> io::Result<bool> {
    loop {
        match side.secure() {
            Ok(Security::Work(work)) => side.worked(work.run()),
            Ok(Security::Wait) => {
                side.flush()?;
                return Ok(false);
            }
            Ok(Security::Open) => return side.flush(),
            Err(error) => {
                // What it says of its failure is the other side's to hear.
                let _ = side.flush();
                return Err(error);
            }
        }
    }
}

/// What our side says first when it dials.
fn client_hello() -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut dialled = tls().connect(listener.local_addr().unwrap()).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    wait_until("the dial is through", || dialled.connected().unwrap());
    assert!(!turn(&mut *dialled).unwrap());
    drop(dialled);
    let mut hello = Vec::new();
    stream.read_to_end(&mut hello).unwrap();
    hello
}

/// Brings our side to where it carries bytes.
fn open(side: &mut dyn PendingConnection) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !turn(side)? {
        assert!(Instant::now() < deadline, "it does not open");
        std::thread::yield_now();
    }
    Ok(())
}

/// A rogue, and our side, for which the connection is of this kind.
fn meet(tls: &Tls, kind: SessionKind, shows: &Shows) -> (Rogue, Box<dyn PendingConnection>) {
    let (rogue, ours, opened) = try_to_meet(tls, kind, shows);
    opened.unwrap();
    (rogue.unwrap(), ours)
}

/// The same, where one of them may refuse: what came of it for the rogue, our side, and what came of it for us.
fn try_to_meet(
    tls: &Tls,
    kind: SessionKind,
    shows: &Shows,
) -> (io::Result<Rogue>, Box<dyn PendingConnection>, io::Result<()>) {
    std::thread::scope(|scope| {
        let (mut ours, rogue) = match kind {
            SessionKind::Inbound => {
                let mut listener = tls.listen("127.0.0.1:0".parse().unwrap()).unwrap();
                let at = listener.local_addr();
                let rogue = scope.spawn(move || Rogue::dial(shows, at));
                let mut accepted = None;
                wait_until("it dials", || {
                    accepted = listener.accept().ok();
                    accepted.is_some()
                });
                (accepted.unwrap(), rogue)
            }
            _ => {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                let mut dialled = tls.connect(listener.local_addr().unwrap()).unwrap();
                let rogue = scope.spawn(move || Rogue::accept(shows, &listener));
                wait_until("the dial is through", || dialled.connected().unwrap());
                (dialled, rogue)
            }
        };
        let opened = open(&mut *ours);
        (rogue.join().unwrap(), ours, opened)
    })
}

/// Our side, before a session or in one.
enum Ours {
    Pending(Box<dyn PendingConnection>),
    Established(Connection),
}

impl Ours {
    /// Reads what is there, at most so much; where nothing is it waits.
    fn read(&mut self, most: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; most];
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "nothing comes");
            let result = match self {
                Self::Pending(pending) => pending.try_read(&mut bytes),
                Self::Established(connection) => connection.read.read(&mut bytes),
            };
            match result {
                Ok(count) => {
                    bytes.truncate(count);
                    return Ok(bytes);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(error) => {
                    if let Self::Pending(pending) = self {
                        pending.flush().unwrap();
                    }
                    return Err(error);
                }
            }
        }
    }

    fn exactly(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < len {
            bytes.extend(self.read(len - bytes.len()).unwrap());
        }
        bytes
    }

    /// It has refused what came, and says this of it.
    #[track_caller]
    fn refuses(&mut self, rogue: &mut Rogue, alert: AlertDescription, what: &str) {
        let error = self.read(1).unwrap_err();
        let fault = Fault::of(&error);
        assert!(matches!(fault, Some(Fault::Rejected(CloseReason::ProtocolError, _))), "{what}: {error:?}");
        assert_eq!(rogue.hear_alert(), Some(alert), "{what}");
    }
}

/// Each way to meet: whoever dialled, before a session and in one.
fn each_way(mut test: impl FnMut(Rogue, Ours, &str)) {
    for kind in SIDES {
        for in_session in [false, true] {
            let (rogue, pending) = meet(&tls(), kind, &Shows::new(PROTOCOL));
            let ours = match in_session {
                true => Ours::Established(pending.establish().unwrap()),
                false => Ours::Pending(pending),
            };
            test(rogue, ours, &format!("{kind:?}, in a session: {in_session}"));
        }
    }
}

/// A record of one kind.
type Record = fn(&mut Rogue) -> Vec<u8>;

/// Records that bring nothing and are no fault by themselves.
const NOTHING: [(&str, Record); 3] = [
    ("an empty record", |rogue| rogue.sealed(DATA, &[], 0)),
    ("an alert without a meaning", |rogue| rogue.sealed(ALERT, &[1, 90], 0)),
    ("new keys", |rogue| rogue.update(false)),
];

#[test]
fn too_many_records_in_a_row_that_bring_nothing_end_a_connection_and_it_is_told() {
    let tickets: (&str, Record) = ("a ticket", |rogue| rogue.sealed(HANDSHAKE, &[TICKET, 0, 0, 2, 7, 7], 0));
    for (what, record) in NOTHING.into_iter().chain([tickets]) {
        each_way(|mut rogue, mut ours, way| {
            // Whoever is dialled has no use for tickets, and refuses the first.
            if what == "a ticket" && way.starts_with("Inbound") {
                return;
            }
            for n in 0..EMPTY {
                let record = record(&mut rogue);
                assert!(rogue.say(&record), "{n} of {what}, {way}");
            }
            assert!(rogue.say_data(b"x"));
            assert_eq!(ours.exactly(1), b"x", "{what}, {way}");
            let again = if matches!(ours, Ours::Established(_)) { EMPTY } else { 0 };
            let records: Vec<u8> = (0..=again).flat_map(|_| record(&mut rogue)).collect();
            assert!(rogue.say(&records) && rogue.say_data(b"y"));
            ours.refuses(&mut rogue, AlertDescription::UnexpectedMessage, &format!("{what}, {way}"));
        });
    }
}

#[test]
fn before_a_session_records_cost_little_whatever_they_bring() {
    each_way(|mut rogue, mut ours, way| {
        // Each brings one byte, and 22 beside it.
        let borne = EARLY / 22;
        let records: Vec<u8> = (0..borne).flat_map(|_| rogue.sealed(DATA, b"x", 0)).collect();
        let more: Vec<u8> = (0..100).flat_map(|_| rogue.sealed(DATA, b"y", 0)).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| assert!(rogue.say(&records) && rogue.say(&more)));
            assert!(ours.exactly(borne).iter().all(|byte| *byte == b'x'), "{way}");
        });
        match &ours {
            Ours::Pending(_) => ours.refuses(&mut rogue, AlertDescription::UnexpectedMessage, way),
            Ours::Established(_) => assert_eq!(ours.exactly(100), [b'y'; 100], "{way}"),
        }
    });
}

#[test]
fn a_stranger_that_floods_a_node_with_records_that_bring_nothing_is_refused_and_good_peers_come_in() {
    const ROGUES: usize = 20;
    let _alone = alone();
    let (bob, alice) = (start(quick()), start(quick()));
    let shows = Shows::new("threadwire-direct/1");
    let rogues: Vec<Rogue> = (0..ROGUES)
        .map(|n| {
            let mut rogue = Rogue::dial(&shows, addr(&bob)).unwrap();
            let mut hello = machine(&shows.identity, SessionKind::Outbound, bob.id()).output().clone();
            if n % 2 == 0 {
                // No hello at all: a frame of nothing but its length.
                hello = vec![0; 64];
            }
            // Each byte of what it has to say brings new keys along, as many as a session would bear.
            for byte in hello {
                let updates: Vec<u8> = (0..EMPTY - 1).flat_map(|n| rogue.update(n == 0)).collect();
                if !rogue.say(&updates) || !rogue.say_data(&[byte]) {
                    break;
                }
            }
            rogue
        })
        .collect();
    alice.connect(addr(&bob)).unwrap();
    reaches(&alice, &bob);
    wait_until("all are refused", || bob.metrics().handshakes_failed == ROGUES as u64);
    let refused = bob.metrics().handshakes_failed_by.local.get(CloseReason::ProtocolError);
    assert_eq!((refused, bob.metrics().sessions_started), (ROGUES as u64, 1));
    drop((rogues, alice));
    nothing_left(&bob);
}

#[test]
fn records_that_are_no_words_of_a_peer_end_a_connection_and_it_is_told_why() {
    use AlertDescription::{BadRecordMac, DecodeError, UnexpectedMessage};
    const FINISHED: u8 = 20;
    let cases: [(&str, Record, AlertDescription); 13] = [
        ("nothing but padding", |rogue| rogue.sealed_padding(40), UnexpectedMessage),
        ("not even padding", |rogue| rogue.sealed_padding(0), UnexpectedMessage),
        ("a message of nothing", |rogue| rogue.sealed(HANDSHAKE, &[], 0), UnexpectedMessage),
        ("an alert of nothing", |rogue| rogue.sealed(ALERT, &[], 0), UnexpectedMessage),
        ("half an alert", |rogue| rogue.sealed(ALERT, &[1], 0), UnexpectedMessage),
        ("a change of ciphers", |rogue| rogue.sealed(20, &[1], 0), UnexpectedMessage),
        ("a kind that is none", |rogue| rogue.sealed(99, b"x", 0), UnexpectedMessage),
        ("a second end of the handshake", |rogue| rogue.sealed(HANDSHAKE, &[FINISHED, 0, 0, 0], 0), UnexpectedMessage),
        ("a second hello", |rogue| rogue.sealed(HANDSHAKE, &[1, 0, 0, 0], 0), UnexpectedMessage),
        (
            "new keys with a wish that is none",
            |rogue| rogue.sealed(HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 2], 0),
            DecodeError,
        ),
        ("new keys of another length", |rogue| rogue.sealed(HANDSHAKE, &[KEY_UPDATE, 0, 0, 2, 0, 0], 0), DecodeError),
        (
            "a message behind new keys",
            |rogue| rogue.sealed(HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0, KEY_UPDATE, 0, 0, 1, 0], 0),
            UnexpectedMessage,
        ),
        (
            "old keys behind new ones",
            |rogue| [rogue.sealed(HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0], 0), rogue.sealed(DATA, b"x", 0)].concat(),
            BadRecordMac,
        ),
    ];
    for (what, record, alert) in cases {
        each_way(|mut rogue, mut ours, way| {
            assert!(rogue.say_data(b"good"));
            assert_eq!(ours.exactly(4), b"good");
            let record = record(&mut rogue);
            assert!(rogue.say(&record));
            ours.refuses(&mut rogue, alert, &format!("{what}, {way}"));
        });
    }
    // What stands between the parts of a message that is split, and a ticket for whoever was dialled.
    each_way(|mut rogue, mut ours, way| {
        let record = [rogue.sealed(HANDSHAKE, &[KEY_UPDATE, 0], 0), rogue.sealed(DATA, b"x", 0)].concat();
        assert!(rogue.say(&record));
        ours.refuses(&mut rogue, UnexpectedMessage, &format!("data within a message, {way}"));
    });
    let (mut rogue, pending) = meet(&tls(), SessionKind::Inbound, &Shows::new(PROTOCOL));
    let ticket = rogue.sealed(HANDSHAKE, &[TICKET, 0, 0, 2, 7, 7], 0);
    assert!(rogue.say(&ticket));
    Ours::Pending(pending).refuses(&mut rogue, UnexpectedMessage, "a ticket of a dialler");
    let (mut rogue, pending) = meet(&tls(), SessionKind::Outbound, &Shows::new(PROTOCOL));
    let ticket = rogue.sealed(HANDSHAKE, &[TICKET, 1, 0, 1, 7], 0);
    assert!(rogue.say(&ticket));
    Ours::Pending(pending).refuses(&mut rogue, DecodeError, "a ticket of more than 64 KiB");
}

#[test]
fn new_keys_and_tickets_may_come_in_pieces_and_padded() {
    each_way(|mut rogue, mut ours, way| {
        for piece in [[KEY_UPDATE, 0].as_slice(), &[0, 1], &[1]] {
            let record = rogue.sealed(HANDSHAKE, piece, 100);
            assert!(rogue.say(&record));
        }
        rogue.renew();
        let record = rogue.sealed(DATA, b"under new keys", 1000);
        assert!(rogue.say(&record));
        assert_eq!(ours.exactly(14), b"under new keys", "{way}");
        if way.starts_with("Outbound") {
            // Two in one record, the second of which ends in another one, with new keys behind it.
            let two = [TICKET, 0, 0, 2, 7, 7, TICKET, 0, 0, 9, 7, 7];
            let pieces = [&two[..], &[7; 5], &[7, 7, KEY_UPDATE, 0, 0, 1, 0]];
            for piece in pieces {
                let record = rogue.sealed(HANDSHAKE, piece, 0);
                assert!(rogue.say(&record));
            }
            rogue.renew();
            assert!(rogue.say_data(b"behind tickets"));
            assert_eq!(ours.exactly(14), b"behind tickets", "{way}");
        }
        // It has asked for new keys of ours, and gets them with the next bytes.
        match &mut ours {
            Ours::Established(connection) => {
                assert!(connection.read.owes() && connection.write.is_behind());
                connection.write.write(&[io::IoSlice::new(b"ours")]).unwrap();
            }
            Ours::Pending(pending) => {
                assert_eq!(pending.try_write(b"ours").unwrap(), 4);
                assert!(pending.flush().unwrap());
            }
        }
        assert_eq!(rogue.hear(4), b"ours", "{way}");
    });
}

#[test]
fn whoever_names_no_protocol_or_another_one_or_shows_nothing_is_refused_and_told_so() {
    use AlertDescription::{CertificateRequired, NoApplicationProtocol};
    use CloseReason::{Untrusted, WrongProtocol};
    fn fault(opened: io::Result<()>) -> Fault {
        Fault::of(&opened.unwrap_err()).unwrap().clone()
    }
    for kind in SIDES {
        let mut shows = Shows::new(PROTOCOL);
        shows.protocols.clear();
        let (rogue, _ours, opened) = try_to_meet(&tls(), kind, &shows);
        assert!(matches!(fault(opened), Fault::Rejected(WrongProtocol, _)), "{kind:?}");
        // For the rogue all was well: it is told by a record as any other, right behind the handshake.
        let told = match rogue {
            Ok(mut rogue) => rogue.hear_alert().map(|alert| format!("{alert:?}")),
            Err(error) => alert(&error),
        };
        assert_eq!(told, Some(format!("{NoApplicationProtocol:?}")), "{kind:?}");
        let (_, _ours, opened) = try_to_meet(&tls(), kind, &Shows::new("another/1"));
        match (kind, fault(opened)) {
            (SessionKind::Inbound, Fault::Rejected(reason, _)) | (SessionKind::Outbound, Fault::Refused(reason, _)) => {
                assert_eq!(reason, WrongProtocol);
            }
            other => panic!("{other:?}"),
        }
    }
    let mut shows = Shows::new(PROTOCOL);
    shows.nothing = true;
    let (rogue, _ours, opened) = try_to_meet(&tls(), SessionKind::Inbound, &shows);
    assert!(matches!(fault(opened), Fault::Rejected(Untrusted, _)));
    assert_eq!(rogue.unwrap().hear_alert(), Some(CertificateRequired));
}

/// The hello of a dialler in records of so many bytes.
fn in_crumbs(hello: &[u8], crumb: usize) -> Vec<u8> {
    let crumbs = hello[5..].chunks(crumb);
    crumbs.flat_map(|crumb| [&[22, 3, 1, 0, u8::try_from(crumb.len()).unwrap()], crumb].concat()).collect()
}

#[test]
#[expect(clippy::disallowed_methods, reason = "there is no timeout, and an alert is no frame")]
fn a_hello_in_a_few_records_is_heard_and_one_in_crumbs_is_refused() {
    let tls = tls();
    let mut listener = tls.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let hello = client_hello();
    for (crumb, heard) in [(hello.len() / 20, true), (1, false)] {
        let mut stranger = TcpStream::connect(listener.local_addr()).unwrap();
        let mut accepted = None;
        wait_until("it dials", || {
            accepted = listener.accept().ok();
            accepted.is_some()
        });
        let mut accepted = accepted.unwrap();
        // One by one, as they are dearest: each is looked at before the next one comes.
        let mut last = Ok(false);
        for record in in_crumbs(&hello, crumb).chunks(5 + crumb) {
            if last.is_err() || stranger.write_all(record).is_err() {
                break;
            }
            last = turn(&mut *accepted);
        }
        stranger.set_nonblocking(true).unwrap();
        wait_until("it is answered", || {
            if last.is_ok() {
                last = turn(&mut *accepted);
            }
            stranger.peek(&mut [0]).is_ok_and(|count| count > 0)
        });
        stranger.set_nonblocking(false).unwrap();
        let mut answer = [0; 7];
        stranger.read_exact(&mut answer).unwrap();
        match heard {
            true => assert!(last.is_ok() && answer[0] == HANDSHAKE, "{last:?} {answer:?}"),
            false => {
                let error = last.unwrap_err();
                let fault = Fault::of(&error);
                assert!(matches!(fault, Some(Fault::Rejected(CloseReason::ProtocolError, _))), "{error:?}");
                assert_eq!(answer[0], ALERT, "{answer:?}");
            }
        }
    }
}

/// Kinds of the extensions in a dialler's hello.
fn extensions(hello: &[u8]) -> Vec<u16> {
    let number = |at: usize| u16::from_be_bytes([hello[at], hello[at + 1]]);
    // Headers of the record and the message, the version and the nonce; the session, the suites, the compressions.
    let session = 5 + 4 + 2 + 32;
    let suites = session + 1 + usize::from(hello[session]);
    let compressions = suites + 2 + usize::from(number(suites));
    let mut at = compressions + 1 + usize::from(hello[compressions]) + 2;
    let mut kinds = Vec::new();
    while at < hello.len() {
        kinds.push(number(at));
        at += 4 + usize::from(number(at + 2));
    }
    assert_eq!(at, hello.len());
    kinds
}

#[test]
fn no_session_is_resumed_and_no_early_data_are_asked_for_or_taken() {
    const SERVER_NAME: u16 = 0;
    const ALPN: u16 = 16;
    const SESSION_TICKET: u16 = 35;
    const PRE_SHARED_KEY: u16 = 41;
    const EARLY_DATA: u16 = 42;
    let kinds = extensions(&client_hello());
    assert!(kinds.contains(&ALPN), "{kinds:?}");
    for kind in [SERVER_NAME, SESSION_TICKET, PRE_SHARED_KEY, EARLY_DATA] {
        assert!(!kinds.contains(&kind), "{kinds:?}");
    }
    // A dialler that would keep tickets is given none, and so begins anew each time.
    let (tls, shows) = (tls(), Shows::new(PROTOCOL));
    for _ in 0..2 {
        let (mut rogue, pending) = meet(&tls, SessionKind::Inbound, &shows);
        let connection = pending.establish().unwrap();
        connection.write.write(&[io::IoSlice::new(b"all there is")]).unwrap();
        assert_eq!(rogue.hear(12), b"all there is");
        assert_eq!(rogue.records_heard, 1, "nothing but these bytes");
        assert!(rogue.began_anew());
    }
}
