//! The one import of locks, atomics and channels for the shells that a model checker drives.
//!
//! Owns: nothing. Threads: any. Locks: defines them. Blocks on: nothing itself.
//! Upholds: under `--cfg shuttle` the outbox, the write token, the attach fence and the close gate run on shuttle's
//! scheduler, unchanged; otherwise these are parking_lot, std and crossbeam-channel.

#[cfg(shuttle)]
mod shuttle;

use std::time::{Duration, Instant};

use channel::{Receiver, RecvTimeoutError};

#[cfg(shuttle)]
pub(crate) use self::shuttle::{Condvar, Mutex, MutexGuard, RwLock, channel, either};
#[cfg(shuttle)]
pub(crate) use ::shuttle::sync::atomic;
#[cfg(shuttle)]
pub(crate) use ::shuttle::thread_local;
#[cfg(not(shuttle))]
pub(crate) use crossbeam_channel as channel;
#[cfg(not(shuttle))]
pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
#[cfg(not(shuttle))]
pub(crate) use std::sync::atomic;
#[cfg(not(shuttle))]
pub(crate) use std::thread_local;

/// A year: in place of a time that the clock cannot count.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// So long from now, however long that is.
pub(crate) fn deadline_in(time: Duration) -> Instant {
    deadline_after(Instant::now(), time)
}

/// So long after `from`, however long that is: who waits "for ever" by `Duration::MAX` ends no process.
pub(crate) fn deadline_after(from: Instant, time: Duration) -> Instant {
    from.checked_add(time).unwrap_or_else(|| from + FOREVER)
}

/// Waits as `Receiver::recv_deadline` does, and sleeps at once: that one first yields the processor a few times, and
/// once more when the deadline has passed. Whoever expects nothing spares itself, and thousands like it, most of what a
/// wake-up costs.
///
/// # Errors
/// The deadline passed, or there is no sender any more.
pub(crate) fn recv_asleep<T>(receiver: &Receiver<T>, deadline: Instant) -> Result<T, RecvTimeoutError> {
    #[cfg(shuttle)]
    return receiver.recv_deadline(deadline);
    #[cfg(not(shuttle))]
    {
        let mut select = channel::Select::new_biased();
        select.recv(receiver);
        let ready = select.select_deadline(deadline).map_err(|_| RecvTimeoutError::Timeout)?;
        ready.recv(receiver).map_err(|_| RecvTimeoutError::Disconnected)
    }
}
