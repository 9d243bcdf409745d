//! From a proven connection to a session: the link is offered it, both sides attach, two threads take over.
//!
//! Owns: nothing; part of the acceptor. Threads: `acceptor` only. Locks: the registry lock, the link lock of one peer;
//! one after the other. Blocks on: nothing.
//! Upholds: a connection is given to a session only when both its threads run; if the system refuses one, the other side
//! is told, and link and slot are as they were.

use std::sync::Arc;
use std::time::Instant;

use super::Acceptor;
use crate::connections::admission::Refusal;
use crate::connections::pending::{Over, Pending, Stage};
use crate::connections::shared::{Report, Started};
use crate::error::{CloseReason, DialCause, DialStage, RequestError};
use crate::ident::ConnectionId;
use crate::link::{Decision, Fault, Offer};
use crate::registry::{Entry, SessionsError};
use crate::session::{self, Crew, PeerLink};
use crate::transport::Proof;
use crate::wire::{self, Attach, FrameType, stay_away};

impl Acceptor {
    /// Offers a proven connection to its link.
    pub(super) fn offer(&mut self, conn: ConnectionId) {
        let Some(pending) = self.pending.get_mut(&conn) else { return };
        let Stage::Proven(proven) = &pending.stage else { return };
        self.admission.settled(conn);
        self.shared.registry.proven(conn, proven.peer);
        // Over plain TCP nobody was proven until now; TLS has seen to it already, unless trust has changed since.
        let proof = pending.stream.proof().unwrap_or_else(|| Arc::new(Proof::new(proven.peer, pending.kind)));
        if !self.transport.trusts(&proof) {
            return self.turn_away(conn, (CloseReason::Untrusted, None));
        }
        let peer = match self.shared.peer(proven.peer) {
            Ok(peer) => peer,
            Err(error) => {
                log::debug!(target: "threadwire::accept", "{conn}: {error}");
                let told = if error == SessionsError::Closed { Refusal::Closed } else { Refusal::Inbound };
                return self.turn_away(conn, told.told());
            }
        };
        let offer = Offer { conn, started: pending.started, incarnation: proven.incarnation.0 };
        pending.peer = Some(peer.clone());
        peer.link.open_window();
        let decision = peer.link.core.lock().offer(offer, peer.link.token, self.shared.now());
        self.carry_out(&peer.link, decision);
        // The other side's attach may be here already.
        self.advance(conn);
    }

    /// The other side's attach came.
    pub(super) fn attach(&mut self, conn: ConnectionId, body: &[u8]) {
        let Some(peer) = self.pending.get(&conn).and_then(|pending| pending.peer.clone()) else { return };
        let attach: Attach = match wire::decode(body) {
            Ok(attach) => attach,
            Err(error) => {
                log::debug!(target: "threadwire::accept", "{} {conn}: {error}", peer.link.id.short());
                return self.turn_away(conn, (CloseReason::ProtocolError, None));
            }
        };
        peer.link.open_window();
        let answer = peer.link.core.lock().on_attach(conn, &attach, self.shared.now());
        match answer {
            Ok(decision) => self.carry_out(&peer.link, decision),
            Err(fault) => {
                log::debug!(target: "threadwire::accept", "{} {conn}: {fault}", peer.link.id.short());
                let reason = match fault {
                    Fault::BadToken => CloseReason::BadToken,
                    _ => CloseReason::ProtocolError,
                };
                self.turn_away(conn, (reason, None));
            }
        }
    }

    /// Does what a link has decided about its connections.
    pub(super) fn carry_out(&mut self, link: &Arc<PeerLink>, decision: Decision) {
        let Decision { say, attached, close, ask, acked, restarted } = decision;
        link.see_to_freed(acked);
        for (conn, reason) in close {
            if self.pending.contains_key(&conn) {
                if reason != CloseReason::IdentityClash {
                    self.shared.metrics.duplicates.add();
                }
                // A person has to see to it.
                let retry_after = (reason == CloseReason::IdentityClash).then_some(stay_away::LATER);
                self.turn_away(conn, (reason, retry_after));
            } else if let Some(session) = self.shared.registry.session(conn, |entry| entry.session.clone()) {
                session.close(link, reason);
            }
        }
        if let Some((holder, question)) = ask {
            self.questions.ask(&self.shared, link, holder, question);
        }
        if let Some((conn, attach)) = say
            && let Some(pending) = self.pending.get_mut(&conn)
        {
            if let Err(error) = wire::put_body(&mut pending.out, FrameType::Attach, &attach) {
                log::error!(target: "threadwire::accept", "{conn}: {error}");
            }
            if attached != Some(conn)
                && let Err(error) = pending.flush()
            {
                self.over(conn, Over::Lost(error.kind()));
            }
        }
        if let Some(conn) = attached {
            self.establish(conn, restarted);
        }
    }

    /// Hands an attached connection to its session.
    fn establish(&mut self, conn: ConnectionId, restarted: bool) {
        let Some(peer) = self.pending.get(&conn).and_then(|pending| pending.peer.clone()) else { return };
        let id = peer.link.id;
        let crew = match Crew::start(&peer.link) {
            Ok(crew) => crew,
            Err(error) => {
                // The connection is still whole: the other side can be told.
                self.refused(Refusal::Spawn, &format_args!("{} {conn}: {error}", id.short()));
                return self.turn_away(conn, Refusal::Spawn.told());
            }
        };
        let Some(pending) = self.take(conn) else { return };
        let Pending { kind, stream, slot: Some(slot), decoder, out, request, stage: Stage::Proven(proven), .. } =
            pending
        else {
            return;
        };
        let connection = match stream.establish() {
            Ok(mut connection) => {
                connection.proof.get_or_insert_with(|| Arc::new(Proof::new(id, kind)));
                connection
            }
            Err(error) => {
                log::warn!(target: "threadwire::accept", "{} {conn}: {error}", id.short());
                let decision = peer.link.core.lock().gone(conn, peer.link.token);
                let cause = DialCause::Io(error.kind());
                match request {
                    Some(request) => self.dial_failed(request, Some(id), DialStage::Handshake, cause, 0),
                    None => self.shared.metrics.handshake_failed(&cause),
                }
                return self.carry_out(&peer.link, decision);
            }
        };
        let started = Started {
            peer: id,
            conn,
            kind,
            incarnation: proven.incarnation,
            dial: request.map(|request| request.id),
            restarted,
            local_addr: connection.local_addr,
            remote_addr: connection.remote_addr,
            advertised: proven.advertised,
        };
        self.shared.metrics.sessions_started.add(kind);
        if restarted {
            // Before anything of its new life is read: what that answers is not ended here.
            peer.link.requests.lose_handed(&RequestError::Restarted);
        }
        let prepared = session::prepare(&peer, conn, kind, connection, &out);
        let session = prepared.session.clone();
        peer.link.note_advertised(started.advertised);
        let (threads, jobs) = crew.split();
        let entry = Entry { link: peer.link, session: session.clone(), threads, slot };
        let link = entry.link.clone();
        self.shared.registry.register(entry, started.local_addr, Instant::now());
        // Trust that was taken back since its proof was looked at, before the registry could tell of it.
        let untrusted = session.proof.as_ref().is_some_and(|proof| !self.transport.trusts(proof));
        // Before the first message can be delivered, and before the end can be reported.
        let _ = self.shared.reports.send(Report::Started(started));
        prepared.run(jobs, decoder, &self.shared.on_end);
        if untrusted {
            session.say_goodbye(&link, CloseReason::Untrusted);
        }
    }
}
