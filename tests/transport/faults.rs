//! Each fault of the memory transport does what it says, and its counter proves that it happened.

use std::io::{ErrorKind, IoSlice};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Interest, Poll, Token};
use threadwire::transport::memory::{FaultCounts, Faults, Memory};
use threadwire::transport::{Connection, Transport};

use crate::support::{
    bytes, eventually, fill, loopback, pair, pending, read_some, read_to_end, run, tests_that_end, wait_for_events,
    write_all,
};

/// Below this nothing delayed may be seen.
const DELAY: Duration = Duration::from_millis(40);

tests_that_end! {
    without_a_setting_no_counter_moves
    faults_are_of_the_connections_dialled_through_them_and_of_one_direction
    a_delayed_byte_is_not_seen_before_its_time
    during_a_handshake_readiness_comes_when_the_delay_is_over
    a_large_transfer_survives_delay_and_short_reads_and_short_writes
    a_cut_hands_over_exactly_its_bytes_and_ends_both_sides
    cutting_now_wakes_blocked_halves_of_what_is_there_and_spares_what_is_dialled_later
    a_stall_holds_everything_back_until_it_ends
    a_stalled_writer_fills_what_lies_between_and_goes_on_after_the_stall
    a_connection_closed_by_both_sides_ends_its_thread_also_when_stalled
    writing_to_a_side_that_is_gone_fails_although_what_it_wrote_is_stalled
    what_was_written_before_a_side_closed_is_still_delivered
    reads_are_no_longer_than_their_limit_also_before_establishing
    writes_take_no_more_than_their_limit_also_before_establishing
    corruption_flips_one_bit_of_one_byte_of_each_connection
}

fn faulty() -> (Faults, Memory) {
    let faults = Faults::new();
    let memory = Memory::new().with_faults(&faults);
    (faults, memory)
}

/// The dialler writes all of it and finishes; the listener's side reads to the end.
fn send(dialled: Connection, mut accepted: Connection, sent: Vec<u8>) -> Vec<u8> {
    let writer = run(move || {
        write_all(&*dialled.write, &sent).unwrap();
        dialled.write.finish().unwrap();
        dialled
    });
    let (received, error) = run(move || read_to_end(&mut *accepted.read)).end();
    assert!(error.is_none(), "{error:?}");
    writer.end();
    received
}

fn without_a_setting_no_counter_moves() {
    let (faults, memory) = faulty();
    let (dialled, accepted) = pair(&memory);
    let sent = bytes(1, 1 << 20);
    assert!(send(dialled, accepted, sent.clone()) == sent);
    assert_eq!(faults.towards_listener().counts(), FaultCounts::default());
    assert_eq!(faults.towards_dialler().counts(), FaultCounts::default());
}

fn faults_are_of_the_connections_dialled_through_them_and_of_one_direction() {
    let (faults, memory) = faulty();
    faults.towards_listener().set_short_reads(Some(1));
    let plain = Memory::new();
    let mut listener = plain.with_faults(&faults).listen(loopback()).unwrap();
    let addr = listener.local_addr();
    let direct = plain.connect(addr).unwrap().establish().unwrap();
    let mut accepted = listener.accept().unwrap().establish().unwrap();
    assert_eq!(faults.connections(), 0);
    write_all(&*direct.write, b"ab").unwrap();
    assert_eq!(accepted.read.read(&mut [0; 8]).unwrap(), 2);

    let (mut dialled, accepted) = pair(&memory);
    assert_eq!(faults.connections(), 1);
    write_all(&*accepted.write, b"ab").unwrap();
    assert_eq!(dialled.read.read(&mut [0; 8]).unwrap(), 2);
    assert_eq!(faults.towards_listener().counts().short_reads, 0);
}

fn a_delayed_byte_is_not_seen_before_its_time() {
    let (faults, memory) = faulty();
    let (dialled, mut accepted) = pair(&memory);
    faults.towards_listener().set_delay(DELAY);
    let written = Instant::now();
    write_all(&*dialled.write, b"late").unwrap();
    // The other direction is not delayed: this would end it early if it were the same.
    write_all(&*accepted.write, b"early").unwrap();
    assert_eq!(read_some(&mut *accepted.read, 4), b"late");
    assert!(written.elapsed() >= DELAY);
    assert!(faults.towards_listener().counts().delayed >= 1);
    assert_eq!(faults.towards_dialler().counts().delayed, 0);

    let finished = Instant::now();
    dialled.write.finish().unwrap();
    assert_eq!(accepted.read.read(&mut [0; 8]).unwrap(), 0);
    assert!(finished.elapsed() >= DELAY, "the end of the stream is delayed too");
}

fn during_a_handshake_readiness_comes_when_the_delay_is_over() {
    let (faults, memory) = faulty();
    let mut listener = memory.listen(loopback()).unwrap();
    let (mut dialled, mut accepted) = pending(&memory, &mut *listener);
    faults.towards_listener().set_delay(DELAY);
    let mut poll = Poll::new().unwrap();
    poll.registry().register(accepted.source(), Token(0), Interest::READABLE).unwrap();
    let written = Instant::now();
    dialled.try_write(b"hello").unwrap();
    let mut buffer = [0; 16];
    assert_eq!(accepted.try_read(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);
    wait_for_events(&mut poll);
    assert_eq!(accepted.try_read(&mut buffer).unwrap(), 5);
    assert!(written.elapsed() >= DELAY);
    assert_eq!(faults.towards_listener().counts().delayed, 1);
}

fn a_large_transfer_survives_delay_and_short_reads_and_short_writes() {
    let (faults, memory) = faulty();
    let direction = faults.towards_listener();
    direction.set_delay(Duration::from_millis(1));
    direction.set_short_reads(Some(1_000));
    direction.set_short_writes(Some(3_000));
    let (dialled, accepted) = pair(&memory);
    let sent = bytes(2, 1 << 20);
    assert!(send(dialled, accepted, sent.clone()) == sent);
    let counts = direction.counts();
    assert!(counts.delayed >= 4 && counts.short_reads >= 1_000 && counts.short_writes >= 300, "{counts:?}");
}

fn a_cut_hands_over_exactly_its_bytes_and_ends_both_sides() {
    for at in [0_u64, 1, 1_000, 300_000] {
        let (faults, memory) = faulty();
        let (mut dialled, mut accepted) = pair(&memory);
        faults.towards_listener().set_cut_after(Some(at));
        let sent = bytes(at, 1 << 20);
        let written = sent.clone();
        let writer = run(move || {
            let error = loop {
                if let Err(error) = write_all(&*dialled.write, &written) {
                    break error;
                }
            };
            (error, read_to_end(&mut *dialled.read).0)
        });
        let (received, _) = run(move || {
            let received = read_to_end(&mut *accepted.read);
            accepted.write.write(&[IoSlice::new(b"x")]).unwrap_err();
            received
        })
        .end();
        assert!(received == sent[..at as usize], "{} of {at}", received.len());
        let (error, other_way) = writer.end();
        assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
        assert!(other_way.is_empty());
        assert_eq!((faults.towards_listener().counts().cut, faults.towards_dialler().counts().cut), (1, 0));
        eventually("the thread of the connection ends", || faults.connections() == 0);
    }
}

fn cutting_now_wakes_blocked_halves_of_what_is_there_and_spares_what_is_dialled_later() {
    let (faults, memory) = faulty();
    let (dialled, mut accepted) = pair(&memory);
    let reader = run(move || (read_to_end(&mut *accepted.read), accepted));
    reader.assert_blocked();
    faults.towards_dialler().cut_now();
    reader.end();
    eventually("writes fail", || dialled.write.try_write(&[IoSlice::new(b"x")]).is_err());
    assert_eq!((faults.towards_dialler().counts().cut, faults.towards_listener().counts().cut), (1, 0));

    let (dialled, accepted) = pair(&memory);
    assert_eq!(send(dialled, accepted, b"alive".to_vec()), b"alive");
    assert_eq!(faults.towards_dialler().counts().cut, 1);
}

fn a_stall_holds_everything_back_until_it_ends() {
    let (faults, memory) = faulty();
    let direction = faults.towards_listener();
    let (dialled, mut accepted) = pair(&memory);
    for (round, text) in (1..).zip([b"one", b"two"]) {
        direction.stall();
        write_all(&*dialled.write, text).unwrap();
        eventually("the stall holds something", || direction.counts().stalled == round);
        let reader = run(move || (read_some(&mut *accepted.read, 3), accepted));
        reader.assert_blocked();
        direction.unstall();
        let (received, back) = reader.end();
        assert_eq!(&received, text);
        accepted = back;
    }
    // The other way was open all the time, and the end of a stream is held back like bytes.
    direction.stall();
    dialled.write.finish().unwrap();
    eventually("the stall holds the end", || direction.counts().stalled == 3);
    let reader = run(move || accepted.read.read(&mut [0; 8]).unwrap());
    reader.assert_blocked();
    direction.unstall();
    assert_eq!(reader.end(), 0);
}

fn a_stalled_writer_fills_what_lies_between_and_goes_on_after_the_stall() {
    let (faults, memory) = faulty();
    let direction = faults.towards_listener();
    let (dialled, mut accepted) = pair(&memory);
    direction.stall();
    let write = Arc::clone(&dialled.write);
    let writer = run(move || {
        let taken = fill(&*write);
        write_all(&*write, &vec![0; 4 << 20]).unwrap();
        taken + (4 << 20)
    });
    writer.assert_blocked();
    assert_eq!(direction.counts().stalled, 1);
    direction.unstall();
    let reader = run(move || read_to_end(&mut *accepted.read).0.len());
    let written = writer.end();
    dialled.write.finish().unwrap();
    assert_eq!(reader.end(), written);
}

fn a_connection_closed_by_both_sides_ends_its_thread_also_when_stalled() {
    let (faults, memory) = faulty();
    let (dialled, accepted) = pair(&memory);
    faults.towards_listener().stall();
    faults.towards_dialler().stall();
    write_all(&*dialled.write, b"never read").unwrap();
    eventually("the stall holds something", || faults.towards_listener().counts().stalled == 1);
    assert_eq!(faults.connections(), 1);
    drop((dialled, accepted));
    eventually("the thread of the connection ends", || faults.connections() == 0);
}

fn writing_to_a_side_that_is_gone_fails_although_what_it_wrote_is_stalled() {
    let (faults, memory) = faulty();
    let (dialled, accepted) = pair(&memory);
    faults.towards_dialler().stall();
    write_all(&*accepted.write, b"held").unwrap();
    eventually("the stall holds something", || faults.towards_dialler().counts().stalled == 1);
    drop(accepted);
    run(move || write_all(&*dialled.write, &vec![0; 64 << 20])).end().unwrap_err();
}

fn what_was_written_before_a_side_closed_is_still_delivered() {
    let (faults, memory) = faulty();
    faults.towards_listener().set_delay(DELAY);
    let (dialled, mut accepted) = pair(&memory);
    write_all(&*dialled.write, b"farewell").unwrap();
    drop(dialled);
    assert_eq!(read_to_end(&mut *accepted.read).0, b"farewell");
    assert!(faults.towards_listener().counts().delayed >= 1);
}

fn reads_are_no_longer_than_their_limit_also_before_establishing() {
    let (faults, memory) = faulty();
    faults.towards_listener().set_short_reads(Some(3));
    let mut listener = memory.listen(loopback()).unwrap();
    let (mut dialled, mut accepted) = pending(&memory, &mut *listener);
    dialled.try_write(b"abcdefgh").unwrap();
    let mut poll = Poll::new().unwrap();
    poll.registry().register(accepted.source(), Token(0), Interest::READABLE).unwrap();
    wait_for_events(&mut poll);
    let mut buffer = [0; 16];
    assert_eq!(accepted.try_read(&mut buffer).unwrap(), 3);
    poll.registry().deregister(accepted.source()).unwrap();
    let mut accepted = accepted.establish().unwrap();
    assert_eq!(accepted.read.read(&mut buffer).unwrap(), 3);
    assert_eq!(faults.towards_listener().counts().short_reads, 2);
    // The two that are left are no fault.
    assert_eq!(accepted.read.read(&mut buffer).unwrap(), 2);
    assert_eq!(faults.towards_listener().counts().short_reads, 2);
}

fn writes_take_no_more_than_their_limit_also_before_establishing() {
    let (faults, memory) = faulty();
    faults.towards_listener().set_short_writes(Some(3));
    let mut listener = memory.listen(loopback()).unwrap();
    let (mut dialled, accepted) = pending(&memory, &mut *listener);
    assert_eq!(dialled.try_write(b"abcdef").unwrap(), 3);
    let (dialled, mut accepted) = (dialled.establish().unwrap(), accepted.establish().unwrap());
    let slices = [IoSlice::new(b"d"), IoSlice::new(b""), IoSlice::new(b"efgh")];
    assert_eq!(dialled.write.write(&slices).unwrap(), 3);
    assert_eq!(dialled.write.try_write(&slices[2..]).unwrap(), 3);
    assert_eq!(faults.towards_listener().counts().short_writes, 3);
    assert_eq!(dialled.write.try_write(&[IoSlice::new(b"xyz")]).unwrap(), 3);
    assert_eq!(faults.towards_listener().counts().short_writes, 3, "all of it fits");
    assert_eq!(read_some(&mut *accepted.read, 12), b"abcdefefgxyz");
}

fn corruption_flips_one_bit_of_one_byte_of_each_connection() {
    for (connection, offset) in [(1, 0_usize), (2, 77_777), (3, 1 << 20)] {
        let (faults, memory) = faulty();
        faults.towards_listener().set_corrupt_at(Some(offset as u64));
        let mut expected = bytes(4, 1 << 20);
        if let Some(byte) = expected.get_mut(offset) {
            *byte ^= 1 << (offset % 8);
        }
        for _ in 0..connection {
            let (dialled, accepted) = pair(&memory);
            assert!(send(dialled, accepted, bytes(4, 1 << 20)) == expected);
        }
        let happened = if offset < expected.len() { connection } else { 0 };
        assert_eq!(faults.towards_listener().counts().corrupted, happened);
        assert_eq!(faults.towards_dialler().counts().corrupted, 0);
    }
}
