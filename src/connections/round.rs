//! One walk through the addresses of one goal: name by name, address by address, until one answers or none is left.
//!
//! Owns: the addresses still to try, and what went wrong so far. Threads: `supervisor` only. Locks: none.
//! Blocks on: nothing.
//! Upholds: a name is looked up when its turn comes, not before; every address it has is tried; every failure is kept.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::address::Address;
use crate::error::{CloseReason, DialCause, DialError, DialStage};
use crate::ident::PeerId;

/// Names a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RoundId(pub(crate) u64);

/// One walk through addresses.
#[derive(Debug)]
pub(super) struct Round {
    /// The kept peer it is for; otherwise somebody waits for its end.
    pub(super) peer: Option<PeerId>,
    /// What went wrong so far.
    pub(super) errors: Vec<DialError>,
    /// The longest that the other side asked for.
    pub(super) retry_after: Duration,
    addresses: VecDeque<Address>,
    /// What is left of what the last address means: itself, or what was found of a name.
    found: VecDeque<SocketAddr>,
    /// The address that this is of.
    of: Option<Address>,
    /// Of several that a name means, this one is tried first.
    prefer: Option<SocketAddr>,
    /// The name that is being looked up.
    looking_up: Option<Address>,
}

/// What a round needs next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A dial: [`Round::take`] says where.
    Dial,
    /// The addresses of this name.
    LookUp(Arc<str>),
    /// No address is left.
    Over,
}

impl Round {
    /// A walk that has not begun.
    pub(super) fn new(peer: Option<PeerId>, addresses: VecDeque<Address>, prefer: Option<SocketAddr>) -> Self {
        let (errors, retry_after, found) = (Vec::new(), Duration::ZERO, VecDeque::new());
        Self { peer, errors, retry_after, addresses, found, of: None, prefer, looking_up: None }
    }

    /// The next step, when nothing of this round is under way.
    pub(super) fn next(&mut self) -> Step {
        if !self.found.is_empty() {
            return Step::Dial;
        }
        let Some(address) = self.addresses.pop_front() else { return Step::Over };
        match (address.socket_addr(), address.host_name()) {
            (None, Some(host)) => {
                let host = host.into();
                self.looking_up = Some(address);
                Step::LookUp(host)
            }
            (addr, _) => {
                self.found.extend(addr);
                self.of = Some(address);
                Step::Dial
            }
        }
    }

    /// The address to dial, and which of the round's addresses it is of.
    pub(super) fn take(&mut self) -> Option<(SocketAddr, Address)> {
        let addr = self.found.pop_front()?;
        Some((addr, self.of.clone().unwrap_or_else(|| addr.into())))
    }

    /// The name that was found last, and all that it means.
    pub(super) fn found(&self) -> Option<(&Address, Vec<SocketAddr>)> {
        Some((self.of.as_ref()?, self.found.iter().copied().collect()))
    }

    /// The dial did not begin: the address is next again.
    pub(super) fn put_back(&mut self, addr: SocketAddr) {
        self.found.push_front(addr);
    }

    /// The answer of the lookup, and what was wrong with it; nothing if none is awaited.
    pub(super) fn resolved(&mut self, found: Result<&[SocketAddr], DialCause>) -> Option<Result<(), DialError>> {
        let name = self.looking_up.take()?;
        match found {
            Ok(addrs) => {
                let port = name.port();
                self.found.extend(addrs.iter().map(|addr| {
                    let mut addr = *addr;
                    addr.set_port(port);
                    addr
                }));
                if let Some(at) = self.found.iter().position(|addr| Some(*addr) == self.prefer) {
                    self.found.make_contiguous()[..=at].rotate_right(1);
                }
                self.of = Some(name);
                Some(Ok(()))
            }
            Err(cause) => {
                let error = DialError { addr: name, stage: DialStage::Resolve, cause };
                self.errors.push(error.clone());
                Some(Err(error))
            }
        }
    }

    /// All errors, and one for what the node's end has cut short: the dial under way, the lookup, or what came next.
    pub(super) fn cut_short(mut self, under_way: Option<SocketAddr>) -> Vec<DialError> {
        let (addr, stage) = match (under_way, self.looking_up.take()) {
            (Some(addr), _) => (Some(addr.into()), DialStage::Connect),
            (None, Some(name)) => (Some(name), DialStage::Resolve),
            (None, None) => {
                let next = self.found.pop_front().map(Address::from);
                (next.or_else(|| self.addresses.pop_front()), DialStage::Connect)
            }
        };
        let cause = DialCause::ShuttingDown;
        self.errors.extend(addr.map(|addr| DialError { addr, stage, cause }));
        self.errors
    }
}

/// Whether another connection of the same two peers stays instead.
pub(super) fn is_duplicate(cause: &DialCause) -> bool {
    use CloseReason::{Duplicate, Superseded};
    matches!(cause, DialCause::Refused(Duplicate | Superseded) | DialCause::Rejected(Duplicate | Superseded))
}
