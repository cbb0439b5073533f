//! The paged prefix cache of a vLLM v1 engine, without I/O or clock.
//!
//! Blocks are physical: two requests that compute the same tokens at the same time own two blocks
//! with one hash. A hash is announced once per block that carries it and withdrawn once per block
//! that is given to someone else, which is why readers of the events must count.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Index of a physical block in its pool.
pub type BlockId = usize;

/// What separates two requests with equal tokens: the LoRA adapter and the cache salt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Namespace {
    /// Adapter id (from 1) and name.
    pub lora: Option<(u32, String)>,
    /// `cache_salt` of the request.
    pub salt: Option<String>,
}

impl Namespace {
    /// The keys that enter the hash of block `index` beside its tokens: the adapter in every block,
    /// the salt in the first one only (the chain carries it on).
    pub fn extra_keys(&self, index: usize) -> Option<Vec<String>> {
        let salt = self.salt.as_ref().filter(|_| index == 0);
        let keys: Vec<String> = self.lora.iter().map(|(_, name)| name.clone()).chain(salt.cloned()).collect();
        (!keys.is_empty()).then_some(keys)
    }
}

/// Extends `hashes` to every full block of `tokens`. `seed` stands in for the parent of the first
/// block: engines with different seeds share no hash.
pub fn extend_hashes(hashes: &mut Vec<u64>, seed: u64, namespace: &Namespace, block_size: usize, tokens: &[u32]) {
    for (index, block) in tokens.chunks_exact(block_size).enumerate().skip(hashes.len()) {
        let mut hasher = DefaultHasher::new();
        hashes.last().copied().unwrap_or(seed).hash(&mut hasher);
        block.hash(&mut hasher);
        namespace.extra_keys(index).hash(&mut hasher);
        hashes.push(hasher.finish());
    }
}

/// A change of the cache, as it is announced to the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheEvent {
    /// Consecutive full blocks of one request entered the cache.
    Stored {
        /// Hashes of the blocks, in order.
        hashes: Vec<u64>,
        /// Hash of the block before the first; none at the start of a prompt.
        parent: Option<u64>,
        /// Tokens of all the blocks.
        tokens: Vec<u32>,
        /// Where the blocks belong.
        namespace: Namespace,
        /// `session_id` of the request that stored them.
        session: Option<String>,
    },
    /// One block with this hash was given to another request.
    Removed(u64),
    /// The whole cache was dropped.
    Cleared,
}

#[derive(Clone, Debug, Default)]
struct Block {
    references: u32,
    hash: Option<u64>,
    /// Place in the free list; none while referenced.
    place: Option<i64>,
}

/// The pool of physical blocks with its free list in least-recently-used order.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    free: BTreeMap<i64, BlockId>,
    by_hash: HashMap<u64, Vec<BlockId>>,
    unhashed_first: bool,
}

impl BlockPool {
    /// A pool of `total` blocks, one of which is vLLM's null block and never handed out.
    /// `unhashed_first`: freed blocks without a hash are reused before all others (vLLM since
    /// June 2026) instead of last.
    pub fn new(total: usize, unhashed_first: bool) -> Self {
        let usable = total.saturating_sub(1);
        let blocks = (0..usable).map(|place| Block { place: Some(place as i64), ..Block::default() }).collect();
        let free = (0..usable).map(|id| (id as i64, id)).collect();
        Self { blocks, free, by_hash: HashMap::new(), unhashed_first }
    }

    /// Blocks that can be handed out in all.
    pub fn usable(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that no request refers to, cached ones among them.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Blocks that carry a hash, whether referenced or not.
    pub fn cached(&self) -> usize {
        self.by_hash.values().map(Vec::len).sum()
    }

    /// How many physical blocks carry each hash.
    pub fn residency(&self) -> HashMap<u64, usize> {
        self.by_hash.iter().map(|(&hash, blocks)| (hash, blocks.len())).collect()
    }

    /// One block for each of the leading `hashes` that is cached, up to the first that is not.
    pub fn find(&self, hashes: &[u64]) -> Vec<BlockId> {
        hashes.iter().map_while(|hash| self.by_hash.get(hash)?.first().copied()).collect()
    }

    /// Whether `fresh` new blocks remain once the `hits` are taken out of the free list.
    pub fn can_allocate(&self, fresh: usize, hits: &[BlockId]) -> bool {
        let revived = hits.iter().filter(|&&id| self.blocks[id].references == 0).count();
        fresh + revived <= self.free.len()
    }

    /// Refers to cached blocks, so that they can't be evicted.
    pub fn touch(&mut self, hits: &[BlockId]) {
        for &id in hits {
            let block = &mut self.blocks[id];
            block.references += 1;
            if let Some(place) = block.place.take() {
                self.free.remove(&place);
            }
        }
    }

    /// Takes `count` blocks off the head of the free list, or none if there are fewer. What they
    /// held is evicted, with one event per block.
    pub fn allocate(&mut self, count: usize, events: &mut Vec<CacheEvent>) -> Option<Vec<BlockId>> {
        if count > self.free.len() {
            return None;
        }
        let mut taken = Vec::with_capacity(count);
        for _ in 0..count {
            let (_, id) = self.free.pop_first()?;
            let block = &mut self.blocks[id];
            block.place = None;
            block.references = 1;
            if let Some(hash) = block.hash.take() {
                self.forget(hash, id);
                events.push(CacheEvent::Removed(hash));
            }
            taken.push(id);
        }
        Some(taken)
    }

    /// Makes a full block findable under `hash`.
    pub fn store(&mut self, id: BlockId, hash: u64) {
        self.blocks[id].hash = Some(hash);
        self.by_hash.entry(hash).or_default().push(id);
    }

    /// Drops one reference to each block of a request, its tail first, so that the head of the
    /// prompt, which others may share, is evicted last.
    pub fn release(&mut self, blocks: &[BlockId]) {
        let mut front = Vec::new();
        for &id in blocks.iter().rev() {
            let block = &mut self.blocks[id];
            block.references -= 1;
            if block.references > 0 {
                continue;
            }
            if block.hash.is_none() && self.unhashed_first {
                front.push(id);
            } else {
                let place = self.free.last_key_value().map_or(0, |(last, _)| last + 1);
                self.place(id, place);
            }
        }
        for id in front.into_iter().rev() {
            let place = self.free.first_key_value().map_or(0, |(first, _)| first - 1);
            self.place(id, place);
        }
    }

    /// Forgets every cached block; refused (false) while any block is referenced.
    pub fn reset(&mut self, events: &mut Vec<CacheEvent>) -> bool {
        if self.free.len() != self.blocks.len() {
            return false;
        }
        for block in &mut self.blocks {
            block.hash = None;
        }
        self.by_hash.clear();
        events.push(CacheEvent::Cleared);
        true
    }

    fn place(&mut self, id: BlockId, place: i64) {
        self.blocks[id].place = Some(place);
        self.free.insert(place, id);
    }

    fn forget(&mut self, hash: u64, id: BlockId) {
        if let Some(holders) = self.by_hash.get_mut(&hash) {
            holders.retain(|&other| other != id);
            if holders.is_empty() {
                self.by_hash.remove(&hash);
            }
        }
    }
}
