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

mod gate;
mod handling;
mod inbox;
mod message;
mod outbox;
mod peer;
mod peer_link;
mod receiver;
mod sender;
mod state;
mod writer;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{CloseReason, DisconnectReason};
use crate::ident::{ConnectionId, SessionKind};
use crate::sync::channel::{Receiver, Sender};
use crate::threads::{self, Thread};
use crate::transport::{Connection, ReadHalf};
use crate::wire::Decoder;

pub(crate) use handling::in_handler;
pub use inbox::Batch;
pub(crate) use inbox::{Consumer, Peer};
pub use message::Message;
pub(crate) use outbox::QueueLimits;
pub use peer::{LinkStats, PeerHandle};
pub(crate) use peer_link::{PeerLink, SessionSettings};
pub(crate) use state::{Pulse, Session, SessionEnded};

use writer::Writer;

/// A session's threads, for whoever waits for their end.
#[derive(Debug)]
pub(crate) struct SessionThreads {
    pub(crate) session: Arc<Session>,
    pub(crate) threads: Vec<Thread>,
}

/// Attaches an established connection to its link and starts its two threads. `decoder` holds what was read beyond the
/// handshake, `unsent` what of it is not written yet.
///
/// # Errors
/// A thread could not be started; the connection is closed and nothing runs. The caller tells the link.
pub(crate) fn start(
    peer: &Peer,
    conn: ConnectionId,
    kind: SessionKind,
    connection: Connection,
    decoder: Decoder,
    unsent: &[u8],
    ended: &Sender<SessionEnded>,
) -> io::Result<SessionThreads> {
    let link = &peer.link;
    let Connection { read, write, closer, .. } = connection;
    let session = Arc::new(Session::new(conn, link.id, kind, closer));
    let mut writer = Writer::new(conn, write, Instant::now());
    writer.control(unsent);
    let wake = link.outbox.attach(Box::new(writer));
    let name = link.id.short();
    let rx = start_rx(peer, &session, read, decoder, ended, &name);
    let tx = rx.and_then(|rx| Ok((rx, start_tx(link, &session, wake, ended, &name)?)));
    match tx {
        Ok((rx, tx)) => Ok(SessionThreads { session, threads: vec![tx, rx] }),
        Err(error) => {
            link.outbox.detach(conn);
            session.gate.close(DisconnectReason::Local(CloseReason::NoResources));
            // Stands in for the sender thread; a receiver thread that did start reports the end itself.
            session.leave(link, ended, Duration::ZERO);
            Err(error)
        }
    }
}

fn start_rx(
    peer: &Peer,
    session: &Arc<Session>,
    read: Box<dyn ReadHalf>,
    decoder: Decoder,
    ended: &Sender<SessionEnded>,
    name: &str,
) -> io::Result<Thread> {
    let (peer, session, ended) = (peer.clone(), session.clone(), ended.clone());
    let stack = peer.link.settings.rx_stack;
    threads::spawn("rx", name, stack, move || {
        receiver::recv_loop(&peer, &session, read, decoder, &ended);
    })
}

fn start_tx(
    link: &Arc<PeerLink>,
    session: &Arc<Session>,
    wake: Receiver<()>,
    ended: &Sender<SessionEnded>,
    name: &str,
) -> io::Result<Thread> {
    let (link, session, ended) = (link.clone(), session.clone(), ended.clone());
    let stack = link.settings.tx_stack;
    threads::spawn("tx", name, stack, move || {
        sender::send_loop(&link, &session, &wake, &ended);
    })
}
