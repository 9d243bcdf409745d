//! The fault whose place is looked for in one direction, and the place once it is found.
//!
//! Owns: nothing. Threads: the proxy's. Locks: none. Blocks on: nothing.
//! Upholds: a fault has one place, inside what it is to harm, and not at its first byte.

use crate::chaos::plan::{Kind, LinkFault};

/// What is looked for, and where it was found.
#[derive(Debug, Default)]
pub struct Wish {
    wanted: Option<Wanted>,
    cut: Option<u64>,
}

/// A fault that is due, after so many more frames or records that would do.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    kind: Kind,
    skip: u32,
    share: f64,
}

impl Wish {
    /// From now on looks for the place of this fault.
    pub fn look_for(&mut self, fault: &LinkFault) {
        self.wanted = Some(Wanted { kind: fault.kind, skip: fault.skip, share: fault.share });
    }

    /// The byte, counted from the first one, that is not to pass.
    pub fn cut(&self) -> Option<u64> {
        self.cut
    }

    /// The byte may pass: what was to happen there has happened.
    pub fn fulfilled(&mut self) {
        self.cut = None;
    }

    /// Whether the fault is due at this frame or record, which is of the right sort if `suits` says so.
    pub fn is_due(&mut self, suits: impl Fn(Kind) -> bool) -> bool {
        match &mut self.wanted {
            Some(wanted) if suits(wanted.kind) && wanted.skip > 0 => {
                wanted.skip -= 1;
                false
            }
            Some(wanted) => suits(wanted.kind),
            None => false,
        }
    }

    /// A fault of this kind finds no later place than the next one: it is due there.
    pub fn skip_no_more(&mut self, kind: Kind) {
        if let Some(wanted) = self.wanted.as_mut().filter(|wanted| wanted.kind == kind) {
            wanted.skip = 0;
        }
    }

    /// Chooses one of the bytes `from..to`, of which there is at least one, of what begins at `begins`.
    pub fn place(&mut self, begins: u64, from: u64, to: u64) {
        if let Some(wanted) = self.wanted.take() {
            let at = from + ((to - from) as f64 * wanted.share) as u64;
            self.cut = Some(begins + at.clamp(from, to - 1));
        }
    }
}
