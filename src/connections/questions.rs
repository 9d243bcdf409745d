//! Questions to sessions whether their process lives, asked because another one came in its name.
//!
//! Owns: the questions that wait for an answer. Threads: `acceptor` only. Locks: the registry lock, then the link lock,
//! one after the other. Blocks on: nothing; the poll wakes for [`Questions::next`].
//! Upholds: every question ends, by an answer, by the end of the session, or by its deadline; what comes of it is the
//! link's decision.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::connections::shared::Shared;
use crate::ident::ConnectionId;
use crate::link::{Decision, Sign};
use crate::session::PeerLink;

/// How often an answer is looked for.
const LOOK: Duration = Duration::from_millis(20);
/// A question is asked again with every so many looks: writing to a connection whose other end is gone shows that.
const AGAIN: u32 = 10;

/// The questions that wait.
#[derive(Default)]
pub(super) struct Questions {
    waiting: Vec<Question>,
    look: Option<Instant>,
}

struct Question {
    link: Arc<PeerLink>,
    holder: ConnectionId,
    number: u16,
    /// Reads of the connection when it was asked.
    heard: u64,
    looks: u32,
}

impl Questions {
    /// Asks the session of `holder`.
    pub(super) fn ask(&mut self, shared: &Shared, link: &Arc<PeerLink>, holder: ConnectionId, number: u16) {
        let session = shared.registry.session(holder, |entry| entry.session.clone());
        let heard = session.map_or(0, |session| {
            session.ask(link, number);
            session.pulse().heard
        });
        self.waiting.push(Question { link: link.clone(), holder, number, heard, looks: 0 });
        self.look.get_or_insert_with(|| Instant::now() + LOOK);
    }

    /// When to call [`Questions::look`] next.
    pub(super) fn next(&self) -> Option<Instant> {
        self.look
    }

    /// Looks for answers; what the links have decided, to be carried out.
    pub(super) fn look(&mut self, shared: &Shared, now: Instant) -> Vec<(Arc<PeerLink>, Decision)> {
        if self.look.is_none_or(|look| look > now) {
            return Vec::new();
        }
        let mut decided = Vec::new();
        self.waiting.retain_mut(|question| {
            question.looks += 1;
            let Question { link, holder, number, heard, looks } = question;
            let sign = match shared.registry.session(*holder, |entry| entry.session.clone()) {
                None => Sign::Ended,
                Some(session) => {
                    if looks.is_multiple_of(AGAIN) {
                        session.ask(link, *number);
                    }
                    session.sign_of_life(link, *number, *heard)
                }
            };
            let mut core = link.core.lock();
            decided.push((link.clone(), core.judge(*number, sign, link.token, shared.now())));
            core.waits_for(*number)
        });
        self.look = (!self.waiting.is_empty()).then(|| now + LOOK);
        decided
    }
}
