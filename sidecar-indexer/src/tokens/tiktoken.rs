//! Vocabularies in tiktoken's form: lines of base64 and rank, and those built in.

use super::Vocabulary;
use crate::canonical::Encoder;
use anyhow::{Context, Result, bail};
use base64::Engine as _;
use serde_json::Value;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use tiktoken_rs::tokenizer::Tokenizer;

/// The words of Qwen's first tokenizer.
const QWEN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// What transformers takes for the words of any other file.
const OTHERS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl Vocabulary {
    /// Reads a `*.tiktoken` file, with the special tokens that a `tokenizer_config.json` beside it lists; the ids
    /// between those are reserved. Of `qwen.tiktoken` they are known.
    ///
    /// # Errors
    /// When a line is not of that form; says which.
    pub fn from_tiktoken(text: &str, config: &Value, qwen: bool) -> Result<Self> {
        let mut tokens = Vec::new();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let place = || format!("line {} is not \"base64 rank\"", number + 1);
            let (bytes, rank) = line.trim().split_once(' ').with_context(place)?;
            let bytes = base64::engine::general_purpose::STANDARD.decode(bytes).with_context(place)?;
            tokens.push((rank.trim().parse().with_context(place)?, bytes));
        }
        let end = tokens.iter().map(|(rank, _)| *rank).max().map_or(0, |highest: u32| highest.saturating_add(1));
        let mut special = BTreeMap::new();
        for (id, token) in config.get("added_tokens_decoder").and_then(Value::as_object).into_iter().flatten() {
            let id: u32 =
                id.parse().with_context(|| format!("added_tokens_decoder has the key {id:?}, not a token id"))?;
            let content = token.get("content").and_then(Value::as_str);
            special.insert(id, content.with_context(|| format!("added token {id} has no content"))?.to_owned());
        }
        if qwen {
            let named = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(str::to_owned);
            let extra = (0..205).map(|n| format!("<|extra_{n}|>"));
            special.extend((end..).zip(named.into_iter().chain(extra)));
        }
        if let Some(highest) =
            special.keys().next_back().copied().filter(|highest| *highest < end.saturating_add(1 << 16))
        {
            for id in end..highest {
                special.entry(id).or_insert_with(|| format!("<|reserved_token_{id}|>"));
            }
        }
        let mut this = Self::default();
        for (id, bytes) in &tokens {
            this.insert(*id, bytes)?;
        }
        for (id, text) in &special {
            this.insert(*id, text.as_bytes())?;
        }
        // Without these the library would panic, or never end.
        let bytes: BTreeSet<u8> =
            tokens.iter().filter(|(_, b)| b.len() == 1).filter_map(|(_, b)| b.first().copied()).collect();
        if special.is_empty() || special.values().any(String::is_empty) || bytes.len() < 256 {
            return Ok(this);
        }
        let encoder = Encoder::of_ranks(tokens, special.into_iter().collect(), if qwen { QWEN } else { OTHERS })?;
        Ok(this.with_encoder(encoder))
    }

    /// One of the vocabularies built in, such as `o200k_harmony` (gpt-oss).
    ///
    /// # Errors
    /// When there is none of that name; says which there are.
    pub fn built_in(name: &str) -> Result<Self> {
        const KNOWN: [(&str, Tokenizer); 6] = [
            ("o200k_harmony", Tokenizer::O200kHarmony),
            ("o200k_base", Tokenizer::O200kBase),
            ("cl100k_base", Tokenizer::Cl100kBase),
            ("p50k_base", Tokenizer::P50kBase),
            ("p50k_edit", Tokenizer::P50kEdit),
            ("r50k_base", Tokenizer::R50kBase),
        ];
        // The crate does not tell its highest id; these vocabularies end below this.
        const BEYOND: u32 = 1 << 18;
        let Some((_, tokenizer)) = KNOWN.into_iter().find(|(known, _)| *known == name) else {
            let names = KNOWN.map(|(name, _)| name).join(", ");
            bail!("there is no built-in vocabulary {name:?}; there are {names}");
        };
        let bpe = tiktoken_rs::bpe_for_tokenizer(tokenizer)?;
        let mut this = Self::default();
        for id in 0..BEYOND {
            if let Ok(bytes) = bpe.decode_bytes(&[id]) {
                this.insert(id, &bytes)?;
            }
        }
        Ok(this.with_encoder(Encoder::Tiktoken(Cow::Borrowed(bpe))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tiktoken_files_are_read_with_the_special_tokens_beside_them() {
        let config = json!({"added_tokens_decoder": {"3": {"content": "[BOS]"}}});
        let vocabulary = Vocabulary::from_tiktoken("aGk= 0\nIA== 1\n\n/w== 2\n", &config, false).unwrap();
        let mut out = Vec::new();
        assert!(vocabulary.spell(&[3, 0, 1, 2], &mut out));
        assert_eq!(out, b"[BOS]hi \xff");
        let error = format!("{:#}", Vocabulary::from_tiktoken("aGk= 0\noops", &Value::Null, false).err().unwrap());
        assert!(error.contains("line 2"), "{error}");
    }

    #[test]
    fn built_in_vocabularies_spell_what_their_encoder_read() {
        let vocabulary = Vocabulary::built_in("o200k_harmony").unwrap();
        let text = "<|start|>user<|message|>naïve 日本語 \u{1F600}\n\n<|end|>";
        let tokens = tiktoken_rs::o200k_harmony_singleton().encode_with_special_tokens(text);
        let mut out = Vec::new();
        assert!(vocabulary.spell(&tokens, &mut out));
        assert_eq!(out, text.as_bytes());
        assert_eq!(vocabulary.len(), 201_088);
        assert!(Vocabulary::built_in("gpt9").is_err());
    }
}
