//! Lines of standard output, for a person and for a script.
//!
//! Each thing that happens is one line. Its first word says what; then `key=value`, in a fixed order:
//!
//! ```text
//! connected peer=north conn=c3 kind=inbound addr=192.0.2.7:41022
//! message peer=north number=17 repeat=no text=the rest of the line, whatever is in it
//! ```
//!
//! `-` stands for nothing. A peer is its name in the configuration, or the first eight digits of its id. A value with
//! spaces is quoted, except those named `text`, `reason`, `cause` and `what`, which come last and go on to the end of the
//! line. Backslashes and control characters in a value are escaped as in Rust: what a peer sends neither makes a line of
//! its own nor commands a terminal. Tables follow the line that announces them, indented by two spaces.
//!
//! With `--json` each line is an object, with the first word as `event`, whole ids beside names, and tables inside.
//!
//! Owns: standard output. Threads: the main one. Locks: standard output's.
//! Blocks on: whoever reads standard output: a slow reader holds up what this program receives, never its links.
//! Upholds: a line is written whole before the next one begins.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};

use serde::Serialize;
use serde_json::Value;
use threadwire::PeerId;

/// Values that go on to the end of their line.
const TO_THE_END: [&str; 4] = ["text", "reason", "cause", "what"];

/// A peer, as lines show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// Who it is.
    pub id: PeerId,
    /// Its name in the configuration.
    pub name: Option<String>,
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => f.write_str(name),
            None => f.write_str(&self.id.short()),
        }
    }
}

/// One line.
#[derive(Debug)]
pub struct Line {
    event: &'static str,
    fields: Vec<Field>,
}

#[derive(Debug)]
struct Field {
    key: &'static str,
    /// As text shows it; nothing that JSON alone has.
    text: Option<String>,
    value: Value,
}

impl Line {
    /// A line that says what happened.
    pub fn new(event: &'static str) -> Self {
        Self { event, fields: Vec::new() }
    }

    /// And with what.
    pub fn with(mut self, key: &'static str, value: impl Into<Value>) -> Self {
        let value = value.into();
        self.fields.push(Field { key, text: Some(shown(&value)), value });
        self
    }

    /// The same by its `Display`.
    pub fn with_text(self, key: &'static str, value: impl fmt::Display) -> Self {
        self.with(key, value.to_string())
    }

    /// Which peer it is about.
    pub fn peer(mut self, peer: &Label) -> Self {
        let (text, value) = (shown(&peer.to_string().into()), peer.id.to_string().into());
        self.fields.push(Field { key: "peer", text: Some(text), value });
        self.json("name", peer.name.as_deref())
    }

    /// What only JSON shows: a table, which text shows below its line.
    pub fn json(mut self, key: &'static str, value: impl Into<Value>) -> Self {
        self.fields.push(Field { key, text: None, value: value.into() });
        self
    }

    /// What somebody sent: its text, or hexadecimal digits if it is none.
    pub fn payload(self, payload: &[u8]) -> Self {
        match std::str::from_utf8(payload) {
            Ok(text) => self.with("text", text),
            Err(_) => self.with("hex", payload.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.event)?;
        for Field { key, text, .. } in &self.fields {
            match text {
                Some(text) if text.contains([' ', '"']) && !TO_THE_END.contains(key) => {
                    write!(f, " {key}=\"{}\"", text.replace('"', "\\\""))?;
                }
                Some(text) => write!(f, " {key}={text}")?,
                None => {}
            }
        }
        Ok(())
    }
}

impl Serialize for Line {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let event = ("event", Value::from(self.event));
        let fields = self.fields.iter().map(|field| (field.key, field.value.clone()));
        serializer.collect_map(std::iter::once(event).chain(fields))
    }
}

/// A value as text shows it.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
        Value::String(text) => escaped(text),
        Value::Array(values) if values.is_empty() => "-".to_owned(),
        Value::Array(values) => values.iter().map(shown).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// Without anything that ends a line, commands a terminal or turns the direction of writing around.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        let turns_around =
            matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        let ends_line = letter.is_control() || matches!(letter, '\u{2028}' | '\u{2029}');
        if letter == '\\' || ends_line || turns_around {
            out.extend(letter.escape_default());
        } else {
            out.push(letter);
        }
    }
    out
}

/// Standard output.
#[derive(Debug)]
pub struct Console {
    json: bool,
}

impl Console {
    /// Lines of text, or of JSON.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Writes a line.
    pub fn say(&self, line: &Line) -> io::Result<()> {
        self.say_with(line, "")
    }

    /// Writes a line and, unless lines are of JSON, the lines of a table below it.
    pub fn say_with(&self, line: &Line, table: &str) -> io::Result<()> {
        let mut text = if self.json { serde_json::to_string(line)? } else { line.to_string() };
        text.push('\n');
        if !self.json {
            for row in table.lines() {
                // Writing to a String does not fail.
                let _ = writeln!(text, "  {}", row.trim_end());
            }
        }
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(name: Option<&str>) -> Label {
        Label { id: PeerId::from_bytes([0xab; 32]), name: name.map(str::to_owned) }
    }

    #[test]
    fn a_line_is_read_by_a_person_and_as_json_by_a_script() {
        let line = Line::new("message").peer(&label(None)).with("repeat", false).payload(b"two words");
        assert_eq!(line.to_string(), "message peer=abababab repeat=no text=two words");
        let id = "ab".repeat(32);
        assert_eq!(
            serde_json::to_string(&line).unwrap(),
            format!(r#"{{"event":"message","peer":"{id}","name":null,"repeat":false,"text":"two words"}}"#)
        );
    }

    #[test]
    fn nothing_that_a_peer_sends_ends_a_line_or_commands_a_terminal() {
        let line = Line::new("message").payload("a\nquit\u{1b}[2J\\ \u{202e}é".as_bytes());
        assert_eq!(line.to_string(), "message text=a\\nquit\\u{1b}[2J\\\\ \\u{202e}é");
        assert_eq!(Line::new("message").payload(&[0xff, 0]).to_string(), "message hex=ff00");
    }

    #[test]
    fn values_with_spaces_are_quoted_unless_they_come_last() {
        let line = Line::new("x").peer(&label(Some("the \"north\""))).with("none", Value::Null).with("what", "a b");
        assert_eq!(line.to_string(), "x peer=\"the \\\"north\\\"\" none=- what=a b");
        let list = Line::new("x").with("listen", vec!["a", "b"]).with("empty", Vec::<Value>::new());
        assert_eq!(list.to_string(), "x listen=a,b empty=-");
    }
}
