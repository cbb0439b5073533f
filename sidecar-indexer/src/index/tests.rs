//! The index against a model that recomputes everything from the definition after every step.
use crate::events::{Attention, Event, Removed, Stored};
use crate::index::{Holdings, Index, Options, RestoreError};
use crate::tokens::Vocabulary;
use affinity::page::{PageEntry, PageView, encode_page, page_of};
use affinity::prompt::ids_namespace;
use affinity::rows::merge;
use affinity::{Fingerprint, Slot, Stride, Tier, Tokens, fingerprints, root};
use proptest::prelude::*;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

pub(super) const STRIDE: u32 = 8;
/// What tokens spell; several spellings of the same bytes, one of nothing. Token 6 is unknown.
pub(super) const SPELLING: [&str; 6] = ["a", "b", "ab", "", "abababababab", "ba"];
pub(super) const ENDPOINTS: [&str; 4] = ["m", "m", "m", "n"];

pub(super) fn vocabulary() -> Arc<Vocabulary> {
    let added: serde_json::Map<_, _> = SPELLING
        .iter()
        .enumerate()
        .map(|(id, text)| (id.to_string(), serde_json::json!({ "content": text })))
        .collect();
    let config = serde_json::json!({ "added_tokens_decoder": added });
    Arc::new(Vocabulary::from_tiktoken("", &config, false).unwrap())
}

/// A block in its place: all tokens up to its end, and how they are cut.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Block {
    adapter: Option<&'static str>,
    salt: Option<&'static str>,
    size: usize,
    tokens: Vec<u32>,
}

impl Block {
    fn hash(&self, endpoint: usize) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self, endpoint).hash(&mut hasher);
        hasher.finish()
    }

    fn parent(&self) -> Option<Block> {
        let tokens = self.tokens[..self.tokens.len() - self.size].to_vec();
        (!tokens.is_empty()).then(|| Block { tokens, ..self.clone() })
    }

    fn bytes(&self) -> Option<Vec<u8>> {
        let texts = self.tokens.iter().map(|t| SPELLING.get(*t as usize).copied()).collect::<Option<Vec<_>>>()?;
        Some(texts.concat().into_bytes())
    }
}

#[derive(Default)]
pub(super) struct Model {
    pub(super) blocks: [BTreeMap<Block, [u32; 3]>; ENDPOINTS.len()],
}

fn tier_of(copies: &[u32; 3]) -> Option<Tier> {
    [Tier::Gpu, Tier::Cpu, Tier::Disk].into_iter().zip(copies).find(|(_, n)| **n > 0).map(|(tier, _)| tier)
}

/// A fingerprint that an endpoint holds by way of one of its blocks.
struct Source {
    fingerprint: Fingerprint,
    slot: Slot,
    tier: Tier,
    tokens: Tokens,
}

/// For each fingerprint and holder: tokens at most, and the fastest tier.
type Most = BTreeMap<(Fingerprint, Slot), (Tokens, Tier)>;

impl Model {
    /// All that the index may say at most.
    fn most(&self) -> Most {
        let mut most = Most::new();
        for Source { fingerprint, slot, tier, tokens } in self.sources() {
            let there = most.entry((fingerprint, slot)).or_insert((tokens, tier));
            *there = (there.0.max(tokens), there.1.min(tier));
        }
        most
    }

    pub(super) fn residency(&self, endpoint: usize) -> BTreeMap<u64, u32> {
        let copies = |(block, copies): (&Block, &[u32; 3])| (block.hash(endpoint), copies.iter().sum());
        self.blocks[endpoint].iter().map(copies).collect()
    }

    pub(super) fn entries(&self) -> Vec<PageEntry> {
        let mut table: BTreeMap<Fingerprint, (Tokens, BTreeMap<Slot, Tier>)> = BTreeMap::new();
        for Source { fingerprint, slot, tier, tokens } in self.sources() {
            let entry = table.entry(fingerprint).or_insert((Tokens(u32::MAX), BTreeMap::new()));
            entry.0 = entry.0.min(tokens);
            entry.1.entry(slot).and_modify(|t| *t = (*t).min(tier)).or_insert(tier);
        }
        let entry = |(fingerprint, (tokens, holders)): (Fingerprint, (Tokens, BTreeMap<Slot, Tier>))| PageEntry {
            fingerprint,
            tokens,
            holders: holders.into_iter().collect(),
        };
        table.into_iter().map(entry).collect()
    }

    fn sources(&self) -> Vec<Source> {
        let mut sources = Vec::new();
        for (endpoint, blocks) in self.blocks.iter().enumerate() {
            let slot = Slot(endpoint as u16);
            for block in blocks.keys() {
                // Resident up to the root, and on which tier.
                let mut chain = Some(Tier::Gpu);
                let mut above = Some(block.clone());
                while let Some(b) = above {
                    let tier = blocks.get(&b).and_then(tier_of);
                    chain = chain.zip(tier).map(|(a, b)| a.max(b));
                    above = b.parent();
                }
                let (Some(tier), Some(bytes)) = (chain, block.bytes()) else { continue };
                let before = block.parent().map_or(Vec::new(), |p| p.bytes().unwrap());
                let namespace = root(block.adapter.unwrap_or(ENDPOINTS[endpoint]), block.salt);
                let mut prints = Vec::new();
                fingerprints(Stride::new(STRIDE).unwrap(), namespace, &bytes, &mut prints);
                for (k, fingerprint) in (1..).zip(prints) {
                    let at = k * STRIDE as usize;
                    if at <= before.len() {
                        continue;
                    }
                    let whole = block.tokens.len() - if at == bytes.len() { 0 } else { block.size };
                    sources.push(Source { fingerprint, slot, tier, tokens: Tokens(whole as u32) });
                }
            }
        }
        sources
    }
}

#[derive(Clone, Debug)]
pub(super) enum Op {
    /// Store these blocks of a sequence, from the `from`-th on.
    Store {
        endpoint: usize,
        last: Block,
        from: usize,
        tier: Tier,
    },
    /// Say that blocks are on this tier too, without their tokens.
    Offload {
        endpoint: usize,
        pick: prop::sample::Index,
        tier: Tier,
    },
    /// Remove a copy of a block that is (nearly always) there.
    Remove {
        endpoint: usize,
        pick: prop::sample::Index,
        tier: Tier,
    },
    Clear {
        endpoint: usize,
    },
    /// Take a snapshot and put it back.
    Restore {
        endpoint: usize,
    },
}

impl Op {
    pub(super) fn endpoint(&self) -> usize {
        match self {
            Self::Store { endpoint, .. }
            | Self::Offload { endpoint, .. }
            | Self::Remove { endpoint, .. }
            | Self::Clear { endpoint }
            | Self::Restore { endpoint } => *endpoint,
        }
    }
}

pub(super) fn op() -> impl Strategy<Value = Op> {
    let endpoint = 0..ENDPOINTS.len();
    let tier = prop_oneof![4 => Just(Tier::Gpu), 1 => Just(Tier::Cpu), 1 => Just(Tier::Disk)];
    let token = prop_oneof![20 => 0u32..6, 1 => Just(6u32)];
    // Few different tokens at each place, so that sequences share prefixes.
    let block = (
        prop_oneof![4 => Just(None), 1 => Just(Some("ada"))],
        prop_oneof![4 => Just(None), 1 => Just(Some("salt"))],
        prop_oneof![Just(2usize), Just(4)],
        1usize..6,
        proptest::collection::vec(prop_oneof![3 => Just(2u32), 2 => token], 24),
    )
        .prop_map(|(adapter, salt, size, blocks, mut tokens)| {
            tokens.truncate(size * blocks);
            Block { adapter, salt, size, tokens }
        });
    let pick = any::<prop::sample::Index>;
    prop_oneof![
        6 => (endpoint.clone(), block, 0usize..3, tier.clone())
            .prop_map(|(endpoint, last, from, tier)| Op::Store { endpoint, last, from, tier }),
        1 => (endpoint.clone(), pick(), tier.clone())
            .prop_map(|(endpoint, pick, tier)| Op::Offload { endpoint, pick, tier }),
        8 => (endpoint.clone(), pick(), tier).prop_map(|(endpoint, pick, tier)| Op::Remove { endpoint, pick, tier }),
        1 => endpoint.clone().prop_map(|endpoint| Op::Clear { endpoint }),
        1 => endpoint.prop_map(|endpoint| Op::Restore { endpoint }),
    ]
}

pub(super) fn stored(hashes: &[u64], tier: Tier) -> Stored<'_> {
    Stored {
        readable: hashes.len(),
        hashes,
        parent: None,
        tokens: &[],
        block_size: 0,
        tier,
        group: 0,
        attention: Attention::Full,
        adapter: None,
        salt: None,
        may_repeat: false,
    }
}

/// Applies an operation to both.
pub(super) fn run(op: &Op, index: &mut Index, model: &mut Model) {
    let picked = |endpoint: usize, pick: &prop::sample::Index, model: &Model| {
        let blocks = &model.blocks[endpoint];
        (!blocks.is_empty()).then(|| blocks.keys().nth(pick.index(blocks.len())).unwrap().clone())
    };
    match op {
        Op::Store { endpoint, last, from, tier } => {
            let all: Vec<Block> = (1..=last.tokens.len() / last.size)
                .map(|n| Block { tokens: last.tokens[..n * last.size].to_vec(), ..last.clone() })
                .collect();
            let from = (*from).min(all.len() - 1);
            let blocks = &all[from..];
            let hashes: Vec<u64> = blocks.iter().map(|b| b.hash(*endpoint)).collect();
            let event = Stored {
                parent: blocks[0].parent().map(|p| p.hash(*endpoint)),
                tokens: &last.tokens[from * last.size..],
                block_size: last.size as u32,
                adapter: last.adapter,
                salt: last.salt,
                ..stored(&hashes, *tier)
            };
            index.apply(Slot(*endpoint as u16), &Event::Stored(event));
            for block in blocks {
                model.blocks[*endpoint].entry(block.clone()).or_default()[*tier as usize] += 1;
            }
        }
        Op::Offload { endpoint, pick, tier } => {
            let Some(block) = picked(*endpoint, pick, model) else { return };
            let hashes = [block.hash(*endpoint)];
            let event = stored(&hashes, *tier);
            index.apply(Slot(*endpoint as u16), &Event::Stored(event));
            model.blocks[*endpoint].get_mut(&block).unwrap()[*tier as usize] += 1;
        }
        Op::Remove { endpoint, pick, tier } => {
            let Some(block) = picked(*endpoint, pick, model) else { return };
            let removed = Removed { hashes: &[block.hash(*endpoint)], tier: *tier, group: Some(0) };
            index.apply(Slot(*endpoint as u16), &Event::Removed(removed));
            let copies = model.blocks[*endpoint].get_mut(&block).unwrap();
            copies[*tier as usize] = copies[*tier as usize].saturating_sub(1);
            if *copies == [0; 3] {
                model.blocks[*endpoint].remove(&block);
            }
        }
        Op::Restore { endpoint } => {
            let slot = Slot(*endpoint as u16);
            let holdings = through_msgpack(&index.snapshot(slot).unwrap());
            match index.restore(slot, holdings.clone()) {
                Ok(()) => assert_eq!(index.resident(slot).count(), holdings.len()),
                Err(error) => {
                    // Blocks that are not held count as well.
                    assert!(error == RestoreError::TooLarge && index.options.max_blocks < 100);
                    model.blocks[*endpoint].clear();
                }
            }
        }
        Op::Clear { endpoint } => {
            index.apply(Slot(*endpoint as u16), &Event::Cleared);
            model.blocks[*endpoint].clear();
        }
    }
}

pub(super) fn through_msgpack(holdings: &Holdings) -> Holdings {
    rmp_serde::from_slice(&rmp_serde::to_vec(holdings).unwrap()).unwrap()
}

pub(super) fn all_entries(index: &Index) -> Vec<PageEntry> {
    (0..1u32 << index.table().bits()).flat_map(|page| index.entries(page)).collect()
}

pub(super) fn new_index(max_blocks: usize) -> Index {
    let options =
        Options { stride: Stride::new(STRIDE).unwrap(), max_blocks, tiers: vec![Tier::Gpu, Tier::Cpu, Tier::Disk] };
    let (mut index, vocabulary) = (Index::new(options, 1), vocabulary());
    for (endpoint, name) in ENDPOINTS.iter().enumerate() {
        index.add(Slot(endpoint as u16), name, &vocabulary, false);
    }
    index
}

pub(super) fn residency(index: &Index, endpoint: usize) -> BTreeMap<u64, u32> {
    index.resident(Slot(endpoint as u16)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn the_table_is_what_the_definition_says_after_every_step(ops in proptest::collection::vec(op(), 1..70)) {
        let (mut index, mut model) = (new_index(100_000), Model::default());
        let mut before: HashMap<Fingerprint, PageEntry> = HashMap::new();
        let mut pages: Vec<Vec<u8>> = Vec::new();
        for op in &ops {
            let version = index.table().version();
            run(op, &mut index, &mut model);
            index.check();
            let (entries, expected) = (all_entries(&index), model.entries());
            prop_assert_eq!(&entries, &expected, "after {:?}", op);
            prop_assert_eq!(index.table().len(), entries.len());
            for endpoint in 0..ENDPOINTS.len() {
                prop_assert_eq!(residency(&index, endpoint), model.residency(endpoint));
            }
            // What is written are these entries; a page that reads differently has a new version, and rows make the old one
            // the new one.
            let changed = index.table().keys_changed_since(version);
            for page in 0..1 << index.table().bits() {
                prop_assert_eq!(index.page(page), encode_page(index.table().epoch(), index.table().version(), &index.entries(page)));
                if let (Some(changed), Some(old)) = (&changed, pages.get(page as usize)) {
                    let keys: Vec<u32> = changed.iter().filter(|(of, _)| *of == page).map(|(_, key)| *key).collect();
                    let (old, new) = (PageView::parse(old).unwrap(), index.page(page));
                    let merged = merge(&old, &index.rows(page, keys.iter().copied()), version + 1).unwrap();
                    prop_assert_eq!(merged.len(), new.len());
                    let (merged, new) = (PageView::parse(&merged).unwrap(), PageView::parse(&new).unwrap());
                    let said = |page: &PageView<'_>, fingerprint| {
                        page.get(fingerprint).map(|found| (found.tokens, found.holders().collect::<Vec<_>>()))
                    };
                    for entry in index.entries(page) {
                        prop_assert_eq!(said(&merged, entry.fingerprint), said(&new, entry.fingerprint));
                    }
                }
            }
            pages = (0..1 << index.table().bits()).map(|page| index.page(page)).collect();
            let now: HashMap<_, _> = entries.into_iter().map(|e| (e.fingerprint, e)).collect();
            let changed: Vec<u32> = index.table().changed_since(version).into_iter().map(|(_, page)| page).collect();
            for fingerprint in before.keys().chain(now.keys()) {
                if before.get(fingerprint) != now.get(fingerprint) {
                    prop_assert!(changed.contains(&page_of(*fingerprint, index.table().bits())));
                }
            }
            before = now;
        }
        // Another indexer gets everything, and then holds the same.
        let mut other = new_index(100_000);
        for endpoint in 0..ENDPOINTS.len() {
            let slot = Slot(endpoint as u16);
            other.restore(slot, through_msgpack(&index.snapshot(slot).unwrap())).unwrap();
            other.check();
        }
        prop_assert_eq!(all_entries(&other), all_entries(&index));
        prop_assert_eq!(other.stats(), index.stats());
        for endpoint in 0..ENDPOINTS.len() {
            index.retire(Slot(endpoint as u16));
        }
        prop_assert!(index.table().is_empty());
        index.check();
        prop_assert_eq!(index.stats(), crate::index::Stats::default());
    }

    #[test]
    fn a_small_index_promises_nothing_that_is_not_held(
        ops in proptest::collection::vec(op(), 1..70), max_blocks in 1usize..40
    ) {
        let (mut index, mut model) = (new_index(max_blocks), Model::default());
        for op in &ops {
            run(op, &mut index, &mut model);
            index.check();
            prop_assert!(index.stats().blocks <= max_blocks, "{:?}", index.stats());
            let most = model.most();
            for entry in all_entries(&index) {
                for (slot, tier) in entry.holders {
                    let true_of = most.get(&(entry.fingerprint, slot)).copied();
                    let fits = true_of.is_some_and(|(tokens, best)| entry.tokens <= tokens && tier >= best);
                    prop_assert!(fits, "{:?} {:?} {:?}, {:?}", slot, entry.tokens, tier, true_of);
                }
            }
            for endpoint in 0..ENDPOINTS.len() {
                let model = model.residency(endpoint);
                for (hash, copies) in residency(&index, endpoint) {
                    prop_assert!(model.get(&hash).is_some_and(|n| copies <= *n));
                }
            }
        }
    }
}

pub(super) fn small_index(max_blocks: usize) -> Index {
    let options = Options { stride: Stride::new(STRIDE).unwrap(), max_blocks, tiers: vec![Tier::Gpu] };
    let mut index = Index::new(options, 1);
    index.add(Slot(0), "m", &vocabulary(), false);
    index
}

/// One block of 12 bytes for each hash.
pub(super) fn sequence(hashes: &[u64], parent: Option<u64>) -> Stored<'_> {
    const TOKENS: [u32; 100] = [4; 100];
    Stored { parent, tokens: &TOKENS[..hashes.len()], block_size: 1, ..stored(hashes, Tier::Gpu) }
}

fn remove(hashes: &[u64], group: Option<u32>) -> Event<'_> {
    Event::Removed(Removed { hashes, tier: Tier::Gpu, group })
}

#[test]
fn a_conversation_longer_than_the_index_is_held_up_to_there() {
    let mut index = small_index(10);
    let hashes: Vec<u64> = (0..30).collect();
    index.apply(Slot(0), &Event::Stored(sequence(&hashes, None)));
    index.check();
    assert_eq!((index.stats().blocks, index.stats().evicted), (10, 20));
    index.apply(Slot(0), &Event::Cleared);
    index.apply(Slot(0), &Event::Stored(sequence(&hashes[..5], None)));
    assert_eq!(index.stats().blocks, 5);
}

#[test]
fn what_was_not_used_for_the_longest_time_goes_first_and_from_its_end() {
    let mut index = small_index(300);
    let prefix: Vec<u64> = (0..5).collect();
    index.apply(Slot(0), &Event::Stored(sequence(&prefix, None)));
    let conversation = |index: &mut Index, n: u64| {
        let hashes: Vec<u64> = (n * 100..n * 100 + 90).collect();
        // Tokens of its own, so that contents differ.
        let tokens: Vec<u32> = (0..90).map(|i| if (n >> (i % 8)) & 1 == 1 { 4 } else { 0 }).collect();
        index.apply(Slot(0), &Event::Stored(Stored { tokens: &tokens, ..sequence(&hashes, Some(4)) }));
        index.check();
    };
    let held = |index: &Index, n: u64| index.resident(Slot(0)).filter(|(hash, _)| hash / 100 == n).count();
    for n in 1..4 {
        conversation(&mut index, n);
    }
    // The first one goes on: now the second is the coldest.
    index.apply(Slot(0), &Event::Stored(sequence(&[190, 191], Some(189))));
    conversation(&mut index, 4);
    assert_eq!((held(&index, 0), held(&index, 1), held(&index, 3), held(&index, 4)), (5, 92, 90, 90));
    assert!(held(&index, 2) < 90);
    assert!(index.stats().blocks <= 300 && index.stats().evicted > 0, "{:?}", index.stats());
    // What is left of the second is its beginning.
    let first = index.resident(Slot(0)).map(|(hash, _)| hash).filter(|hash| hash / 100 == 2).max();
    assert_eq!(first.map_or(0, |hash| hash - 199), held(&index, 2) as u64);
}

#[test]
fn blocks_outside_the_tree_have_their_share() {
    let mut index = small_index(10_000);
    for n in 0..2_000u64 {
        let hashes: Vec<u64> = (n * 10 + 1_000_000..n * 10 + 1_000_010).collect();
        index.apply(Slot(0), &Event::Stored(Stored { readable: 0, ..sequence(&hashes, None) }));
        let hashes: Vec<u64> = (n * 10..n * 10 + 10).collect();
        index.apply(Slot(0), &Event::Stored(sequence(&hashes, Some(u64::MAX - n))));
        index.check();
    }
    let stats = index.stats();
    assert!(stats.unmatchable <= 5_010 && stats.orphans <= 10_000 && stats.blocks <= 10_000, "{stats:?}");
    assert_eq!(stats.blocks as u64 + stats.evicted, 40_000);
    let hashes: Vec<u64> = (5_000_000..5_000_100).collect();
    index.apply(Slot(0), &Event::Stored(sequence(&hashes, None)));
    assert_eq!(index.stats().nodes, 100);
}

#[test]
fn a_block_stored_twice_stays_until_it_is_removed_twice() {
    let mut index = small_index(100);
    index.apply(Slot(0), &Event::Stored(sequence(&[0, 1, 2], None)));
    index.apply(Slot(0), &Event::Stored(sequence(&[2], Some(1))));
    let full = index.table().len();
    index.apply(Slot(0), &remove(&[2], None));
    assert_eq!(index.table().len(), full);
    index.apply(Slot(0), &remove(&[2], None));
    assert!(index.table().len() < full);
    index.apply(Slot(0), &remove(&[2], None));
    index.apply(Slot(0), &Event::Stored(sequence(&[2], Some(1))));
    assert_eq!(index.table().len(), full, "a removal too many does not count against a later store");
}

#[test]
fn removals_in_another_cache_group_do_not_count() {
    let mut index = small_index(100);
    let window = Stored { group: 0, attention: Attention::Partial, ..sequence(&[0, 1, 2], None) };
    index.apply(Slot(0), &Event::Stored(window));
    assert_eq!(index.stats().blocks, 0, "a window's blocks say nothing of a prefix");
    index.apply(Slot(0), &Event::Stored(Stored { group: 1, ..sequence(&[0, 1, 2], None) }));
    index.apply(Slot(0), &Event::Stored(Stored { group: 2, ..sequence(&[0, 1, 2], None) }));
    assert_eq!(index.resident(Slot(0)).map(|(_, n)| n).collect::<Vec<_>>(), [1, 1, 1]);
    index.apply(Slot(0), &remove(&[0, 1], Some(0)));
    assert_eq!(index.stats().blocks, 3);
    index.apply(Slot(0), &remove(&[0, 1], Some(1)));
    assert_eq!(index.stats().blocks, 1);
}

#[test]
fn tiers_that_are_not_asked_for_do_not_count() {
    let mut index = small_index(100);
    index.apply(Slot(0), &Event::Stored(Stored { tier: Tier::Cpu, ..sequence(&[0, 1, 2], None) }));
    assert_eq!(index.stats().blocks, 0);
}

#[test]
fn text_up_to_an_image_is_indexed_and_nothing_after_it() {
    let mut index = small_index(100);
    index.apply(Slot(0), &Event::Stored(Stored { readable: 2, ..sequence(&[0, 1, 2, 3], None) }));
    index.apply(Slot(0), &Event::Stored(sequence(&[4, 5], Some(3))));
    assert_eq!(index.table().len(), 24 / STRIDE as usize);
    assert_eq!((index.stats().unmatchable, index.stats().orphans), (4, 0));
}

#[test]
fn what_is_held_can_be_found_by_token_ids_too() {
    let options = Options { stride: Stride::new(STRIDE).unwrap(), max_blocks: 100, tiers: vec![Tier::Gpu] };
    let mut index = Index::new(options, 1);
    index.add(Slot(0), "m", &vocabulary(), true);
    index.apply(Slot(0), &Event::Stored(sequence(&[0, 1, 2, 3], None)));
    let found = |namespace: &str, bytes: &[u8]| {
        let mut prefixes = Vec::new();
        fingerprints(Stride::new(STRIDE).unwrap(), root(namespace, None), bytes, &mut prefixes);
        let entries = all_entries(&index);
        prefixes.iter().filter_map(|prefix| entries.iter().find(|e| e.fingerprint == *prefix)?.holders.first()).count()
    };
    let ids = [4u32; 4].map(u32::to_le_bytes).concat();
    assert_eq!(found(&ids_namespace("m"), &ids), 16 / STRIDE as usize);
    assert_eq!(found("m", &ids), 0);
    let mut text = Vec::new();
    assert!(vocabulary().spell(&[4; 4], &mut text));
    assert_eq!(found("m", &text), 48 / STRIDE as usize);
    index.apply(Slot(0), &remove(&[0, 1, 2, 3], None));
    assert!(index.table().is_empty());
}

#[test]
fn an_orphan_of_more_tokens_than_orphans_may_have_is_forgotten_at_once() {
    let options = Options { stride: Stride::new(8).unwrap(), max_blocks: 10, tiers: vec![Tier::Gpu] };
    let mut index = Index::new(options, 1);
    index.add(Slot(0), "m", &vocabulary(), false);
    let tokens = vec![0; 5000];
    let event = Stored { parent: Some(6), tokens: &tokens, block_size: 5000, ..stored(&[7], Tier::Gpu) };
    index.apply(Slot(0), &Event::Stored(event));
    index.check();
    assert_eq!(index.stats().blocks, 0);
}
