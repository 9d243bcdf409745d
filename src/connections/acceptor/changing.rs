//! What a reload changes of the acceptor: where it listens, whom it lets in, who has to go.
//!
//! Owns: nothing; part of the acceptor. Threads: `acceptor` only. Locks: the registry lock, the outbox lock of one peer;
//! one after the other. Blocks on: nothing.
//! Upholds: this thread gives places and starts sessions, so that nobody slips in between the look at who is there and
//! the goodbye to who is too many.

use std::collections::BTreeSet;
use std::io;
use std::time::Instant;

use super::{ACCEPTS_PER_TURN, Acceptor};
use crate::config::Closed;
use crate::connections::admission::{Caps, EVICTED};
use crate::connections::listening::ListenerId;
use crate::ident::ConnectionId;
use crate::transport::Listener;
use crate::transport::tcp::BACKLOG;

impl Acceptor {
    /// Listens there too, or at none of them.
    pub(super) fn listen(&mut self, listeners: Vec<(ListenerId, Box<dyn Listener>)>) -> io::Result<()> {
        let mut added = Vec::new();
        for (id, listener) in listeners {
            if let Err(error) = self.listeners.add(&self.poll, id, listener) {
                self.unlisten(&added);
                return Err(error);
            }
            added.push(id);
        }
        Ok(())
    }

    /// Closes these listeners. Whoever waits there is taken before.
    pub(super) fn unlisten(&mut self, listeners: &[ListenerId]) {
        for id in listeners {
            // As many as the system keeps ready; whoever comes later meets a closed door in any case.
            let mut turns = BACKLOG.unsigned_abs() as usize / ACCEPTS_PER_TURN;
            while self.accept(*id) && turns > 0 {
                turns -= 1;
            }
            self.listeners.remove(&self.poll, *id);
        }
        self.listeners.come_back(Instant::now());
    }

    /// Other bounds: who is too many is told so and goes. Those that leave anyway make room for the rest.
    pub(super) fn limit(&mut self, caps: Caps) -> Vec<Closed> {
        for victim in self.admission.set_caps(caps) {
            self.shared.metrics.evicted.add();
            self.turn_away(victim, EVICTED);
        }
        let sessions = self.shared.registry.sessions(|entry| (entry.link.clone(), entry.session.clone()));
        let leaving =
            sessions.iter().filter(|(link, session)| session.is_leaving(link)).map(|(_, session)| session.conn);
        let leaving: BTreeSet<ConnectionId> = leaving.collect();
        let mut closed = Vec::new();
        for (conn, reason) in self.shared.registry.surplus(caps.inbound_per_ip, &leaving) {
            if self.pending.contains_key(&conn) {
                self.turn_away(conn, (reason, EVICTED.1));
                continue;
            }
            let session = self.shared.registry.session(conn, |entry| (entry.link.clone(), entry.session.clone()));
            let Some((link, session)) = session else { continue };
            log::info!(target: "threadwire::session", "{} {conn}: over a lowered limit: {reason}", link.id.short());
            session.say_goodbye(&link, reason);
            closed.push(Closed::new(link.id, conn, reason));
        }
        closed
    }
}
