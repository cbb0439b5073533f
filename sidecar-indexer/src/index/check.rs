//! The index's invariants, checked from scratch after every step of tests.

use super::Index;
use super::holder::{Holder, Keeper, Rooted};
use super::restore::Restoring;
use super::runs::{BlockId, NO_RUN, RUN};
use super::tree::Tree;
use affinity::Tier;
use affinity::page::page_of;
use std::collections::{BTreeMap, BTreeSet, HashSet};

impl Index {
    /// Panics if an invariant does not hold.
    pub(super) fn check(&self) {
        self.tree.check(self.asides.restoring().flat_map(Restoring::kept));
        let (mut blocks, mut unmatchable, mut orphans, mut held) = (0, 0, 0, BTreeMap::new());
        for (i, endpoint) in self.endpoints.iter().enumerate() {
            let Some(endpoint) = endpoint else { continue };
            (blocks, unmatchable) = (blocks + endpoint.len(), unmatchable + endpoint.unmatchable.len());
            orphans += endpoint.orphans.len();
            let keeper = self.tree.keepers().find(|k| k.index() == i);
            let Some(keeper) = keeper else {
                assert_eq!(endpoint.residents.len(), 0);
                continue;
            };
            let mut hashes = HashSet::new();
            for block in endpoint.residents.iter() {
                let hash = self.tree.hash_at(block, keeper).expect("a resident is held");
                assert_eq!(endpoint.residents.get(hash, |b| self.tree.hash_at(b, keeper)), Some(block));
                assert!(hashes.insert(hash), "one hash, two places");
                assert!(!endpoint.unmatchable.contains_key(&hash));
            }
            assert!(endpoint.orphans.iter().all(|(hash, _)| !hashes.contains(&hash)));
            for (block, more) in &endpoint.more {
                assert!(!more.is_none() && endpoint.residents.iter().any(|b| b == *block));
            }
            held.insert(keeper, endpoint.residents.len());
        }
        assert_eq!(held, self.tree.held(), "what endpoints hold is what the tree says");
        let stats = self.stats();
        assert_eq!((stats.blocks, stats.unmatchable, stats.orphans), (blocks, unmatchable, orphans));
    }
}

impl Tree {
    fn keepers(&self) -> impl Iterator<Item = Keeper> {
        self.runs.iter().flat_map(|r| r.holders.iter().map(|h| h.keeper)).collect::<BTreeSet<_>>().into_iter()
    }

    /// Resident blocks by keeper.
    fn held(&self) -> BTreeMap<Keeper, usize> {
        let mut held: BTreeMap<Keeper, usize> = BTreeMap::new();
        for holder in self.runs.iter().flat_map(|r| &r.holders) {
            *held.entry(holder.keeper).or_default() += holder.hashes().len();
        }
        held
    }

    /// `kept`: blocks to which something will be attached.
    fn check(&self, kept: impl Iterator<Item = BlockId>) {
        let free: HashSet<u32> = self.free.iter().copied().collect();
        assert_eq!(free.len(), self.free.len());
        let used = || (0u32..).zip(&self.runs).filter(|(n, _)| !free.contains(n));
        let mut forks: BTreeMap<BlockId, u32> = BTreeMap::new();
        for (_, run) in used().filter(|(_, r)| !r.is_root()) {
            *forks.entry(run.parent).or_default() += 1;
        }
        kept.for_each(|block| *forks.entry(block).or_default() += 1);
        let (mut blocks, mut rows, mut leaves) = (0, BTreeMap::new(), BTreeSet::new());
        for (n, run) in used() {
            let own = |offset: u8| forks.get(&BlockId::new(n, offset)).copied().unwrap_or(0);
            assert_eq!(run.forks().filter(|(o, c)| own(*o) == *c && *c > 0).count(), run.forks().count());
            assert_eq!((0..RUN as u8).filter(|o| own(*o) > 0).count(), run.forks().count());
            if run.is_root() {
                assert!(run.len() == 0 && run.holders.is_empty() && !run.is_leaf(), "a root keeps something");
                continue;
            }
            let above = self.run(run.parent.run()).unwrap();
            assert!(!free.contains(&run.parent.run()) && (above.is_root() || above.len() > run.parent.offset().into()));
            assert!(run.len() > 0 && run.len() <= RUN);
            let held = run.holders.iter().fold(0, |all, h| all | h.resident());
            let last = run.len() - 1;
            assert!(held >> last == 1 || (held >> last == 0 && own(last as u8) > 0), "the last block is needed");
            blocks += run.len();
            if run.is_leaf() {
                leaves.insert(n);
            }
            for holder in &run.holders {
                self.check_holder(n, holder);
            }
            for offset in 0..run.len() as u8 {
                let (at_last, at_others) = run.tokens_at(offset.into(), self.stride);
                for (keeper, tier) in run.holders.iter().filter_map(|h| Some((h.keeper, h.rooted().at(offset)?))) {
                    let mut prints = run.prints(offset.into(), self.stride).iter().rev();
                    let last = prints.next().map(|print| (print, at_last));
                    for (print, tokens) in last.into_iter().chain(prints.map(|print| (print, at_others))) {
                        let (least, slots) = rows.entry(*print).or_insert((tokens, BTreeMap::new()));
                        *least = tokens.min(*least);
                        let fastest = slots.entry(keeper.slot()).or_insert(tier);
                        *fastest = tier.min(*fastest);
                    }
                }
            }
        }
        assert_eq!(blocks, self.len());
        let entries = (0..1u32 << self.table.bits()).flat_map(|page| {
            let entries = self.table.entries(page);
            assert!(entries.iter().all(|e| page_of(e.fingerprint, self.table.bits()) == page));
            entries
        });
        let told: BTreeMap<_, _> =
            entries.map(|e| (e.fingerprint, (e.tokens, e.holders.into_iter().collect::<BTreeMap<_, _>>()))).collect();
        assert_eq!(told, rows, "the table is what the tree says");
        let (mut listed, mut next, mut before) = (BTreeSet::new(), self.coldest, NO_RUN);
        while let Some(run) = self.run(next) {
            assert!(listed.insert(next) && run.colder == before, "a list of leaves");
            (before, next) = (next, run.hotter);
        }
        assert_eq!((listed, before), (leaves, self.hottest));
        assert_eq!(self.firsts.len(), self.runs.len() - free.len());
    }

    fn check_holder(&self, n: u32, holder: &Holder) {
        let run = self.run(n).unwrap();
        assert_eq!(holder.hashes().len(), holder.resident().count_ones() as usize);
        assert!(holder.resident() != 0 || holder.forks().next().is_some(), "a holder of something");
        let above = self.run(run.parent.run()).unwrap();
        let expected = if above.is_root() {
            Some(Tier::Gpu)
        } else {
            above.holder(holder.keeper).expect("a holder above").rooted().at(run.parent.offset())
        };
        assert_eq!(holder.above, expected);
        if expected.is_none() {
            assert_eq!(holder.rooted(), Rooted::default());
        }
        let mut below = BTreeSet::new();
        assert!(holder.forks().is_sorted_by(|a, b| a < b));
        for offset in holder.forks() {
            let (mut next, mut before) = (holder.first_below(offset), NO_RUN);
            assert_ne!(next, NO_RUN, "a list of nothing");
            while let Some(child) = self.run(next) {
                assert!(child.parent == BlockId::new(n, offset) && below.insert(next));
                let link = child.holder(holder.keeper).unwrap();
                assert_eq!(link.previous, before);
                (before, next) = (next, link.next);
            }
        }
        let held = (0u32..).zip(&self.runs).filter(|(_, r)| !r.is_root() && r.parent.run() == n);
        assert_eq!(below, held.filter(|(_, r)| r.holder(holder.keeper).is_some()).map(|(n, _)| n).collect());
    }
}
