//! The commands of standard input.
//!
//! Owns: nothing. Threads: the main one. Locks: none. Blocks on: nothing.
//! Upholds: a line is a whole command or an error that says how it is written.

use threadwire::{Address, PeerId};

/// What can be said.
pub const HELP: &str = "\
peers                the peers this node knows
add ID [ADDR]..      keep a peer connected; without an address, wait until it dials
remove PEER          keep it connected no longer, and end its session
send PEER TEXT       send one message; it waits for a peer that is away
all TEXT             send one to every peer that is connected
metrics              what was counted so far
help                 this
quit                 shut down and end
PEER is a name of the configuration, an id, or the beginning of one, from four digits on.";

/// A line of standard input.
#[derive(Debug, PartialEq, Eq)]
pub enum Command<'a> {
    Peers,
    Add { id: PeerId, addresses: Vec<Address> },
    Remove { peer: &'a str },
    Send { peer: &'a str, text: &'a str },
    All { text: &'a str },
    Metrics,
    Help,
    Quit,
}

/// Reads a line; nothing if it is empty.
pub fn parse(line: &str) -> Result<Option<Command<'_>>, String> {
    let (word, rest) = first_word(line);
    let command = match (word, rest) {
        ("", _) => return Ok(None),
        ("peers", "") => Command::Peers,
        ("metrics", "") => Command::Metrics,
        ("help", "") => Command::Help,
        ("quit", "") => Command::Quit,
        ("add", rest) if !rest.is_empty() => add(rest)?,
        ("remove", peer) if !peer.is_empty() && !peer.contains(char::is_whitespace) => Command::Remove { peer },
        ("all", text) if !text.is_empty() => Command::All { text },
        ("send", rest) if rest.contains(char::is_whitespace) => {
            let (peer, text) = first_word(rest);
            Command::Send { peer, text }
        }
        (word, _) => return Err(usage(word)),
    };
    Ok(Some(command))
}

fn add(rest: &str) -> Result<Command<'_>, String> {
    let (id, addresses) = first_word(rest);
    let id = id.parse().map_err(|error| format!("{id}: {error}"))?;
    let address = |text: &str| text.parse().map_err(|error| format!("{text}: {error}"));
    let addresses = addresses.split_whitespace().map(address).collect::<Result<_, _>>()?;
    Ok(Command::Add { id, addresses })
}

/// How a command is written.
fn usage(word: &str) -> String {
    match HELP.lines().find(|line| line.split_whitespace().next() == Some(word) && word != "PEER") {
        Some(line) => format!("usage: {}", line.split("  ").next().unwrap_or_default()),
        None => format!("unknown command {word:?}; try help"),
    }
}

/// The first word, and the rest without the spaces around it.
fn first_word(text: &str) -> (&str, &str) {
    let text = text.trim();
    let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    (word, rest.trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    #[test]
    fn every_command_is_read_and_a_text_keeps_its_inner_spaces() {
        let add = format!("add {ID} 127.0.0.1:1 north:2");
        let addresses = vec!["127.0.0.1:1".parse().unwrap(), "north:2".parse().unwrap()];
        let expected = [
            ("  ", None),
            ("peers", Some(Command::Peers)),
            (&add, Some(Command::Add { id: ID.parse().unwrap(), addresses })),
            ("remove north", Some(Command::Remove { peer: "north" })),
            (" send  north  two  words ", Some(Command::Send { peer: "north", text: "two  words" })),
            ("all of you", Some(Command::All { text: "of you" })),
            ("metrics\r", Some(Command::Metrics)),
            ("help", Some(Command::Help)),
            ("quit", Some(Command::Quit)),
        ];
        for (line, command) in expected {
            assert_eq!(parse(line).unwrap(), command, "{line}");
        }
    }

    #[test]
    fn a_command_that_is_not_whole_is_answered_with_how_it_is_written() {
        let expected = [
            ("send north", "usage: send PEER TEXT"),
            ("all", "usage: all TEXT"),
            ("remove", "usage: remove PEER"),
            ("remove a b", "usage: remove PEER"),
            ("add", "usage: add ID [ADDR].."),
            ("add 12", "12: a peer id is 64 hexadecimal digits"),
            ("peers now", "usage: peers"),
            ("PEER is", "unknown command \"PEER\"; try help"),
            ("sned x", "unknown command \"sned\"; try help"),
        ];
        for (line, says) in expected {
            assert_eq!(parse(line).unwrap_err(), says, "{line}");
        }
        assert!(parse(&format!("add {ID} nowhere")).unwrap_err().starts_with("nowhere: "));
    }
}
