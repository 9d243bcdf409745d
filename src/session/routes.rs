//! Who handles which kind of message.
//!
//! Owns: the application's handlers. Threads: `rx-<peer>` calls them. Locks: none. Blocks on: the handlers.
//! Upholds: a node that registers no kinds has its handler called as it was given; what is longer than its kind may be,
//! does not decode, or is handled by nobody is rejected to its sender.

use std::collections::HashSet;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::error::RejectCause;
use crate::session::inbox::{AllHandler, ChoosyHandler, Handler};
use crate::session::kinds::{Kind, Kinds};
use crate::session::message::Message;
use crate::session::peer::PeerHandle;

/// The kinds of a node, and its handler of messages if it has one.
type Built = (Arc<Kinds>, Option<Handler>);

/// What the application registers while it builds a node.
#[derive(Default)]
pub(crate) struct KindsBuilder {
    kinds: Vec<Kind>,
    routes: Vec<(u16, Arc<ChoosyHandler>)>,
    rest: Option<Arc<AllHandler>>,
    nobody: bool,
}

impl KindsBuilder {
    /// Registers a kind.
    pub(crate) fn kind(&mut self, kind: Kind) {
        self.kinds.push(kind);
    }

    /// Handles one kind.
    pub(crate) fn on(&mut self, number: u16, handler: impl Fn(&PeerHandle, Message<'_>) + Send + Sync + 'static) {
        let route = move |peer: &PeerHandle, message: Message<'_>| {
            handler(peer, message);
            Ok(())
        };
        self.routes.push((number, Arc::new(route)));
    }

    /// Handles one kind, decoded.
    pub(crate) fn on_msg<T: DeserializeOwned>(
        &mut self,
        number: u16,
        handler: impl Fn(&PeerHandle, T, Message<'_>) + Send + Sync + 'static,
    ) {
        let route = move |peer: &PeerHandle, message: Message<'_>| match message.decode() {
            Ok(value) => {
                handler(peer, value, message);
                Ok(())
            }
            Err(_) => Err(message.reject(RejectCause::Undecodable)),
        };
        self.routes.push((number, Arc::new(route)));
    }

    /// Handles what nobody else does.
    pub(crate) fn rest(&mut self, handler: Arc<AllHandler>) {
        self.rest = Some(handler);
    }

    /// Nobody takes what no handler is registered for: it is rejected, not left to be received.
    pub(crate) fn nobody(&mut self) {
        self.nobody = true;
    }

    /// The kinds, and the handler of messages if there is any.
    ///
    /// # Errors
    /// The number that was given twice, or whose name was, and what is wrong with it.
    pub(crate) fn build(self) -> Result<Built, (u16, &'static str)> {
        let Self { kinds: registered, routes, rest, nobody } = self;
        let mut kinds = Kinds::default();
        let mut names = HashSet::new();
        for kind in &registered {
            if kinds.place(kind.number).is_some() {
                return Err((kind.number, "registered twice"));
            }
            if kind.name.is_empty() || !names.insert(&kind.name) {
                return Err((kind.number, "a name of its own is needed"));
            }
            kinds.add(kind.clone());
        }
        let mut handlers: Vec<Option<Arc<ChoosyHandler>>> = vec![None; registered.len()];
        for (number, route) in routes {
            if kinds.place(number).is_none() {
                kinds.add(Kind::new(number, format!("kind_{number}")));
                handlers.push(None);
            }
            let place = kinds.place(number).and_then(|place| handlers.get_mut(place));
            if place.is_none_or(|place| place.replace(route).is_some()) {
                return Err((number, "handled twice"));
            }
        }
        let kinds = Arc::new(kinds);
        let handler = match rest {
            Some(handler) if kinds.is_empty() => Some(Handler::All(handler)),
            None if handlers.iter().all(Option::is_none) && !nobody => None,
            rest => Some(Handler::Choosy(route(kinds.clone(), handlers, rest))),
        };
        Ok((kinds, handler))
    }
}

/// Gives each message to the handler of its kind.
fn route(
    kinds: Arc<Kinds>,
    handlers: Vec<Option<Arc<ChoosyHandler>>>,
    rest: Option<Arc<AllHandler>>,
) -> Arc<ChoosyHandler> {
    let most = kinds.sizes();
    Arc::new(move |peer: &PeerHandle, message: Message<'_>| {
        let place = kinds.place(message.kind());
        if let Some(place) = place {
            peer.count_received(message.kind());
            if message.payload().len() > most[place] {
                return Err(message.reject(RejectCause::TooLarge));
            }
        }
        match (place.and_then(|place| handlers[place].as_ref()), &rest) {
            (Some(handler), _) => handler(peer, message),
            (None, Some(rest)) => {
                rest(peer, message);
                Ok(())
            }
            (None, None) => Err(message.reject(RejectCause::NoHandler)),
        }
    })
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_twice_is_refused() {
        let build = |with: fn(&mut KindsBuilder)| {
            let mut builder = KindsBuilder::default();
            with(&mut builder);
            builder.build().err()
        };
        assert_eq!(
            build(|it| [(1, "a"), (1, "b")].into_iter().for_each(|(number, name)| it.kind(Kind::new(number, name)))),
            Some((1, "registered twice"))
        );
        assert_eq!(
            build(|it| [(1, "a"), (2, "a")].into_iter().for_each(|(number, name)| it.kind(Kind::new(number, name)))),
            Some((2, "a name of its own is needed"))
        );
        assert_eq!(build(|it| (0..2).for_each(|_| it.on(3, |_, _| ()))), Some((3, "handled twice")));
        assert_eq!(build(|it| it.on(3, |_, _| ())), None);
    }

    #[test]
    fn without_kinds_the_applications_handler_is_called_as_it_was_given() {
        let mut builder = KindsBuilder::default();
        builder.rest(Arc::new(|_, _| ()));
        assert!(matches!(builder.build().unwrap().1, Some(Handler::All(_))));
        let mut builder = KindsBuilder::default();
        builder.rest(Arc::new(|_, _| ()));
        builder.on(5, |_, _| ());
        assert!(matches!(builder.build().unwrap().1, Some(Handler::Choosy(_))));
    }
}
