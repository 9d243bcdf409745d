//! What comes from outside the node: lines of standard input, and signals.
//!
//! Owns: the sending ends of two channels. Threads: one that reads standard input, one that waits for signals; both end
//! with the process. Locks: none. Blocks on: standard input; the system.
//! Upholds: the first SIGTERM or SIGINT is told, the second ends the process at once, whatever the main thread does.

use std::io::{self, BufRead};
use std::thread;

use crossbeam_channel::{Receiver, bounded};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::signal_name;

/// Exit status after the second signal.
const AT_ONCE: i32 = 2;
/// Lines that are read ahead.
const AHEAD: usize = 64;

/// The name of the first signal that asks for an end.
pub fn signals() -> io::Result<Receiver<&'static str>> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let (tell, told) = bounded(1);
    let wait = move || {
        let mut signals = signals.forever();
        if let Some(first) = signals.next() {
            // Nobody hears it only when the process ends already.
            let _ = tell.send(signal_name(first).unwrap_or("signal"));
        }
        if signals.next().is_some() {
            std::process::exit(AT_ONCE);
        }
    };
    #[expect(clippy::disallowed_methods, reason = "the library's own threads are not for its users")]
    thread::Builder::new().name("signals".to_owned()).spawn(wait)?;
    Ok(told)
}

/// The lines of standard input; what is not UTF-8 is an error of its line. Disconnects at its end.
pub fn lines() -> io::Result<Receiver<io::Result<String>>> {
    let (tell, told) = bounded(AHEAD);
    let read = move || {
        for line in io::stdin().lock().lines() {
            // Only what is wrong with the line itself leaves the rest to read.
            let is_last = line.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::InvalidData);
            if tell.send(line).is_err() || is_last {
                return;
            }
        }
    };
    #[expect(clippy::disallowed_methods, reason = "the library's own threads are not for its users")]
    thread::Builder::new().name("stdin".to_owned()).spawn(read)?;
    Ok(told)
}
