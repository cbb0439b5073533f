//! Warmpath as a whole: real Envoy with the shipped configurations, the indexer, simulated engines.
//!
//! What is asserted comes from the engines' own reports (`x-engine`, `/sim/stats`) and Envoy's stats. The filter's
//! `x-warmpath-*` headers are only used to wait for a state, or where they are what is tested.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod bodies;
mod endpoints;
mod failures;
mod hold;
mod loads;
mod rows;
mod selftest;

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use warmpath_tests::harness::{MODEL, Reply, Stack, eventually};

/// Both shipped ways of holding a request.
const BOTH: [&str; 2] = ["warmpath.yaml", "warmpath-buffer.yaml"];
const CHAT: &str = "/v1/chat/completions";

/// Some text of `words` words that shares no beginning with that of another seed.
fn text(seed: u64, words: usize) -> String {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ["cache", "prefix", "token", "block", "holder", "stride", "page", "slot"][(state >> 33) as usize % 8]
    };
    (0..words).map(|_| word()).collect::<Vec<_>>().join(" ")
}

/// A chat body: a system prompt and a question.
fn chat(system: &str, question: &str, max_tokens: u32) -> Value {
    let messages = json!([{"role": "system", "content": system}, {"role": "user", "content": question}]);
    json!({"model": MODEL, "messages": messages, "max_tokens": max_tokens})
}

async fn post(stack: &Stack, body: &Value, headers: &[(&str, &str)]) -> Reply {
    stack.client.post(&stack.envoy.url(CHAT), headers, body).await.unwrap()
}

/// The engine that answered, by its own word.
fn engine(reply: &Reply) -> u16 {
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.header("x-engine").expect("an engine answered").parse().unwrap()
}

/// Prompt tokens found in cache, by the engine's own word.
fn cached(reply: &Reply) -> u64 {
    reply.json().unwrap().pointer("/usage/prompt_tokens_details/cached_tokens").and_then(Value::as_u64).unwrap()
}

/// Waits until the table shows a holder for this prompt. Sends nothing to be computed for long: one token.
async fn known_to_table(stack: &Stack, system: &str) -> SocketAddr {
    let mut holder = None;
    eventually("the table shows who holds the prompt", Duration::from_secs(10), async || {
        let reply = post(stack, &chat(system, "known?", 1), &[("x-warmpath-debug", "1")]).await;
        let matches = reply.header("x-warmpath-matches").unwrap_or_default().to_owned();
        holder = matches.split_once('=').map(|(address, _)| address.parse().unwrap());
        Ok(holder.is_some())
    })
    .await
    .unwrap();
    holder.unwrap()
}
