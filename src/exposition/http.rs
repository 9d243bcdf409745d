//! As much of HTTP/1.1 (RFC 9112) as one resource needs: the head of a request judged, an answer written.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: nothing is kept of a request beyond what was asked; whatever the bytes are, there is one verdict.

use std::fmt::Write;

use crate::metrics::{OPENMETRICS, ScrapeFailure};

/// The longest head of a request.
pub(super) const HEAD_BYTES: usize = 8 * 1024;
/// Where the metrics are.
const PATH: &str = "/metrics";
const PLAIN: &str = "text/plain; charset=utf-8";

/// What came, once that is clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// The metrics, with the text itself or (HEAD) without.
    Metrics { body: bool },
    /// Something else.
    Wrong { wrong: Wrong, body: bool },
}

/// What is wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrong {
    Request,
    Version,
    Path,
    Method,
    TooLarge,
}

impl Wrong {
    pub(super) fn cause(self) -> ScrapeFailure {
        match self {
            Self::Request | Self::Version => ScrapeFailure::BadRequest,
            Self::Path => ScrapeFailure::NotFound,
            Self::Method => ScrapeFailure::NotAllowed,
            Self::TooLarge => ScrapeFailure::TooLarge,
        }
    }

    fn status(self) -> &'static str {
        match self {
            Self::Request => "400 Bad Request",
            Self::Version => "505 HTTP Version Not Supported",
            Self::Path => "404 Not Found",
            Self::Method => "405 Method Not Allowed",
            Self::TooLarge => "431 Request Header Fields Too Large",
        }
    }
}

/// What the bytes that came so far ask for; nothing while they may become a request.
pub(super) fn judge(bytes: &[u8]) -> Option<Asked> {
    let wrong = |wrong| Some(Asked::Wrong { wrong, body: true });
    // An empty line before the request is a habit of old clients.
    let bytes = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
    match bytes.first() {
        None | Some(b'\r') => {}
        // Another protocol, as TLS: its client need not wait for a deadline to learn.
        Some(first) if !is_token(&[*first]) => return wrong(Wrong::Request),
        Some(_) => {}
    }
    match head(bytes) {
        Some(head) if head.len() <= HEAD_BYTES => {
            let (body, verdict) = read(head);
            Some(verdict.map_or_else(|wrong| Asked::Wrong { wrong, body }, |()| Asked::Metrics { body }))
        }
        None if bytes.len() < HEAD_BYTES => None,
        _ => wrong(Wrong::TooLarge),
    }
}

/// The lines before the first empty one, which ends with a line feed as all of them do, mostly after a carriage return.
fn head(bytes: &[u8]) -> Option<&[u8]> {
    let mut line = 0;
    for (at, byte) in bytes.iter().enumerate() {
        if *byte == b'\n' {
            if matches!(&bytes[line..at], b"" | b"\r") {
                return Some(&bytes[..line]);
            }
            line = at + 1;
        }
    }
    None
}

/// Whether an answer has a body, and what is wrong with the request.
fn read(head: &[u8]) -> (bool, Result<(), Wrong>) {
    let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let mut words = lines.next().unwrap_or_default().split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return (true, Err(Wrong::Request));
    };
    (method != b"HEAD", check(method, target, version, lines))
}

fn check<'a>(method: &[u8], target: &[u8], version: &[u8], lines: impl Iterator<Item = &'a [u8]>) -> Result<(), Wrong> {
    let is_version = matches!(version, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
        if major.is_ascii_digit() && minor.is_ascii_digit());
    if !is_token(method) || !is_version {
        return Err(Wrong::Request);
    }
    if !version.starts_with(b"HTTP/1.") {
        return Err(Wrong::Version);
    }
    let path = path(target).ok_or(Wrong::Request)?;
    let mut hosts = 0;
    // What follows the last line feed is no line.
    for line in lines.filter(|line| !line.is_empty()) {
        let colon = line.iter().position(|byte| *byte == b':').ok_or(Wrong::Request)?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        let is_text = |byte: &u8| *byte == b'\t' || !byte.is_ascii_control();
        // No name: also a line that goes on from the one before, which nobody may send any more.
        if !is_token(name) || !value.iter().all(is_text) {
            return Err(Wrong::Request);
        }
        hosts += usize::from(name.eq_ignore_ascii_case(b"host"));
    }
    if hosts > 1 || (hosts == 0 && version != b"HTTP/1.0") {
        return Err(Wrong::Request);
    }
    if path != PATH.as_bytes() {
        return Err(Wrong::Path);
    }
    if matches!(method, b"GET" | b"HEAD") { Ok(()) } else { Err(Wrong::Method) }
}

/// The path of `/path?query`, or of `http://host/path?query`, which a proxy would send. Nothing: it is neither.
fn path(target: &[u8]) -> Option<&[u8]> {
    if !target.iter().all(u8::is_ascii_graphic) {
        return None;
    }
    let local = match target.get(..7) {
        Some(scheme) if scheme.eq_ignore_ascii_case(b"http://") => {
            let rest = &target[7..];
            &rest[rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len())..]
        }
        // The server as a whole (`OPTIONS *`) is something else than the metrics.
        _ if target == b"*" => target,
        _ => target.starts_with(b"/").then_some(target)?,
    };
    local.split(|byte| *byte == b'?').next()
}

/// Letters, digits and some signs: methods and names of fields.
fn is_token(word: &[u8]) -> bool {
    !word.is_empty() && word.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

/// The answer with the metrics.
pub(super) fn metrics(text: &str, body: bool) -> Vec<u8> {
    response("200 OK", OPENMETRICS, "", text, body)
}

/// The answer to what was wrong.
pub(super) fn refusal(wrong: Wrong, body: bool) -> Vec<u8> {
    let allow = if wrong == Wrong::Method { "Allow: GET, HEAD\r\n" } else { "" };
    let status = wrong.status();
    response(status, PLAIN, allow, &format!("{status}: the metrics are at {PATH}\n"), body)
}

fn response(status: &str, content: &str, more: &str, text: &str, body: bool) -> Vec<u8> {
    let mut response = String::with_capacity(256 + text.len());
    // Writing to a text does not fail.
    let _ = write!(
        response,
        "HTTP/1.1 {status}\r\nContent-Type: {content}\r\nContent-Length: {}\r\n{more}Connection: close\r\n\r\n",
        text.len()
    );
    if body {
        response.push_str(text);
    }
    response.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: Option<Asked> = Some(Asked::Metrics { body: true });

    fn wrong(wrong: Wrong) -> Option<Asked> {
        Some(Asked::Wrong { wrong, body: true })
    }

    #[test]
    fn a_request_for_the_metrics_is_one_however_it_is_written() {
        for request in [
            "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /metrics HTTP/1.1\nHost: a\n\n",
            "\r\nGET /metrics?x=y HTTP/1.1\r\nhost:a\r\nAccept: */*\r\nX-Odd:\t\u{e9}\r\n\r\n",
            "GET http://a:1/metrics HTTP/1.1\r\nHost: a:1\r\n\r\n",
            "GET /metrics HTTP/1.0\r\n\r\n",
            "GET /metrics HTTP/1.1\r\nHost:\r\n\r\nwhat follows is not read",
        ] {
            assert_eq!(judge(request.as_bytes()), GET, "{request:?}");
        }
        let head = "HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(judge(head.as_bytes()), Some(Asked::Metrics { body: false }));
    }

    #[test]
    fn nothing_is_judged_before_it_is_whole() {
        let request = b"\r\nGET /metrics HTTP/1.1\r\nHost: a\r\n\r\n";
        for len in 0..request.len() {
            assert_eq!(judge(&request[..len]), None, "{len}");
        }
        assert_eq!(judge(request), GET);
    }

    #[test]
    fn whatever_is_wrong_has_its_status() {
        for (expected, request) in [
            (Wrong::Request, "GET /metrics\r\n\r\n"),
            (Wrong::Request, "GET  /metrics HTTP/1.1\r\nHost: a\r\n\r\n"),
            (Wrong::Request, "GET /metrics HTTP/1.1 \r\nHost: a\r\n\r\n"),
            (Wrong::Request, "GET metrics HTTP/1.1\r\nHost: a\r\n\r\n"),
            (Wrong::Request, "GET /met\trics HTTP/1.1\r\nHost: a\r\n\r\n"),
            (Wrong::Request, "GET /metrics http/1.1\r\nHost: a\r\n\r\n"),
            (Wrong::Request, "GET /metrics HTTP/11\r\nHost: a\r\n\r\n"),
            (Wrong::Request, "G(T /metrics HTTP/1.1\r\nHost: a\r\n\r\n"),
            (Wrong::Request, "GET /metrics HTTP/1.1\r\n\r\n"),
            (Wrong::Request, "GET /metrics HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
            (Wrong::Request, "GET /metrics HTTP/1.1\r\nHost : a\r\n\r\n"),
            (Wrong::Request, "GET /metrics HTTP/1.1\r\nHost: a\r\n b\r\n\r\n"),
            (Wrong::Request, "GET /metrics HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n"),
            (Wrong::Request, "GET /metrics HTTP/1.1\r\nHost: a\0b\r\n\r\n"),
            (Wrong::Request, "GET /metrics HTTP/1.1\r\nHost: a\rb\r\n\r\n"),
            (Wrong::Request, "\r\n\r\n"),
            (Wrong::Request, "\u{16}\u{3}\u{1}"),
            (Wrong::Request, " GET"),
            (Wrong::Version, "GET /metrics HTTP/2.0\r\nHost: a\r\n\r\n"),
            (Wrong::Path, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
            (Wrong::Path, "GET /metrics/ HTTP/1.1\r\nHost: a\r\n\r\n"),
            (Wrong::Path, "GET http://a HTTP/1.1\r\nHost: a\r\n\r\n"),
            (Wrong::Path, "POST /other HTTP/1.1\r\nHost: a\r\n\r\n"),
            (Wrong::Path, "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"),
            (Wrong::Method, "POST /metrics HTTP/1.1\r\nHost: a\r\n\r\n"),
            (Wrong::Method, "get /metrics HTTP/1.1\r\nHost: a\r\n\r\n"),
        ] {
            assert_eq!(judge(request.as_bytes()), wrong(expected), "{request:?}");
            let answer = String::from_utf8(refusal(expected, true)).unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {}\r\n", expected.status())));
            assert_eq!(answer.contains("Allow: GET, HEAD\r\n"), expected == Wrong::Method);
        }
        let head = judge(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(head, Some(Asked::Wrong { wrong: Wrong::Path, body: false }));
    }

    #[test]
    fn a_head_that_is_too_long_is_refused_whether_its_end_has_come_or_not() {
        let with = |len: usize| format!("GET /metrics HTTP/1.0\r\nX: {}\r\n\r\n", "x".repeat(len));
        let fits = HEAD_BYTES - with(0).len() + 2;
        assert_eq!(judge(with(fits).as_bytes()), GET);
        assert_eq!(judge(with(fits + 1).as_bytes()), wrong(Wrong::TooLarge));
        assert_eq!(judge(&vec![b'x'; HEAD_BYTES - 1]), None);
        assert_eq!(judge(&vec![b'x'; HEAD_BYTES]), wrong(Wrong::TooLarge));
    }

    #[test]
    fn an_answer_says_its_length_also_where_the_text_is_left_out() {
        let whole = String::from_utf8(metrics("a 1\n# EOF\n", true)).unwrap();
        let (head, body) = whole.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, "a 1\n# EOF\n");
        for line in [&format!("Content-Type: {OPENMETRICS}"), "Content-Length: 10", "Connection: close"] {
            assert!(head.lines().any(|said| said == line), "{head}");
        }
        assert_eq!(metrics("a 1\n# EOF\n", false), format!("{head}\r\n\r\n").into_bytes());
    }
}
