//! Single messages out of batches, for applications that receive by themselves.
//!
//! Owns: the receiving end of the channel of batches, and the batch that is being taken from. Threads: the
//! application's. Locks: its own, held while a caller waits for the next batch: callers take turns.
//! Blocks on: the channel, with the caller's deadline; woken by a batch or by the end of the node.
//! Upholds: a message counts as handed over when it is taken, one by one.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select_biased};

use crate::error::RecvError;
use crate::session::{Batch, Message};
use crate::sync::{Mutex, deadline_in};

/// The receiving side of a node without a handler.
pub(crate) struct Inlet {
    batches: Receiver<Batch>,
    current: Mutex<Option<Batch>>,
    /// Disconnects when the node has shut down.
    open: Mutex<Option<Sender<()>>>,
    ended: Receiver<()>,
}

impl Inlet {
    pub(super) fn new(batches: Receiver<Batch>) -> Self {
        let (open, ended) = bounded(0);
        Self { batches, current: Mutex::new(None), open: Mutex::new(Some(open)), ended }
    }

    /// The channel itself.
    pub(crate) fn batches(&self) -> Receiver<Batch> {
        self.batches.clone()
    }

    /// Wakes whoever waits, for good: the node has shut down. What came before can still be received.
    pub(super) fn end(&self) {
        self.open.lock().take();
    }

    /// The next message.
    pub(crate) fn recv(&self, deadline: Option<Instant>) -> Result<Message<'static>, RecvError> {
        let deadline = deadline.unwrap_or_else(|| deadline_in(Duration::MAX));
        let Some(mut current) = self.current.try_lock_until(deadline) else { return Err(RecvError::TimedOut) };
        loop {
            if let Some(message) = current.as_mut().and_then(Iterator::next) {
                return Ok(message);
            }
            // Over: dropping it lets its peer's next batch come.
            *current = None;
            *current = Some(self.next_batch(deadline)?.per_message());
        }
    }

    fn next_batch(&self, deadline: Instant) -> Result<Batch, RecvError> {
        match self.batches.try_recv() {
            Ok(batch) => return Ok(batch),
            Err(_) if Instant::now() >= deadline => return Err(RecvError::TimedOut),
            Err(_) => {}
        }
        select_biased! {
            recv(self.batches) -> batch => batch.map_err(|_| RecvError::ShutDown),
            recv(self.ended) -> _ => Err(RecvError::ShutDown),
            recv(crossbeam_channel::at(deadline)) -> _ => match self.batches.recv_timeout(Duration::ZERO) {
                Ok(batch) => Ok(batch),
                Err(RecvTimeoutError::Timeout) => Err(RecvError::TimedOut),
                Err(RecvTimeoutError::Disconnected) => Err(RecvError::ShutDown),
            },
        }
    }
}
