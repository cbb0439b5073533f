//! What one endpoint holds, by the engine's hashes.

use super::holder::{Keeper, TIERS};
use super::orphans::Orphans;
use super::residents::Residents;
use super::runs::BlockId;
use super::tails::Tails;
use super::tree::Tree;
use crate::events::{Attention, Stored};
use crate::tokens::Vocabulary;
use affinity::Tier;
use fnv::FnvHashMap;
use std::sync::Arc;

/// Copies of a block on each tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Copies(pub(super) [u16; 3]);

impl Copies {
    pub(super) fn one(tier: Tier) -> Self {
        let mut copies = Self::default();
        copies.add(tier);
        copies
    }

    pub(super) fn on(&mut self, tier: Tier) -> &mut u16 {
        let [gpu, cpu, disk] = &mut self.0;
        match tier {
            Tier::Gpu => gpu,
            Tier::Cpu => cpu,
            Tier::Disk => disk,
        }
    }

    pub(super) fn add(&mut self, tier: Tier) {
        let copies = self.on(tier);
        *copies = copies.saturating_add(1);
    }

    /// Adds a copy; `repeated`: only where there is none.
    pub(super) fn add_unless(&mut self, tier: Tier, repeated: bool) {
        if !repeated || *self.on(tier) == 0 {
            self.add(tier);
        }
    }

    /// A removal of a copy stored before we listened must not go below zero.
    pub(super) fn remove(&mut self, tier: Tier) {
        let copies = self.on(tier);
        *copies = copies.saturating_sub(1);
    }

    pub(super) fn sum(self) -> u32 {
        self.0.into_iter().map(u32::from).sum()
    }

    pub(super) fn is_none(self) -> bool {
        self.0 == [0; 3]
    }
}

/// One endpoint's blocks, as text or as token ids.
///
/// **Invariants:** a hash is in at most one of `residents`, `unmatchable` and `orphans`; `more` has entries for
/// blocks in `residents` only.
pub(super) struct Endpoint {
    pub(super) model: Arc<str>,
    pub(super) vocabulary: Arc<Vocabulary>,
    /// The cache group that is indexed: the first one seen that keeps every block.
    pub(super) group: Option<u32>,
    /// Blocks in the tree.
    pub(super) residents: Residents,
    /// Copies of blocks in the tree beyond one on a tier.
    pub(super) more: FnvHashMap<BlockId, Copies>,
    /// Blocks that no prompt can match, as something in them or before them cannot be spelt, or was generated with
    /// tokens that no prompt will have.
    pub(super) unmatchable: FnvHashMap<u64, Copies>,
    pub(super) orphans: Orphans,
    pub(super) tails: Tails,
}

/// Where a block stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Tree(BlockId),
    Unmatchable,
    Orphan,
}

impl Endpoint {
    pub(super) fn new(model: &str, vocabulary: &Arc<Vocabulary>) -> Self {
        Self {
            model: model.into(),
            vocabulary: vocabulary.clone(),
            group: None,
            residents: Residents::default(),
            more: FnvHashMap::default(),
            unmatchable: FnvHashMap::default(),
            orphans: Orphans::default(),
            tails: Tails::default(),
        }
    }

    /// Whether an event is of the cache group that counts. The first group that keeps every block becomes that one:
    /// an engine with several announces each span once per group, with the same hashes.
    pub(super) fn accepts(&mut self, stored: &Stored<'_>) -> bool {
        match stored.attention {
            Attention::Partial => false,
            // Engines too old to say: the first group is the one with full attention, if there is one.
            Attention::Unsaid if self.group.is_none() && stored.group != 0 => false,
            Attention::Full | Attention::Unsaid => *self.group.get_or_insert(stored.group) == stored.group,
        }
    }

    /// Where a block stands, if it is held.
    pub(super) fn place(&mut self, hash: u64, tree: &Tree, keeper: Keeper) -> Option<Place> {
        if let Some(block) = self.residents.get(hash, |block| tree.hash_at(block, keeper)) {
            return Some(Place::Tree(block));
        }
        if !self.unmatchable.is_empty() && self.unmatchable.contains_key(&hash) {
            return Some(Place::Unmatchable);
        }
        (!self.orphans.is_empty() && self.orphans.get_mut(hash).is_some()).then_some(Place::Orphan)
    }

    /// Copies of a block in the tree.
    pub(super) fn copies(&self, block: BlockId, on: [bool; 3]) -> Copies {
        let more = self.more.get(&block).copied().unwrap_or_default();
        let mut copies = more;
        TIERS.into_iter().zip(on).filter(|(_, on)| *on).for_each(|(tier, _)| copies.add(tier));
        copies
    }

    pub(super) fn len(&self) -> usize {
        self.residents.len() + self.unmatchable.len() + self.orphans.len()
    }

    /// Memory that it takes.
    pub(super) fn bytes(&self) -> usize {
        self.residents.bytes()
            + super::table_bytes::<(BlockId, Copies)>(self.more.capacity())
            + super::table_bytes::<(u64, Copies)>(self.unmatchable.capacity())
            + self.orphans.bytes()
            + self.tails.bytes()
    }
}
