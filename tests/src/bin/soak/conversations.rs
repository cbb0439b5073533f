//! What is asked: conversations that share beginnings and grow.

use rand::Rng;
use rand::rngs::StdRng;
use warmpath_tests::index_bench::text::Text;
use warmpath_tests::index_bench::work::BLOCK;

/// Who begins alike.
const TENANTS: usize = 40;
/// Blocks of what they begin with.
const PREAMBLE: usize = 32;
/// Conversations at a time; one that is long enough ends, and another begins.
const CONVERSATIONS: usize = 1_000;
const LONGEST: usize = 256;

/// A conversation so far.
#[derive(Clone, Default)]
pub struct Conversation {
    /// A name of each block: what it and all before it say.
    pub names: Vec<u64>,
    pub tokens: Vec<u32>,
}

pub struct Conversations {
    preambles: Vec<Conversation>,
    running: Vec<Conversation>,
}

impl Conversations {
    pub fn new(random: &mut StdRng) -> Self {
        let preambles = (0..TENANTS).map(|_| Conversation::default().grown(PREAMBLE, random)).collect();
        Self { preambles, running: vec![Conversation::default(); CONVERSATIONS] }
    }

    /// The next request: some conversation with one more turn.
    pub fn next(&mut self, random: &mut StdRng) -> &Conversation {
        let which = random.random_range(0..self.running.len());
        let turn = random.random_range(1..40);
        let conversation = std::mem::take(&mut self.running[which]);
        let before = match conversation.names.len() {
            0 => self.preambles[which % TENANTS].clone(),
            n if n + turn > LONGEST => self.preambles[random.random_range(0..TENANTS)].clone(),
            _ => conversation,
        };
        self.running[which] = before.grown(turn, random);
        &self.running[which]
    }

    /// Some that run, and some that end somewhere in them.
    pub fn sample(&self, count: usize, random: &mut StdRng) -> Vec<Conversation> {
        let mut one = || {
            let mut some = self.running[random.random_range(0..self.running.len())].clone();
            if random.random() && !some.names.is_empty() {
                let end = random.random_range(1..=some.names.len());
                some.names.truncate(end);
                some.tokens.truncate(end * BLOCK);
            }
            some
        };
        (0..count).map(|_| one()).filter(|c| !c.names.is_empty()).collect()
    }
}

impl Conversation {
    fn grown(mut self, blocks: usize, random: &mut StdRng) -> Self {
        self.tokens.extend(Text::get().tokens(random.random(), blocks * BLOCK));
        self.names.extend((0..blocks).map(|_| random.random::<u64>()));
        self
    }
}
