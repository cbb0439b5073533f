//! Token ids as text has them, without a text: a real vocabulary, and frequent tokens more often than rare ones.

use std::ops::Range;
use std::sync::{Arc, LazyLock};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use warmpath_indexer::tokens::Vocabulary;

/// The vocabulary of gpt-oss. Merges are numbered as they were made, frequent ones first, so a token's id tells its rank.
const VOCABULARY: &str = "o200k_harmony";
/// Words of English and other languages; single bytes come before, rare names and control tokens after.
const RANKS: Range<u32> = 256..190_000;
/// Ranks at which frequencies begin to fall: with this, tokens have 4.0 bytes on average, as in English prose and code.
const FLAT: f64 = 60.0;

/// Makes token sequences out of a vocabulary.
pub struct Text {
    vocabulary: Arc<Vocabulary>,
}

static TEXT: LazyLock<Text> =
    LazyLock::new(|| Text { vocabulary: Arc::new(Vocabulary::built_in(VOCABULARY).expect("it is built in")) });

impl Text {
    /// The one there is.
    pub fn get() -> &'static Self {
        &TEXT
    }

    /// What the tokens spell.
    pub fn vocabulary(&self) -> &Arc<Vocabulary> {
        &self.vocabulary
    }

    /// Always the same tokens for a seed: Zipf's law, a token's frequency falls with its rank.
    pub fn tokens(&self, seed: u64, count: usize) -> Vec<u32> {
        let mut random = SmallRng::seed_from_u64(seed);
        let span = (f64::from(RANKS.end - RANKS.start) / FLAT + 1.0).ln();
        let token = |u: f64| RANKS.start + (FLAT * ((u * span).exp() - 1.0)) as u32;
        (0..count).map(|_| token(random.random())).collect()
    }

    /// The bytes of these tokens.
    pub fn bytes(&self, tokens: &[u32]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(tokens.len() * 5);
        assert!(self.vocabulary.spell(tokens, &mut bytes), "every token spells something");
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_about_four_bytes_and_follow_from_the_seed() {
        let text = Text::get();
        let tokens = text.tokens(7, 20_000);
        assert_eq!(tokens, text.tokens(7, 20_000));
        assert_ne!(tokens, text.tokens(8, 20_000));
        let bytes = text.bytes(&tokens).len() as f64 / 20_000.0;
        assert!((3.8..4.2).contains(&bytes), "{bytes} bytes a token");
    }
}
