//! `cargo xtask real-vllm --faults`: what is predicted after something broke.
//!
//! After each fault one request is sent that is not judged, as engines publish only when they work. Then the event
//! stream is given its time, and from there on no prediction may be more than a block above what the engine reports.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::{Body, Method};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use warmpath_tests::harness::{Client, eventually};
use warmpath_tests::vllm::{Install, Replica, ReplicaOptions};

use crate::setting::Setting;
use crate::traffic::Traffic;
use crate::{Cli, say};

/// Requests judged after each fault.
const JUDGED: usize = 30;
/// Requests before a fault, so that there is something to be wrong about.
const BEFORE: usize = 20;
/// An engine that publishes or an indexer that serves has everybody told within this time.
const QUIET: Duration = Duration::from_millis(500);
/// So few batches that a replay does not reach back far.
const SHORT_BUFFER: u32 = 12;

/// What came of a fault.
#[derive(Debug, Serialize)]
struct Outcome {
    fault: &'static str,
    /// Requests judged.
    requests: usize,
    /// Of these: the engine had two blocks or more cached.
    with_cache: usize,
    /// Predicted more than a block too high. None may be.
    over_by_more_than_one_block: usize,
    /// Predicted more than a block too low.
    under_by_more_than_one_block: usize,
    /// From the fault's end until the stream was in sync and the endpoint up.
    settled_ms: u128,
    /// From the fault's end until the first request with something cached was predicted to within a block.
    recovered_ms: Option<u128>,
    /// Blocks evicted while they were judged.
    evictions: u64,
}

#[derive(Serialize)]
struct Report<'a> {
    faults: usize,
    over_by_more_than_one_block: usize,
    passed: bool,
    complaints: &'a [String],
    vllm_version: &'a str,
    block_size: u64,
    per_fault: &'a [Outcome],
}

/// Runs all faults. What is not as it should be is returned.
///
/// # Errors
/// If something does not start, or does not answer as it is known to.
pub async fn check(cli: &Cli, install: &Install) -> Result<Vec<String>> {
    let mut outcomes = Vec::new();
    one_engine(cli, install, &mut outcomes).await?;
    late(cli, install, &mut outcomes).await?;
    ranks(cli, install, &mut outcomes).await?;
    show(&outcomes);
    let complaints = complaints(&outcomes);
    if let Some(path) = &cli.json {
        let report = Report {
            faults: outcomes.len(),
            over_by_more_than_one_block: outcomes.iter().map(|o| o.over_by_more_than_one_block).sum(),
            passed: complaints.is_empty(),
            complaints: &complaints,
            vllm_version: &cli.vllm_version,
            block_size: cli.block_size,
            per_fault: &outcomes,
        };
        let text = serde_json::to_string_pretty(&report)? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(complaints)
}

fn options<'a>(cli: &Cli, install: &'a Install, number: usize) -> ReplicaOptions<'a> {
    // Resetting the cache is for developers.
    let environment = &[("VLLM_SERVER_DEV_MODE", "1")];
    let (block_size, blocks) = (cli.block_size, cli.blocks);
    ReplicaOptions { number, block_size, blocks, environment, ..ReplicaOptions::new(install) }
}

/// Faults of one engine with a long memory, and of its indexer.
async fn one_engine(cli: &Cli, install: &Install, outcomes: &mut Vec<Outcome>) -> Result<()> {
    say("starting vLLM, which takes half a minute");
    let setting = Setting::start(vec![Replica::start(install, options(cli, install, 0))?], cli.stride_bytes).await?;
    let mut run = Run { setting, traffic: traffic(cli), block: cli.block_size };

    outcomes.push(run.judge("evictions, and nothing else", Instant::now()).await?);

    run.warm_up().await?;
    let url = run.engine()?.url("/reset_prefix_cache");
    let reply = run.setting.client.send(Method::POST, &url, &[], Body::default()).await?;
    ensure!(reply.status == 200, "vLLM does not reset its cache: {} {}", reply.status, reply.body);
    outcomes.push(run.judge("reset_prefix_cache while idle", Instant::now()).await?);

    run.warm_up().await?;
    let load = Load::start(&run.setting, cli);
    run.setting.gateway.indexer.process.signal("STOP")?;
    sleep(Duration::from_secs(5)).await;
    run.setting.gateway.indexer.process.signal("CONT")?;
    let since = Instant::now();
    load.stop().await?;
    run.setting.recount().await?;
    outcomes.push(run.judge("indexer stopped for 5 s under load", since).await?);

    run.warm_up().await?;
    run.setting.gateway.indexer.restart().await?;
    outcomes.push(run.judge("indexer killed and restarted", Instant::now()).await?);

    for (fault, seed) in [("engine killed and restarted", 77), ("engine restarted with the same hash seed", 77)] {
        run.warm_up().await?;
        say(&format!("{fault}, which takes half a minute"));
        run.engine()?.kill();
        run.engine()?.start_again(seed)?;
        let client = run.setting.client.clone();
        run.engine()?.ready(&client).await?;
        run.setting.recount().await?;
        outcomes.push(run.judge(fault, Instant::now()).await?);
    }
    Ok(())
}

/// An indexer that comes when much of what the engine said can no longer be had.
async fn late(cli: &Cli, install: &Install, outcomes: &mut Vec<Outcome>) -> Result<()> {
    say("starting vLLM with a short replay buffer");
    let options = ReplicaOptions { buffer_steps: SHORT_BUFFER, ..options(cli, install, 1) };
    let mut replica = Replica::start(install, options)?;
    let client = Client::new()?;
    replica.ready(&client).await?;
    let mut traffic = traffic(cli);
    // Each request takes several steps that publish.
    for _ in 0..SHORT_BUFFER {
        let turn = traffic.next()?;
        let reply = client.post(&replica.url("/v1/chat/completions"), &[], &turn.body).await?;
        ensure!(reply.status == 200, "a request failed: {} {}", reply.status, reply.body);
    }
    let since = Instant::now();
    let setting = Setting::before(vec![replica], client, cli.stride_bytes).await?;
    let mut run = Run { setting, traffic, block: cli.block_size };
    outcomes.push(run.judge("indexer joins after the replay buffer rolled over", since).await?);
    Ok(())
}

/// Two caches behind one address.
async fn ranks(cli: &Cli, install: &Install, outcomes: &mut Vec<Outcome>) -> Result<()> {
    say("starting vLLM with two data-parallel ranks, which takes a minute");
    let options = ReplicaOptions { ranks: 2, ..options(cli, install, 2) };
    let setting = Setting::start(vec![Replica::start(install, options)?], cli.stride_bytes).await?;
    let mut run = Run { setting, traffic: traffic(cli), block: cli.block_size };
    outcomes.push(run.judge("two data-parallel ranks", Instant::now()).await?);
    Ok(())
}

fn traffic(cli: &Cli) -> Traffic {
    Traffic::new(cli.groups, cli.answer_tokens, cli.seed)
}

/// A setting that is being broken.
struct Run {
    setting: Setting,
    traffic: Traffic,
    block: u64,
}

impl Run {
    fn engine(&mut self) -> Result<&mut Replica> {
        self.setting.replicas.first_mut().context("no engine")
    }

    async fn warm_up(&mut self) -> Result<()> {
        for _ in 0..BEFORE {
            self.setting.turn(&mut self.traffic).await?;
        }
        sleep(QUIET).await;
        Ok(())
    }

    /// Lets things settle, then sends requests one at a time. `since`: when the fault was over.
    async fn judge(&mut self, fault: &'static str, since: Instant) -> Result<Outcome> {
        say(&format!("judging: {fault}"));
        let turn = self.traffic.next()?;
        let reply = self.setting.send(&turn).await?;
        ensure!(reply.status == 200, "after the fault a request failed: {} {}", reply.status, reply.body);
        let indexer = &self.setting.gateway.indexer;
        eventually("the streams are in sync and the endpoints up", Duration::from_secs(60), async || {
            let metrics = indexer.metrics().await?;
            let all = |name: &str| {
                let mut samples = metrics.lines().filter(|line| line.starts_with(name)).peekable();
                samples.peek().is_some() && samples.all(|line| line.ends_with(" 1"))
            };
            Ok(all("warmpath_stream_in_sync{") && all("warmpath_endpoint_up{"))
        })
        .await?;
        let settled_ms = since.elapsed().as_millis();
        sleep(QUIET).await;
        self.setting.recount().await?;
        let (mut seen, mut recovered_ms) = (Vec::new(), None);
        while seen.len() < JUDGED {
            let one = self.setting.turn(&mut self.traffic).await?;
            if one.cached >= 2 * self.block && !one.over(self.block) && !one.under(self.block) {
                recovered_ms.get_or_insert(since.elapsed().as_millis());
            }
            seen.push(one);
            // Events reach the filter some milliseconds after the answer.
            sleep(Duration::from_millis(100)).await;
        }
        let count = |what: &dyn Fn(&crate::judge::Seen) -> bool| seen.iter().filter(|one| what(one)).count();
        let evictions = |one: Option<&crate::judge::Seen>| one.map_or(0, |one| one.evictions);
        let outcome = Outcome {
            fault,
            requests: seen.len(),
            with_cache: count(&|one| one.cached >= 2 * self.block),
            over_by_more_than_one_block: count(&|one| one.over(self.block)),
            under_by_more_than_one_block: count(&|one| one.under(self.block)),
            settled_ms,
            recovered_ms,
            evictions: evictions(seen.last()) - evictions(seen.first()),
        };
        let over = outcome.over_by_more_than_one_block;
        say(&format!("    too high: {over}, settled after {settled_ms} ms, recovered after {recovered_ms:?} ms"));
        Ok(outcome)
    }
}

/// Requests of nobody in particular, several at a time.
struct Load {
    workers: JoinSet<Result<usize>>,
    stop: tokio::sync::watch::Sender<bool>,
}

impl Load {
    fn start(setting: &Setting, cli: &Cli) -> Self {
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let mut workers = JoinSet::new();
        for worker in 0..4 {
            let (client, url) = (setting.client.clone(), setting.gateway.envoy.url("/v1/chat/completions"));
            let mut traffic = Traffic::new(cli.groups, 32, cli.seed + 100 + worker);
            let stopped = stopped.clone();
            workers.spawn(async move {
                let mut sent = 0;
                while !*stopped.borrow() {
                    let turn = traffic.next()?;
                    let reply = client.post(&url, &[], &turn.body).await?;
                    ensure!(reply.status == 200, "a request failed: {} {}", reply.status, reply.body);
                    sent += 1;
                }
                Ok(sent)
            });
        }
        Self { workers, stop }
    }

    /// Ends when the last request is answered.
    async fn stop(mut self) -> Result<()> {
        self.stop.send_replace(true);
        let mut sent = 0;
        while let Some(worker) = self.workers.join_next().await {
            sent += worker.context("a worker ended")??;
        }
        ensure!(sent > 0, "no request was answered under load");
        Ok(())
    }
}

fn complaints(outcomes: &[Outcome]) -> Vec<String> {
    let mut complaints = Vec::new();
    for Outcome { fault, requests, with_cache, over_by_more_than_one_block: over, recovered_ms, .. } in outcomes {
        if *over > 0 {
            complaints.push(format!("{fault}: {over} of {requests} predictions were more than a block too high"));
        }
        if recovered_ms.is_none() {
            complaints.push(format!("{fault}: nothing that was cached was predicted again"));
        }
        // Without these the rest would be true of a Warmpath that does nothing.
        if with_cache * 3 < *requests {
            complaints
                .push(format!("{fault}: only {with_cache} of {requests} prompts were cached: it showed too little"));
        }
    }
    if outcomes.first().is_some_and(|outcome| outcome.evictions == 0) {
        complaints.push("nothing was evicted: run with fewer blocks".to_owned());
    }
    complaints
}

fn show(outcomes: &[Outcome]) {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["fault", "judged", "cached", "too high", "too low", "settled ms", "recovered ms", "evictions"]);
    for one in outcomes {
        table.add_row([
            one.fault.to_owned(),
            one.requests.to_string(),
            one.with_cache.to_string(),
            one.over_by_more_than_one_block.to_string(),
            one.under_by_more_than_one_block.to_string(),
            one.settled_ms.to_string(),
            one.recovered_ms.map_or_else(|| "never".to_owned(), |ms| ms.to_string()),
            one.evictions.to_string(),
        ]);
    }
    println!("{table}");
    println!("too high, too low: by more than a block");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome() -> Outcome {
        Outcome {
            fault: "a fault",
            requests: 30,
            with_cache: 20,
            over_by_more_than_one_block: 0,
            under_by_more_than_one_block: 1,
            settled_ms: 5,
            recovered_ms: Some(7),
            evictions: 3,
        }
    }

    #[test]
    fn whatever_shows_too_little_or_too_much_is_complained_of() {
        let said = |outcome: Outcome| complaints(&[outcome]).join("; ");
        assert_eq!(said(outcome()), "");
        assert!(said(Outcome { over_by_more_than_one_block: 1, ..outcome() }).contains("too high"));
        assert!(said(Outcome { recovered_ms: None, ..outcome() }).contains("predicted again"));
        assert!(said(Outcome { with_cache: 9, ..outcome() }).contains("too little"));
        assert!(said(Outcome { evictions: 0, ..outcome() }).contains("evicted"));
    }
}
