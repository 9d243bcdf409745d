//! One connection of a scraper: a request, an answer, a parting. Pure: bytes and time are given to it.
//!
//! Owns: what came of the request, or what is left of the answer. Threads: `metrics` only. Locks: none.
//! Blocks on: nothing.
//! Upholds: each stage ends by a deadline that no byte puts off; a connection is counted once, under how it ended; what
//! was answered is not destroyed by closing over bytes that nobody has read.

use std::time::{Duration, Instant};

use crate::exposition::http::{self, Asked, HEAD_BYTES};
use crate::metrics::ScrapeFailure;

/// For a whole request.
pub(super) const REQUEST: Duration = Duration::from_secs(2);
/// For a whole answer.
pub(super) const ANSWER: Duration = Duration::from_secs(5);
/// For the other side to close after the answer.
pub(super) const PARTING: Duration = Duration::from_secs(1);
/// What is read and thrown away meanwhile.
const PARTING_BYTES: usize = 64 * 1024;

/// A connection.
#[derive(Debug)]
pub(super) struct Exchange {
    stage: Stage,
    deadline: Instant,
    outcome: Option<Outcome>,
    /// Whether the outcome is decided.
    decided: bool,
}

#[derive(Debug)]
enum Stage {
    /// The request is coming.
    Asking(Vec<u8>),
    /// It is there; the metrics are to be given.
    Asked {
        body: bool,
    },
    /// The answer is going.
    Answering {
        answer: Vec<u8>,
        gone: usize,
    },
    /// All of it has gone; the other side closes.
    Parting {
        bytes: usize,
    },
    Over,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The metrics were given.
    Answered,
    Failed(ScrapeFailure),
}

/// What is to be done next with the connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn<'a> {
    /// Read, and say what came by [`Exchange::came`].
    Read,
    /// Give the text by [`Exchange::give`].
    Text,
    /// Write, and say how much went by [`Exchange::went`].
    Write(&'a [u8]),
    /// Close it.
    Close,
}

impl Exchange {
    /// A connection that was accepted at `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self { stage: Stage::Asking(Vec::new()), deadline: now + REQUEST, outcome: None, decided: false }
    }

    /// When [`Exchange::late`] is to be called.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether it has been answered, and only the other side's end is awaited.
    pub(super) fn is_parting(&self) -> bool {
        matches!(self.stage, Stage::Parting { .. })
    }

    /// Whether it has not asked yet.
    pub(super) fn is_asking(&self) -> bool {
        matches!(self.stage, Stage::Asking(_))
    }

    /// What is next.
    pub(super) fn turn(&self) -> Turn<'_> {
        match &self.stage {
            Stage::Asking(_) | Stage::Parting { .. } => Turn::Read,
            Stage::Asked { .. } => Turn::Text,
            Stage::Answering { answer, gone } => Turn::Write(answer.get(*gone..).unwrap_or_default()),
            Stage::Over => Turn::Close,
        }
    }

    /// How it ended, once.
    pub(super) fn take_outcome(&mut self) -> Option<Outcome> {
        self.outcome.take()
    }

    /// These bytes came; none: the other side says no more.
    pub(super) fn came(&mut self, bytes: &[u8], now: Instant) {
        match &mut self.stage {
            Stage::Asking(_) if bytes.is_empty() => self.end(ScrapeFailure::Lost),
            Stage::Asking(request) => {
                // One byte beyond the bound (and an empty line before) tells that it is too long.
                let room = (HEAD_BYTES + 8).saturating_sub(request.len());
                request.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
                match http::judge(request) {
                    None => {}
                    Some(Asked::Metrics { body }) => self.stage = Stage::Asked { body },
                    Some(Asked::Wrong { wrong, body }) => {
                        self.decide(Outcome::Failed(wrong.cause()));
                        self.answer(http::refusal(wrong, body), now);
                    }
                }
            }
            Stage::Parting { bytes: read } => {
                *read += bytes.len();
                if bytes.is_empty() || *read > PARTING_BYTES {
                    self.stage = Stage::Over;
                }
            }
            Stage::Asked { .. } | Stage::Answering { .. } | Stage::Over => {}
        }
    }

    /// The metrics that were asked for.
    pub(super) fn give(&mut self, text: &str, now: Instant) {
        if let Stage::Asked { body } = self.stage {
            self.answer(http::metrics(text, body), now);
        }
    }

    /// So many bytes of the answer went. True: that was the last, and the other side is to be told.
    pub(super) fn went(&mut self, bytes: usize, now: Instant) -> bool {
        let Stage::Answering { answer, gone } = &mut self.stage else { return false };
        *gone += bytes;
        if *gone < answer.len() {
            return false;
        }
        self.decide(Outcome::Answered);
        self.stage = Stage::Parting { bytes: 0 };
        self.deadline = now + PARTING;
        true
    }

    /// The deadline has passed.
    pub(super) fn late(&mut self) {
        self.end(match self.stage {
            Stage::Asking(_) => ScrapeFailure::SlowRequest,
            _ => ScrapeFailure::SlowReader,
        });
    }

    /// It ends here, and if nothing is decided yet, for this cause.
    pub(super) fn end(&mut self, cause: ScrapeFailure) {
        self.decide(Outcome::Failed(cause));
        self.stage = Stage::Over;
    }

    fn answer(&mut self, answer: Vec<u8>, now: Instant) {
        self.stage = Stage::Answering { answer, gone: 0 };
        self.deadline = now + ANSWER;
    }

    fn decide(&mut self, outcome: Outcome) {
        if !self.decided {
            (self.decided, self.outcome) = (true, Some(outcome));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUESTED: &[u8] = b"GET /metrics HTTP/1.0\r\n\r\n";
    const MS: Duration = Duration::from_millis(1);

    fn written(exchange: &Exchange) -> String {
        let Turn::Write(bytes) = exchange.turn() else { panic!("{exchange:?}") };
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    /// Whether it is to be closed, and how it ended.
    fn closing(exchange: &mut Exchange) -> (bool, Option<Outcome>) {
        (exchange.turn() == Turn::Close, exchange.take_outcome())
    }

    #[test]
    fn the_metrics_are_given_counted_and_the_other_side_closes() {
        let now = Instant::now();
        let mut exchange = Exchange::new(now);
        exchange.came(&REQUESTED[..10], now);
        assert_eq!(exchange.turn(), Turn::Read);
        exchange.came(&REQUESTED[10..], now);
        assert_eq!(exchange.turn(), Turn::Text);
        exchange.give("a 1\n# EOF\n", now + MS);
        assert_eq!(exchange.deadline(), now + MS + ANSWER);
        let answer = written(&exchange);
        assert!(answer.ends_with("\r\n\r\na 1\n# EOF\n"));
        assert!(!exchange.went(answer.len() - 1, now));
        assert_eq!(written(&exchange), "\n");
        assert_eq!(exchange.take_outcome(), None, "it is not over");
        assert!(exchange.went(1, now));
        assert_eq!((exchange.take_outcome(), exchange.deadline()), (Some(Outcome::Answered), now + PARTING));
        exchange.came(b"more", now);
        assert_eq!(exchange.turn(), Turn::Read);
        exchange.came(b"", now);
        assert_eq!(closing(&mut exchange), (true, None));
    }

    #[test]
    fn bytes_do_not_put_a_deadline_off() {
        let now = Instant::now();
        let mut exchange = Exchange::new(now);
        for n in 0..100 {
            exchange.came(b"x", now + MS * n * 10);
            assert_eq!(exchange.deadline(), now + REQUEST);
        }
        exchange.late();
        let slow = Some(Outcome::Failed(ScrapeFailure::SlowRequest));
        assert_eq!(closing(&mut exchange), (true, slow));

        let mut exchange = Exchange::new(now);
        exchange.came(REQUESTED, now);
        exchange.give("text", now);
        assert!(!exchange.went(1, now + MS * 4_999));
        assert_eq!(exchange.deadline(), now + ANSWER);
        exchange.late();
        let slow = Some(Outcome::Failed(ScrapeFailure::SlowReader));
        assert_eq!(closing(&mut exchange), (true, slow));
    }

    #[test]
    fn what_is_refused_is_counted_once_and_told() {
        let now = Instant::now();
        let mut exchange = Exchange::new(now);
        exchange.came(&vec![b'x'; 1 << 20], now);
        assert_eq!(exchange.take_outcome(), Some(Outcome::Failed(ScrapeFailure::TooLarge)));
        let answer = written(&exchange);
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
        assert!(exchange.went(answer.len(), now));
        // It is let go on for a while, or closing would destroy the answer; not for ever.
        let mut read = 0;
        while exchange.turn() == Turn::Read {
            exchange.came(&[b'x'; 4096], now);
            read += 4096;
        }
        assert!(read <= PARTING_BYTES + 4096);
        assert_eq!(closing(&mut exchange), (true, None), "counted already");
    }

    #[test]
    fn who_goes_away_before_the_answer_is_lost_and_after_it_is_not() {
        let now = Instant::now();
        let lost = Some(Outcome::Failed(ScrapeFailure::Lost));
        let mut exchange = Exchange::new(now);
        exchange.came(b"GET", now);
        exchange.came(b"", now);
        assert_eq!(closing(&mut exchange), (true, lost));
        let mut exchange = Exchange::new(now);
        exchange.came(REQUESTED, now);
        exchange.give("text", now);
        exchange.end(ScrapeFailure::Lost);
        assert_eq!(closing(&mut exchange), (true, lost));
        let mut exchange = Exchange::new(now);
        exchange.came(REQUESTED, now);
        exchange.give("text", now);
        let len = written(&exchange).len();
        exchange.went(len, now);
        exchange.late();
        assert_eq!(closing(&mut exchange), (true, Some(Outcome::Answered)));
    }
}
