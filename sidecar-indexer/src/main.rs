//! The Warmpath indexer's command line.

mod commands;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tikv_jemallocator::Jemalloc;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use warmpath_indexer::config::Config;
use warmpath_indexer::server::Server;

/// Gives back what a passing need took.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Reads the KV events of LLM engines and tells gateways which engine holds which prompt prefix.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Run,
}

const EXAMPLES: &str = "Examples:
  warmpath-indexer example-config > indexer.yaml   Start from the annotated example
  warmpath-indexer check indexer.yaml              Say what is wrong with it
  warmpath-indexer run --config indexer.yaml       Run (also without the word `run`)
  warmpath-indexer profile models/llama-3.1-8b     Show how a model's prompts are made, and test it
  warmpath-indexer prompt --model-dir models/llama-3.1-8b < request.json
                                                   Write a request's canonical bytes
  curl localhost:9400/metrics                      See what it holds";

#[derive(Subcommand)]
enum Command {
    /// Run the indexer; this is what happens without a command.
    Run(Run),
    /// Check a configuration and read the models' files. Exits with 1 and says what is wrong and where.
    Check {
        /// The configuration file.
        file: PathBuf,
    },
    /// Print an annotated configuration.
    ExampleConfig,
    /// Write the canonical bytes of one request: what the engine's tokens will spell.
    ///
    /// Reads the request's body from standard input, and writes the bytes and nothing else to standard output.
    Prompt(commands::prompt::Arguments),
    /// Print how a model's prompts are made, and whether its tokenizer agrees.
    Profile(commands::profile::Arguments),
}

#[derive(clap::Args)]
struct Run {
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = "warmpath-indexer.yaml")]
    config: PathBuf,
    /// How to write logs, to standard error.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// What to log: error, warn, info, debug, or directives as in `info,warmpath_indexer=debug`.
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Where it cannot be printed, nobody could be told.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    let result = match arguments.command.unwrap_or(Command::Run(arguments.run)) {
        Command::Run(run) => start(&run).map(|()| ExitCode::SUCCESS),
        Command::Check { file } => check(&file).map(|()| ExitCode::SUCCESS),
        Command::ExampleConfig => print(&Config::example()).map(|()| ExitCode::SUCCESS),
        Command::Prompt(arguments) => commands::prompt::run(arguments),
        Command::Profile(arguments) => commands::profile::run(arguments),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("warmpath-indexer: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check(file: &Path) -> Result<()> {
    let server = Server::read(file)?;
    let notes: String = server.notes.iter().map(|(model, note)| format!("model {model:?}: {note}\n")).collect();
    print(&format!("{notes}{} can be run\n", file.display()))
}

/// To stdout; who reads no more of it has enough.
fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot write to stdout"),
        _ => Ok(()),
    }
}

/// Raises the limit on file descriptors as far as it goes: an engine takes up to eight.
fn allow_many_connections() {
    const ENOUGH: u64 = 8192;
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) if limit < ENOUGH => tracing::warn!(
            limit,
            "few file descriptors are allowed: enough for about {} engines (`ulimit -n`, LimitNOFILE)",
            limit / 8
        ),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "the limit on file descriptors cannot be raised"),
    }
}

fn start(run: &Run) -> Result<()> {
    let filter = EnvFilter::try_new(&run.log).with_context(|| format!("--log: {:?} is not a filter", run.log))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let log = log.with_ansi(std::io::stderr().is_terminal());
    match run.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    allow_many_connections();
    let server = Server::read(&run.config)?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    runtime.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let stop = async move {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            tracing::info!("stopping");
        };
        server.run(|address| tracing::info!(%address, "listening"), stop).await
    })
}
