//! The cryptography that rustls runs on.
//!
//! Owns: one provider for the process. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: it is ring's, as everywhere else in the crate.

use std::sync::{Arc, OnceLock};

use rustls::crypto::{CryptoProvider, ring};

/// Cryptography by ring: the suite that this machine is fastest with first.
pub(super) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let make = || {
        use ring::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256};
        let mut provider = ring::default_provider();
        provider.cipher_suites =
            vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256];
        if !has_aes() {
            provider.cipher_suites.rotate_right(1);
        }
        Arc::new(provider)
    };
    PROVIDER.get_or_init(make).clone()
}

/// Whether the processor has instructions for AES-GCM.
fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}
