//! Model checks of a session's end: the attach fence, and the close gate.
//!
//! Owns: nothing beyond one execution. Threads: receiver and sender threads of two sessions, threads that close.
//! Locks: as in what is checked. Blocks on: what was handed over.
//! Upholds: across a replacement everything is handed over once, in order and one at a time; a session is closed and
//! reported once, with the cause that ranks highest.

use std::io;
use std::sync::Arc;

use shuttle::thread;

use super::rig::{Ends, Line, Reading, attach, check, link, run};
use crate::error::{CloseReason, DisconnectReason};
use crate::ident::{ConnectionId, PeerId, SessionKind};
use crate::link::Mutation;
use crate::session::inbox::{Handler, Peer, Sink};
use crate::session::receiver::recv_loop;
use crate::session::state::Session;
use crate::sync::{Condvar, Mutex, either};
use crate::wire::{Decoder, MAX_BODY};

/// What the handler met.
#[derive(Default)]
struct Seen {
    state: Mutex<SeenState>,
    changed: Condvar,
}

#[derive(Default)]
struct SeenState {
    order: Vec<u8>,
    inside: u32,
    overlapped: bool,
}

impl Seen {
    fn handler(self: &Arc<Self>) -> Handler {
        let seen = self.clone();
        Handler::All(Arc::new(move |_, message| {
            let mut state = seen.state.lock();
            state.inside += 1;
            state.overlapped |= state.inside > 1;
            state.order.push(message.payload()[0]);
            drop(state);
            // Another thread may run here.
            seen.state.lock().inside -= 1;
            seen.changed.notify_all();
        }))
    }

    fn wait_for(&self, messages: usize) {
        let mut state = self.state.lock();
        while state.order.len() < messages {
            self.changed.wait(&mut state);
        }
    }
}

fn receive(peer: &Peer, session: &Arc<Session>, line: &Arc<Line>, ends: &Ends) -> thread::JoinHandle<()> {
    let (peer, session, read, on_end) = (peer.clone(), session.clone(), Reading(line.clone()), ends.on_end());
    thread::spawn(move || recv_loop(&peer, &session, Box::new(read), Decoder::new(MAX_BODY), &on_end))
}

/// A new session attaches while the old one delivers; the far side says again what was not received.
fn fence(mutation: Option<Mutation>) {
    let (near, mut far) = link(either(), 100, 8 << 20);
    let near = Arc::new(near);
    attach(&near, &mut far, 1);
    near.core.lock().mutation = mutation;
    let seen = Arc::new(Seen::default());
    let peer = Peer { link: near.clone(), sink: Sink::Handler(seen.handler()) };
    let old = run(&near, 1);
    let old_rx = receive(&peer, &old.session, &old.line, &old.ends);
    old.line.give(&far.write(&[&[0, 1], &[2, 3]]));

    attach(&near, &mut far, 2);
    let new = run(&near, 2);
    let new_rx = receive(&peer, &new.session, &new.line, &new.ends);
    new.line.give(&far.write(&[&[4]]));
    let old_ends = old.close(&near);

    seen.wait_for(5);
    let new_ends = new.close(&near);
    old_rx.join().unwrap();
    new_rx.join().unwrap();
    let state = seen.state.lock();
    let right = !state.overlapped && state.order == [0, 1, 2, 3, 4];
    assert!(right, "once, in order, one at a time: {:?}, at a time: {}", state.order, !state.overlapped);
    assert_eq!((old_ends.seen().len(), new_ends.seen().len()), (1, 1));
}

#[test]
fn shuttle_a_replaced_session_delivers_nothing_twice() {
    check(20_000, || fence(None));
}

#[test]
#[should_panic(expected = "once, in order, one at a time")]
fn shuttle_finds_a_session_that_does_not_wait_for_the_old_ones_handler() {
    check(20_000, || fence(Some(Mutation::NoDeliveryGate)));
}

#[test]
#[should_panic]
fn shuttle_finds_a_replaced_session_that_goes_on() {
    check(20_000, || fence(Some(Mutation::NoFence)));
}

/// Both threads of a session leave while others close it.
fn gate() {
    let (near, _) = link(true, 100, 1);
    let near = Arc::new(near);
    let (line, ends) = (Arc::new(Line::default()), Ends::default());
    let session = Session::new(ConnectionId(1), PeerId::from_bytes([2; 32]), SessionKind::Inbound, line.clone(), None);
    let session = Arc::new(session);
    let lost = || DisconnectReason::Lost(io::ErrorKind::BrokenPipe);
    let highest = if either() {
        DisconnectReason::Remote(CloseReason::Shutdown)
    } else {
        DisconnectReason::Local(CloseReason::Idle)
    };
    let leaving = [Some(highest.clone()), None].map(|known| {
        let (near, session, ends) = (near.clone(), session.clone(), ends.clone());
        thread::spawn(move || {
            known.into_iter().for_each(|known| session.gate.note(known));
            session.gate.close(lost());
            session.leave(&near, &ends.on_end(), std::time::Duration::ZERO);
        })
    });
    let closing = [(); 2].map(|()| {
        let (near, session) = (near.clone(), session.clone());
        thread::spawn(move || session.close(&near, CloseReason::Idle))
    });
    leaving.into_iter().chain(closing).for_each(|thread| thread.join().unwrap());
    assert_eq!(ends.seen(), [highest]);
    assert_eq!(line.closes(), 1);
}

#[test]
fn shuttle_a_session_closes_once_and_reports_the_highest_cause() {
    check(20_000, gate);
}
