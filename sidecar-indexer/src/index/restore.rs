//! Puts holdings back, a slice at a time: they may be millions of blocks, and whoever needs the index waits meanwhile.
//!
//! **Invariants** between slices: the index is in order, and the endpoint holds a part of what it will; room for the rest is
//! kept ([`super::aside`]); a block to which more will be attached stays in the tree, whoever holds it ([`Tree::keep`]).
//! Whatever else is done to the endpoint meanwhile ends it, and the endpoint holds nothing then: what is put back is as of
//! one moment, and no event may come in between.
//!
//! [`Tree::keep`]: super::tree::Tree::keep

use super::endpoint::Copies;
use super::holder::{Keeper, TIERS};
use super::orphans::Orphan;
use super::runs::{BlockId, Content, NO_RUN};
use super::snapshot::{Held, Holdings, Part, Waiting};
use super::{Index, Slot};
use affinity::{Chain, Fingerprint};
use std::collections::VecDeque;
use std::iter::Peekable;
use std::vec::IntoIter;

/// Holdings of which a part was put back.
pub(super) struct Restoring {
    parts: VecDeque<Rest>,
    /// Room that the rest needs, in blocks.
    needs: usize,
}

/// What is still to come of a part.
struct Rest {
    of: Keeper,
    namespaces: Vec<u64>,
    runs: IntoIter<Held>,
    /// How many runs are put back.
    done: usize,
    /// How many runs were looked at for what they are attached to.
    seen: usize,
    /// By run: its blocks to which others are attached that are still to come.
    forks: Vec<Vec<Fork>>,
    /// In order.
    more: Peekable<IntoIter<(u32, u8, [u16; 3])>>,
    unmatchable: IntoIter<(u64, [u16; 3])>,
    orphans: IntoIter<Waiting>,
    tails: IntoIter<(u64, Option<u64>, Vec<u32>)>,
}

/// A block to which runs are attached that are still to come. Once it has its place in the tree, it is kept there.
struct Fork {
    offset: u8,
    runs: usize,
    place: Option<(BlockId, Chain)>,
}

/// Why holdings cannot be put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Nobody was added at that slot.
    #[error("there is no such endpoint")]
    NoEndpoint,
    /// It was made under other settings.
    #[error("the snapshot is of another model, vocabulary, or setting of stride_bytes, tiers or token_ids")]
    Settings,
    /// There is nothing to put back any more.
    #[error("they were dropped, as the index was full; see max_blocks")]
    Dropped,
    /// It holds more than may be kept.
    #[error("the snapshot holds more blocks than max_blocks leaves room for")]
    TooLarge,
}

impl Restoring {
    fn new(slot: Slot, holdings: Holdings) -> Self {
        let needs = holdings.needs();
        let parts = holdings.into_parts().into_iter().map(|part| Rest::new(Keeper::new(slot, part.ids), part));
        Self { parts: parts.collect(), needs }
    }

    /// Room that the rest needs, in blocks.
    pub(super) fn needs(&self) -> usize {
        self.needs
    }

    /// Memory that the rest takes, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.parts.iter().flat_map(|part| part.runs.as_slice()).map(Held::bytes).sum()
    }

    /// Blocks that are kept in the tree for what comes.
    pub(super) fn kept(&self) -> impl Iterator<Item = BlockId> + '_ {
        let forks = self.parts.iter().flat_map(|part| part.forks.iter().flatten());
        forks.filter_map(|fork| fork.place.map(|(block, _)| block))
    }
}

impl Rest {
    fn new(of: Keeper, mut part: Part) -> Self {
        part.more.sort_unstable();
        Self {
            of,
            namespaces: part.namespaces,
            forks: Vec::with_capacity(part.runs.len()),
            runs: part.runs.into_iter(),
            done: 0,
            seen: 0,
            more: part.more.into_iter().peekable(),
            unmatchable: part.unmatchable.into_iter(),
            orphans: part.orphans.into_iter(),
            tails: part.tails.into_iter(),
        }
    }

    /// Looks what the next run is attached to; false after the last. All are looked at before the first is put back.
    fn look(&mut self) -> bool {
        let Some(run) = self.runs.as_slice().get(self.seen) else { return false };
        self.seen += 1;
        let above = if run.begins { None } else { self.forks.get_mut(run.parent as usize) };
        if let Some(forks) = above {
            match forks.iter_mut().find(|fork| fork.offset == run.offset) {
                Some(fork) => fork.runs += 1,
                None => forks.push(Fork { offset: run.offset, runs: 1, place: None }),
            }
        }
        self.forks.push(Vec::new());
        true
    }

    fn fork(&mut self, run: usize, offset: u8) -> Option<&mut Fork> {
        self.forks.get_mut(run)?.iter_mut().find(|fork| fork.offset == offset)
    }
}

impl Index {
    /// Begins to put back what was put aside of an endpoint; what it holds now is forgotten. To be gone on with by
    /// [`Index::restore_more`].
    ///
    /// # Errors
    /// When it does not fit, or was dropped to make room; the endpoint holds nothing then.
    pub fn restore_aside(&mut self, slot: Slot) -> Result<(), RestoreError> {
        self.clear(slot);
        let holdings = self.asides.take(slot).ok_or(RestoreError::Dropped)?;
        self.kept(Keeper::new(slot, false)).ok_or(RestoreError::NoEndpoint)?;
        if !self.fits(slot, &holdings) {
            return Err(RestoreError::Settings);
        }
        // Of blocks that nobody holds and others are attached to, there may be more in the tree than are resident.
        let (most, needed) = (self.options.max_blocks, self.asides.reserved() + holdings.needs());
        while self.tree.len() + needed > most {
            let coldest = self.tree.coldest(NO_RUN).filter(|_| needed <= most);
            self.evict(coldest.ok_or(RestoreError::TooLarge)?);
        }
        for part in holdings.parts() {
            if let Some(endpoint) = self.endpoint(Keeper::new(slot, part.ids)) {
                endpoint.group = part.group;
                endpoint.unmatchable.reserve(part.unmatchable.len());
            }
        }
        self.asides.reserve(slot, Restoring::new(slot, holdings));
        Ok(())
    }

    /// Puts back some more of it: about so many blocks. False when all is done.
    ///
    /// # Errors
    /// When something else was done to the endpoint in between, or there is no room after all; the endpoint holds nothing
    /// then.
    pub fn restore_more(&mut self, slot: Slot, blocks: usize) -> Result<bool, RestoreError> {
        let mut restoring = self.asides.unreserve(slot).ok_or(RestoreError::Dropped)?;
        let mut left = blocks.max(1);
        while left > 0
            && let Some(part) = restoring.parts.front_mut()
        {
            match self.put_next(part) {
                Ok(Some(room)) => {
                    restoring.needs -= room;
                    left = left.saturating_sub(room.max(1));
                }
                Ok(None) => drop(restoring.parts.pop_front()),
                Err(error) => {
                    self.asides.reserve(slot, restoring);
                    self.clear(slot);
                    return Err(error);
                }
            }
        }
        let more = !restoring.parts.is_empty();
        if more {
            self.asides.reserve(slot, restoring);
        }
        Ok(more)
    }

    /// Ends what was begun, if anything was; what was put back stays.
    pub(super) fn restore_no_more(&mut self, slot: Slot) {
        if let Some(restoring) = self.asides.unreserve(slot) {
            restoring.kept().for_each(|block| self.tree.let_go(block));
        }
    }

    /// Puts back what comes next, and says how much of the room kept for it that took; `None` at the end.
    fn put_next(&mut self, part: &mut Rest) -> Result<Option<usize>, RestoreError> {
        if part.look() {
            return Ok(Some(0));
        }
        if let Some(run) = part.runs.next() {
            self.put_run(part, &run).ok_or(RestoreError::TooLarge)?;
            return Ok(Some(run.states.len()));
        }
        let most = self.orphan_tokens();
        let endpoint = self.endpoint(part.of).ok_or(RestoreError::NoEndpoint)?;
        if let Some((hash, copies)) = part.unmatchable.next() {
            endpoint.unmatchable.insert(hash, Copies(copies));
            self.stats.blocks += 1;
            self.stats.unmatchable += 1;
        } else if let Some(w) = part.orphans.next() {
            let (tokens, copies) = (w.tokens.into(), Copies(w.copies));
            let orphan = Orphan { parent: w.parent, tokens, matchable: w.matchable, copies };
            let forgotten = endpoint.orphans.insert(w.hash, orphan, most);
            self.stats.blocks += 1;
            self.stats.orphans += 1;
            self.forgot(0, 0, forgotten);
        } else {
            let Some((hash, before, tokens)) = part.tails.next() else { return Ok(None) };
            endpoint.tails.insert(hash, tokens.into(), before);
            return Ok(Some(0));
        }
        Ok(Some(1))
    }

    /// Puts back a run. `None` if the tree is full.
    fn put_run(&mut self, part: &mut Rest, run: &Held) -> Option<()> {
        let above = run.parent as usize;
        let (parent, start) = if run.begins {
            let namespace = Fingerprint(*part.namespaces.get(above)?);
            (self.tree.root(namespace)?, Chain::new(namespace))
        } else {
            part.fork(above, run.offset)?.place?
        };
        let mut touched = vec![parent.run()];
        let done = self.put_blocks(part, run, (parent, start), &mut touched);
        self.tree.tell_held();
        part.done += 1;
        if !run.begins
            && let Some(fork) = part.fork(above, run.offset)
        {
            fork.runs -= 1;
            if fork.runs == 0 {
                fork.place = None;
                self.tree.let_go(parent);
            }
        }
        // Blocks that were to lie before others, of which nothing came.
        touched.into_iter().rev().for_each(|run| self.tree.release(run, false));
        done
    }

    fn put_blocks(
        &mut self,
        part: &mut Rest,
        run: &Held,
        (mut parent, start): (BlockId, Chain),
        touched: &mut Vec<u32>,
    ) -> Option<()> {
        let (of, stride) = (part.of, self.options.stride);
        self.endpoint(of)?.residents.warm(&run.hashes);
        let (mut prefix, mut strides) = (start.prefix(), start.len() / stride.bytes() as u64);
        let (mut prints, mut hashes) = (run.prints.iter().map(|p| Fingerprint(*p)), run.hashes.iter());
        let mut own = Vec::new();
        let blocks = run.states.iter().zip(&run.ends).zip(&run.digests);
        for (offset, ((state, end), digest)) in (0u8..).zip(blocks) {
            let len = start.len() + u64::from(*end);
            own.clear();
            own.extend(prints.by_ref().take((len / stride.bytes() as u64).checked_sub(strides)? as usize));
            strides = len / stride.bytes() as u64;
            prefix = own.last().copied().unwrap_or(prefix);
            let chain = Chain::from_parts(prefix, *state, len);
            let content = Content { chain, size: run.size, digest: *digest };
            let more = run.states.len() - usize::from(offset) - 1;
            let block = self.tree.child(parent, of, &content, &own, more)?;
            if touched.last() != Some(&block.run()) {
                touched.push(block.run());
            }
            let mut tiers = TIERS.into_iter().zip(run.masks).filter(|(_, mask)| mask >> offset & 1 == 1);
            if let Some((tier, _)) = tiers.next() {
                let hash = *hashes.next()?;
                self.tree.hold(block, of, hash, tier, more);
                tiers.for_each(|(tier, _)| self.tree.set_tier(block, of, tier, true));
                let endpoint = self.endpoints.get_mut(of.index())?.as_deref_mut()?;
                endpoint.residents.insert(hash, block);
                if let Some((.., copies)) = part.more.next_if(|(r, o, _)| (*r as usize, *o) == (part.done, offset)) {
                    endpoint.more.insert(block, Copies(copies));
                }
                self.stats.blocks += 1;
            }
            let done = part.done;
            if let Some(fork) = part.fork(done, offset) {
                fork.place = Some((block, chain));
                self.tree.keep(block);
            }
            parent = block;
        }
        Some(())
    }
}
