use std::time::Instant;

use super::core::SMALLEST_WINDOW;
use super::offer::Answer;
use super::*;
use crate::error::RejectCause;
use crate::ident::{ConnectionId, PeerId};
use crate::memory::Charge;
use crate::wire::{
    Ack, Attach, Decoder, FrameHeader, FrameType, Heading, Lane, MAX_BODY, MAX_PIECE, Rejection, decode, flags,
};
use proptest::prelude::*;

mod doubt;

fn peer(n: u8) -> PeerId {
    PeerId::from_bytes([n; 32])
}

const LIMITS: LinkLimits = LinkLimits { window_bytes: 8 * SMALLEST_WINDOW, max_message: 1 << 20 };

/// Two links over a lossy pair of streams, driven step by step.
struct Pair {
    cores: [LinkCore; 2],
    streams: [Decoder; 2],
    conn: ConnectionId,
    clock: u64,
    state: u64,
    /// The incarnations of both sides.
    lives: [u64; 2],
    /// Delivered at each side: lane, payload, announced as a repeat.
    delivered: [Vec<(Lane, Vec<u8>, bool)>; 2],
    rejected: [Vec<(u64, RejectCause)>; 2],
}

impl Pair {
    fn new(limits: LinkLimits) -> Self {
        let cores = [LinkCore::new(peer(1), peer(2), limits, 1), LinkCore::new(peer(2), peer(1), limits, 2)];
        Self {
            cores,
            streams: std::array::from_fn(|_| Decoder::new(MAX_BODY)),
            conn: ConnectionId(0),
            clock: 0,
            state: 2,
            lives: [1, 1],
            delivered: Default::default(),
            rejected: Default::default(),
        }
    }

    fn cut(&mut self) {
        self.streams = std::array::from_fn(|_| Decoder::new(MAX_BODY));
        for core in &mut self.cores {
            core.gone(self.conn, [0; 16]);
        }
    }

    fn restart(&mut self, side: usize, limits: LinkLimits) {
        self.cut();
        self.state += 1;
        self.lives[side] += 1;
        self.cores[side] = LinkCore::new(peer(side as u8 + 1), peer(2 - side as u8), limits, self.state);
    }

    fn connect(&mut self) {
        self.conn.0 += 1;
        self.clock += 1;
        let offer = |incarnation| Offer { conn: self.conn, started: self.clock, incarnation };
        let first = self.cores[0].offer(offer(self.lives[1]), [7; 16], self.clock);
        assert!(self.cores[1].offer(offer(self.lives[0]), [9; 16], self.clock).say.is_none(), "the higher id waits");
        let (_, attach) = first.say.unwrap();
        let second = self.cores[1].on_attach(self.conn, &attach, self.clock).unwrap();
        let (_, answer) = second.say.unwrap();
        let last = self.cores[0].on_attach(self.conn, &answer, self.clock).unwrap();
        assert_eq!((second.attached, last.attached), (Some(self.conn), Some(self.conn)));
    }

    /// A new connection, proven at both sides; the decider's attach is on its way.
    fn propose(&mut self, incarnation: u64) -> Attach {
        self.conn.0 += 1;
        self.clock += 1;
        let offer = Offer { conn: self.conn, started: self.clock, incarnation };
        self.cores[1].offer(offer, [9; 16], self.clock);
        self.cores[0].offer(offer, [7; 16], self.clock).say.unwrap().1
    }

    /// Writes one chunk of `side`'s queue to the other's stream; false when there is nothing to write.
    fn write(&mut self, side: usize, queue: &mut Vec<Segment>) -> bool {
        let mut bytes = Vec::new();
        self.cores[side].put_acks(self.conn, true, &mut bytes);
        let chunk = self.cores[side].next_chunk(self.conn, Instant::now(), &mut bytes, |lane| {
            (lane == Lane::Normal && !queue.is_empty()).then(|| Taken::plain(queue.remove(0)))
        });
        if let Some((_, chunk)) = &chunk {
            bytes.extend_from_slice(&chunk.body.bytes()[chunk.start..chunk.end]);
        }
        self.streams[1 - side].feed(&bytes);
        !bytes.is_empty()
    }

    /// Reads up to `most` frames at `side`.
    fn read(&mut self, side: usize, most: usize) -> usize {
        let core = &mut self.cores[side];
        for seen in 0..most {
            let Some(frame) = self.streams[side].next_frame().unwrap() else { return seen };
            let lane = frame.header.lane();
            match frame.header.frame_type().unwrap() {
                FrameType::Ack => {
                    let acked = core.on_ack(self.conn, &decode(frame.body).unwrap()).unwrap();
                    self.rejected[side].extend(acked.rejected.iter().map(|rejected| (rejected.number, rejected.cause)));
                }
                FrameType::Segment => {
                    let at = |i| crate::wire::u64_at(frame.body, i).unwrap();
                    core.on_segment(self.conn, lane.unwrap(), at(0), at(8)).unwrap();
                }
                FrameType::Data => {
                    let lane = lane.unwrap();
                    let generation = core.generation();
                    let (claim, piece, big) = core
                        .claim_piece(self.conn, lane, frame.header, frame.body, |_| Some(Charge::default()))
                        .unwrap();
                    if let (Some(mut big), Piece::More(at) | Piece::Whole(at)) = (big, piece) {
                        big.bytes.extend_from_slice(&frame.body[at..]);
                        if let Piece::Whole(_) = piece {
                            let credit = big.credit;
                            let repeat = claim.first < claim.repeat_below;
                            self.delivered[side].push((lane, big.bytes, repeat));
                            core.finish(generation, lane, claim.first + 1, credit, None);
                        } else {
                            core.put_big(generation, lane, big);
                        }
                    }
                    core.delivered(self.conn);
                }
                FrameType::Skip => {
                    let (count, bytes) =
                        (crate::wire::u64_at(frame.body, 0).unwrap(), frame.body.len() + crate::wire::HEADER);
                    core.on_other(self.conn, lane.unwrap(), |lane| lane.skip(count, bytes)).unwrap();
                }
                other => panic!("{other:?}"),
            }
        }
        most
    }

    fn settle(&mut self, queue: &mut Vec<Segment>) {
        while self.write(0, queue) | self.write(1, &mut Vec::new()) | (self.read(0, 1000) + self.read(1, 1000) > 0) {}
    }
}

fn whole(payload: &[u8]) -> Segment {
    let flags = flags::NUMBERED | flags::WHOLE;
    let mut bytes =
        FrameHeader::on_lane(FrameType::Data, Lane::Normal, flags, 5, payload.len() as u32).to_bytes().to_vec();
    bytes.extend_from_slice(payload);
    Segment::plain(bytes, 1)
}

fn message(seq: u32, len: usize) -> Vec<u8> {
    let mut payload = vec![seq as u8; len.max(4)];
    payload[..4].copy_from_slice(&seq.to_le_bytes());
    payload
}

fn queue_of(sizes: &[usize]) -> Vec<Segment> {
    sizes.iter().enumerate().map(|(i, len)| segment(message(i as u32, *len))).collect()
}

fn segment(payload: Vec<u8>) -> Segment {
    if payload.len() > LARGE { Segment::large(Lane::Normal, Heading::of_kind(5), payload) } else { whole(&payload) }
}

#[test]
fn a_big_message_travels_in_pieces_through_a_window_smaller_than_it() {
    let limits = LinkLimits { window_bytes: 0, ..LIMITS };
    let mut pair = Pair::new(limits);
    pair.connect();
    let mut queue = queue_of(&[700_000, 10, 900_000]);
    pair.settle(&mut queue);
    let lens: Vec<_> = pair.delivered[1].iter().map(|(_, payload, _)| payload.len()).collect();
    assert_eq!(lens, [700_000, 10, 900_000]);
    assert_eq!(pair.cores[0].counts().acked, 3);
    assert_eq!(pair.cores[0].kept_bytes(), 0);
}

#[test]
fn a_message_above_the_receivers_limit_comes_back_as_rejected_and_the_next_one_arrives() {
    let mut pair = Pair::new(LIMITS);
    pair.connect();
    let mut queue = queue_of(&[2 << 20, 3]);
    pair.settle(&mut queue);
    assert_eq!(pair.delivered[1].len(), 1);
    assert_eq!(pair.rejected[0], [(31, RejectCause::TooLarge)]);
    let counts = pair.cores[0].counts();
    assert_eq!((counts.acked, counts.rejected), (1, 1));
}

#[test]
fn another_limit_is_for_messages_that_begin_and_one_under_way_arrives() {
    let mut pair = Pair::new(LIMITS);
    pair.connect();
    let mut queue = queue_of(&[3 * MAX_PIECE, 3 * MAX_PIECE]);
    assert!(pair.write(0, &mut queue) && pair.read(1, 2) == 2, "its first piece has come, behind its number");
    pair.cores[1].set_limits(LinkLimits { max_message: 2 * MAX_PIECE, ..LIMITS });
    pair.settle(&mut queue);
    assert_eq!(pair.delivered[1], [(Lane::Normal, message(0, 3 * MAX_PIECE), false)]);
    let causes: Vec<_> = pair.rejected[0].iter().map(|(_, cause)| *cause).collect();
    assert_eq!(causes, [RejectCause::TooLarge]);
}

#[test]
fn withheld_credit_stops_the_sender_and_released_credit_starts_it() {
    let mut pair = Pair::new(LIMITS);
    pair.connect();
    let window = LIMITS.lane(Lane::Normal);
    let mut queue: Vec<_> = (0..40).map(|i| whole(&message(i, 30_000))).collect();
    // The receiver claims and holds everything.
    let mut held = 0;
    loop {
        let wrote = pair.write(0, &mut queue);
        let mut claims = 0;
        while let Some(frame) = pair.streams[1].next_frame().unwrap() {
            let (header, len) = (frame.header, frame.body.len() + crate::wire::HEADER);
            if header.frame_type() == Some(FrameType::Segment) {
                let at = |i| crate::wire::u64_at(frame.body, i).unwrap();
                pair.cores[1].on_segment(pair.conn, Lane::Normal, at(0), at(8)).unwrap();
            } else {
                pair.cores[1].claim(pair.conn, Lane::Normal, 1, len, false).unwrap();
                held += len;
                claims += 1;
            }
        }
        if !wrote && claims == 0 {
            break;
        }
    }
    assert!(held <= window && held + 30_008 > window, "{held} of {window}");
    assert!(!queue.is_empty() || pair.cores[0].kept_bytes() > held);
    let frames = (held / 30_008) as u64;
    pair.cores[1].finish(pair.cores[1].generation(), Lane::Normal, frames, held as u64, None);
    pair.cores[1].delivered(pair.conn);
    pair.settle(&mut queue);
    assert_eq!(pair.cores[0].counts().acked, 40);
}

#[test]
fn more_than_the_granted_bytes_is_a_fault() {
    let mut pair = Pair::new(LIMITS);
    pair.connect();
    pair.cores[1].on_segment(pair.conn, Lane::Urgent, 0, 0).unwrap();
    let too_much = LIMITS.lane(Lane::Urgent) + 1;
    let claim = pair.cores[1].claim(pair.conn, Lane::Urgent, 1, too_much, false);
    assert_eq!(claim, Err(NoClaim::Fault(Fault::BeyondCredit)));
}

#[test]
fn a_wrong_token_and_an_old_epoch_are_refused() {
    let mut pair = Pair::new(LIMITS);
    pair.connect();
    pair.cut();
    for (epoch, token, fault) in [(1, [7; 16], Fault::BadAttach), (2, [8; 16], Fault::BadToken)] {
        let offer = Offer { conn: ConnectionId(50), started: 9, incarnation: 1 };
        pair.cores[1].offer(offer, [0; 16], 9);
        let attach = Attach { epoch, token, state: 1, knows: None, lanes: Default::default() };
        assert_eq!(pair.cores[1].on_attach(offer.conn, &attach, 9).unwrap_err(), fault);
        pair.cores[1].gone(offer.conn, [0; 16]);
    }
}

/// The link closes `conn` and does nothing else.
fn only_closes(answer: Answer, conn: ConnectionId) -> bool {
    answer.is_ok_and(|Decision { say, attached, close, .. }| {
        say.is_none() && attached.is_none() && close == [(conn, crate::error::CloseReason::Superseded)]
    })
}

#[test]
fn an_attach_read_after_its_connection_was_given_up_is_no_fault() {
    let mut pair = Pair::new(LIMITS);
    let attach = pair.propose(1);
    let answer = pair.cores[1].on_attach(pair.conn, &attach, 1).unwrap().say.unwrap().1;
    for core in &mut pair.cores {
        core.gone(pair.conn, [0; 16]);
    }
    // Both readers still had it buffered.
    assert!(only_closes(pair.cores[1].on_attach(pair.conn, &attach, 2), pair.conn));
    assert!(only_closes(pair.cores[0].on_attach(pair.conn, &answer, 2), pair.conn));
    pair.connect();
    assert_eq!(pair.cores[0].on_attach(pair.conn, &answer, 3).unwrap_err(), Fault::BadAttach, "attached already");
}

#[test]
fn an_attach_that_a_later_one_overtook_is_no_fault() {
    let mut pair = Pair::new(LIMITS);
    pair.connect();
    pair.cut();
    let overtaken = pair.propose(1);
    let old = pair.conn;
    // The decider gives it up; the other side does not know yet.
    pair.cores[0].gone(old, [0; 16]);
    pair.connect();
    assert!(only_closes(pair.cores[1].on_attach(old, &overtaken, 9), old));
    assert_eq!(pair.cores[1].attached(), Some(pair.conn));
    let mut queue = queue_of(&[10]);
    pair.settle(&mut queue);
    assert_eq!(pair.cores[0].counts().acked, 1);
}

#[test]
fn an_overtaken_attach_does_not_bring_back_a_state_that_was_given_up() {
    let mut pair = Pair::new(LIMITS);
    pair.connect();
    pair.settle(&mut queue_of(&[10]));
    pair.cut();
    let overtaken = pair.propose(1);
    let old = pair.conn;
    pair.cores[0].gone(old, [0; 16]);
    pair.cores[0].give_up(77);
    pair.connect();
    assert!(only_closes(pair.cores[1].on_attach(old, &overtaken, 9), old));
    pair.settle(&mut queue_of(&[20]));
    assert_eq!(pair.delivered[1].len(), 2);
    assert_eq!(pair.cores[1].attached(), Some(pair.conn));
}

#[test]
fn an_attach_under_way_outruns_the_end_of_the_resume_window() {
    for succeeds in [true, false] {
        let mut pair = Pair::new(LIMITS);
        pair.connect();
        let mut queue = queue_of(&[10]);
        pair.write(0, &mut queue);
        pair.cut();
        let attach = pair.propose(1);
        assert_eq!(pair.cores[0].give_up(77).len(), 0);
        let answer = pair.cores[1].on_attach(pair.conn, &attach, pair.clock).unwrap().say.unwrap().1;
        if succeeds {
            pair.cores[0].on_attach(pair.conn, &answer, pair.clock).unwrap();
            assert_eq!(pair.cores[0].give_up(78).len(), 0, "attached");
        } else {
            pair.cut();
            pair.connect();
        }
        pair.settle(&mut queue_of(&[20]));
        let counts = pair.cores[0].counts();
        let expected = if succeeds { (2, 0) } else { (1, 1) };
        assert_eq!((counts.acked, counts.unknown), expected);
        assert_eq!(pair.delivered[1].len() as u64, counts.acked);
    }
}

#[test]
fn an_attach_of_a_life_that_has_ended_does_not_bring_it_back() {
    let mut pair = Pair::new(LIMITS);
    pair.connect();
    pair.cut();
    let ghost = pair.propose(1);
    let old = pair.conn;
    // The decider restarts; what it said before is still on its way.
    pair.state += 1;
    pair.cores[0] = LinkCore::new(peer(1), peer(2), LIMITS, pair.state);
    let attach = pair.propose(2);
    let answer = pair.cores[1].on_attach(pair.conn, &attach, pair.clock).unwrap();
    assert!(answer.restarted);
    pair.cores[0].on_attach(pair.conn, &answer.say.unwrap().1, pair.clock).unwrap();
    assert!(only_closes(pair.cores[1].on_attach(old, &ghost, 9), old));
    assert_eq!(pair.cores[1].attached(), Some(pair.conn));
    // A clock may have been set back: a lower incarnation is taken once it cannot be a ghost any more.
    pair.cut();
    pair.state += 1;
    pair.cores[0] = LinkCore::new(peer(1), peer(2), LIMITS, pair.state);
    pair.clock = 20;
    let attach = pair.propose(1);
    assert_eq!(pair.cores[1].on_attach(pair.conn, &attach, 21).unwrap().attached, Some(pair.conn));
}

#[test]
fn an_overlapping_connection_is_a_duplicate_and_a_later_one_supersedes() {
    let mut pair = Pair::new(LIMITS);
    pair.clock = 10;
    pair.connect();
    let core = &mut pair.cores[0];
    let early = Offer { conn: ConnectionId(70), started: 11, incarnation: 1 };
    assert_eq!(core.offer(early, [0; 16], 11).close, [(early.conn, crate::error::CloseReason::Duplicate)]);
    let late = Offer { conn: ConnectionId(71), started: 12, incarnation: 1 };
    let decision = core.offer(late, [0; 16], 12);
    assert_eq!(decision.close, [(pair.conn, crate::error::CloseReason::Superseded)]);
    assert_eq!(decision.say.map(|(conn, _)| conn), Some(late.conn));
    assert_eq!(core.claim(pair.conn, Lane::Normal, 1, 10, false), Err(NoClaim::Stale));
}

#[test]
fn a_second_restart_without_an_answer_ends_messages_as_unknown() {
    let mut pair = Pair::new(LIMITS);
    pair.connect();
    let mut queue = queue_of(&[10, 20]);
    while pair.write(0, &mut queue) {}
    pair.restart(1, LIMITS);
    pair.connect();
    // Written again to the new incarnation, and lost with it as well.
    while pair.write(0, &mut queue) {}
    pair.restart(1, LIMITS);
    pair.connect();
    pair.settle(&mut queue);
    assert_eq!(pair.cores[0].counts().unknown, 2);
    assert!(pair.delivered[1].is_empty());
    pair.settle(&mut queue_of(&[30]));
    assert_eq!(pair.delivered[1].len(), 1);
    assert_eq!(pair.cores[0].counts().acked, 1);
}

#[test]
fn a_big_message_gets_through_the_smallest_window_behind_what_was_given_up() {
    let limits = LinkLimits { window_bytes: 0, ..LIMITS };
    let mut pair = Pair::new(limits);
    pair.connect();
    let mut queue = queue_of(&[10, 100_000]);
    for _ in 0..2 {
        pair.write(0, &mut queue);
        pair.restart(1, limits);
        pair.connect();
    }
    pair.settle(&mut queue);
    let counts = pair.cores[0].counts();
    assert_eq!((counts.acked, counts.unknown, pair.delivered[1].len()), (1, 1, 1));
}

#[test]
fn what_a_new_life_rejects_and_an_earlier_one_may_have_taken_ends_unknown() {
    for (restarts, cause, unknown) in [
        (0, RejectCause::Expired, false),
        (1, RejectCause::Expired, true),
        (1, RejectCause::NoHandler, true),
        // It was handed over, once more or not.
        (1, RejectCause::HandlerPanicked, false),
    ] {
        let mut pair = Pair::new(LIMITS);
        pair.connect();
        pair.write(0, &mut queue_of(&[10]));
        for _ in 0..restarts {
            pair.restart(1, LIMITS);
            pair.connect();
            pair.write(0, &mut Vec::new());
        }
        let exceptions = vec![Rejection { number: 0, cause: cause.code() }];
        let ack = Ack { lane: Lane::Normal as u8, received: 1, done: 1, window: 1 << 20, exceptions };
        let acked = pair.cores[0].on_ack(pair.conn, &ack).unwrap();
        assert_eq!((acked.lost.len(), acked.rejected.len()), (usize::from(unknown), usize::from(!unknown)), "{cause}");
        let counts = pair.cores[0].counts();
        assert_eq!((counts.acked, counts.rejected + counts.unknown), (0, 1));
        assert_eq!(counts.unknown, u64::from(unknown));
    }
}

#[test]
fn attaches_whose_answer_is_lost_are_no_restarts() {
    let mut pair = Pair::new(LIMITS);
    let mut queue = queue_of(&[10, 20]);
    for _ in 0..4 {
        // The side that does not decide is attached and writes; the decider hears nothing of it.
        let attach = pair.propose(1);
        pair.cores[1].on_attach(pair.conn, &attach, pair.clock).unwrap();
        assert!(pair.write(1, &mut queue));
        pair.cut();
    }
    pair.connect();
    while pair.write(1, &mut queue) | (pair.read(0, 100) > 0) {}
    pair.settle(&mut Vec::new());
    let announced: Vec<bool> = pair.delivered[0].iter().map(|(_, _, repeat)| *repeat).collect();
    assert_eq!(announced, [false, false], "no earlier life can have seen them");
    let counts = pair.cores[1].counts();
    assert_eq!((counts.acked, counts.unknown), (2, 0));
}

#[test]
fn after_a_restart_what_the_earlier_life_may_have_seen_is_announced_and_nothing_else() {
    let mut pair = Pair::new(LIMITS);
    pair.connect();
    let mut queue = queue_of(&[10, 20]);
    assert!(pair.write(1, &mut queue));
    assert!(pair.write(1, &mut queue));
    pair.restart(0, LIMITS);
    // Its new life is met, and hears nothing of what is written then.
    let attach = pair.propose(pair.lives[0]);
    pair.cores[1].on_attach(pair.conn, &attach, pair.clock).unwrap();
    let mut queue = vec![whole(&message(2, 30))];
    while pair.write(1, &mut queue) {}
    pair.cut();
    pair.connect();
    while pair.write(1, &mut queue) | (pair.read(0, 100) > 0) {}
    let announced: Vec<bool> = pair.delivered[0].iter().map(|(_, _, repeat)| *repeat).collect();
    assert_eq!(announced, [true, true, false]);
}

#[test]
fn a_new_life_is_met_as_one_also_if_it_knows_us_from_an_answer_that_was_lost() {
    let mut pair = Pair::new(LIMITS);
    pair.connect();
    pair.write(0, &mut queue_of(&[10]));
    for lost in 0..2 {
        pair.restart(1, LIMITS);
        // It has met us, and says so the next time; we hear of it then only.
        let attach = pair.propose(pair.lives[1]);
        assert!(pair.cores[1].on_attach(pair.conn, &attach, pair.clock).unwrap().attached.is_some());
        pair.cut();
        pair.connect();
        assert_eq!(pair.cores[0].counts().unknown, lost, "repeated to one new life, the next one ends it");
        let mut queue = queue_of(&[20]);
        while pair.write(0, &mut queue) {}
    }
    // The life before, which was given the second message too, may have handed it over.
    let exceptions = vec![Rejection { number: 1, cause: RejectCause::Expired.code() }];
    let ack = Ack { lane: Lane::Normal as u8, received: 2, done: 2, window: 1 << 20, exceptions };
    let acked = pair.cores[0].on_ack(pair.conn, &ack).unwrap();
    assert_eq!((acked.lost.len(), acked.rejected.len()), (1, 0));
}

#[derive(Debug, Clone)]
enum Step {
    Write,
    Read(usize),
    Answer,
    Cut,
    /// A side has another window from now on, in smallest windows.
    Resize(usize, usize),
    RestartReceiver,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Write),
        6 => (1usize..4).prop_map(Step::Read),
        3 => Just(Step::Answer),
        1 => Just(Step::Cut),
        1 => (0usize..2, 1usize..32).prop_map(|(side, windows)| Step::Resize(side, windows)),
    ]
}

fn step_with_restart() -> impl Strategy<Value = Step> {
    prop_oneof![20 => step(), 1 => Just(Step::RestartReceiver)]
}

fn run(sizes: &[usize], steps: &[Step]) -> (Pair, usize) {
    let mut pair = Pair::new(LIMITS);
    pair.connect();
    let mut queue = queue_of(sizes);
    let mut restarts = 0;
    for step in steps {
        match step {
            Step::Write => {
                pair.write(0, &mut queue);
            }
            Step::Read(most) => {
                pair.read(1, *most);
            }
            Step::Answer => {
                pair.write(1, &mut Vec::new());
                pair.read(0, 1000);
            }
            Step::Cut => {
                pair.cut();
                pair.connect();
            }
            Step::Resize(side, windows) => {
                let limits = LinkLimits { window_bytes: windows * SMALLEST_WINDOW, ..LIMITS };
                pair.cores[*side].set_limits(limits);
                pair.cores[*side].set_inbound_window(limits.window_bytes);
            }
            Step::RestartReceiver => {
                restarts += 1;
                pair.restart(1, LIMITS);
                pair.connect();
            }
        }
    }
    pair.settle(&mut queue);
    assert!(queue.is_empty());
    (pair, restarts)
}

proptest! {
    /// The trivial model: what was queued is delivered, once, in order, whatever is cut and whatever windows become.
    #[test]
    fn cuts_lose_nothing_repeat_nothing_and_keep_the_order(
        sizes in prop::collection::vec(prop_oneof![4 => 4usize..200, 1 => 20_000usize..40_000, 1 => 60_000usize..300_000], 1..12),
        steps in prop::collection::vec(step(), 0..80),
    ) {
        let (pair, _) = run(&sizes, &steps);
        let expected: Vec<_> = sizes.iter().enumerate()
            .map(|(i, len)| (Lane::Normal, message(i as u32, *len), false)).collect();
        prop_assert_eq!(&pair.delivered[1], &expected);
        prop_assert_eq!(pair.cores[0].counts().acked, sizes.len() as u64);
        prop_assert_eq!(pair.cores[0].kept_bytes(), 0);
    }

    /// With restarts of the receiver: every message has one outcome, repeats are announced, and what was acknowledged
    /// was delivered.
    #[test]
    fn restarts_repeat_only_what_is_announced(
        sizes in prop::collection::vec(4usize..200_000, 1..10),
        steps in prop::collection::vec(step_with_restart(), 0..80),
    ) {
        let (pair, restarts) = run(&sizes, &steps);
        let counts = pair.cores[0].counts();
        prop_assert_eq!(counts.acked + counts.unknown, sizes.len() as u64);
        prop_assert!(restarts >= 2 || counts.unknown == 0);
        let mut seen = std::collections::BTreeMap::<u32, u32>::new();
        for (_, payload, repeat) in &pair.delivered[1] {
            let seq = u32::from_le_bytes(payload[..4].try_into().unwrap());
            let times = seen.entry(seq).or_default();
            *times += 1;
            prop_assert!(*times == 1 || *repeat, "message {} came again, unannounced", seq);
        }
        prop_assert!(seen.len() as u64 >= counts.acked);
    }
}

#[test]
fn pieces_are_as_long_as_the_wire_allows() {
    let segment = Segment::large(Lane::Bulk, Heading::of_kind(1), vec![0; MAX_PIECE * 2 + 1]);
    assert_eq!(segment.frames, 3);
    assert_eq!(Segment::large(Lane::Bulk, Heading::of_kind(1), vec![0; MAX_PIECE]).frames, 1);
}

#[test]
fn a_big_message_counts_as_unacknowledged_as_far_as_it_was_written() {
    let mut pair = Pair::new(LIMITS);
    pair.connect();
    let mut queue = queue_of(&[3 * MAX_PIECE]);
    assert_eq!(pair.cores[0].unacked_bytes(), 0);
    assert!(pair.write(0, &mut queue));
    let written = pair.cores[0].unacked_bytes();
    assert!((MAX_PIECE..2 * MAX_PIECE).contains(&written), "{written}");
    while pair.write(0, &mut queue) {}
    assert_eq!(pair.cores[0].unacked_bytes(), pair.cores[0].kept_bytes());
}
