//! Any bytes as a message of events, through decoder and index.

#![no_main]

use affinity::page::PageView;
use affinity::{Slot, Stride, Tier};
use libfuzzer_sys::fuzz_target;
use warmpath_fuzz::{recorded, vocabulary, within, write_seeds};
use warmpath_indexer::events::{Event, decode};
use warmpath_indexer::index::{Index, Options};

const MAX_BLOCKS: usize = 256;

fuzz_target!(
    init: {
        vocabulary();
        write_seeds(recorded());
    },
    |payload: &[u8]| {
        // A hash takes 8 bytes of memory and 1 of the message at least, a record about 80 and 16; vectors grow twofold.
        let batch = within(4096 + 64 * payload.len(), || decode(payload));
        let Ok(batch) = batch else { return };
        if batch.is_empty() {
            return;
        }
        for event in batch.events() {
            if let Event::Stored(stored) = event {
                assert_eq!(stored.tokens.len(), stored.hashes.len() * stored.block_size as usize);
                assert!(stored.readable <= stored.hashes.len());
            }
        }
        let stride = Stride::default();
        let tiers = vec![Tier::Gpu, Tier::Cpu];
        let mut index = Index::new(Options { stride, max_blocks: MAX_BLOCKS, tiers }, 1);
        index.add(Slot(0), "tiny", vocabulary(), true);
        index.add(Slot(1), "tiny", vocabulary(), false);
        // Twice, so that what is removed below was stored before, and stored blocks are stored again.
        within((1 << 20) + 300 * payload.len(), || {
            for slot in [Slot(0), Slot(1), Slot(0)] {
                batch.events().for_each(|event| index.apply(slot, &event));
                index.settle();
            }
        });
        assert!(index.stats().blocks <= MAX_BLOCKS);
        for page in 0..1 << index.table().bits() {
            let bytes = index.page(page);
            let page = PageView::parse(&bytes).expect("a page can be read");
            assert!(page.len() <= index.table().len());
        }
        for slot in [Slot(0), Slot(1)] {
            index.clear(slot);
        }
        assert!(index.table().is_empty());
        assert_eq!(index.stats().blocks, 0);
    }
);
