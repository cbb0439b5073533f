//! What every endpoint holds, from its events.
//!
//! An endpoint names its blocks by hashes that mean nothing elsewhere. Here each hash gets a count of physical copies
//! and a place in the [`Tree`] of contents, which all endpoints share.
//!
//! **Invariants:** a block is resident on a tier while more copies were stored there than removed; a block whose
//! parent is unknown waits, outside the tree, until the parent is stored; a block that holds a token whose bytes are
//! unknown, or was generated with tokens that no prompt will have ([`crate::canonical`]), and all after it, are counted
//! but stay outside the tree. The number of blocks, and of tree nodes, is
//! bounded: beyond the bound new blocks are left out, so the table undercounts.

use crate::canonical::{GENERATED_AT_MOST, TAIL};
use crate::events::{Attention, Event, Removed, Stored};
use crate::tokens::Vocabulary;
use crate::tree::{NodeId, Tree};
use affinity::page::{PageEntry, encode_page};
use affinity::prompt::ids_namespace;
use affinity::{Slot, Stride, Tier};
use fnv::FnvHashMap;
use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// What bounds and shapes an index.
#[derive(Clone, Debug)]
pub struct Options {
    /// Distance between fingerprints.
    pub stride: Stride,
    /// At most this many blocks over all endpoints, and as many tree nodes.
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
    /// Blocks left out because the index was full, since the start.
    pub refused: u64,
}

/// The index of all endpoints.
pub struct Index {
    options: Options,
    tree: Tree,
    endpoints: BTreeMap<Holdings, Endpoint>,
    tails: Tails,
    stats: Stats,
}

/// What an endpoint holds, spelt as text or as token ids: prompts come as either, and meet only their own kind.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Holdings {
    slot: Slot,
    ids: bool,
}

impl Holdings {
    fn of(slot: Slot) -> [Self; 2] {
        [false, true].map(|ids| Self { slot, ids })
    }
}

/// The last tokens of blocks that may be generated on from: context for checking what comes next.
#[derive(Default)]
struct Tails {
    tokens: FnvHashMap<(Slot, u64), Box<[u32]>>,
    /// Oldest first.
    order: VecDeque<(Slot, u64)>,
}

impl Tails {
    /// Conversations that can generate at once, over all endpoints; 100 bytes each.
    const MOST: usize = 1 << 16;

    fn put(&mut self, slot: Slot, hash: u64, tokens: &[u32]) {
        let tail = tokens.get(tokens.len().saturating_sub(TAIL)..).unwrap_or(tokens);
        if self.tokens.insert((slot, hash), tail.into()).is_none() {
            self.order.push_back((slot, hash));
            if self.order.len() > Self::MOST
                && let Some(oldest) = self.order.pop_front()
            {
                self.tokens.remove(&oldest);
            }
        }
    }

    fn get(&self, slot: Slot, hash: u64) -> &[u32] {
        self.tokens.get(&(slot, hash)).map_or(&[], |tail| tail)
    }
}

/// What one endpoint holds.
struct Endpoint {
    model: Arc<str>,
    vocabulary: Arc<Vocabulary>,
    /// The cache group that is indexed: the first one seen that keeps every block.
    group: Option<u32>,
    blocks: FnvHashMap<u64, Block>,
    /// Orphans by the parent they wait for.
    waiting: FnvHashMap<u64, Vec<u64>>,
}

struct Block {
    /// Copies per tier. Never all 0.
    copies: [u16; 3],
    place: Place,
}

/// Where a block stands.
enum Place {
    Tree(NodeId),
    /// No prompt can match it.
    Unmatchable,
    Orphan(Box<Orphan>),
}

struct Orphan {
    parent: u64,
    tokens: Box<[u32]>,
    readable: bool,
}

/// What a block comes after.
#[derive(Clone, Copy)]
enum Anchor {
    Tree(NodeId),
    Unmatchable,
    Unknown(u64),
}

impl Block {
    /// The fastest tier that has a copy.
    fn tier(&self) -> Option<Tier> {
        [Tier::Gpu, Tier::Cpu, Tier::Disk].into_iter().zip(self.copies).find(|(_, n)| *n > 0).map(|(tier, _)| tier)
    }

    fn copies_on(&mut self, tier: Tier) -> &mut u16 {
        let [gpu, cpu, disk] = &mut self.copies;
        match tier {
            Tier::Gpu => gpu,
            Tier::Cpu => cpu,
            Tier::Disk => disk,
        }
    }
}

impl Index {
    /// An empty index. `epoch` as for [`crate::table::Table::new`].
    #[must_use]
    pub fn new(options: Options, epoch: u32) -> Self {
        let tree = Tree::new(options.stride, epoch);
        Self { options, tree, endpoints: BTreeMap::new(), tails: Tails::default(), stats: Stats::default() }
    }

    /// Adds an endpoint, or clears it. `model` is the canonical name: endpoints of one model share contents. `ids`: what
    /// it holds is also kept for prompts that are given as token ids, which takes as much memory again.
    pub fn add(&mut self, slot: Slot, model: &str, vocabulary: &Arc<Vocabulary>, ids: bool) {
        self.clear(slot);
        for of in Holdings::of(slot).into_iter().filter(|of| ids || !of.ids) {
            let endpoint = Endpoint {
                model: model.into(),
                vocabulary: vocabulary.clone(),
                group: None,
                blocks: FnvHashMap::default(),
                waiting: FnvHashMap::default(),
            };
            self.endpoints.insert(of, endpoint);
        }
    }

    /// Applies one event of an endpoint. Events of unknown endpoints are ignored.
    pub fn apply(&mut self, slot: Slot, event: &Event<'_>) {
        for of in Holdings::of(slot) {
            match event {
                Event::Stored(stored) => self.store(of, stored),
                Event::Removed(removed) => self.remove(of, removed),
                // The engine means one pool; other tiers may keep theirs. Forgetting those too is an undercount.
                Event::Cleared => self.forget(of),
            }
        }
    }

    /// Forgets what an endpoint holds, and which of its cache groups counts.
    pub fn clear(&mut self, slot: Slot) {
        for of in Holdings::of(slot) {
            self.forget(of);
            if let Some(endpoint) = self.endpoints.get_mut(&of) {
                endpoint.group = None;
            }
        }
    }

    /// Lets the table grow to what it holds. To be called after a batch rather than after every event.
    pub fn settle(&mut self) {
        self.tree.table_mut().grow();
    }

    /// The table.
    #[must_use]
    pub fn table(&self) -> &crate::table::Table {
        self.tree.table()
    }

    /// A page's bytes.
    #[must_use]
    pub fn page(&self, page: u32) -> Vec<u8> {
        encode_page(self.table().epoch(), &self.tree.entries(page))
    }

    /// A page's entries.
    #[must_use]
    pub fn entries(&self, page: u32) -> Vec<PageEntry> {
        self.tree.entries(page)
    }

    /// Totals.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats { nodes: self.tree.len(), ..self.stats }
    }

    /// The blocks resident on an endpoint and how many copies of each, in no order.
    pub fn resident(&self, slot: Slot) -> impl Iterator<Item = (u64, u32)> + '_ {
        let text = Holdings { slot, ids: false };
        let blocks = self.endpoints.get(&text).map(|e| &e.blocks);
        blocks.into_iter().flatten().map(|(hash, b)| (*hash, b.copies.iter().map(|n| u32::from(*n)).sum()))
    }

    fn store(&mut self, of: Holdings, stored: &Stored<'_>) {
        let Some(endpoint) = self.endpoints.get_mut(&of) else { return };
        if !self.options.tiers.contains(&stored.tier) || !endpoint.accepts(stored) {
            return;
        }
        if stored.block_size == 0 {
            for hash in stored.hashes {
                self.add_copy(of, *hash, stored.tier);
            }
            return;
        }
        let mut root = None;
        let mut anchor = match stored.parent {
            Some(parent) => endpoint.anchor(parent),
            None => {
                let name = stored.adapter.unwrap_or(&endpoint.model);
                let name = if of.ids { ids_namespace(name) } else { Cow::Borrowed(name) };
                let node = self.tree.root(&endpoint.model, &name, stored.salt);
                root = Some(node);
                Anchor::Tree(node)
            }
        };
        let mut before = stored.parent;
        let blocks = stored.hashes.iter().zip(stored.tokens.chunks(stored.block_size as usize));
        for (i, (hash, tokens)) in blocks.enumerate() {
            // Said again, not stored again.
            if stored.may_repeat
                && let Some(block) = self.endpoints.get_mut(&of).and_then(|endpoint| endpoint.blocks.get_mut(hash))
                && *block.copies_on(stored.tier) > 0
            {
                (anchor, before) = (self.endpoints.get(&of).map_or(anchor, |e| e.anchor(*hash)), Some(*hash));
                continue;
            }
            let matchable = i < stored.readable && self.is_canonical(of, stored, *hash, before, tokens);
            if !self.put(of, *hash, stored.tier, anchor, tokens, matchable) {
                // What follows would only be orphans.
                self.stats.refused += (stored.hashes.len() - i) as u64;
                break;
            }
            let Some(endpoint) = self.endpoints.get(&of) else { break };
            anchor = endpoint.anchor(*hash);
            before = Some(*hash);
            if i + GENERATED_AT_MOST >= stored.hashes.len() {
                self.tails.put(of.slot, *hash, tokens);
            }
        }
        if let Some(root) = root {
            self.tree.release(root);
        }
    }

    /// False for a block that was generated with tokens that no prompt will have. Not asked of one more copy of a
    /// block: its place is known.
    fn is_canonical(&self, of: Holdings, stored: &Stored<'_>, hash: u64, before: Option<u64>, tokens: &[u32]) -> bool {
        let Some(endpoint) = self.endpoints.get(&of) else { return true };
        let may_be_generated =
            stored.parent.is_some() && stored.hashes.len() <= GENERATED_AT_MOST && !endpoint.blocks.contains_key(&hash);
        let tail = before.map_or(&[][..], |before| self.tails.get(of.slot, before));
        of.ids || !may_be_generated || endpoint.vocabulary.is_canonical(tail, tokens)
    }

    /// Adds one copy of a block, new or not; `false` if there is no room.
    fn put(&mut self, of: Holdings, hash: u64, tier: Tier, anchor: Anchor, tokens: &[u32], readable: bool) -> bool {
        let Some(endpoint) = self.endpoints.get_mut(&of) else { return false };
        if endpoint.blocks.contains_key(&hash) {
            self.add_copy(of, hash, tier);
            return true;
        }
        if self.stats.blocks >= self.options.max_blocks || self.tree.len() >= self.options.max_blocks {
            return false;
        }
        let place = match anchor {
            Anchor::Unknown(parent) => {
                endpoint.waiting.entry(parent).or_default().push(hash);
                Place::Orphan(Box::new(Orphan { parent, tokens: tokens.into(), readable }))
            }
            known => self.place(of, known, tokens, readable),
        };
        let mut copies = Block { copies: [0; 3], place };
        *copies.copies_on(tier) = 1;
        self.count(&copies.place, true);
        self.stats.blocks += 1;
        let node = copies.node();
        if let Some(endpoint) = self.endpoints.get_mut(&of) {
            endpoint.blocks.insert(hash, copies);
        }
        if let Some(node) = node {
            self.tree.set_resident(node, of.slot, Some(tier));
        }
        self.adopt(of, hash);
        true
    }

    /// Finds the place of a block after a known one.
    fn place(&mut self, of: Holdings, anchor: Anchor, tokens: &[u32], readable: bool) -> Place {
        let (Anchor::Tree(parent), true) = (anchor, readable) else { return Place::Unmatchable };
        let Some(endpoint) = self.endpoints.get(&of) else { return Place::Unmatchable };
        let spell = |bytes: &mut Vec<u8>| {
            if of.ids {
                bytes.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
                return true;
            }
            endpoint.vocabulary.spell(tokens, bytes)
        };
        self.tree.child(parent, tokens, spell).map_or(Place::Unmatchable, Place::Tree)
    }

    /// Places the orphans that waited for `hash`, then those that waited for them.
    fn adopt(&mut self, of: Holdings, hash: u64) {
        let mut parents = vec![hash];
        while let Some(parent) = parents.pop() {
            let Some(endpoint) = self.endpoints.get_mut(&of) else { return };
            let anchor = endpoint.anchor(parent);
            if matches!(anchor, Anchor::Unknown(_)) {
                continue;
            }
            for child in endpoint.waiting.remove(&parent).unwrap_or_default() {
                let Some(endpoint) = self.endpoints.get_mut(&of) else { return };
                let Some(block) = endpoint.blocks.get_mut(&child) else { continue };
                let tier = block.tier();
                let Place::Orphan(orphan) = std::mem::replace(&mut block.place, Place::Unmatchable) else { continue };
                let place = self.place(of, anchor, &orphan.tokens, orphan.readable);
                self.stats.orphans -= 1;
                self.count(&place, true);
                if let Place::Tree(node) = &place {
                    self.tree.set_resident(*node, of.slot, tier);
                }
                if let Some(block) = self.endpoints.get_mut(&of).and_then(|e| e.blocks.get_mut(&child)) {
                    block.place = place;
                }
                parents.push(child);
            }
        }
    }

    fn add_copy(&mut self, of: Holdings, hash: u64, tier: Tier) {
        let Some(block) = self.endpoints.get_mut(&of).and_then(|e| e.blocks.get_mut(&hash)) else { return };
        let copies = block.copies_on(tier);
        *copies = copies.saturating_add(1);
        if let Some(node) = block.node() {
            self.tree.set_resident(node, of.slot, block.tier());
        }
    }

    fn remove(&mut self, of: Holdings, removed: &Removed<'_>) {
        let Some(endpoint) = self.endpoints.get_mut(&of) else { return };
        if !self.options.tiers.contains(&removed.tier) || removed.group.is_some_and(|g| Some(g) != endpoint.group) {
            return;
        }
        for hash in removed.hashes {
            let Some(endpoint) = self.endpoints.get_mut(&of) else { return };
            let Entry::Occupied(mut entry) = endpoint.blocks.entry(*hash) else { continue };
            let block = entry.get_mut();
            // A removal of a copy stored before we listened must not go below zero.
            let copies = block.copies_on(removed.tier);
            *copies = copies.saturating_sub(1);
            let tier = block.tier();
            if tier.is_some() {
                if let Some(node) = block.node() {
                    self.tree.set_resident(node, of.slot, tier);
                }
                continue;
            }
            let block = entry.remove();
            if let Place::Orphan(orphan) = &block.place
                && let Entry::Occupied(mut waiting) = endpoint.waiting.entry(orphan.parent)
            {
                waiting.get_mut().retain(|child| child != hash);
                if waiting.get().is_empty() {
                    waiting.remove();
                }
            }
            self.drop_block(of, &block);
        }
    }

    /// Forgets an endpoint's blocks.
    fn forget(&mut self, of: Holdings) {
        let Some(endpoint) = self.endpoints.get_mut(&of) else { return };
        endpoint.waiting.clear();
        for (_, block) in std::mem::take(&mut endpoint.blocks) {
            self.drop_block(of, &block);
        }
    }

    fn drop_block(&mut self, of: Holdings, block: &Block) {
        self.stats.blocks -= 1;
        self.count(&block.place, false);
        if let Some(node) = block.node() {
            self.tree.set_resident(node, of.slot, None);
        }
    }

    /// Keeps the totals of blocks outside the tree.
    fn count(&mut self, place: &Place, more: bool) {
        let total = match place {
            Place::Tree(_) => return,
            Place::Unmatchable => &mut self.stats.unmatchable,
            Place::Orphan(_) => &mut self.stats.orphans,
        };
        *total = if more { *total + 1 } else { *total - 1 };
    }
}

impl Endpoint {
    /// Whether an event is of the cache group that counts. The first group that keeps every block becomes that one:
    /// an engine with several announces each span once per group, with the same hashes.
    fn accepts(&mut self, stored: &Stored<'_>) -> bool {
        match stored.attention {
            Attention::Partial => false,
            // Engines too old to say: the first group is the one with full attention, if there is one.
            Attention::Unsaid if self.group.is_none() && stored.group != 0 => false,
            Attention::Full | Attention::Unsaid => *self.group.get_or_insert(stored.group) == stored.group,
        }
    }

    fn anchor(&self, hash: u64) -> Anchor {
        match self.blocks.get(&hash).map(|block| &block.place) {
            Some(Place::Tree(node)) => Anchor::Tree(*node),
            Some(Place::Unmatchable) => Anchor::Unmatchable,
            Some(Place::Orphan(_)) | None => Anchor::Unknown(hash),
        }
    }
}

impl Block {
    fn node(&self) -> Option<NodeId> {
        match self.place {
            Place::Tree(node) => Some(node),
            Place::Unmatchable | Place::Orphan(_) => None,
        }
    }
}
