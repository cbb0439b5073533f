//! Which blocks of one run an endpoint holds, and up to where it holds every block from the root.

use super::runs::{BlockId, NO_RUN, RUN};
use affinity::{Slot, Tier};
use std::ops::Range;

/// An endpoint's holdings spelt as text or as token ids: prompts come as either, and meet only their own kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Keeper(u16);

impl Keeper {
    pub(super) fn new(slot: Slot, ids: bool) -> Self {
        Self(slot.0 << 1 | u16::from(ids))
    }

    /// Both of an endpoint's.
    pub(super) fn both(slot: Slot) -> [Self; 2] {
        [false, true].map(|ids| Self::new(slot, ids))
    }

    pub(super) fn slot(self) -> Slot {
        Slot(self.0 >> 1)
    }

    pub(super) fn ids(self) -> bool {
        self.0 & 1 == 1
    }

    pub(super) fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// From fastest to slowest.
pub(super) const TIERS: [Tier; 3] = [Tier::Gpu, Tier::Cpu, Tier::Disk];

/// An endpoint's blocks of one run.
///
/// **Invariants:** `hashes` has one hash per resident block, in order; a holder without a resident block exists only
/// while a run attached to this one has a holder of the same keeper, so that changes find their way down.
pub(super) struct Holder {
    pub(super) keeper: Keeper,
    /// The slowest tier from the root to the block to which this run is attached; `None` unless all of that is resident.
    pub(super) above: Option<Tier>,
    /// Blocks resident on each tier, by offset.
    masks: [u64; 3],
    hashes: Vec<u64>,
    /// Runs attached to this one that the keeper has a holder in, by the block that they are attached to: each list's
    /// first. A change of one block goes through its own.
    below: Vec<Below>,
    /// Neighbours in the list of those attached to the same block.
    pub(super) next: u32,
    pub(super) previous: u32,
}

#[derive(Clone, Copy)]
struct Below {
    offset: u8,
    first: u32,
}

impl Holder {
    pub(super) fn new(keeper: Keeper, above: Option<Tier>) -> Self {
        Self { keeper, above, masks: [0; 3], hashes: Vec::new(), below: Vec::new(), next: NO_RUN, previous: NO_RUN }
    }

    /// The first run below a block; none: [`NO_RUN`].
    pub(super) fn first_below(&self, offset: u8) -> u32 {
        let at = self.below.binary_search_by_key(&offset, |b| b.offset).ok();
        at.and_then(|at| self.below.get(at)).map_or(NO_RUN, |b| b.first)
    }

    pub(super) fn set_first_below(&mut self, offset: u8, first: u32) {
        match self.below.binary_search_by_key(&offset, |b| b.offset) {
            Ok(at) if first == NO_RUN => {
                self.below.remove(at);
            }
            Ok(at) => {
                if let Some(below) = self.below.get_mut(at) {
                    below.first = first;
                }
            }
            Err(_) if first == NO_RUN => {}
            Err(at) => {
                self.below.reserve_exact(1);
                self.below.insert(at, Below { offset, first });
            }
        }
    }

    /// Blocks with runs below, in order.
    pub(super) fn forks(&self) -> impl Iterator<Item = u8> + '_ {
        self.below.iter().map(|b| b.offset)
    }

    /// Blocks resident on any tier.
    pub(super) fn resident(&self) -> u64 {
        self.masks.iter().fold(0, |all, mask| all | mask)
    }

    pub(super) fn masks(&self) -> [u64; 3] {
        self.masks
    }

    pub(super) fn hashes(&self) -> &[u64] {
        &self.hashes
    }

    /// All resident blocks with their hashes; `run` is where they are.
    pub(super) fn blocks(&self, run: u32) -> impl Iterator<Item = (BlockId, u64)> + '_ {
        let offsets = (0..RUN as u8).filter(|offset| self.holds(*offset));
        offsets.map(move |offset| BlockId::new(run, offset)).zip(self.hashes.iter().copied())
    }

    /// Tiers on which a block is resident.
    pub(super) fn on(&self, offset: u8) -> [bool; 3] {
        self.masks.map(|mask| mask >> offset & 1 == 1)
    }

    pub(super) fn holds(&self, offset: u8) -> bool {
        self.resident() >> offset & 1 == 1
    }

    /// The engine's hash of a resident block.
    pub(super) fn hash(&self, offset: u8) -> Option<u64> {
        self.holds(offset).then(|| self.hashes.get(self.rank(offset)).copied())?
    }

    /// How many resident blocks come before this one.
    fn rank(&self, offset: u8) -> usize {
        (self.resident() & ((1 << offset) - 1)).count_ones() as usize
    }

    /// A block that was not resident is now, on one tier. About `more` are to follow.
    pub(super) fn add(&mut self, offset: u8, hash: u64, tier: Tier, more: usize) {
        let rank = self.rank(offset);
        if self.hashes.len() == self.hashes.capacity() {
            self.hashes.reserve_exact((more + 1).clamp(4, RUN).min(RUN.saturating_sub(self.hashes.len()).max(1)));
        }
        self.hashes.insert(rank.min(self.hashes.len()), hash);
        self.set(offset, tier, true);
    }

    /// Says whether a resident block is on this tier.
    pub(super) fn set(&mut self, offset: u8, tier: Tier, on: bool) {
        let [gpu, cpu, disk] = &mut self.masks;
        let mask = match tier {
            Tier::Gpu => gpu,
            Tier::Cpu => cpu,
            Tier::Disk => disk,
        };
        *mask = *mask & !(1 << offset) | u64::from(on) << offset;
    }

    /// A block is resident no more.
    pub(super) fn drop_block(&mut self, offset: u8) {
        let rank = self.rank(offset);
        if self.holds(offset) && rank < self.hashes.len() {
            self.hashes.remove(rank);
            if self.hashes.len() + 16 < self.hashes.capacity() {
                self.hashes.shrink_to(self.hashes.len() + 8);
            }
        }
        TIERS.into_iter().for_each(|tier| self.set(offset, tier, false));
    }

    /// No block is resident any more.
    pub(super) fn drop_all(&mut self) {
        (self.masks, self.hashes) = ([0; 3], Vec::new());
    }

    /// Up to where everything from the root is resident.
    pub(super) fn rooted(&self) -> Rooted {
        let Some(above) = self.above else { return Rooted::default() };
        let [gpu, cpu, disk] = self.masks;
        let leading = |mask: u64, tier| if above <= tier { mask.trailing_ones() as u8 } else { 0 };
        Rooted([leading(gpu, Tier::Gpu), leading(gpu | cpu, Tier::Cpu), leading(gpu | cpu | disk, Tier::Disk)])
    }

    pub(super) fn bytes(&self) -> usize {
        super::allocated::<u64>(self.hashes.capacity()) + super::allocated::<Below>(self.below.capacity())
    }
}

/// For each tier, how many leading blocks are resident with everything before them on this tier or faster ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rooted([u8; 3]);

impl Rooted {
    /// The slowest tier from the root to this block; `None` while something is missing.
    pub(super) fn at(self, offset: u8) -> Option<Tier> {
        TIERS.into_iter().zip(self.0).find(|(_, end)| offset < *end).map(|(tier, _)| tier)
    }

    /// Offsets of blocks for which the two may differ.
    pub(super) fn changes(self, other: Self) -> Range<u8> {
        let differ = || self.0.into_iter().zip(other.0).filter(|(a, b)| a != b);
        let from = differ().map(|(a, b)| a.min(b)).min().unwrap_or(0);
        from..differ().map(|(a, b)| a.max(b)).max().unwrap_or(0)
    }
}
