//! Where the messages go that come to a direct sender.
//!
//! Owns: a share of the channel, or of the handler. Threads: `rx-<peer>` hands over. Locks: none. Blocks on: nothing.
//! Upholds: the channel holds one batch of each peer at most, and what else comes waits as credit; a consumer that is
//! gone ends the session that has something for it, and its messages come back to their sender.

use std::fmt;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::session::{AllHandler, Batch, Message, PeerHandle};

/// Where the messages go that come to a [`DirectSender`](super::DirectSender). Clones are the same consumer; one may
/// serve several senders.
///
/// ```
/// use threadwire::direct::IncomingSender;
///
/// let (incoming, batches) = IncomingSender::channel();
/// let printed = IncomingSender::handler(|peer, message| println!("{}: {} bytes", peer.id(), message.payload().len()));
/// # drop((incoming, batches, printed));
/// ```
#[derive(Clone)]
pub struct IncomingSender {
    pub(super) consumer: Consumer,
}

#[derive(Clone)]
pub(super) enum Consumer {
    Channel(Sender<Batch>),
    Handler(Arc<AllHandler>),
    Nobody,
}

impl IncomingSender {
    /// A channel of [`Batch`]es, for a `select!` loop. It holds one of each peer at most: what else a peer sends waits
    /// until that one is over, within the peer's window, and then at the other side.
    ///
    /// When the receiver is dropped, the consumer is gone: the next messages that come are rejected to their sender
    /// ([`RejectCause::NoHandler`](crate::error::RejectCause::NoHandler)), and their session is ended with
    /// [`CloseReason::ConsumerGone`](crate::error::CloseReason::ConsumerGone). Batches that were in the channel count as
    /// taken, as any [`Batch`] that is dropped.
    pub fn channel() -> (Self, Receiver<Batch>) {
        // Bounded by what sends into it: one batch of each link.
        let (sender, receiver) = unbounded();
        (Self { consumer: Consumer::Channel(sender) }, receiver)
    }

    /// A handler, called on the receiver thread of each peer as that of
    /// [`NodeBuilder::handler`](crate::NodeBuilder::handler): it may not block.
    pub fn handler(handler: impl Fn(&PeerHandle, Message<'_>) + Send + Sync + 'static) -> Self {
        Self { consumer: Consumer::Handler(Arc::new(handler)) }
    }

    /// Nobody: every message that comes is rejected to its sender with
    /// [`RejectCause::NoHandler`](crate::error::RejectCause::NoHandler). For a sender that only sends.
    pub fn nobody() -> Self {
        Self { consumer: Consumer::Nobody }
    }
}

impl fmt::Debug for IncomingSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.consumer {
            Consumer::Channel(_) => "IncomingSender::channel",
            Consumer::Handler(_) => "IncomingSender::handler",
            Consumer::Nobody => "IncomingSender::nobody",
        })
    }
}
