//! A data folder that is none, that is read-only or full, or that holds a broken key: the node does not start, says
//! which file it is and what to do, and leaves nothing behind that a later start would trip over.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Resource;
use threadwire::error::StartError;
use threadwire::handshake::Identity;
use threadwire::{Node, NodeBuilder};

mod common;
use common::limits::{descriptors, in_a_process_begun_by, is_child, limit};
use common::{addr, alone, node_threads, quick, start};

/// Where a child process finds the file system that was mounted for it.
const FOLDER: &str = "THREADWIRE_TEST_FOLDER";

fn with_data_in(folder: &Path) -> NodeBuilder {
    let mut config = quick();
    config.data_dir = Some(folder.to_owned());
    Node::builder().config(config)
}

/// Why a node with its data there does not start: the file, and the rest of the text. Nothing is left running.
#[track_caller]
fn refusal(folder: &Path) -> (PathBuf, String) {
    let before = descriptors();
    match with_data_in(folder).start() {
        Err(error) => {
            let text = error.to_string();
            let StartError::Identity { path, what } = error else { panic!("{text}") };
            assert!(text.contains(&path) && text.contains(&what), "{text}");
            assert!(descriptors() == before && node_threads().is_empty(), "nothing is left running");
            (path.into(), what)
        }
        Ok(_) => panic!("it started"),
    }
}

/// A node starts with its data there, and is the same one when it starts again.
#[track_caller]
fn starts_and_is_the_same_again(folder: &Path) {
    let id = with_data_in(folder).start().unwrap().id();
    assert_eq!(with_data_in(folder).start().unwrap().id(), id);
    assert_eq!(names_in(folder), ["identity.key"]);
}

fn names_in(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != "filler").collect()
}

#[test]
fn a_file_where_the_folder_should_be_is_named_with_what_to_do() {
    let _alone = alone();
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("file");
    fs::write(&file, "somebody's").unwrap();
    for folder in [file.clone(), file.join("below"), file.join("far/below")] {
        let (path, what) = refusal(&folder);
        assert_eq!(path, folder.join("identity.key"));
        assert!(what.contains("a file where the folder should be: set data_dir to a folder"), "{what}");
    }
    assert_eq!(fs::read(&file).unwrap(), b"somebody's");
    fs::remove_file(&file).unwrap();
    starts_and_is_the_same_again(&file.join("below"));
}

#[test]
fn a_folder_that_the_system_lets_nobody_make_is_named_with_what_to_do() {
    let _alone = alone();
    // Permissions do not stop a superuser; the kernel's own file systems do.
    let kernels: Vec<&str> = ["/sys/threadwire", "/proc/threadwire"]
        .into_iter()
        .filter(|folder| Path::new(folder).parent().is_some_and(Path::is_dir))
        .collect();
    if kernels.is_empty() {
        println!("skipped: neither /sys nor /proc here");
    }
    for folder in kernels {
        let (path, what) = refusal(Path::new(folder));
        assert_eq!(path, Path::new(folder).join("identity.key"));
        assert!(what.starts_with("its folder cannot be made: ") && what.contains("set data_dir to a folder"), "{what}");
    }
}

#[test]
fn a_broken_key_is_named_with_what_to_do_and_left_alone() {
    let _alone = alone();
    let place = tempfile::tempdir().unwrap();
    starts_and_is_the_same_again(place.path());
    let key = place.path().join("identity.key");
    let whole = fs::read(&key).unwrap();
    // As a power failure, a careless editor or a wrong copy leaves it.
    let broken: [&[u8]; 4] = [b"", &whole[..60], b"\0\xff\0\xff", b"[log]\nlevel = \"info\"\n"];
    for bytes in broken {
        fs::write(&key, bytes).unwrap();
        let (path, what) = refusal(place.path());
        assert_eq!(path, key);
        assert!(what.contains("put the right key there, or remove the file to become a new peer"), "{what}");
        assert_eq!((fs::read(&key).unwrap(), names_in(place.path()).len()), (bytes.to_vec(), 1));
    }
    fs::write(&key, &whole).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let (path, what) = refusal(place.path());
    assert!(path == key && what.contains(&format!("chmod 600 {}", key.display())), "{what}");
    fs::remove_file(&key).unwrap();
    starts_and_is_the_same_again(place.path());
}

#[test]
fn a_key_that_cannot_be_written_to_its_end_is_not_there_at_all() {
    let _alone = alone();
    let mut shell = Command::new("sh");
    // Whoever writes beyond the limit is told by a signal, which ends it unless it is ignored, as from here on.
    shell.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]);
    in_a_process_begun_by(shell, "short_of_bytes");
}

#[test]
#[ignore = "sets a limit of its process: started by a_key_that_cannot_be_written_to_its_end_is_not_there_at_all"]
fn short_of_bytes() {
    assert!(is_child(), "in a process of its own only");
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("data");
    for most in [0, 1, 60, 118] {
        limit(Resource::Fsize, Some(most));
        let (path, what) = refusal(&folder);
        assert_eq!(path, folder.join("identity.key"));
        assert!(what.contains("cannot be written: File too large") && what.contains("make room there"), "{what}");
        assert_eq!(names_in(&folder), [""; 0], "no part of a key is left at {most} bytes");
    }
    limit(Resource::Fsize, None);
    starts_and_is_the_same_again(&folder);
}

/// A command that runs its last arguments with a small file system of their own at `folder`.
fn with_a_file_system_at(folder: &Path) -> Command {
    let mut unshare = Command::new("unshare");
    let script = format!("mount -t tmpfs -o size=16k,mode=700 threadwire \"${FOLDER}\" && exec \"$0\" \"$@\"");
    unshare.args(["--map-root-user", "--mount", "sh", "-c", &script]).env(FOLDER, folder).stdin(Stdio::null());
    unshare
}

#[test]
fn a_file_system_that_is_full_or_read_only_is_named_with_what_to_do_and_serves_when_it_is_neither() {
    let _alone = alone();
    let place = tempfile::tempdir().unwrap();
    let possible = with_a_file_system_at(place.path()).arg("true").output();
    if !possible.is_ok_and(|output| output.status.success()) {
        println!("skipped: no file system can be mounted here");
        return;
    }
    in_a_process_begun_by(with_a_file_system_at(place.path()), "on_a_small_file_system");
}

#[test]
#[ignore = "wants a file system of its own: started by a_file_system_that_is_full_or_read_only_is_named_with_what_to_do_\
            and_serves_when_it_is_neither"]
fn on_a_small_file_system() {
    assert!(is_child(), "in a process of its own only");
    let place = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    let remount = |how| {
        let status = Command::new("mount").args(["-o", how]).arg(&place).status().unwrap();
        assert!(status.success(), "{how}");
    };
    let mut filler = File::create(place.join("filler")).unwrap();
    let full = loop {
        match filler.write_all(&[0; 512]) {
            Ok(()) => {}
            Err(error) => break error.kind(),
        }
    };
    assert_eq!(full, ErrorKind::StorageFull);
    let (path, what) = refusal(&place);
    assert_eq!(path, place.join("identity.key"));
    assert!(what.contains("No space left") && what.contains("make room there"), "{what}");
    assert_eq!(names_in(&place), [""; 0], "no part of a key is left");
    filler.set_len(0).unwrap();

    drop(filler);
    remount("remount,ro");
    for folder in [place.clone(), place.join("data")] {
        let (path, what) = refusal(&folder);
        assert_eq!(path, folder.join("identity.key"));
        assert!(what.contains("Read-only file system") && what.contains("mount it for writing"), "{what}");
    }
    remount("remount,rw");
    assert_eq!(names_in(&place), [""; 0]);
    starts_and_is_the_same_again(&place);
    // A key that is there is enough.
    let id = Identity::load_or_create(&place).unwrap().peer_id();
    remount("remount,ro");
    let node = with_data_in(&place).start().unwrap();
    assert_eq!(node.id(), id);
    start(quick()).connect(addr(&node)).unwrap();
}
