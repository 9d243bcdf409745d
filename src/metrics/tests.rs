use std::collections::BTreeSet;
use std::io::ErrorKind;

use super::*;

fn names_and_places_differ<K: Cause>() {
    let names: BTreeSet<_> = K::ALL.iter().map(|cause| cause.name()).collect();
    let places: BTreeSet<_> = K::ALL.iter().map(|cause| cause.index()).collect();
    assert_eq!((names.len(), places.len()), (K::ALL.len(), K::ALL.len()));
    assert!(places.iter().all(|place| *place < K::LEN) && K::LEN <= 64, "a table stays small");
}

#[test]
fn every_cause_has_a_place_and_a_name_of_its_own() {
    names_and_places_differ::<CloseReason>();
    names_and_places_differ::<RejectCause>();
    names_and_places_differ::<Refusal>();
    names_and_places_differ::<ConnectFailure>();
    names_and_places_differ::<SessionKind>();
    assert_eq!(Cause::name(CloseReason::HandshakeTimeout), "handshake_timeout");
}

#[test]
fn each_cause_raises_its_own_count_by_one_and_totals_are_their_sums() {
    let metrics = Metrics::default();
    for reason in CloseReason::ALL.iter().copied().chain([CloseReason::Other(60_000)]) {
        let before = metrics.snapshot();
        metrics.session_ended(&DisconnectReason::Local(reason));
        metrics.handshake_failed(&DialCause::Refused(reason));
        let after = metrics.snapshot();
        assert_eq!(after.sessions_ended_by.local.get(reason), before.sessions_ended_by.local.get(reason) + 1);
        assert_eq!(after.handshakes_failed_by.remote.get(reason), 1);
        assert_eq!(after.sessions_ended, before.sessions_ended + 1);
        assert_eq!(after.sessions_ended_by.remote.total() + after.sessions_ended_by.lost, 0);
    }
    let addr = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    for (kind, failure) in [
        (ErrorKind::ConnectionRefused, ConnectFailure::Refused),
        (ErrorKind::HostUnreachable, ConnectFailure::Unreachable),
        (ErrorKind::AddrNotAvailable, ConnectFailure::Other),
    ] {
        metrics.dial_failed(&DialError { addr: addr.into(), stage: DialStage::Connect, cause: DialCause::Io(kind) });
        assert_eq!(metrics.snapshot().dials_failed_by.connect.get(failure), 1);
    }
    assert_eq!(metrics.snapshot().dials_failed, 3);
}

#[test]
fn a_snapshot_serialises_with_names() {
    let metrics = Metrics::default();
    metrics.session_ended(&DisconnectReason::Remote(CloseReason::Shutdown));
    metrics.session_ended(&DisconnectReason::Remote(CloseReason::Other(9_999)));
    metrics.sessions_started.add(SessionKind::Inbound);
    let json = serde_json::to_value(metrics.snapshot()).unwrap();
    assert_eq!(json["sessions_ended_by"]["remote"]["shutdown"], 1);
    assert_eq!(json["sessions_ended_by"]["remote"]["other"], 1);
    assert_eq!(json["sessions_started_by"], serde_json::json!({ "inbound": 1, "outbound": 0 }));
    assert_eq!(json["traffic"]["bytes_sent"], 0);
}
