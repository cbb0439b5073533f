//! The table against the truth.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use affinity::page::GRANULE;
use affinity::{Stride, fingerprints, root};
use anyhow::{Context, Result};
use rand::SeedableRng;
use rand::rngs::StdRng;
use warmpath_tests::harness::{Gateway, Indexer, MODEL};
use warmpath_tests::index_bench::work::BLOCK;

use crate::conversations::Conversations;
use crate::site::Site;

/// Prompts looked up each time.
const PROMPTS: usize = 200;
/// How long settling may take: replays of all engines at once are part of it.
const PATIENCE: Duration = Duration::from_secs(60);
/// Nothing happens any more when the indexer has read nothing for so long.
const STILL: Duration = Duration::from_millis(700);
/// Complaints kept; one bug makes many.
const COMPLAINTS: usize = 20;

pub struct Audit {
    gateway: Gateway,
    random: StdRng,
    /// Events published less those the indexer has read, when it last had nothing to read.
    lost: i64,
    checked: u64,
    /// Tokens that the table could have told of, and those it told.
    could: u64,
    told: u64,
    complaints: Vec<String>,
}

impl Audit {
    pub fn new(indexer: &Indexer) -> Result<Self> {
        let gateway = Gateway::new(indexer.address, 1)?;
        let random = StdRng::seed_from_u64(99);
        Ok(Self { gateway, random, lost: 0, checked: 0, could: 0, told: 0, complaints: Vec::new() })
    }

    /// Waits until the indexer is not far behind.
    pub async fn keep_up(&mut self, indexer: &Indexer, sites: &[Site], backlog: u64) -> Result<()> {
        let published = published(sites);
        let mut before = None;
        loop {
            let behind = published - Metrics::read(indexer).await?.sum("warmpath_events_total");
            if behind - self.lost <= backlog as i64 {
                return Ok(());
            }
            // Lost for good, or read twice in a replay.
            if before == Some(behind) {
                self.lost = behind;
                return Ok(());
            }
            before = Some(behind);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Lets everything settle, then compares. Says what it saw in a few words.
    pub async fn hold(&mut self, indexer: &Indexer, sites: &[Site], conversations: &Conversations) -> Result<String> {
        let metrics = self.settled(indexer, sites).await?;
        self.gateway.sync(50).await?;
        let present: Vec<&Site> = sites.iter().filter(|site| site.present).collect();
        let late = |site: &Site| metrics.of("warmpath_stream_partial", site) != Some(0.0);
        let joined_late = present.iter().filter(|site| late(site)).count();
        let (have, hold) =
            (metrics.sum("warmpath_index_blocks"), present.iter().map(|s| s.engine.held()).sum::<usize>());
        if have > hold as i64 || (joined_late == 0 && have != hold as i64) {
            self.complain(format!("the index has {have} blocks, the engines hold {hold}; {joined_late} joined late"));
        }
        for conversation in conversations.sample(PROMPTS, &mut self.random) {
            let (mut text, mut ends) = (String::new(), vec![0]);
            for block in conversation.tokens().chunks(BLOCK) {
                text += &conversations.phrases.text(block)?;
                ends.push(text.len());
            }
            let mut prompt = Vec::new();
            fingerprints(Stride::default(), root(MODEL, None), text.as_bytes(), &mut prompt);
            let granules = |blocks: usize| (blocks * BLOCK) as u32 / GRANULE * GRANULE;
            let can_tell = |blocks: usize| {
                let end = ends[blocks] / Stride::default().bytes() * Stride::default().bytes();
                granules(ends.iter().filter(|at| **at <= end).count() - 1)
            };
            let matches: BTreeMap<String, u32> =
                self.gateway.matches(&prompt).into_iter().map(|(at, tokens)| (at.to_owned(), tokens)).collect();
            let (mut deepest, mut most) = (0, 0);
            for site in &present {
                let held = site.engine.holds(&site.hashes(&conversation));
                let told = matches.get(&site.address.to_string()).copied().unwrap_or(0);
                if told > granules(held) {
                    let held = held * BLOCK;
                    self.complain(format!("{} holds {held} tokens of a prompt, the table says {told}", site.address));
                }
                deepest = deepest.max(if late(site) { 0 } else { can_tell(held) });
                most = most.max(told);
            }
            if most < deepest {
                self.complain(format!("an engine holds {deepest} tokens of a prompt, the table says {most} at most"));
            }
            if matches.keys().any(|at| !present.iter().any(|site| site.address.to_string() == *at)) {
                self.complain(format!("{matches:?}: not all of them are in the fleet"));
            }
            self.checked += 1;
            self.could += u64::from(deepest);
            self.told += u64::from(most.min(deepest));
        }
        self.lost = published(sites) - metrics.sum("warmpath_events_total");
        Ok(format!("{have} blocks of {hold} held known, {joined_late} engines joined late"))
    }

    /// Once every stream is in sync and nothing is read any more.
    async fn settled(&self, indexer: &Indexer, sites: &[Site]) -> Result<Metrics> {
        let (start, mut since) = (Instant::now(), Instant::now());
        let mut before = None;
        loop {
            let metrics = Metrics::read(indexer).await?;
            let lagging: Vec<String> = sites
                .iter()
                .filter(|site| site.present && metrics.of("warmpath_stream_in_sync", site) != Some(1.0))
                .map(|site| site.address.to_string())
                .collect();
            let state = (metrics.sum("warmpath_events_total"), metrics.sum("warmpath_index_blocks"), lagging.len());
            if before != Some(state) {
                (before, since) = (Some(state), Instant::now());
            }
            // Who has left stays in the index until the configuration is read again.
            if lagging.is_empty() && since.elapsed() >= STILL && metrics.endpoints() == present(sites) {
                return Ok(metrics);
            }
            if start.elapsed() > PATIENCE {
                let endpoints = metrics.endpoints();
                anyhow::bail!("not settled after {PATIENCE:?}: {endpoints} endpoints, not in sync: {lagging:?}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn complain(&mut self, what: String) {
        if self.complaints.len() < COMPLAINTS {
            self.complaints.push(what);
        }
    }

    pub fn summary(&self) -> String {
        let share = self.told as f64 / self.could.max(1) as f64 * 100.0;
        format!("{} prompts looked up: {share:.2} % of the deepest matches' tokens were told", self.checked)
    }

    pub fn complaints(self) -> Vec<String> {
        self.complaints
    }
}

fn present(sites: &[Site]) -> usize {
    sites.iter().filter(|site| site.present).count()
}

fn published(sites: &[Site]) -> i64 {
    sites.iter().map(|site| site.told).sum::<u64>() as i64
}

/// The indexer's metrics page.
struct Metrics(String);

impl Metrics {
    async fn read(indexer: &Indexer) -> Result<Self> {
        indexer.metrics().await.map(Self).context("the indexer does not answer")
    }

    /// All samples of a metric: labels and value.
    fn samples<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        self.0.lines().filter_map(move |line| {
            let (labels, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
            (labels.is_empty() || labels.starts_with('{')).then_some(())?;
            Some((labels, value.parse().ok()?))
        })
    }

    fn sum(&self, name: &str) -> i64 {
        self.samples(name).map(|(_, value)| value).sum::<f64>() as i64
    }

    fn of(&self, name: &str, site: &Site) -> Option<f64> {
        let address = format!("\"{}\"", site.address);
        self.samples(name).find(|(labels, _)| labels.contains(&address)).map(|(_, value)| value)
    }

    fn endpoints(&self) -> usize {
        self.samples("warmpath_stream_in_sync").count()
    }
}
