//! The README says what the code says: its program, its tables of errors, its example of an error, its versions.
//!
//! That its links into the crate resolve is rustdoc's business: it is the crate's documentation.

use std::collections::BTreeMap;

use proc_macro2::{TokenStream, TokenTree};
use threadwire::Config;
use threadwire::error::{CloseReason, RejectCause};

const README: &str = include_str!("../README.md");

#[test]
fn the_readmes_program_is_the_example_hello() {
    let example = include_str!("../examples/hello.rs");
    let start = example.find("use std::time").unwrap();
    let program = example[start..].trim_end();
    assert!(README.contains(&format!("```rust\n{program}\n```")), "copy examples/hello.rs into the README");
    assert!(README.find(program).unwrap() < 200, "on its first screen");
}

#[test]
fn every_variant_of_every_error_has_a_row_that_says_whose_doing_it_is_and_what_to_do() {
    let enums = enums_of(include_str!("../src/error.rs"));
    let known =
        ["SendErrorKind", "RecvError", "ConnectError", "DialStage", "DialCause", "DisconnectError", "StartError"];
    for name in known.into_iter().chain(["DisconnectReason", "CloseReason", "RejectCause"]) {
        assert!(enums.contains_key(name), "{name} was not found in src/error.rs");
    }
    for (name, variants) in &enums {
        let rows = rows_under(name);
        let named: Vec<&str> = rows.iter().map(|row| row[0].trim_matches('`')).collect();
        assert_eq!(&named, variants, "the README's table of {name}, in the order of src/error.rs");
        for row in rows {
            assert!(row.len() == 3 && row.iter().all(|cell| !cell.is_empty()), "{name}: {row:?}");
        }
    }
    // The reader of the source did not overlook one: these lists are the compiler's.
    let all = |names: Vec<&'static str>| names.into_iter().chain(["Other"]).collect::<Vec<_>>();
    assert_eq!(enums["CloseReason"], all(CloseReason::ALL.iter().map(|reason| reason.name()).collect()));
    assert_eq!(enums["RejectCause"], all(RejectCause::ALL.iter().map(|cause| cause.name()).collect()));
}

#[test]
fn a_wrong_file_is_explained_as_the_readme_shows() {
    let file = include_str!("../config.toml").replace("idle_timeout = \"30 s\"", "idle_timeout = \"5 s\"");
    let error = Config::parse(&file, "config.toml").unwrap_err();
    assert!(README.contains(&format!("```text\n{error}\n```")), "the README shows another error than {error}");
}

#[test]
fn the_readme_names_the_oldest_supported_rust_and_every_example() {
    let oldest = env!("CARGO_PKG_RUST_VERSION");
    assert!(README.contains(&format!("- Rust {oldest} is the oldest supported version")));
    assert!(README.contains(&format!("# Rust, {oldest} or later")));
    let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples")).unwrap();
    let mut found = 0;
    for entry in folder {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(README.contains(&format!("--example {name}")), "the README does not name the example {name}");
        found += 1;
    }
    assert!(found >= 3, "only {found} examples were found");
}

/// The cells of the table under the heading of an enum, without its head.
fn rows_under(name: &str) -> Vec<Vec<&'static str>> {
    let heading = format!("\n### `{name}`\n");
    let at = README.find(&heading).unwrap_or_else(|| panic!("the README has no table of {name}"));
    let section = &README[at + heading.len()..];
    let section = &section[..section.find("\n#").unwrap_or(section.len())];
    let cells = |line: &'static str| line.trim_matches('|').split('|').map(str::trim).collect();
    section.lines().filter(|line| line.starts_with('|')).skip(2).map(cells).collect()
}

/// The public enums of a source file, those that a macro declares included, and the names of their variants.
///
/// Read from the source, because the compiler lets nobody outside the crate match a non-exhaustive enum without a rest.
fn enums_of(source: &str) -> BTreeMap<String, Vec<String>> {
    let Ok(tokens) = source.parse::<TokenStream>() else { panic!("the source does not lex") };
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut enums = BTreeMap::new();
    for (at, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Ident(word) if word == "enum" => {
                if let [TokenTree::Ident(name), TokenTree::Group(body), ..] = &tokens[at + 1..] {
                    enums.insert(name.to_string(), variants_of(body.stream(), ','));
                }
            }
            TokenTree::Ident(word) if word == "wire_reasons" => {
                // `macro_rules! wire_reasons { .. }` declares none.
                let Some(TokenTree::Group(body)) = tokens.get(at + 2) else { continue };
                let body: Vec<TokenTree> = body.stream().into_iter().collect();
                if let [.., TokenTree::Ident(name), TokenTree::Group(body)] = &body[..] {
                    let mut variants = variants_of(body.stream(), ';');
                    variants.push("Other".to_owned());
                    enums.insert(name.to_string(), variants);
                }
            }
            _ => {}
        }
    }
    enums
}

/// The first word of each entry that is not part of an attribute.
fn variants_of(body: TokenStream, end: char) -> Vec<String> {
    let mut variants = Vec::new();
    let mut named = false;
    for token in body {
        match token {
            TokenTree::Punct(mark) if mark.as_char() == end => named = false,
            TokenTree::Ident(name) if !named => {
                variants.push(name.to_string());
                named = true;
            }

            _ => {}
        }
    }
    variants
}
