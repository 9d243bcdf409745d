//! Sessions: one temporary attachment of a link to a connection, run by two threads.
//!
//! Owns: nothing itself: [`PeerLink`] is what threads share about one peer, [`Session`] about one connection.
//! Threads: `tx-<peer>` runs `sender::send_loop`, `rx-<peer>` runs `receiver::recv_loop`. Locks: that of a stand-in (L1), the
//! link lock (L2, around `LinkCore`), then the outbox lock (L3); all others are leaves: those of the inbox, the gate, the
//! beat, the table of questions and the list of links with some, receipts, rows, taps, the advertised address, the memory
//! of the window. Blocks on: nothing here; the loops do, and say where.
//! Upholds: a session claims and writes only while it is the one attached; it ends once, with one cause, reported by the
//! last of its threads.
//!
//! ```text
//!  send verbs -> outbox -> [write token] -> link core (numbers, keeps) -> socket        tx-<peer>
//!  socket -> decoder -> link core (claims) -> handler, or inbox -> channel -> recv      rx-<peer>
//! ```

mod asking;
mod beat;
mod binding;
mod broadcast;
mod fate;
mod gate;
mod handling;
mod inbox;
mod kinds;
mod message;
mod options;
mod outbox;
mod peer;
mod peer_link;
mod phases;
mod presence;
mod probes;
mod receipt;
mod receiver;
mod redial;
mod requests;
mod responder;
mod routes;
mod row;
mod sender;
#[cfg(all(test, shuttle))]
mod shuttle_tests;
mod stand_in;
mod state;
mod taps;
mod traffic;
mod tuning;
mod undelivered;
mod writer;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Sender, bounded};

use crate::ident::{ConnectionId, SessionKind};
use crate::sync::channel::Receiver;
use crate::threads::{self, Thread};
use crate::transport::{Connection, ReadHalf};
use crate::wire::Decoder;

pub use asking::{Answers, Pending};
pub(crate) use handling::in_handler;
pub use inbox::Batch;
pub(crate) use inbox::{AllHandler, Consumer, Peer};
pub use kinds::Kind;
pub(crate) use kinds::Kinds;
pub use message::Message;
pub use options::{BEST_EFFORT_MOST, Delivery, OverflowPolicy, Priority, SendOptions};
pub(crate) use outbox::{Backlog, Kick, Level};
pub use peer::{LinkStats, PeerHandle};
pub(crate) use peer_link::{PeerLink, SessionSettings};
pub use receipt::{Collector, OutcomeBatch, Receipt, WaitError};
pub(crate) use requests::Askers;
pub use requests::{Answer, Answered};
pub use responder::Responder;
pub(crate) use routes::KindsBuilder;
pub(crate) use row::{ROW_BYTES, Row};
pub(crate) use state::{OnEnd, Pulse, Session, SessionEnded};

pub use taps::{Manner, OutgoingMessage, OutgoingTaps, TapOptions};
pub(crate) use tuning::{Tuned, Tuning};
pub(crate) use undelivered::Undeliverable;
pub use undelivered::Undelivered;

use traffic::Counted;
use writer::Writer;

/// A session that is attached and does not run yet.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) session: Arc<Session>,
    peer: Peer,
    read: Box<dyn ReadHalf>,
    wake: Receiver<()>,
}

/// Attaches an established connection to its link. `unsent` is what of the handshake is not written yet.
pub(crate) fn prepare(
    peer: &Peer,
    conn: ConnectionId,
    kind: SessionKind,
    connection: Connection,
    unsent: &[u8],
) -> Prepared {
    let Connection { read, write, closer, proof, .. } = connection;
    let session = Arc::new(Session::new(conn, peer.link.id, kind, closer, proof));
    let write = Arc::new(Counted::new(write, peer.link.traffic.clone()));
    let mut writer = Writer::new(conn, write, Instant::now());
    writer.control(unsent);
    // Again: the end of an earlier session may have given it back meanwhile.
    peer.link.hold_window();
    let (wake, ended) = peer.link.outbox.attach(Box::new(writer));
    peer.link.tell(ended);
    Prepared { session, peer: peer.clone(), read, wake }
}

/// The two threads of a session that is still to come. They wait for their jobs; dropped without, they end.
#[derive(Debug)]
pub(crate) struct Crew {
    threads: Vec<Thread>,
    jobs: Jobs,
}

/// Where the two threads of a session wait.
#[derive(Debug)]
pub(crate) struct Jobs {
    tx: Sender<Job>,
    rx: Sender<Job>,
}

/// What a thread of a session runs.
struct Job(Box<dyn FnOnce() + Send>);

impl Crew {
    /// Starts the two threads of a session with this peer.
    ///
    /// # Errors
    /// The system refused a thread: refuse the connection, which is whole still.
    pub(crate) fn start(link: &PeerLink) -> io::Result<Self> {
        let name = link.id.short();
        let Tuning { tx_stack, rx_stack, .. } = link.settings.tuned.all();
        let (tx_thread, tx) = idle("tx", &name, tx_stack)?;
        let (rx_thread, rx) = idle("rx", &name, rx_stack)?;
        Ok(Self { threads: vec![tx_thread, rx_thread], jobs: Jobs { tx, rx } })
    }

    /// The threads, and where they wait.
    pub(crate) fn split(self) -> (Vec<Thread>, Jobs) {
        (self.threads, self.jobs)
    }
}

/// A thread that waits for its job, and ends without one.
fn idle(role: &str, name: &str, stack: usize) -> io::Result<(Thread, Sender<Job>)> {
    let (sender, jobs) = bounded::<Job>(1);
    let wait = move || {
        let job = jobs.recv();
        drop(jobs);
        if let Ok(Job(run)) = job {
            run();
        }
    };
    Ok((threads::spawn(role, name, stack, wait)?, sender))
}

impl Prepared {
    /// Gives the two threads their jobs. `decoder` holds what was read beyond the handshake.
    pub(crate) fn run(self, jobs: Jobs, decoder: Decoder, on_end: &OnEnd) {
        let Self { session, peer, read, wake } = self;
        let (link, tx_session, tx_on_end, on_end) =
            (peer.link.clone(), session.clone(), on_end.clone(), on_end.clone());
        let tx = Job(Box::new(move || sender::send_loop(&link, &tx_session, &wake, &tx_on_end)));
        let rx = Job(Box::new(move || receiver::recv_loop(&peer, &session, read, decoder, &on_end)));
        // Each has room for one job and a thread that waits for it.
        let _ = (jobs.tx.send(tx), jobs.rx.send(rx));
    }
}
