//! Our index, as the running indexer uses it: events in, changed rows out every 10 ms, lookups in the pages.

use std::hint::black_box;
use std::time::{Duration, Instant};

use affinity::lookup::{Layout, lookup};
use affinity::page::{GRANULE, PageView};
use affinity::rows::merge;
use affinity::{Fingerprint, Slot, Stride, Tier, fingerprints, root};
use warmpath_indexer::events::Batch;
use warmpath_indexer::index::{Index, Options};

use super::measure::cpu;
use super::text::Text;
use super::work::{BLOCK, Prompt, Work};
use super::{System, decode};

const MODEL: &str = "model";
/// The indexer's own default: news is collected this long.
const COALESCE: Duration = Duration::from_millis(10);

/// The index, and one gateway that is sent what changed.
pub struct Ours {
    index: Index,
    gateway: Gateway,
}

/// What a gateway has: the pages, once something is looked up. Until then they, and rows, are written and dropped.
struct Gateway {
    pages: Option<Vec<Option<Vec<u8>>>>,
    epoch: u32,
    version: u64,
    next: Instant,
    news: bool,
}

impl Gateway {
    fn new() -> Self {
        Self { pages: None, epoch: 0, version: 0, next: Instant::now() + COALESCE, news: false }
    }

    /// Sends what changed if it is time.
    fn tick(&mut self, index: &Index) {
        if !self.news {
            self.news = true;
            self.next = Instant::now() + COALESCE;
        } else if Instant::now() >= self.next {
            self.sync(index);
        }
    }

    fn sync(&mut self, index: &Index) {
        self.news = false;
        let table = index.table();
        if self.epoch != table.epoch() {
            (self.epoch, self.version) = (table.epoch(), 0);
            if let Some(pages) = &mut self.pages {
                pages.clear();
                pages.resize(1 << table.bits(), None);
            }
        }
        let keys = table.keys_changed_since(self.version).map(|keys| {
            let pages = keys.chunk_by(|a, b| a.0 == b.0).filter_map(|keys| Some((keys.first()?.0, keys)));
            pages.for_each(|(page, keys)| self.rows(index, page, keys));
        });
        if keys.is_none() {
            let changed = table.changed_since(self.version);
            changed.into_iter().for_each(|(_, page)| self.page(index, page));
        }
        self.version = table.version();
    }

    /// Takes what changed of a page: these keys.
    fn rows(&mut self, index: &Index, page: u32, keys: &[(u32, u32)]) {
        if keys.len() >= index.table().rows_per_page() {
            return self.page(index, page);
        }
        let rows = index.rows(page, keys.iter().map(|(_, key)| *key));
        match self.pages.as_mut().map(|pages| &mut pages[page as usize]) {
            Some(place) => {
                let old = PageView::parse(place.as_ref().expect("all pages came first")).expect("it is a page");
                *place = Some(merge(&old, &rows, index.table().version()).expect("these are rows"));
            }
            None => drop(black_box(rows)),
        }
    }

    /// Takes a whole page.
    fn page(&mut self, index: &Index, page: u32) {
        let bytes = index.page(page);
        match self.pages.as_mut().map(|pages| &mut pages[page as usize]) {
            Some(place) => *place = Some(bytes),
            None => drop(black_box(bytes)),
        }
    }
}

impl Ours {
    fn without_gateway(workers: u16) -> Index {
        let options = Options { stride: Stride::default(), max_blocks: 1 << 24, tiers: vec![Tier::Gpu] };
        let mut index = Index::new(options, 7);
        for slot in 0..workers {
            index.add(Slot(slot), MODEL, Text::get().vocabulary(), false);
        }
        index
    }

    fn matches(&mut self, query: &[Fingerprint], others: bool) -> Vec<affinity::lookup::Match> {
        if self.gateway.pages.is_none() {
            self.gateway = Gateway { pages: Some(Vec::new()), ..Gateway::new() };
            self.gateway.sync(&self.index);
        }
        let layout = Layout { epoch: self.gateway.epoch, bits: self.index.table().bits() };
        let pages = self.gateway.pages.as_deref().unwrap_or_default();
        // Nothing is known of where a conversation's last message begins.
        let likely = query.len() as u32 / 2;
        lookup(query, layout, likely, others, |page| pages.get(page as usize)?.as_deref())
    }
}

impl System for Ours {
    const NAME: &'static str = "ours";
    const READS_FRAMES: bool = true;
    const TAKES_HASHES: bool = false;
    type Events = Batch;
    type Hashed = Batch;
    type Query = Vec<Fingerprint>;

    fn new(workers: u16) -> Self {
        Self { index: Self::without_gateway(workers), gateway: Gateway::new() }
    }

    fn read(&mut self, _: u16, frame: &[u8]) -> Batch {
        decode(frame)
    }

    fn hash(&mut self, _: u16, events: Batch) -> Batch {
        events
    }

    fn apply(&mut self, worker: u16, batch: Batch) {
        for event in batch.events() {
            self.index.apply(Slot(worker), &event);
        }
        self.index.settle();
        self.gateway.tick(&self.index);
    }

    fn finish(&mut self) {
        self.gateway.sync(&self.index);
    }

    fn query(&self, prompt: &Prompt) -> Vec<Fingerprint> {
        let mut out = Vec::new();
        fingerprints(Stride::default(), root(MODEL, None), &prompt.bytes, &mut out);
        out
    }

    fn find(&mut self, query: Vec<Fingerprint>) -> u32 {
        self.matches(&query, false).iter().map(|m| m.tokens.0).max().unwrap_or(0)
    }

    fn check(&mut self, prompt: &Prompt) {
        let found = self.matches(&self.query(prompt), true);
        let mut ends = vec![0];
        for block in prompt.tokens.chunks(BLOCK) {
            ends.push(ends[ends.len() - 1] + Text::get().bytes(block).len());
        }
        let stride = Stride::default().bytes();
        // What the table can say of an engine that holds so many blocks: whole strides, and the blocks that end in them.
        let can_tell = |blocks: usize| {
            let end = ends[blocks] / stride * stride;
            ends.iter().filter(|at| **at <= end).count() - 1
        };
        let told = |worker: u16| found.iter().find(|m| m.slot == Slot(worker)).map_or(0, |m| m.tokens.0);
        let granules = |blocks: usize| (blocks * BLOCK) as u32 / GRANULE * GRANULE;
        for (worker, blocks) in &prompt.held {
            assert!(told(*worker) <= granules(*blocks), "more than engine {worker} holds");
        }
        for m in &found {
            assert!(prompt.held.iter().any(|(worker, _)| m.slot == Slot(*worker)), "{m:?} holds nothing");
        }
        // The first bytes behind what is held may be the same by chance, and end one more stride.
        let deepest = prompt.held.iter().map(|(_, blocks)| granules(can_tell(*blocks))).max().unwrap_or(0);
        let most = found.iter().map(|m| m.tokens.0).max().unwrap_or(0);
        assert!(most >= deepest, "the deepest match is of {deepest} tokens, not {most}");
    }
}

/// Where our time goes, in microseconds of CPU per block.
#[derive(Clone, Copy, Debug)]
pub struct Parts {
    /// Reading frames.
    pub read: f64,
    /// Bytes, fingerprints, index and rows of the table.
    pub apply: f64,
    /// Writing rows that changed, and pages where there are too many of them.
    pub pages: f64,
}

/// Measures the parts, each in a run of its own.
pub fn parts(work: &Work) -> Parts {
    let per_block = |run: &mut dyn FnMut()| {
        let start = cpu();
        run();
        (cpu() - start) * 1e6 / work.changes as f64
    };
    let read = per_block(&mut || work.frames().for_each(|(_, frame)| drop(black_box(decode(frame)))));
    let taken = |mut gateway: Option<Gateway>| {
        let mut index = Ours::without_gateway(work.workers);
        let batches: Vec<_> = work.frames().map(|(worker, frame)| (Slot(worker), decode(frame))).collect();
        per_block(&mut || {
            for (slot, batch) in &batches {
                for event in batch.events() {
                    index.apply(*slot, &event);
                }
                index.settle();
                if let Some(gateway) = &mut gateway {
                    gateway.tick(&index);
                }
            }
            if let Some(gateway) = &mut gateway {
                gateway.sync(&index);
            }
        })
    };
    let apply = taken(None);
    let pages = taken(Some(Gateway::new())) - apply;
    Parts { read, apply, pages }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index_bench::measure;

    /// The bench itself, small: so that it goes on to work.
    #[test]
    fn small_loads_end_in_right_answers() {
        let text = Text::get();
        let work = Work::prompts(text, "small", 4096, 3, 20);
        let figures = measure::<Ours>(&work, &|| 0);
        assert!(figures.raw.is_some() && figures.parting.is_some() && parts(&work).apply > 0.0);
        let trace = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/mooncake/conversation.jsonl");
        let work = Work::mooncake(text, trace.as_ref(), 60, 4, 4096).unwrap();
        assert!(work.resident > 10_000 && work.changes > 2 * work.resident, "it evicts");
        measure::<Ours>(&work, &|| 0);
    }
}
