//! Two nodes, one question, one answer: `cargo run --example hello`.

use std::time::Duration;

use threadwire::{Config, Node};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let patience = Duration::from_secs(5);
    let bob = Node::builder().config(Config::loopback()).handler(|peer, message| {
        println!("bob hears from {peer:?}: {}", String::from_utf8_lossy(message.payload()));
        message.reply("hello, alice").expect("an answer as short as its question always fits");
    });
    let bob = bob.start()?;
    let alice = Node::builder().config(Config::loopback()).start()?;

    alice.add_peer(bob.id(), bob.local_addr())?; // dialled, and dialled again whenever it is lost
    let to_bob = alice.wait_connected(bob.id(), patience)?;
    to_bob.send("hello, bob")?; // Ok: its fate is known from now on; Err gives it back

    let answer = alice.recv_timeout(patience)?;
    println!("alice hears from {}: {}", answer.from().short(), String::from_utf8_lossy(answer.payload()));

    alice.shutdown(patience); // drains, says goodbye, ends every thread
    bob.shutdown(patience);
    Ok(())
}
