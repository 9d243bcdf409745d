//! What holds, who upholds it, and what fails if it does not. Documentation as a module.
//!
//! # Threads
//!
//! | thread | runs | blocks on | woken by |
//! |---|---|---|---|
//! | `acceptor` x1 | accepts, dials, all handshakes, in one poll | the poll | waker, sockets, the nearest deadline |
//! | `work-n` x2 | signatures, the application's handshake policy | a job channel | a job; the acceptor's end |
//! | `supervisor` x1 | ends of sessions, reconnects, a scan of all sessions each 100 ms | its channel | a report; the scan |
//! | `tx-<peer>` | `session::sender::send_loop` | its wake channel; the socket | whoever has something for it; timers; the closer |
//! | `rx-<peer>` | `session::receiver::recv_loop`, the handler | the socket; the handler; an earlier session that still delivers | bytes; the closer |
//!
//! # Timers
//!
//! | timer | default | kept by | when it fires |
//! |---|---|---|---|
//! | `connect_timeout` | 5 s | acceptor | the dial has failed |
//! | `handshake_timeout`, for all of it | 5 s | acceptor | refused with `HandshakeTimeout` |
//! | `ack_delay` | 5 ms | tx | owed acknowledgements are written |
//! | `heartbeat` | 10 s without a write | tx | a BEAT is written, spare buffers are freed |
//! | `idle_timeout` | 30 s without a byte, while no handler runs | supervisor | closed with `Idle` |
//! | `write_timeout` | 20 s in one write | supervisor | closed with `WriteStalled` |
//! | `handler_watchdog` | 30 s in handlers without a read | supervisor | a warning names the peer |
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
//! # Non-invariants
//!
//! - Order between lanes, between peers, and between a reply and what else the peer sends.
//! - A loop of `recv` and blocking `send` between two nodes may stick until the deadline: use `reply` or `try_send`.
//! - Acknowledged means handed over, not understood.
//! - Over plain TCP, who sends the bytes after the handshake is a claim: the token and the numbers stop accidents, not
//!   an attacker in the path.
