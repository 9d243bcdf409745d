//! The counts of a direct sender, for whoever gave it a place for them.
//!
//! Owns: a share of what it counts while it runs, and what it had counted afterwards. Threads: any. Locks: its own, held
//! to exchange a pointer. Blocks on: nothing; a snapshot takes what [`Node::metrics`](crate::Node::metrics) takes.
//! Upholds: counts do not go away with the sender.

use std::fmt;
use std::sync::Arc;

use crate::connections::Shared;
use crate::engine;
use crate::metrics::MetricsSnapshot;
use crate::sync::Mutex;

/// A place for the counts of a [`DirectSender`](super::DirectSender), to be read at any time: before it starts they are
/// zero, after its end they stay. Clones are the same place; it belongs to the sender that started last.
#[derive(Clone, Default)]
pub struct NetMetrics {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
enum State {
    #[default]
    Idle,
    Runs(Arc<Shared>),
    Ended(Box<MetricsSnapshot>),
}

impl NetMetrics {
    /// An empty place.
    pub fn new() -> Self {
        Self::default()
    }

    /// The counts now.
    pub fn snapshot(&self) -> MetricsSnapshot {
        let runs = match &*self.state.lock() {
            State::Idle => return MetricsSnapshot::default(),
            State::Ended(last) => return (**last).clone(),
            State::Runs(shared) => shared.clone(),
        };
        engine::snapshot(&runs)
    }

    /// These are counted from now on.
    pub(super) fn begin(&self, shared: &Arc<Shared>) {
        let before = std::mem::replace(&mut *self.state.lock(), State::Runs(shared.clone()));
        drop(before);
    }

    /// The sender has ended: what it counted stays, and nothing else of it.
    pub(super) fn end(&self, shared: &Arc<Shared>) {
        let last = State::Ended(Box::new(engine::snapshot(shared)));
        let mut state = self.state.lock();
        if matches!(&*state, State::Runs(runs) if Arc::ptr_eq(runs, shared)) {
            let before = std::mem::replace(&mut *state, last);
            drop(state);
            drop(before);
        }
    }
}

impl fmt::Debug for NetMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &*self.state.lock() {
            State::Idle => "NetMetrics(idle)",
            State::Runs(_) => "NetMetrics(runs)",
            State::Ended(_) => "NetMetrics(ended)",
        })
    }
}
