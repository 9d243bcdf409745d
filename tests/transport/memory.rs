//! What the memory transport does beyond the contract: an address space of its own.

use std::io::ErrorKind;
use std::net::SocketAddr;

use threadwire::transport::Transport;
use threadwire::transport::memory::Memory;

use crate::support::loopback;

#[test]
fn an_address_means_something_in_its_own_hub_only() {
    let (here, there) = (Memory::new(), Memory::new());
    let addr: SocketAddr = "10.1.2.3:7".parse().unwrap();
    let mut listener = here.listen(addr).unwrap();
    assert_eq!(listener.local_addr(), addr);
    assert_eq!(there.connect(addr).err().unwrap().kind(), ErrorKind::ConnectionRefused);
    there.listen(addr).unwrap();
    let dialled = here.clone().connect(addr).unwrap();
    assert_eq!(listener.accept().unwrap().remote_addr(), dialled.local_addr().unwrap());
}

#[test]
fn a_listener_on_no_address_in_particular_is_met_under_all_of_its_family() {
    let hub = Memory::new();
    let mut listener = hub.listen("0.0.0.0:0".parse().unwrap()).unwrap();
    let port = listener.local_addr().port();
    hub.connect(SocketAddr::new("10.1.2.3".parse().unwrap(), port)).unwrap();
    listener.accept().unwrap();
    let of_the_other_family = SocketAddr::new("::1".parse().unwrap(), port);
    assert_eq!(hub.connect(of_the_other_family).err().unwrap().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_listener_that_is_gone_frees_its_address_and_ends_what_waited_there() {
    let hub = Memory::new();
    let listener = hub.listen(loopback()).unwrap();
    let addr = listener.local_addr();
    let mut waiting = hub.connect(addr).unwrap();
    drop(listener);
    assert_eq!(waiting.try_read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(hub.connect(addr).err().unwrap().kind(), ErrorKind::ConnectionRefused);
    hub.listen(addr).unwrap();
}

#[test]
fn a_full_queue_refuses_and_takes_again_after_an_accept() {
    let hub = Memory::new();
    let mut listener = hub.listen(loopback()).unwrap();
    let mut dialled = Vec::new();
    let error = loop {
        match hub.connect(listener.local_addr()) {
            // Only the accepted ends stay, which keeps the test within a usual limit on descriptors.
            Ok(connection) => dialled.push(connection.local_addr().unwrap()),
            Err(error) => break error,
        }
    };
    assert_eq!((error.kind(), dialled.len()), (ErrorKind::ConnectionRefused, 512));
    assert_eq!(listener.accept().unwrap().remote_addr(), dialled[0]);
    hub.connect(listener.local_addr()).unwrap();
}
