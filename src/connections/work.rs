//! The CPU steps of handshakes (the arithmetic of TLS, signatures, the application's policy), away from the acceptor's
//! poll.
//!
//! Owns: nothing; a step that waits is its connection's. Threads: `work-n`. Locks: a step's, a leaf, to take it out.
//! Blocks on: its job channel (ends when the acceptor is gone), and whatever the application's policy blocks on.
//! Upholds: every step of a connection that is still there is answered, so that none waits for a lost one; nothing is
//! done for a connection that is gone.

use std::sync::{Arc, Weak};

use crossbeam_channel::Receiver;

use crate::connections::shared::{Command, Commands, Work};
use crate::ident::ConnectionId;
use crate::metrics::Metrics;
use crate::sync::Mutex;

/// A step that waits for a worker. Whoever drops it has taken it back: what strangers leave behind costs no arithmetic,
/// and next to no memory.
#[derive(Debug)]
pub(crate) struct Waiting(Mutex<Option<Work>>);

/// Which connection's step is to be done, if it still wants it.
pub(crate) type Job = (ConnectionId, Weak<Waiting>);

impl Waiting {
    /// A step, and the job that does it.
    pub(crate) fn new(conn: ConnectionId, work: Work) -> (Arc<Self>, Job) {
        let waiting = Arc::new(Self(Mutex::new(Some(work))));
        let job = (conn, Arc::downgrade(&waiting));
        (waiting, job)
    }
}

/// Runs jobs until there is nobody left to ask for them.
pub(crate) fn work_loop(jobs: &Receiver<Job>, commands: &Commands, metrics: &Metrics) {
    while let Ok((conn, waiting)) = jobs.recv() {
        // The guard is gone before the step is begun.
        let work = waiting.upgrade().and_then(|waiting| waiting.0.lock().take());
        match work {
            Some(work) => commands.send(Command::Worked(conn, work.run())),
            None => metrics.steps_skipped.add(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use crossbeam_channel::unbounded;

    use super::*;
    use crate::connections::acceptor;
    use crate::connections::shared::WorkDone;
    use crate::transport;

    #[test]
    fn what_a_connection_has_taken_back_is_not_done_and_is_counted() {
        let poll = mio::Poll::new().unwrap();
        let (sender, receiver) = unbounded();
        let commands = Commands::new(sender, acceptor::waker(&poll).unwrap());
        let (jobs, work) = unbounded();
        let done = Arc::new(AtomicUsize::new(0));
        let mut waiting: Vec<_> = (0..100)
            .map(|n| {
                let done = done.clone();
                let step = transport::Work::new(move || {
                    done.fetch_add(1, Ordering::Relaxed);
                    n
                });
                let (waiting, job) = Waiting::new(ConnectionId(n), Work::Secure(step));
                jobs.send(job).unwrap();
                waiting
            })
            .collect();
        let mut n = 0;
        waiting.retain(|_| {
            n += 1;
            n % 10 == 1
        });
        drop(jobs);
        let metrics = Metrics::default();
        work_loop(&work, &commands, &metrics);
        assert_eq!((done.load(Ordering::Relaxed), metrics.steps_skipped.value()), (10, 90));
        let results: Vec<_> = receiver
            .try_iter()
            .map(|command| match command {
                Command::Worked(conn, WorkDone::Secure(done)) => (conn.0, done.into::<u64>().unwrap()),
                _ => panic!("another command"),
            })
            .collect();
        assert_eq!(results, (0..10).map(|n| (n * 10, n * 10)).collect::<Vec<_>>());
    }
}
