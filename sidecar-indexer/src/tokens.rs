//! Token ids back to bytes.
//!
//! A vocabulary is read once into a table id -> bytes. The library's own `decode` is of no use here: it replaces
//! split UTF-8, drops special tokens and tidies spaces, where the index needs the very bytes.

use crate::canonical::{Encoder, is_canonical};
use anyhow::{Context, Result, bail};
use base64::Engine as _;
use serde_json::Value;
use std::path::Path;
use tiktoken_rs::tokenizer::Tokenizer;

/// A model's tokens as bytes.
#[derive(Default)]
pub struct Vocabulary {
    bytes: Vec<u8>,
    /// Where each token's bytes lie; `None` for ids that mean nothing (padding of the embedding table).
    spans: Vec<Option<(u32, u32)>>,
    /// Tells generated blocks whose tokens no prompt will have.
    encoder: Option<Encoder>,
}

impl Vocabulary {
    /// Appends the bytes of `tokens` to `out`; `false` if one of them is unknown, and then `out` is of no use.
    #[must_use]
    pub fn spell(&self, tokens: &[u32], out: &mut Vec<u8>) -> bool {
        tokens.iter().all(|token| match self.get(*token) {
            Some(bytes) => {
                out.extend_from_slice(bytes);
                true
            }
            None => false,
        })
    }

    /// One token's bytes.
    #[must_use]
    pub fn get(&self, token: u32) -> Option<&[u8]> {
        let (start, end) = (*self.spans.get(token as usize)?)?;
        self.bytes.get(start as usize..end as usize)
    }

    /// One more than the highest token id known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether no token is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Lets generated blocks be checked: see [`crate::canonical`].
    #[must_use]
    pub fn with_encoder(self, encoder: Encoder) -> Self {
        Self { encoder: Some(encoder), ..self }
    }

    /// Whether `block` after `tail` is what the tokenizer makes of its text; true where that cannot be checked.
    #[must_use]
    pub fn is_canonical(&self, tail: &[u32], block: &[u32]) -> bool {
        self.encoder.as_ref().is_none_or(|encoder| is_canonical(encoder, self, tail, block))
    }

    fn insert(&mut self, token: u32, bytes: &[u8]) -> Result<()> {
        // A wrong file must not make the table take all memory.
        const HIGHEST: u32 = 1 << 24;
        if token >= HIGHEST {
            bail!("token id {token} is above {HIGHEST}: this is not a vocabulary");
        }
        let start = u32::try_from(self.bytes.len()).context("the vocabulary is above 4 GiB")?;
        self.bytes.extend_from_slice(bytes);
        let end = u32::try_from(self.bytes.len()).context("the vocabulary is above 4 GiB")?;
        if self.spans.len() <= token as usize {
            self.spans.resize(token as usize + 1, None);
        }
        if let Some(span) = self.spans.get_mut(token as usize) {
            *span = Some((start, end));
        }
        Ok(())
    }

    /// Reads a Hugging Face `tokenizer.json`: byte-level BPE, or SentencePiece BPE with byte fallback.
    ///
    /// # Errors
    /// When it is neither of these, as then tokens do not spell their bytes.
    pub fn from_tokenizer_json(json: &Value) -> Result<Self> {
        let spelling = Spelling::of(json)?;
        let vocab = json.pointer("/model/vocab").and_then(Value::as_object).context("it has no model.vocab")?;
        let mut this = Self::default();
        for (piece, id) in vocab {
            let id = token_id(id).with_context(|| format!("the id of token {piece:?} is not a number"))?;
            // A piece outside the byte alphabet is either an added token (below) or unknown.
            if let Some(bytes) = spelling.bytes(piece) {
                this.insert(id, &bytes)?;
            }
        }
        for added in json.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
            let id = added.get("id").and_then(token_id).context("an added token has no id")?;
            let content = added.get("content").and_then(Value::as_str).context("an added token has no content")?;
            this.insert(id, content.as_bytes())?;
        }
        Ok(this)
    }

    /// Reads a `*.tiktoken` file (lines of base64 and rank), and the special tokens that a `tokenizer_config.json`
    /// beside it lists.
    ///
    /// # Errors
    /// When a line is not of that form; says which.
    pub fn from_tiktoken(text: &str, config: Option<&Value>) -> Result<Self> {
        let mut this = Self::default();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let place = || format!("line {} is not \"base64 rank\"", number + 1);
            let (bytes, rank) = line.trim().split_once(' ').with_context(place)?;
            let bytes = base64::engine::general_purpose::STANDARD.decode(bytes).with_context(place)?;
            this.insert(rank.trim().parse().with_context(place)?, &bytes)?;
        }
        let special = config.and_then(|c| c.get("added_tokens_decoder")).and_then(Value::as_object);
        for (id, token) in special.into_iter().flatten() {
            let id = id.parse().with_context(|| format!("added_tokens_decoder has the key {id:?}, not a token id"))?;
            let content = token.get("content").and_then(Value::as_str);
            this.insert(id, content.with_context(|| format!("added token {id} has no content"))?.as_bytes())?;
        }
        Ok(this)
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
        Ok(this.with_encoder(Encoder::Tiktoken(bpe)))
    }
}

/// Reads a JSON file.
///
/// # Errors
/// When it cannot be read or parsed; names the file.
pub fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", path.display()))
}

fn token_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// How a tokenizer.json writes bytes as text.
enum Spelling {
    /// GPT-2's alphabet: each byte is one printable character.
    ByteLevel,
    /// SentencePiece: `▁` is a space, `<0xNN>` a byte, all else itself.
    ByteFallback,
}

impl Spelling {
    fn of(json: &Value) -> Result<Self> {
        let kind = json.pointer("/model/type").and_then(Value::as_str).unwrap_or("BPE");
        if kind != "BPE" {
            bail!("its model is {kind}, and only BPE keeps every byte of a prompt; leave this model out");
        }
        if uses(json.get("decoder"), "ByteLevel") || uses(json.get("pre_tokenizer"), "ByteLevel") {
            Ok(Self::ByteLevel)
        } else if uses(json.get("decoder"), "ByteFallback") {
            Ok(Self::ByteFallback)
        } else {
            bail!("it is neither byte-level BPE nor BPE with byte fallback, so its tokens do not spell their bytes");
        }
    }

    fn bytes(&self, piece: &str) -> Option<Vec<u8>> {
        match self {
            Self::ByteLevel => piece.chars().map(byte_of).collect(),
            Self::ByteFallback => {
                let byte = piece.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
                if let Some(byte) = byte.filter(|hex| hex.len() == 2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                    return Some(vec![byte]);
                }
                Some(piece.replace('\u{2581}', " ").into_bytes())
            }
        }
    }
}

/// Whether a component of tokenizer.json, or one of a sequence's, is of this type.
pub(crate) fn uses(component: Option<&Value>, kind: &str) -> bool {
    find(component, kind).is_some()
}

/// The component of this type, or the one within a sequence.
pub(crate) fn find<'a>(component: Option<&'a Value>, kind: &str) -> Option<&'a Value> {
    let component = component?;
    if component.get("type").and_then(Value::as_str) == Some(kind) {
        return Some(component);
    }
    ["decoders", "pretokenizers", "normalizers", "processors"]
        .into_iter()
        .filter_map(|list| component.get(list).and_then(Value::as_array))
        .flatten()
        .find_map(|part| find(Some(part), kind))
}

/// The inverse of GPT-2's alphabet: printable Latin-1 stands for itself, the other 68 bytes for U+0100 onwards.
fn byte_of(c: char) -> Option<u8> {
    match u32::from(c) {
        n @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => u8::try_from(n).ok(),
        n @ 0x100..=0x120 => u8::try_from(n - 0x100).ok(),
        n @ 0x121..=0x142 => u8::try_from(n - 0x121 + 0x7F).ok(),
        0x143 => Some(0xAD),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// GPT-2's `bytes_to_unicode`, as published.
    fn alphabet() -> Vec<char> {
        let mut next = 0;
        (0u32..256)
            .map(|b| {
                let printable = (0x21..=0x7E).contains(&b) || (0xA1..=0xAC).contains(&b) || (0xAE..=0xFF).contains(&b);
                if printable {
                    return char::from_u32(b).unwrap();
                }
                next += 1;
                char::from_u32(0xFF + next).unwrap()
            })
            .collect()
    }

    #[test]
    fn every_byte_comes_back_from_the_byte_alphabet() {
        let alphabet = alphabet();
        let back: Vec<_> = alphabet.iter().map(|c| byte_of(*c)).collect();
        assert_eq!(back, (0..=255u8).map(Some).collect::<Vec<_>>());
        assert_eq!(byte_of('\u{144}'), None);
    }

    #[test]
    fn byte_level_tokens_spell_bytes_and_added_tokens_themselves() {
        let vocabulary = Vocabulary::from_tokenizer_json(&json!({
            "model": {"type": "BPE", "vocab": {"hi": 0, "\u{120}there": 1, "\u{e3}\u{123}": 2, "\u{2581}": 4}},
            "added_tokens": [{"id": 3, "content": "<|\u{120}|>"}],
            "decoder": {"type": "ByteLevel"},
        }))
        .unwrap();
        let mut out = Vec::new();
        assert!(vocabulary.spell(&[0, 1, 2, 3], &mut out));
        assert_eq!(out, [b"hi there\xe3\x81".as_slice(), "<|\u{120}|>".as_bytes()].concat());
        assert!(!vocabulary.spell(&[0, 4], &mut out), "a piece outside the alphabet is unknown");
        assert!(!vocabulary.spell(&[99], &mut out));
    }

    #[test]
    fn byte_fallback_tokens_spell_bytes_and_spaces() {
        let vocabulary = Vocabulary::from_tokenizer_json(&json!({
            "model": {"type": "BPE", "byte_fallback": true, "vocab": {"<0x0A>": 0, "\u{2581}the": 1, "é": 2, "<0xyz>": 3}},
            "added_tokens": [{"id": 4, "content": "<s>"}],
            "decoder": {"type": "Sequence", "decoders": [{"type": "Replace"}, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        }))
        .unwrap();
        let mut out = Vec::new();
        assert!(vocabulary.spell(&[4, 0, 1, 2, 3], &mut out));
        assert_eq!(out, "<s>\n theé<0xyz>".as_bytes());
    }

    #[test]
    fn a_vocabulary_that_loses_bytes_is_refused() {
        let unigram = json!({"model": {"type": "Unigram", "vocab": []}, "decoder": {"type": "Metaspace"}});
        assert!(Vocabulary::from_tokenizer_json(&unigram).is_err());
        let wordpiece = json!({"model": {"type": "BPE", "vocab": {}}, "decoder": {"type": "WordPiece"}});
        assert!(Vocabulary::from_tokenizer_json(&wordpiece).is_err());
    }

    #[test]
    fn tiktoken_files_are_read_with_the_special_tokens_beside_them() {
        let config = json!({"added_tokens_decoder": {"3": {"content": "[BOS]"}}});
        let vocabulary = Vocabulary::from_tiktoken("aGk= 0\nIA== 1\n\n/w== 2\n", Some(&config)).unwrap();
        let mut out = Vec::new();
        assert!(vocabulary.spell(&[3, 0, 1, 2], &mut out));
        assert_eq!(out, b"[BOS]hi \xff");
        let error = format!("{:#}", Vocabulary::from_tiktoken("aGk= 0\noops", None).err().unwrap());
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
