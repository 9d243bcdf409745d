//! What protects connections, and whom a node trusts.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing; the files are read when a node starts or reloads.
//! Upholds: the defaults pass their own check; what gives protection up is said, twice where strangers can reach it.

use std::path::PathBuf;

use serde::Deserialize;

use super::units;
use crate::ident::PeerId;

/// What protects connections, and whom this node trusts; `[security]` in a file.
///
/// [`Node::reload`](crate::Node::reload) takes all but `channel` and `key` while the node runs; these two are fixed for
/// its life.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a section [security]")]
#[non_exhaustive]
pub struct Security {
    /// What connections travel over. Default TLS. Both sides must say the same.
    ///
    /// [`Channel::Plain`] shows every message to whoever is on the way, and lets them change it.
    pub channel: Channel,

    /// Whom this node lets in, and lets itself be answered by. Default [`TrustMode::Open`], which a node that listens
    /// beyond its own machine must acknowledge in `public`.
    pub trust: TrustMode,

    /// Peers that are trusted beside those of `[[peer]]`, with `trust = "listed"`. Default none.
    pub trusted: Vec<PeerId>,

    /// A file of certificate authorities (PEM): with `trust = "listed"`, whoever shows a valid certificate of theirs is
    /// trusted too. Default `None` (`"off"`).
    #[serde(deserialize_with = "units::path_or_off")]
    pub roots: Option<PathBuf>,

    /// A file with this node's certificate and those that lead to an authority (PEM). It must be for the node's own key.
    /// Default `None` (`"off"`): the bare key is shown, which suffices for peers that list this node.
    #[serde(deserialize_with = "units::path_or_off")]
    pub certificate: Option<PathBuf>,

    /// The file of this node's key (PEM, ed25519, readable by its owner alone). Default `None` (`"off"`): the one in
    /// `data_dir`.
    #[serde(deserialize_with = "units::path_or_off")]
    pub key: Option<PathBuf>,

    /// What this node gives up although it listens beyond its own machine: `"plain"`, `"open"`. Default nothing, and
    /// then it does not start so. Whoever writes it here knows what [the threat model](crate::threats) says of it.
    pub public: Vec<Exposure>,
}

/// What connections travel over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Channel {
    /// TLS 1.3: private, unaltered, both sides proven. Needs the feature `tls`.
    Tls,
    /// Plain TCP: both sides prove a key when they meet; what follows can be read and changed on the way.
    Plain,
}

/// Whom a node lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum TrustMode {
    /// Everybody who proves a key.
    Open,
    /// The peers of `[[peer]]` and of `trusted`, and whoever the authorities of `roots` vouch for; nobody else.
    Listed,
}

/// A protection that a node gives up where strangers can reach it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Exposure {
    /// `channel = "plain"`.
    Plain,
    /// `trust = "open"`.
    Open,
}

impl Default for Security {
    fn default() -> Self {
        Self {
            channel: Channel::Tls,
            trust: TrustMode::Open,
            trusted: Vec::new(),
            roots: None,
            certificate: None,
            key: None,
            public: Vec::new(),
        }
    }
}
