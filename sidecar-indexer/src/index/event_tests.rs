//! Taking in an event as a whole against taking in its blocks one by one.

use super::tests::{SPELLING, STRIDE, all_entries, residency, stored, vocabulary};
use super::{Index, Options};
use crate::events::{Event, Removed, Stored};
use affinity::{Slot, Stride, Tier, fingerprints, root};
use proptest::prelude::*;
use std::collections::BTreeSet;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// Also where it is spelled in several goes, or a block is larger than one.
    #[test]
    fn an_event_is_its_blocks_one_by_one(
        size in prop_oneof![Just(1usize), Just(3), Just(16), Just(333), Just(512), Just(700), Just(1024), Just(1025), Just(1500)],
        count in 1usize..90,
        seed in any::<u64>(),
        unknown in proptest::collection::vec(any::<prop::sample::Index>(), 0..3),
        duplicates in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..4),
        held in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
        readable in any::<prop::sample::Index>(),
        all_readable in any::<bool>(),
        ids in any::<bool>(),
        may_repeat in any::<bool>(),
        orphaned in any::<bool>(),
    ) {
        let count = if size == 1 { count * 40 } else if size > 100 { count % 8 + 1 } else { count * 3 };
        let mut x = seed | 1;
        let mut tokens: Vec<u32> = (0..size * count).map(|_| { x ^= x << 13; x ^= x >> 7; x ^= x << 17; (x % 6) as u32 }).collect();
        for at in &unknown { let at = at.index(tokens.len()); tokens[at] = 6; }
        let mut hashes: Vec<u64> = (0..count as u64).map(|i| 1000 + i).collect();
        for (a, b) in &duplicates { let (a, b) = (a.index(count), b.index(count)); hashes[a] = hashes[b]; }
        let readable = if all_readable { count } else { readable.index(count + 1) };
        let make = || {
            let options = Options { stride: Stride::new(STRIDE).unwrap(), max_blocks: 1_000_000, tiers: vec![Tier::Gpu, Tier::Cpu] };
            let mut index = Index::new(options, 1);
            index.add(Slot(0), "m", &vocabulary(), ids);
            // Some blocks are there, as first blocks of something else.
            for at in &held {
                let at = at.index(count);
                let event = Stored { tokens: &tokens[at * size..(at + 1) * size], block_size: size as u32, ..stored(&hashes[at..=at], Tier::Cpu) };
                index.apply(Slot(0), &Event::Stored(event));
            }
            index
        };
        let parent = orphaned.then_some(7u64);
        let (mut whole, mut single) = (make(), make());
        let event = Stored { tokens: &tokens, block_size: size as u32, readable, may_repeat, parent, ..stored(&hashes, Tier::Gpu) };
        whole.apply(Slot(0), &Event::Stored(event));
        for i in 0..count {
            let parent = if i == 0 { parent } else { Some(hashes[i - 1]) };
            let event = Stored {
                tokens: &tokens[i * size..(i + 1) * size], block_size: size as u32, readable: usize::from(i < readable), may_repeat, parent,
                ..stored(&hashes[i..=i], Tier::Gpu)
            };
            single.apply(Slot(0), &Event::Stored(event));
        }
        let both = |whole: &mut Index, single: &mut Index| {
            whole.check();
            single.check();
            prop_assert_eq!(all_entries(whole), all_entries(single));
            prop_assert_eq!(residency(whole, 0), residency(single, 0));
            let (mut a, mut b) = (whole.stats(), single.stats());
            (a.evicted, b.evicted) = (0, 0);
            prop_assert_eq!(a, b);
            Ok(())
        };
        both(&mut whole, &mut single)?;
        if orphaned {
            let tokens = vec![1; size];
            let event = Stored { tokens: &tokens, block_size: size as u32, ..stored(&[7], Tier::Gpu) };
            whole.apply(Slot(0), &Event::Stored(event));
            single.apply(Slot(0), &Event::Stored(event));
            both(&mut whole, &mut single)?;
        }
        // Other spelling by hand: the longest chain's fingerprints.
        if unknown.is_empty() && duplicates.is_empty() && held.is_empty() && readable == count && !orphaned && !ids && size * count * 12 < 60_000 {
            let bytes: Vec<u8> = tokens.iter().flat_map(|t| SPELLING[*t as usize].bytes()).collect();
            let mut prints = Vec::new();
            fingerprints(Stride::new(STRIDE).unwrap(), root("m", None), &bytes, &mut prints);
            let entries: BTreeSet<u64> = all_entries(&whole).iter().map(|e| e.fingerprint.0).collect();
            prop_assert_eq!(entries, prints.iter().map(|p| p.0).collect());
        }
        for hash in &hashes {
            for index in [&mut whole, &mut single] {
                index.apply(Slot(0), &Event::Removed(Removed { hashes: &[*hash], tier: Tier::Gpu, group: None }));
            }
        }
        both(&mut whole, &mut single)?;
        whole.clear(Slot(0));
        prop_assert!(whole.table().is_empty());
    }
}
