//! SMG's index: `kv-index`, its `ChainIndex` with one map per worker.

use kv_index::compute_request_content_hashes;
use kv_index::{ChainBlockMap, ChainIndex, ContentHash, SequenceHash, StoredBlock, compute_content_hash};
use warmpath_indexer::events::{self, Event};
use warmpath_tests::index_bench::System;
use warmpath_tests::index_bench::work::{BLOCK, Prompt};

pub struct Smg {
    index: ChainIndex,
    workers: Vec<(u32, ChainBlockMap)>,
}

/// The crate has no reader of vLLM's frames: its events come over gRPC. What comes there, with tokens:
pub enum WithTokens {
    Stored { hashes: Vec<u64>, parent: Option<u64>, tokens: Vec<u32> },
    Removed(Vec<SequenceHash>),
    Cleared,
}

pub enum WithHashes {
    Stored { blocks: Vec<StoredBlock>, parent: Option<SequenceHash> },
    Removed(Vec<SequenceHash>),
    Cleared,
}

impl System for Smg {
    const NAME: &'static str = "smg";
    const READS_FRAMES: bool = false;
    const TAKES_HASHES: bool = true;
    type Events = Vec<WithTokens>;
    type Hashed = Vec<WithHashes>;
    type Query = Vec<ContentHash>;

    fn new(workers: u16) -> Self {
        let index = ChainIndex::new();
        let worker =
            |n: u16| (index.intern_worker(&format!("worker-{n}")).expect("there is room"), ChainBlockMap::new());
        Self { workers: (0..workers).map(worker).collect(), index }
    }

    fn read(&mut self, _: u16, frame: &[u8]) -> Vec<WithTokens> {
        let batch = events::decode(frame).expect("the frame is one of ours");
        let event = |event: Event<'_>| match event {
            Event::Stored(s) => {
                WithTokens::Stored { hashes: s.hashes.to_vec(), parent: s.parent, tokens: s.tokens.to_vec() }
            }
            Event::Removed(r) => WithTokens::Removed(r.hashes.iter().copied().map(SequenceHash).collect()),
            Event::Cleared => WithTokens::Cleared,
        };
        batch.events().map(event).collect()
    }

    fn hash(&mut self, _: u16, events: Vec<WithTokens>) -> Vec<WithHashes> {
        let event = |event| match event {
            WithTokens::Stored { hashes, parent, tokens } => {
                let blocks = hashes.iter().zip(tokens.chunks(BLOCK)).map(|(hash, tokens)| StoredBlock {
                    seq_hash: SequenceHash(*hash),
                    content_hash: compute_content_hash(tokens),
                });
                WithHashes::Stored { blocks: blocks.collect(), parent: parent.map(SequenceHash) }
            }
            WithTokens::Removed(hashes) => WithHashes::Removed(hashes),
            WithTokens::Cleared => WithHashes::Cleared,
        };
        events.into_iter().map(event).collect()
    }

    fn apply(&mut self, worker: u16, events: Vec<WithHashes>) {
        let (id, map) = &mut self.workers[usize::from(worker)];
        for event in events {
            match event {
                WithHashes::Stored { blocks, parent } => {
                    self.index.apply_stored(*id, &blocks, parent, map).expect("the parent is there");
                }
                WithHashes::Removed(hashes) => self.index.apply_removed(*id, &hashes, map),
                WithHashes::Cleared => self.index.apply_cleared(*id, map),
            }
        }
    }

    fn query(&self, prompt: &Prompt) -> Vec<ContentHash> {
        compute_request_content_hashes(&prompt.tokens, BLOCK)
    }

    fn find(&mut self, query: Vec<ContentHash>) -> u32 {
        let mut deepest = 0;
        self.index.score_into(&query, |content| content.0, false, |_, blocks| deepest = deepest.max(blocks));
        deepest
    }

    fn check(&mut self, prompt: &Prompt) {
        let found = self.index.find_matches(&self.query(prompt), false);
        let mut found: Vec<_> = self
            .workers
            .iter()
            .zip(0..)
            .filter_map(|((id, _), worker)| Some((worker, *found.scores.get(id)? as usize)))
            .collect();
        found.sort_unstable();
        assert_eq!(found, prompt.held);
    }
}
