//! A model's files: its vocabulary for the index, and the profile that filters spell its prompts by.

use crate::canonical::Encoder;
use crate::config::{Bos, Model};
use crate::tokens::{Vocabulary, find, read_json, uses};
use affinity::fleet::{AddedToken, Profile, Renderer, Spelling, Template};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A prompt of unknown tokens is taken to have this many bytes for each: the usual for English.
const BYTES_PER_TOKEN: u8 = 4;

/// What was read of a model.
pub struct Loaded {
    /// Its tokens.
    pub vocabulary: Vocabulary,
    /// How its prompts are made.
    pub profile: Profile,
    /// What keeps prompts from being predicted, for whoever set the model up.
    pub notes: Vec<String>,
}

/// Reads a model's files; relative paths start at `base`.
///
/// # Errors
/// When a file is missing or not understood; names the file.
pub fn load(model: &Model, base: &Path) -> Result<Loaded> {
    let files = Files::find(&model.tokenizer, base).with_context(|| format!("model {:?}: tokenizer", model.name))?;
    let config = files.config.as_ref();
    let mut notes = Vec::new();
    let special_tokens = special_tokens(config);
    let bos = special_tokens.iter().find(|(name, _)| name == "bos_token").map(|(_, text)| text.clone());
    let prefix = match model.bos {
        Bos::Never => String::new(),
        Bos::Always => match &bos {
            Some(bos) => bos.clone(),
            None => bail!("model {:?}: bos is always, but the tokenizer's files name no bos_token", model.name),
        },
        Bos::Auto => match config.and_then(|c| c.get("add_bos_token")).and_then(Value::as_bool) {
            Some(true) => bos.unwrap_or_default(),
            Some(false) => String::new(),
            None => template_prefix(files.tokenizer.as_ref()),
        },
    };
    let obstacle = obstacle(files.tokenizer.as_ref(), config);
    if let Some(why) = obstacle {
        notes.push(format!("no prompt can be predicted: {why}"));
    }
    let chat_template = chat_template(model, base, &files, &mut notes)?;
    let profile = Profile {
        name: model.name.clone(),
        aliases: model.aliases.clone(),
        adapters: model.loras.clone(),
        renderer: chat_template.map_or(Renderer::None, |source| {
            Renderer::Jinja(vec![Template { name: "default".to_owned(), source, takes_parts: false }])
        }),
        special_tokens,
        completion_prefix: prefix,
        spelling: Spelling { added: whitespace_eaters(files.tokenizer.as_ref()), steps: Vec::new() },
        opaque: if obstacle.is_some() { "tokenizer".to_owned() } else { String::new() },
        bytes_per_token: BYTES_PER_TOKEN,
        ..Profile::default()
    };
    Ok(Loaded { vocabulary: files.vocabulary, profile, notes })
}

/// A tokenizer's files as found.
struct Files {
    vocabulary: Vocabulary,
    folder: Option<PathBuf>,
    /// tokenizer.json
    tokenizer: Option<Value>,
    /// tokenizer_config.json
    config: Option<Value>,
}

impl Files {
    fn find(source: &str, base: &Path) -> Result<Self> {
        if let Some(name) = source.strip_prefix("tiktoken:") {
            let vocabulary = Vocabulary::built_in(name)?;
            return Ok(Self { vocabulary, folder: None, tokenizer: None, config: None });
        }
        let path = base.join(source);
        let file = if path.is_dir() { Self::choose(&path)? } else { path };
        let folder = file.parent().map(Path::to_owned);
        let config = folder.as_ref().map(|folder| folder.join("tokenizer_config.json")).filter(|path| path.is_file());
        let config = config.map(|path| read_json(&path)).transpose()?;
        let unusable = || format!("{} is not usable", file.display());
        if file.extension().is_some_and(|e| e == "tiktoken") {
            let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let vocabulary = Vocabulary::from_tiktoken(&text, config.as_ref()).with_context(unusable)?;
            return Ok(Self { vocabulary, folder, tokenizer: None, config });
        }
        let tokenizer = read_json(&file)?;
        let vocabulary = Vocabulary::from_tokenizer_json(&tokenizer).with_context(unusable)?;
        let encoder = Encoder::from_tokenizer_json(&tokenizer).with_context(unusable)?;
        let vocabulary = vocabulary.with_encoder(encoder);
        Ok(Self { vocabulary, folder, tokenizer: Some(tokenizer), config })
    }

    /// The vocabulary in a folder.
    fn choose(folder: &Path) -> Result<PathBuf> {
        let json = folder.join("tokenizer.json");
        if json.is_file() {
            return Ok(json);
        }
        let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let files = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let mut found: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|e| e == "tiktoken")).collect();
        match (found.pop(), found.pop()) {
            (Some(only), None) => Ok(only),
            (None, _) => bail!("{} has neither tokenizer.json nor a *.tiktoken file", folder.display()),
            (Some(_), Some(_)) => bail!("{} has several *.tiktoken files; name the one", folder.display()),
        }
    }
}

fn chat_template(model: &Model, base: &Path, files: &Files, notes: &mut Vec<String>) -> Result<Option<String>> {
    let read =
        |path: PathBuf| std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()));
    if let Some(path) = &model.chat_template {
        let text = read(base.join(path)).with_context(|| format!("model {:?}: chat_template", model.name))?;
        return Ok(Some(text));
    }
    if let Some(path) = files.folder.as_ref().map(|f| f.join("chat_template.jinja")).filter(|p| p.is_file()) {
        return read(path).map(Some);
    }
    match files.config.as_ref().and_then(|c| c.get("chat_template")) {
        Some(Value::String(template)) => return Ok(Some(template.clone())),
        Some(Value::Array(_)) => notes.push(
            "no chat prompt can be predicted: there are several named chat templates; set chat_template to one of them"
                .to_owned(),
        ),
        _ => notes.push("no chat prompt can be predicted: there is no chat template; set chat_template".to_owned()),
    }
    Ok(None)
}

/// Special tokens by the names that templates use.
fn special_tokens(config: Option<&Value>) -> Vec<(String, String)> {
    let fields = config.and_then(Value::as_object).into_iter().flatten();
    let named = fields.filter(|(name, _)| name.ends_with("_token") && !name.starts_with("add_"));
    let text = |value: &Value| value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned);
    named.filter_map(|(name, value)| Some((name.clone(), text(value)?))).collect()
}

/// The special tokens that a tokenizer.json puts before a single sequence.
fn template_prefix(tokenizer: Option<&Value>) -> String {
    let Some(template) = find(tokenizer.and_then(|t| t.get("post_processor")), "TemplateProcessing") else {
        return String::new();
    };
    let pieces = template.get("single").and_then(Value::as_array).into_iter().flatten();
    let special = pieces.map_while(|piece| piece.pointer("/SpecialToken/id").and_then(Value::as_str));
    let tokens = |id: &str| template.get("special_tokens").and_then(|t| t.get(id)).and_then(|t| t.get("tokens"));
    special
        .flat_map(|id| tokens(id).and_then(Value::as_array).into_iter().flatten())
        .filter_map(Value::as_str)
        .collect()
}

/// Added tokens that swallow the whitespace beside them, or match whole words only.
fn whitespace_eaters(tokenizer: Option<&Value>) -> Vec<AddedToken> {
    let added = tokenizer.and_then(|t| t.get("added_tokens")).and_then(Value::as_array).into_iter().flatten();
    let set = |token: &Value, name: &str| token.get(name).and_then(Value::as_bool) == Some(true);
    added
        .filter_map(|token| {
            let text = token.get("content")?.as_str()?.to_owned();
            let [lstrip, rstrip, single_word, normalized] =
                ["lstrip", "rstrip", "single_word", "normalized"].map(|name| set(token, name));
            Some(AddedToken { text, lstrip, rstrip, single_word, normalized })
        })
        .filter(|token| token.lstrip || token.rstrip || token.single_word)
        .collect()
}

/// What the tokenizer does to a text so that its tokens spell another one.
fn obstacle(tokenizer: Option<&Value>, config: Option<&Value>) -> Option<&'static str> {
    let tokenizer = tokenizer?;
    let set =
        |value: Option<&Value>, name: &str| value.and_then(|v| v.get(name)).and_then(Value::as_bool) == Some(true);
    let pre_tokenizer = tokenizer.get("pre_tokenizer");
    if set(find(pre_tokenizer, "ByteLevel"), "add_prefix_space") || set(config, "add_prefix_space") {
        return Some("the tokenizer puts a space before the text (add_prefix_space)");
    }
    if let Some(metaspace) = find(pre_tokenizer, "Metaspace") {
        let scheme = metaspace.get("prepend_scheme").and_then(Value::as_str);
        if scheme.map_or_else(|| metaspace.get("add_prefix_space") != Some(&Value::Bool(false)), |s| s != "never") {
            return Some("the tokenizer puts a space before the text (Metaspace)");
        }
    }
    let fallback = uses(tokenizer.get("decoder"), "ByteFallback");
    if steps(tokenizer.get("normalizer")).any(|step| !harmless(step, fallback)) {
        return Some("the tokenizer's normalizer changes the text");
    }
    None
}

/// A normalizer's steps.
fn steps(normalizer: Option<&Value>) -> Box<dyn Iterator<Item = &Value> + '_> {
    match normalizer {
        None | Some(Value::Null) => Box::new(std::iter::empty()),
        Some(step) => match step.get("normalizers").and_then(Value::as_array) {
            Some(parts) => Box::new(parts.iter().flat_map(|part| steps(Some(part)))),
            None => Box::new(std::iter::once(step)),
        },
    }
}

/// Whether a normalizer's step leaves a text as it is, or at worst makes a prediction fall short.
fn harmless(step: &Value, fallback: bool) -> bool {
    match step.get("type").and_then(Value::as_str) {
        // Nearly all text is in this form. The table holds it normalised; a prompt that is not then misses, no more.
        Some("NFC") => true,
        // Spaces become `▁`, which the vocabulary spells as spaces again.
        Some("Replace") => {
            let content = step.get("content").and_then(Value::as_str);
            fallback
                && step.pointer("/pattern/String").and_then(Value::as_str) == Some(" ")
                && content == Some("\u{2581}")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fixture(model: &str) -> Result<Loaded> {
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
        let model: Model = serde_yaml_ng::from_str(model).unwrap();
        load(&model, &base)
    }

    #[test]
    fn a_folder_gives_vocabulary_template_and_special_tokens() {
        let loaded = fixture("{name: tiny, tokenizer: tokenizer, aliases: [t], loras: [ada]}").unwrap();
        assert_eq!(loaded.notes, [""; 0]);
        assert_eq!(loaded.vocabulary.get(4094), Some(b"<|im_start|>".as_slice()));
        let profile = loaded.profile;
        assert!(profile.template(false).unwrap().source.contains("<|im_start|>"));
        assert!(profile.special_tokens.contains(&("eos_token".into(), "<|im_end|>".into())));
        assert_eq!((profile.completion_prefix.as_str(), profile.opaque.as_str()), ("", ""));
        assert_eq!((profile.aliases, profile.adapters), (vec!["t".to_owned()], vec!["ada".to_owned()]));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = format!("{:#}", fixture("{name: tiny, tokenizer: nowhere}").err().unwrap());
        assert!(error.contains("tiny") && error.contains("nowhere"), "{error}");
        let error = format!("{:#}", fixture("{name: tiny, tokenizer: vllm-events}").err().unwrap());
        assert!(error.contains("neither tokenizer.json nor"), "{error}");
    }

    #[test]
    fn always_a_bos_needs_one_to_be_known() {
        let error = fixture("{name: tiny, tokenizer: tokenizer, bos: always}").err().unwrap().to_string();
        assert!(error.contains("bos_token"), "{error}");
    }

    #[test]
    fn a_built_in_vocabulary_has_no_template() {
        let loaded = fixture("{name: oss, tokenizer: 'tiktoken:o200k_harmony'}").unwrap();
        assert_eq!(loaded.profile.renderer, Renderer::None);
        assert!(loaded.notes[0].contains("chat"));
    }

    #[test]
    fn the_post_processors_leading_special_tokens_are_the_prefix() {
        // As in Llama 3: a sequence of ByteLevel and the template.
        let tokenizer = json!({"post_processor": {"type": "Sequence", "processors": [
            {"type": "ByteLevel"},
            {"type": "TemplateProcessing",
             "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                        {"SpecialToken": {"id": "</s>", "type_id": 0}}],
             "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<|begin|>"]},
                                "</s>": {"id": "</s>", "ids": [2], "tokens": ["<|end|>"]}}},
        ]}});
        assert_eq!(template_prefix(Some(&tokenizer)), "<|begin|>");
        assert_eq!(template_prefix(Some(&json!({"post_processor": null}))), "");
    }

    #[test]
    fn tokenizers_that_change_the_text_are_obstacles_and_others_are_not() {
        let qwen =
            json!({"normalizer": {"type": "NFC"}, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}});
        let gemma = json!({"decoder": {"type": "ByteFallback"},
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}});
        for fine in [qwen, gemma] {
            assert_eq!(obstacle(Some(&fine), None), None, "{fine}");
        }
        let llama2 = json!({"normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]}});
        let roberta = json!({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": true}});
        let metaspace = json!({"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "first"}});
        for not in [llama2, roberta, metaspace] {
            assert!(obstacle(Some(&not), None).is_some(), "{not}");
        }
    }

    #[test]
    fn tokens_that_swallow_whitespace_are_listed() {
        let phi =
            json!({"added_tokens": [{"id": 1, "content": "<|user|>", "rstrip": true}, {"id": 2, "content": "<s>"}]});
        let found = whitespace_eaters(Some(&phi));
        assert_eq!(found, [AddedToken { text: "<|user|>".into(), rstrip: true, ..AddedToken::default() }]);
    }
}
