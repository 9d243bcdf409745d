//! Reads a source tree into modules: what each declares, what it brings into scope, and which paths it names.
//!
//! Works on tokens, so that comments, strings and doc examples never count, and paths inside macros do. What is
//! compiled for tests only (`#[cfg(test)]`, files named `tests.rs`) is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// All modules of a tree; the crate root is the first.
#[derive(Debug, Default)]
pub struct Tree {
    pub modules: Vec<Module>,
    pub files: Vec<File>,
}

/// One source file.
#[derive(Debug)]
pub struct File {
    /// Relative to the tree, with `/`.
    pub name: String,
    /// The path of its module; empty for `lib.rs`.
    pub module: Vec<String>,
}

/// One module: a file, or inline in one.
#[derive(Debug, Default)]
pub struct Module {
    pub parent: Option<usize>,
    pub file: Option<usize>,
    pub children: BTreeMap<String, usize>,
    /// Children that exist for tests only.
    pub test_children: BTreeSet<String>,
    /// Names that `use` brings into scope, and the paths they stand for.
    pub bindings: BTreeMap<String, Vec<String>>,
    /// Paths of modules that `use ..::*` brings into scope.
    pub globs: Vec<Vec<String>>,
    /// Names of items defined here.
    pub items: BTreeSet<String>,
    pub mentions: Vec<Mention>,
}

/// A path that stands somewhere in the code.
#[derive(Debug)]
pub struct Mention {
    pub path: Vec<String>,
    pub line: usize,
    /// It stands in a `pub use`, in any visibility: whoever uses it depends on it, not this module.
    pub is_reexport: bool,
}

impl Tree {
    /// Reads all `.rs` files under `root`.
    pub fn read(root: &Path) -> Self {
        let mut tree = Self { modules: vec![Module::default()], files: Vec::new() };
        let mut names = Vec::new();
        list(root, "", &mut names);
        names.sort();
        let mut pending = Vec::new();
        for name in names {
            let module = module_path(&name);
            let mut at = 0;
            for part in &module {
                at = tree.child(at, part);
            }
            let file = tree.files.len();
            tree.modules[at].file = Some(file);
            tree.files.push(File { name, module });
            pending.push((at, file));
        }
        for (module, file) in pending {
            let name = &tree.files[file].name;
            let text = std::fs::read_to_string(root.join(name)).unwrap();
            let tokens: TokenStream = text.parse().unwrap_or_else(|error| panic!("{name}: {error}"));
            Scanner { tree: &mut tree, file, module }.scan(tokens, Place::Items);
        }
        tree
    }

    /// Whether a module is compiled for tests only.
    pub fn is_for_tests(&self, module: &[String]) -> bool {
        let mut at = 0;
        for part in module {
            if part == "tests" || self.modules[at].test_children.contains(part) {
                return true;
            }
            at = self.modules[at].children[part];
        }
        false
    }

    fn child(&mut self, parent: usize, name: &str) -> usize {
        if let Some(child) = self.modules[parent].children.get(name) {
            return *child;
        }
        let child = self.modules.len();
        self.modules.push(Module { parent: Some(parent), ..Module::default() });
        self.modules[parent].children.insert(name.to_owned(), child);
        child
    }
}

/// Where tokens stand: among the items of a module, among the variants of an enum, or anywhere else.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Items,
    Variants,
    Inside,
}

struct Scanner<'a> {
    tree: &'a mut Tree,
    file: usize,
    module: usize,
}

impl Scanner<'_> {
    fn scan(&mut self, tokens: TokenStream, place: Place) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut in_enum = false;
        let mut i = 0;
        while i < tokens.len() {
            let rest = &tokens[i..];
            if let Some(attribute) = attribute(rest) {
                i += if is_cfg_test(attribute) { self.skip_test_item(rest) } else { 2 };
                continue;
            }
            match &rest[0] {
                TokenTree::Group(group) => {
                    let is_body = in_enum && group.delimiter() == Delimiter::Brace;
                    in_enum &= !is_body;
                    self.scan(group.stream(), if is_body { Place::Variants } else { Place::Inside });
                    i += 1;
                }
                TokenTree::Ident(_) => {
                    let before = &tokens[..i];
                    let word = word(rest).unwrap_or_default();
                    in_enum |= word == "enum";
                    i += match word.as_str() {
                        "use" if !is_punct(rest.get(1), '<') => self.take_use(before, rest, place),
                        "mod" => self.take_mod(rest),
                        "pub" if is_restriction(rest.get(1)) => 2,
                        _ if place == Place::Variants && is_variant_name(before) => 1,
                        _ => self.take_path(before, rest, place),
                    };
                }
                _ => i += 1,
            }
        }
    }

    /// `use ..;`, and how many tokens it has.
    fn take_use(&mut self, before: &[TokenTree], rest: &[TokenTree], place: Place) -> usize {
        let end = rest.iter().position(|token| is_punct(Some(token), ';')).unwrap_or(rest.len());
        let is_reexport = place == Place::Items && is_public(before);
        let mut leaves = Vec::new();
        // `use ::name` is of another crate, whatever is called so here.
        if !is_path_separator(&rest[1..end]) {
            flatten(&rest[1..end], &[], &mut leaves);
        }
        for Leaf { path, name, line } in leaves {
            let module = &mut self.tree.modules[self.module];
            if place == Place::Items {
                match name {
                    Some(name) => drop(module.bindings.insert(name, path.clone())),
                    None => module.globs.push(path.clone()),
                }
            }
            module.mentions.push(Mention { path, line, is_reexport });
        }
        end + 1
    }

    /// `mod name;` or `mod name { .. }`, and how many tokens it has.
    fn take_mod(&mut self, rest: &[TokenTree]) -> usize {
        let Some(name) = word(&rest[1..]) else { return 1 };
        if let Some(TokenTree::Group(body)) = rest.get(2) {
            let module = self.tree.child(self.module, &name);
            self.tree.modules[module].file = Some(self.file);
            Scanner { tree: self.tree, file: self.file, module }.scan(body.stream(), Place::Items);
            return 3;
        }
        let exists = self.tree.modules[self.module].children.contains_key(&name);
        assert!(exists, "{}: mod {name}; has no file in the tree", self.tree.files[self.file].name);
        2
    }

    /// A definition's name or a path, and how many tokens it has.
    fn take_path(&mut self, before: &[TokenTree], rest: &[TokenTree], place: Place) -> usize {
        let name = word(rest).unwrap_or_default();
        if before.last().and_then(ident).is_some_and(|keyword| DEFINING.contains(&keyword.as_str())) {
            if place == Place::Items {
                self.tree.modules[self.module].items.insert(name);
            }
            return 1;
        }
        let mut path = vec![name];
        let mut length = 1;
        while is_path_separator(&rest[length..])
            && let Some(next) = word(rest.get(length + 2..).unwrap_or_default())
        {
            path.push(next);
            length += 3;
        }
        let starts_here = !is_member(before) && !is_punct(before.last(), '\'') && !ends_with_separator(before);
        // A small letter alone is a variable or a field unless it is called.
        let is_named = path.len() > 1
            || path[0].starts_with(char::is_uppercase)
            || is_path_separator(&rest[length..])
            || is_punct(rest.get(length), '!')
            || matches!(rest.get(length), Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Parenthesis);
        if starts_here && is_named {
            let line = rest[0].span().start().line;
            self.tree.modules[self.module].mentions.push(Mention { path, line, is_reexport: false });
        }
        length
    }

    /// How many tokens an item for tests has, its attributes included; remembers a module of that kind.
    fn skip_test_item(&mut self, rest: &[TokenTree]) -> usize {
        let mut i = 0;
        while attribute(&rest[i..]).is_some() {
            i += 2;
        }
        let is_item = rest.get(i).and_then(ident).is_some_and(|first| ITEM_STARTS.contains(&first.as_str()));
        let mut ends_with_semicolon = false;
        while let Some(token) = rest.get(i) {
            i += 1;
            match (token, ident(token).as_deref()) {
                (_, Some("use" | "const" | "static" | "let" | "type")) => ends_with_semicolon = true,
                (_, Some("fn")) => ends_with_semicolon = false,
                (_, Some("mod")) => {
                    self.tree.modules[self.module].test_children.extend(word(&rest[i..]));
                }
                (TokenTree::Group(group), _) if group.delimiter() == Delimiter::Brace && !ends_with_semicolon => break,
                _ if is_punct(Some(token), ';') || (!is_item && is_punct(Some(token), ',')) => break,
                _ => {}
            }
        }
        i
    }
}

/// One name that a `use` brings into scope; no name for a glob.
struct Leaf {
    path: Vec<String>,
    name: Option<String>,
    line: usize,
}

/// Takes a `use` tree apart.
fn flatten(tokens: &[TokenTree], prefix: &[String], leaves: &mut Vec<Leaf>) {
    let mut path = prefix.to_vec();
    let mut alias = None;
    let mut line = 0;
    for (i, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Ident(name) if *name == "as" => {
                alias = word(&tokens[i + 1..]);
                break;
            }
            TokenTree::Ident(name) => {
                line = token.span().start().line;
                // `self` in braces is what stands before them.
                if !(*name == "self" && i == 0 && !prefix.is_empty()) {
                    path.push(plain(&name.to_string()));
                }
            }
            TokenTree::Group(group) => {
                let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                return inner.split(|token| is_punct(Some(token), ',')).for_each(|part| flatten(part, &path, leaves));
            }
            TokenTree::Punct(punct) if punct.as_char() == '*' => {
                let line = token.span().start().line;
                return leaves.push(Leaf { path, name: None, line });
            }
            _ => {}
        }
    }
    if let Some(last) = path.last().filter(|_| !tokens.is_empty()) {
        let name = Some(alias.unwrap_or_else(|| last.clone()));
        leaves.push(Leaf { path, name, line });
    }
}

/// The bracketed part of an attribute that stands here.
fn attribute(tokens: &[TokenTree]) -> Option<&Group> {
    match tokens {
        [TokenTree::Punct(hash), TokenTree::Group(group), ..]
            if hash.as_char() == '#' && group.delimiter() == Delimiter::Bracket =>
        {
            Some(group)
        }
        _ => None,
    }
}

/// `cfg(test)` or `cfg(all(.., test, ..))`; what is compiled with `any(test, ..)` is compiled without tests as well.
fn is_cfg_test(attribute: &Group) -> bool {
    let tokens: Vec<TokenTree> = attribute.stream().into_iter().collect();
    let [TokenTree::Ident(cfg), TokenTree::Group(condition)] = tokens.as_slice() else { return false };
    *cfg == "cfg" && needs_test(condition)
}

fn needs_test(condition: &Group) -> bool {
    let tokens: Vec<TokenTree> = condition.stream().into_iter().collect();
    tokens.split(|token| is_punct(Some(token), ',')).any(|part| match part {
        [TokenTree::Ident(name)] => *name == "test",
        [TokenTree::Ident(all), TokenTree::Group(inner)] => *all == "all" && needs_test(inner),
        _ => false,
    })
}

/// Whether a name among variants is that of a variant: it comes first, or after a comma and attributes.
fn is_variant_name(before: &[TokenTree]) -> bool {
    let mut before = before;
    while let [head @ .., TokenTree::Punct(hash), TokenTree::Group(_)] = before
        && hash.as_char() == '#'
    {
        before = head;
    }
    before.is_empty() || is_punct(before.last(), ',')
}

/// Whether `pub`, `pub(crate)` or the like ends here.
fn is_public(before: &[TokenTree]) -> bool {
    let before = match before {
        [head @ .., TokenTree::Group(_)] => head,
        all => all,
    };
    before.last().and_then(ident).is_some_and(|word| word == "pub")
}

/// The `(crate)` of `pub(crate)`, and not the first field of a tuple.
fn is_restriction(token: Option<&TokenTree>) -> bool {
    let Some(TokenTree::Group(group)) = token else { return false };
    let inner: Vec<String> = group.stream().into_iter().filter_map(|token| ident(&token)).collect();
    let all = group.stream().into_iter().count();
    match inner.first().map(String::as_str) {
        Some("crate" | "super" | "self") => all == 1,
        Some("in") => true,
        _ => false,
    }
}

/// Whether a field or method comes next: after one dot, not after the two of a range or a rest.
fn is_member(before: &[TokenTree]) -> bool {
    is_punct(before.last(), '.') && !is_punct(before.iter().rev().nth(1), '.')
}

fn is_path_separator(tokens: &[TokenTree]) -> bool {
    is_punct(tokens.first(), ':') && is_punct(tokens.get(1), ':')
}

fn ends_with_separator(tokens: &[TokenTree]) -> bool {
    tokens.len() >= 2 && is_path_separator(&tokens[tokens.len() - 2..])
}

fn is_punct(token: Option<&TokenTree>, wanted: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
}

fn ident(token: &TokenTree) -> Option<String> {
    match token {
        TokenTree::Ident(ident) => Some(plain(&ident.to_string())),
        _ => None,
    }
}

/// The word that comes first.
fn word(tokens: &[TokenTree]) -> Option<String> {
    tokens.first().and_then(ident)
}

fn plain(word: &str) -> String {
    word.strip_prefix("r#").unwrap_or(word).to_owned()
}

/// `a/mod.rs` and `a.rs` are `a`; `lib.rs` is the root.
fn module_path(name: &str) -> Vec<String> {
    let path = name.strip_suffix(".rs").unwrap_or(name);
    let path = path.strip_suffix("/mod").unwrap_or(path);
    if path == "lib" { Vec::new() } else { path.split('/').map(str::to_owned).collect() }
}

fn list(root: &Path, under: &str, names: &mut Vec<String>) {
    for entry in std::fs::read_dir(root.join(under)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let path = if under.is_empty() { name.clone() } else { format!("{under}/{name}") };
        if entry.file_type().unwrap().is_dir() {
            list(root, &path, names);
        } else if name.ends_with(".rs") {
            names.push(path);
        }
    }
}

const DEFINING: &[&str] = &["fn", "struct", "enum", "union", "trait", "type", "const", "static"];
const ITEM_STARTS: &[&str] = &[
    "pub",
    "use",
    "mod",
    "fn",
    "struct",
    "enum",
    "union",
    "trait",
    "type",
    "const",
    "static",
    "impl",
    "unsafe",
    "extern",
    "async",
    "macro_rules",
    "let",
];
