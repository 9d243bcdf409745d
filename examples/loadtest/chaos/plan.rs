//! Which faults a run suffers, where and when: made from a seed before anything starts.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: as many faults as asked for, each kind among them, twenty of each where there is room; the same seed gives
//! the same plan.
//!
//! Over TLS, of which a proxy reads no frames, each kind means the same of TLS' records; `proxy::records` says how.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The fewest faults that hold one of each kind, over plain connections; see [`Kind::all`].
pub const FEWEST: usize = Kind::PLAIN.len();
/// So many of each kind, where the number asked for allows it.
const OF_EACH: usize = 20;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Both sides of a connection are reset.
    Reset,
    /// One side is told that nothing more comes; the other direction goes on.
    HalfClose,
    /// Nothing passes for a while, then both sides are reset.
    StallReset,
    /// Reset inside a frame header.
    CutHeader,
    /// Reset inside the body of a message's frame.
    CutBody,
    /// Reset inside an acknowledgement.
    CutAck,
    /// Reset inside a frame of a handshake.
    CutHandshake,
    /// The connection is reset, and for a while nobody listens.
    Listener,
    /// A process is stopped for a while.
    Freeze,
    /// A process is killed, and started again on its data folder.
    Kill,
    /// One bit of a message's record is altered, and all bytes pass: over TLS only, which must notice.
    Flip,
}

impl Kind {
    /// All kinds that happen to plain connections.
    const PLAIN: [Self; 10] = [
        Self::Reset,
        Self::HalfClose,
        Self::StallReset,
        Self::CutHeader,
        Self::CutBody,
        Self::CutAck,
        Self::CutHandshake,
        Self::Listener,
        Self::Freeze,
        Self::Kill,
    ];
    /// All kinds that happen over TLS.
    const SECURE: [Self; 11] = [
        Self::Reset,
        Self::HalfClose,
        Self::StallReset,
        Self::CutHeader,
        Self::CutBody,
        Self::CutAck,
        Self::CutHandshake,
        Self::Listener,
        Self::Freeze,
        Self::Kill,
        Self::Flip,
    ];

    /// All kinds that happen, over TLS or over plain connections.
    pub const fn all(secure: bool) -> &'static [Self] {
        if secure { &Self::SECURE } else { &Self::PLAIN }
    }

    /// How often, beside the others: what takes longer is rarer.
    const fn weight(self) -> usize {
        match self {
            Self::Reset | Self::CutHeader | Self::CutBody | Self::CutAck => 3,
            Self::HalfClose | Self::StallReset | Self::CutHandshake | Self::Flip => 2,
            Self::Listener | Self::Freeze | Self::Kill => 1,
        }
    }

    /// Whether it happens to a process instead of a link.
    pub const fn is_of_a_node(self) -> bool {
        matches!(self, Self::Freeze | Self::Kill)
    }
}

/// A direction of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// From the side that dialled.
    Up,
    /// To it.
    Down,
}

/// A fault of one link, as its proxy carries it out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LinkFault {
    /// What is done.
    pub kind: Kind,
    /// The direction whose frames decide when.
    pub way: Way,
    /// So many frames it could happen to pass before.
    pub skip: u32,
    /// Which byte of the frame it is: 0 the first it may be, just below 1 the last.
    pub share: f64,
    /// How long a stall or a closed listener lasts.
    pub lasts: Duration,
    /// How long the link is left alone before.
    pub rest: Duration,
}

/// A fault of one node.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NodeFault {
    /// What is done.
    pub kind: Kind,
    /// To whom.
    pub node: usize,
    /// How long a freeze lasts.
    pub lasts: Duration,
    /// How long all nodes are left alone before.
    pub rest: Duration,
}

/// All faults of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Of each link, in their order.
    pub links: Vec<Vec<LinkFault>>,
    /// Of the nodes, in their order.
    pub nodes: Vec<NodeFault>,
}

impl Plan {
    /// So many faults for so many links and nodes, over TLS or not; at least one of each kind, and at least one link and
    /// node.
    pub fn new(cuts: usize, links: usize, nodes: usize, seed: u64, secure: bool) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut kinds: Vec<Kind> =
            shares(cuts, secure).into_iter().flat_map(|(kind, count)| std::iter::repeat_n(kind, count)).collect();
        random.shuffle(&mut kinds);
        let mut plan = Self { links: vec![Vec::new(); links], nodes: Vec::new() };
        let mut link = 0;
        for kind in kinds {
            if kind.is_of_a_node() {
                // Now and then longer than the others wait for a sign of life.
                let lasts =
                    if random.u8(0..8) == 0 { millis(&mut random, 2200, 2600) } else { millis(&mut random, 50, 600) };
                let (node, rest) = (random.usize(..nodes), millis(&mut random, 50, 500));
                plan.nodes.push(NodeFault { kind, node, lasts, rest });
            } else {
                plan.links[link].push(link_fault(kind, &mut random, secure));
                link = (link + 1) % links;
            }
        }
        plan
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.links.iter().map(Vec::len).sum::<usize>() + self.nodes.len()
    }
}

fn link_fault(kind: Kind, random: &mut fastrand::Rng, secure: bool) -> LinkFault {
    let skip = match kind {
        // A side says three frames in a handshake. Over TLS more records, of which the last has to do if it is passed.
        Kind::CutHandshake => random.u32(0..if secure { 5 } else { 3 }),
        // These come one for many messages.
        Kind::CutAck => random.u32(0..8),
        _ => random.u32(0..40),
    };
    LinkFault {
        kind,
        way: if random.bool() { Way::Up } else { Way::Down },
        skip,
        share: random.f64(),
        lasts: millis(random, 20, 300),
        rest: millis(random, 0, 150),
    }
}

fn millis(random: &mut fastrand::Rng, from: u64, to: u64) -> Duration {
    Duration::from_millis(random.u64(from..to))
}

/// How many of each kind.
fn shares(cuts: usize, secure: bool) -> BTreeMap<Kind, usize> {
    let kinds = Kind::all(secure);
    let each = (cuts / kinds.len()).min(OF_EACH);
    let rest = cuts - each * kinds.len();
    let weights: usize = kinds.iter().map(|kind| kind.weight()).sum();
    let mut shares: BTreeMap<Kind, usize> =
        kinds.iter().map(|kind| (*kind, each + rest * kind.weight() / weights)).collect();
    let given: usize = shares.values().sum();
    *shares.entry(Kind::Reset).or_default() += cuts - given;
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(plan: &Plan) -> BTreeMap<Kind, usize> {
        let mut kinds = BTreeMap::new();
        let of_links = plan.links.iter().flatten().map(|fault| fault.kind);
        for kind in of_links.chain(plan.nodes.iter().map(|fault| fault.kind)) {
            *kinds.entry(kind).or_insert(0) += 1;
        }
        kinds
    }

    #[test]
    fn a_plan_has_as_many_faults_as_asked_for_and_all_kinds() {
        for (cuts, secure) in [10, 11, 19, 57, 199, 200, 500, 10_000].into_iter().flat_map(|n| [(n, false), (n, true)])
        {
            let all = Kind::all(secure);
            if cuts < all.len() {
                continue;
            }
            let plan = Plan::new(cuts, 3, 3, 7, secure);
            assert_eq!(plan.len(), cuts);
            let kinds = kinds(&plan);
            assert!(kinds.keys().eq(all), "{kinds:?}");
            assert!(kinds.values().all(|count| *count >= (cuts / all.len()).min(OF_EACH)), "{cuts}: {kinds:?}");
        }
    }

    #[test]
    fn faults_are_spread_over_links_and_happen_where_they_can() {
        let plan = Plan::new(500, 3, 3, 1, true);
        let (least, most) = (plan.links.iter().map(Vec::len).min(), plan.links.iter().map(Vec::len).max());
        assert!(most.unwrap() - least.unwrap() <= 1);
        assert!(plan.links.iter().flatten().all(|fault| !fault.kind.is_of_a_node() && fault.share < 1.0));
        assert!((0..3).all(|node| plan.nodes.iter().any(|fault| fault.node == node && fault.kind == Kind::Kill)));
    }

    #[test]
    fn only_what_tls_must_notice_differs() {
        assert!(Kind::all(true).starts_with(Kind::all(false)));
        assert_eq!(Kind::all(true).len(), Kind::all(false).len() + 1);
    }

    #[test]
    fn a_seed_makes_one_plan() {
        assert_eq!(Plan::new(50, 3, 3, 4, false), Plan::new(50, 3, 3, 4, false));
        assert_ne!(Plan::new(50, 3, 3, 4, false), Plan::new(50, 3, 3, 5, false));
    }
}
