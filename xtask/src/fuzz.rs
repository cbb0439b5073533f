//! Feeds what comes in from outside with any bytes: `cargo fuzz`, told where things are.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, bail};

use crate::step;
use crate::workspace::Workspace;

/// The targets: `tests/fuzz/targets/`.
const TARGETS: [&str; 3] = ["frames", "snapshot", "sync"];
/// Messages of 10,000 tokens fit.
const LONGEST: u32 = 1 << 15;

/// Runs `runs` inputs through one target, or through each. What they find new is kept, as the next run's start.
pub fn fuzz(workspace: &Workspace, only: Option<&str>, runs: u64) -> Result<()> {
    let package = workspace.path("tests/fuzz");
    let mut version = Command::new("cargo");
    if step::output(version.args(["+nightly", "fuzz", "--version"])).is_err() {
        bail!(
            "`cargo +nightly fuzz` does not run: `rustup toolchain install nightly` and `cargo install cargo-fuzz` \
             bring what is missing"
        );
    }
    if let Some(only) = only.filter(|only| !TARGETS.contains(only)) {
        bail!("there is no fuzz target `{only}`: there are {}", TARGETS.join(", "));
    }
    for target in TARGETS.into_iter().filter(|target| only.is_none_or(|only| only == *target)) {
        let corpus = workspace.target.join("fuzz-corpus").join(target);
        fs::create_dir_all(&corpus).with_context(|| format!("no folder {}", corpus.display()))?;
        run(workspace, &package, target, &corpus, runs)?;
    }
    Ok(())
}

fn run(workspace: &Workspace, package: &Path, target: &str, corpus: &Path, runs: u64) -> Result<()> {
    let findings = corpus.with_extension("findings");
    fs::create_dir_all(&findings).with_context(|| format!("no folder {}", findings.display()))?;
    let mut command = Command::new("cargo");
    command
        // There is no unsafe code to sanitize; memory is counted by the targets themselves.
        .args(["+nightly", "fuzz", "run", "--sanitizer", "none", "--fuzz-dir"])
        .arg(package)
        .arg(target)
        .arg(corpus)
        .arg("--")
        .args([format!("-runs={runs}"), format!("-max_len={LONGEST}"), "-rss_limit_mb=1024".into()])
        .args(["-timeout=10", "-print_final_stats=1"])
        .arg(format!("-artifact_prefix={}/", findings.display()))
        .env("WARMPATH_SEEDS", corpus)
        .env("CARGO_TARGET_DIR", workspace.target.join("fuzz"))
        // The nightly compiler is asked for; what runs this is another.
        .env_remove("RUSTUP_TOOLCHAIN")
        .current_dir(package);
    if env::var_os("RUST_BACKTRACE").is_none() {
        command.env("RUST_BACKTRACE", "1");
    }
    let what_to_do = format!(
        "the input lies in {}; run it alone with `cargo +nightly fuzz run --sanitizer none --fuzz-dir {} {target} FILE`, \
         and make a test of it",
        findings.display(),
        package.display()
    );
    step::run(&mut command, &what_to_do)
}
