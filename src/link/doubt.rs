//! Two processes of one name: whoever is attached is asked for a sign of life before another life takes its place.
//!
//! Owns: nothing (it is the doubting half of `LinkCore`). Threads: whoever holds the link lock. Locks: none itself.
//! Blocks on: nothing.
//! Upholds: a process that answers keeps its link, whoever else has its key; one that has ended loses it within
//! [`SIGN_OF_LIFE`]; nobody is accused of having a copy of a key on less than an answer.
//!
//! A process that was killed normally took its connections with it: its session is over before its next life comes, and
//! nothing is asked. Only a machine that died without a word, or a copy of a process's data folder, gets here.

use crate::error::CloseReason;
use crate::ident::ConnectionId;
use crate::link::core::LinkCore;
#[cfg(test)]
use crate::link::core::Mutation;
use crate::link::offer::{Attachment, Decision, Doubt, Offer, Sign};
use crate::wire::Attach;

/// How long a session has to answer, in microseconds: a round trip and a scheduler under load, and well within the
/// deadline of the handshake that waits for it.
pub(crate) const SIGN_OF_LIFE: u64 = 1_000_000;

impl LinkCore {
    /// Whether `offer` is of another process than the one attached.
    pub(super) fn doubts(&self, offer: Offer, present: Offer) -> bool {
        #[cfg(test)]
        if self.mutated(Mutation::NoDoubt) {
            return false;
        }
        offer.incarnation != present.incarnation
    }

    /// A newcomer waits, with the attach it brought, until the session of `holder` has shown whether it lives.
    pub(super) fn ask(
        &mut self,
        offer: Offer,
        told: Option<Attach>,
        holder: ConnectionId,
        now: u64,
        decision: &mut Decision,
    ) {
        let questions = &mut self.questions;
        let doubt = self.doubt.get_or_insert_with(|| {
            // Zero is no question.
            *questions = questions.checked_add(1).unwrap_or(1);
            decision.ask = Some((holder, *questions));
            Doubt { question: *questions, asked: now, newcomers: Vec::new() }
        });
        doubt.newcomers.push((offer, told));
    }

    pub(super) fn is_newcomer(&self, conn: ConnectionId) -> bool {
        self.doubt.iter().flat_map(|doubt| &doubt.newcomers).any(|(offer, _)| offer.conn == conn)
    }

    /// Whether this question still waits for its answer.
    pub(crate) fn waits_for(&self, question: u16) -> bool {
        self.doubt.as_ref().is_some_and(|doubt| doubt.question == question)
    }

    /// What has come of a question so far; to be called now and then while [`LinkCore::waits_for`] says so, and after
    /// [`SIGN_OF_LIFE`]. `nonce` and `now` as in [`LinkCore::offer`].
    pub(crate) fn judge(&mut self, question: u16, sign: Sign, nonce: [u8; 16], now: u64) -> Decision {
        let mut decision = Decision::default();
        let Some(doubt) = self.doubt.take_if(|doubt| doubt.question == question) else { return decision };
        let late = now.saturating_sub(doubt.asked) >= SIGN_OF_LIFE;
        match sign {
            Sign::Answered => refuse(doubt, CloseReason::IdentityClash, &mut decision),
            // It may well be alive: the newcomer is not let in, and not accused. It comes again.
            Sign::Heard if late => refuse(doubt, CloseReason::Undecided, &mut decision),
            Sign::Heard | Sign::Nothing if !late => self.doubt = Some(doubt),
            Sign::Heard | Sign::Nothing | Sign::Ended => {
                self.doubt = Some(doubt);
                self.admit_newcomers(nonce, &mut decision);
            }
        }
        decision
    }

    /// Nobody holds the link any more, or not for long: the newcomers take it as if they came now.
    pub(super) fn admit_newcomers(&mut self, nonce: [u8; 16], decision: &mut Decision) {
        let Some(Doubt { asked, newcomers, .. }) = self.doubt.take() else { return };
        if self.decides() {
            for (offer, _) in newcomers {
                match self.attachment {
                    Attachment::Attaching { offer: under_way } if offer.incarnation == under_way.incarnation => {
                        self.held.push(offer);
                    }
                    Attachment::Attaching { .. } => decision.close.push((offer.conn, CloseReason::Superseded)),
                    Attachment::Attached { offer: old, .. } => {
                        decision.close.push((old.conn, CloseReason::Superseded));
                        self.begin(offer, nonce, decision);
                    }
                    Attachment::Detached => self.begin(offer, nonce, decision),
                }
            }
            return;
        }
        // The attach that came last is the one its decider stands by.
        for (offer, told) in newcomers.into_iter().rev() {
            let conn = offer.conn;
            match told {
                Some(told) if decision.attached.is_none() => {
                    if self.follow_now(offer, &told, asked, decision).is_err() {
                        decision.close.push((conn, CloseReason::ProtocolError));
                    }
                }
                _ => decision.close.push((conn, CloseReason::Superseded)),
            }
        }
    }

    /// A process attached while newcomers waited for a sign of another session: it is here, they may come again.
    pub(super) fn dismiss_newcomers(&mut self, decision: &mut Decision) {
        if let Some(doubt) = self.doubt.take() {
            refuse(doubt, CloseReason::Undecided, decision);
        }
    }

    /// A newcomer did not wait for the answer.
    pub(super) fn forget_newcomer(&mut self, conn: ConnectionId) {
        if let Some(doubt) = &mut self.doubt {
            doubt.newcomers.retain(|(offer, _)| offer.conn != conn);
        }
        self.doubt.take_if(|doubt| doubt.newcomers.is_empty());
    }
}

fn refuse(doubt: Doubt, reason: CloseReason, decision: &mut Decision) {
    decision.close.extend(doubt.newcomers.into_iter().map(|(offer, _)| (offer.conn, reason)));
}
