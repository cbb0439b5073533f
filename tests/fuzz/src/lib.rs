//! What the fuzz targets share: memory that is counted, and inputs to begin with.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use warmpath_indexer::tokens::{Vocabulary, read_json};

/// Counts the bytes in use.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all memory is the system allocator's; this only counts it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        MOST.fetch_max(NOW.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Does what it is told, which must not take more memory than `bytes` at any time.
pub fn within<T>(bytes: usize, act: impl FnOnce() -> T) -> T {
    let before = NOW.load(Relaxed);
    MOST.store(before, Relaxed);
    let done = act();
    let most = MOST.load(Relaxed).saturating_sub(before);
    assert!(most <= bytes, "{most} bytes were in use at once, {bytes} are allowed");
    done
}

/// Writes the inputs to begin with into the folder that WARMPATH_SEEDS names, if it does.
pub fn write_seeds(seeds: impl IntoIterator<Item = Vec<u8>>) {
    let Some(folder) = std::env::var_os("WARMPATH_SEEDS") else { return };
    for (number, seed) in seeds.into_iter().enumerate() {
        std::fs::write(Path::new(&folder).join(format!("seed-{number}")), seed).expect("write a seed");
    }
}

/// The vocabulary of the recorded messages' engine.
pub fn vocabulary() -> &'static Arc<Vocabulary> {
    static VOCABULARY: OnceLock<Arc<Vocabulary>> = OnceLock::new();
    VOCABULARY.get_or_init(|| {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/tokenizer/tokenizer.json");
        let json = read_json(Path::new(file)).expect("read the tokenizer");
        Arc::new(Vocabulary::from_tokenizer_json(&json).expect("a tokenizer"))
    })
}

/// The payloads of all recorded messages.
pub fn recorded() -> Vec<Vec<u8>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/vllm-events");
    let mut payloads = Vec::new();
    for entry in std::fs::read_dir(folder).expect("list the fixtures") {
        let path = entry.expect("list the fixtures").path();
        let text = std::fs::read_to_string(&path).expect("read a fixture");
        for line in text.lines() {
            let record: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
            if let Some(hex) = record["frames_hex"][2].as_str() {
                let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("a byte in hexadecimal");
                payloads.push((0..hex.len()).step_by(2).map(byte).collect());
            }
        }
    }
    assert!(!payloads.is_empty(), "no recorded messages in {folder}");
    payloads
}
