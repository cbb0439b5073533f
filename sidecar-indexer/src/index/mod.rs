//! What every endpoint holds, from its events.
//!
//! An endpoint names its blocks by hashes that mean nothing elsewhere. Here each hash gets a count of physical copies
//! and a place in the [`tree`] of contents, which all endpoints share.
//!
//! **Invariants:** a block is resident on a tier while more copies were stored there than removed; a block whose
//! parent is unknown waits, outside the tree, until the parent is stored; a block that holds a token whose bytes are
//! unknown, or was generated with tokens that no prompt will have ([`crate::canonical`]), and all after it, are counted
//! but stay outside the tree. The number of blocks, with those put [`aside`], is bounded ([`room`]): beyond the bound
//! the coldest are forgotten, so the table undercounts.

mod aside;
mod changes;
#[cfg(test)]
mod check;
mod endpoint;
#[cfg(test)]
mod event_tests;
mod holder;
mod ordered;
mod orphans;
mod residents;
mod restore;
#[cfg(test)]
mod restore_tests;
mod room;
mod runs;
mod shares;
mod shed;
mod snapshot;
mod spelling;
mod store;
mod table;
mod tails;
#[cfg(test)]
mod tests;
mod tree;

use crate::events::Event;
use crate::tokens::Vocabulary;
use affinity::page::PageEntry;
use affinity::{Fingerprint, Slot, Stride, Tier};
use aside::Asides;
use endpoint::{Copies, Endpoint};
use holder::Keeper;
pub use restore::RestoreError;
pub use shed::Shedding;
pub use snapshot::Holdings;
use spelling::Spelling;
use std::sync::Arc;
pub use table::Table;
use tree::Tree;

/// What bounds and shapes an index.
#[derive(Clone, Debug)]
pub struct Options {
    /// Distance between fingerprints.
    pub stride: Stride,
    /// At most this many blocks over all endpoints, in the index and put aside, and as many distinct ones in the index.
    pub max_blocks: usize,
    /// Tiers whose events count.
    pub tiers: Vec<Tier>,
}

/// What an index holds and has left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Blocks resident, counted once per endpoint; once more where they are kept as token ids, too.
    pub blocks: usize,
    /// Of these, how many wait for their parent.
    pub orphans: usize,
    /// Of these, how many no prompt can match: they, or blocks before them, hold tokens without known bytes or were
    /// generated with tokens that no prompt will have.
    pub unmatchable: usize,
    /// Distinct blocks in the tree.
    pub nodes: usize,
    /// Blocks put aside, which are not in the index, or not yet again.
    pub aside: usize,
    /// Blocks forgotten or left out because the index was full, since the start.
    pub evicted: u64,
}

/// The index of all endpoints.
pub struct Index {
    options: Options,
    tree: Tree,
    /// By [`Keeper::index`].
    endpoints: Vec<Option<Box<Endpoint>>>,
    asides: Asides,
    stats: Stats,
    /// Of the event that is taken in.
    spelling: Spelling,
    /// One block's fingerprints.
    prints: Vec<Fingerprint>,
}

impl Index {
    /// An empty index. `epoch` as for [`Table::new`].
    #[must_use]
    pub fn new(options: Options, epoch: u32) -> Self {
        Self {
            tree: Tree::new(options.stride, epoch),
            options,
            endpoints: Vec::new(),
            asides: Asides::default(),
            stats: Stats::default(),
            spelling: Spelling::default(),
            prints: Vec::new(),
        }
    }

    /// Adds an endpoint, or clears it. `model` is the canonical name: endpoints of one model share contents. `ids`: what
    /// it holds is also kept for prompts that are given as token ids, which takes as much memory again.
    pub fn add(&mut self, slot: Slot, model: &str, vocabulary: &Arc<Vocabulary>, ids: bool) {
        self.retire(slot);
        if slot.0 >= Slot::LIMIT {
            return;
        }
        for of in Keeper::both(slot).into_iter().filter(|of| ids || !of.ids()) {
            if self.endpoints.len() <= of.index() {
                self.endpoints.resize_with(of.index() + 1, || None);
            }
            if let Some(place) = self.endpoints.get_mut(of.index()) {
                *place = Some(Box::new(Endpoint::new(model, vocabulary)));
            }
        }
    }

    /// Forgets an endpoint. Costs what it held.
    pub fn retire(&mut self, slot: Slot) {
        self.forget_aside(slot);
        self.restore_no_more(slot);
        for of in Keeper::both(slot) {
            self.forget(of);
            if let Some(place) = self.endpoints.get_mut(of.index()) {
                *place = None;
            }
        }
    }

    /// Applies one event of an endpoint. Events of unknown endpoints are ignored.
    pub fn apply(&mut self, slot: Slot, event: &Event<'_>) {
        if self.asides.is_restoring(slot) {
            // It would come before what is as of an earlier moment.
            self.clear(slot);
        }
        for of in Keeper::both(slot) {
            match event {
                Event::Stored(stored) => self.store(of, stored),
                Event::Removed(removed) => self.remove(of, removed),
                // The engine means one pool; other tiers may keep theirs. Forgetting those too is an undercount.
                Event::Cleared => self.forget(of),
            }
        }
    }

    /// Forgets what an endpoint holds, and which of its cache groups counts. Costs what it held.
    pub fn clear(&mut self, slot: Slot) {
        self.restore_no_more(slot);
        for of in Keeper::both(slot) {
            self.forget(of);
            if let Some(endpoint) = self.endpoint(of) {
                endpoint.group = None;
            }
        }
    }

    /// Lets the table grow to what it holds. To be called after a batch rather than after every event.
    pub fn settle(&mut self) {
        self.tree.table.grow();
    }

    /// The table.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.tree.table
    }

    /// A page's bytes.
    #[must_use]
    pub fn page(&self, page: u32) -> Vec<u8> {
        self.tree.table.page(page)
    }

    /// What the page says of these keys, which are sorted ([`affinity::rows`]).
    #[must_use]
    pub fn rows(&self, page: u32, keys: impl ExactSizeIterator<Item = u32>) -> Vec<u8> {
        self.tree.table.rows_of(page, keys)
    }

    /// A page's entries, by fingerprint.
    #[must_use]
    pub fn entries(&self, page: u32) -> Vec<PageEntry> {
        self.tree.table.entries(page)
    }

    /// Totals.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats { nodes: self.tree.len(), aside: self.asides.blocks(), ..self.stats }
    }

    /// Memory in use, in bytes, estimated. Goes through all blocks.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let endpoints = self.endpoints.iter().flatten();
        self.tree.bytes()
            + self.asides.bytes()
            + allocated::<Option<Box<Endpoint>>>(self.endpoints.capacity())
            + endpoints.map(|e| size_of::<Endpoint>() + e.bytes()).sum::<usize>()
    }

    /// The blocks resident on an endpoint and how many copies of each, in no order.
    pub fn resident(&self, slot: Slot) -> impl Iterator<Item = (u64, u32)> + '_ {
        let of = Keeper::new(slot, false);
        let endpoint = self.endpoints.get(of.index()).and_then(Option::as_deref);
        endpoint.into_iter().flat_map(move |endpoint| {
            let in_tree = endpoint.residents.iter().filter_map(move |block| {
                let holder = self.tree.run(block.run())?.holder(of)?;
                let copies = endpoint.copies(block, holder.on(block.offset()));
                Some((holder.hash(block.offset())?, copies.sum()))
            });
            let unmatchable = endpoint.unmatchable.iter().map(|(hash, copies)| (*hash, copies.sum()));
            let orphans = endpoint.orphans.iter().map(|(hash, orphan)| (hash, orphan.copies.sum()));
            in_tree.chain(unmatchable).chain(orphans)
        })
    }

    fn endpoint(&mut self, of: Keeper) -> Option<&mut Endpoint> {
        self.endpoints.get_mut(of.index())?.as_deref_mut()
    }

    /// Forgets an endpoint's blocks.
    fn forget(&mut self, of: Keeper) {
        let Some(Some(endpoint)) = self.endpoints.get_mut(of.index()) else { return };
        let empty = Endpoint { group: endpoint.group, ..Endpoint::new(&endpoint.model, &endpoint.vocabulary) };
        let gone = std::mem::replace(&mut **endpoint, empty);
        self.stats.blocks -= gone.len();
        self.stats.unmatchable -= gone.unmatchable.len();
        self.stats.orphans -= gone.orphans.len();
        for run in gone.residents.runs() {
            self.tree.unhold_run(run, of, false);
        }
    }
}

/// What the allocator takes for a list of `capacity`.
fn allocated<T>(capacity: usize) -> usize {
    match capacity * size_of::<T>() {
        0 => 0,
        bytes => (bytes + 8).next_multiple_of(16),
    }
}

/// What the allocator takes for a hash table of `capacity`.
fn table_bytes<T>(capacity: usize) -> usize {
    if capacity == 0 { 0 } else { (capacity * 8 / 7).next_power_of_two() * (size_of::<T>() + 1) + 32 }
}
