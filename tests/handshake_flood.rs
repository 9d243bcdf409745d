//! Strangers that have a node begin handshakes and leave: what they have asked for is not done once they are gone.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::sync::Arc;

use crossbeam_channel::bounded;
use threadwire::Node;
use threadwire::handshake::{Identity, Offer};
use threadwire::ident::SessionKind;

mod common;
use common::stranger::{Stranger, machine};
use common::{PATIENCE, addr, alone, nothing_left, plain, reaches, start, wait_until};

const WORKERS: usize = 2;

/// A node with so many places, and what is done while all its workers are held.
fn while_the_workers_are_held(places: usize, test: impl FnOnce(&Node, Box<dyn FnOnce()>)) -> Node {
    let (held, holds) = bounded(WORKERS);
    let (release, released) = bounded::<()>(0);
    let policy = move |_: &Offer<'_>| {
        // Once they are released, nobody is held any more.
        let _ = held.try_send(());
        let _ = released.recv();
        Ok(())
    };
    let mut config = plain();
    (config.half_open, config.handshake_timeout) = (places, PATIENCE);
    let bob = Node::builder().config(config).handshake_policy(policy).start().unwrap();
    let holders: Vec<Node> = (0..WORKERS).map(|_| start(plain())).collect();
    std::thread::scope(|scope| {
        for holder in &holders {
            let (at, holds) = (addr(&bob), holds.clone());
            // They may lose their places meanwhile; the workers have them all the same.
            scope.spawn(move || holder.connect(at));
            holds.recv_timeout(PATIENCE).unwrap();
        }
        test(&bob, Box::new(move || drop(release)));
    });
    bob
}

/// The hello of a stranger.
fn hello(to: &Node) -> Vec<u8> {
    let identity = Arc::new(Identity::generate().unwrap());
    machine(&identity, SessionKind::Outbound, to.id()).output().clone()
}

/// The node serves who comes now, and nothing is left of who came before.
fn is_well(bob: &Node) {
    let alice = start(plain());
    alice.connect(addr(bob)).unwrap();
    reaches(&alice, bob);
    drop(alice);
    nothing_left(bob);
}

#[test]
fn what_strangers_leave_behind_who_lost_their_places_keeps_no_worker_from_those_who_stay() {
    const STRANGERS: usize = 300;
    const PLACES: usize = 8;
    let _alone = alone();
    let bob = while_the_workers_are_held(PLACES, |bob, release| {
        let hello = hello(bob);
        let strangers: Vec<Stranger> = (1..=STRANGERS)
            .map(|n| {
                let mut stranger = Stranger::dial(addr(bob));
                assert!(stranger.say(&hello));
                wait_until("it has come", || bob.metrics().accepted == (WORKERS + n) as u64);
                stranger
            })
            .collect();
        assert_eq!(bob.metrics().evicted, (WORKERS + STRANGERS - PLACES) as u64);
        release();
        // Those who have their places still are answered.
        for mut stranger in strangers.into_iter().rev().take(PLACES) {
            assert!(stranger.hear().is_some());
        }
    });
    // Some had lost their places before their hello was read.
    let (skipped, evicted) = (bob.metrics().steps_skipped, bob.metrics().evicted);
    assert!(skipped > evicted / 2 && skipped <= evicted, "{skipped} of {evicted}");
    is_well(&bob);
}

#[test]
fn strangers_that_begin_a_handshake_and_reset_give_their_places_back_before_a_worker_comes_to_them() {
    const STRANGERS: usize = 100;
    let _alone = alone();
    let bob = while_the_workers_are_held(2 * STRANGERS, |bob, release| {
        let hello = hello(bob);
        for n in 1..=STRANGERS {
            let mut stranger = Stranger::dial(addr(bob));
            assert!(stranger.say(&hello));
            wait_until("it has come", || bob.metrics().accepted == (WORKERS + n) as u64);
            stranger.hang_up(true);
        }
        wait_until("all have gone", || bob.metrics().handshakes_failed == STRANGERS as u64);
        assert_eq!(bob.metrics().handshakes_failed_by.lost, STRANGERS as u64);
        release();
    });
    assert_eq!(bob.metrics().evicted, 0);
    is_well(&bob);
    assert!(bob.metrics().steps_skipped > 0, "some were reset when their hello had been read");
}
