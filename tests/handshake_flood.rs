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

#[test]
fn what_strangers_leave_behind_keeps_no_worker_from_those_who_stay() {
    const WORKERS: usize = 2;
    const STRANGERS: usize = 300;
    const PLACES: usize = 8;
    let _alone = alone();
    let (held, holds) = bounded(WORKERS);
    let (release, released) = bounded::<()>(0);
    let policy = move |_: &Offer<'_>| {
        // Once they are released, nobody is held any more.
        let _ = held.try_send(());
        let _ = released.recv();
        Ok(())
    };
    let mut config = plain();
    (config.half_open, config.handshake_timeout) = (PLACES, PATIENCE);
    let bob = Node::builder().config(config).handshake_policy(policy).start().unwrap();
    let holders: Vec<Node> = (0..WORKERS).map(|_| start(plain())).collect();
    std::thread::scope(|scope| {
        for holder in &holders {
            let (at, holds) = (addr(&bob), holds.clone());
            // They may lose their places meanwhile; the workers have them all the same.
            scope.spawn(move || holder.connect(at));
            holds.recv_timeout(PATIENCE).unwrap();
        }
        let identity = Arc::new(Identity::generate().unwrap());
        let hello = machine(&identity, SessionKind::Outbound, bob.id()).output().clone();
        let strangers: Vec<Stranger> = (1..=STRANGERS)
            .map(|n| {
                let mut stranger = Stranger::dial(addr(&bob));
                assert!(stranger.say(&hello));
                wait_until("it has come", || bob.metrics().accepted == (WORKERS + n) as u64);
                stranger
            })
            .collect();
        assert_eq!(bob.metrics().evicted, (WORKERS + STRANGERS - PLACES) as u64);
        drop(release);
        // Those who have their places still are answered.
        for mut stranger in strangers.into_iter().rev().take(PLACES) {
            assert!(stranger.hear().is_some());
        }
    });
    // Some had lost their places before their hello was read.
    let (skipped, evicted) = (bob.metrics().steps_skipped, bob.metrics().evicted);
    assert!(skipped > evicted / 2 && skipped <= evicted, "{skipped} of {evicted}");
    let alice = start(plain());
    alice.connect(addr(&bob)).unwrap();
    reaches(&alice, &bob);
    drop((holders, alice));
    nothing_left(&bob);
}
