//! Whether the process at the other end of a session lives, and telling it that ours does.
//!
//! Owns: a question to be asked, an answer owed, the last answer heard, whether the peer said that it is busy.
//! Threads: `acceptor` asks, `rx-<peer>` hears, `tx-<peer>` writes, `supervisor` has the peer told that we are busy.
//! Locks: none. Blocks on: nothing.
//! Upholds: only an answer to the question that was asked counts as one: what lies in buffers is no sign of life; a peer
//! that asks without end is answered once per turn of the sender thread.

use crate::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use crate::wire::{flags, put_alive};

/// Questions and answers of one session. Zero is no question.
#[derive(Debug, Default)]
pub(crate) struct Presence {
    /// There is something for the sender thread to write.
    due: AtomicBool,
    to_ask: AtomicU16,
    to_answer: AtomicU16,
    answered: AtomicU16,
    /// A handler of ours has been running for a while.
    busy: AtomicBool,
    /// What the peer said of its own.
    peer_busy: AtomicBool,
}

impl Presence {
    /// Have the peer asked; then wake the sender thread.
    pub(super) fn ask(&self, question: u16) {
        self.to_ask.store(question, Ordering::Relaxed);
        self.due.store(true, Ordering::Release);
    }

    /// Have the peer told whether we are busy; then wake the sender thread.
    pub(super) fn tell(&self, busy: bool) {
        self.busy.store(busy, Ordering::Relaxed);
        self.due.store(true, Ordering::Release);
    }

    /// An ALIVE came. True if it is to be answered: wake the sender thread.
    pub(super) fn heard(&self, flags: u8, question: u16, busy: bool) -> bool {
        self.heard_busy(busy);
        let asked = flags & flags::ASK != 0;
        if asked {
            self.to_answer.store(question, Ordering::Relaxed);
            self.due.store(true, Ordering::Release);
        } else {
            self.answered.store(question, Ordering::Relaxed);
        }
        asked
    }

    /// The peer says whether a handler of it is running.
    pub(super) fn heard_busy(&self, busy: bool) {
        self.peer_busy.store(busy, Ordering::Relaxed);
    }

    /// The sender thread writes these frames; most often there are none.
    #[inline]
    pub(super) fn take_frames(&self) -> Option<Vec<u8>> {
        if !self.due.load(Ordering::Relaxed) || !self.due.swap(false, Ordering::Acquire) {
            return None;
        }
        let (mut frames, busy) = (Vec::new(), self.busy.load(Ordering::Relaxed));
        for (number, flag) in [(&self.to_ask, flags::ASK), (&self.to_answer, 0)] {
            let number = number.swap(0, Ordering::Relaxed);
            if number != 0 {
                put_alive(&mut frames, busy, flag, number);
            }
        }
        if frames.is_empty() {
            put_alive(&mut frames, busy, 0, 0);
        }
        Some(frames)
    }

    /// Whether the peer has answered this question.
    pub(super) fn has_answered(&self, question: u16) -> bool {
        self.answered.load(Ordering::Relaxed) == question
    }

    /// Whether a handler of the peer was running when we last heard of it: it may be late to answer.
    pub(super) fn peer_is_busy(&self) -> bool {
        self.peer_busy.load(Ordering::Relaxed)
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::wire::{Decoder, MAX_BODY};

    #[test]
    fn a_question_is_answered_once_by_its_number_and_an_older_answer_is_none() {
        let (asker, asked) = (Presence::default(), Presence::default());
        assert_eq!(asker.take_frames(), None);
        asker.ask(7);
        asked.tell(true);
        let carry = |from: &Presence, to: &Presence| {
            let mut decoder = Decoder::new(MAX_BODY);
            decoder.feed(&from.take_frames().unwrap());
            let frame = decoder.next_frame().unwrap().unwrap();
            to.heard(frame.header.flags, frame.header.kind, frame.body == [1])
        };
        assert!(carry(&asker, &asked));
        assert!(!carry(&asked, &asker));
        assert!(asker.has_answered(7) && !asker.has_answered(8) && asker.peer_is_busy());
        assert_eq!((asker.take_frames(), asked.take_frames()), (None, None));
        // One that nobody asked for answers nothing.
        asked.tell(false);
        assert!(!carry(&asked, &asker));
        assert!(!asker.has_answered(8) && !asker.peer_is_busy());
    }
}
