//! The configuration: what the file says, and what the command line says instead.
//!
//! Owns: nothing. Threads: the main one. Locks: none. Blocks on: reading the file.
//! Upholds: what comes out has passed the library's check; nothing was made or opened for it.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use threadwire::config::Peer;
use threadwire::error::ConfigError;
use threadwire::{Address, Config, PeerId};

/// Where the configuration comes from.
#[derive(Debug, Clone, Args)]
pub struct Settings {
    /// The configuration
    #[arg(long, global = true, value_name = "FILE", default_value = "config.toml")]
    pub config: PathBuf,
    /// Listen here instead of where the file says; may be given several times; port 0 is any free one
    #[arg(long, global = true, value_name = "ADDR")]
    listen: Vec<SocketAddr>,
    /// Keep a peer connected, beside those of the file; of a peer given several times all addresses are tried
    #[arg(long = "peer", global = true, value_name = "ID@ADDR", value_parser = peer_at)]
    peers: Vec<(PeerId, Address)>,
    /// Keep the node's key here instead of where the file says
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

fn peer_at(text: &str) -> Result<(PeerId, Address), String> {
    let (id, address) = text.split_once('@').ok_or("ID@ADDR: the @ is missing")?;
    Ok((id.parse().map_err(|error| format!("{error}"))?, address.parse().map_err(|error| format!("{error}"))?))
}

/// Reads the file and puts the command line in its place where both say something: `--listen` and `--data-dir` for the
/// fields of these names, the addresses of `--peer` for those of a `[[peer]]` with the same id.
pub fn settle(settings: &Settings) -> Result<Config, ConfigError> {
    let mut config = Config::from_file(&settings.config)?;
    if !settings.listen.is_empty() {
        config.listen.clone_from(&settings.listen);
    }
    if let Some(folder) = &settings.data_dir {
        config.data_dir = Some(folder.clone());
    }
    let mut given: Vec<PeerId> = Vec::new();
    for (id, address) in &settings.peers {
        match config.peers.iter_mut().find(|peer| peer.id == *id) {
            Some(peer) if given.contains(id) => peer.addresses.push(address.clone()),
            Some(peer) => peer.addresses = vec![address.clone()],
            // Called what it would be called without a name.
            None => config.peers.push(Peer::new(id.short(), *id, [address.clone()])),
        }
        given.push(*id);
    }
    config.validate()?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    fn settings(text: &str, listen: &[&str], peers: &[String]) -> (tempfile::TempDir, Settings) {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("node.toml");
        std::fs::write(&config, text).unwrap();
        let listen = listen.iter().map(|addr| addr.parse().unwrap()).collect();
        let peers = peers.iter().map(|peer| peer_at(peer).unwrap()).collect();
        (folder, Settings { config, listen, peers, data_dir: None })
    }

    #[test]
    fn the_command_line_takes_the_place_of_what_the_file_says() {
        let other = ID.replace('9', "8");
        let file = format!("[[peer]]\nname = \"north\"\nid = \"{ID}\"\naddresses = [\"192.0.2.9:1\"]\n");
        let peers = [format!("{ID}@192.0.2.1:1"), format!("{ID}@north.example:2"), format!("{other}@[2001:db8::1]:3")];
        let (_folder, settings) = settings(&file, &["127.0.0.1:0", "[::1]:0"], &peers);
        let config = settle(&settings).unwrap();
        assert_eq!(config.listen.len(), 2);
        let peers: Vec<_> = config.peers.iter().map(|peer| (peer.name.as_str(), peer.addresses.len())).collect();
        assert_eq!(peers, [("north", 2), (&other[..8], 1)]);
    }

    #[test]
    fn without_a_command_line_the_file_is_the_configuration() {
        let (_folder, settings) = settings("inbound = 7\n", &[], &[]);
        let mut expected = Config::default();
        expected.inbound = 7;
        assert_eq!(settle(&settings).unwrap(), expected);
    }

    #[test]
    fn a_peer_without_an_id_or_an_address_is_refused() {
        for text in ["127.0.0.1:1", "abc@127.0.0.1:1", &format!("{ID}@nowhere"), ID] {
            assert!(peer_at(text).is_err(), "{text}");
        }
    }
}
