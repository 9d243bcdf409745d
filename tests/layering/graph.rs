//! Who depends on whom, seen through re-exports, and what of it is against the rule.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use crate::source::{Mention, Tree};

/// One breach of the rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    pub file: String,
    pub line: usize,
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

/// A file that names what another one defines.
struct Edge {
    from: usize,
    to: usize,
    line: usize,
    path: String,
}

/// All breaches, sorted. `ranks` lists the top-level modules from the lowest rank up; those in `exempt` may import
/// anything and are above everything.
pub fn check(tree: &Tree, ranks: &[&[&str]], exempt: &[&str]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let rank = |top: &str| ranks.iter().position(|modules| modules.contains(&top));
    for file in &tree.files {
        let top = top(&file.module);
        if rank(top).is_none() && !exempt.contains(&top) {
            let what = format!("module {top} has no rank: add it to the table in tests/layering.rs");
            findings.push(Finding { file: file.name.clone(), line: 1, what });
        }
    }
    let mut edges = edges(tree);
    // One file's imports of another are one breach: the first line tells.
    edges.sort_by_key(|edge| (edge.from, edge.to, edge.line));
    edges.dedup_by_key(|edge| (edge.from, edge.to));
    let mut inside: BTreeMap<usize, BTreeMap<usize, Edge>> = BTreeMap::new();
    for edge in edges {
        let (from, to) = (&tree.files[edge.from], &tree.files[edge.to]);
        let (from_top, to_top) = (top(&from.module), top(&to.module));
        if from_top == to_top {
            inside.entry(edge.from).or_default().insert(edge.to, edge);
            continue;
        }
        let Some(from_rank) = rank(from_top) else { continue };
        if rank(to_top).is_some_and(|to_rank| to_rank < from_rank) {
            continue;
        }
        let above = if to_top.is_empty() { "the crate root" } else { to_top };
        let what = format!("{from_top} is not above {above}: {} is in {}", edge.path, to.name);
        findings.push(Finding { file: from.name.clone(), line: edge.line, what });
    }
    findings.extend(cycles(tree, &inside));
    findings.sort();
    findings
}

/// The first part of a module's path; empty for the crate root.
fn top(module: &[String]) -> &str {
    module.first().map_or("", String::as_str)
}

fn edges(tree: &Tree) -> Vec<Edge> {
    let mut edges = Vec::new();
    for (id, module) in tree.modules.iter().enumerate() {
        let Some(from) = module.file else { continue };
        if tree.is_for_tests(&tree.files[from].module) {
            continue;
        }
        for Mention { path, line, is_reexport } in &module.mentions {
            let Some(to) = resolve(tree, id, path, 0).and_then(|target| tree.modules[target].file) else { continue };
            let same_top = top(&tree.files[from].module) == top(&tree.files[to].module);
            if from != to && !(*is_reexport && same_top) {
                edges.push(Edge { from, to, line: *line, path: path.join("::") });
            }
        }
    }
    edges
}

/// The module that defines what a path names, or that it names; nothing for what is of another crate.
fn resolve(tree: &Tree, scope: usize, path: &[String], depth: usize) -> Option<usize> {
    if depth > MAX_DEPTH {
        return None;
    }
    let mut at = scope;
    let mut rest = path;
    let mut is_inside = false;
    while let Some((first, tail)) = rest.split_first() {
        match first.as_str() {
            "crate" => at = 0,
            "self" => {}
            "super" => at = tree.modules[at].parent?,
            _ => break,
        }
        is_inside = true;
        rest = tail;
    }
    while let Some((name, tail)) = rest.split_first() {
        match step(tree, at, name, depth) {
            Step::Module(child) => (at, is_inside) = (child, true),
            Step::Item(module) => return (is_inside || module != scope).then_some(module),
            Step::Unknown => return is_inside.then_some(at),
        }
        rest = tail;
    }
    Some(at)
}

/// What a name means in a module.
enum Step {
    Module(usize),
    /// An item, by the module that defines it.
    Item(usize),
    Unknown,
}

fn step(tree: &Tree, at: usize, name: &str, depth: usize) -> Step {
    let module = &tree.modules[at];
    if let Some(child) = module.children.get(name) {
        return Step::Module(*child);
    }
    if module.items.contains(name) {
        return Step::Item(at);
    }
    if let Some(path) = module.bindings.get(name) {
        // A binding to itself is a name of another crate: `use log;`.
        let target = if path.as_slice() == [name] { None } else { resolve(tree, at, path, depth + 1) };
        return match target {
            Some(target) if is_module(tree, target, path) => Step::Module(target),
            Some(target) => Step::Item(target),
            None => Step::Unknown,
        };
    }
    for glob in &module.globs {
        let Some(target) = resolve(tree, at, glob, depth + 1) else { continue };
        if target == at || depth > MAX_DEPTH {
            continue;
        }
        match step(tree, target, name, depth + 1) {
            Step::Unknown => {}
            found => return found,
        }
    }
    Step::Unknown
}

/// Whether a path that led to a module names that module, and not something in it.
fn is_module(tree: &Tree, target: usize, path: &[String]) -> bool {
    let Some(parent) = tree.modules[target].parent else { return path.last().is_some_and(|last| last == "crate") };
    let last = path.last().map(String::as_str).unwrap_or_default();
    tree.modules[parent].children.get(last) == Some(&target) || matches!(last, "self" | "super")
}

/// For each file that is in a circle of its folder, the shortest one; each circle once.
fn cycles(tree: &Tree, inside: &BTreeMap<usize, BTreeMap<usize, Edge>>) -> Vec<Finding> {
    let mut seen = BTreeSet::new();
    let mut findings = Vec::new();
    for start in inside.keys() {
        let Some(circle) = shortest_circle(inside, *start) else { continue };
        let mut members: Vec<usize> = circle.iter().map(|edge| edge.from).collect();
        members.sort_unstable();
        if !seen.insert(members) {
            continue;
        }
        let steps = circle.iter().map(|edge| {
            let (from, to) = (&tree.files[edge.from].name, &tree.files[edge.to].name);
            format!("{from}:{} names {} of {to}", edge.line, edge.path)
        });
        let what = format!("a cycle: {}", steps.collect::<Vec<_>>().join(", "));
        findings.push(Finding { file: tree.files[*start].name.clone(), line: circle[0].line, what });
    }
    findings
}

fn shortest_circle(inside: &BTreeMap<usize, BTreeMap<usize, Edge>>, start: usize) -> Option<Vec<&Edge>> {
    let mut reached_by: BTreeMap<usize, &Edge> = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(at) = queue.pop_front() {
        for edge in inside.get(&at).into_iter().flat_map(BTreeMap::values) {
            if reached_by.contains_key(&edge.to) {
                continue;
            }
            reached_by.insert(edge.to, edge);
            queue.push_back(edge.to);
        }
    }
    let mut circle = vec![*reached_by.get(&start)?];
    while circle[circle.len() - 1].from != start {
        circle.push(reached_by[&circle[circle.len() - 1].from]);
    }
    circle.reverse();
    Some(circle)
}

/// Re-exports of re-exports beyond this are circles.
const MAX_DEPTH: usize = 32;
