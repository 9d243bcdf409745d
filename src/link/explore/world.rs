//! The world of one small case: two link cores, the connections between them, and what both applications got.
//!
//! Owns: every bit of the state that is explored. Threads: one explorer. Locks: none. Blocks on: nothing.
//! Upholds: equal fingerprints mean equal futures: clocks are reduced to "before or after the attach", and what nobody
//! can meet any more is removed.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

use crate::ident::{ConnectionId, PeerId};
use crate::link::lane_in::LaneIn;
use crate::link::lane_out::LaneOut;
use crate::link::offer::Attachment;
use crate::link::{LinkCore, LinkLimits, Mutation, Offer, Reassembly};
use crate::wire::{LANES, Lane};

/// Connections of a decider start before its latest attach ...
pub(super) const BEFORE: u64 = 1;
/// ... or at and after it. More the clock need not tell.
pub(super) const NOW: u64 = 2;

/// Messages that are queued as one segment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) from: usize,
    pub(super) lane: Lane,
    pub(super) messages: u8,
    /// Payload bytes of each message.
    pub(super) len: usize,
}

/// How the application takes messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Consume {
    /// In a handler on the receiver thread.
    Handler,
    /// From a queue, at its leisure.
    Queue,
}

/// What may happen in one exploration.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) loads: &'static [Load],
    /// Bytes of each lane's window; the smallest one the link permits if none.
    pub(super) window: Option<usize>,
    pub(super) max_message: usize,
    /// Connections each side may dial.
    pub(super) dials: [u8; 2],
    pub(super) losses: u8,
    pub(super) restarts: [u8; 2],
    pub(super) freezes: u8,
    /// How often each side's resume window may end.
    pub(super) give_ups: [u8; 2],
    pub(super) consume: Consume,
    /// Retention has room to append short segments to its last one.
    pub(super) room: bool,
    /// A SEGMENT frame is read in a step of its own, not together with what it announces.
    pub(super) fine: bool,
    /// Accepting is a step of its own, not part of the dial.
    pub(super) backlog: bool,
    /// What is on its way when a connection is lost may still be read afterwards; else it is lost as well.
    pub(super) buffered: bool,
    /// The exploration begins with a connection attached.
    pub(super) connected: bool,
    /// The message whose handler fails.
    pub(super) rejects: Option<u8>,
    /// Two connections at the same time, nothing lost: one stays.
    pub(super) one_stays: bool,
    /// A second process has the identity of this side: it starts with this life, and dials so often.
    pub(super) clone: Option<Clone>,
}

/// A process that has the identity of another one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clone {
    pub(super) of: u8,
    pub(super) life: u64,
    pub(super) dials: u8,
}

impl Case {
    /// Nothing but three messages of side 0 on one lane; to be varied.
    pub(super) const PLAIN: Self = Self {
        name: "",
        loads: &[
            Load { from: 0, lane: Lane::Normal, messages: 1, len: 4 },
            Load { from: 0, lane: Lane::Normal, messages: 1, len: 4 },
            Load { from: 0, lane: Lane::Normal, messages: 1, len: 4 },
        ],
        window: None,
        max_message: 1 << 20,
        dials: [1, 0],
        losses: 0,
        restarts: [0, 0],
        freezes: 0,
        give_ups: [0, 0],
        consume: Consume::Handler,
        room: true,
        fine: false,
        backlog: false,
        buffered: true,
        connected: true,
        rejects: None,
        one_stays: false,
        clone: None,
    };

    /// Sender and lane of message `id`.
    pub(super) fn origin(&self, id: u8) -> (usize, Lane) {
        let mut first = 0;
        for load in self.loads {
            first += load.messages;
            if id < first {
                return (load.from, load.lane);
            }
        }
        panic!("no message {id}");
    }

    /// The ids of all messages of `from`, from its load number `skip` of each lane on.
    pub(super) fn ids(&self, from: usize, skip: [u8; LANES]) -> impl Iterator<Item = u8> + '_ {
        let (mut first, mut seen) = (0u8, [0u8; LANES]);
        self.loads.iter().flat_map(move |load| {
            let ids = first..first + load.messages;
            first = ids.end;
            let counted = load.from == from && {
                seen[load.lane.index()] += 1;
                seen[load.lane.index()] > skip[load.lane.index()]
            };
            ids.filter(move |_| counted)
        })
    }

    /// Payload bytes of message `id`.
    pub(super) fn len(&self, id: u8) -> usize {
        let mut lens = self.loads.iter().flat_map(|load| (0..load.messages).map(|_| load.len));
        lens.nth(id.into()).unwrap_or_default()
    }

    /// Load number `at` of a side's lane, and the id of its first message.
    pub(super) fn load(&self, from: usize, lane: Lane, at: u8) -> Option<(Load, u8)> {
        let mut first = 0;
        let firsts = self.loads.iter().map(|load| {
            first += load.messages;
            (*load, first - load.messages)
        });
        firsts.filter(|(load, _)| load.from == from && load.lane == lane).nth(at.into())
    }
}

/// One process.
#[derive(Debug, Clone, Hash)]
pub(super) struct Side {
    pub(super) core: LinkCore,
    /// Loads of each lane that were numbered.
    pub(super) numbered: [u8; LANES],
    /// Messages that this life accepted, as a set of ids.
    pub(super) accepted: u8,
    pub(super) life: u64,
    pub(super) dials: u8,
    pub(super) restarts: u8,
    pub(super) give_ups: u8,
    /// The writer found something to write, no room for it, and sleeps.
    pub(super) asleep: bool,
    /// Messages this life's application has begun to see, and those any life's has: sets of ids.
    pub(super) seen: u8,
    pub(super) seen_ever: u8,
    /// Messages some life's application is through with.
    pub(super) handed: u8,
    /// Claimed, not yet taken by the application.
    pub(super) waiting: VecDeque<Claimed>,
}

/// A process, shared by all worlds in which it is in the same state.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    side: Arc<Side>,
    /// Its fingerprint, while nothing changes.
    print: Option<[u64; 2]>,
}

impl Shared {
    fn new(side: Side) -> Self {
        Self { side: Arc::new(side), print: None }
    }

    /// To change it, in this world only.
    pub(super) fn edit(&mut self) -> &mut Side {
        self.print = None;
        Arc::make_mut(&mut self.side)
    }
}

impl Deref for Shared {
    type Target = Side;

    fn deref(&self) -> &Side {
        &self.side
    }
}

impl Hash for Shared {
    fn hash<H: Hasher>(&self, into: &mut H) {
        self.print.hash(into);
    }
}

/// What a receiver thread claimed and did not deliver yet.
#[derive(Debug, Clone, Hash)]
pub(super) struct Claimed {
    pub(super) generation: u32,
    pub(super) lane: Lane,
    pub(super) first: u64,
    pub(super) repeat_below: u64,
    pub(super) content: Content,
}

#[derive(Debug, Clone, Hash)]
pub(super) enum Content {
    /// Whole messages: id and wire bytes of each.
    Run(VecDeque<(u8, u64)>),
    /// A message that came in pieces.
    Whole { id: u8, bytes: usize },
    /// Some of its pieces.
    Part(Reassembly),
}

/// What travels.
#[derive(Debug, Clone, Hash)]
pub(super) enum Packet {
    /// The end of the handshake: the sender has proven to be this life of the peer.
    Proof(u64),
    /// One frame.
    Frame(Arc<[u8]>),
}

/// One connection.
#[derive(Debug, Clone, Hash)]
pub(super) struct Wire {
    pub(super) conn: u8,
    pub(super) dialler: u8,
    /// The dialler is not the side itself, but the other process of its name.
    pub(super) cloned: bool,
    pub(super) accepted: bool,
    /// Nothing more gets through. What arrived before may still be read.
    pub(super) lost: bool,
    pub(super) ends: [End; 2],
}

/// One end of a connection.
#[derive(Debug, Clone, Default, Hash)]
pub(super) struct End {
    /// What is on its way to this end or buffered there.
    pub(super) inbox: VecDeque<Packet>,
    pub(super) claimed: Option<Box<Claimed>>,
    pub(super) started: u64,
    /// The link told this end to close.
    pub(super) closing: bool,
    /// The link was told that the connection is over.
    pub(super) gone: bool,
    /// The reader has ended.
    pub(super) deaf: bool,
}

impl End {
    pub(super) fn dead() -> Self {
        Self { gone: true, deaf: true, ..Self::default() }
    }
}

/// All of it.
#[derive(Debug, Clone, Hash)]
pub(super) struct World {
    pub(super) sides: [Shared; 2],
    /// The other process that has the identity of one side. It has no messages, and gets none if it is kept out.
    pub(super) clone: Option<Shared>,
    /// How often a link said that there are two processes of a name.
    pub(super) clashes: u8,
    pub(super) wires: Vec<Wire>,
    pub(super) connections: u8,
    pub(super) losses: u8,
    pub(super) freezes: u8,
    pub(super) frozen: Option<u8>,
    /// Connections ended as duplicates, and as superseded; told apart only where one of two has to stay.
    pub(super) duplicates: u8,
    pub(super) superseded: u8,
}

impl World {
    pub(super) fn new(case: &Case, mutation: Option<Mutation>) -> Self {
        // The side that has a clone is in its second life, so that the clone may be older or newer.
        let life = |me: usize| if case.clone.is_some_and(|clone| usize::from(clone.of) == me) { 2 } else { 1 };
        let process = |me: usize, life: u64, dials: u8| {
            Shared::new(Side {
                core: fresh_core(case, me, life, mutation),
                numbered: [0; LANES],
                accepted: case.ids(me, [0; LANES]).fold(0, |set, id| set | 1 << id),
                life,
                dials,
                restarts: case.restarts[me],
                give_ups: case.give_ups[me],
                asleep: false,
                seen: 0,
                seen_ever: 0,
                handed: 0,
                waiting: VecDeque::new(),
            })
        };
        let side = |me: usize| process(me, life(me), case.dials[me]);
        Self {
            sides: [side(0), side(1)],
            clone: case.clone.map(|clone| process(clone.of.into(), clone.life, clone.dials)),
            clashes: 0,
            wires: Vec::new(),
            connections: 0,
            losses: case.losses,
            freezes: case.freezes,
            frozen: None,
            duplicates: 0,
            superseded: 0,
        }
    }

    pub(super) fn wire(&self, conn: u8) -> Option<usize> {
        self.wires.iter().position(|wire| wire.conn == conn)
    }

    /// The process at one end of a connection.
    pub(super) fn process(&mut self, side: u8, conn: u8) -> &mut Side {
        let cloned = self.wires.iter().any(|wire| wire.conn == conn && wire.cloned && wire.dialler == side);
        match &mut self.clone {
            Some(clone) if cloned => clone.edit(),
            _ => self.sides[usize::from(side)].edit(),
        }
    }

    /// Whether this side may act.
    pub(super) fn awake(&self, side: u8) -> bool {
        self.frozen != Some(side)
    }

    /// Brings equal futures to equal states.
    pub(super) fn normalise(&mut self) {
        for me in 0..2 {
            let forget = self.sides[me].core.latest.is_none_or(|(_, since)| since == NOW);
            if forget {
                self.wires.iter_mut().for_each(|wire| wire.ends[me].started = BEFORE);
            }
            // What did not change is in order.
            if self.sides[me].print.is_none() {
                let core = &mut self.sides[me].edit().core;
                match &mut core.attachment {
                    Attachment::Attached { offer, since } => (offer.started, *since) = (BEFORE, BEFORE),
                    Attachment::Attaching { offer } => offer.started = BEFORE,
                    Attachment::Detached => {}
                }
                if forget {
                    core.held.iter_mut().for_each(|offer| offer.started = BEFORE);
                }
                if let Some((_, since)) = &mut core.latest {
                    *since = BEFORE;
                }
                if me == 1 {
                    core.held.sort_by_key(|offer: &Offer| offer.conn);
                }
                // Who counts sessions decides nothing.
                core.counts.sessions = 0;
            }
        }
        for end in self.wires.iter_mut().flat_map(|wire| &mut wire.ends) {
            end.deaf |= (end.gone || end.closing) && end.inbox.is_empty() && end.claimed.is_none();
        }
        self.wires.retain(|wire| wire.ends.iter().any(|end| !end.gone || !end.deaf));
    }

    /// 128 bits that name this state.
    pub(super) fn fingerprint(&mut self) -> u128 {
        for side in self.sides.iter_mut().chain(&mut self.clone) {
            if side.print.is_none() {
                side.print = Some(Fingerprint::of(&*side.side));
            }
        }
        let [high, low] = Fingerprint::of(self);
        u128::from(high) << 64 | u128::from(low)
    }
}

/// The link of `me` when its process starts.
pub(super) fn fresh_core(case: &Case, me: usize, life: u64, mutation: Option<Mutation>) -> LinkCore {
    let peer = |n: usize| PeerId::from_bytes([n as u8 + 1; 32]);
    let limits = LinkLimits { window_bytes: 0, max_message: case.max_message };
    let mut core = LinkCore::new(peer(me), peer(1 - me), limits, state_of(me, life));
    if let Some(window) = case.window {
        core.outgoing = Lane::ALL.map(|lane| LaneOut::new(lane, window));
        core.incoming = Lane::ALL.map(|lane| LaneIn::new(lane, window as u64, case.max_message as u64));
    }
    core.mutation = mutation;
    core
}

/// The name of the first state of a life.
pub(super) fn state_of(me: usize, life: u64) -> u64 {
    life * 20 + me as u64 * 10
}

pub(super) fn id_of(conn: u8) -> ConnectionId {
    ConnectionId(conn.into())
}

/// Two independent 64-bit hashes. Long byte strings are payloads here, an id and then filling, so that their length,
/// beginning and end tell all.
struct Fingerprint(u64, u64);

impl Fingerprint {
    fn of(what: &impl Hash) -> [u64; 2] {
        let mut print = Self(0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344);
        what.hash(&mut print);
        [print.0, print.1]
    }

    fn mix(&mut self, word: u64) {
        let fold = |a: u64, b: u64| {
            let product = u128::from(a) * u128::from(b);
            product as u64 ^ (product >> 64) as u64
        };
        self.0 = fold(self.0 ^ word, 0x9e37_79b9_7f4a_7c15).wrapping_add(word);
        self.1 = fold(self.1.rotate_left(23) ^ word, 0xd6e8_feb8_6659_fd93).wrapping_add(0x1656_67b1_9e37_79f9);
    }
}

impl Hasher for Fingerprint {
    fn write(&mut self, bytes: &[u8]) {
        const ENDS: usize = 128;
        if bytes.len() > 4 * ENDS {
            self.mix(bytes.len() as u64);
            self.write(&bytes[..ENDS]);
            self.write(&bytes[bytes.len() - ENDS..]);
            return;
        }
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.mix(u64::from_le_bytes(*word)));
        if !rest.is_empty() {
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            self.mix(u64::from_le_bytes(word) ^ (rest.len() as u64) << 61);
        }
    }

    fn write_u8(&mut self, n: u8) {
        self.mix(n.into());
    }

    fn write_u32(&mut self, n: u32) {
        self.mix(n.into());
    }

    fn write_u64(&mut self, n: u64) {
        self.mix(n);
    }

    fn write_usize(&mut self, n: usize) {
        self.mix(n as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
