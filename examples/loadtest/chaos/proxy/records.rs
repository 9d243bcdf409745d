//! Reads along with one direction of a connection over TLS, of which it sees the headers of records only: where records
//! begin and end, which of them belong to a handshake, which are messages and which acknowledgements, as far as their
//! type and length tell, and at which byte a planned fault is due.
//!
//! Owns: the header of the record under way. Threads: the proxy's. Locks: none. Blocks on: nothing.
//! Upholds: it never changes a byte, and takes any bytes for records without a panic.
//!
//! ```text
//!  byte 0      1         3        5
//!       +------+---------+--------+------------------------------- - -
//!       | type | version | length | body: sealed, but for the hellos of TLS
//!       +------+---------+--------+------------------------------- - -
//!       type 22 handshake, 20 a byte for old middle boxes, 21 alert; 23 everything that is sealed, the end of the
//!       handshake too; integers big endian
//! ```
//!
//! What a fault harms, of what there is under TLS:
//!
//! | | |
//! |---|---|
//! | a frame header | the header of any record after the handshakes |
//! | a message | a record of more bytes than anything but messages takes |
//! | an acknowledgement | a record as long as one of some lanes, the first after messages came the other way |
//! | a handshake | a record of TLS' handshake, or of the threadwire handshake that follows it: hello, confirm, attach |

use threadwire::wire::LANES;

use super::wish::Wish;
use crate::chaos::plan::{Kind, Way};

/// Bytes of a record's header.
const HEADER: usize = 5;
/// Types of records.
const HANDSHAKE: u8 = 22;
const SEALED: u8 = 23;
/// Sealed records that a side says before its first message: the end of TLS' handshake, hello, confirm of the side that
/// dialled, attach.
const fn opening(way: Way) -> u64 {
    match way {
        Way::Up => 4,
        Way::Down => 3,
    }
}

/// A record of a longer body is a message, or several: nothing else is as long.
const MESSAGES: u64 = 2048;
/// What sealing adds to what a record says: its type and a tag.
const SEAL: u64 = 17;
/// Bytes of an acknowledgement's frame that names no exceptions. One record has those of some lanes, each alike.
const ACK: u64 = 41;

/// One direction.
#[derive(Debug)]
pub struct Records {
    /// What is looked for.
    pub wish: Wish,
    /// Sealed records before the first message.
    opening: u64,
    /// Bytes seen.
    seen: u64,
    /// The header of the record under way, and how many bytes of it are there.
    header: [u8; HEADER],
    have: usize,
    /// Where the record under way begins, and ends once its header is there.
    begins: u64,
    ends: Option<u64>,
    /// Sealed records seen to their last byte.
    sealed: u64,
    /// Of these, messages that nothing came back after.
    unanswered: u64,
    /// Sealed records of the other direction, as many as were seen there.
    heard: u64,
    /// Messages came the other way, and nothing was said here since.
    owes: bool,
}

impl Records {
    /// Of a direction.
    pub fn new(way: Way) -> Self {
        Self {
            wish: Wish::default(),
            opening: opening(way),
            seen: 0,
            header: [0; HEADER],
            have: 0,
            begins: 0,
            ends: None,
            sealed: 0,
            unanswered: 0,
            heard: 0,
            owes: false,
        }
    }

    /// Whether this side has said all that comes before its first message.
    pub fn attached(&self) -> bool {
        self.sealed >= self.opening
    }

    /// Records of messages that were seen here since anything was seen to come back: no acknowledgement of theirs was.
    pub fn in_flight(&self) -> u64 {
        self.unanswered
    }

    /// Takes in what was seen in the other direction.
    pub fn learn(&mut self, other: &Self) {
        if self.heard != other.sealed {
            self.heard = other.sealed;
            self.unanswered = 0;
        }
        self.owes = other.unanswered > 0;
    }

    /// Takes the next bytes in.
    pub fn scan(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.have == 0 {
                self.begins = self.seen;
                if self.attached() && self.wish.is_due(|kind| kind == Kind::CutHeader) {
                    self.wish.place(self.begins, 1, HEADER as u64);
                }
            }
            let whole = self.ends.map_or(HEADER as u64, |ends| ends - self.begins);
            let wanted = whole - (self.seen - self.begins);
            let (taken, rest) = bytes.split_at(bytes.len().min(usize::try_from(wanted).unwrap_or(usize::MAX)));
            if self.ends.is_none() {
                self.header[self.have..self.have + taken.len()].copy_from_slice(taken);
                self.have += taken.len();
            }
            self.seen += taken.len() as u64;
            bytes = rest;
            if self.ends.is_none() && self.have == HEADER {
                self.header_is_there();
            }
            if self.ends == Some(self.seen) {
                self.record_ended();
                (self.have, self.ends) = (0, None);
            }
        }
    }

    fn length(&self) -> u64 {
        u16::from_be_bytes([self.header[3], self.header[4]]).into()
    }

    fn is_sealed(&self) -> bool {
        self.header[0] == SEALED
    }

    /// Whether the record under way is an acknowledgement, or one of each of several lanes: its length says so, and that
    /// messages came the other way.
    fn is_ack(&self) -> bool {
        let frames = self.length().saturating_sub(SEAL);
        let lanes = frames / ACK;
        self.is_sealed()
            && self.attached()
            && self.owes
            && frames.is_multiple_of(ACK)
            && (1..=LANES as u64).contains(&lanes)
    }

    /// Whether the record under way is a message, or several.
    fn is_message(&self) -> bool {
        self.is_sealed() && self.attached() && self.length() > MESSAGES
    }

    fn header_is_there(&mut self) {
        let length = self.length();
        let whole = HEADER as u64 + length;
        self.ends = Some(self.begins + whole);
        let opening = !self.attached() && (self.is_sealed() || self.header[0] == HANDSHAKE);
        let message = self.is_message();
        let ack = self.is_ack();
        if self.is_sealed() && self.sealed + 1 == self.opening {
            // So that a cut of a handshake finds a place in each one.
            self.wish.skip_no_more(Kind::CutHandshake);
        }
        let due = length > 1
            && self.wish.is_due(|kind| match kind {
                Kind::CutAck => ack,
                Kind::CutHandshake => opening,
                Kind::CutHeader => false,
                _ => message,
            });
        if due {
            self.wish.place(self.begins, HEADER as u64 + 1, whole);
        }
    }

    fn record_ended(&mut self) {
        self.unanswered += u64::from(self.is_message());
        self.sealed += u64::from(self.is_sealed());
        self.owes = false;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use threadwire::wire::{Ack, FrameType, Lane, put_body};

    use super::*;
    use crate::chaos::plan::LinkFault;

    const ALERT: u8 = 21;
    const CHANGE: u8 = 20;

    fn record(out: &mut Vec<u8>, kind: u8, length: usize) {
        out.extend_from_slice(&[kind, 3, 3]);
        out.extend_from_slice(&(length as u16).to_be_bytes());
        out.resize(out.len() + length, 7);
    }

    /// What the side that dialled says before its first message: hello, change and end of TLS, hello, confirm, attach.
    const OPENING: [(u8, usize); 6] =
        [(HANDSHAKE, 215), (CHANGE, 1), (SEALED, 182), (SEALED, 181), (SEALED, 97), (SEALED, 186)];
    /// Of a session: a beat, messages, acknowledgements of one lane and of two.
    const SESSION: [(u8, usize); 7] =
        [(SEALED, 50), (SEALED, 16_401), (SEALED, 58), (SEALED, 300), (SEALED, 9000), (SEALED, 99), (SEALED, 50)];

    /// Where each record of a connection begins, and all bytes.
    fn stream() -> (Vec<u64>, Vec<u8>) {
        let (mut begins, mut out) = (Vec::new(), Vec::new());
        for (kind, length) in OPENING.into_iter().chain(SESSION) {
            begins.push(out.len() as u64);
            record(&mut out, kind, length);
        }
        (begins, out)
    }

    fn fault(kind: Kind, skip: u32, share: f64) -> LinkFault {
        LinkFault { kind, way: Way::Up, skip, share, lasts: Duration::ZERO, rest: Duration::ZERO }
    }

    /// Messages come the other way before each part of so many bytes.
    fn scan(records: &mut Records, bytes: &[u8], part: usize) {
        let mut other = Records::new(Way::Down);
        other.unanswered = 1;
        for chunk in bytes.chunks(part) {
            records.learn(&other);
            records.scan(chunk);
        }
    }

    /// The record where the fault is put, and which byte of it: however the bytes come.
    fn cut_of(kind: Kind, skip: u32, share: f64) -> Option<(usize, u64)> {
        let (begins, bytes) = stream();
        let cuts = [1, 3, 64, 1 << 20].map(|part| {
            let mut records = Records::new(Way::Up);
            records.wish.look_for(&fault(kind, skip, share));
            if kind == Kind::CutAck {
                // Each record is preceded by messages of the other side.
                for (number, begin) in begins.iter().enumerate() {
                    let end = begins.get(number + 1).map_or(bytes.len(), |end| *end as usize);
                    scan(&mut records, &bytes[*begin as usize..end], part);
                }
            } else {
                bytes.chunks(part).for_each(|chunk| records.scan(chunk));
            }
            records.wish.cut()
        });
        assert!(cuts.iter().all(|cut| *cut == cuts[0]), "{cuts:?}");
        let cut = cuts[0]?;
        let number = begins.partition_point(|begin| *begin <= cut) - 1;
        Some((number, cut - begins[number]))
    }

    #[test]
    fn a_cut_lies_inside_the_record_it_is_to_cut() {
        let first = OPENING.len();
        for share in [0.0, 0.3, 0.999_999] {
            let inside = |length: u64| 5 + 1..5 + length;
            for skip in [0, 2] {
                let (record, byte) = cut_of(Kind::CutHeader, skip, share).unwrap();
                assert!(record == first + skip as usize && (1..5).contains(&byte), "{record} {byte}");
            }
            for kind in [Kind::CutBody, Kind::Reset, Kind::HalfClose, Kind::StallReset, Kind::Listener, Kind::Flip] {
                let (record, byte) = cut_of(kind, 0, share).unwrap();
                assert!(record == first + 1 && inside(16_401).contains(&byte), "{kind:?}: {record} {byte}");
                assert_eq!(cut_of(kind, 1, share).unwrap().0, first + 4, "{kind:?}: the next one that is long enough");
                assert_eq!(cut_of(kind, 2, share), None);
            }
            let (record, byte) = cut_of(Kind::CutAck, 0, share).unwrap();
            assert!(record == first + 2 && inside(58).contains(&byte), "{record} {byte}");
            let (record, byte) = cut_of(Kind::CutAck, 1, share).unwrap();
            assert!(record == first + 5 && inside(99).contains(&byte), "{record} {byte}");
        }
    }

    #[test]
    fn a_handshake_is_cut_in_one_of_its_records_and_in_its_last_one_if_none_is_left() {
        // The change has one byte, and nothing of it could pass.
        for (skip, wanted) in [(0, 0), (1, 2), (2, 3), (3, 4), (4, 5), (5, 5), (u32::MAX, 5)] {
            for share in [0.0, 0.999_999] {
                let (record, byte) = cut_of(Kind::CutHandshake, skip, share).unwrap();
                assert!(record == wanted && byte > 5 && byte < 5 + OPENING[record].1 as u64, "{skip}: {record} {byte}");
            }
        }
    }

    #[test]
    fn an_acknowledgement_is_as_long_as_it_is_taken_for() {
        let mut bytes = Vec::new();
        let ack = Ack { lane: Lane::Normal as u8, received: 5, done: 4, window: 1 << 20, exceptions: vec![] };
        put_body(&mut bytes, FrameType::Ack, &ack).unwrap();
        assert_eq!(bytes.len() as u64, ACK);
    }

    #[test]
    fn without_messages_of_the_other_side_nothing_is_taken_for_an_acknowledgement() {
        let mut records = Records::new(Way::Up);
        records.wish.look_for(&fault(Kind::CutAck, 0, 0.5));
        records.scan(&stream().1);
        assert_eq!(records.wish.cut(), None);
    }

    #[test]
    fn each_side_is_attached_after_its_own_number_of_records() {
        let (begins, bytes) = stream();
        for (way, records_before) in [(Way::Up, 6), (Way::Down, 5)] {
            let mut records = Records::new(way);
            let until = begins[records_before] as usize;
            records.scan(&bytes[..until - 1]);
            assert!(!records.attached(), "{way:?}");
            records.scan(&bytes[until - 1..until]);
            assert!(records.attached(), "{way:?}");
        }
    }

    #[test]
    fn messages_are_in_flight_until_anything_comes_back() {
        let (mut up, mut down) = (Records::new(Way::Up), Records::new(Way::Down));
        down.scan(&stream().1);
        up.learn(&down);
        up.scan(&stream().1);
        assert_eq!((up.in_flight(), down.in_flight()), (2, 2));
        down.learn(&up);
        up.learn(&down);
        assert_eq!((up.in_flight(), down.in_flight()), (2, 0));
        let mut alert = Vec::new();
        record(&mut alert, ALERT, 2);
        down.scan(&alert);
        up.learn(&down);
        assert_eq!(up.in_flight(), 2, "what is not sealed acknowledges nothing");
        let mut small = Vec::new();
        record(&mut small, SEALED, 58);
        down.scan(&small[..50]);
        up.learn(&down);
        assert_eq!(up.in_flight(), 2);
        down.scan(&small[50..]);
        up.learn(&down);
        assert_eq!(up.in_flight(), 0);
    }

    #[test]
    fn any_bytes_are_scanned_without_a_panic() {
        let mut random = fastrand::Rng::with_seed(5);
        for kind in Kind::all(true) {
            for most in [2, 256] {
                let mut records = Records::new(Way::Down);
                records.wish.look_for(&fault(*kind, 0, 0.5));
                // Small ones make many empty records.
                let bytes: Vec<u8> = (0..100_000).map(|_| random.u16(..most) as u8).collect();
                scan(&mut records, &bytes, 977);
            }
        }
    }
}
