//! Reloads one after the other, and a storm of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use threadwire::error::ReloadError;
use threadwire::{Node, PeerId};

use crate::common::{PATIENCE, alone, link, quick, start};
use crate::{LIVE, changed};

#[test]
fn reloads_take_turns_and_one_in_a_handler_or_during_a_shutdown_is_refused() {
    let _alone = alone();
    let config = quick();
    let (said, heard) = crossbeam_channel::bounded(1);
    let node: &'static std::sync::OnceLock<Node> = Box::leak(Box::default());
    let (inside, other) = (config.clone(), start(quick()));
    let started = Node::builder()
        .config(config.clone())
        .handler(move |_, _| said.send(node.get().unwrap().reload(&inside)).unwrap())
        .start()
        .unwrap();
    let bob = node.get_or_init(|| started);
    link(&other, bob).send("reload").unwrap();
    assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), Err(ReloadError::WouldBlock));
    // Many at once: each is whole, and the last one holds.
    std::thread::scope(|scope| {
        for n in 1..=8 {
            let config = changed(&config, |config| {
                (config.inbound, config.outbound, config.peers) = (n, n, Vec::new());
                config.listen = vec!["127.0.0.1:0".parse().unwrap(); n];
            });
            scope.spawn(move || bob.reload(&config).unwrap());
        }
    });
    assert!((1..=8).contains(&bob.local_addrs().len()));
    bob.reload(&changed(&config, |config| config.listen = vec![])).unwrap();
    assert!(bob.shutdown(PATIENCE).is_clean());
    assert_eq!(bob.reload(&config), Err(ReloadError::ShuttingDown));
}

#[test]
fn a_thousand_reloads_under_traffic_lose_repeat_and_reorder_nothing_and_cut_nobody() {
    let _alone = alone();
    const RELOADS: usize = 1_000;
    let config = quick();
    let (alice, bob) = (start(config.clone()), start(config.clone()));
    link(&alice, &bob);
    bob.wait_connected(alice.id(), PATIENCE).unwrap();
    let changes: Vec<_> =
        LIVE.iter().filter(|(field, _)| !["offline", "security.trust", "security.trusted"].contains(field)).collect();
    let over = AtomicBool::new(false);
    let mut taken: BTreeMap<&str, usize> = BTreeMap::new();
    std::thread::scope(|scope| {
        let flow = |node: &Node, to: PeerId, over: &AtomicBool| {
            let peer = node.peer(to).unwrap();
            let (mut sent, long) = (0u64, vec![0; 70_000]);
            while !over.load(Ordering::Relaxed) {
                let mut message = sent.to_le_bytes().to_vec();
                // Now and then one that is large.
                message.extend_from_slice(if sent.is_multiple_of(1000) { &long } else { &[] });
                peer.send(message).unwrap();
                sent += 1;
            }
            peer.send(u64::MAX.to_le_bytes()).unwrap();
            sent
        };
        let drain = |node: &Node| {
            let mut expected = 0u64;
            loop {
                let message = node.recv_timeout(PATIENCE).unwrap();
                assert!(!message.possible_repeat());
                let number = u64::from_le_bytes(message.payload()[..8].try_into().unwrap());
                if number == u64::MAX {
                    return expected;
                }
                assert_eq!(number, expected);
                expected += 1;
            }
        };
        let (alice, bob, over) = (&alice, &bob, &over);
        let sent = [scope.spawn(move || flow(alice, bob.id(), over)), scope.spawn(move || flow(bob, alice.id(), over))];
        let received = [scope.spawn(move || drain(bob)), scope.spawn(move || drain(alice))];
        for n in 0..RELOADS {
            let (node, (field, change)) = (if n % 2 == 0 { alice } else { bob }, changes[n / 2 % changes.len()]);
            let report = node.reload(&changed(&config, change)).unwrap_or_else(|error| panic!("{field}: {error}"));
            assert_eq!(report.closed, [], "{field}");
            *taken.entry(field).or_default() += usize::from(!report.changed.is_empty());
        }
        over.store(true, Ordering::Relaxed);
        let sent = sent.map(|thread| thread.join().unwrap());
        assert_eq!(received.map(|thread| thread.join().unwrap()), sent);
        assert!(sent.iter().all(|sent| *sent > 1_000), "{sent:?}");
    });
    assert!(taken.values().sum::<usize>() > RELOADS * 9 / 10, "they did change something: {taken:?}");
    for node in [&alice, &bob] {
        let metrics = node.metrics();
        assert_eq!((metrics.sessions_started, metrics.sessions_ended, metrics.duplicates), (1, 0, 0));
    }
}
