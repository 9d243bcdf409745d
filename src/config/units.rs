//! Durations, byte sizes, counts and addresses as people write them.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: nothing is guessed: a duration without a unit, an unknown unit or a number too large is refused, and the
//! error says what is expected.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;
use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Unexpected, Visitor};

use crate::address::Address;

pub(super) const KIB: usize = 1 << 10;
pub(super) const MIB: usize = 1 << 20;
pub(super) const GIB: usize = 1 << 30;

const OFF: &str = "off";
const AUTO: &str = "auto";
const DURATION: &str = r#"a whole number with a unit (ms, s, min or h), such as "5 s""#;
const DURATION_OR_OFF: &str = r#"a whole number with a unit (ms, s, min or h), such as "5 s", or "off""#;
const BYTES: &str = r#"a whole number of bytes, or one with a unit (B, KiB, MiB or GiB), such as "8 MiB""#;
const BYTES_OR_OFF: &str =
    r#"a whole number of bytes below 4 GiB, or one with a unit (B, KiB, MiB or GiB), such as "8 MiB", or "off""#;
const COUNT: &str = "a whole number";
const FRACTION: &str = "a number from 0 to 1";
const LEVEL: &str = r#""off", "error", "warn", "info", "debug" or "trace""#;
const PATH_OR_OFF: &str = r#"the path of a file, or "off""#;
const ADDRESS: &str = r#"an IP address or a host name, and a port, such as "127.0.0.1:50005" or "north.example:50005""#;
const ADDR: &str = r#"an IP address and a port, such as "127.0.0.1:50005""#;
const ADDR_OR_OFF: &str = r#"an IP address and a port, such as "127.0.0.1:50005", or "off""#;
const ADDRS_OR_OFF: &str = r#"an IP address and a port, such as "127.0.0.1:50005", a list of them, or "off""#;
const COUNT_OR_OFF: &str = r#"a whole number, or "off""#;
const COUNT_OR_AUTO: &str = r#"a whole number, or "auto""#;

const MILLISECONDS: [(&str, u64); 4] = [("h", 3_600_000), ("min", 60_000), ("s", 1_000), ("ms", 1)];
const SIZES: [(&str, u64); 4] = [("GiB", GIB as u64), ("MiB", MIB as u64), ("KiB", KIB as u64), ("B", 1)];

pub(super) fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    from.deserialize_any(Scalar { expected: DURATION, text: parse_duration, number: |_| None })
}

pub(super) fn duration_or_off<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    from.deserialize_any(Scalar {
        expected: DURATION_OR_OFF,
        text: |text| or_off(text, parse_duration),
        number: |_| None,
    })
}

pub(super) fn bytes<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    from.deserialize_any(Scalar { expected: BYTES, text: parse_bytes, number: |n| n.try_into().ok() })
}

pub(super) fn bytes_or_off<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    from.deserialize_any(Scalar {
        expected: BYTES_OR_OFF,
        text: |text| or_off(text, |text| parse_bytes(text)?.try_into().ok()),
        number: |n| Some(Some(n.try_into().ok()?)),
    })
}

pub(super) fn count<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    from.deserialize_any(Scalar { expected: COUNT, text: |_| None, number: |n| n.try_into().ok() })
}

pub(super) fn count_or_off<'de, D: Deserializer<'de>>(from: D) -> Result<Option<usize>, D::Error> {
    from.deserialize_any(Scalar {
        expected: COUNT_OR_OFF,
        text: |text| (text == OFF).then_some(None),
        number: |n| Some(Some(n.try_into().ok()?)),
    })
}

pub(super) fn count_or_auto<'de, D: Deserializer<'de>>(from: D) -> Result<Option<usize>, D::Error> {
    from.deserialize_any(Scalar {
        expected: COUNT_OR_AUTO,
        text: |text| (text == AUTO).then_some(None),
        number: |n| Some(Some(n.try_into().ok()?)),
    })
}

pub(super) fn fraction<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    struct Fraction;

    impl Visitor<'_> for Fraction {
        type Value = f64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(FRACTION)
        }

        fn visit_f64<E: Error>(self, number: f64) -> Result<f64, E> {
            Ok(number)
        }

        fn visit_i64<E: Error>(self, number: i64) -> Result<f64, E> {
            Ok(number as f64)
        }
    }

    from.deserialize_any(Fraction)
}

pub(super) fn addr_or_off<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SocketAddr>, D::Error> {
    from.deserialize_any(Scalar {
        expected: ADDR_OR_OFF,
        text: |text| or_off(text, |text| text.parse().ok()),
        number: |_| None,
    })
}

pub(super) fn level<'de, D: Deserializer<'de>>(from: D) -> Result<LevelFilter, D::Error> {
    from.deserialize_any(Scalar {
        expected: LEVEL,
        text: |text| LevelFilter::iter().find(|level| level.as_str().to_ascii_lowercase() == text),
        number: |_| None,
    })
}

pub(super) fn path_or_off<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
    from.deserialize_any(Scalar {
        expected: PATH_OR_OFF,
        text: |text| or_off(text, |text| Some(PathBuf::from(text))),
        number: |_| None,
    })
}

pub(super) fn addresses<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Address>, D::Error> {
    struct One(Address);

    impl<'de> Deserialize<'de> for One {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            from.deserialize_any(Scalar {
                expected: ADDRESS,
                text: |text| text.parse().ok().map(One),
                number: |_| None,
            })
        }
    }

    let addresses = Vec::<One>::deserialize(from)?;
    Ok(addresses.into_iter().map(|One(address)| address).collect())
}

/// One, several, or with `"off"` none.
pub(super) fn addrs_or_off<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<SocketAddr>, D::Error> {
    struct Addrs;

    impl<'de> Visitor<'de> for Addrs {
        type Value = Vec<SocketAddr>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(ADDRS_OR_OFF)
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
            let addr = or_off(text, |text| text.parse().ok());
            addr.map(Vec::from_iter).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut addrs = Vec::new();
            while let Some(Addr(addr)) = list.next_element()? {
                addrs.push(addr);
            }
            Ok(addrs)
        }
    }

    from.deserialize_any(Addrs)
}

/// An address in a list.
struct Addr(SocketAddr);

impl<'de> Deserialize<'de> for Addr {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Scalar { expected: ADDR, text: |text| text.parse().ok().map(Addr), number: |_| None })
    }
}

/// A duration as a file would say it, in the largest unit that fits without a rest.
pub(super) fn show_duration(duration: Duration) -> String {
    match u64::try_from(duration.as_millis()) {
        Ok(ms) if duration.subsec_nanos().is_multiple_of(1_000_000) => show(ms, &MILLISECONDS, "ms"),
        _ => format!("{duration:?}"),
    }
}

/// A byte size as a file would say it, in the largest unit that fits without a rest.
pub(super) fn show_bytes(bytes: usize) -> String {
    show(bytes as u64, &SIZES, "B")
}

fn show(value: u64, units: &[(&str, u64)], smallest: &str) -> String {
    match units.iter().find(|(_, factor)| value >= *factor && value.is_multiple_of(*factor)) {
        Some((unit, factor)) => format!("{} {unit}", value / factor),
        None => format!("{value} {smallest}"),
    }
}

fn parse_duration(text: &str) -> Option<Duration> {
    parse(text, &MILLISECONDS).map(Duration::from_millis)
}

fn parse_bytes(text: &str) -> Option<usize> {
    parse(text, &SIZES)?.try_into().ok()
}

/// Digits, at most one blank, a unit.
fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (digits, rest) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let unit = rest.strip_prefix(' ').unwrap_or(rest);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    digits.parse::<u64>().ok()?.checked_mul(*factor)
}

/// `"off"` is `None`; anything else must parse.
fn or_off<T>(text: &str, parse: impl Fn(&str) -> Option<T>) -> Option<Option<T>> {
    if text == OFF { Some(None) } else { parse(text).map(Some) }
}

/// Takes a text or a whole number, and says what it expected.
struct Scalar<T> {
    expected: &'static str,
    text: fn(&str) -> Option<T>,
    number: fn(u64) -> Option<T>,
}

impl<T> Visitor<'_> for Scalar<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.text)(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        let taken = u64::try_from(number).ok().and_then(self.number);
        taken.ok_or_else(|| E::invalid_value(Unexpected::Signed(number), &self))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        (self.number)(number).ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_whole_numbers_with_a_unit() {
        let good = [("100 ms", 100), ("5 s", 5_000), ("5s", 5_000), ("5 min", 300_000), ("1 h", 3_600_000), ("0 s", 0)];
        for (text, ms) in good {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        let too_long = format!("{} h", u64::MAX);
        for bad in ["", "5", " 5 s", "5  s", "5 s ", "s", "1.5 s", "-5 s", "5 sec", "5 S", "5 m", "٥ s", &too_long] {
            assert_eq!(parse_duration(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn sizes_are_whole_numbers_with_a_binary_unit() {
        for (text, bytes) in [("7 B", 7), ("256 KiB", 256 << 10), ("8MiB", 8 << 20), ("1 GiB", 1 << 30)] {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
        for bad in ["8", "8 MB", "8 mib", "8 M", "1.5 GiB", "-1 B", "99999999999 GiB"] {
            assert_eq!(parse_bytes(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn what_is_shown_is_read_back() {
        for ms in [0, 1, 999, 1_000, 1_500, 60_000, 90_000, 3_600_000] {
            let duration = Duration::from_millis(ms);
            assert_eq!(parse_duration(&show_duration(duration)), Some(duration));
        }
        for bytes in [0, 1, 1_000, 1_024, 1_536, MIB, 3 * GIB] {
            assert_eq!(parse_bytes(&show_bytes(bytes)), Some(bytes));
        }
        assert_eq!((show_duration(Duration::from_secs(300)), show_bytes(8 * MIB)), ("5 min".into(), "8 MiB".into()));
        assert_eq!(show_duration(Duration::from_micros(1_500)), "1.5ms", "finer than a file can say");
    }
}
