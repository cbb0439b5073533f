//! The simulated engine as its clients see it: HTTP, KV events over ZeroMQ, and time.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "test code")]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use rmpv::Value as Pack;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use warmpath_tests::sim::{self, Config, Encoding, Handle};
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend, SubSocket, ZmqMessage};

const PATIENCE: Duration = Duration::from_secs(10);

async fn post(engine: &Handle, path: &str, body: Value) -> reqwest::Response {
    let url = format!("{}{path}", engine.url());
    reqwest::Client::new().post(url).json(&body).send().await.unwrap()
}

async fn complete(engine: &Handle, prompt: Value, max_tokens: u32) -> Value {
    let reply = post(engine, "/v1/completions", json!({"prompt": prompt, "max_tokens": max_tokens})).await;
    assert_eq!(reply.status(), 200);
    reply.json().await.unwrap()
}

fn ids(from: u32, count: u32) -> Value {
    json!((from..from + count).collect::<Vec<_>>())
}

fn cached(reply: &Value) -> &Value {
    &reply["usage"]["prompt_tokens_details"]["cached_tokens"]
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Requests a replay and returns the messages before the end marker, which it checks.
async fn replay(engine: &Handle, start: u64, frames: usize) -> Vec<Vec<Bytes>> {
    let mut dealer = DealerSocket::new();
    dealer.connect(&engine.replay()).await.unwrap();
    let mut request = ZmqMessage::from(Bytes::new());
    request.push_back(Bytes::copy_from_slice(&start.to_be_bytes()));
    dealer.send(request).await.unwrap();
    let mut messages = Vec::new();
    loop {
        let message = timeout(PATIENCE, dealer.recv()).await.unwrap().unwrap().into_vec();
        assert_eq!(message.len(), frames);
        if message[frames - 2].as_ref() == [0xff; 8] {
            assert!(message[frames - 1].is_empty());
            return messages;
        }
        messages.push(message);
    }
}

/// A subscriber that has seen the newest batch.
async fn subscribe(engine: &Handle) -> SubSocket {
    let mut socket = SubSocket::new();
    socket.connect(&engine.events()).await.unwrap();
    socket.subscribe("").await.unwrap();
    // Subscriptions take effect in their own time: what is sent before is lost.
    for spark in 0..50 {
        complete(engine, ids(3000 + 20 * spark, 17), 1).await;
        let newest = engine.stats().event_batches - 1;
        while let Ok(message) = timeout(Duration::from_millis(100), socket.recv()).await {
            if number(message.unwrap().get(1).unwrap()) == newest {
                return socket;
            }
        }
    }
    panic!("the subscription never took effect");
}

fn number(frame: &Bytes) -> u64 {
    u64::from_be_bytes(frame.as_ref().try_into().unwrap())
}

#[tokio::test]
async fn a_repeated_chat_finds_its_prompt_in_the_cache() {
    let engine = sim::start(Config::instant()).unwrap();
    let text = "a system prompt that goes on for a while, ".repeat(8);
    let body = json!({"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 5});
    let first = post(&engine, "/v1/chat/completions", body.clone()).await;
    assert_eq!(first.headers()["x-engine"], engine.http().port().to_string());
    let first: Value = first.json().await.unwrap();
    let second: Value = post(&engine, "/v1/chat/completions", body.clone()).await.json().await.unwrap();
    let tokenized: Value = post(&engine, "/tokenize", body.clone()).await.json().await.unwrap();
    let prompt = first["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(tokenized["count"], prompt);
    assert_eq!(cached(&first), 0);
    assert_eq!(cached(&second).as_u64(), Some((prompt - 1) / 16 * 16));
    assert_eq!(second["usage"]["completion_tokens"], 5);
    assert_eq!(second["usage"]["total_tokens"], prompt + 5);

    let mut salted = body;
    salted["cache_salt"] = json!("tenant");
    let salted: Value = post(&engine, "/v1/chat/completions", salted).await.json().await.unwrap();
    assert_eq!(cached(&salted), 0, "another namespace");
}

#[tokio::test]
async fn the_next_turn_finds_prompt_and_answer_in_the_cache() {
    let engine = sim::start(Config::instant()).unwrap();
    let mut messages = vec![json!({"role": "user", "content": "tell me about prefix caches ".repeat(10)})];
    let body = |messages: &[Value]| json!({"messages": messages, "max_tokens": 64});
    let first: Value = post(&engine, "/v1/chat/completions", body(&messages)).await.json().await.unwrap();
    messages.push(json!({"role": "assistant", "content": first["choices"][0]["message"]["content"]}));
    messages.push(json!({"role": "user", "content": "more"}));
    let second: Value = post(&engine, "/v1/chat/completions", body(&messages)).await.json().await.unwrap();
    let prompt = first["usage"]["prompt_tokens"].as_u64().unwrap();
    // All but the block where the answer was cut off, whose tokens may be others now.
    let expected = (prompt + 64 - 2) / 16 * 16;
    let hit = cached(&second).as_u64().unwrap();
    assert!(hit > prompt && hit + 16 >= expected, "{hit} of {expected}");
}

#[tokio::test]
async fn live_events_and_replay_are_the_same_batches() {
    for (encoding, frames) in [(Encoding::Map, 4), (Encoding::Array, 3)] {
        let config = Config { encoding, topic: Some("kv@here".into()), seed: Some(3), ..Config::instant() };
        let engine = sim::start(config).unwrap();
        let mut live = subscribe(&engine).await;
        let start = engine.stats().event_batches;
        complete(&engine, ids(0, 40), 10).await;
        let replayed = replay(&engine, start, frames).await;
        assert_eq!(replayed.len(), 2, "the prompt's two blocks, then the one the output filled");
        for (at, replayed) in (start..).zip(&replayed) {
            let message = timeout(PATIENCE, live.recv()).await.unwrap().unwrap().into_vec();
            assert_eq!(message.len(), 3);
            assert_eq!(message[0].as_ref(), b"kv@here");
            assert_eq!(number(&message[1]), at);
            // Replies begin with the delimiter, and only newer engines' with the topic.
            let same = 3.min(frames - 1);
            assert_eq!(message[3 - same..], replayed[frames - same..], "{encoding:?}");
        }
    }
}

#[tokio::test]
async fn a_lost_batch_leaves_a_gap_that_replay_fills() {
    let engine = sim::start(Config { buffer_steps: 2, ..Config::instant() }).unwrap();
    let mut live = subscribe(&engine).await;
    let next = engine.stats().event_batches;
    engine.control(|control| control.lose_batches = 1);
    for round in 0..3 {
        complete(&engine, ids(100 * round, 20), 1).await;
    }
    for expected in [next + 1, next + 2] {
        let message = timeout(PATIENCE, live.recv()).await.unwrap().unwrap();
        assert_eq!(number(message.get(1).unwrap()), expected);
    }
    let kept = replay(&engine, next, 4).await;
    assert_eq!(
        kept.iter().map(|message| number(&message[2])).collect::<Vec<_>>(),
        [next + 1, next + 2],
        "a buffer of 2"
    );
}

#[tokio::test]
async fn paused_events_come_later_in_order() {
    let engine = sim::start(Config::instant()).unwrap();
    let mut live = subscribe(&engine).await;
    let next = engine.stats().event_batches;
    engine.control(|control| control.events_paused = true);
    complete(&engine, ids(0, 20), 1).await;
    complete(&engine, ids(100, 20), 1).await;
    assert!(timeout(Duration::from_millis(100), live.recv()).await.is_err(), "kept back");
    engine.control(|control| control.events_paused = false);
    for expected in [next, next + 1] {
        let message = timeout(PATIENCE, live.recv()).await.unwrap().unwrap();
        assert_eq!(number(message.get(1).unwrap()), expected);
    }
}

#[tokio::test]
async fn a_reset_is_announced_with_the_next_step() {
    let engine = sim::start(Config::instant()).unwrap();
    complete(&engine, ids(0, 20), 1).await;
    let reply: Value = post(&engine, "/reset_prefix_cache", json!({})).await.json().await.unwrap();
    assert_eq!(reply, json!({"success": true}));
    assert_eq!(engine.stats().event_batches, 1, "an idle engine keeps its events");
    assert_eq!(*cached(&complete(&engine, ids(0, 20), 1).await), 0);
    let batch = replay(&engine, 1, 4).await.remove(0).pop().unwrap();
    let batch = rmpv::decode::read_value(&mut batch.as_ref()).unwrap();
    let tags: Vec<&Pack> = batch[1].as_array().unwrap().iter().map(|event| &event["type"]).collect();
    assert_eq!(tags, [&Pack::from("AllBlocksCleared"), &Pack::from("BlockStored")]);
}

#[tokio::test]
async fn a_streamed_chat_has_the_chunks_of_vllm() {
    let engine = sim::start(Config::instant()).unwrap();
    let body = json!({
        "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "temperature": 0,
        "stream": true, "stream_options": {"include_usage": true},
    });
    let text = post(&engine, "/v1/chat/completions", body.clone()).await.text().await.unwrap();
    let chunks: Vec<&str> = text.trim_end().split("\n\n").map(|chunk| chunk.strip_prefix("data: ").unwrap()).collect();
    let (done, chunks) = chunks.split_last().unwrap();
    assert_eq!(*done, "[DONE]");
    let chunks: Vec<Value> = chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect();
    assert_eq!(chunks.len(), 5, "role, three tokens, usage");
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(chunks[2]["choices"][0]["finish_reason"], Value::Null);
    assert_eq!(chunks[3]["choices"][0]["finish_reason"], "length");
    assert_eq!(chunks[4]["choices"], json!([]));
    assert_eq!(chunks[4]["usage"]["completion_tokens"], 3);
    let streamed: String =
        chunks[1..4].iter().map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().unwrap()).collect();

    let mut whole = body;
    whole["stream"] = json!(false);
    let whole: Value = post(&engine, "/v1/chat/completions", whole).await.json().await.unwrap();
    assert_eq!(whole["choices"][0]["message"]["content"], streamed, "greedy texts are the same");
}

#[tokio::test]
async fn several_prompts_and_choices_are_separate_engine_requests() {
    let engine = sim::start(Config::instant()).unwrap();
    let body = json!({"prompt": ["one", "two", "three"], "n": 2, "max_tokens": 4});
    let reply: Value = post(&engine, "/v1/completions", body).await.json().await.unwrap();
    let choices = reply["choices"].as_array().unwrap();
    assert_eq!(choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    assert_eq!(reply["usage"]["completion_tokens"], 24);
    assert_eq!(engine.stats().requests, 6);
}

#[tokio::test]
async fn what_vllm_refuses_is_refused_alike() {
    let engine = sim::start(Config { max_model_len: 64, ..Config::instant() }).unwrap();
    let url = engine.url();
    let client = reqwest::Client::new();
    let status = async |request: reqwest::RequestBuilder| request.send().await.unwrap().status().as_u16();
    assert_eq!(status(client.get(format!("{url}/nowhere"))).await, 404);
    assert_eq!(status(client.get(format!("{url}/v1/completions"))).await, 405);
    let gzip = vec![0x1f, 0x8b, 8, 0, 0, 0];
    let gzip = client.post(format!("{url}/v1/completions")).header("content-encoding", "gzip").body(gzip);
    assert_eq!(status(gzip).await, 400);
    for (expected, body) in [
        (400, json!({"prompt": ids(0, 60), "max_tokens": 5})),
        (400, json!({"prompt": "a", "max_tokens": 0})),
        (400, json!({"prompt": ""})),
        (400, json!({"prompt": "a", "cache_salt": ""})),
        (404, json!({"prompt": "a", "model": "other"})),
        (200, json!({"prompt": ids(0, 60), "max_tokens": 4})),
    ] {
        let reply = post(&engine, "/v1/completions", body.clone()).await;
        assert_eq!(reply.status().as_u16(), expected, "{body}");
        if expected != 200 {
            let reply: Value = reply.json().await.unwrap();
            assert_eq!(reply["error"]["code"], expected, "{reply}");
        }
    }
    assert_eq!(status(client.get(format!("{url}/health"))).await, 200);
}

#[tokio::test]
async fn an_adapter_has_a_cache_of_its_own() {
    let engine = sim::start(Config { loras: vec!["sql".into()], ..Config::instant() }).unwrap();
    complete(&engine, ids(0, 40), 1).await;
    let body = json!({"model": "sql", "prompt": ids(0, 40), "max_tokens": 1});
    let first: Value = post(&engine, "/v1/completions", body.clone()).await.json().await.unwrap();
    let second: Value = post(&engine, "/v1/completions", body).await.json().await.unwrap();
    assert_eq!((cached(&first), cached(&second)), (&json!(0), &json!(32)));
    let models = reqwest::get(format!("{}/v1/models", engine.url())).await.unwrap();
    let models: Value = models.json().await.unwrap();
    assert_eq!((&models["data"][0]["id"], &models["data"][1]["id"]), (&json!("tiny"), &json!("sql")));
}

#[tokio::test]
async fn prompts_are_computed_one_after_the_other() {
    let engine = sim::start(Config {
        prefill_tokens_per_second: 4000.0,
        decode_ms_per_token: 0.0,
        max_num_batched_tokens: 400,
        ..Config::default()
    })
    .unwrap();
    let start = Instant::now();
    // 100 ms each.
    join_all((0..3).map(|at| complete(&engine, ids(1000 * at, 400), 1))).await;
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(300), "{took:?}");
    let mut waits: Vec<f64> = engine.stats().log.iter().map(|entry| entry.ttft_ms.unwrap()).collect();
    waits.sort_by(f64::total_cmp);
    assert!(waits[0] >= 100.0 && waits[1] >= 200.0 && waits[2] >= 300.0, "{waits:?}");
    assert!(waits[2] - waits[0] > 150.0, "the first waits for itself only: {waits:?}");
    let mut again = Duration::MAX;
    // The quickest: a busy machine is slow now and then.
    for _ in 0..5 {
        let start = Instant::now();
        complete(&engine, ids(0, 400), 1).await;
        again = again.min(start.elapsed());
    }
    assert!(again < took / 3, "384 of 400 tokens are cached: {again:?}");
}

#[tokio::test]
async fn tokens_come_at_the_decode_speed_whatever_the_batch() {
    let engine = sim::start(Config { decode_ms_per_token: 5.0, ..Config::instant() }).unwrap();
    let mut quickest = Duration::MAX;
    for _ in 0..3 {
        let start = Instant::now();
        join_all((0..8).map(|at| complete(&engine, ids(100 * at, 20), 41))).await;
        quickest = quickest.min(start.elapsed());
    }
    // 40 steps of 5 ms for all of them together; one after the other they would take 1.6 s.
    assert!(quickest >= Duration::from_millis(199) && quickest < Duration::from_millis(800), "{quickest:?}");
}

#[tokio::test]
async fn requests_wait_while_all_blocks_are_taken() {
    let engine = sim::start(Config { blocks: 9, decode_ms_per_token: 10.0, ..Config::instant() }).unwrap();
    let both = join_all((0..2).map(|at| complete(&engine, ids(1000 * at, 80), 20)));
    let watch = async {
        until("one runs, one waits", || {
            let stats = engine.stats();
            (stats.running, stats.waiting) == (1, 1)
        })
        .await;
        let text = reqwest::get(format!("{}/metrics", engine.url())).await.unwrap().text().await.unwrap();
        assert!(text.contains("vllm:num_requests_waiting{engine=\"0\",model_name=\"tiny\"} 1.0\n"), "{text}");
    };
    let (replies, ()) = tokio::join!(both, watch);
    assert_eq!(replies.len(), 2);
    assert_eq!(engine.stats().blocks_used, 0);
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_blocks() {
    let engine = sim::start(Config { decode_ms_per_token: 5.0, ..Config::instant() }).unwrap();
    for stream in [true, false] {
        let before = engine.stats().aborted;
        let body = json!({"prompt": ids(0, 50), "max_tokens": 10_000, "stream": stream});
        tokio::select! {
            _ = async { post(&engine, "/v1/completions", body).await.text().await } => panic!("it ended"),
            () = until("it runs", || engine.stats().running == 1) => {}
        }
        until("the request is aborted", || engine.stats().aborted == before + 1).await;
        assert_eq!((engine.stats().blocks_used, engine.stats().in_flight), (0, 0));
    }
    assert_eq!(engine.stats().log[0].finish_reason, Some("abort"));
}

#[tokio::test]
async fn ordered_faults_happen_and_end() {
    let engine = sim::start(Config::instant()).unwrap();
    let config = json!({"fail_next": 2, "hang": true});
    let reply: Value = post(&engine, "/sim/config", config).await.json().await.unwrap();
    assert_eq!(reply["fail_next"], 2);
    let body = json!({"prompt": "a", "max_tokens": 1});
    for _ in 0..2 {
        assert_eq!(post(&engine, "/v1/completions", body.clone()).await.status(), 503);
    }
    let hanging = post(&engine, "/v1/completions", body);
    let release = async {
        sleep(Duration::from_millis(100)).await;
        assert_eq!(engine.stats().requests, 0);
        engine.control(|control| control.hang = false);
    };
    assert_eq!(tokio::join!(hanging, release).0.status(), 200);
    let reply = post(&engine, "/sim/config", json!({"fail_nxt": 1})).await;
    assert_eq!(reply.status(), 400);
    assert!(reply.text().await.unwrap().contains("fail_nxt"), "the error names the field");
}

#[tokio::test]
async fn the_log_knows_who_asked_and_what_was_cached() {
    let engine = sim::start(Config::instant()).unwrap();
    complete(&engine, ids(0, 33), 2).await;
    let client = reqwest::Client::new();
    let request = client.post(format!("{}/v1/completions", engine.url())).header("x-request-id", "r-1");
    request.json(&json!({"prompt": ids(0, 33), "max_tokens": 2})).send().await.unwrap();
    let stats: Value = reqwest::get(format!("{}/sim/stats", engine.url())).await.unwrap().json().await.unwrap();
    assert_eq!((&stats["prompt_tokens"], &stats["cached_tokens"]), (&json!(66), &json!(32)));
    let entry = &stats["log"][1];
    assert_eq!(entry["headers"]["x-request-id"], "r-1");
    assert_eq!((&entry["prompt_tokens"], &entry["cached_tokens"]), (&json!(33), &json!(32)));
    let metrics = reqwest::get(format!("{}/metrics", engine.url())).await.unwrap().text().await.unwrap();
    for line in [
        "vllm:prefix_cache_queries_total{engine=\"0\",model_name=\"tiny\"} 66.0",
        "vllm:prefix_cache_hits_total{engine=\"0\",model_name=\"tiny\"} 32.0",
        "vllm:request_success_total{engine=\"0\",finished_reason=\"length\",model_name=\"tiny\"} 2.0",
        "vllm:time_to_first_token_seconds_count{engine=\"0\",model_name=\"tiny\"} 2.0",
    ] {
        assert!(metrics.contains(line), "{line} in\n{metrics}");
    }
}

#[tokio::test]
async fn a_dropped_engine_frees_its_ports_and_forgets_everything() {
    let config = Config { seed: None, ..Config::instant() };
    let engine = sim::start(config.clone()).unwrap();
    complete(&engine, ids(0, 33), 1).await;
    let first = replay(&engine, 0, 4).await;
    let port = |endpoint: String| endpoint.rsplit(':').next().unwrap().parse::<u16>().unwrap();
    let ports = (engine.http().port(), port(engine.events()), port(engine.replay()));
    drop(engine);
    let again = Config { port: ports.0, events_port: ports.1, replay_port: ports.2, ..config };
    let engine = sim::start(again).unwrap();
    assert_eq!(*cached(&complete(&engine, ids(0, 33), 1).await), 0);
    let second = replay(&engine, 0, 4).await;
    assert_eq!(number(&second[0][2]), 0, "numbers start anew");
    let hashes = |message: &[Bytes]| {
        let batch = rmpv::decode::read_value(&mut message[3].as_ref()).unwrap();
        batch[1][0]["block_hashes"].clone()
    };
    assert_ne!(hashes(&first[0]), hashes(&second[0]), "hashes differ from start to start");
}

#[test]
fn a_taken_port_is_named_in_the_error() {
    let engine = sim::start(Config::instant()).unwrap();
    let Err(error) = sim::start(Config { port: engine.http().port(), ..Config::instant() }) else {
        panic!("started on a taken port");
    };
    assert!(format!("{error:#}").contains(&format!("port {}", engine.http().port())), "{error:#}");
}

#[tokio::test]
async fn the_program_finishes_what_it_began_when_told_to_stop() {
    let mut program = Command::new(env!("CARGO_BIN_EXE_warmpath-engine-sim"))
        .args(["--decode-ms-per-token", "10", "--stop-grace-ms", "5000"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(program.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let addresses: Value = serde_json::from_str(&line).unwrap();
    let url = format!("http://{}", addresses["http"].as_str().unwrap());
    let client = reqwest::Client::new();
    let request = client.post(format!("{url}/v1/completions")).json(&json!({"prompt": "a", "max_tokens": 60})).send();
    let stop = async {
        loop {
            let stats = client.get(format!("{url}/sim/stats")).send().await.unwrap();
            if stats.json::<Value>().await.unwrap()["running"] == 1 {
                break;
            }
        }
        assert!(Command::new("kill").args(["-TERM", &program.id().to_string()]).status().unwrap().success());
    };
    let (reply, ()) = tokio::join!(request, stop);
    let reply: Value = reply.unwrap().json().await.unwrap();
    assert_eq!(reply["usage"]["completion_tokens"], 60);
    let end = tokio::task::spawn_blocking(move || program.wait()).await.unwrap().unwrap();
    assert!(end.success(), "{end}");
}
