//! Model checks of the session shells: the outbox and its write token, credit, acknowledgements, fence and gate.
//!
//! Owns: nothing beyond one execution. Threads: those of shuttle, scheduled at random and by the PCT algorithm.
//! Locks: as in what is checked. Blocks on: facts only; a wake-up that is lost is a deadlock, which shuttle reports.
//! Upholds: each check can fail: for the steps that matter, a test leaves one out and expects the check to find it.
//!
//! A failure prints its schedule: `shuttle::replay(body, "...")` repeats it.

mod casting;
mod ends;
mod rig;
mod sending;
