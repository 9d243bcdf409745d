//! PEM: the text form of a key file.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: base64 is read strictly (whole groups, right padding, no stray bits), so that a damaged key is an error and
//! not another key.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
/// Base64 digits on a line.
const LINE: usize = 64;
const BEGIN: &str = "-----BEGIN ";
const DASHES: &str = "-----";

/// Writes `der` as one block with this label.
pub(super) fn encode(label: &str, der: &[u8]) -> String {
    let mut digits = Vec::with_capacity(der.len().div_ceil(3) * 4);
    for group in der.chunks(3) {
        let bits = group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * place)) as usize & 63];
            digits.push(if place <= group.len() { digit } else { b'=' });
        }
    }
    let mut text = format!("{BEGIN}{label}{DASHES}\n");
    for line in digits.chunks(LINE) {
        text.extend(line.iter().map(|digit| char::from(*digit)));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}{DASHES}\n"));
    text
}

/// Reads the first block with this label; text around it is ignored, as other tools do.
///
/// # Errors
/// What is wrong, for a person; never a part of the block's content.
pub(super) fn decode(label: &str, text: &str) -> Result<Vec<u8>, String> {
    let (begin, end) = (format!("{BEGIN}{label}{DASHES}"), format!("-----END {label}{DASHES}"));
    let mut lines = text.lines().map(str::trim);
    if !lines.any(|line| line == begin) {
        let other = text.lines().find_map(|line| line.trim().strip_prefix(BEGIN)?.strip_suffix(DASHES));
        return Err(match other {
            Some(other) => format!("holds a PEM block {other:?} where {label:?} is needed"),
            None => format!("holds no PEM block {label:?}"),
        });
    }
    let mut digits = Vec::new();
    for line in lines {
        if line == end {
            return base64(&digits).ok_or_else(|| format!("the base64 of its block {label:?} is damaged"));
        }
        digits.extend_from_slice(line.as_bytes());
    }
    Err(format!("its PEM block {label:?} has no end"))
}

fn base64(digits: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3);
    let groups = digits.len() / 4;
    if groups * 4 != digits.len() {
        return None;
    }
    for (index, group) in digits.chunks_exact(4).enumerate() {
        let padding = group.iter().rev().take_while(|digit| **digit == b'=').count();
        if padding > 2 || (padding > 0 && index + 1 != groups) {
            return None;
        }
        let mut bits = 0u32;
        for digit in &group[..4 - padding] {
            bits = bits << 6 | value(*digit)?;
        }
        bits <<= 6 * padding;
        let whole = bits.to_be_bytes();
        let (kept, stray) = whole[1..].split_at(3 - padding);
        if stray.iter().any(|byte| *byte != 0) {
            return None;
        }
        bytes.extend_from_slice(kept);
    }
    Some(bytes)
}

fn value(digit: u8) -> Option<u32> {
    Some(u32::from(match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_digits_are_those_of_the_standard() {
        let cases = [("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")];
        for (bytes, digits) in cases {
            let text = encode("X", bytes.as_bytes());
            assert_eq!(text, format!("-----BEGIN X-----\n{digits}\n-----END X-----\n"));
            assert_eq!(decode("X", &text), Ok(bytes.as_bytes().to_vec()));
        }
    }

    #[test]
    fn damaged_base64_is_refused() {
        for bad in ["Zg", "Zg=", "Z===", "====", "Zh==", "Zm9=", "Zg==Zg==", "Zm 9v", "Zm9v!", "Zm9\u{e9}"] {
            let text = format!("-----BEGIN X-----\n{bad}\n-----END X-----\n");
            assert!(decode("X", &text).unwrap_err().contains("damaged"), "{bad}");
        }
    }

    #[test]
    fn a_block_without_begin_end_or_with_another_label_is_named() {
        assert!(decode("X", "").unwrap_err().contains("no PEM block"));
        assert!(decode("X", "-----BEGIN X-----\nZg==\n").unwrap_err().contains("no end"));
        let other = encode("ENCRYPTED X", b"foo");
        assert!(decode("X", &other).unwrap_err().contains("\"ENCRYPTED X\""));
        let second = format!("words\r\n{other}{}", encode("X", b"foo").replace('\n', "\r\n"));
        assert_eq!(decode("X", &second), Ok(b"foo".to_vec()));
    }

    proptest! {
        #[test]
        fn any_bytes_survive_their_text(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(decode("X", &encode("X", &bytes)), Ok(bytes));
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in "(-----BEGIN X-----)?[A-Za-z=\n]{0,40}(\n-----END X-----)?") {
            let _ = decode("X", &text);
        }
    }
}
