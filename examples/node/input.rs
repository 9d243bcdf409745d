//! What comes from outside the node: lines of standard input, and signals.
//!
//! Owns: the sending ends of two channels. Threads: one that reads standard input, one that waits for signals; both end
//! with the process. Locks: none. Blocks on: standard input; the system.
//! Upholds: each SIGHUP is told, or one for several in a row; the first SIGTERM or SIGINT is told, the second ends the
//! process at once, whatever the main thread does.

use std::io::{self, BufRead};
use std::thread;

use crossbeam_channel::{Receiver, bounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::signal_name;

/// Exit status after the second signal.
const AT_ONCE: i32 = 2;
/// Lines that are read ahead.
const AHEAD: usize = 64;

/// The signals that were heard.
#[derive(Debug)]
pub struct Heard {
    /// The name of the first one that asks for an end.
    pub end: Receiver<&'static str>,
    /// SIGHUP: the configuration is to be read again.
    pub reload: Receiver<()>,
}

/// Listens for signals from now on.
pub fn signals() -> io::Result<Heard> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let ((tell, end), (ask, reload)) = (bounded(1), bounded(1));
    let wait = move || {
        let mut ends = 0;
        for signal in signals.forever() {
            match (signal, ends) {
                // One that waits to be heard stands for all until then.
                (SIGHUP, _) => drop(ask.try_send(())),
                (first, 0) => {
                    ends += 1;
                    // Nobody hears it only when the process ends already.
                    let _ = tell.send(signal_name(first).unwrap_or("signal"));
                }
                _ => std::process::exit(AT_ONCE),
            }
        }
    };
    #[expect(clippy::disallowed_methods, reason = "the library's own threads are not for its users")]
    thread::Builder::new().name("signals".to_owned()).spawn(wait)?;
    Ok(Heard { end, reload })
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
