//! Where to dial: an IP address or a host name, and a port.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing: a name is looked up when it is dialled, elsewhere.
//! Upholds: what is neither is refused when it is read, with the reason, not at the first dial.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest host name that the domain name system can carry.
const LONGEST_NAME: usize = 253;
/// The longest part of one between two dots.
const LONGEST_LABEL: usize = 63;

/// Where to dial: an IP address or a host name, and a port.
///
/// A name is kept as it was written; it is looked up afresh at each dial. `FromStr` reads and `Display` writes
/// `192.0.2.1:50005`, `[2001:db8::1]:50005`, `plc-7.local:50005`.
///
/// ```
/// use threadwire::address::Address;
///
/// let by_name: Address = "plc-7.local:50005".parse()?;
/// assert_eq!((by_name.host_name(), by_name.port()), (Some("plc-7.local"), 50005));
/// let by_number: Address = "192.0.2.1:50005".parse()?;
/// assert_eq!(by_number.socket_addr(), "192.0.2.1:50005".parse().ok());
/// # Ok::<(), threadwire::address::ParseAddressError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(Place);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Place {
    Socket(SocketAddr),
    Name(Box<str>, u16),
}

impl Address {
    /// The address, if it is one already; `None` for a name.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        match self.0 {
            Place::Socket(addr) => Some(addr),
            Place::Name(..) => None,
        }
    }

    /// The name to look up; `None` for an IP address.
    pub fn host_name(&self) -> Option<&str> {
        match &self.0 {
            Place::Socket(_) => None,
            Place::Name(host, _) => Some(host),
        }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        match self.0 {
            Place::Socket(addr) => addr.port(),
            Place::Name(_, port) => port,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Place::Socket(addr) => addr.fmt(f),
            Place::Name(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(addr: SocketAddr) -> Self {
        Self(Place::Socket(addr))
    }
}

impl PartialEq<SocketAddr> for Address {
    fn eq(&self, addr: &SocketAddr) -> bool {
        self.socket_addr() == Some(*addr)
    }
}

/// A text that is no address to dial, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?}: {what}")]
pub struct ParseAddressError {
    /// The text, as far as it is worth showing.
    pub text: String,
    /// What is wrong with it.
    pub what: &'static str,
}

impl FromStr for Address {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, ParseAddressError> {
        parse(text)
            .map(Self)
            .map_err(|what| ParseAddressError { text: text.chars().take(LONGEST_NAME).collect(), what })
    }
}

impl TryFrom<&str> for Address {
    type Error = ParseAddressError;

    fn try_from(text: &str) -> Result<Self, ParseAddressError> {
        text.parse()
    }
}

impl TryFrom<String> for Address {
    type Error = ParseAddressError;

    fn try_from(text: String) -> Result<Self, ParseAddressError> {
        text.parse()
    }
}

impl TryFrom<&String> for Address {
    type Error = ParseAddressError;

    fn try_from(text: &String) -> Result<Self, ParseAddressError> {
        text.parse()
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

fn parse(text: &str) -> Result<Place, &'static str> {
    if let Ok(addr) = text.parse() {
        return Ok(Place::Socket(addr));
    }
    let (host, port) = text.rsplit_once(':').ok_or("no port: expected a host, a colon and a port")?;
    if host.contains(['[', ']']) {
        return Err("no IPv6 address in brackets, a colon and a port");
    }
    if host.contains(':') {
        return Err("an IPv6 address goes in brackets, as in [2001:db8::1]:50005");
    }
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("the port is not a number");
    }
    let port = port.parse().map_err(|_| "the port is not a number from 0 to 65535")?;
    check_name(host)?;
    Ok(Place::Name(host.into(), port))
}

/// Letters, digits, hyphens and underscores between dots. What is not ASCII has a form that is.
fn check_name(host: &str) -> Result<(), &'static str> {
    // A dot at the end only says that nothing is to be appended.
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.is_empty() {
        return Err("no host before the port");
    }
    if name.len() > LONGEST_NAME {
        return Err("the host name is longer than 253 characters");
    }
    if name.split('.').any(|label| label.is_empty() || label.len() > LONGEST_LABEL) {
        return Err("each part of a host name between dots has 1 to 63 characters");
    }
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Err("a host name has letters, digits, hyphens and dots only (other scripts in their xn-- form)");
    }
    // No top-level domain is a number: this is an address that is wrong, and a lookup might still take it for one.
    if name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit())) {
        return Err("no IPv4 address, and no host name ends in a number");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names_are_read_and_written_back() {
        for text in ["192.0.2.1:50005", "[2001:db8::1]:1", "[::1]:0", "plc-7.local:50005", "a:1", "x_y.example.:65535"]
        {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
            assert_eq!(address.socket_addr().is_none(), address.host_name().is_some());
        }
        let address: Address = "192.0.2.1:5".parse().unwrap();
        let socket: SocketAddr = "192.0.2.1:5".parse().unwrap();
        assert!(address == socket && address.port() == 5);
        assert_eq!(Address::from(socket), address);
        assert_ne!("a:5".parse::<Address>().unwrap(), "a:6".parse::<Address>().unwrap());
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_reason() {
        let long_label = format!("{}:1", "a".repeat(64));
        let long_name = format!("{}:1", "a.".repeat(127) + "a");
        for (text, what) in [
            ("", "no port"),
            ("north", "no port"),
            ("2001:db8::1:50005", "in brackets"),
            ("[2001:db8::1]", "in brackets"),
            ("[north]:1", "in brackets"),
            (":50005", "no host"),
            (".:50005", "no host"),
            ("north:", "0 to 65535"),
            ("north:70000", "0 to 65535"),
            ("north:+1", "not a number"),
            ("north: 1", "not a number"),
            ("north pole:1", "letters, digits"),
            ("nörd:1", "xn--"),
            ("a..b:1", "1 to 63"),
            (".a:1", "1 to 63"),
            (&long_label, "1 to 63"),
            (&long_name, "253"),
            ("10.0.0.256:1", "ends in a number"),
            ("10.1:1", "ends in a number"),
        ] {
            let error = text.parse::<Address>().unwrap_err();
            assert!(error.to_string().contains(what), "{text:?}: {error}");
        }
    }

    #[test]
    fn an_address_is_a_text_for_serde() {
        for text in ["\"192.0.2.1:5\"", "\"plc-7:5\""] {
            let address: Address = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&address).unwrap(), text);
        }
        assert!(serde_json::from_str::<Address>("\"plc-7\"").unwrap_err().to_string().contains("no port"));
    }
}
