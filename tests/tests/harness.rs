//! The harness that other tests stand on.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is a failed test")]

use serde_json::json;
use warmpath_tests::harness::{Client, Engine, Envoy, EnvoyConfig, EnvoyOptions, MODEL};

fn completion(prompt: &str) -> serde_json::Value {
    json!({"model": MODEL, "prompt": prompt, "max_tokens": 1})
}

#[tokio::test]
async fn an_engine_restarts_on_its_ports_with_nothing_cached() {
    let (client, prompt) = (Client::new().unwrap(), "one and the same prompt ".repeat(20));
    let mut engine = Engine::start(&["--prefill-tokens-per-second", "0"]).await.unwrap();
    let cached = async |engine: &Engine| {
        let reply = client.post(&engine.url("/v1/completions"), &[], &completion(&prompt)).await.unwrap();
        reply.json().unwrap()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(cached(&engine).await, 0);
    assert!(cached(&engine).await > 0);
    engine.restart().await.unwrap();
    assert_eq!(cached(&engine).await, 0);
    assert_eq!(engine.stats().await.unwrap()["requests"], 1);
}

#[tokio::test]
async fn envoy_retries_on_another_engine_what_one_was_told_to_fail() {
    let engines = [Engine::start(&[]).await.unwrap(), Engine::start(&[]).await.unwrap()];
    engines[0].configure(&json!({"fail_next": 1000})).await.unwrap();
    let mut config = EnvoyConfig::shipped("round-robin.yaml").unwrap();
    config.set_endpoints("engines", &engines.each_ref().map(|engine| engine.address)).unwrap();
    let envoy = Envoy::start(EnvoyOptions::new(config)).await.unwrap();
    let client = Client::new().unwrap();
    for _ in 0..4 {
        let reply = client.post(&envoy.url("/v1/completions"), &[], &completion("a prompt")).await.unwrap();
        assert_eq!(reply.header("x-engine"), Some(engines[1].address.port().to_string().as_str()));
    }
    assert!(envoy.stat("cluster.engines.upstream_rq_retry").await.unwrap() > 0);
}
