//! What became of each message: as the library tells it, in the sender's ledger.
//!
//! Owns: the collector of one destination, and a handle on its ledger. Threads: `outcomes`, one for each destination.
//! Locks: none. Blocks on: batches of outcomes.
//! Upholds: each outcome that is told is one line; what comes back is held against what it was. `churn` uses the same.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use threadwire::{Outcome, OutcomeBatch};

use crate::chaos::ledger::{Ledger, Line, What};
use crate::chaos::payload::{self, Stamp, Stream};
use crate::failure::Failure;

/// How long the last outcomes may take.
pub const SETTLE: Duration = Duration::from_secs(60);

/// The name of a message for a collector: its stream and its number there.
pub fn tag(stamp: Stamp) -> u64 {
    u64::from(stamp.stream.bits()) << 32 | u64::from(stamp.sequence)
}

/// Where the outcomes of one destination come.
pub struct Outcomes {
    /// From the library.
    pub batches: Receiver<OutcomeBatch>,
    /// Closed when nothing is sent any more.
    pub stopped: Receiver<()>,
    /// Where they are written down.
    pub ledger: Ledger,
    /// The sending node and its process.
    pub me: (u8, u16),
    /// The node at the other end.
    pub to: u8,
}

impl Outcomes {
    /// Writes down outcomes until the last one has come, after nothing is sent any more.
    ///
    /// # Errors
    /// The ledger cannot be written, or outcomes do not come.
    pub fn watch(self) -> Result<(), Failure> {
        let Self { batches, stopped, mut ledger, me: (from, life), to } = self;
        take_all(&batches, &stopped, |tag, outcome| {
            let stream = Stream::from_bits((tag >> 32) as u8);
            let stream = stream.ok_or_else(|| Failure::new("an outcome of nothing that was sent"))?;
            ledger.append(&line(Stamp { from, stream, life, sequence: tag as u32 }, to, outcome)?)
        })
    }
}

/// Takes outcomes until the last one has come: `stopped` is closed when nothing is sent any more.
///
/// # Errors
/// `note` failed, or outcomes do not come.
pub fn take_all(
    batches: &Receiver<OutcomeBatch>,
    stopped: &Receiver<()>,
    mut note: impl FnMut(u64, Outcome) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut since = None;
    loop {
        // The channel closes when the collector and the last message for it are gone.
        match batches.recv_timeout(Duration::from_secs(1)) {
            Ok(batch) => batch.into_iter().try_for_each(|(tag, outcome)| note(tag, outcome))?,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {
                if since.is_none() && crate::chaos::sender::is_closed(stopped) {
                    since = Some(Instant::now());
                }
                if since.is_some_and(|since| since.elapsed() > SETTLE) {
                    return Err(Failure::new("the outcome of some messages does not become known"));
                }
            }
        }
    }
}

/// The line of what became of a message, in the ledger of what is sent to this node.
///
/// # Errors
/// This program does not know such an outcome.
pub fn line(sent: Stamp, to: u8, outcome: Outcome) -> Result<Line, Failure> {
    let what = match &outcome {
        Outcome::Acknowledged(_) => What::Acked,
        Outcome::Written(_) => What::Written,
        Outcome::Returned { .. } => What::Returned,
        Outcome::Unknown { .. } => What::Unknown,
        _ => return Err(Failure::new(format!("an outcome this program does not know: {outcome:?}"))),
    };
    let digest = outcome.into_payload().map_or(0, |payload| {
        let found = payload::decode(&payload);
        // Another message's bytes, or damaged ones, are not to look right by chance.
        if found.intact && found.stamp == Some(sent) { found.digest } else { !found.digest }
    });
    Ok(Line { what, stamp: Stamp { from: to, ..sent }, digest })
}
