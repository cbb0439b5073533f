//! Dynamo's indexes: `dynamo-kv-router`, its `RadixTree`, and the concurrent compressed one that its router uses.

use dynamo_kv_router::indexer::SyncIndexer;
use dynamo_kv_router::protocols::{BlockHashOptions, LocalBlockHash, OverlapScores, RouterEvent, WorkerWithDpRank};
use dynamo_kv_router::zmq_wire::{KvEventBatch, ZmqEventNormalizer, decode_event_batch};
use dynamo_kv_router::{ConcurrentRadixTreeCompressed, RadixTree, ThreadPoolIndexer, compute_block_hash_for_seq};
use tokio::runtime::Runtime;
use warmpath_tests::index_bench::System;
use warmpath_tests::index_bench::work::{BLOCK, Prompt};

/// Where events go in, and lookups.
pub trait Tree {
    const NAME: &'static str;
    fn new() -> Self;
    fn apply(&mut self, event: RouterEvent);
    fn finish(&mut self) {}
    fn find(&self, query: Vec<LocalBlockHash>) -> OverlapScores;
}

impl Tree for RadixTree {
    const NAME: &'static str = "dynamo";

    fn new() -> Self {
        Self::new()
    }

    fn apply(&mut self, event: RouterEvent) {
        self.apply_event(event).expect("the event fits");
    }

    fn find(&self, query: Vec<LocalBlockHash>) -> OverlapScores {
        self.find_matches(query, false)
    }
}

/// The tree behind one writing thread, as the router runs it.
pub struct Concurrent {
    tree: ThreadPoolIndexer<ConcurrentRadixTreeCompressed>,
    runtime: Runtime,
}

impl Tree for Concurrent {
    const NAME: &'static str = "dynamo_concurrent";

    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let entered = runtime.enter();
        let tree = ThreadPoolIndexer::new(ConcurrentRadixTreeCompressed::new(), 1, BLOCK as u32);
        drop(entered);
        Self { tree, runtime }
    }

    fn apply(&mut self, event: RouterEvent) {
        self.tree.enqueue_event(event).expect("the writer runs");
    }

    fn finish(&mut self) {
        self.runtime.block_on(self.tree.flush());
    }

    fn find(&self, query: Vec<LocalBlockHash>) -> OverlapScores {
        self.tree.backend().find_matches(&query, false)
    }
}

pub struct Dynamo<T> {
    tree: T,
    normalizers: Vec<ZmqEventNormalizer>,
    events: u64,
}

fn worker(n: u16) -> WorkerWithDpRank {
    WorkerWithDpRank::new(u64::from(n), 0)
}

impl<T: Tree> System for Dynamo<T> {
    const NAME: &'static str = T::NAME;
    const READS_FRAMES: bool = true;
    const TAKES_HASHES: bool = true;
    type Events = KvEventBatch;
    type Hashed = Vec<RouterEvent>;
    type Query = Vec<LocalBlockHash>;

    fn new(workers: u16) -> Self {
        let normalizers = (0..workers).map(|_| ZmqEventNormalizer::new(BLOCK as u32)).collect();
        Self { tree: T::new(), normalizers, events: 0 }
    }

    fn read(&mut self, _: u16, frame: &[u8]) -> KvEventBatch {
        decode_event_batch(frame).expect("the frame is vLLM's")
    }

    fn hash(&mut self, n: u16, batch: KvEventBatch) -> Vec<RouterEvent> {
        let normalizer = &mut self.normalizers[usize::from(n)];
        let events = batch.events.into_iter().map(|event| {
            self.events += 1;
            let event = normalizer.normalize(event, self.events, worker(n)).expect("the event counts");
            event.into_router_event().expect("it is a worker's")
        });
        events.collect()
    }

    fn apply(&mut self, _: u16, events: Vec<RouterEvent>) {
        events.into_iter().for_each(|event| self.tree.apply(event));
    }

    fn finish(&mut self) {
        self.tree.finish();
    }

    fn query(&self, prompt: &Prompt) -> Vec<LocalBlockHash> {
        compute_block_hash_for_seq(&prompt.tokens, BLOCK as u32, BlockHashOptions::default())
    }

    fn find(&mut self, query: Vec<LocalBlockHash>) -> u32 {
        self.tree.find(query).scores.values().copied().max().unwrap_or(0)
    }

    fn check(&mut self, prompt: &Prompt) {
        let scores = self.tree.find(self.query(prompt)).scores;
        let mut found: Vec<_> = scores.into_iter().map(|(w, blocks)| (w.worker_id as u16, blocks as usize)).collect();
        found.sort_unstable();
        assert_eq!(found, prompt.held);
    }
}
