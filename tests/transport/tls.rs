//! What TLS does beyond the contract.

use std::sync::Arc;

use threadwire::handshake::Identity;
use threadwire::transport::tls::{Credential, Tls};
use threadwire::transport::{Transport, Trust};

/// TLS over a transport, open to everybody, the same identity at both ends.
pub fn over(inner: impl Transport) -> Tls {
    let identity = Arc::new(Identity::generate().unwrap());
    Tls::new(inner, "threadwire-test/1", Credential::bare(identity), Trust::open()).unwrap()
}
