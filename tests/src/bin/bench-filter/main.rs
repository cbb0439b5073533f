//! `cargo xtask bench filter`: what the filter costs, against the same Envoy without it.
//!
//! Everything on the filter's way is real: engine simulators have computed these very prompts and published their KV
//! events, the indexer has made its table of them, and every request is answered by the endpoint that the filter names.
//! Only that endpoint answers at once, without reading the prompt: its address stands in the indexer's configuration
//! where the simulator's would, so that what is measured is the proxy.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is a failed bench")]

mod conversations;
mod cpu;
mod load;
mod report;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde_json::{Value, json};
use warmpath_tests::harness::{
    Client, Engine, Envoy, EnvoyConfig, EnvoyOptions, Indexer, MODEL, eventually, repository,
};

use cpu::Cores;
use report::{Round, Sample, Size, Startup};

/// Name, bytes of a body, and how many conversations there are of this size.
const SIZES: [(&str, usize, u64); 3] = [("1kb", 1024, 32), ("30kb", 30 * 1024, 32), ("400kb", 400 * 1024, 8)];
const ENGINES: usize = 4;
/// What a hit may lack of the whole prompt, in tokens: less than a stride and a block, and the estimate's error.
const MAY_LACK: u64 = 100;

/// Measures CPU time and latency of one Envoy worker, with round robin and with Warmpath, in turns.
///
/// CPU is all that the Envoy process used, on a core of its own, per request. Both proxies get the same chat requests
/// over kept connections, in a closed loop, and the same engines that answer at once.
///
/// Example: cargo xtask bench filter --size 30kb --rounds 10 --json filter.json
#[derive(Parser)]
#[command(name = "cargo xtask bench filter", verbatim_doc_comment)]
struct Options {
    /// Write the results to this file, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only this size: 1kb, 30kb or 400kb.
    #[arg(long, value_parser = SIZES.map(|(name, ..)| name))]
    size: Option<String>,
    /// Rounds; in each, both proxies are measured.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds per proxy and round.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Kept connections, each with one request at a time.
    #[arg(long, default_value_t = 8)]
    connections: usize,
}

/// The proxies and what they are asked.
struct Bench {
    plain: Envoy,
    warm: Envoy,
    client: Client,
    // Held, as both end when dropped.
    _indexer: Indexer,
    _engines: Vec<Engine>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse();
    let cores = Cores::split()?;
    // Before anything is pinned: Envoy compiles the module on as many cores as it has.
    let startup = Startup::measure().await?;
    cores.keep_off(std::process::id())?;
    let chosen = SIZES.iter().filter(|(name, ..)| options.size.as_deref().is_none_or(|size| size == *name));
    let sizes: Vec<(&str, Vec<Value>)> = chosen
        .map(|&(name, bytes, count)| (name, (0..count).map(|n| conversations::body(MODEL, n, bytes)).collect()))
        .collect();

    let mut backends = Vec::new();
    for _ in 0..ENGINES {
        backends.push(load::backend().await?);
    }
    let bench = Bench::start(&backends, &sizes).await?;
    for envoy in [&bench.plain, &bench.warm] {
        cores.give(envoy.process.pid())?;
    }
    let mut results = Vec::new();
    for (name, bodies) in &sizes {
        bench.check(bodies, &backends).await.with_context(|| format!("{name}: not worth timing"))?;
        let requests: Vec<Vec<u8>> = bodies.iter().map(|body| load::request(&body.to_string())).collect();
        results.push(bench.measure(name, &requests, &options).await?);
    }
    report::print(&results, &startup);
    if let Some(path) = &options.json {
        let text = format!("{:#}\n", report::json(&results, &startup));
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

impl Bench {
    /// Starts everything and has conversation `n` computed by engine `n % ENGINES`.
    async fn start(backends: &[SocketAddr], sizes: &[(&str, Vec<Value>)]) -> Result<Self> {
        let client = Client::new()?;
        let tokenizer = repository().join("tests/fixtures/bench");
        let directory = tokenizer.to_str().context("the checkout's path is no UTF-8")?;
        let speed = ["--prefill-tokens-per-second", "0", "--prefill-overhead-ms", "0", "--decode-ms-per-token", "0"];
        let room = ["--tokenizer", directory, "--blocks", "100000", "--max-model-len", "1000000"];
        let mut engines = Vec::new();
        for _ in backends {
            engines.push(Engine::start(&[&speed[..], &room[..]].concat()).await?);
        }
        let mut config = Indexer::config(&engines);
        config["models"][0]["tokenizer"] = json!(tokenizer);
        for (number, (engine, backend)) in engines.iter().zip(backends).enumerate() {
            config["endpoints"][number]["address"] = json!(backend);
            config["endpoints"][number]["metrics"] = json!(engine.url("/metrics"));
        }
        let indexer = Indexer::start(config).await?;
        for (name, bodies) in sizes {
            eprintln!("computing {} prompts of {name}", bodies.len());
            for (number, body) in bodies.iter().enumerate() {
                let url = engines[number % ENGINES].url("/v1/chat/completions");
                let reply = client.post(&url, &[], body).await?;
                ensure!(reply.status == 200, "an engine refuses a prompt of {name}: {}", reply.body);
            }
        }
        let mut plain = EnvoyConfig::shipped("round-robin.yaml")?;
        plain.set_endpoints("engines", backends)?;
        let mut warm = EnvoyConfig::shipped("warmpath.yaml")?;
        warm.set_endpoints("engines", backends)?;
        warm.set_endpoints("warmpath_indexer", &[indexer.address])?;
        let quiet = |config| EnvoyOptions { log_level: "warn", ..EnvoyOptions::new(config) };
        let (plain, warm) = (Envoy::start(quiet(plain)).await?, Envoy::start(quiet(warm)).await?);
        Ok(Self { plain, warm, client, _indexer: indexer, _engines: engines })
    }

    /// Waits until each conversation goes to the engine that holds it, for that reason, and all of it is a hit.
    async fn check(&self, bodies: &[Value], backends: &[SocketAddr]) -> Result<()> {
        for (number, body) in bodies.iter().enumerate() {
            let holder = backends[number % ENGINES];
            let mut last = String::new();
            eventually("a conversation is sent to its holder", Duration::from_secs(30), async || {
                let reply = self
                    .client
                    .post(&self.warm.url("/v1/chat/completions"), &[("x-warmpath-debug", "1")], body)
                    .await?;
                let says = |name: &str| reply.header(&format!("x-warmpath-{name}")).unwrap_or("?").to_owned();
                let tokens = |name: &str| says(name).parse::<u64>().unwrap_or(0);
                let (endpoint, answered) = (says("endpoint"), reply.header("x-engine").unwrap_or("?"));
                ensure!(
                    endpoint == "?" || endpoint.ends_with(&format!(":{answered}")),
                    "the filter names {endpoint}, but {answered} answers"
                );
                last = format!("{:?}", reply.headers);
                Ok(says("decision") == "holder"
                    && endpoint == holder.to_string()
                    && tokens("prompt-tokens") > 0
                    && tokens("hit-tokens") + MAY_LACK >= tokens("prompt-tokens"))
            })
            .await
            .with_context(|| format!("conversation {number} of holder {holder}; last answer: {last}"))?;
        }
        Ok(())
    }

    async fn measure(&self, name: &str, requests: &[Vec<u8>], options: &Options) -> Result<Size> {
        eprintln!("measuring {name}");
        let time = Duration::from_secs_f64(options.seconds);
        let warm_up = time.min(Duration::from_secs(1));
        for envoy in [&self.plain, &self.warm] {
            load::drive(envoy.address, requests, options.connections, warm_up).await?;
        }
        let before = self.decisions().await?;
        let mut rounds = Vec::new();
        for number in 0..options.rounds {
            // Who goes first alternates, so that a machine that gets slower or faster favours neither.
            let round = if number % 2 == 0 {
                let plain = sample(&self.plain, requests, options.connections, time).await?;
                Round { plain, warm: sample(&self.warm, requests, options.connections, time).await? }
            } else {
                let warm = sample(&self.warm, requests, options.connections, time).await?;
                Round { plain: sample(&self.plain, requests, options.connections, time).await?, warm }
            };
            eprintln!("  {:.1} us, with Warmpath {:.1} us", round.plain.cpu_us, round.warm.cpu_us);
            rounds.push(round);
        }
        let after = self.decisions().await?;
        let (decided, held) = (after.0 - before.0, after.1 - before.1);
        Ok(Size { name: name.to_owned(), rounds, holder_share: held as f64 / decided.max(1) as f64 })
    }

    /// How many requests the filter has decided, and how many of them for the deepest holder.
    async fn decisions(&self) -> Result<(u64, u64)> {
        let prefix = "wasmcustom.warmpath.default.decisions.";
        let stats = self.warm.stats(prefix).await?;
        Ok((stats.values().sum(), stats.get(&format!("{prefix}holder")).copied().unwrap_or(0)))
    }
}

async fn sample(envoy: &Envoy, requests: &[Vec<u8>], connections: usize, time: Duration) -> Result<Sample> {
    let before = envoy.process.cpu()?;
    let figures = load::drive(envoy.address, requests, connections, time).await?;
    let used = envoy.process.cpu()?.saturating_sub(before);
    ensure!(figures.requests > 0, "no request was answered in {time:?}");
    Ok(Sample {
        cpu_us: used.as_secs_f64() * 1e6 / figures.requests as f64,
        p50_us: figures.percentile_us(0.5),
        p99_us: figures.percentile_us(0.99),
        requests_per_second: figures.requests as f64 / time.as_secs_f64(),
    })
}
