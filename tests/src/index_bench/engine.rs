//! A cache that follows what requests ask of it, and says so in events: the engine simulator's block pool, without time.

use crate::sim::cache::{BlockPool, CacheEvent, Namespace};

/// An engine that serves one request at a time, at once.
pub struct Engine {
    pool: BlockPool,
}

impl Engine {
    /// An engine with room for this many blocks.
    pub fn new(blocks: usize) -> Self {
        Self { pool: BlockPool::new(blocks + 1, true) }
    }

    /// Serves a prompt of whole blocks with these hashes and tokens: evicts what was not used for longest where room is
    /// needed, and stores what is missing in events of at most `together` blocks. A prompt that is longer than the
    /// cache is cut.
    pub fn serve(&mut self, hashes: &[u64], tokens: &[u32], together: usize, events: &mut Vec<CacheEvent>) {
        let size = tokens.len() / hashes.len().max(1);
        let hashes = &hashes[..hashes.len().min(self.pool.usable())];
        let mut blocks = self.pool.find(hashes);
        let held = blocks.len();
        self.pool.touch(&blocks);
        let fresh = self.pool.allocate(hashes.len() - held, events).expect("the prompt fits");
        for (id, hash) in fresh.iter().zip(&hashes[held..]) {
            self.pool.store(*id, *hash);
        }
        for from in (held..hashes.len()).step_by(together) {
            let to = from.saturating_add(together).min(hashes.len());
            events.push(CacheEvent::Stored {
                hashes: hashes[from..to].to_vec(),
                parent: from.checked_sub(1).map(|before| hashes[before]),
                tokens: tokens[from * size..to * size].to_vec(),
                namespace: Namespace::default(),
                session: None,
            });
        }
        blocks.extend(fresh);
        self.pool.release(&blocks);
    }

    /// Forgets everything.
    pub fn reset(&mut self, events: &mut Vec<CacheEvent>) {
        assert!(self.pool.reset(events), "nothing is being served");
    }

    /// How many of these blocks, from the first, it holds.
    pub fn holds(&self, hashes: &[u64]) -> usize {
        self.pool.find(hashes).len()
    }

    /// Blocks held.
    pub fn held(&self) -> usize {
        self.pool.cached()
    }

    /// The blocks held.
    pub fn hashes(&self) -> Vec<u64> {
        self.pool.residency().into_keys().collect()
    }
}
