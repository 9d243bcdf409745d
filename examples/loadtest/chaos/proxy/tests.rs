//! The proxy between two sockets that speak frames, or records of TLS: what each fault looks like at both ends.

#![expect(clippy::disallowed_methods, reason = "the streams of these tests have no read timeout shorter than the test")]

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use crossbeam_channel::{Receiver, Sender};
use threadwire::wire::{Attach, FrameHeader, FrameType, LANES, Lane, LaneAttach, flags, put_body, put_segment};

use super::*;

const LONG: Duration = Duration::from_secs(30);

/// A proxy of one link that serves, and the two who are to be connected by it.
struct Path {
    far: TcpListener,
    door: SocketAddr,
    orders: Sender<Order>,
    waker: Arc<Waker>,
    told: Receiver<(Kind, u64, u64)>,
    /// Numbers given in each direction.
    next: [u64; 2],
}

impl Path {
    fn order(&self, order: Order) {
        self.orders.send(order).unwrap();
        self.waker.wake().unwrap();
    }

    fn plan(&self, kind: Kind, way: Way, lasts: Duration) {
        self.order(Order::Harm(vec![vec![LinkFault { kind, way, skip: 1, share: 0.5, lasts, rest: Duration::ZERO }]]));
    }

    /// Connects, and lets both sides attach.
    fn connect(&mut self) -> (TcpStream, TcpStream) {
        let near = TcpStream::connect(self.door).unwrap();
        let (far, _) = self.far.accept().unwrap();
        let mut attach = Vec::new();
        let lanes = [LaneAttach::default(); LANES];
        let body = Attach { epoch: 1, token: [0; 16], state: 1, knows: None, lanes };
        put_body(&mut attach, FrameType::Attach, &body).unwrap();
        for mut stream in [&near, &far] {
            stream.set_read_timeout(Some(LONG)).unwrap();
            stream.write_all(&attach).unwrap();
        }
        for mut stream in [&near, &far] {
            stream.read_exact(&mut vec![0; attach.len()]).unwrap();
        }
        self.next = [0; 2];
        (near, far)
    }

    /// Connects, and lets both sides say as many records as before their first message.
    fn connect_secure(&mut self) -> (TcpStream, TcpStream) {
        let near = TcpStream::connect(self.door).unwrap();
        let (far, _) = self.far.accept().unwrap();
        for (mut from, mut to, records) in [(&near, &far, 4), (&far, &near, 3)] {
            to.set_read_timeout(Some(LONG)).unwrap();
            let bytes = record(100).repeat(records);
            from.write_all(&bytes).unwrap();
            to.read_exact(&mut vec![0; bytes.len()]).unwrap();
        }
        (near, far)
    }

    /// The bytes of the next message in a direction.
    fn message(&mut self, way: Way) -> Vec<u8> {
        let mut bytes = Vec::new();
        let next = &mut self.next[way as usize];
        put_segment(&mut bytes, Lane::Normal, *next, 0);
        *next += 1;
        let header = FrameHeader::on_lane(FrameType::Data, Lane::Normal, flags::NUMBERED | flags::WHOLE, 0, 1000);
        bytes.extend_from_slice(&header.to_bytes());
        bytes.resize(bytes.len() + 1000, 5);
        bytes
    }
}

/// What looks like a record of TLS with a sealed body of so many bytes.
fn record(length: u16) -> Vec<u8> {
    let [high, low] = length.to_be_bytes();
    let mut bytes = vec![23, 3, 3, high, low];
    bytes.resize(5 + usize::from(length), 6);
    bytes
}

/// Runs `test` with a proxy; what that counted.
fn with_proxy(test: impl FnOnce(&mut Path)) -> Passed {
    with_proxy_of(false, test)
}

/// The same, of TLS or not.
fn with_proxy_of(secure: bool, test: impl FnOnce(&mut Path)) -> Passed {
    let (said, told) = unbounded();
    let proxy = Proxy::new(1, secure, move |answer| {
        if let Answer::Harmed { kind, held, frames } = answer {
            said.send((*kind, *held, *frames)).unwrap();
        }
        Ok(())
    });
    let proxy = proxy.unwrap();
    let (orders, rx) = unbounded();
    let far = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = Some(far.local_addr().unwrap());
    let (door, waker) = (proxy.links[0].door.addr(), Arc::clone(&proxy.waker));
    let mut path = Path { far, door, orders, waker, told, next: [0; 2] };
    thread::scope(|scope| {
        let served = scope.spawn(move || proxy.serve(&rx));
        path.order(Order::Aim { link: 0, target });
        test(&mut path);
        path.order(Order::Finish);
        served.join().unwrap().unwrap()
    })
}

/// Sends messages one way until the fault has happened and the sender notices, if it does; what the other side read, and
/// how that ended.
fn until_harmed(path: &mut Path, from: &mut TcpStream, to: &mut TcpStream, way: Way) -> (usize, Option<ErrorKind>) {
    let read = thread::scope(|scope| {
        let reading = scope.spawn(move || {
            let mut all = Vec::new();
            let ended = to.read_to_end(&mut all);
            (all.len(), ended.err().map(|error| error.kind()))
        });
        while path.told.is_empty() {
            let message = path.message(way);
            if from.write_all(&message).is_err() {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        reading.join().unwrap()
    });
    let (_, held, frames) = path.told.recv_timeout(LONG).unwrap();
    assert!(held > 0 && frames > 0, "{held} bytes, {frames} frames");
    read
}

#[test]
fn a_cut_in_a_body_lets_a_part_of_it_pass_and_resets_both_sides() {
    let passed = with_proxy(|path| {
        let (mut near, mut far) = path.connect();
        path.plan(Kind::CutBody, Way::Up, Duration::ZERO);
        let (read, ended) = until_harmed(path, &mut near, &mut far, Way::Up);
        // Whole messages, and of the last one the segment, the header, and half of the body.
        assert_eq!((read % 1032) / 100, 5, "{read}");
        assert_eq!(ended, Some(ErrorKind::ConnectionReset));
        assert_eq!(near.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        path.connect();
    });
    assert_eq!(passed.reconnects, 1);
}

#[test]
fn a_half_close_ends_one_direction_and_leaves_the_other_one() {
    with_proxy(|path| {
        let (mut near, mut far) = path.connect();
        path.plan(Kind::HalfClose, Way::Down, Duration::ZERO);
        let (_, ended) = until_harmed(path, &mut far, &mut near, Way::Down);
        assert_eq!(ended, None, "an end of stream, no error");
        near.write_all(b"still").unwrap();
        let mut heard = [0; 5];
        far.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"still");
        drop(near);
        assert_eq!(far.read(&mut heard).unwrap(), 0);
    });
}

#[test]
fn a_stall_lasts_before_the_reset() {
    let lasts = Duration::from_millis(60);
    with_proxy(|path| {
        let (mut near, mut far) = path.connect();
        path.plan(Kind::StallReset, Way::Up, lasts);
        let began = Instant::now();
        let (_, ended) = until_harmed(path, &mut near, &mut far, Way::Up);
        assert!(began.elapsed() >= lasts);
        assert_eq!(ended, Some(ErrorKind::ConnectionReset));
    });
}

#[test]
fn a_closed_listener_refuses_and_is_found_again_at_its_address() {
    let passed = with_proxy(|path| {
        let (mut near, mut far) = path.connect();
        path.plan(Kind::Listener, Way::Up, Duration::from_millis(200));
        until_harmed(path, &mut near, &mut far, Way::Up);
        let mut refused = 0;
        while let Err(error) = TcpStream::connect(path.door) {
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
            refused += 1;
            thread::sleep(Duration::from_millis(1));
        }
        assert!(refused > 0);
        // The one that found it open.
        drop(path.far.accept().unwrap());
        path.connect();
    });
    assert_eq!(passed.reconnects, 1);
}

#[test]
fn a_handshake_is_cut_on_the_connection_after_the_present_one() {
    with_proxy(|path| {
        let (mut near, _far) = path.connect();
        path.order(Order::Harm(vec![vec![LinkFault {
            kind: Kind::CutHandshake,
            way: Way::Up,
            skip: 0,
            share: 0.5,
            lasts: Duration::ZERO,
            rest: Duration::ZERO,
        }]]));
        assert_eq!(near.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        let mut near = TcpStream::connect(path.door).unwrap();
        let (mut far, _) = path.far.accept().unwrap();
        let header = FrameHeader::control(FrameType::Hello, 100);
        near.write_all(&[&header.to_bytes()[..], &[3; 100]].concat()).unwrap();
        let mut read = Vec::new();
        assert_eq!(far.read_to_end(&mut read).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(read.len() <= 59, "{}", read.len());
        assert_eq!(path.told.recv_timeout(LONG).unwrap().0, Kind::CutHandshake);
        path.connect();
    });
}

#[test]
fn over_tls_a_cut_in_a_record_lets_a_part_of_it_pass_and_resets_both_sides() {
    for (kind, passes) in [(Kind::CutHeader, 1..5), (Kind::CutBody, 1000..3005)] {
        let passed = with_proxy_of(true, |path| {
            let (mut near, mut far) = path.connect_secure();
            path.plan(kind, Way::Down, Duration::ZERO);
            while path.told.is_empty() && far.write_all(&record(3000)).is_ok() {
                thread::sleep(Duration::from_millis(1));
            }
            let mut read = Vec::new();
            assert_eq!(near.read_to_end(&mut read).unwrap_err().kind(), ErrorKind::ConnectionReset);
            assert!(passes.contains(&(read.len() % 3005)), "{kind:?}: {}", read.len());
            let (told, held, _) = path.told.recv_timeout(LONG).unwrap();
            assert!(told == kind && held > 0);
            path.connect_secure();
        });
        assert_eq!(passed.reconnects, 1);
    }
}

#[test]
fn an_altered_byte_has_happened_when_its_receiver_has_ended_the_connection() {
    with_proxy_of(true, |path| {
        let (mut near, mut far) = path.connect_secure();
        path.plan(Kind::Flip, Way::Up, Duration::ZERO);
        let (sent, mut altered, mut all) = (record(3000), Vec::new(), 0);
        while altered.is_empty() {
            near.write_all(&sent).unwrap();
            let mut read = vec![0; sent.len()];
            far.read_exact(&mut read).unwrap();
            altered = (0..sent.len()).filter(|at| read[*at] != sent[*at]).map(|at| (at, read[at] ^ sent[at])).collect();
            all += 1;
            assert!(all < 100_000, "it is never altered");
        }
        // One bit of one byte, half way into the body; what follows passes as it is.
        assert_eq!(altered, [(1505, 1)]);
        near.write_all(&sent).unwrap();
        let mut read = vec![0; sent.len()];
        far.read_exact(&mut read).unwrap();
        assert_eq!(read, sent);
        assert!(path.told.is_empty(), "nobody has noticed");
        drop(far);
        // As a session whose other side has ended the connection.
        assert_eq!(near.read(&mut [0]).unwrap(), 0);
        drop(near);
        let (kind, held, frames) = path.told.recv_timeout(LONG).unwrap();
        assert!(kind == Kind::Flip && held > 0 && frames > 0, "{held} bytes, {frames} records");
    });
}

#[test]
fn bytes_pass_unchanged_both_ways_and_so_does_each_end() {
    with_proxy(|path| {
        let (near, far) = path.connect();
        let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
        let bytes = &bytes;
        thread::scope(|scope| {
            for stream in [&near, &far] {
                scope.spawn(move || {
                    let mut writer = stream;
                    writer.write_all(bytes).unwrap();
                    writer.shutdown(std::net::Shutdown::Write).unwrap();
                });
                scope.spawn(move || {
                    let mut read = Vec::new();
                    stream.try_clone().unwrap().read_to_end(&mut read).unwrap();
                    assert!(read == *bytes);
                });
            }
        });
    });
}
