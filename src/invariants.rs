//! What holds, who upholds it, and what fails if it does not. Documentation as a module.
//!
//! # Threads
//!
//! | thread | runs | blocks on | woken by |
//! |---|---|---|---|
//! | `acceptor` x1 | accepts, dials, all handshakes, in one poll | the poll | waker, sockets, the nearest deadline |
//! | `work-n` x2 | signatures, the application's handshake policy | a job channel | a job; the acceptor's end |
//! | `resolve-n` | lookups of names | a channel of names; the system's resolver | a name; nothing ends a lookup |
//! | `supervisor` x1 | ends of sessions, outbound connections, a scan each 100 ms (of all sessions; of 500 in turn where there are more) | its channel | a report; a timer |
//! | `tx-<peer>` | `session::sender::send_loop` | its wake channel; the socket | whoever has something for it; timers; the closer |
//! | `rx-<peer>` | `session::receiver::recv_loop`, the handler | the socket; the handler; an earlier session that still delivers | bytes; the closer |
//!
//! Resolver threads are started when they are needed, at most `resolve_threads`; a shutdown names those that are held.
//!
//! # Timers
//!
//! | timer | default | kept by | when it fires |
//! |---|---|---|---|
//! | `resolve_timeout` | 5 s | supervisor | the dial of that name has failed; its thread stays held until the lookup ends |
//! | `connect_timeout` | 5 s | acceptor | the dial has failed |
//! | `handshake_timeout`, for all of it | 5 s | acceptor | refused with `HandshakeTimeout` |
//! | `ack_delay` | 5 ms | tx | owed acknowledgements are written |
//! | `heartbeat` | 10 s | tx | a BEAT is written; after as long without a write, spare buffers are freed |
//! | `idle_timeout` | 30 s without a byte, while no handler runs | supervisor | closed with `Idle` |
//! | `write_timeout` | 20 s in one write, while no handler runs on either side | supervisor | closed with `WriteStalled` |
//! | `handler_watchdog` | 30 s in handlers without a read | supervisor | a warning names the peer |
//! | sign of life | 1 s after a question | acceptor | another life of the peer takes the session's place |
//! | busy | 0.3 s in handlers without a read | supervisor | the peer is told, and told when it is over |
//! | accept again | 100 ms after an accept failed for want of descriptors | acceptor | all listeners are tried |
//! | parting | 1 s after a refusal, 64 at a time | acceptor | the refused connection is closed |
//! | linger | 1 s after a goodbye | supervisor | the connection is closed |
//! | reconnect delay | 0.1 to 30 s | supervisor | the next dial |
//! | `resume_window` | 5 min without a session | supervisor | what is kept ends unknown |
//! | `send_deadline` | 30 s | the caller | the message comes back |
//!
//! # Lock order
//!
//! Registry (L1, RwLock) < link (L2, one per peer) < outbox (L3, one per peer). Leaves, never held with another: the
//! inbox, the gate, the events' count. No guard is held across a blocking send, a join, socket I/O, the destructor of a
//! session or a slot, or user code. Nobody holds two locks of the same rank.
//!
//! # Shutdown order
//!
//! Refuse messages, wait until drained, stop accepting and dialling, say goodbye to every session, wait for their ends,
//! close those that are late, join all threads: every wait is bounded by the one deadline.
//!
//! # Log lines
//!
//! Targets are `threadwire::{node,accept,dial,session,link,transport}`. A line about a peer begins with the first eight
//! digits of its id and, where there is one, the connection (`9f86d081 c7: connected ..`); one about a message has its
//! number. A node's own lines, under `threadwire::node`, begin with its own id.
//!
//! | level | means | lines |
//! |---|---|---|
//! | error | something for the operator to repair; the node cannot | the poll fails, no thread could be started, a message handler panicked |
//! | warn | the node goes on, and somebody should look; once for each change to the worse | a kept peer is not reached, a peer broke the protocol, a handler is slow, messages ended unknown, no descriptors to accept with, a bound refuses connections, a limit of the system is too low, a shutdown left something |
//! | info | one line for each change of a node or a peer | started, accepting again, shutting down, shut down; connected, disconnected |
//! | debug | each attempt | dials that fail again, connections refused, handshakes that fail, messages that were rejected |
//! | trace | each step | |
//!
//! What a stranger can cause is at most debug, and a counter; that connections are refused at a bound is one warning a
//! minute for each cause: nobody fills the log from outside. *Checked by*
//! `tests/log_lines.rs`.
//!
//! # Invariants
//!
//! **I-1 A message is claimed once, in order.** A receiver thread claims under the link lock before it delivers, and only
//! while its session is attached. *Enforced by* `LinkCore::claim` (epoch fence) and the numbers of SEGMENT frames.
//! *If not:* a blocked reader of a replaced connection still returns what was buffered, and it would be delivered twice.
//!
//! **I-2 Nothing is forgotten before it is done.** Retention is freed by `done`, not by `received`. *Enforced by*
//! `LaneOut::acknowledge`. *If not:* a receiver that dies between the two loses messages.
//!
//! **I-3 Only the decider chooses.** The peer with the lower id attaches connections; the other side follows.
//! *Enforced by* `LinkCore::offer`, `LinkCore::on_attach`. *If not:* two crossing dials end each other, or both live.
//!
//! **I-4 Nobody has more unread bytes on the wire than was granted.** *Enforced by* `LaneOut` at the sender and as a
//! fault at the receiver. *If not:* a full socket blocks the acknowledgements that would empty it.
//!
//! **I-5 A reply never blocks.** Its question's credit returns only when the reply is taken for the wire. *Enforced by*
//! `Message::reply` and `LinkCore::next_chunk`. *If not:* two nodes that question each other stick.
//!
//! **I-6 One thread writes.** Whoever holds the write token finishes the turn that was begun before gathering another.
//! *Enforced by* `Outbox` (the token is a box that is there or away). *If not:* frames interleave.
//!
//! **I-7 Nobody sleeps while there is something to write.** Whoever appends while the sender thread works leaves the mark
//! `kicked`; whoever gives the token back looks. *Enforced by* `Outbox::rest`, `Outbox::put_back`; checked with shuttle.
//! *If not:* a message waits for the next heartbeat.
//!
//! **I-8 A session ends once, with one cause,** reported by the last of its two threads. *Enforced by* `Gate`. *If not:* a
//! slot leaks, or a reason is lost to the I/O error that follows a goodbye.
//!
//! **I-9 Memory follows bytes that arrived,** never a declared length. *Enforced by* `Decoder`, `LaneIn::claim_piece`.
//!
//! **I-10 A slot is reserved before anything is spent on a connection,** and given back by its guard, at the latest
//! before the other side is told of its refusal. *Enforced by* `SessionSlot`, `Admission::judge`. *If not:* who is told
//! slowly keeps others out.
//!
//! **I-11 A proven connection never goes for a newcomer, an unproven one does.** At a limit that unproven connections
//! fill, the oldest of the most crowded neighbourhood gives way. *Enforced by* `Admission`. *If not:* silence locks good
//! peers out, or a flood ends sessions.
//!
//! **I-12 A connection is given to a session only when both its threads run.** *Enforced by* `Crew`. *If not:* a thread
//! that the system refuses takes the connection with it, and the other side never learns why.
//!
//! **I-13 A lookup blocks nobody but who needs that name,** and not beyond its deadline. *Enforced by* `Lookups`: one
//! lookup per name, answers by deadline, threads bounded. *If not:* a dead name server stops every dial.
//!
//! **I-14 A dial has one outcome and a round one end;** what waits for room has not failed. *Enforced by* `Outbound`.
//! *If not:* a kept peer is forgotten, or somebody who waits for a connection waits for ever.
//!
//! **I-15 Of two processes with one key, the one that is attached and lives stays.** Another life of an attached peer waits
//! until the session has answered a question or has not; only an answer makes it an `IdentityClash`. *Enforced by*
//! `LinkCore::offer`, `LinkCore::on_attach`, `LinkCore::judge`. *If not:* a copied disk makes both copies take turns, and
//! each turn is a restart to their peers.
//!
//! # Non-invariants
//!
//! - Order between lanes, between peers, and between a reply and what else the peer sends.
//! - A loop of `recv` and blocking `send` between two nodes may stick until the deadline: use `reply` or `try_send`.
//! - Acknowledged means handed over, not understood.
//! - Over plain TCP, who sends the bytes after the handshake is a claim: the token and the numbers stop accidents, not
//!   an attacker in the path.
