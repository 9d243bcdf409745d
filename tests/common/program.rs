//! An example, built, and run as its users run it: a process that is written to, read from and sent signals.
//!
//! Owns: the process, which is killed when it is dropped. Threads: two for each process, which read what it writes until
//! it ends. Locks: none. Blocks on: what the process writes, with a deadline.
//! Upholds: no test waits for longer than its patience, and one that fails says what the process wrote.

#![allow(dead_code, reason = "each test file uses some of it")]

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, unbounded};
use serde_json::Value;

/// How long a process may take for what takes it milliseconds.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// An example, built the way this test is built. `cargo test` alone may build its unit tests only.
pub fn build(name: &str) -> PathBuf {
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.current_dir(env!("CARGO_MANIFEST_DIR"));
    // What cargo tells a test of its package is not there when a person builds: build scripts that look at it would run
    // again and again.
    let told =
        |name: &str| name == "CARGO_MANIFEST_DIR" || name == "CARGO_MANIFEST_PATH" || name.starts_with("CARGO_PKG_");
    std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(told)).for_each(|(name, _)| {
        build.env_remove(name);
    });
    build.args(["build", "--quiet", "--example", name, "--message-format", "json"]);
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    if cfg!(feature = "internal") {
        build.args(["--features", "internal"]);
    }
    let built = build.stderr(Stdio::inherit()).output().expect("cargo runs");
    assert!(built.status.success(), "the example does not build");
    let lines = String::from_utf8(built.stdout).expect("cargo writes UTF-8");
    let artifact = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        let is_it = message["target"]["name"] == name && message["target"]["kind"][0] == "example";
        is_it.then(|| message["executable"].as_str().map(PathBuf::from))?
    };
    lines.lines().find_map(artifact).expect("cargo says where the example is")
}

/// Runs a program to its end: the one line of JSON that it wrote, and its exit status.
#[track_caller]
pub fn json(command: &mut Command) -> (Value, Option<i32>) {
    let output = command.stderr(Stdio::inherit()).output().expect("the program runs");
    let text = String::from_utf8(output.stdout).expect("the program writes UTF-8");
    assert_eq!(text.lines().count(), 1, "one line: {text:?}");
    (serde_json::from_str(&text).expect(&text), output.status.code())
}

/// A process.
pub struct Program {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    log: Receiver<String>,
    /// Everything that was read of both, for the failure.
    seen: Vec<String>,
}

impl Program {
    /// Starts it.
    pub fn start(command: &mut Command) -> Self {
        Self::start_and_read(command, usize::MAX)
    }

    /// Starts it, reads so many lines of its standard output, and closes that.
    pub fn start_and_read(command: &mut Command, most: usize) -> Self {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (lines, log) = (lines_of(stdout.unwrap(), most), lines_of(stderr.unwrap(), usize::MAX));
        Self { child, stdin, lines, log, seen: Vec::new() }
    }

    /// Writes a line to it.
    pub fn say(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().expect("its input is open"), "{line}").unwrap();
    }

    /// Ends its input.
    pub fn say_no_more(&mut self) {
        self.stdin = None;
    }

    /// The next line of standard output with this in it; those before it are passed over.
    #[track_caller]
    pub fn wait_for(&mut self, part: &str) -> String {
        self.next_with(part, true)
    }

    /// The same of standard error.
    #[track_caller]
    pub fn wait_for_log(&mut self, part: &str) -> String {
        self.next_with(part, false)
    }

    #[track_caller]
    fn next_with(&mut self, part: &str, stdout: bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let from = if stdout { &self.lines } else { &self.log };
            match from.recv_deadline(deadline) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(part) {
                        return line;
                    }
                }
                Err(error) => self.fail(&format!("no line with {part:?}: {error}")),
            }
        }
    }

    /// Waits until its standard output is closed, at either end.
    #[track_caller]
    pub fn wait_until_unread(&mut self) {
        if self.lines.recv_timeout(PATIENCE) != Err(RecvTimeoutError::Disconnected) {
            self.fail("its output is still read");
        }
    }

    /// Sends it a signal, as `TERM`.
    #[cfg(unix)]
    #[track_caller]
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status().unwrap();
        assert!(sent.success(), "signal {name}");
    }

    /// Waits for its end: its exit status, and what it wrote to standard output since.
    #[track_caller]
    pub fn end(mut self) -> (Option<i32>, Vec<String>) {
        let deadline = Instant::now() + PATIENCE;
        let mut rest = Vec::new();
        loop {
            match self.lines.recv_deadline(deadline) {
                Ok(line) => rest.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    self.seen.append(&mut rest);
                    self.fail("it does not end");
                }
            }
        }
        // Its output has ended, and nothing else holds that.
        (self.child.wait().unwrap().code(), rest)
    }

    #[track_caller]
    fn fail(&mut self, what: &str) -> ! {
        self.seen.extend(self.lines.try_iter());
        self.seen.extend(self.log.try_iter());
        panic!("{what}; it wrote:\n{}", self.seen.join("\n"));
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lines, read by a thread, so that there is a deadline for each.
fn lines_of(stream: impl Read + Send + 'static, most: usize) -> Receiver<String> {
    let (tell, lines) = unbounded();
    let read = move || {
        let lines = BufReader::new(stream).lines().take(most).map_while(Result::ok);
        // The stream is closed before the channel is.
        lines.for_each(|line| drop(tell.send(line)));
    };
    #[expect(clippy::disallowed_methods, reason = "the library's own threads are not for its tests")]
    thread::spawn(read);
    lines
}

/// The words of a command line.
pub fn command(program: &PathBuf, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(program);
    command.args(words);
    command
}
