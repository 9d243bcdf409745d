//! What a link keeps that decides nothing.
//!
//! Owns: what it is given. Threads: whoever holds the link lock. Locks: none. Blocks on: nothing.
//! Upholds: two links that differ in it alone are the same link: the exploration does not go both ways.

use std::hash::{Hash, Hasher};
use std::ops::{Deref, DerefMut};

/// A value that all others of its type equal.
#[derive(Debug, Clone, Default)]
pub(super) struct Aside<T>(T);

impl<T> Deref for Aside<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Aside<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T> PartialEq for Aside<T> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<T> Eq for Aside<T> {}

impl<T> Hash for Aside<T> {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}
