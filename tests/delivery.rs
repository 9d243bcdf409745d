//! Two nodes over loopback: what is sent arrives, once and in order, by every way there is to send and to receive.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use threadwire::error::SendErrorKind;
use threadwire::{Answers, Message, Node, Outcome, PeerHandle, SendOptions};

mod common;
use common::{PATIENCE, base, link, loopback, quick, start, wait_until};

#[test]
fn a_message_arrives_and_its_reply_comes_back() {
    let bob = loopback().start().unwrap();
    let alice = loopback().start().unwrap();
    let to_bob = link(&alice, &bob);
    to_bob.send("hello, bob").unwrap();
    let message = bob.recv_timeout(PATIENCE).unwrap();
    assert_eq!((message.from(), message.payload()), (alice.id(), &b"hello, bob"[..]));
    message.reply("hello, alice").unwrap();
    let reply = alice.recv_timeout(PATIENCE).unwrap();
    assert_eq!((reply.from(), reply.payload()), (bob.id(), &b"hello, alice"[..]));
    drop((message, reply));
    assert!(alice.shutdown(PATIENCE).is_clean());
    assert!(bob.shutdown(PATIENCE).is_clean());
}

#[test]
fn every_size_arrives_whole_once_and_in_order() {
    let sizes = [0, 1, 64, 1000, 32 * 1024, 32 * 1024 + 1, 64 * 1024, 64 * 1024 + 1, 300_000, 5 << 20, 7];
    let bob = loopback().start().unwrap();
    let alice = loopback().start().unwrap();
    let to_bob = link(&alice, &bob);
    let sent: Vec<Vec<u8>> = sizes.iter().enumerate().map(|(i, len)| pattern(i, *len)).collect();
    // Owned and borrowed payloads; more than the queue and the window hold, so that receiving goes on beside it.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..3 {
                for payload in &sent {
                    if round == 0 { to_bob.send(payload.clone()).unwrap() } else { to_bob.send(&payload[..]).unwrap() }
                }
            }
        });
        for _ in 0..3 {
            for payload in &sent {
                let message = bob.recv_timeout(PATIENCE).unwrap();
                let (len, came) = (payload.len(), message.payload().len());
                assert!(message.payload() == &payload[..], "{len} bytes came as {came}");
            }
        }
    });
    wait_until("everything is acknowledged", || to_bob.stats().acked == 33);
    assert_eq!(to_bob.stats().kept_bytes, 0);
}

#[test]
fn a_flood_of_small_messages_arrives_in_order_at_a_handler() {
    const COUNT: u64 = 300_000;
    let next = Arc::new(AtomicU64::new(0));
    let seen = next.clone();
    let bob = loopback()
        .handler(move |_, message| {
            let sequence = u64::from_le_bytes(message.payload()[..8].try_into().unwrap());
            if seen.compare_exchange(sequence, sequence + 1, Ordering::Relaxed, Ordering::Relaxed).is_err() {
                seen.store(u64::MAX, Ordering::Relaxed);
            }
        })
        .start()
        .unwrap();
    let alice = loopback().start().unwrap();
    let to_bob = link(&alice, &bob);
    let mut payload = [7; 64];
    for sequence in 0..COUNT {
        payload[..8].copy_from_slice(&sequence.to_le_bytes());
        to_bob.send(&payload[..]).unwrap();
    }
    wait_until("all arrived", || next.load(Ordering::Relaxed) >= COUNT);
    assert_eq!(next.load(Ordering::Relaxed), COUNT);
    wait_until("all acknowledged", || to_bob.stats().acked == COUNT);
}

/// Two nodes flood each other with questions, as many in flight as fit: every one is answered, nothing sticks.
fn flood_with_questions(size: usize, count: u64, handlers: bool) {
    let nodes: Vec<Node> = (0..2)
        .map(|_| {
            let builder = loopback();
            if handlers { builder.handler(|_, message| answer(&message)) } else { builder }.start().unwrap()
        })
        .collect();
    let handles = [link(&nodes[0], &nodes[1]), nodes[1].wait_connected(nodes[0].id(), PATIENCE).unwrap()];
    let answered: [AtomicU64; 2] = Default::default();
    let largest_memory = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for (handle, answered) in handles.iter().zip(&answered) {
            scope.spawn(move || ask_all(handle, size, count, answered));
        }
        for node in nodes.iter().filter(|_| !handlers) {
            let (asked, answered) = (2 * count, &answered);
            scope.spawn(move || {
                let all = || answered.iter().map(|answered| answered.load(Ordering::Relaxed)).sum::<u64>() >= asked;
                // The other side may still ask.
                while !all() {
                    if let Ok(message) = node.recv_timeout(Duration::from_millis(50)) {
                        answer(&message);
                    }
                }
            });
        }
        let (mut last, mut since) = (0, Instant::now());
        let mut longest = Duration::ZERO;
        while last < 2 * count {
            let now: u64 = answered.iter().map(|answered| answered.load(Ordering::Relaxed)).sum();
            let held =
                handles.iter().map(|handle| (handle.stats().kept_bytes + handle.stats().queued_bytes) as u64).sum();
            largest_memory.fetch_max(held, Ordering::Relaxed);
            if now != last {
                (last, since) = (now, Instant::now());
            }
            longest = longest.max(since.elapsed());
            if since.elapsed() > PATIENCE {
                // Whoever still waits is let go.
                answered.iter().for_each(|answered| answered.store(count, Ordering::Relaxed));
                break;
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        println!("{size} B, handlers {handlers}: longest pause {longest:?}, memory {largest_memory:?}");
        assert!(longest < Duration::from_secs(1), "a pause of {longest:?} after {last} answers");
    });
    for handle in &handles {
        let stats = handle.stats();
        assert_eq!((stats.requests, stats.answers, stats.open_requests), (count, count, 0));
        assert_eq!((stats.late_answers, stats.unknown_answers), (0, 0));
    }
    // Two queues of 8 MiB, two windows of 4 MiB, and the replies that questions pay for.
    assert!(largest_memory.into_inner() < 64 << 20);
}

/// Asks so many questions, and takes the answers as they come; each is what was asked.
fn ask_all(to: &PeerHandle, size: usize, count: u64, answered: &AtomicU64) {
    let (answers, options) = (Answers::new(), SendOptions::new());
    let mut asked = 0;
    while answered.load(Ordering::Relaxed) < count {
        while asked < count {
            let mut question = vec![7; size];
            question[..8].copy_from_slice(&asked.to_le_bytes());
            match to.ask_into(question, PATIENCE, &options, &answers, asked) {
                Ok(()) => asked += 1,
                Err(error) => {
                    assert_eq!(error.kind, SendErrorKind::TooManyRequests);
                    break;
                }
            }
        }
        let Ok(first) = answers.recv_timeout(PATIENCE) else { continue };
        let came = std::iter::once(first).chain(std::iter::from_fn(|| answers.try_recv()));
        let came = came.map(|one| {
            let answer = one.outcome.unwrap();
            assert!(answer.payload().len() == size && answer.payload()[..8] == one.tag.to_le_bytes());
        });
        answered.fetch_add(came.count() as u64, Ordering::Relaxed);
    }
}

fn answer(message: &Message<'_>) {
    assert!(message.is_question());
    message.reply(message.payload()).unwrap();
}

#[test]
fn nodes_that_question_each_other_from_handlers_get_every_answer() {
    flood_with_questions(64, 200_000, true);
    flood_with_questions(1024, 200_000, true);
}

#[test]
fn nodes_that_question_each_other_in_receive_loops_get_every_answer() {
    flood_with_questions(64, 200_000, false);
    flood_with_questions(1024, 200_000, false);
}

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + seed * 7 + (i >> 8)) as u8).collect()
}

#[test]
fn batches_fit_a_select_loop_and_a_typed_message_decodes() {
    #[derive(serde::Serialize, serde::Deserialize, Debug, PartialEq)]
    struct Reading {
        sensor: u32,
        value: f64,
    }
    let bob = loopback().start().unwrap();
    let alice = loopback().start().unwrap();
    let to_bob = link(&alice, &bob);
    let incoming = bob.incoming().unwrap();
    for sensor in 0..100 {
        to_bob.send_msg(&Reading { sensor, value: 0.5 }).unwrap();
    }
    let mut seen = 0;
    while seen < 100 {
        crossbeam_channel::select! {
            recv(incoming) -> batch => for message in batch.unwrap() {
                assert_eq!(message.decode::<Reading>().unwrap(), Reading { sensor: seen, value: 0.5 });
                seen += 1;
            },
            default(PATIENCE) => panic!("{seen} of 100"),
        }
    }
}

#[test]
fn whoever_waits_for_ever_waits_no_longer_than_needed() {
    let (alice, bob) = (start(quick()), start(quick()));
    alice.add_peer(bob.id(), bob.local_addr()).unwrap();
    let to_bob = alice.wait_connected(bob.id(), Duration::MAX).unwrap();
    let options = SendOptions::new().timeout(Duration::MAX).ttl(Duration::MAX);
    let receipt = to_bob.send_with("1", &options).unwrap();
    to_bob.send_timeout("2", Duration::MAX).unwrap();
    for payload in [b"1", b"2"] {
        assert_eq!(bob.recv_timeout(Duration::MAX).unwrap().payload(), payload);
    }
    assert!(matches!(receipt.wait(Duration::MAX).unwrap(), Outcome::Acknowledged(_)));
    let pending = to_bob.ask("3", Duration::MAX).unwrap();
    bob.recv_timeout(Duration::MAX).unwrap().reply("4").unwrap();
    assert_eq!(pending.wait().unwrap().payload(), b"4");
    assert!(alice.shutdown(Duration::MAX).finished);
}

#[test]
fn a_node_with_config_default_times_talks_to_a_node_that_only_dials() {
    let bob = loopback().start().unwrap();
    let mut config = base();
    config.listen.clear();
    let alice = Node::builder().config(config).start().unwrap();
    assert_eq!(alice.local_addr(), None);
    let to_bob = alice.connect(bob.local_addr().unwrap()).unwrap();
    assert_eq!(to_bob.id(), bob.id());
    to_bob.send("x").unwrap();
    assert_eq!(bob.recv_timeout(PATIENCE).unwrap().payload(), b"x");
}
