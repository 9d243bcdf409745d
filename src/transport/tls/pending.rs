//! A connection whose TLS handshake is under way, driven without waiting.
//!
//! Owns: the connection below, its handshake, and what of that is read and not processed, said and not written.
//! Threads: `acceptor`; the arithmetic runs on `work-n`. Locks: none. Blocks on: nothing.
//! Upholds: a side that says nothing, or half a record, costs no arithmetic; what a handshake may say is bounded before
//! it is read; nothing of the stream passes before both sides are proven.

use std::io::{self, ErrorKind, IoSlice};
use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;

use mio::event::Source;
use rustls::CommonState;

use super::cipher::{Opener, Rekey, Sealer};
use super::machine::{Machine, Run, Stepped, broken};
use super::records::{HEADER, LONGEST};
use super::setup::Setup;
use super::verify::{Shown, is_bare};
use super::{halves, words};
use crate::error::CloseReason;
use crate::ident::{PeerId, SessionKind};
use crate::transport::{self, Fault, PendingConnection, Proof, Security, Work, WorkDone};

/// The most bytes of a side's handshake: long chains of certificates fit.
const MOST: usize = 64 * 1024;
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
        let proof = self.prove(&run.tls);
        let (mut sealing, opening) = run.split().map_err(|error| words::fault(&error))?;
        let proof = match proof {
            Ok(proof) => Arc::new(proof),
            Err(fault) => {
                // The other side has its keys by now, and takes nothing for a word of ours that is not sealed.
                if let Fault::Rejected(reason, _) = &fault {
                    sealing.refuse(*reason, &mut self.out);
                }
                return Err(fault);
            }
        };
        let sealer = Sealer::new(Box::new(sealing), self.rekey, mem::take(&mut self.out));
        let opener = Opener::new(Box::new(opening), mem::take(&mut self.raw));
        self.stage = Stage::Open(Box::new(Opened { sealer, opener, proof }));
        Ok(())
    }

    /// What the other side has proven. rustls has checked what is shown; that something is, and for which protocol, is
    /// ours to see.
    fn prove(&self, tls: &CommonState) -> Result<Proof, Fault> {
        if tls.alpn_protocol().is_none() {
            let text = "the other side names no protocol".to_owned();
            return Err(Fault::Rejected(CloseReason::WrongProtocol, text));
        }
        let [own, rest @ ..] = tls.peer_certificates().unwrap_or_default() else {
            let text = "the other side has shown nothing".to_owned();
            return Err(Fault::Rejected(CloseReason::Untrusted, text));
        };
        let bare = is_bare(own);
        let peer = Shown { bare, own, rest }.peer().map_err(|error| words::fault(&error))?;
        let chain = if bare { Vec::new() } else { [own].into_iter().chain(rest).map(|der| der.to_vec()).collect() };
        Ok(Proof { peer, kind: self.kind, chain, judged_by: Some(self.setup.number) })
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
