//! Reading a file into a checked configuration.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: reading one file.
//! Upholds: no configuration comes out that did not pass the check; an error names file, line, field, value and what is
//! allowed.

use std::path::Path;

use super::check::{Fault, check};
use super::fields::Config;
use super::place::{Entry, entries, entry_at, line_of};
use crate::error::ConfigError;

impl Config {
    /// Reads and checks a file such as the `config.toml` that comes with the crate.
    ///
    /// # Errors
    /// The file cannot be read, is no TOML, names an unknown field, or has a value that is not allowed; the error says
    /// where and what would be.
    ///
    /// # Blocking
    /// As long as reading a file takes.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        let name = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, &name),
            Err(error) => Err(ConfigError { place: name, what: format!("cannot be read: {error}") }),
        }
    }

    /// Reads and checks the text of a file; `file_name` is for the errors.
    ///
    /// # Errors
    /// As for [`Config::from_file`].
    pub fn parse(text: &str, file_name: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| explain_refusal(text, file_name, &error))?;
        check(&config).map_err(|fault| explain_fault(text, file_name, &fault))?;
        Ok(config)
    }

    /// Checks ranges and contradictions. A node does this when it starts; files are checked as they are read.
    ///
    /// # Errors
    /// The first field whose value is not allowed: its name, the value, and what is allowed.
    pub fn validate(&self) -> Result<(), ConfigError> {
        check(self).map_err(|fault| ConfigError {
            what: format!("{} is not allowed; allowed: {}", fault.value, fault.allowed),
            place: fault.field,
        })
    }
}

/// A text that is no configuration: wrong syntax, an unknown field, a wrong type, an unreadable value.
fn explain_refusal(text: &str, file_name: &str, error: &toml::de::Error) -> ConfigError {
    let message = error.message();
    let Some(span) = error.span() else {
        return ConfigError { place: file_name.to_owned(), what: message.to_owned() };
    };
    let line = line_of(text, span.start);
    let place = format!("{file_name}:{line}");
    let entries = entries(text);
    let Some(entry) = entry_at(&entries, &span) else {
        // No TOML: there is no field to name yet.
        let shown = cut(text.lines().nth(line - 1).unwrap_or_default().trim());
        return ConfigError { place, what: format!("{shown}: not TOML: {message}") };
    };
    // serde repeats the value before it says what it expected; the value is shown already.
    let allowed = match message.split_once(", expected ") {
        Some((found, expected)) if found.starts_with("unknown field") => {
            format!("unknown field; allowed: {expected}")
        }
        Some((_, expected)) => format!("allowed: {expected}"),
        None => message.to_owned(),
    };
    ConfigError { place, what: format!("{}: {allowed}", in_file(text, entry)) }
}

/// A value of the right type that is out of range or contradicts another.
fn explain_fault(text: &str, file_name: &str, fault: &Fault) -> ConfigError {
    let entries = entries(text);
    let find = |field: &str| entries.iter().find(|entry| entry.field == field);
    let (place, shown) = match (find(&fault.field), fault.other.and_then(find)) {
        (Some(entry), _) => (line_of(text, entry.value.start), in_file(text, entry)),
        // The file changes only the other field of a contradiction.
        (None, Some(other)) => {
            (line_of(text, other.value.start), format!("{} = {} (default)", fault.field, fault.value))
        }
        (None, None) => (1, format!("{} = {}", fault.field, fault.value)),
    };
    ConfigError { place: format!("{file_name}:{place}"), what: format!("{shown}: allowed: {}", fault.allowed) }
}

/// A field as the file says it, on one line of bounded length.
fn in_file(text: &str, entry: &Entry) -> String {
    let value = text.get(entry.value.clone()).unwrap_or_default();
    let value = cut(&value.split_whitespace().collect::<Vec<_>>().join(" "));
    // A section's header names it already.
    if entry.is_table && value.starts_with('[') { value } else { format!("{} = {value}", entry.field) }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((at, _)) => format!("{}..", &text[..at]),
        None => text.to_owned(),
    }
}

/// The most of a value that an error shows.
const SHOWN_CHARS: usize = 80;
