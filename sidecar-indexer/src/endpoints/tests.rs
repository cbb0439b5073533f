use super::*;

fn at(port: u16) -> Wanted {
    Wanted::bare(SocketAddr::from(([10, 0, 0, 1], port)), "m")
}

fn with_events(port: u16, events: &str, replay: &str) -> Wanted {
    Wanted { events: Events::At(Sockets { events: events.into(), replay: Some(replay.into()) }), ..at(port) }
}

fn gathered(file: Vec<Wanted>, dns: Vec<Wanted>) -> Gathered {
    let lists = BTreeMap::from([(Provider::File, file), (Provider::Dns, dns)]);
    gather(&Known { lists, ..Known::default() }, &BTreeSet::from(["m"]))
}

#[test]
fn an_address_that_two_providers_give_is_the_first_ones() {
    let fast = Wanted { prefill_rate: 1.0, ..at(1) };
    let all = gathered(vec![fast.clone()], vec![at(1), at(2)]);
    assert_eq!(all.endpoints, [fast, at(2)]);
    assert!(all.notes.iter().any(|note| note.contains("10.0.0.1:1 is named twice")), "{:?}", all.notes);
}

#[test]
fn endpoints_of_models_that_are_not_there_are_left_out() {
    let all = gathered(vec![Wanted { model: "else".into(), ..at(1) }, at(2)], vec![]);
    assert_eq!(all.endpoints, [at(2)]);
    assert_eq!(all.notes.len(), 1);
}

/// Else one engine's cache would be taken for two.
#[test]
fn events_are_read_for_one_endpoint_only() {
    let first = with_events(1, "tcp://a:1", "tcp://a:2");
    for second in [
        with_events(2, "tcp://a:01", "tcp://a:3"),
        with_events(2, "tcp://a:3", "tcp://a:2"),
        with_events(2, "tcp://a:2", "tcp://a:3"),
    ] {
        let all = gathered(vec![first.clone()], vec![second]);
        assert_eq!(all.endpoints, [first.clone(), at(2)]);
        assert_eq!(all.notes.len(), 1);
    }
    let other = with_events(2, "tcp://a:3", "tcp://a:4");
    assert_eq!(gathered(vec![first.clone(), other.clone()], vec![]).endpoints, [first, other]);
}

#[test]
fn the_hub_tells_of_changes_only() {
    let hub = Hub::default();
    let mut changes = hub.changes();
    hub.give(Provider::Dns, vec![at(1)]);
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    hub.give(Provider::Dns, vec![at(1)]);
    assert!(!changes.has_changed().unwrap());
    hub.give(Provider::Dns, vec![]);
    assert!(changes.has_changed().unwrap());
}
