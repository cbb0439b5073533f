//! Forgets much that an endpoint holds, a slice at a time: whoever needs the index waits meanwhile.
//!
//! **Invariant:** the index is in order after every slice, and the endpoint holds less than before. It goes from the ends:
//! were the first block of a prompt taken first, all that comes after it would have to leave the table at once.

use super::holder::Keeper;
use super::{Index, Slot};

/// Runs of which an endpoint is still to forget its blocks: those to be looked at last come first.
pub struct Shedding(Vec<(Keeper, u32)>);

impl Index {
    /// How many blocks an endpoint holds, counted once more where they are kept as token ids, too.
    #[must_use]
    pub fn held(&self, slot: Slot) -> usize {
        Keeper::both(slot).into_iter().filter_map(|of| self.kept(of)).map(|endpoint| endpoint.len()).sum()
    }

    /// What an endpoint holds in the tree now, to be [`Index::shed`].
    #[must_use]
    pub fn shedding(&self, slot: Slot) -> Shedding {
        let endpoints = Keeper::both(slot).into_iter().filter_map(|of| Some((of, self.kept(of)?)));
        Shedding(endpoints.flat_map(|(of, endpoint)| endpoint.residents.runs().map(move |run| (of, run))).collect())
    }

    /// Forgets about so many blocks. False when all are forgotten that were there; for what is not in the tree and what
    /// came since there is [`Index::clear`].
    pub fn shed(&mut self, rest: &mut Shedding, blocks: usize) -> bool {
        let mut left = blocks.max(1);
        while let Some((of, run)) = rest.0.last().copied() {
            if left == 0 {
                return true;
            }
            let leaf = self.tree.leaf_below(run, of);
            let dropped = self.drop_run(leaf, of, false);
            self.stats.blocks -= dropped;
            left = left.saturating_sub(dropped.max(1));
            if leaf == run {
                rest.0.pop();
            }
        }
        false
    }
}
