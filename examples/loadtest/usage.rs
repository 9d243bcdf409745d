//! What this process uses, as the system counts it.
//!
//! Owns: nothing. Threads: the measuring thread. Locks: none. Blocks on: reading `/proc`.
//! Upholds: figures are read, never estimated; a figure the system does not give is a failure.

use std::fs;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::failure::{Context, Failure};

/// Resident memory of this process, in KiB: everything it has touched, program and libraries included.
///
/// # Errors
/// The system does not say.
pub fn resident_kib() -> Result<u64, Failure> {
    // `status` lags behind by what each thread has counted for itself; this walks the maps.
    field("/proc/self/smaps_rollup", "Rss:").or_else(|_| field("/proc/self/status", "VmRSS:"))
}

/// Threads of this process.
///
/// # Errors
/// The system does not say.
pub fn threads() -> Result<u64, Failure> {
    field("/proc/self/status", "Threads:")
}

/// Time on processors, of all threads this process ever had.
pub fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// Time on processors of the threads of this process whose names begin with one of these, while they live; nothing where
/// the system does not say.
pub fn cpu_time_of(names: &[&str]) -> Option<Duration> {
    let mut nanos = 0;
    for task in fs::read_dir("/proc/self/task").ok()? {
        let task = task.ok()?.path();
        // It may have ended since.
        let Ok(name) = fs::read_to_string(task.join("comm")) else { continue };
        if names.iter().any(|begin| name.starts_with(begin)) {
            let time = fs::read_to_string(task.join("schedstat")).ok()?;
            nanos += time.split(' ').next()?.parse::<u64>().ok()?;
        }
    }
    Some(Duration::from_nanos(nanos))
}

/// The first number behind `name` in a file of lines.
fn field(place: &str, name: &str) -> Result<u64, Failure> {
    let text = fs::read_to_string(place).context(place)?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)).and_then(|rest| rest.split_whitespace().next());
    value.ok_or_else(|| Failure::new(format!("{place} has no {name}")))?.parse().context(format_args!("{place} {name}"))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn memory_that_is_touched_is_seen() {
        let before = resident_kib().unwrap();
        let touched = vec![1_u8; 32 << 20];
        let after = resident_kib().unwrap();
        // Other tests of this process allocate and free meanwhile.
        assert!(after > before + (16 << 10), "{before} {after} {}", touched.len());
    }

    #[test]
    fn time_at_work_is_seen() {
        let before = cpu_time();
        let deadline = Instant::now() + Duration::from_secs(20);
        while cpu_time() < before + Duration::from_millis(50) {
            assert!(Instant::now() < deadline, "this thread has worked all the time");
        }
        assert!(threads().unwrap() >= 1);
    }

    #[test]
    fn time_of_threads_is_told_apart_by_their_names() {
        let deadline = Instant::now() + Duration::from_secs(20);
        let (done, finished) = crossbeam_channel::bounded(1);
        crate::control::start_thread("usage-busy", move || {
            while cpu_time_of(&["usage-busy"]).unwrap() < Duration::from_millis(20) {
                assert!(Instant::now() < deadline, "this thread has worked all the time");
            }
            done.send(()).unwrap();
        })
        .unwrap();
        finished.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(cpu_time_of(&["usage-nobody"]), Some(Duration::ZERO));
    }
}
