//! Blocks that wait for the block before them.
//!
//! They keep their tokens, as what they spell depends on what comes before. Memory is bounded by tokens: beyond it the
//! oldest are forgotten, and with them what the engine does to them later.

use super::endpoint::Copies;
use fnv::FnvHashMap;
use std::collections::{BTreeSet, VecDeque};

#[derive(Default)]
pub(super) struct Orphans {
    blocks: FnvHashMap<u64, Orphan>,
    /// The block they wait for, and they. A set: thousands may wait for one block, and be removed one by one.
    waiting: BTreeSet<(u64, u64)>,
    /// Oldest first. Those that are no orphans any more are left in it until it is swept.
    order: VecDeque<u64>,
    tokens: usize,
}

pub(super) struct Orphan {
    pub(super) parent: u64,
    pub(super) tokens: Box<[u32]>,
    /// Whether a prompt can have these tokens.
    pub(super) matchable: bool,
    pub(super) copies: Copies,
}

impl Orphans {
    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Orphan)> {
        self.blocks.iter().map(|(hash, orphan)| (*hash, orphan))
    }

    pub(super) fn get_mut(&mut self, hash: u64) -> Option<&mut Orphan> {
        self.blocks.get_mut(&hash)
    }

    /// The hash must not be there. Says how many were forgotten to keep all together within `most` tokens.
    pub(super) fn insert(&mut self, hash: u64, orphan: Orphan, most: usize) -> usize {
        self.tokens += orphan.tokens.len();
        self.waiting.insert((orphan.parent, hash));
        self.order.push_back(hash);
        self.blocks.insert(hash, orphan);
        let mut forgotten = 0;
        while self.tokens > most
            && let Some(oldest) = self.order.pop_front()
        {
            forgotten += usize::from(self.remove(oldest).is_some());
        }
        if self.order.len() > 2 * self.blocks.len() + 64 {
            self.order.retain(|hash| self.blocks.contains_key(hash));
        }
        forgotten
    }

    pub(super) fn remove(&mut self, hash: u64) -> Option<Orphan> {
        let orphan = self.blocks.remove(&hash)?;
        self.tokens -= orphan.tokens.len();
        self.waiting.remove(&(orphan.parent, hash));
        if self.blocks.is_empty() {
            *self = Self::default();
        }
        Some(orphan)
    }

    /// Those that waited for this block.
    pub(super) fn take(&mut self, parent: u64) -> Vec<(u64, Orphan)> {
        let waiting: Vec<u64> = self.waiting.range((parent, 0)..=(parent, u64::MAX)).map(|(_, hash)| *hash).collect();
        waiting.into_iter().filter_map(|hash| Some((hash, self.remove(hash)?))).collect()
    }

    pub(super) fn bytes(&self) -> usize {
        let tokens = self.blocks.values().map(|o| super::allocated::<u32>(o.tokens.len())).sum::<usize>();
        // A tree's nodes have room for 11, and are two thirds full on average.
        let waiting = super::allocated::<(u64, u64)>(self.waiting.len() * 3 / 2);
        tokens
            + waiting
            + super::table_bytes::<(u64, Orphan)>(self.blocks.capacity())
            + super::allocated::<u64>(self.order.capacity())
    }
}
