//! What engines hold by their events, counted naively: the model that the index is held against.
//!
//! Blocks by hash, nothing shared, nothing kept up to date; the table is computed anew when it is asked for. It knows
//! no bounds and does not ask whether generated tokens are canonical: for indexes with room, and vocabularies without
//! words.

use affinity::page::{PageEntry, encode_page, page_of};
use affinity::{Fingerprint, Slot, Stride, Tier, Tokens, fingerprints, root};
use std::collections::{BTreeMap, BTreeSet};
use warmpath_indexer::events::{Attention, Event, Stored};
use warmpath_indexer::index::Index;
use warmpath_indexer::tokens::Vocabulary;

/// What one engine holds.
#[derive(Debug)]
pub struct Residency {
    model: String,
    tiers: Vec<Tier>,
    /// The cache group that counts.
    group: Option<u32>,
    blocks: BTreeMap<u64, Block>,
}

#[derive(Debug)]
struct Block {
    /// Per tier.
    copies: [u32; 3],
    parent: Option<u64>,
    tokens: Vec<u32>,
    adapter: Option<String>,
    salt: Option<String>,
    text: bool,
}

impl Residency {
    /// Nothing, of an engine that serves `model`; only `tiers` count.
    pub fn new(model: &str, tiers: &[Tier]) -> Self {
        Self { model: model.into(), tiers: tiers.into(), group: None, blocks: BTreeMap::new() }
    }

    /// Counts an event.
    pub fn apply(&mut self, event: &Event<'_>) {
        match event {
            Event::Stored(stored) if self.tiers.contains(&stored.tier) && self.counts(stored) => self.store(stored),
            Event::Removed(removed) if self.tiers.contains(&removed.tier) => {
                if removed.group.is_none_or(|group| self.group == Some(group)) {
                    for hash in removed.hashes {
                        if let Some(block) = self.blocks.get_mut(hash) {
                            let copies = &mut block.copies[removed.tier as usize];
                            *copies = copies.saturating_sub(1);
                        }
                    }
                    self.blocks.retain(|_, block| block.copies != [0; 3]);
                }
            }
            Event::Cleared => self.blocks.clear(),
            Event::Stored(_) | Event::Removed(_) => {}
        }
    }

    /// Forgets everything, as when the engine was started anew.
    pub fn clear(&mut self) {
        self.blocks.clear();
        self.group = None;
    }

    /// Copies on all tiers, by the engine's hash.
    pub fn copies(&self) -> BTreeMap<u64, u32> {
        self.blocks.iter().map(|(hash, block)| (*hash, block.copies.iter().sum())).collect()
    }

    /// The first group that keeps all blocks counts; of engines that do not say, group 0.
    fn counts(&mut self, stored: &Stored<'_>) -> bool {
        let may = match stored.attention {
            Attention::Full => true,
            Attention::Partial => false,
            Attention::Unsaid => stored.group == 0 || self.group.is_some(),
        };
        may && *self.group.get_or_insert(stored.group) == stored.group
    }

    fn store(&mut self, stored: &Stored<'_>) {
        let size = stored.block_size as usize;
        let mut parent = stored.parent;
        for (i, hash) in stored.hashes.iter().enumerate() {
            let known = self.blocks.contains_key(hash);
            if size > 0 && !known {
                let block = Block {
                    copies: [0; 3],
                    parent,
                    tokens: stored.tokens[i * size..][..size].to_vec(),
                    adapter: stored.adapter.map(str::to_owned),
                    salt: stored.salt.map(str::to_owned),
                    text: i < stored.readable,
                };
                self.blocks.insert(*hash, block);
            }
            if let Some(block) = self.blocks.get_mut(hash) {
                let copies = &mut block.copies[stored.tier as usize];
                *copies = if stored.may_repeat { (*copies).max(1) } else { *copies + 1 };
            }
            parent = Some(*hash);
        }
    }

    /// The chains of blocks that reach from a sequence's start to a block after which none is held.
    fn chains(&self) -> Vec<Vec<&Block>> {
        let inner: BTreeSet<u64> = self.blocks.values().filter_map(|block| block.parent).collect();
        let mut chains = Vec::new();
        for (hash, block) in &self.blocks {
            if inner.contains(hash) {
                continue;
            }
            let mut chain = vec![block];
            let mut above = block.parent;
            while let Some(block) = above.and_then(|hash| self.blocks.get(&hash)) {
                chain.push(block);
                above = block.parent;
            }
            if above.is_none() {
                chain.reverse();
                chains.push(chain);
            }
        }
        chains
    }

    /// What may be said of this engine: of each prefix, the tokens in it at least, and the slowest tier they are on.
    fn prefixes(&self, stride: Stride, vocabulary: &Vocabulary) -> BTreeMap<Fingerprint, (Tokens, Tier)> {
        let mut found = BTreeMap::new();
        for chain in self.chains() {
            let first = chain[0];
            let namespace = root(first.adapter.as_deref().unwrap_or(&self.model), first.salt.as_deref());
            let mut bytes = Vec::new();
            // Of each block: where its bytes and tokens end, and the slowest tier up to there.
            let (mut ends, mut tokens, mut tier) = (Vec::new(), 0, Tier::Gpu);
            for block in chain {
                if !block.text || !vocabulary.spell(&block.tokens, &mut bytes) {
                    break;
                }
                let fastest = [Tier::Gpu, Tier::Cpu, Tier::Disk].into_iter().find(|t| block.copies[*t as usize] > 0);
                tier = tier.max(fastest.unwrap_or(Tier::Disk));
                tokens += block.tokens.len() as u32;
                ends.push((bytes.len(), tokens, tier));
            }
            bytes.truncate(ends.last().map_or(0, |(end, ..)| *end));
            let mut prints = Vec::new();
            fingerprints(stride, namespace, &bytes, &mut prints);
            for (k, print) in prints.into_iter().enumerate() {
                let at = (k + 1) * stride.bytes();
                // The block in which the stride ends must be held; it counts if it ends there, too.
                let covering = ends.iter().position(|(end, ..)| *end >= at).unwrap_or(0);
                let before = covering.checked_sub(1).map_or(0, |before| ends[before].1);
                let tokens = if ends[covering].0 == at { ends[covering].1 } else { before };
                let entry = found.entry(print).or_insert((Tokens(tokens), ends[covering].2));
                *entry = (entry.0.min(Tokens(tokens)), entry.1.min(ends[covering].2));
            }
        }
        found
    }
}

/// Holds an index against what its endpoints hold by the naive count: residency, and every page of the table.
///
/// # Errors
/// Says where they differ.
pub fn compare(
    index: &Index,
    stride: Stride,
    vocabulary: &Vocabulary,
    endpoints: &[(Slot, &Residency)],
) -> Result<(), String> {
    for (slot, residency) in endpoints {
        compare_copies(index, *slot, residency)?;
    }
    compare_pages(index, stride, vocabulary, endpoints)
}

/// The first half of [`compare`]: quick enough for every step.
///
/// # Errors
/// Says where they differ.
pub fn compare_copies(index: &Index, slot: Slot, residency: &Residency) -> Result<(), String> {
    let (found, expected): (BTreeMap<u64, u32>, _) = (index.resident(slot).collect(), residency.copies());
    if found == expected {
        return Ok(());
    }
    let hash = found.keys().chain(expected.keys()).find(|hash| found.get(hash) != expected.get(hash));
    let of = |copies: &BTreeMap<u64, u32>| hash.and_then(|hash| copies.get(hash)).copied().unwrap_or(0);
    let (has, counted) = (of(&found), of(&expected));
    Err(format!("endpoint {slot:?}: the index has {has} copies of block {hash:x?}, counted were {counted}"))
}

fn compare_pages(
    index: &Index,
    stride: Stride,
    vocabulary: &Vocabulary,
    endpoints: &[(Slot, &Residency)],
) -> Result<(), String> {
    let mut entries: BTreeMap<Fingerprint, PageEntry> = BTreeMap::new();
    for (slot, residency) in endpoints {
        for (fingerprint, (tokens, tier)) in residency.prefixes(stride, vocabulary) {
            let entry = entries.entry(fingerprint).or_insert(PageEntry { fingerprint, tokens, holders: Vec::new() });
            entry.tokens = entry.tokens.min(tokens);
            entry.holders.push((*slot, tier));
        }
    }
    let table = index.table();
    if table.len() != entries.len() {
        return Err(format!("the table has {} entries, expected were {}", table.len(), entries.len()));
    }
    let mut pages = vec![Vec::new(); 1 << table.bits()];
    for (fingerprint, entry) in entries {
        pages[page_of(fingerprint, table.bits()) as usize].push(entry);
    }
    for (page, entries) in pages.iter().enumerate() {
        if index.page(page as u32) != encode_page(table.epoch(), table.version(), entries) {
            return Err(format!("page {page} differs from {entries:?}"));
        }
    }
    Ok(())
}
