//! Looks for several short literals in long text.

use super::{any_place, any_place_of};
use std::collections::BTreeMap;

/// Literals to look for, by the byte that tells them best from other text: two such bytes in one pass over it.
#[derive(Debug, Default)]
pub struct Needles {
    pairs: Vec<([u8; 2], Vec<Needle>)>,
    /// Of an odd number of bytes, the last.
    single: Option<(u8, Vec<Needle>)>,
}

#[derive(Debug)]
struct Needle {
    text: Box<[u8]>,
    /// Where in it the byte is.
    at: usize,
}

impl Needles {
    /// Empty literals are left out.
    #[must_use]
    pub fn new<'n>(literals: impl IntoIterator<Item = &'n str>) -> Self {
        let mut by_byte: BTreeMap<u8, Vec<Needle>> = BTreeMap::new();
        for literal in literals {
            let bytes = literal.bytes().enumerate();
            let Some((at, byte)) = bytes.min_by_key(|(_, byte)| frequency(*byte)) else { continue };
            by_byte.entry(byte).or_default().push(Needle { text: literal.as_bytes().into(), at });
        }
        let mut this = Self::default();
        let mut bytes = by_byte.into_iter();
        while let Some((byte, mut needles)) = bytes.next() {
            let Some((other, more)) = bytes.next() else {
                this.single = Some((byte, needles));
                break;
            };
            needles.extend(more);
            this.pairs.push(([byte, other], needles));
        }
        this
    }

    /// Whether any of them is in the text.
    #[must_use]
    pub fn any_in(&self, text: &[u8]) -> bool {
        let lies = |needles: &[Needle], at| needles.iter().any(|needle| needle.lies_at(text, at));
        self.pairs.iter().any(|(bytes, needles)| any_place_of(text, *bytes, |at| lies(needles, at)))
            || self.single.as_ref().is_some_and(|(byte, needles)| any_place(text, *byte, |at| lies(needles, at)))
    }
}

impl Needle {
    fn lies_at(&self, text: &[u8], at: usize) -> bool {
        at.checked_sub(self.at).and_then(|from| text.get(from..)).is_some_and(|rest| rest.starts_with(&self.text))
    }
}

/// How common a byte is in prompts, roughly.
fn frequency(byte: u8) -> u8 {
    match byte {
        b'e' | b't' | b'a' | b'o' | b'i' | b'n' | b's' | b'r' | b'h' | b'l' | b'd' | b' ' => 4,
        b'a'..=b'z' | b'\n' | b',' | b'.' => 3,
        b'A'..=b'Z' | b'0'..=b'9' | 0x80.. => 2,
        b'-' | b'_' | b'"' | b'\'' | b'(' | b')' | b'*' => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn finds_what_is_there_and_nothing_else(
            literals in prop::collection::vec("[ab<é]{0,3}", 0..4),
            text in "[ab<é\u{bb}\u{3d}]{0,80}",
        ) {
            let naive = literals.iter().any(|l| !l.is_empty() && text.contains(l.as_str()));
            prop_assert_eq!(Needles::new(literals.iter().map(String::as_str)).any_in(text.as_bytes()), naive);
        }
    }
}
