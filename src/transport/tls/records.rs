//! The record layer of an established connection: TLS 1.3 between plain bytes and records, each direction on its own.
//!
//! Owns: the keys of one direction each, and the secrets they are renewed from, shared by both. Threads: whoever writes
//! seals, whoever reads opens. Locks: the secrets', a leaf, for a key update. Blocks on: nothing.
//! Upholds: RFC 8446, section 5: a record number is used once under a key; nothing is given out before its tag is
//! checked; a stream ends by close_notify; nothing is sealed behind a fatal alert or our own end.
//!
//! rustls makes the handshake and the keys, and hands both over ([`rustls::kernel`]). Its own record layer serves one
//! thread at a time and copies each byte three times on the way in, twice on the way out; here bytes are sealed where
//! they are written from and opened where they were read to. The two threads share three atomics, and the secrets that new
//! keys are made of.
//! A rustls whose connections split goes in behind [`SealHalf`] and [`OpenHalf`].

use std::io::{self, ErrorKind, IoSlice};
use std::sync::Arc;

use ring::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{AlertDescription, ConnectionTrafficSecrets, Error, ExtractedSecrets};

use super::cipher::{OpenHalf, Opened, RECORD, RECORD_EXTRA, SealHalf};
use super::words;
use crate::error::CloseReason;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use crate::transport::Fault;

/// A record's header: kind, version, length of the rest.
pub(super) const HEADER: usize = 5;
/// The longest rest of a record (RFC 8446, 5.2).
pub(super) const LONGEST: usize = RECORD + 256;
/// Records in a row that bring nothing of the stream, nor what we asked for: new keys, tickets, alerts without a meaning,
/// empty ones. More are an attack on our time.
const EMPTY: u8 = 32;
/// The most bytes that records may have beyond those of the stream before a session begins.
const EARLY: usize = 64 * 1024;
/// The most bytes of a message of the handshake that is skipped.
const SKIPPED: usize = 64 * 1024;

/// Kinds of records (RFC 8446, 5.1).
mod kind {
    pub(super) const ALERT: u8 = 21;
    pub(super) const HANDSHAKE: u8 = 22;
    pub(super) const DATA: u8 = 23;
}

/// Messages of the handshake that come behind it (RFC 8446, 4).
mod message {
    pub(super) const NEW_TICKET: u8 = 4;
    pub(super) const KEY_UPDATE: u8 = 24;
    /// The length of a whole one.
    pub(super) const KEY_UPDATE_LEN: usize = 5;
}

/// No alert (RFC 8446, 6): TLS gives no meaning to it.
const NO_ALERT: u8 = 255;

/// What new keys are made of.
pub(super) enum Secrets {
    Dialled(KernelConnection<ClientConnectionData>),
    Accepted(KernelConnection<ServerConnectionData>),
}

impl Secrets {
    fn next(&mut self, sending: bool) -> Result<Keys, Error> {
        let (number, secrets) = match (self, sending) {
            (Self::Dialled(secrets), true) => secrets.update_tx_secret()?,
            (Self::Dialled(secrets), false) => secrets.update_rx_secret()?,
            (Self::Accepted(secrets), true) => secrets.update_tx_secret()?,
            (Self::Accepted(secrets), false) => secrets.update_rx_secret()?,
        };
        Keys::new(number, &secrets)
    }
}

/// What both directions know.
struct Shared {
    secrets: Mutex<Secrets>,
    /// The other side asked for new keys of ours, and has no answer yet.
    asked: AtomicBool,
    /// New keys of the other side that we asked for, and have not got yet.
    wanted: AtomicU32,
    /// The alert that says why we end, or [`NO_ALERT`].
    alert: AtomicU8,
}

/// The keys of one direction.
struct Keys {
    key: LessSafeKey,
    iv: [u8; aead::NONCE_LEN],
    /// Of the next record.
    number: u64,
}

impl Keys {
    fn new(number: u64, secrets: &ConnectionTrafficSecrets) -> Result<Self, Error> {
        use ConnectionTrafficSecrets as Kind;
        let (algorithm, key, iv) = match secrets {
            Kind::Aes128Gcm { key, iv } => (&aead::AES_128_GCM, key, iv),
            Kind::Aes256Gcm { key, iv } => (&aead::AES_256_GCM, key, iv),
            Kind::Chacha20Poly1305 { key, iv } => (&aead::CHACHA20_POLY1305, key, iv),
            _ => return Err(Error::General("a cipher that this crate does not know".to_owned())),
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| Error::EncryptError)?;
        let iv = iv.as_ref().try_into().map_err(|_| Error::EncryptError)?;
        Ok(Self { key: LessSafeKey::new(key), iv, number })
    }

    /// The nonce of the next record (RFC 8446, 5.3), which none will have again.
    fn nonce(&mut self) -> Result<Nonce, Error> {
        let mut nonce = self.iv;
        for (byte, of_number) in nonce[aead::NONCE_LEN - 8..].iter_mut().zip(self.number.to_be_bytes()) {
            *byte ^= of_number;
        }
        self.number = self.number.checked_add(1).ok_or(Error::EncryptError)?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

/// The two directions of a connection whose handshake is over.
///
/// # Errors
/// The keys are of a kind this crate does not know, which the provider never agrees to.
pub(super) fn split(extracted: &ExtractedSecrets, secrets: Secrets) -> Result<(Sealing, Opening), Error> {
    let tickets = matches!(secrets, Secrets::Dialled(_));
    let (asked, wanted, alert) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU8::new(NO_ALERT));
    let shared = Arc::new(Shared { secrets: Mutex::new(secrets), asked, wanted, alert });
    let (tx, rx) = (&extracted.tx, &extracted.rx);
    let sealing = Sealing { keys: Keys::new(tx.0, &tx.1)?, shared: shared.clone(), closed: false };
    let keys = Keys::new(rx.0, &rx.1)?;
    let opening = Opening { keys, shared, tickets, skip: 0, part: Vec::new(), empty: 0, early: Some(EARLY) };
    Ok((sealing, opening))
}

/// Seals for the other side.
pub(super) struct Sealing {
    keys: Keys,
    shared: Arc<Shared>,
    /// Nothing may follow what was sealed.
    closed: bool,
}

impl Sealing {
    /// Seals one record of what `fill` appends.
    fn record(&mut self, kind: u8, len: usize, fill: impl FnOnce(&mut Vec<u8>), into: &mut Vec<u8>) -> io::Result<()> {
        let rest = len + RECORD_EXTRA - HEADER;
        // At most `RECORD` and its extra: two bytes hold it.
        let [.., high, low] = rest.to_be_bytes();
        let header = [kind::DATA, 3, 3, high, low];
        into.reserve(HEADER + rest);
        into.extend_from_slice(&header);
        let begin = into.len();
        fill(into);
        into.push(kind);
        let nonce = self.keys.nonce().map_err(io::Error::other)?;
        let sealed = self.keys.key.seal_in_place_separate_tag(nonce, Aad::from(header), &mut into[begin..]);
        let Ok(tag) = sealed else {
            into.truncate(begin - HEADER);
            return Err(io::Error::other(Error::EncryptError));
        };
        into.extend_from_slice(tag.as_ref());
        Ok(())
    }

    /// Refuses, before a byte of the stream is sealed.
    pub(super) fn refuse(&mut self, reason: CloseReason, into: &mut Vec<u8>) {
        self.alert(words::alert_for(reason), into);
    }

    fn alert(&mut self, alert: AlertDescription, into: &mut Vec<u8>) {
        const WARNING: u8 = 1;
        const FATAL: u8 = 2;
        if !std::mem::replace(&mut self.closed, true) {
            let level = if alert == AlertDescription::CloseNotify { WARNING } else { FATAL };
            // A connection that cannot say its end is cut instead.
            let _ = self.record(kind::ALERT, 2, |into| into.extend_from_slice(&[level, u8::from(alert)]), into);
        }
    }

    fn update(&mut self, ask: bool, into: &mut Vec<u8>) -> io::Result<()> {
        let update: [u8; message::KEY_UPDATE_LEN] = [message::KEY_UPDATE, 0, 0, 1, u8::from(ask)];
        if ask {
            // Before it can be answered.
            self.shared.wanted.fetch_add(1, Ordering::AcqRel);
        }
        self.record(kind::HANDSHAKE, update.len(), |into| into.extend_from_slice(&update), into)?;
        self.keys = self.shared.secrets.lock().next(true).map_err(io::Error::other)?;
        Ok(())
    }
}

impl SealHalf for Sealing {
    fn seal(&mut self, from: &[IoSlice<'_>], into: &mut Vec<u8>) -> io::Result<usize> {
        self.owed(into);
        let (mut slices, mut skip, mut sealed) = (from.iter(), 0, 0);
        let mut slice: &[u8] = &[];
        let total: usize = from.iter().map(|slice| slice.len()).sum();
        while sealed < total {
            if self.closed {
                return Err(ErrorKind::BrokenPipe.into());
            }
            let len = RECORD.min(total - sealed);
            let fill = |into: &mut Vec<u8>| {
                let mut left = len;
                while left > 0 {
                    if skip == slice.len() {
                        // `total` is the sum of their lengths.
                        let Some(next) = slices.next() else { break };
                        (slice, skip) = (next, 0);
                        continue;
                    }
                    let end = slice.len().min(skip + left);
                    into.extend_from_slice(&slice[skip..end]);
                    left -= end - skip;
                    skip = end;
                }
            };
            self.record(kind::DATA, len, fill, into)?;
            sealed += len;
        }
        Ok(sealed)
    }

    fn owed(&mut self, into: &mut Vec<u8>) {
        let code = self.shared.alert.swap(NO_ALERT, Ordering::AcqRel);
        if code != NO_ALERT {
            self.alert(AlertDescription::from(code), into);
        }
        // A key that cannot be renewed is no reason to go on with the old one.
        if self.shared.asked.swap(false, Ordering::AcqRel) && !self.closed && self.update(false, into).is_err() {
            self.alert(AlertDescription::InternalError, into);
        }
    }

    fn rekey(&mut self, into: &mut Vec<u8>) -> io::Result<()> {
        if self.closed {
            return Err(ErrorKind::BrokenPipe.into());
        }
        self.update(true, into)
    }

    fn close(&mut self, into: &mut Vec<u8>) {
        self.owed(into);
        self.alert(AlertDescription::CloseNotify, into);
    }
}

/// Opens what the other side sealed.
pub(super) struct Opening {
    keys: Keys,
    shared: Arc<Shared>,
    /// Whether the other side may give out tickets, which nobody here uses.
    tickets: bool,
    /// Bytes of such a message still to come.
    skip: usize,
    /// The begin of a message of the handshake whose end is in a later record.
    part: Vec<u8>,
    /// Records since the last one with bytes of the stream; before a session begins, all that had none.
    empty: u8,
    /// Bytes beyond those of the stream that records may still have; any number once a session has begun, which has a
    /// thread of its own for them.
    early: Option<usize>,
}

impl Opening {
    /// What the other side has done wrong, for both of us to know.
    fn reject(&self, alert: AlertDescription, text: impl Into<String>) -> io::Error {
        self.shared.alert.store(u8::from(alert), Ordering::Release);
        Fault::Rejected(CloseReason::ProtocolError, text.into()).into()
    }

    fn unexpected(&self, what: &str) -> io::Error {
        self.reject(AlertDescription::UnexpectedMessage, format!("{what} has no place here"))
    }

    /// Bounds what costs time and brings nothing.
    fn count(&mut self, opened: &Opened) -> io::Result<()> {
        if opened.plain == 0 && !opened.ended && !opened.answers {
            self.empty += 1;
            if self.empty > EMPTY {
                return Err(self.unexpected("one more record that brings nothing"));
            }
        } else if self.early.is_none() {
            self.empty = 0;
        }
        if let Some(left) = &mut self.early {
            match left.checked_sub(opened.used - opened.plain) {
                Some(less) => *left = less,
                None => return Err(self.unexpected("one more record before a session")),
            }
        }
        Ok(())
    }

    /// Messages of the handshake, behind it: new keys, and tickets that nobody uses. `opened` is told whether we owe an
    /// answer, or have got one.
    fn take_messages(&mut self, mut bytes: &[u8], opened: &mut Opened) -> io::Result<()> {
        if bytes.is_empty() {
            return Err(self.unexpected("an empty message"));
        }
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len());
                self.skip -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            self.part.push(bytes[0]);
            bytes = &bytes[1..];
            match *self.part.as_slice() {
                [message::NEW_TICKET, a, b, c] if self.tickets => {
                    self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
                    self.part.clear();
                    if self.skip > SKIPPED {
                        return Err(self.reject(AlertDescription::DecodeError, "a ticket longer than allowed"));
                    }
                }
                [message::KEY_UPDATE, 0, 0, 1, ask @ 0..=1] => {
                    self.part.clear();
                    // Whatever follows is sealed by the new key: in a record of its own.
                    if !bytes.is_empty() {
                        return Err(self.unexpected("a message behind new keys"));
                    }
                    self.keys = match self.shared.secrets.lock().next(false) {
                        Ok(keys) => keys,
                        Err(error) => return Err(self.reject(AlertDescription::InternalError, error.to_string())),
                    };
                    let less = |wanted: u32| wanted.checked_sub(1);
                    if ask == 1 {
                        self.shared.asked.store(true, Ordering::Release);
                        opened.owes = true;
                    } else if self.shared.wanted.fetch_update(Ordering::AcqRel, Ordering::Acquire, less).is_ok() {
                        opened.answers = true;
                    }
                }
                [message::KEY_UPDATE, ..] if self.part.len() == message::KEY_UPDATE_LEN => {
                    return Err(self.reject(AlertDescription::DecodeError, "a change of keys that is none"));
                }
                [message::NEW_TICKET, ..] if self.tickets => {}
                [message::KEY_UPDATE, ..] => {}
                [other, ..] => return Err(self.unexpected(&format!("a message of kind {other}"))),
                [] => {}
            }
        }
        Ok(())
    }
}

impl OpenHalf for Opening {
    fn open(&mut self, raw: &mut [u8], at: usize) -> io::Result<Option<Opened>> {
        let header = raw.get(at..).and_then(|record| record.first_chunk::<HEADER>());
        let Some(&header @ [outer, _, _, high, low]) = header else { return Ok(None) };
        let rest = usize::from(u16::from_be_bytes([high, low]));
        if outer == kind::ALERT {
            // Not sealed, so not proven: a cut by anybody, as the stream's end would be.
            return Err(self.unexpected("an alert that is not protected"));
        }
        if outer != kind::DATA {
            return Err(self.unexpected(&format!("a record of kind {outer}")));
        }
        if rest > LONGEST {
            return Err(self.reject(AlertDescription::RecordOverflow, "a record larger than allowed"));
        }
        let used = HEADER + rest;
        let Some(raw) = raw.get_mut(..at + used) else { return Ok(None) };
        let nonce = self.keys.nonce().map_err(io::Error::other)?;
        let Ok(inner) = self.keys.key.open_within(nonce, Aad::from(header), raw, at + HEADER..) else {
            return Err(self.reject(AlertDescription::BadRecordMac, "a record that the other side has not sealed"));
        };
        // The kind is the last byte that is not padding.
        let Some(len) = inner.iter().rposition(|byte| *byte != 0) else {
            return Err(self.unexpected("a record of nothing but padding"));
        };
        if len > RECORD {
            return Err(self.reject(AlertDescription::RecordOverflow, "more in a record than allowed"));
        }
        let (kind, body) = (inner[len], &inner[..len]);
        let mut opened = Opened { used, ..Opened::default() };
        if kind != kind::HANDSHAKE && (self.skip > 0 || !self.part.is_empty()) {
            return Err(self.unexpected("a record within a message"));
        }
        match (kind, body) {
            (kind::DATA, _) => opened.plain = len,
            (kind::HANDSHAKE, _) => {
                // They are short: the key that opens what follows is made meanwhile.
                let messages = body.to_vec();
                self.take_messages(&messages, &mut opened)?;
            }
            (kind::ALERT, &[_, code]) => match AlertDescription::from(code) {
                AlertDescription::CloseNotify => opened.ended = true,
                AlertDescription::UserCanceled => {}
                alert => return Err(words::fault(&Error::AlertReceived(alert)).into()),
            },
            _ => return Err(self.unexpected(&format!("a protected record of kind {kind}"))),
        }
        self.count(&opened)?;
        Ok(Some(opened))
    }

    fn begin_session(&mut self) {
        self.early = None;
    }
}
