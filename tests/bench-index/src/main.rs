//! `cargo xtask bench index`: our index and those of SMG and of Dynamo, under the same loads in one process.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::print_stdout, reason = "a panic is a failed bench")]

mod dynamo;
mod report;
mod smg;

use std::alloc::System as Heap;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use cap::Cap;
use clap::Parser;
use dynamo_kv_router::RadixTree;
use warmpath_tests::index_bench::text::Text;
use warmpath_tests::index_bench::work::Work;
use warmpath_tests::index_bench::{Figures, Median, Ours, System, measure, parts};

use dynamo::{Concurrent, Dynamo};
use report::Row;
use smg::Smg;

#[global_allocator]
static ALLOCATOR: Cap<Heap> = Cap::new(Heap, usize::MAX);

/// Prompts looked up in each round.
const LOOKUPS: usize = 2_000;

/// Times indexes of KV blocks: events in, lookups, memory.
///
/// Blocks of 16 tokens, events of 32 blocks, prompts of 512 blocks, at 150 thousand and at 1.5 million blocks; and the
/// first requests of a Mooncake trace, dealt to 16 engines of 16,384 blocks each, which evict. Events are taken in by a
/// new index each time, ten times where they are few: a rate is of all passes together. Before any lookup counts,
/// prompts are looked up and the answers compared with what the engines hold.
///
/// `smg` is the ChainIndex of the crate kv-index, `dynamo` the RadixTree of dynamo-kv-router, `dynamo_concurrent` its
/// concurrent compressed tree behind one writing thread. Theirs end in a tree to be asked in the same process; ours in
/// pages for proxies, which are sent rows as they change, every 10 ms.
///
/// Example: cargo xtask bench index --json index.json
#[derive(Parser)]
#[command(name = "cargo xtask bench index", verbatim_doc_comment)]
struct Options {
    /// Write the results to this file, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only loads whose name begins with this: 150k, 1500k, 1500k_8_workers, mooncake.
    #[arg(long, value_name = "NAME", default_value = "")]
    only: String,
    /// Rounds; in each, every index goes through the load once for each figure. Medians count.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// A trace in Mooncake's format, JSON lines with `hash_ids` of 512 tokens each.
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/mooncake/conversation.jsonl"))]
    trace: PathBuf,
    /// How many of its requests are taken.
    #[arg(long, default_value_t = 1_500, value_parser = clap::value_parser!(u32).range(1..))]
    requests: u32,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let text = Text::get();
    let prompts = |name, blocks, workers| Ok(Work::prompts(text, name, blocks, workers, LOOKUPS));
    let loads: [(&str, &dyn Fn() -> Result<Work>); 4] = [
        ("150k", &|| prompts("150k", 150_000, 1)),
        ("1500k", &|| prompts("1500k", 1_500_000, 1)),
        ("1500k_8_workers", &|| prompts("1500k_8_workers", 1_500_000, 8)),
        ("mooncake_16_workers", &|| Work::mooncake(text, &options.trace, options.requests as usize, 16, 16_384)),
    ];
    let names = loads.map(|(name, _)| name).join(", ");
    let mut rows = Vec::new();
    for (_, load) in loads.iter().filter(|(name, _)| name.starts_with(&options.only)) {
        rows.push(row(&load()?, options.rounds));
    }
    ensure!(!rows.is_empty(), "no load begins with {:?}: there are {names}", options.only);
    report::print(&rows);
    if let Some(path) = &options.json {
        std::fs::write(path, format!("{:#}\n", report::json(&rows)))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn row(work: &Work, rounds: u32) -> Row {
    let systems: [(&str, fn(&Work) -> Figures); 4] =
        [of::<Ours>(), of::<Smg>(), of::<Dynamo<RadixTree>>(), of::<Dynamo<Concurrent>>()];
    let mut figures = systems.map(|(name, _)| (name, Vec::new()));
    let mut own_parts = Vec::new();
    for round in 1..=rounds {
        eprintln!("{}: {} blocks resident, round {round} of {rounds}", work.name, work.resident);
        for ((_, measure), (_, figures)) in systems.iter().zip(&mut figures) {
            figures.push(measure(work));
        }
        own_parts.push(parts(work));
    }
    Row {
        load: work.name.clone(),
        resident: work.resident,
        changes: work.changes,
        figures: figures.map(|(name, rounds)| (name, Figures::median(&rounds))).into(),
        parts: Median::median(&own_parts),
    }
}

fn of<S: System>() -> (&'static str, fn(&Work) -> Figures) {
    (S::NAME, |work| measure::<S>(work, &|| ALLOCATOR.allocated()))
}
