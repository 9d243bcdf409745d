//! The raw side of a measurement: opens its connection, finds its best sizes, runs it.
//!
//! Owns: the measuring end of the raw connection. Threads: the measuring thread. Locks: none.
//! Blocks on: the socket, and answers of the other end.
//! Upholds: the baseline runs with the sizes that were fastest here and now, for this size of message.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::checker::Tally;
use crate::control::{Answer, Ask, Partner, unexpected};
use crate::failure::Failure;
use crate::histogram::Histogram;
use crate::raw::{self, Plan};

/// What a write may be: 64 KiB to 1 MiB.
const WRITE_SIZES: [usize; 5] = [64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20];
/// What a read may ask for.
const READ_SIZES: [usize; 3] = [64 << 10, 256 << 10, 1 << 20];
/// How often each choice is tried; its best try counts.
const TRIES: usize = 3;

/// How long a run may last beyond the time it was given.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// One side of a pair in a throughput measurement.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// What the receiver saw.
    pub tally: Tally,
    /// From the first send until the receiver has said that it has the last message, by the sender's clock.
    pub time: Duration,
}

impl Run {
    /// Different messages received per second.
    pub fn rate(&self) -> f64 {
        self.tally.received as f64 / self.time.as_secs_f64()
    }
}

/// A raw connection to the other end.
pub struct Baseline {
    stream: TcpStream,
    /// How to write.
    pub plan: Plan,
    /// How much to read at a time.
    pub read: usize,
}

impl Baseline {
    /// Connects.
    ///
    /// # Errors
    /// The system or the other end said no.
    pub fn open(partner: &mut Partner) -> Result<Self, Failure> {
        let stream = match partner.ask(&Ask::OpenRaw)? {
            Answer::Listening { addr } => raw::connect(addr)?,
            other => return Err(unexpected(&other)),
        };
        expect_ready(partner.answer(PATIENCE)?)?;
        Ok(Self { stream, plan: Plan::Gather(WRITE_SIZES[1]), read: READ_SIZES[1] })
    }

    /// Finds the fastest way to write messages of `size` bytes, then the fastest to read them, each try `slice` long.
    ///
    /// # Errors
    /// As [`Baseline::run`].
    pub fn tune(&mut self, partner: &mut Partner, size: usize, slice: Duration) -> Result<(), Failure> {
        let plans = plans(size);
        let best = self.best_of(plans.len(), partner, size, slice, |side, choice| side.plan = plans[choice])?;
        self.plan = plans[best];
        let best =
            self.best_of(READ_SIZES.len(), partner, size, slice, |side, choice| side.read = READ_SIZES[choice])?;
        self.read = READ_SIZES[best];
        Ok(())
    }

    fn best_of(
        &mut self,
        choices: usize,
        partner: &mut Partner,
        size: usize,
        slice: Duration,
        choose: impl Fn(&mut Self, usize),
    ) -> Result<usize, Failure> {
        let mut best = (0, 0.0);
        for choice in (0..TRIES).flat_map(|_| 0..choices) {
            choose(self, choice);
            let rate = self.run(partner, size, slice)?.rate();
            if rate > best.1 {
                best = (choice, rate);
            }
        }
        Ok(best.0)
    }

    /// Sends messages of `size` bytes for `duration`.
    ///
    /// # Errors
    /// The connection or the other end failed, or TCP delivered something else than was written.
    pub fn run(&mut self, partner: &mut Partner, size: usize, duration: Duration) -> Result<Run, Failure> {
        expect_ready(partner.ask(&Ask::CountRaw { size, read: self.read })?)?;
        let start = Instant::now();
        raw::flood(&mut self.stream, self.plan, size, duration)?;
        let tally = partner.tally(duration + PATIENCE)?;
        let time = start.elapsed();
        if !tally.is_clean() {
            return Err(Failure::new(format!("the raw connection is broken: {tally:?}")));
        }
        Ok(Run { tally, time })
    }

    /// Round trips of `size` bytes for `duration`, one at a time.
    ///
    /// # Errors
    /// The connection or the other end failed.
    pub fn ping(&mut self, partner: &mut Partner, size: usize, duration: Duration) -> Result<Histogram, Failure> {
        expect_ready(partner.ask(&Ask::EchoRaw { size })?)?;
        let times = raw::ping(&mut self.stream, size, duration)?;
        expect_ready(partner.answer(PATIENCE)?)?;
        Ok(times)
    }
}

/// Every way to write messages of `size` bytes: those smaller than a write are gathered, others written as they lie.
fn plans(size: usize) -> Vec<Plan> {
    let (below, above): (Vec<_>, Vec<_>) = WRITE_SIZES.into_iter().partition(|&write| write <= size);
    let vectored = (!below.is_empty()).then_some(Plan::Vectored);
    below.into_iter().map(Plan::InPlace).chain(vectored).chain(above.into_iter().map(Plan::Gather)).collect()
}

/// Takes the answer that means only "go on".
///
/// # Errors
/// It is another.
pub fn expect_ready(answer: Answer) -> Result<(), Failure> {
    match answer {
        Answer::Ready => Ok(()),
        other => Err(unexpected(&other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::receiver;

    const SLICE: Duration = Duration::from_millis(20);

    #[test]
    fn every_plan_and_read_size_delivers_every_message_in_order() {
        let mut partner = Partner::thread(receiver::serve).unwrap();
        let mut side = Baseline::open(&mut partner).unwrap();
        // Frames that fit no buffer evenly, one smaller and one larger than each write and read.
        for size in [8, 9, 16, 64, 1000, 65_533, 65_536, 300_001, 1 << 20, (1 << 20) + 1] {
            for plan in plans(size).into_iter().chain([Plan::Vectored, Plan::InPlace(64 << 10)]) {
                for read in READ_SIZES {
                    (side.plan, side.read) = (plan, read);
                    let run = side.run(&mut partner, size, Duration::from_millis(2)).unwrap();
                    assert!(run.tally.received > 0 && run.tally.is_clean(), "{size} {plan:?} {read} {run:?}");
                }
            }
        }
    }

    #[test]
    fn small_messages_are_gathered_and_big_ones_written_as_they_lie() {
        assert!(plans(64).iter().all(|plan| matches!(plan, Plan::Gather(_))));
        assert_eq!(plans(64).len(), WRITE_SIZES.len());
        assert!(!plans(1 << 20).iter().any(|plan| matches!(plan, Plan::Gather(_))));
        let mixed = plans(64 << 10);
        assert!(mixed.contains(&Plan::InPlace(64 << 10)) && mixed.contains(&Plan::Vectored));
        assert!(mixed.contains(&Plan::Gather(128 << 10)));
    }

    #[test]
    fn tuning_keeps_one_of_the_choices() {
        let mut partner = Partner::thread(receiver::serve).unwrap();
        let mut side = Baseline::open(&mut partner).unwrap();
        side.tune(&mut partner, 64, SLICE / 4).unwrap();
        assert!(plans(64).contains(&side.plan) && READ_SIZES.contains(&side.read));
    }

    #[test]
    fn a_round_trip_brings_the_same_message_back() {
        let mut partner = Partner::thread(receiver::serve).unwrap();
        let mut side = Baseline::open(&mut partner).unwrap();
        for size in [8, 64, 100_000] {
            let times = side.ping(&mut partner, size, SLICE).unwrap();
            assert!(times.len() > 0 && times.micros(0.5) > 0.0);
        }
        assert!(side.run(&mut partner, 64, SLICE).unwrap().tally.is_clean());
    }
}
