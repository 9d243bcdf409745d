//! The key that says who a node is, and the file it lives in.
//!
//! Owns: the ed25519 key pair of the process. Threads: any. Locks: none.
//! Blocks on: the disk, in [`Identity::load_or_create`] alone; the system's randomness, at its first use after a boot.
//! Upholds: a key is never readable by others, never overwritten, never half written, never printed.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use super::pem;
use crate::error::StartError;
use crate::ident::PeerId;

/// The key's file in the data folder.
pub const KEY_FILE: &str = "identity.key";

const LABEL: &str = "PRIVATE KEY";
/// A key file is 119 bytes; room for comments, not for whatever else may lie there.
const LARGEST_FILE: u64 = 64 * 1024;
/// DER in front of an ed25519 public key: SubjectPublicKeyInfo.
pub(crate) const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// DER in front of an ed25519 seed: PKCS#8 version 1. OpenSSL before 3.5 cannot read version 2, which ring would write.
const PKCS8: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// Who this node is: an ed25519 key pair, fixed for the life of the process.
pub struct Identity {
    pair: Ed25519KeyPair,
    public_key: [u8; 32],
    peer_id: PeerId,
}

impl Identity {
    /// A fresh key that is kept nowhere: the node is somebody else after a restart.
    ///
    /// # Errors
    /// [`StartError::System`]: the system gave no randomness. Nothing safe can be done without it.
    pub fn generate() -> Result<Self, StartError> {
        Self::from_pem(&fresh_pem()?)
    }

    /// The key in this text: an unencrypted PEM block `PRIVATE KEY` (PKCS#8, version 1 or 2), as
    /// `openssl genpkey -algorithm ed25519` writes it.
    ///
    /// # Errors
    /// [`StartError::Identity`]: the text holds no such block, or another kind of key; it says which.
    pub fn from_pem(text: &str) -> Result<Self, StartError> {
        parse(text).map_err(|what| StartError::Identity { path: "given as text".to_owned(), what })
    }

    /// The key in `data_dir/identity.key`; makes the folder (mode 0700) and the key (mode 0600) if they are missing.
    ///
    /// Callers that race for a missing key, in threads or processes, all come back with the same one.
    ///
    /// # Errors
    /// [`StartError::Identity`], with the path and what to do: the file is no ed25519 key, others may read it or
    /// write into the folder (the text names the `chmod` that fixes it), it is another user's, or the folder is none, is
    /// read-only or is full. An existing file is never touched, and no part of a key is left where a whole one could not
    /// be written.
    ///
    /// # Blocking
    /// For the disk.
    pub fn load_or_create(data_dir: &Path) -> Result<Self, StartError> {
        let path = data_dir.join(KEY_FILE);
        let failed = |what: String| StartError::Identity { path: path.display().to_string(), what };
        if let Some(identity) = load(&path).map_err(failed)? {
            return Ok(identity);
        }
        let pem = fresh_pem()?;
        create(data_dir, &path, &pem).map_err(failed)?;
        // Whoever was first, what lies there now is the key.
        let missing = || failed("cannot be found after it was made: is it a link to nothing?".to_owned());
        load(&path).map_err(failed)?.ok_or_else(missing)
    }

    /// The key in this file.
    ///
    /// # Errors
    /// [`StartError::Identity`], with the path and what to do: there is no such file, or it is no key that only its owner
    /// may read, as for [`Identity::load_or_create`].
    ///
    /// # Blocking
    /// For the disk.
    pub fn from_file(path: &Path) -> Result<Self, StartError> {
        let failed = |what: String| StartError::Identity { path: path.display().to_string(), what };
        let make = format!(
            "does not exist: make it with `(umask 077; openssl genpkey -algorithm ed25519 -out {})`",
            path.display()
        );
        load(path).map_err(failed)?.ok_or_else(|| failed(make))
    }

    /// The name of this node.
    pub fn peer_id(&self) -> PeerId {
        self.peer_id
    }

    /// The public key.
    pub fn public_key(&self) -> [u8; 32] {
        self.public_key
    }

    /// Signs `message` (ed25519; the same message always gives the same signature).
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes.copy_from_slice(self.pair.sign(message).as_ref());
        bytes
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.peer_id.short())
    }
}

/// The name of whoever holds the private half of `key`: SHA-256 of its SubjectPublicKeyInfo.
pub fn peer_id_of(key: &[u8; 32]) -> PeerId {
    PeerId::from_bytes(sha256(&spki_of(key)))
}

/// The key as SubjectPublicKeyInfo.
pub(crate) fn spki_of(key: &[u8; 32]) -> [u8; SPKI.len() + 32] {
    let mut info = [0; SPKI.len() + 32];
    info[..SPKI.len()].copy_from_slice(&SPKI);
    info[SPKI.len()..].copy_from_slice(key);
    info
}

/// Whether `signature` over `message` was made with the private half of `key`.
pub fn verify(key: &[u8; 32], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, key).verify(message, signature).is_ok()
}

/// Fresh random bytes from the system, fit for nonces, tokens and keys.
///
/// # Errors
/// The system gave none. Refuse what they were for; nothing else may stand in for them.
///
/// # Blocking
/// Only in a process started so early after a boot that the system has collected no randomness yet.
pub fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => Ok(bytes),
        Err(_) => Err(io::Error::other("the system gave no random bytes")),
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

fn fresh_pem() -> io::Result<String> {
    let mut der = [0; PKCS8.len() + 32];
    der[..PKCS8.len()].copy_from_slice(&PKCS8);
    der[PKCS8.len()..].copy_from_slice(&random_bytes::<32>()?);
    Ok(pem::encode(LABEL, &der))
}

fn parse(text: &str) -> Result<Identity, String> {
    let der = pem::decode(LABEL, text)?;
    let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).map_err(|error| {
        format!("is no ed25519 key in PKCS#8 ({error}); `openssl genpkey -algorithm ed25519` makes one")
    })?;
    let mut public_key = [0; 32];
    public_key.copy_from_slice(pair.public_key().as_ref());
    Ok(Identity { pair, public_key, peer_id: peer_id_of(&public_key) })
}

fn load(path: &Path) -> Result<Option<Identity>, String> {
    let unreadable = |error: io::Error| format!("cannot be read: {error}; {}", remedy(&error));
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
        // Opening a pipe would wait for somebody to write into it.
        Ok(found) if !found.is_file() => return Err("is not a file".to_owned()),
        Ok(_) => {}
    }
    let file = File::open(path).map_err(unreadable)?;
    refuse_if_shared(&file.metadata().map_err(unreadable)?, path)?;
    refuse_if_others_write(path.parent().unwrap_or(Path::new("")))?;
    let mut text = String::new();
    file.take(LARGEST_FILE).read_to_string(&mut text).map_err(unreadable)?;
    parse(&text).map(Some).map_err(|what| format!("{what}; {}", remedy(&io::ErrorKind::InvalidData.into())))
}

/// Puts a key at `path` unless one is there already.
fn create(folder: &Path, path: &Path, pem: &str) -> Result<(), String> {
    let mut builder = DirBuilder::new();
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
        builder.mode(0o700);
        options.mode(0o600);
    }
    builder
        .recursive(true)
        .create(folder)
        .map_err(|error| format!("its folder cannot be made: {error}; {}", remedy(&error)))?;
    refuse_if_others_write(folder)?;
    let random = random_bytes::<8>().map_err(|error| error.to_string())?;
    let temporary = folder.join(format!("{KEY_FILE}.{:016x}.tmp", u64::from_le_bytes(random)));
    let unwritable = |error: io::Error| format!("its folder cannot be written: {error}; {}", remedy(&error));
    let mut file = options.open(&temporary).map_err(unwritable)?;
    let written = file.write_all(pem.as_bytes()).and_then(|()| file.sync_all());
    // A link, not a rename: a rename would replace the key of somebody who was faster.
    let placed = written.map(|()| fs::hard_link(&temporary, path));
    // The key has its own name by now, or none: the temporary one is of no more use, and harmless if it stays.
    let _ = fs::remove_file(&temporary);
    match placed.map_err(unwritable)? {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if is_full(&error) => Err(unwritable(error)),
        Err(error) => Err(format!(
            "cannot be made: {error}; on a file system without hard links run \
             `(umask 077; openssl genpkey -algorithm ed25519 -out {})`",
            path.display()
        )),
        Ok(()) => {
            // Some file systems cannot sync a folder; the key is there all the same, unless the power fails now.
            let _ = File::open(folder).and_then(|folder| folder.sync_all());
            Ok(())
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// What to do about it, for a person.
fn remedy(error: &io::Error) -> &'static str {
    use io::ErrorKind::{AlreadyExists, InvalidData, NotADirectory, PermissionDenied, ReadOnlyFilesystem};
    match error.kind() {
        _ if is_full(error) => "make room there, or set data_dir to a folder elsewhere",
        InvalidData => "put the right key there, or remove the file to become a new peer",
        NotADirectory | AlreadyExists => "there is a file where the folder should be: set data_dir to a folder",
        PermissionDenied => "let this user read and write there, or set data_dir to a folder elsewhere",
        ReadOnlyFilesystem => "mount it for writing, or set data_dir to a folder elsewhere",
        _ => "set data_dir to a folder that this user may read and write",
    }
}

/// A file whose mode or owner lets others read it is known to them, or will be.
#[cfg(unix)]
fn refuse_if_shared(found: &fs::Metadata, path: &Path) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt;
    if found.mode() & 0o077 != 0 {
        return Err(format!(
            "others may use it (mode {:04o}): run `chmod 600 {}`, or remove it to become a new peer if it may be known",
            found.mode() & 0o7777,
            path.display()
        ));
    }
    refuse_if_anothers(found.uid(), rustix::process::geteuid().as_raw(), path)
}

/// Who may write into the folder may put another key in the place of this one.
#[cfg(unix)]
fn refuse_if_others_write(folder: &Path) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt;
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let unreadable = |error: io::Error| format!("its folder cannot be read: {error}; {}", remedy(&error));
    let found = fs::metadata(folder).map_err(unreadable)?;
    // In a sticky one everybody keeps to what is theirs.
    if found.mode() & 0o022 != 0 && found.mode() & 0o1000 == 0 {
        return Err(format!(
            "others may replace it, who can write into its folder (mode {:04o}): run `chmod go-w {}`",
            found.mode() & 0o7777,
            folder.display()
        ));
    }
    refuse_if_anothers(found.uid(), rustix::process::geteuid().as_raw(), folder)
}

/// What belongs to neither this user nor the system's own is read and replaced by whom it belongs to.
#[cfg(unix)]
fn refuse_if_anothers(owner: u32, me: u32, path: &Path) -> Result<(), String> {
    match owner == me || owner == 0 {
        true => Ok(()),
        false => Err(format!("{0} belongs to another user ({owner}): run `chown {me} {0}`", path.display())),
    }
}

#[cfg(not(unix))]
fn refuse_if_shared(_: &fs::Metadata, _: &Path) -> Result<(), String> {
    Ok(())
}

#[cfg(not(unix))]
fn refuse_if_others_write(_: &Path) -> Result<(), String> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::threads;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn why(result: Result<Identity, StartError>) -> String {
        match result {
            Err(StartError::Identity { path, what }) => format!("{path}: {what}"),
            other => panic!("expected a refusal: {other:?}"),
        }
    }

    /// A folder with this text as a key file only its owner may read.
    fn folder_with(text: &[u8]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(KEY_FILE);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        folder
    }

    #[test]
    fn a_key_is_made_once_and_found_again_with_nobody_else_allowed_to_read_it() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("a/b");
        let first = Identity::load_or_create(&folder).unwrap();
        let again = Identity::load_or_create(&folder).unwrap();
        assert_eq!(first.peer_id(), again.peer_id());
        assert_eq!(first.public_key(), again.public_key());
        assert_eq!(mode(&folder), 0o700);
        assert_eq!(mode(&folder.join(KEY_FILE)), 0o600);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn two_generated_keys_differ_and_sign_for_themselves_only() {
        let (one, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        assert_ne!(one.peer_id(), other.peer_id());
        let signature = one.sign(b"text");
        assert!(verify(&one.public_key(), b"text", &signature));
        assert!(!verify(&other.public_key(), b"text", &signature));
        assert!(!verify(&one.public_key(), b"test", &signature));
        assert!(!verify(&one.public_key(), b"text", &signature[..63]));
        assert!(!verify(&one.public_key(), b"text", b""));
    }

    #[test]
    fn the_example_of_rfc_8410_gives_its_public_key_in_both_versions() {
        // RFC 8410, 10.1 and 10.3: the same key, without and with its public half.
        let one = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
                   -----END PRIVATE KEY-----\n";
        let two = "-----BEGIN PRIVATE KEY-----\nMHICAQEwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
                   oB8wHQYKKoZIhvcNAQkJFDEPDA1DdXJkbGUgQ2hhaXJzgSEAGb9ECWmEzf6FQbrB\nZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
                   -----END PRIVATE KEY-----\n";
        let public = "19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1";
        for pem in [one, two] {
            let key = Identity::from_pem(pem).unwrap().public_key();
            assert_eq!(PeerId::from_bytes(key).to_string(), public);
        }
    }

    #[test]
    fn a_key_that_others_may_use_is_refused_with_the_command_that_fixes_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(KEY_FILE);
        let id = Identity::load_or_create(folder.path()).unwrap().peer_id();
        for shared in [0o640, 0o604, 0o620, 0o601] {
            fs::set_permissions(&path, fs::Permissions::from_mode(shared)).unwrap();
            let text = why(Identity::load_or_create(folder.path()));
            assert!(text.contains(&format!("chmod 600 {}", path.display())), "{text}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        assert_eq!(Identity::load_or_create(folder.path()).unwrap().peer_id(), id, "the key was left alone");
    }

    #[test]
    fn a_folder_that_others_may_write_into_is_refused_before_a_key_is_made_and_after() {
        let folder = tempfile::tempdir().unwrap();
        let set = |mode| fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
        let command = format!("chmod go-w {}", folder.path().display());
        for open in [0o777, 0o770, 0o702] {
            set(open);
            assert!(why(Identity::load_or_create(folder.path())).contains(&command));
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        }
        set(0o755);
        let id = Identity::load_or_create(folder.path()).unwrap().peer_id();
        set(0o775);
        assert!(why(Identity::load_or_create(folder.path())).contains(&command));
        assert!(why(Identity::from_file(&folder.path().join(KEY_FILE))).contains(&command));
        set(0o1777);
        assert_eq!(Identity::load_or_create(folder.path()).unwrap().peer_id(), id);
    }

    #[test]
    fn what_belongs_to_another_user_is_refused_with_the_command_that_mends_it() {
        let path = Path::new("there/identity.key");
        for (owner, me) in [(0, 0), (0, 7), (7, 7)] {
            refuse_if_anothers(owner, me, path).unwrap();
        }
        for (owner, me) in [(7, 0), (8, 7)] {
            let text = refuse_if_anothers(owner, me, path).unwrap_err();
            assert!(text.contains(&format!("another user ({owner}): run `chown {me} there/identity.key`")), "{text}");
        }
    }

    #[test]
    fn a_file_that_is_no_key_is_refused_and_left_as_it_was() {
        let x25519 = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VuBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
                      -----END PRIVATE KEY-----\n";
        let cases: [(&[u8], &str); 5] = [
            (b"", "no PEM block"),
            (b"\xff\xfe not text", "cannot be read"),
            (b"-----BEGIN PRIVATE KEY-----\nMC4C", "has no end"),
            (b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n-----END ENCRYPTED PRIVATE KEY-----", "ENCRYPTED PRIVATE KEY"),
            (x25519.as_bytes(), "no ed25519 key"),
        ];
        for (bytes, expected) in cases {
            let folder = folder_with(bytes);
            let text = why(Identity::load_or_create(folder.path()));
            assert!(text.contains(expected) && text.contains(KEY_FILE), "{text}");
            assert_eq!(fs::read(folder.path().join(KEY_FILE)).unwrap(), bytes);
        }
    }

    #[test]
    fn what_is_not_a_file_or_leads_nowhere_is_refused_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(KEY_FILE)).unwrap();
        assert!(why(Identity::load_or_create(folder.path())).contains("not a file"));
        let folder = tempfile::tempdir().unwrap();
        symlink("nowhere", folder.path().join(KEY_FILE)).unwrap();
        assert!(why(Identity::load_or_create(folder.path())).contains("link to nothing"));
        let file = folder_with(b"");
        let below_a_file = file.path().join(KEY_FILE).join("folder");
        assert!(matches!(Identity::load_or_create(&below_a_file), Err(StartError::Identity { .. })));
    }

    #[test]
    fn racing_creators_end_with_one_key() {
        const RACERS: usize = 8;
        for _ in 0..20 {
            let folder = tempfile::tempdir().unwrap();
            let (report, reports) = crossbeam_channel::bounded(RACERS);
            let (go, start) = crossbeam_channel::bounded::<()>(0);
            let racers: Vec<_> = (0..RACERS)
                .map(|i| {
                    let (folder, report, start) = (folder.path().to_owned(), report.clone(), start.clone());
                    let race = move || {
                        let _ = start.recv();
                        report.send(Identity::load_or_create(&folder).map(|identity| identity.peer_id())).unwrap();
                    };
                    threads::spawn("racer", &i.to_string(), 256 * 1024, race).unwrap()
                })
                .collect();
            drop(go);
            let deadline = Instant::now() + Duration::from_secs(60);
            let ids: Vec<_> = (0..RACERS).map(|_| reports.recv_deadline(deadline).unwrap().unwrap()).collect();
            assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
            assert!(racers.into_iter().all(|racer| racer.join_until(deadline).is_ok()));
        }
    }

    #[test]
    fn openssl_reads_our_keys_and_we_read_those_of_openssl() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(KEY_FILE);
        let ours = Identity::load_or_create(folder.path()).unwrap();
        let public_half = |path: &Path| {
            Command::new("openssl").args(["pkey", "-pubout", "-outform", "DER", "-in"]).arg(path).output()
        };
        let Ok(output) = public_half(&path) else {
            println!("skipped: there is no openssl command here");
            return;
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.stdout, [&SPKI[..], &ours.public_key()].concat());
        assert_eq!(ours.peer_id(), PeerId::from_bytes(sha256(&output.stdout)));
        fs::remove_file(&path).unwrap();
        let made =
            Command::new("openssl").args(["genpkey", "-algorithm", "ed25519", "-out"]).arg(&path).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let theirs = Identity::load_or_create(folder.path()).unwrap();
        assert_eq!(public_half(&path).unwrap().stdout, [&SPKI[..], &theirs.public_key()].concat());
    }

    #[test]
    fn nothing_printed_contains_the_secret() {
        let pem = fresh_pem().unwrap();
        let identity = Identity::from_pem(&pem).unwrap();
        assert_eq!(format!("{identity:?}"), format!("Identity({})", identity.peer_id().short()));
        let damaged = pem.replace("-----END", "*-----END");
        let secret = pem.lines().nth(1).unwrap();
        assert!(!why(Identity::from_pem(&damaged)).contains(secret));
    }
}
