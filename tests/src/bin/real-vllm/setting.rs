//! Engines behind the gateway, and what all of them say of a request.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::time::sleep;
use warmpath_tests::harness::{Client, Reply};
use warmpath_tests::vllm::{Counters, MODEL, Replica};

use crate::evictions::Evictions;
use crate::gateway::Gateway;
use crate::judge::Seen;
use crate::say;
use crate::traffic::{Answer, Traffic, Turn};

/// Everything that runs.
pub struct Setting {
    pub gateway: Gateway,
    pub replicas: Vec<Replica>,
    pub client: Client,
    evictions: Evictions,
    /// As of the last request.
    counters: Vec<Counters>,
}

impl Setting {
    /// Waits for the engines, and puts the gateway before them.
    ///
    /// # Errors
    /// If something does not start.
    pub async fn start(mut replicas: Vec<Replica>, stride_bytes: u64) -> Result<Self> {
        let client = Client::new()?;
        for replica in &mut replicas {
            replica.ready(&client).await?;
        }
        Self::before(replicas, client, stride_bytes).await
    }

    /// Puts the gateway before engines that serve already.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn before(replicas: Vec<Replica>, client: Client, stride_bytes: u64) -> Result<Self> {
        let evictions = Evictions::listen(replicas.iter().flat_map(Replica::publishers)).await?;
        say("starting the indexer and Envoy");
        let endpoints: Vec<Value> = replicas.iter().map(Replica::endpoint).collect();
        let model = replicas.first().context("no engine")?.model();
        let models = json!([{"name": MODEL, "tokenizer": model}]);
        let indexer = json!({"stride_bytes": stride_bytes, "models": models, "endpoints": endpoints});
        let addresses: Vec<SocketAddr> = replicas.iter().map(|replica| replica.address).collect();
        let gateway = Gateway::start(indexer, &addresses).await?;
        let mut setting = Self { gateway, replicas, client, evictions, counters: Vec::new() };
        setting.recount().await?;
        Ok(setting)
    }

    /// Sends a request and compares what is said of it.
    ///
    /// # Errors
    /// If it fails, or if not all is said that should be.
    pub async fn turn(&mut self, traffic: &mut Traffic) -> Result<Seen> {
        let turn = traffic.next()?;
        let reply = self.send(&turn).await?;
        ensure!(reply.status == 200, "a request failed: {} {}", reply.status, reply.body);
        let mut counters = std::mem::take(&mut self.counters);
        let (answer, mut one) = self.one(&turn, &reply, &mut counters).await?;
        self.counters = counters;
        one.shared_with_last_turn = traffic.heard(&turn, answer);
        Ok(one)
    }

    /// Sends a request and does not look at what comes back, but for the status.
    ///
    /// # Errors
    /// If it fails.
    pub async fn send(&self, turn: &Turn) -> Result<Reply> {
        let url = self.gateway.envoy.url("/v1/chat/completions");
        self.client.post(&url, &[("x-warmpath-debug", "1")], &turn.body).await
    }

    /// Takes the engines' counters as they are now: others have sent requests, or an engine has begun anew.
    ///
    /// # Errors
    /// If an engine does not answer.
    pub async fn recount(&mut self) -> Result<()> {
        self.counters = self.counters().await?;
        Ok(())
    }

    /// What the filter, the response and the engines' metrics say of one request, and what it was answered.
    async fn one(&self, turn: &Turn, reply: &Reply, before: &mut Vec<Counters>) -> Result<(Answer, Seen)> {
        let body = reply.json()?;
        let number = |pointer: &str| body.pointer(pointer).and_then(Value::as_u64);
        let prompt_tokens = number("/usage/prompt_tokens").context("a response reports no usage")?;
        // Older releases report nothing where nothing was cached; whether it was is in the metrics too.
        let cached = number("/usage/prompt_tokens_details/cached_tokens").unwrap_or(0);
        let tokens = |pointer: &str| {
            let ids =
                body.pointer(pointer).and_then(Value::as_array).context("a response lacks the token ids asked for");
            anyhow::Ok(ids?.iter().filter_map(Value::as_u64).collect::<Vec<u64>>())
        };
        let text = body.pointer("/choices/0/message/content").and_then(Value::as_str).unwrap_or_default().to_owned();
        let answer =
            Answer { text, prompt_tokens: tokens("/prompt_token_ids")?, tokens: tokens("/choices/0/token_ids")? };

        // Metrics may lag behind the response by a moment.
        let mut counters = self.counters().await?;
        for _ in 0..100 {
            let queried: u64 = counters.iter().zip(&*before).map(|(c, b)| c.queried - b.queried).sum();
            if queried >= prompt_tokens {
                break;
            }
            sleep(Duration::from_millis(20)).await;
            counters = self.counters().await?;
        }
        let worked =
            self.replicas.iter().zip(counters.iter().zip(&*before)).filter(|(_, (c, b))| c.queried > b.queried);
        let worked: Vec<_> = worked.map(|(r, (c, b))| (r.address, c.queried - b.queried, c.hit - b.hit)).collect();
        let [(served_by, queried, cached_by_metrics)] = worked.as_slice() else {
            bail!("one request made {} replicas count a prompt: is something else using them?", worked.len());
        };
        ensure!(
            *queried == prompt_tokens,
            "{served_by} counted a prompt of {queried} tokens and reported {prompt_tokens}: is something else using it?"
        );
        *before = counters;

        let header = |name: &str| reply.header(name).with_context(|| format!("Envoy's response lacks {name}"));
        let decision = header("x-warmpath-decision")?.to_owned();
        let seen = Seen {
            group: turn.group,
            turn: turn.turn,
            prompt: header("x-warmpath-prompt")?.to_owned(),
            endpoint: address(header("x-warmpath-endpoint")?).context("x-warmpath-endpoint is not ip:port")?,
            served_by: *served_by,
            predicted: header("x-warmpath-hit-tokens")?.parse().context("x-warmpath-hit-tokens is no number")?,
            cached,
            cached_by_metrics: *cached_by_metrics,
            prompt_tokens,
            shared_with_last_turn: None,
            evictions: self.evictions.so_far(),
            matches: matches(reply.header("x-warmpath-matches").unwrap_or_default())?,
            decision,
        };
        Ok((answer, seen))
    }

    async fn counters(&self) -> Result<Vec<Counters>> {
        let mut counters = Vec::new();
        for replica in &self.replicas {
            counters.push(replica.counters(&self.client).await?);
        }
        Ok(counters)
    }
}

/// Reads `ip:port`, behind which a rank may stand: `ip:port#rank`.
fn address(endpoint: &str) -> Option<SocketAddr> {
    endpoint.split('#').next()?.parse().ok()
}

/// Reads `ip:port=tokens,...`.
fn matches(header: &str) -> Result<Vec<(SocketAddr, u64)>> {
    let read = |entry: &str| {
        let (endpoint, tokens) = entry.split_once('=')?;
        Some((address(endpoint)?, tokens.parse().ok()?))
    };
    let entries = header.split(',').filter(|entry| !entry.is_empty());
    let entries =
        entries.map(|entry| read(entry).with_context(|| format!("x-warmpath-matches has an odd entry: {entry:?}")));
    entries.collect()
}
