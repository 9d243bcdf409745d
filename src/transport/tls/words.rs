//! What went wrong in TLS, as both sides say it: alerts on the wire, reasons here.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: what one side refuses for, the other side hears as the same reason, as far as alerts can tell them apart.

use rustls::{AlertDescription, CertificateError, ContentType, Error, PeerIncompatible};

use super::verify::WrongPeer;
use crate::error::CloseReason;
use crate::transport::Fault;

/// Alerts from here on are reasons of ours, where nothing else can be said yet: the code of the reason above this. TLS
/// has no alert for "too many", and its own end far below.
const REASONS: u8 = 192;

/// What a failure of rustls says.
pub(super) fn fault(error: &Error) -> Fault {
    use CloseReason::{BadSignature, ProtocolError, Untrusted, VersionMismatch, WrongProtocol};
    let reason = match error {
        Error::AlertReceived(alert) => return Fault::Refused(meant_by(*alert), error.to_string()),
        Error::InvalidCertificate(CertificateError::Other(other)) if other.0.is::<WrongPeer>() => {
            CloseReason::WrongPeer
        }
        Error::InvalidCertificate(CertificateError::BadSignature) => BadSignature,
        Error::InvalidCertificate(_) | Error::NoCertificatesPresented => Untrusted,
        // One of us wants a certificate, and the other one has a bare key to show.
        Error::PeerIncompatible(PeerIncompatible::IncorrectCertificateTypeExtension) => Untrusted,
        Error::PeerIncompatible(_) => VersionMismatch,
        Error::NoApplicationProtocol => WrongProtocol,
        _ => ProtocolError,
    };
    Fault::Rejected(reason, error.to_string())
}

/// What the other side means by an alert.
fn meant_by(alert: AlertDescription) -> CloseReason {
    use AlertDescription as Alert;
    match alert {
        Alert::AccessDenied
        | Alert::UnknownCA
        | Alert::CertificateExpired
        | Alert::CertificateRevoked
        | Alert::BadCertificate
        | Alert::UnsupportedCertificate
        | Alert::CertificateRequired
        // What rustls says where a certificate is wanted and there is none: all else is the same at every node.
        | Alert::HandshakeFailure => CloseReason::Untrusted,
        Alert::CertificateUnknown => CloseReason::WrongPeer,
        Alert::NoApplicationProtocol => CloseReason::WrongProtocol,
        Alert::ProtocolVersion => CloseReason::VersionMismatch,
        Alert::DecryptError => CloseReason::BadSignature,
        Alert::Unknown(code) if code > REASONS => CloseReason::from_code((code - REASONS).into()),
        _ => CloseReason::ProtocolError,
    }
}

/// The alert that says this reason once the handshake is over.
pub(super) fn alert_for(reason: CloseReason) -> AlertDescription {
    match reason {
        CloseReason::WrongProtocol => AlertDescription::NoApplicationProtocol,
        CloseReason::Untrusted => AlertDescription::BadCertificate,
        _ => AlertDescription::InternalError,
    }
}

/// A fatal alert with this reason, unprotected: for a side that has not heard a protected word yet.
pub(super) fn refusal(reason: CloseReason) -> [u8; 7] {
    const FATAL: u8 = 2;
    let code = u8::try_from(reason.code()).ok().and_then(|code| code.checked_add(REASONS));
    [ContentType::Alert.into(), 3, 3, 0, 2, FATAL, code.unwrap_or(AlertDescription::InternalError.into())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_survives_its_alert() {
        for reason in CloseReason::ALL {
            let [.., code] = refusal(*reason);
            assert_eq!(meant_by(AlertDescription::from(code)), *reason, "{reason:?}");
        }
        for reason in [CloseReason::WrongProtocol, CloseReason::Untrusted] {
            assert_eq!(meant_by(alert_for(reason)), reason);
        }
        let [.., code] = refusal(CloseReason::Other(50_000));
        assert_eq!(meant_by(AlertDescription::from(code)), CloseReason::ProtocolError);
    }
}
