//! The table's size in shared data.

use affinity::{Slot, Stride, Tier};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use warmpath_indexer::events::decode;
use warmpath_indexer::index::{Index, Options};
use warmpath_tests::index_bench::text::Text;
use warmpath_tests::index_bench::work::{BLOCK, frame};

/// 365 GB of DeepSeek-R1's KV cache.
const TOKENS: usize = 5_200_000;
/// Engines that hold them.
const ENGINES: u16 = 8;
/// Blocks of a conversation: 8192 tokens, the first quarter of which is what its tenant's others begin with.
const CONVERSATION: usize = 512;
const PREAMBLE: usize = 128;
/// Conversations of a tenant.
const TENANT: usize = 16;
/// A page's key in shared data, as `filter/src/view.rs` makes it.
const KEY: &str = "warmpath/default/page/0000";

pub struct Size {
    /// Tokens held, those on several engines counted once.
    pub tokens: usize,
    pub entries: usize,
    pub pages: usize,
    /// All keys and values.
    pub bytes: usize,
    pub keys: usize,
}

/// Has engines store prompts until there are as many different tokens. `shared`: prompts of a tenant begin alike, and
/// are spread over three engines; otherwise each is unlike all others.
pub fn measure(stride: u32, shared: bool) -> Size {
    let stride = Stride::new(stride).expect("a valid stride");
    let mut index = Index::new(Options { stride, max_blocks: 1 << 24, tiers: vec![Tier::Gpu] }, 7);
    for slot in 0..ENGINES {
        index.add(Slot(slot), "deepseek-r1", Text::get().vocabulary(), false);
    }
    let mut random = StdRng::seed_from_u64(7);
    let (mut tokens, mut conversation) = (0, 0);
    while tokens < TOKENS {
        let tenant = conversation / TENANT;
        let preamble = if shared { PREAMBLE } else { 0 };
        let first = shared && conversation % TENANT == 0;
        tokens += (CONVERSATION - if first { 0 } else { preamble }) * BLOCK;
        let of_tenant = Text::get().tokens(1 << 40 | tenant as u64, preamble * BLOCK);
        let own = Text::get().tokens(conversation as u64, (CONVERSATION - preamble) * BLOCK);
        let engine = match shared {
            true => (tenant * 3 + random.random_range(0..3)) % usize::from(ENGINES),
            false => conversation % usize::from(ENGINES),
        };
        // Engines hash what blocks hold, and what comes before.
        let hashes: Vec<u64> = (0..CONVERSATION as u64)
            .map(|block| match (block as usize) < preamble {
                true => 1 << 60 | (tenant as u64) << 20 | block,
                false => (conversation as u64) << 20 | block,
            })
            .collect();
        let batch = decode(&frame(&hashes, None, &[of_tenant, own].concat())).expect("the frame is ours");
        for event in batch.events() {
            index.apply(Slot(engine as u16), &event);
        }
        conversation += 1;
    }
    index.settle();
    let pages = 1 << index.table().bits();
    let values: usize = (0..pages).map(|page| index.page(page).len()).sum();
    let keys = KEY.len() * pages as usize;
    Size { tokens, entries: index.table().len(), pages: pages as usize, bytes: keys + values, keys }
}
