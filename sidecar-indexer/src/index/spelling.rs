//! Events' tokens as bytes: some blocks in one go.
//!
//! The slots of a vocabulary are mostly not in the innermost cache. Spelled block by block, between all else that is
//! done for one, each would be waited for; in one loop the waits overlap.

use crate::tokens::Vocabulary;
use std::ops::Range;

/// A buffer that blocks of an unusual size made larger is not kept.
const KEPT: usize = 1 << 17;

/// Tokens of the largest block that is spelled.
const LARGEST: usize = u16::MAX as usize;

/// Blocks' bytes, one after the other.
#[derive(Default)]
pub(super) struct Spelling {
    bytes: Vec<u8>,
    /// Where each block's lie; `None` if it holds a token that is unknown, or is too large.
    blocks: Vec<Option<Range<usize>>>,
}

impl Spelling {
    /// Spells other blocks, of `size` tokens each; without a vocabulary, as token ids of 4 bytes.
    pub(super) fn spell(&mut self, vocabulary: Option<&Vocabulary>, tokens: &[u32], size: usize) {
        if self.bytes.len() > KEPT {
            self.bytes = Vec::new();
        }
        self.blocks.clear();
        let mut start = 0;
        if let Some(vocabulary) = vocabulary {
            vocabulary.warm(tokens);
        }
        for block in tokens.chunks(size.max(1)) {
            let end = match vocabulary {
                // No run takes it, and its bytes might be 100 times its message's.
                _ if block.len() > LARGEST => None,
                Some(vocabulary) => vocabulary.spell_over(block, start, &mut self.bytes),
                None => {
                    self.bytes.truncate(start);
                    self.bytes.extend(block.iter().flat_map(|token| token.to_le_bytes()));
                    Some(self.bytes.len())
                }
            };
            self.blocks.push(end.map(|end| start..end));
            start = end.unwrap_or(start);
        }
    }

    /// A block's bytes, if they are known.
    pub(super) fn block(&self, i: usize) -> Option<&[u8]> {
        self.bytes.get(self.blocks.get(i)?.clone()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_spelled_one_by_one_and_unknown_tokens_spoil_only_theirs() {
        let vocabulary = Vocabulary::built_in("o200k_harmony").unwrap();
        let id = |text: &str| vocabulary.id(text.as_bytes()).unwrap();
        let tokens = [id(" the"), id("re"), id("a"), u32::MAX, id("b"), id(" and"), id("z")];
        let mut spelling = Spelling::default();
        // Twice: what was there does not matter.
        for _ in 0..2 {
            spelling.spell(Some(&vocabulary), &tokens, 2);
            let blocks = [0, 1, 2, 3, 4].map(|i| spelling.block(i));
            assert_eq!(blocks, [Some(b" there".as_slice()), None, Some(b"b and"), Some(b"z"), None]);
        }
        spelling.spell(None, &tokens[3..], 2);
        assert_eq!(spelling.block(0).unwrap(), [[255; 4], tokens[4].to_le_bytes()].concat());
        assert_eq!((spelling.block(1).unwrap().len(), spelling.block(2)), (8, None));
        let many = vec![tokens[0]; LARGEST + 1];
        for vocabulary in [None, Some(&vocabulary)] {
            spelling.spell(vocabulary, &many, many.len());
            assert!(spelling.block(0).is_none() && spelling.bytes.len() <= KEPT, "too large to be placed");
        }
    }
}
