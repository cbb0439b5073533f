//! A model directory's files.

use crate::tokens::read_json;
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// A string field.
pub fn text<'a>(of: &'a Value, name: &str) -> Option<&'a str> {
    of.get(name)?.as_str()
}

/// A field that is true or false.
pub fn flag(of: &Value, name: &str) -> Option<bool> {
    of.get(name)?.as_bool()
}

/// What lies in a model directory beside the vocabulary. Files that are not there are null, and texts absent.
#[derive(Default)]
pub struct Texts {
    /// config.json
    pub model: Value,
    /// tokenizer_config.json
    pub config: Value,
    /// special_tokens_map.json
    pub special_tokens_map: Value,
    /// added_tokens.json
    pub added_tokens: Value,
    /// sentence_bert_config.json
    pub sentence: Value,
    /// processor_config.json
    pub processor: Value,
    /// chat_template.json
    pub processor_template: Value,
    /// Whether there is a preprocessor_config.json, as multimodal models have.
    pub preprocesses: bool,
    /// chat_template.jinja
    pub template: Option<String>,
    /// additional_chat_templates/*.jinja, by name
    pub more_templates: BTreeMap<String, String>,
    /// Names of all files.
    pub names: Vec<String>,
}

impl Texts {
    /// Reads a directory.
    ///
    /// # Errors
    /// When a file is there and cannot be read; names it.
    pub fn read(directory: &Path) -> Result<Self> {
        let json = |name: &str| {
            let path = directory.join(name);
            if path.is_file() { read_json(&path) } else { Ok(Value::Null) }
        };
        let read =
            |path: &Path| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
        let files = |directory: &Path| -> Result<Vec<String>> {
            let entries =
                std::fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
            let mut names: Vec<String> =
                entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
            names.sort();
            Ok(names)
        };
        let template = directory.join("chat_template.jinja");
        let more = directory.join("additional_chat_templates");
        let mut more_templates = BTreeMap::new();
        if more.is_dir() {
            for file in files(&more)? {
                if let Some(name) = file.strip_suffix(".jinja") {
                    more_templates.insert(name.to_owned(), read(&more.join(&file))?);
                }
            }
        }
        let names = files(directory)?;
        Ok(Self {
            model: json("config.json")?,
            config: json("tokenizer_config.json")?,
            special_tokens_map: json("special_tokens_map.json")?,
            added_tokens: json("added_tokens.json")?,
            sentence: json("sentence_bert_config.json")?,
            processor: json("processor_config.json")?,
            processor_template: json("chat_template.json")?,
            preprocesses: names.iter().any(|name| name == "preprocessor_config.json"),
            template: template.is_file().then(|| read(&template)).transpose()?,
            more_templates,
            names,
        })
    }
}
