//! Streams of a made-up engine, in every dialect.

use super::dialects::{Blocks, Change, Dialect};
use affinity::{Slot, Stride, Tier};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use warmpath_indexer::events;
use warmpath_indexer::index::{Index, Options};
use warmpath_indexer::tokens::Vocabulary;
use warmpath_tests::residency::{Residency, compare, compare_copies};

/// Room on the GPU and behind it, in blocks.
const GPU: usize = 60;
const CPU: usize = 30;
const WINDOW: u32 = 1;

/// Everything that makes two blocks the same to an engine, and what its events say of it.
#[derive(Clone, Default, Hash)]
struct Conversation {
    tokens: Vec<u32>,
    adapter: Option<String>,
    salt: Option<String>,
    /// The block that shows an image.
    image: Option<usize>,
}

/// An engine's cache: physical blocks, oldest first; equal ones may be there more than once.
struct Engine {
    dialect: Dialect,
    random: StdRng,
    block_size: usize,
    conversations: Vec<Conversation>,
    gpu: Vec<u64>,
    cpu: Vec<u64>,
    changes: Vec<Change>,
}

impl Engine {
    fn new(dialect: Dialect, seed: u64) -> Self {
        let sizes = if dialect.vllm() { [2, 4, 8] } else { [1, 2, 4] };
        let mut random = StdRng::seed_from_u64(seed);
        let block_size = sizes[random.random_range(0..sizes.len())];
        Self {
            dialect,
            random,
            block_size,
            conversations: Vec::new(),
            gpu: Vec::new(),
            cpu: Vec::new(),
            changes: Vec::new(),
        }
    }

    fn hashes(&self, of: &Conversation) -> Vec<u64> {
        let mut hashes: Vec<u64> = Vec::new();
        for (i, block) in of.tokens.chunks_exact(self.block_size).enumerate() {
            let mut hasher = DefaultHasher::new();
            (hashes.last(), block, &of.adapter, of.image == Some(i)).hash(&mut hasher);
            if i == 0 {
                of.salt.hash(&mut hasher);
            }
            hashes.push(hasher.finish());
        }
        hashes
    }

    /// One step of the engine: what it publishes.
    fn step(&mut self) -> Vec<Change> {
        match self.random.random_range(0..200) {
            0 => {
                self.gpu.clear();
                self.cpu.clear();
                self.changes.push(Change::Cleared);
            }
            1..10 => self.changes.push(Change::Elsewhere(vec![self.random.random(), 5])),
            _ => self.request(),
        }
        std::mem::take(&mut self.changes)
    }

    fn request(&mut self) {
        let which = if self.conversations.is_empty() || self.random.random_bool(0.2) {
            self.begin()
        } else {
            self.random.random_range(0..self.conversations.len())
        };
        let more = self.random.random_range(0..3 * self.block_size);
        for _ in 0..more {
            let token = self.random.random_range(0..6);
            self.conversations[which].tokens.push(token);
        }
        let conversation = self.conversations[which].clone();
        let hashes = self.hashes(&conversation);
        // The last token is always computed: a prompt that is cached whole gets its last block twice.
        let most = (conversation.tokens.len() - 1) / self.block_size;
        let hit = hashes.iter().take(most).take_while(|hash| self.gpu.contains(hash)).count();
        for hash in &hashes[..hit] {
            let at = self.gpu.iter().rposition(|held| held == hash).unwrap();
            let used = self.gpu.remove(at);
            self.gpu.push(used);
        }
        if hit > 0 && self.dialect.vllm() && self.dialect.maps() && self.random.random_bool(0.1) {
            self.say(&conversation, &hashes, 0..hit, Tier::Gpu);
        }
        let mut fresh = hit..hashes.len();
        if !self.dialect.vllm() {
            // Radix trees hold nothing twice.
            while fresh.clone().next().is_some_and(|block| self.gpu.contains(&hashes[block])) {
                fresh.start += 1;
            }
            if fresh.clone().any(|block| self.gpu.contains(&hashes[block])) {
                return;
            }
        }
        if fresh.is_empty() {
            return;
        }
        self.evict((self.gpu.len() + fresh.len()).saturating_sub(GPU));
        self.gpu.extend(&hashes[fresh.clone()]);
        self.say(&conversation, &hashes, fresh, Tier::Gpu);
    }

    fn begin(&mut self) -> usize {
        let of = |random: &mut StdRng, may: bool, name: &str| (may && random.random_bool(0.2)).then(|| name.to_owned());
        let system = self.random.random_range(0..3);
        let conversation = Conversation {
            tokens: (0..3 * self.block_size as u32).map(|i| (i * 7 + system) % 6).collect(),
            adapter: of(&mut self.random, self.dialect.adapters(), "ada"),
            salt: of(&mut self.random, self.dialect.salts(), "tenant"),
            image: (self.dialect.images() && self.random.random_bool(0.2)).then(|| self.random.random_range(1..6)),
        };
        self.conversations.push(conversation);
        if self.conversations.len() > 20 {
            self.conversations.remove(0);
        }
        self.conversations.len() - 1
    }

    /// Gives up the `n` blocks that were used longest ago; some go to the CPU first.
    fn evict(&mut self, n: usize) {
        for hash in self.gpu.drain(..n.min(self.gpu.len())).collect::<Vec<_>>() {
            if self.dialect.tiers() && self.random.random_bool(0.4) && !self.cpu.contains(&hash) {
                if self.cpu.len() == CPU {
                    let oldest = self.cpu.remove(0);
                    self.changes.push(Change::Removed { hashes: vec![oldest], tier: Tier::Cpu, group: 0 });
                }
                self.cpu.push(hash);
                // Its tokens are known from the GPU.
                self.changes.push(Change::Stored(Blocks {
                    hashes: vec![hash],
                    parent: None,
                    tokens: Vec::new(),
                    block_size: 0,
                    tier: Tier::Cpu,
                    group: 0,
                    window: false,
                    adapter: None,
                    salt: None,
                    images: vec![false],
                }));
            }
            self.changes.push(Change::Removed { hashes: vec![hash], tier: Tier::Gpu, group: 0 });
            if self.dialect.extra_keys() {
                self.changes.push(Change::Removed { hashes: vec![hash], tier: Tier::Gpu, group: WINDOW });
            }
        }
    }

    fn say(&mut self, conversation: &Conversation, hashes: &[u64], blocks: std::ops::Range<usize>, tier: Tier) {
        let size = self.block_size;
        let said = Blocks {
            hashes: hashes[blocks.clone()].to_vec(),
            parent: blocks.start.checked_sub(1).map(|before| hashes[before]),
            tokens: conversation.tokens[blocks.start * size..blocks.end * size].to_vec(),
            block_size: size as u32,
            tier,
            group: 0,
            window: false,
            adapter: conversation.adapter.clone(),
            salt: conversation.salt.clone(),
            images: blocks.map(|block| conversation.image == Some(block)).collect(),
        };
        if self.dialect.extra_keys() {
            // A group with a window announces the same blocks.
            self.changes.push(Change::Stored(Blocks { group: WINDOW, window: true, ..said.clone() }));
        }
        self.changes.push(Change::Stored(said));
    }

    /// Copies that are there.
    fn held(&self) -> BTreeMap<u64, u32> {
        let mut held = BTreeMap::new();
        self.gpu.iter().chain(&self.cpu).for_each(|hash| *held.entry(*hash).or_default() += 1);
        held
    }
}

fn vocabulary() -> Arc<Vocabulary> {
    let words = ["a", "b", "cd", "", "efghij", "k"];
    let added: serde_json::Map<_, _> =
        words.iter().enumerate().map(|(id, word)| (id.to_string(), serde_json::json!({"content": word}))).collect();
    let config = serde_json::json!({"added_tokens_decoder": added});
    Arc::new(Vocabulary::from_tiktoken("", &config, false).unwrap())
}

#[test]
fn in_every_dialect_the_index_holds_what_the_engine_holds() {
    let (stride, vocabulary) = (Stride::new(8).unwrap(), vocabulary());
    for (number, dialect) in Dialect::ALL.into_iter().enumerate() {
        let (mut events, mut most) = (0, HashMap::new());
        for seed in 0..3 {
            let mut engine = Engine::new(dialect, seed + 10 * number as u64);
            let tiers = vec![Tier::Gpu, Tier::Cpu];
            let mut residency = Residency::new("tiny", &tiers);
            let mut index = Index::new(Options { stride, max_blocks: 10_000, tiers }, 1);
            index.add(Slot(0), "tiny", &vocabulary, false);
            for step in 0..300 {
                let changes = engine.step();
                let batch = events::decode(&dialect.batch(step.into(), 3, &changes)).unwrap();
                assert_eq!((batch.rank, batch.timestamp), (Some(3), step.into()));
                let written: Vec<_> = changes.iter().filter(|c| !matches!(c, Change::Elsewhere(_))).collect();
                assert_eq!((batch.len(), batch.skipped as usize), (written.len(), changes.len() - written.len()));
                for (event, change) in batch.events().zip(written) {
                    dialect.check(change, &event);
                    index.apply(Slot(0), &event);
                    residency.apply(&event);
                }
                index.settle();
                events += batch.len();
                let at = format!("{dialect:?}, seed {seed}, step {step}");
                assert_eq!(compare_copies(&index, Slot(0), &residency), Ok(()), "{at}");
                let (held, counted) = (engine.held(), residency.copies());
                if dialect.vllm() && dialect.maps() {
                    // A second copy from the start on cannot be told from a report, and is not counted.
                    assert!(counted.iter().all(|(hash, n)| held.get(hash) >= Some(n)), "{at}: too much");
                    assert!(held.keys().filter(|hash| !counted.contains_key(hash)).count() <= held.len() / 4, "{at}");
                } else {
                    assert_eq!(counted, held, "{at}");
                }
                if step % 20 == 19 {
                    assert_eq!(compare(&index, stride, &vocabulary, &[(Slot(0), &residency)]), Ok(()), "{at}");
                    most.entry(seed).and_modify(|most: &mut usize| *most = index.table().len().max(*most)).or_insert(0);
                }
            }
        }
        assert!(events > 1000, "{dialect:?}: only {events} events");
        assert!(most.values().all(|most| *most > 5), "{dialect:?}: tables with {most:?} entries at most");
    }
}
