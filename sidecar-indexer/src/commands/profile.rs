//! `warmpath-indexer profile`: what is known of a model's prompts, for people and for programs.

use super::{EngineOptions, see};
use affinity::profile::{AddedToken, PrefixSpace, Profile, Profiles, Renderer, SpellingStep, Template};
use affinity::prompt::Prompts;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::io::{Write, stdout};
use std::path::Path;
use std::process::ExitCode;
use tokenizers::{DecoderWrapper, ModelWrapper};
use warmpath_indexer::canonical::Encoder;
use warmpath_indexer::models;
use warmpath_indexer::selftest::spelling::{Outcome, test};
use warmpath_indexer::tokens::Vocabulary;

/// Options of the command.
#[derive(clap::Args)]
#[command(after_help = "Exit status: 0, or 1 if the model cannot be read or its self-test fails.\n\n\
    The self-test encodes texts of many scripts, with the model's special tokens in and around them, by its own \
    tokenizer, and compares the tokens' bytes with the canonical bytes.")]
pub struct Arguments {
    /// The model's folder, one of its vocabulary files, or `tiktoken:NAME`, as in the configuration's `tokenizer`.
    #[arg(value_name = "DIR")]
    model_dir: String,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineOptions,
}

/// Prints the profile of a model and tests it.
///
/// # Errors
/// When the model cannot be read.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let model = arguments.engine.model(arguments.model_dir);
    see(&model, "DIR")?;
    let loaded = models::load(&model, Path::new("")).context("DIR")?;
    let outcome = test(&loaded.profile, &loaded.vocabulary);
    let (_, broken) = Prompts::new(Profiles { models: vec![loaded.profile.clone()] });
    let failed = !broken.is_empty() || matches!(&outcome, Outcome::Tested { differ, .. } if !differ.is_empty());
    let page = json_page(&model.tokenizer, &loaded.profile, &loaded.vocabulary, &loaded.notes, &outcome);
    let text = if arguments.json { format!("{page:#}\n") } else { for_people(&page) };
    stdout().write_all(text.as_bytes()).context("standard output")?;
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn json_page(path: &str, profile: &Profile, vocabulary: &Vocabulary, notes: &[String], outcome: &Outcome) -> Value {
    let (renderer, templates) = match &profile.renderer {
        Renderer::None => ("none".to_owned(), Vec::new()),
        Renderer::Jinja(templates) => {
            ("Jinja templates".to_owned(), templates.iter().map(|template| template_page(profile, template)).collect())
        }
        Renderer::Harmony => ("Harmony".to_owned(), Vec::new()),
        Renderer::Mistral(format) => {
            let kind = if format.tekken { "tekken" } else { "SentencePiece" };
            (format!("Mistral's format v{} ({kind})", format.version), Vec::new())
        }
    };
    let special: serde_json::Map<String, Value> =
        profile.special_tokens.iter().map(|(name, text)| (name.clone(), json!(text))).collect();
    let spelling = &profile.spelling;
    let mut steps: Vec<String> = spelling.steps.iter().map(step).collect();
    match spelling.prefix_space {
        PrefixSpace::Never => {}
        PrefixSpace::First => steps.push("a space goes before the text".to_owned()),
        PrefixSpace::Always => steps.push("a space goes before every piece between special tokens".to_owned()),
    }
    if spelling.marks {
        steps.push("▁ becomes a space".to_owned());
    }
    let added: Vec<String> = spelling.added.iter().filter_map(eager).collect();
    json!({
        "path": path,
        "vocabulary": {"tokens": vocabulary.len(), "kind": kind(vocabulary, profile)},
        "renderer": renderer,
        "templates": templates,
        "special_tokens": special,
        "completion_prefix": profile.completion_prefix,
        "completion_suffix": profile.completion_suffix,
        "spelling": {"steps": steps, "special_tokens": added},
        "predicted": profile.opaque.is_empty(),
        "notes": notes,
        "self_test": outcome_page(outcome),
    })
}

fn template_page(profile: &Profile, template: &Template) -> Value {
    let alone = Template { name: "default".to_owned(), ..template.clone() };
    let alone = Profile { renderer: Renderer::Jinja(vec![alone]), ..profile.clone() };
    let (_, failed) = Prompts::new(Profiles { models: vec![alone] });
    let why = failed.into_iter().next().map(|(_, why)| why);
    json!({
        "name": template.name,
        "content_format": if template.takes_parts { "openai" } else { "string" },
        "compiles": why.is_none(),
        "why_not": why,
        "bytes": template.source.len(),
    })
}

fn kind(vocabulary: &Vocabulary, profile: &Profile) -> &'static str {
    match vocabulary.encoder() {
        Some(Encoder::HuggingFace(tokenizer)) => match (tokenizer.get_model(), tokenizer.get_decoder()) {
            (ModelWrapper::BPE(_), Some(DecoderWrapper::ByteLevel(_))) => "byte-level BPE (tokenizer.json)",
            (ModelWrapper::BPE(bpe), _) if bpe.byte_fallback => "BPE with byte fallback (tokenizer.json)",
            _ => "tokenizer.json",
        },
        Some(Encoder::Tiktoken(_)) if matches!(profile.renderer, Renderer::Mistral(_)) => "tekken",
        Some(Encoder::Tiktoken(_)) => "tiktoken",
        None => "without an encoder: generated blocks count unchecked",
    }
}

fn step(step: &SpellingStep) -> String {
    match step {
        SpellingStep::Nfc => "characters are composed (NFC)".to_owned(),
        SpellingStep::Prepend(text) => format!("{text:?} goes before every piece between special tokens"),
        SpellingStep::Replace(from, to) => format!("{from:?} becomes {to:?}"),
    }
}

/// What an added token does beyond standing for its text.
fn eager(token: &AddedToken) -> Option<String> {
    let does = [
        (token.lstrip, "swallows whitespace before it"),
        (token.rstrip, "swallows whitespace behind it"),
        (token.single_word, "counts only as a word of its own"),
        (token.normalized, "is looked for in the changed text"),
    ];
    let does: Vec<&str> = does.into_iter().filter_map(|(does, what)| does.then_some(what)).collect();
    (!does.is_empty()).then(|| format!("{:?} {}", token.text, does.join(", ")))
}

fn outcome_page(outcome: &Outcome) -> Value {
    match outcome {
        Outcome::Untested(why) => json!({"result": "untested", "why": why}),
        Outcome::Tested { compared, declined, differ } => {
            let differ: Vec<Value> = differ
                .iter()
                .map(|(text, at)| json!({"text": text, "at": at.at, "tokens_spell": at.theirs, "spelled": at.ours}))
                .collect();
            let result = if differ.is_empty() { "passed" } else { "failed" };
            json!({"result": result, "compared": compared, "declined": declined, "differ": differ})
        }
    }
}

/// The page in lines.
fn for_people(page: &Value) -> String {
    let text = |at: &str| page.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
    let list = |at: &str| page.pointer(at).and_then(Value::as_array).cloned().unwrap_or_default();
    let line = |name: &str, what: String| format!("{name:<13}{what}\n");
    let bullet = |what: String| format!("{:<13}{what}\n", "");
    let mut out = line("model", text("/path"));
    let tokens = page.pointer("/vocabulary/tokens").and_then(Value::as_u64).unwrap_or_default();
    out += &line("vocabulary", format!("{tokens} tokens, {}", text("/vocabulary/kind")));
    out += &line("renderer", text("/renderer"));
    for template in list("/templates") {
        let of = |name: &str| template.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let why = template.get("why_not").and_then(Value::as_str);
        let state = why.map_or("compiles".to_owned(), |why| format!("CANNOT BE USED: {why}"));
        out += &bullet(format!("{}: content format {}, {state}", of("name"), of("content_format")));
    }
    for (at, (name, token)) in page.get("special_tokens").and_then(Value::as_object).into_iter().flatten().enumerate() {
        out += &line(if at == 0 { "special" } else { "" }, format!("{name} {token}"));
    }
    let around = ["/completion_prefix", "/completion_suffix"].map(text);
    out += &line(
        "completions",
        match around.each_ref().map(|text| text.is_empty()) {
            [true, true] => "nothing goes around the prompt".to_owned(),
            [false, true] => format!("{:?} goes before the prompt", around[0]),
            [true, false] => format!("{:?} goes behind the prompt", around[1]),
            [false, false] => format!("{:?} goes before the prompt, {:?} behind it", around[0], around[1]),
        },
    );
    let spelling = [list("/spelling/steps"), list("/spelling/special_tokens")].concat();
    if spelling.is_empty() {
        out += &line("spelling", "texts stay as they are".to_owned());
    }
    for (at, step) in spelling.iter().filter_map(Value::as_str).enumerate() {
        out += &line(if at == 0 { "spelling" } else { "" }, step.to_owned());
    }
    for note in list("/notes").iter().filter_map(Value::as_str) {
        out += &line("note", note.to_owned());
    }
    let number = |at: &str| page.pointer(at).and_then(Value::as_u64).unwrap_or_default();
    let (compared, declined) = (number("/self_test/compared"), number("/self_test/declined"));
    out += &line(
        "self-test",
        match text("/self_test/result").as_str() {
            "passed" => format!("passed: {compared} texts are spelled as their tokens ({declined} declined)"),
            "failed" => format!("FAILED: of {compared} texts some are not spelled as their tokens; please report this"),
            _ => format!("not possible: {}", text("/self_test/why")),
        },
    );
    for found in list("/self_test/differ") {
        let of = |name: &str| found.get(name).cloned().unwrap_or_default();
        out += &bullet(format!(
            "of {}, from byte {} on, the tokens spell {} where {} was expected",
            of("text"),
            of("at"),
            of("tokens_spell"),
            of("spelled")
        ));
    }
    out
}
