//! The configuration file, while the node runs: read again when it has changed, or when SIGHUP asks for it.
//!
//! Owns: what the file said when it was read last. Threads: the main one. Locks: none. Blocks on: reading the file.
//! Upholds: a file is put to use once it has stayed the same for one look: nobody is caught halfway through writing it. One
//! that is refused is told once, until it changes again.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often the file is looked at.
pub const LOOK: Duration = Duration::from_secs(1);

/// A file that is looked at now and then.
#[derive(Debug)]
pub struct Watched {
    path: PathBuf,
    /// What was put to use, or refused, last.
    used: Option<Vec<u8>>,
    /// What the last look found, if that was something else.
    found: Option<Option<Vec<u8>>>,
}

impl Watched {
    /// The file as it is now: it has been put to use.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), used: std::fs::read(path).ok(), found: None }
    }

    /// Whether it is to be read again: it is another one than was put to use last, and the same as at the look before.
    pub fn look(&mut self) -> bool {
        // One that is missing for a moment is being replaced.
        let now = std::fs::read(&self.path).ok();
        if now == self.used {
            self.found = None;
            return false;
        }
        let stays = self.found.as_ref() == Some(&now);
        if stays {
            (self.used, self.found) = (now, None);
        } else {
            self.found = Some(now);
        }
        stays
    }

    /// It is read now, because somebody asked for it.
    pub fn asked(&mut self) {
        (self.used, self.found) = (std::fs::read(&self.path).ok(), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_again_once_it_has_changed_and_stayed_so_for_a_look() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.toml");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write("a");
        let mut file = Watched::new(&path);
        assert!(!file.look() && !file.look());
        write("ab");
        assert!(!file.look());
        write("abc");
        assert!(!file.look(), "it is still being written");
        assert!(file.look());
        assert!(!file.look(), "once");
        // Gone and back is no change; gone for good is one.
        std::fs::remove_file(&path).unwrap();
        assert!(!file.look());
        write("abc");
        assert!(!file.look());
        std::fs::remove_file(&path).unwrap();
        assert!(!file.look() && file.look() && !file.look());
        write("x");
        file.asked();
        assert!(!file.look());
    }
}
