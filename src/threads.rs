//! The only place that starts threads: role-first names, small stacks, an end that can be waited for.
//!
//! Owns: nothing; a [`Thread`] belongs to whoever spawned it.
//! Threads: starts all of them. Locks: none.
//! Blocks on: [`Thread::join_until`] waits for one thread's end, never longer than its deadline.
//! Upholds: a failed spawn is an error to count, never a panic; no join is without a deadline.

use std::io;
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{Receiver, bounded};

/// Linux keeps this many bytes of a thread's name.
const NAME_BYTES: usize = 15;
/// The stack and its guard, the signal stack and its guard.
const MAPS_PER_THREAD: usize = 4;

/// A thread of ours, and the means to wait for its end.
#[derive(Debug)]
pub struct Thread {
    name: String,
    handle: JoinHandle<()>,
    /// Disconnects when the thread's closure has returned or unwound.
    ended: Receiver<()>,
}

/// Starts a thread named `role-id` (cut to 15 bytes) with a stack of `stack` bytes.
///
/// # Errors
/// The system refused a thread (memory, thread limit): count it and refuse the work it was for.
pub fn spawn(role: &str, id: &str, stack: usize, body: impl FnOnce() + Send + 'static) -> io::Result<Thread> {
    let mut name = if id.is_empty() { role.to_owned() } else { format!("{role}-{id}") };
    let mut keep = name.len().min(NAME_BYTES);
    while !name.is_char_boundary(keep) {
        keep -= 1;
    }
    name.truncate(keep);
    let (alive, ended) = bounded::<()>(0);
    #[expect(clippy::disallowed_methods, reason = "the one place that starts threads")]
    let handle = std::thread::Builder::new().name(name.clone()).stack_size(stack).spawn(move || {
        let _ended_when_dropped = alive;
        body();
    })?;
    Ok(Thread { name, handle, ended })
}

/// How many threads this process may have without coming near the end of its memory maps, where the system says so.
///
/// A thread takes four maps, and at the system's limit of maps a process does not get an error: it is ended. A quarter
/// of the maps is left to everything else.
pub fn most() -> Option<usize> {
    let maps = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok()?;
    Some(most_with(maps.trim().parse().ok()?))
}

fn most_with(maps: usize) -> usize {
    maps / (4 * MAPS_PER_THREAD) * 3
}

impl Thread {
    /// The name the system shows.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Disconnects when it has ended: for whoever waits without it.
    pub fn ended(&self) -> Receiver<()> {
        self.ended.clone()
    }

    /// Waits for the thread's end, until `deadline` at the latest.
    ///
    /// # Errors
    /// Gives the thread back when it still runs at the deadline, so that a report can name it.
    ///
    /// # Blocking
    /// Until the thread has ended or the deadline has passed.
    pub fn join_until(self, deadline: Instant) -> Result<(), Thread> {
        use crossbeam_channel::RecvTimeoutError;
        match self.ended.recv_deadline(deadline) {
            Err(RecvTimeoutError::Timeout) => Err(self),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {
                // The closure is over; what is left of the thread ends without waiting for anything of ours.
                // A panic was already reported by the hook and by the thread's own owner.
                let _ = self.handle.join();
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn names_are_cut_to_what_linux_keeps() {
        let thread = spawn("rx", "0123456789abcdef", 64 * 1024, || {}).unwrap();
        assert_eq!(thread.name(), "rx-0123456789ab");
        assert!(thread.join_until(Instant::now() + Duration::from_secs(20)).is_ok());
    }

    #[test]
    fn three_quarters_of_the_systems_memory_maps_are_for_threads() {
        assert_eq!(most_with(65_530), 12_285);
        assert_eq!(most_with(0), 0);
        assert_eq!(most_with(usize::MAX), usize::MAX / 16 * 3);
        #[cfg(target_os = "linux")]
        assert!(most().is_some_and(|most| most > 0));
    }

    #[test]
    fn a_thread_that_outlives_the_deadline_is_given_back_by_name() {
        let (go, wait) = bounded::<()>(1);
        let thread = spawn("slow", "", 64 * 1024, move || {
            let _ = wait.recv();
        })
        .unwrap();
        let thread = thread.join_until(Instant::now() + Duration::from_millis(20)).unwrap_err();
        assert_eq!(thread.name(), "slow");
        go.send(()).unwrap();
        assert!(thread.join_until(Instant::now() + Duration::from_secs(20)).is_ok());
    }
}
