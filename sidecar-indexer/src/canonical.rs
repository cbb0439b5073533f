//! Whether a block's tokens are those that the tokenizer gives for its text.
//!
//! An engine caches an answer under the tokens it sampled. The next turn sends the answer's *text*, and its tokens may
//! differ: `"\n", "\n"` was sampled where the tokenizer says `"\n\n"`. Then bytes match where tokens do not, and the
//! index would promise what the engine does not find. So blocks that may have been generated are encoded again, with
//! some tokens before them, and count only if the same tokens come out.
//!
//! **Invariant:** the two ends of the window decide nothing. Text cut anywhere begins with other tokens until the next
//! word, and the last words may end otherwise once more text follows; what is skipped at a block's end is looked at
//! with the next block. A wrong tokenisation thus counts for one block at the most. A right one may be refused where runs
//! of rare characters or digits are longer than the window: then what follows is not predicted.
//!
//! Price: one encoding of some 40 tokens per generated block. Deliberately lenient: where a tokenizer has no words
//! (SentencePiece without pre-tokenizer) or its encoder is not at hand (SentencePiece's own files), everything counts.

use crate::tokens::Vocabulary;
use anyhow::{Result, anyhow, ensure};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeSet;
use tiktoken_rs::CoreBPE;
use tokenizers::Tokenizer;

/// Tokens before a block that are encoded with it.
pub const TAIL: usize = 24;
/// Events of more blocks than this come from prefill: a decode step fills one block, with speculation seldom two.
pub const GENERATED_AT_MOST: usize = 2;
/// Words at the end that decide nothing.
const OPEN_WORDS: usize = 2;

/// A model's own tokenizer.
pub enum Encoder {
    /// tokenizer.json.
    HuggingFace(Box<Tokenizer>),
    /// A vocabulary in tiktoken's form, built in or read.
    Tiktoken(Cow<'static, CoreBPE>),
}

/// One token of an encoding.
struct Piece {
    id: u32,
    start: usize,
    /// Whether the tokenizer begins a new word here, before which nothing depends on what follows.
    begins_word: bool,
}

impl Encoder {
    /// From a tokenizer.json.
    ///
    /// # Errors
    /// When the library does not take it.
    pub fn from_tokenizer_json(json: &Value) -> Result<Self> {
        let mut tokenizer = Tokenizer::from_bytes(serde_json::to_vec(json)?).map_err(|e| anyhow!("{e}"))?;
        // Set-up for training and batches; the engines do without as well.
        tokenizer.with_truncation(None).map_err(|e| anyhow!("{e}"))?;
        tokenizer.with_padding(None);
        Ok(Self::HuggingFace(Box::new(tokenizer)))
    }

    /// From bytes by rank and special tokens, as tiktoken takes them; `words` is its regular expression of words.
    ///
    /// # Errors
    /// When the library does not take them.
    pub fn of_ranks(tokens: Vec<(u32, Vec<u8>)>, special: Vec<(u32, String)>, words: &str) -> Result<Self> {
        let (mut ids, mut texts) = (BTreeSet::new(), BTreeSet::new());
        // The library would panic.
        for (id, bytes) in &tokens {
            ensure!(ids.insert(*id) && texts.insert(bytes.as_slice()), "token {id} is there twice");
        }
        // It would never end, or panic.
        ensure!(special.iter().all(|(_, text)| !text.is_empty()), "a special token is empty");
        ensure!((0..=u8::MAX).all(|byte| texts.contains([byte].as_slice())), "some bytes have no token");
        let special = special.into_iter().map(|(id, text)| (text, id)).collect();
        let tokens = tokens.into_iter().map(|(id, bytes)| (bytes, id)).collect();
        Ok(Self::Tiktoken(Cow::Owned(CoreBPE::new(tokens, special, words)?)))
    }

    fn encode(&self, vocabulary: &Vocabulary, text: &str) -> Option<Vec<Piece>> {
        let mut start = 0;
        let mut place = |id| {
            let at = start;
            start += vocabulary.get(id)?.len();
            Some(at)
        };
        let pieces: Option<Vec<Piece>> = match self {
            Self::HuggingFace(tokenizer) => {
                let encoding = tokenizer.encode_fast(text, false).ok()?;
                let mut before = None;
                let words = encoding.get_word_ids().iter().map(|word| {
                    let begins = word.is_none() || *word != before;
                    before = *word;
                    begins
                });
                let pieces = encoding.get_ids().iter().zip(words);
                pieces.map(|(id, begins_word)| Some(Piece { id: *id, start: place(*id)?, begins_word })).collect()
            }
            Self::Tiktoken(bpe) => {
                // The crate does not tell words; every GPT pattern begins one at a space after something else.
                let space = |at: usize| text.as_bytes().get(at).is_some_and(u8::is_ascii_whitespace);
                let ids = bpe.encode_with_special_tokens(text);
                let piece = |id| {
                    let start = place(id)?;
                    let begins_word = space(start) && start.checked_sub(1).is_some_and(|before| !space(before));
                    Some(Piece { id, start, begins_word })
                };
                ids.into_iter().map(piece).collect()
            }
        };
        // A tokenizer that changes the text (normaliser, prefix space) cannot be compared byte by byte.
        pieces.filter(|_| start == text.len())
    }
}

/// Whether `block`, after `tail`, is what the tokenizer would make of its text.
#[must_use]
pub fn is_canonical(encoder: &Encoder, vocabulary: &Vocabulary, tail: &[u32], block: &[u32]) -> bool {
    let (mut bytes, mut actual) = (Vec::new(), Vec::with_capacity(tail.len() + block.len()));
    for id in tail.iter().chain(block) {
        let Some(spelled) = vocabulary.get(*id) else { return false };
        actual.push((bytes.len(), *id));
        bytes.extend_from_slice(spelled);
    }
    // Characters cut by the window's ends belong to the ends.
    let cut = bytes.iter().take_while(|b| **b & 0xC0 == 0x80).count();
    let whole = match std::str::from_utf8(bytes.get(cut..).unwrap_or_default()) {
        Ok(text) => text,
        Err(e) if e.error_len().is_none() => {
            let text = bytes.get(cut..cut + e.valid_up_to()).unwrap_or_default();
            std::str::from_utf8(text).unwrap_or_default()
        }
        // Clients get U+FFFD for these bytes, so no prompt will ever have them.
        Err(_) => return false,
    };
    let Some(pieces) = encoder.encode(vocabulary, whole) else { return true };

    let begun = pieces.iter().filter(|p| p.begins_word).map(|p| p.start + cut);
    let words: Vec<usize> = begun.collect();
    let Some(end) = words.len().checked_sub(OPEN_WORDS).and_then(|at| words.get(at).copied()) else { return true };
    // Both agree on where this word begins: from here on they must agree on everything.
    let common = |at: &&usize| **at > cut && actual.binary_search_by_key(*at, |(start, _)| *start).is_ok();
    let Some(from) = words.iter().find(common).copied() else { return true };
    let expected = pieces.iter().map(|p| (p.start + cut, p.id)).filter(|(start, _)| (from..end).contains(start));
    let found = actual.iter().copied().filter(|(start, _)| (from..end).contains(start));
    from >= end || expected.eq(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::read_json;
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;
    use std::path::Path;
    use std::sync::LazyLock;

    static TINY: LazyLock<(Vocabulary, Encoder)> = LazyLock::new(|| {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tokenizer/tokenizer.json");
        let json = read_json(&file).unwrap();
        (Vocabulary::from_tokenizer_json(&json).unwrap(), Encoder::from_tokenizer_json(&json).unwrap())
    });
    static HARMONY: LazyLock<(Vocabulary, Encoder)> = LazyLock::new(|| {
        let bpe = tiktoken_rs::bpe_for_tokenizer(tiktoken_rs::tokenizer::Tokenizer::O200kHarmony).unwrap();
        (Vocabulary::built_in("o200k_harmony").unwrap(), Encoder::Tiktoken(Cow::Borrowed(bpe)))
    });

    fn ids(encoder: &Encoder, text: &str) -> Vec<u32> {
        match encoder {
            Encoder::HuggingFace(t) => t.encode_fast(text, false).unwrap().get_ids().to_vec(),
            Encoder::Tiktoken(t) => t.encode_with_special_tokens(text),
        }
    }

    /// All blocks of a text in order, as they would be checked: true where the block counts.
    fn blocks((vocabulary, encoder): &(Vocabulary, Encoder), ids: &[u32], size: usize) -> Vec<bool> {
        let check = |at: usize| {
            let tail = &ids[at.saturating_sub(TAIL)..at];
            is_canonical(encoder, vocabulary, tail, &ids[at..at + size])
        };
        (0..ids.len() / size).map(|n| check(n * size)).collect()
    }

    proptest! {
        // Always the same texts: in about one of two thousand, with long runs of rare characters and digits, the window
        // is too short and a block is refused. That hides the rest of a conversation, and promises nothing.
        #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(1), ..ProptestConfig::with_cases(300) })]

        /// A block wrongly refused would hide all of a conversation that comes after it.
        #[test]
        fn what_the_tokenizer_made_is_canonical_however_it_is_cut(
            parts in proptest::collection::vec(prop_oneof![
                "[a-z]{1,12}", "[A-Z][a-z]{1,8}", "[0-9]{1,30}", " {1,5}", "[\n\t ]{1,6}", "[!-/:-@]{1,6}",
                "\\PC{1,8}", "(é|ü|日本語|中文|한국어|🙂|👩‍👩‍👧){1,6}", "'(s|t|ll|ve)", "<\\|im_end\\|>\n<\\|im_start\\|>",
            ], 1..80),
            size in prop_oneof![Just(8usize), Just(16), Just(32)],
        ) {
            let text = parts.concat();
            for model in [&*TINY, &*HARMONY] {
                let ids = ids(&model.1, &text);
                prop_assert!(blocks(model, &ids, size).iter().all(|canonical| *canonical), "{text:?}");
            }
        }

        /// One token replaced by two that spell the same bytes.
        #[test]
        fn a_token_split_in_two_is_found_with_its_block_or_the_next(
            words in proptest::collection::vec("[a-z]{4,12}", 40..80), at in any::<prop::sample::Index>()
        ) {
            let text = words.join(" ");
            for model in [&*TINY, &*HARMONY] {
                let mut ids = ids(&model.1, &text);
                let at = 20 + at.index(ids.len() - 30);
                let bytes = model.0.get(ids[at]).unwrap().to_vec();
                prop_assume!(bytes.len() > 1);
                let letter = |b: &[u8]| (0..model.0.len() as u32).find(|id| model.0.get(*id) == Some(b));
                let (Some(a), Some(b)) = (letter(&bytes[..1]), letter(&bytes[1..])) else { return Ok(()) };
                ids.splice(at..=at, [a, b]);
                let found = blocks(model, &ids, 16);
                let (block, last) = (at / 16, found.len());
                prop_assume!(block + 1 < last);
                prop_assert!(!found[block] || !found[block + 1], "{found:?} {block}");
                prop_assert!(found[..block].iter().all(|canonical| *canonical));
            }
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_not_canonical_unless_the_window_cut_them() {
        let (vocabulary, encoder) = &*TINY;
        let byte = |b: u8| (0..256).find(|id| vocabulary.get(*id) == Some(&[b])).unwrap();
        let word = ids(encoder, " return value return value");
        let broken = [word.clone(), vec![byte(0xFF)], word.clone()].concat();
        assert!(!is_canonical(encoder, vocabulary, &[], &broken));
        let cut = [vec![byte(0x9F), byte(0x99), byte(0x82)], word, vec![byte(0xF0), byte(0x9F)]].concat();
        assert!(is_canonical(encoder, vocabulary, &[], &cut));
    }
}
