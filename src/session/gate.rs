//! The close-once gate: why a session ends, said once, by whoever knows best.
//!
//! Owns: the cause of the end so far, and the count of threads still inside. Threads: any may close; `tx-<peer>` and
//! `rx-<peer>` leave. Locks: its own, a leaf. Blocks on: nothing.
//! Upholds: the connection is closed exactly once; the last thread out, and only it, learns the final cause; a goodbye
//! of the other side outranks our own reason, which outranks an I/O error (a writer's error often comes before the
//! reader sees the goodbye).

use std::io;
use std::sync::Arc;

use crate::error::{CloseReason, DisconnectReason};
use crate::sync::Mutex;
use crate::transport::Closer;

/// The gate of one session with two threads.
#[derive(Debug)]
pub(crate) struct Gate {
    state: Mutex<State>,
    closer: Arc<dyn Closer>,
}

#[derive(Debug)]
struct State {
    cause: Option<DisconnectReason>,
    closed: bool,
    inside: u8,
}

impl Gate {
    /// A gate with `inside` threads inside.
    pub(crate) fn new(closer: Arc<dyn Closer>, inside: u8) -> Self {
        Self { state: Mutex::new(State { cause: None, closed: false, inside }), closer }
    }

    /// Notes a cause; one that ranks lower than the present is ignored, and so is a second one of the same rank.
    pub(crate) fn note(&self, cause: DisconnectReason) {
        let mut state = self.state.lock();
        if state.cause.as_ref().is_none_or(|present| rank(present) < rank(&cause)) {
            state.cause = Some(cause);
        }
    }

    /// Notes a cause and closes the connection: both threads wake.
    pub(crate) fn close(&self, cause: DisconnectReason) {
        self.note(cause);
        let first = !std::mem::replace(&mut self.state.lock().closed, true);
        if first {
            self.closer.close();
        }
    }

    /// A thread is done; the last one gets the final cause, and has closed the connection.
    pub(crate) fn leave(&self) -> Option<DisconnectReason> {
        let mut state = self.state.lock();
        state.inside -= 1;
        if state.inside > 0 {
            return None;
        }
        let first = !std::mem::replace(&mut state.closed, true);
        let cause = state.cause.clone();
        drop(state);
        if first {
            self.closer.close();
        }
        Some(cause.unwrap_or(DisconnectReason::Lost(io::ErrorKind::UnexpectedEof)))
    }

    /// The reason we gave, if we are the ones who end it.
    pub(crate) fn is_ours(&self) -> Option<CloseReason> {
        match self.state.lock().cause {
            Some(DisconnectReason::Local(reason)) => Some(reason),
            _ => None,
        }
    }
}

fn rank(cause: &DisconnectReason) -> u8 {
    match cause {
        DisconnectReason::Lost(_) => 0,
        DisconnectReason::Local(_) => 1,
        DisconnectReason::Remote(_) => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::atomic::{AtomicU32, Ordering};

    #[derive(Debug, Default)]
    struct Closes(AtomicU32);

    impl Closer for Closes {
        fn close(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn the_remotes_goodbye_outranks_our_reason_which_outranks_an_error() {
        let remote = DisconnectReason::Remote(CloseReason::Shutdown);
        let local = DisconnectReason::Local(CloseReason::Requested);
        let lost = DisconnectReason::Lost(io::ErrorKind::BrokenPipe);
        for (causes, expected) in [
            (vec![lost.clone(), local.clone(), remote.clone()], &remote),
            (vec![remote.clone(), local.clone(), lost.clone()], &remote),
            (vec![lost.clone(), local.clone()], &local),
            (vec![local.clone(), DisconnectReason::Local(CloseReason::Idle)], &local),
        ] {
            let closes = Arc::new(Closes::default());
            let gate = Gate::new(closes.clone(), 2);
            causes.into_iter().for_each(|cause| gate.close(cause));
            assert_eq!(gate.leave(), None);
            assert_eq!(gate.leave().as_ref(), Some(expected));
            assert_eq!(closes.0.load(Ordering::SeqCst), 1);
        }
    }
}
