//! Runs: up to 64 consecutive blocks of one namespace, all of one size.
//!
//! A block is known by its content: the state of the byte prefix at its end ([`Chain`]), how many tokens it has, and a
//! digest of them, as one text may be cut into tokens in several ways. Whether two endpoints hold "the same" block is
//! decided by that, whatever they call it.
//!
//! **Invariants:** what differs from a run's next block begins a run of its own, attached to the block before: runs are
//! never split. A run whose parent is [`NO_BLOCK`] is a namespace's root and has no blocks. Fingerprint `i` of a run is
//! that of the `i`-th stride end after the run's start.

use super::holder::{Holder, Keeper};
use affinity::{Chain, Fingerprint, Stride, Tokens};
use std::ops::Range;

/// Most blocks in a run.
pub(super) const RUN: usize = 64;
/// No run: the end of lists.
pub(super) const NO_RUN: u32 = u32::MAX;
/// A root's parent.
pub(super) const NO_BLOCK: BlockId = BlockId(u32::MAX);
/// Runs are numbered with 26 bits; the last number is part of [`NO_BLOCK`].
pub(super) const MOST_RUNS: u32 = (1 << 26) - 1;

/// A block's place: its run and its offset in it. Of a root: the place to which first blocks are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct BlockId(u32);

impl BlockId {
    pub(super) fn new(run: u32, offset: u8) -> Self {
        Self(run << 6 | u32::from(offset) & 63)
    }

    pub(super) fn run(self) -> u32 {
        self.0 >> 6
    }

    pub(super) fn offset(self) -> u8 {
        (self.0 & 63) as u8
    }
}

/// A block's identity beside its parent, its size and its fingerprints; 12 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Block {
    /// [`Chain::content`] at its end, in halves: the struct is aligned to 4 bytes.
    content: [u32; 2],
    /// Bytes from the run's start to its end.
    end: u16,
    digest: u16,
}

impl Block {
    fn state(self) -> u64 {
        let [low, high] = self.content;
        u64::from(high) << 32 | u64::from(low)
    }
}

/// What makes a block the one that it is, after a given parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Content {
    /// State at its end.
    pub(super) chain: Chain,
    /// Tokens in it.
    pub(super) size: u32,
    /// Digest of its tokens.
    pub(super) digest: u16,
}

/// How many runs are attached to one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fork {
    offset: u8,
    runs: u32,
}

pub(super) struct Run {
    pub(super) parent: BlockId,
    /// Fingerprint of the last stride that is complete before the run.
    prefix: Fingerprint,
    /// Bytes before the run.
    bytes: u32,
    /// Tokens before the run.
    tokens: u32,
    /// Tokens in each block.
    size: u32,
    /// Neighbours among the leaves, by when they were last used.
    pub(super) colder: u32,
    pub(super) hotter: u32,
    blocks: Vec<Block>,
    prints: Vec<Fingerprint>,
    /// By keeper.
    pub(super) holders: Vec<Holder>,
    /// By offset.
    forks: Vec<Fork>,
}

impl Run {
    /// A run without blocks, which begins where `start` ends and has its first block of `size` tokens after `tokens`.
    pub(super) fn new(parent: BlockId, start: Chain, tokens: Tokens, size: u32) -> Option<Self> {
        Some(Self {
            parent,
            prefix: start.prefix(),
            bytes: u32::try_from(start.len()).ok()?,
            tokens: tokens.0,
            size,
            colder: NO_RUN,
            hotter: NO_RUN,
            blocks: Vec::new(),
            prints: Vec::new(),
            holders: Vec::new(),
            forks: Vec::new(),
        })
    }

    /// What a freed run leaves behind.
    pub(super) fn empty() -> Self {
        let none = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (prefix, bytes, tokens, size) = (Fingerprint(0), 0, 0, 0);
        let (blocks, prints, holders, forks) = none;
        Self {
            parent: NO_BLOCK,
            prefix,
            bytes,
            tokens,
            size,
            colder: NO_RUN,
            hotter: NO_RUN,
            blocks,
            prints,
            holders,
            forks,
        }
    }

    pub(super) fn is_root(&self) -> bool {
        self.parent == NO_BLOCK
    }

    /// How many blocks it has.
    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    pub(super) fn size(&self) -> u32 {
        self.size
    }

    /// The namespace's fingerprint, of a root.
    pub(super) fn prefix(&self) -> Fingerprint {
        self.prefix
    }

    /// Whether the block after the one at `offset` would be the run's next, if it is equal.
    pub(super) fn next_is(&self, offset: usize, stride: Stride, content: &Content) -> bool {
        content.size == self.size && self.blocks.get(offset).is_some_and(|b| *b == self.block(content))
            // Two words of state: equal content in another stride's middle is no equality.
            && self.chain(offset, stride).prefix() == content.chain.prefix()
    }

    fn block(&self, content: &Content) -> Block {
        let (state, bytes) = (content.chain.content(), content.chain.len().saturating_sub(u64::from(self.bytes)));
        // A length that does not fit has no equal: see `push`.
        let end = u16::try_from(bytes).unwrap_or(u16::MAX);
        Block { content: [state as u32, (state >> 32) as u32], end, digest: content.digest }
    }

    /// Appends a block and the fingerprints it completes; `false` if it has no place in this run. About `more` blocks
    /// are expected to follow.
    pub(super) fn push(&mut self, content: &Content, prints: &[Fingerprint], more: usize) -> bool {
        let block = self.block(content);
        if self.len() >= RUN || self.size != content.size || self.is_root() || block.end == u16::MAX {
            return false;
        }
        let more = more.clamp(3, RUN) + 1;
        if self.blocks.len() == self.blocks.capacity() {
            self.blocks.reserve_exact(more.min(RUN - self.len()));
        }
        if self.prints.len() + prints.len() > self.prints.capacity() {
            self.prints.reserve_exact(prints.len().max(more.min(RUN - self.len()) * prints.len().max(1) / 2));
        }
        self.blocks.push(block);
        self.prints.extend_from_slice(prints);
        true
    }

    /// Bytes from the run's start to a block's end.
    pub(super) fn span(&self, offset: usize) -> u16 {
        self.blocks.get(offset).map_or(0, |b| b.end)
    }

    /// Bytes from the prompt's start to a block's end.
    fn end(&self, offset: usize) -> u32 {
        self.bytes.saturating_add(self.blocks.get(offset).map_or(0, |b| u32::from(b.end)))
    }

    /// Bytes from the prompt's start to a block's beginning.
    fn begin(&self, offset: usize) -> u32 {
        offset.checked_sub(1).map_or(self.bytes, |before| self.end(before))
    }

    /// State at a block's end; of a root: at the prompt's start.
    pub(super) fn chain(&self, offset: usize, stride: Stride) -> Chain {
        let Some(block) = self.blocks.get(offset) else {
            return Chain::from_parts(self.prefix, 0, u64::from(self.bytes));
        };
        let before = self.prints_before(self.end(offset), stride).checked_sub(1);
        let prefix = before.and_then(|last| self.prints.get(last)).copied().unwrap_or(self.prefix);
        Chain::from_parts(prefix, block.state(), u64::from(self.end(offset)))
    }

    /// Of the first blocks: the state at their ends as [`Chain::content`], and their digests.
    pub(super) fn states(&self, blocks: usize) -> impl Iterator<Item = (u64, u16)> + '_ {
        self.blocks.iter().take(blocks).map(|b| (b.state(), b.digest))
    }

    /// A block with all that makes it.
    pub(super) fn content(&self, offset: usize, stride: Stride) -> Content {
        let digest = self.blocks.get(offset).map_or(0, |b| b.digest);
        Content { chain: self.chain(offset, stride), size: self.size, digest }
    }

    /// How many of the run's fingerprints are of strides that end at or before this byte.
    fn prints_before(&self, byte: u32, stride: Stride) -> usize {
        let size = stride.bytes() as u32;
        (byte / size).saturating_sub(self.bytes / size) as usize
    }

    fn prints_range(&self, offset: usize, stride: Stride) -> Range<usize> {
        self.prints_before(self.begin(offset), stride)..self.prints_before(self.end(offset), stride)
    }

    /// Fingerprints of the strides that end within a block.
    pub(super) fn prints(&self, offset: usize, stride: Stride) -> &[Fingerprint] {
        self.prints.get(self.prints_range(offset, stride)).unwrap_or_default()
    }

    /// Fingerprints of the strides that end within some blocks.
    pub(super) fn prints_within(&self, offsets: &Range<u8>, stride: Stride) -> &[Fingerprint] {
        let Some(last) = offsets.end.checked_sub(1).filter(|last| *last >= offsets.start) else { return &[] };
        let prints = self.prints_range(offsets.start.into(), stride).start..self.prints_range(last.into(), stride).end;
        self.prints.get(prints).unwrap_or_default()
    }

    /// Tokens from the prompt's start to a block's end; of a root: none.
    pub(super) fn tokens_end(&self, offset: usize) -> Tokens {
        let blocks = if self.is_root() { 0 } else { offset as u32 + 1 };
        Tokens(self.tokens.saturating_add(blocks.saturating_mul(self.size)))
    }

    /// Tokens of the blocks that end at or before the end of the last stride that ends within a block, and of the others
    /// that end within it.
    pub(super) fn tokens_at(&self, offset: usize, stride: Stride) -> (Tokens, Tokens) {
        let (end, begin) =
            (self.tokens_end(offset), self.tokens.saturating_add((offset as u32).saturating_mul(self.size)));
        let ends_together = self.end(offset).is_multiple_of(stride.bytes() as u32);
        (if ends_together { end } else { Tokens(begin) }, Tokens(begin))
    }

    pub(super) fn holder(&self, keeper: Keeper) -> Option<&Holder> {
        let at = self.holders.binary_search_by_key(&keeper, |h| h.keeper).ok()?;
        self.holders.get(at)
    }

    pub(super) fn holder_mut(&mut self, keeper: Keeper) -> Option<&mut Holder> {
        let at = self.holders.binary_search_by_key(&keeper, |h| h.keeper).ok()?;
        self.holders.get_mut(at)
    }

    pub(super) fn holds(&self, keeper: Keeper, offset: u8) -> bool {
        self.holder(keeper).is_some_and(|h| h.holds(offset))
    }

    /// A run was attached to a block.
    pub(super) fn attach(&mut self, offset: u8) {
        match self.forks.binary_search_by_key(&offset, |f| f.offset) {
            Ok(at) => {
                if let Some(fork) = self.forks.get_mut(at) {
                    fork.runs += 1;
                }
            }
            Err(at) => {
                self.forks.reserve_exact(1);
                self.forks.insert(at, Fork { offset, runs: 1 });
            }
        }
    }

    /// A run that was attached to a block was freed.
    pub(super) fn detach(&mut self, offset: u8) {
        let Ok(at) = self.forks.binary_search_by_key(&offset, |f| f.offset) else { return };
        let Some(fork) = self.forks.get_mut(at) else { return };
        fork.runs -= 1;
        if fork.runs == 0 {
            self.forks.remove(at);
        }
    }

    /// Whether nothing is attached to it.
    pub(super) fn is_leaf(&self) -> bool {
        self.forks.is_empty()
    }

    /// Whether a run is attached to one of these blocks.
    pub(super) fn forks_within(&self, offsets: &Range<u8>) -> bool {
        self.forks.iter().any(|f| offsets.contains(&f.offset))
    }

    /// Cuts blocks at the end that nobody holds and to which nothing is attached; says how many.
    pub(super) fn trim(&mut self, stride: Stride) -> usize {
        let held = self.holders.iter().fold(0, |all, h| all | h.resident());
        let held = RUN - held.leading_zeros() as usize;
        let forked = self.forks.last().map_or(0, |f| usize::from(f.offset) + 1);
        let (keep, had) = (held.max(forked), self.len());
        if self.is_root() || keep >= had {
            return 0;
        }
        self.prints.truncate(keep.checked_sub(1).map_or(0, |last| self.prints_range(last, stride).end));
        self.blocks.truncate(keep);
        if self.blocks.capacity() > keep + 16 {
            self.blocks.shrink_to(keep + 4);
            self.prints.shrink_to(self.prints.len() + 4);
        }
        had - keep
    }

    #[cfg(test)]
    pub(super) fn forks(&self) -> impl Iterator<Item = (u8, u32)> + '_ {
        self.forks.iter().map(|f| (f.offset, f.runs))
    }

    /// Memory that it takes beside itself.
    pub(super) fn heap(&self) -> usize {
        super::allocated::<Block>(self.blocks.capacity())
            + super::allocated::<Fingerprint>(self.prints.capacity())
            + super::allocated::<Holder>(self.holders.capacity())
            + super::allocated::<Fork>(self.forks.capacity())
            + self.holders.iter().map(Holder::bytes).sum::<usize>()
    }
}
