//! Limits of the process, what is left of them, and tests in a process of their own, where a limit disturbs nobody.

use std::process::{Command, Stdio};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Set for a test that was started by [`in_a_process_of_its_own`].
const CHILD: &str = "THREADWIRE_TEST_CHILD";

/// Descriptors this process has open.
pub fn descriptors() -> usize {
    // One of them is the listing itself, every time. Where the system has no such folder, none is ever missed.
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// Threads this process has.
pub fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// Raises the limit of descriptors to `wanted`, or as far as it goes; returns what it is.
pub fn raise_descriptors(wanted: u64) -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let possible = maximum.map_or(wanted, |maximum| wanted.min(maximum));
    match current {
        Some(current) if current < possible => {
            setrlimit(Resource::Nofile, Rlimit { current: Some(possible), maximum }).unwrap();
            possible
        }
        current => current.unwrap_or(u64::MAX),
    }
}

/// Sets a limit of this process, until it is set again.
pub fn limit(resource: Resource, current: Option<u64>) {
    let maximum = getrlimit(resource).maximum;
    setrlimit(resource, Rlimit { current: current.or(maximum), maximum }).unwrap();
}

/// Bytes of address space this process uses.
pub fn address_space() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Memory of this process that is in use, in bytes; nothing where the system does not say.
pub fn resident() -> Option<usize> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(statm.split(' ').nth(1)?.parse::<usize>().ok()? * 4096)
}

/// Whether a thread of this process has this name, of 15 bytes at most, and waits for something. Where the system does not
/// say, it is taken to.
pub fn sleeps(name: &str) -> bool {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return true };
    let of = |task: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(task.ok()?.path().join("stat")).ok();
    tasks.filter_map(of).any(|stat| stat.contains(&format!(" ({name}) S ")))
}

/// Whether this process was started for the test that asks.
pub fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Runs one test of this file, an ignored one, in a process of its own, and hands on what it prints.
#[track_caller]
pub fn in_a_process_of_its_own(test: &str) {
    run(Command::new(std::env::current_exe().unwrap()), test);
}

/// The same, by a command that becomes the program that is its last argument: it can change what that inherits.
#[track_caller]
pub fn in_a_process_begun_by(mut launcher: Command, test: &str) {
    launcher.arg(std::env::current_exe().unwrap());
    run(launcher, test);
}

#[track_caller]
fn run(mut command: Command, test: &str) {
    let output = command
        .args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = [String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)].concat();
    assert!(output.status.success(), "{test}: {said}");
    assert!(said.contains("1 passed"), "{test} did not run: {said}");
}
