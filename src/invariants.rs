//! What holds, who upholds it, and what fails if it does not. Documentation as a module.
//!
//! # Threads
//!
//! | thread | runs | blocks on | woken by |
//! |---|---|---|---|
//! | `acceptor` x1 | accepts, dials, all handshakes, in one poll | the poll | waker, sockets, the nearest deadline |
//! | `work-n` x2 | the arithmetic of TLS, signatures, the application's handshake policy | a job channel | a job; the acceptor's end |
//! | `resolve-n` | lookups of names | a channel of names; the system's resolver | a name; nothing ends a lookup |
//! | `supervisor` x1 | ends of sessions, outbound connections, events, a scan each 100 ms (of messages that expire, of unknown peers, of slow ones, of all sessions; where there are more than 500, of so many in turn that each is looked at once a second at the least); follows the live map of peers | its channel and word of the map's changes | a report; a change; a timer |
//! | `tx-<peer>` | `session::sender::send_loop` | its wake channel; the socket | whoever has something for it; timers; the closer |
//! | `rx-<peer>` | `session::receiver::recv_loop`, the handler | the socket; the handler; an earlier session that still delivers | bytes; the closer |
//! | `metrics` x1, with `metrics.listen` alone | accepts and serves scrapers, at most 16, in one poll | the poll; the locks of a look at all links | waker (its end, and nothing else), sockets, the nearest deadline |
//! | `direct` x1, of a direct sender that was started and not run | takes messages from the caller's channel, offers each to its peer | all its channels at once | a message, a result that is taken, a change; the shutdown signal |
//! | `shutdown` | a shutdown that a handler began, or that waits for the application's own signal | the signal; the shutdown's waits | the signal, the end of the node; the deadline |
//!
//! Resolver threads are started when they are needed, at most `resolve_threads`; a shutdown names those that are held.
//! `crate::threads::spawn` is the only way to a thread (clippy's `disallowed_methods`), and counts none itself:
//! sessions are counted by their slots, two threads each, from accept or dial on.
//!
//! # Timers
//!
//! | timer | default | kept by | when it fires |
//! |---|---|---|---|
//! | `resolve_timeout` | 5 s | supervisor | the dial of that name has failed; its thread stays held until the lookup ends |
//! | `connect_timeout` | 5 s | acceptor | the dial has failed |
//! | `handshake_timeout`, for all of it, from accept or from the open connection on | 5 s | acceptor | refused with `HandshakeTimeout` |
//! | `ack_delay` | 5 ms | tx | owed acknowledgements are written |
//! | company | 50 us for each peer of a flood of broadcasts, 5 ms at most | tx | what was gathered is written |
//! | `heartbeat` | 10 s | tx | a BEAT is written; after as long without a write, spare buffers are freed |
//! | `idle_timeout` | 30 s without a whole frame (64 KiB at most), while no handler runs | supervisor | closed with `Idle` |
//! | `write_timeout` | 20 s in one write, while no handler runs on either side | supervisor | closed with `WriteStalled` |
//! | `slow_after` | 5 s of the oldest message that waits since the session began, of a queue above three quarters, or of a write without progress | supervisor | `PeerSlow`, once until `PeerRecovered` |
//! | `unknown_timeout` | 30 s of a message for a peer that is not known | supervisor | the message comes back |
//! | `handler_watchdog` | 30 s in handlers without a read | supervisor | a warning names the peer |
//! | sign of life | 1 s after a question; looked for each 20 ms, asked again each 200 ms | acceptor | another life of the peer takes the session's place |
//! | busy | 0.3 s in handlers without a read | supervisor | the peer is told, and told when it is over |
//! | accept again | 100 ms after an accept failed for want of descriptors | acceptor | all listeners are tried |
//! | parting | 1 s after a refusal, 64 at a time | acceptor | the refused connection is closed |
//! | scrape | 2 s for a whole request, 5 s for the whole answer, 1 s for the client to close | metrics | the connection is cut, and counted |
//! | scrape, accept again | 100 ms after an accept failed | metrics | the endpoint's listener is tried |
//! | linger | 1 s after a goodbye | supervisor | the connection is closed |
//! | reconnect delay | 0.1 to 30 s, or what the other side's refusal or goodbye asked for (1 s half-open limits, 5 s others and clashes; a minute at most) | supervisor | the next dial |
//! | `RESOLVE_RETRY_TIMEOUT` | 1 s after no name of a kept peer was found, and it has no other address | supervisor | its next round |
//! | no slot for a dial | 100 ms | supervisor | dials that are due are tried again |
//! | refusals at a bound | 1 min for each cause | acceptor | the next one is a warning again, with the count of those between |
//! | `resume_window` | 5 min without a session | supervisor | what is kept ends unknown |
//! | `send_deadline` | 30 s | the caller | the message comes back |
//! | a question's own | the asker's | whoever waits; else the supervisor | it ends with `TimedOut`, or comes back unsent |
//! | shutdown | the caller's; 2 s for a node or a direct sender that is dropped, 10 s for one that is signalled | the caller, or `shutdown` | see below |
//!
//! What `supervisor` keeps is as exact as its scan: 100 ms, and up to a second with thousands of sessions.
//!
//! # Lock order
//!
//! | rank | lock | of | held for |
//! |---|---|---|---|
//! | L0 | `Engine::present`, before the next three | a node | a whole reload: callers take turns, also while it reads files and waits for answers of the acceptor and the supervisor, who never take it |
//! | L0 | `Engine::added`, before the next one | a node | a peer is added or removed, by the application or by a reload |
//! | L0 | `Engine::connections` | a node | handing a request over, or taking the threads out to end them |
//! | L0 | `Engine::endpoint` | a node | another endpoint for metrics takes its place, or it is taken out to be ended |
//! | L0 | `Inlet::current` | a node without a handler | one message; callers of `recv` take turns, also while the first of them waits |
//! | L0 | `Node::caster` | a node | appending a broadcast of a flood to the row that peers share; a new row, which takes the outbox lock of each in turn |
//! | L1 | registry, the one RwLock | a node | finding, counting; appending a message by the shortest path; a peer becomes known, or one that is not is forgotten |
//! | L1 | stand-in | an address | what waited for somebody to prove itself there moves to whoever has, from one outbox to another one |
//! | L2 | link | a peer | a decision: claim, number, acknowledge, attach |
//! | L3 | outbox | a peer | appending, taking, the write token |
//! | L4 | the sealer | a connection over TLS | sealing and writing: it is the write token once more, and the reader only tries it |
//! | L5 | TLS | a connection's secrets | new keys made of them |
//!
//! A thread that holds one takes only those of higher ranks. Nobody else holds two locks of the same rank. Leaves, under
//! which nothing is locked: the inbox, the gate, the heartbeats' clock, the advertised address, the events' count and
//! what was told of failing peers, the value of a `Watch`, what a reload replaces (times, sizes, options of sockets, our
//! side of handshakes, addresses, names), how far a shutdown is, the tables of questions and the list of links that have
//! some, a step of a handshake that waits for a worker, the list of taps, the messages of a direct sender that are under
//! way, a row of broadcasts, a receipt, who waits for memory, the memory of a link's window (`PeerLink::inbound`), where a
//! node listens (`Engine::sites`).
//!
//! No guard but the sealer's is held across a blocking send, a join, socket I/O, the destructor of a session or a slot,
//! or user code; none but `Inlet::current` and `Engine::present` while waiting for anything but its own condition.
//! *Enforced by* the headers of the files, which name what each locks, by review, and for outbox, token, gate and attach fence by the model checks
//! (`shuttle_*`).
//!
//! # Shutdown order
//!
//! Refuse messages, wait until drained (three quarters of the time at most), give no slots and no links any more, stop
//! accepting, dialling and serving metrics, say goodbye to every session, wait for their ends, close those that are late
//! (all of them before one is waited for), join all threads, tell receivers: every wait is bounded by the one deadline.
//!
//! It happens once, whoever asks: a caller, a handler (which must not wait: a thread `shutdown` does), the
//! application's signal, the destructor. Everybody who asks gets the one report. *Enforced by* `Ending`; *checked by*
//! `tests/shutdown.rs`, `tests/shutdown_bounds.rs`.
//!
//! # Log lines
//!
//! Targets are `threadwire::{node,accept,dial,session,link,transport,direct}`. A line about a peer begins with the first
//! eight digits of its id and, where there is one, the connection (`9f86d081 c7: connected ..`); one about a message has
//! its number. A node's own lines, under `threadwire::node`, begin with its own id, and so do those of a direct sender,
//! under `threadwire::direct`.
//!
//! | level | means | lines |
//! |---|---|---|
//! | error | something for the operator to repair; the node cannot | the poll fails, no resolver thread could be started, the system gives no randomness, a message handler panicked |
//! | warn | the node goes on, and somebody should look; once for each change to the worse | a kept peer is not reached, peers wait for `outbound`, a peer broke the protocol, two processes have one key, a handler is slow, messages ended unknown, no descriptors to accept with, a bound refuses connections, metrics are served where other machines read them, a limit of the system is too low, another configuration is refused, nobody takes the results of a direct sender any more, a shutdown left something |
//! | info | one line for each change of a node or a peer | started, serves metrics, without a lasting identity, accepting again, reloaded, shutting down, shut down; connected, disconnected, slow, no longer slow |
//! | debug | each attempt | dials that fail again, connections refused, handshakes that fail, messages that the other side rejected or a direct sender did not take |
//! | trace | each step | |
//!
//! What a stranger can cause is at most debug, and a counter; that connections are refused at a bound is one warning a
//! minute for each cause: nobody fills the log from outside. *Checked by* `tests/log_lines.rs`; those of a
//! direct sender by `tests/direct_sender`.
//!
//! # Invariants
//!
//! **I-1 A message is claimed once, in order.** A receiver thread claims under the link lock before it delivers, and
//! only while its session is attached. *Enforced by* `LinkCore::claim` (epoch fence) and the numbers of SEGMENT frames;
//! explored exhaustively in `link::explore`, the fence with shuttle. *If not:* a blocked reader of a replaced
//! connection still returns what was buffered, and it would be delivered twice.
//!
//! **I-2 Nothing is forgotten before it is done.** Retention is freed by `done`, not by `received`. *Enforced by*
//! `LaneOut::acknowledge`; explored (`retention_that_ends_at_received_is_found`). *If not:* a receiver that dies
//! between the two loses messages.
//!
//! **I-3 Only the decider chooses.** The peer with the lower id attaches connections; the other side follows. *Enforced
//! by* `LinkCore::offer`, `LinkCore::on_attach`; a thousand crossing dials in `tests/dialing.rs`. *If not:* two
//! crossing dials end each other, or both live.
//!
//! **I-4 Nobody has more unread bytes on the wire than was granted.** *Enforced by* `LaneOut::next_chunk` at the
//! sender, and by `LaneIn::claim` as a fault at the receiver. *If not:* a full socket blocks the acknowledgements that
//! would empty it.
//!
//! **I-5 A reply never blocks.** Its question's credit returns only when the reply is taken for the wire. *Enforced by*
//! `Message::reply` and `LinkCore::next_chunk`. *If not:* two nodes that question each other stick.
//!
//! **I-6 One thread writes.** Whoever holds the write token finishes the turn that was begun before gathering another.
//! *Enforced by* `Outbox` (the token is a box that is there or away). *If not:* frames interleave.
//!
//! **I-7 Nobody sleeps while there is something to write.** Whoever appends while the sender thread works leaves the
//! mark `kicked`; whoever gives the token back looks. What may wait for company wakes nobody, but then the sender thread
//! looks again by itself. *Enforced by* `Outbox::rest`, `Outbox::put_back`, `State::kick_soon`; checked with shuttle.
//! *If not:* a message waits for the next heartbeat.
//!
//! **I-8 A session ends once, with one cause,** reported by the last of its two threads. *Enforced by* `Gate`. *If
//! not:* a slot leaks, or a reason is lost to the I/O error that follows a goodbye. Checked with shuttle.
//!
//! **I-9 Memory follows bytes that arrived,** never a declared length. *Enforced by* `Decoder`, `LaneIn::claim_piece`;
//! `tests/hostile_edge.rs`. *If not:* eight bytes of a stranger cost a node its memory.
//!
//! **I-10 A slot is reserved before anything is spent on a connection,** and given back by its guard, at the latest
//! before the other side is told of its refusal. *Enforced by* `SessionSlot`, `Admission::judge`. *If not:* who is told
//! slowly keeps others out.
//!
//! **I-11 A proven connection never goes for a newcomer, an unproven one does.** At a limit that unproven connections
//! fill, the oldest of the most crowded neighbourhood gives way. *Enforced by* `Admission`. *If not:* silence locks
//! good peers out, or a flood ends sessions.
//!
//! **I-12 A connection is given to a session only when both its threads run.** *Enforced by* `Crew`;
//! `tests/exhaustion.rs`. *If not:* a thread that the system refuses takes the connection with it, and the other side
//! never learns why.
//!
//! **I-13 A lookup blocks nobody but who needs that name,** and not beyond its deadline. *Enforced by* `Lookups`: one
//! lookup per name, answers by deadline, threads bounded. *If not:* a dead name server stops every dial.
//!
//! **I-14 A dial has one outcome and a round one end;** what waits for room has not failed. *Enforced by* `Outbound`.
//! *If not:* a kept peer is forgotten, or somebody who waits for a connection waits for ever.
//!
//! **I-15 Of two processes with one key, the one that is attached and lives stays.** Another life of an attached peer
//! waits until the session has answered a question or has not; only an answer makes it an `IdentityClash`. *Enforced
//! by* `LinkCore::offer`, `LinkCore::on_attach`, `LinkCore::judge`. *If not:* a copied disk makes both copies take
//! turns, and each turn is a restart to their peers.
//!
//! **I-16 Nobody is judged late for what a handler does,** ours or theirs: while ours runs we hear nothing, while
//! theirs runs they read nothing and have said so (`busy`). *Enforced by* the supervisor's scan, `Presence`;
//! `tests/handlers.rs`. *If not:* a slow application loses sessions that are whole.
//!
//! **I-17 Telling never blocks and never floods.** Events go to a bounded channel, and what did not fit is counted and
//! said; what goes on failing the same way is told and warned of once. *Enforced by* `Events`, `Outbound`
//! (`Action::Failed`), `Admission::line`; `tests/log_lines.rs`. *If not:* an application that does not listen stops its
//! node, or a stranger fills its disk.
//!
//! **I-18 What is counted adds up.** A refusal, a failure, an end is counted once, where it is decided, and a total is
//! the sum of its causes. *Enforced by* `metrics::Table`; `tests/metrics.rs`. *If not:* nobody can prove that nothing
//! was lost.
//!
//! **I-19 A file imports only lower ranks.** *Enforced by* `tests/layering.rs`. *If not:* nobody can say any more what
//! a lock may be held across.
//!
//! **I-20 A question ends once, and soon.** With its answer; with word that there is none, from whoever drops it, rejects
//! it or panics on it; by its deadline; with the life of the peer that had it, with the peer, or with the node. A number
//! of a question is never given to another one, in no life of the process. *Enforced by* `requests::Table`, `Responder`
//! (whose destructor answers), `Requests::told`; `tests/requests.rs`, `tests/restart.rs`. *If not:* somebody waits for
//! nothing, or gets what was answered to somebody else.
//!
//! **I-21 No panic is reachable from the wire, a file or the system.** *Enforced by* clippy (`unwrap_used`,
//! `expect_used`), `unsafe_code = "forbid"`, and strangers that mutate every state of a handshake
//! (`tests/hostile_edge.rs`). What the application gives us may panic: handlers, policies and resolvers are caught, and
//! cost a message, a handshake, a lookup.
//!
//! **I-22 What all links hold together stays within `memory_bytes`.** *Enforced by* `memory.rs`: taken before it is held,
//! given back when it ends; `tests/fate.rs`. *If not:* many slow peers together end the process.
//!
//! **I-23 Nothing is cut for being slow before that was told,** once for an episode and its end once. *Enforced by*
//! `SlowPeers`, which the scan asks before it cuts; `tests/slow_peers.rs`. *If not:* the first that an application hears of a
//! slow peer is that it is gone.
//!
//! **I-24 A peer that nobody knows costs a bounded place for a bounded time.** *Enforced by* `Registry::forget`,
//! `Outbox::end_unknown`; `tests/unknown_peers.rs`. *If not:* messages to wrong ids fill the node, or wait for ever.
//!
//! **I-25 Nobody waits for a lock of TLS while a socket is waited for.** Sealing happens only under the write token,
//! opening only on the reader's thread; each has its own keys, and the lock of what new keys are made of is held for nothing
//! else. *Enforced by* `transport::tls::records`, which knows no socket; two floods through small buffers, with new keys
//! all the while, in `tests/transport/tls.rs`. *If not:* two sides that flood each other stand still.
//!
//! **I-26 The key of the hello is the key that TLS has seen proven,** and where it has seen none the hello is signed.
//! *Enforced by* `Pending::secure`, `Handshake::expect`, `Work::needs_none`. *If not:* whoever has a key of its own can
//! hand on the handshake of another, or be anybody.
//!
//! **I-27 A broadcast waits for nobody.** The links are a snapshot of the registry; each is offered the message by a push
//! that does not wait, with no guard of a peer held from one to the next, and what it said is told. In a flood peers share
//! a row: whoever takes part has set room and memory aside for all of it, and whoever has not is offered each message by
//! itself. *Enforced by* `PeerLink::offer`, `Outbox::join`, `SharedRegistry::established`; `tests/broadcast.rs` with a peer
//! that is stuck. *If not:* the slowest peer sets the pace of all.
//!
//! **I-28 A tap slows no send.** While nobody listens a send looks at one flag; else it offers each tap its word and goes
//! on, and what does not fit is counted and said. *Enforced by* `session::taps`; `tests/taps.rs` with a tap that nobody
//! reads. *If not:* a component that only watches stops what it watches.
//!
//! **I-29 What is taken from a direct sender's channel has one result, and waits for no peer.** *Enforced by*
//! `direct::dispatch`, which takes no message without a place for its result, and offers without a wait;
//! `tests/direct_sender`. *If not:* one peer that is stuck stops all, or a message vanishes.
//!
//! **I-30 Nothing is acknowledged that nobody could take.** *Enforced by* `Inbox`: without a receiver what comes is
//! rejected, and the session ended; `tests/direct_sender`. *If not:* a sender takes for delivered what went nowhere.
//!
//! **I-31 A peer is kept where its sources say, and only one session of it stays.** What dials it follows the live map
//! and what was added, each speaking for itself; a session at an address that is gone stays until another takes over;
//! word of a sender that stopped has the number of that sender. *Enforced by* `Kept`, `Outbound::follow`;
//! `tests/peers_map.rs`, `loadtest churn`. *If not:* a peer that moved is dialled where it was, or a late event removes who
//! has taken its place.
//!
//! **I-32 What is sent to an address belongs to one identity:** the first that proves itself there after it was sent.
//! *Enforced by* `PeerLink::move_on`, which takes a message out of the stand-in's outbox for good, and
//! `PeerLink::move_to`, by which what was sent first goes first; `tests/direct.rs`, with another identity at the same
//! address. *If not:* a message reaches somebody it was not for.
//!
//! **I-33 A message begins each phase of its delivery once, and ends it once.** In the outgoing phases that can be seen at
//! any moment: what began is counted where it is accepted or taken, what ended where it ends, what is under way where it
//! waits, each under the lock that is held there anyway. *Enforced by* `Queue`, `Outbox::phases`, `LaneOut::free_below`;
//! explored (`a_phase_that_does_not_end_is_found`); `tests/phases.rs`, and at the end of every chaos run. *If not:* the
//! metrics show a queue that is not there.
//!
//! **I-34 A configuration is put to use whole or not at all,** and whoever is within it does not notice. All that can fail
//! comes first; every field is in one class, live or fixed, or does not compile. *Enforced by* `Change::between`,
//! `engine::sockets`; `tests/reload`. *If not:* a node runs with half of what somebody wanted, and nobody knows which.
//!
//! **I-35 What a reload lowers takes nothing back.** What waits, is kept, was granted or was accepted stays; only who comes
//! waits. *Enforced by* `Outbox::set_limits`, `LinkCore::set_limits`, `Budget::set_limit`; a thousand reloads under traffic
//! in `tests/reload`. *If not:* an operator's change loses messages.
//!
//! **I-36 Each accepted message ends in one outcome, told once.** *Enforced by* tickets, taken out by whoever ends the
//! message (`session/outbox/asked.rs`), and `tests/fate.rs`, row by row. *If not:* a sender waits for ever, or acts twice.
//!
//! # Non-invariants
//!
//! - Order between lanes, between peers, and between a reply and what else the peer sends.
//! - A loop of `recv` and blocking `send` between two nodes may stick until the deadline: use `reply` or `try_send`.
//! - An answer longer than its question fits always: it may be refused while the reply lane is full.
//! - Answers that nobody takes stop nothing: beyond `queue_bytes` they keep all further replies of that peer from coming.
//! - Acknowledged means handed over, not understood.
//! - `memory_bytes` does not count the open segment of each lane, read buffers, threads and tables, nor over TLS what is
//!   sealed and not written (512 KiB while a peer is busy) and the certificates of a session (64 KiB): they are bounded
//!   per peer; nor the one buffer of a row of broadcasts, of a node, and what waits for taps and in `undelivered`, which
//!   have bounds of their own.
//! - Over plain TCP, who sends the bytes after the handshake is a claim: the token and the numbers stop accidents, not
//!   an attacker in the path.
