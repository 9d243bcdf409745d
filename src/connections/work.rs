//! The CPU steps of handshakes (signatures, the application's policy), away from the acceptor's poll.
//!
//! Owns: nothing. Threads: `work-n`. Locks: none. Blocks on: its job channel (ends when the acceptor is gone), and
//! whatever the application's policy blocks on.
//! Upholds: every job is answered, so that no connection waits for a lost one.

use crossbeam_channel::Receiver;

use crate::connections::shared::{Command, Commands, Work};
use crate::ident::ConnectionId;

/// Runs jobs until there is nobody left to ask for them.
pub(crate) fn work_loop(jobs: &Receiver<(ConnectionId, Work)>, commands: &Commands) {
    while let Ok((conn, work)) = jobs.recv() {
        commands.send(Command::Worked(conn, work.run()));
    }
}
