//! The bytes of one message: its own, or shared with the messages of a broadcast.
//!
//! Owns: bytes, or a share of them. Threads: any; shared read-only. Locks: none. Blocks on: nothing.
//! Upholds: what is shared is never changed; whoever gets the last share may have the buffer.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

/// The bytes of one message.
#[derive(Clone)]
pub(crate) enum Payload {
    /// Nobody else has them.
    Own(Vec<u8>),
    /// Messages to other peers have the same ones.
    Shared(Arc<Vec<u8>>),
}

impl Payload {
    /// The bytes, to be given away: copied while others share them.
    pub(crate) fn into_vec(self) -> Vec<u8> {
        match self {
            Self::Own(bytes) => bytes,
            Self::Shared(bytes) => Arc::unwrap_or_clone(bytes),
        }
    }

    /// A share of the bytes, if they are shared.
    pub(crate) fn shared(&self) -> Option<Arc<Vec<u8>>> {
        match self {
            Self::Own(_) => None,
            Self::Shared(bytes) => Some(bytes.clone()),
        }
    }

    /// The buffer, unless others share it.
    pub(crate) fn into_buffer(self) -> Option<Vec<u8>> {
        match self {
            Self::Own(bytes) => Some(bytes),
            Self::Shared(bytes) => Arc::into_inner(bytes),
        }
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Own(bytes)
    }
}

impl From<Arc<Vec<u8>>> for Payload {
    fn from(bytes: Arc<Vec<u8>>) -> Self {
        Self::Shared(bytes)
    }
}

impl Deref for Payload {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Self::Own(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Payload {}

impl Hash for Payload {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_is_copied_only_while_others_have_it() {
        let bytes = Arc::new(vec![1, 2, 3]);
        let at = bytes.as_ptr();
        let [first, second, third] = [(); 3].map(|()| Payload::from(bytes.clone()));
        assert!(first.as_ptr() == at && first == second && first == Payload::from(vec![1, 2, 3]));
        drop(bytes);
        assert_eq!(first.into_buffer(), None, "others have it");
        let copy = second.into_vec();
        assert!(copy == [1, 2, 3] && copy.as_ptr() != at);
        let last = third.into_buffer().unwrap();
        assert!(last == [1, 2, 3] && last.as_ptr() == at);
    }
}
