//! What is asked: conversations that share beginnings and grow.

use std::hash::{DefaultHasher, Hash, Hasher};

use anyhow::Result;
use rand::Rng;
use rand::rngs::StdRng;
use warmpath_tests::index_bench::work::BLOCK;
use warmpath_tests::load::Phrases;

/// Who begins alike.
const TENANTS: usize = 40;
/// Blocks of what they begin with.
const PREAMBLE: usize = 32;
/// Conversations at a time; one that is long enough ends, and another begins.
const CONVERSATIONS: usize = 1_000;
const LONGEST: usize = 256;

/// A conversation so far: of its tokens those in whole blocks count.
#[derive(Clone, Default)]
pub struct Conversation {
    /// A name of each block: what it and all before it say.
    pub names: Vec<u64>,
    tokens: Vec<u32>,
}

pub struct Conversations {
    pub phrases: Phrases,
    preambles: Vec<Conversation>,
    running: Vec<Conversation>,
}

impl Conversations {
    pub fn new(random: &mut StdRng) -> Result<Self> {
        let phrases = Phrases::new()?;
        let preambles = (0..TENANTS).map(|_| Conversation::default().grown(PREAMBLE, &phrases, random)).collect();
        Ok(Self { phrases, preambles, running: vec![Conversation::default(); CONVERSATIONS] })
    }

    /// The next request: some conversation with one more turn.
    pub fn next(&mut self, random: &mut StdRng) -> &Conversation {
        let which = random.random_range(0..self.running.len());
        let turn = random.random_range(1..40);
        let conversation = std::mem::take(&mut self.running[which]);
        let before = match conversation.names.len() {
            n if n == 0 || n + turn > LONGEST => self.preambles[random.random_range(0..TENANTS)].clone(),
            _ => conversation,
        };
        self.running[which] = before.grown(turn, &self.phrases, random);
        &self.running[which]
    }

    /// Some that run, and some that end somewhere in them.
    pub fn sample(&self, count: usize, random: &mut StdRng) -> Vec<Conversation> {
        let mut one = || {
            let mut some = self.running[random.random_range(0..self.running.len())].clone();
            if random.random() && !some.names.is_empty() {
                some.names.truncate(random.random_range(1..=some.names.len()));
            }
            some
        };
        (0..count).map(|_| one()).filter(|conversation| !conversation.names.is_empty()).collect()
    }
}

impl Conversation {
    /// The tokens of its blocks.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens[..self.names.len() * BLOCK]
    }

    /// Grows by phrases as a whole, as a text does: cut phrases would have other tokens.
    fn grown(mut self, blocks: usize, phrases: &Phrases, random: &mut StdRng) -> Self {
        self.tokens.extend(phrases.tokens(random, blocks * BLOCK));
        for block in self.tokens.chunks_exact(BLOCK).skip(self.names.len()) {
            let mut hasher = DefaultHasher::new();
            (self.names.last(), block).hash(&mut hasher);
            self.names.push(hasher.finish());
        }
        self
    }
}
