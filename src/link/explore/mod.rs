//! Exhaustive exploration of the link: two cores, a few messages, faults at every point, every order of events.
//!
//! Owns: nothing. Threads: the test's, two at a time. Locks: none. Blocks on: nothing.
//! Upholds: the promises in `law.rs`, in every state that can be reached; each deliberate violation is found.
//!
//! The cores talk in real frame bytes. Whatever another thread or process could come in between of is a step of its
//! own: reading a frame, the end of a delivery, writing a chunk or the acknowledgements, noticing that a connection is
//! over (each side for itself, while its reader may still have frames that had arrived), dialling, accepting, proving.
//! `world.rs` says what a state is, `action.rs` what may happen, `step.rs` and `read.rs` what that does, `search.rs` how all of it is visited.

mod action;
mod cases;
mod law;
mod read;
mod search;
mod step;
mod world;

use std::thread;

use cases::{CASES, DEEP};
use law::Law;
use search::{Found, Plan, search};
use world::Case;

use crate::link::Mutation;

/// Searches all cases, two at a time, and prints what it found.
fn explore(cases: &[Case], plan: Plan) -> usize {
    let halves = [0, 1].map(|half| cases.iter().skip(half).step_by(2));
    let found: Vec<(&Case, Found)> = thread::scope(|scope| {
        let searches = halves
            .map(|half| scope.spawn(move || half.map(|case| (case, search(case, None, plan))).collect::<Vec<_>>()));
        searches.into_iter().flat_map(|search| search.join().expect("a search does not panic")).collect()
    });
    for (case, found) in &found {
        println!("{:48} {found}", case.name);
    }
    let all = |count: fn(&Found) -> usize| found.iter().map(|(_, found)| count(found)).sum::<usize>();
    let states = all(|found| found.states);
    println!("{states} states, {} transitions, {} continued", all(|f| f.transitions), all(|f| f.continued));
    for (case, found) in &found {
        assert!(found.broken.is_none(), "{}: {found}", case.name);
        assert!(found.exhausted, "{}: more than {} states", case.name, plan.most);
    }
    states
}

#[test]
fn the_link_keeps_its_promises_in_every_state_of_small_cases() {
    let states = explore(CASES, Plan { broad: false, sample: 16, most: 1_000_000 });
    assert!(states >= 100_000);
}

/// More of everything. Release build, some minutes to an hour, up to 1 GB:
/// `cargo test --release --lib explore::deep -- --ignored --nocapture`.
#[test]
#[ignore = "takes long; its documentation has the command"]
fn deep() {
    explore(DEEP, Plan { broad: false, sample: 16, most: 50_000_000 });
}

/// Searches until a case shows that `mutation` breaks one of `laws`.
fn finds(mutation: Mutation, laws: &[Law]) {
    let mut states = 0;
    for case in CASES {
        let found = search(case, Some(mutation), Plan { broad: true, sample: u64::MAX, most: 50_000 });
        states += found.states;
        if let Some((broken, trace)) = &found.broken {
            println!("{mutation:?}: found after {states} states, case \"{}\", {} steps", case.name, trace.len());
            println!("  {}: {}", broken.law, broken.detail);
            trace.iter().for_each(|action| println!("    {action:?}"));
            assert!(laws.contains(&broken.law), "{found}");
            return;
        }
    }
    panic!("{mutation:?} was not found in {states} states");
}

#[test]
fn a_stale_session_that_claims_is_found() {
    finds(Mutation::NoFence, &[Law::NoFault]);
}

#[test]
fn a_session_that_claims_while_another_delivers_is_found() {
    finds(Mutation::NoDeliveryGate, &[Law::OneDelivers]);
}

#[test]
fn retention_that_ends_at_received_is_found() {
    finds(Mutation::FreeAtReceived, &[Law::AckedWasHandedOver]);
}

#[test]
fn a_session_that_resumes_behind_what_was_received_is_found() {
    finds(Mutation::ResumeAtSent, &[Law::NoFault, Law::Complete]);
}

#[test]
fn repeats_that_are_not_announced_are_found() {
    finds(Mutation::RepeatsUnmarked, &[Law::RepeatsAnnounced]);
}

#[test]
fn credit_that_is_said_and_not_counted_is_found() {
    finds(Mutation::CreditKept, &[Law::NoFault]);
}

#[test]
fn acknowledgements_of_a_replaced_session_that_count_are_found() {
    finds(Mutation::StaleAck, &[Law::NoFault]);
}

#[test]
fn a_phase_that_does_not_end_is_found() {
    finds(Mutation::LossUncounted, &[Law::EndsOnce]);
}

#[test]
fn a_second_process_of_a_name_that_is_let_in_is_found() {
    finds(Mutation::NoDoubt, &[Law::FirstStays]);
}
