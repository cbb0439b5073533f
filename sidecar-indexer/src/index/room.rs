//! Room for new blocks: what is forgotten when the index is full.
//!
//! Forgetting a block is an undercount: later removals of it mean nothing, and what is stored after it waits for it. Of the
//! tree, the coldest leaf goes: the run that was not stored into, or below, for the longest time, on all endpoints.
//! Blocks outside the tree have shares: of the unmatchable, which nothing can be known about, those of the endpoint with
//! the most go together; of the orphans of an endpoint, the oldest. Where nothing else is left, these go wholly. What is put
//! aside goes before all of these.

use super::Index;
use super::holder::Keeper;

impl Index {
    /// Makes room for one more block, without touching `except`; `false` if there is none.
    pub(super) fn make_room(&mut self, except: u32) -> bool {
        let most = self.options.max_blocks;
        if self.stats.unmatchable * 2 > most {
            self.forget_unmatchable();
        }
        while self.stats.blocks + self.asides.blocks() >= most && self.drop_aside() {}
        let most = most.saturating_sub(self.asides.reserved());
        while self.stats.blocks >= most || self.tree.len() >= most {
            match self.tree.coldest(except) {
                Some(coldest) => self.evict(coldest),
                None if self.stats.unmatchable > 0 => self.forget_unmatchable(),
                None if self.stats.orphans > 0 => self.forget_orphans(),
                None => return false,
            }
        }
        true
    }

    /// Most tokens that an endpoint's orphans may have: as many altogether as there may be blocks.
    pub(super) fn orphan_tokens(&self) -> usize {
        // Enough for some conversations, however small the index.
        const LEAST: usize = 1 << 12;
        (self.options.max_blocks / self.endpoints.len().max(1)).max(LEAST)
    }

    /// Forgets a leaf's blocks, on all endpoints.
    pub(super) fn evict(&mut self, run: u32) {
        let keepers: Vec<Keeper> = self.tree.run(run).into_iter().flat_map(|r| &r.holders).map(|h| h.keeper).collect();
        for keeper in keepers {
            let forgotten = self.drop_run(run, keeper, true);
            self.forgot(forgotten, 0, 0);
        }
    }

    /// Takes a run's blocks from one keeper, and says how many. Totals are the caller's to keep.
    pub(super) fn drop_run(&mut self, run: u32, keeper: Keeper, evicted: bool) -> usize {
        let mut dropped = 0;
        if let Some(holder) = self.tree.run(run).and_then(|r| r.holder(keeper))
            && let Some(Some(endpoint)) = self.endpoints.get_mut(keeper.index())
        {
            endpoint.residents.warm(holder.hashes());
            for (block, hash) in holder.blocks(run) {
                endpoint.residents.remove(hash, block);
                endpoint.more.remove(&block);
                dropped += 1;
            }
        }
        self.tree.unhold_run(run, keeper, evicted);
        dropped
    }

    fn forget_unmatchable(&mut self) {
        let endpoints = self.endpoints.iter_mut().flatten();
        let forgotten = endpoints.max_by_key(|e| e.unmatchable.len()).map(|e| std::mem::take(&mut e.unmatchable).len());
        self.forgot(0, forgotten.unwrap_or(0), 0);
    }

    fn forget_orphans(&mut self) {
        let endpoints = self.endpoints.iter_mut().flatten();
        let forgotten = endpoints.max_by_key(|e| e.orphans.len()).map(|e| std::mem::take(&mut e.orphans).len());
        self.forgot(0, 0, forgotten.unwrap_or(0));
    }

    /// Keeps the totals.
    pub(super) fn forgot(&mut self, resident: usize, unmatchable: usize, orphans: usize) {
        self.stats.blocks -= resident + unmatchable + orphans;
        self.stats.unmatchable -= unmatchable;
        self.stats.orphans -= orphans;
        self.stats.evicted += (resident + unmatchable + orphans) as u64;
    }
}
