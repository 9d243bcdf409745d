//! Whether all other threads of this process wait: then nothing moves that the test does not move.
//!
//! For tests that have the process for themselves ([`alone`](super::alone)).

use std::ffi::OsString;
use std::fs;
use std::time::{Duration, Instant};

use super::PATIENCE;

/// What is known of each thread: which it is, whether it waits, and how often it has run.
type Look = Vec<(OsString, Vec<String>)>;

/// Waits until `full` holds while everybody else waits: whoever was to make room has made it before.
#[track_caller]
pub fn wait_at_rest(what: &str, mut full: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let rests = others_wait();
        if full() && rests {
            return;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        // Somebody else needs the processor to come to rest.
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Looks at every other thread; `None` where the system does not show them.
fn look() -> Option<Look> {
    let me = fs::read_link("/proc/thread-self").ok()?;
    let threads =
        fs::read_dir("/proc/self/task").ok()?.flatten().filter(|thread| Some(&*thread.file_name()) != me.file_name());
    let wanted = |line: &&str| line.starts_with("State:") || line.contains("ctxt_switches:");
    // One that has ended meanwhile does not show itself: no look is the same as one before it.
    let seen = threads.map(|thread| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        (thread.file_name(), status.lines().filter(wanted).map(str::to_owned).collect())
    });
    Some(seen.collect())
}

/// Whether every other thread waits, for something that does not come by itself: none has run between two looks.
fn others_wait() -> bool {
    let Some(before) = look() else {
        std::thread::sleep(Duration::from_millis(50));
        return true;
    };
    let asleep = |lines: &[String]| lines.iter().any(|line| line.contains("(sleeping)"));
    before.iter().all(|(_, lines)| asleep(lines)) && look().is_some_and(|after| after == before)
}
