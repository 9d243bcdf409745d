//! What TLS does beyond the contract: floods through small buffers, new keys, records that are none, cuts.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use threadwire::error::CloseReason;
use threadwire::handshake::Identity;
use threadwire::transport::memory::{Faults, Memory};
use threadwire::transport::tcp::Tcp;
use threadwire::transport::tls::{Credential, Tls};
use threadwire::transport::{Connection, Fault, ReadHalf, Transport, Trust};

use crate::narrow::Narrow;
use crate::support::{
    bytes, catch_up, eventually, loopback, pair, pending, read_some, read_to_end, run, secure, step, tests_that_end,
    write_all,
};

const PROTOCOL: &str = "threadwire-test/1";

tests_that_end! {
    two_floods_through_sockets_of_8_kib_do_not_block_each_other
    keys_change_in_the_middle_of_two_floods_and_nothing_is_lost
    new_keys_are_answered_although_nobody_has_anything_to_say
    answers_to_our_new_keys_are_no_flood_however_many_we_ask_for
    a_record_larger_than_allowed_ends_the_connection
    bytes_that_are_no_record_of_the_other_side_end_the_connection_and_it_is_told
    a_bit_that_was_flipped_on_the_way_is_noticed
    a_cut_is_no_end_wherever_it_falls
    what_followed_the_handshake_at_once_is_read_first
    small_pieces_fill_records_together
    bytes_are_the_same_whatever_room_they_are_read_into
    an_end_behind_much_is_told_once_all_of_it_is_read
}

/// TLS over a transport, open to everybody, the same identity at both ends.
pub fn over(inner: impl Transport) -> Tls {
    let identity = Arc::new(Identity::generate().unwrap());
    Tls::new(inner, PROTOCOL, Credential::bare(identity), Trust::open()).unwrap()
}

/// Both sides write so many bytes at once, and read what the other one writes; the reader that owes something has it
/// written, as a session does.
fn flood_both_ways(sides: (Connection, Connection), len: usize) {
    let mut writers = Vec::new();
    let mut readers = Vec::new();
    for (seed, connection) in [(6, sides.0), (7, sides.1)] {
        let Connection { mut read, write, .. } = connection;
        writers.push(run(move || {
            write_all(&*write, &bytes(seed, len)).unwrap();
            write.finish().unwrap();
            write
        }));
        readers.push((13 - seed, run(move || (read_to_end(&mut *read), read))));
    }
    let writers: Vec<_> = writers.into_iter().map(|writer| writer.end()).collect();
    for (seed, reader) in readers {
        let ((received, error), _) = reader.end();
        assert!(error.is_none() && received == bytes(seed, len), "{error:?}, {} bytes", received.len());
    }
    drop(writers);
}

fn two_floods_through_sockets_of_8_kib_do_not_block_each_other() {
    flood_both_ways(pair(&over(Narrow)), 8 << 20);
}

fn keys_change_in_the_middle_of_two_floods_and_nothing_is_lost() {
    // Counted at the socket: each change is a record more, and asks the other side for another.
    for (records, len) in [(7, 8 << 20), (1, 1 << 20)] {
        flood_both_ways(pair(&over(Narrow).rekey_after(records, u64::MAX)), len);
        flood_both_ways(pair(&over(Tcp::default()).rekey_after(u64::MAX, records * 10_000)), len);
    }
}

fn new_keys_are_answered_although_nobody_has_anything_to_say() {
    let (ours, mut theirs) = pair(&over(Tcp::default()).rekey_after(1, u64::MAX));
    write_all(&*ours.write, b"a").unwrap();
    write_all(&*ours.write, b"b").unwrap();
    assert_eq!(read_some(&mut *theirs.read, 2), b"ab");
    // The new keys came before the second byte, and with them the wish for the same.
    assert!(theirs.read.owes(), "an answer is due");
    assert!(!theirs.read.owes(), "told once");
    assert!(theirs.write.is_behind());
    assert_eq!(theirs.write.write(&[]).unwrap(), 0);
    assert!(!theirs.write.is_behind());
    let Connection { mut read, write, .. } = theirs;
    write_all(&*write, b"c").unwrap();
    let mut ours = ours;
    assert_eq!(read_some(&mut *ours.read, 1), b"c");
    write_all(&*ours.write, b"d").unwrap();
    assert_eq!(read_some(&mut *read, 1), b"d");
}

fn answers_to_our_new_keys_are_no_flood_however_many_we_ask_for() {
    const RECORDS: usize = 200;
    let (mut ours, mut theirs) = pair(&over(Tcp::default()).rekey_after(1, u64::MAX));
    for n in 0..RECORDS {
        write_all(&*ours.write, &bytes(8, RECORDS)[n..=n]).unwrap();
        assert_eq!(read_some(&mut *theirs.read, 1), bytes(8, RECORDS)[n..=n]);
        // The other side has nothing to say but its answers.
        catch_up(&*theirs.write);
    }
    write_all(&*theirs.write, b"at last").unwrap();
    assert_eq!(read_some(&mut *ours.read, 7), b"at last");
}

/// Two sides over a line that the test listens in on: what the dialler writes comes out of the stream, and whatever the
/// test writes there goes to the listener.
struct Tapped {
    dialler: Connection,
    listener: Connection,
    from_dialler: TcpStream,
    to_listener: TcpStream,
}

fn tapped() -> Tapped {
    let tls = over(Tcp::default());
    let mut listener = tls.listen(loopback()).unwrap();
    let between = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut dialled = tls.connect(between.local_addr().unwrap()).unwrap();
    let (from_dialler, _) = between.accept().unwrap();
    let to_listener = TcpStream::connect(listener.local_addr()).unwrap();
    let mut accepted = None;
    eventually("the dial comes in", || {
        accepted = accepted.take().or_else(|| listener.accept().ok());
        accepted.is_some() && dialled.connected().unwrap()
    });
    let mut accepted = accepted.unwrap();
    let shaken = Arc::new(AtomicBool::new(false));
    let copy = |mut from: TcpStream, mut to: TcpStream| {
        let shaken = shaken.clone();
        from.set_read_timeout(Some(std::time::Duration::from_millis(5))).unwrap();
        run(move || {
            let mut buffer = [0; 4096];
            loop {
                match from.read(&mut buffer) {
                    Ok(count) => to.write_all(&buffer[..count]).unwrap(),
                    Err(_) if shaken.load(Ordering::SeqCst) => break,
                    Err(error) => assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)),
                }
            }
            from.set_read_timeout(None).unwrap();
        })
    };
    let clone = |stream: &TcpStream| stream.try_clone().unwrap();
    let there = copy(clone(&from_dialler), clone(&to_listener));
    let back = copy(clone(&to_listener), clone(&from_dialler));
    secure(&mut *dialled, &mut *accepted);
    shaken.store(true, Ordering::SeqCst);
    there.end();
    back.end();
    let (dialler, listener) = (dialled.establish().unwrap(), accepted.establish().unwrap());
    Tapped { dialler, listener, from_dialler, to_listener }
}

/// One record of what a side writes.
#[expect(clippy::disallowed_methods, reason = "there is no timeout, and a record is no frame")]
fn record(stream: &mut TcpStream) -> Vec<u8> {
    let mut record = vec![0; 5];
    stream.read_exact(&mut record).unwrap();
    let len = usize::from(u16::from_be_bytes([record[3], record[4]]));
    record.resize(5 + len, 0);
    stream.read_exact(&mut record[5..]).unwrap();
    record
}

fn fault_of(read: &mut dyn ReadHalf) -> Fault {
    let error = read.read(&mut [0; 64]).unwrap_err();
    let fault = Fault::of(&error).cloned();
    // It stays broken.
    assert!(read.read(&mut [0; 64]).is_err());
    fault.unwrap_or_else(|| panic!("{error:?}"))
}

fn a_record_larger_than_allowed_ends_the_connection() {
    for len in [16 * 1024 + 257, 65_535_u16 as usize] {
        let Tapped { mut listener, mut to_listener, dialler, from_dialler } = tapped();
        let mut record = vec![23, 3, 3, (len >> 8) as u8, len as u8];
        record.resize(5 + len, 7);
        // It may be refused by its header, before all of it is written.
        let _ = to_listener.write_all(&record);
        assert!(matches!(fault_of(&mut *listener.read), Fault::Rejected(CloseReason::ProtocolError, _)));
        drop((dialler, from_dialler));
    }
}

fn bytes_that_are_no_record_of_the_other_side_end_the_connection_and_it_is_told() {
    let Tapped { dialler, mut listener, mut from_dialler, mut to_listener } = tapped();
    write_all(&*dialler.write, b"true").unwrap();
    let said = record(&mut from_dialler);
    to_listener.write_all(&said).unwrap();
    assert_eq!(read_some(&mut *listener.read, 4), b"true");
    // The same once more: a record has its number, and none is taken twice.
    to_listener.write_all(&said).unwrap();
    assert!(matches!(fault_of(&mut *listener.read), Fault::Rejected(CloseReason::ProtocolError, _)));
    // It says why: an alert, which the dialler understands.
    let alert = record(&mut to_listener);
    from_dialler.write_all(&alert).unwrap();
    let mut read = dialler.read;
    assert!(matches!(fault_of(&mut *read), Fault::Refused(CloseReason::ProtocolError, _)));
}

fn a_bit_that_was_flipped_on_the_way_is_noticed() {
    for offset in [0, 5_000, 100_000] {
        let faults = Faults::new();
        let memory = Memory::new();
        let tls = over(memory.with_faults(&faults));
        let mut listener = tls.listen(loopback()).unwrap();
        let (dialled, accepted) = pending(&tls, &mut *listener);
        // Beyond the handshake, whatever that took.
        let (dialled, mut accepted) = (dialled.establish().unwrap(), accepted.establish().unwrap());
        faults.towards_listener().set_corrupt_at(Some(2_000 + offset));
        let writer = run(move || {
            let _ = write_all(&*dialled.write, &bytes(1, 1 << 20));
            dialled
        });
        let (received, error) = run(move || read_to_end(&mut *accepted.read)).end();
        let fault = error.as_ref().and_then(Fault::of);
        assert!(matches!(fault, Some(Fault::Rejected(CloseReason::ProtocolError, _))), "{error:?}");
        assert!(bytes(1, 1 << 20).starts_with(&received) && received.len() < 1 << 20);
        assert_eq!(faults.towards_listener().counts().corrupted, 1);
        accepted.closer.close();
        drop(writer.end());
    }
}

fn a_cut_is_no_end_wherever_it_falls() {
    // Between two records, in the header of one, in its body.
    for extra in [0, 3, 12] {
        let Tapped { dialler, mut listener, mut from_dialler, mut to_listener } = tapped();
        write_all(&*dialler.write, b"one").unwrap();
        write_all(&*dialler.write, b"two").unwrap();
        dialler.write.finish().unwrap();
        let (one, two) = (record(&mut from_dialler), record(&mut from_dialler));
        to_listener.write_all(&one).unwrap();
        to_listener.write_all(&two[..extra]).unwrap();
        to_listener.shutdown(std::net::Shutdown::Write).unwrap();
        let (received, error) = read_to_end(&mut *listener.read);
        assert_eq!(received, b"one");
        let error = error.unwrap();
        assert_eq!((Fault::of(&error), error.kind()), (Some(&Fault::Truncated), ErrorKind::ConnectionAborted));
    }
    // The whole of it is one.
    let Tapped { dialler, mut listener, mut from_dialler, mut to_listener } = tapped();
    write_all(&*dialler.write, b"one").unwrap();
    dialler.write.finish().unwrap();
    for _ in 0..2 {
        to_listener.write_all(&record(&mut from_dialler)).unwrap();
    }
    let (received, error) = read_to_end(&mut *listener.read);
    assert!(received == b"one" && error.is_none(), "{error:?}");
}

fn what_followed_the_handshake_at_once_is_read_first() {
    let tls = over(Tcp::default());
    let mut listener = tls.listen(loopback()).unwrap();
    let mut dialled = tls.connect(listener.local_addr()).unwrap();
    let mut accepted = None;
    eventually("the dial comes in", || {
        accepted = accepted.take().or_else(|| listener.accept().ok());
        accepted.is_some() && dialled.connected().unwrap()
    });
    let mut accepted = accepted.unwrap();
    eventually("the dialler is open", || {
        let _ = step(&mut *accepted).unwrap();
        accepted.flush().unwrap();
        step(&mut *dialled).unwrap()
    });
    // More than the other side's TLS takes at once, behind the last word of the handshake.
    let sent = bytes(3, 100_000);
    let mut rest = &sent[..];
    while !rest.is_empty() {
        match dialled.try_write(rest) {
            Ok(count) => rest = &rest[count..],
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        let _ = step(&mut *accepted).unwrap();
    }
    eventually("all is sent", || dialled.flush().unwrap());
    eventually("the other side is open", || step(&mut *accepted).unwrap());
    let mut head = [0; 10];
    eventually("the first of it is here", || accepted.try_read(&mut head).is_ok());
    let mut accepted = accepted.establish().unwrap();
    assert!([&head[..], &read_some(&mut *accepted.read, sent.len() - 10)].concat() == sent);
}

fn small_pieces_fill_records_together() {
    let Tapped { dialler, mut from_dialler, .. } = tapped();
    let pieces: Vec<_> = (0..64).map(|n| bytes(n, 72)).collect();
    let slices: Vec<_> = pieces.iter().map(|piece| std::io::IoSlice::new(piece)).collect();
    let mut taken = 0;
    while taken < 64 * 72 {
        let mut left = &mut slices.clone()[..];
        std::io::IoSlice::advance_slices(&mut left, taken);
        taken += dialler.write.write(left).unwrap();
    }
    let mut records = 0;
    let mut plain = 0;
    while plain < taken {
        plain += record(&mut from_dialler).len() - 5 - 17;
        records += 1;
    }
    assert!(records <= 2, "{records} records for {} pieces", pieces.len());
}

/// Reads to the end of the stream, into room of these sizes in turn.
fn read_into(read: &mut dyn ReadHalf, rooms: &[usize]) -> (Vec<u8>, Option<std::io::Error>) {
    let mut all = Vec::new();
    let mut buffer = vec![0; rooms.iter().copied().max().unwrap()];
    for room in rooms.iter().cycle() {
        match read.read(&mut buffer[..*room]) {
            Ok(0) => return (all, None),
            Ok(count) => all.extend_from_slice(&buffer[..count]),
            Err(error) => return (all, Some(error)),
        }
        // What lay there is of no use to the next read.
        buffer.fill(0xee);
    }
    unreachable!("the rooms come again and again")
}

fn bytes_are_the_same_whatever_room_they_are_read_into() {
    const LEN: usize = 6 << 20;
    // Room for less than a record, for one, for many: records are opened in the reader's memory or in our own, and what
    // of one is read by one way is opened by the other.
    let rooms: [&[usize]; 4] = [&[256 * 1024], &[100_000, 1, 300_000], &[7, 96 * 1024, 17_000], &[20_000, 1 << 20]];
    for rooms in rooms {
        for tls in [over(Tcp::default()), over(Narrow), over(Narrow).rekey_after(3, u64::MAX)] {
            let (ours, mut theirs) = pair(&tls);
            let writer = run(move || {
                let sent = bytes(9, LEN);
                // Records of all lengths, as messages come.
                let mut rest = &sent[..];
                for len in (0..).map(|n: usize| 1 + n * 7_919 % 70_000) {
                    let piece = &rest[..len.min(rest.len())];
                    write_all(&*ours.write, piece).unwrap();
                    rest = &rest[piece.len()..];
                    if rest.is_empty() {
                        break;
                    }
                }
                ours.write.finish().unwrap();
                ours
            });
            let (received, error) = read_into(&mut *theirs.read, rooms);
            assert!(error.is_none() && received == bytes(9, LEN), "{rooms:?}: {error:?}, {} bytes", received.len());
            drop(writer.end());
        }
    }
}

fn an_end_behind_much_is_told_once_all_of_it_is_read() {
    const ROOM: [usize; 1] = [256 * 1024];
    // What follows the true bytes in the same read: an end in due form, a cut, a record that nobody sealed.
    let forged = [&[23, 3, 3, 0, 40][..], &[7; 40]].concat();
    let tails: [(&[u8], bool, Option<ErrorKind>); 4] = [
        (&[], true, None),
        (&[], false, Some(ErrorKind::ConnectionAborted)),
        (&forged[..20], false, Some(ErrorKind::ConnectionAborted)),
        (&forged, false, Some(ErrorKind::InvalidData)),
    ];
    for (tail, finishes, expected) in tails {
        let Tapped { dialler, mut listener, mut from_dialler, mut to_listener } = tapped();
        let sent = bytes(5, 40_000);
        write_all(&*dialler.write, &sent).unwrap();
        let mut records: Vec<u8> = (0..3).flat_map(|_| record(&mut from_dialler)).collect();
        if finishes {
            dialler.write.finish().unwrap();
            records.extend(record(&mut from_dialler));
        }
        to_listener.write_all(&[&records, tail].concat()).unwrap();
        to_listener.shutdown(std::net::Shutdown::Write).unwrap();
        let (received, error) = read_into(&mut *listener.read, &ROOM);
        assert!(received == sent, "{} bytes", received.len());
        assert_eq!(error.map(|error| error.kind()), expected);
        // And so it stays.
        let again = listener.read.read(&mut vec![0; ROOM[0]]);
        assert_eq!(again.map_err(|error| error.kind()), expected.map_or(Ok(0), Err));
    }
}

#[test]
fn addresses_are_those_of_the_transport_below() {
    let addr: SocketAddr = over(Tcp::default()).listen(loopback()).unwrap().local_addr();
    assert_ne!(addr.port(), 0);
}
