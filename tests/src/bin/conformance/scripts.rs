//! Suites whose requests and answers a Python script makes, with vLLM's own code and no server.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use affinity::profile::{MistralFormat, Profile, Renderer};
use affinity::prompt::Api;
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;
use tokio::process::Command;
use warmpath_tests::conformance::{Ours, Renders};
use warmpath_tests::harness::repository;
use warmpath_tests::vllm::Install;
use warmpath_tests::vocabularies::{self, Outcome};

use crate::oracles::{Answer, Case};
use crate::report::Report;
use crate::verdict::{Verdict, Wrong};

/// One of a script's lines.
#[derive(Deserialize)]
struct Line {
    path: String,
    request: Value,
    /// What the tokens spell; `None`: the engine refuses the request.
    text: Option<String>,
    /// The engine's date.
    date: Option<String>,
    /// Which of Mistral's vocabularies, and what it says of its format.
    vocabulary: Option<String>,
    format: Option<Format>,
    /// The engine's default template arguments.
    defaults: Option<Value>,
    /// Text in it looks like special tokens and is none: the bytes say nothing of the tokens, so it has to be declined.
    #[serde(default)]
    ordinary: Value,
}

#[derive(Deserialize)]
struct Format {
    version: u8,
    tekken: bool,
    #[serde(default)]
    thinks: bool,
    #[serde(default)]
    efforts: Vec<String>,
}

/// Checks gpt-oss' own format.
///
/// # Errors
/// If the script fails.
pub async fn harmony(install: &Install, cache: &Path, seed: u64, report: &mut Report) -> Result<()> {
    let arguments = ["-".to_owned(), "--seed".to_owned(), seed.to_string()];
    check("harmony", &run(install, cache, "harmony", &arguments).await?, report, |_| Renderer::Harmony)
}

/// Checks Mistral's formats.
///
/// # Errors
/// If the script fails.
pub async fn mistral(install: &Install, cache: &Path, seed: u64, report: &mut Report) -> Result<()> {
    let arguments = ["--seed".to_owned(), seed.to_string()];
    let renderer = |line: &Line| match &line.format {
        Some(Format { version, tekken, thinks, efforts }) => {
            let (version, tekken, thinks, efforts) = (*version, *tekken, *thinks, efforts.clone());
            Renderer::Mistral(MistralFormat { version, tekken, thinks, efforts })
        }
        None => Renderer::None,
    };
    check("mistral", &run(install, cache, "mistral", &arguments).await?, report, renderer)
}

/// Checks the texts of real vocabularies.
///
/// # Errors
/// If the script fails.
pub async fn vocabularies(install: &Install, cache: &Path, seed: u64, report: &mut Report) -> Result<()> {
    let folder = cache.join("vocabularies");
    let arguments = [folder.to_string_lossy().into_owned(), "--seed".to_owned(), seed.to_string()];
    run(install, cache, "vocabularies", &arguments).await?;
    report.begin("vocabularies")?;
    vocabularies::check(&folder, |name, text, outcome| {
        let (verdict, theirs) = match outcome {
            Outcome::Exact => (Verdict::Exact, String::new()),
            Outcome::Declined(why) => (Verdict::Declined(why), String::new()),
            Outcome::Wrong { ours, theirs } => (Verdict::Wrong(Wrong { ours, theirs: theirs.clone() }), theirs),
        };
        report.count(
            "vocabularies",
            name,
            &Case::of(name.to_owned(), text.to_owned(), 0, Answer::Text(theirs)),
            &verdict,
        )
    })
}

/// Runs a script; returns the file with what it prints.
async fn run(install: &Install, cache: &Path, name: &str, arguments: &[String]) -> Result<PathBuf> {
    crate::say(&format!("suite {name}: engines' own code answers, which takes some minutes"));
    let path = cache.join(format!("{name}.jsonl"));
    let output = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let script = repository().join("tests/conformance").join(format!("{name}.py"));
    let status = Command::new(install.venv.join("bin/python"))
        .arg(&script)
        .args(arguments)
        .envs([("VLLM_TARGET_DEVICE", "cpu"), ("HF_HUB_OFFLINE", "1"), ("VLLM_LOGGING_LEVEL", "ERROR")])
        .stdin(Stdio::null())
        .stdout(output)
        .kill_on_drop(true)
        .status()
        .await
        .with_context(|| format!("{} does not start", script.display()))?;
    ensure!(status.success(), "{} has failed ({status}); what it said is above", script.display());
    Ok(path)
}

fn check(suite: &str, path: &Path, report: &mut Report, renderer: impl Fn(&Line) -> Renderer) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let mut models = HashMap::new();
    report.begin(suite)?;
    for line in text.lines() {
        let line: Line = serde_json::from_str(line).with_context(|| format!("{} has other lines", path.display()))?;
        // Of completions, only the vocabulary matters: that suite has them.
        let Some(api) = Api::of_path(&line.path).filter(|api| *api != Api::Completions) else { continue };
        let model = line.vocabulary.clone().unwrap_or_default();
        let renders = models.entry(model).or_insert_with(|| {
            let default_kwargs = line.defaults.as_ref().map(Value::to_string).unwrap_or_default();
            Renders::of(Profile { renderer: renderer(&line), default_kwargs, ..Profile::default() })
        });
        let mut request = line.request.clone();
        if let Some(named) = request.get_mut("model") {
            *named = "tiny".into();
        }
        let now = line.date.as_deref().map(noon).transpose()?.unwrap_or_default();
        let answer = line.text.clone().map_or(Answer::Refused(String::new()), Answer::Text);
        let path = line.path.trim_start_matches("/v1/").replace('/', "-");
        let part = line.vocabulary.as_ref().map_or(path.clone(), |name| [name.as_str(), " ", &path].concat());
        let case = Case::of(part, request.to_string(), now, answer);
        let verdict = || match Verdict::of(&case, |now| renders.read_as(api, &case.body, now)) {
            Verdict::Exact if !line.ordinary.is_null() => {
                let Ours::Text(ours) = renders.read_as(api, &case.body, now) else { return Verdict::Exact };
                Verdict::Wrong(Wrong { ours, theirs: "(the same bytes, and other tokens)".to_owned() })
            }
            verdict => verdict,
        };
        report.count(suite, &case.template, &case, &verdict().worse(verdict()))?;
    }
    Ok(())
}

/// The noon of a day, YYYY-MM-DD, in seconds since 1970.
fn noon(date: &str) -> Result<i64> {
    let numbers: Vec<i64> = date.split('-').map(str::parse).collect::<Result<_, _>>().context("a date is none")?;
    let [year, month, day] = numbers[..] else { bail!("{date} is no date") };
    // Days of the civil calendar, with years that begin in March so that February comes last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    // As many as the first of March of the year 0 lies before 1970.
    Ok((days - 719_468) * 86_400 + 43_200)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_counted_right() {
        for (date, day) in [("1970-01-01", 0), ("2000-02-29", 11_016), ("2026-08-01", 20_666)] {
            assert_eq!(noon(date).unwrap(), day * 86_400 + 43_200, "{date}");
        }
        assert!(noon("today").is_err());
    }
}
