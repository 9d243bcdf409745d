//! What the model checks of sessions share: a line in memory, the far side of a link, sessions on both.
//!
//! Owns: nothing beyond one execution. Threads: those of the check. Locks: the line's, a leaf.
//! Blocks on: the line, until something is written to it or it is closed.
//! Upholds: nothing here waits for time, and every choice is the scheduler's, so that an execution can be repeated from
//! its schedule.

use std::fmt;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::{Duration, Instant};

use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, MaxSteps, Runner, thread};

use crate::error::{CloseReason, DisconnectReason};
use crate::ident::{ConnectionId, PeerId, SessionKind};
use crate::link::{LinkCore, LinkLimits, Offer, Piece, Segment, Taken};
use crate::memory::{Budget, Charge};
use crate::metrics::{Class, PhaseTimes};
use crate::session::outbox::{Omission, QueueLimits, Wait};
use crate::session::peer_link::{PeerLink, SessionSettings};
use crate::session::requests::RequestLimits;
use crate::session::sender::send_loop;
use crate::session::state::{OnEnd, Session};
use crate::session::taps::OutgoingTaps;
use crate::session::tuning::{Tuned, Tuning};
use crate::session::undelivered::Undeliverable;
use crate::session::writer::Writer;
use crate::sync::{Condvar, Mutex};
use crate::transport::{Closer, ReadHalf, WriteHalf};
use crate::wire::{self, Ack, Decoder, FrameHeader, FrameType, HEADER, Heading, Lane, MAX_BODY, flags};

/// Longer than any check.
pub(super) const LONG: Duration = Duration::from_secs(3600);

/// Runs `body` so many times under each of both schedulers; `SHUTTLE_ROUNDS` multiplies, `SHUTTLE_RANDOM_SEED` varies.
pub(super) fn check(times: usize, body: impl Fn() + Send + Sync + 'static) {
    let rounds = std::env::var("SHUTTLE_ROUNDS").map_or(1, |rounds| rounds.parse().unwrap());
    let mut config = Config::new();
    config.stack_size = 256 * 1024;
    config.max_steps = MaxSteps::FailAfter(100_000);
    config.silence_warnings = true;
    let body = Arc::new(body);
    let again = body.clone();
    Runner::new(RandomScheduler::new_from_seed(7, times * rounds), config.clone()).run(move || again());
    Runner::new(PctScheduler::new_from_seed(7, 3, times * rounds), config).run(move || body());
}

/// A connection: what the near side wrote, and what it is to read.
#[derive(Debug, Default)]
pub(super) struct Line {
    state: Mutex<LineState>,
    changed: Condvar,
    writing: parking_lot::Mutex<()>,
}

#[derive(Debug, Default)]
struct LineState {
    out: Vec<u8>,
    to_read: Vec<u8>,
    closes: u32,
}

impl Line {
    /// What the near side wrote since the last call; waits until there is something.
    pub(super) fn written(&self) -> Vec<u8> {
        let mut state = self.state.lock();
        while state.out.is_empty() {
            self.changed.wait(&mut state);
        }
        std::mem::take(&mut state.out)
    }

    /// The same without waiting.
    pub(super) fn written_so_far(&self) -> Vec<u8> {
        std::mem::take(&mut self.state.lock().out)
    }

    /// Gives the near side something to read.
    pub(super) fn give(&self, bytes: &[u8]) {
        self.state.lock().to_read.extend_from_slice(bytes);
        self.changed.notify_all();
    }

    /// How many times it was closed.
    pub(super) fn closes(&self) -> u32 {
        self.state.lock().closes
    }

    fn take(&self, from: &[IoSlice<'_>], least: usize) -> io::Result<usize> {
        let _alone = self.writing.try_lock().expect("one writer at a time");
        let mut state = self.state.lock();
        if state.closes > 0 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let all: usize = from.iter().map(|part| part.len()).sum();
        let count = match thread_rng().gen_range(0..3) {
            0 => least.min(all),
            1 => all,
            _ => thread_rng().gen_range(least.min(all)..=all),
        };
        let mut left = count;
        for part in from {
            let taken = left.min(part.len());
            state.out.extend_from_slice(&part[..taken]);
            left -= taken;
        }
        drop(state);
        self.changed.notify_all();
        Ok(count)
    }
}

impl WriteHalf for Line {
    fn try_write(&self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        self.take(from, 0)
    }

    fn write(&self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        self.take(from, 1)
    }

    fn expect_writes_of(&self, _bytes: usize) {}

    fn finish(&self) -> io::Result<()> {
        Ok(())
    }
}

impl Closer for Line {
    fn close(&self) {
        self.state.lock().closes += 1;
        self.changed.notify_all();
    }
}

/// The reading half of a line. What lies in it when it is closed is still read, as from a socket.
#[derive(Debug)]
pub(super) struct Reading(pub(super) Arc<Line>);

impl ReadHalf for Reading {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut state = self.0.state.lock();
        while state.to_read.is_empty() && state.closes == 0 {
            self.0.changed.wait(&mut state);
        }
        let most = state.to_read.len().min(into.len());
        let count = if most == 0 { 0 } else { thread_rng().gen_range(1..=most) };
        into[..count].copy_from_slice(&state.to_read[..count]);
        state.to_read.drain(..count);
        Ok(count)
    }
}

/// The other side of a link, in one thread's hands.
pub(super) struct Far {
    pub(super) core: LinkCore,
    conn: ConnectionId,
    decoder: Decoder,
    /// Delivered there, in order: kind and payload.
    pub(super) got: Vec<(u16, Vec<u8>)>,
    /// All numbers of the normal lane below were acknowledged to it.
    pub(super) done: u64,
}

impl Far {
    /// Takes what came on the present connection.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.decoder.feed(bytes);
        while let Some(frame) = self.decoder.next_frame().unwrap() {
            let (core, conn, lane) = (&mut self.core, self.conn, frame.header.lane());
            match frame.header.frame_type().unwrap() {
                FrameType::Ack => {
                    let ack: Ack = wire::decode(frame.body).unwrap();
                    core.on_ack(conn, &ack).unwrap();
                    if Lane::from_bits(ack.lane) == Some(Lane::Normal) {
                        self.done = ack.done;
                    }
                }
                FrameType::Segment => {
                    let at = |offset| wire::u64_at(frame.body, offset).unwrap();
                    core.on_segment(conn, lane.unwrap(), at(0), at(8)).unwrap();
                }
                FrameType::Data => {
                    let (lane, generation) = (lane.unwrap(), core.generation());
                    let (claim, piece, big) =
                        core.claim_piece(conn, lane, frame.header, frame.body, |_| Some(Charge::default())).unwrap();
                    let (Some(mut big), Piece::More(at) | Piece::Whole(at)) = (big, piece) else {
                        panic!("{piece:?}");
                    };
                    big.bytes.extend_from_slice(&frame.body[at..]);
                    if let Piece::Whole(_) = piece {
                        let credit = core.big_credit(lane, big.bytes.len());
                        core.finish(generation, lane, claim.first + 1, credit, None);
                        self.got.push((frame.header.kind, big.bytes));
                    } else {
                        core.put_big(generation, lane, big);
                    }
                    core.delivered(conn);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// The acknowledgements it owes.
    pub(super) fn acks(&mut self) -> Vec<Ack> {
        let mut bytes = Vec::new();
        self.core.put_acks(self.conn, true, &mut bytes);
        let mut decoder = Decoder::new(MAX_BODY);
        decoder.feed(&bytes);
        let mut acks = Vec::new();
        while let Some(frame) = decoder.next_frame().unwrap() {
            acks.push(wire::decode(frame.body).unwrap());
        }
        acks
    }

    /// Writes what is kept, then a segment of one-byte messages for each of `runs`.
    pub(super) fn write(&mut self, runs: &[&[u8]]) -> Vec<u8> {
        let mut runs = runs.iter();
        let mut bytes = Vec::new();
        while let Some((_, chunk)) = self.core.next_chunk(self.conn, Instant::now(), &mut bytes, |lane| {
            let run = if lane == Lane::Normal { runs.next()? } else { return None };
            let header = FrameHeader::on_lane(FrameType::Data, Lane::Normal, flags::NUMBERED | flags::WHOLE, 0, 1);
            let frames: Vec<u8> =
                run.iter().flat_map(|payload| header.to_bytes().into_iter().chain([*payload])).collect();
            Some(Taken::plain(Segment::plain(frames, run.len() as u32)))
        }) {
            bytes.extend_from_slice(&chunk.body.bytes()[chunk.start..chunk.end]);
        }
        bytes
    }
}

/// Bytes on the wire of one of [`Far::write`]'s messages.
pub(super) const SMALL: u64 = HEADER as u64 + 1;

/// A link that was never attached, and its far side. `queue` is a bound in messages.
pub(super) fn link(decides: bool, queue: usize, window_bytes: usize) -> (PeerLink, Far) {
    link_with(decides, queue, window_bytes, LONG)
}

/// The same with this delay of acknowledgements: [`LONG`] never ends, none ends at any time.
pub(super) fn link_with(decides: bool, queue: usize, window_bytes: usize, ack_delay: Duration) -> (PeerLink, Far) {
    let (near, far) = if decides { (1, 2) } else { (2, 1) };
    let (near_id, far_id) = (PeerId::from_bytes([near; 32]), PeerId::from_bytes([far; 32]));
    let limits = LinkLimits { window_bytes, max_message: 1 << 20 };
    let settings = SessionSettings {
        tuned: Tuned::new(Tuning {
            queue: QueueLimits::bounds(queue, 1 << 20),
            requests: RequestLimits { requests: 100, bytes: 1 << 20 },
            link: LinkLimits { window_bytes: 4 << 20, max_message: 1 << 20 },
            unknown_bytes: 1 << 20,
            send_deadline: LONG,
            ack_delay,
            heartbeat: LONG,
            rx_stack: 0,
            tx_stack: 0,
        }),
        // The floor of the link, and one message beyond it.
        memory: Arc::new(Budget::new(1)),
        holds_inbound: false,
        undelivered: Arc::new(Undeliverable::new().0),
        kinds: Arc::default(),
        askers: Arc::default(),
        times: Arc::new(PhaseTimes::new(0)),
        taps: OutgoingTaps::default(),
    };
    let core = LinkCore::new(near_id, far_id, limits, 1);
    let there = LinkCore::new(far_id, near_id, limits, 2);
    let far = Far { core: there, conn: ConnectionId(0), decoder: Decoder::new(MAX_BODY), got: Vec::new(), done: 0 };
    (PeerLink::new(core, far_id, [3; 16], Arc::new(settings)), far)
}

/// Attaches both sides to connection number `conn`, the near one as the acceptor does: one lock for each step.
pub(super) fn attach(link: &PeerLink, far: &mut Far, conn: u64) {
    let now = conn * 10;
    let conn = ConnectionId(conn);
    let offer = Offer { conn, started: now, incarnation: 1 };
    far.conn = conn;
    far.decoder = Decoder::new(MAX_BODY);
    let near_says = link.core.lock().offer(offer, [7; 16], 1).say;
    let far_says = far.core.offer(offer, [9; 16], 1).say;
    let decision = match (near_says, far_says) {
        (Some((_, attach)), None) => {
            let (_, answer) = far.core.on_attach(conn, &attach, now + 1).unwrap().say.unwrap();
            link.core.lock().on_attach(conn, &answer, now + 1).unwrap()
        }
        (None, Some((_, attach))) => {
            let decision = link.core.lock().on_attach(conn, &attach, now + 1).unwrap();
            let (_, answer) = decision.say.as_ref().unwrap();
            far.core.on_attach(conn, answer, now + 1).unwrap();
            decision
        }
        both => panic!("one side decides: {both:?}"),
    };
    assert_eq!(decision.attached, Some(conn));
    link.see_to_freed(decision.acked);
}

/// A session whose sender thread runs; somebody has to [`leave`](Running::leave) in place of its receiver thread.
pub(super) struct Running {
    pub(super) session: Arc<Session>,
    pub(super) line: Arc<Line>,
    pub(super) ends: Ends,
    tx: thread::JoinHandle<()>,
}

/// The ends that were reported.
#[derive(Clone, Default)]
pub(super) struct Ends(Arc<parking_lot::Mutex<Vec<DisconnectReason>>>);

impl Ends {
    pub(super) fn on_end(&self) -> OnEnd {
        let ends = self.0.clone();
        Arc::new(move |end| ends.lock().push(end.reason))
    }

    pub(super) fn seen(&self) -> Vec<DisconnectReason> {
        self.0.lock().clone()
    }
}

impl fmt::Debug for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.lock().fmt(f)
    }
}

/// A link that leaves this out, with a session on its way.
pub(super) fn attached(decides: bool, queue: usize, window: usize, omission: Option<Omission>) -> (Arc<PeerLink>, Far) {
    let (mut near, mut far) = link(decides, queue, window);
    near.outbox.omission = omission;
    attach(&near, &mut far, 1);
    (Arc::new(near), far)
}

/// The same, with a session that runs.
pub(super) fn session(
    decides: bool,
    queue: usize,
    window: usize,
    omission: Option<Omission>,
) -> (Arc<PeerLink>, Far, Running) {
    let (near, far) = attached(decides, queue, window, omission);
    let running = run(&near, 1);
    (near, far, running)
}

/// A link of a peer that is away, which leaves this out.
pub(super) fn away(queue: usize, window: usize, omission: Option<Omission>) -> Arc<PeerLink> {
    let (mut near, _) = link(true, queue, window);
    near.outbox.omission = omission;
    Arc::new(near)
}

/// Starts a session on a connection that the link is attached to.
pub(super) fn run(link: &Arc<PeerLink>, conn: u64) -> Running {
    let (conn, line, ends) = (ConnectionId(conn), Arc::new(Line::default()), Ends::default());
    let session = Arc::new(Session::new(conn, link.id, SessionKind::Outbound, line.clone(), None));
    let (wake, ended) = link.outbox.attach(Box::new(Writer::new(conn, line.clone(), Instant::now())));
    link.tell(ended);
    let tx = {
        let (link, session, ends) = (link.clone(), session.clone(), ends.clone());
        thread::spawn(move || send_loop(&link, &session, &wake, &ends.on_end()))
    };
    Running { session, line, ends, tx }
}

impl Running {
    /// Closes the session and waits for its sender thread; the receiver thread has left or leaves by itself.
    pub(super) fn close(self, link: &PeerLink) -> Ends {
        self.session.close(link, CloseReason::Requested);
        self.tx.join().unwrap();
        self.ends
    }

    /// What a receiver thread does at last, for a session that has none.
    pub(super) fn leave(&self, link: &Arc<PeerLink>) {
        self.session.leave(link, &self.ends.on_end(), Duration::ZERO);
    }
}

/// Appends `count` messages of one thread: their kind names the thread, their first byte counts, `len` is their length.
pub(super) fn append(link: &Arc<PeerLink>, lane: Lane, kind: u16, count: u8, len: impl Fn(u8) -> usize) {
    for number in 0..count {
        let payload = vec![number; len(number)];
        if !link.push_fast(lane, Class::PLAIN, kind, &payload) {
            link.push(lane, Heading::of_kind(kind), payload, Wait::UpTo(LONG)).unwrap();
        }
    }
}

/// Whether `got` is exactly what threads with these kinds and counts appended, each in its order.
pub(super) fn assert_in_order(got: &[(u16, Vec<u8>)], threads: &[(u16, u8)]) {
    for (kind, count) in threads {
        let numbers: Vec<u8> = got.iter().filter(|(of, _)| of == kind).map(|(_, payload)| payload[0]).collect();
        assert_eq!(numbers, (0..*count).collect::<Vec<u8>>(), "thread {kind}");
    }
    assert_eq!(got.len(), threads.iter().map(|(_, count)| usize::from(*count)).sum::<usize>());
}
