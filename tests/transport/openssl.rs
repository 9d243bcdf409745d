//! TLS with the `openssl` command at the other end, with keys and certificates made as the README says.
//!
//! Skipped, and said so, where there is no such command; `.ci/run` installs it.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;

use crossbeam_channel::{Receiver, unbounded};
use tempfile::TempDir;
use threadwire::PeerId;
use threadwire::error::CloseReason;
use threadwire::handshake::Identity;
use threadwire::transport::tcp::Tcp;
use threadwire::transport::tls::{Credential, Roots, Tls};
use threadwire::transport::{Connection, Fault, PendingConnection, Transport, Trust};

use crate::support::{LONG, eventually, loopback, read_some, read_to_end, run, step, write_all};

const PROTOCOL: &str = "threadwire-test/1";

/// The commands of the README's section on security, in order.
fn commands_of_the_readme() -> String {
    let readme = include_str!("../../README.md");
    let section = readme.split("\n## Security\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let blocks: Vec<&str> = section.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(blocks.len(), 2, "one for a key, one for certificates");
    blocks.concat()
}

/// A folder with `ca.pem`, and a key and a certificate each for `north` (ours) and `south` (openssl's); and north's id,
/// as openssl tells it. Nothing where there is no openssl.
fn office() -> Option<(TempDir, PeerId)> {
    if Command::new("openssl").arg("version").output().is_err() {
        println!("skipped: there is no openssl command here");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let commands = commands_of_the_readme();
    // The second node needs no second authority.
    let south: Vec<String> = commands
        .lines()
        .filter(|line| !line.contains("ca.key -subj") && !line.contains("-out ca.key"))
        .map(|line| line.replace("north", "south").replace("identity.key", "south.key"))
        .collect();
    let script = format!("set -e\n{commands}\ncp identity.key north.key\n{}\n", south.join("\n"));
    let output = Command::new("sh").arg("-c").arg(script).current_dir(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told = String::from_utf8(output.stdout).unwrap();
    let id = told.lines().next().unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    Some((folder, id))
}

/// Our side: north's key and certificate, and whom the authority vouches for.
fn north(folder: &Path, id: PeerId) -> Tls {
    let identity = Arc::new(Identity::from_file(&folder.join("north.key")).unwrap());
    assert_eq!(identity.peer_id(), id, "openssl and we agree on the id");
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let credential = Credential::certified(identity, &read("north.pem")).unwrap();
    let trust = Trust::listed([]).and_roots(Roots::from_pem(&read("ca.pem")).unwrap());
    Tls::new(Tcp::default(), PROTOCOL, credential, trust).unwrap()
}

/// A running `openssl s_client` or `s_server`, and the lines it writes.
struct OpenSsl {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl OpenSsl {
    fn start(folder: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new("openssl")
            .args(arguments)
            .args(["-cert", "south.pem", "-key", "south.key", "-CAfile", "ca.pem", "-alpn", PROTOCOL, "-msg"])
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = unbounded();
        let stdin = child.stdin.take().unwrap();
        let outputs: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for output in outputs {
            let sender = sender.clone();
            let _ = run(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    let _ = sender.send(line);
                }
            });
        }
        Self { child, stdin, lines, seen: Vec::new() }
    }

    fn say(&mut self, line: &str) {
        // In one piece: a command is one only at the start of what it reads at a time.
        self.stdin.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// Waits for a line with this in it.
    fn hear(&mut self, what: &str) -> String {
        let deadline = std::time::Instant::now() + LONG;
        loop {
            let Ok(line) = self.lines.recv_deadline(deadline) else { panic!("no {what:?} in {:#?}", self.seen) };
            self.seen.push(line.clone());
            if line.contains(what) {
                return line;
            }
        }
    }
}

impl Drop for OpenSsl {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Brings our side to where it carries bytes.
fn open(pending: &mut dyn PendingConnection) -> Result<(), Fault> {
    let mut fault = None;
    eventually("the handshake is over", || match step(pending) {
        Ok(open) => open && pending.flush().unwrap(),
        Err(error) => {
            fault = Some(Fault::of(&error).cloned().unwrap_or_else(|| panic!("{error:?}")));
            true
        }
    });
    fault.map_or(Ok(()), Err)
}

fn accept(listener: &mut dyn threadwire::transport::Listener) -> Box<dyn PendingConnection> {
    let mut accepted = None;
    eventually("it dials", || {
        match listener.accept() {
            Ok(pending) => accepted = Some(pending),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        accepted.is_some()
    });
    accepted.unwrap()
}

fn dial(tls: &Tls, addr: SocketAddr) -> Box<dyn PendingConnection> {
    let mut dialled = tls.connect(addr).unwrap();
    eventually("the dial is through", || dialled.connected().unwrap());
    dialled
}

/// Talks both ways, through a change of keys that openssl asks for, and one that we do; then both end their stream.
fn talk(connection: Connection, openssl: &mut OpenSsl, quit: Option<&str>) {
    let Connection { mut read, write, .. } = connection;
    openssl.say("one of openssl");
    assert_eq!(read_some(&mut *read, 15), b"one of openssl\n");
    write_all(&*write, b"one of ours\n").unwrap();
    openssl.hear("one of ours");
    // It changes its keys and asks us for the same; at the start of a line, and nothing else there is a command.
    openssl.say("K");
    openssl.hear("KeyUpdate");
    openssl.say("two of openssl");
    let mut heard = Vec::new();
    while !heard.ends_with(b"two of openssl\n") {
        // Of the command's line, some of its versions send the end.
        heard.extend(read_some(&mut *read, 1));
    }
    assert!(read.owes() && write.is_behind(), "an answer to its new keys is due");
    write_all(&*write, b"two of ours\n").unwrap();
    openssl.hear("two of ours");
    assert!(!write.is_behind());
    // Ours change with each record.
    for n in 0..5 {
        write_all(&*write, format!("and {n} more\n").as_bytes()).unwrap();
        openssl.hear(&format!("and {n} more"));
    }
    // The server ends its stream in due form when it has heard of our end, and in none when it is told to quit.
    match quit {
        Some(quit) => openssl.say(quit),
        None => write.finish().unwrap(),
    }
    let (_, error) = read_to_end(&mut *read);
    assert!(error.is_none(), "it ended its stream in due form: {error:?}");
}

#[test]
fn openssl_dials_us_with_a_certificate_and_changes_its_keys() {
    let Some((folder, id)) = office() else { return };
    let tls = north(folder.path(), id).rekey_after(1, u64::MAX);
    let mut listener = tls.listen(loopback()).unwrap();
    let addr = listener.local_addr().to_string();
    let mut openssl = OpenSsl::start(folder.path(), &["s_client", "-connect", &addr, "-tls1_3", "-verify", "3"]);
    let mut accepted = accept(&mut *listener);
    open(&mut *accepted).unwrap();
    openssl.hear("Verify return code: 0 (ok)");
    let proof = accepted.proof().unwrap();
    assert_eq!(proof.peer, Identity::from_file(&folder.path().join("south.key")).unwrap().peer_id());
    talk(accepted.establish().unwrap(), &mut openssl, Some("Q"));
}

#[test]
fn we_dial_openssl_with_a_certificate_and_it_changes_its_keys() {
    let Some((folder, id)) = office() else { return };
    let tls = north(folder.path(), id).rekey_after(1, u64::MAX);
    let mut openssl = OpenSsl::start(
        folder.path(),
        &["s_server", "-accept", "127.0.0.1:0", "-tls1_3", "-Verify", "3", "-verify_return_error"],
    );
    let addr = openssl.hear("ACCEPT 127.0.0.1:").rsplit(' ').next().unwrap().parse().unwrap();
    let mut dialled = dial(&tls, addr);
    open(&mut *dialled).unwrap();
    let proof = dialled.proof().unwrap();
    assert_eq!(proof.peer, Identity::from_file(&folder.path().join("south.key")).unwrap().peer_id());
    openssl.hear("CIPHER is TLS_");
    talk(dialled.establish().unwrap(), &mut openssl, None);
}

#[test]
fn nothing_older_than_tls_1_3_is_spoken_with_openssl_on_either_side() {
    let Some((folder, id)) = office() else { return };
    let tls = north(folder.path(), id);
    let mut listener = tls.listen(loopback()).unwrap();
    let addr = listener.local_addr().to_string();
    let mut openssl = OpenSsl::start(folder.path(), &["s_client", "-connect", &addr, "-tls1_2"]);
    let mut accepted = accept(&mut *listener);
    assert!(matches!(open(&mut *accepted), Err(Fault::Rejected(CloseReason::VersionMismatch, _))));
    eventually("it is told", || accepted.flush().unwrap());
    openssl.hear("alert protocol version");
    drop(openssl);

    let mut openssl = OpenSsl::start(folder.path(), &["s_server", "-accept", "127.0.0.1:0", "-tls1_2"]);
    let addr = openssl.hear("ACCEPT 127.0.0.1:").rsplit(' ').next().unwrap().parse().unwrap();
    let mut dialled = dial(&tls, addr);
    let fault = open(&mut *dialled);
    assert!(matches!(fault, Err(Fault::Refused(CloseReason::VersionMismatch, _))), "{fault:?}");
}

#[test]
fn openssl_without_a_certificate_is_refused() {
    let Some((folder, id)) = office() else { return };
    let mut listener = north(folder.path(), id).listen(loopback()).unwrap();
    let addr = listener.local_addr().to_string();
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", &addr, "-tls1_3", "-alpn", PROTOCOL])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut accepted = accept(&mut *listener);
    assert!(matches!(open(&mut *accepted), Err(Fault::Rejected(CloseReason::Untrusted, _))));
    drop(accepted);
    child.wait().unwrap();
}
