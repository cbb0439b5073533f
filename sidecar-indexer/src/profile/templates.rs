//! Which chat templates an engine uses: transformers' rules, and vLLM's on top of them.

use super::read::{Texts, text};
use affinity::profile::{Renderer, Template};
use affinity::prompt::takes_parts;
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Architectures that vLLM renders by code of its own, and the code's name.
const OWN_RENDERERS: [(&str, &str); 7] = [
    ("DeepseekV32ForCausalLM", "deepseek_v32"),
    ("DeepseekV4ForCausalLM", "deepseek_v4"),
    ("DeepseekV4ForConditionalGeneration", "deepseek_v4"),
    ("DeepseekV41ForCausalLM", "deepseek_v41"),
    ("KimiK3ForConditionalGeneration", "kimi_k3"),
    ("InklingForCausalLM", "inkling"),
    ("InklingForConditionalGeneration", "inkling"),
];

/// What renders a model's chats. `given` is the file of the engine's `--chat-template`.
///
/// # Errors
/// When that file cannot be read.
pub fn renderer(files: &Texts, given: Option<&Path>, notes: &mut Vec<String>) -> Result<Renderer> {
    if text(&files.model, "model_type") == Some("gpt_oss") {
        return Ok(Renderer::Harmony);
    }
    let architectures = files.model.get("architectures").and_then(Value::as_array).into_iter().flatten();
    let own = |name: &str| OWN_RENDERERS.into_iter().find(|(architecture, _)| *architecture == name);
    if let Some((_, name)) = architectures.filter_map(Value::as_str).find_map(own) {
        notes
            .push(format!("no chat prompt can be predicted: vLLM renders this model's chats by its own code ({name})"));
        return Ok(Renderer::None);
    }
    let mut templates = match given {
        Some(path) => {
            let source = std::fs::read_to_string(path);
            let source = source.with_context(|| format!("chat_template: cannot read {}", path.display()))?;
            BTreeMap::from([("default".to_owned(), source)])
        }
        None => of_tokenizer(files),
    };
    if let Some(processor) = of_processor(files).filter(|_| given.is_none()) {
        // Without tools, the processor's is asked first; with tools the tokenizer's.
        let default = templates.insert("default".to_owned(), processor);
        if let Some(default) = default {
            templates.entry("tool_use".to_owned()).or_insert(default);
        }
    }
    if templates.is_empty() {
        notes.push("no chat prompt can be predicted: there is no chat template; set chat_template".to_owned());
        return Ok(Renderer::None);
    }
    if !templates.contains_key("default") {
        let names: Vec<&str> = templates.keys().map(String::as_str).collect();
        notes.push(format!("chats without tools cannot be predicted: of the templates {names:?} none is the default"));
    }
    let template = |(name, source): (String, String)| {
        let takes_parts = takes_parts(&source);
        Template { name, source, takes_parts }
    };
    Ok(Renderer::Jinja(templates.into_iter().map(template).collect()))
}

/// Files come before what tokenizer_config.json says.
fn of_tokenizer(files: &Texts) -> BTreeMap<String, String> {
    let mut found = files.more_templates.clone();
    found.extend(files.template.clone().map(|source| ("default".to_owned(), source)));
    if !found.is_empty() {
        return found;
    }
    let named = |template: &Value| Some((text(template, "name")?.to_owned(), text(template, "template")?.to_owned()));
    match files.config.get("chat_template") {
        Some(Value::String(source)) => BTreeMap::from([("default".to_owned(), source.clone())]),
        Some(Value::Array(list)) => list.iter().filter_map(named).collect(),
        Some(Value::Object(by_name)) => {
            let sources = by_name.iter().filter_map(|(name, source)| Some((name.clone(), source.as_str()?.to_owned())));
            sources.collect()
        }
        _ => BTreeMap::new(),
    }
}

/// The template of a multimodal model's processor, where it is not the tokenizer's.
fn of_processor(files: &Texts) -> Option<String> {
    let says = |of: &Value| text(of, "processor_class").is_some();
    if !files.preprocesses && !says(&files.processor) && !says(&files.config) {
        return None;
    }
    text(&files.processor, "chat_template")
        .or_else(|| text(&files.processor_template, "chat_template"))
        .map(str::to_owned)
}
