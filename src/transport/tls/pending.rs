//! The TLS handshake of one connection, driven without waiting.
//!
//! Owns: the connection below and what of the handshake is read and not processed, said and not written.
//! Threads: `acceptor`; the arithmetic runs on `work-n`. Locks: none. Blocks on: nothing.
//! Upholds: a side that says nothing, or half a record, costs no arithmetic; what a handshake may say is bounded before
//! it is read; nothing of the stream passes before both sides are proven.

use std::io::{self, ErrorKind, IoSlice};
use std::mem;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;

use mio::event::Source;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{Acceptor, ServerConfig, ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{AlertDescription, CommonState, Error};

use super::cipher::{Opener, Rekey, Sealer};
use super::records::{self, Opening, Sealing, Secrets};
use super::setup::Setup;
use super::verify::Shown;
use super::{halves, words};
use crate::error::CloseReason;
use crate::ident::{PeerId, SessionKind};
use crate::transport::{self, Fault, PendingConnection, Proof, Security, Work, WorkDone};

/// The most bytes of a side's handshake: long chains of certificates fit.
const MOST: usize = 64 * 1024;
/// A record's header.
const HEADER: usize = 5;
/// The longest body of a record.
const LONGEST: usize = 16 * 1024 + 256;
/// Bytes read at a time.
const READ: usize = 4 * 1024;

pub(super) struct TlsPending {
    inner: Box<dyn PendingConnection>,
    setup: Arc<Setup>,
    rekey: Rekey,
    kind: SessionKind,
    stage: Stage,
    /// Read and not processed.
    raw: Vec<u8>,
    /// Bytes of the handshake so far.
    heard: usize,
    /// Of the handshake or a refusal, not written yet.
    out: Vec<u8>,
    /// Whether a byte of ours was written.
    said: bool,
}

enum Stage {
    /// The next step of the handshake.
    Handshake(Machine),
    /// A worker has it.
    Away,
    /// It failed, and nobody was told yet.
    Failed(Fault),
    Open(Box<Opened>),
    /// Refused, by us or by them: nothing is read but to be thrown away.
    Over,
}

struct Opened {
    sealer: Sealer,
    opener: Opener,
    proof: Arc<Proof>,
}

/// A handshake between two steps.
enum Machine {
    Dial(Option<PeerId>),
    /// What was read of the dialler's hello.
    Accept(Vec<u8>),
    Run(Box<Run>),
}

/// A handshake under way.
struct Run {
    tls: Side,
    /// Whole records that rustls wants to see again with what follows: the begin of a message.
    heard: Vec<u8>,
}

/// rustls without buffers: it makes the handshake and the keys, and what is sealed by them is ours to seal.
enum Side {
    Dialled(UnbufferedClientConnection),
    Accepted(UnbufferedServerConnection),
}

impl Deref for Side {
    type Target = CommonState;

    fn deref(&self) -> &CommonState {
        match self {
            Self::Dialled(tls) => tls,
            Self::Accepted(tls) => tls,
        }
    }
}

/// What a step came to: what to say now, what was not processed, and how it goes on.
struct Stepped {
    out: Vec<u8>,
    rest: Vec<u8>,
    next: Result<Machine, Fault>,
}

impl Machine {
    /// One step, with whole records of the other side.
    fn step(self, setup: &Setup, heard: Vec<u8>) -> Stepped {
        let (mut out, mut rest) = (Vec::new(), heard);
        let next = self.run(setup, &mut rest, &mut out);
        Stepped { out, rest, next }
    }

    fn run(self, setup: &Setup, rest: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<Self, Fault> {
        let tls = match self {
            Self::Run(mut run) => {
                run.feed(rest, out)?;
                return Ok(Self::Run(run));
            }
            Self::Dial(expected) => setup.dial(expected).map(Side::Dialled),
            Self::Accept(before) => {
                drop(rest.splice(0..0, before));
                let Some(config) = answer(rest, setup, out)? else { return Ok(Self::Accept(mem::take(rest))) };
                UnbufferedServerConnection::new(config).map(Side::Accepted)
            }
        };
        let mut run = Box::new(Run { tls: tls.map_err(|error| words::fault(&error))?, heard: Vec::new() });
        run.feed(rest, out)?;
        Ok(Self::Run(run))
    }
}

impl Run {
    /// Takes records, until the handshake is over: what follows it is the stream's.
    fn feed(&mut self, rest: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<(), Fault> {
        loop {
            match &mut self.tls {
                Side::Dialled(tls) => process(tls, &mut self.heard, out)?,
                Side::Accepted(tls) => process(tls, &mut self.heard, out)?,
            }
            if !self.tls.is_handshaking() {
                return if self.heard.is_empty() { Ok(()) } else { Err(broken("more than a handshake")) };
            }
            let Some(&[_, _, _, high, low]) = rest.first_chunk::<HEADER>() else { return Ok(()) };
            let length = HEADER + usize::from(u16::from_be_bytes([high, low]));
            self.heard.extend(rest.drain(..length.min(rest.len())));
        }
    }

    /// The keys, once the handshake is over.
    fn split(self) -> Result<(Sealing, Opening), Error> {
        let (extracted, secrets) = match self.tls {
            Side::Dialled(tls) => {
                let (extracted, secrets) = tls.dangerous_into_kernel_connection()?;
                (extracted, Secrets::Dialled(secrets))
            }
            Side::Accepted(tls) => {
                let (extracted, secrets) = tls.dangerous_into_kernel_connection()?;
                (extracted, Secrets::Accepted(secrets))
            }
        };
        records::split(&extracted, secrets)
    }
}

/// The verbs that both sides of rustls have, each for itself.
trait Handshaking {
    type Data;
    /// Whether the next thing that comes of hearing is something to say.
    fn says(&self) -> bool;
    fn hear<'c, 'i>(&'c mut self, heard: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Handshaking for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    fn says(&self) -> bool {
        self.wants_write()
    }

    fn hear<'c, 'i>(&'c mut self, heard: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(heard)
    }
}

impl Handshaking for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    fn says(&self) -> bool {
        self.wants_write()
    }

    fn hear<'c, 'i>(&'c mut self, heard: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(heard)
    }
}

/// Has rustls see what was heard, and takes what it says to it.
fn process(tls: &mut impl Handshaking, heard: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<(), Fault> {
    let mut failed = None;
    loop {
        let UnbufferedStatus { discard, state, .. } = tls.hear(heard);
        let more = match state {
            Ok(ConnectionState::EncodeTlsData(mut said)) => {
                encode(&mut said, out);
                true
            }
            Ok(ConnectionState::TransmitTlsData(said)) => {
                said.done();
                true
            }
            Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => false,
            // Its end, or data before it is proven who sends them.
            Ok(_) => return Err(words::fault(&Error::AlertReceived(AlertDescription::CloseNotify))),
            // Once more: the alert that says so comes first then.
            Err(error) if failed.is_none() => {
                failed = Some(error);
                true
            }
            Err(_) => false,
        };
        drop(heard.drain(..discard));
        // Once it failed, it is asked for what it says of that and no further: it would hear what broke it once more, and
        // panic where it is built to check itself.
        if more && (failed.is_none() || tls.says()) {
            continue;
        }
        return failed.map_or(Ok(()), |error| Err(words::fault(&error)));
    }
}

/// Takes one record that rustls says.
fn encode<Data>(said: &mut EncodeTlsData<'_, Data>, out: &mut Vec<u8>) {
    let begin = out.len();
    // It says how long the record is when there is no room for it.
    if let Err(EncodeError::InsufficientSize(needs)) = said.encode(&mut []) {
        out.resize(begin + needs.required_size, 0);
        let written = said.encode(&mut out[begin..]).unwrap_or(0);
        out.truncate(begin + written);
    }
}

/// What the dialler's hello is answered by, when it is whole.
fn answer(heard: &[u8], setup: &Setup, out: &mut Vec<u8>) -> Result<Option<Arc<ServerConfig>>, Fault> {
    let (mut acceptor, mut rest) = (Acceptor::default(), heard);
    loop {
        acceptor.read_tls(&mut rest).map_err(|error| broken(error.to_string()))?;
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok(Some(setup.answer(&accepted.client_hello()))),
            Ok(None) if rest.is_empty() => return Ok(None),
            Ok(None) => {}
            Err((error, mut alert)) => {
                // Memory takes everything.
                let _ = alert.write_all(out);
                return Err(words::fault(&error));
            }
        }
    }
}

/// The other side sends what no handshake is.
fn broken(text: impl Into<String>) -> Fault {
    Fault::Rejected(CloseReason::ProtocolError, text.into())
}

impl TlsPending {
    /// One that is being dialled.
    pub(super) fn dial(inner: Box<dyn PendingConnection>, setup: Arc<Setup>, rekey: Rekey) -> Self {
        Self::new(inner, setup, rekey, SessionKind::Outbound, Machine::Dial(None))
    }

    /// One that was accepted.
    pub(super) fn accept(inner: Box<dyn PendingConnection>, setup: Arc<Setup>, rekey: Rekey) -> Self {
        Self::new(inner, setup, rekey, SessionKind::Inbound, Machine::Accept(Vec::new()))
    }

    fn new(
        inner: Box<dyn PendingConnection>,
        setup: Arc<Setup>,
        rekey: Rekey,
        kind: SessionKind,
        machine: Machine,
    ) -> Self {
        let (stage, raw, out) = (Stage::Handshake(machine), Vec::new(), Vec::new());
        Self { inner, setup, rekey, kind, stage, raw, heard: 0, out, said: false }
    }

    /// How many bytes at the front are worth a step: whole records, or what cannot become one.
    fn worth(&self) -> usize {
        let mut end = 0;
        while let Some(&[kind, _, _, high, low]) = self.raw[end..].first_chunk::<HEADER>() {
            let length = usize::from(u16::from_be_bytes([high, low]));
            if !(20..=23).contains(&kind) || length > LONGEST {
                return self.raw.len();
            }
            if self.raw.len() < end + HEADER + length {
                break;
            }
            end += HEADER + length;
        }
        end
    }

    /// Reads what is there; false when nothing is.
    fn fill(&mut self) -> io::Result<bool> {
        let mut bytes = [0; READ];
        match self.inner.try_read(&mut bytes) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                self.raw.extend_from_slice(&bytes[..count]);
                self.heard += count;
                match self.heard <= MOST {
                    true => Ok(true),
                    false => Err(broken("a handshake without end").into()),
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The handshake is over: who is there?
    fn open(&mut self, run: Run) -> Result<(), Fault> {
        let tls = &run.tls;
        if tls.alpn_protocol().is_none() {
            let text = "the other side names no protocol".to_owned();
            return Err(Fault::Rejected(CloseReason::WrongProtocol, text));
        }
        let [own, rest @ ..] = tls.peer_certificates().unwrap_or_default() else {
            let text = "the other side has shown nothing".to_owned();
            return Err(Fault::Rejected(CloseReason::Untrusted, text));
        };
        let bare = transport::SPKI.len() + 32 == own.len() && own.starts_with(&transport::SPKI);
        let peer = Shown { bare, own, rest }.peer().map_err(|error| words::fault(&error))?;
        let chain = if bare { Vec::new() } else { [own].into_iter().chain(rest).map(|der| der.to_vec()).collect() };
        let proof = Arc::new(Proof { peer, kind: self.kind, chain, judged_by: Some(self.setup.number) });
        let (sealing, opening) = run.split().map_err(|error| words::fault(&error))?;
        let sealer = Sealer::new(Box::new(sealing), self.rekey, mem::take(&mut self.out));
        let opener = Opener::new(Box::new(opening), mem::take(&mut self.raw));
        self.stage = Stage::Open(Box::new(Opened { sealer, opener, proof }));
        Ok(())
    }

    /// Writes what of the handshake is not written yet; whether that was all.
    fn flush_handshake(&mut self) -> io::Result<bool> {
        while !self.out.is_empty() {
            match self.inner.try_write(&self.out) {
                Ok(count) => {
                    self.said |= count > 0;
                    drop(self.out.drain(..count));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// What takes bytes without waiting, as [`Sealer`] wants it.
fn sink(inner: &mut dyn PendingConnection) -> impl FnMut(&[u8]) -> io::Result<usize> {
    |bytes| match inner.try_write(bytes) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        result => result,
    }
}

impl PendingConnection for TlsPending {
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

    fn expect(&mut self, peer: PeerId) {
        if let Stage::Handshake(Machine::Dial(expected)) = &mut self.stage {
            *expected = Some(peer);
        }
    }

    fn secure(&mut self) -> io::Result<Security> {
        self.flush_handshake()?;
        loop {
            match mem::replace(&mut self.stage, Stage::Over) {
                Stage::Handshake(Machine::Run(run)) if !run.tls.is_handshaking() => self.open(*run)?,
                Stage::Handshake(machine) => {
                    let heard = self.worth();
                    if heard == 0 && !matches!(machine, Machine::Dial(_)) {
                        self.stage = Stage::Handshake(machine);
                        if !self.fill()? {
                            return Ok(Security::Wait);
                        }
                        continue;
                    }
                    self.stage = Stage::Away;
                    let rest = self.raw.split_off(heard);
                    let heard = mem::replace(&mut self.raw, rest);
                    let setup = self.setup.clone();
                    return Ok(Security::Work(Work::new(move || machine.step(&setup, heard))));
                }
                Stage::Failed(fault) => return Err(fault.into()),
                Stage::Open(open) => {
                    self.stage = Stage::Open(open);
                    return Ok(Security::Open);
                }
                stage => {
                    self.stage = stage;
                    return Ok(Security::Wait);
                }
            }
        }
    }

    fn worked(&mut self, done: WorkDone) {
        let (Stage::Away, Some(stepped)) = (&self.stage, done.into::<Stepped>()) else { return };
        let Stepped { out, mut rest, next } = stepped;
        self.out.extend_from_slice(&out);
        rest.append(&mut self.raw);
        self.raw = rest;
        self.stage = match next {
            Ok(machine) => Stage::Handshake(machine),
            Err(fault) => Stage::Failed(fault),
        };
    }

    fn proof(&self) -> Option<Arc<Proof>> {
        match &self.stage {
            Stage::Open(open) => Some(open.proof.clone()),
            _ => None,
        }
    }

    fn refuse(&mut self, reason: CloseReason) -> bool {
        match &self.stage {
            Stage::Open(_) => return false,
            // It has been said, or heard, already.
            Stage::Failed(_) | Stage::Over => {}
            // Whoever dialled speaks first, and unprotected so far; whoever answered did so protected from then on.
            Stage::Handshake(_) | Stage::Away if self.said != (self.kind == SessionKind::Outbound) => {}
            Stage::Handshake(_) | Stage::Away => self.out.extend_from_slice(&words::refusal(reason)),
        }
        self.stage = Stage::Over;
        true
    }

    fn try_read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let Self { inner, stage, .. } = self;
        match stage {
            Stage::Open(open) => {
                let result = open.opener.read(into, &mut |space| inner.try_read(space));
                if open.opener.owes() {
                    open.sealer.take_owed();
                }
                if let Err(error) = &result
                    && matches!(Fault::of(error), Some(Fault::Rejected(..)))
                {
                    // The alert that says why is the last that is said.
                    self.out = open.sealer.take_output();
                    self.stage = Stage::Over;
                }
                result
            }
            Stage::Over => inner.try_read(into),
            _ => Err(ErrorKind::WouldBlock.into()),
        }
    }

    fn try_write(&mut self, from: &[u8]) -> io::Result<usize> {
        let Self { inner, stage, .. } = self;
        match stage {
            Stage::Open(open) => match open.sealer.write(&[IoSlice::new(from)], &mut sink(&mut **inner))? {
                0 if !from.is_empty() => Err(ErrorKind::WouldBlock.into()),
                count => Ok(count),
            },
            Stage::Over => Err(ErrorKind::BrokenPipe.into()),
            _ => Err(ErrorKind::WouldBlock.into()),
        }
    }

    fn flush(&mut self) -> io::Result<bool> {
        if !self.flush_handshake()? {
            return Ok(false);
        }
        let Self { inner, stage, .. } = self;
        match stage {
            Stage::Open(open) => open.sealer.drain(&mut sink(&mut **inner)),
            _ => Ok(true),
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        if let Stage::Open(open) = &mut self.stage {
            open.sealer.close();
        }
        self.flush()?;
        self.inner.finish()
    }

    fn establish(self: Box<Self>) -> io::Result<transport::Connection> {
        let Self { inner, stage, .. } = *self;
        let Stage::Open(open) = stage else {
            return Err(ErrorKind::NotConnected.into());
        };
        let Opened { sealer, opener, proof } = *open;
        Ok(halves::around(inner.establish()?, sealer, opener, proof))
    }
}
