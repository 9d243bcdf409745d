//! Sessions: one temporary attachment of a link to a connection, run by two threads.
//!
//! Owns: nothing itself: [`PeerLink`] is what threads share about one peer, [`Session`] about one connection.
//! Threads: `tx-<peer>` runs `sender::send_loop`, `rx-<peer>` runs
//! `receiver::recv_loop`. Locks: the link lock (L2, around `LinkCore`), then the outbox lock (L3); the inbox's and
//! the gate's are leaves. Blocks on: nothing here; the loops do, and say where.
//! Upholds: a session claims and writes only while it is the one attached; it ends once, with one cause, reported by the
//! last of its threads.
//!
//! ```text
//!  send verbs -> outbox -> [write token] -> link core (numbers, keeps) -> socket        tx-<peer>
//!  socket -> decoder -> link core (claims) -> handler, or inbox -> channel -> recv      rx-<peer>
//! ```

mod beat;
mod gate;
mod handling;
mod inbox;
mod message;
mod outbox;
mod peer;
mod peer_link;
mod receiver;
mod sender;
#[cfg(all(test, shuttle))]
mod shuttle_tests;
mod state;
mod traffic;
mod writer;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::CloseReason;
use crate::ident::{ConnectionId, SessionKind};
use crate::sync::channel::Receiver;
use crate::threads::{self, Thread};
use crate::transport::{Connection, ReadHalf};
use crate::wire::Decoder;

pub(crate) use handling::in_handler;
pub use inbox::Batch;
pub(crate) use inbox::{Consumer, Handler, Peer};
pub use message::Message;
pub(crate) use outbox::QueueLimits;
pub use peer::{LinkStats, PeerHandle};
pub(crate) use peer_link::{PeerLink, SessionSettings};
pub(crate) use state::{OnEnd, Pulse, Session, SessionEnded};

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
    let Connection { read, write, closer, .. } = connection;
    let session = Arc::new(Session::new(conn, peer.link.id, kind, closer));
    let write = Arc::new(Counted::new(write, peer.link.traffic.clone()));
    let mut writer = Writer::new(conn, write, Instant::now());
    writer.control(unsent);
    let wake = peer.link.outbox.attach(Box::new(writer));
    Prepared { session, peer: peer.clone(), read, wake }
}

impl Prepared {
    /// Starts the two threads. `decoder` holds what was read beyond the handshake.
    ///
    /// # Errors
    /// A thread could not be started: the connection is closed, and the end is reported as of any session.
    pub(crate) fn run(self, decoder: Decoder, on_end: &OnEnd) -> io::Result<Vec<Thread>> {
        let Self { session, peer, read, wake } = self;
        let name = peer.link.id.short();
        let rx = {
            let (peer, session, on_end) = (peer.clone(), session.clone(), on_end.clone());
            let stack = peer.link.settings.rx_stack;
            threads::spawn("rx", &name, stack, move || receiver::recv_loop(&peer, &session, read, decoder, &on_end))
        };
        let rx = match rx {
            Ok(rx) => rx,
            Err(error) => {
                session.close(&peer.link, CloseReason::NoResources);
                // In place of both threads.
                session.leave(&peer.link, on_end, Duration::ZERO);
                session.leave(&peer.link, on_end, Duration::ZERO);
                return Err(error);
            }
        };
        let tx = {
            let (link, session, on_end) = (peer.link.clone(), session.clone(), on_end.clone());
            let stack = link.settings.tx_stack;
            threads::spawn("tx", &name, stack, move || sender::send_loop(&link, &session, &wake, &on_end))
        };
        match tx {
            Ok(tx) => Ok(vec![tx, rx]),
            Err(error) => {
                session.close(&peer.link, CloseReason::NoResources);
                session.leave(&peer.link, on_end, Duration::ZERO);
                Err(error)
            }
        }
    }
}
