//! An endpoint's blocks by the engine's hash.
//!
//! An entry takes 8 bytes: half of the mixed hash, and the block's place. The whole hash lies with the block, and is
//! looked at there: see [`super::holder`].

use super::ordered::{Order, Ordered};
use super::runs::{BlockId, NO_BLOCK};

pub(super) struct Residents(Ordered<ByTag>);

struct ByTag;

impl Order for ByTag {
    type Row = (u32, BlockId);
    const GAP: Self::Row = (0, NO_BLOCK);

    fn is_gap(row: &Self::Row) -> bool {
        row.1 == NO_BLOCK
    }

    fn key(&self, row: &Self::Row) -> u64 {
        key(row.0)
    }
}

fn key(tag: u32) -> u64 {
    u64::from(tag) << 32
}

/// Half of a hash. Engines' hashes may be small numbers, or differ in their high bits only.
fn tag(hash: u64) -> u32 {
    let h = (hash ^ hash >> 32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    ((h ^ h >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 32) as u32
}

impl Default for Residents {
    fn default() -> Self {
        Self(Ordered::new(ByTag))
    }
}

impl Residents {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The place of a block; `hash_at` tells the whole hash of a place.
    pub(super) fn get(&self, hash: u64, hash_at: impl Fn(BlockId) -> Option<u64>) -> Option<BlockId> {
        self.0.find(key(tag(hash)), |(_, block)| hash_at(*block) == Some(hash)).map(|(_, block)| *block)
    }

    /// Reads ahead of what is asked about these hashes.
    pub(super) fn warm(&self, hashes: &[u64]) {
        self.0.warm(hashes.iter().map(|hash| key(tag(*hash))));
    }

    /// The hash must not be there.
    pub(super) fn insert(&mut self, hash: u64, block: BlockId) {
        self.0.insert((tag(hash), block));
    }

    pub(super) fn remove(&mut self, hash: u64, block: BlockId) {
        self.0.remove(key(tag(hash)), |(_, b)| *b == block);
    }

    /// All places, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = BlockId> + '_ {
        self.0.iter().map(|(_, block)| *block)
    }

    /// The runs that its blocks lie in, each once, ascending: the tree is gone through in order rather than at random.
    pub(super) fn runs(&self) -> impl Iterator<Item = u32> + use<> {
        let mut there: Vec<u64> = Vec::new();
        for block in self.iter() {
            let (word, bit) = (block.run() as usize / 64, block.run() % 64);
            if there.len() <= word {
                there.resize(word + 1, 0);
            }
            if let Some(word) = there.get_mut(word) {
                *word |= 1 << bit;
            }
        }
        let runs = |(first, word): (u32, u64)| (first..first + 64).filter(move |run| word >> (run % 64) & 1 == 1);
        (0..).step_by(64).zip(there).filter(|(_, word)| *word != 0).flat_map(runs)
    }

    pub(super) fn bytes(&self) -> usize {
        self.0.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn its_runs_are_told_once_each_and_in_order() {
        let mut residents = Residents::default();
        assert_eq!(residents.runs().next(), None);
        for (hash, run) in (0u64..).zip([700, 3, 64, 63, 3, 700, 127, 0]) {
            residents.insert(hash, BlockId::new(run, hash as u8));
        }
        assert_eq!(residents.runs().collect::<Vec<_>>(), [0, 3, 63, 64, 127, 700]);
    }

    /// Small numbers, steps of a power of two, steps that a multiplication would undo: rows must not crowd.
    #[test]
    fn tags_of_hashes_in_a_row_are_spread() {
        // The inverse of the first factor.
        let undone = 0xF1DE_83E1_9937_733D_u64;
        for step in [1, 3, 1 << 8, 1 << 32, 1 << 44, undone] {
            let tags = |bits| (0..10_000).map(|i| tag(step.wrapping_mul(i)) >> bits).collect::<HashSet<_>>().len();
            assert!(tags(0) > 9_990 && tags(20) > 3_700, "{step:x}: {} tags, {} of 4096", tags(0), tags(20));
        }
    }
}
