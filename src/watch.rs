//! The latest value of something that changes, and word of each change: live configuration, live addresses.
//!
//! Owns: the value. Threads: any. Locks: a leaf of its own, held to exchange a pointer; never while the application's
//! code runs, destructors of values included. Blocks on: nothing but [`Watcher::wait_changed`], on its channel.
//! Upholds: whoever looks after word of a change sees that change or a later one; writers never wait for watchers.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::sync::Mutex;

/// Something that changes: the side that changes it. Clones change the same thing.
///
/// It holds one value, the latest: values that nobody has looked at are replaced, never queued. [`Watch::subscribe`]
/// gives the other side. When the last clone is dropped, watchers keep the value that was last.
///
/// ```
/// use std::time::Duration;
/// use threadwire::{Watch, watch::WatchError};
///
/// let limit = Watch::new(10);
/// let watcher = limit.subscribe();
/// limit.set(20);
/// limit.set(30);
/// assert_eq!(*watcher.wait_changed(Duration::from_secs(1))?, 30); // once for both
/// drop(limit);
/// assert_eq!(watcher.wait_changed(Duration::from_secs(1)), Err(WatchError::Closed));
/// assert_eq!(*watcher.get(), 30);
/// # Ok::<(), WatchError>(())
/// ```
pub struct Watch<T> {
    writers: Arc<Writers<T>>,
}

/// Something that changes, seen by one who wants to know. A clone is told of changes by itself.
pub struct Watcher<T> {
    shared: Arc<Mutex<State<T>>>,
    id: u64,
    changes: Receiver<()>,
}

/// Why a [`Watcher`] waits no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// Nothing has changed within the time that was given.
    #[error("nothing has changed in time")]
    TimedOut,
    /// The last [`Watch`] of it was dropped: nothing will change any more.
    #[error("nothing will change any more")]
    Closed,
}

/// What all clones of a [`Watch`] share; its end tells the watchers.
struct Writers<T>(Arc<Mutex<State<T>>>);

struct State<T> {
    value: Arc<T>,
    /// Rises with each value, from 1, so that a writer sees that another one came first.
    version: u64,
    /// Whom to tell, by number. One waiting word is enough for any number of changes.
    watchers: Vec<(u64, Sender<()>)>,
    last_id: u64,
    closed: bool,
}

impl<T> State<T> {
    /// The value before, which the caller drops without the lock.
    fn replace(&mut self, value: Arc<T>) -> Arc<T> {
        self.version += 1;
        for (_, watcher) in &self.watchers {
            // Full: the watcher has not looked yet, and will see this value too.
            let _ = watcher.try_send(());
        }
        std::mem::replace(&mut self.value, value)
    }
}

impl<T> Watch<T> {
    /// Something whose value is `value` now.
    pub fn new(value: T) -> Self {
        let state = State { value: Arc::new(value), version: 1, watchers: Vec::new(), last_id: 0, closed: false };
        Self { writers: Arc::new(Writers(Arc::new(Mutex::new(state)))) }
    }

    /// The value now.
    pub fn get(&self) -> Arc<T> {
        self.writers.0.lock().value.clone()
    }

    /// Replaces the value, and tells all watchers, also if it is the same value. Returns the one before.
    pub fn set(&self, value: T) -> Arc<T> {
        let value = Arc::new(value);
        self.writers.0.lock().replace(value)
    }

    /// Changes a copy of the value, puts it in its place, and tells all watchers. Watchers never see half a change.
    ///
    /// `change` runs without any lock. If another writer comes first meanwhile, it runs again on what that one has left:
    /// no change is lost.
    pub fn update(&self, mut change: impl FnMut(&mut T))
    where
        T: Clone,
    {
        loop {
            let (before, version) = {
                let state = self.writers.0.lock();
                (state.value.clone(), state.version)
            };
            let mut value = T::clone(&before);
            change(&mut value);
            let value = Arc::new(value);
            let mut state = self.writers.0.lock();
            if state.version == version {
                let replaced = state.replace(value);
                drop(state);
                drop(replaced);
                return;
            }
        }
    }

    /// A watcher, to whom the present value is nothing new: it is told of changes from now on.
    pub fn subscribe(&self) -> Watcher<T> {
        Watcher::new(self.writers.0.clone())
    }
}

impl<T> Drop for Writers<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.closed = true;
        let watchers = std::mem::take(&mut state.watchers);
        drop(state);
        drop(watchers);
    }
}

impl<T> Watcher<T> {
    fn new(shared: Arc<Mutex<State<T>>>) -> Self {
        let (watcher, changes) = bounded(1);
        let mut state = shared.lock();
        state.last_id += 1;
        let id = state.last_id;
        if !state.closed {
            state.watchers.push((id, watcher));
        }
        drop(state);
        Self { shared, id, changes }
    }

    /// The value now. It takes no word of a change away: looking twice does no harm, a change missed would.
    pub fn get(&self) -> Arc<T> {
        self.shared.lock().value.clone()
    }

    /// The value now, and its number, which rises with each value from 1.
    pub(crate) fn numbered(&self) -> (u64, Arc<T>) {
        let state = self.shared.lock();
        (state.version, state.value.clone())
    }

    /// Word of changes, for a `select!` loop: one message after one or many changes; then look ([`Watcher::get`]). It is
    /// disconnected when nothing will change any more: put `crossbeam_channel::never()` in its place then, for a
    /// disconnected channel is always ready.
    ///
    /// A clone of this channel takes words away from this watcher; clone the watcher instead.
    pub fn changes(&self) -> &Receiver<()> {
        &self.changes
    }

    /// Whether something has changed since it was last asked, or waited for.
    pub fn has_changed(&self) -> bool {
        self.changes.try_recv().is_ok()
    }

    /// Waits for a change, and gives the value after it: at once, if there was one since the watcher was made, asked or
    /// waited last.
    ///
    /// # Errors
    /// [`WatchError::TimedOut`]; [`WatchError::Closed`]: there is nothing to wait for any more.
    ///
    /// # Blocking
    /// Up to `timeout`.
    pub fn wait_changed(&self, timeout: Duration) -> Result<Arc<T>, WatchError> {
        let heard = match Instant::now().checked_add(timeout) {
            Some(deadline) => self.changes.recv_deadline(deadline),
            None => self.changes.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match heard {
            Ok(()) => Ok(self.get()),
            Err(RecvTimeoutError::Timeout) => Err(WatchError::TimedOut),
            Err(RecvTimeoutError::Disconnected) => Err(WatchError::Closed),
        }
    }
}

impl<T> Drop for Watcher<T> {
    fn drop(&mut self) {
        self.shared.lock().watchers.retain(|(id, _)| *id != self.id);
    }
}

impl<T> Clone for Watch<T> {
    fn clone(&self) -> Self {
        Self { writers: self.writers.clone() }
    }
}

impl<T> Clone for Watcher<T> {
    /// Another watcher of the same: it is told of changes from now on.
    fn clone(&self) -> Self {
        Self::new(self.shared.clone())
    }
}

impl<T: Default> Default for Watch<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> From<&Watch<T>> for Watcher<T> {
    fn from(watch: &Watch<T>) -> Self {
        watch.subscribe()
    }
}

impl<T> From<Watch<T>> for Watcher<T> {
    /// A watcher of what changes no more, unless there are clones.
    fn from(watch: Watch<T>) -> Self {
        watch.subscribe()
    }
}

impl<T: fmt::Debug> fmt::Debug for Watch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watch").field(&self.get()).finish()
    }
}

impl<T: fmt::Debug> fmt::Debug for Watcher<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watcher").field(&self.get()).finish()
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crossbeam_channel::select;
    use std::thread;

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn a_watcher_sees_the_latest_value_and_hears_once_of_many_changes() {
        let watch = Watch::new(1);
        let watcher = watch.subscribe();
        assert!(!watcher.has_changed(), "what was there before is nothing new");
        assert_eq!((*watch.set(2), *watch.set(3)), (1, 2));
        assert_eq!(watcher.wait_changed(Duration::ZERO).as_deref(), Ok(&3));
        assert_eq!(watcher.wait_changed(Duration::ZERO), Err(WatchError::TimedOut));
        assert_eq!((*watcher.get(), *watch.get()), (3, 3));
    }

    #[test]
    fn each_watcher_hears_by_itself_and_one_that_is_gone_is_forgotten() {
        let watch = Watch::new(0);
        let one = watch.subscribe();
        watch.set(1);
        let other = one.clone();
        assert!(!other.has_changed(), "the change was before it");
        watch.set(2);
        assert!(one.has_changed() && other.has_changed());
        assert!(!one.has_changed() && !other.has_changed());
        drop((one, other));
        watch.set(3);
        assert!(watch.writers.0.lock().watchers.is_empty());
    }

    #[test]
    fn when_nobody_can_change_it_any_more_watchers_hear_of_the_last_change_and_then_of_the_end() {
        let watch = Watch::new(0);
        let (watcher, writer) = (watch.subscribe(), watch.clone());
        drop(watch);
        assert_eq!(watcher.wait_changed(Duration::ZERO), Err(WatchError::TimedOut), "there is one who can");
        writer.set(1);
        drop(writer);
        assert_eq!(watcher.wait_changed(LONG).as_deref(), Ok(&1));
        assert_eq!(watcher.wait_changed(LONG), Err(WatchError::Closed));
        assert_eq!(watcher.clone().wait_changed(LONG), Err(WatchError::Closed), "so does one that comes later");
        assert_eq!(*watcher.clone().get(), 1);
    }

    #[test]
    fn a_thread_that_waits_is_woken_by_a_change_in_its_own_loop() {
        let watch = Watch::new(0);
        let watcher = watch.subscribe();
        let (seen, heard) = bounded(1);
        let (stop, stopped) = bounded::<()>(0);
        thread::scope(|scope| {
            scope.spawn(move || {
                loop {
                    select! {
                        recv(watcher.changes()) -> word => {
                            assert!(word.is_ok());
                            seen.send(*watcher.get()).unwrap();
                        }
                        recv(stopped) -> _ => return,
                    }
                }
            });
            for value in 1..=100 {
                watch.set(value);
                assert_eq!(heard.recv_timeout(LONG), Ok(value));
            }
            drop(stop);
        });
    }

    #[test]
    fn no_update_is_lost_among_writers_and_no_watcher_sees_half_of_one() {
        const EACH: u32 = 500;
        let watch = Watch::new((0, 0));
        let watcher = watch.subscribe();
        thread::scope(|scope| {
            for _ in 0..4 {
                let watch = watch.clone();
                scope.spawn(move || {
                    for _ in 0..EACH {
                        watch.update(|(one, other)| {
                            *one += 1;
                            *other += 1;
                        });
                    }
                });
            }
            drop(watch);
            while let Ok(value) = watcher.wait_changed(LONG) {
                assert_eq!(value.0, value.1);
            }
        });
        assert_eq!(*watcher.get(), (4 * EACH, 4 * EACH));
    }

    #[test]
    fn a_value_may_use_its_own_watch_as_it_is_dropped() {
        struct Nosy(Option<Watch<Option<Nosy>>>);
        impl Drop for Nosy {
            fn drop(&mut self) {
                self.0.take().map(|watch| watch.get().is_none());
            }
        }
        let watch = Watch::new(None);
        watch.set(Some(Nosy(Some(watch.clone()))));
        watch.set(None);
    }
}
