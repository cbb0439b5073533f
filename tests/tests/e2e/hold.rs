//! A prompt goes to the replica that holds it, however it is held meanwhile.

use super::{BOTH, cached, chat, engine, known_to_table, post, text};
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use warmpath_tests::harness::{
    Client, Engine, Envoy, EnvoyConfig, EnvoyOptions, Indexer, Stack, StackOptions, eventually,
};

#[tokio::test]
async fn prompts_go_to_their_holders_both_ways_of_holding() {
    for envoy in BOTH {
        let stack = Stack::start(StackOptions { engines: 4, envoy, ..StackOptions::default() }).await.unwrap();
        let tenants: Vec<String> = (0..8).map(|tenant| text(tenant, 300)).collect();
        let mut home: HashMap<usize, u16> = HashMap::new();
        for turn in 0..4 {
            for (tenant, system) in tenants.iter().enumerate() {
                let reply = post(&stack, &chat(system, &format!("question {turn}"), 2), &[]).await;
                let at = *home.entry(tenant).or_insert(engine(&reply));
                if turn > 0 {
                    assert_eq!(engine(&reply), at, "{envoy}: tenant {tenant} moved in turn {turn}");
                    assert!(cached(&reply) > 200, "{envoy}: tenant {tenant} found only {} tokens", cached(&reply));
                }
            }
            for system in &tenants {
                known_to_table(&stack, system).await;
            }
        }
        let homes: HashSet<u16> = home.values().copied().collect();
        assert!(homes.len() >= 3, "{envoy}: 8 tenants should spread over 4 engines: {home:?}");
        assert!(stack.filter_stat("decisions.holder").await.unwrap() >= 24);
    }
}

#[tokio::test]
async fn a_holder_that_no_placement_told_of_is_found_by_its_events() {
    let stack = Stack::start(StackOptions { engines: 4, ..StackOptions::default() }).await.unwrap();
    let entries = async || {
        let metrics = stack.indexer.metrics().await.unwrap();
        let entries = metrics.lines().find_map(|line| line.strip_prefix("warmpath_table_entries "));
        entries.expect("the indexer counts its entries").parse::<u64>().unwrap()
    };
    for (tenant, warm) in stack.engines.iter().enumerate() {
        // Behind the gateway's back: only the events can tell.
        let system = text(100 + tenant as u64, 300);
        let direct = warm.url(super::CHAT);
        let before = entries().await;
        let reply = stack.client.post(&direct, &[], &chat(&system, "warm up", 1)).await.unwrap();
        assert_eq!(engine(&reply), warm.address.port());
        eventually("the prompt is indexed", Duration::from_secs(5), async || Ok(entries().await > before))
            .await
            .unwrap();
        // On its way to the gateway; the sync's lag is some 10 ms.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let reply = post(&stack, &chat(&system, "and now through the gateway", 1), &[]).await;
        assert_eq!(engine(&reply), warm.address.port(), "tenant {tenant}");
        assert!(cached(&reply) > 200);
    }
}

#[tokio::test]
async fn completions_salts_and_array_encoded_events_work_alike() {
    let engine_flags = vec!["--encoding".to_owned(), "array".to_owned()];
    let stack = Stack::start(StackOptions { engines: 3, engine_flags, ..StackOptions::default() }).await.unwrap();
    let prompt = text(7, 400);
    let url = stack.envoy.url("/v1/completions");
    let mut homes: HashMap<Option<&str>, HashSet<u16>> = HashMap::new();
    for turn in 0..5 {
        for salt in [None, Some("a"), Some("b")] {
            let mut body = serde_json::json!({"model": "tiny", "prompt": format!("{prompt} {turn}"), "max_tokens": 1});
            if let Some(salt) = salt {
                body["cache_salt"] = salt.into();
            }
            let reply = stack.client.post(&url, &[], &body).await.unwrap();
            homes.entry(salt).or_default().insert(engine(&reply));
            assert_eq!(cached(&reply) > 200, turn > 0, "salt {salt:?} turn {turn}: {}", cached(&reply));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    assert!(homes.values().all(|engines| engines.len() == 1), "{homes:?}");
}

#[tokio::test]
async fn a_clients_own_routing_header_is_ignored() {
    for envoy in BOTH {
        let stack = Stack::start(StackOptions { envoy, ..StackOptions::default() }).await.unwrap();
        let system = text(1, 300);
        let holder = known_to_table(&stack, &system).await;
        let other = stack.engines.iter().map(|e| e.address).find(|a| *a != holder).unwrap().to_string();
        for _ in 0..10 {
            let steer = [("x-gateway-destination-endpoint", other.as_str())];
            assert_eq!(engine(&post(&stack, &chat(&system, "steered?", 1), &steer).await), holder.port(), "{envoy}");
        }
    }
}

#[tokio::test]
async fn a_clients_own_routing_header_is_ignored_even_when_nothing_is_decided() {
    // No indexer ever: the cluster's balancer decides, and must not listen to the client either.
    let engines = [Engine::start(&[]).await.unwrap(), Engine::start(&[]).await.unwrap()];
    for envoy in BOTH {
        let stack = super::failures::without_indexer(envoy, &engines).await;
        let wanted = engines[0].address.to_string();
        let mut seen = HashSet::new();
        for _ in 0..40 {
            let steer = [("x-gateway-destination-endpoint", wanted.as_str())];
            let reply = stack.client.post(&stack.envoy.url(super::CHAT), &steer, &chat("x", "y", 1)).await.unwrap();
            seen.insert(engine(&reply));
        }
        assert_eq!(seen.len(), 2, "{envoy}: every request went where the client said");
    }
}

#[tokio::test]
async fn without_the_pause_flag_requests_are_let_go_instead_of_hanging() {
    let engines = vec![Engine::start(&[]).await.unwrap()];
    let indexer = Indexer::start(Indexer::config(&engines)).await.unwrap();
    let mut config = EnvoyConfig::shipped("warmpath.yaml").unwrap();
    config.set_endpoints("engines", &[engines[0].address]).unwrap();
    config.set_endpoints("warmpath_indexer", &[indexer.address]).unwrap();
    let wasm = config.http_filter("warmpath").unwrap().pointer_mut("/typed_config/config").unwrap();
    wasm.as_object_mut().unwrap().remove("allow_on_headers_stop_iteration").expect("the flag is in the file");
    let options = EnvoyOptions::new(config);
    let envoy = Envoy::start(options).await.unwrap();
    let client = Client::new().unwrap();
    let mut quickest = Duration::MAX;
    // Some more than three: a busy machine is slow now and then.
    for number in 0..8 {
        let start = std::time::Instant::now();
        let reply = client.post(&envoy.url(super::CHAT), &[], &chat("x", "y", 1)).await.unwrap();
        assert_eq!(engine(&reply), engines[0].address.port());
        let took = start.elapsed();
        assert!(took < Duration::from_secs(3), "{took:?}");
        if number >= 3 {
            quickest = quickest.min(took);
        }
    }
    assert!(quickest < Duration::from_millis(700), "after three rescues pausing ends: {quickest:?}");
    assert!(envoy.process.log().contains("allow_on_headers_stop_iteration"), "the log says what to do");
}

/// Three requests whose bodies came late once made a worker believe that its host never shows bodies.
#[tokio::test]
async fn slow_first_clients_do_not_switch_pausing_off() {
    let stack = Stack::start(StackOptions::default()).await.unwrap();
    let body = chat("x", "y", 1).to_string();
    let slow = (0..4).map(async |_| {
        let mut client = TcpStream::connect(stack.envoy.address).await.unwrap();
        let path = super::CHAT;
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        client.write_all(head.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1600)).await;
        client.write_all(body.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    });
    futures::future::join_all(slow).await;
    let decided = stack.filter_stat("decisions.cold").await.unwrap();
    assert_eq!(decided, 0, "a request that was let go is not decided");
    let system = text(31, 200);
    let holder = known_to_table(&stack, &system).await;
    assert_eq!(engine(&post(&stack, &chat(&system, "q", 1), &[]).await), holder.port());
}

#[tokio::test]
async fn requests_that_are_not_understood_stay_with_the_engines_of_their_model() {
    let mut engines = Vec::new();
    for model in ["tiny", "tiny", "other", "other"] {
        engines.push(Engine::start(&["--model", model]).await.unwrap());
    }
    let mut config = Indexer::config(&engines);
    let mut other = config["models"][0].clone();
    other["name"] = "other".into();
    config["models"].as_array_mut().unwrap().push(other);
    for endpoint in [2, 3] {
        config["endpoints"][endpoint]["model"] = "other".into();
    }
    let indexer = Indexer::start(config).await.unwrap();
    let mut config = EnvoyConfig::shipped("warmpath.yaml").unwrap();
    config.set_endpoints("engines", &engines.iter().map(|e| e.address).collect::<Vec<_>>()).unwrap();
    config.set_endpoints("warmpath_indexer", &[indexer.address]).unwrap();
    config.set_filter_option("max_body_bytes", 20_000.into()).unwrap();
    let envoy = Envoy::start(EnvoyOptions::new(config)).await.unwrap();
    let mut stack = Stack::assemble(envoy, indexer, engines).unwrap();
    stack.fleet_known().await.unwrap();
    let of_other: Vec<u16> = stack.engines[2..].iter().map(|e| e.address.port()).collect();
    let long = text(32, 10_000);
    for i in 0..12 {
        for content in [json!(["hi", i]), json!([{"text": "no type"}, i]), json!([{"type": "image_url"}]), json!(long)]
        {
            let body = json!({"model": "other", "messages": [{"role": "user", "content": content}], "max_tokens": 1});
            let reply = post(&stack, &body, &[]).await;
            let port: u16 = reply.header("x-engine").unwrap().parse().unwrap();
            assert!(of_other.contains(&port), "sent to an engine of another model: {} {}", reply.status, reply.body);
        }
    }
}
