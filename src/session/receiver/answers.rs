//! Answers to our questions: from the reply lane to whoever asked, without a handler and without the inbox.
//!
//! Owns: nothing beyond its borrow of the receiver. Threads: `rx-<peer>` only. Locks: the link lock, the table of
//! questions; one after the other. Blocks on: nothing.
//! Upholds: an answer is over when it is in its asker's channel; it returns its credit then, unless too much waits there.

use std::borrow::Cow;
use std::sync::Arc;

use super::{End, Receiver};
use crate::error::{RejectCause, RequestError};
use crate::link::{Claim, Reassembly};
use crate::metrics::Groups;
use crate::session::requests::{Came, Creditor, is_answer};
use crate::session::responder::{Held, Responder};
use crate::wire::{HEADER, Lane, Prefix, Run, Whole, flags};

impl Receiver<'_> {
    /// Brings a claimed run of answers to whoever asked.
    pub(super) fn take_answers(
        &self,
        run: Run,
        generation: u32,
        claim: Claim,
        (bytes, groups): (&[u8], Groups),
    ) -> Result<(), End> {
        let mut offset = 0;
        let answers = (0..run.frames).map_while(|_| {
            let whole = Whole::at(bytes, offset, run.prefix)?;
            let at = std::mem::replace(&mut offset, whole.end);
            let number = prefix_at(run.flags, bytes, at).correlation.unwrap_or_default();
            Some(Came {
                number,
                kind: whole.header.kind,
                failed: run.flags & flags::FAILED != 0,
                payload: Cow::Borrowed(whole.payload),
                credit: if run.is_numbered() { (whole.end - at) as u64 } else { 0 },
                charge: None,
            })
        });
        let kept = self.answer(run.lane, run.flags, answers, groups);
        if run.is_numbered() {
            let upto = claim.first + u64::from(run.frames);
            let credit = (bytes.len() as u64).saturating_sub(kept);
            self.link.finish_delivery(self.session.conn, generation, run.lane, upto, credit);
        } else {
            self.delivered();
        }
        Ok(())
    }

    /// Brings answers, which came on this lane with these flags, to whoever asked; returns the credit they keep.
    pub(super) fn answer<'a>(
        &self,
        lane: Lane,
        flag_bits: u8,
        answers: impl Iterator<Item = Came<'a>>,
        mut groups: Groups,
    ) -> u64 {
        let creditor = || -> Arc<dyn Creditor> { self.link.clone() };
        let kept = self.link.requests.answered(self.link.id, answers, creditor, |kind, bytes| {
            let class = self.link.class_of_came(lane, flag_bits, kind);
            groups.leave_out(class, bytes as u64);
            self.link.arrival_failed(class, bytes);
        });
        self.handed(&groups);
        kept
    }

    /// A question or an answer that came in pieces was thrown away.
    pub(super) fn refuse_big(&self, lane: Lane, big: &Reassembly, cause: RejectCause) {
        match big.correlation {
            Some(number) if is_answer(lane, big.flags) => {
                self.link.requests.end(number, RequestError::AnswerRefused(cause));
            }
            Some(_) => {
                let link = self.link.clone();
                Responder::new(link, big.kind, Held::nothing(lane), big.correlation, None).refuse(cause);
            }
            None => {}
        }
    }
}

/// What stands in front of the payload of the frame that begins at `offset`: the decoder has seen that it is there.
pub(super) fn prefix_at(flag_bits: u8, bytes: &[u8], offset: usize) -> Prefix {
    Prefix::read(flag_bits, bytes.get(offset + HEADER..).unwrap_or_default()).unwrap_or_default()
}
