//! What the applications put into a payload: who sent it, its own number, a digest, random bytes.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: nothing here comes from the library, so that what the ledgers prove does not rest on what they check.
//!
//! ```text
//!  byte 0      1         2          4            8                              16
//!       +------+---------+----------+------------+------------------------------+------------ - -
//!       | from | stream  | life     | sequence   | first 8 bytes of the SHA-256 | random bytes
//!       | u8   | u8      | u16      | u32        | of everything else           |
//!       +------+---------+----------+------------+------------------------------+------------ - -
//!       integers little endian; the low four bits of stream are the lane (0 urgent, 1 normal, 2 bulk), the high ones
//!       the mode (0 reliable, 1 best effort, 2 only the latest wanted)
//! ```

use serde::{Deserialize, Serialize};

/// The shortest payload.
pub const SHORTEST: usize = 16;
/// The longest one.
pub const LONGEST: usize = 1 << 20;
/// Where the digest lies.
const DIGEST: std::ops::Range<usize> = 8..SHORTEST;

/// What is counted on its own: each destination and stream of a sender has its own sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Stream {
    /// 0 urgent, 1 normal, 2 bulk.
    pub lane: u8,
    /// What is promised.
    pub mode: Mode,
}

/// What is promised of the messages of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Mode {
    /// Everything.
    Reliable,
    /// Nothing once they are written.
    BestEffort,
    /// Everything, but that a later one takes the place of one that waits. Its place is ahead of others, so that these
    /// are in order among themselves only.
    Latest,
}

impl Stream {
    /// How many lanes there are.
    pub const LANES: u8 = 3;
    /// All modes, in the order of their numbers.
    pub const MODES: [Mode; 3] = [Mode::Reliable, Mode::BestEffort, Mode::Latest];

    /// Its number in a payload.
    pub const fn bits(self) -> u8 {
        self.lane | (self.mode as u8) << 4
    }

    /// The stream of this number.
    pub fn from_bits(bits: u8) -> Option<Self> {
        let lane = bits & 0x0f;
        let mode = *Self::MODES.get(usize::from(bits >> 4))?;
        (lane < Self::LANES).then_some(Self { lane, mode })
    }

    /// May its messages get lost?
    pub fn is_best_effort(self) -> bool {
        self.mode == Mode::BestEffort
    }
}

/// What tells a message from all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    /// The sending node.
    pub from: u8,
    /// Its stream.
    pub stream: Stream,
    /// Which of its processes: each one after a kill counts one more.
    pub life: u16,
    /// Counted from 0 in each life, stream and destination.
    pub sequence: u32,
}

/// A payload of `length` bytes, [`SHORTEST`] at least, and its digest.
pub fn encode(stamp: Stamp, length: usize, random: &mut fastrand::Rng) -> (Vec<u8>, u64) {
    let mut payload = vec![0; length.max(SHORTEST)];
    payload[0] = stamp.from;
    payload[1] = stamp.stream.bits();
    payload[2..4].copy_from_slice(&stamp.life.to_le_bytes());
    payload[4..8].copy_from_slice(&stamp.sequence.to_le_bytes());
    random.fill(&mut payload[SHORTEST..]);
    let digest = digest_of(&payload);
    payload[DIGEST].copy_from_slice(&digest.to_le_bytes());
    (payload, digest)
}

/// What a receiver finds in a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// What it says it is; `None` if it cannot be read.
    pub stamp: Option<Stamp>,
    /// Of the bytes that came.
    pub digest: u64,
    /// Whether the payload says so too.
    pub intact: bool,
}

/// Reads a payload; what is damaged has to be counted too.
pub fn decode(payload: &[u8]) -> Found {
    let digest = digest_of(payload);
    let intact = payload.get(DIGEST) == Some(&digest.to_le_bytes()[..]);
    Found { stamp: stamp_of(payload), digest, intact }
}

fn stamp_of(payload: &[u8]) -> Option<Stamp> {
    let &[from, stream, a, b, c, d, e, f] = payload.first_chunk()?;
    Some(Stamp {
        from,
        stream: Stream::from_bits(stream)?,
        life: u16::from_le_bytes([a, b]),
        sequence: u32::from_le_bytes([c, d, e, f]),
    })
}

/// The digest of everything in a payload but the digest.
fn digest_of(payload: &[u8]) -> u64 {
    let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
    digest.update(&payload[..payload.len().min(DIGEST.start)]);
    digest.update(payload.get(DIGEST.end..).unwrap_or_default());
    let mut first = [0; 8];
    first.copy_from_slice(&digest.finish().as_ref()[..8]);
    u64::from_le_bytes(first)
}

/// The length of the next message: seven in ten up to 256 bytes, a quarter up to 16 KiB, the rest up to 1 MiB; within
/// each, every doubling is as likely as every other.
pub fn length(random: &mut fastrand::Rng) -> usize {
    let (from, to) = match random.u32(0..100) {
        0..70 => (SHORTEST, 256),
        70..95 => (256, 16 << 10),
        _ => (16 << 10, LONGEST),
    };
    let (from, to) = (from as f64, to as f64);
    ((from * (to / from).powf(random.f64())) as usize).clamp(SHORTEST, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp() -> Stamp {
        Stamp { from: 2, stream: Stream { lane: 1, mode: Mode::Latest }, life: 513, sequence: 70_000 }
    }

    #[test]
    fn a_stamp_survives_its_payload_whatever_the_length() {
        let mut random = fastrand::Rng::with_seed(1);
        for length in [0, SHORTEST, 17, 1000, LONGEST] {
            let (payload, digest) = encode(stamp(), length, &mut random);
            assert_eq!(payload.len(), length.max(SHORTEST));
            assert_eq!(decode(&payload), Found { stamp: Some(stamp()), digest, intact: true });
        }
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let (payload, _) = encode(stamp(), 40, &mut fastrand::Rng::with_seed(2));
        for bit in 0..payload.len() * 8 {
            let mut damaged = payload.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(!decode(&damaged).intact, "bit {bit}");
        }
    }

    #[test]
    fn what_is_too_short_is_neither_intact_nor_a_panic() {
        let (payload, _) = encode(stamp(), 40, &mut fastrand::Rng::with_seed(3));
        for end in 0..payload.len() {
            assert!(!decode(&payload[..end]).intact, "{end} bytes");
        }
        assert_eq!(decode(b"").stamp, None);
    }

    #[test]
    fn lengths_are_spread_as_promised() {
        let mut random = fastrand::Rng::with_seed(4);
        let lengths: Vec<usize> = (0..100_000).map(|_| length(&mut random)).collect();
        let share = |upto: usize| lengths.iter().filter(|length| **length <= upto).count() as f64 / 1e5;
        assert!((share(256) - 0.70).abs() < 0.01 && (share(16 << 10) - 0.95).abs() < 0.01);
        assert!(lengths.iter().all(|length| (SHORTEST..=LONGEST).contains(length)));
        assert!(lengths.iter().any(|length| *length > LONGEST / 2));
    }
}
