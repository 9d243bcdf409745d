//! Certificates that lead to an authority by way of another one, and a thief who answers with a certificate of somebody
//! else's.

use std::net::TcpListener;
use std::sync::Arc;

use rcgen::{BasicConstraints, Certificate, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ServerConfig, ServerConnection, version};
use threadwire::error::CloseReason;
use threadwire::handshake::Identity;
use threadwire::transport::tcp::Tcp;
use threadwire::transport::tls::{Credential, Roots, Tls};
use threadwire::transport::{Fault, Listener, PendingConnection, Transport, Trust};

use crate::support::{eventually, loopback, run, step};

const PROTOCOL: &str = "threadwire-test/1";

/// An authority: its certificate, and what it signs with.
type Authority = (Certificate, Issuer<'static, KeyPair>);

fn key() -> KeyPair {
    KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap()
}

/// An authority that another one vouches for, or nobody.
fn authority(name: &str, by: Option<&Authority>) -> Authority {
    let mut params = CertificateParams::new([]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = key();
    let certificate = match by {
        Some((_, issuer)) => params.signed_by(&key, issuer),
        None => params.self_signed(&key),
    };
    (certificate.unwrap(), Issuer::new(params, key))
}

fn certificate(key: &KeyPair, by: &Authority) -> Certificate {
    let mut params = CertificateParams::new([]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.signed_by(key, &by.1).unwrap()
}

/// A side that shows these certificates, and trusts whom this authority vouches for.
fn tls(key: &KeyPair, shows: &[&Certificate], root: &Authority) -> Tls {
    let identity = Arc::new(Identity::from_pem(&key.serialize_pem()).unwrap());
    let pem: String = shows.iter().map(|certificate| certificate.pem()).collect();
    let credential = Credential::certified(identity, pem.as_bytes()).unwrap();
    let trust = Trust::listed([]).and_roots(Roots::from_pem(root.0.pem().as_bytes()).unwrap());
    Tls::new(Tcp::default(), PROTOCOL, credential, trust).unwrap()
}

#[test]
fn a_chain_by_way_of_another_authority_leads_to_the_one_that_is_trusted_if_all_of_it_is_shown() {
    let root = authority("root", None);
    let between = authority("between", Some(&root));
    let stranger = authority("stranger", None);
    let beneath = authority("between", Some(&stranger));
    let [north, south] = [key(), key()];
    let direct = certificate(&north, &root);
    let north = tls(&north, &[&direct], &root);
    let by = |by: &Authority| certificate(&south, by);
    // The other way round, too: whoever dials is judged as whoever answers.
    let meet = |shows: &[&Certificate]| {
        let south = tls(&south, shows, &root);
        let ids = [north.id(), south.id()];
        for (from, to) in [(&north, &south), (&south, &north)] {
            let mut listener = to.listen(loopback()).unwrap();
            let (mut dialled, mut accepted) = reach(from, &mut *listener);
            let mut faults = [None, None];
            eventually("it is decided", || {
                for (side, fault) in [&mut dialled, &mut accepted].into_iter().zip(&mut faults) {
                    match step(&mut **side) {
                        Ok(open) if open && side.flush().unwrap() && side.proof().is_some() => {
                            fault.get_or_insert(None);
                        }
                        Ok(_) => {}
                        Err(error) => *fault = Some(Fault::of(&error).cloned()),
                    }
                }
                faults.iter().all(Option::is_some) || faults.iter().any(|fault| matches!(fault, Some(Some(_))))
            });
            if faults.iter().any(|fault| matches!(fault, Some(Some(_)))) {
                return faults.into_iter().flatten().flatten().next();
            }
            let proven = [&accepted, &dialled].map(|side| side.proof().unwrap().peer);
            assert!(proven == ids || proven == [ids[1], ids[0]]);
        }
        None
    };
    assert_eq!(meet(&[&by(&between), &between.0]), None);
    assert_eq!(meet(&[&by(&between), &between.0, &root.0]), None, "the authority itself does no harm");
    let untrusted = |fault| matches!(fault, Some(Fault::Rejected(CloseReason::Untrusted, _)));
    assert!(untrusted(meet(&[&by(&between)])), "without what lies between");
    // Of another authority by the same name: what it has signed is not what the one that is shown has.
    let forged = meet(&[&by(&beneath), &between.0]);
    assert!(matches!(forged, Some(Fault::Rejected(CloseReason::BadSignature, _))), "{forged:?}");
    assert!(untrusted(meet(&[&by(&beneath), &beneath.0])), "that leads elsewhere");
}

/// A dial and its other end, as TCP makes them: nothing is said yet.
fn reach(from: &Tls, listener: &mut dyn Listener) -> (Box<dyn PendingConnection>, Box<dyn PendingConnection>) {
    let mut dialled = from.connect(listener.local_addr()).unwrap();
    let mut accepted = None;
    eventually("the dial comes in", || {
        accepted = accepted.take().or_else(|| listener.accept().ok());
        accepted.is_some() && dialled.connected().unwrap()
    });
    (dialled, accepted.unwrap())
}

#[test]
fn a_thief_who_answers_with_a_certificate_of_anothers_key_is_nobody() {
    let root = authority("root", None);
    let [north, south, thief] = [key(), key(), key()];
    let stolen = certificate(&south, &root);
    let north = tls(&north, &[&certificate(&north, &root)], &root);
    let listener = TcpListener::bind(loopback()).unwrap();
    let mut dialled = north.connect(listener.local_addr().unwrap()).unwrap();
    eventually("the dial is through", || dialled.connected().unwrap());
    let server = run(move || {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::from_pem_slice(thief.serialize_pem().as_bytes()).unwrap();
        let key = provider.key_provider.load_private_key(key).unwrap();
        let shows = SingleCertAndKey::from(CertifiedKey::new(vec![stolen.der().clone()], key));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(shows));
        config.alpn_protocols = vec![PROTOCOL.as_bytes().to_vec()];
        let mut tls = ServerConnection::new(Arc::new(config)).unwrap();
        let mut stream = listener.accept().unwrap().0;
        while tls.is_handshaking() {
            if let Err(error) = tls.complete_io(&mut stream) {
                return error.to_string();
            }
        }
        "it is believed".to_owned()
    });
    let mut fault = None;
    eventually("it is decided", || match step(&mut *dialled) {
        Ok(open) => open,
        Err(error) => {
            fault = Fault::of(&error).cloned();
            true
        }
    });
    assert!(matches!(fault, Some(Fault::Rejected(CloseReason::BadSignature, _))), "{fault:?}");
    let told = server.end();
    assert!(told.contains("DecryptError"), "{told}");
}
