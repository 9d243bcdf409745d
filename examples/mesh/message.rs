//! What the example puts into a payload: its own sequence number and digest, and a piece of a file.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: nothing here comes from the library, so what the ledgers prove does not rest on what they check.
//!
//! ```text
//!  +---------------------+-------------------+-----------------+-------------+
//!  | SHA-256 of the rest | header length u32 | header, bincode | content     |
//!  | 32 bytes            | little endian     |                 | 0 to 1 MiB  |
//!  +---------------------+-------------------+-----------------+-------------+
//! ```

use std::fmt;
use std::str::FromStr;

use bincode::Options;
use serde::{Deserialize, Serialize};

use crate::failure::{Context, Failure};

/// The most content one message carries, in bytes.
pub const CONTENT_MAX: usize = 1 << 20;
/// The longest header, in bytes: a path and seven numbers.
const HEADER_MAX: usize = 8 * 1024;
/// Where the header's length starts.
const DIGEST_BYTES: usize = 32;
/// Where the header starts.
const PREFIX: usize = DIGEST_BYTES + 4;

/// A SHA-256 digest; its text is 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; DIGEST_BYTES]);

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut running = RunningDigest::new();
        running.update(bytes);
        running.finish()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let digits = text.as_bytes();
        let mut bytes = [0; DIGEST_BYTES];
        if digits.len() != 2 * DIGEST_BYTES || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(Failure::new("a digest is 64 hexadecimal digits"));
        }
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).context(|| "a digest".to_owned())?;
            *byte = u8::from_str_radix(pair, 16).context(|| "a digest".to_owned())?;
        }
        Ok(Self(bytes))
    }
}

/// A digest of bytes that come in parts.
pub struct RunningDigest(ring::digest::Context);

impl RunningDigest {
    /// Of nothing yet.
    pub fn new() -> Self {
        Self(ring::digest::Context::new(&ring::digest::SHA256))
    }

    /// Takes the next bytes in.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of everything taken in.
    pub fn finish(self) -> Digest {
        let mut bytes = [0; DIGEST_BYTES];
        bytes.copy_from_slice(self.0.finish().as_ref());
        Digest(bytes)
    }
}

/// Where a piece belongs. Each piece names its file, so that no piece depends on another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The application's number of this message: 0, 1, 2, .. for each sender and receiver.
    pub sequence: u64,
    /// The file's position in the list of what is sent.
    pub file: u32,
    /// The file's name below the folder, parts separated by `/`.
    pub path: String,
    /// Where the content starts in the file.
    pub offset: u64,
    /// Bytes of content.
    pub length: u32,
    /// Bytes of the whole file.
    pub total: u64,
}

/// What a receiver found in a payload.
#[derive(Debug)]
pub struct Received<'a> {
    /// The digest of the bytes that came.
    pub computed: Digest,
    /// Whether the payload carries that same digest.
    pub intact: bool,
    /// The piece, if there is one to be read.
    pub piece: Result<Piece<'a>, Failure>,
}

/// A piece of a file.
#[derive(Debug)]
pub struct Piece<'a> {
    /// Where it belongs.
    pub header: Header,
    /// Its bytes.
    pub content: &'a [u8],
}

fn codec() -> impl Options {
    bincode::DefaultOptions::new().with_fixint_encoding().with_limit(HEADER_MAX as u64)
}

/// Builds a payload, and says the digest it carries.
pub fn encode(header: &Header, content: &[u8]) -> Result<(Vec<u8>, Digest), Failure> {
    let encoded = codec().serialize(header).context(|| format!("the header of a piece of {}", header.path))?;
    let mut payload = Vec::with_capacity(PREFIX + encoded.len() + content.len());
    payload.extend_from_slice(&[0; DIGEST_BYTES]);
    payload.extend_from_slice(&(encoded.len() as u32).to_le_bytes());
    payload.extend_from_slice(&encoded);
    payload.extend_from_slice(content);
    let digest = Digest::of(&payload[DIGEST_BYTES..]);
    payload[..DIGEST_BYTES].copy_from_slice(&digest.0);
    Ok((payload, digest))
}

/// Reads a payload; never fails as a whole, because what is damaged has to be counted too.
pub fn decode(payload: &[u8]) -> Received<'_> {
    let (carried, rest) = payload.split_at(payload.len().min(DIGEST_BYTES));
    let computed = Digest::of(rest);
    Received { computed, intact: carried == computed.0, piece: decode_piece(rest) }
}

fn decode_piece(rest: &[u8]) -> Result<Piece<'_>, Failure> {
    let Some((length, rest)) = rest.split_first_chunk() else {
        return Err(Failure::new(format!("{} bytes are no message", rest.len())));
    };
    let length = u32::from_le_bytes(*length) as usize;
    if length > HEADER_MAX || length > rest.len() {
        return Err(Failure::new(format!("a header of {length} bytes does not fit")));
    }
    let (encoded, content) = rest.split_at(length);
    let header: Header = codec().deserialize(encoded).context(|| "a header".to_owned())?;
    if content.len() != header.length as usize || content.len() > CONTENT_MAX {
        return Err(Failure::new(format!("{} bytes of content where {} were named", content.len(), header.length)));
    }
    match header.offset.checked_add(header.length.into()) {
        Some(end) if end <= header.total => Ok(Piece { header, content }),
        _ => Err(Failure::new(format!("a piece beyond the end of {}", header.path))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(length: u32) -> Header {
        Header { sequence: 7, file: 3, path: "a/b.rs".into(), offset: 10, length, total: 100 }
    }

    #[test]
    fn a_piece_survives_the_payload() {
        let (payload, digest) = encode(&header(5), b"hello").unwrap();
        let received = decode(&payload);
        assert!(received.intact);
        assert_eq!(received.computed, digest);
        let piece = received.piece.unwrap();
        assert_eq!((piece.header, piece.content), (header(5), &b"hello"[..]));
    }

    #[test]
    fn every_flipped_bit_shows_in_the_digest() {
        let (payload, digest) = encode(&header(5), b"hello").unwrap();
        for bit in 0..payload.len() * 8 {
            let mut damaged = payload.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let received = decode(&damaged);
            assert!(!received.intact, "bit {bit}");
            // The first 32 bytes are the digest itself; a flip there leaves what it is computed from alone.
            assert_eq!(received.computed == digest, bit < 32 * 8, "bit {bit}");
        }
    }

    #[test]
    fn what_is_cut_short_or_lies_about_its_length_is_no_piece_and_no_panic() {
        let (payload, _) = encode(&header(5), b"hello").unwrap();
        for end in 0..payload.len() {
            assert!(decode(&payload[..end]).piece.is_err(), "{end} bytes");
        }
        for wrong in [header(4), Header { total: 14, ..header(5) }, Header { offset: u64::MAX, ..header(5) }] {
            let (payload, _) = encode(&wrong, b"hello").unwrap();
            assert!(decode(&payload).intact);
            assert!(decode(&payload).piece.is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_digest_survives_its_text() {
        let digest = Digest::of(b"abc");
        assert_eq!(digest.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        for bad in ["", "ba", &"g".repeat(64), &"+1".repeat(32), &"é".repeat(32)] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }
}
