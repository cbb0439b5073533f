//! Hugging Face's tokenizer.json.

use super::Vocabulary;
use anyhow::{Context, Result, bail};
use serde_json::Value;

impl Vocabulary {
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
        this.with_added(json)
    }

    /// With the added tokens of a tokenizer.json.
    ///
    /// # Errors
    /// When one lacks id or content.
    pub fn with_added(mut self, json: &Value) -> Result<Self> {
        for added in json.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
            let id = added.get("id").and_then(token_id).context("an added token has no id")?;
            let content = added.get("content").and_then(Value::as_str).context("an added token has no content")?;
            self.insert(id, content.as_bytes())?;
        }
        Ok(self)
    }
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
fn find<'a>(component: Option<&'a Value>, kind: &str) -> Option<&'a Value> {
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

/// The character that stands for a byte in GPT-2's alphabet.
pub(crate) fn byte_char(byte: u8) -> char {
    let n = u32::from(byte);
    let code = match byte {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => n,
        0..=0x20 => n + 0x100,
        0x7F..=0xA0 => n - 0x7F + 0x121,
        0xAD => 0x143,
    };
    char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
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
        assert_eq!(alphabet, (0..=255u8).map(byte_char).collect::<Vec<_>>());
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
}
