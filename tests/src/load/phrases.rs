//! Phrases whose tokens are known without tokenising each: of phrases that the tokenizer takes one by one.

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use warmpath_indexer::tokens::{Vocabulary, read_json};

use super::prose;
use crate::sim::fixture_tokenizer;
use crate::sim::tokenizer::Tokenizer;

/// How many there are.
const PHRASES: usize = 4096;

/// Phrases of the test model, and its vocabulary.
pub struct Phrases {
    phrases: Vec<Vec<u32>>,
    vocabulary: Vocabulary,
}

impl Phrases {
    /// Makes them up.
    ///
    /// # Errors
    /// If the test model's tokenizer cannot be read.
    pub fn new() -> Result<Self> {
        let tokenizer = Tokenizer::load(&fixture_tokenizer())?;
        let vocabulary = Vocabulary::from_tokenizer_json(&read_json(&fixture_tokenizer().join("tokenizer.json"))?)?;
        let mut random = StdRng::seed_from_u64(3);
        let mut texts = Vec::new();
        for _ in 0..PHRASES {
            let words = prose(&mut random, 200);
            let words: Vec<&str> = words.split(' ').filter(|w| w.bytes().all(|b| b.is_ascii_lowercase())).collect();
            let number: String = (0..6).map(|_| char::from(random.random_range(b'a'..=b'z'))).collect();
            texts.push(format!(" {number} {}", words.join(" ")));
        }
        let phrases: Vec<Vec<u32>> = texts.iter().map(|text| tokenizer.encode(text, false)).collect::<Result<_>>()?;
        ensure!(phrases.concat() == tokenizer.encode(&texts.concat(), true)?, "the tokenizer joins phrases");
        Ok(Self { phrases, vocabulary })
    }

    /// At least so many tokens of a prompt like no other.
    pub fn tokens(&self, random: &mut StdRng, count: usize) -> Vec<u32> {
        let mut tokens = Vec::with_capacity(count + 100);
        while tokens.len() < count {
            tokens.extend_from_slice(self.phrases.choose(random).expect("there are phrases"));
        }
        tokens
    }

    /// What tokens spell.
    ///
    /// # Errors
    /// If one is not of a phrase.
    pub fn text(&self, tokens: &[u32]) -> Result<String> {
        let mut bytes = Vec::new();
        ensure!(self.vocabulary.spell(tokens, &mut bytes), "a token spells nothing");
        String::from_utf8(bytes).context("phrases are ASCII")
    }
}
