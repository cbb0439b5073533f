//! Holdings put aside: of streams in doubt, until they are proved.
//!
//! They count as the blocks that they would take in the index, so that its bound is one for both. Beyond it the oldest goes
//! first: its stream replays from the start then. What is being put back counts with what is still to come of it, and is
//! not dropped: it is true.

use super::restore::Restoring;
use super::{Holdings, Index};
use affinity::Slot;
use std::collections::BTreeMap;

/// Holdings that are not in the index.
#[derive(Default)]
pub(super) struct Asides {
    /// And how many were put aside before.
    by_slot: BTreeMap<Slot, (u64, Holdings)>,
    /// Of all of these, and what is reserved.
    blocks: usize,
    count: u64,
    restoring: BTreeMap<Slot, Restoring>,
    reserved: usize,
}

impl Asides {
    pub(super) fn blocks(&self) -> usize {
        self.blocks
    }

    /// Blocks still to come of what is being put back.
    pub(super) fn reserved(&self) -> usize {
        self.reserved
    }

    pub(super) fn bytes(&self) -> usize {
        self.by_slot.values().map(|(_, holdings)| holdings.bytes()).sum::<usize>()
            + self.restoring.values().map(Restoring::bytes).sum::<usize>()
    }

    fn put(&mut self, slot: Slot, holdings: Holdings) {
        self.take(slot);
        self.blocks += holdings.needs();
        self.count += 1;
        self.by_slot.insert(slot, (self.count, holdings));
    }

    pub(super) fn take(&mut self, slot: Slot) -> Option<Holdings> {
        let (_, holdings) = self.by_slot.remove(&slot)?;
        self.blocks -= holdings.needs();
        Some(holdings)
    }

    /// Keeps room for what is still to come of this.
    pub(super) fn reserve(&mut self, slot: Slot, restoring: Restoring) {
        self.blocks += restoring.needs();
        self.reserved += restoring.needs();
        self.restoring.insert(slot, restoring);
    }

    pub(super) fn unreserve(&mut self, slot: Slot) -> Option<Restoring> {
        let restoring = self.restoring.remove(&slot)?;
        self.blocks -= restoring.needs();
        self.reserved -= restoring.needs();
        Some(restoring)
    }

    pub(super) fn is_restoring(&self, slot: Slot) -> bool {
        self.restoring.contains_key(&slot)
    }

    #[cfg(test)]
    pub(super) fn restoring(&self) -> impl Iterator<Item = &Restoring> {
        self.restoring.values()
    }

    fn oldest(&self) -> Option<Slot> {
        self.by_slot.iter().min_by_key(|(_, (count, _))| *count).map(|(slot, _)| *slot)
    }
}

impl Index {
    /// Puts holdings aside as those of an endpoint, in place of what was put aside of it before: its own, which it is
    /// about to forget, or such as come from elsewhere. False if there is no room for them.
    pub fn put_aside(&mut self, slot: Slot, holdings: Holdings) -> bool {
        self.forget_aside(slot);
        self.make_way(&holdings, usize::MAX);
        let fits = self.lacks(&holdings) == 0;
        if fits {
            self.asides.put(slot, holdings);
        } else {
            self.stats.evicted += holdings.len() as u64;
        }
        fits
    }

    /// Forgets about so many blocks of those that [`Index::put_aside`] would have to forget first; false when there is
    /// room, or can be none.
    pub fn make_way(&mut self, holdings: &Holdings, blocks: usize) -> bool {
        if self.asides.reserved() + holdings.needs() > self.options.max_blocks {
            return false;
        }
        // Others that are in doubt go first, then what is coldest, as it would to put these back.
        while self.lacks(holdings) > 0 && self.drop_aside() {}
        let least = self.stats.blocks.saturating_sub(blocks);
        while self.lacks(holdings) > 0 && self.stats.blocks > least {
            let Some(coldest) = self.tree.coldest(super::runs::NO_RUN) else { return false };
            self.evict(coldest);
        }
        self.lacks(holdings) > 0
    }

    /// How many blocks too many there would be.
    fn lacks(&self, holdings: &Holdings) -> usize {
        (self.stats.blocks + self.asides.blocks() + holdings.needs()).saturating_sub(self.options.max_blocks)
    }

    /// Forgets what was put aside of an endpoint, if anything was.
    pub fn forget_aside(&mut self, slot: Slot) -> bool {
        self.asides.take(slot).is_some()
    }

    /// Drops the oldest.
    pub(super) fn drop_aside(&mut self) -> bool {
        let oldest = self.asides.oldest().and_then(|slot| self.asides.take(slot));
        self.stats.evicted += oldest.as_ref().map_or(0, Holdings::len) as u64;
        oldest.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Event, Stored};
    use crate::index::RestoreError;
    use crate::index::tests::{sequence, small_index, vocabulary};

    /// An index for 10 blocks, and three endpoints that hold some of their own.
    fn index(held: [&'static [u64]; 3]) -> Index {
        let mut index = small_index(10);
        for (slot, hashes) in (0..).map(Slot).zip(held) {
            index.add(slot, "m", &vocabulary(), false);
            store(&mut index, slot, None, hashes);
        }
        index
    }

    fn store(index: &mut Index, slot: Slot, parent: Option<u64>, hashes: &'static [u64]) {
        // Other contents for each.
        let salt = Some(["a", "b", "c"][usize::from(slot.0)]);
        index.apply(slot, &Event::Stored(Stored { salt, ..sequence(hashes, parent) }));
        index.check();
    }

    fn suspend(index: &mut Index, slot: Slot) {
        let holdings = index.snapshot(slot).unwrap();
        index.clear(slot);
        index.put_aside(slot, holdings);
    }

    fn put_back(index: &mut Index, slot: Slot) -> Result<(), RestoreError> {
        index.restore_aside(slot)?;
        while index.restore_more(slot, 1)? {}
        Ok(())
    }

    #[test]
    fn what_is_put_aside_counts_and_the_oldest_goes_first() {
        let mut index = index([&[0, 1, 2], &[10, 11, 12], &[20, 21, 22]]);
        suspend(&mut index, Slot(1));
        suspend(&mut index, Slot(0));
        assert_eq!((index.stats().blocks, index.stats().aside), (3, 6));
        store(&mut index, Slot(2), Some(22), &[23]);
        assert_eq!((index.stats().blocks, index.stats().aside), (4, 6), "there is room for one");
        store(&mut index, Slot(2), Some(23), &[24]);
        assert_eq!((index.stats().blocks, index.stats().aside, index.stats().evicted), (5, 3, 3));
        assert_eq!(put_back(&mut index, Slot(1)), Err(RestoreError::Dropped));
        assert_eq!(put_back(&mut index, Slot(0)), Ok(()));
        index.check();
        assert_eq!((index.stats().blocks, index.stats().aside), (8, 0));
        assert_eq!(put_back(&mut index, Slot(0)), Err(RestoreError::Dropped), "it was put back");
    }

    #[test]
    fn what_is_put_back_takes_the_place_of_what_is_in_doubt_before_that_of_what_is_true() {
        let mut index = index([&[0, 1, 2, 3], &[10, 11, 12], &[]]);
        let holdings = index.snapshot(Slot(0)).expect("it is there");
        suspend(&mut index, Slot(1));
        suspend(&mut index, Slot(0));
        assert_eq!(index.stats().aside, 7);
        assert!(index.put_aside(Slot(2), holdings), "the others make room");
        assert_eq!((index.stats().blocks, index.stats().aside), (0, 8));
        assert!(!index.forget_aside(Slot(1)), "it was the oldest");
        index.retire(Slot(0));
        assert_eq!(index.stats().aside, 4, "who leaves has nothing put aside");
    }

    #[test]
    fn what_company_offers_to_a_full_index_takes_the_place_of_the_coldest() {
        let mut index = index([&[0, 1, 2, 3], &[10, 11, 12], &[20, 21, 22]]);
        let holdings = index.snapshot(Slot(0)).expect("it is there");
        index.clear(Slot(0));
        store(&mut index, Slot(2), Some(22), &[30, 31, 32]);
        assert_eq!(index.stats().blocks, 9);
        assert!(index.put_aside(Slot(0), holdings.clone()));
        index.check();
        assert_eq!((index.stats().blocks, index.stats().aside), (6, 4), "the second endpoint's were the coldest");
        assert_eq!(put_back(&mut index, Slot(0)), Ok(()));
        let mut small = small_index(3);
        assert!(!small.put_aside(Slot(0), holdings), "there can be no room for it");
        assert_eq!(small.stats().aside, 0);
    }

    #[test]
    fn way_is_made_a_little_at_a_time() {
        let mut index = index([&[0, 1, 2], &[10, 11, 12], &[20, 21, 22]]);
        let mut other = small_index(10);
        store(&mut other, Slot(0), None, &[30, 31, 32, 33, 34, 35]);
        let holdings = other.snapshot(Slot(0)).expect("it is there");
        let left: Vec<usize> = std::iter::from_fn(|| {
            let more = index.make_way(&holdings, 1);
            index.check();
            more.then(|| index.stats().blocks)
        })
        .collect();
        assert_eq!((left, index.stats().blocks), (vec![6], 3), "a run at a time, and no more than needed");
        assert!(index.put_aside(Slot(0), holdings));
        assert_eq!((index.stats().blocks, index.stats().aside), (3, 6));
    }
}
