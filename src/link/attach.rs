//! Which connection a link is attached to: offers, the decider's choice, the exchange of positions.
//!
//! Owns: nothing (it is the attaching half of `LinkCore`). Threads: whoever holds the link lock. Locks: none itself.
//! Blocks on: nothing.
//! Upholds: only the decider chooses; the epoch rises before positions are said, so that the old session claims nothing
//! more; a connection that overlapped with the one attached is a duplicate, a later one supersedes.

use crate::error::CloseReason;
use crate::ident::ConnectionId;
use crate::link::core::LinkCore;
#[cfg(test)]
use crate::link::core::Mutation;
use crate::link::fault::Fault;
use crate::link::lane_out::Freed;
use crate::link::offer::{Answer, Attachment, Decision, Offer};
use crate::wire::{Attach, LaneAttach};

impl LinkCore {
    pub(super) fn decides(&self) -> bool {
        self.me < self.peer
    }

    /// A connection has proven to be the peer's. `nonce` is fresh randomness, for the token of a first attach; `now` is on
    /// the clock of [`Offer::started`].
    pub(crate) fn offer(&mut self, offer: Offer, nonce: [u8; 16], now: u64) -> Decision {
        let mut decision = Decision::default();
        if !self.decides() {
            self.held.push(offer);
            return decision;
        }
        match self.attachment {
            Attachment::Detached => self.begin(offer, nonce, &mut decision),
            Attachment::Attaching { offer: under_way } if offer.incarnation < under_way.incarnation => {
                decision.close.push((offer.conn, CloseReason::Superseded));
            }
            Attachment::Attaching { offer: under_way } if offer.incarnation == under_way.incarnation => {
                self.held.push(offer);
            }
            Attachment::Attached { offer: present, since }
                if offer.incarnation == present.incarnation && offer.started <= since =>
            {
                decision.close.push((offer.conn, CloseReason::Duplicate));
            }
            Attachment::Attached { offer: present, since }
                if offer.incarnation < present.incarnation && offer.started <= since =>
            {
                // Of a life that has ended, or of a process that will come again: no accusation.
                decision.close.push((offer.conn, CloseReason::Superseded));
            }
            Attachment::Attached { offer: present, .. } if self.doubts(offer, present) => {
                self.ask(offer, None, present.conn, now, &mut decision);
            }
            Attachment::Attaching { offer: old } | Attachment::Attached { offer: old, .. } => {
                decision.close.push((old.conn, CloseReason::Superseded));
                self.begin(offer, nonce, &mut decision);
            }
        }
        decision
    }

    /// The decider's ATTACH: the old session is fenced off by it.
    pub(super) fn begin(&mut self, offer: Offer, nonce: [u8; 16], decision: &mut Decision) {
        self.epoch += 1;
        self.token.get_or_insert(nonce);
        self.attachment = Attachment::Attaching { offer };
        let attach = self.describe();
        decision.say = Some((offer.conn, attach));
    }

    /// The attach frame of this side, as of now.
    fn describe(&mut self) -> Attach {
        let mut lanes = [LaneAttach::default(); crate::wire::LANES];
        for ((lane, outgoing), incoming) in lanes.iter_mut().zip(&mut self.outgoing).zip(&mut self.incoming) {
            outgoing.describe(lane);
            incoming.describe(lane);
            #[cfg(test)]
            if self.mutation == Some(Mutation::CreditKept) {
                lane.window += crate::wire::MAX_PIECE as u64;
            }
        }
        Attach {
            epoch: self.epoch,
            token: self.token.unwrap_or_default(),
            state: self.state_id,
            knows: self.peer_state,
            lanes,
        }
    }

    /// The other side's ATTACH came on a proven connection. `now` is on the clock of [`Offer::started`].
    ///
    /// An attach on a connection that the link has given up in the meantime, or that the decider has, is no fault: it
    /// was on its way, and the connection is closed.
    pub(crate) fn on_attach(&mut self, conn: ConnectionId, told: &Attach, now: u64) -> Answer {
        let mut decision = Decision::default();
        if !self.knows(conn) {
            decision.close.push((conn, CloseReason::Superseded));
            return Ok(decision);
        }
        if self.decides() { self.on_answer(conn, told, now, decision) } else { self.follow(conn, told, now, decision) }
    }

    /// The decider's part: the other side has answered.
    fn on_answer(&mut self, conn: ConnectionId, told: &Attach, now: u64, mut decision: Decision) -> Answer {
        let Attachment::Attaching { offer } = self.attachment else { return Err(Fault::BadAttach) };
        if offer.conn != conn || told.epoch != self.epoch {
            return Err(Fault::BadAttach);
        }
        if Some(told.token) != self.token {
            return Err(Fault::BadToken);
        }
        self.meet(offer, told, &mut decision)?;
        self.attached_now(offer, now);
        self.dismiss_newcomers(&mut decision);
        decision.attached = Some(conn);
        decision.close.extend(self.held.drain(..).map(|held| (held.conn, CloseReason::Duplicate)));
        Ok(decision)
    }

    /// The other side's part: the decider has chosen.
    fn follow(&mut self, conn: ConnectionId, told: &Attach, now: u64, mut decision: Decision) -> Answer {
        let Some(position) = self.held.iter().position(|held| held.conn == conn) else { return Err(Fault::BadAttach) };
        let offer = self.held[position];
        // A process keeps its token and counts its epochs, whatever becomes of its states; and no state is resumed without.
        let same_life = self.peer_state == Some(told.state)
            || self.latest.is_some_and(|(incarnation, _)| incarnation == offer.incarnation);
        if same_life && self.token != Some(told.token) {
            return Err(Fault::BadToken);
        }
        if same_life && told.epoch == self.epoch {
            return Err(Fault::BadAttach);
        }
        self.held.swap_remove(position);
        if self.is_of_earlier_life(offer) || (same_life && told.epoch < self.epoch) {
            // The decider gave this connection up and chose a later one, whose attach came first.
            decision.close.push((conn, CloseReason::Superseded));
            return Ok(decision);
        }
        if let Attachment::Attached { offer: present, .. } = self.attachment
            && self.doubts(offer, present)
        {
            self.ask(offer, Some(told.clone()), present.conn, now, &mut decision);
            return Ok(decision);
        }
        self.follow_now(offer, told, now, &mut decision)?;
        Ok(decision)
    }

    /// The other side's part, once nothing speaks against it.
    pub(super) fn follow_now(
        &mut self,
        offer: Offer,
        told: &Attach,
        now: u64,
        decision: &mut Decision,
    ) -> Result<(), Fault> {
        self.epoch = told.epoch;
        self.token = Some(told.token);
        if let Attachment::Attached { offer: old, .. } = self.attachment {
            decision.close.push((old.conn, CloseReason::Superseded));
        }
        self.attachment = Attachment::Detached;
        let mut answer = self.describe();
        if self.peer_state == Some(told.state) && told.knows != Some(self.state_id) {
            // Its attaches so far failed before it met us: only what we wrote before we met it can be a repeat.
            for (lane, outgoing) in answer.lanes.iter_mut().zip(&self.outgoing) {
                lane.sent = outgoing.replayed();
            }
        }
        self.meet(offer, told, decision)?;
        self.attached_now(offer, now);
        self.dismiss_newcomers(decision);
        decision.say = Some((offer.conn, answer));
        decision.attached = Some(offer.conn);
        Ok(())
    }

    fn attached_now(&mut self, offer: Offer, now: u64) {
        self.attachment = Attachment::Attached { offer, since: now };
        self.latest = Some((offer.incarnation, now));
        self.giving_up = None;
        self.counts.sessions += 1;
    }

    /// Whether this connection began before we met a newer life of the peer than the one that proved itself on it: what
    /// is still read from it was said by a process that has ended.
    fn is_of_earlier_life(&self, offer: Offer) -> bool {
        self.latest.is_some_and(|(incarnation, since)| offer.incarnation < incarnation && offer.started <= since)
    }

    /// Whether this connection is attached, about to be, or waits.
    fn knows(&self, conn: ConnectionId) -> bool {
        let chosen = match self.attachment {
            Attachment::Attaching { offer } | Attachment::Attached { offer, .. } => offer.conn == conn,
            Attachment::Detached => false,
        };
        chosen || self.held.iter().any(|held| held.conn == conn) || self.is_newcomer(conn)
    }

    /// Adopts the other side's positions.
    fn meet(&mut self, offer: Offer, told: &Attach, decision: &mut Decision) -> Result<(), Fault> {
        let met_before = self.peer_state == Some(told.state);
        let resumed = told.knows == Some(self.state_id);
        // A new life of the peer may know us before we know it, from an attach of which the answer was lost: what was
        // written before was written to an earlier life nevertheless. The same life may have another state.
        let new_life = self.latest.is_some_and(|(incarnation, _)| incarnation != offer.incarnation);
        let starts_anew = !met_before && (!resumed || new_life);
        // Nothing is changed before all that was told is found to fit.
        for (told, outgoing) in told.lanes.iter().zip(&self.outgoing) {
            outgoing.check_attach(told, resumed)?;
        }
        if met_before {
            for (lane, incoming) in told.lanes.iter().zip(&self.incoming) {
                incoming.check_resume(lane)?;
            }
        } else {
            decision.restarted = self.peer_state.is_some();
            self.counts.restarts += u64::from(decision.restarted);
            self.peer_state = Some(told.state);
            self.generation = self.generation.wrapping_add(1);
            for (lane, incoming) in told.lanes.iter().zip(&mut self.incoming) {
                incoming.start_anew(lane);
                #[cfg(test)]
                if self.mutation == Some(Mutation::RepeatsUnmarked) {
                    incoming.unmark_repeats();
                }
            }
        }
        let mut lost = Vec::new();
        for (told, outgoing) in told.lanes.iter().zip(&mut self.outgoing) {
            #[cfg(test)]
            if self.mutation == Some(Mutation::ResumeAtSent) && resumed {
                let (_, sent, _) = outgoing.positions();
                outgoing.attach(&LaneAttach { received: sent, ..*told }, resumed, starts_anew);
                continue;
            }
            let (Freed { segments, ended, .. }, unknown) = outgoing.attach(told, resumed, starts_anew);
            self.tally.succeeded.merge(&ended);
            lost.extend(unknown);
            decision.acked.segments.extend(segments);
        }
        self.count_lost(&lost);
        decision.acked.lost = lost;
        decision.acked.kept = Some(self.kept_bytes());
        Ok(())
    }

    /// A connection is over, attached or not. `nonce` as in [`LinkCore::offer`], for the next one that waits.
    pub(crate) fn gone(&mut self, conn: ConnectionId, nonce: [u8; 16]) -> Decision {
        let mut decision = Decision::default();
        self.held.retain(|held| held.conn != conn);
        self.forget_newcomer(conn);
        if self.knows(conn) {
            self.attachment = Attachment::Detached;
            if let Some(state_id) = self.giving_up.take() {
                decision.acked.lost.extend(self.forget(state_id));
            }
            if self.decides() && !self.held.is_empty() {
                let next = self.held.remove(0);
                self.begin(next, nonce, &mut decision);
            } else {
                self.admit_newcomers(nonce, &mut decision);
            }
        }
        decision
    }
}
