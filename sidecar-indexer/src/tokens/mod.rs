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
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;
pub use tekken::Tekken;
pub(crate) use tekken::version;

/// A model's tokens as bytes.
#[derive(Default)]
pub struct Vocabulary {
    slots: Vec<Slot>,
    /// Bytes of long tokens, one after the other.
    long: Vec<u8>,
    /// Tells generated blocks whose tokens no prompt will have.
    encoder: Option<Encoder>,
    digest: OnceLock<u64>,
}

/// One token. Nearly all are short and lie here as a whole: one read and one write of fixed size spell them.
///
/// **Invariant:** the last byte is the length of the bytes at the front, or `LONG`, and then the front says where in
/// [`Vocabulary::long`] they lie, or `UNKNOWN` for ids that mean nothing (padding of the embedding table).
#[derive(Clone, Copy)]
struct Slot([u8; Slot::SIZE]);

impl Slot {
    const SIZE: usize = 16;
    const LONG: u8 = 254;
    const UNKNOWN: u8 = 255;
    const NOTHING: Self = Self([Self::UNKNOWN; Self::SIZE]);

    /// `None` for a token that is too long.
    fn short(bytes: &[u8]) -> Option<Self> {
        let mut slot = [0; Self::SIZE];
        let (length, place) = slot.split_last_mut()?;
        place.get_mut(..bytes.len())?.copy_from_slice(bytes);
        *length = u8::try_from(bytes.len()).ok()?;
        Some(Self(slot))
    }

    fn long(start: u32, end: u32) -> Self {
        let [a, b, c, d] = start.to_le_bytes();
        let [e, f, g, h] = end.to_le_bytes();
        Self([a, b, c, d, e, f, g, h, 0, 0, 0, 0, 0, 0, 0, Self::LONG])
    }

    /// Where a long token's bytes lie.
    fn span(&self) -> Range<usize> {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u32::from_le_bytes([a, b, c, d]) as usize..u32::from_le_bytes([e, f, g, h]) as usize
    }

    fn tag(&self) -> u8 {
        let [.., tag] = self.0;
        tag
    }
}

impl Vocabulary {
    /// Appends the bytes of `tokens` to `out`; `false`, and nothing, if one of them is unknown.
    #[must_use]
    pub fn spell(&self, tokens: &[u32], out: &mut Vec<u8>) -> bool {
        let start = out.len();
        let end = self.spell_over(tokens, start, out);
        out.truncate(end.unwrap_or(start));
        end.is_some()
    }

    /// Writes the bytes of `tokens` over what is in `buffer` from `at` on, and says where they end; `None` if one of
    /// them is unknown.
    #[inline]
    pub fn spell_over(&self, tokens: &[u32], at: usize, buffer: &mut Vec<u8>) -> Option<usize> {
        let mut at = at;
        reserve(buffer, at + tokens.len() * Slot::SIZE);
        for token in tokens {
            let slot = self.slots.get(*token as usize)?;
            if slot.tag() >= Slot::LONG {
                at = self.spell_long(slot, at, buffer)?;
                reserve(buffer, at + tokens.len() * Slot::SIZE);
                continue;
            }
            // More than its length is written: what is too much, the next token overwrites.
            *buffer.get_mut(at..)?.first_chunk_mut()? = slot.0;
            at += usize::from(slot.tag());
        }
        Some(at)
    }

    /// Reads ahead of what is asked about these: one by one they would be waited for.
    pub fn warm(&self, tokens: &[u32]) {
        let tag = |token: &u32| self.slots.get(*token as usize).map_or(0, |slot| u32::from(slot.tag()));
        std::hint::black_box(tokens.iter().map(tag).sum::<u32>());
    }

    /// Writes a token that is not short; `None` if it is unknown.
    #[cold]
    fn spell_long(&self, slot: &Slot, at: usize, buffer: &mut Vec<u8>) -> Option<usize> {
        let bytes = self.long.get(slot.span()).filter(|_| slot.tag() == Slot::LONG)?;
        let end = at + bytes.len();
        reserve(buffer, end);
        buffer.get_mut(at..end)?.copy_from_slice(bytes);
        Some(end)
    }

    /// One token's bytes.
    #[must_use]
    pub fn get(&self, token: u32) -> Option<&[u8]> {
        let slot = self.slots.get(token as usize)?;
        match slot.tag() {
            Slot::UNKNOWN => None,
            Slot::LONG => self.long.get(slot.span()),
            length => slot.0.get(..usize::from(length)),
        }
    }

    /// One more than the highest token id known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether no token is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Tells vocabularies apart: a digest of what every token spells. The same in every process.
    #[must_use]
    pub fn digest(&self) -> u64 {
        *self.digest.get_or_init(|| {
            let step = |h: u64, word: u64| (h.rotate_left(23) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let token = |h, id| {
                let Some(bytes) = self.get(id) else { return step(h, u64::MAX) };
                let word = |chunk: &[u8]| chunk.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
                bytes.chunks(8).fold(step(h, bytes.len() as u64), |h, chunk| step(h, word(chunk)))
            };
            let h = (0..self.slots.len() as u32).fold(self.slots.len() as u64, token);
            h ^ h >> 29
        })
    }

    /// The last token that spells these bytes.
    #[must_use]
    pub fn id(&self, bytes: &[u8]) -> Option<u32> {
        (0..u32::try_from(self.slots.len()).ok()?).rev().find(|id| self.get(*id) == Some(bytes))
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
        let slot = match Slot::short(bytes) {
            Some(slot) => slot,
            None => {
                let end = |long: &[u8]| u32::try_from(long.len()).context("the vocabulary is above 4 GiB");
                let start = end(&self.long)?;
                self.long.extend_from_slice(bytes);
                Slot::long(start, end(&self.long)?)
            }
        };
        if self.slots.len() <= token as usize {
            self.slots.resize(token as usize + 1, Slot::NOTHING);
        }
        if let Some(place) = self.slots.get_mut(token as usize) {
            *place = slot;
        }
        Ok(())
    }
}

/// Makes a buffer at least so long.
fn reserve(buffer: &mut Vec<u8>, length: usize) {
    if buffer.len() < length {
        buffer.resize(length, 0);
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tokens_of_any_length_are_spelled_as_they_were_put_in(
            words in proptest::collection::vec(proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)), 1..20),
            text in proptest::collection::vec(any::<prop::sample::Index>(), 0..40),
            before in proptest::collection::vec(any::<u8>(), 0..5),
        ) {
            let mut vocabulary = Vocabulary::default();
            for (id, word) in (0..).zip(&words) {
                if let Some(word) = word {
                    vocabulary.insert(id, word).unwrap();
                }
            }
            let ids: Vec<u32> = text.iter().map(|at| at.index(words.len()) as u32).collect();
            let spelled: Option<Vec<&[u8]>> = ids.iter().map(|id| words[*id as usize].as_deref()).collect();
            let (mut out, mut buffer) = (before.clone(), before.clone());
            prop_assert_eq!(vocabulary.spell(&ids, &mut out), spelled.is_some());
            // Twice: what the buffer holds does not matter.
            for _ in 0..2 {
                let end = vocabulary.spell_over(&ids, before.len(), &mut buffer);
                let bytes = end.map(|end| buffer[before.len()..end].to_vec());
                prop_assert_eq!(bytes, spelled.as_ref().map(|spelled| spelled.concat()));
                prop_assert_eq!(&buffer[..before.len()], &before);
            }
            if let Some(spelled) = spelled {
                prop_assert_eq!(out, [before, spelled.concat()].concat());
            }
            for (id, word) in (0..).zip(&words) {
                prop_assert_eq!(vocabulary.get(id), word.as_deref());
            }
            prop_assert!(!vocabulary.spell(&[words.len() as u32], &mut Vec::new()), "an id beyond the last");
        }
    }
}
