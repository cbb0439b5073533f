use super::*;

/// What vLLM 0.32.0's own function answers for two ranks, `--kv-events-config` as in the README.
const ANSWER: &str = r#"{"0":{"enable_kv_cache_events":true,"publisher":"zmq","endpoint":"tcp://*:5557",
"replay_endpoint":"tcp://*:5657","buffer_steps":10000,"hwm":100000,"max_queue_size":100000,"topic":"kv@pod@m"},
"1":{"enable_kv_cache_events":true,"publisher":"zmq","endpoint":"tcp://*:5558","replay_endpoint":"tcp://*:5658",
"buffer_steps":10000,"hwm":100000,"max_queue_size":100000,"topic":"kv@pod@m"}}"#;

fn address() -> SocketAddr {
    "10.0.0.7:8000".parse().unwrap()
}

fn at(events: &str, replay: Option<&str>) -> Option<Sockets> {
    Some(Sockets { events: events.into(), replay: replay.map(str::to_owned) })
}

#[test]
fn ranks_are_read_from_todays_answer() {
    let expected = Sources::from([
        (0, at("tcp://10.0.0.7:5557", Some("tcp://10.0.0.7:5657"))),
        (1, at("tcp://10.0.0.7:5558", Some("tcp://10.0.0.7:5658"))),
    ]);
    assert_eq!(read(ANSWER.as_bytes(), address()).unwrap(), expected);
    assert_eq!(read(b"{}", address()).unwrap(), Sources::new());
    assert!(read(br#"{"detail":"Not Found"}"#, address()).is_err());
}

#[test]
fn sockets_that_cannot_be_reached_are_none() {
    let one = |publisher: &str| read(format!("{{\"0\":{publisher}}}").as_bytes(), address()).unwrap()[&0].clone();
    assert_eq!(one(r#"{"enable_kv_cache_events":false,"publisher":"null","endpoint":"tcp://*:5557"}"#), None);
    let zmq = |endpoint: &str| {
        one(&format!(r#"{{"enable_kv_cache_events":true,"publisher":"zmq","endpoint":"{endpoint}"}}"#))
    };
    assert_eq!(zmq("tcp://0.0.0.0:1"), at("tcp://10.0.0.7:1", None));
    assert_eq!(zmq("tcp://[::]:1"), at("tcp://10.0.0.7:1", None));
    assert_eq!(zmq("tcp://engine-0:1"), at("tcp://engine-0:1", None));
    for unreachable in ["ipc:///tmp/x", "inproc://x", "tcp://*:0", "tcp://*"] {
        assert_eq!(zmq(unreachable), None, "{unreachable}");
    }
}

#[test]
fn ranks_behind_one_address_are_counted_from_zero() {
    let wanted = Wanted { events: Events::Ask, ..Wanted::bare(address(), "m") };
    let ranks = |sources: Option<&Sources>| {
        let ranks = expand(&wanted, sources);
        ranks.into_iter().map(|w| (w.key.rank, w.engine, w.events != Events::None)).collect::<Vec<_>>()
    };
    let first = at("tcp://10.0.0.7:1", None);
    assert_eq!(ranks(None), [(None, None, false)]);
    assert_eq!(ranks(Some(&Sources::new())), [(None, None, false)]);
    assert_eq!(ranks(Some(&Sources::from([(3, first.clone())]))), [(None, None, true)]);
    // One of several nodes of a group: its ranks are 8 and 9 in the group's count, 0 and 1 in the header's.
    let two = Sources::from([(8, first), (9, None)]);
    assert_eq!(ranks(Some(&two)), [(Some(0), Some(8), true), (Some(1), Some(9), false)]);
}
