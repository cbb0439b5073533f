//! `cargo xtask bench prompt`: what it costs to read a request's prompt, natively and in Envoy, against tokenising it.
#![allow(clippy::indexing_slicing, reason = "a panic is a failed bench")]

mod conversations;
// The same code as in the module.
#[path = "../../../../filter/examples/prompt_bench/measure.rs"]
mod measure;
mod report;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Parser;
use serde_json::json;
use warmpath_tests::harness::{Client, Envoy, EnvoyConfig, EnvoyOptions, repository};

use conversations::Kind;
use measure::Round;
use report::{Both, Row};

/// Name, what is in the chats, bytes of a body, and how many are timed in a round.
const CASES: [(&str, Kind, usize, u64); 7] = [
    ("1 KB", Kind::Texts, 1024, 256),
    ("30 KB", Kind::Texts, 30 * 1024, 36),
    ("400 KB", Kind::Texts, 400 * 1024, 9),
    ("30 KB, some line breaks at ends", Kind::LineBreaks, 30 * 1024, 36),
    ("30 KB, 20 tools not seen before", Kind::NewTools, 30 * 1024, 36),
    ("30 KB, 20 tools seen before", Kind::KnownTools, 30 * 1024, 36),
    ("30 KB, these tools and calls", Kind::Calls, 30 * 1024, 36),
];
/// Rounds that do not count: V8 compiles what runs often anew.
const WARM_UP: u32 = 3;

/// Times how a chat's body becomes fingerprints (parsing, the model's template, hashing), and tokenising its prompt.
///
/// Both natively and in the V8 of a real Envoy, in turns. The chats are different ones of three tenants; each is timed
/// once a round, by a filter that has seen others of these tenants. A round's figure is the median over its chats.
/// Every prompt is compared with one that is put together by hand, fingerprints in Envoy with those of the native run,
/// and tokens are turned back into text. Tokenising is tiktoken-rs with the vocabulary of gpt-oss (o200k_harmony),
/// without a look for special tokens.
///
/// Example: cargo xtask bench prompt --json prompt.json
#[derive(Parser)]
#[command(name = "cargo xtask bench prompt", verbatim_doc_comment)]
struct Options {
    /// Write the results to this file, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only cases whose name begins with this, e.g. "30 KB".
    #[arg(long, value_name = "NAME", default_value = "")]
    only: String,
    /// Rounds; in each, every chat is timed once natively and once in Envoy.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// The module that does in Envoy what is timed.
    #[arg(long, value_name = "FILE", default_value_os_t = repository().join("target/wasm32-wasip1/wasm/examples/prompt_bench.wasm"))]
    module: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse();
    let mut chosen = CASES.iter().filter(|(name, ..)| name.starts_with(&options.only)).peekable();
    ensure!(
        chosen.peek().is_some(),
        "no case begins with {:?}: there are {}",
        options.only,
        CASES.map(|c| c.0).join("; ")
    );
    let envoy = start(&options.module).await?;
    let client = Client::new()?;
    let mut rows = Vec::new();
    for &(name, kind, bytes, count) in chosen {
        let case = conversations::case(kind, bytes, count)?;
        eprintln!("{name}: {} chats a round", case.timed.len());
        let request = serde_json::to_string(&case)?;
        let mut rounds = Vec::new();
        for number in 0..WARM_UP + options.rounds {
            let native = measure::measure(&case).map_err(|why| anyhow!("natively: {why}")).with_context(|| name)?;
            let wasm = in_envoy(&envoy, &client, &request).await.with_context(|| format!("{name}, in Envoy"))?;
            ensure!(
                (native.digest, native.tokens) == (wasm.digest, wasm.tokens),
                "{name}: Envoy's fingerprints or tokens are not those of the native run"
            );
            if number >= WARM_UP {
                rounds.push(Both { native, wasm });
            }
        }
        rows.push(Row::new(name, &case, rounds));
    }
    report::print(&rows);
    if let Some(path) = &options.json {
        std::fs::write(path, format!("{:#}\n", report::json(&rows)))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// An Envoy whose filter is the bench's module.
async fn start(module: &Path) -> Result<Envoy> {
    if !module.is_file() {
        bail!("no module at {}: `cargo xtask bench prompt` builds it", module.display());
    }
    let mut config = EnvoyConfig::read(&repository().join("envoy/warmpath.yaml"))?;
    config.leave_ports_to_the_system()?;
    let filter = config.http_filter("warmpath")?;
    *filter.pointer_mut("/typed_config/config/vm_config/code/local/filename").context("no module")? = json!(module);
    Envoy::start(EnvoyOptions { log_level: "warn", ..EnvoyOptions::new(config) }).await
}

async fn in_envoy(envoy: &Envoy, client: &Client, case: &str) -> Result<Round> {
    let reply = client.send(reqwest::Method::POST, &envoy.url("/"), &[], case.to_owned().into()).await?;
    ensure!(reply.status == 200, "{}: {}\n{}", reply.status, reply.body, envoy.process.log());
    serde_json::from_str(&reply.body).with_context(|| format!("not a round: {}", reply.body))
}
