//! `cargo xtask soak`: engines come, go, restart, evict and lose messages at full speed, for minutes; the table must stay
//! true and memory flat.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a panic is a failed check")]

mod audit;
mod conversations;
mod memory;
mod site;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use warmpath_tests::check::conclude;
use warmpath_tests::harness::{Indexer, MODEL};
use warmpath_tests::sim::fixture_tokenizer;

use audit::Audit;
use conversations::Conversations;
use memory::Memory;
use site::{Fault, Site};

/// Events published and not yet read by the indexer, over all engines: beyond, engines wait.
const BACKLOG: u64 = 20_000;
/// Steps between two looks at the backlog.
const STRIDE: u64 = 200;
/// How often the configuration changes: who is in the fleet.
const MOVES_EVERY: Duration = Duration::from_secs(5);
/// How many audits there are.
const AUDITS: u32 = 10;

/// Runs a real indexer under 100 simulated engines that change as fast as it can follow.
///
/// Engines serve conversations of 40 tenants, which grow, and evict what was not used for longest. Now and then one
/// resets its cache, restarts (a new process that counts its messages from 0, with other hashes), loses messages on the
/// way, is silent for a moment, or leaves the fleet and comes back. Messages go over real sockets.
///
/// Ten times in between and at the end everything settles, and the table is held against the engines' caches: it
/// must never say more than an engine holds, and as much, where the indexer does not say itself that it joined late.
/// Memory must not grow once caches are full.
///
/// Example: cargo xtask soak --minutes 10
#[derive(Parser)]
#[command(name = "cargo xtask soak", verbatim_doc_comment)]
struct Options {
    /// How long.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// How many engines.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(2..=1000))]
    engines: u16,
    /// Blocks of 16 tokens that each keeps.
    #[arg(long, default_value_t = 4_096)]
    blocks: usize,
    /// What happens by chance follows from this.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    conclude(soak(Options::parse()))
}

async fn soak(options: Options) -> Result<Vec<String>> {
    let mut random = StdRng::seed_from_u64(options.seed);
    let mut sites = Vec::new();
    for _ in 0..options.engines {
        sites.push(Site::start(options.blocks, random.random()).await?);
    }
    let model = json!({"name": MODEL, "tokenizer": fixture_tokenizer(), "self_test": false});
    let room = usize::from(options.engines) * options.blocks * 5 / 4;
    let endpoints: Vec<_> = sites.iter().map(Site::endpoint).collect();
    let config = json!({"models": [model], "endpoints": endpoints, "max_blocks": room});
    let mut indexer = Indexer::start(config).await?;
    let mut conversations = Conversations::new(&mut random)?;
    let mut audit = Audit::new(&indexer)?;
    let mut memory = Memory::default();
    let (start, time) = (Instant::now(), Duration::from_secs_f64(options.minutes * 60.0));
    let (mut steps, mut changes, mut audits, mut moved) = (0u64, 0u64, 0, start);
    while audits < AUDITS {
        for _ in 0..STRIDE {
            steps += 1;
            let site = random.random_range(0..sites.len());
            changes += sites[site].serve(conversations.next(&mut random));
            if let Some(fault) = Fault::by_chance(&mut random) {
                sites[site].suffer(fault, &mut random).await?;
            }
        }
        if moved.elapsed() > MOVES_EVERY {
            moved = Instant::now();
            let site = random.random_range(0..sites.len());
            sites[site].present = !sites[site].present;
            let present: Vec<_> = sites.iter().filter(|site| site.present).map(Site::endpoint).collect();
            indexer.reconfigure(&json!({"endpoints": present}))?;
        }
        indexer.process.ensure_running()?;
        memory.look(start.elapsed(), indexer.process.resident_bytes()?);
        audit.keep_up(&indexer, &sites, BACKLOG).await?;
        if start.elapsed() >= time * (audits + 1) / AUDITS {
            audits += 1;
            for site in &mut sites {
                site.wake();
            }
            let said = audit.hold(&indexer, &sites, &conversations).await.context("the table is not true")?;
            eprintln!(
                "{:4.0} s: {steps} requests, {:.1} M blocks stored or removed, {said}, {:.0} MB",
                start.elapsed().as_secs_f64(),
                changes as f64 / 1e6,
                memory.last() as f64 / 1e6,
            );
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let faults: Vec<String> = site::totals(&sites);
    println!("{:.0} blocks/s, {:.0} requests/s over {seconds:.0} s", changes as f64 / seconds, steps as f64 / seconds);
    println!("faults: {}", faults.join(", "));
    println!("{}", memory.summary());
    println!("{}", audit.summary());
    Ok(memory.complaint(room).into_iter().chain(audit.complaints()).collect())
}
