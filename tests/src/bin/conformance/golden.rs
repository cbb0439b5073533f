//! A few requests of each template, kept with the engine's answers for tests that have no engine.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use warmpath_tests::conformance::{Ours, Renders};
use warmpath_tests::harness::repository;

use crate::oracles::{Answer, Case};
use crate::templates::Template;

/// So many of each template.
const EACH: usize = 5;
/// Longest request and answer together, in bytes: the file is part of the repository.
const LONGEST: usize = 2600;

/// The first line.
const ABOUT: &str = "Chat templates as llama.cpp carries them (MIT; in PyPI's llama-cpp-python 0.3.36), each followed by \
    requests that `cargo xtask conformance --write-golden` has chosen, and the text that vLLM 0.32.0's tokens spell.";

/// Chooses requests and writes `tests/fixtures/conformance/templates.jsonl`: a line with each template's source, and
/// lines with its requests behind it.
///
/// # Errors
/// If the file cannot be written.
pub fn write(templates: &[Template], cases: &[Case]) -> Result<()> {
    let mut lines = format!("{}\n", json!({"about": ABOUT}));
    for template in templates {
        let Template { name, source, .. } = template;
        let renders = Renders::jinja(source);
        lines.push_str(&format!("{}\n", json!({"template": name, "source": source})));
        for (case, text) in chosen(cases.iter().filter(|case| case.template == *name)) {
            let now = case.times.0;
            let mut line = json!({"now": now, "body": case.body, "text": text});
            // What is not known now may be known later; what is known now may not be unknown later.
            if let Ours::Declined(why) = renders.read(&case.body, now) {
                line["declined"] = why.into();
            }
            lines.push_str(&format!("{line}\n"));
        }
    }
    let path = repository().join("tests/fixtures/conformance/templates.jsonl");
    fs::create_dir_all(path.parent().context("no directory")?)?;
    fs::write(&path, &lines).with_context(|| format!("cannot write {}", path.display()))?;
    crate::say(&format!("{} has {} bytes", path.display(), lines.len()));
    Ok(())
}

/// Those which have the most between them that the others lack, short ones first.
fn chosen<'a>(cases: impl Iterator<Item = &'a Case>) -> Vec<(&'a Case, &'a str)> {
    let mut left: Vec<(&Case, &str, BTreeSet<String>)> = cases
        .filter_map(|case| match &case.vllm {
            // Prompts that took long enough for a clock to tick may hold either time.
            Answer::Text(text) if case.times.0 == case.times.1 && case.body.len() + text.len() <= LONGEST => {
                Some((case, text.as_str(), features(&case.body)))
            }
            _ => None,
        })
        .collect();
    left.sort_by_key(|(case, text, _)| case.body.len() + text.len());
    let (mut chosen, mut covered) = (Vec::new(), BTreeSet::new());
    while chosen.len() < EACH && !left.is_empty() {
        let new = |features: &BTreeSet<String>| features.difference(&covered).count();
        let most = left.iter().map(|(_, _, features)| new(features)).max().unwrap_or(0);
        let at = left.iter().position(|(_, _, features)| new(features) == most).unwrap_or(0);
        let (case, text, features) = left.remove(at);
        covered.extend(features);
        chosen.push((case, text));
    }
    chosen
}

/// What a request has: fields, fields of messages by role, kinds of contents.
fn features(body: &str) -> BTreeSet<String> {
    let body: Value = serde_json::from_str(body).unwrap_or_default();
    let mut features = BTreeSet::new();
    let fields = body.as_object().into_iter().flatten();
    features.extend(fields.map(|(name, value)| match value {
        Value::Bool(_) => format!("{name} {value}"),
        _ => name.clone(),
    }));
    let kwargs = body["chat_template_kwargs"].as_object().into_iter().flatten();
    features.extend(kwargs.map(|(name, _)| format!("kwarg {name}")));
    for message in body["messages"].as_array().into_iter().flatten() {
        let role = message["role"].as_str().unwrap_or_default();
        let fields = message.as_object().into_iter().flatten();
        features.extend(fields.map(|(name, value)| {
            let kind = match value {
                Value::Array(_) => "list",
                Value::Null => "null",
                _ => "",
            };
            format!("{role} {name} {kind}")
        }));
    }
    features
}
