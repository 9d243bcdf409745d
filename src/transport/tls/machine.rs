//! The handshake itself, one step at a time: rustls' machine, driven by whole records.
//!
//! Owns: what of the handshake is heard and not understood yet. Threads: `work-n`, for the arithmetic. Locks: none.
//! Blocks on: nothing; it does no I/O.
//! Upholds: rustls sees whole records only; once it failed, it says the alert and hears nothing more.

use std::mem;
use std::ops::Deref;
use std::sync::Arc;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{Acceptor, ServerConfig, ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{AlertDescription, CommonState, Error};

use super::records::{self, HEADER, Opening, Sealing, Secrets};
use super::setup::Setup;
use super::words;
use crate::error::CloseReason;
use crate::ident::PeerId;
use crate::transport::Fault;

/// The most records of a side's handshake. Ten are many; whoever says it in crumbs has each looked at anew.
const RECORDS: usize = 64;

/// A handshake between two steps.
pub(super) enum Machine {
    Dial(Option<PeerId>),
    /// What was read of the dialler's hello.
    Accept(Vec<u8>),
    Run(Box<Run>),
}

/// A handshake under way.
pub(super) struct Run {
    pub(super) tls: Side,
    /// Whole records that rustls wants to see again with what follows: the begin of a message.
    heard: Vec<u8>,
    /// How many records there were.
    records: usize,
}

/// rustls without buffers: it makes the handshake and the keys, and what is sealed by them is ours to seal.
pub(super) enum Side {
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
pub(super) struct Stepped {
    pub(super) out: Vec<u8>,
    pub(super) rest: Vec<u8>,
    pub(super) next: Result<Machine, Fault>,
}

impl Machine {
    /// One step, with whole records of the other side.
    pub(super) fn step(self, setup: &Setup, heard: Vec<u8>) -> Stepped {
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
        let mut run = Box::new(Run { tls: tls.map_err(|error| words::fault(&error))?, heard: Vec::new(), records: 0 });
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
            let Some(length) = first_record(rest) else { return Ok(()) };
            self.records += 1;
            if self.records > RECORDS {
                return Err(broken("a handshake in crumbs"));
            }
            self.heard.extend(rest.drain(..length));
        }
    }

    /// The keys, once the handshake is over.
    pub(super) fn split(self) -> Result<(Sealing, Opening), Error> {
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

/// How long the first record is, if there is one: no longer than what is there.
fn first_record(heard: &[u8]) -> Option<usize> {
    let [_, _, _, high, low] = heard.first_chunk::<HEADER>()?;
    Some(heard.len().min(HEADER + usize::from(u16::from_be_bytes([*high, *low]))))
}

/// What the dialler's hello is answered by, when it is whole.
fn answer(heard: &[u8], setup: &Setup, out: &mut Vec<u8>) -> Result<Option<Arc<ServerConfig>>, Fault> {
    let (mut records, mut rest) = (0, heard);
    while let Some(length) = first_record(rest) {
        (records, rest) = (records + 1, &rest[length..]);
    }
    if records > RECORDS {
        out.extend_from_slice(&words::refusal(CloseReason::ProtocolError));
        return Err(broken("a hello in crumbs"));
    }
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
pub(super) fn broken(text: impl Into<String>) -> Fault {
    Fault::Rejected(CloseReason::ProtocolError, text.into())
}
