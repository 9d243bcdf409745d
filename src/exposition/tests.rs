use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn who_does_not_read_a_long_text_keeps_nobody_from_it_and_gets_all_of_it_later() {
    let bound = Bound::to("127.0.0.1:0".parse().unwrap()).unwrap();
    let (addr, metrics) = (bound.addr(), Arc::new(Metrics::default()));
    // More than any buffer on the way takes.
    let text: String = (0..1_500_000).map(|n| format!("{n:09}\n")).collect();
    let given = text.clone();
    let endpoint = bound.serve(metrics.clone(), move || given.clone()).unwrap();
    let ask = || {
        let mut stream = std::net::TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        stream
    };
    let all = |mut stream: std::net::TcpStream| {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    };
    let idle = ask();
    // It has begun to be answered, and cannot be done.
    assert!(idle.peek(&mut [0; 1]).unwrap() > 0);
    assert!(all(ask()) == text);
    assert!(all(idle) == text);
    assert!(endpoint.join(Instant::now() + PATIENCE).is_none());
    assert_eq!((metrics.snapshot().scrapes, metrics.snapshot().scrapes_failed), (2, 0));
}

#[test]
fn an_endpoint_that_is_dropped_ends() {
    let bound = Bound::to("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = bound.addr();
    let mut endpoint = bound.serve(Arc::new(Metrics::default()), String::new).unwrap();
    let thread = endpoint.thread.take().unwrap();
    endpoint.stop();
    assert!(thread.join_until(Instant::now() + PATIENCE).is_ok());
    assert!(std::net::TcpStream::connect(addr).is_err());
    // By its destructor alone.
    let bound = Bound::to(addr).unwrap();
    let held = Arc::new(());
    let kept = held.clone();
    drop(bound.serve(Arc::new(Metrics::default()), move || format!("{kept:?}")).unwrap());
    let deadline = Instant::now() + PATIENCE;
    while Arc::strong_count(&held) > 1 {
        assert!(Instant::now() < deadline, "its thread goes on");
        std::thread::yield_now();
    }
}
