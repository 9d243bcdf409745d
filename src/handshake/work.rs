//! The steps of a handshake that cost time: signing, verifying, asking the application.
//!
//! Owns: what one step needs, and its result. Threads: `work-n` runs it; it comes from `acceptor` and goes back there.
//! Locks: none. Blocks on: the application's policy, if that blocks.
//! Upholds: the policy sees only peers whose key is proven; its panic is a refusal; a result says which handshake it is
//! of, so that a mix-up proves nothing.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::config::{HandshakeConfig, Offer};
use super::hello::{Claim, Hellos, Refusal};
use crate::error::CloseReason;
use crate::ident::SessionKind;
use crate::transport::verify;

/// A step to run away from the acceptor thread. Dropping it leaves the handshake waiting for its deadline.
#[must_use = "the handshake waits for its result"]
pub struct Work {
    pub(super) config: Arc<HandshakeConfig>,
    pub(super) kind: SessionKind,
    /// Our nonce: names the handshake.
    pub(super) nonce: [u8; 32],
    pub(super) hellos: Arc<Hellos>,
    /// The transport has proven both sides to each other.
    pub(super) bound: bool,
    pub(super) task: Task,
}

pub(super) enum Task {
    /// Sign the transcript: the acceptor, when it has the dialler's hello.
    Sign,
    /// Verify the other side's signature and ask the policy; the dialler then signs.
    Check { claim: Arc<Claim>, signature: Vec<u8> },
}

/// What a [`Work`] came to: give it to [`super::Handshake::work_done`] of the handshake it came from.
#[must_use = "the handshake waits for it"]
pub struct WorkDone {
    pub(super) nonce: [u8; 32],
    pub(super) result: Done,
}

pub(super) enum Done {
    Signed(Vec<u8>),
    /// With the dialler's signature.
    Checked(Result<Option<Vec<u8>>, Refusal>),
}

impl Work {
    /// Does it: tens of microseconds of arithmetic, plus the application's policy.
    ///
    /// # Blocking
    /// As long as the policy does. Not for a thread that serves other connections.
    pub fn run(self) -> WorkDone {
        let result = match &self.task {
            Task::Sign => Done::Signed(self.sign()),
            Task::Check { claim, signature } => Done::Checked(self.check(claim, signature)),
        };
        WorkDone { nonce: self.nonce, result }
    }

    /// Whether it takes no time: there is nothing to sign or to verify, and nobody to ask.
    pub(super) fn is_light(&self) -> bool {
        match &self.task {
            Task::Sign => self.bound,
            Task::Check { signature, .. } => self.needs_none(signature) && self.config.policy.is_none(),
        }
    }

    /// Whether the key of the hello is proven without a signature: by the transport, which has proven that very key.
    fn needs_none(&self, signature: &[u8]) -> bool {
        self.bound && signature.is_empty()
    }

    fn sign(&self) -> Vec<u8> {
        match self.bound {
            true => Vec::new(),
            false => self.config.identity.sign(&self.hellos.transcript(self.kind)).to_vec(),
        }
    }

    fn check(&self, claim: &Claim, signature: &[u8]) -> Result<Option<Vec<u8>>, Refusal> {
        let signer = match self.kind {
            SessionKind::Outbound => SessionKind::Inbound,
            SessionKind::Inbound => SessionKind::Outbound,
        };
        if !self.needs_none(signature) && !verify(&claim.key, &self.hellos.transcript(signer), signature) {
            return Err(Refusal::new(CloseReason::BadSignature, "the confirm does not prove the key of the hello"));
        }
        if claim.key == self.config.identity.public_key() {
            let text = format!("incarnation {} has a copy of our key", claim.incarnation);
            return Err(Refusal::new(CloseReason::IdentityClash, text));
        }
        self.ask_policy(claim).map_err(|text| Refusal::new(CloseReason::Refused, text))?;
        Ok((self.kind == SessionKind::Outbound).then(|| self.sign()))
    }

    fn ask_policy(&self, claim: &Claim) -> Result<(), String> {
        let Some(policy) = &self.config.policy else { return Ok(()) };
        let offer = Offer {
            kind: self.kind,
            peer: claim.peer,
            incarnation: claim.incarnation,
            advertised: claim.advertised,
            payload: &claim.payload,
        };
        // Nothing of ours is changed by the policy, so nothing of ours can be left half changed.
        let answer = catch_unwind(AssertUnwindSafe(|| policy.check(&offer)));
        answer.unwrap_or_else(|_| Err("the handshake policy panicked".to_owned()))
    }
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.task {
            Task::Sign => "Work(sign)",
            Task::Check { .. } => "Work(check)",
        })
    }
}

impl fmt::Debug for WorkDone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.result {
            Done::Signed(_) => "WorkDone(signed)",
            Done::Checked(Ok(_)) => "WorkDone(checked)",
            Done::Checked(Err(_)) => "WorkDone(refused)",
        })
    }
}
