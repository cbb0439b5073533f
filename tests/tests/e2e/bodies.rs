//! Whatever a client sends, some engine answers it.

use super::{BOTH, CHAT, chat, engine, post, text};
use reqwest::{Body, Method};
use serde_json::json;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use warmpath_tests::harness::{MODEL, Reply, Stack, StackOptions, eventually};

async fn send(stack: &Stack, method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Reply {
    stack.client.send(method, &stack.envoy.url(path), headers, body.into()).await.unwrap()
}

/// Requests an engine has seen in all, whatever it answered.
fn answered_by_an_engine(reply: &Reply) -> bool {
    reply.header("x-engine").is_some()
}

#[tokio::test]
async fn odd_requests_reach_an_engine_and_its_answer_comes_back() {
    for envoy in BOTH {
        let stack = Stack::start(StackOptions { envoy, ..StackOptions::default() }).await.unwrap();
        let gzip = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0xab, 0xae, 5, 0, 0x43, 0xbf, 0xa6, 0xa3, 2, 0, 0, 0].to_vec();
        let json = [("content-type", "application/json")];
        let zipped = [("content-type", "application/json"), ("content-encoding", "gzip")];
        for (what, status, reply) in [
            ("an empty body", 400, send(&stack, Method::POST, CHAT, &json, "").await),
            ("no JSON", 400, send(&stack, Method::POST, CHAT, &json, "{\"model\": ").await),
            ("JSON of another shape", 400, send(&stack, Method::POST, CHAT, &json, "[1,2]").await),
            ("gzip", 400, send(&stack, Method::POST, CHAT, &zipped, gzip).await),
            ("GET", 200, send(&stack, Method::GET, "/v1/models", &[], "").await),
            ("GET of a prompt's path", 405, send(&stack, Method::GET, CHAT, &[], "").await),
            ("an unknown path", 404, send(&stack, Method::POST, "/v1/nowhere", &json, "{}").await),
            ("an unknown model", 404, post(&stack, &json!({"model": "else", "messages": []}), &[]).await),
        ] {
            assert!(answered_by_an_engine(&reply), "{envoy}: {what} was not answered by an engine: {reply:?}");
            assert_eq!(reply.status, status, "{envoy}: {what}: {}", reply.body);
        }
        // And the filter is as well as before.
        engine(&post(&stack, &chat("x", "y", 1), &[]).await);
        assert_eq!(stack.filter_stat("fleet.in_flight").await.unwrap(), 0);
    }
}

#[tokio::test]
async fn bodies_of_3_mb_are_answered_and_matched() {
    for envoy in BOTH {
        let engine_flags = ["--blocks", "150000", "--max-model-len", "2000000", "--prefill-tokens-per-second", "0"];
        let engine_flags = engine_flags.map(str::to_owned).to_vec();
        let stack = Stack::start(StackOptions { envoy, engine_flags, ..StackOptions::default() }).await.unwrap();
        let long = text(3, 500_000);
        assert!(long.len() > 3_000_000);
        let first = post(&stack, &chat(&long, "one", 1), &[]).await;
        let home = engine(&first);
        let again = post(&stack, &chat(&long, "two", 1), &[]).await;
        assert_eq!(engine(&again), home, "{envoy}");
        assert!(super::cached(&again) > 100_000, "{envoy}: {}", super::cached(&again));
    }
}

#[tokio::test]
async fn a_body_longer_than_may_be_held_goes_on_unread() {
    for envoy in BOTH {
        let filter = json!({"max_body_bytes": 10_000});
        let stack = Stack::start(StackOptions { envoy, filter, ..StackOptions::default() }).await.unwrap();
        for words in [10, 1_000, 5_000, 15_000] {
            engine(&post(&stack, &chat(&text(4, words), "q", 1), &[]).await);
        }
        assert_eq!(stack.filter_stat("unknown.body_too_long").await.unwrap(), 2, "{envoy}");
    }
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_no_load_behind() {
    for envoy in BOTH {
        let engine_flags = vec!["--decode-ms-per-token".to_owned(), "50".to_owned()];
        let stack = Stack::start(StackOptions { envoy, engine_flags, ..StackOptions::default() }).await.unwrap();
        let body = chat(&text(5, 300), "q", 200).to_string();
        let head = format!(
            "POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        // Half a body, then nothing.
        for _ in 0..5 {
            let mut half = TcpStream::connect(stack.envoy.address).await.unwrap();
            half.write_all(&[head.as_bytes(), &body.as_bytes()[..body.len() / 2]].concat()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(half);
        }
        // A whole one, and gone while the engine generates.
        let mut whole = TcpStream::connect(stack.envoy.address).await.unwrap();
        whole.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await.unwrap();
        eventually("the request is charged", Duration::from_secs(5), async || {
            Ok(stack.filter_stat("fleet.in_flight").await? == 1)
        })
        .await
        .unwrap();
        drop(whole);
        eventually("all charges are given back", Duration::from_secs(5), async || {
            let left = stack.envoy.stats("wasmcustom.warmpath.default.").await?;
            let charged = |(name, value): (&String, &u64)| {
                (name.ends_with(".in_flight") || name.ends_with(".queued_tokens")) && *value > 0
            };
            Ok(!left.iter().any(charged))
        })
        .await
        .unwrap();
        engine(&post(&stack, &chat("x", "y", 1), &[]).await);
    }
}

#[tokio::test]
async fn bodies_that_end_with_trailers_are_decided_too() {
    for envoy in BOTH {
        let stack = Stack::start(StackOptions { envoy, ..StackOptions::default() }).await.unwrap();
        let body = chat(&text(6, 300), "q", 1).to_string();
        let mut client = TcpStream::connect(stack.envoy.address).await.unwrap();
        let head = format!(
            "POST {CHAT} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n",
            body.len()
        );
        client.write_all(head.as_bytes()).await.unwrap();
        client.write_all(body.as_bytes()).await.unwrap();
        client.write_all(b"\r\n0\r\nx-checksum: 1\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("x-engine"), "{envoy}: {answer}");
    }
}

#[tokio::test]
async fn streams_pass_through_chunk_by_chunk_and_report_their_cache_hits() {
    let stack = Stack::start(StackOptions::default()).await.unwrap();
    let mut body = chat(&text(8, 200), "q", 5);
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    assert_eq!(body["model"], MODEL);
    let reply = post(&stack, &body, &[]).await;
    engine(&reply);
    let chunks = reply.body.matches("data: ").count();
    assert!(chunks >= 7 && reply.body.trim_end().ends_with("[DONE]"), "{}", reply.body);
    assert!(reply.body.contains("cached_tokens"));
}
