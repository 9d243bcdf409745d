//! Where in a file a field is, and which field is at a place.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: a place is found by the parsed document, never by searching the text; only a document that does not parse
//! is shown by its line.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One field as it stands in the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// `heartbeat`, `backoff.cap`, `peer[1].id`.
    pub(super) field: String,
    /// The bytes of its key; those of the value's start where a value has no key of its own.
    pub(super) key: Range<usize>,
    /// The bytes of its value; those of its header for a section.
    pub(super) value: Range<usize>,
    /// Whether it is a table or one of an array of tables, in a section of its own or not.
    pub(super) is_table: bool,
}

/// All fields of a document, each before what it contains; empty if the document does not parse.
pub(super) fn entries(text: &str) -> Vec<Entry> {
    let mut found = Vec::new();
    if let Ok(document) = DeTable::parse(text) {
        add_table(document.get_ref(), "", &mut found);
    }
    found
}

/// The innermost field at a place.
pub(super) fn entry_at<'a>(entries: &'a [Entry], place: &Range<usize>) -> Option<&'a Entry> {
    let covers = |span: &Range<usize>| span.start <= place.start && place.end <= span.end;
    entries.iter().rfind(|entry| covers(&entry.value) || covers(&entry.key))
}

/// The line of a byte, counted from 1.
pub(super) fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

fn add_table(table: &DeTable<'_>, prefix: &str, found: &mut Vec<Entry>) {
    for (key, value) in table {
        add(format!("{prefix}{}", key.get_ref()), key.span(), value, found);
    }
}

fn add(field: String, key: Range<usize>, value: &Spanned<DeValue<'_>>, found: &mut Vec<Entry>) {
    let (table_prefix, array_prefix) = (format!("{field}."), field.clone());
    found.push(Entry { field, key, value: value.span(), is_table: value.get_ref().is_table() });
    match value.get_ref() {
        DeValue::Table(table) => add_table(table, &table_prefix, found),
        DeValue::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                let start = item.span().start;
                add(format!("{array_prefix}[{i}]"), start..start, item, found);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "a = 1\n[b]\nc = \"x\" # y\n[[d]]\ne = 2\n[[d]]\ne = [3,\n 4]\n";

    fn at(needle: &str) -> Range<usize> {
        let start = TEXT.find(needle).unwrap();
        start..start + needle.len()
    }

    #[test]
    fn a_field_is_found_by_its_path_and_by_its_place() {
        let entries = entries(TEXT);
        let line = |field: &str| line_of(TEXT, entries.iter().find(|entry| entry.field == field).unwrap().value.start);
        assert_eq!([line("a"), line("b.c"), line("d[0].e"), line("d[1].e"), line("d[1].e[1]")], [1, 3, 5, 7, 8]);
        let field = |needle| entry_at(&entries, &at(needle)).unwrap().field.as_str();
        assert_eq!(
            [field("1"), field("\"x\""), field("c"), field("2"), field("4")],
            ["a", "b.c", "b.c", "d[0].e", "d[1].e[1]"]
        );
    }
}
