//! Another configuration for an engine that runs.
//!
//! Owns: the configuration that holds, and which sockets listen for it. Threads: whoever reloads, one after the other.
//! Locks: that of what holds, for the whole of it: callers take turns; under it, for the peers, that of who was added, then
//! that of the connections manager, then the registry's; all others one at a time.
//! Blocks on: the disk, for the files of the configuration; the acceptor's answers; see `sockets`.
//! Upholds: a configuration is put to use whole or not at all; sessions that are within it do not notice; when it is over,
//! everything holds for whatever begins.
//!
//! Order: difference, files, sockets bound (all that can fail) -> sockets served -> trust, times, sizes and limits ->
//! whoever is no longer trusted is told goodbye -> peers, and goodbye to whoever is no longer wanted -> goodbye to whoever
//! is beyond the limits. Each session that goes is told the first of these that holds.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use crossbeam_channel::bounded;

use super::present::Present;
use super::protection::warn_of_exposure;
use super::running::Engine;
use super::selfcheck::{self, Readings};
use super::settings;
use super::sockets::Moving;
use crate::config::{Change, Closed, Config, Reload};
use crate::connections::{Caps, Command, Commands, Connections, Lifecycle, Report, Times};
use crate::error::{CloseReason, ReloadError};
use crate::ident::PeerId;
use crate::session::{self, Tuning};

impl Engine {
    /// Puts another configuration to use; see [`Node::reload`](crate::Node::reload).
    ///
    /// # Errors
    /// It is refused.
    ///
    /// # Blocking
    /// For the disk, and while another reload is under way.
    pub(crate) fn reload(&self, config: &Config) -> Result<Reload, ReloadError> {
        if session::in_handler() {
            return Err(ReloadError::WouldBlock);
        }
        let mut present = self.present.lock();
        let result = self.change(&mut present, config);
        let me = self.shared.me.short();
        let told = match &result {
            Ok(report) => {
                let (fields, closed) = (report.changed.join(", "), report.closed.len());
                let fields = if fields.is_empty() { "nothing has changed" } else { &fields };
                log::info!(target: "threadwire::node", "{me}: reloaded: {fields}; {closed} sessions had to go");
                Lifecycle::Reloaded(report.clone())
            }
            Err(error) => {
                log::warn!(target: "threadwire::node", "{me}: another configuration is refused: {error}");
                Lifecycle::ReloadRefused(error.clone())
            }
        };
        // Nobody is told by an engine that has ended.
        let _ = self.shared.reports.send(Report::Tell(told));
        result
    }

    fn change(&self, present: &mut Present, config: &Config) -> Result<Reload, ReloadError> {
        let commands = self.connections.lock().as_ref().map(Connections::commands).ok_or(ReloadError::ShuttingDown)?;
        let old = present.config.clone();
        let change = Change::between(&old, config)?;
        self.check_peers(&change)?;
        let prepared = self.protection.prepare(config).map_err(ReloadError::File)?;
        if change.has("listen") || change.has("metrics.listen") {
            Moving::begin(self, &commands, present, config)?.finish(present)?;
        }
        // From here on nothing fails, unless the engine ends.
        let mut changed = change.fields.clone();
        let trusts_others = prepared.is_some();
        let files = prepared.map(|prepared| self.protection.put(prepared)).unwrap_or_default();
        changed.extend(files.into_iter().filter(|field| !change.fields.contains(field)));
        self.set(present, config, &change);
        // Who was let in is not judged again for what is no trust's concern.
        let mut closed = if trusts_others { self.part_with_untrusted() } else { Vec::new() };
        closed.extend(self.set_peers(&change)?);
        closed.extend(limit(&commands, Caps::of(config))?);
        *self.names.lock() = config.peers.iter().map(|peer| (peer.name.clone(), peer.id)).collect();
        present.config = config.clone();
        Ok(Reload::new(changed, closed))
    }

    /// Peers that nobody can keep.
    fn check_peers(&self, change: &Change<'_>) -> Result<(), ReloadError> {
        if let Some(n) = change.new.peers.iter().position(|peer| peer.id == self.shared.me) {
            let (field, value) = (format!("peer[{n}].id"), self.shared.me.to_string());
            return Err(ReloadError::NotAllowed { field, value, allowed: "another node's id".to_owned() });
        }
        let most = settings::registry(change.new).links;
        if !self.shared.registry.takes_peers(change.new.peers.iter().map(|peer| peer.id), most) {
            let (field, value) = ("peer".to_owned(), format!("{} peers", change.new.peers.len()));
            let allowed = format!("{most} peers with those that this node knows already");
            return Err(ReloadError::NotAllowed { field, value, allowed });
        }
        Ok(())
    }

    /// Times, sizes and limits.
    fn set(&self, present: &Present, config: &Config, change: &Change<'_>) {
        let shared = &self.shared;
        self.protection.tcp.set(settings::tcp(config));
        shared.settings.memory.set_limit(settings::shared_memory(config));
        shared.registry.set_limits(settings::registry(config));
        shared.outbound.store(config.outbound, Ordering::Relaxed);
        shared.resolve_threads.store(config.resolve_threads, Ordering::Relaxed);
        shared.times.set(Times::of(config));
        self.advertise(config, &present.local_addrs());
        let tuning = Tuning::of(config, !shared.settings.holds_inbound);
        if tuning != shared.settings.tuned.all() {
            shared.settings.tuned.set(tuning);
            shared.registry.links().iter().for_each(|link| link.tune());
        }
        // Before whoever it holds for has to go: it hears of their ends after this.
        let _ = shared.reports.send(Report::Changed);
        if change.has("listen") || change.has("security.") || change.has("metrics.") {
            warn_of_exposure(config, &shared.me.short());
        }
        let needs = ["inbound", "outbound", "half_open", "max_threads", "listen", "metrics.listen"];
        if needs.iter().any(|field| change.has(field)) {
            let needs =
                settings::needs(config, present.sockets.len(), config.metrics.listen.is_some(), present.backlog);
            for finding in selfcheck::check(&needs, &Readings::take()) {
                log::warn!(target: "threadwire::node", "{}: {finding}", shared.me.short());
            }
        }
    }

    /// Where peers are told from now on that this node can be dialled.
    pub(super) fn advertise(&self, config: &Config, local_addrs: &[SocketAddr]) {
        let advertised = settings::advertised(config, local_addrs);
        let handshake = (*self.shared.handshake()).clone().advertise(advertised);
        self.shared.handshake.set(handshake);
    }

    /// Peers to keep, and to keep no longer: which sessions end by it that would have stayed. Peers that the application
    /// added, or that a live map of peers has, stay.
    fn set_peers(&self, change: &Change<'_>) -> Result<Vec<Closed>, ReloadError> {
        let peers = change.peers();
        let added = self.added.lock();
        let connections = self.connections.lock();
        let through = connections.as_ref().ok_or(ReloadError::ShuttingDown)?;
        for peer in peers.added.into_iter().chain(peers.moved).filter(|peer| !added.contains(&peer.id)) {
            match self.shared.peer(peer.id) {
                Ok(_) => through.keep(peer.id, peer.addresses.clone()),
                // Others came since the look at how many there are.
                Err(error) => log::error!(target: "threadwire::dial", "{}: not kept: {error}", peer.id.short()),
            }
        }
        let removed: Vec<PeerId> = peers.removed.into_iter().filter(|id| !added.contains(id)).collect();
        if removed.is_empty() {
            return Ok(Vec::new());
        }
        let closed = through.part(removed);
        drop((connections, added));
        closed.recv().map_err(|_| ReloadError::ShuttingDown)
    }

    /// Says goodbye to whom the trust does not cover.
    fn part_with_untrusted(&self) -> Vec<Closed> {
        let transport = self.protection.transport();
        let sessions = self.shared.registry.sessions(|entry| (entry.link.clone(), entry.session.clone()));
        let mut closed = Vec::new();
        for (link, session) in sessions {
            let untrusted = session.proof.as_ref().is_some_and(|proof| !transport.trusts(proof));
            if untrusted && !session.is_leaving(&link) {
                log::warn!(target: "threadwire::session", "{} {}: no longer trusted", link.id.short(), session.conn);
                session.say_goodbye(&link, CloseReason::Untrusted);
                closed.push(Closed::new(link.id, session.conn, CloseReason::Untrusted));
            }
        }
        closed
    }
}

/// Has whoever is beyond the limits go.
fn limit(commands: &Commands, caps: Caps) -> Result<Vec<Closed>, ReloadError> {
    let (answer, answered) = bounded(1);
    commands.send(Command::Limit(caps, answer));
    answered.recv().map_err(|_| ReloadError::ShuttingDown)
}
