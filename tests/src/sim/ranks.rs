//! The data-parallel ranks behind one HTTP API: which of them a request goes to, and where they publish.

use std::net::SocketAddr;

use axum::http::HeaderMap;
use serde_json::{Map, Value, json};

use super::engine::Engine;
use super::openai::Refusal;

/// One rank: an engine with a cache and sockets of its own.
#[derive(Clone)]
pub struct Rank {
    /// What computes.
    pub engine: Engine,
    /// Where it publishes.
    pub events: SocketAddr,
    /// Where it replays.
    pub replay: SocketAddr,
}

/// The rank that a request names, or else the one with the least to do, as vLLM chooses. A number that is none is
/// ignored, and one of a rank that is not there is refused, as by vLLM.
pub fn choose(ranks: &[Rank], headers: &HeaderMap) -> Result<(usize, Engine), Refusal> {
    let asked = headers.get("x-data-parallel-rank").and_then(|value| value.to_str().ok()?.parse::<i64>().ok());
    let least = || (0..ranks.len()).min_by_key(|rank| ranks.get(*rank).map_or(0, |r| r.engine.stats().in_flight));
    let at = asked.map_or_else(least, |rank| usize::try_from(rank).ok());
    at.and_then(|at| Some((at, ranks.get(at)?.engine.clone()))).ok_or_else(|| {
        Refusal::bad(format!("data_parallel_rank {} is out of range [0, {}).", asked.unwrap_or(0), ranks.len()))
    })
}

/// What `GET /kv_event_sources` answers.
pub fn sources(ranks: &[Rank], topic: &str, buffer_steps: u32) -> Value {
    let anywhere = |at: &SocketAddr| format!("tcp://*:{}", at.port());
    let source = |(number, rank): (usize, &Rank)| {
        let source = json!({
            "enable_kv_cache_events": true, "publisher": "zmq", "endpoint": anywhere(&rank.events),
            "replay_endpoint": anywhere(&rank.replay), "buffer_steps": buffer_steps, "hwm": 100_000,
            "max_queue_size": 100_000, "topic": topic,
        });
        (number.to_string(), source)
    };
    Value::Object(ranks.iter().enumerate().map(source).collect::<Map<_, _>>())
}
