//! What each protection promises, against whom, and what none of them does. Documentation as a module.
//!
//! # Who is meant
//!
//! | somebody who | can |
//! |---|---|
//! | reaches a port | open connections, say anything, say nothing, stop halfway |
//! | is on the way | read, change, delay, repeat, drop and cut what travels, and open connections of its own |
//! | is a peer | do all that the protocol allows, and try what it does not |
//! | has a copy of a key | be that peer |
//!
//! # What TLS promises (`security.channel = "tls"`, the default)
//!
//! TLS 1.3 and nothing older, by rustls with ring. Whoever is on the way learns that two addresses exchange so many bytes
//! at such times, and nothing else: names and certificates are encrypted too (of whoever is dialled, to whoever dials it).
//!
//! - **Each side has proven the key that its id is made of**, before a byte of the stream; the hello inside must name the
//!   same key, so that nobody's handshake can be handed on through another connection. Whoever stands in between has to
//!   show each side a key of its own, and is refused by the first hello that it hands on. The hellos are not signed once
//!   more: they come through the connection whose keys were signed for.
//! - **Who dials a known id** gets that peer or nobody, and shows its own key to nobody else.
//! - **Bytes arrive unaltered, in order, once**, or the session ends. A stream ends by the other side's word; one that was
//!   cut is told apart (`ConnectionAborted`), also between two messages.
//! - **Nothing recorded is of use later**: not to read (each connection has keys of its own, which are changed in long
//!   ones), and not to repeat (no early data, no tickets, no resumption).
//! - **Nothing older is agreed on.** There is no plain text to fall back to, and no TLS 1.2 in the program.
//!
//! What it costs: see the figures in the README; `loadtest throughput --secure` measures it.
//!
//! # What plain TCP promises (`security.channel = "plain"`)
//!
//! Both sides prove their keys when they meet, over nonces of both. **What follows is anybody's who is on the way**: to
//! read, to change, to invent. The link token and the numbers stop accidents and strangers who only reach the port, not
//! somebody in the path. It is for one machine, for a network that is guarded otherwise, and for comparisons. A node that
//! listens beyond its own machine starts with it only if `security.public` says `"plain"`, and warns each time.
//!
//! # Trust
//!
//! | `security.trust` | lets in |
//! |---|---|
//! | `"open"`, the default | whoever proves a key: the id is certain, the right to be here is not asked for |
//! | `"listed"` | the ids of `[[peer]]` and of `trusted`; with `roots`, also whoever shows a certificate that leads there and is valid now; either suffices |
//!
//! A node that listens beyond its own machine starts with `"open"` only if `security.public` says `"open"`. With TLS
//! untrusted peers are refused before they have said a byte of ours; over plain TCP after they have proven their key. A
//! certificate's dates are looked at when a connection opens and when another trust is put to use. There are no revocation lists:
//! take an id out of the list, or give certificates short lives.
//!
//! [`Node::reload`](crate::Node::reload) puts new ids, authorities and certificates to use, and closes
//! sessions that no longer qualify with [`Untrusted`](crate::error::CloseReason::Untrusted).
//!
//! # What whoever reaches a port can do
//!
//! Take a place among the unproven ones (`half_open`, and less with `half_open_per_ip`) until the deadline of the whole
//! handshake or until somebody else needs it. A connection that says nothing, or half a record, costs no arithmetic. A
//! whole hello of TLS costs a key exchange and a signature, about a quarter of a millisecond on one of two threads kept
//! for that: for as many connections as there are places, whose turn good peers wait for. Whoever leaves or loses its
//! place before its turn is passed over (`MetricsSnapshot::steps_skipped`).
//! Refusals before the proof are a word in the clear: whoever is on the way can forge them, as it can cut connections.
//!
//! # What a peer can do
//!
//! Nothing to other peers: what one of them costs the others is bounded by the numbered
//! [`invariants`](crate::invariants). It can fill what it was granted (its window, its reassembly, its queue), hang up, and
//! lie about what it received. Records that bring nothing of the stream (new keys, empty ones) cost its own session's thread
//! a few microseconds each, and more than 32 in a row end the session. Before it has one, where all connections share a
//! thread, 32 are all it may send, and 64 KiB of what records have beside the stream.
//!
//! # The key
//!
//! One ed25519 key is the node's identity, for the life of the process. Its file is made readable by its owner alone.
//! One that others may read, or replace because they may write into its folder, is refused, with the command that mends
//! it. The key never leaves the process, and no log shows it.
//! Whoever copies it is that peer: two processes that answer at one time are told apart and said
//! ([`Event::IdentityClash`](crate::Event::IdentityClash)); a thief who waits is not. To replace a key: start the node
//! with a new one, list the new id at its peers beside the old one, reload, and take the old one out.
//!
//! # What nobody is protected from
//!
//! - Somebody in the path who drops, delays or cuts.
//! - Traffic analysis: sizes and times of records are those of the messages.
//! - The other end of an allowed connection: what it is sent, it has.
//! - Memory of the process: keys in it are wiped by nobody when it dies, and core dumps hold them.
