//! Any bytes as a snapshot of a peer or of the store, put back into an index.

#![no_main]

use affinity::page::PageView;
use affinity::{Slot, Stride, Tier};
use libfuzzer_sys::fuzz_target;
use warmpath_fuzz::{recorded, vocabulary, within, write_seeds};
use warmpath_indexer::company::Offer;
use warmpath_indexer::endpoints::Key;
use warmpath_indexer::events::{Event, Removed, decode};
use warmpath_indexer::index::{Holdings, Index, Options, RestoreError};
use warmpath_indexer::stream::{Checkpoint, Position};

const MAX_BLOCKS: usize = 256;

fn index() -> Index {
    let tiers = vec![Tier::Gpu, Tier::Cpu];
    let mut index = Index::new(Options { stride: Stride::default(), max_blocks: MAX_BLOCKS, tiers }, 1);
    index.add(Slot(0), "tiny", vocabulary(), true);
    index
}

fn key() -> Key {
    Key { address: "10.0.0.1:8000".parse().expect("an address"), rank: None }
}

/// What an index makes of recorded messages.
fn seeds() -> Vec<Vec<u8>> {
    let mut index = index();
    let mut seed = |payload: &Vec<u8>| {
        decode(payload).ok()?.events().for_each(|event| index.apply(Slot(0), &event));
        let checkpoint = Checkpoint { position: Position { next: 1, last: 1.0 }, partial: false };
        Offer { checkpoint, holdings: index.snapshot(Slot(0))? }.encode(key()).ok()
    };
    recorded().iter().filter_map(&mut seed).collect()
}

fuzz_target!(
    init: write_seeds(seeds()),
    |bytes: &[u8]| {
        // A list may be given room for 1 MiB before it is read, three deep; a number of one byte takes eight.
        let Ok(offer) = within((4 << 20) + 100 * bytes.len(), || Offer::decode(bytes, key())) else { return };
        let (mut index, blocks) = (index(), offer.holdings.len());
        let restored = within((1 << 20) + 300 * bytes.len(), || restore(&mut index, offer.holdings));
        let stats = index.stats();
        assert!(stats.blocks <= MAX_BLOCKS && stats.nodes <= MAX_BLOCKS);
        assert_eq!(stats.blocks, if restored.is_ok() { blocks } else { 0 });
        index.settle();
        for page in 0..1 << index.table().bits() {
            assert!(PageView::parse(&index.page(page)).is_some());
        }
        if restored.is_ok() {
            let again = index.snapshot(Slot(0)).expect("it is there");
            assert_eq!(restore(&mut index, again), Ok(()), "what was put back can be put back");
        }
        // Whatever it holds can be removed, one copy after the other.
        loop {
            let Some((hash, _)) = index.resident(Slot(0)).next() else { break };
            let before = copies(&index);
            for tier in [Tier::Gpu, Tier::Cpu] {
                index.apply(Slot(0), &Event::Removed(Removed { hashes: &[hash], tier, group: None }));
            }
            assert!(copies(&index) < before);
        }
        index.clear(Slot(0));
        assert!(index.table().is_empty() && index.stats().blocks == 0);
    }
);

fn restore(index: &mut Index, holdings: Holdings) -> Result<(), RestoreError> {
    index.clear(Slot(0));
    index.put_aside(Slot(0), holdings);
    index.restore_aside(Slot(0))?;
    while index.restore_more(Slot(0), 10)? {}
    Ok(())
}

fn copies(index: &Index) -> u64 {
    index.resident(Slot(0)).map(|(_, copies)| u64::from(copies)).sum()
}
