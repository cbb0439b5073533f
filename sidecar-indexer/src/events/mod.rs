//! KV events as engines publish them.
//!
//! A message's payload is one msgpack batch. Engines of different versions write it differently (arrays or maps,
//! hashes as signed or unsigned numbers or bytes, fields added over time), so it is read by structure and never by
//! version: what is unknown is skipped, what is inconsistent is skipped and counted. Not so removals: what was
//! removed would stay counted as held, so one that cannot be read makes the whole batch unreadable.
//!
//! | engine | writes | what it does not say |
//! |---|---|---|
//! | vLLM to 0.23 | arrays | tiers before 0.10.2, adapters' names before 0.14, salts and images before 0.17, groups before 0.20 |
//! | vLLM from 0.24 | maps | whether a store from a sequence's start is new: [`Stored::may_repeat`] |
//! | SGLang | arrays, maps since September 2026 | in arrays, what adapter a block is of; salts only in a map of its own |
//! | TensorRT-LLM | maps | adapters; images' blocks are left out, and what follows them is never placed |
//! | TensorRT-LLM through Dynamo | maps | tiers, salts |
//!
//! Not read: TensorRT-LLM's pull API (`created`, `stored`, `removed`, `updated`), which goes over HTTP and to one reader.

mod decode;
mod extra;
mod msgpack;
#[cfg(test)]
mod msgpack_tests;
#[cfg(test)]
mod tests;

pub use decode::{DecodeError, decode};

use affinity::Tier;

/// One engine step's events, all in a few vectors; [`Batch::events`] lends them out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// When the engine published it, seconds since the epoch by the engine's clock.
    pub timestamp: f64,
    /// The data-parallel rank that published it, if it says so.
    pub rank: Option<u32>,
    /// Events left out because they were of an unknown kind or inconsistent.
    pub skipped: u32,
    records: Vec<Record>,
    hashes: Vec<u64>,
    tokens: Vec<u32>,
    strings: String,
}

/// A change of what an engine's cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'b> {
    /// Blocks were stored.
    Stored(Stored<'b>),
    /// One copy of each of these blocks was dropped.
    Removed(Removed<'b>),
    /// Every block was dropped.
    Cleared,
}

/// Consecutive blocks of one sequence that were stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored<'b> {
    /// The blocks, in order of the sequence.
    pub hashes: &'b [u64],
    /// The block before the first one; `None` at the sequence's start.
    pub parent: Option<u64>,
    /// Their tokens: `block_size` for each hash. Empty in a placeholder.
    pub tokens: &'b [u32],
    /// Tokens per block; 0 in a placeholder, which only says that known blocks are now on `tier` too.
    pub block_size: u32,
    /// Where they were stored.
    pub tier: Tier,
    /// The cache group, for engines with several kinds of attention.
    pub group: u32,
    /// What the engine says of the group's attention.
    pub attention: Attention,
    /// The LoRA adapter, if any.
    pub adapter: Option<&'b str>,
    /// The cache salt, if any; only known when `parent` is `None`.
    pub salt: Option<&'b str>,
    /// How many of the blocks, from the first, consist of text: images and embeddings have made-up token ids.
    pub readable: usize,
    /// The engine may only be saying again what it holds, without a removal to come for it (vLLM's
    /// `kv_cache_report_mode: full`): this is a copy more only of blocks that are not held on `tier` yet. Where it was
    /// a copy more of others too, they count as gone when the first of their copies goes.
    pub may_repeat: bool,
}

/// Blocks of which one copy was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed<'b> {
    /// The blocks.
    pub hashes: &'b [u64],
    /// Where they were dropped.
    pub tier: Tier,
    /// The cache group; `None` from engines that know of one only.
    pub group: Option<u32>,
}

/// Whether a cache group keeps every block of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    /// It does: a hit is a contiguous chain from the sequence's start.
    Full,
    /// It does not (sliding window, Mamba): its blocks say little about a prefix.
    Partial,
    /// The engine is too old to say.
    Unsaid,
}

impl Batch {
    /// The events, in the order in which they happened.
    #[must_use]
    pub fn events(&self) -> impl ExactSizeIterator<Item = Event<'_>> {
        self.records.iter().map(|record| self.event(record))
    }

    /// How many events there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    fn event(&self, record: &Record) -> Event<'_> {
        match record {
            Record::Stored(stored) => {
                let text = |span: Option<Span>| span.and_then(|span| self.strings.get(span.range()));
                Event::Stored(Stored {
                    hashes: self.hashes.get(stored.hashes.range()).unwrap_or_default(),
                    parent: stored.parent,
                    tokens: self.tokens.get(stored.tokens.range()).unwrap_or_default(),
                    block_size: stored.block_size,
                    tier: stored.tier,
                    group: stored.group,
                    attention: stored.attention,
                    adapter: text(stored.adapter),
                    salt: text(stored.salt),
                    readable: stored.readable as usize,
                    may_repeat: stored.may_repeat,
                })
            }
            Record::Removed { hashes, tier, group } => Event::Removed(Removed {
                hashes: self.hashes.get(hashes.range()).unwrap_or_default(),
                tier: *tier,
                group: *group,
            }),
            Record::Cleared => Event::Cleared,
        }
    }
}

/// An [`Event`] whose lists lie in its batch's vectors.
#[derive(Clone, Debug, PartialEq)]
enum Record {
    Stored(StoredRecord),
    Removed { hashes: Span, tier: Tier, group: Option<u32> },
    Cleared,
}

#[derive(Clone, Debug, PartialEq)]
struct StoredRecord {
    hashes: Span,
    parent: Option<u64>,
    tokens: Span,
    block_size: u32,
    tier: Tier,
    group: u32,
    attention: Attention,
    adapter: Option<Span>,
    salt: Option<Span>,
    readable: u32,
    may_repeat: bool,
}

/// A part of one of a batch's vectors, which are far shorter than 2^32: there may be many of these.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// One that ends beyond 2^32 is cut there.
    fn new(start: usize, end: usize) -> Self {
        let short = |at| u32::try_from(at).unwrap_or(u32::MAX);
        Self { start: short(start), end: short(end) }
    }

    fn len(self) -> usize {
        self.range().len()
    }

    fn range(self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }
}
