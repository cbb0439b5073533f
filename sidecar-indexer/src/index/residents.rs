//! An endpoint's blocks by the engine's hash.
//!
//! An entry takes 8 bytes: half of the mixed hash, and the block's place. The whole hash lies with the block, and is
//! looked at there: see [`super::holder`].

use super::runs::BlockId;
use hashbrown::HashTable;

#[derive(Default)]
pub(super) struct Residents(HashTable<(u32, BlockId)>);

/// Half of a hash. Engines' hashes may be small numbers, or differ in their high bits only.
fn tag(hash: u64) -> u32 {
    (hash.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32
}

/// What the table wants: good bits high and low. From the tag alone, so that growing does not ask for hashes.
fn spread(tag: u32) -> u64 {
    u64::from(tag).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

impl Residents {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The place of a block; `hash_at` tells the whole hash of a place.
    pub(super) fn get(&self, hash: u64, hash_at: impl Fn(BlockId) -> Option<u64>) -> Option<BlockId> {
        let tag = tag(hash);
        self.0.find(spread(tag), |(t, block)| *t == tag && hash_at(*block) == Some(hash)).map(|(_, block)| *block)
    }

    /// Brings the entries of these hashes into the cache, all at once: one by one they are waited for.
    pub(super) fn warm(&self, hashes: &[u64]) {
        let there = |hash: &&u64| {
            let tag = tag(**hash);
            self.0.find(spread(tag), |(t, _)| *t == tag).is_some()
        };
        std::hint::black_box(hashes.iter().filter(there).count());
    }

    /// The hash must not be there.
    pub(super) fn insert(&mut self, hash: u64, block: BlockId) {
        let tag = tag(hash);
        self.0.insert_unique(spread(tag), (tag, block), |(tag, _)| spread(*tag));
    }

    pub(super) fn remove(&mut self, hash: u64, block: BlockId) {
        let tag = tag(hash);
        if let Ok(entry) = self.0.find_entry(spread(tag), |(t, b)| *t == tag && *b == block) {
            entry.remove();
        }
        if self.0.len() * 4 < self.0.capacity() {
            self.0.shrink_to(self.0.len() * 2, |(tag, _)| spread(*tag));
        }
    }

    /// All places, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = BlockId> + '_ {
        self.0.iter().map(|(_, block)| *block)
    }

    pub(super) fn bytes(&self) -> usize {
        self.0.allocation_size()
    }
}
