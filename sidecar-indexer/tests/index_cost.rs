//! What a block costs the index in memory and time, for text-like tokens in blocks of 16.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, unsafe_code, reason = "a test; an allocator")]

use affinity::{Slot, Stride, Tier};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use warmpath_indexer::events::{Attention, Event, Removed, Stored};
use warmpath_indexer::index::{Index, Options};
use warmpath_indexer::tokens::Vocabulary;

const BLOCK: usize = 16;
const EVENT: usize = 32;
/// Blocks of a conversation.
const LONG: usize = 512;

static LIVE: AtomicUsize = AtomicUsize::new(0);

/// Counts what is live, as glibc would take it: 8 bytes more, in steps of 16.
struct Counting;

fn taken(layout: Layout) -> usize {
    (layout.size() + 8).next_multiple_of(16)
}

// SAFETY: everything is the system allocator's; only a number is kept beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(taken(layout), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(taken(layout), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn live() -> usize {
    LIVE.load(Ordering::Relaxed)
}

/// Time that this thread has run: other processes do not count.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}

/// One thread counts at a time.
static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn mix(n: u64) -> u64 {
    let n = (n ^ n >> 31).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    n ^ n >> 32
}

/// Tokens of 1 to 7 bytes, 4 on average.
fn vocabulary() -> Arc<Vocabulary> {
    let spell = |id: u64| (0..1 + mix(id) % 7).map(|i| char::from(b'a' + (mix(id + i) % 26) as u8)).collect::<String>();
    let added: serde_json::Map<_, _> =
        (0..50_000).map(|id| (id.to_string(), serde_json::json!({ "content": spell(id) }))).collect();
    let config = serde_json::json!({ "added_tokens_decoder": added });
    Arc::new(Vocabulary::from_tiktoken("", &config, false).unwrap())
}

fn index(max_blocks: usize, endpoints: u16) -> Index {
    let mut index = Index::new(Options { stride: Stride::default(), max_blocks, tiers: vec![Tier::Gpu] }, 1);
    let vocabulary = vocabulary();
    (0..endpoints).for_each(|slot| index.add(Slot(slot), "m", &vocabulary, false));
    index
}

/// Prefills of conversations, in events of 32 blocks: hashes, parent, tokens.
struct Prefill {
    hashes: Vec<u64>,
    parent: Option<u64>,
    tokens: Vec<u32>,
}

fn prefill(conversation: u64, at: usize, blocks: usize) -> Prefill {
    let hash = |block: usize| mix(conversation << 20 | block as u64);
    let token = |i: usize| (mix(conversation << 32 | (at * BLOCK + i) as u64) % 50_000) as u32;
    Prefill {
        hashes: (at..at + blocks).map(hash).collect(),
        parent: at.checked_sub(1).map(hash),
        tokens: (0..blocks * BLOCK).map(token).collect(),
    }
}

fn stored(prefill: &Prefill) -> Event<'_> {
    Event::Stored(Stored {
        hashes: &prefill.hashes,
        parent: prefill.parent,
        tokens: &prefill.tokens,
        block_size: BLOCK as u32,
        tier: Tier::Gpu,
        group: 0,
        attention: Attention::Full,
        adapter: None,
        salt: None,
        may_repeat: false,
        readable: prefill.hashes.len(),
    })
}

/// Stores `blocks` blocks of an endpoint, several conversations at a time; says how long the index took.
fn fill(index: &mut Index, slot: u16, blocks: usize, event: usize) -> Duration {
    let mut took = Duration::ZERO;
    let at_once = 64;
    let (mut done, mut first) = (0, 0);
    while done < blocks {
        for at in (0..LONG).step_by(event) {
            let events: Vec<_> = (first..first + at_once).map(|c| prefill(c, at, event)).collect();
            let start = cpu();
            for prefill in events.iter().take((blocks - done).div_ceil(event)) {
                index.apply(Slot(slot), &stored(prefill));
                index.settle();
                done += event;
            }
            took += cpu() - start;
            if done >= blocks {
                break;
            }
        }
        first += at_once;
    }
    took
}

#[test]
fn a_block_takes_64_bytes_at_most_and_the_index_knows() {
    let _turn = TURN.lock();
    // Event sizes: prefill, and decode block by block.
    for (blocks, event) in [(150_000, EVENT), (120_000, EVENT), (40_000, 1)] {
        let mut index = index(1 << 24, 1);
        // An empty index has its list of changes already.
        let (before, empty) = (live(), index.bytes());
        fill(&mut index, 0, blocks, event);
        assert_eq!(index.stats().blocks.div_ceil(EVENT), blocks.div_ceil(EVENT));
        let used = live() - before;
        let each = used as f64 / index.stats().blocks as f64;
        let estimated = index.bytes() - empty;
        println!("{blocks} blocks, {event} per event: {each:.1} bytes each, {estimated} estimated");
        assert!(each <= 64.0, "{each}");
        assert!(estimated.abs_diff(used) * 100 < used * 15, "{estimated} estimated, {used} used");
        index.clear(Slot(0));
        assert!(live().saturating_sub(before) < used / 2, "memory comes back");
    }
}

#[test]
fn orphans_of_one_parent_are_removed_as_quickly_however_many_they_are() {
    let _turn = TURN.lock();
    let each = |n: u64| {
        let mut index = index(1 << 24, 1);
        let tokens = [7; BLOCK];
        for hash in 0..n {
            let orphan = Prefill { hashes: vec![mix(hash)], parent: Some(u64::MAX), tokens: tokens.to_vec() };
            index.apply(Slot(0), &stored(&orphan));
        }
        assert_eq!(index.stats().orphans as u64, n);
        // Not the thread's own clock, which may stand still for milliseconds.
        let start = Instant::now();
        for hash in 0..n {
            index.apply(Slot(0), &Event::Removed(Removed { hashes: &[mix(hash)], tier: Tier::Gpu, group: None }));
        }
        assert_eq!(index.stats().orphans, 0);
        start.elapsed().as_secs_f64() / n as f64
    };
    // The least of several: others may have the processor meanwhile.
    let least = |n| (0..5).map(|_| each(n)).fold(f64::MAX, f64::min);
    let (few, many) = (least(1_000), least(20_000));
    assert!(many < few * 8.0, "{} times as long", many / few);
}

/// Blocks that part only after a stride's end complete the same one: a change of one must not cost what all of them are.
#[test]
fn blocks_that_complete_the_same_stride_cost_the_same_however_many_they_are() {
    let _turn = TURN.lock();
    let long: Vec<u32> = (0..50_000).filter(|id| mix(u64::from(*id)) % 7 == 6).collect();
    let each = |n: u64| {
        let mut index = index(1 << 24, 1);
        // 112 bytes, and then as many, of which the last 14 differ: each completes the first 128.
        let parent = Prefill { hashes: vec![u64::MAX], parent: None, tokens: long[..BLOCK].to_vec() };
        index.apply(Slot(0), &stored(&parent));
        let start = Instant::now();
        for hash in 0..n {
            let mut tokens = long[..BLOCK].to_vec();
            let (a, b) = (hash as usize / 1_000, hash as usize % 1_000);
            (tokens[BLOCK - 2], tokens[BLOCK - 1]) = (long[a], long[b]);
            let child = Prefill { hashes: vec![mix(hash)], parent: Some(u64::MAX), tokens };
            index.apply(Slot(0), &stored(&child));
        }
        assert_eq!((index.stats().nodes as u64, index.table().len()), (n + 1, 1));
        for page in 0..1 << index.table().bits() {
            assert!(!index.page(page).is_empty());
        }
        for hash in (0..n).step_by(2) {
            index.apply(Slot(0), &Event::Removed(Removed { hashes: &[mix(hash)], tier: Tier::Gpu, group: None }));
        }
        index.apply(Slot(0), &Event::Cleared);
        assert!(index.table().is_empty());
        start.elapsed().as_secs_f64() / n as f64
    };
    let least = |n| (0..3).map(|_| each(n)).fold(f64::MAX, f64::min);
    let (few, many) = (least(1_000), least(100_000));
    println!("{:.2} and {:.2} us each", few * 1e6, many * 1e6);
    assert!(many < few * 5.0, "{} times as long", many / few);
}

/// A change of one block asks what is attached to it, not what is attached to its whole run.
#[test]
fn a_change_costs_the_same_however_much_is_attached_to_other_blocks() {
    let _turn = TURN.lock();
    let each = |n: u64| {
        let mut index = index(1 << 24, 1);
        let run = prefill(0, 0, 64);
        index.apply(Slot(0), &stored(&run));
        let attached =
            |conversation, block: usize| Prefill { parent: Some(run.hashes[block]), ..prefill(conversation, 0, 1) };
        (1..=n).for_each(|conversation| index.apply(Slot(0), &stored(&attached(conversation, 0))));
        index.apply(Slot(0), &stored(&attached(n + 1, 40)));
        assert_eq!(index.stats().nodes as u64, n + 65);
        let again = Prefill {
            hashes: vec![run.hashes[40]],
            parent: Some(run.hashes[39]),
            tokens: run.tokens[40 * BLOCK..41 * BLOCK].to_vec(),
        };
        let (start, entries, changes) = (Instant::now(), index.table().len(), 1_000);
        for _ in 0..changes {
            index.apply(Slot(0), &Event::Removed(Removed { hashes: &again.hashes, tier: Tier::Gpu, group: None }));
            assert!(index.table().len() < entries);
            index.apply(Slot(0), &stored(&again));
        }
        assert_eq!(index.table().len(), entries);
        start.elapsed().as_secs_f64() / f64::from(changes)
    };
    let least = |n| (0..3).map(|_| each(n)).fold(f64::MAX, f64::min);
    let (few, many) = (least(1_000), least(100_000));
    println!("{:.2} and {:.2} us each", few * 1e6, many * 1e6);
    assert!(many < few * 5.0, "{} times as long", many / few);
}

#[test]
#[ignore = "a bench: cargo test --release -p warmpath-indexer --test index_cost -- --ignored --nocapture"]
fn speed() {
    let _turn = TURN.lock();
    for blocks in [150_000, 1_500_000] {
        for event in [EVENT, 1] {
            let mut index = index(1 << 24, 1);
            let before = live();
            let took = fill(&mut index, 0, blocks, event);
            let n = index.stats().blocks as f64;
            let each = |d: Duration| d.as_secs_f64() * 1e6 / n;
            let used = (live() - before) as f64 / n;
            println!(
                "{blocks} blocks by {event}: {:.3} us each, {used:.1} bytes, estimate {:.1}",
                each(took),
                index.bytes() as f64 / n
            );
            let (pages, start) = (1u32 << index.table().bits(), cpu());
            let bytes: usize = (0..pages).map(|page| index.page(page).len()).sum();
            println!("  {pages} pages, {bytes} bytes: {:.3} us per block", each(cpu() - start));
            let start = cpu();
            for c in 0..(blocks / LONG) as u64 {
                let p = prefill(c, 0, LONG);
                for hash in p.hashes.iter().rev() {
                    let removed = Removed { hashes: &[*hash], tier: Tier::Gpu, group: None };
                    index.apply(Slot(0), &Event::Removed(removed));
                }
            }
            println!("  removal: {:.3} us per block; {} left", each(cpu() - start), index.stats().blocks);
        }
    }
}
