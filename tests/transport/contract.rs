//! What every transport must do. Each behaviour runs for each transport.

use std::io::{ErrorKind, IoSlice};
use std::sync::Arc;

use mio::{Interest, Poll, Token};
use threadwire::transport::memory::{Faults, Memory};
use threadwire::transport::tcp::Tcp;
use threadwire::transport::{Connection, PendingConnection, Transport};

use crate::support::{
    bytes, catch_up, eventually, fill, loopback, pair, pending, read_some, read_to_end, run, wait_for_events, write_all,
};

/// Makes a test of each behaviour and transport, that fails when it blocks for ever.
macro_rules! contract {
    ($($behaviour:ident)*) => {
        /// TCP over loopback.
        mod tcp {
            $(#[test] fn $behaviour() { super::run(|| super::$behaviour(&super::Tcp::default())).end() })*
        }
        /// Memory, straight through.
        mod memory {
            $(#[test] fn $behaviour() { super::run(|| super::$behaviour(&super::Memory::new())).end() })*
        }
        /// TLS over TCP.
        #[cfg(feature = "tls")]
        mod tls {
            $(#[test] fn $behaviour() {
                super::run(|| super::$behaviour(&crate::tls::over(super::Tcp::default()))).end()
            })*
        }
        /// TLS over memory.
        #[cfg(feature = "tls")]
        mod tls_over_memory {
            $(#[test] fn $behaviour() {
                super::run(|| super::$behaviour(&crate::tls::over(super::Memory::new()))).end()
            })*
        }
        /// Memory through the thread that makes the faults, without any.
        mod memory_with_faults_at_rest {
            $(#[test] fn $behaviour() {
                let memory = super::Memory::new().with_faults(&super::Faults::new());
                super::run(move || super::$behaviour(&memory)).end()
            })*
        }
    };
}

contract! {
    bytes_arrive_in_order_however_they_are_split
    slices_are_written_in_order_also_empty_and_very_many
    a_try_write_takes_what_fits_and_never_waits
    closing_wakes_a_blocked_read
    closing_wakes_a_blocked_write
    closing_twice_or_after_the_end_is_harmless
    a_closed_connection_reads_what_had_arrived_at_most
    finishing_ends_the_stream_after_all_bytes_and_leaves_the_other_way_open
    both_ways_flooded_at_once_lose_nothing
    a_large_transfer_arrives_whole
    dropping_both_halves_closes_although_the_closer_lives
    writing_to_a_side_that_is_gone_fails
    closing_with_unread_input_leaves_a_prefix_and_then_an_end
    several_pending_connections_are_accepted_until_would_block
    dialling_where_nobody_listens_is_refused
    listening_twice_on_an_address_fails
    both_ends_agree_on_their_addresses
    readiness_tells_of_bytes_room_and_the_end_before_establishing
    a_pending_connection_that_is_finished_ends_its_stream_and_reads_on
    establishing_keeps_what_has_arrived_and_blocks_from_then_on
}

fn bytes_arrive_in_order_however_they_are_split(transport: &dyn Transport) {
    let (ours, mut theirs) = pair(transport);
    let sent = bytes(1, 1 << 20);
    let writer = run({
        let sent = sent.clone();
        move || {
            let mut random = fastrand::Rng::with_seed(2);
            let mut rest = &sent[..];
            while !rest.is_empty() {
                let piece = random.usize(1..=10_000).min(rest.len());
                write_all(&*ours.write, &rest[..piece]).unwrap();
                rest = &rest[piece..];
            }
            ours.write.finish().unwrap();
            ours
        }
    });
    let received = run(move || {
        let mut random = fastrand::Rng::with_seed(3);
        let (mut received, mut buffer) = (Vec::new(), vec![0; 10_000]);
        loop {
            let size = random.usize(1..=buffer.len());
            match theirs.read.read(&mut buffer[..size]).unwrap() {
                0 => return received,
                n => received.extend_from_slice(&buffer[..n]),
            }
        }
    });
    assert!(received.end() == sent);
    writer.end();
}

fn slices_are_written_in_order_also_empty_and_very_many(transport: &dyn Transport) {
    let (ours, mut theirs) = pair(transport);
    // More slices than one system call takes, and more empty ones in a row than that at the front.
    let pieces: Vec<Vec<u8>> = (0..5_000).map(|i| bytes(i, if i < 1_500 { 0 } else { i as usize % 7 })).collect();
    let sent = pieces.concat();
    for blocking in [true, false] {
        let mut slices: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        let mut left = &mut slices[..];
        let mut written = 0;
        while written < sent.len() {
            let n = if blocking { ours.write.write(left) } else { ours.write.try_write(left) }.unwrap();
            assert!(n > 0 || !blocking);
            written += n;
            IoSlice::advance_slices(&mut left, n);
        }
        assert!(read_some(&mut *theirs.read, sent.len()) == sent);
        assert_eq!(ours.write.try_write(&[]).unwrap(), 0);
    }
}

fn a_try_write_takes_what_fits_and_never_waits(transport: &dyn Transport) {
    let (ours, mut theirs) = pair(transport);
    let write = Arc::clone(&ours.write);
    let taken = run(move || fill(&*write)).end();
    assert!(taken > 0);
    // A middle layer may have made room meanwhile; what is taken now follows what was taken before.
    let received = run(move || (read_some(&mut *theirs.read, taken), theirs));
    catch_up(&*ours.write);
    let (received, theirs) = received.end();
    assert!(received.iter().enumerate().all(|(i, byte)| *byte == (i % 251) as u8));
    eventually("room after everything was read", || ours.write.try_write(&[IoSlice::new(b"x")]).unwrap() == 1);
    drop(theirs);
}

fn closing_wakes_a_blocked_read(transport: &dyn Transport) {
    let (mut ours, theirs) = pair(transport);
    let closer = Arc::clone(&ours.closer);
    let reader = run(move || (ours.read.read(&mut [0; 8]), ours));
    reader.assert_blocked();
    closer.close();
    let (result, _ours) = reader.end();
    assert!(matches!(result, Ok(0) | Err(_)), "{result:?}");
    drop(theirs);
}

fn closing_wakes_a_blocked_write(transport: &dyn Transport) {
    let (ours, theirs) = pair(transport);
    let closer = Arc::clone(&ours.closer);
    let writer = run(move || write_all(&*ours.write, &vec![7; 64 << 20]));
    writer.assert_blocked();
    closer.close();
    writer.end().unwrap_err();
    drop(theirs);
}

fn closing_twice_or_after_the_end_is_harmless(transport: &dyn Transport) {
    let (ours, mut theirs) = pair(transport);
    ours.closer.close();
    ours.closer.close();
    ours.write.write(&[IoSlice::new(b"x")]).unwrap_err();
    ours.write.try_write(&[IoSlice::new(b"x")]).unwrap_err();
    let (received, _) = run(move || read_to_end(&mut *theirs.read)).end();
    assert!(received.is_empty());
    let Connection { read, write, closer, .. } = ours;
    drop((read, write));
    closer.close();
}

fn a_closed_connection_reads_what_had_arrived_at_most(transport: &dyn Transport) {
    let (mut ours, theirs) = pair(transport);
    let sent = bytes(4, 10_000);
    write_all(&*theirs.write, &sent).unwrap();
    assert!(read_some(&mut *ours.read, 1_000) == sent[..1_000]);
    ours.closer.close();
    // Linux hands out what is buffered also after both ways are shut: a session must not take it for news.
    let (rest, _) = run(move || read_to_end(&mut *ours.read)).end();
    assert!(sent[1_000..].starts_with(&rest));
}

fn finishing_ends_the_stream_after_all_bytes_and_leaves_the_other_way_open(transport: &dyn Transport) {
    let (mut ours, mut theirs) = pair(transport);
    let sent = bytes(5, 3 << 20);
    let question = sent.clone();
    let writer = run(move || {
        write_all(&*ours.write, &question).unwrap();
        ours.write.finish().unwrap();
        ours.write.write(&[IoSlice::new(b"x")]).unwrap_err();
        (read_to_end(&mut *ours.read), ours)
    });
    let reader = run(move || {
        let received = read_to_end(&mut *theirs.read);
        assert_eq!(theirs.read.read(&mut [0; 8]).unwrap(), 0, "the end stays the end");
        write_all(&*theirs.write, &received.0).unwrap();
        theirs.write.finish().unwrap();
        (received, theirs)
    });
    let ((received, error), _theirs) = reader.end();
    assert!(error.is_none() && received == sent);
    let ((answer, error), _ours) = writer.end();
    assert!(error.is_none() && answer == sent);
}

fn both_ways_flooded_at_once_lose_nothing(transport: &dyn Transport) {
    let (ours, theirs) = pair(transport);
    let mut writers = Vec::new();
    let mut readers = Vec::new();
    for (seed, connection) in [(6, ours), (7, theirs)] {
        let Connection { mut read, write, .. } = connection;
        writers.push(run(move || {
            write_all(&*write, &bytes(seed, 8 << 20)).unwrap();
            write.finish().unwrap();
            // Kept until both have read everything: closing with unread input would destroy it.
            write
        }));
        readers.push((13 - seed, run(move || (read_to_end(&mut *read), read))));
    }
    let writers: Vec<_> = writers.into_iter().map(|writer| writer.end()).collect();
    for (seed, reader) in readers {
        let ((received, error), _) = reader.end();
        assert!(error.is_none() && received == bytes(seed, 8 << 20));
    }
    drop(writers);
}

fn a_large_transfer_arrives_whole(transport: &dyn Transport) {
    use ring::digest::{Context, SHA256, digest};
    let (ours, mut theirs) = pair(transport);
    let sent = bytes(8, 16 << 20);
    let expected = digest(&SHA256, &sent);
    let writer = run(move || {
        write_all(&*ours.write, &sent).unwrap();
        ours.write.finish().unwrap();
        ours
    });
    let reader = run(move || {
        let (mut digest, mut buffer, mut total) = (Context::new(&SHA256), vec![0; 256 * 1024], 0);
        loop {
            match theirs.read.read(&mut buffer).unwrap() {
                0 => return (digest.finish(), total, theirs),
                n => digest.update(&buffer[..n]),
            }
            total += 1;
        }
    });
    let (digest, reads, _theirs) = reader.end();
    assert_eq!(digest.as_ref(), expected.as_ref());
    assert!(reads > 1);
    writer.end();
}

fn dropping_both_halves_closes_although_the_closer_lives(transport: &dyn Transport) {
    let (ours, mut theirs) = pair(transport);
    let Connection { read, write, closer, .. } = ours;
    drop(read);
    write_all(&*write, b"last").unwrap();
    drop(write);
    let (received, error) = run(move || read_to_end(&mut *theirs.read)).end();
    assert_eq!((&received[..], error.is_none()), (&b"last"[..], true));
    drop(closer);
}

fn writing_to_a_side_that_is_gone_fails(transport: &dyn Transport) {
    let (ours, theirs) = pair(transport);
    drop(theirs);
    // The first writes may still be taken: nobody knows yet.
    let error = run(move || {
        loop {
            if let Err(error) = ours.write.write(&[IoSlice::new(&[0; 1024])]) {
                return error;
            }
        }
    });
    let kind = error.end().kind();
    assert!(matches!(kind, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{kind:?}");
}

/// Observed on Linux: over TCP the end is a reset, and what the closing side's system had not sent yet is lost (a good
/// part of what was written here); over memory everything arrives, and then a reset, or through a wire the end. So
/// whoever wants its last words read reads until the end before it closes.
fn closing_with_unread_input_leaves_a_prefix_and_then_an_end(transport: &dyn Transport) {
    let (mut ours, theirs) = pair(transport);
    write_all(&*ours.write, b"never read").unwrap();
    let written = fill(&*theirs.write);
    let mut first = [0];
    assert_eq!(ours.read.read(&mut first).unwrap(), 1);
    theirs.closer.close();
    drop(theirs);
    let (rest, _) = run(move || read_to_end(&mut *ours.read)).end();
    assert!(rest.len() < written);
    assert!(rest.iter().enumerate().all(|(i, byte)| *byte == ((i + 1) % 251) as u8));
}

fn several_pending_connections_are_accepted_until_would_block(transport: &dyn Transport) {
    let mut listener = transport.listen(loopback()).unwrap();
    let mut poll = Poll::new().unwrap();
    poll.registry().register(listener.source(), Token(0), Interest::READABLE).unwrap();
    assert_eq!(listener.accept().err().unwrap().kind(), ErrorKind::WouldBlock);
    for round in [5, 1] {
        let mut dialled: Vec<_> = (0..round).map(|_| transport.connect(listener.local_addr()).unwrap()).collect();
        let mut accepted = Vec::new();
        while accepted.len() < round {
            wait_for_events(&mut poll);
            loop {
                match listener.accept() {
                    Ok(connection) => accepted.push(connection),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
        let mut from: Vec<_> = accepted.iter().map(|connection| connection.remote_addr()).collect();
        let mut dialled_from: Vec<_> = dialled.iter().map(|dialled| dialled.local_addr().unwrap()).collect();
        from.sort();
        dialled_from.sort();
        assert_eq!(from, dialled_from);
        for dialled in &mut dialled {
            eventually("the dial is through", || dialled.connected().unwrap());
        }
        assert!(accepted.iter_mut().all(|accepted| accepted.connected().unwrap()));
    }
}

fn dialling_where_nobody_listens_is_refused(transport: &dyn Transport) {
    // Bound and not listening: nobody else gets this port meanwhile.
    let taken = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    taken.bind(&loopback().into()).unwrap();
    let addr = taken.local_addr().unwrap().as_socket().unwrap();
    let error = match transport.connect(addr) {
        Err(error) => error,
        Ok(mut dialled) => loop {
            let mut poll = Poll::new().unwrap();
            poll.registry().register(dialled.source(), Token(0), Interest::WRITABLE).unwrap();
            wait_for_events(&mut poll);
            match dialled.connected() {
                Ok(connected) => assert!(!connected),
                Err(error) => break error,
            }
        },
    };
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

fn listening_twice_on_an_address_fails(transport: &dyn Transport) {
    let listener = transport.listen(loopback()).unwrap();
    let error = transport.listen(listener.local_addr()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
}

fn both_ends_agree_on_their_addresses(transport: &dyn Transport) {
    let mut listener = transport.listen(loopback()).unwrap();
    let addr = listener.local_addr();
    assert_ne!(addr.port(), 0);
    let (dialled, accepted) = pending(transport, &mut *listener);
    assert_eq!((dialled.remote_addr(), accepted.local_addr().unwrap()), (addr, addr));
    assert_eq!(accepted.remote_addr(), dialled.local_addr().unwrap());
    let from = accepted.remote_addr();
    let (dialled, accepted) = (dialled.establish().unwrap(), accepted.establish().unwrap());
    assert_eq!((dialled.local_addr, dialled.remote_addr), (from, addr));
    assert_eq!((accepted.local_addr, accepted.remote_addr), (addr, from));
}

fn readiness_tells_of_bytes_room_and_the_end_before_establishing(transport: &dyn Transport) {
    let mut listener = transport.listen(loopback()).unwrap();
    let (mut dialled, mut accepted) = pending(transport, &mut *listener);
    let mut poll = Poll::new().unwrap();
    poll.registry().register(accepted.source(), Token(0), Interest::READABLE).unwrap();
    let mut buffer = [0; 3];
    assert_eq!(accepted.try_read(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);

    let mut full = false;
    let (mut sent, mut received) = (0, 0);
    let chunk = vec![9; 64 * 1024];
    while !full {
        match dialled.try_write(&chunk) {
            Ok(n) => sent += n,
            Err(error) => full = error.kind() == ErrorKind::WouldBlock,
        }
    }
    let mut writer_poll = Poll::new().unwrap();
    writer_poll.registry().register(dialled.source(), Token(0), Interest::WRITABLE).unwrap();
    let mut drain = |dialled: &mut dyn PendingConnection, accepted: &mut dyn PendingConnection, until: usize| {
        let mut buffer = vec![0; 64 * 1024];
        while received < until {
            dialled.flush().unwrap();
            match accepted.try_read(&mut buffer) {
                Ok(n) => received += n,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    wait_for_events(&mut poll);
                }
            }
        }
    };
    drain(&mut *dialled, &mut *accepted, sent);
    wait_for_events(&mut writer_poll);
    assert_eq!(dialled.try_write(b"hi").unwrap(), 2);
    drain(&mut *dialled, &mut *accepted, sent + 2);
    writer_poll.registry().deregister(dialled.source()).unwrap();
    dialled.finish().unwrap();
    drop(dialled);
    while accepted.try_read(&mut buffer).map_err(|error| error.kind()) == Err(ErrorKind::WouldBlock) {
        wait_for_events(&mut poll);
    }
    assert_eq!(accepted.try_read(&mut buffer).unwrap(), 0);
}

fn a_pending_connection_that_is_finished_ends_its_stream_and_reads_on(transport: &dyn Transport) {
    let mut listener = transport.listen(loopback()).unwrap();
    let (mut dialled, accepted) = pending(transport, &mut *listener);
    assert_eq!(dialled.try_write(b"goodbye").unwrap(), 7);
    dialled.finish().unwrap();
    dialled.try_write(b"x").unwrap_err();
    let mut accepted = accepted.establish().unwrap();
    let (received, error) = read_to_end(&mut *accepted.read);
    assert!(error.is_none() && received == b"goodbye");
    write_all(&*accepted.write, b"heard").unwrap();
    let mut dialled = dialled.establish().unwrap();
    assert_eq!(read_some(&mut *dialled.read, 5), b"heard");
}

fn establishing_keeps_what_has_arrived_and_blocks_from_then_on(transport: &dyn Transport) {
    let mut listener = transport.listen(loopback()).unwrap();
    let (mut dialled, mut accepted) = pending(transport, &mut *listener);
    assert_eq!(dialled.try_write(b"hello, you").unwrap(), 10);
    let mut poll = Poll::new().unwrap();
    poll.registry().register(accepted.source(), Token(0), Interest::READABLE).unwrap();
    wait_for_events(&mut poll);
    poll.registry().deregister(accepted.source()).unwrap();
    assert_eq!(accepted.try_read(&mut [0; 5]).unwrap(), 5);
    let mut accepted = accepted.establish().unwrap();
    assert_eq!(read_some(&mut *accepted.read, 5), b", you");

    let reader = run(move || (read_some(&mut *accepted.read, 4), accepted));
    reader.assert_blocked();
    let dialled = dialled.establish().unwrap();
    write_all(&*dialled.write, b"more").unwrap();
    let (received, accepted) = reader.end();
    assert_eq!(received, b"more");
    let writer = run(move || write_all(&*accepted.write, &vec![1; 32 << 20]));
    writer.assert_blocked();
    drop(dialled);
    writer.end().unwrap_err();
}
