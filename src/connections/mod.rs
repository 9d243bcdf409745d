//! Reaching peers and being reached.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: what is decided here is decided by plain structures; time and randomness are arguments.
#![cfg_attr(not(test), expect(dead_code, reason = "the supervisor is what redials"))]

mod backoff;

#[expect(unused_imports, reason = "the supervisor is what redials")]
pub(crate) use backoff::ReconnectPolicy;
