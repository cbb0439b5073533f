//! From an event to a prediction that counts it, through real sockets, indexer and Envoy.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use affinity::Stride;
use affinity::page::GRANULE;
use anyhow::{Context, Result, ensure};
use axum::Router;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use warmpath_tests::harness::{Client, Envoy, EnvoyConfig, EnvoyOptions, Indexer, MODEL, Reply, Stack, eventually};
use warmpath_tests::index_bench::engine::Engine;
use warmpath_tests::index_bench::work::BLOCK;
use warmpath_tests::load::Phrases;
use warmpath_tests::sim::events::Encoding;
use warmpath_tests::sim::fixture_tokenizer;
use warmpath_tests::sim::publisher::{Format, Publisher};

const ENGINES: usize = 4;
/// Blocks of a conversation that grows block by block, before another one begins.
const LONGEST: usize = 64;
/// Blocks in a batch while caches are filled.
const FILL: usize = 32;
/// Longest pause before another batch is looked for.
const PAUSE: Duration = Duration::from_millis(25);
/// An event that is not seen by then never is.
const PATIENCE: Duration = Duration::from_secs(5);

pub struct Lag {
    pub samples: usize,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub most_ms: f64,
    /// One request through Envoy and back, by itself.
    pub request_ms: f64,
    pub pages_per_second: f64,
    pub rows_per_second: f64,
    pub replies_per_second: f64,
    pub bytes_per_second: f64,
    /// CPU, in cores, while nobody sends requests.
    pub envoy: f64,
    pub indexer: f64,
}

/// An engine without an engine: its cache, its conversations, and its event port.
struct Source {
    address: SocketAddr,
    engine: Engine,
    publisher: Publisher,
    /// The conversation that grows: hashes and tokens of its blocks.
    hashes: Vec<u64>,
    tokens: Vec<u32>,
}

/// A batch to look for.
struct Probe {
    published: Instant,
    /// Who holds it, and as how many tokens the table will show it.
    address: SocketAddr,
    tokens: u32,
    prompt: String,
}

/// Has engines publish `rate` events of `blocks` blocks a second for `time`, and looks for one after the other.
pub async fn measure(blocks: usize, rate: u32, held: usize, time: Duration) -> Result<Lag> {
    let phrases = Phrases::new()?;
    let mut sources = Vec::new();
    for _ in 0..ENGINES {
        sources.push(Source::start(held / ENGINES).await?);
    }
    let addresses: Vec<SocketAddr> = sources.iter().map(|(source, _)| source.address).collect();
    let endpoints: Vec<_> = sources
        .iter()
        .map(|(source, events)| {
            let events = format!("tcp://{events}");
            json!({"address": source.address, "model": MODEL, "events": events, "metrics": "none"})
        })
        .collect();
    // Nobody there could answer the self-test.
    let model = json!({"name": MODEL, "tokenizer": fixture_tokenizer(), "self_test": false});
    let indexer = Indexer::start(json!({"models": [model], "endpoints": endpoints})).await?;
    let mut config = EnvoyConfig::shipped("warmpath.yaml")?;
    config.set_endpoints("engines", &addresses)?;
    config.set_endpoints("warmpath_indexer", &[indexer.address])?;
    let envoy = Envoy::start(EnvoyOptions { log_level: "warn", ..EnvoyOptions::new(config) }).await?;
    let mut stack = Stack::assemble(envoy, indexer, Vec::new())?;
    stack.fleet_known().await?;

    let mut sources: Vec<Source> = sources.into_iter().map(|(source, _)| source).collect();
    let mut random = StdRng::seed_from_u64(11);
    fill(&mut sources, &phrases, &mut random, &stack, held).await?;
    let (probes, found) = mpsc::channel(1);
    let wanted = Arc::new(AtomicBool::new(false));
    let (stop, stopped) = oneshot::channel();
    let publishing = tokio::spawn(publish(sources, phrases, random, (blocks, rate), (probes, wanted.clone()), stopped));
    // Requests stop while CPU is measured: they are no part of what events cost. Nor is the table's first transfer.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = Usage::now(&stack).await?;
    tokio::time::sleep((time / 4).max(Duration::from_secs(1))).await;
    let used = Usage::now(&stack).await?.since(&before);
    let (mut lags, mut requests) = probe(&stack, found, &wanted, time).await?;
    let _ = stop.send(());
    publishing.await??;
    lags.sort_unstable_by(f64::total_cmp);
    requests.sort_unstable_by(f64::total_cmp);
    let at = |values: &[f64], share: f64| values[((values.len() - 1) as f64 * share) as usize];
    ensure!(lags.len() >= 10, "only {} events were seen in {time:?}", lags.len());
    let seconds = used.time.as_secs_f64();
    Ok(Lag {
        samples: lags.len(),
        p50_ms: at(&lags, 0.5),
        p99_ms: at(&lags, 0.99),
        most_ms: at(&lags, 1.0),
        request_ms: at(&requests, 0.5),
        pages_per_second: used.pages / seconds,
        rows_per_second: used.rows / seconds,
        replies_per_second: used.replies / seconds,
        bytes_per_second: used.bytes / seconds,
        envoy: used.envoy.as_secs_f64() / seconds,
        indexer: used.indexer.as_secs_f64() / seconds,
    })
}

impl Source {
    /// Also where it publishes.
    async fn start(blocks: usize) -> Result<(Self, SocketAddr)> {
        // An engine that answers whatever it is asked.
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(|| async { "{}" })).await });
        let format = Format { topic: String::new(), encoding: Encoding::Map, block_size: BLOCK, buffer: 0 };
        let (publisher, events, _) = Publisher::bind(format, 0, 0).await?;
        let engine = Engine::new(blocks);
        Ok((Self { address, engine, publisher, hashes: Vec::new(), tokens: Vec::new() }, events))
    }

    /// Publishes one batch that stores this many blocks.
    fn store(&mut self, blocks: usize, phrases: &Phrases, random: &mut StdRng) -> Instant {
        if self.hashes.len() + blocks > LONGEST.min(blocks * LONGEST) || blocks > 1 {
            (self.hashes, self.tokens) = (Vec::new(), phrases.tokens(random, blocks.max(LONGEST) * BLOCK));
        }
        self.hashes.extend((0..blocks).map(|_| random.random::<u64>()));
        let mut events = Vec::new();
        let tokens = &self.tokens[..self.hashes.len() * BLOCK];
        self.engine.serve(&self.hashes, tokens, usize::MAX, &mut events);
        let now = Instant::now();
        self.publisher.publish(&events);
        now
    }

    /// What to look for after a batch of this many blocks: nothing, if the table shows no more of the conversation
    /// than before.
    fn probe(&self, blocks: usize, published: Instant, phrases: &Phrases) -> Result<Option<Probe>> {
        let held = &self.tokens[..self.hashes.len() * BLOCK];
        let mut ends = vec![0];
        for block in held.chunks(BLOCK) {
            ends.push(ends[ends.len() - 1] + phrases.text(block)?.len());
        }
        let shown = |blocks: usize| {
            let end = ends[blocks] / Stride::default().bytes() * Stride::default().bytes();
            let whole = ends.iter().filter(|at| **at <= end).count() - 1;
            (whole * BLOCK) as u32 / GRANULE * GRANULE
        };
        let (before, now) = (shown(self.hashes.len() - blocks), shown(self.hashes.len()));
        let probe = Probe { published, address: self.address, tokens: now, prompt: phrases.text(held)? };
        Ok((now > before).then_some(probe))
    }
}

/// Has every cache filled, and the indexer know.
async fn fill(
    sources: &mut [Source],
    phrases: &Phrases,
    random: &mut StdRng,
    stack: &Stack,
    held: usize,
) -> Result<()> {
    let per_source = held / ENGINES / FILL;
    eventually("the indexer listens to the engines", Duration::from_secs(20), async || {
        for source in &mut *sources {
            source.store(FILL, phrases, random);
        }
        let metrics = stack.indexer.metrics().await?;
        Ok(metric(&metrics, "warmpath_index_blocks")? >= (ENGINES * FILL) as f64)
    })
    .await?;
    for round in 0..per_source {
        for source in &mut *sources {
            source.store(FILL, phrases, random);
        }
        if round % 64 == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let full: usize = sources.iter().map(|source| source.engine.held()).sum();
    eventually("the indexer has what the engines have", Duration::from_secs(60), async || {
        // What was lost before it listened is evicted in time; a handful of blocks may be missing.
        Ok(metric(&stack.indexer.metrics().await?, "warmpath_index_blocks")? >= full as f64 * 0.95)
    })
    .await
}

/// Publishes at an even rate, source by source, until told to stop. Whenever a batch to look for is wanted, the next one is
/// told of.
async fn publish(
    mut sources: Vec<Source>,
    phrases: Phrases,
    mut random: StdRng,
    (blocks, rate): (usize, u32),
    (probes, wanted): (mpsc::Sender<Probe>, Arc<AtomicBool>),
    mut stopped: oneshot::Receiver<()>,
) -> Result<()> {
    let start = Instant::now();
    for n in 0.. {
        let due = start + Duration::from_secs(1) * n / rate;
        tokio::time::sleep_until(due.into()).await;
        if stopped.try_recv() != Err(oneshot::error::TryRecvError::Empty) {
            break;
        }
        let source = &mut sources[n as usize % ENGINES];
        let published = source.store(blocks, &phrases, &mut random);
        if wanted.load(Relaxed)
            && let Some(probe) = source.probe(blocks, published, &phrases)?
        {
            wanted.store(false, Relaxed);
            probes.send(probe).await?;
        }
    }
    Ok(())
}

/// Looks for batches until the time is up: lags, and how long single requests took, in milliseconds.
async fn probe(
    stack: &Stack,
    mut found: mpsc::Receiver<Probe>,
    wanted: &AtomicBool,
    time: Duration,
) -> Result<(Vec<f64>, Vec<f64>)> {
    let (url, client) = (stack.envoy.url("/v1/completions"), Client::new()?);
    let (mut lags, mut requests) = (Vec::new(), Vec::new());
    let (end, mut random) = (Instant::now() + time, StdRng::seed_from_u64(12));
    while Instant::now() < end {
        // What was seen came with a reply: without a pause, only batches right after replies would be looked for.
        tokio::time::sleep(random.random_range(Duration::ZERO..PAUSE)).await;
        wanted.store(true, Relaxed);
        let probe = found.recv().await.context("the engines stopped publishing")?;
        let body = json!({"model": MODEL, "prompt": probe.prompt, "max_tokens": 1});
        loop {
            let asked = Instant::now();
            let reply = client.post(&url, &[("x-warmpath-debug", "1")], &body).await?;
            ensure!(reply.status == 200, "{}: {}", reply.status, reply.body);
            requests.push(asked.elapsed().as_secs_f64() * 1e3);
            if shown(&reply, probe.address) >= probe.tokens {
                lags.push(probe.published.elapsed().as_secs_f64() * 1e3);
                break;
            }
            ensure!(
                probe.published.elapsed() < PATIENCE,
                "an event of {} tokens does not show after {PATIENCE:?}: {:?}",
                probe.tokens,
                reply.headers
            );
        }
    }
    Ok((lags, requests))
}

/// How many tokens of the prompt the table says an engine holds.
fn shown(reply: &Reply, address: SocketAddr) -> u32 {
    let matches = reply.header("x-warmpath-matches").unwrap_or_default();
    let of = |pair: &str| pair.strip_prefix(&format!("{address}="))?.parse().ok();
    matches.split(',').find_map(of).unwrap_or(0)
}

/// What was used since the start, or between two moments.
struct Usage {
    at: Instant,
    time: Duration,
    envoy: Duration,
    indexer: Duration,
    pages: f64,
    rows: f64,
    replies: f64,
    bytes: f64,
}

impl Usage {
    async fn now(stack: &Stack) -> Result<Self> {
        let metrics = stack.indexer.metrics().await?;
        Ok(Self {
            at: Instant::now(),
            time: Duration::ZERO,
            envoy: stack.envoy.process.cpu()?,
            indexer: stack.indexer.process.cpu()?,
            pages: metric(&metrics, "warmpath_sync_pages_total")?,
            rows: metric(&metrics, "warmpath_sync_rows_total")?,
            replies: metric(&metrics, "warmpath_sync_replies_total")?,
            bytes: metric(&metrics, "warmpath_sync_bytes_total")?,
        })
    }

    fn since(self, before: &Self) -> Self {
        Self {
            at: self.at,
            time: self.at - before.at,
            envoy: self.envoy - before.envoy,
            indexer: self.indexer - before.indexer,
            pages: self.pages - before.pages,
            rows: self.rows - before.rows,
            replies: self.replies - before.replies,
            bytes: self.bytes - before.bytes,
        }
    }
}

/// A metric without labels.
fn metric(page: &str, name: &str) -> Result<f64> {
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(value.with_context(|| format!("the indexer has no {name}"))?.trim().parse()?)
}
