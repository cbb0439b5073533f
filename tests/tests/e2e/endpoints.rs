//! Endpoints that come and go, and data-parallel ranks behind one address.

use super::{BOTH, cached, chat, engine, known_to_table, post, text};
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use warmpath_tests::harness::{Engine, Envoy, EnvoyConfig, EnvoyOptions, Indexer, MODEL, Reply, Stack, eventually};

/// Both engines are in Envoy's cluster; the indexer knows the first one only.
async fn stack(envoy: &str, engines: Vec<Engine>, endpoints: serde_json::Value) -> Stack {
    let mut indexer = Indexer::config(&engines);
    indexer["endpoints"] = endpoints;
    let indexer = Indexer::start(indexer).await.unwrap();
    let mut config = EnvoyConfig::shipped(envoy).unwrap();
    let addresses: Vec<_> = engines.iter().map(|e| e.address).collect();
    config.set_endpoints("engines", &addresses).unwrap();
    config.set_endpoints("warmpath_indexer", &[indexer.address]).unwrap();
    let envoy = Envoy::start(EnvoyOptions::new(config)).await.unwrap();
    let mut stack = Stack::assemble(envoy, indexer, engines).unwrap();
    stack.fleet_known().await.unwrap();
    stack
}

/// Which engines answer so many prompts that nobody holds.
async fn used(stack: &Stack, prompts: u64) -> HashSet<u16> {
    static SEED: AtomicU64 = AtomicU64::new(9000);
    let mut seen = HashSet::new();
    for _ in 0..prompts {
        let system = text(SEED.fetch_add(1, Ordering::Relaxed), 100);
        seen.insert(engine(&post(stack, &chat(&system, "q", 1), &[]).await));
    }
    seen
}

#[tokio::test]
async fn an_endpoint_added_to_the_file_gets_requests_and_one_removed_gets_none() {
    let engines = vec![Engine::start(&[]).await.unwrap(), Engine::start(&[]).await.unwrap()];
    let all = Indexer::config(&engines)["endpoints"].clone();
    let mut stack = stack("warmpath.yaml", engines, json!([all[0]])).await;
    let [first, second] = [0, 1].map(|i| stack.engines[i].address);
    assert_eq!(used(&stack, 8).await, HashSet::from([first.port()]), "the cluster has two, the fleet one");

    stack.indexer.reconfigure(&json!({"endpoints": all})).unwrap();
    let since = Instant::now();
    let added = async || Ok(used(&stack, 4).await.contains(&second.port()));
    eventually("the added endpoint is used", Duration::from_secs(10), added).await.unwrap();
    println!("added: used after {:?}", since.elapsed());
    // It holds what it computed, by its events.
    let system = text(31, 300);
    let holder = known_to_table(&stack, &system).await;

    // Requests that run there end by themselves.
    let leaving = stack.engines.iter().find(|e| e.address == holder).unwrap();
    leaving.configure(&json!({"decode_ms_per_token": 50})).await.unwrap();
    let (client, url) = (stack.client.clone(), stack.envoy.url(super::CHAT));
    let body = chat(&system, "long", 100);
    let running = tokio::spawn(async move { client.post(&url, &[], &body).await.unwrap() });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let staying = usize::from(holder == first);
    stack.indexer.reconfigure(&json!({"endpoints": [all[staying]]})).unwrap();
    let since = Instant::now();
    let removed = async || Ok(stack.indexer.metrics().await?.contains("warmpath_endpoints 1\n"));
    eventually("the endpoint is removed", Duration::from_secs(10), removed).await.unwrap();
    println!("removed: after {:?}", since.elapsed());
    // On its way to the gateway.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!used(&stack, 12).await.contains(&holder.port()));
    let reply = post(&stack, &chat(&system, "who?", 1), &[]).await;
    assert_ne!(engine(&reply), holder.port(), "its holdings are forgotten");
    assert_eq!(engine(&running.await.unwrap()), holder.port(), "what ran there was not cut off");
    let metrics = stack.indexer.metrics().await.unwrap();
    assert!(metrics.contains("warmpath_endpoints 1\n") && !metrics.contains(&format!("endpoint=\"{holder}\"")));

    // A broken file changes nothing, and says so.
    stack.indexer.rewrite("endpoints: [").unwrap();
    let stays = stack.indexer.configured().to_string();
    let failed = async || Ok(stack.indexer.metrics().await?.contains("config_last_reload_successful 0\n"));
    eventually("the failure is shown", Duration::from_secs(10), failed).await.unwrap();
    assert!(stack.indexer.process.log().contains("the changed configuration is not usable"));
    assert!(!used(&stack, 12).await.contains(&holder.port()));
    stack.indexer.rewrite(&stays).unwrap();
    let usable = async || Ok(stack.indexer.metrics().await?.contains("config_last_reload_successful 1\n"));
    eventually("the file is usable again", Duration::from_secs(10), usable).await.unwrap();
}

fn rank(reply: &Reply) -> (u16, String) {
    (engine(reply), reply.header("x-engine-rank").expect("an engine answered").to_owned())
}

#[tokio::test]
async fn prompts_go_to_the_rank_that_holds_them() {
    for envoy in BOTH {
        let mut engines = Vec::new();
        for _ in 0..2 {
            engines.push(Engine::start(&["--data-parallel-size", "2"]).await.unwrap());
        }
        let endpoints: Vec<_> =
            engines.iter().map(|e| json!({"address": e.address, "model": MODEL, "events": "auto"})).collect();
        let stack = stack(envoy, engines, json!(endpoints)).await;
        let four = async || Ok(stack.indexer.metrics().await?.contains("warmpath_endpoints 4\n"));
        eventually("the engines have told of their ranks", Duration::from_secs(10), four).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;

        let tenants: Vec<String> = (0..12).map(|tenant| text(700 + tenant, 300)).collect();
        let mut home: HashMap<usize, (u16, String)> = HashMap::new();
        for turn in 0..4 {
            for (tenant, system) in tenants.iter().enumerate() {
                // A client's own choice of a rank must not count, not even one that is not there.
                let steer = [("x-data-parallel-rank", if turn == 2 { "1" } else { "77" })];
                let reply = post(&stack, &chat(system, &format!("question {turn}"), 2), &steer).await;
                let at = home.entry(tenant).or_insert_with(|| rank(&reply)).clone();
                assert_eq!(rank(&reply), at, "{envoy}: tenant {tenant} moved in turn {turn}");
                assert!(turn == 0 || cached(&reply) > 200, "{envoy}: tenant {tenant} turn {turn}: {}", cached(&reply));
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        let mut homes: HashSet<_> = home.values().cloned().collect();
        // Where there is nothing to choose by, prompts are dealt by chance: 12 leave out one of 4 now and then.
        for other in 0..60 {
            homes.insert(rank(&post(&stack, &chat(&text(900 + other, 50), "q", 1), &[]).await));
        }
        assert_eq!(homes.len(), 4, "{envoy}: prompts spread over 4 ranks: {homes:?}");
        assert!(stack.filter_stat("decisions.holder").await.unwrap() >= 24, "{envoy}: the ranks' events are read");
        let reply = post(&stack, &chat(&tenants[0], "why?", 1), &[("x-warmpath-debug", "1")]).await;
        let (port, number) = rank(&reply);
        assert_eq!(reply.header("x-warmpath-endpoint"), Some(&*format!("127.0.0.1:{port}#{number}")));
    }
}

/// A retry carries the rank along, and an engine refuses a rank that it does not have: it is not named then.
#[tokio::test]
async fn a_rank_that_not_every_engine_has_is_not_named() {
    let engines = vec![
        Engine::start(&["--data-parallel-size", "2"]).await.unwrap(),
        Engine::start(&["--data-parallel-size", "1"]).await.unwrap(),
    ];
    let endpoints: Vec<_> =
        engines.iter().map(|e| json!({"address": e.address, "model": MODEL, "events": "auto"})).collect();
    let stack = stack("warmpath.yaml", engines, json!(endpoints)).await;
    let three = async || Ok(stack.indexer.metrics().await?.contains("warmpath_endpoints 3\n"));
    eventually("the engines have told of their ranks", Duration::from_secs(10), three).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    stack.engines[0].configure(&json!({"fail_next": 20})).await.unwrap();
    for i in 0..10 {
        let reply = post(&stack, &chat(&text(800 + i, 100), "q", 1), &[]).await;
        assert_eq!(engine(&reply), stack.engines[1].address.port());
    }
}

#[tokio::test]
async fn an_adapter_is_asked_for_only_where_it_is_served() {
    let engines = vec![Engine::start(&[]).await.unwrap(), Engine::start(&["--lora", "ada"]).await.unwrap()];
    let endpoints = Indexer::config(&engines)["endpoints"].clone();
    let stack = stack("warmpath.yaml", engines, endpoints).await;
    let serving = stack.engines[1].address.port();
    let ask = async |seed: u64| {
        let mut body = chat(&text(seed, 100), "q", 1);
        body["model"] = json!("ada");
        post(&stack, &body, &[("x-warmpath-debug", "1")]).await
    };
    // Before the engines have said what they serve, the name is unknown.
    let heard = async || Ok(ask(1).await.header("x-warmpath-prompt") == Some("exact"));
    eventually("the adapter is heard of", Duration::from_secs(10), heard).await.unwrap();
    for seed in 0..12 {
        assert_eq!(engine(&ask(9500 + seed).await), serving, "prompt {seed}");
    }
}
