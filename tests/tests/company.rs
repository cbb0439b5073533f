//! Several indexers, restarts of them, and streams that lose messages: real processes, simulated engines whose replay
//! buffers reach back a few messages only.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a panic is a failed test")]

use affinity::page::PageView;
use affinity::sync::{Frame, Request, Versions, read_frames};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use warmpath_tests::harness::{Client, Engine, Indexer, MODEL, eventually};

/// An engine that remembers so many messages and computes in no time.
async fn engine(buffer: &str) -> Engine {
    Engine::start(&["--buffer-steps", buffer, "--prefill-tokens-per-second", "0", "--decode-ms-per-token", "0"])
        .await
        .unwrap()
}

/// Prompts of which no two begin alike: each is some messages of events.
async fn prompts(client: &Client, engines: &[Engine], from: usize, to: usize) {
    for i in from..to {
        let prompt = format!("prompt {i} of many, told at some length ").repeat(12);
        let body = json!({"model": MODEL, "prompt": prompt, "max_tokens": 2});
        for engine in engines {
            let reply = client.post(&engine.url("/v1/completions"), &[], &body).await.unwrap();
            assert_eq!(reply.status, 200, "{}", reply.body);
        }
    }
}

/// The table as gateways get it: its pages, and how many entries they have.
async fn table(indexer: &Indexer) -> (BTreeMap<u32, Vec<u8>>, usize) {
    let (client, mut have, mut pages) = (reqwest::Client::builder().no_proxy().build().unwrap(), None, BTreeMap::new());
    loop {
        let request = Request { gateway: 7, have: have.unwrap_or_default(), wait_ms: 0, loads: Vec::new() };
        let reply = client.post(indexer.url("/v1/sync")).body(request.encode()).send().await.unwrap();
        let reply = reply.bytes().await.unwrap();
        let mut end = None;
        for frame in read_frames(&reply) {
            match frame {
                Frame::Page(number, bytes) => drop(pages.insert(number, bytes.to_vec())),
                Frame::End(last) => end = Some(last),
                _ => {}
            }
        }
        let end = end.unwrap();
        if !end.more {
            let entries = pages.values().map(|page| PageView::parse(page.as_slice()).unwrap().len()).sum();
            // Each run of an indexer has an epoch of its own: four bytes of every page.
            pages.values_mut().for_each(|page| page[4..8].fill(0));
            return (pages, entries);
        }
        have = Some::<Versions>(end.have);
    }
}

/// A metric's values, added up over labels that contain `label`.
async fn metric(indexer: &Indexer, name: &str, label: &str) -> f64 {
    let page = indexer.metrics().await.unwrap();
    let lines = page.lines().filter(|line| line.starts_with(name) && line.contains(label));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

async fn same_tables(what: &str, a: &Indexer, b: &Indexer) -> usize {
    let mut entries = 0;
    eventually(what, Duration::from_secs(20), async || {
        let (one, other) = (table(a).await, table(b).await);
        entries = one.1;
        Ok(one == other && entries > 0)
    })
    .await
    .unwrap();
    entries
}

/// Until the indexer knows of every block that the engines hold.
async fn knows_all(indexer: &Indexer, engines: &[Engine]) {
    eventually("the indexer knows what the engines hold", Duration::from_secs(20), async || {
        let mut cached = 0;
        for engine in engines {
            cached += engine.stats().await?["blocks_cached"].as_u64().unwrap();
        }
        Ok(cached > 0 && metric(indexer, "warmpath_index_blocks", "").await == cached as f64)
    })
    .await
    .unwrap();
}

fn with(mut config: Value, more: Value) -> Value {
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

#[tokio::test]
async fn an_indexer_that_starts_anew_takes_the_state_of_a_peer_and_both_stay_equal() {
    let (client, engines) = (Client::new().unwrap(), [engine("6").await, engine("6").await]);
    let first = Indexer::start(Indexer::config(&engines)).await.unwrap();
    let peers = json!({"peers": [format!("http://{}", first.address)]});
    let mut second = Indexer::start(with(Indexer::config(&engines), peers)).await.unwrap();
    prompts(&client, &engines, 0, 40).await;
    let entries = same_tables("both know all", &first, &second).await;

    let start = Instant::now();
    second.restart().await.unwrap();
    let (pages, ready) = (table(&second).await, start.elapsed());
    assert_eq!((pages.1, &pages.0), (entries, &table(&first).await.0), "warm as soon as it is ready");
    println!("ready and warm {} ms after its start, {entries} entries", ready.as_millis());
    assert_eq!(metric(&second, "warmpath_company_checkpoints_total", "peer").await, 2.0);
    assert_eq!(metric(&second, "warmpath_stream_proofs_total", "held").await, 2.0);
    assert_eq!(metric(&second, "warmpath_stream_partial", "").await, 0.0);

    // Alone it would know what the engines' buffers hold.
    let alone = Indexer::start(Indexer::config(&engines)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let known = table(&alone).await.1;
    assert!(known > 0 && known < entries / 2, "{known} of {entries}");
    assert_eq!(metric(&alone, "warmpath_stream_partial", "").await, 2.0);

    prompts(&client, &engines, 40, 60).await;
    let more = same_tables("both go on alike", &first, &second).await;
    assert!(more > entries);
}

#[tokio::test]
async fn a_gap_and_a_lost_tail_cost_nothing_that_the_buffer_still_has() {
    let (client, engines) = (Client::new().unwrap(), [engine("60").await]);
    let whole = Indexer::start(Indexer::config(&engines)).await.unwrap();
    prompts(&client, &engines, 0, 60).await;
    knows_all(&whole, &engines).await;
    engines[0].configure(&json!({"lose_batches": 2})).await.unwrap();
    prompts(&client, &engines, 60, 66).await;
    knows_all(&whole, &engines).await;
    assert_eq!(metric(&whole, "warmpath_stream_proofs_total", "held").await, 1.0);
    assert_eq!(metric(&whole, "warmpath_stream_suspends_total", "gap").await, 1.0);
    assert_eq!(metric(&whole, "warmpath_stream_partial", "").await, 0.0);
    // Messages lost with nothing after them: only an audit finds them.
    let audits = metric(&whole, "warmpath_stream_audits_total", "held").await;
    engines[0].configure(&json!({"lose_batches": 100})).await.unwrap();
    prompts(&client, &engines, 66, 67).await;
    knows_all(&whole, &engines).await;
    assert!(metric(&whole, "warmpath_stream_audits_total", "held").await > audits);
}

#[tokio::test]
async fn an_indexer_without_peers_takes_its_own_state_from_the_store() {
    let Some((redis, url)) = redis() else { return };
    let (client, engines) = (Client::new().unwrap(), [engine("6").await]);
    let config = with(Indexer::config(&engines), json!({"store": url, "store_interval_ms": 1000}));
    let mut indexer = Indexer::start(config).await.unwrap();
    prompts(&client, &engines, 0, 40).await;
    knows_all(&indexer, &engines).await;
    let before = table(&indexer).await;
    // Some intervals: one to write what was under way, one to write all.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(metric(&indexer, "warmpath_store_checkpoints_total", "").await > 0.0);
    indexer.restart().await.unwrap();
    assert_eq!(table(&indexer).await, before);
    assert_eq!(metric(&indexer, "warmpath_company_checkpoints_total", "store").await, 1.0);
    assert_eq!(metric(&indexer, "warmpath_stream_proofs_total", "held").await, 1.0, "not replayed from the start");
    // Nothing waits for a store that is gone.
    drop(redis);
    prompts(&client, &engines, 40, 42).await;
    eventually("events are read without it", Duration::from_secs(20), async || {
        Ok(table(&indexer).await.1 > before.1 && metric(&indexer, "warmpath_store_up", "").await == 0.0)
    })
    .await
    .unwrap();
}

/// A server of the test's own, killed when dropped.
struct Redis(Child);

impl Drop for Redis {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn redis() -> Option<(Redis, String)> {
    let port = warmpath_tests::harness::free_port().unwrap().port();
    let args = ["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
    let Ok(server) = Command::new("redis-server").args(args).stdout(Stdio::null()).spawn() else {
        assert!(std::env::var_os("CI").is_none(), "redis-server is not installed");
        eprintln!("SKIPPED: redis-server is not installed (Debian: apt-get install redis-server)");
        return None;
    };
    Some((Redis(server), format!("redis://127.0.0.1:{port}")))
}
