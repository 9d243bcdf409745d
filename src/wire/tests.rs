use super::*;
use proptest::prelude::*;

fn data(lane: Lane, extra: u8, kind: u16, body: &[u8]) -> Vec<u8> {
    let header =
        FrameHeader::on_lane(FrameType::Data, lane, flags::NUMBERED | flags::WHOLE | extra, kind, body.len() as u32);
    let mut bytes = header.to_bytes().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

#[test]
fn the_header_lies_as_the_table_says() {
    let header = FrameHeader::on_lane(FrameType::Data, Lane::Bulk, flags::NUMBERED | flags::LAST, 0x1234, 0x0102_0304);
    assert_eq!(header.to_bytes(), [4, 3, 2, 1, 0x40, 0x05, 0x34, 0x12]);
    assert_eq!(FrameHeader::from_bytes(header.to_bytes()), header);
    let mut segment = Vec::new();
    put_segment(&mut segment, Lane::Reply, 7, 5);
    assert_eq!(segment, [16, 0, 0, 0, 0x11, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_length_above_the_limit_is_refused_before_its_body_arrives() {
    for (limit, length) in [(MAX_HANDSHAKE_BODY, MAX_HANDSHAKE_BODY as u32 + 1), (MAX_BODY, u32::MAX)] {
        let mut decoder = Decoder::new(limit);
        decoder.feed(&FrameHeader::control(FrameType::Hello, length).to_bytes());
        let before = decoder.space().len();
        assert_eq!(decoder.next_frame(), Err(WireError::TooLong { length, limit }));
        assert!(before <= Decoder::INITIAL, "nothing was reserved for it");
    }
}

#[test]
fn a_length_above_the_limit_is_refused_before_its_header_is_whole() {
    // An alert of TLS is a byte shorter than a header, and the last that is said.
    for (heard, refused) in [(3, false), (4, true), (7, true)] {
        let mut decoder = Decoder::new(MAX_HANDSHAKE_BODY);
        decoder.feed(&[21, 3, 3, 0, 2, 2, 10][..heard]);
        let limit = MAX_HANDSHAKE_BODY;
        let expected = if refused { Err(WireError::TooLong { length: 0x3_0315, limit }) } else { Ok(None) };
        assert_eq!(decoder.next_frame(), expected, "{heard} bytes");
    }
}

#[test]
fn the_buffer_grows_only_with_bytes_that_arrived() {
    let mut decoder = Decoder::new(MAX_BODY);
    decoder.feed(&FrameHeader::control(FrameType::Ack, MAX_BODY as u32).to_bytes());
    decoder.feed(&[0; 100]);
    assert_eq!(decoder.next_frame(), Ok(None));
    decoder.space();
    assert_eq!(decoder.capacity(), Decoder::INITIAL);
    decoder.feed(&vec![0; MAX_BODY - 100]);
    assert!(decoder.next_frame().unwrap().is_some());
    let large = decoder.capacity();
    assert!(large > MAX_BODY);
    for reads in 0.. {
        decoder.shrink_if_idle();
        if decoder.capacity() == 0 {
            // The end of the long frame may have come in a small read of its own.
            assert!(reads >= 7, "given back after {reads} small reads");
            break;
        }
        assert!(reads < 100 && decoder.capacity() == large);
        decoder.feed(&FrameHeader::control(FrameType::Beat, 0).to_bytes());
        assert!(decoder.next_frame().unwrap().is_some());
    }
}

#[test]
fn a_hello_may_be_lengthened_by_a_newer_version_and_no_other_body() {
    let ack = Ack { lane: 3, received: 9, done: 8, window: 7, exceptions: vec![Rejection { number: 4, cause: 2 }] };
    let mut bytes = encode(&ack).unwrap();
    assert_eq!(decode::<Ack>(&bytes), Ok(ack.clone()));
    bytes.push(0);
    assert!(decode::<Ack>(&bytes).is_err());
    assert_eq!(decode_prefix::<Ack>(&bytes), Ok(ack));
}

#[test]
fn a_body_that_claims_more_elements_than_it_has_bytes_is_refused() {
    let ack = Ack { lane: 3, received: 0, done: 0, window: 0, exceptions: vec![] };
    let mut bytes = encode(&ack).unwrap();
    let count = bytes.len() - 8;
    bytes[count..].copy_from_slice(&(1u64 << 40).to_le_bytes());
    assert!(matches!(decode::<Ack>(&bytes), Err(WireError::BadBody(_))));
}

#[test]
fn a_run_ends_at_another_lane_at_a_piece_and_after_a_wanted_acknowledgement() {
    let mut stream = Vec::new();
    for body in [&b"a"[..], b"bb"] {
        stream.extend(data(Lane::Normal, 0, 1, body));
    }
    stream.extend(data(Lane::Normal, flags::ACK_NOW, 1, b"now"));
    stream.extend(data(Lane::Normal, 0, 1, b"d"));
    stream.extend(data(Lane::Urgent, 0, 1, b"e"));
    let mut decoder = Decoder::new(MAX_BODY);
    decoder.feed(&stream);
    let lanes = std::iter::from_fn(|| {
        let run = decoder.peek_run(64).unwrap()?;
        decoder.take_run(run);
        Some((run.lane, run.frames, run.ack_now))
    });
    let expected = [(Lane::Normal, 3, true), (Lane::Normal, 1, false), (Lane::Urgent, 1, false)];
    assert_eq!(lanes.collect::<Vec<_>>(), expected);
    assert!(!decoder.is_mid_frame());
}

#[test]
fn a_heartbeat_survives_the_wire_and_an_old_or_a_newer_one_is_understood() {
    let beat = Beat { busy: true, clock: 1, heard: u64::MAX, delay: 3 };
    let mut stream = Vec::new();
    put_beat(&mut stream, &beat);
    let mut decoder = Decoder::new(MAX_BODY);
    decoder.feed(&stream);
    let frame = decoder.next_frame().unwrap().unwrap();
    assert_eq!((frame.header.frame_type(), Beat::from_body(frame.body)), (Some(FrameType::Beat), beat));
    assert_eq!(Beat::from_body(&[frame.body, &[9; 9]].concat()), beat);
    for old in [&[][..], &[0], &[0, 1, 2]] {
        assert_eq!(Beat::from_body(old), Beat { busy: false, clock: 0, heard: 0, delay: 0 });
    }
}

proptest! {
    #[test]
    fn any_split_of_the_stream_gives_the_same_frames(
        bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..40),
        cuts in prop::collection::vec(1usize..500, 1..60),
    ) {
        let stream: Vec<u8> = bodies.iter().enumerate().flat_map(|(i, b)| data(Lane::ALL[i % 4], 0, i as u16, b)).collect();
        let mut decoder = Decoder::new(MAX_BODY);
        let mut rest = &stream[..];
        let mut seen = Vec::new();
        let mut cuts = cuts.into_iter().cycle();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(cuts.next().unwrap().min(rest.len()));
            decoder.feed(now);
            rest = later;
            while let Some(frame) = decoder.next_frame().unwrap() {
                seen.push((frame.header.kind, frame.body.to_vec()));
            }
        }
        let expected: Vec<_> = bodies.into_iter().enumerate().map(|(i, b)| (i as u16, b)).collect();
        prop_assert_eq!(seen, expected);
        prop_assert!(!decoder.is_mid_frame());
    }

    #[test]
    fn no_bytes_make_the_decoder_panic_or_grow(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        let mut decoder = Decoder::new(MAX_HANDSHAKE_BODY);
        decoder.feed(&bytes);
        while let Ok(Some(frame)) = decoder.next_frame() {
            let _ = decode_prefix::<Hello>(frame.body);
            let _ = decode::<Attach>(frame.body);
            let _ = decode::<Goodbye>(frame.body);
        }
        let _ = decoder.peek_run(64);
        prop_assert!(decoder.capacity() <= Decoder::LARGEST);
    }
}
