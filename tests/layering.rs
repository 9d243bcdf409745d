//! A file imports only lower ranks, and within a folder nothing goes in a circle.
//!
//! An import is any path to what another file defines, in a `use` or in the code, seen through re-exports: what lib.rs
//! or a `mod.rs` hands on counts as what it is, and handing it on is no import. `mod` declarations are none either.
//! Two things it does not see: methods called on a value whose type is not named, and a function that a `mod.rs`
//! re-exports and passes on by name without calling it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::path::Path;

#[path = "layering/graph.rs"]
mod graph;
#[path = "layering/source.rs"]
mod source;

use graph::check;
use source::Tree;

/// Top-level modules of the library, from the lowest rank up. A new one must be added here.
const RANKS: &[&[&str]] = &[
    &["sync"],
    &["address", "ident", "listener", "threads", "watch"],
    &["error"],
    // Above `error`, which holds what is wrong with a configuration beside what else keeps a node from starting, and
    // the causes that are counted.
    &["config", "metrics", "outcome"],
    // The endpoint knows the counters and threads, and is given the text: nothing of nodes.
    &["memory", "exposition"],
    &["wire"],
    &["transport"],
    &["handshake"],
    &["link"],
    &["session"],
    &["registry"],
    &["connections"],
    // What nodes and direct senders are made of.
    &["engine"],
    &["direct", "peers", "inventory"],
    &["gossip"],
    &["node"],
];

/// The crate root and the pages of documentation: they may name anything, and nothing may import from them.
const EXEMPT: &[&str] = &["", "invariants", "threats"];

fn findings(tree: &str) -> (Tree, Vec<String>) {
    let tree = Tree::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join(tree));
    let findings = check(&tree, RANKS, EXEMPT).iter().map(ToString::to_string).collect();
    (tree, findings)
}

#[test]
fn the_library_imports_only_downward_and_in_no_circle() {
    let (tree, findings) = findings("src");
    assert!(tree.files.iter().any(|file| file.name == "wire/decoder.rs"), "the sources were read");
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

#[test]
fn every_breach_in_a_bad_tree_is_reported_and_nothing_else() {
    let (_, findings) = findings("tests/fixtures/layering_bad");
    let expected = [
        // A circle of siblings, one of a parent and a child, one that goes through the parent's own re-export.
        "connections/acceptor.rs:3: a cycle: connections/acceptor.rs:3 names super::Limits of connections/mod.rs, \
         connections/mod.rs:10 names acceptor::accept of connections/acceptor.rs",
        "link/lanes.rs:3: a cycle: link/lanes.rs:3 names super::Base of link/mod.rs, \
         link/mod.rs:8 names Lane of link/lanes.rs",
        "session/outbox.rs:3: a cycle: session/outbox.rs:3 names super::sender::Sender of session/sender.rs, \
         session/sender.rs:5 names crate::session::Outbox of session/outbox.rs",
        // Of the same rank.
        "watch.rs:3: watch is not above threads: crate::threads::Thread is in threads.rs",
        // Not in the table.
        "surprise.rs:1: module surprise has no rank: add it to the table in tests/layering.rs",
        // Upward through lib.rs, through a lower module, through a glob, and the hand of that lower module itself.
        "error.rs:3: error is not above node: crate::Node is in node.rs",
        "error.rs:4: error is not above the crate root: crate::VERSION is in lib.rs",
        "sync.rs:3: sync is not above node: crate::node::Handle is in node.rs",
        "transport.rs:3: transport is not above node: crate::sync::Handle is in node.rs",
        "transport.rs:6: transport is not above connections: crate::connections::prelude::Acceptor is in connections/acceptor.rs",
        // Upward in braces over several lines, in the code, in a macro, after `..`, by the name of an imported module.
        "wire.rs:5: wire is not above session: crate::session::outbox::Outbox is in session/outbox.rs",
        "wire.rs:6: wire is not above session: crate::session is in session/mod.rs",
        "wire.rs:9: wire is not above registry: crate::registry::Registry is in registry.rs",
        "wire.rs:10: wire is not above session: session::send is in session/sender.rs",
        "wire.rs:13: wire is not above node: super::node::Handle is in node.rs",
        "wire.rs:19: wire is not above connections: crate::connections::run is in connections/mod.rs",
    ];
    let mut expected: Vec<&str> = expected.to_vec();
    let mut found: Vec<&str> = findings.iter().map(String::as_str).collect();
    expected.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, expected, "\n{}\n", findings.join("\n"));
}
