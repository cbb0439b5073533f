//! `cargo xtask bench hash`: how fast prompts are hashed inside Envoy, against the usual hashes.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is a failed bench")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use comfy_table::{Table, presets::UTF8_HORIZONTAL_ONLY};
use serde_json::{Value, json};
use warmpath_tests::harness::{Envoy, EnvoyConfig, EnvoyOptions, eventually, repository};

/// What is timed, as filter/examples/hash_bench.rs names it, in the order of the table.
const WAYS: [(&str, &str); 6] = [
    ("affinity", "affinity: a word chain per stride, four strides at once"),
    ("affinity_chain", "affinity, bytes piece by piece (the indexer's way)"),
    ("xxh64", "XXH64 per stride, seeded with the one before"),
    ("xxh3", "XXH3-64 per stride, seeded with the one before"),
    ("fnv1a_words", "FNV-1a over 64-bit words"),
    ("fnv1a_bytes", "FNV-1a over bytes (crate fnv)"),
];

/// Times ways of hashing a 30 KB prompt at every 128 bytes, in the V8 of a real Envoy.
///
/// Example: cargo xtask bench hash --json hash.json
#[derive(Parser)]
#[command(name = "cargo xtask bench hash", verbatim_doc_comment)]
struct Options {
    /// Write the results to this file, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The module that does the hashing.
    #[arg(long, value_name = "FILE", default_value_os_t = repository().join("target/wasm32-wasip1/wasm/examples/hash_bench.wasm"))]
    module: PathBuf,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let measured = measure(&options.module).await?;
    let own = measured["affinity"];
    let mut table = Table::new();
    table.load_preset(UTF8_HORIZONTAL_ONLY).set_header([
        "30 KB at stride 128, in Envoy's V8",
        "us",
        "GB/s",
        "times affinity",
    ]);
    let mut results = serde_json::Map::new();
    for (name, what) in WAYS {
        let (ns, ratio) = (measured[name], measured[name] / own);
        let row =
            [what.to_owned(), format!("{:.2}", ns / 1e3), format!("{:.2}", 30.0 * 1024.0 / ns), format!("{ratio:.2}")];
        table.add_row(row);
        results.insert(name.into(), json!({"ns_per_30kb": ns, "ratio": ratio}));
    }
    println!("{table}");
    if let Some(path) = options.json {
        std::fs::write(&path, format!("{:#}\n", Value::Object(results)))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Nanoseconds by way. Envoy configures the module in several VMs; the fastest counts, as it does between runs.
async fn measure(module: &Path) -> Result<BTreeMap<String, f64>> {
    if !module.is_file() {
        bail!("no module at {}: `cargo xtask bench hash` builds it", module.display());
    }
    let mut config = EnvoyConfig::read(&repository().join("envoy/warmpath.yaml"))?;
    config.leave_ports_to_the_system()?;
    let filter = config.http_filter("warmpath")?;
    *filter.pointer_mut("/typed_config/config/vm_config/code/local/filename").context("no module")? = json!(module);
    let mut envoy = Envoy::start(EnvoyOptions::new(config)).await?;
    let mut best = BTreeMap::new();
    eventually("the module has timed every way of hashing", Duration::from_secs(30), async || {
        envoy.process.ensure_running()?;
        best = read(&envoy.process.log());
        Ok(WAYS.iter().all(|(name, _)| best.contains_key(*name)))
    })
    .await?;
    Ok(best)
}

fn read(log: &str) -> BTreeMap<String, f64> {
    let mut best = BTreeMap::new();
    for line in log.lines().filter_map(|line| line.split_once("hash_bench ")).map(|(_, rest)| rest) {
        let mut words = line.split_whitespace();
        let (Some(name), Some(ns)) = (words.next(), words.next().and_then(|ns| ns.parse::<f64>().ok())) else {
            continue;
        };
        let known = best.entry(name.to_owned()).or_insert(ns);
        *known = known.min(ns);
    }
    best
}
