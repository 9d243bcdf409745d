//! The plan of outbound connections, step by step: every time and every outcome is given by the test.

use super::*;
use crate::error::{CloseReason, DialStage};

const BASE: Duration = Duration::from_millis(100);
const STABLE: Duration = Duration::from_secs(10);
const NEVER: Duration = Duration::ZERO;

/// A plan, its clock, and what it wants done.
struct Plan {
    outbound: Outbound,
    now: Instant,
    rng: fastrand::Rng,
}

fn peer(n: u8) -> PeerId {
    PeerId::from_bytes([n; 32])
}

fn socket(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 50005))
}

fn at(places: &[&str]) -> Vec<Address> {
    places.iter().map(|place| place.parse().unwrap()).collect()
}

fn here(n: u8) -> Vec<Address> {
    vec![socket(n).into()]
}

fn refused(n: u8) -> DialError {
    let cause = DialCause::Io(std::io::ErrorKind::ConnectionRefused);
    DialError { addr: socket(n).into(), stage: DialStage::Connect, cause }
}

impl Plan {
    fn new(limit: usize) -> Self {
        let mut backoff = config::Backoff::default();
        (backoff.base, backoff.jitter) = (BASE, 0.0);
        Self { outbound: Outbound::new(limit, backoff, STABLE), now: Instant::now(), rng: fastrand::Rng::with_seed(1) }
    }

    /// What is to be done now, but for notes.
    fn due(&mut self) -> Vec<Action> {
        let mut actions = self.outbound.due(self.now, &mut self.rng);
        actions.retain(|action| !matches!(action, Action::Changed { .. } | Action::Tell(_)));
        actions
    }

    /// The dials that begin now; nothing else does.
    #[track_caller]
    fn dials(&mut self) -> Vec<(DialId, SocketAddr)> {
        let dial = |action| match action {
            Action::Dial { dial, addr, .. } => (dial, addr),
            other => panic!("{other:?}"),
        };
        self.due().into_iter().map(dial).collect()
    }

    #[track_caller]
    fn one_dial(&mut self, n: u8) -> DialId {
        let dials = self.dials();
        let [(dial, addr)] = dials[..] else { panic!("{dials:?}") };
        assert_eq!(addr, socket(n));
        dial
    }

    /// The one lookup that begins now.
    #[track_caller]
    fn one_lookup(&mut self, name: &str) -> RoundId {
        let actions = self.due();
        let [Action::Resolve { round, host }] = &actions[..] else { panic!("{actions:?}") };
        assert_eq!(&**host, name);
        *round
    }

    fn keep(&mut self, n: u8, addresses: Vec<Address>) {
        self.outbound.keep(peer(n), addresses, self.now);
    }

    fn remove(&mut self, n: u8) {
        assert!(self.outbound.remove(peer(n), self.now), "nobody else keeps it");
    }

    fn connect(&mut self, place: &str) -> RoundId {
        self.outbound.connect(place.parse().unwrap(), self.now, &mut self.rng)
    }

    fn fail(&mut self, dial: DialId, error: DialError, retry_after: Duration) {
        self.outbound.dial_failed(dial, error, None, retry_after, self.now, &mut self.rng);
    }

    fn started(&mut self, n: u8, conn: u64, dial: Option<DialId>) {
        let kind = if dial.is_some() { SessionKind::Outbound } else { SessionKind::Inbound };
        self.outbound.started(peer(n), ConnectionId(conn), kind, dial, self.now);
    }

    fn ended(&mut self, n: u8, conn: u64, retry_after: Duration) {
        self.outbound.ended(peer(n), ConnectionId(conn), retry_after, self.now, &mut self.rng);
    }

    fn resolved(&mut self, round: RoundId, found: Result<&[SocketAddr], DialCause>) -> Option<DialError> {
        self.outbound.resolved(round, found, self.now, &mut self.rng)
    }

    /// How long the peer waits from now on.
    fn delay(&self, n: u8) -> Option<Duration> {
        self.outbound.redial(&peer(n)).next.map(|next| next - self.now)
    }

    /// The clock moves to when something is due.
    #[track_caller]
    fn wait(&mut self) -> Duration {
        let delay = self.outbound.next_due().expect("something is due") - self.now;
        self.now += delay;
        delay
    }
}

#[test]
fn all_addresses_of_a_round_are_tried_at_once_and_the_delay_comes_after_it() {
    let mut plan = Plan::new(9);
    plan.keep(1, at(&["192.0.2.1:50005", "192.0.2.2:50005"]));
    for (attempt, delay) in [(1, 0), (2, 100), (3, 200), (4, 300), (5, 500)] {
        let dial = plan.one_dial(1);
        plan.fail(dial, refused(1), NEVER);
        let dial = plan.one_dial(2);
        plan.fail(dial, refused(2), NEVER);
        let errors = vec![refused(1), refused(2)];
        let failed = Action::Failed { peer: peer(1), errors, first: attempt == 1, attempts: attempt };
        assert_eq!(plan.due(), [failed], "one word at the first failure");
        let waits = plan.delay(1).unwrap();
        assert_eq!(plan.outbound.redial(&peer(1)).attempts, attempt);
        if attempt > 1 {
            assert_eq!(waits, Duration::from_millis(delay));
        } else {
            assert!(waits <= BASE, "the first one is spread over the base");
        }
        assert_eq!(plan.wait(), waits);
    }
}

#[test]
fn a_name_is_looked_up_afresh_in_each_round_and_every_address_it_has_is_tried() {
    let mut plan = Plan::new(9);
    plan.keep(1, at(&["north:50005", "192.0.2.9:50005"]));
    let round = plan.one_lookup("north");
    assert_eq!(plan.due(), [], "one step at a time");
    let mut other_port = socket(2);
    other_port.set_port(0);
    assert_eq!(plan.resolved(round, Ok(&[socket(1), other_port])), None);
    for n in [1, 2, 9] {
        let dial = plan.one_dial(n);
        plan.fail(dial, refused(n), NEVER);
    }
    assert!(matches!(&plan.due()[..], [Action::Failed { errors, .. }] if errors.len() == 3));
    plan.wait();
    let round = plan.one_lookup("north");
    let error = plan.resolved(round, Err(DialCause::Unresolved("gone".into()))).unwrap();
    assert_eq!(error.to_string(), "dialling north:50005: resolve: the name does not resolve: gone");
    let dial = plan.one_dial(9);
    plan.started(1, 1, Some(dial));
    assert_eq!((plan.due(), plan.outbound.next_due()), (vec![], None));
    assert_eq!(plan.resolved(round, Ok(&[socket(1)])), None, "a late answer is nobody's");
    assert_eq!(plan.due(), []);
}

#[test]
fn a_lost_peer_is_dialled_after_a_delay_that_starts_over_only_after_a_connection_that_held() {
    let mut plan = Plan::new(9);
    plan.keep(1, here(1));
    for conn in 1..=4 {
        let dial = plan.one_dial(1);
        plan.started(1, conn, Some(dial));
        assert_eq!(plan.outbound.redial(&peer(1)), Redial::default());
        plan.ended(1, conn, NEVER);
        plan.wait();
    }
    let dial = plan.one_dial(1);
    plan.started(1, 5, Some(dial));
    plan.ended(1, 5, NEVER);
    assert_eq!(plan.delay(1), Some(Duration::from_millis(500)), "none of them held");
    plan.wait();
    let dial = plan.one_dial(1);
    plan.started(1, 6, Some(dial));
    plan.now += STABLE;
    plan.ended(1, 6, NEVER);
    assert!(plan.delay(1).unwrap() <= BASE);
    assert_eq!(plan.outbound.redial(&peer(1)).attempts, 1);
}

#[test]
fn the_other_sides_retry_after_is_honoured() {
    let mut plan = Plan::new(9);
    plan.keep(1, here(1));
    let dial = plan.one_dial(1);
    plan.fail(dial, refused(1), Duration::from_secs(7));
    assert!(matches!(plan.due()[..], [Action::Failed { .. }]));
    assert_eq!(plan.wait(), Duration::from_secs(7));
    let dial = plan.one_dial(1);
    plan.started(1, 1, Some(dial));
    plan.ended(1, 1, Duration::from_secs(5));
    assert_eq!(plan.wait(), Duration::from_secs(5));
}

#[test]
fn a_peer_with_a_session_is_not_dialled_whoever_opened_it() {
    let mut plan = Plan::new(9);
    plan.started(1, 1, None);
    plan.keep(1, here(1));
    assert_eq!((plan.due(), plan.outbound.next_due()), (vec![], None));
    // A newer one takes over: the end of the old one is no loss.
    plan.started(1, 2, None);
    plan.ended(1, 1, NEVER);
    assert_eq!((plan.due(), plan.outbound.next_due()), (vec![], None));
    plan.ended(1, 2, NEVER);
    plan.wait();
    let dial = plan.one_dial(1);
    // The other side was faster: our dial loses to its connection, and that is no failure.
    plan.started(1, 3, None);
    let cause = DialCause::Refused(CloseReason::Duplicate);
    plan.fail(dial, DialError { cause, ..refused(1) }, NEVER);
    assert_eq!((plan.due(), plan.outbound.next_due()), (vec![], None));
}

#[test]
fn never_more_dials_and_outbound_sessions_than_the_limit_and_waiting_is_no_failure() {
    let mut plan = Plan::new(2);
    (1..=4).for_each(|n| plan.keep(n, here(n)));
    let dials = plan.dials();
    let [(first, a), (second, b)] = dials[..] else { panic!("{dials:?}") };
    assert_eq!([a, b], [socket(1), socket(2)]);
    assert_eq!((plan.due(), plan.outbound.next_due()), (vec![], None), "no spinning");
    // A failure makes room for the next in line.
    plan.fail(first, refused(1), NEVER);
    let actions = plan.due();
    let [Action::Failed { .. }, Action::Dial { dial: third, addr, .. }] = actions[..] else { panic!("{actions:?}") };
    assert_eq!(addr, socket(3));
    plan.started(2, 1, Some(second));
    plan.started(3, 2, Some(third));
    assert_eq!(plan.due(), [Action::Full], "said once");
    plan.now += Duration::from_secs(60);
    assert_eq!((plan.due(), plan.outbound.next_due()), (vec![], None));
    assert_eq!(plan.outbound.redial(&peer(4)).attempts, 0, "it has not failed");
    // A session of the other side takes none of our places.
    plan.started(5, 3, None);
    plan.ended(5, 3, NEVER);
    assert_eq!(plan.due(), []);
    plan.ended(3, 2, NEVER);
    plan.one_dial(4);
}

#[test]
fn a_lookup_takes_no_place() {
    let mut plan = Plan::new(1);
    plan.keep(1, at(&["dead:1"]));
    plan.one_lookup("dead");
    plan.keep(2, here(2));
    plan.one_dial(2);
}

#[test]
fn a_dial_without_a_slot_waits_and_is_tried_again() {
    let mut plan = Plan::new(9);
    plan.keep(1, here(1));
    let dial = plan.one_dial(1);
    plan.outbound.no_room(dial, plan.now + BASE);
    assert_eq!(plan.due(), []);
    assert_eq!(plan.wait(), BASE);
    plan.one_dial(1);
    // Somebody who waits is told instead.
    let round = plan.connect("192.0.2.7:50005");
    let dial = plan.one_dial(7);
    plan.outbound.no_room(dial, plan.now + BASE);
    assert_eq!(plan.due(), [Action::Answer { round, outcome: Err(ConnectError::TooMany) }]);
}

#[test]
fn one_connection_is_answered_once_with_the_errors_of_all_addresses() {
    let mut plan = Plan::new(9);
    let round = plan.connect("north:50005");
    assert_eq!(plan.one_lookup("north"), round);
    plan.resolved(round, Ok(&[socket(1), socket(2)]));
    let dial = plan.one_dial(1);
    plan.fail(dial, refused(1), NEVER);
    let dial = plan.one_dial(2);
    plan.fail(dial, refused(2), NEVER);
    let errors = vec![refused(1), refused(2)];
    assert_eq!(plan.due(), [Action::Answer { round, outcome: Err(ConnectError::Dial(errors)) }]);

    let round = plan.connect("192.0.2.3:50005");
    let dial = plan.one_dial(3);
    plan.started(3, 1, Some(dial));
    assert_eq!(plan.due(), [Action::Answer { round, outcome: Ok(peer(3)) }]);
    plan.ended(3, 1, NEVER);
    assert_eq!((plan.due(), plan.outbound.next_due()), (vec![], None), "not dialled again");

    // Connected already: that connection stays, and is what was asked for.
    let round = plan.connect("192.0.2.4:50005");
    let dial = plan.one_dial(4);
    let error = DialError { cause: DialCause::Rejected(CloseReason::Duplicate), ..refused(4) };
    plan.outbound.dial_failed(dial, error, Some(peer(4)), NEVER, plan.now, &mut plan.rng);
    assert_eq!(plan.due(), [Action::Answer { round, outcome: Ok(peer(4)) }]);
}

#[test]
fn new_addresses_are_tried_at_once_and_the_same_ones_change_nothing() {
    let mut plan = Plan::new(9);
    plan.keep(1, Vec::new());
    assert_eq!((plan.due(), plan.outbound.next_due()), (vec![], None), "nowhere to dial");
    plan.keep(1, here(1));
    let dial = plan.one_dial(1);
    // While the first is under way: it goes on by itself.
    plan.keep(1, here(2));
    let second = plan.one_dial(2);
    plan.fail(dial, refused(1), NEVER);
    assert_eq!(plan.due(), []);
    plan.fail(second, refused(2), Duration::from_secs(60));
    assert!(matches!(plan.due()[..], [Action::Failed { .. }]));
    plan.keep(1, here(2));
    assert_eq!(plan.delay(1), Some(Duration::from_secs(60)));
    plan.keep(1, here(3));
    plan.one_dial(3);
    plan.keep(1, at(&["north:1"]));
    let round = plan.one_lookup("north");
    plan.keep(1, here(4));
    plan.one_dial(4);
    assert_eq!(plan.resolved(round, Ok(&[socket(5)])), None);
    assert_eq!(plan.due(), []);
}

#[test]
fn a_removed_peer_is_not_dialled_and_a_dial_that_comes_through_is_ended() {
    let mut plan = Plan::new(9);
    plan.keep(1, here(1));
    let dial = plan.one_dial(1);
    plan.remove(1);
    plan.started(1, 1, Some(dial));
    assert_eq!(plan.due(), [Action::Unwanted { conn: ConnectionId(1) }]);
    plan.ended(1, 1, NEVER);
    assert_eq!((plan.due(), plan.outbound.next_due()), (vec![], None));
    // Removed while it waits, and while its dial fails.
    plan.keep(1, here(1));
    let dial = plan.one_dial(1);
    plan.remove(1);
    plan.fail(dial, refused(1), NEVER);
    assert_eq!((plan.due(), plan.outbound.next_due()), (vec![], None));
    plan.keep(2, here(2));
    let dial = plan.one_dial(2);
    plan.fail(dial, refused(2), NEVER);
    plan.due();
    plan.remove(2);
    assert_eq!((plan.due(), plan.outbound.next_due()), (vec![], None));
    // Added again in time: the old dial is as good as a new one.
    plan.keep(3, here(3));
    let dial = plan.one_dial(3);
    plan.remove(3);
    plan.keep(3, here(3));
    plan.started(3, 2, Some(dial));
    assert_eq!(plan.due(), []);
    assert_eq!(plan.outbound.rounds.len() + plan.outbound.dials.len(), 0, "nothing is left behind");
}

#[test]
fn a_peer_that_is_wanted_again_before_it_has_left_is_dialled_as_soon_as_it_has() {
    let mut plan = Plan::new(9);
    plan.keep(1, here(1));
    let dial = plan.one_dial(1);
    plan.started(1, 1, Some(dial));
    plan.due();
    plan.remove(1);
    plan.keep(1, here(1));
    assert_eq!(plan.dials(), [], "it is still there");
    plan.ended(1, 1, NEVER);
    assert_eq!(plan.delay(1), Some(Duration::ZERO), "nothing has failed");
    let dial = plan.one_dial(1);
    plan.started(1, 2, Some(dial));
    plan.due();
    plan.ended(1, 2, NEVER);
    assert!(plan.delay(1) > Some(Duration::ZERO), "this one was lost");
    // Nobody kept it, and it was asked to go all the same.
    plan.started(2, 3, None);
    plan.remove(2);
    plan.keep(2, here(2));
    plan.ended(2, 3, Duration::from_secs(5));
    assert_eq!(plan.delay(2), Some(Duration::from_secs(5)), "as the other side asks");
}

#[test]
fn at_the_stop_nothing_begins_any_more_and_everybody_is_told() {
    let mut plan = Plan::new(2);
    plan.keep(1, here(1));
    plan.keep(2, at(&["north:1"]));
    let looking = plan.connect("south:50005");
    let dialling = plan.connect("192.0.2.7:50005");
    let dials: Vec<_> = plan.due().into_iter().filter(|action| matches!(action, Action::Dial { .. })).collect();
    assert_eq!(dials.len(), 2);
    plan.outbound.stop();
    let late = plan.connect("192.0.2.8:50005");
    plan.keep(3, here(3));
    let ended = |place: &str, stage| {
        let error = DialError { addr: place.parse().unwrap(), stage, cause: DialCause::ShuttingDown };
        Err(ConnectError::Dial(vec![error]))
    };
    let expected = [
        Action::Answer { round: looking, outcome: ended("south:50005", DialStage::Resolve) },
        Action::Answer { round: dialling, outcome: ended("192.0.2.7:50005", DialStage::Connect) },
        Action::Answer { round: late, outcome: ended("192.0.2.8:50005", DialStage::Connect) },
    ];
    assert_eq!(plan.due(), expected);
    for dial in dials {
        let Action::Dial { dial, .. } = dial else { continue };
        plan.fail(dial, refused(1), NEVER);
    }
    assert_eq!((plan.due(), plan.outbound.next_due()), (vec![], None));
    assert_eq!(plan.outbound.rounds.len() + plan.outbound.dials.len(), 0, "nothing is left behind");
}

mod map;

#[test]
fn other_bounds_and_delays_hold_for_what_comes_and_cut_nothing_under_way() {
    let mut plan = Plan::new(2);
    (1..=3).for_each(|n| plan.keep(n, here(n)));
    let dials = plan.dials();
    assert_eq!(dials.len(), 2);
    let mut backoff = config::Backoff::default();
    (backoff.base, backoff.cap) = (Duration::from_secs(3600), Duration::from_secs(3600));
    plan.outbound.change(1, backoff.clone(), STABLE, plan.now);
    // Those under way go on; the third has no place yet when one of them is through.
    plan.started(1, 1, Some(dials[0].0));
    plan.fail(dials[1].0, refused(2), NEVER);
    let due = plan.due();
    assert!(due.iter().all(|action| !matches!(action, Action::Dial { .. })), "{due:?}");
    assert!(plan.delay(2) > Some(Duration::from_secs(1)), "a random part of an hour");
    // A shorter cap ends the longer wait; a wider bound lets the third begin.
    (backoff.base, backoff.cap) = (BASE, Duration::from_millis(500));
    plan.outbound.change(3, backoff, STABLE, plan.now);
    assert_eq!(plan.delay(2), Some(Duration::from_millis(500)));
    plan.one_dial(3);
}
