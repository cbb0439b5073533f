//! Warmpath never fails a request: whatever breaks, the next rung of the ladder takes over.

use super::{BOTH, CHAT, cached, chat, engine, known_to_table, post, text};
use serde_json::json;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;
use warmpath_tests::harness::{
    Client, Engine, Envoy, EnvoyConfig, EnvoyOptions, Stack, StackOptions, eventually, free_port,
};

/// An Envoy whose indexer was never there.
pub struct Alone {
    pub envoy: Envoy,
    pub client: Client,
}

pub async fn without_indexer(envoy: &str, engines: &[Engine]) -> Alone {
    let mut config = EnvoyConfig::shipped(envoy).unwrap();
    let addresses: Vec<SocketAddr> = engines.iter().map(|e| e.address).collect();
    config.set_endpoints("engines", &addresses).unwrap();
    config.set_endpoints("warmpath_indexer", &[free_port().unwrap()]).unwrap();
    Alone { envoy: Envoy::start(EnvoyOptions::new(config)).await.unwrap(), client: Client::new().unwrap() }
}

#[tokio::test]
async fn without_an_indexer_the_clusters_balancer_spreads_the_requests() {
    let engines = [Engine::start(&[]).await.unwrap(), Engine::start(&[]).await.unwrap()];
    for envoy in BOTH {
        let alone = without_indexer(envoy, &engines).await;
        let mut seen = HashSet::new();
        for i in 0..30 {
            let reply = alone.client.post(&alone.envoy.url(CHAT), &[], &chat(&text(i, 100), "q", 1)).await.unwrap();
            seen.insert(engine(&reply));
        }
        assert_eq!(seen.len(), 2, "{envoy}");
        assert_eq!(alone.envoy.stat("wasmcustom.warmpath.default.decisions.none").await.unwrap(), 30);
        eventually("the filter keeps trying", Duration::from_secs(10), async || {
            Ok(alone.envoy.stat("wasmcustom.warmpath.default.sync.failed").await? >= 3)
        })
        .await
        .unwrap();
    }
}

#[tokio::test]
async fn an_indexer_that_is_killed_and_comes_back_costs_no_request() {
    let filter = json!({"stale_after_ms": 1500});
    let mut stack = Stack::start(StackOptions { engines: 3, filter, ..StackOptions::default() }).await.unwrap();
    let system = text(11, 300);
    let holder = known_to_table(&stack, &system).await;

    stack.indexer.process.kill();
    let stale_before = stack.filter_stat("table.stale").await.unwrap();
    let start = std::time::Instant::now();
    while start.elapsed() < Duration::from_secs(4) {
        // Fresh table, then predicted holders: the prompt stays where it is held.
        let reply = post(&stack, &chat(&system, "still there?", 1), &[]).await;
        assert_eq!(engine(&reply), holder.port());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(stack.filter_stat("table.stale").await.unwrap() > stale_before, "the table counts as stale");
    // A prompt that nobody knows still finds an engine, and finds it again.
    let unknown = text(12, 300);
    let first = engine(&post(&stack, &chat(&unknown, "one", 1), &[]).await);
    assert_eq!(engine(&post(&stack, &chat(&unknown, "two", 1), &[]).await), first);

    let synced = stack.filter_stat("sync.ok").await.unwrap();
    stack.indexer.restart().await.unwrap();
    let envoy = &stack.envoy;
    eventually("the filter syncs again", Duration::from_secs(10), async || {
        Ok(envoy.stat("wasmcustom.warmpath.default.sync.ok").await? > synced + 1)
    })
    .await
    .unwrap();
    // The new indexer has learned from the engines' replay what they hold.
    assert_eq!(known_to_table(&stack, &system).await, holder);
    let stale = stack.filter_stat("table.stale").await.unwrap();
    let reply = post(&stack, &chat(&system, "and now?", 1), &[]).await;
    assert_eq!(engine(&reply), holder.port());
    assert!(cached(&reply) > 200);
    assert_eq!(stack.filter_stat("table.stale").await.unwrap(), stale, "the table is fresh again");
}

#[tokio::test]
async fn a_stale_table_is_not_believed() {
    let filter = json!({"stale_after_ms": 300, "predicted_ttl_ms": 1, "approximate_ttl_ms": 1});
    let stack = Stack::start(StackOptions { engines: 3, filter, ..StackOptions::default() }).await.unwrap();
    let system = text(13, 300);
    known_to_table(&stack, &system).await;
    // Frozen, not gone: connections stay open and nothing comes.
    stack.indexer.process.signal("STOP").unwrap();
    tokio::time::sleep(Duration::from_millis(1800)).await;
    let holders = stack.filter_stat("decisions.holder").await.unwrap();
    for i in 0..10 {
        engine(&post(&stack, &chat(&system, &format!("{i}"), 1), &[]).await);
    }
    assert_eq!(stack.filter_stat("decisions.holder").await.unwrap(), holders, "nothing was decided by the table");
    assert!(stack.filter_stat("table.stale").await.unwrap() >= 10);
    stack.indexer.process.signal("CONT").unwrap();
    known_to_table(&stack, &system).await;
}

#[tokio::test]
async fn an_engine_killed_while_requests_run_is_replaced_by_the_next() {
    for envoy in BOTH {
        let engine_flags = vec!["--decode-ms-per-token".to_owned(), "40".to_owned()];
        let options = StackOptions { engines: 3, envoy, engine_flags, ..StackOptions::default() };
        let mut stack = Stack::start(options).await.unwrap();
        let system = text(14, 300);
        let holder = known_to_table(&stack, &system).await;
        let url = stack.envoy.url(CHAT);
        let running: Vec<_> = (0..8)
            .map(|i| {
                let (client, url, body) = (stack.client.clone(), url.clone(), chat(&system, &format!("{i}"), 25));
                tokio::spawn(async move { client.post(&url, &[], &body).await })
            })
            .collect();
        eventually("the holder is computing", Duration::from_secs(5), async || {
            let holder = stack.engines.iter().find(|e| e.address == holder).unwrap();
            Ok(holder.stats().await?["in_flight"].as_u64() >= Some(1))
        })
        .await
        .unwrap();
        stack.engines.iter_mut().find(|e| e.address == holder).unwrap().process.kill();
        for reply in running {
            assert_ne!(engine(&reply.await.unwrap().unwrap()), holder.port(), "{envoy}: a dead engine answered");
        }
        // And while it stays dead.
        for i in 0..10 {
            assert_ne!(engine(&post(&stack, &chat(&system, &format!("late {i}"), 1), &[]).await), holder.port());
        }
        eventually("its charges are given back", Duration::from_secs(5), async || {
            Ok(stack.filter_stat("fleet.in_flight").await? == 0)
        })
        .await
        .unwrap();
        // It comes back empty, and is used again.
        let dead = stack.engines.iter_mut().find(|e| e.address == holder).unwrap();
        dead.restart().await.unwrap();
        let mut i = 0;
        eventually("the engine is used again", Duration::from_secs(20), async || {
            i += 1;
            let reply = post(&stack, &chat(&text(1000 + i, 200), "q", 1), &[]).await;
            Ok(engine(&reply) == holder.port())
        })
        .await
        .unwrap();
    }
}

#[tokio::test]
async fn an_engine_that_answers_503_is_passed_over() {
    let stack = Stack::start(StackOptions { engines: 3, ..StackOptions::default() }).await.unwrap();
    let system = text(15, 300);
    let holder = known_to_table(&stack, &system).await;
    let sick = stack.engines.iter().find(|e| e.address == holder).unwrap();
    sick.configure(&json!({"fail_next": 3})).await.unwrap();
    for i in 0..3 {
        assert_ne!(engine(&post(&stack, &chat(&system, &format!("{i}"), 1), &[]).await), holder.port());
    }
    assert_eq!(stack.filter_stat("fleet.in_flight").await.unwrap(), 0);
}
