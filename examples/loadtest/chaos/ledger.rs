//! What the applications write down: each message they send and what becomes of it, each message they are handed.
//!
//! Owns: the file while a [`Ledger`] is open. Threads: one for each open ledger; several may append to one file.
//! Locks: none. Blocks on: the file system.
//! Upholds: a line is with the system when [`Ledger::append`] returns, whole, so that a kill right after loses nothing:
//! nothing is buffered here, and a line lies in one page because its length divides a page's.
//!
//! ```text
//! what      node  life  lane    mode         sequence    digest
//! sent      2     0     normal  reliable     17          00f1..      before it is given to the library
//! ```
//! The node is the one at the other end; the life is the sender's.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::chaos::payload::{Stamp, Stream};
use crate::failure::{Context, Failure};

/// Bytes of a line, its end included.
const LINE: usize = 64;

/// What happened to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum What {
    /// It is about to be given to the library.
    Sent,
    /// The same; it is wanted for a limited time only.
    Brief,
    /// The library did not take it.
    Refused,
    /// The library says: handed over.
    Acked,
    /// The library says: not handed over, and gives it back.
    Returned,
    /// The library says: nobody knows.
    Unknown,
    /// The library says: written, by choice no more than that.
    Written,
    /// It came.
    Taken,
    /// It came, and the library says that it may be a repeat.
    Repeat,
    /// It came, and is not what its sender made.
    Damaged,
}

impl What {
    const ALL: [(Self, &str); 10] = [
        (Self::Sent, "sent"),
        (Self::Brief, "brief"),
        (Self::Refused, "refused"),
        (Self::Acked, "acked"),
        (Self::Returned, "returned"),
        (Self::Unknown, "unknown"),
        (Self::Written, "written"),
        (Self::Taken, "taken"),
        (Self::Repeat, "repeat"),
        (Self::Damaged, "damaged"),
    ];
}

const LANES: [&str; Stream::LANES as usize] = ["urgent", "normal", "bulk"];
/// In the order of [`Stream::MODES`].
const MODES: [&str; Stream::MODES.len()] = ["reliable", "effort", "latest"];

/// One line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    /// What happened.
    pub what: What,
    /// To which message. `from` is the node at the other end, which is the receiver in a sender's ledger.
    pub stamp: Stamp,
    /// Its digest; 0 where the library gives no bytes.
    pub digest: u64,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = What::ALL.iter().find(|(what, _)| *what == self.what).map_or("", |(_, word)| word);
        let Stamp { from, stream, life, sequence } = self.stamp;
        let (lane, mode) = (LANES[usize::from(stream.lane)], MODES[stream.mode as usize]);
        write!(f, "{what} {from} {life} {lane} {mode} {sequence} {:016x}", self.digest)
    }
}

impl FromStr for Line {
    type Err = Failure;

    fn from_str(line: &str) -> Result<Self, Failure> {
        let mut words = line.split(' ');
        let mut word = || words.next().unwrap_or_default();
        let what = word();
        let what = What::ALL.iter().find(|(_, name)| *name == what).map(|(what, _)| *what);
        let from = word().parse().context("the node")?;
        let life = word().parse().context("the life")?;
        let (lane, mode) = (word(), word());
        let lane = LANES.iter().position(|name| *name == lane).map(|lane| lane as u8);
        let mode = MODES.iter().position(|name| *name == mode).map(|mode| Stream::MODES[mode]);
        let sequence = word().parse().context("the sequence")?;
        let digest = u64::from_str_radix(word(), 16).context("the digest")?;
        match (what, lane, mode, words.next()) {
            (Some(what), Some(lane), Some(mode), None) => {
                let stream = Stream { lane, mode };
                Ok(Self { what, stamp: Stamp { from, stream, life, sequence }, digest })
            }
            _ => Err(Failure::new("no line of a ledger")),
        }
    }
}

/// Where a node's ledgers lie: what its process number `life` sent to a node.
pub fn sent_by(folder: &Path, node: usize, life: u16, to: usize) -> PathBuf {
    folder.join(format!("node-{node}")).join(format!("life-{life}-sent-to-{to}"))
}

/// Where a node's ledgers lie: what its process number `life` was handed of a node's.
pub fn received_by(folder: &Path, node: usize, life: u16, from: usize) -> PathBuf {
    folder.join(format!("node-{node}")).join(format!("life-{life}-received-from-{from}"))
}

/// A ledger being written.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    file: File,
}

impl Ledger {
    /// Appends to a ledger, which is made if there is none.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(path: PathBuf) -> Result<Self, Failure> {
        let opened = OpenOptions::new().create(true).append(true).open(&path);
        let file = opened.context(format_args!("opening the ledger {}", path.display()))?;
        Ok(Self { path, file })
    }

    /// Appends one line.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn append(&mut self, line: &Line) -> Result<(), Failure> {
        let mut bytes = [b' '; LINE];
        bytes[LINE - 1] = b'\n';
        write!(&mut bytes[..LINE - 1], "{line}").context("a line of a ledger")?;
        self.file.write_all(&bytes).context(format_args!("writing the ledger {}", self.path.display()))
    }
}

/// Reads a whole ledger; one that was never begun is empty.
///
/// # Errors
/// It cannot be read, or a line is none.
pub fn read(path: &Path) -> Result<Vec<Line>, Failure> {
    let doing = || format!("reading the ledger {}", path.display());
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        bytes => bytes.context(doing())?,
    };
    let text = std::str::from_utf8(&bytes).context(doing())?;
    if !text.len().is_multiple_of(LINE) {
        return Err(Failure::new(format!("{}: it ends in the middle of a line", doing())));
    }
    let parse = |(number, line): (usize, &str)| {
        line.trim_end().parse().context(format_args!("{}, line {}", doing(), number + 1))
    };
    text.lines().enumerate().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(n: u32) -> Line {
        let stream = Stream { lane: (n % 3) as u8, mode: Stream::MODES[n as usize % 3] };
        let what = What::ALL[n as usize % What::ALL.len()].0;
        Line { what, stamp: Stamp { from: 254, stream, life: u16::MAX, sequence: u32::MAX - n }, digest: u64::MAX - 5 }
    }

    #[test]
    fn a_ledger_gives_back_what_several_writers_appended_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        let lines: Vec<Line> = (0..100).map(line).collect();
        let mut ledgers = [Ledger::open(path.clone()).unwrap(), Ledger::open(path.clone()).unwrap()];
        for (n, line) in lines.iter().enumerate() {
            ledgers[n % 2].append(line).unwrap();
        }
        assert_eq!(read(&path).unwrap(), lines);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 100 * LINE as u64);
        assert_eq!(read(&folder.path().join("none")).unwrap(), []);
    }

    #[test]
    fn a_damaged_ledger_is_an_error_that_names_the_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        Ledger::open(path.clone()).unwrap().append(&line(1)).unwrap();
        let good = std::fs::read_to_string(&path).unwrap();
        for (bad, place) in [
            (good[..LINE - 1].to_owned(), "middle of a line"),
            (good.clone() + &good.replace("normal", "normaz"), "line 2"),
            (good.replace("65535", "65536"), "line 1"),
        ] {
            std::fs::write(&path, bad).unwrap();
            let failure = read(&path).unwrap_err().to_string();
            assert!(failure.contains(place), "{failure}");
        }
    }
}
