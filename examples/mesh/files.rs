//! The files: which there are, how they are cut into pieces, and where received pieces are written.
//!
//! Owns: a receiver's folder while a [`Store`] is open. Threads: one for each store. Locks: none.
//! Blocks on: the file system.
//! Upholds: a name from the wire never leads outside the receiver's folder.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::failure::{Context, Failure};
use crate::message::{CONTENT_MAX, Digest, Piece, RunningDigest};

/// Name of the file the default set is completed with.
const SEEDED_NAME: &str = "seeded-64MiB.bin";
/// Its size in bytes.
const SEEDED_BYTES: u64 = 64 << 20;
/// Where its bytes come from.
const SEED: u64 = 0x7468_7265_6164_7769;
/// What of the crate the default set holds.
const CRATE_PARTS: [&str; 3] = ["src", "README.md", "config.toml"];
/// Sizes of pieces, in turn, so that large messages and tiny ones follow each other in one stream.
const PIECES: [usize; 6] = [CONTENT_MAX, 100, 200_000, 64 * 1024 + 1, 1, 4096];

/// A file to send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its name at the receiver, parts separated by `/`.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
    /// Its size in bytes when it was listed.
    pub length: u64,
}

/// What there is to send.
#[derive(Debug, Default)]
pub struct Sources {
    /// The files, sorted by name.
    pub files: Vec<Source>,
    /// Symbolic links and special files, which are not sent.
    pub skipped: u64,
}

impl Sources {
    /// Everything below `folder`.
    pub fn below(folder: &Path) -> Result<Self, Failure> {
        let mut sources = Self::default();
        sources.walk(folder, "")?;
        Ok(sources.sorted())
    }

    /// This crate's sources, README and configuration, and a seeded file made in `scratch`.
    pub fn default_set(scratch: &Path) -> Result<Self, Failure> {
        let home = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut sources = Self::default();
        for part in CRATE_PARTS {
            sources.add(&home.join(part), part)?;
        }
        let seeded = scratch.join(SEEDED_NAME);
        write_seeded(&seeded, SEEDED_BYTES).context(|| format!("writing {}", seeded.display()))?;
        sources.add(&seeded, SEEDED_NAME)?;
        Ok(sources.sorted())
    }

    /// Bytes of all files together.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.length).sum()
    }

    /// Messages it takes to send all files to one receiver.
    pub fn messages(&self) -> u64 {
        self.files.iter().map(|file| pieces(file.length).count() as u64).sum()
    }

    fn walk(&mut self, folder: &Path, prefix: &str) -> Result<(), Failure> {
        let entries = fs::read_dir(folder).context(|| format!("listing {}", folder.display()))?;
        for entry in entries {
            let path = entry.context(|| format!("listing {}", folder.display()))?.path();
            let part = path.file_name().and_then(OsStr::to_str);
            let part = part.ok_or_else(|| Failure::new(format!("{} has a name that is not UTF-8", path.display())))?;
            let name = if prefix.is_empty() { part.to_owned() } else { format!("{prefix}/{part}") };
            self.add(&path, &name)?;
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, name: &str) -> Result<(), Failure> {
        let about = fs::symlink_metadata(path).context(|| format!("looking at {}", path.display()))?;
        if about.is_dir() {
            return self.walk(path, name);
        }
        if !about.is_file() {
            // A link may lead anywhere, also in a circle; a pipe has no end.
            self.skipped += 1;
            return Ok(());
        }
        safe_path(name)?;
        self.files.push(Source { name: name.to_owned(), path: path.to_owned(), length: about.len() });
        Ok(())
    }

    fn sorted(mut self) -> Self {
        self.files.sort_by(|a, b| a.name.cmp(&b.name));
        self
    }
}

/// Writes `length` bytes that are the same in every run.
fn write_seeded(path: &Path, length: u64) -> io::Result<()> {
    let mut random = fastrand::Rng::with_seed(SEED);
    let mut file = BufWriter::with_capacity(CONTENT_MAX, File::create(path)?);
    let mut block = vec![0; 64 * 1024];
    let mut left = length;
    while left > 0 {
        let take = left.min(block.len() as u64) as usize;
        random.fill(&mut block[..take]);
        file.write_all(&block[..take])?;
        left -= take as u64;
    }
    file.flush()
}

/// Where the pieces of a file of `length` bytes start, and how long they are. An empty file is one empty piece.
pub fn pieces(length: u64) -> impl Iterator<Item = (u64, usize)> {
    let mut turn = PIECES.iter().cycle();
    let mut next = Some(0);
    std::iter::from_fn(move || {
        let offset = next?;
        let take = (*turn.next()? as u64).min(length - offset);
        next = (offset + take < length).then_some(offset + take);
        Some((offset, take as usize))
    })
}

/// A source, read piece by piece from its start.
pub struct SourceReader<'a> {
    source: &'a Source,
    file: File,
    buffer: Vec<u8>,
}

impl<'a> SourceReader<'a> {
    /// Opens the file.
    pub fn open(source: &'a Source) -> Result<Self, Failure> {
        let file = File::open(&source.path).context(|| format!("opening {}", source.path.display()))?;
        Ok(Self { source, file, buffer: Vec::new() })
    }

    /// The next `length` bytes. A file that has become shorter is an error.
    #[expect(clippy::disallowed_methods, reason = "a file has no read timeout that could lose bytes")]
    pub fn next(&mut self, length: usize) -> Result<&[u8], Failure> {
        self.buffer.resize(length, 0);
        self.file.read_exact(&mut self.buffer).context(|| format!("reading {}", self.source.path.display()))?;
        Ok(&self.buffer)
    }
}

/// Where a name from the wire lies below a folder.
///
/// Refused: empty names, absolute ones, `.` and `..`, and whatever this system would not take as one plain part.
pub fn safe_path(name: &str) -> Result<PathBuf, Failure> {
    let mut path = PathBuf::new();
    for part in name.split('/') {
        let mut components = Path::new(part).components();
        match (components.next(), components.next()) {
            (Some(Component::Normal(only)), None) if only == OsStr::new(part) && !part.contains(['\0', '\\']) => {
                path.push(only);
            }
            _ => return Err(Failure::new(format!("{name:?} is no path below a folder"))),
        }
    }
    Ok(path)
}

/// A receiver's folder.
pub struct Store {
    root: PathBuf,
    /// The file written last: pieces of one file come one after the other.
    open: Option<(String, File)>,
}

impl Store {
    /// A store in a new folder.
    pub fn create(root: PathBuf) -> Result<Self, Failure> {
        fs::create_dir_all(&root).context(|| format!("making {}", root.display()))?;
        Ok(Self { root, open: None })
    }

    /// Writes a piece where it belongs.
    pub fn write(&mut self, piece: &Piece<'_>) -> Result<(), Failure> {
        let name = &piece.header.path;
        let file = match &mut self.open {
            Some((open, file)) if open == name => file,
            slot => {
                let path = self.root.join(safe_path(name)?);
                let file = open_for_writing(&path).context(|| format!("opening {}", path.display()))?;
                &mut slot.insert((name.clone(), file)).1
            }
        };
        let written = file.seek(SeekFrom::Start(piece.header.offset)).and_then(|_| file.write_all(piece.content));
        written.context(|| format!("writing {name} below {}", self.root.display()))
    }
}

fn open_for_writing(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    OpenOptions::new().write(true).create(true).truncate(false).open(path)
}

/// The digest of a whole file.
pub fn digest_of(path: &Path) -> Result<Digest, Failure> {
    let doing = || format!("reading {}", path.display());
    let mut file = File::open(path).context(doing)?;
    let mut digest = RunningDigest::new();
    let mut block = vec![0; 256 * 1024];
    loop {
        match file.read(&mut block) {
            Ok(0) => return Ok(digest.finish()),
            Ok(count) => digest.update(&block[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context(doing),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Header;

    #[test]
    fn pieces_cover_a_file_once_and_are_never_too_large() {
        for length in [0, 1, 100, 1 << 20, (1 << 20) + 1, 9_000_000] {
            let mut end = 0;
            for (offset, size) in pieces(length) {
                assert_eq!(offset, end);
                assert!(size <= CONTENT_MAX && (size > 0 || length == 0));
                end += size as u64;
            }
            assert_eq!(end, length);
        }
        assert_eq!(pieces(0).count(), 1, "an empty file is one message");
    }

    #[test]
    fn a_large_file_makes_messages_above_64_kib_and_tiny_ones() {
        let sizes: Vec<usize> = pieces(8 << 20).map(|(_, size)| size).collect();
        assert!(sizes.contains(&CONTENT_MAX));
        assert!(sizes.iter().any(|size| *size > 64 * 1024 && *size < CONTENT_MAX));
        assert!(sizes.contains(&1));
    }

    #[test]
    fn names_that_lead_outside_are_refused() {
        for bad in ["", "/", "/etc/passwd", "..", "a/../b", "a//b", "a/", "./a", "a/.", "a\\..\\b", "a\0b"] {
            assert!(safe_path(bad).is_err(), "{bad:?}");
        }
        assert_eq!(safe_path("src/a b/..c.rs").unwrap(), Path::new("src").join("a b").join("..c.rs"));
    }

    #[test]
    fn a_store_puts_pieces_together_in_any_order_and_refuses_a_name_that_leads_outside() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::create(folder.path().join("files")).unwrap();
        let mut write = |path: &str, offset, content: &[u8]| {
            let header =
                Header { sequence: 0, file: 0, path: path.into(), offset, length: content.len() as u32, total: 5 };
            store.write(&Piece { header, content })
        };
        write("a/b", 3, b"lo").unwrap();
        write("empty", 0, b"").unwrap();
        write("a/b", 0, b"hel").unwrap();
        assert!(write("../b", 0, b"x").is_err());
        assert_eq!(fs::read(folder.path().join("files/a/b")).unwrap(), b"hello");
        assert_eq!(fs::read(folder.path().join("files/empty")).unwrap(), b"");
        assert!(!folder.path().join("b").exists());
    }

    #[test]
    fn a_folder_is_listed_with_everything_below_it_and_links_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("x/y")).unwrap();
        fs::write(folder.path().join("x/y/one"), b"1").unwrap();
        fs::write(folder.path().join("two"), b"22").unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(folder.path(), folder.path().join("x/round")).unwrap();
        let sources = Sources::below(folder.path()).unwrap();
        assert_eq!(sources.files.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), ["two", "x/y/one"]);
        assert_eq!((sources.bytes(), sources.messages(), sources.skipped), (3, 2, u64::from(cfg!(unix))));
    }

    #[test]
    fn a_seeded_file_is_the_same_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let paths = [folder.path().join("a"), folder.path().join("b")];
        for path in &paths {
            write_seeded(path, 200_001).unwrap();
            assert_eq!(fs::metadata(path).unwrap().len(), 200_001);
        }
        assert_eq!(digest_of(&paths[0]).unwrap(), digest_of(&paths[1]).unwrap());
    }

    #[test]
    fn a_source_that_became_shorter_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), [1; 10]).unwrap();
        let sources = Sources::below(folder.path()).unwrap();
        fs::write(folder.path().join("file"), [1; 9]).unwrap();
        assert!(SourceReader::open(&sources.files[0]).unwrap().next(10).is_err());
    }
}
