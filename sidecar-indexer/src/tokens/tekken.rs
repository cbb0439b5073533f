//! Mistral's `tekken.json`: bytes by rank, and special tokens before all of them.

use super::Vocabulary;
use crate::canonical::Encoder;
use affinity::profile::MistralFormat;
use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use serde::Deserialize;

/// The file, as far as it is needed.
#[derive(Deserialize)]
pub struct Tekken {
    config: Config,
    vocab: Vec<Token>,
    special_tokens: Option<Vec<Special>>,
    model_settings_builder: Option<Settings>,
}

/// What a request may set of the model.
#[derive(Deserialize)]
struct Settings {
    reasoning_effort: Option<Efforts>,
}

#[derive(Deserialize)]
struct Efforts {
    values: Vec<String>,
    default: String,
}

#[derive(Deserialize)]
struct Config {
    pattern: String,
    default_vocab_size: u32,
    default_num_special_tokens: u32,
    version: String,
}

#[derive(Deserialize)]
struct Token {
    rank: u32,
    token_bytes: String,
}

#[derive(Deserialize)]
struct Special {
    rank: u32,
    token_str: String,
}

/// Special tokens of files up to version 7 that list none, in order.
const FORMER: [&str; 20] = [
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
];

impl Tekken {
    /// Reads the file.
    ///
    /// # Errors
    /// When it is not of that form.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let this: Self = serde_json::from_slice(bytes).context("it is not a tekken.json")?;
        let (all, special) = (this.config.default_vocab_size, this.config.default_num_special_tokens);
        ensure!(all.checked_sub(special).is_some_and(|n| n as usize <= this.vocab.len()), "it has too few tokens");
        Ok(this)
    }

    /// The format that it is for.
    ///
    /// # Errors
    /// When its version is not a number, or nothing could be rendered in it.
    pub fn format(&self) -> Result<MistralFormat> {
        let version = version(&self.config.version)?;
        // mistral-common refuses every request then.
        ensure!(version < 15 || self.model_settings_builder.is_some(), "it has no model_settings_builder");
        let has = |text: &str| self.special_tokens.iter().flatten().any(|token| token.token_str == text);
        let mut efforts = Vec::new();
        if let Some(given) = self.model_settings_builder.as_ref().and_then(|s| s.reasoning_effort.as_ref()) {
            efforts.push(given.default.clone());
            efforts.extend(given.values.iter().filter(|value| **value != given.default).cloned());
        }
        Ok(MistralFormat { version, tekken: true, thinks: has("[THINK]") && has("[/THINK]"), efforts })
    }

    /// Its tokens as bytes, with an encoder.
    ///
    /// # Errors
    /// When tokens are missing or there twice.
    pub fn vocabulary(&self) -> Result<Vocabulary> {
        let before = self.config.default_num_special_tokens;
        let mut special: Vec<String> = (0..before).map(|rank| format!("<SPECIAL_{rank}>")).collect();
        let listed = self.special_tokens.iter().flatten().map(|token| (token.rank, token.token_str.as_str()));
        let former = (0u32..).zip(FORMER).filter(|_| self.special_tokens.is_none());
        for (rank, text) in listed.chain(former) {
            let place = special.get_mut(rank as usize);
            *place.with_context(|| format!("special token {text:?} has the id {rank}, above {before}"))? =
                text.to_owned();
        }
        let mut tokens = Vec::with_capacity(self.vocab.len());
        // The file may list more than the model has.
        for token in self.vocab.iter().take((self.config.default_vocab_size - before) as usize) {
            let bytes = base64::engine::general_purpose::STANDARD.decode(&token.token_bytes);
            let bytes = bytes.with_context(|| format!("the bytes of token {} are not base64", token.rank))?;
            tokens.push((token.rank + before, bytes));
        }
        let mut vocabulary = Vocabulary::default();
        for (id, bytes) in &tokens {
            vocabulary.insert(*id, bytes)?;
        }
        let special: Vec<(u32, String)> = (0u32..).zip(special).collect();
        for (id, text) in &special {
            vocabulary.insert(*id, text.as_bytes())?;
        }
        let encoder = Encoder::of_ranks(tokens, special, &self.config.pattern)?;
        Ok(vocabulary.with_encoder(encoder))
    }
}

/// The number in `v3`, `v7m1`, ...
///
/// # Errors
/// When there is none.
pub fn version(text: &str) -> Result<u8> {
    let number = text.strip_prefix('v').map(|rest| rest.split_once('m').map_or(rest, |(number, _)| number));
    number.and_then(|number| number.parse().ok()).with_context(|| format!("{text:?} is not a version such as v7"))
}
