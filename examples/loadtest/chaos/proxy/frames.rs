//! Reads along with one direction of a plain connection: where frames begin and end, what is numbered, what is
//! acknowledged, and at which byte a planned fault is due.
//!
//! Owns: the first bytes of the frame under way. Threads: the proxy's. Locks: none. Blocks on: nothing.
//! Upholds: it never changes a byte, and takes any bytes for frames without a panic.

use threadwire::wire::{FrameHeader, FrameType, HEADER, LANES, flags, u64_at};

use super::wish::Wish;
use crate::chaos::plan::Kind;

/// So much of each frame is looked at: the header and the numbers of a SEGMENT, a SKIP or an ACK.
const LOOKED_AT: usize = HEADER + 17;

/// Numbers of one lane: the next one, and the first that is not acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Numbers {
    next: u64,
    done: u64,
}

/// One direction.
#[derive(Debug, Default)]
pub struct Frames {
    /// What is looked for.
    pub wish: Wish,
    /// Bytes seen.
    seen: u64,
    /// The first bytes of the frame under way, and how many are there.
    first: [u8; LOOKED_AT],
    have: usize,
    /// Where the frame under way begins, and ends once its header is there.
    begins: u64,
    ends: Option<u64>,
    lanes: [Numbers; LANES],
    /// What the other direction's frames are acknowledged by, as seen here.
    acked: [u64; LANES],
    attached: bool,
}

impl Frames {
    /// Whether this side has said an ATTACH, to its last byte.
    pub fn attached(&self) -> bool {
        self.attached
    }

    /// Numbered frames that were seen here and that no acknowledgement was seen for.
    pub fn in_flight(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.next.saturating_sub(lane.done)).sum()
    }

    /// Takes the acknowledgements that were seen in the other direction.
    pub fn learn(&mut self, other: &Self) {
        for (lane, done) in self.lanes.iter_mut().zip(other.acked) {
            lane.done = lane.done.max(done);
        }
    }

    /// Takes the next bytes in.
    pub fn scan(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.have == 0 && self.ends.is_none() {
                self.begins = self.seen;
                self.frame_begins();
            }
            let whole = self.ends.map_or(HEADER as u64, |ends| ends - self.begins);
            let wanted = whole - (self.seen - self.begins);
            let (taken, rest) = bytes.split_at(bytes.len().min(usize::try_from(wanted).unwrap_or(usize::MAX)));
            let room = (LOOKED_AT - self.have).min(taken.len());
            self.first[self.have..self.have + room].copy_from_slice(&taken[..room]);
            self.have += room;
            self.seen += taken.len() as u64;
            bytes = rest;
            if self.ends.is_none() && self.have >= HEADER {
                self.header_is_there();
            }
            if self.ends == Some(self.seen) {
                self.frame_ended();
                (self.have, self.ends) = (0, None);
            }
        }
    }

    fn header(&self) -> FrameHeader {
        let mut header = [0; HEADER];
        header.copy_from_slice(&self.first[..HEADER]);
        FrameHeader::from_bytes(header)
    }

    /// The first byte of a frame is there, or about to be.
    fn frame_begins(&mut self) {
        if self.attached && self.wish.is_due(|kind| kind == Kind::CutHeader) {
            self.wish.place(self.begins, 1, HEADER as u64);
        }
    }

    fn header_is_there(&mut self) {
        let header = self.header();
        let length = u64::from(header.length);
        let whole = HEADER as u64 + length;
        self.ends = Some(self.begins + whole);
        let frame = header.frame_type();
        let is_message = frame == Some(FrameType::Data) && length > 1;
        let due = self.wish.is_due(|kind| match kind {
            Kind::CutBody => is_message,
            Kind::CutAck => frame == Some(FrameType::Ack) && length > 1,
            Kind::CutHandshake => {
                matches!(frame, Some(FrameType::Hello | FrameType::Confirm | FrameType::Attach)) && length > 1
            }
            Kind::CutHeader => false,
            _ => is_message,
        });
        if due {
            self.wish.place(self.begins, HEADER as u64 + 1, whole);
        }
        if header.has(flags::NUMBERED)
            && let Some(lane) = header.lane()
            && frame != Some(FrameType::Skip)
        {
            self.lanes[lane.index()].next += 1;
        }
    }

    fn frame_ended(&mut self) {
        let header = self.header();
        let body = &self.first[HEADER..self.have];
        match (header.frame_type(), header.lane()) {
            (Some(FrameType::Segment), Some(lane)) => {
                if let (Ok(first), Ok(base)) = (u64_at(body, 0), u64_at(body, 8)) {
                    let lane = &mut self.lanes[lane.index()];
                    *lane = Numbers { next: first, done: lane.done.max(base) };
                }
            }
            (Some(FrameType::Skip), Some(lane)) => {
                let lane = &mut self.lanes[lane.index()];
                lane.next = lane.next.saturating_add(u64_at(body, 0).unwrap_or_default());
            }
            (Some(FrameType::Ack), _) => {
                let lane = body.first().and_then(|lane| self.acked.get_mut(usize::from(*lane).wrapping_sub(1)));
                if let (Some(acked), Ok(done)) = (lane, u64_at(body, 9)) {
                    *acked = done.max(*acked);
                }
            }
            (Some(FrameType::Attach), _) => self.attached = true,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use threadwire::wire::{Ack, Attach, Lane, LaneAttach, put_beat, put_body, put_segment};

    use super::*;
    use crate::chaos::plan::{LinkFault, Way};

    fn data(out: &mut Vec<u8>, length: usize) {
        let flags = flags::NUMBERED | flags::WHOLE;
        let header = FrameHeader::on_lane(FrameType::Data, Lane::Normal, flags, 0, length as u32);
        out.extend_from_slice(&header.to_bytes());
        out.resize(out.len() + length, 7);
    }

    fn attach(out: &mut Vec<u8>) {
        let lanes = [LaneAttach::default(); LANES];
        put_body(out, FrameType::Attach, &Attach { epoch: 1, token: [0; 16], state: 1, knows: None, lanes }).unwrap();
    }

    fn ack(out: &mut Vec<u8>, done: u64) {
        let lane = Lane::Normal as u8;
        put_body(out, FrameType::Ack, &Ack { lane, received: done + 5, done, window: 1 << 20, exceptions: vec![] })
            .unwrap();
    }

    /// A beginning as a session's: attach, a beat, a segment from number 10 with three messages, an acknowledgement.
    fn stream() -> Vec<u8> {
        let mut out = Vec::new();
        attach(&mut out);
        put_beat(&mut out, &Default::default());
        put_segment(&mut out, Lane::Normal, 10, 8);
        [1, 300, 70_000].into_iter().for_each(|length| data(&mut out, length));
        ack(&mut out, 4);
        out
    }

    fn fault(kind: Kind, skip: u32, share: f64) -> LinkFault {
        LinkFault { kind, way: Way::Up, skip, share, lasts: Duration::ZERO, rest: Duration::ZERO }
    }

    /// Where the fault is put, which must not depend on how the bytes come.
    fn cut_of(kind: Kind, skip: u32, share: f64) -> Option<u64> {
        let stream = stream();
        let cuts = [1, 7, 64, 1 << 20].map(|part| {
            let mut scanner = Frames::default();
            scanner.wish.look_for(&fault(kind, skip, share));
            stream.chunks(part).for_each(|chunk| scanner.scan(chunk));
            scanner.wish.cut()
        });
        assert!(cuts.iter().all(|cut| *cut == cuts[0]), "{cuts:?}");
        cuts[0]
    }

    #[test]
    fn what_is_numbered_is_in_flight_until_the_other_direction_acknowledges_it() {
        for part in [1, 5, 1 << 20] {
            let mut scanner = Frames::default();
            stream().chunks(part).for_each(|chunk| scanner.scan(chunk));
            assert!(scanner.attached());
            // From 8 on nothing is acknowledged, and 13 is the next.
            assert_eq!(scanner.in_flight(), 5);
            for (done, left) in [(4, 5), (9, 4), (13, 0), (9, 0)] {
                let (mut other, mut bytes) = (Frames::default(), Vec::new());
                ack(&mut bytes, done);
                other.scan(&bytes);
                scanner.learn(&other);
                assert_eq!(scanner.in_flight(), left, "{done}");
            }
        }
    }

    #[test]
    fn a_cut_lies_inside_what_it_is_to_cut() {
        let attach_ends = {
            let mut out = Vec::new();
            attach(&mut out);
            out.len() as u64
        };
        let beat = attach_ends..attach_ends + HEADER as u64;
        let segment = beat.start + 33;
        let first_message = segment + 24;
        let second_message = first_message + 9;
        for share in [0.0, 0.3, 0.999_999] {
            let header = cut_of(Kind::CutHeader, 0, share).unwrap();
            assert!(header > beat.start && header < beat.end, "{header}");
            let header = cut_of(Kind::CutHeader, 1, share).unwrap();
            assert!(header > segment && header < segment + 8, "{header}");
            // The first message has one byte, and nothing of it could pass.
            for kind in [Kind::CutBody, Kind::Reset, Kind::HalfClose] {
                let body = cut_of(kind, 0, share).unwrap();
                assert!(body > second_message + 8 && body < second_message + 8 + 300, "{body}");
            }
            let handshake = cut_of(Kind::CutHandshake, 0, share).unwrap();
            assert!(handshake > 8 && handshake < attach_ends, "{handshake}");
            let ack = cut_of(Kind::CutAck, 0, share).unwrap();
            assert!(ack > second_message + 308 + 70_008 + 8 && ack < stream().len() as u64, "{ack}");
        }
        assert_eq!(cut_of(Kind::CutAck, 1, 0.0), None);
    }

    #[test]
    fn any_bytes_are_scanned_without_a_panic() {
        let mut random = fastrand::Rng::with_seed(5);
        for kind in Kind::all(true) {
            let mut scanner = Frames::default();
            scanner.wish.look_for(&fault(*kind, 0, 0.5));
            let bytes: Vec<u8> = (0..100_000).map(|_| random.u8(..)).collect();
            bytes.chunks(977).for_each(|chunk| scanner.scan(chunk));
        }
    }
}
