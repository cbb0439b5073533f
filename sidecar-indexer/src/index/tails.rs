//! The last tokens of blocks that may be generated on from: context for checking what comes next
//! ([`crate::canonical`]).

use crate::canonical::TAIL;
use fnv::FnvHashMap;
use std::collections::VecDeque;

#[derive(Default)]
pub(super) struct Tails {
    tails: FnvHashMap<u64, Tail>,
    /// Oldest first; those dropped before their turn are left in it until it is swept.
    order: VecDeque<u64>,
}

pub(super) struct Tail {
    pub(super) tokens: Box<[u32]>,
    /// The block before it that has a tail too: of two answers to one prompt the second one's first block needs it.
    pub(super) before: Option<u64>,
}

impl Tails {
    /// Conversations that can generate at once on one endpoint, with two tails each; 200 bytes a tail.
    const MOST: usize = 1 << 11;

    /// Keeps the tail of a block that ends with these tokens. `parent`: the block before those of its event, whose tail
    /// is dropped once something comes two events later.
    pub(super) fn put(&mut self, hash: u64, parent: Option<u64>, tokens: &[u32]) {
        if let Some(parent) = parent.and_then(|parent| self.tails.get_mut(&parent))
            && let Some(before) = parent.before.take()
        {
            self.tails.remove(&before);
        }
        let before = parent.filter(|parent| self.tails.contains_key(parent));
        self.insert(hash, tokens.get(tokens.len().saturating_sub(TAIL)..).unwrap_or(tokens).into(), before);
    }

    pub(super) fn insert(&mut self, hash: u64, tokens: Box<[u32]>, before: Option<u64>) {
        if self.tails.insert(hash, Tail { tokens, before }).is_none() {
            self.order.push_back(hash);
        }
        while self.tails.len() > Self::MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.tails.remove(&oldest);
        }
        self.sweep();
    }

    /// A block is not there any more: nothing will come after it.
    pub(super) fn remove(&mut self, hash: u64) {
        if self.tails.remove(&hash).is_some() {
            self.sweep();
        }
    }

    fn sweep(&mut self) {
        if self.order.len() > 2 * self.tails.len() + 64 {
            self.order.retain(|hash| self.tails.contains_key(hash));
            self.order.shrink_to(2 * self.order.len() + 64);
        }
    }

    pub(super) fn get(&self, hash: u64) -> &[u32] {
        self.tails.get(&hash).map_or(&[], |tail| &tail.tokens)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Tail)> {
        self.tails.iter().map(|(hash, tail)| (*hash, tail))
    }

    pub(super) fn bytes(&self) -> usize {
        let tokens = self.tails.values().map(|t| super::allocated::<u32>(t.tokens.len())).sum::<usize>();
        tokens
            + super::table_bytes::<(u64, Tail)>(self.tails.capacity())
            + super::allocated::<u64>(self.order.capacity())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_keeps_its_last_two_tails() {
        let mut tails = Tails::default();
        tails.put(1, None, &[1; 40]);
        assert_eq!(tails.get(1), [1; TAIL]);
        for hash in 2..10 {
            tails.put(hash, Some(hash - 1), &[hash as u32; 16]);
            assert_eq!((tails.get(hash).len(), tails.get(hash - 1).is_empty()), (16, false));
            assert_eq!(tails.tails.len(), 2);
        }
        // A second answer to the same prompt, while the first has gone on by one block.
        assert_eq!(tails.get(8), [8; 16]);
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many() {
        let mut tails = Tails::default();
        for hash in 0..10_000 {
            tails.put(hash, None, &[0; 16]);
        }
        assert_eq!((tails.tails.len(), tails.get(0).len(), tails.get(9_999).len()), (Tails::MOST, 0, 16));
        assert!(tails.order.len() <= 2 * Tails::MOST + 64);
    }

    #[test]
    fn what_goes_with_its_block_leaves_nothing() {
        let mut tails = Tails::default();
        for hash in 0..1_000 {
            tails.put(hash, None, &[0; 16]);
            tails.remove(hash);
            assert!(tails.get(hash).is_empty() && tails.order.len() <= 65);
        }
    }
}
