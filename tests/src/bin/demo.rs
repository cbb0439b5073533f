//! `cargo xtask demo`: the same load through Envoy's round robin and through Warmpath, and what it changes.

use std::future::pending;
use std::io::{IsTerminal, stderr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use std::{env, fs};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use warmpath_tests::harness::{MODEL, Stack, StackOptions};
use warmpath_tests::load::{self, Figures, Ideal, Record, StreamClient, Workload, WorkloadOptions};
use warmpath_tests::sim::{fixture_tokenizer, tokenizer::Tokenizer};

/// Tenants of the workload.
const TENANTS: usize = 24;
/// Users of each tenant.
const USERS_PER_TENANT: usize = 2;
/// A user waits for the answer before asking again.
const MOST_AT_ONCE: i64 = (TENANTS * USERS_PER_TENANT) as i64;
/// Tokens per cache block.
const BLOCK_SIZE: usize = 16;
/// Cache blocks of all engines together: about a third more than the prompts of all users at a time, so that together the
/// engines can hold them, and each alone its share and not more.
const TOTAL_BLOCKS: usize = 4200;
/// Bytes between two fingerprints: about half a block.
const STRIDE_BYTES: u32 = 32;
/// Gives all engines the same answers, so that both phases are asked the same.
const ENGINE_SEED: &str = "1";
/// Of what round robin leaves to be gained, Warmpath must gain this share: far less than it does, and more than chance.
const LEAST_GAIN: f64 = 0.25;

/// Sends one load twice to simulated engines behind Envoy: first balanced round
/// robin, then through Warmpath. Ends with one table: share of prompt tokens served
/// from cache, time to first token, requests per second.
///
/// The engines tokenise, cache and evict for real and wait instead of computing:
/// 8000 uncached prompt tokens per second, 5 ms per generated token. 24 tenants
/// have system prompts of 4 to 8 KB, which all begin with the same half KB, and two
/// users each, who hold conversations of 3 to 7 turns. One engine's cache holds
/// its share of all that and not more. Each phase starts with everything fresh.
/// Takes about a minute and leaves nothing behind, also on ^C.
///
/// Fails if a request fails, if the engines have counted other tokens than they told
/// the client, or if Warmpath does not serve clearly more from cache than round robin.
///
/// Examples:
///   cargo xtask demo
///   cargo xtask demo --json demo.json
///   cargo xtask demo --keep            leaves the second phase up to try by hand
///   cargo xtask demo --engines 8 --concurrency 32
#[derive(Parser)]
#[command(name = "demo", bin_name = "cargo xtask demo", max_term_width = 110, verbatim_doc_comment)]
struct Options {
    /// Simulated engines; they share the cache memory between them
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..=16))]
    engines: u32,
    /// Requests in each phase
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    requests: u32,
    /// Requests in flight at any time (closed loop: the next is sent when one ends)
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=MOST_AT_ONCE))]
    concurrency: u32,
    /// Another seed draws another workload
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the figures to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leave engines, indexer and Envoy running after the second phase, until ^C
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let outcome = tokio::runtime::Runtime::new().context("cannot start a runtime").and_then(|runtime| {
        runtime.block_on(async {
            // Whatever ends first: dropping the other side stops all that it has started.
            tokio::select! {
                biased;
                stopped = stop_signal() => stopped,
                done = demo(&options) => done.map(|()| ExitCode::SUCCESS),
            }
        })
    });
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// Waits for ^C or another request to stop; returns the exit status that a shell expects after it.
async fn stop_signal() -> Result<ExitCode> {
    let mut signals = [(SignalKind::interrupt(), 130), (SignalKind::terminate(), 143), (SignalKind::hangup(), 129)]
        .into_iter()
        .map(|(kind, status)| Ok((signal(kind).context("cannot watch for signals")?, status)))
        .collect::<Result<Vec<_>>>()?;
    let waits = signals.iter_mut().map(|(signal, status)| {
        Box::pin(async move {
            signal.recv().await;
            *status
        })
    });
    let (status, ..) = futures::future::select_all(waits).await;
    eprintln!("stopping");
    Ok(ExitCode::from(status))
}

async fn demo(options: &Options) -> Result<()> {
    // Before the work, not after it.
    if let Some(folder) = options.json.as_deref().and_then(Path::parent).filter(|folder| *folder != Path::new("")) {
        ensure!(folder.is_dir(), "--json: there is no folder {}", folder.display());
    }
    let requests = options.requests as usize;
    let workload =
        WorkloadOptions { tenants: TENANTS, users_per_tenant: USERS_PER_TENANT, requests, seed: options.seed };
    let workload = Workload::new(workload);

    let round_robin = Phase::run("round robin", "round-robin.yaml", options, &workload).await?;
    let (first_error, round_robin) = (round_robin.first_error(), round_robin.figures);
    let warm = Phase::run("Warmpath", "warmpath.yaml", options, &workload).await?;
    let first_error = first_error.or(warm.first_error());
    let tokenizer = Tokenizer::load(&fixture_tokenizer())?;
    let ideal = load::ideal(&warm.records, &tokenizer, BLOCK_SIZE).context("the ideal cannot be computed")?;

    println!("\n{}", table(options, &round_robin, &warm.figures, &ideal));
    if let Some(path) = &options.json {
        let figures = json!({
            "options": {
                "engines": options.engines,
                "requests": options.requests,
                "concurrency": options.concurrency,
                "seed": options.seed,
            },
            "round_robin": round_robin,
            "warmpath": warm.figures,
            "ideal": ideal,
        });
        fs::write(path, format!("{figures:#}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let verdict = match first_error {
        Some(error) => {
            let failed = round_robin.failed + warm.figures.failed;
            Err(anyhow!("{failed} of {} requests failed; the first: {error}", 2 * requests))
        }
        None => check_phases(&round_robin, &warm.figures, &ideal),
    };
    if options.keep {
        // Who waits for the end of this waits long.
        verdict.unwrap_or_else(|error| eprintln!("error: {error:#}"));
        return keep(&warm.stack, &workload).await;
    }
    verdict
}

/// One phase, over.
struct Phase {
    stack: Stack,
    records: Vec<Record>,
    figures: Figures,
}

impl Phase {
    /// Starts everything afresh and sends the workload.
    async fn run(name: &str, envoy: &'static str, options: &Options, workload: &Workload) -> Result<Self> {
        let engines = options.engines as usize;
        let progress = Progress::new(name, workload.steps.len());
        progress.say(&format!("starting {engines} engines, the indexer and Envoy"));
        let blocks = (TOTAL_BLOCKS / engines).to_string();
        let block_size = BLOCK_SIZE.to_string();
        let flags =
            ["--blocks", &blocks, "--block-size", &block_size, "--decode-ms-per-token", "5", "--seed", ENGINE_SEED];
        let stack = Stack::start(StackOptions {
            engines,
            engine_flags: flags.map(str::to_owned).to_vec(),
            indexer: json!({"stride_bytes": STRIDE_BYTES}),
            envoy,
            ..StackOptions::default()
        })
        .await
        .with_context(|| format!("{name}: not everything starts"))?;

        progress.say("sending requests");
        let (client, gateway) = (StreamClient::new()?, stack.envoy.url(""));
        let concurrency = options.concurrency as usize;
        let (records, time) =
            load::drive(&client, &gateway, MODEL, workload, concurrency, |done| progress.at(done)).await?;
        let figures = Figures::new(&records, time);
        progress.finish(time);
        if figures.failed == 0 {
            check_engines(&stack, &figures).await.with_context(|| format!("{name}: the figures do not add up"))?;
        }
        Ok(Self { stack, records, figures })
    }

    fn first_error(&self) -> Option<String> {
        self.records.iter().find_map(|record| record.answer.as_ref().err()).map(|error| format!("{error:#}"))
    }
}

/// What the engines counted must be what the client was told.
async fn check_engines(stack: &Stack, figures: &Figures) -> Result<()> {
    let mut engines = Vec::new();
    for engine in &stack.engines {
        engines.push(engine.stats().await?);
    }
    let sum = |field: &str| engines.iter().filter_map(|stats| stats.get(field)?.as_u64()).sum::<u64>();
    let told = [
        ("finished", figures.requests as u64),
        ("requests", figures.requests as u64),
        ("prompt_tokens", figures.prompt_tokens),
        ("cached_tokens", figures.cached_tokens),
    ];
    for (field, told) in told {
        let counted = sum(field);
        ensure!(counted == told, "{field}: the engines count {counted}, the client was told {told}");
    }
    Ok(())
}

/// What must hold between the phases, or the table compares unlike things.
fn check_phases(round_robin: &Figures, warm: &Figures, ideal: &Ideal) -> Result<()> {
    ensure!(
        round_robin.prompt_tokens == warm.prompt_tokens,
        "the phases were asked different prompts: {} and {} tokens",
        round_robin.prompt_tokens,
        warm.prompt_tokens
    );
    for (name, figures) in [("round robin", round_robin), ("Warmpath", warm)] {
        ensure!(
            figures.cached_tokens <= ideal.cached_tokens,
            "{name} was served {} tokens from cache, more than the ideal's {}: the model of the ideal is wrong",
            figures.cached_tokens,
            ideal.cached_tokens
        );
    }
    check_gain(round_robin.cached_share, warm.cached_share, ideal.cached_share)
}

/// Shares of the prompt tokens served from cache: Warmpath's must be above round robin's by a clear margin.
fn check_gain(round_robin: f64, warm: f64, ideal: f64) -> Result<()> {
    let least = round_robin + LEAST_GAIN * (ideal - round_robin);
    ensure!(
        warm >= least,
        "Warmpath served {:.1} % from cache, round robin {:.1} %, the ideal {:.1} %: a clear margin would be {:.1} % or \
         more, so routing by cache does not work here; see what x-warmpath-decision says with --keep (fewer than some \
         100 requests say little)",
        100.0 * warm,
        100.0 * round_robin,
        100.0 * ideal,
        100.0 * least
    );
    Ok(())
}

fn table(options: &Options, round_robin: &Figures, warm: &Figures, ideal: &Ideal) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["", "served from cache", "TTFT p50", "p90", "p99", "requests/s"]);
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let millis = |seconds: f64| format!("{:.0} ms", 1e3 * seconds);
    for (name, figures) in [("round robin", round_robin), ("Warmpath", warm)] {
        table.add_row([
            name.to_owned(),
            percent(figures.cached_share),
            millis(figures.ttft_p50_s),
            millis(figures.ttft_p90_s),
            millis(figures.ttft_p99_s),
            format!("{:.1}", figures.requests_per_s),
        ]);
    }
    table.add_row(["ideal", &percent(ideal.cached_share), "", "", "", ""]);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!(
        "{table}\n\
         served from cache: share of all prompt tokens, as the {0} engines report it in each answer's usage\n\
         ideal: computed, not measured: the same requests in the same order, one at a time, on one engine that never\n       \
         evicts (tests/src/load/ideal.rs); what is missing is what nobody had asked before\n\
         round robin: what an engine finds is its share of the prompts, 1 in {0}, and the half KB that all of them begin with\n\
         load: {1} requests per phase, {2} in flight at any time (closed loop), {TENANTS} tenants, seed {3}",
        options.engines, options.requests, options.concurrency, options.seed
    )
}

/// Says where everything is, and stays until a signal ends the program.
async fn keep(stack: &Stack, workload: &Workload) -> Result<()> {
    let file = RequestFile::write(workload)?;
    println!("\nStill running, until ^C:");
    println!("  gateway    {}", stack.envoy.url("/v1/chat/completions"));
    println!("  Envoy      http://{}/stats?filter=warmpath", stack.envoy.admin);
    println!("  indexer    {}", stack.indexer.url("/metrics"));
    for engine in &stack.engines {
        println!("  engine     {}", engine.url("/sim/stats"));
    }
    println!("\nA tenant's prompt, and how Warmpath decides (x-warmpath-* headers). Try it more than once:");
    println!(
        "  curl -si {} -H 'content-type: application/json' -H 'x-warmpath-debug: 1' -d @{}",
        stack.envoy.url("/v1/chat/completions"),
        file.0.display()
    );
    pending().await
}

/// A request's body in a file beside this program; system prompts are too long for a command line. Removed when dropped.
struct RequestFile(PathBuf);

impl RequestFile {
    fn write(workload: &Workload) -> Result<Self> {
        let first = workload.steps.first().context("the workload is empty")?;
        let messages = json!([
            {"role": "system", "content": first.opens.as_deref()},
            {"role": "user", "content": "Can I return this?"},
        ]);
        let body: Value = json!({"model": MODEL, "messages": messages, "max_tokens": 16});
        let program = env::current_exe()?;
        let path = program.parent().unwrap_or(Path::new(".")).join(format!("demo-request-{}.json", std::process::id()));
        fs::write(&path, body.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for RequestFile {
    fn drop(&mut self) {
        fs::remove_file(&self.0).ok();
    }
}

/// Progress of one phase: a bar on a terminal, else a line now and then.
struct Progress {
    name: String,
    total: usize,
    bar: Option<ProgressBar>,
}

impl Progress {
    fn new(name: &str, total: usize) -> Self {
        let bar = stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total as u64);
            let style = ProgressStyle::with_template("{prefix:>12} [{bar:40}] {pos}/{len} {elapsed} {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
            bar.set_prefix(name.to_owned());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { name: name.to_owned(), total, bar }
    }

    fn say(&self, what: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(what.to_owned()),
            None => eprintln!("{}: {what}", self.name),
        }
    }

    fn at(&self, done: usize) {
        match &self.bar {
            Some(bar) => bar.set_position(done as u64),
            None if done.is_multiple_of(self.total.div_ceil(5)) => {
                eprintln!("{}: {done} of {} requests", self.name, self.total);
            }
            None => {}
        }
    }

    fn finish(&self, time: Duration) {
        let text = format!("done in {:.1} s", time.as_secs_f64());
        match &self.bar {
            Some(bar) => bar.finish_with_message(text),
            None => eprintln!("{}: {text}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_not_clearly_above_round_robins_is_a_failure() {
        check_gain(0.28, 0.85, 0.88).unwrap();
        for warm in [0.20, 0.28, 0.30, 0.42] {
            let error = check_gain(0.28, warm, 0.88).unwrap_err().to_string();
            assert!(error.contains("clear margin") && error.contains("43.0 %"), "{error}");
        }
    }

    #[test]
    fn where_nothing_is_left_to_be_gained_nothing_need_be() {
        check_gain(0.0, 0.0, 0.0).unwrap();
    }
}
