//! Token ids back to bytes.
//!
//! A vocabulary is read once into a table id -> bytes. The library's own `decode` is of no use here: it replaces
//! split UTF-8, drops special tokens and tidies spaces, where the index needs the very bytes.

mod hugging_face;
mod sentencepiece;
mod tekken;
mod tiktoken;

use crate::canonical::{Encoder, is_canonical};
use anyhow::{Context, Result, bail};
pub(crate) use hugging_face::{byte_char, uses};
pub use sentencepiece::{Kind, Piece, SentencePiece};
use serde_json::Value;
use std::path::Path;
use std::sync::OnceLock;
pub use tekken::Tekken;
pub(crate) use tekken::version;

/// A model's tokens as bytes.
#[derive(Default)]
pub struct Vocabulary {
    bytes: Vec<u8>,
    /// Where each token's bytes lie; `None` for ids that mean nothing (padding of the embedding table).
    spans: Vec<Option<(u32, u32)>>,
    /// Tells generated blocks whose tokens no prompt will have.
    encoder: Option<Encoder>,
    digest: OnceLock<u64>,
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

    /// Tells vocabularies apart: a digest of what every token spells. The same in every process.
    #[must_use]
    pub fn digest(&self) -> u64 {
        *self.digest.get_or_init(|| {
            let step = |h: u64, word: u64| (h.rotate_left(23) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let bytes = self.bytes.chunks(8).fold(self.bytes.len() as u64, |h, chunk| {
                step(h, chunk.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)))
            });
            let span = |h, span: &Option<(u32, u32)>| {
                step(h, span.map_or(u64::MAX, |(start, end)| u64::from(start) << 32 | u64::from(end)))
            };
            let h = self.spans.iter().fold(bytes, span);
            h ^ h >> 29
        })
    }

    /// The last token that spells these bytes.
    #[must_use]
    pub fn id(&self, bytes: &[u8]) -> Option<u32> {
        (0..u32::try_from(self.spans.len()).ok()?).rev().find(|id| self.get(*id) == Some(bytes))
    }

    /// Lets generated blocks be checked: see [`crate::canonical`].
    #[must_use]
    pub fn with_encoder(self, encoder: Encoder) -> Self {
        Self { encoder: Some(encoder), ..self }
    }

    /// The model's own tokenizer, if it is at hand.
    #[must_use]
    pub fn encoder(&self) -> Option<&Encoder> {
        self.encoder.as_ref()
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
}

/// Reads a JSON file.
///
/// # Errors
/// When it cannot be read or parsed; names the file.
pub fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", path.display()))
}
