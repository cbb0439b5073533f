//! The tree of cached blocks, keyed by content and shared by all endpoints.
//!
//! A node is a block in its place: the same tokens after the same blocks, in the same namespace. It knows which
//! endpoints have it *resident*, and for which of them it is *rooted*: resident with every block before it. Only
//! rooted holders go into the table.
//!
//! **Invariants:** `rooted(n) = resident(n) and rooted(parent(n))` for every endpoint, with the slower of the two
//! tiers; a node is a source of its fingerprints' rows if and only if it has a rooted holder; a node without
//! residents and without children is freed, so a [`NodeId`] may be kept only by whoever made an endpoint resident.

use crate::table::Table;
use affinity::page::PageEntry;
use affinity::{Chain, Fingerprint, Slot, Stride, Tier, Tokens};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

/// Names a node of a [`Tree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeId(u32);

#[cfg(test)]
impl NodeId {
    pub(crate) fn for_test(n: u32) -> Self {
        Self(n)
    }
}

/// No node: the parent of roots, the end of sibling lists.
const NONE: NodeId = NodeId(u32::MAX);

struct Node {
    parent: NodeId,
    first_child: NodeId,
    next_sibling: NodeId,
    previous_sibling: NodeId,
    /// Digest of the block's tokens, or of a root's namespace.
    content: u64,
    /// State of the byte prefix at the block's end.
    chain: Chain,
    /// Tokens from the root to the block's end.
    end: Tokens,
    /// Tokens in the block.
    size: Tokens,
    /// Of the strides that end within the block.
    fingerprints: Box<[Fingerprint]>,
    /// By slot.
    holders: Vec<Holder>,
}

/// An endpoint on which a block is resident.
#[derive(Clone, Copy)]
struct Holder {
    slot: Slot,
    tier: Tier,
    /// The slowest tier from the root to here; `None` while a block in between is missing.
    rooted: Option<Tier>,
}

/// Blocks by content, and the table they make.
pub struct Tree {
    stride: Stride,
    nodes: Vec<Node>,
    free: Vec<NodeId>,
    /// A node by parent and content digest. Roots have the parent [`NONE`].
    by_content: HashMap<(NodeId, u64), NodeId, fnv::FnvBuildHasher>,
    /// Keyed by chance, so that nobody can prepare blocks with equal digests.
    digest: RandomState,
    table: Table,
    /// One block's bytes.
    scratch: Vec<u8>,
}

impl Tree {
    /// An empty tree.
    #[must_use]
    pub fn new(stride: Stride, epoch: u32) -> Self {
        Self {
            stride,
            nodes: Vec::new(),
            free: Vec::new(),
            by_content: HashMap::default(),
            digest: RandomState::new(),
            table: Table::new(epoch),
            scratch: Vec::new(),
        }
    }

    /// How many nodes there are, roots included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    /// Whether there is no node.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The table.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The table, to let it grow.
    pub fn table_mut(&mut self) -> &mut Table {
        &mut self.table
    }

    /// The root of a namespace. `model` tells vocabularies apart, `name` is the model's or adapter's.
    /// The caller must give it a child and a resident, or [`Tree::release`] it.
    pub fn root(&mut self, model: &str, name: &str, salt: Option<&str>) -> NodeId {
        let content = self.digest.hash_one((model, name, salt));
        if let Some(node) = self.by_content.get(&(NONE, content)) {
            return *node;
        }
        let chain = Chain::new(affinity::root(name, salt));
        self.insert(NONE, content, |_| (chain, Box::new([]), Tokens(0)))
    }

    /// The block of these tokens after `parent`; `spell` appends their bytes, and is asked only if the block is new.
    /// The caller must give it a resident, or [`Tree::release`] it. `None` if `spell` says that it cannot.
    pub fn child(
        &mut self,
        parent: NodeId,
        tokens: &[u32],
        spell: impl FnOnce(&mut Vec<u8>) -> bool,
    ) -> Option<NodeId> {
        let content = self.digest.hash_one(tokens);
        if let Some(node) = self.by_content.get(&(parent, content)) {
            return Some(*node);
        }
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.clear();
        let known = spell(&mut bytes);
        let (size, stride) = (Tokens(u32::try_from(tokens.len()).ok()?), self.stride);
        let node = known.then(|| {
            self.insert(parent, content, |parent| {
                let (mut chain, mut fingerprints) =
                    (parent.map_or(Chain::new(Fingerprint(0)), |p| p.chain), Vec::new());
                chain.push(stride, &bytes, |fingerprint| fingerprints.push(fingerprint));
                (chain, fingerprints.into(), size)
            })
        });
        self.scratch = bytes;
        node
    }

    fn insert(
        &mut self,
        parent: NodeId,
        content: u64,
        spell: impl FnOnce(Option<&Node>) -> (Chain, Box<[Fingerprint]>, Tokens),
    ) -> NodeId {
        let above = self.node(parent);
        let (chain, fingerprints, size) = spell(above);
        let (end, sibling) = above.map_or((0, NONE), |above| (above.end.0, above.first_child));
        let node = Node {
            parent,
            first_child: NONE,
            next_sibling: sibling,
            previous_sibling: NONE,
            content,
            chain,
            end: Tokens(end.saturating_add(size.0)),
            size,
            fingerprints,
            holders: Vec::new(),
        };
        let id = match self.free.pop() {
            Some(id) => id,
            // The index's bound on blocks lies far below 2^32.
            None => NodeId(self.nodes.len() as u32),
        };
        match self.nodes.get_mut(id.0 as usize) {
            Some(place) => *place = node,
            None => self.nodes.push(node),
        }
        if let Some(sibling) = self.node_mut(sibling) {
            sibling.previous_sibling = id;
        }
        if let Some(above) = self.node_mut(parent) {
            above.first_child = id;
        }
        self.by_content.insert((parent, content), id);
        id
    }

    /// Sets on which tier `slot` has the block, or that it has it no more. Follows the consequences down the tree and
    /// into the table. With `None` the node may be freed.
    pub fn set_resident(&mut self, id: NodeId, slot: Slot, tier: Option<Tier>) {
        let Some(node) = self.node_mut(id) else { return };
        let at = node.holders.binary_search_by_key(&slot, |h| h.slot);
        match (at, tier) {
            (Ok(at), Some(tier)) => {
                if let Some(holder) = node.holders.get_mut(at) {
                    holder.tier = tier;
                }
                self.propagate(id, slot);
            }
            (Err(at), Some(tier)) => {
                node.holders.insert(at, Holder { slot, tier, rooted: None });
                self.propagate(id, slot);
            }
            (Ok(at), None) => {
                if node.holders.get(at).is_some_and(|h| h.rooted.is_some()) {
                    self.set_rooted(id, slot, None);
                    self.propagate_to_children(id, slot);
                }
                if let Some(node) = self.node_mut(id) {
                    node.holders.remove(at);
                }
                self.release(id);
            }
            (Err(_), None) => {}
        }
    }

    /// Frees the node if nothing keeps it, and then its parent likewise.
    pub fn release(&mut self, mut id: NodeId) {
        while let Some(node) = self.node(id) {
            if !node.holders.is_empty() || node.first_child != NONE {
                return;
            }
            let (parent, content) = (node.parent, node.content);
            let (next, previous) = (node.next_sibling, node.previous_sibling);
            // Freed already, and its content perhaps in use anew.
            if self.by_content.get(&(parent, content)) != Some(&id) {
                return;
            }
            self.by_content.remove(&(parent, content));
            if let Some(next) = self.node_mut(next) {
                next.previous_sibling = previous;
            }
            match self.node_mut(previous) {
                Some(previous) => previous.next_sibling = next,
                None => {
                    if let Some(parent) = self.node_mut(parent) {
                        parent.first_child = next;
                    }
                }
            }
            if let Some(node) = self.node_mut(id) {
                (node.fingerprints, node.holders) = (Box::new([]), Vec::new());
            }
            self.free.push(id);
            id = parent;
        }
    }

    /// Brings `rooted` of this node and of all below it up to date for one endpoint.
    fn propagate(&mut self, id: NodeId, slot: Slot) {
        let mut stale = vec![id];
        while let Some(id) = stale.pop() {
            let Some(node) = self.node(id) else { continue };
            let Some(holder) = node.holder(slot) else { continue };
            let above = match self.node(node.parent) {
                Some(parent) if parent.parent != NONE => parent.holder(slot).and_then(|h| h.rooted),
                // Below a root, which everybody holds.
                _ => Some(Tier::Gpu),
            };
            let rooted = above.map(|tier| tier.max(holder.tier));
            if rooted != holder.rooted {
                self.set_rooted(id, slot, rooted);
                stale.extend(self.children(id));
            }
        }
    }

    fn propagate_to_children(&mut self, id: NodeId, slot: Slot) {
        for child in self.children(id).collect::<Vec<_>>() {
            self.propagate(child, slot);
        }
    }

    /// Changes `rooted` of one holder, which must differ, and tells the table.
    fn set_rooted(&mut self, id: NodeId, slot: Slot, rooted: Option<Tier>) {
        let Some(node) = self.nodes.get_mut(id.0 as usize) else { return };
        let had = node.holders.iter().any(|h| h.rooted.is_some());
        if let Ok(at) = node.holders.binary_search_by_key(&slot, |h| h.slot)
            && let Some(holder) = node.holders.get_mut(at)
        {
            holder.rooted = rooted;
        }
        let has = node.holders.iter().any(|h| h.rooted.is_some());
        for fingerprint in &node.fingerprints {
            match (had, has) {
                (false, true) => self.table.link(*fingerprint, id),
                (true, false) => self.table.unlink(*fingerprint, id),
                _ => self.table.touch(*fingerprint),
            }
        }
    }

    fn children(&self, id: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        let mut next = self.node(id).map_or(NONE, |node| node.first_child);
        std::iter::from_fn(move || {
            let child = self.node(next)?;
            Some(std::mem::replace(&mut next, child.next_sibling))
        })
    }

    /// The entries of a page of the table.
    #[must_use]
    pub fn entries(&self, page: u32) -> Vec<PageEntry> {
        let entry = |fingerprint, sources: &[NodeId]| {
            let mut tokens = Tokens(u32::MAX);
            let mut holders: Vec<(Slot, Tier)> = Vec::new();
            for node in sources.iter().filter_map(|id| self.node(*id)) {
                // Two tokenisations of the same bytes: the entry must be true of both.
                tokens = tokens.min(node.tokens_at(self.stride, fingerprint));
                holders.extend(node.holders.iter().filter_map(|h| Some((h.slot, h.rooted?))));
            }
            holders.sort_unstable();
            holders.dedup_by_key(|(slot, _)| *slot);
            PageEntry { fingerprint, tokens, holders }
        };
        self.table.rows(page).iter().map(|row| entry(row.fingerprint, row.sources())).collect()
    }

    fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.0 as usize)
    }

    fn node_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(id.0 as usize)
    }
}

impl Node {
    fn holder(&self, slot: Slot) -> Option<&Holder> {
        let at = self.holders.binary_search_by_key(&slot, |h| h.slot).ok()?;
        self.holders.get(at)
    }

    /// Tokens of the blocks that end at or before the end of the stride of `fingerprint`, one of the node's own.
    fn tokens_at(&self, stride: Stride, fingerprint: Fingerprint) -> Tokens {
        let at_the_end =
            self.fingerprints.last() == Some(&fingerprint) && self.chain.len().is_multiple_of(stride.bytes() as u64);
        if at_the_end { self.end } else { Tokens(self.end.0.saturating_sub(self.size.0)) }
    }
}
