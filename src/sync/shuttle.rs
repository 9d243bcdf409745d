//! Locks and channels of parking_lot's and crossbeam-channel's shape on shuttle's scheduler.
//!
//! Owns: nothing. Threads: those of a model check. Locks: defines them.
//! Blocks on: what its callers wait for, never for time.
//! Upholds: no wait for a far deadline ends by it, so that a lost wake-up is a deadlock, which shuttle reports; what is
//! left to the clock elsewhere, a timer about to ring included, is left to the scheduler here.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use ::shuttle::rand::{RngCore, thread_rng};
use ::shuttle::sync as model;

/// What time decides elsewhere, either way.
pub(crate) fn either() -> bool {
    thread_rng().next_u64() & 1 == 0
}

/// Whether a deadline may come while a model check runs: it comes at any time then. Others never come.
fn is_near(deadline: Instant) -> bool {
    deadline.saturating_duration_since(Instant::now()) < Duration::from_secs(60)
}

/// A lock without poison.
#[derive(Default)]
pub(crate) struct Mutex<T>(model::Mutex<T>);

/// A held [`Mutex`].
#[derive(Debug)]
pub(crate) struct MutexGuard<'a, T> {
    /// Absent only inside [`Condvar::wait`].
    held: Option<model::MutexGuard<'a, T>>,
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(model::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard { held: Some(self.0.lock().unwrap_or_else(PoisonError::into_inner)) }
    }

    /// The deadline never comes.
    pub(crate) fn try_lock_until(&self, _: Instant) -> Option<MutexGuard<'_, T>> {
        Some(self.lock())
    }
}

impl<T> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mutex { .. }")
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &self.held {
            Some(held) => held,
            None => unreachable!("a guard is whole whenever its owner can see it"),
        }
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        match &mut self.held {
            Some(held) => held,
            None => unreachable!("a guard is whole whenever its owner can see it"),
        }
    }
}

/// A condition to wait for.
#[derive(Debug, Default)]
pub(crate) struct Condvar(model::Condvar);

/// How a wait with a deadline ended: not by it.
#[derive(Debug)]
pub(crate) struct WaitTimeoutResult;

impl WaitTimeoutResult {
    pub(crate) fn timed_out(&self) -> bool {
        false
    }
}

impl Condvar {
    pub(crate) fn new() -> Self {
        Self(model::Condvar::new())
    }

    pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        if let Some(held) = guard.held.take() {
            guard.held = Some(self.0.wait(held).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// The deadline never comes.
    pub(crate) fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, _: Instant) -> WaitTimeoutResult {
        self.wait(guard);
        WaitTimeoutResult
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// A lock for one writer or several readers, without poison.
#[derive(Default)]
pub(crate) struct RwLock<T>(model::RwLock<T>);

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(model::RwLock::new(value))
    }

    pub(crate) fn read(&self) -> model::RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> model::RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RwLock { .. }")
    }
}

/// Channels for several senders and several receivers.
pub(crate) mod channel {
    use std::collections::VecDeque;
    use std::fmt;
    use std::sync::Arc;
    use std::time::Instant;

    pub(crate) use crossbeam_channel::{RecvTimeoutError, SendError, TryRecvError, TrySendError};

    use super::{Condvar, Mutex, either, is_near};

    struct Channel<T> {
        state: Mutex<State<T>>,
        changed: Condvar,
        capacity: usize,
    }

    struct State<T> {
        queue: VecDeque<T>,
        senders: usize,
        receivers: usize,
    }

    pub(crate) struct Sender<T>(Arc<Channel<T>>);

    pub(crate) struct Receiver<T>(Arc<Channel<T>>);

    pub(crate) fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
        bounded(usize::MAX)
    }

    /// A capacity of 0, a meeting of both sides, is not modelled.
    pub(crate) fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
        assert!(capacity > 0, "a channel without room");
        let state = Mutex::new(State { queue: VecDeque::new(), senders: 1, receivers: 1 });
        let channel = Arc::new(Channel { state, changed: Condvar::new(), capacity });
        (Sender(channel.clone()), Receiver(channel))
    }

    impl<T> Sender<T> {
        pub(crate) fn send(&self, value: T) -> Result<(), SendError<T>> {
            let mut state = self.0.state.lock();
            while state.receivers > 0 && state.queue.len() >= self.0.capacity {
                self.0.changed.wait(&mut state);
            }
            if state.receivers == 0 {
                return Err(SendError(value));
            }
            state.queue.push_back(value);
            drop(state);
            self.0.changed.notify_all();
            Ok(())
        }

        pub(crate) fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
            let mut state = self.0.state.lock();
            if state.receivers == 0 {
                return Err(TrySendError::Disconnected(value));
            }
            if state.queue.len() >= self.0.capacity {
                return Err(TrySendError::Full(value));
            }
            state.queue.push_back(value);
            drop(state);
            self.0.changed.notify_all();
            Ok(())
        }
    }

    impl<T> Receiver<T> {
        pub(crate) fn try_recv(&self) -> Result<T, TryRecvError> {
            let mut state = self.0.state.lock();
            match state.queue.pop_front() {
                Some(value) => {
                    drop(state);
                    self.0.changed.notify_all();
                    Ok(value)
                }
                None if state.senders == 0 => Err(TryRecvError::Disconnected),
                None => Err(TryRecvError::Empty),
            }
        }

        pub(crate) fn is_empty(&self) -> bool {
            self.0.state.lock().queue.is_empty()
        }

        /// A near deadline comes at any time, a far one never.
        pub(crate) fn recv_deadline(&self, deadline: Instant) -> Result<T, RecvTimeoutError> {
            let mut state = self.0.state.lock();
            loop {
                if let Some(value) = state.queue.pop_front() {
                    drop(state);
                    self.0.changed.notify_all();
                    return Ok(value);
                }
                if state.senders == 0 {
                    return Err(RecvTimeoutError::Disconnected);
                }
                if !is_near(deadline) {
                    self.0.changed.wait(&mut state);
                } else if either() {
                    return Err(RecvTimeoutError::Timeout);
                } else {
                    drop(state);
                    ::shuttle::thread::yield_now();
                    state = self.0.state.lock();
                }
            }
        }
    }

    impl<T> Clone for Sender<T> {
        fn clone(&self) -> Self {
            self.0.state.lock().senders += 1;
            Self(self.0.clone())
        }
    }

    impl<T> Drop for Sender<T> {
        fn drop(&mut self) {
            // A check that has failed unwinds, and takes no locks any more.
            if !std::thread::panicking() {
                self.0.state.lock().senders -= 1;
                self.0.changed.notify_all();
            }
        }
    }

    impl<T> Drop for Receiver<T> {
        fn drop(&mut self) {
            if !std::thread::panicking() {
                self.0.state.lock().receivers -= 1;
                self.0.changed.notify_all();
            }
        }
    }

    impl<T> fmt::Debug for Sender<T> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Sender { .. }")
        }
    }

    impl<T> fmt::Debug for Receiver<T> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Receiver { .. }")
        }
    }
}
