//! The live map of peers in the plan: who appears, moves and vanishes, and what is told of it.

use super::*;

impl Plan {
    fn follow(&mut self, map: &[(u8, Vec<Address>)]) {
        self.outbound.follow(map.iter().map(|(n, at)| (peer(*n), at.clone())).collect(), self.now);
    }

    /// What is told now, in short, and what else is to be done.
    fn told(&mut self) -> (Vec<String>, Vec<Action>) {
        let (mut told, mut rest) = (Vec::new(), Vec::new());
        for action in self.outbound.due(self.now, &mut self.rng) {
            match action {
                Action::Tell(PeerEvent::AddrsResolved { peer: who, addrs, generation }) => {
                    let ports: Vec<_> = addrs.iter().map(|addr| addr.to_string().replace(":50005", "")).collect();
                    told.push(format!("{} at {ports:?} {generation}", who.as_bytes()[0]));
                }
                Action::Tell(PeerEvent::SenderStopped { peer: who, addr, generation, reason }) => {
                    told.push(format!("{} stopped {reason:?} {generation} {}", who.as_bytes()[0], addr.is_some()));
                }
                Action::Changed { .. } => {}
                other => rest.push(other),
            }
        }
        (told, rest)
    }
}

fn dial(action: &Action) -> (DialId, SocketAddr) {
    let Action::Dial { dial, addr, .. } = action else { panic!("{action:?}") };
    (*dial, *addr)
}

#[test]
fn peers_of_the_map_are_dialled_as_they_appear_and_let_go_as_they_vanish() {
    let mut plan = Plan::new(9);
    plan.follow(&[(1, here(1)), (2, Vec::new())]);
    let (told, rest) = plan.told();
    assert_eq!(told, [r#"1 at ["192.0.2.1"] 1"#], "the other is known, and nowhere to dial");
    let (first, _) = dial(&rest[0]);
    plan.started(1, 1, Some(first));
    plan.started(2, 2, None);
    plan.follow(&[(1, here(1)), (2, Vec::new())]);
    assert_eq!(plan.told(), (vec![], vec![]), "the same once more changes nothing");
    plan.follow(&[(3, here(3))]);
    let (told, rest) = plan.told();
    assert_eq!(told, ["1 stopped Vanished 1 true", "2 stopped Vanished 2 false", r#"3 at ["192.0.2.3"] 3"#]);
    assert_eq!(rest[..2], [Action::Vanished { peer: peer(1) }, Action::Vanished { peer: peer(2) }]);
    assert_eq!(dial(&rest[2]).1, socket(3));
    plan.ended(1, 1, NEVER);
    plan.ended(2, 2, NEVER);
    assert_eq!(plan.outbound.kept.len(), 1, "nobody dials them again");
    plan.follow(&[(1, here(4)), (3, here(3))]);
    let (told, rest) = plan.told();
    assert_eq!(told, [r#"1 at ["192.0.2.4"] 4"#], "back, and another sender");
    assert_eq!(dial(&rest[0]).1, socket(4));
}

#[test]
fn a_session_at_an_address_that_is_gone_stays_until_another_takes_over() {
    let mut plan = Plan::new(9);
    plan.follow(&[(1, here(1))]);
    let first = plan.one_dial(1);
    plan.started(1, 1, Some(first));
    plan.due();
    plan.now += STABLE;
    plan.follow(&[(1, here(2))]);
    let (told, rest) = plan.told();
    assert_eq!(told, ["1 stopped Moved 1 true", r#"1 at ["192.0.2.2"] 2"#]);
    let (second, addr) = dial(&rest[0]);
    assert_eq!((addr, rest.len()), (socket(2), 1), "the old session goes on");
    // Nobody is there yet.
    plan.fail(second, refused(2), NEVER);
    plan.due();
    plan.wait();
    let second = plan.one_dial(2);
    plan.started(1, 2, Some(second));
    plan.ended(1, 1, Duration::from_secs(60));
    assert_eq!((plan.told(), plan.outbound.next_due()), ((vec![], vec![]), None));
    plan.ended(1, 2, NEVER);
    plan.wait();
    plan.one_dial(2);
}

#[test]
fn the_end_of_a_session_at_an_address_that_is_gone_has_the_others_tried_at_once() {
    let mut plan = Plan::new(9);
    plan.follow(&[(1, here(1))]);
    let first = plan.one_dial(1);
    plan.started(1, 1, Some(first));
    plan.follow(&[(1, here(2))]);
    let second = plan.one_dial(2);
    // The old process lives, and keeps the new one out.
    plan.fail(second, refused(2), Duration::from_secs(5));
    plan.due();
    plan.ended(1, 1, Duration::from_secs(60));
    plan.one_dial(2);
}

#[test]
fn a_dial_that_meets_a_session_still_being_made_is_early_and_no_failure() {
    let mut plan = Plan::new(9);
    plan.follow(&[(1, here(1))]);
    let first = plan.one_dial(1);
    plan.started(1, 1, Some(first));
    plan.follow(&[(1, here(2))]);
    for _ in 0..10 {
        let second = plan.one_dial(2);
        plan.fail(second, DialError { cause: DialCause::Refused(CloseReason::Duplicate), ..refused(2) }, NEVER);
        assert_eq!((plan.due(), plan.outbound.redial(&peer(1)).attempts), (vec![], 0));
        assert_eq!(plan.wait(), EARLY_RETRY);
    }
    // The other side says how long to stay away.
    let second = plan.one_dial(2);
    let early = DialError { cause: DialCause::Rejected(CloseReason::Superseded), ..refused(2) };
    plan.fail(second, early, Duration::from_secs(3));
    plan.due();
    assert_eq!(plan.wait(), Duration::from_secs(3));
    // The session was lost meanwhile: what is in the way now is another one, of which word will come.
    let second = plan.one_dial(2);
    plan.ended(1, 1, NEVER);
    plan.fail(second, DialError { cause: DialCause::Refused(CloseReason::Duplicate), ..refused(2) }, NEVER);
    assert!(matches!(plan.due()[..], [Action::Failed { attempts: 1, .. }]));
}

#[test]
fn an_address_that_comes_back_in_time_ends_the_search() {
    let mut plan = Plan::new(9);
    plan.follow(&[(1, here(1))]);
    let first = plan.one_dial(1);
    plan.started(1, 1, Some(first));
    plan.follow(&[(1, at(&["north:1"]))]);
    let round = plan.one_lookup("north");
    plan.follow(&[(1, here(1))]);
    assert_eq!(plan.resolved(round, Ok(&[socket(5)])), None);
    assert_eq!((plan.due(), plan.outbound.next_due()), (vec![], None));
    assert_eq!(plan.outbound.redial(&peer(1)), Redial::default());
    // Also while it waits for its next attempt.
    plan.follow(&[(1, here(2))]);
    let second = plan.one_dial(2);
    plan.fail(second, refused(2), NEVER);
    plan.due();
    plan.follow(&[(1, [here(2), here(1)].concat())]);
    assert_eq!((plan.due(), plan.outbound.next_due()), (vec![], None));
    plan.follow(&[(1, Vec::new())]);
    assert_eq!((plan.due(), plan.outbound.next_due()), (vec![], None), "nowhere to dial: the session stays");
}

#[test]
fn a_dial_of_an_address_that_is_gone_meanwhile_is_no_place_to_stay() {
    let mut plan = Plan::new(9);
    plan.follow(&[(1, here(1))]);
    let late = plan.one_dial(1);
    plan.follow(&[(1, here(2))]);
    let second = plan.one_dial(2);
    plan.started(1, 1, Some(late));
    let third = plan.one_dial(2);
    plan.started(1, 2, Some(second));
    assert_eq!(plan.due(), []);
    plan.fail(third, DialError { cause: DialCause::Refused(CloseReason::Duplicate), ..refused(2) }, NEVER);
    plan.ended(1, 1, NEVER);
    assert_eq!((plan.due(), plan.outbound.next_due()), (vec![], None));
    assert_eq!(plan.outbound.rounds.len() + plan.outbound.dials.len(), 0, "nothing is left behind");
}

#[test]
fn each_source_lets_go_of_its_own() {
    let mut plan = Plan::new(9);
    plan.keep(1, here(1));
    plan.follow(&[(1, here(2))]);
    let (told, rest) = plan.told();
    assert_eq!(told, [r#"1 at ["192.0.2.1"] 1"#, r#"1 at ["192.0.2.2", "192.0.2.1"] 1"#]);
    let (first, addr) = dial(&rest[0]);
    assert_eq!(addr, socket(2), "the map comes first");
    plan.started(1, 1, Some(first));
    assert!(!plan.outbound.remove(peer(1), plan.now), "the map keeps it");
    assert_eq!(plan.told(), (vec![r#"1 at ["192.0.2.2"] 1"#.into()], vec![]));
    plan.keep(1, here(1));
    plan.follow(&[]);
    let (told, rest) = plan.told();
    assert_eq!(told[1..], ["1 stopped Moved 1 true", r#"1 at ["192.0.2.1"] 2"#], "what was added stays");
    assert_eq!(dial(&rest[0]).1, socket(1));
    plan.follow(&[(1, here(1))]);
    assert!(!plan.outbound.remove(peer(1), plan.now));
    plan.follow(&[]);
    let (told, rest) = plan.told();
    assert_eq!((told, rest), (vec!["1 stopped Vanished 2 false".into()], vec![Action::Vanished { peer: peer(1) }]));
}

#[test]
fn a_name_that_is_not_found_is_tried_again_after_a_fixed_time_and_new_addresses_end_that_wait() {
    let mut plan = Plan::new(9);
    plan.follow(&[(1, at(&["north:50005"]))]);
    for _ in 0..20 {
        let round = plan.one_lookup("north");
        assert!(plan.resolved(round, Err(DialCause::Unresolved("gone".into()))).is_some());
        assert!(matches!(plan.due()[..], [Action::Failed { .. }]));
        assert_eq!(plan.wait(), RESOLVE_RETRY_TIMEOUT);
    }
    let round = plan.one_lookup("north");
    plan.resolved(round, Err(DialCause::Unresolved("gone".into())));
    plan.follow(&[(1, here(3))]);
    plan.told();
    assert_eq!(plan.outbound.redial(&peer(1)).next, None, "it is dialled already");
    // Found at last: that is told, once.
    plan.follow(&[(1, at(&["south:50005"]))]);
    let round = plan.one_lookup("south");
    plan.resolved(round, Ok(&[socket(4), socket(5)]));
    let (told, rest) = plan.told();
    assert_eq!(told, [r#"1 at ["192.0.2.4", "192.0.2.5"] 1"#]);
    let (first, _) = dial(&rest[0]);
    plan.fail(first, refused(4), NEVER);
    let second = plan.one_dial(5);
    plan.fail(second, refused(5), NEVER);
    plan.due();
    assert!(plan.wait() <= BASE, "nobody answers: that is what the backoff is for");
}

#[test]
fn a_lost_peer_is_tried_first_where_it_answered_last_and_then_everywhere_else() {
    let mut plan = Plan::new(9);
    plan.follow(&[(1, at(&["192.0.2.1:50005", "192.0.2.2:50005", "192.0.2.3:50005"]))]);
    for n in [1, 2] {
        let dial = plan.one_dial(n);
        plan.fail(dial, refused(n), NEVER);
    }
    let third = plan.one_dial(3);
    plan.started(1, 1, Some(third));
    plan.ended(1, 1, NEVER);
    plan.wait();
    for n in [3, 1] {
        let dial = plan.one_dial(n);
        plan.fail(dial, refused(n), NEVER);
    }
    let second = plan.one_dial(2);
    plan.started(1, 2, Some(second));
    assert_eq!((plan.due(), plan.outbound.live[&peer(1)].len()), (vec![], 1), "one session");
    plan.ended(1, 2, NEVER);
    plan.wait();
    plan.one_dial(2);
}

#[test]
fn every_sender_is_told_of_when_it_stops_at_the_end_of_the_node_once() {
    let mut plan = Plan::new(9);
    plan.keep(1, here(1));
    plan.follow(&[(2, here(2))]);
    plan.told();
    plan.outbound.stop();
    plan.outbound.stop();
    assert_eq!(plan.told().0, ["1 stopped ShuttingDown 1 false", "2 stopped ShuttingDown 2 false"]);
}

#[test]
fn where_there_is_no_other_place_the_session_at_an_address_that_is_gone_gives_up_its_own() {
    let mut plan = Plan::new(2);
    plan.follow(&[(1, here(1)), (2, here(2))]);
    let dials = plan.dials();
    for (n, (dial, _)) in [1, 2].into_iter().zip(dials) {
        plan.started(n, n.into(), Some(dial));
    }
    plan.follow(&[(1, here(3)), (2, here(2))]);
    let actions = plan.due();
    assert_eq!(actions, [Action::Unwanted { conn: ConnectionId(1) }, Action::Full]);
    assert_eq!((plan.due(), plan.outbound.next_due()), (vec![], None), "asked once, and no spinning");
    plan.ended(1, 1, Duration::from_secs(60));
    plan.one_dial(3);
}
