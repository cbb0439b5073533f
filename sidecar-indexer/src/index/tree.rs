//! The tree of cached runs, keyed by content and shared by all endpoints, and the table that follows from it.
//!
//! A block is *resident* where an endpoint has it, and *rooted* there if every block before it is resident, too. Only
//! rooted holders go into the table.
//!
//! **Invariants:** `rooted(b) = resident(b) and rooted(parent(b))` for every keeper, with the slower of the two
//! tiers; the table was told of every rooted holder of a block, for each of the block's fingerprints; a run's last
//! block has a resident or something attached to it, or to come, and a run without blocks is freed, so a [`BlockId`] may be kept only
//! by whoever made a keeper hold it; the leaves, runs to which nothing is attached, form a list from coldest to hottest.

use super::holder::{Holder, Keeper, Rooted};
use super::runs::{BlockId, Content, MOST_RUNS, NO_BLOCK, NO_RUN, Run};
use super::shares::Share;
use super::table::Table;
use affinity::page::one_holder;
use affinity::{Chain, Fingerprint, Stride, Tier, Tokens};
use hashbrown::HashTable;

pub(super) struct Tree {
    pub(super) stride: Stride,
    pub(super) runs: Vec<Run>,
    pub(super) free: Vec<u32>,
    /// Runs by their parent and first block. Several where one keeper has several hashes for the same content.
    pub(super) firsts: HashTable<u32>,
    pub(super) coldest: u32,
    pub(super) hottest: u32,
    blocks: usize,
    /// A root that stays though nothing may be attached to it for a while.
    pinned: u32,
    pub(super) table: Table,
    /// A keeper's latest blocks, all of one run, and what of that run was rooted before: told of together. Nothing
    /// between events.
    held: Option<(u32, Keeper, Rooted)>,
    /// Holders that changed and are still to be told of: run, before, after. Empty between calls.
    stale: Vec<(u32, Rooted, Rooted)>,
}

/// What a run is found by.
fn first_key(parent: BlockId, content: &Content) -> u64 {
    let Content { chain, size, digest } = content;
    let mut key = 0x9E37_79B9_7F4A_7C15_u64;
    for word in [
        u64::from(parent.run()) << 6 | u64::from(parent.offset()),
        chain.prefix().0 ^ chain.len(),
        chain.content(),
        u64::from(*size) << 16 | u64::from(*digest),
    ] {
        key = (key.rotate_left(23) ^ word).wrapping_mul(0xC2B2_AE3D_27D4_EB4F);
        key ^= key >> 32;
    }
    key
}

impl Tree {
    pub(super) fn new(stride: Stride, epoch: u32) -> Self {
        Self {
            stride,
            runs: Vec::new(),
            free: Vec::new(),
            firsts: HashTable::new(),
            coldest: NO_RUN,
            hottest: NO_RUN,
            blocks: 0,
            pinned: NO_RUN,
            table: Table::new(epoch),
            held: None,
            stale: Vec::new(),
        }
    }

    /// How many distinct blocks there are.
    pub(super) fn len(&self) -> usize {
        self.blocks
    }

    pub(super) fn run(&self, run: u32) -> Option<&Run> {
        self.runs.get(run as usize)
    }

    fn run_mut(&mut self, run: u32) -> Option<&mut Run> {
        self.runs.get_mut(run as usize)
    }

    /// Keeps a root until another call lets it go.
    pub(super) fn pin(&mut self, root: u32) {
        let before = std::mem::replace(&mut self.pinned, root);
        self.release(before, false);
    }

    /// The root of a namespace, to be given a block, [`Tree::release`]d or pinned.
    pub(super) fn root(&mut self, namespace: Fingerprint) -> Option<BlockId> {
        let content = Content { chain: Chain::new(namespace), size: 0, digest: 0 };
        let key = first_key(NO_BLOCK, &content);
        let is = |run: &u32| self.run(*run).is_some_and(|r| r.is_root() && r.prefix() == namespace);
        if let Some(run) = self.firsts.find(key, is) {
            return Some(BlockId::new(*run, 0));
        }
        let run = self.insert(Run::new(NO_BLOCK, content.chain, Tokens(0), 0)?, key)?;
        Some(BlockId::new(run, 0))
    }

    /// State of the prefix at a block's end.
    pub(super) fn chain(&self, block: BlockId) -> Option<Chain> {
        Some(self.run(block.run())?.chain(usize::from(block.offset()), self.stride))
    }

    /// The engine's hash of a block that the keeper holds.
    pub(super) fn hash_at(&self, block: BlockId, keeper: Keeper) -> Option<u64> {
        self.run(block.run())?.holder(keeper)?.hash(block.offset())
    }

    /// The block of this content after `parent`, if it is there and the keeper does not hold it under another hash.
    fn find(&self, parent: BlockId, keeper: Keeper, content: &Content) -> Option<BlockId> {
        let run = self.run(parent.run())?;
        let next = parent.offset() + 1;
        if !run.is_root() && run.next_is(usize::from(next), self.stride, content) && !run.holds(keeper, next) {
            return Some(BlockId::new(parent.run(), next));
        }
        if !run.is_root() && !run.forks_within(&(parent.offset()..next)) {
            return None;
        }
        let is = |first: &u32| {
            self.run(*first)
                .is_some_and(|r| r.parent == parent && r.next_is(0, self.stride, content) && !r.holds(keeper, 0))
        };
        self.firsts.find(first_key(parent, content), is).map(|run| BlockId::new(*run, 0))
    }

    /// The block of this content after `parent`, there already or new, to be held at once. `prints` are those of the
    /// strides that end within it; `more` blocks are expected after it. `None` if it is too long, or the tree is full.
    pub(super) fn child(
        &mut self,
        parent: BlockId,
        keeper: Keeper,
        content: &Content,
        prints: &[Fingerprint],
        more: usize,
    ) -> Option<BlockId> {
        if let Some(block) = self.find(parent, keeper, content) {
            return Some(block);
        }
        let stride = self.stride;
        let above = self.run_mut(parent.run())?;
        let next = parent.offset() + 1;
        if above.len() == usize::from(next) && above.push(content, prints, more) {
            self.blocks += 1;
            return Some(BlockId::new(parent.run(), next));
        }
        let (start, tokens) =
            (above.chain(usize::from(parent.offset()), stride), above.tokens_end(usize::from(parent.offset())));
        let mut run = Run::new(parent, start, tokens, content.size)?;
        if !run.push(content, prints, more) {
            return None;
        }
        let run = self.insert(run, first_key(parent, content))?;
        self.blocks += 1;
        self.keep(parent);
        self.link_hottest(run);
        Some(BlockId::new(run, 0))
    }

    /// Something is attached to a block, or will be: it stays until that is [`Tree::let_go`] as often.
    pub(super) fn keep(&mut self, block: BlockId) {
        let Some(run) = self.run_mut(block.run()) else { return };
        let was_leaf = run.is_leaf() && !run.is_root();
        run.attach(block.offset());
        if was_leaf {
            self.unlink(block.run());
        }
    }

    /// What a block was kept for is not to come any more, or is there.
    pub(super) fn let_go(&mut self, block: BlockId) {
        self.detach(block, false);
        self.release(block.run(), false);
    }

    /// What was attached to a block is gone. `evicted`: what it was attached to is next.
    fn detach(&mut self, block: BlockId, evicted: bool) {
        let Some(run) = self.run_mut(block.run()) else { return };
        run.detach(block.offset());
        if run.is_leaf() && !run.is_root() {
            // What was evicted was the coldest, so what it was attached to is now. A removal says little.
            if evicted {
                self.link_coldest(block.run());
            } else {
                self.link_hottest(block.run());
            }
        }
    }

    fn insert(&mut self, run: Run, key: u64) -> Option<u32> {
        let number = match self.free.pop() {
            Some(number) => {
                *self.run_mut(number)? = run;
                number
            }
            None => {
                let number = u32::try_from(self.runs.len()).ok().filter(|n| *n < MOST_RUNS)?;
                if self.runs.len() == self.runs.capacity() {
                    self.runs.reserve_exact(self.runs.len() / 8 + 16);
                }
                self.runs.push(run);
                number
            }
        };
        let (runs, stride) = (&self.runs, self.stride);
        self.firsts.insert_unique(key, number, |run| key_of(runs, stride, *run));
        Some(number)
    }

    /// A run below this one, or this one, below which the keeper holds nothing.
    pub(super) fn leaf_below(&self, run: u32, keeper: Keeper) -> u32 {
        let below = |run: &u32| {
            let holder = self.run(*run)?.holder(keeper)?;
            holder.forks().next().map(|offset| holder.first_below(offset))
        };
        std::iter::successors(Some(run), below).last().unwrap_or(run)
    }

    /// The keeper has a block that it did not have; about `more` are to follow. Consequences wait for
    /// [`Tree::tell_held`], or for the next other change.
    pub(super) fn hold(&mut self, block: BlockId, keeper: Keeper, hash: u64, tier: Tier, more: usize) {
        let run = block.run();
        let together = self.held.is_some_and(|(r, k, _)| (r, k) == (run, keeper));
        if !together {
            self.tell_held();
            self.ensure_holder(run, keeper);
        }
        let Some(holder) = self.run_mut(run).and_then(|r| r.holder_mut(keeper)) else { return };
        let before = holder.rooted();
        holder.add(block.offset(), hash, tier, more);
        if !together {
            self.held = Some((run, keeper, before));
        }
    }

    /// Follows the consequences of blocks that were [`Tree::hold`]ed.
    pub(super) fn tell_held(&mut self) {
        let Some((run, keeper, before)) = self.held.take() else { return };
        if let Some(after) = self.run(run).and_then(|r| r.holder(keeper)).map(Holder::rooted) {
            self.follow(run, keeper, before, after);
        }
    }

    /// Says whether a block that the keeper has is on this tier.
    pub(super) fn set_tier(&mut self, block: BlockId, keeper: Keeper, tier: Tier, on: bool) {
        self.change(block.run(), keeper, |holder| holder.set(block.offset(), tier, on));
    }

    /// The keeper has a block no more. The block may be gone then.
    pub(super) fn unhold(&mut self, block: BlockId, keeper: Keeper) {
        self.change(block.run(), keeper, |holder| holder.drop_block(block.offset()));
        self.prune(block.run(), keeper, false);
    }

    /// The keeper has no block of a run any more. The run may be gone then. `evicted`: what it was attached to is next.
    pub(super) fn unhold_run(&mut self, run: u32, keeper: Keeper, evicted: bool) {
        self.change(run, keeper, Holder::drop_all);
        self.prune(run, keeper, evicted);
    }

    /// Makes sure that the keeper has a holder in a run, and in all above it.
    fn ensure_holder(&mut self, run: u32, keeper: Keeper) {
        let mut missing = Vec::new();
        let mut next = run;
        while let Some(r) = self.run(next).filter(|r| !r.is_root() && r.holder(keeper).is_none()) {
            missing.push(next);
            next = r.parent.run();
        }
        while let Some(run) = missing.pop() {
            let Some(parent) = self.run(run).map(|r| r.parent) else { return };
            let mut holder = Holder::new(keeper, Some(Tier::Gpu));
            // Whatever is attached to a root is rooted: no change ever comes from there.
            if let Some(above) = self.run_mut(parent.run()).and_then(|r| r.holder_mut(keeper)) {
                holder.above = above.rooted().at(parent.offset());
                holder.next = above.first_below(parent.offset());
                above.set_first_below(parent.offset(), run);
            }
            if let Some(next) = self.run_mut(holder.next).and_then(|r| r.holder_mut(keeper)) {
                next.previous = run;
            }
            if let Some(r) = self.run_mut(run)
                && let Err(at) = r.holders.binary_search_by_key(&keeper, |h| h.keeper)
            {
                r.holders.reserve_exact(1);
                r.holders.insert(at, holder);
            }
        }
    }

    /// Changes what a keeper holds of a run, and follows the consequences.
    fn change(&mut self, run: u32, keeper: Keeper, change: impl FnOnce(&mut Holder)) {
        self.tell_held();
        let Some(holder) = self.run_mut(run).and_then(|r| r.holder_mut(keeper)) else { return };
        let before = holder.rooted();
        change(holder);
        let after = holder.rooted();
        self.follow(run, keeper, before, after);
    }

    /// Follows the consequences of a change down the tree and into the table.
    fn follow(&mut self, run: u32, keeper: Keeper, before: Rooted, after: Rooted) {
        if before == after {
            return;
        }
        let mut stale = std::mem::take(&mut self.stale);
        stale.push((run, before, after));
        while let Some((run, before, after)) = stale.pop() {
            self.tell(run, keeper, before, after);
            let range = before.changes(after);
            let holder = self.run(run).filter(|r| r.forks_within(&range)).and_then(|r| r.holder(keeper));
            let changed = |offset: &u8| before.at(*offset) != after.at(*offset);
            let forks: Vec<u8> = holder.into_iter().flat_map(Holder::forks).filter(changed).collect();
            for offset in forks {
                let mut below = self.run(run).and_then(|r| r.holder(keeper)).map_or(NO_RUN, |h| h.first_below(offset));
                while let Some(holder) = self.run_mut(below).and_then(|r| r.holder_mut(keeper)) {
                    let was = holder.rooted();
                    holder.above = after.at(offset);
                    stale.push((below, was, holder.rooted()));
                    below = holder.next;
                }
            }
        }
        self.stale = stale;
    }

    /// Tells the table how far a keeper's blocks of a run were rooted, and how far they are now.
    fn tell(&mut self, run: u32, keeper: Keeper, before: Rooted, after: Rooted) {
        let Some(r) = self.runs.get(run as usize) else { return };
        let (slot, range) = (keeper.slot(), before.changes(after));
        self.table.warm(r.prints_within(&range, self.stride));
        for offset in range {
            let (was, is) = (before.at(offset), after.at(offset));
            if was == is {
                continue;
            }
            let Some((last, others)) = r.prints(usize::from(offset), self.stride).split_last() else { continue };
            let (at_last, at_others) = r.tokens_at(usize::from(offset), self.stride);
            let share = |tier: Option<Tier>, tokens| tier.map(|tier| Share { holder: one_holder(slot, tier), tokens });
            for print in others {
                self.table.change(*print, share(was, at_others), share(is, at_others));
            }
            self.table.change(*last, share(was, at_last), share(is, at_last));
        }
    }

    /// Removes a keeper's holder from a run if nothing needs it, likewise above it; frees what is left empty.
    fn prune(&mut self, run: u32, keeper: Keeper, evicted: bool) {
        let mut next = run;
        while let Some(r) = self.run_mut(next) {
            let Ok(at) = r.holders.binary_search_by_key(&keeper, |h| h.keeper) else { break };
            if r.holders.get(at).is_none_or(|h| h.resident() != 0 || h.forks().next().is_some()) {
                break;
            }
            let (gone, parent) = (r.holders.remove(at), r.parent);
            if r.holders.is_empty() {
                r.holders = Vec::new();
            }
            if let Some(after) = self.run_mut(gone.next).and_then(|r| r.holder_mut(keeper)) {
                after.previous = gone.previous;
            }
            match self.run_mut(gone.previous).and_then(|r| r.holder_mut(keeper)) {
                Some(before) => before.next = gone.next,
                None => {
                    if let Some(above) = self.run_mut(parent.run()).and_then(|r| r.holder_mut(keeper)) {
                        above.set_first_below(parent.offset(), gone.next);
                    }
                }
            }
            next = parent.run();
        }
        self.release(run, evicted);
    }

    /// Cuts what nobody needs of a run, and of those above it if it goes wholly. `evicted`: it is next to go.
    pub(super) fn release(&mut self, run: u32, evicted: bool) {
        let mut number = run;
        loop {
            let stride = self.stride;
            let Some(r) = self.run_mut(number) else { return };
            // Before its first block is gone.
            let key = first_key(r.parent, &r.content(0, stride));
            let (cut, parent) = (r.trim(stride), r.parent);
            let gone = r.len() == 0 && r.is_leaf();
            self.blocks -= cut;
            if !gone || number == self.pinned {
                return;
            }
            let Ok(entry) = self.firsts.find_entry(key, |n| *n == number) else { return };
            entry.remove();
            if parent != NO_BLOCK {
                self.unlink(number);
            }
            if let Some(r) = self.run_mut(number) {
                *r = Run::empty();
            }
            self.free.push(number);
            self.detach(parent, evicted);
            number = parent.run();
        }
    }

    /// A leaf was used.
    pub(super) fn touch(&mut self, run: u32) {
        if self.hottest != run && self.run(run).is_some_and(|r| r.is_leaf() && !r.is_root()) {
            self.unlink(run);
            self.link_hottest(run);
        }
    }

    /// The leaf that was not used for the longest time, and is not `except`.
    pub(super) fn coldest(&self, except: u32) -> Option<u32> {
        let coldest = if self.coldest == except { self.run(except)?.hotter } else { self.coldest };
        self.run(coldest).map(|_| coldest)
    }

    fn link_hottest(&mut self, run: u32) {
        let hottest = std::mem::replace(&mut self.hottest, run);
        if let Some(r) = self.run_mut(run) {
            (r.colder, r.hotter) = (hottest, NO_RUN);
        }
        match self.run_mut(hottest) {
            Some(before) => before.hotter = run,
            None => self.coldest = run,
        }
    }

    fn link_coldest(&mut self, run: u32) {
        let coldest = std::mem::replace(&mut self.coldest, run);
        if let Some(r) = self.run_mut(run) {
            (r.colder, r.hotter) = (NO_RUN, coldest);
        }
        match self.run_mut(coldest) {
            Some(after) => after.colder = run,
            None => self.hottest = run,
        }
    }

    fn unlink(&mut self, run: u32) {
        let Some((colder, hotter)) = self.run(run).map(|r| (r.colder, r.hotter)) else { return };
        match self.run_mut(colder) {
            Some(colder) => colder.hotter = hotter,
            None => self.coldest = hotter,
        }
        match self.run_mut(hotter) {
            Some(hotter) => hotter.colder = colder,
            None => self.hottest = colder,
        }
    }

    /// Memory that it takes, the table included.
    pub(super) fn bytes(&self) -> usize {
        super::allocated::<Run>(self.runs.capacity())
            + super::allocated::<u32>(self.free.capacity())
            + self.firsts.allocation_size()
            + self.runs.iter().map(Run::heap).sum::<usize>()
            + self.table.bytes()
    }
}

/// What a run that is there is found by.
fn key_of(runs: &[Run], stride: Stride, run: u32) -> u64 {
    runs.get(run as usize).map_or(0, |r| first_key(r.parent, &r.content(0, stride)))
}
