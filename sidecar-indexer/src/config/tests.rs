use super::*;

const LEAST: &str = "
models: [{name: tiny, tokenizer: tok}]
endpoints: [{address: '127.0.0.1:8000', model: tiny}]
";

fn error(text: &str) -> String {
    format!("{:#}", Config::parse(text).unwrap_err())
}

#[test]
fn the_example_is_valid_and_shows_the_defaults() {
    let mut example = Config::parse(&Config::example()).unwrap();
    let least = Config::parse(LEAST).unwrap();
    let (model, endpoint) = (example.models[0].clone(), example.endpoints[0].clone());
    let plain: Model = serde_yaml_ng::from_str("{name: tiny, tokenizer: tok}").unwrap();
    let (name, tokenizer, aliases) = (model.name.clone(), model.tokenizer.clone(), model.aliases.clone());
    assert_eq!(model, Model { name, tokenizer, aliases, ..plain });
    let wanted = file::list(&example);
    assert_eq!(wanted[0].metrics.as_deref(), Some("http://10.0.0.11:8000/metrics"));
    assert!(matches!(&wanted[0].events, Wired::At(at) if at.events == "tcp://10.0.0.11:5557"));
    let plain: Endpoint = serde_yaml_ng::from_str("{model: tiny}").unwrap();
    let Endpoint { address, model, events, replay, .. } = endpoint.clone();
    assert_eq!(endpoint, Endpoint { address, model, events, replay, ..plain });
    assert_eq!(endpoint.prefill_tokens_per_second, least.endpoints[0].prefill_tokens_per_second);
    (example.models, example.endpoints) = (least.models.clone(), least.endpoints.clone());
    assert_eq!(example, least);
}

#[test]
fn an_unknown_option_is_refused_by_name_and_line() {
    let error = error(&LEAST.replace("model: tiny}", "model: tiny, evnts: x}"));
    assert!(error.contains("endpoints[0]") && error.contains("evnts") && error.contains("line 3"), "{error}");
}

#[test]
fn values_out_of_range_are_refused_with_the_option() {
    for (from, to, expected) in [
        ("models:", "stride_bytes: 100\nmodels:", "stride_bytes: 100"),
        ("models:", "coalesce_ms: 5000\nmodels:", "coalesce_ms"),
        ("models:", "tiers: []\nmodels:", "tiers"),
        ("127.0.0.1:8000", "localhost:8000", "endpoints[0]: address"),
        ("model: tiny}", "model: huge}", "endpoints[0].model: \"huge\""),
        ("model: tiny}", "model: tiny, events: 'tcp://*:5557'}", "endpoints[0]: events"),
        ("model: tiny}", "model: tiny, replay: 'tcp://a:1'}", "endpoints[0]: replay"),
        ("model: tiny}", "model: tiny, prefill_tokens_per_second: 0}", "prefill_tokens_per_second"),
        ("tokenizer: tok}", "tokenizer: tok, aliases: [tiny]}", "models[0]"),
        ("tokenizer: tok}", "tokenizer: tok, time_zone: Berlin}", "models[0].time_zone: \"Berlin\" is no time zone"),
        ("tokenizer: tok}", "tokenizer: tok, content_format: parts}", "`auto`, `string`, `openai`"),
        (
            "tokenizer: tok}",
            "tokenizer: tok, default_chat_template_kwargs: {tokenize: true}}",
            "models[0].default_chat_template_kwargs: \"tokenize\"",
        ),
        ("127.0.0.1:8000'", "127.0.0.1:8000', dns: 'a:1'", "endpoints[0]: address: give either"),
        ("address: '127.0.0.1:8000', ", "", "endpoints[0]: address: give either"),
        ("address: '127.0.0.1:8000'", "dns: engines", "endpoints[0]: dns: \"engines\" is not name:port"),
        ("address: '127.0.0.1:8000'", "dns: 'e:1', events: 'tcp://e:2'", "write {ip} for the address's own IP"),
        ("model: tiny}", "model: tiny, events: auto, replay: 'tcp://a:1'}", "endpoints[0]: replay"),
        ("model: tiny}", "model: tiny, events: auto, data_parallel_ranks: 2}", "endpoints[0]: data_parallel_ranks"),
        ("model: tiny}", "model: tiny, data_parallel_ranks: 0}", "endpoints[0]: data_parallel_ranks"),
        ("model: tiny}", "model: tiny, data_parallel_ranks: 2, events: 'tcp://a:65535'}", "leaves no ports for 2"),
        ("model: tiny}", "model: tiny, data_parallel_ranks: 2, events: 'ipc://x'}", "has no port"),
        ("models:", "dns_interval_ms: 1\nmodels:", "dns_interval_ms"),
        ("models:", "store: 'redis://'\nmodels:", "store: \"redis://\" is not redis://HOST:PORT"),
        ("models:", "store: 'redis://a:x'\nmodels:", "store: \"redis://a:x\" is not redis://HOST:PORT"),
        ("model: tiny}", "model: tiny, metrics: 'http://'}", "endpoints[0]: metrics: \"http://\" is not"),
        ("address: '127.0.0.1:8000'", "dns: 'e:1', metrics: 'http://e:2/m'", "write {ip} for the address's own IP"),
        (
            "model: tiny}]",
            "model: tiny, events: bind, data_parallel_ranks: 2}]\nbind: 'tcp://*:65535'",
            "leaves no ports for the ranks that dial in",
        ),
        ("127.0.0.1:8000", "127.0.0.1:0", "endpoints[0]: address: \"127.0.0.1:0\" has port 0"),
        ("127.0.0.1:8000", "127.0.0.1:08000", "write \"127.0.0.1:8000\""),
        ("127.0.0.1:8000", "[0::1]:8000", "write \"[::1]:8000\""),
    ] {
        let error = error(&LEAST.replace(from, to));
        assert!(error.contains(expected), "{to}: {error}");
    }
}

#[test]
fn urls_that_cannot_be_connected_to_are_refused() {
    for url in ["tcp://a", "tcp://a:", "tcp://:5557", "tcp://a:0", "tcp://a:70000", "http://a:1", "a:1", "ipc://"] {
        for option in ["events", "replay"] {
            let other = if option == "replay" { "events: 'tcp://b:1', " } else { "" };
            let error = error(&LEAST.replace("model: tiny}", &format!("model: tiny, {other}{option}: '{url}'}}")));
            assert!(error.contains(&format!("endpoints[0]: {option}: {url:?}")), "{url}: {error}");
            assert!(error.contains("write tcp://HOST:PORT"), "{url}: {error}");
        }
    }
    for url in ["tcp://engine-0.engines:5557", "tcp://[::1]:5557", "ipc:///run/events"] {
        Config::parse(&LEAST.replace("model: tiny}", &format!("model: tiny, events: '{url}'}}"))).unwrap();
    }
}

#[test]
fn engines_do_not_share_where_they_publish_or_replay() {
    let config = |first: &str, second: &str| {
        let endpoint = |port: u16, more: &str| format!("{{address: '127.0.0.1:{port}', model: tiny, {more}}}");
        let endpoints = format!("[{}, {}]", endpoint(8000, first), endpoint(8001, second));
        Config::parse(&LEAST.replace("[{address: '127.0.0.1:8000', model: tiny}]", &endpoints))
    };
    let first = "events: 'tcp://a:1', replay: 'tcp://a:2'";
    config(first, "events: 'tcp://a:3', replay: 'tcp://a:4'").unwrap();
    for (second, option) in [
        ("events: 'tcp://a:1', replay: 'tcp://a:4'", "events"),
        ("events: 'tcp://a:01'", "events"),
        ("events: 'tcp://a:3', replay: 'tcp://a:2'", "replay"),
        ("events: 'tcp://a:3', replay: 'tcp://a:3'", "replay"),
    ] {
        let error = format!("{:#}", config(first, second).unwrap_err());
        assert!(error.contains(&format!("endpoints[1].{option}: tcp://a:")), "{second}: {error}");
        assert!(error.contains("there twice"), "{second}: {error}");
    }
}

#[test]
fn a_fleet_without_engines_is_refused() {
    let error = error("models: [{name: tiny, tokenizer: tok}]\nendpoints: []");
    assert!(error.contains("endpoints: the list is empty"), "{error}");
}
