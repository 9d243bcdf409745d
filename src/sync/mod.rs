//! The one import of locks, atomics and channels for the shells that a model checker drives.
//!
//! Owns: nothing. Threads: any. Locks: defines them. Blocks on: nothing itself.
//! Upholds: under `--cfg shuttle` the outbox, the write token, the attach fence and the close gate run on shuttle's
//! scheduler, unchanged; otherwise these are parking_lot, std and crossbeam-channel.

#[cfg(shuttle)]
mod shuttle;

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
