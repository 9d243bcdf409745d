//! What the applications write down: each message that `send` accepted, each message that was delivered.
//!
//! Owns: the ledger file while a [`Ledger`] is open. Threads: one for each ledger. Locks: none.
//! Blocks on: the file system.
//! Upholds: one line for one message, in the order it happened; the checker reads nothing else about messages.
//!
//! ```text
//! sent      receiver sequence digest
//! received  sender   sequence digest  intact|damaged  first|repeat       (sequence is "-" if it cannot be read)
//! ```

use std::fmt;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use threadwire::PeerId;

use crate::failure::{Context, Failure};
use crate::message::Digest;

/// A message that `send` accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// The receiver.
    pub to: PeerId,
    /// The application's number.
    pub sequence: u64,
    /// The digest the payload carries.
    pub digest: Digest,
}

/// A message that was delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// The sender, as the library names it.
    pub from: PeerId,
    /// The application's number; none if the payload cannot be read.
    pub sequence: Option<u64>,
    /// The digest of the bytes that came.
    pub digest: Digest,
    /// Whether the payload carries that digest.
    pub intact: bool,
    /// Whether the library announced a possible repeat.
    pub possible_repeat: bool,
}

impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.to, self.sequence, self.digest)
    }
}

impl FromStr for Sent {
    type Err = Failure;

    fn from_str(line: &str) -> Result<Self, Failure> {
        let [to, sequence, digest] = fields(line)?;
        let to = to.parse().context(|| "receiver".to_owned())?;
        let sequence = sequence.parse().context(|| "sequence".to_owned())?;
        Ok(Self { to, sequence, digest: digest.parse()? })
    }
}

impl fmt::Display for Delivered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.from)?;
        match self.sequence {
            Some(sequence) => write!(f, "{sequence}")?,
            None => f.write_str("-")?,
        }
        let intact = if self.intact { "intact" } else { "damaged" };
        let repeat = if self.possible_repeat { "repeat" } else { "first" };
        write!(f, " {} {intact} {repeat}", self.digest)
    }
}

impl FromStr for Delivered {
    type Err = Failure;

    fn from_str(line: &str) -> Result<Self, Failure> {
        let [from, sequence, digest, intact, repeat] = fields(line)?;
        Ok(Self {
            from: from.parse().context(|| "sender".to_owned())?,
            sequence: match sequence {
                "-" => None,
                number => Some(number.parse().context(|| "sequence".to_owned())?),
            },
            digest: digest.parse()?,
            intact: one_of(intact, "intact", "damaged")?,
            possible_repeat: one_of(repeat, "repeat", "first")?,
        })
    }
}

fn fields<const N: usize>(line: &str) -> Result<[&str; N], Failure> {
    let fields: Vec<&str> = line.split(' ').collect();
    fields.try_into().map_err(|fields: Vec<&str>| Failure::new(format!("{} fields where {N} belong", fields.len())))
}

fn one_of(field: &str, yes: &str, no: &str) -> Result<bool, Failure> {
    if field == yes || field == no {
        Ok(field == yes)
    } else {
        Err(Failure::new(format!("{field:?} where {yes} or {no} belongs")))
    }
}

/// A ledger being written.
pub struct Ledger {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Ledger {
    /// Starts an empty ledger; there must be none yet.
    pub fn create(path: PathBuf) -> Result<Self, Failure> {
        let file = File::create_new(&path).context(|| format!("making the ledger {}", path.display()))?;
        Ok(Self { path, file: BufWriter::new(file) })
    }

    /// Appends one line.
    pub fn append(&mut self, line: &impl fmt::Display) -> Result<(), Failure> {
        writeln!(self.file, "{line}").context(|| format!("writing the ledger {}", self.path.display()))
    }

    /// Writes everything out.
    pub fn finish(mut self) -> Result<(), Failure> {
        self.file.flush().context(|| format!("writing the ledger {}", self.path.display()))
    }
}

/// Reads a whole ledger. A line that ends early is an error: the ledger was not finished.
pub fn read<Line: FromStr<Err = Failure>>(path: &Path) -> Result<Vec<Line>, Failure> {
    let text = fs::read_to_string(path).context(|| format!("reading the ledger {}", path.display()))?;
    if !text.is_empty() && !text.ends_with('\n') {
        return Err(Failure::new(format!("the ledger {} ends in the middle of a line", path.display())));
    }
    let parse = |(number, line): (usize, &str)| {
        line.parse().context(|| format!("the ledger {}, line {}", path.display(), number + 1))
    };
    text.lines().enumerate().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(byte: u8) -> PeerId {
        PeerId::from_bytes([byte; 32])
    }

    #[test]
    fn a_ledger_gives_back_what_was_written_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        let lines: Vec<Delivered> = (0..500)
            .map(|n: u64| Delivered {
                from: peer(n as u8),
                sequence: (!n.is_multiple_of(7)).then_some(n),
                digest: Digest::of(&n.to_le_bytes()),
                intact: n.is_multiple_of(3),
                possible_repeat: n.is_multiple_of(5),
            })
            .collect();
        let mut ledger = Ledger::create(path.clone()).unwrap();
        lines.iter().for_each(|line| ledger.append(line).unwrap());
        ledger.finish().unwrap();
        assert_eq!(read::<Delivered>(&path).unwrap(), lines);
        assert!(Ledger::create(path).is_err(), "a ledger is never overwritten");
    }

    #[test]
    fn a_damaged_ledger_is_an_error_that_names_the_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        let good = Sent { to: peer(1), sequence: 1, digest: Digest::of(b"x") }.to_string();
        fs::write(&path, format!("{good}\n{good}\n")).unwrap();
        assert_eq!(read::<Sent>(&path).unwrap().len(), 2);
        for (bad, place) in [
            (format!("{good}\n{}\n", &good[..good.len() - 1]), "line 2"),
            (format!("{good} more\n"), "line 1"),
            (format!("{good}\n{good}"), "middle of a line"),
            ("\n".to_owned(), "line 1"),
        ] {
            fs::write(&path, bad).unwrap();
            let failure = read::<Sent>(&path).unwrap_err().to_string();
            assert!(failure.contains(place), "{failure}");
        }
    }
}
