//! SentencePiece's own model files (`tokenizer.model`): a protobuf message, read as far as it is needed.

use super::Vocabulary;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

/// The file holds this much of what `sentencepiece_model.proto` describes.
#[derive(Debug, Default)]
pub struct SentencePiece {
    /// In order of their ids.
    pub pieces: Vec<Piece>,
    /// BPE; otherwise a unigram model, words or characters.
    pub bpe: bool,
    /// Characters without a token of their own become bytes.
    pub byte_fallback: bool,
    /// A space is put before every text.
    pub dummy_prefix: bool,
    /// Spaces at the ends go, and of several in a row all but one.
    pub squeezes_spaces: bool,
    /// Spaces become `▁`.
    pub escapes_spaces: bool,
    /// Texts are changed by a table of characters, as NFKC does.
    pub changes_characters: bool,
}

/// One token.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece {
    /// As the file writes it.
    pub text: String,
    /// What it is.
    pub kind: Kind,
}

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A piece of text, with `▁` for spaces.
    Text,
    /// What characters without a token become.
    Unknown,
    /// Never found in text, such as `<s>`.
    Control,
    /// Always found in text.
    UserDefined,
    /// `<0xNN>`.
    Byte,
}

impl SentencePiece {
    /// Reads a model file.
    ///
    /// # Errors
    /// When it is not one.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        // Defaults of the fields, as the .proto has them.
        let mut this = Self { dummy_prefix: true, squeezes_spaces: true, escapes_spaces: true, ..Self::default() };
        for field in fields(bytes) {
            match field? {
                (1, Field::Bytes(piece)) => this.pieces.push(Piece::read(piece)?),
                (2, Field::Bytes(trainer)) => {
                    for field in fields(trainer) {
                        match field? {
                            (3, Field::Number(kind)) => this.bpe = kind == 2,
                            (35, Field::Number(set)) => this.byte_fallback = set != 0,
                            (24, Field::Number(set)) => ensure!(set == 0, "it marks spaces behind words"),
                            _ => {}
                        }
                    }
                }
                (3, Field::Bytes(normalizer)) => {
                    for field in fields(normalizer) {
                        match field? {
                            (2, Field::Bytes(table)) => this.changes_characters = !table.is_empty(),
                            (3, Field::Number(set)) => this.dummy_prefix = set != 0,
                            (4, Field::Number(set)) => this.squeezes_spaces = set != 0,
                            (5, Field::Number(set)) => this.escapes_spaces = set != 0,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        ensure!(!this.pieces.is_empty(), "it holds no tokens");
        Ok(this)
    }

    /// Its tokens as bytes.
    ///
    /// # Errors
    /// When tokens do not spell their bytes.
    pub fn vocabulary(&self) -> Result<Vocabulary> {
        ensure!(self.bpe && self.byte_fallback, "it is not BPE with byte fallback, so its tokens lose characters");
        let mut vocabulary = Vocabulary::default();
        for (id, piece) in (0u32..).zip(&self.pieces) {
            let text = piece.text.as_str();
            match piece.kind {
                Kind::Unknown => {}
                Kind::Control => vocabulary.insert(id, text.as_bytes())?,
                Kind::Text | Kind::UserDefined => vocabulary.insert(id, text.replace('\u{2581}', " ").as_bytes())?,
                Kind::Byte => {
                    let hex = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
                    let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
                    vocabulary.insert(id, &[byte.with_context(|| format!("token {id}, {text:?}, is not a byte"))?])?;
                }
            }
        }
        Ok(vocabulary)
    }

    /// The tokenizer.json, without merges, that transformers makes of it where it uses the file itself.
    #[must_use]
    pub fn tokenizer_json(&self) -> Value {
        let vocab: Map<String, Value> =
            (0u32..).zip(&self.pieces).map(|(id, piece)| (piece.text.clone(), id.into())).collect();
        let kind = if self.bpe { "BPE" } else { "Unigram" };
        let marks = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
        let table = self.changes_characters.then(|| json!({"type": "Precompiled"}));
        let normalizers: Vec<Value> = table.into_iter().chain([marks]).collect();
        json!({
            "model": {"type": kind, "vocab": vocab, "byte_fallback": self.byte_fallback},
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "pre_tokenizer": null,
            "decoder": {"type": "ByteFallback"},
            "added_tokens": [],
        })
    }
}

impl Piece {
    fn read(bytes: &[u8]) -> Result<Self> {
        let mut this = Self { text: String::new(), kind: Kind::Text };
        for field in fields(bytes) {
            match field? {
                (1, Field::Bytes(text)) => {
                    let text = std::str::from_utf8(text).context("a token's text is not UTF-8")?;
                    text.clone_into(&mut this.text);
                }
                (3, Field::Number(kind)) => {
                    this.kind = match kind {
                        2 => Kind::Unknown,
                        3 => Kind::Control,
                        4 => Kind::UserDefined,
                        6 => Kind::Byte,
                        _ => Kind::Text,
                    };
                }
                _ => {}
            }
        }
        Ok(this)
    }
}

/// A field's value, as far as one is needed here.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Fixed-size numbers.
    Other,
}

/// A message's fields with their numbers.
fn fields(mut message: &[u8]) -> impl Iterator<Item = Result<(u64, Field<'_>)>> {
    std::iter::from_fn(move || (!message.is_empty()).then(|| field(&mut message)))
}

fn field<'a>(from: &mut &'a [u8]) -> Result<(u64, Field<'a>)> {
    let mut take = |length: u64| -> Result<&'a [u8]> {
        let split = usize::try_from(length).ok().and_then(|length| from.split_at_checked(length));
        let (taken, rest) = split.context("it ends within a field; is it a SentencePiece model?")?;
        *from = rest;
        Ok(taken)
    };
    let mut number = || -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = take(1)?.first().copied().unwrap_or_default();
            value |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        bail!("a number is too long; is it a SentencePiece model?")
    };
    let key = number()?;
    let value = match key & 7 {
        0 => Field::Number(number()?),
        2 => {
            let length = number()?;
            Field::Bytes(take(length)?)
        }
        1 => take(8).map(|_| Field::Other)?,
        5 => take(4).map(|_| Field::Other)?,
        kind => bail!("a field is of the unknown kind {kind}; is it a SentencePiece model?"),
    };
    Ok((key >> 3, value))
}
